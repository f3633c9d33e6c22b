//! Histories made by hand, one for each promise and each excuse, and histories made by simulation.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bytes::Bytes;

use super::super::history::{Change, Object, RouteUnderTest};
use super::*;

const RULES: Rules = Rules { max_staleness: Duration::from_millis(100), budget: 1 << 20 };

/// Sessions 0 and 1 go past the proxies, 2 and 3 through proxy A, 4 and 5 through proxy B.
struct Script(History);

const PAST: usize = 0;
const A: usize = 2;
const ALSO_A: usize = 3;
const B: usize = 4;

fn script(level: Level) -> Script {
    let route = |name: &str, level| RouteUnderTest { name: name.into(), level };
    let routes = vec![route("upstream", None), route("a", Some(level)), route("b", Some(level))];
    let objects = ["x", "y"].map(|name| Object { name: name.into(), keys: 1 }).to_vec();
    Script(History { routes, sessions: vec![0, 0, 1, 1, 2, 2], objects, ..History::default() })
}

/// The moment `time` milliseconds into the history.
fn ms(time: u64) -> Time {
    Time((1000 + time) * 1_000_000)
}

fn value(text: &str) -> Bytes {
    Bytes::from(format!("v{text:0>7}"))
}

fn sees(text: &str) -> Seen {
    if text.is_empty() { Seen::Absent } else { Seen::Value(value(text)) }
}

impl Script {
    fn op(mut self, object: usize, session: usize, start: u64, end: Option<u64>, action: Action) -> Script {
        let end = end.map(ms);
        self.0.ops.push(Op { object, session, start: ms(start), end, command: "", action });
        self
    }

    fn set(self, session: usize, start: u64, end: u64, text: &str) -> Script {
        self.set_of(0, session, start, Some(end), text, None)
    }

    fn set_of(
        self,
        object: usize,
        session: usize,
        start: u64,
        end: Option<u64>,
        text: &str,
        ttl: Option<u64>,
    ) -> Script {
        let ttl = ttl.map(Duration::from_millis);
        self.op(object, session, start, end, Action::Write(Change::Set { value: value(text), ttl, keeps_ttl: false }))
    }

    fn delete(self, session: usize, start: u64, end: u64) -> Script {
        self.op(0, session, start, Some(end), Action::Write(Change::Delete))
    }

    fn get(self, session: usize, start: u64, end: u64, text: &str) -> Script {
        self.get_of(0, session, start, end, text)
    }

    fn get_of(self, object: usize, session: usize, start: u64, end: u64, text: &str) -> Script {
        self.op(object, session, start, Some(end), Action::Read(1, sees(text)))
    }

    fn findings(mut self) -> Findings {
        self.0.sort();
        judge(&self.0, RULES)
    }

    /// The promises that the first violation breaks.
    fn breaks(self) -> Vec<Promise> {
        self.findings().violations.first().map(|violation| violation.promises.clone()).unwrap_or_default()
    }
}

#[test]
fn a_good_history_is_good_and_every_promise_was_put_to_the_test() {
    let good = script(Level::Linearizable)
        .set_of(0, A, 0, Some(1), "1", Some(500))
        .get(A, 2, 3, "1")
        .get(ALSO_A, 4, 5, "1")
        .set_of(1, B, 5, Some(6), "2", None)
        .get_of(1, ALSO_A, 7, 8, "2")
        .get(ALSO_A, 150, 151, "1")
        .get(PAST, 160, 161, "1");
    let findings = good.findings();
    assert!(findings.violations.is_empty(), "{:?}", findings.violations);
    for promise in PROMISES {
        assert!(findings.checked[promise as usize] > 0, "{promise:?} was not checked");
    }
    assert_eq!(findings.checked[Promise::Values as usize], 4, "the server's own answers are not counted");
    assert_eq!(findings.staleness.len(), 4);
    assert_eq!(findings.staleness.max(), 0);
}

