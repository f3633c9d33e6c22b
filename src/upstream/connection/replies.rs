//! Acting by the place of each frame that the server sends ([`Landing`]): first the cache, then the client.

use std::cell::RefMut;
use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use bytes::{Buf, BytesMut};

use super::dedicated::Dedicated;
use super::frame::{Landing, out_of_turn, proves_life, push_word};
use super::lane::PING_AND_ASK;
use super::pipeline::Expect;
use super::raw::Intake;
use super::{Connection, State, Use, panicking};
use crate::buffer::LARGE;
use crate::outbox::{Piece, Place};
use crate::resp::Cutter;
use crate::sabotage;
use crate::time::Time;
use crate::upstream::effect::{Effect, Wait};
use crate::upstream::fill::Then;

/// Answers for which the memory is asked ahead, so that its latencies overlap.
const AHEAD: usize = 8;
/// Bytes of the shortest reply.
const SHORTEST_REPLY: usize = 4;

impl Connection {
    /// Deals with every whole reply in `input`.
    pub(super) fn take_replies(self: &Rc<Self>, input: &mut BytesMut, cutter: &mut Cutter) -> Option<io::Error> {
        let now = Time::now();
        self.node.seen.store(now.0, Ordering::Relaxed);
        let intake = {
            let state = &mut *self.state.borrow_mut();
            state.heard = now;
            state.midway = false;
            let ahead = AHEAD.min(input.len() / SHORTEST_REPLY);
            (0..ahead).for_each(|n| state.pipeline.prefetch(n, &self.node.coherence.cache));
            match &state.purpose {
                Use::Lane(_) => Intake::Frames,
                Use::Dedicated(dedicated) => dedicated.passing.intake(),
            }
        };
        match intake {
            Intake::Frames => {}
            Intake::Later => return None,
            Intake::Bytes => {
                self.pass_on(input.split().freeze(), now);
                return None;
            }
        }
        let (answered, error) = self.take_frames(input, cutter, now);
        let mut state = self.state.borrow_mut();
        if let (Use::Lane(lane), Some(sent)) = (&state.purpose, answered)
            && let Some(stamp) = lane.stamp
        {
            self.node.coherence.lane_answered(stamp, sent);
        }
        if input.is_empty() || error.is_some() { error } else { state.begins(input) }
    }

