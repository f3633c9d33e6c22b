"""The doors' own ways: files of unix sockets, PROXY headers, and certificates whose time has passed or has not come."""

import os
import signal
import socket
import ssl
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from certificates import Authority
from processes import free_port, proxy_binary, wait_until
from test_unix import UnixConnection
from wire import Connection, encode

pytestmark = pytest.mark.needs_proxy

LONG_PAST, PAST, FUTURE, LONG_FUTURE = -400, -1, 1, 400
EXPIRED, NOT_YET, SHORT, GOOD = (LONG_PAST, PAST), (FUTURE, LONG_FUTURE), (PAST, 9.5), (PAST, LONG_FUTURE)


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="ns-") as name:
        yield Path(name)


# --- unix sockets ---


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_permissions_are_the_settings(lab, folder):
    doors = [
        {"address": f"unix:{folder}/own.sock", "unixsocketperm": "777"},
        {"address": f"unix:{folder}/digits.sock", "unixsocketperm": 700},
        {"address": f"unix:{folder}/global.sock"},
        {"address": f"unix:{folder}/umask.sock", "unixsocketperm": ""},
    ]
    lab.proxy(lab.server().port, doors=doors, settings={"unixsocketperm": "770"})
    modes = [mode(folder / f"{name}.sock") for name in ("own", "digits", "global")]
    assert modes == [0o777, 0o700, 0o770]
    umask = os.umask(0)
    os.umask(umask)
    assert mode(folder / "umask.sock") == 0o777 & ~umask
    for door in doors:
        with UnixConnection(door["address"].removeprefix("unix:")) as conn:
            assert conn.call("PING") == b"PONG"


def test_the_file_goes_with_the_proxy(lab, folder):
    path = folder / "door.sock"
    proxy = lab.proxy(lab.server().port, doors=[{"address": f"unix:{path}"}])
    assert path.exists()
    proxy.signal(signal.SIGTERM)
    assert proxy.process.wait(10) == 0
    assert not path.exists()


def test_the_file_of_a_successor_is_left_alone(lab, folder):
    """The first proxy still drains when the second takes its path over; and a path may be taken by force."""
    server = lab.server()
    path = folder / "door.sock"
    first = lab.proxy(server.port, "a", doors=[{"address": f"unix:{path}"}], settings={"shutdown_grace": "20s"})
    with UnixConnection(path) as conn:
        assert conn.call("PING") == b"PONG"
        server.freeze()
        conn.send("INCR", "n")
        first.signal(signal.SIGTERM)
        wait_until(lambda: not path.exists(), "its listener is closed")
        server.thaw()
    second = lab.proxy(server.port, "b", doors=[{"address": f"unix:{path}"}])
    assert first.process.wait(10) == 0
    with UnixConnection(path) as conn:
        assert conn.call("PING") == b"PONG"
    # by force: somebody else's socket stands there when the second proxy ends
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        second.signal(signal.SIGTERM)
        assert second.process.wait(10) == 0
        assert path.exists()


def test_a_busy_socket_is_not_taken_for_one_left_behind(lab, folder):
    """Its backlog is full, so that it refuses for the moment; its process lives."""
    path = folder / "door.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        waiting = []
        for _ in range(3):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            client.connect_ex(str(path))
            waiting.append(client)
        proxy = lab.proxy(lab.server().port, doors=[{"address": f"unix:{path}"}], wait=False)
        assert proxy.process.wait(10) == 1
        assert f"cannot listen on unix:{path}" in proxy.read_log()
        for client in waiting:
            client.close()


# --- PROXY headers ---

HEADERS = {
    "v1": b"PROXY TCP4 192.0.2.1 192.0.2.2 5555 6379\r\n",
    "v1-tcp6": b"PROXY TCP6 2001:db8::1 2001:db8::2 5555 6379\r\n",
    "v1-unknown": b"PROXY UNKNOWN\r\n",
    "v2": b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\2\1\xc0\0\2\2\x15\xb3\x18\xeb",
}


