//! TOUCH of what is hit. A server that is short of memory evicts what was used least lately (`allkeys-lru` …) or least often
//! (`allkeys-lfu` …), and a hit uses nothing there: what is read most would go first. So while the server evicts in such a way,
//! the keys of replies that were served since they were last looked at are named to the server, many by one command.
//!
//! A hit pays nothing for it: it leaves a mark in the byte that counts it for our own eviction (`Node::touch`), once between two
//! looks. Looked at are all entries, a few at a time, each at most once in a `ROUND`.
//!
//! Accepted: a key is named up to `ROUND` and one look after it was read, even if it was deleted or made anew meanwhile: that
//! another key of that name seems used once costs nothing. TOUCH reports and registers nothing, and an expired key stays expired. By
//! LFU a key counts as read once a round, however often it was hit: it stays ahead of what nobody reads, but not of what others
//! read past us more often than that.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use super::Node;
use super::login::is_login_refusal;
use super::wire::Wire;
use crate::cache::entry::CachedReply;
use crate::cache::table::Cursor;
use crate::numbers::difference;
use crate::resp;
use crate::time::Time;

/// Each entry is looked at no more often. The server's own clock of use goes in seconds: named once in a second of that clock, a
/// key seems up to two seconds older than one that is read all the time.
const ROUND: Duration = Duration::from_millis(500);
/// Between two looks at a part of the entries.
const TICK: Duration = Duration::from_millis(100);
/// Places of the cache's table that are looked at in one tick, and without a pause: a shard is locked and the link waits meanwhile.
const PLACES: usize = 32 << 10;
const PLACES_AT_ONCE: usize = 512;
/// Keys in one command, so that the server is not held up.
const KEYS: usize = 256;
/// One command for at least so many hits, or after [`RARELY`] if there are fewer.
const HITS_A_COMMAND: u64 = 100;
const RARELY: Duration = Duration::from_secs(3);

/// The measure by which the server evicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Eviction {
    /// Nothing that a read changes, or it does not evict.
    Blind = 0,
    /// The use of every key.
    Use = 1,
    /// The use of keys with a time to live; others are never evicted.
    UseOfVolatile = 2,
}

impl Eviction {
    /// By a reply to `INFO memory`.
    pub fn read(info: &[u8]) -> Eviction {
        let Some((text, _)) = resp::split_bulk(info) else { return Eviction::Blind };
        let text = String::from_utf8_lossy(text);
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        match (field("maxmemory:"), field("maxmemory_policy:")) {
            (None | Some("0"), _) => Eviction::Blind,
            (_, Some("allkeys-lru" | "allkeys-lfu")) => Eviction::Use,
            (_, Some("volatile-lru" | "volatile-lfu")) => Eviction::UseOfVolatile,
            _ => Eviction::Blind,
        }
    }
}

/// The findings of the watch, and the TOUCH commands sent.
#[derive(Default)]
pub struct Touches {
    eviction: AtomicU8,
    /// Commands sent.
    pub commands: AtomicU64,
    /// Keys named in them.
    pub keys: AtomicU64,
}

impl Touches {
    /// The watch has looked.
    pub fn note(&self, eviction: Eviction) {
        self.eviction.store(eviction as u8, Ordering::Relaxed);
    }

    /// The measure by which the server evicted when the watch last looked.
    pub fn eviction(&self) -> Eviction {
        match self.eviction.load(Ordering::Relaxed) {
            1 => Eviction::Use,
            2 => Eviction::UseOfVolatile,
            _ => Eviction::Blind,
        }
    }
}

/// Touches for as long as the process lives, at most `node.settings.touch_per_second` keys a second. `database` tells the one that a
/// view's keys are in.
pub async fn run(node: Arc<Node>, database: impl Fn(u32) -> Option<u32>) {
    let mut toucher = Toucher::new(&node);
    let mut failures = 0;
    loop {
        tokio::time::sleep(TICK).await;
        if node.touches.eviction() == Eviction::Blind || node.settings.touch_per_second == 0 || toucher.is_refused() {
            toucher.rest();
            continue;
        }
        toucher.look(&database).await;
        match toucher.send().await {
            Ok(()) => failures = 0,
            Err(e) => {
                tracing::debug!("TOUCH on {} failed: {e}", node.address);
                failures += 1;
                toucher.rest();
                tokio::time::sleep(node.backoff(failures)).await;
            }
        }
    }
}

