"""TLS on both sides: who is let in, who is believed, what is said otherwise, and that nothing is lost on the way."""

import socket
import ssl
import subprocess
import time

import pytest
import redis

from certificates import Authority, self_signed
from processes import free_port, parse_info, proxy_binary, wait_until
from wire import Connection, ReplyError, encode

pytestmark = pytest.mark.needs_proxy
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return Pki(tmp_path_factory.mktemp("pki"))


class Pki:
    """Our CA with a server's and a client's certificate, and a stranger's CA."""

    def __init__(self, folder):
        self.folder = folder
        self.ours = Authority(folder, "ours")
        self.strangers = Authority(folder, "strangers")
        self.server = self.ours.issue("server")
        self.client = self.ours.issue("client")
        self.nameless = self.ours.issue("nameless", names="")
        self.unknown_client = self.strangers.issue("unknown")
        named = ["-addext", "subjectAltName=IP:127.0.0.1"]
        self.alone = self_signed(folder / "alone.crt", folder / "alone.key", "alone", *named)


def door(pki, **settings):
    cert, key = pki.server
    return {"address": f"127.0.0.1:{free_port()}", "tls_cert": cert, "tls_key": key, **settings}


def tls_proxy(lab, upstream_port, pki, doors=(), **options):
    proxy = lab.proxy(upstream_port, doors=[door(pki), *doors], **options)
    proxy.tls_port = int(proxy.doors[0]["address"].rpartition(":")[2])
    return proxy


def context(pki, client=None, ca=None):
    made = ssl.create_default_context(cafile=ca or pki.ours.ca)
    if client:
        made.load_cert_chain(*client)
    return made


class TlsConnection(Connection):
    """`wire.Connection` over TLS."""

    def __init__(self, port, tls, **options):
        super().__init__(port, **options)
        self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")


def redis_cli(port, pki, *words, client=None, stdin=None):
    certificate = ["--cert", client[0], "--key", client[1]] if client else []
    argv = ["redis-cli", "-p", port, "--tls", "--cacert", pki.ours.ca, *certificate, *words]
    return subprocess.run(list(map(str, argv)), input=stdin, capture_output=True, timeout=20, check=False)


@pytest.fixture(scope="module")
def tls_site(tmp_path_factory, pki):
    """A server with TLS only beside its plain port, and a proxy with TLS on both sides; client certificates upstream."""
    from conftest import Lab

    lab = Lab(tmp_path_factory.mktemp("tls"))
    yield TlsSite(lab, pki)
    lab.close()


class TlsSite:
    def __init__(self, lab, pki):
        self.server, self.tls_upstream = tls_server(lab, pki)
        settings = {"upstream_tls_ca": pki.ours.ca, **client_certificate(pki)}
        self.proxy = tls_proxy(lab, self.tls_upstream, pki, scheme="rediss", settings=settings)
        wait_until(lambda: self.proxy.stats()["link"] == "up", "the link over TLS")


def client_certificate(pki, pair=None):
    cert, key = pair or pki.client
    return {"upstream_tls_cert": cert, "upstream_tls_key": key}


