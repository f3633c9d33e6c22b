//! The certificate: what was driven, what was checked, what was found, for people and for programs.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde::Serialize;

use super::history::{Action, History, Op};
use super::judge::{Findings, FragmentLine, PROMISES, Promise, Violation, promise_name};
use crate::time::Time;

/// The verdict on the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunVerdict {
    /// Every promise was put to the test, and none was broken.
    Passed,
    /// A promise was broken.
    Failed,
    /// Nothing was broken, and not enough was tried to say more.
    #[default]
    Inconclusive,
}

/// A server or a proxy.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Party {
    /// Where it is.
    pub address: String,
    /// The version that it says it is.
    pub version: String,
    /// Which level its answers were held to; of a proxy.
    pub level: Option<String>,
    /// Reads it answered from its cache meanwhile, if it says.
    pub hits: Option<u64>,
}

/// All of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Version of this program.
    pub version: &'static str,
    /// Seed of the clients' choices.
    pub seed: u64,
    /// How long.
    pub seconds: f64,
    /// How many.
    pub clients: usize,
    /// How many at a time.
    pub keys: usize,
    /// Prefix of every key.
    pub prefix: String,
    /// Keys that could not be removed again.
    pub left_behind: usize,
    /// The server.
    pub upstream: Party,
    /// The proxies.
    pub proxies: Vec<Party>,
    /// The bound of level `bounded`, in seconds.
    pub max_staleness: f64,
    /// By command.
    pub commands: BTreeMap<&'static str, u64>,
    /// All.
    pub reads: u64,
    /// Those through a proxy.
    pub proxied_reads: u64,
    /// All.
    pub writes: u64,
    /// Those without an answer.
    pub unknown_writes: u64,
    /// Connections of proxies that were cut at the upstream.
    pub cut: Option<u64>,
    /// Erasures by others.
    pub erasures: usize,
    /// Evictions by others.
    pub evictions: usize,
    /// Errors that clients were told, and how often.
    pub errors: BTreeMap<String, u64>,
    /// Requests without an answer in time.
    pub unanswered: u64,
    /// By promise.
    pub promises: Vec<PromiseReport>,
    /// Keys whose search outgrew its budget.
    pub undecided: u64,
    /// Reads older than what another session of the same proxy had been told.
    pub back_between_sessions: u64,
    /// Staleness of reads through proxies.
    pub staleness: Staleness,
    /// The first of them, in full.
    pub violations: Vec<ViolationReport>,
    /// The verdict on the run.
    pub verdict: RunVerdict,
    /// Why it is inconclusive.
    pub doubts: Vec<String>,
}

/// One promise.
#[derive(Clone, Debug, Serialize)]
pub struct PromiseReport {
    /// Its name.
    pub name: &'static str,
    /// In words.
    pub what: String,
    /// How often it was put to the test.
    pub checked: u64,
    /// How often it was broken.
    pub broken: u64,
}

/// For how long what reads showed had been known to be overwritten, in milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Staleness {
    /// Half of the reads were not staler.
    pub p50: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1000.
    pub p999: f64,
    /// All.
    pub worst: f64,
}

/// One violation.
#[derive(Clone, Debug, Serialize)]
pub struct ViolationReport {
    /// The promises broken.
    pub promises: Vec<&'static str>,
    /// Name of the object.
    pub object: String,
    /// In words.
    pub what: String,
    /// The operations that show it.
    pub fragment: Vec<LineReport>,
}

/// One operation of a fragment.
#[derive(Clone, Debug, Serialize)]
pub struct LineReport {
    /// Milliseconds since the run began.
    pub start: f64,
    /// The same; absent if there was no answer.
    pub end: Option<f64>,
    /// By which way.
    pub way: String,
    /// On which connection.
    pub session: Option<usize>,
    /// The kind of command.
    pub command: &'static str,
    /// The value written or seen.
    pub value: String,
    /// The part it plays.
    pub part: String,
}

/// Counts and violations, added up round by round.
pub struct Tally {
    began: Time,
    /// Findings of the judge.
    pub findings: Findings,
    violations: Vec<ViolationReport>,
    commands: BTreeMap<&'static str, u64>,
    reads: u64,
    proxied_reads: u64,
    writes: u64,
    unknown_writes: u64,
}

impl Tally {
    /// Nothing yet.
    pub fn new(began: Time) -> Tally {
        let (findings, violations, commands) = Default::default();
        Tally { began, findings, violations, commands, reads: 0, proxied_reads: 0, writes: 0, unknown_writes: 0 }
    }

