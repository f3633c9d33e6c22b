"""A change of rights that is said through the proxy takes effect there before it is acknowledged; only one said elsewhere has a lag."""

import time

import pytest

from conftest import _healthy_site
from processes import KINDS, cached, is_hit, wait_until
from test_rights import LAG, OPEN, let_in, outcome, said
from wire import Connection, ReplyError

pytestmark = pytest.mark.needs_proxy

FULL = ("~*", "&*", "+@all")


@pytest.fixture(params=[kind for kind in KINDS if kind != "redis6.2"])
def site(request, _shared_sites):
    return _healthy_site(_shared_sites, request.param)


@pytest.fixture
def root(site):
    """A connection through proxy A that no change of the default user concerns."""
    with Connection(site.server.port) as direct:
        direct.call("ACL", "SETUSER", "root", "reset", "on", ">root", *FULL)
        direct.call("AUTH", "root", "root")
        for user in ("bob", "eve"):
            direct.call("ACL", "SETUSER", user, "reset", "on", ">secret", *FULL)
        direct.call("SET", "k", "v")
        with Connection(site.a.port) as conn:
            conn.call("AUTH", "root", "root")
            yield conn
        with logged_in(site.a.port, "root", "root") as conn:
            for words in (*OPEN, ("ACL", "DELUSER", "eve")):
                conn.call(*words)
        for proxy in (site.a, site.b):
            wait_until(lambda: let_in(proxy), "everybody is let in again", timeout=LAG)


def logged_in(port, user="bob", password="secret", protocol=2):
    conn = Connection(port, protocol=protocol)
    conn.call("AUTH", user, password)
    return conn


def plain(conn, *words):
    return said(conn, *words)


def in_multi(conn, *words):
    conn.pipeline([("MULTI",), words])
    return conn.call("EXEC")[0]


def in_multi_after_watch(conn, *words):
    conn.call("WATCH", "nothing")
    return in_multi(conn, *words)


def past_the_proxys_eyes(conn, *words):
    """From here on the session's bytes pass unlooked at."""
    conn.call("CLIENT", "NO-EVICT", "off")
    return plain(conn, *words)


def past_its_eyes_in_multi(conn, *words):
    conn.call("CLIENT", "NO-EVICT", "off")
    return in_multi(conn, *words)


def while_tracking(conn, *words):
    conn.call("HELLO", 3)
    conn.call("CLIENT", "TRACKING", "on")
    return plain(conn, *words)


def as_a_subscriber(conn, *words):
    conn.call("HELLO", 3, "AUTH", "root", "root")
    conn.call("SUBSCRIBE", "news")
    return plain(conn, *words)


def while_watching(conn, *words):
    """A session that has said MONITOR: its replies come among what others do."""
    conn.call("MONITOR")
    conn.send(*words)
    while True:
        reply = conn.read()
        if not (isinstance(reply, bytes) and reply[:1].isdigit()):
            return reply


WAYS = [plain, in_multi, in_multi_after_watch, past_the_proxys_eyes, past_its_eyes_in_multi, while_tracking, as_a_subscriber]
WAYS += [while_watching]


def named(values):
    return pytest.mark.parametrize("way", values, ids=lambda way: way.__name__)


CHANGES = {
    "command": ("-get",),
    "category": ("-@read",),
    "keys": ("resetkeys", "~other*"),
    "reset": ("reset", "on", ">secret", "~*", "+ping"),
    "there and back": ("-get",),
}


