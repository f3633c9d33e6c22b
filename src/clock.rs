//! The freshness clocks: how far the cache is known to be exact. Plain atomics, no waiting, no I/O.
//!
//! Two proofs are needed before a cached answer may be called exact as of *t*:
//! the **link** has returned a PONG for a PING sent at or after *t*, so every write acknowledged before *t* has been
//! applied here; and the **lane** that filled the entry has returned a reply to something sent at or after *t*, so the
//! server still held the lane's registrations then (the server reports a lane's death to nobody).

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::size;
use crate::time::Time;

/// Lanes that may fill at once, over all threads, users, protocols and databases.
pub const MAX_LANES: usize = size(1024, 2);
/// The lower bits of a stamp are the slot, those above the slot's incarnation.
const SLOT_BITS: u32 = 10;
/// A stamp's generations: neither 0 nor the last, so that no stamp is 0, nor u32::MAX (which marks a slot being opened).
const INCARNATIONS: u32 = (1 << (u32::BITS - SLOT_BITS)) - 2;
// Two lanes never share a stamp.
const _: () = assert!(MAX_LANES <= 1 << SLOT_BITS);

/// One incarnation of one lane: its slot, and how many incarnations the slot had before. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneStamp(u32);

impl LaneStamp {
    #[expect(clippy::cast_possible_truncation, reason = "a slot is below MAX_LANES")]
    fn new(slot: usize, incarnation: u32) -> Self {
        LaneStamp((incarnation << SLOT_BITS) | slot as u32)
    }
    fn slot(self) -> usize {
        (self.0 & ((1 << SLOT_BITS) - 1)) as usize
    }
}

struct LaneSlot {
    /// The stamp of the living incarnation; 0 when the slot is free.
    alive: AtomicU32,
    incarnation: AtomicU32,
    clock: AtomicU64,
    /// The time somebody waits for.
    wanted: AtomicU64,
}

/// The link's clock and every lane's.
pub struct Clocks {
    link: AtomicU64,
    link_wanted: AtomicU64,
    lanes: Box<[LaneSlot]>,
    closed: AtomicU64,
}

impl Default for Clocks {
    fn default() -> Self {
        let slot = |_| LaneSlot {
            alive: AtomicU32::new(0),
            incarnation: AtomicU32::new(0),
            clock: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
        };
        Clocks {
            link: AtomicU64::new(0),
            link_wanted: AtomicU64::new(0),
            lanes: (0..MAX_LANES).map(slot).collect(),
            closed: AtomicU64::new(0),
        }
    }
}

impl Clocks {
    /// As of when the link proves the cache exact; `Time::ZERO` while it is down.
    pub fn link(&self) -> Time {
        Time(self.link.load(Ordering::Acquire))
    }

    /// A PONG came back for a PING sent at `t`.
    pub fn advance_link(&self, t: Time) {
        self.link.fetch_max(t.0, Ordering::AcqRel);
    }

    /// The link is lost: it proves nothing until its next PONG.
    pub fn stop_link(&self) {
        self.link.store(0, Ordering::Release);
    }

    /// Somebody waits for the link to reach `t`. True if that was not already asked for.
    pub fn want_link(&self, t: Time) -> bool {
        self.link_wanted.fetch_max(t.0, Ordering::AcqRel) < t.0
    }

    /// The latest time somebody waits for.
    pub fn link_wanted(&self) -> Time {
        Time(self.link_wanted.load(Ordering::Acquire))
    }

    /// A lane has come up: takes a slot. `None` if all are taken; such a lane forwards but does not fill.
    pub fn open_lane(&self, now: Time) -> Option<LaneStamp> {
        let free = |s: &LaneSlot| s.alive.compare_exchange(0, u32::MAX, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let slot = self.lanes.iter().position(free)?;
        let lane = &self.lanes[slot];
        let incarnation = (lane.incarnation.fetch_add(1, Ordering::Relaxed) % INCARNATIONS) + 1;
        // Release: who reads this clock must not read an older stamp beside it.
        lane.clock.store(now.0, Ordering::Release);
        lane.wanted.store(0, Ordering::Relaxed);
        let stamp = LaneStamp::new(slot, incarnation);
        lane.alive.store(stamp.0, Ordering::Release);
        Some(stamp)
    }

    /// The lane is lost: whatever it filled is void from here on.
    pub fn close_lane(&self, stamp: LaneStamp) {
        let slot = &self.lanes[stamp.slot()].alive;
        if slot.compare_exchange(stamp.0, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.closed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lanes that were ever lost.
    pub fn lanes_closed(&self) -> u64 {
        self.closed.load(Ordering::Relaxed)
    }

    /// The lane has answered something that was sent at `t`.
    pub fn advance_lane(&self, stamp: LaneStamp, t: Time) {
        self.lanes[stamp.slot()].clock.fetch_max(t.0, Ordering::AcqRel);
    }

    /// As of when the lane is known to have been alive; `None` if it is lost.
    pub fn lane(&self, stamp: LaneStamp) -> Option<Time> {
        let slot = &self.lanes[stamp.slot()];
        let t = slot.clock.load(Ordering::Acquire);
        (slot.alive.load(Ordering::Acquire) == stamp.0).then_some(Time(t))
    }

    /// Somebody waits for the lane to reach `t`. True if that was not already asked for.
    pub fn want_lane(&self, stamp: LaneStamp, t: Time) -> bool {
        self.lanes[stamp.slot()].wanted.fetch_max(t.0, Ordering::AcqRel) < t.0
    }

    /// The latest time somebody waits for on this lane.
    pub fn lane_wanted(&self, stamp: LaneStamp) -> Time {
        Time(self.lanes[stamp.slot()].wanted.load(Ordering::Acquire))
    }

    /// The slot's number, to find the lane's waker.
    pub fn slot(stamp: LaneStamp) -> usize {
        stamp.slot()
    }

    /// Lanes alive now.
    #[cfg_attr(feature = "program", expect(dead_code, reason = "tests count them"))]
    pub fn lanes_alive(&self) -> usize {
        self.lanes.iter().filter(|s| s.alive.load(Ordering::Relaxed) != 0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_lane_is_dead_and_its_slot_gets_a_new_stamp() {
        let clocks = Clocks::default();
        let first = clocks.open_lane(Time(5)).expect("a slot");
        assert_eq!(clocks.lane(first), Some(Time(5)));
        clocks.close_lane(first);
        assert_eq!(clocks.lane(first), None);
        let second = clocks.open_lane(Time(9)).expect("a slot");
        assert_ne!(first, second);
        assert_eq!(clocks.lane(first), None);
        assert_eq!(clocks.lane(second), Some(Time(9)));
    }

    #[test]
    fn slots_run_out_cleanly() {
        let clocks = Clocks::default();
        for _ in 0..MAX_LANES {
            assert!(clocks.open_lane(Time(1)).is_some());
        }
        assert!(clocks.open_lane(Time(1)).is_none());
        assert_eq!(clocks.lanes_alive(), MAX_LANES);
    }

    #[test]
    fn the_link_clock_only_goes_forward_until_it_stops() {
        let clocks = Clocks::default();
        clocks.advance_link(Time(10));
        clocks.advance_link(Time(7));
        assert_eq!(clocks.link(), Time(10));
        clocks.stop_link();
        assert_eq!(clocks.link(), Time::ZERO);
    }
}
