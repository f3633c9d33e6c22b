"""What a login costs: one whose password was right before costs the server no connection, and its verdict is the server's each time;
wrong passwords are slowed by the address they come from."""

import socket
import threading
import time
from collections import Counter

import pytest

from conftest import _close, _new_lab
from processes import KINDS, wait_until
from test_rights import LAG, outcome, said
from wire import Connection, ReplyError, encode

pytestmark = pytest.mark.needs_proxy

FULL = ("~*", "&*", "+@all")
RATE = 50


class Place:
    def __init__(self, lab, kind):
        self.server = lab.server(kind)
        self.a = lab.proxy(self.server.port, settings={"wrong_passwords_per_second": RATE, "audit_one_in": 0, "log": "debug"})


@pytest.fixture(scope="module", params=[kind for kind in KINDS if kind != "redis6.2"])
def place(request, tmp_path_factory):
    """A server and a proxy of this file's own."""
    lab = _new_lab(tmp_path_factory)
    yield Place(lab, request.param)
    _close(lab)


@pytest.fixture
def direct(place):
    """A connection past the proxy; what the users are is said through it, so that it is known there."""
    with Connection(place.server.port) as conn, Connection(place.a.port) as admin:
        admin.call("ACL", "SETUSER", "bob", "reset", "on", ">secret", *FULL)
        admin.call("SET", "k", "v")
        yield conn
        if admin.call("CONFIG", "GET", "requirepass")[1]:
            admin.call("CONFIG", "SET", "requirepass", "")


def connections(direct):
    info = direct.call("INFO", "stats").decode()
    return int(info.split("total_connections_received:")[1].split("\r\n")[0])


GREETINGS = {
    "AUTH": [("AUTH", "bob", "secret")],
    "HELLO 3": [("HELLO", 3, "AUTH", "bob", "secret", "SETNAME", "worker")],
    "HELLO 2 in turns": [("HELLO", 2, "AUTH", "bob", "secret"), ("CLIENT", "SETNAME", "worker")],
    "a name": [("HELLO", 3, "SETNAME", "worker")],
    "a name and AUTH": [("CLIENT", "SETNAME", "worker"), ("AUTH", "bob", "secret")],
}


@pytest.mark.parametrize("greeting", GREETINGS)
def test_short_connections_are_few_at_the_server(place, direct, greeting):
    def visit(port):
        with Connection(port) as conn:
            told = [said(conn, *words) for words in GREETINGS[greeting]]
            told += [said(conn, *words) for words in (("GET", "k"), ("ACL", "WHOAMI"), ("CLIENT", "GETNAME"))]
            # a client's number is its own
            return [list(reply.items() if isinstance(reply, dict) else reply)[:3] if isinstance(reply, (dict, list)) else reply for reply in told]

    bare = visit(place.server.port)
    [visit(place.a.port) for _ in range(10)]
    before = connections(direct)
    assert [visit(place.a.port) for _ in range(100)] == [bare] * 100
    assert connections(direct) - before <= 8, "two threads, a spare each now and then"


def test_many_at_the_same_time_are_few_at_the_server(place, direct):
    conns = [Connection(place.a.port) for _ in range(100)]
    before = connections(direct)
    for conn in conns:
        assert conn.call("AUTH", "bob", "secret") == b"OK"
    # each thread: four spare ones, a lane, its rights
    assert connections(direct) - before <= 20
    [conn.close() for conn in conns]


def known(place, direct, *words):
    """Logs in until that costs the server no connection."""

    def again():
        before = place.a.stats()
        with Connection(place.a.port) as conn:
            assert conn.call(*words) == b"OK"
            conn.call("PING")
        after = place.a.stats()
        assert after["logins_asked"] > before["logins_asked"]
        return after["login_connections"] == before["login_connections"]

    wait_until(again, "it costs no connection", timeout=LAG)


