"""What makes the server end a connection: for the request or reply of one client no other client loses anything."""

import threading

import pytest

from processes import wait_until
from wire import Closed, Connection, ReplyError

MB = 1 << 20
QUICK = {"max_staleness": "500ms", "heartbeat": "50ms", "threads": 1}

pytestmark = pytest.mark.needs_proxy


class Others:
    """Clients that write and read in pipelines until they are told to stop; each wrong reply is kept."""

    def __init__(self, port, sessions=3):
        self.wrong, self.done, self._over = [], 0, threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(port, n)) for n in range(sessions)]

    def _work(self, port, n):
        with Connection(port) as conn:
            i = 0
            while not self._over.is_set():
                i += 1
                replies = conn.pipeline([("INCR", f"n{n}"), ("SET", f"s{n}:{i}", i), ("GET", f"s{n}:{i}"), ("GET", f"s{n}:{i - 1}")])
                expected = [i, b"OK", str(i).encode(), str(i - 1).encode() if i > 1 else None]
                self.wrong += [(n, i, got, want) for got, want in zip(replies, expected, strict=False) if got != want]
                self.done += 1

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join()


def last_words(port, data):
    with Connection(port) as conn:
        conn.call("PING")
        conn.send_raw(data)
        return conn.read_to_end()


def ask_for(port, words, times):
    """The replies, or why there are no more of them: the connection ends, as bare."""
    replies = []
    with Connection(port) as conn:
        try:
            for _ in range(times):
                conn.send(*words)
                replies.append(conn.read())
        except (OSError, Closed) as end:
            replies.append(end)
    return replies


HEADER = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n"


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_an_argument_that_the_server_refuses(lab, kind):
    """Before: the proxy took 512 MB, and the server closed the lane of all."""
    server = lab.server(kind, options=("--proto-max-bulk-len", "1mb"))
    proxy = lab.proxy(server.port, settings=QUICK)
    refused = last_words(server.port, HEADER % (2 * MB))
    assert refused == b"-ERR Protocol error: invalid bulk length\r\n"
    with Connection(proxy.port) as conn:
        assert conn.call("SET", "k", b"x" * MB) == b"OK"
    wait_until(lambda: last_words_within(proxy.port, HEADER % (2 * MB)) == refused, "the bound is known")
    with Others(proxy.port) as others:
        for _ in range(3):
            assert last_words(proxy.port, HEADER % (2 * MB)) == refused
            with Connection(proxy.port) as conn:
                try:
                    conn.send("SET", "k", b"x" * (2 * MB))
                    conn.read_to_end()
                except OSError:
                    pass  # closed in the midst of it, as bare
        wait_until(lambda: others.done > 30, "the others go on")
    assert not others.wrong, others.wrong[:3]
    server.call("CONFIG", "SET", "proto-max-bulk-len", 4 * MB)
    wait_until(lambda: last_words_within(proxy.port, HEADER % (2 * MB)) is None, "the bound is asked for again")
    with Connection(proxy.port) as conn:
        assert conn.call("SET", "k", b"x" * (2 * MB)) == b"OK"


def bounds_are_known(server):
    """The watch asks for them, waits for the answer, and looks at the ACL on the same connection some time later."""
    wait_until(lambda: server.calls("config|get") >= 2, "the bounds are asked for")
    server.wait_for_looks(2)


