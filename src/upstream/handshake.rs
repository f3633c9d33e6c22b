//! How a connection to a node begins: who we are, in which protocol and database, and where to report changed keys.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use std::future::poll_fn;

use super::connection::Role;
use super::{ConnectionKey, Creds, Node};
use crate::buffer::OutBuf;
use crate::coherence::standing::Mode;
use crate::resp::{self, Cutter};
use crate::time::Time;
use crate::transport::Stream;

/// An open connection.
pub struct Opened {
    /// The socket.
    pub stream: Stream,
    /// What has been read past the handshake.
    pub input: BytesMut,
    /// The reply to HELLO.
    pub hello: Bytes,
    /// The link's generation that changed keys are reported to.
    pub armed: Option<u64>,
    /// The server's number for the connection; 0 if we may not ask, [`NAMELESS`] if it would not say now.
    pub client_id: i64,
    /// When the handshake was sent: the server had the connection after that.
    pub asked: Time,
}

/// Why a connection could not be opened.
#[derive(Debug)]
pub enum Refusal {
    /// The node was not reached.
    Io(io::Error),
    /// The node said this: clients are told the same.
    Server(Bytes),
}

impl Refusal {
    /// The error that clients are told.
    pub fn reply(&self, node: &Node) -> Bytes {
        match self {
            Refusal::Io(e) => node.error(&format!("cannot be reached: {e}")),
            Refusal::Server(reply) => reply.clone(),
        }
    }
}

/// Whether an error is one of the moment: asked again later, the server may well do it.
pub fn is_passing(reply: &[u8]) -> bool {
    [&b"-BUSY"[..], b"-LOADING", b"-MASTERDOWN"].iter().any(|word| reply.starts_with(word))
}

impl From<io::Error> for Refusal {
    fn from(e: io::Error) -> Self {
        Refusal::Io(e)
    }
}

/// A connection opened while the server was busy: nobody can be told which it is, so it is used once.
pub const NAMELESS: i64 = -1;

/// CLIENT TRACKING towards the link.
pub fn track(client_id: i64) -> Vec<u8> {
    let id = client_id.to_string();
    resp::own(&["CLIENT", "TRACKING", "ON", "REDIRECT", &id, "OPTIN"])
}

/// HELLO, with AUTH if there are credentials.
pub fn hello(key: &ConnectionKey) -> Vec<u8> {
    hello_as(key, key.creds.as_deref())
}

fn hello_as(key: &ConnectionKey, creds: Option<&Creds>) -> Vec<u8> {
    let mut args: Vec<&[u8]> = vec![b"HELLO", if key.resp3 { b"3" } else { b"2" }];
    if let Some(creds) = creds {
        args.extend([b"AUTH".as_slice(), &creds.user, &creds.password]);
    }
    resp::own(&args)
}

/// HELLO and SELECT, as the session has come to its user and its database; and how many replies that makes.
fn greeting(key: &ConnectionKey) -> (Vec<u8>, usize) {
    let select = resp::own(&["SELECT", &key.db.to_string()]);
    match &key.via {
        Some(via) => ([hello_as(key, via.as_deref()), select, hello(key)].concat(), 3),
        None if key.db != 0 => ([hello(key), select].concat(), 2),
        None => (hello(key), 1),
    }
}

/// Connects and greets, in `connect_timeout` at the most.
pub async fn open(node: &Arc<Node>, key: &ConnectionKey, role: Role) -> Result<Opened, Refusal> {
    let limit = node.connect_timeout;
    let greeted = async {
        let _turn = if role == Role::Dedicated { node.opening.acquire().await.ok() } else { None };
        match greet(node, key, role).await {
            // Who chose the database is gone: then it is for the present user to select.
            Err(Refusal::Server(_)) if key.via.is_some() => {
                greet(node, &ConnectionKey { via: None, ..key.clone() }, role).await
            }
            other => other,
        }
    };
    match tokio::time::timeout(limit, greeted).await {
        Ok(result) => result,
        Err(_) => Err(Refusal::Io(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")))),
    }
}

async fn greet(node: &Arc<Node>, key: &ConnectionKey, role: Role) -> Result<Opened, Refusal> {
    let stream = Stream::connect(&node.address, node.connect_timeout).await?;
    stream.give_up_after(node.upstream_timeout)?;
    let mut wire = Wire { stream, input: BytesMut::new() };
    let name = if role == Role::Lane { "nearside-lane" } else { "nearside-dedicated" };
    let link = node.coherence.link().filter(|_| role == Role::Lane);
    let asked = Time::now();
    let (mut request, steps) = greeting(key);
    request.extend(resp::own(&["CLIENT", "SETNAME", name]));
    request.extend(resp::own(&["CLIENT", "ID"]));
    let tracking = link.as_ref().is_some_and(|link| link.mode == Mode::Tracked);
    if let Some(link) = link.as_ref().filter(|_| tracking) {
        request.extend(track(link.client_id));
    }
    wire.send(&request).await?;
    let mut hello = Bytes::new();
    for _ in 0..steps {
        let reply = wire.reply().await?;
        match reply[0] {
            b'-' => return Err(Refusal::Server(reply)),
            b'+' => {}
            _ => hello = reply,
        }
    }
    // Without CLIENT's permission the connection works all the same, unnamed.
    wire.reply().await?;
    let client_id = match wire.reply().await? {
        refused if refused[0] == b'-' && !refused.starts_with(b"-NOPERM") => NAMELESS,
        id => integer(&id),
    };
    let armed = match link {
        Some(link) if !tracking => Some(link.generation),
        Some(link) if &wire.reply().await?[..] == b"+OK\r\n" => Some(link.generation),
        _ => None,
    };
    Ok(Opened { stream: wire.stream, input: wire.input, hello, armed, client_id, asked })
}

/// The number in an integer reply; 0 if it is none.
pub fn integer(reply: &[u8]) -> i64 {
    let digits = reply.strip_prefix(b":").and_then(|r| r.strip_suffix(b"\r\n"));
    digits.and_then(resp::parse_i64).unwrap_or(0)
}

/// A socket used one question at a time, before (or instead of) being shared.
pub struct Wire {
    /// The socket.
    pub stream: Stream,
    /// Bytes read and not used.
    pub input: BytesMut,
}

impl Wire {
    /// Writes all of it.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut out = OutBuf::default();
        out.push(bytes);
        poll_fn(|cx| self.stream.poll_write(cx, &mut out)).await
    }

    /// The next reply.
    pub async fn reply(&mut self) -> io::Result<Bytes> {
        let mut cutter = Cutter::default();
        loop {
            let cut = cutter.cut(&self.input).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            if let Some(len) = cut {
                return Ok(self.input.split_to(len).freeze());
            }
            if poll_fn(|cx| self.stream.poll_read(cx, &mut self.input, 4096)).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the server"));
            }
        }
    }

    /// Asks one question of the proxy's own.
    pub async fn ask<A: AsRef<[u8]>>(&mut self, args: &[A]) -> io::Result<Bytes> {
        self.send(&resp::own(args)).await?;
        self.reply().await
    }
}
