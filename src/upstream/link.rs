//! The invalidation channel: one connection per node and process. It is a RESP2 subscriber, in the server's `pubsub` class,
//! whose output limit cuts a proxy that does not keep up instead of eating the server's memory; being cut is a loss, and a
//! loss is a flush: safe. (A server without REDIRECT gets a RESP3 connection that tracks for itself; nothing limits that.)
//! Which messages it listens to is the [`Mode`]. The link always has a PING on its way, at the latest every heartbeat, and
//! one at once when somebody waits.
//!
//! What a PONG proves: in `tracked` and `keyspace`, that everything executed before its PING was sent has been reported.
//! In `broadcast` the server reports only at the end of the turn in which it executed, perhaps behind a PONG of that turn. A
//! PING sent after another's PONG had come is of a later turn: its PONG proves the send time of that other one.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use super::handshake::{Refusal, Wire, id_of, is_passing};
use super::probe::{self, CHANNEL, Ears};
use super::{Node, watch};
use crate::buffer::OutBuf;
use crate::coherence::LinkId;
use crate::coherence::standing::{Mode, Standing};
use crate::command::Table;
use crate::config::Invalidation;
use crate::resp::{self, Cutter};
use crate::sabotage::{self, Rule};
use crate::time::Time;

/// How long a server that does nothing for us is left alone before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// What the proxy's own user may not lack; README says what it should have besides.
const RIGHTS: &str = "+client +subscribe +ping +command +info";
/// PINGs on their way at once; who comes later shares the next.
const PINGS: usize = 4;

/// Keeps the link up for as long as the process lives.
pub async fn run(node: Arc<Node>) {
    let mut failures = 0;
    let mut generation = 0;
    loop {
        match open(&node).await {
            Ok((wire, client_id, ears)) => {
                failures = 0;
                generation += 1;
                let id = ears.map(|ears| LinkId { generation, client_id, mode: ears.mode });
                let mut link = Link::new(node.clone(), id, ears.is_some_and(|ears| ears.resp3));
                let why = link.run(wire).await;
                node.count_broken(&why);
                if link.up {
                    node.coherence.link_lost();
                    tracing::warn!(
                        "link to {} lost ({why}): cache flushed, reads go upstream until it is back",
                        node.address
                    );
                }
            }
            Err(refusal) => {
                failures += 1;
                if let Refusal::Io(why) = &refusal {
                    node.count_broken(why);
                }
                if failures == 1 {
                    report(&node, &refusal);
                }
            }
        }
        tokio::time::sleep(node.backoff(failures.max(1))).await;
    }
}

fn report(node: &Node, refusal: &Refusal) {
    let mode = Err(String::from_utf8_lossy(&refusal.reply(node)).trim().to_owned());
    node.coherence.stand(Standing { mode, replica: false });
    match refusal {
        Refusal::Io(e) => {
            tracing::warn!(
                "upstream {} cannot be reached: {e}; trying again, clients get errors until then",
                node.address
            );
        }
        Refusal::Server(reply) => tracing::warn!(
            "upstream {} refuses the invalidation link: {}; nothing is cached. The link's user needs {RIGHTS} &{CHANNEL}",
            node.address,
            String::from_utf8_lossy(reply).trim()
        ),
    }
}

/// Connects, learns what the server is and can do, and listens. Without [`Ears`] nothing is cached.
async fn open(node: &Arc<Node>) -> Result<(Wire, i64, Option<Ears>), Refusal> {
    let limit = node.connect_timeout;
    let work = async {
        let mut wire = Wire::connect(node).await?;
        let id = id_of(&refuse_error(wire.greet(&node.own, "nearside-link").await?)?);
        // What is noticed from here on concerns this link.
        node.distrusted.store(false, Ordering::Release);
        learn(node, &mut wire).await?;
        // Before anything is cached: what changes from here on is seen by the watch.
        let look = watch::look(&mut wire, node).await?;
        let replica = look.is_replica();
        node.first_look.store(Some(Arc::new(look)));
        let ears = probe::listen(node, &mut wire, id).await?;
        stand(node, Standing { mode: ears.clone().map(|ears| ears.mode), replica });
        Ok((wire, id, ears.ok()))
    };
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(Refusal::Io(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")))),
    }
}

/// Notes what the server does for us; says so if it is less than before, or less than a listener wants.
fn stand(node: &Node, standing: Standing) {
    let told = node.coherence.standing().as_ref() == &standing;
    node.coherence.stand(standing.clone());
    if told {
        return;
    }
    if let Err(why) = &standing.mode {
        tracing::warn!("nothing is cached: {why}. (The link's user needs {RIGHTS} &{CHANNEL}.)");
        return;
    }
    let (strongest, limit) = (standing.strongest(), standing.limit());
    for level in node.wanted.iter().filter(|level| !node.coherence.keeps(**level)) {
        tracing::warn!(
            "{level} cannot be kept, {strongest} is the strongest level here: {limit}; reads at {level} go upstream"
        );
    }
}

fn refuse_error(reply: bytes::Bytes) -> Result<bytes::Bytes, Refusal> {
    if reply[0] == b'-' { Err(Refusal::Server(reply)) } else { Ok(reply) }
}

/// The server's command table and version.
async fn learn(node: &Node, wire: &mut Wire) -> Result<(), Refusal> {
    let reply = wire.ask(&["COMMAND"]).await?;
    if is_passing(&reply) {
        return Err(Refusal::Server(reply));
    }
    match Table::from_command_reply(&reply, node.script_keys) {
        Ok(table) => node.table.store(Arc::new(table)),
        Err(e) => tracing::warn!("COMMAND gave no table ({e}): every unknown command waits for a barrier"),
    }
    let info = wire.ask(&["INFO", "server"]).await?;
    if let Some((text, _)) = resp::split_bulk(&info) {
        let text = String::from_utf8_lossy(text);
        let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name).map(|v| v.trim().to_owned()));
        let version = field("valkey_version:").map(|v| format!("Valkey {v}"));
        let version = version.or_else(|| field("redis_version:").map(|v| format!("Redis {v}")));
        node.version.store(Arc::new(version.unwrap_or_else(|| "unknown".into())));
    }
    Ok(())
}

