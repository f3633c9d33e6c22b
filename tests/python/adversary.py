"""An adversary: loads that a hostile or broken client can make, one after the other and then all at once.

Each attack has a proxy of its own. While it runs, a well-behaved client reads and writes; its slowest answers are the price that others
pay. A row of the table holds the attack's figures; a figure beyond its bound fails the run. At the end the mixture runs against one
proxy, after which memory, open files, lanes and dedicated connections must be what they were.

By itself (scripts/adversary) the counts are those of a real attack; test_adversary.py runs a small one.
"""

import argparse
import contextlib
import random
import resource
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from processes import Proxy, Server, wait_until
from soak import Soak
from wire import Connection, ReplyError, encode

MB = 1_000_000
USER_PASSWORD = "of the user"
BIG = 1 << 20  # bytes of a value that is expensive to hold
SETTINGS = {
    "max_memory": "32mb",
    "maxmemory_clients": "64mb",
    "lane_idle_timeout": "1s",
    "dedicated_idle_timeout": "1s",
    "max_dedicated": 512,
    "audit_one_in": 0,
}


@dataclass
class Bounds:
    """What an attack may cost at the most. The defaults are for those that should cost next to nothing."""

    grown_mb: float = 48  # resident memory at its highest, beside what the proxy had before
    victim_p99_ms: float = 250
    victim_errors: int = 0
    upstream_connections: int = 64


@dataclass
class Row:
    """The figures of one attack."""

    name: str
    count: int = 0
    seconds: float = 0
    grown_mb: float = 0
    files: int = 0
    upstream_connections: int = 0
    victim_answers: int = 0
    victim_p99_ms: float = 0
    victim_worst_ms: float = 0
    victim_errors: int = 0
    beyond: list = field(default_factory=list)

    HEAD = f"{'attack':<26}{'count':>10}{'s':>7}{'RSS +MB':>9}{'files':>7}{'upstream':>9}{'p99 ms':>8}{'worst':>8}{'errors':>7}"

    def __str__(self):
        figures = (f"{self.name:<26}{self.count:>10}{self.seconds:>7.1f}{self.grown_mb:>9.1f}{self.files:>7}{self.upstream_connections:>9}"
                   f"{self.victim_p99_ms:>8.1f}{self.victim_worst_ms:>8.1f}{self.victim_errors:>7}")
        return figures + "".join(f"\n  BEYOND ITS BOUND: {what}" for what in self.beyond)

    def judge(self, bounds, timed):
        """Notes every figure that is larger than its bound, and a victim that was not answered at all. CI's machine is busy with other
        tests, so times are judged by hand alone."""
        for name, bound in vars(bounds).items():
            if (timed or not name.endswith("_ms")) and getattr(self, name) > bound:
                self.beyond.append(f"{name} {getattr(self, name):.4g} > {bound:g}")
        if not self.victim_answers:
            self.beyond.append("the well-behaved client was not answered once")


class Victim:
    """A well-behaved client: a SET and two GETs at a time, each answer's time noted."""

    def __init__(self, port):
        self.port = port
        self.times = []
        self.errors = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        with Connection(self.port, timeout=30) as conn:
            for n in range(1 << 60):
                if self.stop.is_set():
                    return
                for words in (("SET", f"victim {n % 50}", n), ("GET", f"victim {n % 50}"), ("GET", "victim 0")):
                    self._ask(conn, words, n)
                time.sleep(0.002)

    def _ask(self, conn, words, n):
        began = time.perf_counter()
        try:
            reply = conn.call(*words)
            if words[1] == f"victim {n % 50}" and words[0] == "GET" and reply != b"%d" % n:
                self.errors.append(f"{words} answered {reply!r} instead of {n}")
        except (ReplyError, OSError) as error:
            self.errors.append(str(error))
            if isinstance(error, OSError):
                self.stop.set()
        self.times.append(time.perf_counter() - began)

    def end(self):
        self.stop.set()
        self.thread.join(60)
        if self.thread.is_alive():
            self.errors.append("never answered")


