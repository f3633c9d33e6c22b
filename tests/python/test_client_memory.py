"""What clients make the proxy hold: given back when a command is done, and bounded over all of them (maxmemory_clients)."""

import socket
import threading

import pytest

from processes import wait_until
from wire import Closed, Connection, encode

pytestmark = pytest.mark.needs_proxy

MEGABYTE = 1 << 20
BOUND = 64 * MEGABYTE
#: Beside what is counted: the cache, lanes, replies being received, what the allocator has not given back yet.
BESIDE = 96 * MEGABYTE


@pytest.fixture(params=["redis", "valkey"])
def bounded(request, lab):
    proxy = lab.proxy(lab.server(request.param).port, settings={"maxmemory_clients": "64mb", "max_memory": "16mb"})
    with Connection(proxy.port) as conn:
        conn.call("SET", "small", "v")
        conn.call("SET", "large", b"x" * (MEGABYTE // 2))
    return proxy


class Neighbour:
    """A client that behaves, while others do not: each of its commands is answered."""

    def __init__(self, port):
        self.done, self.failure, self.count = threading.Event(), None, 0
        self.thread = threading.Thread(target=self._run, args=(port,))

    def _run(self, port):
        try:
            with Connection(port) as conn:
                while not self.done.is_set():
                    assert conn.call("GET", "small") == b"v"
                    assert conn.call("INCR", "n") > self.count
                    self.count += 1
        except (OSError, AssertionError) as failure:
            self.failure = failure

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        wait_until(lambda: self.failure or self.count > 10, "the neighbour is served")
        self.done.set()
        self.thread.join()
        assert self.failure is None, self.failure


def send_what_is_taken(port, payload):
    """An unread connection with as much of the payload as the proxy takes."""
    conn = Connection(port)
    # The kernel is to keep little of what is not read.
    conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    conn.sock.setblocking(False)
    view = memoryview(payload)
    try:
        while view:
            view = view[conn.sock.send(view[:MEGABYTE]):]
    except (BlockingIOError, ConnectionError):
        pass
    return conn, view


def keep_sending(pairs):
    """Sends on what could not be sent; which are closed by now."""
    for n, (conn, view) in enumerate(pairs):
        try:
            while view:
                view = view[conn.sock.send(view[:MEGABYTE]):]
        except (BlockingIOError, ConnectionError):
            pass
        pairs[n] = (conn, view)


def assert_bounded(proxy, before):
    stats = proxy.stats()
    assert stats["clients_max_bytes"] == BOUND and stats["clients_bytes"] <= BOUND
    assert stats["evicted_clients"] > 0
    assert proxy.peak_bytes() < before + BOUND + BESIDE
    wait_until(lambda: proxy.read_log().count("(maxmemory_clients)") >= stats["evicted_clients"], "a line for each")


def all_given_back(proxy):
    wait_until(lambda: proxy.stats()["clients_bytes"] == 0, "nothing is counted any more")


def test_large_requests_in_flight_are_bounded(bounded):
    """40 clients send 9 MB of a value of 10 MB each."""
    before = bounded.resident_bytes()
    with Neighbour(bounded.port):
        payload = encode("SET", "k", b"x" * 10 * MEGABYTE)[: 9 * MEGABYTE]
        pairs = [send_what_is_taken(bounded.port, payload) for _ in range(40)]
        wait_until(lambda: keep_sending(pairs) or bounded.stats()["evicted_clients"] >= 30, "most are closed", pause=0.002)
        assert_bounded(bounded, before)
    for conn, _ in pairs:
        conn.close()
    all_given_back(bounded)


def test_slow_readers_are_bounded(bounded):
    """Each of 30 asks for 14 MB and reads nothing: for replies that differ, also from one client to the next, since one that many
    commands share is held once. (A range that another client has read is a hit.)"""
    before = bounded.resident_bytes()
    with Neighbour(bounded.port):
        payloads = [b"".join(encode("GETRANGE", "large", 28 * client + n, -1) for n in range(28)) for client in range(30)]
        pairs = [send_what_is_taken(bounded.port, payload) for payload in payloads]
        wait_until(lambda: bounded.stats()["evicted_clients"] > 5, "some are closed", timeout=60)
        assert_bounded(bounded, before)
    for conn, _ in pairs:
        conn.close()
    all_given_back(bounded)


def test_slow_subscribers_are_bounded(bounded):
    before = bounded.resident_bytes()
    subscribers = [Connection(bounded.port) for _ in range(12)]
    for conn in subscribers:
        conn.call("SUBSCRIBE", "c")
    with Neighbour(bounded.port), Connection(bounded.port) as publisher:
        for _ in range(25):
            publisher.call("PUBLISH", "c", b"m" * MEGABYTE)
        wait_until(lambda: bounded.stats()["evicted_clients"] > 0, "some are closed")
        assert_bounded(bounded, before)
    for conn in subscribers:
        conn.close()
    all_given_back(bounded)


def test_the_largest_goes_first(lab):
    proxy = lab.proxy(lab.server().port, settings={"maxmemory_clients": "25%", "max_memory": "16mb"})

    def holding(bytes_):
        conn = Connection(proxy.port)
        conn.send_raw(encode("SET", "k", b"x" * 10 * MEGABYTE)[:bytes_])
        return conn

    def held():
        return proxy.stats()["clients_bytes"]

    small = holding(100_000)
    wait_until(lambda: held() >= 80_000, "the small one counts")
    large = holding(3 * MEGABYTE)
    wait_until(lambda: held() >= 3 * MEGABYTE, "the large one counts")
    middle = holding(2 * MEGABYTE)
    with pytest.raises((Closed, ConnectionError)):
        large.read()
    wait_until(lambda: 2 * MEGABYTE < held() < 2.5 * MEGABYTE, "two are left")
    assert proxy.stats()["evicted_clients"] == 1
    for conn in (small, middle):
        conn.sock.settimeout(0.05)
        with pytest.raises(socket.timeout):
            conn.read()
        conn.close()


def test_0_is_no_bound(lab):
    proxy = lab.proxy(lab.server().port, settings={"maxmemory_clients": 0})
    conns = [send_what_is_taken(proxy.port, encode("SET", "k", b"x" * MEGABYTE)[:-1])[0] for _ in range(5)]
    for conn in conns:
        conn.close()
    assert proxy.stats()["evicted_clients"] == 0


def test_a_command_of_many_arguments_leaves_nothing_behind(site):
    """50 connections send one of 100,000 arguments each and stay: 2.4 MB of room for each was kept before."""
    payloads = [encode(command, *["k"] * 100_000) for command in ("MSET", "DEL", "EXISTS")]
    conns = [Connection(site.a.port) for _ in range(50)]

    def send(payload, conn):
        conn.send_raw(payload)
        conn.read()

    send(payloads[0], conns[0])
    before = site.a.resident_bytes()
    for n, conn in enumerate(conns):
        send(payloads[n % len(payloads)], conn)
    wait_until(lambda: site.a.resident_bytes() < before + 24 * MEGABYTE, "the room is given back", timeout=5)
    for conn in conns:
        assert conn.call("PING") == b"PONG"
        conn.close()
