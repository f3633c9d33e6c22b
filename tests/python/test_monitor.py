"""MONITOR through a proxy shows what clients say and nothing that proxies say for themselves; the server's own records (SLOWLOG, ACL LOG,
MONITOR) show proxies' commands as any client spells them."""

import re
import threading

import pytest

import processes
from processes import wait_until
from test_unix import UnixConnection, place  # noqa: F401 (a fixture)
from wire import Connection, ReplyError

pytestmark = pytest.mark.needs_proxy
# Before Redis 7.0 MONITOR shows no CLIENT CACHING, by which the questions behind it are known.
KINDS = [kind for kind in processes.KINDS if kind != "redis6.2"]
# The first letter small, the others not: as proxies once said their commands.
ODD = re.compile(rb'"[a-z][A-Z]+"')
LINE = re.compile(rb'\d+\.\d+ \[\d+ ([^"]+)\] (.*)', re.S)
# Redis 7.0 has no fields with a time to live.
HAVE_FIELDS = ("valkey", "redis8.2")


class Monitor:
    """Lines of MONITOR, in order."""

    def __init__(self, conn):
        self.conn = conn
        assert conn.call("MONITOR") == b"OK"

    def until(self, end):
        """What was said before this word, as (address, command)."""
        said = []
        while True:
            line = LINE.fullmatch(self.conn.read())
            if end.encode() in line[2]:
                return said
            said.append((line[1], line[2]))

    def commands_until(self, end):
        return [command.decode() for _, command in self.until(end)]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=KINDS)
def site(request, lab):
    return lab.site(request.param, settings={"audit_one_in": 0})


def shown(*words):
    return " ".join(f'"{word}"' for word in words)


def is_cached(conn, server, *words):
    """Reads until a read no longer reaches the server."""
    before = server.calls(words[0].lower())
    conn.call(*words)
    return server.calls(words[0].lower()) == before


def lanes_are_armed(site):
    for proxy in (site.a, site.b):
        with Connection(proxy.port) as conn:
            wait_until(lambda: is_cached(conn, site.server, "GET", "armed"), "a hit")


# Commands that proxies say for themselves too, as a client may say them. Each is one line.
SAME_WORDS = [
    ("PING",), ("PING", "x"), ("PTTL", "k"), ("PTTL", "k"), ("INFO", "commandstats"), ("INFO", "keyspace"), ("INFO", "memory"), ("TIME",),
    ("COMMAND", "INFO", "get"), ("TOUCH", "k"),
]  # fmt: skip
# These change what the connection is: a client says them on one of its own.
TRACKING = [
    ("CLIENT", "TRACKING", "ON", "OPTIN"), ("CLIENT", "CACHING", "YES"), ("GET", "k"), ("PTTL", "k"), ("CLIENT", "CACHING", "YES"),
    ("PTTL", "k"), ("PING",), ("INFO", "keyspace"),
]  # fmt: skip


def test_every_clients_commands_are_shown_and_no_proxys(site):
    lanes_are_armed(site)
    with (
        Connection(site.a.port) as watcher, Connection(site.a.port) as here, Connection(site.b.port) as there,
        Connection(site.server.port) as direct, Connection(site.a.port, protocol=3) as tracker,
    ):  # fmt: skip
        monitor = Monitor(watcher)
        said = []

        def say(conn, *words):
            conn.call(*words)
            said.append(shown(*words))

        for n in range(3):
            for conn in (here, there, direct):
                say(conn, "SET", "k", n)
                say(conn, "GET", f"new{n}{id(conn)}")
                for words in SAME_WORDS:
                    say(conn, *words)
                say(conn, "MGET", f"a{n}{id(conn)}", f"b{n}{id(conn)}", f"a{n}{id(conn)}")
                say(conn, "PTTL", f"a{n}{id(conn)}")
                say(conn, "HSET", f"h{n}{id(conn)}", "f", "v")
                say(conn, "HGETALL", f"h{n}{id(conn)}")
                say(conn, "INFO", "keyspace")
                say(conn, "HGET", f"h{n}{id(conn)}", "f")
                say(conn, "EVAL", "return 1", 0)
        for conn in (direct, tracker):
            for words in TRACKING:
                say(conn, *words)
            say(conn, "CLIENT", "TRACKING", "OFF")
        direct.call("SET", "end", "1")
        assert monitor.commands_until('"end"') == said


