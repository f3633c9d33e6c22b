"""Draws the pictures of docs/bench from its data (docs/bench/data/*.csv): "python3 scripts/benchmark/pictures.py" draws all again.

The same data gives the same bytes (tests/python/test_bench.py holds the committed pictures to the committed data), and a picture is a
few kilobytes of text.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[2]
GREEN, RED, YELLOW, VIOLET = "#0b6e4f", "#c0392b", "#d9a441", "#7f6bb3"
SERVERS = {"bare socket": "#bbbbbb", "nearside, 1 thread": GREEN, "nearside": "#5cb88f", "redis-server": RED,
           "valkey-server": VIOLET, "nutcracker": YELLOW}  # fmt: skip
#: A panel's plot: its size, and the room around.
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 240, 170, 46, 34, 14, 52


def read(folder, name):
    with (folder / "data" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def keep(folder, name, head, rows):
    """Writes data: the names of the columns, then the rows."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    with (folder / "data" / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def text(x, y, words, size=10, anchor="middle", more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{more}>{escape(words)}</text>'


def line(x1, y1, x2, y2, color="#999", width=1):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width}"/>'


def short(value):
    """A number for a label: three digits, thousands as k."""
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:.3g}k" if value >= 1000 else f"{value:.3g}"


@dataclass
class Bars:
    """Groups of bars. A series is its name, color and values, one for each group (None: no bar)."""

    title: str
    groups: list
    series: list

    def draw(self):
        most = max(value for _, _, values in self.series for value in values if value is not None)
        room = WIDTH / len(self.groups)
        width = room * 0.86 / len(self.series)
        parts = [line(0, HEIGHT, WIDTH, HEIGHT)]
        for g, group in enumerate(self.groups):
            parts.append(text((g + 0.5) * room, HEIGHT + 14, group))
            for s, (_, color, values) in enumerate(self.series):
                value = values[g]
                if value is None:
                    continue
                x, high = g * room + room * 0.07 + s * width, value / most * (HEIGHT - 12)
                parts.append(f'<rect x="{x:.1f}" y="{HEIGHT - high:.1f}" width="{width * 0.92:.1f}" height="{high:.1f}" fill="{color}"/>')
                parts.append(text(x + width * 0.46, HEIGHT - high - 3, short(value), 8))
        return parts

    def legend(self):
        return [(name, color) for name, color, _ in self.series]


@dataclass
class Lines:
    """Lines through points. A series is its name, color and points (x, y); both axes are logarithmic, or both are not."""

    title: str
    across: str
    series: list
    logarithmic: bool

    def draw(self):
        points = [point for _, _, points in self.series for point in points]
        place_x = self.scale([x for x, _ in points], 0, WIDTH)
        place_y = self.scale([y for _, y in points], HEIGHT, 8)
        parts = [line(0, HEIGHT, WIDTH, HEIGHT), line(0, 0, 0, HEIGHT), text(WIDTH / 2, HEIGHT + 28, self.across)]
        for x in sorted({x for x, _ in points}):
            parts.append(text(place_x(x), HEIGHT + 14, short(x), 8))
        for y in self.ticks([y for _, y in points]):
            parts.append(text(-5, place_y(y) + 3, short(y), 8, "end"))
            parts.append(line(0, place_y(y), WIDTH, place_y(y), "#eee"))
        for _, color, points in self.series:
            way = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in points)
            parts.append(f'<polyline points="{way}" fill="none" stroke="{color}" stroke-width="1.6"/>')
            parts += [f'<circle cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="2.6" fill="{color}"/>' for x, y in points]
        return parts

    def scale(self, values, first, last):
        if not self.logarithmic:
            return lambda value: first + value / max(values) * (last - first)
        low, high = math.log(min(values)), math.log(max(values))
        return lambda value: first + (math.log(value) - low) / (high - low) * (last - first)

    def ticks(self, values):
        if not self.logarithmic:
            step = 10 ** math.floor(math.log10(max(values))) / 2
            return [n * step for n in range(int(max(values) / step) + 1)]
        steps = [m * 10.0**n for n in range(-2, 6) for m in (1, 2, 5)]
        return [step for step in steps if min(values) <= step <= max(values)]

    def legend(self):
        return [(name, color) for name, color, _ in self.series]


