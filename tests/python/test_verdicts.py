"""A command that the server refuses takes no effect in the proxy: local effects follow the server's verdict."""

import itertools

import pytest

from conftest import Lab
from processes import wait_until
from wire import Connection, ReplyError

pytestmark = pytest.mark.needs_proxy

NOBODY = "nobody"


RULES = ["-multi", "-discard", "-exec", "-watch", "-unwatch", "-monitor", "+@all"]


@pytest.fixture(scope="module", params=["redis", "valkey"])
def site(request, tmp_path_factory):
    """A server and proxies over it, with all users there before the proxies are: no change of the ACL flushes during the tests."""
    lab = Lab(tmp_path_factory.mktemp("verdicts"))
    server = lab.server(request.param)
    limited = ("resetkeys", "~x:*", "resetchannels", "-@all", "+get")
    server.call("ACL", "SETUSER", NOBODY, "on", ">pw", *limited)
    for rule in RULES:
        server.call("ACL", "SETUSER", "user" + rule, "on", ">pw", "~*", "&*", "+@all", rule)
    yield Site(server, lab.proxy(server.port, settings={"audit_one_in": 0}))
    lab.close()


class Site:
    def __init__(self, server, proxy):
        self.server, self.a = server, proxy


@pytest.fixture(autouse=True)
def nothing_paused(site):
    yield
    site.server.call("CLIENT", "UNPAUSE")
    with connect(site.a) as conn:
        conn.call("CLIENT", "UNPAUSE")


@pytest.fixture
def refused(site):
    """A connection through the proxy of a user who may read `x:*` and nothing else."""
    with login(site.a) as conn:
        yield conn


def login(proxy, user=NOBODY):
    conn = Connection(proxy.port)
    conn.call("AUTH", user, "pw")
    return conn


def connect(proxy):
    return Connection(proxy.port)


def is_hit(proxy, conn, key):
    """Whether the proxy answers GET of this key from its cache."""
    before = proxy.stats()["hits"]
    conn.call("GET", key)
    return proxy.stats()["hits"] > before


VALUES = itertools.count()


def cached(site, conn, key):
    """Has the proxy cache a new value of this key, and no report of an earlier change on its way; the value."""
    value = str(next(VALUES)).encode()
    site.server.call("SET", key, value)
    wait_until(lambda: conn.call("GET", key) == value and is_hit(site.a, conn, key), f"{key} is answered from the cache")
    return value


# --- pauses ---

PAUSES = {
    "alone": [("CLIENT", "PAUSE", "1000000000000", "ALL")],
    "in a transaction that is discarded": [("MULTI",), ("CLIENT", "PAUSE", "1000000000000"), ("DISCARD",)],
    "in a transaction that is aborted": [("MULTI",), ("CLIENT", "PAUSE", "1000000000000"), ("EXEC",)],
}


@pytest.mark.parametrize("commands", PAUSES.values(), ids=PAUSES)
def test_a_refused_pause_pauses_nothing(site, refused, commands):
    with connect(site.a) as reader:
        cached(site, reader, "x:hot")
        replies = refused.pipeline(commands)
        assert any(isinstance(reply, ReplyError) for reply in replies), replies
        wait_until(lambda: is_hit(site.a, reader, "x:hot"), "hits go on")


NO_PAUSES = {
    "discarded": [("MULTI",), ("CLIENT", "PAUSE", "1000000000000"), ("DISCARD",)],
    "aborted": [("MULTI",), ("CLIENT", "PAUSE", "1000000000000"), ("NOSUCHCOMMAND",), ("EXEC",)],
    "watch failed": [
        ("WATCH", "x:w"), ("SET", "x:w", "2"), ("MULTI",), ("CLIENT", "PAUSE", "1000000000000"), ("EXEC",),
    ],
    "argument in error": [("CLIENT", "PAUSE", "1000000000000", "NOSUCH")],
    "argument in error, in a transaction": [
        ("MULTI",), ("CLIENT", "PAUSE", "1000000000000", "NOSUCH"), ("EXEC",),
    ],
}


@pytest.mark.parametrize("commands", NO_PAUSES.values(), ids=NO_PAUSES)
def test_a_pause_that_does_not_happen_pauses_nothing(site, commands):
    with connect(site.a) as reader, connect(site.a) as admin:
        cached(site, reader, "x:hot")
        admin.pipeline(commands)
        assert is_hit(site.a, reader, "x:hot") or is_hit(site.a, reader, "x:hot")


