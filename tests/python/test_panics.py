"""A panic, provoked in each place: no client waits for ever, nothing stale is served, half a proxy does not live on.

Needs a binary built with the cargo feature `sabotage`, named by NEARSIDE_SABOTAGE_BIN.
"""

import os

import pytest

from processes import Proxy, wait_until
from wire import Connection, ReplyError
import contextlib

SABOTAGE_BIN = os.environ.get("NEARSIDE_SABOTAGE_BIN")
EXIT_CODE = 70

pytestmark = [pytest.mark.needs_proxy, pytest.mark.skipif(not SABOTAGE_BIN, reason="NEARSIDE_SABOTAGE_BIN is not set")]


class Fragile:
    """A proxy that panics where it is told to. (The lab fails a test for a panic: it does not know this one.)"""

    def __init__(self, lab, kind="redis", **settings):
        self.server = lab.server(kind)
        self.wanted = lab.folder / "panic"
        env = {"NEARSIDE_PANIC": str(self.wanted)}
        settings = {"threads": 2, "clients_together": 1, "audit_one_in": 0, **settings}
        self.proxy = Proxy(lab.folder, self.server.port, "fragile", settings, env=env, binary=SABOTAGE_BIN)
        self.port = self.proxy.port
        wait_until(lambda: self.proxy.stats()["link"] == "up", "the link")

    def panic_at(self, spot):
        new = self.wanted.with_suffix(".new")
        new.write_text(spot)
        new.rename(self.wanted)

    def has_panicked(self, times=1):
        wait_until(lambda: self.proxy.stats()["panics"] == times, "the panic is counted")
        # The log is written by a thread of its own.
        wait_until(lambda: len(self.proxy.panics()) == times, "the panic is in the log")
        # The panic is counted before it is caught, and what it may have left half done is flushed then.
        wait_until(lambda: self.proxy.stats()["flushes_panic"] == times, "the cache is flushed")

    def serves(self, conn, key):
        """A value written past the proxy is what a hit tells."""
        conn.call("SET", key, "a")
        assert conn.call("GET", key) == conn.call("GET", key) == b"a"
        self.server.call("SET", key, "b")
        wait_until(lambda: conn.call("GET", key) == b"b", "the change is seen", timeout=3)
        assert conn.call("EVAL", "return redis.call('set', KEYS[1], 'c')", 1, key) == b"OK"
        assert conn.call("GET", key) == b"c"
        assert conn.pipeline([("MULTI",), ("GET", key), ("EXEC",)])[-1] == [b"c"]


@pytest.fixture(params=["redis", "valkey"])
def fragile(request, lab):
    made = Fragile(lab, request.param)
    yield made
    made.proxy.kill()


def test_a_lane_fails_what_is_awaited_and_comes_back(fragile):
    with Connection(fragile.port) as conn:
        conn.call("SET", "k", "old")
        assert conn.call("GET", "k") == b"old"
        panics = failed = 0
        while failed < 3:
            fragile.panic_at("nearside-lane")
            panics += 1
            replies = conn.pipeline([("SET", "k", panics), ("INCR", "n"), ("SET", "k", f"{panics}!")])
            assert all(r == b"OK" or isinstance(r, int) or "outcome" in str(r) or "before this command was sent" in str(r) for r in replies)
            # The lane of the other thread, or this one's own PING, may be what panics: no client awaits anything then.
            failed += any(isinstance(r, ReplyError) for r in replies)
            assert panics < 20
            # whatever became of the writes, the cache tells what the server has
            assert conn.call("GET", "k") == fragile.server.call("GET", "k")
            assert conn.call("GET", "k") == fragile.server.call("GET", "k")
        fragile.has_panicked(panics)
        fragile.serves(conn, "s")
        # as many lanes as were open before: the thread of the connection that asks may open its own
        assert fragile.proxy.stats()["lanes"] <= 2


def test_a_dedicated_connection_fails_what_is_awaited_and_is_given_back(fragile):
    with Connection(fragile.port) as conn, Connection(fragile.port) as script:
        conn.call("MULTI")
        fragile.panic_at("nearside-dedicated")
        conn.send("SET", "k", 1)
        assert "unknown" in str(conn.read())
        assert conn.read_to_end() == b"", "its transaction is lost, and so is the session"
        fragile.has_panicked()
        fragile.panic_at("nearside-dedicated")
        script.send("EVAL", "return redis.call('incr', KEYS[1])", 1, "n")
        assert "unknown" in str(script.read())
        fragile.has_panicked(2)
        fragile.serves(script, "s")


def test_a_reply_that_waits_for_its_barrier_is_told(fragile):
    with Connection(fragile.port) as conn:
        fragile.panic_at("held reply")
        conn.send("EVAL", "return redis.call('incr', KEYS[1])", 1, "n")
        assert "unknown" in str(conn.read())
        fragile.has_panicked()
        fragile.serves(conn, "s")


def test_a_session_whose_bytes_pass_unlooked_at_is_closed(fragile):
    with Connection(fragile.port) as raw, Connection(fragile.port) as conn:
        raw.call("CLIENT", "NO-EVICT", "ON")
        fragile.panic_at("raw")
        raw.send("GET", "k")
        assert raw.read_to_end() == b""
        fragile.has_panicked()
        fragile.serves(conn, "s")


def test_a_session_gives_its_places_back(lab):
    fragile = Fragile(lab, maxclients=3, max_dedicated=1)
    try:
        for n in range(1, 6):
            with Connection(fragile.port) as conn:
                conn.call("MULTI")
                fragile.panic_at("session")
                conn.send("SET", "k", n)
                assert conn.read_to_end() == b""
            fragile.has_panicked(n)
        wait_until(lambda: fragile.proxy.stats()["clients"] == 1, "nobody but who asks is connected")
        with Connection(fragile.port) as one, Connection(fragile.port) as two:
            assert two.call("PING") == b"PONG"
            fragile.serves(one, "s")
    finally:
        fragile.proxy.kill()


def test_audits_go_on(lab):
    """At most 16 are on their way: one that has panicked is not."""
    fragile = Fragile(lab, audit_one_in=1, audit_per_second=100000)
    try:
        with Connection(fragile.port) as conn:
            conn.call("SET", "k", 1)
            for _n in range(1, 19):
                fragile.panic_at("audit")
                wait_until(lambda: conn.call("GET", "k") and not fragile.wanted.exists(), "an audit begins")
            checked = fragile.proxy.stats()["audit_checked_total"]
            wait_until(lambda: conn.call("GET", "k") and fragile.proxy.stats()["audit_checked_total"] > checked, "audits go on")
    finally:
        fragile.proxy.kill()


@pytest.mark.parametrize("spot", ["worker", "link", "watch", "sweep", "acceptor"])
def test_a_thread_that_dies_takes_the_process_with_it(lab, spot):
    fragile = Fragile(lab)
    try:
        with Connection(fragile.port) as conn:
            conn.call("SET", "k", 1)
            fragile.panic_at(spot)
            if spot in ("worker", "acceptor"):
                with contextlib.suppress(OSError):
                    Connection(fragile.port).close()
            assert fragile.proxy.process.wait(10) == EXIT_CODE
            assert conn.read_to_end() == b""
        log = fragile.proxy.read_log()
        assert f"on purpose: {spot}" in log and f"the process ends at once, with exit code {EXIT_CODE}" in log
    finally:
        fragile.proxy.kill()
