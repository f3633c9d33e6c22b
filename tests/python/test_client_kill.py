"""Whoever is killed by CLIENT KILL finds its connection closed, and is told nothing of what else ends with it."""

import contextlib
import threading

import pytest

from processes import KINDS, wait_until
from wire import Connection, encode

pytestmark = pytest.mark.needs_proxy

ROUNDS = 20


@contextlib.contextmanager
def busy(port):
    """Clients that keep both threads of the proxy busy, so that a session that is woken waits for its turn."""
    over = threading.Event()

    def work():
        blob = encode("GET", "hot") * 10_000
        with Connection(port, timeout=30) as conn:
            while not over.is_set():
                conn.send_raw(blob)
                for _ in range(10_000):
                    conn.read()

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    try:
        yield
    finally:
        over.set()
        [thread.join() for thread in threads]


@pytest.mark.parametrize("kind", KINDS)
def test_the_killed_are_not_told_that_their_own_connections_are_lost(lab, kind):
    """The server ends those as well. Before: a BLPOP was answered by an error, which no client expects, and then closed."""
    proxy = lab.proxy(lab.server(kind).port, settings={"threads": 2})
    told = []
    with busy(proxy.port), Connection(proxy.port) as killer:
        killer.call("SET", "hot", "v")
        for _ in range(ROUNDS):
            with Connection(proxy.port) as victim:
                number = victim.call("CLIENT", "ID")
                victim.send("BLPOP", "never", 0)
                wait_until(lambda n=number: b"cmd=blpop" in killer.call("CLIENT", "LIST", "ID", n), "it waits")
                assert killer.call("CLIENT", "KILL", "ID", number) == 1
                told.append(victim.read_to_end())
    assert set(told) == {b""}, [text for text in told if text]
