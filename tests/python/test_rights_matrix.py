"""Rights at random: users with rules of every kind, sessions of both protocols in several databases, changes of users in between; each
reply through the proxy is compared byte by byte with that of a twin, a server of the same kind that hears the same without a proxy.

A change is said through the proxy, in one of the ways there are, or past it and is then given its lag. `NEARSIDE_RIGHTS_SECONDS` is how
long each server is driven (30); `NEARSIDE_SEED` makes the choices the same again.
"""

import os
import random
import re
import time
from collections import Counter
from contextlib import suppress

import pytest

from conftest import _close, _new_lab
from processes import KINDS, wait_until
from wire import Connection

pytestmark = pytest.mark.needs_proxy

SECONDS = float(os.environ.get("NEARSIDE_RIGHTS_SECONDS", "30"))
# a session without a connection to the server that its user could still log in by is closed: the only thing that may differ
USERS = [f"u{n}" for n in range(5)]
PASSWORDS = ["p0", "p1", "p2"]
KEYS = ["a:1", "a:2", "b:1", "b:2", "c"]
CHANNELS = ["a:n", "b:n", "c"]
DATABASES = [0, 0, 1, 2]
LAG = 3

VALUES = {
    "string": ["SET", "{key}", "{word}"],
    "list": ["RPUSH", "{key}:l", "{word}"],
    "hash": ["HSET", "{key}:h", "{word}", "{word}"],
    "set": ["SADD", "{key}:s", "{number}"],
    "sorted": ["ZADD", "{key}:z", "{number}", "{word}"],
}
READS = [
    ["GET", "{key}"], ["GET", "{key}"], ["GET", "{key}"], ["MGET", "{key}", "{key}"], ["MGET", "{key}"], ["MGET", "{key}", "{key}", "{key}"],
    ["STRLEN", "{key}"], ["EXISTS", "{key}"], ["EXISTS", "{key}", "{key}"], ["TYPE", "{key}"], ["GETRANGE", "{key}", "0", "2"],
    ["LRANGE", "{key}:l", "0", "3"], ["LLEN", "{key}:l"], ["HGET", "{key}:h", "{word}"], ["HLEN", "{key}:h"], ["HMGET", "{key}:h", "x", "y"],
    ["SCARD", "{key}:s"], ["SISMEMBER", "{key}:s", "{number}"], ["ZRANGE", "{key}:z", "0", "2"], ["ZSCORE", "{key}:z", "{word}"],
    ["BITCOUNT", "{key}"], ["GET", "{key}:l"], ["MGET", "{key}:l", "{key}"],
]
WRITES = [*VALUES.values(), ["APPEND", "{key}", "{word}"], ["DEL", "{key}"], ["INCR", "{key}:i"], ["MSET", "{key}", "{word}", "{key}", "{word}"]]
WRITES += [["RENAME", "{key}", "{key}"], ["COPY", "{key}", "{key}", "REPLACE"], ["LPOP", "{key}:l"], ["FLUSHDB"], ["SETRANGE", "{key}", "1", "{word}"]]
SCRIPTS = [
    ["EVAL", "return redis.call('GET', KEYS[1])", "1", "{key}"],
    ["EVAL", "return redis.call('MGET', KEYS[1], ARGV[1])", "1", "{key}", "{key}"],
    ["EVAL", "return redis.call('SET', KEYS[1], ARGV[1])", "1", "{key}", "{word}"],
    ["EVAL", "return redis.pcall('SET', ARGV[1], ARGV[2])", "0", "{key}", "{word}"],
    ["EVAL_RO", "return redis.call('GET', KEYS[1])", "1", "{key}"],
]
OTHERS = [
    ["PING"], ["ECHO", "{word}"], ["ACL", "WHOAMI"], ["CLIENT", "GETNAME"], ["CLIENT", "SETNAME", "{word}"], ["DBSIZE"], ["CONFIG", "GET", "maxmemory"],
    ["OBJECT", "ENCODING", "{key}"], ["OBJECT", "REFCOUNT"], ["NOSUCH", "{key}"], ["TTL", "{key}"], ["SCRIPT", "EXISTS", "{word}"], ["ACL", "CAT", "nosuch"],
    ["PUBLISH", "{channel}", "{word}"], ["BLPOP", "{key}:l", "0.001"], ["LASTSAVE", "x"], ["COMMAND", "COUNT"], ["ACL", "GETUSER", "nobody"],
    ["SORT", "{key}:l", "ALPHA", "BY", "nosort"], ["WATCH", "{key}"], ["UNWATCH"], ["SETEX", "{key}"], ["GET"], ["EXEC"], ["DISCARD"],
    # who may not say it is refused; who may is told that the user is not there, or else it would be a change
    ["ACL", "DELUSER", "nobody"], ["ACL", "SETUSER", "default", "nonsense"],
]
SESSION = [
    ["SELECT", "{db}"], ["SELECT", "{db}"], ["AUTH", "{user}", "{password}"], ["AUTH", "{user}", "{password}"], ["AUTH", "{user}", "nonsense"],
    ["HELLO", "2"], ["HELLO", "3"], ["HELLO", "3", "AUTH", "{user}", "{password}"], ["HELLO", "2", "AUTH", "{user}", "{password}", "SETNAME", "{word}"],
    ["HELLO", "3", "SETNAME", "{word}"], ["RESET"], ["AUTH", "{password}"], ["HELLO"], ["HELLO", "4"], ["CLIENT", "NO-EVICT", "off"],
]
CATEGORIES = ["all", "read", "write", "string", "fast", "slow", "hash", "keyspace", "connection", "scripting", "transaction", "pubsub", "dangerous", "admin"]
COMMANDS = ["get", "mget", "set", "strlen", "exists", "type", "hget", "select", "multi", "exec", "eval", "config|get", "object|encoding", "client", "ping"]
COMMANDS += ["client|setname", "client|tracking", "client|caching", "pttl", "subscribe", "publish", "acl|whoami", "flushdb", "echo", "watch", "select"]
PATTERNS = ["*", "a:*", "b:*", "c*", "a:1", "*:1*", "[ab]:?"]
NUMBER_OF_CLIENT = re.compile(rb"(\$2\r\nid\r\n:)\d+")


