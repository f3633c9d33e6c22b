//! A connection's life: opened, lost, opened again. Nothing awaited is forgotten on the way (invariant 2).

use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::pipeline::Expect;
use super::pump::{GIVEN_AWAY, pump};
use super::{Connection, Phase, Use, panicking};
use crate::cache::FlushCause;
use crate::node::Node;
use crate::node::handshake::Opened;
use crate::node::login::SHUT_OUT;
use crate::node::wire::{self, Refusal, Wire};
use crate::outbox::Piece;
use crate::panics;
use crate::time::Time;
use crate::upstream::effect::{Effect, KeySet};
use crate::upstream::fill::Fill;

/// For how long reads of a session go alone of which one was on a lane that the server has ended.
const SUSPECTED: Duration = Duration::from_secs(60);

/// Runs the connection until it is closed or given up, through panics. `already`: it is open; else `open` opens it, and what
/// comes with it (a lane's place among those that may be open) is held until its loss has been dealt with.
pub(in crate::upstream) async fn run<G>(
    connection: Rc<Connection>,
    open: impl AsyncFn(&Connection) -> Result<(Opened, G), Refusal>,
    mut already: Option<Opened>,
) {
    while panics::caught(live(connection.clone(), &open, already.take())).await.is_err() {
        connection.node.coherence.flush(FlushCause::Panic);
        if connection.broke(&panicking::why()) == Outcome::End {
            return;
        }
    }
}

async fn live<G>(
    connection: Rc<Connection>,
    open: &impl AsyncFn(&Connection) -> Result<(Opened, G), Refusal>,
    mut already: Option<Opened>,
) {
    loop {
        if !connection.is_needed().await {
            connection.state.borrow_mut().phase = Phase::Closed(connection.node.error("this connection was given up"));
            connection.changed.notify_waiters();
            return;
        }
        let opened = match already.take() {
            Some(opened) => Ok((opened, None)),
            None => open(&connection).await.map(|(opened, guard)| (opened, Some(guard))),
        };
        let outcome = match opened {
            Ok((opened, _guard)) => connection.run_open(opened).await,
            Err(refusal) => {
                if let Refusal::Io(why) = &refusal {
                    connection.node.count_broken(why);
                }
                connection.not_opened(&refusal)
            }
        };
        connection.changed.notify_waiters();
        if outcome == Outcome::End {
            return;
        }
    }
}

/// Whether its task goes on.
#[derive(PartialEq, Eq)]
enum Outcome {
    /// The connection may be opened again.
    Again,
    /// The connection is closed for good.
    End,
}

impl Connection {
    /// Moves bytes until the connection is lost, and deals with the loss.
    async fn run_open(self: &Rc<Self>, opened: Opened) -> Outcome {
        self.opened(&opened);
        let (mut stream, mut input) = (opened.stream, opened.input);
        let why = pump(self, &mut stream, &mut input).await;
        let heir = self.dedicated(|dedicated| dedicated.heir.take()).filter(|_| why.kind() == GIVEN_AWAY);
        // Before the connection ends, what it has filled is void.
        let outcome = self.lost(&why);
        if let Some(heir) = heir {
            // If nobody waits any more the socket is closed.
            let _ = heir.send(Wire { stream, input });
        }
        outcome
    }

