//! The state that all threads share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::audit::Audit;
use crate::cache::Cache;
use crate::clients::{Client, Clients, Views};
use crate::coherence::Coherence;
use crate::config::{Config, ConfigError, Upstream};
use crate::node::Node;
use crate::node::identity::ConnectionKey;
use crate::node::login::Login;
use crate::node::settings::Settings;
use crate::time::Time;
use crate::topology::Topology;
use crate::transport::Endpoint;
use crate::upstream::capacity::Capacity;

/// No user of the server has this name: names hold no null.
const NO_USER: &[u8] = b"\0";

/// A client's place among the connected. Dropping it, which is to come after its connection is closed, gives the place back,
/// however the client's task has ended.
pub struct Presence {
    shared: Arc<Shared>,
    /// The client.
    pub client: Arc<Client>,
}

impl Presence {
    /// Takes a place, unless there are `maxclients` already.
    pub fn enter(shared: &Arc<Shared>, addr: String, laddr: String) -> Option<Presence> {
        let client = shared.clients.enter(shared.config.maxclients, addr, laddr)?;
        Some(Presence { shared: shared.clone(), client })
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.shared.clients.leave(&self.client);
    }
}

/// One process's state.
pub struct Shared {
    /// The settings.
    pub config: Config,
    /// The upstream's address, and the identity of sessions until they say AUTH.
    pub upstream: Upstream,
    /// The servers.
    pub topology: Topology,
    /// Places for connections to them.
    pub capacity: Arc<Capacity>,
    /// The cache.
    pub cache: Arc<Cache>,
    /// Whether hits are true.
    pub audit: Audit,
    /// The connected clients.
    pub clients: Arc<Clients>,
    /// Numbers of (user, database, protocol).
    pub views: Views,
    /// When the process began.
    pub started: Time,
    /// Commands dealt with.
    pub commands: AtomicU64,
    /// Clients closed because they did not read their replies.
    pub slow_readers: AtomicU64,
}

impl Shared {
    /// Puts cache, coherence and node together. Fails if the upstream's certificates cannot be used.
    pub fn new(config: Config, upstream: Upstream) -> Result<Shared, ConfigError> {
        let address = Endpoint::of(&upstream)?;
        Ok(Shared::at(address, config, upstream))
    }

    /// The same, with the upstream at this address, whatever it says itself.
    pub fn at(address: Endpoint, config: Config, upstream: Upstream) -> Shared {
        let cache = Arc::new(Cache::new(config.max_memory, config.max_entry));
        let coherence = Coherence::new(cache.clone(), config.max_staleness);
        let settings = Arc::new(Settings::new(&config));
        let node = Arc::new(Node::new(settings, &upstream, address, coherence));
        Shared {
            capacity: Arc::new(Capacity::new(&config)),
            audit: Audit::new(config.audit_one_in, config.audit_per_second),
            config,
            upstream,
            cache,
            clients: node.clients.clone(),
            topology: Topology::Standalone(node),
            views: Views::default(),
            started: Time::now(),
            commands: AtomicU64::new(0),
            slow_readers: AtomicU64::new(0),
        }
    }

    /// The node that has every key, and answers what names none.
    pub fn node(&self) -> &Arc<Node> {
        self.topology.node()
    }

    /// The key of a session that begins as this login.
    pub fn first_key(&self, login: &Arc<Login>) -> ConnectionKey {
        ConnectionKey { login: login.clone(), db: self.upstream.db, ..self.node().own.clone() }
    }

    /// The number of the view that such a connection has. Strangers have one that no user has, so that nothing is ever
    /// cached in it.
    pub fn view(&self, key: &ConnectionKey) -> u32 {
        let user = if key.login.is_stranger() { NO_USER } else { key.user() };
        self.views.view_number(user, key.db, key.resp3)
    }

    /// Adds what one session counted since it last did.
    pub fn count(&self, commands: u64, hits: u64) {
        self.commands.fetch_add(commands, Ordering::Relaxed);
        self.cache.stats.hits.fetch_add(hits, Ordering::Relaxed);
    }
}
