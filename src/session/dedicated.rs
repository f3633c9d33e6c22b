//! Sessions with a connection of their own: transactions, blocking commands, pub/sub, and everything that keeps state.
//! While it has one, all its commands go down that connection; the cache answers nothing.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::client::pausing;
use super::lent::{Lent, LentWay, Passing, Purpose, is_just, lent_way};
use super::local::{ask, set_id};
use super::pinned::answers_twice;
use super::state::Redirect;
use super::wait;
use super::{After, Become, Input, Session, Stall, Step};
use crate::command::{self, Keys, Local, Need, Plan, Request, Route, Word};
use crate::node::identity::ConnectionKey;
use crate::outbox::{Outbox, Piece};
use crate::resp;
use crate::shared::Shared;
use crate::upstream::connection::Raw;
use crate::upstream::dedicated::{Lending, Loan};

/// Why a session does not get a connection of its own.
fn full(shared: &Shared) -> String {
    let max = shared.capacity.dedicated.max();
    format!(
        "-ERR nearside: all {max} connections for transactions, blocking commands and subscriptions are taken (max_dedicated)"
    )
}

impl Session {
    /// Gets the session a connection of its own; the request is then dealt with again.
    pub(super) fn dedicate(&mut self, request: &Request<'_>, word: Word, need: Need) -> Step {
        if self.outbox.waiting() > 0 {
            return Step::Stall(Stall::Drain);
        }
        if let Some(step) = self.redirect(request, word) {
            return step;
        }
        let connection = match self.lent_by(self.pool.lend_or_ask(&self.identity.key)) {
            Ok(connection) => connection,
            Err(step) => return step,
        };
        let lent = self.keep_loan(connection, Purpose::State);
        let raw = match need {
            Need::Pin => !is_just(request, word, Word::Monitor),
            Need::Track => answers_twice(request),
            _ => false,
        };
        if raw {
            lent.pass_unlooked();
        }
        lent.tracking = need == Need::Track;
        match need {
            Need::Pin | Need::Track => self.make_known(true, raw),
            // Nothing is awaited yet, so the drain ends at once and the command is dispatched again, to the connection lent.
            _ => Step::Stall(Stall::Drain),
        }
    }

    /// The connection lent, or how the request goes on without.
    pub(super) fn lent_by(&self, lending: Lending) -> Result<Loan, Step> {
        match lending {
            Lending::Lent(loan) => Ok(loan),
            Lending::Soon => Err(self.wait_for_place()),
            Lending::Full => {
                self.shared.capacity.dedicated.refuse();
                Err(self.say(&full(&self.shared)))
            }
        }
    }

    /// Another thread was asked to give up an idle connection.
    fn wait_for_place(&self) -> Step {
        let shared = self.shared.clone();
        Step::Stall(Stall::For(Box::pin(async move {
            // Sooner or later all idle ones are gone: who is overtaken again and again is refused in the end.
            match tokio::time::timeout(shared.config.connect_timeout, shared.capacity.dedicated.room()).await {
                Ok(()) => After::Again,
                Err(_) => {
                    shared.capacity.dedicated.refuse();
                    After::Reply((full(&shared) + "\r\n").into())
                }
            }
        })))
    }

    /// The session has this connection from here on.
    pub(super) fn keep_loan(&mut self, connection: Loan, purpose: Purpose) -> &mut Lent {
        connection.lend(Some(Rc::<Outbox>::clone(&self.outbox)));
        self.client.uses_connection(Some(connection.client_id.clone()));
        self.lent.insert(Lent::new(connection, purpose))
    }

    /// A command that could hold up what is behind it on a lane: a script, or anything while clients are paused.
    pub(super) fn alone(&mut self, request: &Request<'_>, plan: Plan, keys: &Keys) -> Step {
        let apart = self.round.paused || self.shared.node().bounds.ends_for_replies();
        let purpose =
            if apart { Some(Purpose::OneCommand) } else { self.pool.turn().map(|_turn| Purpose::Script { _turn }) };
        let lane = |session: &Session| session.forward(session.lanes.any.clone(), session.effect(request, plan, keys));
        let Some(purpose) = purpose.filter(|_| !self.present.shares) else { return lane(self) };
        if self.outbox.waiting() > 0 {
            return Step::Stall(Stall::Drain);
        }
        let Some(loan) = self.pool.lend(&self.identity.key) else { return lane(self) };
        let connection = Rc::clone(&*loan);
        self.keep_loan(loan, purpose);
        if connection.is_open() {
            return Step::Stall(Stall::Drain);
        }
        // The server may be full, or we may be out of files: nothing was sent yet, and the lane is there.
        Step::Stall(Stall::For(Box::pin(async move {
            if connection.ready().await.is_ok() { After::Again } else { After::Share }
        })))
    }

    /// The connection that the present request was to have for itself cannot be had: it shares the lane.
    pub(super) fn share_lane(&mut self) {
        if self.lent.take().is_some() {
            self.client.uses_connection(None);
        }
        self.outbox.mend();
        self.present.shares = true;
    }

