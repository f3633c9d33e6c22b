//! Why the program ends. What clients are told is RESP and lives with the session.

use crate::config::{Address, ConfigError};

/// Why the program ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A listener cannot be opened.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The listener's address.
        address: Address,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// The private server does not start.
    #[error("embedded server: {0}")]
    Embedded(String),
    /// Anything else that the kernel refuses.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
