//! The invalidation channel: one connection per node and process, a RESP2 subscriber of `__redis__:invalidate`.
//!
//! As a subscriber it is of the server's `pubsub` class, whose output limit cuts a proxy that does not keep up instead
//! of eating the server's memory; being cut is a loss, and a loss is a flush: safe. The link always has a PING on its
//! way, at the latest every heartbeat, and one at once when somebody waits.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use super::handshake::{Refusal, Wire, hello, integer};
use super::{ConnectionKey, Node};
use crate::buffer::OutBuf;
use crate::coherence::LinkId;
use crate::command::Table;
use crate::resp::{self, Cutter};
use crate::time::Time;
use crate::transport::Stream;

const CHANNEL: &str = "__redis__:invalidate";
/// PINGs on their way at once; who comes later shares the next.
const PINGS: usize = 4;

/// Keeps the link up for as long as the process lives.
pub async fn run(node: Arc<Node>, key: ConnectionKey) {
    let mut failures = 0;
    let mut generation = 0;
    loop {
        match open(&node, &key).await {
            Ok((wire, client_id)) => {
                failures = 0;
                generation += 1;
                let mut link = Link::new(node.clone(), LinkId { generation, client_id });
                let why = link.run(wire).await;
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
                if failures == 1 {
                    report(&node, &refusal);
                }
            }
        }
        tokio::time::sleep(node.backoff(failures.max(1))).await;
    }
}

fn report(node: &Node, refusal: &Refusal) {
    match refusal {
        Refusal::Io(e) => {
            tracing::warn!(
                "upstream {} cannot be reached: {e}; trying again, clients get errors until then",
                node.address
            );
        }
        Refusal::Server(reply) => tracing::warn!(
            "upstream {} refuses the invalidation link: {}; nothing is cached. The link's user needs +client +subscribe +ping +command +info and the channel {CHANNEL}",
            node.address,
            String::from_utf8_lossy(reply).trim()
        ),
    }
}

/// Connects, learns what the server is and can do, and subscribes.
async fn open(node: &Arc<Node>, key: &ConnectionKey) -> Result<(Wire, i64), Refusal> {
    let limit = node.connect_timeout;
    let work = async {
        let stream = Stream::connect(&node.address, limit).await?;
        let mut wire = Wire { stream, input: bytes::BytesMut::new() };
        wire.send(&hello(key)).await?;
        refuse_error(wire.reply().await?)?;
        wire.ask(&["CLIENT", "SETNAME", "nearside-link"]).await?;
        learn(node, &mut wire).await?;
        let id = refuse_error(wire.ask(&["CLIENT", "ID"]).await?)?;
        let id = integer(&id);
        refuse_error(wire.ask(&["SUBSCRIBE", CHANNEL]).await?)?;
        Ok((wire, id))
    };
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(Refusal::Io(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")))),
    }
}

fn refuse_error(reply: bytes::Bytes) -> Result<bytes::Bytes, Refusal> {
    if reply[0] == b'-' { Err(Refusal::Server(reply)) } else { Ok(reply) }
}

/// The server's command table and version.
async fn learn(node: &Node, wire: &mut Wire) -> Result<(), Refusal> {
    let reply = wire.ask(&["COMMAND"]).await?;
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
    id: Option<LinkId>,
    up: bool,
    out: OutBuf,
    /// Send times of the PINGs on their way, in order.
    pings: VecDeque<Time>,
    last_ping: Time,
    heard: Time,
}

impl Link {
    fn new(node: Arc<Node>, id: LinkId) -> Link {
        let now = Time::now();
        Link {
            node,
            id: Some(id),
            up: false,
            out: OutBuf::default(),
            pings: VecDeque::new(),
            last_ping: Time::ZERO,
            heard: now,
        }
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
        let wanted = self.node.coherence.cache.clocks.link_wanted() > self.last_ping;
        // On the beat a PING goes out even if some are unanswered: behind `-BUSY` they may all be lost causes.
        if self.pings.len() < PINGS && (beat || wanted) {
            self.ping();
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
        self.last_ping = now;
        self.pings.push_back(now);
        self.out.push(&resp::encode(&["PING", &now.0.to_string()]));
    }

    /// Applies what has come, in order.
    fn take_events(&mut self, wire: &mut Wire, cutter: &mut Cutter) -> io::Result<()> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "an unexpected message on the link");
        while let Some(len) = cutter.cut(&wire.input).map_err(|_| invalid())? {
            let frame = wire.input.split_to(len);
            match Event::parse(&frame).ok_or_else(invalid)? {
                Event::Keys(mut rest) => {
                    while let Some((key, next)) = resp::split_bulk(rest) {
                        self.node.coherence.key_changed(key, self.heard);
                        rest = next;
                    }
                }
                Event::Everything => self.node.coherence.everything_changed(),
                Event::Pong(t) => self.pong(t)?,
                // `-BUSY`, `-LOADING`: it lives, but proves nothing.
                Event::NoPong => {
                    self.pings.pop_front();
                }
                Event::Other => {}
            }
        }
        Ok(())
    }

    fn pong(&mut self, t: Time) -> io::Result<()> {
        if self.pings.pop_front() != Some(t) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a PONG out of order"));
        }
        match self.id.take() {
            Some(id) => {
                self.up = true;
                self.node.coherence.link_up(id, t);
                tracing::info!("link to {} ({}) is up: caching", self.node.address, self.node.version.load());
            }
            None => self.node.coherence.link_pong(t),
        }
        Ok(())
    }
}

/// What the link can say.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// These bulk strings name changed keys.
    Keys(&'a [u8]),
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
    /// Reads one frame of a RESP2 subscriber. `None`: that cannot be.
    pub fn parse(frame: &[u8]) -> Option<Event<'_>> {
        if frame[0] == b'-' {
            return Some(Event::NoPong);
        }
        let (_, rest) = resp::split_aggregate(frame)?;
        let (kind, rest) = resp::split_bulk(rest)?;
        match kind {
            b"pong" => {
                let (payload, _) = resp::split_bulk(rest)?;
                Some(Event::Pong(Time(u64::try_from(resp::parse_i64(payload)?).ok()?)))
            }
            b"message" => {
                let (channel, payload) = resp::split_bulk(rest)?;
                (channel == CHANNEL.as_bytes()).then_some(())?;
                Some(Self::payload(payload))
            }
            _ => Some(Event::Other),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: &str) -> String {
        format!("*3\r\n$7\r\nmessage\r\n$20\r\n{CHANNEL}\r\n{payload}")
    }

    #[test]
    fn every_form_of_event() {
        let keys = message("*2\r\n$1\r\na\r\n$2\r\nbc\r\n");
        assert_eq!(Event::parse(keys.as_bytes()), Some(Event::Keys(b"$1\r\na\r\n$2\r\nbc\r\n")));
        for null in ["$-1\r\n", "*-1\r\n", "_\r\n"] {
            assert_eq!(Event::parse(message(null).as_bytes()), Some(Event::Everything));
        }
        assert_eq!(
            Event::parse(message("$1\r\nx\r\n").as_bytes()),
            Some(Event::Keys(b"$1\r\nx\r\n")),
            "published by anybody"
        );
        assert_eq!(Event::parse(b"*2\r\n$4\r\npong\r\n$2\r\n17\r\n"), Some(Event::Pong(Time(17))));
        assert_eq!(Event::parse(b"-BUSY Redis is busy\r\n"), Some(Event::NoPong));
        assert_eq!(Event::parse(b"+PONG\r\n"), None);
    }
}
