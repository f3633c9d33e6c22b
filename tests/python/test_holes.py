"""The known holes of server-assisted caching, one by one: each is closed, or what is left of it is bounded."""

import os
import re
import subprocess
import threading
import time
from pathlib import Path

import pytest

from processes import KINDS, LEVELS, LONG, Child, cached, redis_binary, wait_until
from test_bad_weather import ANSWER_BOUND, MAX_STALENESS, SETTINGS, assert_well_after, read_when_back, warm
from test_coherence import assert_coherent, scenario_for
from test_modes import assert_caches
from wire import Connection, ReplyError
from workload import run

SECONDS = 20 if LONG else 3
AUDITED = {**SETTINGS, "audit_one_in": 1, "audit_per_second": 10_000}
WITH_FIELD_TTLS = [kind for kind in KINDS if kind not in ("redis", "redis6.2")]
SLACK = 0.01

pytestmark = pytest.mark.needs_proxy


SET_UNDECLARED = "return redis.call('SET', ARGV[1], ARGV[2])"


def assert_never_after(deadline, old, conn, *read, until):
    """No read that begins after `deadline` shows `old`, whatever it shows until then."""
    while (begun := time.monotonic()) < until:
        reply = conn.pipeline([read])[0]
        assert reply != old or begun <= deadline, f"{read}: {reply} {begun - deadline:.3f} s too late"


# --- time to live of hash fields ---

FIELD_READS = {
    "HGET": (("HGET", "h", "f"), None),
    "HMGET": (("HMGET", "h", "f", "g"), [None, b"w"]),
    "HGETALL": (("HGETALL", "h"), [b"g", b"w"]),
    "HVALS": (("HVALS", "h"), [b"w"]),
    "HKEYS": (("HKEYS", "h"), [b"g"]),
    "HEXISTS": (("HEXISTS", "h", "f"), 0),
    "HLEN": (("HLEN", "h"), 1),
    "HSTRLEN": (("HSTRLEN", "h", "f"), 0),
}


