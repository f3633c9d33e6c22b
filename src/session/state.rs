//! The facts that a session keeps, in groups: those of one group change together.

use std::rc::Rc;

use super::Why;
use super::leaving::Leaving;
use crate::command::Word;
use crate::node::identity::ConnectionKey;
use crate::shared::Shared;
use crate::time::Time;
use crate::upstream::Pool;
use crate::upstream::connection::Connection;
use crate::upstream::kept::Hold;
use crate::upstream::lanes::Cargo;

/// The identity of the session, until SELECT, AUTH, HELLO or RESET gives it another.
pub(super) struct Identity {
    pub(super) key: ConnectionKey,
    /// The number of (user, database, protocol) under which replies are cached.
    pub(super) view: u32,
    /// Whether GET and MGET may answer for each other, once that was looked up.
    pub(super) like_get: Option<LikeGet>,
    /// Keeps the pool's idle connections of this login.
    _hold: Hold,
}

impl Identity {
    pub(super) fn new(shared: &Shared, pool: &Pool, key: ConnectionKey) -> Identity {
        let hold = pool.hold(&key.login);
        Identity { view: shared.view(&key), key, like_get: None, _hold: hold }
    }
}

/// The user's rights to GET and MGET, as of one look at the ACL.
#[derive(Clone, Copy)]
pub(super) struct LikeGet {
    /// How often the ACL had changed.
    pub(super) as_of: u64,
    /// The user may say both, of the same keys.
    pub(super) shares: bool,
}

/// The lanes of the session's identity.
pub(super) struct SessionLanes {
    /// For any request.
    pub(super) any: Rc<Connection>,
    /// For reads alone, if the server makes such a lane necessary.
    pub(super) reads: Option<Rc<Connection>>,
    /// The lane of the latest request.
    pub(super) cargo: Cargo,
}

impl SessionLanes {
    pub(super) fn new(pool: &Pool, key: &ConnectionKey) -> SessionLanes {
        SessionLanes { any: pool.lane(key), reads: None, cargo: Cargo::Any }
    }

    /// Leaves the lanes of another identity for those of `key`.
    pub(super) fn change(&mut self, pool: &Pool, key: &ConnectionKey) {
        self.any = pool.lane(key);
        self.reads = None;
    }

    /// The session has just done something: its lanes are in use.
    pub(super) fn touch(&self, now: Time) {
        self.any.touch(now);
        if let Some(reads) = &self.reads {
            reads.touch(now);
        }
    }
}

/// The times by which the freshness of a hit is decided ([`crate::coherence::Coherence::watermark`]).
pub(super) struct Freshness {
    /// When the last bytes came in: no request in the input arrived later.
    pub(super) arrived: Time,
    /// When the requests at hand began to be dealt with.
    pub(super) now: Time,
    /// `causal`: the latest thing that a hit has shown.
    pub(super) shown: Time,
}

impl Freshness {
    pub(super) fn new(now: Time) -> Freshness {
        Freshness { arrived: now, now, shown: Time::ZERO }
    }
}

/// The way of the present request so far. Each request begins with the default.
#[derive(Default)]
pub(super) struct Present {
    /// How often it has waited.
    pub(super) tries: u32,
    /// Its waiting ended with the word to go on to the server: no look in the cache, no question about its right.
    pub(super) bypass: bool,
    /// No connection of its own can be had for it.
    pub(super) shares: bool,
    /// The request has been given another form.
    pub(super) replaced: bool,
}

/// The command that was planned last.
pub(super) struct Latest {
    /// The number of its name, for CLIENT LIST.
    pub(super) name: u32,
    pub(super) word: Word,
    /// The command may be sent again if its lane is lost.
    pub(super) repeatable: bool,
}

impl Default for Latest {
    fn default() -> Latest {
        Latest { name: 0, word: Word::Other, repeatable: false }
    }
}

/// The requests that are not yet added to the process's counters.
#[derive(Default)]
pub(super) struct Uncounted {
    pub(super) commands: u64,
    pub(super) hits: u64,
}

/// The state of the present turn of the loop.
#[derive(Default)]
pub(super) struct Round {
    /// The server holds commands back, at a client's wish: each session waits on a connection of its own.
    pub(super) paused: bool,
    /// Input was left alone because too many replies are owed already.
    pub(super) held_back: bool,
}

/// The session before it is known which user it is.
#[derive(Default)]
pub(super) struct Acquaintance {
    /// The first request was looked at: whether it is the handshake of a proxy.
    pub(super) recognised: bool,
    /// The session's introduction was asked for because another client redirects to it.
    pub(super) introduced: bool,
}

/// The end of the session, as far as it has begun.
#[derive(Default)]
pub(super) struct Ending {
    /// Nothing more is read; the replies that are owed are written. For this reason.
    pub(super) closing: Option<Why>,
    /// The client sends nothing more.
    pub(super) eof: bool,
    /// The proxy stops, or the client sends nothing more: see [`super::leaving`].
    pub(super) leaving: Option<Leaving>,
}

/// The client to which CLIENT TRACKING redirects.
#[derive(Clone, Copy, Default)]
pub(super) struct Redirect {
    /// The server's number of that client's connection.
    pub(super) upstream_id: i64,
    /// The client's number here.
    pub(super) id: u64,
}
