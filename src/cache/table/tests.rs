use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::super::entry::{CachedReply, HashAsIs, Stamp, Variant};
use super::*;
use crate::clock::Clocks;
use crate::time::Time;

/// The hash of a key is its last eight bytes.
type LastEight = BuildHasherDefault<HashAsIs>;

fn get(key: &[u8]) -> Variant<'_> {
    Variant { view: 0, id: 1, key, tail: b"" }
}

fn entry(key: &[u8], reply: &[u8]) -> Entry {
    let lane = Clocks::default().open_lane(Time(1)).expect("a lane");
    let stamp = Stamp { deadline: Time::NEVER, stored: Time(1), lane, epoch: 1, seq: 1 };
    Entry::of(CachedReply::new(&get(key), reply, stamp))
}

impl<S: BuildHasher + Clone> Table<S> {
    fn of(&self, key: &[u8]) -> u64 {
        self.0.hasher().hash_one(key)
    }

    /// The key of the entry that this one took the place of.
    fn put(&self, key: &[u8], reply: &[u8]) -> Option<Vec<u8>> {
        match self.place(self.of(key)) {
            EntryPlace::Occupied(mut place) => Some(place.insert(entry(key, reply)).key().to_vec()),
            EntryPlace::Vacant(place) => {
                place.insert(entry(key, reply));
                None
            }
        }
    }

    fn take(&self, key: &[u8]) -> bool {
        let EntryPlace::Occupied(place) = self.place(self.of(key)) else { return false };
        place.remove().is_of(key)
    }

    fn reply(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.read(self.of(key))
            .candidates()
            .find_map(|e| e.find(&get(key), || 0).map(|(cached, _)| cached.reply().to_vec()))
    }

    fn slots(&self) -> usize {
        self.0.shards().iter().map(|shard| shard.read().buckets()).max().unwrap_or(0)
    }
}

/// Many keys come, change and go while the shards grow, against a map that is known to be right.
fn agrees_with_a_map<S: BuildHasher + Clone>(hasher: S, name: impl Fn(u64) -> Vec<u8>) {
    let table = Table::new(hasher, 2);
    let mut model: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    let mut random = fastrand::Rng::with_seed(7);
    let mut grown = 0;
    for n in 0..40_000_u64 {
        let slots = table.slots();
        // The range widens, so that there is more and more to be kept, and what is gone comes back.
        let key = name(random.u64(..1 + n / 4));
        match random.u8(..4) {
            0 => assert_eq!(table.take(&key), model.remove(&key).is_some()),
            _ => {
                let reply = n.to_string().into_bytes();
                let was = model.insert(key.clone(), reply.clone());
                assert_eq!(table.put(&key, &reply), was.map(|_| key));
            }
        }
        grown += usize::from(table.slots() > slots);
        assert_eq!(table.len(), model.len());
    }
    assert!(grown > 8 && model.len() > 5_000, "{grown} times, to {}", model.len());
    for n in 0..10_000 {
        assert_eq!(table.reply(&name(n)), model.get(&name(n)).cloned(), "{n}");
    }
    let kept = |key: &[u8]| key.iter().map(|byte| u32::from(*byte)).sum::<u32>() % 2 == 0;
    table.retain(|entry| kept(entry.key()));
    model.retain(|key, _| kept(key));
    assert_eq!(table.len(), model.len());
    for n in 0..10_000 {
        assert_eq!(table.reply(&name(n)), model.get(&name(n)).cloned(), "{n} is left");
    }
}

#[test]
fn what_is_put_is_there_until_it_is_taken() {
    agrees_with_a_map(ahash::RandomState::with_seeds(1, 2, 3, 4), |n| format!("key:{n}").into_bytes());
}

/// All of one shard, all with the same seven bits, and so crowded that most are looked for far from where they belong.
#[test]
fn what_no_slot_tells_apart_is_told_apart_by_its_key() {
    agrees_with_a_map(LastEight::default(), |n| (n << 3).to_be_bytes().to_vec());
}

#[test]
fn of_two_keys_with_one_hash_the_later_is_kept() {
    let table = Table::new(LastEight::default(), 2);
    let (one, other) = (b"one:12345678", b"other:12345678");
    assert_eq!(table.of(one), table.of(other));
    assert_eq!(table.put(one, b"1"), None);
    assert_eq!((table.reply(one), table.reply(other)), (Some(b"1".to_vec()), None), "it never answers for the other");
    assert_eq!(table.put(other, b"2"), Some(one.to_vec()));
    assert_eq!((table.reply(one), table.reply(other)), (None, Some(b"2".to_vec())));
    assert_eq!(table.len(), 1);
}

/// Removed entries leave marks, which take room too. Where they are most of it, as many slots do as before.
#[test]
fn a_table_does_not_grow_by_what_comes_and_goes() {
    let table = Table::new(LastEight::default(), 2);
    // so near to each other that a slot taken in their midst cannot be free at once
    let name = |n: u64| (n % 4096).to_be_bytes();
    let mut random = fastrand::Rng::with_seed(7);
    let mut there: Vec<u64> = Vec::new();
    let mut renewed = 0;
    for n in 0..50_000 {
        let before = table.0.shards()[0].read().data_end();
        assert_eq!(table.put(&name(n), b"v"), None);
        there.push(n);
        renewed += usize::from(table.0.shards()[0].read().data_end() != before);
        if there.len() > 100 {
            assert!(table.take(&name(there.swap_remove(random.usize(..there.len())))));
        }
        assert!(there.iter().all(|n| table.reply(&name(*n)).is_some()));
    }
    assert!(table.slots() <= 256, "{} slots", table.slots());
    assert!(renewed > 20, "{renewed} times there was no room: otherwise nothing was tested");
}
