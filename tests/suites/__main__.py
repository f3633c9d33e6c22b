"""scripts/suites: other people's test suites, bare and through nearside. What passes bare must pass through."""

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import known
from client_suites import Hiredis, PhpRedis, Redigo, RedisPm
from processes import SERVER_BINARIES
from pytest_suites import PYTEST_SUITES
from redis_suite import RedisSuite
from result import Result
from target import target

SUITES = {
    "redis": RedisSuite,
    "hiredis": Hiredis,
    "phpredis": PhpRedis,
    "redigo": Redigo,
    "redis-pm": RedisPm,
    **PYTEST_SUITES,
}

parser = argparse.ArgumentParser(prog="scripts/suites", description=__doc__)
parser.add_argument("suite", choices=SUITES, metavar="suite", help=f"whose: {', '.join(SUITES)}")
parser.add_argument("--source", type=Path, required=True, help=argparse.SUPPRESS)
parser.add_argument("--out", type=Path, required=True, help=argparse.SUPPRESS)
parser.add_argument("--server", choices=sorted(SERVER_BINARIES), default="redis", help="behind the proxy [redis]")
parser.add_argument("--jobs", type=int, default=2, help="units at a time, each with a server of its own [2]")
parser.add_argument("--quick", action="store_true", help="only units that take seconds: what scripts/test runs")
parser.add_argument("--only-through", action="store_true", help="show what fails through, without a bare run to compare with")
parser.add_argument("units", nargs="*", help="unit/type/list …; all of them if none is named")


@dataclass
class Row:
    """One unit's line of the table."""

    unit: str
    bare: Result
    through: Result
    seconds: float

    @property
    def lacks(self):
        """What passed bare and not through; the known ones with their reasons."""
        missing = self.through.lacks(self.bare)
        return [(name, known.reason(self.unit, name)) for name in missing]

    def line(self):
        return f"{self.unit:<34}{self.bare.count:>8}{self.through.count:>9}{self.seconds:>8.0f} s"


def run_once(suite, unit, args, side, turn=""):
    """The unit over a fresh server, bare or through a fresh proxy."""
    log = args.out / f"{unit.replace('/', '.')}.{side}{turn}.log"
    with target(suite, side, args.server, log) as where:
        result = suite.run(unit, where, log)
    result.panics = where.panics
    return result


def run_both(suite, unit, args):
    """One row. What is missing through is tried once more: some tests count on time, or on the order of what two connections have sent
    without waiting for a reply, and are lost now and then against a bare server too."""
    began = time.monotonic()
    bare = Result() if args.only_through else run_once(suite, unit, args, "bare")
    through = run_once(suite, unit, args, "through")
    again = any(not reason for _, reason in Row(unit, bare, through, 0).lacks)
    first = through.lacks(bare) if again else []
    if again:
        through.again(run_once(suite, unit, args, "through", turn="-again"))
    row = Row(unit, bare, through, time.monotonic() - began)
    if bare.count or through.count or through.failed:
        print(row.line() + (" (twice)" if again else ""), flush=True)
    for name in through.failed if args.only_through else []:
        print(f"    fails: {name}")
    for name in first:
        if name in through.passed:
            print(f"    at the second try: {name}")
    for name, reason in row.lacks:
        print(f"    {'known' if reason else 'FAILS ONLY THROUGH'}: {name}" + (f": {reason}" if reason else ""), flush=True)
    return row


def in_own_network(suite):
    """A suite that knows one port only gets a network of its own: this program again, in a namespace."""
    if not suite.PORT or os.environ.get("NEARSIDE_SUITE_NETWORK"):
        return
    inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, *sys.argv]
    os.execvpe("unshare", ["unshare", "--map-root-user", "--net", *inside], {**os.environ, "NEARSIDE_SUITE_NETWORK": "own"})


def main():
    args = parser.parse_intermixed_args()
    in_own_network(SUITES[args.suite])
    args.out.mkdir(parents=True, exist_ok=True)
    suite = SUITES[args.suite].of(args.source)
    print(f"{'unit':<34}{'bare':>8}{'through':>9}{'time':>10}", flush=True)
    # a port of its own is there once
    with ThreadPoolExecutor(1 if suite.PORT else args.jobs) as pool:
        rows = list(pool.map(lambda unit: run_both(suite, unit, args), args.units or (suite.QUICK if args.quick else suite.units())))
    lacks = [reason for row in rows for _, reason in row.lacks]
    panics = [line for row in rows for line in row.through.panics]
    total = Row("all", Result.sum(row.bare for row in rows), Result.sum(row.through for row in rows), sum(r.seconds for r in rows))
    print(total.line())
    print(f"{len(lacks)} passed bare and not through, {len([r for r in lacks if r])} of them known; logs: {args.out}")
    print("\n".join(panics))
    # a run that ran nothing has proved nothing
    sys.exit(bool([r for r in lacks if not r] or panics or not total.through.count))


main()
