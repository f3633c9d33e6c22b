"""Writers and readers as processes, each noting what it did and when.

Each key has one writer, which sends each write by a route of its choice: through proxy A, through B, or past both. Readers hold
connections of both protocols to both proxies. Nothing is judged here: see history.py.
"""

import multiprocessing
import random
import time
from collections import Counter
from dataclasses import dataclass, field

from history import TIME, Read, Write
from wire import Connection, ReplyError

DIRECT = "direct"
PIPELINE_LIMIT = 6
EXPIRY_EARLY = 0.001  # servers count whole milliseconds …
EXPIRY_LATE = 0.003  # … and a key is gone when the next one has begun
clock = time.monotonic


@dataclass
class Scenario:
    """Who does what for how long."""

    ports: dict  # route to port; DIRECT among them
    cells: dict  # writer name to the cells it owns
    seconds: float
    seed: int
    readers: int = 2
    write_pause: float = 0.004  # mean pause of a writer between two writes
    expiry: bool = True
    flush: bool = False  # FLUSHALL now and then; needs a single writer


@dataclass
class Record:
    """What one process, or all of them, did."""

    writes: list = field(default_factory=list)
    reads: list = field(default_factory=list)
    errors: Counter = field(default_factory=Counter)
    hangs: list = field(default_factory=list)

    def absorb(self, other):
        self.writes += other.writes
        self.reads += other.reads
        self.errors += other.errors
        self.hangs += other.hangs


class Worker:
    """What writers and readers share: connections that come back after a loss, and notes."""

    def __init__(self, scenario, name):
        self.scenario = scenario
        self.name = name
        self.rng = random.Random(f"{scenario.seed} {name}")
        self.record = Record()
        self._connections = {}
        self._opened = Counter()

    def run(self, deadline):
        while clock() < deadline:
            self.step()
        return self.record

    def step(self):
        raise NotImplementedError

    def session(self, route, protocol, number=0):
        """A connection and the name of its session; a new name for each new connection."""
        key = (route, protocol, number)
        if key not in self._connections:
            self._opened[key] += 1
            name = f"{self.name}>{route}/resp{protocol}/{number}#{self._opened[key]}"
            self._connections[key] = [Connection(self.scenario.ports[route], protocol), name, 0]
        return self._connections[key]

    def exchange(self, session, db, commands):
        """Sends one pipeline. The replies, or None when the connection was lost; an unanswered request is a hang."""
        connection, name, current_db = session
        select = [("SELECT", db)] if db != current_db else []
        try:
            replies = connection.pipeline(select + commands)
        except TimeoutError:
            self.record.hangs.append(f"{name}: no answer to {commands}")
        except OSError as error:
            self.record.errors[f"lost: {error}"] += 1
        else:
            self._note_errors(replies)
            if not (select and isinstance(replies[0], ReplyError)):
                session[2] = db
            return replies[len(select):]
        self._drop(connection)
        return None

    def _note_errors(self, replies):
        for reply in replies:
            for error in errors_in(reply):
                self.record.errors[str(error)] += 1

    def _drop(self, connection):
        connection.close()
        self._connections = {key: entry for key, entry in self._connections.items() if entry[0] is not connection}

    def connect_or_wait(self, *session):
        """A session, or None after a short rest when nobody listens."""
        try:
            return self.session(*session)
        except (OSError, ReplyError) as error:
            self.record.errors[f"no connection: {error}"] += 1
            time.sleep(0.01)
            return None


def errors_in(reply):
    if isinstance(reply, ReplyError):
        return [reply]
    return [error for item in reply for error in errors_in(item)] if isinstance(reply, list) else []


def observation(command, understand, reply, cell, session_name, route, start, end, after=0):
    """What a reply says, as a `Read`; None for an error."""
    if isinstance(reply, ReplyError):
        return None
    return Read(cell.history_key, understand(reply), start, end, session_name, route, command[0], after)


