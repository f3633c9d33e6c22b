//! Holds a history against the promises of COHERENCE.md.
//!
//! A session that has evidence of a write knows that it was executed after its start: a **floor**. A read is too old for a floor if
//! the write of the value it saw had been acknowledged before: then an evidently newer write stood in between. A read
//! may fit several writes (many delete a key); it is wrong only if each of them is too old, or its time to live was over.
//! Nothing else is inferred, so no order of operations that could have happened is called wrong.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use ahash::AHashMap;
use hdrhistogram::Histogram;

use super::facts::{Candidate, Cause, Facts, Floor, is_certain};
use super::history::{Action, History, Op, Seen, Span};
use super::linearizable::{self, SearchVerdict};
use super::moments;
use super::register::RegisterStep;
use crate::config::Level;
use crate::time::Time;

/// Allowed on every bound that is counted in time: clocks tick in milliseconds on both ends of the comparison.
pub const SLACK: Duration = Duration::from_millis(5);
/// Violations told in full; the others are counted.
const TOLD: usize = 20;
/// Violations of the very same promises among those that are told in full.
const TOLD_ALIKE: usize = 2;
/// Operations told of what came before no order was left, and of what came after.
const TOLD_BEFORE: usize = 12;
/// Operations told that came after no order was left.
const TOLD_AFTER: usize = 4;

/// An hour: a longer staleness counts as this.
const LONGEST_MICROS: u64 = 3_600_000_000;

/// A promise that can be broken. The order is that of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// A read shows what somebody wrote, whole, and not before it was written.
    Values,
    /// A read is not older than the level allows.
    Age,
    /// A value written through a proxy is read through it.
    OwnWrites,
    /// A session never sees one key go back.
    NoWayBack,
    /// Nothing is read after its time to live.
    Expiry,
    /// A session never sees anything go back, across keys.
    Causal,
    /// A state that one session has seen, every other sees.
    Order,
    /// One order of all operations on a key explains every answer.
    Linearizable,
}

/// All of them.
pub const PROMISES: [Promise; 8] = [
    Promise::Values,
    Promise::Age,
    Promise::OwnWrites,
    Promise::NoWayBack,
    Promise::Expiry,
    Promise::Causal,
    Promise::Order,
    Promise::Linearizable,
];

/// The terms by which the judge decides.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The bound of level `bounded`.
    pub max_staleness: Duration,
    /// Configurations that the search may look at, for one key.
    pub budget: usize,
}

/// A promise was broken, and the operations that show it.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which promises; never empty.
    pub promises: Vec<Promise>,
    /// Name of the object.
    pub object: String,
    /// In words.
    pub what: String,
    /// The operations that show it, in order.
    pub fragment: Vec<FragmentLine>,
}

/// An operation, or something that happened to the key by itself, and the parts it plays.
#[derive(Clone, Debug)]
pub struct FragmentLine {
    /// In words.
    pub parts: Vec<String>,
    /// Which; `None`: an erasure, an eviction, the end of a time to live.
    pub op: Option<Op>,
    /// When.
    pub span: Span,
}

/// The outcome of the judgement.
#[derive(Clone, Debug)]
pub struct Findings {
    /// How often each promise was put to the test, by reads through proxies; the last by keys.
    pub checked: [u64; PROMISES.len()],
    /// How often it was broken.
    pub broken: [u64; PROMISES.len()],
    /// The first of the violations, in full.
    pub violations: Vec<Violation>,
    /// For how long what a proxied read showed had been known to be overwritten when it began, in microseconds.
    pub staleness: Histogram<u64>,
    /// Reads through one proxy older than what another session had been told there. Promised by `linearizable` only.
    pub back_between_sessions: u64,
    /// Objects whose search outgrew its budget.
    pub undecided: u64,
}

impl Default for Findings {
    #[expect(clippy::expect_used, reason = "of constants")]
    fn default() -> Self {
        let staleness = Histogram::new_with_bounds(1, LONGEST_MICROS, 3).expect("bounds and digits are allowed ones");
        let (checked, broken) = ([0; PROMISES.len()], [0; PROMISES.len()]);
        Findings { checked, broken, violations: Vec::new(), staleness, back_between_sessions: 0, undecided: 0 }
    }
}

