//! A pretended Redis 7.0: connections, transactions, tracking, and the order in which all of it happens. It executes one
//! command at a time, and tells the link of a changed key before it answers who changed it. Which of the connections that
//! have said something comes next is left to chance, and so is how much is executed in one turn: nothing of what is said
//! in a turn leaves before its end, and who hears of every change is told at its end.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nearside::test_support::resp::{self, Cutter};
use nearside::test_support::time::Time;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_local;

use super::keyspace::{COMMANDS, Keyspace, Reply};
use super::network::{Arrival, Line};
use super::world::{Chance, Log};

const CHANNEL: &str = "__redis__:invalidate";
/// What a server that runs a long script still does.
const WHILE_BUSY: [&str; 3] = ["hello", "multi", "discard"];
/// Of all turns, those after which the server does something else for a while.
const PAUSES: f64 = 0.02;

/// What waits to be sent to one connection.
#[derive(Default)]
struct Out {
    bytes: RefCell<Vec<u8>>,
    more: Notify,
    closed: Cell<bool>,
}

/// What CLIENT TRACKING has switched on.
#[derive(Clone, Copy)]
struct Tracking {
    redirect: i64,
    broadcast: bool,
}

struct Connection {
    line: Rc<Line>,
    name: String,
    resp3: bool,
    input: BytesMut,
    /// Said in this turn.
    said: Vec<u8>,
    out: Rc<Out>,
    tracking: Option<Tracking>,
    /// CLIENT CACHING YES was the command before this one.
    caching: bool,
    subscribed: bool,
    /// What MULTI has queued.
    queue: Option<Vec<Vec<Bytes>>>,
    /// Something could not be queued.
    spoiled: bool,
}

/// See the module.
pub struct Server {
    data: Keyspace,
    connections: BTreeMap<i64, Connection>,
    ready: BTreeSet<i64>,
    /// Who has read what with CLIENT CACHING YES.
    readers: BTreeMap<Bytes, BTreeSet<i64>>,
    /// Changed in this turn, for those who hear of everything.
    fresh: BTreeSet<Bytes>,
    last_id: i64,
    busy_until: Time,
    /// So many more times it is busy until just after a CLIENT CACHING.
    blinks: usize,
    threads: bool,
    work: Rc<Notify>,
    log: Log,
}

impl Server {
    pub fn new(log: Log) -> Server {
        Server {
            data: Keyspace::default(),
            connections: BTreeMap::new(),
            ready: BTreeSet::new(),
            readers: BTreeMap::new(),
            fresh: BTreeSet::new(),
            last_id: 0,
            busy_until: Time::ZERO,
            blinks: 0,
            threads: false,
            work: Rc::default(),
            log,
        }
    }

    // --- what happens to it ---

    /// A script runs for so long.
    pub fn be_busy(&mut self, length: Duration) {
        self.busy_until = Time::now() + length;
    }

    /// A script ends just between the next CLIENT CACHING and its read, and so does the next, so many times.
    pub fn blink(&mut self, times: usize) {
        self.blinks = times;
    }

    /// Keys whose time has come are noticed, or not yet.
    pub fn expire(&mut self, chance: &Chance) {
        self.data.expire(milliseconds(), || chance.one_in(3));
        self.report_changes();
        self.work.notify_one();
    }

    /// FLUSHALL by somebody.
    pub fn flush(&mut self) {
        self.data.erase();
        self.readers.clear();
        let told: Vec<(i64, bool)> =
            self.connections.values().filter_map(|c| Some((c.tracking?.redirect, c.resp3))).collect();
        for (link, resp3) in told {
            let null: &[u8] = if resp3 { b"_\r\n" } else { b"$-1\r\n" };
            self.tell_link(link, null);
        }
        self.work.notify_one();
    }

    /// The table of readers is full: a key is reported that nobody has changed.
    pub fn overflow(&mut self, chance: &Chance) {
        let keys: Vec<Bytes> = self.readers.keys().cloned().collect();
        if !keys.is_empty() {
            self.changed(&keys[chance.below(keys.len())]);
        }
        self.work.notify_one();
    }