class Writer(Worker):
    """Writes its own cells, one at a time, and often reads back at once what it wrote."""

    def __init__(self, scenario, name):
        super().__init__(scenario, name)
        self.cells = scenario.cells[name]
        self.versions = {cell.history_key: 0 for cell in self.cells}
        self.present = {cell.history_key: False for cell in self.cells}
        self.quiet_until = {cell.history_key: 0.0 for cell in self.cells}

    def step(self):
        cell = self.rng.choice(self.cells)
        if clock() > self.quiet_until[cell.history_key]:
            if self.scenario.flush and self.rng.random() < 0.02:
                self._flush()
            else:
                self._change(cell)
        time.sleep(self.rng.expovariate(1 / self.scenario.write_pause))

    def _change(self, cell):
        dice = self.rng.random()
        if not self.present[cell.history_key] or dice < 0.8:
            self._write(cell)
        elif dice < 0.93 or not (self.scenario.expiry and cell.vanishing(1)):
            self._delete(cell)
        else:
            self._expire(cell)

    def _write(self, cell):
        version = self.versions[cell.history_key] + 1
        commands = self.rng.choice(list(cell.writes(version).values()))
        self._send(cell, commands, version)

    def _delete(self, cell):
        self._send(cell, self.rng.choice(list(cell.deletions().values())), None)

    def _send(self, cell, commands, value):
        """One write and, in the same pipeline, sometimes a read of it; then sometimes a read on another connection."""
        route = self.rng.choice(list(self.scenario.ports))
        session = self.connect_or_wait(route, self.rng.choice((2, 3)))
        if not session:
            return
        reads = [self.rng.choice(cell.reads())] if self.rng.random() < 0.3 else []
        start = clock()
        replies = self.exchange(session, cell.db, commands + [command for command, _ in reads])
        end = clock()
        version = self._note_write(cell, value, start, end if self._succeeded(replies, len(commands)) else None, route)
        for (command, understand), reply in zip(reads, (replies or [])[len(commands):], strict=False):
            self._note_read(observation(command, understand, reply, cell, session[1], route, start, end, version))
        if self.rng.random() < 0.5:
            self._read_back(cell, route)

    @staticmethod
    def _succeeded(replies, count):
        return replies is not None and not any(errors_in(reply) for reply in replies[:count])

    def _note_write(self, cell, value, start, end, route):
        key = cell.history_key
        version = self.versions[key] = self.versions[key] + 1
        # After an unknown outcome nothing is taken for granted.
        self.present[key] = value is not None and end is not None
        self.record.writes.append(Write(key, version, value, start, end, route, self.name))
        return version if end is not None else 0

    def _note_read(self, read):
        if read:
            self.record.reads.append(read)

    def _read_back(self, cell, route):
        session = self.connect_or_wait(route, self.rng.choice((2, 3)), self.rng.choice((0, 1)))
        if session:
            command, understand = self.rng.choice(cell.reads())
            start = clock()
            replies = self.exchange(session, cell.db, [command])
            if replies:
                self._note_read(observation(command, understand, replies[0], cell, session[1], route, start, clock()))

    def _expire(self, cell):
        """Gives the key a short TTL; its end is noted as a write of nobody's."""
        milliseconds = self.rng.randrange(10, 80)
        session = self.connect_or_wait(self.rng.choice(list(self.scenario.ports)), 2)
        start = clock()
        replies = session and self.exchange(session, cell.db, cell.vanishing(milliseconds))
        gone_from = start + milliseconds / 1000 - EXPIRY_EARLY
        gone_by = clock() + milliseconds / 1000 + EXPIRY_LATE
        acked = self._succeeded(replies, 1)
        self._note_write(cell, None, gone_from, gone_by if acked else None, TIME)
        self.quiet_until[cell.history_key] = gone_by

    def _flush(self):
        route = self.rng.choice(list(self.scenario.ports))
        session = self.connect_or_wait(route, 2)
        if not session or any(clock() < until for until in self.quiet_until.values()):
            return
        commands = self.rng.choice(([("FLUSHALL",)], [("MULTI",), ("FLUSHALL",), ("EXEC",)],
                                    [("EVAL", "return redis.call('FLUSHALL')", 0)]))
        start = clock()
        replies = self.exchange(session, 0, commands)
        end = clock() if self._succeeded(replies, len(commands)) else None
        for cell in self.cells:
            self._note_write(cell, None, start, end, route)


class Reader(Worker):
    """Reads random cells through random proxies, one or a few at a time."""

    def __init__(self, scenario, name):
        super().__init__(scenario, name)
        self.cells = [cell for cells in scenario.cells.values() for cell in cells]
        self.routes = [route for route in scenario.ports if route != DIRECT]

    def step(self):
        route = self.rng.choice(self.routes)
        session = self.connect_or_wait(route, self.rng.choice((2, 3)))
        if session:
            self._read(session, route)

    def _read(self, session, route):
        picked = self._pick()
        start = clock()
        replies = self.exchange(session, picked[0][0].db, [command for _, (command, _) in picked])
        end = clock()
        for (cell, (command, understand)), reply in zip(picked, replies or (), strict=False):
            read = observation(command, understand, reply, cell, session[1], route, start, end)
            if read:
                self.record.reads.append(read)

    def _pick(self):
        """A few cells of one database, each with one way to read it."""
        db = self.rng.choice(self.cells).db
        cells = [cell for cell in self.cells if cell.db == db]
        count = self.rng.choice((1, 1, 2, PIPELINE_LIMIT))
        return [(cell, self.rng.choice(cell.reads())) for cell in self.rng.choices(cells, k=count)]


_fork = multiprocessing.get_context("fork")


def run(scenario, during=None):
    """Runs all workers for the scenario's time. `during(deadline)`, if given, makes the weather meanwhile."""
    deadline = clock() + scenario.seconds
    workers = [Writer(scenario, name) for name in scenario.cells]
    workers += [Reader(scenario, f"reader{i}") for i in range(scenario.readers)]
    running = [_start(worker, deadline) for worker in workers]
    if during:
        during(deadline)
    total = Record()
    for process, results in running:
        total.absorb(results.recv())
        process.join()
    return total


def _start(worker, deadline):
    results, sink = _fork.Pipe(duplex=False)
    process = _fork.Process(target=lambda: sink.send(worker.run(deadline)), daemon=True)
    process.start()
    sink.close()
    return process, results
