"""The ways of learning what others change: each keeps its levels over each server, and says what it cannot keep."""

import multiprocessing
import time

import pytest

from processes import KINDS, LEVELS, LONG, ROOT, cached, wait_until
from test_coherence import LEAST_HIT_SHARE, SETTINGS, assert_coherent, hot_scenario, run_enough, scenario_for
from wire import Connection, ReplyError
from workload import run

SECONDS = 20 if LONG else 2
ROUNDS = 20_000 if LONG else 1_000
NOTIFYING = ("--notify-keyspace-events", "KA")
MODES = {
    "broadcast": {"invalidation": "broadcast"},
    "keyspace": {"invalidation": "keyspace", "max_ttl": "10s"},
}
QUICK = {**SETTINGS, "audit_one_in": 1, "audit_per_second": 10_000}

pytestmark = pytest.mark.needs_proxy


def caches(proxy, key="probe"):
    """Whether a key that is read again and again is answered from the cache."""
    with Connection(proxy.port) as conn:
        before = proxy.stats()["hits"]
        for _ in range(20):
            conn.call("GET", key)
        return proxy.stats()["hits"] > before


def assert_caches(proxy, key="probe", timeout=10):
    wait_until(lambda: caches(proxy, key), f"{key} is cached", timeout=timeout)


def invalidation(proxy):
    return proxy.stats()["invalidation"]