    /// Counts a round.
    pub fn count(&mut self, history: &History) {
        for op in &history.ops {
            *self.commands.entry(op.command).or_default() += 1;
            match op.action {
                Action::Read(..) => {
                    self.reads += 1;
                    self.proxied_reads += u64::from(history.routes[history.route(op)].level.is_some());
                }
                Action::Write(_) => {
                    self.writes += 1;
                    self.unknown_writes += u64::from(op.end.is_none());
                }
            }
        }
    }

    /// How many operations there were.
    pub fn operations(&self) -> u64 {
        self.reads + self.writes
    }

    /// Adds what was found in a round.
    pub fn absorb(&mut self, history: &History, findings: Findings) {
        let told = self.findings.absorb(findings);
        self.violations.extend(told.iter().map(|v| violation(history, v, self.began)));
    }

    /// Fills in what was counted.
    pub fn fill(self, report: &mut Report) {
        let findings = self.findings;
        let ms = |quantile| findings.staleness.value_at_quantile(quantile) as f64 / 1e3;
        report.staleness =
            Staleness { p50: ms(0.5), p99: ms(0.99), p999: ms(0.999), worst: findings.staleness.max() as f64 / 1e3 };
        report.promises = PROMISES
            .iter()
            .map(|promise| PromiseReport {
                name: promise_name(*promise),
                what: promised(*promise, report.max_staleness),
                checked: findings.checked[*promise as usize],
                broken: findings.broken[*promise as usize],
            })
            .collect();
        report.undecided = findings.undecided;
        report.back_between_sessions = findings.back_between_sessions;
        (report.commands, report.violations) = (self.commands, self.violations);
        (report.reads, report.proxied_reads) = (self.reads, self.proxied_reads);
        (report.writes, report.unknown_writes) = (self.writes, self.unknown_writes);
        report.conclude();
    }
}

fn promised(promise: Promise, max_staleness: f64) -> String {
    match promise {
        Promise::Values => "a read shows what was written, whole, and not before".into(),
        Promise::Age => format!("bounded, causal: not older than {max_staleness} s; linearizable: not old"),
        Promise::OwnWrites => "what was written through a proxy is read through it".into(),
        Promise::NoWayBack => "a session never sees one key go back".into(),
        Promise::Expiry => "nothing is read after its time to live".into(),
        Promise::Causal => "causal: a session never sees anything go back, across keys".into(),
        Promise::Order => "linearizable: what one session has seen, every other sees".into(),
        Promise::Linearizable => "one order of all operations on a key explains every answer".into(),
    }
}

fn violation(history: &History, violation: &Violation, began: Time) -> ViolationReport {
    let fragment = violation.fragment.iter().map(|l| line(history, l, began));
    ViolationReport {
        promises: violation.promises.iter().map(|promise| promise_name(*promise)).collect(),
        object: violation.object.clone(),
        what: violation.what.clone(),
        fragment: fragment.collect(),
    }
}

fn line(history: &History, line: &FragmentLine, began: Time) -> LineReport {
    let ms = |time: Time| (time.0 as f64 - began.0 as f64) / 1e6;
    let (command, value) = match &line.op {
        Some(Op { command, action: Action::Read(_, seen), .. }) => (*command, format!("saw {seen}")),
        Some(Op { command, action: Action::Write(change), .. }) => (*command, change.to_string()),
        None => ("", "erased, evicted or expired".into()),
    };
    LineReport {
        start: ms(line.span.start),
        end: Some(line.span.end).filter(|end| *end != Time::NEVER).map(ms),
        way: line.op.as_ref().map_or("the server".into(), |op| history.routes[history.route(op)].name.clone()),
        session: line.op.as_ref().map(|op| op.session),
        command,
        value,
        part: line.parts.join(", "),
    }
}

impl Report {
    fn conclude(&mut self) {
        let mut doubts = Vec::new();
        if self.proxied_reads == 0 {
            doubts.push("nothing was read through a proxy".into());
        }
        for proxy in self.proxies.iter().filter(|proxy| proxy.hits == Some(0)) {
            doubts
                .push(format!("{} answered nothing from its cache: that proves nothing about a cache", proxy.address));
        }
        if self.undecided > 0 {
            doubts.push(format!("{} keys were too much for the search", self.undecided));
        }
        let broken = self.promises.iter().any(|promise| promise.broken > 0);
        self.verdict = match (broken, doubts.is_empty()) {
            (true, _) => RunVerdict::Failed,
            (false, true) => RunVerdict::Passed,
            (false, false) => RunVerdict::Inconclusive,
        };
        self.doubts = doubts;
    }

    /// The verdict as an exit code.
    pub fn exit_code(&self) -> u8 {
        match self.verdict {
            RunVerdict::Passed => 0,
            RunVerdict::Failed => 1,
            RunVerdict::Inconclusive => 2,
        }
    }
}

