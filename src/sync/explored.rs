//! Locks and atomics that the explorer can interrupt. The map locks as dashmap does: a shard at a time, shared for `get`, alone for the rest.

#![expect(clippy::expect_used, reason = "no test goes on with a lock whose holder has panicked")]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

pub use shuttle::sync::{Mutex, MutexGuard, atomic};
use shuttle::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::numbers::index;

/// As much of dashmap as the cache uses.
pub struct DashMap<K, V, S> {
    shards: Vec<RwLock<HashMap<K, V>>>,
    hasher: PhantomData<S>,
}

/// A value and the lock of its shard.
pub struct Ref<G, K> {
    guard: G,
    key: K,
}

impl<K: Eq + Hash, V, G: Deref<Target = HashMap<K, V>>> Deref for Ref<G, K> {
    type Target = V;
    fn deref(&self) -> &V {
        &self.guard[&self.key]
    }
}

impl<K: Eq + Hash, V, G: DerefMut<Target = HashMap<K, V>>> DerefMut for Ref<G, K> {
    fn deref_mut(&mut self) -> &mut V {
        self.guard.get_mut(&self.key).expect("it is there for as long as the shard is locked")
    }
}

/// A value, its shard locked against changes.
pub type SharedRef<'a, K, V> = Ref<RwLockReadGuard<'a, HashMap<K, V>>, K>;

type Alone<'a, K, V> = RwLockWriteGuard<'a, HashMap<K, V>>;

/// Where a value is, or could be.
pub enum MapPlace<'a, K, V> {
    /// The key is there.
    Occupied(MapOccupied<'a, K, V>),
    /// The key is not there.
    Vacant(MapVacant<'a, K, V>),
}

/// A value that is there.
pub struct MapOccupied<'a, K, V>(Ref<Alone<'a, K, V>, K>);

/// Room for one.
pub struct MapVacant<'a, K, V>(Ref<Alone<'a, K, V>, K>);

impl<K: Copy + Eq + Hash, V> MapOccupied<'_, K, V> {
    /// The value.
    pub fn get(&self) -> &V {
        &self.0
    }
    /// The value, to be changed.
    pub fn get_mut(&mut self) -> &mut V {
        &mut self.0
    }
    /// Replaces it.
    pub fn insert(&mut self, value: V) -> V {
        std::mem::replace(&mut self.0, value)
    }
    /// Takes it out.
    pub fn remove(mut self) -> V {
        self.0.guard.remove(&self.0.key).expect("it is there for as long as the shard is locked")
    }
}

impl<'a, K: Copy + Eq + Hash, V> MapVacant<'a, K, V> {
    /// Puts it there.
    pub fn insert(mut self, value: V) -> impl Deref<Target = V> + 'a
    where
        K: 'a,
    {
        self.0.guard.insert(self.0.key, value);
        self.0
    }
}

impl<K: Copy + Eq + Hash + Into<u64>, V, S> DashMap<K, V, S> {
    /// Empty.
    pub fn with_hasher_and_shard_amount(_: S, shards: usize) -> Self {
        DashMap { shards: (0..shards).map(|_| RwLock::new(HashMap::new())).collect(), hasher: PhantomData }
    }

    fn shard(&self, key: &K) -> &RwLock<HashMap<K, V>> {
        &self.shards[index((*key).into()) % self.shards.len()]
    }

    fn alone(&self, key: &K) -> Alone<'_, K, V> {
        self.shard(key).write().expect("nobody panics with the lock")
    }

    /// The value, with its shard locked against changes.
    pub fn get(&self, key: &K) -> Option<SharedRef<'_, K, V>> {
        let guard = self.shard(key).read().expect("nobody panics with the lock");
        guard.contains_key(key).then_some(Ref { guard, key: *key })
    }

    /// The place of this key.
    pub fn entry(&self, key: K) -> MapPlace<'_, K, V> {
        let mut guard = self.alone(&key);
        let found = matches!(guard.entry(key), Entry::Occupied(_));
        let place = Ref { guard, key };
        if found { MapPlace::Occupied(MapOccupied(place)) } else { MapPlace::Vacant(MapVacant(place)) }
    }

    /// Takes it out if `wanted` says so.
    pub fn remove_if(&self, key: &K, wanted: impl FnOnce(&K, &V) -> bool) -> Option<(K, V)> {
        let mut guard = self.alone(key);
        if guard.get(key).is_some_and(|value| wanted(key, value)) { guard.remove_entry(key) } else { None }
    }

    /// Keeps what `keep` says.
    pub fn retain(&self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        for shard in &self.shards {
            shard.write().expect("nobody panics with the lock").retain(&mut keep);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.read().expect("nobody panics with the lock").len()).sum()
    }
}
