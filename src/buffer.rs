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
/// A buffer that has grown beyond this is not kept.
const SPARE_MAX: usize = 8 * ROOM;

thread_local! {
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// Room for so many pieces is kept by a queue that has become empty.
const CHUNKS_KEPT: usize = 64;

/// A partial request up to this size is moved to a small private buffer when a read would block, so that the pooled buffer can be reused.
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
    // The small buffer given back last is taken first: it is still in the processor's cache.
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

/// Called when a read would block. An empty buffer goes back to the pool; a short remainder is copied into a buffer of its own size.
pub fn rest(buf: &mut BytesMut) {
    if buf.len() <= KEPT_SMALL && buf.capacity() > KEPT_SMALL {
        let kept = if buf.is_empty() { BytesMut::new() } else { BytesMut::from(&buf[..]) };
        give_back(std::mem::replace(buf, kept));
    }
}

/// Nothing comes for now, and what had come is dealt with.
#[inline]
pub fn release(buf: &mut BytesMut) {
    give_back(std::mem::take(buf));
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
        // The compiler sees that there is room, and does not ask again.
        if self.tail.capacity() - self.tail.len() >= bytes.len() {
            return self.tail.extend_from_slice(bytes);
        }
        self.push_full(bytes);
    }

    /// A full buffer is not made larger, which would copy it: another follows.
    fn push_full(&mut self, bytes: &[u8]) {
        if self.tail.len() > KEPT_SMALL {
            self.seal();
        }
        let need = self.tail.len() + bytes.len();
        equip(&mut self.tail, need);
        self.tail.extend_from_slice(bytes);
    }

    /// Appends `bytes`, by reference if that is cheaper than a copy.
    pub fn push_bytes(&mut self, bytes: Bytes) {
        if bytes.len() < LARGE {
            return self.push(&bytes);
        }
        self.chain(bytes);
    }

    fn chain(&mut self, bytes: Bytes) {
        self.seal();
        self.queued += bytes.len();
        self.chunks.push_back(bytes);
    }

    /// Nothing comes for now, nor is anything taken.
    pub fn rest(&mut self) {
        rest(&mut self.tail);
    }

    /// Moves the first `n` bytes, of which there are as many, to the end of `to`: little by a copy, the rest by reference.
    pub fn move_to(&mut self, to: &mut OutBuf, mut n: usize) {
        debug_assert!(n <= self.len(), "what is not there cannot move");
        if n == self.len() && to.is_empty() {
            return std::mem::swap(self, to);
        }
        while n > 0 && !self.is_empty() {
            let step = self.first().len().min(n);
            if step <= KEPT_SMALL {
                to.push(&self.first()[..step]);
                self.advance(step);
            } else {
                to.chain(self.split_to(step));
            }
            n -= step;
        }
        // The remainder of a buffer would keep all of it.
        if self.tail.is_empty() {
            self.tail = BytesMut::new();
        }
    }

    fn first(&self) -> &[u8] {
        self.chunks.front().map_or(&self.tail, |chunk| chunk)
    }

    /// The first `n` bytes, of what is in one piece.
    fn split_to(&mut self, n: usize) -> Bytes {
        let Some(chunk) = self.chunks.front_mut() else { return self.tail.split_to(n).freeze() };
        self.queued -= n;
        if n < chunk.len() { chunk.split_to(n) } else { self.chunks.pop_front().unwrap_or_default() }
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

    /// The first pieces, as many as go into one call.
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
            if self.chunks.is_empty() && self.chunks.capacity() > CHUNKS_KEPT {
                self.chunks = VecDeque::new();
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
    fn what_does_not_fit_is_not_copied_again() {
        let mut buf = OutBuf::default();
        let piece = [b'x'; 1000];
        (0..100).for_each(|_| buf.push(&piece));
        assert_eq!((buf.len(), buf.chunks.len()), (100 * piece.len(), 100 / (ROOM / piece.len())));
        assert!(buf.chunks.iter().all(|chunk| chunk.len() == ROOM / piece.len() * piece.len()));
        buf.advance(buf.len());
        assert_eq!(spares(), 7);
        // Little that stands before something large is, rather than to send it by itself.
        buf.push(b"little");
        buf.push(&[b'y'; ROOM]);
        assert_eq!(buf.as_one().map(<[u8]>::len), Some(6 + ROOM));
    }

    #[test]
    fn many_pieces_leave_no_room_behind() {
        let mut buf = OutBuf::default();
        (0..10 * CHUNKS_KEPT).for_each(|_| buf.push_bytes(Bytes::from(vec![b'x'; LARGE])));
        buf.advance(buf.len());
        assert_eq!(buf.chunks.capacity(), 0);
    }

    #[test]
    fn bytes_move_from_one_to_another() {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut from, mut to) = (OutBuf::default(), OutBuf::default());
        let (mut behind, mut before) = (Vec::new(), Vec::new());
        for round in 0..20_000 {
            let bytes = vec![round as u8; [3, 70, 1100, LARGE + 5][random.usize(..4)]];
            match random.usize(..5) {
                0 => {
                    to.push(&bytes);
                    before.extend_from_slice(&bytes);
                }
                1 => {
                    from.push_bytes(Bytes::from(bytes.clone()));
                    behind.extend_from_slice(&bytes);
                }
                2 => {
                    from.push(&bytes);
                    behind.extend_from_slice(&bytes);
                }
                3 => {
                    let n = [0, random.usize(..=from.len()), from.len()][random.usize(..3)];
                    from.move_to(&mut to, n);
                    before.extend(behind.drain(..n));
                }
                _ => {
                    let n = [random.usize(..=to.len()), to.len()][random.usize(..2)];
                    assert_eq!(contents(&to)[..n.min(SLICES)], before[..n.min(SLICES)]);
                    to.advance(n);
                    before.drain(..n);
                }
            }
            assert_eq!((from.len(), to.len()), (behind.len(), before.len()));
        }
        assert_eq!((from.take(), to.take()), (behind, before));
    }

    #[test]
    fn what_was_moved_away_holds_no_buffer() {
        for size in [10, KEPT_SMALL + 1] {
            let (mut from, mut to) = (OutBuf::default(), OutBuf::default());
            to.push(b"not empty");
            from.push(&vec![b'x'; 2 * size]);
            from.move_to(&mut to, size);
            from.move_to(&mut to, size);
            assert_eq!((from.len(), from.tail.capacity()), (0, 0));
            to.advance(to.len());
            assert_eq!(SPARE.with_borrow_mut(std::mem::take).len(), 2, "{size} bytes");
        }
    }

    #[test]
    fn little_that_waits_holds_little() {
        let mut buf = OutBuf::default();
        buf.push(b"+OK\r\n");
        buf.rest();
        assert_eq!((buf.as_one(), buf.tail.capacity() < 64, spares()), (Some(&b"+OK\r\n"[..]), true, 1));
        buf.push(&[b'x'; KEPT_SMALL]);
        buf.rest();
        assert_eq!((buf.len(), buf.tail.capacity(), spares()), (5 + KEPT_SMALL, ROOM, 0));
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
