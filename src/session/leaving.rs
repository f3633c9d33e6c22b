//! When a session ends: what it has begun is told first, unless that may take for ever.
//!
//! A session that ended at once, because the proxy stops or the client sends nothing more (many close their sending side and then
//! read), would lose what a blocking command takes at that moment: BLPOP has been executed, and its reply comes to
//! nobody. So the server is made to answer it now (CLIENT UNBLOCK, said as the proxy's own user): what it has taken is told; that
//! it has taken nothing is not, and the client's connection is closed, as the server's end would close it. (Only where more is
//! owed behind it, or bytes pass unlooked at, the client is told `-UNBLOCKED`, and the rest.) Of what passes
//! unlooked at nobody knows when it is answered: such a session ends when the server has said something since the last bytes
//! were sent, and then nothing for [`QUIET`].
//!
//! A client that sends nothing more and has commands behind a blocking one gets its answer only if it is there [`SOON`]: without the proxy
//! the server ends such a client, and does not execute the commands behind.
//!
//! Bounds: `shutdown_grace`; [`PATIENCE`] for what passes unlooked at (after CLIENT REPLY OFF nothing comes).
//!
//! Accepted race: where the server does not let the proxy say CLIENT UNBLOCK, a blocking command that is served in the moment of
//! the end is lost. So is one that is served in the moment when `SOON` is over.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::local::ask;
use super::{Session, Stall, Why};
use crate::clients::Client;
use crate::resp;
use crate::time::Time;
use crate::upstream::connection::Connection;

/// How soon the server is asked again to end a command that had not reached it yet.
const AGAIN: Duration = Duration::from_millis(20);
/// Replies follow each other more closely than this.
const QUIET: Duration = Duration::from_millis(40);
/// How long an answer is waited for that the server cannot be made to give now: WAIT, and a blocking command with others behind it.
const SOON: Duration = Duration::from_millis(200);
/// How long what passes unlooked at may go without a reply.
const PATIENCE: Duration = Duration::from_secs(1);

/// The wait of [`Session::leave`].
pub(super) type Leaving = Pin<Box<dyn Future<Output = ()>>>;

impl Session {
    /// Why it ends, if what it ends with has come.
    pub(super) fn ended(&mut self, cx: &mut Context<'_>) -> Option<Why> {
        let idle = self.outbox.is_idle() && self.stream.is_flushed();
        match self.ending.closing {
            Some(why) if idle => Some(why),
            _ => ((self.ending.eof || self.client.draining()) && self.has_left(cx, idle)).then(|| self.why_it_leaves()),
        }
    }

    /// Why a session ends that loses nothing by that.
    pub(super) fn why_it_leaves(&self) -> Why {
        if self.client.draining() { "the proxy stops" } else { "closed by the client" }
    }

    /// Whether the session of a proxy that stops, or of a client that sends nothing more, loses nothing by ending now.
    fn has_left(&mut self, cx: &mut Context<'_>, idle: bool) -> bool {
        match departure(&self.leaving_facts(idle)) {
            Departure::Now => true,
            Departure::NotYet => false,
            Departure::AfterLeave => self.takes_leave(cx),
            Departure::AfterLeaveIfIdle => self.takes_leave(cx) && idle,
        }
    }

    fn leaving_facts(&self, idle: bool) -> LeavingFacts {
        LeavingFacts {
            idle,
            stall: match &self.stall {
                None => Stalled::No,
                Some(Stall::Blocked(_)) => Stalled::ByOthers,
                Some(_) => Stalled::Briefly,
            },
            held_back: self.round.held_back,
            stopping: self.client.draining(),
            loan: match &self.lent {
                Some(lent) if lent.is_raw() => LoanUse::Raw,
                Some(lent) if lent.is_blocked() => LoanUse::Blocked,
                Some(lent) if lent.listens() => LoanUse::Listening,
                _ => LoanUse::Other,
            },
        }
    }

    /// Whether it waits no longer.
    fn takes_leave(&mut self, cx: &mut Context<'_>) -> bool {
        let mut leaving = self.ending.leaving.take().unwrap_or_else(|| self.leave());
        let over = leaving.as_mut().poll(cx).is_ready();
        self.ending.leaving = Some(if over { Box::pin(poll_fn(|_| Poll::Ready(()))) } else { leaving });
        over
    }

    /// The wait for what the session has begun.
    fn leave(&self) -> Leaving {
        let behind = self.outbox.waiting() > 1 && !self.client.draining();
        let Some(lent) = self.lent.as_ref().filter(|lent| lent.is_raw() || !behind) else {
            // An answer that is there comes at once. For another nobody waits, and the server does not go on to what is behind it.
            return Box::pin(tokio::time::sleep(SOON));
        };
        self.outbox.leave();
        let (lane, client) = (self.pool.lane(&self.shared.node().own), self.client.clone());
        let client_word = self.shared.node().table.load().says("CLIENT").to_vec();
        let raw = lent.is_raw().then(|| lent.connection.clone());
        Box::pin(async move {
            let Some(connection) = raw else { return unblock(&lane, &client_word, &client).await };
            let quiet = falls_quiet(&connection);
            let unblocked = async {
                unblock(&lane, &client_word, &client).await;
                std::future::pending().await
            };
            tokio::select! {
                () = quiet => {}
                () = unblocked => {}
                () = tokio::time::sleep(PATIENCE) => {}
            }
        })
    }
}

