//! Where fields with a time to live of their own were seen lately, so that nobody pays for questions whose answer is known.
//! Nothing is proven by it: who is told *no* asks, and who is told *yes* reads past the cache.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::numbers::index;
use crate::time::Time;

/// For how long the question about the whole server is not asked again after it had a mortal field somewhere. (Redis never
/// takes one out of its count, so asking more often would hardly ever help.)
const ANYWHERE: Duration = Duration::from_secs(60);
/// For how long no reply of a hash is tried to be kept that had a mortal field, or too many fields to ask about.
const IN_HASH: Duration = Duration::from_secs(1);
/// Hashes that share a place share a fate, for [`IN_HASH`]: that costs reads, never truth.
const PLACES: usize = 4096;

/// The notes about mortal fields.
pub struct MortalFields {
    anywhere: AtomicU64,
    hashes: Box<[AtomicU64]>,
}

impl Default for MortalFields {
    fn default() -> MortalFields {
        MortalFields { anywhere: AtomicU64::new(0), hashes: (0..PLACES).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl MortalFields {
    fn place(&self, hash: u64) -> &AtomicU64 {
        &self.hashes[index(hash) % PLACES]
    }

    /// Whether the server was lately found to have one in some hash.
    pub fn anywhere(&self, now: Time) -> bool {
        self.anywhere.load(Ordering::Relaxed) > now.0
    }

    /// The server has one somewhere.
    pub fn note_anywhere(&self, now: Time) {
        self.anywhere.store((now + ANYWHERE).0, Ordering::Relaxed);
    }

    /// Whether this hash was lately found to have one (`hash` is the hash of its key).
    pub fn in_hash(&self, hash: u64, now: Time) -> bool {
        self.place(hash).load(Ordering::Relaxed) > now.0
    }

    /// This hash has one, or more fields than can be asked about.
    pub fn note(&self, hash: u64, now: Time) {
        self.place(hash).store((now + IN_HASH).0, Ordering::Relaxed);
    }
}