    /// It begins again, empty. Its connections are to be cut at the same moment.
    pub fn restart(&mut self) {
        self.data.erase();
        self.connections.values().for_each(|c| c.out.close());
        self.connections.clear();
        self.ready.clear();
        self.readers.clear();
        self.fresh.clear();
    }

    /// Turns may be long from here on, and what is said to clients leaves before their end.
    pub fn use_threads(&mut self) {
        self.threads = true;
    }

    /// The lines of those who call themselves so.
    pub fn lines(&self, name: &str) -> Vec<Rc<Line>> {
        self.connections.values().filter(|c| c.name == name).map(|c| c.line.clone()).collect()
    }

    // --- connections ---

    fn enter(&mut self, line: Rc<Line>, out: Rc<Out>) -> i64 {
        self.last_id += 1;
        self.connections.insert(self.last_id, Connection::new(line, out));
        self.last_id
    }

    /// A connection has ended: what it has read is forgotten, and nobody is told.
    fn leave(&mut self, id: i64) {
        if let Some(connection) = self.connections.remove(&id) {
            connection.out.close();
            self.log.line(format_args!("{id} {} left", connection.name));
        }
        self.ready.remove(&id);
        self.readers.values_mut().for_each(|readers| {
            readers.remove(&id);
        });
    }

