//! The log on stderr. Logging never blocks a thread that serves and never ends one: lines go to a bounded queue, and a
//! thread of its own writes them out. A reader of stderr that stands still fills the queue; lines beyond it are dropped and
//! counted, as are lines that cannot be written (a closed pipe, a full disk). The log says so itself once it can.
//!
//! Bound: [`start`]'s limit in bytes (`log_buffer_limit`); metric: [`dropped`].

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

/// Pause before a write is tried again that stderr, set to non-blocking by another process, has not taken.
const AGAIN: Duration = Duration::from_millis(10);

static DROPPED: AtomicU64 = AtomicU64::new(0);
static LOG: OnceLock<Arc<LogQueue>> = OnceLock::new();

/// Lines that were dropped: the queue was full, or stderr has not taken them.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Collects what is logged from here on, as far as `filter` lets it through; `limit` bytes wait at the most. The work that is
/// returned, which has no end, writes it to stderr: it wants a thread of its own.
pub fn start(filter: &str, limit: usize) -> io::Result<impl FnOnce() + Send + 'static> {
    // A file of its own: a write that blocks holds no lock of the standard library's.
    let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let queue = Arc::new(LogQueue { limit, ..LogQueue::default() });
    let queue = LOG.get_or_init(|| queue).clone();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(LogLines(queue.clone()))
        .with_ansi(io::stderr().is_terminal())
        .init();
    Ok(move || queue.write_out(stderr))
}

/// Waits until everything logged so far is written, for `limit` at the most: stderr may never take it.
pub fn flush(limit: Duration) {
    if let Some(queue) = LOG.get() {
        queue.flush(limit);
    }
}

/// One line to stderr, outside of the log; whether stderr takes it changes nothing.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

#[derive(Default)]
struct LogQueue {
    state: Mutex<LogBuffer>,
    /// There is something to write.
    filled: Condvar,
    /// All of it is written.
    emptied: Condvar,
    limit: usize,
}

#[derive(Default)]
struct LogBuffer {
    bytes: Vec<u8>,
    /// Bytes taken out of `bytes` that are not written yet.
    writing: usize,
}

impl LogQueue {
    fn state(&self) -> MutexGuard<'_, LogBuffer> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.state();
        if state.bytes.len() + state.writing + line.len() > self.limit {
            DROPPED.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.bytes.extend_from_slice(line);
        drop(state);
        self.filled.notify_one();
    }

    fn take(&self) -> Vec<u8> {
        let mut state = self.state();
        while state.bytes.is_empty() {
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let bytes = std::mem::take(&mut state.bytes);
        state.writing = bytes.len();
        bytes
    }

    fn written(&self) {
        let mut state = self.state();
        state.writing = 0;
        if state.bytes.is_empty() {
            self.emptied.notify_all();
        }
    }

    fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.state();
        while state.writing > 0 || !state.bytes.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.emptied.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn write_out(&self, mut stderr: impl Write) {
        let mut told = 0;
        loop {
            let bytes = self.take();
            let unwritten = write_all(&mut stderr, &bytes);
            if unwritten > 0 {
                let lines = memchr::memchr_iter(b'\n', &bytes[bytes.len() - unwritten..]).count();
                DROPPED.fetch_add(lines as u64, Ordering::Relaxed);
            }
            let lost = dropped();
            if lost > told {
                let note =
                    format!("nearside: {} lines of the log were dropped: stderr did not take them\n", lost - told);
                if write_all(&mut stderr, note.as_bytes()) == 0 {
                    told = lost;
                }
            }
            self.written();
        }
    }
}

/// How many bytes of the end could not be written.
fn write_all(out: &mut impl Write, mut bytes: &[u8]) -> usize {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => break,
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(AGAIN),
            Err(_) => break,
        }
    }
    bytes.len()
}

/// Hands each event's line to the queue.
struct LogLines(Arc<LogQueue>);

impl<'a> MakeWriter<'a> for LogLines {
    type Writer = LogLine<'a>;

    fn make_writer(&'a self) -> LogLine<'a> {
        LogLine(&self.0)
    }
}

/// Takes one event's line as a whole, and never fails.
struct LogLine<'a>(&'a LogQueue);

impl Write for LogLine<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Takes a line only when told to.
    struct Slow(mpsc::Receiver<io::Result<()>>, mpsc::Sender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)??;
            self.1.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stands_still_costs_lines_and_no_time() {
        let queue = Arc::new(LogQueue { limit: 100, ..LogQueue::default() });
        let ((go, gone), (out, seen)) = (mpsc::channel(), mpsc::channel());
        let writing = queue.clone();
        std::thread::spawn(move || writing.write_out(Slow(gone, out)));
        let before = dropped();
        for _ in 0..1000 {
            queue.push(b"a line of twenty...\n");
        }
        let lost = dropped() - before;
        assert!((990..1000).contains(&lost), "{lost} of 1000 lines of 20 bytes, in a queue of 100");
        queue.flush(Duration::from_millis(20));
        // the pipe breaks under the first chunk, and takes everything after that
        go.send(Err(ErrorKind::BrokenPipe.into())).expect("the thread writes");
        (0..10).for_each(|_| go.send(Ok(())).expect("the thread writes"));
        let note = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        assert!(note(seen.recv().expect("a note")).contains("lines of the log were dropped"));
        assert!(dropped() - before > lost, "what the broken pipe lost is counted too");
        // the thread has told of the loss, but may still hold the room of what it could not write
        queue.flush(Duration::from_secs(5));
        queue.push(b"later\n");
        let found = std::iter::from_fn(|| seen.recv_timeout(Duration::from_secs(5)).ok()).map(note);
        assert!(found.into_iter().any(|text| text.contains("later\n")));
    }
}
