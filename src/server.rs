//! Listeners, threads, limits, wiring, drain. No RESP, no command names.
//!
//! The main thread accepts and deals connections to the workers, which own them for life; the link and the sweep have
//! threads of their own, so that a busy worker delays neither invalidations nor the freshness clock.

mod door;

use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

use crate::cache::FlushCause;
use crate::config::Config;
use crate::error::Error;
use crate::node;
use crate::panics;
use crate::sabotage;
use crate::session;
use crate::shared::{Presence, Shared};
use crate::time::Time;
use crate::upstream::Pool;
use crate::{clients, memory};
use door::{Door, Open, Socket};

/// Connections dealt to a worker that it has not taken yet.
const DEALT: usize = 1024;
/// How often it is looked whether a flush or a lost lane has left dead entries, and free memory is given back.
const SWEEP: Duration = Duration::from_secs(1);
/// How many of these looks pass before expired entries are swept too.
const SWEEPS_UNTIL_EXPIRED: u32 = 30;

/// A connection on its way to its worker. The sockets are still the kernel's: each runtime registers its own.
struct Dealt {
    socket: Socket,
    presence: Presence,
    door: Arc<Door>,
    seat: WorkerSeat,
}

/// A worker thread, as the accept loops see it.
struct Worker {
    dealer: mpsc::Sender<Dealt>,
    /// Connections that it has or is about to have.
    seats: Arc<AtomicUsize>,
}

/// A connection's place in its worker, from the deal to its end.
struct WorkerSeat(Arc<AtomicUsize>);

impl Drop for WorkerSeat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The worker for the next connection: the first that has fewer than `together`, else the one with the fewest. One thread
/// reads its clients in the order in which they have sent, as the server itself does; two do not.
fn choose(workers: &[Worker], together: usize) -> (&Worker, WorkerSeat) {
    let load = |worker: &Worker| match worker.seats.load(Ordering::Relaxed) {
        few if few < together => 0,
        many => many,
    };
    // of equals the first
    let chosen = (0..workers.len()).min_by_key(|&n| load(&workers[n])).unwrap_or(0);
    let worker = &workers[chosen];
    worker.seats.fetch_add(1, Ordering::Relaxed);
    (worker, WorkerSeat(worker.seats.clone()))
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
    let mut doors = Vec::new();
    let mut files = Vec::new();
    for listen in &shared.config.listen {
        let (door, file) = Open::bind(listen).await?;
        doors.push(door);
        files.extend(file);
    }
    let (stop, stopping) = watch::channel(false);
    let control = start_control(&shared, stopping)?;
    let sweeping = Arc::new(AtomicBool::new(true));
    let sweep = start_sweep(&shared, sweeping.clone())?;
    let mut threads = Vec::new();
    let mut workers = Vec::new();
    for n in 0..shared.config.threads {
        let (dealer, dealt) = mpsc::channel(DEALT);
        threads.push(start_worker(n, &shared, dealt)?);
        workers.push(Worker { dealer, seats: Arc::default() });
    }
    let workers = Arc::new(workers);
    let accept = |door: Open| panics::fatal_in("an acceptor", door.accept(shared.clone(), workers.clone()));
    let accepting: Vec<_> = doors.into_iter().map(|door| tokio::spawn(accept(door))).collect();
    shutdown.await;
    tracing::info!(
        "stopping: no new connections, {} clients have {:?} to finish",
        shared.clients.len(),
        shared.config.shutdown_grace
    );
    drop(files);
    for accepting in accepting {
        accepting.abort();
        // Its listener is closed then, and a client on its way to a worker has gone.
        let _ = accepting.await;
    }
    drain(&shared).await;
    drop(workers);
    // The link ends after the last session: until then replies wait for its barriers.
    let _ = stop.send(true);
    sweeping.store(false, Ordering::Release);
    sweep.thread().unpark();
    let join = move || {
        // None has panicked: that would have been the end of the process.
        threads.into_iter().chain([control, sweep]).for_each(|thread| drop(thread.join()));
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

/// A thread that the proxy cannot go on without.
fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    let thread = std::thread::Builder::new().name(name.clone());
    thread.spawn(move || panics::fatal(&format!("the thread {name}"), work)).map_err(Error::Io)
}

fn start_worker(n: usize, shared: &Arc<Shared>, mut dealt: mpsc::Receiver<Dealt>) -> Result<JoinHandle<()>, Error> {
    let shared = shared.clone();
    let runtime = runtime().map_err(Error::Io)?;
    spawn(format!("nearside-{n}"), move || {
        let pool = Rc::new(Pool::new(shared.topology.clone(), shared.capacity.clone()));
        let deal = async {
            // The dealers are dropped only once the drain is over.
            while let Some(dealt) = dealt.recv().await {
                sabotage::panic_at("worker");
                start_session(&shared, &pool, dealt);
            }
        };
        runtime.block_on(work(pool.run(), deal));
        // The look-up of a name that nobody answers is not waited for.
        runtime.shutdown_background();
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

/// A panic in a session is the end of that session alone. What it had begun in the cache may be half done: all is flushed.
fn start_session(shared: &Arc<Shared>, pool: &Rc<Pool>, dealt: Dealt) {
    let (shared, pool) = (shared.clone(), pool.clone());
    tokio::task::spawn_local(async move {
        if panics::caught(serve(&shared, &pool, dealt)).await.is_err() {
            shared.node().coherence.flush(FlushCause::Panic);
        }
    });
}

async fn serve(shared: &Arc<Shared>, pool: &Rc<Pool>, dealt: Dealt) {
    let Dealt { socket, presence, door, seat: _seat } = dealt;
    let client: &clients::Client = &presence.client;
    let stream = match socket.into_stream() {
        Ok(stream) => stream,
        Err(e) => return tracing::debug!("a connection broke before it was served: {e}"),
    };
    let Some(stream) = door.enter(stream, client, shared).await else { return };
    session::run(shared, pool, stream, presence, door.level).await;
}

/// The link has a thread of its own.
fn start_control(shared: &Arc<Shared>, mut stopping: watch::Receiver<bool>) -> Result<JoinHandle<()>, Error> {
    let shared = shared.clone();
    let runtime = runtime().map_err(Error::Io)?;
    spawn("nearside-link".into(), move || {
        runtime.block_on(async {
            tokio::select! {
                () = node::link::run(shared.node().clone()) => {}
                () = node::watch::run(shared.node().clone()) => {}
                () = node::touch::run(shared.node().clone(), |view| shared.views.database(view)) => {}
                _ = stopping.changed() => {}
            }
        });
        runtime.shutdown_background();
    })
}

fn start_sweep(shared: &Arc<Shared>, running: Arc<AtomicBool>) -> Result<JoinHandle<()>, Error> {
    let shared = shared.clone();
    spawn("nearside-sweep".into(), move || {
        let cache = &shared.cache;
        let (mut swept, mut looks) = (cache.deaths(), 0);
        while running.load(Ordering::Acquire) {
            std::thread::park_timeout(SWEEP);
            sabotage::panic_at("sweep");
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::task::{Context, Poll};

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
        lanes.spawn_local(busy(heard, crate::upstream::connection::wake_after_sessions));
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
        let mut seats: Vec<WorkerSeat> = (0..4).map(|_| choose(&workers, 4).1).collect();
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
