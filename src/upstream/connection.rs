//! One connection to a node: handshake, batched writes, replies matched to what was sent by position. A lane is one
//! that many sessions share and that comes back; a dedicated one is lent to one session and dies once.
//!
//! Bounds: the bytes queued for the node (`lane_buffer_limit`, checked by sessions before they send), what is awaited
//! (each session's own limit), one reply at a time in the input buffer.
//!
//! Invariants, and the tests that attack them:
//!
//! 1. **One request has exactly one reply.** `awaited` holds what was queued, in the order in which it was queued, and a reply
//!    belongs to its front. A reply, or the beginning of one, while the front is not sent, or a reply that cannot be one to the
//!    front (what the proxy asks for itself has known answers, and so has what a transaction consists of), ends the
//!    connection; pushes take nobody's turn. A line of others that comes while a client's command is first, and could be its
//!    reply, is taken for it: the next of the proxy's own answers then tells. `test_out_of_turn.py`.
//! 2. **Nothing awaited is forgotten**: when a connection is lost, each item is sent again (once, if it is repeatable) or told
//!    that it was not sent, or that its outcome is unknown. `test_a_lane_that_is_told_something_and_closed_comes_back`,
//!    `test_bad_weather.py`, `test_lost_replies.py`.
//! 3. **A lane that a session holds comes back** with the next request; only `close`, which [`super::lanes`] says of a lane that
//!    no session holds, ends it. `test_a_lane_that_is_told_something_comes_back_at_once`, `test_lanes.py`.
//! 4. **What a lane has filled is void before anything else is done about its loss.** `test_a_lane_dies`, `broken::lanes`.
//! 5. **The cache is settled before the client is told** ([`super::effect`]), and pushes stay behind the replies that wait for
//!    it. `rules_needed::dropping_before_the_ack`, `promises::scripts`.
//! 6. **An error proves no life**: it does not advance the lane's clock, for something in between may have said it, unless it
//!    is the server's own `-NOPERM`. `test_out_of_turn.py` (`error`).

use std::cell::{Cell, RefCell, RefMut};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, oneshot};

use super::capacity::Berth;
use super::dedicated::IdleSet;
use super::effect::{Effect, KeySet, Wait};
use super::fill::{Fill, FillRead, Terms, Then};
use super::lanes::Lanes;
use super::{monitor, panicking};
use crate::buffer::{LARGE, OutBuf};
use crate::bypass::Bypass;
use crate::cache::Cache;
use crate::clock::LaneStamp;
use crate::coherence::standing::Mode;
use crate::command::FieldTtl;
use crate::node::Node;
use crate::node::handshake::{self, Opened};
use crate::node::identity::{ConnectionKey, Role};
use crate::node::login::SHUT_OUT;
use crate::node::rights::{self, Rights};
use crate::node::wire::{self, Refusal, Wire};
use crate::numbers::difference;
use crate::outbox::{Outbox, Piece, Place};
use crate::resp::{self, Cutter};
use crate::sabotage::{self, Rule};
use crate::time::Time;
use crate::transport::Stream;

/// With an argument that no client gives it ([`wire::MARK`]), and the answer.
const PING: [&[u8]; 2] = [b"*2\r\n$4\r\nPING\r\n$8\r\nnearside\r\n", b"$8\r\nnearside\r\n"];
/// The same before a question about the fields of a hash ([`monitor::QUESTION`]).
const PING_AND_ASK: [&[u8]; 2] = [b"*2\r\n$4\r\nPING\r\n$17\r\nnearside:question\r\n", b"$17\r\nnearside:question\r\n"];
/// The answer that some servers give whatever the argument is.
const PONG: &[u8] = b"+PONG\r\n";
/// For how long reads of a session go alone of which one was on a lane that the server has ended.
const SUSPECTED: Duration = Duration::from_secs(60);
/// Bytes of an unasked error that the log and clients are shown.
const SHOWN: usize = 128;
/// Reads before the thread's sessions get their turn.
const READS_PER_TURN: usize = 16;
/// Answers for which the memory is asked ahead, so that its latencies overlap.
const AHEAD: usize = 8;
/// Bytes of the shortest reply.
const SHORTEST_REPLY: usize = 4;
/// A lane unused for so long says no PING until somebody waits for its clock: with many lanes, PINGs would be most of what
/// the server does.
const QUIET_AFTER: Duration = Duration::from_secs(5);
/// PINGs on their way at once; who comes later shares the next.
const PINGS: usize = 4;

/// Why a connection ends whose socket another gets.
const GIVEN_AWAY: io::ErrorKind = io::ErrorKind::ConnectionAborted;
/// Bytes that wait for their barrier on a connection whose bytes pass unlooked at; what is above waits at the server.
const RAW_SOFT: usize = 1 << 20;
/// Pushes that wait for a held reply before them; with more, they wait no longer.
const MAX_BEHIND: usize = 1024;

/// How bytes are passed on whose replies are not matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raw {
    /// An ack may be among them, so each piece waits for a barrier.
    Acting,
    /// The session has said what no invalidation announces, SWAPDB or a change of rights: before each piece the watch looks
    /// besides whether the server has done one, and flushes if it has.
    Swapping,
    /// MONITOR: the server lets such a connection touch no key. (A barrier's own PING would show up in it, and want a
    /// barrier, without end.) What proxies say for themselves is left out ([`monitor`]). Once the session has said what changes
    /// rights, a reply waits for a look, and what comes behind it waits too.
    Watching,
}

