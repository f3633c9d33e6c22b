//! Names of commands that no table has: `rename-command` at the server lists the new name nowhere, yet `COMMAND INFO newname`
//! answers the entry of the command it stands for. The server is asked about such a name once, on a connection of the proxy's
//! own; until its answer is here the request waits, and if there is none it gets a connection of its own, so that whatever
//! the command does to its connection, it does to no other session's.
//!
//! Invariants:
//! 1. A name takes a plan other than "on a connection of its own" only by the server's word of the present table's epoch:
//!    an answer asked for before the table was renewed is not put into the new one.
//! 2. A name that the server does not know costs one question, and no connection: the server's own error answers it.
//!
//! Bounds: `FORGOTTEN` names that the server does not know, the oldest goes first; `RENAMED` that it does; `PACE` between
//! two questions, and one of them at a time; `WAITING` requests that wait for an answer, `connect_timeout` each.
//!
//! Accepted window: a module loaded past all proxies gives meaning to a name that was asked about before. The watch notices
//! within its interval, and the proxy through which MODULE is said at once; meanwhile the name's command goes down the lane
//! and its reply waits for a barrier.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Node;
use super::wire::{Refusal, Wire, is_no_answer};
use crate::command::{CommandTable, Meaning};
use crate::time::Time;

/// Names kept that the server does not know.
const FORGOTTEN: usize = 1024;
/// Names kept that the server knows and does not list.
const RENAMED: usize = 1024;
/// Requests that wait for an answer; a further one gets a connection of its own.
const WAITING: usize = 1024;
/// Longest name that is asked about.
const LONGEST: usize = 256;
/// The mean time between two questions, and how much of it may have been saved up.
const PACE: Duration = Duration::from_millis(1);
const SAVED_NANOS: u64 = 100_000_000;
/// How long a server that does not say what a name means is not asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The verdict on a name that the table does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameVerdict {
    /// The table has it now, or was renewed meanwhile: it is to be looked at again.
    Listed,
    /// The server has no such command.
    NoCommand,
    /// The server does not say.
    Unknowable,
}

/// The names asked about so far.
#[derive(Default)]
pub struct Names {
    learned: Mutex<Learned>,
    /// One question at a time, on this connection.
    wire: tokio::sync::Mutex<Option<Wire>>,
    waiting: AtomicUsize,
    /// Questions put to the server.
    pub asked: AtomicU64,
    /// Requests that got a connection of their own because nobody knows what their command is.
    pub unknowable: AtomicU64,
}

#[derive(Default)]
struct Learned {
    /// How often the table was renewed.
    epoch: u64,
    unknown: HashSet<Box<[u8]>>,
    order: VecDeque<Box<[u8]>>,
    /// Until then the server is not asked: it has refused.
    refused_until: Time,
    /// When the next question may be put.
    next: Time,
}

impl Learned {
    fn note_unknown(&mut self, name: Box<[u8]>) {
        if self.unknown.insert(name.clone()) {
            self.order.push_back(name);
        }
        if self.order.len() > FORGOTTEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.unknown.remove(&oldest);
        }
    }

    /// How long the next question waits for its turn.
    fn turn(&mut self, now: Time) -> Duration {
        self.next = self.next.max(Time(now.0.saturating_sub(SAVED_NANOS))) + PACE;
        self.next.since(now)
    }
}

/// Counts a request that waits.
struct NameWaiter<'a>(&'a AtomicUsize);

impl Drop for NameWaiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Names {
    fn learned(&self) -> MutexGuard<'_, Learned> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The verdict on this name without a question; `None`: the server is to be asked.
    pub fn known(&self, name: &[u8]) -> Option<NameVerdict> {
        // COMMAND INFO takes `a|b` for a subcommand, whatever command has this name.
        if name.len() > LONGEST || name.contains(&b'|') {
            return Some(NameVerdict::Unknowable);
        }
        let learned = self.learned();
        if learned.unknown.contains(&name.to_ascii_lowercase()[..]) {
            return Some(NameVerdict::NoCommand);
        }
        (Time::now() < learned.refused_until).then_some(NameVerdict::Unknowable)
    }

