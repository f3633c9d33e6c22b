//! A cache to ask questions of.
#![allow(dead_code, reason = "no bench needs all of it")]

use std::sync::Arc;

use nearside::test_support::cache::entry::Variant;
use nearside::test_support::cache::{Begin, Cache, FillTimes, FillToken};
use nearside::test_support::clock::LaneStamp;
use nearside::test_support::command::GET_ID;
use nearside::test_support::time::Time;

/// What a server says of these commands (6.2 and later).
pub const COMMAND: &[u8] = b"*3\r\n\
    *7\r\n$3\r\nget\r\n:2\r\n*2\r\n+readonly\r\n+fast\r\n:1\r\n:1\r\n:1\r\n*0\r\n\
    *7\r\n$3\r\nset\r\n:-3\r\n*2\r\n+write\r\n+denyoom\r\n:1\r\n:1\r\n:1\r\n*0\r\n\
    *7\r\n$7\r\nhgetall\r\n:2\r\n*1\r\n+readonly\r\n:1\r\n:1\r\n:1\r\n*0\r\n";

/// When everything here happens.
pub const NOW: Time = Time(1_000);

/// A cache, a lane that fills it, and clocks that prove everything.
pub struct Bench {
    pub cache: Arc<Cache>,
    lane: LaneStamp,
    reply: Vec<u8>,
}

impl Bench {
    /// With room for `budget` bytes; replies carry `value` bytes.
    pub fn new(budget: u64, value: usize) -> Bench {
        let cache = Arc::new(Cache::new(budget, 1 << 20));
        let lane = cache.clocks.open_lane(NOW).expect("a lane");
        cache.clocks.advance_link(NOW);
        cache.clocks.advance_lane(lane, NOW);
        let mut bench = Bench { cache, lane, reply: Vec::new() };
        bench.answer_with(value);
        bench
    }

    /// From here on values have this many bytes.
    pub fn answer_with(&mut self, value: usize) {
        self.reply = format!("${value}\r\n{}\r\n", "x".repeat(value)).into_bytes();
    }

    /// Holding the replies to GET of the keys 0 .. `keys`.
    pub fn filled(keys: u64) -> Bench {
        let bench = Bench::new(1 << 32, 64);
        (0..keys).for_each(|n| assert!(bench.fill(&key(n)), "filled"));
        bench
    }

    pub fn begin(&self, key: &[u8]) -> FillToken {
        lead(&self.cache, &get(key))
    }

    pub fn fill(&self, key: &[u8]) -> bool {
        let times = FillTimes { sent: NOW, stored: NOW, deadline: Time::NEVER };
        self.cache.fill(self.begin(key), &get(key), &self.reply, times, self.lane)
    }
}

/// The right to store the reply.
pub fn lead(cache: &Arc<Cache>, variant: &Variant<'_>) -> FillToken {
    match cache.begin(cache.hash(variant.key), variant) {
        Begin::Lead(token) => token,
        Begin::Join(_) => panic!("nobody else reads"),
    }
}

/// 16 bytes, as redis-benchmark's.
pub fn key(n: u64) -> [u8; 16] {
    let mut key = *b"key:000000000000";
    let mut rest = n;
    for digit in key[4..].iter_mut().rev() {
        *digit += (rest % 10) as u8;
        rest /= 10;
    }
    key
}

pub fn get(key: &[u8]) -> Variant<'_> {
    Variant { view: 0, id: GET_ID, key, tail: b"" }
}

/// Keys in an order that no cache line foresees.
pub fn random_keys(count: usize, of: u64) -> Vec<[u8; 16]> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % of
    };
    (0..count).map(|_| key(next())).collect()
}
