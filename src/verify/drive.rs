//! The clients: each step is a write or a few reads of random objects, by a random way, and a note of what came of it.
//!
//! All clients run in one thread and read one clock. They work in rounds: at the end of one, nothing is under way, the
//! objects are given up, and what was noted can be judged by itself.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use redis::Value;
use tokio::task::JoinSet;

use super::history::{Action, Change, History, Object, Op, RouteUnderTest};
use super::wire::{PATIENCE, Target, TestConnection};
use super::work::{self, FieldTtls, KINDS, ObjectKind, Read, Write, WriteOutcome, Writer};
use crate::config::Level;
use crate::resp;
use crate::time::Time;

/// A client's mean pause between two steps.
const PAUSE: f64 = 0.002;
/// A client that could not connect, or was told an error, waits before it tries again.
const RETRY: Duration = Duration::from_millis(20);
/// An object with a write of unknown outcome is given up after at most this: each such write doubles what is possible.
const TAINTED: u64 = 300;
/// How often objects are written, against each other: some all the time, some so rarely that a bound can pass.
const WEIGHTS: [f64; 3] = [10.0, 1.0, 0.1];

/// The proportions of the clients' steps.
#[derive(Clone, Debug)]
pub struct Mix {
    /// The kinds of the objects, in turn.
    pub kinds: Vec<ObjectKind>,
    /// How many of all steps write.
    pub writes: f64,
    /// The connections of a client by each way: whether each speaks RESP3.
    pub resp3: Vec<bool>,
}

/// A little of everything.
impl Default for Mix {
    fn default() -> Mix {
        Mix { kinds: KINDS.to_vec(), writes: 0.25, resp3: vec![false, true] }
    }
}

/// One way to the data.
pub struct Way {
    /// Where it leads.
    pub target: Target,
    /// The name and the promise.
    pub route: RouteUnderTest,
    /// Ask for this level on every connection.
    pub ask: Option<Level>,
}

/// A place among the objects in use; the object in it changes.
struct ObjectSlot {
    kind: ObjectKind,
    weight: f64,
    object: Cell<usize>,
    /// When the object is to be given up.
    until: Cell<Time>,
}

/// The part of a run that all clients share.
pub struct Site {
    /// The ways; the first goes past all proxies.
    pub ways: Vec<Way>,
    prefix: String,
    field_ttls: FieldTtls,
    mix: Mix,
    slots: Vec<ObjectSlot>,
    objects: RefCell<Vec<(ObjectKind, String)>>,
    objects_ever: Cell<u64>,
    tokens: Cell<u64>,
    sessions: RefCell<Vec<usize>>,
    /// When the clients are to stop.
    deadline: Cell<Time>,
    /// Errors that clients were told, and how often each.
    pub errors: RefCell<BTreeMap<String, u64>>,
    /// Requests without an answer in time.
    pub unanswered: Cell<u64>,
}

impl Site {
    /// With so many objects at a time.
    pub fn new(ways: Vec<Way>, prefix: String, objects: usize, field_ttls: FieldTtls, mix: Mix) -> Site {
        let slot = |i: usize| ObjectSlot {
            kind: mix.kinds[i % mix.kinds.len()],
            weight: WEIGHTS[i / mix.kinds.len() % WEIGHTS.len()],
            object: Cell::new(0),
            until: Cell::new(Time::ZERO),
        };
        Site {
            ways,
            prefix,
            field_ttls,
            slots: (0..objects).map(slot).collect(),
            mix,
            objects: RefCell::default(),
            objects_ever: Cell::new(0),
            tokens: Cell::new(0),
            sessions: RefCell::default(),
            deadline: Cell::new(Time::ZERO),
            errors: RefCell::default(),
            unanswered: Cell::new(0),
        }
    }

    /// Ends the round.
    pub fn stop(&self) {
        self.deadline.set(Time::ZERO);
    }

    /// Lets the clients work, and collects what they noted.
    pub async fn round(self: &Rc<Self>, clients: &mut Vec<TestClient>, length: Duration) -> History {
        self.objects.borrow_mut().clear();
        self.slots.iter().for_each(|slot| slot.until.set(Time::ZERO));
        self.deadline.set(Time::now() + length);
        let mut running = JoinSet::new();
        for client in clients.drain(..) {
            running.spawn_local(client.run());
        }
        *clients = running.join_all().await;
        clients.sort_by_key(|client| client.number);
        let mut history = History {
            routes: self.ways.iter().map(|way| way.route.clone()).collect(),
            sessions: self.sessions.borrow().clone(),
            objects: self.objects.borrow().iter().map(object_of).collect(),
            ops: clients.iter_mut().flat_map(|client| std::mem::take(&mut client.ops)).collect(),
            ..History::default()
        };
        history.sort();
        history
    }

    /// The keys of the objects of the last round.
    pub fn keys(&self) -> Vec<String> {
        self.objects.borrow().iter().flat_map(|(kind, name)| work::keys(*kind, name)).collect()
    }

