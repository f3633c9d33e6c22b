//! How much of one client is held: requests read ahead of those that are dealt with, and replies that it has not read.
//!
//! Many clients write a whole pipeline before they read the first reply. So a session never waits for its client to read:
//!
//! | the next request waits for | meanwhile |
//! |---|---|
//! | the client, which has not read [`OUTPUT_SOFT`] of replies | up to [`READ_AHEAD`] is read; with as much, requests are dealt with all the same, until `client_output_buffer_limit` ends the session |
//! | the server (a reply, room on a lane) | up to [`READ_AHEAD`] is read: the server answers whether the client reads or not |
//! | the server's word on who the session is | up to [`LITTLE`] is read |
//! | other clients (a blocking command, CLIENT PAUSE) | all is read, until `client_query_buffer_limit` ends the session |

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use super::input::Input;
use super::lent::Lent;
use super::{After, Session, Stall, Why};
use crate::config::Config;
use crate::time::Time;
use crate::upstream::connection::Connection;

/// Commands of one session that may be unanswered at once; the rest of its pipeline waits in its input.
const MAX_WAITING: usize = 1024;
/// Replies a session may owe before it reads ahead rather than owe more. With more, one look at its hits adds no second large one.
pub(super) const OUTPUT_SOFT: usize = 1 << 20;
/// Input read ahead of a request that waits.
const READ_AHEAD: usize = 1 << 20;
/// Bytes held for one client that are not counted: so hits need no counting.
const LITTLE: usize = 16 * 1024;
/// How often a session looks whether a full connection to the server has room again.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The memory held for the client, as far as it is counted.
pub(super) struct Weight {
    /// A client for which no more than this is held is within every limit.
    little: usize,
    /// The bytes that [`crate::clients::Clients::hold`] was told last.
    counted: usize,
}

impl Weight {
    pub(super) fn new(config: &Config) -> Weight {
        let limits = [
            config.client_query_buffer_limit,
            config.client_output_buffer_limit,
            config.client_output_buffer_limit_pubsub,
        ];
        Weight { little: limits.into_iter().fold(LITTLE, usize::min), counted: 0 }
    }

    /// The number to count from now on, with so many bytes held; `None`: it has hardly changed.
    fn recount(&mut self, held: usize) -> Option<usize> {
        let held = if held > LITTLE { held } else { 0 };
        let settled = held == 0 || held.abs_diff(self.counted) > LITTLE;
        if held == self.counted || !settled {
            return None;
        }
        self.counted = held;
        Some(held)
    }
}

/// The bytes of replies that may wait for the client, and the setting that says so.
fn output_limit(config: &Config, shut_out: bool, hears_others: bool) -> (usize, &'static str) {
    match () {
        () if shut_out => (LITTLE, "it has not logged in"),
        // Others on a connection of their own may ask for large replies, as anybody may.
        () if hears_others => (config.client_output_buffer_limit_pubsub, "client_output_buffer_limit_pubsub"),
        () => (config.client_output_buffer_limit, "client_output_buffer_limit"),
    }
}

