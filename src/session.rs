//! One client connection: read, plan, answer in order. It has one task, on the thread that also owns its lanes; a hit
//! is answered between one read and one write of that task, without an await.
//!
//! Order: replies come out in the order of the commands ([`crate::outbox`]). Effects keep it too: commands that go down
//! the same connection cannot overtake each other, and before a command goes down another connection than the one
//! before it, everything outstanding is answered first.
//!
//! Invariants, and the tests that attack them:
//!
//! 1. Each request takes one place in the outbox, or is answered there at once, in the order of arrival.
//!    `tests/differential.rs`, `whoever_answers_first_the_order_stays` (`outbox`).
//! 2. Before a request goes down another connection than the one before it, nothing is outstanding (`Stall::Drain`).
//!    `test_session_state.py`, `test_a_reply_that_the_server_does_not_hold` (reads and writes on two lanes).
//! 3. A session with a connection of its own uses no lane until that is given back. `test_session_state.py`.
//! 4. A hit overtakes nothing that is outstanding about its key, and above `bounded` nothing at all.
//!    `promises::pipelines`, `rules_needed::not_overtaking`.
//! 5. The lane it holds comes back whenever it is needed, however long the session was silent.
//!    `test_a_session_that_sleeps_longer_than_its_lane`.

mod audit;
mod client;
mod dedicated;
mod flow;
mod input;
mod leaving;
mod lent;
mod local;
mod login;
mod nearside;
mod outstanding;
mod pinned;
mod read;
mod route;
mod state;
mod unlisted;
mod wait;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;

use crate::audit::Sampler;
use crate::bypass::Bypass;
use crate::cache::Cache;
use crate::clients::Client;
use crate::command::{self, CommandTable, Keys, Need, Plan, Request, Route, Word};
use crate::config::Level;
use crate::node::identity::ConnectionKey;
use crate::node::login::Login;
use crate::outbox::{Outbox, Piece};
use crate::resp::ProtocolError;
use crate::sabotage;
use crate::shared::{Presence, Shared};
use crate::time::Time;
use crate::transport::Stream;
use crate::upstream::Pool;
use crate::upstream::change::Change;
use crate::upstream::connection::Connection;
use crate::upstream::effect::{Effect, KeySet};
use flow::Weight;
use input::Input;
use lent::Lent;
use outstanding::Outstanding;
use state::{Acquaintance, Ending, Freshness, Identity, Lanes, Latest, Present, Redirect, Round, Tally};

/// Turns of the loop before other tasks of the thread get theirs.
const TURNS: usize = 8;

/// The outcome of one request.
enum Step {
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
enum Stall {
    /// For everything outstanding to be answered.
    Drain,
    /// For something else.
    For(Pin<Box<dyn Future<Output = After>>>),
    /// For others, as long as they take: a client that goes meanwhile does not get an answer.
    Blocked(Pin<Box<dyn Future<Output = After>>>),
}

/// How a request goes on after it has waited.
enum After {
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
struct Become {
    key: ConnectionKey,
    name: Option<String>,
    reply: Bytes,
}

/// Why a session ended; a word for the log.
type Why = &'static str;

const SHUT_OUT: Why = "its user cannot log in any more";

/// One client connection.
pub struct Session {
    shared: Arc<Shared>,
    pool: Rc<Pool>,
    cache: Arc<Cache>,
    stream: Stream,
    outbox: Rc<Outbox>,
    /// Room for the keys of the request that is planned.
    keys: Keys,
    client: Arc<Client>,
    identity: Identity,
    lanes: Lanes,
    lent: Option<Lent>,
    level: Level,
    fresh: Freshness,
    stall: Option<Stall>,
    present: Present,
    latest: Latest,
    round: Round,
    acquaintance: Acquaintance,
    outstanding: Outstanding,
    /// The last wait for a read of its own has brought no hit so far.
    waited_in_vain: bool,
    weight: Weight,
    ending: Ending,
    /// The session has sent a command that the server passes on to its replicas: WAIT is about that.
    wrote: bool,
    redirected: Redirect,
    tally: Tally,
    /// When the next hit is audited.
    sampler: Sampler,
}

/// Serves one client until it goes.
pub async fn run(shared: &Arc<Shared>, pool: &Rc<Pool>, stream: Stream, presence: Presence, level: Level) {
    let timeout = shared.config.timeout;
    let client = &presence.client;
    let mut session = Session::new(shared.clone(), pool.clone(), stream, client.clone(), level);
    // Not the session's own, so that a request can be looked at while the session changes.
    let mut input = Input::default();
    session.begin();
    let why = if timeout.is_zero() {
        poll_fn(|cx| session.poll(cx, &mut input)).await
    } else {
        session.run_with_timeout(timeout, &mut input).await
    };
    tracing::debug!(id = client.id, why, "client gone");
    // Its connection is closed before its place is given back.
    drop(session);
}

impl Session {
    fn new(shared: Arc<Shared>, pool: Rc<Pool>, stream: Stream, client: Arc<Client>, level: Level) -> Session {
        let key = shared.first_key(shared.node.logins.first());
        client.db.store(key.db, Ordering::Relaxed);
        let lanes = Lanes::new(&pool, &key);
        Session {
            cache: shared.cache.clone(),
            sampler: shared.audit.sampler(),
            weight: Weight::new(&shared.config),
            identity: Identity::new(&shared, &pool, key),
            shared,
            pool,
            stream,
            outbox: Rc::default(),
            keys: Keys::default(),
            client,
            lanes,
            lent: None,
            level,
            fresh: Freshness::new(Time::now()),
            stall: None,
            present: Present::default(),
            latest: Latest::default(),
            round: Round::default(),
            acquaintance: Acquaintance::default(),
            outstanding: Outstanding::default(),
            waited_in_vain: false,
            ending: Ending::default(),
            wrote: false,
            redirected: Redirect::default(),
            tally: Tally::default(),
        }
    }

