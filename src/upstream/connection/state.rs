//! The state of a connection, and the place that a frame of the server has in it. No I/O: what is decided here is done in
//! [`super::replies`], [`super::life`] and [`super::pump`].

use std::io;
use std::time::Duration;

use bytes::Bytes;

use super::frame::{Landing, is_push, out_of_turn};
use super::pipeline::Pipeline;
use super::{Phase, State, Use};
use crate::node::identity::Role;
use crate::time::Time;

impl Use {
    /// For the greeting and for messages.
    pub(super) fn role(&self) -> Role {
        match self {
            Use::Lane(_) => Role::Lane,
            Use::Dedicated(_) => Role::Dedicated,
        }
    }
}

impl State {
    /// A lane rests until it is needed; a dedicated connection is opened at once.
    pub(super) fn new(purpose: Use, resp3: bool) -> State {
        State {
            phase: if matches!(purpose, Use::Lane(_)) { Phase::Rest } else { Phase::Opening },
            pipeline: Pipeline::default(),
            purpose,
            waker: None,
            hello: Bytes::new(),
            resp3,
            heard: Time::ZERO,
            midway: false,
            close: false,
            broken: None,
        }
    }

    /// Has the connection's task run again.
    pub(super) fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// The place of this frame among all that is awaited.
    pub(super) fn landing(&self, frame: &[u8]) -> Landing {
        let subscriber = match &self.purpose {
            Use::Lane(_) => false,
            Use::Dedicated(dedicated) if dedicated.passing.is_watching() => return Landing::Line,
            Use::Dedicated(dedicated) => dedicated.is_subscriber(),
        };
        if is_push(frame, self.resp3, subscriber) { Landing::Push } else { self.pipeline.landing(frame) }
    }

    /// Whether this verdict on MONITOR is one to watch by: what comes behind it is what others say.
    pub(super) fn begin_watching(&mut self, verdict: &[u8]) -> bool {
        let Use::Dedicated(dedicated) = &mut self.purpose else { return false };
        let accepted = verdict == b"+OK\r\n";
        if accepted {
            dedicated.passing.begin_watching();
        }
        accepted
    }

    /// The beginning of a frame has come. If no reply is due it can only be a push: else the next reply would be taken for
    /// its rest, and that of one session for another's.
    pub(super) fn begins(&mut self, begun: &[u8]) -> Option<io::Error> {
        self.midway = true;
        let push = match (begun[0], &self.purpose) {
            (b'>', _) => true,
            (b'*', Use::Dedicated(dedicated)) => !self.resp3 && dedicated.is_subscribed(),
            (b'+', Use::Dedicated(dedicated)) => dedicated.passing.is_watching(),
            _ => false,
        };
        (!self.pipeline.is_due() && !push).then(|| out_of_turn("the beginning of a reply that nobody asked for", begun))
    }

    /// For how long what is awaited first has been without any sign of life: of the node (`seen`, on any connection),
    /// or, of a lane whose answer is due, on this very connection. The server may have closed it and its goodbye been
    /// lost, while other connections live on. And for how long a frame has been begun and nothing more of it has come:
    /// what began it may have been a stray, and what is awaited be behind it.
    pub(super) fn silence(&self, now: Time, seen: Time) -> Duration {
        let last = match (self.pipeline.front_sent(), &self.purpose) {
            _ if self.midway => self.heard,
            (None, _) => return Duration::ZERO,
            (Some(sent), Use::Lane(_)) if self.pipeline.is_front_prompt() => sent.max(self.heard),
            (Some(sent), _) => sent.max(seen),
        };
        now.since(last)
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::super::lane::Lane;
    use super::*;
    use crate::outbox::{Outbox, Piece};
    use crate::upstream::connection::pipeline::Expect;
    use crate::upstream::effect::Effect;

    const CONFIRMED: &[u8] = b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n";
    const MESSAGE: &[u8] = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n";

    fn lane() -> State {
        State::new(Use::Lane(Lane::default()), false)
    }

    fn dedicated() -> State {
        State::new(Use::Dedicated(Box::default()), false)
    }

    fn ask(state: &mut State, expect: Expect, now: Time) {
        state.pipeline.push(Piece::Slice(b"request"), expect, now);
        state.pipeline.out().clear();
    }

    fn reply(outbox: &Rc<Outbox>) -> Expect {
        Expect::Reply { place: outbox.reserve(true), effect: Effect::None, retry: None }
    }

    #[test]
    fn a_reply_has_the_place_of_the_first_request() {
        let outbox = Rc::<Outbox>::default();
        let mut state = lane();
        assert_eq!(state.landing(b"+OK\r\n"), Landing::Surplus("a reply that nobody asked for"));
        ask(&mut state, reply(&outbox), Time(1));
        ask(&mut state, Expect::Arm(1), Time(1));
        assert_eq!(state.landing(MESSAGE), Landing::Reply, "on a lane nothing is subscribed to");
        assert_eq!(state.landing(b">1\r\n$1\r\nx\r\n"), Landing::Push, "a push takes nobody's turn");
        state.pipeline.pop();
        assert_eq!(state.landing(b"+OK\r\n"), Landing::Own);
        assert_eq!(state.landing(b"$1\r\nx\r\n"), Landing::Surplus("a reply that nobody asked for in this place"));
    }

    #[test]
    fn a_confirmation_is_a_push_and_a_refusal_a_reply() {
        let outbox = Rc::<Outbox>::default();
        let mut state = dedicated();
        assert!(matches!(state.landing(CONFIRMED), Landing::Surplus(_)), "not subscribed, nor about to be");
        let Use::Dedicated(own) = &mut state.purpose else { return };
        own.about_to_subscribe();
        ask(&mut state, Expect::Confirm { place: outbox.reserve(true), kind: "subscribe", left: 1 }, Time(1));
        assert_eq!(state.landing(b"-NOPERM x\r\n"), Landing::Confirm);
        assert_eq!(state.landing(b"+OK\r\n"), Landing::Surplus("a reply that nobody asked for in this place"));
        assert_eq!(state.landing(CONFIRMED), Landing::Push);
        assert!(state.begins(b"*3\r\n").is_none(), "the confirmation is due");
        let State { purpose: Use::Dedicated(own), pipeline, .. } = &mut state else { return };
        own.note_push(b"subscribe", CONFIRMED, pipeline, Time(2));
        assert!(state.pipeline.is_empty() && state.begins(b"*3\r\n").is_none(), "a message can come at any time");
        assert_eq!(state.landing(MESSAGE), Landing::Push);
        assert!(state.begins(b"$3\r\n").is_some() && state.begins(b">3\r\n").is_none());
    }

    #[test]
    fn a_lane_is_silent_by_itself_and_a_dedicated_connection_with_the_node() {
        let outbox = Rc::<Outbox>::default();
        let (mut lane, mut dedicated) = (lane(), dedicated());
        assert_eq!(lane.silence(Time(90), Time(50)), Duration::ZERO, "nothing is awaited");
        ask(&mut lane, reply(&outbox), Time(10));
        ask(&mut dedicated, reply(&outbox), Time(10));
        assert_eq!(lane.silence(Time(90), Time(50)), Duration::from_nanos(80));
        assert_eq!(dedicated.silence(Time(90), Time(50)), Duration::from_nanos(40));
        lane.heard = Time(30);
        assert_eq!(lane.silence(Time(90), Time(50)), Duration::from_nanos(60));
        (dedicated.heard, dedicated.midway) = (Time(20), true);
        assert_eq!(dedicated.silence(Time(90), Time(50)), Duration::from_nanos(70), "in the middle of a frame");
    }
}
