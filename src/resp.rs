//! Bytes to requests and reply frames: where each begins and ends, and nothing else. No copies, no recursion, no I/O.
//!
//! Client requests are scanned with Redis's own tolerance and error texts (`networking.c`); replies are cut by length,
//! iteratively, so that no depth of nesting costs stack.

mod inline;
mod reply;

use std::ops::Range;

use crate::numbers::{at_least_zero, difference, index};
pub use inline::inline_args;
pub use reply::{Cutter, is_nil, split_aggregate, split_bulk, value_len};

/// Longest inline request and longest count line, as in Redis.
const INLINE_MAX: usize = 64 * 1024;
/// Room for so many arguments is kept between requests.
const ROOM_KEPT: usize = 1024;
/// No reply has so many bytes or values: a number that is larger is none.
const LARGEST: i64 = 1 << 40;

/// Why a client's bytes are not a request. The text is Redis's; the connection is closed after it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Protocol error: {0}")]
pub struct ProtocolError(pub String);

impl ProtocolError {
    fn new(text: &str) -> Self {
        ProtocolError(text.to_owned())
    }
}

/// The scanner's finding at the start of the bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Scan {
    /// A request of this many bytes; its arguments are in [`Scanner::args`].
    Request(usize),
    /// An inline request of this many bytes; turn it with [`inline_args`].
    Inline(usize),
    /// This many bytes that ask for nothing (`*0`, `*-1`, an empty line).
    Nothing(usize),
    /// More bytes are needed; at least this many in all, as far as is known.
    Incomplete(usize),
}

/// Scans one request, going on where it stopped when more bytes have come, so that a request that arrives in many
/// pieces is looked at once. The arguments of requests found before can be kept beside those of the present one.
#[derive(Default)]
pub struct Scanner {
    args: Vec<Range<usize>>,
    /// Where the present request's arguments begin.
    first: usize,
    remaining: usize,
    pos: usize,
    /// Set by [`Scanner::guard`].
    stranger: bool,
}

/// Arguments, and bytes of one, that Redis takes from a client that has not logged in.
const STRANGER_ARGS: usize = 10;
const STRANGER_BULK: usize = 16 * 1024;

impl Scanner {
    /// Whether the bytes come from a client that has not logged in though it must: it may say little.
    #[inline]
    pub fn guard(&mut self, stranger: bool) {
        self.stranger = stranger;
    }

    /// The arguments of the request last found, as ranges from its first byte.
    pub fn args(&self) -> &[Range<usize>] {
        &self.args[self.first..]
    }

    /// Forgets everything; the next scan starts at byte 0.
    pub fn reset(&mut self) {
        self.first = 0;
        self.begin();
    }

    /// Forgets the present request; the next scan starts at byte 0.
    pub fn begin(&mut self) {
        self.args.truncate(self.first);
        self.remaining = 0;
        self.pos = 0;
    }

    /// Keeps the arguments of the request just found, for [`Scanner::kept`]; the next scan starts at byte 0.
    pub fn keep(&mut self) -> Range<usize> {
        let kept = self.first..self.args.len();
        self.first = self.args.len();
        self.begin();
        kept
    }

    /// The arguments that [`Scanner::keep`] kept.
    pub fn kept(&self, args: &Range<usize>) -> &[Range<usize>] {
        &self.args[args.clone()]
    }

    /// Forgets what was kept, and nothing of the present request.
    pub fn forget_kept(&mut self) {
        self.args.drain(..self.first);
        self.first = 0;
    }

    /// Whether there is room for far more arguments than most requests have.
    #[inline]
    pub fn is_roomy(&self) -> bool {
        self.args.capacity() > ROOM_KEPT
    }

    /// Bytes that the arguments take.
    pub fn held(&self) -> usize {
        self.args.len() * size_of::<Range<usize>>()
    }

    /// Gives the room back that no argument is in.
    pub fn shed(&mut self) {
        if self.args.is_empty() {
            self.args = Vec::new();
        }
    }

    /// Whether nothing of the present request was looked at.
    pub fn is_at_start(&self) -> bool {
        self.pos == 0
    }

    /// Looks at `buf`, which starts with the same bytes as at the last call that said `Incomplete`.
    pub fn scan(&mut self, buf: &[u8], max_bulk: usize) -> Result<Scan, ProtocolError> {
        if self.pos == 0 {
            if let Some((count, end)) = short_header(buf, 0, b'*').filter(|(count, _)| *count > 0 && !self.stranger) {
                self.start(count, end);
            } else if let Some(scan) = self.scan_count(buf)? {
                return Ok(scan);
            }
        }
        self.scan_bulks(buf, max_bulk)
    }

