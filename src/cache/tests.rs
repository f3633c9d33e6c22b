use std::sync::atomic::AtomicU64;

use super::*;
use std::collections::HashSet;
use std::time::Duration;

const LATER: Time = Time(u64::MAX - 1);

struct CacheBench {
    cache: Arc<Cache>,
    lane: LaneStamp,
}

fn bench(budget: u64) -> CacheBench {
    let cache = Arc::new(Cache::new(budget, 1 << 20));
    let lane = cache.clocks.open_lane(Time(1)).expect("a lane");
    cache.clocks.advance_link(Time(100));
    cache.clocks.advance_lane(lane, Time(100));
    CacheBench { cache, lane }
}

fn get(key: &str) -> Variant<'_> {
    Variant { view: 0, id: 1, key: key.as_bytes(), tail: b"" }
}

fn field<'a>(key: &'a str, tail: &'a str) -> Variant<'a> {
    Variant { view: 0, id: 7, key: key.as_bytes(), tail: tail.as_bytes() }
}

impl CacheBench {
    fn token(&self, v: &Variant<'_>) -> FillToken {
        match self.cache.begin(self.cache.hash(v.key), v) {
            Begin::Lead(token) => token,
            Begin::Join(_) => panic!("somebody else is reading"),
        }
    }

    fn fill_at(&self, token: FillToken, v: &Variant<'_>, reply: &str, sent: u64, stored: u64) -> bool {
        let times = FillTimes { sent: Time(sent), stored: Time(stored), deadline: Time::NEVER };
        self.cache.fill(token, v, reply.as_bytes(), times, self.lane)
    }

    fn put(&self, v: &Variant<'_>, reply: &str) -> bool {
        self.fill_at(self.token(v), v, reply, 10, 20)
    }