#[test]
fn a_value_comes_from_a_write_that_had_begun() {
    let s = || script(Level::Bounded).set(PAST, 10, 11, "1");
    assert_eq!(s().get(A, 12, 13, "2").breaks(), [Promise::Values]);
    assert_eq!(s().get(A, 5, 9, "1").breaks(), [Promise::Values]);
    assert_eq!(s().get(A, 5, 10, "1").breaks(), []);
    assert_eq!(s().op(0, A, 12, Some(13), Action::Read(3, Seen::Torn("1, 2".into()))).breaks(), [Promise::Values]);
}

#[test]
fn absence_needs_a_reason() {
    let s = || script(Level::Bounded).set(PAST, 10, 11, "1");
    assert_eq!(s().get(A, 12, 13, "").breaks(), [], "it was absent at first, and bounded may be late");
    assert_eq!(s().get(A, 12, 13, "1").get(A, 14, 15, "").breaks(), [Promise::NoWayBack]);
    assert_eq!(s().get(A, 12, 13, "1").delete(PAST, 14, 20).get(A, 15, 16, "").breaks(), []);
    let mut erased = s().get(A, 12, 13, "1").get(A, 30, 31, "");
    erased.0.erased.push(Span { start: ms(14), end: ms(20) });
    assert_eq!(erased.breaks(), []);
    let mut evicted = s().get(A, 12, 13, "1").get(A, 30, 31, "");
    evicted.0.eroded.push(Span { start: ms(14), end: ms(20) });
    assert_eq!(evicted.breaks(), []);
}

#[test]
fn bounded_has_a_bound() {
    let s = || script(Level::Bounded).set(PAST, 0, 1, "1").set(PAST, 10, 11, "2");
    assert_eq!(s().get(A, 111, 112, "1").breaks(), []);
    assert_eq!(s().get(A, 117, 118, "1").breaks(), [Promise::Age]);
    let findings = s().get(A, 61, 62, "1").findings();
    assert!(findings.violations.is_empty());
    assert!((49_900..=50_100).contains(&findings.staleness.max()), "{}", findings.staleness.max());
}

#[test]
fn an_erasure_counts_as_a_write_of_everything() {
    let mut s = script(Level::Bounded).set(PAST, 0, 1, "1").get(A, 117, 118, "1");
    s.0.erased.push(Span { start: ms(5), end: ms(11) });
    assert_eq!(s.breaks(), [Promise::Age]);
}

#[test]
fn what_was_written_through_a_proxy_is_read_through_it() {
    let s = || script(Level::Bounded).set(PAST, 0, 1, "1").set(A, 10, 11, "2");
    assert_eq!(s().get(ALSO_A, 12, 13, "1").breaks(), [Promise::OwnWrites]);
    assert_eq!(s().get(B, 12, 13, "1").breaks(), [], "another proxy may be late");
    assert_eq!(s().get(ALSO_A, 10, 13, "1").breaks(), [], "it began before the ack");
}

#[test]
fn a_session_does_not_see_a_key_go_back() {
    let s = || script(Level::Bounded).set(PAST, 0, 1, "1").set(PAST, 10, 11, "2").get(A, 12, 13, "2");
    assert_eq!(s().get(A, 14, 15, "1").breaks(), [Promise::NoWayBack]);
    let findings = s().get(ALSO_A, 14, 15, "1").findings();
    assert!(findings.violations.is_empty(), "another session may");
    assert_eq!(findings.back_between_sessions, 1);
}

#[test]
fn in_a_pipeline_a_read_sees_the_write_before_it() {
    let s = |level| script(level).set(PAST, 0, 1, "1").set(A, 10, 20, "2").get(A, 10, 20, "1");
    assert_eq!(s(Level::Bounded).breaks(), [Promise::NoWayBack]);
}