CHANGES = {
    "another password": ("SETUSER", "bob", ">new", "<secret"),
    "switched off": ("SETUSER", "bob", "off"),
    "reset": ("SETUSER", "bob", "reset"),
    "deleted": ("DELUSER", "bob"),
    "there and back": ("SETUSER", "bob", "<secret", ">secret"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_password_that_was_right_is_judged_anew_each_time(place, direct, change):
    good = "OK" if change == "there and back" else "WRONGPASS"
    for port in (place.a.port, place.server.port):
        direct.call("ACL", "SETUSER", "bob", "reset", "on", ">secret", *FULL)
        known(place, direct, "AUTH", "bob", "secret")
        with Connection(port) as admin:
            admin.call("ACL", *CHANGES[change])
        # at once, wherever it was said
        assert [tries(place.a, "bob", "secret") for _ in range(20)] == [good] * 20


def tries(proxy, *creds):
    with Connection(proxy.port) as conn:
        reply = outcome(conn, "AUTH", *creds)
        return reply.decode() if isinstance(reply, bytes) else reply


def test_a_wrong_password_is_none_however_it_looks(place, direct):
    known(place, direct, "AUTH", "bob", "secret")
    for wrong in ("", "s", "secre", "secrets", "Secret", "secret\0", b"\xff" * 6):
        assert tries(place.a, "bob", wrong) == "WRONGPASS"
    assert tries(place.a, "bobby", "secret") == "WRONGPASS"


def test_auth_without_a_name_is_another_question(place, direct):
    """Where the default user has no password, `AUTH default x` is right, and `AUTH x` an error."""
    known(place, direct, "AUTH", "default", "x")
    for _ in range(3):
        with Connection(place.a.port) as conn, Connection(place.server.port) as bare:
            assert said(conn, "AUTH", "x") == said(bare, "AUTH", "x")
            assert "without any password" in said(conn, "AUTH", "x")
    with Connection(place.a.port) as admin:
        admin.call("CONFIG", "SET", "requirepass", "pw")
    assert [tries(place.a, "pw") for _ in range(3)] == ["OK"] * 3
    assert [tries(place.a, "pw"), tries(place.a, "default", "pw"), tries(place.a, "x")] == ["OK", "OK", "WRONGPASS"]


def test_malformed_hellos_are_the_servers_to_judge(place, direct):
    known(place, direct, "AUTH", "bob", "secret")
    login = ("AUTH", "bob", "secret")
    for tail in (("3", *login, "SETNAME"), ("3", *login, "x"), ("4", *login), ("03", *login), ("3", *login, "SETNAME", "a b"), ("3", "SETNAME", "a\n")):
        with Connection(place.a.port) as conn, Connection(place.server.port) as bare:
            assert said(conn, "HELLO", *tail) == said(bare, "HELLO", *tail), tail
            assert said(conn, "ACL", "WHOAMI") in (b"default", said(bare, "ACL", "WHOAMI"))


def test_whoever_cost_no_connection_goes_on_when_the_password_is_replaced(place, direct):
    """As whoever was asked about: the thread has connections that the server goes on with."""
    known(place, direct, "AUTH", "bob", "secret")
    conns = [Connection(place.a.port) for _ in range(6)]
    for conn in conns:
        conn.call("AUTH", "bob", "secret")
        conn.call("GET", "k")
    with Connection(place.a.port) as admin:
        admin.call("ACL", "SETUSER", "bob", ">new", "<secret")
    for conn in conns:
        assert conn.call("MULTI") == b"OK"
        conn.call("GET", "k")
        assert conn.call("EXEC") == [b"v"]
        conn.close()


def test_nothing_shows_a_password(place, direct):
    direct.call("ACL", "SETUSER", "bob", ">geheim42")
    for password in ("geheim42", "falsch43"):
        for _ in range(3):
            tries(place.a, "bob", password)
    with Connection(place.a.port) as conn:
        shown = [conn.call(*words) for words in (("INFO",), ("NEARSIDE", "STATS"), ("CLIENT", "LIST"), ("NEARSIDE", "EXPLAIN", "AUTH", "bob", "geheim42"))]
    text = str(shown) + place.a.read_log()
    assert "geheim42" not in text and "falsch43" not in text


class Guesser(threading.Thread):
    """Says wrong passwords, one after another, on a connection of its own, from an address of its own."""

    def __init__(self, port, address="127.0.0.1", words=("AUTH", "bob", "wrong"), before=()):
        super().__init__(daemon=True)
        sock = socket.create_connection(("127.0.0.1", port), 20, (address, 0))
        self.conn = Connection.__new__(Connection)
        self.conn.sock, self.conn._buffer, self.conn._at = sock, bytearray(), 0
        for each in before:
            self.conn.call(*each)
        self.words, self.told, self.over = words, Counter(), threading.Event()

    def run(self):
        while not self.over.is_set():
            self.told[outcome(self.conn, *self.words)] += 1


def guessing(port, seconds, count, **options):
    guessers = [Guesser(port, **options) for _ in range(count)]
    began = time.monotonic()
    [guesser.start() for guesser in guessers]
    yield guessers
    time.sleep(max(0, seconds - (time.monotonic() - began)))
    [guesser.over.set() for guesser in guessers]
    [guesser.join(15) for guesser in guessers]
    took = time.monotonic() - began
    told = sum((guesser.told for guesser in guessers), Counter())
    yield told, took


WAYS = {
    "HELLO": {"words": ("HELLO", 3, "AUTH", "bob", "wrong")},
    "passed on unlooked at": {"before": [("CLIENT", "NO-EVICT", "off")]},
}


@pytest.mark.parametrize("way", WAYS)
def test_guesses_are_slowed_and_nobody_else_is(place, direct, way):
    known(place, direct, "AUTH", "bob", "secret")
    direct.call("ACL", "SETUSER", "eve", "on", ">secret", *FULL)
    before = place.a.stats()["wrong_passwords"]
    steps = guessing(place.a.port, 1.2, 30, **WAYS[way])
    next(steps)
    time.sleep(0.5)
    upstream = len(direct.call("CLIENT", "LIST").splitlines())
    slowest = 0
    for address in ("127.0.0.2", "127.0.0.3"):
        for creds in (("eve", "secret"), ("eve", "wrong")):
            at = time.monotonic()
            other = Guesser(place.a.port, address)
            assert outcome(other.conn, "AUTH", *creds) == (b"OK" if creds[1] == "secret" else "WRONGPASS")
            slowest = max(slowest, time.monotonic() - at)
    # who is known waits for nothing, wherever he comes from
    at = time.monotonic()
    assert tries(place.a, "bob", "secret") == "OK"
    slowest = max(slowest, time.monotonic() - at)
    told, took = next(steps)
    assert set(told) == {"WRONGPASS"}, told
    assert told["WRONGPASS"] <= RATE * (took + 1) + 30, (told, took)
    assert told["WRONGPASS"] >= RATE / 2, "they are delayed, not refused"
    assert slowest < 1
    if way != "passed on unlooked at":
        assert upstream <= 30, "whoever waits has no connection to the server"
        assert place.a.stats()["wrong_passwords"] - before >= RATE
    # afterwards a right password from there waits no longer than a turn takes
    at = time.monotonic()
    assert tries(place.a, "eve", "secret") == "OK"
    assert time.monotonic() - at < 2


def test_a_pipeline_of_guesses_is_answered_in_order(place, direct):
    """One at a time: neither the server nor the proxy keeps more of them."""
    count = RATE + 50
    with Connection(place.a.port, timeout=20) as conn:
        began = time.monotonic()
        conn.send_raw(b"".join(encode("AUTH", "bob", f"wrong{n}") + encode("ECHO", str(n)) for n in range(count)))
        for n in range(count):
            assert "WRONGPASS" in str(conn.read())
            assert conn.read() == str(n).encode()
        assert time.monotonic() - began >= (count - RATE) / RATE * 0.8
        assert conn.call("AUTH", "bob", "secret") == b"OK"


def test_whoever_goes_while_it_waits_is_forgotten(place, direct):
    before = len(direct_list(place.a))
    guessers = [Guesser(place.a.port) for _ in range(40)]
    for guesser in guessers:
        guesser.conn.send_raw(encode("AUTH", "bob", "wrong") * 400)
    time.sleep(0.3)
    [guesser.conn.close() for guesser in guessers]
    wait_until(lambda: len(direct_list(place.a)) <= before, "they are gone", timeout=3)
    assert tries(place.a, "bob", "secret") == "OK"


def direct_list(proxy):
    with Connection(proxy.port) as conn:
        return conn.call("CLIENT", "LIST").splitlines()


def test_without_a_limit_nobody_waits(lab, place):
    server = lab.server(place.server.kind)
    server.call("ACL", "SETUSER", "bob", "on", ">secret", *FULL)
    proxy = lab.proxy(server.port, settings={"wrong_passwords_per_second": 0})
    with Connection(proxy.port) as conn:
        replies = conn.pipeline([("AUTH", "bob", "wrong")] * 300)
        assert all(isinstance(reply, ReplyError) for reply in replies)
    assert proxy.stats()["logins_delayed"] == 0
