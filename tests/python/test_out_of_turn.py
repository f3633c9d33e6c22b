"""Bytes that the server was not asked for: whatever was awaited fails honestly, and every connection comes back.

What stands between proxy and server may say a line of its own (`-ERR idle, closing`); a module may push; a broken machine may garble.
"""

import pytest

from processes import wait_until
from wire import Closed, Connection, ReplyError

pytestmark = pytest.mark.needs_proxy

STRAYS = {
    "error": b"-ERR idle, closing\r\n",
    "status": b"+OK\r\n",
    "integer": b":1\r\n",
    "bulk": b"$5\r\nstray\r\n",
    "array": b"*2\r\n$5\r\nstray\r\n:1\r\n",
    "garbage": b"\x00\x01 not RESP\r\n",
    "an impossible length": b"$9223372036854775000\r\n",
    "an impossible count": b"*9223372036854775807\r\n" * 4,
}
# Beginnings of a reply: whatever comes next would be taken for the rest of it.
BEGUN = {
    "half a bulk": b"$10\r\nab",
    "half a line": b"+O",
    "half an array": b"*3\r\n:1\r\n",
    "an attribute": b"|1\r\n+a\r\n:1\r\n",
    "a great length": b"$1000000000\r\nab",
}
PUSHES = {
    "message": b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n",
    "unknown": b">2\r\n$9\r\nsomething\r\n:1\r\n",
    "empty": b">0\r\n",
    "nameless": b">1\r\n:1\r\n",
}
QUICK = {"max_staleness": "500ms", "heartbeat": "50ms", "upstream_timeout": "1s", "reconnect_max": "100ms"}
BACK_WITHIN = 3.0

every_stray = pytest.mark.parametrize("stray", STRAYS.values(), ids=STRAYS.keys())
every_begun = pytest.mark.parametrize("stray", BEGUN.values(), ids=BEGUN.keys())


@pytest.fixture(scope="module")
def relayed(tmp_path_factory):
    """One relayed site for the whole file: no test may leave it broken."""
    from conftest import Lab

    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab.site("redis", relayed=True, settings={**QUICK, "threads": 1})
    lab.close()


@pytest.fixture
def site(relayed):
    relayed.server.call("FLUSHALL")
    wait_until(lambda: caches(relayed), "hits")
    yield relayed
    assert not relayed.a.panics(), relayed.a.panics()
    assert not relayed.b.panics(), relayed.b.panics()


def caches(site):
    with Connection(site.a.port) as conn:
        before = site.a.stats()["hits"]
        conn.call("GET", "whatever")
        conn.call("GET", "whatever")
        return site.a.stats()["hits"] > before


def out_of_turn(site):
    return site.a.stats()["upstream_out_of_turn"]


def warnings(site):
    return sum((" WARN " in line and "asked for" in line) or "not RESP" in line for line in site.a.read_log().splitlines())


@every_stray
def test_a_lane_that_is_told_something_comes_back_at_once(site, stray):
    with Connection(site.a.port) as conn:
        assert conn.call("SET", "k", "1") == b"OK"
        before, warned = out_of_turn(site), warnings(site)
        assert site.relay.inject("lane", stray)
        wait_until(lambda: out_of_turn(site) > before, "the stray is counted")
        assert conn.call("SET", "k", "2") == b"OK"
        assert conn.call("GET", "k") == b"2"
        wait_until(lambda: warnings(site) > warned, "a warning")
    wait_until(lambda: caches(site), "hits")


@pytest.mark.parametrize("ending", [b"-ERR idle, closing\r\n", b"$100\r\nhalf a reply", b"*3\r\n:1\r\n", b"$1", b""], ids=repr)
def test_a_lane_that_is_told_something_and_closed_comes_back(site, ending):
    with Connection(site.a.port) as conn:
        assert conn.call("SET", "k", "1") == b"OK"
        if ending:
            assert site.relay.inject("lane", ending)
        site.relay.cut("lane")
        conn.send("SET", "k", "2")
        reply = conn.read()
        assert reply == b"OK" or "the connection was lost" in str(reply), reply
        assert conn.call("SET", "k", "3") == b"OK"
        assert conn.call("GET", "k") == b"3"


