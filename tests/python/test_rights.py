"""What a session may do is what a new connection of its user could do when the session began or logged in, within the documented
lag; however long the connections live that sessions share."""


import pytest

from processes import is_hit, wait_until
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
        for proxy in (site.a, site.b):
            wait_until(lambda: let_in(proxy), "everybody is let in again", timeout=LAG)


def delete(site, root, user):
    """Until both proxies have seen it: whoever is changed by the time they look is taken for somebody made anew."""
    before = {proxy: int(proxy.stats()["flushes_acl"]) for proxy in (site.a, site.b)}
    root.call("ACL", "DELUSER", user)
    for proxy, flushes in before.items():
        wait_until(lambda: int(proxy.stats()["flushes_acl"]) > flushes, "the ACL is looked at", timeout=LAG)


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
        hits = 0
        for _ in range(6):
            root.call("ACL", "SETUSER", "bob", "+get")
            for _ in range(20):
                conn.call("GET", "k")
            hits += is_hit(conn, "GET", "k")
            root.call("ACL", "SETUSER", "bob", "-get")
            wait_until(lambda: outcome(conn, "GET", "k") == "NOPERM", "the right is gone again", timeout=LAG)
        assert hits, "never a hit while the right was there: nothing was tested"


# what a session may begin, each on a connection of its own or of another database
BEGUN = [("MULTI",), ("EVAL", "return 1", 0), ("BLPOP", "nothing", "0.01"), ("SUBSCRIBE", "news"), ("SELECT", 3), ("HELLO", 3), ("PING",)]


class TestPasswords:
    @pytest.mark.parametrize("protocol", [2, 3])
    @pytest.mark.parametrize("words", BEGUN, ids=lambda words: words[0])
    def test_whoever_is_logged_in_goes_on_when_the_password_is_replaced(self, site, root, words, protocol):
        with Connection(site.a.port) as conn, Connection(site.server.port) as bare:
            for each in (conn, bare):
                each.call("HELLO", protocol, "AUTH", "bob", "secret")
                each.call("SET", "k", "v")
            root.call("ACL", "SETUSER", "bob", ">new", "<secret")
            outcomes = []
            for each in (conn, bare):
                outcomes.append([outcome(each, *words)])
                if words[0] == "MULTI":
                    outcomes[-1] += [said(each, "GET", "k"), said(each, "EXEC")]
                if words[0] == "HELLO":
                    outcomes[-1] = [outcomes[-1][0][b"proto"]]
            assert outcomes[0] == outcomes[1]
            with Connection(site.a.port) as late:
                assert outcome(late, "AUTH", "bob", "secret") == "WRONGPASS"
                assert late.call("AUTH", "bob", "new") == b"OK"
                assert late.call("SELECT", 5) == b"OK"

    def test_both_passwords_are_good_for_a_while(self, site, root):
        """Whoever logs in last with the old one does not shut out the others."""
        root.call("ACL", "SETUSER", "bob", ">new")
        with bob(site, "new") as one, bob(site) as other:
            root.call("ACL", "SETUSER", "bob", "<secret")
            for db in range(1, 6):
                for conn in (one, other):
                    assert conn.call("SELECT", db) == b"OK"
                    assert conn.call("EVAL", "return 1", 0) == 1

    def test_a_wrong_password_is_refused_whatever_others_have_given(self, site, root):
        with bob(site) as conn:
            conn.call("GET", "k")
            for words in (("AUTH", "bob", "wrong"), ("HELLO", 3, "AUTH", "bob", ""), ("AUTH", "bob", "secret2")):
                with Connection(site.a.port) as other:
                    assert outcome(other, *words) == "WRONGPASS"
                    assert other.call("ACL", "WHOAMI") == b"default"

    def test_whoever_cannot_get_a_connection_is_closed(self, site, root):
        """More than there are spare connections: the others are closed, and told nothing that no client expects."""
        sessions = [bob(site) for _ in range(24)]
        for conn in sessions:
            conn.call("GET", "k")
        root.call("ACL", "SETUSER", "bob", ">new", "<secret")
        outcomes = [outcome(conn, "SUBSCRIBE", f"news{n}") for n, conn in enumerate(sessions)]
        assert all(each == "closed" or each[0] == b"subscribe" for each in outcomes), outcomes
        [conn.close() for conn in sessions]

    def test_the_sessions_of_a_deleted_user_are_closed(self, site, root):
        root.call("ACL", "SETUSER", "eve", "reset", "on", ">secret", "~*", "&*", "+@all")
        sessions = {proxy: Connection(proxy.port) for proxy in (site.a, site.b)}
        for conn in sessions.values():
            conn.call("AUTH", "eve", "secret")
            conn.call("GET", "k")
        root.call("ACL", "DELUSER", "eve")
        for conn in sessions.values():
            # nothing is asked: a pool that looks at its connections sees that they are closed
            conn.sock.settimeout(LAG)
            assert conn.sock.recv(1) == b""
        root.call("ACL", "SETUSER", "eve", "reset", "on", ">other", "~*", "&*", "+@all")
        with Connection(site.a.port) as conn:
            assert outcome(conn, "AUTH", "eve", "secret") == "WRONGPASS"
            assert conn.call("AUTH", "eve", "other") == b"OK"
        delete(site, root, "eve")

    def test_a_namesake_shares_nothing_with_a_deleted_user(self, site, root):
        """Deleted and made anew between two looks."""
        root.call("ACL", "SETUSER", "eve", "reset", "on", ">old", "~*", "&*", "+@all")
        with Connection(site.a.port) as old, Connection(site.a.port) as new:
            old.call("AUTH", "eve", "old")
            old.call("GET", "k")
            root.call("ACL", "DELUSER", "eve")
            root.call("ACL", "SETUSER", "eve", "reset", "on", ">new", "~*", "&*", "+@all")
            new.call("AUTH", "eve", "new")
            wait_until(lambda: said(old, "GET", "k") == "closed", "the old session is closed", timeout=LAG)
        delete(site, root, "eve")

    def test_passwords_make_no_lanes(self, site, root):
        """Any password is right where none is set."""
        with Connection(site.a.port) as first:
            first.call("AUTH", "default", "first")
            first.call("GET", "k")
            before = len(site.server.clients_named("nearside-lane"))
            for n in range(100):
                with Connection(site.a.port) as conn:
                    conn.call("AUTH", "default", f"random{n}")
                    conn.call("GET", "k")
            # two threads, each with a lane for each of the two logins
            assert len(site.server.clients_named("nearside-lane")) <= before + 2
