//! WAIT and WAITAOF: how many replicas (or disks) have what this session has written.
//!
//! The server counts for each connection, and the session's writes went down connections that others use too: a WAIT on
//! one of those would hold the others up, a WAIT on another connection counts nothing. From Redis 7.2 on (and in Valkey)
//! a connection is said to have written up to its own last command that the server passed on to its replicas. So WAIT
//! gets a connection of its own, on which the proxy first says SPUBLISH on a channel that nobody hears: the server
//! passes it on, no key changes, no pattern subscriber sees it, and WAIT then counts every write the server had done by
//! then, this session's (all answered before) and those of others. The answer may be smaller than the server's own would
//! be, never larger. Up to Redis 7.0 any command does that, HELLO of a new connection too.
//!
//! A session that has written nothing gets a new connection and no SPUBLISH: the server answers at once, as to such a
//! client. The SPUBLISH is said as the proxy's own user, since few users may say it; a session of another user has the
//! server's verdict on its right to WAIT by its lane, in a form that never blocks.
//!
//! Accepted: in a transaction WAIT does not block and must run on the connection that has MULTI. After writes elsewhere
//! it would count none of them (from 7.2 on), and the server is made to refuse it.

use std::sync::LazyLock;

use bytes::Bytes;

use super::client::refusal;
use super::local::ask;
use super::{After, Session, Stall, Step};
use crate::command::Request;
use crate::node::Node;
use crate::node::wire::is_passing;
use crate::resp;
use crate::upstream::connection::Connection;

/// The server answers to this word that it is no command, at once or, in a transaction, so that EXEC fails.
const REFUSED: &str = "nearside: WAIT here would not count writes of this session on other connections";

/// SPUBLISH on this process's own channel. (Always the same: ACL LOG tells refusals of one channel only once a minute.)
static MARK: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let channel = format!("nearside:wait:{:016x}", crate::chance::uniform().to_bits());
    resp::encode(&["SPUBLISH", &channel, ""])
});

/// The command that makes the next WAIT on its connection count every write so far, where one is needed.
pub(super) fn mark(node: &Node) -> Option<&'static [u8]> {
    // The version as the link notes it (`node::link`).
    let version = node.version.load();
    let any_command = version.starts_with("Redis 6.") || version.starts_with("Redis 7.0.");
    (!any_command).then_some(&MARK[..])
}

/// The stand-in for a WAIT that cannot be answered truthfully: a command whose error tells why.
pub(super) fn refused() -> Vec<u8> {
    resp::encode(&[REFUSED])
}

/// The same command such that it never waits.
fn harmless(request: &Request<'_>) -> Vec<u8> {
    let mut words = vec![request.arg(0)];
    words.resize(request.len(), b"0");
    resp::encode(&words)
}

impl Session {
    /// WAIT outside of a transaction, on a connection of its own. What is behind it in the pipeline waits, as with Redis.
    pub(super) fn wait(&mut self, request: &Request<'_>) -> Step {
        if self.outbox.waiting() > 0 {
            return Step::Stall(Stall::Drain);
        }
        let node = self.shared.node().clone();
        let mark = mark(&node).filter(|_| self.wrote);
        let own = self.identity.key.login == node.own.login;
        let lending = match mark {
            None => self.pool.open_or_ask(&self.identity.key),
            Some(_) => self.pool.lend_or_ask(if own { &self.identity.key } else { &node.own }),
        };
        let loan = match self.lent_by(lending) {
            Ok(loan) => loan,
            Err(step) => return step,
        };
        let verdict = mark.filter(|_| !own).map(|_| ask(&self.lanes.any, &harmless(request)));
        // CLIENT UNBLOCK and KILL name the session: they mean the connection that waits.
        let before = self.lent.as_ref().map(|lent| lent.connection.client_id.clone());
        self.client.uses_connection(Some(loan.client_id.clone()));
        let (pool, client, question) = (self.pool.clone(), self.client.clone(), request.buf.to_vec());
        Step::Stall(Stall::Blocked(Box::pin(async move {
            let answer = match refusal(verdict).await {
                Some(refusal) => Ok(refusal),
                None => answer(&loan, mark, &question).await,
            };
            client.uses_connection(before);
            After::Reply(match answer {
                Ok(reply) => {
                    pool.give_back(loan);
                    reply
                }
                // The WAIT may still be on its way there: the connection is closed.
                Err(refusal) => refusal,
            })
        })))
    }
}

/// The server's answer to WAIT behind the mark, or why there is none.
async fn answer(connection: &Connection, mark: Option<&[u8]>, question: &[u8]) -> Result<Bytes, Bytes> {
    let marked = mark.map(|mark| ask(connection, mark));
    let reply = ask(connection, question);
    match refusal(marked).await {
        Some(refusal) => Err(not_marked(refusal)),
        None => Ok(reply.await.into()),
    }
}

/// Why WAIT is not answered: the server has not taken the mark.
fn not_marked(refusal: Bytes) -> Bytes {
    if is_passing(&refusal) || Node::is_own_error(&refusal) {
        return refusal;
    }
    let said = String::from_utf8_lossy(&refusal);
    let said = said.trim_start_matches('-').trim_end();
    format!("-ERR nearside: WAIT cannot be answered truthfully: the proxy's own user needs +wait +waitaof +spublish &nearside:wait:* ({said})\r\n").into()
}