def last_words_within(port, data):
    conn = Connection(port, timeout=0.2)
    try:
        conn.send_raw(data)
        return conn.read_to_end()
    except TimeoutError:
        return None
    finally:
        conn.close()


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_a_request_that_fills_the_servers_buffer(lab, kind):
    """The server closes a connection whose request exceeds client-query-buffer-limit, without a word."""
    server = lab.server(kind, options=("--client-query-buffer-limit", "1mb"))
    proxy = lab.proxy(server.port, settings=QUICK)
    bounds_are_known(server)
    with Others(proxy.port) as others:
        for _ in range(5):
            with Connection(proxy.port) as conn:
                conn.send("SET", "k", b"x" * (3 * MB))
                with pytest.raises((Closed, ReplyError)):
                    raise conn.read()
        with Connection(proxy.port) as conn:
            assert conn.call("SET", "k", b"x" * (MB // 2)) == b"OK"
        wait_until(lambda: others.done > 30, "the others go on")
    assert not others.wrong, others.wrong[:3]


@pytest.mark.parametrize("words", [("LRANGE", "list", 0, -1), ("MGET", *["str"] * 30), ("GET", "huge")], ids=lambda words: words[0])
@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_a_reply_that_the_server_does_not_hold(lab, kind, words):
    """`client-output-buffer-limit normal`: bare, the one client is closed. Here its lane was, and others' writes had unknown outcomes."""
    server = lab.server(kind, options=("--client-output-buffer-limit", "normal 1mb 0 0"))
    proxy = lab.proxy(server.port, settings=QUICK)
    with server.connect() as conn:
        conn.pipeline([("RPUSH", "list", b"x" * 100_000) for _ in range(40)])
        conn.pipeline([("SET", "str", b"x" * 100_000), ("SET", "huge", b"x" * (3 * MB))])
    bounds_are_known(server)
    with Others(proxy.port) as others:
        wait_until(lambda: others.done > 10, "the others work")
        for _ in range(8):
            large = ask_for(proxy.port, words, 4)
            # Valkey does not count what it sends without a copy.
            assert all(isinstance(reply, Exception) or kind == "valkey" for reply in large), large
        done = others.done
        wait_until(lambda: others.done > done + 10, "the others go on")
    writes = [w for w in others.wrong if w[3] == b"OK" or isinstance(w[3], int)]
    assert not writes, writes[:3]
    # Reads may be lost twice before their sessions go apart; each says so, and none is wrong.
    assert all("nearside" in str(got) for _, _, got, _ in others.wrong), others.wrong[:3]
    assert len(others.wrong) < others.done / 10, (len(others.wrong), others.done)


BIG = b"x" * (3 * MB)
# What is put there past the proxy each time, and what takes it away through it.
TAKES = {
    "getdel": ([("SET", "huge", BIG)], ("GETDEL", "huge")),
    "set get": ([("SET", "huge", BIG)], ("SET", "huge", "small", "GET")),
    "getset": ([("SET", "huge", BIG)], ("GETSET", "huge", "small")),
    "getex": ([("SET", "huge", BIG)], ("GETEX", "huge", "EX", 9)),
    "lpop": ([("RPUSH", "long", *[b"x" * 100_000] * 30)], ("LPOP", "long", 30)),
    "rpoplpush": ([("RPUSH", "long", BIG)], ("RPOPLPUSH", "long", "other")),
    "spop": ([("SADD", "set", *(b"%d" % i + b"x" * 100_000 for i in range(30)))], ("SPOP", "set", 30)),
    "sort": ([("RPUSH", "sorted", *[b"x" * 100_000] * 30)], ("SORT", "sorted", "ALPHA")),
    "xreadgroup": (
        [("XGROUP", "CREATE", "s", "g", "$", "MKSTREAM"), *[("XADD", "s", "*", "f", b"x" * 100_000)] * 30],
        ("XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">"),
    ),
    "eval": ([], ("EVAL", "return string.rep('x', 3000000)", 0)),
    "echo": ([], ("ECHO", BIG)),
    "command": ([], ("COMMAND", "DOCS")),
    "multi": ([("SET", "huge", BIG)], ("MULTI",)),
}


@pytest.mark.parametrize("name", TAKES)
@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_a_write_whose_reply_the_server_does_not_hold(bounded_site, name):
    """Before: GETDEL of a large value cost the writes of others their outcome."""
    server, proxy = bounded_site
    before, words = TAKES[name]
    dedicated = proxy.stats()["dedicated_lent"]
    with Others(proxy.port) as others, server.connect() as past:
        wait_until(lambda: others.done > 5, "the others work")
        for _ in range(3):
            past.pipeline(before)
            if words == ("MULTI",):
                ask_for_in_order(proxy.port, [words, ("GETDEL", "huge"), ("EXEC",)])
            else:
                ask_for(proxy.port, words, 1)
        done = others.done
        wait_until(lambda: others.done > done + 5, "the others go on")
    # A read may be lost with a lane of reads; here none of them is long.
    assert not others.wrong, others.wrong[:3]
    wait_until(lambda: proxy.stats()["dedicated_lent"] == dedicated, "connections are given back")


def ask_for_in_order(port, commands):
    with Connection(port) as conn:
        try:
            return [conn.pipeline([words]) for words in commands]
        except (OSError, Closed) as end:
            return end


@pytest.fixture(scope="module")
def bounded_sites(tmp_path_factory):
    from conftest import Lab

    lab, sites = Lab(tmp_path_factory.mktemp("lab")), {}

    def of(kind):
        if kind not in sites:
            server = lab.server(kind, options=("--client-output-buffer-limit", "normal 256kb 0 0"))
            sites[kind] = server, lab.proxy(server.port, settings=QUICK)
            bounds_are_known(server)
        return sites[kind]

    yield of
    lab.close()


@pytest.fixture
def bounded_site(bounded_sites, kind):
    server, proxy = bounded_sites(kind)
    with Connection(proxy.port) as conn:
        conn.call("FLUSHALL")
    return server, proxy
