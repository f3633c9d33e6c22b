"""The judges of scripts/bench: what is wrong is found to be wrong."""

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "scripts" / "benchmark"))

import hour  # noqa: E402  the path comes first

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
