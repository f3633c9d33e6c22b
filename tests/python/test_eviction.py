"""A server that evicts what is used least hears of what the cache answers."""

import time

import pytest

from processes import parse_info, wait_until
from wire import Connection

pytestmark = pytest.mark.needs_proxy
HOT = 50
SECONDS = 6.0
ROOM = 3_000_000


def evicting(lab, kind, policy, room, **proxy):
    """A server that evicts once it has taken `room` bytes more than it has now, and a proxy over it."""
    server = lab.server(kind, options=("--maxmemory-policy", policy, "--maxmemory-samples", "10"))
    proxy = lab.proxy(server.port, **proxy)
    server.call("CONFIG", "SET", "maxmemory", int(server.info("memory")["used_memory"]) + room)
    return server, proxy


@pytest.mark.parametrize(
    ("kind", "policy"), [("redis", "allkeys-lru"), ("redis", "allkeys-lfu"), ("valkey", "allkeys-lru"), ("redis", "volatile-lru")]
)
def test_hot_keys_survive_as_bare(lab, kind, policy):
    """As many keys are read through the proxy as past it, as often, while a megabyte a second comes that nobody reads."""
    server, proxy = evicting(lab, kind, policy, ROOM, settings={"audit_one_in": 0})
    life = ("EX", 600) if policy.startswith("volatile") else ()
    through, past = ([f"{who}:{i}" for i in range(HOT)] for who in ("through", "past"))
    lost = {"through": set(), "past": set()}
    with Connection(proxy.port) as conn, server.connect() as bare:
        wait_until(lambda: proxy.stats()["link"] == "up", "the link is up")
        conn.pipeline([("SET", key, "session", *life) for key in through])
        bare.pipeline([("SET", key, "session", *life) for key in past])
        end, n = time.monotonic() + SECONDS, 0
        while time.monotonic() < end:
            bare.pipeline([("SET", f"cold:{n + i}", "x" * 1000, "EX", 60) for i in range(100)])
            n += 100
            for who, way, keys in (("through", conn, through), ("past", bare, past)):
                lost[who] |= {key for key, value in zip(keys, way.pipeline([("GET", key) for key in keys]), strict=True) if value is None}
            time.sleep(0.1)
        assert int(server.info("stats")["evicted_keys"]) > 500, "nothing was evicted: this shows nothing"
        stats, touches = proxy.stats(), server.calls("touch")
    assert len(lost["through"]) <= len(lost["past"]) + HOT // 25, {who: len(keys) for who, keys in lost.items()}
    # What is paid for it.
    assert stats["hits"] > HOT * 20 and 0 < touches <= stats["hits"] / 100, (touches, stats["hits"])
    assert stats["touch_commands"] == touches and stats["audit_stale_total"] == 0


def test_only_what_was_read_is_touched_and_where_it_was_read(lab):
    server, proxy = evicting(lab, "redis", "allkeys-lru", 50_000_000)
    with Connection(proxy.port) as conn, Connection(proxy.port, db=3) as third, server.connect() as past:
        wait_until(lambda: proxy.stats()["link"] == "up", "the link is up")
        for way in (conn, third):
            way.pipeline([("SET", key, "v") for key in ("read", "unread", "once")])
            way.pipeline([("GET", "read"), ("GET", "once"), ("GET", "missing")])
        begun = time.monotonic()
        while time.monotonic() < begun + 4.5:
            for way in (conn, third):
                way.pipeline([("GET", "read"), ("GET", "missing")] * 50)
            time.sleep(0.05)
        for db in (0, 3):
            past.call("SELECT", db)
            idle = {key: past.call("OBJECT", "IDLETIME", key) for key in ("read", "unread", "once")}
            assert idle["read"] <= 2 and idle["unread"] >= 4 and idle["once"] >= 4, (db, idle)
            assert past.call("EXISTS", "missing") == 0
        past.call("SELECT", 1)
        assert past.call("DBSIZE") == 0
        # The server's report of a change still comes: TOUCH has used up no registration.
        past.call("SELECT", 0)
        past.call("SET", "read", "new")
        wait_until(lambda: conn.call("GET", "read") == b"new", "the change is seen", timeout=3)
        assert proxy.stats()["audit_stale_total"] == 0


@pytest.mark.parametrize("policy", ["allkeys-random", "volatile-ttl", "noeviction"])
def test_an_eviction_that_looks_at_nothing_is_told_nothing(lab, policy):
    server, proxy = evicting(lab, "redis", policy, 50_000_000)
    with Connection(proxy.port) as conn:
        conn.call("SET", "k", "v")
        end = time.monotonic() + 1.6
        while time.monotonic() < end:
            conn.pipeline([("GET", "k")] * 100)
    assert server.calls("touch") == 0 and proxy.stats()["touched_keys"] == 0


def test_a_user_who_may_not_touch_is_told_once(lab):
    server = lab.server("redis", options=("--maxmemory-policy", "allkeys-lru", "--maxmemory", "50mb"))
    server.call("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-touch")
    proxy = lab.proxy(f"redis://app:secret@127.0.0.1:{server.port}/0")
    with Connection(proxy.port) as conn:
        wait_until(lambda: proxy.stats()["link"] == "up", "the link is up")
        conn.call("SET", "k", "v")
        hit = lambda: conn.pipeline([("GET", "k")] * 200)
        wait_until(lambda: hit() and "grant +touch" in proxy.read_log(), "the refusal is logged", timeout=5)
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            hit()
        assert proxy.read_log().count("grant +touch") == 1
        refused = parse_info(server.call("INFO", "commandstats"))["cmdstat_touch"]
        assert "rejected_calls=1" in refused, refused
        # Once granted, they are named.
        server.call("ACL", "SETUSER", "app", "+touch")
        wait_until(lambda: hit() and server.calls("touch"), "TOUCH is sent", timeout=5)


def test_no_more_keys_are_named_than_the_setting_says(lab):
    _server, proxy = evicting(lab, "redis", "allkeys-lru", 50_000_000, settings={"touch_per_second": 40})
    keys = [f"k{i}" for i in range(400)]
    with Connection(proxy.port) as conn:
        wait_until(lambda: proxy.stats()["link"] == "up", "the link is up")
        conn.pipeline([("SET", key, "v") for key in keys])
        begun, before = time.monotonic(), proxy.stats()["touched_keys"]
        while time.monotonic() < begun + 4:
            conn.pipeline([("GET", key) for key in keys])
            time.sleep(0.02)
        named = proxy.stats()["touched_keys"] - before
        # What comes together in one look may be more; it is made up for by waiting.
        assert 0 < named <= 40 * (time.monotonic() - begun) + len(keys) / 2, named