/// The use of the next reply.
pub enum Expect {
    /// Goes to a session.
    Reply {
        /// Its place in the session's order.
        place: Place,
        /// The effect on the cache, which comes first.
        effect: Effect,
        /// The request, if it is a read that may be sent again once.
        retry: Option<Box<[u8]>>,
    },
    /// One of the replies of a fill.
    Fill(Box<Fill>),
    /// The confirmations of a (P|S)(UN)SUBSCRIBE: pushes, or one error.
    Confirm {
        /// Filled with nothing, or with the error.
        place: Place,
        /// First word of the confirmation.
        kind: &'static str,
        /// How many are still to come.
        left: usize,
    },
    /// The verdict on MONITOR; if it is OK, what comes behind it is what others say.
    Monitor {
        /// Filled with the verdict.
        place: Place,
    },
    /// A lane's own PING, which has this answer.
    Ping(&'static [u8]),
    /// CLIENT TRACKING for this generation of the link.
    Arm(u64),
}

struct InFlight {
    expect: Expect,
    /// Position of its first byte in all that was ever queued.
    start: u64,
    sent: Time,
}

#[derive(Debug)]
enum Phase {
    /// A lane that is not needed, or not yet.
    Rest,
    /// The connection is being opened.
    Opening,
    Up,
    /// The connection could not be opened: this error is told until then.
    Down {
        error: Bytes,
        until: Time,
        /// Or until rights have changed: the error may be about them.
        as_of: u64,
    },
    /// The connection will not come back.
    Closed(Bytes),
}

struct Shared {
    phase: Phase,
    out: OutBuf,
    /// Bytes ever queued.
    queued: u64,
    awaited: VecDeque<InFlight>,
    waker: Option<Waker>,
    hello: Bytes,
    rights: Rights,
    /// The link's generation that changed keys are reported to; 0: none yet.
    armed: u64,
    /// That is being asked for, or the rights to.
    arming: bool,
    stamp: Option<LaneStamp>,
    pings: usize,
    last_ping: Time,
    /// When it last said anything.
    heard: Time,
    /// The bytes that came last were the beginning of a frame.
    midway: bool,
    failures: u32,
    /// Somebody waits for it to be open.
    wanted: bool,
    close: bool,
    /// The connection is to be taken for lost, for this reason.
    broken: Option<io::Error>,
    /// A lane that is to come to rest, if nothing is awaited on it.
    resting: bool,
    /// A lane whose task waits until it is needed.
    asleep: bool,
    /// Gets the socket once nothing is on its way.
    heir: Option<oneshot::Sender<Wire>>,
    /// On a dedicated connection, the outbox that gets its pushes.
    session: Option<Rc<Outbox>>,
    /// The protocol spoken now.
    resp3: bool,
    /// Replies that have waited for a barrier, and those of them that have been told.
    held: u64,
    told: u64,
    /// Pushes that came behind so many held replies.
    behind: VecDeque<(u64, Bytes)>,
    /// To channels and patterns, and to shard channels: the server counts them apart.
    subscriptions: [i64; 2],
    confirms: usize,
    /// Everything that comes is passed on as it is (MONITOR, CLIENT REPLY …).
    raw: Option<Raw>,
    raw_sent: Time,
    /// MONITOR: what is known of those whose commands are shown.
    lines: Option<Box<monitor::Lines>>,
    raw_queue: VecDeque<(Time, Bytes)>,
    /// The session has said what changes rights though it watches.
    heeds: bool,
    /// Bytes in there; above [`RAW_SOFT`] nothing more is read.
    raw_waiting: usize,
}

/// A connection, as sessions hold it.
pub struct Connection {
    /// Its login, protocol and database.
    pub key: ConnectionKey,
    role: Role,
    node: Arc<Node>,
    /// When a session last did anything with it, if it is a lane.
    used: Cell<Time>,
    shared: RefCell<Shared>,
    changed: Notify,
    /// The server's number for it, once known; others look it up for CLIENT UNBLOCK and REDIRECT.
    pub client_id: Arc<AtomicI64>,
}

impl Connection {
    /// One that `run` then runs. It connects at once if dedicated, else when first needed.
    pub fn new(node: Arc<Node>, key: ConnectionKey, role: Role) -> Rc<Connection> {
        let shared = Shared {
            phase: if role == Role::Lane { Phase::Rest } else { Phase::Opening },
            out: OutBuf::default(),
            queued: 0,
            awaited: VecDeque::new(),
            waker: None,
            hello: Bytes::new(),
            rights: Rights::NONE,
            armed: 0,
            arming: false,
            stamp: None,
            pings: 0,
            last_ping: Time::ZERO,
            heard: Time::ZERO,
            midway: false,
            failures: 0,
            wanted: false,
            close: false,
            broken: None,
            resting: false,
            asleep: false,
            heir: None,
            session: None,
            resp3: key.resp3,
            held: 0,
            told: 0,
            behind: VecDeque::new(),
            subscriptions: [0; 2],
            confirms: 0,
            raw: None,
            raw_sent: Time::ZERO,
            lines: None,
            raw_queue: VecDeque::new(),
            heeds: false,
            raw_waiting: 0,
        };
        Rc::new(Connection {
            key,
            role,
            node,
            used: Cell::new(Time::now()),
            shared: RefCell::new(shared),
            changed: Notify::new(),
            client_id: Arc::default(),
        })
    }

    // --- what sessions ask of it ---

    /// Sends a request as it is; its reply goes to `place` after `effect`. `repeatable`: it changes nothing, so that a lane
    /// which is lost may send it again.
    pub fn send(&self, request: Piece<'_>, place: Place, effect: Effect, repeatable: bool, now: Time) {
        let again = repeatable && self.role == Role::Lane && !effect.may_write() && request.len() < LARGE;
        let retry = again.then(|| request.as_slice().into());
        self.enqueue(request, Expect::Reply { place, effect, retry }, now);
    }

    /// Sends (P|S)(UN)SUBSCRIBE.
    pub fn send_subscribe(&self, request: Piece<'_>, place: Place, kind: &'static str, left: usize, now: Time) {
        self.shared.borrow_mut().confirms += 1;
        self.enqueue(request, Expect::Confirm { place, kind, left }, now);
    }

    /// Sends MONITOR.
    pub fn send_monitor(&self, request: Piece<'_>, place: Place, now: Time) {
        self.enqueue(request, Expect::Monitor { place }, now);
    }

    /// Whether the server tells it what others say.
    pub fn is_watching(&self) -> bool {
        self.shared.borrow().raw == Some(Raw::Watching)
    }

    /// Sends bytes whose replies are passed on as they come.
    pub fn send_raw(&self, bytes: Bytes, raw: Raw) {
        let mut shared = self.shared.borrow_mut();
        shared.raw = Some(raw);
        shared.raw_sent = Time::now();
        shared.queued += bytes.len() as u64;
        shared.out.push_bytes(bytes);
        shared.wake();
    }

    /// From here on each reply waits for a look, though its session watches.
    pub fn heed(&self) {
        self.shared.borrow_mut().heeds = true;
    }

    /// Sends a read that fills the cache.
    pub fn send_fill(&self, place: Place, read: FillRead, now: Time) {
        self.touch(now);
        let mut shared = self.shared.borrow_mut();
        // The permits were taken before: if the mode changes now, they are void.
        let tracked = self.node.coherence.mode().is_none_or(|mode| mode == Mode::Tracked);
        let [anywhere, this_hash] = shared.rights.questions();
        let anywhere = anywhere && !self.node.coherence.mortal.anywhere(now);
        let fill = Fill::new(place, read, now, Terms { tracked, max_ttl: self.node.max_ttl, anywhere, this_hash });
        let before = shared.out.len();
        fill.write(&mut shared.out);
        let start = shared.queued;
        shared.queued += (shared.out.len() - before) as u64;
        shared.awaited.push_back(InFlight { expect: Expect::Fill(Box::new(fill)), start, sent: now });
        shared.wake();
    }

