//! Servers that a test starts: up before it goes on, and gone with it.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by stopping")]

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A child that ends with its owner.
pub struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a program and waits until it listens on `port`.
pub fn start(program: &str, args: &[&str], port: u16) -> Process {
    let child = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let process = Process(child);
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "{program} does not listen on {port}");
        std::thread::sleep(Duration::from_millis(10));
    }
    process
}
