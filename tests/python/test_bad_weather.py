"""Links and lanes that die, servers that freeze, vanish, come back empty, load or are busy.

There is an error in bounded time, and never a wrong answer.
"""

import re
import threading
import time

import pytest

from processes import BARE, LEVELS, LONG, accepts, answers_ping, free_port, wait_until
from test_coherence import assert_coherent, hits, scenario_for
from wire import Closed, Connection, ReplyError, encode
from workload import run

SECONDS = 20 if LONG else 3
UPSTREAM_TIMEOUT = 2.0
SETTINGS = {"max_staleness": "500ms", "heartbeat": "50ms", "upstream_timeout": "2s", "connect_timeout": "1s", "reconnect_max": "200ms"}
MAX_STALENESS = 0.5
BUSY_AFTER_MS = 100
# A request may wait for the upstream to be given up, and for one more connection attempt.
ANSWER_BOUND = UPSTREAM_TIMEOUT + 1.0 + 1.0
FREEZE_SECONDS = 3.0


@pytest.fixture(params=["redis", "valkey"])
def stormy_site(request, lab):
    return lab.site(request.param, settings=SETTINGS, server_options=("--busy-reply-threshold", str(BUSY_AFTER_MS)))


def repeatedly(action, pause):
    """Weather that strikes again and again until the workload ends; counts what it struck."""
    struck = []

    def during(deadline):
        while time.monotonic() < deadline - pause:
            time.sleep(pause)
            struck.append(action())

    return during, struck


def try_call(conn, *words):
    """The reply, an error as a value, and how long it took."""
    start = time.monotonic()
    conn.send(*words)
    reply = conn.read()
    return reply, time.monotonic() - start


def assert_only_nearside_errors(record):
    # "no such key" is the server's word on a RENAME or COPY whose source was lost with the connection.
    expected = ["ERR nearside", "ERR no such key", "no connection: ERR nearside"]
    # SELECT and HELLO that cannot be put to the server, because the new lane is killed in its handshake, are told so, and the session
    # ends: what comes behind them in a pipeline must not be done in another database.
    if any("cannot be reached" in error for error in record.errors):
        expected.append("lost: closed by the other side")
    expected = tuple(expected)
    strange = [error for error in record.errors if not error.startswith(expected)]
    assert not strange, record.errors


def assert_cache_works_again(site):
    """After the storm a key that is read again and again is a hit again."""
    def gains_hits():
        before = hits(site)
        with Connection(site.a.port) as conn:
            for _ in range(10):
                conn.call("GET", "after the storm")
        return hits(site) > before

    assert BARE or wait_until(gains_hits, "hits after the storm")


@pytest.mark.needs_proxy
@pytest.mark.parametrize("name", ["nearside-link", "nearside-lane"])
@pytest.mark.parametrize("level", LEVELS)
def test_connections_are_killed(lab, level, name, seed):
    site = lab.site("redis", settings=SETTINGS)
    during, struck = repeatedly(lambda: site.server.kill_clients_named(name), 0.15)
    record = run(scenario_for(site, level, seed, seconds=SECONDS), during)
    assert sum(struck), f"no connection is named {name}"
    assert_coherent(record, level, MAX_STALENESS)
    assert_only_nearside_errors(record)
    assert_cache_works_again(site)


@pytest.mark.needs_proxy
@pytest.mark.parametrize("level", LEVELS)
def test_the_link_falls_silent(lab, level, seed):
    """Lanes answer, the link says nothing and does not close: invalidations are lost in the dark for 0.7 s at a time."""
    site = lab.site("redis", relayed=True, settings=SETTINGS)

    def dark_for_a_while():
        site.relay.stall("link")
        time.sleep(0.7)
        site.relay.resume("link")

    during, _ = repeatedly(dark_for_a_while, 0.3)
    record = run(scenario_for(site, level, seed, seconds=SECONDS), during)
    assert_coherent(record, level, MAX_STALENESS)
    assert_only_nearside_errors(record)
    assert_cache_works_again(site)


