//! The part of a connection that makes it a lane: it fills the cache and proves by its clock that it may, comes to rest when
//! nobody uses it, and comes back.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use super::frame::is_refusal;
use super::panicking;
use super::pipeline::{Expect, Pipeline};
use super::{Connection, Phase, State, Use};
use crate::bypass::Bypass;
use crate::clock::LaneStamp;
use crate::coherence::standing::Mode;
use crate::command::FieldTtl;
use crate::node::Node;
use crate::node::handshake::{self, Opened};
use crate::node::rights::{self, Rights};
use crate::outbox::{Piece, Place};
use crate::sabotage::{self, Rule};
use crate::time::Time;
use crate::upstream::fill::{Fill, FillRead, Terms};

/// With an argument that no client gives it ([`crate::node::wire::MARK`]), and the answer.
const PING: [&[u8]; 2] = [b"*2\r\n$4\r\nPING\r\n$8\r\nnearside\r\n", b"$8\r\nnearside\r\n"];
/// The same before a question about the fields of a hash ([`crate::upstream::monitor::QUESTION`]).
pub(super) const PING_AND_ASK: [&[u8]; 2] =
    [b"*2\r\n$4\r\nPING\r\n$17\r\nnearside:question\r\n", b"$17\r\nnearside:question\r\n"];
/// A lane unused for so long says no PING until somebody waits for its clock: with many lanes, PINGs would be most of what
/// the server does.
const QUIET_AFTER: Duration = Duration::from_secs(5);
/// PINGs on their way at once; who comes later shares the next.
const PINGS: usize = 4;

/// The state of a lane besides the requests on it.
#[derive(Default)]
pub(super) struct Lane {
    /// Its place among the clocks, while it is open.
    pub(super) stamp: Option<LaneStamp>,
    rights: Rights,
    /// The link's generation that changed keys are reported to; 0: none yet.
    armed: u64,
    /// CLIENT TRACKING is being asked for, or the rights to it.
    arming: bool,
    pings: usize,
    last_ping: Time,
    /// Times in a row that it could not be opened.
    failures: u32,
    /// Somebody waits for it to be open.
    pub(super) wanted: bool,
    /// The lane is to come to rest, if nothing is awaited on it.
    pub(super) resting: bool,
    /// Its task waits until it is needed.
    asleep: bool,
}

