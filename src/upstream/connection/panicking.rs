//! A panic in a task beside a connection's own is treated as the loss of the connection (see [`crate::panics`]).

use std::future::Future;
use std::io;
use std::rc::Rc;

use super::Connection;
use crate::cache::FlushCause;
use crate::panics;

/// Has `work` done beside the connection's own task.
pub(super) fn beside(connection: &Rc<Connection>, work: impl Future<Output = ()> + 'static) {
    let connection = connection.clone();
    tokio::task::spawn_local(async move {
        if panics::caught(work).await.is_err() {
            connection.node.coherence.flush(FlushCause::Panic);
            connection.break_with(why());
        }
    });
}

/// The reason that such a connection is lost for.
pub(super) fn why() -> io::Error {
    io::Error::other("a task of the proxy's has panicked")
}
