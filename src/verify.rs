//! `nearside verify`: drives somebody's own deployment, notes what every client was told, and judges it.
//!
//! | module | the question it answers |
//! |---|---|
//! | [`work`] | what do clients do |
//! | [`drive`] | who does it, when, and what came of it |
//! | [`weather`] | what is done to the deployment meanwhile |
//! | [`history`] | what was noted |
//! | [`facts`] | what is certain about each object |
//! | [`judge`] | which promise was broken, and what shows it |
//! | [`moments`], [`linearizable`], [`register`] | is there an order that explains every answer |
//! | [`report`] | what is told |
//!
//! The modules from `history` to `register` are pure: no I/O, no clock reads.

pub(crate) mod drive;
mod facts;
pub(crate) mod history;
pub(crate) mod judge;
mod linearizable;
mod moments;
mod register;
mod report;
mod weather;
pub(crate) mod wire;
pub(crate) mod work;

use std::cell::Cell;
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use redis::Value;
use tokio::task::JoinHandle;

use crate::config::{self, Level};
use crate::resp;
use crate::time::Time;
use drive::{Mix, Site, TestClient, Way};
use history::{History, RouteUnderTest};
use judge::{Findings, Rules};
use report::{Party, Report, Tally};
use weather::Weather;
use wire::{Target, TestConnection, text};
use work::FieldTtls;

/// The clients pause so often, and what they noted is judged while they go on.
const ROUND: Duration = Duration::from_secs(5);
/// Configurations that the search may look at, for one key: some seconds.
const BUDGET: usize = 2_000_000;
/// Keys removed by one command.
const BATCH: usize = 500;

/// Check what a deployment promises: drive it with clients of its own, under keys of its own, and judge every answer.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Addresses are host:port or URLs as in `upstream`. Exit codes: 0 passed, 1 a promise was broken, 2 nothing can be said."
)]
pub struct Options {
    /// A proxy. May be repeated.
    #[arg(long, value_name = "ADDR", required = true)]
    proxy: Vec<String>,
    /// The server behind them: writers go past the proxies too.
    #[arg(long, value_name = "ADDR")]
    upstream: String,
    /// Ask every proxy for this level and hold it to it [default: the level of each listener].
    #[arg(long, value_name = "LEVEL")]
    level: Option<Level>,
    /// What the proxies' max_staleness is.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = config::duration)]
    max_staleness: Duration,
    /// How long to drive.
    #[arg(long, value_name = "N", default_value_t = 30)]
    seconds: u64,
    /// Clients, each with two connections by every way.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=1000))]
    clients: u16,
    /// Objects in use at a time.
    #[arg(long, value_name = "N", default_value_t = 36, value_parser = clap::value_parser!(u16).range(1..=10000))]
    keys: u16,
    /// What every key begins with (default: `nearside:verify:` and a random word).
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// Makes the clients' choices the same again [default: random].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Kill the proxies' connections at the upstream meanwhile, again and again.
    #[arg(long)]
    cut_links: bool,
    /// Erasures and evictions that somebody else makes meanwhile, a line each: `erase START END` or `evict START END`, in
    /// nanoseconds of CLOCK_BOOTTIME; END is `-` while it lasts.
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// The CA of rediss:// addresses [default: whom the system believes].
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Write the report there too.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs it; the exit code.
pub async fn run(options: Options) -> u8 {
    let report = tokio::task::LocalSet::new().run_until(drive_and_judge(&options)).await;
    match report.and_then(|report| tell(&options, &report)) {
        Ok(code) => code,
        Err(e) => {
            crate::logging::say(&format!("nearside verify: {e}"));
            2
        }
    }
}

fn tell(options: &Options, report: &Report) -> Result<u8, String> {
    let told = if options.json {
        serde_json::to_string_pretty(report).map_err(|e| e.to_string())? + "\n"
    } else {
        report.to_string()
    };
    if let Some(path) = &options.report {
        std::fs::write(path, &told).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(told.as_bytes()).and_then(|()| stdout.flush()).map_err(|e| format!("the report: {e}"))?;
    Ok(report.exit_code())
}

async fn drive_and_judge(options: &Options) -> Result<Report, String> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let random = || format!("nearside:verify:{:08x}", fastrand::u32(..));
    let prefix = options.prefix.clone().unwrap_or_else(random);
    let mut ways = ways(options)?;
    let (upstream, field_ttls) = greet_upstream(&ways[0], &prefix).await?;
    let mut proxies = Vec::new();
    for way in ways.iter_mut().skip(1) {
        proxies.push(greet_proxy(way, &prefix).await?);
    }
    let site = Rc::new(Site::new(ways, prefix.clone(), options.keys.into(), field_ttls, Mix::default()));
    let began = Time::now();
    let mut run = Run {
        options,
        prefix: &prefix,
        site,
        tally: Tally::new(began),
        judging: None,
        used: Vec::new(),
        events: Weather::default(),
    };
    let cut = Rc::new(Cell::new(0));
    let cutter = options.cut_links.then(|| {
        let target = run.site.ways[0].target.clone();
        tokio::task::spawn_local(weather::cut(target, fastrand::Rng::with_seed(!seed), cut.clone()))
    });
    run.rounds(seed, began + Duration::from_secs(options.seconds)).await?;
    let seconds = Time::now().since(began).as_secs_f64();
    if let Some(cutter) = cutter {
        cutter.abort();
    }
    let left_behind = run.remove().await;
    for (proxy, way) in proxies.iter_mut().zip(&run.site.ways[1..]) {
        let after = stats(way).await.ok().and_then(|stats| stats.hits);
        // one that was restarted has counted anew
        proxy.hits = proxy.hits.zip(after).map(|(before, after)| after.checked_sub(before).unwrap_or(after));
    }
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        seed,
        seconds,
        clients: options.clients.into(),
        keys: options.keys.into(),
        prefix: prefix.clone(),
        left_behind,
        upstream,
        proxies,
        max_staleness: options.max_staleness.as_secs_f64(),
        cut: options.cut_links.then(|| cut.get()),
        erasures: run.events.erased.len(),
        evictions: run.events.evicted.len(),
        errors: run.site.errors.take(),
        unanswered: run.site.unanswered.get(),
        ..Report::default()
    };
    run.tally.fill(&mut report);
    Ok(report)
}