#[test]
fn causal_holds_across_keys() {
    let s = |level| {
        let old = script(level).set_of(0, PAST, 0, Some(1), "1", None);
        old.set_of(0, PAST, 10, Some(11), "2", None).set_of(1, PAST, 12, Some(13), "3", None)
    };
    let back = |level| s(level).get_of(1, A, 14, 15, "3").get(A, 16, 17, "1");
    assert_eq!(back(Level::Causal).breaks(), [Promise::Causal]);
    assert_eq!(back(Level::Bounded).breaks(), []);
    assert_eq!(s(Level::Causal).get_of(1, ALSO_A, 14, 15, "3").get(A, 16, 17, "1").breaks(), [], "another session");
    assert_eq!(s(Level::Causal).set_of(1, A, 14, Some(15), "4", None).get(A, 16, 17, "1").breaks(), [Promise::Causal]);
}

#[test]
fn linearizable_is_not_late_at_all() {
    let s = || script(Level::Linearizable).set(PAST, 0, 1, "1").set(PAST, 10, 20, "2");
    assert_eq!(s().get(A, 21, 22, "1").breaks(), [Promise::Age]);
    assert_eq!(s().get(A, 12, 13, "2").get(B, 14, 15, "1").breaks(), [Promise::Order]);
    let findings = s().get(A, 12, 13, "2").get(B, 14, 15, "1").findings();
    assert_eq!(findings.broken[Promise::Linearizable as usize], 1, "the search finds it too");
}

/// No read alone is too old here: only the search sees that no order fits all.
#[test]
fn two_readers_that_disagree_on_the_order_are_found_by_the_search_alone() {
    let s = script(Level::Linearizable).set(PAST, 0, 90, "1").set(1, 0, 90, "2");
    let s = s.get(A, 10, 11, "1").get(B, 20, 21, "2").get(A, 30, 31, "1");
    let findings = s.findings();
    assert_eq!(findings.violations[0].promises, [Promise::Linearizable]);
    assert_eq!(findings.violations.len(), 1);
    assert!(findings.violations[0].fragment.iter().any(|line| !line.parts.is_empty() && line.op.is_some()));
}

#[test]
fn at_other_levels_the_server_and_the_writes_are_still_linearizable() {
    let count = |session, start, sum| (0, session, start, Some(start + 1), Action::Write(Change::Increment(Some(sum))));
    let twice = |s: Script, (object, session, start, end, action)| s.op(object, session, start, end, action);
    let s = [count(A, 0, 1), count(B, 2, 2), count(A, 4, 4)].into_iter().fold(script(Level::Bounded), twice);
    assert_eq!(s.breaks(), [Promise::Linearizable], "something was added twice");
}

#[test]
fn nothing_is_read_after_its_time() {
    let with_ttl = || script(Level::Bounded).set_of(0, PAST, 0, Some(1), "1", Some(50));
    assert_eq!(with_ttl().get(A, 55, 56, "1").breaks(), []);
    assert_eq!(with_ttl().get(A, 60, 61, "1").breaks(), [Promise::Expiry]);
    assert_eq!(with_ttl().get(A, 40, 41, "").get(A, 55, 56, "").breaks(), [], "it was absent at first");
    let expire = |start, end, after| {
        let change = Change::Expire { after: Duration::from_millis(after), fields: false };
        (0, PAST, start, end, Action::Write(change))
    };
    let with = |s: Script, (o, session, start, end, action)| s.op(o, session, start, end, action);
    let limited_at = |level, limit| with(script(level).set(PAST, 0, 1, "1"), limit);
    let limited = |limit| limited_at(Level::Bounded, limit);
    let linearizable = limited_at(Level::Linearizable, expire(10, Some(11), 20)).get(A, 60, 61, "1").breaks();
    assert!(linearizable.contains(&Promise::Expiry), "{linearizable:?}");
    assert_eq!(limited(expire(10, Some(11), 20)).get(A, 60, 61, "1").breaks(), [], "it may be news to the proxy");
    assert_eq!(limited(expire(10, Some(11), 20)).get(A, 145, 146, "1").breaks(), [Promise::Expiry]);
    assert_eq!(limited(expire(10, None, 20)).get(A, 60, 61, "1").breaks(), [], "nobody knows when it was executed");
    let longer = with(limited(expire(10, Some(11), 20)), expire(12, Some(13), 80));
    assert_eq!(longer.get(A, 60, 61, "1").breaks(), []);
    assert_eq!(limited(expire(10, Some(11), 20)).get(A, 12, 13, "1").get(A, 20, 21, "").breaks(), [Promise::NoWayBack]);
}

