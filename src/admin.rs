//! A first look inside: INFO's section and the NEARSIDE command.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::bypass::Bypass;
use crate::cache::entry::Variant;
use crate::cache::{Absence, FLUSH_CAUSES};
use crate::command::{self, CacheRead, Keys, Local, Need, Request, Route};
use crate::config::Level;
use crate::logging;
use crate::panics;
use crate::resp::{self, Scanner};
use crate::shared::Shared;
use crate::time::Time;

const HELP: [&str; 13] = [
    "NEARSIDE <subcommand> [<arg> ...]. Subcommands are:",
    "PING",
    "    +PONG, whatever the upstream does: this proxy lives.",
    "STATS",
    "    What INFO's section says, as names and values.",
    "FLUSH",
    "    Forget everything that is cached.",
    "EXPLAIN <command> <arg> [<arg> ...]",
    "    Whether this command would be answered from the cache now, and if not, why not; and its key's last events.",
    "EXPLAIN <key>",
    "    How many replies about the key are kept, and its last events.",
    "CONSISTENCY [bounded|causal|linearizable]",
    "    Read or set how fresh cached answers on this connection must be.",
];

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// The facts about the upstream and the connections to it.
fn of_upstream(shared: &Shared, add: &mut impl FnMut(&str, &dyn std::fmt::Display)) {
    let node = shared.node();
    let (down, age) = (node.health.down(), node.coherence.clock_age(Time::now()));
    add("upstream", &if down.is_some() { "down" } else { "up" });
    add("upstream_address", &node.address);
    if let Some(why) = &down {
        add("upstream_error", why);
    }
    add("upstream_version", &*node.version.load_full());
    add("link", &if age.is_some() { "up" } else { "down" });
    let standing = node.coherence.standing();
    add("invalidation", &standing);
    // Without a server no read is answered, at whichever level; with one and without a link, the server answers all.
    match down {
        Some(_) => add("strongest_level", &"none"),
        None => add("strongest_level", &standing.strongest()),
    }
    add("reads_of_refused_levels", &shared.cache.stats.bypasses.count_of(Bypass::Level));
    add("clock_age_ms", &age.map_or(-1, |a| i64::try_from(a.as_millis()).unwrap_or(i64::MAX)));
    add("lanes", &node.lanes.load(Ordering::Relaxed));
    add("lanes_rested", &get(&node.lanes_rested));
    let (dedicated, idle) = (shared.capacity.dedicated.taken(), shared.capacity.dedicated.idle());
    add("dedicated", &dedicated);
    add("dedicated_idle", &idle);
    add("dedicated_lent", &dedicated.saturating_sub(idle));
    add("dedicated_given_up", &shared.capacity.dedicated.given_up());
    add("dedicated_refused", &shared.capacity.dedicated.refused());
    add("upstream_out_of_turn", &get(&node.out_of_turn));
    add("upstream_lacks", &*node.lacks.load_full());
    add("commands_renamed", &node.table.load().renamed());
    add("names_asked", &get(&node.names.asked));
    add("names_unknown", &node.names.remembered());
    add("names_unknowable", &get(&node.names.unknowable));
}

