//! The `nearside` program: arguments, settings, log, signals, exit code.

use clap::{Parser, Subcommand};
use nearside::config::{Config, Overrides};
use nearside::embedded::Embedded;
use nearside::error::Error;
use nearside::{limits, memory, server, tls, verify};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
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
    args: Args,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What else it does than to serve.
#[derive(Subcommand)]
enum Command {
    /// Check what a deployment promises: drive it with clients of its own, under keys of its own, and judge every answer.
    Verify(Box<verify::Options>),
}

#[derive(clap::Args)]
struct Args {
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
        None => start(args).map(|()| ExitCode::SUCCESS),
        Some(Command::Verify(options)) => check(*options),
    };
    match outcome {
        Ok(code) => code,
        Err(e) => {
            eprintln!("nearside: {e}");
            ExitCode::FAILURE
        }
    }
}

fn check(options: verify::Options) -> Result<ExitCode, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(verify::run(options)).into())
}

fn start(args: Args) -> Result<(), Error> {
    let small_pages = memory::use_small_pages();
    memory::give_back_soon();
    let Args { config: file, listen, upstream, consistency, max_memory, threads, log, check } = args;
    let flags = Overrides { listen, upstream, consistency, max_memory, threads, log };
    let mut config = Config::load(file.as_deref(), &flags)?;
    if check {
        tls::check(&config)?;
        println!("{}: the settings are good", file.map_or("nearside".into(), |file| file.display().to_string()));
        return Ok(());
    }
    tracing_subscriber::fmt()
        .with_env_filter(&config.log)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    if let Err(e) = small_pages {
        warn!("the system keeps to huge pages ({e}): allow for more memory, or set MIMALLOC_ALLOW_THP=0");
    }
    limits::reserve_files(&mut config)?;
    // the main thread runs this itself: the embedded server dies with the thread that started it
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(config))
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
    let shutdown = async {
        // a sender that is gone means the same: end
        let _ = stopped.await;
    };
    let result = tokio::select! {
        result = server::run(config, shutdown) => result,
        () = signals.twice(stop) => Ok(()),
    };
    if let Some(embedded) = embedded {
        embedded.stop().await;
    }
    result
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
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
