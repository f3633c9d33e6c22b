//! Which share of reads is answered, beside moka with equal bytes? `cargo bench --features ratio --bench ratio`
//!
//! Every read that misses fills. Weights are nearside's own (allocation, table, queue), for both. moka may think after
//! each fill, so that it is never over its budget. Traces of one's own follow as arguments: `ratio -- FILE …`; then only they
//! are replayed. A file has a key a line; or, if its name ends in `.lis`, the ARC paper's four numbers: first block, how many,
//! two ignored; or, if it ends in `.csv`, libCacheSim's columns: time, key, size, others.

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};

use nearside::test_support::cache::Lookup;

mod common;
use common::{Bench, NOW, get};

/// What is read: a number, and the bytes of its value. A written key leaves the cache, and nothing is read.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Read {
    key: u64,
    size: u32,
    written: bool,
}

/// Of the bytes of everything that a trace reads.
const SHARES: [f64; 5] = [0.01, 0.03, 0.1, 0.3, 0.5];
/// The least budget that says something: nearside's shards have their own queues.
const LEAST: u64 = 64 << 10;

/// Makes a trace.
type Maker = fn() -> Vec<Read>;

fn main() {
    let files = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let own: Vec<(String, Vec<Read>)> = files.map(|path| (path.clone(), from_file(&path))).collect();
    println!("| trace | reads | keys | budget | nearside | moka | difference |\n|---|---|---|---|---|---|---|");
    let made: [(&str, Maker); 9] = [
        ("Zipf 0.99", || zipf(Mix::default())),
        ("Zipf 0.99, a scan of 20,000 keys in every 100,000 reads", || zipf(Mix { scan: 20_000, ..Mix::default() })),
        ("Zipf 0.99, scans of 100,000 keys", || zipf(Mix { scan: 100_000, ..Mix::default() })),
        ("Zipf 0.99, other keys grow popular", || zipf(Mix { drift: 2_000, ..Mix::default() })),
        ("Zipf 0.99, values of 64 B to 64 KiB", || zipf(Mix { sizes: true, ..Mix::default() })),
        ("Zipf 0.99, one in 20 is a write", || zipf(Mix { writes: 20, ..Mix::default() })),
        ("Zipf 0.7", || zipf(Mix { skew: 0.7, ..Mix::default() })),
        ("a loop over 20,000 keys, and Zipf 0.99", looped),
        ("the same after 500,000 reads of other keys", || after_others(looped())),
    ];
    if own.is_empty() {
        made.iter().for_each(|(name, make)| compare(name, &make()));
    }
    own.iter().for_each(|(name, trace)| compare(name.rsplit('/').next().unwrap_or(name), trace));
}

fn compare(name: &str, trace: &[Read]) {
    let weights = weights(trace);
    let all: HashMap<u64, u32> = trace.iter().map(|read| (read.key, read.size)).collect();
    let total: u64 = all.values().map(|size| weights[size]).sum();
    let mut before = 0;
    for share in SHARES {
        let budget = ((total as f64 * share) as u64).max(LEAST);
        if budget == before || budget >= total {
            continue;
        }
        before = budget;
        let (ours, theirs) = (nearside(trace, budget), moka(trace, &weights, budget));
        println!(
            "| {name} | {} | {} | {:.2} MiB = {:.0} % | {:.2} % | {:.2} % | {:+.2} |",
            reads(trace),
            all.len(),
            budget as f64 / f64::from(1 << 20),
            budget as f64 / total as f64 * 100.0,
            ours * 100.0,
            theirs * 100.0,
            (ours - theirs) * 100.0
        );
    }
}

/// What nearside charges for a value of each size.
fn weights(trace: &[Read]) -> HashMap<u32, u64> {
    let sizes: HashSet<u32> = trace.iter().map(|read| read.size).collect();
    let weigh = |size: u32| {
        let bench = Bench::new(1 << 32, size as usize);
        bench.fill(&0u128.to_be_bytes());
        (size, bench.cache.used())
    };
    sizes.into_iter().map(weigh).collect()
}

fn nearside(trace: &[Read], budget: u64) -> f64 {
    let mut bench = Bench::new(budget, 0);
    let mut hits = 0;
    for read in trace {
        let key = u128::from(read.key).to_be_bytes();
        if read.written {
            bench.cache.drop_key(bench.cache.hash(&key));
            continue;
        }
        match bench.cache.lookup(bench.cache.hash(&key), &get(&key), NOW, NOW, |node| node.reply().len()) {
            Lookup::Hit(_) => hits += 1,
            _ => {
                bench.answer_with(read.size as usize);
                bench.fill(&key);
            }
        }
    }
    assert!(bench.cache.used() <= budget, "the budget is kept");
    f64::from(hits) / reads(trace) as f64
}