@pytest.mark.needs_proxy
def test_a_silent_link_stops_the_hits_of_bounded_in_time(lab):
    """Past the proxy the key changes while the link is dark: the old value may be served for max_staleness and not longer."""
    site = lab.site("redis", relayed=True, settings=SETTINGS)
    with Connection(site.a.port) as conn:
        site.server.call("SET", "k", "old")
        wait_until(lambda: conn.call("GET", "k") == b"old", "the first value")
        site.relay.stall("link")
        site.server.call("SET", "k", "new")
        acked = time.monotonic()
        while (begun := time.monotonic()) < acked + MAX_STALENESS + 0.5:
            reply = conn.call("GET", "k")
            assert reply == b"new" or begun <= acked + MAX_STALENESS, f"old {begun - acked:.3f} s after the ack of new"
        site.relay.resume("link")


def test_a_frozen_server(stormy_site):
    """Hits may go on for max_staleness; then there are errors, in bounded time; after the thaw all is well."""
    site = stormy_site
    site.server.call("SET", "k", "v")
    with Connection(site.a.port) as conn:
        conn.call("GET", "k")
        conn.call("GET", "k")
    site.server.freeze()
    frozen = time.monotonic()
    thaw = threading.Timer(FREEZE_SECONDS, site.server.thaw)
    thaw.start()
    outcomes = read_until(site.a.port, frozen + FREEZE_SECONDS - 0.2)
    thaw.join()
    for begun, ended, reply in outcomes:
        if ended < frozen + FREEZE_SECONDS:
            late_hit = reply == b"v" and begun > frozen + MAX_STALENESS
            assert not late_hit, f"a hit {begun - frozen:.3f} s after the server froze"
        assert ended - begun < ANSWER_BOUND
    assert_well_after(site)


def read_until(port, deadline):
    """Reads `k` again and again, each time on a connection that works; when each began and ended, and the reply."""
    outcomes = []
    while (begun := time.monotonic()) < deadline:
        try:
            with Connection(port) as conn:
                conn.send("GET", "k")
                reply = conn.read()
        except Closed as error:
            reply = error
        outcomes.append((begun, time.monotonic(), reply))
    return outcomes


def assert_well_after(site):
    """Within moments writes and reads work at every level through both proxies."""
    for proxy in (site.a, site.b):
        for level in LEVELS:
            wait_until(lambda: works(proxy.ports[level]), f"{proxy.name} {level} works again")


def works(port):
    try:
        with Connection(port) as conn:
            value = str(time.monotonic_ns()).encode()
            conn.call("SET", "probe", value)
            return conn.call("GET", "probe") == value
    except (OSError, ReplyError):
        return False


@pytest.mark.parametrize("level", LEVELS)
def test_a_server_that_freezes_under_load(lab, level, seed):
    site = lab.site("redis", settings=SETTINGS)

    def freeze_for_a_while():
        site.server.freeze()
        time.sleep(0.4)
        site.server.thaw()

    during, _ = repeatedly(freeze_for_a_while, 0.4)
    scenario = scenario_for(site, level, seed, seconds=SECONDS, expiry=False)
    record = run(scenario, during)
    assert_coherent(record, level, MAX_STALENESS)
    assert_only_nearside_errors(record)


@pytest.mark.parametrize("level", LEVELS)
def test_a_server_that_comes_back_empty(stormy_site, level):
    """Not one old value once the new server has answered."""
    site = stormy_site
    keys = [f"k{i}" for i in range(50)]
    with site.server.connect() as past:
        past.pipeline([("SET", key, "old") for key in keys])
    for proxy in (site.a, site.b):
        warm(proxy.ports[level], keys)
    site.server.restart()
    for proxy in (site.a, site.b):
        assert read_when_back(proxy.ports[level], keys) == [None] * len(keys)
    site.server.call("SET", "k0", "new")
    assert_well_after(site)
    for proxy in (site.a, site.b):
        assert read_when_back(proxy.ports["linearizable"], ["k0"]) == [b"new"]


def warm(port, keys):
    with Connection(port) as conn:
        for _ in range(2):
            assert conn.pipeline([("GET", key) for key in keys]) == [b"old"] * len(keys)


