//! The rules, each of which can be taken away.

macro_rules! rules {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        #[derive(Clone, Copy, Debug)]
        pub struct Rules { $($(#[doc = $doc])+ pub $name: bool,)+ }
        impl Rules {
            pub const ALL: Rules = Rules { $($name: true,)+ };
        }
    };
}

rules! {
    /// A fill is stored only by a valid token.
    tokens,
    /// The keys of a write are dropped before its client is told.
    drop_on_ack,
    /// A hit waits until the clocks have passed its watermark.
    clock,
    /// A hit's lane must be alive as far as the proxy knows.
    lane_alive,
    /// The lane has a clock of its own.
    lane_clock,
    /// Replies of one key do not contradict each other in time.
    floor,
    /// The reply of a script waits for a barrier.
    held,
    /// After such a barrier, a hit's lane must have been alive at its time.
    settled,
    /// Whether a lane may fill is asked after the token was taken.
    generation_after_epoch,
    /// A hit does not overtake what is outstanding in its session.
    overtake,
    /// A read's reply is told after it is stored, or after the cache has noted that something was told.
    told_when_stored,
    /// Evicting the last reply of a key revokes the key's tokens, because the floors go with it.
    eviction_revokes,
    /// `judge` looks at the clocks before it looks at the epoch.
    clocks_before_epoch,
    /// In `broadcast`, a PONG proves only the send time of the PING answered before its own was sent.
    two_pings,
    /// A barrier that ends because the link is down flushes first.
    barrier_flushes,
}
