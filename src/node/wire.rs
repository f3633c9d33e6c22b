//! A socket to a server, used for one question at a time: the greeting, and what the proxy asks for itself.

use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::ops::Range;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::task::Poll;

use bytes::{Bytes, BytesMut};

use super::Node;
use super::identity::ConnectionKey;
use super::login::{Login, SHUT_OUT, is_login_refusal};
use crate::buffer::OutBuf;
use crate::resp::{self, Cutter};
use crate::transport::Stream;

/// The argument of a proxy's own PING; others begin with it and a colon.
pub const MARK: &str = "nearside";
/// Why a connection could not be opened.
#[derive(Debug)]
pub enum Refusal {
    /// The node was not reached.
    Io(io::Error),
    /// The node said this: clients are told the same.
    Server(Bytes),
    /// The node said this of the login: sessions that want the connection end.
    Login(Bytes),
}

impl Refusal {
    /// The error that clients are told.
    pub fn reply(&self, node: &Node) -> Bytes {
        match self {
            Refusal::Io(e) => node.error(&format!("cannot be reached: {e}")),
            Refusal::Server(reply) => reply.clone(),
            Refusal::Login(_) => Bytes::from_static(SHUT_OUT),
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

/// The server's word to whoever has not logged in.
pub const NOAUTH: &[u8] = b"-NOAUTH Authentication required.\r\n";

/// Whether an error says that there is no answer now, or to nobody, whatever the question was.
pub fn is_no_answer(reply: &[u8]) -> bool {
    is_passing(reply) || [&b"-NOAUTH"[..], b"-ERR max number of clients"].iter().any(|word| reply.starts_with(word))
}

/// Whether the reply to HELLO says that there is none: an old server, `rename-command`, or a right that is wanting. Valkey
/// wants a login before it says that it does not know a command, and a HELLO that it knows is one.
fn is_without_hello(reply: &[u8], logs_in: bool) -> bool {
    let text = reply.to_ascii_lowercase();
    let refused = text.starts_with(b"-noperm") && memchr::memmem::find(&text, b"'hello'").is_some();
    text.starts_with(b"-err unknown command") || refused || logs_in && text.starts_with(b"-noauth")
}

/// HELLO, with AUTH if there are credentials, and the name that the server's CLIENT LIST shows. (To ask for the name by
/// itself, or for the number that HELLO's reply gives, wants rights that a user may not have; and each refusal is noted in
/// the server's ACL LOG.) `then`: how many SELECT and CLIENT SETINFO of the proxy's own follow at once, for MONITOR (`upstream::monitor`).
pub fn hello(node: &Node, creds: Option<&(Vec<u8>, Vec<u8>)>, resp3: bool, name: &str, then: usize) -> Vec<u8> {
    let table = node.table.load();
    let mut args: Vec<&[u8]> = vec![table.says("HELLO"), if resp3 { b"3" } else { b"2" }];
    if let Some((user, password)) = creds {
        args.extend([b"AUTH".as_slice(), user, password]);
    }
    // The server keeps the last name; a proxy passes all of them on.
    let mark = if then == 0 { OWN_GREETING.clone() } else { format!("{}+{then}", *OWN_GREETING) };
    args.extend([b"SETNAME".as_slice(), mark.as_bytes(), b"SETNAME", name.as_bytes()]);
    resp::encode(&args)
}

/// By which this process knows its own handshakes when they come back to it.
static OWN_GREETING: LazyLock<String> = LazyLock::new(|| {
    let random = || RandomState::new().hash_one(0);
    format!("{GREETING}{:016x}{:016x}", random(), random())
});
const GREETING: &str = "nearside:";
const GREETING_DIGITS: usize = 32;

/// Whether this is the mark of any proxy: how many commands it announces.
pub fn announced(name: &[u8]) -> Option<u32> {
    let (digits, then) = name.strip_prefix(GREETING.as_bytes())?.split_at_checked(GREETING_DIGITS)?;
    digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
    match then {
        [] => Some(0),
        [b'+', number @ ..] => u32::try_from(resp::parse_i64(number)?).ok(),
        _ => None,
    }
}

/// How the reply to such a handshake begins.
const RING: &str = "-ERR nearside: a ring of proxies: ";

/// A HELLO: whether it is a handshake of this very process, passed on by however many proxies. A proxy that went on would ask
/// itself, without end.
pub fn comes_back(hello: &[u8]) -> bool {
    memchr::memmem::find(hello, OWN_GREETING.as_bytes()).is_some()
}

/// Whether it is the handshake of a proxy. In a ring, its own proxy knows it again.
pub fn is_marked(hello: &[u8]) -> bool {
    memchr::memmem::find(hello, GREETING.as_bytes()).is_some()
}

/// The reply to a handshake that comes back.
pub fn ring() -> Bytes {
    Bytes::from(format!(
        "{RING}the upstream is this proxy itself, or leads back to it; name the server in `upstream`\r\n"
    ))
}

/// Whether a server's reply is that.
pub fn is_ring(reply: &[u8]) -> bool {
    reply.starts_with(RING.as_bytes())
}

/// Where the reply to HELLO names the connection's number.
pub fn id_in(hello: &[u8]) -> Option<Range<usize>> {
    const FIELD: &[u8] = b"$2\r\nid\r\n:";
    let start = memchr::memmem::find(hello, FIELD)? + FIELD.len();
    Some(start..start + hello[start..].iter().take_while(|b| b.is_ascii_digit()).count())
}

/// The connection's number by the reply to HELLO; 0 if it has none.
pub fn id_of(hello: &[u8]) -> i64 {
    id_in(hello).and_then(|range| resp::parse_i64(&hello[range])).unwrap_or(0)
}

/// The error for a reply that is no answer: nobody knows which question the next reply is about.
pub fn out_of_turn(reply: &[u8]) -> io::Error {
    let kind = (reply[0] as char).escape_debug();
    io::Error::new(io::ErrorKind::InvalidData, format!("a reply that nobody asked for in this place: {kind}"))
}

/// Whether it can be what HELLO answers.
pub fn is_hello(reply: &[u8]) -> bool {
    matches!(reply[0], b'*' | b'%') && memchr::memmem::find(reply, b"$5\r\nproto\r\n").is_some()
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the server")
}

/// Whether a command was done that answers `+OK`.
pub(super) fn accepted(reply: &[u8]) -> io::Result<bool> {
    match reply {
        b"+OK\r\n" => Ok(true),
        [b'-' | b'!', ..] => Ok(false),
        _ => Err(out_of_turn(reply)),
    }
}

pub(super) fn selecting(node: &Node, db: u32) -> Vec<u8> {
    resp::encode(&[node.table.load().says("SELECT"), db.to_string().as_bytes()])
}

/// A socket used one question at a time, before (or instead of) being shared.
pub struct Wire {
    /// The socket.
    pub stream: Stream,
    /// Bytes read and not used.
    pub input: BytesMut,
}

impl Wire {
    /// A new one, to the node.
    pub async fn connect(node: &Node) -> io::Result<Wire> {
        let stream = Stream::connect(&node.address, node.settings.connect_timeout).await?;
        Ok(Wire { stream, input: BytesMut::new() })
    }

    /// Puts one question on the connection kept in `place`, which has not greeted. Where there is none, or the server has closed it
    /// because it was idle or its user was deleted, on a new one, which is then kept.
    ///
    /// # Errors
    /// The server cannot be reached, or closes the new connection too.
    pub async fn ask_kept(place: &mut Option<Wire>, node: &Node, question: &[u8]) -> io::Result<Bytes> {
        // The connection is taken out while it is used: a question that is given up leaves no reply behind for the next.
        if let Some(mut wire) = place.take()
            && let Ok(reply) = wire.ask_quietly(question).await
        {
            *place = Some(wire);
            return Ok(reply);
        }
        let mut wire = Wire::connect(node).await?;
        let reply = wire.ask_quietly(question).await?;
        *place = Some(wire);
        Ok(reply)
    }

    async fn ask_quietly(&mut self, question: &[u8]) -> io::Result<Bytes> {
        self.quiet().await?;
        self.send(question).await?;
        self.reply().await
    }

    /// Says who we are, whatever comes of it; the reply to HELLO, or what stands for it.
    pub async fn greet(&mut self, node: &Node, key: &ConnectionKey, name: &str) -> io::Result<Bytes> {
        let attempts = key.login.attempts();
        let reply = self.introduce(node, attempts.first().and_then(Option::as_ref), key.resp3, name, 0).await?;
        if reply[0] == b'-' || is_hello(&reply) { Ok(reply) } else { Err(out_of_turn(&reply)) }
    }

    /// Says HELLO; or AUTH, if the server has no HELLO, with CLIENT SETNAME and CLIENT ID, whose refusals cost no more than
    /// the name and the reports of changed keys. The reply to HELLO, or one made of theirs, or an error.
    pub(super) async fn introduce(
        &mut self,
        node: &Node,
        creds: Option<&(Vec<u8>, Vec<u8>)>,
        resp3: bool,
        name: &str,
        then: usize,
    ) -> io::Result<Bytes> {
        if resp3 || !node.without_hello.load(Ordering::Relaxed) {
            self.send(&hello(node, creds, resp3, name, then)).await?;
            let reply = self.reply().await?;
            if resp3 || !is_without_hello(&reply, creds.is_some()) {
                return Ok(reply);
            }
            node.without_hello.store(true, Ordering::Relaxed);
        }
        let table = node.table.load_full();
        if let Some((user, password)) = creds {
            // Before Redis 6 there is a password, and no user.
            let user = Some(&user[..]).filter(|user| *user != b"default");
            let words = [Some(table.says("AUTH")), user, Some(password)];
            let reply = self.ask(&words.into_iter().flatten().collect::<Vec<_>>()).await?;
            if reply[0] == b'-' {
                return Ok(reply);
            }
        }
        let client = table.says("CLIENT");
        self.ask(&[client, b"SETNAME", name.as_bytes()]).await?;
        let reply = self.ask(&[client, b"ID"]).await?;
        if is_login_refusal(&reply) {
            return Ok(reply);
        }
        let id = reply.strip_prefix(b":").and_then(|id| resp::parse_i64(id.strip_suffix(b"\r\n")?)).unwrap_or(0);
        Ok(format!("*4\r\n$5\r\nproto\r\n:2\r\n$2\r\nid\r\n:{id}\r\n").into())
    }

    /// Before a question: nothing has come that was not asked for.
    ///
    /// # Errors
    /// Something has, or the connection has ended.
    pub async fn quiet(&mut self) -> io::Result<()> {
        if self.input.is_empty() {
            let come = poll_fn(|cx| Poll::Ready(self.stream.poll_read(cx, &mut self.input, 4096))).await;
            match come {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => return Err(closed()),
                Poll::Ready(read) => read?,
            };
        }
        Err(out_of_turn(&self.input))
    }

    /// Becomes this login, by whichever of its passwords the server takes. Nothing else is sent with it: Redis 7.2 to 8.x may
    /// leave a refused login without a reply if other commands stand behind it (redis#15640). `then`: see [`hello`].
    pub async fn log_in(
        &mut self,
        node: &Node,
        login: &Login,
        resp3: bool,
        name: &str,
        then: usize,
    ) -> Result<Bytes, Refusal> {
        let mut refusal = Bytes::from_static(NOAUTH);
        for creds in login.attempts() {
            let reply = self.introduce(node, creds.as_ref(), resp3, name, then).await?;
            if is_hello(&reply) {
                if let Some((_, password)) = &creds {
                    login.accepted(password);
                }
                return Ok(reply);
            }
            match reply[0] {
                b'-' if is_login_refusal(&reply) => {}
                b'-' => return Err(Refusal::Server(reply)),
                _ => return Err(out_of_turn(&reply).into()),
            }
            refusal = reply;
        }
        Err(Refusal::Login(refusal))
    }

    pub(super) async fn select(&mut self, node: &Node, db: u32) -> Result<(), Refusal> {
        self.send(&selecting(node, db)).await?;
        self.accepted().await
    }

    /// The next reply is no error.
    pub(super) async fn accepted(&mut self) -> Result<(), Refusal> {
        let reply = self.reply().await?;
        if accepted(&reply)? { Ok(()) } else { Err(Refusal::Server(reply)) }
    }

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
                return Err(closed());
            }
        }
    }

    /// Asks one question of the proxy's own.
    pub async fn ask<A: AsRef<[u8]>>(&mut self, args: &[A]) -> io::Result<Bytes> {
        self.send(&resp::encode(args)).await?;
        self.reply().await
    }
}
