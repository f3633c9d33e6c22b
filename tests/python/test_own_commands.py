"""NEARSIDE and INFO's section: who may say them is whom the server lets say what they amount to."""

import pytest

from conftest import Lab
from processes import KINDS, wait_until
from wire import Connection, ReplyError

pytestmark = pytest.mark.needs_proxy

USERS = {
    "reader": ("~x:*", "+get"),
    "strlen": ("~x:*", "+strlen"),
    "watcher": ("+info",),
    "flusher": ("+flushall", "+multi"),
    "flush-without-multi": ("+flushall",),
    "admin": ("~*", "+@all"),
}


@pytest.fixture(scope="module", params=[kind for kind in KINDS if kind != "redis8.2"])
def place(request, tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("own"))
    server = lab.server(request.param)
    for name, rules in USERS.items():
        server.call("ACL", "SETUSER", name, "on", ">pw", "-@all", *rules)
    server.call("MSET", "x:1", "1", "secret", "2")
    yield server, lab.proxy(server.port)
    lab.close()


def said(proxy, user, *words):
    with Connection(proxy.port) as conn:
        conn.call("AUTH", user, "pw")
        return conn.pipeline([words])[0]


def refused(reply, command):
    return isinstance(reply, ReplyError) and str(reply).startswith("NOPERM") and (f"'{command}'" in str(reply) or "key" in str(reply))


ALLOWED = {
    ("NEARSIDE", "STATS"): ("info", {"watcher", "admin"}),
    ("INFO", "nearside"): ("info", {"watcher", "admin"}),
    ("NEARSIDE", "EXPLAIN", "x:1"): ("get", {"reader", "admin"}),
    ("NEARSIDE", "EXPLAIN", "secret"): ("get", {"admin"}),
    ("NEARSIDE", "EXPLAIN", "GET", "x:1"): ("get", {"reader", "admin"}),
    ("NEARSIDE", "EXPLAIN", "GET", "secret"): ("get", {"admin"}),
    ("NEARSIDE", "EXPLAIN", "STRLEN", "x:1"): ("strlen", {"strlen", "admin"}),
    ("NEARSIDE", "EXPLAIN", "MGET", "x:1", "secret"): ("mget", {"admin"}),
    ("NEARSIDE", "EXPLAIN", "LLEN", "x:1"): ("llen", {"admin"}),
    ("NEARSIDE", "EXPLAIN", "SET", "secret", "v"): (None, set(USERS)),
    ("NEARSIDE", "HELP"): (None, set(USERS)),
    ("NEARSIDE", "CONSISTENCY"): (None, set(USERS)),
    ("NEARSIDE", "CONSISTENCY", "bounded"): (None, set(USERS)),
}


@pytest.mark.parametrize("words", ALLOWED, ids=" ".join)
def test_a_user_may_say_what_the_server_lets_it_say(place, words):
    _, proxy = place
    command, allowed = ALLOWED[words]
    for user in USERS:
        reply = said(proxy, user, *words)
        assert not isinstance(reply, ReplyError) if user in allowed else refused(reply, command), (user, reply)
        if isinstance(reply, ReplyError) and words[0] == "NEARSIDE":
            assert f"(NEARSIDE {words[1]} needs it)" in str(reply)


def test_who_may_not_flush_does_not_empty_the_cache(place):
    server, proxy = place
    for user in USERS:
        before = proxy.stats()["flushes_admin"]
        reply = said(proxy, user, "NEARSIDE", "FLUSH")
        if user in ("flusher", "admin"):
            assert reply == b"OK" and proxy.stats()["flushes_admin"] == before + 1
        else:
            assert refused(reply, "multi" if user != "flusher" else "flushall"), (user, reply)
            assert proxy.stats()["flushes_admin"] == before
        assert server.call("GET", "secret") == b"2", "the server's data stay"


def test_asking_leaves_no_connection_behind(place):
    _, proxy = place
    before = proxy.stats()["dedicated"]
    for _ in range(20):
        said(proxy, "flusher", "NEARSIDE", "FLUSH")
    wait_until(lambda: proxy.stats()["dedicated"] <= before + 8, "connections are given up")


def test_the_numbers_are_told_while_the_server_is_gone(lab):
    server = lab.server()
    proxy = lab.proxy(server.port)
    with Connection(proxy.port) as conn:
        conn.call("GET", "k")
        server.kill()
        wait_until(lambda: b"nearside_link:down" in conn.call("INFO", "nearside"), "the link is down")
        assert b"nearside_link" in conn.call("NEARSIDE", "STATS")
        assert str(conn.pipeline([("NEARSIDE", "FLUSH")])[0]).startswith("ERR nearside: upstream")
        assert str(conn.pipeline([("NEARSIDE", "EXPLAIN", "k")])[0]).startswith("ERR nearside: upstream")
