"""Other people's clients and applications at their real work (tests/clients/): what each prints must be the same against a bare
server and through nearside, with the others that it meets (a writer, a publisher, a second worker) at the second proxy.

scripts/setup brings what they need; run by hand, one whose toolchain is missing is skipped.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from processes import LONG, ROOT

CLIENTS = ROOT / "tests" / "clients"
TIMEOUT = 60
GO = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "CGO_ENABLED": "0"}

# scripts/setup puts a Node beside Python where the system has none that is new enough
BESIDE_PYTHON = Path(sys.executable).parent
if (BESIDE_PYTHON / "node").exists():
    os.environ["PATH"] = f"{BESIDE_PYTHON}{os.pathsep}{os.environ['PATH']}"

pytestmark = pytest.mark.needs_proxy
both_protocols = pytest.mark.parametrize("protocol", [2, 3])


def missing(what):
    """Skipped where somebody runs one test by hand; a failure where all of them are asked for."""
    if LONG or os.environ.get("CI"):
        pytest.fail(f"{what} is missing: scripts/setup test installs it", pytrace=False)
    pytest.skip(f"{what} is missing")


def need(command, files=()):
    if not shutil.which(command):
        missing(command)
    for file in files:
        if not Path(file).exists():
            missing(file)
    return command


def node(folder):
    need("node", [CLIENTS / "node_modules" / "installed.json"])
    return ["node", CLIENTS / folder / "main.mjs"]


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """Runs a compiler and returns the program."""

    def compile_program(argv, env=None):
        program = tmp_path_factory.mktemp("clients") / "program"
        done = subprocess.run([*argv[:1], *(program if word == "OUT" else word for word in argv[1:])], capture_output=True,
                              text=True, timeout=140, env={**os.environ, **(env or {}), "HOME": str(program.parent)}, check=False)
        assert not done.returncode, done.stdout + done.stderr
        return [program]

    return compile_program


@pytest.fixture
def run(site):
    """Runs a program twice, bare and through the proxies, from nothing; what it said each time."""

    def say(argv, *arguments, ports, env=None):
        site.server.call("FLUSHALL")
        site.server.call("SCRIPT", "FLUSH")
        return subprocess.run([*argv, *map(str, (*ports, *arguments))], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              errors="replace", timeout=TIMEOUT, env={**os.environ, **(env or {})}, check=False)

    def run_both(argv, *arguments, env=None):
        server, a, b = site.server, site.a, site.b
        bare = say(argv, *arguments, ports=(server.port, server.port), env=env)
        assert not bare.returncode, f"the program itself is wrong, against a bare server:\n{bare.stdout}{bare.stderr}"
        assert bare.stdout.splitlines()[-1] == "done"
        through = say(argv, *arguments, ports=(a.port, b.port), env=env)
        if through.returncode:
            pytest.fail(f"through the proxies it ended with {through.returncode} after\n{through.stdout[-300:]}\n{through.stderr[-3000:]}", pytrace=False)
        assert through.stdout.splitlines() == bare.stdout.splitlines(), through.stderr

    return run_both


@both_protocols
def test_node_redis(run, protocol):
    run(node("node-redis"), protocol)


@both_protocols
def test_ioredis(run, protocol):
    run(node("ioredis"), protocol)


def test_bullmq(run):
    run(node("bullmq"))


def test_hiredis(run, build):
    need("cc", ["/usr/include/hiredis/hiredis.h", "/usr/include/event2/event.h"])
    run(build(["cc", "-Wall", "-o", "OUT", CLIENTS / "hiredis" / "main.c", "-lhiredis", "-levent"]))


def test_phpredis(run):
    need("php")
    if "redis" not in subprocess.run(["php", "-m"], capture_output=True, text=True, check=True).stdout.split():
        missing("phpredis")
    run(["php", CLIENTS / "phpredis" / "main.php"])


def test_redigo(run, build):
    need("go", ["/usr/share/gocode/src/github.com/gomodule/redigo"])
    run(build(["go", "build", "-o", "OUT", CLIENTS / "redigo" / "main.go"], GO))


@both_protocols
def test_redis_py(run, protocol):
    run([sys.executable, CLIENTS / "redis-py" / "main.py"], protocol)


@pytest.mark.parametrize("application", ["rq", "flask-caching", "django-redis"])
def test_python_application(run, application):
    run([sys.executable, CLIENTS / application / "main.py"])


def test_celery(run):
    run([sys.executable, CLIENTS / "celery" / "main.py"])
