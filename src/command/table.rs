//! One row a command: only what the server's COMMAND table does not say. Which replies may be cached, who answers,
//! which commands need a connection of their own, and which keys the server cannot describe.
//!
//! A command without a row is forwarded, and its keys are those of the server's table.

use super::{Local, Need};

/// One command's row.
pub(super) struct Row {
    /// Lower case; a subcommand is `container|sub`.
    pub name: &'static str,
    /// Arguments, the name included; negative: at least so many. The server's arity, where known, counts as well.
    pub arity: i64,
    /// Where it is answered.
    pub fate: StaticRoute,
    /// How its keys are found.
    pub touch: Touch,
}

/// Where a command is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StaticRoute {
    /// On the lane, or on a dedicated connection if the server's table says that it blocks.
    Forward,
    /// Blocks only if it says BLOCK (XREAD, XREADGROUP).
    ForwardUnlessBlock,
    /// From the cache.
    Read(Shape),
    /// By the proxy.
    Answer(Local),
    /// On a connection of its own.
    Dedicate(Need),
}

/// The shape of a cacheable read; its field-TTL check included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// One key at argument 1; the reply depends on nothing but the key.
    Plain,
    /// One key at argument 1 and nothing else; with more keys it is forwarded (EXISTS, PFCOUNT).
    Single,
    /// A hash and the fields named from argument 2 on.
    Fields,
    /// A hash and all its fields.
    AllFields,
    /// Keys from argument 1 on.
    Mget,
}

/// How the keys of a command are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    /// By the server's key specs; the static specs stand in for a server that gives none (6.2, or no table at all).
    Server(&'static [StaticSpec]),
    /// The command touches no key, whatever its flags say.
    Nothing,
    /// The command may change everything.
    Everything,
    /// Users, their rights or their passwords.
    Rights,
    /// CONFIG SET, which changes a password if it names `requirepass`.
    Settings,
    /// `name script numkeys key…`: the declared keys, and whatever the script likes. `writes`: not a `_RO` form.
    Script {
        /// Whether the declared keys may be written.
        writes: bool,
    },
    /// SORT and SORT_RO: BY and GET read keys that follow from the data.
    Sort,
    /// GEORADIUS and GEORADIUSBYMEMBER: options start at `from`.
    GeoStore {
        /// First argument that can be an option.
        from: usize,
    },
    /// MIGRATE: argument 3, and everything behind KEYS.
    Migrate,
}

/// A key spec in the server's words, for servers that give none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StaticSpec {
    pub begin: BeginSearch<&'static [u8]>,
    pub find: FindKeys,
    pub write: bool,
}

/// Where the keys of a spec begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BeginSearch<W> {
    /// At this argument.
    Index(usize),
    /// Behind this word, looked for from argument `from` on; if negative, from the end towards the front.
    Keyword { word: W, from: i64 },
}

/// Which arguments from there on are keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FindKeys {
    /// Up to `last`, counted from the first, or if negative from the end; `limit` n: only the first n-th of the rest.
    Range { last: i64, step: usize, limit: i64 },
    /// As many as the argument `count` places further says, the first of them `first` places further.
    KeyNum { count: usize, first: usize, step: usize },
}

const fn read(name: &'static str, arity: i64, shape: Shape) -> Row {
    Row { name, arity, fate: StaticRoute::Read(shape), touch: Touch::Server(&[]) }
}

const fn answer(name: &'static str, arity: i64, local: Local) -> Row {
    Row { name, arity, fate: StaticRoute::Answer(local), touch: Touch::Nothing }
}

const fn dedicate(name: &'static str, arity: i64, need: Need, touch: Touch) -> Row {
    Row { name, arity, fate: StaticRoute::Dedicate(need), touch }
}

const fn script(name: &'static str, writes: bool) -> Row {
    dedicate(name, -3, Need::Alone, Touch::Script { writes })
}

