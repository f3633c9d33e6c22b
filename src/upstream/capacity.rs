//! How many connections the process may have, over all its threads and all nodes: lanes (`max_lanes`) and dedicated connections
//! (`max_dedicated`). Each connection holds its place for as long as it is open or being opened.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::config::Config;
use crate::time::Time;

/// The places for connections.
pub struct Capacity {
    /// Lanes that are open or being opened.
    pub lanes: Berths,
    /// Connections lent to single sessions, or idle until the next.
    pub dedicated: Places,
}

impl Capacity {
    /// No place is taken.
    pub fn new(config: &Config) -> Capacity {
        Capacity {
            lanes: Berths {
                max: config.max_lanes,
                idle_timeout: config.lane_idle_timeout,
                taken: AtomicUsize::new(0),
                wanted: AtomicU64::new(0),
            },
            dedicated: Places::new(config.max_dedicated, config.dedicated_idle_timeout),
        }
    }
}

/// How many lanes the process may have open, and has.
pub struct Berths {
    pub(super) max: usize,
    /// A lane comes to rest after this long; zero: never.
    pub(super) idle_timeout: Duration,
    taken: AtomicUsize,
    /// When a lane last found all berths taken ([`Time`] in nanoseconds).
    wanted: AtomicU64,
}

impl Berths {
    /// A lane has found all berths taken.
    pub(super) fn want(&self, now: Time) {
        self.wanted.store(now.0, Ordering::Relaxed);
    }

    /// Whether a lane has found all berths taken in this time before `now`.
    pub(super) fn were_wanted(&self, now: Time, within: Duration) -> bool {
        let wanted = Time(self.wanted.load(Ordering::Relaxed));
        wanted != Time::ZERO && now.since(wanted) < within
    }
}

/// One lane's place in the count, free again when dropped.
pub(super) struct Berth(Arc<Capacity>);

impl Berth {
    /// `None`: all are taken.
    pub(super) fn take(capacity: &Arc<Capacity>) -> Option<Berth> {
        let berths = &capacity.lanes;
        let one_more = |n: usize| (n < berths.max).then_some(n + 1);
        berths.taken.fetch_update(Ordering::AcqRel, Ordering::Relaxed, one_more).ok()?;
        Some(Berth(capacity.clone()))
    }
}

impl Drop for Berth {
    fn drop(&mut self) {
        self.0.lanes.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How many dedicated connections the process may have, and has.
pub struct Places {
    max: usize,
    /// An idle connection is closed after this long; zero: never.
    pub(super) idle_timeout: Duration,
    taken: AtomicUsize,
    pub(super) idle: AtomicUsize,
    pub(super) given_up: AtomicU64,
    refused: AtomicU64,
    shelves: Mutex<Vec<Arc<Shelf>>>,
    pub(super) freed: Notify,
}

/// The idle connections of one thread, as the other threads see them.
pub(super) struct Shelf {
    /// Since when the least recently used one is idle ([`Time`] in nanoseconds).
    pub(super) oldest: AtomicU64,
    /// How many connections other threads ask to be given up.
    pub(super) wanted: AtomicUsize,
    pub(super) asked: Notify,
}

/// [`Shelf::oldest`] of a thread without idle connections.
pub(super) const NONE: u64 = u64::MAX;

fn lock(shelves: &Mutex<Vec<Arc<Shelf>>>) -> MutexGuard<'_, Vec<Arc<Shelf>>> {
    shelves.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Places {
    /// None is taken.
    fn new(max: usize, idle_timeout: Duration) -> Places {
        Places {
            max,
            idle_timeout,
            taken: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
            given_up: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            shelves: Mutex::default(),
            freed: Notify::new(),
        }
    }

    /// `max_dedicated`.
    pub fn max(&self) -> usize {
        self.max
    }

    /// Connections there are, idle ones included.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Connections that wait for a session.
    pub fn idle(&self) -> usize {
        self.idle.load(Ordering::Relaxed)
    }

    /// Idle connections closed because another session needed the place.
    pub fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Relaxed)
    }

    /// Sessions that got none because all were lent.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// A session was told that all are lent.
    pub fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until it is worth to try again: a place is free, or the thread that was asked has no idle connection left.
    /// Another session may be faster to take the place.
    pub async fn room(&self) {
        let mut freed = pin!(self.freed.notified());
        freed.as_mut().enable();
        if self.taken() >= self.max {
            freed.await;
        }
    }

    /// One more thread has idle connections.
    pub(super) fn add_shelf(&self) -> Arc<Shelf> {
        let shelf = Shelf { oldest: AtomicU64::new(NONE), wanted: AtomicUsize::new(0), asked: Notify::new() };
        let shelf = Arc::new(shelf);
        lock(&self.shelves).push(shelf.clone());
        shelf
    }

    /// The thread has ended.
    pub(super) fn remove_shelf(&self, shelf: &Arc<Shelf>) {
        lock(&self.shelves).retain(|other| !Arc::ptr_eq(other, shelf));
    }

    /// The thread whose idle connection was used least recently.
    pub(super) fn oldest(&self) -> Option<Arc<Shelf>> {
        let age = |shelf: &Arc<Shelf>| shelf.oldest.load(Ordering::Acquire);
        lock(&self.shelves).iter().min_by_key(|shelf| age(shelf)).filter(|shelf| age(shelf) != NONE).cloned()
    }
}

/// One connection's place in the count, free again when dropped.
pub(super) struct Seat(Arc<Capacity>);

impl Seat {
    /// `None`: all are taken.
    pub(super) fn take(capacity: &Arc<Capacity>) -> Option<Seat> {
        let places = &capacity.dedicated;
        let one_more = |n| (n < places.max).then_some(n + 1);
        places.taken.fetch_update(Ordering::AcqRel, Ordering::Relaxed, one_more).ok()?;
        Some(Seat(capacity.clone()))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.dedicated.taken.fetch_sub(1, Ordering::AcqRel);
        self.0.dedicated.freed.notify_waiters();
    }
}
