//! STUB: waits for the shutdown.

use crate::{config::Config, error::Error};

/// Serves until `shutdown` is ready.
pub async fn run(_config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    shutdown.await;
    Ok(())
}
