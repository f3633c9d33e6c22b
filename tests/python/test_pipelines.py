"""Pipelines of hits, misses and writes: one client alone reads what it would read from Redis, in the order in which it asked."""

import random
import threading

import pytest

from wire import Connection

pytestmark = pytest.mark.needs_proxy

KEYS = [f"p{n}" for n in range(40)]
#: Of values: what is copied, what fills a buffer, what goes by reference.
SIZES = [3, 64, 1100, 5000, 17_000]
WRITERS = 3


def value(rng, mark):
    return b"%d:" % mark + b"x" * rng.choice(SIZES)


def commands_of(rng, model, length, mark):
    """So many commands, and what Redis answers if nobody else writes. The model is as they leave it."""
    commands, expected = [], []
    for n in range(length):
        key, dice = rng.choice(KEYS), rng.random()
        if dice < 0.1:
            model[key] = value(rng, mark * length + n)
            commands.append(("SET", key, model[key]))
            expected.append(b"OK")
        elif dice < 0.13:
            commands.append(("DEL", key))
            expected.append(int(model.pop(key, None) is not None))
        elif dice < 0.17:
            keys = rng.sample(KEYS, 3)
            commands.append(("MGET", *keys))
            expected.append([model.get(k) for k in keys])
        elif dice < 0.175:
            # a write of a key that is not declared: no hit may overtake it
            model[key] = value(rng, mark * length + n)
            commands.append(("EVAL", "return redis.call('SET', ARGV[1], ARGV[2])", 0, key, model[key]))
            expected.append(b"OK")
        elif dice < 0.18:
            model.clear()
            commands.append(("FLUSHDB",))
            expected.append(b"OK")
        else:
            commands.append(("GET", key))
            expected.append(model.get(key))
    return commands, expected


@pytest.mark.parametrize("level", ["bounded", "causal", "linearizable"])
def test_a_pipeline_is_answered_in_order_and_reads_its_own_writes(site, level, seed):
    rng, model = random.Random(seed), {}
    with Connection(site.a.port) as conn:
        conn.call("NEARSIDE", "CONSISTENCY", level)
        hits = site.a.stats()["hits"]
        for round_ in range(150):
            commands, expected = commands_of(rng, model, rng.choice([5, 50, 200]), round_)
            # all of it is cached, for most of the pipelines
            conn.pipeline([("GET", key) for key in KEYS])
            assert conn.pipeline(commands) == expected, f"pipeline {round_}"
        assert site.a.stats()["hits"] - hits > 2000


def test_a_pipeline_never_goes_back_in_time(site, seed):
    """Others write behind the proxy's back meanwhile: of each key every reply is at least as new as the one before it."""
    done = threading.Event()

    def write(number):
        rng, versions = random.Random(seed + number), dict.fromkeys(KEYS[number::WRITERS], 0)
        with Connection(site.server.port) as conn:
            while not done.is_set():
                key = rng.choice(list(versions))
                versions[key] += 1
                conn.call("SET", key, versions[key])

    writers = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    try:
        rng, newest = random.Random(seed), dict.fromkeys(KEYS, 0)
        with Connection(site.a.port) as conn:
            for _ in range(400):
                keys = [rng.choice(KEYS) for _ in range(200)]
                commands = [("SET", f"own{n}", n) if n % 20 == 0 else ("GET", key) for n, key in enumerate(keys)]
                for key, command, reply in zip(keys, commands, conn.pipeline(commands), strict=True):
                    if command[0] == "GET" and reply is not None:
                        assert int(reply) >= newest[key], f"{key} went back from {newest[key]} to {reply}"
                        newest[key] = int(reply)
    finally:
        done.set()
        for writer in writers:
            writer.join()
    assert min(newest.values()) > 0
