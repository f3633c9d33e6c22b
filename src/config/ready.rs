//! Plain values to a [`Config`]: defaults filled in, limits checked. An error says what to do.

use super::raw::{At, Given, RawConfig, RawListen, Source};
use super::units::{Count, Period, Size, Threads};
use super::values::{Flag, Origin, Permissions, Plain};
use super::{Address, AuthClients, Config, ConfigError, Invalidation, Level, Listen, ListenTls, Upstream, UpstreamTls};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;
use toml::Spanned;

const DAY: Duration = Duration::from_secs(24 * 3600);
const MB: u64 = 1 << 20;
/// More than any machine has, and far from overflow.
const HUGE: u64 = 1 << 50;

/// Turns what was given into what holds.
pub(super) fn ready(raw: RawConfig, file: Option<Source<'_>>) -> Result<Config, ConfigError> {
    let blame = Blame { file };
    let default = Config::default();
    let places = GivenAt::of(&raw);
    let level = raw.consistency.as_ref().map_or_else(Level::default, |given| given.value);
    let upstream = upstream(&raw, &blame)?;
    let max_memory = blame.within("max_memory", raw.max_memory, Size(default.max_memory), Size(MB)..=Size(HUGE))?.0;
    // A setting has the same name in the file, in `raw` and in the configuration.
    macro_rules! given {
        ($kind:ident $name:ident $(, $bound:expr)?) => {
            blame.$kind(stringify!($name), raw.$name, default.$name $(, $bound)?)?
        };
    }
    let config = Config {
        listen: listeners(raw.listen, default.listen, level, raw.unixsocketperm, &blame)?,
        upstream,
        invalidation: raw.invalidation.map_or(default.invalidation, |given| given.value),
        broadcast_prefixes: prefixes(raw.broadcast_prefixes, &blame)?,
        max_ttl: given!(period max_ttl, Duration::ZERO..=365 * DAY),
        threads: threads(raw.threads, default.threads, &blame)?,
        max_staleness: given!(period max_staleness, ms(2)..=DAY),
        heartbeat: given!(period heartbeat, ms(1)..=DAY),
        upstream_timeout: given!(period upstream_timeout, ms(2)..=DAY),
        connect_timeout: given!(period connect_timeout, ms(1)..=DAY),
        reconnect_max: given!(period reconnect_max, ms(1)..=DAY),
        max_memory,
        max_entry: given!(bytes max_entry, 1),
        script_keys: raw.script_keys.map_or(default.script_keys, |given| given.value),
        maxclients: given!(count maxclients),
        timeout: given!(period timeout, Duration::ZERO..=365 * DAY),
        proto_max_bulk_len: given!(bytes proto_max_bulk_len, 1024),
        client_query_buffer_limit: given!(bytes client_query_buffer_limit, 1024),
        client_output_buffer_limit: given!(bytes client_output_buffer_limit, 1024),
        client_output_buffer_limit_pubsub: given!(bytes client_output_buffer_limit_pubsub, 1024),
        clients_together: given!(count clients_together),
        maxmemory_clients: blame.bytes(
            "maxmemory_clients",
            raw.maxmemory_clients.map(|given| Given { value: given.value.in_bytes(max_memory), at: given.at }),
            default.maxmemory_clients,
            0,
        )?,
        max_dedicated: given!(count max_dedicated),
        dedicated_idle_timeout: given!(period dedicated_idle_timeout, Duration::ZERO..=365 * DAY),
        max_lanes: blame
            .within("max_lanes", raw.max_lanes, Count(default.max_lanes), Count(1)..=Count(default.max_lanes))?
            .0,
        lane_idle_timeout: given!(period lane_idle_timeout, Duration::ZERO..=DAY),
        lane_buffer_limit: given!(bytes lane_buffer_limit, 1024),
        wrong_passwords_per_second: given!(count_or_none wrong_passwords_per_second),
        audit_one_in: given!(count_or_none audit_one_in),
        audit_per_second: given!(count_or_none audit_per_second),
        touch_per_second: given!(count_or_none touch_per_second),
        shutdown_grace: given!(period shutdown_grace, Duration::ZERO..=DAY),
        log: raw.log.map_or(default.log, |given| given.value.0),
        log_buffer_limit: given!(bytes log_buffer_limit, 1024),
    };
    together(&config, &places, &blame)?;
    Ok(config)
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn threads(given: Option<Given<Threads>>, auto: usize, blame: &Blame<'_>) -> Result<usize, ConfigError> {
    let given = match given {
        Some(Given { value: Threads::Exactly(value), at }) => Some(Given { value, at }),
        Some(Given { value: Threads::Auto, .. }) | None => None,
    };
    Ok(blame.within("threads", given, Count(auto), Count(1)..=Count(256))?.0)
}

fn listeners(
    given: Option<Vec<RawListen>>,
    default: Vec<Listen>,
    level: Level,
    perm: Option<Given<Permissions>>,
    blame: &Blame<'_>,
) -> Result<Vec<Listen>, ConfigError> {
    let perm = perm.and_then(|given| given.value.0);
    let Some(given) = given else {
        return Ok(default.into_iter().map(|listen| Listen { consistency: level, ..listen }).collect());
    };
    let mut ready: Vec<Listen> = Vec::with_capacity(given.len());
    for raw in given {
        let tls = listen_tls(&raw, blame)?;
        let RawListen { address, consistency, unixsocketperm: own_perm, .. } = raw;
        let is_unix = matches!(address.value, Address::Unix(_));
        if let Some(given) = own_perm.as_ref().filter(|_| !is_unix) {
            return Err(blame.error("unixsocketperm", Some(given.at), "is for unix sockets; a port has no file"));
        }
        let unixsocketperm = own_perm.map_or(perm, |given| given.value.0).filter(|_| is_unix);
        // port 0 is a port of the kernel's choice, so it may stand there twice
        let taken = ready.iter().any(|other| other.address == address.value);
        if taken && !matches!(address.value, Address::Tcp(_, 0)) {
            return Err(blame.error("listen", Some(address.at), &format!("{} stands there twice", address.value)));
        }
        let consistency = consistency.map_or(level, |given| given.value);
        ready.push(Listen { address: address.value, consistency, tls, unixsocketperm });
    }
    if ready.is_empty() {
        return Err(blame.error(
            "listen",
            None,
            "is empty; write [[listen]], and address = \"127.0.0.1:6380\" below it",
        ));
    }
    Ok(ready)
}

/// The value, if one was given and it is not empty.
fn filled(given: &Option<Given<Plain>>) -> Option<&Given<Plain>> {
    given.as_ref().filter(|given| !given.value.0.is_empty())
}

fn path(given: Option<&Given<Plain>>) -> Option<PathBuf> {
    given.map(|given| PathBuf::from(&given.value.0))
}

/// The TLS of one listener: a certificate asks for it, and without one nothing else of it may be set.
fn listen_tls(raw: &RawListen, blame: &Blame<'_>) -> Result<Option<ListenTls>, ConfigError> {
    let (cert, key, ca) = (filled(&raw.tls_cert), filled(&raw.tls_key), filled(&raw.tls_ca));
    let auth = raw.tls_auth_clients.as_ref();
    let (cert, key) = match (cert, key) {
        (Some(cert), Some(key)) => (cert, key),
        (Some(cert), None) => return Err(blame.error("tls_cert", Some(cert.at), "needs tls_key, its private key")),
        (None, Some(key)) => return Err(blame.error("tls_key", Some(key.at), "needs tls_cert, its certificate")),
        (None, None) => {
            let lost = ca.map(|ca| ("tls_ca", ca.at)).or(auth.map(|auth| ("tls_auth_clients", auth.at)));
            return match lost {
                Some((name, at)) => Err(blame.error(
                    name,
                    Some(at),
                    "needs tls_cert and tls_key: without them the listener speaks in the clear",
                )),
                None => Ok(None),
            };
        }
    };
    if matches!(raw.address.value, Address::Unix(_)) {
        return Err(blame.error(
            "tls_cert",
            Some(cert.at),
            "TLS is for TCP, not for unix sockets; give the listener host:port",
        ));
    }
    let auth_clients = match (auth, ca) {
        (Some(auth), None) if auth.value != AuthClients::No => {
            return Err(blame.error(
                "tls_auth_clients",
                Some(auth.at),
                "needs tls_ca, who signs the clients' certificates",
            ));
        }
        (Some(auth), _) => auth.value,
        // as with Redis: who names a CA means it
        (None, Some(_)) => AuthClients::Yes,
        (None, None) => AuthClients::No,
    };
    let file = |given: &Given<Plain>| PathBuf::from(&given.value.0);
    Ok(Some(ListenTls { cert: file(cert), key: file(key), ca: ca.map(file), auth_clients }))
}

/// The upstream and its TLS: `rediss://` asks for it, and without that nothing of it may be set.
fn upstream(raw: &RawConfig, blame: &Blame<'_>) -> Result<Option<Upstream>, ConfigError> {
    let upstream = match raw.upstream.as_ref().map(|given| &given.value) {
        Some(Origin::At(upstream)) => Some(upstream.clone()),
        Some(Origin::Embedded) | None => None,
    };
    let files = [&raw.upstream_tls_ca, &raw.upstream_tls_cert, &raw.upstream_tls_key, &raw.upstream_tls_server_name];
    let [ca, cert, key, server_name] = files.map(filled);
    let insecure = raw.upstream_tls_insecure.as_ref().filter(|given| given.value == Flag(true));
    match upstream {
        Some(upstream) if upstream.tls.is_some() => {
            let cert_and_key = match (cert, key) {
                (Some(cert), None) => {
                    return Err(blame.error(
                        "upstream_tls_cert",
                        Some(cert.at),
                        "needs upstream_tls_key, its private key",
                    ));
                }
                (None, Some(key)) => {
                    return Err(blame.error(
                        "upstream_tls_key",
                        Some(key.at),
                        "needs upstream_tls_cert, its certificate",
                    ));
                }
                pair => path(pair.0).zip(path(pair.1)),
            };
            let server_name = server_name.map(|given| given.value.0.clone());
            let tls = UpstreamTls { ca: path(ca), cert_and_key, server_name, insecure: insecure.is_some() };
            Ok(Some(Upstream { tls: Some(tls), ..upstream }))
        }
        upstream => {
            let names = ["upstream_tls_ca", "upstream_tls_cert", "upstream_tls_key", "upstream_tls_server_name"];
            let set =
                names.into_iter().zip([ca, cert, key, server_name]).find_map(|(name, given)| Some((name, given?.at)));
            match set.or(insecure.map(|given| ("upstream_tls_insecure", given.at))) {
                Some((name, at)) => Err(blame.error(
                    name,
                    Some(at),
                    "is of no use without TLS; write upstream = \"rediss://host:port\"",
                )),
                None => Ok(upstream),
            }
        }
    }
}

/// The server refuses prefixes of which one begins with another.
fn prefixes(given: Option<Spanned<Vec<String>>>, blame: &Blame<'_>) -> Result<Vec<String>, ConfigError> {
    let Some(given) = given else { return Ok(Vec::new()) };
    let at = Some(At::Byte(given.span().start));
    let prefixes = given.into_inner();
    for (i, prefix) in prefixes.iter().enumerate() {
        if prefix.is_empty() {
            return Err(blame.error("broadcast_prefixes", at, "an empty prefix is every key; leave the list empty"));
        }
        if let Some(other) = prefixes.iter().enumerate().find(|(j, p)| *j != i && p.starts_with(prefix.as_str())) {
            let problem = format!("\"{}\" begins with \"{prefix}\", which covers it; leave it out", other.1);
            return Err(blame.error("broadcast_prefixes", at, &problem));
        }
    }
    Ok(prefixes)
}

/// Where the settings that must fit each other were given.
struct GivenAt {
    invalidation: Option<At>,
    heartbeat: Option<At>,
    max_staleness: Option<At>,
    upstream_timeout: Option<At>,
    max_entry: Option<At>,
    max_memory: Option<At>,
    proto_max_bulk_len: Option<At>,
    client_query_buffer_limit: Option<At>,
}

impl GivenAt {
    fn of(raw: &RawConfig) -> Self {
        fn at<T>(given: &Option<Given<T>>) -> Option<At> {
            given.as_ref().map(|given| given.at)
        }
        GivenAt {
            invalidation: at(&raw.invalidation),
            heartbeat: at(&raw.heartbeat),
            max_staleness: at(&raw.max_staleness),
            upstream_timeout: at(&raw.upstream_timeout),
            max_entry: at(&raw.max_entry),
            max_memory: at(&raw.max_memory),
            proto_max_bulk_len: at(&raw.proto_max_bulk_len),
            client_query_buffer_limit: at(&raw.client_query_buffer_limit),
        }
    }
}

/// The limits between two settings.
fn together(config: &Config, places: &GivenAt, blame: &Blame<'_>) -> Result<(), ConfigError> {
    let (beat, stale, dead) = (Period(config.heartbeat), Period(config.max_staleness), Period(config.upstream_timeout));
    if beat >= stale {
        let problem = format!("{beat} must be shorter than max_staleness ({stale}), or no hit is ever fresh enough");
        return Err(blame.either("heartbeat", places.heartbeat, places.max_staleness, &problem));
    }
    if beat >= dead {
        let problem = format!("{beat} must be shorter than upstream_timeout ({dead}), or every link is taken for dead");
        return Err(blame.either("heartbeat", places.heartbeat, places.upstream_timeout, &problem));
    }
    if config.invalidation == Invalidation::Broadcast && 2 * config.heartbeat >= config.max_staleness {
        let problem = format!("{beat} must be shorter than half of max_staleness ({stale}): broadcast needs two PINGs");
        return Err(blame.either("heartbeat", places.heartbeat, places.max_staleness, &problem));
    }
    if config.invalidation == Invalidation::Keyspace && config.max_ttl.is_zero() {
        let problem = "\"keyspace\" misses FLUSHALL, SWAPDB and more: say with max_ttl how long a reply may be kept";
        return Err(blame.error("invalidation", places.invalidation, problem));
    }
    if !config.broadcast_prefixes.is_empty() && config.invalidation != Invalidation::Broadcast {
        return Err(blame.error("broadcast_prefixes", None, "needs invalidation = \"broadcast\""));
    }
    let (entry, memory) = (Size(config.max_entry as u64), Size(config.max_memory));
    if entry > memory {
        let problem = format!("{entry} is more than max_memory ({memory}); lower it or raise max_memory");
        return Err(blame.either("max_entry", places.max_entry, places.max_memory, &problem));
    }
    let (bulk, query) = (Size(config.proto_max_bulk_len as u64), Size(config.client_query_buffer_limit as u64));
    if bulk > query {
        let problem = format!(
            "{bulk} is more than client_query_buffer_limit ({query}), so that no such argument could arrive; lower it \
             or raise client_query_buffer_limit"
        );
        let (bulk, query) = (places.proto_max_bulk_len, places.client_query_buffer_limit);
        return Err(blame.either("proto_max_bulk_len", bulk, query, &problem));
    }
    Ok(())
}

/// Names the place of a mistake.
struct Blame<'a> {
    file: Option<Source<'a>>,
}

