//! The replies of one session, put in order: each command takes a place, whoever answers it fills the place, and what
//! is complete from the front is ready to be written.

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};

use crate::buffer::OutBuf;
use crate::time::Time;
use crate::transport::Stream;

/// A reply on its way to a session.
pub enum Piece<'a> {
    /// Copied.
    Slice(&'a [u8]),
    /// Kept by reference if large.
    Bytes(Bytes),
}

impl Piece<'_> {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }
    /// No bytes at all (a command that is answered by nothing).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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

enum Slot {
    /// Somebody will fill it. `follow`: what comes behind it in the session must not overtake it.
    Waiting { follow: bool },
    /// Answered, but something before it is not.
    Ready(Vec<Bytes>, BytesMut),
}

#[derive(Default)]
struct Inner {
    out: OutBuf,
    slots: VecDeque<Slot>,
    /// Number of the first slot.
    base: u64,
    waiting: usize,
    followed: usize,
    held_bytes: usize,
    waker: Option<Waker>,
    /// When the last upstream reply came in.
    seen: Time,
    gone: bool,
    broken: bool,
}

/// Shared, within one thread, by a session and the connections that answer it.
#[derive(Default)]
pub struct Outbox(RefCell<Inner>);

/// One place in the order. Filled once; filling it twice is a bug.
pub struct Place {
    outbox: Rc<Outbox>,
    seq: u64,
}

impl Place {
    /// Fills the place.
    pub fn deliver(self, piece: Piece<'_>, now: Time) {
        self.outbox.deliver(self.seq, piece, now);
    }
}

impl Outbox {
    /// Takes the next place. With `follow`, what comes behind it in the session must not overtake it.
    pub fn reserve(self: &Rc<Self>, follow: bool) -> Place {
        let mut inner = self.0.borrow_mut();
        inner.slots.push_back(Slot::Waiting { follow });
        inner.waiting += 1;
        inner.followed += usize::from(follow);
        let seq = inner.next() - 1;
        drop(inner);
        Place { outbox: self.clone(), seq }
    }

    /// A reply that is known at once.
    pub fn put(&self, piece: Piece<'_>) {
        let mut inner = self.0.borrow_mut();
        if inner.slots.is_empty() {
            return inner.write(piece);
        }
        inner.held_bytes += piece.len();
        if let Some(Slot::Ready(chunks, tail)) = inner.slots.back_mut() {
            return hold(chunks, tail, piece);
        }
        let (mut chunks, mut tail) = (Vec::new(), BytesMut::new());
        hold(&mut chunks, &mut tail, piece);
        inner.slots.push_back(Slot::Ready(chunks, tail));
    }

