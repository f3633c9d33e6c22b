"""The largest there is: values of 512 MB, the most that Redis takes, and pipelines of 10,000 commands in one write."""

import pytest

from processes import cached, wait_until
from wire import Connection, encode

pytestmark = pytest.mark.needs_proxy

LARGEST = 512 << 20
HEAD = b"$%d\r\n" % LARGEST


def read_exactly(sock, length):
    whole = bytearray(length)
    view = memoryview(whole)
    at = 0
    while at < length:
        got = sock.recv_into(view[at:])
        assert got, f"closed after {at} bytes"
        at += got
    return whole


def test_a_value_of_512_mb_comes_and_goes_with_one_copy_of_it_at_most(lab):
    server = lab.server()
    proxy = lab.proxy(server.port)
    value = b"0123456789abcdef" * (LARGEST // 16)
    with Connection(proxy.port, timeout=60) as conn:
        before = proxy.peak_bytes()
        conn.send_raw(b"*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n" + HEAD)
        conn.send_raw(value)
        conn.send_raw(b"\r\n")
        assert conn.read() == b"OK"
        assert proxy.peak_bytes() - before < 1.2 * LARGEST
        for _ in range(2):
            conn.send("GET", "large")
            assert read_exactly(conn.sock, len(HEAD)) == HEAD
            assert read_exactly(conn.sock, LARGEST) == value
            assert read_exactly(conn.sock, 2) == b"\r\n"
        assert proxy.peak_bytes() - before < 1.2 * LARGEST
        assert conn.call("STRLEN", "large") == LARGEST
        too_large = b"$%d\r\n" % (LARGEST + 1)
        conn.send_raw(b"*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n" + too_large)
        assert "invalid bulk length" in str(conn.read())


def test_nothing_of_large_values_stays_once_they_are_through(lab):
    """Whichever lanes and sessions they came by, and whatever small follows them there, or nothing at all."""
    server = lab.server()
    proxy = lab.proxy(server.port, settings={"max_memory": "16mb"})
    length = 40 << 20
    conns = [Connection(proxy.port, timeout=60) for _ in range(6)]
    conns[0].call("PING")
    before = proxy.resident_bytes()

    def given_back():
        wait_until(lambda: proxy.resident_bytes() - before < 16 << 20, "the memory is given back")

    for _ in range(2):
        for i, conn in enumerate(conns):
            conn.send("SET", f"large:{i}", b"x" * length)
        assert [conn.read() for conn in conns] == [b"OK"] * len(conns)
        given_back()
        for i, conn in enumerate(conns):
            conn.send("GET", f"large:{i}")
            assert len(conn.read()) == length
        given_back()
        for i, conn in enumerate(conns):
            assert conn.pipeline([("SET", f"small:{i}", "x"), ("GET", f"small:{i}")]) == [b"OK", b"x"]
    given_back()
    for conn in conns:
        conn.close()


def test_memory_comes_in_small_pages(lab):
    """Of huge ones, what is freed within one stays; and the kernel makes them of small ones, so that memory grows with time."""
    server = lab.server()
    proxy = lab.proxy(server.port)
    with Connection(server.port) as direct, Connection(proxy.port) as conn:
        direct.pipeline([("SET", f"key:{i}", "x" * 10_000) for i in range(2000)])
        # the link and a lane are there, and the lane may fill the cache
        cached(conn, "GET", "another")
        before = proxy.resident_bytes()
        conn.pipeline([("GET", f"key:{i}") for i in range(2000)])
        assert proxy.stats()["entries"] >= 2000
        assert proxy.resident_bytes() - before > 20_000_000
        # those of the time before the program could say so
        assert proxy.huge_page_bytes() <= 8 << 20


def test_ten_thousand_commands_in_one_write(site):
    commands, expected = [], []
    for i in range(2500):
        commands += [("SET", f"p{i % 100}", i), ("GET", f"p{i % 100}"), ("INCR", "count"), ("GET", "same")]
        expected += [b"OK", b"%d" % i, i + 1, b"value"]
    with Connection(site.a.port) as conn:
        conn.call("SET", "same", "value")
        assert conn.pipeline(commands) == expected
        conn.send_raw(b"".join(encode(*words) for words in commands[:8]) * 1250)
        assert [conn.read() for _ in range(10_000)][-1] == b"value"
