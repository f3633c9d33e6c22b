"""redis-py at its work, blocking and with asyncio: python main.py PORT OTHER_PORT PROTOCOL"""

import asyncio
import sys
import threading
import time

import redis
import redis.asyncio
from redis.backoff import ConstantBackoff
from redis.retry import Retry

PORT, OTHER_PORT, PROTOCOL = map(int, sys.argv[1:])


def connect(port=PORT, **options):
    return redis.Redis(port=port, protocol=PROTOCOL, decode_responses=True, **options)


def say(what, *values):
    print(f"{what}:", *(ordered(value) for value in values))


def ordered(value):
    return sorted(value) if isinstance(value, set) else value


def attempt(call, *arguments, **options):
    try:
        return call(*arguments, **options)
    except (redis.RedisError, redis.exceptions.LockError) as error:
        return f"{type(error).__name__}: {error}"


def types(client):
    say("strings", client.set("s", "one", ex=100), client.get("s"), client.get("s"), client.ttl("s"), client.get("missing"),
        client.set("s", "two", nx=True), client.set("s", "two", get=True), client.getdel("s"), client.get("s"))
    say("numbers", client.incr("n"), client.incrbyfloat("n", 0.5), client.get("n"), client.mset({"a": 1, "b": 2}), client.mget("a", "none", "b"))
    say("hash", client.hset("h", mapping={"f": "v", "g": "w"}), client.hgetall("h"), client.hgetall("h"), client.hmget("h", "f", "none"),
        client.hdel("h", "f"), client.hgetall("h"))
    say("list", client.rpush("l", *"abc"), client.lrange("l", 0, -1), client.lpop("l"), client.lrange("l", 0, -1))
    say("set", client.sadd("t", *"xyz"), client.smembers("t"), client.srem("t", "x"), client.smembers("t"), client.smismember("t", ["x", "y"]))
    say("sorted", client.zadd("z", {"a": 1.5, "b": 2}), client.zrange("z", 0, -1, withscores=True), client.zincrby("z", 2, "a"),
        client.zrange("z", 0, -1, withscores=True), client.zscore("z", "a"))
    say("stream", client.xadd("x", {"f": "v"}, id="1-1"), client.xrange("x"), client.xgroup_create("x", "group", "0"),
        client.xreadgroup("group", "me", {"x": ">"}), client.xpending("x", "group"), client.xack("x", "group", "1-1"))
    say("geo", client.geoadd("places", (13.36, 38.11, "Palermo", 15.08, 37.5, "Catania")), client.geodist("places", "Palermo", "Catania", "km"))
    say("errors", attempt(client.get, "h"), attempt(client.execute_command, "NOSUCH", "x"), attempt(client.execute_command, "GET"))


def pipelines(client):
    pipe = client.pipeline(transaction=False)
    for i in range(500):
        pipe.set(f"p{i}", i).get(f"p{i}")
    say("pipeline", pipe.execute()[-4:])
    say("errors in it", client.pipeline(transaction=False).get("h").get("p1").execute(raise_on_error=False))
    say("transaction", client.pipeline().set("m", 1).incr("m").hset("mh", "a", 1).hgetall("mh").execute())
    say("errors in it", client.pipeline().lpush("m", "x").get("m").execute(raise_on_error=False))

    tries = []

    def increment(pipe):
        value = int(pipe.get("m"))
        tries.append(value)
        if len(tries) < 3:
            connect(OTHER_PORT).set("m", value * 10)
        pipe.multi()
        pipe.set("m", value + 1)

    say("watch", client.transaction(increment, "m"), tries, client.get("m"))


