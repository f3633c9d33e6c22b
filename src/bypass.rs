//! Why the cache took no part in a read: one closed list, shared by the counters of INFO, by NEARSIDE EXPLAIN and by tests.
//!
//! A read can pass the cache by twice: when it is not looked up (or its entry is not proven fresh enough), and when its reply is not
//! kept. Each is counted where it is decided, when the read is sent upstream. A read that is looked up, not found and then kept has
//! bypassed nothing: it is a plain miss.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the longest request whose reply is kept.
pub const REQUEST_MAX: usize = 64 * 1024;
/// Keys of the largest MGET whose reply is kept: each key costs a PTTL of its own, on a lane that others wait for.
pub const MGET_MAX: usize = 256;

/// A reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Bypass {
    /// Not looked up: the session's level cannot be kept now.
    Level,
    /// Not looked up: the reply would overtake that of a command which the session has sent before.
    Order,
    /// Not looked up: the user's rights to GET and to MGET differ.
    Rights,
    /// Not looked up, nor kept: the session has a connection of its own (a transaction, CLIENT TRACKING).
    OwnConnection,
    /// Not looked up, nor kept: CLIENT PAUSE is in force.
    Paused,
    /// Found, but not proven fresh enough, and the clock stands still or was waited for already.
    Unproven,
    /// Not kept: the request is too long to be a key of the cache.
    RequestTooLong,
    /// Not kept: an MGET of too many keys.
    TooManyKeys,
    /// Not kept: the same read is on its way already, and its reply will be.
    InFlight,
    /// Not kept: the lane's reads are not tracked by the server, now or at all.
    LaneNotArmed,
    /// Not kept: the user may not say what a fill needs (CLIENT, PTTL, the questions about hash fields).
    LaneRights,
    /// Not kept: the key begins with none of `broadcast_prefixes`.
    Prefix,
    /// Not kept: fields of this hash have a time to live, as was seen a short while ago.
    MortalFields,
    /// Not kept: the reply, with its key, is larger than `max_entry`. Known once it has come, so EXPLAIN cannot tell before.
    ReplyTooLarge,
}

/// Each reason with its name in INFO (`nearside_bypass_<name>`) and its words in EXPLAIN.
const REASONS: [(Bypass, &str, &str); 14] = [
    (Bypass::Level, "level", "the level of this connection cannot be kept here"),
    (Bypass::Order, "order", "the reply would overtake that of a command sent before"),
    (Bypass::Rights, "rights", "this user's rights to GET and to MGET are not known to be the same for every key"),
    (Bypass::OwnConnection, "own_connection", "the session has a connection of its own"),
    (Bypass::Paused, "paused", "CLIENT PAUSE is in force"),
    (Bypass::Unproven, "unproven", "cached, but not proven fresh enough in time"),
    (Bypass::RequestTooLong, "request_too_long", "the request is too long"),
    (Bypass::TooManyKeys, "too_many_keys", "an MGET of too many keys"),
    (Bypass::InFlight, "in_flight", "the same read is on its way already"),
    (Bypass::LaneNotArmed, "lane_not_armed", "the server does not track the reads of this connection now"),
    (Bypass::LaneRights, "lane_rights", "this user lacks the rights that keeping a reply needs"),
    (Bypass::Prefix, "prefix", "outside of broadcast_prefixes"),
    (Bypass::MortalFields, "mortal_fields", "fields of this hash have a time to live"),
    (Bypass::ReplyTooLarge, "reply_too_large", "the reply is larger than max_entry"),
];

impl Bypass {
    /// Every reason, in the order of INFO.
    pub fn all() -> impl Iterator<Item = Bypass> {
        REASONS.iter().map(|(reason, ..)| *reason)
    }

    /// Its name in metrics: `level`, `too_many_keys` …
    pub fn name(self) -> &'static str {
        REASONS[self as usize].1
    }

    /// Half a sentence for people: `outside of broadcast_prefixes`.
    pub fn because(self) -> &'static str {
        REASONS[self as usize].2
    }
}

/// How often each reason held.
#[derive(Default, Debug)]
pub struct Bypasses([AtomicU64; REASONS.len()]);

impl Bypasses {
    /// One more.
    pub fn count(&self, reason: Bypass) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn count_of(&self, reason: Bypass) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_stands_at_its_place() {
        for (place, reason) in Bypass::all().enumerate() {
            assert_eq!(reason as usize, place, "{}", reason.name());
        }
        let counts = Bypasses::default();
        counts.count(Bypass::MortalFields);
        assert_eq!(Bypass::all().map(|reason| counts.count_of(reason)).sum::<u64>(), 1);
        assert_eq!(counts.count_of(Bypass::MortalFields), 1);
    }
}
