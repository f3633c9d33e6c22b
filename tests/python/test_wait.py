"""WAIT and WAITAOF answer for the session's own writes, whichever connection carried them: never more than the server itself would."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from processes import KINDS, wait_until
from wire import Connection, ReplyError

pytestmark = pytest.mark.needs_proxy

SHORT = 100


class Replicated:
    """A server with one replica, and a proxy over the server."""

    def __init__(self, lab, kind, appendonly="no"):
        options = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", "--appendonly", appendonly, "--appendfsync", "always")
        self.kind = kind
        self.server = lab.server(kind, options=options)
        (lab.folder / "replica").mkdir(exist_ok=True)
        folder, lab.folder = lab.folder, lab.folder / "replica"
        self.replica = lab.server(kind, options=(*options, "--replicaof", "127.0.0.1", self.server.port))
        lab.folder = folder
        self.proxy = lab.proxy(self.server.port)
        wait_until(lambda: self.proxy.stats()["link"] == "up", "the proxy knows the server's version")
        wait_until(lambda: b"state=online" in self.server.call("INFO", "replication"), "the replica follows")
        with self.server.connect() as conn:
            conn.call("SET", "first", 1)
            assert conn.call("WAIT", 1, 5000) == 1

    @contextmanager
    def frozen(self):
        self.replica.freeze()
        try:
            yield
        finally:
            self.replica.thaw()

    def both(self):
        return Connection(self.server.port), Connection(self.proxy.port)


@pytest.fixture(params=KINDS)
def pair(lab, request):
    return Replicated(lab, request.param)


def said(conn, commands):
    """The replies, errors as text: each command in a write of its own."""
    replies = [conn.send(*words) or conn.read() for words in commands]
    return [str(reply) if isinstance(reply, ReplyError) else reply for reply in replies]


def piped(conn, commands):
    return [str(reply) if isinstance(reply, ReplyError) else reply for reply in conn.pipeline(commands)]


WRITES = {
    "set": [("SET", "k", 1)],
    "script": [("EVAL", "return redis.call('set', KEYS[1], 1)", 1, "k")],
    "undeclared": [("EVAL", "return redis.call('set', 'k', 1)", 0)],
    "transaction": [("MULTI",), ("SET", "k", 1), ("EXEC",)],
    "publish": [("PUBLISH", "news", "x")],
    "published in a transaction": [("MULTI",), ("PUBLISH", "news", "x"), ("EXEC",)],
    "list": [("RPUSH", "list", 1), ("BLPOP", "list", 0)],
    "after reset": [("SET", "k", 1), ("RESET",)],
    "select": [("SELECT", 3), ("SET", "k", 1), ("SELECT", 0)],
    "watch": [("SET", "k", 1), ("WATCH", "k")],
    "resp3 subscriber": [("HELLO", 3), ("SET", "k", 1), ("SUBSCRIBE", "news")],
    "tracking": [("SET", "k", 1), ("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "x"), ("SET", "k", 2)],
    "pinned": [("SET", "k", 1), ("CLIENT", "NO-EVICT", "ON")],
    "nothing": [("PING",), ("GET", "k")],
}


def test_a_stopped_replica_has_nothing_of_what_is_written(pair):
    """Each way to write, then WAIT: as bare, in a pipeline and one by one."""
    def replies(name, way, port):
        with Connection(port) as conn:
            return way(conn, [*WRITES[name], ("WAIT", 1, SHORT), ("WAIT", 0, 0), ("GET", "first")])[-3:]

    ports = pair.server.port, pair.proxy.port
    cases = [(name, way, port) for name in WRITES for way in (said, piped) for port in ports]
    with pair.frozen(), ThreadPoolExecutor(16) as pool:
        got = dict(zip(cases, pool.map(lambda case: replies(*case), cases), strict=True))
    for name, way, port in cases:
        assert got[name, way, port] == got[name, way, ports[0]], (name, way.__name__)
        if name != "nothing":
            assert got[name, way, port][0] == 0, name


def test_what_a_running_replica_has_is_acknowledged(pair):
    for name, writes in WRITES.items():
        bare, near = pair.both()
        with bare, near:
            commands = [*writes, ("WAIT", 1, 5000)]
            assert said(near, commands)[-1] == said(bare, commands)[-1] == 1, name


def test_waitaof(lab, pair):
    if pair.kind in ("redis", "redis6.2"):
        pytest.skip("without WAITAOF")
    disk = Replicated(lab, pair.kind, appendonly="yes")
    local, remote, both = ("WAITAOF", 1, 0, 5000), ("WAITAOF", 0, 1, 5000), ("WAITAOF", 1, 1, 5000)
    for writes in (WRITES["transaction"], WRITES["pinned"]):
        with Connection(disk.proxy.port) as near:
            replies = said(near, [*writes, local, remote, both])[-3:]
            assert replies[0][0] == 1 and replies[1][1] == 1 and replies[2] == [1, 1], (writes, replies)
    with disk.frozen():
        bare, near = disk.both()
        with bare, near:
            commands = [("SET", "k", 1), ("WAITAOF", 0, 1, SHORT), ("WAITAOF", 1, 0, 5000)]
            assert said(near, commands) == said(bare, commands) == [b"OK", [1, 0], [1, 0]]
    with pair.server.connect() as bare, Connection(pair.proxy.port) as near:
        commands = [("SET", "k", 1), ("WAITAOF", 1, 0, SHORT), ("WAITAOF", 2, 0, 1), ("WAITAOF", "x", 0, 1), ("WAITAOF", 0, 0)]
        assert said(near, commands) == said(bare, commands)


def test_errors_are_the_servers(pair):
    commands = [("WAIT", "x", 1), ("WAIT", 1, -1), ("WAIT", 1), ("WAIT", 1, "x"), ("WAIT", 0, 0)]
    bare, near = pair.both()
    assert said(near, commands) == said(bare, commands)
    assert said(near, [("SET", "k", 1), *commands[:4]]) == said(bare, [("SET", "k", 1), *commands[:4]])


def test_over_a_replica_it_is_refused_as_the_replica_does(lab, pair):
    proxy = lab.proxy(pair.replica.port, "over-replica")
    with Connection(pair.replica.port) as bare, Connection(proxy.port) as near:
        commands = [("PUBLISH", "news", "x"), ("WAIT", 1, SHORT)]
        assert said(near, commands) == said(bare, commands)


def test_in_a_transaction_nothing_is_acknowledged_falsely(pair):
    """WAIT in MULTI after writes elsewhere: the truth (up to Redis 7.0), or an error and EXECABORT, and nothing is executed."""
    with pair.frozen(), Connection(pair.proxy.port) as near:
        near.call("SET", "k", 1)
        replies = said(near, [("MULTI",), ("SET", "k", 2), ("WAIT", 1, SHORT), ("EXEC",), ("GET", "k")])
        if pair.kind in ("redis", "redis6.2"):
            assert replies[2:] == [b"QUEUED", [b"OK", 0], b"2"]
        else:
            assert "would not count writes" in replies[2] and replies[3].startswith("EXECABORT") and replies[4] == b"1"
    bare, near = pair.both()
    transaction = [("MULTI",), ("SET", "k", 3), ("WAIT", 0, 0), ("EXEC",)]
    assert [type(r) for r in said(near, transaction)] == [type(r) for r in said(bare, transaction)]


def test_nobody_is_held_up_and_nobody_hears(pair):
    with pair.frozen():
        waiter, other, listener = (Connection(pair.proxy.port) for _ in range(3))
        with pair.server.connect() as direct:
            direct.call("PSUBSCRIBE", "*")
            listener.call("PSUBSCRIBE", "*")
            waiter.call("SET", "k", 1)
            started = time.monotonic()
            waiter.send("WAIT", 1, 1000)
            wait_until(lambda: b"blocked_clients:1" in pair.server.call("INFO", "clients"), "it waits")
            assert all(other.call("SET", f"k{i}", i) == b"OK" for i in range(20))
            assert time.monotonic() - started < 0.9
            assert waiter.read() == 0
            # The first that they hear is what is said to all.
            other.call("PUBLISH", "end", "x")
            assert direct.read() == listener.read() == [b"pmessage", b"*", b"end", b"x"]


def test_who_goes_or_is_unblocked_does_not_wait_on(pair):
    with pair.frozen(), Connection(pair.proxy.port) as admin:
        before = pair.proxy.stats()["clients"]
        waiter = Connection(pair.proxy.port)
        number = waiter.call("CLIENT", "ID")
        waiter.call("SET", "k", 1)
        waiter.send("WAIT", 1, 0)
        blocked = lambda n: b"blocked_clients:%d\r" % n in pair.server.call("INFO", "clients")
        wait_until(lambda: blocked(1), "it waits")
        assert pair.proxy.stats()["dedicated_lent"] == 1
        assert admin.call("CLIENT", "UNBLOCK", number) == 1
        assert waiter.read() == 0
        waiter.send("WAIT", 1, 0)
        wait_until(lambda: blocked(1), "it waits again")
        waiter.close()
        wait_until(lambda: blocked(0), "its connection is closed")
        wait_until(lambda: pair.proxy.stats()["clients"] == before, "the session is over")


@pytest.mark.parametrize("may", [False, True])
def test_other_users(lab, pair, may):
    """Who may not WAIT is told so; who may need not be allowed SPUBLISH."""
    if pair.kind == "redis6.2":
        pytest.skip("without the channel's rights")
    rules = ("on", ">pw", "~*", "resetchannels", "+@all", "-publish", "-spublish", *(() if may else ("-wait",)))
    pair.server.call("ACL", "SETUSER", "bob", *rules)
    with pair.frozen():
        replies = []
        for conn in pair.both():
            with conn:
                conn.call("AUTH", "bob", "pw")
                replies.append(said(conn, [("SET", "k", 1), ("WAIT", 1, SHORT)]))
        assert replies[0] == replies[1] and (replies[0][1] == 0) == may
    if may:
        log = pair.server.call("ACL", "LOG")
        assert not log, log


def test_where_the_proxys_own_user_may_not_it_says_so(lab, pair):
    if pair.kind in ("redis", "redis6.2"):
        pytest.skip("any command does it there")
    pair.server.call("ACL", "SETUSER", "near", "on", ">pw", "~*", "&*", "+@all", "-spublish")
    proxy = lab.proxy(f"redis://near:pw@127.0.0.1:{pair.server.port}/0", "limited")
    with pair.frozen(), Connection(proxy.port) as conn:
        replies = said(conn, [("WAIT", 1, SHORT), ("SET", "k", 1), ("WAIT", 1, 0), ("GET", "k")])
        assert replies[:2] == [1, b"OK"] and replies[3] == b"1"
        assert "cannot be answered truthfully" in replies[2] and "spublish" in replies[2].lower()
        pinned = said(conn, [("CLIENT", "NO-EVICT", "ON"), ("WAIT", 1, SHORT), ("GET", "k")])
        assert pinned[0] == b"OK" and "would not count writes" in pinned[1] and pinned[2] == b"1"