    /// Deals with frame after frame. Returns when the latest was sent of which the answer proves that the server held the
    /// connection then, and why the connection ends, if it does.
    fn take_frames(
        self: &Rc<Self>,
        input: &mut BytesMut,
        cutter: &mut Cutter,
        now: Time,
    ) -> (Option<Time>, Option<io::Error>) {
        let mut answered = None;
        let mut done = 0;
        let error = loop {
            match cutter.cut(&input[done..]) {
                Ok(Some(len)) => {
                    let told = if len >= LARGE {
                        input.advance(std::mem::take(&mut done));
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
        input.advance(done);
        (answered, error)
    }

    /// One frame of the server. Returns when what it answers was sent, if that proves that the server held the connection then.
    fn frame(self: &Rc<Self>, frame: Piece<'_>, now: Time) -> io::Result<Option<Time>> {
        let state = self.state.borrow_mut();
        let bytes = frame.as_slice();
        let landing = state.landing(bytes);
        match landing {
            Landing::Surplus(why) => return Err(out_of_turn(why, bytes)),
            Landing::Line => self.show(state, frame, now),
            Landing::Push => self.take_push(state, frame, now),
            Landing::Fill | Landing::Reply | Landing::Confirm | Landing::Verdict | Landing::Own => {
                // An error proves no life (invariant 6).
                let proven = state.pipeline.front_sent().filter(|_| proves_life(bytes));
                return self.take_reply(landing, state, frame, now).map(|()| proven);
            }
        }
        Ok(None)
    }

    fn take_push(&self, mut guard: RefMut<'_, State>, push: Piece<'_>, now: Time) {
        let state = &mut *guard;
        let bytes = push.as_slice();
        let told = match &mut state.purpose {
            Use::Lane(lane) => {
                lane.note_push(push_word(bytes));
                None
            }
            Use::Dedicated(dedicated) => {
                dedicated.note_push(push_word(bytes), bytes, &mut state.pipeline, now);
                dedicated.in_turn(push)
            }
        };
        drop(guard);
        if let Some((session, push)) = told {
            session.push(push);
        }
    }

    /// The reply to what is awaited first, which can be one to it.
    fn take_reply(
        self: &Rc<Self>,
        landing: Landing,
        mut guard: RefMut<'_, State>,
        frame: Piece<'_>,
        now: Time,
    ) -> io::Result<()> {
        if landing == Landing::Fill {
            self.take_fill_reply(&mut guard, frame, now);
            return Ok(());
        }
        let state = &mut *guard;
        let Some(expect) = state.pipeline.pop() else { return Ok(()) };
        sabotage::panic_at(state.purpose.role().name());
        match expect {
            Expect::Reply { place, effect, .. } => {
                state.pipeline.prefetch(AHEAD - 1, &self.node.coherence.cache);
                drop(guard);
                self.settle(place, effect, frame, now);
            }
            Expect::Confirm { place, .. } => {
                if let Use::Dedicated(dedicated) = &mut state.purpose {
                    dedicated.confirmed();
                }
                drop(guard);
                place.deliver(frame, now);
            }
            Expect::Monitor { place } => {
                let watches = state.begin_watching(frame.as_slice());
                drop(guard);
                place.deliver(frame, now);
                if watches {
                    self.learn_proxies();
                    return Err(io::ErrorKind::WouldBlock.into());
                }
            }
            own @ (Expect::Ping(_) | Expect::Arm(_)) => {
                if let Use::Lane(lane) = &mut state.purpose {
                    lane.note_answer(&own, frame.as_slice());
                }
            }
            // dealt with above
            Expect::Fill(_) => {}
        }
        Ok(())
    }

    fn take_fill_reply(&self, state: &mut State, frame: Piece<'_>, now: Time) {
        let Use::Lane(lane) = &mut state.purpose else { return };
        let Some(Expect::Fill(fill)) = state.pipeline.front_mut() else { return };
        let then = fill.reply(frame, now, &self.node.coherence, lane.stamp);
        if then == Then::Wait {
            return;
        }
        let fill = state.pipeline.pop();
        state.pipeline.prefetch(AHEAD - 1, &self.node.coherence.cache);
        if let (Then::Ask(question), Some(fill)) = (then, fill) {
            lane.ping(PING_AND_ASK, &mut state.pipeline);
            state.pipeline.push(Piece::Slice(&question), fill, now);
        }
    }

    /// Rule 2: first the cache, then the client.
    fn settle(self: &Rc<Self>, place: Place, effect: Effect, frame: Piece<'_>, now: Time) {
        let wait = effect.settle(Some(frame.as_slice()), &self.node, now);
        if wait == Wait::No {
            return place.deliver(frame, now);
        }
        let reply = frame.into_bytes();
        self.dedicated(Dedicated::hold);
        let connection = self.clone();
        panicking::beside(self, async move {
            connection.node.coherence.barrier(now).await;
            if wait == Wait::Look {
                connection.look_since(now).await;
            }
            sabotage::panic_at("held reply");
            place.deliver(Piece::Bytes(reply), Time::now());
            connection.dedicated(Dedicated::release);
        });
    }

    /// Waits until the watch has looked at what the server was like at `t` or later. If it cannot, nothing is believed any more.
    pub(super) async fn look_since(&self, t: Time) {
        if !self.node.looks.taken_since(t, self.node.settings.upstream_timeout).await {
            self.node.rights_changed();
        }
    }
}
