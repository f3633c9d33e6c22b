"""The programs that make people want a cache, as anyone writes them with redis-py. They know a port and nothing of nearside.

    python programs.py NAME PORT PROTOCOL [ARGUMENT …]

Each reads its orders from its arguments and standard input and prints one JSON value a line.
"""

import json
import sys
import time

import redis

RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end"


def say(value):
    print(json.dumps(value), flush=True)


def orders():
    """Lines of JSON from standard input until its end."""
    return (json.loads(line) for line in sys.stdin)


def read_through(client, keys):
    """GET; on a miss load, SET with a TTL; how many loads a hundred rounds over the keys took."""
    loads = 0
    for _ in range(100):
        for key in range(int(keys)):
            name = f"user:{key}"
            value = client.get(name)
            if value is None:
                loads += 1
                value = f"row {key}"
                client.set(name, value, ex=60)
            assert value == f"row {key}", value
    say(loads)


def setnx_lock(client, rounds):
    """The classic lock: SETNX, EXPIRE, critical section, DELETE. The section is a read-modify-write without protection of its own."""
    for _ in range(int(rounds)):
        while not client.setnx("lock", "mine"):
            time.sleep(0.001)
        client.expire("lock", 30)
        assert 0 < client.ttl("lock") <= 30
        client.set("guarded", int(client.get("guarded") or 0) + 1)
        client.delete("lock")
    say(int(rounds))


def token_lock(client, name, rounds):
    """SET NX PX with a token and a script that releases only one's own lock."""
    release = client.register_script(RELEASE)
    for turn in range(int(rounds)):
        token = f"{name} {turn}"
        while not client.set("lock", token, nx=True, px=30_000):
            time.sleep(0.001)
        assert client.get("lock") == token
        client.set("guarded", int(client.get("guarded") or 0) + 1)
        assert release(keys=["lock"], args=[token]) == 1
    say(int(rounds))


def library_lock(client, rounds):
    """redis-py's own Lock."""
    for _ in range(int(rounds)):
        with client.lock("lock", timeout=30, sleep=0.001):
            client.set("guarded", int(client.get("guarded") or 0) + 1)
    say(int(rounds))


def producer(client, queue, count):
    for job in range(int(count)):
        client.rpush(queue, json.dumps({"job": job}))
    client.rpush(queue, json.dumps({"job": None}))
    say(int(count))


def polling_worker(client, queue):
    """LPOP until the last job; the jobs in the order they came."""
    done = []
    while True:
        item = client.lpop(queue)
        if item is None:
            time.sleep(0.001)
        elif (job := json.loads(item)["job"]) is None:
            return say(done)
        else:
            done.append(job)


def blocking_worker(client, queue):
    done = []
    while (job := json.loads(client.blpop(queue, timeout=10)[1])["job"]) is not None:
        done.append(job)
    say(done)


def counter(client, rounds):
    """INCR three times, DECR once; the values it was given by INCR."""
    given = []
    for _ in range(int(rounds)):
        given += [client.incr("counter"), client.incr("counter")]
        client.decr("balance")
        client.incr("balance")
        client.hincrby("counts", "field", 1)
    say(given)


def subscriber(client, channel, pattern, count):
    """Says "ready" when subscribed to both, then the messages."""
    pubsub = client.pubsub()
    pubsub.subscribe(channel)
    pubsub.psubscribe(pattern)
    confirmed, messages = 0, []
    while len(messages) < int(count):
        message = pubsub.get_message(timeout=10)
        assert message, "nothing came for 10 s"
        if message["type"] in ("subscribe", "psubscribe"):
            confirmed += 1
            if confirmed == 2:
                say("ready")
        else:
            messages.append([message["type"], message["channel"], message["data"]])
    pubsub.close()
    say(messages)


def publisher(client, channels, count):
    for number in range(int(count)):
        for channel in channels.split(","):
            client.publish(channel, f"message {number}")
    say("published")


def executor(client):
    """Carries out the orders it is given, each a method of the client and its arguments, and says what came."""
    for method, *arguments in orders():
        say(plain(getattr(client, method)(*arguments)))


def plain(value):
    """As JSON can say it."""
    if isinstance(value, set):
        return sorted(value)
    return value


def main(name, port, protocol, *arguments):
    client = redis.Redis(port=int(port), protocol=int(protocol), decode_responses=True)
    globals()[name](client, *arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
