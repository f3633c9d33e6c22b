//! The Redis or Valkey behind the proxy, and the connections to it. A thread has its own lanes and its own idle
//! dedicated connections; the link and everything in [`Node`] is shared by all.

pub mod acl;
pub mod bounds;
pub mod capacity;
pub mod change;
pub mod connection;
pub mod dedicated;
pub mod effect;
pub mod event;
pub mod fields;
pub mod fill;
pub mod guesses;
pub mod guest;
pub mod handshake;
pub mod health;
pub mod judge;
pub mod kept;
pub mod lanes;
pub mod link;
pub mod login;
pub mod monitor;
pub mod names;
mod panicking;
pub mod pauses;
pub mod permit;
pub mod probe;
pub mod refusal;
pub mod rights;
pub mod touch;
pub mod transaction;
mod users;
pub mod watch;

use std::borrow::Cow;
use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Context;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::LocalSet;

use crate::cache::FlushCause;
use crate::clients::Clients;
use crate::coherence::Coherence;
use crate::command::CommandTable;
use crate::config::{Config, Invalidation, Level, ScriptKeys, Upstream};
use crate::transport::Endpoint;
use bounds::Bounds;
use capacity::Capacity;
use connection::{Around, Connection, Role};
use dedicated::{IDLE, IdleSet};
use lanes::{Cargo, Lanes};
use login::{End, Login, Logins};

/// How errors begin that the server has not said.
const OWN_ERROR: &str = "-ERR nearside: upstream ";

/// The properties that make two connections interchangeable.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ConnectionKey {
    /// The login it speaks as.
    pub login: Arc<Login>,
    /// Protocol 3.
    pub resp3: bool,
    /// Database.
    pub db: u32,
    /// The session's login when it chose the database, if another. Tried if the proxy's own user cannot log in: the
    /// present user may have no right to select.
    pub via: Option<Arc<Login>>,
}

impl ConnectionKey {
    /// The same session after AUTH: it stays in its database.
    pub fn authenticated(&self, login: Arc<Login>) -> ConnectionKey {
        let chosen_as = self.via.as_ref().unwrap_or(&self.login);
        let helps = self.db != 0 && !chosen_as.is_stranger() && chosen_as.user() != login.user();
        ConnectionKey { via: helps.then(|| chosen_as.clone()), login, ..self.clone() }
    }

    /// The name of the user it speaks as.
    pub fn user(&self) -> &[u8] {
        self.login.user()
    }
}

/// One server, as all threads see it.
pub struct Node {
    /// Where it is, and whether TLS leads there.
    pub address: Endpoint,
    /// As whom the proxy itself speaks to it: the link, the watch, and whoever asks about users.
    pub own: ConnectionKey,
    /// The logins of its connections.
    pub logins: Logins,
    /// How fast passwords are guessed.
    pub guesses: guesses::Guesses,
    /// The sessions of this process, which end with their logins.
    pub clients: Arc<Clients>,
    /// Cache and clocks.
    pub coherence: Coherence,
    /// Its commands, as it described them last.
    pub table: ArcSwap<CommandTable>,
    /// HELLO was refused as a command: connections say who they are by AUTH and CLIENT SETNAME.
    pub without_hello: AtomicBool,
    /// Abilities that the server lacks and the proxy would use, in words; empty: none.
    pub lacks: ArcSwap<String>,
    /// Names of commands that are not in the table.
    pub names: names::Names,
    /// Product and version.
    pub version: ArcSwap<String>,
    /// Whether it answers.
    pub health: health::Health,
    /// Keys named to the server as used.
    pub touches: touch::Touches,
    /// The setting of the same name ([`Config`]).
    pub touch_per_second: usize,
    /// When it last gave any sign of life ([`crate::time::Time`] in nanoseconds).
    pub seen: AtomicU64,
    /// Lanes that are up.
    pub lanes: AtomicUsize,
    /// The server's own bounds, beyond which it ends a connection.
    pub bounds: Bounds,
    /// Lanes that came to rest.
    pub lanes_rested: AtomicU64,
    /// The database that sessions begin in.
    home: u32,
    /// Connections that ended because they were sent what cannot be: a reply that nobody asked for, or no RESP.
    pub out_of_turn: AtomicU64,
    /// The setting of the same name ([`Config`]).
    pub connect_timeout: Duration,
    /// The setting of the same name ([`Config`]).
    pub upstream_timeout: Duration,
    /// The setting of the same name ([`Config`]).
    pub heartbeat: Duration,
    /// The setting of the same name ([`Config`]).
    pub script_keys: ScriptKeys,
    /// Whether the server holds commands back.
    pub pauses: pauses::Pauses,
    /// Looks that the watch takes at once.
    pub looks: watch::Looks,
    /// The setting of the same name ([`Config`]).
    pub invalidation: Invalidation,
    /// The setting [`Config::broadcast_prefixes`].
    pub prefixes: Vec<String>,
    /// The setting of the same name ([`Config`]).
    pub max_ttl: Duration,
    /// Levels that listeners are configured for.
    pub wanted: Vec<Level>,
    /// Its ACL as it was seen last.
    pub acl: ArcSwap<acl::Seen>,
    /// How often its ACL was seen to have changed, or may have.
    pub acl_changes: AtomicU64,
    /// Something that the link relies on has changed: it is to be opened anew.
    pub distrusted: AtomicBool,
    /// Its address leads back to this very process.
    pub ring: AtomicBool,
    /// The link's look at the server when it opened; taken by the watch, whose own first look may come after something was cached.
    pub first_look: ArcSwapOption<watch::Look>,
    /// How often [`watch`] looks.
    pub watch_interval: Duration,
    reconnect_max: Duration,
    /// Turns at opening a dedicated connection; see [`OPENING`].
    opening: Semaphore,
    /// Connections that the server has ever taken.
    opened: AtomicU64,
}

