//! One Redis or Valkey behind the proxy: where the server is, who the proxy is there, what is known of it, and the link on which
//! it reports changed keys. All threads share a [`Node`]. A node knows no other node, and none of the connections that carry
//! clients' commands to it ([`crate::upstream`]).

pub mod acl;
pub mod bounds;
pub mod event;
pub mod guesses;
pub mod handshake;
pub mod health;
pub mod identity;
pub mod link;
pub mod login;
pub mod names;
pub mod pauses;
pub mod probe;
pub mod rights;
pub mod settings;
pub mod touch;
mod users;
pub mod watch;
pub mod wire;

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::cache::FlushCause;
use crate::clients::Clients;
use crate::coherence::Coherence;
use crate::command::CommandTable;
use crate::config::Upstream;
use crate::transport::Endpoint;
use bounds::Bounds;
use identity::ConnectionKey;
use login::{End, Logins};
use settings::Settings;

/// How errors begin that the server has not said.
const OWN_ERROR: &str = "-ERR nearside: upstream ";

/// Dedicated connections that are opened at once, far fewer than a server's backlog holds (511): when thousands of clients
/// begin to wait together, none of their connections is thrown away to come again a second later.
const OPENING: usize = 128;
/// One server, as all threads see it.
pub struct Node {
    /// The settings, which all nodes share.
    pub settings: Arc<Settings>,
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
    /// When it last gave any sign of life ([`crate::time::Time`] in nanoseconds).
    pub seen: AtomicU64,
    /// Lanes that are up.
    pub lanes: AtomicUsize,
    /// The server's own bounds, beyond which it ends a connection.
    pub bounds: Bounds,
    /// Lanes that came to rest.
    pub lanes_rested: AtomicU64,
    /// The database that sessions begin in.
    pub home: u32,
    /// Connections that ended because they were sent what cannot be: a reply that nobody asked for, or no RESP.
    pub out_of_turn: AtomicU64,
    /// Whether the server holds commands back.
    pub pauses: pauses::Pauses,
    /// Looks that the watch takes at once.
    pub looks: watch::Looks,
    /// Its ACL as it was seen last.
    pub acl: ArcSwap<acl::AclLook>,
    /// How often its ACL was seen to have changed, or may have.
    pub acl_changes: AtomicU64,
    /// Something that the link relies on has changed: it is to be opened anew.
    pub distrusted: AtomicBool,
    /// Its address leads back to this very process.
    pub ring: AtomicBool,
    /// The link's look at the server when it opened; taken by the watch, whose own first look may come after something was cached.
    pub first_look: ArcSwapOption<watch::Look>,
    /// Turns at opening a dedicated connection; see [`OPENING`].
    opening: Semaphore,
    /// Connections that the server has ever taken.
    opened: AtomicU64,
}

impl Node {
    /// The node at this address, which `upstream` describes.
    pub fn new(settings: Arc<Settings>, upstream: &Upstream, address: Endpoint, coherence: Coherence) -> Node {
        let logins = Logins::new(upstream);
        Node {
            address,
            own: ConnectionKey { login: logins.own().clone(), resp3: false, db: 0, via: None },
            logins,
            guesses: guesses::Guesses::new(settings.wrong_passwords_per_second),
            clients: Arc::default(),
            coherence,
            table: ArcSwap::from_pointee(CommandTable::by_heart(settings.script_keys)),
            without_hello: AtomicBool::new(false),
            lacks: ArcSwap::default(),
            names: names::Names::default(),
            version: ArcSwap::from_pointee("unknown".into()),
            health: health::Health::default(),
            touches: touch::Touches::default(),
            seen: AtomicU64::new(0),
            lanes: AtomicUsize::new(0),
            bounds: Bounds::new(settings.proto_max_bulk_len),
            lanes_rested: AtomicU64::new(0),
            home: upstream.db,
            out_of_turn: AtomicU64::new(0),
            pauses: pauses::Pauses::default(),
            looks: watch::Looks::default(),
            acl: ArcSwap::default(),
            acl_changes: AtomicU64::new(0),
            distrusted: AtomicBool::new(false),
            ring: AtomicBool::new(false),
            first_look: ArcSwapOption::empty(),
            opening: Semaphore::new(OPENING),
            opened: AtomicU64::new(0),
            settings,
        }
    }

    /// Whether changes of this key are reported. To be asked after a token was taken, as [`Coherence::generation`] is: if
    /// the mode changes later, the token is void.
    pub fn covers(&self, key: &[u8]) -> bool {
        let prefixes = &self.settings.prefixes;
        prefixes.is_empty() || prefixes.iter().any(|prefix| key.starts_with(prefix.as_bytes()))
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
    pub fn note_broken(&self, name: &str, why: &io::Error) {
        if self.count_broken(why) {
            tracing::warn!("{name} to {} is lost, and opened anew when it is needed: {why}", self.address);
        }
    }

    /// Counts it, if it is.
    pub fn count_broken(&self, why: &io::Error) -> bool {
        let broken = why.kind() == io::ErrorKind::InvalidData;
        self.out_of_turn.fetch_add(u64::from(broken), Ordering::Relaxed);
        broken
    }

    /// The user was deleted, or another of its name has taken its place: as at the server, its connections are closed. False:
    /// of some only the next look can tell, and it is wanted.
    pub fn end_logins(&self, user: &[u8], end: End) -> bool {
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
        let full = Duration::from_millis(10).saturating_mul(1 << failures.min(16)).min(self.settings.reconnect_max);
        full.mul_f64(0.5 + crate::chance::uniform() / 2.0)
    }
}