class Pair:
    """The same connection twice: through the proxy and to the twin."""

    def __init__(self, place):
        self.place = place
        self.creds = None
        self.ends = [Recorder(place.proxy.port), Recorder(place.twin.port)]
        self.channels = False

    def say(self, *words):
        """One command; both replies as bytes, `b"closed"` if there is none."""
        for end in self.ends:
            end.say(*words)
        return [end.reply() for end in self.ends]

    def say_and_listen(self, marker, *words):
        """A command of a subscriber, if any, and all that comes until the answer to a PING."""
        for end in self.ends:
            if words:
                end.say(*words)
            end.say("PING", marker)
        return [end.replies_to(marker.encode()) for end in self.ends]

    def close(self):
        for end in self.ends:
            end.close()


class Recorder(Connection):
    def say(self, *words):
        with suppress(OSError):
            self.send(*words)

    def reply(self):
        try:
            self._parse()
        except OSError:
            return b"closed"
        data = bytes(self._buffer[:self._at])
        del self._buffer[:self._at]
        self._at = 0
        return NUMBER_OF_CLIENT.sub(rb"\1", data)

    def replies_to(self, marker):
        told = []
        while not told or not (told[-1] == b"closed" or marker in told[-1] or (told[-1][:1] == b"-" and b"ping" in told[-1].lower())):
            told.append(self.reply())
        return told


