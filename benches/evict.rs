//! What does a fill cost when the budget is used up and every new reply pushes out old ones?

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};

mod common;
use common::{Bench, key};

fn evict(c: &mut Criterion) {
    let mut group = c.benchmark_group("evict");
    for (name, budget, value) in [("64 B values, 16 MB", 16 << 20, 64), ("64 KiB values, 64 MB", 64 << 20, 65_536)] {
        let bench = Bench::new(budget, value);
        let mut n = 0;
        let mut next = || {
            n += 1;
            key(n)
        };
        while bench.cache.stats.evictions.load(std::sync::atomic::Ordering::Relaxed) == 0 {
            bench.fill(&next());
        }
        group.bench_function(name, |b| b.iter(|| bench.fill(black_box(&next()))));
        assert!(bench.cache.used() <= budget, "the budget is kept");
    }
    group.finish();
}

criterion_group!(benches, evict);
criterion_main!(benches);
