//! Listeners, threads, limits, wiring, drain. No RESP, no command names.
//!
//! The main thread accepts and deals connections to the workers, which own them for life; the link and the sweep have
//! threads of their own, so that a busy worker delays neither invalidations nor the freshness clock.

use std::future::{Future, poll_fn};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;
use tokio_rustls::rustls::ServerConfig;

use crate::clients::Client;
use crate::config::{Address, Config, Level};
use crate::error::Error;
use crate::memory;
use crate::session;
use crate::shared::Shared;
use crate::time::Time;
use crate::tls;
use crate::transport::Stream;
use crate::upstream::{self, Pool, link};

/// Connections dealt to a worker that it has not taken yet.
const DEALT: usize = 1024;
/// How often it is looked whether a flush or a lost lane has left dead entries, and free memory is given back.
const SWEEP: Duration = Duration::from_secs(1);
/// How many of these looks pass before expired entries are swept too.
const SWEEPS_UNTIL_EXPIRED: u32 = 30;
/// Longest pause after a failed accept (out of file descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How often failed TLS handshakes are worth a warning.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// A connection on its way to its worker. The sockets are still the kernel's: each runtime registers its own.
struct Dealt {
    socket: Socket,
    client: Arc<Client>,
    door: Arc<Door>,
    seat: Seat,
}

/// Whom connections are dealt to, in the acceptors' eyes.
struct Worker {
    dealer: mpsc::Sender<Dealt>,
    /// Connections that it has or is about to have.
    seats: Arc<AtomicUsize>,
}

/// A connection's place in its worker, from the deal to its end.
struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The worker for the next connection: the first that has fewer than `together`, else the one with the fewest. One thread
/// reads its clients in the order in which they have sent, as the server itself does; two do not.
fn choose(workers: &[Worker], together: usize) -> (&Worker, Seat) {
    let load = |worker: &Worker| match worker.seats.load(Ordering::Relaxed) {
        few if few < together => 0,
        many => many,
    };
    // of equals the first
    let chosen = (0..workers.len()).min_by_key(|&n| load(&workers[n])).unwrap_or(0);
    let worker = &workers[chosen];
    worker.seats.fetch_add(1, Ordering::Relaxed);
    (worker, Seat(worker.seats.clone()))
}

/// What a listener gives to its connections.
struct Door {
    address: Address,
    level: Level,
    tls: Option<Arc<ServerConfig>>,
    failures: Failures,
}

