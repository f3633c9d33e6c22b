"""Upstreams that lead back to the proxy, and proxies in a row."""

import time

import pytest

from processes import free_port, wait_until
from wire import Connection, ReplyError
import contextlib

pytestmark = pytest.mark.needs_proxy

FILES = 150  # a proxy at rest has some 60, the tests' clients included


def answer(conn, *words):
    conn.send(*words)
    return conn.read()


def held_below(proxies, seconds, bound=FILES):
    """Nothing grows in this time, while clients try."""
    most, deadline = 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        for proxy in proxies:
            for words in (("GET", "k"), ("AUTH", "u", "p"), ("EVAL", "return 1", 0), ("HELLO", 3, "SETNAME", "me")):
                with Connection(proxy.port, timeout=5) as conn, contextlib.suppress(ConnectionError):
                    assert isinstance(answer(conn, *words), ReplyError)
            most = max(most, proxy.count_files())
    assert most < bound, f"{most} files"


def test_a_proxy_that_is_its_own_upstream_says_so(lab):
    port = free_port()
    proxy = lab.proxy(port, doors=[{"address": f"127.0.0.1:{port}"}], wait=False)
    wait_until(lambda: "is this proxy itself, or leads back to it" in proxy.read_log(), "the ring is seen")
    with Connection(proxy.port) as conn:
        assert "leads back to" in str(answer(conn, "GET", "k"))
    held_below([proxy], 2)
    assert proxy.alive()


@pytest.mark.parametrize("length", [2, 3])
def test_a_ring_of_proxies_says_so(lab, length):
    ports = [free_port() for _ in range(length)]
    proxies = []
    for n, port in enumerate(ports):
        door = {"address": f"127.0.0.1:{port}"}
        proxies.append(lab.proxy(ports[(n + 1) % length], f"ring{n}", doors=[door], wait=False))
    for proxy in proxies:
        wait_until(lambda: "leads back to it" in proxy.read_log(), "the ring is seen")
        with Connection(proxy.port) as conn:
            assert "leads back to" in str(answer(conn, "GET", "k"))
    held_below(proxies, 2)
    assert all(proxy.alive() for proxy in proxies)


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_proxies_in_a_row_serve(lab, kind):
    server = lab.server(kind)
    near = lab.proxy(server.port, "near")
    far = lab.proxy(near.port, "far")
    with Connection(far.port) as conn, Connection(server.port) as direct:
        conn.call("SET", "k", 1)
        assert direct.call("GET", "k") == b"1"
        assert conn.call("HELLO", 3, "SETNAME", "me")[b"proto"] == 3
        assert conn.call("EVAL", "return redis.call('incr', KEYS[1])", 1, "k") == 2
        direct.call("SET", "k", 3)
        wait_until(lambda: conn.call("GET", "k") == b"3", "what others wrote is seen", timeout=3)
    assert "leads back" not in near.read_log() + far.read_log()
