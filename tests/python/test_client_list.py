"""What a client is told of itself and of others, against the server itself and through a proxy."""

import re
import time

import pytest

from processes import wait_until
from wire import Closed, Connection, ReplyError

pytestmark = pytest.mark.needs_proxy


@pytest.fixture(params=["bare", "through"])
def port(request, site):
    return site.a.port if request.param == "through" else site.server.port


def fields(line):
    return dict(field.split("=", 1) for field in line.split(" "))


def listed(conn, *filters):
    """CLIENT LIST's lines of clients that have a name, by name."""
    lines = map(fields, conn.call("CLIENT", "LIST", *filters).decode().splitlines())
    return {line["name"]: line for line in lines if line["name"] and not line["name"].startswith("nearside-")}


def named(port, name, **options):
    conn = Connection(port, **options)
    conn.call("CLIENT", "SETNAME", name)
    return conn


def is_gone(conn):
    try:
        conn.call("PING")
    except (Closed, ConnectionError):
        return True
    return False


@pytest.mark.parametrize(("words", "expected"), [
    (("BLPOP", "none", 5), {"flags": "b", "cmd": "blpop"}),
    (("SUBSCRIBE", "news", "more"), {"flags": "P", "cmd": "subscribe", "sub": "2"}),
    (("PSUBSCRIBE", "news*"), {"flags": "P", "cmd": "psubscribe", "psub": "1"}),
    (("SSUBSCRIBE", "news"), {"flags": "P", "cmd": "ssubscribe", "ssub": "1"}),
    (("MULTI",), {"flags": "x", "cmd": "multi", "multi": "0"}),
    (("GET", "key"), {"flags": "N", "cmd": "get", "multi": "-1", "redir": "-1", "user": "default", "db": "0", "resp": "2"}),
    (("SELECT", 3), {"flags": "N", "cmd": "select", "db": "3"}),
    (("HELLO", 3), {"flags": "N", "cmd": "hello", "resp": "3"}),
    (("MONITOR",), {"flags": "O", "cmd": "monitor"}),
    (("CLIENT", "TRACKING", "ON"), {"flags": "t", "cmd": "client|tracking", "redir": "0"}),
    (("CLIENT", "NO-EVICT", "ON"), {"flags": "e", "cmd": "client|no-evict"}),
], ids=lambda value: "-".join(map(str, value)).lower() if isinstance(value, tuple) else "")
def test_client_list_says_what_a_client_does(port, words, expected):
    with named(port, "watched") as conn, Connection(port) as other:
        conn.send(*words)
        # a moment to get there; a difference is one that stays
        try:
            wait_until(lambda: expected.items() <= listed(other)["watched"].items(), "", timeout=2)
        except TimeoutError:
            seen = listed(other)["watched"]
            assert {key: seen[key] for key in expected} == expected


def test_the_lines_have_the_servers_own_fields(port, site):
    with Connection(port) as conn:
        own = f"id={conn.call('CLIENT', 'ID')} "
        line = next(line for line in conn.call("CLIENT", "LIST").decode().splitlines() if line.startswith(own))
        info = conn.call("CLIENT", "INFO").decode().rstrip("\n")
    with Connection(site.server.port) as bare:
        servers = bare.call("CLIENT", "INFO").decode()
    assert list(fields(line)) == list(fields(servers)) == list(fields(info))
    assert fields(info)["cmd"] == "client|info" and fields(line)["cmd"] == "client|list"


def test_client_list_by_type_and_id(port):
    with named(port, "subscriber") as subscriber, named(port, "normal") as normal:
        subscriber.call("SUBSCRIBE", "news")
        assert set(listed(normal, "TYPE", "pubsub")) == {"subscriber"}
        assert set(listed(normal, "TYPE", "NORMAL")) == {"normal"}
        assert not listed(normal, "TYPE", "replica")
        ids = [normal.call("CLIENT", "ID"), 99_999_999]
        assert set(listed(normal, "ID", *ids)) == {"normal"}
        for wrong in (("TYPE", "nosuch"), ("ID", "x"), ("ID",), ("NOSUCH", 1)):
            with pytest.raises(ReplyError):
                normal.call("CLIENT", "LIST", *wrong)


