//! Histories made by hand, histories made by simulation, and a judge that tries every order.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use super::*;
use proptest::prelude::*;

const BUDGET: usize = 1 << 20;

fn at(start: u64, end: u64, step: RegisterStep) -> Moment {
    Moment { span: Span { start: Time(start), end: Time(end) }, step, op: None }
}

fn pending(start: u64, step: RegisterStep) -> Moment {
    Moment { span: Span { start: Time(start), end: Time::NEVER }, step, op: None }
}

fn set(value: u32) -> RegisterStep {
    RegisterStep::Set { value, ttl: 0, keeps_ttl: false }
}

/// The letters are values 1, 2, 3 …
fn letters() -> Values {
    let mut values = Values::default();
    for letter in ["a", "b", "c", "d", "e", "f"] {
        values.id(letter.as_bytes());
    }
    values
}

fn verdict(moments: &[Moment]) -> SearchVerdict {
    search(moments, &mut letters(), &[], BUDGET)
}

fn passes(moments: &[Moment]) -> bool {
    match verdict(moments) {
        SearchVerdict::Linearizable => true,
        SearchVerdict::Violated(..) => false,
        SearchVerdict::Undecided => panic!("undecided"),
    }
}

#[test]
fn a_read_sees_the_last_write_or_one_that_is_under_way() {
    assert!(passes(&[at(0, 1, set(1)), at(2, 3, RegisterStep::See(1))]));
    assert!(passes(&[
        at(0, 1, set(1)),
        at(2, 9, set(2)),
        at(3, 4, RegisterStep::See(1)),
        at(5, 6, RegisterStep::See(2))
    ]));
    assert_eq!(
        verdict(&[at(0, 1, set(1)), at(2, 3, set(2)), at(4, 5, RegisterStep::See(1))]),
        SearchVerdict::Violated(2, vec!["b".into()])
    );
}

#[test]
fn what_was_seen_is_not_unseen() {
    let new_then_old =
        [at(0, 1, set(1)), at(2, 9, set(2)), at(3, 4, RegisterStep::See(2)), at(5, 6, RegisterStep::See(1))];
    assert_eq!(verdict(&new_then_old), SearchVerdict::Violated(3, vec!["b".into()]));
}

#[test]
fn two_readers_agree_on_the_order_of_two_writers() {
    let writers = [at(0, 9, set(1)), at(0, 9, set(2))];
    let reads = [at(1, 2, RegisterStep::See(1)), at(3, 4, RegisterStep::See(2)), at(5, 6, RegisterStep::See(1))];
    assert!(passes(&[writers[0], writers[1], reads[0], reads[1]]));
    assert!(!passes(&[writers[0], writers[1], reads[0], reads[1], reads[2]]));
}

#[test]
fn a_write_without_an_ack_may_have_happened_or_not_or_late() {
    let lost = pending(0, set(1));
    assert!(passes(&[lost, at(2, 3, RegisterStep::See(0))]));
    assert!(passes(&[lost, at(2, 3, RegisterStep::See(1))]));
    assert!(passes(&[
        lost,
        at(2, 3, RegisterStep::See(0)),
        at(4, 5, set(2)),
        at(6, 7, RegisterStep::See(2)),
        at(8, 9, RegisterStep::See(1))
    ]));
    assert!(!passes(&[lost, at(2, 3, RegisterStep::See(1)), at(4, 5, RegisterStep::See(0))]));
}

#[test]
fn a_counter_counts_once() {
    let one = |start| at(start, start + 1, RegisterStep::Increment(None));
    assert!(passes(&[one(0), one(2), at(4, 5, RegisterStep::Increment(Some(3)))]));
    assert!(!passes(&[one(0), one(2), at(4, 5, RegisterStep::Increment(Some(4)))]), "one was added twice");
    assert!(!passes(&[one(0), one(2), at(4, 5, RegisterStep::Increment(Some(2)))]), "one was lost");
    let mut lost: Vec<Moment> = (0..60).map(|i| pending(i, RegisterStep::Increment(None))).collect();
    lost.push(at(70, 71, RegisterStep::Increment(Some(31))));
    assert!(passes(&lost), "half of them happened");
    lost.push(at(72, 73, RegisterStep::Increment(Some(31))));
    assert!(!passes(&lost));
}

#[test]
fn a_list_shows_the_order_of_its_appends() {
    let mut values = letters();
    let (ab, ba) = (values.id(b"ab"), values.id(b"ba"));
    let appends = [at(0, 5, RegisterStep::Append(1, None)), at(0, 5, RegisterStep::Append(2, Some(2)))];
    let reads = |first, second| {
        vec![appends[0], appends[1], at(6, 7, RegisterStep::See(first)), at(8, 9, RegisterStep::See(second))]
    };
    assert_eq!(search(&reads(ab, ab), &mut values, &[], BUDGET), SearchVerdict::Linearizable);
    assert!(
        matches!(search(&reads(ba, ba), &mut values, &[], BUDGET), SearchVerdict::Violated(2, _)),
        "b was the second"
    );
    assert!(matches!(search(&reads(ab, ba), &mut values, &[], BUDGET), SearchVerdict::Violated(3, _)));
}

