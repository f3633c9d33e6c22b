"""Unix sockets on both sides: towards clients and towards the server."""

import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
import redis

from processes import wait_until
from wire import Connection, encode

pytestmark = pytest.mark.needs_proxy


class UnixConnection(Connection):
    """`wire.Connection` over a unix socket."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(path))
        self._buffer = bytearray()
        self._at = 0


@pytest.fixture
def place(lab):
    # not pytest's own folder: the server's CLIENT LIST cuts long paths off
    with tempfile.TemporaryDirectory(prefix="ns-") as folder:
        yield Place(lab, Path(folder))


class Place:
    """A server on a unix socket, and a proxy that listens on another."""

    def __init__(self, lab, folder):
        self.upstream = folder / "redis.sock"
        self.door = folder / "nearside.sock"
        self.server = lab.server(options=["--unixsocket", str(self.upstream)])
        wait_until(self.upstream.exists, "the server's socket")
        self.start(lab)

    def start(self, lab):
        self.proxy = lab.proxy(f"unix://{self.upstream}?db=2", doors=[{"address": f"unix:{self.door}"}])
        wait_until(lambda: self.proxy.stats()["link"] == "up", "the link over the unix socket")


def test_clients_come_through(place):
    assert stat.S_ISSOCK(place.door.stat().st_mode)
    said = subprocess.run(["redis-cli", "-s", place.door, "SET", "k", "v"], capture_output=True, timeout=20, check=False)
    assert said.stdout == b"OK\n"
    with redis.Redis(unix_socket_path=str(place.door), db=2) as client:
        before = place.server.calls("get")
        assert [client.get("k") for _ in range(50)] == [b"v"] * 50
        assert place.server.calls("get") - before <= 2
    with place.server.connect(db=2) as direct:
        assert direct.call("GET", "k") == b"v"
        direct.call("SET", "k", "w")
    with UnixConnection(place.door) as conn:
        wait_until(lambda: conn.call("GET", "k") == b"w", "the change by somebody else")
    links = [line for line in place.server.call("CLIENT", "LIST").decode().splitlines() if "nearside-link" in line]
    assert len(links) == 1 and f"laddr={place.upstream}:0" in links[0]


def test_large_values_pipelines_and_lent_connections(place):
    value = bytes(range(256)) * (5 * 4096)
    with UnixConnection(place.door) as conn:
        assert conn.call("SET", "large", value) == b"OK"
        assert conn.call("GET", "large") == value
        assert conn.pipeline([("SET", f"p{i}", i) for i in range(10_000)]) == [b"OK"] * 10_000
        assert conn.pipeline([("GET", f"p{i}") for i in range(10_000)]) == [b"%d" % i for i in range(10_000)]
        assert conn.pipeline([("MULTI",), ("INCR", "n"), ("EXEC",)])[-1] == [1]
        assert conn.call("CLIENT", "INFO").startswith(b"id=")
        conn.send_raw(encode("BLPOP", "list", "0"))
        with UnixConnection(place.door) as other:
            other.call("RPUSH", "list", "x")
        assert conn.read() == [b"list", b"x"]


def test_both_doors_share_one_cache(place):
    with Connection(place.proxy.port) as tcp, UnixConnection(place.door) as unix:
        unix.call("SET", "k", "1")
        assert tcp.call("GET", "k") == b"1"
        tcp.call("SET", "k", "2")
        assert unix.call("GET", "k") == b"2"


def test_a_socket_left_behind_is_taken_over_and_one_in_use_is_not(place, lab):
    second = lab.proxy(place.server.port, "b", doors=[{"address": f"unix:{place.door}"}], wait=False)
    assert second.process.wait(10) == 1
    assert f"cannot listen on unix:{place.door}" in second.read_log()
    place.proxy.kill()
    assert place.door.exists(), "killed: nobody has tidied up"
    place.start(lab)
    with UnixConnection(place.door) as conn:
        assert conn.call("PING") == b"PONG"


def test_an_upstream_socket_that_is_not_there(lab, tmp_path):
    missing = tmp_path / "missing.sock"
    proxy = lab.proxy(f"unix://{missing}", wait=False)
    wait_until(lambda: "listening" in proxy.read_log(), "the proxy")
    with Connection(proxy.port) as conn:
        conn.send("GET", "k")
        assert str(conn.read()).startswith(f"ERR nearside: upstream unix:{missing}: cannot be reached: No such file")
