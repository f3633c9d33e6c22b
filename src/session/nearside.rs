//! NEARSIDE and INFO's section: the proxy's own commands. The server knows nothing of them, but who may say them is the
//! server's business: each needs a right that the session's user has, or has not, to a command of the server's.
//!
//! | command | needs the right to |
//! |---|---|
//! | `STATS`, `INFO nearside` | `INFO` |
//! | `FLUSH` | `FLUSHALL` and `MULTI` |
//! | `EXPLAIN command …` of a read, `EXPLAIN key` | that very command; `GET key` |
//! | `PING`, `HELP`, `CONSISTENCY` (of one's own connection), `EXPLAIN` of anything else (which looks at no key) | be logged in |
//!
//! The server is asked as that user, by a command that does no harm: reads are said, FLUSHALL is queued in a transaction that
//! never ends. (ACL DRYRUN is not known before Redis 7.0, and knows no WRONGTYPE.) What cannot be asked is refused, but for the
//! numbers: whoever runs the proxy needs them most when the server is gone.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use super::local::{INFO_PATIENCE, ask, ask_again, verbatim};
use super::{After, Session, Stall, Step};
use crate::admin::{self, Asks};
use crate::command::Request;
use crate::node::Node;
use crate::node::identity::ConnectionKey;
use crate::outbox::Piece;
use crate::resp;
use crate::time::Time;
use crate::upstream::Pool;

/// The answer to a command for which the server cannot be asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unasked {
    Denied,
    Granted,
}

impl Session {
    /// A request that comes back here from waiting, `bypass` set, has been granted.
    pub(super) fn nearside(&mut self, request: &Request<'_>) -> Step {
        let word = if request.len() > 1 { request.arg(1).to_ascii_uppercase() } else { Vec::new() };
        match (&word[..], request.len()) {
            (b"CONSISTENCY", 2..=3) => return self.consistency(request),
            // The server cannot be asked whether strangers may.
            (b"FLUSH", 2) | (b"EXPLAIN", 3..) if self.identity.key.login.is_stranger() => {
                let error = self.shared.node().error("it cannot be asked who may say this");
                self.outbox.put(Piece::Bytes(error));
                return Step::Done;
            }
            (b"STATS", 2) if !self.present.bypass => {
                return granted(self.verdict(&info(), Unasked::Granted), "STATS", Unasked::Granted);
            }
            (b"FLUSH", 2) if !self.present.bypass => {
                return granted(may_flush(self.pool.clone(), self.identity.key.clone()), "FLUSH", Unasked::Denied);
            }
            (b"EXPLAIN", 3..) => {
                let args: Vec<&[u8]> = (2..request.len()).map(|i| request.arg(i)).collect();
                let command = resp::encode(&args);
                return match admin::read_to_explain(&self.shared, &command).filter(|_| !self.present.bypass) {
                    Some(read) => granted(self.verdict(&read, Unasked::Denied), "EXPLAIN", Unasked::Denied),
                    None => self.explain(&command),
                };
            }
            _ => {}
        }
        let reply = admin::command(&self.shared, request);
        self.outbox.put(Piece::Slice(&reply));
        Step::Done
    }

    /// The server's answer to this question. A server that is known not to answer is not waited for for long, nor is one
    /// that stands still (it may be frozen) where the counters are told without its word: monitors need them then above all.
    fn verdict(&self, question: &[u8], unasked: Unasked) -> impl Future<Output = Vec<u8>> + use<> {
        let (reply, node) = (ask_again(&self.lanes.any, question), self.shared.node().clone());
        let patience = match unasked {
            Unasked::Granted => INFO_PATIENCE,
            Unasked::Denied if node.health.down().is_some() => INFO_PATIENCE,
            Unasked::Denied => Duration::MAX,
        };
        async move {
            let late = || node.error("does not answer").to_vec();
            tokio::time::timeout(patience, reply).await.unwrap_or_else(|_| late())
        }
    }

    /// INFO of our section alone.
    pub(super) fn info_nearside(&self, request: &Request<'_>) -> Step {
        let (shared, resp3) = (self.shared.clone(), self.identity.key.resp3);
        if self.identity.key.login.is_stranger() {
            // The server cannot be asked.
            self.outbox.put(Piece::Slice(&verbatim(&admin::info(&shared), resp3)));
            return Step::Done;
        }
        let verdict = self.verdict(request.buf, Unasked::Granted);
        Step::Stall(Stall::For(Box::pin(async move {
            let verdict = verdict.await;
            let answered = !is_error(&verdict) || Node::is_own_error(&verdict);
            After::Reply(if answered { verbatim(&admin::info(&shared), resp3).into() } else { verdict.into() })
        })))
    }

