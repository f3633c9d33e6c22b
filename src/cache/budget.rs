//! How much is kept: what replies weigh, which go when the budget is full, and which can never be served again.
//!
//! The cache is cut into shares by hash, each with its own eviction. Lock order: a share's queue first, then a shard of the table.

use std::sync::PoisonError;

use super::Cache;
use super::entry::CachedReply;
use super::eviction::{Item, Probe, Queues};
use super::table::EntryPlace;
use crate::numbers::{at_least_zero, difference, index};
use crate::sync::atomic::{AtomicI64, Ordering};
use crate::sync::{Mutex, MutexGuard};
use crate::time::Time;

/// A cache whose shares would have fewer bytes has fewer of them: so it evicts nearly what one queue for all would evict.
const SHARE_MIN: u64 = 256 << 10;

/// A part of the cache with an eviction of its own.
#[derive(Default)]
pub(super) struct Share {
    queues: Mutex<Queues>,
    replies: AtomicI64,
    bytes: AtomicI64,
}

impl Share {
    pub(super) fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn replies(&self) -> u64 {
        at_least_zero(self.replies.load(Ordering::Relaxed))
    }
}

/// The shares of a cache of so many bytes: a power of two of them, and no more than `most`.
pub(super) fn shares(budget: u64, most: usize) -> Box<[Share]> {
    let number = 1 << (budget / SHARE_MIN).clamp(1, most as u64).ilog2();
    (0..number).map(|_| Share::default()).collect()
}

impl Cache {
    pub(super) fn account(&self, hash: u64, bytes: i64, replies: i64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        let share = self.share(hash);
        share.bytes.fetch_add(bytes, Ordering::Relaxed);
        share.replies.fetch_add(replies, Ordering::Relaxed);
    }

    pub(super) fn share(&self, n: u64) -> &Share {
        &self.shares[self.share_number(n)]
    }

    fn share_number(&self, n: u64) -> usize {
        index(n) & (self.shares.len() - 1)
    }

    pub(super) fn forget(&self, hash: u64, replies: &[CachedReply]) {
        if !replies.is_empty() {
            let bytes: u64 = replies.iter().map(CachedReply::weight).sum();
            self.account(hash, -bytes.cast_signed(), -difference(replies.len()));
        }
    }

    /// Queues the new reply for eviction and evicts until the budget is kept. Lock order: queue, then shard.
    pub(super) fn make_room(&self, item: Item, weight: u64) {
        let own = self.share(item.hash);
        {
            let mut queues = own.queues();
            queues.push(item, weight);
            queues.compact(index(own.replies()), |i| self.probe(i, false));
        }
        let first = self.fuller(&item);
        for share in self.shares[first..].iter().chain(&self.shares[..first]) {
            if !self.is_over() {
                return;
            }
            while self.is_over() && self.evict_from(share) {}
        }
    }

    fn is_over(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.budget.cast_signed()
    }

    /// Whichever holds more: the item's own share, or one that takes turns with all others. If each made room in its own, a
    /// share whose keys are written often would lose, at each write, one place to whoever fills next, and in the end all.
    fn fuller(&self, item: &Item) -> usize {
        let (own, other) = (self.share_number(item.hash), self.share_number(u64::from(item.seq)));
        let bytes = |n: usize| self.shares[n].bytes.load(Ordering::Relaxed);
        if bytes(other) > bytes(own) { other } else { own }
    }

    fn evict_from(&self, share: &Share) -> bool {
        let mut queues = share.queues();
        let Some(victim) = queues.victim(|i| self.probe(i, true)) else { return false };
        if let EntryPlace::Occupied(mut place) = self.table.place(victim.hash)
            && place.get().by_seq(victim.variant, victim.seq).is_some()
        {
            let told = place.get().latest();
            let (cached, empty) = place.get_mut().remove(victim.variant);
            if empty {
                self.doubt.tell(victim.hash, told);
                place.remove();
            }
            self.forget(victim.hash, cached.as_slice());
            self.stats.evictions.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    fn probe(&self, item: &Item, cool: bool) -> Probe {
        let shard = self.table.read(item.hash);
        let its = |cached: &&CachedReply| self.hash(cached.key()) == item.hash;
        match shard.candidates().find_map(|entry| entry.by_seq(item.variant, item.seq).filter(its)) {
            None => Probe::Gone,
            // A reply that a flush or a lane's death has made void goes first.
            Some(cached) if !self.alive(cached) => Probe::Live { weight: cached.weight(), hits: 0 },
            Some(cached) => Probe::Live { weight: cached.weight(), hits: if cool { cached.cool() } else { 0 } },
        }
    }

    fn alive(&self, cached: &CachedReply) -> bool {
        cached.epoch() == self.epoch.load(Ordering::Acquire) && self.clocks.lane(cached.lane()).is_some()
    }

    /// Gives back the memory of what can never be served again. Locks one shard at a time; meant for a thread of its own.
    pub fn sweep(&self, now: Time) {
        self.table.retain(|entry| {
            let told = entry.latest();
            let (removed, empty) = entry.retain(|cached| self.alive(cached) && now < cached.deadline());
            if let Some(first) = removed.first() {
                let hash = self.hash(first.key());
                if empty {
                    self.doubt.tell(hash, told);
                }
                self.forget(hash, &removed);
            }
            !empty
        });
        for share in &self.shares {
            share.queues().compact(index(share.replies()), |i| self.probe(i, false));
        }
    }
}
