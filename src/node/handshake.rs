//! How a connection to a node begins: who we are, in which protocol and database, and where to report changed keys.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::error::Elapsed;

use super::Node;
use super::identity::{ConnectionKey, Role};
use super::login::{Login, Proof};
use super::rights::{self, Rights};
use super::wire::{NOAUTH, Refusal, Wire, accepted, is_hello, is_passing, out_of_turn, selecting};
use crate::coherence::standing::Mode;
use crate::resp;
use crate::time::Time;
use crate::transport::Stream;

/// An open connection.
pub struct Opened {
    /// The socket.
    pub stream: Stream,
    /// Bytes read past the handshake.
    pub input: BytesMut,
    /// The reply to HELLO.
    pub hello: Bytes,
    /// Rights that its user gives the proxy on it.
    pub rights: Rights,
    /// The link's generation that changed keys are reported to.
    pub armed: Option<u64>,
    /// When the handshake was sent: the server had the connection after that.
    pub asked: Time,
}

/// CLIENT TRACKING towards the link.
pub fn track(client_id: i64) -> Vec<u8> {
    let id = client_id.to_string();
    resp::encode(&["CLIENT", "TRACKING", "ON", "REDIRECT", &id, "OPTIN"])
}

/// As whom else than its present user a session's database may be selected, in the order they are tried. The right to was
/// asked when the session chose it; the present user may have none.
fn selectors<'a>(node: &'a Node, key: &'a ConnectionKey) -> impl Iterator<Item = &'a Arc<Login>> {
    let earlier = [Some(&node.own.login), key.via.as_ref()].into_iter().flatten();
    earlier.filter(|login| key.db != 0 && **login != key.login)
}

/// Connects and greets, in `connect_timeout` at the most once its turn has come; before, for a lane, asks for its user's rights.
pub async fn open(node: &Arc<Node>, key: &ConnectionKey, role: Role) -> Result<Opened, Refusal> {
    if key.login.is_stranger() {
        return Err(Refusal::Server(Bytes::from_static(NOAUTH)));
    }
    let limit = node.settings.connect_timeout;
    let rights = if role == Role::Lane { rights::of(node, key).await } else { Rights::NONE };
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"));
    let opening = if role == Role::Dedicated { turn(&node.opening, &node.opened, limit).await } else { Ok(None) };
    let _turn = opening.map_err(|_| late())?;
    let greeted = async {
        for selector in selectors(node, key) {
            match greet(node, key, role, rights, Some(selector)).await {
                // This one may not, or is gone.
                Err(Refusal::Server(reply) | Refusal::Login(reply)) if !is_passing(&reply) => {}
                outcome => return outcome,
            }
        }
        greet(node, key, role, rights, None).await
    };
    match tokio::time::timeout(limit, greeted).await {
        Ok(result) => {
            node.opened.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
            result
        }
        Err(_) => Err(Refusal::Io(late())),
    }
}

/// A turn among the connections that are opened at once. Whoever has thousands before it waits for longer than the server may take
/// for one of them, as long as some of them come to open.
async fn turn<'a>(
    turns: &'a Semaphore,
    opened: &AtomicU64,
    limit: Duration,
) -> Result<Option<SemaphorePermit<'a>>, Elapsed> {
    loop {
        let before = opened.load(Ordering::Relaxed);
        match tokio::time::timeout(limit, turns.acquire()).await {
            Ok(turn) => return Ok(turn.ok()),
            Err(_) if opened.load(Ordering::Relaxed) != before => {}
            Err(late) => return Err(late),
        }
    }
}

async fn greet(
    node: &Arc<Node>,
    key: &ConnectionKey,
    role: Role,
    rights: Rights,
    selector: Option<&Arc<Login>>,
) -> Result<Opened, Refusal> {
    let mut wire = Wire::connect(node).await?;
    wire.stream.give_up_after(node.settings.upstream_timeout)?;
    let asked = Time::now();
    if let Some(login) = selector {
        wire.log_in(node, login, false, role.name(), 1).await?;
        wire.select(node, key.db).await?;
    }
    let db = if selector.is_some() { 0 } else { key.db };
    let hello = wire.log_in(node, &key.login, key.resp3, role.name(), usize::from(db != 0)).await?;
    arm(node, wire, hello, rights, db, asked).await
}