def test_info_counts_the_clients_that_are_listed(port):
    with Connection(port) as conn, named(port, "two"), named(port, "three"):
        for section in ((), ("clients",), ("everything",)):
            # who has just gone may still be counted
            def agrees(section=section):
                count = int(re.search(rb"connected_clients:(\d+)", conn.call("INFO", *section))[1])
                return count == len(conn.call("CLIENT", "LIST").splitlines()) >= 3

            wait_until(agrees, f"INFO {section} and CLIENT LIST agree", timeout=2)


@pytest.mark.parametrize("by", ["id", "addr", "laddr", "type", "old form"])
def test_client_kill_by_each_filter(port, by):
    with named(port, "victim") as victim, named(port, "killer") as killer, named(port, "bystander") as bystander:
        victim.call("SUBSCRIBE", "news")
        seen = listed(killer)["victim"]
        filters = {"id": ("ID", seen["id"]), "addr": ("ADDR", seen["addr"]), "type": ("TYPE", "pubsub", "ADDR", seen["addr"]),
                   "laddr": ("LADDR", seen["laddr"], "ID", seen["id"]), "old form": (seen["addr"],)}[by]
        assert killer.call("CLIENT", "KILL", *filters) in (1, b"OK")
        assert killer.call("PUBLISH", "news", "x") == 0
        assert is_gone(victim) and bystander.call("PING") == b"PONG"
        assert "victim" not in listed(killer)


def test_client_kill_spares_whom_it_does_not_mean(port):
    with named(port, "one") as one, named(port, "two") as two:
        own = listed(one)["one"]
        assert one.call("CLIENT", "KILL", "ID", own["id"]) == 0, "SKIPME is yes"
        assert one.call("CLIENT", "KILL", "TYPE", "normal", "ADDR", "1.2.3.4:5") == 0
        assert one.call("CLIENT", "KILL", "USER", "default", "TYPE", "pubsub", "ID", listed(two)["two"]["id"]) == 0
        for wrong in (("ID", "x"), ("ID", 0), ("TYPE", "nosuch"), ("USER", "nobody"), ("SKIPME", "maybe"), ("ID", 1, "x"), ("1.2.3.4:5",)):
            with pytest.raises(ReplyError):
                one.call("CLIENT", "KILL", *wrong)
        assert one.call("PING") == two.call("PING") == b"PONG"
        assert one.call("CLIENT", "KILL", "ID", own["id"], "SKIPME", "no") == 1
        assert is_gone(one) and two.call("PING") == b"PONG"


def test_client_kill_by_age_where_the_server_knows_it(port):
    with named(port, "old") as old, named(port, "killer") as killer:
        try:
            killed = killer.call("CLIENT", "KILL", "ID", listed(killer)["old"]["id"], "MAXAGE", 1000)
        except ReplyError as error:
            assert "syntax" in str(error), "Redis 7.0 has no MAXAGE"
            return
        assert killed == 0
        wait_until(lambda: int(listed(killer)["old"]["age"]) >= 1, "a second old", timeout=3)
        assert killer.call("CLIENT", "KILL", "ID", listed(killer)["old"]["id"], "MAXAGE", 1) == 1
        assert is_gone(old)


def test_rights_to_list_and_to_kill_are_the_servers_to_give(port, site):
    site.server.call("ACL", "SETUSER", "guest", "reset", "on", "nopass", "+get", "+client|id", "allkeys")
    with Connection(port) as guest, named(port, "other") as other:
        guest.call("AUTH", "guest", "any")
        for words in (("LIST",), ("KILL", "ID", listed(other)["other"]["id"]), ("KILL", listed(other)["other"]["addr"]), ("INFO",)):
            with pytest.raises(ReplyError, match="NOPERM"):
                guest.call("CLIENT", *words)
        assert other.call("PING") == b"PONG" and isinstance(guest.call("CLIENT", "ID"), int)
    site.server.call("ACL", "DELUSER", "guest")