def test_of_pipelined_questions_about_the_read_key_one_is_the_proxys(site):
    lanes_are_armed(site)
    with Connection(site.a.port) as watcher, Connection(site.a.port) as conn:
        monitor = Monitor(watcher)
        said = []
        for n in range(20):
            commands = [
                ("GET", f"k{n}"), ("PTTL", f"k{n}"), ("PTTL", f"k{n}"), ("MGET", f"m{n}", f"n{n}"), ("PTTL", f"m{n}"), ("PTTL", f"n{n}"),
                ("HGET", f"h{n}", "f"), ("PTTL", f"h{n}"), ("HGETALL", f"i{n}"), ("INFO", "keyspace"), ("PTTL", f"i{n}"), ("PTTL", f'"{n}\\ \n'),
                ("GET", f'"{n}\\ \n'), ("PTTL", f'"{n}\\ \n'), ("PING",),
            ]  # fmt: skip
            conn.pipeline(commands)
            said += [shown(*words).replace("\\", "\\\\").replace('""', '"\\"').replace("\n", "\\n") for words in commands]
        conn.call("SET", "end", "1")
        assert monitor.commands_until('"end"') == said


def test_questions_about_mortal_fields_are_the_proxys(lab, kind):
    if kind not in HAVE_FIELDS:
        pytest.skip("no fields with a time to live")
    site = lab.site(kind, settings={"audit_one_in": 0})
    lanes_are_armed(site)
    with Connection(site.a.port) as watcher, Connection(site.a.port) as conn:
        conn.call("HSET", "mortal", "f", "v")
        conn.call("HPEXPIRE", "mortal", 1_000_000, "FIELDS", 1, "f")
        monitor = Monitor(watcher)
        said = []
        for n in range(5):
            commands = [("HSET", f"h{n}", "f", "v", "g", "w")] + [(name, f"h{n}") for name in ("HLEN", "HGETALL", "HKEYS", "HVALS")]
            commands += [("HGET", f"h{n}", "f"), ("HMGET", f"h{n}", "f", "g")]
            commands += [("HKEYS", f"h{n}"), ("HPEXPIRETIME", f"h{n}", "FIELDS", 1, "f"), ("HPEXPIRETIME", f"h{n}", "FIELDS", 2, "f", "g")]
            for words in commands:
                before = site.server.calls(words[0].lower())
                conn.call(*words)
                # A hit is not shown; of the server's count of HKEYS and HPEXPIRETIME some are the proxy's.
                if words[0] not in ("HKEYS", "HPEXPIRETIME") and site.server.calls(words[0].lower()) == before:
                    continue
                said.append(shown(*words))
        conn.call("SET", "end", "1")
        heard = monitor.commands_until('"end"')
    mine = [line for line in heard if not line.startswith('"INFO"')]
    assert [line for line in mine if "HKEYS" not in line] == [line for line in said if "HKEYS" not in line]
    assert all(mine.count(line) <= said.count(line) for line in mine), "an HKEYS of the proxy's is shown"


def test_lanes_that_come_back_meanwhile(site):
    lanes_are_armed(site)
    with Connection(site.server.port) as watcher, Connection(site.a.port) as through:
        bare, monitor = Monitor(watcher), Monitor(through)
        stop = threading.Event()
        killing = threading.Thread(target=_kill_now_and_then, args=(site.server, stop))
        killing.start()
        try:
            said = [list(_reads(proxy, proxy.name, 200)) for proxy in (site.a, site.b)]
        finally:
            stop.set()
            killing.join()
        site.server.call("SET", "end", "1")
        everything, heard = bare.until('"end"'), monitor.commands_until('"end"')
    clients = [command.decode() for _, command in everything if b'"x' in command and b'"PTTL"' not in command]
    assert {line for line in heard if '"x' in line} == set(clients) == {line for lines in said for line in lines}
    assert [line for line in heard if '"x' in line] == clients, "in the server's order"
    assert all('"x' in line for line in heard if "HELLO" not in line or "nearside" in line), heard
    assert sum(b"HELLO" in command for _, command in everything) > 4, "no lane came back"
    assert not any(ODD.search(command) for _, command in everything)


def _kill_now_and_then(server, stop):
    while not stop.wait(0.05):
        server.kill_clients_named("nearside-lane")


def _reads(proxy, name, count):
    for n in range(count):
        with Connection(proxy.port) as conn:
            words = ("GET", f"x{name}{n}")
            wait_until(lambda: conn.pipeline([words])[0] is None, "a reply")
            yield shown(*words)


