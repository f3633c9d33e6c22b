//! The part of a connection that is lent to one session: the session and its subscriptions, and pushes that wait for replies
//! before them.

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::frame::last_integer;
use super::pipeline::{Expect, Pipeline};
use super::raw::PassThrough;
use super::{Connection, Phase, Use};
use crate::node::wire::Wire;
use crate::numbers::difference;
use crate::outbox::{Outbox, Piece, Place};
use crate::time::Time;

/// Pushes that wait for a held reply before them; with more, they wait no longer.
const MAX_BEHIND: usize = 1024;

/// The state of a dedicated connection besides the requests on it.
#[derive(Default)]
pub(super) struct Dedicated {
    /// The outbox of the session that has it, which gets its pushes.
    pub(super) session: Option<Rc<Outbox>>,
    /// Replies that have waited for a barrier, and those of them that have been told.
    held: u64,
    told: u64,
    /// Pushes that came behind so many held replies.
    behind: VecDeque<(u64, Bytes)>,
    /// To channels and patterns, and to shard channels: the server counts them apart.
    subscriptions: [i64; 2],
    confirms: usize,
    /// Bytes whose replies are not matched.
    pub(super) passing: PassThrough,
    /// Gets the socket once nothing is on its way.
    pub(super) heir: Option<oneshot::Sender<Wire>>,
}

impl Dedicated {
    /// Whether the server has confirmed a subscription that is not over.
    pub(super) fn is_subscribed(&self) -> bool {
        self.subscriptions != [0; 2]
    }

    /// Whether it may be told messages: it is subscribed, or about to be.
    pub(super) fn is_subscriber(&self) -> bool {
        self.is_subscribed() || self.confirms > 0
    }

    /// A (P|S)(UN)SUBSCRIBE is on its way.
    pub(super) fn about_to_subscribe(&mut self) {
        self.confirms += 1;
    }

    /// A reply waits for a barrier: pushes that come from now on stay behind it.
    pub(super) fn hold(&mut self) {
        self.held += 1;
    }

    /// A held reply has been told, and so are the pushes that came behind it: an invalidation does not come before the
    /// reply of the command that caused it.
    pub(super) fn release(&mut self) {
        self.told += 1;
        self.release_behind(self.told);
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

    /// The session to be told this push, unless the push waits for a held reply.
    pub(super) fn in_turn<'p>(&mut self, push: Piece<'p>) -> Option<(Rc<Outbox>, Piece<'p>)> {
        if self.held > self.told {
            let behind = self.held;
            self.behind.push_back((behind, push.into_bytes()));
            if self.behind.len() > MAX_BEHIND {
                self.release_behind(behind);
            }
            return None;
        }
        self.session.clone().map(|session| (session, push))
    }

    /// Keeps count of confirmations.
    pub(super) fn note_push(&mut self, word: &[u8], frame: &[u8], pipeline: &mut Pipeline, now: Time) {
        if !word.ends_with(b"subscribe") {
            return;
        }
        // `sunsubscribe` may also come unasked, when a slot moves away.
        if let Some(total) = last_integer(frame) {
            let sharded = matches!(word, b"ssubscribe" | b"sunsubscribe");
            self.subscriptions[usize::from(sharded)] = total;
        }
        let Some(Expect::Confirm { kind: wanted, left, .. }) = pipeline.front_mut() else { return };
        if wanted.as_bytes() != word {
            return;
        }
        *left = left.saturating_sub(1);
        if *left == 0
            && let Some(Expect::Confirm { place, .. }) = pipeline.pop()
        {
            self.confirmed();
            place.deliver(Piece::Slice(b""), now);
        }
    }

    /// A (P|S)(UN)SUBSCRIBE was confirmed to the end, or refused.
    pub(super) fn confirmed(&mut self) {
        self.confirms -= 1;
    }
}

impl Connection {
    /// Does something with the state that only a dedicated connection has. Sessions ask this of none but the one lent to them.
    pub(super) fn dedicated<T: Default>(&self, act: impl FnOnce(&mut Dedicated) -> T) -> T {
        match &mut self.state.borrow_mut().purpose {
            Use::Dedicated(dedicated) => act(dedicated),
            Use::Lane(_) => T::default(),
        }
    }

    /// Sends (P|S)(UN)SUBSCRIBE.
    pub fn send_subscribe(&self, request: Piece<'_>, place: Place, kind: &'static str, left: usize, now: Time) {
        self.dedicated(Dedicated::about_to_subscribe);
        self.enqueue(request, Expect::Confirm { place, kind, left }, now);
    }

    /// Bytes that it holds for the session it is lent to.
    pub fn held(&self) -> usize {
        self.backlog() + self.dedicated(|dedicated| dedicated.passing.waiting())
    }

    /// Whether it can be lent: it is clean, or on its way and not used yet.
    pub fn is_lendable(&self) -> bool {
        let state = self.state.borrow();
        let unused = matches!(state.phase, Phase::Opening) && state.pipeline.is_unused() && !state.close;
        drop(state);
        unused || self.is_clean()
    }

    /// Whether it is open and nothing is awaited, so that it can be lent again.
    pub fn is_clean(&self) -> bool {
        let state = self.state.borrow();
        let Use::Dedicated(dedicated) = &state.purpose else { return false };
        matches!(state.phase, Phase::Up)
            && state.pipeline.is_empty()
            && !dedicated.is_subscribed()
            && dedicated.passing.is_off()
            && state.resp3 == self.key.resp3
            && !state.close
    }

    /// Lends it to a session, or takes it back.
    pub fn lend(&self, session: Option<Rc<Outbox>>) {
        self.dedicated(|dedicated| dedicated.session = session);
    }

    /// Its session has switched it to another protocol.
    pub fn speaks(&self, resp3: bool) {
        self.state.borrow_mut().resp3 = resp3;
    }

    /// The server has answered RESET.
    pub fn was_reset(&self) {
        self.speaks(false);
        self.dedicated(|dedicated| dedicated.subscriptions = [0; 2]);
    }

    /// Subscriptions its session holds.
    pub fn subscriptions(&self) -> i64 {
        self.dedicated(|dedicated| dedicated.subscriptions.iter().sum::<i64>() + difference(dedicated.confirms))
    }

    /// Ends it, and gives away its socket, if it is open and nothing is on its way.
    pub async fn surrender(&self) -> Option<Wire> {
        let (sender, heir) = oneshot::channel();
        self.dedicated(|dedicated| dedicated.heir = Some(sender));
        self.state.borrow().wake();
        heir.await.ok()
    }
}
