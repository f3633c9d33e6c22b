//! The settings of the process that concern its servers: all nodes share them.

use std::time::Duration;

use crate::config::{Config, Invalidation, Level, ScriptKeys};

/// Settings by the names they have in [`Config`], unless another is given.
pub struct Settings {
    /// How long opening a connection may take.
    pub connect_timeout: Duration,
    /// How long a server may give no sign of life.
    pub upstream_timeout: Duration,
    /// How often connections say PING and look at what is due.
    pub heartbeat: Duration,
    /// The longest wait before a connection is opened again.
    pub reconnect_max: Duration,
    /// How often [`watch`](super::watch) looks: twice within `max_staleness`.
    pub watch_interval: Duration,
    /// Whether scripts name their keys.
    pub script_keys: ScriptKeys,
    /// How changed keys are heard of.
    pub invalidation: Invalidation,
    /// [`Config::broadcast_prefixes`].
    pub prefixes: Vec<String>,
    /// For how long a reply is kept at most; zero: as long as its key lives.
    pub max_ttl: Duration,
    /// Levels that listeners are configured for.
    pub wanted: Vec<Level>,
    /// Keys named to a server as used, in a second.
    pub touch_per_second: usize,
    /// Wrong passwords that are put to a server in a second.
    pub wrong_passwords_per_second: usize,
    /// The longest argument that is taken before a server has told its own bound.
    pub proto_max_bulk_len: usize,
}

impl Settings {
    /// Those of this configuration.
    pub fn new(config: &Config) -> Settings {
        Settings {
            connect_timeout: config.connect_timeout,
            upstream_timeout: config.upstream_timeout,
            heartbeat: config.heartbeat,
            reconnect_max: config.reconnect_max,
            watch_interval: (config.max_staleness / 2).min(Duration::from_secs(1)),
            script_keys: config.script_keys,
            invalidation: config.invalidation,
            prefixes: config.broadcast_prefixes.clone(),
            max_ttl: config.max_ttl,
            wanted: levels(config),
            touch_per_second: config.touch_per_second,
            wrong_passwords_per_second: config.wrong_passwords_per_second,
            proto_max_bulk_len: config.proto_max_bulk_len,
        }
    }
}

/// The levels of the listeners, each once.
fn levels(config: &Config) -> Vec<Level> {
    let all = [Level::Bounded, Level::Causal, Level::Linearizable];
    all.into_iter().filter(|level| config.listen.iter().any(|l| l.consistency == *level)).collect()
}