impl Lane {
    /// Says PING, of which the answer advances the lane's clock.
    pub(super) fn ping(&mut self, [ping, pong]: [&'static [u8]; 2], pipeline: &mut Pipeline) {
        let now = Time::now();
        self.pings += 1;
        self.last_ping = now;
        pipeline.push(Piece::Slice(ping), Expect::Ping(pong), now);
    }

    /// The answer to something of the proxy's own has come.
    pub(super) fn note_answer(&mut self, asked: &Expect, answer: &[u8]) {
        match asked {
            Expect::Ping(_) => self.pings = self.pings.saturating_sub(1),
            Expect::Arm(generation) => {
                self.arming = false;
                if answer == b"+OK\r\n" {
                    self.armed = *generation;
                }
            }
            _ => {}
        }
        // A user who may not say it is not cached for.
        if is_refusal(answer) {
            self.rights.fill = false;
        }
    }

    /// A push has come with this first word: its redirect may have broken.
    pub(super) fn note_push(&mut self, word: &[u8]) {
        if word == b"tracking-redir-broken" {
            self.armed = 0;
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

    /// The connection is open.
    pub(super) fn opened(&mut self, opened: &Opened, node: &Node) {
        node.lanes.fetch_add(1, Ordering::Relaxed);
        (self.failures, self.wanted, self.pings, self.arming) = (0, false, 0, false);
        self.rights = opened.rights;
        self.armed = opened.armed.unwrap_or(0);
        self.stamp = self.stamp.or_else(|| node.coherence.cache.clocks.open_lane(opened.asked));
    }

    /// The connection could not be opened. How often in a row.
    pub(super) fn failed(&mut self) -> u32 {
        self.failures += 1;
        (self.wanted, self.pings) = (false, 0);
        self.failures
    }

    /// The connection is lost: whatever this lane filled is void.
    pub(super) fn lost(&mut self, node: &Node) {
        if let Some(stamp) = self.stamp.take_if(|_| !sabotage::on(Rule::Lanes)) {
            node.coherence.cache.clocks.close_lane(stamp);
        }
        node.lanes.fetch_sub(1, Ordering::Relaxed);
        (self.armed, self.pings) = (0, 0);
    }

    /// Why a reply that depends on fields in this way must not be kept: the user's rights do not suffice, or the server does not
    /// report changes to the link of this generation.
    fn refusal(&self, field_ttl: FieldTtl, generation: Option<u64>) -> Option<Bypass> {
        let covered = self.rights.cover(field_ttl);
        // A lane that has not asked for its rights is not armed.
        if self.rights.as_of.is_some() && !covered {
            return Some(Bypass::LaneRights);
        }
        let tracked = self.stamp.is_some() && generation == Some(self.armed);
        (!covered || !tracked).then_some(Bypass::LaneNotArmed)
    }
}

impl Connection {
    /// Sends a read that fills the cache.
    pub fn send_fill(&self, place: Place, read: FillRead, now: Time) {
        self.touch(now);
        let mut state = self.state.borrow_mut();
        // The permits were taken before: if the mode changes now, they are void.
        let tracked = self.node.coherence.mode().is_none_or(|mode| mode == Mode::Tracked);
        let [anywhere, this_hash] = match &state.purpose {
            Use::Lane(lane) => lane.rights.questions(),
            Use::Dedicated(_) => Rights::NONE.questions(),
        };
        let anywhere = anywhere && !self.node.coherence.mortal.anywhere(now);
        let fill =
            Fill::new(place, read, now, Terms { tracked, max_ttl: self.node.settings.max_ttl, anywhere, this_hash });
        state.pipeline.push_fill(fill, now);
        state.wake();
    }

    /// Why a reply that depends on fields in this way must not be kept by this lane, as of now ([`crate::upstream::permit`]).
    pub fn refusal(&self, field_ttl: FieldTtl) -> Option<Bypass> {
        let state = self.state.borrow();
        let Use::Lane(lane) = &state.purpose else { return Some(Bypass::LaneNotArmed) };
        let generation = self.node.coherence.generation().filter(|_| matches!(state.phase, Phase::Up));
        lane.refusal(field_ttl, generation)
    }

    /// Whether sessions begin with such a lane: it stays.
    pub fn is_home(&self) -> bool {
        self.key.login == self.node.own.login && self.key.db == self.node.home && self.key.via.is_none()
    }

    /// Whether it is open, nothing is awaited on it and nobody waits for its clock: ending it now fails nobody.
    pub fn is_idle(&self) -> bool {
        let state = self.state.borrow();
        let Use::Lane(lane) = &state.purpose else { return false };
        let clocks = &self.node.coherence.cache.clocks;
        let waited_for = |stamp| clocks.lane(stamp).is_some_and(|have| clocks.lane_wanted(stamp) > have);
        matches!(state.phase, Phase::Up)
            && !lane.resting
            && state.pipeline.owes_nobody()
            && !lane.stamp.is_some_and(waited_for)
    }

    /// Whether it has no connection, and nobody wants one. (Not so before its task has begun, which then holds it once more.)
    pub fn is_at_rest(&self) -> bool {
        let state = self.state.borrow();
        matches!(&state.purpose, Use::Lane(lane) if lane.asleep && state.pipeline.is_empty() && !lane.wanted)
    }

    /// Its connection is to end, unless something is sent before its task's next turn.
    pub fn rest(&self) {
        let mut state = self.state.borrow_mut();
        if let Use::Lane(lane) = &mut state.purpose {
            lane.resting = true;
        }
        state.wake();
    }

    /// Waits until a lane that is not open has something to do. False: it is to end.
    pub(super) async fn is_needed(&self) -> bool {
        poll_fn(|cx| {
            let State { purpose, waker, close, pipeline, phase, .. } = &mut *self.state.borrow_mut();
            let Use::Lane(lane) = purpose else { return Poll::Ready(true) };
            *waker = Some(cx.waker().clone());
            lane.asleep = false;
            if *close {
                return Poll::Ready(false);
            }
            if pipeline.is_empty() && !lane.wanted {
                lane.asleep = true;
                return Poll::Pending;
            }
            *phase = Phase::Opening;
            Poll::Ready(true)
        })
        .await
    }

    /// Sends the PING that somebody waits for.
    pub(super) fn attend_clock(&self, state: &mut State, cx: &Context<'_>) {
        let Use::Lane(lane) = &mut state.purpose else { return };
        let Some(stamp) = lane.stamp else { return };
        self.node.coherence.register_lane(stamp, cx.waker());
        let wanted = self.node.coherence.cache.clocks.lane_wanted(stamp);
        if wanted > lane.last_ping && lane.pings < PINGS {
            lane.ping(PING, &mut state.pipeline);
            // Sessions of other threads are answered from what it has filled.
            self.touch(wanted);
        }
    }

    /// Every heartbeat: a PING so that the lane's clock goes on, and what filling wants.
    pub(super) fn tick_lane(self: &Rc<Self>, state: &mut State, now: Time) {
        let Use::Lane(lane) = &mut state.purpose else { return };
        if lane.stamp.is_none() {
            return;
        }
        // A lane that was never armed has no entries to prove fresh, and its user may lack +ping.
        let quiet = now.since(self.used()) > QUIET_AFTER && !self.is_home();
        if lane.armed != 0 && lane.pings == 0 && !quiet {
            lane.ping(PING, &mut state.pipeline);
        }
        if !lane.arming {
            self.arm(lane, &mut state.pipeline, now);
        }
    }

    /// Asks for what is not as it should be for filling: the rights, if the ACL has changed, or the reports of changed keys.
    fn arm(self: &Rc<Self>, lane: &mut Lane, pipeline: &mut Pipeline, now: Time) {
        let Some(link) = self.node.coherence.link() else { return };
        if lane.rights.as_of != Some(self.node.acl_changes.load(Ordering::Acquire)) {
            lane.arming = true;
            let connection = self.clone();
            panicking::beside(self, async move {
                sabotage::panic_at("rights");
                let rights = rights::of(&connection.node, &connection.key).await;
                if let Use::Lane(lane) = &mut connection.state.borrow_mut().purpose {
                    lane.allow(rights);
                }
            });
            return;
        }
        if !lane.rights.fill || link.generation == lane.armed {
            return;
        }
        if link.mode == Mode::Tracked {
            lane.arming = true;
            let track = handshake::track(link.client_id);
            pipeline.push(Piece::Slice(&track), Expect::Arm(link.generation), now);
        } else {
            lane.armed = link.generation;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clocks;

    fn open() -> Lane {
        Lane { stamp: Clocks::default().open_lane(Time(1)), ..Lane::default() }
    }

    #[test]
    fn a_lane_fills_while_it_is_armed_for_the_link_there_is() {
        let mut lane = open();
        assert_eq!(lane.refusal(FieldTtl::No, Some(3)), Some(Bypass::LaneNotArmed), "no rights yet");
        lane.allow(Rights::all(1));
        lane.note_answer(&Expect::Arm(3), b"-ERR x\r\n");
        assert_eq!(lane.refusal(FieldTtl::No, Some(3)), Some(Bypass::LaneNotArmed));
        lane.note_answer(&Expect::Arm(3), b"+OK\r\n");
        assert_eq!(lane.refusal(FieldTtl::No, Some(3)), None);
        assert_eq!(lane.refusal(FieldTtl::No, Some(4)), Some(Bypass::LaneNotArmed), "a new link");
        assert_eq!(lane.refusal(FieldTtl::No, None), Some(Bypass::LaneNotArmed), "no link");
        lane.note_push(b"invalidate");
        assert_eq!(lane.refusal(FieldTtl::No, Some(3)), None);
        lane.note_push(b"tracking-redir-broken");
        assert_eq!(lane.refusal(FieldTtl::No, Some(3)), Some(Bypass::LaneNotArmed));
    }

    #[test]
    fn a_user_who_may_not_ask_is_not_cached_for() {
        let mut lane = open();
        lane.allow(Rights::all(1));
        lane.note_answer(&Expect::Ping(b""), b"-LOADING x\r\n");
        assert!(lane.rights.fill);
        lane.note_answer(&Expect::Ping(b""), b"-NOPERM x\r\n");
        assert_eq!(lane.refusal(FieldTtl::No, Some(0)), Some(Bypass::LaneRights));
        assert_eq!((lane.failed(), lane.failed(), lane.wanted), (1, 2, false));
    }
}
