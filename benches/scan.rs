//! How long does it take to find a client's requests in its bytes?

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nearside::test_support::resp::{Scan, Scanner, encode};

const MAX_BULK: usize = 512 << 20;

fn scan_all(scanner: &mut Scanner, mut bytes: &[u8]) -> usize {
    let mut args = 0;
    while !bytes.is_empty() {
        let Ok(Scan::Request(len)) = scanner.scan(bytes, MAX_BULK) else { panic!("whole requests only") };
        args += black_box(scanner.args()).len();
        bytes = &bytes[len..];
        scanner.reset();
    }
    args
}

fn scan(c: &mut Criterion) {
    let key = "key:000000012345";
    let get = encode(&["GET", key]);
    let set = encode(&["SET", key, &"x".repeat(64)]);
    let hmget = encode(&["HMGET", key, "name", "mail", "seen", "role"]);
    let (get16, get100) = (get.repeat(16), get.repeat(100));
    let mut group = c.benchmark_group("scan");
    let cases =
        [("GET", get, 1), ("SET", set, 1), ("HMGET", hmget, 1), ("GET x16", get16, 16), ("GET x100", get100, 100)];
    for (name, bytes, requests) in cases {
        let mut scanner = Scanner::default();
        group.throughput(Throughput::Elements(requests));
        group.bench_function(name, |b| b.iter(|| scan_all(&mut scanner, black_box(&bytes))));
    }
    group.finish();
}

criterion_group!(benches, scan);
criterion_main!(benches);
