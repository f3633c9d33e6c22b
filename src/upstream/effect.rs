//! The effect of a forwarded command on the cache, which comes before its client sees the reply (rule 2). The reply is the server's
//! verdict: a command that was refused has done nothing, here neither. ([`refusal`] says which errors prove that.)

pub mod change;
pub mod transaction;

use std::time::Duration;

use super::refusal;
use crate::cache::events::Event;
use crate::coherence::Coherence;
use crate::node::Node;
use crate::time::Time;
use change::RightsChange;
use transaction::TransactionStep;

/// Hashes of the keys of one command.
#[derive(Default, Debug, Clone)]
pub struct KeySet {
    /// Keys it may have changed.
    pub writes: Vec<u64>,
    /// Keys it only read.
    pub reads: Vec<u64>,
    /// A script's: what it replies can be anything.
    pub scripted: bool,
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
    /// The server holds commands back for so long.
    Pause(Duration),
    /// Or no longer.
    Unpause,
    /// Users or their rights may be others.
    Rights(Box<RightsChange>),
    /// The effect depends on the transaction that the command is a step of.
    Step(Box<TransactionStep>),
}

/// For what a reply waits before its client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// For nothing.
    No,
    /// For a barrier: what the command has written is known then.
    Barrier,
    /// For a look at the server's users, and a barrier.
    Look,
}

impl Effect {
    /// The effect of a command with these keys.
    pub fn of_keys(mut keys: KeySet) -> Effect {
        match (keys.writes.len(), keys.reads.len()) {
            (0, 0) => Effect::None,
            (1, 0) if !keys.scripted => Effect::Write(keys.writes[0]),
            (0, 1) if !keys.scripted => Effect::Read(keys.reads[0]),
            _ => {
                keys.writes.shrink_to_fit();
                Effect::Keys(Box::new(keys))
            }
        }
    }

    /// Settles it by the reply; `None`: the outcome is not known. For what the reply must wait besides.
    pub fn settle(self, reply: Option<&[u8]>, node: &Node, now: Time) -> Wait {
        let coherence = &node.coherence;
        let is = |proof: fn(&[u8]) -> bool| reply.is_some_and(proof);
        match self {
            Effect::None => Wait::No,
            Effect::Write(_) | Effect::Read(_) if is(refusal::of_builtin) => Wait::No,
            Effect::Keys(keys) if !keys.scripted && is(refusal::of_builtin) => Wait::No,
            Effect::Flush if is(refusal::of_flush) => Wait::No,
            Effect::Unknown(keys) if !keys.scripted && is(refusal::of_unknown) => Wait::No,
            // Perhaps it was refused, perhaps it says so and has written. What it has written the barrier brings; to drop the
            // keys it names would cost others what a client who may not say it could repeat.
            Effect::Keys(keys) if keys.scripted && is(refusal::names_rights) => barrier(coherence),
            Effect::Unknown(_) if is(refusal::names_rights) => barrier(coherence),
            Effect::Write(hash) => drop_key(coherence, hash, now),
            Effect::Read(hash) => {
                coherence.cache.observe(hash, now);
                Wait::No
            }
            Effect::Keys(keys) => settle_keys(coherence, &keys, now),
            Effect::Unknown(keys) => {
                settle_keys(coherence, &keys, now);
                barrier(coherence)
            }
            Effect::Flush => {
                coherence.flush(crate::cache::FlushCause::Command);
                Wait::No
            }
            Effect::Pause(time) => {
                if reply == Some(b"+OK\r\n") {
                    node.pauses.begin(now, time);
                    node.looks.want();
                }
                Wait::No
            }
            Effect::Unpause => {
                if reply == Some(b"+OK\r\n") {
                    node.pauses.end();
                }
                Wait::No
            }
            Effect::Rights(change) => change.settle(reply, node),
            Effect::Step(step) => step.settle(reply, node, now),
        }
    }

    /// Whether the command may have changed a key. (One that changes none may still not be repeatable: PUBLISH.)
    pub fn may_write(&self) -> bool {
        match self {
            Effect::None | Effect::Read(_) => false,
            Effect::Keys(keys) => !keys.writes.is_empty(),
            Effect::Write(_) | Effect::Unknown(_) | Effect::Flush => true,
            Effect::Pause(_) | Effect::Unpause | Effect::Rights(_) | Effect::Step(_) => true,
        }
    }
}

fn drop_key(coherence: &Coherence, hash: u64, now: Time) -> Wait {
    let cache = &coherence.cache;
    let begun = cache.begun();
    if !crate::sabotage::on(crate::sabotage::Rule::Drop) && cache.drop_key(hash) {
        cache.stats.dropped.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
    // After the drop: who finds this note finds nothing in the cache that is older.
    cache.events.note(hash, now, Event::Written(begun));
    Wait::No
}

fn settle_keys(coherence: &Coherence, keys: &KeySet, now: Time) -> Wait {
    keys.writes.iter().for_each(|hash| {
        drop_key(coherence, *hash, now);
    });
    keys.reads.iter().for_each(|hash| coherence.cache.observe(*hash, now));
    Wait::No
}

/// Whether there is a link to wait for.
fn barrier(coherence: &Coherence) -> Wait {
    if coherence.generation().is_none() {
        // Perhaps the link is being lost at this moment and the cache not flushed yet: the reply does not wait for it.
        coherence.cache.void();
        return Wait::No;
    }
    Wait::Barrier
}
