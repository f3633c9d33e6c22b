//! When a session ends: what it has begun is told first, unless that may take for ever.
//!
//! A proxy that stops would lose what a blocking command takes at that moment: BLPOP has been executed, and its reply comes to
//! nobody. So the server is made to answer it now (CLIENT UNBLOCK, said as the proxy's own user): what it has taken is told; that
//! it has taken nothing is not, and the client's connection is closed, as the server's end would close it. (Only where more is
//! owed behind it, or bytes pass unlooked at, the client is told `-UNBLOCKED`, and the rest.) Of what passes
//! unlooked at nobody knows when it is answered: such a session ends when the server has said something since the last bytes
//! were sent, and then nothing for [`QUIET`].
//!
//! Bounds: `shutdown_grace`; [`PATIENCE`] for what passes unlooked at (after CLIENT REPLY OFF nothing comes).
//!
//! Accepted race: where the server does not let the proxy say CLIENT UNBLOCK, a blocking command that is served in the moment of
//! the end is lost, as with a client that goes.

use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use super::dedicated::Lent;
use super::local::ask;
use super::{Session, Stall, Why};
use crate::clients::Client;
use crate::resp;
use crate::time::Time;
use crate::upstream::connection::Connection;

pub(super) const STOPS: Why = "the proxy stops";

/// How soon the server is asked again to end a command that had not reached it yet.
const AGAIN: Duration = Duration::from_millis(20);
/// Replies follow each other more closely than this.
const QUIET: Duration = Duration::from_millis(40);
/// How long what passes unlooked at may go without a reply.
const PATIENCE: Duration = Duration::from_secs(1);

impl Session {
    /// Whether what it ends with has come.
    pub(super) fn ended(&mut self, cx: &mut Context<'_>) -> Option<Why> {
        let idle = self.outbox.is_idle() && self.stream.is_flushed();
        let blocked = matches!(self.stall, Some(Stall::Blocked(_)));
        let waits_for_others = blocked || self.lent.as_ref().is_some_and(Lent::waits_for_others);
        match self.closing {
            Some(why) if idle => return Some(why),
            _ if self.eof && self.stall.is_none() && idle => return Some("closed by the client"),
            _ if self.eof && waits_for_others => return Some("closed by the client while it waited"),
            _ => {}
        }
        (self.client.draining() && self.has_left(cx, idle, blocked)).then_some(STOPS)
    }

    /// Whether the session of a proxy that stops loses nothing by ending now.
    fn has_left(&mut self, cx: &mut Context<'_>, idle: bool, blocked: bool) -> bool {
        match &self.lent {
            Some(lent) if lent.raw => self.takes_leave(cx) && idle,
            Some(lent) if lent.is_blocked() && !idle => self.takes_leave(cx),
            Some(lent) => idle || blocked || lent.listens(),
            None => idle || blocked,
        }
    }

    /// Whether it waits no longer.
    fn takes_leave(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(lent) = &self.lent else { return true };
        let leaving = self.leaving.get_or_insert_with(|| {
            self.outbox.leave();
            let (lane, client) = (self.pool.lane(&self.shared.node.own), self.client.clone());
            let client_word = self.shared.node.table.load().says("CLIENT").to_vec();
            let raw = lent.raw.then(|| lent.connection.clone());
            Box::pin(async move {
                match raw {
                    None => unblock(&lane, &client_word, &client).await,
                    Some(connection) => {
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
                    }
                }
            })
        });
        leaving.as_mut().poll(cx).is_ready()
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
