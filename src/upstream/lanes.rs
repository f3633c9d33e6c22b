//! The lanes of one thread: which there are, which of them are open, and which ends first.
//!
//! A lane is two things. Sessions hold its **handle** (`Rc<Connection>`); the handle has a **connection** to the node while that
//! is needed. A lane that nobody has used for `lane_idle_timeout`, or the one unused for longest when another wants the last
//! of `max_lanes` places, comes to **rest**: the connection ends, the handle stays, and the next request opens it again.
//!
//! Invariants, and the tests (`tests/python/test_lanes.py`, and below) that attack them:
//!
//! 1. No more than `max_lanes` lanes are open or being opened in the process: each holds a [`Berth`], from before it connects
//!    until its loss has been dealt with. `test_no_more_lanes_than_max_lanes`.
//! 2. Only a lane on which no request is awaited comes to rest, so rest fails nobody's command: whether it is so is looked at
//!    by the lane's own task, in the turn in which it ends. `test_lanes_rest_under_traffic`.
//! 3. What a lane has filled is void before its connection ends (`Connection::lost`; lemma 3 holds in either order). A hit
//!    that waits for the clock of a lane at rest goes upstream. `test_no_stale_hit_when_lanes_rest`.
//! 4. A handle that a session holds is never closed: only one that nobody but the map and its own task holds is forgotten, in
//!    one step without an await. `test_a_session_that_sleeps_longer_than_its_lane`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::capacity::{Berth, Capacity};
use super::connection::Connection;
use crate::node::Node;
use crate::node::identity::ConnectionKey;
use crate::node::wire::Refusal;
use crate::time::Time;

/// How often a lane that waits for a place looks for one.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Holders of a handle at rest that no session holds: the map, the lane's task, and what takes the task through panics.
const UNSHARED: usize = 3;

/// The kind of requests on a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cargo {
    /// Anything.
    Any,
    /// Reads alone, which can be sent again if the server ends the lane for the size of a reply.
    Reads,
}

/// The lanes of one thread.
pub struct Lanes {
    node: Arc<Node>,
    capacity: Arc<Capacity>,
    all: RefCell<HashMap<(ConnectionKey, Cargo), Rc<Connection>>>,
}

impl Lanes {
    /// None yet.
    pub fn new(node: Arc<Node>, capacity: Arc<Capacity>) -> Lanes {
        Lanes { node, capacity, all: RefCell::default() }
    }

    /// The lane for this user, protocol, database and cargo; `start` makes its handle if there is none.
    pub fn get(&self, key: &ConnectionKey, cargo: Cargo, start: impl FnOnce() -> Rc<Connection>) -> Rc<Connection> {
        let mut all = self.all.borrow_mut();
        let lane = all.entry((key.clone(), cargo)).or_insert_with(start);
        lane.touch(Time::now());
        lane.clone()
    }

    /// A place for one more open lane, if one becomes free within `connect_timeout`.
    pub(super) async fn berth(&self) -> Result<Berth, Refusal> {
        let deadline = Time::now() + self.node.settings.connect_timeout;
        loop {
            if let Some(berth) = Berth::take(&self.capacity) {
                return Ok(berth);
            }
            self.capacity.lanes.want(Time::now());
            self.rest_idlest(Duration::ZERO);
            if Time::now() >= deadline {
                let text = format!("all {} lanes are in use (max_lanes)", self.capacity.lanes.max);
                return Err(Refusal::Server(self.node.error(&text)));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Brings the lane to rest that is unused for longest, among those on which nothing is awaited, if it is unused for that long.
    fn rest_idlest(&self, unused: Duration) {
        let now = Time::now();
        let all = self.all.borrow();
        let idle = all.values().filter(|lane| lane.is_idle());
        if let Some(lane) = idle.min_by_key(|lane| lane.used()).filter(|lane| now.since(lane.used()) >= unused) {
            lane.rest();
        }
    }

    /// Looks after them, for good: every heartbeat for other threads that want a place, and for lanes nobody uses any more.
    pub async fn tend(&self) {
        loop {
            tokio::time::sleep(self.node.settings.heartbeat).await;
            let now = Time::now();
            if self.capacity.lanes.were_wanted(now, self.node.settings.heartbeat * 2) {
                self.rest_idlest(self.node.settings.heartbeat);
            }
            self.sweep(now);
        }
    }

    fn sweep(&self, now: Time) {
        let limit = self.capacity.lanes.idle_timeout;
        self.all.borrow_mut().retain(|_, lane| {
            let unused = !limit.is_zero() && now.since(lane.used()) > limit;
            if unused && !lane.is_home() && lane.is_idle() {
                lane.rest();
            }
            let forgotten = Rc::strong_count(lane) == UNSHARED && lane.is_at_rest();
            if forgotten {
                lane.close();
            }
            !forgotten
        });
    }
}