impl Findings {
    /// Adds those of another part of the run; which violations are new, and told.
    pub fn absorb(&mut self, other: Findings) -> Vec<Violation> {
        for i in 0..PROMISES.len() {
            self.checked[i] += other.checked[i];
            self.broken[i] += other.broken[i];
        }
        let known = self.violations.len();
        for violation in other.violations {
            if self.is_worth_telling(&violation.promises) {
                self.violations.push(violation);
            }
        }
        self.staleness += other.staleness;
        self.back_between_sessions += other.back_between_sessions;
        self.undecided += other.undecided;
        self.violations[known..].to_vec()
    }

    fn is_worth_telling(&self, promises: &[Promise]) -> bool {
        let alike = self.violations.iter().filter(|violation| violation.promises == promises).count();
        self.violations.len() < TOLD && alike < TOLD_ALIKE
    }

    fn check(&mut self, promise: Promise) {
        self.checked[promise as usize] += 1;
    }

    fn convict(&mut self, violation: Violation) {
        violation.promises.iter().for_each(|promise| self.broken[*promise as usize] += 1);
        if self.is_worth_telling(&violation.promises) {
            self.violations.push(violation);
        }
    }
}

/// Judges all of it.
pub fn judge(history: &History, rules: Rules) -> Findings {
    let mut judge = Judge::new(history, rules);
    for (i, op) in history.ops.iter().enumerate() {
        match &op.action {
            Action::Read(parts, seen) => judge.read(i, op, *parts, seen),
            Action::Write(_) if op.end.is_some() => judge.acked(i, op),
            Action::Write(_) => {}
        }
    }
    judge.search_all();
    judge.findings
}

/// The evidence that one session has.
#[derive(Clone, Copy, Default)]
struct Evidence {
    /// About one key.
    key: Floor,
    /// The operation that gave the evidence.
    by: Option<usize>,
}

/// The newest floor that reads which had ended before a time have set; asked with rising times.
#[derive(Default)]
struct Finished {
    open: BinaryHeap<Reverse<(Time, Floor, usize)>>,
    best: Evidence,
}

impl Finished {
    fn before(&mut self, time: Time) -> Evidence {
        while self.open.peek().is_some_and(|Reverse((end, _, _))| *end < time) {
            let Some(Reverse((_, floor, by))) = self.open.pop() else { break };
            if floor.at > self.best.key.at {
                self.best = Evidence { key: floor, by: Some(by) };
            }
        }
        self.best
    }
}

struct Judge<'a> {
    history: &'a History,
    rules: Rules,
    facts: Facts<'a>,
    /// By session, object and key of the object.
    told: AHashMap<(usize, usize, u32), Evidence>,
    /// By session: the latest start of anything it has evidence of, and what told.
    seen: Vec<(Time, Option<usize>)>,
    /// By object.
    finished: Vec<Finished>,
    /// The same, of reads past the proxies.
    finished_past: Vec<Finished>,
    /// By proxy, object and key of the object.
    finished_there: AHashMap<(usize, usize, u32), Finished>,
    findings: Findings,
}

/// One reason why a read may not show what it shows.
struct Bound {
    promise: Promise,
    floor: Floor,
    evidence: Option<usize>,
}

impl<'a> Judge<'a> {
    fn new(history: &'a History, rules: Rules) -> Self {
        let none_finished = || (0..history.objects.len()).map(|_| Finished::default()).collect();
        let seen = vec![(Time::ZERO, None); history.sessions.len()];
        let facts = Facts::of(history);
        let (told, finished_there, findings) = Default::default();
        let (finished, finished_past) = (none_finished(), none_finished());
        Judge { history, rules, facts, told, seen, finished, finished_past, finished_there, findings }
    }

    /// The server itself is held to the strictest level.
    fn level(&self, op: &Op) -> Level {
        self.history.routes[self.history.route(op)].level.unwrap_or(Level::Linearizable)
    }