class TestRights:
    @named(WAYS)
    def test_a_right_is_withdrawn_in_every_way(self, site, root, way):
        with logged_in(site.a.port) as conn, logged_in(site.server.port) as bare:
            for _ in range(2):
                assert cached(conn, "GET", "k") == b"v"
                with logged_in(site.a.port, "root", "root") as admin:
                    assert way(admin, "ACL", "SETUSER", "bob", "-get") == b"OK"
                    assert said(conn, "GET", "k") == said(bare, "GET", "k")
                    assert outcome(bare, "GET", "k") == "NOPERM"
                root.call("ACL", "SETUSER", "bob", "+get")

    @pytest.mark.parametrize("protocol", [2, 3])
    @pytest.mark.parametrize("change", CHANGES)
    def test_whatever_right_it_is(self, site, root, change, protocol):
        with logged_in(site.a.port, protocol=protocol) as conn, logged_in(site.server.port, protocol=protocol) as bare:
            for _ in range(3):
                root.call("ACL", "SETUSER", "bob", *FULL)
                assert cached(conn, "GET", "k") == b"v"
                if change == "there and back":
                    root.pipeline([("ACL", "SETUSER", "bob", "-get"), ("ACL", "SETUSER", "bob", "+get")])
                root.call("ACL", "SETUSER", "bob", *CHANGES[change])
                assert said(conn, "GET", "k") == said(bare, "GET", "k")
                assert outcome(conn, "GET", "k") == "NOPERM"
                root.call("ACL", "SETUSER", "bob", *FULL)
                assert conn.call("GET", "k") == b"v", "a right that is granted"

    def test_get_and_mget_stop_answering_for_each_other(self, site, root):
        with logged_in(site.a.port) as conn:
            for _ in range(10):
                root.call("ACL", "SETUSER", "bob", *FULL)
                wait_until(lambda: (conn.call("MGET", "k"), is_hit(conn, "GET", "k"))[1], "MGET fills for GET", timeout=LAG)
                root.call("ACL", "SETUSER", "bob", "-get")
                assert conn.call("MGET", "k") == [b"v"]
                assert outcome(conn, "GET", "k") == "NOPERM"
                root.call("ACL", "SETUSER", "bob", "+get", "-mget")
                assert conn.call("GET", "k") == b"v"
                assert outcome(conn, "MGET", "k") == "NOPERM"

    def test_a_database_that_the_user_may_not_select(self, site, root):
        """The right to SELECT, and where the server has it, that to the very database."""
        rules = [("-select",), ("+select", "db=0,1")] if site.server.kind == "valkey" else [("-select",)]
        for rule in rules:
            root.call("ACL", "SETUSER", "bob", "reset", "on", ">secret", *FULL)
            with logged_in(site.a.port) as conn, logged_in(site.server.port) as bare:
                for db in (1, 2, 0):
                    assert conn.call("SELECT", db) == bare.call("SELECT", db) == b"OK"
                root.call("ACL", "SETUSER", "bob", *rule)
                for words in [("SELECT", 2), ("DBSIZE",), ("SELECT", 1), ("SELECT", 99), ("SELECT", "x"), ("SELECT", -1), ("SELECT", 0), ("GET", "k")]:
                    assert said(conn, *words) == said(bare, *words), (rule, words)

    def test_whatever_the_command_is_called(self, lab, site):
        server = lab.server(site.server.kind, options=["--rename-command", "ACL", "rights", "--rename-command", "CONFIG", "setting"])
        proxy = lab.proxy(server.port)
        with Connection(proxy.port) as root:
            root.call("SET", "k", "v")
            root.call("RIGHTS", "SETUSER", "bob", "on", ">secret", *FULL)
            with logged_in(proxy.port) as conn:
                for _ in range(3):
                    assert cached(conn, "GET", "k") == b"v"
                    root.call("rights", "setuser", "bob", "-get")
                    assert outcome(conn, "GET", "k") == "NOPERM"
                    root.call("rights", "setuser", "bob", "+get")
                assert root.call("rights", "deluser", "bob") == 1
                assert said(conn, "GET", "k") == "closed"
            root.call("setting", "set", "requirepass", "pw")
            assert not let_in(proxy)

    def test_a_change_whose_reply_is_lost(self, lab, site):
        """Nobody knows whether it was done; the lane by which the hit was read is as it was."""
        relayed = lab.site(site.server.kind, relayed=True)
        with Connection(relayed.a.port) as root:
            root.call("ACL", "SETUSER", "bob", "on", ">secret", *FULL)
            root.call("SET", "k", "v")
            with logged_in(relayed.a.port) as conn:
                cached(conn, "GET", "k")
                root.call("MULTI")
                assert root.call("ACL", "SETUSER", "bob", "-get") == b"QUEUED"
                relayed.relay.stall("dedicated")
                root.send("EXEC")
                with Connection(relayed.server.port) as direct:
                    wait_until(lambda: b"-get" in direct.call("ACL", "LIST")[0], "it is done")
                relayed.relay.cut("dedicated")
                root.read_to_end()
                assert outcome(conn, "GET", "k") == "NOPERM"


