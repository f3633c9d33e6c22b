//! Which lane a request shares with those of other sessions, and which request shares none.
//!
//! Where the server ends a connection for the size of its replies (`Bounds::ends_for_replies`), a lane's end must not make the
//! outcome of another client's write unknown: reads that can be sent again have a lane of their own, and only reads are lost
//! with it. A session whose read was on a lane that was lost so has its next reads sent alone for a while.

use std::rc::Rc;

use super::{Session, Stall, Step};
use crate::command::Need;
use crate::command::{Plan, Request, Route};
use crate::upstream::connection::Connection;
use crate::upstream::lanes::Cargo;

impl Session {
    /// The lane of the present request. `Err`: something has to be done first.
    pub(super) fn route(&mut self) -> Result<Rc<Connection>, Step> {
        let reads = self.repeatable && self.shared.node.bounds.ends_for_replies();
        let cargo = if reads { Cargo::Reads } else { Cargo::Any };
        // What goes down two connections may be executed in either order.
        if self.outbox.waiting() > 0 && self.cargo != cargo {
            return Err(Step::Stall(Stall::Drain));
        }
        if reads
            && self.outbox.suspected() > self.now
            && let Some(step) = self.apart()
        {
            return Err(step);
        }
        self.cargo = cargo;
        let lane = match cargo {
            Cargo::Any => self.lane.clone(),
            Cargo::Reads => self.reads.get_or_insert_with(|| self.pool.reads(&self.key)).clone(),
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
        shares && self.shared.node.bounds.excludes(request.buf.len(), request.len())
    }

    /// Such a request gets a connection of its own, and is then dealt with again.
    pub(super) fn outsized(&mut self) -> Step {
        if self.outbox.waiting() > 0 {
            return Step::Stall(Stall::Drain);
        }
        match self.lent_by(self.pool.lend_or_ask(&self.key)) {
            Ok(connection) => {
                self.lend(connection).alone = Some(None);
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
        let connection = self.pool.lend(&self.key)?;
        self.lend(connection).alone = Some(None);
        Some(Step::Stall(Stall::Drain))
    }
}