    /// Straight to where replies are written from; `None` if an earlier reply is still to come, or nobody reads them.
    pub fn direct(&self) -> Option<Direct<'_>> {
        let inner = self.0.borrow_mut();
        (inner.slots.is_empty() && !inner.gone).then(|| Direct(inner))
    }

    fn deliver(&self, seq: u64, piece: Piece<'_>, now: Time) {
        let mut inner = self.0.borrow_mut();
        inner.seen = inner.seen.max(now);
        let index = (seq - inner.base) as usize;
        let Some(Slot::Waiting { follow }) = inner.slots.get(index) else {
            debug_assert!(false, "a place is filled once");
            return;
        };
        let follow = *follow;
        inner.waiting -= 1;
        inner.followed -= usize::from(follow);
        if index == 0 {
            inner.write(piece);
            inner.slots.pop_front();
            inner.base += 1;
            inner.write_ready();
        } else {
            inner.held_bytes += piece.len();
            let (mut chunks, mut tail) = (Vec::new(), BytesMut::new());
            hold(&mut chunks, &mut tail, piece);
            inner.slots[index] = Slot::Ready(chunks, tail);
        }
        inner.wake();
    }

    /// Bytes out of the order (a push): before every reply still awaited, after all that is complete.
    pub fn push(&self, piece: Piece<'_>) {
        let mut inner = self.0.borrow_mut();
        inner.write(piece);
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

    /// The session is gone: replies to it are thrown away.
    pub fn close(&self) {
        let mut inner = self.0.borrow_mut();
        inner.gone = true;
        inner.out.clear();
        inner.waker = None;
    }

    /// The first place that is not told yet.
    pub fn first(&self) -> u64 {
        self.0.borrow().base
    }

    /// The place that [`Outbox::reserve`] will take.
    pub fn next(&self) -> u64 {
        self.0.borrow().next()
    }

    /// Commands not answered yet.
    pub fn waiting(&self) -> usize {
        self.0.borrow().waiting
    }

    /// Of these, how many must not be overtaken.
    pub fn followed(&self) -> usize {
        self.0.borrow().followed
    }

    /// Whether so many commands are not answered, or more than so many bytes wait.
    pub fn owes(&self, commands: usize, bytes: usize) -> bool {
        let inner = self.0.borrow();
        inner.waiting >= commands || inner.out.len() + inner.held_bytes > bytes
    }

    /// Bytes that wait to be written or for a reply before them.
    pub fn bytes(&self) -> usize {
        let inner = self.0.borrow();
        inner.out.len() + inner.held_bytes
    }

    /// Whether something can be written now.
    pub fn writable(&self) -> bool {
        !self.0.borrow().out.is_empty()
    }

    /// Everything is answered and written.
    pub fn is_idle(&self) -> bool {
        let inner = self.0.borrow();
        inner.slots.is_empty() && inner.out.is_empty()
    }

    /// When the last upstream reply came in.
    pub fn seen(&self) -> Time {
        self.0.borrow().seen
    }

    /// Who is woken when something arrives. True if it was somebody else so far.
    pub fn register(&self, waker: &Waker) -> bool {
        let slot = &mut self.0.borrow_mut().waker;
        let other = slot.as_ref().is_none_or(|old| !old.will_wake(waker));
        if other {
            *slot = Some(waker.clone());
        }
        other
    }

    /// Writes what is complete.
    pub fn poll_write(&self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<std::io::Result<()>> {
        stream.poll_write(cx, &mut self.0.borrow_mut().out)
    }

    /// Takes what is complete: how the proxy itself reads the reply to a command of its own.
    pub fn take(&self) -> Vec<u8> {
        self.0.borrow_mut().out.take()
    }
}

/// See [`Outbox::direct`].
pub struct Direct<'a>(RefMut<'a, Inner>);

impl Direct<'_> {
    /// A reply that is known at once.
    #[inline]
    pub fn put(&mut self, piece: Piece<'_>) {
        append(&mut self.0.out, piece);
    }

    /// Bytes that wait to be written.
    pub fn bytes(&self) -> usize {
        self.0.out.len()
    }
}

#[inline]
fn append(out: &mut OutBuf, piece: Piece<'_>) {
    match piece {
        Piece::Slice(s) => out.push(s),
        Piece::Bytes(b) => out.push_bytes(b),
    }
}

fn hold(chunks: &mut Vec<Bytes>, tail: &mut BytesMut, piece: Piece<'_>) {
    match piece {
        Piece::Bytes(b) if b.len() >= crate::buffer::LARGE => {
            if !tail.is_empty() {
                chunks.push(tail.split().freeze());
            }
            chunks.push(b);
        }
        other => tail.extend_from_slice(other.as_slice()),
    }
}

impl Inner {
    fn next(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    fn write(&mut self, piece: Piece<'_>) {
        if self.gone {
            return;
        }
        append(&mut self.out, piece);
    }

    fn write_ready(&mut self) {
        while let Some(Slot::Ready(..)) = self.slots.front() {
            let Some(Slot::Ready(chunks, tail)) = self.slots.pop_front() else { return };
            self.base += 1;
            for chunk in chunks.into_iter().chain(std::iter::once(tail.freeze())) {
                self.held_bytes -= chunk.len();
                self.write(Piece::Bytes(chunk));
            }
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
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
}
