//! CLIENT PAUSE: for how long the server holds commands back, as far as is known here. Meanwhile sessions wait on connections
//! of their own, lest what is held back for one holds up all that share a lane, and the cache answers nothing.
//!
//! A pause is known if it was said through this proxy and the server has agreed. It is over by its time, by an UNPAUSE
//! through this proxy, by one past it that the [`watch`](super::watch) has counted, or with the link. If none of these is
//! noticed (before Redis 7.0 the server does not count UNPAUSE by itself), it is believed for `BELIEVED` at the most.
//! To believe too little is no danger: the commands that are held back hold up their lane.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::time::Time;

/// The longest that a pause is believed.
const BELIEVED: Duration = Duration::from_secs(3600);
/// The same, of a server that does not count UNPAUSE.
const BELIEVED_BLINDLY: Duration = Duration::from_secs(60);

/// The pause in force.
#[derive(Default)]
pub struct Pauses {
    until: AtomicU64,
    /// When the latest began.
    since: AtomicU64,
    /// Whether UNPAUSEs past this proxy can be seen.
    counted: AtomicBool,
}

impl Pauses {
    /// Whether clients are paused at `now`.
    pub fn are_on(&self, now: Time) -> bool {
        self.until.load(Ordering::Relaxed) > now.0
    }

    /// The server has agreed to a pause. The watch should look soon: a look from before it does not tell which UNPAUSEs came
    /// after it.
    pub fn begin(&self, now: Time, time: Duration) {
        let most = if self.counted.load(Ordering::Relaxed) { BELIEVED } else { BELIEVED_BLINDLY };
        self.since.store(now.0, Ordering::Relaxed);
        self.until.fetch_max((now + time.min(most)).0, Ordering::Relaxed);
    }

    /// Ends the pause.
    pub fn end(&self) {
        self.until.store(0, Ordering::Relaxed);
    }

    /// Compares the server's counts at two looks, the older of which was asked for at `asked`.
    pub fn compare(&self, old: Option<u64>, new: Option<u64>, asked: Time) {
        self.counted.store(new.is_some(), Ordering::Relaxed);
        if old.is_some() && new.is_some() && old != new && asked.0 > self.since.load(Ordering::Relaxed) {
            self.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_by_what_is_counted_elsewhere() {
        let pauses = Pauses::default();
        pauses.compare(None, Some(5), Time(0));
        pauses.begin(Time(1), Duration::from_secs(1_000_000_000));
        assert!(pauses.are_on(Time(2)) && !pauses.are_on(Time(2) + BELIEVED));
        pauses.compare(Some(5), Some(6), Time(1));
        assert!(pauses.are_on(Time(2)), "it may have been counted before the pause began");
        pauses.compare(Some(6), Some(6), Time(2));
        assert!(pauses.are_on(Time(2)));
        pauses.compare(Some(6), Some(7), Time(2));
        assert!(!pauses.are_on(Time(2)));
        pauses.compare(Some(7), None, Time(2));
        pauses.begin(Time(1), Duration::from_secs(1_000_000_000));
        assert!(!pauses.are_on(Time(2) + BELIEVED_BLINDLY));
    }
}
