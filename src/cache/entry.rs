//! The replies kept of one key, one for each command that reads it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ptr::NonNull;

use bytes::Bytes;
use triomphe::ThinArc;

use crate::clock::LaneStamp;
use crate::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use crate::time::Time;

/// A cached read's identity: who asks (`view`: user, database, protocol), which command (`id`), which key, and the raw
/// bytes of the request behind the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant<'a> {
    /// Interned (user, database, protocol).
    pub view: u32,
    /// The command, as numbered by the command table.
    pub id: u16,
    /// The key's bytes.
    pub key: &'a [u8],
    /// The request's bytes after the key argument, exactly as sent.
    pub tail: &'a [u8],
}

/// A 64-bit hash is its own hash.
#[derive(Default)]
pub struct HashAsIs(u64);

impl Hasher for HashAsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = (self.0 << 8) | u64::from(*b);
        }
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
    fn write_u32(&mut self, n: u32) {
        self.0 = u64::from(n) | (u64::from(n) << 32);
    }
}

/// Build-hasher of [`HashAsIs`].
pub type HashedAlready = BuildHasherDefault<HashAsIs>;

/// Forty-eight bytes: with the reply to a small GET, one allocation of 160.
struct Header {
    stored: Time,
    /// A hit must be fresh as of this time: something newer about the key has been seen by somebody.
    floor: AtomicU64,
    /// When the reply ends: see [`after`].
    deadline: u32,
    lane: LaneStamp,
    epoch: u32,
    seq: u32,
    view: u32,
    key_len: u32,
    tail_len: u32,
    id: u16,
    /// Hits since the eviction last looked, up to [`CachedReply::FREQ_MAX`]; and [`USED`].
    freq: AtomicU8,
}

/// Deadlines are kept in steps of 2^16 ns (66 µs) after the arrival of the reply: never late, at most a step early, and
/// after at most 78 hours.
const STEP: u32 = 16;
const NO_DEADLINE: u32 = u32::MAX;

fn after(stored: Time, deadline: Time) -> u32 {
    match deadline {
        Time::NEVER => NO_DEADLINE,
        _ => u32::try_from(deadline.0.saturating_sub(stored.0) >> STEP).unwrap_or(u32::MAX).min(NO_DEADLINE - 1),
    }
}

/// Times and origin of a reply, which a fill knows beside the bytes.
#[derive(Clone, Copy)]
pub struct Stamp {
    /// From here on the key may be gone.
    pub deadline: Time,
    /// When the reply arrived here: it was true on the server some time before.
    pub stored: Time,
    /// The lane that carries the key's registration.
    pub lane: LaneStamp,
    /// The cache's epoch when the token was given.
    pub epoch: u32,
    /// Unique among fills (modulo 2^32).
    pub seq: u32,
}

/// One cached reply: header, key, request tail and reply in one allocation of its own (a slice of the socket's buffer
/// would pin all of it).
#[derive(Clone)]
#[repr(transparent)]
pub struct CachedReply(ThinArc<Header, u8>);

/// Beside the hits: there was one since [`CachedReply::take_used`] last looked. Above the count, so that a hit finds both as they are to be
/// by one comparison.
const USED: u8 = CachedReply::FREQ_MAX + 1;
const SATURATED: u8 = USED | CachedReply::FREQ_MAX;

/// Bytes that mimalloc takes for `n` bytes: four sizes for each doubling.
fn allocated(n: usize) -> usize {
    n.next_multiple_of(1 << ((n - 1).ilog2() - 2).max(3))
}

/// Largest scratch buffer that a thread keeps between two calls of `CachedReply::new`.
const JOINED_MAX: usize = 64 * 1024;
/// A slot of the table: pointer and control byte, about half of the slots being empty.
const SLOT: usize = 2 * 9;
/// A place in an eviction queue, and half of one among those it remembers.
const QUEUED: usize = 24;

impl CachedReply {
    /// Hits beyond this many make no difference to the eviction.
    pub const FREQ_MAX: u8 = 3;

