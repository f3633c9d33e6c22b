//! The work of clients: kinds of objects, the ways to write them, the ways to read them.
//!
//! Every value is written once in a run. A write of several keys or fields is one command, one script or one
//! transaction, so that it happens in one moment; a read of several sees all of it or none.

use std::time::Duration;

use bytes::Bytes;
use redis::Value;

use super::history::{Change, Seen};
use crate::resp;

/// A time to live that no run lives to see.
const FAR: Duration = Duration::from_secs(100_000);
/// Counters count from a new multiple of this again and again, so that no sum comes twice.
const COUNTER_STEP: u64 = 100_000;
/// APPEND and RPUSH begin anew after about so many.
const LIST_LENGTH: u8 = 14;

/// The kind of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// A string.
    Text,
    /// A hash whose two fields are always written together.
    Hash,
    /// Two strings that are always written together.
    Pair,
    /// A string that counts.
    Counter,
    /// A string that grows.
    Log,
    /// A list that grows.
    Queue,
}

/// All of them.
pub const KINDS: [ObjectKind; 6] =
    [ObjectKind::Text, ObjectKind::Hash, ObjectKind::Pair, ObjectKind::Counter, ObjectKind::Log, ObjectKind::Queue];

/// One way to write an object.
pub struct Write {
    /// Its name, for the report.
    pub name: &'static str,
    /// The commands, sent at once.
    pub commands: Vec<Vec<u8>>,
    /// Whether MULTI goes before it and EXEC behind it.
    pub transaction: bool,
    /// The change that it makes.
    pub change: Change,
}

/// One way to read an object.
pub struct Read {
    /// Its name, for the report.
    pub name: &'static str,
    /// The command.
    pub command: Vec<u8>,
    /// Which keys of the object it reads, as bits.
    pub parts: u8,
}

/// The keys of the object of this name.
pub fn keys(kind: ObjectKind, name: &str) -> Vec<String> {
    match kind {
        ObjectKind::Pair => vec![format!("{name}:a"), format!("{name}:b")],
        _ => vec![name.to_owned()],
    }
}

/// A server's commands for the time to live of a hash's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldTtls {
    /// Nothing.
    None,
    /// HPEXPIRE, which brings fields back that have expired and are not yet removed (Redis 8.2). So only fields that the
    /// same transaction has written are given a time.
    OfNewFields,
    /// HPEXPIRE (Valkey 9).
    Any,
}

/// Makes writes; `token` is new each time.
pub struct Writer<'a> {
    /// Kind of the object.
    pub kind: ObjectKind,
    /// Its name.
    pub name: &'a str,
    /// A letter and a hexadecimal number that no write has written before.
    pub token: &'a str,
    /// The server's commands for fields.
    pub field_ttls: FieldTtls,
}

const SET_UNDECLARED: &str = "return redis.call('SET', ARGV[1], ARGV[2])";
const SET_DECLARED: &str = "return redis.call('SET', KEYS[1], ARGV[1])";
const HSET_UNDECLARED: &str = "return redis.call('HSET', ARGV[1], 'f', ARGV[2], 'g', ARGV[2])";
const MSET_UNDECLARED: &str = "return redis.call('MSET', ARGV[1], ARGV[3], ARGV[2], ARGV[3])";
const CALL_UNDECLARED: &str = "return redis.call(unpack(ARGV))";

fn command(args: &[&str]) -> Vec<u8> {
    resp::encode(args)
}

