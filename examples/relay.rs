//! A network that is further away: passes bytes on unchanged and in order, each `MICROSECONDS` after it came, in both
//! directions. For machines where `tc netem` is not allowed. Threads, because tokio's timer counts in milliseconds.
//!
//! `relay LISTEN UPSTREAM MICROSECONDS`

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Pieces on their way in one direction; beyond that the sender has to wait.
const ON_THE_WAY: usize = 4096;

type Piece = (Instant, Vec<u8>);

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [listen, upstream, delay] = &args[..] else {
        return Err(io::Error::other("usage: relay LISTEN UPSTREAM MICROSECONDS"));
    };
    let delay = Duration::from_micros(delay.parse().map_err(io::Error::other)?);
    for client in TcpListener::bind(listen)?.incoming() {
        let (client, server) = (client?, TcpStream::connect(upstream)?);
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        pipe(client.try_clone()?, server.try_clone()?, delay);
        pipe(server, client, delay);
    }
    Ok(())
}

/// One direction: a thread that reads and stamps, and one that writes when the time has come.
fn pipe(from: TcpStream, to: TcpStream, delay: Duration) {
    let (sender, pieces) = sync_channel(ON_THE_WAY);
    thread::spawn(move || read(from, &sender, delay));
    thread::spawn(move || write(to, &pieces));
}

fn read(mut from: TcpStream, sender: &SyncSender<Piece>, delay: Duration) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if sender.send((Instant::now() + delay, buffer[..n].to_vec())).is_err() {
            return;
        }
    }
}

fn write(mut to: TcpStream, pieces: &Receiver<Piece>) {
    for (due, piece) in pieces {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&piece).is_err() {
            return;
        }
    }
    // The other end may have gone first.
    let _ = to.shutdown(Shutdown::Write);
}
