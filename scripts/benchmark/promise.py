"""scripts/bench --promise: what each level costs, by the distance of the upstream, and what the proxy asks of the upstream
beside the reads it passes on."""

import re
import time

import pictures
import report
from cases import say, warm, write_all

LEVELS = ("bounded", "causal", "linearizable")
DISTANCES = (0, 300, 1000)
KEYS = 10_000
#: Enough to keep the proxy busy, and few enough that what they wait for is the proxy and not each other.
MANY, FEW = 50, 8
#: Which connection says what; what clients ask passes on lanes too.
KINDS = {"ping": "link and lanes: PING", "info": "watch: INFO", "acl|list": "watch: ACL LIST", "client|caching": "fills: CLIENT CACHING",
         "pttl": "fills: PTTL", "get": "fills and audits: GET"}  # fmt: skip


def calls(redis):
    return {name: n for name, n in redis.calls().items() if name in KINDS}


def difference(before, after):
    return {name: n - before.get(name, 0) for name, n in after.items() if n > before.get(name, 0)}


def waits(near):
    return int(near.info("nearside", "nearside_clock_waits:")["nearside_clock_waits"])


def level(bench, door, redis, requests):
    """Of reads at one level, with one write in a hundred: a second, microseconds, waits and commands upstream a thousand."""
    options = {"writes": 1, "dist": "zipf", "keys": KEYS}
    _, _, p50, p99, _ = bench.load(door, requests=requests // 4, connections=FEW, **options)
    waited, asked, cpu = waits(door), calls(redis), redis.cpu()
    _, seconds, *_ = bench.load(door, requests=requests, connections=MANY, **options)
    pings = difference(asked, calls(redis)).get("ping", 0)
    return {"rate": requests / seconds, "p50": p50, "p99": p99, "waits": (waits(door) - waited) / requests * 1000,
            "pings": pings / requests * 1000, "cpu": (redis.cpu() - cpu) / requests * 1e6}  # fmt: skip


def distance(bench, us, rounds, requests):
    """The levels in turn, round after round; the median of the rounds by throughput."""
    say(f"an upstream {us} µs away")
    redis = bench.redis()
    write_all(bench, redis, keys=KEYS)
    relay = bench.relay(redis.port, us) if us else redis
    near, doors = bench.levels(relay.port)
    warm(bench, near, KEYS)
    found = {name: [] for name in LEVELS}
    for _ in range(rounds):
        for name in LEVELS:
            found[name].append(level(bench, doors[name], redis, requests))
    bench.stop(near, *({relay, redis}))
    return {name: sorted(rows, key=lambda row: row["rate"])[len(rows) // 2] for name, rows in found.items()}


def upstream(bench, seconds):
    """Commands a second, or for each of something, that are the proxy's own."""
    say("what the upstream is asked")
    redis = bench.redis()
    write_all(bench, redis, keys=KEYS)
    near, doors = bench.levels(redis.port)
    rows, units = {}, {}

    def phase(name, work, unit):
        before, started = calls(redis), time.monotonic()
        n = work()
        n = n or time.monotonic() - started
        rows[name] = {kind: count / n for kind, count in difference(before, calls(redis)).items()}
        units[name] = unit

    def reads(level, pipeline, count):
        bench.load(doors[level], requests=count, connections=MANY, pipeline=pipeline, keys=KEYS)

    phase("nobody asks", lambda: time.sleep(seconds), "second")
    phase("each key read for the first time", lambda: (warm_once(bench, near), KEYS)[1], "fill")
    warm(bench, near, KEYS)
    phase("hits, bounded", lambda: reads("bounded", 1, 200_000), "second")
    phase("hits, linearizable", lambda: reads("linearizable", 1, 50_000), "second")
    bench.stop(near, redis)
    return rows, units


def warm_once(bench, near):
    bench.load(near, requests=KEYS, keys=KEYS, dist="sequential", pipeline=16, connections=8)


def keep_data(found, rows, units, out):
    columns = {"rate": ("reads_per_second", 1), "p50": ("p50_ms", 1000), "p99": ("p99_ms", 1000), "waits": ("clock_waits_per_1000", 1),
               "pings": ("pings_per_1000", 1), "cpu": ("upstream_cpu_us", 1)}  # fmt: skip
    data = [(us, level_, *(f"{row[what] / unit:.4f}" for what, (_, unit) in columns.items()))
            for us, levels in found.items() for level_, row in levels.items()]  # fmt: skip
    pictures.keep(out, "promise", ["upstream_us", "level", *(name for name, _ in columns.values())], data)
    head = ["phase", "for_each", *(kind.replace("|", "_") for kind in KINDS)]
    pictures.keep(out, "promise_upstream", head, [(name, units[name], *(f"{row.get(kind, 0):.2f}" for kind in KINDS)) for name, row in rows.items()])


def write(found, rows, units, command, out):
    keep_data(found, rows, units, out)
    pictures.draw(out, "promise")
    head = ["upstream away", "level", "reads a second", "p50, ms", "p99, ms", "waits for a clock in 1000", "PINGs upstream in 1000", "upstream CPU, µs a request"]
    body = [[f"{us / 1000} ms", name, f"{row['rate']:,.0f}", f"{row['p50'] / 1000:.2f}", f"{row['p99'] / 1000:.2f}", f"{row['waits']:.1f}",
             f"{row['pings']:.1f}", f"{row['cpu']:.2f}"] for us, levels in found.items() for name, row in levels.items()]  # fmt: skip
    asked = [[name, units[name], *(f"{row.get(kind, 0):.2f}" for kind in KINDS)] for name, row in rows.items()]
    text = f"""Written by `{command}`, on {report.machine()}, load average {report.os.getloadavg()[0]:.1f} (the bench makes about 3 of it, so compare the levels, not
the throughput). One request at a time; {FEW} clients for p50 and p99, {MANY} for the rest; Zipf 0.99 over {KEYS:,} keys, one request in a hundred is a write.

![The cost of each level](promise.svg)

{report.table(head, body)}
Commands that the proxy itself sends to the upstream, by the upstream's own count (`INFO commandstats`):

{report.table(["", "commands for each", *KINDS.values()], asked)}"""
    page = out / "PROMISE.md"
    mark = "<!-- promise: {} -->\n"
    between = re.compile(re.escape(mark.format("generated")) + ".*" + re.escape(mark.format("end")), re.DOTALL)
    before = (pictures.ROOT / "docs/bench/PROMISE.md").read_text()
    page.write_text(between.sub(lambda _: mark.format("generated") + text + mark.format("end"), before))
    print(text)


def run(bench, rounds, command, out):
    found = {us: distance(bench, us, rounds, 40_000) for us in DISTANCES}
    rows, units = upstream(bench, 5)
    write(found, rows, units, command, out)
