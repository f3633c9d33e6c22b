//! The replies of one session, put in order: each command takes a place, whoever answers it fills the place, and what
//! is complete from the front is ready to be written.
//!
//! Invariants, and the tests (below) that attack them:
//!
//! 1. Replies leave in the order in which their places were taken, whoever fills them and when:
//!    `whoever_answers_first_the_order_stays`, `replies_come_out_in_the_order_of_the_commands`.
//! 2. A place is filled once: it is consumed by that, or told that it was given up when it is dropped. What comes for a place that is filled or gone is thrown away.
//! 3. A session that is gone keeps nothing, whatever is still delivered to it: `who_is_gone_is_told_nothing`.
//! 4. A push goes before every reply that is awaited and behind all that is complete:
//!    `replies_come_out_in_the_order_of_the_commands`.

mod order;

use std::cell::{RefCell, RefMut};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::buffer::OutBuf;
use crate::time::Time;
use crate::transport::Stream;
use order::{Gap, Order, append};

/// A reply on its way to a session.
pub enum Piece<'a> {
    /// Copied.
    Slice(&'a [u8]),
    /// Kept by reference if large.
    Bytes(Bytes),
}

impl<'a> Piece<'a> {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }
    /// No bytes at all (a command that is answered by nothing).
    #[cfg_attr(feature = "program", expect(dead_code, reason = "for clippy's symmetry with `len`"))]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same once more, by reference.
    pub fn again(&self) -> Piece<'a> {
        match self {
            Piece::Slice(s) => Piece::Slice(s),
            Piece::Bytes(b) => Piece::Bytes(b.clone()),
        }
    }

    /// Its bytes, to be kept.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Piece::Slice(s) => Bytes::copy_from_slice(s),
            Piece::Bytes(b) => b,
        }
    }

    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Piece::Slice(s) => s,
            Piece::Bytes(b) => b,
        }
    }
}

#[derive(Default)]
struct Inner {
    order: Order,
    waker: Option<Waker>,
    /// When the last upstream reply came in.
    seen: Time,
    /// Until when its reads are suspected of replies for which the server ends a connection.
    suspected: Time,
    gone: bool,
    broken: bool,
    severed: bool,
    /// The session leaves its connection: see [`Outbox::leave`].
    leaving: bool,
    unblocked: bool,
}

/// Shared, within one thread, by a session and the connections that answer it.
#[derive(Default)]
pub struct Outbox(RefCell<Inner>);

/// The reply to a command whose place was given up, because the task that was to fill it has panicked.
const GIVEN_UP: &[u8] = b"-ERR nearside: an error of the proxy's own; the outcome of this command is unknown\r\n";

/// The server's word to whoever was made to wait no longer by CLIENT UNBLOCK.
const UNBLOCKED: &[u8] = b"-UNBLOCKED ";

/// One place in the order. Filled once: at the latest, with an error, when it is dropped. So no session waits for ever.
pub struct Place {
    /// `None`: it is filled.
    outbox: Option<Rc<Outbox>>,
    seq: u64,
}

impl Place {
    /// A connection has ended while its reply was awaited, perhaps because of its size.
    pub fn suspect(&self, until: Time) {
        if let Some(outbox) = &self.outbox {
            outbox.0.borrow_mut().suspected = until;
        }
    }

    /// Fills the place.
    pub fn deliver(mut self, piece: Piece<'_>, now: Time) {
        if let Some(outbox) = self.outbox.take() {
            outbox.deliver(self.seq, piece, now);
        }
    }

    /// Leaves the place empty for good: the session ends.
    pub fn sever(mut self) {
        if let Some(outbox) = self.outbox.take() {
            let mut inner = outbox.0.borrow_mut();
            inner.severed = true;
            inner.wake();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(outbox) = self.outbox.take() {
            outbox.give_up(self.seq);
        }
    }
}

impl Outbox {
    /// Takes the next place. With `follow`, what comes behind it in the session must not overtake it.
    pub fn reserve(self: &Rc<Self>, follow: bool) -> Place {
        let seq = self.0.borrow_mut().order.open(follow);
        Place { outbox: Some(self.clone()), seq }
    }

