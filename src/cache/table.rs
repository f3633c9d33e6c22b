//! The sharded table of entries: a [`DashMap`] whose key is the entry itself, found by the hash of its key. A slot is a
//! pointer and a byte with seven bits of the hash; all other bits are got from the key again, where the entry's memory is
//! read anyway.
//!
//! Invariants
//! 1. An entry has the hash it was put in with for as long as it is there: whoever changes it leaves it a reply, and a reply
//!    about a key of that hash. What loses its last reply is taken out before the shard is unlocked.
//! 2. No two entries have the same hash: one is put only where [`Table::place`] found none, or in place of the one it found.
//! 3. No entry's memory is read but with its shard locked. Asking for memory ahead is no reading.

use std::hash::{BuildHasher, Hash, Hasher};
use std::mem;

use dashmap::{DashMap, RwLock, RwLockReadGuard, RwLockWriteGuard, SharedValue};
use hashbrown::raw::{Bucket, RawTable};
use smallvec::SmallVec;

use super::entry::Entry;
use crate::numbers::index;

type TableSlot = (Entry, SharedValue<()>);
type TableSlots = RawTable<TableSlot>;

/// Entries asked of the memory at a time when a shard grows: more than a processor fetches at once.
const AHEAD: usize = 32;
/// Entries asked of the memory for one hash. Its seven bits are those of another one in eight lookups or fewer, and of two
/// others hardly ever.
const CANDIDATES: usize = 2;

/// The entries, by the hash `S` makes of their keys.
pub struct Table<S = ahash::RandomState>(DashMap<Entry, (), S>);

impl<S: BuildHasher + Clone> Table<S> {
    /// Empty.
    pub fn new(hasher: S, shards: usize) -> Self {
        Table(DashMap::with_hasher_and_shard_amount(hasher, shards))
    }

    fn hash(&self, entry: &Entry) -> u64 {
        self.0.hasher().hash_one(entry.key())
    }

    #[inline(always)]
    fn shard(&self, hash: u64) -> &RwLock<TableSlots> {
        &self.0.shards()[self.0.determine_shard(index(hash))]
    }

    /// The shard of this hash, locked against changes.
    #[inline(always)]
    pub fn read(&self, hash: u64) -> Reading<'_> {
        Reading { slots: self.shard(hash).read(), hash }
    }

    /// Takes the entry of this hash out.
    pub fn remove(&self, hash: u64) -> Option<Entry> {
        let mut slots = self.shard(hash).write();
        slots.remove_entry(hash, |(entry, _)| self.hash(entry) == hash).map(|(entry, _)| entry)
    }

    /// Where the entry of this hash is or could be, its shard locked for everybody else.
    pub fn place(&self, hash: u64) -> EntryPlace<'_, S> {
        let slots = self.shard(hash).write();
        match slots.find(hash, |(entry, _)| self.hash(entry) == hash) {
            Some(at) => EntryPlace::Occupied(Occupied { slots, at }),
            None => EntryPlace::Vacant(Vacant { slots, hash, table: self }),
        }
    }

    /// Keeps what `keep` says, a shard at a time. It may leave an entry without replies only if it says no.
    pub fn retain(&self, mut keep: impl FnMut(&mut Entry) -> bool) {
        for shard in self.0.shards() {
            let mut slots = shard.write();
            // SAFETY: the iterator does not outlive the lock, and nothing is put in meanwhile, so the table stays where it is.
            for at in unsafe { slots.iter() } {
                // SAFETY: its slot is full, and nobody else has it: the lock is ours alone.
                if !keep(unsafe { &mut at.as_mut().0 }) {
                    // SAFETY: as above; what has been yielded may be erased.
                    unsafe { slots.erase(at) };
                }
            }
        }
    }

    /// Shows the entries in the next `places` places from `cursor`, whose shard is locked against changes meanwhile. True: there
    /// are no more, and the cursor stands at the begin again. (An entry that is put elsewhere in between, since its shard
    /// grows, may be shown twice or not at all.)
    pub fn scan(&self, cursor: &mut Cursor, places: usize, mut see: impl FnMut(&Entry)) -> bool {
        let shards = self.0.shards();
        let Some(shard) = shards.get(cursor.shard) else {
            *cursor = Cursor::default();
            return true;
        };
        let slots = shard.read();
        let end = slots.buckets().min(cursor.place + places);
        for place in cursor.place..end {
            // SAFETY: `place` is below the number of buckets, and the table is locked against changes.
            if unsafe { slots.is_bucket_full(place) } {
                // SAFETY: as above, and the bucket is full.
                see(unsafe { &slots.bucket(place).as_ref().0 });
            }
        }
        *cursor = match end == slots.buckets() {
            true => Cursor { shard: cursor.shard + 1, place: 0 },
            false => Cursor { shard: cursor.shard, place: end },
        };
        let over = cursor.shard == shards.len();
        if over {
            *cursor = Cursor::default();
        }
        over
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.shards().iter().map(|shard| shard.read().len()).sum()
    }

    /// Asks for the memory where the search for this hash begins.
    pub fn prefetch_slot(&self, hash: u64) {
        let slots = self.shard(hash).read();
        let bucket = index(hash) & (slots.buckets() - 1);
        let end = slots.data_end().as_ptr();
        super::prefetch(end.cast::<u8>().wrapping_add(bucket));
        super::prefetch(end.wrapping_sub(bucket + 1).cast());
    }

    /// Asks for the memory of what may be the entry of this hash. Which one is it, only the memory could tell.
    pub fn prefetch_entry(&self, hash: u64) {
        let mut asked = 0;
        self.shard(hash).read().find(hash, |(entry, _)| {
            entry.prefetch();
            asked += 1;
            asked == CANDIDATES
        });
    }

    /// Makes room for one more: twice the slots, or as many again if those that are full would fit into half of them, the
    /// rest being marks of what was taken out. (Hashbrown does it alike, but would wait for the memory of one entry after
    /// the other, and everybody else for the shard.)
    #[cold]
    fn grow(&self, slots: &mut TableSlots) {
        let full = slots.buckets() / 8 * 7;
        let room = (2 * slots.len()).max(full).max(1);
        let mut old = mem::replace(slots, TableSlots::with_capacity(room)).into_iter();
        loop {
            let chunk: SmallVec<[TableSlot; AHEAD]> = old.by_ref().take(AHEAD).collect();
            if chunk.is_empty() {
                return;
            }
            chunk.iter().for_each(|(entry, _)| entry.prefetch());
            for slot in chunk {
                // SAFETY: there is room for twice as many as there were.
                unsafe { slots.insert_no_grow(self.hash(&slot.0), slot) };
            }
        }
    }
}

