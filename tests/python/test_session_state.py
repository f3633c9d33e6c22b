"""What a session may ask about itself and about others, and what no invalidation announces."""

import time

import pytest

from processes import cached, wait_until
from wire import Connection, ReplyError, encode

pytestmark = pytest.mark.needs_proxy


def test_unblock_reaches_the_blocked_client(redis_site):
    with Connection(redis_site.a.port) as blocked, Connection(redis_site.a.port) as other:
        number = blocked.call("CLIENT", "ID")
        blocked.send("BLPOP", "nothing", 30)
        wait_until(lambda: other.call("CLIENT", "UNBLOCK", number) == 1, "the client is blocked")
        assert blocked.read() is None
        assert other.call("CLIENT", "UNBLOCK", number) == 0
        blocked.send("BLPOP", "nothing", 30)
        wait_until(lambda: other.call("CLIENT", "UNBLOCK", number, "ERROR") == 1, "it is blocked again")
        assert "UNBLOCKED" in str(blocked.read())
        assert blocked.call("PING") == b"PONG"


def test_tracking_redirects_to_a_client_by_our_number(redis_site):
    with Connection(redis_site.a.port) as listener, Connection(redis_site.a.port) as reader:
        number = listener.call("CLIENT", "ID")
        listener.call("SUBSCRIBE", "__redis__:invalidate")
        assert reader.call("CLIENT", "TRACKING", "ON", "REDIRECT", number) == b"OK"
        reader.call("GET", "tracked")
        redis_site.server.call("SET", "tracked", 1)
        assert listener.read() == [b"message", b"__redis__:invalidate", [b"tracked"]]


def test_tracking_in_resp3_pushes_to_its_own_connection(redis_site):
    with Connection(redis_site.a.port, protocol=3) as reader:
        assert reader.call("CLIENT", "TRACKING", "ON") == b"OK"
        reader.call("GET", "tracked")
        redis_site.server.call("SET", "tracked", 1)
        assert reader.read() == [b"invalidate", [b"tracked"]]
        assert reader.call("GET", "tracked") == b"1"


def test_wait_counts_no_replicas_where_there_are_none(redis_site):
    with Connection(redis_site.a.port) as conn:
        conn.call("SET", "k", 1)
        assert conn.call("WAIT", 0, 100) == 0
        assert conn.call("WAIT", 1, 50) == 0


def test_wait_is_about_what_this_client_wrote(lab):
    """A replica that is frozen has not acknowledged the write, whatever connection WAIT is sent on."""
    site = lab.site()
    replica = lab.server(options=("--replicaof", f"127.0.0.1 {site.server.port}"))
    wait_until(lambda: "master_link_status:up" in str(replica.call("INFO", "replication")), "the replica is in step")
    with Connection(site.a.port) as conn:
        conn.call("BLPOP", "nothing", 0.01)
        conn.call("SET", "k", 1)
        assert conn.call("WAIT", 1, 5000) == 1
        replica.freeze()
        conn.call("SET", "k", 2)
        assert conn.call("WAIT", 1, 200) == 0
        replica.thaw()
        assert conn.call("WAIT", 1, 5000) == 1


def test_kill_by_number_address_and_self(redis_site):
    with Connection(redis_site.a.port) as victim, Connection(redis_site.a.port) as other:
        number = victim.call("CLIENT", "ID")
        assert other.call("CLIENT", "KILL", "ID", number) == 1
        assert victim.read_to_end() == b""
        with pytest.raises(ReplyError, match="No such client"):
            other.call("CLIENT", "KILL", "1.2.3.4:5")
        own = other.call("CLIENT", "ID")
        assert other.call("CLIENT", "KILL", "ID", own, "SKIPME", "no") == 1
        assert other.read_to_end() == b""


