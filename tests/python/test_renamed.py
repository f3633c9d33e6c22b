"""Servers whose commands have other names (`rename-command`): a command is what it is by whatever name it is said, the old name is
nobody's, and a name that nobody knows is the server's own error. The right answer is always that of the bare server."""

import pytest

from conftest import _close, _new_lab
from processes import wait_until
from wire import Closed, Connection, ReplyError

KINDS = ("redis", "valkey")
SETTINGS = {"audit_one_in": 0, "max_dedicated": 64}
RENAMED = {
    "MONITOR": "watchall", "MULTI": "trans", "EXEC": "go", "DISCARD": "undo", "WATCH": "guard", "SUBSCRIBE": "listen",
    "PSUBSCRIBE": "plisten", "SSUBSCRIBE": "slisten", "UNSUBSCRIBE": "deaf", "SELECT": "choose", "SWAPDB": "trade",
    "RESET": "afresh", "BLPOP": "waitpop", "FLUSHALL": "empty", "EVAL": "run", "DEL": "erase",
    "WAIT": "await", "STRLEN": "length", "SET": "put", "CONFIG": "b840fc02d524045429941cc15f59e41cb7be6c52aaaaaaaaaaaaaaaaaaaaaaaaaa",
}
# On servers of their own: without GET or CLIENT under their names, less is cached or nothing.
READS = {"GET": "fetch"}
LOGINS = {"HELLO": "hola", "AUTH": "login", "QUIT": "bye", "CLIENT": "xclient", "RESET": "afresh"}


