//! The `nearside` program: arguments, settings, log, signals, exit code.

// As in the library.
#![cfg_attr(
    not(test),
    warn(
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::unimplemented,
        clippy::get_unwrap,
        clippy::exit,
        clippy::mem_forget,
        clippy::cast_lossless,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss
    )
)]

use clap::{Parser, Subcommand};
use nearside::config::{Config, Overrides};
use nearside::embedded::Embedded;
use nearside::error::Error;
use nearside::{limits, logging, memory, panics, server, tls, verify};
use std::cell::Cell;
use std::future::poll_fn;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{info, warn};

/// A Redis-protocol caching proxy that proves how fresh each cached answer is.
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Flags beat the file, the file beats the defaults. Without --config no file is read: a proxy.toml in the \
                  current directory is not looked for."
)]
struct Cli {
    #[command(flatten)]
    args: Flags,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Subcommands other than serving.
#[derive(Subcommand)]
enum Command {
    /// Check what a deployment promises: drive it with clients of its own, under keys of its own, and judge every answer.
    Verify(Box<verify::Options>),
}

#[derive(clap::Args)]
struct Flags {
    /// Settings to read (the project's proxy.toml lists all of them, with their defaults).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address to listen on: host:port or unix:/path. May be repeated; replaces the file's listeners [default: 127.0.0.1:6380].
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,
    /// Redis or Valkey behind the proxy: redis://user:password@host:6379/0, rediss:// for TLS, or unix:///path?db=0. A password is better kept in
    /// the file: others can read the command line [default: embedded, a private server].
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Level of the listeners that do not name their own: bounded, causal or linearizable [default: bounded].
    #[arg(long, value_name = "LEVEL")]
    consistency: Option<String>,
    /// Memory the cache may use: 256mb, 1gb … [default: 256mb].
    #[arg(long, value_name = "SIZE")]
    max_memory: Option<String>,
    /// Worker threads, or auto: one a core [default: auto].
    #[arg(long, value_name = "N")]
    threads: Option<String>,
    /// What to log, to stderr: error, warn, info, debug, trace or nearside=debug,info [default: info].
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Say what is wrong with the settings, by file and line, and exit: 0 if nothing is, 1 if something is.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let Cli { args, command } = Cli::parse();
    let outcome = match command {
        None => panics::fatal("the main thread", || start(args)).map(|()| ExitCode::SUCCESS),
        Some(Command::Verify(options)) => verify(*options),
    };
    logging::flush(LOG_TAKES);
    match outcome {
        Ok(code) => code,
        Err(e) => {
            logging::say(&format!("nearside: {e}"));
            ExitCode::FAILURE
        }
    }
}

/// How long the log may take to be written at the end: its reader may stand still.
const LOG_TAKES: Duration = Duration::from_secs(1);

fn verify(options: verify::Options) -> Result<ExitCode, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(verify::run(options)).into())
}

fn start(args: Flags) -> Result<(), Error> {
    let small_pages = memory::use_small_pages();
    memory::give_back_soon();
    let Flags { config: file, listen, upstream, consistency, max_memory, threads, log, check } = args;
    let flags = Overrides { listen, upstream, consistency, max_memory, threads, log };
    let mut config = Config::load(file.as_deref(), &flags)?;
    if check {
        for finding in tls::check(&config)? {
            if finding.fatal {
                return Err(finding.problem.into());
            }
            logging::say(&format!("nearside: warning: {}", finding.problem));
        }
        let name = file.map_or("nearside".into(), |file| file.display().to_string());
        writeln!(std::io::stdout(), "{name}: the settings are good")?;
        return Ok(());
    }
    let write_log = logging::start(&config.log, config.log_buffer_limit)?;
    std::thread::Builder::new().name("nearside-log".into()).spawn(|| panics::fatal("the log's thread", write_log))?;
    panics::log_them();
    if let Err(e) = small_pages {
        warn!("the system keeps to huge pages ({e}): allow for more memory, or set MIMALLOC_ALLOW_THP=0");
    }
    for finding in tls::check(&config)? {
        warn!("{}", finding.problem);
    }
    limits::reserve_files(&mut config)?;
    // the main thread runs this itself: the embedded server dies with the thread that started it
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(serve(config));
    // the look-up of a name that nobody answers is not waited for
    runtime.shutdown_background();
    result
}

async fn serve(mut config: Config) -> Result<(), Error> {
    let mut signals = Signals::catch()?;
    let embedded = match config.upstream {
        Some(_) => None,
        None => tokio::select! {
            started = Embedded::start() => Some(started?),
            _ = signals.next() => return Ok(()),
        },
    };
    if let Some(embedded) = &embedded {
        config.upstream = Some(embedded.upstream());
    }
    let (stop, stopped) = oneshot::channel();
    let grace = config.shutdown_grace;
    let asked = Cell::new(None);
    let shutdown = async {
        // a sender that is gone means the same: end
        let _ = stopped.await;
        asked.set(Some(Instant::now()));
    };
    let result = tokio::select! {
        result = server::run(config, shutdown) => result,
        () = signals.twice(stop) => Ok(()),
    };
    if let Some(embedded) = embedded {
        let left = asked.get().map_or(grace, |asked| grace.saturating_sub(asked.elapsed()));
        embedded.stop(left.max(PRIVATE_SERVER_TAKES)).await;
    }
    result
}

/// The least that a private server, which has nothing to save, is given to end by itself.
const PRIVATE_SERVER_TAKES: Duration = Duration::from_millis(300);

/// The signals that end the proxy, and SIGHUP.
struct Signals {
    ending: [(&'static str, Signal); 5],
    hangup: Signal,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        Ok(Signals {
            ending: [
                ("SIGTERM", signal(SignalKind::terminate())?),
                ("SIGINT", signal(SignalKind::interrupt())?),
                ("SIGQUIT", signal(SignalKind::quit())?),
                ("SIGUSR1", signal(SignalKind::user_defined1())?),
                ("SIGUSR2", signal(SignalKind::user_defined2())?),
            ],
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next that ends the proxy.
    async fn next(&mut self) -> &'static str {
        poll_fn(|cx| {
            while self.hangup.poll_recv(cx).is_ready() {
                info!("SIGHUP: nothing is reloaded, new settings and certificates take a restart");
            }
            let came =
                self.ending.iter_mut().find_map(|(name, signal)| signal.poll_recv(cx).is_ready().then_some(*name));
            came.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// The first signal asks for an orderly end through `stop`; this ends at the second, which asks for an end now.
    async fn twice(&mut self, stop: oneshot::Sender<()>) {
        // Waited for outside of the macros: they do not look at their arguments when the level is off.
        let signal = self.next().await;
        info!("{signal}: shutting down; a second signal ends it at once");
        let _ = stop.send(());
        let signal = self.next().await;
        warn!("{signal} again: not waiting for clients any longer");
    }
}

/// Replies are many small allocations that die on other threads than they were made on.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
