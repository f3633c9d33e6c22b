//! The cache and the clocks themselves, under schedules that an explorer chooses: every lock and every atomic is a place
//! where another thread may go on. (The model in tests/model looks at all schedules of the protocol; this looks at the code.)
//! `cargo test --features shuttle --test schedule`.
//!
//! A key's value on the server is a number that only grows. Time is a counter.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::future::poll_fn;
use std::sync::Arc;

use nearside::test_support::cache::entry::{CachedReply, Variant};
use nearside::test_support::cache::{Begin, Cache, FillTimes, FillToken, FlushCause, Lookup};
use nearside::test_support::clock::LaneStamp;
use nearside::test_support::time::Time;
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread::{self, JoinHandle};

/// Schedules looked at, half at random and half by changes of priority, which find rarer ones.
const SCHEDULES: usize = 20_000;
const CHANGES: usize = 3;

const GET: Variant<'static> = Variant { view: 0, id: 1, key: b"k", tail: b"" };
const STRLEN: Variant<'static> = Variant { id: 2, ..GET };

struct World {
    cache: Arc<Cache>,
    hash: u64,
    lane: LaneStamp,
    value: AtomicU64,
    clock: AtomicU64,
}

/// The server has answered; the answer is on its way.
struct Asked {
    token: FillToken,
    sent: Time,
    value: u64,
}

impl World {
    fn new(budget: u64) -> Arc<World> {
        let cache = Arc::new(Cache::new(budget, 1 << 10));
        let lane = cache.clocks.open_lane(Time(1)).expect("a lane");
        cache.clocks.advance_link(Time(1));
        let hash = cache.hash(b"k");
        Arc::new(World { cache, hash, lane, value: AtomicU64::new(0), clock: AtomicU64::new(1) })
    }

    fn now(&self) -> Time {
        Time(self.clock.fetch_add(1, Ordering::SeqCst) + 1)
    }

    fn drop_key(&self) {
        self.cache.drop_key(self.hash);
    }

    /// A read that fills, as far as the server's answer.
    fn ask(&self, v: &Variant<'_>) -> Option<Asked> {
        let Begin::Lead(token) = self.cache.begin(self.hash, v) else { return None };
        Some(Asked { token, sent: self.now(), value: self.value.load(Ordering::SeqCst) })
    }

    /// The answer arrives.
    fn keep(&self, v: &Variant<'_>, asked: Option<Asked>) {
        let Some(Asked { token, sent, value }) = asked else { return };
        let stored = self.now();
        let times = FillTimes { sent, stored, deadline: Time::NEVER };
        if !self.cache.fill(token, v, &value.to_be_bytes(), times, self.lane) {
            self.cache.observe(self.hash, stored);
        }
    }

    fn read(&self, v: &Variant<'_>) {
        self.keep(v, self.ask(v));
    }

    /// What a hit as of `watermark` shows.
    fn hit(&self, v: &Variant<'_>, watermark: Time) -> Option<u64> {
        let value = |node: &CachedReply| u64::from_be_bytes(node.reply().try_into().expect("eight bytes"));
        match self.cache.lookup(self.hash, v, Time(0), watermark, value) {
            Lookup::Hit(value) => Some(value),
            _ => None,
        }
    }

    /// Somebody writes, and the link applies the report and a PONG behind it.
    fn change(&self, report: impl FnOnce()) -> u64 {
        let value = self.value.fetch_add(1, Ordering::SeqCst) + 1;
        let pinged = self.now();
        report();
        self.cache.clocks.advance_link(pinged);
        self.cache.clocks.advance_lane(self.lane, pinged);
        value
    }
}

fn explore(world: impl Fn() + Send + Sync + 'static) {
    let world = Arc::new(world);
    let again = world.clone();
    shuttle::check_random(move || world(), SCHEDULES / 2);
    shuttle::check_pct(move || again(), SCHEDULES / 2, CHANGES);
}

fn spawn(world: &Arc<World>, work: impl FnOnce(&World) + Send + 'static) -> JoinHandle<()> {
    let world = world.clone();
    thread::spawn(move || work(&world))
}

fn join(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
}

/// Invariant 1, and with it rule 2: once a drop is over, nothing older is served.
#[test]
fn no_fill_survives_a_drop() {
    explore(|| {
        let w = World::new(1 << 20);
        let readers = [GET, STRLEN, GET].map(|v| spawn(&w, move |w| w.read(&v)));
        let dropper = spawn(&w, |w| {
            for _ in 0..2 {
                let value = w.change(|| w.drop_key());
                for v in [GET, STRLEN] {
                    assert!(w.hit(&v, Time(0)).is_none_or(|seen| seen >= value), "older than the drop");
                }
            }
        });
        join(readers.into_iter().chain([dropper]));
    });
}

