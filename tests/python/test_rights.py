"""What a session may do is what a new connection of its user could do when the session began or logged in, within the documented
lag; however long the connections live that sessions share."""

import time

import pytest

from processes import wait_until
from wire import Connection, ReplyError

pytestmark = pytest.mark.needs_proxy

CLOSED = (ConnectionError, EOFError, OSError)
SHUT = {
    "requirepass": ("CONFIG", "SET", "requirepass", "pw"),
    "off": ("ACL", "SETUSER", "default", "off"),
    "resetpass": ("ACL", "SETUSER", "default", "resetpass"),
}
OPEN = [("CONFIG", "SET", "requirepass", ""), ("ACL", "SETUSER", "default", "on", "nopass")]
LAG = 3  # seconds: the documented lag is one, the machine may be slow


def said(conn, *words):
    """The reply, an error's text included."""
    try:
        return conn.call(*words)
    except ReplyError as error:
        return str(error)
    except CLOSED:
        return "closed"


def outcome(conn, *words):
    """The reply, or the first word of the error."""
    reply = said(conn, *words)
    return reply.split()[0] if isinstance(reply, str) else reply


@pytest.fixture
def root(site):
    """A connection past the proxy that no change of the default user concerns."""
    with Connection(site.server.port) as conn:
        conn.call("ACL", "SETUSER", "root", "reset", "on", ">root", "~*", "&*", "+@all")
        conn.call("AUTH", "root", "root")
        conn.call("ACL", "SETUSER", "bob", "reset", "on", ">secret", "~*", "&*", "+@all")
        yield conn
        for words in OPEN:
            conn.call(*words)
        conn.call("ACL", "DELUSER", "bob")
        for proxy in (site.a, site.b):
            wait_until(lambda: let_in(proxy), "everybody is let in again", timeout=LAG)


def let_in(proxy):
    """Whether a new connection is taken that does not log in."""
    with Connection(proxy.port) as conn:
        return said(conn, "PING") == b"PONG"


def bob(site, password="secret"):
    conn = Connection(site.a.port)
    conn.call("AUTH", "bob", password)
    return conn


COMMANDS = [("GET", "k"), ("SET", "k", "w"), ("MULTI",), ("EVAL", "return 1", 0), ("CONFIG", "GET", "requirepass"), ("CLIENT", "ID")]
COMMANDS += [("INFO", "server"), ("SELECT", 1), ("BLPOP", "nothing", "0.01"), ("SUBSCRIBE", "news"), ("HELLO",), ("HELLO", 3)]


class TestWhoNeverSaysAuth:
    @pytest.mark.parametrize("how", SHUT)
    def test_new_connections_are_strangers_once_a_password_is_wanted(self, site, root, how):
        root.call("SET", "k", "v")
        with Connection(site.a.port) as early, bob(site) as logged:
            # lanes and idle connections are there, and the reply is cached
            for words in (("GET", "k"), ("MULTI",), ("EXEC",), ("GET", "k")):
                early.call(*words)
            assert early.call("GET", "k") == b"v"
            root.call(*SHUT[how])

            def shut():
                with Connection(site.a.port) as conn:
                    return outcome(conn, "GET", "k") == "NOAUTH"

            wait_until(shut, "a new connection is refused", timeout=LAG)
            with Connection(site.a.port) as late:
                assert [outcome(late, *words) for words in COMMANDS] == ["NOAUTH"] * len(COMMANDS)
                assert late.call("RESET") == b"RESET"
                assert outcome(late, "GET", "k") == "NOAUTH"
                assert late.call("AUTH", "bob", "secret") == b"OK"
                assert late.call("GET", "k") == b"v"
            assert logged.call("GET", "k") == b"v"
            assert logged.call("RESET") == b"RESET"
            assert outcome(logged, "GET", "k") == "NOAUTH"
            assert early.call("GET", "k") == b"v"
            assert early.call("SET", "k", "w") == b"OK"
            early.call("MULTI")
            assert early.call("EXEC") == []
            assert early.call("RESET") == b"RESET"
            assert outcome(early, "GET", "k") == "NOAUTH"

    def test_strangers_are_let_in_once_no_password_is_wanted(self, site, root):
        root.call(*SHUT["requirepass"])

        def refused():
            with Connection(site.a.port) as conn:
                return outcome(conn, "GET", "k") == "NOAUTH"

        wait_until(refused, "a password is wanted", timeout=LAG)
        with Connection(site.a.port) as conn:
            assert outcome(conn, "PING") == "NOAUTH"
            root.call(*OPEN[0])
            wait_until(lambda: said(conn, "PING") == b"PONG", "no password is wanted", timeout=LAG)

    def test_a_password_that_came_and_went_and_came_between_two_looks(self, site, root):
        root.call(*SHUT["requirepass"])

        def refused():
            with Connection(site.a.port) as conn:
                return outcome(conn, "PING") == "NOAUTH"

        wait_until(refused, "a password is wanted", timeout=LAG)
        for _ in range(3):
            # wherever in the proxy's interval this falls: whoever came meanwhile may be in, whoever comes later is not
            root.call("CONFIG", "SET", "requirepass", "")
            with Connection(site.a.port) as conn:
                wait_until(lambda: said(conn, "PING") == b"PONG", "in", timeout=LAG)
            root.call("CONFIG", "SET", "requirepass", "pw")
            wait_until(refused, "a password is wanted again", timeout=LAG)

    def test_the_upstreams_password_is_replaced(self, lab):
        """The address names a user: new sessions are what its password is worth now."""
        server = lab.server()
        with Connection(server.port) as direct:
            direct.call("ACL", "SETUSER", "app", "on", ">one", "~*", "&*", "+@all")
            proxy = lab.proxy(f"redis://app:one@127.0.0.1:{server.port}/0")
            with Connection(proxy.port) as early:
                assert early.call("ACL", "WHOAMI") == b"app"
                direct.call("ACL", "SETUSER", "app", ">two", "<one")

                def refused():
                    with Connection(proxy.port) as conn:
                        return outcome(conn, "PING") == "WRONGPASS"

                wait_until(refused, "a new session is refused", timeout=LAG)
                assert early.call("ACL", "WHOAMI") == b"app"
                direct.call("ACL", "SETUSER", "app", ">one")

                def taken():
                    with Connection(proxy.port) as conn:
                        return said(conn, "PING") == b"PONG"

                wait_until(taken, "the password is good again", timeout=LAG)


def test_a_right_granted_and_withdrawn_between_two_looks_is_not_outlived(site, root):
    root.call("ACL", "SETUSER", "bob", "-get")
    root.call("SET", "k", "v")
    with bob(site) as conn:
        wait_until(lambda: outcome(conn, "GET", "k") == "NOPERM", "the right is gone", timeout=LAG)
        cached = 0
        for _ in range(6):
            root.call("ACL", "SETUSER", "bob", "+get")
            for _ in range(20):
                conn.call("GET", "k")
            cached += b"hit" in conn.call("NEARSIDE", "EXPLAIN", "GET", "k")[0]
            root.call("ACL", "SETUSER", "bob", "-get")
            wait_until(lambda: outcome(conn, "GET", "k") == "NOPERM", "the right is gone again", timeout=LAG)
        assert cached, "never a hit while the right was there: nothing was tested"
