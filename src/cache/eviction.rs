//! S3-FIFO over opaque items: a small queue for newcomers, a main queue for what was read again, and a memory of what
//! was thrown out of the small one. Single-threaded, no clock, no map: it asks its owner about each item.
//!
//! Bound: as many items as there are live replies, plus those already gone that [`Queues::compact`] has not swept yet
//! (at most as many again, and 64); of those thrown out half as many are remembered, and 64.

use std::collections::HashSet;

use super::entry::HashedAlready;
use super::fifo::Fifo;

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

/// The owner's word on an item.
pub enum Probe {
    /// The item was dropped, replaced or has expired.
    Gone,
    /// The item weighs this much and was hit this often since the last look.
    Live {
        /// Bytes.
        weight: u64,
        /// Hits, small.
        hits: u8,
    },
}

/// The small queue is shortened while it holds at least one in this many of all bytes. More costs loops and even popularity, less
/// costs what is popular for a short while (docs/bench/RATIO.md has the traces).
const SMALL: u64 = 20;
/// As many items are remembered as live ones, divided by this. Longer memory lets a loop that does not fit push itself out.
const REMEMBERED: usize = 2;
/// An item that weighs more than this many times the mean is not worth a place in the main queue for having come back once: so many
/// others would have to go for it.
const HEAVY: u64 = 2;
/// One in so many newcomers replaces a stale item of the main queue ([`Queues::renew`]). Fewer adapt sooner, and cost popular keys their places.
const RENEWAL: u8 = 16;

#[derive(Default)]
struct Queue {
    items: Fifo<Item>,
    /// Their weight, nearly: see [`Queue::lost`].
    bytes: u64,
}

impl Queue {
    fn push(&mut self, item: Item, weight: u64) {
        self.items.push(item);
        self.bytes += weight;
    }

    /// The item just taken out was gone. Nobody knows what it weighed: the mean is taken for it, so that the sum stays
    /// right in the long run, and zero when nothing is left.
    fn lost(&mut self) {
        self.bytes -= self.bytes / (self.items.len() as u64 + 1);
    }

    fn took(&mut self, weight: u64) {
        self.bytes = self.bytes.saturating_sub(weight);
    }
}

/// The queues of one shard.
#[derive(Default)]
pub struct Queues {
    small: Queue,
    main: Queue,
    ghosts: Fifo<u64>,
    ghost_set: HashSet<u64, HashedAlready>,
    /// Something has had to go.
    full: bool,
    /// How many have left the small queue since one of them was looked at more closely.
    passed: u8,
}

impl Queues {
    /// A new item of `weight` bytes.
    pub fn push(&mut self, item: Item, weight: u64) {
        let came_back = self.ghost_set.remove(&ghost(&item));
        let queue = if came_back && !self.is_heavy(weight) { &mut self.main } else { &mut self.small };
        queue.push(item, weight);
        if !self.full {
            self.fill_main();
        }
    }

    /// While there is room for all, what the small queue has no place for fills the main one. Else a loop larger than the
    /// cache went through the small queue for ever, and nothing of it was there when it came round.
    fn fill_main(&mut self) {
        while self.small.bytes * SMALL > self.small.bytes + self.main.bytes {
            let mean = self.small.bytes / self.small.items.len() as u64;
            let Some(item) = self.small.items.pop() else { return };
            self.small.took(mean);
            self.main.push(item, mean);
        }
    }

    fn is_heavy(&self, weight: u64) -> bool {
        weight.saturating_mul(self.queued() as u64) > HEAVY * (self.small.bytes + self.main.bytes)
    }

    /// The next item to throw out, with `probe` as the owner's knowledge; `None` if nothing is left.
    pub fn victim(&mut self, mut probe: impl FnMut(&Item) -> Probe) -> Option<Item> {
        self.full = true;
        loop {
            // The sole item of the small queue is not evicted, or a tiny cache would never see a second hit; unless keeping it would
            // push out many others.
            let alone = self.small.items.len() == 1 && !self.is_heavy(self.small.bytes);
            let large = !self.small.items.is_empty() && self.small.bytes * SMALL >= self.small.bytes + self.main.bytes;
            let from_small = large && !alone || self.main.items.is_empty();
            let queue = if from_small { &mut self.small } else { &mut self.main };
            let item = queue.items.pop()?;
            let Probe::Live { weight, hits } = probe(&item) else {
                queue.lost();
                continue;
            };
            queue.took(weight);
            if hits > 0 {
                self.main.push(item, weight);
                continue;
            }
            if from_small {
                if let Some(stale) = self.renew(item, weight, &mut probe) {
                    return Some(stale);
                }
                self.remember(&item);
            }
            return Some(item);
        }
    }

    /// One in so many of those that leave the small queue unread takes the place of the first in the main one, if nobody
    /// has read that either since it was looked at last. Else a main queue of what nobody reads any more stayed for ever,
    /// beside a loop larger than what is remembered.
    fn renew(&mut self, item: Item, weight: u64, probe: &mut impl FnMut(&Item) -> Probe) -> Option<Item> {
        self.passed = (self.passed + 1) % RENEWAL;
        if self.passed > 0 || self.is_heavy(weight) {
            return None;
        }
        let first = self.main.items.pop()?;
        let Probe::Live { weight: freed, hits } = probe(&first) else {
            self.main.lost();
            return None;
        };
        self.main.took(freed);
        if hits > 0 {
            self.main.push(first, freed);
            return None;
        }
        self.main.push(item, weight);
        Some(first)
    }