def test_what_the_server_said_before_it_closed_arrives(redis_site):
    """Each piece of an unlooked-at session waits for a barrier; the server's end may be seen meanwhile."""
    redis_site.server.call("SET", "large", b"x" * 3_000_000)
    for _ in range(10):
        with Connection(redis_site.a.port) as conn:
            assert conn.call("CLIENT", "NO-EVICT", "ON") == b"OK"
            conn.send_raw(encode("GET", "large") + encode("QUIT"))
            assert len(conn.read()) == 3_000_000
            assert conn.read() == b"OK"
            with pytest.raises(ConnectionError):
                conn.read()


def test_who_hears_that_they_are_killed_finds_them_closed(lab):
    """A client library that looks before it sends then opens another connection, instead of failing once."""
    site = lab.site()
    with Connection(site.a.port) as killer:
        for _ in range(100):
            with Connection(site.a.port) as victim:
                assert killer.call("CLIENT", "KILL", "ID", victim.call("CLIENT", "ID")) == 1
                victim.sock.setblocking(False)
                assert victim.sock.recv(1) == b""


@pytest.mark.parametrize("protocol", [2, 3])
def test_names_and_numbers_are_the_clients_own(site, protocol):
    with Connection(site.a.port, protocol=protocol) as one, Connection(site.a.port) as two:
        assert one.call("CLIENT", "ID") != two.call("CLIENT", "ID")
        assert one.call("CLIENT", "GETNAME") is None
        one.call("CLIENT", "SETNAME", "me")
        if site.server.kind == "redis":
            with pytest.raises(ReplyError, match="unknown subcommand"):
                one.call("CLIENT", "SETINFO", "LIB-NAME", "mine")
        else:
            one.call("CLIENT", "SETINFO", "LIB-NAME", "mine")
            assert "lib-name=mine" in two.call("CLIENT", "LIST").decode()
        assert (one.call("CLIENT", "GETNAME"), two.call("CLIENT", "GETNAME")) == (b"me", None)
        listed = two.call("CLIENT", "LIST").decode()
        assert "name=me" in listed and f"resp={protocol}" in listed
        with pytest.raises(ReplyError, match="Client names cannot contain spaces"):
            one.call("CLIENT", "SETNAME", "two words")


def test_reset_forgets_everything(redis_site):
    with Connection(redis_site.a.port, protocol=3, db=3) as conn:
        conn.call("CLIENT", "SETNAME", "me")
        conn.call("MULTI")
        assert conn.call("RESET") == b"RESET"
        conn.call("SET", "k", "in database 0")
        assert redis_site.server.call("GET", "k") == b"in database 0"
        assert conn.call("CLIENT", "GETNAME") is None


def test_databases_that_do_not_exist_leave_no_lanes(redis_site):
    with Connection(redis_site.a.port) as conn:
        before = redis_site.a.stats()["lanes"]
        for db in range(16, 200):
            with pytest.raises(ReplyError, match="DB index is out of range"):
                conn.call("SELECT", db)
        assert redis_site.a.stats()["lanes"] <= before + 1
        assert conn.call("PING") == b"PONG"


def test_swapdb_behind_our_back(redis_site):
    server = redis_site.server
    server.call("SET", "k", "zero")
    with Connection(redis_site.a.port) as conn:
        assert cached(conn, "GET", "k") == b"zero"
        server.call("SWAPDB", 0, 1)
        wait_until(lambda: conn.call("GET", "k") is None, "the swap is seen", timeout=2)
        server.call("SWAPDB", 0, 1)
        wait_until(lambda: conn.call("GET", "k") == b"zero", "the second swap is seen", timeout=2)


def test_swapdb_through_the_proxy_is_seen_at_once(redis_site):
    with Connection(redis_site.a.port) as conn, Connection(redis_site.a.port) as other:
        conn.call("SET", "k", "zero")
        cached(other, "GET", "k")
        conn.call("SWAPDB", 0, 1)
        assert other.call("GET", "k") is None
        conn.call("SWAPDB", 0, 1)
        assert other.call("GET", "k") == b"zero"