impl Node {
    /// The node at this address, which `upstream` describes.
    pub fn new(config: &Config, upstream: &Upstream, address: Endpoint, coherence: Coherence) -> Node {
        let logins = Logins::new(upstream);
        Node {
            address,
            own: ConnectionKey { login: logins.own().clone(), resp3: false, db: 0, via: None },
            logins,
            guesses: guesses::Guesses::new(config.wrong_passwords_per_second),
            clients: Arc::default(),
            coherence,
            table: ArcSwap::from_pointee(CommandTable::by_heart(config.script_keys)),
            without_hello: AtomicBool::new(false),
            lacks: ArcSwap::default(),
            names: names::Names::default(),
            version: ArcSwap::from_pointee("unknown".into()),
            health: health::Health::default(),
            touches: touch::Touches::default(),
            touch_per_second: config.touch_per_second,
            seen: AtomicU64::new(0),
            lanes: AtomicUsize::new(0),
            bounds: Bounds::new(config.proto_max_bulk_len),
            lanes_rested: AtomicU64::new(0),
            home: upstream.db,
            out_of_turn: AtomicU64::new(0),
            connect_timeout: config.connect_timeout,
            upstream_timeout: config.upstream_timeout,
            heartbeat: config.heartbeat,
            script_keys: config.script_keys,
            pauses: pauses::Pauses::default(),
            looks: watch::Looks::default(),
            invalidation: config.invalidation,
            prefixes: config.broadcast_prefixes.clone(),
            max_ttl: config.max_ttl,
            wanted: levels(config),
            acl: ArcSwap::default(),
            acl_changes: AtomicU64::new(0),
            distrusted: AtomicBool::new(false),
            ring: AtomicBool::new(false),
            first_look: ArcSwapOption::empty(),
            watch_interval: (config.max_staleness / 2).min(Duration::from_secs(1)),
            reconnect_max: config.reconnect_max,
            opening: Semaphore::new(OPENING),
            opened: AtomicU64::new(0),
        }
    }

    /// Whether changes of this key are reported. To be asked after a token was taken, as [`Coherence::generation`] is: if
    /// the mode changes later, the token is void.
    pub fn covers(&self, key: &[u8]) -> bool {
        self.prefixes.is_empty() || self.prefixes.iter().any(|prefix| key.starts_with(prefix.as_bytes()))
    }

    /// Rights may have been granted or withdrawn: lanes ask for theirs again, and what was cached under the old ones goes.
    fn acl_changed(&self) {
        self.acl_changes.fetch_add(1, Ordering::AcqRel);
        self.logins.doubt();
        self.coherence.flush(FlushCause::Acl);
    }

    /// They have been changed through this proxy, or may have: the watch looks at once for what else that means.
    pub fn rights_changed(&self) {
        self.acl_changed();
        self.looks.want();
    }

    /// Says and counts that a connection is lost because of what came on it, if that is why.
    fn note_broken(&self, name: &str, why: &io::Error) {
        if self.count_broken(why) {
            tracing::warn!("{name} to {} is lost, and opened anew when it is needed: {why}", self.address);
        }
    }

    fn count_broken(&self, why: &io::Error) -> bool {
        let broken = why.kind() == io::ErrorKind::InvalidData;
        self.out_of_turn.fetch_add(u64::from(broken), Ordering::Relaxed);
        broken
    }

