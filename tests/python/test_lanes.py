"""Lanes come and go: bounded in number, ended when nobody uses them, and nobody's command is lost by that."""

import threading
import time

import pytest

from processes import LONG, wait_until
from test_coherence import assert_coherent, scenario_for
from wire import Connection, ReplyError, encode
from workload import run

pytestmark = pytest.mark.needs_proxy

USERS = 3000 if LONG else 400
QUICK = {"max_staleness": "500ms", "heartbeat": "50ms"}


def make_users(server, count):
    with server.connect() as conn:
        commands = [("ACL", "SETUSER", f"u{n}", "on", f">p{n}", "~*", "&*", "+@all") for n in range(count)]
        assert conn.pipeline(commands) == [b"OK"] * count


def login(proxy, n, **options):
    conn = Connection(proxy.port, **options)
    assert conn.call("AUTH", f"u{n}", f"p{n}") == b"OK"
    return conn


def lanes_at(server):
    return len(server.clients_named("nearside-lane"))


def is_cached_for(proxy, conn):
    hits = proxy.stats()["hits"]
    conn.call("GET", "k")
    conn.call("GET", "k")
    return proxy.stats()["hits"] > hits


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_many_users_leave_nothing_behind(lab, kind):
    """Before: a lane for each who ever logged in, for good, and beyond 1,024 nobody new was cached for."""
    server = lab.server(kind)
    proxy = lab.proxy(server.port, settings={**QUICK, "max_lanes": 50, "lane_idle_timeout": "1s"})
    make_users(server, USERS)
    server.call("SET", "k", "v")
    start, most = int(server.info("clients")["connected_clients"]), 0
    for n in range(USERS):
        with login(proxy, n) as conn:
            conn.send_raw(encode("SELECT", n % 3) + encode("SET", f"k{n}", n) + encode("GET", f"k{n}"))
            assert [conn.read() for _ in range(3)] == [b"OK", b"OK", str(n).encode()]
        if n % 50 == 0:
            most = max(most, proxy.stats()["lanes"])
    assert most <= 50
    wait_until(lambda: int(server.info("clients")["connected_clients"]) <= start + 2, "connections are back")
    wait_until(lambda: proxy.stats()["lanes"] <= 2, "only those that sessions begin with are left")
    assert proxy.stats()["lanes_rested"] > 0
    with login(proxy, USERS - 1) as conn:
        wait_until(lambda: is_cached_for(proxy, conn), "new sessions are cached for")


