"""Mixed clients connect, work, die in the middle of a command and come back; at the end nothing of them may be left.

By itself (scripts/soak) it runs for as long as is asked for and prints a table; test_soak.py runs a small one.
"""

import argparse
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from processes import Proxy, Server, wait_until
from wire import Connection, ReplyError, encode

WORKERS = 16
IDLE = 16
LIFE = 40  # commands of one connection's life, at the most


class Soak:
    """One server, one proxy, and threads that ill-treat it."""

    def __init__(self, folder, kind="redis", settings=()):
        self.server = Server(folder, kind)
        self.proxy = Proxy(folder, self.server.port, settings={"max_memory": "32mb", **dict(settings)})
        self.counts = Counter()
        self.stop = threading.Event()

    def run(self, seconds, seed):
        threads = [threading.Thread(target=self._worker, args=(seed + i,)) for i in range(WORKERS)]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self.stop.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a client hangs"

    def _worker(self, seed):
        rng = random.Random(seed)
        while not self.stop.is_set():
            life = rng.choice([self._reads_and_writes, self._reads_and_writes, self._transaction, self._script, self._blocks, self._subscribes,
                               self._tracks, self._monitors, self._dies_in_a_command, self._pipeline, self._bad])
            try:
                with Connection(self.proxy.port, protocol=rng.choice([2, 3]), db=rng.choice([0, 0, 1]), timeout=20) as conn:
                    life(conn, rng)
                self.counts[life.__name__.strip("_")] += 1
            except ReplyError as error:
                self.counts[re.sub(r"127\.\S+", "…", f"error: {error}")[:58]] += 1
            except TimeoutError:
                self.counts["TIMEOUT"] += 1
            except ConnectionError as error:
                self.counts[f"closed: {type(error).__name__} in {life.__name__.strip('_')}"] += 1

    @staticmethod
    def _key(rng):
        return f"key {rng.randrange(5000)}"

    def _reads_and_writes(self, conn, rng):
        for _ in range(rng.randrange(LIFE)):
            if rng.random() < 0.7:
                conn.call("GET", self._key(rng))
            else:
                conn.call("SET", self._key(rng), "x" * rng.choice([8, 64, 3000]), "PX", rng.choice([50, 5000]))
            self.counts["commands"] += 1

    def _transaction(self, conn, rng):
        for _ in range(rng.randrange(5)):
            conn.call("WATCH", self._key(rng))
            conn.call("MULTI")
            conn.call("SET", self._key(rng), 1)
            if rng.random() < 0.2:
                return  # gone without EXEC
            conn.call("EXEC")

    def _script(self, conn, rng):
        for _ in range(rng.randrange(10)):
            conn.call("EVAL", "redis.call('set', KEYS[1], ARGV[1]) return redis.call('get', KEYS[1])", 1, self._key(rng), "y")

    def _blocks(self, conn, rng):
        if rng.random() < 0.5:
            conn.send("BLPOP", "nothing", 5)  # and gone
            time.sleep(rng.random() / 50)
        else:
            conn.call("BLPOP", "nothing", 0.02)

    def _subscribes(self, conn, rng):
        channel = f"news {rng.randrange(20)}"
        conn.call("SUBSCRIBE", channel)
        with Connection(self.proxy.port) as other:
            other.call("PUBLISH", channel, "x" * 100)
        conn.read()

    def _tracks(self, conn, rng):
        conn.call("CLIENT", "TRACKING", "ON")
        for _ in range(rng.randrange(10)):
            conn.send("GET", self._key(rng))
            conn.read()

    def _monitors(self, conn, rng):
        conn.call("MONITOR")
        time.sleep(rng.random() / 20)

    def _dies_in_a_command(self, conn, rng):
        whole = encode("SET", self._key(rng), "z" * rng.choice([10, 70_000])) + encode("GET", self._key(rng))
        conn.send_raw(whole[:rng.randrange(1, len(whole))])

    def _pipeline(self, conn, rng):
        commands = [("GET" if rng.random() < 0.8 else "INCR", f"n{rng.randrange(100)}") for _ in range(rng.randrange(1, 200))]
        if rng.random() < 0.3:
            conn.send_raw(b"".join(encode(*words) for words in commands))  # and does not wait for the replies
        else:
            conn.pipeline(commands)

    def _bad(self, conn, rng):
        conn.send_raw(rng.choice([b"*1\r\n$-5\r\n", b"*-7\r\n\r\n", b"GET \"x\r\n", b"\x00\xff\r\n", b"*1000000000\r\n"]))

    def measure(self):
        """What must be as it was."""
        stats = self.proxy.stats()
        # The connection that asked is one of the files until the proxy has seen its end.
        time.sleep(0.1)
        connections, others = self.proxy.open_files(self.server.port)
        return {
            "connections": connections,
            "other files": others,
            "resident MB": self.proxy.resident_bytes() / 1e6,
            "lanes": stats["lanes"],
            "dedicated": stats["dedicated"],
            "sessions": stats["clients"],
            "threads": len(list(Path(f"/proc/{self.proxy.process.pid}/task").iterdir())),
        }

    def settled(self):
        """What is there once every client is gone and what they had is closed: of a few looks, that with the fewest files."""
        wait_until(lambda: self.proxy.stats()["clients"] <= 1, "all sessions have ended", timeout=30)
        looks = []
        for _ in range(4):
            time.sleep(0.5)
            looks.append(self.measure())
        return min(looks, key=lambda look: (look["other files"], look["connections"]))

    def leftovers(self, before, after, growth_mb):
        """What is there that should not be; empty if all is well."""
        kept = after["dedicated"] - before["dedicated"]
        extra_files = after["other files"] - before["other files"]
        found = []
        if after["sessions"] > before["sessions"]:
            found.append("sessions")
        # idle ones come and go, a few to each user, protocol, database and thread
        if kept > IDLE or after["lanes"] > before["lanes"]:
            found.append(f"{kept} dedicated connections and {after['lanes'] - before['lanes']} lanes more")
        # a lane at rest has no connection, so their number is no difference of the two above
        if after["connections"] > before["connections"] + IDLE:
            found.append(f"{after['connections'] - before['connections']} connections to the server more")
        if extra_files > 0:
            found.append(f"{extra_files} open files that are no connection to the server")
        if after["resident MB"] > before["resident MB"] + growth_mb:
            found.append("memory")
        if self.counts["TIMEOUT"]:
            found.append("clients that got no answer")
        return found + self.proxy.panics()

    def close(self):
        self.proxy.kill()
        self.server.kill()


def soak(folder, seconds, seed, kind="redis", warm=5, report=print):
    """Warms up, measures, runs, measures again. What is left over."""
    lab = Soak(folder, kind)
    try:
        # pools and allocator reach their size first
        lab.run(warm, seed)
        lab.stop.clear()
        before = lab.settled()
        lab.counts.clear()
        lab.run(seconds, seed + 1000)
        after = lab.settled()
        report(f"{'':<24}{'before':>12}{'after':>12}")
        for name, value in before.items():
            report(f"{name:<24}{value:>12.6g}{after[name]:>12.6g}")
        for name, count in sorted(lab.counts.items()):
            report(f"{name:<60}{count:>10}")
        return lab.leftovers(before, after, growth_mb=max(16, 0.15 * before["resident MB"]))
    finally:
        lab.close()


def main():
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long [60]")
    parser.add_argument("--server", choices=["redis", "valkey"], default="redis")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        left = soak(Path(folder), args.seconds, args.seed, args.server, warm=min(30, args.seconds))
    print("left over: " + ("nothing" if not left else "; ".join(left)))
    sys.exit(bool(left))


if __name__ == "__main__":
    main()