struct Toucher<'n> {
    node: &'n Node,
    cursor: Cursor,
    round: Time,
    /// The round has come to its end.
    over: bool,
    databases: HashMap<u32, Option<u32>>,
    /// Keys to be named, by database; and how many.
    used: HashMap<u32, Vec<Vec<u8>>>,
    count: usize,
    /// Tenths of keys that may be looked for; below zero: too many were found at once.
    allowance: i64,
    sent: Time,
    /// The cache's hits when something was last sent.
    hits: u64,
    wire: Option<Wire>,
    /// The database selected on it.
    selected: u32,
    /// How often the ACL had changed when our user was refused.
    refused: Option<u64>,
}

impl<'n> Toucher<'n> {
    fn new(node: &'n Node) -> Self {
        Toucher {
            node,
            cursor: Cursor::default(),
            round: Time::ZERO,
            over: false,
            databases: HashMap::new(),
            used: HashMap::new(),
            count: 0,
            allowance: 0,
            sent: Time::ZERO,
            hits: 0,
            wire: None,
            selected: 0,
            refused: None,
        }
    }

    /// Whether our user may not, as far as anybody knows.
    fn is_refused(&self) -> bool {
        self.refused == Some(self.node.acl_changes.load(Ordering::Acquire))
    }

    /// Forgets what was to be named, and the connection.
    fn rest(&mut self) {
        self.wire = None;
        self.used.clear();
        self.count = 0;
    }

    /// Looks at the next entries, unless this round is over.
    async fn look(&mut self, database: &impl Fn(u32) -> Option<u32>) {
        let now = Time::now();
        let a_second = difference(self.node.settings.touch_per_second);
        self.allowance = (self.allowance + a_second).min(10 * a_second);
        if self.over && now.since(self.round) < ROUND {
            return;
        }
        if self.over || self.round == Time::ZERO {
            (self.over, self.round) = (false, now);
        }
        let volatile = self.node.touches.eviction() == Eviction::UseOfVolatile;
        let mut places = 0;
        while places < PLACES && self.allowance > 0 && !self.over {
            let (used, count, databases) = (&mut self.used, &mut self.count, &mut self.databases);
            let allowance = &mut self.allowance;
            let cache = &self.node.coherence.cache;
            self.over = cache.take_used(&mut self.cursor, PLACES_AT_ONCE, |reply: &CachedReply| {
                if resp::is_nil(reply.reply()) || (volatile && reply.deadline() == Time::NEVER) {
                    return;
                }
                let view = reply.variant().view;
                if let Some(db) = *databases.entry(view).or_insert_with(|| database(view)) {
                    used.entry(db).or_default().push(reply.key().to_vec());
                    *count += 1;
                    *allowance -= 10;
                }
            });
            places += PLACES_AT_ONCE;
            tokio::task::yield_now().await;
        }
    }

    /// Whether what has come together is worth its commands.
    fn is_due(&self, now: Time, hits: u64) -> bool {
        let commands: usize = self.used.values().map(|keys| keys.len().div_ceil(KEYS)).sum();
        let enough = hits.saturating_sub(self.hits) >= HITS_A_COMMAND * commands as u64;
        let since = now.since(self.sent);
        self.count >= KEYS || (self.count > 0 && (since >= RARELY || (since >= ROUND && enough)))
    }

