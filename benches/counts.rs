//! How many instructions does each part of the way take? Run under callgrind by `scripts/counts`, which compares with a
//! kept baseline: unlike times, counts do not depend on the neighbours.
//!
//! `counts` names the sections; `counts SECTION` runs one and prints its operations. Callgrind collects in [`counted`]
//! alone, so what prepares a section costs nothing.

use std::future::poll_fn;
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use nearside::config::{Address, Config, Level, ScriptKeys, Upstream};
use nearside::test_support::cache::FillTimes;
use nearside::test_support::clock::LaneStamp;
use nearside::test_support::command::{CommandTable, Keys, Request};
use nearside::test_support::resp::{Scan, Scanner, encode};
use nearside::test_support::session;
use nearside::test_support::shared::{Presence, Shared};
use nearside::test_support::time::Time;
use nearside::test_support::transport::Stream;
use nearside::test_support::upstream::Pool;

mod common;
use common::{Bench, COMMAND, get, key};

/// The release's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keys in the cache.
const KEYS: u64 = 10_000;

/// What callgrind collects.
#[inline(never)]
fn counted<R>(work: impl FnOnce() -> R) -> R {
    black_box(work())
}

/// A section: does its work and returns how many operations that was.
type Section = (&'static str, fn() -> u64);

const SECTIONS: [Section; 11] = [
    ("scan a GET", || scan(&["GET", "key:000000012345"])),
    ("scan a SET", || scan(&["SET", "key:000000012345", "value"])),
    ("plan a GET", || plan(&["GET", "key:000000012345"])),
    ("plan a SET", || plan(&["SET", "key:000000012345", "value"])),
    ("hit, 1 GET at a time", || hits(1, 1_000)),
    ("hit, 16 GETs at a time", || hits(16, 200)),
    ("hit, 100 GETs at a time", || hits(100, 40)),
    ("fill", fill),
    ("drop", drop_cached),
    ("drop what is not cached", drop_unknown),
    ("evict", evict),
];

fn scan(args: &[&str]) -> u64 {
    let bytes = encode(args);
    let mut scanner = Scanner::default();
    let times = 1_000;
    for _ in 0..times {
        let found = counted(|| scanner.scan(black_box(&bytes), 512 << 20));
        assert!(matches!(found, Ok(Scan::Request(len)) if len == bytes.len()));
        scanner.reset();
    }
    times
}

fn plan(args: &[&str]) -> u64 {
    let table = CommandTable::from_command_reply(COMMAND, ScriptKeys::Any).expect("a table");
    let bytes = encode(args);
    let mut scanner = Scanner::default();
    scanner.scan(&bytes, 1 << 20).expect("a request");
    let mut keys = Keys::default();
    let request = Request { buf: &bytes, args: scanner.args(), hash: None };
    let times = 1_000;
    for _ in 0..times {
        counted(|| table.plan(black_box(&request), &mut keys));
    }
    assert_eq!(keys.writes.len() + keys.reads.len(), 1, "one key is known");
    times
}

/// A proxy whose upstream is not there, with a cache that is proven fresh for an hour.
fn shared() -> (Arc<Shared>, LaneStamp) {
    let upstream = Upstream {
        address: Address::Unix("/nobody/is/there".into()),
        username: None,
        password: None,
        db: 0,
        tls: None,
    };
    let config = Config { audit_one_in: 0, ..Config::default() };
    let shared = Arc::new(Shared::new(config, upstream).expect("no certificates to be read"));
    shared.node().logins.suppose_accepted();
    let clocks = &shared.cache.clocks;
    let lane = clocks.open_lane(Time::now()).expect("a lane");
    let later = Time(Time::now().0 + 3_600_000_000_000);
    clocks.advance_link(later);
    clocks.advance_lane(lane, later);
    (shared, lane)
}

/// A session's whole turn: woken, it reads a pipeline of `batch` GETs, answers from the cache, and writes. The kernel's
/// part, the runtime's and the client's are not counted.
fn hits(batch: u64, rounds: u64) -> u64 {
    let (shared, lane) = shared();
    let view = shared.views.view_number(b"default", 0, false);
    let reply = format!("$64\r\n{}\r\n", "x".repeat(64));
    for n in 0..KEYS {
        let key = key(n);
        let variant = nearside::test_support::cache::entry::Variant { view, ..get(&key) };
        let token = common::lead(&shared.cache, &variant);
        let times = FillTimes { sent: Time::now(), stored: Time::now(), deadline: Time::NEVER };
        assert!(shared.cache.fill(token, &variant, reply.as_bytes(), times, lane));
    }
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, turns(&shared, ours, theirs, batch, rounds, reply.len()));
    assert_eq!(shared.cache.stats.hits.load(Ordering::Relaxed), batch * (rounds + 1), "all were hits");
    batch * rounds
}

