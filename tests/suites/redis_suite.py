"""The test suite of Redis itself, in its mode for servers that it has not started (`runtest --host --port`)."""

import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import limited
from result import Result

# A unit that hangs is ended, and what it has said by then counts.
UNIT_TIMEOUT = 900


class RedisSuite:
    """One source tree of Redis; a unit is a file of tests/."""

    # what the suite's tests ask of a server that is theirs alone
    OPTIONS = ("--enable-protected-configs", "yes", "--enable-module-command", "yes")
    PORT = None
    STARTS_SERVERS = False
    # a minute's worth, of what a proxy can get wrong and little of what only a clock can
    QUICK = tuple(f"unit/{name}" for name in ("protocol", "keyspace", "info-command", "type/incr", "type/hash", "type/stream-cgroups", "quit", "multi",
                                         "pubsub", "scripting", "functions", "introspection", "tracking", "bitfield"))

    def __init__(self, source):
        self.source = Path(source).resolve()

    @classmethod
    def of(cls, source):
        return cls(source)

    def units(self):
        done = subprocess.run(["./runtest", "--list-tests"], cwd=self.source, capture_output=True, text=True, check=True)
        return done.stdout.split()

    def run(self, unit, target, log):
        port = target.port
        # `--durable`: an exception in one test does not end the others
        argv = ["./runtest", "--host", "127.0.0.1", "--port", str(port), "--single", unit, "--durable",
                "--baseport", str(port), "--timeout", "600"]
        limited.run(argv, log, UNIT_TIMEOUT, cwd=self.source, env={**os.environ, "LC_ALL": "C.UTF-8"})
        return parse(log.read_text(errors="replace"))


def parse(text):
    """What the suite said of each test. Names may repeat."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    passed = Counter(re.findall(r"^\[ok\]: (.*) \(\d+ ms\)$", text, re.MULTILINE))
    failed = re.findall(r"^\[(?:err|exception)\]: (.*)$", text, re.MULTILINE)
    return Result(passed, [re.sub(r" in tests/\S+\.tcl$", "", name) for name in failed])
