"""scripts/bench --curves: does the cost of one request stay what it is as entries, connections and proxies grow?"""

import statistics
import time

import pictures
import report
from cases import say

ENTRIES = [10**n for n in range(3, 7)]
#: With --long: some 5 GB, and minutes.
MOST_ENTRIES = 10**7
CONNECTIONS = [1, 10, 100, 1000, 9900]
PROXIES = [0, 1, 2, 4, 8]
PIPELINES = (1, 16, 100)
#: Of one measurement, by pipeline: short, because the machine is shared; CPU time does not depend on who else works.
REQUESTS = {1: 30_000, 16: 200_000, 100: 400_000}
WRITES = 20_000


def per_request(bench, server, requests, **options):
    cpu = server.cpu()
    bench.load(server, requests=requests, **options)
    return (server.cpu() - cpu) / requests * 1e6


def entries(bench, rounds, counts):
    """CPU microseconds of a cached GET of a random key, by how many there are and by pipeline."""
    redis = bench.redis()
    # else the server forgets who has read what, and reports keys that have not changed
    redis.ask("CONFIG", "SET", "tracking-table-max-keys", "0")
    near = bench.nearside("nearside", redis.port, memory="8gb")
    found, weight, bare = {}, {}, near.rss()
    for count in counts:
        say(f"{count:,} entries")
        sweep = {"requests": count, "keys": count, "dist": "sequential", "pipeline": 100, "connections": 8}
        bench.load(redis, writes=100, **sweep)
        # once to fill, once more for what came between
        bench.load(near, **sweep)
        bench.load(near, **sweep)
        held = int(near.info("nearside", "nearside_entries:")["nearside_entries"])
        if held < count * 0.999:
            raise SystemExit(f"only {held} of {count} keys are cached")
        weight[count] = (near.rss() - bare) / count
        for p in PIPELINES:
            times = [per_request(bench, near, REQUESTS[p], pipeline=p, connections=50, keys=count) for _ in range(rounds)]
            found[count, p] = statistics.median(times)
            say(f"  P{p}: {found[count, p]:.2f} µs")
    bench.stop(near, redis)
    return found, weight


def connections(bench, rounds):
    """The same by the number of clients, over 10,000 keys; with one pipeline that each sends in turn."""
    redis, keys = bench.redis(), 10_000
    near = bench.nearside("nearside", redis.port, settings="maxclients = 10100\n")
    sweep = {"requests": keys, "keys": keys, "dist": "sequential", "pipeline": 100, "connections": 8}
    bench.load(redis, writes=100, **sweep)
    bench.load(near, **sweep)
    bench.load(near, **sweep)
    found = {}
    for count in CONNECTIONS:
        say(f"{count:,} connections")
        for p in PIPELINES[:2]:
            # each connection asks often, so that coming and going weighs little
            requests = max(REQUESTS[p], 20 * p * count)
            times = [per_request(bench, near, requests, pipeline=p, connections=count, keys=keys) for _ in range(rounds)]
            found[count, p] = statistics.median(times)
            say(f"  P{p}: {found[count, p]:.2f} µs")
    bench.stop(near, redis)
    return found


def proxies(bench, rounds):
    """CPU microseconds of the upstream for a write of a key that so many proxies have cached; the write's p50 and p99; the
    proxies' CPU for it, all together."""
    redis, keys = bench.redis(), WRITES
    sweep = {"requests": keys, "keys": keys, "dist": "sequential"}
    bench.load(redis, writes=100, pipeline=100, **sweep)
    near, found = [], {}
    for count in PROXIES:
        say(f"{count} proxies")
        near += [bench.nearside(f"nearside {n}", redis.port) for n in range(len(near), count)]
        rows = []
        for _ in range(rounds):
            for proxy in near:
                # twice: what was reported while it was read is not kept
                for _ in range(2):
                    bench.load(proxy, pipeline=100, connections=8, **sweep)
                cached = int(proxy.info("nearside", "nearside_entries:")["nearside_entries"])
                if cached < keys * 0.99:
                    raise SystemExit(f"only {cached} of {keys} keys are cached")
            time.sleep(0.2)
            before, others = redis.cpu(), sum(proxy.cpu() for proxy in near)
            _, _, p50, p99, _ = bench.load(redis, writes=100, connections=1, **sweep)
            cpu = (redis.cpu() - before) / keys * 1e6
            rows.append((cpu, p50, p99, (sum(proxy.cpu() for proxy in near) - others) / keys * 1e6))
        found[count] = tuple(map(statistics.median, zip(*rows, strict=True)))
        say(f"  upstream {found[count][0]:.1f} µs a write")
    bench.stop(*near, redis)
    return found


def keep_data(by_entries, weight, by_connections, by_proxies, out):
    micro = lambda found, count, p: f"{found[count, p]:.3f}" if (count, p) in found else ""
    first = [(n, *(micro(by_entries, n, p) for p in PIPELINES), f"{weight[n]:.1f}") for n in weight]
    pictures.keep(out, "entries", ["entries", *(f"p{p}_us" for p in PIPELINES), "rss_bytes_per_entry"], first)
    second = [(n, *(micro(by_connections, n, p) for p in PIPELINES[:2])) for n in CONNECTIONS]
    pictures.keep(out, "connections", ["connections", *(f"p{p}_us" for p in PIPELINES[:2])], second)
    third = [(n, *(f"{value:.2f}" for value in row)) for n, row in by_proxies.items()]
    pictures.keep(out, "proxies", ["proxies", "upstream_cpu_us", "write_p50_us", "write_p99_us", "proxies_cpu_us"], third)


def run(bench, rounds, command, out, long=False):
    counts = [*ENTRIES, MOST_ENTRIES] if long else ENTRIES
    by_proxies, by_connections = proxies(bench, rounds), connections(bench, rounds)
    by_entries, weight = entries(bench, rounds, counts)
    keep_data(by_entries, weight, by_connections, by_proxies, out)
    pictures.draw(out, "curves")
    micro = lambda found, count, p: f"{found[count, p]:.2f}" if (count, p) in found else ""
    first = [[f"{n:,}", *(micro(by_entries, n, p) for p in PIPELINES), f"{weight[n]:.0f}"] for n in counts]
    second = [[f"{n:,}", *(micro(by_connections, n, p) for p in PIPELINES[:2])] for n in CONNECTIONS]
    third = [[n, *(f"{value:.1f}" for value in row)] for n, row in by_proxies.items()]
    names = [f"P{p}, µs" for p in PIPELINES]
    text = f"""# As work grows

Written by `{command}`; do not edit, but for the last section, which is kept. {rounds} rounds, medians. CPU time of the process, all its threads;
values of 64 bytes. On {report.machine()}; the load comes from the same machine.

![CPU as work grows](curves.svg)

## Entries

A cached GET of a random key, one thread, 50 connections.

{report.table(["entries", *names, "RSS per entry, B"], first)}
## Connections

A cached GET, one thread, 10,000 keys.

{report.table(["connections", *names[:2]], second)}
## Proxies on one upstream

Every proxy has cached every key; a client writes them one after another, past all proxies: the upstream reports each to each.

{report.table(["proxies", "upstream CPU, µs a write", "write p50, µs", "write p99, µs", "CPU of all proxies, µs a write"], third)}
"""
    page = out / "CURVES.md"
    mark = "## Where a curve bends, and why\n"
    kept = page.read_text().partition(mark)[2] if page.exists() else ""
    page.write_text(text + mark + kept)
    print(text)