def read_when_back(port, keys):
    """The values as soon as no read answers with an error any more; an old value on the way is a failure."""
    def all_values():
        try:
            with Connection(port) as conn:
                replies = conn.pipeline([("GET", key) for key in keys])
        except OSError:
            return None
        assert b"old" not in replies, "a value that the server has never had"
        return None if any(isinstance(reply, ReplyError) for reply in replies) else replies

    return wait_until(all_values, "reads without errors")


@pytest.mark.needs_proxy
def test_no_upstream_at_the_start(lab):
    port = free_port()
    proxy = lab.proxy(port, settings=SETTINGS, wait=False)
    wait_until(lambda: accepts(proxy.port), "the proxy listens though its upstream is absent")
    for level in LEVELS:
        for words in (("GET", "k"), ("SET", "k", "v"), ("EVAL", "return 1", 0), ("BLPOP", "q", 0)):
            with Connection(proxy.ports[level]) as conn:
                reply, took = try_call(conn, *words)
            assert isinstance(reply, ReplyError) and str(reply).startswith("ERR nearside: "), (words, reply)
            assert took < ANSWER_BOUND
    lab.server("redis", port=port)
    for level in LEVELS:
        wait_until(lambda: works(proxy.ports[level]), f"{level} works once the upstream has come")


@pytest.mark.needs_proxy
def test_lanes_are_cut_and_a_write_is_not_repeated(lab):
    """Each INCR is sent once: the sum is no more than what was tried and no less than what was acked."""
    site = lab.site("redis", relayed=True, settings=SETTINGS)
    acked = tried = 0
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with Connection(site.a.port) as conn:
            replies = pipeline_with_a_cut(conn, site.relay, [("INCR", "n")] * 50)
        tried += 50
        acked += sum(isinstance(reply, int) for reply in replies)
    counted = int(site.server.call("GET", "n") or 0)
    assert acked <= counted <= tried
    assert acked, "nothing was ever acked"


def pipeline_with_a_cut(conn, relay, commands):
    cutter = threading.Thread(target=lambda: relay.cut("lane"))
    cutter.start()
    replies = conn.pipeline(commands)
    cutter.join()
    return replies


def kill_all_clients(server):
    """Every connection but subscribers' (so not the link), the proxies' lent ones included."""
    with server.connect() as conn:
        conn.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def replies_until_closed(conn, *commands):
    """What each command answers; fewer if the connection is closed on the way."""
    replies = []
    try:
        for words in commands:
            replies.append(try_call(conn, *words)[0])
    except OSError:
        pass
    return replies


def test_a_transaction_whose_connection_is_lost_does_nothing(stormy_site):
    """Not even the commands that follow the loss and meant to be queued."""
    site = stormy_site
    with Connection(site.a.port) as conn:
        conn.pipeline([("MULTI",), ("SET", "before", 1)])
        kill_all_clients(site.server)
        replies = replies_until_closed(conn, ("SET", "after", 1), ("EXEC",))
    assert all(isinstance(reply, ReplyError) for reply in replies), replies
    assert site.server.call("EXISTS", "before", "after") == 0


def test_a_watch_whose_connection_is_lost_does_not_let_exec_pass(stormy_site):
    site = stormy_site
    with Connection(site.a.port) as conn:
        conn.pipeline([("SET", "k", "seen"), ("WATCH", "k"), ("GET", "k")])
        kill_all_clients(site.server)
        site.server.call("SET", "k", "changed")
        replies_until_closed(conn, ("MULTI",), ("SET", "k", "lost update"), ("EXEC",))
    assert site.server.call("GET", "k") == b"changed"


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_subscriber_whose_subscription_is_lost_is_told(stormy_site, protocol):
    """Silence would look like a quiet channel."""
    site = stormy_site
    with Connection(site.a.port, protocol=protocol, timeout=ANSWER_BOUND) as conn:
        conn.call("SUBSCRIBE", "news")
        with site.server.connect() as killer:
            killer.call("CLIENT", "KILL", "TYPE", "pubsub")
        with pytest.raises(Closed):
            conn.read()