def test_swapdb_by_a_session_that_passes_unlooked_at(redis_site):
    """SELECT between WATCH and EXEC makes a session pass its bytes on as they are; found by the differential test."""
    with Connection(redis_site.a.port) as pinned, Connection(redis_site.a.port) as other:
        pinned.call("WATCH", "k")
        pinned.call("SELECT", 0)
        pinned.call("SET", "k", "zero")
        for _ in range(10):
            was = cached(other, "GET", "k")
            pinned.call("swapdb", 0, 1)
            assert other.call("GET", "k") != was


@pytest.mark.parametrize("protocol", [2, 3])
def test_channels_are_those_that_clients_listen_to(redis_site, protocol):
    with Connection(redis_site.a.port) as listener, Connection(redis_site.a.port, protocol=protocol) as other:
        assert other.call("PUBSUB", "CHANNELS") == []
        listener.call("SUBSCRIBE", "news")
        assert other.call("PUBSUB", "CHANNELS") == [b"news"]
        assert other.call("PUBSUB", "CHANNELS", "__redis__*") == []
        other.call("WATCH", "k")
        assert other.call("pubsub", "channels", "n*") == [b"news"]
        with pytest.raises(ReplyError, match=r"wrong number|Unknown"):
            other.call("PUBSUB", "CHANNELS", "a", "b")