def tls_server(lab, pki, pair=None, auth_clients="yes"):
    """A server and its TLS port."""
    port = free_port()
    cert, key = pair or pki.server
    options = ["--tls-port", port, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", pki.ours.ca]
    return lab.server(options=[*map(str, options), "--tls-auth-clients", auth_clients]), port


def test_redis_cli_comes_through_tls(tls_site, pki):
    port = tls_site.proxy.tls_port
    assert redis_cli(port, pki, "SET", "greeting", "hello").stdout == b"OK\n"
    assert redis_cli(port, pki, "GET", "greeting").stdout == b"hello\n"
    piped = redis_cli(port, pki, "--pipe", stdin=b"".join(encode("SET", f"k{i}", i) for i in range(1000)))
    assert b"errors: 0, replies: 1000" in piped.stdout


def test_redis_py_comes_through_tls_and_is_served_from_the_cache(tls_site, pki):
    with redis.Redis(port=tls_site.proxy.tls_port, ssl=True, ssl_ca_certs=str(pki.ours.ca), protocol=3) as client:
        client.set("k", "v")
        before = tls_site.server.calls("get")
        assert [client.get("k") for _ in range(50)] == [b"v"] * 50
        assert tls_site.server.calls("get") - before <= 2
        with client.pubsub() as channel:
            channel.subscribe("news")
            wait_until(channel.get_message, "the confirmation")
            client.publish("news", "x")
            assert wait_until(channel.get_message, "the message")["data"] == b"x"


def test_everything_to_the_upstream_goes_through_tls(tls_site, pki):
    """Lanes, the link, dedicated connections and a verdict: with a client certificate, or the server would refuse."""
    with TlsConnection(tls_site.proxy.tls_port, context(pki)) as conn:
        assert conn.pipeline([("MULTI",), ("SET", "m", "1"), ("GET", "m"), ("EXEC",)])[-1] == [b"OK", b"1"]
        assert conn.call("SELECT", 3) == b"OK"
        with pytest.raises(ReplyError, match="WRONGPASS"):
            conn.call("AUTH", "nobody", "wrong")
    names = {line.split(" name=")[1].split(" ")[0]: line for line in client_lines(tls_site.server)}
    for name in ("nearside-link", "nearside-lane"):
        assert f"laddr=127.0.0.1:{tls_site.tls_upstream}" in names[name]


def client_lines(server):
    return server.call("CLIENT", "LIST").decode().splitlines()


def test_a_large_value_in_and_out(tls_site, pki):
    value = bytes(range(256)) * (5 * MEGABYTE // 256)
    with TlsConnection(tls_site.proxy.tls_port, context(pki)) as conn:
        assert conn.call("SET", "large", value) == b"OK"
        for _ in range(3):
            assert conn.call("GET", "large") == value


def test_a_pipeline_of_ten_thousand(tls_site, pki):
    with TlsConnection(tls_site.proxy.tls_port, context(pki)) as conn:
        sets = conn.pipeline([("SET", f"p{i}", f"v{i}") for i in range(10_000)])
        assert sets == [b"OK"] * 10_000
        for _ in range(2):
            gets = conn.pipeline([("GET", f"p{i}") for i in range(10_000)])
            assert gets == [b"v%d" % i for i in range(10_000)]


def test_a_reader_that_pauses_gets_everything(tls_site, pki):
    """More replies than socket and TLS hold, read late: what was not flushed is remembered."""
    value = b"x" * 100_000
    with TlsConnection(tls_site.proxy.tls_port, context(pki)) as conn:
        conn.call("SET", "wide", value)
        conn.send_raw(b"".join([encode("GET", "wide")] * 200 + [encode("QUIT")]))
        time.sleep(0.5)
        assert [conn.read() for _ in range(200)] == [value] * 200
        assert conn.read() == b"OK"
        assert conn.read_to_end() == b"", "and a goodbye of TLS, or this raises"


def test_the_end_is_a_tls_goodbye(tls_site, pki):
    """Without it OpenSSL calls the end an error."""
    strict = context(pki)
    with TlsConnection(tls_site.proxy.tls_port, strict) as conn:
        conn.sock.suppress_ragged_eofs = False
        conn.send("QUIT")
        assert conn.read() == b"OK"
        assert conn.sock.recv(1) == b""


@pytest.mark.parametrize("auth, shown, let_in", [
    ("yes", "client", True), ("yes", None, False), ("yes", "unknown_client", False),
    ("optional", "client", True), ("optional", None, True), ("optional", "unknown_client", False),
    ("no", None, True),
])
def test_client_certificates(doors_proxy, pki, auth, shown, let_in):
    port = doors_proxy.auth_ports[auth]
    pair = getattr(pki, shown) if shown else None
    said = redis_cli(port, pki, "PING", client=pair)
    assert (said.stdout == b"PONG\n") == let_in, said
    try:
        with TlsConnection(port, context(pki, pair)) as conn:
            assert conn.call("PING") == b"PONG" and let_in
    except OSError:
        assert not let_in


@pytest.fixture(scope="module")
def doors_proxy(tmp_path_factory, pki):
    """In the clear to its server, with one door for each tls_auth_clients, and a short time for handshakes."""
    from conftest import Lab

    lab = Lab(tmp_path_factory.mktemp("doors"))
    doors = [door(pki, tls_ca=pki.ours.ca, tls_auth_clients=auth) for auth in ("yes", "optional", "no")]
    settings = {"connect_timeout": "2s", "log": "nearside=debug,info"}
    proxy = tls_proxy(lab, lab.server().port, pki, doors, settings=settings)
    ports = [int(one["address"].rpartition(":")[2]) for one in doors]
    proxy.auth_ports = dict(zip(("yes", "optional", "no"), ports, strict=True))
    yield proxy
    lab.close()


def test_a_client_certificate_that_signed_itself_is_let_in_if_it_is_named(lab, pki):
    proxy = tls_proxy(lab, lab.server().port, pki, [door(pki, tls_ca=pki.alone[0])])
    port = int(proxy.doors[1]["address"].rpartition(":")[2])
    assert redis_cli(port, pki, "PING", client=pki.alone).stdout == b"PONG\n"
    assert redis_cli(port, pki, "PING", client=pki.client).stdout == b""


def test_tls_1_2_on_both_sides(lab, pki):
    port = free_port()
    cert, key = pki.server
    options = ["--tls-port", port, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", pki.ours.ca]
    lab.server(options=[*map(str, options), "--tls-protocols", "TLSv1.2"])
    settings = {"upstream_tls_ca": pki.ours.ca, **client_certificate(pki)}
    proxy = tls_proxy(lab, port, pki, scheme="rediss", settings=settings)
    old = context(pki)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with TlsConnection(proxy.tls_port, old) as conn:
        assert conn.sock.version() == "TLSv1.2"
        assert conn.pipeline([("SET", "k", "v"), ("GET", "k"), ("QUIT",)]) == [b"OK", b"v", b"OK"]
        assert conn.read_to_end() == b""


def test_plain_text_to_a_tls_port_is_refused_and_logged(doors_proxy):
    with Connection(doors_proxy.tls_port) as conn:
        conn.send("PING")
        assert b"PONG" not in conn.read_to_end()
    wait_until(lambda: "does not speak TLS" in doors_proxy.read_log(), "the reason in the log")


def test_failed_handshakes_warn_once(doors_proxy):
    for _ in range(5):
        with Connection(doors_proxy.tls_port) as conn:
            conn.send("PING")
            conn.read_to_end()
    lines = [line for line in doors_proxy.read_log().splitlines() if f":{doors_proxy.tls_port}" in line]
    assert len([line for line in lines if " WARN " in line]) == 1
    assert len([line for line in lines if "DEBUG" in line and "failed" in line]) >= 5
    assert doors_proxy.stats()["clients_tls_failed"] >= 5


def test_a_handshake_that_never_ends_is_cut_and_disturbs_nobody(doors_proxy, pki):
    silent = [Connection(doors_proxy.tls_port) for _ in range(20)]
    half = socket.create_connection(("127.0.0.1", doors_proxy.tls_port))
    half.sendall(b"\x16\x03\x01\x02\x00\x01")  # the head of a ClientHello that never comes
    began = time.monotonic()
    with TlsConnection(doors_proxy.tls_port, context(pki)) as conn:
        assert conn.call("PING") == b"PONG"
        assert doors_proxy.stats()["clients"] >= 22, "those in their handshakes count"
    assert all(conn.read_to_end() == b"" for conn in silent)
    half.settimeout(20)
    half.recv(100)
    assert 1.5 < time.monotonic() - began < 20
    wait_until(lambda: doors_proxy.stats()["clients"] <= 1, "all of them gone")


def test_handshakes_count_towards_maxclients(lab, pki):
    proxy = tls_proxy(lab, lab.server().port, pki, settings={"maxclients": 3})
    with Connection(proxy.port) as watcher:
        def clients():
            return int(parse_info(watcher.call("INFO"))["nearside_clients"])

        wait_until(lambda: clients() == 1, "those who looked whether it is up have gone")
        with Connection(proxy.tls_port), Connection(proxy.tls_port):
            wait_until(lambda: clients() == 3, "two handshakes and the watcher")
            with pytest.raises(OSError):
                TlsConnection(proxy.tls_port, context(pki))
            with Connection(proxy.port) as conn:
                assert conn.read_to_end() == b"-ERR max number of clients reached\r\n"
        wait_until(lambda: clients() == 1, "their places")
        with TlsConnection(proxy.tls_port, context(pki)) as conn:
            assert conn.call("PING") == b"PONG"


def test_a_stop_does_not_wait_for_handshakes(lab, pki):
    proxy = tls_proxy(lab, lab.server().port, pki, settings={"connect_timeout": "1m"})
    with Connection(proxy.tls_port):
        wait_until(lambda: proxy.stats()["clients"] == 2, "its handshake")
        began = time.monotonic()
        proxy.process.terminate()
        proxy.process.wait(10)
        assert time.monotonic() - began < 3


# --- whom the proxy believes ---


def error_of(proxy):
    with Connection(proxy.port) as conn:
        conn.send("GET", "k")
        return str(conn.read())


@pytest.mark.parametrize("settings, words", [
    (lambda pki: {"upstream_tls_ca": pki.strangers.ca, **client_certificate(pki)}, "UnknownIssuer"),
    (lambda pki: {"upstream_tls_ca": pki.ours.ca, "upstream_tls_server_name": "other.example",
                  **client_certificate(pki)}, "not valid for name"),
    (lambda pki: {"upstream_tls_ca": pki.ours.ca}, "client certificate"),
    (lambda pki: {"upstream_tls_ca": pki.ours.ca, **client_certificate(pki, pki.unknown_client)}, "TLS: received fatal alert"),
])
def test_who_is_not_believed_is_told_to_clients(lab, pki, settings, words):
    _, port = tls_server(lab, pki)
    proxy = lab.proxy(port, scheme="rediss", settings=settings(pki), wait=False)
    wait_until(lambda: accepts_text(proxy), "the proxy")
    said = error_of(proxy)
    assert said.startswith(f"ERR nearside: upstream 127.0.0.1:{port}: cannot be reached: TLS: "), said
    assert words in said
    assert words in proxy.read_log(), "and to who runs it"


def accepts_text(proxy):
    try:
        return bool(error_of(proxy))
    except OSError:
        return False


@pytest.mark.parametrize("name", [None, "*"])
def test_a_certificate_without_names(lab, pki, name):
    """As redis' own gen-test-certs.sh makes them: believed only if the name is not to be looked at."""
    _, port = tls_server(lab, pki, pki.nameless, "no")
    settings = {"upstream_tls_ca": pki.ours.ca, **({"upstream_tls_server_name": name} if name else {})}
    proxy = lab.proxy(port, scheme="rediss", settings=settings, wait=False)
    wait_until(lambda: accepts_text(proxy), "the proxy")
    assert (error_of(proxy) == "None") == (name == "*")


def test_any_name_is_not_any_ca(lab, pki):
    _, port = tls_server(lab, pki, pki.nameless, "no")
    settings = {"upstream_tls_ca": pki.strangers.ca, "upstream_tls_server_name": "*"}
    proxy = lab.proxy(port, scheme="rediss", settings=settings, wait=False)
    wait_until(lambda: accepts_text(proxy), "the proxy")
    assert "UnknownIssuer" in error_of(proxy)


def test_a_certificate_that_signed_itself_is_believed_if_it_is_named(lab, pki):
    _, port = tls_server(lab, pki, pki.alone, "no")
    proxy = lab.proxy(port, scheme="rediss", settings={"upstream_tls_ca": pki.alone[0]})
    assert error_of(proxy) == "None"


def test_insecure_believes_anybody_and_says_so(lab, pki):
    _, port = tls_server(lab, pki, auth_clients="no")
    proxy = lab.proxy(port, scheme="rediss", settings={"upstream_tls_insecure": True})
    assert error_of(proxy) == "None"
    assert "upstream_tls_insecure" in proxy.read_log()


def test_tls_to_an_upstream_without_it(lab, pki):
    settings = {"upstream_tls_ca": pki.ours.ca, "connect_timeout": "300ms"}
    proxy = lab.proxy(lab.server().port, scheme="rediss", settings=settings, wait=False)
    wait_until(lambda: accepts_text(proxy), "the proxy")
    assert "no TLS handshake within 300ms: does it speak TLS there?" in error_of(proxy)


def test_an_upstream_that_never_ends_its_handshake(lab, pki):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = {"upstream_tls_ca": pki.ours.ca, "connect_timeout": "300ms"}
        proxy = lab.proxy(silent.getsockname()[1], scheme="rediss", settings=settings, wait=False)
        wait_until(lambda: accepts_text(proxy), "the proxy")
        assert "within 300ms" in error_of(proxy)


# --- what is wrong with the files ---


def check(folder, text):
    config = folder / "proxy.toml"
    config.write_text(text)
    return subprocess.run([proxy_binary(), "--config", config, "--check"], capture_output=True, text=True, timeout=20, check=False)


DOOR = '[[listen]]\naddress = "127.0.0.1:6390"\ntls_cert = "{cert}"\ntls_key = "{key}"\n'


def test_check_names_setting_and_file(tmp_path, pki):
    cert, key = pki.server
    other_key, folder, missing = pki.client[1], pki.folder, tmp_path / "missing.pem"
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing\n")
    upstream = f'upstream = "rediss://h"\nupstream_tls_cert = "{cert}"\nupstream_tls_ca = "{pki.ours.ca}"\n'
    cases = [
        (DOOR.format(cert=missing, key=key), "listen 127.0.0.1:6390: tls_cert: ", missing, "No such file"),
        (DOOR.format(cert=cert, key=missing), "tls_key: ", missing, "No such file"),
        (DOOR.format(cert=empty, key=key), "tls_cert: ", empty, "holds no certificate"),
        (DOOR.format(cert=cert, key=empty), "tls_key: ", empty, "holds no private key"),
        (DOOR.format(cert=cert, key=folder), "tls_key: ", folder, "directory"),
        (DOOR.format(cert=cert, key=other_key), "tls_key: ", other_key, f"is not the key of {cert}"),
        (DOOR.format(cert=cert, key=key) + f'tls_ca = "{empty}"', "tls_ca: ", empty, "holds no certificate"),
        (upstream + f'upstream_tls_key = "{missing}"', "upstream_tls_key: ", missing, "No such file"),
        (upstream + f'upstream_tls_key = "{other_key}"', "upstream_tls_key: ", other_key, "is not the key of"),
        (f'upstream = "rediss://h"\nupstream_tls_ca = "{missing}"', "upstream_tls_ca: ", missing, "No such file"),
    ]
    for text, *words in cases:
        said = check(tmp_path, text)
        assert said.returncode == 1, text
        for word in words:
            assert str(word) in said.stderr, (word, said.stderr)
    good = check(tmp_path, upstream + f'upstream_tls_key = "{key}"\n' + DOOR.format(cert=cert, key=key))
    assert good.returncode == 0, good.stderr


def test_the_start_fails_as_the_check_does(tmp_path, pki):
    config = tmp_path / "proxy.toml"
    config.write_text('upstream = "redis://127.0.0.1:1"\n' + DOOR.format(cert=pki.server[0], key=pki.client[1]))
    said = subprocess.run([proxy_binary(), "--config", config], capture_output=True, text=True, timeout=20, check=False)
    assert said.returncode == 1 and "is not the key of" in said.stderr