    /// Why a reply that depends on fields in this way must not be kept by this lane, as of now ([`super::permit`]).
    pub fn refusal(&self, field_ttl: FieldTtl) -> Option<Bypass> {
        let shared = self.shared.borrow();
        let covered = shared.rights.cover(field_ttl);
        // A lane that has not asked for its rights is not armed.
        if shared.rights.as_of.is_some() && !covered {
            return Some(Bypass::LaneRights);
        }
        let tracked = matches!(shared.phase, Phase::Up)
            && shared.stamp.is_some()
            && self.node.coherence.generation() == Some(shared.armed);
        (!covered || !tracked).then_some(Bypass::LaneNotArmed)
    }

    fn enqueue(&self, request: Piece<'_>, expect: Expect, now: Time) {
        self.touch(now);
        let mut shared = self.shared.borrow_mut();
        match &shared.phase {
            Phase::Down { error, until, as_of } if now < *until && self.has_rights_of(*as_of) => {
                let error = error.clone();
                drop(shared);
                return fail(expect, &error, false, &self.node, now);
            }
            Phase::Closed(error) => {
                let error = error.clone();
                drop(shared);
                return fail(expect, &error, false, &self.node, now);
            }
            _ => {}
        }
        let start = shared.queued;
        shared.queued += request.len() as u64;
        match request {
            Piece::Slice(s) => shared.out.push(s),
            Piece::Bytes(b) => shared.out.push_bytes(b),
        }
        shared.awaited.push_back(InFlight { expect, start, sent: now });
        shared.wake();
    }

    /// Whether rights are what they were then, as far as is known.
    fn has_rights_of(&self, as_of: u64) -> bool {
        self.node.acl_changes.load(Ordering::Acquire) == as_of
    }

    /// Bytes that wait to be sent.
    pub fn backlog(&self) -> usize {
        self.shared.borrow().out.len()
    }

    /// Bytes that it holds for the session it is lent to.
    pub fn held(&self) -> usize {
        let shared = self.shared.borrow();
        shared.out.len() + shared.raw_waiting
    }

    /// Whether bytes were sent whose replies are passed on as they come, and nothing has come since, or not all of it been told.
    pub fn owes_raw(&self) -> bool {
        let shared = self.shared.borrow();
        shared.raw_sent >= shared.heard || !shared.raw_queue.is_empty()
    }

    /// Since when it has said nothing.
    pub fn heard(&self) -> Time {
        self.shared.borrow().heard
    }

    /// Opens it if it is not open. The server's reply to HELLO, or the error that clients are told.
    pub async fn ready(&self) -> Result<Bytes, Bytes> {
        loop {
            let changed = self.changed.notified();
            {
                let mut shared = self.shared.borrow_mut();
                match &shared.phase {
                    Phase::Up => return Ok(shared.hello.clone()),
                    Phase::Closed(error) => return Err(error.clone()),
                    Phase::Down { error, until, as_of } if Time::now() < *until && self.has_rights_of(*as_of) => {
                        return Err(error.clone());
                    }
                    Phase::Down { .. } => shared.phase = Phase::Rest,
                    Phase::Rest | Phase::Opening => {}
                }
                shared.wanted = true;
                shared.wake();
            }
            changed.await;
        }
    }

    /// Whether it is open now.
    pub fn is_open(&self) -> bool {
        matches!(self.shared.borrow().phase, Phase::Up)
    }

    /// Whether the server did not take it, and so nothing that was said on it.
    pub fn was_refused(&self) -> bool {
        self.never_opened() && matches!(self.shared.borrow().phase, Phase::Closed(_))
    }

    /// Whether it will not come back.
    pub fn is_over(&self) -> bool {
        matches!(self.shared.borrow().phase, Phase::Closed(_))
    }

    /// Whether the server has never accepted it.
    fn never_opened(&self) -> bool {
        self.shared.borrow().hello.is_empty()
    }

    /// Whether it can be lent: it is clean, or on its way and not used yet.
    pub fn is_lendable(&self) -> bool {
        let unused = |shared: &Shared| matches!(shared.phase, Phase::Opening) && shared.queued == 0 && !shared.close;
        unused(&self.shared.borrow()) || self.is_clean()
    }

    /// Whether it is open and nothing is awaited, so that it can be lent again.
    pub fn is_clean(&self) -> bool {
        let shared = self.shared.borrow();
        matches!(shared.phase, Phase::Up)
            && shared.awaited.is_empty()
            && !shared.is_subscribed()
            && shared.raw.is_none()
            && shared.resp3 == self.key.resp3
            && !shared.close
    }

    /// Lends it to a session, or takes it back.
    pub fn lend(&self, session: Option<Rc<Outbox>>) {
        self.shared.borrow_mut().session = session;
    }

    /// Its session has switched it to another protocol.
    pub fn speaks(&self, resp3: bool) {
        self.shared.borrow_mut().resp3 = resp3;
    }

    /// The server has answered RESET.
    pub fn was_reset(&self) {
        let mut shared = self.shared.borrow_mut();
        shared.resp3 = false;
        shared.subscriptions = [0; 2];
    }

    /// Subscriptions its session holds.
    pub fn subscriptions(&self) -> i64 {
        let shared = self.shared.borrow();
        shared.subscriptions.iter().sum::<i64>() + difference(shared.confirms)
    }

    /// The node it leads to.
    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    /// Has it taken for lost.
    pub(super) fn break_with(&self, why: io::Error) {
        let mut shared = self.shared.borrow_mut();
        shared.broken = Some(why);
        shared.wake();
    }

    /// Its task has broken off, wherever it was.
    pub(super) fn broke(&self, why: &io::Error) -> Outcome {
        let was_up = matches!(self.shared.borrow().phase, Phase::Up);
        let outcome = if was_up { self.lost(why) } else { self.not_opened(io::Error::other(why.to_string()).into()) };
        self.changed.notify_waiters();
        outcome
    }

    /// A session does something with it.
    pub fn touch(&self, now: Time) {
        self.used.set(now);
    }

    /// When a session last did.
    pub fn used(&self) -> Time {
        self.used.get()
    }

    /// Whether sessions begin with such a lane: it stays.
    pub fn is_home(&self) -> bool {
        self.key.login == self.node.own.login && self.key.db == self.node.home && self.key.via.is_none()
    }

    /// Whether it is open, nothing is awaited on it and nobody waits for its clock: ending it now fails nobody.
    pub fn is_idle(&self) -> bool {
        let shared = self.shared.borrow();
        let clocks = &self.node.coherence.cache.clocks;
        let waited_for = |stamp| clocks.lane(stamp).is_some_and(|have| clocks.lane_wanted(stamp) > have);
        matches!(shared.phase, Phase::Up)
            && !shared.resting
            && shared.awaits_nothing()
            && !shared.stamp.is_some_and(waited_for)
    }

