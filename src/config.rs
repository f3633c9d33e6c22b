//! `proxy.toml` and flags into a validated [`Config`]. The only home of defaults; unknown keys are errors.
//!
//! Three steps, and nothing is done on the way: text → plain (`raw`: every value parsed, and where it was given) → ready
//! (`ready`: defaults filled in, limits checked). Flags beat the file, the file beats the defaults.

mod raw;
mod ready;
mod units;
mod values;

pub use raw::{Overrides, Source};

use std::path::{Path, PathBuf};
use std::time::Duration;

/// How fresh a cached answer must be. See `DESIGN`'s freshness clock: each level is a watermark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Level {
    /// Never older than `max_staleness`; a key never goes back in time.
    #[default]
    Bounded,
    /// Also: whatever the session has seen never goes back, across keys.
    Causal,
    /// As if Redis itself had answered, as of the request's arrival.
    Linearizable,
}

/// Where a listener binds or an upstream lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `host:port`
    Tcp(String, u16),
    /// A unix socket's path.
    Unix(PathBuf),
}

/// One front door: an address and the level its clients get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Where to bind.
    pub address: Address,
    /// The consistency its sessions start with.
    pub consistency: Level,
    /// `None`: in the clear.
    pub tls: Option<ListenTls>,
    /// The permissions of a unix socket's file; `None`: what the umask leaves.
    pub unixsocketperm: Option<u32>,
}

/// TLS of a listener: the files, which `tls` reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenTls {
    /// Its certificate and those between it and the CA.
    pub cert: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
    /// The authority that signs clients' certificates.
    pub ca: Option<PathBuf>,
    /// Whether clients must have one.
    pub auth_clients: AuthClients,
}

/// Whether clients must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthClients {
    /// They are not asked.
    No,
    /// They are asked; one that is shown must be good.
    Optional,
    /// Nobody comes in without.
    Yes,
}

/// TLS to the upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The authority that signs its certificate; `None`: those that the system believes.
    pub ca: Option<PathBuf>,
    /// The proxy's own certificate and its key, if the upstream asks for one.
    pub cert_and_key: Option<(PathBuf, PathBuf)>,
    /// The name its certificate must have; `None`: the host's.
    pub server_name: Option<String>,
    /// No certificate is checked: any server that answers is believed.
    pub insecure: bool,
}

/// The Redis or Valkey behind the proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Where it listens.
    pub address: Address,
    /// ACL user of the link and of sessions that have not said AUTH.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<String>,
    /// Database a session starts in.
    pub db: u32,
    /// `None`: in the clear.
    pub tls: Option<UpstreamTls>,
}

/// Whether the declared keys of scripts are believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ScriptKeys {
    /// A script may write any key: its reply waits for one barrier on the link.
    #[default]
    Any,
    /// Scripts write only the keys they declare.
    Declared,
}

/// How changes are learned of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Invalidation {
    /// The first of `tracked` and `broadcast` that the server does.
    #[default]
    Auto,
    /// The server remembers what was read and reports its changes.
    Tracked,
    /// The server reports every change.
    Broadcast,
    /// Keyspace notifications.
    Keyspace,
    /// Not at all: nothing is cached.
    Off,
}

