//! Bytes that pass unlooked at on a dedicated connection, since their replies are not matched: MONITOR, CLIENT REPLY, and
//! whatever else leaves the positions unknown. Each piece waits for a barrier all the same, since an ack may be among them.

use std::cell::RefMut;
use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;

use super::frame::is_told;
use super::panicking;
use super::pipeline::Expect;
use super::{Connection, Phase, State, Use};
use crate::outbox::{Piece, Place};
use crate::sabotage;
use crate::time::Time;
use crate::upstream::monitor;

/// Bytes that wait for their barrier on a connection whose bytes pass unlooked at; what is above waits at the server.
const RAW_SOFT: usize = 1 << 20;

/// How bytes are passed on whose replies are not matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raw {
    /// An ack may be among them, so each piece waits for a barrier.
    Acting,
    /// The session has said what no invalidation announces, SWAPDB or a change of rights: before each piece the watch looks
    /// besides whether the server has done one, and flushes if it has.
    Swapping,
    /// MONITOR: the server lets such a connection touch no key. (A barrier's own PING would show up in it, and want a
    /// barrier, without end.) What proxies say for themselves is left out ([`monitor`]). Once the session has said what changes
    /// rights, a reply waits for a look, and what comes behind it waits too.
    Watching,
}

/// The bytes that pass.
#[derive(Default)]
pub(super) struct PassThrough {
    /// Everything that comes is passed on as it is (MONITOR, CLIENT REPLY …).
    mode: Option<Raw>,
    /// When bytes were last sent so.
    sent: Time,
    /// MONITOR: what is known of those whose commands are shown.
    lines: Option<Box<monitor::Lines>>,
    queue: VecDeque<(Time, Bytes)>,
    /// Bytes in there; above [`RAW_SOFT`] nothing more is read.
    waiting: usize,
    /// The session has said what changes rights though it watches.
    heeds: bool,
}

/// How bytes that have come are dealt with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Intake {
    /// Frame by frame.
    Frames,
    /// As they are.
    Bytes,
    /// Not yet.
    Later,
}

impl PassThrough {
    /// Whether all replies are matched.
    pub(super) fn is_off(&self) -> bool {
        self.mode.is_none()
    }

    /// Whether the server tells what others say.
    pub(super) fn is_watching(&self) -> bool {
        self.mode == Some(Raw::Watching)
    }

    /// Bytes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// How bytes that come now are dealt with.
    pub(super) fn intake(&self) -> Intake {
        match self.mode {
            Some(Raw::Watching) if self.lines_wait() => Intake::Later,
            None | Some(Raw::Watching) => Intake::Frames,
            Some(Raw::Acting | Raw::Swapping) => Intake::Bytes,
        }
    }

    /// The server has begun to tell what others say.
    pub(super) fn begin_watching(&mut self) {
        self.mode = Some(Raw::Watching);
        self.lines = Some(Box::default());
    }

    /// Whether the server's lines wait until it is known whose are to be left out.
    fn lines_wait(&self) -> bool {
        self.lines.as_ref().is_some_and(|lines| lines.wait())
    }

    /// Whether more is read; what waits for long waits at the server.
    pub(super) fn takes_more(&self) -> bool {
        self.waiting <= RAW_SOFT && !self.lines_wait()
    }

    /// Whether the lines that have waited are to be looked at now.
    pub(super) fn go_on(&mut self) -> bool {
        self.lines.as_mut().is_some_and(|lines| lines.go_on())
    }

    /// Forgets what waits: a task that has panicked tells none of it.
    pub(super) fn forget(&mut self) {
        self.queue.clear();
        self.waiting = 0;
    }

    fn put(&mut self, bytes: Bytes, now: Time) {
        self.waiting += bytes.len();
        self.queue.push_back((now, bytes));
    }

    fn pop(&mut self) -> Option<Bytes> {
        let (_, bytes) = self.queue.pop_front()?;
        self.waiting -= bytes.len();
        Some(bytes)
    }
}

impl Connection {
    /// Sends MONITOR.
    pub fn send_monitor(&self, request: Piece<'_>, place: Place, now: Time) {
        self.enqueue(request, Expect::Monitor { place }, now);
    }

    /// Whether the server tells it what others say.
    pub fn is_watching(&self) -> bool {
        self.dedicated(|dedicated| dedicated.passing.is_watching())
    }

    /// Sends bytes whose replies are passed on as they come.
    pub fn send_raw(&self, bytes: Bytes, raw: Raw) {
        self.dedicated(|dedicated| {
            dedicated.passing.mode = Some(raw);
            dedicated.passing.sent = Time::now();
        });
        let mut state = self.state.borrow_mut();
        state.pipeline.push_raw(bytes);
        state.wake();
    }

