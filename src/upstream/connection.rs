//! One connection to a node: handshake, batched writes, replies matched to what was sent by position. A lane is one
//! that many sessions share and that comes back; a dedicated one is lent to one session and dies once. They share the requests
//! on their way ([`pipeline`]) and the decision which of them a frame answers ([`state`]); a lane has besides what filling
//! wants ([`lane`]), a dedicated one its session ([`dedicated`]) and bytes that pass unlooked at ([`raw`]). [`pump`] moves the
//! bytes, [`replies`] acts by each frame's place, [`life`] opens and loses the connection.
//!
//! Bounds: the bytes queued for the node (`lane_buffer_limit`, checked by sessions before they send), what is awaited
//! (each session's own limit), one reply at a time in the input buffer.
//!
//! Invariants, and the tests that attack them:
//!
//! 1. **One request has exactly one reply.** The [`pipeline`] holds what was queued, in the order in which it was queued, and a reply
//!    belongs to its front. A reply, or the beginning of one, while the front is not sent, or a reply that cannot be one to the
//!    front (what the proxy asks for itself has known answers, and so has what a transaction consists of), ends the
//!    connection; pushes take nobody's turn. A line of others that comes while a client's command is first, and could be its
//!    reply, is taken for it: the next of the proxy's own answers then tells. `test_out_of_turn.py`.
//! 2. **Nothing awaited is forgotten**: when a connection is lost, each item is sent again (once, if it is repeatable) or told
//!    that it was not sent, or that its outcome is unknown. A read that has been answered, and about which more is asked, is told
//!    that answer (`test_order_of_reads.py`). `test_a_lane_that_is_told_something_and_closed_comes_back`,
//!    `test_bad_weather.py`, `test_lost_replies.py`.
//! 3. **A lane that a session holds comes back** with the next request; only `close`, which [`super::lanes`] says of a lane that
//!    no session holds, ends it. `test_a_lane_that_is_told_something_comes_back_at_once`, `test_lanes.py`.
//! 4. **What a lane has filled is void before anything else is done about its loss.** `test_a_lane_dies`, `broken::lanes`.
//! 5. **The cache is settled before the client is told** ([`super::effect`]), and pushes stay behind the replies that wait for
//!    it. `rules_needed::dropping_before_the_ack`, `promises::scripts`.
//! 6. **An error proves no life**: it does not advance the lane's clock, for something in between may have said it, unless it
//!    is the server's own `-NOPERM`. `test_out_of_turn.py` (`error`).

mod dedicated;
mod frame;
mod lane;
mod life;
mod panicking;
mod pipeline;
mod pump;
mod raw;
mod replies;
mod state;

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::Waker;

use bytes::Bytes;
use tokio::sync::Notify;

use super::effect::Effect;
use crate::buffer::LARGE;
use crate::node::Node;
use crate::node::identity::{ConnectionKey, Role};
use crate::outbox::{Piece, Place};
use crate::time::Time;
use dedicated::Dedicated;
use lane::Lane;
use pipeline::{Expect, Pipeline};

pub(super) use life::run;
#[cfg(test)]
pub use pump::wake_after_sessions;
pub use raw::Raw;

/// Whether there is a connection.
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

/// The two uses of a connection, which share the requests on it and nothing else.
enum Use {
    /// By many sessions; it fills the cache, and comes back.
    Lane(Lane),
    /// By the one session that it is lent to; it dies once.
    Dedicated(Box<Dedicated>),
}

/// The state that both uses share, and that of the one use.
struct State {
    phase: Phase,
    pipeline: Pipeline,
    purpose: Use,
    waker: Option<Waker>,
    /// The server's reply to HELLO; empty until it has accepted the connection.
    hello: Bytes,
    /// The protocol spoken now.
    resp3: bool,
    /// When the server last said anything on it.
    heard: Time,
    /// The bytes that came last were the beginning of a frame.
    midway: bool,
    /// The connection is to end: nobody has it any more.
    close: bool,
    /// The connection is to be taken for lost, for this reason.
    broken: Option<io::Error>,
}

/// A connection, as sessions hold it.
pub struct Connection {
    /// Its login, protocol and database.
    pub key: ConnectionKey,
    node: Arc<Node>,
    /// When a session last did anything with it.
    used: Cell<Time>,
    state: RefCell<State>,
    changed: Notify,
    /// The server's number for it, once known; others look it up for CLIENT UNBLOCK and REDIRECT.
    pub client_id: Arc<AtomicI64>,
}

