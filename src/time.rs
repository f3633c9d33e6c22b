//! One clock for everything that is compared: nanoseconds since boot, suspended time included.

use std::cell::Cell;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A moment of CLOCK_BOOTTIME, in nanoseconds. It never goes back when the wall clock is set, and it goes on
/// while the process is stopped or the machine sleeps, so an answer cannot look younger than it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Time(pub u64);

impl Time {
    /// Before everything.
    pub const ZERO: Time = Time(0);
    /// After everything: a deadline that never comes.
    pub const NEVER: Time = Time(u64::MAX);

    /// Reads the clock (one vDSO call).
    pub fn now() -> Time {
        if cfg!(feature = "simulated")
            && let Some(time) = simulated()
        {
            return time;
        }
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Time(t.tv_sec.cast_unsigned() * 1_000_000_000 + t.tv_nsec.cast_unsigned())
    }

    /// How long ago `earlier` was; zero if it is not in the past.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The clock's time when a simulation begins.
const BEGIN: u64 = 1_000_000_000;

thread_local! {
    /// When this thread's simulation began by tokio's clock, and the latest reading.
    static SIMULATION: Cell<Option<(tokio::time::Instant, u64)>> = const { Cell::new(None) };
}

/// In a simulation, tokio's clock. While it stands still each reading is a nanosecond later than the last, so that what one
/// thread does one after another also follows one another in time.
fn simulated() -> Option<Time> {
    let (began, last) = SIMULATION.get()?;
    let now = tokio::time::Instant::now();
    let passed = u64::try_from((now - began).as_nanos()).unwrap_or(u64::MAX);
    let reading = passed.saturating_add(BEGIN).max(last + 1);
    SIMULATION.set(Some((began, reading)));
    Some(Time(reading))
}

/// From here on this thread's time is tokio's, and begins anew.
#[cfg_attr(feature = "program", expect(dead_code, reason = "the simulation begins so"))]
pub fn begin_simulation() {
    SIMULATION.set(Some((tokio::time::Instant::now(), 0)));
}

impl Add<Duration> for Time {
    type Output = Time;
    fn add(self, d: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Time {
    type Output = Time;
    fn sub(self, d: Duration) -> Time {
        Time(self.0.saturating_sub(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}
