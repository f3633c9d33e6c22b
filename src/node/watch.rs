//! Changes that no invalidation announces: SWAPDB, MODULE, a changed ACL, a server that has changed its role or whose wall clock was set
//! forward; and in mode `keyspace`, FLUSHALL, FLUSHDB and a server that no longer notifies. Looked at on a connection of its own, twice within `max_staleness`; whatever differs from the last look flushes the cache.
//!
//! Accepted window: between two looks, a reply cached before the change may still be served (SWAPDB and
//! changes of rights through this proxy flush at once, see [`change`](crate::upstream::effect::change)). So `linearizable` does not hold across another client's SWAPDB, and a right that was withdrawn elsewhere is
//! outlived by at most one interval. Two SWAPDBs and a CONFIG RESETSTAT within one interval could cancel out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::acl::{Acl, AclLook};
use super::login::{End, is_login_refusal};
use super::touch::Eviction;
use super::users::{self, Fate};
use super::wire::{Refusal, Wire, is_no_answer, out_of_turn};
use super::{Node, bounds, names, probe};
use crate::cache::FlushCause;
use crate::config::Invalidation;
use crate::resp;
use crate::time::Time;

/// A server whose ACL we may not read: everything is flushed this often, so that no right is outlived for longer.
const ACL_BLIND: Duration = Duration::from_secs(5);

/// Commands that change everything and are announced by nothing: SWAPDB ever, the others in mode `keyspace`.
const SILENT: [&str; 3] = ["cmdstat_swapdb:", "cmdstat_flushall:", "cmdstat_flushdb:"];

/// Commands by which the ACL changes, perhaps there and back between two looks. (Before Redis 7.0 subcommands are not
/// counted apart, and ACL LIST, which every look says, counts as well: there only the states are compared.)
const ACL_CHANGES: [&str; 3] = ["cmdstat_acl|setuser:", "cmdstat_acl|deluser:", "cmdstat_acl|load:"];
/// By which it becomes doubtful whether new connections are taken as before: requirepass, there and back.
const DOUBTS: [&str; 1] = ["cmdstat_config|set:"];
/// Commands after which the server has others; Redis 6.2 does not count them apart.
const MODULES: [&str; 3] = ["cmdstat_module|load", "cmdstat_module|unload", "cmdstat_module:"];

/// The findings of one look. A part that the server refuses to tell is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// How often the commands were said that nothing announces.
    silent: Option<String>,
    /// How often the commands were said by which the ACL changes.
    acl_changes: Option<String>,
    /// Changes among them that may have put one user in the place of another.
    replaced: Option<String>,
    doubts: Option<String>,
    /// How often modules were loaded and unloaded.
    modules: Option<String>,
    /// How often CLIENT UNPAUSE was said, if the server counts it.
    unpaused: Option<u64>,
    /// When the server was asked.
    asked: Time,
    /// `keyspace`: whether the server notifies.
    notifies: bool,
    role: Option<String>,
    /// The users' rules ([`Acl`]).
    pub acl: Acl,
    ahead: Option<Ahead>,
}

/// By how much the server's wall clock is ahead of ours, in nanoseconds. A key that came with a time to live ends by the
/// server's clock, the reply that is kept by ours: if the server's is set forward, the key ends first, and whether that
/// is reported is left to chance. Nothing is wrong if it is set back: the reply ends first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ahead {
    /// By the latest look.
    least: i128,
    /// By the look that allows the least.
    most: i128,
}

/// The questions that the proxy's user may not ask.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Hidden {
    acl: bool,
    time: bool,
}

fn warn_of(hidden: Hidden) {
    if hidden.acl {
        tracing::warn!(
            "the upstream's user may not say ACL LIST: the cache is flushed every {ACL_BLIND:?} instead of when a right changes; grant +acl|list"
        );
    }
    if hidden.time {
        tracing::warn!(
            "the upstream does not answer TIME: if the server's wall clock is set forward, replies outlive their keys; its user needs +time"
        );
    }
}

impl Look {
    fn hidden(&self) -> Hidden {
        Hidden { acl: self.acl == Acl::Hidden, time: self.ahead.is_none() }
    }