impl Connection {
    fn new(node: Arc<Node>, key: ConnectionKey, purpose: Use) -> Rc<Connection> {
        let state = RefCell::new(State::new(purpose, key.resp3));
        let used = Cell::new(Time::now());
        Rc::new(Connection { key, node, used, state, changed: Notify::new(), client_id: Arc::default() })
    }

    /// A lane that [`run`] then runs. It connects when first needed.
    pub(super) fn lane(node: Arc<Node>, key: ConnectionKey) -> Rc<Connection> {
        Connection::new(node, key, Use::Lane(Lane::default()))
    }

    /// A dedicated connection that [`run`] then runs. It connects at once.
    pub(super) fn dedicated_to(node: Arc<Node>, key: ConnectionKey) -> Rc<Connection> {
        Connection::new(node, key, Use::Dedicated(Box::default()))
    }

    /// Sends a request as it is; its reply goes to `place` after `effect`. `repeatable`: it changes nothing, so that a lane
    /// which is lost may send it again.
    pub fn send(&self, request: Piece<'_>, place: Place, effect: Effect, repeatable: bool, now: Time) {
        let again = repeatable && !effect.may_write() && request.len() < LARGE && self.comes_back();
        let retry = again.then(|| request.as_slice().into());
        self.enqueue(request, Expect::Reply { place, effect, retry }, now);
    }

    fn comes_back(&self) -> bool {
        matches!(self.state.borrow().purpose, Use::Lane(_))
    }

    fn enqueue(&self, request: Piece<'_>, expect: Expect, now: Time) {
        self.touch(now);
        let mut state = self.state.borrow_mut();
        match &state.phase {
            Phase::Down { error, until, as_of } if now < *until && self.has_rights_of(*as_of) => {
                let error = error.clone();
                drop(state);
                return life::fail(expect, &error, false, &self.node, now);
            }
            Phase::Closed(error) => {
                let error = error.clone();
                drop(state);
                return life::fail(expect, &error, false, &self.node, now);
            }
            _ => {}
        }
        state.pipeline.push(request, expect, now);
        state.wake();
    }

    /// Whether rights are what they were then, as far as is known.
    fn has_rights_of(&self, as_of: u64) -> bool {
        self.node.acl_changes.load(Ordering::Acquire) == as_of
    }

    /// Bytes that wait to be sent.
    pub fn backlog(&self) -> usize {
        self.state.borrow().pipeline.backlog()
    }

    /// Since when it has said nothing.
    pub fn heard(&self) -> Time {
        self.state.borrow().heard
    }

    /// Opens it if it is not open. The server's reply to HELLO, or the error that clients are told.
    pub async fn ready(&self) -> Result<Bytes, Bytes> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state.borrow_mut();
                match &state.phase {
                    Phase::Up => return Ok(state.hello.clone()),
                    Phase::Closed(error) => return Err(error.clone()),
                    Phase::Down { error, until, as_of } if Time::now() < *until && self.has_rights_of(*as_of) => {
                        return Err(error.clone());
                    }
                    Phase::Down { .. } => state.phase = Phase::Rest,
                    Phase::Rest | Phase::Opening => {}
                }
                if let Use::Lane(lane) = &mut state.purpose {
                    lane.wanted = true;
                }
                state.wake();
            }
            changed.await;
        }
    }

    /// Whether it is open now.
    pub fn is_open(&self) -> bool {
        matches!(self.state.borrow().phase, Phase::Up)
    }

    /// Whether the server did not take it, and so nothing that was said on it.
    pub fn was_refused(&self) -> bool {
        self.state.borrow().hello.is_empty() && self.is_over()
    }

    /// Whether it will not come back.
    pub fn is_over(&self) -> bool {
        matches!(self.state.borrow().phase, Phase::Closed(_))
    }

    /// The node it leads to.
    pub(super) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// For the greeting.
    pub(super) fn role(&self) -> Role {
        self.state.borrow().purpose.role()
    }

    /// Has it taken for lost.
    fn break_with(&self, why: io::Error) {
        let mut state = self.state.borrow_mut();
        state.broken = Some(why);
        state.wake();
    }

    /// A session does something with it.
    pub fn touch(&self, now: Time) {
        self.used.set(now);
    }

    /// When a session last did.
    pub fn used(&self) -> Time {
        self.used.get()
    }

    /// Ends it: the session that had it is gone.
    pub fn close(&self) {
        self.dedicated(|dedicated| dedicated.session = None);
        let mut state = self.state.borrow_mut();
        state.close = true;
        state.wake();
    }
}
