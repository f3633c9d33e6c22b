"""redis-py's own test suite (in its source distribution), as far as it needs one server: no cluster, no modules, no TLS."""

import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from collections import Counter
from pathlib import Path

from result import Result

UNIT_TIMEOUT = 600
# What needs a cluster, Sentinel, a module or somebody's cloud, or is about no server at all.
ELSEWHERE = ("cluster", "sentinel", "bloom", "json", "search", "timeseries", "ssl", "scenario", "multidb", "maint_", "auth", "credential",
             "observability", "http", "himport", "vsets", "event", "backoff", "background", "crc", "parsers", "driver_info")
MARKS = "not onlycluster and not redismod and not ssl and not replica and not cp_integration and not multidb_integration"


class RedisPySuite:
    """One source tree of redis-py; a unit is a file of tests/."""

    OPTIONS = ("--enable-module-command", "yes")
    QUICK = [f"tests/test_{name}.py" for name in ("pipeline", "lock", "monitor", "function", "scripting")]

    def __init__(self, source):
        self.source = Path(source).resolve()

    def units(self):
        files = sorted(self.source.glob("tests/test_*.py")) + sorted(self.source.glob("tests/test_asyncio/test_*.py"))
        names = [str(file.relative_to(self.source)) for file in files]
        return [name for name in names if not any(word in Path(name).name for word in ELSEWHERE)]

    def run(self, unit, port, log):
        report = log.with_suffix(".xml").resolve()
        report.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", unit, "-m", MARKS,
                "--redis-url", f"redis://127.0.0.1:{port}/0", f"--junitxml={report}"]
        with log.open("wb") as out:
            try:
                subprocess.run(argv, cwd=self.source, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=UNIT_TIMEOUT,
                               env={**os.environ, "PYTHONPATH": str(self.source)}, check=False)
            except subprocess.TimeoutExpired:
                return Result()
        return parse(report) if report.exists() else Result()


def parse(report):
    result = Result(Counter())
    for case in xml.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        if any(case.find(word) is not None for word in ("failure", "error")):
            result.failed.append(name)
        elif case.find("skipped") is None:
            result.passed[name] += 1
    return result