/// Names and values of everything the proxy counts, in the order of INFO.
pub fn fields(shared: &Shared) -> Vec<(String, String)> {
    let (cache, node) = (&shared.cache, shared.node());
    let stats = &cache.stats;
    let (hits, misses) = (get(&stats.hits), get(&stats.misses));
    let ratio = if hits + misses == 0 { 0.0 } else { hits as f64 / (hits + misses) as f64 };
    let mut fields: Vec<(String, String)> = Vec::new();
    let mut add =
        |name: &str, value: &dyn std::fmt::Display| fields.push((format!("nearside_{name}"), value.to_string()));
    add("version", &env!("CARGO_PKG_VERSION"));
    add("uptime_in_seconds", &Time::now().since(shared.started).as_secs());
    of_upstream(shared, &mut add);
    add("clients", &shared.clients.len());
    add("clients_total", &shared.clients.total());
    add("clients_refused", &get(&shared.clients.refused));
    add("clients_tls_failed", &get(&shared.clients.handshakes_failed));
    add("clients_bytes", &shared.clients.held());
    add("clients_max_bytes", &shared.config.maxmemory_clients);
    add("evicted_clients", &get(&shared.clients.evicted));
    add("clients_slow", &get(&shared.slow_readers));
    add("log_lines_dropped", &logging::dropped());
    add("panics", &panics::count());
    add("commands", &get(&shared.commands));
    add("hits", &hits);
    add("misses", &misses);
    add("hit_ratio", &format!("{ratio:.4}"));
    for reason in Bypass::all() {
        add(&format!("bypass_{}", reason.name()), &stats.bypasses.count_of(reason));
    }
    add("joined_flights", &get(&stats.joined));
    add("clock_waits", &get(&node.coherence.waits));
    add("entries", &cache.keys());
    add("replies", &cache.replies());
    add("bytes", &cache.used());
    add("max_bytes", &cache.budget());
    add("fills", &get(&stats.fills));
    add("revoked_fills", &get(&stats.revoked));
    add("evictions", &get(&stats.evictions));
    add("invalidations", &get(&stats.invalidations));
    add("dropped", &get(&stats.dropped));
    add("flushes", &stats.flushes.iter().map(get).sum::<u64>());
    for (cause, name) in FLUSH_CAUSES {
        add(&format!("flushes_{name}"), &get(&stats.flushes[cause as usize]));
    }
    add("logins_asked", &get(&node.logins.asked));
    add("login_connections", &get(&node.logins.connected));
    add("wrong_passwords", &get(&node.guesses.wrong));
    add("logins_delayed", &get(&node.guesses.delayed));
    add("logins_refused", &get(&node.guesses.refused));
    add("guessing_addresses", &node.guesses.addresses());
    add("touch_commands", &get(&node.touches.commands));
    add("touched_keys", &get(&node.touches.keys));
    let audit = &shared.audit;
    add("audit_checked_total", &get(&audit.checked));
    add("audit_stale_total", &get(&audit.stale));
    add("audit_undecided_total", &get(&audit.undecided));
    add("audit_skipped_total", &get(&audit.skipped));
    add("audit_nines", &format!("{:.2}", audit.nines()));
    fields
}

/// INFO's section.
pub fn info(shared: &Shared) -> String {
    let mut text = "# Nearside\r\n".to_owned();
    for (name, value) in fields(shared) {
        let _ = write!(text, "{name}:{value}\r\n");
    }
    text
}

/// INFO of a server that cannot be asked: what is known without the server, of the sections that were asked for (all, if none
/// is named). `None`: nothing.
pub fn info_without_server(shared: &Shared, asked: &[Vec<u8>]) -> Option<String> {
    let general = |s: &Vec<u8>| matches!(&s[..], b"default" | b"all" | b"everything");
    let wanted = |section: &[u8]| asked.is_empty() || asked.iter().any(|s| general(s) || s == section);
    let mut sections = Vec::new();
    if wanted(b"server") {
        sections.push(format!("# Server\r\n{}", shared.node().health.about()));
    }
    if wanted(b"clients") {
        let (now, most) = (shared.clients.len(), shared.config.maxclients);
        sections.push(format!("# Clients\r\nconnected_clients:{now}\r\nmaxclients:{most}\r\n"));
    }
    if wanted(b"nearside") {
        sections.push(info(shared));
    }
    (!sections.is_empty()).then(|| sections.join("\r\n"))
}

/// INFO's text with the number of the proxy's clients in the place of the server's connections, as CLIENT LIST has it,
/// and without our lanes among those that track.
pub fn own_clients(info: &str, shared: &Shared) -> String {
    let lanes = shared.node().lanes.load(Ordering::Relaxed);
    let info = renumber(info, "connected_clients:", |_| shared.clients.len());
    renumber(&info, "tracking_clients:", |n| n.saturating_sub(lanes))
}

fn renumber(info: &str, field: &str, number: impl Fn(usize) -> usize) -> String {
    let Some((before, rest)) = info.split_once(field) else { return info.to_owned() };
    let after = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    let old = rest[..rest.len() - after.len()].parse().unwrap_or(0);
    format!("{before}{field}{}{after}", number(old))
}