/// Makes a connection of this key out of one of the same login that is open, in database `db`.
pub async fn take_over(
    node: &Arc<Node>,
    mut wire: Wire,
    db: u32,
    key: &ConnectionKey,
    role: Role,
) -> Result<Opened, Refusal> {
    let rights = if role == Role::Lane { rights::of(node, key).await } else { Rights::NONE };
    wire.stream.give_up_after(node.settings.upstream_timeout)?;
    let asked = Time::now();
    let hello = wire.introduce(node, None, key.resp3, role.name(), usize::from(db != key.db)).await?;
    if !is_hello(&hello) {
        // The connection is not as it was: RESET, or a server that has changed.
        return Err(out_of_turn(&hello).into());
    }
    if db != key.db {
        wire.select(node, key.db).await?;
    }
    arm(node, wire, hello, rights, 0, asked).await
}

/// The rest of the greeting, once the server knows who speaks: the database, unless it is 0, and the reports of changed keys.
async fn arm(
    node: &Arc<Node>,
    mut wire: Wire,
    hello: Bytes,
    rights: Rights,
    db: u32,
    asked: Time,
) -> Result<Opened, Refusal> {
    // If there is another by the time of the answer, the lane is armed for a generation that is over: for none.
    let link = node.coherence.link().filter(|_| rights.fill);
    let tracking = link.as_ref().is_some_and(|link| link.mode == Mode::Tracked);
    let track = link.as_ref().filter(|_| tracking).map(|link| track(link.client_id));
    let select = (db != 0).then(|| selecting(node, db));
    let request: Vec<u8> = select.iter().chain(&track).flatten().copied().collect();
    wire.send(&request).await?;
    if select.is_some() {
        wire.accepted().await?;
    }
    let armed = match link {
        Some(link) if !tracking || accepted(&wire.reply().await?)? => Some(link.generation),
        _ => None,
    };
    Ok(Opened { stream: wire.stream, input: wire.input, hello, rights, armed, asked })
}

/// Whether the server takes a new connection of the proxy's own login now: asked unless that is known. With the
/// connection that was opened to find out, if there was one.
pub async fn prove(node: &Arc<Node>) -> Result<Option<Opened>, Refusal> {
    let logins = &node.logins;
    let began = Time::now();
    let _turn = logins.proving.lock().await;
    match logins.proof() {
        Some(Proof::Accepted) => return Ok(None),
        Some(Proof::Refused(_, reply)) => return Err(Refusal::Login(reply)),
        None => {}
    }
    // Whoever waited while the server could not be asked does not wait once more.
    if let Some((_, error)) = logins.proven().failed.as_ref().filter(|(at, _)| *at >= began) {
        return Err(Refusal::Server(error.clone()));
    }
    // Before the server is asked: what changes from here on is a new doubt.
    let as_of = logins.doubts();
    let opened = open(node, &node.own, Role::Dedicated).await;
    let mut proven = logins.proven();
    match &opened {
        Ok(_) => proven.proof = Some((as_of, Proof::Accepted)),
        Err(Refusal::Login(reply)) => proven.proof = Some((as_of, Proof::Refused(Time::now(), reply.clone()))),
        Err(other) => proven.failed = Some((Time::now(), other.reply(node))),
    }
    drop(proven);
    opened.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_turn_comes_as_long_as_others_come_to_open() {
        let (turns, opened, limit) = (Semaphore::new(1), AtomicU64::new(0), Duration::from_millis(60));
        let held = turns.acquire().await;
        // The one before it holds its turn for far longer than the limit, while others come to open.
        let others = async {
            for _ in 0..12 {
                tokio::time::sleep(limit / 4).await;
                opened.fetch_add(1, Ordering::Relaxed);
            }
            drop(held);
        };
        let (_, waited) = tokio::join!(others, turn(&turns, &opened, limit));
        assert!(waited.is_ok_and(|turn| turn.is_some()));
        let _held = turns.acquire().await;
        assert!(turn(&turns, &opened, limit).await.is_err(), "nobody comes to open");
    }
}