enum Socket {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Socket {
    fn into_stream(self) -> io::Result<Stream> {
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

/// Runs the proxy until `shutdown` resolves, then drains. `config` names the upstream.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let upstream = config.upstream.clone().ok_or_else(|| Error::Embedded("no upstream is named".into()))?;
    if cfg!(feature = "sabotage") {
        tracing::error!("built with `sabotage`: for tests only, answers may be wrong");
    }
    if upstream.tls.as_ref().is_some_and(|tls| tls.insecure) {
        tracing::warn!("upstream_tls_insecure: whoever answers at {upstream} is believed, and gets the passwords");
    }
    let shared = Arc::new(Shared::new(config, upstream)?);
    let (stop, stopping) = watch::channel(false);
    let mut listeners = Vec::new();
    for listen in &shared.config.listen {
        let (address, level, tls) = (listen.address.clone(), listen.consistency, tls::acceptor(listen)?);
        let listener =
            Listener::bind(&address).await.map_err(|source| Error::Bind { address: address.clone(), source })?;
        tracing::info!("listening on {address} ({level}{})", if tls.is_some() { ", TLS" } else { "" });
        listeners.push((listener, Arc::new(Door { address, level, tls, failures: Failures::default() })));
    }
    let control = start_control(&shared, stopping.clone())?;
    let sweeping = Arc::new(AtomicBool::new(true));
    let sweep = start_sweep(&shared, sweeping.clone())?;
    let mut threads = Vec::new();
    let mut workers = Vec::new();
    for n in 0..shared.config.threads {
        let (dealer, dealt) = mpsc::channel(DEALT);
        threads.push(start_worker(n, &shared, dealt, stopping.clone())?);
        workers.push(Worker { dealer, seats: Arc::default() });
    }
    let workers = Arc::new(workers);
    let accepting: Vec<_> = listeners
        .into_iter()
        .map(|(listener, door)| tokio::spawn(accept(listener, door, shared.clone(), workers.clone())))
        .collect();
    shutdown.await;
    tracing::info!(
        "stopping: no new connections, {} clients have {:?} to finish",
        shared.clients.len(),
        shared.config.shutdown_grace
    );
    accepting.iter().for_each(tokio::task::JoinHandle::abort);
    let _ = stop.send(true);
    drain(&shared).await;
    drop(workers);
    sweeping.store(false, Ordering::Release);
    sweep.thread().unpark();
    let join = move || {
        for thread in threads.into_iter().chain([control, sweep]) {
            if thread.join().is_err() {
                tracing::error!("a thread ended by a panic");
            }
        }
    };
    tokio::task::spawn_blocking(join).await.map_err(|e| Error::Io(io::Error::other(e)))
}

/// Waits for the clients to finish what they have begun, then ends them.
async fn drain(shared: &Shared) {
    let deadline = tokio::time::Instant::now() + shared.config.shutdown_grace;
    shared.clients.all().iter().for_each(|c| c.drain());
    while !shared.clients.is_empty() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let left = shared.clients.all();
    if !left.is_empty() {
        tracing::warn!("{} clients did not finish in time and are cut off", left.len());
        left.iter().for_each(|c| c.kill());
    }
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    std::thread::Builder::new().name(name).spawn(work).map_err(Error::Io)
}

fn start_worker(
    n: usize,
    shared: &Arc<Shared>,
    mut dealt: mpsc::Receiver<Dealt>,
    stopping: watch::Receiver<bool>,
) -> Result<JoinHandle<()>, Error> {
    let shared = shared.clone();
    let runtime = runtime().map_err(Error::Io)?;
    spawn(format!("nearside-{n}"), move || {
        let pool = Rc::new(Pool::new(shared.node.clone()));
        let deal = async {
            while let Some(dealt) = dealt.recv().await {
                start_session(&shared, &pool, dealt);
            }
            // The workers' dealers are dropped only once the drain is over.
            drop(stopping);
        };
        runtime.block_on(work(pool.run(), deal));
    })
}

/// A worker's connections to the node, and its sessions, in turns of a [`LocalSet`] each: what the node answers is heard between
/// any 61 sessions. It would else wait behind all that have something to do, as its request has done already.
async fn work(connections: impl Future<Output = ()>, deal: impl Future<Output = ()>) {
    let sessions = LocalSet::new();
    tokio::select! {
        biased;
        () = connections => {}
        () = sessions.run_until(deal) => {}
    }
}

fn start_session(shared: &Arc<Shared>, pool: &Rc<Pool>, dealt: Dealt) {
    let (shared, pool) = (shared.clone(), pool.clone());
    let Dealt { socket, client, door, seat } = dealt;
    let stream = match socket.into_stream() {
        Ok(stream) => stream,
        Err(e) => {
            tracing::debug!("a connection broke before it was served: {e}");
            return shared.clients.leave(&client);
        }
    };
    tokio::task::spawn_local(async move {
        let stream = match &door.tls {
            None => stream,
            Some(tls) => match shake_hands(stream, tls.clone(), &client, shared.config.connect_timeout).await {
                Ok(stream) => stream,
                Err(e) => {
                    shared.clients.handshakes_failed.fetch_add(1, Ordering::Relaxed);
                    door.failures.report(&door.address, &client.addr, &e);
                    return shared.clients.leave(&client);
                }
            },
        };
        session::run(&shared, &pool, stream, client, door.level).await;
        drop(seat);
    });
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

/// Handshakes that came to nothing: each is told to who debugs, and one a minute to everybody.
#[derive(Default)]
struct Failures {
    /// Not told to everybody yet.
    untold: AtomicU64,
    /// When everybody was told last ([`Time`]'s nanoseconds); zero: never.
    told: AtomicU64,
}

impl Failures {
    fn report(&self, door: &Address, peer: &str, why: &io::Error) {
        tracing::debug!("TLS handshake on {door} with {peer} failed: {why}");
        // Who only looks whether the port is open (a load balancer, say) is not worth a warning.
        if why.kind() == io::ErrorKind::UnexpectedEof {
            return;
        }
        let failed = self.untold.fetch_add(1, Ordering::Relaxed) + 1;
        let (now, told) = (Time::now(), self.told.load(Ordering::Relaxed));
        let silent = told == 0 || now.since(Time(told)) >= TOLD_EVERY;
        if silent && self.told.compare_exchange(told, now.0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.untold.fetch_sub(failed, Ordering::Relaxed);
            tracing::warn!("TLS handshakes on {door} failed ({failed} so far untold), the last with {peer}: {why}");
        }
    }
}

/// The link has a thread of its own.
fn start_control(shared: &Arc<Shared>, mut stopping: watch::Receiver<bool>) -> Result<JoinHandle<()>, Error> {
    let node = shared.node.clone();
    let runtime = runtime().map_err(Error::Io)?;
    spawn("nearside-link".into(), move || {
        runtime.block_on(async move {
            tokio::select! {
                () = link::run(node.clone()) => {}
                () = upstream::watch::run(node) => {}
                _ = stopping.changed() => {}
            }
        });
    })
}

fn start_sweep(shared: &Arc<Shared>, running: Arc<AtomicBool>) -> Result<JoinHandle<()>, Error> {
    let shared = shared.clone();
    spawn("nearside-sweep".into(), move || {
        let cache = &shared.cache;
        let (mut swept, mut looks) = (cache.deaths(), 0);
        while running.load(Ordering::Acquire) {
            std::thread::park_timeout(SWEEP);
            memory::give_back();
            looks += 1;
            let deaths = cache.deaths();
            if deaths != swept || looks >= SWEEPS_UNTIL_EXPIRED {
                cache.sweep(Time::now());
                (swept, looks) = (deaths, 0);
            }
        }
    })
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn bind(address: &Address) -> io::Result<Listener> {
        match address {
            Address::Tcp(host, port) => TcpListener::bind((host.as_str(), *port)).await.map(Listener::Tcp),
            Address::Unix(path) => {
                // A socket left behind by a process that is gone; one that still answers is not ours to take.
                let left_behind = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_socket())
                    && std::os::unix::net::UnixStream::connect(path).is_err();
                if left_behind {
                    std::fs::remove_file(path)?;
                }
                UnixListener::bind(path).map(Listener::Unix)
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

async fn accept(listener: Listener, door: Arc<Door>, shared: Arc<Shared>, workers: Arc<Vec<Worker>>) {
    let mut pause = Duration::from_millis(1);
    loop {
        match listener.accept().await {
            Ok(socket) => {
                pause = Duration::from_millis(1);
                let (addr, laddr) = socket.names();
                let Some(client) = shared.clients.enter(shared.config.maxclients, addr, laddr) else {
                    // To a TLS client it would be gibberish: its connection just ends, as with Redis.
                    if door.tls.is_none() {
                        socket.refuse("-ERR max number of clients reached\r\n");
                    }
                    continue;
                };
                let (worker, seat) = choose(&workers, shared.config.clients_together);
                if let Err(e) = worker.dealer.send(Dealt { socket, client, door: door.clone(), seat }).await {
                    shared.clients.leave(&e.0.client);
                }
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use std::cell::Cell;
    use std::task::Context;

    use super::*;

    #[tokio::test]
    async fn a_connection_and_some_sessions_are_polled_in_turns_however_many_are_ready() {
        let (heard, polled) = (&*Box::leak(Box::new(Cell::new(0))), &*Box::leak(Box::new(Cell::new(0))));
        let busy = |turns: &'static Cell<u32>, again: fn(&mut Context<'_>)| {
            poll_fn(move |cx| {
                turns.set(turns.get() + 1);
                again(cx);
                Poll::<()>::Pending
            })
        };
        let lanes = LocalSet::new();
        lanes.spawn_local(busy(heard, upstream::wake_after_sessions));
        let deal = async {
            for _ in 0..1000 {
                tokio::task::spawn_local(busy(polled, |cx| cx.waker().wake_by_ref()));
            }
            while polled.get() < 10_000 {
                tokio::task::yield_now().await;
            }
        };
        work(lanes.run_until(std::future::pending()), deal).await;
        let due = polled.get() / 61;
        assert!(
            (due..due + 2).contains(&heard.get()),
            "{} turns of the lane, {} of sessions",
            heard.get(),
            polled.get()
        );
    }

    #[test]
    fn a_few_clients_share_a_thread_and_many_spread_evenly() {
        let workers: Vec<Worker> =
            (0..3).map(|_| Worker { dealer: mpsc::channel(1).0, seats: Arc::default() }).collect();
        let seated = || workers.iter().map(|w| w.seats.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let mut seats: Vec<Seat> = (0..4).map(|_| choose(&workers, 4).1).collect();
        assert_eq!(seated(), [4, 0, 0]);
        seats.extend((0..8).map(|_| choose(&workers, 4).1));
        assert_eq!(seated(), [4, 4, 4]);
        seats.extend((0..6).map(|_| choose(&workers, 4).1));
        assert_eq!(seated(), [6, 6, 6]);
        // who leaves makes room for the next
        drop(seats.drain(..3));
        assert_eq!(seated(), [3, 6, 6]);
        seats.push(choose(&workers, 4).1);
        assert_eq!(seated(), [4, 6, 6]);
        seats.push(choose(&workers, 4).1);
        assert_eq!(seated(), [5, 6, 6]);
    }
}
