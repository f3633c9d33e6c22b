"""Clients that write a whole pipeline before they read the first reply, as most libraries do: Redis takes all of it, within the
limits of its buffers. The replies come, all and in order, or the connection is closed and the log says why; none hangs."""

import socket
import ssl

import pytest

from certificates import Authority
from processes import free_port, wait_until
from wire import Connection, encode

KILOBYTE = 1024
MEGABYTE = 1024 * KILOBYTE
#: Far more than the kernel keeps between a client and the proxy (4 MB one way, 6 MB the other at the most).
HITS = 130_000
KEY = "deep:" + "k" * 60
VALUE = b"x" * 300
LARGE = b"y" * 10 * KILOBYTE
PAIRS = 2_500
PATIENCE = 5


def bulk(value):
    return b"$%d\r\n%s\r\n" % (len(value), value)


def small_socket(port):
    """The kernel keeps little for it, so that what is not read soon blocks."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * KILOBYTE)
    sock.settimeout(PATIENCE)
    sock.connect(("127.0.0.1", port))
    return sock


def write_then_read(sock, payload, length, between=lambda: None):
    """Everything is written, then `length` bytes are read."""
    sock.sendall(payload)
    between()
    data = bytearray()
    while len(data) < length and (chunk := sock.recv(MEGABYTE)):
        data += chunk
    return bytes(data)


def hits():
    return encode("SET", KEY, VALUE) + encode("GET", KEY) * HITS, b"+OK\r\n" + bulk(VALUE) * HITS


def misses():
    """What is read was just written: no read of them is answered from the cache."""
    pairs = range(PAIRS)
    payload = b"".join(encode("SET", f"deep:{n}", LARGE) + encode("GET", f"deep:{n}") for n in pairs)
    return payload, (b"+OK\r\n" + bulk(LARGE)) * PAIRS


def watching():
    payload, expected = misses()
    return encode("WATCH", "deep:w") + payload + encode("UNWATCH"), b"+OK\r\n" + expected + b"+OK\r\n"


def transaction():
    payload, _ = misses()
    queued = b"+OK\r\n" + b"+QUEUED\r\n" * 2 * PAIRS
    results = b"*%d\r\n" % (2 * PAIRS) + (b"+OK\r\n" + bulk(LARGE)) * PAIRS
    return encode("MULTI") + payload + encode("EXEC") + encode("PING"), queued + results + b"+PONG\r\n"


def pinned():
    payload, expected = misses()
    return encode("CLIENT", "NO-EVICT", "OFF") + payload, b"+OK\r\n" + expected


DEEP = {one.__name__: one for one in (hits, misses, watching, transaction, pinned)}


@pytest.mark.parametrize("pipeline", DEEP.values(), ids=DEEP.keys())
def test_a_pipeline_may_be_written_before_it_is_read(site, pipeline):
    payload, expected = pipeline()
    with small_socket(site.a.port) as sock:
        assert write_then_read(sock, payload, len(expected)) == expected


@pytest.mark.needs_proxy
def test_by_tls_too(lab, tmp_path):
    authority, port = Authority(tmp_path), free_port()
    cert, key = authority.issue("server")
    lab.proxy(lab.server().port, doors=[{"address": f"127.0.0.1:{port}", "tls_cert": str(cert), "tls_key": str(key)}])
    context = ssl.create_default_context(cafile=authority.ca)
    payload, expected = misses()
    with context.wrap_socket(small_socket(port), server_hostname="localhost") as sock:
        assert write_then_read(sock, payload, len(expected)) == expected


def test_what_stands_behind_a_blocking_command_is_taken_before_it_is_answered(site):
    """The same thread pushes what the first command waits for, once it has written the rest."""
    payload, expected = misses()
    element = b"*2\r\n" + bulk(b"deep:list") + bulk(b"element")

    def push():
        with Connection(site.server.port) as other:
            other.call("RPUSH", "deep:list", "element")

    with small_socket(site.a.port) as sock:
        data = write_then_read(sock, encode("BLPOP", "deep:list", 0) + payload, len(element + expected), push)
        assert data == element + expected


def test_what_stands_behind_a_pause_is_taken_before_it_is_over(site):
    payload, expected = misses()
    with Connection(site.a.port) as other, small_socket(site.a.port) as sock:
        other.call("CLIENT", "PAUSE", 60_000, "WRITE")
        data = write_then_read(sock, payload, len(expected), lambda: other.call("CLIENT", "UNPAUSE"))
        assert data == expected


@pytest.mark.needs_proxy
def test_replies_beyond_their_limit_end_it_and_the_log_says_so(lab):
    proxy = lab.proxy(lab.server().port, settings={"client_output_buffer_limit": "4mb"})
    payload, expected = hits()
    before = proxy.resident_bytes()
    with small_socket(proxy.port) as sock, pytest.raises(ConnectionError):
        data = write_then_read(sock, payload, len(expected))
        raise ConnectionError if len(data) < len(expected) else AssertionError("all of it came")
    assert proxy.stats()["clients_slow"] == 1
    wait_until(lambda: "client_output_buffer_limit" in proxy.read_log(), "a line in the log")
    assert proxy.peak_bytes() < before + 48 * MEGABYTE


@pytest.mark.needs_proxy
def test_requests_beyond_their_limit_end_it_and_the_log_says_so(lab):
    settings = {"client_query_buffer_limit": "2mb", "proto_max_bulk_len": "1mb"}
    proxy = lab.proxy(lab.server().port, settings=settings)
    payload, _ = misses()
    with small_socket(proxy.port) as sock, pytest.raises(ConnectionError):
        sock.sendall(encode("BLPOP", "deep:list", 0) + payload)
    wait_until(lambda: "client_query_buffer_limit" in proxy.read_log(), "a line in the log")


@pytest.mark.needs_proxy
def test_a_full_lane_makes_clients_wait_that_read_nothing_and_none_hangs(lab):
    """The lane takes 64 KB at a time for all of them; the replies of none are read until all is written."""
    proxy = lab.proxy(lab.server().port, settings={"lane_buffer_limit": "64kb", "threads": 1})
    payload, expected = misses()
    socks = [small_socket(proxy.port) for _ in range(3)]
    try:
        for sock in socks:
            sock.sendall(payload)
        for sock in socks:
            assert write_then_read(sock, b"", len(expected)) == expected
    finally:
        for sock in socks:
            sock.close()