    fn heard(&mut self, id: i64, bytes: &[u8]) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        connection.input.extend_from_slice(bytes);
        if whole_request(&connection.input).is_some() && self.ready.insert(id) {
            self.work.notify_one();
        }
        true
    }

    /// Executes the first request of this connection, if it is whole.
    fn execute_one(&mut self, id: i64) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        let Some((args, length)) = whole_request(&connection.input) else {
            self.ready.remove(&id);
            return false;
        };
        let _ = connection.input.split_to(length);
        let replies = self.execute(id, &args);
        let words: Vec<_> = args.iter().map(|a| String::from_utf8_lossy(a)).collect();
        self.log.line(format_args!("{id} {} -> {replies:?}", words.join(" ")));
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        replies.iter().for_each(|reply| reply.encode(connection.resp3, &mut connection.said));
        true
    }

    // --- commands ---

    fn execute(&mut self, id: i64, args: &[Bytes]) -> Vec<Reply> {
        let name = String::from_utf8_lossy(&args[0]).to_lowercase();
        let Some(connection) = self.connections.get_mut(&id) else { return Vec::new() };
        let caching = name != "client" && std::mem::take(&mut connection.caching);
        let is_caching = || name == "client" && args.get(1).is_some_and(|word| word.eq_ignore_ascii_case(b"caching"));
        let blinks = self.blinks > 0 && is_caching();
        if blinks || Time::now() < self.busy_until && !WHILE_BUSY.contains(&&*name) {
            self.blinks -= usize::from(blinks);
            return vec![connection.refuse_busy(&name)];
        }
        if let Some(queue) = connection.queue.as_mut().filter(|_| !matches!(&*name, "exec" | "discard")) {
            queue.push(args.to_vec());
            return vec![Reply::Status("QUEUED")];
        }
        let reply = match &*name {
            "multi" => {
                (connection.queue, connection.spoiled) = (Some(Vec::new()), false);
                Reply::Status("OK")
            }
            "discard" => {
                connection.queue = None;
                Reply::Status("OK")
            }
            "exec" => self.exec(id),
            "subscribe" => {
                connection.subscribed = true;
                Reply::Push(vec![Reply::text("subscribe"), Reply::text(CHANNEL), Reply::Int(1)])
            }
            "ping" if connection.subscribed && !connection.resp3 => {
                let text = args.get(1).cloned().unwrap_or_default();
                Reply::List(vec![Reply::text("pong"), Reply::Bulk(text)])
            }
            "hello" => {
                connection.resp3 = args.get(1).is_some_and(|version| &version[..] == b"3");
                if let Some([_, name]) = args.windows(2).rfind(|pair| &pair[0][..] == b"SETNAME") {
                    connection.name = String::from_utf8_lossy(name).into_owned();
                }
                hello(id, connection.resp3)
            }
            "client" => self.client(id, args),
            _ => self.data_command(id, &name, args, caching),
        };
        vec![reply]
    }

    fn data_command(&mut self, id: i64, name: &str, args: &[Bytes], caching: bool) -> Reply {
        if name == "flushall" {
            self.flush();
            return Reply::Status("OK");
        }
        self.data.read.clear();
        let Some(reply) = self.data.call(args, milliseconds()).or_else(|| told_of_itself(name, args)) else {
            return Reply::Error(format!("ERR unknown command '{name}'"));
        };
        let tracked = self.connections.get(&id).is_some_and(|c| c.tracking.is_some_and(|t| !t.broadcast));
        // What had expired is reported first: it was gone before it was read.
        self.report_changes();
        if caching && tracked {
            for key in std::mem::take(&mut self.data.read) {
                self.readers.entry(key).or_default().insert(id);
            }
        }
        reply
    }

    fn exec(&mut self, id: i64) -> Reply {
        let Some(connection) = self.connections.get_mut(&id) else { return Reply::Nil };
        let Some(queue) = connection.queue.take() else { return Reply::Error("ERR EXEC without MULTI".into()) };
        if connection.spoiled {
            return Reply::Error("EXECABORT Transaction discarded because of previous errors.".into());
        }
        let names = queue.iter().map(|args| String::from_utf8_lossy(&args[0]).to_lowercase());
        let replies = names.zip(&queue).map(|(name, args)| self.data_command(id, &name, args, false));
        Reply::List(replies.collect())
    }

    fn client(&mut self, id: i64, args: &[Bytes]) -> Reply {
        let word = |i: usize| String::from_utf8_lossy(args.get(i).map_or(b"", |a| &a[..])).to_lowercase();
        let words: Vec<String> = (0..args.len()).map(word).collect();
        let ids: BTreeSet<i64> = self.connections.keys().copied().collect();
        let Some(connection) = self.connections.get_mut(&id) else { return Reply::Nil };
        match &*words[1] {
            "caching" if connection.tracking.is_none() => {
                return Reply::Error(
                    "ERR CLIENT CACHING can be called only when the client is in tracking mode".into(),
                );
            }
            "caching" => connection.caching = true,
            "tracking" if words[2] == "off" => connection.tracking = None,
            "tracking" => {
                let at = words.iter().position(|w| w == "redirect");
                let redirect = at.and_then(|at| words[at + 1].parse().ok()).unwrap_or(id);
                if !ids.contains(&redirect) {
                    return Reply::Error("ERR The client ID you want redirect to does not exist".into());
                }
                let broadcast = words.iter().any(|w| w == "bcast");
                connection.tracking = Some(Tracking { redirect, broadcast });
            }
            other => return Reply::Error(format!("ERR unknown subcommand '{other}'")),
        }
        Reply::Status("OK")
    }

    // --- tracking ---

    fn report_changes(&mut self) {
        for key in std::mem::take(&mut self.data.changed) {
            self.changed(&key);
            self.fresh.insert(key);
        }
    }

    /// Everybody who has read it is told, once.
    fn changed(&mut self, key: &Bytes) {
        for reader in self.readers.remove(key).unwrap_or_default() {
            let Some(link) = self.connections.get(&reader).and_then(|c| c.tracking) else { continue };
            if self.connections.contains_key(&link.redirect) {
                self.tell_link(link.redirect, &resp::encode(&[key]));
            } else if let Some(reader) = self.connections.get_mut(&reader).filter(|c| c.resp3) {
                let broken = Reply::Push(vec![Reply::text("tracking-redir-broken"), Reply::Int(link.redirect)]);
                broken.encode(true, &mut reader.said);
            }
        }
    }

    /// Those who hear of everything are told, and what was said leaves.
    fn end_turn(&mut self) {
        let keys: Vec<Bytes> = std::mem::take(&mut self.fresh).into_iter().collect();
        let listeners = self.connections.values().filter_map(|c| c.tracking).filter(|t| t.broadcast);
        let listeners: Vec<i64> = listeners.map(|t| t.redirect).collect();
        if !keys.is_empty() {
            listeners.iter().for_each(|link| self.tell_link(*link, &resp::encode(&keys)));
        }
        self.send(|_| true);
    }

    /// With threads, what is said to others than links leaves before the end of the turn.
    fn send_early(&mut self) {
        self.send(|connection| !connection.subscribed && connection.tracking.is_none_or(|t| !t.broadcast));
    }

    fn send(&mut self, who: impl Fn(&Connection) -> bool) {
        for connection in self.connections.values_mut().filter(|c| !c.said.is_empty() && who(c)) {
            connection.out.send(&std::mem::take(&mut connection.said));
        }
    }

    /// As a message if it has subscribed, as a push if it tracks for itself.
    fn tell_link(&mut self, link: i64, payload: &[u8]) {
        let Some(link) = self.connections.get_mut(&link) else { return };
        let head = match (link.subscribed, link.resp3) {
            (true, _) => format!("*3\r\n$7\r\nmessage\r\n${}\r\n{CHANNEL}\r\n", CHANNEL.len()),
            (false, true) => ">2\r\n$10\r\ninvalidate\r\n".into(),
            // What is said to nobody in particular is lost.
            (false, false) => return,
        };
        link.said.extend_from_slice(&[head.as_bytes(), payload].concat());
    }
}

