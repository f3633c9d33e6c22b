"""Servers that lack or refuse something, at the start and in the midst: their word passes through, the log blames the right thing once, and
all is as it was when they have got over it. (`stand_in.py` says what they say; everything else is a real server's.)"""

import re
import time

import pytest

from processes import is_hit, wait_until
from stand_in import StandIn
from wire import Closed, Connection, ReplyError

pytestmark = pytest.mark.needs_proxy

QUICK = {"audit_one_in": 0, "max_staleness": "400ms", "heartbeat": "50ms", "reconnect_max": "200ms", "threads": 1}
LOADING = b"-LOADING Redis is loading the dataset in memory\r\n"
BUSY = b"-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.\r\n"
NOAUTH = b"-NOAUTH Authentication required.\r\n"
FULL = b"-ERR max number of clients reached\r\n" + StandIn.CLOSE
NIL = b"*-1\r\n"


@pytest.fixture
def scene(lab, request):
    """A real server, who stands in front of it, and a proxy in front of both, once it is asked for."""
    return Scene(lab, getattr(request, "param", "redis"))


class Scene:
    def __init__(self, lab, kind):
        self.server = lab.server(kind)
        self.stand_in = lab.stand_in(self.server.port)
        self._lab = lab

    def proxy(self, **options):
        self._proxy = self._lab.proxy(self.stand_in.port, settings=QUICK, **options)
        return self._proxy

    def warnings(self):
        return [line.split(" WARN ")[1] for line in self._proxy.read_log().splitlines() if " WARN " in line]

    def caches(self):
        """Whether a read is answered from the cache."""
        try:
            with Connection(self._proxy.port) as conn:
                conn.pipeline([("GET", "any")] * 2)
                return is_hit(conn, "GET", "any")
        except (ReplyError, Closed, OSError):
            return False


def to_each(reply, but=()):
    """Every request is answered so, but for these commands."""
    return lambda words, role: None if words[0].upper() in but else reply


def to_command(table, info):
    """COMMAND is answered so, and COMMAND INFO by so many of these as names were asked about."""

    def answer(words, role):
        if words[0].upper() != b"COMMAND":
            return None
        if len(words) == 1:
            return table
        if words[1].upper() == b"INFO":
            return info if info[:1] == b"-" else b"*%d\r\n%s" % (len(words) - 2, info * (len(words) - 2))
        return b"*0\r\n"

    return answer


def replies(conn, *commands):
    return [f"-{reply}" if isinstance(reply, ReplyError) else reply for reply in conn.pipeline(commands)]


over_both = pytest.mark.parametrize("scene", ["redis", "valkey"], indirect=True)


@over_both
@pytest.mark.parametrize("table, info", [
    (b"*0\r\n", NIL), (b"*0\r\n", b"$-1\r\n"), (b"*0\r\n", b"-ERR syntax error\r\n"), (b"-ERR unknown command 'COMMAND'\r\n",) * 2,
    (b"-NOPERM this user has no permissions to run the 'command' command\r\n",) * 2, (b"$-1\r\n", b"-ERR no\r\n"),
], ids=["empty", "empty, bulk nils", "empty, no INFO", "unknown", "refused", "nil"])
def test_a_server_whose_command_is_empty_or_refused(scene, table, info):
    """The core's commands are known by heart: no write waits for a barrier, MULTI and BLPOP are what they are, reads are cached. What is
    no command of the core's has a connection of its own, and is the server's to answer."""
    scene.stand_in.answer = to_command(table, info)
    proxy = scene.proxy()
    wait_until(scene.caches, "hits")
    with Connection(proxy.port) as one, Connection(proxy.port) as other:
        for i in range(10):
            assert replies(one, ("SET", "k", i), ("GET", "k"), ("HSET", "h", "f", i), ("HGET", "h", "f")) == [b"OK", b"%d" % i, int(i == 0), b"%d" % i]
            assert other.call("GET", "k") == b"%d" % i
            scene.server.call("SET", "k", "past")
            wait_until(lambda: other.call("GET", "k") == b"past", "what others write is reported")
        assert b"any key" not in b"".join(other.call("NEARSIDE", "EXPLAIN", "SET", "k", "v"))
        assert one.call("MULTI") == b"OK" and one.call("SET", "k", "multi") == b"QUEUED"
        assert other.call("GET", "k") == b"past" and one.call("EXEC") == [b"OK"] and other.call("GET", "k") == b"multi"
        other.send("BLPOP", "list", 5)
        assert one.call("RPUSH", "list", "x") == 1 and other.read() == [b"list", b"x"]
        assert other.call("SELECT", 3) == b"OK" and (other.call("GET", "k"), one.call("GET", "k")) == (None, b"multi")
        with scene.server.connect() as bare:
            unknown = [("NOSUCH.COMMAND", "k"), ("GET", "k")]
            assert replies(one, *unknown) == replies(bare, *unknown)
    lacks = [line for line in scene.warnings() if "lacks a list of its commands" in line]
    assert len(lacks) == 1 and len(scene.warnings()) == 1 and not re.search("TIME|grant|needs", scene.warnings()[0]), scene.warnings()
    assert "commands" in proxy.stats()["upstream_lacks"]
    # A server that has them after all is believed, once the link begins anew.
    scene.stand_in.answer = lambda words, role: None
    scene.server.kill_clients_named("nearside-link")
    wait_until(lambda: proxy.stats()["upstream_lacks"] == "" and scene.caches(), "nothing is lacking")


