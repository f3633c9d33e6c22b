//! The invalidation channel: one connection per node and process. It is a RESP2 subscriber, in the server's `pubsub` class,
//! whose output limit cuts a proxy that does not keep up instead of eating the server's memory; being cut is a loss, and a
//! loss is a flush: safe. (A server without REDIRECT gets a RESP3 connection that tracks for itself; nothing limits that.)
//! Which messages it listens to is the [`Mode`]. The link always has a PING on its way, at the latest every heartbeat, and
//! one at once when somebody waits.
//!
//! The proof that a PONG gives: in `tracked` and `keyspace`, that everything executed before its PING was sent has been reported.
//! In `broadcast` the server reports only at the end of the turn in which it executed, perhaps behind a PONG of that turn. A
//! PING sent after another's PONG had come is of a later turn: its PONG proves the send time of that other one.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use super::acl::AclLook;
use super::event::LinkEvent;
use super::probe::{self, CHANNEL, Ears};
use super::wire::{MARK, Refusal, Wire, id_of, is_ring};
use super::{Node, names, watch};
use crate::buffer::OutBuf;
use crate::coherence::LinkId;
use crate::coherence::standing::{Mode, Standing};
use crate::config::Invalidation;
use crate::resp::{self, Cutter};
use crate::sabotage::{self, Rule};
use crate::time::Time;

/// How long a server that does nothing for us is left alone before it is asked again: at first, and at the most. A change of
/// its ACL, of its role, or of its notifications is a reason to ask at once.
const ASK_AGAIN: Duration = Duration::from_secs(5);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(60);
/// The rights that the proxy's own user may not lack; docs/OPERATING.md says what it should have besides.
const RIGHTS: &str = "+client +subscribe +ping +command +info";
/// PINGs on their way at once; who comes later shares the next.
const PINGS: usize = 4;

/// Keeps the link up for as long as the process lives.
pub async fn run(node: Arc<Node>) {
    let mut tries = Tries::default();
    let mut generation = 0;
    loop {
        match open(&node).await {
            Ok((wire, client_id, Some(ears))) => {
                tries.asked = 0;
                generation += 1;
                let id = LinkId { generation, client_id, mode: ears.mode };
                let mut link = Link::new(node.clone(), id);
                let why = link.run(wire).await;
                node.count_broken(&why);
                tries.ended(&node, &link, &why);
            }
            Ok((wire, _, None)) => match stand_by(&node, wire, tries.ask_again(&node)).await {
                Woken::Ask => continue,
                Woken::Closed(lived) => tries.lasted(lived),
            },
            Err(refusal) => {
                match &refusal {
                    Refusal::Io(why) => {
                        node.count_broken(why);
                        node.health.unreachable(&format!("cannot be reached: {why}"));
                    }
                    // A server that refuses is there: clients are told so by the server itself.
                    Refusal::Server(_) | Refusal::Login(_) => node.health.reached(),
                }
                let ring = matches!(&refusal, Refusal::Server(reply) if is_ring(reply));
                // The other proxy of a ring may have come up later: that is told too.
                let new = ring && !std::mem::replace(&mut tries.ring, ring);
                if !std::mem::replace(&mut tries.refused, true) || new {
                    report(&node, &refusal);
                }
                tries.failures += 1;
            }
        }
        tries.pause = node.backoff(tries.failures.max(1));
        tokio::time::sleep(tries.pause).await;
    }
}

/// The outcome of the attempts so far, so that the pauses between them, and between the lines in the log, grow.
#[derive(Default)]
struct Tries {
    /// In a row.
    failures: u32,
    /// Before the latest attempt.
    pause: Duration,
    /// The latest could not even be opened.
    refused: bool,
    /// That was, or some before it were, because the upstream leads back to this proxy.
    ring: bool,
    /// How often in a row a server that does nothing for us was asked whether it does.
    asked: u32,
    /// Why the latest link ended that had never come up.
    barren: Option<String>,
}

impl Tries {
    /// A connection that outlives the pause before it is no failure; one that ends sooner is, or a server that ends each
    /// at once would get a hundred a second.
    fn lasted(&mut self, lived: Duration) {
        self.failures = if lived >= self.pause { 0 } else { self.failures + 1 };
        self.refused = false;
    }