    /// Whether the server says that it is a replica.
    pub fn is_replica(&self) -> bool {
        self.role.as_ref().is_some_and(|role| role.contains("role:slave"))
    }
}

/// Looks for as long as the process lives.
pub async fn run(node: Arc<Node>) {
    let mut last: Option<Look> = None;
    let mut failures = 0;
    let mut bounds = BoundsQuestion::default();
    loop {
        match watch(&node, &mut last, &mut bounds, &mut failures).await {
            Ok(never) => match never {},
            Err(e) => {
                tracing::debug!("watch of {} lost: {e}", node.address);
                // The last look may have been at what was not asked for: nobody knows what it should have shown. Of a server that
                // says so each time the log tells once.
                if failures > 0 || bounds.open {
                    node.count_broken(&e);
                } else {
                    node.note_broken("nearside-watch", &e);
                }
                if bounds.open && !std::mem::replace(&mut bounds.warned, true) {
                    tracing::warn!(
                        "the upstream does not answer CONFIG GET ({e}): the limits of one connection last known are assumed"
                    );
                }
                if e.kind() == io::ErrorKind::TimedOut {
                    node.health.unreachable(&format!("silent for {:?}", node.settings.upstream_timeout));
                }
            }
        }
        // Nobody looks: perhaps because the proxy's own user is not taken any more, while older connections go on.
        node.acl_changed();
        failures += 1;
        tokio::time::sleep(node.backoff(failures)).await;
    }
}

/// Looks that somebody waits for.
pub struct Looks {
    /// When the latest was asked for at the server, in the clock of [`Time`].
    taken: tokio::sync::watch::Sender<Time>,
    wanted: tokio::sync::Notify,
}

impl Default for Looks {
    fn default() -> Looks {
        Looks { taken: tokio::sync::watch::Sender::new(Time::ZERO), wanted: tokio::sync::Notify::new() }
    }
}

impl Looks {
    fn taken(&self, asked: Time) {
        self.taken.send_replace(asked);
    }

    /// Until the next is due, or wanted.
    async fn rest(&self, interval: Duration) {
        let _ = tokio::time::timeout(interval, self.wanted.notified()).await;
    }

    /// The next is due at once.
    pub fn want(&self) {
        self.wanted.notify_one();
    }

    /// Whether, within `limit`, the watch has looked at what the server was like at `t` or later; what differed is then flushed.
    pub async fn taken_since(&self, t: Time, limit: Duration) -> bool {
        let mut taken = self.taken.subscribe();
        self.want();
        let taken = taken.wait_for(|asked| *asked > t);
        matches!(tokio::time::timeout(limit, taken).await, Ok(Ok(_)))
    }
}

enum Never {}

/// How long a server that ends the connection on which its bounds are asked for is not asked again.
const BOUNDS_AGAIN: Duration = Duration::from_secs(10);

/// When the server's bounds were asked for; kept over connections.
#[derive(Default)]
struct BoundsQuestion {
    at: Option<Time>,
    /// How often the ACL had changed.
    as_of: u64,
    told: bool,
    /// The latest question has not been answered.
    open: bool,
    warned: bool,
}

impl BoundsQuestion {
    /// Each refusal is noted in the server's ACL LOG: it is asked again only if rights have changed.
    fn are_due(&mut self, node: &Node) -> bool {
        let (now, as_of) = (Time::now(), node.acl_changes.load(Ordering::Acquire));
        let due = self.at.is_none_or(|at| match self.open {
            true => now.since(at) >= BOUNDS_AGAIN,
            false => as_of != self.as_of || self.told && now.since(at) >= bounds::ASK_EVERY,
        });
        if due {
            (self.at, self.as_of, self.open) = (Some(now), as_of, true);
        }
        due
    }
}

