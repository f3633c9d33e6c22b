//! Connections on which the server has accepted a login, kept idle for the sessions that have the login: for their next
//! transaction, and because no other can be had once the password is replaced. Those that nobody has used go with the
//! thread's last session of the login, but for one that stays a few seconds, so that users who come and go leave nothing behind
//! and who comes again so soon is judged without a new connection ([`Pool::has_spares`]).

use std::rc::Rc;
use std::sync::Arc;

use super::Pool;
use super::dedicated::IdleSet;
use crate::node::login::Login;

/// A session has this login until this is dropped.
pub struct Hold {
    idle: Rc<IdleSet>,
    login: Arc<Login>,
}

impl Pool {
    /// To be held by a session for as long as it has the login.
    pub fn hold(&self, login: &Arc<Login>) -> Hold {
        *self.idle.holds.borrow_mut().entry(login.number()).or_default() += 1;
        Hold { idle: self.idle.clone(), login: login.clone() }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut holds = self.idle.holds.borrow_mut();
        let count = holds.entry(self.login.number()).or_default();
        *count = count.saturating_sub(1);
        if *count == 0 {
            holds.remove(&self.login.number());
            drop(holds);
            self.idle.leave_one(&self.login);
        }
    }
}
