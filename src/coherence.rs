//! The consistency contract in one place: what the link's events do to the cache, and what each level asks of a hit.
//!
//! Events are applied by the very task that reads the link, in order, before the next one is looked at: there is no
//! channel in between, so nothing can be reordered or shed.

pub mod mortal;
pub mod standing;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use atomic_waker::AtomicWaker;
use tokio::sync::Notify;

use crate::cache::events::Event;
use crate::cache::{Cache, FlushCause, MissingProof};
use crate::clock::{Clocks, LaneStamp, MAX_LANES};
use crate::config::Level;
use crate::sabotage::{self, Rule};
use crate::time::Time;
use standing::{Mode, Standing};

/// One incarnation of the link.
#[derive(Debug, PartialEq, Eq)]
pub struct LinkId {
    /// Counts up with every reconnect; never 0.
    pub generation: u64,
    /// The server's number for the connection: what lanes redirect their tracking to.
    pub client_id: i64,
    /// How changes are reported.
    pub mode: Mode,
}

/// Shared by the link, the lanes and the sessions of every thread.
pub struct Coherence {
    /// The cache kept coherent.
    pub cache: Arc<Cache>,
    max_staleness: Duration,
    /// Generation of the living link; 0 while it is down.
    generation: AtomicU64,
    link: ArcSwapOption<LinkId>,
    standing: ArcSwap<Standing>,
    /// Where questions about hash fields are hopeless.
    pub mortal: mortal::MortalFields,
    /// The standing's strongest level, where every read can see it.
    strongest: AtomicU8,
    link_waker: AtomicWaker,
    lane_wakers: Box<[AtomicWaker]>,
    moved: Notify,
    /// When the latest PING was sent that the server answered by an error.
    refused: AtomicU64,
    /// When the latest of the replies arrived that have waited for a barrier. What they are about may have changed any key.
    settled: AtomicU64,
    waiting: AtomicUsize,
    /// Sessions and replies that had to wait for a clock.
    pub waits: AtomicU64,
}

impl Coherence {
    /// For one upstream node.
    pub fn new(cache: Arc<Cache>, max_staleness: Duration) -> Coherence {
        Coherence {
            cache,
            max_staleness,
            generation: AtomicU64::new(0),
            link: ArcSwapOption::empty(),
            standing: ArcSwap::from_pointee(Standing { mode: Err("not connected yet".into()), replica: false }),
            mortal: mortal::MortalFields::default(),
            strongest: AtomicU8::new(Level::Linearizable as u8),
            link_waker: AtomicWaker::new(),
            lane_wakers: (0..MAX_LANES).map(|_| AtomicWaker::new()).collect(),
            moved: Notify::new(),
            refused: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            waits: AtomicU64::new(0),
        }
    }

    fn clocks(&self) -> &Clocks {
        &self.cache.clocks
    }

    // --- what can be kept ---

    /// The link has found out what the server does. To be said before [`Coherence::link_up`].
    pub fn stand(&self, standing: Standing) {
        self.strongest.store(standing.strongest() as u8, Ordering::Release);
        self.standing.store(Arc::new(standing));
    }

    /// The present [`Standing`].
    pub fn standing(&self) -> Arc<Standing> {
        self.standing.load_full()
    }

    /// Whether hits at this level would keep their promise.
    pub fn keeps(&self, level: Level) -> bool {
        level == Level::Bounded || level as u8 <= self.strongest.load(Ordering::Acquire)
    }

    // --- events of the link, in its own task ---

    /// The link is subscribed, and a PING sent at `t` has come back.
    pub fn link_up(&self, id: LinkId, t: Time) {
        let generation = id.generation;
        self.link.store(Some(Arc::new(id)));
        self.clocks().advance_link(t);
        self.generation.store(generation, Ordering::Release);
        self.moved.notify_waiters();
    }

    /// The link is lost. Order matters: no lane may believe itself armed (`generation`) once the new epoch can be
    /// sampled by a token; see [`Coherence::generation`].
    pub fn link_lost(&self) {
        self.generation.store(0, Ordering::Release);
        self.link.store(None);
        self.clocks().stop_link();
        self.flush(FlushCause::LinkLost);
        self.moved.notify_waiters();
    }

    /// The server reports, in bytes that came at `now`, a changed key.
    pub fn key_changed(&self, key: &[u8], now: Time) {
        self.cache.stats.invalidations.fetch_add(1, Ordering::Relaxed);
        let hash = self.cache.hash(key);
        self.cache.drop_key(hash);
        self.cache.events.note(hash, now, Event::Invalidated);
    }

    /// The server reports that everything changed.
    pub fn everything_changed(&self) {
        self.flush(FlushCause::Invalidated);
    }

    /// Everything may have changed.
    pub fn flush(&self, cause: FlushCause) {
        self.cache.flush(cause);
        self.cache.events.flushed(Time::now(), cause);
    }

    /// The PONG of the PING sent at `t` is here: all that was acknowledged before `t` has been applied.
    pub fn link_pong(&self, t: Time) {
        self.clocks().advance_link(t);
        self.wake_waiting();
    }

    /// The PING sent at `t` was answered by an error (`-BUSY`, `-MASTERDOWN` …): it proves nothing, and the next may not
    /// either, for as long as somebody likes.
    pub fn link_refused(&self, t: Time) {
        self.refused.store(t.0, Ordering::Release);
        self.wake_waiting();
    }

    fn refused_since(&self, t: Time) -> bool {
        self.refused.load(Ordering::Acquire) >= t.0
    }

    /// A lane has answered something sent at `t`.
    pub fn lane_answered(&self, lane: LaneStamp, t: Time) {
        self.clocks().advance_lane(lane, t);
        self.wake_waiting();
    }

