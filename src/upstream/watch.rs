//! What no invalidation announces: SWAPDB, a changed ACL, a server that has changed its role; and in mode `keyspace`, FLUSHALL,
//! FLUSHDB and a server that no longer notifies. Looked at on a connection of its own, twice within `max_staleness`; whatever differs from the last look flushes the cache.
//!
//! Accepted window: between two looks, a reply cached before the change may still be served (SWAPDB through this proxy
//! flushes at once). So `linearizable` does not hold across another client's SWAPDB, and a right that was withdrawn is
//! outlived by at most one interval. Two SWAPDBs and a CONFIG RESETSTAT within one interval could cancel out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::handshake::{Wire, hello};
use super::{ConnectionKey, Node, probe};
use crate::cache::FlushCause;
use crate::config::Invalidation;
use crate::resp;
use crate::time::Time;
use crate::transport::Stream;

/// A server whose ACL we may not read: everything is flushed this often, so that no right is outlived for longer.
const ACL_BLIND: std::time::Duration = std::time::Duration::from_secs(5);

/// Commands that change everything and are announced by nothing: SWAPDB ever, the others in mode `keyspace`.
const SILENT: [&str; 3] = ["cmdstat_swapdb:", "cmdstat_flushall:", "cmdstat_flushdb:"];

/// What one look found. A part that the server refuses to tell is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// How often the commands were said that nothing announces.
    silent: Option<String>,
    /// `keyspace`: whether the server notifies.
    notifies: bool,
    role: Option<String>,
    acl: Acl,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Acl {
    /// The server has none.
    #[default]
    Absent,
    Known(Bytes),
    /// Our user may not read it.
    Hidden,
}

impl Look {
    /// Whether the server says that it is a replica.
    pub fn is_replica(&self) -> bool {
        self.role.as_ref().is_some_and(|role| role.contains("role:slave"))
    }
}

/// Looks for as long as the process lives.
pub async fn run(node: Arc<Node>, key: ConnectionKey) {
    let mut last: Option<Look> = None;
    let mut failures = 0;
    loop {
        match watch(&node, &key, &mut last, &mut failures).await {
            Ok(never) => match never {},
            Err(e) => tracing::debug!("watch of {} lost: {e}", node.address),
        }
        failures += 1;
        tokio::time::sleep(node.backoff(failures)).await;
    }
}

enum Never {}

async fn watch(node: &Node, key: &ConnectionKey, last: &mut Option<Look>, failures: &mut u32) -> io::Result<Never> {
    let stream = Stream::connect(&node.address, node.connect_timeout).await?;
    let mut wire = Wire { stream, input: bytes::BytesMut::new() };
    let limit = node.upstream_timeout;
    let greeted = async {
        wire.send(&hello(key)).await?;
        wire.reply().await?;
        wire.ask(&["CLIENT", "SETNAME", "nearside-watch"]).await
    };
    tokio::time::timeout(limit, greeted).await??;
    let mut blind_since = Time::now();
    loop {
        let look = tokio::time::timeout(limit, look(&mut wire, node)).await??;
        *failures = 0;
        // What the link has seen before anything was cached.
        let first = node.first_look.swap(None);
        if last.is_none() {
            *last = first.map(|look| Look::clone(&look));
        }
        if let Some(last) = last {
            compare(node, last, &look);
        }
        if look.acl == Acl::Hidden && Time::now().since(blind_since) >= ACL_BLIND {
            blind_since = Time::now();
            node.coherence.flush(FlushCause::Acl);
        }
        if last.as_ref().is_none_or(|l| l.acl != Acl::Hidden) && look.acl == Acl::Hidden {
            tracing::warn!(
                "the upstream's user may not say ACL LIST: the cache is flushed every {ACL_BLIND:?} instead of when a right changes; grant +acl|list"
            );
        }
        *last = Some(look);
        tokio::time::sleep(node.watch_interval).await;
    }
}

