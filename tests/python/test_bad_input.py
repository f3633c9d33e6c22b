"""Whatever bytes arrive: Redis's own error text, closed where Redis closes, bounded memory, and nobody else is disturbed.

The server behind the proxy is the oracle: it gets the same bytes, and the proxy must answer as it did.
"""

import time

import pytest

from processes import BARE, wait_until
from wire import Connection, ReplyError, encode
import contextlib

QUIET = 0.15  # after this long without a byte the oracle has said all it will
PATIENCE = 5.0
MEGABYTE = 1 << 20


def oracle_answer(port, payload):
    """All a bare server says to these bytes, and whether it then closes."""
    with Connection(port) as conn:
        conn.sock.settimeout(QUIET)
        try_send(conn, payload)
        data = b""
        while True:
            try:
                chunk = conn.sock.recv(65536)
            except ConnectionResetError:
                return data, True
            except TimeoutError:
                return data, False
            if not chunk:
                return data, True
            data += chunk


def proxy_answer(port, payload, expected, closes):
    """What the proxy says: up to the expected length, and whether it closes if it should or stays open if not."""
    with Connection(port) as conn:
        conn.sock.settimeout(PATIENCE)
        try_send(conn, payload)
        data = read_exactly(conn, len(expected))
        return data, closed_by_peer(conn, PATIENCE if closes else 0.02)


def try_send(conn, payload):
    """Sends what the other side takes; it may close while we are still sending."""
    with contextlib.suppress(ConnectionError):
        conn.send_raw(payload)


def read_exactly(conn, length):
    data = b""
    while len(data) < length:
        try:
            chunk = conn.sock.recv(length - len(data))
        except (ConnectionResetError, TimeoutError):
            break
        if not chunk:
            break
        data += chunk
    return data


def closed_by_peer(conn, patience):
    conn.sock.settimeout(patience)
    try:
        return conn.sock.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def assert_same_answer(site, payload):
    expected, closes = oracle_answer(site.server.port, payload)
    site.server.call("FLUSHALL")
    assert proxy_answer(site.a.port, payload, expected, closes) == (expected, closes)


PING = encode("PING")

PROTOCOL_ERRORS = {
    "bulk length is no number": b"*3\r\n$x\r\n",
    "bulk length is negative": b"*1\r\n$-5\r\n",
    "bulk length is empty": b"*1\r\n$\r\n",
    "bulk length has a plus": b"*1\r\n$+4\r\nPING\r\n",
    "bulk too long": b"*2\r\n$3\r\nGET\r\n$536870913\r\n",
    "no bulk where one must be": b"*1\r\nPING\r\n",
    "nested array": b"*1\r\n*1\r\n",
    "400 KB of nested arrays": b"*1\r\n" * 100_000,
    "multibulk length is no number": b"*x\r\n",
    "multibulk length overflows": b"*2147483648\r\n",
    "multibulk length overflows 64 bits": b"*99999999999999999999\r\n",
    "negative multibulk, then PING": b"*-1\r\n" + PING,
    "very negative multibulk, then PING": b"*-2147483648\r\n" + PING,
    "empty multibulk, then PING": b"*0\r\n" + PING,
    "huge count, nothing follows": b"*1000000\r\n",
    "count line without end": b"*" + b"1" * 70_000,
    "bulk length line without end": b"*1\r\n$" + b"1" * 70_000,
    "inline line without end": b"A" * 70_000,
    "unbalanced quotes": b'SET k "a\r\n',
    "unbalanced single quotes": b"SET k 'a\r\n",
    "text after a closing quote": b'SET k "a"b\r\n',
    "good commands before a bad one": PING + encode("SET", "k", "v") + b"*1\r\n$x\r\n" + PING,
    "HTTP": b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}

GOOD_BUT_ODD = {
    "inline": b"PING\r\n",
    "inline with LF only": b"PING\nPING\n",
    "inline with spaces": b"  SET   k    v  \r\nGET k\r\n",
    "inline with quotes": b'SET "a b" "\\x41\\n\\"c\\""\r\nGET "a b"\r\nGET \'a b\'\r\n',
    "inline between arrays": PING + b"SET k v\r\n" + encode("GET", "k") + b"GET k\r\n",
    "empty lines": b"\r\n\r\n\n\nPING\r\n\r\n" + PING,
    "empty bulk": encode("SET", "", "") + encode("GET", ""),
    "binary": encode("SET", b"\x00\r\n\xff", bytes(range(256))) + encode("GET", b"\x00\r\n\xff"),
    "lower and mixed case": encode("sEt", "k", "v") + encode("gEt", "k"),
    "QUIT and what follows": PING + encode("QUIT") + PING,
}