    /// Copies everything into place.
    #[expect(clippy::cast_possible_truncation, reason = "`Cache::new` keeps entries below 4 GiB")]
    pub fn new(variant: &Variant<'_>, reply: &[u8], stamp: Stamp) -> CachedReply {
        let header = Header {
            stored: stamp.stored,
            floor: AtomicU64::new(0),
            deadline: after(stamp.stored, stamp.deadline),
            lane: stamp.lane,
            epoch: stamp.epoch,
            seq: stamp.seq,
            view: variant.view,
            key_len: variant.key.len() as u32,
            tail_len: variant.tail.len() as u32,
            id: variant.id,
            freq: AtomicU8::new(0),
        };
        thread_local! {
            static JOINED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        JOINED.with_borrow_mut(|joined| {
            joined.clear();
            [variant.key, variant.tail, reply].into_iter().for_each(|part| joined.extend_from_slice(part));
            let cached = CachedReply(ThinArc::from_header_and_slice(header, joined));
            joined.shrink_to(JOINED_MAX);
            cached
        })
    }

    fn header(&self) -> &Header {
        &self.0.header.header
    }

    /// The key's bytes.
    pub fn key(&self) -> &[u8] {
        &self.0.slice[..self.header().key_len as usize]
    }

    /// The reply's bytes, as the server sent them.
    pub fn reply(&self) -> &[u8] {
        let h = self.header();
        &self.0.slice[h.key_len as usize + h.tail_len as usize..]
    }

    /// The reply without a copy: it stays alive for as long as the bytes do.
    pub fn reply_bytes(&self) -> Bytes {
        struct Reply(CachedReply);
        impl AsRef<[u8]> for Reply {
            fn as_ref(&self) -> &[u8] {
                self.0.reply()
            }
        }
        Bytes::from_owner(Reply(self.clone()))
    }

    /// Asks for the cache lines that a lookup reads: the header, and the key with the reply's begin behind it.
    fn prefetch(&self) {
        // Not by way of a reference to the header, which would read the length behind it.
        let start: *const u8 = self.0.as_ptr().cast();
        [0, 64, 128].into_iter().for_each(|line| super::prefetch(start.wrapping_add(line)));
    }

    /// Whether this is the reply to that very read.
    #[inline(always)]
    pub fn is(&self, v: &Variant<'_>) -> bool {
        let h = self.header();
        if h.id != v.id || h.view != v.view || h.tail_len as usize != v.tail.len() {
            return false;
        }
        same(self.key(), v.key) && (v.tail.is_empty() || self.0.slice[v.key.len()..].starts_with(v.tail))
    }

    /// When it arrived.
    pub fn stored(&self) -> Time {
        self.header().stored
    }
    /// When it must be gone, at the latest.
    pub fn deadline(&self) -> Time {
        let h = self.header();
        if h.deadline == NO_DEADLINE { Time::NEVER } else { Time(h.stored.0 + (u64::from(h.deadline) << STEP)) }
    }
    /// Its lane.
    pub fn lane(&self) -> LaneStamp {
        self.header().lane
    }
    /// Its epoch.
    pub fn epoch(&self) -> u32 {
        self.header().epoch
    }
    /// Its number.
    pub fn seq(&self) -> u32 {
        self.header().seq
    }
    /// The time as of which a hit must be fresh whatever the session asks.
    pub fn floor(&self) -> Time {
        Time(self.header().floor.load(Ordering::Relaxed))
    }
    /// Raises the floor.
    pub fn raise_floor(&self, t: Time) {
        self.header().floor.fetch_max(t.0, Ordering::Relaxed);
    }

    /// Notes a hit. Mostly a read: the count stops at a small number.
    pub fn touch(&self) {
        let freq = &self.header().freq;
        let n = freq.load(Ordering::Relaxed);
        if n < SATURATED {
            freq.store(((n | USED) + 1).min(SATURATED), Ordering::Relaxed);
        }
    }

    /// Whether there was a hit since this was last asked. (One that comes at the same moment may be missed, or seen twice.)
    pub fn take_used(&self) -> bool {
        let freq = &self.header().freq;
        let n = freq.load(Ordering::Relaxed);
        if n & USED != 0 {
            freq.store(n & !USED, Ordering::Relaxed);
        }
        n & USED != 0
    }

    /// Hits lately; and counts one of them as forgotten.
    pub fn cool(&self) -> u8 {
        let freq = &self.header().freq;
        let n = freq.load(Ordering::Relaxed);
        let hits = n & Self::FREQ_MAX;
        freq.store(n & USED | hits.saturating_sub(1), Ordering::Relaxed);
        hits
    }

    /// Bytes it costs: its allocation, its place in the table and in the eviction's queue.
    pub fn weight(&self) -> u64 {
        let own = size_of::<Header>() + 16 + self.0.slice.len();
        (allocated(own) + SLOT + QUEUED) as u64
    }
}

/// Whether two keys are the same. Most have 8 to 16 bytes: two words, that may overlap, cost less than a call of `memcmp`.
#[inline(always)]
fn same(a: &[u8], b: &[u8]) -> bool {
    match (a.len(), a.first_chunk::<8>(), b.first_chunk::<8>(), a.last_chunk::<8>(), b.last_chunk::<8>()) {
        (len, ..) if len != b.len() => false,
        (8..=16, Some(begin_a), Some(begin_b), Some(end_a), Some(end_b)) => begin_a == begin_b && end_a == end_b,
        _ => a == b,
    }
}

/// All cached replies of one key: one pointer, to the reply or to [`Many`] of them, as its lowest bit says. (About half
/// the slots of the table are empty, so a word less in each is two words less a key.)
pub struct Entry(NonNull<u8>);

/// The replies that an entry points to.
pub enum Replies<'a> {
    /// Nearly every key is read by one command.
    One(&'a CachedReply),
    /// Several commands, users, databases or protocols.
    Many(&'a Many),
}

const MANY: usize = 1;

// The pointer's lowest bit is free in both cases, and a `CachedReply` is nothing but the pointer: `replies` relies on it.
const _: () = assert!(align_of::<Many>() > 1 && align_of::<Header>() > 1);
const _: () = assert!(
    size_of::<CachedReply>() == size_of::<NonNull<u8>>() && align_of::<CachedReply>() == align_of::<NonNull<u8>>()
);
const _: () = assert!(size_of::<Option<CachedReply>>() == size_of::<CachedReply>(), "a CachedReply is never null");

const fn may_go_to_other_threads<T: Send + Sync>() {}
const _: () = may_go_to_other_threads::<CachedReply>();
const _: () = may_go_to_other_threads::<Many>();

// SAFETY: it is a `CachedReply` or a `Box<Many>`, and both may go to other threads, as is asserted above.
unsafe impl Send for Entry {}
// SAFETY: as above.
unsafe impl Sync for Entry {}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.is_many() {
            // SAFETY: the box that `of_many` let go of; nobody uses it after this.
            drop(unsafe { Box::from_raw(self.many_ptr()) });
        } else {
            // SAFETY: the pointer that `of` let go of; nobody uses it after this.
            drop(unsafe { ThinArc::<Header, u8>::from_raw(self.0.as_ptr().cast()) });
        }
    }
}

