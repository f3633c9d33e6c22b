//! The one policy for a panic, which is a bug wherever it comes up: no client waits for ever, nothing stale is served,
//! and half a proxy is worse than none.
//!
//! | where | what follows |
//! |---|---|
//! | a session | its connection is closed; its places of `maxclients` and `max_dedicated` are free again |
//! | the task of a lane or of a dedicated connection, or one beside it | as if the connection were lost: what is awaited fails as unknown, what the lane filled is void, a lane comes back |
//! | an audit | it counts as skipped |
//! | all of a thread: a worker, the link with the watch, the sweep, the log, an acceptor, the main thread | the process ends at once, with [`EXIT_CODE`]: its supervisor starts it again |
//!
//! A panic may leave an effect on the cache half done, so each that does not end the process flushes the cache. A reply's
//! place that is dropped unfilled, by whatever, tells its session so ([`crate::outbox::Place`]). Each panic is an ERROR in
//! the log, and counted.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use crate::logging;

/// How the process exits after a panic that it cannot go on after (`EX_SOFTWARE` of sysexits.h).
pub const EXIT_CODE: u8 = 70;
/// How long the log may take to be written before that.
const LOG_TAKES: Duration = Duration::from_secs(1);

static COUNT: AtomicU64 = AtomicU64::new(0);

/// Panics so far.
pub fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// Something has panicked; the log has the details.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panicked;

/// Has panics logged and counted instead of written to stderr, where a full pipe would hold up the thread.
pub fn log_them() {
    std::panic::set_hook(Box::new(|panic| {
        COUNT.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::current();
        let place = panic.location().map_or_else(|| "an unknown place".into(), ToString::to_string);
        tracing::error!(
            "thread '{}' panicked at {place}: {}; this is a bug of nearside's\n{}",
            thread.name().unwrap_or("unnamed"),
            message(panic.payload()),
            std::backtrace::Backtrace::capture()
        );
    }));
}

fn message(payload: &dyn Any) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// The outcome of `work`, or the news that it has panicked.
pub async fn caught<F: Future>(work: F) -> Result<F::Output, Panicked> {
    let mut work = pin!(work);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(_) => Poll::Ready(Err(Panicked)),
    })
    .await
}

/// Does `work`; a panic in it ends the process.
pub fn fatal<T>(who: &str, work: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| end(who))
}

/// The same of a task.
pub async fn fatal_in<F: Future>(who: &str, work: F) -> F::Output {
    match caught(work).await {
        Ok(output) => output,
        Err(Panicked) => end(who),
    }
}

#[expect(clippy::exit, reason = "a thread is dead: the policy at the top of this file")]
fn end(who: &str) -> ! {
    tracing::error!("{who} has panicked: the process ends at once, with exit code {EXIT_CODE}");
    logging::flush(LOG_TAKES);
    std::process::exit(EXIT_CODE.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_caught_at_whatever_poll_it_comes() {
        assert_eq!(caught(async { 7 }).await, Ok(7));
        let later = async {
            tokio::task::yield_now().await;
            panic!("a panic on purpose");
        };
        assert_eq!(caught::<_>(later).await.map(|never: ()| never), Err(Panicked));
    }
}
