"""Servers that do nothing for a cache: asked seldom, told about once, and left alone otherwise."""

import socket
import threading
import time

import pytest

from processes import free_port, wait_until
from wire import Connection
import contextlib

SECONDS = 1.5
# The one question at the start, and what the connection is opened for; far below one per heartbeat.
FEW = 2
WITHOUT_TRACKING = ("~*", "&*", "+@all", "-client|tracking")

pytestmark = pytest.mark.needs_proxy


def counted(server):
    """Connections ever taken, and calls of what the link asks."""
    stats = server.info("commandstats")
    calls = {name: int(stats.get(f"cmdstat_{name}", "calls=0").split(",")[0][6:]) for name in ("command", "ping", "hello")}
    return {**calls, "connections": int(server.info("stats")["total_connections_received"])}


def assert_left_alone(server, proxy, said):
    """For a few seconds: no connection, no COMMAND, no PING; and one line about it in the log."""
    wait_until(lambda: said in proxy.read_log(), f"{said!r} is logged")
    time.sleep(0.3)
    before = counted(server)
    time.sleep(SECONDS)
    after = counted(server)
    # Each of our own three calls comes by a connection of its own.
    assert after["connections"] - before["connections"] <= 3 + FEW
    assert after["command"] - before["command"] <= FEW and after["hello"] - before["hello"] <= FEW
    assert after["ping"] - before["ping"] <= FEW
    log = proxy.read_log()
    assert log.count(said) == 1, log
    assert "cache flushed" not in log and log.count("WARN") <= 2, log


@pytest.mark.parametrize(("kind", "mode"), [("redis", "auto"), ("redis", "tracked"), ("redis", "broadcast"), ("valkey", "auto")])
def test_a_user_without_tracking_is_asked_seldom(lab, kind, mode):
    server = lab.server(kind)
    server.call("ACL", "SETUSER", "app", "on", ">secret", *WITHOUT_TRACKING)
    proxy = lab.proxy(f"redis://app:secret@127.0.0.1:{server.port}/0", settings={"invalidation": mode})
    with Connection(proxy.port) as conn:
        assert conn.call("SET", "k", "v") == b"OK" and conn.call("GET", "k") == b"v"
    assert_left_alone(server, proxy, "nothing is cached")
    # Once the right is granted, the change of the ACL is seen and the server asked at once.
    server.call("ACL", "SETUSER", "app", "+client|tracking")
    wait_until(lambda: proxy.stats()["link"] == "up", "the link is up", timeout=4)


def test_a_refused_channel_is_told_once(lab):
    """Tracking is granted, the channel on which it reports is not."""
    server = lab.server("redis")
    server.call("ACL", "SETUSER", "app", "on", ">secret", "~*", "resetchannels", "+@all")
    proxy = lab.proxy(f"redis://app:secret@127.0.0.1:{server.port}/0", settings={"invalidation": "tracked"})
    assert_left_alone(server, proxy, "nothing is cached")


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_without_invalidation_the_link_is_silent(lab, kind):
    server = lab.server(kind)
    proxy = lab.proxy(server.port, settings={"invalidation": "off", "upstream_timeout": "1s"})
    assert_left_alone(server, proxy, 'invalidation = "off"')
    # Nothing else is heard of the server while a session waits: the watch is.
    with Connection(proxy.port) as conn:
        assert conn.call("BLPOP", "nothing", "1.6") is None
    assert len(server.clients_named("nearside-link")) == 1
    server.restart()
    wait_until(lambda: len(server.clients_named("nearside-link")) == 1, "the link is back")
    with Connection(proxy.port) as conn:
        assert conn.call("SET", "k", "v") == b"OK" and conn.call("GET", "k") == b"v"


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_notifications_that_are_unset_flush_nothing(lab, kind):
    server = lab.server(kind)
    proxy = lab.proxy(server.port, settings={"invalidation": "keyspace", "max_ttl": "10s"})
    assert_left_alone(server, proxy, "notify-keyspace-events is")
    # The operator sets them: seen by the watch, without waiting for the next time to ask.
    server.call("CONFIG", "SET", "notify-keyspace-events", "KA")
    wait_until(lambda: proxy.stats()["link"] == "up", "the link is up", timeout=4)
    server.call("CONFIG", "SET", "notify-keyspace-events", "")
    wait_until(lambda: proxy.stats()["link"] == "down", "the link is given up", timeout=4)
    wait_until(lambda: "cache flushed" in proxy.read_log(), "the flush is logged")


# --- servers that answer a PING otherwise ---

