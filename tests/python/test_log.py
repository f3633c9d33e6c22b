"""The log blocks nobody and ends nothing, whatever becomes of stderr."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from processes import free_port, parse_info, proxy_binary, wait_until
from wire import Connection, ReplyError

pytestmark = pytest.mark.needs_proxy

DEBUG = "nearside=debug"


class Loud:
    """A proxy whose stderr is whatever a test gives it."""

    def __init__(self, folder, upstream, stderr, *settings):
        self.port = free_port()
        config = Path(folder) / f"loud-{self.port}.toml"
        lines = [f'upstream = "redis://127.0.0.1:{upstream}"', f'log = "{DEBUG}"', *settings]
        config.write_text("\n".join([*lines, "[[listen]]", f'address = "127.0.0.1:{self.port}"']) + "\n")
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", proxy_binary(), "--config", config], stdin=subprocess.DEVNULL, stderr=stderr
        )
        wait_until(self.answers, "the proxy serves")

    def answers(self):
        assert self.process.poll() is None, "the proxy has ended"
        try:
            with Connection(self.port, timeout=5) as conn:
                return conn.call("PING") == b"PONG"
        except (OSError, ReplyError):
            return False

    def stats(self):
        with Connection(self.port) as conn:
            info = parse_info(conn.call("INFO", "nearside"))
        return {key[9:]: value for key, value in info.items()}

    def serves_everything(self, conn):
        """What each thread of the proxy has a part in: a script waits for the link, a hit for the cache."""
        assert conn.call("EVAL", "return redis.call('set', KEYS[1], 'v')", 1, "k") == b"OK"
        assert conn.call("GET", "k") == conn.call("GET", "k") == b"v"

    def make_noise(self, lines=200):
        """Each connection is a line of the log, at debug."""
        for _ in range(lines):
            Connection(self.port).close()

    def end(self):
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(10) == 0
        return time.monotonic() - began


@pytest.fixture
def server(lab):
    return lab.server("redis")


def test_a_full_disk_from_the_start(lab, server):
    with open("/dev/full", "wb") as full:
        proxy = Loud(lab.folder, server.port, full)
    with Connection(proxy.port) as conn:
        proxy.serves_everything(conn)
        proxy.make_noise()
        server.kill_clients_named("nearside-link")
        wait_until(lambda: proxy.stats()["link"] == "up", "the link is up again")
        proxy.serves_everything(conn)
    assert int(proxy.stats()["log_lines_dropped"]) >= 200
    assert proxy.stats()["panics"] == "0"
    assert proxy.end() < 3


def test_a_reader_that_goes_away(lab, server):
    reading, writing = os.pipe()
    proxy = Loud(lab.folder, server.port, writing)
    os.close(writing)
    os.close(reading)
    with Connection(proxy.port) as conn:
        for _ in range(3):
            proxy.make_noise(50)
            server.kill_clients_named("nearside-link")
            server.kill_clients_named("nearside-lane")
            wait_until(lambda: proxy.stats()["link"] == "up", "the link is up again")
            wait_until(lambda: serves(proxy, conn), "everything is served")
    assert int(proxy.stats()["log_lines_dropped"]) > 50
    assert proxy.end() < 3


def serves(proxy, conn):
    try:
        proxy.serves_everything(conn)
        return True
    except ReplyError:
        return False


def test_a_reader_that_stands_still(lab, server):
    reading, writing = os.pipe()
    proxy = Loud(lab.folder, server.port, writing, 'log_buffer_limit = "8kb"')
    os.close(writing)
    try:
        with Connection(proxy.port) as conn:
            # a pipe holds 64 KiB
            wait_until(lambda: proxy.make_noise() or int(proxy.stats()["log_lines_dropped"]) > 500, "lines are dropped", timeout=30)
            proxy.serves_everything(conn)
            server.kill_clients_named("nearside-link")
            wait_until(lambda: proxy.stats()["link"] == "up", "the link is up again")
            proxy.serves_everything(conn)
        dropped = int(proxy.stats()["log_lines_dropped"])
        text = read_until(reading, "lines of the log were dropped")
        told = re.search(r"nearside: (\d+) lines of the log were dropped", text)
        assert told and int(told[1]) >= dropped
        assert 'client gone' in text
    finally:
        took = proxy.end()
        os.close(reading)
    assert took < 3


def test_the_end_does_not_wait_for_a_reader_that_stands_still(lab, server):
    reading, writing = os.pipe()
    proxy = Loud(lab.folder, server.port, writing, 'log_buffer_limit = "8kb"')
    os.close(writing)
    wait_until(lambda: proxy.make_noise() or int(proxy.stats()["log_lines_dropped"]) > 0, "lines are dropped", timeout=30)
    assert proxy.end() < 3
    os.close(reading)


def read_until(pipe, words):
    text = ""
    while words not in text:
        chunk = os.read(pipe, 65536)
        assert chunk, f"the log has ended without {words!r}"
        text += chunk.decode(errors="replace")
    return text


def test_what_was_logged_is_written_at_the_end(lab, server):
    proxy = lab.proxy(server.port)
    proxy.signal(signal.SIGTERM)
    assert proxy.process.wait(10) == 0
    assert "SIGTERM: shutting down" in proxy.read_log()
    assert "stopping: no new connections" in proxy.read_log()


@pytest.mark.parametrize("words", [["--check"], ["--check", "--threads", "many"], ["verify", "--proxy", "127.0.0.1:1", "--upstream", "127.0.0.1:1"]])
def test_nothing_that_is_printed_is_a_panic(words):
    with open("/dev/full", "wb") as full:
        code = subprocess.run([proxy_binary(), *words], stdin=subprocess.DEVNULL, stdout=full, stderr=full, timeout=30, check=False).returncode
    assert code in (1, 2), "no panic (101), and no success that nobody was told of"
