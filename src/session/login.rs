//! The session's identity: strangers, AUTH, HELLO and RESET.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::client::is_word;
use super::local::{refused, set_id};
use super::state::Identity;
use super::{After, Become, Input, Session, Stall, Step, Why};
use crate::command::{Local, Need, Plan, Request, Route};
use crate::node::Node;
use crate::node::guesses::{self, GuessOrigin};
use crate::node::handshake;
use crate::node::identity::ConnectionKey;
use crate::node::identity::Role;
use crate::node::login::Login;
use crate::node::wire::{self, NOAUTH, Refusal, Wire};
use crate::outbox::Piece;
use crate::upstream::Pool;
use crate::upstream::guest::{self, Answer};

/// How often one AUTH is put to the server, if users are deleted meanwhile.
const VERDICTS: usize = 3;

/// A name and a password.
struct Creds {
    user: Vec<u8>,
    password: Vec<u8>,
}

impl Session {
    /// A session that begins while it is not known whether the server takes a new connection asks first, so that what it may do
    /// is decided by the time it came.
    pub(super) fn begin(&mut self) {
        if self.identity.key.login.is_stranger() {
            self.stall = Some(self.introduction(None));
        }
    }

    /// The way of a stranger's request: a stranger may log in, and go. For everything else the server is asked whether it takes one who has not
    /// logged in, unless its answer is known; what it says is the answer. `None`: the request goes on as any other.
    pub(super) fn introduce(&self, request: &Request<'_>, plan: Plan) -> Option<Step> {
        match plan.route {
            Route::Local(Local::Quit | Local::Auth | Local::Reset) => None,
            Route::Local(Local::Hello) if HelloArgs::of(request).creds.is_some() => None,
            // Whoever runs the proxy may want to know why the server cannot be asked.
            Route::Local(Local::Nearside | Local::Info) if self.present.bypass => None,
            route => {
                // The server does not know the proxy's own commands, and commands that name clients mean others there.
                let own = matches!(route, Route::Local(local) if !matches!(local, Local::Hello | Local::Module));
                let known = if own { Some(Bytes::from_static(NOAUTH)) } else { guest::too_long(request) };
                let asked = known.map_or_else(|| Ok(request.buf.to_vec()), Err);
                Some(Step::Stall(self.introduction(Some((route, asked)))))
            }
        }
    }

    /// Asks whether the session may enter without a login. If the server cannot be asked it is closed: nobody can say whether more may
    /// be held for it.
    pub(super) fn admission(&self) -> Stall {
        let pool = self.pool.clone();
        Stall::For(Box::pin(async move {
            match admitted(&pool).await {
                Ok(begun) => begun,
                Err(Refusal::Login(_)) => After::Again,
                Err(other) => After::Farewell(other.reply(pool.node()), "the upstream cannot be asked who may enter"),
            }
        }))
    }

    /// The handshake of another proxy does not wait for the introduction: in a ring of proxies, that waits for it. It is passed
    /// on first, and if it comes back to its sender, all of them say so. True if the first request is such a handshake.
    pub(super) fn recognise(&mut self, input: &mut Input) -> bool {
        if self.acquaintance.recognised || !input.is_array() {
            return false;
        }
        // The request that waits is the first, or the first is looked at before it is known how much the client may say.
        let waits = input.has_present();
        if !waits {
            input.guard(true);
        }
        let found = matches!(input.find_request(&self.cache, self.shared.config.proto_max_bulk_len), Ok(true));
        let marked =
            |request: &Request<'_>| request.arg(0).eq_ignore_ascii_case(b"HELLO") && wire::is_marked(request.buf);
        let question = found.then(|| input.request()).filter(marked).map(|request| request.buf.to_vec());
        // A request that is passed on is the present one until its answer is here.
        if !waits && question.is_none() {
            input.forget_ahead();
        }
        self.acquaintance.recognised = found;
        let Some(question) = question else { return false };
        let pool = self.pool.clone();
        self.stall = Some(Stall::For(Box::pin(async move {
            match passed_on(pool.node(), &question).await {
                Some(ring) => After::Farewell(ring, RING),
                None => After::Again,
            }
        })));
        true
    }

