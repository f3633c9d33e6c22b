//! The load that redis-benchmark cannot make: reads and writes mixed, keys by Zipf's law or one after another, and the
//! latency of the reads (of the writes, if there is nothing else).
//!
//! `load ADDRESS OPTION=VALUE …`; prints `requests seconds p50_us p99_us p999_us` (latency of a whole pipeline).

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::Instant;

use nearside::test_support::resp::{self, Cutter};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

/// What is asked for.
struct Plan {
    address: String,
    requests: u64,
    connections: u64,
    pipeline: u64,
    keys: u64,
    /// Percent of the requests that are SET.
    writes: f64,
    value: Vec<u8>,
    /// Key numbers by rank, for Zipf: how much of the weight lies at or before each.
    zipf: Option<Vec<f64>>,
    sequential: bool,
}

#[derive(Default)]
struct Seen {
    sent: u64,
    spans_us: Vec<u32>,
}

fn main() -> io::Result<()> {
    let plan = Rc::new(plan(std::env::args().skip(1)).map_err(io::Error::other)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let seen = Rc::new(RefCell::new(Seen::default()));
    let started = Instant::now();
    LocalSet::new().block_on(&runtime, async {
        let clients = (0..plan.connections).map(|n| tokio::task::spawn_local(client(n, plan.clone(), seen.clone())));
        for client in clients.collect::<Vec<_>>() {
            client.await.map_err(io::Error::other)??;
        }
        io::Result::Ok(())
    })?;
    let mut seen = seen.borrow_mut();
    let seconds = started.elapsed().as_secs_f64();
    seen.spans_us.sort_unstable();
    let at = |share: f64| seen.spans_us.get((seen.spans_us.len() as f64 * share) as usize).copied().unwrap_or(0);
    println!("{} {seconds:.3} {} {} {}", seen.sent, at(0.5), at(0.99), at(0.999));
    Ok(())
}

fn plan(mut args: impl Iterator<Item = String>) -> Result<Plan, String> {
    let address = args.next().ok_or("usage: load ADDRESS [requests=N connections=N pipeline=N keys=N writes=PERCENT value=BYTES dist=uniform|zipf|sequential]")?;
    let options: HashMap<String, String> =
        args.filter_map(|a| a.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()))).collect();
    let number = |name: &str, default: f64| match options.get(name) {
        None => Ok(default),
        Some(text) => text.parse::<f64>().map_err(|_| format!("{name}={text} is no number")),
    };
    let keys = number("keys", 100_000.0)? as u64;
    let dist = options.get("dist").map_or("uniform", String::as_str);
    Ok(Plan {
        address,
        requests: number("requests", 100_000.0)? as u64,
        connections: number("connections", 50.0)? as u64,
        pipeline: number("pipeline", 1.0)? as u64,
        keys,
        writes: number("writes", 0.0)?,
        value: vec![b'x'; number("value", 64.0)? as usize],
        zipf: (dist == "zipf").then(|| zipf(keys)),
        sequential: dist == "sequential",
    })
}

fn zipf(keys: u64) -> Vec<f64> {
    let mut sum = 0.0;
    let weights = (1..=keys).map(|rank| {
        sum += (rank as f64).powf(-0.99);
        sum
    });
    weights.collect()
}

/// xorshift: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// In 0 .. 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Plan {
    fn key(&self, random: &mut Random, n: u64) -> u64 {
        match &self.zipf {
            _ if self.sequential => n % self.keys,
            None => random.next() % self.keys,
            Some(weights) => {
                let mark = random.share() * weights.last().copied().unwrap_or(1.0);
                let rank = weights.partition_point(|sum| *sum < mark) as u64;
                // The popular keys do not lie side by side. (The factor is a prime; no rank shares a key.)
                rank.wrapping_mul(1_000_003) % self.keys
            }
        }
    }
}

async fn client(n: u64, plan: Rc<Plan>, seen: Rc<RefCell<Seen>>) -> io::Result<()> {
    let mut stream = TcpStream::connect(&plan.address).await?;
    stream.set_nodelay(true)?;
    let mut random = Random(0x9E37_79B9_7F4A_7C15 ^ (n + 1).wrapping_mul(0xD134_2543_DE82_EF95));
    let mut input = Vec::with_capacity(64 * 1024);
    loop {
        let first = seen.borrow().sent;
        let count = plan.pipeline.min(plan.requests.saturating_sub(first));
        if count == 0 {
            return Ok(());
        }
        seen.borrow_mut().sent += count;
        let mut output = Vec::new();
        let mut reads = 0;
        for i in 0..count {
            let key = format!("key:{:012}", plan.key(&mut random, first + i));
            if random.share() * 100.0 < plan.writes {
                output.extend(resp::encode(&[b"SET".as_slice(), key.as_bytes(), &plan.value]));
            } else {
                output.extend(resp::encode(&[b"GET".as_slice(), key.as_bytes()]));
                reads += 1;
            }
        }
        let started = Instant::now();
        stream.write_all(&output).await?;
        replies(&mut stream, &mut input, count).await?;
        if reads > 0 || plan.writes >= 100.0 {
            seen.borrow_mut().spans_us.push(started.elapsed().as_micros() as u32);
        }
    }
}

async fn replies(stream: &mut TcpStream, input: &mut Vec<u8>, mut count: u64) -> io::Result<()> {
    let mut pos = 0;
    let mut cutter = Cutter::default();
    while count > 0 {
        match cutter.cut(&input[pos..]).map_err(io::Error::other)? {
            Some(len) => {
                if input[pos] == b'-' {
                    return Err(io::Error::other(String::from_utf8_lossy(&input[pos..pos + len]).into_owned()));
                }
                pos += len;
                count -= 1;
            }
            None if stream.read_buf(input).await? == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            None => {}
        }
    }
    input.drain(..pos);
    Ok(())
}
