//! How a request goes on: the outcomes of one look at it, and of one wait.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use crate::node::identity::ConnectionKey;
use crate::node::login::Login;
use crate::upstream::connection::Connection;
use crate::upstream::effect::Effect;

/// The outcome of one request.
pub(super) enum Step {
    /// The request is dealt with.
    Done,
    /// The request goes down this connection.
    Send(Rc<Connection>, Effect),
    /// The request cannot go on yet.
    Stall(Stall),
    /// The request is to be dealt with in this form instead.
    Replace(Vec<u8>),
    /// The session ends once its replies are written.
    Close,
}

/// Why the present request waits.
pub(super) enum Stall {
    /// For everything outstanding to be answered.
    Drain,
    /// For something else.
    For(Pin<Box<dyn Future<Output = After>>>),
    /// For others, as long as they take: a client that goes meanwhile does not get an answer.
    Blocked(Pin<Box<dyn Future<Output = After>>>),
}

/// How a request goes on after it has waited.
pub(super) enum After {
    /// From the start.
    Again,
    /// Upstream, without another look at the cache.
    Upstream,
    /// On the lane: there is no connection for it alone.
    Share,
    /// The request is answered.
    Reply(Bytes),
    /// The request is answered, and the session ends.
    Farewell(Bytes, Why),
    /// The session ends without an answer.
    Leave(Why),
    /// From the start, and the session has this login from here on.
    Begin(Arc<Login>),
    /// The request is answered, and the session has another identity from here on.
    Become(Box<Become>),
}

/// Another identity for the session.
pub(super) struct Become {
    pub(super) key: ConnectionKey,
    pub(super) name: Option<String>,
    pub(super) reply: Bytes,
}

/// The reason for a session's end; words for the log.
pub(super) type Why = &'static str;

pub(super) const SHUT_OUT: Why = "its user cannot log in any more";