    /// Takes the next place for a command that is answered by the reply of place `of`. False if that has come already, or is
    /// another's too.
    pub fn reserve_twin(&self, of: u64) -> bool {
        let mut inner = self.0.borrow_mut();
        let next = inner.order.next();
        let awaited = |gap: &&mut Gap| gap.reply.is_none() && gap.twin.is_none();
        let Some(gap) = inner.order.gap(of).filter(awaited) else { return false };
        gap.twin = Some(next);
        inner.order.open(false);
        true
    }

    /// A reply that is known at once.
    pub fn put(&self, piece: Piece<'_>) {
        let mut inner = self.0.borrow_mut();
        if !inner.gone {
            append(inner.order.end(), piece);
        }
    }

    /// Straight to where replies that are known at once are kept; `None` if nobody reads them.
    pub fn direct(&self) -> Option<Direct<'_>> {
        let inner = self.0.borrow_mut();
        (!inner.gone).then(|| Direct(RefMut::map(inner, |inner| inner.order.end())))
    }

    fn deliver(&self, seq: u64, mut piece: Piece<'_>, now: Time) {
        let mut inner = self.0.borrow_mut();
        if inner.gone {
            return;
        }
        if inner.leaving && inner.order.waiting == 1 && piece.as_slice().starts_with(UNBLOCKED) {
            inner.unblocked = true;
            piece = Piece::Slice(b"");
        }
        inner.seen = inner.seen.max(now);
        let mut twin = inner.order.gap(seq).and_then(|gap| gap.twin.take());
        let again = twin.map(|_| piece.again());
        inner.order.fill(seq, piece, false);
        while let (Some(place), Some(piece)) = (twin, &again) {
            twin = inner.order.gap(place).and_then(|gap| gap.twin.take());
            inner.order.fill(place, piece.again(), true);
        }
        inner.wake();
    }

    /// The place's reply will not come.
    #[cold]
    fn give_up(&self, seq: u64) {
        // Not while it is borrowed: then a panic unwinds through the outbox itself, and takes the session with it.
        if self.0.try_borrow_mut().is_ok() {
            self.deliver(seq, Piece::Slice(GIVEN_UP), Time::ZERO);
        }
    }

    /// Bytes out of the order (a push): before every reply still awaited, after all that is complete.
    pub fn push(&self, piece: Piece<'_>) {
        let mut inner = self.0.borrow_mut();
        if !inner.gone {
            append(&mut inner.order.out, piece);
        }
        inner.wake();
    }

    /// The connection lent to the session died: so does the session, once all that is complete is written.
    pub fn break_off(&self) {
        let mut inner = self.0.borrow_mut();
        inner.broken = true;
        inner.wake();
    }

    /// The loss concerned one command that has been answered: the session goes on.
    pub fn mend(&self) {
        self.0.borrow_mut().broken = false;
    }

    /// Whether [`Outbox::break_off`] was called.
    pub fn broken(&self) -> bool {
        self.0.borrow().broken
    }

    /// Whether one of its places will never be filled ([`Place::sever`]).
    pub fn severed(&self) -> bool {
        self.0.borrow().severed
    }

    /// The proxy stops and has what the session waits for at the server ended. That it was is told only to whom more is owed
    /// behind it: replies have their order.
    pub fn leave(&self) {
        self.0.borrow_mut().leaving = true;
    }

    /// Whether that has come about, untold: what the client says next must not be answered in its place.
    pub fn unblocked(&self) -> bool {
        self.0.borrow().unblocked
    }

    /// The session is gone: nothing is kept for it, and replies to it are thrown away.
    pub fn close(&self) {
        *self.0.borrow_mut() = Inner { gone: true, ..Inner::default() };
    }

    /// The first place that is not told yet.
    pub fn first(&self) -> u64 {
        self.0.borrow().order.base
    }

    /// The place that [`Outbox::reserve`] will take.
    pub fn next(&self) -> u64 {
        self.0.borrow().order.next()
    }

    /// Commands not answered yet.
    pub fn waiting(&self) -> usize {
        self.0.borrow().order.waiting
    }

    /// The number of places waited for that must not be overtaken.
    pub fn followed(&self) -> usize {
        self.0.borrow().order.followed
    }

    /// Whether so many commands are not answered, or more than so many bytes wait.
    pub fn owes(&self, commands: usize, bytes: usize) -> bool {
        let inner = self.0.borrow();
        inner.order.waiting >= commands || inner.order.bytes() > bytes
    }

