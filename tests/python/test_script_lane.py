"""Scripts share the lane where no connection of their own can be had."""

import os
import resource
import time

import pytest

from processes import wait_until
from wire import Connection

pytestmark = pytest.mark.needs_proxy


def answer(conn, *words):
    conn.send(*words)
    return conn.read()


SCRIPT = ("EVAL", "return redis.call('incr', KEYS[1])", 1, "n")


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_a_script_shares_the_lane_when_the_server_is_full(lab, kind):
    server = lab.server(kind)
    proxy = lab.proxy(server.port, settings={"threads": 1})
    with Connection(proxy.port) as conn, Connection(server.port) as direct:
        conn.call("SET", "n", 0)
        # Asked by a connection that stays: one that has just been closed may still be counted, and leave a place.
        wait_until(lambda: b"name=nearside-watch" in direct.call("CLIENT", "LIST"), "the proxy is complete")
        direct.call("CONFIG", "SET", "maxclients", int(direct.call("CLIENT", "LIST").count(b"\n")))
        # A connection on which a login was proven is kept for whoever needs one first. Who needs one more is told why there is none.
        took, told = [], b"OK"
        while told == b"OK":
            took.append(Connection(proxy.port))
            told = answer(took[-1], "MULTI")
        assert "max number of clients" in str(told) and len(took) <= 3
        assert conn.call(*SCRIPT) == 1
        for n in range(2, 10):
            assert conn.call(*SCRIPT) == n
        assert conn.pipeline([SCRIPT, ("GET", "n"), SCRIPT]) == [10, b"10", 11]
        assert "max number of clients" in str(answer(conn, "MULTI"))
        for other in took:
            other.close()


def test_a_script_shares_the_lane_at_max_dedicated(lab):
    server = lab.server("redis")
    proxy = lab.proxy(server.port, settings={"threads": 1, "max_dedicated": 1})
    with Connection(proxy.port) as conn, Connection(proxy.port) as blocked:
        blocked.send("BLPOP", "nothing", 0)
        wait_until(lambda: proxy.stats()["dedicated"] == 1, "the only place is taken")
        assert [conn.call(*SCRIPT) for _ in range(3)] == [1, 2, 3]
        assert "max_dedicated" in str(answer(conn, "MULTI"))


def test_a_script_shares_the_lane_when_files_run_out(lab):
    server = lab.server("redis")
    proxy = lab.proxy(server.port, settings={"threads": 1})
    with Connection(proxy.port) as conn:
        conn.call("SET", "n", 0)
        time.sleep(0.1)
        soft, hard = resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE)
        highest = max(map(int, os.listdir(f"/proc/{proxy.process.pid}/fd")))
        resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE, (highest + 1, hard))
        try:
            spare = highest + 1 - proxy.count_files()
            fillers = [Connection(proxy.port) for _ in range(spare)]
            assert [conn.call(*SCRIPT) for _ in range(3)] == [1, 2, 3]
        finally:
            resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
            for filler in fillers:
                filler.close()
    assert not proxy.panics()