class Arena:
    """One server, one proxy in front, and sockets that stay open until the attack is over."""

    def __init__(self, folder, kind, password=None):
        options = ("--requirepass", password) if password else ()
        self.password = password
        self.server = Server(folder, kind, options=options)
        settings = {**SETTINGS, "maxclients": 20_000}
        self.proxy = Proxy(folder, self.server.port, settings=settings, wait=not password)
        if password:
            # A proxy that only listens has not begun to work: its memory then is no measure of an idle one.
            wait_until(lambda: _answers_before_login(self.proxy.port), "the proxy answers")
        self.kept = []

    def open(self):
        """A raw socket to the proxy that stays open until the arena closes."""
        sock = socket.create_connection(("127.0.0.1", self.proxy.port), 30)
        self.kept.append(sock)
        return sock

    def admin(self):
        conn = Connection(self.server.port)
        if self.password:
            conn.call("AUTH", self.password)
        return conn

    def upstream_connections(self):
        with self.admin() as conn:
            return sum(b" nearside" in line or b"=nearside" in line for line in conn.call("CLIENT", "LIST").splitlines())

    def close(self):
        for sock in self.kept:
            sock.close()
        self.proxy.kill()
        self.server.kill()


# --- the attacks: each gets the arena and how many, and returns how many there were ---


def idle_connections(arena, count):
    """Connections that say PING once and then nothing."""
    for _ in range(count):
        arena.open().sendall(encode("PING"))
    return count


def connection_churn(arena, count):
    """Connections that come, ask and go, some of them in the middle of a request."""
    for n in range(count):
        with socket.create_connection(("127.0.0.1", arena.proxy.port), 30) as sock:
            sock.sendall(encode("GET", f"key {n % 1000}")[: 10 if n % 3 == 0 else None])
            if n % 3 == 1:
                sock.recv(100)
    return count


def half_requests(arena, count):
    """Requests of which the end never comes."""
    for n in range(count):
        arena.open().sendall(b"*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$100000\r\n" + b"x" * (n % 4000))
    return count


def many_arguments(arena, count):
    """Idle connections whose last command had 20,000 arguments."""
    request = encode("EXISTS", *["k"] * 20_000)
    for _ in range(count):
        sock = arena.open()
        sock.sendall(request)
        sock.recv(100)
    return count


def slow_readers(arena, count):
    """Clients that ask for large replies and read none."""
    with arena.admin() as conn:
        conn.call("SET", "big", "x" * BIG)
    for _ in range(count):
        arena.open().sendall(encode("GET", "big") * 8)
    time.sleep(2)
    return count


def slow_writers(arena, count):
    """Large values of which all but the last byte comes."""
    whole = encode("SET", "big", "x" * BIG)[:-3]
    for _ in range(count):
        sock = arena.open()
        sock.settimeout(5)
        # closed for what it holds: the bound at work
        with contextlib.suppress(OSError):
            sock.sendall(whole)
    return count


def slow_subscribers(arena, count):
    """Subscribers that read nothing of what is published."""
    for _ in range(count):
        arena.open().sendall(encode("SUBSCRIBE", "flood"))
    time.sleep(1)
    with arena.admin() as conn:
        for _ in range(20):
            conn.call("PUBLISH", "flood", "x" * BIG)
    return count


def blocked_pops(arena, count):
    """Clients that wait for a list element that never comes, more than there are dedicated connections."""
    for _ in range(count):
        arena.open().sendall(encode("BLPOP", "never", 0))
    time.sleep(1)
    return count


def idle_transactions(arena, count):
    """Clients that begin a transaction and then nothing."""
    for _ in range(count):
        arena.open().sendall(encode("MULTI"))
    time.sleep(1)
    return count


def subscriptions(arena, count):
    """One client with very many channels."""
    sock = arena.open()
    for first in range(0, count, 1000):
        sock.sendall(encode("SUBSCRIBE", *[f"channel {n}" for n in range(first, first + 1000)]))
        got = 0
        while got < 1000:
            got += sock.recv(1 << 20).count(b"subscribe\r\n")
    return count


def databases(arena, count):
    """Connections that each choose one of the databases and read there."""
    for n in range(count):
        with Connection(arena.proxy.port) as conn:
            conn.pipeline([("SELECT", n % 16), ("GET", "k"), ("GET", "k")])
    return count


def users(arena, count):
    """As many users as there are connections, each logging in once."""
    with arena.admin() as conn:
        for first in range(0, count, 500):
            conn.pipeline([("ACL", "SETUSER", f"u{n}", "on", ">" + USER_PASSWORD, "~*", "+@all")
                           for n in range(first, min(first + 500, count))])
    for n in range(count):
        with Connection(arena.proxy.port) as conn:
            conn.pipeline([("AUTH", f"u{n}", USER_PASSWORD), ("GET", "k"), ("GET", "k")])
    return count


