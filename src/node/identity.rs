//! As whom, and for what, a connection speaks to a server.

use std::sync::Arc;

use super::login::Login;

/// The properties that make two connections interchangeable.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ConnectionKey {
    /// The login it speaks as.
    pub login: Arc<Login>,
    /// Protocol 3.
    pub resp3: bool,
    /// Database.
    pub db: u32,
    /// The session's login when it chose the database, if another. Tried if the proxy's own user cannot log in: the
    /// present user may have no right to select.
    pub via: Option<Arc<Login>>,
}

impl ConnectionKey {
    /// The same session after AUTH: it stays in its database.
    pub fn authenticated(&self, login: Arc<Login>) -> ConnectionKey {
        let chosen_as = self.via.as_ref().unwrap_or(&self.login);
        let helps = self.db != 0 && !chosen_as.is_stranger() && chosen_as.user() != login.user();
        ConnectionKey { via: helps.then(|| chosen_as.clone()), login, ..self.clone() }
    }

    /// The name of the user it speaks as.
    pub fn user(&self) -> &[u8] {
        self.login.user()
    }
}

/// The use of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Shared; reconnects when somebody needs it; fills the cache.
    Lane,
    /// Lent to one session; never reconnects.
    Dedicated,
}

impl Role {
    /// The name of such a connection in the server's CLIENT LIST.
    pub fn name(self) -> &'static str {
        match self {
            Role::Lane => "nearside-lane",
            Role::Dedicated => "nearside-dedicated",
        }
    }
}