    /// The session that made a write has evidence of it.
    fn acked(&mut self, i: usize, op: &Op) {
        if is_certain(op) {
            let floor = Floor { at: op.start, cause: Cause::Op(i) };
            self.note(i, op, u8::MAX, floor);
        }
    }

    fn note(&mut self, i: usize, op: &Op, parts: u8, floor: Floor) {
        for part in bits(parts) {
            let evidence = self.told.entry((op.session, op.object, part)).or_default();
            if floor.at > evidence.key.at {
                *evidence = Evidence { key: floor, by: Some(i) };
            }
        }
        let seen = &mut self.seen[op.session];
        if floor.at > seen.0 {
            *seen = (floor.at, Some(i));
        }
    }

    /// The server itself is judged, too, but only what proxies keep is counted as kept.
    fn check(&mut self, op: &Op, promise: Promise) {
        if self.is_proxied(op) {
            self.findings.check(promise);
        }
    }

    fn is_proxied(&self, op: &Op) -> bool {
        self.history.routes[self.history.route(op)].level.is_some()
    }

    fn read(&mut self, i: usize, op: &Op, parts: u8, seen: &Seen) {
        self.check(op, Promise::Values);
        let span = op.span();
        let candidates = self.facts.candidates(op.object, seen, span.end);
        if candidates.is_empty() {
            return self.unexplained(i, op, seen);
        }
        let bounds = self.bounds(op, parts);
        for bound in bounds.iter().filter(|bound| bound.floor.at > Time::ZERO) {
            self.check(op, bound.promise);
        }
        let staleness = self.staleness(op);
        let deadlines: Vec<_> = candidates.iter().map(|c| self.facts.deadline(op.object, c, op, staleness)).collect();
        if deadlines.iter().any(Option::is_some) {
            self.check(op, Promise::Expiry);
        }
        let expired = |at: usize| deadlines[at].is_some_and(|deadline| deadline + SLACK < span.start);
        let allowed = |(at, c): &(usize, &Candidate)| !expired(*at) && bounds.iter().all(|b| c.span.end >= b.floor.at);
        let oldest = candidates.iter().enumerate().filter(allowed).map(|(_, c)| c).min_by_key(|c| c.span.start);
        self.measure(op, &candidates);
        let Some(oldest) = oldest.copied() else {
            let newest = candidates.len() - 1;
            return self.too_old(i, op, &candidates[newest], &bounds, expired(newest));
        };
        self.between_sessions(op, parts, &candidates);
        self.believe(i, op, parts, Floor { at: oldest.span.start, cause: oldest.cause });
    }

    /// The state that the read shows is evidence from now on.
    fn believe(&mut self, i: usize, op: &Op, parts: u8, floor: Floor) {
        let Some(end) = op.end.filter(|_| floor.at > Time::ZERO) else { return };
        self.note(i, op, parts, floor);
        self.finished[op.object].open.push(Reverse((end, floor, i)));
        if !self.is_proxied(op) {
            self.finished_past[op.object].open.push(Reverse((end, floor, i)));
        }
        let route = self.history.route(op);
        for part in bits(parts) {
            self.finished_there.entry((route, op.object, part)).or_default().open.push(Reverse((end, floor, i)));
        }
    }

    /// How old a read may be at its level.
    fn staleness(&self, op: &Op) -> Duration {
        match self.level(op) {
            Level::Linearizable => Duration::ZERO,
            Level::Bounded | Level::Causal => self.rules.max_staleness + SLACK,
        }
    }

