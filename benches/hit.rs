//! What does one hit cost: the key hashed, found, judged, its reply copied to where it is written from? One by one; the
//! difference between the sizes is memory latency, which the batch hides.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nearside::test_support::buffer::OutBuf;
use nearside::test_support::cache::{Cache, Lookup};

mod common;
use common::{Bench, NOW, get, random_keys};

/// Replies copied before the buffer is written.
const BATCH: usize = 100;

fn hit(cache: &Cache, key: &[u8], out: &mut OutBuf) {
    let found = cache.lookup(cache.hash(key), &get(key), NOW, NOW, |node| out.push(node.reply()));
    assert!(matches!(found, Lookup::Hit(())));
}

fn hits(c: &mut Criterion) {
    let mut group = c.benchmark_group("hit");
    for (name, keys) in [("10k keys", 10_000), ("1M keys", 1_000_000)] {
        let bench = Bench::filled(keys);
        let asked = random_keys(1 << 20, keys);
        let mut order = asked.iter().cycle();
        let mut out = OutBuf::default();
        group.bench_function(name, |b| {
            b.iter(|| {
                hit(&bench.cache, black_box(order.next().expect("it goes round")), &mut out);
                if out.len() > BATCH * 64 {
                    out.advance(out.len());
                }
            });
        });
    }
    group.finish();
}

fn batches(c: &mut Criterion) {
    let mut group = c.benchmark_group("hit, batch of 16");
    for (name, keys) in [("10k keys", 10_000), ("1M keys", 1_000_000)] {
        let bench = Bench::filled(keys);
        let asked = random_keys(1 << 20, keys);
        let mut order = asked.chunks_exact(16).cycle();
        let mut out = OutBuf::default();
        group.throughput(Throughput::Elements(16));
        for (how, ahead) in [("one by one", false), ("prefetched", true)] {
            group.bench_function(format!("{name}, {how}"), |b| {
                b.iter(|| {
                    let batch = black_box(order.next().expect("it goes round"));
                    let hashes: [u64; 16] = std::array::from_fn(|i| bench.cache.hash(&batch[i]));
                    if ahead {
                        bench.cache.prefetch(hashes.iter().copied());
                    }
                    batch.iter().for_each(|key| hit(&bench.cache, key, &mut out));
                    out.advance(out.len());
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, hits, batches);
criterion_main!(benches);