def mode_site(lab, kind, mode, **options):
    settings = {**QUICK, **MODES[mode], **options.pop("settings", {})}
    server = (*(NOTIFYING if mode == "keyspace" else ()), *options.pop("server_options", ()))
    return lab.site(kind, server_options=server, settings=settings, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("level", LEVELS)
def test_every_way_of_writing(lab, kind, mode, level, seed):
    site = mode_site(lab, kind, mode)
    share = run_enough(site, level, seed, SECONDS)
    stats = site.a.stats()
    assert stats["invalidation"] == mode
    assert stats["audit_stale_total"] == 0
    kept = mode == "broadcast" or level == "bounded"
    assert share > LEAST_HIT_SHARE if kept else share == 0, share


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slow", ["link", "lane"])
@pytest.mark.parametrize("level", LEVELS)
def test_broadcast_over_slow_paths(lab, kind, level, slow, seed):
    site = mode_site(lab, kind, "broadcast", relayed=True)
    site.relay.delay(slow, 0.005)
    assert_coherent(run(hot_scenario(site, level, seed, SECONDS)), level)


@pytest.mark.parametrize("mode", MODES)
def test_links_and_lanes_are_cut(lab, mode, seed):
    site = mode_site(lab, "redis", mode, settings={"reconnect_max": "100ms"})

    def during(deadline):
        while time.monotonic() < deadline - 0.3:
            time.sleep(0.15)
            for name in ("nearside-link", "nearside-lane"):
                site.server.kill_clients_named(name)

    record = run(scenario_for(site, "bounded", seed, seconds=SECONDS), during)
    assert_coherent(record, "bounded")
    assert_caches(site.a)


def noise(port, until):
    """A client that keeps the server's threads busy."""
    with Connection(port) as conn:
        while time.monotonic() < until:
            conn.pipeline([("SET", f"noise:{i % 7}", "x" * 100) for i in range(50)])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("mode", ["tracked", "broadcast"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_barrier(lab, kind, mode, threads):
    """Past the proxy a write is acknowledged, then a linearizable read begins: it must see the write, each time."""
    server = lab.server(kind, options=("--io-threads", threads))
    proxy = lab.proxy(server.port, settings={"invalidation": mode})
    fork = multiprocessing.get_context("fork")
    until = time.monotonic() + ROUNDS / 100
    noisy = [fork.Process(target=noise, args=(server.port, until), daemon=True) for _ in range(3)]
    for process in noisy:
        process.start()
    stale, rounds = 0, 0
    with server.connect() as writer, Connection(proxy.ports["linearizable"]) as reader:
        begun = proxy.stats()["hits"]
        while rounds < ROUNDS and time.monotonic() < until:
            rounds += 1
            reader.call("GET", "k")
            writer.call("SET", "k", rounds)
            stale += reader.call("GET", "k") != b"%d" % rounds
            stale += reader.call("GET", "k") != b"%d" % rounds
        served = proxy.stats()["hits"] - begun
    for process in noisy:
        process.terminate()
    print(f"{kind} {mode} io-threads {threads}: {stale} stale in {rounds} rounds, {served} hits")
    assert stale == 0
    assert served > rounds / 2, "it must be the cache that answers"


@pytest.mark.parametrize("kind", KINDS)
def test_auto_is_tracked_where_it_can_be(lab, kind):
    site = lab.site(kind)
    assert_caches(site.a)
    assert invalidation(site.a) == "tracked"
    assert site.a.stats()["strongest_level"] == "linearizable"


def flags_of(server, name):
    lines = [line for line in server.call("CLIENT", "LIST").decode().splitlines() if f" name={name}" in line]
    return [dict(part.split("=", 1) for part in line.split())["flags"] for line in lines]


def test_in_broadcast_lanes_are_plain(lab):
    site = mode_site(lab, "redis", "broadcast")
    for proxy in (site.a, site.b):
        assert_caches(proxy)
    assert all("t" in flags and "P" in flags for flags in flags_of(site.server, "nearside-link"))
    assert flags_of(site.server, "nearside-lane") and not any("t" in flags for flags in flags_of(site.server, "nearside-lane"))
    assert site.server.info("stats")["tracking_total_items"] == "0", "the server remembers nothing"


def test_a_server_without_redirect_gets_broadcast_by_pushes(lab, seed):
    server = lab.server("redis")
    relay = lab.relay(server.port)
    relay.refused = b"REDIRECT"
    proxy = lab.proxy(relay.port, settings=SETTINGS)
    assert_caches(proxy)
    assert invalidation(proxy) == "broadcast"
    with server.connect() as past, Connection(proxy.ports["linearizable"]) as reader:
        for round_ in range(300):
            past.call("SET", "k", round_)
            assert reader.call("GET", "k") == b"%d" % round_
            assert reader.call("GET", "k") == b"%d" % round_
        past.call("FLUSHALL")
        assert reader.call("GET", "k") is None
    proxies = lab.proxy(relay.port, "b", settings=SETTINGS)
    site = type("Site", (), {"a": proxy, "b": proxies, "server": server})
    assert_coherent(run(hot_scenario(site, "linearizable", seed, SECONDS)), "linearizable")


def test_only_keys_with_the_prefixes_are_cached(lab):
    site = mode_site(lab, "redis", "broadcast", settings={"broadcast_prefixes": ["a:", "b:"]})
    assert_caches(site.a, "a:1")
    assert_caches(site.a, "b:1")
    assert not any(caches(site.a, key) for key in ("c", "a", "ab:1"))
    with Connection(site.a.port) as conn:
        assert b"outside of broadcast_prefixes" in conn.call("NEARSIDE", "EXPLAIN", "GET", "c")[1]
        conn.pipeline([("MSET", "a:1", 1, "c", 2)])
        for value in (1, 2, 3):
            site.server.call("MSET", "a:1", value, "c", value)
            time.sleep(0.3)
            assert conn.pipeline([("MGET", "a:1", "c")] * 3) == [[b"%d" % value] * 2] * 3
        assert not caches(site.a, "c"), "MGET has cached what nobody reports"


def test_max_ttl_bounds_every_reply(lab):
    site = lab.site("redis", settings={"max_ttl": "300ms", "audit_one_in": 0})
    assert_caches(site.a)
    before = site.server.calls("get")
    with Connection(site.a.port) as conn:
        for _ in range(4):
            time.sleep(0.31)
            conn.pipeline([("GET", "probe")] * 5)
    assert site.server.calls("get") >= before + 4


def test_off_caches_nothing(lab):
    site = lab.site("redis", settings={"invalidation": "off"})
    with Connection(site.a.port) as conn:
        conn.call("SET", "k", "v")
        assert conn.pipeline([("GET", "k"), ("EVAL", "return redis.call('INCR', 'n')", 0)] * 20) == [
            reply for n in range(1, 21) for reply in (b"v", n)
        ]
        assert b"invalidation = \"off\"" in conn.call("NEARSIDE", "EXPLAIN", "GET", "k")[1]
    stats = site.a.stats()
    assert (stats["hits"], stats["fills"]) == (0, 0)
    assert stats["invalidation"] == 'none reason=invalidation = "off"'


def test_keyspace_without_notifications_is_refused_and_the_server_left_as_it_is(lab):
    site = lab.site("redis", settings={**QUICK, **MODES["keyspace"]})
    wait_until(lambda: invalidation(site.a).startswith("none reason=keyspace: "), "the reason")
    assert "CONFIG SET notify-keyspace-events KA" in invalidation(site.a)
    assert not caches(site.a)
    assert site.server.call("CONFIG", "GET", "notify-keyspace-events") == [b"notify-keyspace-events", b""]
    site.server.call("CONFIG", "SET", "notify-keyspace-events", "KA")
    assert_caches(site.a, timeout=15)
    site.server.call("CONFIG", "SET", "notify-keyspace-events", "")
    wait_until(lambda: not caches(site.a), "it no longer caches")
    assert "CONFIG SET notify-keyspace-events KA" in site.a.read_log()


@pytest.mark.parametrize("flush", ["FLUSHALL", "FLUSHDB"])
def test_keyspace_learns_of_a_flush_by_looking(lab, flush):
    """No notification tells of it: it is noticed by the count of the command, within half of max_staleness."""
    site = mode_site(lab, "redis", "keyspace")
    with Connection(site.a.port) as conn:
        site.server.call("SET", "probe", "old")
        assert_caches(site.a)
        site.server.call(flush)
        flushed = time.monotonic()
        while conn.call("GET", "probe") == b"old":
            assert time.monotonic() < flushed + 0.5
        time.sleep(0.2)
        assert conn.call("GET", "probe") is None


def assert_refused(proxy, level, why):
    """The level is refused to who asks for it, and not pretended to who has it by the door."""
    with Connection(proxy.port) as conn:
        reply = conn.pipeline([("NEARSIDE", "CONSISTENCY", level)])[0]
        assert isinstance(reply, ReplyError) and f"{level} cannot be kept here, at most bounded: " in str(reply), reply
        assert why in str(reply)
        assert conn.call("NEARSIDE", "CONSISTENCY") == b"bounded"
    with Connection(proxy.ports[level]) as conn:
        # Until a link that a change of role has closed is up again, that is the reason.
        wait_until(lambda: why.encode() in conn.call("NEARSIDE", "EXPLAIN", "GET", "probe")[1], "the reason")
        before = proxy.stats()
        conn.pipeline([("GET", "probe"), ("MGET", "probe", "other")] * 10)
    after = proxy.stats()
    assert after["hits"] == before["hits"]
    assert after["reads_of_refused_levels"] == before["reads_of_refused_levels"] + 20
    assert after["strongest_level"] == "bounded"
    assert f"{level} cannot be kept, bounded is the strongest level here: " in proxy.read_log()


@pytest.mark.parametrize("level", ["causal", "linearizable"])
def test_keyspace_refuses_what_it_cannot_keep(lab, level):
    site = mode_site(lab, "redis", "keyspace")
    assert_caches(site.a)
    assert_refused(site.a, level, "keyspace notifications do not tell")


@pytest.mark.parametrize("kind", KINDS)
def test_a_replica_gives_bounded_until_it_is_promoted(lab, kind):
    master = lab.server(kind)
    site = lab.site(kind, settings=SETTINGS, server_options=("--replicaof", "127.0.0.1", master.port))
    wait_until(lambda: site.server.info("replication")["master_link_status"] == "up", "the replica follows")
    # The sync gave it another replication id, for which the link is opened anew.
    wait_until(lambda: site.a.stats()["flushes_role"], "the proxy has noticed")
    assert_caches(site.a)
    assert_refused(site.a, "linearizable", "the upstream is a replica")
    site.server.call("REPLICAOF", "NO", "ONE")
    wait_until(lambda: site.a.stats()["strongest_level"] == "linearizable", "the promotion is noticed")
    wait_until(lambda: allows(site.a, "linearizable"), "the level is kept now")
    site.server.call("REPLICAOF", "127.0.0.1", master.port)
    wait_until(lambda: site.a.stats()["strongest_level"] == "bounded", "the demotion is noticed")
    assert_refused(site.a, "linearizable", "the upstream is a replica")


def allows(proxy, level):
    with Connection(proxy.port) as conn:
        return conn.pipeline([("NEARSIDE", "CONSISTENCY", level)]) == [b"OK"]


def documented_rights(mode):
    """The rights that docs/OPERATING.md says the proxy's own user needs: a line for all modes, and on it what one of them needs besides."""
    line = next(line for line in (ROOT / "docs/OPERATING.md").read_text().splitlines() if line.startswith("+client"))
    always, _, rest = line.partition("        ")
    more, _, which = rest.partition(" for invalidation = ")
    return always.split() + (more.split() if which.strip('"') == mode else [])


@pytest.mark.parametrize("mode", ["tracked", *MODES])
def test_the_rights_that_the_documents_name_are_enough(lab, mode):
    site_options = NOTIFYING if mode == "keyspace" else ()
    server = lab.server("redis", options=site_options)
    server.call("ACL", "SETUSER", "near", "on", ">pw", *documented_rights(mode))
    proxy = lab.proxy(f"redis://near:pw@127.0.0.1:{server.port}/0", settings={**QUICK, **MODES.get(mode, {})})
    with Connection(proxy.port) as conn:
        conn.call("AUTH", "default", "any")
        assert cached(conn, "GET", "k") is None
        assert "may not say" in proxy.read_log()
        server.call("ACL", "SETUSER", "near", "+acl|list", "+acl|dryrun", "+time")
        time.sleep(1)
        server.call("ACL", "LOG", "RESET")
        cached(conn, "GET", "k")
        time.sleep(1)
        assert server.call("ACL", "LOG") == []


def test_a_user_without_the_right_to_track_gets_no_cache_and_is_told_why(lab):
    server = lab.server("redis")
    server.call("ACL", "SETUSER", "near", "on", ">pw", "~*", "&*", "+@all", "-client|tracking")
    proxy = lab.proxy(f"redis://near:pw@127.0.0.1:{server.port}/0", settings=SETTINGS)
    wait_until(lambda: invalidation(proxy).startswith("none reason=tracked: CLIENT TRACKING ON REDIRECT"), "the reason")
    assert "; broadcast: " in invalidation(proxy) and "nothing is cached: " in proxy.read_log()
    assert not caches(proxy)
    server.call("ACL", "SETUSER", "near", "+client|tracking")
    assert_caches(proxy, timeout=15)