impl Writer<'_> {
    /// Any of the ways.
    pub fn any(&self, rng: &mut fastrand::Rng) -> Write {
        match self.kind {
            ObjectKind::Text => self.text(rng),
            ObjectKind::Hash => self.hash(rng),
            ObjectKind::Pair => self.pair(rng),
            ObjectKind::Counter => self.counter(rng),
            ObjectKind::Log => self.log(rng),
            ObjectKind::Queue => self.queue(rng),
        }
    }

    fn write(&self, name: &'static str, args: &[&str], change: Change) -> Write {
        Write { name, commands: vec![command(args)], transaction: false, change }
    }

    fn transaction(&self, name: &'static str, commands: &[&[&str]], change: Change) -> Write {
        let commands = commands.iter().map(|args| command(args)).collect();
        Write { name, commands, transaction: true, change }
    }

    fn set(&self, ttl: Option<Duration>, keeps_ttl: bool) -> Change {
        Change::Set { value: Bytes::copy_from_slice(self.token.as_bytes()), ttl, keeps_ttl }
    }

    fn aside(&self) -> String {
        format!("{}:aside:{}", self.name, self.token)
    }

    fn text(&self, rng: &mut fastrand::Rng) -> Write {
        let (key, token, aside) = (self.name, self.token, self.aside());
        let plain = || self.set(None, false);
        let ttl = soon(rng);
        let ms = ttl.as_millis().to_string();
        let far = FAR.as_millis().to_string();
        let limit = Change::Expire { after: ttl, fields: false };
        match rng.u8(0..18) {
            0..3 => self.write("SET", &["SET", key, token], plain()),
            3 => self.write("GETSET", &["GETSET", key, token], plain()),
            4 => self.write("SET PX", &["SET", key, token, "PX", &far], self.set(Some(FAR), false)),
            5 => self.write("SET PX", &["SET", key, token, "PX", &ms], self.set(Some(ttl), false)),
            6 => self.transaction("MULTI SET", &[&["SET", key, token]], plain()),
            7 => self.write("EVAL SET", &["EVAL", SET_DECLARED, "1", key, token], plain()),
            8..10 => self.write("EVAL SET undeclared", &["EVAL", SET_UNDECLARED, "0", key, token], plain()),
            10 => self.transaction("RENAME", &[&["SET", &aside, token], &["RENAME", &aside, key]], plain()),
            11 => self.transaction(
                "COPY",
                &[&["SET", &aside, token], &["COPY", &aside, key, "REPLACE"], &["DEL", &aside]],
                plain(),
            ),
            12 => self.write("PEXPIRE", &["PEXPIRE", key, &ms], limit),
            13 => self.write("GETEX", &["GETEX", key, "PX", &ms], limit),
            14 => self.write("GETDEL", &["GETDEL", key], Change::Delete),
            15 => self.write("PEXPIRE 0", &["PEXPIRE", key, "0"], Change::Delete),
            _ => self.deletion(rng),
        }
    }

    fn hash(&self, rng: &mut fastrand::Rng) -> Write {
        let (key, token, aside) = (self.name, self.token, self.aside());
        let ttl = soon(rng);
        let ms = ttl.as_millis().to_string();
        let kept = || self.set(None, true);
        let (f, g): (&[&str], &[&str]) = (&["HSET", key, "f", token], &["HSET", key, "g", token]);
        match rng.u8(0..14) {
            0..3 => self.write("HSET", &["HSET", key, "f", token, "g", token], kept()),
            3 => self.write("HMSET", &["HMSET", key, "f", token, "g", token], kept()),
            4 => self.transaction("MULTI HSET HSET", &[f, g], kept()),
            5 | 6 => self.write("EVAL HSET undeclared", &["EVAL", HSET_UNDECLARED, "0", key, token], kept()),
            7 => self.transaction("MULTI DEL HSET HSET", &[&["DEL", key], f, g], self.set(None, false)),
            8 => {
                let commands: [&[&str]; 2] = [&["HSET", &aside, "f", token, "g", token], &["RENAME", &aside, key]];
                self.transaction("RENAME", &commands, self.set(None, false))
            }
            9 => self.write("HDEL", &["HDEL", key, "f", "g"], Change::DeleteFields),
            10 => self.write("PEXPIRE", &["PEXPIRE", key, &ms], Change::Expire { after: ttl, fields: false }),
            11 if self.field_ttls == FieldTtls::Any => {
                let args = ["HPEXPIRE", key, &ms, "FIELDS", "2", "f", "g"];
                self.write("HPEXPIRE", &args, Change::Expire { after: ttl, fields: true })
            }
            11 | 12 if self.field_ttls != FieldTtls::None => {
                let limit: &[&str] = &["HPEXPIRE", key, &ms, "FIELDS", "2", "f", "g"];
                self.transaction("MULTI HSET HSET HPEXPIRE", &[f, g, limit], self.set(Some(ttl), true))
            }
            _ => self.deletion(rng),
        }
    }

    fn pair(&self, rng: &mut fastrand::Rng) -> Write {
        let token = self.token;
        let keys = keys(self.kind, self.name);
        let (a, b) = (&*keys[0], &*keys[1]);
        let plain = || self.set(None, false);
        match rng.u8(0..8) {
            0..3 => self.write("MSET", &["MSET", a, token, b, token], plain()),
            3 => self.transaction("MULTI SET SET", &[&["SET", a, token], &["SET", b, token]], plain()),
            4 | 5 => self.write("EVAL MSET undeclared", &["EVAL", MSET_UNDECLARED, "0", a, b, token], plain()),
            6 => self.write("UNLINK", &["UNLINK", a, b], Change::Delete),
            _ => self.write("DEL", &["DEL", b, a], Change::Delete),
        }
    }

    fn counter(&self, rng: &mut fastrand::Rng) -> Write {
        let key = self.name;
        let one = || Change::Increment(None);
        match rng.u8(0..30) {
            0..12 => self.write("INCR", &["INCR", key], one()),
            12..18 => self.write("INCRBY", &["INCRBY", key, "1"], one()),
            18..23 => self.transaction("MULTI INCR", &[&["INCR", key]], one()),
            23..29 => self.write("EVAL INCR undeclared", &["EVAL", CALL_UNDECLARED, "0", "INCR", key], one()),
            _ => {
                let number = u64::from_str_radix(&self.token[1..], 16).unwrap_or(0) * COUNTER_STEP;
                let base = number.to_string();
                let value = Bytes::copy_from_slice(base.as_bytes());
                self.write("SET", &["SET", key, &base], Change::Set { value, ttl: None, keeps_ttl: false })
            }
        }
    }

    fn log(&self, rng: &mut fastrand::Rng) -> Write {
        let (key, token) = (self.name, self.token);
        match rng.u8(0..LIST_LENGTH) {
            0 => self.write("SET", &["SET", key, token], self.set(None, false)),
            1..5 => self.write("EVAL APPEND", &["EVAL", CALL_UNDECLARED, "0", "APPEND", key, token], self.appended()),
            5 => self.transaction("MULTI APPEND", &[&["APPEND", key, token]], self.appended()),
            _ => self.write("APPEND", &["APPEND", key, token], self.appended()),
        }
    }

    fn queue(&self, rng: &mut fastrand::Rng) -> Write {
        let (key, token) = (self.name, self.token);
        match rng.u8(0..LIST_LENGTH) {
            0 => {
                let anew: [&[&str]; 2] = [&["DEL", key], &["RPUSH", key, token]];
                self.transaction("MULTI DEL RPUSH", &anew, self.set(None, false))
            }
            1..5 => self.write("EVAL RPUSH", &["EVAL", CALL_UNDECLARED, "0", "RPUSH", key, token], self.appended()),
            5 => self.transaction("MULTI RPUSH", &[&["RPUSH", key, token]], self.appended()),
            _ => self.write("RPUSH", &["RPUSH", key, token], self.appended()),
        }
    }

    fn appended(&self) -> Change {
        Change::Append(Bytes::copy_from_slice(self.token.as_bytes()), None)
    }

    fn deletion(&self, rng: &mut fastrand::Rng) -> Write {
        let key = self.name;
        match rng.u8(0..4) {
            0 => self.write("UNLINK", &["UNLINK", key], Change::Delete),
            1 => self.write("EVAL DEL undeclared", &["EVAL", CALL_UNDECLARED, "0", "DEL", key], Change::Delete),
            2 => self.transaction("MULTI DEL", &[&["DEL", key]], Change::Delete),
            _ => self.write("DEL", &["DEL", key], Change::Delete),
        }
    }
}