    /// Names kept that the server does not know.
    pub fn remembered(&self) -> usize {
        self.learned().order.len()
    }

    fn wait(&self) -> Option<NameWaiter<'_>> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiter = NameWaiter(&self.waiting);
        (before < WAITING).then_some(waiter)
    }
}

/// Asks the server about a name that the table does not have.
///
/// # Errors
/// The server cannot be reached.
pub async fn ask(node: &Node, name: &[u8]) -> io::Result<NameVerdict> {
    let Some(_waiter) = node.names.wait() else { return Ok(NameVerdict::Unknowable) };
    let name = name.to_ascii_lowercase();
    match tokio::time::timeout(node.settings.connect_timeout, ask_in_turn(node, &name)).await {
        Ok(verdict) => verdict,
        Err(_) => Ok(NameVerdict::Unknowable),
    }
}

async fn ask_in_turn(node: &Node, name: &[u8]) -> io::Result<NameVerdict> {
    let names = &node.names;
    let mut slot = names.wire.lock().await;
    // Another session may have asked while this one waited for its turn.
    if node.table.load().knows(name) {
        return Ok(NameVerdict::Listed);
    }
    if let Some(known) = names.known(name) {
        return Ok(known);
    }
    let pause = names.learned().turn(Time::now());
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
    names.asked.fetch_add(1, Ordering::Relaxed);
    let epoch = names.learned().epoch;
    let reply = put(node, &mut slot, name).await?;
    Ok(note(node, epoch, name, &reply))
}

/// Puts the question. A connection that was kept for it may have been closed meanwhile, or been told what nobody asked for, which
/// would be taken for the answer, and each answer for that to the next question: then a new one is opened.
async fn put(node: &Node, slot: &mut Option<Wire>, name: &[u8]) -> io::Result<bytes::Bytes> {
    let question: [&[u8]; 3] = [b"COMMAND", b"INFO", name];
    // Taken out while it is used: a question that is given up leaves no reply behind for the next.
    if let Some(mut wire) = slot.take()
        && wire.quiet().await.is_ok()
        && let Ok(reply) = wire.ask(&question).await
    {
        *slot = Some(wire);
        return Ok(reply);
    }
    let mut wire = Wire::connect(node).await?;
    let greeting = wire.greet(node, &node.own, "nearside-names").await?;
    if greeting.starts_with(b"-") {
        return Ok(greeting);
    }
    let reply = wire.ask(&question).await?;
    *slot = Some(wire);
    Ok(reply)
}

/// Notes the reply to COMMAND INFO, unless the table was renewed since the question was put.
fn note(node: &Node, epoch: u64, name: &[u8], reply: &[u8]) -> NameVerdict {
    let mut learned = node.names.learned();
    if learned.epoch != epoch {
        return NameVerdict::Listed;
    }
    if is_no_answer(reply) {
        return NameVerdict::Unknowable;
    }
    let table = node.table.load();
    match table.learn(name, reply) {
        Ok(Meaning::NoCommand) => {
            learned.note_unknown(name.into());
            NameVerdict::NoCommand
        }
        Ok(Meaning::Command(_)) if table.renamed() >= RENAMED => NameVerdict::Unknowable,
        Ok(Meaning::Command(table)) => {
            // Under the lock, as whoever renews the table holds it.
            node.table.store(Arc::new(*table));
            NameVerdict::Listed
        }
        Err(why) => {
            let name = String::from_utf8_lossy(name);
            tracing::debug!("what `{name}` means is not known ({why}): such commands get connections of their own");
            learned.refused_until = Time::now() + ASK_AGAIN;
            NameVerdict::Unknowable
        }
    }
}

