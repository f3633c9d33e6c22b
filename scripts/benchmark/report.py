"""One page of tables, its data and two pictures."""

import os
import platform
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import pictures
from cases import KEYS, NEARSIDE, NEARSIDE_AUTO, VALUES_MAX

ORDER = list(pictures.SERVERS)


@dataclass
class Found:
    """All that was measured."""

    command: str
    rounds: int
    cells: object = None
    writes: dict = None
    misses: dict = None
    weight: float = 0
    many: dict = None
    tail: dict = None
    far: dict = None
    saved: tuple = None
    versions: dict = field(default_factory=dict)


@dataclass
class Target:
    """A row of the targets. `lower`: less is better."""

    what: str
    against: str
    values: list
    least: float
    aim: float
    unit: str = "×"
    lower: bool = True

    def holds(self, bound):
        return [value <= bound if self.lower else value >= bound for value in self.values]

    def verdict(self):
        if all(self.holds(self.aim)):
            return "aim reached"
        if all(self.holds(self.least)):
            return "kept"
        return "undecided: the rounds differ" if any(self.holds(self.least)) else "**missed**"

    def row(self):
        digits = 2 if self.unit == "×" else 1
        show = lambda n: f"{n:.{digits}f} {self.unit}"
        measured = show(statistics.median(self.values))
        if len(self.values) > 1:
            measured += f" ({min(self.values):.{digits}f}–{max(self.values):.{digits}f})"
        return [self.what, self.against, measured, show(self.least), show(self.aim), self.verdict()]

    def data(self):
        values = [f"{value:.4f}" for value in (statistics.median(self.values), min(self.values), max(self.values))]
        return [self.what, self.against, *values, self.least, self.aim, self.unit]


def ratios(mine, theirs):
    return [a / b for a, b in zip(mine, theirs, strict=True)]


def targets(found):
    cell = lambda test, p: (test, 64, 50, p)
    rows = []
    for p, least, aim in ((1, 1.0, 0.85), (16, 0.45, 0.30), (100, 0.32, 0.18)):
        values = found.cells.ratios(cell("GET", p), NEARSIDE, "redis-server")
        rows.append(Target(f"cached GET, P{p}", "redis-server", values, least, aim))
    for p in (16, 100):
        values = ratios(found.many[p, 1_000_000], found.many[p, 10_000])
        rows.append(Target(f"cached GET, P{p}, 1M keys", "the same, 10k keys", values, 1.6, 1.2))
    for p, least, aim in ((1, 1.0, 0.8), (16, 0.45, 0.25)):
        values = found.cells.ratios(cell("SET", p), NEARSIDE, "nutcracker")
        rows.append(Target(f"forwarded SET (added CPU), P{p}", "twemproxy", values, least, aim))
    values = ratios(found.misses[NEARSIDE], found.misses["nutcracker"])
    rows.append(Target("missed GET with its fill, P16", "twemproxy's plain GET", values, 0.8, 0.5))
    for label, threads in ((NEARSIDE_AUTO, ""), (NEARSIDE, ", 1 thread")):
        values = ratios(found.tail[label], found.tail["redis-server"])
        what = f"p99 of a GET, 1000 connections, beside a writer and a misser{threads}"
        rows.append(Target(what, "redis-server", values, 1.0, 0.7))
    rows.append(Target("memory per cached 64 B value with 16 B key", "–", [found.weight], 220, 150, "B"))
    saved = [found.saved[0] * 100]
    rows.append(Target("reads kept from the upstream, Zipf 0.99, 1 % writes, 2 proxies", "–", saved, 97, 99, "%", lower=False))
    return rows


def table(head, rows):
    line = lambda cells: "| " + " | ".join(str(cell) for cell in cells) + " |"
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)]) + "\n"


def cpu_table(found):
    rows = []
    for cell in sorted({cell for cell, _ in found.cells.times}, key=lambda c: (c[1], c[2], c[0], c[3])):
        test, size, connections, pipeline = cell
        base = found.cells.median(cell, "redis-server")
        row = [test, f"{size} B", connections, f"P{pipeline}"]
        for label in ORDER:
            median = found.cells.median(cell, label)
            if median is None:
                row.append("")
            else:
                low, high = found.cells.spread(cell, label)
                row.append(f"{median:.2f} ({low:.2f}–{high:.2f}) = {median / base:.2f} ×")
        rows.append(row)
    return table(["", "value", "clients", "pipeline", *ORDER], rows)


