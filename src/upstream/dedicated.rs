//! Connections lent to single sessions, and those that wait idle for the next session.
//!
//! One count holds for the whole process: `max_dedicated`, lent and idle ones together. Idle ones never keep a session
//! from getting its own: at the limit the least recently used one of the process is given up. The connection belongs to
//! one thread, so another thread asks for it ([`Lending::Soon`]) and is told when there is room ([`Places::room`](super::capacity::Places::room)).

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Pool;
use super::capacity::{Capacity, NONE, Seat, Shelf};
use super::connection::{self, Connection};
use crate::node::handshake::{self, Opened};
use crate::node::identity::ConnectionKey;
use crate::node::login::Login;
use crate::node::wire::Refusal;
use crate::time::Time;

/// Idle dedicated connections kept per key and thread.
pub(super) const IDLE: usize = 16;
/// Idle connections that are opened before they are needed, once one was.
const READY: usize = 4;
/// With fewer left than this, none is opened before it is needed.
const SPARED: usize = 64;
/// How often a thread looks for idle connections whose time is over: at most, and at least.
const LOOKS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// How long a connection that no session has had is kept for a login that no session of the thread has: by the next that
/// comes so soon, it is judged without a new connection.
const KEPT: Duration = Duration::from_secs(5);

/// A dedicated connection and its place. Dropped, the connection is closed and the place free; see [`Pool::give_back`].
pub struct Loan {
    connection: Rc<Connection>,
    _seat: Seat,
}

impl Deref for Loan {
    type Target = Rc<Connection>;

    fn deref(&self) -> &Rc<Connection> {
        &self.connection
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.connection.close();
    }
}

/// Whether a session gets a connection of its own.
pub enum Lending {
    /// This one.
    Lent(Loan),
    /// All places are taken, and another thread was asked to give one up: see [`Places::room`](super::capacity::Places::room).
    Soon,
    /// All are lent.
    Full,
}

struct Idle {
    loan: Loan,
    since: Time,
    /// No session has had it: see [`kept`](super::kept).
    unused: bool,
}

/// The idle connections of this thread, by the order of their last use.
#[derive(Default)]
struct Waiting {
    next: u64,
    all: BTreeMap<u64, Idle>,
    of: HashMap<ConnectionKey, VecDeque<u64>>,
}

impl Waiting {
    fn count(&self, key: &ConnectionKey) -> usize {
        self.of.get(key).map_or(0, VecDeque::len)
    }

    fn put(&mut self, loan: Loan, now: Time) {
        self.put_as(loan, now, false);
    }

    fn put_as(&mut self, loan: Loan, now: Time, unused: bool) {
        let number = self.next;
        self.next += 1;
        self.of.entry(loan.key.clone()).or_default().push_back(number);
        self.all.insert(number, Idle { loan, since: now, unused });
    }

    fn remove(&mut self, number: u64) -> Option<Loan> {
        let idle = self.all.remove(&number)?;
        if let Some(same) = self.of.get_mut(&idle.loan.key) {
            same.retain(|n| *n != number);
            if same.is_empty() {
                self.of.remove(&idle.loan.key);
            }
        }
        Some(idle.loan)
    }

    /// The one used last whose handshake is over, so that those not needed grow old; else one on its way.
    fn take(&mut self, key: &ConnectionKey) -> Option<Loan> {
        let same = self.of.get(key)?;
        let open = same.iter().rev().find(|n| self.all.get(n).is_some_and(|idle| idle.loan.is_clean()));
        let number = *open.or_else(|| same.front())?;
        self.remove(number)
    }

    fn find(&self, connection: &Rc<Connection>) -> Option<u64> {
        let same = self.of.get(&connection.key)?;
        same.iter().copied().find(|n| self.all.get(n).is_some_and(|idle| Rc::ptr_eq(&idle.loan, connection)))
    }

    fn pop_oldest(&mut self) -> Option<Loan> {
        let number = *self.all.first_key_value()?.0;
        self.remove(number)
    }

    /// Since when the least recently used one is idle.
    fn oldest(&self) -> Option<Time> {
        self.all.first_key_value().map(|(_, idle)| idle.since)
    }
}

/// How many sessions of the thread have each login.
type Holds = HashMap<u64, usize>;

/// The idle connections of one thread. (Every change of them goes through [`IdleSet::change`], which tells the others.)
pub(super) struct IdleSet {
    capacity: Arc<Capacity>,
    shelf: Arc<Shelf>,
    waiting: RefCell<Waiting>,
    pub(super) holds: RefCell<Holds>,
}

