//! What does it cost to keep a reply: announced, stored, queued for eviction?

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

mod common;
use common::{Bench, key};

fn fill(c: &mut Criterion) {
    let mut group = c.benchmark_group("fill");
    group.bench_function("new key", |b| {
        let mut n = 0;
        b.iter_batched_ref(
            || Bench::new(1 << 32, 64),
            |bench| {
                for _ in 0..1_000 {
                    n += 1;
                    assert!(bench.fill(black_box(&key(n))));
                }
            },
            BatchSize::PerIteration,
        );
    });
    let bench = Bench::filled(10_000);
    let mut n = 0;
    group.bench_function("known key", |b| {
        b.iter(|| {
            n = (n + 7) % 10_000;
            bench.fill(black_box(&key(n)))
        });
    });
    group.finish();
}

criterion_group!(benches, fill);
criterion_main!(benches);
