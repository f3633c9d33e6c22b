//! Do threads that hit the same cache slow each other down? Time per hit of each thread; equal times mean no.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use nearside::test_support::cache::Lookup;

mod common;
use common::{Bench, NOW, get, random_keys};

fn hits(bench: &Bench, keys: &[[u8; 16]], iterations: u64) {
    for key in keys.iter().cycle().take(iterations as usize) {
        let found = bench.cache.lookup(bench.cache.hash(key), &get(key), NOW, NOW, |node| node.reply().len());
        assert!(matches!(found, Lookup::Hit(_)));
    }
}

/// The time of the slowest of `threads`, each of which does all the iterations.
fn race(bench: &Bench, threads: usize, keys: u64, iterations: u64) -> Duration {
    let start = Barrier::new(threads);
    let timed = |n: usize| {
        let keys = random_keys(1 << 16, keys);
        let (before, after) = keys.split_at(n * 1_000);
        let keys = [after, before].concat();
        start.wait();
        let started = Instant::now();
        hits(bench, &keys, iterations);
        started.elapsed()
    };
    std::thread::scope(|scope| {
        let timed = &timed;
        let racers: Vec<_> = (0..threads).map(|n| scope.spawn(move || timed(n))).collect();
        racers.into_iter().filter_map(|racer| racer.join().ok()).max().unwrap_or_default()
    })
}

fn contention(c: &mut Criterion) {
    let bench = Bench::filled(100_000);
    let mut group = c.benchmark_group("contention");
    for (name, threads, keys) in [
        ("1 thread, 100k keys", 1, 100_000),
        ("2 threads, 100k keys", 2, 100_000),
        ("1 thread, 1 key", 1, 1),
        ("2 threads, 1 key", 2, 1),
    ] {
        group.bench_function(name, |b| b.iter_custom(|iterations| race(&bench, threads, keys, iterations)));
    }
    group.finish();
}

criterion_group!(benches, contention);
criterion_main!(benches);
