//! The one door to what is kept: lookup, begin, fill, drop, observe, flush. Synchronous; no I/O, no clock reads.
//!
//! Invariants
//! 1. A reply is stored only by a [`FillToken`] that is still valid, checked under the shard's lock. Whatever makes the
//!    reply doubtful (an invalidation, a local write, a newer reply about the key) raises the key's *revision* first and
//!    removes the entry under the same lock second, so a fill either sees the new revision or is removed.
//! 2. A flush is one number: entries and tokens of an older epoch are void wherever they are.
//! 3. An entry is served only if the link and its lane prove it fresh enough ([`crate::clock`]).
//!
//! 4. Nobody is told anything older about a key than somebody was told before. What is told without being kept (a read
//!    past the cache, a fill that could not be stored, a reply that was evicted) leaves its time in *told*: entries
//!    there, and fills sent before it, must then be proven fresh as of that time.
//!
//! Files: [`entry`] (the replies of one key), [`table`] (where entries stand), `doubt` (revisions, and the latest time a client was told something, by hash), `budget`, [`eviction`] and
//! [`fifo`] (which replies go), [`flight`] (who waits for a read), [`events`] and `stats` (what happened).

mod budget;
mod doubt;
pub mod entry;
pub mod events;
pub mod eviction;
pub mod fifo;
pub mod flight;
mod stats;
#[cfg_attr(feature = "shuttle", path = "cache/table/explored.rs")]
pub mod table;

use std::sync::Arc;

use crate::bypass::Bypass;
use crate::clock::{Clocks, LaneStamp};
use crate::numbers::{at_least_zero, low_half};
use crate::sabotage::{self, Rule};
use crate::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use crate::sync::{self, DashMap, size};
use crate::time::Time;
use budget::Share;
use doubt::Doubt;
use entry::{CachedReply, Entry, HashedAlready, Hashes, Replies, Stamp, Variant};
use events::{Event, Events};
use eviction::Item;
use flight::Flight;
pub use stats::{FLUSH_CAUSES, FlushCause, Stats};
use table::{Cursor, EntryPlace, Reading, Table};

const SHARDS: usize = size(64, 2);
/// A cache smaller than this is in the processor's own: asking ahead would cost more than it hides.
const FAR: u64 = 4 << 20;

/// The cache.
pub struct Cache {
    table: Table,
    flights: DashMap<u64, Arc<InFlight>, HashedAlready>,
    doubt: Doubt,
    epoch: AtomicU32,
    seq: AtomicU32,
    /// By hash.
    shares: Box<[Share]>,
    used: AtomicI64,
    budget: u64,
    max_entry: usize,
    hasher: ahash::RandomState,
    /// The freshness clocks every hit is checked against.
    pub clocks: Clocks,
    /// Counters.
    pub stats: Stats,
    /// The last events, key by key.
    pub events: Events,
}

/// A flight, and the state of the key when it started.
pub struct InFlight {
    flight: Flight,
    revision: u32,
    epoch: u32,
}

impl InFlight {
    /// Ready once the flight has landed ([`Flight::poll_landed`]).
    pub fn poll_landed(&self, cx: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        self.flight.poll_landed(cx)
    }
}

/// The result of a lookup.
pub enum Lookup<R> {
    /// A reply that may be served, as the closure made it.
    Hit(R),
    /// A reply is there, but not yet proven fresh enough.
    Behind(MissingProof),
    /// Nothing to serve.
    Miss,
}

/// The proof that is missing before a reply may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingProof {
    /// Link and lane must have reached this time.
    pub time: Time,
    /// The lane that filled the reply.
    pub lane: LaneStamp,
}

/// Whether a read is the first of its kind on the way.
pub enum Begin {
    /// The reply may be stored with this.
    Lead(FillToken),
    /// Somebody is already reading it.
    Join(Arc<InFlight>),
}

/// The right to store the reply of one read. Not `Clone`; dropping it lands the flight.
pub struct FillToken {
    cache: Arc<Cache>,
    flight: Arc<InFlight>,
    hash: u64,
    variant: u32,
    seq: u32,
}

impl FillToken {
    /// Asks the memory for what storing the reply will touch.
    pub fn prefetch(&self) {
        self.cache.prefetch_drop(self.hash);
        prefetch(self.cache.doubt.address_of_told(self.hash));
    }
}

