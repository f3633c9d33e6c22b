//! The record of a run: what was done, when, and what was seen. Facts only; they are judged elsewhere.
//!
//! All times are of one clock ([`Time`]). An operation lasts from just before its request was written to just after its
//! reply was read, so every judgement errs on the side of the proxy.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::config::Level;
use crate::time::Time;

/// How much before its deadline a key may be gone: servers count whole milliseconds.
pub const EXPIRY_EARLY: Duration = Duration::from_millis(1);
/// How much after its deadline a key may still be there, by the server's own clock.
pub const EXPIRY_LATE: Duration = Duration::from_millis(3);

/// A stretch of time, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// Not before this.
    pub start: Time,
    /// Not after this; [`Time::NEVER`] if the end is not known.
    pub end: Time,
}

impl Span {
    /// Whether they have a moment in common.
    pub fn meets(self, other: Span) -> bool {
        self.start <= other.end && other.start <= self.end
    }
}

/// A way to the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteUnderTest {
    /// As it was named on the command line.
    pub name: String,
    /// The level it promises; `None` for the way past all proxies.
    pub level: Option<Level>,
}

/// One operation of a client on one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// Which object, as an index of [`History::objects`].
    pub object: usize,
    /// Which connection, as an index of [`History::sessions`]; a session's operations are in the order it sent them.
    pub session: usize,
    /// Before the request was written.
    pub start: Time,
    /// After the reply was read; `None` if there was none, so that the outcome is unknown.
    pub end: Option<Time>,
    /// The kind of command, for the report.
    pub command: &'static str,
    /// A read or a write.
    pub action: Action,
}

impl Op {
    /// When it was executed, as far as is known.
    pub fn span(&self) -> Span {
        Span { start: self.start, end: self.end.unwrap_or(Time::NEVER) }
    }
}

/// Reads see, writes change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A read of these keys of the object, as bits.
    Read(u8, Seen),
    /// A write of all keys of the object at once.
    Write(Change),
}

/// The answer to a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// There is nothing.
    Absent,
    /// The whole value.
    Value(Bytes),
    /// Parts that always change together, and differ.
    Torn(String),
}

/// The change that a write makes to the value. Every value or token is written once in a run, except for counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// SET, HSET, MSET …
    Set {
        /// The new value.
        value: Bytes,
        /// Its time to live, if the write gives it one: of the key (SET PX), or of the fields.
        ttl: Option<Duration>,
        /// Whether a time to live that the key has goes on (HSET), or ends (SET).
        keeps_ttl: bool,
    },
    /// DEL, UNLINK, RENAME away …
    Delete,
    /// HDEL of all fields: none is there afterwards, though the key may be.
    DeleteFields,
    /// INCR, and the sum it answered.
    Increment(Option<i64>),
    /// APPEND or RPUSH of one token, and the length (in bytes) that was answered.
    Append(Bytes, Option<usize>),
    /// PEXPIRE, HPEXPIRE …: what is there now goes after this time.
    Expire {
        /// After how long.
        after: Duration,
        /// HPEXPIRE of all fields: a write of the fields ends it.
        fields: bool,
    },
}

/// Keys that are written and read as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The key's name, or what its keys begin with.
    pub name: String,
    /// How many keys it has.
    pub keys: usize,
}

/// A run, or a part of it during which no operation was cut in two.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The ways.
    pub routes: Vec<RouteUnderTest>,
    /// The route of each session.
    pub sessions: Vec<usize>,
    /// The objects. All were absent at first.
    pub objects: Vec<Object>,
    /// In the order of their start.
    pub ops: Vec<Op>,
    /// Everything was erased once within each of these (FLUSHALL, a restart); by whom does not matter.
    pub erased: Vec<Span>,
    /// Anything may have vanished at any time within these (eviction).
    pub eroded: Vec<Span>,
}

impl History {
    /// The way an operation took.
    pub fn route(&self, op: &Op) -> usize {
        self.sessions[op.session]
    }

    /// Brings the operations into the order of their start; those of one session stay in theirs.
    pub fn sort(&mut self) {
        self.ops.sort_by_key(|op| op.start);
    }

    /// Leaves out what cannot be judged: eviction takes one key of an object and leaves the other.
    pub fn forget_what_eviction_tears(&mut self) {
        let objects = &self.objects;
        self.ops.retain(|op| objects[op.object].keys == 1);
    }

    /// The operations of each object, as indices, in order.
    pub fn by_object(&self) -> Vec<Vec<usize>> {
        let mut groups = vec![Vec::new(); self.objects.len()];
        for (i, op) in self.ops.iter().enumerate() {
            groups[op.object].push(i);
        }
        groups
    }
}

/// Bytes of a value that are told.
const SHOWN: usize = 16;

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Seen::Absent => f.write_str("nothing"),
            // of what has grown, the end tells
            Seen::Value(value) if value.len() > SHOWN => {
                write!(f, "…{} ({} bytes)", String::from_utf8_lossy(&value[value.len() - SHOWN..]), value.len())
            }
            Seen::Value(value) => f.write_str(&String::from_utf8_lossy(value)),
            Seen::Torn(parts) => f.write_str(parts),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Set { value, ttl: None, .. } => write!(f, "= {}", String::from_utf8_lossy(value)),
            Change::Set { value, ttl: Some(ttl), .. } => {
                write!(f, "= {} for {} ms", String::from_utf8_lossy(value), ttl.as_millis())
            }
            Change::Delete | Change::DeleteFields => f.write_str("deleted"),
            Change::Increment(Some(sum)) => write!(f, "+ 1 = {sum}"),
            Change::Increment(None) => f.write_str("+ 1"),
            Change::Append(token, _) => write!(f, "… {}", String::from_utf8_lossy(token)),
            Change::Expire { after, .. } => write!(f, "to go after {} ms", after.as_millis()),
        }
    }
}