    fn token(&self) -> String {
        self.tokens.set(self.tokens.get() + 1);
        format!("v{:07x}", self.tokens.get())
    }

    /// The object in a slot; a new one if the last has been given up.
    fn object(&self, slot: &ObjectSlot) -> (usize, String) {
        let mut objects = self.objects.borrow_mut();
        if Time::now() >= slot.until.get() {
            let number = self.objects_ever.get();
            self.objects_ever.set(number + 1);
            slot.object.set(objects.len());
            slot.until.set(Time::NEVER);
            let kind = format!("{:?}", slot.kind).to_lowercase();
            objects.push((slot.kind, format!("{}:{kind}:{number}", self.prefix)));
        }
        (slot.object.get(), objects[slot.object.get()].1.clone())
    }

    fn error(&self, what: &str) {
        let what: String = what.chars().take(160).collect();
        *self.errors.borrow_mut().entry(what).or_default() += 1;
    }

    fn lost(&self, way: usize, e: &io::Error) {
        let name = &self.ways[way].route.name;
        if e.kind() == io::ErrorKind::TimedOut {
            self.unanswered.set(self.unanswered.get() + 1);
            return self.error(&format!("{name}: no answer within {PATIENCE:?}"));
        }
        self.error(&format!("{name}: connection lost: {e}"));
    }
}

/// A connection and its number among the sessions.
struct TestSession {
    connection: TestConnection,
    number: usize,
}

/// One client, with connections of its own by every way.
pub struct TestClient {
    site: Rc<Site>,
    number: usize,
    rng: fastrand::Rng,
    sessions: Vec<Option<TestSession>>,
    ops: Vec<Op>,
}

