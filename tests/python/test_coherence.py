"""Two proxies over one server, writers through each and past both: what is promised is seen by every reader."""

import pytest

from cells import HashCell, StringCell, TwinCell, cells_of
from history import Judge, Rules, summary
from processes import BARE, LEVELS, LONG
from wire import Connection
from workload import DIRECT, Scenario, run

SECONDS = 60 if LONG else 3
MAX_STALENESS = 0.2
# On a machine that is busy with much else, a connection may take seconds.
SETTINGS = {"max_staleness": "200ms", "heartbeat": "50ms", "connect_timeout": "20s"}
#: Of all reads, of which a third goes past the proxies and most follow a write.
LEAST_HIT_SHARE = 0.05
ENOUGH_READS = 4000


def ports_of(site, level):
    return {"a": site.a.ports[level], "b": site.b.ports[level], DIRECT: site.server.port}


def scenario_for(site, level, seed, writers=("w0", "w1"), **options):
    cells = {writer: cells_of(writer) for writer in writers}
    return Scenario(ports_of(site, level), cells, options.pop("seconds", SECONDS), seed, **options)


def violations_in(record, level, max_staleness=MAX_STALENESS):
    return Judge(record.writes, record.reads, Rules(level, max_staleness)).violations()


def assert_coherent(record, level, max_staleness=MAX_STALENESS):
    violations = violations_in(record, level, max_staleness)
    if violations:
        pytest.fail(summary(violations), pytrace=False)
    if record.hangs:
        pytest.fail("\n".join(hang[:300] for hang in record.hangs), pytrace=False)
    assert record.writes and record.reads


def hits(site):
    return 0 if BARE else site.a.stats()["hits"] + site.b.stats()["hits"]


def run_enough(site, level, seed, seconds):
    """Runs, more than once on a busy machine, until enough was read to say what share of it came from the cache, which is
    returned; all of it must be coherent. A proxy that never answers from its cache would pass every other assertion."""
    before, reads = hits(site), 0
    for round_ in range(6):
        writers = (f"{round_}w0", f"{round_}w1")
        record = run(scenario_for(site, level, seed + round_, writers=writers, seconds=seconds))
        assert_coherent(record, level)
        assert not record.errors, record.errors
        reads += len(record.reads)
        if reads > ENOUGH_READS:
            break
    return (hits(site) - before) / reads


@pytest.fixture(params=["redis", "valkey"])
def quick_site(request, lab):
    """A site whose bound is short, so that a cache which leans on it is found out."""
    return lab.site(request.param, settings=SETTINGS)


@pytest.mark.parametrize("level", LEVELS)
def test_every_way_of_writing(quick_site, level, seed):
    share = run_enough(quick_site, level, seed, SECONDS)
    assert BARE or share > LEAST_HIT_SHARE


@pytest.mark.parametrize("level", LEVELS)
def test_flushall(quick_site, level, seed):
    record = run(scenario_for(quick_site, level, seed, writers=("w0",), flush=True, seconds=SECONDS / 2))
    assert_coherent(record, level)
    assert not record.errors, record.errors


def hot_scenario(site, level, seed, seconds):
    """Few keys, written and read as often as can be: what a race needs."""
    cells = {"w0": [StringCell("hot"), HashCell("hot:hash")], "w1": [TwinCell("hot:twin")]}
    return Scenario(ports_of(site, level), cells, seconds, seed, readers=3, write_pause=0.002)


@pytest.mark.parametrize("slow", ["link", "lane"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_slow_path_widens_every_race(lab, level, slow, seed):
    """A slow link lets invalidations come late, a slow lane lets them overtake the replies of fills."""
    site = lab.site("redis", relayed=True, settings=SETTINGS)
    site.relay.delay(slow, 0.005)
    record = run(hot_scenario(site, level, seed, SECONDS))
    assert_coherent(record, level)
    assert not record.errors, record.errors


def test_no_proxy_caches_anything_that_another_database_or_protocol_would_misread(quick_site):
    """Same key, other database, other protocol: each has its own answer."""
    with quick_site.server.connect() as past:
        past.pipeline([("HSET", "k", "f", 0), ("SELECT", 1), ("HSET", "k", "f", 1)])
    for proxy in (quick_site.a, quick_site.b):
        for _ in range(2):
            assert hgetall(proxy.port, 2, 0) == [b"f", b"0"]
            assert hgetall(proxy.port, 3, 0) == {b"f": b"0"}
            assert hgetall(proxy.port, 2, 1) == [b"f", b"1"]
            assert hgetall(proxy.port, 3, 1) == {b"f": b"1"}


def hgetall(port, protocol, db):
    with Connection(port, protocol=protocol, db=db) as conn:
        return conn.call("HGETALL", "k")


@pytest.mark.parametrize("protocol", [2, 3])
def test_swapdb_through_a_proxy_is_seen_through_it(redis_site, protocol):
    with Connection(redis_site.a.port, protocol=protocol) as conn, Connection(redis_site.a.port) as other:
        conn.call("SET", "k", "zero")
        assert other.call("GET", "k") == b"zero"
        conn.call("SWAPDB", 0, 1)
        assert conn.call("GET", "k") is None
        assert other.call("GET", "k") is None