    /// Asks for the proof that the session may be what the upstream's address says; for a request of this route, if for any.
    /// If it may not, the server answers the request itself, or gets no such request and the answer is known.
    pub(super) fn introduction(&self, request: Option<(Route, Result<Vec<u8>, Bytes>)>) -> Stall {
        let pool = self.pool.clone();
        Stall::For(Box::pin(async move {
            let (route, asked) = request.unzip();
            match (admitted(&pool).await, route) {
                (Ok(begun), _) => begun,
                (Err(_), None) => After::Again,
                (Err(Refusal::Login(reply)), _) if reply.starts_with(b"-NOAUTH") => match asked {
                    Some(Ok(request)) => after_guest(pool.guest.ask(pool.node(), &request).await, route),
                    Some(Err(known)) => After::Reply(known),
                    None => After::Again,
                },
                (Err(Refusal::Login(reply)), _) => After::Reply(reply),
                (Err(_), Some(Route::Local(Local::Nearside | Local::Info))) => After::Upstream,
                (Err(other), Some(Route::Local(Local::Hello | Local::Select))) => refused(other.reply(pool.node())),
                (Err(other), _) => After::Reply(other.reply(pool.node())),
            }
        }))
    }

    /// AUTH is put to the server as it is, on a connection that is no lane: a lane of that user proves nothing about the password
    /// given here.
    pub(super) fn auth(&mut self, request: &Request<'_>) -> Step {
        let (user, password) = match request.len() {
            2 => (b"default".as_slice(), request.arg(1)),
            3 => (request.arg(1), request.arg(2)),
            1 => return self.say("-ERR wrong number of arguments for 'auth' command"),
            _ => return self.say("-ERR syntax error"),
        };
        let creds = Creds { user: user.to_vec(), password: password.to_vec() };
        let (pool, key, question) = (self.pool.clone(), self.identity.key.clone(), request.buf.to_vec());
        let from = GuessOrigin::of(&self.client.addr);
        Step::Stall(self.slowed(from, async move {
            match verified(&pool, creds, &question, from).await {
                Ok((login, reply)) => {
                    After::Become(Box::new(Become { key: key.authenticated(login), name: None, reply }))
                }
                Err(reply) => refused(reply),
            }
        }))
    }

    /// A login's wait. A client that goes while others' guesses keep its own from being judged gets no answer, so that nothing
    /// is left of who guesses and goes.
    fn slowed(&self, from: GuessOrigin, wait: impl Future<Output = After> + 'static) -> Stall {
        let free = self.shared.node().guesses.has_turn(from);
        if free { Stall::For(Box::pin(wait)) } else { Stall::Blocked(Box::pin(wait)) }
    }

    pub(super) fn hello(&mut self, request: &Request<'_>) -> Step {
        let id = self.client.id;
        let with_id = move |hello: Bytes| set_id(&hello, id);
        let version = (request.len() == 2).then(|| request.arg(1));
        match version {
            // Where HELLO is no command, the server says so, to a connection of its own.
            _ if self.shared.node().without_hello.load(Ordering::Relaxed) => {}
            None if request.len() == 1 => return self.move_to(self.identity.key.clone(), None, with_id),
            Some(v @ (b"2" | b"3")) => {
                return self.move_to(ConnectionKey { resp3: v == b"3", ..self.identity.key.clone() }, None, with_id);
            }
            _ => {}
        }
        if wire::comes_back(request.buf) {
            return Step::Stall(Stall::For(Box::pin(async { After::Farewell(wire::ring(), RING) })));
        }
        let asked = HelloArgs::of(request);
        let old = self.identity.key.clone();
        let same = ConnectionKey { resp3: asked.resp3, ..old.clone() };
        let (pool, question, from) = (self.pool.clone(), request.buf.to_vec(), GuessOrigin::of(&self.client.addr));
        // A ring of proxies is found by a handshake that goes round.
        let without_hello = self.shared.node().without_hello.load(Ordering::Relaxed);
        if asked.sound && asked.creds.is_none() && !without_hello && !wire::is_marked(&question) {
            return self.move_to(same, asked.name, with_id);
        }
        let logs_in = asked.creds.is_some();
        let wait = async move {
            // AUTH and HELLO leave the database as it is.
            let answer = match asked.creds {
                Some(creds) => {
                    verified(&pool, creds, &question, from).await.map(|(login, r)| (same.authenticated(login), r))
                }
                None => put(pool.node(), Some(&old.login), &question).await.map(|(_, reply)| (same, reply)),
            };
            match answer {
                Ok((_, reply)) if reply.starts_with(b"-") => refused(reply),
                Ok((key, reply)) => {
                    After::Become(Box::new(Become { key, name: asked.name, reply: set_id(&reply, id) }))
                }
                Err(reply) => refused(reply),
            }
        };
        Step::Stall(if logs_in { self.slowed(from, wait) } else { Stall::For(Box::pin(wait)) })
    }