OF_ITSELF = (
    ("SETNAME", "me"), ("SETNAME", "two words"), ("GETNAME",), ("GETREDIR",), ("TRACKINGINFO",),
    ("SETINFO", "lib-name", "mine"), ("SETINFO", "LIB-VER", "1.0"), ("SETINFO", "lib-ver", "a b"), ("SETINFO", "lib-age", "1"),
)  # fmt: skip


@pytest.mark.parametrize("rights", [(), ("+client|setname", "+client|getname"), ("+client",)], ids=["none", "some", "all"])
def test_what_a_client_says_of_itself_wants_the_servers_leave(port, site, rights):
    def said(port):
        site.server.call("ACL", "LOG", "RESET")
        with Connection(port) as guest:
            guest.call("AUTH", "guest", "any")
            replies = [str(guest.pipeline([("CLIENT", *words)])[0]) for words in OF_ITSELF]
            own = guest.pipeline([("CLIENT", "ID")])[0]
        replies += ["a number" if isinstance(own, int) else str(own)]
        return replies, sorted(entry[entry.index(b"object") + 1] for entry in site.server.call("ACL", "LOG"))

    site.server.call("ACL", "SETUSER", "guest", "reset", "on", "nopass", "+get", "allkeys", *rights)
    assert said(port) == said(site.server.port)
    lanes = [line for line in site.server.call("CLIENT", "LIST").decode().splitlines() if "user=guest" in line]
    assert bool(lanes) == (port != site.server.port) and all("mine" not in line and "1.0" not in line for line in lanes)
    # the lane, and the connection on which the login was accepted
    assert all(any(f"name=nearside-{role} " in line for role in ("lane", "dedicated")) for line in lanes)
    site.server.call("ACL", "DELUSER", "guest")


def test_a_session_stays_in_its_database_whoever_it_becomes(port, site):
    site.server.call("ACL", "SETUSER", "guest", "reset", "on", "nopass", "+get", "+set", "allkeys")
    with Connection(port, db=9) as conn, Connection(port) as other:
        conn.call("SET", "where", "nine")
        conn.call("AUTH", "guest", "any")
        assert conn.call("GET", "where") == b"nine"
        for words in (("SELECT", 9), ("SELECT", 0)):
            with pytest.raises(ReplyError, match="NOPERM"):
                conn.call(*words)
        other.call("AUTH", "guest", "any")
        with pytest.raises(ReplyError, match="NOPERM"):
            other.call("SELECT", 9)
        assert other.call("GET", "where") is None
    site.server.call("ACL", "DELUSER", "guest")


def test_monitor_does_not_feed_itself(port, site):
    with Connection(port) as conn:
        conn.call("MONITOR")
        before = site.server.calls("ping")
        time.sleep(1)
        # two proxies' clocks may tick meanwhile
        assert site.server.calls("ping") - before < 1000


def test_monitor_shows_what_clients_say_and_nothing_else(site):
    with Connection(site.a.port) as monitor, Connection(site.a.port) as conn:
        monitor.call("MONITOR")
        conn.call("SET", "k", "v")
        conn.call("GET", "k")
        conn.call("MULTI")
        conn.call("PING")
        conn.call("EXEC")
        conn.call("EVAL", "return redis.call('get', KEYS[1])", 1, "k")
        time.sleep(0.3)
        conn.call("ECHO", "end")
        said = []
        while not said or said[-1] != '"ECHO" "end"':
            said.append(monitor.read().decode().split("] ", 1)[1])
    said = [words for words in said if not words.startswith('"HELLO"')]
    assert said[:2] == ['"SET" "k" "v"', '"GET" "k"']
    assert sorted(said[2:5]) == ['"EXEC"', '"MULTI"', '"PING"']
    assert said[5].startswith('"EVAL"') and said[6:] == ['"get" "k"', '"ECHO" "end"']


def test_who_was_killed_hears_nothing_more(port):
    counted = 0
    with Connection(port) as killer:
        for turn in range(1000):
            with Connection(port, protocol=2 + turn % 2) as subscriber:
                client = subscriber.call("CLIENT", "ID")
                subscriber.call("SUBSCRIBE", f"news {turn}")
                assert killer.call("CLIENT", "KILL", "ID", client) == 1
                counted += killer.call("PUBLISH", f"news {turn}", "x")
    assert counted == 0
