//! The doors: where clients come in. Each has an address, a level, perhaps TLS or a socket file, and a task that accepts.

use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::rustls::ServerConfig;

use super::{Dealt, Worker, choose};
use crate::clients::Client;
use crate::config::{Address, Level, Listen};
use crate::error::Error;
use crate::sabotage;
use crate::shared::{Presence, Shared};
use crate::time::Time;
use crate::tls;
use crate::transport::Stream;

/// Longest pause after a failed accept (out of file descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How often failed TLS handshakes are worth a warning.
const LOGGED_EVERY: Duration = Duration::from_secs(60);
/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 1024;

/// The part of a listener that its connections get.
pub(super) struct Door {
    address: Address,
    pub(super) level: Level,
    tls: Option<Arc<ServerConfig>>,
    failures: Failures,
}

pub(super) enum Socket {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Socket {
    pub(super) fn into_stream(self) -> io::Result<Stream> {
        match self {
            Socket::Tcp(s) => Stream::tcp(tokio::net::TcpStream::from_std(s)?),
            Socket::Unix(s) => tokio::net::UnixStream::from_std(s).map(Stream::Unix),
        }
    }

    fn names(&self) -> (String, String) {
        match self {
            Socket::Tcp(s) => {
                let name = |a: io::Result<std::net::SocketAddr>| a.map_or_else(|_| "?:0".into(), |a| a.to_string());
                (name(s.peer_addr()), name(s.local_addr()))
            }
            Socket::Unix(s) => {
                let path = s.local_addr().ok().and_then(|a| a.as_pathname().map(|p| p.display().to_string()));
                let path = path.unwrap_or_default();
                (format!("{path}:0"), format!("{path}:0"))
            }
        }
    }

    /// One line, without waiting for the client to take it, and the end.
    fn refuse(self, line: &str) {
        use std::io::Write;
        // Best effort: a client that is not reading loses only the explanation.
        let _ = match self {
            Socket::Tcp(mut s) => s.write(line.as_bytes()),
            Socket::Unix(mut s) => s.write(line.as_bytes()),
        };
    }
}

/// TLS, unless the client is killed or the proxy stops meanwhile.
async fn shake_hands(stream: Stream, tls: Arc<ServerConfig>, client: &Client, limit: Duration) -> io::Result<Stream> {
    let unwanted = poll_fn(|cx| {
        client.wakes(cx.waker());
        if client.killed() || client.draining() { Poll::Ready(()) } else { Poll::Pending }
    });
    tokio::select! {
        biased;
        () = unwanted => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the proxy has ended it")),
        result = stream.accept_tls(tls, limit) => result,
    }
}

impl Door {
    /// Lets a client in, behind its TLS handshake if there is to be one. `None`: it has come to nothing.
    pub(super) async fn enter(&self, stream: Stream, client: &Client, shared: &Shared) -> Option<Stream> {
        let Some(tls) = &self.tls else { return Some(stream) };
        match shake_hands(stream, tls.clone(), client, shared.config.connect_timeout).await {
            Ok(stream) => Some(stream),
            Err(e) => {
                shared.clients.handshakes_failed.fetch_add(1, Ordering::Relaxed);
                self.failures.report(&self.address, &client.addr, &e);
                None
            }
        }
    }
}

/// Handshakes that came to nothing: each is logged at the level `debug`, and one a minute as a warning.
#[derive(Default)]
struct Failures {
    /// Not counted in a warning yet.
    unlogged: AtomicU64,
    /// The time of the last warning ([`Time`]'s nanoseconds); zero: there was none.
    logged: AtomicU64,
}

impl Failures {
    fn report(&self, door: &Address, peer: &str, why: &io::Error) {
        tracing::debug!("TLS handshake on {door} with {peer} failed: {why}");
        // A client that only looks whether the port is open (a load balancer, say) is not worth a warning.
        if why.kind() == io::ErrorKind::UnexpectedEof {
            return;
        }
        let failed = self.unlogged.fetch_add(1, Ordering::Relaxed) + 1;
        let (now, logged) = (Time::now(), self.logged.load(Ordering::Relaxed));
        let silent = logged == 0 || now.since(Time(logged)) >= LOGGED_EVERY;
        if silent && self.logged.compare_exchange(logged, now.0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.unlogged.fetch_sub(failed, Ordering::Relaxed);
            tracing::warn!("TLS handshakes on {door} failed ({failed} so far untold), the last with {peer}: {why}");
        }
    }
}

/// An open door, which [`Open::accept`] serves.
pub(super) struct Open {
    listener: Listener,
    door: Arc<Door>,
}

/// The file of a unix socket, removed when dropped; not if another process has put its own in this place.
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode, by which the file is known again.
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.into(), identity: identity(path)? })
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// While the listener is open nobody takes its path over, so it is to be dropped first: a number of an inode that is free
/// again may be the successor's.
impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity)
            && let Err(e) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("the socket {} is left behind: {e}", self.path.display());
        }
    }
}

