//! The table for the schedule explorer: its own map, by hash. It has what the real one has, and locks as that does.

use crate::cache::entry::{Entry, HashedAlready};
use crate::sync::{self, DashMap};

/// Where an entry is, or could be.
pub type EntryPlace<'t> = sync::MapPlace<'t, u64, Entry>;

/// The entries, by hash.
pub struct Table(DashMap<u64, Entry, HashedAlready>);

/// Where a [`Table::scan`] goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {}

/// A shard, locked against changes if the entry is there.
pub struct Reading<'t>(Option<sync::SharedRef<'t, u64, Entry>>);

impl Reading<'_> {
    /// The entry, if it is there.
    pub fn first(&self) -> Option<&Entry> {
        self.0.as_deref()
    }

    /// The same.
    pub fn candidates(&self) -> impl Iterator<Item = &Entry> {
        self.first().into_iter()
    }
}

impl Table {
    /// Empty. The explorer's map knows every hash by itself.
    pub fn new(_: ahash::RandomState, shards: usize) -> Self {
        Table(DashMap::with_hasher_and_shard_amount(HashedAlready::default(), shards))
    }

    /// The shard of this hash, locked against changes.
    pub fn read(&self, hash: u64) -> Reading<'_> {
        Reading(self.0.get(&hash))
    }

    /// Takes the entry of this hash out.
    pub fn remove(&self, hash: u64) -> Option<Entry> {
        match self.place(hash) {
            EntryPlace::Occupied(place) => Some(place.remove()),
            EntryPlace::Vacant(_) => None,
        }
    }

    /// Where the entry of this hash is or could be, its shard locked for everybody else.
    pub fn place(&self, hash: u64) -> EntryPlace<'_> {
        self.0.entry(hash)
    }

    /// Keeps what `keep` says, a shard at a time.
    pub fn retain(&self, mut keep: impl FnMut(&mut Entry) -> bool) {
        self.0.retain(|_, entry| keep(entry));
    }

    /// Shows all entries at once: the explorer's map is small.
    pub fn scan(&self, _: &mut Cursor, _: usize, mut see: impl FnMut(&Entry)) -> bool {
        self.0.retain(|_, entry| {
            see(entry);
            true
        });
        true
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// There is nothing to be fetched.
    pub fn prefetch_slot(&self, _: u64) {}

    /// There is nothing to be fetched.
    pub fn prefetch_entry(&self, _: u64) {}
}
