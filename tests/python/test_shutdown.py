"""The end of a proxy: what was executed is acknowledged first, the end is prompt, and each signal means what README says."""

import signal
import threading
import time

import pytest

from processes import parse_info, wait_until
from wire import Closed, Connection, ReplyError

pytestmark = pytest.mark.needs_proxy

CLIENTS = 16
RESTARTS = 4
GRACE = 5.0
SCRIPT = "return redis.call('incr', KEYS[1])"


class Counter(threading.Thread):
    """Increments a key of its own until the proxy closes the connection; a command without a reply has an unknown outcome."""

    def __init__(self, port, key, words):
        super().__init__(daemon=True)
        self.key, self.words = key, words
        self.conn = Connection(port)
        self.acknowledged = 0
        self.told_unknown = 0
        self.begun = threading.Event()

    def run(self):
        with self.conn:
            try:
                while True:
                    self.conn.send(*self.words)
                    reply = self.conn.read()
                    if isinstance(reply, ReplyError):
                        self.told_unknown += 1
                        return
                    self.acknowledged += 1
                    self.begun.set()
            except (Closed, OSError):
                pass


class Worker(Counter):
    """Takes what is there from a list, one at a time; or counts on a connection whose bytes pass unlooked at."""

    def __init__(self, port, key, words, before=()):
        super().__init__(port, key, words)
        for words in before:
            self.conn.call(*words)