    fn ended(&mut self, node: &Node, link: &Link, why: &io::Error) {
        if link.up {
            self.lasted(Time::now().since(link.since));
            self.barren = None;
            node.coherence.link_lost();
            // The server may be another by now.
            node.pauses.end();
            tracing::warn!("link to {} lost ({why}): cache flushed, reads go upstream until it is back", node.address);
            return;
        }
        self.failures += 1;
        self.refused = false;
        let why = why.to_string();
        if self.barren.as_ref() != Some(&why) {
            tracing::warn!("nothing is cached: link to {} came to nothing ({why}); trying again", node.address);
            self.barren = Some(why);
        }
    }

    /// How long a server that does nothing for us is left alone now.
    fn ask_again(&mut self, node: &Node) -> Duration {
        self.refused = false;
        if node.settings.invalidation == Invalidation::Off {
            return Duration::MAX;
        }
        let pause = ASK_AGAIN.saturating_mul(1 << self.asked.min(16)).min(ASK_AGAIN_MAX);
        self.asked += 1;
        pause
    }
}

/// Why a connection that listens to nothing was waited on no longer.
enum Woken {
    /// The server is to be asked again: the pause is over, or something has changed at the server.
    Ask,
    /// The server has closed it, after so long.
    Closed(Duration),
}

/// Keeps a connection to a server that does nothing for us, and says nothing on it: its end tells of a server that has gone
/// and may come back as another.
async fn stand_by(node: &Node, mut wire: Wire, pause: Duration) -> Woken {
    let begun = Time::now();
    let mut ticks = tokio::time::interval(node.settings.heartbeat);
    loop {
        tokio::select! {
            read = poll_fn(|cx| wire.stream.poll_read(cx, &mut wire.input, crate::buffer::LARGE)) => {
                wire.input.clear();
                if !read.is_ok_and(|bytes| bytes > 0) {
                    return Woken::Closed(Time::now().since(begun));
                }
            }
            _ = ticks.tick() => {
                if node.distrusted.swap(false, Ordering::AcqRel) || Time::now().since(begun) >= pause {
                    return Woken::Ask;
                }
            }
        }
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
        Refusal::Server(reply) if is_ring(reply) => tracing::error!(
            "the upstream {} is this proxy itself, or leads back to it: clients get errors; name the server in `upstream`",
            node.address
        ),
        Refusal::Server(reply) | Refusal::Login(reply) => {
            let reply = String::from_utf8_lossy(reply);
            tracing::warn!(
                "upstream {} refuses the invalidation link: {}; nothing is cached{}",
                node.address,
                reply.trim(),
                needed(&reply)
            )
        }
    }
}

/// The rights that the link's user should have been granted, if that is why it was refused.
fn needed(refusal: &str) -> String {
    let wanting = refusal.contains("NOPERM");
    if wanting { format!(". The link's user needs {RIGHTS} &{CHANNEL}") } else { String::new() }
}

/// Notes what the server lacks, and says so once.
fn say_lacks(node: &Node, commands: Option<String>) {
    let hello = node.without_hello.load(Ordering::Relaxed);
    let hello = hello.then(|| "HELLO (connections say AUTH, and RESP3 cannot be had)".to_owned());
    let commands = commands.map(|why| {
        format!("a list of its commands ({why}; those of Redis' core are known by heart, others get connections of their own)")
    });
    let lacks: Vec<String> = hello.into_iter().chain(commands).collect();
    let lacks = lacks.join("; ");
    if !lacks.is_empty() && **node.lacks.load() != lacks {
        tracing::warn!("upstream {} lacks {lacks}", node.address);
    }
    node.lacks.store(Arc::new(lacks));
}

/// Connects, learns what the server is and can do, and listens. Without [`Ears`] nothing is cached.
async fn open(node: &Arc<Node>) -> Result<(Wire, i64, Option<Ears>), Refusal> {
    let limit = node.settings.connect_timeout;
    let work = async {
        let mut wire = Wire::connect(node).await?;
        // Asked anew: it may be another server.
        node.without_hello.store(false, Ordering::Relaxed);
        let hello = wire.greet(node, &node.own, "nearside-link").await?;
        node.ring.store(is_ring(&hello), Ordering::Release);
        let id = id_of(&refuse_error(hello)?);
        // Faults noticed from here on concern this link.
        node.distrusted.store(false, Ordering::Release);
        node.health.reached();
        let lack = learn(node, &mut wire).await?;
        say_lacks(node, lack);
        // Before anything is cached: what changes from here on is seen by the watch.
        let as_of = node.acl_changes.load(Ordering::Acquire);
        let look = watch::look(&mut wire, node).await?;
        let replica = look.is_replica();
        node.acl.store(Arc::new(AclLook { as_of, acl: look.acl.clone() }));
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
        tracing::warn!("nothing is cached: {why}{}", needed(why));
        return;
    }
    let (strongest, limit) = (standing.strongest(), standing.limit());
    for level in node.settings.wanted.iter().filter(|level| !node.coherence.keeps(**level)) {
        tracing::warn!(
            "{level} cannot be kept, {strongest} is the strongest level here: {limit}; reads at {level} go upstream"
        );
    }
}