@pytest.mark.parametrize("pieces", [1, 1000], ids=["whole", "bytewise"])
@pytest.mark.parametrize("version", HEADERS)
def test_a_proxy_header_is_an_error_and_the_end(redis_site, version, pieces):
    before = redis_site.server.calls("set")
    with Connection(redis_site.a.port) as conn:
        data = HEADERS[version] + encode("SET", "header", "1")
        step = max(1, len(data) // pieces)
        try:
            for at in range(0, len(data), step):
                conn.send_raw(data[at:at + step])
        except OSError:
            pass
        answer = conn.read_to_end()
    assert answer == b"-ERR Protocol error: a PROXY protocol header, which nearside does not read (send-proxy)\r\n"
    assert redis_site.server.calls("set") == before


def test_a_command_of_that_name_is_the_servers_to_judge(redis_site):
    for line in (b"PROXY\r\n", b"PROXY HELLO\r\n", encode("PROXY", "TCP4", "a")):
        answers = []
        for port in (redis_site.server.port, redis_site.a.port):
            with Connection(port) as conn:
                conn.send_raw(line)
                answers.append(str(conn.read()))
                assert conn.call("PING") == b"PONG"
        assert answers[0] == answers[1]


# --- certificates' dates ---


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return Pki(tmp_path_factory.mktemp("dates"))


class Pki:
    def __init__(self, folder):
        self.ours = Authority(folder, "ours")
        self.server = self.ours.issue("server")
        self.cas = {name: Authority(folder, name, dates) for name, dates in (("expired", EXPIRED), ("notyet", NOT_YET), ("good", GOOD))}
        self.leaves = {name: ca.issue_dated(f"{name}-leaf", GOOD) for name, ca in self.cas.items()}
        self.dated = {name: self.ours.issue_dated(name, dates) for name, dates in (("e", EXPIRED), ("n", NOT_YET), ("s", SHORT), ("g", GOOD))}
        self.bundle = folder / "bundle.crt"
        self.bundle.write_text("".join(self.cas[name].ca.read_text() for name in ("expired", "good", "notyet")))


def enters(port, pki, client):
    """Whether a client with this certificate is served."""
    tls = ssl.create_default_context(cafile=pki.ours.ca)
    tls.load_cert_chain(*client)
    try:
        with tls.wrap_socket(socket.create_connection(("127.0.0.1", port), 5), server_hostname="localhost") as sock:
            sock.sendall(b"PING\r\n")
            return sock.recv(64).startswith(b"+PONG")
    except OSError:
        return False


def test_clients_of_a_ca_whose_time_is_not_now_are_refused_as_by_redis(lab, pki):
    cert, key = pki.server
    ports = {}
    for name, file in [*((n, ca.ca) for n, ca in pki.cas.items()), ("bundle", pki.bundle)]:
        redis_port = free_port()
        lab.server(options=["--tls-port", str(redis_port), "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", file])
        ports[name] = [redis_port]
    doors = []
    for name, file in [*((n, ca.ca) for n, ca in pki.cas.items()), ("bundle", pki.bundle)]:
        ports[name].append(free_port())
        doors.append({"address": f"127.0.0.1:{ports[name][1]}", "tls_cert": cert, "tls_key": key, "tls_ca": file})
    proxy = lab.proxy(lab.server().port, doors=doors)
    for name, pair in ports.items():
        for leaf, client in pki.leaves.items():
            bare, through = (enters(port, pki, client) for port in pair)
            assert through == bare == (leaf == "good" and name in ("good", "bundle")), f"a client of CA {leaf} at a door of {name}"
    assert "are good now" in proxy.read_log()


@pytest.mark.parametrize("server_name", ["", "*"])
def test_an_upstream_of_a_ca_whose_time_is_not_now_is_refused_as_by_redis_cli(lab, pki, server_name):
    for name, ca in pki.cas.items():
        cert, key = pki.leaves[name]
        port = free_port()
        lab.server(options=["--tls-port", str(port), "--tls-cert-file", cert, "--tls-key-file", key,
                            "--tls-ca-cert-file", pki.ours.ca, "--tls-auth-clients", "no"])
        said = subprocess.run(["redis-cli", "-p", str(port), "--tls", "--cacert", ca.ca, "PING"], capture_output=True, timeout=20, check=False)
        settings = {"upstream_tls_ca": ca.ca, "upstream_tls_server_name": server_name, "connect_timeout": "5s"}
        proxy = lab.proxy(port, f"{name}", scheme="rediss", settings=settings, wait=False)
        wait_until(lambda: "listening" in proxy.read_log(), "the proxy listens")
        wait_until(lambda: "is up: caching" in proxy.read_log() or "cannot be reached" in proxy.read_log(), "the link is settled")
        with Connection(proxy.port) as conn:
            conn.send("SET", "k", 1)
            reply = conn.read()
        assert (said.stdout == b"PONG\n") == (reply == b"OK") == (name == "good"), f"CA {name}: {reply}"
        if name != "good":
            assert ("Expired" if name == "expired" else "NotValidYet") in str(reply)


def check(folder, text):
    config = folder / "check.toml"
    config.write_text(text)
    ran = subprocess.run([proxy_binary(), "--config", config, "--check"], capture_output=True, timeout=20, check=False)
    return ran.returncode, ran.stderr.decode()


def door_settings(pair, ca=None):
    lines = ['[[listen]]', 'address = "127.0.0.1:1"', f'tls_cert = "{pair[0]}"', f'tls_key = "{pair[1]}"']
    return "\n".join([*lines, *([f'tls_ca = "{ca}"'] if ca else [])]) + "\n"


def upstream_settings(pair=None, ca=None):
    lines = ['upstream = "rediss://localhost:1"']
    lines += [f'upstream_tls_cert = "{pair[0]}"', f'upstream_tls_key = "{pair[1]}"'] if pair else []
    lines += [f'upstream_tls_ca = "{ca}"'] if ca else []
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("side", ["listener", "upstream"])
def test_check_looks_at_the_dates(folder, pki, side):
    own = door_settings if side == "listener" else upstream_settings
    prefix = "tls_" if side == "listener" else "upstream_tls_"
    expected = {"e": (1, "has expired"), "n": (1, "is not valid yet"), "s": (0, "expires in 9 days"), "g": (0, "")}
    for name, (code, words) in expected.items():
        got, said = check(folder, own(pki.dated[name]))
        assert got == code and words in said and (not words or f"{prefix}cert: " in said), f"{name}: {said}"
    for name, (code, words) in {"expired": (1, "has expired"), "notyet": (1, "is not valid yet"), "good": (0, "")}.items():
        got, said = check(folder, own(pki.dated["g"], pki.cas[name].ca))
        assert got == code and words in said and (not words or f"{prefix}ca: " in said), f"CA {name}: {said}"
    got, said = check(folder, own(pki.dated["g"], pki.bundle))
    assert got == 0 and said.count("warning") == 2, said


def test_the_start_warns_and_serves(lab, pki):
    cert, key = pki.dated["e"]
    proxy = lab.proxy(lab.server().port, doors=[{"address": f"127.0.0.1:{free_port()}", "tls_cert": cert, "tls_key": key}])
    assert f"{cert}: the certificate has expired" in proxy.read_log()