def options(renamed):
    return [word for old, new in renamed.items() for word in ("--rename-command", old, new)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    lab, sites = _new_lab(tmp_path_factory), {}
    yield lambda kind, renamed: sites.setdefault((kind, *renamed), None) or sites.update(
        {(kind, *renamed): lab.site(kind, server_options=options(renamed), settings=SETTINGS)}) or sites[(kind, *renamed)]
    _close(lab)


@pytest.fixture(params=KINDS)
def renamed(request, shared):
    return fresh(shared(request.param, RENAMED), "empty")


def fresh(site, flush):
    site.server.call(flush)
    return site


def answers(port, *commands, read_more=0):
    """What one connection is told, each command after the reply to the one before."""
    replies = []
    with Connection(port, timeout=3) as conn:
        for words in commands:
            conn.send(*words)
            try:
                replies.append(plain(conn.read()))
            except Closed:
                replies.append("closed")
                break
        for _ in range(read_more):
            replies.append(plain(conn.read()))
    return replies


def plain(reply):
    return f"-{reply}" if isinstance(reply, ReplyError) else reply


def alike(site, *commands, **options):
    """Through the proxy as bare."""
    bare = answers(site.server.port, *commands, **options)
    assert answers(site.a.port, *commands, **options) == bare, commands
    return bare


@pytest.mark.needs_proxy
@pytest.mark.parametrize("old", [*RENAMED, "WHATEVER", "config|get", "A|B"])
def test_an_old_name_is_the_servers_error(renamed, old):
    for arguments in ((), ("a",), ("a", "b"), ("id",), ("0", "1", "2")):
        replies = alike(renamed, (old, *arguments))
        assert "unknown command" in replies[0] and old in replies[0]
    alike(renamed, ("trans",), (old, "a"), ("go",))


@pytest.mark.needs_proxy
def test_a_renamed_monitor_harms_nobody(renamed):
    with Connection(renamed.a.port) as watcher, Connection(renamed.a.port) as other:
        assert watcher.call("watchall") == b"OK"
        for i in range(20):
            assert other.call("ECHO", i) == str(i).encode()
        renamed.server.call("ECHO", "said past the proxy")
        seen = b""
        while b"said past the proxy" not in seen:
            seen = watcher.read()
            assert b"ECHO" in seen, seen
    assert answers(renamed.a.port, ("ECHO", "y")) == [b"y"]


@pytest.mark.needs_proxy
def test_a_renamed_transaction_is_one(renamed):
    with Connection(renamed.a.port) as one, Connection(renamed.a.port) as other:
        assert one.call("trans") == b"OK"
        assert other.call("put", "k", "other") == b"OK"
        assert one.call("put", "k", "one") == b"QUEUED"
        assert other.call("GET", "k") == b"other"
        assert one.call("go") == [b"OK"]
        assert other.call("GET", "k") == b"one", "what EXEC wrote is not hidden by what was cached"
        assert one.call("guard", "k") == b"OK"
        assert other.call("put", "k", "changed") == b"OK"
        assert one.pipeline([("trans",), ("put", "k", "lost"), ("go",)])[-1] is None
        assert one.pipeline([("trans",), ("undo",), ("ECHO", "x")]) == [b"OK", b"OK", b"x"]
    wait_until(lambda: renamed.a.stats()["dedicated"] <= 16, "its connection went back")


@pytest.mark.needs_proxy
@pytest.mark.parametrize("name, channel", [("listen", "c"), ("plisten", "c*"), ("slisten", "c")])
def test_a_renamed_subscription_is_its_own(renamed, name, channel):
    with Connection(renamed.a.port) as one, Connection(renamed.a.port) as other:
        kind = {"listen": b"subscribe", "plisten": b"psubscribe", "slisten": b"ssubscribe"}[name]
        assert one.call(name, channel) == [kind, channel.encode(), 1]
        for i in range(5):
            assert other.call("ECHO", i) == str(i).encode()
        assert renamed.server.call("SPUBLISH" if name[0] == "s" else "PUBLISH", "c", "hello") == 1
        assert one.read()[-1] == b"hello"
    alike(renamed, ("listen", "a", "b"), ("deaf",), ("ECHO", "x"), read_more=2)


@pytest.mark.needs_proxy
def test_a_renamed_select_is_the_sessions_alone(renamed):
    with Connection(renamed.a.port) as one, Connection(renamed.a.port) as other:
        assert one.call("choose", 1) == b"OK"
        assert other.call("put", "k", "in 0") == b"OK"
        assert one.call("put", "k", "in 1") == b"OK"
        assert (one.call("GET", "k"), other.call("GET", "k")) == (b"in 1", b"in 0")
        assert renamed.server.call("GET", "k") == b"in 0"
        assert (one.call("GET", "k"), other.call("GET", "k")) == (b"in 1", b"in 0")
    alike(renamed, ("choose", "99"), ("choose", "x"), ("choose",), ("ECHO", "x"))


@pytest.mark.needs_proxy
def test_a_renamed_swapdb_is_heeded_at_once(renamed):
    with Connection(renamed.a.port) as one, Connection(renamed.a.port) as other:
        one.pipeline([("put", "k", "0"), ("choose", "1"), ("put", "k", "1")])
        for _ in range(3):
            assert (one.call("GET", "k"), other.call("GET", "k")) == (b"1", b"0")
        assert other.call("trade", "0", "1") == b"OK"
        assert (one.call("GET", "k"), other.call("GET", "k")) == (b"0", b"1")
        one.pipeline([("choose", "0"), ("empty",)])
        assert other.call("GET", "k") is None, "FLUSHALL by its new name"


@pytest.mark.needs_proxy
def test_a_renamed_blocking_command_holds_nobody_up(renamed):
    with Connection(renamed.a.port) as one, Connection(renamed.a.port, timeout=2) as other:
        one.send("waitpop", "list", "5")
        for i in range(5):
            assert other.call("ECHO", i) == str(i).encode()
        assert other.call("RPUSH", "list", "x") == 1
        assert one.read() == [b"list", b"x"]
        assert one.call("await", "0", "10") == 0


@pytest.mark.needs_proxy
@pytest.mark.parametrize("kind", KINDS)
def test_a_renamed_client_is_about_the_session(shared, kind):
    renamed = fresh(shared(kind, LOGINS), "FLUSHALL")
    with Connection(renamed.a.port) as one, Connection(renamed.a.port) as other:
        assert one.call("xclient", "SETNAME", "me") == b"OK"
        assert other.call("xclient", "GETNAME") is None
        assert one.call("xclient", "GETNAME") == b"me"
        assert one.call("xclient", "ID") != other.call("xclient", "ID")
        assert b"name=me" in other.call("xclient", "LIST")
        assert one.call("xclient", "KILL", "ID", other.call("xclient", "ID")) == 1
        with pytest.raises(Closed):
            other.call("ECHO", "x")
    with Connection(renamed.a.port) as one, Connection(renamed.a.port) as other:
        one.send("xclient", "REPLY", "SKIP")
        one.send("ECHO", "skipped")
        assert other.call("ECHO", "heard") == b"heard"
        assert one.call("ECHO", "after") == b"after"
        assert other.call("afresh") == b"RESET"
        assert one.call("ECHO", "after") == b"after"


@pytest.mark.needs_proxy
def test_scripts_and_writes_by_other_names(renamed):
    with Connection(renamed.a.port) as one, Connection(renamed.b.port) as other:
        for name, read, value in (("put", "GET", b"v"), ("put", "length", 1)):
            one.call(name, "k", "v")
            assert [other.call(read, "k") for _ in range(3)] == [value] * 3
        assert one.call("run", "return redis.call('put', KEYS[1], ARGV[1])", 1, "k", "long") == b"OK"
        assert (one.call("GET", "k"), one.call("length", "k")) == (b"long", 4)
        assert one.call("run", "return redis.call('put', 'undeclared', 'x')", 0) == b"OK"
        assert one.call("run", "return redis.call('empty')", 0) == b"OK"
        assert (one.call("GET", "k"), one.call("length", "k")) == (None, 0)
        one.call("put", "k", "v")
        assert one.call("GET", "k") == b"v"
        assert one.call("erase", "k") == 1
        assert (one.call("GET", "k"), one.call("length", "k")) == (None, 0)


@pytest.mark.needs_proxy
@pytest.mark.parametrize("kind", KINDS)
def test_get_renamed_is_not_answered_from_the_cache_by_its_old_name(shared, kind):
    site = fresh(shared(kind, READS), "FLUSHALL")
    with Connection(site.a.port) as conn:
        conn.call("SET", "k", "v")
        hits = site.a.stats()["hits"]
        reads = [("fetch", "k"), ("MGET", "k"), ("fetch", "k")]
        wait_until(lambda: conn.pipeline(reads) == [b"v", [b"v"], b"v"] and site.a.stats()["hits"] > hits, "it is cached as fetch")
        assert b"unknown" in str(conn.pipeline([("GET", "k")])[0]).encode()
        site.server.call("SET", "k", "w")
        wait_until(lambda: conn.call("fetch", "k") == b"w", "what others write is reported")
    alike(site, ("GET", "k"), ("get", "k"), ("GET",), ("trans",), ("MULTI",), ("GET", "k"), ("EXEC",))


@pytest.mark.needs_proxy
@pytest.mark.parametrize("kind", KINDS)
def test_logins_by_other_names(shared, kind):
    site = fresh(shared(kind, LOGINS), "FLUSHALL")
    site.server.call("ACL", "SETUSER", "bob", "on", ">secret", "+@all", "~*")
    with Connection(site.a.port) as one, Connection(site.a.port) as other:
        assert one.call("login", "bob", "secret") == b"OK"
        assert (one.call("ACL", "WHOAMI"), other.call("ACL", "WHOAMI")) == (b"bob", b"default")
        with pytest.raises(ReplyError, match="WRONGPASS"):
            one.call("login", "bob", "wrong")
        assert one.call("hola", "3")[b"proto"] == 3
        assert other.call("ECHO", "x") == b"x"
        assert one.call("GET", "none") is None
        assert one.call("bye") == b"OK"
        with pytest.raises(Closed):
            one.call("ECHO", "x")
        assert other.call("ECHO", "x") == b"x"
    alike(site, ("HELLO", "3"), ("AUTH", "x"), ("QUIT",), ("ECHO", "x"))


@pytest.mark.needs_proxy
def test_random_names_cost_no_connections(renamed):
    before = renamed.a.stats()
    with Connection(renamed.a.port) as conn:
        for i in range(300):
            reply = conn.pipeline([(f"random{i}", "a")])[0]
            assert "unknown command" in str(reply)
        connections = len(renamed.server.call("CLIENT", "LIST").splitlines())
        asked = renamed.a.stats()["names_asked"]
        for _ in range(50):
            conn.pipeline([("random1", "a"), ("RANDOM2", "b")])
    after = renamed.a.stats()
    assert after["dedicated"] == before["dedicated"]
    assert after["names_asked"] == asked, "a name is asked about once"
    assert after["names_unknowable"] == before["names_unknowable"]
    assert len(renamed.server.call("CLIENT", "LIST").splitlines()) <= connections


@pytest.mark.needs_proxy
@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_cannot_be_known_has_a_connection_of_its_own(lab, kind):
    """COMMAND is refused, and `rename-command MONITOR "a|b"` is asked about in vain."""
    site = lab.site(kind, server_options=options({"MONITOR": "watchall", "MULTI": "a|b", "COMMAND": ""}), settings=SETTINGS)
    for name in ("watchall", "a|b"):
        with Connection(site.a.port) as one, Connection(site.a.port) as other:
            assert one.call(name) == b"OK"
            for i in range(5):
                assert other.call("SET", "k", i) == b"OK"
                assert site.server.call("GET", "k") == str(i).encode()
                assert other.call("GET", "k") == str(i).encode()
    assert site.a.stats()["names_unknowable"] == 2


@pytest.mark.needs_proxy
def test_what_a_session_with_an_unknown_command_writes_is_seen_by_all(lab):
    site = lab.site("redis", server_options=options({"SET": "put|it"}), settings=SETTINGS)
    with Connection(site.a.port) as one, Connection(site.a.port) as other:
        for i in range(50):
            assert one.call("put|it", "k", i) == b"OK"
            assert other.call("GET", "k") == str(i).encode()
