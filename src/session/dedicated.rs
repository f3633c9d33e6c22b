//! Sessions with a connection of their own: transactions, blocking commands, pub/sub, and everything that keeps state.
//! While it has one, all its commands go down that connection; the cache answers nothing.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::client::pausing;
use super::local::{ask, set_id};
use super::pinned::{Named, Unmarked, answers_twice};
use super::state::Redirect;
use super::wait;
use super::{After, Become, Input, Session, Stall, Step};
use crate::command::{self, Keys, Local, Need, Plan, Request, Route, Word};
use crate::node::identity::ConnectionKey;
use crate::outbox::{Outbox, Piece};
use crate::resp;
use crate::shared::Shared;
use crate::upstream::Turn;
use crate::upstream::connection::Raw;
use crate::upstream::dedicated::{Lending, Loan};
use crate::upstream::effect::Effect;
use crate::upstream::transaction::{self, Transaction};

/// A connection lent to the session, and what state the session has on it.
pub(super) struct Lent {
    pub(super) connection: Loan,
    /// As the server's replies tell.
    state: Rc<Transaction>,
    /// As far as was sent: between MULTI and EXEC.
    multi: bool,
    /// As far as was sent: WATCH.
    watching: bool,
    /// MULTI or WATCH was said at all: replies are looked at for what they say of the transaction.
    steps: bool,
    /// A blocking command is on its way.
    blocking: bool,
    /// Lent for a single command that others should not wait behind. `Some(turn)`: the turn of a script.
    pub(super) alone: Option<Option<Turn>>,
    /// Until the session ends; bytes pass both ways unlooked at, and each piece of the server's waits for a barrier.
    pub(super) raw: bool,
    /// The session has said MONITOR.
    pub(super) monitoring: bool,
    /// The session has said CLIENT TRACKING, or another client's is redirected to it: kept until the session ends.
    pub(super) tracking: bool,
    /// Whether WAIT counts too little here: see [`Unmarked`].
    pub(super) unmarked: Unmarked,
    /// Names that the session sets in the transaction: from there on the connection is not lent again.
    pub(super) named: Vec<Named>,
}

impl Lent {
    pub(super) fn new(connection: Loan) -> Lent {
        Lent {
            connection,
            state: Rc::default(),
            multi: false,
            watching: false,
            steps: false,
            blocking: false,
            alone: None,
            raw: false,
            monitoring: false,
            tracking: false,
            unmarked: Unmarked::default(),
            named: Vec::new(),
        }
    }

    /// Everything is answered: what was believed meanwhile gives way to what the server has said.
    fn hear(&mut self) {
        (self.multi, self.watching) = (self.state.is_open(), self.state.is_watching());
        self.monitoring = self.connection.is_watching();
    }

    /// No state of the session is on it: a session whose command is answered with an error has lost nothing else.
    fn keeps_nothing(&self) -> bool {
        let used_once = self.blocking || self.alone.is_some();
        used_once && !self.multi && !self.watching && !self.is_fed()
    }

    /// The server sends it what it has not asked for each time: messages, pushes, what others do.
    fn is_fed(&self) -> bool {
        self.tracking || self.listens()
    }

    pub(super) fn in_multi(&self) -> bool {
        self.multi
    }

    pub(super) fn is_tracking(&self) -> bool {
        self.tracking
    }

    pub(super) fn listens(&self) -> bool {
        self.raw || self.hears_others()
    }

    /// Most of what it gets is what others say or do.
    pub(super) fn hears_others(&self) -> bool {
        self.monitoring || self.connection.subscriptions() > 0
    }

    /// A blocking command is on its way.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocking
    }

    /// The session has said MONITOR.
    pub(super) fn is_monitoring(&self) -> bool {
        self.monitoring
    }
}