STATES = {"LOADING": LOADING, "BUSY": BUSY, "NOAUTH": NOAUTH}


@pytest.mark.parametrize("word, hello", [("LOADING", False), ("BUSY", True), ("NOAUTH", True), ("NOAUTH", False)])
def test_a_server_that_answers_nothing_yet(scene, word, hello):
    """At the start: its word passes through, is what the log says, and is asked again seldom; then all is well by itself."""
    but = {b"HELLO", b"CLIENT"} if hello else ()
    scene.stand_in.answer = to_each(STATES[word], but)
    proxy = scene.proxy(wait=False)
    wait_until(lambda: word in proxy.read_log(), "the log says why")
    with Connection(proxy.port) as conn:
        for words in (("GET", "k"), ("SET", "k", "v"), ("EVAL", "return 1", 0), ("NOSUCH", "k")):
            wait_until(lambda: replies(conn, words)[0].startswith(f"-{word}"), f"{words[0]} is answered by the server's word")
    time.sleep(0.7)
    assert scene.stand_in.connections("link") <= 12, "asked again less and less often"
    said = scene.warnings()
    assert len(said) <= 2 and all(word in line for line in said) and not re.search("TIME|grant|user needs", "".join(said)), said
    scene.stand_in.answer = lambda words, role: None
    wait_until(scene.caches, "hits", 5)
    with Connection(proxy.port) as conn:
        assert replies(conn, ("SET", "k", "v"), ("GET", "k"), ("MULTI",), ("GET", "k"), ("EXEC",)) == [b"OK", b"v", b"OK", b"QUEUED", [b"v"]]
        assert "unknown command" in replies(conn, ("NOSUCH", "k"))[0]
    assert proxy.stats()["upstream_lacks"] == ""


@over_both
@pytest.mark.parametrize("word", ["LOADING"])
def test_a_server_that_stops_answering_for_a_while(scene, word):
    """In the midst: hits go on for no longer than they may, then each client is told the server's word; no connection is lost for it."""
    proxy = scene.proxy()
    wait_until(scene.caches, "hits")
    with Connection(proxy.port) as conn, Connection(proxy.ports["linearizable"]) as strict:
        assert replies(conn, ("SET", "k", "v"), ("GET", "k"), ("GET", "k"), ("EVAL", "return 1", 0)) == [b"OK", b"v", b"v", 1]
        links, lanes = scene.stand_in.connections("link"), scene.stand_in.connections("lane")
        began = time.monotonic()
        scene.stand_in.answer = to_each(STATES[word])
        scene.server.call("SET", "k", "w")
        assert replies(strict, ("GET", "k"))[0].startswith(f"-{word}")
        for words in (("SET", "k", "x"), ("LPUSH", "l", 1), ("EVAL", "return 1", 0), ("TIME",)):
            assert replies(conn, words)[0].startswith(f"-{word}"), words
        while (now := time.monotonic()) < began + 1.2:
            told = replies(conn, ("GET", "k"))[0]
            assert str(told).startswith(f"-{word}") or (told in (b"v", b"w") and now < began + 0.6), (told, now - began)
        assert str(told).startswith(f"-{word}")
        assert scene.stand_in.connections("lane") - lanes <= 2 and scene.stand_in.connections("link") - links <= 4
        assert not re.search("grant|user needs", "".join(scene.warnings())), scene.warnings()
        scene.stand_in.answer = lambda words, role: None
        wait_until(lambda: replies(conn, ("GET", "k"))[0] == b"w", "the server's answer")
        wait_until(scene.caches, "hits", 5)
        assert replies(conn, ("SET", "k", "x"), ("GET", "k"), ("EVAL", "return 1", 0)) == [b"OK", b"x", 1]
        assert strict.call("GET", "k") == b"x"


