"""The auditor: it has nothing to say of a healthy proxy under heavy writes, and it finds what is wrong."""

import os
import time

import pytest

from processes import LEVELS, LONG, cached, wait_until
from test_coherence import SETTINGS, assert_coherent, hot_scenario, scenario_for
from wire import Connection
from workload import run

SABOTAGE_BIN = os.environ.get("NEARSIDE_SABOTAGE_BIN")
SECONDS = 30 if LONG else 3
EVERYTHING = {"audit_one_in": 1, "audit_per_second": 100_000}
LEAST_CHECKED = 100

pytestmark = pytest.mark.needs_proxy


def audited(site):
    """Of both proxies together, once no audit is on its way any more."""
    time.sleep(0.3)
    stats = [proxy.stats() for proxy in (site.a, site.b)]
    return {name: sum(each[f"audit_{name}_total"] for each in stats) for name in ("checked", "stale", "undecided", "skipped")}


def complaints(site):
    return [line for proxy in (site.a, site.b) for line in proxy.read_log().splitlines() if "audit: a stale answer" in line]


@pytest.mark.parametrize("kind", ["redis", "valkey"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_healthy_proxy_under_heavy_writes_has_no_stale_answer(lab, level, kind, seed):
    site = lab.site(kind, settings={**SETTINGS, **EVERYTHING})
    record = run(scenario_for(site, level, seed, seconds=SECONDS), None)
    assert_coherent(record, level)
    found = audited(site)
    print(f"{kind} {level}: {found}")
    assert found["stale"] == 0, complaints(site)
    assert found["checked"] > LEAST_CHECKED, found


@pytest.mark.parametrize("slow", ["link", "lane"])
@pytest.mark.parametrize("level", LEVELS)
def test_slow_paths_raise_no_false_alarm(lab, level, slow, seed):
    site = lab.site("redis", relayed=True, settings={**SETTINGS, **EVERYTHING})
    site.relay.delay(slow, 0.005)
    for _ in range(3):  # a busy machine may not come to a hit at once
        run(hot_scenario(site, level, seed, SECONDS))
        found = audited(site)
        print(f"{level}, slow {slow}: {found}")
        assert found["stale"] == 0, complaints(site)
        if found["checked"]:
            return
    pytest.fail(f"nothing was checked: {found}")


def test_lost_links_and_lanes_raise_no_false_alarm(lab, seed):
    site = lab.site("redis", settings={**SETTINGS, **EVERYTHING})

    def during(deadline):
        while time.monotonic() < deadline - 0.2:
            time.sleep(0.1)
            for name in ("nearside-link", "nearside-lane"):
                site.server.kill_clients_named(name)

    run(scenario_for(site, "bounded", seed, seconds=SECONDS), during)
    found = audited(site)
    print(found)
    assert found["stale"] == 0, complaints(site)


BROKEN = [("tokens", "lane", "bounded"), ("drop", "link", "bounded"), ("barrier", "link", "linearizable")]


@pytest.mark.skipif(not SABOTAGE_BIN, reason="NEARSIDE_SABOTAGE_BIN is not set")
@pytest.mark.parametrize(("rule", "slow", "level"), BROKEN)
def test_a_broken_rule_is_counted_and_logged(lab, rule, slow, level, seed):
    site = lab.site("redis", relayed=True, settings={**SETTINGS, **EVERYTHING}, binary=SABOTAGE_BIN, env={"NEARSIDE_BREAK": rule})
    site.relay.delay(slow, 0.005)
    run(hot_scenario(site, level, seed, SECONDS))
    found = audited(site)
    lines = complaints(site)
    print(f"without {rule}: {found}\n{lines[0] if lines else ''}")
    assert found["stale"] > 0
    assert len(lines) == found["stale"]
    assert all("hot" in line and "the key's last events: " in line and "filled" in line for line in lines), lines


def changed_behind(rule, conn, past, value):
    """A change of `hot` that a proxy without this rule forgets; the next MGET is a hit all the same."""
    if rule == "drop":
        conn.call("SET", "hot", value)
    else:
        past.call("SET", "hot", value)


def is_hit(site, conn, keys):
    before = site.a.stats()["hits"]
    conn.call("MGET", *keys)
    return site.a.stats()["hits"] > before


@pytest.mark.skipif(not SABOTAGE_BIN, reason="NEARSIDE_SABOTAGE_BIN is not set")
@pytest.mark.parametrize(("rule", "level"), [("drop", "bounded"), ("barrier", "linearizable"), (None, "linearizable")])
def test_a_stale_key_of_an_mget_is_counted_and_logged(lab, rule, level):
    """All reads are MGETs, of which one key in three changes; the report comes late. With every rule kept there is nothing to find."""
    env = {"NEARSIDE_BREAK": rule} if rule else {}
    site = lab.site("redis", relayed=True, settings={**SETTINGS, **EVERYTHING}, binary=SABOTAGE_BIN, env=env)
    keys = ("cold", "hot", "still")
    site.server.call("MSET", "cold", "c", "hot", 0, "still", "s")
    with Connection(site.a.ports[level]) as conn, site.server.connect() as past:
        for value in range(1, 6):
            wait_until(lambda: is_hit(site, conn, keys), "the snapshot is cached, and proven")
            # before anything changes: else the auditor may find that it cannot tell
            wait_until(lambda: site.a.stats()["audit_checked_total"] >= value, "the hit is audited")
            site.relay.delay("link", 0.2)
            changed_behind(rule, conn, past, value)
            told = conn.call("MGET", *keys)
            assert rule is None or told == [b"c", b"%d" % (value - 1), b"s"], "the rule is not missed"
            site.relay.delay("link", 0)
            time.sleep(0.3)
    found = audited(site)
    lines = complaints(site)
    assert found["checked"] >= 5 and len(lines) == found["stale"], found
    assert (found["stale"] > 0) == (rule is not None), lines
    assert all("MGET hot at" in line and "the key's last events: " in line for line in lines), lines


def test_what_no_server_reports_is_found(lab):
    """SWAPDB past the proxy: no invalidation, and until the watch sees it, old answers."""
    site = lab.site("redis", settings=EVERYTHING)
    with Connection(site.a.port) as conn, site.server.connect() as past:
        past.pipeline([("SET", "k", "zero"), ("SELECT", 1), ("SET", "k", "one"), ("SELECT", 0)])

        def caught():
            cached(conn, "GET", "k")
            past.call("SWAPDB", 0, 1)
            conn.call("GET", "k")
            return audited(site)["stale"]

        wait_until(caught, "a stale answer is counted", timeout=20)
        explained = [line.decode() for line in conn.call("NEARSIDE", "EXPLAIN", "k")]
    assert "no change was reported" in complaints(site)[0]
    assert any(line.startswith("filled") for line in explained), explained
    wait_until(lambda: b"everything flushed (swapdb)" in b" ".join(explain(site, "k")), "the flush is among the events")


def explain(site, *words):
    with Connection(site.a.port) as conn:
        return conn.call("NEARSIDE", "EXPLAIN", *words)


def test_explain_tells_the_keys_last_events(lab):
    site = lab.site("redis")
    with Connection(site.a.port) as conn:
        site.server.call("SET", "k", "v")
        cached(conn, "GET", "k")
        site.server.call("SET", "k", "w")
        wait_until(lambda: b"reported as changed" in b" ".join(explain(site, "GET", "k")), "the report")
        cached(conn, "GET", "k")
        conn.call("SET", "k", "x")
        conn.call("NEARSIDE", "FLUSH")
        word, kept, *events = (line.decode() for line in explain(site, "k"))
    assert (word, kept) == ("key", "k: 0 replies about it are kept")
    kinds = [" ".join(event.split()[:-3]) for event in events]
    # The server reports the proxy's own write as well, at its own time.
    ours = [kind for kind in kinds if kind != "reported as changed"]
    assert ours[:2] == ["everything flushed (admin)", "written through this proxy"], kinds
    assert kinds[-1] == "filled" and "reported as changed" in kinds and kinds.count("filled") >= 2, kinds


def test_the_auditor_can_be_turned_off_and_has_a_limit(lab):
    off = lab.site("redis", settings={"audit_one_in": 0})
    slow = lab.site("redis", settings={"audit_one_in": 1, "audit_per_second": 2})
    for site in (off, slow):
        with Connection(site.a.port) as conn:
            conn.call("SET", "k", "v")
            cached(conn, "GET", "k")
            begun = time.monotonic()
            for _ in range(200):
                conn.pipeline([("GET", "k")] * 10)
            site.took = time.monotonic() - begun
    assert audited(off) == {"checked": 0, "stale": 0, "undecided": 0, "skipped": 0}
    found = audited(slow)
    assert 0 < found["checked"] <= 2 * slow.took + 3, (found, slow.took)
    assert found["skipped"] >= 1900, found
    assert float(slow.a.stats()["audit_nines"]) >= 0


def test_a_read_that_the_auditor_repeats_leaves_the_upstream_alone_otherwise(lab):
    """The second read registers nothing and takes part in no flight: it is counted by the server and by nobody else."""
    site = lab.site("redis", settings=EVERYTHING)
    with Connection(site.a.port) as conn:
        conn.call("SET", "k", "v")
        cached(conn, "GET", "k")
        before = site.a.stats()
        conn.pipeline([("GET", "k")] * 50)
        time.sleep(0.3)
        after = site.a.stats()
    assert after["fills"] == before["fills"] and after["misses"] == before["misses"]
    assert after["hits"] >= before["hits"] + 50
