//! With all rules on, no schedule breaks a promise.

use crate::explore;
use crate::protocol::Scope;
use crate::rules::Rules;
use crate::world::Op::{FlushAll, Past, Read, Script, Write};
use crate::world::{Faults, Level, Op, Program};

pub fn client(proxy: usize, lane: usize, ops: &[Op]) -> Program {
    Program { proxy, lane, window: 1, ops: ops.to_vec() }
}

pub fn pipelining(proxy: usize, lane: usize, ops: &[Op]) -> Program {
    Program { window: 2, ..client(proxy, lane, ops) }
}

pub fn scope(level: Level, programs: Vec<Program>) -> Scope {
    Scope {
        level,
        rules: Rules::ALL,
        programs,
        outside: vec![],
        faults: Faults::default(),
        threads: false,
        split: false,
        broadcast: false,
    }
}

const LEVELS: [Level; 3] = [Level::Bounded, Level::Causal, Level::Linearizable];

fn holds(name: &str, question: impl Fn(Level) -> Scope) {
    holds_at(&LEVELS, name, question);
}

fn holds_at(levels: &[Level], name: &str, question: impl Fn(Level) -> Scope) {
    for level in levels.iter().copied() {
        if let Err((broken, steps)) = explore(&format!("{name}, {level:?}"), question(level)) {
            let steps: Vec<String> = steps.iter().map(|s| format!("  {s:?}")).collect();
            panic!("{name}, {level:?}: {broken}:\n{}", steps.join("\n"));
        }
    }
}

#[test]
fn two_proxies() {
    holds("two proxies", |level| {
        let programs = vec![client(0, 0, &[Read(0, 0), Read(0, 0)]), client(1, 0, &[Write(0), Read(0, 0)])];
        scope(level, programs)
    });
}

#[test]
fn own_writes() {
    holds("own writes", |level| {
        let programs = vec![client(0, 0, &[Read(0, 0), Read(0, 0)]), client(0, 1, &[Write(0)])];
        Scope { outside: vec![Write(0)], ..scope(level, programs) }
    });
}

#[test]
fn two_keys() {
    holds("two keys", |level| {
        let programs = vec![client(0, 0, &[Read(0, 0), Read(1, 0), Read(0, 0)])];
        Scope { outside: vec![Write(0), Write(1)], ..scope(level, programs) }
    });
}

#[test]
fn two_variants() {
    holds("two variants", |level| {
        let programs = vec![client(0, 0, &[Read(0, 0), Read(0, 1), Read(0, 0)])];
        Scope { outside: vec![Write(0), Write(0)], split: true, ..scope(level, programs) }
    });
}

#[test]
fn two_variants_on_two_lanes() {
    // `linearizable` takes a minute here, and does not rely on floors.
    holds_at(&[Level::Bounded, Level::Causal], "two variants on two lanes", |level| {
        let programs = vec![client(0, 0, &[Read(0, 0), Read(0, 1)]), client(0, 1, &[Read(0, 1)])];
        let faults = Faults { evictions: 1, ..Faults::default() };
        Scope { outside: vec![Write(0)], faults, ..scope(level, programs) }
    });
}

/// A read that is told but not kept, because its token was revoked, while a newer token is on another lane.
#[test]
fn a_revoked_read_is_told() {
    holds("a revoked read is told", |level| {
        let programs = vec![client(0, 0, &[Read(0, 0), Read(0, 0)]), client(0, 1, &[Write(0), Read(0, 0)])];
        scope(level, programs)
    });
}

#[test]
fn reads_past_the_cache() {
    holds("reads past the cache", |level| {
        let programs = vec![client(0, 0, &[Past(0), Read(0, 0)]), client(0, 1, &[Read(0, 0)])];
        Scope { outside: vec![Write(0)], ..scope(level, programs) }
    });
}

#[test]
fn a_link_dies() {
    holds("a link dies", |level| {
        let programs = vec![client(0, 0, &[Read(0, 0), Read(0, 0)])];
        let faults = Faults { links: 1, ..Faults::default() };
        Scope { outside: vec![Write(0)], faults, threads: true, ..scope(level, programs) }
    });
}

