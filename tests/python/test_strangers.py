"""Who has not logged in may say little: as the bare server, byte for byte, where it asks for a password."""

import contextlib
import socket
import time

import pytest

from conftest import Lab
from processes import accepts, free_port, wait_until
from test_bad_input import oracle_answer, proxy_answer
from test_deep_pipelines import small_socket
from wire import Connection, encode

PASSWORD = "secret"
KILOBYTE = 1024
AUTH = encode("AUTH", PASSWORD)
MANY = encode("MSET", *range(20))
LARGE = encode("SET", "k", b"x" * (16 * KILOBYTE + 1))

PAYLOADS = {
    "ten arguments": encode("DEL", *range(9)),
    "eleven arguments": encode("DEL", *range(10)),
    "eleven are announced": b"*11\r\n",
    "a hundred thousand are announced": b"*100000\r\n",
    "16 KB": encode("SET", "k", b"x" * 16 * KILOBYTE),
    "more than 16 KB": LARGE,
    "more than 16 KB are announced": b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$16385\r\n",
    "far more than 16 KB are announced": b"*2\r\n$3\r\nGET\r\n$400000000\r\n",
    "more than proto-max-bulk-len is announced": b"*2\r\n$3\r\nGET\r\n$600000000\r\n",
    "no number of arguments": b"*x\r\n",
    "no arguments": b"*0\r\n" + encode("PING"),
    "a good command before": encode("PING") + MANY + encode("PING"),
    "a wrong password before": encode("AUTH", "wrong") + MANY,
    "the password before many arguments": AUTH + MANY + encode("EXISTS", *range(20)),
    "the password before a large one": AUTH + LARGE + encode("STRLEN", "k"),
    "HELLO with the password before": encode("HELLO", 2, "AUTH", "default", "wrong") + LARGE,
    "a line before many arguments": b"PING\r\n" + MANY,
    "a line of many words": b"DEL " + b" x" * 20 + b"\r\n",
}


@pytest.fixture(scope="module", params=["redis", "valkey"])
def guarded(request, tmp_path_factory):
    """A server that wants a password, and a proxy over it that has none."""
    lab = Lab(tmp_path_factory.mktemp("guarded"))
    server = lab.server(request.param, options=("--requirepass", PASSWORD))
    proxy = lab.proxy(server.port, wait=False)
    wait_until(lambda: is_refused(proxy.port), "the proxy listens, and has asked the server")
    yield server, proxy
    lab.close()


def is_refused(port):
    try:
        with Connection(port) as conn:
            conn.send_raw(MANY)
            return str(conn.read()).startswith("ERR Protocol error")
    except OSError:
        return False


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_what_may_be_said_before_login(guarded, payload):
    server, proxy = guarded
    with Connection(server.port) as conn:
        conn.pipeline([("AUTH", PASSWORD), ("FLUSHALL",)])
    expected, closes = oracle_answer(server.port, payload)
    with Connection(server.port) as conn:
        conn.pipeline([("AUTH", PASSWORD), ("FLUSHALL",)])
    assert proxy_answer(proxy.port, payload, expected, closes) == (expected, closes)


@pytest.mark.needs_proxy
def test_who_has_not_logged_in_and_reads_nothing_is_closed(guarded):
    _, proxy = guarded
    with small_socket(proxy.port) as sock:
        sock.settimeout(30)
        with pytest.raises(ConnectionError):
            while True:
                sock.sendall(encode("GET", "k") * 10_000)


@pytest.mark.needs_proxy
def test_where_no_password_is_asked_for_anything_may_be_said_at_once(site):
    with Connection(site.a.port) as conn:
        conn.send_raw(MANY + LARGE + encode("EXISTS", *range(20)))
        assert [conn.read() for _ in range(3)] == [b"OK", b"OK", 10]


@pytest.mark.needs_proxy
def test_little_is_read_while_the_server_has_not_said_who_may_enter(tmp_path):
    """A session waits until the server has been asked whether new clients are let in. Each of many that wait could be a stranger."""
    lab = Lab(tmp_path)
    try:
        server = lab.server("redis", options=("--requirepass", PASSWORD))
        relay = lab.relay(server.port)
        relay.stall(None)
        relay.stall("dedicated")
        proxy = lab.proxy(relay.port, wait=False)
        wait_until(lambda: accepts(proxy.port), "the proxy accepts")
        clients = [begins_a_large_value(proxy.port) for _ in range(5)]
        idle = proxy.resident_bytes()
        clients += [begins_a_large_value(proxy.port) for _ in range(100)]
        time.sleep(0.5)
        assert proxy.resident_bytes() - idle < 100 * 64 * KILOBYTE
        for client in clients:
            client.close()
    finally:
        lab.close()


@pytest.mark.needs_proxy
def test_who_begins_something_large_while_no_server_is_there_is_told_and_closed(tmp_path):
    lab = Lab(tmp_path)
    try:
        proxy = lab.proxy(free_port(), wait=False)
        wait_until(lambda: accepts(proxy.port), "the proxy accepts")
        wait_until(lambda: says(proxy.port, ("GET", "k")).startswith("ERR nearside: upstream"), "the proxy knows")
        with Connection(proxy.port) as conn:
            idle = proxy.resident_bytes()
            with contextlib.suppress(OSError):
                conn.send_raw(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$40000000\r\n" + b"x" * 30_000_000)
            assert str(conn.read()).startswith("ERR nearside: upstream")
            assert proxy.resident_bytes() - idle < 1_000_000
    finally:
        lab.close()


def says(port, request):
    with Connection(port) as conn:
        conn.send(*request)
        return str(conn.read())


def begins_a_large_value(port):
    sock = socket.create_connection(("127.0.0.1", port), 10)
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        sock.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$400000000\r\n" + b"x" * (1 << 20))
    return sock


@pytest.mark.needs_proxy
@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_the_answer_to_one_who_was_ended_meanwhile_is_nobody_elses(tmp_path, kind):
    lab = Lab(tmp_path)
    try:
        relay = lab.relay(lab.server(kind, options=("--requirepass", PASSWORD)).port)
        proxy = lab.proxy(relay.port, wait=False, settings={"threads": 1})
        wait_until(lambda: accepts(proxy.port), "the proxy accepts")
        wait_until(lambda: says(proxy.port, ("GET", "k")).startswith("NOAUTH"), "the server is asked")
        with Connection(proxy.port) as admin, Connection(proxy.port) as stranger:
            admin.call("AUTH", PASSWORD)
            relay.stall(None)
            stranger.send("NOSUCH", "a")
            time.sleep(0.2)
            address, port = stranger.sock.getsockname()
            admin.call("CLIENT", "KILL", "ADDR", f"{address}:{port}")
            assert stranger.read_to_end() == b""
            relay.resume(None)
        assert says(proxy.port, ("GET", "k")).startswith("NOAUTH")
    finally:
        lab.close()