/// Learns the server's commands on `wire`: what COMMAND lists, and by COMMAND INFO, which of the names the server takes and for
/// which command: a renamed command is listed under the name that is not its own any more. Says what was not told.
pub async fn learn(node: &Node, wire: &mut Wire) -> Result<Option<String>, Refusal> {
    let reply = wire.ask(&["COMMAND"]).await?;
    if is_no_answer(&reply) {
        return Err(Refusal::Server(reply));
    }
    let (mut table, mut lack) = match CommandTable::from_command_reply(&reply, node.settings.script_keys) {
        Ok(table) => (table, None),
        Err(why) => (CommandTable::by_heart(node.settings.script_keys), Some(why)),
    };
    loop {
        let asked = table.names_to_ask(&node.table.load());
        let words = [b"COMMAND".as_slice(), b"INFO"].into_iter();
        let reply = wire.ask(&words.chain(asked.iter().map(Vec::as_slice)).collect::<Vec<_>>()).await?;
        if is_no_answer(&reply) {
            return Err(Refusal::Server(reply));
        }
        if let Err(why) = table.heed(&asked, &reply) {
            lack = lack.or(Some(why));
        }
        let mut learned = node.names.learned();
        // A name learned since the question was put is put into the next: connections may greet by it.
        if !node.table.load().has_learned_only(&asked) {
            continue;
        }
        *learned = Learned { epoch: learned.epoch + 1, next: learned.next, ..Learned::default() };
        node.table.store(Arc::new(table));
        return Ok(lack);
    }
}

/// Learns the server's commands anew: a module was loaded or unloaded.
pub async fn learn_again(node: &Node) {
    let work = async {
        let mut slot = node.names.wire.lock().await;
        let mut wire = Wire::connect(node).await?;
        wire.greet(node, &node.own, "nearside-names").await?;
        learn(node, &mut wire).await?;
        *slot = Some(wire);
        Ok::<(), Refusal>(())
    };
    let outcome = tokio::time::timeout(node.settings.connect_timeout, work).await;
    if !matches!(outcome, Ok(Ok(()))) {
        // The old table may be wrong now; names it does not have are asked for when they are needed.
        tracing::warn!("the server's commands could not be learned anew after MODULE was said");
        let mut learned = node.names.learned();
        *learned = Learned { epoch: learned.epoch + 1, next: learned.next, ..Learned::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nobody_knows_are_forgotten_from_the_oldest_on() {
        let names = Names::default();
        for i in 0..FORGOTTEN + 10 {
            names.learned().note_unknown(format!("name{i}").into_bytes().into());
        }
        assert_eq!(names.remembered(), FORGOTTEN);
        assert_eq!(names.learned().unknown.len(), FORGOTTEN);
        assert_eq!(names.known(b"name9"), None);
        assert_eq!(names.known(b"NAME10"), Some(NameVerdict::NoCommand));
    }

    #[test]
    fn what_cannot_be_asked_about_is_not() {
        let names = Names::default();
        assert_eq!(names.known(&[b'x'; LONGEST + 1]), Some(NameVerdict::Unknowable));
        assert_eq!(names.known(b"config|get"), Some(NameVerdict::Unknowable));
        assert_eq!(names.known(&[b'x'; LONGEST]), None);
        names.learned().refused_until = Time::now() + ASK_AGAIN;
        assert_eq!(names.known(b"other"), Some(NameVerdict::Unknowable));
    }

    #[test]
    fn questions_come_at_a_bounded_rate_and_a_bounded_number_waits() {
        let mut learned = Learned::default();
        let now = Time(1_000_000_000);
        let at_once = (0..1000).take_while(|_| learned.turn(now).is_zero()).count();
        assert_eq!(at_once, 100);
        assert!(learned.turn(now + Duration::from_secs(1)).is_zero(), "a pause saves up turns");
        let names = Names::default();
        let waiters: Vec<_> = (0..WAITING).map_while(|_| names.wait()).collect();
        assert!(waiters.len() == WAITING && names.wait().is_none());
        drop(waiters);
        assert!(names.wait().is_some());
        assert_eq!(names.waiting.load(Ordering::Relaxed), 0);
    }
}
