//! Request to [`Plan`]: what a command needs and what it does to the cache. Pure functions over the server's COMMAND table.
//!
//! Two sources are merged when the table is built, so that a request costs one map lookup: the server's own COMMAND
//! reply (arity, flags, key specs; modules included) and `command/table.rs`, one row for each command about which the
//! server does not say enough. By which names the server takes its commands, COMMAND INFO tells (`names`); a name that is
//! not among them has the route [`Route::Unlisted`].

use std::collections::HashMap;
use std::ops::Range;

mod build;
mod keys;
mod names;
mod reply;
mod table;

use crate::config::ScriptKeys;
use build::{Spec, Subcommands};
pub use names::{Meaning, Word};
use table::{Shape, StaticRoute};

/// One parsed request: argument ranges into the bytes it was scanned from.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The bytes the ranges point into.
    pub buf: &'a [u8],
    /// `args[0]` is the command's name. Never empty.
    pub args: &'a [Range<usize>],
    /// The cache's hash of argument 1, where that is known already.
    pub hash: Option<u64>,
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
    #[cfg_attr(feature = "program", expect(dead_code, reason = "as it says"))]
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
    /// No table has its name: the server is to be asked what it means.
    Unlisted,
}

/// The shapes of cached reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheRead {
    /// One key (argument 1), one reply. Hash reads name their field-TTL check.
    One(FieldTtl),
    /// MGET: one snapshot of many GETs.
    Mget,
}

/// How a cached read could be outlived by a hash field's TTL (Redis from 7.4 on, Valkey from 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldTtl {
    /// Not a hash read, or the server has no field TTLs.
    No,
    /// The reply depends on the fields named by arguments 2 and following.
    Named,
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
    /// WAIT, WAITAOF: a connection that counts the session's writes, until the answer.
    Wait,
    /// One script: while it runs nothing behind it on its connection is even read, not SCRIPT KILL either. Without a
    /// connection to spare it goes down the lane.
    Alone,
    /// Pub/sub: until the last subscription ends.
    Subscribe,
    /// Until the session ends: CLIENT TRACKING and CACHING.
    Track,
    /// Until the session ends, and its bytes pass unlooked at: MONITOR, CLIENT REPLY/NO-EVICT/NO-TOUCH, unknown state.
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
    /// MODULE LOAD, LOADEX and UNLOAD: the upstream's, after which its commands are others.
    Module,
    /// INFO: the upstream's, with our section.
    Info,
    /// PUBSUB CHANNELS: the upstream's, without the link's.
    Channels,
    /// CLIENT subcommands about the client's own connection: ID, INFO, LIST, SETNAME, GETNAME, SETINFO, GETREDIR, TRACKINGINFO …
    Client,
    /// NEARSIDE …
    Nearside,
}

/// The command's effect on the cache once its reply has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EffectClass {
    /// Nothing: no key is touched.
    None,
    /// Its keys are known: `Keys::writes` are dropped, `Keys::reads` observed.
    Keys,
    /// The command may have written anything: the keys it names are dropped and the reply waits for a barrier.
    Unknown,
    /// Everything may have changed (FLUSHALL, FLUSHDB, SWAPDB …).
    Flush,
    /// No key is touched; users, what they may do or their passwords may be others (ACL SETUSER, CONFIG SET requirepass …).
    Rights,
}

/// The argument positions of the keys of one request; reused between requests.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Keys {
    /// Keys it may change.
    pub writes: Vec<usize>,
    /// Keys it only reads.
    pub reads: Vec<usize>,
}

/// Room for so many keys is kept between requests.
const KEYS_KEPT: usize = 1024;

impl Keys {
    /// Without the room that a command of many keys has taken.
    pub fn shed(self) -> Keys {
        if self.writes.capacity() + self.reads.capacity() > KEYS_KEPT { Keys::default() } else { self }
    }
}

/// The way of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where it is answered.
    pub route: Route,
    /// Its effect on the cache.
    pub effect: EffectClass,
    /// For a cacheable read, a number for the command's name, however it is spelled and whichever server is asked. GET
    /// is 1; MGET has its own, since it answers nil where GET answers WRONGTYPE. Anything else has 0.
    pub id: u16,
    /// For [`CommandTable::name`].
    pub name: u16,
    /// Which command it is, by whatever name the server takes it, if the session has to know.
    pub word: Word,
    /// Whether it may be said again when its connection is lost before the reply: the server itself calls it a read, and
    /// it is no module's command, whose reads may change something after all (a cursor goes on).
    pub repeatable: bool,
}

