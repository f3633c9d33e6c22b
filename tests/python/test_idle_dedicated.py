"""Connections to the server that no session has at the moment: they make room for sessions, end by time, and leave the count when
the server ends them."""

import time

import pytest

from processes import wait_until
from wire import Connection, ReplyError

pytestmark = pytest.mark.needs_proxy

USERS = 12


def users_of(server):
    with server.connect() as admin:
        for n in range(USERS):
            admin.call("ACL", "SETUSER", f"u{n}", "on", f">p{n}", "~*", "&*", "+@all")


def logged_in(proxy, n):
    conn = Connection(proxy.port)
    assert conn.call("AUTH", f"u{n}", f"p{n}") == b"OK"
    return conn


def transaction(conn):
    assert conn.call("MULTI") == b"OK"
    assert conn.call("PING") == b"QUEUED"
    assert conn.call("EXEC") == [b"PONG"]


@pytest.fixture(params=["redis", "valkey"])
def server(lab, request):
    server = lab.server(request.param)
    users_of(server)
    return server


@pytest.mark.parametrize("threads", [1, 3])
def test_idle_ones_make_room_whoever_had_them(lab, server, threads):
    """Each user's own keep open what the next one needs, on whichever thread the next one is."""
    limit = 4
    proxy = lab.proxy(server.port, settings={"max_dedicated": limit, "threads": threads, "dedicated_idle_timeout": "1h"})
    sessions = [logged_in(proxy, n) for n in range(USERS)]
    for _ in range(3):
        for conn in sessions:
            transaction(conn)
            assert len(server.clients_named("nearside-dedicated")) <= limit + 1  # one may be about to close
    subscriber, blocked = sessions[0], sessions[1]
    assert subscriber.call("SUBSCRIBE", "news") == [b"subscribe", b"news", 1]
    blocked.send("BLPOP", "list", 0)
    for conn in sessions[2:]:
        transaction(conn)
    sessions[2].call("RPUSH", "list", "x")
    assert blocked.read() == [b"list", b"x"]
    sessions[2].call("PUBLISH", "news", "x")
    assert subscriber.read() == [b"message", b"news", b"x"]
    stats = proxy.stats()
    assert stats["dedicated"] <= limit and stats["dedicated_given_up"] > USERS
    assert stats["dedicated"] == stats["dedicated_idle"] + stats["dedicated_lent"]


def test_only_what_is_lent_is_refused_for(lab, server):
    """With every connection lent the next session is refused, and served as soon as one comes back."""
    proxy = lab.proxy(server.port, settings={"max_dedicated": 3, "threads": 3})
    sessions = [logged_in(proxy, n) for n in range(4)]
    for conn in sessions[:3]:
        assert conn.call("MULTI") == b"OK"
    wait_until(lambda: proxy.stats()["dedicated_lent"] == 3, "three are lent")
    with pytest.raises(ReplyError, match="max_dedicated"):
        sessions[3].call("MULTI")
    assert sessions[0].call("EXEC") == []
    transaction(sessions[3])


def test_the_least_recently_used_goes_first_across_threads(lab, server):
    proxy = lab.proxy(server.port, settings={"max_dedicated": 3, "threads": 3, "dedicated_idle_timeout": "1h"})
    sessions = [logged_in(proxy, n) for n in range(4)]
    for conn in sessions[:3]:
        transaction(conn)
    wait_until(lambda: proxy.stats()["dedicated_idle"] == 3, "three are idle")
    idle_users = lambda: {
        dict(f.split("=", 1) for f in line.split(" ") if "=" in f)["user"]
        for line in server.call("CLIENT", "LIST").decode().splitlines() if " name=nearside-dedicated" in line
    }
    assert idle_users() == {"u0", "u1", "u2"}
    transaction(sessions[0])
    transaction(sessions[3])
    wait_until(lambda: idle_users() == {"u0", "u2", "u3"}, "the one of u1 was used least recently")


def test_idle_ones_end_by_time(lab, server):
    proxy = lab.proxy(server.port, settings={"dedicated_idle_timeout": "200ms", "threads": 2})
    sessions = [logged_in(proxy, n) for n in range(4)]
    for conn in sessions:
        transaction(conn)
    assert proxy.stats()["dedicated"] > 0
    wait_until(lambda: proxy.stats()["dedicated"] == 0, "none is left", timeout=3)
    wait_until(lambda: not server.clients_named("nearside-dedicated"), "the server sees it")
    transaction(sessions[0])


def test_what_the_server_ends_leaves_the_count_at_once(lab, server):
    proxy = lab.proxy(server.port, settings={"threads": 2})
    sessions = [logged_in(proxy, n) for n in range(4)]
    for conn in sessions:
        transaction(conn)
    wait_until(lambda: len(server.clients_named("nearside-dedicated")) == proxy.stats()["dedicated"], "all are open")
    server.kill_clients_named("nearside-dedicated")
    # Long before the idle timeout.
    wait_until(lambda: proxy.stats()["dedicated"] == 0, "none is counted")
    for conn in sessions:
        transaction(conn)
    wait_until(lambda: len(server.clients_named("nearside-dedicated")) == proxy.stats()["dedicated"], "all are open again")
    server.call("CONFIG", "SET", "timeout", 1)
    started = time.monotonic()
    wait_until(lambda: proxy.stats()["dedicated_idle"] == 0, "the server's own timeout has ended them", timeout=8)
    assert time.monotonic() - started > 0.5