/// Which flight a read of this key (by its hash) and variant (by its) belongs to.
fn flight_key(hash: u64, variant: u32) -> u64 {
    hash ^ u64::from(variant).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl Drop for FillToken {
    fn drop(&mut self) {
        self.cache.flights.remove_if(&flight_key(self.hash, self.variant), |_, f| Arc::ptr_eq(f, &self.flight));
        self.flight.flight.land();
    }
}

/// Why a reply would not be served, for EXPLAIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// Nobody has read it since it last changed, or it was evicted.
    NotCached,
    /// Everything was flushed after it was filled.
    Flushed,
    /// The key's time to live has ended.
    Expired,
    /// The lane that filled it is gone.
    LaneLost,
    /// The clocks have not reached the time asked for.
    Behind(MissingProof),
}

impl Cache {
    /// A cache of `budget` bytes, overhead included, that keeps no reply above `max_entry` bytes.
    pub fn new(budget: u64, max_entry: usize) -> Cache {
        let hasher = crate::chance::hash_keys();
        Cache {
            table: Table::new(hasher.clone(), SHARDS),
            flights: DashMap::with_hasher_and_shard_amount(HashedAlready::default(), SHARDS),
            doubt: Doubt::new(),
            epoch: AtomicU32::new(1),
            seq: AtomicU32::new(1),
            shares: budget::shares(budget, SHARDS),
            used: AtomicI64::new(0),
            budget,
            // an entry notes the lengths of its parts in 32 bits
            max_entry: max_entry.min(u32::MAX as usize),
            hasher,
            clocks: Clocks::default(),
            stats: Stats::default(),
            events: Events::default(),
        }
    }

    /// The hash every other call takes. Keyed by a secret of this process.
    #[inline]
    pub fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    fn variant_hash(&self, v: &Variant<'_>) -> u32 {
        low_half(self.hasher.hash_one((v.view, v.id, v.tail)))
    }

    /// Serves the reply to `variant` if it is alive and proven fresh as of `watermark`. `hit` runs under the shard's lock:
    /// copy and go.
    #[inline]
    pub fn lookup<R>(
        &self,
        hash: u64,
        v: &Variant<'_>,
        now: Time,
        watermark: Time,
        hit: impl FnOnce(&CachedReply) -> R,
    ) -> Lookup<R> {
        let shard = self.table.read(hash);
        let Some(found) = self.find_reply(&shard, v) else { return Lookup::Miss };
        match self.servable(found, now, watermark) {
            Ok(cached) => {
                cached.touch();
                Lookup::Hit(hit(cached))
            }
            Err(Absence::Behind(need)) => Lookup::Behind(need),
            Err(_) => Lookup::Miss,
        }
    }

    /// Asks the memory for what lookups of these hashes will read, so that their latencies overlap. A hint: it changes
    /// nothing, and what it asked for may be gone by the time of the lookup.
    pub fn prefetch(&self, hashes: impl Iterator<Item = u64> + Clone) {
        if self.used() < FAR {
            return;
        }
        hashes.clone().for_each(|hash| self.table.prefetch_slot(hash));
        hashes.for_each(|hash| self.table.prefetch_entry(hash));
    }

    /// Asks the memory for the key's revision, which a miss reads and a drop raises.
    pub fn prefetch_revision(&self, hash: u64) {
        prefetch(self.doubt.address_of_revision(hash));
    }

    /// Asks the memory for what dropping the key will touch.
    pub fn prefetch_drop(&self, hash: u64) {
        self.table.prefetch_slot(hash);
        self.prefetch_revision(hash);
    }