impl Connection {
    fn new(line: Rc<Line>, out: Rc<Out>) -> Connection {
        let (name, input, said) = Default::default();
        let (resp3, caching, subscribed, spoiled) = (false, false, false, false);
        Connection { line, name, resp3, input, said, out, tracking: None, caching, subscribed, queue: None, spoiled }
    }

    /// What is not queued spoils the transaction; EXEC ends it.
    fn refuse_busy(&mut self, name: &str) -> Reply {
        const BUSY: &str = "BUSY Redis is busy running a script.";
        self.spoiled = true;
        if name == "exec" && self.queue.take().is_some() {
            return Reply::Error(format!("EXECABORT Transaction discarded because of: {BUSY}"));
        }
        Reply::Error(BUSY.into())
    }
}

impl Out {
    fn send(&self, bytes: &[u8]) {
        self.bytes.borrow_mut().extend_from_slice(bytes);
        self.more.notify_one();
    }

    fn close(&self) {
        self.closed.set(true);
        self.more.notify_one();
    }
}

fn milliseconds() -> u64 {
    Time::now().0 / 1_000_000
}

/// The first request, if it is whole, and its length.
fn whole_request(input: &[u8]) -> Option<(Vec<Bytes>, usize)> {
    let length = Cutter::default().cut(input).expect("the proxy speaks RESP")?;
    let (count, mut rest) = resp::split_aggregate(&input[..length])?;
    let mut args = Vec::with_capacity(count);
    for _ in 0..count {
        let (arg, next) = resp::split_bulk(rest)?;
        args.push(Bytes::copy_from_slice(arg));
        rest = next;
    }
    Some((args, length))
}

fn hello(id: i64, resp3: bool) -> Reply {
    let pair = |name: &str, value| (Reply::text(name), value);
    Reply::Map(vec![
        pair("server", Reply::text("redis")),
        pair("version", Reply::text("7.0.15")),
        pair("proto", Reply::Int(if resp3 { 3 } else { 2 })),
        pair("id", Reply::Int(id)),
        pair("mode", Reply::text("standalone")),
        pair("role", Reply::text("master")),
        pair("modules", Reply::List(Vec::new())),
    ])
}

