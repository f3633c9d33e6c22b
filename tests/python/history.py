"""Judges what readers saw against what writers wrote.

Every write of a key has a version, larger than all before it on that key; a reader sees a version (or None: the key is absent).
All times are CLOCK_MONOTONIC, which the processes of one machine share. A write is taken to last from just before it was sent to
just after its reply was read, a read likewise, so every judgement errs on the side of the proxy.

A read is wrong when it saw a version below one of these floors:

| floor        | the latest version …                                                                   | levels       |
|--------------|----------------------------------------------------------------------------------------|--------------|
| stale        | acked to anybody before the read began (minus `max_staleness`, unless linearizable)    | all          |
| read order   | that a read which had ended before this one began has seen, on whatever connection     | linearizable |
| own write    | acked through the same proxy before the read began                                     | all          |
| expired      | the key vanished at the end of its TTL before the read began                           | all          |
| pipeline     | written earlier in the same pipeline                                                   | all          |
| back in time | that this connection has seen of this key                                              | all          |
| causal       | acked by a writer before it began a write (of whatever key) that this connection has seen | causal up |

or a value that nobody had begun to write when the read ended ("unknown"), or two keys that always change together at different
versions ("torn").
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from typing import NamedTuple

PRESENT = "present"
TIME = "time"
"""The route of a write nobody sent: a key that vanished at the end of its TTL."""


class Write(NamedTuple):
    key: str
    version: int
    value: int | None  # what a reader sees: the version, or None once the key is gone
    start: float
    end: float | None  # None: no ack came, so the outcome is unknown
    route: str
    writer: str


class Read(NamedTuple):
    key: str
    value: object  # a version, None, PRESENT, or ("torn", …)
    start: float
    end: float
    session: str
    route: str
    command: str
    after: int = 0  # the version this pipeline wrote before the read


class Rules(NamedTuple):
    level: str
    max_staleness: float = 1.0
    # A cached answer is exact as of a time that the proxy read off the same clock after the request had been sent: no slack is
    # owed in theory. 5 ms allow for clocks that tick in milliseconds on both ends of the comparison.
    slack: float = 0.005


class Violation(NamedTuple):
    reasons: tuple
    read: Read
    floor: int
    age: float

    def __str__(self):
        reasons = ", ".join(self.reasons)
        return (f"{reasons}: {self.read.command} by {self.read.session} saw {self.read.value}, must be at least version {self.floor}"
                f" ({self.age * 1000:.1f} ms late) {self.read}")


class Acks:
    """Answers: the latest version acked before a time."""

    def __init__(self, writes):
        acked = sorted((write.end, write.version) for write in writes if write.end is not None)
        self._ends = [end for end, _ in acked]
        self._best = []
        for _, version in acked:
            self._best.append(max(version, self._best[-1] if self._best else 0))

    def before(self, time):
        at = bisect_left(self._ends, time)
        return self._best[at - 1] if at else 0


class KeyHistory:
    """The writes of one key."""

    def __init__(self, writes):
        self.writes = sorted(writes, key=lambda write: write.version)
        self.by_version = {write.version: write for write in writes}
        self.all_acks = Acks(writes)
        self.acks_by_route = self._grouped(lambda write: write.route)
        self.acks_by_writer = self._grouped(lambda write: write.writer)
        self._unknown_values = {write.value for write in writes if write.end is None}
        self._absent = [0] + [write.version for write in self.writes if write.value is None]
        self._present = [write.version for write in self.writes if write.value is not None]

    def _grouped(self, key):
        groups = defaultdict(list)
        for write in self.writes:
            groups[key(write)].append(write)
        return {name: Acks(group) for name, group in groups.items()}

    def undecidable(self, value):
        """A write without an ack may have happened at any later time, so a read of its value proves nothing."""
        if value == PRESENT:
            return bool(self._unknown_values)
        return value in self._unknown_values

    def candidates(self, value):
        """The versions, in order, at which a reader sees `value`."""
        if value is None:
            return self._absent
        if value == PRESENT:
            return self._present
        return [value] if value in self.by_version else []

    def begun_before(self, version, time):
        return version == 0 or self.by_version[version].start <= time

    def lateness(self, version, time):
        """For how long a version newer than `version` had been acked at `time`."""
        newer = [write.end for write in self.writes if write.version > version and write.end is not None and write.end < time]
        return time - min(newer) if newer else 0.0


class Session:
    """What one connection has seen so far."""

    def __init__(self):
        self.versions = defaultdict(int)
        self._pending = []
        self._seen = {}

    def note(self, read, write):
        self.versions[read.key] = write.version
        self._pending.append((read.end, write.writer, write.start))

    def seen_before(self, time):
        """Per writer, the start of the latest of its writes seen by reads that had ended before `time`."""
        while self._pending and self._pending[0][0] <= time:
            _, writer, start = self._pending.pop(0)
            self._seen[writer] = max(start, self._seen.get(writer, start))
        return self._seen


class Judge:
    """Walks through all reads in the order of their beginning and collects the violations."""

    def __init__(self, writes, reads, rules):
        by_key = defaultdict(list)
        for write in writes:
            by_key[write.key].append(write)
        self.keys = defaultdict(lambda: KeyHistory([]), {key: KeyHistory(group) for key, group in by_key.items()})
        # The order of issue is each session's own; sorting by start is stable and keeps pipelines in order.
        self.reads = sorted(reads, key=lambda read: read.start)
        self.rules = rules
        self.sessions = defaultdict(Session)
        self.finished = defaultdict(FinishedReads)

    def violations(self):
        found = (self._judge(read) for read in self.reads)
        return [violation for violation in found if violation]

    def _judge(self, read):
        history = self.keys[read.key]
        if history.undecidable(read.value):
            return None
        floors = self._floors(read, history)
        floor = max(floors.values())
        candidates = history.candidates(read.value)
        at = bisect_left(candidates, floor)
        # One writer's versions begin in their order: if the first that is new enough had not begun, none had.
        if at == len(candidates) or not history.begun_before(candidates[at], read.end):
            return self._violation(read, history, floors)
        self._note(read, history, candidates[at])
        return None

    @staticmethod
    def _violation(read, history, floors):
        begun = [version for version in history.candidates(read.value) if history.begun_before(version, read.end)]
        floor = max(floors.values())
        if not begun:
            reason = "torn" if isinstance(read.value, tuple) else "unknown"
            return Violation((reason,), read, floor, 0.0)
        reasons = tuple(name for name, version in floors.items() if version > begun[-1])
        return Violation(reasons, read, floor, history.lateness(begun[-1], read.start))

    def _note(self, read, history, version):
        if version:
            self.sessions[read.session].note(read, history.by_version[version])
            self.finished[read.key].add(read.end, version)

    def _floors(self, read, history):
        session = self.sessions[read.session]
        floors = {
            "stale": history.all_acks.before(read.start - self._allowed_staleness()),
            "own write": self._acked(history, read.route, read.start),
            "expired": self._acked(history, TIME, read.start),
            "pipeline": read.after,
            "back in time": session.versions[read.key],
        }
        if self.rules.level != "bounded":
            floors["causal"] = self._causal_floor(history, session.seen_before(read.start))
        if self.rules.level == "linearizable":
            floors["read order"] = self.finished[read.key].before(read.start)
        return floors

    def _allowed_staleness(self):
        return 0.0 if self.rules.level == "linearizable" else self.rules.max_staleness + self.rules.slack

    @staticmethod
    def _acked(history, route, time):
        acks = history.acks_by_route.get(route)
        return acks.before(time) if acks else 0

    @staticmethod
    def _causal_floor(history, seen):
        return max((acks.before(seen[writer]) for writer, acks in history.acks_by_writer.items() if writer in seen), default=0)


class FinishedReads:
    """The latest version seen by reads that had ended before a time; asked with rising times."""

    def __init__(self):
        self._pending = []
        self._best = 0

    def add(self, end, version):
        self._pending.append((end, version))

    def before(self, time):
        still_open = []
        for end, version in self._pending:
            if end < time:
                self._best = max(self._best, version)
            else:
                still_open.append((end, version))
        self._pending = still_open
        return self._best


def summary(violations, shown=8):
    counts = Counter(reason for violation in violations for reason in violation.reasons)
    lines = [f"{len(violations)} violations: {dict(counts)}", *map(str, violations[:shown])]
    return "\n".join(lines)
