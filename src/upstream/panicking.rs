//! A panic in a connection's task, or in one beside it, is treated as the loss of the connection (see [`crate::panics`]).

use std::future::Future;
use std::io;
use std::rc::Rc;

use super::connection::{self, Around, Connection, Outcome};
use crate::cache::FlushCause;
use crate::node::handshake::Opened;
use crate::panics;

/// Runs the connection until it is closed or given up, through panics; `already`: it is open.
pub(super) async fn run(connection: Rc<Connection>, around: Around, mut already: Option<Opened>) {
    while panics::caught(connection::run(connection.clone(), &around, already.take())).await.is_err() {
        connection.node().coherence.flush(FlushCause::Panic);
        if connection.broke(&why()) == Outcome::End {
            return;
        }
    }
}

/// Has `work` done beside the connection's own task.
pub(super) fn beside(connection: &Rc<Connection>, work: impl Future<Output = ()> + 'static) {
    let connection = connection.clone();
    tokio::task::spawn_local(async move {
        if panics::caught(work).await.is_err() {
            connection.node().coherence.flush(FlushCause::Panic);
            connection.break_with(why());
        }
    });
}

fn why() -> io::Error {
    io::Error::other("a task of the proxy's has panicked")
}
