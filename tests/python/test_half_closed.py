"""A client that closes its sending side as soon as all is sent, and then reads: all that it has sent is done, and told, as bare."""

import re
import socket
import threading
import time

import pytest

from processes import KINDS, cached, wait_until
from wire import Connection, encode

pytestmark = pytest.mark.needs_proxy

ROUNDS = 50
PIPELINES = {
    "a list that has an element": [("RPUSH", "l", "a"), ("BLPOP", "l", 0), ("SET", "k", 1), ("GET", "k")],
    "BLMOVE": [("RPUSH", "l", "a"), ("BLMOVE", "l", "m", "LEFT", "LEFT", 0), ("LRANGE", "m", 0, -1)],
    "XREAD BLOCK": [("XADD", "s", "1-1", "a", "b"), ("XREAD", "BLOCK", 0, "STREAMS", "s", 0), ("SET", "k", 9), ("GET", "k")],
    "WAIT": [("SET", "k", 1), ("WAIT", 0, 0), ("SET", "k", 2), ("GET", "k")],
    "a transaction": [("MULTI",), ("SET", "k", 1), ("EXEC",), ("GET", "k")],
    "SELECT in a transaction": [("MULTI",), ("SELECT", 1), ("SET", "k", 1), ("EXEC",), ("GET", "k")],
    "SELECT behind WATCH": [("WATCH", "k"), ("SELECT", 2), ("SET", "k", "q"), ("GET", "k")],
    "a subscription that ends": [("SUBSCRIBE", "c"), ("UNSUBSCRIBE", "c"), ("SET", "k", 2), ("GET", "k")],
    "a subscriber's PING": [("SUBSCRIBE", "c"), ("PING",)],
    "a RESP3 subscriber": [("HELLO", 3), ("SUBSCRIBE", "c"), ("SET", "k", 3), ("GET", "k")],
    "tracking": [("HELLO", 3), ("CLIENT", "TRACKING", "ON"), ("SET", "k", 3), ("GET", "k"), ("GET", "k")],
    "CLIENT REPLY SKIP": [("CLIENT", "REPLY", "SKIP"), ("SET", "k", "x"), ("GET", "k")],
    "CLIENT REPLY OFF": [("CLIENT", "REPLY", "OFF"), ("SET", "k", "x"), ("CLIENT", "REPLY", "ON"), ("GET", "k")],
    "scripts": [("EVAL", "redis.call('set', 'k', 'e') return 1", 0), ("GET", "k"), ("EVAL", "return 2", 0)],
}


def told(port, data, pause=0):
    """All bytes that a client is told which sends `data`, closes its sending side at once and then, after a pause, reads."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:

        def send():
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        time.sleep(pause)
        said = []
        while chunk := sock.recv(1 << 18):
            said.append(chunk)
        sender.join()
        return b"".join(said)


@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES.keys())
def test_a_pipeline_is_done_and_told(site, pipeline):
    data = b"".join(encode(*request) for request in pipeline)

    def outcome(port):
        site.server.call("FLUSHALL")
        said = re.sub(rb"(\$2\r\nid\r\n:)\d+", rb"\1N", told(port, data))
        return said, site.server.call("GET", "k"), site.server.call("LLEN", "l")

    for _ in range(3):
        assert outcome(site.a.port) == outcome(site.server.port)


@pytest.mark.parametrize("before", [[], [("WATCH", "none")], [("WATCH", "none"), ("SELECT", 0)]], ids=["new", "watching", "unlooked at"])
def test_what_is_taken_is_told(site, before):
    for n in range(ROUNDS):
        site.server.call("RPUSH", f"taken:{n}", "x")
        with Connection(site.a.port) as conn:
            conn.pipeline(before)
            conn.send("BLPOP", f"taken:{n}", 0)
            conn.sock.shutdown(socket.SHUT_WR)
            assert (conn.read_to_end(), site.server.call("LLEN", f"taken:{n}")) == (encode(f"taken:{n}", "x"), 0)


def test_who_waits_in_vain_is_gone_at_once(site):
    idle = site.a.stats()["dedicated_lent"]
    began = time.monotonic()
    assert told(site.a.port, encode("BLPOP", "never", 0) + encode("SET", "behind", 1)) == b""
    assert time.monotonic() - began < 2
    wait_until(lambda: site.a.stats()["dedicated_lent"] == idle, "the connection is given back")
    assert site.server.call("EXISTS", "behind") == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before, pause", [(b"", 0), (b"", 0.3), (encode("CLIENT", "NO-EVICT", "ON"), 1.5)], ids=["at once", "late", "unlooked at"])
def test_what_was_held_back_goes_on(lab, kind, before, pause):
    """Before: of a pipeline with more replies than are owed at once, the rest was thrown away with its writes."""
    site = lab.site(kind, settings={"audit_one_in": 0})
    with Connection(site.a.port) as conn:
        conn.call("SET", "large", "x" * 4000)
        cached(conn, "GET", "large")
    said = told(site.a.port, before + encode("GET", "large") * 2000 + encode("INCR", "n") * 50, pause)
    assert site.server.call("GET", "n") == b"50"
    assert said.endswith(b":50\r\n") and said.count(b"$4000\r\n") == 2000
    assert not site.a.panics()


def test_what_passes_unlooked_at_is_done_though_its_connection_is_slow(lab):
    """The session waits for its connection to the server: nothing has passed yet, so nothing is quiet."""
    site = lab.site("redis", relayed=True)
    with Connection(site.a.port) as conn:
        conn.call("PING")
        site.relay.stall("dedicated")
    threading.Timer(1.3, site.relay.resume, ["dedicated"]).start()
    data = b"".join(encode(*request) for request in PIPELINES["CLIENT REPLY SKIP"])
    assert (told(site.a.port, data), site.server.call("GET", "k")) == (b"$1\r\nx\r\n", b"x")
