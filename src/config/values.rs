//! The words and addresses of the settings: from text and back.

use super::{Address, AuthClients, Invalidation, Level, ScriptKeys, Upstream, UpstreamTls};
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use tracing_subscriber::EnvFilter;

/// Longest path of a unix socket (`sun_path` less its NUL).
const UNIX_PATH_MAX: usize = 107;

impl FromStr for Level {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Level::Bounded, Level::Causal, Level::Linearizable]
            .into_iter()
            .find(|level| level.to_string() == text)
            .ok_or_else(|| format!("`{text}` is no level; write \"bounded\", \"causal\" or \"linearizable\""))
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Bounded => "bounded",
            Level::Causal => "causal",
            Level::Linearizable => "linearizable",
        })
    }
}

impl FromStr for ScriptKeys {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "any" => Ok(ScriptKeys::Any),
            "declared" => Ok(ScriptKeys::Declared),
            _ => Err(format!("`{text}` is not allowed; write \"any\" or \"declared\"")),
        }
    }
}

impl FromStr for Invalidation {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Invalidation::Auto),
            "tracked" => Ok(Invalidation::Tracked),
            "broadcast" => Ok(Invalidation::Broadcast),
            "keyspace" => Ok(Invalidation::Keyspace),
            "off" => Ok(Invalidation::Off),
            _ => Err(format!(
                "`{text}` is not allowed; write \"auto\", \"tracked\", \"broadcast\", \"keyspace\" or \"off\""
            )),
        }
    }
}

impl FromStr for AuthClients {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "no" => Ok(AuthClients::No),
            "optional" => Ok(AuthClients::Optional),
            "yes" => Ok(AuthClients::Yes),
            _ => Err(format!("`{text}` is not allowed; write \"yes\", \"optional\" or \"no\"")),
        }
    }
}

/// A text that may be empty, which is as if it were not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plain(pub String);

impl FromStr for Plain {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Plain(text.into()))
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flag(pub bool);

impl FromStr for Flag {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "true" | "yes" => Ok(Flag(true)),
            "false" | "no" => Ok(Flag(false)),
            _ => Err(format!("`{text}` is not allowed; write true or false")),
        }
    }
}

/// The permissions of a file, in octal digits as `chmod` and redis.conf write them; none: what the umask leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Permissions(pub Option<u32>);

impl FromStr for Permissions {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Permissions(None));
        }
        let octal = text.len() <= 4 && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
        match u32::from_str_radix(text, 8) {
            Ok(mode) if octal && (1..=0o777).contains(&mode) => Ok(Permissions(Some(mode))),
            _ => Err(format!("`{text}` are no permissions; write them in octal digits, as \"770\"")),
        }
    }
}

impl FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Address::unix(Path::new(path));
        }
        tcp(text).ok_or_else(|| {
            format!("`{text}` is no address; write \"127.0.0.1:6380\", \"[::1]:6380\" or \"unix:/path/to.sock\"")
        })
    }
}

impl Address {
    /// The address of the unix socket at `path`, if the kernel could take it.
    pub fn unix(path: &Path) -> Result<Self, String> {
        match path.as_os_str().len() {
            0 => Err("the path of the unix socket is missing; write \"unix:/path/to.sock\"".into()),
            1..=UNIX_PATH_MAX => Ok(Address::Unix(path.into())),
            long => {
                Err(format!("the path of the unix socket has {long} bytes; the kernel takes {UNIX_PATH_MAX} at most"))
            }
        }
    }
}

fn tcp(text: &str) -> Option<Address> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']').filter(|v6| v6.parse::<std::net::Ipv6Addr>().is_ok())?,
        None if host.contains(|c: char| c == ':' || c == '/' || c.is_whitespace()) => return None,
        None => host,
    };
    (!host.is_empty()).then_some(Address::Tcp(host.into(), port.parse().ok()?))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp(host, port) => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The setting `upstream`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A private server that lives and dies with the proxy.
    Embedded,
    /// A server that is there already.
    At(Upstream),
}

impl FromStr for Origin {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "embedded" { Ok(Origin::Embedded) } else { text.parse().map(Origin::At) }
    }
}

const URLS: &str = "write \"redis://user:password@host:6379/0\", rediss:// for TLS, or \"unix:///path/to.sock?db=0\" (with &user=…&pass=…)";

/// The text may hold a password: no error repeats it.
impl FromStr for Upstream {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut url = redis::parse_redis_url(text).ok_or_else(|| format!("not the URL of a Redis; {URLS}"))?;
        let is_unix = url.scheme().ends_with("unix");
        let tls = matches!(url.scheme(), "rediss" | "valkeys").then(UpstreamTls::default);
        // TLS is ours to do: the redis crate is built without, and only reads the rest of the URL.
        if tls.is_some() && url.set_scheme("redis").is_err() {
            return Err(format!("not the URL of a Redis; {URLS}"));
        }
        let known = |name: &str| is_unix && matches!(name, "db" | "user" | "pass");
        if url.fragment().is_some() || url.query_pairs().any(|(name, _)| !known(&name)) {
            return Err(format!("the URL says something behind `?` or `#` that nearside does not know; {URLS}"));
        }
        let parsed: redis::ConnectionInfo =
            url.as_str().parse().map_err(|e: redis::RedisError| format!("{}; {URLS}", e.to_string().to_lowercase()))?;
        from_redis(&parsed).map(|upstream| Upstream { tls, ..upstream })
    }
}

fn from_redis(parsed: &redis::ConnectionInfo) -> Result<Upstream, String> {
    let address = match parsed.addr() {
        redis::ConnectionAddr::Tcp(_, 0) => return Err("the upstream's port cannot be 0".into()),
        redis::ConnectionAddr::Tcp(host, port) => Address::Tcp(host.clone(), *port),
        redis::ConnectionAddr::Unix(path) => Address::unix(path)?,
        _ => return Err(format!("not supported; {URLS}")),
    };
    let settings = parsed.redis_settings();
    Ok(Upstream {
        address,
        username: settings.username().map(Into::into),
        password: settings.password().map(Into::into),
        db: settings.db().try_into().map_err(|_| format!("the database must be 0 or more; {URLS}"))?,
        tls: None,
    })
}

/// Without user and password.
impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            tcp @ Address::Tcp(..) => {
                write!(f, "redis{}://{tcp}/{}", if self.tls.is_some() { "s" } else { "" }, self.db)
            }
            Address::Unix(path) => write!(f, "unix://{}?db={}", path.display(), self.db),
        }
    }
}

/// A filter that tracing takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Log(pub String);

impl FromStr for Log {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        // tracing reads a lone word that is no level as a target, so that `inof` would silence everything
        let levels = ["off", "error", "warn", "info", "debug", "trace"];
        let lone_word =
            |part: &str| !part.contains(['=', '[']) && !levels.contains(&part.trim().to_lowercase().as_str());
        if text.split(',').any(lone_word) || EnvFilter::try_new(text).is_err() {
            return Err(format!("`{text}` is no filter; write {} or \"nearside=debug,info\"", levels.join(", ")));
        }
        Ok(Log(text.into()))
    }
}