def test_connections_in_other_databases_and_of_other_users(site):
    lanes_are_armed(site)
    site.server.call("ACL", "SETUSER", "bob", "on", ">pw", "~*", "&*", "+@all")
    with Connection(site.a.port) as watcher, Connection(site.a.port) as conn, Connection(site.a.port) as named:
        monitor = Monitor(watcher)
        conn.call("AUTH", "bob", "pw")
        conn.call("SELECT", 3)
        conn.call("SET", "k", "1")
        conn.pipeline([("MULTI",), ("SELECT", 4), ("SET", "k", "2"), ("EXEC",)])
        named.call("CLIENT", "SETNAME", "me")
        named.pipeline([("CLIENT", "SETINFO", "LIB-NAME", "mine"), ("CLIENT", "SETINFO", "LIB-VER", "1")])
        named.call("CLIENT", "NO-EVICT", "OFF")
        named.pipeline([("CLIENT", "SETINFO", "LIB-NAME", "other"), ("SELECT", 5), ("CLIENT", "ID")])
        conn.call("SET", "end", "1")
        heard = monitor.commands_until('"end"')
    wanted = ['"AUTH" "(redacted)" "(redacted)"', '"SELECT" "3"', '"SET" "k" "1"', '"SELECT" "4"', '"SET" "k" "2"']
    # What Redis 7.0 does not know, it does not show.
    named = ['"CLIENT" "SETINFO" "LIB-NAME" "other"'] if any("SETINFO" in line for line in heard) else []
    left = [line for line in heard if line not in ('"MULTI"', '"EXEC"')]
    assert left == wanted + named + ['"SELECT" "5"', '"CLIENT" "ID"']


def assert_shown(said, heard):
    """Each command is shown, in order; others may stand between."""
    rest = iter(heard)
    assert all(line in rest for line in said), heard


def test_a_client_that_sees_no_list_of_clients_is_shown_what_it_would_miss(lab, kind):
    site = lab.site(kind, settings={"audit_one_in": 0})
    lanes_are_armed(site)
    refused = ["-client|list", "-client|kill"]
    site.server.call("ACL", "SETUSER", "default", *refused)
    with Connection(site.a.port) as watcher, Connection(site.a.port) as conn, Connection(site.server.port) as direct:
        monitor = Monitor(watcher)
        said = []
        for n in range(10):
            for each in (conn, direct):
                for words in (("GET", f"k{n}{id(each)}"), ("PTTL", f"k{n}{id(each)}"), ("PING",), ("INFO", "keyspace")):
                    each.call(*words)
                    said.append(shown(*words))
        conn.call("SET", "end", "1")
        heard = monitor.commands_until('"end"')
    assert_shown(said, heard)
    more = [line for line in heard if line not in said]
    assert all(re.match(r'"(CLIENT|INFO|TIME|COMMAND)"', line) for line in more), more
    wait_until(lambda: "does not answer CLIENT LIST" in site.a.read_log(), "a line in the log")
    site.server.call("ACL", "SETUSER", "default", *(right.replace("-", "+") for right in refused))


def test_lines_wait_until_it_is_known_whose_they_are(lab, kind):
    site = lab.site(kind, relayed=True, settings={"audit_one_in": 0})
    lanes_are_armed(site)
    with Connection(site.a.port) as watcher, Connection(site.a.port) as conn:
        site.relay.delay("monitor", 0.2)
        monitor = Monitor(watcher)
        said = [("GET", f"k{n}") for n in range(200)]
        conn.pipeline(said)
        conn.call("SET", "end", "1")
        assert monitor.commands_until('"end"') == [shown(*words) for words in said]


def test_lines_do_not_wait_for_ever(lab, kind):
    site = lab.site(kind, relayed=True, settings={"audit_one_in": 0, "connect_timeout": "500ms"})
    lanes_are_armed(site)
    with Connection(site.a.port) as watcher, Connection(site.server.port) as direct:
        site.relay.stall("monitor")
        monitor = Monitor(watcher)
        said = [("SET", f"k{n}", "v" * 10_000) for n in range(200)] + [("PTTL", "k1"), ("PING",), ("INFO", "memory")]
        direct.pipeline(said)
        direct.call("SET", "end", "1")
        heard = monitor.commands_until('"end"')
        assert [line for line in heard if not line.startswith(('"INFO"', '"TIME"'))] == [shown(*words) for words in said[:-1]]
        assert shown(*said[-1]) in heard
        assert "does not answer CLIENT LIST" in site.a.read_log()


