//! A network that is further away: passes bytes on unchanged and in order, each `MICROSECONDS` after it came, in both
//! directions. For machines where `tc netem` is not allowed.
//!
//! `relay LISTEN UPSTREAM MICROSECONDS`

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Pieces on their way in one direction; beyond that the sender has to wait.
const ON_THE_WAY: usize = 4096;
/// tokio's timer counts in milliseconds; what is left of a delay is slept by the thread, which has nothing else to do.
const FINE: Duration = Duration::from_millis(2);

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [listen, upstream, delay] = &args[..] else {
        return Err(io::Error::other("usage: relay LISTEN UPSTREAM MICROSECONDS"));
    };
    let delay = Duration::from_micros(delay.parse().map_err(io::Error::other)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(listen, upstream, delay))
}

async fn run(listen: &str, upstream: &str, delay: Duration) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (client, _) = listener.accept().await?;
        let server = TcpStream::connect(upstream).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        pipe(from_client, to_server, delay);
        pipe(from_server, to_client, delay);
    }
}

/// One direction: a task that reads and stamps, and one that writes when the time has come.
fn pipe(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
    tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(n) = from.read(&mut buffer).await {
            if n == 0 || sender.send((Instant::now() + delay, buffer[..n].to_vec())).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((due, piece)) = pieces.recv().await {
            wait_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    });
}

async fn wait_until(due: Instant) {
    if due > Instant::now() + FINE {
        tokio::time::sleep_until(due - FINE).await;
    }
    while Instant::now() < due {
        tokio::task::yield_now().await;
    }
}