    /// Bytes that wait to be written or for a reply before them.
    pub fn bytes(&self) -> usize {
        self.0.borrow().order.bytes()
    }

    /// Whether something can be written now.
    pub fn writable(&self) -> bool {
        !self.0.borrow().order.out.is_empty()
    }

    /// Everything is answered and written.
    pub fn is_idle(&self) -> bool {
        let inner = self.0.borrow();
        inner.order.gaps.is_empty() && inner.order.out.is_empty()
    }

    /// When the last upstream reply came in.
    pub fn seen(&self) -> Time {
        self.0.borrow().seen
    }

    /// Until when the session's reads are better sent alone.
    pub fn suspected(&self) -> Time {
        self.0.borrow().suspected
    }

    /// Sets the task to wake when a reply arrives. True if it was another so far.
    pub fn register(&self, waker: &Waker) -> bool {
        let slot = &mut self.0.borrow_mut().waker;
        let other = slot.as_ref().is_none_or(|old| !old.will_wake(waker));
        if other {
            *slot = Some(waker.clone());
        }
        other
    }

    /// The session waits: little that is held meanwhile is to hold little memory.
    pub fn rest(&self) {
        self.0.borrow_mut().order.behind.rest();
    }

    /// Writes what is complete.
    #[inline]
    pub fn poll_write(&self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<std::io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        loop {
            let written = stream.poll_write(cx, &mut inner.order.out);
            if !matches!(written, Poll::Ready(Ok(()))) || !inner.order.first_has_come() {
                return written;
            }
            inner.order.close_others();
        }
    }

    /// Takes what is complete: how the proxy itself reads the reply to a command of its own.
    pub fn take(&self) -> Vec<u8> {
        let mut inner = self.0.borrow_mut();
        let mut taken = inner.order.out.take();
        while inner.order.first_has_come() {
            inner.order.close_others();
            taken.extend(inner.order.out.take());
        }
        taken
    }
}

/// The outbox's end, lent by [`Outbox::direct`].
pub struct Direct<'a>(RefMut<'a, OutBuf>);

impl Direct<'_> {
    /// A reply that is known at once.
    #[inline(always)]
    pub fn put(&mut self, piece: Piece<'_>) {
        append(&mut self.0, piece);
    }

    /// Bytes that wait there.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }
}