def picture(panels, title):
    """Panels side by side; a legend below each whose names differ from the one before."""
    across = LEFT + WIDTH + RIGHT
    rows = max(len(panel.legend()) for panel in panels)
    width, height = across * len(panels), TOP + HEIGHT + BOTTOM + 14 * ((rows + 1) // 2)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif" fill="#222">',
             f"<title>{escape(title)}</title>", f'<rect width="{width}" height="{height}" fill="#fff"/>']  # fmt: skip
    shown = None
    for n, panel in enumerate(panels):
        parts.append(f'<g transform="translate({n * across + LEFT},{TOP})">')
        parts.append(text(WIDTH / 2, -14, panel.title, 11))
        parts += panel.draw()
        if panel.legend() != shown:
            shown = panel.legend()
            for i, (name, color) in enumerate(shown):
                x, y = (i % 2) * WIDTH / 2, HEIGHT + BOTTOM - 8 + 14 * (i // 2)
                parts.append(f'<rect x="{x:.1f}" y="{y - 7:.1f}" width="8" height="8" fill="{color}"/>')
                parts.append(text(x + 12, y, name, 9, "start"))
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def cpu(folder):
    rows = [row for row in read(folder, "cpu") if (row["test"], row["value_bytes"], row["clients"]) == ("GET", "64", "50")]
    panels = []
    for p in ("1", "16", "100"):
        found = {row["server"]: float(row["us"]) for row in rows if row["pipeline"] == p}
        panels.append(Bars(f"pipeline of {p}", ["µs per GET"], [(server, color, [found.get(server)]) for server, color in SERVERS.items()]))
    return picture(panels, "CPU of the server process per cached GET, microseconds; less is better")


def latency(folder):
    rows = read(folder, "far")
    groups = sorted({row["upstream_us"] for row in rows}, key=float)
    series = []
    for nearside, color, pale in (("without", RED, "#dd9b93"), ("with", GREEN, "#85b6a7")):
        for what, shade in (("p50", color), ("p99", pale)):
            found = {row["upstream_us"]: float(row[f"{what}_ms"]) for row in rows if row["nearside"] == nearside}
            series.append((f"{what} {nearside} nearside", shade, [found[group] for group in groups]))
    return picture([Bars("GET, ms (less is better)", away(groups), series)], "Latency of a GET with and without nearside")


def away(groups):
    return [f"{float(us) / 1000:g} ms away" for us in groups]


def promise(folder):
    rows = read(folder, "promise")
    groups = sorted({row["upstream_us"] for row in rows}, key=float)

    def series(column):
        found = {(row["level"], row["upstream_us"]): float(row[column]) for row in rows}
        colors = (("bounded", GREEN), ("causal", YELLOW), ("linearizable", RED))
        return [(level, color, [found[level, group] for group in groups]) for level, color in colors]

    titles = {"reads_per_second": "reads a second, 50 clients", "p50_ms": "p50, ms, 8 clients", "p99_ms": "p99, ms, 8 clients"}
    return picture([Bars(title, away(groups), series(column)) for column, title in titles.items()], "The cost of each level")


def curves(folder):
    panels = []
    for name in ("entries", "connections"):
        rows = read(folder, name)
        series = []
        for p, color in (("1", RED), ("16", GREEN), ("100", VIOLET)):
            points = [(float(row[name]), float(row[f"p{p}_us"])) for row in rows if row.get(f"p{p}_us")]
            if points:
                series.append((f"pipeline of {p}", color, points))
        panels.append(Lines("CPU of nearside, µs per cached GET", name, series, True))
    rows = read(folder, "proxies")
    columns = {"upstream_cpu_us": ("CPU of the upstream", RED), "proxies_cpu_us": ("CPU of all proxies", GREEN)}
    series = [(name, color, [(float(row["proxies"]), float(row[column])) for row in rows]) for column, (name, color) in columns.items()]
    panels.append(Lines("µs per write of a key that all have cached", "proxies", series, False))
    return picture(panels, "CPU as work grows")


PICTURES = {"cpu": cpu, "latency": latency, "promise": promise, "curves": curves}


def draw(folder, *names):
    for name in names or PICTURES:
        (folder / f"{name}.svg").write_text(PICTURES[name](folder))


if __name__ == "__main__":
    draw(ROOT / "docs" / "bench")