impl Blame<'_> {
    fn error(&self, key: &str, at: Option<At>, problem: &str) -> ConfigError {
        match (at, self.file) {
            (Some(At::Byte(byte)), Some(file)) => file.error(byte, &format!("{key}: {problem}")),
            (Some(At::Flag), _) => {
                ConfigError { origin: format!("--{}", key.replace('_', "-")), line: None, problem: problem.into() }
            }
            (_, file) => {
                let origin = file.map_or("config", |file| file.filename).into();
                ConfigError { origin, line: None, problem: format!("{key}: {problem}") }
            }
        }
    }

    /// Blames one of two settings that do not fit: the one that was given, or the first if both were.
    fn either(&self, key: &str, first: Option<At>, second: Option<At>, problem: &str) -> ConfigError {
        match (first, second) {
            // the flag's name must be its own key's, so a flag of the second is told without a line
            (None, Some(At::Flag)) => self.error(key, None, problem),
            (first, second) => self.error(key, first.or(second), problem),
        }
    }

    fn within<T: Copy + PartialOrd + Display>(
        &self,
        key: &str,
        given: Option<Given<T>>,
        default: T,
        allowed: RangeInclusive<T>,
    ) -> Result<T, ConfigError> {
        let Some(Given { value, at }) = given else { return Ok(default) };
        if allowed.contains(&value) {
            return Ok(value);
        }
        let (least, most) = allowed.into_inner();
        Err(self.error(key, Some(at), &format!("{value} is out of range; write {least} to {most}")))
    }

    fn period(
        &self,
        key: &str,
        given: Option<Given<Period>>,
        default: Duration,
        allowed: RangeInclusive<Duration>,
    ) -> Result<Duration, ConfigError> {
        let (least, most) = allowed.into_inner();
        Ok(self.within(key, given, Period(default), Period(least)..=Period(most))?.0)
    }

    fn bytes(&self, key: &str, given: Option<Given<Size>>, default: usize, least: u64) -> Result<usize, ConfigError> {
        let size = self.within(key, given, Size(default as u64), Size(least)..=Size(HUGE))?;
        usize::try_from(size.0).map_err(|_| self.error(key, None, "is more than this machine can address"))
    }

    /// A count that may be 0, which turns the thing off.
    fn count_or_none(&self, key: &str, given: Option<Given<Count>>, default: usize) -> Result<usize, ConfigError> {
        Ok(self.within(key, given, Count(default), Count(0)..=Count(1_000_000_000))?.0)
    }

    fn count(&self, key: &str, given: Option<Given<Count>>, default: usize) -> Result<usize, ConfigError> {
        Ok(self.within(key, given, Count(default), Count(1)..=Count(1_000_000))?.0)
    }
}