async fn watch(
    node: &Node,
    last: &mut Option<Look>,
    bounds: &mut BoundsQuestion,
    failures: &mut u32,
) -> io::Result<Never> {
    let mut wire = Wire::connect(node).await?;
    let limit = node.settings.upstream_timeout;
    let greeting = tokio::time::timeout(limit, wire.greet(node, &node.own, "nearside-watch")).await??;
    if is_login_refusal(&greeting) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the upstream does not take the proxy's own user"));
    }
    if greeting.starts_with(b"-") {
        return Err(io::Error::other(String::from_utf8_lossy(&greeting).trim().to_owned()));
    }
    let (mut blind, mut blind_since) = (Hidden::default(), Time::now());
    loop {
        let mut as_of = node.acl_changes.load(Ordering::Acquire);
        let mut look = match tokio::time::timeout(limit, look(&mut wire, node)).await? {
            Ok(look) => look,
            // The last look stays, and is compared with the server's next answer.
            Err(Refusal::Server(_) | Refusal::Login(_)) => {
                tokio::time::sleep(node.settings.watch_interval).await;
                continue;
            }
            Err(Refusal::Io(e)) => return Err(e),
        };
        *failures = 0;
        crate::sabotage::panic_at("watch");
        // The link's look, from before anything was cached.
        let first = node.first_look.swap(None);
        if last.is_none() {
            // Whoever was taken before anybody looked may not be any more.
            node.logins.doubt();
            *last = first.map(|look| Look::clone(&look));
        }
        if let Some(last) = last {
            as_of += u64::from(compare(node, last, &mut look));
            if last.modules != look.modules {
                names::learn_again(node).await;
            }
        }
        if look.acl == Acl::Hidden && Time::now().since(blind_since) >= ACL_BLIND {
            blind_since = Time::now();
            node.acl_changed();
        }
        node.acl.store(Arc::new(AclLook { as_of, acl: look.acl.clone() }));
        if blind != look.hidden() {
            blind = look.hidden();
            warn_of(blind);
        }
        let asked = look.asked;
        *last = Some(look);
        node.looks.taken(asked);
        if bounds.are_due(node) {
            bounds.told = tokio::time::timeout(limit, bounds::ask(&mut wire, &node.bounds)).await??;
            bounds.open = false;
        }
        node.looks.rest(node.settings.watch_interval).await;
    }
}

/// One look, on a connection that is not subscribed. Refused if the server cannot answer now: half a look is none.
pub async fn look(wire: &mut Wire, node: &Node) -> Result<Look, Refusal> {
    let keyspace = node.settings.invalidation == Invalidation::Keyspace;
    let mut questions = resp::encode(&["INFO", "commandstats"]);
    questions.extend(resp::encode(&["INFO", "replication"]));
    questions.extend(resp::encode(&["ACL", "LIST"]));
    questions.extend(resp::encode(&["TIME"]));
    if keyspace {
        questions.extend(resp::encode(&["CONFIG", "GET", "notify-keyspace-events"]));
    }
    questions.extend(resp::encode(&["INFO", "memory"]));
    wire.quiet().await?;
    let sent = Time::now();
    wire.send(&questions).await?;
    let (stats, replication, acl) = (wire.reply().await?, wire.reply().await?, wire.reply().await?);
    // Where no link listens, nothing else may be heard of the server while a session waits for long.
    node.seen.store(Time::now().0, Ordering::Relaxed);
    node.health.reached();
    let time = wire.reply().await?;
    let ahead = Ahead::read(&time, sent, Time::now());
    let notifies = if keyspace { Some(wire.reply().await?) } else { None };
    let memory = wire.reply().await?;
    node.touches.note(Eviction::read(&memory));
    let replies = [&stats, &replication, &acl, &time].into_iter().chain(&notifies);
    if let Some(passing) = replies.into_iter().find(|reply| is_no_answer(reply)) {
        return Err(Refusal::Server(passing.clone()));
    }
    let in_turn = [(&stats, b"$="), (&replication, b"$="), (&acl, b"*~"), (&memory, b"$=")];
    if let Some((stray, _)) = in_turn.into_iter().find(|(reply, kind)| reply[0] != b'-' && !kind.contains(&reply[0])) {
        return Err(out_of_turn(stray).into());
    }
    let commands: &[&str] = if keyspace { &SILENT } else { &SILENT[..1] };
    Ok(Look {
        silent: calls(&stats, commands),
        acl_changes: calls(&stats, &ACL_CHANGES),
        replaced: calls(&stats, &ACL_CHANGES[1..]),
        doubts: calls(&stats, &DOUBTS),
        modules: calls(&stats, &MODULES),
        unpaused: unpaused(&stats),
        asked: sent,
        role: lines(&replication, &["role:", "master_replid:"], None),
        acl: Acl::read(acl),
        ahead,
        notifies: notifies.is_none_or(|reply| probe::notifies(&reply).is_ok()),
    })
}

