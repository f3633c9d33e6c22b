//! The process's own limits: as many file descriptors as the settings promise.

use crate::config::{Config, ConfigError};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

/// Descriptors of the process itself: standard streams, epoll, link, log, the embedded server.
const RESERVED: usize = 64;
/// Lanes of one thread: one for each (user, protocol, database) in use, with room to spare.
const LANES_PER_THREAD: usize = 16;

/// Raises the limit of open files to what `config` needs. Where the system allows fewer, `maxclients` is lowered as Redis
/// lowers it, and the log says what to do.
pub fn reserve_files(config: &mut Config) -> Result<(), ConfigError> {
    let beside_clients = beside_clients(config);
    let needed = (config.maxclients + beside_clients) as u64;
    let available = raise(getrlimit(Resource::Nofile), needed);
    if available >= needed {
        debug!(needed, available, "file descriptors suffice");
        return Ok(());
    }
    let left = usize::try_from(available).unwrap_or(usize::MAX).saturating_sub(beside_clients);
    if left == 0 {
        return Err(ConfigError {
            origin: "open files".into(),
            line: None,
            problem: format!(
                "the system allows {available}, which is too few even without clients; allow {needed} (ulimit -n, or \
                 LimitNOFILE= of the systemd unit), or lower max_dedicated ({})",
                config.max_dedicated
            ),
        });
    }
    warn!(
        "the system allows {available} open files, maxclients = {} needs {needed}: serving {left} clients at most; allow \
         more (ulimit -n, or LimitNOFILE= of the systemd unit), or lower maxclients or max_dedicated",
        config.maxclients
    );
    config.maxclients = left;
    Ok(())
}

fn beside_clients(config: &Config) -> usize {
    config.max_dedicated + config.threads * LANES_PER_THREAD + config.listen.len() + RESERVED
}

/// The soft limit after trying to make it `needed`; above the hard limit this takes privilege.
fn raise(limit: Rlimit, needed: u64) -> u64 {
    let soft = limit.current.unwrap_or(u64::MAX);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    if soft >= needed {
        return soft;
    }
    let raised = |current: u64, maximum: Option<u64>| {
        setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum }).is_ok().then_some(current)
    };
    let beyond = if needed > hard { raised(needed, Some(needed)) } else { None };
    beyond.or_else(|| raised(needed.min(hard), limit.maximum)).unwrap_or(soft)
}