    fn read(&self, v: &Variant<'_>, watermark: u64) -> Result<String, &'static str> {
        let text = |cached: &CachedReply| String::from_utf8_lossy(cached.reply()).into_owned();
        match self.cache.lookup(self.cache.hash(v.key), v, Time(50), Time(watermark), text) {
            Lookup::Hit(reply) => Ok(reply),
            Lookup::Behind(_) => Err("behind"),
            Lookup::Miss => Err("miss"),
        }
    }

    fn drop_key(&self, key: &str) {
        self.cache.drop_key(self.cache.hash(key.as_bytes()));
    }
}

#[test]
fn what_was_filled_is_found_by_exactly_the_same_read() {
    let b = bench(1 << 20);
    assert!(b.put(&get("k"), "v"));
    assert_eq!(b.read(&get("k"), 90), Ok("v".into()));
    assert_eq!(b.read(&get("K"), 90), Err("miss"));
    assert_eq!(b.read(&Variant { view: 1, ..get("k") }, 90), Err("miss"), "another user, database or protocol");
    assert_eq!(b.read(&Variant { id: 2, ..get("k") }, 90), Err("miss"), "another command");
    assert_eq!(b.read(&Variant { tail: b"$1\r\n0\r\n", ..get("k") }, 90), Err("miss"), "other arguments");
}

#[test]
fn a_token_is_revoked_by_whatever_makes_its_reply_doubtful() {
    let revokers: [fn(&CacheBench); 2] = [|b| b.drop_key("k"), |b| b.cache.flush(FlushCause::Command)];
    for revoke in revokers {
        let b = bench(1 << 20);
        let token = b.token(&get("k"));
        revoke(&b);
        assert!(!b.fill_at(token, &get("k"), "old", 10, 20));
        assert_eq!(b.read(&get("k"), 0), Err("miss"));
        assert_eq!(b.cache.stats.revoked.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn all_replies_of_a_key_go_with_one_drop() {
    let b = bench(1 << 20);
    for f in ["a", "b", "c"] {
        assert!(b.put(&field("h", f), f));
    }
    assert!(b.put(&get("other"), "v"));
    b.drop_key("h");
    for f in ["a", "b", "c"] {
        assert_eq!(b.read(&field("h", f), 0), Err("miss"));
    }
    assert_eq!(b.read(&get("other"), 90), Ok("v".into()));
    assert_eq!((b.cache.keys(), b.cache.replies()), (1, 1));
}

#[test]
fn a_table_that_grows_loses_no_reply() {
    let b = bench(1 << 30);
    let keys: Vec<String> = (0..5_000).map(|n| format!("h{n}")).collect();
    for (n, key) in keys.iter().enumerate() {
        assert!(b.put(&get(key), key));
        if n % 2 == 0 {
            assert!(b.put(&field(key, "f"), "f"));
        }
        if n % 3 == 0 {
            b.drop_key(&keys[n / 2]);
        }
    }
    let dropped: HashSet<usize> = (0..keys.len()).step_by(3).map(|n| n / 2).collect();
    for (n, key) in keys.iter().enumerate() {
        let is = |there: bool, reply: &str| if there { Ok(reply.into()) } else { Err("miss") };
        assert_eq!(b.cache.explain(&get(key), Time(50), Time(0)).is_ok(), !dropped.contains(&n), "{key}");
        assert_eq!(b.cache.replies_of(key.as_bytes()), if dropped.contains(&n) { 0 } else { 2 - n % 2 }, "{key}");
        assert_eq!(b.read(&field(key, "f"), 20), is(n % 2 == 0 && !dropped.contains(&n), "f"), "{key}");
    }
    assert_eq!(b.cache.keys(), keys.len() - dropped.len());
}

#[test]
fn a_flush_and_a_lost_lane_void_everything_at_once() {
    let b = bench(1 << 20);
    b.put(&get("k"), "v");
    b.cache.flush(FlushCause::LinkLost);
    assert_eq!(b.read(&get("k"), 0), Err("miss"));
    b.put(&get("k"), "v");
    assert_eq!(b.read(&get("k"), 0), Ok("v".into()));
    b.cache.clocks.close_lane(b.lane);
    assert_eq!(b.read(&get("k"), 0), Err("miss"));
    b.cache.sweep(Time(50));
    assert_eq!((b.cache.keys(), b.cache.used()), (0, 0));
}

#[test]
fn a_hit_waits_for_the_slower_of_link_and_lane() {
    let b = bench(1 << 20);
    b.put(&get("k"), "v");
    assert_eq!(b.read(&get("k"), 101), Err("behind"));
    b.cache.clocks.advance_link(Time(200));
    assert_eq!(b.read(&get("k"), 101), Err("behind"), "the lane may have died since");
    b.cache.clocks.advance_lane(b.lane, Time(200));
    assert_eq!(b.read(&get("k"), 101), Ok("v".into()));
    b.cache.clocks.stop_link();
    assert_eq!(b.read(&get("k"), 1), Err("behind"), "a link that is down proves nothing");
}

#[test]
fn nothing_is_served_past_its_deadline() {
    let b = bench(1 << 20);
    const MS: u64 = 1_000_000;
    const HOUR: u64 = 3_600_000 * MS;
    let at = |key, now: u64| {
        let found = b.cache.lookup(b.cache.hash(get(key).key), &get(key), Time(now), Time(0), |_| ());
        matches!(found, Lookup::Hit(()))
    };
    // (deadline, when it is still served, when it no longer is): the last is longer than can be kept.
    let cases = [("a", 50 * MS, 49 * MS), ("b", 5 * MS + 1, 5 * MS - MS / 10), ("c", 100 * HOUR, 78 * HOUR)];
    for (key, deadline, before) in cases {
        let times = FillTimes { sent: Time(10), stored: Time(20), deadline: Time(deadline) };
        b.cache.fill(b.token(&get(key)), &get(key), b"v", times, b.lane);
        assert!(at(key, before), "{key}");
        assert!(!at(key, deadline), "{key}");
    }
    let times = FillTimes { sent: Time(10), stored: Time(MS), deadline: Time(MS / 2) };
    b.cache.fill(b.token(&get("late")), &get("late"), b"v", times, b.lane);
    assert!(!at("late", MS), "its reply came when it was over");
}

#[test]
fn a_small_reply_takes_one_small_allocation() {
    let b = bench(1 << 20);
    b.put(&get("a key of 16 byte"), &"x".repeat(71));
    assert_eq!(b.cache.used(), 160 + 18 + 24);
}

#[test]
fn replies_of_one_key_do_not_contradict_each_other_in_time() {
    let b = bench(1 << 20);
    // The field is read, then (having waited on its way) the whole hash arrives and may show something newer.
    b.fill_at(b.token(&field("h", "f")), &field("h", "f"), "f=1", 10, 20);
    b.fill_at(b.token(&get("h")), &get("h"), "all", 30, 150);
    assert_eq!(b.read(&get("h"), 90), Ok("all".into()), "the latest needs no proof beyond its own");
    assert_eq!(b.read(&field("h", "f"), 90), Err("behind"), "the older one must be proven as of 150");
    b.cache.clocks.advance_link(Time(150));
    b.cache.clocks.advance_lane(b.lane, Time(150));
    assert_eq!(b.read(&field("h", "f"), 90), Ok("f=1".into()));
}

#[test]
fn a_late_reply_is_no_newer_than_what_overtook_it() {
    let b = bench(1 << 20);
    let late = b.token(&field("h", "f"));
    b.fill_at(b.token(&get("h")), &get("h"), "all", 30, 150);
    assert!(b.fill_at(late, &field("h", "f"), "f=1", 10, 160));
    assert_eq!(b.read(&field("h", "f"), 90), Err("behind"));
}

#[test]
fn what_was_told_past_the_cache_raises_the_floor() {
    let b = bench(1 << 20);
    b.put(&get("k"), "v");
    b.cache.observe(b.cache.hash(b"k"), Time(150));
    assert_eq!(b.read(&get("k"), 90), Err("behind"));
    b.cache.clocks.advance_link(Time(150));
    b.cache.clocks.advance_lane(b.lane, Time(150));
    assert_eq!(b.read(&get("k"), 90), Ok("v".into()));
}

#[test]
fn a_fill_sent_before_something_newer_was_told_must_be_proven() {
    let b = bench(1 << 20);
    let token = b.token(&get("k"));
    b.cache.observe(b.cache.hash(b"k"), Time(150));
    assert!(b.fill_at(token, &get("k"), "v", 10, 160), "it is not revoked, or a hot key would never be kept");
    assert_eq!(b.read(&get("k"), 90), Err("behind"));
    b.cache.clocks.advance_link(Time(150));
    b.cache.clocks.advance_lane(b.lane, Time(150));
    assert_eq!(b.read(&get("k"), 90), Ok("v".into()));
}

#[test]
fn an_evicted_reply_is_not_forgotten_by_an_older_one_on_its_way() {
    let b = bench(300);
    let late = b.token(&field("h", "f"));
    b.fill_at(b.token(&get("h")), &get("h"), "all", 30, 60);
    // Each shard evicts its own first, so some key must share the shard.
    let evicted = (0..10_000).any(|n| {
        b.put(&get(&n.to_string()), "v");
        b.cache.explain(&get("h"), Time(50), Time(0)) == Err(Absence::NotCached)
    });
    assert!(evicted);
    b.fill_at(late, &field("h", "f"), "f=1", 10, 70);
    let found = b.cache.explain(&field("h", "f"), Time(80), Time(0));
    let floor = Absence::Behind(MissingProof { time: Time(60), lane: b.lane });
    assert!(found != Ok(()) || b.cache.clocks.link() >= Time(60), "{found:?}");
    b.cache.clocks.stop_link();
    assert_eq!(b.cache.explain(&field("h", "f"), Time(80), Time(0)), Err(floor));
}

#[test]
fn a_flight_is_joined_until_it_lands_or_is_revoked() {
    let b = bench(1 << 20);
    let hash = b.cache.hash(b"k");
    let token = b.token(&get("k"));
    assert!(matches!(b.cache.begin(hash, &get("k")), Begin::Join(_)));
    b.drop_key("k");
    let second = b.token(&get("k"));
    drop(token);
    assert!(matches!(b.cache.begin(hash, &get("k")), Begin::Join(_)), "the old token's end is not the new one's");
    drop(second);
    assert_eq!(b.cache.flights(), 0);
}

#[test]
fn the_budget_is_kept_and_the_accounts_balance() {
    let b = bench(100_000);
    for n in 0..5_000 {
        let key = format!("key:{n}");
        assert!(b.put(&get(&key), &"x".repeat(n % 200)));
        if n % 7 == 0 {
            assert!(b.put(&field(&key, "f"), "y"));
        }
        if n % 11 == 0 {
            b.drop_key(&key);
        }
        assert!(b.cache.used() <= 100_000, "{} bytes at {n}", b.cache.used());
    }
    assert!(b.cache.stats.evictions.load(Ordering::Relaxed) > 1_000);
    assert!(b.cache.used() > 80_000, "it is used: {}", b.cache.used());
    b.cache.flush(FlushCause::Admin);
    b.cache.sweep(LATER);
    assert_eq!((b.cache.used(), b.cache.keys(), b.cache.replies()), (0, 0, 0));
}

/// A write makes room that whoever fills next takes. Had the written key's own share to make room for the key's return, it
/// would shrink at every write, until nothing else of it were cached.
#[test]
fn a_share_whose_key_is_written_often_does_not_starve() {
    let b = bench(1 << 20);
    let hot = "written often";
    let share = b.cache.share(b.cache.hash(hot.as_bytes()));
    for n in 0..20_000 {
        b.put(&get(&format!("key {n}")), "v");
    }
    let before = share.replies();
    assert!(before > 20, "{before}: there is something to lose");
    for n in 20_000..22_000 {
        b.drop_key(hot);
        b.put(&get(&format!("key {n}")), "v");
        b.put(&get(hot), "v");
    }
    assert!(share.replies() > before / 2, "{} replies of {before} are left", share.replies());
    assert!(b.cache.used() <= b.cache.budget());
}

#[test]
fn a_reply_above_max_entry_is_not_kept() {
    let cache = Arc::new(Cache::new(1 << 20, 100));
    let lane = cache.clocks.open_lane(Time(1)).expect("a lane");
    let Begin::Lead(token) = cache.begin(cache.hash(b"k"), &get("k")) else { panic!("nobody else reads") };
    let times = FillTimes { sent: Time(1), stored: Time(2), deadline: Time::NEVER };
    assert!(!cache.fill(token, &get("k"), &[b'x'; 100], times, lane));
    assert_eq!(cache.used(), 0);
}

/// The race of invariant 1: fills and drops of one key from two threads. After the last drop nothing may be left that
/// was begun before it.
#[test]
fn a_fill_never_survives_a_drop_that_came_after_its_begin() {
    let b = Arc::new(bench(1 << 20));
    let stop = std::time::Instant::now() + Duration::from_millis(300);
    let hash = b.cache.hash(b"k");
    let version = Arc::new(AtomicU64::new(0));
    let dropper = std::thread::spawn({
        let (b, version) = (b.clone(), version.clone());
        move || {
            while std::time::Instant::now() < stop {
                // The write takes effect, then the invalidation is applied.
                version.fetch_add(1, Ordering::SeqCst);
                b.cache.drop_key(hash);
                let now = version.load(Ordering::SeqCst);
                if let Ok(seen) = b.read(&get("k"), 0) {
                    assert_eq!(seen, now.to_string(), "an older value survived the drop");
                }
            }
        }
    });
    let mut filled = 0;
    while std::time::Instant::now() < stop {
        let Begin::Lead(token) = b.cache.begin(hash, &get("k")) else { continue };
        let value = version.load(Ordering::SeqCst).to_string();
        filled += u64::from(b.fill_at(token, &get("k"), &value, 10, 20));
    }
    dropper.join().expect("no violation");
    assert!(filled > 100, "{filled} fills");
}