impl Ahead {
    /// Reads a reply to TIME that was asked at `sent` and came at `came`. `None`: the user may not ask.
    fn read(reply: &[u8], sent: Time, came: Time) -> Option<Ahead> {
        let (_, rest) = resp::split_aggregate(reply)?;
        let (seconds, rest) = resp::split_bulk(rest)?;
        let (micros, _) = resp::split_bulk(rest)?;
        let number = |text| resp::parse_i64(text).map(i128::from);
        let server = number(seconds)? * 1_000_000_000 + number(micros)? * 1_000;
        Some(Ahead { least: server - i128::from(came.0), most: server - i128::from(sent.0) })
    }

    /// The knowledge after another look; and whether the clock was certainly set forward by more than `tolerance` since
    /// the look at which it was furthest behind.
    fn then(old: Option<Ahead>, new: Option<Ahead>, tolerance: Duration) -> (Option<Ahead>, bool) {
        let (Some(old), Some(new)) = (old, new) else { return (new.or(old), false) };
        let jumped = new.least > old.most + tolerance.as_nanos().cast_signed();
        (Some(if jumped { new } else { Ahead { most: old.most.min(new.most), ..new } }), jumped)
    }
}

/// The lines of an INFO reply that begin with one of these, each up to `end`. `None` if it is no INFO.
fn lines(reply: &[u8], wanted: &[&str], end: Option<char>) -> Option<String> {
    let (text, _) = resp::split_bulk(reply)?;
    let text = String::from_utf8_lossy(text);
    let cut = |line: &str| line.split(|c| Some(c) == end).next().unwrap_or_default().trim().to_owned();
    Some(text.lines().filter(|l| wanted.iter().any(|w| l.starts_with(w))).map(cut).collect::<Vec<_>>().join(" "))
}

/// How often these commands were executed, a line each. (One that has only been refused so far has a line too, of no call:
/// whoever may not say it would be the first to change the server's statistics.)
fn calls(stats: &[u8], wanted: &[&str]) -> Option<String> {
    let found = lines(stats, wanted, Some(','))?;
    Some(found.split(' ').filter(|line| !line.ends_with(":calls=0")).collect::<Vec<_>>().join(" "))
}

/// How often CLIENT UNPAUSE was said; `None`: the server does not count subcommands (before Redis 7.0), or has none counted.
fn unpaused(stats: &[u8]) -> Option<u64> {
    const LINE: &str = "cmdstat_client|unpause:";
    let found = lines(stats, &["cmdstat_client|"], Some(','))?;
    let calls = found.split(' ').find_map(|line| line.strip_prefix(LINE)?.strip_prefix("calls="));
    (!found.is_empty()).then(|| calls.and_then(|n| n.parse().ok()).unwrap_or(0))
}

