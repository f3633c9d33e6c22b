//! The last events of keys, for EXPLAIN and the auditor: a ring of fixed size for each shard, and one for
//! flushes. Old events are overwritten. Hits leave nothing here.

use std::sync::PoisonError;

use super::FlushCause;
use crate::numbers::index;
use crate::sync::{Mutex, MutexGuard, size};
use crate::time::Time;

const SHARDS: usize = size(64, 2);
/// Events kept of one shard's keys together, and of flushes.
const KEPT: usize = 128;
/// The most that is told of one key.
const TOLD: usize = 16;

/// Something that happened to a key, or to all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A reply was stored, by the token of this number.
    Filled(u32),
    /// A reply was not stored: what it had read was in doubt.
    Refused,
    /// The server reported that the key has changed.
    Invalidated,
    /// A write through this proxy was about to be acknowledged, and the key had been dropped. Tokens below this number
    /// were given before.
    Written(u32),
    /// Everything was flushed.
    Flushed(FlushCause),
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Event::Filled(_) => f.write_str("filled"),
            Event::Refused => f.write_str("not filled: it had changed meanwhile"),
            Event::Invalidated => f.write_str("reported as changed"),
            Event::Written(_) => f.write_str("written through this proxy"),
            Event::Flushed(cause) => write!(f, "everything flushed ({})", cause.name()),
        }
    }
}

#[derive(Clone, Copy)]
struct Record {
    hash: u64,
    time: Time,
    event: Event,
}

struct Ring {
    records: Vec<Record>,
    next: usize,
}

impl Ring {
    fn push(&mut self, record: Record) {
        if self.records.len() < KEPT {
            return self.records.push(record);
        }
        self.records[self.next] = record;
        self.next = (self.next + 1) % KEPT;
    }

    /// The newest first.
    fn iter(&self) -> impl Iterator<Item = &Record> {
        let (new, old) = self.records.split_at(self.next);
        new.iter().rev().chain(old.iter().rev())
    }
}

/// The last events of every shard.
pub struct Events {
    shards: Box<[Mutex<Ring>]>,
    flushes: Mutex<Ring>,
}

impl Default for Events {
    fn default() -> Self {
        let ring = || Mutex::new(Ring { records: Vec::with_capacity(KEPT), next: 0 });
        Events { shards: (0..SHARDS).map(|_| ring()).collect(), flushes: ring() }
    }
}

impl Events {
    fn shard(&self, hash: u64) -> MutexGuard<'_, Ring> {
        self.shards[index(hash) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flushes(&self) -> MutexGuard<'_, Ring> {
        self.flushes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what happened to the key of this hash.
    pub fn note(&self, hash: u64, time: Time, event: Event) {
        self.shard(hash).push(Record { hash, time, event });
    }

    /// Notes a flush.
    pub fn flushed(&self, time: Time, cause: FlushCause) {
        self.flushes().push(Record { hash: 0, time, event: Event::Flushed(cause) });
    }

    /// How many tokens had been given when the key's last known write was settled. `None`: no write is remembered.
    pub fn written(&self, hash: u64) -> Option<u32> {
        self.shard(hash).iter().filter(|r| r.hash == hash).find_map(|r| match r.event {
            Event::Written(begun) => Some(begun),
            _ => None,
        })
    }

    /// The events remembered of the key, the newest first.
    pub fn of_key(&self, hash: u64) -> Vec<(Time, Event)> {
        let told = |r: &Record| (r.time, r.event);
        let mut found: Vec<_> = self.shard(hash).iter().filter(|r| r.hash == hash).take(TOLD).map(told).collect();
        found.extend(self.flushes().iter().take(TOLD).map(told));
        found.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
        found.truncate(TOLD);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_events_of_a_key_are_told_first_and_flushes_among_them() {
        let events = Events::default();
        events.note(1, Time(10), Event::Filled(7));
        events.note(65, Time(11), Event::Invalidated);
        events.flushed(Time(12), FlushCause::Role);
        events.note(1, Time(13), Event::Written(9));
        let told: Vec<u64> = events.of_key(1).iter().map(|(t, _)| t.0).collect();
        assert_eq!(told, [13, 12, 10], "not the event of another key of the shard");
        assert_eq!((events.written(1), events.written(65)), (Some(9), None));
    }

    #[test]
    fn the_ring_has_a_bound_and_forgets_the_oldest() {
        let events = Events::default();
        for n in 0..1_000 {
            events.note(1, Time(n), Event::Written(n as u32));
        }
        assert_eq!(events.shard(1).records.len(), KEPT);
        assert_eq!(events.shard(1).iter().map(|r| r.time.0).last(), Some(1_000 - KEPT as u64));
        assert_eq!(events.written(1), Some(999));
        assert_eq!(events.of_key(1).len(), TOLD);
    }
}
