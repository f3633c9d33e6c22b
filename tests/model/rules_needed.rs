//! With one rule less, some schedule breaks a promise: no rule is there for nothing, and the model would notice.

use crate::explore;
use crate::promises::{client, pipelining, scope};
use crate::protocol::Scope;
use crate::rules::Rules;
use crate::world::Faults;
use crate::world::Level::{Bounded, Causal, Linearizable};
use crate::world::Op::{FlushAll, Past, Read, Script, Write};

const BACK: &str = "a session goes back on one key";
const ACROSS: &str = "a session goes back across keys";
const OWN: &str = "a read is older than a write acknowledged through its proxy";
const KNOWN: &str = "a read is older than what somebody knew before it began";

fn breaks(name: &str, promise: &str, without: impl Fn(&mut Rules), question: Scope) {
    let mut scope = question;
    without(&mut scope.rules);
    match explore(&format!("without {name}, {:?}", scope.level), scope) {
        Ok(_) => panic!("nothing breaks without {name}"),
        Err((broken, steps)) => {
            println!("  {broken}: {steps:?}");
            assert_eq!(broken, promise, "without {name}");
        }
    }
}

/// A reader, and a writer through the same proxy.
fn own_write() -> Scope {
    scope(Bounded, vec![client(0, 0, &[Read(0, 0), Read(0, 0)]), client(0, 1, &[Write(0)])])
}

/// A reader, and a writer that knows no proxy.
fn others_write() -> Scope {
    Scope { outside: vec![Write(0)], ..scope(Linearizable, vec![client(0, 0, &[Read(0, 0), Read(0, 0)])]) }
}

#[test]
fn tokens() {
    breaks("tokens", OWN, |r| r.tokens = false, own_write());
    let readers = vec![client(0, 0, &[Read(0, 0)]), client(0, 1, &[Read(0, 0)])];
    breaks("tokens", KNOWN, |r| r.tokens = false, Scope { programs: readers, ..others_write() });
}

#[test]
fn dropping_before_the_ack() {
    breaks("dropping before the ack", OWN, |r| r.drop_on_ack = false, own_write());
}

#[test]
fn clocks() {
    breaks("clocks", KNOWN, |r| r.clock = false, others_write());
    let keys = vec![client(0, 0, &[Read(0, 0), Read(1, 0), Read(0, 0)])];
    let question = Scope { outside: vec![Write(0), Write(1)], ..scope(Causal, keys) };
    breaks("clocks", ACROSS, |r| r.clock = false, question);
}

#[test]
fn lanes() {
    let question = Scope { faults: Faults { lanes: 1, ..Faults::default() }, ..others_write() };
    breaks("the lane's clock", KNOWN, |r| r.lane_clock = false, question.clone());
    breaks("entries dying with their lane", KNOWN, |r| r.lane_alive = false, question);
}

#[test]
fn floors() {
    let variants = vec![client(0, 0, &[Read(0, 0), Read(0, 1), Read(0, 0)])];
    let question = Scope { outside: vec![Write(0)], ..scope(Bounded, variants) };
    breaks("floors", BACK, |r| r.floor = false, question.clone());
    let past = vec![client(0, 0, &[Read(0, 0), Past(0), Read(0, 0)])];
    breaks("floors", BACK, |r| r.floor = false, Scope { programs: past, ..question });
}

#[test]
fn held_replies() {
    let programs = vec![client(0, 0, &[Read(0, 0), Read(0, 0)]), client(0, 1, &[Script(0)])];
    breaks("held replies", OWN, |r| r.held = false, scope(Bounded, programs));
}

/// A script writes what a lane has read that is dead at the node: nobody is told.
#[test]
fn lanes_after_a_barrier() {
    let programs = vec![client(0, 0, &[Read(0, 0), Read(0, 0)]), client(0, 1, &[Script(0)])];
    let question = Scope { faults: Faults { lanes: 1, ..Faults::default() }, ..scope(Bounded, programs) };
    breaks("hits proven past a barrier", OWN, |r| r.settled = false, question);
}

/// The order that `Coherence::generation` asks for.
#[test]
fn generation_after_epoch() {
    let question = Scope { faults: Faults { links: 1, ..Faults::default() }, threads: true, ..others_write() };
    breaks("the generation asked after the epoch", KNOWN, |r| r.generation_after_epoch = false, question);
}

#[test]
fn not_overtaking() {
    let programs = vec![client(0, 1, &[Read(0, 0)]), pipelining(0, 0, &[Write(0), Read(0, 0)])];
    breaks("not overtaking", BACK, |r| r.overtake = false, scope(Bounded, programs));
}

#[test]
fn telling_when_stored() {
    let programs = vec![client(0, 0, &[Read(0, 0), Read(0, 1), Read(0, 0)])];
    let question = Scope { outside: vec![Write(0)], split: true, ..scope(Bounded, programs) };
    breaks("telling a read when it is stored", BACK, |r| r.told_when_stored = false, question);
    // The same, without two variants and in whole batches: the reply told is of a revoked token.
    let programs = vec![client(0, 0, &[Read(0, 0), Read(0, 0)]), client(0, 1, &[Write(0), Read(0, 0)])];
    let question = Scope { outside: vec![Write(0)], ..scope(Bounded, programs) };
    breaks("telling a read when it is stored", BACK, |r| r.told_when_stored = false, question);
}

#[test]
fn eviction_revoking() {
    let programs = vec![client(0, 0, &[Read(0, 0), Read(0, 1)]), client(0, 1, &[Read(0, 1)])];
    let faults = Faults { evictions: 1, ..Faults::default() };
    let question = Scope { outside: vec![Write(0)], faults, ..scope(Bounded, programs) };
    breaks("eviction revoking tokens", BACK, |r| r.eviction_revokes = false, question);
}

#[test]
fn clocks_before_the_epoch() {
    let question = Scope { outside: vec![FlushAll], threads: true, ..others_write() };
    breaks("the clocks read before the epoch", KNOWN, |r| r.clocks_before_epoch = false, question);
}

#[test]
fn barriers_that_flush() {
    let programs = vec![client(0, 0, &[Read(0, 0), Read(0, 0)]), client(0, 0, &[Script(0)])];
    let faults = Faults { links: 1, ..Faults::default() };
    let question = Scope { faults, threads: true, ..scope(Bounded, programs) };
    breaks("barriers that flush when the link is down", OWN, |r| r.barrier_flushes = false, question);
}

#[test]
fn two_pings_in_broadcast() {
    let question = Scope { broadcast: true, ..others_write() };
    breaks("the second PING of broadcast", KNOWN, |r| r.two_pings = false, question);
    let programs = vec![client(0, 0, &[Read(0, 0), Read(0, 0)]), client(0, 1, &[Script(0)])];
    let question = Scope { broadcast: true, ..scope(Bounded, programs) };
    breaks("the second PING of broadcast", OWN, |r| r.two_pings = false, question);
}