#[test]
fn a_key_vanishes_within_the_time_it_may() {
    let limited = |read| {
        let set = at(0, 2, RegisterStep::Set { value: 1, ttl: 7, keeps_ttl: false });
        passes(&[set, at(10, 14, RegisterStep::End(7)), read])
    };
    assert!(limited(at(9, 9, RegisterStep::See(1))));
    assert!(!limited(at(9, 9, RegisterStep::See(0))), "too early");
    assert!(limited(at(11, 12, RegisterStep::See(1))));
    assert!(limited(at(11, 12, RegisterStep::See(0))));
    assert!(!limited(at(15, 16, RegisterStep::See(1))), "too late");
}

#[test]
fn what_may_have_been_evicted_may_be_gone() {
    let eviction = Span { start: Time(10), end: Time(20) };
    let moments = |read| [at(0, 1, set(1)), at(10, 20, RegisterStep::Doubt), read];
    let gone = |start| search(&moments(at(start, start, RegisterStep::See(0))), &mut letters(), &[eviction], BUDGET);
    assert!(matches!(gone(9), SearchVerdict::Violated(..)));
    assert_eq!(gone(15), SearchVerdict::Linearizable);
    assert_eq!(gone(30), SearchVerdict::Linearizable);
    let back = [
        at(0, 1, set(1)),
        at(10, 20, RegisterStep::Doubt),
        at(30, 31, RegisterStep::See(0)),
        at(32, 33, RegisterStep::See(1)),
    ];
    assert!(matches!(search(&back, &mut letters(), &[eviction], BUDGET), SearchVerdict::Violated(3, _)));
}

#[test]
fn a_search_that_grows_too_far_says_so() {
    let many: Vec<Moment> = (0..40).map(|i| at(0, 100 + i, RegisterStep::Append(1 + i as u32 % 6, None))).collect();
    assert_eq!(search(&many, &mut letters(), &[], 1000), SearchVerdict::Undecided);
    let open: Vec<Moment> = (0..200).map(|i| pending(i, set(1 + i as u32 % 6))).collect();
    assert_eq!(search(&open, &mut letters(), &[], BUDGET), SearchVerdict::Undecided);
}

/// Tries every order of every choice of the pending ones, by the specification alone.
fn some_order_explains(moments: &[Moment], values: &mut Values, state: RegisterState, left: &[usize]) -> bool {
    let may_be_omitted = left.iter().all(|i| moments[*i].is_pending());
    if may_be_omitted {
        return true;
    }
    let first_end = left.iter().map(|i| moments[*i].span.end).min().unwrap();
    let mut candidates = left.iter().filter(|i| moments[**i].span.start <= first_end);
    candidates.any(|i| {
        let rest: Vec<usize> = left.iter().copied().filter(|j| j != i).collect();
        let states = values.after(state, moments[*i].step, false);
        states.into_iter().flatten().any(|state| some_order_explains(moments, values, state, &rest))
    })
}

fn any_step() -> impl Strategy<Value = RegisterStep> {
    prop_oneof![
        3 => (0..4u32).prop_map(RegisterStep::See),
        3 => (1..4u32, 0..2u32, any::<bool>()).prop_map(|(value, ttl, keeps_ttl)| RegisterStep::Set { value, ttl, keeps_ttl }),
        1 => Just(RegisterStep::Delete),
        1 => (1..3u32, any::<bool>()).prop_map(|(id, fields)| RegisterStep::Limit(id, fields)),
        1 => (1..3u32).prop_map(RegisterStep::End),
    ]
}

fn any_count() -> impl Strategy<Value = RegisterStep> {
    prop_oneof![
        2 => proptest::option::of(1..4i64).prop_map(RegisterStep::Increment),
        1 => Just(RegisterStep::Delete),
        // the numbers 1, 2, 3 are values 7, 8, 9 there
        2 => prop_oneof![Just(0u32), 7..10u32].prop_map(RegisterStep::See),
    ]
}

fn any_append() -> impl Strategy<Value = RegisterStep> {
    prop_oneof![
        2 => (1..4u32, proptest::option::of(1..4usize)).prop_map(|(token, length)| RegisterStep::Append(token, length)),
        1 => Just(RegisterStep::Delete),
        // the texts ab, ba, abc … are values 10 and up there
        2 => prop_oneof![0..4u32, 10..16u32].prop_map(RegisterStep::See),
    ]
}