const fn pin(name: &'static str) -> Row {
    dedicate(name, -1, Need::Pin, Touch::Nothing)
}

const fn block(name: &'static str, specs: &'static [StaticSpec]) -> Row {
    dedicate(name, -1, Need::Block, Touch::Server(specs))
}

const fn forward(name: &'static str, touch: Touch) -> Row {
    Row { name, arity: -1, fate: StaticRoute::Forward, touch }
}

const fn quiet(name: &'static str) -> Row {
    forward(name, Touch::Nothing)
}

const fn flush(name: &'static str) -> Row {
    forward(name, Touch::Everything)
}

const fn range(first: usize, last: i64, write: bool) -> StaticSpec {
    StaticSpec { begin: BeginSearch::Index(first), find: FindKeys::Range { last, step: 1, limit: 0 }, write }
}

const fn keynum(at: usize, write: bool) -> StaticSpec {
    StaticSpec { begin: BeginSearch::Index(at), find: FindKeys::KeyNum { count: 0, first: 1, step: 1 }, write }
}

/// The keys of XREAD and XREADGROUP: the first half of what follows STREAMS. XREADGROUP changes only what consumers
/// have seen, which no cached read shows.
const fn streams(from: i64) -> StaticSpec {
    let begin = BeginSearch::Keyword { word: b"streams".as_slice(), from };
    StaticSpec { begin, find: FindKeys::Range { last: -1, step: 1, limit: 2 }, write: false }
}

const STORE_NUMKEYS: &[StaticSpec] = &[range(1, 0, true), keynum(2, false)];
const SUBSCRIBE: Need = Need::Subscribe;
const TRANSACTION: Need = Need::Transaction;

use Shape::{AllFields, Fields, Mget, Plain, Single};