/// Past the proxies, and through each.
fn ways(options: &Options) -> Result<Vec<Way>, String> {
    let target =
        |address: &String| Target::parse(address, options.tls_ca.as_ref()).map_err(|e| format!("{address}: {e}"));
    let past = target(&options.upstream)?;
    let mut ways = vec![Way { route: RouteUnderTest { name: past.name(), level: None }, target: past, ask: None }];
    for address in &options.proxy {
        let target = target(address)?;
        let route = RouteUnderTest { name: target.name(), level: options.level.or(Some(Level::Bounded)) };
        ways.push(Way { target, route, ask: options.level });
    }
    Ok(ways)
}

/// The key by which a proxy is recognized as one of this upstream.
fn probe_key(prefix: &str) -> String {
    format!("{prefix}:probe")
}

/// Its version, and what it can do with times to live of fields. Leaves a key for the proxies to show.
async fn greet_upstream(way: &Way, prefix: &str) -> Result<(Party, FieldTtls), String> {
    let failed = |e: std::io::Error| format!("{}: {e}", way.route.name);
    let mut connection = TestConnection::open(&way.target, false).await.map_err(failed)?;
    let info = text(&connection.call(&["INFO", "server"]).await.map_err(failed)?).unwrap_or_default();
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let version = match field("valkey_version") {
        Some(version) => format!("Valkey {version}"),
        None => format!("Redis {}", field("redis_version").unwrap_or("?")),
    };
    let key = probe_key(prefix);
    let hash = connection.call(&["HPEXPIRE", &key, "1", "FIELDS", "1", "f"]).await.map_err(failed)?;
    let set = connection.call(&["SET", &key, prefix, "PX", "60000"]).await.map_err(failed)?;
    if set != Value::Okay {
        return Err(format!("{}: SET was answered {set:?}", way.route.name));
    }
    let party = Party { address: way.route.name.clone(), version, ..Party::default() };
    let field_ttls = match (hash, field("valkey_version")) {
        (Value::ServerError(_), _) => FieldTtls::None,
        (_, Some(_)) => FieldTtls::Any,
        (_, None) => FieldTtls::OfNewFields,
    };
    Ok((party, field_ttls))
}