struct Link {
    node: Arc<Node>,
    /// `None`: the server does nothing for us.
    id: Option<LinkId>,
    mode: Mode,
    resp3: bool,
    up: bool,
    out: OutBuf,
    pings: Pings,
    since: Time,
    heard: Time,
}

/// The PINGs on their way, in order.
struct Pings {
    /// A PONG proves no more than the send time of the PING answered before its own PING was sent.
    twice: bool,
    waiting: VecDeque<Ping>,
    /// When the last one was sent.
    sent: Time,
    /// When the last one that was answered had been sent.
    answered: Option<Time>,
}

struct Ping {
    sent: Time,
    proves: Option<Time>,
}

impl Pings {
    fn new(mode: Mode) -> Pings {
        Pings {
            twice: mode == Mode::Broadcast && !sabotage::on(Rule::SecondPing),
            waiting: VecDeque::new(),
            sent: Time::ZERO,
            answered: None,
        }
    }

    fn send(&mut self, now: Time) {
        self.sent = now;
        let proves = if self.twice { self.answered } else { Some(now) };
        self.waiting.push_back(Ping { sent: now, proves });
    }

    /// The PONG of the PING sent at `t`: what it proves. `Err`: no such PONG can come now.
    fn pong(&mut self, t: Time) -> Result<Option<Time>, ()> {
        let ping = self.waiting.pop_front().filter(|p| p.sent == t).ok_or(())?;
        self.answered = Some(t);
        Ok(ping.proves)
    }

    /// Whether another PING brings nearer the proof as of `wanted`, for somebody who waits.
    fn another(&self, wanted: Time) -> bool {
        if self.waiting.iter().any(|p| p.proves >= Some(wanted)) {
            return false;
        }
        // The second of two; or the only one, or the first of two.
        self.twice && self.answered >= Some(wanted) || self.sent < wanted
    }
}

impl Link {
    fn new(node: Arc<Node>, id: Option<LinkId>, resp3: bool) -> Link {
        let now = Time::now();
        let mode = id.as_ref().map_or(Mode::Tracked, |id| id.mode);
        let pings = Pings::new(mode);
        Link { node, id, mode, resp3, up: false, out: OutBuf::default(), pings, since: now, heard: now }
    }

    /// Whether it is of use, or will be.
    fn listens(&self) -> bool {
        self.up || self.id.is_some()
    }

    async fn run(&mut self, mut wire: Wire) -> io::Error {
        let mut cutter = Cutter::default();
        let mut ticks = tokio::time::interval(self.node.heartbeat);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        poll_fn(|cx| match self.turn(cx, &mut wire, &mut cutter, &mut ticks) {
            Ok(()) => Poll::Pending,
            Err(e) => Poll::Ready(e),
        })
        .await
    }

