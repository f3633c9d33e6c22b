//! The requests on their way down one connection, and whose turn it is when a reply comes. No I/O and no clock.

use std::collections::VecDeque;

use bytes::Bytes;

use super::frame::{Landing, is_error, is_unknown};
use crate::buffer::OutBuf;
use crate::cache::Cache;
use crate::outbox::{Piece, Place};
use crate::time::Time;
use crate::upstream::effect::Effect;
use crate::upstream::fill::Fill;

/// The answer that some servers give to PING whatever its argument is.
const PONG: &[u8] = b"+PONG\r\n";

/// The use of the next reply.
pub(super) enum Expect {
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

impl Expect {
    /// Whether this can be the answer. Of a client's own command nothing is known, outside of transactions: what comes in its
    /// turn is its reply.
    pub(super) fn allows(&self, bytes: &[u8]) -> bool {
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

/// A request whose reply is to come.
pub(super) struct Awaited {
    /// The use of the reply.
    pub(super) expect: Expect,
    /// Position of its first byte in all that was ever queued.
    start: u64,
    sent: Time,
}

/// Requests in their order: those whose bytes wait to be sent, and those whose replies are to come.
#[derive(Default)]
pub(super) struct Pipeline {
    out: OutBuf,
    /// Bytes ever queued.
    queued: u64,
    awaited: VecDeque<Awaited>,
}

impl Pipeline {
    /// Queues a request, behind all others.
    pub(super) fn push(&mut self, request: Piece<'_>, expect: Expect, now: Time) {
        let start = self.queued;
        self.queued += request.len() as u64;
        match request {
            Piece::Slice(s) => self.out.push(s),
            Piece::Bytes(b) => self.out.push_bytes(b),
        }
        self.awaited.push_back(Awaited { expect, start, sent: now });
    }

    /// Queues a read that fills the cache, with its questions.
    pub(super) fn push_fill(&mut self, fill: Fill, now: Time) {
        let (start, before) = (self.queued, self.out.len());
        fill.write(&mut self.out);
        self.queued += (self.out.len() - before) as u64;
        self.awaited.push_back(Awaited { expect: Expect::Fill(Box::new(fill)), start, sent: now });
    }

    /// Queues bytes whose replies are not matched.
    pub(super) fn push_raw(&mut self, bytes: Bytes) {
        self.queued += bytes.len() as u64;
        self.out.push_bytes(bytes);
    }

    /// The bytes that wait to be sent.
    pub(super) fn out(&mut self) -> &mut OutBuf {
        &mut self.out
    }

    /// How many bytes wait to be sent.
    pub(super) fn backlog(&self) -> usize {
        self.out.len()
    }

    /// Whether nothing was ever queued.
    pub(super) fn is_unused(&self) -> bool {
        self.queued == 0
    }

    /// Whether no reply is to come.
    pub(super) fn is_empty(&self) -> bool {
        self.awaited.is_empty()
    }

    /// Whether no reply is to come but to what the lane has asked for itself.
    pub(super) fn owes_nobody(&self) -> bool {
        self.awaited.iter().all(|item| matches!(item.expect, Expect::Ping(_) | Expect::Arm(_)))
    }

    /// Position behind the bytes handed to the socket so far.
    fn written(&self) -> u64 {
        self.queued - self.out.len() as u64
    }

    /// The request whose reply is next, if its first byte has been handed to the socket.
    fn due(&self) -> Option<&Awaited> {
        self.awaited.front().filter(|first| first.start < self.written())
    }

    /// Whether a reply can come now.
    pub(super) fn is_due(&self) -> bool {
        self.due().is_some()
    }

    /// When the request was queued whose reply is next.
    pub(super) fn front_sent(&self) -> Option<Time> {
        self.awaited.front().map(|first| first.sent)
    }

    /// The same, if that reply takes no longer than the node takes for anything.
    pub(super) fn is_front_prompt(&self) -> bool {
        self.awaited.front().is_some_and(|first| first.expect.is_prompt())
    }

    /// The use of the next reply.
    pub(super) fn front_mut(&mut self) -> Option<&mut Expect> {
        self.awaited.front_mut().map(|first| &mut first.expect)
    }

    /// The next reply has come.
    pub(super) fn pop(&mut self) -> Option<Expect> {
        self.awaited.pop_front().map(|first| first.expect)
    }

    /// The place that a reply has here, if it is no push (invariant 1).
    pub(super) fn landing(&self, reply: &[u8]) -> Landing {
        match self.due().map(|first| &first.expect) {
            None => Landing::Surplus("a reply that nobody asked for"),
            Some(first) if !first.allows(reply) => Landing::Surplus("a reply that nobody asked for in this place"),
            Some(Expect::Reply { .. }) => Landing::Reply,
            Some(Expect::Fill(_)) => Landing::Fill,
            Some(Expect::Confirm { .. }) => Landing::Confirm,
            Some(Expect::Monitor { .. }) => Landing::Verdict,
            Some(Expect::Ping(_) | Expect::Arm(_)) => Landing::Own,
        }
    }

    /// Nothing that is queued will be sent, and no reply will come: what was awaited, each with whether any of it was sent.
    pub(super) fn abandon(&mut self) -> impl Iterator<Item = (Expect, bool)> + use<> {
        let written = self.written();
        self.out.clear();
        let awaited = std::mem::take(&mut self.awaited);
        awaited.into_iter().map(move |item| (item.expect, item.start < written))
    }

    /// Asks the memory for what dealing with the answer to the `n`th of what is awaited will touch.
    pub(super) fn prefetch(&self, n: usize, cache: &Cache) {
        match self.awaited.get(n).map(|item| &item.expect) {
            Some(Expect::Reply { effect: Effect::Write(hash), .. }) => cache.prefetch_drop(*hash),
            Some(Expect::Fill(fill)) => fill.prefetch(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: Expect = Expect::Ping(b"$1\r\nx\r\n");

    fn pipeline(sent: usize, requests: &[&'static [u8]]) -> Pipeline {
        let mut pipeline = Pipeline::default();
        requests.iter().for_each(|request| pipeline.push(Piece::Slice(request), PING, Time(1)));
        pipeline.out.advance(sent);
        pipeline
    }

    #[test]
    fn no_reply_is_due_before_its_request_is_sent() {
        assert!(matches!(Pipeline::default().landing(b"+OK\r\n"), Landing::Surplus(_)), "nothing is awaited");
        assert!(matches!(pipeline(0, &[b"ping"]).landing(b"+PONG\r\n"), Landing::Surplus(_)), "nothing was sent");
        let mut pipeline = pipeline(5, &[b"ping", b"ping"]);
        assert!(matches!(pipeline.landing(b"+PONG\r\n"), Landing::Own));
        assert!(matches!(pipeline.landing(b"$1\r\nx\r\n"), Landing::Own), "with the argument");
        assert!(matches!(pipeline.landing(b"+OK\r\n"), Landing::Surplus(_)), "no answer to PING");
        assert!(pipeline.pop().is_some() && pipeline.is_due(), "a byte of the second was sent");
        assert!(pipeline.pop().is_some() && !pipeline.is_due() && pipeline.is_empty());
    }

    #[test]
    fn a_lost_connection_tells_what_was_sent() {
        let mut pipeline = pipeline(5, &[b"one.", b"two.", b"three"]);
        assert_eq!(pipeline.abandon().map(|(_, sent)| sent).collect::<Vec<_>>(), [true, true, false]);
        assert!(pipeline.is_empty() && pipeline.backlog() == 0 && !pipeline.is_unused());
        pipeline.push(Piece::Slice(b"again"), PING, Time(2));
        assert!(!pipeline.is_due(), "sent to nobody yet");
        pipeline.out.advance(5);
        assert!(pipeline.is_due() && pipeline.front_sent() == Some(Time(2)));
    }

    #[test]
    fn the_proxys_own_questions_have_known_answers() {
        for yes in
            [&b"+PONG\r\n"[..], b"$1\r\nx\r\n", b"-NOPERM x\r\n", b"-ERR unknown command 'PING'\r\n", b"-LOADING x\r\n"]
        {
            assert!(PING.allows(yes), "{yes:?}");
        }
        for no in [&b"+OK\r\n"[..], b"-ERR wrong\r\n", b"$1\r\ny\r\n", b":1\r\n"] {
            assert!(!PING.allows(no), "{no:?}");
        }
        assert!(
            Expect::Arm(1).allows(b"+OK\r\n")
                && Expect::Arm(1).allows(b"-ERR x\r\n")
                && !Expect::Arm(1).allows(b":1\r\n")
        );
        assert!(pipeline(0, &[b"ping"]).owes_nobody() && pipeline(0, &[b"ping"]).is_front_prompt());
    }
}
