"""A session's name goes with it to a connection that it keeps, and stays with nobody else; CLIENT TRACKING as bare."""

import pytest

from processes import KINDS, wait_until
from wire import Connection, ReplyError

pytestmark = pytest.mark.needs_proxy


@pytest.fixture(params=KINDS)
def place(lab, request):
    """A server and a proxy over it."""
    server = lab.server(request.param)
    return server, lab.proxy(server.port, settings={"audit_one_in": 0})


def said(conn, *words):
    conn.send(*words)
    reply = conn.read()
    return str(reply) if isinstance(reply, ReplyError) else reply


def line_of(server, name):
    lines = server.call("CLIENT", "LIST").decode().splitlines()
    found = [dict(f.split("=", 1) for f in line.split(" ") if "=" in f) for line in lines if f" name={name} " in line]
    return found[0] if found else None


PINS = {
    "no-evict": [("CLIENT", "NO-EVICT", "ON")],
    "reply": [("CLIENT", "REPLY", "ON")],
    "select while watching": [("WATCH", "k"), ("SELECT", 0)],
    "subscriber that selects": [("HELLO", 3), ("SUBSCRIBE", "news"), ("SELECT", 0)],
    "tracking and no-evict": [("CLIENT", "TRACKING", "ON", "BCAST"), ("CLIENT", "NO-EVICT", "ON")],
}


@pytest.mark.parametrize("pin", PINS)
@pytest.mark.parametrize("protocol", [2, 3])
def test_the_name_goes_with_a_pinned_session(place, pin, protocol):
    server, proxy = place
    for named in (True, False):
        with Connection(server.port, protocol) as bare, Connection(proxy.port, protocol) as near:
            for conn, name in ((bare, "bare"), (near, "near")):
                if named:
                    said(conn, "CLIENT", "SETNAME", name)
                    said(conn, "CLIENT", "SETINFO", "LIB-NAME", "lib")
                    said(conn, "CLIENT", "SETINFO", "LIB-VER", "1.2")
            replies = [[said(conn, *words) for words in PINS[pin]] for conn in (bare, near)]
            without_id = lambda reply: {**reply, b"id": 0} if isinstance(reply, dict) else reply
            assert [without_id(r) for r in replies[0]] == [without_id(r) for r in replies[1]]
            names = [said(conn, "CLIENT", "GETNAME") for conn in (bare, near)]
            assert names == ([b"bare", b"near"] if named else [None, None]), pin
            if named:
                expected, got = line_of(server, "bare"), line_of(server, "near")
                for field in ("lib-name", "lib-ver", "resp"):
                    assert got.get(field) == expected.get(field), (pin, field)


def test_a_tracking_session_is_named_at_the_server(place):
    server, proxy = place
    with Connection(proxy.port, 3) as conn:
        conn.call("CLIENT", "SETNAME", "one")
        conn.call("CLIENT", "TRACKING", "ON")
        assert line_of(server, "one")
        conn.call("CLIENT", "SETNAME", "two")
        assert line_of(server, "two") and not line_of(server, "one")
        assert conn.call("CLIENT", "GETNAME") == b"two"


def test_a_name_said_in_a_transaction_stays_with_its_session(place):
    server, proxy = place
    with Connection(proxy.port) as named, Connection(proxy.port) as other:
        for commit in (True, False):
            named.call("CLIENT", "SETNAME", "before")
            named.call("MULTI")
            assert named.call("CLIENT", "SETNAME", "mine") == b"QUEUED"
            assert named.call("EXEC" if commit else "DISCARD") == ([b"OK"] if commit else b"OK")
            assert named.call("CLIENT", "GETNAME") == (b"mine" if commit else b"before")
        with Connection(server.port) as bare:
            for conn in (bare, named):
                assert said(conn, "CLIENT", "SETNAME", "one") == b"OK"
                replies = [said(conn, *w) for w in (("MULTI",), ("CLIENT", "SETNAME", "a b"), ("EXEC",), ("CLIENT", "GETNAME"))]
                assert replies[3] == b"one"
        for _ in range(20):
            other.call("MULTI")
            other.call("CLIENT", "GETNAME")
            assert other.call("EXEC")[0] in (None, b"nearside-dedicated")
        wait_until(lambda: not line_of(server, "mine"), "its connection is not kept")


def outcome(port, steps, others_id):
    """What a tracking client gets: the replies of `steps`, then the pushes after a write."""
    with Connection(port, 3) as tracker, Connection(port) as target, Connection(port) as writer:
        ids = {"target": target.call("CLIENT", "ID"), "self": tracker.call("CLIENT", "ID"), "nobody": others_id}
        people = {"tracker": tracker, "target": target, "writer": writer}
        replies = []
        for who, *words in steps:
            replies.append(said(people[who], *(ids.get(w[1:], w) if isinstance(w, str) and w.startswith("@") else w for w in words)))
        numbers = {ids["target"]: "target", ids["self"]: "self"}
        name = lambda r: numbers.get(r, r) if isinstance(r, int) else r
        return [{k: name(v) for k, v in r.items()} if isinstance(r, dict) else name(r) for r in replies]


