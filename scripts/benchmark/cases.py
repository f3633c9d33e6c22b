"""What is measured. Every case that compares takes its servers in turn, round after round, in one run."""

import statistics
import subprocess
import time
from collections import defaultdict

KEYS = 100_000
#: Bytes of all values together: three servers hold them, and a proxy's cache of 1 GB must.
VALUES_MAX = 512 << 20
#: Requests of one cell by pipeline, for values of 64 bytes.
REQUESTS = {1: 60_000, 16: 500_000, 100: 1_000_000}
NEARSIDE, NEARSIDE_AUTO = "nearside, 1 thread", "nearside"


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def keys_of(size):
    """How many keys have values of so many bytes."""
    return min(KEYS, VALUES_MAX // size)


def warm(bench, server, keys=KEYS):
    """Reads every key until no read goes upstream."""
    for _ in range(4):
        bench.load(server, requests=keys, keys=keys, dist="sequential", pipeline=100)
        before = misses(server)
        if before is None:
            return
        bench.load(server, requests=keys, keys=keys, dist="sequential", pipeline=100)
        if misses(server) == before:
            return


def write_all(bench, server, size=64, keys=None):
    """Writes every key; behind a proxy's back, so that it has nothing cached."""
    keys = keys or keys_of(size)
    bench.load(server, requests=keys, keys=keys, dist="sequential", pipeline=100, writes=100, value=size)


def misses(server):
    found = server.info("nearside", "nearside_misses:") if server.label.startswith("nearside") else {}
    return int(found["nearside_misses"]) if found else None


class Cells:
    """CPU microseconds per request, by (test, size, connections, pipeline) and server."""

    def __init__(self):
        self.times = defaultdict(list)
        self.leaks = defaultdict(int)

    def median(self, cell, label):
        times = self.times.get((cell, label))
        return statistics.median(times) if times else None

    def ratios(self, cell, label, base):
        """One for each round: what was measured close together is compared."""
        return [mine / theirs for mine, theirs in zip(self.times[cell, label], self.times[cell, base], strict=True)]

    def spread(self, cell, label):
        times = self.times[cell, label]
        return min(times), max(times)


def measure(bench, cells, server, upstream, cell):
    test, size, connections, pipeline = cell
    requests, keys = max(8_000, REQUESTS[pipeline] // max(1, size // 512)), keys_of(size)
    if test == "SET":
        # a SET of what a proxy has cached is reported back to it: how much of that there is must not depend on what ran before
        write_all(bench, upstream, size)
    elif server.label != "bare socket":
        warm(bench, server, keys)
    gets, cpu = upstream.calls().get("get", 0), server.cpu()
    if test == "mixed 95:5":
        bench.load(server, requests=requests, connections=connections, pipeline=pipeline, writes=5, value=size, keys=keys)
    else:
        bench.redis_benchmark(server, test.lower(), requests, pipeline, connections, size, keys)
    cells.times[cell, server.label].append((server.cpu() - cpu) / requests * 1e6)
    if test == "GET" and server.label.startswith("nearside"):
        cells.leaks[cell, server.label] += upstream.calls().get("get", 0) - gets


def grid(bench, rounds, sizes, connections):
    """Who costs how much a request."""
    # not the one that is measured itself: that one has nobody to report changes to
    upstream = bench.redis("upstream")
    one, auto = bench.nearside(NEARSIDE, upstream.port), bench.nearside(NEARSIDE_AUTO, upstream.port, threads=None)
    stores = [s for s in (upstream, bench.redis(), bench.valkey()) if s]
    servers = [*stores[1:], one, auto, bench.nutcracker(upstream.port), bench.floor()]
    cells = Cells()
    for size in sizes:
        for server in stores:
            write_all(bench, server, size)
        for round_ in range(rounds):
            turn = servers[round_ % len(servers) :] + servers[: round_ % len(servers)]
            say(f"values of {size} bytes, round {round_ + 1} of {rounds}")
            for test in ("GET", "SET", "mixed 95:5"):
                for cell in [(test, size, c, p) for c in connections for p in REQUESTS]:
                    for server in turn:
                        if server.label != "bare socket" or (test == "GET" and size == 64):
                            measure(bench, cells, server, upstream, cell)
    bench.stop(upstream, *servers)
    return cells


def writes_of_what_is_cached(bench, rounds):
    """CPU of a SET of a key that the proxy has cached and the server reports back, and of twemproxy's, by pipeline."""
    say("writes of what is cached")
    times = defaultdict(list)
    redis = bench.redis()
    write_all(bench, redis)
    near, twemproxy = bench.nearside(NEARSIDE, redis.port), bench.nutcracker(redis.port)
    for _ in range(rounds):
        for pipeline in (1, 16):
            warm(bench, near)
            for server in (near, twemproxy):
                cpu = server.cpu()
                bench.load(server, requests=KEYS, keys=KEYS, dist="sequential", connections=50, pipeline=pipeline, writes=100)
                times[server.label, pipeline].append((server.cpu() - cpu) / KEYS * 1e6)
    bench.stop(redis, near, twemproxy)
    return dict(times)


def misses_against_twemproxy(bench, rounds):
    """CPU of a GET that fills, each key read once by a proxy that was just started, and of twemproxy's GET."""
    say("misses")
    keys, times = 300_000, defaultdict(list)
    redis = bench.redis()
    write_all(bench, redis, keys=keys)
    twemproxy = bench.nutcracker(redis.port)
    for _ in range(rounds):
        cold = bench.nearside(NEARSIDE, redis.port)
        for server in (cold, twemproxy):
            cpu = server.cpu()
            bench.load(server, requests=keys, keys=keys, dist="sequential", pipeline=16)
            times[server.label].append((server.cpu() - cpu) / keys * 1e6)
        bench.stop(cold)
    bench.stop(redis, twemproxy)
    return dict(times)


def many_keys(bench, rounds):
    """Cached GETs over 10k and 1M keys; and what a million of them weigh."""
    say("a million keys")
    few, many = 10_000, 1_000_000
    redis = bench.redis()
    write_all(bench, redis, keys=many)
    near = bench.nearside(NEARSIDE, redis.port)
    bare = near.rss()
    warm(bench, near, many)
    weight = (near.rss() - bare) / int(near.info("nearside", "nearside_entries:")["nearside_entries"])
    times = defaultdict(list)
    for _ in range(rounds):
        for pipeline in (16, 100):
            for keys in (few, many):
                cpu = near.cpu()
                bench.redis_benchmark(near, "get", REQUESTS[pipeline], pipeline, 50, 64, keys)
                times[pipeline, keys].append((near.cpu() - cpu) / REQUESTS[pipeline] * 1e6)
    bench.stop(redis, near)
    return weight, dict(times)


def tail(bench, rounds):
    """p99 in microseconds of GETs on 1000 connections while one client writes and another reads what is not cached. So many
    that the first of each connection, which waits until that is accepted, is not the one in a hundred."""
    say("the tail at 1000 connections")
    redis = bench.redis()
    other = 2_000_000
    write_all(bench, redis)
    proxies = bench.nearside(NEARSIDE, redis.port), bench.nearside(NEARSIDE_AUTO, redis.port, threads=None)
    for proxy in proxies:
        warm(bench, proxy)
    found = defaultdict(list)
    for _ in range(rounds):
        for server in (redis, *proxies):
            disturbers = [
                bench.load(server, background=True, requests=10**9, connections=1, writes=100, keys=KEYS),
                bench.load(server, background=True, requests=10**9, connections=1, keys=other, dist="sequential"),
            ]
            found[server.label].append(bench.load(server, requests=400_000, connections=1000, keys=KEYS)[3])
            for disturber in disturbers:
                disturber.kill()
                disturber.wait()
    bench.stop(redis, *proxies)
    return dict(found)


def far_away(bench, microseconds, requests):
    """Zipf 0.99 over 100k keys, 1 % writes, an upstream so far away each way: with and without nearside."""
    say(f"an upstream {microseconds} µs away")
    redis = bench.redis()
    write_all(bench, redis)
    relay = bench.relay(redis.port, microseconds)
    near = bench.nearside(NEARSIDE_AUTO, relay.port, threads=None)
    bench.load(near, requests=10 * requests, connections=8, pipeline=16, writes=1, dist="zipf", keys=KEYS)
    rows = {}
    for label, server in (("without", relay), ("with", near)):
        calls, cpu, clients = redis.calls(), redis.cpu(), near.cpu()
        _, _, p50, p99, _ = bench.load(server, requests=requests, connections=8, writes=1, dist="zipf", keys=KEYS)
        after = redis.calls()
        delta = {name: after[name] - calls.get(name, 0) for name in after if name not in ("info", "command", "ping")}
        cpu_us = (redis.cpu() - cpu) / requests * 1e6
        rows[label] = {"p50": p50, "p99": p99, "cpu": cpu_us, "gets": delta.get("get", 0), "all": sum(delta.values())}
        rows[label]["proxy"] = (near.cpu() - clients) / requests * 1e6
    rows["requests"] = requests
    bench.stop(near, relay, redis)
    return rows


def saved(bench, requests):
    """The share of reads that two proxies keep from the upstream: Zipf 0.99, 1 % writes."""
    say("two proxies on one upstream")
    redis = bench.redis()
    write_all(bench, redis)
    proxies = [bench.nearside(f"nearside {n}", redis.port) for n in (1, 2)]
    options = {"connections": 25, "pipeline": 4, "writes": 1, "dist": "zipf", "keys": KEYS}
    before = {}
    # the first lap warms up
    for _ in range(2):
        before = redis.calls()
        command = [bench.load(p, background=True, requests=requests // 2, **options) for p in proxies]
        if any(subprocess.Popen.wait(c) for c in command):
            raise SystemExit("a load failed")
    after = redis.calls()
    delta = {name: after[name] - before.get(name, 0) for name in after if name not in ("info", "ping")}
    bench.stop(redis, *proxies)
    return 1 - delta["get"] / (requests * 0.99), 1 - sum(delta.values()) / requests