class TestUsers:
    @pytest.fixture
    def user(self, site):
        site.server.call("ACL", "SETUSER", "bob", "reset", "on", ">secret", "~*", "&*", "+@all")
        yield site
        site.server.call("ACL", "DELUSER", "bob")

    def bob(self, site, password="secret"):
        conn = Connection(site.a.port)
        conn.call("AUTH", "bob", password)
        return conn

    def test_a_database_outlives_the_user_who_chose_it(self, user):
        with self.bob(user) as conn:
            conn.call("SELECT", 3)
            conn.call("AUTH", "default", "any")
            conn.call("SET", "k", "three")
            user.server.call("ACL", "DELUSER", "bob")
            user.server.call("ACL", "SETUSER", "carol", "reset", "on", "nopass", "~*", "+get", "+select")
            assert conn.call("AUTH", "carol", "any") == b"OK"
            assert conn.call("GET", "k") == b"three"
            assert conn.call("AUTH", "default", "other") == b"OK"
            assert conn.call("PING") == b"PONG"
            assert conn.call("GET", "k") == b"three"
            assert conn.call("ACL", "DELUSER", "carol") == 1

    def test_a_database_outlives_the_right_to_choose_it(self, lab):
        """As long as the proxy's own user can log in."""
        server = lab.server()
        server.call("ACL", "SETUSER", "proxy", "on", ">own", "~*", "&*", "+@all")
        server.call("ACL", "SETUSER", "bob", "reset", "on", ">secret", "+acl")
        proxy = lab.proxy(f"redis://proxy:own@127.0.0.1:{server.port}/0")
        with Connection(proxy.port) as conn, Connection(server.port) as direct:
            conn.call("AUTH", "default", "any")
            conn.call("SELECT", 2)
            direct.call("ACL", "SETUSER", "default", "off")
            assert conn.call("AUTH", "bob", "secret") == b"OK"
            assert conn.call("ACL", "WHOAMI") == b"bob"

    @pytest.fixture
    def chosen(self, user):
        """A session in a database that its next user may not select, and a connection past the proxy."""
        user.server.call("ACL", "SETUSER", "bob", "reset", "on", ">secret", "+acl")
        with Connection(user.a.port) as conn, Connection(user.server.port) as direct:
            conn.call("SELECT", 2)
            yield conn, direct
            direct.call("ACL", "SETUSER", "default", "on", "nopass")

    def test_who_chose_the_database_has_another_password_since(self, chosen):
        """The proxy itself cannot log in any more: the server wants a password, which a client gives."""
        conn, direct = chosen
        direct.call("CONFIG", "SET", "requirepass", "new")
        assert conn.call("AUTH", "new") == b"OK"
        assert conn.call("AUTH", "bob", "secret") == b"OK"
        assert conn.call("ACL", "WHOAMI") == b"bob"

    def test_a_database_that_nobody_can_select_any_more(self, chosen):
        """Neither the proxy's user nor who chose it can log in, the present user may not: the one difference, told by an error."""
        conn, direct = chosen
        direct.call("ACL", "SETUSER", "default", "off")
        assert conn.call("AUTH", "bob", "secret") == b"OK"
        with pytest.raises(ReplyError, match=r"NOPERM.*'select'"):
            conn.call("ACL", "WHOAMI")
        direct.call("ACL", "SETUSER", "default", "on")

        def is_back():
            try:
                return conn.call("ACL", "WHOAMI") == b"bob"
            except ReplyError:
                return False

        wait_until(is_back, "it can be selected again")

    @pytest.mark.parametrize("protocol", [2, 3])
    def test_the_log_of_refusals_holds_what_the_client_was_refused(self, user, protocol):
        user.server.call("ACL", "SETUSER", "bob", "reset", "on", ">secret", "~open*", "+get", "+hget", "+hgetall")
        user.server.call("HSET", "open:hash", "f", "v")
        user.server.call("ACL", "LOG", "RESET")
        with Connection(user.a.port, protocol) as bob:
            with pytest.raises(ReplyError, match="WRONGPASS"):
                bob.call("AUTH", "bob", "wrong")
            bob.call("AUTH", "bob", "secret")
            for words in (("GET", "open"), ("HGET", "open:hash", "f"), ("HGETALL", "open:hash")):
                [bob.call(*words) for _ in range(3)]
            # several heartbeats
            time.sleep(0.5)
            for words in (("DEL", "open"), ("GET", "closed")):
                with pytest.raises(ReplyError, match="NOPERM"):
                    bob.call(*words)
            with pytest.raises(ReplyError, match="NOPERM"):
                bob.call("SUBSCRIBE", "news")
        logged = [dict(zip(entry[::2], entry[1::2], strict=True)) for entry in user.server.call("ACL", "LOG")]
        assert [(e[b"reason"], e[b"object"], e[b"count"]) for e in reversed(logged)] == [
            (b"auth", b"AUTH", 1),
            (b"command", b"del", 1),
            (b"key", b"closed", 1),
            (b"command", b"subscribe", 1),
        ]

    def test_a_lane_that_was_open_before_the_link_asks_for_its_rights_then(self, lab):
        server = lab.server()
        server.call("ACL", "SETUSER", "proxy", "on", ">own", "~*", "&*", "+@all", "-subscribe")
        server.call("ACL", "SETUSER", "bob", "reset", "on", ">secret", "~*", "+get")
        proxy = lab.proxy(f"redis://proxy:own@127.0.0.1:{server.port}/0")
        with Connection(proxy.port) as bob:
            bob.call("AUTH", "bob", "secret")
            assert bob.call("GET", "k") is None
            server.call("ACL", "SETUSER", "proxy", "+subscribe")
            wait_until(lambda: proxy.stats()["link"] == "up", "the link is up", timeout=20)
            server.call("ACL", "LOG", "RESET")
            time.sleep(0.5)
            assert bob.call("GET", "k") is None
            assert server.call("ACL", "LOG") == []

    def test_rights_of_which_nobody_hears_are_not_waited_for(self, lab):
        """A lane that waited for them would never be armed for the next link."""
        site = lab.site(relayed=True, settings={"connect_timeout": "500ms"})
        site.server.call("ACL", "SETUSER", "bob", "reset", "on", ">secret", "~*", "+@all")
        with self.bob(site) as bob:
            assert cached(bob, "GET", "k") is None
            site.relay.stall("rights")
            site.server.call("ACL", "SETUSER", "carol", "on")
            wait_until(lambda: "ACL has changed" in site.a.read_log(), "the change is seen")
            site.relay.cut("link")
            assert cached(bob, "GET", "k") is None

    def test_who_may_not_what_a_fill_asks_is_cached_for_once_it_may(self, user):
        user.server.call("SET", "k", "v")
        user.server.call("ACL", "SETUSER", "bob", "reset", "on", ">secret", "~*", "+get", "+client")
        with self.bob(user) as bob:
            for _ in range(5):
                assert bob.call("GET", "k") == b"v"
            assert b"miss" in bob.call("NEARSIDE", "EXPLAIN", "GET", "k")[0]
            user.server.call("ACL", "SETUSER", "bob", "+pttl", "+ping")
            assert cached(bob, "GET", "k") == b"v"
            user.server.call("ACL", "SETUSER", "bob", "-client")
            wait_until(lambda: b"miss" in bob.call("NEARSIDE", "EXPLAIN", "GET", "k")[0], "the change is seen")
            # a lane asks for its rights at its next heartbeat
            time.sleep(0.5)
            user.server.call("ACL", "LOG", "RESET")
            for _ in range(5):
                assert bob.call("GET", "k") == b"v"
            time.sleep(0.5)
            assert user.server.call("ACL", "LOG") == []
            assert b"miss" in bob.call("NEARSIDE", "EXPLAIN", "GET", "k")[0]

    def test_a_right_withdrawn_is_not_outlived_by_cached_replies(self, user):
        user.server.call("SET", "k", "v")
        with self.bob(user) as bob:
            assert cached(bob, "GET", "k") == b"v"
            user.server.call("ACL", "SETUSER", "bob", "-get")

            def refused():
                try:
                    return bob.call("GET", "k") is None
                except ReplyError as e:
                    return "NOPERM" in str(e)

            wait_until(refused, "the right is gone", timeout=3)

    def test_a_wrong_password_is_refused_though_the_users_lane_is_there(self, user):
        with self.bob(user) as bob:
            bob.call("SET", "k", "v")
        for words in (("AUTH", "bob", "wrong"), ("HELLO", "3", "AUTH", "bob", "wrong")):
            with Connection(user.a.port) as other, pytest.raises(ReplyError, match="WRONGPASS"):
                other.call(*words)

    def test_one_user_never_sees_what_another_may_read(self, user):
        user.server.call("SET", "hidden", "v")
        user.server.call("ACL", "SETUSER", "bob", "resetkeys", "~open*")
        with Connection(user.a.port) as anyone, self.bob(user) as bob:
            cached(anyone, "GET", "hidden")
            for words in (("GET", "hidden"), ("MGET", "hidden"), ("STRLEN", "hidden")):
                with pytest.raises(ReplyError, match="NOPERM"):
                    bob.call(*words)

    def test_the_connections_of_a_user_that_is_deleted_are_closed(self, user):
        with self.bob(user) as bob:
            bob.call("SET", "k", "v")
            user.server.call("ACL", "DELUSER", "bob")

            def closed():
                try:
                    return bob.call("GET", "k") is None
                except ConnectionError:
                    return True

            wait_until(closed, "the session is closed", timeout=3)