    fn opened(&self, opened: &Opened) {
        let mut state = self.state.borrow_mut();
        state.phase = Phase::Up;
        state.broken = None;
        state.hello = opened.hello.clone();
        self.client_id.store(wire::id_of(&opened.hello), Ordering::Release);
        if let Use::Lane(lane) = &mut state.purpose {
            lane.opened(opened, &self.node);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Tells all that wait why the connection could not be opened; until the back-off ends, later requests get the same error.
    fn not_opened(&self, refusal: &Refusal) -> Outcome {
        let now = Time::now();
        let error = refusal.reply(&self.node);
        let mut state = self.state.borrow_mut();
        let (failures, outcome, session) = match &mut state.purpose {
            Use::Lane(lane) => (lane.failed(), Outcome::Again, None),
            Use::Dedicated(dedicated) => (1, Outcome::End, dedicated.session.clone()),
        };
        if failures == 1 && matches!(refusal, Refusal::Io(_)) {
            tracing::warn!("{}", String::from_utf8_lossy(&error).trim_start_matches("-ERR nearside: ").trim());
        }
        let awaited = state.pipeline.abandon();
        state.phase = match outcome {
            Outcome::Again => {
                let until = now + self.node.backoff(failures);
                Phase::Down { error: error.clone(), until, as_of: self.node.acl_changes.load(Ordering::Acquire) }
            }
            Outcome::End => Phase::Closed(error.clone()),
        };
        drop(state);
        let mut told = false;
        for (expect, _) in awaited {
            told = true;
            fail(expect, &error, false, &self.node, now);
        }
        if let (Some(session), false) = (session, told) {
            session.break_off();
        }
        outcome
    }

    /// Its task has broken off, wherever it was.
    fn broke(&self, why: &io::Error) -> Outcome {
        let was_up = matches!(self.state.borrow().phase, Phase::Up);
        let outcome = if was_up { self.lost(why) } else { self.not_opened(&io::Error::other(why.to_string()).into()) };
        self.changed.notify_waiters();
        outcome
    }

    /// Ends what a lost connection owes ([`Owed`]). Errors say that the outcome is unknown, or that the command was not sent.
    fn lost(&self, why: &io::Error) -> Outcome {
        let now = Time::now();
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let mut session = None;
        let again = match &mut state.purpose {
            Use::Lane(lane) => {
                // First of all (invariant 4).
                lane.lost(&self.node);
                tracing::debug!("lane lost: {why}");
                !state.close
            }
            Use::Dedicated(dedicated) => {
                // Whoever waits for its socket waits no longer.
                dedicated.heir = None;
                // Bytes that the server sent before it closed are passed on first: `pass_on` then tells of the loss.
                if dedicated.passing.is_empty() {
                    session = dedicated.session.take();
                }
                false
            }
        };
        if matches!(why.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) {
            self.key.login.cut();
        }
        let told =
            |text: String| if self.key.login.ended() { Bytes::from_static(SHUT_OUT) } else { self.node.error(&text) };
        let unknown = told(format!("the connection was lost ({why}); the outcome of this command is unknown"));
        let unsent = told(format!("the connection was lost ({why}) before this command was sent"));
        state.phase = if again { Phase::Rest } else { Phase::Closed(unsent.clone()) };
        let suspects = again && self.node.bounds.ends_for_replies();
        let (mut answered, mut failed) = (Vec::new(), Vec::new());
        for (expect, sent) in state.pipeline.abandon() {
            if suspects {
                expect.suspect(now + SUSPECTED);
            }
            match expect.owed(again, &self.node) {
                Owed::Answer(fill) => answered.push(fill),
                Owed::Again(request, expect) => state.pipeline.push(Piece::Slice(&request), expect, now),
                Owed::Error(expect) => failed.push((expect, sent)),
            }
        }
        let name = state.purpose.role().name();
        drop(guard);
        self.node.note_broken(name, why);
        answered.into_iter().for_each(|fill| fill.conclude(now, &self.node.coherence));
        for (expect, sent) in failed {
            fail(expect, if sent { &unknown } else { &unsent }, sent, &self.node, now);
        }
        if let Some(session) = session {
            session.break_off();
        }
        if again { Outcome::Again } else { Outcome::End }
    }
}

/// Tells the session that its command failed, or ends the session if its user is shut out. Whatever the command may have
/// changed, if it was sent, is dropped all the same.
pub(super) fn fail(expect: Expect, error: &Bytes, sent: bool, node: &Node, now: Time) {
    let place = match expect {
        Expect::Reply { place, effect, .. } => {
            if sent {
                effect.settle(None, node, now);
            }
            Some(place)
        }
        Expect::Fill(mut fill) => fill.place.take(),
        Expect::Confirm { place, .. } | Expect::Monitor { place } => Some(place),
        Expect::Ping(_) | Expect::Arm(_) => None,
    };
    match place {
        Some(place) if error == SHUT_OUT => place.sever(),
        Some(place) => place.deliver(Piece::Bytes(error.clone()), now),
        None => {}
    }
}

/// The end of an item that was awaited on a lost connection.
enum Owed {
    /// The answer that has come already.
    Answer(Box<Fill>),
    /// The read once more, on the next connection; never a third time.
    Again(Box<[u8]>, Expect),
    /// An error.
    Error(Expect),
}

impl Expect {
    /// A read that was awaited when the server ended the connection.
    fn suspect(&self, until: Time) {
        match self {
            Expect::Reply { place, effect, .. } if !effect.may_write() => place.suspect(until),
            Expect::Fill(fill) => fill.place.iter().for_each(|place| place.suspect(until)),
            _ => {}
        }
    }

    /// The end of this item; `again`: the lost connection comes back.
    fn owed(self, again: bool, node: &Node) -> Owed {
        match self {
            Expect::Fill(fill) if fill.is_answered() => Owed::Answer(fill),
            Expect::Reply { place, effect, retry: Some(request) } if again => {
                Owed::Again(request, Expect::Reply { place, effect, retry: None })
            }
            Expect::Fill(mut fill) if again => {
                let Some(place) = fill.place.take() else { return Owed::Error(Expect::Fill(fill)) };
                let reads = fill.hashes(&node.coherence);
                let effect = Effect::of_keys(KeySet { reads, ..KeySet::default() });
                Owed::Again(fill.request().into(), Expect::Reply { place, effect, retry: None })
            }
            other => Owed::Error(other),
        }
    }
}