    /// Whether it has no connection, and nobody wants one. (Not so before its task has begun, which then holds it once more.)
    pub fn is_at_rest(&self) -> bool {
        let shared = self.shared.borrow();
        shared.asleep && shared.awaited.is_empty() && !shared.wanted
    }

    /// Its connection is to end, unless something is sent before its task's next turn.
    pub fn rest(&self) {
        let mut shared = self.shared.borrow_mut();
        shared.resting = true;
        shared.wake();
    }

    /// Ends it, and gives away its socket, if it is open and nothing is on its way.
    pub async fn surrender(&self) -> Option<Wire> {
        let (sender, heir) = oneshot::channel();
        {
            let mut shared = self.shared.borrow_mut();
            shared.heir = Some(sender);
            shared.wake();
        }
        heir.await.ok()
    }

    /// Ends it: the session that had it is gone.
    pub fn close(&self) {
        let mut shared = self.shared.borrow_mut();
        shared.close = true;
        shared.session = None;
        shared.wake();
    }
}

impl Shared {
    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Nothing but what it has asked for itself.
    fn awaits_nothing(&self) -> bool {
        self.awaited.iter().all(|item| matches!(item.expect, Expect::Ping(_) | Expect::Arm(_)))
    }

    /// Bytes handed to the socket so far.
    fn written(&self) -> u64 {
        self.queued - self.out.len() as u64
    }

    fn own(&mut self, request: &[u8], expect: Expect, now: Time) {
        let start = self.queued;
        self.queued += request.len() as u64;
        self.out.push(request);
        self.awaited.push_back(InFlight { expect, start, sent: now });
    }
}

/// Tells the session that its command failed, or ends the session if its user is shut out. Whatever the command may have
/// changed, if it was sent, is dropped all the same.
fn fail(expect: Expect, error: &Bytes, sent: bool, node: &Node, now: Time) {
    let place = match expect {
        Expect::Reply { place, effect, .. } => {
            if sent {
                effect.settle(None, node, now);
            }
            Some(place)
        }
        Expect::Fill(mut fill) => fill.place.take(),
        Expect::Confirm { place, .. } | Expect::Monitor { place } => Some(place),
        Expect::Ping(_) | Expect::Arm(_) => None,
    };
    match place {
        Some(place) if error == SHUT_OUT => place.sever(),
        Some(place) => place.deliver(Piece::Bytes(error.clone()), now),
        None => {}
    }
}

// --- the connection's task ---

/// The parts of its thread that a connection needs: the lanes, which give it a place, and the idle dedicated connections.
pub(super) struct Around {
    pub(super) lanes: Option<Rc<Lanes>>,
    pub(super) idle: Rc<IdleSet>,
}

/// Opens it. If its login is refused, earlier connections of the same login go on, as they do at the server (a password was
/// replaced): one that nobody needs becomes this one.
async fn open(connection: &Connection, around: &Around) -> Result<(Opened, Option<Berth>), Refusal> {
    let (node, key, role) = (&connection.node, &connection.key, connection.role);
    let berth = match &around.lanes {
        Some(lanes) => Some(lanes.berth().await?),
        None => None,
    };
    let refused = match handshake::open(node, key, role).await {
        Err(Refusal::Login(reply)) => Refusal::Login(reply),
        other => return Ok((other?, berth)),
    };
    while let Some(other) = around.idle.spare(&key.login) {
        let Some(wire) = other.surrender().await else { continue };
        let opened = handshake::take_over(node, wire, other.key.db, key, role);
        match tokio::time::timeout(node.connect_timeout, opened).await {
            Ok(Err(Refusal::Io(_))) | Err(_) => {}
            Ok(opened) => return Ok((opened?, berth)),
        }
    }
    Err(refused)
}

/// The task of a connection until it is closed or given up; `already`: it is open.
pub(super) async fn run(connection: Rc<Connection>, around: &Around, mut already: Option<Opened>) {
    loop {
        if connection.role == Role::Lane && !connection.needed().await {
            connection.shared.borrow_mut().phase = Phase::Closed(connection.node.error("this connection was given up"));
            connection.changed.notify_waiters();
            return;
        }
        let opened = match already.take() {
            Some(opened) => Ok((opened, None)),
            None => open(&connection, around).await,
        };
        let outcome = match opened {
            Ok((opened, _berth)) => {
                connection.opened(&opened);
                let (mut stream, mut input) = (opened.stream, opened.input);
                let why = pump(&connection, &mut stream, &mut input).await;
                let heir = connection.shared.borrow_mut().heir.take().filter(|_| why.kind() == GIVEN_AWAY);
                // Before the connection ends, what it has filled is void.
                let outcome = connection.lost(&why);
                if let Some(heir) = heir {
                    // If nobody waits any more the socket is closed.
                    let _ = heir.send(Wire { stream, input });
                }
                outcome
            }
            Err(refusal) => {
                if let Refusal::Io(why) = &refusal {
                    connection.node.count_broken(why);
                }
                connection.not_opened(refusal)
            }
        };
        connection.changed.notify_waiters();
        if outcome == Outcome::End {
            return;
        }
    }
}

/// Whether its task goes on.
#[derive(PartialEq, Eq)]
pub(super) enum Outcome {
    /// The connection may be opened again.
    Again,
    /// The connection is closed for good.
    End,
}

impl Connection {
    /// Waits until a lane that is not open has something to do. False: it is to end.
    async fn needed(&self) -> bool {
        poll_fn(|cx| {
            let mut shared = self.shared.borrow_mut();
            shared.waker = Some(cx.waker().clone());
            shared.asleep = false;
            if shared.close {
                return Poll::Ready(false);
            }
            if shared.awaited.is_empty() && !shared.wanted {
                shared.asleep = true;
                return Poll::Pending;
            }
            shared.phase = Phase::Opening;
            Poll::Ready(true)
        })
        .await
    }

    fn opened(&self, opened: &Opened) {
        let mut shared = self.shared.borrow_mut();
        shared.phase = Phase::Up;
        // With the phase: a loss takes it off again.
        self.node.lanes.fetch_add(usize::from(self.role == Role::Lane), Ordering::Relaxed);
        shared.broken = None;
        shared.hello = opened.hello.clone();
        shared.failures = 0;
        shared.wanted = false;
        shared.pings = 0;
        shared.arming = false;
        shared.rights = opened.rights;
        shared.armed = opened.armed.unwrap_or(0);
        self.client_id.store(wire::id_of(&opened.hello), Ordering::Release);
        if self.role == Role::Lane {
            shared.stamp = shared.stamp.or_else(|| self.node.coherence.cache.clocks.open_lane(opened.asked));
        }
        drop(shared);
        self.changed.notify_waiters();
    }

