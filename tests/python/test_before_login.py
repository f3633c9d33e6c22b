"""Before login every command is answered as by the bare server, byte for byte."""

import pytest

from conftest import Lab
from processes import accepts, wait_until
from wire import Connection, encode

# More replies at once the server does not keep for one who has not logged in (1 KB since CVE-2025-21605).
BATCH = 4
CLOSES = ("POST", "HOST:")
# They log in, or may.
LOGS_IN = ("auth", "hello", "quit", "reset")
SHAPES = [(), ("a",), ("a", "b", "c"), ("1", "2", "3", "4", "5", "6")]


@pytest.fixture(scope="module", params=["redis", "valkey"])
def kind(request):
    return request.param


@pytest.fixture(scope="module", params=["requirepass", "off"])
def place(request, kind, tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("strangers"))
    rules = {"requirepass": ("--requirepass", "secret"), "off": ()}[request.param]
    server = lab.server(kind, options=rules)
    with Connection(server.port) as admin:
        if request.param == "requirepass":
            admin.call("AUTH", "secret")
        admin.call("ACL", "SETUSER", "bob", "on", ">pw", "~*", "&*", "+@all")
        table = admin.call("COMMAND")
        if request.param == "off":
            admin.call("ACL", "SETUSER", "default", "off")
    yield server, lab.proxy(server.port, wait=False), table
    lab.close()


def names(table):
    for entry in table:
        yield (entry[0].decode(),)
        for sub in entry[9] if len(entry) > 9 else []:
            yield tuple(sub[0].decode().split("|"))


def requests(table):
    for name in names(table):
        for shape in SHAPES:
            if name[0] not in LOGS_IN:
                yield (*name, *shape)
    yield from [("nosuchcommand",), ("nosuchcommand", "a", "b"), ("client", "nosuch"), ("config", "nosuch", "x")]
    yield from [("auth",), ("auth", "a", "b", "c"), ("auth", "wrong"), ("auth", "bob", "wrong"), ("auth", "nobody", "wrong")]
    yield from [("hello",), ("hello", "2"), ("hello", "3"), ("hello", "4"), ("hello", "x"), ("hello", "3", "SETNAME", "me")]
    yield from [("hello", "3", "AUTH", "bob", "wrong"), ("hello", "3", "AUTH", "bob"), ("reset",), ("reset", "x")]
    yield from [("select", "x"), ("select", "99999999999"), ("select", "-1"), ("Exec",), ("MONITOR",), ("client", "reply", "off")]


def answers(conn, batch):
    """The first line of the reply to each, sent together."""
    conn.send_raw(b"".join(encode(*request) for request in batch))
    return [conn._line() for _ in batch]


def test_every_command_is_answered_in_the_servers_words(place):
    server, proxy, table = place
    all_requests = list(requests(table))
    with Connection(server.port) as bare, Connection(wait_port(proxy, server)) as conn:
        for at in range(0, len(all_requests), BATCH):
            batch = all_requests[at:at + BATCH]
            for request, expected, answer in zip(batch, answers(bare, batch), answers(conn, batch), strict=True):
                assert answer == expected, request


def wait_port(proxy, server):
    """The proxy's port, once it listens; the server's own where there is no proxy."""
    wait_until(lambda: accepts(proxy.port), "the proxy listens")
    return proxy.port


def test_inline_commands_and_pipelines(place):
    server, proxy, _ = place
    text = b"PING\r\nGET k\r\nMULTI\r\nSET k v\r\nEXEC\r\nnosuch x\r\nSUBSCRIBE c\r\nDISCARD\r\nGET\r\nAUTH bob wrong\r\nRESET\r\nPING\r\nQUIT\r\n"
    ends = []
    for port in (server.port, wait_port(proxy, server)):
        with Connection(port) as conn:
            conn.send_raw(text)
            ends.append(conn.read_to_end())
    assert ends[1] == ends[0]


@pytest.mark.parametrize("word", CLOSES)
def test_a_browser_is_closed(place, word):
    server, proxy, _ = place
    for port in (server.port, wait_port(proxy, server)):
        with Connection(port) as conn:
            conn.send(word, "x")
            assert conn.read_to_end() == b""


@pytest.mark.parametrize("protocol", [2, 3])
def test_who_logs_in_goes_on(place, protocol):
    server, proxy, _ = place
    for port in (server.port, wait_port(proxy, server)):
        with Connection(port) as conn:
            assert conn.pipeline([("GET", "k")])[0].args[0].startswith("NOAUTH")
            conn.call("HELLO", protocol, "AUTH", "bob", "pw")
            assert conn.call("SET", "k", "v") == b"OK" and conn.call("GET", "k") == b"v"
            conn.call("RESET")
            assert conn.pipeline([("GET", "k"), ("EXEC",)])[0].args[0].startswith("NOAUTH")


@pytest.mark.needs_proxy
def test_the_proxys_own_commands_want_a_login_too(place):
    server, proxy, _ = place
    with Connection(wait_port(proxy, server)) as conn, Connection(server.port) as bare:
        for words in [("INFO", "nearside"), ("NEARSIDE",), ("NEARSIDE", "STATS"), ("NEARSIDE", "FLUSH"), ("NEARSIDE", "HELP"),
                      ("NEARSIDE", "EXPLAIN", "k"), ("NEARSIDE", "EXPLAIN", "GET", "k"), ("NEARSIDE", "CONSISTENCY", "causal")]:
            assert str(conn.pipeline([words])[0]) == "NOAUTH Authentication required.", words
        assert str(bare.pipeline([("INFO", "nearside")])[0]) == "NOAUTH Authentication required."
