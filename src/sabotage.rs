//! Breaks one rule of the protocol on purpose, so that the tests can show that they would notice. Only in builds with
//! the feature `sabotage`; such a build says so at start and must serve nobody.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::LazyLock;

/// The rules of COHERENCE.md, and parts of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A fill is stored only by a valid token.
    Tokens,
    /// A write's keys are dropped before its ack.
    Drop,
    /// A hit waits for the freshness clock.
    Barrier,
    /// Other replies of a key are proven past the telling of the latest.
    Floors,
    /// MGET is served only if all of its keys held at one moment.
    Snapshot,
    /// In mode `broadcast`, only the second of two PONGs proves something.
    SecondPing,
    /// A reply read without CLIENT CACHING is not kept.
    Caching,
    /// Entries that a lane filled are void when its connection ends.
    Lanes,
}

thread_local! {
    static BROKEN: Cell<Option<Rule>> = Cell::new(named());
}

/// The rule that `NEARSIDE_BREAK` names.
fn named() -> Option<Rule> {
    match std::env::var("NEARSIDE_BREAK").as_deref() {
        Ok("tokens") => Some(Rule::Tokens),
        Ok("drop") => Some(Rule::Drop),
        Ok("barrier") => Some(Rule::Barrier),
        _ => None,
    }
}

/// Whether this rule is broken: by the environment, or by [`in_this_thread`]. Without the feature: never.
pub fn on(rule: Rule) -> bool {
    cfg!(feature = "sabotage") && BROKEN.get() == Some(rule)
}

/// Breaks this rule, or none, in this thread, whatever the environment says.
#[cfg_attr(feature = "program", expect(dead_code, reason = "the simulation breaks rules"))]
pub fn in_this_thread(rule: Option<Rule>) {
    BROKEN.set(rule);
}

/// The file that NEARSIDE_PANIC names.
static PANIC: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os("NEARSIDE_PANIC").map(PathBuf::from));

/// Panics here, once, when the file that NEARSIDE_PANIC names holds the name of this spot; the file is removed first.
/// Without the feature: never.
#[inline(always)]
#[expect(clippy::panic, reason = "the tests of what follows a panic ask for one")]
pub fn panic_at(spot: &str) {
    if cfg!(feature = "sabotage")
        && let Some(file) = &*PANIC
        && std::fs::read_to_string(file).is_ok_and(|wanted| wanted == spot)
        && std::fs::remove_file(file).is_ok()
    {
        panic!("on purpose: {spot}");
    }
}
