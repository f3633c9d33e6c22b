//! The bare floor of `scripts/bench`: reads, counts requests, writes a constant for each. No map, no protocol; whatever
//! a server costs beyond this is its own.
//!
//! `floor ADDRESS`

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const VALUE: usize = 64;

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:6399".into());
    let listener = TcpListener::bind(address).await?;
    loop {
        let (socket, _) = listener.accept().await?;
        // A client that goes is the end of its task.
        tokio::spawn(serve(socket));
    }
}

async fn serve(mut socket: TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let reply = format!("${VALUE}\r\n{}\r\n", "x".repeat(VALUE)).into_bytes();
    let replies = reply.repeat(256);
    let mut input = vec![0; 16 * 1024];
    loop {
        let n = socket.read(&mut input).await?;
        if n == 0 {
            return Ok(());
        }
        // redis-benchmark's keys and values hold no `*`.
        let mut requests = memchr::memchr_iter(b'*', &input[..n]).count();
        while requests > 0 {
            let now = requests.min(256);
            socket.write_all(&replies[..now * reply.len()]).await?;
            requests -= now;
        }
    }
}
