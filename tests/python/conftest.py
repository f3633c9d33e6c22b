"""What every Python test starts from: real servers, and the built proxy in front of them."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VALKEY = Path(os.environ.get("NEARSIDE_TEST_VALKEY", ROOT / ".venv/bin/valkey-server"))
NEARSIDE = Path(os.environ.get("NEARSIDE_BIN", ROOT / "target/debug/nearside"))


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port: int, process: subprocess.Popen, seconds: float = 10) -> None:
    """Returns when `port` accepts; fails when `process` ends or takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"{process.args[0]} ended with {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    pytest.fail(f"{process.args[0]} does not accept on {port}")


def end(process: subprocess.Popen) -> None:
    """SIGTERM, then SIGKILL."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def server_programs() -> dict[str, str]:
    """The servers of this machine by name."""
    found = {"redis": shutil.which("redis-server"), "valkey": str(VALKEY) if VALKEY.exists() else None}
    return {name: path for name, path in found.items() if path}


@pytest.fixture(scope="session", params=["redis", "valkey"])
def upstream_port(request, tmp_path_factory):
    """The port of a real, empty server; each test runs once against Redis and once against Valkey."""
    program = server_programs().get(request.param)
    if not program:
        pytest.fail(f"no {request.param} server here; run scripts/setup test")
    port = free_port()
    quiet = ["--save", "", "--appendonly", "no", "--loglevel", "warning"]
    home = tmp_path_factory.mktemp(request.param)
    process = subprocess.Popen([program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(home), *quiet])
    wait_for(port, process)
    yield port
    end(process)


@pytest.fixture(scope="session")
def proxy_port(upstream_port):
    """The port of a proxy in front of `upstream_port`."""
    port = free_port()
    upstream = f"redis://127.0.0.1:{upstream_port}"
    process = subprocess.Popen([NEARSIDE, "--listen", f"127.0.0.1:{port}", "--upstream", upstream, "--log", "warn"])
    wait_for(port, process)
    yield port
    end(process)