PONGS = {
    "an array": lambda text: b"*2\r\n$4\r\npong\r\n$%d\r\n%s\r\n" % (len(text), text),
    "a bulk string": lambda text: b"$%d\r\n%s\r\n" % (len(text), text),
    "a simple string": lambda text: b"+%s\r\n" % text,
    "a push": lambda text: b">2\r\n$4\r\npong\r\n$%d\r\n%s\r\n" % (len(text), text),
    "in capitals": lambda text: b"*2\r\n$4\r\nPONG\r\n$%d\r\n%s\r\n" % (len(text), text),
}


class FakeServer:
    """Says what a Redis says to a link and to a watch, and answers a subscriber's PING by `pong`."""

    def __init__(self, pong):
        self.pong = pong
        self.asked = []
        self.port = free_port()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listener.close()

    def links(self):
        return sum(words[0].upper() == b"HELLO" and b"nearside-link" in words for words in list(self.asked))

    def _accept(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        with Requests(sock) as requests:
            for words in requests:
                self.asked.append(words)
                requests.answer(self._reply([word.upper() for word in words], words, requests))

    def _reply(self, upper, words, requests):
        if upper[0] == b"HELLO":
            return b"*4\r\n$2\r\nid\r\n:7\r\n$5\r\nproto\r\n:2\r\n"
        if upper[0] == b"COMMAND":
            return b"*1\r\n*6\r\n$3\r\nget\r\n:2\r\n*1\r\n+readonly\r\n:1\r\n:1\r\n:1\r\n"
        if upper[0] == b"INFO":
            text = b"redis_version:7.0.0\r\nrole:master\r\n"
            return b"$%d\r\n%s\r\n" % (len(text), text)
        if upper[0] == b"SUBSCRIBE":
            requests.subscribed = True
            return b"*3\r\n$9\r\nsubscribe\r\n$%d\r\n%s\r\n:1\r\n" % (len(words[1]), words[1])
        if upper[0] == b"PING":
            return self.pong(words[1]) if requests.subscribed and len(words) > 1 else b"+PONG\r\n"
        if upper[0] == b"CONFIG":
            return b"*0\r\n"
        if upper[0] in (b"ACL", b"TIME"):
            return b"-ERR unknown command\r\n"
        return b"+OK\r\n"


class Requests:
    """The requests of one connection, as lists of words."""

    def __init__(self, sock):
        self._sock, self._file = sock, sock.makefile("rb")
        self.subscribed = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
        self._sock.close()

    def __iter__(self):
        try:
            while line := self._file.readline():
                yield [self._word() for _ in range(int(line[1:]))]
        except (OSError, ValueError):
            return

    def _word(self):
        length = int(self._file.readline()[1:])
        return self._file.read(length + 2)[:-2]

    def answer(self, reply):
        with contextlib.suppress(OSError):
            self._sock.sendall(reply)


@pytest.fixture
def fake():
    servers = []

    def start(pong):
        servers.append(FakeServer(pong))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.mark.parametrize("shape", PONGS)
def test_a_pong_is_taken_in_every_shape(lab, fake, shape):
    server = fake(PONGS[shape])
    proxy = lab.proxy(server.port)
    wait_until(lambda: "is up: caching" in proxy.read_log(), "the link is up")
    time.sleep(0.5)
    assert server.links() == 1 and "lost" not in proxy.read_log()


def test_a_pong_that_proves_nothing_is_no_reason_to_hurry(lab, fake):
    """What was sent with the PING does not come back: nothing can be proven, and the server is asked more and more seldom."""
    server = fake(lambda text: b"+PONG\r\n")
    proxy = lab.proxy(server.port)
    wait_until(server.links, "the link")
    time.sleep(SECONDS)
    assert server.links() <= 10, f"{server.links()} links in {SECONDS} s"
    log = proxy.read_log()
    assert log.count("WARN") <= 3 and "unexpected message: +PONG" in log, log


def test_a_server_that_cuts_each_link_at_once_is_left_in_peace(lab):
    """A link that comes up and is lost at once counts as a failure: the pauses grow, and so do those between the lines."""
    server = lab.server("redis")
    proxy = lab.proxy(server.port)
    stop = threading.Event()
    ups = []

    def cut():
        seen = None
        with server.connect() as conn:
            while not stop.is_set():
                log = proxy.read_log().count("is up: caching")
                if log != seen:
                    seen = log
                    ups.append(time.monotonic())
                    ids = server.clients_named("nearside-link")
                    conn.pipeline([("CLIENT", "KILL", "ID", client) for client in ids])
                time.sleep(0.002)

    thread = threading.Thread(target=cut)
    thread.start()
    time.sleep(SECONDS)
    stop.set()
    thread.join()
    assert len(ups) <= 10, f"{len(ups)} links in {SECONDS} s"
    # And it comes back for good.
    wait_until(lambda: proxy.stats()["link"] == "up", "the link is up", timeout=5)
