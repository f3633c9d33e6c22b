//! Counters of the cache, and the causes of flushes.

use std::sync::atomic::AtomicU64;

use crate::bypass::Bypasses;

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