def test_no_more_lanes_than_max_lanes(lab):
    """Twelve sessions in turn, each another user or database, over four places and two threads."""
    server = lab.server()
    proxy = lab.proxy(server.port, settings={**QUICK, "max_lanes": 4, "threads": 2})
    make_users(server, 6)
    sessions = [login(proxy, n % 6) for n in range(12)]
    for n, conn in enumerate(sessions):
        assert conn.call("SELECT", n // 6) == b"OK"
    for round_ in range(5):
        for n, conn in enumerate(sessions):
            assert conn.call("SET", f"k{n}", round_) == b"OK"
            assert conn.call("GET", f"k{n}") == str(round_).encode()
        assert proxy.stats()["lanes"] <= 4
    wait_until(lambda: lanes_at(server) <= 4, "no more at the server either")
    for conn in sessions:
        conn.close()


def test_all_lanes_busy_is_an_error_in_time(lab):
    server = lab.server()
    proxy = lab.proxy(server.port, settings={**QUICK, "max_lanes": 1, "threads": 1, "connect_timeout": "500ms"})
    make_users(server, 2)
    with login(proxy, 0) as first, login(proxy, 1) as second:
        assert first.call("SET", "k", "1") == b"OK"
        server.call("CLIENT", "PAUSE", 100_000, "WRITE")
        first.send("SET", "k", "2")
        wait_until(lambda: b"cmd=set" in server.call("CLIENT", "LIST"), "the SET waits at the server")
        with pytest.raises(ReplyError, match="max_lanes"):
            second.call("ECHO", "x")
        server.call("CLIENT", "UNPAUSE")
        assert first.read() == b"OK"
        assert wait_until(lambda: try_echo(second), "a place is free again") == b"x"


def try_echo(conn):
    try:
        return conn.call("ECHO", "x")
    except ReplyError:
        return None


def test_a_session_that_sleeps_longer_than_its_lane(lab):
    """It holds the lane's handle: what it says next opens the lane again, in a pipeline as well, and without an error."""
    server = lab.server()
    proxy = lab.proxy(server.port, settings={**QUICK, "lane_idle_timeout": "200ms"})
    make_users(server, 1)
    with login(proxy, 0, protocol=3) as conn:
        assert conn.call("SELECT", 2) == b"OK"
        for turn in range(3):
            assert conn.call("SET", "k", turn) == b"OK"
            wait_until(lambda: is_cached_for(proxy, conn), "hits")
            wait_until(lambda: not user_lanes(server), "its lane rests")
            assert conn.call("GET", "k") == str(turn).encode()
            wait_until(lambda: not user_lanes(server), "its lane rests again")
            replies = conn.pipeline([("INCR", "n"), ("GET", "k"), ("CLIENT", "SETNAME", "me"), ("SELECT", 2), ("INCR", "n")])
            assert replies == [2 * turn + 1, str(turn).encode(), b"OK", b"OK", 2 * turn + 2]


def user_lanes(server):
    lines = server.call("CLIENT", "LIST").decode().splitlines()
    return [line for line in lines if "name=nearside-lane" in line and "user=u" in line]


def test_lanes_rest_under_traffic(lab):
    """Lanes that rest whenever nothing is awaited on them: no command of the many is lost or answered twice."""
    server = lab.server()
    proxy = lab.proxy(server.port, settings={**QUICK, "heartbeat": "1ms", "lane_idle_timeout": "1us", "threads": 2})
    make_users(server, 4)
    wrong = []

    def work(n):
        with login(proxy, n % 4) as conn:
            for i in range(1, 150):
                replies = conn.pipeline([("INCR", f"n{n}"), ("GET", f"n{n}"), ("PING",)])
                if replies != [i, str(i).encode(), b"PONG"]:
                    wrong.append((n, i, replies))
                if i % 3 == 0:
                    time.sleep(0.002)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:5]
    assert proxy.stats()["lanes_rested"] > 20


@pytest.mark.parametrize("level", ["bounded", "linearizable"])
def test_no_stale_hit_when_lanes_rest(lab, level, seed):
    """Two threads with one place between them: the lane that has filled what is hit comes to rest again and again. A fill in flight,
    a hit that waits for the lane's clock, writers past the proxy: none is told anything stale, or an error."""
    site = lab.site("redis", settings={**QUICK, "max_lanes": 1, "threads": 2})
    record = run(scenario_for(site, level, seed, seconds=3), lambda deadline: None)
    assert_coherent(record, level, 0.5)
    assert not record.errors, record.errors
    assert site.a.stats()["lanes_rested"] > 10


def test_lanes_that_nobody_uses_say_no_ping(lab):
    server = lab.server()
    proxy = lab.proxy(server.port, settings={**QUICK, "threads": 2})
    make_users(server, 60)
    sessions = [login(proxy, n) for n in range(60)]
    for conn in sessions:
        conn.call("GET", "k")
    assert lanes_at(server) >= 60

    def pings_are_few():
        before, begun = server.calls("ping"), time.monotonic()
        time.sleep(0.5)
        return (server.calls("ping") - before) / (time.monotonic() - begun) < 200

    # 60 lanes at a heartbeat of 50 ms said 1,200 a second; the link and the two that sessions begin with go on.
    wait_until(pings_are_few, "silence", 15)
    assert lanes_at(server) >= 60, "and they are still there"
    for conn in sessions:
        assert conn.call("GET", "k") is None
        conn.close()