    fn bounds(&mut self, op: &Op, parts: u8) -> Vec<Bound> {
        let level = self.level(op);
        let route = self.history.route(op);
        let allowed = self.staleness(op);
        let object = op.object;
        let bound = |promise, floor, evidence| Bound { promise, floor, evidence };
        let mut bounds = vec![bound(Promise::Age, self.facts.acked_before(object, op.start - allowed), None)];
        if self.is_proxied(op) {
            bounds.push(bound(Promise::OwnWrites, self.facts.acked_there_before(object, route, op.start), None));
        }
        let told = bits(parts).filter_map(|part| self.told.get(&(op.session, object, part)));
        let told = told.copied().max_by_key(|evidence| evidence.key.at).unwrap_or_default();
        bounds.push(bound(Promise::NoWayBack, told.key, told.by));
        if level != Level::Bounded {
            let (seen, by) = self.seen[op.session];
            bounds.push(bound(Promise::Causal, self.facts.acked_before(object, seen), by));
        }
        if level == Level::Linearizable {
            // A state that a proxy has shown is no evidence against the server.
            let finished = if self.is_proxied(op) { &mut self.finished } else { &mut self.finished_past };
            let finished = finished[object].before(op.start);
            bounds.push(bound(Promise::Order, finished.key, finished.by));
        }
        bounds
    }

    /// How stale it was, at the least.
    fn measure(&mut self, op: &Op, candidates: &[Candidate]) {
        if !self.is_proxied(op) {
            return;
        }
        let stale = candidates.iter().map(|c| op.start.since(self.facts.superseded(op.object, c))).min();
        let micros = stale.unwrap_or_default().as_micros().try_into().unwrap_or(u64::MAX);
        self.findings.staleness.saturating_record(micros);
    }

    fn between_sessions(&mut self, op: &Op, parts: u8, candidates: &[Candidate]) {
        let route = self.history.route(op);
        let finished = &mut self.finished_there;
        let floors =
            bits(parts).filter_map(|part| Some(finished.get_mut(&(route, op.object, part))?.before(op.start).key.at));
        let floor = floors.max().unwrap_or_default();
        self.findings.back_between_sessions += u64::from(candidates.iter().all(|c| c.span.end < floor));
    }

    // --- what is told of a violation ---

    fn line(&self, part: &str, i: usize) -> FragmentLine {
        let op = &self.history.ops[i];
        FragmentLine { parts: vec![part.into()], op: Some(op.clone()), span: op.span() }
    }

    fn caused(&self, part: &str, cause: Cause) -> Option<FragmentLine> {
        match cause {
            Cause::Start => None,
            Cause::Op(i) => Some(self.line(part, i)),
            Cause::World(span) => Some(FragmentLine { parts: vec![part.into()], op: None, span }),
        }
    }

    /// An operation that plays several parts is one line.
    fn violation(&self, i: usize, promises: Vec<Promise>, what: String, lines: Vec<FragmentLine>) -> Violation {
        let mut fragment: Vec<FragmentLine> = Vec::new();
        for line in lines.into_iter().chain([self.line("the read", i)]) {
            match fragment.iter_mut().find(|other| other.op == line.op && other.span == line.span) {
                Some(other) => other.parts.extend(line.parts),
                None => fragment.push(line),
            }
        }
        fragment.sort_by_key(|line| line.span.start);
        Violation { promises, object: self.history.objects[self.history.ops[i].object].name.clone(), what, fragment }
    }

    fn unexplained(&mut self, i: usize, op: &Op, seen: &Seen) {
        let later = self.facts.candidates(op.object, seen, Time::NEVER);
        let what = match (seen, later.is_empty()) {
            (Seen::Torn(_), _) => "parts that are always written together were different",
            (Seen::Absent, _) => "the key was absent, though nobody had deleted it and its time was not over",
            (_, true) => "nobody has ever written this value",
            (_, false) => "the value was read before it was written",
        };
        let acked = self.facts.acked_before(op.object, op.start).cause;
        let mut lines: Vec<FragmentLine> =
            later.first().and_then(|c| self.caused("the write", c.cause)).into_iter().collect();
        lines.extend(self.caused("the newest acknowledged write", acked));
        let violation = self.violation(i, vec![Promise::Values], what.into(), lines);
        self.findings.convict(violation);
    }

