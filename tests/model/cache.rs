//! The model's cache: what `src/cache.rs` and `src/cache/entry.rs` do, as plain values. `conformance.rs` holds it to the
//! real one.

use crate::world::{Key, Pos, Time, Variant};

/// One cached reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub value: Pos,
    pub lane: u8,
    pub stamp: u8,
    pub epoch: u8,
    pub stored: Time,
    pub floor: Time,
}

/// All replies of one key. `many`: the second representation of `entry.rs`, which never goes back to the first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Entry {
    pub nodes: Vec<(Variant, Node)>,
    pub many: bool,
    pub latest: Time,
    pub latest_is: Option<Variant>,
}

impl Entry {
    /// The reply, and the time as of which it must be fresh.
    pub fn find(&self, variant: Variant) -> Option<(Node, Time)> {
        let node = self.nodes.iter().find(|(v, _)| *v == variant)?.1;
        let latest = if self.many && self.latest_is != Some(variant) { self.latest } else { 0 };
        Some((node, latest.max(node.floor)))
    }

    pub fn observe(&mut self, t: Time) {
        if self.many {
            self.latest = self.latest.max(t);
            self.latest_is = None;
        } else {
            self.nodes.iter_mut().for_each(|(_, n)| n.floor = n.floor.max(t));
        }
    }

    pub fn insert(&mut self, variant: Variant, mut node: Node, sent: Time) {
        if self.nodes.is_empty() {
            *self = Entry { nodes: vec![(variant, node)], ..Entry::default() };
            return;
        }
        if !self.many {
            let (v, old) = self.nodes[0];
            if v == variant {
                node.floor = node.floor.max(old.floor);
                self.nodes[0].1 = node;
                return;
            }
            self.many = true;
            self.latest = old.stored.max(old.floor);
            self.latest_is = None;
        }
        if self.latest >= sent {
            node.floor = node.floor.max(self.latest);
        }
        self.latest = self.latest.max(node.stored);
        self.latest_is = Some(variant);
        self.nodes.retain(|(v, _)| *v != variant);
        self.nodes.push((variant, node));
        self.nodes.sort_by_key(|(v, _)| *v);
    }

    /// True if nothing is left.
    pub fn remove(&mut self, variant: Variant) -> bool {
        self.nodes.retain(|(v, _)| *v != variant);
        if self.latest_is == Some(variant) {
            self.latest_is = None;
        }
        if self.nodes.is_empty() {
            *self = Entry::default();
        }
        self.nodes.is_empty()
    }
}

/// The right to store a reply. The real one compares revisions; here whoever raises the revision clears `valid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    pub key: Key,
    pub variant: Variant,
    pub epoch: u8,
    pub valid: bool,
}
