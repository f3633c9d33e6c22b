//! Single flight: reads on their way upstream that others may wait for.

use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

/// One read on its way. It lands when its token is dropped, whatever became of it; who waited then looks again.
#[derive(Default)]
pub struct Flight {
    landed: AtomicBool,
    waiters: Mutex<Vec<Waker>>,
}

impl Flight {
    /// Ready once the flight has landed.
    pub fn poll_landed(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.landed.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        // Checked again under the lock: `land` sets the flag before it takes the lock.
        if self.landed.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        if !waiters.iter().any(|w| w.will_wake(cx.waker())) {
            waiters.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Wakes everybody.
    pub(super) fn land(&self) {
        self.landed.store(true, Ordering::Release);
        let waiters = std::mem::take(&mut *self.waiters.lock().unwrap_or_else(PoisonError::into_inner));
        waiters.into_iter().for_each(Waker::wake);
    }
}