ON = ("tracker", "CLIENT", "TRACKING", "ON", "REDIRECT", "@target", "BCAST")
INFO, REDIR = ("tracker", "CLIENT", "TRACKINGINFO"), ("tracker", "CLIENT", "GETREDIR")
WRITE = ("writer", "SET", "k", 1)
REDIRECTS = {
    "to one that has said RESET": [("target", "RESET"), ON, REDIR, INFO, WRITE, INFO],
    "reset, having had a connection": [("target", "MULTI"), ("target", "RESET"), ON, REDIR, INFO],
    "reset afterwards": [ON, ("target", "RESET"), WRITE, ("tracker", "PING"), REDIR, INFO, WRITE, ("tracker", "PING"), INFO],
    "reset subscriber": [
        ("target", "SUBSCRIBE", "__redis__:invalidate"), ON, ("target", "RESET"), WRITE, ("tracker", "PING"), INFO,
        ("target", "SET", "k", 2), ("target", "GET", "k"), ("target", "CLIENT", "GETNAME"),
    ],
    "reset twice, used on": [ON, ("target", "RESET"), ("target", "RESET"), ("target", "SELECT", 0), ("target", "PING"), INFO],
    "to oneself": [("tracker", "CLIENT", "TRACKING", "ON", "REDIRECT", "@self", "BCAST"), REDIR, INFO, ("tracker", "PING")],
    "to oneself, twice": [
        ("tracker", "CLIENT", "TRACKING", "ON", "REDIRECT", "@self"), ("tracker", "CLIENT", "TRACKING", "ON", "REDIRECT", "@self"),
        REDIR, ("tracker", "CLIENT", "TRACKING", "OFF"), REDIR,
    ],
    "to nobody": [("tracker", "CLIENT", "TRACKING", "ON", "REDIRECT", "@nobody"), REDIR],
}


@pytest.mark.parametrize("case", REDIRECTS)
def test_redirect_as_bare(place, case):
    server, proxy = place
    expected = outcome(server.port, REDIRECTS[case], 999_999)
    assert outcome(proxy.port, REDIRECTS[case], 999_999) == expected


def test_a_redirect_to_one_whose_user_is_in_doubt(place):
    """A CONFIG SET brings it into doubt whether the server takes new connections, and RESET makes a session new."""
    server, proxy = place
    with Connection(proxy.port, 3) as tracker, Connection(proxy.port) as target:
        number = target.call("CLIENT", "ID")
        assert tracker.call("PING") == b"PONG"
        for _ in range(2):
            server.call("CONFIG", "SET", "timeout", 0)
            looks = server.calls("time")
            wait_until(lambda: server.calls("time") >= looks + 2, "the watch has looked")
            target.call("RESET")
            assert said(tracker, "CLIENT", "TRACKING", "ON", "REDIRECT", number, "BCAST") == b"OK"
            assert target.call("PING") == b"PONG"


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("multi", [False, True])
def test_overlapping_prefixes_as_bare(place, protocol, multi):
    """Older servers answer an error and OK: both are passed on, in their place, and nobody else gets the connection."""
    server, proxy = place
    prefix_lists = (["a", "ab"], ["x", "a", "ab"], ["x", "y", "ab", "a"], ["x", "a", "b"], ["x", "", "y"])
    for prefixes in prefix_lists:
        words = [w for prefix in prefixes for w in ("PREFIX", prefix)]
        first = [("MULTI",)] if multi else [("PING",)]
        stream = [*first, ("CLIENT", "TRACKING", "ON", "BCAST", *words), *([("EXEC",)] if multi else []), ("ECHO", "end")]
        got = []
        for port in (server.port, proxy.port):
            with Connection(port, protocol) as conn:
                if protocol == 2:
                    target = Connection(port)
                    stream[1] = ("CLIENT", "TRACKING", "ON", "REDIRECT", target.call("CLIENT", "ID"), "BCAST", *words)
                replies = []
                for command in stream:
                    conn.send(*command)
                while not replies or replies[-1] != b"end":
                    reply = conn.read()
                    replies.append(str(reply) if isinstance(reply, ReplyError) else str(reply) if isinstance(reply, list) else reply)
                got.append(replies)
        assert got[1] == got[0], prefixes
    with Connection(proxy.port, protocol) as other:
        for i in range(8):
            assert said(other, "MULTI") == b"OK"
            assert said(other, "ECHO", i) == b"QUEUED"
            assert said(other, "EXEC") == [str(i).encode()]
