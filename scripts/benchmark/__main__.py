"""scripts/bench: CPU time per request of nearside and its peers, and what a far-away upstream feels like."""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

import cases
import curves
import hour
import promise
import report
from servers import Bench

parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
parser.add_argument("--long", action="store_true", help="also values of 1 KiB and 64 KiB and 1000 connections; far longer")
parser.add_argument("--rounds", type=int, default=2, help="how often each cell is measured, in turn with the others [2]")
parser.add_argument("--out", type=Path, default=Path("docs/bench"), help="where the results go [docs/bench]")
parser.add_argument("--curves", action="store_true", help="instead: how the cost grows with entries, connections and proxies")
parser.add_argument("--promise", action="store_true", help="instead: what each level costs, by the distance of the upstream")
parser.add_argument("--hour", action="store_true", help="instead: full load that evicts all the time; fails if memory is not bounded")
parser.add_argument("--seconds", type=int, default=3600, help="how long --hour goes on [3600]")
parser.add_argument("--memory", default="64mb", help="max_memory of --hour [64mb]")
parser.add_argument("--programs", type=Path, required=True, help=argparse.SUPPRESS)


def instead(args):
    """One of the parts that is not of the usual run; the exit code."""
    command = shlex.join(["scripts/bench", *sys.argv[3:]])
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args.programs.resolve(), scratch)
        try:
            if args.hour:
                return 0 if hour.run(bench, args.seconds, args.memory, Path(f"hour-{args.memory}.csv")) else 1
            if args.promise:
                promise.run(bench, args.rounds, command, args.out)
            else:
                curves.run(bench, args.rounds, command, args.out, args.long)
        finally:
            bench.stop()
    return 0


def main():
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.hour or args.promise or args.curves:
        return instead(args)
    words = (["--long"] if args.long else []) + (["--rounds", str(args.rounds)] if args.rounds != 2 else [])
    found = report.Found(command=shlex.join(["scripts/bench", *words]), rounds=args.rounds)
    sizes, connections = ([64, 1024, 65536], [50, 1000]) if args.long else ([64], [50])
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args.programs.resolve(), scratch)
        try:
            found.cells = cases.grid(bench, args.rounds, sizes, connections)
            found.writes = cases.writes_of_what_is_cached(bench, args.rounds)
            found.misses = cases.misses_against_twemproxy(bench, args.rounds)
            found.weight, found.many = cases.many_keys(bench, args.rounds)
            found.tail = cases.tail(bench, args.rounds)
            found.far = {us: cases.far_away(bench, us, 20_000) for us in (300, 1000)}
            found.saved = cases.saved(bench, 1_000_000)
        finally:
            bench.stop()
        found.versions = bench.versions
    report.write(found, args.out)
    return 0


sys.exit(main())