def far_table(found):
    rows = []
    for us, rates in found.far.items():
        requests = rates["requests"]
        for label in ("without", "with"):
            r = rates[label]
            rows.append([f"{us / 1000} ms", label, f"{r['p50'] / 1000:.2f}", f"{r['p99'] / 1000:.2f}", f"{r['cpu']:.1f}",
                         f"{r['gets'] / requests:.3f}", f"{r['all'] / requests:.3f}"])  # fmt: skip
    head = ["upstream away", "nearside", "GET p50, ms", "GET p99, ms", "upstream CPU, µs a request", "upstream GETs a request",
            "upstream commands a request"]  # fmt: skip
    return table(head, rows)


def machine():
    models = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{os.cpu_count()} × {models[0] if models else platform.machine()}, {memory:.0f} GiB, Linux {platform.release()}"


def keep_data(found, rows, out):
    """The figures behind the tables and pictures."""
    cells = sorted(found.cells.times)
    micro = lambda cell, label: (found.cells.median(cell, label), *found.cells.spread(cell, label))
    cpu = [(*cell, label, *(f"{us:.3f}" for us in micro(cell, label))) for cell, label in cells]
    pictures.keep(out, "cpu", ["test", "value_bytes", "clients", "pipeline", "server", "us", "us_low", "us_high"], cpu)
    pictures.keep(out, "targets", ["target", "against", "measured", "low", "high", "at_least", "aim", "unit"], [row.data() for row in rows])
    far = [(us, label, f"{r['p50'] / 1000:.4f}", f"{r['p99'] / 1000:.4f}", f"{r['cpu']:.2f}", f"{r['gets'] / rates['requests']:.4f}",
            f"{r['all'] / rates['requests']:.4f}") for us, rates in found.far.items() for label, r in ((w, rates[w]) for w in ("without", "with"))]  # fmt: skip
    head = ["upstream_us", "nearside", "p50_ms", "p99_ms", "upstream_cpu_us", "upstream_gets_per_request", "upstream_commands_per_request"]
    pictures.keep(out, "far", head, far)


def write(found, out):
    out.mkdir(parents=True, exist_ok=True)
    rows = targets(found)
    keep_data(found, rows, out)
    pictures.draw(out, "cpu", "latency")
    leaks = sum(found.cells.leaks.values()) or "none"
    writes = {cell: statistics.median(times) for cell, times in found.writes.items()}
    missed = {label: statistics.median(times) for label, times in found.misses.items()}
    text = f"""# What it costs

Written by `{found.command}`; do not edit. {found.rounds} rounds, all servers in turn, medians (and the range); CPU time of the server
process, all its threads; the load comes from the same machine, so throughput would say little.

- machine: {machine()}; load average {os.getloadavg()[2]:.1f} over the last 15 minutes, of which the bench itself makes about 2
- versions: {"; ".join(f"{name}: {version}" for name, version in sorted(found.versions.items()))}
- {KEYS:,} random keys (no more than have {VALUES_MAX >> 20} MiB of values), warmed; GETs that were to be hits of nearside and reached the upstream: {leaks}
- a SET is of a key that no proxy has cached, unless it says otherwise
- the figures as data: [data](data); the pictures are drawn from them
- `nearside` has a thread a core, as by default; the targets are about one thread, as redis-server and twemproxy have

## Targets

A ratio is the median of the rounds' own ratios (and their range).

{table(["", "against", "measured", "at least", "aim", ""], [row.row() for row in rows])}
## CPU, µs per request, and its ratio to redis-server's

For nutcracker, and for nearside's SET, the figure is the proxy's process alone: the CPU time that the proxy adds.

![CPU per cached GET](cpu.svg)

{cpu_table(found)}
A SET of a key that the proxy has cached, which the server then reports to it: {writes[NEARSIDE, 1]:.2f} µs (P1), {writes[NEARSIDE, 16]:.2f} µs
(P16); twemproxy's SET of the same: {writes["nutcracker", 1]:.2f} and {writes["nutcracker", 16]:.2f} µs.

A missed GET with its fill, P16: {missed[NEARSIDE]:.2f} µs; twemproxy's GET: {missed["nutcracker"]:.2f} µs.

## A far-away upstream

Zipf 0.99 over 100,000 keys, 1 % writes, 8 clients, one request at a time; the relay delays each direction.

![Latency with and without](latency.svg)

{far_table(found)}
Two proxies on one upstream keep {found.saved[0]:.1%} of the reads from it and save {found.saved[1]:.1%} of its commands, those that
track and fill included.
"""
    (out / "README.md").write_text(text)
    print(text)
