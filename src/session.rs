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
mod dispatch;
mod flow;
mod input;
mod kept_state;
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
mod step;
mod unlisted;
mod wait;

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::audit::Sampler;
use crate::cache::Cache;
use crate::clients::Client;
use crate::command::Keys;
use crate::config::Level;
use crate::node::identity::ConnectionKey;
use crate::outbox::{Outbox, Piece};
use crate::resp::ProtocolError;
use crate::shared::{Presence, Shared};
use crate::time::Time;
use crate::transport::Stream;
use crate::upstream::Pool;
use flow::Weight;
use input::Input;
use lent::Lent;
use outstanding::Outstanding;
use state::{Acquaintance, Ending, Freshness, Identity, Latest, Present, Redirect, Round, SessionLanes, Uncounted};
use step::{After, Become, SHUT_OUT, Stall, Step, Why};

/// Turns of the loop before other tasks of the thread get theirs.
const TURNS: usize = 8;

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
    lanes: SessionLanes,
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
    uncounted: Uncounted,
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
        let key = shared.first_key(shared.node().logins.first());
        client.db.store(key.db, Ordering::Relaxed);
        let lanes = SessionLanes::new(&pool, &key);
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
            uncounted: Uncounted::default(),
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
        if !self.client.silenced() {
            let _ = self.outbox.poll_write(cx, &mut self.stream);
        }
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
        self.uncounted.commands += requests as u64;
    }

    /// Deals with all the input there is, or until something has to wait. `now`: if it has just been looked at the clock.
    fn process(&mut self, input: &mut Input, now: Option<Time>) {
        self.outstanding.told_before(self.outbox.first());
        self.round.held_back = false;
        if input.left() == 0 && self.lent.is_none() {
            return self.account();
        }
        self.fresh.now = now.unwrap_or_else(Time::now);
        self.round.paused = self.shared.node().pauses.are_on(self.fresh.now);
        let mut table = None;
        let max_bulk = self.shared.node().bounds.max_bulk();
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
            let table = table.get_or_insert_with(|| self.shared.node().table.load());
            let step = self.dispatch(&input.request(), table, &mut keys);
            self.keys = keys.shed();
            self.carry_out(step, input);
        }
        self.account();
    }

    /// Adds what was dealt with to the process's counters and to what is said of this client.
    fn account(&mut self) {
        if self.uncounted.commands > 0 {
            self.waited_in_vain &= self.uncounted.hits == 0;
            self.client.active.store(self.fresh.now.0, Ordering::Relaxed);
            self.client.command.store(self.latest.name, Ordering::Relaxed);
            self.lanes.touch(self.fresh.now);
            self.shared.count(std::mem::take(&mut self.uncounted.commands), std::mem::take(&mut self.uncounted.hits));
        }
    }

    fn protocol_error(&mut self, e: &ProtocolError) {
        self.outbox.put(Piece::Slice(format!("-ERR {e}\r\n").as_bytes()));
        self.ending.closing = Some("protocol error");
    }
}

/// Whatever ends it, a panic included: no reply comes to it any more, and what it was lent is given up.
impl Drop for Session {
    fn drop(&mut self) {
        self.outbox.close();
        drop(self.lent.take());
    }
}
