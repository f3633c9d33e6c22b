//! A connection lent to a session: the state that the session has on it, and the way of each request while it has it.

use std::rc::Rc;

use super::kept_state::{Named, SwapSeen, Unmarked};
use crate::command::{Local, Need, Plan, Request, Route, Word};
use crate::upstream::ScriptTurn;
use crate::upstream::dedicated::Loan;
use crate::upstream::effect::Effect;
use crate::upstream::effect::transaction::{self, Transaction};

/// The purpose of a loan.
pub(super) enum Purpose {
    /// The session's state needs it, or will.
    State,
    /// A single command that others should not wait behind.
    OneCommand,
    /// A script, for which the connection is one of a few.
    Script { _turn: ScriptTurn },
}

/// How bytes pass between client and server.
pub(super) enum Passing {
    /// Each request is planned, each reply takes its place.
    Planned,
    /// The same; MONITOR was sent, and the verdict on it is not known yet.
    MonitorAsked,
    /// The server tells what others do (MONITOR).
    Monitoring,
    /// Until the session ends, bytes pass both ways unlooked at, and each piece of the server's waits for a barrier.
    Raw(SwapSeen),
}

/// The transaction, as far as was sent; the server's replies may tell another story.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sent {
    /// Between MULTI and EXEC.
    multi: bool,
    /// WATCH.
    watching: bool,
    /// MULTI or WATCH was said at all: replies are looked at for what they say of the transaction.
    steps: bool,
}

impl Sent {
    /// The same behind one more command, of so many words.
    fn then(self, word: Word, words: usize) -> Sent {
        let steps = self.steps | transaction::concerns(word);
        match word {
            Word::Multi => Sent { multi: self.multi | (words == 1), steps, ..self },
            // An EXEC in error ends the transaction too.
            Word::Exec => Sent { multi: false, watching: false, steps },
            Word::Discard if words == 1 => Sent { multi: false, watching: false, steps },
            Word::Watch => Sent { watching: true, steps, ..self },
            Word::Unwatch if !self.multi => Sent { watching: false, steps, ..self },
            _ => Sent { steps, ..self },
        }
    }
}

/// A connection lent to the session, and what state the session has on it.
pub(super) struct Lent {
    pub(super) connection: Loan,
    pub(super) purpose: Purpose,
    pub(super) passing: Passing,
    /// As the server's replies tell.
    state: Rc<Transaction>,
    sent: Sent,
    /// A blocking command is on its way.
    blocking: bool,
    /// The session has said CLIENT TRACKING, or another client's is redirected to it: kept until the session ends.
    pub(super) tracking: bool,
    /// Whether WAIT counts too little here: see [`Unmarked`].
    pub(super) unmarked: Unmarked,
    /// Names that the session sets in the transaction: from there on the connection is not lent again.
    pub(super) named: Vec<Named>,
}

impl Lent {
    pub(super) fn new(connection: Loan, purpose: Purpose) -> Lent {
        Lent {
            connection,
            purpose,
            passing: Passing::Planned,
            state: Rc::default(),
            sent: Sent::default(),
            blocking: false,
            tracking: false,
            unmarked: Unmarked::default(),
            named: Vec::new(),
        }
    }

    /// Everything is answered: what was believed meanwhile gives way to what the server has said. True if a blocking command was
    /// among it.
    pub(super) fn hear(&mut self) -> bool {
        (self.sent.multi, self.sent.watching) = (self.state.is_open(), self.state.is_watching());
        if !self.is_raw() {
            let monitors = self.connection.is_watching();
            self.passing = if monitors { Passing::Monitoring } else { Passing::Planned };
        }
        std::mem::take(&mut self.blocking)
    }

    /// Whether another session may have the connection.
    pub(super) fn is_free(&self) -> bool {
        !self.sent.multi && !self.sent.watching && !self.is_fed()
    }

    /// No state of the session is on it: a session whose command is answered with an error has lost nothing else.
    pub(super) fn keeps_nothing(&self) -> bool {
        let used_once = self.blocking || !matches!(self.purpose, Purpose::State);
        used_once && self.is_free()
    }

    /// The server sends it what it has not asked for each time: messages, pushes, what others do.
    fn is_fed(&self) -> bool {
        self.tracking || self.listens()
    }

