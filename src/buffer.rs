//! Bytes on their way out: small pieces copied together, large ones by reference, written in one vectored call. And the
//! buffers themselves: a connection has one only while there is something in it, so a thousand idle connections cost
//! nothing and those that are busy use the same few, which stay in the processor's cache.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};
use smallvec::SmallVec;

/// Pieces at least this large are kept by reference.
pub const LARGE: usize = 16 * 1024;

/// Slices of one vectored write.
const SLICES: usize = 16;

/// Room of a buffer that is handed round.
pub const ROOM: usize = 16 * 1024;
/// Larger ones have a multiple of this, so that those for values of one size fit each other.
const STEP: usize = 4 * 1024;
/// Buffers a thread keeps for whoever needs one next.
const SPARES: usize = 32;
/// What has grown beyond this is not kept.
const SPARE_MAX: usize = 8 * ROOM;

thread_local! {
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// What is kept, in a buffer of its own, of something that has begun and of which no more comes for now.
const KEPT_SMALL: usize = 1024;

/// Makes sure that `buf` has a buffer of its own, and room for all of what has begun, if that `need`s no more than is handed round.
pub fn equip(buf: &mut BytesMut, need: usize) {
    // A little more than is needed: a read that fills all there is would be followed by another.
    let least = if (ROOM..SPARE_MAX).contains(&need) { (need + 1).next_multiple_of(STEP) } else { ROOM };
    if buf.capacity() < least {
        exchange(buf, least);
    }
}

fn exchange(buf: &mut BytesMut, least: usize) {
    // Of small ones the one given back last, which is still in the processor's cache.
    let spare = SPARE.with_borrow_mut(|spares| {
        let fits = spares.iter().rposition(|spare| spare.capacity() >= least)?;
        Some(spares.swap_remove(fits))
    });
    let spare = spare.unwrap_or_else(|| BytesMut::with_capacity(least));
    let little = std::mem::replace(buf, spare);
    if !little.is_empty() {
        buf.extend_from_slice(&little);
        give_back(little);
    }
}

/// Nothing comes for now: who is silent holds no memory (the least that of something large which has gone on), and who has
/// stopped in the middle of something little.
pub fn rest(buf: &mut BytesMut) {
    if buf.len() <= KEPT_SMALL && buf.capacity() > KEPT_SMALL {
        let kept = if buf.is_empty() { BytesMut::new() } else { BytesMut::from(&buf[..]) };
        give_back(std::mem::replace(buf, kept));
    }
}

/// Takes a buffer back for the next who needs one; what is in it is forgotten. What is left of a buffer whose greater part
/// was handed on may be small and yet keep all of it.
fn give_back(mut buf: BytesMut) {
    buf.clear();
    let large = buf.try_reclaim(SPARE_MAX + 1);
    if !large && buf.try_reclaim(ROOM) {
        SPARE.with_borrow_mut(|spares| {
            if spares.len() < SPARES {
                spares.push(buf);
            }
        });
    }
}

/// A queue of bytes.
#[derive(Default)]
pub struct OutBuf {
    chunks: VecDeque<Bytes>,
    tail: BytesMut,
    queued: usize,
}

impl OutBuf {
    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.queued + self.tail.len()
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queued == 0 && self.tail.is_empty()
    }

    /// Copies `bytes` to the end.
    #[inline]
    pub fn push(&mut self, bytes: &[u8]) {
        if self.tail.is_empty() {
            equip(&mut self.tail, 0);
        }
        self.tail.extend_from_slice(bytes);
    }

    /// Appends `bytes`, by reference if that is cheaper than a copy.
    pub fn push_bytes(&mut self, bytes: Bytes) {
        if bytes.len() < LARGE {
            return self.push(&bytes);
        }
        self.seal();
        self.queued += bytes.len();
        self.chunks.push_back(bytes);
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.queued += self.tail.len();
            self.chunks.push_back(self.tail.split().freeze());
        }
    }

    /// All of it, if it is in one piece.
    pub fn as_one(&self) -> Option<&[u8]> {
        match (self.chunks.front(), self.tail.is_empty()) {
            (None, _) => Some(&self.tail),
            (Some(chunk), true) if self.chunks.len() == 1 => Some(chunk),
            _ => None,
        }
    }

    /// What comes first, as much as goes into one call.
    pub fn slices(&self) -> SmallVec<[IoSlice<'_>; SLICES]> {
        let tail = (!self.tail.is_empty()).then_some(&self.tail);
        let all = self.chunks.iter().map(|chunk| &chunk[..]).chain(tail.map(|tail| &tail[..]));
        all.take(SLICES).map(IoSlice::new).collect()
    }

    /// Forgets the first `n` bytes: they are written, or not wanted any more.
    pub fn advance(&mut self, mut n: usize) {
        while let Some(first) = self.chunks.front_mut() {
            let step = n.min(first.len());
            first.advance(step);
            n -= step;
            self.queued -= step;
            if !first.is_empty() {
                return;
            }
            if let Some(Ok(ours)) = self.chunks.pop_front().map(Bytes::try_into_mut) {
                give_back(ours);
            }
        }
        if n < self.tail.len() {
            self.tail.advance(n);
        } else if self.tail.capacity() > 0 {
            give_back(std::mem::take(&mut self.tail));
        }
    }

    /// Takes everything as one piece.
    pub fn take(&mut self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len());
        self.chunks.iter().for_each(|c| bytes.extend_from_slice(c));
        bytes.extend_from_slice(&self.tail);
        self.clear();
        bytes
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = OutBuf::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(buf: &OutBuf) -> Vec<u8> {
        let slices = buf.slices();
        let bytes: Vec<u8> = slices.iter().flat_map(|s| s.to_vec()).collect();
        assert_eq!(buf.as_one().is_some(), slices.len() < 2);
        assert!(buf.as_one().is_none_or(|one| one == bytes));
        bytes
    }

    fn spares() -> usize {
        SPARE.with_borrow(Vec::len)
    }

    #[test]
    fn something_large_is_copied_once_if_at_all() {
        for need in [ROOM - 1, ROOM, 5 * ROOM, SPARE_MAX - 1, SPARE_MAX, 100 * SPARE_MAX] {
            let mut buf = BytesMut::new();
            equip(&mut buf, 0);
            // its begin says how much more there is
            buf.extend_from_slice(b"*1\r\n");
            equip(&mut buf, need);
            buf.reserve(need - buf.len());
            let at = buf.as_ptr();
            for have in [need / 7, need / 2, need - 1] {
                buf.resize(have, b'x');
                equip(&mut buf, need);
                buf.reserve(need - have);
                assert!(buf.capacity() >= need && buf.as_ptr() == at, "{have} of {need} bytes");
            }
        }
    }

    #[test]
    fn what_is_silent_holds_no_buffer() {
        let mut buf = BytesMut::new();
        equip(&mut buf, 0);
        rest(&mut buf);
        assert_eq!(buf.capacity(), 0);
        equip(&mut buf, 0);
        buf.extend_from_slice(b"*1\r\n");
        rest(&mut buf);
        assert_eq!((&buf[..], buf.capacity() < 64), (&b"*1\r\n"[..], true));
        equip(&mut buf, 0);
        assert_eq!((&buf[..], buf.capacity() >= ROOM), (&b"*1\r\n"[..], true));
    }

    #[test]
    fn a_large_piece_that_is_written_is_a_buffer_again() {
        let need = 4 * ROOM;
        let mut buf = BytesMut::new();
        equip(&mut buf, need);
        buf.resize(need, b'x');
        let at = buf.as_ptr();
        let mut out = OutBuf::default();
        out.push_bytes(std::mem::take(&mut buf).freeze());
        out.advance(need - 1);
        assert_eq!(spares(), 0);
        out.advance(1);
        assert_eq!(spares(), 1);
        equip(&mut buf, need);
        assert_eq!((buf.as_ptr(), spares()), (at, 0));
        // Somebody else has it too.
        buf.resize(need, b'x');
        let piece = std::mem::take(&mut buf).freeze();
        out.push_bytes(piece.clone());
        out.advance(need);
        assert_eq!((spares(), piece.len()), (0, need));
    }

    #[test]
    fn spares_are_bounded() {
        (0..2 * SPARES).for_each(|_| give_back(BytesMut::with_capacity(ROOM)));
        assert_eq!(spares(), SPARES);
    }

    #[test]
    fn what_is_left_of_a_large_buffer_is_not_kept() {
        for (size, kept) in [(ROOM, 1), (SPARE_MAX, 2), (SPARE_MAX * 100, 2)] {
            let mut buf = BytesMut::with_capacity(size);
            buf.resize(size - 100, b'x');
            drop(buf.split());
            assert!(buf.capacity() <= 100);
            give_back(buf);
            assert_eq!(spares(), kept, "{size} bytes");
        }
    }

    #[test]
    fn order_is_kept_between_small_and_large_pieces() {
        let mut buf = OutBuf::default();
        let large = Bytes::from(vec![b'x'; LARGE]);
        buf.push(b"ab");
        buf.push_bytes(large.clone());
        buf.push_bytes(Bytes::from_static(b"cd"));
        let expected = [b"ab".as_slice(), &large, b"cd"].concat();
        assert_eq!(contents(&buf), expected);
        assert_eq!(buf.len(), expected.len());
        for cut in [1, 1, LARGE - 1, 2] {
            buf.advance(cut);
        }
        assert_eq!(contents(&buf), b"d");
        buf.advance(1);
        assert!(buf.is_empty());
    }
}