@every_stray
def test_what_is_awaited_meanwhile_fails_honestly_or_is_right(site, stray):
    """A SET and reads of others are on their way. A line that looks like the SET's reply cannot be told from that; the rest must not
    take each other's replies."""
    keys = [f"k{n}" for n in range(4)]
    for key in keys:
        site.server.call("SET", key, f"value of {key}")
    writer, readers = Connection(site.a.port), [Connection(site.a.port) for _ in keys]
    before = out_of_turn(site)
    site.relay.stall("lane")
    try:
        writer.send("SET", "w", "1")
        for reader, key in zip(readers, keys, strict=True):
            reader.send("GET", key)
        wait_until(lambda: site.server.call("GET", "w") == b"1", "the SET is executed")
        assert site.relay.inject("lane", stray)
    finally:
        site.relay.resume("lane")
    for reader, key in zip(readers, keys, strict=True):
        assert reader.read() == f"value of {key}".encode()
    told = writer.read()
    # The stray itself, if it can be a reply; else what is known of the SET, which is nothing.
    assert encode_reply(told) == stray or "outcome of this command is unknown" in str(told), told
    wait_until(lambda: out_of_turn(site) > before, "the stray is counted")
    assert writer.call("SET", "w", "2") == b"OK"
    for conn in (writer, *readers):
        conn.close()


def encode_reply(reply):
    match reply:
        case ReplyError():
            return b"-%s\r\n" % str(reply).encode()
        case b"stray":
            return STRAYS["bulk"]
        case bytes():
            return b"+%s\r\n" % reply
        case int():
            return b":%d\r\n" % reply
        case list():
            return STRAYS["array"]


@pytest.mark.parametrize("push", PUSHES.values(), ids=PUSHES.keys())
def test_pushes_are_no_replies(site, push):
    """A RESP3 lane may be sent pushes at any time: they take nobody's turn."""
    with Connection(site.a.port, protocol=3) as conn:
        conn.call("SET", "k", "v")
        before = out_of_turn(site)
        site.relay.stall("lane")
        try:
            conn.send("SET", "k", "w")
            conn.send("GET", "k")
            assert site.relay.inject("lane", push)
        finally:
            site.relay.resume("lane")
        assert (conn.read(), conn.read()) == (b"OK", b"w")
        assert out_of_turn(site) == before


@every_begun
def test_a_lane_that_is_told_half_of_something_comes_back_at_once(site, stray):
    """Before: the next reply was the other half, and of what was behind it each got another's."""
    with Connection(site.a.port) as conn:
        assert conn.call("SET", "k", "1") == b"OK"
        before = out_of_turn(site)
        assert site.relay.inject("lane", stray)
        wait_until(lambda: out_of_turn(site) > before, "the stray is counted")
        assert [conn.call("SET", "k", "2"), conn.call("STRLEN", "k"), conn.call("GET", "k")] == [b"OK", 1, b"2"]


@every_begun
@pytest.mark.parametrize("words, read", [(("EVAL", "return 7", 0), 7), (("INCRBY", "n", 0), 0)], ids=["dedicated", "lane"])
def test_half_of_something_before_a_reply_holds_nobody_up_for_ever(site, words, read, stray):
    """Nobody can tell it from the reply's own beginning: whoever waits is told at the latest when nothing more comes."""
    role = "dedicated" if words[0] == "EVAL" else "lane"
    with Connection(site.a.port) as conn:
        assert conn.call(*words) == read
        before = site.server.calls(words[0].lower())
        site.relay.stall(role)
        try:
            conn.send(*words)
            wait_until(lambda: site.server.calls(words[0].lower()) > before, "it is executed")
            assert site.relay.inject(role, stray)
        finally:
            site.relay.resume(role)
        try:
            told = conn.read()
            # Half a line and the reply are a line, two thirds of an array with two replies an array (the second is that to
            # our PING); behind half an attribute stands the value that it describes.
            assert told in (read, b"O:%d" % read, [1, read, b"nearside"]) or "outcome of this command is unknown" in str(told), told
        except Closed:
            pass
    # What the proxy asks for itself tells that the positions are lost.
    wait_until(lambda: all(replies(site, words, ("ECHO", "x")) == [read, b"x"] for _ in range(4)), "all is right again", BACK_WITHIN)


