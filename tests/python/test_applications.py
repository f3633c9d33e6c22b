"""Programs as people write them, in processes of their own, through two proxies."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from processes import LEVELS

PROGRAMS = Path(__file__).with_name("programs.py")
TIMEOUT = 30
MAX_STALENESS = 1.0


class Program:
    """One of programs.py's, running."""

    def __init__(self, name, port, protocol, *arguments):
        argv = [sys.executable, PROGRAMS, name, str(port), str(protocol), *map(str, arguments)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def order(self, *order):
        """Gives one order and waits for its answer."""
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.next()

    def next(self):
        """The next thing it says."""
        line = self.process.stdout.readline()
        if not line:
            pytest.fail(self.process.communicate(timeout=TIMEOUT)[1], pytrace=False)
        return json.loads(line)

    def result(self):
        """The last thing it says; its errors are the test's."""
        out, err = self.process.communicate(timeout=TIMEOUT)
        if self.process.returncode:
            pytest.fail(err, pytrace=False)
        return json.loads(out.splitlines()[-1])


@pytest.fixture
def start():
    """Starts programs and ends those that a failed test leaves."""
    programs = []

    def start_program(*arguments):
        programs.append(Program(*arguments))
        return programs[-1]

    yield start_program
    for program in programs:
        program.process.kill()
        program.process.communicate()


def either_proxy(site, index, level="bounded"):
    return (site.a, site.b)[index % 2].ports[level]


both_protocols = pytest.mark.parametrize("protocol", [2, 3])
every_level = pytest.mark.parametrize("level", LEVELS)


@both_protocols
def test_read_through_cache(redis_site, start, protocol):
    first = start("read_through", redis_site.a.port, protocol, 20).result()
    second = start("read_through", redis_site.b.port, protocol, 20).result()
    assert (first, second) == (20, 0)


@pytest.mark.parametrize("program", [("setnx_lock",), ("library_lock",)], ids=lambda program: program[0])
@pytest.mark.parametrize("level", ["causal", "linearizable"])
def test_locks(redis_site, start, program, level):
    """What the lock guards is changed by GET and SET: a stale read under the lock loses an update.

    Causal is enough: taking the lock is an upstream reply, and no later read of that session is older.
    """
    assert_nothing_lost(redis_site, start, level, lambda _: program)


def assert_nothing_lost(site, start, level, program_of):
    rounds = 40
    workers = []
    for index in range(4):
        name, *arguments = program_of(index)
        workers.append(start(name, either_proxy(site, index, level), 2 + index % 2, *arguments, rounds))
    assert [worker.result() for worker in workers] == [rounds] * 4
    assert site.server.call("GET", "guarded") == str(4 * rounds).encode()
    assert site.server.call("EXISTS", "lock") == 0


def test_token_lock(redis_site, start):
    assert_nothing_lost(redis_site, start, "linearizable", lambda index: ("token_lock", f"worker{index}"))


@every_level
def test_locks_within_one_proxy_are_safe_at_every_level(redis_site, start, level):
    """Through one proxy everybody reads all that was written through it."""
    rounds = 40
    workers = [start("setnx_lock", redis_site.a.ports[level], 2, rounds) for _ in range(3)]
    assert [worker.result() for worker in workers] == [rounds] * 3
    assert redis_site.server.call("GET", "guarded") == str(3 * rounds).encode()


@both_protocols
@pytest.mark.parametrize("worker", ["polling_worker", "blocking_worker"])
def test_work_queue_between_two_processes(redis_site, start, worker, protocol):
    consumer = start(worker, redis_site.b.port, protocol, "queue")
    producer = start("producer", redis_site.a.port, protocol, "queue", 200)
    assert producer.result() == 200
    assert consumer.result() == list(range(200))


def test_counters_from_eight_processes_lose_nothing(site, start):
    rounds = 150
    processes = [start("counter", either_proxy(site, index), 2 + index % 2, rounds) for index in range(8)]
    given = [value for process in processes for value in process.result()]
    assert sorted(given) == list(range(1, 2 * 8 * rounds + 1))
    assert site.server.call("GET", "balance") == b"0"
    assert site.server.call("HGET", "counts", "field") == str(8 * rounds).encode()


@both_protocols
def test_publisher_and_subscriber_through_different_proxies(redis_site, start, protocol):
    subscriber = start("subscriber", redis_site.a.port, protocol, "news", "sport.*", 100)
    assert subscriber.next() == "ready"
    start("publisher", redis_site.b.port, 5 - protocol, "news,sport.chess", 50).result()
    messages = subscriber.result()
    expected = [f"message {number}" for number in range(50)]
    assert [data for kind, channel, data in messages if (kind, channel) == ("message", "news")] == expected
    assert [data for kind, channel, data in messages if (kind, channel) == ("pmessage", "sport.chess")] == expected


def shared_objects(turn):
    """Changes of one shared object of each type, and what a reader must then see."""
    document = json.dumps({"turn": turn, "tags": ["a", "b"]})
    return [
        (("hset", "hash", "field", turn), ("hget", "hash", "field"), str(turn)),
        (("hset", "hash", "other", turn), ("hgetall", "hash"), {"field": str(turn), "other": str(turn)}),
        (("lpush", "list", turn), ("lrange", "list", 0, 0), [str(turn)]),
        (("lset", "list", 0, -turn), ("lindex", "list", 0), str(-turn)),
        (("sadd", "set", turn), ("sismember", "set", turn), 1),
        (("srem", "set", turn), ("smembers", "set"), []),
        (("zadd", "zset", {"member": turn}), ("zscore", "zset", "member"), float(turn)),
        (("zadd", "zset", {"second": turn + 1}), ("zrange", "zset", 0, -1), ["member", "second"]),
        (("set", "document", document), ("get", "document"), document),
        (("delete", "hash"), ("hgetall", "hash"), {}),
    ]


@both_protocols
@every_level
def test_shared_objects_changed_in_one_process_and_read_in_another(site, start, level, protocol):
    writer = start("executor", site.a.ports[level], protocol)
    reader = start("executor", site.b.ports[level], protocol)
    neighbour = start("executor", site.a.ports[level], 5 - protocol)
    for turn in range(1, 11):
        for change, look, expected in shared_objects(turn):
            reader.order(*look)
            writer.order(*change)
            acked = time.monotonic()
            assert neighbour.order(*look) == expected, "written through the same proxy"
            assert_seen(reader, look, expected, acked, level)


def assert_seen(reader, look, expected, acked, level):
    """Linearizable: at once. Otherwise: by the first read that begins after the bound."""
    begun = time.monotonic()
    while (seen := reader.order(*look)) != expected:
        assert level != "linearizable", f"{look}: saw {seen}, acked was {expected}"
        assert begun < acked + MAX_STALENESS, f"{look}: {seen} is {begun - acked:.3f} s old"
        begun = time.monotonic()