/// Where a [`Table::scan`] goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    shard: usize,
    place: usize,
}

/// A shard, locked against changes.
pub struct Reading<'t> {
    slots: RwLockReadGuard<'t, TableSlots>,
    hash: u64,
}

impl Reading<'_> {
    /// The candidate that nearly always is the entry of the hash: it shares seven bits with it and is near to its place.
    #[inline(always)]
    pub fn first(&self) -> Option<&Entry> {
        self.slots.get(self.hash, |_| true).map(|(entry, _)| entry)
    }

    /// All that may be it.
    pub fn candidates(&self) -> impl Iterator<Item = &Entry> {
        // SAFETY: the table is locked against changes for as long as `self` is borrowed, and what is yielded is full.
        unsafe { self.slots.iter_hash(self.hash).map(|at| &at.as_ref().0) }
    }
}

/// Where an entry is, or could be.
pub enum EntryPlace<'t, S = ahash::RandomState> {
    /// The hash has an entry.
    Occupied(Occupied<'t>),
    /// The hash has no entry.
    Vacant(Vacant<'t, S>),
}

/// An entry that is there. `at` is its slot, a full one, for as long as the lock is held: only [`Occupied::remove`] empties
/// it, which ends both.
pub struct Occupied<'t> {
    slots: RwLockWriteGuard<'t, TableSlots>,
    at: Bucket<TableSlot>,
}

impl Occupied<'_> {
    /// The entry.
    pub fn get(&self) -> &Entry {
        // SAFETY: the slot is full (see above), and borrowed as `self` is.
        unsafe { &self.at.as_ref().0 }
    }

    /// The entry, to be changed; not to be left without replies.
    pub fn get_mut(&mut self) -> &mut Entry {
        // SAFETY: as above, and the lock is ours alone.
        unsafe { &mut self.at.as_mut().0 }
    }

    /// Replaces it by another of the same hash.
    pub fn insert(&mut self, entry: Entry) -> Entry {
        mem::replace(self.get_mut(), entry)
    }

    /// Takes it out.
    pub fn remove(mut self) -> Entry {
        // SAFETY: the slot is full, and of this table.
        let ((entry, _), _) = unsafe { self.slots.remove(self.at) };
        entry
    }
}

/// Room for an entry.
pub struct Vacant<'t, S = ahash::RandomState> {
    slots: RwLockWriteGuard<'t, TableSlots>,
    hash: u64,
    table: &'t Table<S>,
}

impl<S: BuildHasher + Clone> Vacant<'_, S> {
    /// Puts one of that hash there.
    pub fn insert(mut self, entry: Entry) {
        let mut slot = (entry, SharedValue::new(()));
        while let Err(full) = self.slots.try_insert_no_grow(self.hash, slot) {
            self.table.grow(&mut self.slots);
            slot = full;
        }
    }
}

/// DashMap asks for it: two entries are the same if they are of the same key.
impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Entry {}

impl Hash for Entry {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

#[cfg(test)]
mod tests;
