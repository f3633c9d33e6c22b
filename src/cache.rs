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
//! Revisions and told times are kept in fixed tables by hash. A collision revokes a fill that was innocent, or makes a
//! hit wait for a PING: it costs time, never truth.

pub mod entry;
pub mod events;
pub mod eviction;
pub mod fifo;
pub mod flight;
#[cfg_attr(feature = "shuttle", path = "cache/table/explored.rs")]
pub mod table;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError};

use crate::bypass::Bypasses;
use crate::clock::{Clocks, LaneStamp};
use crate::numbers::{at_least_zero, difference, index, low_half};
use crate::sabotage::{self, Rule};
use crate::sync::atomic::{AtomicI64, AtomicU32, AtomicU64 as SharedU64, Ordering};
use crate::sync::{self, DashMap, Mutex, MutexGuard, size};
use crate::time::Time;
use entry::{Entry, Hashes, IdentityState, Node, Replies, Stamp, Variant};
use events::{Event, Events};
use eviction::{Item, Probe, Queues};
use flight::Flight;
use table::{Cursor, Place, Reading, Table};

const SHARDS: usize = size(64, 2);
/// A cache whose shares would have fewer bytes has fewer of them: so it evicts nearly what one queue for all would evict.
const SHARE_MIN: u64 = 256 << 10;
const REVISIONS: usize = size(1 << 16, 4);
/// A cache smaller than this is in the processor's own: asking ahead would cost more than it hides.
const FAR: u64 = 4 << 20;

/// Why everything was flushed; label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushCause {
    /// The invalidation link was lost.
    LinkLost,
    /// The server reported that everything changed (FLUSHALL, FLUSHDB …).
    Invalidated,
    /// A command through this proxy changed everything.
    Command,
    /// An operator said NEARSIDE FLUSH.
    Admin,
    /// Somebody swapped databases behind our back.
    SwapDb,
    /// Users or their rights have changed.
    Acl,
    /// The server has become a replica or a master.
    Role,
    /// The server's wall clock has been set forward, so that keys end sooner than was said.
    Clock,
    /// A task has panicked, perhaps with an effect on the cache half done.
    Panic,
}

/// Every cause, in the order of [`Stats::flushes`].
pub const FLUSH_CAUSES: [(FlushCause, &str); 9] = [
    (FlushCause::LinkLost, "link_lost"),
    (FlushCause::Invalidated, "invalidated"),
    (FlushCause::Command, "command"),
    (FlushCause::Admin, "admin"),
    (FlushCause::SwapDb, "swapdb"),
    (FlushCause::Acl, "acl"),
    (FlushCause::Role, "role"),
    (FlushCause::Clock, "clock"),
    (FlushCause::Panic, "panic"),
];

impl FlushCause {
    /// Its word.
    pub fn name(self) -> &'static str {
        FLUSH_CAUSES[self as usize].1
    }
}

/// Counters; all of them only grow.
#[derive(Default, Debug)]
pub struct Stats {
    /// Reads answered from here.
    pub hits: AtomicU64,
    /// Cacheable reads that went upstream.
    pub misses: AtomicU64,
    /// Reads in which the cache took no part, by reason.
    pub bypasses: Bypasses,
    /// Reads that waited for a flight, or shared the reply of one of their own session's.
    pub joined: AtomicU64,
    /// Replies stored.
    pub fills: AtomicU64,
    /// Replies not stored because their token was no longer valid.
    pub revoked: AtomicU64,
    /// Keys the server reported.
    pub invalidations: AtomicU64,
    /// Keys dropped because they were written through this proxy.
    pub dropped: AtomicU64,
    /// Replies thrown out to keep the budget.
    pub evictions: AtomicU64,
    /// Flushes by cause.
    pub flushes: [AtomicU64; FLUSH_CAUSES.len()],
}

/// The cache.
pub struct Cache {
    table: Table,
    flights: DashMap<u64, Arc<InFlight>, IdentityState>,
    revisions: Box<[AtomicU32]>,
    told: Box<[SharedU64]>,
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
    /// What happened so far.
    pub stats: Stats,
    /// What happened lately, key by key.
    pub events: Events,
}

