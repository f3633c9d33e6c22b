//! The certain facts of a history about each object: which writes a value may come from, which write is known to have
//! taken effect by when, how long a value may live.

use std::time::Duration;

use ahash::AHashMap;
use bytes::Bytes;

use super::history::{Action, Change, EXPIRY_EARLY, EXPIRY_LATE, History, Op, Seen, Span};
use crate::time::Time;

/// Length of every value and token. They are no numbers; the sums of counters are.
pub const TOKEN: usize = 8;

/// The event that made a state of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The object's state at the start of the run.
    #[default]
    Start,
    /// This operation.
    Op(usize),
    /// Nobody's operation: an erasure, an eviction, the end of a time to live.
    World(Span),
}

/// A write that is known to be in effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Floor {
    /// The write was executed after this time: whatever had been acknowledged by then is older.
    pub at: Time,
    /// Which write.
    pub cause: Cause,
}

/// A write that a read may have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// When it happened.
    pub span: Span,
    /// Which it is.
    pub cause: Cause,
}

/// Answers: the latest start of a write that had been acknowledged before a time.
#[derive(Default)]
struct Acks {
    ends: Vec<Time>,
    best: Vec<Floor>,
}

impl Acks {
    fn of(mut writes: Vec<(Time, Floor)>) -> Acks {
        writes.sort();
        let mut acks = Acks::default();
        for (end, floor) in writes {
            acks.ends.push(end);
            acks.best.push(floor.max(acks.best.last().copied().unwrap_or_default()));
        }
        acks
    }

    fn before(&self, time: Time) -> Floor {
        let count = self.ends.partition_point(|end| *end < time);
        if count == 0 { Floor::default() } else { self.best[count - 1] }
    }
}

/// The facts about one object.
#[derive(Default)]
struct ObjectFacts {
    absent: Vec<Candidate>,
    values: AHashMap<Bytes, Vec<Candidate>>,
    /// May have made any sum.
    lost_increments: Vec<Candidate>,
    acks: Acks,
    acks_there: AHashMap<usize, Acks>,
    /// Starts of the certain writes, in order, and the earliest end of this one or any later.
    starts: Vec<Time>,
    superseding: Vec<Time>,
    /// Operations that gave a time to live.
    limits: Vec<usize>,
}

/// The facts about all objects.
pub struct Facts<'a> {
    history: &'a History,
    objects: Vec<ObjectFacts>,
}

impl<'a> Facts<'a> {
    /// Reads the history once.
    pub fn of(history: &'a History) -> Facts<'a> {
        let objects = history.by_object().iter().map(|ops| ObjectFacts::of(history, ops)).collect();
        Facts { history, objects }
    }

    /// Where `seen` may come from, if it was seen before `by`; the newest last.
    pub fn candidates(&self, object: usize, seen: &Seen, by: Time) -> Vec<Candidate> {
        let object = &self.objects[object];
        let (known, lost): (&[Candidate], &[Candidate]) = match seen {
            Seen::Torn(_) => (&[], &[]),
            Seen::Absent => (&object.absent, &[]),
            Seen::Value(value) => {
                let lost: &[_] = if is_sum(value) { &object.lost_increments } else { &[] };
                (object.values.get(&mark(value)).map_or(&[], Vec::as_slice), lost)
            }
        };
        let mut found: Vec<_> = known.iter().chain(lost).filter(|c| c.span.start <= by).copied().collect();
        found.sort_by_key(|c| (c.span.end, c.span.start));
        found
    }

    /// The newest write of the object that had been acknowledged to anybody before `time`.
    pub fn acked_before(&self, object: usize, time: Time) -> Floor {
        self.objects[object].acks.before(time)
    }

    /// The newest write of the object that had been acknowledged by this way before `time`.
    pub fn acked_there_before(&self, object: usize, route: usize, time: Time) -> Floor {
        self.objects[object].acks_there.get(&route).map(|acks| acks.before(time)).unwrap_or_default()
    }

    /// When somebody first had the ack of a write that came after the candidate.
    pub fn superseded(&self, object: usize, candidate: &Candidate) -> Time {
        let object = &self.objects[object];
        let next = object.starts.partition_point(|start| *start <= candidate.span.end);
        object.superseding.get(next).copied().unwrap_or(Time::NEVER)
    }

    /// When what the candidate wrote was gone at the latest, as far as `read` may know; `None` if it had no time to live,
    /// or that is not certain. That somebody gave it one elsewhere may be news to the read for as long as `staleness`.
    pub fn deadline(&self, object: usize, candidate: &Candidate, read: &Op, staleness: Duration) -> Option<Time> {
        let Cause::Op(i) = candidate.cause else { return None };
        let written = &self.history.ops[i];
        let Action::Write(Change::Set { ttl, .. }) = &written.action else { return None };
        let mut deadline = match (ttl, written.end) {
            (Some(ttl), Some(end)) => Some(end + *ttl + EXPIRY_LATE),
            _ => None,
        };
        // A limit that came between the write and the read, or may have: each may be the one that counts.
        let limits = self.objects[object].limits.iter().map(|i| &self.history.ops[*i]);
        for limit in limits.filter(|op| op.span().end > written.start && op.start < read.span().end) {
            let Action::Write(Change::Expire { after, .. }) = &limit.action else { continue };
            let elsewhere = self.history.route(limit) != self.history.route(read);
            let known = if elsewhere { staleness } else { Duration::ZERO };
            let gone = limit.end? + *after + EXPIRY_LATE + known;
            let came_after = written.end.is_some_and(|end| end < limit.start);
            deadline = match deadline {
                Some(deadline) => Some(deadline.max(gone)),
                None => Some(gone).filter(|_| came_after),
            };
        }
        deadline
    }

    /// The operations that may have given what the candidate wrote a time to live, before it was read.
    pub fn limits(&self, object: usize, candidate: &Candidate, read: Span) -> Vec<usize> {
        let life = Span { start: candidate.span.start, end: read.start };
        let limits = self.objects[object].limits.iter().copied();
        limits.filter(|i| self.history.ops[*i].span().meets(life)).collect()
    }
}

impl ObjectFacts {
    fn of(history: &History, ops: &[usize]) -> ObjectFacts {
        let mut object = ObjectFacts::default();
        object.absent.push(Candidate { span: Span { start: Time::ZERO, end: Time::ZERO }, cause: Cause::Start });
        let mut certain: Vec<(Time, usize, Floor)> = Vec::new();
        for i in ops.iter().copied() {
            let op = &history.ops[i];
            let Action::Write(change) = &op.action else { continue };
            object.write(i, op, change);
            if let Some(end) = op.end.filter(|_| is_certain(op)) {
                certain.push((end, history.route(op), Floor { at: op.start, cause: Cause::Op(i) }));
            }
        }
        for span in &history.erased {
            let cause = Cause::World(*span);
            object.absent.push(Candidate { span: *span, cause });
            if span.end != Time::NEVER {
                certain.push((span.end, usize::MAX, Floor { at: span.start, cause }));
            }
        }
        object.absent.extend(history.eroded.iter().map(|span| Candidate { span: *span, cause: Cause::World(*span) }));
        object.order(&certain);
        object
    }