    /// From here on each reply waits for a look, though its session watches.
    pub fn heed(&self) {
        self.dedicated(|dedicated| dedicated.passing.heeds = true);
    }

    /// Whether bytes were sent whose replies are passed on as they come, and nothing has come since, or not all of it been told.
    pub fn owes_raw(&self) -> bool {
        let heard = self.heard();
        self.dedicated(|dedicated| dedicated.passing.sent >= heard || !dedicated.passing.is_empty())
    }

    /// MONITOR has begun: CLIENT LIST is asked whose lines are to be left out. Until then they wait.
    pub(super) fn learn_proxies(self: &Rc<Self>) {
        let connection = self.clone();
        panicking::beside(self, async move {
            let list = monitor::list(&connection.node).await;
            connection.dedicated(|dedicated| {
                if let Some(lines) = &mut dedicated.passing.lines {
                    lines.know(list);
                }
            });
            connection.state.borrow().wake();
        });
    }

    /// A frame that has come while the server tells what others say.
    pub(super) fn show(self: &Rc<Self>, mut state: RefMut<'_, State>, frame: Piece<'_>, now: Time) {
        let Use::Dedicated(dedicated) = &mut state.purpose else { return };
        let (bytes, passing) = (frame.as_slice(), &mut dedicated.passing);
        let hidden = passing.lines.as_mut().is_some_and(|lines| lines.hide(bytes, &self.node.table.load()));
        let Some(session) = dedicated.session.clone().filter(|_| !hidden) else { return };
        let waits = passing.heeds && (!is_told(bytes) || !passing.is_empty());
        drop(state);
        if waits { self.pass_on(frame.into_bytes(), now) } else { session.push(frame) }
    }

    /// Tells the session these bytes, once it may know what they say.
    pub(super) fn pass_on(self: &Rc<Self>, bytes: Bytes, now: Time) {
        let is_only_one = self.dedicated(|dedicated| {
            dedicated.passing.put(bytes, now);
            dedicated.passing.queue.len() == 1
        });
        if !is_only_one {
            return;
        }
        let connection = self.clone();
        panicking::beside(self, async move { while connection.pass_next_on().await {} });
    }

    /// Tells the session the first of what waits. False: nothing does.
    async fn pass_next_on(&self) -> bool {
        sabotage::panic_at("raw");
        let front = self.dedicated(|dedicated| {
            let passing = &dedicated.passing;
            passing.queue.front().map(|(at, bytes)| (passing.mode, *at, is_told(bytes)))
        });
        let Some((raw, at, told)) = front else { return false };
        if raw != Some(Raw::Watching) {
            self.node.coherence.barrier(at).await;
        }
        if raw == Some(Raw::Swapping) || raw == Some(Raw::Watching) && !told {
            self.look_since(at).await;
        }
        let mut state = self.state.borrow_mut();
        let closed = matches!(state.phase, Phase::Closed(_));
        let Use::Dedicated(dedicated) = &mut state.purpose else { return false };
        let Some(bytes) = dedicated.passing.pop() else { return false };
        let over = closed && dedicated.passing.is_empty();
        let session = dedicated.session.clone();
        state.wake();
        drop(state);
        if let Some(session) = session {
            session.push(Piece::Bytes(bytes));
            if over {
                session.break_off();
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_wait_are_counted() {
        let mut passing = PassThrough { mode: Some(Raw::Acting), ..PassThrough::default() };
        assert!(passing.intake() == Intake::Bytes && passing.takes_more() && passing.is_empty());
        passing.put(vec![0; RAW_SOFT].into(), Time(1));
        passing.put(vec![0].into(), Time(2));
        assert!(!passing.takes_more() && passing.waiting() == RAW_SOFT + 1);
        assert!(passing.pop().is_some_and(|bytes| bytes.len() == RAW_SOFT) && passing.waiting() == 1);
        passing.forget();
        assert!(passing.is_empty() && passing.waiting() == 0);
    }

    #[test]
    fn lines_wait_until_it_is_known_whose_they_are() {
        let mut passing =
            PassThrough { mode: Some(Raw::Watching), lines: Some(Box::default()), ..PassThrough::default() };
        assert!(passing.intake() == Intake::Later && !passing.takes_more() && !passing.go_on());
        passing.lines.as_mut().expect("lines").know(Ok("$0\r\n\r\n".into()));
        assert!(passing.go_on() && !passing.go_on() && passing.intake() == Intake::Frames);
        assert!(PassThrough::default().intake() == Intake::Frames && PassThrough::default().is_off());
    }
}