impl IdleSet {
    pub(super) fn new(capacity: Arc<Capacity>) -> Rc<IdleSet> {
        let shelf = capacity.dedicated.add_shelf();
        Rc::new(IdleSet { capacity, shelf, waiting: RefCell::default(), holds: RefCell::default() })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Waiting) -> T) -> T {
        let mut waiting = self.waiting.borrow_mut();
        let before = waiting.all.len();
        let result = change(&mut waiting);
        let idle = &self.capacity.dedicated.idle;
        match waiting.all.len() {
            after if after > before => idle.fetch_add(after - before, Ordering::Relaxed),
            after => idle.fetch_sub(before - after, Ordering::Relaxed),
        };
        self.shelf.oldest.store(waiting.oldest().map_or(NONE, |since| since.0), Ordering::Release);
        result
    }

    /// Closes the least recently used one of this thread.
    fn give_up(&self) -> bool {
        let given_up = self.change(Waiting::pop_oldest).is_some();
        self.capacity.dedicated.given_up.fetch_add(u64::from(given_up), Ordering::Relaxed);
        given_up
    }

    /// One of this login, in whatever protocol and database, that is open: for a login that the server does not take any more.
    pub(super) fn spare(&self, login: &Arc<Login>) -> Option<Loan> {
        self.change(|waiting| {
            let is_of = |idle: &Idle| idle.loan.key.login == *login && idle.loan.is_clean();
            let number = waiting.all.iter().find(|(_, idle)| is_of(idle)).map(|(number, _)| *number)?;
            waiting.remove(number)
        })
    }

    /// Opens a connection. If its login is refused, earlier connections of the same login go on, as they do at the server (a
    /// password was replaced): one that nobody needs becomes this one.
    pub(super) async fn open(&self, connection: &Connection) -> Result<Opened, Refusal> {
        let (node, key, role) = (connection.node(), &connection.key, connection.role());
        let refused = match handshake::open(node, key, role).await {
            Err(Refusal::Login(reply)) => Refusal::Login(reply),
            other => return other,
        };
        while let Some(other) = self.spare(&key.login) {
            let Some(wire) = other.surrender().await else { continue };
            let opened = handshake::take_over(node, wire, other.key.db, key, role);
            match tokio::time::timeout(node.settings.connect_timeout, opened).await {
                Ok(Err(Refusal::Io(_))) | Err(_) => {}
                Ok(opened) => return opened,
            }
        }
        Err(refused)
    }

    /// Connections of this login that [`spare`](Self::spare) could take, counted up to `enough`.
    fn spares(&self, login: &Arc<Login>, enough: usize) -> usize {
        let waiting = self.waiting.borrow();
        let keys = waiting.of.iter().filter(|(key, _)| key.login == *login);
        let idle = keys.flat_map(|(_, same)| same).filter_map(|number| waiting.all.get(number));
        idle.filter(|idle| idle.loan.is_clean()).take(enough).count()
    }

    /// The thread's last session of this login has gone: of those that no session has had, one is kept for the next.
    pub(super) fn leave_one(&self, login: &Arc<Login>) {
        let of_it = |idle: &Idle| idle.unused && idle.loan.key.login == *login;
        self.forget(of_it, 1);
    }

    /// Closes those kept so long enough.
    fn forget_left(&self, now: Time) {
        let holds = self.holds.borrow();
        let is_left = |idle: &Idle| idle.unused && !holds.contains_key(&idle.loan.key.login.number());
        self.forget(|idle| is_left(idle) && now.since(idle.since) >= KEPT, 0);
    }

    /// Closes all of these but so many.
    fn forget(&self, which: impl Fn(&Idle) -> bool, but: usize) {
        let closed = self.change(|waiting| {
            let found: Vec<u64> = waiting.all.iter().filter(|(_, idle)| which(idle)).map(|(n, _)| *n).collect();
            found.into_iter().skip(but).filter_map(|number| waiting.remove(number)).collect::<Vec<_>>()
        });
        drop(closed);
    }

    /// The server has ended a connection, or never taken it.
    fn ended(&self, connection: &Rc<Connection>) {
        // A connection dropped here closes itself, which changes nothing that is borrowed.
        let dead = self.change(|waiting| waiting.find(connection).and_then(|number| waiting.remove(number)));
        drop(dead);
    }

    /// Closes what other threads ask for, and what has been idle for too long. Runs as long as the thread.
    pub(super) async fn tend(&self) {
        let limit = self.capacity.dedicated.idle_timeout;
        let look = if limit.is_zero() { LOOKS.1 } else { (limit / 4).clamp(LOOKS.0, LOOKS.1) };
        loop {
            tokio::select! {
                () = self.shelf.asked.notified() => {}
                () = tokio::time::sleep(look) => {}
            }
            let wanted = self.shelf.wanted.swap(0, Ordering::AcqRel);
            if !(0..wanted).all(|_| self.give_up()) {
                // Lent meanwhile, or asked for twice: those who wait ask elsewhere.
                self.capacity.dedicated.freed.notify_waiters();
            }
            let now = Time::now();
            let is_over = |since: Time| !limit.is_zero() && now.since(since) >= limit;
            while self.waiting.borrow().oldest().is_some_and(is_over) {
                drop(self.change(Waiting::pop_oldest));
            }
            self.forget_left(now);
        }
    }
}