def locks(client):
    lock = client.lock("lock", timeout=20)
    with lock:
        rival = connect(OTHER_PORT).lock("lock", timeout=20, blocking_timeout=0.1)
        say("held", lock.locked(), lock.owned(), rival.acquire(), lock.extend(10), lock.reacquire())
        say("not mine", attempt(rival.release))
    say("free", lock.locked(), rival.acquire(), rival.release())
    short = client.lock("short", timeout=0.05)
    short.acquire()
    time.sleep(0.1)
    say("expired", attempt(short.release))

    def work(port):
        mine = connect(port)
        for _ in range(10):
            with mine.lock("counting", timeout=20, sleep=0.002):
                mine.incr("under lock")

    threads = [threading.Thread(target=work, args=(PORT,)) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    say("counted", client.get("under lock"))


def subscriptions(client):
    other = connect(OTHER_PORT)
    pubsub = client.pubsub()
    pubsub.subscribe("news")
    pubsub.psubscribe(**{"sport.*": lambda message: say("handler", message)})
    say("confirmed", pubsub.get_message(timeout=5), pubsub.get_message(timeout=5))
    say("receivers", other.publish("news", "hello"), other.publish("sport.chess", "mate"), other.publish("none", ""))
    say("heard", pubsub.get_message(timeout=5), pubsub.get_message(timeout=5))
    say("numbers", client.pubsub_numsub("news", "none"), client.pubsub_numpat(), client.pubsub_channels("n*"))
    pubsub.ping("still there")
    say("pong", pubsub.get_message(timeout=5))
    pubsub.unsubscribe()
    pubsub.punsubscribe()
    say("gone", pubsub.get_message(timeout=5), pubsub.get_message(timeout=5), other.publish("news", "nobody"))
    pubsub.close()


def blocking(client):
    threading.Timer(0.1, lambda: connect(OTHER_PORT).rpush("queue", "job")).start()
    say("blpop", client.blpop(["none", "queue"], timeout=5), client.blpop("none", timeout=0.1))
    threading.Timer(0.1, lambda: connect(OTHER_PORT).xadd("events", {"type": "click"}, id="5-5")).start()
    say("xread", client.xread({"events": "$"}, block=5000))


def scripts(client):
    client.script_flush()
    add = client.register_script("return {redis.call('incrby', KEYS[1], ARGV[1]), 'x', false}")
    say("script", add(keys=["counted"], args=[3]), add(keys=["counted"], args=[4]), client.get("counted"))
    say("noscript", attempt(client.evalsha, "0" * 40, 0))
    pipe = client.pipeline()
    add(keys=["counted"], args=[1], client=pipe)
    say("in a transaction", pipe.get("counted").execute())
    say("error", attempt(client.eval, "return redis.error_reply('MINE of my own')", 0))
    library = "#!lua name=mine\nredis.register_function('twice', function(k, a) return a[1] * 2 end)"
    say("function", client.function_load(library, replace=True), client.fcall("twice", 0, 21), client.function_delete("mine"))


def scans(client):
    keys = sorted(set(client.scan_iter("p*", count=50)))
    client.hset("big hash", mapping={f"f{i}": i for i in range(1000)})
    say("scan", len(keys), keys[:5], len(dict(client.hscan_iter("big hash"))), client.keys("zz*"), client.dbsize())


def big(client):
    value = "nearside" * 625_000
    say("big", client.set("big", value), client.get("big") == value, client.get("big") == value, client.strlen("big"),
        connect(OTHER_PORT).get("big") == value)


def reconnects(client):
    victim = connect(db=2, client_name="victim", single_connection_client=True, retry=Retry(ConstantBackoff(0.02), 5))
    before = victim.client_id()
    victim.set("here", "db 2")
    say("killed", client.client_kill_filter(_id=str(before)))
    say("back", victim.get("here"), victim.client_getname(), victim.client_id() != before, victim.client_info()["db"])


async def with_asyncio():
    options = {"protocol": PROTOCOL, "decode_responses": True}
    async with redis.asyncio.Redis(port=PORT, **options) as client, redis.asyncio.Redis(port=OTHER_PORT, **options) as other:
        values = await asyncio.gather(*(client.incr(f"a{i % 7}") for i in range(60)))
        say("gathered", sorted(values)[-3:])
        async with client.pipeline() as pipe:
            say("async transaction", await pipe.set("am", 1).incr("am").get("am").execute())
            await pipe.watch("am")
            await pipe.get("am")
            await other.set("am", "by another")
            pipe.multi()
            pipe.set("am", "mine")
            try:
                say("async conflict", await pipe.execute())
            except redis.WatchError as error:
                say("async conflict", error)
        async with client.lock("async lock", timeout=10):
            say("async rival", await other.lock("async lock", blocking=False).acquire())
        async with client.pubsub() as pubsub:
            await pubsub.subscribe("async news")
            await pubsub.get_message(timeout=5)
            await other.publish("async news", "hello")
            say("async heard", await pubsub.get_message(timeout=5))
        waiting = asyncio.create_task(client.blpop("async queue", timeout=5))
        await asyncio.sleep(0.1)
        await other.rpush("async queue", "job")
        say("async blpop", await waiting)
        # a cancelled wait must take nothing with it
        cancelled = asyncio.create_task(client.blpop("async queue", timeout=5))
        await asyncio.sleep(0.1)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        await asyncio.sleep(0.1)
        await other.rpush("async queue", "kept")
        say("after a cancelled wait", await client.lpop("async queue"), await client.get("am"))


def main():
    with connect(client_name="worker") as client:
        for step in (types, pipelines, locks, subscriptions, blocking, scripts, scans, big, reconnects):
            step(client)
    asyncio.run(with_asyncio())
    print("done")


main()