impl Session {
    /// Reads what the client has sent: when it arrived. `None`: the client sends nothing more.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, input: &mut Input) -> Poll<Result<Option<Time>, Why>> {
        if self.ending.eof
            || self.ending.closing.is_some()
            || input.left() >= LITTLE && self.has_read_ahead(input.left())
        {
            return Poll::Pending;
        }
        input.poll_read(cx, &mut self.stream).map(|read| {
            let bytes = read.map_err(|_| "its connection broke")?;
            self.fresh.arrived = Time::now();
            self.ending.eof = bytes == 0;
            Ok((!self.ending.eof).then_some(self.fresh.arrived))
        })
    }

    /// Whether enough is read of what stands behind a request that waits. A client that has not logged in may say little, and
    /// whether a password is asked for may not be known yet.
    fn has_read_ahead(&self, left: usize) -> bool {
        (left >= READ_AHEAD || self.identity.key.login.is_stranger()) && self.waits_for_server()
    }

    /// A client that has begun a large request before it is known whether it must log in: the server is asked before more is read.
    #[inline]
    pub(super) fn ask_before_more(&mut self, input: &Input) {
        if input.left() >= LITTLE && self.identity.key.login.is_stranger() && !self.is_shut_out() {
            self.stall = Some(self.admission());
        }
    }

    /// Whether the next request waits for something that comes by itself.
    fn waits_for_server(&self) -> bool {
        let others = self.round.paused || self.lent.as_ref().is_some_and(Lent::is_blocked);
        !others && (self.stall.is_some() || self.outbox.waiting() >= MAX_WAITING)
    }

    /// Whether the next request is left alone, because so much is owed already.
    #[inline]
    pub(super) fn holds_back(&self, input: &Input) -> bool {
        self.outbox.owes(MAX_WAITING, OUTPUT_SOFT)
            && (input.left() < READ_AHEAD || self.outbox.waiting() >= MAX_WAITING)
    }

    /// The wait of a request for whose connection so much is queued that nothing more may be (`lane_buffer_limit`).
    /// The server takes it whether clients read their replies or not, so none of them can make the others wait for good.
    pub(super) fn wait_for_room(&self, connection: &Rc<Connection>) -> Option<Stall> {
        let limit = self.shared.config.lane_buffer_limit;
        if connection.backlog() <= limit {
            return None;
        }
        let connection = connection.clone();
        Some(Stall::For(Box::pin(async move {
            while connection.backlog() > limit / 2 {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            After::Again
        })))
    }

    /// Whether the client has not logged in though it must. Whoever has no password must not be able to fill the memory: it may
    /// say little ([`crate::resp::Scanner::guard`]), and leave little unread.
    #[inline]
    pub(super) fn is_shut_out(&self) -> bool {
        self.identity.key.login.is_stranger() && self.shared.node().logins.shut_out()
    }

    /// Whether more of it is held than it may have.
    #[inline]
    pub(super) fn too_much(&mut self, input: &Input) -> Option<Why> {
        let held = self.outbox.bytes() + input.held();
        let elsewhere = self.outstanding.sent() | self.weight.counted;
        let little = held <= self.weight.little && elsewhere == 0 && self.lent.is_none();
        if little { None } else { self.weigh(held, input) }
    }

    /// Kept out of the way of those of whom little is held.
    #[cold]
    fn weigh(&mut self, held: usize, input: &Input) -> Option<Why> {
        let on_its_way = self.lent.as_ref().map_or(0, |lent| lent.connection.held()).max(self.outstanding.sent());
        self.count(held + on_its_way);
        let config = &self.shared.config;
        let hears_others = self.lent.as_ref().is_some_and(Lent::hears_others);
        let (limit, setting) = output_limit(config, self.is_shut_out(), hears_others);
        if self.outbox.bytes() > limit {
            self.shared.slow_readers.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                client = self.client.addr,
                "closed: more than {limit} bytes that it does not read ({setting})"
            );
            return Some("it reads too slowly");
        }
        if input.left() > config.client_query_buffer_limit {
            tracing::warn!(client = self.client.addr, "closed: its request exceeds client_query_buffer_limit");
            return Some("its request is too large");
        }
        None
    }

    /// Adds what is held for this client to what is held for all (`maxmemory_clients`), if it has changed by more than a little.
    /// With too much in all, those for whom most is held are closed: this one, or others, which their threads end.
    fn count(&mut self, held: usize) {
        let Some(held) = self.weight.recount(held) else { return };
        let (clients, most) = (&self.shared.clients, self.shared.config.maxmemory_clients);
        clients.hold(&self.client, held);
        if most > 0 && clients.held() > most {
            for (client, bytes) in clients.relieve(most) {
                tracing::warn!(
                    client = client.addr,
                    "closed: {bytes} bytes are held for it, more than for any other, and more than {most} for all (maxmemory_clients)"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_anew_when_it_has_changed_by_more_than_a_little() {
        let mut weight = Weight::new(&Config::default());
        assert_eq!(
            [LITTLE, LITTLE + 1, 2 * LITTLE, 2 * LITTLE + 2, LITTLE, 0].map(|held| weight.recount(held)),
            [None, Some(LITTLE + 1), None, Some(2 * LITTLE + 2), Some(0), None]
        );
    }

    #[test]
    fn a_client_without_a_login_may_leave_least_unread() {
        let config = Config::default();
        assert_eq!(output_limit(&config, true, true).0, LITTLE);
        assert_eq!(output_limit(&config, false, true).1, "client_output_buffer_limit_pubsub");
        assert_eq!(output_limit(&config, false, false).1, "client_output_buffer_limit");
        let tight = Config { client_query_buffer_limit: 1024, ..config };
        assert_eq!((Weight::new(&tight).little, Weight::new(&Config::default()).little), (1024, LITTLE));
    }
}
