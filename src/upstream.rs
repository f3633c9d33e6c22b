//! The connections that carry clients' commands to a [`Node`], and what their replies do to the cache. A thread has its own
//! lanes and its own idle dedicated connections; the places for them ([`Capacity`]) are counted over all threads.

pub mod capacity;
pub mod connection;
pub mod dedicated;
pub mod effect;
pub mod fields;
pub mod fill;
pub mod guest;
pub mod judge;
pub mod kept;
pub mod lanes;
pub mod monitor;
pub mod permit;
pub mod refusal;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use tokio::task::LocalSet;

use crate::node::Node;
use crate::node::identity::ConnectionKey;
use crate::topology::Topology;
use capacity::Capacity;
use connection::Connection;
use dedicated::{IDLE, IdleSet};
use lanes::{Cargo, Lanes};

/// The connections of one thread.
pub struct Pool {
    topology: Topology,
    capacity: Arc<Capacity>,
    lanes: Rc<Lanes>,
    idle: Rc<IdleSet>,
    scripts: Rc<Cell<usize>>,
    /// The connection that answers strangers.
    pub guest: guest::Guest,
    /// The connections on which the server judges known logins.
    pub judge: judge::LoginJudge,
    /// The connections' tasks.
    tasks: LocalSet,
}

/// One of the few connections that scripts may have at once, so that many scripts do not mean many connections.
pub struct ScriptTurn(Rc<Cell<usize>>);

impl Drop for ScriptTurn {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Pool {
    /// An empty pool.
    pub fn new(topology: Topology, capacity: Arc<Capacity>) -> Pool {
        Pool {
            lanes: Rc::new(Lanes::new(topology.node().clone(), capacity.clone())),
            idle: IdleSet::new(capacity.clone()),
            topology,
            capacity,
            scripts: Rc::default(),
            guest: guest::Guest::default(),
            judge: judge::LoginJudge::default(),
            tasks: LocalSet::new(),
        }
    }

    /// The node they lead to.
    pub fn node(&self) -> &Arc<Node> {
        self.topology.node()
    }

    /// Runs its connections, for good.
    pub async fn run(&self) {
        let tend = async {
            tokio::join!(self.idle.tend(), self.lanes.tend());
        };
        self.tasks.run_until(tend).await
    }

    fn start_lane(&self, key: &ConnectionKey) -> Rc<Connection> {
        let lane = Connection::lane(self.node().clone(), key.clone());
        let (lanes, idle) = (self.lanes.clone(), self.idle.clone());
        let open = async move |lane: &Connection| {
            let berth = lanes.berth().await?;
            Ok((idle.open(lane).await?, berth))
        };
        self.tasks.spawn_local(connection::run(lane.clone(), open, None));
        lane
    }

    /// The shared connection for this user, protocol and database.
    pub fn lane(&self, key: &ConnectionKey) -> Rc<Connection> {
        self.lanes.get(key, Cargo::Any, || self.start_lane(key))
    }

    /// The one for reads alone.
    pub fn reads(&self, key: &ConnectionKey) -> Rc<Connection> {
        self.lanes.get(key, Cargo::Reads, || self.start_lane(key))
    }

    /// The right to lend a connection to a script; `None`: there are as many as are kept idle, this one shares a lane.
    pub fn turn(&self) -> Option<ScriptTurn> {
        let running = self.scripts.get();
        (running < IDLE).then(|| {
            self.scripts.set(running + 1);
            ScriptTurn(self.scripts.clone())
        })
    }
}
