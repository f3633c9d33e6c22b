//! Commands that the proxy adds to: SELECT, QUIT, INFO, PUBSUB CHANNELS.

use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;

use super::{After, Become, Session, Stall, Step};
use crate::admin;
use crate::command::{Local, Request};
use crate::node::identity::ConnectionKey;
use crate::node::login::SHUT_OUT;
use crate::node::{Node, names, probe, wire};
use crate::outbox::{Outbox, Piece};
use crate::resp;
use crate::shared::Shared;
use crate::time::Time;
use crate::upstream::connection::Connection;
use crate::upstream::effect::Effect;

/// How long INFO waits for a server that is known not to answer: it may have come back just now.
pub(super) const INFO_PATIENCE: Duration = Duration::from_millis(500);

/// Why a session ends whose identity the server could not be asked about.
const UNREACHABLE: &str = "the upstream could not be asked";

impl Session {
    pub(super) fn local(&mut self, request: &Request<'_>, local: Local) -> Step {
        match local {
            Local::Client => self.client_command(request),
            Local::Nearside => self.nearside(request),
            Local::Info => self.info(request),
            Local::Channels => self.channels(request),
            Local::Module => self.module(request),
            Local::Quit => {
                self.say("+OK");
                Step::Close
            }
            // Requests sent under the other identity are answered first.
            Local::Select | Local::Auth | Local::Hello | Local::Reset if self.outbox.waiting() > 0 => {
                Step::Stall(Stall::Drain)
            }
            Local::Select => self.select(request),
            Local::Auth => self.auth(request),
            Local::Hello => self.hello(request),
            Local::Reset => self.reset(),
        }
    }

    /// The server's verdict is that on selecting the database once more on a lane that is there, which changes nothing on it: the
    /// user may be without the right to select, or to that database, which may have brought nobody to the lane yet. If there
    /// is no such database, whether the user may select at all comes first, as at the server.
    fn select(&mut self, request: &Request<'_>) -> Step {
        let wanted = request.len() == 2;
        let db = wanted.then(|| resp::parse_i64(request.arg(1)).filter(|n| i32::try_from(*n).is_ok())).flatten();
        let key = match db.map(u32::try_from) {
            _ if !wanted => return self.say("-ERR wrong number of arguments for 'select' command"),
            None => Err("-ERR value is not an integer or out of range\r\n"),
            Some(Err(_)) => Err("-ERR DB index is out of range\r\n"),
            Some(Ok(db)) if db == self.identity.key.db => Ok(self.identity.key.clone()),
            Some(Ok(db)) => Ok(ConnectionKey { db, via: None, ..self.identity.key.clone() }),
        };
        let again = |db: u32| resp::encode(&[request.arg(0), db.to_string().as_bytes()]);
        let (here, present) = (self.lanes.any.clone(), again(self.identity.key.db));
        let there = key.map(|key| (self.pool.lane(&key), again(key.db), key));
        Step::Stall(Stall::For(Box::pin(async move {
            let error = match there {
                Ok((lane, question, key)) => match lane.ready().await {
                    Ok(_) => {
                        let reply: Bytes = ask_again(&lane, &question).await.into();
                        let moved = reply.starts_with(b"+");
                        return if moved {
                            After::Become(Box::new(Become { key, name: None, reply }))
                        } else {
                            refused(reply)
                        };
                    }
                    Err(error) => error,
                },
                Err(error) => Bytes::from_static(error.as_bytes()),
            };
            if Node::is_own_error(&error) || error == SHUT_OUT {
                return refused(error);
            }
            let right: Bytes = ask_again(&here, &present).await.into();
            refused(if right.starts_with(b"+") { error } else { right })
        })))
    }

    /// Becomes `key`, if the server opens a lane for it; `reply` makes the answer from its HELLO.
    pub(super) fn move_to(
        &self,
        key: ConnectionKey,
        name: Option<String>,
        reply: impl FnOnce(Bytes) -> Bytes + 'static,
    ) -> Step {
        Step::Stall(Stall::For(Box::pin(self.moved_to(key, name, reply))))
    }