/// With commas between thousands.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "nearside verify {}, seed {}\n", self.version, self.seed)?;
        self.parties(f)?;
        self.driven(f)?;
        self.kept(f)?;
        for (i, violation) in self.violations.iter().enumerate() {
            write!(f, "\n{}. {violation}", i + 1)?;
        }
        self.conclusion(f)
    }
}

impl Report {
    fn parties(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  upstream    {:<24} {}", self.upstream.address, self.upstream.version)?;
        for proxy in &self.proxies {
            let level = proxy.level.as_deref().unwrap_or_default();
            let hits = proxy.hits.map_or("hits unknown".into(), |hits| format!("{} hits", grouped(hits)));
            writeln!(f, "  proxy       {:<24} {:<20} {level:<13} {hits}", proxy.address, proxy.version)?;
        }
        Ok(())
    }

    fn driven(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let removed =
            if self.left_behind == 0 { "removed".into() } else { format!("{} NOT removed", self.left_behind) };
        writeln!(
            f,
            "\n  driven      {:.1} s, {} clients, {} objects at a time",
            self.seconds, self.clients, self.keys
        )?;
        writeln!(f, "  keys        {}:* ({removed})", self.prefix)?;
        writeln!(
            f,
            "  operations  {}: {} reads ({} through proxies), {} writes ({} of unknown outcome)",
            grouped(self.reads + self.writes),
            grouped(self.reads),
            grouped(self.proxied_reads),
            grouped(self.writes),
            grouped(self.unknown_writes)
        )?;
        let commands: Vec<String> = self.commands.iter().map(|(name, n)| format!("{name} {}", grouped(*n))).collect();
        for line in wrapped(&commands, 100) {
            writeln!(f, "              {line}")?;
        }
        if let Some(cut) = self.cut {
            writeln!(f, "  cut         {} links, lanes and dedicated connections of proxies", grouped(cut))?;
        }
        if self.erasures + self.evictions > 0 {
            writeln!(f, "  by others   {} erasures, {} times of eviction", self.erasures, self.evictions)?;
        }
        if !self.errors.is_empty() {
            let all: u64 = self.errors.values().sum();
            writeln!(f, "  errors      {} in all, {} requests unanswered", grouped(all), self.unanswered)?;
            let mut errors: Vec<_> = self.errors.iter().collect();
            errors.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
            for (error, n) in errors.into_iter().take(6) {
                writeln!(f, "              {:>7}  {error}", grouped(*n))?;
            }
        }
        Ok(())
    }

    fn kept(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n  {:<13} {:<64} {:>9} {:>7}", "promise", "", "checked", "broken")?;
        for promise in &self.promises {
            let (checked, broken) = (grouped(promise.checked), grouped(promise.broken));
            // a promise of a level that nobody was held to
            let checked = if promise.checked == 0 { "-" } else { &checked };
            writeln!(f, "  {:<13} {:<64} {checked:>9} {broken:>7}", promise.name, promise.what)?;
        }
        let s = &self.staleness;
        writeln!(
            f,
            "\n  staleness     of reads through proxies: p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, worst {:.1} ms",
            s.p50, s.p99, s.p999, s.worst
        )?;
        writeln!(
            f,
            "                {} of them older than another session of the proxy had seen (linearizable alone forbids it)",
            grouped(self.back_between_sessions)
        )
    }

    fn conclusion(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broken: u64 = self.promises.iter().map(|promise| promise.broken).sum();
        match self.verdict {
            RunVerdict::Passed => writeln!(f, "\nPASSED: no promise was broken."),
            RunVerdict::Failed => writeln!(f, "\nFAILED: promises were broken {} times.", grouped(broken)),
            RunVerdict::Inconclusive => {
                writeln!(f, "\nINCONCLUSIVE: no promise was broken, but {}.", self.doubts.join("; "))
            }
        }
    }
}

/// Words in lines of at most `width`.
#[expect(clippy::expect_used, reason = "the first line is there from the beginning")]
fn wrapped(words: &[String], width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in words {
        let line = lines.last_mut().expect("there is always one");
        if !line.is_empty() && line.len() + word.len() + 2 > width {
            lines.push(word.clone());
        } else {
            let _ = write!(line, "{}{word}", if line.is_empty() { "" } else { ", " });
        }
    }
    lines
}

impl fmt::Display for ViolationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.promises.join(", "), self.what)?;
        writeln!(f, "   {}", self.object)?;
        writeln!(f, "   {:>12} {:>12}  {:<22} session", "from (ms)", "to (ms)", "by")?;
        for line in &self.fragment {
            let end = line.end.map_or("no answer".into(), |end| format!("{end:.3}"));
            let session = line.session.map_or(String::new(), |session| session.to_string());
            let what = format!("{} {}", line.command, line.value);
            let line =
                format!("   {:>12.3} {end:>12}  {:<22} {session:>7}  {what:<30} {}", line.start, line.way, line.part);
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