def test_proxies_in_a_row_hide_nothing_of_clients(lab, kind):
    server = lab.server(kind)
    near = lab.proxy(server.port, "near", settings={"audit_one_in": 0})
    far = lab.proxy(near.port, "far", settings={"audit_one_in": 0})
    with Connection(far.port) as watcher, Connection(far.port) as conn, Connection(near.port) as other, Connection(server.port) as direct:
        wait_until(lambda: is_cached(conn, server, "GET", "armed"), "a hit")
        monitor = Monitor(watcher)
        said = []
        for n in range(5):
            for each in (conn, other, direct):
                for words in (("GET", f"k{n}{id(each)}"), ("PTTL", f"k{n}{id(each)}"), ("PING",), ("INFO", "memory"), ("TIME",)):
                    each.call(*words)
                    said.append(shown(*words))
        conn.call("SET", "end", "1")
        heard = monitor.commands_until('"end"')
    assert_shown(said, heard)
    assert not any(name in line for line in heard for name in ("PTTL", "CACHING") if line not in said), heard


def test_unix_sockets_show_what_cannot_be_told_and_hide_nothing(place):  # noqa: F811
    with UnixConnection(place.door) as watcher, UnixConnection(place.door) as conn:
        monitor = Monitor(watcher)
        said = []
        for n in range(10):
            for words in (("GET", f"k{n}"), ("PTTL", f"k{n}"), ("CLIENT", "ID"), ("PING",)):
                conn.call(*words)
                said.append(shown(*words))
        conn.call("SET", "end", "1")
        heard = monitor.commands_until('"end"')
    assert_shown(said, heard)
    assert not any("nearside" in line for line in heard), "a PING or a HELLO is known by itself"


def test_scripts_lines_are_shown_as_bare(site):
    with Connection(site.a.port) as through, Connection(site.server.port) as watcher, Connection(site.a.port) as conn:
        monitor, bare = Monitor(through), Monitor(watcher)
        conn.call("EVAL", "redis.call('SET', 'end', 'no'); redis.call('PTTL', 'k'); return redis.call('PING')", 0)
        conn.call("SET", "over", "1")
        lua = [line for line in monitor.until('"over"') if line[0] == b"lua"]
        assert lua == [line for line in bare.until('"over"') if line[0] == b"lua"] and len(lua) == 3


def test_the_servers_records_show_plain_words(lab, kind):
    server = lab.server(kind, options=["--slowlog-log-slower-than", "0", "--slowlog-max-len", "100000"])
    with server.connect() as watcher:
        monitor = Monitor(watcher)
        server.call("ACL", "SETUSER", "shy", "on", "nopass", "~*", "&*", "+@all", "-pttl", "-client|caching", "-ping")
        proxy = lab.proxy(server.port, "late", settings={"audit_one_in": 0})
        with Connection(proxy.port) as conn, Connection(proxy.port) as shy:
            wait_until(lambda: is_cached(conn, server, "GET", "k"), "a hit")
            for words in (("HSET", "h", "f", "v"), ("HGET", "h", "f"), ("HGETALL", "h"), ("MGET", "a", "b"), ("NOSUCH",), ("CLIENT", "SETNAME", "me"),
                          ("SELECT", 3), ("CLIENT", "NO-EVICT", "OFF")):  # fmt: skip
                conn.pipeline([words])
            shy.call("AUTH", "shy", "any")
            for _ in range(3):
                assert shy.call("GET", "k") is None
                said = shy.pipeline([("PTTL", "k"), ("CLIENT", "CACHING", "YES")])
                assert all(isinstance(reply, ReplyError) and not re.search(r"\b[a-z][A-Z]+\b", str(reply)) for reply in said)
        server.call("SET", "end", "1")
        lines = monitor.until('"end"')
    spelled = [command for _, command in lines if ODD.search(command)]
    assert not spelled
    assert {b"HELLO", b"PING", b"PTTL", b"CLIENT"} <= {command.split(b'"')[1] for _, command in lines}, "proxies have spoken"
    slow = [entry[3] for entry in server.call("SLOWLOG", "GET", -1)]
    assert [b"PTTL", b"k"] in slow and not any(re.fullmatch(rb"[a-z][A-Z]+", word) for words in slow for word in words)
    for entry in server.call("ACL", "LOG"):
        assert not any(isinstance(field, bytes) and re.search(rb"\b[a-z][A-Z]{2,}\b", field) for field in entry), entry