TAKEN = {
    "blocking pop": (("BLPOP", "list:{0}", 5), ()),
    "blocking move": (("BLMOVE", "list:{0}", "taken:{0}", "LEFT", "RIGHT", 5), ()),
    "blocking read": (("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "BLOCK", 5000, "STREAMS", "stream:{0}", ">"), ()),
    "unlooked at": (("LPOP", "list:{0}"), (("CLIENT", "NO-EVICT", "ON"),)),
    "blocking, unlooked at": (("BLPOP", "list:{0}", 5), (("CLIENT", "NO-EVICT", "ON"),)),
}


def ended_under(proxy, clients):
    """Ends the proxy once all clients, which are threads, are at work, and lets them end; how long the proxy's end took."""
    for client in clients:
        client.start()
    for client in clients:
        assert client.begun.wait(10)
    began = time.monotonic()
    proxy.signal(signal.SIGTERM)
    assert proxy.process.wait(2 * GRACE) == 0
    took = time.monotonic() - began
    for client in clients:
        client.join(10)
    return took


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_what_is_taken_from_a_queue_while_the_proxy_ends_is_told(lab, kind):
    """Before: of 12 workers about 9 lost what they had just taken. Others wait for what never comes, and hold nobody up."""
    server = lab.server(kind)
    for n in range(RESTARTS):
        proxy = lab.proxy(server.port, f"r{n}", settings={"threads": 2, "shutdown_grace": f"{int(GRACE)}s"})
        workers = []
        with server.connect() as past:
            for i, (words, before) in enumerate(TAKEN.values()):
                for c in range(3):
                    name = f"{n}:{i}:{c}"
                    past.call("RPUSH", f"list:{name}", *range(20_000))
                    past.call("XGROUP", "CREATE", f"stream:{name}", "g", "0", "MKSTREAM")
                    past.pipeline([("XADD", f"stream:{name}", "*", "f", m) for m in range(3_000 if words[0] == "XREADGROUP" else 0)])
                    workers.append(Worker(proxy.port, name, [str(word).format(name) for word in words], before))
        waiting = [Connection(proxy.port) for _ in range(20)]
        for i, conn in enumerate(waiting):
            conn.send("BLPOP", f"never:{i}", 0)
            if i % 2:
                conn.send("SET", f"behind:{n}:{i}", "x")
        assert ended_under(proxy, workers) < GRACE / 2
        with server.connect() as past:
            for worker in workers:
                stream = worker.words[0] == "XREADGROUP"
                taken = past.call("XPENDING", f"stream:{worker.key}", "g")[0] if stream else 20_000 - past.call("LLEN", f"list:{worker.key}")
                assert taken == worker.acknowledged, (worker.words, taken, worker.acknowledged, worker.told_unknown)
            # What stands behind a command that is made to wait no longer is done, so it is told.
            done = [past.call("EXISTS", f"behind:{n}:{i}") for i in range(20)]
        for i, conn in enumerate(waiting):
            told = b"-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n+OK\r\n" if done[i] else b""
            assert (conn.read_to_end(), done[i]) == (told, i % 2)
        assert not proxy.panics()


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_where_waiting_cannot_be_ended_the_end_is_prompt(lab, kind):
    """The proxy's own user may not say CLIENT UNBLOCK; and who has said CLIENT REPLY OFF is answered nothing."""
    server = lab.server(kind)
    server.call("ACL", "SETUSER", "near", "on", ">p", "~*", "&*", "+@all", "-client|unblock")
    proxy = lab.proxy(f"redis://near:p@127.0.0.1:{server.port}/0", settings={"shutdown_grace": "5s"})
    with Connection(proxy.port) as blocked, Connection(proxy.port) as silent, Connection(proxy.port) as fed:
        fed.call("SUBSCRIBE", "c")
        blocked.send("BLPOP", "never", 0)
        silent.send("CLIENT", "REPLY", "OFF")
        silent.send("SET", "k", "v")
        wait_until(lambda: server.call("GET", "k") == b"v" and server.info("clients")["blocked_clients"] == "1", "they wait")
        began = time.monotonic()
        proxy.signal(signal.SIGTERM)
        assert proxy.process.wait(10) == 0
        assert time.monotonic() - began < 2.5
        assert [conn.read_to_end() for conn in (blocked, silent, fed)] == [b""] * 3


@pytest.mark.parametrize("kind", ["redis", "valkey"])
@pytest.mark.parametrize("load", ["script", "plain"])
def test_an_orderly_end_loses_no_reply(lab, kind, load):
    """Executed at the server = acknowledged: a command that the end has overtaken was never sent."""
    server = lab.server(kind)
    for n in range(RESTARTS):
        proxy = lab.proxy(server.port, f"r{n}", settings={"threads": 2, "shutdown_grace": f"{int(GRACE)}s"})
        counters = []
        for c in range(CLIENTS):
            key = f"{load}:{n}:{c}"
            words = ("EVAL", SCRIPT, 1, key) if load == "script" else ("INCR", key)
            counters.append(Counter(proxy.port, key, words))
        took = ended_under(proxy, counters)
        executed = [int(server.call("GET", counter.key)) for counter in counters]
        assert executed == [counter.acknowledged for counter in counters]
        assert not any(counter.told_unknown for counter in counters)
        assert took < GRACE / 2, f"the end took {took:.1f} s"


@pytest.mark.parametrize("load", ["script", "plain"])
def test_a_frozen_upstream_does_not_stretch_the_end(lab, load):
    server = lab.server("redis")
    proxy = lab.proxy(server.port, settings={"shutdown_grace": "1s"})
    with Connection(proxy.port) as conn, Connection(proxy.port) as idle:
        idle.call("SET", "k", 1)
        conn.call("EVAL", SCRIPT, 1, "n")
        server.freeze()
        try:
            conn.send(*(("EVAL", SCRIPT, 1, "n") if load == "script" else ("INCR", "n")))
            idle.send("NEARSIDE", "HELP")
            idle.read()
            began = time.monotonic()
            proxy.signal(signal.SIGTERM)
            assert proxy.process.wait(10) == 0
            assert time.monotonic() - began < 2.0
        finally:
            server.thaw()


def test_a_frozen_private_server_does_not_stretch_the_end_either(lab):
    proxy = lab.proxy("embedded", settings={"shutdown_grace": "1s"})
    with open(f"/proc/{proxy.process.pid}/task/{proxy.process.pid}/children") as children:
        server = int(children.read().split()[0])
    with Connection(proxy.port) as conn:
        conn.call("SET", "k", 1)
        signal_process(server, signal.SIGSTOP)
        conn.send("SET", "k", 2)
        began = time.monotonic()
        proxy.signal(signal.SIGTERM)
        assert proxy.process.wait(10) == 0
        assert time.monotonic() - began < 2.5, "the grace, and a second for the server"
    assert not alive(server)


def signal_process(pid, number):
    import os

    os.kill(pid, number)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_ends_it_in_order_and_a_second_one_at_once(lab, number):
    server = lab.server("redis")
    proxy = lab.proxy(server.port, settings={"shutdown_grace": "20s"})
    with Connection(proxy.port) as conn, Connection(proxy.port) as other:
        conn.call("PING")
        server.freeze()
        try:
            before = commands(other)
            conn.send("INCR", "n")
            wait_until(lambda: commands(other) > before, "the command is on its way")
            proxy.signal(number)
            wait_until(lambda: f"{number.name}: shutting down" in proxy.read_log(), "the signal is heard")
            proxy.signal(number)
            assert proxy.process.wait(5) == 0
            assert f"{number.name} again" in proxy.read_log()
        finally:
            server.thaw()


def commands(conn):
    """How many commands the proxy has dealt with, without those that ask for this."""
    now = int(parse_info(conn.call("INFO", "nearside"))["nearside_commands"])
    asked, conn.asked = getattr(conn, "asked", 0), getattr(conn, "asked", 0) + 1
    return now - asked


def test_a_hangup_is_heard_and_changes_nothing(lab):
    proxy = lab.proxy(lab.server("redis").port)
    with Connection(proxy.port) as conn:
        conn.call("SET", "k", 1)
        for n in range(1, 4):
            proxy.signal(signal.SIGHUP)
            wait_until(lambda: proxy.read_log().count("SIGHUP") >= n, "the hangup is heard")
        assert conn.call("GET", "k") == b"1"
        assert proxy.alive()
