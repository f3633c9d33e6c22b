//! The server's own bounds on one connection: which request or reply makes it end the connection. A lane is shared, so a client
//! whose request would end it is answered in the server's words, or has a connection of its own.
//!
//! Asked by the watch (`CONFIG GET`) every [`ASK_EVERY`]. Of a server that does not tell, Redis' defaults are assumed. Accepted
//! window: a bound that is lowered at the running server is not known until it is asked for again.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::wire::{Wire, out_of_turn};
use crate::resp;

/// How long what is known may be old.
pub const ASK_EVERY: Duration = Duration::from_secs(2);
/// Redis' default of `proto-max-bulk-len`.
const BULK: usize = 512 << 20;
/// Redis' default of `client-query-buffer-limit`.
const QUERY: usize = 1 << 30;
/// Input of a connection that the server may hold besides one request: the beginning of the next.
const QUERY_SPARE: usize = 64 << 10;
/// Arguments that Redis before 7.0 takes in one request.
const ARGS: usize = 1 << 20;

/// The bounds last read.
pub struct Bounds {
    /// The largest argument that the proxy takes itself.
    own_bulk: usize,
    bulk: AtomicUsize,
    query: AtomicUsize,
    replies: AtomicBool,
}

impl Bounds {
    /// Nothing known yet.
    pub fn new(own_bulk: usize) -> Bounds {
        let (bulk, query) = (AtomicUsize::new(own_bulk.min(BULK)), AtomicUsize::new(QUERY));
        Bounds { own_bulk, bulk, query, replies: AtomicBool::new(false) }
    }

    /// The largest argument that both the proxy and the server take.
    pub fn max_bulk(&self) -> usize {
        self.bulk.load(Ordering::Relaxed)
    }

    /// Whether the server may end a connection for a request of so many bytes and arguments.
    pub fn excludes(&self, bytes: usize, args: usize) -> bool {
        bytes > self.query.load(Ordering::Relaxed) - QUERY_SPARE || args > ARGS
    }

    /// Whether the server ends a connection for the size of what it is to be told.
    pub fn ends_for_replies(&self) -> bool {
        self.replies.load(Ordering::Relaxed)
    }

    /// Takes in names and values as CONFIG GET gives them.
    fn learn(&self, settings: &[(String, String)]) {
        let value = |name: &str| settings.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        let bytes = |name: &str| value(name).and_then(|text| text.parse::<usize>().ok());
        self.bulk.store(bytes("proto-max-bulk-len").unwrap_or(BULK).min(self.own_bulk), Ordering::Relaxed);
        let query = bytes("client-query-buffer-limit").filter(|n| *n > 2 * QUERY_SPARE);
        self.query.store(query.unwrap_or(QUERY), Ordering::Relaxed);
        let evicts = value("maxmemory-clients").is_some_and(|text| text != "0");
        let replies = evicts || value("client-output-buffer-limit").is_some_and(limits_normal);
        if self.replies.swap(replies, Ordering::Relaxed) != replies && replies {
            tracing::info!(
                "the upstream closes clients for the size of their replies (client-output-buffer-limit or maxmemory-clients): reads get lanes of their own, writes with long replies connections"
            );
        }
    }
}

/// Whether `normal 1048576 0 0 slave …` has a limit for normal clients.
fn limits_normal(classes: &str) -> bool {
    let mut words = classes.split_ascii_whitespace().skip_while(|word| *word != "normal").skip(1);
    words.by_ref().take(2).any(|limit| limit != "0")
}

/// Asks the server and takes in what it says. False: our user may not ask.
pub async fn ask(wire: &mut Wire, bounds: &Bounds) -> io::Result<bool> {
    wire.quiet().await?;
    let mut questions = resp::encode(&["CONFIG", "GET", "proto-max-bulk-len"]);
    questions.extend(resp::encode(&["CONFIG", "GET", "*client*"]));
    wire.send(&questions).await?;
    let mut settings = Vec::new();
    let mut told = true;
    for _ in 0..2 {
        let reply = wire.reply().await?;
        match reply[0] {
            b'*' | b'%' => settings.extend(pairs(&reply)),
            b'-' => told = false,
            _ => return Err(out_of_turn(&reply)),
        }
    }
    bounds.learn(&settings);
    Ok(told)
}

fn pairs(reply: &[u8]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let Some((_, mut rest)) = resp::split_aggregate(reply) else { return found };
    while let Some((name, next)) = resp::split_bulk(rest)
        && let Some((value, next)) = resp::split_bulk(next)
    {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        found.push((text(name), text(value)));
        rest = next;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(settings: &[&str]) -> Bounds {
        let bounds = Bounds::new(1 << 20);
        bounds.learn(&pairs(&resp::encode(settings)));
        bounds
    }

    #[test]
    fn the_smaller_of_both_bounds_holds() {
        assert_eq!(Bounds::new(4 << 30).max_bulk(), BULK);
        assert_eq!(learned(&["proto-max-bulk-len", "2097152"]).max_bulk(), 1 << 20);
        assert_eq!(learned(&["proto-max-bulk-len", "65536"]).max_bulk(), 65536);
        assert_eq!(learned(&["proto-max-bulk-len", "many"]).max_bulk(), 1 << 20);
    }

    #[test]
    fn a_request_that_fills_the_servers_buffer_is_excluded() {
        let bounds = learned(&["client-query-buffer-limit", "1048576"]);
        assert!(!bounds.excludes(900_000, 3) && bounds.excludes(1_000_000, 3) && bounds.excludes(100, ARGS + 1));
        assert!(!learned(&[]).excludes(900 << 20, 3));
    }

    #[test]
    fn what_bounds_replies() {
        let rest = "slave 268435456 67108864 60 pubsub 33554432 8388608 60";
        for (normal, ends) in [("0 0 0", false), ("1048576 0 0", true), ("0 1024 60", true)] {
            let classes = format!("normal {normal} {rest}");
            assert_eq!(learned(&["client-output-buffer-limit", &classes]).ends_for_replies(), ends, "{normal}");
        }
        assert!(!learned(&["maxmemory-clients", "0"]).ends_for_replies());
        assert!(learned(&["maxmemory-clients", "5%"]).ends_for_replies());
    }
}
