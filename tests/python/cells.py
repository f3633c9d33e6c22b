"""The keys of the coherence tests: for each type, the ways to write a version into a key and to read it back.

A write is a list of commands sent as one pipeline; a read is one command and a function from its reply to what was seen.
"""

from history import PRESENT

SCRIPT_DECLARED = "return redis.call('SET', KEYS[1], ARGV[1])"
SCRIPT_UNDECLARED = "return redis.call('SET', ARGV[1], ARGV[2])"
HASH_SCRIPT = "return redis.call('HSET', KEYS[1], 'f', ARGV[1], 'g', ARGV[1])"
FAR_TTL_MS = 600_000


def number(reply):
    return None if reply is None else int(reply)


def presence(reply):
    return PRESENT if reply not in (0, b"none") else None


def flat(reply):
    """Pairs as RESP3 nests them, or as RESP2 lists them, in one flat list."""
    if isinstance(reply, dict):
        return [part for pair in reply.items() for part in pair]
    return [part for item in reply for part in (item if isinstance(item, list) else [item])]


def same(values):
    """The one version that all values show; a torn read if they differ."""
    seen = {number(value) for value in values}
    return seen.pop() if len(seen) == 1 else ("torn", *values)


class Cell:
    """A key of one type in one database."""

    def __init__(self, name, db=0):
        self.key = name
        self.db = db
        self.history_key = f"{db}:{name}"
        self.aside = f"{name}:aside"

    def writes(self, version):
        """Ways to write `version`, whatever was there before, by name."""
        raise NotImplementedError

    def reads(self):
        """Pairs of a command and how to understand its reply."""
        raise NotImplementedError

    def deletions(self):
        return {
            "DEL": [("DEL", self.key)],
            "UNLINK": [("UNLINK", self.key)],
            "MULTI DEL": [("MULTI",), ("DEL", self.key), ("EXEC",)],
            "RENAME away": [("RENAME", self.key, self.aside)],
            "EVAL DEL": [("EVAL", "return redis.call('DEL', ARGV[1])", 0, self.key)],
        }

    def vanishing(self, milliseconds):
        """Lets the present value vanish after so many milliseconds."""
        return [("PEXPIRE", self.key, milliseconds)]

    def by_way_of(self, write, move):
        """Writes into another key first, then moves it here."""
        return [("DEL", self.aside), write, move]

    def moved(self, write):
        return {
            "RENAME": self.by_way_of(write, ("RENAME", self.aside, self.key)),
            "COPY": self.by_way_of(write, ("COPY", self.aside, self.key, "REPLACE")),
        }


class StringCell(Cell):
    def writes(self, version):
        key = self.key
        return {
            "SET": [("SET", key, version)],
            "SET PX": [("SET", key, version, "PX", FAR_TTL_MS)],
            "GETSET": [("GETSET", key, version)],
            "MULTI SET": [("MULTI",), ("SET", key, version), ("EXEC",)],
            "EVAL declared": [("EVAL", SCRIPT_DECLARED, 1, key, version)],
            "EVAL undeclared": [("EVAL", SCRIPT_UNDECLARED, 0, key, version)],
            "MULTI EVAL": [("MULTI",), ("EVAL", SCRIPT_UNDECLARED, 0, key, version), ("EXEC",)],
            **self.moved(("SET", self.aside, version)),
        }

    def deletions(self):
        return {**super().deletions(), "GETDEL": [("GETDEL", self.key)]}

    def reads(self):
        return [
            (("GET", self.key), number),
            (("GET", self.key), number),
            (("GETRANGE", self.key, 0, -1), lambda reply: int(reply) if reply else None),
            (("MGET", self.key), lambda reply: number(reply[0])),
            (("EXISTS", self.key), presence),
            (("TYPE", self.key), presence),
            (("STRLEN", self.key), presence),
        ]


