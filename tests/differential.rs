//! Random command streams against a bare server and through the proxy over its twin, compared frame by frame.
//!
//! All types, wrong types, wrong arity, RESP2 and RESP3, pipelines, transactions, databases, several sessions. A failure
//! prints the seed and the batch; `NEARSIDE_SEED=n` replays it. `NEARSIDE_DIFFERENTIAL_SECONDS` sets how long (60);
//! `NEARSIDE_DIFFERENTIAL_SERVER` names another server program than `redis-server` for the twins.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod servers;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use servers::{Process, start};

use nearside::test_support::resp::{self, Cutter};

/// One command each. `k` a key, `v` a value, `f` a field, `n` a small number, `s` a score, `i` an index; other words as they are.
const TEMPLATES: &str = "
SET k v|SET k n|SET k v NX|SET k v XX GET|SET k v EX 1000|SET k v KEEPTTL|SETNX k v|GETSET k v|GETDEL k|GETEX k PERSIST|MSET k v k v k n|MSETNX k v k v
GET k|GET k|GET k|GET k|GET k|MGET k k k|MGET k k|MGET k|STRLEN k|GETRANGE k i i|SUBSTR k i i|SETRANGE k n v|APPEND k v
INCR k|DECR k|INCRBY k n|DECRBY k i|INCRBYFLOAT k s|EXISTS k|EXISTS k k|TYPE k|TYPE k|DEL k|DEL k k|UNLINK k|TOUCH k k|RENAME k k|RENAMENX k k|COPY k k|COPY k k REPLACE|MOVE k n
EXPIRE k 1000|PERSIST k|EXPIRE k i NX|PEXPIRE k 3000000 XX|EXPIREAT k 99999999999|DBSIZE|OBJECT REFCOUNT k
SETBIT k n 1|GETBIT k n|GETBIT k n|BITCOUNT k|BITCOUNT k i i|BITPOS k 1|BITPOS k 0 i|BITFIELD k SET u8 n n GET u4 n|BITFIELD k INCRBY i5 n 1|BITFIELD_RO k GET u8 n|BITOP AND k k k|BITOP NOT k k
HSET k f v|HSET k f v f n|HSETNX k f v|HGET k f|HGET k f|HGET k f|HMGET k f f|HMGET k f|HGETALL k|HGETALL k|HDEL k f|HDEL k f f|HLEN k|HLEN k|HEXISTS k f|HKEYS k|HVALS k|HSTRLEN k f|HINCRBY k f n|HINCRBYFLOAT k f s|HMSET k f v
LPUSH k v v|RPUSH k v n|LPUSHX k v|RPUSHX k v|LPOP k|RPOP k|LPOP k n|RPOP k n|LLEN k|LLEN k|LRANGE k i i|LRANGE k 0 -1|LRANGE k 0 -1|LINDEX k i|LINDEX k 0|LSET k i v|LINSERT k BEFORE v v|LREM k i v|LTRIM k i i|LPOS k v|LPOS k v COUNT 0|LMOVE k k LEFT RIGHT|RPOPLPUSH k k|LMPOP 2 k k LEFT
SADD k v v|SADD k n|SREM k v|SMEMBERS k|SMEMBERS k|SISMEMBER k v|SMISMEMBER k v v|SCARD k|SMOVE k k v|SINTER k k|SUNION k k|SDIFF k k|SINTERSTORE k k k|SUNIONSTORE k k k|SDIFFSTORE k k k|SINTERCARD 2 k k
ZADD k s v|ZADD k s v s f|ZADD k NX s v|ZADD k GT CH s v|ZADD k INCR s v|ZREM k v|ZSCORE k v|ZSCORE k v|ZMSCORE k v v|ZRANGE k 0 -1|ZRANGE k 0 -1 WITHSCORES|ZRANGE k i i REV|ZRANGE k -inf +inf BYSCORE|ZRANGE k - + BYLEX|ZREVRANGE k 0 -1|ZRANGEBYSCORE k -inf +inf WITHSCORES LIMIT 0 2|ZREVRANGEBYSCORE k +inf -inf|ZRANGEBYLEX k - +|ZREVRANGEBYLEX k + -|ZRANK k v|ZREVRANK k v|ZCARD k|ZCOUNT k -inf +inf|ZLEXCOUNT k - +|ZINCRBY k s v|ZPOPMIN k|ZPOPMAX k n|ZREMRANGEBYRANK k i i|ZREMRANGEBYSCORE k 0 1|ZUNIONSTORE k 2 k k|ZINTERSTORE k 2 k k WEIGHTS 1 2|ZUNION 2 k k WITHSCORES|ZDIFF 2 k k|ZRANGESTORE k k 0 -1|ZMPOP 1 k MIN
XADD k 1-n f v|XADD k 2-n f v|XLEN k|XRANGE k - +|XRANGE k - + COUNT 1|XREVRANGE k + -|XDEL k 1-n|XTRIM k MAXLEN n|XREAD COUNT 2 STREAMS k 0|XGROUP CREATE k g 0|XGROUP CREATE k g 0 MKSTREAM|XREADGROUP GROUP g c STREAMS k >|XACK k g 1-n|XPENDING k g|XINFO GROUPS k
PFADD k v v|PFCOUNT k|PFCOUNT k|PFCOUNT k k|PFMERGE k k
GEOADD k 13.36 38.11 v|GEOADD k 15.08 37.50 f|GEOPOS k v|GEODIST k v f|GEOHASH k v|GEOSEARCH k FROMLONLAT 15 37 BYRADIUS 200 km ASC|GEOSEARCHSTORE k k FROMLONLAT 15 37 BYRADIUS 200 km|GEORADIUS_RO k 15 37 200 km ASC
SORT k ALPHA|SORT k|SORT k STORE k|SORT_RO k ALPHA|LCS k k|DUMP nokey|RESTORE k 0 bad
MULTI|MULTI|EXEC|EXEC|EXEC|DISCARD|WATCH k|UNWATCH|SELECT n|SELECT 0|SELECT 99|SELECT x|FLUSHDB|SWAPDB 0 1|PING|PING v|ECHO v|TIMES|NOSUCH k v|GET|SET k|HGET k|CONFIG|CONFIG GET maxmemory|OBJECT|OBJECT HELP|CLIENT NOSUCH|PUBLISH c v
EVAL return_redis.call('get',KEYS[1]) 1 k|EVAL return_redis.call('set',KEYS[1],ARGV[1]) 1 k v|EVAL return_redis.call('set','k1',ARGV[1]) 0 v|EVAL return{1,2,{3,'x'},false} 0|EVAL return_redis.error_reply('MY_error') 0|EVAL nonsense( 0|EVAL_RO return_redis.call('get',KEYS[1]) 1 k|EVALSHA ffffffffffffffffffffffffffffffffffffffff 0|SCRIPT EXISTS x
BLPOP k 0.01|BRPOP k k 0.01|BLMOVE k k LEFT LEFT 0.01|BZPOPMIN k 0.01|BLMPOP 0.01 1 k LEFT|XREAD BLOCK 5 STREAMS k $|WAIT 0 10
";

/// Reads that the cache answers, in an order that both servers share.
const READS: &str = "GET k|GET k|MGET k k|STRLEN k|GETRANGE k i i|EXISTS k|TYPE k|HGET k f|HMGET k f f|HGETALL k|HLEN k|LRANGE k 0 -1|LINDEX k i|LLEN k|SISMEMBER k v|SCARD k|ZSCORE k v|ZRANGE k 0 -1 WITHSCORES|ZRANK k v|ZCARD k|GETBIT k n|BITCOUNT k|XRANGE k - +|XLEN k|GEOPOS k v|PFCOUNT k";

/// Commands whose elements come in the order of a hash table, which differs between two servers.
const UNORDERED: [&str; 4] = ["SMEMBERS", "SINTER", "SUNION", "SDIFF"];

/// Deterministic numbers from a seed (splitmix64).
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }
}

