"""The server has executed a command and its reply is lost on the way. Only a read is said again; whoever said anything else is told
that its outcome is unknown, and the server has executed it once."""

import pytest

from processes import wait_until
from wire import Connection, ReplyError

SETTINGS = {"audit_one_in": 0}
LIBRARY = "#!lua name=lib\nredis.register_function('f', function() return 1 end)"
# What writes no key and changes something all the same, or what only says something: none of it is a read to the server.
ONCE = [
    ("PUBLISH", "channel", "message"),
    ("SPUBLISH", "channel", "message"),
    ("FUNCTION|LOAD", LIBRARY),
    ("SCRIPT|LOAD", "return 1"),
    ("ACL|SETUSER", "someone"),
    ("CONFIG|SET", "maxmemory-samples", "6"),
    ("CONFIG|RESETSTAT",),
    ("BGREWRITEAOF",),
    ("SLOWLOG|RESET",),
    ("LASTSAVE",),
    ("SET", "k", "v"),
    ("FLUSHALL",),
]
AGAIN = [("GET", "k"), ("TTL", "k"), ("DBSIZE",), ("MGET", "k", "l"), ("SCAN", "0")]


@pytest.fixture
def relayed(lab, request):
    return lab.site(request.param, relayed=True, settings=SETTINGS)


def say_and_lose_the_reply(site, words):
    """The reply that the client gets, and how often the server executed the command."""
    command = words[0].lower()
    with Connection(site.a.port) as conn:
        conn.call("ECHO", "the lane is open")
        before = site.server.calls(command)
        seen = site.server.calls("echo")
        site.relay.stall("lane")
        conn.send(*words[0].split("|"), *words[1:])
        if command == "config|resetstat":
            wait_until(lambda: site.server.calls("echo") < seen, "the server has executed it")
            before = 0
        else:
            wait_until(lambda: site.server.calls(command) > before, f"the server has executed {command}")
        site.relay.cut("lane")
        site.relay.resume("lane")
        reply = conn.read()
    return reply, site.server.calls(command) - before


@pytest.mark.needs_proxy
@pytest.mark.parametrize("relayed", ["redis", "valkey"], indirect=True)
def test_a_command_that_is_no_read_is_executed_once(relayed):
    for words in ONCE:
        reply, executed = say_and_lose_the_reply(relayed, words)
        assert isinstance(reply, ReplyError) and "outcome of this command is unknown" in str(reply), (words, reply)
        assert executed == 1, (words, executed)


@pytest.mark.needs_proxy
@pytest.mark.parametrize("relayed", ["redis", "valkey"], indirect=True)
def test_a_read_is_repeated_once(relayed):
    for words in AGAIN:
        reply, executed = say_and_lose_the_reply(relayed, words)
        assert not isinstance(reply, ReplyError), (words, reply)
        assert executed == 2, (words, executed)
