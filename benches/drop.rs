//! What does an invalidation cost, of a key that is cached and of one that is not?

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

mod common;
use common::{Bench, key};

fn drop_key(c: &mut Criterion) {
    let mut group = c.benchmark_group("drop");
    let bench = Bench::filled(10_000);
    let mut n = 0;
    group.bench_function("cached", |b| {
        b.iter_batched(
            || {
                n = (n + 7) % 10_000;
                bench.fill(&key(n));
                bench.cache.hash(&key(n))
            },
            |hash| bench.cache.drop_key(black_box(hash)),
            BatchSize::SmallInput,
        );
    });
    let other = bench.cache.hash(b"nobody read it");
    group.bench_function("unknown", |b| b.iter(|| bench.cache.drop_key(black_box(other))));
    group.finish();
}

criterion_group!(benches, drop_key);
criterion_main!(benches);