    /// Tells all that wait why the connection could not be opened; until the back-off ends, later requests get the same error.
    fn not_opened(&self, refusal: Refusal) -> Outcome {
        let now = Time::now();
        let error = refusal.reply(&self.node);
        let mut shared = self.shared.borrow_mut();
        shared.failures += 1;
        shared.wanted = false;
        shared.pings = 0;
        let until = now + self.node.backoff(shared.failures);
        if shared.failures == 1 && matches!(refusal, Refusal::Io(_)) {
            tracing::warn!("{}", String::from_utf8_lossy(&error).trim_start_matches("-ERR nearside: ").trim());
        }
        let awaited = std::mem::take(&mut shared.awaited);
        shared.out.clear();
        shared.phase = match self.role {
            Role::Lane => {
                Phase::Down { error: error.clone(), until, as_of: self.node.acl_changes.load(Ordering::Acquire) }
            }
            Role::Dedicated => Phase::Closed(error.clone()),
        };
        let session = shared.session.clone();
        drop(shared);
        let told = !awaited.is_empty();
        awaited.into_iter().for_each(|a| fail(a.expect, &error, false, &self.node, now));
        if let (Some(session), false) = (session, told) {
            session.break_off();
        }
        if self.role == Role::Lane { Outcome::Again } else { Outcome::End }
    }

    /// Ends what a lost connection owes. A read is sent again once, on the next connection; everything else fails, because its outcome is
    /// unknown or because it was not sent.
    fn lost(&self, why: &io::Error) -> Outcome {
        let now = Time::now();
        let mut shared = self.shared.borrow_mut();
        if let Some(stamp) = shared.stamp.take_if(|_| !sabotage::on(Rule::Lanes)) {
            // First of all: whatever this lane filled is void.
            self.node.coherence.cache.clocks.close_lane(stamp);
        }
        // Whoever waits for its socket waits no longer.
        shared.heir = None;
        if matches!(why.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) {
            self.key.login.cut();
        }
        let written = shared.written();
        let awaited = std::mem::take(&mut shared.awaited);
        let again = self.role == Role::Lane && !shared.close;
        let told =
            |text: String| if self.key.login.ended() { Bytes::from_static(SHUT_OUT) } else { self.node.error(&text) };
        let unknown = told(format!("the connection was lost ({why}); the outcome of this command is unknown"));
        let unsent = told(format!("the connection was lost ({why}) before this command was sent"));
        shared.out.clear();
        shared.armed = 0;
        shared.pings = 0;
        shared.phase = if again { Phase::Rest } else { Phase::Closed(unsent.clone()) };
        // Bytes that the server sent before it closed are passed on first: `pass_on` then tells of the loss.
        let session = if shared.raw_queue.is_empty() { shared.session.take() } else { None };
        let mut failed = Vec::new();
        let suspects = again && self.node.bounds.ends_for_replies();
        for item in awaited {
            let start = item.start;
            if suspects {
                item.expect.suspect(now + SUSPECTED);
            }
            match if again { item.expect.again(&self.node) } else { Err(item.expect) } {
                Ok((request, expect)) => shared.own(&request, expect, now),
                Err(expect) => failed.push((expect, start < written)),
            }
        }
        drop(shared);
        if self.role == Role::Lane {
            self.node.lanes.fetch_sub(1, Ordering::Relaxed);
            tracing::debug!("lane lost: {why}");
        }
        self.node.note_broken(self.role.name(), why);
        for (expect, sent) in failed {
            fail(expect, if sent { &unknown } else { &unsent }, sent, &self.node, now);
        }
        if let Some(session) = session {
            session.break_off();
        }
        if again { Outcome::Again } else { Outcome::End }
    }
}

impl Expect {
    /// A read that was awaited when the server ended the connection.
    fn suspect(&self, until: Time) {
        match self {
            Expect::Reply { place, effect, .. } if !effect.may_write() => place.suspect(until),
            Expect::Fill(fill) => fill.place.iter().for_each(|place| place.suspect(until)),
            _ => {}
        }
    }

