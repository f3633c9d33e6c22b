//! Text to plain values: each setting parsed, with the place it was given at. No defaults and no limits here.

use super::units::{Count, Period, Size, SizeOrPercent, Threads};
use super::values::{Flag, Log, Origin, Permissions, Plain};
use super::{Address, AuthClients, ConfigError, Invalidation, Level, ScriptKeys};
use serde::{Deserialize, Deserializer, de};
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use toml::Spanned;

/// A configuration file that has been read.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Its content.
    pub text: &'a str,
    /// Its name, for errors.
    pub filename: &'a str,
}

/// The settings of the command line; each text means what it means in the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--listen`: replaces the file's listeners if there is one.
    pub listen: Vec<String>,
    /// `--upstream`
    pub upstream: Option<String>,
    /// `--consistency`: of the listeners that do not name their own.
    pub consistency: Option<String>,
    /// `--max-memory`
    pub max_memory: Option<String>,
    /// `--threads`
    pub threads: Option<String>,
    /// `--log`
    pub log: Option<String>,
}

/// Where a value was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// On the command line.
    Flag,
    /// At this byte of the file.
    Byte(usize),
}

/// A value and where it was given.
#[derive(Clone, Debug)]
pub(super) struct Given<T> {
    pub value: T,
    pub at: At,
}

/// One row a setting: its key in the file and its type.
macro_rules! settings {
    ($($key:ident: $type:ty,)*) => {
        /// The settings as given.
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct RawConfig {
            pub listen: Option<Vec<RawListen>>,
            pub broadcast_prefixes: Option<Spanned<Vec<String>>>,
            $(pub $key: Option<Given<$type>>,)*
        }

        /// Every key that may stand at the top of the file.
        pub(super) const KEYS: &[&str] = &["listen", "broadcast_prefixes", $(stringify!($key),)*];
    };
}

settings! {
    upstream: Origin,
    upstream_tls_ca: Plain,
    upstream_tls_cert: Plain,
    upstream_tls_key: Plain,
    upstream_tls_server_name: Plain,
    upstream_tls_insecure: Flag,
    threads: Threads,
    consistency: Level,
    invalidation: Invalidation,
    max_ttl: Period,
    max_staleness: Period,
    heartbeat: Period,
    upstream_timeout: Period,
    connect_timeout: Period,
    reconnect_max: Period,
    max_memory: Size,
    max_entry: Size,
    script_keys: ScriptKeys,
    maxclients: Count,
    clients_together: Count,
    timeout: Period,
    proto_max_bulk_len: Size,
    client_query_buffer_limit: Size,
    client_output_buffer_limit: Size,
    client_output_buffer_limit_pubsub: Size,
    maxmemory_clients: SizeOrPercent,
    max_dedicated: Count,
    dedicated_idle_timeout: Period,
    max_lanes: Count,
    lane_idle_timeout: Period,
    lane_buffer_limit: Size,
    wrong_passwords_per_second: Count,
    audit_one_in: Count,
    audit_per_second: Count,
    touch_per_second: Count,
    shutdown_grace: Period,
    log: Log,
    log_buffer_limit: Size,
    unixsocketperm: Permissions,
}

/// One `[[listen]]` table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawListen {
    pub address: Given<Address>,
    pub consistency: Option<Given<Level>>,
    pub tls_cert: Option<Given<Plain>>,
    pub tls_key: Option<Given<Plain>>,
    pub tls_ca: Option<Given<Plain>>,
    pub tls_auth_clients: Option<Given<AuthClients>>,
    pub unixsocketperm: Option<Given<Permissions>>,
}

impl RawListen {
    /// One that says nothing but where.
    fn at(address: Given<Address>) -> RawListen {
        RawListen {
            address,
            consistency: None,
            tls_cert: None,
            tls_key: None,
            tls_ca: None,
            tls_auth_clients: None,
            unixsocketperm: None,
        }
    }
}

impl RawConfig {
    /// Step one: the file's text.
    pub(super) fn from_source(source: Source<'_>) -> Result<Self, ConfigError> {
        toml::from_str(source.text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let key = key_at(source.text, at);
            let hint =
                if key == "listen" { "; write [[listen]], and address = \"127.0.0.1:6380\" below it" } else { "" };
            source.error(at, &format!("{key}{}{}{hint}", if key.is_empty() { "" } else { ": " }, error.message()))
        })
    }

    /// Step two: the flags, which beat it.
    pub(super) fn overlay(&mut self, flags: &Overrides) -> Result<(), ConfigError> {
        put(&mut self.upstream, "--upstream", flags.upstream.as_deref())?;
        put(&mut self.consistency, "--consistency", flags.consistency.as_deref())?;
        put(&mut self.max_memory, "--max-memory", flags.max_memory.as_deref())?;
        put(&mut self.threads, "--threads", flags.threads.as_deref())?;
        put(&mut self.log, "--log", flags.log.as_deref())?;
        if flags.listen.is_empty() {
            return Ok(());
        }
        let listener = |text: &String| Ok(RawListen::at(parsed("--listen", text)?));
        self.listen = Some(flags.listen.iter().map(listener).collect::<Result<_, ConfigError>>()?);
        Ok(())
    }
}

impl Source<'_> {
    /// An error at byte `at`.
    pub(super) fn error(&self, at: usize, problem: &str) -> ConfigError {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        ConfigError { origin: self.filename.into(), line: Some(line), problem: problem.into() }
    }
}

/// The text before the `=` of the line of byte `at`.
fn key_at(text: &str, at: usize) -> &str {
    let start = text.get(..at).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1);
    let line = text[start..].lines().next().unwrap_or_default();
    line.split_once('=').map_or("", |(key, _)| key.trim())
}

fn put<T: FromStr<Err = String>>(
    slot: &mut Option<Given<T>>,
    flag: &str,
    text: Option<&str>,
) -> Result<(), ConfigError> {
    if let Some(text) = text {
        *slot = Some(parsed(flag, text)?);
    }
    Ok(())
}

fn parsed<T: FromStr<Err = String>>(flag: &str, text: &str) -> Result<Given<T>, ConfigError> {
    let value = text.parse().map_err(|problem| ConfigError { origin: flag.into(), line: None, problem })?;
    Ok(Given { value, at: At::Flag })
}

impl<'de, T: FromStr<Err = String>> Deserialize<'de> for Given<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Text<T>>::deserialize(deserializer)?;
        let at = At::Byte(spanned.span().start);
        Ok(Given { value: spanned.into_inner().0, at })
    }
}

/// A string or a whole number that `T` reads: file and flags share one parser.
struct Text<T>(T);

impl<'de, T: FromStr<Err = String>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor(PhantomData))
    }
}

struct TextVisitor<T>(PhantomData<T>);

impl<T: FromStr<Err = String>> de::Visitor<'_> for TextVisitor<T> {
    type Value = Text<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a whole number")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<T>, E> {
        text.parse().map(Text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Text<T>, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_bool<E: de::Error>(self, flag: bool) -> Result<Text<T>, E> {
        let text = if flag { "true" } else { "false" };
        text.parse().map(Text).map_err(|_| E::invalid_type(de::Unexpected::Bool(flag), &self))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Text<T>, E> {
        self.visit_str(&number.to_string())
    }
}