/// NEARSIDE without what concerns the connection that says it.
pub fn command(shared: &Shared, request: &Request<'_>) -> Vec<u8> {
    let word = if request.len() > 1 { request.arg(1).to_ascii_uppercase() } else { b"HELP".to_vec() };
    match (&word[..], request.len()) {
        (b"PING", 2) => b"+PONG\r\n".to_vec(),
        (b"HELP", _) => lines(HELP.iter().map(|l| (*l).to_owned())),
        (b"STATS", 2) => lines(fields(shared).into_iter().flat_map(|(n, v)| [n, v])),
        (b"FLUSH", 2) => {
            shared.node().coherence.flush(crate::cache::FlushCause::Admin);
            b"+OK\r\n".to_vec()
        }
        _ => {
            let word = String::from_utf8_lossy(&word);
            let word: String = word.chars().filter(|c| !c.is_control()).take(128).collect();
            format!(
                "-ERR nearside: unknown subcommand or wrong number of arguments for '{word}'. Try NEARSIDE HELP.\r\n"
            )
            .into_bytes()
        }
    }
}

/// An array of bulk strings.
fn lines(lines: impl Iterator<Item = String>) -> Vec<u8> {
    let lines: Vec<String> = lines.collect();
    let mut out = format!("*{}\r\n", lines.len()).into_bytes();
    lines.iter().for_each(|l| resp::encode_bulk(&mut out, l.as_bytes()));
    out
}

/// The read whose right is needed to have `command` explained; `None`: the explanation tells nothing about a key.
pub fn read_to_explain(shared: &Shared, command: &[u8]) -> Option<Vec<u8>> {
    let mut scanner = Scanner::default();
    scanner.scan(command, usize::MAX).ok()?;
    let request = Request { buf: command, args: scanner.args(), hash: None };
    if request.len() == 1 {
        return Some(resp::encode(&[&b"GET"[..], request.arg(0)]));
    }
    let route = shared.node().table.load().plan(&request, &mut Keys::default()).route;
    matches!(route, Route::Cache(_)).then(|| command.to_vec())
}

/// The session that asks for an explanation.
pub struct Asks<'a> {
    /// Its view.
    pub view: u32,
    /// Its level.
    pub level: Level,
    /// The latest that it has seen.
    pub seen: Time,
    /// Whether GETs may answer its MGETs.
    pub shares_mget: bool,
    /// Why none of its reads has to do with the cache now.
    pub bypass: Option<Bypass>,
    /// Why the reply to this read would not be kept, were it sent now.
    pub why_not_kept: &'a dyn Fn(&Request<'_>, CacheRead) -> Option<Bypass>,
}

/// Whether `command` would be a hit for this session, and if not, why not.
pub fn explain(shared: &Shared, command: &[u8], asks: &Asks<'_>) -> Vec<u8> {
    let mut scanner = Scanner::default();
    let scanned = scanner.scan(command, usize::MAX);
    debug_assert!(matches!(scanned, Ok(resp::Scan::Request(_))), "it was encoded here");
    let request = Request { buf: command, args: scanner.args(), hash: None };
    if request.len() == 1 {
        return explain_key(shared, request.arg(0));
    }
    let mut keys = Keys::default();
    let plan = shared.node().table.load().plan(&request, &mut keys);
    let mut events = Vec::new();
    let (word, why) = match plan.route {
        Route::Cache(_) if asks.bypass.is_some() => ("miss", asks.bypass.map_or("", Bypass::because).to_owned()),
        Route::Cache(CacheRead::Mget) if !asks.shares_mget => {
            ("never", format!("forwarded: {}", Bypass::Rights.because()))
        }
        Route::Cache(read) => {
            let positions = if read == CacheRead::Mget { 1..request.len() } else { 1..2 };
            let variants = positions.map(|i| Variant {
                view: asks.view,
                id: if read == CacheRead::Mget { command::GET_ID } else { plan.id },
                key: request.arg(i),
                tail: if read == CacheRead::Mget { b"" } else { &command[request.args[i].end + 2..] },
            });
            events.extend(last_events(shared, request.arg(1)));
            let (word, mut why) = explain_read(shared, variants, asks.level, asks.seen);
            if word == "miss"
                && let Some(reason) = (asks.why_not_kept)(&request, read)
            {
                why = format!("{why}; its reply would not be kept: {}", reason.because());
            }
            (word, why)
        }
        other => ("never", explain_route(other, plan.effect).to_owned()),
    };
    lines([word.to_owned(), why].into_iter().chain(events))
}

/// A word that stands alone is a key.
fn explain_key(shared: &Shared, key: &[u8]) -> Vec<u8> {
    let why = format!("{}: {} replies about it are kept", key.escape_ascii(), shared.cache.replies_of(key));
    lines(["key".to_owned(), why].into_iter().chain(last_events(shared, key)))
}