async fn turns(
    shared: &Arc<Shared>,
    mut client: UnixStream,
    theirs: UnixStream,
    batch: u64,
    rounds: u64,
    reply: usize,
) {
    client.set_nonblocking(true).expect("a socket");
    theirs.set_nonblocking(true).expect("a socket");
    let stream = Stream::Unix(tokio::net::UnixStream::from_std(theirs).expect("a socket"));
    let pool = Rc::new(Pool::new(shared.topology.clone(), shared.capacity.clone()));
    let entered = Presence::enter(shared, String::new(), String::new()).expect("the only client");
    let mut session = pin!(session::run(shared, &pool, stream, entered, Level::Bounded));
    let mut keys = common::random_keys((batch * (rounds + 1)) as usize, KEYS).into_iter();
    let mut ask = |client: &mut UnixStream| {
        let pipeline: Vec<u8> =
            keys.by_ref().take(batch as usize).flat_map(|key| encode(&[b"GET".as_slice(), &key])).collect();
        client.write_all(&pipeline).expect("room for a pipeline");
    };
    let mut answer = vec![0; reply * batch as usize];
    let (mut answered, mut polls) = (0, 0);
    // The first turn finds nothing, the second makes buffers: what follows is counted.
    poll_fn(|cx| {
        let poll = if answered == 0 { session.as_mut().poll(cx) } else { counted(|| session.as_mut().poll(cx)) };
        assert!(poll.is_pending(), "the session goes on");
        polls += 1;
        match client.read(&mut answer) {
            Ok(n) => {
                assert_eq!(n, answer.len(), "one write answers the whole pipeline");
                answered += 1;
            }
            Err(e) => {
                assert!(e.kind() == std::io::ErrorKind::WouldBlock && polls == 1, "{e}: a turn without an answer")
            }
        }
        if answered > rounds {
            return Poll::Ready(());
        }
        ask(&mut client);
        Poll::Pending
    })
    .await;
}

fn fill() -> u64 {
    let bench = Bench::new(1 << 32, 64);
    for n in 0..KEYS {
        counted(|| assert!(bench.fill(&key(n))));
    }
    KEYS
}

fn drop_cached() -> u64 {
    let bench = Bench::filled(KEYS);
    for n in 0..KEYS {
        let hash = bench.cache.hash(&key(n));
        assert!(counted(|| bench.cache.drop_key(hash)));
    }
    KEYS
}

fn drop_unknown() -> u64 {
    let bench = Bench::filled(KEYS);
    for n in KEYS..2 * KEYS {
        let hash = bench.cache.hash(&key(n));
        assert!(!counted(|| bench.cache.drop_key(hash)));
    }
    KEYS
}

/// A fill that pushes out another reply.
fn evict() -> u64 {
    let bench = Bench::new(2 << 20, 64);
    let evicted = || bench.cache.stats.evictions.load(Ordering::Relaxed);
    let mut n = 0;
    while evicted() < KEYS {
        n += 1;
        bench.fill(&key(n));
    }
    let before = evicted();
    for n in n + 1..=n + KEYS {
        counted(|| bench.fill(&key(n)));
    }
    let made = evicted() - before;
    assert!(made.abs_diff(KEYS) < KEYS / 100, "each fill pushed out one: {made}");
    KEYS
}

fn main() {
    let wanted: Option<String> = std::env::args().nth(1).filter(|arg| !arg.starts_with("--"));
    let Some(wanted) = wanted else {
        return SECTIONS.iter().for_each(|(name, _)| println!("{name}"));
    };
    let (_, run) = SECTIONS.iter().find(|(name, _)| *name == wanted).expect("a section's name");
    println!("{}", run());
}