    fn wake_waiting(&self) {
        if self.waiting.load(Ordering::Acquire) > 0 {
            self.moved.notify_waiters();
        }
    }

    /// The living link's generation. A lane armed for it may fill, **if this is asked after the token was taken**: the
    /// generation goes before the epoch does, so a token of the new epoch never meets an old generation.
    pub fn generation(&self) -> Option<u64> {
        Some(self.generation.load(Ordering::Acquire)).filter(|g| *g != 0)
    }

    /// How the living link hears of changes.
    pub fn mode(&self) -> Option<Mode> {
        self.link.load().as_ref().map(|link| link.mode)
    }

    /// The living link.
    pub fn link(&self) -> Option<Arc<LinkId>> {
        self.link.load_full()
    }

    /// How old the freshness clock is; `None` while the link is down.
    pub fn clock_age(&self, now: Time) -> Option<Duration> {
        self.generation().map(|_| now.since(self.clocks().link()))
    }

    // --- levels ---

    /// The time as of which a hit must be fresh: of a request that arrived at or before `now`, in a session that has
    /// last seen something of time `seen`. `asked`: when it arrived, or what its session said before it was answered.
    ///
    /// A script's write is reported to the lanes that read the key and were alive then. So once a script was answered,
    /// a hit needs a lane that is known to have been alive later; what was answered after `asked` does not matter.
    pub fn watermark(&self, level: Level, now: Time, asked: Time, seen: Time) -> Time {
        let settled = Time(self.settled.load(Ordering::Acquire)).min(asked);
        let bound = settled.max(now - self.max_staleness);
        match level {
            Level::Bounded => bound,
            Level::Causal => bound.max(seen),
            Level::Linearizable => now,
        }
    }

    // --- waiting ---

    /// Asks link and lane for a PING and waits until both have reached `need`. False if the link or the lane is lost
    /// meanwhile, or after `patience`: the read then goes upstream.
    pub async fn reach(&self, need: MissingProof, patience: Duration) -> bool {
        let lane = Some(need.lane);
        self.wait(need.time, lane, patience).await
    }

    /// Waits until everything acknowledged before `t` is reflected in the cache: by the link's clock, and the watermark of
    /// all hits that are asked for from now on; or because everything is void, since the link was lost or the server will
    /// not say PONG.
    pub async fn barrier(&self, t: Time) {
        if sabotage::on(Rule::Barrier) {
            return;
        }
        while !self.wait(t, None, Duration::from_secs(1)).await {
            if self.generation().is_none() || self.refused_since(t) {
                // Whoever is told now must find nothing older, whether a lost link has flushed everything yet or not.
                return self.cache.void();
            }
        }
        self.settled.fetch_max(t.0, Ordering::AcqRel);
    }

    async fn wait(&self, t: Time, lane: Option<LaneStamp>, patience: Duration) -> bool {
        let _waiting = BarrierWaiter::new(self);
        self.waits.fetch_add(1, Ordering::Relaxed);
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let mut moved = std::pin::pin!(self.moved.notified());
            moved.as_mut().enable();
            let lane_time = match lane {
                None => Time::NEVER,
                Some(lane) => match self.clocks().lane(lane) {
                    Some(t) => t,
                    None => return false,
                },
            };
            if self.clocks().link().min(lane_time) >= t {
                return true;
            }
            if self.generation().is_none() || self.refused_since(t) {
                return false;
            }
            self.want_ping(t, lane);
            if tokio::time::timeout_at(deadline, moved).await.is_err() {
                return false;
            }
        }
    }

    fn want_ping(&self, t: Time, lane: Option<LaneStamp>) {
        if self.clocks().want_link(t) {
            self.link_waker.wake();
        }
        if let Some(lane) = lane
            && self.clocks().lane(lane).is_some_and(|have| have < t)
            && self.clocks().want_lane(lane, t)
        {
            self.lane_wakers[Clocks::slot(lane)].wake();
        }
    }

    /// The link's task registers to be woken when a PING is wanted.
    pub fn register_link(&self, waker: &std::task::Waker) {
        self.link_waker.register(waker);
    }

    /// A lane's task registers to be woken when a PING is wanted.
    pub fn register_lane(&self, lane: LaneStamp, waker: &std::task::Waker) {
        self.lane_wakers[Clocks::slot(lane)].register(waker);
    }
}

/// Counts who waits, so that a PONG nobody waits for wakes nobody.
struct BarrierWaiter<'a>(&'a AtomicUsize);

impl<'a> BarrierWaiter<'a> {
    fn new(coherence: &'a Coherence) -> Self {
        coherence.waiting.fetch_add(1, Ordering::AcqRel);
        BarrierWaiter(&coherence.waiting)
    }
}

impl Drop for BarrierWaiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn behind_a_barrier_hits_are_proven_as_of_then_if_they_were_asked_for_later() {
        let coherence = Coherence::new(Arc::new(Cache::new(1 << 20, 1 << 10)), Duration::from_nanos(100));
        coherence.link_up(LinkId { generation: 1, client_id: 1, mode: Mode::Tracked }, Time(2000));
        let watermark = |asked| coherence.watermark(Level::Bounded, Time(1100), Time(asked), Time::ZERO);
        assert_eq!(watermark(1100), Time(1000));
        coherence.barrier(Time(1050)).await;
        coherence.barrier(Time(1040)).await;
        assert_eq!([watermark(1100), watermark(1045), watermark(900)], [Time(1050), Time(1045), Time(1000)]);
        assert_eq!(coherence.watermark(Level::Linearizable, Time(1100), Time(1100), Time::ZERO), Time(1100));
    }
}