impl Drop for IdleSet {
    fn drop(&mut self) {
        self.change(|waiting| *waiting = Waiting::default());
        self.capacity.dedicated.remove_shelf(&self.shelf);
    }
}

impl Pool {
    /// A connection for one session alone, unless all places are taken by what this thread cannot give up itself. A few
    /// more are kept ready, so that the next sessions need not wait for a handshake, and be overtaken meanwhile by what
    /// goes down a lane or a connection that is open.
    pub fn lend(&self, key: &ConnectionKey) -> Option<Loan> {
        let loan = self.idle_one(key).or_else(|| self.open(key)).or_else(|| {
            self.idle.give_up();
            self.open(key)
        })?;
        self.make_ready(key);
        Some(loan)
    }

    /// The same for a session that can wait. The connection that is given up is the one that any thread used least recently.
    pub fn lend_or_ask(&self, key: &ConnectionKey) -> Lending {
        self.or_ask(key, self.idle_one(key))
    }

    /// The same, but a new connection even if idle ones are there.
    pub fn open_or_ask(&self, key: &ConnectionKey) -> Lending {
        self.or_ask(key, None)
    }

    fn or_ask(&self, key: &ConnectionKey, idle: Option<Loan>) -> Lending {
        if let Some(loan) = idle.or_else(|| self.open(key)) {
            self.make_ready(key);
            return Lending::Lent(loan);
        }
        match self.capacity.dedicated.oldest() {
            None => Lending::Full,
            Some(shelf) if Arc::ptr_eq(&shelf, &self.idle.shelf) => {
                self.idle.give_up();
                self.open(key).map_or(Lending::Soon, Lending::Lent)
            }
            Some(shelf) => {
                shelf.wanted.fetch_add(1, Ordering::AcqRel);
                shelf.asked.notify_one();
                Lending::Soon
            }
        }
    }

    /// An idle one of this thread.
    fn idle_one(&self, key: &ConnectionKey) -> Option<Loan> {
        loop {
            let loan = self.idle.change(|waiting| waiting.take(key))?;
            if loan.is_lendable() {
                return Some(loan);
            }
        }
    }

    fn make_ready(&self, key: &ConnectionKey) {
        let places = &self.capacity.dedicated;
        while self.idle.waiting.borrow().count(key) < READY && places.taken() + SPARED <= places.max() {
            let Some(loan) = self.open(key) else { return };
            self.idle.change(|waiting| waiting.put(loan, Time::now()));
        }
    }

    /// A new connection, unless all places are taken.
    pub fn open(&self, key: &ConnectionKey) -> Option<Loan> {
        self.begin(key, None)
    }

    /// `already`: the connection is open.
    fn begin(&self, key: &ConnectionKey, already: Option<Opened>) -> Option<Loan> {
        let seat = Seat::take(&self.capacity)?;
        let connection = Connection::dedicated_to(self.node().clone(), key.clone());
        let (running, idle) = (connection.clone(), self.idle.clone());
        self.tasks.spawn_local(async move {
            let open = async |connection: &Connection| Ok((idle.open(connection).await?, ()));
            connection::run(running.clone(), open, already).await;
            idle.ended(&running);
        });
        Some(Loan { connection, _seat: seat })
    }

    /// Whether the thread has connections enough of this login for one more session, in case no other can be had.
    pub fn has_spares(&self, login: &Arc<Login>) -> bool {
        let sessions = self.idle.holds.borrow().get(&login.number()).copied().unwrap_or(0);
        let enough = (sessions + 1).min(READY);
        self.idle.spares(login, enough) >= enough
    }

    /// Keeps a connection that was opened for another reason, if there is room for one more idle one.
    pub fn adopt(&self, key: &ConnectionKey, opened: Opened) {
        let places = &self.capacity.dedicated;
        // A session that begins gets the proxy's own login with the connection that proves it; one that has gone leaves one.
        let held = key.login == self.node().own.login || self.idle.holds.borrow().contains_key(&key.login.number());
        if !held && self.idle.spares(&key.login, 1) > 0
            || self.idle.waiting.borrow().count(key) >= IDLE
            || places.taken() + SPARED > places.max()
        {
            return;
        }
        let Some(loan) = self.begin(key, Some(opened)) else { return };
        self.idle.change(|waiting| waiting.put_as(loan, Time::now(), true));
    }

    /// Takes it back for the next session, if its state allows that; else it is closed.
    pub fn give_back(&self, loan: Loan) {
        loan.lend(None);
        if loan.is_clean() && self.idle.waiting.borrow().count(&loan.key) < IDLE {
            self.idle.change(|waiting| waiting.put(loan, Time::now()));
        }
    }
}