    /// The reply to `v`, and the time as of which it must be fresh. Comparing the replies themselves finds the entry: none
    /// but the key's holds such a reply.
    #[inline(always)]
    fn find_reply<'s>(&self, shard: &'s Reading<'_>, v: &Variant<'_>) -> Option<(&'s CachedReply, Time)> {
        match shard.first()?.replies() {
            Replies::One(cached) if cached.is(v) => Some((cached, cached.floor())),
            // In parts: who finds it at once need not have the whole in memory.
            _ => self.find_behind(shard, v.view, v.id, v.key, v.tail),
        }
    }

    /// The key has several replies; or the first candidate is another key's, as in one lookup of nine or fewer.
    #[inline(never)]
    fn find_behind<'s>(
        &self,
        shard: &'s Reading<'_>,
        view: u32,
        id: u16,
        key: &[u8],
        tail: &[u8],
    ) -> Option<(&'s CachedReply, Time)> {
        let v = Variant { view, id, key, tail };
        shard.candidates().find_map(|entry| entry.find(&v, || self.variant_hash(&v)))
    }

    #[inline(always)]
    fn servable<'e>(
        &self,
        (cached, floor): (&'e CachedReply, Time),
        now: Time,
        watermark: Time,
    ) -> Result<&'e CachedReply, Absence> {
        // what cannot change first: behind the loads below it would be loaded anew
        let (stamp, epoch, deadline) = (cached.lane(), cached.epoch(), cached.deadline());
        // The clocks before the epoch: the link applies a flush before the PONG behind it, so a clock that has passed
        // the flush never meets the epoch from before.
        let (lane, link) = (self.clocks.lane(stamp), self.clocks.link());
        if epoch != self.epoch.load(Ordering::Acquire) {
            return Err(Absence::Flushed);
        }
        if now >= deadline {
            return Err(Absence::Expired);
        }
        let lane = lane.ok_or(Absence::LaneLost)?;
        let time = if sabotage::on(Rule::Floors) { watermark } else { watermark.max(floor) };
        if lane.min(link) < time {
            return Err(Absence::Behind(MissingProof { time, lane: stamp }));
        }
        Ok(cached)
    }

    /// How many replies about this key are kept, void ones that were not swept yet included.
    pub fn replies_of(&self, key: &[u8]) -> usize {
        let shard = self.table.read(self.hash(key));
        shard.candidates().find(|entry| entry.is_of(key)).map_or(0, |entry| entry.all().count())
    }

    /// Whether and why not a lookup would be served now.
    pub fn explain(&self, v: &Variant<'_>, now: Time, watermark: Time) -> Result<(), Absence> {
        let shard = self.table.read(self.hash(v.key));
        let found = self.find_reply(&shard, v).ok_or(Absence::NotCached)?;
        self.servable(found, now, watermark).map(|_| ())
    }

    /// Announces a read that is about to go upstream.
    pub fn begin(self: &Arc<Self>, hash: u64, v: &Variant<'_>) -> Begin {
        let variant = self.variant_hash(v);
        let revision = self.doubt.revision(hash);
        let epoch = self.epoch.load(Ordering::Acquire);
        let lead = || Arc::new(InFlight { flight: Flight::default(), revision, epoch });
        let flight = match self.flights.entry(flight_key(hash, variant)) {
            // A revoked flight may be joined by nobody: it may have read what is now old.
            sync::MapPlace::Occupied(f) if f.get().revision == revision && f.get().epoch == epoch => {
                return Begin::Join(f.get().clone());
            }
            sync::MapPlace::Occupied(mut f) => {
                let new = lead();
                f.insert(new.clone());
                new
            }
            sync::MapPlace::Vacant(place) => place.insert(lead()).clone(),
        };
        // Release: who counts this token knows that its revision was read before (`begun`).
        let seq = self.seq.fetch_add(1, Ordering::Release);
        Begin::Lead(FillToken { cache: self.clone(), flight, hash, variant, seq })
    }

    /// Stores the reply to `v`, which the token was taken for, if it is still valid. `sent` is when the read was sent. True if
    /// it is now cached.
    pub fn fill(&self, token: FillToken, v: &Variant<'_>, reply: &[u8], times: FillTimes, lane: LaneStamp) -> bool {
        if reply.len() + v.key.len() + v.tail.len() > self.max_entry {
            self.stats.bypasses.count(Bypass::ReplyTooLarge);
            return false;
        }
        let stamp =
            Stamp { deadline: times.deadline, stored: times.stored, lane, epoch: token.flight.epoch, seq: token.seq };
        let cached = CachedReply::new(v, reply, stamp);
        let weight = cached.weight();
        let item = Item { hash: token.hash, variant: token.variant, seq: token.seq };
        if !self.store(&token, v, cached, times.sent) {
            self.stats.revoked.fetch_add(1, Ordering::Relaxed);
            self.events.note(item.hash, times.stored, Event::Refused);
            return false;
        }
        self.stats.fills.fetch_add(1, Ordering::Relaxed);
        self.events.note(item.hash, times.stored, Event::Filled(item.seq));
        self.make_room(item, weight);
        true
    }

    /// Invariant 1: the revision is looked at while the shard is locked.
    fn store(&self, token: &FillToken, v: &Variant<'_>, cached: CachedReply, sent: Time) -> bool {
        let weight = cached.weight();
        let place = self.table.place(token.hash);
        if !self.valid(token) {
            return false;
        }
        let told = self.doubt.told(token.hash);
        if told >= sent {
            cached.raise_floor(told);
        }
        let removed: Vec<CachedReply> = match place {
            EntryPlace::Vacant(place) => {
                place.insert(Entry::of(cached));
                Vec::new()
            }
            EntryPlace::Occupied(mut place) if place.get().is_of(v.key) => {
                let old = match place.get().replies() {
                    Replies::One(old) => self.variant_hash(&old.variant()),
                    Replies::Many(_) => 0,
                };
                let hashes = Hashes { new: token.variant, old };
                place.get_mut().insert(hashes, v, cached, sent).into_iter().collect()
            }
            EntryPlace::Occupied(mut place) => {
                let old = place.insert(Entry::of(cached));
                old.all().cloned().collect()
            }
        };
        self.account(token.hash, weight.cast_signed(), 1);
        self.forget(token.hash, &removed);
        true
    }

    fn valid(&self, token: &FillToken) -> bool {
        if sabotage::on(Rule::Tokens) {
            return true;
        }
        self.doubt.revision(token.hash) == token.flight.revision
            && self.epoch.load(Ordering::Acquire) == token.flight.epoch
    }

    /// The key has changed: its entry goes, its tokens are revoked. True if something was cached.
    pub fn drop_key(&self, hash: u64) -> bool {
        self.doubt.raise(hash);
        let Some(entry) = self.table.remove(hash) else { return false };
        let replies: Vec<CachedReply> = entry.all().cloned().collect();
        self.forget(hash, &replies);
        true
    }

    /// How many tokens have been given. Whatever is stored by one of them is gone after a drop that begins after this.
    pub fn begun(&self) -> u32 {
        self.seq.load(Ordering::Acquire)
    }

    /// Something about the key is told to somebody at `t` without being kept: nobody may be told anything older from
    /// here on (invariant 4). To be called before it is told. The time is noted first and the entry second, so a fill
    /// in between either sees the time or is raised with the entry.
    pub fn observe(&self, hash: u64, t: Time) {
        self.doubt.tell(hash, t);
        if let EntryPlace::Occupied(mut place) = self.table.place(hash) {
            place.get_mut().observe(t);
        }
    }

    /// Everything has changed: one number says so.
    pub fn flush(&self, cause: FlushCause) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.stats.flushes[cause as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Voids everything without calling it a flush: for a reply that cannot wait for a link that is being lost.
    pub fn void(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Shows the replies that were served since this was last called for them, among those in the next `places` places of the
    /// table. True: all have been looked at, and the cursor begins anew. `see` runs under a shard's lock.
    pub fn take_used(&self, cursor: &mut Cursor, places: usize, mut see: impl FnMut(&CachedReply)) -> bool {
        let mut look = |cached: &CachedReply| {
            if cached.take_used() {
                see(cached);
            }
        };
        self.table.scan(cursor, places, |entry| match entry.replies() {
            Replies::One(cached) => look(cached),
            Replies::Many(_) => entry.all().for_each(&mut look),
        })
    }

    /// Changes whenever many entries became void at once.
    pub fn deaths(&self) -> (u32, u64) {
        (self.epoch(), self.clocks.lanes_closed())
    }

    /// Bytes accounted for.
    pub fn used(&self) -> u64 {
        at_least_zero(self.used.load(Ordering::Relaxed))
    }

    /// Keys held, void ones that were not swept yet included.
    pub fn keys(&self) -> usize {
        self.table.len()
    }

    /// Replies held.
    pub fn replies(&self) -> u64 {
        self.shares.iter().map(Share::replies).sum()
    }

    /// Flights on their way.
    #[cfg_attr(feature = "program", expect(dead_code, reason = "tests count them"))]
    pub fn flights(&self) -> usize {
        self.flights.len()
    }

    /// The largest reply that is kept, in bytes.
    pub fn max_entry(&self) -> usize {
        self.max_entry
    }

    /// The budget in bytes.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Number of the present epoch.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }
}

/// Asks for one cache line. Any address will do.
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and faults on no address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The three times of a fill.
#[derive(Clone, Copy, Debug)]
pub struct FillTimes {
    /// When the read was sent: the PTTL counts from here.
    pub sent: Time,
    /// When its reply arrived.
    pub stored: Time,
    /// When the key ends.
    pub deadline: Time,
}

#[cfg(test)]
mod tests;