/// A time to live that ends while somebody looks.
fn soon(rng: &mut fastrand::Rng) -> Duration {
    Duration::from_millis(rng.u64(10..300))
}

/// Any way to read it.
pub fn read(kind: ObjectKind, name: &str, rng: &mut fastrand::Rng) -> Read {
    let read = |name, args: &[&str]| Read { name, command: command(args), parts: 1 };
    match kind {
        ObjectKind::Text | ObjectKind::Counter | ObjectKind::Log => match rng.u8(0..6) {
            0 => read("GETRANGE", &["GETRANGE", name, "0", "-1"]),
            1 => read("MGET", &["MGET", name]),
            _ => read("GET", &["GET", name]),
        },
        ObjectKind::Hash => match rng.u8(0..6) {
            0 | 1 => read("HGET", &["HGET", name, "f"]),
            2 => read("HGET", &["HGET", name, "g"]),
            3 => read("HMGET", &["HMGET", name, "f", "g"]),
            4 => read("HVALS", &["HVALS", name]),
            _ => Read { name: "HGETALL", command: command(&["HGETALL", name]), parts: 1 },
        },
        ObjectKind::Pair => {
            let keys = keys(kind, name);
            let (a, b) = (&*keys[0], &*keys[1]);
            // One alone as often as both: what is cached of them is then of different times.
            match rng.u8(0..4) {
                0 => Read { parts: 3, ..read("MGET", &["MGET", a, b]) },
                1 => Read { parts: 3, ..read("MGET", &["MGET", b, a]) },
                2 => read("GET", &["GET", a]),
                _ => Read { parts: 2, ..read("GET", &["GET", b]) },
            }
        }
        ObjectKind::Queue => read("LRANGE", &["LRANGE", name, "0", "-1"]),
    }
}