    /// CLIENT TRACKING … REDIRECT names a client by the number we gave it; the server knows its connection by another. A
    /// client that has no connection of its own yet gets one.
    pub(super) fn redirect(&mut self, request: &Request<'_>, said: Word) -> Option<Step> {
        if self.present.replaced || request.len() < 5 || said != Word::Tracking {
            return None;
        }
        let mut args: Vec<&[u8]> = (0..request.len()).map(|i| request.arg(i)).collect();
        let word = |i: usize, w: &[u8]| args.get(i).is_some_and(|a| a.eq_ignore_ascii_case(w));
        let at = (3..args.len()).find(|i| word(*i, b"REDIRECT"))? + 1;
        // The server rejects a word that is no number. A number no client has is replaced by one no connection has, so that the error is the server's own.
        resp::parse_i64(args.get(at)?)?;
        let nobody = i64::MAX.to_string();
        let Some(target) = self.shared.clients.by_id(args[at]) else {
            args[at] = nobody.as_bytes();
            return Some(Step::Replace(resp::encode(&args)));
        };
        // A session that redirects to itself gets its own connection first.
        if target.id == self.client.id && self.lent.is_none() {
            return None;
        }
        // Asked before its number is looked for: see `settle_lent`.
        target.want_own();
        if let Some(id) = target.upstream_id() {
            self.redirected = Redirect { upstream_id: id, id: target.id };
            let id = id.to_string();
            args[at] = id.as_bytes();
            return Some(Step::Replace(resp::encode(&args)));
        }
        let shared = self.shared.clone();
        Some(Step::Stall(Stall::For(Box::pin(async move {
            let gets_one = async {
                while target.upstream_id().is_none() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            match tokio::time::timeout(shared.config.connect_timeout, gets_one).await {
                Ok(()) => After::Again,
                Err(_) => {
                    After::Reply(shared.node().error("the client to redirect to has got no connection of its own"))
                }
            }
        }))))
    }

    /// Somebody wants to redirect to this session: from here on it has a connection of its own. A session about which the server is
    /// not asked yet (after RESET, in doubt) is introduced first, once: if the server refuses it, whoever redirects is told in time.
    pub(super) fn heed_wish(&mut self) {
        if !self.client.own_wanted() {
            return;
        }
        if self.identity.key.login.is_stranger() {
            if !std::mem::replace(&mut self.acquaintance.introduced, true) {
                self.stall = Some(self.introduction(None));
            }
        } else if self.lent.is_none()
            && self.outbox.waiting() == 0
            && let Some(connection) = self.pool.lend(&self.identity.key)
        {
            self.acquaintance.introduced = false;
            self.keep_loan(connection, Purpose::State).tracking = true;
            let Step::Stall(named) = self.make_known(true, false) else { return };
            self.stall = Some(named);
        }
    }

    /// HELLO, HELLO 2 and HELLO 3 of a session that keeps a connection but has nothing else on it.
    fn may_switch_protocol(&self, request: &Request<'_>) -> bool {
        let plain = request.len() == 1 || (request.len() == 2 && matches!(request.arg(1), b"2" | b"3"));
        plain && self.lent.as_ref().is_some_and(Lent::may_switch_protocol)
    }

    fn switch_protocol(&mut self, request: &Request<'_>) -> Step {
        let Some(lent) = self.lent.as_ref().filter(|_| self.outbox.waiting() == 0) else {
            return Step::Stall(Stall::Drain);
        };
        let resp3 = if request.len() == 1 { self.identity.key.resp3 } else { request.arg(1) == b"3" };
        let key = ConnectionKey { resp3, ..self.identity.key.clone() };
        let (connection, id) = (lent.connection.clone(), self.client.id);
        let reply = ask(&connection, request.buf);
        Step::Stall(Stall::For(Box::pin(async move {
            let hello = reply.await;
            if hello[0] == b'-' {
                return After::Reply(hello.into());
            }
            connection.speaks(resp3);
            After::Become(Box::new(Become { key, name: None, reply: set_id(&hello, id) }))
        })))
    }

    /// Before the next request of a session with a connection of its own: whether it is to be looked at.
    pub(super) fn go_on_lent(&mut self, input: &mut Input) -> bool {
        self.settle_lent();
        // Commands meant for the connection that is lost are done nowhere.
        if self.ending.closing.is_some() {
            return false;
        }
        let raw = self.lent.as_ref().is_some_and(Lent::is_raw);
        if raw {
            self.pass_on(input);
        }
        !raw
    }

    /// Gives the connection back once its state allows it.
    fn settle_lent(&mut self) {
        let Some(lent) = &mut self.lent else { return };
        if self.outbox.broken() {
            return self.upstream_left();
        }
        if self.outbox.waiting() > 0 {
            return;
        }
        if self.outbox.unblocked() {
            self.ending.closing = Some(self.why_it_leaves());
            return;
        }
        lent.tracking |= self.client.own_wanted();
        if lent.hear() {
            self.ending.leaving = None;
        }
        let free = lent.is_free();
        // A request that was just lent the connection has not used it yet.
        if free
            && self.present.tries == 0
            && let Some(lent) = self.lent.take()
        {
            self.client.uses_connection(None);
            // Whoever redirects has asked for it to be kept before reading its number, which is gone now. So either that
            // is seen here and nobody else gets the connection, or the number was not found.
            if lent.named.is_empty() && !self.client.own_wanted() {
                self.pool.give_back(lent.connection);
            }
        }
    }

    /// The connection lent to the session is lost. A single command has been answered with an error, which is all;
    /// other state is lost with it, so the session ends as it would have with the server itself.
    pub(super) fn upstream_left(&mut self) {
        match self.lent.take() {
            Some(lent) if lent.keeps_nothing() => self.outbox.mend(),
            _ => self.ending.closing = Some("its connection to the upstream was lost"),
        }
    }

    /// Deals with a request of a session that has a connection of its own.
    pub(super) fn dispatch_lent(&mut self, request: &Request<'_>, plan: Plan, keys: &Keys) -> Step {
        let Some(lent) = &self.lent else { return Step::Done };
        match lent.passing {
            Passing::MonitorAsked if self.outbox.waiting() > 0 => return Step::Stall(Stall::Drain),
            Passing::Monitoring if !matches!(plan.route, Route::Local(Local::Quit | Local::Reset)) => {
                if plan.effect == command::EffectClass::Rights {
                    lent.connection.heed();
                }
                lent.connection.send_raw(Bytes::copy_from_slice(request.buf), Raw::Watching);
                return Step::Done;
            }
            _ => {}
        }
        let asks = self.identity.key.resp3 || lent.connection.subscriptions() == 0;
        match lent_way(plan, request.len(), lent.in_multi(), asks) {
            LentWay::LocalInOrder(_) if self.outbox.waiting() > 0 => Step::Stall(Stall::Drain),
            LentWay::Local(local) | LentWay::LocalInOrder(local) => self.local(request, local),
            LentWay::Wait => self.wait(request),
            LentWay::WaitInTransaction if self.wrote && wait::mark(self.shared.node()).is_some() => {
                Step::Replace(wait::refused())
            }
            LentWay::Track if answers_twice(request) => self.go_raw(),
            LentWay::Track => match self.redirect(request, plan.word) {
                Some(step) => step,
                None => self.send_lent(request, plan, keys),
            },
            LentWay::Hello if self.may_switch_protocol(request) => self.switch_protocol(request),
            LentWay::Hello | LentWay::Raw => self.go_raw(),
            LentWay::Monitor => self.monitor(request),
            LentWay::Subscribe => self.subscribe(request, plan.word),
            LentWay::WaitInTransaction | LentWay::Send => self.send_lent(request, plan, keys),
        }
    }

    /// Sends the request down the session's connection.
    fn send_lent(&mut self, request: &Request<'_>, plan: Plan, keys: &Keys) -> Step {
        let in_multi = self.lent.as_ref().is_some_and(Lent::in_multi);
        let is_exec = in_multi && is_just(request, plan.word, Word::Exec);
        let names = is_exec && self.lent.as_ref().is_some_and(|lent| !lent.named.is_empty());
        if names && self.outbox.waiting() > 0 {
            return Step::Stall(Stall::Drain);
        }
        let effect = match plan.route {
            Route::Local(Local::Client) => pausing(request, plan.word),
            _ => self.effect(request, plan, keys),
        };
        let Some(lent) = &mut self.lent else { return Step::Done };
        let effect = lent.track(request, plan, effect);
        let connection = lent.connection.clone();
        if in_multi {
            self.note_word(request, plan);
        }
        if is_exec && connection.was_refused() {
            // The server has refused the connection, and so MULTI and all that followed.
            return self.say("-EXECABORT Transaction discarded because of previous errors.");
        }
        if names { self.exec_named(request, effect) } else { self.forward(connection, effect) }
    }

    /// MONITOR, on a connection that the session has for it or for another reason.
    fn monitor(&mut self, request: &Request<'_>) -> Step {
        if self.outbox.waiting() > 0 {
            return Step::Stall(Stall::Drain);
        }
        let Some(lent) = &mut self.lent else { return Step::Done };
        lent.connection.send_monitor(Piece::Slice(request.buf), self.outbox.reserve(true), self.fresh.now);
        // Until the verdict is here, nobody knows how the next request is to be sent.
        lent.passing = Passing::MonitorAsked;
        Step::Done
    }

    fn subscribe(&mut self, request: &Request<'_>, word: Word) -> Step {
        let (Some(lent), Word::Subscribe(kind)) = (&self.lent, word) else { return Step::Done };
        if let Some(stall) = self.wait_for_room(&lent.connection) {
            return Step::Stall(stall);
        }
        // Without arguments, UNSUBSCRIBE confirms once for each channel there is, and at least once: the first counts.
        let left = (request.len() - 1).max(1);
        let place = self.outbox.reserve(true);
        lent.connection.send_subscribe(Piece::Slice(request.buf), place, kind, left, self.fresh.now);
        Step::Done
    }
}
