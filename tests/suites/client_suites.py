"""The test suites of clients that are programs of their own: hiredis, phpredis, redigo, Redis.pm."""

import os
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import limited
from result import Result

UNIT_TIMEOUT = 600


class ClientSuite:
    """One program, one unit; what differs is how it is told where the server is, and what it says of a test."""

    OPTIONS = ()
    PORT = None
    STARTS_SERVERS = False
    UNITS = ()

    def __init__(self, source):
        self.source = Path(source).resolve()
        self.QUICK = self.UNITS

    @classmethod
    def of(cls, source):
        return cls(source)

    def units(self):
        return list(self.UNITS)

    def run(self, unit, target, log):
        env = {**os.environ, "LC_ALL": "C.UTF-8", **self.env(target)}
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(self.source, folder, dirs_exist_ok=True, symlinks=True)
            limited.run(self.argv(unit, target), log, UNIT_TIMEOUT, cwd=Path(folder) / self.folder(unit), env=env)
        return self.parse(log.read_text(errors="replace"))

    def env(self, _target):
        return {}

    def folder(self, _unit):
        return "."


class Hiredis(ClientSuite):
    UNITS = ("0.14", "1.0")

    def argv(self, _unit, target):
        return ["./hiredis-test", "-h", "127.0.0.1", "-p", str(target.port), "-s", str(target.socket), "--skip-throughput"]

    def folder(self, unit):
        return unit

    def parse(self, text):
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)
        said = re.findall(r"^#\d+ (.*): (PASSED|FAILED)", text, re.MULTILINE)
        return result(said, "PASSED")


class PhpRedis(ClientSuite):
    UNITS = ("redis",)
    # its tests of sessions know no other port
    PORT = 6379

    def argv(self, unit, target):
        return ["php", "-d", "error_reporting=0", "TestRedis.php", "--host", "127.0.0.1", "--port", str(target.port), "--class", unit, "--nocolors"]

    def folder(self, _unit):
        return "tests"

    def parse(self, text):
        # what PHP deprecates stands between a test's name and its outcome
        text = re.sub(r"^(PHP )?Deprecated: .*\n", "", text.replace("PHP Deprecated:", "\nPHP Deprecated:"), flags=re.MULTILINE)
        return result(re.findall(r"^(test\w+)\s+\[(PASSED|FAILED)\]", text, re.MULTILINE), "PASSED")


class Redigo(ClientSuite):
    STARTS_SERVERS = True
    UNITS = ("redis",)

    def argv(self, unit, target):
        return ["go", "test", "-count=1", "-v", f"github.com/gomodule/redigo/{unit}",
                f"-redis-server={target.program}", f"-redis-port={target.port}"]

    def env(self, _target):
        return {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": ""}

    def parse(self, text):
        return result([(name, said) for said, name in re.findall(r"^\s*--- (PASS|FAIL): (\S+)", text, re.MULTILINE)], "PASS")


class RedisPm(ClientSuite):
    STARTS_SERVERS = True

    def __init__(self, source):
        self.UNITS = tuple(sorted(str(file.relative_to(source)) for file in Path(source).glob("t/[0-9]*.t")))
        super().__init__(source)

    def argv(self, unit, target):
        return ["prove", "--verbose", "-l", "-It/tlib", unit]

    def env(self, target):
        return {"REDIS_SERVER_PATH": str(target.program)}

    def parse(self, text):
        said = re.findall(r"^(ok|not ok) \d+(?: - (.*))?$", text, re.MULTILINE)
        return result([(name, outcome) for outcome, name in said], "ok")


def result(said, good):
    found = Result(Counter())
    for name, outcome in said:
        if outcome == good:
            found.passed[name] += 1
        else:
            found.failed.append(name)
    return found
