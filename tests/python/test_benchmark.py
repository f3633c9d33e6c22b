"""redis-benchmark, which many people point at a proxy first, and the proof that warm reads do not reach the server."""

import subprocess

import pytest

from processes import LEVELS
from wire import Connection

BENCHMARK_TIMEOUT = 60


def redis_benchmark(port, *options):
    argv = ["redis-benchmark", "-p", str(port), *map(str, options)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=BENCHMARK_TIMEOUT, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "error" not in output.lower(), output
    return output


def names_tested(output):
    """Of the `--csv` form: one quoted name a line."""
    return [line.split('"')[1] for line in output.splitlines() if line.startswith('"') and not line.startswith('"test"')]


@pytest.mark.parametrize("options", [(), ("-P", 16), ("-3",), ("-c", 500)], ids=["plain", "pipelined", "resp3", "500 clients"])
def test_all_default_tests_finish(redis_site, options):
    names = names_tested(redis_benchmark(redis_site.a.port, "-n", 2000, "--csv", *options))
    for expected in ("PING_MBULK", "SET", "GET", "INCR", "LPUSH", "LRANGE_600 (first 600 elements)", "MSET (10 keys)"):
        assert expected in names


@pytest.mark.parametrize("level", LEVELS)
def test_random_keys_read_and_written_at_once(redis_site, level):
    redis_benchmark(redis_site.a.ports[level], "-n", 20_000, "-r", 1000, "-P", 8, "-q", "-t", "set,get,mset,hset")


@pytest.mark.needs_proxy
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("protocol", [2, 3])
def test_gets_of_warm_keys_leave_the_upstream_alone(redis_site, level, protocol):
    keys = [f"k{i}" for i in range(100)]
    redis_site.server.call("MSET", *[word for key in keys for word in (key, "v")])
    with Connection(redis_site.a.ports[level], protocol=protocol) as conn:
        read = [("GET", key) for key in keys]
        warm_up(redis_site.server, conn, read)
        before, hits = redis_site.server.calls("get"), redis_site.a.stats()["hits"]
        for _ in range(20):
            assert conn.pipeline(read) == [b"v"] * len(keys)
        assert redis_site.server.calls("get") == before
        assert redis_site.a.stats()["hits"] == hits + 20 * len(keys)


def warm_up(server, conn, read):
    """Until a whole round reaches the server no more: the MSET may be reported after the first fills."""
    for _ in range(50):
        before = server.calls("get")
        conn.pipeline(read)
        if server.calls("get") == before:
            return
    raise AssertionError("50 rounds, and the keys are still not warm")


@pytest.mark.needs_proxy
def test_explain_says_hit_or_miss(redis_site):
    redis_site.server.call("SET", "k", "v")
    with Connection(redis_site.a.port) as conn:
        assert "miss" in explain(conn, "GET", "k")
        conn.call("GET", "k")
        conn.call("GET", "k")
        assert "hit" in explain(conn, "GET", "k")
        conn.call("SET", "k", "w")
        assert "miss" in explain(conn, "GET", "k")


def explain(conn, *command):
    reply = conn.call("NEARSIDE", "EXPLAIN", *command)
    words = reply if isinstance(reply, list) else [reply]
    return " ".join(word.decode() for word in words).lower()
