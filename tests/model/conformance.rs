//! The model's cache against the real one: the same calls in any order, the same answers.

use std::collections::HashMap;
use std::sync::Arc;

use nearside::test_support::cache::entry::Variant as Read;
use nearside::test_support::cache::{Begin, Cache, FillTimes, FillToken, FlushCause, Lookup};
use nearside::test_support::clock::LaneStamp;
use nearside::test_support::time::Time as RealTime;
use proptest::prelude::*;

use crate::cache::{Entry, Node, Token};
use crate::world::{Time, Variant};

/// One call. Times are taken from a counter, so that every call has its own.
#[derive(Clone, Copy, Debug)]
enum Call {
    Begin(Variant),
    /// The reply to the read that began this many reads ago.
    Fill(Variant, usize),
    Drop,
    Observe,
    Flush,
    /// The clocks reach the present.
    Advance(bool),
    LoseLane,
    /// Asks for what is exact as of so many calls ago.
    Lookup(Variant, Time),
}

fn call() -> impl Strategy<Value = Call> {
    let variant = 0..3u8;
    prop_oneof![
        4 => variant.clone().prop_map(Call::Begin),
        4 => (variant.clone(), 0..2usize).prop_map(|(v, n)| Call::Fill(v, n)),
        1 => Just(Call::Drop),
        1 => Just(Call::Observe),
        1 => Just(Call::Flush),
        3 => any::<bool>().prop_map(Call::Advance),
        1 => Just(Call::LoseLane),
        6 => (variant, 0..12u8).prop_map(|(v, t)| Call::Lookup(v, t)),
    ]
}

/// Both caches, one key.
struct Pair {
    real: Arc<Cache>,
    real_lane: LaneStamp,
    tokens: HashMap<Variant, Vec<(FillToken, Token, Time)>>,
    entry: Entry,
    epoch: u8,
    link: Time,
    lane: Time,
    stamp: u8,
    now: Time,
    values: u8,
    /// When something about the key was last told without being kept.
    told: Time,
}

#[derive(Debug, PartialEq)]
enum Answer {
    Hit(u8),
    Behind,
    Miss,
}

fn read(variant: Variant) -> Read<'static> {
    Read { view: 0, id: u16::from(variant), key: b"k", tail: b"" }
}

fn real(t: Time) -> RealTime {
    RealTime(u64::from(t))
}

impl Pair {
    fn new() -> Pair {
        let cache = Arc::new(Cache::new(1 << 20, 1 << 10));
        let real_lane = cache.clocks.open_lane(real(1)).expect("a lane");
        cache.clocks.advance_link(real(1));
        Pair {
            real: cache,
            real_lane,
            tokens: HashMap::new(),
            entry: Entry::default(),
            epoch: 1,
            link: 1,
            lane: 1,
            stamp: 1,
            now: 1,
            values: 0,
            told: 0,
        }
    }

    fn make(&mut self, call: Call) {
        self.now += 1;
        let hash = self.real.hash(b"k");
        match call {
            Call::Begin(v) => self.begin(v),
            Call::Fill(v, n) => self.fill(v, n),
            Call::Drop => {
                self.real.drop_key(hash);
                self.entry = Entry::default();
                self.revoke();
            }
            Call::Observe => {
                self.real.observe(hash, real(self.now));
                self.entry.observe(self.now);
                self.told = self.now;
            }
            Call::Flush => {
                self.real.flush(FlushCause::Admin);
                self.epoch += 1;
            }
            Call::Advance(true) => {
                self.real.clocks.advance_link(real(self.now));
                self.link = self.now;
            }
            Call::Advance(false) => {
                self.real.clocks.advance_lane(self.real_lane, real(self.now));
                self.lane = self.now;
            }
            Call::LoseLane => {
                self.real.clocks.close_lane(self.real_lane);
                self.real_lane = self.real.clocks.open_lane(real(self.now)).expect("a lane");
                (self.lane, self.stamp) = (self.now, self.stamp + 1);
            }
            Call::Lookup(v, ago) => assert_eq!(self.ask_real(v, ago), self.ask_model(v, ago), "{call:?}"),
        }
    }

    fn revoke(&mut self) {
        self.tokens.values_mut().flatten().for_each(|(_, token, _)| token.valid = false);
    }

    fn begin(&mut self, v: Variant) {
        let mine = self.tokens.entry(v).or_default();
        let joins = mine.iter().any(|(_, t, _)| t.valid && t.epoch == self.epoch);
        match self.real.begin(self.real.hash(b"k"), &read(v)) {
            Begin::Join(_) => assert!(joins, "the model has no flight of {v}"),
            Begin::Lead(token) => {
                assert!(!joins, "the model has a flight of {v}");
                let model = Token { key: 0, variant: v, epoch: self.epoch, valid: true };
                mine.insert(0, (token, model, self.now));
            }
        }
    }

    fn fill(&mut self, v: Variant, n: usize) {
        let mine = self.tokens.entry(v).or_default();
        if n >= mine.len() {
            return;
        }
        let (token, model, sent) = mine.remove(n);
        self.values += 1;
        let times = FillTimes { sent: real(sent), stored: real(self.now), deadline: RealTime::NEVER };
        let stored = self.real.fill(token, &read(v), &[self.values], times, self.real_lane);
        assert_eq!(stored, model.valid && model.epoch == self.epoch, "whether the reply to {v} is stored");
        if stored {
            let (value, stamp) = (self.values, self.stamp);
            let node = Node {
                value,
                lane: 0,
                stamp,
                epoch: model.epoch,
                stored: self.now,
                floor: if self.told >= sent { self.told } else { 0 },
            };
            self.entry.insert(v, node, sent);
        }
    }

    fn ask_real(&self, v: Variant, ago: Time) -> Answer {
        let (now, watermark) = (real(self.now), real(self.now.saturating_sub(ago)));
        match self.real.lookup(self.real.hash(b"k"), &read(v), now, watermark, |node| node.reply()[0]) {
            Lookup::Hit(value) => Answer::Hit(value),
            Lookup::Behind(_) => Answer::Behind,
            Lookup::Miss => Answer::Miss,
        }
    }

    fn ask_model(&self, v: Variant, ago: Time) -> Answer {
        let Some((node, floor)) = self.entry.find(v) else { return Answer::Miss };
        if node.epoch != self.epoch || node.stamp != self.stamp {
            return Answer::Miss;
        }
        let time = self.now.saturating_sub(ago).max(floor);
        if self.lane.min(self.link) < time { Answer::Behind } else { Answer::Hit(node.value) }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_models_cache_is_the_real_one(calls in proptest::collection::vec(call(), 1..60)) {
        let mut pair = Pair::new();
        calls.into_iter().for_each(|call| pair.make(call));
    }
}