def replies(site, *commands):
    """Of one connection, errors as text; `None` if it is closed."""
    with Connection(site.a.port) as conn:
        try:
            return [str(r) if isinstance(r, ReplyError) else r for r in conn.pipeline(commands)]
        except Closed:
            return None


@every_stray
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_stray_among_the_replies_of_a_transaction(site, steps, stray):
    """In the place of OK, of QUEUED, of EXEC's reply: the session ends, for what its connection is in the midst of nobody knows."""
    commands, right = [("MULTI",), ("SET", "k", "v"), ("EXEC",)], [b"OK", b"QUEUED", [b"OK"]]
    wait_until(lambda: replies(site, *commands) == right, "connections to lend")
    with Connection(site.a.port) as conn:
        for words, reply in zip(commands[:steps], right, strict=False):
            assert conn.call(*words) == reply
        site.relay.stall("dedicated")
        try:
            conn.send(*commands[steps])
            assert site.relay.inject("dedicated", stray)
        finally:
            site.relay.resume("dedicated")
        told = []
        try:
            told.append(conn.read())
            for words in commands[steps + 1:]:
                told.append(conn.pipeline([words])[0])
        except (Closed, OSError):
            pass
    # Only what could be the very reply is passed on, and nothing that was the reply to what came before.
    assert told[:1] in ([b"OK"], [b"QUEUED"], [encode_reply_of(stray)], []) or isinstance(told[0], ReplyError), told
    # (It may have come before the session had that connection: then all is right.)
    # A stray error in the place of MULTI's OK is a MULTI refused: what follows is done outside of a transaction.
    refused = steps == 0 and stray == STRAYS["error"] and told[1:2] == [b"OK"]
    assert all(isinstance(reply, ReplyError) for reply in told[2 if refused else 1:]) or told == right[steps:], told
    for _ in range(6):
        with Connection(site.a.port) as conn:
            assert [conn.call("MULTI"), conn.call("GET", "none"), conn.call("EXEC")] == [b"OK", b"QUEUED", [None]]


def encode_reply_of(stray):
    return {STRAYS["status"]: b"OK", STRAYS["array"]: [b"stray", 1]}.get(stray)


@every_begun
def test_a_dedicated_connection_that_is_told_half_of_something_is_lent_to_nobody(site, stray):
    with Connection(site.a.port) as conn:
        assert [conn.call("MULTI"), conn.call("EXEC")] == [b"OK", []]
        assert conn.call("MULTI") == b"OK"
        site.relay.inject("dedicated", stray)
        assert conn.read_to_end() == b""
    for protocol in (2, 3):
        with Connection(site.a.port, protocol=protocol) as conn:
            for _ in range(6):
                assert [conn.call("MULTI"), conn.call("INCR", "n"), conn.call("DISCARD"), conn.call("EVAL", "return 1", 0)] == [b"OK", b"QUEUED", b"OK", 1]


@every_stray
def test_a_stray_where_names_are_asked_about(site, stray):
    """Before: each answer was taken for that to the next question, so that a name meant what the one before it means."""
    with Connection(site.a.port) as conn:
        for n in range(3):
            assert "unknown command" in str(conn.pipeline([(f"before{n}",)])[0])
        assert site.relay.inject("names", stray)
        for n in range(3):
            assert "unknown command" in str(conn.pipeline([(f"{stray[:1].hex()}{len(stray)}x{n}",)])[0])
        assert site.a.stats()["names_unknowable"] == 0, "the server's word is not taken for another question's"


