//! The coherence protocol as a model, checked exhaustively on small scopes. COHERENCE.md says what it means.
//!
//! `world.rs` is the state, `protocol.rs` what can happen next, `cache.rs` the cache, `rules.rs` what can be taken away.
//! The questions are in `promises.rs` (all rules: nothing breaks) and `rules_needed.rs` (one rule less: something does).

#![allow(clippy::expect_used, reason = "a model that cannot go on fails")]

mod cache;
mod conformance;
mod promises;
mod protocol;
mod rules;
mod rules_needed;
mod world;

use std::time::Instant;

use stateright::{Checker, Model, Property};

use protocol::{Scope, Step};
use world::World;

impl Model for Scope {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![self.start()]
    }

    fn actions(&self, w: &World, out: &mut Vec<Step>) {
        self.steps(w, out);
    }

    fn next_state(&self, w: &World, step: Step) -> Option<World> {
        let mut next = w.clone();
        self.take(&mut next, step);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Scope>> {
        vec![Property::always("kept", |_, w: &World| w.broken.is_none())]
    }
}

/// A scope with more states than this is not for every day.
const LARGEST: std::num::NonZeroUsize = std::num::NonZeroUsize::new(4_000_000).expect("not zero");

/// Checks every schedule of the scope. `Err`: the broken promise, and the steps that lead to it.
fn explore(name: &str, scope: Scope) -> Result<usize, (&'static str, Vec<Step>)> {
    let began = Instant::now();
    let checker = scope.checker().threads(1).target_state_count(LARGEST.get()).spawn_bfs().join();
    let states = checker.unique_state_count();
    println!("{name}: {states} states, depth {}, {:.1?}", checker.max_depth(), began.elapsed());
    assert!(
        checker.discovery("kept").is_some() || checker.state_count() < LARGEST.get(),
        "{name}: not all was looked at"
    );
    match checker.discovery("kept") {
        None => Ok(states),
        Some(path) => {
            let broken = path.last_state().broken.expect("a broken promise");
            Err((broken, path.into_actions()))
        }
    }
}