    fn start(&mut self, count: usize, end: usize) {
        self.args.truncate(self.first);
        self.remaining = count;
        self.pos = end;
    }

    /// Any first line there may be. `None`: a request's arguments follow.
    #[cold]
    fn scan_count(&mut self, buf: &[u8]) -> Result<Option<Scan>, ProtocolError> {
        match buf.first() {
            None => return Ok(Some(Scan::Incomplete(1))),
            Some(b'*') => {}
            Some(_) => return scan_inline(buf).map(Some),
        }
        let Some((count, end)) = header(buf, 0, "too big mbulk count string", "invalid multibulk length")? else {
            return Ok(Some(Scan::Incomplete(buf.len() + 1)));
        };
        if count > i64::from(i32::MAX) {
            return Err(ProtocolError::new("invalid multibulk length"));
        }
        if self.stranger && count > difference(STRANGER_ARGS) {
            return Err(ProtocolError::new("unauthenticated multibulk length"));
        }
        if count <= 0 {
            return Ok(Some(Scan::Nothing(end)));
        }
        self.start(index(at_least_zero(count)), end);
        Ok(None)
    }

    fn scan_bulks(&mut self, buf: &[u8], max_bulk: usize) -> Result<Scan, ProtocolError> {
        while self.remaining > 0 {
            let (len, start) = match short_header(buf, self.pos, b'$') {
                Some(found) if found.0 <= max_bulk => found,
                _ => match scan_length(buf, self.pos, max_bulk)? {
                    Some(found) => found,
                    None => return Ok(Scan::Incomplete(buf.len() + 1)),
                },
            };
            if len > STRANGER_BULK && self.stranger {
                return Err(ProtocolError::new("unauthenticated bulk length"));
            }
            let end = start + len;
            if buf.len() < end + 2 {
                return Ok(Scan::Incomplete(end + 2));
            }
            self.args.push(start..end);
            self.pos = end + 2;
            self.remaining -= 1;
        }
        Ok(Scan::Request(self.pos))
    }
}

/// Any `$n` line there may be at `at`: the number and where the line ends.
#[cold]
fn scan_length(buf: &[u8], at: usize, max_bulk: usize) -> Result<Option<(usize, usize)>, ProtocolError> {
    match buf.get(at) {
        None => return Ok(None),
        Some(b'$') => {}
        Some(&other) => {
            // Redis looks at the type only once the line is whole.
            if header_end(&buf[at..], "too big bulk count string")?.is_none() {
                return Ok(None);
            }
            return Err(ProtocolError(format!("expected '$', got '{}'", printable(other))));
        }
    }
    match header(buf, at, "too big bulk count string", "invalid bulk length")? {
        Some((len, _)) if len < 0 || index(at_least_zero(len)) > max_bulk => {
            Err(ProtocolError::new("invalid bulk length"))
        }
        found => Ok(found.map(|(len, start)| (index(at_least_zero(len)), start))),
    }
}

/// The number of a `*n` or `$n` line at `at` and where the line ends, if it has one or two digits (nearly every one
/// has) and something follows it.
#[inline(always)]
fn short_header(buf: &[u8], at: usize, kind: u8) -> Option<(usize, usize)> {
    let [k, d, e, f, g] = *buf.get(at..)?.first_chunk()?;
    let (d, digit) = (d.wrapping_sub(b'0'), e.wrapping_sub(b'0'));
    if k != kind || d > 9 {
        None
    } else if e == b'\r' && f == b'\n' {
        Some((usize::from(d), at + 4))
    } else if digit <= 9 && d != 0 && f == b'\r' && g == b'\n' {
        Some((usize::from(d) * 10 + usize::from(digit), at + 5))
    } else {
        None
    }
}

/// The arguments and the length of the GET at the start of `buf`, if it is there, spelled as clients do, and its key is
/// shorter than 100 bytes. What the scanner would find, in a fifth of the time.
#[inline]
pub fn short_get(buf: &[u8]) -> Option<([Range<usize>; 2], usize)> {
    // the shortest has 19 bytes: of a key without any
    let ([head, name], [d3, d4]) = buf.first_chunk::<18>()?.as_chunks::<8>() else { return None };
    let [.., d1, d2] = *name;
    let name = u64::from_le_bytes(*name) & u64::from_le_bytes(*b"\xdf\xdf\xdf\xff\xff\xff\0\0");
    if head != b"*2\r\n$3\r\n" || name != u64::from_le_bytes(*b"GET\r\n$\0\0") {
        return None;
    }
    let (tens, ones) = (d1.wrapping_sub(b'0'), d2.wrapping_sub(b'0'));
    let (len, start) = match [d2, *d3, *d4] {
        [_, b'\r', b'\n'] if ones <= 9 && tens.wrapping_sub(1) < 9 => (usize::from(tens) * 10 + usize::from(ones), 18),
        [b'\r', b'\n', _] if tens <= 9 => (usize::from(tens), 17),
        _ => return None,
    };
    let end = start + len;
    (buf.len() >= end + 2).then_some(([8..11, start..end], end + 2))
}

