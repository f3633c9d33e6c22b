//! nearside: a Redis-protocol caching proxy.
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod admin;
pub mod buffer;
pub mod cache;
pub mod clients;
pub mod clock;
pub mod coherence;
pub mod command;
pub mod config;
pub mod embedded;
pub mod error;
pub mod limits;
pub mod outbox;
pub mod resp;
pub mod sabotage;
pub mod server;
pub mod session;
pub mod shared;
pub mod time;
pub mod transport;
pub mod upstream;