fn command(rng: &mut Rng, templates: &[&str]) -> Vec<String> {
    let template = templates[rng.below(templates.len())];
    let mut words: Vec<String> = template
        .split(' ')
        .map(|word| match word {
            "k" => format!("k{}", rng.below(8)),
            "v" => rng.pick(&["a", "b", "long value with spaces", "", "7", "\r\n"]).to_owned(),
            "f" => rng.pick(&["f", "g", "h"]).to_owned(),
            "n" => rng.below(4).to_string(),
            "s" => rng.pick(&["0", "1", "2.5", "-1", "x"]).to_owned(),
            "i" => rng.pick(&["0", "1", "-1", "-2", "5"]).to_owned(),
            word if word.starts_with("1-") || word.starts_with("2-") => format!("{}{}", &word[..2], rng.below(4)),
            word => word.replace("return_", "return ").replace("MY_", "MY "),
        })
        .collect();
    match rng.below(60) {
        0 if words.len() > 1 => drop(words.pop()),
        1 => words.push("extra".into()),
        2 => words[0] = words[0].to_lowercase(),
        _ => {}
    }
    words
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start_server(dir: &Path) -> (Process, u16) {
    let port = free_port();
    let text = port.to_string();
    let dir = dir.to_str().unwrap();
    let program = std::env::var("NEARSIDE_DIFFERENTIAL_SERVER").unwrap_or("redis-server".into());
    (start(&program, &["--port", &text, "--save", "", "--dir", dir, "--databases", "4"], port), port)
}

struct Client {
    socket: TcpStream,
    input: Vec<u8>,
}

impl Client {
    fn connect(port: u16) -> Client {
        let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Client { socket, input: Vec::new() }
    }

    fn reply(&mut self) -> Result<Vec<u8>, String> {
        let mut cutter = Cutter::default();
        loop {
            if let Some(len) = cutter.cut(&self.input).map_err(|e| e.to_string())? {
                return Ok(self.input.drain(..len).collect());
            }
            let mut chunk = [0; 16384];
            match self.socket.read(&mut chunk) {
                Ok(0) => return Err("closed".into()),
                Ok(n) => self.input.extend_from_slice(&chunk[..n]),
                Err(e) => return Err(format!("no reply: {e}")),
            }
        }
    }

    fn batch(&mut self, commands: &[Vec<String>]) -> Vec<Result<Vec<u8>, String>> {
        let bytes: Vec<u8> = commands.iter().flat_map(|c| resp::encode(c)).collect();
        self.socket.write_all(&bytes).unwrap();
        commands.iter().map(|_| self.reply()).collect()
    }
}

/// The reply as it is compared: sets without an order.
fn normal(command: &[String], reply: Vec<u8>) -> Vec<u8> {
    if !UNORDERED.contains(&command[0].to_uppercase().as_str()) {
        return reply;
    }
    let Some((_, mut rest)) = resp::split_aggregate(&reply) else { return reply };
    let mut parts = Vec::new();
    while let Some(len) = resp::value_len(rest) {
        parts.push(rest[..len].to_vec());
        rest = &rest[len..];
    }
    parts.sort();
    parts.concat()
}

struct Pair {
    bare: Client,
    proxied: Client,
}

/// Inside EXEC an unordered reply cannot be told from others, so such commands stay out of transactions.
fn fits(command: &[String], in_multi: bool) -> bool {
    !(in_multi && UNORDERED.contains(&command[0].to_uppercase().as_str()))
}

fn next_batch(rng: &mut Rng, templates: &[&str], in_multi: &mut bool) -> Vec<Vec<String>> {
    let size = [1, 1, 2, 5, 20][rng.below(5)];
    let mut batch = Vec::new();
    while batch.len() < size {
        let command = command(rng, templates);
        if !fits(&command, *in_multi) {
            continue;
        }
        match (command[0].to_uppercase().as_str(), command.len()) {
            ("MULTI", 1) => *in_multi = true,
            ("EXEC" | "DISCARD", 1) => *in_multi = false,
            _ => {}
        }
        batch.push(command);
    }
    batch
}

fn compare(seed: u64, step: usize, batch: &[Vec<String>], pair: &mut Pair) {
    let bare = pair.bare.batch(batch);
    let proxied = pair.proxied.batch(batch);
    for (n, (bare, proxied)) in bare.into_iter().zip(proxied).enumerate() {
        let bare = bare.map(|r| normal(&batch[n], r));
        let proxied = proxied.map(|r| normal(&batch[n], r));
        let show = |r: &Result<Vec<u8>, String>| r.clone().map(|b| String::from_utf8_lossy(&b).into_owned());
        assert!(
            bare == proxied,
            "NEARSIDE_SEED={seed}, batch {step}, command {n}: {:?}\n  bare:    {:?}\n  proxied: {:?}\nthe whole batch: {batch:?}",
            batch[n],
            show(&bare),
            show(&proxied)
        );
    }
}

#[test]
fn the_proxy_answers_as_the_server_does() {
    let env = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let seconds = env("NEARSIDE_DIFFERENTIAL_SECONDS").unwrap_or(60);
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let mut seed = env("NEARSIDE_SEED").unwrap_or(u64::from(nanos));
    let replay = std::env::var("NEARSIDE_SEED").is_ok();
    let templates: Vec<&str> = TEMPLATES.lines().flat_map(|l| l.split('|')).filter(|t| !t.is_empty()).collect();
    let dirs = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_bare, bare) = start_server(dirs.0.path());
    let (_twin, twin) = start_server(dirs.1.path());
    let port = free_port();
    let (listen, upstream) = (format!("127.0.0.1:{port}"), format!("redis://127.0.0.1:{twin}"));
    let _proxy = start(env!("CARGO_BIN_EXE_nearside"), &["--listen", &listen, "--upstream", &upstream], port);
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let mut commands = 0;
    while Instant::now() < deadline {
        commands += round(seed, bare, port, &templates);
        if replay {
            return;
        }
        seed += 1;
    }
    let hits = hits(port);
    println!("{commands} commands compared, {hits} answered by the cache, last NEARSIDE_SEED={seed}");
    assert!(hits > commands / 100, "the cache took no part: {hits} hits");
    assert!(commands > 1000, "only {commands} commands were compared");
}

