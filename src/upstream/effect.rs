//! What the reply to a forwarded command does to the cache before its client sees it (rule 2).

use crate::cache::events::Event;
use crate::coherence::Coherence;
use crate::time::Time;

/// Hashes of the keys of one command.
#[derive(Default, Debug, Clone)]
pub struct KeySet {
    /// Keys it may have changed.
    pub writes: Vec<u64>,
    /// Keys it only read.
    pub reads: Vec<u64>,
}

/// To be settled when the reply is here.
#[derive(Debug)]
pub enum Effect {
    /// Nothing.
    None,
    /// One key written: the common case, without an allocation.
    Write(u64),
    /// One key read past the cache.
    Read(u64),
    /// Several keys.
    Keys(Box<KeySet>),
    /// These keys, and perhaps any other: the reply waits for a barrier.
    Unknown(Box<KeySet>),
    /// Everything.
    Flush,
}

impl Effect {
    /// The effect of a command with these keys.
    pub fn of_keys(mut keys: KeySet) -> Effect {
        match (keys.writes.len(), keys.reads.len()) {
            (0, 0) => Effect::None,
            (1, 0) => Effect::Write(keys.writes[0]),
            (0, 1) => Effect::Read(keys.reads[0]),
            _ => {
                keys.writes.shrink_to_fit();
                Effect::Keys(Box::new(keys))
            }
        }
    }

    /// Settles it. True if the reply must wait for a barrier besides.
    pub fn settle(&self, coherence: &Coherence, now: Time) -> bool {
        let cache = &coherence.cache;
        let drop_key = |hash: &u64| {
            let begun = cache.begun();
            if !crate::sabotage::on(crate::sabotage::Rule::Drop) && cache.drop_key(*hash) {
                cache.stats.dropped.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            // After the drop: who finds this note finds nothing in the cache that is older.
            cache.events.note(*hash, now, Event::Written(begun));
        };
        match self {
            Effect::None => {}
            Effect::Write(hash) => drop_key(hash),
            Effect::Read(hash) => cache.observe(*hash, now),
            Effect::Keys(keys) | Effect::Unknown(keys) => {
                keys.writes.iter().for_each(drop_key);
                keys.reads.iter().for_each(|hash| cache.observe(*hash, now));
            }
            Effect::Flush => coherence.flush(crate::cache::FlushCause::Command),
        }
        let unknown = matches!(self, Effect::Unknown(_));
        if unknown && coherence.generation().is_none() {
            // Perhaps the link is being lost at this moment and the cache not flushed yet: the reply does not wait for it.
            cache.void();
            return false;
        }
        unknown
    }

    /// Whether the command may have changed a key. (One that changes none may still not be repeatable: PUBLISH.)
    pub fn may_write(&self) -> bool {
        match self {
            Effect::None | Effect::Read(_) => false,
            Effect::Keys(keys) => !keys.writes.is_empty(),
            Effect::Write(_) | Effect::Unknown(_) | Effect::Flush => true,
        }
    }
}
