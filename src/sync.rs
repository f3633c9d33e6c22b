//! Locks, atomics and the sharded map of the cache and the clocks, in one place: with the feature `shuttle`, the schedule
//! explorer's stand in for them, and tests/schedule.rs looks at every order of steps it can think of.

#[cfg(not(feature = "shuttle"))]
mod real {
    pub use dashmap::DashMap;
    pub use dashmap::mapref::entry::Entry as MapPlace;
    pub use std::sync::{Mutex, MutexGuard, atomic};
}
#[cfg(not(feature = "shuttle"))]
pub use real::*;

#[cfg(feature = "shuttle")]
mod explored;
#[cfg(feature = "shuttle")]
pub use explored::*;

/// `real`, or with the explorer so few that they collide and a run is short.
pub const fn size(real: usize, explored: usize) -> usize {
    if cfg!(feature = "shuttle") { explored } else { real }
}
