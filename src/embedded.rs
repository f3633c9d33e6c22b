//! The private upstream of a proxy that was given none: a `valkey-server` or `redis-server` child on a unix socket in a
//! directory of its own. It holds nothing that outlives the process, and it never outlives the process itself.

use crate::config::{Address, Upstream};
use crate::error::Error;
use crate::panics;
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info, warn};

/// In the order of preference.
const PROGRAMS: [&str; 2] = ["valkey-server", "redis-server"];
/// An empty server is up in milliseconds; a loaded machine gets the rest.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Time to exit after SIGTERM; the server has nothing to save.
const STOP_GRACE: Duration = Duration::from_secs(3);
/// First and longest pause before the server is started again.
const RESTART_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A server that has lived this long is started again without a longer pause.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);
/// Lines of the server's output that an error shows.
const TAIL_LINES: usize = 8;

/// A running private server. Dropping it kills the server; [`Embedded::stop`] ends it in order.
#[derive(Debug)]
pub struct Embedded {
    upstream: Upstream,
    stop: oneshot::Sender<Duration>,
    keeper: JoinHandle<()>,
}

impl Embedded {
    /// Starts the server, waits until it accepts, and keeps it running.
    ///
    /// The kernel kills the server when the *thread* ends that started it, so call this on the main thread, in a
    /// current-thread runtime: restarts then happen on the main thread too.
    pub async fn start() -> Result<Self, Error> {
        let launch = Launch::prepare(&std::env::var_os("PATH").unwrap_or_default())?;
        let child = launch.start().await?;
        let upstream = Upstream { address: launch.address.clone(), username: None, password: None, db: 0, tls: None };
        info!(
            "no upstream named: started a private {} at {}; its data is lost at exit; name yours with --upstream \
             redis://host:6379",
            launch.program.display(),
            launch.address
        );
        let (stop, stopped) = oneshot::channel();
        let keeper = tokio::spawn(panics::fatal_in("the private server's keeper", keep(launch, child, stopped)));
        Ok(Embedded { upstream, stop, keeper })
    }

    /// How to reach it.
    pub fn upstream(&self) -> Upstream {
        self.upstream.clone()
    }

    /// Ends the server, in order if it does so within `limit` (and a few seconds), and removes its directory.
    pub async fn stop(self, limit: Duration) {
        // either side may be gone already: then there is nothing left to stop
        let _ = self.stop.send(limit);
        let _ = self.keeper.await;
    }
}

/// Everything a start of the server needs; a restart uses it again.
#[derive(Debug)]
struct Launch {
    program: PathBuf,
    home: TempDir,
    address: Address,
}

impl Launch {
    fn prepare(path: &OsStr) -> Result<Self, Error> {
        let program = find(path).ok_or_else(|| {
            Error::Embedded(format!(
                "no upstream is named and neither {} nor {} is in PATH; install one (apt-get install redis-server), or \
                 name an upstream: --upstream redis://host:6379",
                PROGRAMS[0], PROGRAMS[1]
            ))
        })?;
        let home = TempDir::with_prefix("nearside-")?;
        let address = Address::unix(&home.path().join("redis.sock"))
            .map_err(|e| Error::Embedded(format!("{e}; set TMPDIR to a shorter path")))?;
        Ok(Launch { program, home, address })
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join("redis.sock")
    }

    fn output(&self) -> PathBuf {
        self.home.path().join("output")
    }

    /// One server, from its start until it accepts.
    async fn start(&self) -> Result<Child, Error> {
        let mut child = self.spawn()?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if UnixStream::connect(self.socket()).await.is_ok() {
                return Ok(child);
            }
            if let Some(status) = child.try_wait()? {
                return Err(self.failure(&format!("ended at its start ({status})")));
            }
            if Instant::now() > deadline {
                return Err(self.failure(&format!("does not accept after {START_LIMIT:?}")));
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn spawn(&self) -> Result<Child, Error> {
        let output = File::create(self.output())?;
        let mut command = Command::new(&self.program);
        command
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no", "--loglevel", "warning"])
            .args(["--unixsocketperm", "700", "--unixsocket"])
            .arg(self.socket())
            .arg("--dir")
            .arg(self.home.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // an interrupt from the terminal is for the proxy, which drains before it ends the server
            .process_group(0)
            .kill_on_drop(true);
        die_with_parent(&mut command);
        command.spawn().map_err(|e| Error::Embedded(format!("{} does not start: {e}", self.program.display())))
    }

    fn failure(&self, what: &str) -> Error {
        let said = tail(&self.output());
        let said = if said.is_empty() { "it said nothing".into() } else { format!("it said:\n{said}") };
        Error::Embedded(format!("{} {what}; {said}", self.program.display()))
    }
}

/// Has the kernel kill the child when this thread ends, however it ends.
#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    let before_exec = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // the parent may have died before the request was in force
        if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(std::io::ErrorKind::Interrupted.into()) }
    };
    // SAFETY: between fork and exec only system calls are made: nothing is allocated, no lock is taken.
    unsafe { command.pre_exec(before_exec) };
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_command: &mut Command) {}

/// The first server program that `path`, a PATH, knows.
fn find(path: &OsStr) -> Option<PathBuf> {
    let in_path = |name: &&str| std::env::split_paths(path).map(|dir| dir.join(name)).find(|file| is_program(file));
    PROGRAMS.iter().find_map(in_path)
}

fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The last lines of the server's output.
fn tail(output: &Path) -> String {
    let text = std::fs::read(output).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// Keeps a server running until told to stop.
async fn keep(launch: Launch, mut child: Child, mut stopped: oneshot::Receiver<Duration>) {
    let mut pause = RESTART_PAUSE.0;
    loop {
        let born = Instant::now();
        tokio::select! {
            limit = &mut stopped => return end(child, limit.unwrap_or(STOP_GRACE).min(STOP_GRACE)).await,
            status = child.wait() => {
                let status = status.map_or_else(|e| e.to_string(), |status| status.to_string());
                error!("{}; its data is lost; starting another", launch.failure(&format!("died ({status})")));
            }
        }
        if born.elapsed() >= HEALTHY_AFTER {
            pause = RESTART_PAUSE.0;
        }
        tokio::select! {
            _ = &mut stopped => return,
            next = restart(&launch, &mut pause) => child = next,
        }
    }
}

/// Tries until a server is up again.
async fn restart(launch: &Launch, pause: &mut Duration) -> Child {
    loop {
        sleep(*pause).await;
        *pause = (*pause * 2).min(RESTART_PAUSE.1);
        match launch.start().await {
            Ok(child) => {
                warn!("the private server is up again at {}, empty", launch.address);
                return child;
            }
            Err(e) => error!("{e}; trying again in {pause:?}"),
        }
    }
}

/// SIGTERM, then SIGKILL.
async fn end(mut child: Child, limit: Duration) {
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let asked = pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok());
    if asked && timeout(limit, child.wait()).await.is_ok() {
        return;
    }
    if let Err(e) = child.kill().await {
        warn!("the private server could not be killed: {e}");
    }
}