impl TestClient {
    /// Its choices depend on the seed and its number alone.
    pub fn new(site: &Rc<Site>, number: usize, seed: u64) -> TestClient {
        let sessions = (0..site.ways.len() * site.mix.resp3.len()).map(|_| None).collect();
        let rng = fastrand::Rng::with_seed(seed.wrapping_add(number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        TestClient { site: site.clone(), number, rng, sessions, ops: Vec::new() }
    }

    async fn run(mut self) -> TestClient {
        while Time::now() < self.site.deadline.get() {
            if self.rng.f64() < self.site.mix.writes {
                self.write_step().await
            } else {
                self.read_step().await
            }
            let pause = -(1.0 - self.rng.f64()).ln() * PAUSE;
            tokio::time::sleep(Duration::from_secs_f64(pause)).await;
        }
        self
    }

    /// A connection by this way: `which` of several.
    async fn session(&mut self, way: usize) -> Option<usize> {
        let by_way = self.site.mix.resp3.len();
        let nth = self.rng.usize(0..by_way);
        let which = way * by_way + nth;
        if self.sessions[which].is_none() {
            match open(&self.site.ways[way], self.site.mix.resp3[nth]).await {
                Ok(connection) => {
                    let mut sessions = self.site.sessions.borrow_mut();
                    sessions.push(way);
                    self.sessions[which] = Some(TestSession { connection, number: sessions.len() - 1 });
                }
                Err(e) => {
                    self.site.error(&format!("{}: no connection: {e}", self.site.ways[way].route.name));
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        self.sessions[which].as_ref().map(|_| which)
    }

    /// Sends and waits; without an answer the connection is given up.
    async fn exchange(&mut self, which: usize, commands: &[Vec<u8>]) -> Option<Vec<Value>> {
        let session = self.sessions[which].as_mut()?;
        match session.connection.pipeline(commands).await {
            Ok(replies) => {
                let mut failed = false;
                for reply in &replies {
                    if let Value::ServerError(e) = reply {
                        failed = true;
                        self.site.error(&format!("{} {}", e.code(), e.details().unwrap_or_default()));
                    }
                }
                if failed {
                    tokio::time::sleep(RETRY).await;
                }
                Some(replies)
            }
            Err(e) => {
                self.site.lost(which / self.site.mix.resp3.len(), &e);
                self.sessions[which] = None;
                None
            }
        }
    }

    // --- writes ---

    fn slot_to_write(&mut self) -> usize {
        let all: f64 = self.site.slots.iter().map(|slot| slot.weight).sum();
        let mut at = self.rng.f64() * all;
        let found = self.site.slots.iter().position(|slot| {
            at -= slot.weight;
            at < 0.0
        });
        found.unwrap_or(0)
    }

    /// A write, often with a read of the same object behind it: in the same pipeline, or by the same or another way.
    async fn write_step(&mut self) {
        let slot = self.slot_to_write();
        let way = self.rng.usize(0..self.site.ways.len());
        let Some(which) = self.session(way).await else { return };
        let site = self.site.clone();
        let (object, name) = site.object(&site.slots[slot]);
        let (kind, token) = (site.slots[slot].kind, site.token());
        let writer = Writer { kind, name: &name, token: &token, field_ttls: site.field_ttls };
        let write = writer.any(&mut self.rng);
        let read = (self.rng.u8(0..4) == 0).then(|| work::read(kind, &name, &mut self.rng));
        self.write(which, slot, object, write, read).await;
        match self.rng.u8(0..4) {
            0 | 1 => self.read(way, &[slot]).await,
            2 => {
                let other = self.rng.usize(0..self.site.ways.len());
                self.read(other, &[slot]).await;
            }
            _ => {}
        }
    }

    async fn write(&mut self, which: usize, slot: usize, object: usize, write: Write, read: Option<Read>) {
        let Some(session) = self.sessions[which].as_ref().map(|s| s.number) else { return };
        // Alone: if it is refused, what follows would be executed one by one.
        if write.transaction {
            let begun = self.exchange(which, &[resp::encode(&["MULTI"])]).await;
            if !begun.is_some_and(|replies| replies == [Value::Okay]) {
                self.sessions[which] = None;
                return;
            }
        }
        let mut commands = write.commands.clone();
        commands.extend(write.transaction.then(|| resp::encode(&["EXEC"])));
        let last = commands.len() - 1;
        commands.extend(read.iter().map(|read| read.command.clone()));
        let start = Time::now();
        let replies = self.exchange(which, &commands).await;
        let end = Time::now();
        let outcome = replies.as_ref().map_or(WriteOutcome::Unknown, |replies| work::outcome(&write, &replies[last]));
        if write.transaction && !matches!(outcome, WriteOutcome::Done(_)) {
            // it may still be in MULTI
            self.sessions[which] = None;
        }
        let (change, end_of_write) = match outcome {
            WriteOutcome::Done(change) => (change, Some(end)),
            WriteOutcome::Unknown => {
                self.taint(slot, object);
                (unanswered(write.change), None)
            }
            WriteOutcome::Refused => return,
        };
        let op = |end, command, action| Op { object, session, start, end, command, action };
        self.ops.push(op(end_of_write, write.name, Action::Write(change)));
        let Some((read, reply)) = read.zip(replies.and_then(|mut replies| replies.pop())) else { return };
        if let Some(seen) = work::seen(self.site.slots[slot].kind, read.name, reply) {
            self.ops.push(op(Some(end), read.name, Action::Read(read.parts, seen)));
        }
    }

    fn taint(&mut self, slot: usize, object: usize) {
        let slot = &self.site.slots[slot];
        if slot.object.get() == object {
            let soon = Time::now() + Duration::from_millis(self.rng.u64(0..TAINTED));
            slot.until.set(slot.until.get().min(soon));
        }
    }

    // --- reads ---

    async fn read_step(&mut self) {
        let ways = self.site.ways.len();
        // mostly through proxies
        let way = if ways > 1 && self.rng.u8(0..8) > 0 { self.rng.usize(1..ways) } else { 0 };
        let count = [1, 1, 1, 2, 4][self.rng.usize(0..5)];
        let slots: Vec<usize> = (0..count).map(|_| self.rng.usize(0..self.site.slots.len())).collect();
        self.read(way, &slots).await;
    }

    /// One pipeline of reads.
    async fn read(&mut self, way: usize, slots: &[usize]) {
        let Some(which) = self.session(way).await else { return };
        let Some(session) = self.sessions[which].as_ref().map(|s| s.number) else { return };
        let mut asked = Vec::with_capacity(slots.len());
        for slot in slots {
            let slot = &self.site.slots[*slot];
            let (object, name) = self.site.object(slot);
            asked.push((slot.kind, object, work::read(slot.kind, &name, &mut self.rng)));
        }
        let commands: Vec<Vec<u8>> = asked.iter().map(|(_, _, read)| read.command.clone()).collect();
        let start = Time::now();
        let Some(replies) = self.exchange(which, &commands).await else { return };
        let end = Some(Time::now());
        for ((kind, object, read), reply) in asked.into_iter().zip(replies) {
            if let Some(seen) = work::seen(kind, read.name, reply) {
                let action = Action::Read(read.parts, seen);
                self.ops.push(Op { object, session, start, end, command: read.name, action });
            }
        }
    }
}

fn object_of((kind, name): &(ObjectKind, String)) -> Object {
    Object { name: name.clone(), keys: work::keys(*kind, name).len() }
}

/// The change without the answer, which is unknown.
fn unanswered(change: Change) -> Change {
    match change {
        Change::Increment(_) => Change::Increment(None),
        Change::Append(token, _) => Change::Append(token, None),
        other => other,
    }
}

/// Connects by this way and asks for the level.
pub async fn open(way: &Way, resp3: bool) -> io::Result<TestConnection> {
    let mut connection = TestConnection::open(&way.target, resp3).await?;
    if let Some(level) = way.ask {
        let answer = connection.call(&["NEARSIDE", "CONSISTENCY", &level.to_string()]).await?;
        if answer != Value::Okay {
            return Err(io::Error::other(format!("NEARSIDE CONSISTENCY {level}: {answer:?}")));
        }
    }
    Ok(connection)
}