impl Entry {
    /// An entry of one reply.
    pub fn of(cached: CachedReply) -> Entry {
        let at = ThinArc::into_raw(cached.0).cast_mut().cast();
        // SAFETY: an `Arc` is never null.
        Entry(unsafe { NonNull::new_unchecked(at) })
    }

    fn of_many(many: Box<Many>) -> Entry {
        let at = Box::into_raw(many).cast::<u8>().map_addr(|at| at | MANY);
        // SAFETY: a box is never null.
        Entry(unsafe { NonNull::new_unchecked(at) })
    }

    fn is_many(&self) -> bool {
        self.0.addr().get() & MANY != 0
    }

    fn many_ptr(&self) -> *mut Many {
        self.0.as_ptr().map_addr(|at| at & !MANY).cast()
    }

    /// The replies that it holds.
    pub fn replies(&self) -> Replies<'_> {
        if self.is_many() {
            // SAFETY: it came from a box and lives as long as the entry.
            Replies::Many(unsafe { &*self.many_ptr() })
        } else {
            // SAFETY: `CachedReply` is nothing but a `ThinArc`, which is nothing but this pointer.
            Replies::One(unsafe { &*(&raw const self.0).cast::<CachedReply>() })
        }
    }

    fn many_mut(&mut self) -> Option<&mut Many> {
        // SAFETY: as above, and the entry is borrowed mutably.
        self.is_many().then(|| unsafe { &mut *self.many_ptr() })
    }
}

/// Several replies about one key.
pub struct Many {
    /// By the hash of their identity behind the key. A collision replaces, it never answers.
    by_variant: HashMap<u32, CachedReply, HashedAlready>,
    /// When something about this key last arrived; every reply but that very one must be fresh as of then.
    latest: Time,
    latest_seq: Option<u32>,
}

impl Entry {
    /// The reply to `variant`, and the time as of which it must be fresh.
    pub fn find(&self, variant: &Variant<'_>, variant_hash: impl FnOnce() -> u32) -> Option<(&CachedReply, Time)> {
        match self.replies() {
            Replies::One(cached) => cached.is(variant).then(|| (cached, cached.floor())),
            Replies::Many(many) => {
                let cached = many.by_variant.get(&variant_hash()).filter(|n| n.is(variant))?;
                let latest = if many.latest_seq == Some(cached.seq()) { Time::ZERO } else { many.latest };
                Some((cached, latest.max(cached.floor())))
            }
        }
    }

    /// Asks for the memory that a lookup reads.
    #[cfg_attr(feature = "shuttle", expect(dead_code, reason = "the explorer's table does not ask for memory ahead"))]
    pub fn prefetch(&self) {
        match self.replies() {
            Replies::One(cached) => cached.prefetch(),
            Replies::Many(many) => super::prefetch((&raw const *many).cast()),
        }
    }