def any_password(arena, count):
    """Logins as `default`, for which any password is right, with another one each time."""
    for n in range(count):
        with Connection(arena.proxy.port) as conn:
            conn.pipeline([("AUTH", "default", f"password {n}"), ("GET", "k")])
    return count


def guessed_passwords(arena, count):
    """Wrong passwords. Guesses are slowed, so the guesser gives up after a while."""
    until = time.monotonic() + 10
    for n in range(count):
        with Connection(arena.proxy.port) as conn:
            conn.send("AUTH", "default", f"guess {n}")
            conn.sock.settimeout(max(0.01, until - time.monotonic()))
            try:
                conn.read()
            except TimeoutError:
                return n
        if time.monotonic() > until:
            return n
    return count


def huge_before_login(arena, count):
    """What a client sends that has not logged in: many arguments, and long ones."""
    for n in range(count):
        sock = arena.open()
        sock.settimeout(5)
        request = b"*1000000\r\n" + b"$1\r\nx\r\n" * 100_000 if n % 2 else b"*2\r\n$4\r\nAUTH\r\n$100000000\r\n" + b"x" * BIG
        # closed, as the server does
        with contextlib.suppress(OSError):
            sock.sendall(request)
    return count


def random_commands(arena, count):
    """Names that no server knows, never the same twice."""
    with Connection(arena.proxy.port) as conn:
        for first in range(0, count, 100):
            conn.pipeline([(f"nosuch{n}", "a") for n in range(first, first + 100)])
    return count


def cold_keys(arena, count):
    """Reads of keys that nobody reads again."""
    with Connection(arena.proxy.port) as conn:
        for first in range(0, count, 1000):
            conn.pipeline([("GET", f"cold {n}") for n in range(first, first + 1000)])
    return count


def deep_pipelines(arena, count):
    """Clients that write a whole pipeline before they read, and then do not read."""
    request = encode("GET", "victim 0") * 1000
    for _ in range(count):
        sock = arena.open()
        sock.settimeout(2)
        try:
            for _ in range(100):
                sock.sendall(request)
        except OSError:
            pass  # no more is taken, or the client was closed: either is a bound
    return count


CLIENTS_MEMORY = Bounds(grown_mb=64 + 48, victim_p99_ms=500)
DEDICATED = Bounds(upstream_connections=512 + 64, victim_p99_ms=500)
# name, attack, how many by hand, how many in CI, bounds, and whether the server wants a password
ATTACKS = [
    (idle_connections, 8000, 500, Bounds(grown_mb=64), False),
    (connection_churn, 100_000, 2000, Bounds(), False),
    (half_requests, 4000, 300, Bounds(grown_mb=64), False),
    (many_arguments, 500, 50, Bounds(grown_mb=8), False),
    (slow_readers, 300, 40, CLIENTS_MEMORY, False),
    (slow_writers, 300, 80, CLIENTS_MEMORY, False),
    (slow_subscribers, 40, 7, CLIENTS_MEMORY, False),
    (blocked_pops, 1000, 600, DEDICATED, False),
    (idle_transactions, 1000, 600, DEDICATED, False),
    (subscriptions, 1_000_000, 20_000, Bounds(grown_mb=64), False),
    (databases, 10_000, 300, Bounds(), False),
    (users, 3000, 200, Bounds(upstream_connections=512 + 64), False),
    (any_password, 3000, 300, Bounds(), False),
    (guessed_passwords, 3000, 300, Bounds(), True),
    (huge_before_login, 200, 40, Bounds(grown_mb=16), True),
    (random_commands, 1_000_000, 5000, Bounds(), False),
    (cold_keys, 1_000_000, 20_000, Bounds(grown_mb=64), False),
    (deep_pipelines, 100, 10, CLIENTS_MEMORY, False),
]
# Attacks of which one client alone needs room for a moment, on each of the proxy's threads. That room is no measure of what is kept
# for each client, so memory is counted from where a few of them have been.
WARMED_UP_BY = {many_arguments: 20}


def attacked(folder, kind, attack, count, bounds, with_password, timed=True):
    """Runs one attack and returns its row."""
    arena = Arena(folder, kind, "of the server" if with_password else None)
    row = Row(attack.__name__.replace("_", " "))
    try:
        if attack in WARMED_UP_BY:
            attack(arena, WARMED_UP_BY[attack])
        idle = arena.proxy.resident_bytes()
        # nobody is served before login there: the victim is only asked whether it is answered at all
        victim = None if with_password else Victim(arena.proxy.port)
        began = time.monotonic()
        row.count = attack(arena, count)
        row.seconds = time.monotonic() - began
        _measure(row, arena, idle)
        if victim:
            time.sleep(0.3)
            victim.end()
            _of_victim(row, victim)
        else:
            row.victim_answers = _answers_before_login(arena.proxy.port)
        row.judge(bounds, timed)
        row.beyond += arena.proxy.panics()
        return row
    finally:
        arena.close()