/// Invariant 2 and the order of `judge`: who demands a time behind a flush meets nothing from before it.
#[test]
fn no_hit_passes_a_flush() {
    explore(|| {
        let w = World::new(1 << 20);
        w.read(&GET);
        let flusher = spawn(&w, |w| {
            w.change(|| w.cache.flush(FlushCause::Invalidated));
        });
        let filler = spawn(&w, |w| w.read(&STRLEN));
        let reader = spawn(&w, |w| {
            for v in [GET, STRLEN] {
                let known = w.value.load(Ordering::SeqCst);
                let watermark = w.now();
                assert!(w.hit(&v, watermark).is_none_or(|seen| seen >= known), "older than what was known");
            }
        });
        join([flusher, filler, reader]);
    });
}

/// Invariant 4: what was told past the cache is not contradicted, by a fill on its way, by another variant, or after an
/// eviction.
#[test]
fn nobody_is_told_anything_older() {
    explore(|| {
        // So little room that fills evict each other.
        let w = World::new(300);
        let readers = [GET, STRLEN].map(|v| spawn(&w, move |w| w.read(&v)));
        let teller = spawn(&w, |w| {
            // Its report has not come yet.
            let value = w.value.fetch_add(1, Ordering::SeqCst) + 1;
            let told = w.now();
            w.cache.observe(w.hash, told);
            for v in [GET, STRLEN, GET] {
                assert!(w.hit(&v, Time(0)).is_none_or(|seen| seen >= value), "older than what was told");
            }
        });
        let sweeper = spawn(&w, |w| w.cache.sweep(Time(0)));
        join(readers.into_iter().chain([teller, sweeper]));
    });
}

/// What is evicted was told all the same: an older reply, still on its way then, must not be served after it.
#[test]
fn an_eviction_forgets_nothing() {
    explore(|| {
        // No reply fits: each is evicted as soon as it is stored.
        let w = World::new(100);
        let asked = w.ask(&STRLEN);
        let late = spawn(&w, |w| w.keep(&STRLEN, asked));
        let teller = spawn(&w, |w| {
            // Its report has not come yet.
            let value = w.value.fetch_add(1, Ordering::SeqCst) + 1;
            w.read(&GET);
            for _ in 0..3 {
                assert!(w.hit(&STRLEN, Time(0)).is_none_or(|seen| seen >= value), "older than what was told");
            }
        });
        join([late, teller]);
    });
}

/// Two replies about one key: what a hit on one has shown, a hit on the other does not take back.
#[test]
fn variants_do_not_contradict_each_other() {
    explore(|| {
        let w = World::new(1 << 20);
        let filler = spawn(&w, |w| {
            w.read(&GET);
            w.value.fetch_add(1, Ordering::SeqCst);
            w.read(&STRLEN);
        });
        let reader = spawn(&w, |w| {
            let mut best = 0;
            for v in [STRLEN, GET, STRLEN, GET] {
                let Some(seen) = w.hit(&v, Time(0)) else { continue };
                assert!(seen >= best, "back in time: {seen} after {best}");
                best = seen;
            }
        });
        join([filler, reader]);
    });
}

/// Who joins a flight is woken, whatever becomes of it; and none is left behind.
#[test]
fn flights_land() {
    explore(|| {
        let w = World::new(1 << 20);
        let readers = [0, 1, 2].map(|_| {
            spawn(&w, |w| match w.cache.begin(w.hash, &GET) {
                Begin::Lead(token) => drop(token),
                Begin::Join(flight) => shuttle::future::block_on(poll_fn(|cx| flight.poll_landed(cx))),
            })
        });
        let dropper = spawn(&w, World::drop_key);
        join(readers.into_iter().chain([dropper]));
        assert_eq!(w.cache.flights(), 0);
    });
}

/// A lane's slot is used again: the new lane's clock proves nothing about what the old one filled.
#[test]
fn a_lanes_successor_proves_nothing() {
    explore(|| {
        let w = World::new(1 << 20);
        w.read(&GET);
        let successor = spawn(&w, |w| {
            // The lane is dead at the server, and then somebody writes: no report comes. Later the proxy notices.
            w.value.fetch_add(1, Ordering::SeqCst);
            w.cache.clocks.close_lane(w.lane);
            let lane = w.cache.clocks.open_lane(w.now()).expect("a slot");
            w.cache.clocks.advance_lane(lane, w.now());
            w.cache.clocks.advance_link(w.now());
        });
        let reader = spawn(&w, |w| {
            let known = w.value.load(Ordering::SeqCst);
            let watermark = w.now();
            assert!(w.hit(&GET, watermark).is_none_or(|seen| seen >= known), "proven by another lane");
        });
        join([successor, reader]);
    });
}

/// Whatever happens at once, in the end the accounts are those of an empty cache.
#[test]
fn the_accounts_balance() {
    explore(|| {
        let w = World::new(300);
        let threads = [
            spawn(&w, |w| w.read(&GET)),
            spawn(&w, |w| w.read(&STRLEN)),
            spawn(&w, World::drop_key),
            spawn(&w, |w| w.cache.sweep(Time(0))),
        ];
        join(threads);
        w.cache.flush(FlushCause::Admin);
        w.cache.sweep(Time(0));
        assert_eq!((w.cache.used(), w.cache.replies(), w.cache.keys()), (0, 0, 0));
    });
}