    /// The read to be sent again, if it is one that was not sent twice already.
    fn again(self, node: &Node) -> Result<(Box<[u8]>, Expect), Expect> {
        match self {
            Expect::Reply { place, effect, retry: Some(request) } => {
                Ok((request, Expect::Reply { place, effect, retry: None }))
            }
            Expect::Fill(mut fill) => match fill.place.take() {
                Some(place) => {
                    let reads = fill.hashes(&node.coherence);
                    let effect = Effect::of_keys(KeySet { reads, ..KeySet::default() });
                    Ok((fill.request().into(), Expect::Reply { place, effect, retry: None }))
                }
                None => Err(Expect::Fill(fill)),
            },
            other => Err(other),
        }
    }
}

// --- reading and writing ---

/// Moves bytes both ways until the connection ends; returns why.
async fn pump(connection: &Rc<Connection>, stream: &mut Stream, input: &mut BytesMut) -> io::Error {
    let mut cutter = Cutter::default();
    let mut ticks = tokio::time::interval(connection.node.heartbeat);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut pending_input = !input.is_empty();
    poll_fn(|cx| {
        if std::mem::take(&mut pending_input)
            && let Some(e) = connection.take_replies(input, &mut cutter)
        {
            return Poll::Ready(e);
        }
        match connection.turn(cx, stream, input, &mut cutter, &mut ticks) {
            Ok(()) => Poll::Pending,
            Err(e) => Poll::Ready(e),
        }
    })
    .await
}

impl Connection {
    fn turn(
        self: &Rc<Self>,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        input: &mut BytesMut,
        cutter: &mut Cutter,
        ticks: &mut tokio::time::Interval,
    ) -> io::Result<()> {
        self.attend(cx);
        let told = self.shared.borrow_mut().lines.as_mut().is_some_and(|lines| lines.go_on());
        if told && let Some(e) = self.take_replies(input, cutter) {
            return Err(e);
        }
        let mut reads = 0;
        while self.takes_more() {
            match stream.poll_more(cx, input, cutter.need()) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the server")),
                Poll::Ready(Ok(_)) => self.take_replies(input, cutter).map_or(Ok(()), Err)?,
                Poll::Ready(Err(e)) => return Err(e),
            }
            reads += 1;
            if reads == READS_PER_TURN {
                super::wake_after_sessions(cx);
                break;
            }
        }
        while ticks.poll_tick(cx).is_ready() {
            self.tick()?;
        }
        let mut shared = self.shared.borrow_mut();
        if let Some(why) = shared.broken.take() {
            // A task that has panicked tells none of these.
            shared.raw_queue.clear();
            shared.raw_waiting = 0;
            return Err(why);
        }
        if shared.close {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "given up by its session"));
        }
        if std::mem::take(&mut shared.resting) && shared.awaits_nothing() {
            self.node.lanes_rested.fetch_add(1, Ordering::Relaxed);
            return Err(io::Error::new(io::ErrorKind::Interrupted, "unused"));
        }
        if let Poll::Ready(Err(e)) = stream.poll_write(cx, &mut shared.out) {
            return Err(e);
        }
        if shared.heir.is_some() {
            let idle = shared.awaited.is_empty() && shared.out.is_empty() && input.is_empty();
            return Err(if idle { GIVEN_AWAY } else { io::ErrorKind::ResourceBusy }.into());
        }
        Ok(())
    }

    /// Whether more is read; what waits for long waits at the server.
    fn takes_more(&self) -> bool {
        let shared = self.shared.borrow();
        shared.raw_waiting <= RAW_SOFT && shared.lines.as_ref().is_none_or(|lines| !lines.wait())
    }

    /// Whether the server's lines wait until it is known whose are to be left out.
    fn lines_wait(&self) -> bool {
        self.shared.borrow().lines.as_ref().is_some_and(|lines| lines.wait())
    }

    /// Registers to be woken, and sends the PING that somebody waits for.
    fn attend(&self, cx: &mut Context<'_>) {
        let mut shared = self.shared.borrow_mut();
        match &mut shared.waker {
            Some(old) if old.will_wake(cx.waker()) => {}
            slot => *slot = Some(cx.waker().clone()),
        }
        if let Some(stamp) = shared.stamp {
            self.node.coherence.register_lane(stamp, cx.waker());
            let wanted = self.node.coherence.cache.clocks.lane_wanted(stamp);
            if wanted > shared.last_ping && shared.pings < PINGS {
                shared.ping(PING);
                // Sessions of other threads are answered from what it has filled.
                self.touch(wanted);
            }
        }
    }

    /// Every heartbeat: a PING so that the lane's clock goes on, a new arming if the link is a new one, and a look at
    /// whether the node is still there.
    fn tick(self: &Rc<Self>) -> io::Result<()> {
        let now = Time::now();
        let mut shared = self.shared.borrow_mut();
        let limit = self.node.upstream_timeout;
        let silent = shared.silence(now, self.role, Time(self.node.seen.load(Ordering::Relaxed)));
        if silent > limit {
            let text = format!("no sign of life from the server for {} ms", silent.as_millis());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        if shared.stamp.is_some() {
            // A lane that was never armed has no entries to prove fresh, and its user may lack +ping.
            let quiet = now.since(self.used()) > QUIET_AFTER && !self.is_home();
            if shared.armed != 0 && shared.pings == 0 && !quiet {
                shared.ping(PING);
            }
            if !shared.arming {
                self.arm(&mut shared, now);
            }
        }
        Ok(())
    }

    /// Asks for what is not as it should be for filling: the rights, if the ACL has changed, or the reports of changed keys.
    fn arm(self: &Rc<Self>, shared: &mut Shared, now: Time) {
        let Some(link) = self.node.coherence.link() else { return };
        if shared.rights.as_of != Some(self.node.acl_changes.load(Ordering::Acquire)) {
            shared.arming = true;
            let connection = self.clone();
            panicking::beside(self, async move {
                sabotage::panic_at("rights");
                let rights = rights::of(&connection.node, &connection.key).await;
                connection.shared.borrow_mut().allow(rights);
            });
            return;
        }
        if !shared.rights.fill || link.generation == shared.armed {
            return;
        }
        if link.mode == Mode::Tracked {
            shared.arming = true;
            shared.own(&handshake::track(link.client_id), Expect::Arm(link.generation), now);
        } else {
            shared.armed = link.generation;
        }
    }

    /// Deals with every whole reply in `input`.
    fn take_replies(self: &Rc<Self>, input: &mut BytesMut, cutter: &mut Cutter) -> Option<io::Error> {
        let now = Time::now();
        self.node.seen.store(now.0, Ordering::Relaxed);
        let raw = {
            let mut shared = self.shared.borrow_mut();
            shared.heard = now;
            shared.midway = false;
            (0..AHEAD.min(input.len() / SHORTEST_REPLY)).for_each(|n| shared.prefetch(n, &self.node.coherence.cache));
            shared.raw
        };
        match raw {
            Some(Raw::Watching) if self.lines_wait() => return None,
            None | Some(Raw::Watching) => {}
            Some(_) => {
                self.pass_on(input.split().freeze(), now);
                return None;
            }
        }
        let mut answered = None;
        let mut done = 0;
        let error = loop {
            match cutter.cut(&input[done..]) {
                Ok(Some(len)) => {
                    let told = if len >= LARGE {
                        bytes::Buf::advance(input, std::mem::take(&mut done));
                        self.frame(Piece::Bytes(input.split_to(len).freeze()), now)
                    } else {
                        done += len;
                        self.frame(Piece::Slice(&input[done - len..done]), now)
                    };
                    match told {
                        Ok(sent) => answered = sent.or(answered),
                        // Bytes behind it wait.
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => break None,
                        Err(e) => break Some(e),
                    }
                }
                Ok(None) => break None,
                Err(e) => break Some(io::Error::new(io::ErrorKind::InvalidData, e)),
            }
        };
        bytes::Buf::advance(input, done);
        if let (Some(stamp), Some(sent)) = (self.shared.borrow().stamp, answered) {
            self.node.coherence.lane_answered(stamp, sent);
        }
        if input.is_empty() || error.is_some() { error } else { self.shared.borrow_mut().begins(input) }
    }

    /// One frame of the server. Returns when what it answers was sent, if that proves that the server held the connection then.
    fn frame(self: &Rc<Self>, frame: Piece<'_>, now: Time) -> io::Result<Option<Time>> {
        let bytes = frame.as_slice();
        let mut shared = self.shared.borrow_mut();
        if shared.raw == Some(Raw::Watching) {
            let hidden = shared.lines.as_mut().is_some_and(|lines| lines.hide(bytes, &self.node.table.load()));
            if let Some(session) = shared.session.clone().filter(|_| !hidden) {
                let waits = shared.heeds && (!is_told(bytes) || !shared.raw_queue.is_empty());
                drop(shared);
                if waits { self.pass_on(frame.into_bytes(), now) } else { session.push(frame) }
            }
            return Ok(None);
        }
        let kind = push_kind(bytes, shared.resp3, shared.is_subscribed() || shared.confirms > 0);
        if let Some(kind) = kind {
            shared.note_push(kind, bytes, now);
            if shared.held > shared.told {
                let behind = shared.held;
                shared.behind.push_back((behind, frame.into_bytes()));
                if shared.behind.len() > MAX_BEHIND {
                    shared.release_behind(behind);
                }
                return Ok(None);
            }
            let session = shared.session.clone();
            drop(shared);
            if let Some(session) = session {
                session.push(frame);
            }
            return Ok(None);
        }
        self.answer(shared, frame, now)
    }

    /// A reply: that to what is awaited first, if it can be one to it.
    fn answer(
        self: &Rc<Self>,
        mut shared: RefMut<'_, Shared>,
        frame: Piece<'_>,
        now: Time,
    ) -> io::Result<Option<Time>> {
        let bytes = frame.as_slice();
        let (stamp, written) = (shared.stamp, shared.written());
        let Some(first) = shared.awaited.front_mut().filter(|first| first.start < written) else {
            return Err(out_of_turn("a reply that nobody asked for", bytes));
        };
        if !first.expect.allows(bytes) {
            return Err(out_of_turn("a reply that nobody asked for in this place", bytes));
        }
        let sent = first.sent;
        let proven = proves_life(bytes).then_some(sent);
        if let Expect::Fill(fill) = &mut first.expect {
            let then = fill.reply(frame, now, &self.node.coherence, stamp);
            if then != Then::Wait {
                let item = shared.awaited.pop_front();
                shared.prefetch(AHEAD - 1, &self.node.coherence.cache);
                if let (Then::Ask(question), Some(item)) = (then, item) {
                    shared.ping(PING_AND_ASK);
                    shared.own(&question, item.expect, now);
                }
            }
            return Ok(proven);
        }
        let Some(InFlight { expect, .. }) = shared.awaited.pop_front() else { return Ok(None) };
        sabotage::panic_at(self.role.name());
        match expect {
            Expect::Reply { place, effect, .. } => {
                shared.prefetch(AHEAD - 1, &self.node.coherence.cache);
                drop(shared);
                self.settle(place, effect, frame, now);
            }
            Expect::Confirm { place, .. } => {
                shared.confirms -= 1;
                drop(shared);
                place.deliver(frame, now);
            }
            Expect::Monitor { place } => {
                let watching = bytes == b"+OK\r\n";
                if watching {
                    shared.raw = Some(Raw::Watching);
                    shared.lines = Some(Box::default());
                }
                drop(shared);
                place.deliver(frame, now);
                if watching {
                    self.learn_proxies();
                    return Err(io::ErrorKind::WouldBlock.into());
                }
            }
            Expect::Ping(_) => shared.note_ping(bytes),
            Expect::Arm(generation) => shared.note_arming(generation, bytes),
            // dealt with above
            Expect::Fill(_) => {}
        }
        Ok(proven)
    }

    /// MONITOR has begun: CLIENT LIST is asked whose lines are to be left out. Until then they wait.
    fn learn_proxies(self: &Rc<Self>) {
        let connection = self.clone();
        panicking::beside(self, async move {
            let list = monitor::list(&connection.node).await;
            let mut shared = connection.shared.borrow_mut();
            if let Some(lines) = &mut shared.lines {
                lines.know(list);
            }
            shared.wake();
        });
    }

    /// Rule 2: first the cache, then the client.
    fn settle(self: &Rc<Self>, place: Place, effect: Effect, frame: Piece<'_>, now: Time) {
        let wait = effect.settle(Some(frame.as_slice()), &self.node, now);
        if wait == Wait::No {
            return place.deliver(frame, now);
        }
        let reply = frame.into_bytes();
        self.shared.borrow_mut().held += 1;
        let connection = self.clone();
        panicking::beside(self, async move {
            connection.node.coherence.barrier(now).await;
            if wait == Wait::Look {
                connection.look_since(now).await;
            }
            sabotage::panic_at("held reply");
            place.deliver(Piece::Bytes(reply), Time::now());
            connection.release();
        });
    }

    /// A held reply has been told, and so are the pushes that came behind it: an invalidation does not come before the
    /// reply of the command that caused it.
    fn release(&self) {
        let mut shared = self.shared.borrow_mut();
        shared.told += 1;
        let told = shared.told;
        shared.release_behind(told);
    }

    /// Waits until the watch has looked at what the server was like at `t` or later. If it cannot, nothing is believed any more.
    async fn look_since(&self, t: Time) {
        if !self.node.looks.taken_since(t, self.node.upstream_timeout).await {
            self.node.rights_changed();
        }
    }

    fn pass_on(self: &Rc<Self>, bytes: Bytes, now: Time) {
        let mut shared = self.shared.borrow_mut();
        shared.raw_waiting += bytes.len();
        shared.raw_queue.push_back((now, bytes));
        if shared.raw_queue.len() > 1 {
            return;
        }
        let connection = self.clone();
        panicking::beside(self, async move {
            loop {
                sabotage::panic_at("raw");
                let (raw, front) = {
                    let shared = connection.shared.borrow();
                    (shared.raw, shared.raw_queue.front().map(|(at, bytes)| (*at, is_told(bytes))))
                };
                let Some((at, told)) = front else { return };
                if raw != Some(Raw::Watching) {
                    connection.node.coherence.barrier(at).await;
                }
                if raw == Some(Raw::Swapping) || raw == Some(Raw::Watching) && !told {
                    connection.look_since(at).await;
                }
                let mut shared = connection.shared.borrow_mut();
                let Some((_, bytes)) = shared.raw_queue.pop_front() else { return };
                shared.raw_waiting -= bytes.len();
                shared.wake();
                let session = shared.session.clone();
                let over = shared.raw_queue.is_empty() && matches!(shared.phase, Phase::Closed(_));
                drop(shared);
                if let Some(session) = session {
                    session.push(Piece::Bytes(bytes));
                    if over {
                        session.break_off();
                    }
                }
            }
        });
    }
}