/// Whether the request is this command, without arguments.
fn is_just(request: &Request<'_>, said: Word, word: Word) -> bool {
    request.len() == 1 && said == word
}

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
        let lent = self.keep_loan(connection);
        let raw = need == Need::Pin && !is_just(request, word, Word::Monitor);
        lent.raw = raw || need == Need::Track && answers_twice(request);
        lent.tracking = need == Need::Track;
        match need {
            Need::Pin | Need::Track => {
                let raw = lent.raw;
                self.make_known(true, raw)
            }
            // Nothing waits, so this drain is over at once.
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

    pub(super) fn keep_loan(&mut self, connection: Loan) -> &mut Lent {
        connection.lend(Some(Rc::<Outbox>::clone(&self.outbox)));
        self.client.uses_connection(Some(connection.client_id.clone()));
        self.lent.insert(Lent::new(connection))
    }

    /// A command that could hold up what is behind it on a lane: a script, or anything while clients are paused.
    pub(super) fn alone(&mut self, request: &Request<'_>, plan: Plan, keys: &Keys) -> Step {
        let apart = self.round.paused || self.shared.node.bounds.ends_for_replies();
        let turn = if apart { Some(None) } else { self.pool.turn().map(Some) };
        let lane = |session: &Session| session.forward(session.lanes.any.clone(), session.effect(request, plan, keys));
        let Some(turn) = turn.filter(|_| !self.present.shares) else { return lane(self) };
        if self.outbox.waiting() > 0 {
            return Step::Stall(Stall::Drain);
        }
        let Some(loan) = self.pool.lend(&self.identity.key) else { return lane(self) };
        let connection = Rc::clone(&*loan);
        self.keep_loan(loan).alone = Some(turn);
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
                Err(_) => After::Reply(shared.node.error("the client to redirect to has got no connection of its own")),
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
            self.keep_loan(connection).tracking = true;
            let Step::Stall(named) = self.make_known(true, false) else { return };
            self.stall = Some(named);
        }
    }

    /// HELLO, HELLO 2 and HELLO 3 of a session that keeps a connection but has nothing else on it.
    fn may_switch_protocol(&self, request: &Request<'_>) -> bool {
        let plain = request.len() == 1 || (request.len() == 2 && matches!(request.arg(1), b"2" | b"3"));
        plain && self.lent.as_ref().is_some_and(|lent| lent.tracking && !lent.watching && !lent.listens())
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
        let raw = self.lent.as_ref().is_some_and(|lent| lent.raw);
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
        if std::mem::take(&mut lent.blocking) {
            self.ending.leaving = None;
        }
        lent.tracking |= self.client.own_wanted();
        lent.hear();
        let free = !lent.multi && !lent.watching && !lent.is_fed();
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

    pub(super) fn dispatch_lent(&mut self, request: &Request<'_>, plan: Plan, keys: &Keys) -> Step {
        if std::mem::take(&mut self.monitor_asked) && self.outbox.waiting() > 0 {
            self.monitor_asked = true;
            return Step::Stall(Stall::Drain);
        }
        if let Some(lent) = self.lent.as_ref().filter(|l| l.monitoring)
            && !matches!(plan.route, Route::Local(Local::Quit | Local::Reset))
        {
            if plan.effect == command::EffectClass::Rights {
                lent.connection.heed();
            }
            lent.connection.send_raw(Bytes::copy_from_slice(request.buf), Raw::Watching);
            return Step::Done;
        }
        let in_multi = self.lent.as_ref().is_some_and(Lent::in_multi);
        match plan.route {
            Route::Local(Local::Quit) => return self.local(request, Local::Quit),
            Route::Local(Local::Reset) if !in_multi || request.len() == 1 => return self.local(request, Local::Reset),
            // A RESP2 subscriber may not say them: the server's error tells.
            Route::Local(local @ (Local::Client | Local::Nearside | Local::Info | Local::Channels))
                if !in_multi && (self.identity.key.resp3 || !self.subscribed()) =>
            {
                // They may ask on another connection: what was said before comes first.
                let waits = self.outbox.waiting() > 0;
                return if waits { Step::Stall(Stall::Drain) } else { self.local(request, local) };
            }
            Route::Dedicated(Need::Wait) if in_multi && self.wrote && wait::mark(&self.shared.node).is_some() => {
                return Step::Replace(wait::refused());
            }
            Route::Dedicated(Need::Wait) if !in_multi && (self.identity.key.resp3 || !self.subscribed()) => {
                return self.wait(request);
            }
            Route::Dedicated(Need::Track) if answers_twice(request) => return self.go_raw(),
            Route::Dedicated(Need::Track) => {
                if let Some(step) = self.redirect(request, plan.word) {
                    return step;
                }
            }
            Route::Local(Local::Hello) if !in_multi && self.may_switch_protocol(request) => {
                return self.switch_protocol(request);
            }
            // They change what the connection is: from here on nothing is looked at any more.
            Route::Dedicated(Need::Pin) if !in_multi && is_just(request, plan.word, Word::Monitor) => {
                return self.monitor(request);
            }
            Route::Local(Local::Select | Local::Auth | Local::Hello) | Route::Dedicated(Need::Pin) => {
                return self.go_raw();
            }
            Route::Dedicated(Need::Subscribe) if in_multi => return self.go_raw(),
            Route::Dedicated(Need::Subscribe) => return self.subscribe(request, plan.word),
            _ => {}
        }
        let names = in_multi
            && is_just(request, plan.word, Word::Exec)
            && self.lent.as_ref().is_some_and(|l| !l.named.is_empty());
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
            if is_just(request, plan.word, Word::Exec) && connection.was_refused() {
                // The server has refused the connection, and so MULTI and all that followed.
                return self.say("-EXECABORT Transaction discarded because of previous errors.");
            }
        }
        if names { self.exec_named(request, effect) } else { self.forward(connection, effect) }
    }

    fn subscribed(&self) -> bool {
        self.lent.as_ref().is_some_and(|l| l.connection.subscriptions() > 0)
    }

    /// MONITOR, on a connection that the session has for it or for another reason.
    fn monitor(&mut self, request: &Request<'_>) -> Step {
        if self.outbox.waiting() > 0 {
            return Step::Stall(Stall::Drain);
        }
        let Some(lent) = &self.lent else { return Step::Done };
        lent.connection.send_monitor(Piece::Slice(request.buf), self.outbox.reserve(true), self.fresh.now);
        // Until the verdict is here, nobody knows how the next request is to be sent.
        self.monitor_asked = true;
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

impl Lent {
    /// Follows MULTI, EXEC, WATCH … as far as they are sent, and says what the command's reply will do to the cache.
    fn track(&mut self, request: &Request<'_>, plan: Plan, effect: Effect) -> Effect {
        let word = plan.word;
        match word {
            Word::Multi => self.multi |= request.len() == 1,
            // An EXEC in error ends the transaction too.
            Word::Exec => (self.multi, self.watching) = (false, false),
            Word::Discard if request.len() == 1 => (self.multi, self.watching) = (false, false),
            Word::Watch => self.watching = true,
            Word::Unwatch if !self.multi => self.watching = false,
            _ => {}
        }
        match plan.route {
            Route::Dedicated(Need::Block) if !self.multi => self.blocking = true,
            Route::Dedicated(Need::Track) => self.tracking = true,
            _ => {}
        }
        self.steps |= transaction::concerns(word);
        if self.steps {
            Effect::Step(Box::new(transaction::Step { state: self.state.clone(), word, effect }))
        } else {
            effect
        }
    }
}