fn printable(byte: u8) -> char {
    if byte.is_ascii_graphic() || byte == b' ' { byte as char } else { '?' }
}

/// Reads the number of a `*n` or `$n` line at `at`: the number and where the line ends.
fn header(buf: &[u8], at: usize, too_big: &str, invalid: &str) -> Result<Option<(i64, usize)>, ProtocolError> {
    let line = &buf[at + 1..];
    let Some(cr) = header_end(line, too_big)? else { return Ok(None) };
    let n = parse_i64(&line[..cr]).ok_or_else(|| ProtocolError::new(invalid))?;
    Ok(Some((n, at + 1 + cr + 2)))
}

/// Where the CR of a header line stands, once the LF behind it has come too.
fn header_end(line: &[u8], too_big: &str) -> Result<Option<usize>, ProtocolError> {
    match memchr::memchr(b'\r', line) {
        Some(cr) if line.len() >= cr + 2 => Ok(Some(cr)),
        None if line.len() > INLINE_MAX => Err(ProtocolError::new(too_big)),
        _ => Ok(None),
    }
}

/// A decimal number in its one canonical spelling, as Redis's `string2ll` takes it.
pub fn parse_i64(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit) && rest.len() < 19 => {}
        _ => return None,
    }
    let sign: i64 = if negative { -1 } else { 1 };
    digits.iter().try_fold(0i64, |n, d| n.checked_mul(10)?.checked_add(sign * i64::from(d - b'0')))
}

fn scan_inline(buf: &[u8]) -> Result<Scan, ProtocolError> {
    let Some(newline) = memchr::memchr(b'\n', buf) else {
        return if buf.len() > INLINE_MAX {
            Err(ProtocolError::new("too big inline request"))
        } else {
            Ok(Scan::Incomplete(buf.len() + 1))
        };
    };
    if is_proxy_header(&buf[..newline]) {
        return Err(ProtocolError::new("a PROXY protocol header, which nearside does not read (send-proxy)"));
    }
    let blank = buf[..newline].iter().all(|b| is_space(*b));
    Ok(if blank { Scan::Nothing(newline + 1) } else { Scan::Inline(newline + 1) })
}

/// Whether the line is a load balancer's header in front of a client's bytes: a line of version 1, or the third of the lines that the signature
/// of version 2 looks like. (No command has such a name; as commands, the rest of a header would be what its bytes happen to say.)
fn is_proxy_header(line: &[u8]) -> bool {
    let version1 = |rest: &[u8]| [&b"TCP4"[..], b"TCP6", b"UNKNOWN"].iter().any(|word| rest.starts_with(word));
    line == b"\0\r" || line.strip_prefix(b"PROXY ").is_some_and(version1)
}

fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

/// A line like `$12`, its CRLF included, on the stack.
pub struct LengthLine {
    /// From the back: as many digits as a `usize` can have, the type's byte and CRLF.
    bytes: [u8; 23],
    start: usize,
}

impl LengthLine {
    /// `kind` and `n`.
    #[expect(clippy::cast_possible_truncation, reason = "a digit")]
    pub fn new(kind: u8, mut n: usize) -> LengthLine {
        let mut bytes = [b'\n'; 23];
        bytes[21] = b'\r';
        let mut start = 21;
        loop {
            start -= 1;
            bytes[start] = b'0' + (n % 10) as u8;
            n /= 10;
            if n == 0 {
                break;
            }
        }
        start -= 1;
        bytes[start] = kind;
        LengthLine { bytes, start }
    }
}

impl std::ops::Deref for LengthLine {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// Encodes a request as clients do.
pub fn encode<A: AsRef<[u8]>>(args: &[A]) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + args.iter().map(|a| a.as_ref().len() + 16).sum::<usize>());
    out.extend_from_slice(&LengthLine::new(b'*', args.len()));
    for arg in args {
        encode_bulk(&mut out, arg.as_ref());
    }
    out
}

/// Appends one bulk string.
pub fn encode_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&LengthLine::new(b'$', bytes.len()));
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