/// Whether it is what MONITOR tells of others, and no reply: `+1700000000.123456 [0 …`.
fn is_told(frame: &[u8]) -> bool {
    matches!(frame, [b'+', digit, ..] if digit.is_ascii_digit())
}

impl Expect {
    /// Whether this can be the answer. Of a client's own command nothing is known, outside of transactions: what comes in its
    /// turn is its reply.
    fn allows(&self, bytes: &[u8]) -> bool {
        match self {
            Expect::Reply { effect: Effect::Step(step), .. } => step.allows(bytes),
            Expect::Reply { .. } | Expect::Monitor { .. } => true,
            Expect::Fill(fill) => fill.allows(bytes),
            Expect::Confirm { .. } => is_error(bytes),
            // A server has other words for why it does not answer PING.
            Expect::Ping(pong) => {
                bytes == *pong
                    || bytes == PONG
                    || is_error(bytes) && (!bytes.starts_with(b"-ERR ") || is_unknown(bytes))
            }
            Expect::Arm(_) => bytes == b"+OK\r\n" || is_error(bytes),
        }
    }

    /// Whether its answer takes no longer than the node takes for anything. A script may run for long, a write may be
    /// paused (CLIENT PAUSE), a module may block: meanwhile the node answers others.
    fn is_prompt(&self) -> bool {
        match self {
            Expect::Reply { effect, .. } => !effect.may_write(),
            Expect::Fill(_) | Expect::Ping(_) | Expect::Arm(_) => true,
            Expect::Confirm { .. } | Expect::Monitor { .. } => false,
        }
    }
}

