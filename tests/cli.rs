//! The program as a user meets it: flags, messages, exit codes, and the private server it starts and ends.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use rustix::process::{Pid, Signal, getpgid, kill_process};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(15);

fn nearside() -> Command {
    Command::new(env!("CARGO_BIN_EXE_nearside"))
}

fn run(args: &[&str]) -> Output {
    nearside().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn file(content: &str) -> (TempDir, String) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("proxy.toml");
    std::fs::write(&path, content).unwrap();
    let path = path.display().to_string();
    (dir, path)
}

/// A proxy on its private server, and what it says on stderr.
struct Proxy {
    process: Child,
    stderr: BufReader<ChildStderr>,
    home: TempDir,
}

impl Proxy {
    fn start() -> Proxy {
        Self::start_with_path(&std::env::var_os("PATH").unwrap())
    }

    fn start_with_path(path: &OsStr) -> Proxy {
        let home = TempDir::new().unwrap();
        let mut process = nearside()
            .env("PATH", path)
            .args(["--listen", "127.0.0.1:0", "--threads", "1"])
            .env("TMPDIR", home.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(process.stderr.take().unwrap());
        let mut proxy = Proxy { process, stderr, home };
        proxy.line_with("started a private");
        proxy
    }

    /// Reads the log up to a line that says `words`.
    fn line_with(&mut self, words: &str) -> String {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.stderr.read_line(&mut line).unwrap(), 0, "no {words:?} in:\n{all}");
            if line.contains(words) {
                return line;
            }
            all += &line;
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    fn servers(&self) -> Vec<Pid> {
        children(self.pid())
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    fn ended(&mut self) -> ExitStatus {
        until("the proxy ends", || self.process.try_wait().unwrap())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < SOON, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// State and parent of a process, unless it is gone.
fn stat(pid: i32) -> Option<(String, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, behind_name) = stat.rsplit_once(") ")?;
    let mut words = behind_name.split(' ');
    Some((words.next()?.into(), words.next()?.parse().ok()?))
}

fn children(parent: Pid) -> Vec<Pid> {
    let names = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let pids = names.filter_map(|name| name.parse::<i32>().ok());
    let living = pids.filter(|pid| {
        stat(*pid).is_some_and(|(state, its_parent)| state != "Z" && its_parent == parent.as_raw_nonzero().get())
    });
    living.filter_map(Pid::from_raw).collect()
}

fn gone(pid: Pid) -> Option<()> {
    stat(pid.as_raw_nonzero().get()).is_none_or(|(state, _)| state == "Z").then_some(())
}

fn only<T: std::fmt::Debug>(mut all: Vec<T>) -> T {
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

#[test]
fn version_and_help() {
    let version = run(&["--version"]);
    assert_eq!(text(&version.stdout).trim(), concat!("nearside ", env!("CARGO_PKG_VERSION")));
    let help = text(&run(&["--help"]).stdout);
    let flags =
        ["config", "listen", "upstream", "consistency", "max-memory", "threads", "log", "check", "help", "version"];
    for flag in flags {
        assert!(help.contains(&format!("--{flag}")), "no --{flag} in:\n{help}");
    }
    assert!(help.contains("Without --config no file is read"), "{help}");
}

#[test]
fn verify_is_a_command_of_its_own() {
    let help = text(&run(&["--help"]).stdout);
    assert!(help.contains("verify"), "{help}");
    let help = text(&run(&["verify", "--help"]).stdout);
    assert!(help.contains("--proxy") && help.contains("Exit codes"), "{help}");
    // it needs a proxy and an upstream, and is not mixed with the proxy's own flags
    assert_eq!(run(&["verify"]).status.code(), Some(2));
    assert_eq!(run(&["--threads", "1", "verify", "--proxy", "a:1", "--upstream", "b:1"]).status.code(), Some(2));
    let nobody = run(&["verify", "--proxy", "127.0.0.1:1", "--upstream", "127.0.0.1:1", "--seconds", "1"]);
    assert_eq!(nobody.status.code(), Some(2));
    assert!(text(&nobody.stderr).contains("nearside verify: 127.0.0.1:1: "), "{}", text(&nobody.stderr));
}

#[test]
fn check_says_what_is_good_and_what_is_not() {
    let good = run(&["--config", concat!(env!("CARGO_MANIFEST_DIR"), "/proxy.toml"), "--check"]);
    assert!(good.status.success(), "{}", text(&good.stderr));
    assert!(text(&good.stdout).contains("good"));

    let (_dir, path) = file("threads = 2\nmax_memory = \"lots\"\n");
    let bad = run(&["--config", &path, "--check"]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(text(&bad.stderr).contains("proxy.toml:2: max_memory: `lots`"), "{}", text(&bad.stderr));
    // a flag beats the file, yet what the file says must be well-formed
    assert!(!run(&["--config", &path, "--check", "--max-memory", "1gb"]).status.success());
}

#[test]
fn a_flag_beats_the_file() {
    let (_dir, path) = file("threads = 300\n");
    assert_eq!(run(&["--config", &path, "--check"]).status.code(), Some(1));
    assert!(run(&["--config", &path, "--check", "--threads", "3"]).status.success());
}

#[test]
fn mistakes_on_the_command_line_are_told() {
    let missing = run(&["--config", "/nonexistent/proxy.toml", "--check"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("/nonexistent/proxy.toml: cannot be read"), "{}", text(&missing.stderr));
    let size = run(&["--max-memory", "lots", "--check"]);
    assert_eq!(size.status.code(), Some(1));
    assert!(text(&size.stderr).contains("--max-memory: `lots`"), "{}", text(&size.stderr));
    assert_eq!(run(&["--max-memry", "1gb"]).status.code(), Some(2));
}

#[test]
fn a_proxy_toml_in_the_directory_is_not_read() {
    let (dir, _) = file("nonsense");
    assert!(nearside().arg("--check").current_dir(dir.path()).output().unwrap().status.success());
}

#[test]
fn without_upstream_and_server_it_says_what_to_install() {
    let empty = TempDir::new().unwrap();
    let output = nearside().env("PATH", empty.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("apt-get install redis-server") && said.contains("--upstream"), "{said}");
}

/// A `valkey-server` of our own making, in `dir`.
fn write_server(dir: &Path, script: &str) {
    let program = dir.join("valkey-server");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn a_server_that_does_not_start_is_quoted() {
    let dir = TempDir::new().unwrap();
    write_server(dir.path(), "echo out of luck; exit 3");
    let output = nearside().env("PATH", dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("out of luck") && said.contains("exit status: 3"), "{said}");
}

#[test]
fn sigterm_ends_the_proxy_and_its_private_server() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut proxy = Proxy::start();
        let server = only(proxy.servers());
        proxy.signal(signal);
        assert_eq!(proxy.ended().code(), Some(0));
        assert!(gone(server).is_some(), "the proxy ended before its server");
        assert!(is_empty(proxy.home.path()), "the server's directory is left");
    }
}

#[test]
fn the_private_server_is_asked_before_it_is_killed() {
    let dir = TempDir::new().unwrap();
    let asked = dir.path().join("asked");
    let wrapper = format!(
        "trap 'echo > {}; kill $server; wait; exit' TERM\nredis-server \"$@\" &\nserver=$!\nwait",
        asked.display()
    );
    write_server(dir.path(), &wrapper);
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let mut proxy = Proxy::start_with_path(OsStr::new(&path));
    let wrapper = only(proxy.servers());
    let server = only(children(wrapper));
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.ended().code(), Some(0));
    assert!(asked.exists());
    assert!(gone(server).is_some());
}

/// Else an interrupt from the terminal would end the server while the proxy still drains.
#[test]
fn the_private_server_is_no_part_of_the_terminals_process_group() {
    let proxy = Proxy::start();
    let server = only(proxy.servers());
    assert_ne!(getpgid(Some(server)).unwrap(), getpgid(Some(proxy.pid())).unwrap());
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

#[test]
fn sigkill_of_the_proxy_takes_its_private_server_with_it() {
    let mut proxy = Proxy::start();
    let server = only(proxy.servers());
    proxy.signal(Signal::KILL);
    proxy.ended();
    until("the server dies", || gone(server));
}

#[test]
fn a_private_server_that_dies_is_started_again() {
    let mut proxy = Proxy::start();
    let first = only(proxy.servers());
    kill_process(first, Signal::KILL).unwrap();
    assert!(proxy.line_with("ERROR").contains("died"));
    proxy.line_with("up again");
    let second = only(proxy.servers());
    assert_ne!(first, second);
    proxy.signal(Signal::KILL);
    proxy.ended();
    until("the second server dies, too", || gone(second));
}

/// A proxy that wants more files than any privilege could give it (fs.nr_open), under a hard limit of 150 000.
fn short_of_files(max_dedicated: u32) -> Option<(TempDir, Child)> {
    let nr_open: u64 = std::fs::read_to_string("/proc/sys/fs/nr_open").unwrap().trim().parse().unwrap();
    let limit = Command::new("sh").args(["-c", "ulimit -n 150000"]).output().unwrap();
    if nr_open > 1_100_000 || !limit.status.success() {
        eprintln!("skipped: this machine's limits on open files are too high or too low to test with");
        return None;
    }
    let settings = format!("threads = 1\nmaxclients = 1000000\nmax_dedicated = {max_dedicated}\n");
    let (dir, path) = file(&format!("{settings}[[listen]]\naddress = \"127.0.0.1:0\"\n"));
    let proxy = concat!("ulimit -n 150000; exec ", env!("CARGO_BIN_EXE_nearside"), " --upstream redis://127.0.0.1:1");
    let shell = format!("{proxy} --config {path}");
    Some((dir, Command::new("sh").args(["-c", &shell]).stderr(Stdio::piped()).spawn().unwrap()))
}

#[test]
fn too_few_files_lower_maxclients_and_say_so() {
    let Some((home, mut process)) = short_of_files(100_000) else { return };
    let stderr = BufReader::new(process.stderr.take().unwrap());
    let line = Proxy { process, stderr, home }.line_with("open files");
    assert!(line.contains("WARN") && line.contains("LimitNOFILE"), "{line}");
    // 150000 - 100000 dedicated - 16 lanes - 1 listener - 64
    assert!(line.contains("serving 49919 clients at most"), "{line}");
}

#[test]
fn too_few_files_for_any_client_end_it() {
    let Some((_home, process)) = short_of_files(200_000) else { return };
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("LimitNOFILE") && said.contains("max_dedicated"), "{said}");
}

/// A level that is off once kept the wait for a signal from being evaluated at all.
#[test]
fn a_quiet_log_does_not_end_the_proxy() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("nearside.sock");
    let listen = format!("unix:{}", socket.display());
    let upstream = format!("unix://{}", dir.path().join("nobody").display());
    let process = nearside().args(["--log", "error", "--listen", &listen, "--upstream", &upstream]).spawn().unwrap();
    let stderr = BufReader::new(nearside().arg("--version").stderr(Stdio::piped()).spawn().unwrap().stderr.unwrap());
    let mut proxy = Proxy { process, stderr, home: dir };
    let mut client = until("it listens", || std::os::unix::net::UnixStream::connect(&socket).ok());
    for _ in 0..20 {
        std::thread::sleep(std::time::Duration::from_millis(10));
        std::io::Write::write_all(&mut client, b"NEARSIDE CONSISTENCY\r\n").unwrap();
        let mut reply = [0; 10];
        std::io::Read::read_exact(&mut client, &mut reply).unwrap();
        assert_eq!(&reply, b"+bounded\r\n");
    }
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.ended().code(), Some(0));
}