fn last_events(shared: &Shared, key: &[u8]) -> impl Iterator<Item = String> {
    crate::audit::describe(&shared.cache, shared.cache.hash(key), Time::now())
}

fn explain_read<'a>(
    shared: &Shared,
    variants: impl Iterator<Item = Variant<'a>>,
    level: Level,
    seen: Time,
) -> (&'static str, String) {
    let coherence = &shared.node().coherence;
    let now = Time::now();
    let standing = coherence.standing();
    if let Err(why) = &standing.mode {
        return ("miss", format!("nothing is cached: {why}"));
    }
    let Some(age) = coherence.clock_age(now) else {
        return ("miss", "the invalidation link is down: nothing is cached".into());
    };
    if !coherence.keeps(level) {
        return ("miss", format!("{} ({level}): {}", Bypass::Level.because(), standing.limit()));
    }
    for variant in variants {
        // A linearizable read is always behind by the time of its own arrival; it then waits for one PING.
        let level = if level == Level::Linearizable { Level::Bounded } else { level };
        let watermark = coherence.watermark(level, now, now, seen);
        if !shared.node().covers(variant.key) {
            return ("miss", format!("{}: {}", variant.key.escape_ascii(), Bypass::Prefix.because()));
        }
        if let Err(absence) = shared.cache.explain(&variant, now, watermark) {
            let key = String::from_utf8_lossy(variant.key).into_owned();
            return explain_absence(absence, &key, now);
        }
    }
    let proof = match level {
        Level::Bounded => "older than max_staleness it never is".to_owned(),
        Level::Causal => "as new as all this connection has seen".to_owned(),
        Level::Linearizable => "after one PING on the link, shared with all who wait".to_owned(),
    };
    ("hit", format!("cached, known to be exact as of {} ms ago; {}: {proof}", age.as_millis(), level))
}

fn explain_absence(absence: Absence, key: &str, now: Time) -> (&'static str, String) {
    let miss = |why: &str| ("miss", format!("{key}: {why}"));
    match absence {
        Absence::NotCached => miss("not cached: not read in this form since it last changed, or evicted"),
        Absence::Flushed => miss("flushed since it was filled"),
        Absence::Expired => miss("its time to live has ended"),
        Absence::LaneLost => {
            miss("the connection that filled it is gone, and with it the server's promise to report changes")
        }
        Absence::Behind(need) if need.time > now => miss("the freshness clock cannot have got there yet"),
        Absence::Behind(need) => {
            let behind = now.since(need.time).as_millis();
            ("wait", format!("{key}: cached, but not yet known to be exact as of {behind} ms ago: waits for a PING"))
        }
    }
}

fn explain_route(route: Route, effect: command::EffectClass) -> &'static str {
    match (route, effect) {
        (Route::Local(Local::Info), _) => "answered by the upstream, with a section of the proxy's own",
        (Route::Local(Local::Channels), _) => "answered by the upstream, without the proxies' own channel",
        (Route::Local(Local::Module), _) => {
            "forwarded; the server's commands are learned anew before it is acknowledged"
        }
        (Route::Unlisted, _) => "no command's name that is known: the server is asked once what it means",
        (Route::Local(_), _) => "answered by the proxy: it is about this connection",
        (Route::Dedicated(Need::Alone), command::EffectClass::Unknown) => {
            "a script: it gets a connection of its own; it may touch any key, so its reply waits until the cache is known to reflect it"
        }
        (Route::Dedicated(Need::Alone), _) => "a script: it gets a connection of its own",
        (Route::Dedicated(Need::Block | Need::Wait), _) => "it may block: it gets a connection of its own",
        (Route::Dedicated(_), _) => "it keeps state on its connection: the session gets one of its own",
        (_, command::EffectClass::Unknown) => {
            "forwarded: it may touch any key, so its reply waits until the cache is known to reflect it"
        }
        (_, command::EffectClass::Rights) => {
            "forwarded; if rights or passwords are others by it, all that is cached is flushed before it is acknowledged"
        }
        (_, command::EffectClass::Flush) => "forwarded; all that is cached is flushed before it is acknowledged",
        (_, command::EffectClass::Keys) => {
            "forwarded: it writes, or its reply cannot be kept (random, dependent on time, of several keys, or not tracked by the server)"
        }
        (_, command::EffectClass::None) => "forwarded: it reads no key that could be cached",
    }
}