/// A part of the cache with an eviction of its own.
#[derive(Default)]
struct Share {
    queues: Mutex<Queues>,
    replies: AtomicI64,
    bytes: AtomicI64,
}

impl Share {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replies(&self) -> u64 {
        at_least_zero(self.replies.load(Ordering::Relaxed))
    }
}

/// How many there are: a power of two.
fn shares(budget: u64) -> usize {
    1 << (budget / SHARE_MIN).clamp(1, SHARDS as u64).ilog2()
}

/// A flight, and the state of the key when it started.
pub struct InFlight {
    flight: Flight,
    revision: u32,
    epoch: u32,
}

impl InFlight {
    /// See [`Flight::poll_landed`].
    pub fn poll_landed(&self, cx: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        self.flight.poll_landed(cx)
    }
}

/// What a lookup found.
pub enum Lookup<R> {
    /// What the closure made of the reply.
    Hit(R),
    /// A reply is there, but not yet proven fresh enough.
    Behind(Need),
    /// Nothing to serve.
    Miss,
}

/// What must be proven before a reply may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
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
        prefetch((&raw const self.cache.told[index(self.hash) % REVISIONS]).cast());
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
    Behind(Need),
}

impl Cache {
    /// A cache of `budget` bytes, overhead included, that keeps no reply above `max_entry` bytes.
    pub fn new(budget: u64, max_entry: usize) -> Cache {
        let hasher = crate::chance::hash_keys();
        Cache {
            table: Table::new(hasher.clone(), SHARDS),
            flights: DashMap::with_hasher_and_shard_amount(IdentityState::default(), SHARDS),
            revisions: (0..REVISIONS).map(|_| AtomicU32::new(0)).collect(),
            told: (0..REVISIONS).map(|_| SharedU64::new(0)).collect(),
            epoch: AtomicU32::new(1),
            seq: AtomicU32::new(1),
            shares: (0..shares(budget)).map(|_| Share::default()).collect(),
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
        hit: impl FnOnce(&Node) -> R,
    ) -> Lookup<R> {
        let shard = self.table.read(hash);
        let Some(found) = self.find(&shard, v) else { return Lookup::Miss };
        match self.judge(found, now, watermark) {
            Ok(node) => {
                node.touch();
                Lookup::Hit(hit(node))
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
        prefetch((&raw const *self.revision(hash)).cast());
    }

    /// Asks the memory for what dropping the key will touch.
    pub fn prefetch_drop(&self, hash: u64) {
        self.table.prefetch_slot(hash);
        self.prefetch_revision(hash);
    }

    /// The reply to `v`, and the time as of which it must be fresh. Comparing the replies themselves finds the entry: none
    /// but the key's holds such a reply.
    #[inline(always)]
    fn find<'s>(&self, shard: &'s Reading<'_>, v: &Variant<'_>) -> Option<(&'s Node, Time)> {
        match shard.first()?.replies() {
            Replies::One(node) if node.is(v) => Some((node, node.floor())),
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
    ) -> Option<(&'s Node, Time)> {
        let v = Variant { view, id, key, tail };
        shard.candidates().find_map(|entry| entry.find(&v, || self.variant_hash(&v)))
    }

    #[inline(always)]
    fn judge<'e>(&self, (node, floor): (&'e Node, Time), now: Time, watermark: Time) -> Result<&'e Node, Absence> {
        // what cannot change first: behind the loads below it would be loaded anew
        let (stamp, epoch, deadline) = (node.lane(), node.epoch(), node.deadline());
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
            return Err(Absence::Behind(Need { time, lane: stamp }));
        }
        Ok(node)
    }

    /// How many replies about this key are kept, void ones that were not swept yet included.
    pub fn replies_of(&self, key: &[u8]) -> usize {
        let shard = self.table.read(self.hash(key));
        shard.candidates().find(|entry| entry.is_of(key)).map_or(0, |entry| entry.nodes().count())
    }

    /// Whether and why not a lookup would be served now.
    pub fn explain(&self, v: &Variant<'_>, now: Time, watermark: Time) -> Result<(), Absence> {
        let shard = self.table.read(self.hash(v.key));
        let found = self.find(&shard, v).ok_or(Absence::NotCached)?;
        self.judge(found, now, watermark).map(|_| ())
    }

    /// Announces a read that is about to go upstream.
    pub fn begin(self: &Arc<Self>, hash: u64, v: &Variant<'_>) -> Begin {
        let variant = self.variant_hash(v);
        let revision = self.revision(hash).load(Ordering::Acquire);
        let epoch = self.epoch.load(Ordering::Acquire);
        let lead = || Arc::new(InFlight { flight: Flight::default(), revision, epoch });
        let flight = match self.flights.entry(flight_key(hash, variant)) {
            // A revoked flight may be joined by nobody: it may have read what is now old.
            sync::Place::Occupied(f) if f.get().revision == revision && f.get().epoch == epoch => {
                return Begin::Join(f.get().clone());
            }
            sync::Place::Occupied(mut f) => {
                let new = lead();
                f.insert(new.clone());
                new
            }
            sync::Place::Vacant(place) => place.insert(lead()).clone(),
        };
        // Release: who counts this token knows that its revision was read before (`begun`).
        let seq = self.seq.fetch_add(1, Ordering::Release);
        Begin::Lead(FillToken { cache: self.clone(), flight, hash, variant, seq })
    }

    /// Stores the reply to `v`, which the token was taken for, if it is still valid. `sent` is when the read was sent. True if
    /// it is now cached.
    pub fn fill(&self, token: FillToken, v: &Variant<'_>, reply: &[u8], times: FillTimes, lane: LaneStamp) -> bool {
        if reply.len() + v.key.len() + v.tail.len() > self.max_entry {
            return false;
        }
        let stamp =
            Stamp { deadline: times.deadline, stored: times.stored, lane, epoch: token.flight.epoch, seq: token.seq };
        let node = Node::new(v, reply, stamp);
        let weight = node.weight();
        let item = Item { hash: token.hash, variant: token.variant, seq: token.seq };
        if !self.store(&token, v, node, times.sent) {
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
    fn store(&self, token: &FillToken, v: &Variant<'_>, node: Node, sent: Time) -> bool {
        let weight = node.weight();
        let place = self.table.place(token.hash);
        if !self.valid(token) {
            return false;
        }
        let told = self.told(token.hash);
        if told >= sent {
            node.raise_floor(told);
        }
        let removed: Vec<Node> = match place {
            Place::Vacant(place) => {
                place.insert(Entry::of(node));
                Vec::new()
            }
            Place::Occupied(mut place) if place.get().is_of(v.key) => {
                let old = match place.get().replies() {
                    Replies::One(old) => self.variant_hash(&old.variant()),
                    Replies::Many(_) => 0,
                };
                let hashes = Hashes { new: token.variant, old };
                place.get_mut().insert(hashes, v, node, sent).into_iter().collect()
            }
            Place::Occupied(mut place) => {
                let old = place.insert(Entry::of(node));
                old.nodes().cloned().collect()
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
        self.revision(token.hash).load(Ordering::Acquire) == token.flight.revision
            && self.epoch.load(Ordering::Acquire) == token.flight.epoch
    }

    fn told(&self, hash: u64) -> Time {
        Time(self.told[index(hash) % REVISIONS].load(Ordering::Acquire))
    }

    fn tell(&self, hash: u64, t: Time) {
        self.told[index(hash) % REVISIONS].fetch_max(t.0, Ordering::AcqRel);
    }

    fn revision(&self, hash: u64) -> &AtomicU32 {
        &self.revisions[index(hash) % REVISIONS]
    }

    /// The key has changed: its entry goes, its tokens are revoked. True if something was cached.
    pub fn drop_key(&self, hash: u64) -> bool {
        self.revision(hash).fetch_add(1, Ordering::AcqRel);
        let Some(entry) = self.table.remove(hash) else { return false };
        let nodes: Vec<Node> = entry.nodes().cloned().collect();
        self.forget(hash, &nodes);
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
        self.tell(hash, t);
        if let Place::Occupied(mut place) = self.table.place(hash) {
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

    fn account(&self, hash: u64, bytes: i64, replies: i64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        let share = self.share(hash);
        share.bytes.fetch_add(bytes, Ordering::Relaxed);
        share.replies.fetch_add(replies, Ordering::Relaxed);
    }

    fn share(&self, n: u64) -> &Share {
        &self.shares[self.number(n)]
    }

    fn number(&self, n: u64) -> usize {
        index(n) & (self.shares.len() - 1)
    }

    fn forget(&self, hash: u64, nodes: &[Node]) {
        if !nodes.is_empty() {
            let bytes: u64 = nodes.iter().map(Node::weight).sum();
            self.account(hash, -bytes.cast_signed(), -difference(nodes.len()));
        }
    }

    /// Queues the new reply for eviction and evicts until the budget is kept. Lock order: queue, then shard.
    fn make_room(&self, item: Item, weight: u64) {
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
        let (own, other) = (self.number(item.hash), self.number(u64::from(item.seq)));
        let bytes = |n: usize| self.shares[n].bytes.load(Ordering::Relaxed);
        if bytes(other) > bytes(own) { other } else { own }
    }

    fn evict_from(&self, share: &Share) -> bool {
        let mut queues = share.queues();
        let Some(victim) = queues.victim(|i| self.probe(i, true)) else { return false };
        if let Place::Occupied(mut place) = self.table.place(victim.hash)
            && place.get().by_seq(victim.variant, victim.seq).is_some()
        {
            let told = place.get().latest();
            let (node, empty) = place.get_mut().remove(victim.variant);
            if empty {
                self.tell(victim.hash, told);
                place.remove();
            }
            self.forget(victim.hash, node.as_slice());
            self.stats.evictions.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    fn probe(&self, item: &Item, cool: bool) -> Probe {
        let shard = self.table.read(item.hash);
        let its = |node: &&Node| self.hash(node.key()) == item.hash;
        match shard.candidates().find_map(|entry| entry.by_seq(item.variant, item.seq).filter(its)) {
            None => Probe::Gone,
            // What a flush or a lane's death has made void goes first.
            Some(node) if !self.alive(node) => Probe::Live { weight: node.weight(), hits: 0 },
            Some(node) => Probe::Live { weight: node.weight(), hits: if cool { node.cool() } else { 0 } },
        }
    }

    fn alive(&self, node: &Node) -> bool {
        node.epoch() == self.epoch.load(Ordering::Acquire) && self.clocks.lane(node.lane()).is_some()
    }

    /// Gives back the memory of what can never be served again. Locks one shard at a time; meant for a thread of its own.
    pub fn sweep(&self, now: Time) {
        self.table.retain(|entry| {
            let told = entry.latest();
            let (removed, empty) = entry.retain(|node| self.alive(node) && now < node.deadline());
            if let Some(first) = removed.first() {
                let hash = self.hash(first.key());
                if empty {
                    self.tell(hash, told);
                }
                self.forget(hash, &removed);
            }
            !empty
        });
        for share in &self.shares {
            share.queues().compact(index(share.replies()), |i| self.probe(i, false));
        }
    }

    /// Shows the replies that were served since this was last called for them, among those in the next `places` places of the
    /// table. True: all have been looked at, and the cursor begins anew. `see` runs under a shard's lock.
    pub fn take_used(&self, cursor: &mut Cursor, places: usize, mut see: impl FnMut(&Node)) -> bool {
        let mut look = |node: &Node| {
            if node.take_used() {
                see(node);
            }
        };
        self.table.scan(cursor, places, |entry| match entry.replies() {
            Replies::One(node) => look(node),
            Replies::Many(_) => entry.nodes().for_each(&mut look),
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