class HashCell(Cell):
    def writes(self, version):
        fields = ("f", version, "g", version)
        return {
            "HSET": [("HSET", self.key, *fields)],
            "HMSET": [("HMSET", self.key, *fields)],
            "MULTI HSET": [("MULTI",), ("HSET", self.key, "f", version), ("HSET", self.key, "g", version), ("EXEC",)],
            "EVAL HSET": [("EVAL", HASH_SCRIPT, 1, self.key, version)],
            **self.moved(("HSET", self.aside, *fields)),
        }

    def reads(self):
        return [
            (("HGET", self.key, "f"), number),
            (("HGET", self.key, "g"), number),
            (("HMGET", self.key, "f", "g"), same),
            (("HGETALL", self.key), lambda reply: same(flat(reply)[1::2]) if reply else None),
            (("HVALS", self.key), lambda reply: same(reply) if reply else None),
            (("HEXISTS", self.key, "f"), presence),
            (("HLEN", self.key), presence),
        ]


class ListCell(Cell):
    def writes(self, version):
        return {
            "LPUSH": [("LPUSH", self.key, version), ("LTRIM", self.key, 0, 9)],
            "LPUSH, LSET": [("MULTI",), ("LPUSH", self.key, "x"), ("LSET", self.key, 0, version), ("EXEC",)],
            "MULTI RPUSH": [("MULTI",), ("DEL", self.key), ("RPUSH", self.key, version), ("EXEC",)],
            "EVAL LPUSH": [("EVAL", "return redis.call('LPUSH', KEYS[1], ARGV[1])", 1, self.key, version)],
            **self.moved(("RPUSH", self.aside, version, "x")),
        }

    def reads(self):
        first = lambda reply: int(reply[0]) if reply else None
        return [
            (("LINDEX", self.key, 0), number),
            (("LRANGE", self.key, 0, 0), first),
            (("LRANGE", self.key, 0, -1), first),
            (("LLEN", self.key), presence),
        ]


class SortedSetCell(Cell):
    def writes(self, version):
        return {
            "ZADD": [("ZADD", self.key, version, "m")],
            "MULTI ZADD": [("MULTI",), ("ZADD", self.key, version, "m"), ("EXEC",)],
            "EVAL ZADD": [("EVAL", "return redis.call('ZADD', KEYS[1], ARGV[1], 'm')", 1, self.key, version)],
            **self.moved(("ZADD", self.aside, version, "m")),
        }

    def reads(self):
        score = lambda reply: int(float(flat(reply)[1])) if reply else None
        return [
            (("ZSCORE", self.key, "m"), self._score),
            (("ZMSCORE", self.key, "m"), lambda reply: self._score(reply[0])),
            (("ZRANGE", self.key, 0, -1, "WITHSCORES"), score),
            (("ZRANGEBYSCORE", self.key, "-inf", "+inf", "WITHSCORES"), score),
            (("ZCARD", self.key), presence),
        ]

    @staticmethod
    def _score(reply):
        return None if reply is None else int(float(reply))


class SetCell(Cell):
    def writes(self, version):
        return {
            "SADD": [("SADD", self.key, version)],
            "MULTI SADD": [("MULTI",), ("DEL", self.key), ("SADD", self.key, version), ("EXEC",)],
            **self.moved(("SADD", self.aside, version)),
        }

    def reads(self):
        return [
            (("SMEMBERS", self.key), lambda reply: max(map(int, reply)) if reply else None),
            (("SCARD", self.key), presence),
        ]


class TwinCell(Cell):
    """Two keys that always change together. One history: a read of both must be a snapshot."""

    def __init__(self, name, db=0):
        super().__init__(name, db)
        self.twin = f"{name}:twin"

    def writes(self, version):
        both = (self.key, version, self.twin, version)
        return {
            "MSET": [("MSET", *both)],
            "MULTI SET SET": [("MULTI",), ("SET", self.key, version), ("SET", self.twin, version), ("EXEC",)],
            "EVAL MSET": [("EVAL", "return redis.call('MSET', unpack(ARGV))", 0, *both)],
        }

    def deletions(self):
        return {"DEL both": [("DEL", self.key, self.twin)]}

    def vanishing(self, milliseconds):
        """Two keys' TTLs may end between two milliseconds; so both are deleted by one script instead."""
        return

    def reads(self):
        return [(("MGET", self.key, self.twin), same), (("MGET", self.twin, self.key), same)]


KINDS = (StringCell, HashCell, ListCell, SortedSetCell, SetCell, TwinCell)


def cells_of(writer, per_kind=1, dbs=(0, 1)):
    """The cells that one writer owns: every kind, the same names in every database."""
    return [kind(f"{writer}:{kind.__name__}:{i}", db) for kind in KINDS for i in range(per_kind) for db in dbs]
