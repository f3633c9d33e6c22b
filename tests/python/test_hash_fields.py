"""Fields with a time to live of their own: what they cost where there are some, and that no reply outlives one."""

import random
import re
import threading
import time

import pytest

from processes import KINDS, is_hit, wait_until
from wire import Connection, ReplyError

pytestmark = pytest.mark.needs_proxy
WITH_FIELD_TTLS = [kind for kind in KINDS if kind not in ("redis", "redis6.2")]
WHOLE = ("HGETALL", "HKEYS", "HVALS", "HLEN")
SLACK = 0.02


def commands(server):
    """Commands ever executed, but for those that proxies and tests say at their own pace."""
    found = server.info("commandstats").items()
    own = ("ping", "info", "acl|list", "time", "hello", "command", "client|list")
    return sum(int(re.match(r"calls=(\d+)", stats)[1]) for name, stats in found if name[8:] not in own)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("kind", WITH_FIELD_TTLS)
def test_a_mortal_field_elsewhere_ends_no_caching(lab, kind, protocol):
    site = lab.site(kind, settings={"audit_one_in": 0})
    site.server.call("HSET", "mortal", "f", "v", "g", "w")
    site.server.call("HEXPIRE", "mortal", 1000, "FIELDS", 1, "f")
    site.server.call("HSET", "h", "a", "1", "b", "2")
    with Connection(site.a.port, protocol=protocol) as conn, site.server.connect() as past:
        for name in WHOLE:
            wait_until(lambda: conn.pipeline([(name, "h")]) and is_hit(conn, name, "h"), f"{name} is cached")
        before = commands(site.server)
        replies = conn.pipeline([(name, "h") for name in WHOLE for _ in range(50)])
        assert commands(site.server) - before <= 4, "hits go upstream"
        lists = [replies[i * 50] for i in range(4)]
        assert lists[1:] == [[b"a", b"b"], [b"1", b"2"], 2]
        assert lists[0] in ([b"a", b"1", b"b", b"2"], {b"a": b"1", b"b": b"2"})
        # A time to live that is set past the proxy ends that; so does its end.
        past.call("HPEXPIRE", "h", 300, "FIELDS", 1, "a")
        ends = time.monotonic() + 0.3 + SLACK
        wait_until(lambda: time.monotonic() > ends, "the field's end")
        assert conn.pipeline([("HKEYS", "h"), ("HVALS", "h")]) == [[b"b"], [b"2"]]
        assert conn.call("HGETALL", "h") in ([b"b", b"2"], {b"b": b"2"})


@pytest.mark.parametrize("kind", WITH_FIELD_TTLS)
def test_a_hash_with_a_mortal_field_is_read_at_one_command(lab, kind):
    site = lab.site(kind, settings={"audit_one_in": 0})
    site.server.call("HSET", "h", "f", "v", "g", "w")
    site.server.call("HEXPIRE", "h", 1000, "FIELDS", 1, "f")
    with Connection(site.a.port) as conn:
        wait_until(lambda: site.a.stats()["link"] == "up", "the link is up")
        for name in WHOLE:
            conn.call(name, "h")
        before, begun = commands(site.server), time.monotonic()
        for _ in range(100):
            for name in WHOLE:
                conn.call(name, "h")
        # One each, and once a second a few questions more.
        assert commands(site.server) - before <= 400 + 10 * (2 + time.monotonic() - begun)
        assert not is_hit(conn, "HGETALL", "h")
        site.server.call("HPERSIST", "h", "FIELDS", 1, "f")
        for name in WHOLE:
            wait_until(lambda: conn.pipeline([(name, "h")]) and is_hit(conn, name, "h"), f"{name} is cached", timeout=5)


@pytest.mark.parametrize("kind", WITH_FIELD_TTLS)
def test_a_large_hash_is_not_asked_about(lab, kind):
    site = lab.site(kind, settings={"audit_one_in": 0})
    site.server.call("HSET", "mortal", "f", "v")
    site.server.call("HEXPIRE", "mortal", 1000, "FIELDS", 1, "f")
    for fields in (256, 257):
        site.server.call("HSET", f"h{fields}", *(part for i in range(fields) for part in (f"f{i}", "v")))
    with Connection(site.a.port) as conn:
        for name in WHOLE:
            wait_until(lambda: conn.pipeline([(name, "h256")]) and is_hit(conn, name, "h256"), f"{name} is cached")
        before = site.server.calls("hkeys"), site.server.calls("hpexpiretime")
        for _ in range(20):
            conn.call("HLEN", "h257"), conn.call("HGETALL", "h257")
        assert (site.server.calls("hkeys"), site.server.calls("hpexpiretime")) == before
        assert not is_hit(conn, "HLEN", "h257") and not is_hit(conn, "HGETALL", "h257")


