//! nearside: a Redis-protocol caching proxy.

pub mod command;
pub mod config;
pub mod embedded;
pub mod error;
pub mod limits;
pub mod server;