    fn turn(
        &mut self,
        cx: &mut Context<'_>,
        wire: &mut Wire,
        cutter: &mut Cutter,
        ticks: &mut tokio::time::Interval,
    ) -> io::Result<()> {
        self.node.coherence.register_link(cx.waker());
        loop {
            self.take_events(wire, cutter)?;
            match wire.stream.poll_read(cx, &mut wire.input, crate::buffer::LARGE) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the server")),
                Poll::Ready(Ok(_)) => {
                    self.heard = Time::now();
                    self.node.seen.store(self.heard.0, Ordering::Relaxed);
                }
                Poll::Ready(Err(e)) => return Err(e),
            }
        }
        let mut beat = false;
        while ticks.poll_tick(cx).is_ready() {
            beat = true;
        }
        let clocks = &self.node.coherence.cache.clocks;
        let wanted = clocks.link_wanted();
        // On the beat a PING goes out even if some are unanswered: behind `-BUSY` they may all be lost causes.
        let useful = beat || (self.up && clocks.link() < wanted && self.pings.another(wanted));
        if self.pings.waiting.len() < PINGS && useful {
            self.ping();
        }
        if self.up && self.node.distrusted.swap(false, Ordering::AcqRel) {
            return Err(io::Error::other("what the server can keep has changed"));
        }
        if !self.listens() && self.node.invalidation != Invalidation::Off && Time::now().since(self.since) > ASK_AGAIN {
            return Err(io::Error::other("the server is asked again"));
        }
        let silent = Time::now().since(self.heard);
        if silent > self.node.upstream_timeout {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("silent for {} ms", silent.as_millis())));
        }
        match wire.stream.poll_write(cx, &mut self.out) {
            Poll::Ready(Err(e)) => Err(e),
            _ => Ok(()),
        }
    }

    fn ping(&mut self) {
        let now = Time::now();
        self.pings.send(now);
        self.out.push(&resp::own(&["PING", &now.0.to_string()]));
    }

    /// Applies what has come, in order.
    fn take_events(&mut self, wire: &mut Wire, cutter: &mut Cutter) -> io::Result<()> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "an unexpected message on the link");
        while let Some(len) = cutter.cut(&wire.input).map_err(|_| invalid())? {
            let frame = wire.input.split_to(len);
            match Event::parse(&frame, self.resp3).ok_or_else(invalid)? {
                Event::Keys(mut rest) => {
                    while let Some((key, next)) = resp::split_bulk(rest) {
                        self.node.coherence.key_changed(key, self.heard);
                        rest = next;
                    }
                }
                Event::Key(key) => self.node.coherence.key_changed(key, self.heard),
                Event::Everything => self.node.coherence.everything_changed(),
                Event::Pong(t) => self.pong(t)?,
                // `-BUSY`, `-LOADING`: it lives, but proves nothing.
                Event::NoPong => {
                    if let Some(ping) = self.pings.waiting.pop_front() {
                        self.node.coherence.link_refused(ping.sent);
                    }
                }
                Event::Other => {}
            }
        }
        Ok(())
    }

    fn pong(&mut self, t: Time) -> io::Result<()> {
        let order = |()| io::Error::new(io::ErrorKind::InvalidData, "a PONG out of order");
        let Some(proven) = self.pings.pong(t).map_err(order)? else {
            // The first of two: the second follows at once, so that caching begins.
            if self.pings.waiting.is_empty() {
                self.ping();
            }
            return Ok(());
        };
        match self.id.take() {
            Some(id) => {
                self.up = true;
                let (coherence, version) = (&self.node.coherence, self.node.version.load());
                coherence.link_up(id, proven);
                tracing::info!("link to {} ({version}) is up: caching, {}", self.node.address, self.mode);
            }
            None if self.up => self.node.coherence.link_pong(proven),
            None => {}
        }
        Ok(())
    }
}

/// What the link can say.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// These bulk strings name changed keys.
    Keys(&'a [u8]),
    /// This key has changed: a keyspace notification names one.
    Key(&'a [u8]),
    /// FLUSHALL and its like.
    Everything,
    /// The PING sent at this time has come back.
    Pong(Time),
    /// A PING was answered by an error.
    NoPong,
    /// Confirmations, and what others publish.
    Other,
}

impl Event<'_> {
    /// Reads one frame. `None`: that cannot be.
    pub fn parse(frame: &[u8], resp3: bool) -> Option<Event<'_>> {
        if matches!(frame[0], b'-' | b'!') {
            return Some(Event::NoPong);
        }
        if resp3 && frame[0] == b'$' {
            let (payload, _) = resp::split_bulk(frame)?;
            return Self::pong(payload);
        }
        let (_, rest) = resp::split_aggregate(frame)?;
        let (kind, rest) = resp::split_bulk(rest)?;
        match kind {
            b"pong" => {
                let (payload, _) = resp::split_bulk(rest)?;
                Self::pong(payload)
            }
            b"invalidate" if frame[0] == b'>' => Some(Self::payload(rest)),
            b"pmessage" => {
                let (_, rest) = resp::split_bulk(rest)?;
                let (channel, _) = resp::split_bulk(rest)?;
                Some(Event::Key(notified(channel)?))
            }
            b"message" => {
                let (channel, payload) = resp::split_bulk(rest)?;
                (channel == CHANNEL.as_bytes()).then_some(())?;
                Some(Self::payload(payload))
            }
            _ => Some(Event::Other),
        }
    }

    fn pong(payload: &[u8]) -> Option<Event<'static>> {
        Some(Event::Pong(Time(u64::try_from(resp::parse_i64(payload)?).ok()?)))
    }

    fn payload(payload: &[u8]) -> Event<'_> {
        match payload {
            b"$-1\r\n" | b"*-1\r\n" | b"_\r\n" => Event::Everything,
            [b'*' | b'~' | b'>', ..] => {
                resp::split_aggregate(payload).map_or(Event::Other, |(_, keys)| Event::Keys(keys))
            }
            // Somebody has published to the channel: the key of that name is dropped, which harms nobody.
            _ => Event::Keys(payload),
        }
    }
}