#[test]
fn a_lane_dies() {
    holds("a lane dies", |level| {
        let programs = vec![client(0, 0, &[Read(0, 0), Read(0, 0)]), client(0, 0, &[Read(0, 0)])];
        let faults = Faults { lanes: 1, ..Faults::default() };
        Scope { outside: vec![Write(0)], faults, ..scope(level, programs) }
    });
}

#[test]
fn scripts() {
    holds("scripts", |level| {
        let programs = vec![client(0, 0, &[Read(0, 0), Read(0, 0)]), client(0, 1, &[Script(0)])];
        Scope { outside: vec![Write(0)], ..scope(level, programs) }
    });
}

/// The held reply matters to `bounded` alone: the other levels do not rely on it.
#[test]
fn scripts_while_the_link_dies() {
    holds_at(&[Level::Bounded], "scripts while the link dies", |level| {
        let programs = vec![client(0, 0, &[Read(0, 0), Read(0, 0)]), client(0, 0, &[Script(0)])];
        let faults = Faults { links: 1, ..Faults::default() };
        Scope { faults, threads: true, ..scope(level, programs) }
    });
}

/// What its end leaves unreported concerns `bounded` alone: at the other levels a hit waits for the lane's clock anyway.
#[test]
fn scripts_while_a_lane_dies() {
    holds_at(&[Level::Bounded], "scripts while a lane dies", |level| {
        let programs = vec![client(0, 0, &[Read(0, 0), Read(0, 0)]), client(0, 1, &[Script(0)])];
        let faults = Faults { lanes: 1, ..Faults::default() };
        Scope { faults, ..scope(level, programs) }
    });
}

#[test]
fn flushes() {
    holds("flushes", |level| {
        let programs = vec![client(0, 0, &[Read(0, 0), Read(0, 0)]), client(0, 1, &[FlushAll])];
        Scope { outside: vec![FlushAll], threads: true, ..scope(level, programs) }
    });
}

#[test]
fn pipelines() {
    holds("pipelines", |level| {
        let programs = vec![pipelining(0, 0, &[Read(0, 0), Write(0), Read(0, 0)]), client(0, 1, &[Read(0, 0)])];
        scope(level, programs)
    });
}

/// At `bounded` a hit passes what is outstanding about other keys.
#[test]
fn reading_past_a_write_of_another_key() {
    holds_at(&[Level::Bounded], "reading past a write", |level| {
        let programs = vec![
            Program { window: 3, ..client(0, 0, &[Read(0, 0), Write(1), Read(0, 0), Read(1, 0)]) },
            client(0, 1, &[Write(0), Read(1, 0)]),
        ];
        scope(level, programs)
    });
    holds("reading past others' writes", |level| {
        let programs = vec![pipelining(0, 0, &[Read(0, 0), Past(1), Read(0, 0)]), client(0, 1, &[Read(0, 0)])];
        Scope { outside: vec![Write(0)], ..scope(level, programs) }
    });
}

/// Reports at the end of the node's turn, perhaps behind a PONG; acks before it.
#[test]
fn broadcast() {
    holds("broadcast", |level| {
        let programs = vec![client(0, 0, &[Read(0, 0), Read(0, 0)]), client(0, 1, &[Write(0)])];
        Scope { outside: vec![Write(0)], broadcast: true, ..scope(level, programs) }
    });
    holds("broadcast, two keys", |level| {
        let programs = vec![client(0, 0, &[Read(0, 0), Read(1, 0), Read(0, 0)])];
        Scope { outside: vec![Write(0), Write(1)], broadcast: true, ..scope(level, programs) }
    });
}

#[test]
fn broadcast_while_the_link_dies() {
    holds("broadcast, the link dies", |level| {
        let programs = vec![client(0, 0, &[Read(0, 0), Read(0, 0)]), client(0, 1, &[Script(0)])];
        let faults = Faults { links: 1, ..Faults::default() };
        Scope { faults, broadcast: true, ..scope(level, programs) }
    });
}
