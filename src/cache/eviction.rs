//! S3-FIFO over opaque items: a small queue for newcomers, a main queue for what was read again, and a memory of what
//! was thrown out of the small one. Single-threaded, no clock, no map: it asks its owner about each item.
//!
//! Bound: as many items as there are live replies, plus those already gone that [`Queues::compact`] has not swept yet
//! (at most as many again, and 64); the ghosts are as many as the live items.

use std::collections::{HashSet, VecDeque};

use super::entry::IdentityState;

/// Names one cached reply. It may be gone by the time the queue comes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Hash of its key.
    pub hash: u64,
    /// Hash of its identity behind the key.
    pub variant: u32,
    /// Its number.
    pub seq: u32,
}

/// What the owner knows of an item.
pub enum Probe {
    /// It was dropped, replaced or has expired.
    Gone,
    /// It weighs this much and was hit this often since the last look.
    Live {
        /// Bytes.
        weight: u64,
        /// Hits, small.
        hits: u8,
    },
}

/// The queues of one shard.
#[derive(Default)]
pub struct Queues {
    small: VecDeque<Item>,
    small_bytes: u64,
    main: VecDeque<Item>,
    main_bytes: u64,
    ghosts: VecDeque<u64>,
    ghost_set: HashSet<u64, IdentityState>,
}

impl Queues {
    /// A new item of `weight` bytes.
    pub fn push(&mut self, item: Item, weight: u64) {
        let key = ghost(&item);
        if self.ghost_set.remove(&key) {
            self.main.push_back(item);
            self.main_bytes += weight;
        } else {
            self.small.push_back(item);
            self.small_bytes += weight;
        }
    }

    /// The next item to throw out, with `probe` as the owner's knowledge; `None` if nothing is left.
    pub fn victim(&mut self, mut probe: impl FnMut(&Item) -> Probe) -> Option<Item> {
        loop {
            let from_small = !self.small.is_empty()
                && (self.main.is_empty() || self.small_bytes * 10 >= self.small_bytes + self.main_bytes);
            if from_small {
                let item = self.small.pop_front()?;
                let Probe::Live { weight, hits } = probe(&item) else { continue };
                self.small_bytes = self.small_bytes.saturating_sub(weight);
                if hits == 0 {
                    self.remember(&item);
                    return Some(item);
                }
                self.main.push_back(item);
                self.main_bytes += weight;
            } else {
                let item = self.main.pop_front()?;
                let Probe::Live { weight, hits } = probe(&item) else { continue };
                if hits == 0 {
                    self.main_bytes = self.main_bytes.saturating_sub(weight);
                    return Some(item);
                }
                self.main.push_back(item);
            }
        }
    }

    fn remember(&mut self, item: &Item) {
        if self.ghost_set.insert(ghost(item)) {
            self.ghosts.push_back(ghost(item));
        }
        while self.ghosts.len() > self.queued() + 64 {
            if let Some(old) = self.ghosts.pop_front() {
                self.ghost_set.remove(&old);
            }
        }
    }

    /// Items queued, those that are gone included.
    pub fn queued(&self) -> usize {
        self.small.len() + self.main.len()
    }

    /// Throws out what is gone, once that is half of the queue. `live` is how many the owner still has here.
    pub fn compact(&mut self, live: usize, mut probe: impl FnMut(&Item) -> Probe) {
        if self.queued() <= 2 * live + 64 {
            return;
        }
        for (queue, bytes) in [(&mut self.small, &mut self.small_bytes), (&mut self.main, &mut self.main_bytes)] {
            *bytes = 0;
            queue.retain(|item| match probe(item) {
                Probe::Gone => false,
                Probe::Live { weight, .. } => {
                    *bytes += weight;
                    true
                }
            });
        }
    }
}

fn ghost(item: &Item) -> u64 {
    item.hash ^ (u64::from(item.variant) << 32 | u64::from(item.variant))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(n: u64) -> Item {
        Item { hash: n, variant: 0, seq: n as u32 }
    }

    #[test]
    fn what_was_read_again_outlives_a_scan() {
        let mut queues = Queues::default();
        queues.push(item(1), 10);
        for n in 2..=100 {
            queues.push(item(n), 10);
        }
        let mut hits = 1;
        let mut out = Vec::new();
        for _ in 0..99 {
            let victim = queues
                .victim(|i| Probe::Live { weight: 10, hits: if i.hash == 1 { std::mem::take(&mut hits) } else { 0 } });
            out.push(victim.expect("a victim").hash);
        }
        assert!(!out[..98].contains(&1), "the hit item went last");
    }

    #[test]
    fn a_ghost_comes_back_into_the_main_queue() {
        let mut queues = Queues::default();
        queues.push(item(1), 10);
        assert_eq!(queues.victim(|_| Probe::Live { weight: 10, hits: 0 }), Some(item(1)));
        queues.push(item(1), 10);
        assert_eq!((queues.small.len(), queues.main.len()), (0, 1));
    }

    #[test]
    fn what_is_gone_is_swept_and_the_queue_stays_bounded() {
        let mut queues = Queues::default();
        for n in 0..10_000 {
            queues.push(item(n), 10);
            queues.compact(10, |i| if i.hash + 10 > n { Probe::Live { weight: 10, hits: 0 } } else { Probe::Gone });
        }
        assert!(queues.queued() <= 2 * 10 + 64 + 1, "{}", queues.queued());
        let mut left = 0;
        while queues
            .victim(|i| if i.hash >= 9_990 { Probe::Live { weight: 10, hits: 0 } } else { Probe::Gone })
            .is_some()
        {
            left += 1;
        }
        assert_eq!(left, 10);
    }
}