@over_both
def test_a_server_that_is_full_for_a_while(scene):
    """It takes no further connection. Those there are go on; who needs another is told so in the server's words."""
    scene.stand_in.answer = lambda words, role: FULL if words[0].upper() == b"HELLO" else None
    proxy = scene.proxy(wait=False)
    wait_until(lambda: "max number of clients" in proxy.read_log(), "the log says that the server is full")
    with Connection(proxy.port) as conn:
        wait_until(lambda: "max number of clients" in str(replies(conn, ("GET", "k"))[0]), "clients are told")
    time.sleep(0.7)
    assert scene.stand_in.connections("link") <= 12
    assert not re.search("TIME|grant|user needs", proxy.read_log()), proxy.read_log()
    scene.stand_in.answer = lambda words, role: None
    wait_until(scene.caches, "hits", 5)
    # And again, in the midst.
    with Connection(proxy.port) as conn:
        assert conn.call("SET", "k", "v") == b"OK"
        scene.stand_in.answer = lambda words, role: FULL if words[0].upper() == b"HELLO" else None
        assert replies(conn, ("SET", "k", "w"), ("GET", "k"), ("EVAL", "return 1", 0)) == [b"OK", b"w", 1]
        scene.server.kill_clients_named("nearside-dedicated")
        # A script that is sent on a connection while the server closes it has an unknown outcome, and rightly.
        wait_until(lambda: proxy.stats()["dedicated"] == 0, "the proxy has seen the end of its dedicated connections")
        told = replies(conn, ("EVAL", "return 1", 0))[0]
        assert told == 1, f"a script shares the lane: {told}"
        with Connection(proxy.port) as other:
            assert "max number of clients" in str(replies(other, ("BLPOP", "none", 1))[0])
        scene.stand_in.answer = lambda words, role: None
        wait_until(scene.caches, "hits", 5)
        assert replies(conn, ("MULTI",), ("GET", "k"), ("EXEC",))[-1] == [b"w"]


def test_a_name_that_gets_a_meaning_later(scene):
    """Asked about in vain; then the server has it (a module), says so by the count of MODULE LOAD, and it is what it is: it blocks."""
    known = []

    def answer(words, role):
        upper = [word.upper() for word in words]
        if upper[0] == b"LATER":
            return b"*2\r\n$1\r\nl\r\n$1\r\nx\r\n" if known else b"-ERR unknown command 'later', with args beginning with: \r\n"
        if upper[:2] == [b"COMMAND", b"INFO"] and b"LATER" in upper:
            assert known or len(words) == 3
            entry = b"*6\r\n$5\r\nlater\r\n:-2\r\n*2\r\n+write\r\n+blocking\r\n:1\r\n:1\r\n:1\r\n"
            return b"*1\r\n" + (entry if known else NIL) if len(words) == 3 else None
        if upper[0] == b"INFO" and b"COMMANDSTATS" in upper and known:
            text = b"cmdstat_module|load:calls=1,usec=1,usec_per_call=1,rejected_calls=0,failed_calls=0\r\nrole:master\r\n"
            return b"$%d\r\n%s\r\n" % (len(text), text)
        return None

    scene.stand_in.answer = answer
    proxy = scene.proxy()
    wait_until(scene.caches, "hits")
    with Connection(proxy.port) as conn:
        for _ in range(3):
            assert "unknown command" in replies(conn, ("later", "l"))[0]
        asked = proxy.stats()["names_asked"]
        known.append(True)
        wait_until(lambda: replies(conn, ("later", "l"))[0] == [b"l", b"x"] and proxy.stats()["names_asked"] > asked, "it is asked about again")
        assert b"own" in b"".join(conn.call("NEARSIDE", "EXPLAIN", "later", "l")), conn.call("NEARSIDE", "EXPLAIN", "later", "l")


@pytest.mark.parametrize("how", [StandIn.CLOSE, b"+OK\r\n"], ids=["closed", "garbled"])
@pytest.mark.parametrize("question", ["CONFIG", "ACL", "TIME"])
def test_a_server_that_does_not_bear_a_question_of_ours(scene, question, how):
    """Before: a server that ends the connection on which CONFIG is said got 40 connections a second, for ever, and each flushed the cache."""
    scene.stand_in.answer = lambda words, role: how if words[0].upper() == question.encode() else None
    proxy = scene.proxy()
    time.sleep(1)
    asked = scene.stand_in.connections("watch"), scene.stand_in.connections("link")
    assert max(asked) <= 12, asked
    assert len(scene.warnings()) <= 3, scene.warnings()
    with Connection(proxy.port) as conn:
        assert replies(conn, ("SET", "k", "v"), ("GET", "k"), ("MULTI",), ("GET", "k"), ("EXEC",)) == [b"OK", b"v", b"OK", b"QUEUED", [b"v"]]
    if question == "CONFIG":
        wait_until(scene.caches, "hits")
        assert asked[0] <= 3
    scene.stand_in.answer = lambda words, role: None
    wait_until(scene.caches, "hits", 5)
