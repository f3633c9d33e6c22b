//! A client's input that is not dealt with yet: its bytes, and the requests found in them ahead of the one that is
//! dealt with, so that the memory their answers lie in is asked for at once and its latencies overlap.
//!
//! Bounds: [`AHEAD`] requests found; bytes by what the session reads (`client_query_buffer_limit`).

use std::ops::Range;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};

use crate::buffer::{self, LARGE};
use crate::cache::Cache;
use crate::command::Request;
use crate::resp::{self, ProtocolError, Scan, Scanner};
use crate::transport::Stream;

/// Requests found ahead: enough to hide the memory's latency, few enough that what was fetched first is still in the
/// processor's cache when its turn comes.
const AHEAD: usize = 32;
/// A longer first argument is hashed when it is needed: mostly it is no key (a script, a message).
const HASHED_MAX: usize = 256;

/// One request found, and what lies between it and the next.
struct Found {
    /// Its bytes.
    len: usize,
    /// Its bytes and those behind it that ask for nothing.
    span: usize,
    args: Args,
}

/// Where the arguments of a request stand, and the hash of argument 1.
enum Args {
    /// Arguments of a GET.
    Get([Range<usize>; 2], u64),
    /// Arguments of any request, as the scanner keeps them. Argument 1 need not be there, and is not hashed if it is long.
    Kept(Range<usize>, Option<u64>),
}

impl Found {
    fn hash(&self) -> Option<u64> {
        match self.args {
            Args::Get(_, hash) => Some(hash),
            Args::Kept(_, hash) => hash,
        }
    }
}

/// The input of one session.
#[derive(Default)]
pub(super) struct Input {
    buf: BytesMut,
    scanner: Scanner,
    /// Where the present request starts.
    pos: usize,
    /// Bytes from there on that were looked at: the scan goes on behind them.
    seen: usize,
    found: Vec<Found>,
    /// The present one.
    next: usize,
    /// As told by [`Input::guard`].
    stranger: bool,
    /// The request looked at next was an inline command: its words are not counted.
    rewritten: bool,
    /// Bytes the request that is not whole yet needs before another look makes sense.
    need: usize,
}

impl Input {
    /// Bytes not dealt with.
    pub(super) fn left(&self) -> usize {
        self.buf.len() - self.pos
    }

    /// Whether there is a present request.
    pub(super) fn has_present(&self) -> bool {
        self.next < self.found.len()
    }

    /// Whether what is next is a request in the usual form, no inline one.
    pub(super) fn is_array(&self) -> bool {
        self.buf.get(self.pos) == Some(&b'*')
    }