/// The key in `__keyspace@0__:key`.
fn notified(channel: &[u8]) -> Option<&[u8]> {
    let rest = channel.strip_prefix(b"__keyspace@")?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    rest[digits..].strip_prefix(b"__:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: &str) -> String {
        format!("*3\r\n$7\r\nmessage\r\n$20\r\n{CHANNEL}\r\n{payload}")
    }

    #[test]
    fn every_form_of_event() {
        let keys = message("*2\r\n$1\r\na\r\n$2\r\nbc\r\n");
        assert_eq!(Event::parse(keys.as_bytes(), false), Some(Event::Keys(b"$1\r\na\r\n$2\r\nbc\r\n")));
        for null in ["$-1\r\n", "*-1\r\n", "_\r\n"] {
            assert_eq!(Event::parse(message(null).as_bytes(), false), Some(Event::Everything));
        }
        assert_eq!(
            Event::parse(message("$1\r\nx\r\n").as_bytes(), false),
            Some(Event::Keys(b"$1\r\nx\r\n")),
            "published by anybody"
        );
        assert_eq!(Event::parse(b"*2\r\n$4\r\npong\r\n$2\r\n17\r\n", false), Some(Event::Pong(Time(17))));
        assert_eq!(Event::parse(b"-BUSY Redis is busy\r\n", false), Some(Event::NoPong));
        assert_eq!(Event::parse(b"+PONG\r\n", false), None);
    }
    #[test]
    fn events_of_a_resp3_link() {
        let push = |payload: &str| format!(">2\r\n$10\r\ninvalidate\r\n{payload}");
        let parse = |frame: &str| match Event::parse(frame.as_bytes(), true) {
            Some(Event::Keys(keys)) => String::from_utf8_lossy(keys).into_owned(),
            other => format!("{other:?}"),
        };
        assert_eq!(parse(&push("*1\r\n$1\r\na\r\n")), "$1\r\na\r\n");
        assert_eq!(parse(&push("_\r\n")), "Some(Everything)");
        assert_eq!(parse("$2\r\n17\r\n"), "Some(Pong(Time(17)))");
        assert_eq!(parse("!4\r\nBUSY\r\n"), "Some(NoPong)");
        assert_eq!(parse("+OK\r\n"), "None");
    }

    #[test]
    fn keys_of_keyspace_notifications() {
        let event = |channel: &str| {
            let parts = ["pmessage", "__keyspace@*__:*", channel, "set"];
            Event::parse(&resp::encode(&parts), false).map(|e| format!("{e:?}"))
        };
        assert_eq!(event("__keyspace@0__:k"), Some(format!("{:?}", Event::Key(b"k"))));
        assert_eq!(event("__keyspace@12__:a__:b"), Some(format!("{:?}", Event::Key(b"a__:b"))));
        assert_eq!(event("__keyspace@0__:"), Some(format!("{:?}", Event::Key(b""))));
        assert_eq!(event("__keyevent@0__:set"), None);
    }

    #[test]
    fn one_ping_is_enough_but_for_broadcast() {
        let mut once = Pings::new(Mode::Tracked);
        assert!(once.another(Time(5)));
        once.send(Time(6));
        assert!(!once.another(Time(5)) && once.another(Time(7)));
        assert_eq!(once.pong(Time(6)), Ok(Some(Time(6))));
        assert_eq!(once.pong(Time(6)), Err(()), "nothing was asked");
        let mut twice = Pings::new(Mode::Broadcast);
        twice.send(Time(6));
        assert!(!twice.another(Time(5)), "the first PONG comes first");
        twice.send(Time(7));
        assert_eq!(twice.pong(Time(6)), Ok(None));
        assert_eq!(twice.pong(Time(7)), Ok(None), "it was sent before the first PONG came: perhaps of the same turn");
        assert!(twice.another(Time(5)));
        twice.send(Time(9));
        assert!(!twice.another(Time(7)) && twice.another(Time(10)));
        assert_eq!(twice.pong(Time(9)), Ok(Some(Time(7))));
    }
}