fn told_of_itself(name: &str, args: &[Bytes]) -> Option<Reply> {
    let section = args.get(1).map(|section| String::from_utf8_lossy(section).to_lowercase()).unwrap_or_default();
    Some(match (name, &*section) {
        ("info", "server") => Reply::text("# Server\r\nredis_version:7.0.15\r\n"),
        ("info", "replication") => Reply::text("# Replication\r\nrole:master\r\nmaster_replid:0\r\n"),
        ("info", _) => Reply::text("# Nothing\r\n"),
        ("acl", _) => Reply::List(vec![Reply::text("user default on nopass ~* &* +@all")]),
        ("command", _) => Reply::List(COMMANDS.iter().map(listed).collect()),
        ("time", _) => {
            let now = Time::now().0;
            Reply::List(vec![
                Reply::text((now / 1_000_000_000).to_string()),
                Reply::text((now / 1000 % 1_000_000).to_string()),
            ])
        }
        ("select", _) => Reply::Status("OK"),
        _ => return None,
    })
}

fn listed((name, arity, write, first, last, step): &(&'static str, i64, bool, i64, i64, i64)) -> Reply {
    let flag = if *name == "eval" {
        "movablekeys"
    } else if *write {
        "write"
    } else {
        "readonly"
    };
    let numbers = [*first, *last, *step].map(Reply::Int);
    let head = [Reply::text(*name), Reply::Int(*arity), Reply::List(vec![Reply::Status(flag)])];
    Reply::List(head.into_iter().chain(numbers).collect())
}

// --- its tasks ---

/// Takes what `dialled` brings.
pub async fn accept(server: Rc<RefCell<Server>>, mut dialled: mpsc::Receiver<Arrival>) {
    while let Some(Arrival { end, line }) = dialled.recv().await {
        let (read, write) = tokio::io::split(end);
        let out = Rc::new(Out::default());
        let id = server.borrow_mut().enter(line, out.clone());
        spawn_local(listen(server.clone(), id, read));
        spawn_local(tell(out, write));
    }
}

/// Executes for as long as the simulation lasts.
pub async fn work(server: Rc<RefCell<Server>>, chance: Chance) {
    let work = server.borrow().work.clone();
    // When the turn ends at the latest.
    let mut end = Time::ZERO;
    loop {
        let ready: Vec<i64> = server.borrow().ready.iter().copied().collect();
        if ready.is_empty() {
            let left = end.since(Time::now());
            if left.is_zero() {
                end_turn(&server, &chance).await;
                work.notified().await;
                let long = server.borrow().threads && chance.one_in(2);
                end = if long { Time::now() + chance.pause() / 4 } else { Time::ZERO };
            } else {
                server.borrow_mut().send_early();
                // Whichever comes first.
                let _ = tokio::time::timeout(left, work.notified()).await;
            }
            continue;
        }
        let next = ready[chance.below(ready.len())];
        let most = if chance.one_in(3) { 1 } else { 100 };
        for _ in 0..most {
            if !server.borrow_mut().execute_one(next) {
                break;
            }
        }
        if Time::now() < end || chance.one_in(2) {
            continue;
        }
        end_turn(&server, &chance).await;
        if chance.share() < PAUSES {
            tokio::time::sleep(chance.pause()).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}

/// What was said in a turn may leave before the reports that are made at its end.
async fn end_turn(server: &RefCell<Server>, chance: &Chance) {
    if !server.borrow().fresh.is_empty() && chance.one_in(4) {
        server.borrow_mut().send(|_| true);
        tokio::time::sleep(chance.pause() / 8).await;
    }
    server.borrow_mut().end_turn();
}

async fn listen(server: Rc<RefCell<Server>>, id: i64, mut read: ReadHalf<DuplexStream>) {
    let mut buf = [0; 4096];
    while let Ok(n @ 1..) = read.read(&mut buf).await {
        if !server.borrow_mut().heard(id, &buf[..n]) {
            return;
        }
    }
    server.borrow_mut().leave(id);
}

async fn tell(out: Rc<Out>, mut write: WriteHalf<DuplexStream>) {
    loop {
        let bytes = out.bytes.take();
        if !bytes.is_empty() {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        } else if out.closed.get() {
            // To who has gone already it cannot be said.
            let _ = write.shutdown().await;
            return;
        } else {
            out.more.notified().await;
        }
    }
}
