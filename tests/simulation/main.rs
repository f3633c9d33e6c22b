//! The proxy's own sessions, lanes and link in one thread, against a pretended server, over a network that delays, cuts,
//! holds back and breaks, in a time that is simulated; what every client was told is judged as `nearside verify` judges
//! it. Everything follows from a seed: `cargo test --features simulated,sabotage --test simulation`.
//!
//! `NEARSIDE_SIMULATIONS` says how many seeds are tried; `NEARSIDE_SEED` names one, whose log is then printed
//! (`-- --nocapture no_promise_is_broken`).

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod keyspace;
mod network;
mod server;
mod world;

use std::cell::Cell;
use std::sync::Once;

use nearside::verify::judge::{PROMISES, Violation, name};
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
    (!wrong.is_empty()).then(|| {
        let again = "cargo test --features simulated,sabotage --test simulation no_promise_is_broken -- --nocapture";
        format!("seed {seed}: {}\nAgain: NEARSIDE_SEED={seed} {again}", wrong.join("\n"))
    })
}

fn told(violation: &Violation) -> String {
    let promises: Vec<&str> = violation.promises.iter().map(|promise| name(*promise)).collect();
    let mut text = format!("{} of {}: {}", promises.join(", "), violation.object, violation.what);
    for line in &violation.fragment {
        let (start, end) = (line.span.start.0, line.span.end.0);
        let op = line.op.as_ref().map(|op| format!("session {} {} {:?}", op.session, op.command, op.action));
        text += &format!("\n    {start}..{end} {} [{}]", op.unwrap_or_default(), line.parts.join(", "));
    }
    text
}

#[test]
fn no_promise_is_broken() {
    if let Some(seed) = number("NEARSIDE_SEED") {
        let outcome = run(seed);
        println!("{}", outcome.log);
        assert_eq!(verdict(seed, &outcome), None);
        return;
    }
    let seeds = number("NEARSIDE_SIMULATIONS").unwrap_or(SEEDS);
    let (mut hits, mut audited, mut operations, mut undecided) = (0, 0, 0, 0);
    let (mut checked, mut weather) = ([0; PROMISES.len()], [0; WEATHERS]);
    let mut wrong = Vec::new();
    for seed in 1..=seeds {
        let outcome = run(seed);
        wrong.extend(verdict(seed, &outcome));
        hits += outcome.hits;
        audited += outcome.audited;
        operations += outcome.operations;
        undecided += outcome.findings.undecided;
        checked.iter_mut().zip(outcome.findings.checked).for_each(|(sum, n)| *sum += n);
        weather.iter_mut().zip(outcome.weather).for_each(|(sum, n)| *sum += n);
    }
    println!("{seeds} seeds, {operations} operations, {hits} hits, {audited} audited, {undecided} undecided");
    println!("checked {checked:?}, weather {weather:?}");
    assert!(wrong.is_empty(), "{} of {seeds} seeds:\n{}", wrong.len(), wrong.join("\n"));
    assert!(hits * 10 > operations as u64 && audited > seeds, "the cache was hardly used");
    assert!(seeds < 20 || checked.iter().all(|n| *n > seeds), "a promise was hardly put to the test: {checked:?}");
    assert!(seeds < 20 || weather.iter().all(|n| *n > 0), "some weather never was: {weather:?}");
}

#[test]
fn a_seed_repeats_itself() {
    for seed in [3, 4, 5] {
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
    use nearside::sabotage::{Rule, in_this_thread};

    use super::*;

    /// By this many seeds each rule must have been missed.
    const ENOUGH: u64 = 40;

    fn is_found(rule: Rule) {
        in_this_thread(Some(rule));
        let found = (1..=ENOUGH).find_map(|seed| {
            let outcome = run(seed);
            let broken: u64 = outcome.findings.broken.iter().sum();
            (broken > 0).then(|| verdict(seed, &outcome).expect("a broken promise is a verdict"))
        });
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
}