/// [`Plan::id`] of GET.
pub const GET_ID: u16 = 1;

/// The plan of a GET.
pub const GET: Plan = Plan {
    route: Route::Cache(CacheRead::One(FieldTtl::No)),
    effect: EffectClass::Keys,
    id: GET_ID,
    name: build::GET_NAME,
    word: Word::Other,
    repeatable: true,
};
/// [`Plan::id`] of GET where the server takes another command, or none, by that name: what is cached then is not found by
/// those who say GET.
const RENAMED_GET_ID: u16 = u16::MAX;
const UNKNOWN: Plan = Plan {
    route: Route::Lane,
    effect: EffectClass::Unknown,
    id: 0,
    name: build::NO_NAME,
    word: Word::Other,
    repeatable: false,
};
const UNLISTED: Plan = Plan { route: Route::Unlisted, ..UNKNOWN };
/// The plan of a subcommand that a server may have which has listed none.
const OWN_CONNECTION: Plan = Plan { route: Route::Dedicated(Need::Pin), ..UNKNOWN };

/// Longest command name that is looked up, `container|sub` included. What is longer is unknown.
const NAME_MAX: usize = 256;

type PlacesByName = HashMap<Vec<u8>, usize, ahash::RandomState>;

/// Every command's plan, for one server. Built for each COMMAND reply; a name that is learned later makes a new one.
#[derive(Clone)]
pub struct CommandTable {
    specs: Vec<Spec>,
    /// Places in `specs`, by the command's own name in lower case; a subcommand is `container|sub`.
    places: PlacesByName,
    /// Places in `specs`, by the name by which the server takes the command, in lower case.
    spoken: PlacesByName,
    /// The same of short names, by [`word`].
    short: HashMap<u64, usize, ahash::RandomState>,
    /// Names among `spoken` that are no command's own.
    renamed: usize,
    /// GET means GET.
    get: bool,
    /// By [`Plan::name`].
    names: Vec<String>,
    /// Whether a hash field can expire; unless the server's table says no, it can.
    field_ttl: bool,
    script_keys: ScriptKeys,
}

impl CommandTable {
    /// The table of a server that has not been asked yet, or that does not say: the commands of Redis' core, whose keys and
    /// flags are the same everywhere, as Redis 8.2 describes them.
    pub fn by_heart(script_keys: ScriptKeys) -> Self {
        let (specs, names) = build::specs(&reply::by_heart(), true);
        Self::of(specs, names, true, script_keys)
    }

    /// Builds the table from the raw RESP2 reply to COMMAND.
    ///
    /// # Errors
    /// Says what is wrong if the reply is an error or is not what Redis 6.2 and later send.
    pub fn from_command_reply(reply: &[u8], script_keys: ScriptKeys) -> Result<Self, String> {
        let entries = reply::parse(reply)?;
        let (specs, names) = build::specs(&entries, false);
        let field_ttl = specs.contains_key(&b"hpexpire"[..]);
        Ok(Self::of(specs, names, field_ttl, script_keys))
    }

    fn of(specs: build::Specs, names: Vec<String>, field_ttl: bool, script_keys: ScriptKeys) -> Self {
        let (found, specs): (Vec<_>, Vec<_>) = specs.into_iter().unzip();
        let places: PlacesByName = found.into_iter().zip(0..).collect();
        let spoken = places.iter().filter(|(name, _)| !name.contains(&b'|')).map(|(n, p)| (n.clone(), *p)).collect();
        let short = HashMap::default();
        let mut table = Self { specs, places, spoken, short, renamed: 0, get: true, names, field_ttl, script_keys };
        table.index();
        table
    }

    /// The plan for `request`. Clears and fills `keys`; they are complete for cached reads too.
    pub fn plan(&self, request: &Request<'_>, keys: &mut Keys) -> Plan {
        keys.writes.clear();
        keys.reads.clear();
        if request.len() == 2 && self.get && is_get(request.arg(0)) {
            keys.reads.push(1);
            return GET;
        }
        let Some(spec) = self.spoken(request.arg(0)) else { return UNLISTED };
        let spec = match self.subcommand(spec, request) {
            Ok(spec) => spec,
            Err(plan) => return plan,
        };
        let effect = keys::effect(spec, request, self.script_keys, keys);
        let route = self.route(spec, request);
        let repeatable = spec.repeatable && effect != EffectClass::Unknown;
        let id = if matches!(route, Route::Cache(_)) { spec.id } else { 0 };
        Plan { route, effect, id, name: spec.name, word: spec.word, repeatable }
    }