    fn write(&mut self, i: usize, op: &Op, change: &Change) {
        let candidate = Candidate { span: op.span(), cause: Cause::Op(i) };
        match change {
            Change::Set { value, ttl, .. } => {
                self.values.entry(mark(value)).or_default().push(candidate);
                self.limits.extend(ttl.map(|_| i));
                self.absent.extend(ttl.map(|ttl| vanishing(op, ttl)));
            }
            Change::Append(token, _) => self.values.entry(mark(token)).or_default().push(candidate),
            Change::Delete | Change::DeleteFields => self.absent.push(candidate),
            Change::Increment(Some(sum)) => {
                self.values.entry(Bytes::from(sum.to_string())).or_default().push(candidate);
            }
            Change::Increment(None) => self.lost_increments.push(candidate),
            Change::Expire { after, .. } => {
                self.limits.push(i);
                self.absent.push(vanishing(op, *after));
            }
        }
    }

    fn order(&mut self, certain: &[(Time, usize, Floor)]) {
        let mut there: AHashMap<usize, Vec<(Time, Floor)>> = AHashMap::new();
        for (end, route, floor) in certain {
            there.entry(*route).or_default().push((*end, *floor));
        }
        self.acks_there = there.into_iter().map(|(route, writes)| (route, Acks::of(writes))).collect();
        self.acks = Acks::of(certain.iter().map(|(end, _, floor)| (*end, *floor)).collect());
        let mut by_start: Vec<(Time, Time)> = certain.iter().map(|(end, _, floor)| (floor.at, *end)).collect();
        by_start.sort();
        let mut earliest = Time::NEVER;
        let ends = by_start.iter().rev().map(|(_, end)| {
            earliest = earliest.min(*end);
            earliest
        });
        self.superseding = ends.collect();
        self.superseding.reverse();
        self.starts = by_start.into_iter().map(|(start, _)| start).collect();
    }
}

/// Whether a write, once acknowledged, has certainly changed the value: PEXPIRE changes it later, if at all.
pub fn is_certain(op: &Op) -> bool {
    !matches!(op.action, Action::Write(Change::Expire { .. }))
}

/// When a key is gone that `op` has given this time to live.
fn vanishing(op: &Op, after: Duration) -> Candidate {
    let span = expiry(op, after);
    Candidate { span, cause: Cause::World(span) }
}

/// When the time to live that `op` gives ends.
pub fn expiry(op: &Op, after: Duration) -> Span {
    let end = op.end.map_or(Time::NEVER, |end| end + after + EXPIRY_LATE);
    Span { start: op.start + after - EXPIRY_EARLY, end }
}

/// The part of a value that tells which write it comes from: a sum, or the token that was added last.
fn mark(value: &Bytes) -> Bytes {
    if is_sum(value) { value.clone() } else { value.slice(value.len().saturating_sub(TOKEN)..) }
}

fn is_sum(value: &Bytes) -> bool {
    value.iter().all(u8::is_ascii_digit)
}