fn refuse_error(reply: bytes::Bytes) -> Result<bytes::Bytes, Refusal> {
    if reply[0] == b'-' { Err(Refusal::Server(reply)) } else { Ok(reply) }
}

/// The server's command table and version. Why it gives no table, if it gives none.
async fn learn(node: &Node, wire: &mut Wire) -> Result<Option<String>, Refusal> {
    let lack = names::learn(node, wire).await?;
    let info = wire.ask(&["INFO", "server"]).await?;
    node.health.learn(&info);
    if let Some((text, _)) = resp::split_bulk(&info) {
        let text = String::from_utf8_lossy(text);
        let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name).map(|v| v.trim().to_owned()));
        let version = field("valkey_version:").map(|v| format!("Valkey {v}"));
        let version = version.or_else(|| field("redis_version:").map(|v| format!("Redis {v}")));
        node.version.store(Arc::new(version.unwrap_or_else(|| "unknown".into())));
    }
    Ok(lack)
}

struct Link {
    node: Arc<Node>,
    /// Until it is up.
    id: Option<LinkId>,
    mode: Mode,
    up: bool,
    out: OutBuf,
    pings: Pings,
    /// When it came up; until then, when it was opened.
    since: Time,
    heard: Time,
    /// When the last whole message had come: what only begins may be a stray, which takes all that follows for its rest.
    whole: Time,
}

/// The begin of a frame, for people: of what may name keys, no more than its kind.
fn shown(frame: &[u8]) -> String {
    let len = if matches!(frame[0], b'+' | b'-') { frame.len().min(64) } else { 1 };
    frame[..len].trim_ascii().escape_ascii().to_string()
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
    fn new(node: Arc<Node>, id: LinkId) -> Link {
        let now = Time::now();
        let mode = id.mode;
        let pings = Pings::new(mode);
        Link { node, id: Some(id), mode, up: false, out: OutBuf::default(), pings, since: now, heard: now, whole: now }
    }

    async fn run(&mut self, mut wire: Wire) -> io::Error {
        let mut cutter = Cutter::default();
        let mut ticks = tokio::time::interval(self.node.settings.heartbeat);
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
        sabotage::panic_at("link");
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
        let silent = Time::now().since(self.whole);
        if silent > self.node.settings.upstream_timeout {
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
        self.out.push(&resp::encode(&["PING", &format!("{MARK}:{}", now.0)]));
    }

    /// Applies what has come, in order.
    fn take_events(&mut self, wire: &mut Wire, cutter: &mut Cutter) -> io::Result<()> {
        let data = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
        while let Some(len) = cutter.cut(&wire.input).map_err(|e| data(e.to_string()))? {
            let frame = wire.input.split_to(len);
            self.whole = self.heard;
            let unexpected = || data(format!("an unexpected message: {}", shown(&frame)));
            match LinkEvent::parse(&frame).ok_or_else(unexpected)? {
                LinkEvent::Keys(mut rest) => {
                    while let Some((key, next)) = resp::split_bulk(rest) {
                        self.node.coherence.key_changed(key, self.heard);
                        rest = next;
                    }
                }
                LinkEvent::Key(key) => self.node.coherence.key_changed(key, self.heard),
                LinkEvent::Everything => self.node.coherence.everything_changed(),
                LinkEvent::Pong(t) => self.pong(t)?,
                // `-BUSY`, `-LOADING`: it lives, but proves nothing.
                LinkEvent::NoPong => {
                    if let Some(ping) = self.pings.waiting.pop_front() {
                        self.node.coherence.link_refused(ping.sent);
                    }
                }
                LinkEvent::Other => {}
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
                self.since = Time::now();
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

#[cfg(test)]
mod tests {
    use super::*;

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