    /// The name of a command as CLIENT LIST spells it: `get`, `client|list`; `NULL` if it is none.
    pub fn name(&self, number: u16) -> &str {
        self.names.get(usize::from(number)).map_or("NULL", String::as_str)
    }

    /// By the name by which the server takes it.
    fn spoken(&self, name: &[u8]) -> Option<&Spec> {
        let place = match word(name) {
            Some(word) => self.short.get(&word),
            None => self.spoken.get(lower(&[name], &mut [0; NAME_MAX])?),
        };
        place.map(|place| &self.specs[*place])
    }

    /// The subcommand of a container, if the request names one; the container itself where its others are as it is.
    fn subcommand<'a>(&'a self, spec: &'a Spec, request: &Request<'_>) -> Result<&'a Spec, Plan> {
        if spec.subcommands == Subcommands::None || request.len() < 2 {
            return Ok(spec);
        }
        // By the container's own name, so that one that is renamed has the same subcommands.
        let mut room = [0; NAME_MAX];
        let name = lower(&[self.name(spec.name).as_bytes(), b"|", request.arg(1)], &mut room);
        let listed = name.and_then(|name| self.places.get(name)).map(|place| &self.specs[*place]);
        match spec.subcommands {
            Subcommands::All => listed.ok_or(UNKNOWN),
            Subcommands::ByHeart => listed.ok_or(OWN_CONNECTION),
            _ => Ok(listed.unwrap_or(spec)),
        }
    }

    /// A wrong number of arguments goes to the server, which has the words for it.
    fn route(&self, spec: &Spec, request: &Request<'_>) -> Route {
        if !spec.takes(request.len()) {
            return Route::Lane;
        }
        match spec.fate {
            StaticRoute::Forward => Route::Lane,
            StaticRoute::ForwardUnlessBlock if keys::says_block(request) => Route::Dedicated(Need::Block),
            StaticRoute::ForwardUnlessBlock => Route::Lane,
            // Its elements would be kept as replies to GET.
            StaticRoute::Read(Shape::Mget) if !self.get => Route::Lane,
            StaticRoute::Read(shape) => Route::Cache(self.read(shape)),
            StaticRoute::Answer(local) => Route::Local(local),
            StaticRoute::Dedicate(need) => Route::Dedicated(need),
        }
    }

    fn read(&self, shape: Shape) -> CacheRead {
        match shape {
            Shape::Mget => CacheRead::Mget,
            Shape::Fields if self.field_ttl => CacheRead::One(FieldTtl::Named),
            Shape::AllFields if self.field_ttl => CacheRead::One(FieldTtl::Whole),
            _ => CacheRead::One(FieldTtl::No),
        }
    }

    /// The way of every command of this server, as a Markdown table: docs/COMPATIBILITY.md shows the table.
    #[cfg_attr(feature = "program", expect(dead_code, reason = "a test writes the table"))]
    pub fn compatibility(&self) -> String {
        let all = self.places.iter().map(|(name, place)| (name, &self.specs[*place]));
        let mut names: Vec<_> = all.filter(|(_, s)| s.subcommands != Subcommands::All).collect();
        names.sort_unstable_by_key(|(name, _)| *name);
        let mut text = String::from("| fate | commands |\n|---|---|\n");
        for fate in Spec::FATES {
            let of_fate = names.iter().filter(|(_, s)| s.words() == fate);
            let list: Vec<_> = of_fate.map(|(name, _)| build::display(name)).collect();
            if !list.is_empty() {
                text += &format!("| {fate} | {} |\n", list.join(", "));
            }
        }
        text
    }
}

/// A name put together from its parts in lower case; `None`: it is longer than any.
fn lower<'a>(parts: &[&[u8]], room: &'a mut [u8; NAME_MAX]) -> Option<&'a [u8]> {
    let mut end = 0;
    for part in parts {
        let target = room.get_mut(end..end + part.len())?;
        target.copy_from_slice(part);
        target.make_ascii_lowercase();
        end += part.len();
    }
    Some(&room[..end])
}

fn is_get(name: &[u8]) -> bool {
    matches!(name, [g, e, t] if g | 0x20 == b'g' && e | 0x20 == b'e' && t | 0x20 == b't')
}

/// A name of one to eight bytes as a number of its own, in lower case: most commands' names are so short. (A zero in front
/// would be lost.)
fn word(name: &[u8]) -> Option<u64> {
    let short = name.len() <= 8 && name.first().is_some_and(|first| *first != 0);
    short.then(|| name.iter().fold(0, |word, byte| word << 8 | u64::from(byte.to_ascii_lowercase())))
}

#[cfg(test)]
mod tests;
