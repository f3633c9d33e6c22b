//! MULTI, EXEC, DISCARD, WATCH and UNWATCH on a dedicated connection: which state the server's replies have left it in, and
//! what a transaction does to the cache. The requests alone do not tell: a user may be without the right to one of them, and
//! a transaction is aborted by an error, or fails by WATCH.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::{Effect, Wait};
use crate::command::Word;
use crate::node::Node;
use crate::resp;
use crate::time::Time;
use crate::upstream::refusal;

const OK: &[u8] = b"+OK\r\n";
const QUEUED: &[u8] = b"+QUEUED\r\n";

/// The transaction on one connection, for as long as it is lent. Bound: the commands that the server itself has queued.
#[derive(Default, Debug)]
pub struct Transaction {
    /// Between MULTI and EXEC.
    open: Cell<bool>,
    watching: Cell<bool>,
    /// Effects of the commands that the server has queued.
    queued: RefCell<Vec<Effect>>,
}

/// Whether the command has to do with the state that is kept here.
pub fn concerns(word: Word) -> bool {
    matches!(word, Word::Multi | Word::Exec | Word::Discard | Word::Watch | Word::Unwatch)
}

impl Transaction {
    /// Whether the server queues what it is told.
    pub fn is_open(&self) -> bool {
        self.open.get()
    }

    /// Whether the server watches keys for it.
    pub fn is_watching(&self) -> bool {
        self.watching.get()
    }

    fn end(&self) -> Vec<Effect> {
        self.open.set(false);
        self.watching.set(false);
        self.queued.take()
    }

    /// Applies EXEC's effects: each command's, by its own reply.
    fn execute(&self, reply: Option<&[u8]>, node: &Node, now: Time) -> Wait {
        // A server that is in no transaction goes on watching.
        if reply.is_some_and(|reply| reply.starts_with(b"-ERR EXEC without MULTI")) {
            return Wait::No;
        }
        let queued = self.end();
        // Nil: WATCH has failed.
        if reply.is_some_and(|reply| resp::is_nil(reply) || refusal::of_builtin(reply)) {
            return Wait::No;
        }
        let replies = reply.and_then(|reply| elements(reply, queued.len()));
        let mut wait = Wait::No;
        for (i, effect) in queued.into_iter().enumerate() {
            wait = wait.max(effect.settle(replies.as_ref().map(|replies| replies[i]), node, now));
        }
        wait
    }
}

/// The elements of EXEC's reply, if there are so many.
fn elements(reply: &[u8], expected: usize) -> Option<Vec<&[u8]>> {
    let (_, mut rest) = resp::split_aggregate(reply)?;
    let mut found = Vec::with_capacity(expected);
    while !rest.is_empty() {
        let (element, next) = rest.split_at(resp::value_len(rest)?);
        found.push(element);
        rest = next;
    }
    (found.len() == expected).then_some(found)
}

/// One command on a connection that has to do with transactions.
#[derive(Debug)]
pub struct TransactionStep {
    /// The connection's state.
    pub state: Rc<Transaction>,
    /// Which command.
    pub word: Word,
    /// The effect on the cache if the command is done at once.
    pub effect: Effect,
}

impl TransactionStep {
    /// Whether the server can have answered this: if not, somebody else has, and what the connection's state is, nobody knows.
    pub fn allows(&self, reply: &[u8]) -> bool {
        let accepted = match self.word {
            // An aborted transaction is nil, in the form of the protocol or of old servers.
            Word::Exec => matches!(reply[0], b'*' | b'_') || reply == b"$-1\r\n",
            Word::Multi | Word::Discard => reply == OK,
            _ if self.state.is_open() => reply == QUEUED,
            Word::Watch | Word::Unwatch => reply == OK,
            _ => true,
        };
        accepted || matches!(reply[0], b'-' | b'!')
    }

    /// Applies the effect ([`Effect::settle`]).
    pub fn settle(self, reply: Option<&[u8]>, node: &Node, now: Time) -> Wait {
        let state = &self.state;
        let ok = reply == Some(OK);
        match self.word {
            Word::Multi if ok => state.open.set(true),
            Word::Watch if ok => state.watching.set(true),
            Word::Unwatch if ok => state.watching.set(false),
            Word::Discard if ok => drop(state.end()),
            Word::Exec => return state.execute(reply, node, now),
            _ if state.is_open() && reply == Some(QUEUED) => state.queued.borrow_mut().push(self.effect),
            // The command was not queued, and outside of EXEC a transaction does nothing.
            _ if state.is_open() && reply.is_some_and(|reply| reply.starts_with(b"-")) => {}
            // The command was done at once, or refused, or nobody knows.
            _ => return self.effect.settle(reply, node, now),
        }
        Wait::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_transaction_is_answered_by() {
        let state = Rc::<Transaction>::default();
        let allows = |word, reply: &str| {
            TransactionStep { state: state.clone(), word, effect: Effect::None }.allows(reply.as_bytes())
        };
        assert!(allows(Word::Other, ":1\r\n") && allows(Word::Watch, "+OK\r\n") && !allows(Word::Multi, "+QUEUED\r\n"));
        state.open.set(true);
        assert!(allows(Word::Other, "+QUEUED\r\n") && allows(Word::Unwatch, "+QUEUED\r\n"));
        assert!(!allows(Word::Other, "+OK\r\n") && !allows(Word::Other, ":1\r\n") && !allows(Word::Watch, "+OK\r\n"));
        assert!(allows(Word::Exec, "*0\r\n") && allows(Word::Exec, "_\r\n") && !allows(Word::Exec, "+QUEUED\r\n"));
        assert!(allows(Word::Exec, "$-1\r\n") && !allows(Word::Exec, "$5\r\nstray\r\n"));
        assert!(allows(Word::Discard, "+OK\r\n") && !allows(Word::Discard, "|1\r\n+a\r\n:1\r\n+OK\r\n"));
        assert!([Word::Exec, Word::Multi, Word::Other].into_iter().all(|word| allows(word, "-ERR x\r\n")));
    }

    #[test]
    fn elements_are_counted() {
        let reply = b"*3\r\n+OK\r\n-ERR x\r\n*1\r\n:1\r\n";
        assert_eq!(elements(reply, 3), Some(vec![&b"+OK\r\n"[..], b"-ERR x\r\n", b"*1\r\n:1\r\n"]));
        assert_eq!(elements(reply, 2), None);
    }
}
