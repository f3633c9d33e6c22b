//! How long does it take to know what a request needs?

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use nearside::config::ScriptKeys;
use nearside::test_support::command::{CommandTable, Keys, Request};
use nearside::test_support::resp::{Scanner, encode};

mod common;
use common::COMMAND;

fn plan(c: &mut Criterion) {
    let table = CommandTable::from_command_reply(COMMAND, ScriptKeys::Any).expect("a table");
    let requests: [(&str, &[&str]); 4] = [
        ("GET", &["GET", "key:000000012345"]),
        ("get", &["get", "key:000000012345"]),
        ("HGETALL", &["HGETALL", "key:000000012345"]),
        ("SET", &["SET", "key:000000012345", "value"]),
    ];
    let mut group = c.benchmark_group("plan");
    for (name, args) in requests {
        let bytes = encode(args);
        let mut scanner = Scanner::default();
        scanner.scan(&bytes, 1 << 20).expect("a request");
        let mut keys = Keys::default();
        let request = Request { buf: &bytes, args: scanner.args(), hash: None };
        group.bench_function(name, |b| b.iter(|| table.plan(black_box(&request), &mut keys)));
        assert_eq!(keys.writes.len() + keys.reads.len(), 1, "{name}: one key is known");
    }
    group.finish();
}

criterion_group!(benches, plan);
criterion_main!(benches);