    /// The key that all its replies are about. In the table it has at least one.
    pub fn key(&self) -> &[u8] {
        match self.replies() {
            Replies::One(cached) => cached.key(),
            Replies::Many(many) => many.by_variant.values().next().map_or(&[], CachedReply::key),
        }
    }

    /// Whether this is the entry of `key` (a full 64-bit hash may collide).
    pub fn is_of(&self, key: &[u8]) -> bool {
        same(self.key(), key)
    }

    /// Every reply.
    pub fn all(&self) -> Box<dyn Iterator<Item = &CachedReply> + '_> {
        match self.replies() {
            Replies::One(cached) => Box::new(std::iter::once(cached)),
            Replies::Many(many) => Box::new(many.by_variant.values()),
        }
    }

    /// The cached reply numbered `seq`.
    pub fn by_seq(&self, variant_hash: u32, seq: u32) -> Option<&CachedReply> {
        let cached = match self.replies() {
            Replies::One(cached) => Some(cached),
            Replies::Many(many) => many.by_variant.get(&variant_hash),
        };
        cached.filter(|n| n.seq() == seq)
    }

    /// The latest time at which anything of this was told to somebody.
    pub fn latest(&self) -> Time {
        match self.replies() {
            Replies::One(cached) => cached.stored().max(cached.floor()),
            Replies::Many(many) => many.by_variant.values().map(CachedReply::floor).fold(many.latest, Time::max),
        }
    }

    /// Somebody was told something newer about the key than these replies may know.
    pub fn observe(&mut self, t: Time) {
        if let Replies::One(cached) = self.replies() {
            cached.raise_floor(t);
        }
        if let Some(many) = self.many_mut() {
            many.latest = many.latest.max(t);
            many.latest_seq = None;
        }
    }

    /// Adds a reply whose read was sent at `sent`. Returns what it replaced.
    ///
    /// Replies of one key must not contradict each other in time: the new one may be older than what arrived while it
    /// was on its way (its floor), and whatever was there may be older than the new one (`latest`).
    pub fn insert(
        &mut self,
        hashes: Hashes,
        variant: &Variant<'_>,
        cached: CachedReply,
        sent: Time,
    ) -> Option<CachedReply> {
        if let Replies::One(old) = self.replies() {
            let old = old.clone();
            if old.is(variant) {
                cached.raise_floor(old.floor());
                *self = Entry::of(cached);
                return Some(old);
            }
            let latest = old.stored().max(old.floor());
            let by_variant = [(hashes.old, old)].into_iter().collect();
            *self = Entry::of_many(Box::new(Many { latest, latest_seq: None, by_variant }));
        }
        let many = self.many_mut()?;
        if many.latest >= sent {
            cached.raise_floor(many.latest);
        }
        many.latest = many.latest.max(cached.stored());
        many.latest_seq = Some(cached.seq());
        many.by_variant.insert(hashes.new, cached)
    }

    /// Removes one reply. True if none is left.
    pub fn remove(&mut self, variant_hash: u32) -> (Option<CachedReply>, bool) {
        match self.many_mut() {
            None => (self.all().next().cloned(), true),
            Some(many) => (many.by_variant.remove(&variant_hash), many.by_variant.is_empty()),
        }
    }

    /// Keeps what `keep` says; returns the removed replies and whether none is left.
    pub fn retain(&mut self, keep: impl Fn(&CachedReply) -> bool) -> (Vec<CachedReply>, bool) {
        match self.many_mut() {
            None => {
                let dead: Vec<CachedReply> = self.all().filter(|n| !keep(n)).cloned().collect();
                let empty = !dead.is_empty();
                (dead, empty)
            }
            Some(many) => {
                let dead: Vec<u32> = many.by_variant.iter().filter(|(_, n)| !keep(n)).map(|(h, _)| *h).collect();
                let removed = dead.iter().filter_map(|h| many.by_variant.remove(h)).collect();
                (removed, many.by_variant.is_empty())
            }
        }
    }
}

/// The variant hashes [`Entry::insert`] needs: of the new reply, and of the single one that may be there.
#[derive(Clone, Copy)]
pub struct Hashes {
    /// Hash of the reply to be added.
    pub new: u32,
    /// Hash of the reply that is there alone.
    pub old: u32,
}

impl CachedReply {
    /// Its identity, to be hashed again when a second reply joins it.
    pub fn variant(&self) -> Variant<'_> {
        let h = self.header();
        let (key, rest) = self.0.slice.split_at(h.key_len as usize);
        Variant { view: h.view, id: h.id, key, tail: &rest[..h.tail_len as usize] }
    }
}