@every_stray
def test_a_dedicated_connection_ends_alone(site, stray):
    other = Connection(site.a.port)
    with Connection(site.a.port) as conn:
        assert conn.call("MULTI") == b"OK"
        assert conn.call("SET", "k", "never") == b"QUEUED"
        assert site.relay.inject("dedicated", stray)
        assert conn.read_to_end() in (b"", stray)
    assert other.call("SET", "k", "v") == b"OK"
    for _ in range(6):  # those that were idle meanwhile were told the same
        assert [other.call("MULTI"), other.call("GET", "k"), other.call("EXEC")] == [b"OK", b"QUEUED", [b"v"]]
    other.close()


@every_stray
@pytest.mark.parametrize("role", ["lane", "dedicated"])
def test_a_stray_in_a_handshake(site, role, stray):
    """Who waits for that connection may get an error; the next is greeted in order."""
    site.relay.cut(role)
    wait_until(lambda: caches(site), "hits")
    site.relay.cut(role)
    site.relay.greetings[role] = stray

    def works():
        try:
            with Connection(site.a.port) as conn:
                assert conn.call("SET", "k", "v") == b"OK"
                assert conn.call("MULTI") == b"OK" and conn.call("INCR", "n") == b"QUEUED" and len(conn.call("EXEC")) == 1
                return site.relay.greetings == {}
        except (ReplyError, Closed):
            return False

    wait_until(works, "everything as it was", BACK_WITHIN)
    wait_until(lambda: caches(site), "hits")


@pytest.mark.parametrize("stray", [*STRAYS.values(), *BEGUN.values()], ids=[*STRAYS, *BEGUN])
def test_the_link_recovers(site, stray):
    with Connection(site.a.port) as conn:
        assert site.relay.inject("link", stray)
        site.server.call("SET", "k", "1")
        wait_until(lambda: caches(site), "hits", BACK_WITHIN)
        conn.call("GET", "k")
        site.server.call("SET", "k", "2")
        wait_until(lambda: conn.call("GET", "k") == b"2", "the change is heard of", BACK_WITHIN)


@pytest.mark.parametrize("stray", [*STRAYS.values(), *BEGUN.values()], ids=[*STRAYS, *BEGUN])
def test_the_watch_recovers(site, stray):
    """It asks several questions at once: one reply too many, and each would be taken for that to another, for good."""
    flushes = site.a.stats()["flushes_acl"]
    assert wait_until(lambda: site.relay.inject("watch", stray), "a watch")
    wait_until(lambda: site.a.stats()["flushes_acl"] > flushes, "what was looked for meanwhile is not relied on", BACK_WITHIN)
    swaps = site.a.stats()["flushes_swapdb"]
    site.server.call("SWAPDB", 0, 0)
    wait_until(lambda: site.a.stats()["flushes_swapdb"] > swaps, "SWAPDB is noticed", BACK_WITHIN)


@every_stray
def test_a_stray_when_rights_are_asked_for(site, stray):
    """A user who may not say PTTL is not cached for, whoever says what meanwhile; one who may is, in the end."""
    site.server.call("ACL", "SETUSER", "few", "on", ">p", "~*", "+get", "+select", "resetchannels")
    site.relay.greetings["rights"] = stray
    with Connection(site.a.port) as conn:
        conn.call("AUTH", "few", "p")
        site.server.call("SET", "k", "v")
        assert [conn.call("GET", "k") for _ in range(3)] == [b"v"] * 3
        assert site.relay.greetings == {}
        refused = [entry for entry in site.server.call("ACL", "LOG") if b"pttl" in entry]
        assert not refused, "the lane tried what its user may not"
    site.server.call("ACL", "DELUSER", "few")
