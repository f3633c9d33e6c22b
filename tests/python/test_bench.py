"""The judges of scripts/bench: what is wrong is found to be wrong."""

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "scripts" / "benchmark"))

import cases  # noqa: E402  the path comes first
import curves  # noqa: E402
import hour  # noqa: E402
import pictures  # noqa: E402
import promise  # noqa: E402
import report  # noqa: E402

BUDGET = 64 << 20


def rows(rss, cached=BUDGET, evictions=100):
    """A run of 40 seconds; `rss` by the second."""
    row = {"max_bytes": BUDGET, "bytes": cached, "hits": 0, "misses": 0}
    return [row | {"rss": rss(n), "fills": n, "evictions": n and evictions} for n in range(40)]


def test_full_load_that_is_in_order():
    assert hour.faults(rows(lambda n: 110 << 20)) == []


def test_more_memory_than_stated():
    assert "the bound is 144 MiB" in hour.faults(rows(lambda n: (145 if n == 20 else 110) << 20))[0]


def test_memory_that_grows():
    assert "RSS grows" in hour.faults(rows(lambda n: (100 + n // 2) << 20))[0]


def test_a_budget_that_is_not_kept():
    assert "does not keep pace" in hour.faults(rows(lambda n: 110 << 20, cached=BUDGET + (5 << 20)))[0]


def test_a_load_that_fills_nothing_up():
    assert "no full load" in hour.faults(rows(lambda n: 50 << 20, evictions=0))[0]


def counts():
    loader = SourceFileLoader("counts", str(ROOT / "scripts" / "counts"))
    module = module_from_spec(spec_from_loader("counts", loader))
    loader.exec_module(module)
    return module


def test_instructions_that_rise_are_told():
    kept = {"hit": 100.0, "fill": 1000.0, "gone": 5.0}
    lines, wrong = counts().verdict({"hit": 104, "fill": 1029, "new": 1}, kept)
    assert wrong == ["gone", "hit", "new"]
    assert "+4.0%" in lines[0] and "+2.9%" in lines[1]


def test_the_kept_counts_can_be_read():
    kept = counts().kept()
    assert kept["hit, 16 GETs at a time"] > 100 and len(kept) > 5


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_the_committed_picture_is_drawn_from_the_committed_data(name):
    folder = ROOT / "docs" / "bench"
    drawn = pictures.PICTURES[name](folder)
    assert (folder / f"{name}.svg").read_text() == drawn, "python3 scripts/benchmark/pictures.py draws them again"
    assert len(drawn) < 20_000


def made_up():
    """What a run of two rounds could have found."""
    cells = cases.Cells()
    for p in cases.REQUESTS:
        for label in report.ORDER:
            for test in ("GET", "SET"):
                cells.times[(test, 64, 50, p), label] = [p / 100, p / 90]
    both = [1.0, 1.5]
    rates = {"p50": 900, "p99": 1300, "cpu": 2.5, "gets": 10, "all": 12}
    return report.Found(
        command="scripts/bench", rounds=2, cells=cells, weight=200.4, saved=(0.98, 0.94), versions={"nearside": "0"},
        writes={(label, p): both for label in (report.NEARSIDE, "nutcracker") for p in (1, 16)},
        misses={report.NEARSIDE: both, "nutcracker": both}, many={(p, n): both for p in (16, 100) for n in (10_000, 1_000_000)},
        tail=dict.fromkeys((report.NEARSIDE, report.NEARSIDE_AUTO, "redis-server"), both),
        far={us: {"requests": 100, "with": rates, "without": rates} for us in (300, 1000)},
    )  # fmt: skip


def test_a_run_writes_page_data_and_pictures(tmp_path):
    report.write(made_up(), tmp_path)
    assert pictures.read(tmp_path, "cpu")[0] == {
        "test": "GET", "value_bytes": "64", "clients": "50", "pipeline": "1", "server": "bare socket",
        "us": "0.011", "us_low": "0.010", "us_high": "0.011"}  # fmt: skip
    assert pictures.read(tmp_path, "far")[1]["p50_ms"] == "0.9000"
    assert pictures.read(tmp_path, "targets")[0]["at_least"] == "1.0"
    assert "cached GET, P1" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "cpu.svg").read_text() == pictures.cpu(tmp_path)

    level = {"rate": 50_000, "p50": 90, "p99": 400, "waits": 1, "pings": 2, "cpu": 3}
    found = {us: dict.fromkeys(promise.LEVELS, level) for us in promise.DISTANCES}
    promise.write(found, {"nobody asks": {"ping": 10, "acl|list": 2}}, {"nobody asks": "second"}, "scripts/bench --promise", tmp_path)
    assert pictures.read(tmp_path, "promise_upstream")[0] | {"ping": "10.00", "acl_list": "2.00"} == pictures.read(tmp_path, "promise_upstream")[0]
    assert "| 0.3 ms | causal | 50,000 |" in (tmp_path / "PROMISE.md").read_text()

    by_entries = {(n, p): n / 1e6 + p for n in curves.ENTRIES for p in curves.PIPELINES}
    by_connections = {(n, p): float(n + p) for n in curves.CONNECTIONS for p in curves.PIPELINES[:2]}
    curves.keep_data(by_entries, dict.fromkeys(curves.ENTRIES, 200), by_connections, {n: (n, 2, 3, 4) for n in curves.PROXIES}, tmp_path)
    pictures.draw(tmp_path)
    assert "polyline" in (tmp_path / "curves.svg").read_text()