    fn remember(&mut self, item: &Item) {
        if self.ghost_set.insert(ghost(item)) {
            self.ghosts.push(ghost(item));
        }
        while self.ghosts.len() > self.queued() / REMEMBERED + 64 {
            if let Some(old) = self.ghosts.pop() {
                self.ghost_set.remove(&old);
            }
        }
    }

    /// Items queued, those that are gone included.
    pub fn queued(&self) -> usize {
        self.small.items.len() + self.main.items.len()
    }

    /// Throws out what is gone, once that is half of the queue. `live` is how many the owner still has here.
    pub fn compact(&mut self, live: usize, mut probe: impl FnMut(&Item) -> Probe) {
        if self.queued() <= 2 * live + 64 {
            return;
        }
        for Queue { items, bytes } in [&mut self.small, &mut self.main] {
            *bytes = 0;
            items.retain(|item| match probe(item) {
                Probe::Gone => false,
                Probe::Live { weight, .. } => {
                    *bytes += weight;
                    true
                }
            });
        }
        self.full &= self.queued() > 0;
    }
}

fn ghost(item: &Item) -> u64 {
    item.hash ^ (u64::from(item.variant) << 32 | u64::from(item.variant))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn item(n: u64) -> Item {
        Item { hash: n, variant: 0, seq: n as u32 }
    }

    /// The queues of a cache that has no room left.
    fn full() -> Queues {
        let mut queues = Queues::default();
        assert!(queues.victim(|_| Probe::Gone).is_none());
        queues
    }

    /// Which of these reads a cache of a hundred places answers.
    fn answered(reads: impl Iterator<Item = u64>) -> Vec<bool> {
        let mut queues = Queues::default();
        let mut there: HashMap<u64, u8> = HashMap::new();
        let answer = |n| {
            if let Some(freq) = there.get_mut(&n) {
                *freq = 1;
                return true;
            }
            there.insert(n, 0);
            queues.push(item(n), 10);
            if there.len() > 100 {
                let probe = |i: &Item| match there.get_mut(&i.hash) {
                    Some(freq) => Probe::Live { weight: 10, hits: std::mem::take(freq) },
                    None => Probe::Gone,
                };
                let victim = queues.victim(probe).expect("a victim");
                there.remove(&victim.hash);
            }
            false
        };
        reads.map(answer).collect()
    }

    #[test]
    fn a_loop_larger_than_the_cache_finds_a_part_of_it_there() {
        let round = 0..300;
        let hits = answered((0..10).flat_map(|_| round.clone()));
        let last = hits[9 * 300..].iter().filter(|hit| **hit).count();
        assert!(last >= 90, "{last} hits in the tenth round");
    }

    #[test]
    fn so_it_does_behind_what_nobody_reads_any_more() {
        let (others, round) = (1_000..1_200, 0..300);
        let hits = answered(others.chain((0..20).flat_map(|_| round.clone())));
        let last = hits[hits.len() - 300..].iter().filter(|hit| **hit).count();
        assert!(last >= 80, "{last} hits in the twentieth round");
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
        let mut queues = full();
        queues.push(item(1), 10);
        assert_eq!(queues.victim(|_| Probe::Live { weight: 10, hits: 0 }), Some(item(1)));
        queues.push(item(1), 10);
        assert_eq!((queues.small.items.len(), queues.main.items.len()), (0, 1));
    }

    #[test]
    fn a_heavy_ghost_comes_back_into_the_small_queue() {
        let mut queues = full();
        queues.push(item(1), 1000);
        assert_eq!(queues.victim(|_| Probe::Live { weight: 1000, hits: 0 }), Some(item(1)));
        (2..10).for_each(|n| queues.push(item(n), 10));
        queues.push(item(1), 1000);
        assert_eq!((queues.small.items.len(), queues.main.items.len()), (9, 0));
    }

    /// An invalidated item weighs nothing any more: else the small queue seemed ever larger, and newcomers went at once
    /// while the main queue kept what nobody reads.
    #[test]
    fn what_is_gone_leaves_no_weight_behind() {
        let mut queues = Queues::default();
        for n in 0..100 {
            queues.push(item(n), 10);
        }
        // Each has been read again when it is first looked at, so the main queue gets them.
        let mut seen = HashSet::new();
        assert!(queues.victim(|i| Probe::Live { weight: 10, hits: u8::from(seen.insert(i.seq)) }).is_some());
        assert!(queues.main.items.len() > 80);
        for round in 0..100 {
            (0..5).for_each(|n| queues.push(item(1_000 + round * 5 + n), 10));
            // Those of the small queue were invalidated meanwhile: one of the main queue has to go.
            let probe = |i: &Item| if i.seq < 1_000 { Probe::Live { weight: 10, hits: 0 } } else { Probe::Gone };
            let victim = queues.victim(probe);
            assert!(victim.is_none_or(|i| i.seq < 100));
            assert!(queues.small.bytes <= 10 * queues.small.items.len() as u64, "{} bytes", queues.small.bytes);
        }
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