    /// Bytes that pass unlooked at may be a guess, whose verdict nobody reads: they wait for a turn, and keep it.
    pub(super) fn guess(&self, request: &Request<'_>, plan: Plan) -> Option<Stall> {
        let guesses = match plan.route {
            Route::Local(Local::Auth) => true,
            Route::Local(Local::Hello) => HelloArgs::of(request).creds.is_some(),
            _ => false,
        };
        if !guesses || self.present.bypass {
            return None;
        }
        let (node, from) = (self.shared.node().clone(), GuessOrigin::of(&self.client.addr));
        Some(self.slowed(from, async move {
            match node.guesses.turn(from).await {
                // A turn that is neither kept nor given back has its time.
                Some(_) => After::Upstream,
                None => After::Farewell(Bytes::from_static(TOO_MANY), "too many wrong passwords come from its address"),
            }
        }))
    }

    /// Makes the session as a new connection is. A database that the upstream's address names is left as well.
    pub(super) fn reset(&mut self) -> Step {
        if let Some(step) = self.reset_kept() {
            return step;
        }
        if let Some(lent) = self.lent.take() {
            lent.connection.lend(None);
            self.client.uses_connection(None);
        }
        let node = self.shared.node();
        let key = ConnectionKey { login: node.logins.first().clone(), ..node.own.clone() };
        self.become_other(Become { key, name: Some(String::new()), reply: Bytes::from_static(b"+RESET\r\n") });
        Step::Done
    }

    /// Is somebody else from here on.
    pub(super) fn become_other(&mut self, other: Become) {
        if let Some(name) = other.name {
            self.client.words().name = name;
        }
        self.client.db.store(other.key.db, Ordering::Relaxed);
        self.client.resp.store(if other.key.resp3 { 3 } else { 2 }, Ordering::Relaxed);
        self.identify(other.key);
        self.outbox.put(Piece::Bytes(other.reply));
    }

    pub(super) fn identify(&mut self, key: ConnectionKey) {
        self.client.words().user = String::from_utf8_lossy(key.user()).into_owned();
        self.client.login.store(key.login.number(), Ordering::Release);
        // After that: an end of the login that is not seen here finds the client by the number.
        if key.login.ended() {
            self.client.kill();
        }
        self.lanes.change(&self.pool, &key);
        self.identity = Identity::new(&self.shared, &self.pool, key);
    }
}

/// The proof that the session may be what the upstream's address says. The connection that was opened for it is kept.
async fn admitted(pool: &Rc<Pool>) -> Result<After, Refusal> {
    let opened = handshake::prove(pool.node()).await?;
    opened.into_iter().for_each(|opened| pool.adopt(&pool.node().own, opened));
    Ok(After::Begin(pool.node().logins.own().clone()))
}

/// How a stranger goes on whose request was put to the server.
fn after_guest(answer: Answer, route: Option<Route>) -> After {
    match (answer, route) {
        (
            Answer::Done(reply),
            Some(Route::Lane | Route::Cache(_) | Route::Unlisted | Route::Dedicated(Need::Block | Need::Alone)),
        ) => After::Reply(reply),
        // The command was to change the connection, which is gone.
        (Answer::Done(_), _) => After::Again,
        (Answer::Refused(reply), _) => After::Reply(reply),
        (Answer::Failed(error), _) => refused(error),
        (Answer::Gone, _) => After::Leave("the server has nothing to say to it before it logs in"),
    }
}

/// The arguments of a HELLO, as far as the proxy must know it once the server has accepted it.
struct HelloArgs {
    resp3: bool,
    creds: Option<Creds>,
    name: Option<String>,
    /// The server has nothing to object to, the password left aside.
    sound: bool,
}

impl HelloArgs {
    fn of(request: &Request<'_>) -> HelloArgs {
        HelloArgs::parse(&(1..request.len()).map(|i| request.arg(i)).collect::<Vec<_>>())
    }

    fn parse(args: &[&[u8]]) -> HelloArgs {
        let resp3 = args.first() == Some(&b"3".as_slice());
        let sound = resp3 || args.first() == Some(&b"2".as_slice());
        let mut asked = HelloArgs { resp3, creds: None, name: None, sound };
        let mut rest = args.get(1..).unwrap_or_default();
        loop {
            rest = match rest {
                [word, user, password, tail @ ..] if word.eq_ignore_ascii_case(b"AUTH") => {
                    asked.creds = Some(Creds { user: user.to_vec(), password: password.to_vec() });
                    tail
                }
                [word, name, tail @ ..] if word.eq_ignore_ascii_case(b"SETNAME") => {
                    asked.name = Some(String::from_utf8_lossy(name).into_owned());
                    asked.sound &= is_word(name);
                    tail
                }
                rest => {
                    asked.sound &= rest.is_empty();
                    return asked;
                }
            };
        }
    }
}

/// Told whoever has waited in vain for a turn.
const TOO_MANY: &[u8] =
    b"-ERR nearside: too many wrong passwords come from this address (wrong_passwords_per_second)\r\n";

/// Why the session of a proxy ends that asks itself.
const RING: Why = "a handshake of a proxy that has come back to it";