def _measure(row, arena, idle):
    row.grown_mb = (arena.proxy.peak_bytes() - idle) / MB
    row.files = arena.proxy.count_files()
    row.upstream_connections = arena.upstream_connections()


def _of_victim(row, victim):
    times = sorted(victim.times)
    row.victim_answers = len(times) - len(victim.errors)
    row.victim_errors = len(victim.errors)
    row.beyond += victim.errors[:3]
    if times:
        row.victim_p99_ms = times[int(len(times) * 0.99)] * 1000
        row.victim_worst_ms = times[-1] * 1000


def _answers_before_login(port):
    try:
        with Connection(port) as conn:
            conn.send("PING")
            return int(isinstance(conn.read(), ReplyError))
    except OSError:
        return 0


class Mixture(Soak):
    """All attacks at once, in small, and again and again, beside the soak's ordinary clients."""

    SMALL = (half_requests, many_arguments, blocked_pops, idle_transactions, databases, users, any_password, random_commands,
             connection_churn)

    def __init__(self, folder, kind):
        super().__init__(folder, kind, settings={**SETTINGS, "maxclients": 20_000})

    def hostile(self, rng):
        """One small attack by a client that lets go of everything at its end."""
        attack = rng.choice(self.SMALL)
        arena = _Borrowed(self)
        try:
            attack(arena, 20)
            self.counts[f"attack: {attack.__name__}"] += 1
        except (OSError, ReplyError) as error:
            self.counts[f"attack: {attack.__name__}: {type(error).__name__}"] += 1
        finally:
            arena.close()

    def _worker(self, seed):
        if seed % 4:
            return super()._worker(seed)
        rng = random.Random(seed)
        while not self.stop.is_set():
            self.hostile(rng)
        return None


class _Borrowed(Arena):
    """The mixture's own server and proxy, with sockets that one attack keeps."""

    def __init__(self, soak):
        self.server, self.proxy, self.password, self.kept = soak.server, soak.proxy, None, []

    def close(self):
        for sock in self.kept:
            sock.close()


def mixture(folder, kind, seconds, seed, report):
    """What is left over after the mixture; empty if all is as it was."""
    lab = Mixture(folder, kind)
    try:
        lab.run(min(20, seconds), seed)
        lab.stop.clear()
        before = lab.settled()
        lab.counts.clear()
        lab.run(seconds, seed + 1000)
        # lanes and idle dedicated connections end by time
        time.sleep(3)
        after = lab.settled()
        for name, value in before.items():
            report(f"{name:<26}{value:>12.6g}{after[name]:>12.6g}")
        for name, count in sorted(lab.counts.items()):
            report(f"  {name:<60}{count:>10}")
        return lab.leftovers(before, after, growth_mb=max(16, 0.15 * before["resident MB"]))
    finally:
        lab.close()


def run(folder, kind, small, only, seconds, seed, report=print):
    """Every attack and then the mixture; the list of what was beyond its bound."""
    wrong = []
    report(Row.HEAD)
    for attack, by_hand, in_ci, bounds, with_password in ATTACKS:
        if only and attack.__name__ not in only:
            continue
        row = attacked(folder, kind, attack, in_ci if small else by_hand, bounds, with_password, timed=not small)
        report(str(row))
        wrong += [f"{row.name}: {what}" for what in row.beyond]
    if seconds and not only:
        report(f"\nall at once for {seconds:g} s{'before':>11}{'after':>12}")
        wrong += mixture(folder, kind, seconds, seed, report)
    return wrong


def main():
    parser = argparse.ArgumentParser(prog="scripts/adversary", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="how long everything runs at once at the end [300]; 0: not at all")
    parser.add_argument("--small", action="store_true", help="the counts of CI")
    parser.add_argument("--only", nargs="*", default=[], help="these attacks alone", choices=[a[0].__name__ for a in ATTACKS])
    parser.add_argument("--server", choices=["redis", "valkey"], default="redis")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as folder:
        wrong = run(Path(folder), args.server, args.small, args.only, args.seconds, args.seed)
    print("\nheld" if not wrong else "\nBEYOND THE BOUNDS:\n" + "\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
