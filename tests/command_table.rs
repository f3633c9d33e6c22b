//! The plans of commands against real servers: `redis-server`, and the binaries named by `NEARSIDE_SERVERS`
//! (colon-separated). What a server says about its commands, and what it does, must agree with what we plan.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by stopping")]

use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nearside::config::ScriptKeys;
use nearside::test_support::command::{
    CacheRead, CommandTable, EffectClass, FieldTtl, GET_ID, Keys, Plan, Request, Route,
};
use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::types::OwnedFrame as Frame;

struct Server {
    process: Child,
    dir: tempfile::TempDir,
    name: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Server {
    fn start(binary: &str) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let process = Command::new(binary)
            .args(["--port", "0", "--save", "", "--unixsocket", "s"])
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{binary}: {e}"));
        let server = Server { process, dir, name: binary.into() };
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(server.dir.path().join("s")).is_err() {
            assert!(Instant::now() < deadline, "{binary} does not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    fn client(&self) -> Client {
        let stream = UnixStream::connect(self.dir.path().join("s")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Client { stream, buf: Vec::new() }
    }

    fn said(&self) -> Said {
        Said { name: self.name.clone(), reply: self.client().ask_raw("COMMAND").0 }
    }

    fn table(&self, script_keys: ScriptKeys) -> CommandTable {
        self.said().table(script_keys)
    }

    fn commands(&self) -> Vec<Listed> {
        self.said().commands()
    }
}

/// What a server said to COMMAND: one that runs, or one that is kept in `tests/commands`, a line a command, whose bytes
/// are the server's own with a tab in the place of each end of a line. The lines before are comments.
struct Said {
    name: String,
    reply: Vec<u8>,
}

impl Said {
    fn read(path: &str) -> Said {
        let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let entries: String = lines.iter().map(|line| line.replace('\t', "\r\n") + "\r\n").collect();
        let reply = format!("*{}\r\n{entries}", lines.len());
        Said { name: path.into(), reply: reply.into_bytes() }
    }

    /// The lines for such a file, sorted: a server lists its commands in the order of its hash table.
    fn lines(&self) -> String {
        let (mut rest, mut lines) =
            (&self.reply[self.reply.iter().position(|b| *b == b'\n').unwrap() + 1..], Vec::new());
        while let Some((_, len)) = decode(rest).unwrap() {
            let entry = String::from_utf8(rest[..len].to_vec()).unwrap();
            assert!(!entry.contains('\t') && !entry.replace("\r\n", "").contains('\n'), "{entry}");
            lines.push(entry.strip_suffix("\r\n").unwrap().replace("\r\n", "\t") + "\n");
            rest = &rest[len..];
        }
        lines.sort_by_cached_key(|line| line.split('\t').nth(2).map(str::to_owned));
        lines.concat()
    }

    fn table(&self, script_keys: ScriptKeys) -> CommandTable {
        CommandTable::from_command_reply(&self.reply, script_keys).unwrap()
    }

    fn commands(&self) -> Vec<Listed> {
        let Some((Frame::Array(entries), _)) = decode(&self.reply).unwrap() else { panic!("no array") };
        let mut all = Vec::new();
        for entry in &entries {
            let listed = Listed::of(entry);
            if let Some(subcommands) = items(entry).get(9).map(items).filter(|list| !list.is_empty()) {
                all.extend(subcommands.iter().map(Listed::of));
            } else {
                all.push(listed);
            }
        }
        all
    }
}

/// What the servers say that are not at hand everywhere.
const KEPT: &[&str] = &["tests/commands/redis-8.2.txt"];

/// Runs `check` on what every server at hand says, and on what others said.
fn on_every_table(check: impl Fn(&Said)) {
    on_every_server(|server| check(&server.said()));
    KEPT.iter().for_each(|path| check(&Said::read(path)));
}

/// Runs `check` on every server at hand.
fn on_every_server(check: impl Fn(&Server)) {
    let named = std::env::var("NEARSIDE_SERVERS").unwrap_or_default();
    for binary in std::iter::once("redis-server").chain(named.split(':').filter(|s| !s.is_empty())) {
        check(&Server::start(binary));
    }
}

struct Client {
    stream: UnixStream,
    buf: Vec<u8>,
}

impl Client {
    fn send(&mut self, text: &str) {
        let words = words(text);
        let mut out = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            out.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
        }
        self.stream.write_all(&out).unwrap();
    }

    fn receive(&mut self) -> (Vec<u8>, Frame) {
        loop {
            if let Some((frame, len)) = decode(&self.buf).unwrap() {
                return (self.buf.drain(..len).collect(), frame);
            }
            let mut chunk = vec![0; 1 << 18];
            let n = self.stream.read(&mut chunk).unwrap();
            assert!(n > 0, "closed by the server");
            self.buf.extend(&chunk[..n]);
        }
    }

    fn ask_raw(&mut self, text: &str) -> (Vec<u8>, Frame) {
        self.send(text);
        self.receive()
    }

    fn ask(&mut self, text: &str) -> Frame {
        self.ask_raw(text).1
    }

    /// The keys reported to this subscriber so far. Two PINGs, since BCAST reports only after the first's cycle.
    fn reported(&mut self) -> HashSet<String> {
        let mut keys = HashSet::new();
        for _ in 0..2 {
            self.send("PING");
            loop {
                let frame = self.receive().1;
                let parts = items(&frame);
                if text(&parts[0]) == "pong" {
                    break;
                }
                keys.extend(items(&parts[2]).iter().map(text));
            }
        }
        keys
    }
}

/// A subscriber of invalidations and a client that reports to it.
fn tracked(server: &Server, mode: &str) -> (Client, Client) {
    let (mut link, mut client) = (server.client(), server.client());
    let Frame::Integer(id) = link.ask("CLIENT ID") else { panic!("no id") };
    link.ask("SUBSCRIBE __redis__:invalidate");
    client.ask(&format!("CLIENT TRACKING ON REDIRECT {id} {mode}"));
    (link, client)
}

/// What the server says of one command.
struct Listed {
    name: String,
    arity: i64,
    flags: HashSet<String>,
    tips: HashSet<String>,
}

impl Listed {
    fn of(entry: &Frame) -> Listed {
        let fields = items(entry);
        let Frame::Integer(arity) = fields[1] else { panic!("no arity") };
        let set = |i: usize| fields.get(i).map_or_else(HashSet::new, |f| items(f).iter().map(text).collect());
        let mut flags: HashSet<String> = set(2);
        flags.extend(set(6));
        Listed { name: text(&fields[0]).to_lowercase(), arity, flags, tips: set(7) }
    }

    fn is(&self, flag: &str) -> bool {
        self.flags.contains(flag)
    }

    /// The shortest request that the arity allows.
    fn shortest(&self) -> String {
        let mut words: Vec<&str> = self.name.split('|').collect();
        words.resize(words.len().max(usize::try_from(self.arity.abs()).unwrap()), "1");
        words.join(" ")
    }
}

fn items(frame: &Frame) -> &[Frame] {
    if let Frame::Array(items) = frame { items } else { &[] }
}

fn text(frame: &Frame) -> String {
    match frame {
        Frame::SimpleString(s) | Frame::BulkString(s) => String::from_utf8_lossy(s).into_owned(),
        other => format!("{other:?}"),
    }
}

/// Separated by blanks; `""` is an empty one.
fn words(text: &str) -> Vec<&str> {
    text.split(' ').map(|w| if w == "\"\"" { "" } else { w }).collect()
}

fn plan(table: &CommandTable, text: &str) -> (Plan, Keys) {
    let mut buf = Vec::new();
    let mut args = Vec::new();
    for word in words(text) {
        args.push(buf.len()..buf.len() + word.len());
        buf.extend(word.bytes());
    }
    let mut keys = Keys::default();
    let plan = table.plan(&Request { buf: &buf, args: &args, hash: None }, &mut keys);
    (plan, keys)
}

/// `Lane Keys w[1] r[]`
fn told(table: &CommandTable, text: &str) -> String {
    let (Plan { route, effect, .. }, keys) = plan(table, text);
    let route = match route {
        Route::Cache(CacheRead::One(FieldTtl::No)) => "Cache".into(),
        Route::Cache(read) => format!("{read:?}"),
        Route::Dedicated(need) => format!("{need:?}"),
        other => format!("{other:?}"),
    };
    format!("{route} {effect:?} w{:?} r{:?}", keys.writes, keys.reads)
}

/// Requests and their plans.
const FATES: &[(&str, &str)] = &[
    ("GET k", "Cache Keys w[] r[1]"),
    ("get", "Lane None w[] r[]"),
    ("GET a b", "Lane Keys w[] r[1]"),
    ("EXISTS k", "Cache Keys w[] r[1]"),
    ("EXISTS a b", "Lane Keys w[] r[1, 2]"),
    ("PFCOUNT a b", "Lane Keys w[] r[1, 2]"),
    ("MGET a b", "Mget Keys w[] r[1, 2]"),
    ("TTL k", "Lane Keys w[] r[1]"),
    ("OBJECT ENCODING k", "Lane Keys w[] r[2]"),
    ("XINFO STREAM k", "Lane Keys w[] r[2]"),
    ("MEMORY USAGE k", "Lane Keys w[] r[2]"),
    ("DUMP k", "Lane Keys w[] r[1]"),
    ("TOUCH a b", "Lane Keys w[] r[1, 2]"),
    ("SINTER a b", "Lane Keys w[] r[1, 2]"),
    ("ZUNION 2 a b", "Lane Keys w[] r[2, 3]"),
    ("SINTERCARD 2 a b LIMIT 1", "Lane Keys w[] r[2, 3]"),
    ("LCS a b", "Lane Keys w[] r[1, 2]"),
    ("SRANDMEMBER k", "Lane Keys w[] r[1]"),
    ("HSCAN k 0", "Lane Keys w[] r[1]"),
    ("PING", "Lane None w[] r[]"),
    ("CONFIG GET x", "Lane None w[] r[]"),
    ("SCAN 0", "Lane None w[] r[]"),
    ("KEYS *", "Lane None w[] r[]"),
    ("RANDOMKEY", "Lane None w[] r[]"),
    ("DBSIZE", "Lane None w[] r[]"),
    ("PUBLISH c m", "Lane None w[] r[]"),
    ("SPUBLISH c m", "Lane None w[] r[]"),
    ("SCRIPT LOAD s", "Lane None w[] r[]"),
    ("FUNCTION FLUSH", "Lane None w[] r[]"),
    ("FUNCTION LOAD s", "Lane None w[] r[]"),
    ("EXEC", "Lane None w[] r[]"),
    ("UNWATCH", "Lane None w[] r[]"),
    ("READONLY", "Lane None w[] r[]"),
    ("NOSUCH k", "Unlisted Unknown w[] r[]"),
    ("SET", "Lane Unknown w[] r[]"),
    ("EVAL s 1 a b", "Alone Unknown w[3] r[]"),
    ("EVALSHA_RO s 1 a b", "Alone Unknown w[] r[3]"),
    ("FCALL f 0", "Alone Unknown w[] r[]"),
    ("SORT k BY w_*", "Lane Unknown w[] r[1]"),
    ("SORT k DESC", "Lane Keys w[] r[1]"),
    ("MIGRATE h 1 \"\" 0 1 KEYS a b", "Lane Keys w[7, 8] r[]"),
    ("FLUSHALL", "Lane Flush w[] r[]"),
    ("flushdb async", "Lane Flush w[] r[]"),
    ("SWAPDB 0 1", "Lane Flush w[] r[]"),
    ("REPLICAOF no one", "Lane Flush w[] r[]"),
    ("DEBUG RELOAD", "Lane Flush w[] r[]"),
    ("DEBUG SLEEP 0", "Lane None w[] r[]"),
    ("SELECT 1", "Local(Select) None w[] r[]"),
    ("SELECT", "Lane None w[] r[]"),
    ("AUTH p", "Local(Auth) None w[] r[]"),
    ("HELLO", "Local(Hello) None w[] r[]"),
    ("QUIT", "Local(Quit) None w[] r[]"),
    ("RESET", "Local(Reset) None w[] r[]"),
    ("INFO", "Local(Info) None w[] r[]"),
    ("NEARSIDE INFO", "Local(Nearside) None w[] r[]"),
    ("CLIENT ID", "Local(Client) None w[] r[]"),
    ("CLIENT KILL ID 1", "Local(Client) None w[] r[]"),
    ("CLIENT TRACKING ON", "Track None w[] r[]"),
    ("CLIENT REPLY OFF", "Pin None w[] r[]"),
    ("CLIENT", "Lane None w[] r[]"),
    ("MONITOR", "Pin None w[] r[]"),
    ("SCRIPT DEBUG YES", "Pin None w[] r[]"),
    ("POST / HTTP/1.1", "Pin None w[] r[]"),
    ("MULTI", "Transaction None w[] r[]"),
    ("MULTI x", "Lane None w[] r[]"),
    ("WATCH a b", "Transaction Keys w[] r[1, 2]"),
    ("WATCH", "Lane None w[] r[]"),
    ("SUBSCRIBE c", "Subscribe None w[] r[]"),
    ("PUNSUBSCRIBE", "Subscribe None w[] r[]"),
    ("BLPOP a b 0", "Block Keys w[1, 2] r[]"),
    ("BLMOVE a b LEFT LEFT 0", "Block Keys w[1, 2] r[]"),
    ("BLMPOP 0 2 a b LEFT", "Block Keys w[3, 4] r[]"),
    ("BZPOPMIN a 0", "Block Keys w[1] r[]"),
    ("WAIT 0 0", "Wait None w[] r[]"),
    ("XREAD BLOCK 1 STREAMS a b 0 0", "Block Keys w[] r[4, 5]"),
    ("XREAD STREAMS a b 0 0", "Lane Keys w[] r[2, 3]"),
    ("XREADGROUP GROUP g c STREAMS a >", "Lane Keys w[] r[5]"),
];

/// Plans of commands that Redis 6.2 does not have.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("SINTERCARD 2 a b LIMIT 1", "Lane Unknown w[] r[]"),
    ("LCS a b", "Lane Unknown w[] r[]"),
    ("SPUBLISH c m", "Lane Unknown w[] r[]"),
    ("FUNCTION FLUSH", "Lane Unknown w[] r[]"),
    ("FUNCTION LOAD s", "Lane Unknown w[] r[]"),
];

#[test]
fn each_command_has_its_fate() {
    on_every_table(|server| {
        let table = server.table(ScriptKeys::Any);
        let old = !server.commands().iter().any(|c| c.name == "lcs");
        for (request, fate) in FATES {
            let told = told(&table, request);
            let excepted = old && EXCEPTIONS.contains(&(request, &told));
            assert!(told == *fate || excepted, "{}: {request}: {told}, not {fate}", server.name);
        }
    });
}

#[test]
fn a_subcommand_that_the_server_does_not_list_is_left_to_its_error() {
    on_every_table(|server| {
        let all = server.commands();
        let listed = all.iter().any(|c| c.name.starts_with("client|"));
        let known = all.iter().any(|c| c.name == "client|setinfo");
        let fate = if known || !listed { "Local(Client) None w[] r[]" } else { "Lane Unknown w[] r[]" };
        assert_eq!(told(&server.table(ScriptKeys::Any), "CLIENT SETINFO lib-name x"), fate, "{}", server.name);
    });
}

#[test]
fn declared_keys_of_scripts_can_be_believed() {
    on_every_table(|server| {
        let table = server.table(ScriptKeys::Declared);
        assert_eq!(told(&table, "EVAL s 1 a b"), "Alone Keys w[3] r[]");
        assert_eq!(told(&table, "EVAL s x a b"), "Alone Unknown w[] r[]");
    });
}

#[test]
fn the_whole_table_of_the_server_is_planned_safely() {
    on_every_table(|server| {
        let table = server.table(ScriptKeys::Any);
        for command in server.commands() {
            let request = command.shortest();
            let (plan, keys) = plan(&table, &request);
            let say = format!("{}: {request}: {}", server.name, told(&table, &request));
            let quiet = command.name.starts_with("function|");
            if command.is("write") && !quiet {
                let spoken = !keys.writes.is_empty() || plan.effect != EffectClass::Keys;
                let reads_only = ["sort", "georadius", "georadiusbymember", "xreadgroup"].contains(&&command.name[..]);
                assert!(plan.effect != EffectClass::None && (spoken || reads_only), "{say}");
                assert!(!matches!(plan.route, Route::Cache(_)), "{say}");
            }
            let sometimes = command.name.starts_with("xread");
            if (command.is("blocking") || command.is("@blocking")) && !sometimes {
                assert!(matches!(plan.route, Route::Dedicated(_)), "{say}");
            }
            if command.is("module") {
                assert!(plan.effect == EffectClass::Unknown || command.is("readonly"), "{say}");
            }
            if command.is("@connection") && command.name.starts_with("client|") {
                assert!(matches!(plan.route, Route::Dedicated(_) | Route::Local(_)), "{say}");
            }
            if matches!(plan.route, Route::Cache(_)) {
                assert!(command.is("readonly") && !command.tips.contains("nondeterministic_output"), "{say}");
            }
            assert_eq!(plan.id != 0, matches!(plan.route, Route::Cache(_)), "{say}");
            assert_eq!(plan.id == GET_ID, command.name == "get", "{say}");
        }
    });
}

#[test]
fn only_what_the_server_calls_a_read_is_repeated() {
    on_every_table(|server| {
        let table = server.table(ScriptKeys::Any);
        for command in server.commands() {
            let request = command.shortest();
            let (plan, _) = plan(&table, &request);
            let read = command.is("readonly") && !command.is("module") && !command.is("write");
            assert_eq!(plan.repeatable, read && plan.effect != EffectClass::Unknown, "{}: {request}", server.name);
        }
        let repeatable = |text: &str| plan(&table, text).0.repeatable;
        for once in [
            "PUBLISH c m",
            "SPUBLISH c m",
            "FUNCTION LOAD s",
            "BGSAVE",
            "ACL SETUSER a",
            "CONFIG SET a b",
            "SCRIPT LOAD s",
            "CLIENT KILL a",
            "CLIENT PAUSE 1",
            "EVAL_RO s 0",
            "PING",
            "NOSUCH",
            "SLOWLOG RESET",
            "LATENCY RESET",
            "CONFIG RESETSTAT",
        ] {
            assert!(!repeatable(once), "{}: {once}", server.name);
        }
        for again in ["GET k", "mget a b", "TTL k", "DBSIZE", "SCAN 0", "OBJECT ENCODING k"] {
            assert!(repeatable(again), "{}: {again}", server.name);
        }
    });
}

/// One request for each cacheable read of key `k`.
const READS: &[&str] = &[
    "GET k",
    "MGET k",
    "STRLEN k",
    "GETRANGE k 0 1",
    "SUBSTR k 0 1",
    "GETBIT k 1",
    "BITCOUNT k",
    "BITPOS k 1",
    "BITFIELD_RO k GET u8 0",
    "EXISTS k",
    "TYPE k",
    "HGET k f",
    "HMGET k f g",
    "HEXISTS k f",
    "HSTRLEN k f",
    "HGETALL k",
    "HKEYS k",
    "HVALS k",
    "HLEN k",
    "LRANGE k 0 1",
    "LINDEX k 0",
    "LLEN k",
    "LPOS k a",
    "SMEMBERS k",
    "SISMEMBER k a",
    "SMISMEMBER k a",
    "SCARD k",
    "ZSCORE k a",
    "ZMSCORE k a",
    "ZRANGE k 0 1",
    "ZREVRANGE k 0 1",
    "ZRANGEBYSCORE k 0 1",
    "ZREVRANGEBYSCORE k 1 0",
    "ZRANGEBYLEX k - +",
    "ZREVRANGEBYLEX k + -",
    "ZRANK k a",
    "ZREVRANK k a",
    "ZCARD k",
    "ZCOUNT k 0 1",
    "ZLEXCOUNT k - +",
    "XRANGE k - +",
    "XREVRANGE k + -",
    "XLEN k",
    "GEOPOS k a",
    "GEODIST k a b",
    "GEOHASH k a",
    "GEOSEARCH k FROMLONLAT 1 1 BYRADIUS 1 m",
    "GEORADIUS_RO k 1 1 1 m",
    "GEORADIUSBYMEMBER_RO k a 1 m",
    "PFCOUNT k",
];

#[test]
fn every_cacheable_read_registers_for_tracking() {
    on_every_server(|server| {
        let table = server.table(ScriptKeys::Any);
        let (mut link, mut client) = tracked(server, "OPTIN");
        let mut ids = HashSet::new();
        for read in READS {
            let (plan, _) = plan(&table, read);
            assert!(matches!(plan.route, Route::Cache(_)) && ids.insert(plan.id), "{read}: {plan:?}");
            client.ask("CLIENT CACHING YES");
            let reply = client.ask(read);
            assert!(!matches!(reply, Frame::Error(_)), "{}: {read}: {reply:?}", server.name);
            client.ask("SET k v");
            assert!(link.reported().contains("k"), "{}: {read} does not register", server.name);
            client.ask("DEL k");
        }
        let most = plan(&table, "PFCOUNT k").0.id;
        assert_eq!(ids.len(), usize::from(most), "a cacheable read is not in READS");
    });
}

#[test]
fn only_servers_with_field_ttls_need_their_check() {
    on_every_server(|server| {
        let table = server.table(ScriptKeys::Any);
        let has = server.commands().iter().any(|c| c.name == "hpexpire");
        let check = |request| match plan(&table, request).0.route {
            Route::Cache(CacheRead::One(ttl)) => ttl,
            other => panic!("{request}: {other:?}"),
        };
        let if_has = |ttl| if has { ttl } else { FieldTtl::No };
        assert_eq!(check("HGET k f"), if_has(FieldTtl::Named));
        assert_eq!(check("HMGET k f g h"), if_has(FieldTtl::Named));
        assert_eq!(check("HLEN k"), if_has(FieldTtl::Whole));
        assert_eq!(check("GET k"), FieldTtl::No);
    });
}

#[test]
fn a_pfcount_that_recalculates_is_reported() {
    on_every_server(|server| {
        let (mut link, mut client) = tracked(server, "OPTIN");
        client.ask("PFADD h a b");
        client.ask("CLIENT CACHING YES");
        client.ask("GET h");
        server.client().ask("PFCOUNT h");
        assert_eq!(link.reported(), HashSet::from(["h".to_owned()]), "{}", server.name);
    });
}

/// What is there before each of `WRITES`.
const SEED: &[&str] = &[
    "MSET s1 abc s2 abd n1 5",
    "RPUSH l1 1 2 3",
    "RPUSH l2 a b",
    "HSET h1 f 1 g 2",
    "SADD t1 1 2 3",
    "SADD t2 2 3 4",
    "ZADD z1 1 a 2 b",
    "ZADD z2 3 a 4 c",
    "GEOADD g1 1 1 a 1.1 1.1 b",
    "XADD x1 1-1 f v",
    "XGROUP CREATE x1 grp 0",
    "PFADD p1 a",
    "PFADD p2 b",
];

/// Requests that write. A server that does not know one is not asked.
const WRITES: &[&str] = &[
    "SET s1 v EX 100",
    "SET s1 v GET",
    "SETEX s1 9 v",
    "PSETEX s1 999 v",
    "SETNX new v",
    "GETSET s1 v",
    "GETDEL s1",
    "GETEX s1 EX 100",
    "GETEX s1",
    "APPEND s1 v",
    "INCR n1",
    "DECRBY n1 2",
    "INCRBYFLOAT n1 0.5",
    "SETRANGE s1 1 v",
    "SETBIT s1 1 1",
    "BITFIELD s1 SET u8 0 7",
    "BITFIELD s1 GET u8 0",
    "BITOP OR new s1 s2",
    "MSET s1 a s2 b",
    "MSETNX new a new2 b",
    "MSETEX 2 s1 a s2 b EX 10",
    "DELIFEQ s1 abc",
    "DEL s1 s2",
    "UNLINK s1 l1",
    "EXPIRE s1 100",
    "PEXPIREAT s1 9999999999999",
    "EXPIREAT s1 1",
    "PERSIST s1",
    "MOVE s1 3",
    "COPY s1 new",
    "COPY s1 new DB 3",
    "RENAME s1 new",
    "RENAMENX s1 new",
    "SORT l1 STORE new",
    "SORT l1 LIMIT 0 2 STORE new",
    "SORT l1 STORE new STORE new2",
    "SORT l1 BY w_* STORE new",
    "LPUSH l1 v",
    "RPUSHX l1 v",
    "LPOP l1",
    "RPOP l1 2",
    "LMPOP 2 none l1 LEFT",
    "LREM l1 1 1",
    "LSET l1 0 v",
    "LTRIM l1 0 0",
    "LINSERT l1 BEFORE 2 v",
    "RPOPLPUSH l1 l2",
    "LMOVE l1 l2 LEFT RIGHT",
    "BLPOP none l1 1",
    "BRPOP none l1 1",
    "BRPOPLPUSH l1 l2 1",
    "BLMOVE l1 l2 LEFT RIGHT 1",
    "BLMPOP 1 2 none l1 LEFT",
    "HSET h1 f 9",
    "HSETNX h1 new 9",
    "HMSET h1 f 9",
    "HINCRBY h1 f 1",
    "HINCRBYFLOAT h1 f 1",
    "HDEL h1 f",
    "HPEXPIRE h1 99999 FIELDS 1 f",
    "HEXPIREAT h1 1 FIELDS 1 f",
    "HSETEX h1 EX 100 FIELDS 1 f v",
    "HGETEX h1 EX 100 FIELDS 1 f",
    "HGETDEL h1 FIELDS 1 f",
    "SADD t1 9",
    "SREM t1 1",
    "SPOP t1",
    "SMOVE t1 t2 1",
    "SINTERSTORE new t1 t2",
    "SINTERSTORE t1 none t2",
    "SUNIONSTORE new t1 t2",
    "SDIFFSTORE t1 t1 t2",
    "ZADD z1 9 a",
    "ZINCRBY z1 1 a",
    "ZREM z1 a",
    "ZPOPMIN z1",
    "ZPOPMAX z1 2",
    "BZPOPMIN none z1 1",
    "BZPOPMAX none z1 1",
    "ZMPOP 2 none z1 MIN",
    "BZMPOP 1 2 none z1 MIN",
    "ZREMRANGEBYRANK z1 0 0",
    "ZREMRANGEBYSCORE z1 0 1",
    "ZREMRANGEBYLEX z1 - +",
    "ZRANGESTORE new z1 0 1",
    "ZUNIONSTORE new 2 z1 z2 WEIGHTS 1 2",
    "ZINTERSTORE new 2 z1 z2",
    "ZDIFFSTORE z1 2 z1 z2",
    "GEOADD g1 2 2 c",
    "GEOSEARCHSTORE new g1 FROMLONLAT 1 1 BYRADIUS 100 km",
    "GEORADIUS g1 1 1 100 km STORE new",
    "GEORADIUS g1 1 1 100 km STORE new STOREDIST new2",
    "GEORADIUSBYMEMBER g1 a 100 km ASC STOREDIST new",
    "GEORADIUS g1 1 1 100 km",
    "XADD x1 * f v",
    "XADD new NOMKSTREAM * f v",
    "XDEL x1 1-1",
    "XTRIM x1 MAXLEN 0",
    "XSETID x1 9-9",
    "XGROUP CREATE new grp $ MKSTREAM",
    "XGROUP DESTROY x1 grp",
    "XREADGROUP GROUP grp c COUNT 1 STREAMS x1 >",
    "XREADGROUP GROUP grp c BLOCK 1 NOACK STREAMS x1 >",
    "XACK x1 grp 1-1",
    "XACKDEL x1 grp IDS 1 1-1",
    "XDELEX x1 IDS 1 1-1",
    "XAUTOCLAIM x1 grp c 0 0",
    "XCLAIM x1 grp c 0 1-1",
    "PFADD p1 z",
    "PFMERGE new p1 p2",
    "EVAL return(redis.call('set',KEYS[1],1)) 1 s1",
    "VADD new VALUES 2 1 1 e",
    "MIGRATE 127.0.0.1 1 s1 0 1",
    "MIGRATE 127.0.0.1 1 \"\" 0 1 KEYS s1 s2",
    "RESTORE new 0 nonsense",
];

/// The keys at `places` of a request.
fn named(request: &str, places: &[usize]) -> HashSet<String> {
    let words = words(request);
    places.iter().map(|i| words[*i].to_owned()).collect()
}

#[test]
fn every_key_that_a_write_changes_is_among_its_writes() {
    on_every_server(|server| {
        let table = server.table(ScriptKeys::Any);
        let (mut link, mut client) = tracked(server, "BCAST");
        let mut reporting = 0;
        for request in WRITES {
            client.ask("FLUSHALL");
            for seed in SEED {
                client.ask(seed);
            }
            link.reported();
            let reply = client.ask(request);
            let reported = link.reported();
            let writes = named(request, &plan(&table, request).1.writes);
            assert!(reported.is_subset(&writes), "{}: {request}: {reported:?} not in {writes:?}", server.name);
            reporting += usize::from(!reported.is_empty());
            if let Frame::Error(e) = &reply {
                let harmless = ["unknown command", "IOERR", "Bad data format", "DUMP payload"];
                assert!(harmless.iter().any(|h| e.contains(h)), "{}: {request}: {e}", server.name);
            }
        }
        assert!(reporting > 80, "{}: only {reporting} of the writes changed anything", server.name);
    });
}

#[test]
fn every_key_that_the_server_finds_is_found() {
    on_every_server(|server| {
        let table = server.table(ScriptKeys::Any);
        let mut client = server.client();
        for request in WRITES.iter().chain(FATES.iter().map(|(request, _)| request)) {
            let (planned, keys) = plan(&table, request);
            let writes = named(request, &keys.writes);
            let all: HashSet<_> = writes.union(&named(request, &keys.reads)).cloned().collect();
            let found = client.ask(&format!("COMMAND GETKEYS {request}"));
            let found: HashSet<_> = items(&found).iter().map(text).filter(|k| !k.is_empty()).collect();
            let channels = request.contains("PUBLISH") || request.contains("SUBSCRIBE");
            assert!(channels || found.is_subset(&all), "{}: {request}: {found:?} not in {all:?}", server.name);
            for key in items(&client.ask(&format!("COMMAND GETKEYSANDFLAGS {request}"))) {
                let [name, flags] = items(key) else { panic!("{request}: {key:?}") };
                let write = !items(flags).iter().any(|f| ["RO", "not_key"].contains(&&text(f)[..]));
                let observed = matches!(planned.route, Route::Cache(_)) || request.starts_with("PFCOUNT");
                let known = !write || observed || writes.contains(&text(name));
                assert!(known, "{}: {request}: {key:?} not in {writes:?}", server.name);
            }
        }
    });
}

#[test]
fn the_compatibility_page_names_every_command_once() {
    on_every_table(|server| {
        let page = server.table(ScriptKeys::Any).compatibility();
        let rows = page.lines().skip(2).map(|line| line.split('|').nth(2).unwrap());
        let shown: Vec<&str> = rows.flat_map(|list| list.trim().split(", ")).collect();
        let set: HashSet<&str> = shown.iter().copied().collect();
        assert_eq!(set.len(), shown.len());
        for command in server.commands() {
            let name = command.name.to_uppercase().replace('|', " ");
            assert!(set.contains(&name[..]), "{}: {name}", server.name);
        }
    });
}

/// docs/COMPATIBILITY.md shows the table of Debian's Redis 7.0; `NEARSIDE_UPDATE_COMPATIBILITY=1` writes the table anew.
#[test]
fn the_compatibility_page_shows_the_table() {
    const PAGE: &str = "docs/COMPATIBILITY.md";
    const BEGIN: &str = "<!-- compatibility: generated -->\n";
    const END: &str = "<!-- end of compatibility -->";
    let server = Server::start("redis-server");
    if !text(&server.client().ask("INFO server")).contains("redis_version:7.0.") {
        return;
    }
    let table = server.table(ScriptKeys::Any).compatibility();
    let page = std::fs::read_to_string(PAGE).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (shown, after) = rest.split_once(END).unwrap();
    if std::env::var_os("NEARSIDE_UPDATE_COMPATIBILITY").is_some() {
        std::fs::write(PAGE, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(shown, table, "run this test with NEARSIDE_UPDATE_COMPATIBILITY=1");
}

/// `NEARSIDE_KEEP=program` writes the first of [`KEPT`] anew from this server.
#[test]
fn what_is_kept_is_read_as_it_was_said() {
    let Ok(program) = std::env::var("NEARSIDE_KEEP") else {
        for path in KEPT {
            let said = Said::read(path);
            let text = std::fs::read_to_string(path).unwrap();
            assert!(said.commands().len() > 300 && text.ends_with(&said.lines()), "{path}");
        }
        return;
    };
    let server = Server::start(&program);
    let info = text(&server.client().ask("INFO server"));
    let version = info.lines().find(|line| line.starts_with("redis_version:")).unwrap();
    let head = "# What COMMAND says: a line a command, tabs for the ends of lines. Made anew by\n\
                # NEARSIDE_KEEP=program cargo test --test command_table what_is_kept\n";
    std::fs::write(KEPT[0], format!("{head}# {version}\n{}", server.said().lines())).unwrap();
}