impl Shared {
    /// Asks the memory for what dealing with the answer to the `n`th of what is awaited will touch.
    fn prefetch(&self, n: usize, cache: &Cache) {
        match self.awaited.get(n).map(|item| &item.expect) {
            Some(Expect::Reply { effect: Effect::Write(hash), .. }) => cache.prefetch_drop(*hash),
            Some(Expect::Fill(fill)) => fill.prefetch(),
            _ => {}
        }
    }

    /// For how long what is awaited first has been without any sign of life: of the node (`seen`, on any connection),
    /// or, of a lane whose answer is due, on this very connection. The server may have closed it and its goodbye been
    /// lost, while other connections live on. And for how long a frame has been begun and nothing more of it has come:
    /// what began it may have been a stray, and what is awaited be behind it.
    fn silence(&self, now: Time, role: Role, seen: Time) -> Duration {
        let last = match self.awaited.front() {
            _ if self.midway => self.heard,
            None => return Duration::ZERO,
            Some(first) if role == Role::Lane && first.expect.is_prompt() => first.sent.max(self.heard),
            Some(first) => first.sent.max(seen),
        };
        now.since(last)
    }

    /// The beginning of a frame has come. If no reply is due it can only be a push: else the next reply would be taken for
    /// its rest, and that of one session for another's.
    fn begins(&mut self, begun: &[u8]) -> Option<io::Error> {
        self.midway = true;
        let due = self.awaited.front().is_some_and(|first| first.start < self.written());
        let push = match begun[0] {
            b'>' => true,
            b'*' => !self.resp3 && self.is_subscribed(),
            b'+' => self.raw == Some(Raw::Watching),
            _ => false,
        };
        (!due && !push).then(|| out_of_turn("the beginning of a reply that nobody asked for", begun))
    }

    /// The server's answer to something of the proxy's own: a user who may not say it is not cached for.
    fn heed_refusal(&mut self, bytes: &[u8]) {
        if is_refusal(bytes) {
            self.rights.fill = false;
        }
    }

    /// Notes its user's rights as of now. A user that may not fill any more is asked nothing either.
    fn allow(&mut self, rights: Rights) {
        self.arming = false;
        self.rights = rights;
        if !rights.fill {
            self.armed = 0;
        }
    }

    /// The verdict on CLIENT TRACKING for this generation of the link.
    fn note_arming(&mut self, generation: u64, verdict: &[u8]) {
        self.arming = false;
        if verdict == b"+OK\r\n" {
            self.armed = generation;
        }
        self.heed_refusal(verdict);
    }

    fn note_ping(&mut self, pong: &[u8]) {
        self.pings = self.pings.saturating_sub(1);
        self.heed_refusal(pong);
    }

    fn ping(&mut self, [ping, pong]: [&'static [u8]; 2]) {
        let now = Time::now();
        self.pings += 1;
        self.last_ping = now;
        self.own(ping, Expect::Ping(pong), now);
    }

    /// Tells the pushes that came behind so many held replies, in their order.
    fn release_behind(&mut self, held: u64) {
        while self.behind.front().is_some_and(|(behind, _)| *behind <= held)
            && let Some((_, push)) = self.behind.pop_front()
        {
            if let Some(session) = &self.session {
                session.push(Piece::Bytes(push));
            }
        }
    }

    fn is_subscribed(&self) -> bool {
        self.subscriptions != [0; 2]
    }

    /// Keeps count of confirmations, and of a lane whose redirect broke.
    fn note_push(&mut self, kind: &[u8], frame: &[u8], now: Time) {
        if kind == b"tracking-redir-broken" {
            self.armed = 0;
        }
        let confirmation = kind.ends_with(b"subscribe");
        if !confirmation {
            return;
        }
        // `sunsubscribe` may also come unasked, when a slot moves away.
        if let Some(total) = last_integer(frame) {
            let sharded = matches!(kind, b"ssubscribe" | b"sunsubscribe");
            self.subscriptions[usize::from(sharded)] = total;
        }
        let Some(InFlight { expect: Expect::Confirm { kind: wanted, left, .. }, .. }) = self.awaited.front_mut() else {
            return;
        };
        if wanted.as_bytes() != kind {
            return;
        }
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.confirms -= 1;
            if let Some(InFlight { expect: Expect::Confirm { place, .. }, .. }) = self.awaited.pop_front() {
                place.deliver(Piece::Slice(b""), now);
            }
        }
    }
}

/// The first word of a push (nothing if it has none), or `None` if the frame is a reply. RESP2 has no push type: there it is
/// what a subscriber gets while it is one.
fn push_kind(frame: &[u8], resp3: bool, subscribed: bool) -> Option<&[u8]> {
    let marked = frame[0] == b'>';
    if !marked && (resp3 || !subscribed || frame[0] != b'*') {
        return None;
    }
    let elements = resp::split_aggregate(frame).filter(|(count, _)| *count > 0);
    let word = elements.and_then(|(_, rest)| resp::split_bulk(rest)).map(|(word, _)| word);
    let pubsub = word.is_some_and(|word| word.ends_with(b"subscribe") || word.ends_with(b"message"));
    (marked || pubsub).then_some(word.unwrap_or_default())
}

fn is_error(frame: &[u8]) -> bool {
    matches!(frame[0], b'-' | b'!')
}

/// A command that the server does not have.
fn is_unknown(frame: &[u8]) -> bool {
    frame.starts_with(b"-ERR unknown command")
}

/// The server's own word on what a user may not say.
fn is_refusal(frame: &[u8]) -> bool {
    frame.starts_with(b"-NOPERM")
}

/// Whether a reply shows that the server held the connection when it was asked. An error may come from whatever stands
/// between, which says a last word and closes while the server has let the connection go already.
fn proves_life(frame: &[u8]) -> bool {
    !is_error(frame) || is_refusal(frame)
}

/// The positions are lost, and so is the connection: what is awaited on it fails. Of the bytes only an error's text is shown:
/// anything else may be a client's value.
fn out_of_turn(what: &str, frame: &[u8]) -> io::Error {
    let shown = if is_error(frame) { &frame[..frame.len().min(SHOWN)] } else { &frame[..1] };
    let shown = String::from_utf8_lossy(shown.trim_ascii_end());
    io::Error::new(io::ErrorKind::InvalidData, format!("{what}: {}", shown.escape_debug()))
}

/// The last value of a confirmation: how many subscriptions there are now.
fn last_integer(frame: &[u8]) -> Option<i64> {
    let text = frame.strip_suffix(b"\r\n")?;
    let colon = memchr::memrchr(b':', text)?;
    resp::parse_i64(&text[colon + 1..])
}