COMMAND_ERRORS = {
    "unknown": encode("NOSUCH", "a", "b"),
    "unknown with long arguments": encode("NOSUCH", "x" * 300, "y" * 300),
    "unknown inline": b"nosuch 'a b' c\r\n",
    "empty command name": encode("") + encode("", "a"),
    "wrong arity": encode("GET") + encode("GET", "a", "b") + encode("SET", "a"),
    "unknown subcommand": encode("CLIENT", "NOSUCH") + encode("CONFIG", "NOSUCH") + encode("OBJECT", "NOSUCH", "k"),
    "wrong type": encode("SET", "k", "v") + encode("HGET", "k", "f") * 2 + encode("LPUSH", "k", "x") + encode("GET", "k"),
    "syntax": encode("SET", "k", "v", "NOSUCH") + encode("SET", "k", "v", "EX", "0") + encode("ZRANGE", "k", "a", "b"),
    "EXEC without MULTI": encode("EXEC") + encode("DISCARD"),
    "nested MULTI": encode("MULTI") * 2 + encode("EXEC"),
    "error inside MULTI": encode("MULTI") + encode("NOSUCH") + encode("SET", "k", "v") + encode("EXEC") + encode("GET", "k"),
    "wrong type inside MULTI": encode("SET", "k", "v") + encode("MULTI") + encode("LPUSH", "k", "x") + encode("GET", "k") + encode("EXEC"),
    "WATCH inside MULTI": encode("MULTI") + encode("WATCH", "k") + encode("EXEC"),
    "SELECT out of range": encode("SELECT", "99") + encode("SELECT", "x") + encode("SELECT", "-1") + encode("GET", "k"),
    "HELLO 4": encode("HELLO", "4") + encode("HELLO", "x") + PING,
    "wrong password": encode("AUTH", "nobody", "nothing") + encode("AUTH", "x") + PING,
    "subscribed RESP2": encode("SUBSCRIBE", "c") + encode("GET", "k") + encode("PING") + encode("UNSUBSCRIBE", "c") + encode("GET", "k"),
    "unsubscribe from nothing": encode("UNSUBSCRIBE") + encode("PUNSUBSCRIBE") + PING,
    "RESET": encode("MULTI") + encode("RESET") + PING,
    "script errors": encode("EVAL", "return redis.call('NOSUCH')", 0) + encode("EVAL", "syntax error", 0) + encode("EVALSHA", "0" * 40, 0),
    "no subcommand": encode("CLIENT") + encode("CONFIG") + encode("SCRIPT"),
    "client reply off": encode("CLIENT", "REPLY", "OFF") + encode("GET", "k") + encode("CLIENT", "REPLY", "ON") + PING,
    "client reply skip": encode("CLIENT", "REPLY", "SKIP") + encode("GET", "k") + PING,
}


def cases(table):
    return pytest.mark.parametrize("payload", table.values(), ids=table.keys())


@cases(PROTOCOL_ERRORS)
def test_protocol_errors(redis_site, payload):
    assert_same_answer(redis_site, payload)


def test_a_browser_is_hung_up_on(redis_site):
    """Redis closes at the Host line before it has written its error about the GET line; whether that error is seen is no promise."""
    with Connection(redis_site.a.port) as conn:
        conn.send_raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + PING)
        assert b"PONG" not in conn.read_to_end()


@cases(GOOD_BUT_ODD)
def test_good_but_odd(redis_site, payload):
    assert_same_answer(redis_site, payload)


@cases(COMMAND_ERRORS)
def test_command_errors(redis_site, payload):
    assert_same_answer(redis_site, payload)


def test_a_bulk_above_proto_max_bulk_len(lab):
    limit = MEGABYTE
    site = lab.site(server_options=("--proto-max-bulk-len", str(limit)), settings={"proto_max_bulk_len": "1mb"})
    assert_same_answer(site, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % (limit + 1))
    assert_same_answer(site, encode("SET", "k", b"x" * limit) + encode("STRLEN", "k"))


TWO_COMMANDS = encode("SET", "key", "va\r\nue") + encode("GET", "key") + b"STRLEN key\r\n" + encode("PING")
TWO_ANSWERS = b"+OK\r\n$6\r\nva\r\nue\r\n:6\r\n+PONG\r\n"


def test_requests_cut_at_every_byte(redis_site):
    for cut in range(1, len(TWO_COMMANDS)):
        with Connection(redis_site.a.port) as conn:
            conn.send_raw(TWO_COMMANDS[:cut])
            # The first half must be on its way alone: an answered request of another connection has it read by now.
            with Connection(redis_site.a.port) as other:
                other.call("PING")
            conn.send_raw(TWO_COMMANDS[cut:])
            assert read_exactly(conn, len(TWO_ANSWERS)) == TWO_ANSWERS, f"cut at {cut}"


