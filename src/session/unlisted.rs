//! Commands by names that the server's table does not have: see [`names`].

use std::sync::atomic::Ordering;

use super::lent::Lent;
use super::{After, Session, Stall, Step};
use crate::command::{Need, Request, Word};
use crate::node::names::{self, NameVerdict};

impl Session {
    /// `None`: the server has no such command, and its error answers, wherever the plan has it said; or what the session says
    /// passes unlooked at, whatever it is.
    pub(super) fn unlisted(&mut self, request: &Request<'_>) -> Option<Step> {
        let unlooked = self.lent.as_ref().is_some_and(|lent| lent.is_raw() || lent.is_monitoring())
            // The server's word to one who has not logged in answers; but for AUTH by another name.
            || self.identity.key.login.is_stranger();
        let known = self.shared.node().names.known(request.arg(0));
        if known == Some(NameVerdict::NoCommand) {
            return None;
        }
        if known == Some(NameVerdict::Unknowable) || self.present.bypass {
            return if unlooked { None } else { Some(self.own_connection(request)) };
        }
        let (node, name) = (self.shared.node().clone(), request.arg(0).to_vec());
        Some(Step::Stall(Stall::For(Box::pin(async move {
            match names::ask(&node, &name).await {
                Ok(NameVerdict::Listed | NameVerdict::NoCommand) => After::Again,
                Err(e) if !unlooked => After::Reply(node.error(&format!("cannot be reached: {e}"))),
                _ => After::Upstream,
            }
        }))))
    }

    /// Nobody knows what the command does: its bytes and all that follow pass unlooked at, on a connection that is nobody
    /// else's.
    fn own_connection(&mut self, request: &Request<'_>) -> Step {
        let step = if self.lent.is_some() { self.go_raw() } else { self.dedicate(request, Word::Other, Need::Pin) };
        if self.lent.as_ref().is_some_and(Lent::is_raw) {
            self.shared.node().names.unknowable.fetch_add(1, Ordering::Relaxed);
        }
        step
    }
}