    /// The level of this connection, read or set.
    fn consistency(&mut self, request: &Request<'_>) -> Step {
        if request.len() == 2 {
            return self.say(&format!("+{}", self.level));
        }
        let coherence = &self.shared.node().coherence;
        match String::from_utf8_lossy(request.arg(2)).to_ascii_lowercase().parse() {
            Ok(level) if !coherence.keeps(level) => {
                let standing = coherence.standing();
                let (strongest, limit) = (standing.strongest(), standing.limit());
                self.say(&format!("-ERR nearside: {level} cannot be kept here, at most {strongest}: {limit}"))
            }
            Ok(level) => {
                self.level = level;
                self.say("+OK")
            }
            Err(_) => self.say("-ERR nearside: the level is one of bounded, causal, linearizable"),
        }
    }

    fn explain(&mut self, command: &[u8]) -> Step {
        let shares_mget = self.shares_get_and_mget();
        let now = Time::now();
        let asks = Asks {
            view: self.identity.view,
            level: self.level,
            seen: self.outbox.seen().max(self.fresh.shown),
            shares_mget,
            bypass: self.bars_cache(),
            why_not_kept: &|request, read| self.why_not_kept(request, read, now),
        };
        let explained = admin::explain(&self.shared, command, &asks);
        self.outbox.put(Piece::Slice(&explained));
        Step::Done
    }
}

fn info() -> Vec<u8> {
    resp::encode(&["INFO", "nearside"])
}

/// Lets the request go on if the server's verdict allows it.
fn granted(verdict: impl Future<Output = Vec<u8>> + 'static, word: &'static str, unasked: Unasked) -> Step {
    Step::Stall(Stall::For(Box::pin(async move {
        let verdict = verdict.await;
        let refused = if Node::is_own_error(&verdict) { unasked == Unasked::Denied } else { refuses(&verdict) };
        if refused { After::Reply(named(&verdict, word).into()) } else { After::Upstream }
    })))
}

fn is_error(reply: &[u8]) -> bool {
    matches!(reply.first(), None | Some(b'-' | b'!'))
}

/// Whether the user may not say the command, or nobody may. Any other error comes of a command that one may say.
fn refuses(verdict: &[u8]) -> bool {
    let refusals: [&[u8]; 3] = [b"-NOPERM", b"-NOAUTH", b"-ERR unknown command"];
    verdict.is_empty() || refusals.iter().any(|refusal| verdict.starts_with(refusal))
}

/// The server's refusal, with the name of the command that it is of.
fn named(verdict: &[u8], word: &str) -> Vec<u8> {
    // A stranger is told what the server tells strangers.
    if verdict.starts_with(b"-NOAUTH") {
        return verdict.to_vec();
    }
    let line = verdict.strip_suffix(b"\r\n").unwrap_or(b"-ERR nearside: the upstream could not be asked");
    [line, b" (NEARSIDE ", word.as_bytes(), b" needs it)\r\n"].concat()
}

/// The verdict on FLUSHALL. It is said only once the server has confirmed that it queues what it is told, and the connection
/// is closed with the loan, so what is queued is never done.
async fn may_flush(pool: Rc<Pool>, key: ConnectionKey) -> Vec<u8> {
    let Some(loan) = pool.lend(&key) else {
        return pool.node().error("no connection to ask on is left (max_dedicated)").to_vec();
    };
    let opened = ask(&loan, &resp::encode(&["MULTI"])).await;
    if opened != b"+OK\r\n" {
        return if is_error(&opened) { refusal_of(opened) } else { Vec::new() };
    }
    ask(&loan, &resp::encode(&["FLUSHALL"])).await
}

/// Whatever the error: it is a refusal of what was to be asked inside.
fn refusal_of(opened: Vec<u8>) -> Vec<u8> {
    if refuses(&opened) || Node::is_own_error(&opened) { opened } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_command() {
        assert!(refuses(b"-NOPERM x\r\n") && refuses(b"") && !refuses(b"-WRONGTYPE x\r\n") && !refuses(b"+QUEUED\r\n"));
        assert_eq!(named(b"-NOPERM x\r\n", "FLUSH"), b"-NOPERM x (NEARSIDE FLUSH needs it)\r\n");
        assert_eq!(named(b"-NOAUTH x\r\n", "FLUSH"), b"-NOAUTH x\r\n");
        assert!(named(b"", "FLUSH").starts_with(b"-ERR nearside"));
    }
}