    pub(super) fn in_multi(&self) -> bool {
        self.sent.multi
    }

    pub(super) fn is_tracking(&self) -> bool {
        self.tracking
    }

    pub(super) fn listens(&self) -> bool {
        self.is_raw() || self.hears_others()
    }

    /// Most of what it gets is what others say or do.
    pub(super) fn hears_others(&self) -> bool {
        self.is_monitoring() || self.connection.subscriptions() > 0
    }

    /// A blocking command is on its way.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocking
    }

    /// Whether the server tells what others do.
    pub(super) fn is_monitoring(&self) -> bool {
        matches!(self.passing, Passing::Monitoring)
    }

    /// Whether bytes pass unlooked at.
    pub(super) fn is_raw(&self) -> bool {
        matches!(self.passing, Passing::Raw(_))
    }

    /// From here on bytes pass unlooked at.
    pub(super) fn pass_unlooked(&mut self) {
        if !self.is_raw() {
            self.passing = Passing::Raw(SwapSeen::default());
        }
    }

    /// Whether the protocol may change in place: the session keeps the connection, but has nothing else on it.
    pub(super) fn may_switch_protocol(&self) -> bool {
        self.tracking && !self.sent.watching && !self.listens()
    }

    /// Follows MULTI, EXEC, WATCH … as far as they are sent, and says what the command's reply will do to the cache.
    pub(super) fn track(&mut self, request: &Request<'_>, plan: Plan, effect: Effect) -> Effect {
        let word = plan.word;
        self.sent = self.sent.then(word, request.len());
        match plan.route {
            Route::Dedicated(Need::Block) if !self.sent.multi => self.blocking = true,
            Route::Dedicated(Need::Track) => self.tracking = true,
            _ => {}
        }
        if self.sent.steps {
            Effect::Step(Box::new(transaction::TransactionStep { state: self.state.clone(), word, effect }))
        } else {
            effect
        }
    }
}

/// Whether the request is this command, without arguments.
pub(super) fn is_just(request: &Request<'_>, said: Word, word: Word) -> bool {
    request.len() == 1 && said == word
}

/// The way of a request of a session that has a connection of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LentWay {
    /// The proxy answers.
    Local(Local),
    /// The proxy answers, perhaps by another connection: what was said before comes first.
    LocalInOrder(Local),
    /// WAIT, which gets another connection still.
    Wait,
    /// WAIT in a transaction, where it must not block.
    WaitInTransaction,
    /// CLIENT TRACKING and CACHING.
    Track,
    /// HELLO outside of a transaction.
    Hello,
    /// MONITOR.
    Monitor,
    /// The request changes what the connection is: from here on nothing is looked at any more.
    Raw,
    /// SUBSCRIBE and the other five.
    Subscribe,
    /// Down the session's connection.
    Send,
}

