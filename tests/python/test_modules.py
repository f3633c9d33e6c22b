"""Modules that a server gets, and loses, while proxies are in front of it: their commands are what they are from then on."""

import shutil
import subprocess
from pathlib import Path

import pytest

from wire import Connection, ReplyError

pytestmark = pytest.mark.needs_proxy

COMPILER = shutil.which("cc")
SOURCE = Path(__file__).with_name("later.c")


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    if not COMPILER:
        pytest.skip("no C compiler")
    built = tmp_path_factory.mktemp("module") / "later.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", built, SOURCE], check=True)
    return built


@pytest.fixture(params=["redis", "valkey"])
def site(lab, request):
    return lab.site(request.param, server_options=("--enable-module-command", "yes"), settings={"audit_one_in": 0})


def reply(conn, *words):
    got = conn.pipeline([words])[0]
    return f"-{got}" if isinstance(got, ReplyError) else got


def is_written_by(conn, write, others):
    """Through the proxy of `conn` all see at once what it writes; elsewhere whoever asks for it."""
    for i in range(20):
        assert reply(conn, write, "k", i) == b"OK"
        assert [reply(other, "GET", "k") for other in (conn, *others)] == [b"%d" % i] * (1 + len(others)), (write, i)


@pytest.mark.parametrize("said", ["through the proxy", "past all proxies"])
def test_commands_that_come_and_go(site, module, said):
    with Connection(site.a.port) as a, Connection(site.a.port) as beside, Connection(site.b.ports["linearizable"]) as b, site.server.connect() as bare:
        told = reply(bare, "later.put", "k", "v")
        assert [reply(conn, "later.put", "k", "v") for conn in (a, b, a, b)] == [told] * 4 and "unknown command" in told
        before = site.a.stats()["dedicated"]
        who = a if said == "through the proxy" else bare
        assert who.call("MODULE", "LOAD", str(module)) == b"OK"
        # What nobody has heard of yet is dealt with as if it might write anything.
        is_written_by(a, "later.put", (beside, b))
        is_written_by(a, "laterhidden", (beside, b))
        assert [reply(conn, "later.fetch", "k") for conn in (a, b)] == [b"19"] * 2
        assert [reply(conn, "later.put", "k") for conn in (a, b)] == [reply(bare, "later.put", "k")] * 2
        assert a.pipeline([("MULTI",), ("later.put", "k", "x"), ("laterhidden", "l", "y"), ("EXEC",)])[-1] == [b"OK", b"OK"]
        assert [reply(conn, "GET", "k") for conn in (a, beside, b)] == [b"x"] * 3
        assert site.a.stats()["dedicated"] <= before + 16, "its commands need no connections of their own"
        assert who.call("MODULE", "UNLOAD", "later") == b"OK"
        told = reply(bare, "later.put", "k", "v")
        assert [reply(conn, "later.put", "k", "v") for conn in (a, b)] == [told] * 2
        assert [reply(conn, "GET", "k") for conn in (a, beside, b)] == [b"x"] * 3

