//! Which lane a request shares with those of other sessions, and which request shares none.
//!
//! Where the server ends a connection for the size of its replies (`Bounds::ends_for_replies`), a lane's end must not make the
//! outcome of another client's write unknown: reads that can be sent again have a lane of their own, and only reads are lost
//! with it. A session whose read was on a lane that was lost so has its next reads sent alone for a while. What writes and may answer
//! as much as there is (GETDEL, LPOP with a count, SET with GET), or may not be said again, and every script, goes down a
//! connection of its own.
//!
//! Accepted: with no connection to spare such a command shares the lane. So do writes of modules, and what the proxy asks in a
//! session's name (CLIENT LIST, PUBSUB CHANNELS, INFO).

use std::rc::Rc;

use super::lent::Purpose;
use super::{Session, Stall, Step};
use crate::command::{Need, Plan, Request, Route, Word};
use crate::upstream::connection::Connection;
use crate::upstream::lanes::Cargo;

impl Session {
    /// The lane of a request that is no cached read. `Err`: something has to be done first.
    pub(super) fn lane_or_apart(&mut self, request: &Request<'_>) -> Result<Rc<Connection>, Step> {
        if self.is_lengthy(request)
            && let Some(step) = self.apart()
        {
            return Err(step);
        }
        self.route()
    }

    /// Whether the server might end a lane for the reply, and writes with it.
    fn is_lengthy(&self, request: &Request<'_>) -> bool {
        let lengthy = match self.latest.word {
            Word::Lengthy => true,
            Word::Set => (3..request.len()).any(|i| request.arg(i).eq_ignore_ascii_case(b"GET")),
            _ => false,
        };
        lengthy && self.shared.node().bounds.ends_for_replies()
    }

    /// The lane of the present request. `Err`: something has to be done first.
    pub(super) fn route(&mut self) -> Result<Rc<Connection>, Step> {
        let reads = self.latest.repeatable && self.shared.node().bounds.ends_for_replies();
        let cargo = if reads { Cargo::Reads } else { Cargo::Any };
        // Requests on two connections may be executed in either order.
        if self.outbox.waiting() > 0 && self.lanes.cargo != cargo {
            return Err(Step::Stall(Stall::Drain));
        }
        if reads
            && self.outbox.suspected() > self.fresh.now
            && let Some(step) = self.apart()
        {
            return Err(step);
        }
        self.lanes.cargo = cargo;
        let lane = match cargo {
            Cargo::Any => self.lanes.any.clone(),
            Cargo::Reads => self.lanes.reads.get_or_insert_with(|| self.pool.reads(&self.identity.key)).clone(),
        };
        match self.wait_for_room(&lane) {
            Some(stall) => Err(Step::Stall(stall)),
            None => Ok(lane),
        }
    }

    /// Whether the server might end a lane for this request.
    pub(super) fn is_outsized(&self, request: &Request<'_>, plan: Plan) -> bool {
        let shares =
            matches!(plan.route, Route::Cache(_) | Route::Lane | Route::Unlisted | Route::Dedicated(Need::Alone));
        shares && self.shared.node().bounds.excludes(request.buf.len(), request.len())
    }

    /// Such a request gets a connection of its own, and is then dealt with again.
    pub(super) fn outsized(&mut self) -> Step {
        if self.outbox.waiting() > 0 {
            return Step::Stall(Stall::Drain);
        }
        match self.lent_by(self.pool.lend_or_ask(&self.identity.key)) {
            Ok(connection) => {
                self.keep_loan(connection, Purpose::OneCommand);
                Step::Stall(Stall::Drain)
            }
            Err(first) => first,
        }
    }

    /// `None`: there is no connection left.
    fn apart(&mut self) -> Option<Step> {
        if self.outbox.waiting() > 0 {
            return Some(Step::Stall(Stall::Drain));
        }
        let connection = self.pool.lend(&self.identity.key)?;
        self.keep_loan(connection, Purpose::OneCommand);
        Some(Step::Stall(Stall::Drain))
    }
}