#[test]
fn a_write_without_an_ack_excuses_and_accuses_nobody() {
    let s = || script(Level::Linearizable).set(PAST, 0, 1, "1").set_of(0, PAST, 10, None, "2", None);
    assert_eq!(s().get(A, 20, 21, "1").get(A, 22, 23, "2").breaks(), []);
    let back = s().get(A, 20, 21, "2").get(A, 22, 23, "1");
    assert_eq!(back.breaks(), [Promise::NoWayBack, Promise::Order]);
}

/// The first write got no answer; that it happened shows in what was added to it.
#[test]
fn a_lost_write_shows_in_what_was_made_of_it() {
    let with = |s: Script, (start, end, change)| s.op(0, PAST, start, end, Action::Write(change));
    let base = |text: &str| Change::Set { value: Bytes::from(text.to_owned()), ttl: None, keeps_ttl: false };
    let counted = |sum| {
        let steps = [(0, None, base("700")), (2, Some(3), Change::Increment(Some(sum)))];
        steps.into_iter().fold(script(Level::Bounded), with).breaks()
    };
    assert_eq!(counted(701), []);
    assert_eq!(counted(1), []);
    assert_eq!(counted(2), [Promise::Linearizable]);
    let appended = |length| {
        let steps = [(0, None, base("v0000001")), (2, Some(3), Change::Append(value("2"), Some(length)))];
        steps.into_iter().fold(script(Level::Bounded), with).breaks()
    };
    assert_eq!(appended(16), []);
    assert_eq!(appended(8), []);
    assert_eq!(appended(24), [Promise::Linearizable]);
}

/// A server, and clients who ask it through proxies that answer at most so late; the clients of one proxy never see it
/// go back.
fn simulated(seed: u64, level: Level, most_late: u64) -> Script {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut s = script(level);
    let mut states: [Vec<(u64, String)>; 2] = Default::default();
    let mut shown = [[0usize; 2]; 6];
    for i in 1..400u64 {
        let (now, object, session) = (i * 3, rng.usize(0..2), rng.usize(0..6));
        let (start, end) = (now - rng.u64(0..3), now + rng.u64(0..3));
        if rng.u8(0..3) == 0 {
            s = s.set_of(object, session, start, Some(end), &i.to_string(), None);
            states[object].push((now, i.to_string()));
            shown[session][object] = states[object].len();
            continue;
        }
        let late = if session < 2 { 0 } else { rng.u64(0..most_late + 1) };
        let known = states[object].iter().filter(|(when, _)| *when + late <= now).count();
        let own = shown.iter().enumerate().filter(|(other, _)| s.0.sessions[*other] == s.0.sessions[session]);
        let known = known.max(own.map(|(_, shown)| shown[object]).max().unwrap());
        shown[session][object] = known;
        let text = if known == 0 { String::new() } else { states[object][known - 1].1.clone() };
        s = s.get_of(object, session, start, end, &text);
    }
    s
}

#[test]
fn simulated_histories_pass_at_the_level_they_keep_and_fail_above() {
    let mut too_late = 0;
    for seed in 0..60 {
        for level in [Level::Bounded, Level::Causal, Level::Linearizable] {
            let findings = simulated(seed, level, 0).findings();
            assert!(findings.violations.is_empty(), "seed {seed}, {level}: {:?}", findings.violations[0]);
        }
        let late = simulated(seed, Level::Bounded, 95).findings();
        assert!(late.violations.is_empty(), "seed {seed}: {:?}", late.violations[0]);
        assert!(late.staleness.max() > 10_000);
        assert!(!simulated(seed, Level::Linearizable, 95).findings().violations.is_empty(), "seed {seed}");
        too_late += usize::from(!simulated(seed, Level::Bounded, 400).findings().violations.is_empty());
    }
    assert!(too_late > 50, "{too_late}");
}
