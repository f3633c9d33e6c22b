//! Moving bytes between a connection and its socket, until there is a reason to end.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::BytesMut;

use super::{Connection, State, Use};
use crate::resp::Cutter;
use crate::time::Time;
use crate::transport::Stream;

/// Reads before the thread's sessions get their turn.
const READS_PER_TURN: usize = 16;

/// Why a connection ends whose socket another gets.
pub(super) const GIVEN_AWAY: io::ErrorKind = io::ErrorKind::ConnectionAborted;

/// Moves bytes both ways until the connection ends; returns why.
pub(super) async fn pump(connection: &Rc<Connection>, stream: &mut Stream, input: &mut BytesMut) -> io::Error {
    let mut cutter = Cutter::default();
    let mut ticks = tokio::time::interval(connection.node.settings.heartbeat);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut pending_input = !input.is_empty();
    poll_fn(|cx| {
        if std::mem::take(&mut pending_input)
            && let Some(e) = connection.take_replies(input, &mut cutter)
        {
            return Poll::Ready(e);
        }
        match connection.turn(cx, stream, input, &mut cutter, &mut ticks) {
            Ok(()) => Poll::Pending,
            Err(e) => Poll::Ready(e),
        }
    })
    .await
}

/// Has a connection polled again after the sessions: woken at once it would be the next in its own line, and could bring
/// more than a session may have before that is asked.
pub fn wake_after_sessions(cx: &mut Context<'_>) {
    // Polling a fresh `yield_now` puts this task on the runtime's deferred list: it is woken after the sessions now ready have run.
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

impl Connection {
    fn turn(
        self: &Rc<Self>,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        input: &mut BytesMut,
        cutter: &mut Cutter,
        ticks: &mut tokio::time::Interval,
    ) -> io::Result<()> {
        if self.attend(cx)
            && let Some(e) = self.take_replies(input, cutter)
        {
            return Err(e);
        }
        let mut reads = 0;
        while self.takes_more() {
            match stream.poll_more(cx, input, cutter.need()) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the server")),
                Poll::Ready(Ok(_)) => self.take_replies(input, cutter).map_or(Ok(()), Err)?,
                Poll::Ready(Err(e)) => return Err(e),
            }
            reads += 1;
            if reads == READS_PER_TURN {
                wake_after_sessions(cx);
                break;
            }
        }
        while ticks.poll_tick(cx).is_ready() {
            self.tick()?;
        }
        let mut state = self.state.borrow_mut();
        state.is_to_end()?;
        if state.comes_to_rest() {
            self.node.lanes_rested.fetch_add(1, Ordering::Relaxed);
            return Err(io::Error::new(io::ErrorKind::Interrupted, "unused"));
        }
        if let Poll::Ready(Err(e)) = stream.poll_write(cx, state.pipeline.out()) {
            return Err(e);
        }
        state.is_given_away(input)
    }

    /// Whether more is read; what waits for long waits at the server.
    fn takes_more(&self) -> bool {
        match &self.state.borrow().purpose {
            Use::Lane(_) => true,
            Use::Dedicated(dedicated) => dedicated.passing.takes_more(),
        }
    }

    /// Registers to be woken, and sends the PING that somebody waits for. Whether bytes that have waited are to be looked at now.
    fn attend(&self, cx: &Context<'_>) -> bool {
        let mut state = self.state.borrow_mut();
        match &mut state.waker {
            Some(old) if old.will_wake(cx.waker()) => {}
            slot => *slot = Some(cx.waker().clone()),
        }
        if let Use::Dedicated(dedicated) = &mut state.purpose {
            return dedicated.passing.go_on();
        }
        self.attend_clock(&mut state, cx);
        false
    }

    /// Every heartbeat: what a lane's filling wants, and a look at whether the node is still there.
    fn tick(self: &Rc<Self>) -> io::Result<()> {
        let now = Time::now();
        let mut state = self.state.borrow_mut();
        let silent = state.silence(now, Time(self.node.seen.load(Ordering::Relaxed)));
        if silent > self.node.settings.upstream_timeout {
            let text = format!("no sign of life from the server for {} ms", silent.as_millis());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        self.tick_lane(&mut state, now);
        Ok(())
    }
}

impl State {
    /// An error if the connection has been broken or given up.
    fn is_to_end(&mut self) -> io::Result<()> {
        if let Some(why) = self.broken.take() {
            if let Use::Dedicated(dedicated) = &mut self.purpose {
                // A task that has panicked tells none of these.
                dedicated.passing.forget();
            }
            return Err(why);
        }
        if self.close {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "given up by its session"));
        }
        Ok(())
    }

    /// Whether it is a lane that comes to rest now.
    fn comes_to_rest(&mut self) -> bool {
        match &mut self.purpose {
            Use::Lane(lane) => std::mem::take(&mut lane.resting) && self.pipeline.owes_nobody(),
            Use::Dedicated(_) => false,
        }
    }

    /// An error if another is to get the socket: whether it can tells the kind.
    fn is_given_away(&mut self, input: &BytesMut) -> io::Result<()> {
        let Use::Dedicated(dedicated) = &self.purpose else { return Ok(()) };
        if dedicated.heir.is_none() {
            return Ok(());
        }
        let idle = self.pipeline.is_empty() && self.pipeline.backlog() == 0 && input.is_empty();
        Err(if idle { GIVEN_AWAY } else { io::ErrorKind::ResourceBusy }.into())
    }
}
