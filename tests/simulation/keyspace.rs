//! The data of the pretended server, and as many commands as the clients of `nearside verify` say. Times are the server's
//! milliseconds.

use std::collections::BTreeMap;

use bytes::Bytes;

/// A reply, before it is known in which protocol.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Nil,
    Status(&'static str),
    Int(i64),
    Bulk(Bytes),
    List(Vec<Reply>),
    Map(Vec<(Reply, Reply)>),
    Push(Vec<Reply>),
    Error(String),
}

impl Reply {
    pub fn text(text: impl Into<String>) -> Reply {
        Reply::Bulk(text.into().into())
    }

    fn bulk_or_nil(value: Option<Bytes>) -> Reply {
        value.map_or(Reply::Nil, Reply::Bulk)
    }

    fn bulks(values: impl Iterator<Item = Bytes>) -> Reply {
        Reply::List(values.map(Reply::Bulk).collect())
    }

    pub fn encode(&self, resp3: bool, out: &mut Vec<u8>) {
        let mut head = |kind: char, n: i64| out.extend_from_slice(format!("{kind}{n}\r\n").as_bytes());
        match self {
            Reply::Nil => out.extend_from_slice(if resp3 { b"_\r\n" } else { b"$-1\r\n" }),
            Reply::Status(word) => out.extend_from_slice(format!("+{word}\r\n").as_bytes()),
            Reply::Error(text) => out.extend_from_slice(format!("-{text}\r\n").as_bytes()),
            Reply::Int(n) => head(':', *n),
            Reply::Bulk(bytes) => {
                head('$', bytes.len() as i64);
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            Reply::List(items) | Reply::Push(items) => {
                let push = resp3 && matches!(self, Reply::Push(_));
                head(if push { '>' } else { '*' }, items.len() as i64);
                items.iter().for_each(|item| item.encode(resp3, out));
            }
            Reply::Map(pairs) => {
                head(if resp3 { '%' } else { '*' }, pairs.len() as i64 * if resp3 { 1 } else { 2 });
                pairs.iter().flat_map(|(k, v)| [k, v]).for_each(|item| item.encode(resp3, out));
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Value {
    Text(Vec<u8>),
    Hash(BTreeMap<Bytes, Bytes>),
    List(Vec<Bytes>),
}

#[derive(Clone, Debug)]
struct Item {
    value: Value,
    ends: Option<u64>,
}

/// See the module.
#[derive(Default)]
pub struct Keyspace {
    items: BTreeMap<Bytes, Item>,
    /// Keys that the commands since the last look have read.
    pub read: Vec<Bytes>,
    /// Keys that they have changed.
    pub changed: Vec<Bytes>,
    now: u64,
}

/// A command as the server lists it: name, arity, whether it writes, where its first and last key and the step between.
pub type Row = (&'static str, i64, bool, i64, i64, i64);

/// All of the data's.
#[rustfmt::skip]
pub const COMMANDS: [Row; 29] = [
    ("get", 2, false, 1, 1, 1), ("getrange", 4, false, 1, 1, 1), ("mget", -2, false, 1, -1, 1), ("pttl", 2, false, 1, 1, 1),
    ("hget", 3, false, 1, 1, 1), ("hmget", -3, false, 1, 1, 1), ("hvals", 2, false, 1, 1, 1), ("hgetall", 2, false, 1, 1, 1),
    ("lrange", 4, false, 1, 1, 1), ("set", -3, true, 1, 1, 1), ("getset", 3, true, 1, 1, 1), ("getdel", 2, true, 1, 1, 1),
    ("getex", -2, true, 1, 1, 1), ("mset", -3, true, 1, -1, 2), ("del", -2, true, 1, -1, 1), ("unlink", -2, true, 1, -1, 1),
    ("incr", 2, true, 1, 1, 1), ("incrby", 3, true, 1, 1, 1), ("append", 3, true, 1, 1, 1), ("pexpire", -3, true, 1, 1, 1),
    ("rename", 3, true, 1, 2, 1), ("copy", -3, true, 1, 2, 1), ("hset", -4, true, 1, 1, 1), ("hmset", -4, true, 1, 1, 1),
    ("hdel", -3, true, 1, 1, 1), ("rpush", -3, true, 1, 1, 1), ("flushall", -1, true, 0, 0, 0), ("eval", -3, false, 0, 0, 0),
    ("ping", -1, false, 0, 0, 0),
];

fn wrong_type() -> Reply {
    Reply::Error("WRONGTYPE Operation against a key holding the wrong kind of value".into())
}

fn number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

impl Keyspace {
    /// Executes one command; `None`: it is none of the data's.
    pub fn call(&mut self, args: &[Bytes], now: u64) -> Option<Reply> {
        self.now = now;
        let name = args[0].to_ascii_lowercase();
        let name = std::str::from_utf8(&name).ok()?;
        let (_, arity, write, first, ..) = COMMANDS.iter().find(|row| row.0 == name)?;
        let count = args.len() as i64;
        if count != *arity && !(*arity < 0 && count >= -*arity) {
            return Some(Reply::Error(format!("ERR wrong number of arguments for '{name}' command")));
        }
        if *first > 0 && !write && name != "pttl" {
            let last = if name == "mget" { args.len() } else { 2 };
            self.read.extend_from_slice(&args[1..last]);
        }
        Some(match name {
            "eval" => self.script(args),
            "hset" | "hmset" | "hget" | "hmget" | "hvals" | "hgetall" | "hdel" => self.hash(name, args),
            "rpush" | "lrange" => self.list(name, args),
            "set" | "getset" | "getdel" | "getex" | "mset" | "append" | "incr" | "incrby" => {
                self.write_text(name, args)
            }
            "get" | "getrange" => self.text(&args[1]).map_or_else(|e| e, |value| whole(name, value)),
            "mget" => {
                Reply::List(args[1..].iter().map(|key| self.text(key).map_or(Reply::Nil, Reply::bulk_or_nil)).collect())
            }
            _ => self.key(name, args),
        })
    }

    /// What is there now; a key whose time has come goes as soon as somebody looks.
    fn live(&mut self, key: &Bytes) -> Option<&mut Item> {
        let now = self.now;
        if self.items.get(key).is_some_and(|item| item.ends.is_some_and(|ends| now > ends)) {
            self.remove(key);
        }
        self.items.get_mut(key)
    }

    fn remove(&mut self, key: &Bytes) -> bool {
        let was = self.items.remove(key).is_some();
        if was {
            self.changed.push(key.clone());
        }
        was
    }

    fn put(&mut self, key: &Bytes, value: Value, ends: Option<u64>) {
        self.items.insert(key.clone(), Item { value, ends });
        self.changed.push(key.clone());
    }

    /// Removes each key whose time has come and that `chosen` takes.
    pub fn expire(&mut self, now: u64, mut chosen: impl FnMut() -> bool) {
        self.now = now;
        let over: Vec<Bytes> =
            self.items.iter().filter(|(_, i)| i.ends.is_some_and(|ends| now > ends)).map(|(k, _)| k.clone()).collect();
        over.iter().filter(|_| chosen()).for_each(|key| {
            self.remove(key);
        });
    }

    /// Nothing is left, and nobody is told which keys those were.
    pub fn erase(&mut self) {
        self.items.clear();
    }

    fn text(&mut self, key: &Bytes) -> Result<Option<Bytes>, Reply> {
        match self.live(key).map(|item| &item.value) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(Bytes::copy_from_slice(text))),
            Some(_) => Err(wrong_type()),
        }
    }

    fn write_text(&mut self, name: &str, args: &[Bytes]) -> Reply {
        let key = &args[1];
        let old = match self.text(key) {
            Ok(old) => old,
            Err(e) => return e,
        };
        let ends = self.items.get(key).and_then(|item| item.ends);
        let after = |at: usize| args.get(at).and_then(|ms| number(ms)).map(|ms| self.now + ms as u64);
        match name {
            "set" => {
                let ends = after(4);
                self.put(key, Value::Text(args[2].to_vec()), ends);
                Reply::Status("OK")
            }
            "mset" => {
                args[1..].chunks(2).for_each(|pair| self.put(&pair[0], Value::Text(pair[1].to_vec()), None));
                Reply::Status("OK")
            }
            "getset" => {
                self.put(key, Value::Text(args[2].to_vec()), None);
                Reply::bulk_or_nil(old)
            }
            "getdel" => {
                self.remove(key);
                Reply::bulk_or_nil(old)
            }
            "getex" => {
                if let (Some(old), Some(ends)) = (&old, after(3)) {
                    self.put(key, Value::Text(old.to_vec()), Some(ends));
                }
                Reply::bulk_or_nil(old)
            }
            "append" => {
                let text = [old.as_deref().unwrap_or_default(), &args[2]].concat();
                let length = text.len();
                self.put(key, Value::Text(text), ends);
                Reply::Int(length as i64)
            }
            _ => {
                let Some(was) = number(old.as_deref().unwrap_or(b"0")) else {
                    return Reply::Error("ERR value is not an integer or out of range".into());
                };
                let sum = was + args.get(2).and_then(|by| number(by)).unwrap_or(1);
                self.put(key, Value::Text(sum.to_string().into_bytes()), ends);
                Reply::Int(sum)
            }
        }
    }

    fn hash(&mut self, name: &str, args: &[Bytes]) -> Reply {
        let key = &args[1];
        let (mut fields, ends) = match self.live(key) {
            None => (BTreeMap::new(), None),
            Some(Item { value: Value::Hash(fields), ends }) => (fields.clone(), *ends),
            Some(_) => return wrong_type(),
        };
        let field = |i: usize| Reply::bulk_or_nil(fields.get(&args[i]).cloned());
        match name {
            "hget" => field(2),
            "hmget" => Reply::List((2..args.len()).map(field).collect()),
            "hvals" => Reply::bulks(fields.into_values()),
            "hgetall" => Reply::Map(fields.into_iter().map(|(f, v)| (Reply::Bulk(f), Reply::Bulk(v))).collect()),
            "hdel" => {
                let gone = args[2..].iter().filter(|f| fields.remove(*f).is_some()).count();
                if gone > 0 && fields.is_empty() {
                    self.remove(key);
                } else if gone > 0 {
                    self.put(key, Value::Hash(fields), ends);
                }
                Reply::Int(gone as i64)
            }
            _ => {
                let pairs = args[2..].chunks(2).map(|pair| (pair[0].clone(), pair[1].clone()));
                let new = pairs.filter(|(f, v)| fields.insert(f.clone(), v.clone()).is_none()).count();
                self.put(key, Value::Hash(fields), ends);
                if name == "hmset" { Reply::Status("OK") } else { Reply::Int(new as i64) }
            }
        }
    }

    fn list(&mut self, name: &str, args: &[Bytes]) -> Reply {
        let key = &args[1];
        let (mut items, ends) = match self.live(key) {
            None => (Vec::new(), None),
            Some(Item { value: Value::List(items), ends }) => (items.clone(), *ends),
            Some(_) => return wrong_type(),
        };
        if name == "lrange" {
            return Reply::bulks(items.into_iter());
        }
        items.extend_from_slice(&args[2..]);
        let length = items.len();
        self.put(key, Value::List(items), ends);
        Reply::Int(length as i64)
    }

    /// Commands that do not care what a key holds.
    fn key(&mut self, name: &str, args: &[Bytes]) -> Reply {
        let now = self.now;
        match name {
            "ping" => args.get(1).map_or(Reply::Status("PONG"), |text| Reply::Bulk(text.clone())),
            "del" | "unlink" => {
                let gone = args[1..].iter().filter(|key| self.live(key).is_some() && self.remove(key)).count();
                Reply::Int(gone as i64)
            }
            "pttl" => Reply::Int(match self.live(&args[1]) {
                None => -2,
                Some(Item { ends: None, .. }) => -1,
                Some(Item { ends: Some(ends), .. }) => (*ends - now) as i64,
            }),
            "pexpire" => {
                let Some(item) = self.live(&args[1]).cloned() else { return Reply::Int(0) };
                match number(&args[2]) {
                    Some(1..) => self.put(&args[1], item.value, number(&args[2]).map(|ms| now + ms as u64)),
                    _ => {
                        self.remove(&args[1]);
                    }
                }
                Reply::Int(1)
            }
            _ => {
                let Some(item) = self.live(&args[1]).cloned() else {
                    return if name == "copy" { Reply::Int(0) } else { Reply::Error("ERR no such key".into()) };
                };
                self.put(&args[2], item.value, item.ends);
                if name == "copy" {
                    return Reply::Int(1);
                }
                self.remove(&args[1]);
                Reply::Status("OK")
            }
        }
    }

    /// One `return redis.call(…)` over literals, KEYS and ARGV: the scripts that verify sends.
    fn script(&mut self, args: &[Bytes]) -> Reply {
        let count = number(&args[2]).unwrap_or(0) as usize;
        let (keys, argv) = args[3..].split_at(count);
        let text = String::from_utf8_lossy(&args[1]).into_owned();
        let inner = text.strip_prefix("return redis.call(").and_then(|rest| rest.strip_suffix(')'));
        let Some(inner) = inner else { return Reply::Error(format!("ERR not a script of verify: {text}")) };
        let mut call: Vec<Bytes> = Vec::new();
        for word in inner.split(", ") {
            let at = |name: &str| word.strip_prefix(name)?.strip_suffix(']')?.parse::<usize>().ok();
            match (word, at("KEYS["), at("ARGV[")) {
                ("unpack(ARGV)", ..) => call.extend_from_slice(argv),
                (_, Some(i), _) => call.push(keys[i - 1].clone()),
                (_, _, Some(i)) => call.push(argv[i - 1].clone()),
                _ => call.push(Bytes::copy_from_slice(word.trim_matches('\'').as_bytes())),
            }
        }
        self.call(&call, self.now).unwrap_or_else(|| Reply::Error("ERR unknown command in a script".into()))
    }
}

/// What GET says, and GETRANGE from end to end.
fn whole(name: &str, value: Option<Bytes>) -> Reply {
    if name == "getrange" { Reply::Bulk(value.unwrap_or_default()) } else { Reply::bulk_or_nil(value) }
}
