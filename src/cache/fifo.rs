//! A queue in small blocks. It takes the memory of what is in it and little more, however long it once was: a ring that doubles
//! takes up to twice as much, and keeps it.

use std::collections::VecDeque;

/// Items of one block: a kilobyte, of the eviction's items.
const BLOCK: usize = 64;

/// First in, first out.
pub struct Fifo<T> {
    /// All are full but the last; of the first, `taken` are gone. None is empty.
    blocks: VecDeque<Vec<T>>,
    taken: usize,
}

impl<T> Default for Fifo<T> {
    fn default() -> Fifo<T> {
        Fifo { blocks: VecDeque::new(), taken: 0 }
    }
}

impl<T: Copy> Fifo<T> {
    /// Behind all others.
    pub fn push(&mut self, item: T) {
        match self.blocks.back_mut().filter(|block| block.len() < BLOCK) {
            Some(block) => block.push(item),
            None => {
                let mut block = Vec::with_capacity(BLOCK);
                block.push(item);
                self.blocks.push_back(block);
            }
        }
    }

    /// The one that came first.
    pub fn pop(&mut self) -> Option<T> {
        let block = self.blocks.front()?;
        let item = block[self.taken];
        self.taken += 1;
        if self.taken == block.len() {
            self.blocks.pop_front();
            self.taken = 0;
        }
        Some(item)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        let full = self.blocks.len().saturating_sub(1) * BLOCK;
        full + self.blocks.back().map_or(0, Vec::len) - self.taken
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Keeps what `keep` says, in its order.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        let mut all = std::mem::take(self);
        while let Some(item) = all.pop() {
            if keep(&item) {
                self.push(item);
            }
        }
        self.blocks.shrink_to(self.blocks.len() * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_does_as_a_ring_does() {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut fifo, mut ring) = (Fifo::default(), VecDeque::new());
        for n in 0..100_000_u32 {
            // Now longer, now shorter, and empty at times.
            if random.u32(0..1000) < 500 + 100 * (n / 1000 % 3) - 100 {
                fifo.push(n);
                ring.push_back(n);
            } else {
                assert_eq!(fifo.pop(), ring.pop_front());
            }
            if n % 7919 == 0 {
                fifo.retain(|n| n % 3 > 0);
                ring.retain(|n| n % 3 > 0);
            }
            assert_eq!((fifo.len(), fifo.is_empty()), (ring.len(), ring.is_empty()));
        }
    }

    #[test]
    fn what_has_left_takes_no_memory() {
        let mut fifo = Fifo::default();
        (0..10_000).for_each(|n| fifo.push(n));
        (0..9_990).for_each(|n| assert_eq!(fifo.pop(), Some(n)));
        assert_eq!(fifo.blocks.len(), 1);
        fifo.retain(|n| n % 2 == 0);
        assert_eq!(fifo.len(), 5);
    }
}