def test_a_subscriber_that_does_not_read_is_closed(lab):
    site = lab.site(settings={"client_output_buffer_limit_pubsub": "1mb"})
    with Connection(site.a.port) as slow, Connection(site.a.port) as publisher:
        slow.call("SUBSCRIBE", "flood")
        message = "x" * 100_000

        def closed():
            publisher.call("PUBLISH", "flood", message)
            return site.a.stats()["clients_slow"] == 1

        wait_until(closed, "the subscriber is closed", timeout=20)
        assert publisher.call("PUBLISH", "flood", message) == 0


@pytest.mark.parametrize("protocol", [2, 3])
def test_shard_channels_are_counted_apart(site, protocol):
    with Connection(site.a.port, protocol) as subscriber, Connection(site.a.port) as other:
        subscriber.call("SUBSCRIBE", "news")
        subscriber.call("SSUBSCRIBE", "shard")
        assert subscriber.call("UNSUBSCRIBE", "news") == [b"unsubscribe", b"news", 0]
        for message in (b"one", b"two"):
            assert other.call("SPUBLISH", "shard", message) == 1
            assert subscriber.read() == [b"smessage", b"shard", message]
        assert subscriber.call("SUNSUBSCRIBE", "shard") == [b"sunsubscribe", b"shard", 0]
        assert subscriber.call("ECHO", "it is over") == b"it is over"
        assert other.call("SPUBLISH", "shard", "three") == 0