/// The way of a request with this plan and so many words. `asks`: the server takes any command on the connection, as it does not
/// of a RESP2 subscriber, to whom the server's error tells.
pub(super) fn lent_way(plan: Plan, words: usize, in_multi: bool, asks: bool) -> LentWay {
    let outside = !in_multi && asks;
    match plan.route {
        Route::Local(Local::Quit) => LentWay::Local(Local::Quit),
        Route::Local(Local::Reset) if !in_multi || words == 1 => LentWay::Local(Local::Reset),
        Route::Local(local @ (Local::Client | Local::Nearside | Local::Info | Local::Channels)) if outside => {
            LentWay::LocalInOrder(local)
        }
        Route::Dedicated(Need::Wait) if in_multi => LentWay::WaitInTransaction,
        Route::Dedicated(Need::Wait) if outside => LentWay::Wait,
        Route::Dedicated(Need::Track) => LentWay::Track,
        Route::Local(Local::Hello) if !in_multi => LentWay::Hello,
        Route::Dedicated(Need::Pin) if !in_multi && words == 1 && plan.word == Word::Monitor => LentWay::Monitor,
        Route::Local(Local::Select | Local::Auth | Local::Hello) | Route::Dedicated(Need::Pin) => LentWay::Raw,
        Route::Dedicated(Need::Subscribe) if in_multi => LentWay::Raw,
        Route::Dedicated(Need::Subscribe) => LentWay::Subscribe,
        _ => LentWay::Send,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{CommandTable, Keys};
    use crate::config::ScriptKeys;
    use crate::resp::{self, Scan, Scanner};

    /// The plan of a request, and its number of words.
    fn planned(text: &str) -> (Plan, usize) {
        let words: Vec<&str> = text.split(' ').collect();
        let buf = resp::encode(&words);
        let mut scanner = Scanner::default();
        assert!(matches!(scanner.scan(&buf, usize::MAX), Ok(Scan::Request(_))));
        let request = Request { buf: &buf, args: scanner.args(), hash: None };
        let plan = CommandTable::by_heart(ScriptKeys::Any).plan(&request, &mut Keys::default());
        (plan, words.len())
    }

    fn sent(commands: &[&str]) -> (bool, bool, bool) {
        let sent = commands.iter().fold(Sent::default(), |sent, text| {
            let (plan, words) = planned(text);
            sent.then(plan.word, words)
        });
        (sent.multi, sent.watching, sent.steps)
    }

    #[test]
    fn a_transaction_is_followed_as_it_is_sent() {
        assert_eq!(sent(&["GET k"]), (false, false, false));
        assert_eq!(sent(&["WATCH k"]), (false, true, true));
        assert_eq!(sent(&["WATCH k", "MULTI"]), (true, true, true));
        assert_eq!(sent(&["MULTI x"]), (false, false, true), "the server refuses it");
        assert_eq!(sent(&["WATCH k", "MULTI", "UNWATCH"]), (true, true, true), "it is queued");
        assert_eq!(sent(&["WATCH k", "UNWATCH"]), (false, false, true));
        assert_eq!(sent(&["WATCH k", "MULTI", "EXEC x"]), (false, false, true), "an EXEC in error ends it too");
        assert_eq!(sent(&["WATCH k", "MULTI", "DISCARD x"]), (true, true, true), "a DISCARD in error does not");
        assert_eq!(sent(&["WATCH k", "MULTI", "DISCARD"]), (false, false, true));
    }

    #[test]
    fn requests_behind_multi_are_the_transactions() {
        let way = |text: &str, in_multi, asks| {
            let (plan, words) = planned(text);
            lent_way(plan, words, in_multi, asks)
        };
        for (text, outside, in_multi, subscriber) in [
            ("GET k", LentWay::Send, LentWay::Send, LentWay::Send),
            ("QUIT", LentWay::Local(Local::Quit), LentWay::Local(Local::Quit), LentWay::Local(Local::Quit)),
            ("RESET", LentWay::Local(Local::Reset), LentWay::Local(Local::Reset), LentWay::Local(Local::Reset)),
            ("RESET x", LentWay::Send, LentWay::Send, LentWay::Send),
            ("CLIENT ID", LentWay::LocalInOrder(Local::Client), LentWay::Send, LentWay::Send),
            ("INFO", LentWay::LocalInOrder(Local::Info), LentWay::Send, LentWay::Send),
            ("NEARSIDE PING", LentWay::LocalInOrder(Local::Nearside), LentWay::Send, LentWay::Send),
            ("WAIT 1 0", LentWay::Wait, LentWay::WaitInTransaction, LentWay::Send),
            ("CLIENT TRACKING on", LentWay::Track, LentWay::Track, LentWay::Track),
            ("HELLO 3", LentWay::Hello, LentWay::Raw, LentWay::Hello),
            ("SELECT 1", LentWay::Raw, LentWay::Raw, LentWay::Raw),
            ("MONITOR", LentWay::Monitor, LentWay::Raw, LentWay::Monitor),
            ("MONITOR x", LentWay::Send, LentWay::Send, LentWay::Send),
            ("CLIENT REPLY off", LentWay::Raw, LentWay::Raw, LentWay::Raw),
            ("SUBSCRIBE c", LentWay::Subscribe, LentWay::Raw, LentWay::Subscribe),
            ("BLPOP k 0", LentWay::Send, LentWay::Send, LentWay::Send),
        ] {
            let ways = [way(text, false, true), way(text, true, true), way(text, false, false)];
            assert_eq!(ways, [outside, in_multi, subscriber], "{text}");
        }
    }
}