impl Inner {
    fn wake(&mut self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::order::{OUT_SOFT, ROOM_KEPT};
    use super::*;

    #[test]
    fn replies_come_out_in_the_order_of_the_commands() {
        let outbox = Rc::new(Outbox::default());
        let first = outbox.reserve(true);
        outbox.put(Piece::Slice(b"b"));
        outbox.put(Piece::Slice(b"c"));
        let second = outbox.reserve(false);
        outbox.put(Piece::Slice(b"e"));
        assert_eq!((outbox.waiting(), outbox.followed(), outbox.bytes()), (2, 1, 3));
        second.deliver(Piece::Slice(b"d"), Time(1));
        assert_eq!(outbox.take(), b"");
        outbox.push(Piece::Slice(b"!"));
        first.deliver(Piece::Slice(b"a"), Time(2));
        assert_eq!(outbox.take(), b"!abcde");
        assert!(outbox.is_idle());
        assert_eq!((outbox.waiting(), outbox.followed(), outbox.bytes(), outbox.seen()), (0, 0, 0, Time(2)));
    }

    #[test]
    fn whoever_answers_first_the_order_stays() {
        let mut random = fastrand::Rng::with_seed(7);
        let outbox = Rc::new(Outbox::default());
        let (mut expected, mut told, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..20_000 {
            let reply = vec![round as u8; [0, 5, 70, 2000, crate::buffer::LARGE][random.usize(..5)]];
            match random.usize(..8) {
                0 | 1 if waiting.len() < 20 => {
                    waiting.push((outbox.reserve(random.bool()), reply.clone()));
                    expected.extend_from_slice(&reply);
                }
                2..6 => {
                    outbox.put(if random.bool() { Piece::Slice(&reply) } else { Piece::Bytes(reply.clone().into()) });
                    expected.extend_from_slice(&reply);
                }
                // Mostly the one that was asked first.
                6 if !waiting.is_empty() => {
                    let index = if random.u8(..4) == 0 { random.usize(..waiting.len()) } else { 0 };
                    let (place, reply) = waiting.remove(index);
                    place.deliver(Piece::Slice(&reply), Time(round));
                }
                _ => told.extend(outbox.take()),
            }
            assert_eq!(outbox.waiting(), waiting.len());
        }
        for (place, reply) in waiting {
            place.deliver(Piece::Slice(&reply), Time(1));
        }
        told.extend(outbox.take());
        assert!(told == expected && outbox.is_idle() && outbox.bytes() == 0);
    }

    #[test]
    fn a_twin_gets_the_same_reply_in_its_own_place() {
        let outbox = Rc::new(Outbox::default());
        let first = outbox.reserve(true);
        let read = outbox.reserve(false);
        assert!(outbox.reserve_twin(1), "place 2");
        outbox.put(Piece::Slice(b"held "));
        assert!(!outbox.reserve_twin(1), "place 1 has a twin");
        assert!(outbox.reserve_twin(2), "place 3");
        let last = outbox.reserve(false);
        assert_eq!(outbox.waiting(), 5);
        read.deliver(Piece::Slice(b"read "), Time(1));
        assert!(!outbox.reserve_twin(3), "it has come");
        assert_eq!((outbox.waiting(), outbox.bytes(), outbox.take()), (2, 5 + 3 * 5, Vec::new()));
        first.deliver(Piece::Slice(b"first "), Time(2));
        assert!(!outbox.reserve_twin(0), "it is told");
        last.deliver(Piece::Slice(b"last"), Time(3));
        assert_eq!(outbox.take(), b"first read read held read last");
        assert!(outbox.is_idle() && outbox.bytes() == 0 && outbox.waiting() == 0 && outbox.followed() == 0);
    }

    #[test]
    fn a_large_reply_that_many_share_counts_once_and_is_written_piece_by_piece() {
        let outbox = Rc::new(Outbox::default());
        let read = outbox.reserve(false);
        (0..100).for_each(|n| assert!(outbox.reserve_twin(n)));
        outbox.put(Piece::Slice(b"behind"));
        let reply = Bytes::from(vec![b'x'; OUT_SOFT / 2]);
        read.deliver(Piece::Bytes(reply.clone()), Time(1));
        assert_eq!((outbox.waiting(), outbox.is_idle(), outbox.writable()), (0, false, true));
        assert!(outbox.bytes() <= 2 * OUT_SOFT, "{}", outbox.bytes());
        let taken = outbox.take();
        assert!(taken.ends_with(b"xbehind") && taken.len() == 101 * reply.len() + 6);
        assert!(outbox.is_idle() && outbox.bytes() == 0);
    }

    #[test]
    fn who_waits_for_nothing_keeps_no_room() {
        let outbox = Rc::new(Outbox::default());
        let places: Vec<Place> = (0..10 * ROOM_KEPT).map(|_| outbox.reserve(false)).collect();
        places.into_iter().for_each(|place| place.deliver(Piece::Slice(b"x"), Time(1)));
        assert_eq!(outbox.0.borrow().order.gaps.capacity(), 0);
    }

    #[test]
    fn a_place_that_is_dropped_is_answered_by_an_error() {
        let outbox = Rc::new(Outbox::default());
        let (first, second) = (outbox.reserve(true), outbox.reserve(true));
        second.deliver(Piece::Slice(b"second"), Time(1));
        drop(first);
        assert_eq!(outbox.take(), [GIVEN_UP, b"second"].concat());
        assert!(outbox.is_idle() && outbox.waiting() == 0 && outbox.followed() == 0);
    }

    #[test]
    fn who_is_gone_is_told_nothing() {
        let outbox = Rc::new(Outbox::default());
        let first = outbox.reserve(false);
        outbox.put(Piece::Slice(b"held"));
        let (second, third) = (outbox.reserve(false), outbox.reserve(true));
        outbox.put(Piece::Slice(b"held too"));
        second.deliver(Piece::Slice(b"early"), Time(1));
        outbox.close();
        outbox.put(Piece::Slice(b"late"));
        first.deliver(Piece::Slice(b"late"), Time(2));
        third.deliver(Piece::Slice(b"late"), Time(3));
        assert!(outbox.is_idle() && outbox.bytes() == 0 && outbox.waiting() == 0 && outbox.followed() == 0);
    }
}
