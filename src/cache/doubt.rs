//! Doubts about what is cached, by hash: how often a key has changed, and the latest time at which a client was told something about a
//! key without the reply being kept.
//!
//! Both stand in tables of fixed size. A collision revokes a fill that was innocent, or makes a hit wait for a PING: it costs time,
//! never truth.

use crate::numbers::index;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::size;
use crate::time::Time;

const PLACES: usize = size(1 << 16, 4);

/// The two tables.
pub(super) struct Doubt {
    revisions: Box<[AtomicU32]>,
    told: Box<[AtomicU64]>,
}

impl Doubt {
    /// Nothing has changed, and nobody was told anything.
    pub fn new() -> Doubt {
        Doubt {
            revisions: (0..PLACES).map(|_| AtomicU32::new(0)).collect(),
            told: (0..PLACES).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// How often keys of this hash have changed.
    pub fn revision(&self, hash: u64) -> u32 {
        self.revision_of(hash).load(Ordering::Acquire)
    }

    /// A key of this hash has changed.
    pub fn raise(&self, hash: u64) {
        self.revision_of(hash).fetch_add(1, Ordering::AcqRel);
    }

    fn revision_of(&self, hash: u64) -> &AtomicU32 {
        &self.revisions[index(hash) % PLACES]
    }

    fn told_of(&self, hash: u64) -> &AtomicU64 {
        &self.told[index(hash) % PLACES]
    }

    /// The latest time noted by [`Doubt::tell`] for this hash.
    pub fn told(&self, hash: u64) -> Time {
        Time(self.told_of(hash).load(Ordering::Acquire))
    }

    /// A client is told something about a key of this hash at `t`.
    pub fn tell(&self, hash: u64, t: Time) {
        self.told_of(hash).fetch_max(t.0, Ordering::AcqRel);
    }

    /// Where the revision stands, for a prefetch.
    pub fn address_of_revision(&self, hash: u64) -> *const u8 {
        (&raw const *self.revision_of(hash)).cast()
    }

    /// Where the time stands, for a prefetch.
    pub fn address_of_told(&self, hash: u64) -> *const u8 {
        (&raw const *self.told_of(hash)).cast()
    }
}
