"""Each reason why the cache takes no part in a read: counted once for the read that it holds for, and told by EXPLAIN."""

import pytest

from processes import KINDS, Connection, wait_until

pytestmark = pytest.mark.needs_proxy

#: One thread has one lane: once it is armed, no other connection of a test meets one that is not yet.
ONE = {"threads": 1}


def bypasses(proxy):
    return {name[7:]: count for name, count in proxy.stats().items() if name.startswith("bypass_")}


def counted(proxy, requests, conn=None, together=False):
    """The reasons that are counted while these requests are sent, and how often."""
    own = conn or Connection(proxy.port)
    before = bypasses(proxy)
    for batch in [requests] if together else [[request] for request in requests]:
        own.pipeline(batch)
    after = bypasses(proxy)
    if conn is None:
        own.close()
    return {name: after[name] - before[name] for name in after if after[name] != before[name]}


def explained(proxy, *command):
    with Connection(proxy.port) as conn:
        return b" ".join(conn.call("NEARSIDE", "EXPLAIN", *command)[:2]).decode()


@pytest.fixture(scope="module", params=KINDS)
def caching(request, tmp_path_factory):
    from conftest import Lab

    lab = Lab(tmp_path_factory.mktemp("bypass"))
    site = lab.site(request.param, settings=ONE)
    with Connection(site.a.port) as conn:
        wait_until(lambda: conn.call("GET", "warm") is None and explained(site.a, "GET", "warm").startswith("hit"), "it caches")
    yield site
    lab.close()


def test_a_plain_miss_bypasses_nothing(caching):
    assert counted(caching.a, [("GET", "never read before"), ("MGET", "nor this", "nor that")]) == {}


def test_what_is_sent_before_comes_first(caching):
    with Connection(caching.a.port) as conn:
        conn.call("GET", "order")
        assert counted(caching.a, [("SET", "order", 1), ("GET", "order")], conn, together=True) == {"order": 1}


def test_a_long_request(caching):
    key = "k" * 70_000
    assert counted(caching.a, [("GET", key)]) == {"request_too_long": 1}
    assert "not be kept: the request is too long" in explained(caching.a, "GET", key)


def test_many_keys(caching):
    most = [f"many {n}" for n in range(256)]
    assert counted(caching.a, [("MGET", *most)]) == {}
    assert counted(caching.a, [("MGET", *most, "one more")]) == {"too_many_keys": 1}
    wait_until(lambda: explained(caching.a, "MGET", *most).startswith("hit"), "they are cached")
    assert "not be kept: an MGET of too many keys" in explained(caching.a, "MGET", "one more", *most)


def test_a_key_twice_in_one_mget(caching):
    """Its value is asked for once and kept."""
    assert counted(caching.a, [("MGET", "twice", "twice")]) == {}


def test_a_reply_that_exceeds_max_entry(caching):
    with Connection(caching.a.port) as conn:
        conn.call("SET", "large", "x" * 2_000_000)
        assert counted(caching.a, [("GET", "large")]) == {"reply_too_large": 1}
        assert counted(caching.a, [("MGET", "large", "small")]) == {"reply_too_large": 1}


def test_a_connection_of_its_own(caching):
    reads = [("MULTI",), ("GET", "k"), ("SET", "k", 1), ("MGET", "k", "l"), ("EXEC",), ("GET", "own")]
    assert counted(caching.a, reads) == {"own_connection": 2}


def test_the_session_itself_is_explained(caching):
    for words, why in [(("WATCH", "k"), "a connection of its own"), (("CLIENT", "PAUSE", 60_000, "WRITE"), "CLIENT PAUSE is in force")]:
        with Connection(caching.a.port) as conn:
            conn.call("GET", "k")
            conn.call(*words)
            try:
                said = conn.call("NEARSIDE", "EXPLAIN", "GET", "k")
                assert (said[0], why in said[1].decode()) == (b"miss", True), said
            finally:
                conn.pipeline([("UNWATCH",), ("CLIENT", "UNPAUSE")])


def test_client_pause(caching):
    with Connection(caching.a.port) as conn:
        conn.call("CLIENT", "PAUSE", 60_000, "WRITE")
        try:
            assert counted(caching.a, [("GET", "k"), ("MGET", "k", "l")], conn) == {"paused": 2}
        finally:
            conn.call("CLIENT", "UNPAUSE")


def test_rights_that_a_fill_needs(caching):
    with Connection(caching.server.port) as admin:
        admin.call("ACL", "SETUSER", "bob", "on", ">pw", "~*", "+get", "+mget", "+ping")
    with Connection(caching.a.port) as conn:
        conn.call("AUTH", "bob", "pw")
        conn.call("GET", "k")
        assert counted(caching.a, [("GET", "k")], conn) == {"lane_rights": 1}


def test_rights_to_get_and_mget_that_differ(caching):
    with Connection(caching.server.port) as admin:
        admin.call("ACL", "SETUSER", "eve", "on", ">pw", "~a:*", "+@all", "(~b:* +get)")
    with Connection(caching.a.port) as conn:
        conn.call("AUTH", "eve", "pw")
        conn.call("GET", "a:1")
        assert counted(caching.a, [("MGET", "a:1", "a:2")], conn) == {"rights": 1}


def test_mortal_fields(caching):
    with Connection(caching.a.port) as conn:
        if not conn.call("COMMAND", "INFO", "HPEXPIRE")[0]:
            pytest.skip("this server's hash fields live as long as their key")
        conn.pipeline([("HSET", "h", "f", 1, "g", 2), ("HPEXPIRE", "h", 1_000_000, "FIELDS", 1, "f"), ("HGETALL", "h")])
        assert counted(caching.a, [("HGETALL", "h")], conn) == {"mortal_fields": 1}
    assert "not be kept: fields of this hash have a time to live" in explained(caching.a, "HGETALL", "h")


@pytest.mark.parametrize("kind", KINDS)
def test_other_prefixes(lab, kind):
    site = lab.site(kind, settings={**ONE, "invalidation": "broadcast", "broadcast_prefixes": ["a:"]})
    wait_until(lambda: counted(site.a, [("GET", "a:1")]) == {}, "it caches")
    assert counted(site.a, [("GET", "b:1"), ("MGET", "a:2", "b:2")]) == {"prefix": 2}
    assert "outside of broadcast_prefixes" in explained(site.a, "GET", "b:1")


@pytest.mark.parametrize("kind", KINDS)
def test_no_invalidation(lab, kind):
    site = lab.site(kind, settings={**ONE, "invalidation": "off"})
    assert counted(site.a, [("GET", "k"), ("MGET", "k", "l")]) == {"lane_not_armed": 2}
    assert "invalidation = \"off\"" in explained(site.a, "GET", "k")


def test_a_level_that_cannot_be_kept(lab):
    site = lab.site("redis", server_options=("--notify-keyspace-events", "KA"),
                    settings={**ONE, "invalidation": "keyspace", "max_ttl": "10s"})  # fmt: skip
    wait_until(lambda: counted(site.a, [("GET", "k")]) == {}, "it caches")
    with Connection(site.a.ports["causal"]) as conn:
        assert counted(site.a, [("GET", "k")], conn) == {"level": 1}