@pytest.mark.parametrize("kind", WITH_FIELD_TTLS)
def test_what_has_ended_and_is_still_counted_is_not_kept(lab, kind):
    """Without the server's own sweeps, fields that have ended stay in the count."""
    site = lab.site(kind, settings={"audit_one_in": 0})
    site.server.call("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    site.server.call("HSET", "h", "f", "v", "g", "w")
    site.server.call("HSET", "gone", "f", "v")
    for key in ("h", "gone"):
        site.server.call("HPEXPIRE", key, 1, "FIELDS", 1, "f")
    with Connection(site.a.port) as conn, site.server.connect() as past:
        wait_until(lambda: site.a.stats()["link"] == "up", "the link is up")
        for _ in range(20):
            for name in WHOLE:
                for key in ("h", "gone"):
                    assert conn.call(name, key) == past.call(name, key)
        if past.call("HLEN", "h") == 2:
            assert not is_hit(conn, "HLEN", "h")


class Writer(threading.Thread):
    """Changes a few hashes past the proxies, fields' times to live above all. Each value is written once; `ends` says by when
    none may be seen any more, for those that end by themselves."""

    def __init__(self, server, keys, seed):
        super().__init__()
        self.server, self.keys, self.chance = server, keys, random.Random(seed)
        self.seed, self.ends, self.stop, self.failed = seed, {}, threading.Event(), None

    def run(self):
        try:
            with self.server.connect() as conn:
                n = 0
                while not self.stop.is_set():
                    n += 1
                    self._step(conn, f"{self.seed}.{n}")
                    time.sleep(0.003)
        except Exception as e:  # noqa: BLE001 - told by the test
            self.failed = e

    def _step(self, conn, value):
        key, field = self.chance.choice(self.keys), f"{self.seed}f{self.chance.randrange(3)}"
        life = self.chance.randrange(5, 60)
        match self.chance.randrange(8):
            case 0 | 1:
                conn.call("HSET", key, field, value)
            case 2 | 3 | 4:
                replies = conn.pipeline(
                    [("MULTI",), ("HSET", key, field, value), ("HPEXPIRE", key, life, "FIELDS", 1, field), ("EXEC",)]
                )
                assert not any(isinstance(reply, ReplyError) for reply in replies), replies
                self.ends[value] = time.monotonic() + life / 1000
            case 5:
                # A value that has a time to live is replaced together with it, so that its end still holds.
                conn.pipeline([("MULTI",), ("HSET", key, field, value), ("HPERSIST", key, "FIELDS", 1, field), ("EXEC",)])
            case 6:
                conn.call("HDEL", key, field)
            case 7:
                conn.pipeline([("HSETEX", key, "PX", life, "FIELDS", 1, field, value)])
                self.ends[value] = time.monotonic() + life / 1000


@pytest.mark.parametrize("kind", WITH_FIELD_TTLS)
def test_no_cached_read_outlives_a_field(lab, kind, seed):
    """Reads at the level that shows what the server would answer, of hashes that change all the time and of hashes that rest."""
    site = lab.site(kind, settings={"audit_one_in": 1, "audit_per_second": 10_000})
    site.server.call("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    keys = ["h1", "h2"]
    site.server.call("HSET", "rests", "a", "1")
    # The calm one changes now and then, so that it is cached in between.
    writers = [Writer(site.server, keys, seed), Writer(site.server, ["calm"], seed + 1)]
    reads = [(name, key) for name in ("HGETALL", "HVALS") for key in (*keys, "calm", "rests")]
    for writer in writers:
        writer.start()
    seen = 0
    try:
        with Connection(site.a.ports["linearizable"]) as conn, Connection(site.a.port) as bounded:
            end = time.monotonic() + 4
            while time.monotonic() < end:
                begun = time.monotonic()
                known = {value: at for writer in writers for value, at in list(writer.ends.items())}
                for reply in conn.pipeline(reads):
                    for value in reply:
                        seen += 1
                        late = begun - known.get(value.decode(), begun) - SLACK
                        assert late <= 0, f"{value} {late * 1000:.0f} ms after its end"
                bounded.pipeline([(name, key) for name in ("HLEN", "HKEYS") for key in (*keys, "calm", "rests")])
    finally:
        for writer in writers:
            writer.stop.set()
            writer.join()
    assert not any(writer.failed for writer in writers), [writer.failed for writer in writers]
    stats = site.a.stats()
    assert stats["audit_stale_total"] == 0 and stats["hits"] > 200 and seen > 1000, (stats["hits"], seen)