    fn moved_to(
        &self,
        key: ConnectionKey,
        name: Option<String>,
        reply: impl FnOnce(Bytes) -> Bytes + 'static,
    ) -> impl Future<Output = After> + 'static {
        let lane = self.pool.lane(&key);
        async move {
            match lane.ready().await {
                Ok(hello) => After::Become(Box::new(Become { key, name, reply: reply(hello) })),
                Err(error) => refused(error),
            }
        }
    }

    /// INFO as the server gives it, with our clients as the clients, and our section where a section was not asked for
    /// by another name.
    fn info(&mut self, request: &Request<'_>) -> Step {
        let asked: Vec<Vec<u8>> = (1..request.len()).map(|i| request.arg(i).to_ascii_lowercase()).collect();
        let general = |s: &Vec<u8>| matches!(&s[..], b"default" | b"all" | b"everything");
        let ours = asked.is_empty() || asked.iter().any(|s| general(s) || s == b"nearside");
        let (shared, resp3) = (self.shared.clone(), self.identity.key.resp3);
        if asked.len() == 1 && asked[0] == b"nearside" {
            return self.info_nearside(request);
        }
        if self.identity.key.login.is_stranger() {
            // The server could not be asked who this is: nothing goes up a lane in its name.
            self.outbox.put(Piece::Slice(&info_without_server(&shared, &asked, resp3)));
            return Step::Done;
        }
        // These sections are known without the server, too.
        let told = |section: &Vec<u8>| matches!(&section[..], b"clients" | b"server");
        if !ours && !asked.iter().any(told) {
            return self.forward(self.lanes.any.clone(), Effect::None);
        }
        let reply = ask(&self.lanes.any, request.buf);
        Step::Stall(Stall::For(Box::pin(async move {
            let health = &shared.node().health;
            let patience = if health.down().is_some() { INFO_PATIENCE } else { Duration::MAX };
            let reply = tokio::time::timeout(patience, reply).await.ok();
            if let Some(why) = reply.as_ref().and_then(|reply| shared.node().own_error(reply)) {
                health.unreachable(&why);
            }
            let Some(reply) = reply.filter(|reply| !Node::is_own_error(reply)) else {
                return After::Reply(info_without_server(&shared, &asked, resp3));
            };
            health.reached();
            health.learn(&reply);
            let Some((text, _)) = resp::split_bulk(&reply) else { return After::Reply(reply.into()) };
            let text = text.strip_prefix(b"txt:").filter(|_| resp3).unwrap_or(text);
            let mut text = admin::own_clients(&String::from_utf8_lossy(text), &shared);
            if ours {
                text += "\r\n";
                text += &admin::info(&shared);
            }
            After::Reply(verbatim(&text, resp3).into())
        })))
    }

    /// PUBSUB CHANNELS as the server gives it, without the channel on which proxies listen to it.
    fn channels(&mut self, request: &Request<'_>) -> Step {
        let reply = ask(&self.lanes.any, request.buf);
        Step::Stall(Stall::For(Box::pin(async move {
            let reply = reply.await;
            let others = without(&reply, probe::CHANNEL.as_bytes());
            After::Reply(others.unwrap_or(reply).into())
        })))
    }

    /// MODULE LOAD and its like: the server's commands are others then, and are learned anew before the reply is told, so that
    /// no command of the module is taken for what its name meant before.
    fn module(&self, request: &Request<'_>) -> Step {
        let (reply, node) = (ask(&self.lanes.any, request.buf), self.shared.node().clone());
        Step::Stall(Stall::For(Box::pin(async move {
            let reply = reply.await;
            if !crate::upstream::refusal::of_builtin(&reply) {
                names::learn_again(&node).await;
            }
            After::Reply(reply.into())
        })))
    }
}

/// Puts one command to the server on a shared lane, and gives its reply to the proxy itself.
pub(super) fn ask(lane: &Connection, command: &[u8]) -> impl Future<Output = Vec<u8>> + use<> {
    put(lane, command, Effect::None, false)
}