def test_loading_is_passed_on(lab):
    """A server that loads its data says so, and so does the proxy; afterwards all is well."""
    slowly = ("--dbfilename", "slow.rdb", "--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024")
    server = lab.server("redis", options=slowly)
    with server.connect() as conn:
        conn.pipeline([("SET", f"k{i}", "v" * 100) for i in range(1000)])
        conn.call("SAVE")
    proxy = lab.proxy(server.port, settings=SETTINGS)
    server.kill()
    server.start()
    wait_until(lambda: is_loading(server.port), "the server is loading")
    wait_until(lambda: is_loading(proxy.port), "the proxy passes -LOADING on", timeout=1.5)
    wait_until(lambda: answers_ping(server.port), "the server has loaded")
    for level in LEVELS:
        wait_until(lambda: works(proxy.ports[level]), f"{level} works after loading")


def is_loading(port):
    try:
        with Connection(port) as conn:
            reply, _ = try_call(conn, "GET", "k1")
            return str(reply).startswith("LOADING")
    except OSError:
        return False


ENDLESS = "while true do end"


def test_busy_is_passed_on_and_script_kill_gets_through(stormy_site):
    """An endless script, sent through the proxy: others are told -BUSY, and SCRIPT KILL ends it."""
    with Connection(stormy_site.a.port) as runner, Connection(stormy_site.a.port) as other:
        runner.send("EVAL", ENDLESS, 0)
        wait_until(lambda: str(try_call(other, "SET", "k", "v")[0]).startswith("BUSY"), "-BUSY through the proxy")
        assert other.call("SCRIPT", "KILL") == b"OK"
        assert "Script killed by user" in str(runner.read())
        assert other.call("SET", "k", "v") == b"OK"


@pytest.mark.parametrize("level", LEVELS)
def test_reads_while_the_server_is_busy(stormy_site, level):
    """A busy server answers no PING of the link. Reads end in bounded time, and none shows the value from before an acked write."""
    site = stormy_site
    with Connection(site.a.ports[level]) as reader, site.server.connect() as runner, site.server.connect() as killer:
        runner.call("SET", "k", "old")
        wait_until(lambda: reader.call("GET", "k") == b"old", "the old value")
        runner.call("SET", "k", "new")
        acked = time.monotonic()
        runner.send("EVAL", ENDLESS, 0)
        while time.monotonic() < acked + 1:
            begun = time.monotonic()
            reply, took = try_call(reader, "GET", "k")
            allowed_old = level != "linearizable" and begun <= acked + MAX_STALENESS
            assert reply != b"old" or allowed_old, f"stale {begun - acked:.3f} s after the ack"
            assert took < ANSWER_BOUND
        killer.call("SCRIPT", "KILL")
    assert_well_after(site)


def test_what_waits_for_a_slow_link_waits_at_the_server(lab):
    """Of a session whose bytes pass unlooked at, each piece waits for a barrier."""
    site = lab.site(relayed=True)
    site.server.call("SET", "large", b"x" * 200_000_000)
    with Connection(site.a.port, timeout=30) as conn:
        assert conn.call("CLIENT", "NO-EVICT", "ON") == b"OK"
        site.relay.stall("link")
        before = site.a.resident_bytes()
        conn.send("GET", "large")
        time.sleep(2)
        assert site.a.resident_bytes() - before < 30_000_000
        site.relay.resume("link")
        assert len(conn.read()) == 200_000_000


@pytest.mark.parametrize("trouble", ["frozen", "full"])
def test_what_comes_behind_a_database_that_cannot_be_had_is_not_done_in_another(lab, trouble):
    """SELECT of a session takes another connection to the server, which may fail where the server's own SELECT would not."""
    server = lab.server()
    proxy = lab.proxy(server.port, settings={"connect_timeout": "300ms", "upstream_timeout": "500ms"})
    with Connection(proxy.port, timeout=10) as conn, server.connect() as past:
        assert conn.call("GET", "k") is None
        if trouble == "full":
            past.call("CONFIG", "SET", "maxclients", 1)
        else:
            server.freeze()
        conn.send_raw(encode("SELECT", 1) + encode("SET", "k", "in 1"))
        assert re.search("nearside: upstream|max number of clients", str(conn.read()))
        if trouble == "frozen":
            server.thaw()
        assert conn.read_to_end() == b""
        assert past.call("GET", "k") is None
