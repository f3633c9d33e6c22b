//! Breaks one rule of the protocol on purpose, so that the tests can show that they would notice. Only in builds with
//! the feature `sabotage`; such a build says so at start and must serve nobody.

use std::sync::OnceLock;

/// The three rules (see the crate's documentation).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A fill is stored only by a valid token.
    Tokens,
    /// A write's keys are dropped before its ack.
    Drop,
    /// A hit waits for the freshness clock.
    Barrier,
}

/// The rule named by `NEARSIDE_BREAK` is broken in this process. Without the feature: never, whatever the environment says.
pub fn on(rule: Rule) -> bool {
    if !cfg!(feature = "sabotage") {
        return false;
    }
    static BROKEN: OnceLock<Option<Rule>> = OnceLock::new();
    let broken = BROKEN.get_or_init(|| match std::env::var("NEARSIDE_BREAK").as_deref() {
        Ok("tokens") => Some(Rule::Tokens),
        Ok("drop") => Some(Rule::Drop),
        Ok("barrier") => Some(Rule::Barrier),
        _ => None,
    });
    *broken == Some(rule)
}
