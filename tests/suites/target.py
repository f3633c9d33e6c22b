"""What a suite is pointed at: a bare server, a proxy in front of one, or a program that starts either."""

import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import processes
from processes import SERVER_BINARIES, Proxy, Server, free_port, proxy_binary

LAUNCHER = """#!/bin/sh
export NEARSIDE_SUITE_SERVER={server} NEARSIDE_SUITE_LOGS={logs} NEARSIDE_BIN={proxy} PYTHONPATH={path}
exec {command} "$@"
"""


@dataclass
class Target:
    """Where to connect to; or, for a suite that starts its servers itself, a `redis-server` that it shall take, and a free port."""

    port: int
    socket: Path
    program: Path = None
    panics: list = field(default_factory=list)


@contextmanager
def target(suite, side, kind, log):
    """Both of a test's ends, fresh; `side` is `bare` or `through`. What the proxies say goes beside `log`."""
    with tempfile.TemporaryDirectory() as folder:
        make = started_by_suite if suite.STARTS_SERVERS else running
        with make(Path(folder), suite, side, kind, log) as found:
            yield found


@contextmanager
def running(folder, suite, side, kind, log):
    through = side == "through"
    port = suite.PORT or free_port()
    socket = folder / "redis.sock"
    behind = free_port() if through else port
    socket_options = () if through else ("--unixsocket", socket)
    server = Server(folder, kind, port=behind, options=(*suite.OPTIONS, *socket_options))
    proxy = None
    try:
        if through:
            doors = [{"address": f"127.0.0.1:{port}"}, {"address": f"unix:{socket}"}]
            proxy = Proxy(folder, behind, doors=doors)
        found = Target(port, socket)
        yield found
        if proxy:
            log.with_suffix(".proxy.log").write_text(proxy.read_log())
            found.panics = proxy.panics()
    finally:
        for part in filter(None, (proxy, server)):
            part.kill()


@contextmanager
def started_by_suite(folder, _suite, side, kind, log):
    logs = log.with_suffix(".proxies").absolute()
    logs.mkdir(parents=True, exist_ok=True)
    for old in logs.iterdir():
        old.unlink()
    program = folder / "redis-server"
    server = SERVER_BINARIES[kind]()
    in_front = f"{sys.executable} {Path(__file__).with_name('in_front.py')}"
    fields = {"server": server, "logs": logs, "proxy": proxy_binary(), "path": Path(processes.__file__).parent}
    program.write_text(LAUNCHER.format(command=in_front if side == "through" else server, **fields))
    program.chmod(0o755)
    found = Target(free_port(), folder / "redis.sock", program)
    yield found
    found.panics = [line for file in logs.iterdir() for line in file.read_text(errors="replace").splitlines() if "panicked at" in line]
