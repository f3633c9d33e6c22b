"""Many reads of one key that is not cached: few of them reach the server, and each answer is one that Redis might have given."""

import threading

import pytest

from processes import LEVELS, wait_until
from wire import Connection

pytestmark = pytest.mark.needs_proxy

#: A GET and the two that may find the first on its way when their bytes come.
FEW = 3
BURST = 1_000


def warm(site, conn):
    """From here on the session's lane fills the cache."""
    site.server.call("SET", "warm", "")
    wait_until(lambda: asked(site, conn, "GET", "warm") == 0, "a hit")


def reads(site, command, work):
    """How often the server executes `command` meanwhile."""
    before = site.server.calls(command)
    work()
    return site.server.calls(command) - before


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("key", ["short", "long" * 50], ids=["one piece", "many pieces"])
def test_one_pipeline_of_one_key_reads_it_hardly_more_than_once(site, level, key):
    site.server.call("SET", key, "v")
    with Connection(site.a.ports[level]) as conn:
        warm(site, conn)
        assert reads(site, "get", lambda: conn.pipeline([("GET", key)] * BURST) == [b"v"] * BURST or pytest.fail()) <= FEW


@pytest.mark.parametrize("level", LEVELS)
def test_a_pipeline_of_several_keys_and_commands_does_too(site, level):
    site.server.call("MSET", "a", "1", "b", "2", "c", "3")
    site.server.call("RPUSH", "list", "x", "y")
    commands = [("GET", "a"), ("GET", "b"), ("MGET", "a", "c"), ("LRANGE", "list", 0, -1)] * 200
    expected = [b"1", b"2", [b"1", b"3"], [b"x", b"y"]] * 200
    with Connection(site.a.ports[level]) as conn:
        warm(site, conn)
        before = {name: site.server.calls(name) for name in ("get", "mget", "lrange")}
        assert conn.pipeline(commands) == expected
        reached = {name: site.server.calls(name) - before[name] for name in before}
        assert reached["get"] <= 2 * FEW and reached["mget"] <= FEW and reached["lrange"] <= FEW, reached


def test_what_cannot_be_kept_is_shared_as_well(lab):
    """Above max_entry: a reply of each piece of the pipeline, which no read of a later piece waits for."""
    site = lab.site(settings={"max_entry": "1kb", "audit_one_in": 0})
    site.server.call("SET", "large", "v" * 5000)
    with Connection(site.a.port) as conn:
        warm(site, conn)
        work = lambda: conn.pipeline([("GET", "large")] * BURST) == [b"v" * 5000] * BURST or pytest.fail()
        assert reads(site, "get", work) <= 10


@pytest.mark.parametrize("level", LEVELS)
def test_a_read_behind_an_own_write_of_its_key_sees_it(site, level):
    """SET, GET, SET, GET … in one piece, and scripts that write the key undeclared: each GET has a flight or a read before it."""
    script = "return redis.call('SET', ARGV[1], ARGV[2])"
    with Connection(site.a.ports[level]) as conn:
        for turn in range(30):
            commands, expected = [("GET", "own")] * 2, [None if turn == 0 else b"29"] * 2
            for n in range(30):
                write = ("EVAL", script, 0, "own", n) if n % 10 == 9 else ("SET", "own", n)
                commands += [write, ("GET", "own"), ("MGET", "own", "none"), ("GET", "own")]
                expected += [b"OK", b"%d" % n, [b"%d" % n, None], b"%d" % n]
            assert conn.pipeline(commands) == expected, f"turn {turn}"


@pytest.mark.parametrize("level", LEVELS)
def test_a_shared_answer_is_as_of_after_the_request(site, level):
    """A writer past the proxy counts `v` up; readers send bursts of GET v. At every level a session's answers never go back, and
    at linearizable each is at least what was acknowledged before the burst was sent. (A reply that is on its way when the
    burst arrives would be older.)"""
    done, acknowledged = threading.Event(), [0]

    def write():
        with Connection(site.server.port) as conn:
            while not done.is_set():
                conn.call("SET", "v", acknowledged[0] + 1)
                acknowledged[0] += 1

    def read(port, failures):
        newest = 0
        with Connection(port) as conn:
            for turn in range(150):
                floor = acknowledged[0]
                # in two pieces, so that the second finds the first one's reads on their way
                conn.send_raw(BURST_OF_READS)
                later = acknowledged[0]
                conn.send_raw(BURST_OF_READS)
                answers = [int(conn.read() or 0) for _ in range(2 * 20)]
                if answers != sorted(answers) or answers[0] < newest:
                    failures.append(f"turn {turn}: back from {newest} in {answers}")
                if level == "linearizable" and (answers[0] < floor or answers[20] < later):
                    failures.append(f"turn {turn}: {answers[0]} and {answers[20]}, where {floor} and {later} were acknowledged")
                newest = answers[-1]

    failures = []
    threads = [threading.Thread(target=write)]
    threads += [threading.Thread(target=read, args=(proxy.ports[level], failures)) for proxy in (site.a, site.a, site.b)]
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join()
    done.set()
    threads[0].join()
    assert not failures, failures[:3]
    assert acknowledged[0] > 100


BURST_OF_READS = b"*2\r\n$3\r\nGET\r\n$1\r\nv\r\n" * 20


@pytest.mark.parametrize("level", ["causal", "linearizable"])
def test_shared_answers_keep_the_order_of_two_keys(site, level):
    """A writer past the proxy sets x and then y to the next number. A session that has read y = n reads x >= n behind it."""
    done = threading.Event()

    def write():
        with Connection(site.server.port) as conn:
            n = 0
            while not done.is_set():
                n += 1
                conn.pipeline([("SET", "x", n), ("SET", "y", n)])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with Connection(site.a.ports[level]) as conn:
            for _ in range(300):
                answers = [int(answer or 0) for answer in conn.pipeline([("GET", "x"), ("GET", "y")] * 10)]
                assert answers == sorted(answers) or all(
                    x >= y for y, x in zip(answers[1::2], answers[2::2], strict=False)
                ), answers
    finally:
        done.set()
        writer.join()


@pytest.mark.parametrize(("keys", "kept"), [(255, True), (256, True), (257, False)])
def test_mget_is_kept_up_to_256_keys(site, keys, kept):
    names = [f"m{n}" for n in range(keys)]
    site.server.call("MSET", *(word for name in names for word in (name, name)))
    expected = [name.encode() for name in names]
    with Connection(site.a.port) as conn:
        if kept:
            wait_until(lambda: conn.call("MGET", *names) == expected and asked(site, conn, "MGET", *names) == 0, "a hit")
        else:
            assert [asked(site, conn, "MGET", *names) for _ in range(3)] == [1] * 3
        # Of any number, an MGET whose keys are all cached is answered from the cache.
        wait_until(lambda: conn.pipeline([("GET", name) for name in names]) == expected and asked(site, conn, "MGET", *names) == 0, "a hit")


def asked(site, conn, *words):
    """How often the server is asked for what one command wants."""
    return reads(site, words[0].lower(), lambda: conn.call(*words))


def test_exists_is_kept_of_one_key(site):
    site.server.call("MSET", "e1", "", "e2", "")
    with Connection(site.a.port) as conn:
        wait_until(lambda: asked(site, conn, "EXISTS", "e1") == 0, "a hit")
        assert [asked(site, conn, "EXISTS", "e1", "e2") for _ in range(3)] == [1] * 3