/// All rows. The place among the reads is the command's cache id, GET's being 1.
///
/// Left out on purpose are reads that are random (SRANDMEMBER, SCAN …), depend on the time or on the server's
/// state (TTL, OBJECT, XINFO, XPENDING, DUMP, MEMORY), do not register for tracking (BITFIELD, GETEX, SORT, GEORADIUS) or read
/// several keys.
///
/// EXISTS and TYPE need no field-TTL check: a hash whose fields have all expired exists until the server removes it,
/// and every such removal is reported, lazy ones by HGET on Redis 8 included.
///
/// PFCOUNT writes: of one key it stores the cardinality it has computed inside the value. It registers for tracking,
/// and if it recalculates, those who cached the key are told (Redis 6.2, 7.0, 8.2, Valkey 9.1; before the read itself
/// registers). The number does not change by it, so PFCOUNT's own replies may be cached; a cached GET of the raw value
/// lives on until the report arrives, as with a write made elsewhere.
pub(super) const ROWS: &[Row] = &[
    // Reads of strings and bitmaps.
    read("get", 2, Plain),
    read("mget", -2, Mget),
    read("strlen", 2, Plain),
    read("getrange", 4, Plain),
    read("substr", 4, Plain),
    read("getbit", 3, Plain),
    read("bitcount", -2, Plain),
    read("bitpos", -3, Plain),
    read("bitfield_ro", -2, Plain),
    // Reads of any type.
    read("exists", 2, Single),
    read("type", 2, Plain),
    // Reads of hashes.
    read("hget", 3, Fields),
    read("hmget", -3, Fields),
    read("hexists", 3, Fields),
    read("hstrlen", 3, Fields),
    read("hgetall", 2, AllFields),
    read("hkeys", 2, AllFields),
    read("hvals", 2, AllFields),
    read("hlen", 2, AllFields),
    // Reads of lists.
    read("lrange", 4, Plain),
    read("lindex", 3, Plain),
    read("llen", 2, Plain),
    read("lpos", -3, Plain),
    // Reads of sets.
    read("smembers", 2, Plain),
    read("sismember", 3, Plain),
    read("smismember", -3, Plain),
    read("scard", 2, Plain),
    // Reads of sorted sets.
    read("zscore", 3, Plain),
    read("zmscore", -3, Plain),
    read("zrange", -4, Plain),
    read("zrevrange", -4, Plain),
    read("zrangebyscore", -4, Plain),
    read("zrevrangebyscore", -4, Plain),
    read("zrangebylex", -4, Plain),
    read("zrevrangebylex", -4, Plain),
    read("zrank", -3, Plain),
    read("zrevrank", -3, Plain),
    read("zcard", 2, Plain),
    read("zcount", 4, Plain),
    read("zlexcount", 4, Plain),
    // Reads of streams, positions and cardinalities.
    read("xrange", -4, Plain),
    read("xrevrange", -4, Plain),
    read("xlen", 2, Plain),
    read("geopos", -2, Plain),
    read("geodist", -4, Plain),
    read("geohash", -2, Plain),
    read("geosearch", -7, Plain),
    read("georadius_ro", -6, Plain),
    read("georadiusbymember_ro", -5, Plain),
    read("pfcount", 2, Single),
    // Session state that the proxy keeps.
    answer("select", 2, Local::Select),
    answer("auth", -2, Local::Auth),
    answer("hello", -1, Local::Hello),
    answer("quit", -1, Local::Quit),
    answer("reset", 1, Local::Reset),
    answer("info", -1, Local::Info),
    answer("pubsub|channels", -2, Local::Channels),
    answer("nearside", -1, Local::Nearside),
    answer("module|load", -3, Local::Module),
    answer("module|loadex", -3, Local::Module),
    answer("module|unload", 3, Local::Module),
    answer("client|id", 2, Local::Client),
    answer("client|info", 2, Local::Client),
    answer("client|list", -2, Local::Client),
    answer("client|setname", 3, Local::Client),
    answer("client|getname", 2, Local::Client),
    answer("client|setinfo", 4, Local::Client),
    answer("client|getredir", 2, Local::Client),
    answer("client|trackinginfo", 2, Local::Client),
    answer("client|kill", -3, Local::Client),
    answer("client|pause", -3, Local::Client),
    answer("client|unpause", 2, Local::Client),
    answer("client|unblock", -3, Local::Client),
    answer("client|help", 2, Local::Client),
    // State of a connection that only the server can keep. HOST: and POST are not in any table: the server takes them
    // for a browser's and closes the connection, which must not be a shared one.
    dedicate("client|tracking", -3, Need::Track, Touch::Nothing),
    dedicate("client|caching", 3, Need::Track, Touch::Nothing),
    pin("client|reply"),
    pin("client|no-evict"),
    pin("client|no-touch"),
    pin("client|capa"),
    pin("client|import-source"),
    pin("monitor"),
    pin("sync"),
    pin("psync"),
    pin("replconf"),
    pin("script|debug"),
    pin("host:"),
    pin("post"),
    // Transactions. Outside of one, EXEC, DISCARD and UNWATCH have no state; the session handles them inside.
    dedicate("multi", 1, TRANSACTION, Touch::Nothing),
    dedicate("watch", -2, TRANSACTION, Touch::Server(&[range(1, -1, false)])),
    quiet("exec"),
    quiet("discard"),
    quiet("unwatch"),
    // Pub/sub. Outside of a subscription the UNSUBSCRIBEs still answer one message for each channel.
    dedicate("subscribe", -1, SUBSCRIBE, Touch::Nothing),
    dedicate("psubscribe", -1, SUBSCRIBE, Touch::Nothing),
    dedicate("ssubscribe", -1, SUBSCRIBE, Touch::Nothing),
    dedicate("unsubscribe", -1, SUBSCRIBE, Touch::Nothing),
    dedicate("punsubscribe", -1, SUBSCRIBE, Touch::Nothing),
    dedicate("sunsubscribe", -1, SUBSCRIBE, Touch::Nothing),
    quiet("publish"),
    quiet("spublish"),
    // Commands that wait. Others are known by the server's flag `blocking` (7.0) or category `@blocking` (6.2).
    block("blpop", &[range(1, -2, true)]),
    block("brpop", &[range(1, -2, true)]),
    block("brpoplpush", &[range(1, 1, true)]),
    block("blmove", &[range(1, 1, true)]),
    block("blmpop", &[keynum(2, true)]),
    block("bzpopmin", &[range(1, -2, true)]),
    block("bzpopmax", &[range(1, -2, true)]),
    block("bzmpop", &[keynum(2, true)]),
    dedicate("wait", -1, Need::Wait, Touch::Nothing),
    dedicate("waitaof", -1, Need::Wait, Touch::Nothing),
    Row { name: "xread", arity: -4, fate: StaticRoute::ForwardUnlessBlock, touch: Touch::Server(&[streams(1)]) },
    Row { name: "xreadgroup", arity: -7, fate: StaticRoute::ForwardUnlessBlock, touch: Touch::Server(&[streams(4)]) },
    // Everything may be another after these.
    flush("flushall"),
    flush("flushdb"),
    flush("swapdb"),
    flush("shutdown"),
    flush("replicaof"),
    flush("slaveof"),
    flush("failover"),
    flush("cluster|reset"),
    flush("cluster|replicate"),
    flush("cluster|failover"),
    flush("cluster|setslot"),
    flush("cluster|addslots"),
    flush("cluster|addslotsrange"),
    flush("cluster|delslots"),
    flush("cluster|delslotsrange"),
    flush("cluster|flushslot"),
    flush("cluster|flushslots"),
    flush("cluster|migrateslots"),
    flush("debug"),
    // Users may be others, or may do other things.
    forward("acl|setuser", Touch::Rights),
    forward("acl|deluser", Touch::Rights),
    forward("acl|load", Touch::Rights),
    forward("config|set", Touch::Settings),
    // DEBUG's harmless subcommands; the server's table does not list them.
    quiet("debug|sleep"),
    quiet("debug|object"),
    quiet("debug|set-active-expire"),
    quiet("debug|digest"),
    quiet("debug|digest-value"),
    quiet("debug|error"),
    quiet("debug|log"),
    quiet("debug|help"),
    quiet("debug|jmap"),
    quiet("debug|protocol"),
    quiet("debug|structsize"),
    quiet("debug|htstats"),
    quiet("debug|htstats-key"),
    quiet("debug|sdslen"),
    quiet("debug|listpack"),
    quiet("debug|ziplist"),
    quiet("debug|stringmatch-len"),
    // Writes to the library of functions, not to keys.
    quiet("function|load"),
    quiet("function|delete"),
    quiet("function|flush"),
    quiet("function|restore"),
    // Keys that the server cannot describe.
    script("eval", true),
    script("evalsha", true),
    script("fcall", true),
    script("eval_ro", false),
    script("evalsha_ro", false),
    script("fcall_ro", false),
    forward("sort", Touch::Sort),
    forward("sort_ro", Touch::Sort),
    forward("georadius", Touch::GeoStore { from: 6 }),
    forward("georadiusbymember", Touch::GeoStore { from: 5 }),
    forward("migrate", Touch::Migrate),
    // Keys that Redis 6.2 does not describe.
    forward("zunionstore", Touch::Server(STORE_NUMKEYS)),
    forward("zinterstore", Touch::Server(STORE_NUMKEYS)),
    forward("zdiffstore", Touch::Server(STORE_NUMKEYS)),
    forward("zunion", Touch::Server(&[keynum(1, false)])),
    forward("zinter", Touch::Server(&[keynum(1, false)])),
    forward("zdiff", Touch::Server(&[keynum(1, false)])),
    forward("memory|usage", Touch::Server(&[range(2, 0, false)])),
];
