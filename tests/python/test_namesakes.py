"""A user is deleted and another of its name is made: the sessions of the one end, those of the other go on, whenever the watch looks."""

import time

import pytest

from processes import KINDS, wait_until
from stand_in import read_frame
from test_rights import said
from wire import Connection, encode

pytestmark = pytest.mark.needs_proxy

FULL = ("~*", "&*", "+@all")


class Scene:
    """A proxy whose look at the users can be held while something happens at the server."""

    def __init__(self, lab, kind):
        self.server = lab.server(kind)
        self.stand_in = lab.stand_in(self.server.port)
        self.server.call("SET", "k", "v")
        self.make_eve()
        self.proxy = lab.proxy(self.stand_in.port, settings={"audit_one_in": 0, "max_staleness": "400ms", "log": "debug"})

    def make_eve(self):
        self.server.call("ACL", "SETUSER", "eve", "on", ">secret", *FULL)

    def log_in(self):
        conn = Connection(self.proxy.port)
        wait_until(lambda: said(conn, "AUTH", "eve", "secret") == b"OK", "eve is let in")
        return conn

    def during_the_next_look(self, work):
        """The watch asks for the users; they are noted, `work` is done, and then it is told."""
        begun = []

        def answer(words, role):
            if role != "watch" or words != [b"ACL", b"LIST"] or begun:
                return None
            begun.append(True)
            with Connection(self.server.port) as conn, conn.sock.makefile("rb") as file:
                conn.sock.sendall(encode(*words))
                listed, _ = read_frame(file)
            begun.append(work())
            return listed

        self.stand_in.answer = answer
        wait_until(lambda: len(begun) > 1, "the watch has looked")
        return begun[1]


@pytest.fixture(params=[kind for kind in KINDS if kind != "redis6.2"])
def scene(request, lab):
    return Scene(lab, request.param)


@pytest.mark.parametrize("there", [True, False], ids=["with sessions of the old", "alone"])
def test_whoever_logs_in_while_the_watch_looks(scene, there):
    """The look saw no eve; the one that is let in now is another, and bare would not close her."""
    old = [scene.log_in() for _ in range(2 * there)]
    assert [said(conn, "GET", "k") for conn in old] == [b"v"] * len(old)
    scene.server.call("ACL", "DELUSER", "eve")

    def made_anew():
        scene.make_eve()
        return scene.log_in()

    new = scene.during_the_next_look(made_anew)
    for conn in old:
        wait_until(lambda conn=conn: said(conn, "GET", "k") == "closed", "the old sessions end", timeout=5)
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        assert said(new, "GET", "k") == b"v"
        assert said(new, "EVAL", "return 1", 0) == 1
        time.sleep(0.01)


def test_a_user_deleted_while_the_watch_looks_is_found_by_the_next(scene):
    """Let in after the look was asked for, deleted before it was answered."""
    scene.server.call("ACL", "DELUSER", "eve")

    def in_and_gone():
        scene.make_eve()
        conn = scene.log_in()
        scene.server.call("ACL", "DELUSER", "eve")
        return conn

    conn = scene.during_the_next_look(in_and_gone)
    wait_until(lambda: said(conn, "GET", "k") == "closed", "the session ends", timeout=5)
