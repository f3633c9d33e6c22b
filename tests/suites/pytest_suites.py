"""Test suites of Python packages (from their source distributions), as far as they need one server: no cluster, no modules, no TLS."""

import os
import sys
import xml.etree.ElementTree as xml
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import limited
from result import Result

UNIT_TIMEOUT = 600
# without waiting for processes that a failed test has left behind
PYTEST = "import os, sys, pytest; os._exit(pytest.main(sys.argv[1:]))"
# What needs a cluster, Sentinel, a module or somebody's cloud, or is about no server at all.
REDIS_PY_ELSEWHERE = ("cluster", "sentinel", "bloom", "json", "search", "timeseries", "ssl", "scenario", "multidb", "maint_", "auth", "credential",
                      "observability", "http", "himport", "vsets", "event", "backoff", "background", "crc", "parsers", "driver_info", "graph")
REDIS_PY_MARKS = "not onlycluster and not redismod and not ssl and not replica and not cp_integration and not multidb_integration"


@dataclass
class PytestSuite:
    """One source tree; a unit is a file of tests."""

    patterns: tuple = ("tests/test_*.py",)
    # words of file names that are left out
    elsewhere: tuple = ()
    # how it is told where the server is: by arguments and variables with `{port}`, or it knows one port only, or it starts servers itself
    argv: tuple = ()
    env: dict = field(default_factory=dict)
    PORT: int = None
    STARTS_SERVERS: bool = False
    OPTIONS: tuple = ("--enable-module-command", "yes")
    QUICK: tuple = ()
    # seconds that a file of tests may take
    unit_timeout: int = UNIT_TIMEOUT
    source: Path = None

    def of(self, source):
        self.source = Path(source).resolve()
        return self

    def units(self):
        files = [file for pattern in self.patterns for file in sorted(self.source.glob(pattern))]
        names = [str(file.relative_to(self.source)) for file in files]
        return [name for name in names if not any(word in Path(name).name for word in self.elsewhere)]

    def run(self, unit, target, log):
        report = log.with_suffix(".xml").resolve()
        report.unlink(missing_ok=True)
        argv = [sys.executable, "-c", PYTEST, "-q", "-p", "no:cacheprovider", unit, f"--junitxml={report}",
                *(word.format(port=target.port) for word in self.argv)]
        env = {**os.environ, "PYTHONPATH": str(self.source), **{name: word.format(port=target.port) for name, word in self.env.items()}}
        if target.program:
            env["PATH"] = f"{target.program.parent}:{env['PATH']}"
        limited.run(argv, log, self.unit_timeout, cwd=self.source, env=env)
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


PYTEST_SUITES = {
    "redis-py": PytestSuite(
        patterns=("tests/test_*.py", "tests/test_asyncio/test_*.py"), elsewhere=REDIS_PY_ELSEWHERE,
        argv=("-m", REDIS_PY_MARKS, "--redis-url", "redis://127.0.0.1:{port}/0"),
        QUICK=tuple(f"tests/test_{name}.py" for name in ("pipeline", "lock", "monitor", "function", "scripting"))),
    # with `--server valkey`: it asks for the server's valkey_version
    "valkey-py": PytestSuite(
        patterns=("tests/test_*.py", "tests/test_asyncio/test_*.py"), elsewhere=REDIS_PY_ELSEWHERE,
        argv=("-m", "not onlycluster and not valkeymod and not ssl and not replica", "--valkey-url", "valkey://127.0.0.1:{port}/0")),
    # its test of the shutdown command waits for good if the worker is not there a quarter of a second after its start
    "rq": PytestSuite(PORT=6379, argv=("--timeout", "60")),
    # one process takes the first of its settings for all of them, so the others would only repeat it
    "django-redis": PytestSuite(PORT=6379, argv=("-o", "addopts=", "-n0", "-k", "not sqlite_")),
    "python-redis-lock": PytestSuite(elsewhere=("django",), STARTS_SERVERS=True),
    "huey": PytestSuite(patterns=("huey/tests/test_*.py",), elsewhere=("postgres", "sql"), PORT=6379),
    "walrus": PytestSuite(patterns=("walrus/tests/*.py",), elsewhere=("__init__", "base"), env={"WALRUS_REDIS_PORT": "{port}"}),
    "kombu": PytestSuite(patterns=("t/integration/test_redis*.py",), env={"REDIS_HOST": "127.0.0.1", "REDIS_6379_TCP": "{port}"}),
    # the worker, its broker and where it keeps results; its other integration tests want other services
    "celery": PytestSuite(
        patterns=tuple(f"t/integration/test_{name}.py" for name in ("canvas", "tasks", "redis_backend", "inspect", "group_chains", "beat")),
        argv=("-m", "not amqp"), unit_timeout=1800,
        env={"TEST_BROKER": "redis://127.0.0.1:{port}/0", "TEST_BACKEND": "redis://127.0.0.1:{port}/0",
             "REDIS_HOST": "127.0.0.1", "REDIS_PORT": "{port}"}),
    "channels-redis": PytestSuite(elsewhere=("sentinel",), PORT=6379),
    "dogpile": PytestSuite(patterns=("tests/cache/test_redis_backend.py", "tests/cache/test_valkey_backend.py"),
                           env={"DOGPILE_REDIS_PORT": "{port}", "DOGPILE_VALKEY_PORT": "{port}"}),
    "fakeredis": PytestSuite(
        patterns=("test/test_*.py", "test/test_mixins/test_*.py", "test/test_hypothesis/test_*.py", "test/test_async/test_*.py"),
        argv=("--hypothesis-seed=1",), PORT=6390),
}
