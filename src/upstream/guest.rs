//! A connection that never logs in: by it the server itself answers clients who have not, in its own words. Which error comes
//! first (an unknown command, a wrong number of arguments, `NOAUTH`, what EXEC makes of it) is the server's business.
//!
//! A thread has one, opened when it is first needed, with one question on it at a time. A server that begins to take strangers
//! at this very moment executes the question: everything cached is then void before the reply is told, since what was done
//! has settled nothing, and the connection is closed with whatever state it has got.
//!
//! Bounds: questions of `LONGEST` bytes and `MOST` arguments, as the server itself has it for clients who have not logged in;
//! `upstream_timeout` for an answer.

use bytes::Bytes;

use crate::command::Request;
use crate::node::Node;
use crate::node::wire::{NOAUTH, Wire};

/// The server closes the connection of a client who has not logged in and says more.
const LONGEST: usize = 16 * 1024;
/// The same for arguments.
const MOST: usize = 10;

/// The connection on which strangers' requests are put to the server.
#[derive(Default)]
pub struct Guest {
    wire: tokio::sync::Mutex<Option<Wire>>,
}

/// The outcome of a question.
pub enum Answer {
    /// The server's refusal.
    Refused(Bytes),
    /// The server takes strangers by now, and has done what was asked. No state of it is left.
    Done(Bytes),
    /// The server has closed the connection without a word.
    Gone,
    /// The server could not be asked: the proxy's own error.
    Failed(Bytes),
}

impl Guest {
    /// Puts a stranger's request to the server.
    pub async fn ask(&self, node: &Node, request: &[u8]) -> Answer {
        let mut place = self.wire.lock().await;
        let asked =
            tokio::time::timeout(node.settings.upstream_timeout, Wire::ask_kept(&mut place, node, request)).await;
        match asked {
            Ok(Ok(reply)) if reply.starts_with(b"-") => Answer::Refused(reply),
            Ok(Ok(reply)) => {
                *place = None;
                node.rights_changed();
                Answer::Done(reply)
            }
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => Answer::Gone,
            Ok(Err(e)) => Answer::Failed(node.error(&format!("cannot be reached: {e}"))),
            Err(_) => Answer::Failed(node.error(&format!("no answer within {:?}", node.settings.upstream_timeout))),
        }
    }
}

/// The error for a request that is longer than the server would hear.
pub fn too_long(request: &Request<'_>) -> Option<Bytes> {
    (request.len() > MOST || request.buf.len() > LONGEST).then(|| Bytes::from_static(NOAUTH))
}
