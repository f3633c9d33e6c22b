//! The order of one session's replies: gaps for those that are still to come, and the bytes between them.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Piece;
use crate::buffer::{self, OutBuf};
use crate::numbers::index;

/// A reply that is still to come.
pub(super) struct Gap {
    /// Later replies of the session must not overtake this one.
    follow: bool,
    /// Where it stands among all bytes that ever had to wait behind a gap.
    at: u64,
    /// The reply, which has come while one before it has not.
    pub(super) reply: Option<Bytes>,
    /// Memory that the reply takes: none if it is a twin's, by reference.
    early: usize,
    /// The gap behind it that gets the same reply.
    pub(super) twin: Option<u64>,
}

/// With more waiting to be written, replies that have come stay in their gaps: so one large reply that many commands share is
/// not counted for each of them at once.
pub(super) const OUT_SOFT: usize = 1 << 20;

/// Room for so many replies that are still to come is kept by a session that waits for none.
pub(super) const ROOM_KEPT: usize = 64;

/// The replies, from the first that is not written yet.
#[derive(Default)]
pub(super) struct Order {
    /// Complete from the front.
    pub(super) out: OutBuf,
    pub(super) gaps: VecDeque<Gap>,
    /// Number of the first gap.
    pub(super) base: u64,
    /// Replies known at once, but behind a gap.
    pub(super) behind: OutBuf,
    /// Bytes that were behind a gap and are not any more.
    released: u64,
    /// Bytes of replies that are in their gap.
    early: usize,
    /// Gaps whose reply has not come.
    pub(super) waiting: usize,
    /// Those of them that must not be overtaken.
    pub(super) followed: usize,
}

// In the way of every hit.
#[inline(always)]
pub(super) fn append(out: &mut OutBuf, piece: Piece<'_>) {
    match piece {
        Piece::Slice(s) => out.push(s),
        Piece::Bytes(b) => out.push_bytes(b),
    }
}

impl Order {
    pub(super) fn next(&self) -> u64 {
        self.base + self.gaps.len() as u64
    }

    /// Where the next reply goes.
    pub(super) fn end(&mut self) -> &mut OutBuf {
        if self.gaps.is_empty() { &mut self.out } else { &mut self.behind }
    }

    pub(super) fn bytes(&self) -> usize {
        self.out.len() + self.behind.len() + self.early
    }

    /// One more reply is still to come. Its place.
    pub(super) fn open(&mut self, follow: bool) -> u64 {
        let at = self.released + self.behind.len() as u64;
        self.gaps.push_back(Gap { follow, at, reply: None, early: 0, twin: None });
        self.waiting += 1;
        self.followed += usize::from(follow);
        self.next() - 1
    }

    pub(super) fn gap(&mut self, seq: u64) -> Option<&mut Gap> {
        let index = usize::try_from(seq.checked_sub(self.base)?).ok()?;
        self.gaps.get_mut(index)
    }

    /// `twin`: the same bytes have come before.
    pub(super) fn fill(&mut self, seq: u64, piece: Piece<'_>, twin: bool) {
        let first = seq == self.base && !(twin && self.is_full());
        let Some(gap) = self.gap(seq).filter(|gap| gap.reply.is_none()) else {
            debug_assert!(false, "a place is filled once");
            return;
        };
        let follow = gap.follow;
        if first {
            self.close_first(piece);
            self.close_others();
        } else {
            let early = if twin && piece.len() >= buffer::LARGE { 0 } else { piece.len() };
            gap.early = early;
            gap.reply = Some(piece.into_bytes());
            self.early += early;
        }
        self.followed -= usize::from(follow);
        self.waiting -= 1;
    }

    pub(super) fn is_full(&self) -> bool {
        self.out.len() > OUT_SOFT
    }

    pub(super) fn first_has_come(&self) -> bool {
        self.gaps.front().is_some_and(|first| first.reply.is_some())
    }

    /// The first gap's reply, and what has waited behind it.
    pub(super) fn close_first(&mut self, reply: Piece<'_>) {
        append(&mut self.out, reply);
        self.gaps.pop_front();
        if self.gaps.is_empty() && self.gaps.capacity() > ROOM_KEPT {
            self.gaps = VecDeque::new();
        }
        self.base += 1;
        let free = self.gaps.front().map_or(self.behind.len(), |next| index(next.at - self.released));
        self.behind.move_to(&mut self.out, free);
        self.released += free as u64;
    }

    /// Those whose reply has come before its turn.
    pub(super) fn close_others(&mut self) {
        while !self.is_full()
            && let Some(first) = self.gaps.front_mut()
            && let Some(reply) = first.reply.take()
        {
            self.early -= first.early;
            self.close_first(Piece::Bytes(reply));
        }
    }
}