@pytest.mark.parametrize("name", FIELD_READS)
@pytest.mark.parametrize("kind", WITH_FIELD_TTLS)
def test_no_read_outlives_a_field(lab, kind, name):
    """The server expires fields only when they are looked at, so no report comes; a field's end is seen all the same."""
    read, after = FIELD_READS[name]
    site = lab.site(kind, settings=AUDITED)
    site.server.call("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    site.server.call("HSET", "h", "f", "v", "g", "w")
    with Connection(site.a.port) as conn:
        cached(conn, *read)
        site.server.call("HPEXPIRE", "h", 300, "FIELDS", 1, "f")
        ends = time.monotonic() + 0.3 + SLACK
        while time.monotonic() < ends + 0.2:
            begun = time.monotonic()
            reply = conn.call(*read)
            if begun > ends and name not in ("HLEN",):
                assert reply == after, f"{begun - ends:.3f} s after the end of the field"
            # HLEN counts fields that have ended until somebody removes them: what the server says is right.
            elif begun > ends:
                assert reply == site.server.call(*read)
    assert site.a.stats()["audit_stale_total"] == 0


# --- what no report announces ---

@pytest.mark.parametrize("level", LEVELS)
def test_swapdb_past_the_proxies_is_noticed_within_the_bound(lab, level):
    site = lab.site("redis", settings=SETTINGS)
    with Connection(site.a.ports[level]) as conn, site.server.connect() as past:
        past.pipeline([("SET", "k", "zero"), ("SELECT", 1), ("SET", "k", "one")])
        assert cached(conn, "GET", "k") == b"zero"
        past.call("SWAPDB", 0, 1)
        swapped = time.monotonic()
        assert_never_after(swapped + MAX_STALENESS, b"zero", conn, "GET", "k", until=swapped + 1)
        assert conn.call("GET", "k") == b"one"


def test_swapdb_before_the_first_look(lab):
    """The watch comes late: what it sees first already has the swap in it, and the cache is from before."""
    server = lab.server("redis")
    relay = lab.relay(server.port)
    relay.stall("watch")
    proxy = lab.proxy(relay.port, settings=SETTINGS)
    with Connection(proxy.port) as conn, server.connect() as past:
        past.pipeline([("SET", "k", "zero"), ("SELECT", 1), ("SET", "k", "one")])
        assert cached(conn, "GET", "k") == b"zero"
        past.call("SWAPDB", 0, 1)
        relay.resume("watch")
        wait_until(lambda: proxy.stats()["flushes_swapdb"], "the swap is noticed", timeout=5)
        assert conn.call("GET", "k") == b"one"


# Keeps the server busy for ARGV[1] milliseconds.
SPIN = "local function ms() local t = redis.call('TIME'); return t[1] * 1000 + t[2] / 1000 end; " \
       "local begun = ms(); while ms() - begun < tonumber(ARGV[1]) do end; return 1"


def test_swapdb_before_a_script_that_keeps_the_server_busy(lab):
    """The watch is refused its looks meanwhile: what it sees afterwards is compared with what it saw before."""
    site = lab.site("redis", settings=SETTINGS, server_options=("--busy-reply-threshold", "1"))
    with Connection(site.a.port) as conn, site.server.connect() as past:
        past.pipeline([("SET", "k", "zero"), ("SELECT", 1), ("SET", "k", "one"), ("SELECT", 0)])
        assert cached(conn, "GET", "k") == b"zero"
        time.sleep(MAX_STALENESS)  # the watch has looked
        past.pipeline([("SWAPDB", 0, 1), ("EVAL", SPIN, 0, int(3000 * MAX_STALENESS))])
        ended = time.monotonic()
        assert_never_after(ended + MAX_STALENESS, b"zero", conn, "GET", "k", until=ended + 1)
        assert conn.call("GET", "k") == b"one"
    stats = site.a.stats()
    assert stats["flushes_swapdb"] == 1 and stats["flushes_link_lost"] == 0, stats


@pytest.mark.parametrize("kind", KINDS)
def test_flushdb_of_another_database(lab, kind):
    """It is reported as everything: nothing wrong is served, of either database."""
    site = lab.site(kind, settings=AUDITED)
    with Connection(site.a.ports["linearizable"]) as zero, Connection(site.a.ports["linearizable"], db=1) as one:
        site.server.call("SET", "k", "zero")
        with site.server.connect(db=1) as past:
            past.call("SET", "k", "one")
            assert (cached(zero, "GET", "k"), cached(one, "GET", "k")) == (b"zero", b"one")
            past.call("FLUSHDB")
        assert one.call("GET", "k") is None
        assert zero.call("GET", "k") == b"zero"


# --- connections that die in ways of their own ---

@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("heard", [True, False], ids=["alone", "half open"])
def test_a_lane_dies(lab, level, heard):
    """The server forgets what the lane had registered and tells nobody: what the lane filled is void. If the proxy does not
    even hear of its end, the lane's clock stands, and hits end by themselves."""
    site = lab.site("redis", relayed=True, settings=AUDITED if heard else SETTINGS)
    with Connection(site.a.ports[level]) as conn:
        site.server.call("SET", "k", "old")
        assert cached(conn, "GET", "k") == b"old"
        if not heard:
            site.relay.half_open("lane")
        assert site.server.kill_clients_named("nearside-lane")
        site.server.call("SET", "k", "new")
        acked = time.monotonic()
        deadline = acked if level == "linearizable" else acked + MAX_STALENESS
        assert_never_after(deadline, b"old", conn, "GET", "k", until=acked + 1)
        assert conn.call("GET", "k") == b"new"
    assert time.monotonic() < acked + ANSWER_BOUND


@pytest.mark.parametrize("reading", ["GET", "MGET", "script"])
@pytest.mark.parametrize("writing", ["script", "pinned"])
def test_a_script_writes_what_a_lane_has_read_that_is_dead_already(lab, writing, reading):
    """The script's write is reported to nobody, for the server has forgotten what the lane had read, and the proxy has not heard
    of the lane's end: what the lane has filled must not be told any more."""
    site = lab.site("redis", relayed=True, settings={**SETTINGS, "max_staleness": "5s"})
    with Connection(site.a.port) as conn, Connection(site.a.port) as writer:
        if writing == "pinned":
            writer.call("CLIENT", "NO-EVICT", "off")
        assert writer.call("EVAL", SET_UNDECLARED, 0, "other", "x") == b"OK"
        site.server.call("SET", "k", "old")
        assert cached(conn, "GET", "k") == b"old"
        site.relay.half_open("lane")
        assert site.server.kill_clients_named("nearside-lane")
        if writing == "pinned":
            assert writer.call("SET", "k", "new") == b"OK"
        else:
            assert writer.call("EVAL", SET_UNDECLARED, 0, "k", "new") == b"OK"
        if reading == "script":
            assert conn.call("EVAL", "return redis.call('GET', ARGV[1])", 0, "k") == b"new"
        if reading == "MGET":
            assert conn.call("MGET", "k") == [b"new"]
        assert conn.call("GET", "k") == b"new"


def test_a_link_half_open(lab):
    """Closed by the server, unknown to the proxy: hits end within the bound, and the link is given up and opened anew."""
    site = lab.site("redis", relayed=True, settings=SETTINGS)
    with Connection(site.a.port) as conn:
        site.server.call("SET", "k", "old")
        assert cached(conn, "GET", "k") == b"old"
        site.relay.half_open("link")
        assert site.server.kill_clients_named("nearside-link")
        site.server.call("SET", "k", "new")
        acked = time.monotonic()
        assert_never_after(acked + MAX_STALENESS, b"old", conn, "GET", "k", until=acked + 1)
    wait_until(lambda: "silent for" in site.a.read_log(), "the link is given up")
    assert_caches(site.a)


@pytest.mark.parametrize("mode", ["tracked", "broadcast"])
def test_the_servers_limit_cuts_the_link_of_a_proxy_that_does_not_read(lab, mode):
    """Reports are lost with it. The proxy must not wake up believing what it knew."""
    limit = ("--client-output-buffer-limit", "pubsub 32kb 32kb 1")
    site = lab.site("redis", settings={**AUDITED, "invalidation": mode}, server_options=limit)
    names = [f"{i}:" + "x" * 10_000 for i in range(1_500)]
    with Connection(site.a.port) as conn, site.server.connect() as past:
        past.call("SET", "k", "old")
        for at in range(0, len(names), 100):
            conn.pipeline([("GET", name) for name in names[at:at + 100]])
        assert cached(conn, "GET", "k") == b"old"
        site.a.freeze()
        for at in range(0, len(names), 100):
            past.pipeline([("SET", name, "v") for name in names[at:at + 100]])
        past.call("SET", "k", "new")
        wait_until(lambda: len(site.server.clients_named("nearside-link")) == 1, "the server has cut the frozen proxy's link")
        time.sleep(MAX_STALENESS)
        conn.send("GET", "k")
        site.a.thaw()
        assert conn.read() == b"new"
    wait_until(lambda: site.a.stats()["flushes_link_lost"] >= 1, "the loss is a flush")
    assert_caches(site.a)
    assert site.a.stats()["audit_stale_total"] == 0


@pytest.mark.parametrize("level", LEVELS)
def test_an_overfull_tracking_table(lab, level, seed):
    """The server forgets keys at random and reports them as changed: more misses, nothing stale."""
    site = lab.site("redis", settings=AUDITED, server_options=("--tracking-table-max-keys", "5"))
    assert_coherent(run(scenario_for(site, level, seed, seconds=SECONDS / 2)), level, MAX_STALENESS)
    assert site.a.stats()["audit_stale_total"] == site.b.stats()["audit_stale_total"] == 0
    assert int(site.server.info("stats")["tracking_total_keys"]) <= 50, "the limit was in force"


# --- servers that are not what they were ---

@pytest.mark.parametrize("level", LEVELS)
def test_a_server_that_comes_back_with_other_data(lab, level):
    site = lab.site("redis", settings=SETTINGS, server_options=("--dbfilename", f"other-{level}.rdb"))
    keys = [f"k{i}" for i in range(50)]
    with site.server.connect() as past:
        past.pipeline([("SET", key, "other") for key in keys])
        past.call("SAVE")
        past.pipeline([("SET", key, "old") for key in keys])
    for proxy in (site.a, site.b):
        warm(proxy.ports[level], keys)
    site.server.restart()
    for proxy in (site.a, site.b):
        assert read_when_back(proxy.ports[level], keys) == [b"other"] * len(keys)


@pytest.mark.parametrize("load", ["disabled", "swapdb"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_master_that_is_demoted_shows_its_new_masters_data(lab, kind, load):
    """With `swapdb` some servers change all data and report nothing: the new replication id is looked for."""
    master = lab.server(kind, options=("--repl-diskless-sync-delay", "0"))
    site = lab.site(kind, settings=SETTINGS, server_options=("--repl-diskless-load", load))
    master.call("SET", "k", "new")
    site.server.call("SET", "k", "old")
    with Connection(site.a.port) as conn, site.server.connect() as past:
        assert cached(conn, "GET", "k") == b"old"
        past.call("REPLICAOF", "127.0.0.1", master.port)
        while past.pipeline([("GET", "k")])[0] != b"new":
            conn.pipeline([("GET", "k")])
        changed = time.monotonic()
        assert_never_after(changed + MAX_STALENESS, b"old", conn, "GET", "k", until=changed + 1)
        assert conn.call("GET", "k") == b"new"


# --- a proxy that stands still ---

@pytest.mark.parametrize("level", LEVELS)
def test_a_stopped_proxy_does_not_wake_with_old_answers(lab, level):
    """Stopped for longer than the bound, with a request waiting for it: its first answer is not from before."""
    site = lab.site("redis", settings=AUDITED)
    for round_ in range(5):
        with Connection(site.a.ports[level]) as conn:
            site.server.call("SET", "k", f"old{round_}")
            wait_until(lambda: cached(conn, "GET", "k") == b"old%d" % round_, "the old value")
            site.a.freeze()
            site.server.call("SET", "k", "new")
            time.sleep(MAX_STALENESS + 0.1)
            conn.send("GET", "k")
            site.a.thaw()
            assert conn.read() == b"new"
    assert site.a.stats()["audit_stale_total"] == 0


# --- reads that the server does not register ---

def test_a_read_whose_caching_was_refused_is_not_kept(lab):
    """CLIENT CACHING is answered by an error, the read behind it is not: it is told, and registered nowhere."""
    site = lab.site("redis", settings=AUDITED)
    site.server.call("ACL", "SETUSER", "weak", "on", ">pw", "~*", "&*", "+@all", "-client|caching")
    with Connection(site.a.port) as conn:
        conn.call("AUTH", "weak", "pw")
        for value in range(20):
            site.server.call("SET", "k", value)
            assert conn.pipeline([("GET", "k"), ("GET", "k"), ("MGET", "k")]) == [b"%d" % value] * 2 + [[b"%d" % value]]
    assert site.a.stats()["fills"] == 0


def test_caching_refused_because_a_script_runs(lab):
    """-BUSY to CLIENT CACHING or to the read, with writes as soon as the script ends: nothing that was not registered is kept."""
    site = lab.site("redis", settings=AUDITED, server_options=("--busy-reply-threshold", "1"))
    stop = threading.Event()
    # The server looks up from a script once in 100,000 of Lua's instructions: they must be done in less than its 8 ms.
    script = "local n = 0; local t = redis.call('TIME'); local function ms(t) return t[1] * 1000 + t[2] / 1000 end; " \
             "while ms(redis.call('TIME')) - ms(t) < 8 do for _ = 1, 500 do n = n + 1 end end; return n"

    def scripts():
        with site.server.connect() as conn:
            while not stop.is_set():
                conn.call("EVAL", script, 0)
                time.sleep(0.002)

    running = threading.Thread(target=scripts)
    running.start()
    busy = 0
    try:
        with Connection(site.a.ports["linearizable"]) as conn, site.server.connect() as past:
            until, value = time.monotonic() + SECONDS, 0
            while time.monotonic() < until:
                value += 1
                while isinstance(past.pipeline([("SET", "k", value)])[0], ReplyError):
                    busy += 1
                for reply in conn.pipeline([("GET", "k")] * 3):
                    busy += isinstance(reply, ReplyError)
                    assert isinstance(reply, ReplyError) or reply == b"%d" % value
    finally:
        stop.set()
        running.join()
    assert busy, "the script has never been in the way"
    assert site.a.stats()["audit_stale_total"] == 0
    assert_well_after(site)


# --- packets that vanish ---

class Island:
    """A network namespace with a server in it, from where answers to single connections can be made to vanish."""

    def __init__(self, folder):
        self.name = f"nearside-{os.getpid()}"
        net = f"10.231.{os.getpid() % 250}"
        self.here, self.there, self.port = f"{net}.1", f"{net}.2", 6379
        pair = self.pair = (f"ns{os.getpid()}a", f"ns{os.getpid()}b")
        self._ip("netns", "add", self.name)
        try:
            self._ip("link", "add", pair[0], "type", "veth", "peer", "name", pair[1], "netns", self.name)
            self._ip("addr", "add", f"{self.here}/30", "dev", pair[0])
            self._ip("link", "set", pair[0], "up")
            for words in (("addr", "add", f"{self.there}/30", "dev", pair[1]), ("link", "set", pair[1], "up")):
                self._ip("-n", self.name, *words)
            argv = ["ip", "netns", "exec", self.name, redis_binary(), "--port", self.port, "--bind", self.there, "--save", "",
                    "--protected-mode", "no"]
            self.server = Child(argv, Path(folder) / "island.log")
        except BaseException:
            self._ip("netns", "del", self.name)
            raise

    @staticmethod
    def _ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def cli(self, *words):
        done = subprocess.run(["redis-cli", "-h", self.there, *words], check=False, capture_output=True, text=True, timeout=10)
        return done.stdout.strip()

    def swallow_answers_to(self, name):
        """Of the connections of this name; how many there are."""
        lines = [line for line in self.cli("CLIENT", "LIST").splitlines() if f" name={name}" in line]
        for line in lines:
            port = re.search(r" addr=\S+:(\d+)", line)[1]
            self._ip("-n", self.name, "rule", "add", "ipproto", "tcp", "dport", port, "blackhole")
        return len(lines)

    def close(self):
        self.server.kill()
        self._ip("link", "del", self.pair[0])
        self._ip("netns", "del", self.name)


@pytest.fixture
def island(tmp_path):
    try:
        island = Island(tmp_path)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    yield island
    island.close()


def test_a_write_into_a_black_hole_is_answered(lab, island):
    """The lane's packets vanish, the link lives: a write that waits for its answer must not wait for ever."""
    wait_until(lambda: island.cli("PING") == "PONG", "the server on the island")
    proxy = lab.proxy(f"redis://{island.there}:{island.port}/0", settings={**SETTINGS, "threads": 1})
    assert_caches(proxy)
    assert island.swallow_answers_to("nearside-lane")
    with Connection(proxy.port) as conn:
        begun = time.monotonic()
        reply = conn.pipeline([("SET", "k", "v")])[0]
        took = time.monotonic() - begun
        assert isinstance(reply, ReplyError) and "the outcome of this command is unknown" in str(reply), reply
        assert 1.5 < took < ANSWER_BOUND, took
        assert conn.call("SET", "k", "w") == b"OK", "by another lane"
    assert proxy.stats()["flushes_link_lost"] == 0, "the link has lived on"


# --- the wall clock is set ---

FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
HOUR = 3600


class WallClock:
    """The wall clock of one process, to be set while it runs; the clocks that only go forward stay as they are."""

    def __init__(self, folder):
        self.file = Path(folder) / f"wall-clock-{time.monotonic_ns()}"
        self.env = {
            "LD_PRELOAD": str(FAKETIME[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        self.set(0)

    def set(self, seconds):
        """So many seconds from the true time."""
        new = self.file.with_suffix(".new")
        new.write_text(f"{seconds:+d}s\n")
        new.replace(self.file)


def logged_hours(proxy):
    """The hours that the lines of its log were written at, by its wall clock."""
    return set(re.findall(r"T(\d\d):\d\d:\d\d", proxy.read_log()))


@pytest.mark.parametrize("level", LEVELS)
def test_the_proxys_wall_clock_is_set_forward_and_back(lab, level):
    """Writers go past the proxy; keys with and without a time to live. Nothing is staler than allowed, nothing outlives its key."""
    server = lab.server("redis")
    server.call("DEBUG", "SET-ACTIVE-EXPIRE", 0)  # nobody reports the end of a key
    wall = WallClock(lab.folder)
    proxy = lab.proxy(server.port, settings={**AUDITED, "log": "debug"}, env=wall.env)
    allowed = 0 if level == "linearizable" else MAX_STALENESS
    with Connection(proxy.ports[level]) as conn, server.connect() as past:
        for round_, offset in enumerate([HOUR, -HOUR]):
            mortal, lasting = f"mortal:{round_}", f"lasting:{round_}"
            past.pipeline([("SET", mortal, "old", "PX", 1500), ("SET", lasting, "old")])
            ends = time.monotonic() + 1.5 + SLACK
            cached(conn, "GET", mortal), cached(conn, "GET", lasting)
            hits = proxy.stats()["hits"]
            wall.set(offset)
            assert conn.pipeline([("GET", mortal), ("GET", lasting)]) == [b"old"] * 2
            assert proxy.stats()["hits"] == hits + 2, "what was kept before the clock was set is still kept"
            past.call("SET", lasting, "new")
            acked = time.monotonic()
            assert_never_after(acked + allowed, b"old", conn, "GET", lasting, until=acked + MAX_STALENESS + 0.1)
            cached(conn, "GET", mortal)
            assert_never_after(ends, b"old", conn, "GET", mortal, until=ends + 0.2)
        with Connection(proxy.port):
            pass  # a line for the log
    assert len(logged_hours(proxy)) > 1, "the wall clock was not set at all"
    assert proxy.stats()["audit_stale_total"] == 0


@pytest.mark.parametrize("level", ["bounded", "linearizable"])
def test_the_servers_wall_clock_is_set_forward_and_back(lab, level):
    """A key ends by its server's wall clock, and here nobody reports it. The proxy looks at that clock."""
    wall = WallClock(lab.folder)
    server = lab.server("valkey", env=wall.env)  # Debian's Redis and libfaketime wait for each other at the start
    server.call("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    proxy = lab.proxy(server.port, settings=SETTINGS)
    with Connection(proxy.ports[level]) as conn, server.connect() as past:
        for round_, (before, after) in enumerate([(0, HOUR), (HOUR, -HOUR), (-HOUR, 2 - HOUR)]):
            wall.set(before)
            time.sleep(MAX_STALENESS)  # so that the watch has looked
            key = f"k:{round_}"
            past.pipeline([("SET", key, "old", "PX", 1500), ("SET", "lasting", "old")])
            cached(conn, "GET", key), cached(conn, "GET", "lasting")
            wall.set(after)
            # the server's process looks now and then what it is to believe
            offset = lambda: int(past.call("TIME")[0]) - time.time()
            wait_until(lambda: abs(offset() - after) < 2, "the server's wall clock is set")
            jumped = time.monotonic()
            if after > before:  # nobody looks at the server before the bound: that would end the key, and report it
                bound = jumped + MAX_STALENESS
                assert_never_after(bound, b"old", conn, "GET", key, until=bound + 0.3)
            assert conn.call("GET", key) == past.call("GET", key) == (None if after > before else b"old")
            past.call("SET", "lasting", "new")
            acked = time.monotonic()
            bound = acked + (0 if level == "linearizable" else MAX_STALENESS)
            assert_never_after(bound, b"old", conn, "GET", "lasting", until=acked + MAX_STALENESS + 0.1)
    stats = proxy.stats()
    assert stats["flushes_clock"] == 2 and stats["flushes_link_lost"] == 0, stats