fn reads(trace: &[Read]) -> usize {
    trace.iter().filter(|read| !read.written).count()
}

fn moka(trace: &[Read], weights: &HashMap<u32, u64>, budget: u64) -> f64 {
    let weights = weights.clone();
    let cache = moka::sync::Cache::builder()
        .max_capacity(budget)
        .weigher(move |_: &u64, size: &u32| u32::try_from(weights[size]).unwrap_or(u32::MAX))
        .build();
    let mut hits = 0;
    for read in trace {
        if read.written {
            cache.invalidate(&read.key);
        } else if cache.get(&read.key).is_some() {
            hits += 1;
        } else {
            cache.insert(read.key, read.size);
            cache.run_pending_tasks();
        }
    }
    assert!(cache.weighted_size() <= budget, "the budget is kept");
    f64::from(hits) / reads(trace) as f64
}

/// How a trace of a million reads is mixed.
struct Mix {
    skew: f64,
    /// New keys read once each, one after another, within every 100,000 reads.
    scan: u64,
    /// By how many ranks the keys move within every 100,000 reads.
    drift: u64,
    /// Values of many sizes.
    sizes: bool,
    /// One in so many is a write.
    writes: u64,
}

impl Default for Mix {
    fn default() -> Mix {
        Mix { skew: 0.99, scan: 0, drift: 0, sizes: false, writes: u64::MAX }
    }
}

const READS: u64 = 1_000_000;
const POPULAR: u64 = 100_000;
const ROUND: u64 = 100_000;

/// xorshift: the same numbers in every run.
struct Random(u64);

impl Random {
    fn share(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn ranks(keys: u64, skew: f64) -> impl FnMut() -> u64 {
    let mut sum = 0.0;
    let weights: Vec<f64> = (1..=keys)
        .map(|rank| {
            sum += (rank as f64).powf(-skew);
            sum
        })
        .collect();
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    move || {
        let mark = random.share() * sum;
        weights.partition_point(|up_to| *up_to < mark) as u64
    }
}

fn zipf(mix: Mix) -> Vec<Read> {
    let mut rank = ranks(POPULAR, mix.skew);
    let mut trace = Vec::new();
    for n in 0..READS {
        let (round, at) = (n / ROUND, n % ROUND);
        // A scan is not a block: others read on meanwhile.
        if at < mix.scan {
            trace.push(of(1 << 40 | (round * mix.scan + at), mix.sizes));
        }
        let read = of(rank() + round * mix.drift, mix.sizes);
        trace.push(Read { written: n % mix.writes == mix.writes - 1, ..read });
    }
    trace
}

/// A loop that LRU never hits, among reads that it does.
fn looped() -> Vec<Read> {
    let mut rank = ranks(POPULAR, 0.99);
    (0..READS).map(|n| of(if n % 2 == 0 { 1 << 40 | (n / 2 % 20_000) } else { rank() }, false)).collect()
}

/// The cache is full of what nobody reads any more.
fn after_others(trace: Vec<Read>) -> Vec<Read> {
    let mut rank = ranks(POPULAR, 0.99);
    let others = (0..READS / 2).map(|_| of(1 << 41 | rank(), false));
    others.chain(trace).collect()
}

fn of(key: u64, sizes: bool) -> Read {
    // As many keys of each power of two; the popular ones are not the small ones.
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    key.hash(&mut hasher);
    Read { key, size: if sizes { 64 << (hasher.finish() % 11) } else { 64 }, written: false }
}

fn from_file(path: &str) -> Vec<Read> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let blocks = |line: &str| {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [first, count, ..] = numbers[..] else { panic!("{path}: no line of an ARC trace: {line}") };
        first..first + count
    };
    if path.ends_with(".lis") {
        return text.lines().flat_map(blocks).map(|key| of(key, false)).collect();
    }
    if path.ends_with(".csv") {
        let request = |line: &str| {
            let mut columns = line.split(',').skip(1).map(|column| column.trim().parse::<u64>());
            let (Some(Ok(key)), Some(Ok(size))) = (columns.next(), columns.next()) else { panic!("{path}: {line}") };
            Read { size: u32::try_from(size).unwrap_or(u32::MAX), ..of(key, false) }
        };
        return text.lines().filter(|line| !line.starts_with('#')).map(request).collect();
    }
    let mut numbers: HashMap<&str, u64> = HashMap::new();
    let mut number = |line| {
        let next = numbers.len() as u64;
        *numbers.entry(line).or_insert(next)
    };
    text.lines().map(|line| of(number(line), false)).collect()
}