class TestLogins:
    @named([plain, in_multi, past_the_proxys_eyes, while_watching])
    def test_a_password_is_wanted_from_everybody_who_comes(self, site, root, way):
        assert let_in(site.a)
        for words in (("CONFIG", "SET", "requirepass", "pw"), ("CONFIG", "SET", "maxmemory", "0", "RequirePass", "pw")):
            with logged_in(site.a.port, "root", "root") as admin:
                assert way(admin, *words) == b"OK"
                assert not let_in(site.a)
            root.call("CONFIG", "SET", "requirepass", "")
            assert let_in(site.a), "at once, too"

    def test_the_default_user_is_switched_off(self, site, root):
        for words in (("off",), ("resetpass",)):
            assert let_in(site.a)
            root.call("ACL", "SETUSER", "default", *words)
            assert not let_in(site.a)
            root.call("ACL", "SETUSER", "default", "on", "nopass")
            assert let_in(site.a)

    def test_a_password_is_replaced(self, site, root):
        for old, new in [("secret", "new"), ("new", "secret")] * 3:
            logged_in(site.a.port, password=old).close()
            root.call("ACL", "SETUSER", "bob", f">{new}", f"<{old}")
            with Connection(site.a.port) as conn:
                assert outcome(conn, "AUTH", "bob", old) == "WRONGPASS"
                assert conn.call("AUTH", "bob", new) == b"OK"

    def test_a_session_that_has_become_somebody_else_unseen_goes_on(self, site, root):
        """What passes unlooked at may be RESET: then the user that is deleted is not the session's any more."""
        root.call("ACL", "SETUSER", "eve", "on", ">secret", *FULL)
        with logged_in(site.a.port, "eve") as conn, logged_in(site.a.port, "eve") as other:
            for each in (conn, other):
                each.call("CLIENT", "NO-EVICT", "off")
            assert conn.call("RESET") == b"RESET"
            root.call("ACL", "DELUSER", "eve")
            assert said(other, "GET", "k") == "closed"
            assert conn.call("GET", "k") == b"v"

    @named(WAYS)
    def test_the_sessions_of_a_deleted_user_end(self, site, root, way):
        for _ in range(3):
            root.call("ACL", "SETUSER", "eve", "on", ">secret", *FULL)
            sessions = [logged_in(site.a.port, "eve", protocol=2 + n % 2) for n in range(4)]
            assert cached(sessions[0], "GET", "k") == b"v"
            sessions[1].call("MULTI")
            sessions[3].call("SUBSCRIBE", "news")
            with logged_in(site.a.port, "root", "root") as admin:
                assert way(admin, "ACL", "DELUSER", "nobody", "eve") == 1
            assert [said(conn, "GET", "k") for conn in sessions] == ["closed"] * 4
            [conn.close() for conn in sessions]
            with Connection(site.a.port) as conn:
                assert outcome(conn, "AUTH", "eve", "secret") == "WRONGPASS"

    def test_whoever_deletes_himself_is_told_and_closed(self, site, root):
        for words in ([("ACL", "DELUSER", "eve"), ("SET", "k", "w")], [("MULTI",), ("ACL", "DELUSER", "eve"), ("EXEC",), ("SET", "k", "w")]):
            told = []
            for port in (site.a.port, site.server.port):
                root.call("ACL", "SETUSER", "eve", "on", ">secret", *FULL)
                with logged_in(port, "eve") as conn:
                    conn.send_raw(b"".join(b"*%d\r\n" % len(w) + b"".join(b"$%d\r\n%s\r\n" % (len(x), x.encode()) for x in w) for w in words))
                    told.append(conn.read_to_end())
            assert told[0] == told[1]
            assert root.call("GET", "k") == b"v"

    def test_a_namesake_shares_nothing(self, site, root):
        """Deleted and made again in one go, with the same password and the same rights."""
        for _ in range(3):
            root.call("ACL", "SETUSER", "eve", "reset", "on", ">secret", *FULL)
            with logged_in(site.a.port, "eve") as conn:
                cached(conn, "GET", "k")
                root.pipeline([("ACL", "DELUSER", "eve"), ("ACL", "SETUSER", "eve", "reset", "on", ">secret", *FULL)])
                assert said(conn, "GET", "k") == "closed"

    def test_the_file_of_users_is_loaded(self, lab, site, tmp_path):
        users = tmp_path / "users.acl"
        all_of = "user default on nopass ~* &* +@all\nuser bob on >secret ~* &* +@all\n"
        users.write_text(all_of + "user eve on >secret ~* &* +@all\n")
        server = lab.server(site.server.kind, options=["--aclfile", str(users)])
        proxy = lab.proxy(server.port)
        with Connection(proxy.port) as root, logged_in(proxy.port) as bob, logged_in(proxy.port, "eve") as eve:
            root.call("SET", "k", "v")
            assert cached(bob, "GET", "k") == cached(eve, "GET", "k") == b"v"
            users.write_text(all_of.replace("+@all\n", "+@all -get\n"))
            assert root.call("ACL", "LOAD") == b"OK"
            assert outcome(bob, "GET", "k") in ("NOPERM", "closed")
            assert said(eve, "GET", "k") == "closed"
            users.write_text("user default off nopass\n" + all_of.splitlines()[1])
            assert root.call("ACL", "LOAD") == b"OK"
            assert not let_in(proxy)