/// The answer to a read; `None` if it is no value.
pub fn seen(kind: ObjectKind, read: &str, reply: Value) -> Option<Seen> {
    match (kind, reply) {
        (_, Value::ServerError(_)) => None,
        (ObjectKind::Queue, Value::Array(items)) => {
            let tokens: Option<Vec<Bytes>> = items.into_iter().map(bytes).collect();
            Some(whole(tokens?.concat().into()))
        }
        (_, Value::Map(pairs)) => Some(same(pairs.into_iter().map(|(_, value)| value).collect())),
        (_, Value::Array(items)) if read == "HGETALL" => Some(same(items.into_iter().skip(1).step_by(2).collect())),
        (_, Value::Array(items)) => Some(same(items)),
        (_, Value::Nil) => Some(Seen::Absent),
        (_, value) => Some(whole(bytes(value)?)),
    }
}

fn bytes(value: Value) -> Option<Bytes> {
    if let Value::BulkString(bytes) = value { Some(bytes.into()) } else { None }
}

/// GETRANGE of a key that is absent is empty, as is LRANGE; no value of ours is.
fn whole(value: Bytes) -> Seen {
    if value.is_empty() { Seen::Absent } else { Seen::Value(value) }
}

fn same(values: Vec<Value>) -> Seen {
    let mut values: Vec<Option<Bytes>> = values.into_iter().map(bytes).collect();
    values.dedup();
    match &mut values[..] {
        [] | [None] => Seen::Absent,
        [Some(value)] => Seen::Value(std::mem::take(value)),
        torn => {
            let name = |value: &Option<Bytes>| {
                value.as_ref().map_or("nothing".into(), |v| String::from_utf8_lossy(v).into_owned())
            };
            Seen::Torn(torn.iter().map(name).collect::<Vec<_>>().join(", "))
        }
    }
}

/// How a write went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The write happened, and made this change.
    Done(Change),
    /// The write has certainly not happened.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// Errors that the server gives before it does anything.
const REFUSALS: [&str; 12] = [
    "BUSY",
    "LOADING",
    "OOM",
    "READONLY",
    "MASTERDOWN",
    "NOREPLICAS",
    "MISCONF",
    "NOAUTH",
    "NOPERM",
    "CLUSTERDOWN",
    "EXECABORT",
    "WRONGTYPE",
];

/// Parts of the proxy's errors about a command that has not reached the server.
const UNSENT: [&str; 3] = ["cannot be reached", "before this command was sent", "this connection was given up"];

/// Whether an error says that nothing was done.
fn is_refusal(error: &redis::ServerError) -> bool {
    let unsent = |text: &str| text.starts_with("nearside: upstream") && UNSENT.iter().any(|words| text.contains(words));
    REFUSALS.contains(&error.code()) || error.details().is_some_and(unsent)
}

/// The outcome of a write, by its last reply.
pub fn outcome(write: &Write, reply: &Value) -> WriteOutcome {
    let answer = match reply {
        Value::ServerError(e) if is_refusal(e) => return WriteOutcome::Refused,
        Value::ServerError(_) => return WriteOutcome::Unknown,
        Value::Array(items) if write.transaction => {
            if items.is_empty() || items.iter().any(|item| matches!(item, Value::ServerError(_))) {
                return WriteOutcome::Unknown;
            }
            items.last()
        }
        _ if write.transaction => return WriteOutcome::Unknown,
        reply => Some(reply),
    };
    let number = if let Some(Value::Int(n)) = answer { Some(*n) } else { None };
    WriteOutcome::Done(match &write.change {
        Change::Increment(_) => Change::Increment(number),
        Change::Append(token, _) => Change::Append(token.clone(), number.and_then(|n| length(write, n, token))),
        other => other.clone(),
    })
}

