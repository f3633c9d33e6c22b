"""Servers that lack what the proxy would use: HELLO, COMMAND, a free place, a password. What they do, passes through; what they lack
is said once, in the log and in INFO, and by its real reason."""

import re

import pytest

from processes import wait_until
from wire import Connection, ReplyError

KINDS = ("redis", "valkey")
SETTINGS = {"audit_one_in": 0}
NO_HELLO = ("--rename-command", "HELLO", "")


def answers(port, *commands):
    with Connection(port, timeout=3) as conn:
        replies = [conn.pipeline([words])[0] for words in commands]
    return [f"-{reply}" if isinstance(reply, ReplyError) else reply for reply in replies]


def first_in(server):
    """A connection that the server has a place for; it may still count the one before."""
    conn = server.connect()
    try:
        return conn if conn.pipeline([("PING",)])[0] == b"PONG" else None
    except OSError:
        return None


def warnings(proxy):
    return [line.split("WARN ")[1] for line in proxy.read_log().splitlines() if " WARN " in line]


@pytest.mark.needs_proxy
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_without_hello_serves_and_caches(lab, kind):
    """(An ACL with `-hello` takes nothing away: commands that may be said before a login are nobody's to refuse.)"""
    site = lab.site(kind, server_options=NO_HELLO, settings=SETTINGS)
    wait_until(lambda: site.a.stats()["link"] == "up", "the link is up without HELLO")
    with Connection(site.a.port) as one, Connection(site.a.port) as other:
        assert one.call("SET", "k", "v") == b"OK"
        wait_until(lambda: other.call("GET", "k") == b"v" and site.a.stats()["hits"] > 0, "it is cached")
        site.server.call("SET", "k", "w")
        wait_until(lambda: other.call("GET", "k") == b"w", "what others write is reported")
        assert one.call("SELECT", "3") == b"OK"
        assert one.pipeline([("MULTI",), ("SET", "k", "in 3"), ("EXEC",)])[-1] == [b"OK"]
        assert (one.call("GET", "k"), other.call("GET", "k")) == (b"in 3", b"w")
        assert one.call("BLPOP", "none", "0.05") is None
    for hello in (("HELLO",), ("HELLO", "2"), ("HELLO", "3"), ("HELLO", "3", "AUTH", "default", "x")):
        bare = answers(site.server.port, hello, ("ECHO", "x"))
        assert answers(site.a.port, hello, ("ECHO", "x")) == bare and bare[0].startswith("-")
    assert "HELLO" in site.a.stats()["upstream_lacks"]
    said = warnings(site.a)
    assert len(said) == 1 and "lacks HELLO" in said[0], said


@pytest.mark.needs_proxy
@pytest.mark.parametrize("kind", KINDS)
def test_users_log_in_without_hello(lab, kind):
    site = lab.site(kind, server_options=NO_HELLO, settings=SETTINGS)
    site.server.call("ACL", "SETUSER", "bob", "on", ">secret", "+@all", "-config", "~*")
    with Connection(site.a.port) as one, Connection(site.a.port) as other:
        assert one.call("AUTH", "bob", "secret") == b"OK"
        assert (one.call("ACL", "WHOAMI"), other.call("ACL", "WHOAMI")) == (b"bob", b"default")
        for _ in range(3):
            assert one.call("GET", "k") is None
        with pytest.raises(ReplyError, match="NOPERM"):
            one.call("CONFIG", "GET", "port")
        with pytest.raises(ReplyError, match="WRONGPASS"):
            one.call("AUTH", "bob", "wrong")
        assert one.call("ACL", "WHOAMI") == b"bob"
    assert site.server.clients_named("nearside-lane"), "lanes have their name all the same"


@pytest.mark.needs_proxy
@pytest.mark.parametrize("kind", KINDS)
def test_a_password_without_hello(lab, kind):
    server = lab.server(kind, options=(*NO_HELLO, "--requirepass", "secret"))
    proxy = lab.proxy(f"redis://:secret@127.0.0.1:{server.port}/0", settings=SETTINGS)
    wait_until(lambda: proxy.stats()["link"] == "up", "the link is up by AUTH")
    assert answers(proxy.port, ("SET", "k", "v"), ("GET", "k"), ("GET", "k")) == [b"OK", b"v", b"v"]


@pytest.mark.needs_proxy
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lack", [("--rename-command", "COMMAND", ""), ("--user", "default", "on", "nopass", "~*", "&*", "+@all", "-command")],
                         ids=["renamed", "acl"])
def test_without_command_the_core_is_known_by_heart(lab, kind, lack):
    site = lab.site(kind, server_options=lack, settings=SETTINGS)
    wait_until(lambda: site.a.stats()["link"] == "up", "the link is up without COMMAND")
    with Connection(site.a.port) as one, Connection(site.a.port) as other:
        wait_until(lambda: one.call("GET", "other") is None and site.a.stats()["hits"] > 0, "it is cached")
        for i in range(20):
            assert one.call("SET", "k", i) == b"OK"
            assert [other.call("GET", "k") for _ in range(2)] == [str(i).encode()] * 2
            assert one.call("DEL", "k") == 1
            assert other.call("GET", "k") is None
        assert one.call("MULTI") == b"OK" and other.call("ECHO", "x") == b"x"
        explained = other.call("NEARSIDE", "EXPLAIN", "SET", "k", "v")
        assert b"any key" not in b"".join(explained if isinstance(explained, list) else [explained])
    assert "commands" in site.a.stats()["upstream_lacks"]
    said = warnings(site.a)
    assert len(said) == 1 and "lacks a list of its commands" in said[0], said


@pytest.mark.needs_proxy
@pytest.mark.parametrize("kind", KINDS)
def test_the_log_names_the_real_reason(lab, kind):
    """A server that wants a password, and one that is full: neither is a matter of the right to say TIME."""
    locked = lab.server(kind, options=("--requirepass", "secret"))
    proxy = lab.proxy(locked.port, name="locked", settings=SETTINGS, wait=False)
    wait_until(lambda: "NOAUTH" in proxy.read_log(), "the log says NOAUTH")
    full = lab.server(kind, options=("--maxclients", "1"))
    with wait_until(lambda: first_in(full), "the only place is taken"):
        crowded = lab.proxy(full.port, name="full", settings=SETTINGS, wait=False)
        wait_until(lambda: "max number of clients" in crowded.read_log(), "the log says that the server is full")
    for log in (proxy.read_log(), crowded.read_log()):
        assert "TIME" not in log and "grant" not in log and "user needs" not in log, log


@pytest.mark.needs_proxy
def test_a_busy_server_is_no_matter_of_rights(lab):
    server = lab.server("redis", options=("--busy-reply-threshold", "50"))
    with server.connect() as busy:
        busy.send("EVAL", "while true do end", 0)
        wait_until(lambda: answers(server.port, ("GET", "k"))[0][:5] == "-BUSY", "the server is busy")
        proxy = lab.proxy(server.port, settings=SETTINGS, wait=False)
        wait_until(lambda: "BUSY" in proxy.read_log(), "the log says BUSY")
        assert not re.search("TIME|grant|user needs", proxy.read_log()), proxy.read_log()
        server.call("SCRIPT", "KILL")
    wait_until(lambda: proxy.stats()["link"] == "up", "the link is up when the script has ended")