/// The same for what does this to the cache.
pub(super) fn ask_acting(lane: &Connection, command: &[u8], effect: Effect) -> impl Future<Output = Vec<u8>> + use<> {
    put(lane, command, effect, false)
}

/// The same with a question that changes nothing: a lane that is lost may put it again.
pub(super) fn ask_again(lane: &Connection, question: &[u8]) -> impl Future<Output = Vec<u8>> + use<> {
    put(lane, question, Effect::None, true)
}

fn put(lane: &Connection, command: &[u8], effect: Effect, repeatable: bool) -> impl Future<Output = Vec<u8>> + use<> {
    let outbox = Rc::new(Outbox::default());
    let place = outbox.reserve(true);
    lane.send(Piece::Slice(command), place, effect, repeatable, Time::now());
    poll_fn(move |cx| {
        outbox.register(cx.waker());
        match () {
            () if outbox.severed() => Poll::Ready(SHUT_OUT.to_vec()),
            () if outbox.waiting() > 0 => Poll::Pending,
            () => Poll::Ready(outbox.take()),
        }
    })
}

/// The server's refusal is an answer like any other. If it could not be asked, or has no room for one connection more, the session
/// ends as it would have ended there: what comes behind in a pipeline must not be done as somebody else, or in another database.
pub(super) fn refused(reply: Bytes) -> After {
    if reply == SHUT_OUT {
        After::Leave(super::SHUT_OUT)
    } else if Node::is_own_error(&reply) || reply.starts_with(b"-ERR max number of clients") {
        After::Farewell(reply, UNREACHABLE)
    } else {
        After::Reply(reply)
    }
}

/// INFO of a server that cannot be asked; or why not, if what was asked for is known by the server alone.
fn info_without_server(shared: &Shared, asked: &[Vec<u8>], resp3: bool) -> Bytes {
    match admin::info_without_server(shared, asked) {
        Some(text) => verbatim(&text, resp3).into(),
        None => shared.node().error(&shared.node().health.down().unwrap_or_else(|| "cannot be asked".into())),
    }
}

/// A list of bulk strings without one of them; `None`: it is no such list.
fn without(list: &[u8], unwanted: &[u8]) -> Option<Vec<u8>> {
    let (count, mut rest) = resp::split_aggregate(list)?;
    let mut kept = Vec::with_capacity(count);
    for _ in 0..count {
        let (item, next) = resp::split_bulk(rest)?;
        kept.extend((item != unwanted).then_some(item));
        rest = next;
    }
    Some(resp::encode(&kept))
}

/// The reply to HELLO names the connection's number: the session's is ours.
pub(super) fn set_id(hello: &[u8], id: u64) -> Bytes {
    let Some(old) = wire::id_in(hello) else { return Bytes::copy_from_slice(hello) };
    [&hello[..old.start], id.to_string().as_bytes(), &hello[old.end..]].concat().into()
}

/// A text as INFO gives it: verbatim in RESP3, bulk in RESP2.
pub(super) fn verbatim(text: &str, resp3: bool) -> Vec<u8> {
    if resp3 {
        return format!("={}\r\ntxt:{text}\r\n", text.len() + 4).into_bytes();
    }
    let mut out = Vec::new();
    resp::encode_bulk(&mut out, text.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_in_hello_is_the_sessions() {
        let hello = b"%2\r\n$2\r\nid\r\n:123\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n";
        assert_eq!(&set_id(hello, 7)[..], b"%2\r\n$2\r\nid\r\n:7\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n");
    }

    #[test]
    fn one_is_taken_out_of_a_list() {
        assert_eq!(without(b"*2\r\n$1\r\na\r\n$2\r\nbc\r\n", b"a").as_deref(), Some(&b"*1\r\n$2\r\nbc\r\n"[..]));
        assert_eq!(without(b"*1\r\n$1\r\na\r\n", b"a").as_deref(), Some(&b"*0\r\n"[..]));
        assert_eq!(without(b"-ERR a\r\n", b"a"), None);
    }
}