    fn too_old(&mut self, i: usize, op: &Op, newest: &Candidate, bounds: &[Bound], expired: bool) {
        let broken: Vec<&Bound> = bounds.iter().filter(|bound| newest.span.end < bound.floor.at).collect();
        let mut promises: Vec<Promise> = broken.iter().map(|bound| bound.promise).collect();
        promises.extend(expired.then_some(Promise::Expiry));
        promises.sort();
        let late = op.start.since(self.facts.superseded(op.object, newest)).as_secs_f64() * 1e3;
        let what = match (broken.is_empty(), late > 0.0) {
            (true, _) => "the value was read after its time to live".into(),
            (_, true) => format!("a newer write had been acknowledged {late:.1} ms before the read began"),
            (_, false) => "a newer write was known of before the read began".into(),
        };
        let mut lines: Vec<FragmentLine> = self.caused("wrote what was read", newest.cause).into_iter().collect();
        for bound in &broken {
            lines.extend(self.caused(&format!("newer ({})", promise_name(bound.promise)), bound.floor.cause));
            lines
                .extend(bound.evidence.map(|by| self.line(&format!("evidence ({})", promise_name(bound.promise)), by)));
        }
        if expired {
            let limits = self.facts.limits(op.object, newest, op.span());
            lines.extend(limits.into_iter().take(3).map(|by| self.line("time to live", by)));
        }
        let violation = self.violation(i, promises, what, lines);
        self.findings.convict(violation);
    }

    // --- linearizability ---

    fn search_all(&mut self) {
        for (object, ops) in self.history.by_object().into_iter().enumerate() {
            let (moments, mut values) = moments::of(self.history, &ops);
            if moments.iter().any(|moment| moment.op.is_some()) {
                self.findings.check(Promise::Linearizable);
            }
            match linearizable::search(&moments, &mut values, &self.history.eroded, self.rules.budget) {
                SearchVerdict::Linearizable => {}
                SearchVerdict::Undecided => self.findings.undecided += 1,
                SearchVerdict::Violated(at, possible) => {
                    let violation = self.no_order(object, &moments, at, &possible);
                    self.findings.convict(violation);
                }
            }
        }
    }

    /// Everything that was under way with the operation where it shows, the last that ended before, the first that came
    /// after.
    fn no_order(&self, object: usize, moments: &[linearizable::Moment], at: usize, possible: &[String]) -> Violation {
        let shows = moments[at];
        let mut around: Vec<_> =
            moments.iter().filter(|m| m.span.meets(shows.span) && m.span.start <= shows.span.end).collect();
        let mut before: Vec<_> = moments.iter().filter(|m| m.span.end < shows.span.start).collect();
        before.sort_by_key(|m| Reverse(m.span.end));
        let mut after: Vec<_> = moments.iter().filter(|m| m.span.start > shows.span.end).collect();
        after.sort_by_key(|m| m.span.start);
        around.extend(before.into_iter().take(TOLD_BEFORE));
        around.extend(after.into_iter().take(TOLD_AFTER));
        around.sort_by_key(|m| m.span.start);
        let fragment = around.into_iter().map(|m| {
            let ends = matches!(m.step, RegisterStep::End(_)).then(|| "its time to live ends".to_owned());
            let it = (m.span == shows.span && m.op == shows.op).then(|| "no order explains this".to_owned());
            let parts = ends.into_iter().chain(it).collect();
            FragmentLine { parts, op: m.op.map(|i| self.history.ops[i].clone()), span: m.span }
        });
        let what = format!("no order of the operations explains the answer; the key could be: {}", possible.join(", "));
        let promises = vec![Promise::Linearizable];
        Violation { promises, object: self.history.objects[object].name.clone(), what, fragment: fragment.collect() }
    }
}

/// The word for a promise.
pub fn promise_name(promise: Promise) -> &'static str {
    match promise {
        Promise::Values => "values",
        Promise::Age => "age",
        Promise::OwnWrites => "own writes",
        Promise::NoWayBack => "no way back",
        Promise::Expiry => "expiry",
        Promise::Causal => "causal",
        Promise::Order => "order",
        Promise::Linearizable => "linearizable",
    }
}

/// The numbers of the bits.
fn bits(parts: u8) -> impl Iterator<Item = u32> {
    (0..PARTS).filter(move |part| parts & (1 << part) != 0)
}

/// Keys an object may have.
const PARTS: u32 = 2;

#[cfg(test)]
mod tests;
