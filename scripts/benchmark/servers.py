"""The programs under test: started on ports of their own, asked, measured from /proc, and ended."""

import copy
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

SERVER_OPTIONS = ["--save", "", "--appendonly", "no", "--protected-mode", "no", "--bind", "127.0.0.1"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """One process. `label` is its name in the table."""

    def __init__(self, label, command, port, log):
        self.label, self.port, self.log = label, port, log
        with open(log, "wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        self.wait()

    def at(self, port):
        """The same process at another of its ports."""
        other = copy.copy(self)
        other.port = port
        return other

    def wait(self):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.02)
        raise SystemExit(f"{self.label} does not come up:\n{Path(self.log).read_text(errors='replace')}")

    def cpu(self):
        """Seconds of CPU of all threads. schedstat counts nanoseconds; stat, where it must do, hundredths of a second."""
        try:
            tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
            return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
        except (OSError, ValueError):
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss(self):
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def ask(self, *words):
        """One command; the reply as the bytes that came, for a bulk or a line."""
        with socket.create_connection(("127.0.0.1", self.port), 10) as s, s.makefile("rb") as replies:
            request = b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in (word.encode() for word in words))
            s.sendall(b"*%d\r\n" % len(words) + request)
            head = replies.readline()
            if head.startswith(b"-"):
                raise SystemExit(f"{self.label}: {' '.join(words)}: {head.decode()}")
            return replies.read(int(head[1:])).decode() if head.startswith(b"$") else head.decode()

    def info(self, section, prefix):
        """`name:value` lines that begin with `prefix`."""
        lines = (line.split(":", 1) for line in self.ask("INFO", section).splitlines() if line.startswith(prefix))
        return dict(lines)

    def calls(self):
        """How often each command was called."""
        stats = self.info("commandstats", "cmdstat_")
        return {name[8:]: int(value.split(",")[0].split("=")[1]) for name, value in stats.items()}

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def version(command):
    shown = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    return (shown.stdout + shown.stderr).strip().splitlines()[0]


class Bench:
    """Starts servers and ends them all."""

    def __init__(self, programs, scratch):
        self.programs, self.scratch, self.running, self.versions = Path(programs), Path(scratch), [], {}

    def start(self, label, command, port):
        server = Server(label, [str(word) for word in command], port, self.scratch / f"{port}.log")
        self.running.append(server)
        return server

    def stop(self, *servers):
        for server in servers or list(self.running):
            server.stop()
            self.running.remove(server)

    def redis(self, label="redis-server", program="redis-server"):
        self.versions[Path(program).name] = version(program)
        port = free_port()
        return self.start(label, [program, "--port", port, *SERVER_OPTIONS], port)

    def valkey(self):
        """Where scripts/setup test leaves one, or the system's."""
        program = shutil.which("valkey-server") or shutil.which("valkey-server", path=".venv/bin")
        return self.redis("valkey-server", program) if program else None

    def nearside(self, label, upstream, threads="1", memory="1gb", settings=""):
        self.versions["nearside"] = version(self.programs / "nearside")
        port = free_port()
        file = self.scratch / f"{port}.toml"
        file.write_text(settings)
        flags = ["--config", file, "--listen", f"127.0.0.1:{port}", "--upstream", f"redis://127.0.0.1:{upstream}"]
        flags += ["--max-memory", memory] + (["--threads", threads] if threads else [])
        server = self.start(label, [self.programs / "nearside", *flags], port)
        while server.info("nearside", "nearside_link:").get("nearside_link") != "up":
            time.sleep(0.05)
        return server

    def levels(self, upstream):
        """A nearside with a listener for each level: three servers to be loaded, that are one process."""
        ports = {level: free_port() for level in ("bounded", "causal", "linearizable")}
        listeners = "".join(f'[[listen]]\naddress = "127.0.0.1:{port}"\nconsistency = "{level}"\n' for level, port in ports.items())
        settings = self.scratch / "levels.toml"
        settings.write_text(listeners)
        command = [self.programs / "nearside", "--config", settings, "--upstream", f"redis://127.0.0.1:{upstream}"]
        first = self.start("nearside", command, ports["bounded"])
        while first.info("nearside", "nearside_link:").get("nearside_link") != "up":
            time.sleep(0.05)
        return first, {level: first.at(port) for level, port in ports.items()}

    def nutcracker(self, upstream):
        self.versions["nutcracker"] = version("nutcracker").removeprefix("This is ")
        port = free_port()
        settings = self.scratch / "nutcracker.yml"
        settings.write_text(
            f"pool:\n  listen: 127.0.0.1:{port}\n  hash: fnv1a_64\n  distribution: ketama\n  redis: true\n"
            f"  servers:\n   - 127.0.0.1:{upstream}:1\n"
        )
        return self.start("nutcracker", ["nutcracker", "-c", settings, "-s", free_port(), "-v", "2"], port)

    def floor(self):
        port = free_port()
        return self.start("bare socket", [self.programs / "examples/floor", f"127.0.0.1:{port}"], port)

    def relay(self, upstream, microseconds):
        port = free_port()
        command = [self.programs / "examples/relay", f"127.0.0.1:{port}", f"127.0.0.1:{upstream}", microseconds]
        return self.start(f"relay {microseconds}", command, port)

    def load(self, server, background=False, **options):
        """examples/load; `requests seconds p50 p99 p99.9` (microseconds)."""
        words = [f"{name}={value}" for name, value in options.items()]
        command = [str(self.programs / "examples/load"), f"127.0.0.1:{server.port}", *words]
        if background:
            return subprocess.Popen(command, stdout=subprocess.DEVNULL)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = Path(server.log).read_text(errors="replace")[-4000:]
            raise SystemExit(f"load on {server.label} (exit code {server.process.poll()}): {done.stderr}\n{said}")
        return [float(n) for n in done.stdout.split()]

    def redis_benchmark(self, server, test, requests, pipeline, connections, size, keys):
        command = ["redis-benchmark", "-p", server.port, "-q", "-t", test, "-n", requests, "-P", pipeline]
        command += ["-c", connections, "-d", size, "-r", keys]
        done = subprocess.run([str(w) for w in command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr}")
