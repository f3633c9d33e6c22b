//! The proxy's own sessions, lanes and link in one thread, against a pretended server, over a network that delays, cuts,
//! holds back and breaks, in a time that is simulated; what every client was told is judged as `nearside verify` judges
//! it. Everything follows from a seed: `cargo test --features simulated,sabotage --test simulation`.
//!
//! `NEARSIDE_SIMULATIONS` says how many seeds are tried, `NEARSIDE_SEED` which is the first; if it is the only one its log is
//! printed (`-- --nocapture no_promise_is_broken`).

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod keyspace;
mod network;
mod server;
mod world;

use std::cell::Cell;
use std::sync::Once;

use nearside::test_support::verify::judge::{PROMISES, Violation, promise_name};
use world::{Outcome, WEATHERS};

/// Seeds tried unless somebody says how many.
const SEEDS: u64 = 300;

thread_local! {
    static PANICKED: Cell<bool> = const { Cell::new(false) };
}

/// Runs one, and notices a panic in any of its tasks.
fn run(seed: u64) -> Outcome {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICKED.set(true);
            before(info);
        }));
    });
    PANICKED.set(false);
    let outcome = world::run(seed);
    assert!(!PANICKED.get(), "seed {seed}: a task has panicked");
    outcome
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// What is wrong with it, in words.
fn verdict(seed: u64, outcome: &Outcome) -> Option<String> {
    let findings = &outcome.findings;
    let mut wrong: Vec<String> = findings.violations.iter().map(told).collect();
    if outcome.audited_stale > 0 {
        wrong.push(format!("the auditor found {} stale", outcome.audited_stale));
    }
    if outcome.unanswered > 0 {
        wrong.push(format!("{} requests were never answered", outcome.unanswered));
    }
    if outcome.astray > 0 {
        wrong.push(format!("{} proxies learn of changes in another way than they should", outcome.astray));
    }
    if outcome.clocks_set > 0 {
        wrong.push(format!("the server's clock was taken for set forward {} times", outcome.clocks_set));
    }
    (!wrong.is_empty()).then(|| {
        let again = "cargo test --features simulated,sabotage --test simulation no_promise_is_broken -- --nocapture";
        format!("seed {seed}: {}\nAgain: NEARSIDE_SEED={seed} {again}", wrong.join("\n"))
    })
}

fn told(violation: &Violation) -> String {
    let promises: Vec<&str> = violation.promises.iter().map(|promise| promise_name(*promise)).collect();
    let mut text = format!("{} of {}: {}", promises.join(", "), violation.object, violation.what);
    for line in &violation.fragment {
        let (start, end) = (line.span.start.0, line.span.end.0);
        let op = line.op.as_ref().map(|op| format!("session {} {} {:?}", op.session, op.command, op.action));
        text += &format!("\n    {start}..{end} {} [{}]", op.unwrap_or_default(), line.parts.join(", "));
    }
    text
}

/// What many came to.
#[derive(Default)]
struct Sum {
    seeds: u64,
    operations: usize,
    hits: u64,
    audited: u64,
    undecided: u64,
    checked: [u64; PROMISES.len()],
    weather: [usize; WEATHERS],
}

impl Sum {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.operations += outcome.operations;
        self.hits += outcome.hits;
        self.audited += outcome.audited;
        self.undecided += outcome.findings.undecided;
        self.checked.iter_mut().zip(outcome.findings.checked).for_each(|(sum, n)| *sum += n);
        self.weather.iter_mut().zip(outcome.weather).for_each(|(sum, n)| *sum += n);
    }

    /// Many that nothing happened in would prove nothing.
    fn assert_enough_happened(&self) {
        let Sum { seeds, operations, hits, audited, undecided, checked, weather } = self;
        println!("{seeds} seeds, {operations} operations, {hits} hits, {audited} audited, {undecided} undecided");
        println!("checked {checked:?}, weather {weather:?}");
        assert_eq!(*undecided, 0, "the search for an order was given up");
        assert!(hits * 4 > *operations as u64 && audited > seeds, "the cache was hardly used");
        assert!(checked.iter().all(|n| n > seeds), "a promise was hardly put to the test");
        assert!(weather.iter().all(|n| *n > 0), "some weather never was");
    }
}

#[test]
fn no_promise_is_broken() {
    let first = number("NEARSIDE_SEED");
    let count = number("NEARSIDE_SIMULATIONS").unwrap_or(if first.is_some() { 1 } else { SEEDS });
    let mut sum = Sum::default();
    let mut wrong = 0;
    for seed in (first.unwrap_or(1)..).take(count as usize) {
        let outcome = run(seed);
        if count == 1 {
            println!("{}", outcome.log);
        }
        if let Some(verdict) = verdict(seed, &outcome) {
            eprintln!("{verdict}");
            wrong += 1;
        }
        sum.add(&outcome);
    }
    assert_eq!(wrong, 0, "of {count} seeds");
    if count >= 100 {
        sum.assert_enough_happened();
    }
}

#[test]
fn a_seed_repeats_itself() {
    for seed in [3, 5, 6] {
        let first = run(seed).log;
        // In another thread, so that nothing a thread keeps plays a part.
        let second = std::thread::spawn(move || run(seed).log).join().expect("no panic");
        let differ = first.lines().zip(second.lines()).find(|(a, b)| a != b);
        assert!(first == second, "seed {seed}: {differ:?}");
        assert!(first.lines().count() > 1000, "hardly anything happened");
    }
    assert!(run(3).log != run(4).log, "the seed makes no difference");
}

/// A test that finds nothing in a proxy that breaks its rules would prove nothing.
#[cfg(feature = "sabotage")]
mod broken {
    use nearside::test_support::sabotage::{Rule, in_this_thread};

    use super::*;

    /// By this many seeds each rule must have been missed.
    const ENOUGH: u64 = 150;

    /// Whether a promise was broken, and how.
    fn broken(seed: u64) -> Option<String> {
        let outcome = run(seed);
        let broken: u64 = outcome.findings.broken.iter().sum();
        (broken > 0).then(|| verdict(seed, &outcome).expect("a broken promise is a verdict"))
    }

    fn is_found(rule: Rule) {
        in_this_thread(Some(rule));
        if let Some(count) = number("NEARSIDE_SIMULATIONS") {
            let found: Vec<u64> = (1..=count).filter(|seed| broken(*seed).is_some()).collect();
            println!("without {rule:?}: found in {} of {count} seeds, first in {:?}", found.len(), found.first());
        }
        let found = (1..=ENOUGH).find_map(broken);
        println!("{}", found.unwrap_or_else(|| panic!("without {rule:?}, {ENOUGH} seeds went by")));
    }

    #[test]
    fn tokens() {
        is_found(Rule::Tokens);
    }

    #[test]
    fn the_drop_before_the_ack() {
        is_found(Rule::Drop);
    }

    #[test]
    fn the_barrier() {
        is_found(Rule::Barrier);
    }

    #[test]
    fn floors() {
        is_found(Rule::Floors);
    }

    #[test]
    fn the_snapshot() {
        is_found(Rule::Snapshot);
    }

    #[test]
    fn the_second_ping() {
        is_found(Rule::SecondPing);
    }

    #[test]
    fn refused_caching() {
        is_found(Rule::Caching);
    }

    #[test]
    fn lanes() {
        is_found(Rule::Lanes);
    }
}
