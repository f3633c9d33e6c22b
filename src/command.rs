//! Request to [`Plan`]: what a command needs and what it does to the cache. Pure functions over the server's COMMAND table.

use std::ops::Range;

/// One parsed request: argument ranges into the bytes it was scanned from.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The bytes the ranges point into.
    pub buf: &'a [u8],
    /// `args[0]` is the command's name. Never empty.
    pub args: &'a [Range<usize>],
}

impl<'a> Request<'a> {
    /// The bytes of argument `i`.
    pub fn arg(&self, i: usize) -> &'a [u8] {
        &self.buf[self.args[i].clone()]
    }
    /// Number of arguments, the name included.
    pub fn len(&self) -> usize {
        self.args.len()
    }
    /// A request is never empty; for clippy's symmetry.
    pub fn is_empty(&self) -> bool {
        self.args.is_empty()
    }
}

/// Where a command is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// From the cache if it can be. Key: argument 1, or for `Mget` every argument from 1 on.
    Cache(CacheRead),
    /// On the shared lane.
    Lane,
    /// On a connection lent to the session.
    Dedicated(Need),
    /// By the proxy itself.
    Local(Local),
}

/// The shapes of cached reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheRead {
    /// One key (argument 1), one reply. Hash reads name their field-TTL check.
    One(FieldTtl),
    /// MGET: one snapshot of many GETs.
    Mget,
}

/// How a cached read could be outlived by a hash field's TTL (FACTS: Redis >= 7.4, Valkey >= 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldTtl {
    /// Not a hash read, or the server has no field TTLs.
    No,
    /// The reply depends on the fields named by arguments 2.. : `fields` of them.
    Named {
        /// How many of the arguments from 2 on are fields.
        fields: usize,
    },
    /// The reply depends on every field (HGETALL, HLEN …).
    Whole,
}

/// Why a connection of its own is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// MULTI, WATCH: until EXEC, DISCARD, UNWATCH.
    Transaction,
    /// One blocking command.
    Block,
    /// Pub/sub: until the last subscription ends.
    Subscribe,
    /// Until the session ends: MONITOR, CLIENT TRACKING/REPLY/NO-EVICT/NO-TOUCH, unknown state.
    Pin,
}

/// Commands that the proxy answers, or whose session state it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Local {
    /// SELECT
    Select,
    /// AUTH
    Auth,
    /// HELLO
    Hello,
    /// QUIT
    Quit,
    /// RESET
    Reset,
    /// INFO: the upstream's, with our section.
    Info,
    /// CLIENT subcommands about the client's own connection: ID, INFO, LIST, SETNAME, GETNAME, SETINFO, GETREDIR, TRACKINGINFO …
    Client,
    /// NEARSIDE …
    Nearside,
}

/// What the command does to the cache once its reply has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: no key is touched.
    None,
    /// Its keys are known: `Keys::writes` are dropped, `Keys::reads` observed.
    Keys,
    /// It may have written anything: the keys it names are dropped and the reply waits for a barrier.
    Unknown,
    /// Everything may have changed (FLUSHALL, FLUSHDB, SWAPDB …).
    Flush,
}

/// The argument positions of the keys of one request; reused between requests.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Keys {
    /// Keys it may change.
    pub writes: Vec<usize>,
    /// Keys it only reads.
    pub reads: Vec<usize>,
}

/// What is to be done with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where it is answered.
    pub route: Route,
    /// What it does to the cache.
    pub effect: Effect,
    /// The command's number in the cache; 0 if it is not cached.
    pub id: u16,
}

use crate::config::ScriptKeys;
/// stub
pub struct Table;
impl Table {
    /// stub
    pub fn empty(_: ScriptKeys) -> Table {
        Table
    }
    /// stub
    pub fn from_command_reply(_: &[u8], _: ScriptKeys) -> Result<Table, String> {
        Ok(Table)
    }
    /// stub
    pub fn plan(&self, _r: &Request<'_>, _keys: &mut Keys) -> Plan {
        Plan { route: Route::Lane, effect: Effect::Unknown, id: 0 }
    }
}