REFUSED = [("ACL", "SETUSER", "bob", "-get"), ("ACL", "DELUSER", "bob"), ("ACL", "LOAD"), ("CONFIG", "SET", "requirepass", "x")]


def noticed(site):
    """Returns once the watches of both proxies have taken in what was changed past them."""
    site.server.wait_for_looks(4, timeout=LAG)


@named([plain, in_multi, past_the_proxys_eyes, while_tracking])
def test_a_refused_change_costs_others_nothing(site, root, way):
    root.call("ACL", "SETUSER", "eve", "on", "-acl", "-config")
    noticed(site)
    with logged_in(site.a.port) as conn, logged_in(site.a.port, "eve") as eve:
        cached(conn, "GET", "k")
        before = site.a.stats()
        for words in REFUSED * 5:
            try:
                assert str(way(eve, *words)).startswith("NOPERM")
            except ReplyError as error:
                assert str(error).startswith("EXECABORT")
            assert is_hit(conn, "GET", "k")
        after = site.a.stats()
        assert all(after[name] == value for name, value in before.items() if name.startswith("flushes_"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "redis6.2"])
def test_the_first_refusal_of_all_costs_others_nothing(lab, kind):
    """With it the command gets a line of no call in the server's statistics. Before: the line was new, and the cache was flushed."""
    site = lab.site(kind, settings={"audit_one_in": 0})
    site.server.call("ACL", "SETUSER", "eve", "on", ">secret", *FULL, "-acl", "-config", "-swapdb")
    site.server.call("SET", "k", "v")
    noticed(site)
    with Connection(site.a.port) as conn, logged_in(site.a.port, "eve") as eve:
        cached(conn, "GET", "k")
        before = site.a.stats()
        for words in (*REFUSED, ("SWAPDB", 0, 1)):
            assert said(eve, *words).startswith("NOPERM")
        noticed(site)
        after = site.a.stats()
        assert is_hit(conn, "GET", "k")
        assert all(after[name] == value for name, value in before.items() if name.startswith("flushes_"))


def test_a_change_that_the_server_cannot_take_costs_others_nothing(site, root):
    noticed(site)
    with logged_in(site.a.port) as conn:
        cached(conn, "GET", "k")
        for words in (("ACL", "SETUSER", "bob", "nonsense"), ("ACL", "DELUSER", "nobody"), ("ACL", "LOAD"), ("CONFIG", "SET", "nonsense", "1")):
            said(root, *words)
            assert is_hit(conn, "GET", "k") or words[1] == "DELUSER"


def test_a_password_set_as_soon_as_the_proxy_is_there(lab, site):
    """Between the first client and the watch's first look, wherever that falls."""
    server = lab.server(site.server.kind)
    with Connection(server.port) as direct:
        direct.call("ACL", "SETUSER", "root", "on", ">root", *FULL)
        direct.call("AUTH", "root", "root")
        for n in range(8):
            direct.call("CONFIG", "SET", "requirepass", "")
            proxy = lab.proxy(server.port, f"new{n}")
            time.sleep(n % 4 * 0.002)
            direct.call("CONFIG", "SET", "requirepass", "pw")
            wait_until(lambda: not let_in(proxy), f"the password is noticed, try {n}", timeout=LAG)
            proxy.kill()