def test_a_pause_that_the_server_ends_is_over(site):
    with connect(site.a) as reader, connect(site.a) as admin:
        cached(site, reader, "x:hot")
        for commands in ([("CLIENT", "PAUSE", "1000000000000", "WRITE")],
                         [("MULTI",), ("CLIENT", "PAUSE", "1000000000000", "WRITE"), ("EXEC",)]):
            admin.pipeline(commands)
            assert not is_hit(site.a, reader, "x:hot"), "reads keep out of the way while clients are paused"
            site.server.call("CLIENT", "UNPAUSE")
            wait_until(lambda: is_hit(site.a, reader, "x:hot"), "an UNPAUSE past the proxy is heeded", timeout=4)
            admin.pipeline(commands)
            assert not is_hit(site.a, reader, "x:hot")
            admin.pipeline([("MULTI",), ("CLIENT", "UNPAUSE"), ("EXEC",)])
            assert is_hit(site.a, reader, "x:hot") or is_hit(site.a, reader, "x:hot"), "so is one in a transaction"


# --- the cache ---

FLUSHES = [
    ("FLUSHALL",), ("FLUSHDB",), ("FLUSHALL", "x"), ("SWAPDB", "0", "1"), ("SHUTDOWN", "x"), ("DEBUG", "x"),
    ("FAILOVER",), ("FAILOVER", "ABORT"), ("REPLICAOF", "NO", "ONE"), ("SLAVEOF", "NO", "ONE"), ("CLUSTER", "RESET"),
    ("CLUSTER", "FLUSHSLOTS"), ("DEBUG", "RELOAD"),
]
# Refused by any user's own mistake.
MISTAKES = [
    ("FLUSHALL", "x"), ("FLUSHDB", "x"), ("SWAPDB", "0"), ("SWAPDB", "0", "x"), ("SWAPDB", "0", "9999"),
    ("SHUTDOWN", "x"), ("DEBUG", "x"), ("FAILOVER", "x"), ("FAILOVER", "ABORT"), ("REPLICAOF", "NO"), ("REPLICAOF", "h", "x"),
    ("CLUSTER", "RESET"), ("CLUSTER", "FLUSHSLOTS"),
]


def everywhere(commands):
    """Each alone, and each in a transaction."""
    alone = [[command] for command in commands]
    return alone + [[("MULTI",), command, ("EXEC",)] for command in commands]


def still_cached(site, reader, speaker, sequences):
    """Whether the cache survives all of them; the command that emptied it."""
    for commands in sequences:
        cached(site, reader, "x:hot")
        before = site.a.stats()["flushes_command"]
        replies = speaker.pipeline(commands)
        assert any("ERR" in str(r) or "NOPERM" in str(r) or "EXECABORT" in str(r) for r in replies), (commands, replies)
        assert site.a.stats()["flushes_command"] == before, (commands, replies)


def test_a_refused_flush_empties_nothing(site, refused):
    with connect(site.a) as reader:
        still_cached(site, reader, refused, everywhere(FLUSHES))


def test_a_flush_in_error_empties_nothing(site):
    with connect(site.a) as reader, connect(site.a) as speaker:
        still_cached(site, reader, speaker, everywhere(MISTAKES))


def test_a_flush_that_is_done_empties_everything(site):
    with connect(site.a) as reader, connect(site.a) as speaker:
        for commands in everywhere([("FLUSHALL",), ("FLUSHDB", "ASYNC"), ("SWAPDB", "0", "1")]):
            cached(site, reader, "x:hot")
            before = site.a.stats()["flushes_command"]
            speaker.pipeline(commands)
            assert site.a.stats()["flushes_command"] > before, commands


def test_a_swapdb_that_passes_unlooked_at_is_seen_at_once_and_a_refused_one_flushes_nothing(site):
    """Behind CLIENT REPLY a session's bytes pass unlooked at; nothing announces SWAPDB."""
    with connect(site.a) as reader, connect(site.a) as admin, login(site.a) as speaker:
        admin.pipeline([("CLIENT", "REPLY", "ON")])
        for round in range(10):
            cached(site, reader, "x:hot")
            site.server.call("SET", "x:hot", f"v{round}")
            cached(site, reader, "x:hot")
            assert admin.call("SWAPDB", "0", "1") == b"OK"
            expected = site.server.call("GET", "x:hot")
            assert reader.call("GET", "x:hot") == expected, round
        speaker.pipeline([("CLIENT", "REPLY", "ON"), ("SWAPDB", "0", "1")])
        wait_until(lambda: is_hit(site.a, reader, "x:hot"), "hits")
        before = flushes(site)
        for _ in range(5):
            assert all(isinstance(r, ReplyError) for r in speaker.pipeline([("SWAPDB", "0", "1"), ("PING",)]))
        assert flushes(site) == before


