//! Where replies begin and end.

use super::{LARGEST, parse_i64};

/// The upstream sent something that is not RESP; the connection cannot be trusted any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the upstream sent bytes that are not RESP")]
pub struct NotResp;

/// Finds the end of one reply, going on where it stopped when more bytes have come.
#[derive(Clone, Copy)]
pub struct Cutter {
    /// Values still to come before the reply is whole.
    values: u64,
    pub(super) pos: usize,
    /// Bytes the reply needs at least, as far as is known.
    need: usize,
}

impl Default for Cutter {
    fn default() -> Self {
        Cutter { values: 1, pos: 0, need: 1 }
    }
}

impl Cutter {
    /// The length of the reply at the start of `buf`, or `None` if it is not whole yet.
    #[inline]
    pub fn cut(&mut self, buf: &[u8]) -> Result<Option<usize>, NotResp> {
        match short_reply(buf) {
            Some(len) if self.need == 1 => Ok(Some(len)),
            _ => self.cut_any(buf),
        }
    }

    fn cut_any(&mut self, buf: &[u8]) -> Result<Option<usize>, NotResp> {
        while self.values > 0 {
            let rest = buf.get(self.pos..).unwrap_or_default();
            let Some(newline) = memchr::memchr(b'\n', rest) else {
                self.need = buf.len().max(self.pos) + 1;
                return Ok(None);
            };
            let end = self.pos + newline + 1;
            let line = rest[..newline].strip_suffix(b"\r").ok_or(NotResp)?;
            let (kind, number) = line.split_first().ok_or(NotResp)?;
            let number = || parse_i64(number).filter(|n| *n < LARGEST).ok_or(NotResp);
            match kind {
                b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => self.value(end),
                b'$' | b'=' | b'!' => {
                    let n = number()?;
                    let body = if n < 0 { 0 } else { usize::try_from(n).map_err(|_| NotResp)? + 2 };
                    if buf.len() < end + body {
                        self.need = end + body;
                        return Ok(None);
                    }
                    if body > 0 && !buf[..end + body].ends_with(b"\r\n") {
                        return Err(NotResp);
                    }
                    self.value(end + body);
                }
                b'*' | b'~' | b'>' => self.aggregate(end, number()?, 1, 1),
                b'%' => self.aggregate(end, number()?, 2, 1),
                // An attribute comes before the value it describes and does not count as one.
                b'|' => self.aggregate(end, number()?, 2, 0),
                _ => return Err(NotResp),
            }
        }
        let len = self.pos;
        *self = Cutter::default();
        Ok(Some(len))
    }

    /// Bytes needed before another look makes sense.
    pub fn need(&self) -> usize {
        self.need
    }

    fn value(&mut self, end: usize) {
        self.pos = end;
        self.values -= 1;
    }

    fn aggregate(&mut self, end: usize, n: i64, each: u64, own: u64) {
        self.pos = end;
        // Saturated, nested as they may be: no connection lives to see so many.
        self.values = self.values.saturating_add(u64::try_from(n).unwrap_or(0).saturating_mul(each)) - own;
    }
}

/// The length of the reply at the start of `buf`, if it is what most are, and whole: one short line (`+OK`, `:-1`), or a
/// bulk string. What it does not know, [`Cutter::cut_any`] looks at.
#[inline]
fn short_reply(buf: &[u8]) -> Option<usize> {
    let end = short_line(buf)?;
    let (kind, digits) = buf[..end].strip_suffix(b"\r\n")?.split_first()?;
    match (kind, digits) {
        (b'+' | b':', _) => Some(end),
        (b'$', _) => {
            let len = usize::try_from(parse_i64(digits)?).ok()?;
            let whole = end + len + 2;
            (buf.get(whole - 2..whole)? == b"\r\n").then_some(whole)
        }
        _ => None,
    }
}

/// Where the line at the start of `buf` ends, if that is within eight bytes. They are looked at as one word: its lowest byte
/// that is zero where it is a newline gets its highest bit set.
#[inline]
fn short_line(buf: &[u8]) -> Option<usize> {
    const EACH: u64 = u64::MAX / 255;
    let zero_if_newline = u64::from_le_bytes(*buf.first_chunk()?) ^ (EACH * u64::from(b'\n'));
    let found = zero_if_newline.wrapping_sub(EACH) & !zero_if_newline & (EACH << 7);
    (found != 0).then(|| found.trailing_zeros() as usize / 8 + 1)
}

/// The end of the value at the start of `buf`, which holds at least one whole value.
pub fn value_len(buf: &[u8]) -> Option<usize> {
    Cutter::default().cut(buf).ok().flatten()
}

/// Whether a value is nil, in whichever protocol and of whichever type.
pub fn is_nil(value: &[u8]) -> bool {
    matches!(value, b"$-1\r\n" | b"*-1\r\n" | b"_\r\n")
}

/// The bytes of the bulk string at the start of `buf` and what follows it.
pub fn split_bulk(buf: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = value_len(buf)?;
    let (value, rest) = buf.split_at(len);
    let start = memchr::memchr(b'\n', value)? + 1;
    matches!(value[0], b'$' | b'=').then_some(())?;
    Some((value.get(start..len.checked_sub(2)?).unwrap_or_default(), rest))
}

/// The number of values of the aggregate at the start of `buf` (a map's keys and values both count) and what follows its header.
pub fn split_aggregate(buf: &[u8]) -> Option<(usize, &[u8])> {
    let newline = memchr::memchr(b'\n', buf)?;
    let n = parse_i64(buf.get(1..newline.checked_sub(1)?)?)?;
    let each = if matches!(buf[0], b'%' | b'|') { 2 } else { 1 };
    matches!(buf[0], b'*' | b'~' | b'>' | b'%').then_some(())?;
    Some((usize::try_from(n).unwrap_or(0) * each, &buf[newline + 1..]))
}