    /// The user was deleted, or another of its name has taken its place: as at the server, its connections are closed. False:
    /// of some only the next look can tell, and it is wanted.
    fn end_logins(&self, user: &[u8], end: End) -> bool {
        let ended = self.logins.end(user, end);
        for login in ended.logins {
            tracing::info!("user {} was deleted: its sessions are closed", String::from_utf8_lossy(user));
            self.clients.kill_login(login.number());
        }
        if ended.undecided {
            self.looks.want();
        }
        !ended.undecided
    }

    /// An error reply in the proxy's name.
    pub fn error(&self, text: &str) -> Bytes {
        let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Bytes::from(format!("{OWN_ERROR}{}: {line}\r\n", self.address))
    }

    /// The text of an error reply made by [`Node::error`]; `None`: the error is the server's.
    pub fn own_error<'a>(&self, reply: &'a [u8]) -> Option<Cow<'a, str>> {
        let text = reply.strip_prefix(OWN_ERROR.as_bytes())?;
        let text = text.strip_prefix(format!("{}: ", self.address).as_bytes()).unwrap_or(text);
        Some(String::from_utf8_lossy(text.trim_ascii_end()))
    }

    /// Whether an error reply is of [`Node::error`], and not the server's.
    pub fn is_own_error(reply: &[u8]) -> bool {
        reply.starts_with(OWN_ERROR.as_bytes())
    }

    /// How long to wait after so many failures: doubling from 10 ms, with jitter so that proxies do not come in step.
    pub fn backoff(&self, failures: u32) -> Duration {
        let full = Duration::from_millis(10).saturating_mul(1 << failures.min(16)).min(self.reconnect_max);
        full.mul_f64(0.5 + crate::chance::uniform() / 2.0)
    }
}

/// The levels of the listeners, each once.
fn levels(config: &Config) -> Vec<Level> {
    let all = [Level::Bounded, Level::Causal, Level::Linearizable];
    all.into_iter().filter(|level| config.listen.iter().any(|l| l.consistency == *level)).collect()
}

/// Has a connection polled again after the sessions: woken at once it would be the next in its own line, and could bring
/// more than a session may have before that is asked.
pub fn wake_after_sessions(cx: &mut Context<'_>) {
    // Polling a fresh `yield_now` puts this task on the runtime's deferred list: it is woken after the sessions now ready have run.
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

/// The connections of one thread.
pub struct Pool {
    /// The node they lead to.
    pub node: Arc<Node>,
    capacity: Arc<Capacity>,
    lanes: Rc<Lanes>,
    idle: Rc<IdleSet>,
    scripts: Rc<Cell<usize>>,
    /// By which strangers are answered.
    pub guest: guest::Guest,
    /// By which known logins are judged.
    pub judge: judge::Judge,
    /// The connections' tasks.
    tasks: LocalSet,
}

/// Dedicated connections that are opened at once, far fewer than a server's backlog holds (511): when thousands of clients
/// begin to wait together, none of their connections is thrown away to come again a second later.
const OPENING: usize = 128;
/// One of the few connections that scripts may have at once, so that many scripts do not mean many connections.
pub struct Turn(Rc<Cell<usize>>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Pool {
    /// An empty pool.
    pub fn new(node: Arc<Node>, capacity: Arc<Capacity>) -> Pool {
        Pool {
            lanes: Rc::new(Lanes::new(node.clone(), capacity.clone())),
            idle: IdleSet::new(capacity.clone()),
            node,
            capacity,
            scripts: Rc::default(),
            guest: guest::Guest::default(),
            judge: judge::Judge::default(),
            tasks: LocalSet::new(),
        }
    }

    /// Runs its connections, for good.
    pub async fn run(&self) {
        let tend = async {
            tokio::join!(self.idle.tend(), self.lanes.tend());
        };
        self.tasks.run_until(tend).await
    }

    fn start_lane(&self, key: &ConnectionKey) -> Rc<Connection> {
        let connection = Connection::new(self.node.clone(), key.clone(), Role::Lane);
        let around = Around { lanes: Some(self.lanes.clone()), idle: self.idle.clone() };
        self.tasks.spawn_local(panicking::run(connection.clone(), around, None));
        connection
    }

    /// The shared connection for this user, protocol and database.
    pub fn lane(&self, key: &ConnectionKey) -> Rc<Connection> {
        self.lanes.get(key, Cargo::Any, || self.start_lane(key))
    }

    /// The one for reads alone.
    pub fn reads(&self, key: &ConnectionKey) -> Rc<Connection> {
        self.lanes.get(key, Cargo::Reads, || self.start_lane(key))
    }

    /// The right to lend a connection to a script; `None`: there are as many as are kept idle, this one shares a lane.
    pub fn turn(&self) -> Option<Turn> {
        let running = self.scripts.get();
        (running < IDLE).then(|| {
            self.scripts.set(running + 1);
            Turn(self.scripts.clone())
        })
    }
}