fn hits(port: u16) -> usize {
    let info = Client::connect(port).batch(&[vec!["INFO".into(), "nearside".into()]]).remove(0).unwrap();
    let info = String::from_utf8(info).unwrap();
    info.lines().find_map(|l| l.strip_prefix("nearside_hits:")).unwrap().trim().parse().unwrap()
}

/// One seed: four sessions in turn, both protocols, then everything is forgotten.
fn round(seed: u64, bare: u16, port: u16, templates: &[&str]) -> usize {
    let mut rng = Rng(seed);
    let mut pairs: Vec<(Pair, bool)> = Vec::new();
    for n in 0..4 {
        let mut pair = Pair { bare: Client::connect(bare), proxied: Client::connect(port) };
        if n % 2 == 1 {
            let hello = [vec!["HELLO".to_owned(), "3".to_owned()]];
            pair.bare.batch(&hello);
            pair.proxied.batch(&hello);
        }
        pairs.push((pair, false));
    }
    let mut commands = 0;
    let reads: Vec<&str> = READS.split('|').collect();
    for step in 0..150 {
        let who = rng.below(4);
        let (pair, in_multi) = &mut pairs[who];
        let batch = next_batch(&mut rng, templates, in_multi);
        if std::env::var_os("NEARSIDE_SHOW").is_some() {
            println!("{step} session {who}: {batch:?}");
        }
        compare(seed, step, &batch, pair);
        commands += batch.len();
        // The same reads again and again: the first fills, the others hit.
        if !*in_multi && rng.below(2) == 0 {
            let reads: Vec<_> = (0..=rng.below(3)).map(|_| command(&mut rng, &reads)).collect();
            for _ in 0..3 {
                compare(seed, step, &reads, pair);
                commands += reads.len();
            }
        }
    }
    let clean = [vec!["RESET".to_owned()], vec!["FLUSHALL".to_owned()]];
    compare(seed, usize::MAX, &clean, &mut pairs[0].0);
    commands
}