/// The error that another proxy's handshake gets if it leads back to that proxy.
async fn passed_on(node: &Node, hello: &[u8]) -> Option<Bytes> {
    if wire::comes_back(hello) {
        return Some(wire::ring());
    }
    let reply = put(node, None, hello).await.map_or_else(|error| error, |(_, reply)| reply);
    wire::is_ring(&reply).then_some(reply)
}

/// Puts AUTH, or HELLO with AUTH, to the server when it is its turn: the login it leads to. `Err`: it leads to none.
async fn verified(
    pool: &Rc<Pool>,
    creds: Creds,
    question: &[u8],
    from: GuessOrigin,
) -> Result<(Arc<Login>, Bytes), Bytes> {
    let known = pool.node().logins.known(&creds.user, &creds.password);
    if known.is_some() {
        // Perhaps it is wrong by now, but no guess.
        return judged(pool, creds, question, known).await;
    }
    let Some(turn) = pool.node().guesses.turn(from).await else {
        return Err(Bytes::from_static(TOO_MANY));
    };
    let verdict = judged(pool, creds, question, None).await;
    match &verdict {
        Err(reply) if guesses::is_wrong(reply) => turn.keep(),
        _ => turn.give_back(),
    }
    verdict
}

/// `known`: the password was right before. If the thread has too few connections on which the server has accepted this login
/// (its sessions need them once the password is replaced), it is judged on one more.
async fn judged(
    pool: &Rc<Pool>,
    creds: Creds,
    question: &[u8],
    known: Option<Arc<Login>>,
) -> Result<(Arc<Login>, Bytes), Bytes> {
    let logins = &pool.node().logins;
    let shares = known.is_some_and(|login| pool.has_spares(&login));
    for _ in 0..VERDICTS {
        let ends = logins.ends();
        logins.asked.fetch_add(1, Ordering::Relaxed);
        let (wire, reply) = match shares {
            true => (None, within_limit(pool.node(), question, pool.judge.ask(pool.node(), question)).await?),
            false => {
                logins.connected.fetch_add(1, Ordering::Relaxed);
                let (wire, reply) = put(pool.node(), None, question).await?;
                (Some(wire), reply)
            }
        };
        if reply.starts_with(b"-") {
            return Err(reply);
        }
        if let Some(login) = logins.enter(&creds.user, &creds.password, ends) {
            let Some(wire) = wire else { return Ok((login, reply)) };
            let resp3 = wire::is_hello(&reply) && reply.starts_with(b"%");
            let key = ConnectionKey { login: login.clone(), resp3, db: 0, via: None };
            tokio::task::spawn_local(keep(pool.clone(), key, wire));
            return Ok((login, reply));
        }
    }
    Err(pool.node().error("deletes users faster than one can log in"))
}

/// Keeps the connection on which the server has accepted a login: for the next transaction, and in case no other can be had
/// when the password is replaced.
async fn keep(pool: Rc<Pool>, key: ConnectionKey, wire: Wire) {
    let opened = handshake::take_over(pool.node(), wire, 0, &key, Role::Dedicated);
    if let Ok(Ok(opened)) = tokio::time::timeout(pool.node().settings.connect_timeout, opened).await {
        pool.adopt(&key, opened);
    }
}

/// Puts one question to the server on a fresh connection, as this login if there is one. `Err`: it could not be put.
async fn put(node: &Node, login: Option<&Login>, question: &[u8]) -> Result<(Wire, Bytes), Bytes> {
    let work = async {
        let mut wire = Wire::connect(node).await?;
        if let Some(login) = login {
            wire.log_in(node, login, false, Role::Dedicated.name(), 0).await?;
        }
        wire.send(question).await?;
        let reply = wire.reply().await?;
        Ok::<_, Refusal>((wire, reply))
    };
    within_limit(node, question, work).await
}

/// The answer to a question that is put so. `Err`: nothing within `connect_timeout`.
async fn within_limit<T, E: Into<Refusal>>(
    node: &Node,
    question: &[u8],
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Bytes> {
    // A question without a mark would go round in a ring without end.
    if node.ring.load(Ordering::Acquire) && !wire::is_marked(question) {
        return Err(wire::ring());
    }
    match tokio::time::timeout(node.settings.connect_timeout, work).await {
        Ok(answer) => answer.map_err(|refusal| refusal.into().reply(node)),
        Err(_) => Err(node.error(&format!("no answer within {:?}", node.settings.connect_timeout))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_options_in_any_order() {
        let asked = HelloArgs::parse(&[b"3", b"setname", b"me", b"AUTH", b"u", b"p"]);
        assert!(asked.resp3 && asked.name.as_deref() == Some("me"));
        assert!(asked.creds.is_some_and(|c| c.user == b"u" && c.password == b"p"));
    }
}
