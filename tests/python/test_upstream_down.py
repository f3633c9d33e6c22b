"""What monitors see while the upstream is down."""

import time

import pytest

from processes import answers_ping, free_port, parse_info, wait_until
from wire import Connection, ReplyError

pytestmark = pytest.mark.needs_proxy
SOON = 1.5


def told(conn, *sections):
    """INFO, answered at once."""
    begun = time.monotonic()
    info = parse_info(conn.call("INFO", *sections))
    assert time.monotonic() - begun < SOON
    return info


def pings(port):
    with Connection(port) as conn:
        return conn.call("NEARSIDE", "PING") == b"PONG"


def assert_known_without_server(port, version):
    with Connection(port) as conn:
        assert conn.call("NEARSIDE", "PING") == b"PONG"
        for sections in ((), ("all",), ("server", "clients", "nearside")):
            info = told(conn, *sections)
            assert info["redis_version"] == version and int(info["connected_clients"]) >= 1
            assert info["nearside_upstream"] == "down" and info["nearside_strongest_level"] == "none"
            assert info["nearside_link"] == "down" and info["nearside_upstream_error"]
        assert told(conn, "server")["redis_version"] == version
        assert "redis_version" not in told(conn, "nearside")
        with pytest.raises(ReplyError, match="nearside: upstream"):
            conn.call("INFO", "replication")


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_monitors_see_a_server_that_is_killed(lab, kind):
    server = lab.server(kind)
    proxy = lab.proxy(server.port)
    with Connection(proxy.port) as conn, Connection(proxy.port, protocol=3) as resp3:
        bare = server.info("server")
        up = told(conn)
        assert up["redis_version"] == bare["redis_version"] and up["nearside_upstream"] == "up"
        assert "nearside_upstream_error" not in up and up["nearside_upstream_address"] == f"127.0.0.1:{server.port}"
        assert up["nearside_strongest_level"] == "linearizable"
        server.kill()
        # At once: no look of the watch, no attempt of the link is waited for.
        assert told(conn)["nearside_upstream"] == "down"
        assert_known_without_server(proxy.port, bare["redis_version"])
        assert told(resp3)["redis_version"] == bare["redis_version"], "verbatim"
        assert isinstance(conn.pipeline([("PING",)])[0], ReplyError), "PING is the server's"
        server.start()
        wait_until(lambda: answers_ping(server.port), "the server is back")
        wait_until(lambda: told(conn)["nearside_strongest_level"] == "linearizable", "the link is back")
        back = told(conn)
        assert back["nearside_upstream"] == "up" and "used_memory" in back and "nearside_upstream_error" not in back


def test_monitors_see_a_server_that_is_silent(lab):
    server = lab.server("redis")
    proxy = lab.proxy(server.port, settings={"upstream_timeout": "1s", "connect_timeout": "500ms"})
    version = server.info("server")["redis_version"]
    wait_until(lambda: proxy.stats()["link"] == "up", "the link is up")
    server.freeze()
    try:
        assert pings(proxy.port)
        wait_until(lambda: proxy.stats()["upstream"] == "down", "the silence is noticed", timeout=5)
        assert_known_without_server(proxy.port, version)
    finally:
        server.thaw()
    wait_until(lambda: proxy.stats()["upstream"] == "up", "it answers again", timeout=5)


def test_monitors_see_a_server_that_never_came(lab):
    proxy = lab.proxy(free_port(), wait=False)
    wait_until(lambda: "listening" in proxy.read_log(), "the proxy listens")
    assert pings(proxy.port)
    assert_known_without_server(proxy.port, "unknown")


def test_killed_connections_are_no_server_that_is_down(redis_site):
    """Connections end now and then; the server goes on answering."""
    site = redis_site
    with Connection(site.a.port) as conn:
        for name in ("nearside-link", "nearside-lane", "nearside-watch") * 3:
            site.server.kill_clients_named(name)
            assert "used_memory" in told(conn)
    wait_until(lambda: site.a.stats()["link"] == "up", "the link is back")
    assert site.a.stats()["upstream"] == "up"
