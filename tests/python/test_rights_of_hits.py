"""A hit obeys the rights of the very command: what one command was told does not answer another that the user may not say."""

import re

import pytest

from conftest import Lab
from processes import ROOT, wait_until
from wire import Connection

pytestmark = pytest.mark.needs_proxy

KEYS = ("x:1", "x:2", "y:1", "y:2", "z:1")
USERS = {
    "both": ("~*", "-@all", "+get", "+mget"),
    "both-limited": ("~x:*", "-@all", "+get", "+mget"),
    "get": ("~*", "-@all", "+get"),
    "mget": ("~*", "-@all", "+mget"),
    "all-but-mget": ("~*", "+@all", "-mget"),
    "all-but-get": ("~*", "+@all", "-get"),
    "two-selectors": ("-@all", "~x:*", "+get", "+mget", "(~y:* +get +mget)"),
    "mget-of-selector": ("-@all", "~x:*", "+get", "(~y:* +mget)"),
    "get-of-selector": ("-@all", "~x:*", "+mget", "(~y:* +get)"),
    "write-only-keys": ("-@all", "%W~*", "%R~x:*", "+get", "+mget", "+set"),
}
# What a fill asks besides.
HELPERS = ("+ping", "+pttl", "+client", "+hello")
READS = [
    ("GET", "x:1"), ("MGET", "x:1", "x:2"), ("MGET", "x:1", "y:1"), ("GET", "y:1"), ("MGET", "y:1"), ("MGET", "y:1", "y:2"),
    ("GET", "y:2"), ("MGET", "x:1"), ("GET", "x:2"), ("MGET", "z:1"), ("GET", "z:1"), ("MGET", "x:2", "z:1"), ("MGET",),
    ("STRLEN", "x:1"), ("EXISTS", "y:1"), ("GETRANGE", "y:1", "0", "0"),
]


@pytest.fixture(scope="module", params=["redis", "valkey"])
def place(request, tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("rights"))
    server = lab.server(request.param)
    for name, rules in USERS.items():
        server.call("ACL", "SETUSER", name, "on", ">pw", *rules, *HELPERS)
    proxy = lab.proxy(server.port, settings={"audit_one_in": 0})
    yield server, proxy
    lab.close()


class Recorder(Connection):
    """Gives the bytes of a reply."""

    def call_raw(self, *words):
        self.send(*words)
        self._parse()
        data = bytes(self._buffer[:self._at])
        self._buffer.clear()
        self._at = 0
        return data


def connect(port, user, protocol):
    conn = Recorder(port)
    conn.call("HELLO", protocol, "AUTH", user, "pw")
    return conn


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("user", USERS)
def test_every_read_is_answered_as_by_the_bare_server(place, user, protocol):
    server, proxy = place
    for key in KEYS:
        server.call("SET", key, "value of " + key)
    with connect(server.port, user, protocol) as bare, connect(proxy.port, user, protocol) as conn:
        expected = [bare.call_raw(*read) for read in READS]
        for _ in range(4):
            assert [conn.call_raw(*read) for read in READS] == expected
            # In the other order each may be answered from what another has cached.
            assert [conn.call_raw(*read) for read in READS[::-1]] == expected[::-1]


def test_users_who_may_say_both_are_answered_from_the_cache(place):
    server, proxy = place
    for user, keys in (("both", ["x:1", "y:1"]), ("both-limited", ["x:1", "x:2"])):
        with connect(proxy.port, user, 2) as conn:

            def hit(*words):
                before = proxy.stats()["hits"]
                conn.call(*words)
                return proxy.stats()["hits"] > before

            server.call("MSET", *(word for key in keys for word in (key, user)))
            wait_until(lambda: hit("MGET", *keys), "MGET is cached")
            assert hit("GET", keys[0]), "and answers GET"


def test_a_user_whose_rights_come_apart_loses_what_they_shared(place):
    server, proxy = place
    server.call("ACL", "SETUSER", "changing", "on", ">pw", "~*", "-@all", "+get", "+mget", *HELPERS)
    server.call("MSET", "x:1", "1", "x:2", "2")
    with connect(proxy.port, "changing", 2) as conn:
        wait_until(lambda: conn.call("MGET", "x:1", "x:2") == [b"1", b"2"], "MGET")
        before = proxy.stats()["flushes_acl"]
        server.call("ACL", "SETUSER", "changing", "-mget")
        wait_until(lambda: proxy.stats()["flushes_acl"] > before, "the change is noticed", timeout=4)
        wait_until(lambda: conn.call_raw("MGET", "x:1", "x:2").startswith(b"-NOPERM"), "MGET is refused", timeout=4)
        assert conn.call("GET", "x:1") == b"1"
        for _ in range(20):
            assert conn.call_raw("MGET", "x:1").startswith(b"-NOPERM")


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_the_hardened_user_of_security_md_can_cache_and_strangers_can_read_nothing(lab, kind):
    text = " ".join((ROOT / "SECURITY.md").read_text().split())
    rules = re.search(r"`ACL SETUSER nearside on >… (.*?)`", text)[1].split()
    server = lab.server(kind)
    server.call("ACL", "SETUSER", "nearside", "on", ">pw", *rules)
    server.call("ACL", "SETUSER", "bob", "on", ">pw", "~*", "&*", "+@all")
    server.call("SET", "k", "v")
    proxy = lab.proxy(f"redis://nearside:pw@127.0.0.1:{server.port}/0", settings={"audit_one_in": 0})
    with connect(proxy.port, "bob", 2) as bob, Connection(proxy.port) as stranger:

        def hit(*words):
            before = proxy.stats()["hits"]
            bob.call(*words)
            return proxy.stats()["hits"] > before

        wait_until(lambda: hit("GET", "k"), "GET is cached")
        wait_until(lambda: hit("MGET", "k", "none"), "MGET is cached")
        for words in [("GET", "k"), ("MGET", "k"), ("CLIENT", "KILL", "ID", "1"), ("CLIENT", "PAUSE", "1"), ("NEARSIDE", "FLUSH"),
                      ("NEARSIDE", "EXPLAIN", "GET", "k"), ("NEARSIDE", "EXPLAIN", "k")]:
            assert str(stranger.pipeline([words])[0]).startswith("NOPERM"), words