/// Flushes if something differs; `new` then knows what of `old` is still true. Whether the ACL has changed.
fn compare(node: &Node, old: &Look, new: &mut Look) -> bool {
    let changed = |a: &Option<String>, b: &Option<String>| matches!((a, b), (Some(a), Some(b)) if a != b);
    let coherence = &node.coherence;
    // A link that comes up only now has asked for itself; if what it was told is over already, the next look finds it up.
    let listening = coherence.generation().is_some();
    if listening && !new.notifies {
        tracing::warn!("the upstream's notify-keyspace-events has changed: cache flushed");
        node.distrusted.store(true, Ordering::Release);
    }
    if !listening && new.notifies && !old.notifies {
        node.distrusted.store(true, Ordering::Release);
    }
    if changed(&old.silent, &new.silent) {
        tracing::info!("SWAPDB (or, by keyspace notifications, a flush) on the upstream: cache flushed");
        coherence.flush(FlushCause::SwapDb);
    }
    node.pauses.compare(old.unpaused, new.unpaused, old.asked);
    if changed(&old.role, &new.role) {
        tracing::warn!(
            "the upstream has changed its role ({}): cache flushed",
            new.role.as_deref().unwrap_or_default()
        );
        coherence.flush(FlushCause::Role);
        // Other levels can be kept now.
        node.distrusted.store(true, Ordering::Release);
    }
    let (ahead, jumped) = Ahead::then(old.ahead, new.ahead, node.settings.watch_interval / 2);
    new.ahead = ahead;
    if jumped {
        tracing::warn!("the upstream's wall clock has been set forward, or runs faster than ours: cache flushed");
        coherence.flush(FlushCause::Clock);
    }
    if changed(&old.doubts, &new.doubts) {
        node.logins.doubt();
    }
    let differs = matches!((&old.acl, &new.acl), (Acl::Known(a), Acl::Known(b)) if a != b);
    if let (Acl::Known(old_acl), Acl::Known(new_acl)) = (&old.acl, &new.acl) {
        let (was, is, replaced) =
            (users::by_name(old_acl), users::by_name(new_acl), changed(&old.replaced, &new.replaced));
        for user in node.logins.users() {
            let end = match users::fate(&user, &was, &is, replaced) {
                Fate::Gone => End::Deleted { asked: new.asked },
                Fate::Anew => End::Anew,
                Fate::Still => {
                    node.logins.still(&user, new.asked);
                    continue;
                }
            };
            node.end_logins(&user, end);
        }
    }
    let acl_changed = differs || changed(&old.acl_changes, &new.acl_changes);
    if acl_changed {
        tracing::info!("the upstream's ACL has changed: cache flushed");
        node.acl_changed();
        // The user may have been granted what it was refused.
        if !listening {
            node.distrusted.store(true, Ordering::Release);
        }
    }
    acl_changed
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
        let refused =
            info("cmdstat_acl|load:calls=0,usec=0,rejected_calls=3\r\ncmdstat_acl|deluser:calls=10,usec=0\r\n");
        assert_eq!(calls(refused.as_bytes(), &ACL_CHANGES).as_deref(), Some("cmdstat_acl|deluser:calls=10"));
        assert_eq!(calls(info("").as_bytes(), &ACL_CHANGES).as_deref(), Some(""));
        assert_eq!(lines(info("").as_bytes(), &["role:"], None).as_deref(), Some(""));
    }

    #[test]
    fn a_clock_that_was_set_forward_is_seen_and_a_slow_answer_is_none() {
        let ms = |n: i64| i128::from(n) * 1_000_000;
        let at = |reply: &str, sent: i64, came: i64| {
            Ahead::read(reply.as_bytes(), Time(ms(sent) as u64), Time(ms(came) as u64))
        };
        let time = |seconds: &str| format!("*2\r\n${}\r\n{seconds}\r\n$1\r\n0\r\n", seconds.len());
        let first = at(&time("100"), 50_000, 50_001);
        assert_eq!(first, Some(Ahead { least: ms(49_999), most: ms(50_000) }));
        assert_eq!(at("-NOPERM x\r\n", 1, 2), None);
        let then = |old, new| Ahead::then(old, new, Duration::from_millis(250));
        assert_eq!(then(first, at(&time("101"), 51_000, 51_001)), (first, false));
        let slow = at(&time("102"), 51_000, 53_000);
        assert!(!then(first, slow).1, "the answer was on its way for two seconds");
        assert!(then(first, at(&time("102"), 51_000, 51_700)).1);
        let back = then(first, at(&time("40"), 51_000, 51_001));
        assert!(!back.1 && then(back.0, at(&time("102"), 52_000, 52_001)).1, "back and forth");
        let drifts = (1..=3).fold((first, false), |(old, jumped), n| {
            let new = at(&time(&(100 + n).to_string()), 50_000 + 900 * n, 50_001 + 900 * n);
            let (next, jump) = then(old, new);
            (next, jumped || jump)
        });
        assert!(drifts.1, "no step is large, but their sum is");
        assert_eq!(then(first, None), (first, false));
    }
}