    /// Reads what the client has sent. `Ok(0)`: it sends nothing more.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<std::io::Result<usize>> {
        if self.pos > 0 {
            self.buf.advance(self.pos);
            self.pos = 0;
        }
        let poll = stream.poll_more(cx, &mut self.buf, self.need);
        if poll.is_pending() && self.scanner.is_roomy() {
            self.shed();
        }
        poll
    }

    /// Nothing comes for now: the room that a request of many arguments took is not kept.
    #[cold]
    fn shed(&mut self) {
        if self.next == self.found.len() {
            self.forget_found();
            self.scanner.shed();
        }
    }

    /// Memory that what is not dealt with takes.
    pub(super) fn held(&self) -> usize {
        self.left() + self.scanner.held()
    }

    /// Whether the bytes come from a client that has not logged in ([`Scanner::guard`]).
    #[inline]
    pub(super) fn guard(&mut self, stranger: bool) {
        self.stranger = stranger;
        self.scanner.guard(stranger && !self.rewritten);
    }

    /// Whether a whole request is there; it is then the present one.
    ///
    /// # Errors
    /// The bytes that are next are no request.
    #[inline]
    pub(super) fn find_request(&mut self, cache: &Cache, max_bulk: usize) -> Result<bool, ProtocolError> {
        if self.next < self.found.len() {
            return Ok(true);
        }
        if self.left() == 0 {
            return Ok(false);
        }
        self.look_ahead(cache, max_bulk)
    }

    /// True if any was found.
    fn look_ahead(&mut self, cache: &Cache, max_bulk: usize) -> Result<bool, ProtocolError> {
        self.forget_found();
        loop {
            self.look_for_gets(cache);
            if self.found.len() >= AHEAD || self.left() <= self.seen {
                break;
            }
            match self.look(cache, max_bulk) {
                Ok(true) => {}
                Ok(false) => break,
                Err(e) if self.found.is_empty() => return Err(e),
                // Requests before it are dealt with first.
                Err(_) => {
                    self.scanner.begin();
                    break;
                }
            }
        }
        if self.found.len() > 1 {
            cache.prefetch(self.found.iter().filter_map(Found::hash));
        }
        Ok(!self.found.is_empty())
    }

    /// GETs in the usual spelling, which most requests are.
    fn look_for_gets(&mut self, cache: &Cache) {
        if !self.scanner.is_at_start() {
            return;
        }
        let mut rest = &self.buf[self.pos + self.seen..];
        while self.found.len() < AHEAD
            && let Some((args, len)) = resp::short_get(rest)
        {
            let hash = cache.hash(&rest[args[1].clone()]);
            self.found.push(Found { len, span: len, args: Args::Get(args, hash) });
            self.seen += len;
            self.need = 0;
            rest = &rest[len..];
        }
    }

    /// Looks at what comes next. False: no further.
    fn look(&mut self, cache: &Cache, max_bulk: usize) -> Result<bool, ProtocolError> {
        let at = self.pos + self.seen;
        match self.scanner.scan(&self.buf[at..], max_bulk)? {
            Scan::Request(len) => {
                if std::mem::take(&mut self.rewritten) {
                    self.scanner.guard(self.stranger);
                }
                let args = self.scanner.keep();
                let first = self.scanner.kept(&args).get(1).filter(|first| first.len() <= HASHED_MAX);
                let hash = first.map(|first| cache.hash(&self.buf[at..][first.clone()]));
                self.add(Found { len, span: len, args: Args::Kept(args, hash) });
                return Ok(len < LARGE);
            }
            Scan::Incomplete(need) => {
                self.need = need;
                return Ok(false);
            }
            Scan::Nothing(len) => self.skip(len),
            Scan::Inline(_) if !self.found.is_empty() => return Ok(false),
            // As if it had been sent in the usual form.
            Scan::Inline(len) => {
                let args = resp::inline_args(&self.buf[at..at + len])?;
                self.rewrite(len, &resp::encode(&args));
                self.rewritten = true;
                self.scanner.guard(false);
            }
        }
        Ok(true)
    }

    fn add(&mut self, found: Found) {
        self.seen += found.len;
        self.need = 0;
        self.found.push(found);
    }

    fn skip(&mut self, len: usize) {
        match self.found.last_mut() {
            Some(last) => {
                last.span += len;
                self.seen += len;
            }
            None => self.pass(len),
        }
    }

    /// Puts other bytes in the place of the first `len` that are not dealt with. What is behind them is copied only if
    /// nothing before them is dealt with already, and then room is made for many: a pipeline of inline commands is not
    /// copied for each.
    fn rewrite(&mut self, len: usize, bytes: &[u8]) {
        let mut end = self.pos + len;
        if end == self.buf.len() {
            self.buf.truncate(self.pos);
            return self.buf.extend_from_slice(bytes);
        }
        if end < bytes.len() {
            let mut roomy = BytesMut::zeroed(bytes.len() + buffer::ROOM);
            roomy.extend_from_slice(&self.buf[end..]);
            self.buf = roomy;
            end = bytes.len() + buffer::ROOM;
        }
        self.pos = end - bytes.len();
        self.buf[self.pos..end].copy_from_slice(bytes);
    }

    /// The present request.
    pub(super) fn request(&self) -> Request<'_> {
        let found = &self.found[self.next];
        let buf = &self.buf[self.pos..self.pos + found.len];
        let args = match &found.args {
            Args::Get(args, _) => &args[..],
            Args::Kept(args, _) => self.scanner.kept(args),
        };
        Request { buf, args, hash: found.hash() }
    }

    /// The hash of the next request's first argument, if there is one and it is known.
    #[inline]
    pub(super) fn hash_behind(&self) -> Option<u64> {
        self.found.get(self.next + 1).and_then(Found::hash)
    }

    /// Keys and hashes of the GETs (in the usual spelling) from the present request on, as far as was looked ahead, and
    /// no more than `most`.
    #[inline]
    pub(super) fn gets(&self, most: usize) -> impl Iterator<Item = (&[u8], u64)> {
        let found = &self.found[self.next..];
        let mut at = self.pos;
        found[..found.len().min(most)].iter().map_while(move |found| {
            let Args::Get([_, key], hash) = &found.args else { return None };
            let key = &self.buf[at + key.start..at + key.end];
            at += found.span;
            Some((key, *hash))
        })
    }

    /// The present request is dealt with.
    pub(super) fn consume(&mut self) {
        self.consume_many(1);
    }

    /// The present request and those behind it, so many, are dealt with.
    pub(super) fn consume_many(&mut self, requests: usize) {
        let span = self.found[self.next..][..requests].iter().map(|found| found.span).sum();
        self.next += requests;
        self.seen -= span;
        self.pass(span);
    }

    fn pass(&mut self, len: usize) {
        self.pos += len;
        if self.pos == self.buf.len() {
            self.buf.clear();
            self.pos = 0;
        }
    }

    /// Puts another form of the present request in its place.
    pub(super) fn replace(&mut self, request: &[u8]) {
        let len = self.found[self.next].len;
        self.forget_ahead();
        self.rewrite(len, request);
    }

    /// The present request as bytes of their own, without a copy; it is dealt with.
    pub(super) fn take(&mut self) -> Bytes {
        let &Found { len, span, .. } = &self.found[self.next];
        self.next += 1;
        self.seen -= span;
        let request = self.split(len);
        self.pass(span - len);
        request
    }

    /// Everything, as bytes of their own.
    pub(super) fn take_all(&mut self) -> Bytes {
        self.forget_ahead();
        self.split(self.left())
    }

    fn split(&mut self, len: usize) -> Bytes {
        self.buf.advance(self.pos);
        self.pos = 0;
        self.buf.split_to(len).freeze()
    }

    /// Forgets the requests found, which are dealt with. The scanner's place in the next request stays.
    fn forget_found(&mut self) {
        self.found.clear();
        self.next = 0;
        self.scanner.forget_kept();
    }

    /// Forgets the requests found ahead; they are looked for again.
    pub(super) fn forget_ahead(&mut self) {
        self.found.clear();
        self.next = 0;
        self.seen = 0;
        self.need = 0;
        self.scanner.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_BULK: usize = 1 << 20;

    /// Everything that can be dealt with, as the session does it.
    fn requests(input: &mut Input, cache: &Cache) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while input.find_request(cache, MAX_BULK).expect("requests") {
            let request = input.request().buf.to_vec();
            // One that came in two pieces is found by the scanner.
            assert!(input.gets(1).next().is_none_or(|(key, _)| key == b"k" && is_short_get(&request)));
            if request.len() >= LARGE {
                assert_eq!(input.take(), request);
            } else {
                input.consume();
            }
            all.push(request);
        }
        all
    }

    fn is_short_get(request: &[u8]) -> bool {
        request == resp::encode(&["GET", "k"])
    }

    fn feed(input: &mut Input, bytes: &[u8]) {
        if input.pos > 0 {
            input.buf.advance(input.pos);
            input.pos = 0;
        }
        input.buf.extend_from_slice(bytes);
    }

    #[test]
    fn requests_come_out_in_order_however_they_are_cut() {
        let cache = Cache::new(1 << 20, 1 << 10);
        let large = resp::encode(&["SET".as_bytes(), b"large", &vec![b'x'; LARGE]]);
        let get = resp::encode(&["GET", "k"]);
        let ping = resp::encode(&["PING"]);
        let bytes = [&get[..], b"\r\n", b"*0\r\n", &ping, b"GET k\r\n", &large, b"\r\n", &get.repeat(40), b"PING\r\n"];
        let bytes = bytes.concat();
        let mut expected = vec![get.clone(), ping.clone(), get.clone(), large];
        expected.extend(std::iter::repeat_n(get, 40));
        expected.push(ping);
        // Every cut that is not inside the large value, and some that are.
        for cut in (0..bytes.len()).filter(|n| n % 1999 == 0 || !(150..LARGE).contains(n)) {
            let mut input = Input::default();
            feed(&mut input, &bytes[..cut]);
            let mut found = requests(&mut input, &cache);
            feed(&mut input, &bytes[cut..]);
            found.extend(requests(&mut input, &cache));
            assert!(found == expected, "cut at {cut}");
            assert_eq!((input.left(), input.seen), (0, 0));
        }
    }

    #[test]
    fn a_get_is_known_as_such() {
        let cache = Cache::new(1 << 20, 1 << 10);
        let mut input = Input::default();
        feed(&mut input, &resp::encode(&["GET", "k"]));
        assert!(input.find_request(&cache, MAX_BULK).expect("a request"));
        assert_eq!(input.gets(1).next(), Some((b"k".as_slice(), cache.hash(b"k"))));
        assert_eq!((input.request().arg(0), input.request().arg(1)), (b"GET".as_slice(), b"k".as_slice()));
    }

    #[test]
    fn what_stands_before_an_error_is_dealt_with_first() {
        let cache = Cache::new(1 << 20, 1 << 10);
        let mut input = Input::default();
        feed(&mut input, b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n*1\r\n+4\r\n");
        for _ in 0..2 {
            assert!(input.find_request(&cache, MAX_BULK).expect("a request"));
            input.consume();
        }
        assert!(input.find_request(&cache, MAX_BULK).is_err());
    }

    #[test]
    fn another_form_of_the_present_request_takes_its_place() {
        let cache = Cache::new(1 << 20, 1 << 10);
        let mut input = Input::default();
        let (long, short, next) = (resp::encode(&["PING", "long"]), resp::encode(&["PING"]), resp::encode(&["TIME"]));
        feed(&mut input, &[&next[..], &long, &next].concat());
        assert!(input.find_request(&cache, MAX_BULK).expect("a request"));
        input.consume();
        assert!(input.find_request(&cache, MAX_BULK).expect("a request"));
        input.replace(&short);
        assert_eq!(requests(&mut input, &cache), [short, next]);
    }

    #[tokio::test]
    async fn many_arguments_leave_no_room_behind() {
        let cache = Cache::new(1 << 20, 1 << 10);
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let mut stream = Stream::Memory(far);
        let mut input = Input::default();
        let request = resp::encode(&vec!["argument"; 20_000]);
        tokio::io::AsyncWriteExt::write_all(&mut near, &request).await.expect("a pipe");
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        while !input.find_request(&cache, MAX_BULK).expect("a request") {
            assert!(matches!(input.poll_read(cx, &mut stream), Poll::Ready(Ok(1..))));
        }
        // A request that is not dealt with yet keeps its arguments.
        assert!(input.poll_read(cx, &mut stream).is_pending());
        assert_eq!((input.request().len(), input.held() > request.len()), (20_000, true));
        input.consume();
        assert!(input.poll_read(cx, &mut stream).is_pending());
        assert_eq!((input.held(), input.scanner.is_roomy(), input.buf.capacity()), (0, false, 0));
    }
}