class Matrix:
    def __init__(self, place, seed):
        self.place = place
        self.chance = random.Random(f"{seed} {place.kind}")
        self.seen = Counter()
        self.history = []
        self.admin = Pair(place)
        self.direct = [Recorder(place.server.port), Recorder(place.twin.port)]
        for user in USERS:
            self.change(["ACL", "SETUSER", user, "reset", "on", ">p0", "~*", "&*", "+@all"], through=True)
        self.sessions = []

    def note(self, *what):
        self.history.append(what)
        del self.history[:-60]

    def same(self, told, what, pair=None):
        proxied, bare = told
        self.seen["replies"] += 1
        if proxied != bare:
            users = self.direct[0].call("ACL", "LIST")
            if pair:
                users.append(f"as {[said(end, 'ACL', 'WHOAMI') for end in pair.ends]}")
            users += self.place.proxy.read_log().splitlines()[-6:]
            lines = "\n".join(map(str, [*self.history, *users]))
            pytest.fail(f"{what}\nthrough the proxy {proxied}\nbare              {bare}\nafter\n{lines}")

    def word(self):
        return self.chance.choice(["x", "y", "z"])

    def fill(self, words):
        pick = {
            "{key}": lambda: self.chance.choice(KEYS), "{word}": self.word, "{number}": lambda: str(self.chance.randrange(4)),
            "{db}": lambda: str(self.chance.choice(DATABASES)), "{user}": lambda: self.chance.choice([*USERS, "default", "nobody"]),
            "{password}": lambda: self.chance.choice(PASSWORDS), "{channel}": lambda: self.chance.choice(CHANNELS),
        }
        return [re.sub(r"\{\w+\}", lambda found: pick[found[0]](), word) for word in words]

    # --- users ---

    def rules(self):
        chance, sign = self.chance, self.chance.choice("+-")
        kinds = [
            lambda: f"{sign}@{chance.choice(CATEGORIES)}", lambda: f"{sign}{chance.choice(COMMANDS)}", lambda: f"{sign}{chance.choice(COMMANDS)}",
            lambda: f"~{chance.choice(PATTERNS)}", lambda: f"%R~{chance.choice(PATTERNS)}", lambda: f"%W~{chance.choice(PATTERNS)}",
            lambda: "resetkeys", lambda: "allkeys", lambda: "resetchannels", lambda: f"&{chance.choice(PATTERNS)}", lambda: chance.choice(["on", "on", "off"]),
            lambda: f"{chance.choice('><')}{chance.choice(PASSWORDS)}", lambda: f">{chance.choice(PASSWORDS)}", lambda: chance.choice(["nopass", "resetpass"]),
            lambda: f"(~{chance.choice(PATTERNS)} +{chance.choice(COMMANDS)})", lambda: f"(%R~{chance.choice(PATTERNS)} +@{chance.choice(CATEGORIES)})",
            lambda: "clearselectors", lambda: "nocommands" if chance.random() < 0.2 else "allcommands",
        ]
        if self.place.kind == "valkey":
            kinds += [lambda: chance.choice(["alldbs", "resetdbs", "db=0", "db=0,1", "db=2"])]
        return [chance.choice(kinds)() for _ in range(chance.randint(1, 4))]

    def a_change(self):
        user, roll = self.chance.choice(USERS), self.chance.random()
        if roll < 0.08:
            return ["ACL", "DELUSER", user]
        if roll < 0.35:
            # nobody is left out for good
            return ["ACL", "SETUSER", user, "reset", "on", f">{self.chance.choice(PASSWORDS)}", "~*", "&*", "+@all", *self.rules()]
        if roll < 0.6:
            return ["ACL", "SETUSER", user, "reset", "on", f">{self.chance.choice(PASSWORDS)}", *self.reads()]
        return ["ACL", "SETUSER", user, *self.rules()]

    def reads(self):
        """GET and MGET apart, by selectors too, of a user for whom is cached."""
        some = ["+get"], ["+mget"], ["+get", "+mget"], ["+@read"], ["+@read", "-get"], ["+@all", "-mget"]
        selectors = [f"(~{self.chance.choice(PATTERNS)} {' '.join(self.chance.choice(some[:3]))})" for _ in range(self.chance.randrange(3))]
        return ["+ping", "+pttl", "+client", *self.chance.choice(some), f"~{self.chance.choice(PATTERNS)}", *selectors]

    def change(self, words, through):
        way = self.chance.choice(["plain", "multi"]) if through else "past"
        self.note("change", way, words)
        self.seen[way] += 1
        if way == "past":
            before = self.place.proxy.stats()["flushes_acl"]
            told = [end.say(*words) or end.reply() for end in self.direct]
            self.same(told, words)
            if told[0][:1] != b"-" and told[0] != b":0\r\n":
                wait_until(lambda: self.place.proxy.stats()["flushes_acl"] > before, "the change is noticed", timeout=LAG)
        elif way == "plain":
            self.same(self.admin.say(*words), words)
        else:
            self.same(self.admin.say("MULTI"), "MULTI")
            self.same(self.admin.say(*words), words)
            self.same(self.admin.say("EXEC"), words)

    # --- sessions ---

    def session(self):
        """Logged in, if that can be."""
        pair = Pair(self.place)
        self.sessions.append(pair)
        for _ in range(2):
            self.act(pair, self.fill(self.chance.choice(SESSION)))
        return pair

    def lose(self, pair):
        if pair in self.sessions:
            self.sessions.remove(pair)
        pair.close()

    def act(self, pair, words):
        """Whether the session goes on."""
        if pair not in self.sessions:
            return False
        self.note(self.sessions.index(pair), words)
        proxied, bare = pair.say(*words)
        # a connection made of one that is left has to be brought to the session's database by its user
        told = b"'select' command" in proxied or b"access database" in proxied
        without = proxied == b"closed" or (told and words[0] != "SELECT")
        if without and proxied != bare and self.may_end(pair):
            self.shut_out(pair)
            return False
        self.same([proxied, bare], words, pair)
        login = words[words.index("AUTH") + 1:] if "AUTH" in words else []
        if bare[:1] != b"-" and (login or words == ["RESET"]):
            pair.creds = (["default", *login] if len(login) == 1 else login[:2]) if login else None
        self.seen[bare.split(b" ", 1)[0].decode() if bare[:1] == b"-" else "answers"] += 1
        if bare == b"closed":
            self.lose(pair)
            return False
        return True

    def shut_out(self, pair):
        """What the twin has done more is undone, through the proxy, so that nobody has to wait for it."""
        self.seen["shut out"] += 1
        self.lose(pair)
        self.same(self.admin.say("FLUSHALL"), "FLUSHALL")

    def may_end(self, pair):
        """A session that needs another connection, and whose user cannot log in any more, is closed."""
        if pair.creds is None:
            return False
        with Recorder(self.place.twin.port) as other:
            return said(other, "AUTH", *pair.creds)[:1] == b"-"

    def listen(self, pair):
        """A subscriber's life: what it is told, and that it is told no more."""
        channels = self.chance.sample(CHANNELS, 2)
        verb = self.chance.choice(["SUBSCRIBE", "SSUBSCRIBE"] if self.place.kind == "redis" else ["SUBSCRIBE", "PSUBSCRIBE"])
        said_first = [(verb, *channels)]
        publisher = Pair(self.place)
        self.note("listens", said_first)
        try:
            self.heard(pair, said_first[0])
            for channel in channels:
                self.same(publisher.say("PUBLISH", channel, "m"), "PUBLISH")
            if pair in self.sessions:
                self.heard(pair, ())
            if pair in self.sessions and self.chance.random() < 0.5:
                self.change(self.a_change(), through=True)
            if pair in self.sessions:
                # one by one: without names the server's order is its own
                self.heard(pair, (verb.replace("SUB", "UNSUB"), *channels))
        finally:
            publisher.close()

    def heard(self, pair, words):
        told = pair.say_and_listen(f"m{self.seen['replies']}", *words)
        if told[0][-1] == b"closed" and told[1][-1] != b"closed" and self.may_end(pair):
            self.shut_out(pair)
            return
        if told[1][-1] == b"closed":
            # when the server ends a subscriber, what it was told before may be lost
            told = [told[0][-1:], told[1][-1:]]
            self.lose(pair)
        self.same(told, words, pair)
        self.seen["heard"] += 1

    def transaction(self, pair):
        commands = [self.fill(self.chance.choice(READS + WRITES + SCRIPTS[:1])) for _ in range(self.chance.randint(1, 3))]
        for words in [["MULTI"], *commands, [self.chance.choice(["EXEC", "EXEC", "EXEC", "DISCARD"])]]:
            if not self.act(pair, words):
                return

    def step(self):
        chance = self.chance
        if chance.random() < 0.07:
            return self.change(self.a_change(), through=chance.random() < 0.75)
        if len(self.sessions) < 8 or chance.random() < 0.03:
            return self.session()
        if len(self.sessions) > 14:
            return self.lose(chance.choice(self.sessions))
        pair, roll = chance.choice(self.sessions), chance.random()
        if roll < 0.55:
            # again and again, so that the cache answers
            words = self.fill(chance.choice(READS))
            for _ in range(3):
                if not self.act(pair, words):
                    return None
            others = [READS[0][:1] + words[1:2], READS[4][:1] + words[1:2]]
            return self.act(pair, chance.choice(others))
        if roll < 0.70:
            return self.act(pair, self.fill(chance.choice(WRITES)))
        if roll < 0.78:
            return self.act(pair, self.fill(chance.choice(SESSION)))
        if roll < 0.84:
            return self.transaction(pair)
        if roll < 0.88:
            return self.act(pair, self.fill(chance.choice(SCRIPTS)))
        if roll < 0.91:
            return self.listen(pair)
        return self.act(pair, self.fill(chance.choice(OTHERS)))


def said(conn, *words):
    conn.say(*words)
    return conn.reply()


class Place:
    def __init__(self, lab, kind):
        self.kind = kind
        self.server, self.twin = lab.server(kind), lab.server(kind)
        settings = {"audit_one_in": 0, "max_staleness": "200ms", "wrong_passwords_per_second": 0}
        self.proxy = lab.proxy(self.server.port, settings=settings)


@pytest.fixture(scope="module", params=[kind for kind in KINDS if kind != "redis6.2"])
def place(request, tmp_path_factory):
    lab = _new_lab(tmp_path_factory)
    yield Place(lab, request.param)
    _close(lab)


@pytest.mark.timeout(SECONDS + 120)
def test_every_reply_is_the_twins(place, seed):
    matrix = Matrix(place, seed)
    before = place.proxy.stats()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        matrix.step()
    after = place.proxy.stats()
    hits, seen = after["hits"] - before["hits"], matrix.seen
    print(f"{place.kind}: {hits} hits, {dict(seen)}")
    assert hits > seen["replies"] / 20 and seen["-NOPERM"] and seen["-WRONGPASS"], seen
    assert seen["shut out"] < seen["replies"] / 50, seen