    async fn send(&mut self) -> io::Result<()> {
        let (now, hits) = (Time::now(), self.node.coherence.cache.stats.hits.load(Ordering::Relaxed));
        if !self.is_due(now, hits) {
            return Ok(());
        }
        (self.sent, self.hits) = (now, hits);
        let used = std::mem::take(&mut self.used);
        let keys = std::mem::take(&mut self.count);
        let node = self.node;
        let refused = tokio::time::timeout(node.settings.upstream_timeout, self.name(&used)).await??;
        node.touches.keys.fetch_add(keys as u64, Ordering::Relaxed);
        if let Some(refused) = refused {
            tracing::warn!(
                "the upstream evicts what is read least, and its user may not TOUCH what the cache answers ({refused}): what is \
                 read most may go first; grant +touch +select and the keys"
            );
            self.refused = Some(node.acl_changes.load(Ordering::Acquire));
            self.rest();
        }
        Ok(())
    }

    /// Names the keys. What the server says if our user may not.
    async fn name(&mut self, used: &HashMap<u32, Vec<Vec<u8>>>) -> io::Result<Option<String>> {
        let node = self.node;
        let wire = match &mut self.wire {
            Some(wire) => {
                // One answer too many, and a database that is refused would look selected.
                wire.quiet().await?;
                wire
            }
            none => {
                let mut wire = Wire::connect(node).await?;
                let greeting = wire.greet(node, &node.own, "nearside-touch").await?;
                if is_login_refusal(&greeting) {
                    return Ok(Some(String::from_utf8_lossy(&greeting[1..]).trim().to_owned()));
                }
                self.selected = 0;
                none.insert(wire)
            }
        };
        for (db, keys) in used {
            if *db != self.selected {
                let reply = wire.ask(&["SELECT", &db.to_string()]).await?;
                if reply[0] == b'-' {
                    // Never name another database's keys here.
                    return Ok(refusal(&reply));
                }
                self.selected = *db;
            }
            for keys in keys.chunks(KEYS) {
                let words = std::iter::once(&b"TOUCH"[..]).chain(keys.iter().map(Vec::as_slice));
                let reply = wire.ask(&words.collect::<Vec<_>>()).await?;
                node.touches.commands.fetch_add(1, Ordering::Relaxed);
                if let Some(refused) = refusal(&reply) {
                    return Ok(Some(refused));
                }
            }
        }
        Ok(None)
    }
}

/// The server's error to a user without the right. Other errors (`-BUSY`, `-LOADING`) pass.
fn refusal(reply: &[u8]) -> Option<String> {
    let refused = [&b"-NOPERM"[..], b"-NOAUTH", b"-ERR unknown command"].iter().any(|word| reply.starts_with(word));
    refused.then(|| String::from_utf8_lossy(&reply[1..]).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_evictions_look_at_use() {
        let eviction = |limit: &str, policy: &str| {
            let text = format!(
                "# Memory\r\nused_memory:1\r\nmaxmemory:{limit}\r\nmaxmemory_human:x\r\nmaxmemory_policy:{policy}\r\n"
            );
            Eviction::read(format!("${}\r\n{text}\r\n", text.len()).as_bytes())
        };
        assert_eq!(eviction("1000", "allkeys-lru"), Eviction::Use);
        assert_eq!(eviction("1000", "allkeys-lfu"), Eviction::Use);
        assert_eq!(eviction("1000", "volatile-lru"), Eviction::UseOfVolatile);
        assert_eq!(eviction("1000", "volatile-lfu"), Eviction::UseOfVolatile);
        for policy in ["noeviction", "allkeys-random", "volatile-random", "volatile-ttl", "allkeys-lrm"] {
            assert_eq!(eviction("1000", policy), Eviction::Blind, "{policy}");
        }
        assert_eq!(eviction("0", "allkeys-lru"), Eviction::Blind, "without a limit nothing is evicted");
        assert_eq!(Eviction::read(b"-NOPERM\r\n"), Eviction::Blind);
    }

    #[test]
    fn only_a_refusal_is_one() {
        assert_eq!(refusal(b"-NOPERM no\r\n").as_deref(), Some("NOPERM no"));
        assert_eq!(refusal(b"-BUSY\r\n"), None);
        assert_eq!(refusal(b":2\r\n"), None);
    }
}