/// Whether the present request waits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stalled {
    No,
    /// For what comes by itself.
    Briefly,
    /// For other clients, as long as they take.
    ByOthers,
}

/// The use of the session's own connection, if it has one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LoanUse {
    Raw,
    /// A blocking command is on its way.
    Blocked,
    /// The server says what it was not asked for.
    Listening,
    Other,
}

/// The things that a session which is to end has begun.
struct LeavingFacts {
    /// Everything is answered and written.
    idle: bool,
    stall: Stalled,
    /// Input was left alone because too many replies were owed.
    held_back: bool,
    /// The proxy stops; else the client sends nothing more.
    stopping: bool,
    loan: LoanUse,
}

/// When a session ends that is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Departure {
    Now,
    /// When [`Session::leave`] is over.
    AfterLeave,
    /// When that is over and everything is answered and written besides.
    AfterLeaveIfIdle,
    /// When more has happened.
    NotYet,
}

fn departure(begun: &LeavingFacts) -> Departure {
    let blocked = begun.stall == Stalled::ByOthers;
    // Input that was held back goes on now that its replies are taken.
    let done = begun.idle && begun.stall == Stalled::No && !begun.held_back;
    let listening = matches!(begun.loan, LoanUse::Raw | LoanUse::Listening);
    let cut_short = begun.stopping && (begun.idle || blocked || listening);
    // Bytes that have not passed yet are not quiet: they wait for the connection, or for the client to read.
    let unsent = begun.stall == Stalled::Briefly || begun.held_back;
    match begun.loan {
        LoanUse::Raw if unsent && !begun.stopping => Departure::NotYet,
        LoanUse::Raw => Departure::AfterLeaveIfIdle,
        LoanUse::Blocked if !begun.idle => Departure::AfterLeave,
        _ if done || cut_short => Departure::Now,
        _ if blocked => Departure::AfterLeave,
        _ => Departure::NotYet,
    }
}

/// Has the server end what the client's connection waits for, as often as it takes. Ends if the server does not do it.
async fn unblock(lane: &Connection, client_word: &[u8], client: &Arc<Client>) {
    loop {
        if let Some(id) = client.upstream_id() {
            let id = id.to_string();
            let words: [&[u8]; 4] = [client_word, b"UNBLOCK", id.as_bytes(), b"ERROR"];
            if !ask(lane, &resp::encode(&words)).await.starts_with(b":") {
                return;
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn falls_quiet(connection: &Connection) {
    while connection.owes_raw() || Time::now().since(connection.heard()) < QUIET {
        tokio::time::sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_leaves_when_nothing_it_has_begun_is_lost() {
        // By the client's end, and by the proxy's.
        for (name, idle, stall, loan, expected) in [
            ("idle", true, Stalled::No, LoanUse::Other, [Departure::Now; 2]),
            ("owed", false, Stalled::No, LoanUse::Other, [Departure::NotYet; 2]),
            ("waits", true, Stalled::Briefly, LoanUse::Other, [Departure::NotYet, Departure::Now]),
            ("WAIT", true, Stalled::ByOthers, LoanUse::Other, [Departure::AfterLeave, Departure::Now]),
            ("BLPOP", false, Stalled::No, LoanUse::Blocked, [Departure::AfterLeave; 2]),
            ("BLPOP told", true, Stalled::No, LoanUse::Blocked, [Departure::Now; 2]),
            ("subscriber", false, Stalled::No, LoanUse::Listening, [Departure::NotYet, Departure::Now]),
            ("raw", true, Stalled::No, LoanUse::Raw, [Departure::AfterLeaveIfIdle; 2]),
            ("unsent", true, Stalled::Briefly, LoanUse::Raw, [Departure::NotYet, Departure::AfterLeaveIfIdle]),
            ("guess", true, Stalled::ByOthers, LoanUse::Raw, [Departure::AfterLeaveIfIdle; 2]),
        ] {
            let ends = |stopping| departure(&LeavingFacts { idle, stall, held_back: false, stopping, loan });
            assert_eq!([ends(false), ends(true)], expected, "{name}");
        }
    }

    #[test]
    fn input_that_was_held_back_is_dealt_with_first() {
        let begun =
            LeavingFacts { idle: true, stall: Stalled::No, held_back: true, stopping: false, loan: LoanUse::Other };
        assert_eq!(departure(&begun), Departure::NotYet);
        assert_eq!(departure(&LeavingFacts { stopping: true, ..begun }), Departure::Now);
    }
}