/// APPEND answers bytes, RPUSH elements.
fn length(write: &Write, answer: i64, token: &Bytes) -> Option<usize> {
    let unit = if write.name.ends_with("RPUSH") { token.len() } else { 1 };
    usize::try_from(answer).ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn error(line: &str) -> Value {
        redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap()
    }

    fn writer(kind: ObjectKind) -> Writer<'static> {
        Writer { kind, name: "p:x:1", token: "v0000007", field_ttls: FieldTtls::Any }
    }

    #[test]
    fn nothing_but_own_keys_is_touched() {
        let mut rng = fastrand::Rng::with_seed(1);
        let names_it = |command: &[u8]| memchr::memmem::find(command, b"p:x:1").is_some();
        for kind in KINDS {
            for _ in 0..500 {
                let write = writer(kind).any(&mut rng);
                assert!(write.commands.iter().all(|command| names_it(command)), "{}", write.name);
                assert!(names_it(&read(kind, "p:x:1", &mut rng).command));
            }
            assert!(keys(kind, "p:x:1").iter().all(|key| key.starts_with("p:x:1")));
        }
    }

    /// The token tells writes apart: only counters write something else than the token, and never the same twice.
    #[test]
    fn every_write_is_told_by_its_token() {
        let mut rng = fastrand::Rng::with_seed(2);
        for kind in KINDS {
            for _ in 0..500 {
                match writer(kind).any(&mut rng).change {
                    Change::Set { value, .. } if kind == ObjectKind::Counter => assert_eq!(&value[..], b"700000"),
                    Change::Set { value, .. } | Change::Append(value, _) => assert_eq!(&value[..], b"v0000007"),
                    Change::Increment(_) => assert_eq!(kind, ObjectKind::Counter),
                    Change::Delete | Change::DeleteFields | Change::Expire { .. } => {}
                }
            }
        }
    }

    #[test]
    fn what_replies_show() {
        let value = |text: &'static str| Some(Seen::Value(text.into()));
        assert_eq!(seen(ObjectKind::Text, "GET", bulk("a")), value("a"));
        assert_eq!(seen(ObjectKind::Text, "GET", Value::Nil), Some(Seen::Absent));
        assert_eq!(seen(ObjectKind::Text, "GETRANGE", bulk("")), Some(Seen::Absent));
        assert_eq!(seen(ObjectKind::Text, "GET", error("BUSY")), None);
        let fields = |f: Value, g: Value| vec![bulk("f"), f, bulk("g"), g];
        assert_eq!(seen(ObjectKind::Hash, "HGETALL", Value::Array(fields(bulk("a"), bulk("a")))), value("a"));
        assert_eq!(seen(ObjectKind::Hash, "HGETALL", Value::Map(vec![(bulk("f"), bulk("a"))])), value("a"));
        assert_eq!(seen(ObjectKind::Hash, "HGETALL", Value::Array(vec![])), Some(Seen::Absent));
        assert_eq!(seen(ObjectKind::Hash, "HMGET", Value::Array(vec![Value::Nil, Value::Nil])), Some(Seen::Absent));
        let torn = Some(Seen::Torn("a, nothing".into()));
        assert_eq!(seen(ObjectKind::Hash, "HMGET", Value::Array(vec![bulk("a"), Value::Nil])), torn);
        assert_eq!(
            seen(ObjectKind::Pair, "MGET", Value::Array(vec![bulk("a"), bulk("b")])),
            Some(Seen::Torn("a, b".into()))
        );
        assert_eq!(seen(ObjectKind::Queue, "LRANGE", Value::Array(vec![bulk("a"), bulk("b")])), value("ab"));
    }

    #[test]
    fn what_is_known_of_a_write() {
        let plain = |change| Write { name: "RPUSH", commands: vec![], transaction: false, change };
        let set = plain(Change::Delete);
        let lost = "ERR nearside: upstream 127.0.0.1:1: the connection was lost (reset)";
        assert_eq!(outcome(&set, &Value::Int(1)), WriteOutcome::Done(Change::Delete));
        for unknown in [&format!("{lost}; the outcome of this command is unknown"), "ERR something else"] {
            assert_eq!(outcome(&set, &error(unknown)), WriteOutcome::Unknown);
        }
        for refused in [&format!("{lost} before this command was sent"), "BUSY wait", "OOM no", "EXECABORT no"] {
            assert_eq!(outcome(&set, &error(refused)), WriteOutcome::Refused, "{refused}");
        }
        let push = plain(Change::Append("v0000007".into(), None));
        assert_eq!(outcome(&push, &Value::Int(3)), WriteOutcome::Done(Change::Append("v0000007".into(), Some(24))));
        let exec = Write { transaction: true, ..plain(Change::Increment(None)) };
        assert_eq!(outcome(&exec, &Value::Array(vec![Value::Int(4)])), WriteOutcome::Done(Change::Increment(Some(4))));
        assert_eq!(outcome(&exec, &Value::Nil), WriteOutcome::Unknown);
        assert_eq!(outcome(&exec, &Value::Array(vec![error("OOM no")])), WriteOutcome::Unknown);
    }
}