def test_requests_byte_by_byte(redis_site):
    with Connection(redis_site.a.port) as conn:
        for byte in TWO_COMMANDS:
            conn.send_raw(bytes([byte]))
        assert read_exactly(conn, len(TWO_ANSWERS)) == TWO_ANSWERS


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_pipeline_of_ten_thousand(redis_site, protocol):
    """Writes, cached reads, blocking commands, transactions: the replies are in order."""
    commands, expected = [], []
    for turn in range(2500):
        key = f"k{turn % 100}"
        commands += [("SET", key, turn), ("GET", key), ("ECHO", f"e{turn}"), ("STRLEN", key)]
        expected += [b"OK", str(turn).encode(), f"e{turn}".encode(), len(str(turn))]
    with Connection(redis_site.a.port, protocol=protocol) as conn:
        assert conn.pipeline(commands) == expected


def test_a_pipeline_that_changes_its_state_all_the_time(redis_site):
    commands = [("MULTI",), ("INCR", "n"), ("EXEC",), ("SELECT", 1), ("SET", "n", "other"), ("GET", "n"), ("SELECT", 0), ("GET", "n")]
    with Connection(redis_site.a.port) as conn:
        replies = conn.pipeline(commands * 100)
    for turn in range(100):
        count = turn + 1
        assert replies[8 * turn:8 * turn + 8] == [b"OK", b"QUEUED", [count], b"OK", b"OK", b"other", b"OK", str(count).encode()]


def test_half_a_request_then_gone(redis_site):
    for length in (1, 5, 15, 20):
        with Connection(redis_site.a.port) as conn:
            conn.send_raw(encode("SET", "k", "v" * 100)[:length])
    with Connection(redis_site.a.port) as conn:
        assert conn.call("EXISTS", "k") == 0


def limit_bare_server(site, setting, value):
    """Without a proxy the server has to show the limit itself; behind one, the server's own must not be met."""
    if BARE:
        site.server.call("CONFIG", "SET", setting, value)


def test_maxclients(lab):
    site = lab.site(settings={"maxclients": 5})
    limit_bare_server(site, "maxclients", 5)
    conns = [Connection(site.a.port) for _ in range(5)]
    for conn in conns:
        conn.call("PING")
    with Connection(site.a.port) as one_too_many:
        assert one_too_many.read_to_end() == b"-ERR max number of clients reached\r\n"
    conns.pop().close()
    wait_until(lambda: pings(site.a.port), "room for one again")


def pings(port):
    try:
        with Connection(port) as conn:
            return conn.call("PING") == b"PONG"
    except (ReplyError, OSError):
        return False


def test_timeout_closes_idle_clients_only(lab):
    site = lab.site(settings={"timeout": "1s"})
    limit_bare_server(site, "timeout", 1)
    with Connection(site.a.port) as idle, Connection(site.a.port) as busy, Connection(site.a.port) as subscriber:
        subscriber.call("SUBSCRIBE", "c")
        idle.call("PING")
        begun = time.monotonic()
        idle.sock.settimeout(0.05)
        while not is_closed(idle):
            assert busy.call("PING") == b"PONG"
            assert time.monotonic() < begun + 4, "still open"
        assert time.monotonic() > begun + 0.9, "closed too early"
        assert subscriber.call("PING") == [b"pong", b""]


def is_closed(conn):
    try:
        return conn.sock.recv(1) == b""
    except TimeoutError:
        return False


@pytest.mark.needs_proxy
@pytest.mark.parametrize("command", [("GET", "big"), ("LRANGE", "list", 0, -1)], ids=["cached", "another"])
def test_a_slow_reader_is_bounded(lab, command):
    """Asks for 200 MB and reads nothing: memory stays bounded, others are served, and the connection is closed."""
    proxy = lab.proxy(lab.server().port, settings={"client_output_buffer_limit": "1mb"})
    with Connection(proxy.port) as conn:
        conn.call("SET", "big", "x" * 100_000)
        conn.call("RPUSH", "list", *["y" * 1000] * 100)
    before = proxy.resident_bytes()
    with Connection(proxy.port) as slow, Connection(proxy.port) as other:
        slow.send_raw(encode(*command) * 2000)
        end = time.monotonic() + 1
        while time.monotonic() < end:
            assert other.call("GET", "big") is not None
            assert proxy.resident_bytes() < before + 64 * MEGABYTE
        assert len(slow.read_to_end()) < 100 * MEGABYTE


def test_a_request_larger_than_any_buffer(redis_site):
    value = b"v" * (20 * MEGABYTE)
    with Connection(redis_site.a.port) as conn:
        assert conn.call("SET", "k", value) == b"OK"
        for _ in range(3):
            assert conn.call("GET", "k") == value


def test_many_arguments(redis_site):
    words = [word for i in range(50_000) for word in (f"k{i}", i)]
    with Connection(redis_site.a.port) as conn:
        assert conn.call("MSET", *words) == b"OK"
        assert conn.call("MGET", *words[::2]) == [str(value).encode() for value in words[1::2]]
        assert conn.call("DEL", *words[::2]) == 50_000
        assert conn.call("MGET", *words[::2]) == [None] * 50_000