    /// Redis does not time out clients that wait for it, nor subscribers.
    async fn run_with_timeout(&mut self, timeout: Duration, input: &mut Input) -> Why {
        loop {
            let slept = tokio::time::sleep(timeout / 4);
            tokio::select! {
                biased;
                why = poll_fn(|cx| self.poll(cx, input)) => return why,
                () = slept => {}
            }
            let waits = self.outbox.waiting() > 0 || self.stall.is_some();
            if !waits && self.lent.is_none() && Time::now().since(self.fresh.arrived) > timeout {
                return "idle for longer than `timeout`";
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, input: &mut Input) -> Poll<Why> {
        if self.outbox.register(cx.waker()) {
            self.client.wakes(cx.waker());
        }
        if self.client.killed() {
            return Poll::Ready(self.killed(cx));
        }
        let mut now = None;
        // Mostly there is a request to be read and nothing else to do: reading comes first.
        let mut silent = false;
        if self.stall.is_none() && input.left() == 0 {
            match self.poll_read(cx, input) {
                Poll::Pending => silent = true,
                Poll::Ready(Ok(arrived)) => now = arrived,
                Poll::Ready(Err(why)) => return Poll::Ready(why),
            }
        }
        for _ in 0..TURNS {
            self.poll_stall(cx, input);
            if self.stall.is_none() {
                self.heed_wish();
                self.process(input, now.take());
                // A stall just made must be polled once, to be woken by what it waits for; if that has happened
                // already, there may be input to go on with.
                if self.stall.is_some() && self.poll_stall(cx, input) {
                    continue;
                }
            }
            let owing = self.outbox.writable() || !self.stream.is_flushed();
            if owing && let Poll::Ready(Err(_)) = self.outbox.poll_write(cx, &mut self.stream) {
                return Poll::Ready("it does not take its replies");
            }
            if let Some(why) = self.over(cx, input) {
                return Poll::Ready(why);
            }
            if self.round.held_back && !self.holds_back(input) {
                continue;
            }
            let read = if silent { Poll::Pending } else { self.poll_read(cx, input) };
            match read {
                Poll::Pending => {
                    self.outbox.rest();
                    return Poll::Pending;
                }
                Poll::Ready(Ok(arrived)) => now = arrived,
                Poll::Ready(Err(why)) => return Poll::Ready(why),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The session ends at once, but for replies that are on their way: that it has deleted its own user, for one.
    #[cold]
    fn killed(&mut self, cx: &mut Context<'_>) -> Why {
        let _ = self.outbox.poll_write(cx, &mut self.stream);
        "killed"
    }

    /// Whether and why the session ends now.
    fn over(&mut self, cx: &mut Context<'_>, input: &Input) -> Option<Why> {
        if self.outbox.severed() {
            return Some(SHUT_OUT);
        }
        if self.outbox.broken() {
            self.upstream_left();
        }
        let ending = self.ending.closing.is_some() || self.ending.eof || self.client.draining();
        if ending && let Some(why) = self.ended(cx) {
            return Some(why);
        }
        self.too_much(input)
    }

    /// True if what the request waited for has happened.
    #[inline]
    fn poll_stall(&mut self, cx: &mut Context<'_>, input: &mut Input) -> bool {
        self.stall.is_some() && self.poll_wait(cx, input)
    }

    /// Kept out of the way of those that do not wait.
    #[cold]
    fn poll_wait(&mut self, cx: &mut Context<'_>, input: &mut Input) -> bool {
        let after = match &mut self.stall {
            None => return false,
            Some(Stall::Drain) if self.outbox.waiting() > 0 => return false,
            Some(Stall::Drain) => After::Again,
            Some(Stall::For(wait) | Stall::Blocked(wait)) => match wait.as_mut().poll(cx) {
                Poll::Pending if self.identity.key.login.is_stranger() && self.recognise(input) => {
                    return self.poll_wait(cx, input);
                }
                Poll::Pending => return false,
                Poll::Ready(after) => after,
            },
        };
        self.stall = None;
        self.ending.leaving = None;
        match after {
            After::Again => {}
            After::Upstream => self.present.bypass = true,
            After::Share => self.share_lane(),
            After::Reply(reply) | After::Farewell(reply, _) if reply == crate::node::login::SHUT_OUT => {
                self.ending.closing = Some(SHUT_OUT);
                self.request_done(input);
            }
            After::Reply(reply) => {
                self.outbox.put(Piece::Bytes(reply));
                self.request_done(input);
            }
            After::Farewell(reply, why) => {
                self.outbox.put(Piece::Bytes(reply));
                self.ending.closing = Some(why);
                // A client can be sent away in the middle of its request.
                if input.has_present() {
                    self.request_done(input);
                }
            }
            After::Leave(why) => {
                self.ending.closing = Some(why);
                self.request_done(input);
            }
            After::Begin(login) => self.identify(ConnectionKey { login, ..self.identity.key.clone() }),
            After::Become(other) => {
                self.become_other(*other);
                self.request_done(input);
            }
        }
        true
    }

    fn request_done(&mut self, input: &mut Input) {
        input.consume();
        self.next_request();
    }

    fn next_request(&mut self) {
        self.requests_done(1);
    }

    fn requests_done(&mut self, requests: usize) {
        self.present = Present::default();
        self.tally.commands += requests as u64;
    }

    /// Deals with all the input there is, or until something has to wait. `now`: if it has just been looked at the clock.
    fn process(&mut self, input: &mut Input, now: Option<Time>) {
        self.outstanding.told_before(self.outbox.first());
        self.round.held_back = false;
        if input.left() == 0 && self.lent.is_none() {
            return self.account();
        }
        self.fresh.now = now.unwrap_or_else(Time::now);
        self.round.paused = self.shared.node.pauses.are_on(self.fresh.now);
        let mut table = None;
        let max_bulk = self.shared.node.bounds.max_bulk();
        while self.ending.closing.is_none() && self.stall.is_none() {
            self.round.held_back = self.holds_back(input);
            if self.round.held_back {
                break;
            }
            if self.lent.is_some() && !self.go_on_lent(input) {
                break;
            }
            input.guard(self.is_shut_out());
            match input.find_request(&self.cache, max_bulk) {
                Ok(true) => {}
                Ok(false) => {
                    self.ask_before_more(input);
                    break;
                }
                Err(e) => {
                    self.protocol_error(&e);
                    break;
                }
            }
            if self.serve_hits(input) {
                continue;
            }
            // After one miss the next request usually misses too.
            if let Some(hash) = input.hash_behind() {
                self.cache.prefetch_revision(hash);
            }
            let mut keys = std::mem::take(&mut self.keys);
            let table = table.get_or_insert_with(|| self.shared.node.table.load());
            let step = self.dispatch(&input.request(), table, &mut keys);
            self.keys = keys.shed();
            self.carry_out(step, input);
        }
        self.account();
    }

    /// Adds what was dealt with to the process's counters and to what is said of this client.
    fn account(&mut self) {
        if self.tally.commands > 0 {
            self.waited_in_vain &= self.tally.hits == 0;
            self.client.active.store(self.fresh.now.0, Ordering::Relaxed);
            self.client.command.store(self.latest.name, Ordering::Relaxed);
            self.lanes.touch(self.fresh.now);
            self.shared.count(std::mem::take(&mut self.tally.commands), std::mem::take(&mut self.tally.hits));
        }
    }

    fn protocol_error(&mut self, e: &ProtocolError) {
        self.outbox.put(Piece::Slice(format!("-ERR {e}\r\n").as_bytes()));
        self.ending.closing = Some("protocol error");
    }

    fn dispatch(&mut self, request: &Request<'_>, table: &CommandTable, keys: &mut Keys) -> Step {
        let plan = table.plan(request, keys);
        sabotage::panic_at("session");
        self.latest.name = u32::from(plan.name);
        self.latest.repeatable = plan.repeatable;
        self.latest.word = plan.word;
        if plan.route == Route::Unlisted
            && let Some(step) = self.unlisted(request)
        {
            return step;
        }
        if let Some(reason) = self.bars_cache()
            && self.present.tries == 0
            && matches!(plan.route, Route::Cache(_))
        {
            self.cache.stats.bypasses.count(reason);
        }
        if self.lent.is_some() {
            return self.dispatch_lent(request, plan, keys);
        }
        if self.identity.key.login.is_stranger()
            && let Some(step) = self.introduce(request, plan)
        {
            return step;
        }
        if self.is_outsized(request, plan) {
            return self.outsized();
        }
        match plan.route {
            Route::Cache(_) | Route::Lane | Route::Unlisted if self.round.paused => self.alone(request, plan, keys),
            Route::Cache(read) => self.cached_read(request, plan, read),
            Route::Lane | Route::Unlisted => match self.lane_or_apart(request) {
                Ok(lane) => self.forward(lane, self.effect(request, plan, keys)),
                Err(first) => first,
            },
            Route::Dedicated(Need::Alone) => self.alone(request, plan, keys),
            Route::Dedicated(Need::Wait) => self.wait(request),
            Route::Dedicated(need) => self.dedicate(request, plan.word, need),
            Route::Local(local) => self.local(request, local),
        }
    }

    /// Why no read of the session has to do with the cache now.
    fn bars_cache(&self) -> Option<Bypass> {
        match self.lent {
            Some(_) => Some(Bypass::OwnConnection),
            None => self.round.paused.then_some(Bypass::Paused),
        }
    }

    fn forward(&self, lane: Rc<Connection>, effect: Effect) -> Step {
        match self.wait_for_room(&lane) {
            Some(stall) => Step::Stall(stall),
            None => Step::Send(lane, effect),
        }
    }

    /// The hash of argument `i`.
    fn hash(&self, request: &Request<'_>, i: usize) -> u64 {
        request.hash.filter(|_| i == 1).unwrap_or_else(|| self.cache.hash(request.arg(i)))
    }

    /// The command's effect on the cache, by the hashes of its keys.
    fn effect(&self, request: &Request<'_>, plan: Plan, keys: &Keys) -> Effect {
        let hash = |positions: &[usize]| positions.iter().map(|i| self.hash(request, *i)).collect();
        let scripted = plan.route == Route::Dedicated(Need::Alone);
        let set = || KeySet { writes: hash(&keys.writes), reads: hash(&keys.reads), scripted };
        match plan.effect {
            command::EffectClass::None => Effect::None,
            command::EffectClass::Flush => Effect::Flush,
            command::EffectClass::Rights => Effect::Rights(Box::new(Change::of(request, plan.word))),
            command::EffectClass::Keys => match (&keys.writes[..], &keys.reads[..]) {
                ([key], []) if !scripted => Effect::Write(self.hash(request, *key)),
                ([], [key]) if !scripted => Effect::Read(self.hash(request, *key)),
                _ => Effect::of_keys(set()),
            },
            command::EffectClass::Unknown => Effect::Unknown(Box::new(set())),
        }
    }

    fn carry_out(&mut self, step: Step, input: &mut Input) {
        match step {
            Step::Stall(stall) => {
                self.present.tries += 1;
                self.stall = Some(stall);
                return;
            }
            Step::Replace(request) => {
                self.present.replaced = true;
                return input.replace(&request);
            }
            Step::Close => self.ending.closing = Some("it said QUIT"),
            Step::Done => {}
            Step::Send(connection, effect) => {
                self.wrote |= self.writes(&effect);
                let known = self.outstanding.note_all(self.outbox.next(), &effect);
                self.outstanding.note_size(self.outbox.next(), input.request().buf.len());
                let place = self.outbox.reserve(!known);
                if input.request().buf.len() >= crate::buffer::LARGE {
                    connection.send(Piece::Bytes(input.take()), place, effect, self.latest.repeatable, self.fresh.now);
                    return self.next_request();
                }
                connection.send(
                    Piece::Slice(input.request().buf),
                    place,
                    effect,
                    self.latest.repeatable,
                    self.fresh.now,
                );
            }
        }
        input.consume();
        self.next_request();
    }

    /// Whether the request may write something that a later WAIT is to count. What a transaction has queued is written by EXEC.
    fn writes(&self, effect: &Effect) -> bool {
        let in_multi = self.lent.as_ref().is_some_and(Lent::in_multi);
        match effect {
            Effect::None => self.latest.word == Word::PassedOn,
            Effect::Step(step) => step.word == Word::Exec || !in_multi && step.effect.may_write(),
            effect => effect.may_write(),
        }
    }

    /// Answers with one line of the proxy's own.
    fn say(&self, line: &str) -> Step {
        self.outbox.put(Piece::Slice(line.as_bytes()));
        self.outbox.put(Piece::Slice(b"\r\n"));
        Step::Done
    }
}

/// Whatever ends it, a panic included: no reply comes to it any more, and what it was lent is given up.
impl Drop for Session {
    fn drop(&mut self) {
        self.outbox.close();
        drop(self.lent.take());
    }
}
