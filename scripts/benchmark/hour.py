"""scripts/bench --hour: full load with values from 64 bytes to 1 MB, far more of them than the cache may hold. Its memory
must stay below a stated bound, must not grow with time, and what is pushed out must keep pace with what comes in."""

import csv
import random
import socket
import statistics
import time

from cases import say

SIZES = (64, 1024, 16_384, 131_072, 1_000_000)
#: Beside `max_memory`: 11 MB of a process that has done nothing, room that the allocator keeps of values that are gone,
#: and replies that clients are reading. docs/OPERATING.md says the same.
OVERHEAD = 64 << 20
#: Of `max_memory`: what the allocator loses in its pages once values of all sizes have come and gone.
SHARE = 0.25
#: Of the median in the second quarter of the run, for the median of the last one.
GROWTH = 0.05
CONNECTIONS = 2
DATA = 3


def megabytes(text):
    """Of "64mb" or "1gb"; anything else is an error."""
    return int(text[:-2]) * {"mb": 1, "gb": 1024}[text[-2:].lower()]


def fill(server, keys):
    """Every key has a value, of one size in turn with the others."""
    rng = random.Random(1)
    with socket.create_connection(("127.0.0.1", server.port), 60) as s, s.makefile("rb") as replies:
        for n in range(keys):
            value = b"x" * rng.choice(SIZES)
            s.sendall(b"*3\r\n$3\r\nSET\r\n$16\r\nkey:%012d\r\n$%d\r\n%s\r\n" % (n, len(value), value))
            if not replies.readline().startswith(b"+OK"):
                raise SystemExit("the upstream does not take the data")


def sample(near, started):
    info = near.info("nearside", "nearside_")
    number = lambda name: int(info[f"nearside_{name}"])
    row = {"second": round(time.monotonic() - started, 1), "rss": near.rss()}
    return row | {name: number(name) for name in ("bytes", "max_bytes", "entries", "fills", "evictions", "hits", "misses")}


def watch(near, loads, seconds, path):
    """A row a second, in a file too."""
    rows, started = [], time.monotonic()
    with path.open("w", newline="") as file:
        table = None
        while time.monotonic() - started < seconds:
            rows.append(sample(near, started))
            table = table or csv.DictWriter(file, rows[0])
            if len(rows) == 1:
                table.writeheader()
            table.writerow(rows[-1])
            file.flush()
            ended = [load for load in loads if load.poll() is not None]
            if ended:
                raise SystemExit(f"a load ended with exit code {ended[0].returncode}; see {near.log}")
            time.sleep(1)
    return rows


def faults(rows):
    """What is not as it must be, in words."""
    budget = rows[0]["max_bytes"]
    bound = budget + SHARE * budget + OVERHEAD
    peak = max(row["rss"] for row in rows)
    over = max(row["bytes"] for row in rows) - budget
    quarter = len(rows) // 4
    middle, end = (statistics.median(row["rss"] for row in part) for part in (rows[quarter : 2 * quarter], rows[-quarter:]))
    mb = lambda n: f"{n / 2**20:.0f} MiB"
    fills, evictions = (rows[-1][name] - rows[0][name] for name in ("fills", "evictions"))
    say(f"max_memory {mb(budget)}: RSS at most {mb(peak)} (bound {mb(bound)}), {mb(middle)} in the second quarter, {mb(end)} in the last; "
        f"{fills} fills, {evictions} evictions, {rows[-1]['hits']} hits, {rows[-1]['misses']} misses")  # fmt: skip
    found = []
    if peak > bound:
        found.append(f"RSS reached {mb(peak)}, the bound is {mb(bound)}")
    if end > middle * (1 + GROWTH):
        found.append(f"RSS grows: {mb(middle)} in the second quarter, {mb(end)} in the last")
    # fills of several threads may be between being kept and pushing others out: one value each
    if over > 4 * SIZES[-1]:
        found.append(f"the cache is {mb(over)} above its budget: eviction does not keep pace")
    if evictions == 0:
        found.append("nothing was evicted: no full load")
    return found


def run(bench, seconds, memory, out):
    """True if all is as it must be."""
    keys = DATA * megabytes(memory) * 2**20 // (sum(SIZES) // len(SIZES))
    redis = bench.redis()
    say(f"max_memory {memory}: {keys} values of 64 B to 1 MB, {DATA} times as many bytes as may be cached")
    fill(redis, keys)
    near = bench.nearside("nearside", redis.port, threads=None, memory=memory)
    # Each writes values of its own size; all read all.
    options = {"requests": 10**12, "connections": CONNECTIONS, "writes": 2, "keys": keys}
    loads = [bench.load(near, background=True, value=size, dist=dist, **options) for size in SIZES for dist in ("zipf", "uniform")]
    try:
        rows = watch(near, loads, seconds, out)
    finally:
        for load in loads:
            load.kill()
            load.wait()
        bench.stop(near, redis)
    found = faults(rows)
    for fault in found:
        say(f"FAILED: {fault}")
    return not found