impl Open {
    /// Listens there from now on. With the socket's file, if it has one.
    pub(super) async fn bind(listen: &Listen) -> Result<(Open, Option<SocketFile>), Error> {
        let (address, level, tls) = (listen.address.clone(), listen.consistency, tls::acceptor(listen)?);
        let bound = Listener::bind(listen).await.map_err(|source| Error::Bind { address: address.clone(), source });
        let (listener, file) = bound?;
        tracing::info!("listening on {address} ({level}{})", if tls.is_some() { ", TLS" } else { "" });
        Ok((Open { listener, door: Arc::new(Door { address, level, tls, failures: Failures::default() }) }, file))
    }

    /// Accepts and deals, for good.
    pub(super) async fn accept(self, shared: Arc<Shared>, workers: Arc<Vec<Worker>>) {
        let Open { listener, door } = self;
        let mut pause = Duration::from_millis(1);
        loop {
            match listener.accept().await {
                Ok(socket) => {
                    sabotage::panic_at("acceptor");
                    pause = Duration::from_millis(1);
                    let (addr, laddr) = socket.names();
                    let Some(presence) = Presence::enter(&shared, addr, laddr) else {
                        // To a TLS client it would be gibberish: its connection just ends, as with Redis.
                        if door.tls.is_none() {
                            socket.refuse("-ERR max number of clients reached\r\n");
                        }
                        continue;
                    };
                    let (worker, seat) = choose(&workers, shared.config.clients_together);
                    // A worker that takes none is one that ends: the connection is closed.
                    let _ = worker.dealer.send(Dealt { socket, presence, door: door.clone(), seat }).await;
                }
                Err(e) => {
                    tracing::warn!(
                        "cannot accept a connection: {e}; trying again in {pause:?} (raise the limit of open files, or lower maxclients)"
                    );
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(ACCEPT_PAUSE);
                }
            }
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn bind(listen: &Listen) -> io::Result<(Listener, Option<SocketFile>)> {
        match &listen.address {
            Address::Tcp(host, port) => Ok((Listener::Tcp(TcpListener::bind((host.as_str(), *port)).await?), None)),
            Address::Unix(path) => {
                if is_left_behind(path) {
                    std::fs::remove_file(path)?;
                }
                let socket = bind_unix(path, listen.unixsocketperm)?;
                let file = SocketFile::of(path)?;
                Ok((Listener::Unix(UnixListener::from_std(socket)?), Some(file)))
            }
        }
    }

    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Listener::Tcp(l) => l.accept().await.and_then(|(s, _)| s.into_std()).map(Socket::Tcp),
            Listener::Unix(l) => l.accept().await.and_then(|(s, _)| s.into_std()).map(Socket::Unix),
        }
    }
}

/// Whether a socket's process is gone: nobody listens there. One that answers, is busy, or may not be asked is not ours to take.
fn is_left_behind(path: &Path) -> bool {
    let refuses = || {
        let probe = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
        // With a full backlog a connection would else wait until somebody accepts.
        probe.set_nonblocking(true)?;
        probe.connect(&socket2::SockAddr::unix(path)?)
    };
    std::fs::metadata(path).is_ok_and(|m| m.file_type().is_socket())
        && refuses().is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

/// The file never has more permissions than asked for: the kernel makes it with those of the socket, less the umask's.
fn bind_unix(path: &Path, permissions: Option<u32>) -> io::Result<std::os::unix::net::UnixListener> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    let address = socket2::SockAddr::unix(path)?;
    let socket = match permissions {
        None => socket,
        Some(mode) => {
            let file = File::from(OwnedFd::from(socket));
            file.set_permissions(std::fs::Permissions::from_mode(mode))?;
            socket2::Socket::from(OwnedFd::from(file))
        }
    };
    socket.bind(&address)?;
    if let Some(mode) = permissions {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(OwnedFd::from(socket).into())
}
