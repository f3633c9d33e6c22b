//! nearside: a Redis-protocol caching proxy.

pub mod command;
pub mod config;
