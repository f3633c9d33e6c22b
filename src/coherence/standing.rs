//! The server's help with coherence, and so the levels that can be kept. Decided by the link when it opens; a
//! level that cannot be kept is refused, never pretended.

use std::fmt;

use crate::config::Level;

/// How the server tells what has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The server remembers which keys were read, and reports each once. Lanes say CLIENT TRACKING and CLIENT CACHING YES.
    Tracked,
    /// The server reports every change, of keys with certain prefixes. Lanes stay plain.
    Broadcast,
    /// Keyspace notifications: every change of a key, but not FLUSHALL and SWAPDB. Lanes stay plain.
    Keyspace,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Tracked => "tracked",
            Mode::Broadcast => "broadcast",
            Mode::Keyspace => "keyspace",
        })
    }
}

/// The levels that can be kept with this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// `Err`: nothing is cached, and why.
    pub mode: Result<Mode, String>,
    /// The server has said that it is a replica.
    pub replica: bool,
}

impl Standing {
    /// The strongest level whose hits keep their promise.
    pub fn strongest(&self) -> Level {
        match (&self.mode, self.replica) {
            (Ok(Mode::Keyspace), _) | (_, true) => Level::Bounded,
            _ => Level::Linearizable,
        }
    }

    /// Why it is not a stronger one.
    pub fn limit(&self) -> &'static str {
        if self.replica {
            "the upstream is a replica, which may not know yet what its master has acknowledged"
        } else {
            "keyspace notifications do not tell of everything that changes (invalidation = \"keyspace\")"
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.mode {
            Ok(mode) => mode.fmt(f),
            Err(why) => write!(f, "none reason={why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_kept() {
        let strongest = |mode, replica| Standing { mode, replica }.strongest();
        assert_eq!(strongest(Ok(Mode::Tracked), false), Level::Linearizable);
        assert_eq!(strongest(Ok(Mode::Broadcast), false), Level::Linearizable);
        assert_eq!(strongest(Ok(Mode::Keyspace), false), Level::Bounded);
        assert_eq!(strongest(Ok(Mode::Tracked), true), Level::Bounded);
        assert_eq!(strongest(Err("off".into()), true), Level::Bounded, "its own reads are no better");
        assert_eq!(Standing { mode: Err("off".into()), replica: false }.to_string(), "none reason=off");
    }
}