fn vocabulary() -> Values {
    let mut values = letters();
    for text in ["1", "2", "3", "ab", "ba", "abc", "acb", "bc", "ca"] {
        values.id(text.as_bytes());
    }
    values
}

fn any_moments(step: impl Strategy<Value = RegisterStep>) -> impl Strategy<Value = Vec<Moment>> {
    let moment = (0..12u64, 0..6u64, step, 0..5u8).prop_map(|(start, length, step, dice)| match step {
        // nobody notes a read without an answer
        RegisterStep::See(_) => at(start, start + length, step),
        _ if dice == 0 => pending(start, step),
        _ => at(start, start + length, step),
    });
    proptest::collection::vec(moment, 1..7)
}

fn agrees_with_every_order(moments: &[Moment]) -> Result<(), TestCaseError> {
    let mut values = vocabulary();
    let all: Vec<usize> = (0..moments.len()).collect();
    let explained = some_order_explains(moments, &mut values, RegisterState::default(), &all);
    let found = search(moments, &mut values, &[], BUDGET);
    prop_assert_eq!(found == SearchVerdict::Linearizable, explained, "{:?}", found);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn registers_are_judged_as_by_trying_every_order(moments in any_moments(any_step())) {
        agrees_with_every_order(&moments)?;
    }

    #[test]
    fn counters_are_judged_as_by_trying_every_order(moments in any_moments(any_count())) {
        agrees_with_every_order(&moments)?;
    }

    #[test]
    fn lists_are_judged_as_by_trying_every_order(moments in any_moments(any_append())) {
        agrees_with_every_order(&moments)?;
    }
}

/// A real key, and clients whose operations happen at a random moment within their time.
fn simulated(rng: &mut fastrand::Rng, count: u32, values: &mut Values) -> Vec<Moment> {
    let mut state = RegisterState::default();
    let mut moments = Vec::new();
    for i in 1..=count {
        let happens = Time(u64::from(i) * 10);
        let before = rng.u64(0..60);
        let after = rng.u64(0..60);
        let step = match rng.u8(0..10) {
            0..5 => RegisterStep::See(state.value),
            5..7 => RegisterStep::Set { value: values.id(format!("v{i}").as_bytes()), ttl: 0, keeps_ttl: false },
            7 => RegisterStep::Delete,
            8 => RegisterStep::Append(values.id(format!("+{i}").as_bytes()), None),
            _ => RegisterStep::Limit(i, false),
        };
        state = values.after(state, step, false)[0].unwrap();
        let lost = rng.u8(0..40) == 0 && !matches!(step, RegisterStep::See(_));
        let span = Span { start: Time(happens.0.saturating_sub(before)), end: Time(happens.0 + after) };
        moments.push(Moment { span: if lost { Span { end: Time::NEVER, ..span } } else { span }, step, op: None });
    }
    moments
}

#[test]
fn what_really_happened_in_some_order_passes() {
    for seed in 0..300 {
        let mut values = Values::default();
        let moments = simulated(&mut fastrand::Rng::with_seed(seed), 200, &mut values);
        assert_eq!(search(&moments, &mut values, &[], BUDGET), SearchVerdict::Linearizable, "seed {seed}");
    }
}

/// A read that is told what was overwritten before it began: found, whatever went on around it.
#[test]
fn one_stale_read_among_many_fails() {
    let mut tried = 0;
    for seed in 0..300 {
        let mut values = Values::default();
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut moments = simulated(&mut rng, 200, &mut values);
        moments.retain(|moment| !moment.is_pending());
        let Some((read, stale)) = stale_read(&mut rng, &moments) else { continue };
        moments[read].step = RegisterStep::See(stale);
        tried += 1;
        let verdict = search(&moments, &mut values, &[], BUDGET);
        assert!(matches!(verdict, SearchVerdict::Violated(..)), "seed {seed}: {verdict:?}");
    }
    assert!(tried > 250, "{tried}");
}

/// A read, and a value that was set and overwritten before the read began and never returned.
fn stale_read(rng: &mut fastrand::Rng, moments: &[Moment]) -> Option<(usize, u32)> {
    let reads: Vec<usize> = (100..moments.len()).filter(|i| matches!(moments[*i].step, RegisterStep::See(_))).collect();
    let read = *reads.get(rng.usize(0..reads.len().max(1)))?;
    let begun = moments[read].span.start;
    let sets = moments.iter().filter_map(|moment| match moment.step {
        RegisterStep::Set { value, .. } => Some((moment.span, value)),
        _ => None,
    });
    let sets: Vec<(Span, u32)> = sets.collect();
    let overwritten = |span: Span| sets.iter().any(|(other, _)| other.start > span.end && other.end < begun);
    let stale: Vec<u32> = sets.iter().filter(|(span, _)| overwritten(*span)).map(|(_, value)| *value).collect();
    Some((read, *stale.get(rng.usize(0..stale.len().max(1)))?))
}