/// Its version, its level, and whether it shows what was written at the upstream.
async fn greet_proxy(way: &mut Way, prefix: &str) -> Result<Party, String> {
    let name = way.route.name.clone();
    let failed = |e: std::io::Error| format!("{name}: {e}");
    let mut connection = TestConnection::open(&way.target, false).await.map_err(failed)?;
    let level = connection.call(&["NEARSIDE", "CONSISTENCY"]).await.map_err(failed)?;
    match text(&level) {
        Some(level) => way.route.level = way.ask.or(Some(level.parse()?)),
        // Not nearside: it cannot be asked, only held to a level.
        None => way.ask = None,
    }
    let shown = connection.call(&["GET", &probe_key(prefix)]).await.map_err(failed)?;
    if text(&shown).as_deref() != Some(prefix) {
        return Err(format!(
            "{name} does not show what is written at the upstream ({shown:?}): is it in front of another one?"
        ));
    }
    let stats = stats(way).await.map_err(failed)?;
    let version = stats.version.map_or("not nearside".into(), |version| format!("nearside {version}"));
    Ok(Party { address: name, version, level: way.route.level.map(|level| level.to_string()), hits: stats.hits })
}

/// A proxy's own counters.
struct ProxyCounters {
    version: Option<String>,
    hits: Option<u64>,
}

async fn stats(way: &Way) -> std::io::Result<ProxyCounters> {
    let mut connection = TestConnection::open(&way.target, false).await?;
    let info = text(&connection.call(&["INFO"]).await?).unwrap_or_default();
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Ok(ProxyCounters {
        version: field("nearside_version:").map(Into::into),
        hits: field("nearside_hits:").and_then(|hits| hits.parse().ok()),
    })
}

struct Run<'a> {
    options: &'a Options,
    prefix: &'a str,
    site: Rc<Site>,
    tally: Tally,
    /// The round before this one is being judged.
    judging: Option<JoinHandle<(History, Findings)>>,
    /// Every key there ever was.
    used: Vec<String>,
    events: Weather,
}

impl Run<'_> {
    /// Round after round until the deadline, or a signal.
    async fn rounds(&mut self, seed: u64, deadline: Time) -> Result<(), String> {
        let count = self.options.clients.into();
        let mut clients: Vec<TestClient> = (0..count).map(|i| TestClient::new(&self.site, i, seed)).collect();
        let interrupted = Rc::new(Cell::new(false));
        let (site, flag) = (self.site.clone(), interrupted.clone());
        let listener = tokio::task::spawn_local(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                flag.set(true);
                site.stop();
            }
        });
        let mut left = deadline.since(Time::now());
        while !left.is_zero() && !interrupted.get() {
            let began = Time::now();
            let history = self.site.round(&mut clients, ROUND.min(left)).await;
            self.used.extend(self.site.keys());
            self.hand_over(history, began).await?;
            left = deadline.since(Time::now());
        }
        listener.abort();
        self.finish_judging().await
    }

    /// Judges the round while the next one runs; never more than one.
    async fn hand_over(&mut self, mut history: History, began: Time) -> Result<(), String> {
        self.finish_judging().await?;
        if let Some(path) = &self.options.events {
            self.events = Weather::load(path)?;
            let events = self.events.since(began);
            (history.erased, history.eroded) = (events.erased, events.evicted);
            if !history.eroded.is_empty() {
                history.forget_what_eviction_tears();
            }
        }
        self.tally.count(&history);
        let rules = Rules { max_staleness: self.options.max_staleness, budget: BUDGET };
        self.judging = Some(tokio::task::spawn_blocking(move || {
            let findings = judge::judge(&history, rules);
            (history, findings)
        }));
        Ok(())
    }

    async fn finish_judging(&mut self) -> Result<(), String> {
        let Some(judging) = self.judging.take() else { return Ok(()) };
        let (history, findings) = judging.await.map_err(|e| format!("the judge failed: {e}"))?;
        self.tally.absorb(&history, findings);
        if std::io::stderr().is_terminal() {
            let broken: u64 = self.tally.findings.broken.iter().sum();
            // whether the terminal takes it changes nothing
            let _ = write!(std::io::stderr(), "\r{} operations, {broken} violations ", self.tally.operations());
        }
        Ok(())
    }

    /// Removes every key there was; how many could not be.
    async fn remove(&mut self) -> usize {
        self.used.push(probe_key(self.prefix));
        let target = &self.site.ways[0].target;
        let Ok(mut connection) = TestConnection::open(target, false).await else { return self.used.len() };
        let mut left = 0;
        for keys in self.used.chunks(BATCH) {
            let args: Vec<&str> = std::iter::once("DEL").chain(keys.iter().map(String::as_str)).collect();
            let removed = connection.pipeline(&[resp::encode(&args)]).await;
            left += if matches!(removed.as_deref(), Ok([Value::Int(_)])) { 0 } else { keys.len() };
        }
        left
    }
}