def flushes(site):
    stats = site.a.stats()
    return stats["flushes_command"], stats["flushes_swapdb"]


KEY_COMMANDS = [
    ("SET", "x:hot", "2"), ("DEL", "x:hot"), ("INCR", "x:hot"), ("MSET", "x:hot", "2", "x:other", "3"), ("EXPIRE", "x:hot", "1"),
    ("RENAME", "x:hot", "x:other"), ("GETDEL", "x:hot"), ("BLPOP", "x:hot", "0.01"), ("COPY", "x:hot", "x:other"),
    ("EVAL", "return redis.call('set', KEYS[1], 2)", "1", "x:hot"), ("NOSUCHCOMMAND", "x:hot"), ("SET", "x:hot"),
    ("STRLEN", "x:hot"), ("GETRANGE", "x:hot", "0", "0"),
]


def test_a_refused_write_drops_no_key(site, refused):
    with connect(site.a) as reader:
        for commands in everywhere(KEY_COMMANDS):
            cached(site, reader, "x:hot")
            before = site.a.stats()["dropped"]
            refused.pipeline(commands)
            assert site.a.stats()["dropped"] == before, commands
            assert is_hit(site.a, reader, "x:hot"), commands


def test_a_write_that_fails_half_way_is_seen_at_once(site):
    """An error is no proof that nothing was done: of a script, or of one command of a transaction."""
    script = "redis.call('set', KEYS[1], ARGV[1]); return redis.error_reply('NOPERM no permissions')"
    with connect(site.a) as reader, connect(site.a) as writer:
        for round in range(30):
            cached(site, reader, "x:hot")
            value = str(round)
            if round % 2:
                writer.pipeline([("EVAL", script, "1", "x:hot", value)])
            else:
                writer.pipeline([("MULTI",), ("SET", "x:hot", value), ("LPUSH", "x:hot", "x"), ("EXEC",)])
            assert reader.call("GET", "x:hot") == value.encode()


# --- what the session believes of its own connection ---


@pytest.mark.parametrize("rule, opening", [
    ("-multi", [("MULTI",)]),
    ("-discard", [("MULTI",), ("DISCARD",)]),
    ("-exec", [("MULTI",), ("EXEC",)]),
    ("-watch", [("WATCH", "x:w"), ("MULTI",), ("DISCARD",)]),
    ("-monitor", [("MONITOR",)]),
    ("+@all", [("MULTI",), ("EXEC", "x")]),
    ("+@all", [("MULTI",), ("DISCARD", "x"), ("DISCARD",)]),
])
@pytest.mark.parametrize("one_write", [False, True])
def test_a_write_behind_a_refused_transaction_command_is_seen_at_once(site, rule, opening, one_write):
    """The server is not in the state that the refused command would have brought: what follows is done, or queued, as the server says."""
    with connect(site.a) as reader, login(site.a, "user" + rule) as writer:
        for round in range(20):
            before = cached(site, reader, "x:hot")
            write = ("SET", "x:hot", f"v{round}")
            if one_write:
                last = writer.pipeline([*opening, write])[-1]
            else:
                writer.pipeline(opening)
                last = writer.pipeline([write])[0]
            if last == b"QUEUED":
                assert reader.call("GET", "x:hot") == before
                writer.pipeline([("EXEC",)])
                writer.close()
                writer = login(site.a, "user" + rule)
                continue
            assert last == b"OK"
            assert reader.call("GET", "x:hot") == f"v{round}".encode(), (round, opening)


@pytest.mark.parametrize("rule, opening", [
    ("-discard", [("MULTI",), ("DISCARD",)]),
    ("-unwatch", [("WATCH", "x:w"), ("UNWATCH",)]),
])
def test_a_connection_whose_state_did_not_end_is_lent_to_nobody_else(site, rule, opening):
    with login(site.a, "user" + rule) as first:
        first.pipeline(opening)
        others = [login(site.a, "user" + rule) for _ in range(8)]
        site.server.call("SET", "x:w", "changed")
        for other in others:
            # A connection of its own, for each of these.
            replies = other.pipeline([("BLPOP", "x:none", "0.01"), ("MULTI",), ("SET", "x:k", "1"), ("EXEC",)])
            assert replies == [None, b"OK", b"QUEUED", [b"OK"]], replies
            other.close()