@pytest.mark.parametrize("kept_by", [("CLIENT", "NO-EVICT", "ON"), ("CLIENT", "TRACKING", "ON")], ids=["unlooked", "tracking"])
def test_a_large_reply_is_no_message(lab, kept_by):
    """What keeps a connection of its own is no subscriber: the server has no limit for its replies either."""
    site = lab.site(settings={"client_output_buffer_limit_pubsub": "1mb"})
    site.server.call("SET", "large", b"x" * 20_000_000)
    with Connection(site.a.port, protocol=3) as conn:
        assert conn.call(*kept_by) == b"OK"
        assert len(conn.call("GET", "large")) == 20_000_000


def test_a_cached_read_passes_a_write_of_another_key(redis_site):
    """A client library that sends everything over one connection nearly always has a write outstanding."""
    with Connection(redis_site.a.port) as conn:
        conn.call("SET", "read", "old")
        cached(conn, "GET", "read")
        misses = redis_site.a.stats()["misses"]
        conn.send_raw(b"".join(encode("SET", "written", n) + encode("GET", "read") for n in range(50)))
        assert [conn.read() for _ in range(100)] == [b"OK", b"old"] * 50
        assert redis_site.a.stats()["misses"] == misses


def test_a_cached_read_does_not_pass_what_may_change_it(redis_site):
    script = "return redis.call('SET', 'read', ARGV[1])"
    with Connection(redis_site.a.port) as conn:
        for write in (("SET", "read"), ("MSET", "other", 1, "read"), ("EVAL", script, 0)):
            conn.call("SET", "read", "old")
            cached(conn, "GET", "read")
            conn.send_raw(encode(*write, "new") + encode("SET", "other", 1) + encode("GET", "read"))
            assert [conn.read() for _ in range(3)] == [b"OK", b"OK", b"new"], write


@pytest.mark.parametrize("level", ["causal", "linearizable"])
def test_above_bounded_a_read_passes_nothing(redis_site, level):
    with Connection(redis_site.a.ports[level]) as conn:
        conn.call("SET", "read", "old")
        cached(conn, "GET", "read")
        misses = redis_site.a.stats()["misses"]
        conn.send_raw(encode("SET", "written", 1) + encode("GET", "read"))
        assert [conn.read() for _ in range(2)] == [b"OK", b"old"]
        assert redis_site.a.stats()["misses"] == misses + 1


@pytest.mark.needs_proxy
@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_what_stands_behind_a_lost_transaction_is_done_nowhere(lab, kind):
    """More is sent than may be on its way at once. Before: when the connection was lost, the next request was done on the lane, outside
    of the transaction, in a session that was closed for it."""
    site = lab.site(kind, relayed=True, settings={"audit_one_in": 0})
    for _n in range(5):
        with Connection(site.a.port) as conn:
            assert conn.pipeline([("MULTI",), ("GET", "k"), ("EXEC",)])[-1] == [None]
            assert conn.call("MULTI") == b"OK"
            site.relay.stall("dedicated")
            conn.send_raw(encode("INCR", "never") * 3000)
            wait_until(lambda: b"multi=1024" in site.server.call("CLIENT", "LIST"), "the server has queued what it may be sent")
            site.relay.cut("dedicated")
            site.relay.resume("dedicated")
            assert b"\r\n:" not in conn.read_to_end(), "a number: an INCR that was done"
        assert site.server.call("GET", "never") is None
