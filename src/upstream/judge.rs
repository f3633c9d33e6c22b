//! A connection on which the server judges logins whose password was right before: the verdict is the server's each time, and
//! costs a round trip instead of a connection. The connection becomes one user after the other, and nothing else is said on it.
//!
//! A login that is not known yet is judged on a connection of its own, which is then kept for its sessions ([`kept`](super::kept)).
//!
//! Bounds: a thread has one, with one question on it at a time; whoever waits does so within its own limit of time.

use std::io;

use bytes::Bytes;

use crate::node::Node;
use crate::node::wire::Wire;

/// The connection on which known logins are judged.
#[derive(Default)]
pub struct LoginJudge {
    wire: tokio::sync::Mutex<Option<Wire>>,
}

impl LoginJudge {
    /// Puts AUTH, or HELLO with AUTH, to the server.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn ask(&self, node: &Node, question: &[u8]) -> io::Result<Bytes> {
        let mut place = self.wire.lock().await;
        Wire::ask_kept(&mut place, node, question).await
    }
}
