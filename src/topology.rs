//! The map of servers: which [`Node`] has what a request names. Sessions and connections reach a node by the map alone, and a
//! node knows no other node.
//!
//! A map never changes: a server that comes or goes makes a new one. Today there is one server, and with it one map for as long
//! as the process lives. A lane belongs to a node and an entry to the lane that filled it ([`crate::clock::LaneStamp`]), so that
//! an entry's node costs it no byte.

use std::sync::Arc;

use crate::node::Node;

/// Servers and what each of them has.
#[derive(Clone)]
pub enum Topology {
    /// One server has every key.
    Standalone(Arc<Node>),
}

impl Topology {
    /// The node that has every key, and answers what names none.
    pub fn node(&self) -> &Arc<Node> {
        let Topology::Standalone(node) = self;
        node
    }
}