/// Everything that can be set, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Front doors.
    pub listen: Vec<Listen>,
    /// `None`: start a private server (the embedded default).
    pub upstream: Option<Upstream>,
    /// Worker threads; each owns its sessions and lanes.
    pub threads: usize,
    /// How changes are learned of.
    pub invalidation: Invalidation,
    /// `broadcast`: only keys that begin with one of these are reported, and cached. Empty: all.
    pub broadcast_prefixes: Vec<String>,
    /// No reply is kept for longer; zero: no such limit.
    pub max_ttl: Duration,
    /// Oldest answer of level `bounded`.
    pub max_staleness: Duration,
    /// Longest time between two PINGs on the link.
    pub heartbeat: Duration,
    /// Without any sign of life for this long, link and lanes are taken for dead.
    pub upstream_timeout: Duration,
    /// Longest time a connection to the upstream may take to come up.
    pub connect_timeout: Duration,
    /// Cap of the reconnect back-off.
    pub reconnect_max: Duration,
    /// Bytes the cache may hold, overhead included.
    pub max_memory: u64,
    /// A reply above this many bytes is not cached.
    pub max_entry: usize,
    /// Whether scripts' declared keys are believed.
    pub script_keys: ScriptKeys,
    /// Client connections at once.
    pub maxclients: usize,
    /// Clients that share the first thread before a second gets any; 1: each thread gets one in turn.
    pub clients_together: usize,
    /// A client idle for this long is closed; zero: never.
    pub timeout: Duration,
    /// Largest argument a client may send, in bytes.
    pub proto_max_bulk_len: usize,
    /// Largest unprocessed input of one client, in bytes.
    pub client_query_buffer_limit: usize,
    /// Replies a client has not read yet, in bytes; above it the client is closed.
    pub client_output_buffer_limit: usize,
    /// The same for a client with subscriptions, or one that MONITOR, tracking and the like feed.
    pub client_output_buffer_limit_pubsub: usize,
    /// Bytes held for all clients together, above which the one with most is closed; 0: no such bound.
    pub maxmemory_clients: usize,
    /// Connections lent to single sessions at once (MULTI, blocking, pub/sub …).
    pub max_dedicated: usize,
    /// One that no session has used for this long is closed; zero: never.
    pub dedicated_idle_timeout: Duration,
    /// Shared connections to the upstream at once.
    pub max_lanes: usize,
    /// A shared connection that nobody has used for so long is closed; zero: never.
    pub lane_idle_timeout: Duration,
    /// Bytes on their way to the upstream on one lane before sessions must wait.
    pub lane_buffer_limit: usize,
    /// Wrong passwords a second from one address, at the most; more of them wait. 0: no limit.
    pub wrong_passwords_per_second: usize,
    /// One in so many hits is audited; 0: none.
    pub audit_one_in: usize,
    /// Audits a second at the most; 0: none.
    pub audit_per_second: usize,
    /// Keys a second that are named to the upstream as used, at the most; 0: none.
    pub touch_per_second: usize,
    /// How long a drain may take at shutdown.
    pub shutdown_grace: Duration,
    /// Filter of the log, in tracing's words (`info`, `nearside=debug` …).
    pub log: String,
    /// Bytes of the log that may wait for stderr to take them; lines beyond are dropped.
    pub log_buffer_limit: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![Listen {
                address: Address::Tcp("127.0.0.1".into(), 6380),
                consistency: Level::Bounded,
                tls: None,
                unixsocketperm: None,
            }],
            upstream: None,
            threads: std::thread::available_parallelism().map_or(2, usize::from).min(256),
            invalidation: Invalidation::Auto,
            broadcast_prefixes: Vec::new(),
            max_ttl: Duration::ZERO,
            max_staleness: Duration::from_secs(1),
            heartbeat: Duration::from_millis(100),
            upstream_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(2),
            reconnect_max: Duration::from_secs(2),
            max_memory: 256 << 20,
            max_entry: 1 << 20,
            script_keys: ScriptKeys::Any,
            maxclients: 10_000,
            clients_together: 8,
            timeout: Duration::ZERO,
            proto_max_bulk_len: 512 << 20,
            client_query_buffer_limit: 1 << 30,
            client_output_buffer_limit: 1 << 30,
            client_output_buffer_limit_pubsub: 32 << 20,
            maxmemory_clients: 1 << 30,
            max_dedicated: 4096,
            dedicated_idle_timeout: Duration::from_secs(60),
            max_lanes: 1024,
            lane_idle_timeout: Duration::from_secs(60),
            lane_buffer_limit: 64 << 20,
            wrong_passwords_per_second: 100,
            audit_one_in: 10_000,
            audit_per_second: 10,
            touch_per_second: 10_000,
            shutdown_grace: Duration::from_secs(5),
            log: "info".into(),
            log_buffer_limit: 1 << 20,
        }
    }
}

impl Config {
    /// The configuration that `text`, the content of `filename`, describes.
    pub fn from_toml(text: &str, filename: &str) -> Result<Self, ConfigError> {
        Self::resolve(Some(Source { text, filename }), &Overrides::default())
    }

    /// Reads `path`, if there is one, and lays `flags` over it.
    pub fn load(path: Option<&Path>, flags: &Overrides) -> Result<Self, ConfigError> {
        let Some(path) = path else { return Self::resolve(None, flags) };
        let filename = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| ConfigError {
            origin: filename.clone(),
            line: None,
            problem: format!("cannot be read: {e}"),
        })?;
        Self::resolve(Some(Source { text: &text, filename: &filename }), flags)
    }

    /// Defaults, under the file's settings, under the flags.
    pub fn resolve(file: Option<Source<'_>>, flags: &Overrides) -> Result<Self, ConfigError> {
        let mut plain = file.map_or_else(|| Ok(raw::RawConfig::default()), raw::RawConfig::from_source)?;
        plain.overlay(flags)?;
        ready::ready(plain, file)
    }

    /// The name of every setting of `proxy.toml`.
    pub fn keys() -> &'static [&'static str] {
        raw::KEYS
    }
}

/// A duration as it is written in settings: `100ms`, `1s`.
pub fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<units::Period>().map(|period| period.0)
}

/// A fault of a setting: what is wrong, where it was given, and what is allowed instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file's name, or the flag.
    pub origin: String,
    /// The line in the file.
    pub line: Option<usize>,
    /// The setting, what is wrong with it, what to write.
    pub problem: String,
}

impl std::error::Error for ConfigError {}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.origin, self.problem),
            None => write!(f, "{}: {}", self.origin, self.problem),
        }
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream")
            .field("address", &self.address)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("db", &self.db)
            .field("tls", &self.tls)
            .finish()
    }
}
