//! How a connection to a node begins: who we are, in which protocol and database, and where to report changed keys.

use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::error::Elapsed;

use super::connection::Role;
use super::login::{Login, SHUT_OUT, is_login_refusal};
use super::rights::{self, Rights};
use super::{ConnectionKey, Node};
use crate::buffer::OutBuf;
use crate::coherence::standing::Mode;
use crate::resp::{self, Cutter};
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

/// CLIENT TRACKING towards the link.
pub fn track(client_id: i64) -> Vec<u8> {
    let id = client_id.to_string();
    resp::encode(&["CLIENT", "TRACKING", "ON", "REDIRECT", &id, "OPTIN"])
}

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
/// the server's ACL LOG.) `then`: how many SELECT and CLIENT SETINFO of the proxy's own follow at once, for [`super::monitor`].
pub fn hello(node: &Node, creds: Option<&(Vec<u8>, Vec<u8>)>, resp3: bool, name: &str, then: usize) -> Vec<u8> {
    let table = node.table.load();
    let mut args: Vec<&[u8]> = vec![table.says("HELLO"), if resp3 { b"3" } else { b"2" }];
    if let Some((user, password)) = creds {
        args.extend([b"AUTH".as_slice(), user, password]);
    }
    // The server keeps the last name; a proxy passes all of them on.
    let mark = if then == 0 { OWN_MARK.clone() } else { format!("{}+{then}", *OWN_MARK) };
    args.extend([b"SETNAME".as_slice(), mark.as_bytes(), b"SETNAME", name.as_bytes()]);
    resp::encode(&args)
}

/// By which this process knows its own handshakes when they come back to it.
static OWN_MARK: LazyLock<String> = LazyLock::new(|| {
    let random = || RandomState::new().hash_one(0);
    format!("{MARK}{:016x}{:016x}", random(), random())
});
const MARK: &str = "nearside:";
const MARK_DIGITS: usize = 32;

/// Whether this is the mark of any proxy: how many commands it announces.
pub fn announced(name: &[u8]) -> Option<u32> {
    let (digits, then) = name.strip_prefix(MARK.as_bytes())?.split_at_checked(MARK_DIGITS)?;
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
    memchr::memmem::find(hello, OWN_MARK.as_bytes()).is_some()
}

/// Whether it is the handshake of a proxy. In a ring, its own proxy knows it again.
pub fn is_marked(hello: &[u8]) -> bool {
    memchr::memmem::find(hello, MARK.as_bytes()).is_some()
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
    let limit = node.connect_timeout;
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
    wire.stream.give_up_after(node.upstream_timeout)?;
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
    wire.stream.give_up_after(node.upstream_timeout)?;
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
fn accepted(reply: &[u8]) -> io::Result<bool> {
    match reply {
        b"+OK\r\n" => Ok(true),
        [b'-' | b'!', ..] => Ok(false),
        _ => Err(out_of_turn(reply)),
    }
}

fn selecting(node: &Node, db: u32) -> Vec<u8> {
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
        let stream = Stream::connect(&node.address, node.connect_timeout).await?;
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
    async fn introduce(
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

    async fn select(&mut self, node: &Node, db: u32) -> Result<(), Refusal> {
        self.send(&selecting(node, db)).await?;
        self.accepted().await
    }

    /// The next reply is no error.
    async fn accepted(&mut self) -> Result<(), Refusal> {
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