/// One look, on a connection that is not subscribed.
pub async fn look(wire: &mut Wire, node: &Node) -> io::Result<Look> {
    let keyspace = node.invalidation == Invalidation::Keyspace;
    let mut questions = resp::own(&["INFO", "commandstats"]);
    questions.extend(resp::own(&["INFO", "replication"]));
    questions.extend(resp::own(&["ACL", "LIST"]));
    if keyspace {
        questions.extend(resp::own(&["CONFIG", "GET", "notify-keyspace-events"]));
    }
    wire.send(&questions).await?;
    let (stats, replication, acl) = (wire.reply().await?, wire.reply().await?, wire.reply().await?);
    let commands: &[&str] = if keyspace { &SILENT } else { &SILENT[..1] };
    Ok(Look {
        silent: lines(&stats, commands, Some(',')),
        role: lines(&replication, &["role:", "master_replid:"], None),
        acl: Acl::read(acl),
        notifies: !keyspace || probe::notifies(&wire.reply().await?).is_ok(),
    })
}

impl Acl {
    fn read(reply: Bytes) -> Acl {
        match &reply[..] {
            [b'*', ..] => Acl::Known(reply),
            [b'-', rest @ ..] if rest.starts_with(b"NOPERM") => Acl::Hidden,
            // BUSY, LOADING: nothing is known to have changed; an unknown command: nothing can.
            _ => Acl::Absent,
        }
    }
}

/// The lines of an INFO reply that begin with one of these, each up to `end`. `None` if it is no INFO.
fn lines(reply: &[u8], wanted: &[&str], end: Option<char>) -> Option<String> {
    let (text, _) = resp::split_bulk(reply)?;
    let text = String::from_utf8_lossy(text);
    let cut = |line: &str| line.split(|c| Some(c) == end).next().unwrap_or_default().trim().to_owned();
    Some(text.lines().filter(|l| wanted.iter().any(|w| l.starts_with(w))).map(cut).collect::<Vec<_>>().join(" "))
}

fn compare(node: &Node, old: &Look, new: &Look) {
    let changed = |a: &Option<String>, b: &Option<String>| matches!((a, b), (Some(a), Some(b)) if a != b);
    let coherence = &node.coherence;
    if !new.notifies {
        tracing::warn!("the upstream's notify-keyspace-events has changed: cache flushed");
        node.distrusted.store(true, Ordering::Release);
    }
    if changed(&old.silent, &new.silent) {
        tracing::info!("SWAPDB (or, by keyspace notifications, a flush) on the upstream: cache flushed");
        coherence.flush(FlushCause::SwapDb);
    }
    if changed(&old.role, &new.role) {
        tracing::warn!(
            "the upstream has changed its role ({}): cache flushed",
            new.role.as_deref().unwrap_or_default()
        );
        coherence.flush(FlushCause::Role);
        // Other levels can be kept now.
        node.distrusted.store(true, Ordering::Release);
    }
    if let (Acl::Known(a), Acl::Known(b)) = (&old.acl, &new.acl)
        && a != b
    {
        tracing::info!("the upstream's ACL has changed: cache flushed");
        coherence.flush(FlushCause::Acl);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_matters_of_info_is_kept() {
        let info = |text: &str| format!("${}\r\n{text}\r\n", text.len());
        let stats =
            info("# Commandstats\r\ncmdstat_get:calls=5,usec=1\r\ncmdstat_swapdb:calls=2,usec=9,usec_per_call=4.5\r\n");
        assert_eq!(lines(stats.as_bytes(), &["cmdstat_swapdb:"], Some(',')).as_deref(), Some("cmdstat_swapdb:calls=2"));
        assert_eq!(lines(b"-NOPERM x\r\n", &["role:"], None), None);
        assert_eq!(lines(info("").as_bytes(), &["role:"], None).as_deref(), Some(""));
    }

    #[test]
    fn a_busy_server_has_not_changed_its_acl() {
        assert_eq!(Acl::read(Bytes::from_static(b"-BUSY Redis is busy\r\n")), Acl::Absent);
        assert_eq!(Acl::read(Bytes::from_static(b"-NOPERM x\r\n")), Acl::Hidden);
    }
}
