//! A read that fills the cache: `CLIENT CACHING YES` (in mode `tracked`), the read, `PTTL` of each key and, where hash fields may have a
//! time to live of their own, one question about them. Written as one unit; its replies come back in that order. Behind them come, one
//! by one, the questions that only the replies could give rise to ([`fields`]).

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

use super::fields::{self, NextQuestion, says_missing};
use crate::bypass::Bypass;
use crate::cache::entry::Variant;
use crate::cache::{FillTimes, FillToken};
use crate::clock::LaneStamp;
use crate::coherence::Coherence;
use crate::command::FieldTtl;
use crate::outbox::{Piece, Place};
use crate::resp::{self, is_nil};
use crate::sabotage::{self, Rule};
use crate::time::Time;

const CACHING: &[u8] = b"*3\r\n$6\r\nCLIENT\r\n$7\r\nCACHING\r\n$3\r\nYES\r\n";
const PTTL: &[u8] = b"*2\r\n$4\r\nPTTL\r\n";
/// The section twice, as no client says it: MONITOR through a proxy shows those of clients ([`super::monitor`]).
const INFO_KEYSPACE: &[u8] = b"*3\r\n$4\r\nINFO\r\n$8\r\nkeyspace\r\n$8\r\nkeyspace\r\n";

/// The right to keep the reply to one read of one key, granted by [`permit`](super::permit). Dropped unused, it lands the flight.
pub struct FillPermit(FillToken);

impl FillPermit {
    /// To be granted by [`permit`](super::permit) alone, which asks in the right order.
    pub(super) fn of(token: FillToken) -> FillPermit {
        FillPermit(token)
    }
}

/// One key of the read, and the right to store what is said of it.
pub struct FillKey {
    /// Where the key stands in the request.
    pub range: Range<usize>,
    /// `None`: what is said of this key is not kept.
    permit: Option<FillPermit>,
    /// PTTL's answer about the key.
    ttl: Option<i64>,
}

impl FillKey {
    /// A key that was not asked about yet.
    pub fn new(range: Range<usize>, permit: Option<FillPermit>) -> FillKey {
        FillKey { range, permit, ttl: None }
    }

    /// Whether what is said of this key may be kept.
    pub fn is_permitted(&self) -> bool {
        self.permit.is_some()
    }
}

/// The read, as the session asks for it.
pub struct FillRead {
    /// The view that the reply belongs to.
    pub view: u32,
    /// The command's number.
    pub id: u16,
    /// The request as it was sent.
    pub request: Rc<[u8]>,
    /// One key, or all of MGET's.
    pub keys: SmallVec<[FillKey; 1]>,
    /// MGET: each element of the reply is stored as the GET of its key.
    pub mget: bool,
    /// How fields of a hash could outlive the reply.
    pub field_ttl: FieldTtl,
    /// Where the arguments from the third on stand, for `FieldTtl::Named`.
    pub fields: Vec<Range<usize>>,
}

/// How it is sent, and for how long it may be kept.
#[derive(Clone, Copy)]
pub struct Terms {
    /// The server must be told to remember that the key was read.
    pub tracked: bool,
    /// Zero: as long as the key lives.
    pub max_ttl: Duration,
    /// Whether the server is asked, about a reply of a whole hash, if it has mortal fields anywhere.
    pub anywhere: bool,
    /// And about the fields of this hash, if so.
    pub this_hash: bool,
}

/// The step that follows a reply.
#[derive(Debug, PartialEq, Eq)]
pub enum Then {
    /// More replies are to come.
    Wait,
    /// This is to be asked as well; its answer is the next reply.
    Ask(Vec<u8>),
    /// The fill is over: the reply is stored, or noted as told, and then told.
    Done,
}

/// Which question about the fields of a whole hash is on its way.
enum FieldQuestion {
    Nothing,
    /// A question about so many fields.
    Names(usize),
    /// A question about so many fields.
    Ends(usize),
}

/// A reply until it is told: small ones need no memory of their own.
enum Kept {
    Small(SmallVec<[u8; 128]>),
    Large(Bytes),
}

impl Kept {
    fn of(reply: Piece<'_>) -> Kept {
        match reply {
            Piece::Slice(bytes) => Kept::Small(SmallVec::from_slice(bytes)),
            Piece::Bytes(bytes) => Kept::Large(bytes),
        }
    }

    fn piece(&self) -> Piece<'_> {
        match self {
            Kept::Small(bytes) => Piece::Slice(bytes),
            Kept::Large(bytes) => Piece::Bytes(bytes.clone()),
        }
    }
}

impl std::ops::Deref for Kept {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Kept::Small(bytes) => bytes,
            Kept::Large(bytes) => bytes,
        }
    }
}

/// The read on its way.
pub struct Fill {
    /// The place of the answer; `None` once answered.
    pub place: Option<Place>,
    read: FillRead,
    sent: Time,
    terms: Terms,
    /// Which reply is next: 0 of CLIENT CACHING, 1 of the read, then of the questions.
    step: usize,
    reply: Kept,
    stored: Time,
    spoiled: bool,
    /// Some field of the hash may have a time to live.
    doubtful: bool,
    asked: FieldQuestion,
}

impl Fill {
    /// To be sent at `sent`.
    pub fn new(place: Place, read: FillRead, sent: Time, terms: Terms) -> Fill {
        let step = usize::from(!terms.tracked);
        let (reply, stored) = (Kept::Small(SmallVec::new()), Time::ZERO);
        let doubtful = read.field_ttl == FieldTtl::Whole && !terms.anywhere;
        Fill {
            place: Some(place),
            read,
            sent,
            terms,
            step,
            reply,
            stored,
            spoiled: false,
            doubtful,
            asked: FieldQuestion::Nothing,
        }
    }

    /// The bytes to send.
    pub fn write(&self, out: &mut crate::buffer::OutBuf) {
        let request = &self.read.request;
        if self.terms.tracked {
            out.push(CACHING);
        }
        out.push(request);
        for key in &self.read.keys {
            out.push(PTTL);
            out.push(&request[bulk(request, &key.range)]);
        }
        match self.read.field_ttl {
            FieldTtl::Whole if self.terms.anywhere => out.push(INFO_KEYSPACE),
            FieldTtl::No | FieldTtl::Whole => {}
            FieldTtl::Named => out.push(&fields::named(request, &self.read.keys[0].range, &self.read.fields)),
        }
    }

    /// Replies to what [`Fill::write`] writes, CLIENT CACHING counted in any case.
    fn unit(&self) -> usize {
        let asks = match self.read.field_ttl {
            FieldTtl::No => false,
            FieldTtl::Named => true,
            FieldTtl::Whole => self.terms.anywhere,
        };
        2 + self.read.keys.len() + usize::from(asks)
    }

    /// The request itself, to be sent again on another connection.
    pub fn request(&self) -> &[u8] {
        &self.read.request
    }

    /// Hashes of the keys, for a read that goes on without filling.
    pub fn hashes(&self, coherence: &Coherence) -> Vec<u64> {
        let hash = |k: &FillKey| coherence.cache.hash(&self.read.request[k.range.clone()]);
        self.read.keys.iter().map(hash).collect()
    }

    /// Asks the memory for what storing it will touch.
    pub fn prefetch(&self) {
        self.read.keys.iter().filter_map(|key| key.permit.as_ref()).for_each(|permit| permit.0.prefetch());
    }

    /// Whether this can be the next reply. (No read that is cached answers `+OK`: CLIENT CACHING's answer has come late.)
    pub fn allows(&self, bytes: &[u8]) -> bool {
        let keys = self.read.keys.len();
        matches!(bytes[0], b'-' | b'!')
            || match (self.step, self.read.field_ttl) {
                (0, _) => bytes == b"+OK\r\n",
                (1, _) => bytes != b"+OK\r\n",
                (n, _) if n < 2 + keys => bytes[0] == b':',
                (n, FieldTtl::Whole) if n < self.unit() => matches!(bytes[0], b'$' | b'='),
                (_, FieldTtl::Whole) => matches!(bytes[0], b'*' | b'~' | b'_'),
                _ => matches!(bytes[0], b'*' | b'$' | b'_'),
            }
    }

    /// The next reply. With the last one, what was read is stored, or noted as told, and only then told.
    pub fn reply(&mut self, frame: Piece<'_>, now: Time, coherence: &Coherence, lane: Option<LaneStamp>) -> Then {
        let next = if self.step < self.unit() {
            self.reply_of_unit(frame, now, coherence);
            self.step += 1;
            if self.step < self.unit() {
                return Then::Wait;
            }
            self.asks_further(coherence, now)
        } else {
            self.reply_about_fields(frame.as_slice(), coherence, now)
        };
        if let Some(question) = next {
            return Then::Ask(question);
        }
        self.tell(now, coherence, lane.filter(|_| !self.spoiled));
        Then::Done
    }

    /// Whether the server has answered the read itself; what is still asked is whether the answer may be kept.
    pub fn is_answered(&self) -> bool {
        self.step >= 2
    }

    /// Tells the answer, and keeps nothing: the lane is lost. The read is not sent again, since what the session has sent behind it may
    /// have been answered already, and a second answer would be newer than those.
    pub fn conclude(mut self, now: Time, coherence: &Coherence) {
        self.tell(now, coherence, None);
    }

    /// Tells the answer, once it is kept by the word of `lane`, or noted as told.
    fn tell(&mut self, now: Time, coherence: &Coherence, lane: Option<LaneStamp>) {
        self.store(now, coherence, lane);
        if let Some(place) = self.place.take() {
            place.deliver(self.reply.piece(), now);
        }
    }

    fn reply_of_unit(&mut self, frame: Piece<'_>, now: Time, coherence: &Coherence) {
        let bytes = frame.as_slice();
        match self.step {
            0 => self.spoiled |= bytes != b"+OK\r\n" && !sabotage::on(Rule::Caching),
            1 => {
                self.stored = now;
                let large = bytes.len() > coherence.cache.max_entry();
                if large {
                    coherence.cache.stats.bypasses.count(Bypass::ReplyTooLarge);
                }
                self.spoiled |= matches!(bytes[0], b'-' | b'!') || large;
                self.reply = Kept::of(frame);
            }
            n if n < 2 + self.read.keys.len() => {
                let ttl = bytes.strip_prefix(b":").and_then(|n| resp::parse_i64(n.strip_suffix(b"\r\n")?));
                self.read.keys[n - 2].ttl = ttl;
                self.spoiled |= ttl.is_none();
            }
            _ if self.read.field_ttl == FieldTtl::Whole => {
                if !fields::none_anywhere(bytes) {
                    coherence.mortal.note_anywhere(now);
                    self.doubtful = true;
                }
            }
            _ => self.spoiled |= !fields::named_live_on(bytes, &self.reply),
        }
    }

    fn key(&self) -> &[u8] {
        &self.read.request[self.read.keys[0].range.clone()]
    }

    /// The question that a reply of a whole hash makes necessary, unless the server has no mortal field anywhere.
    fn asks_further(&mut self, coherence: &Coherence, now: Time) -> Option<Vec<u8>> {
        if !self.doubtful || self.spoiled {
            return None;
        }
        let next = if self.terms.this_hash {
            fields::next(&self.read.request, self.key(), &self.reply)
        } else {
            NextQuestion::TooMany
        };
        let question = match next {
            // Fields that have ended, and are not yet removed, are counted by no reply but keep the key alive.
            NextQuestion::Nothing => {
                self.spoiled |= self.read.keys[0].ttl != Some(-2);
                return None;
            }
            NextQuestion::Ends(question, count) => {
                self.asked = FieldQuestion::Ends(count);
                Some(question)
            }
            NextQuestion::Names(question, count) => {
                self.asked = FieldQuestion::Names(count);
                Some(question)
            }
            NextQuestion::TooMany | NextQuestion::Unclear => None,
        };
        if question.is_none() {
            self.give_up(coherence, now);
        }
        question
    }

    fn reply_about_fields(&mut self, answer: &[u8], coherence: &Coherence, now: Time) -> Option<Vec<u8>> {
        let question = match self.asked {
            FieldQuestion::Names(count) => {
                let question = fields::ends(self.key(), answer, count, 1);
                self.asked = FieldQuestion::Ends(count);
                question
            }
            FieldQuestion::Ends(count) if fields::none_ends(answer, count) => return None,
            FieldQuestion::Ends(_) | FieldQuestion::Nothing => None,
        };
        if question.is_none() {
            self.give_up(coherence, now);
        }
        question
    }

    /// The reply is not kept, and nobody tries to keep one of this hash for a while.
    fn give_up(&mut self, coherence: &Coherence, now: Time) {
        self.spoiled = true;
        coherence.mortal.note(coherence.cache.hash(self.key()), now);
    }

    /// Keeps what may be kept, by a lane that is alive; of the rest, notes that it is told.
    fn store(&mut self, now: Time, coherence: &Coherence, lane: Option<LaneStamp>) {
        let values: SmallVec<[_; 1]> = if self.read.mget { self.elements() } else { smallvec![0..self.reply.len()] };
        for i in 0..self.read.keys.len() {
            let kept = match (values.get(i), lane) {
                (Some(value), Some(lane)) => self.store_one(i, value.clone(), coherence, lane),
                _ => false,
            };
            if !kept {
                let key = &self.read.request[self.read.keys[i].range.clone()];
                coherence.cache.observe(coherence.cache.hash(key), now);
            }
        }
    }

    fn store_one(&mut self, i: usize, value: Range<usize>, coherence: &Coherence, lane: LaneStamp) -> bool {
        let (Some(ttl), reply) = (self.read.keys[i].ttl, &self.reply[value]) else { return false };
        // MGET says nil for a list as well, where GET would say WRONGTYPE.
        if self.read.mget && is_nil(reply) != (ttl == -2) {
            return false;
        }
        let key = &mut self.read.keys[i];
        let (Some(permit), Some(deadline)) = (key.permit.take(), deadline(self.sent, ttl, reply)) else {
            return false;
        };
        let longest = if self.terms.max_ttl.is_zero() { Time::NEVER } else { self.sent + self.terms.max_ttl };
        let deadline = deadline.min(longest);
        let request = &self.read.request;
        let tail = if self.read.mget { &[] } else { &request[key.range.end + 2..] };
        let variant = Variant { view: self.read.view, id: self.read.id, key: &request[key.range.clone()], tail };
        let times = FillTimes { sent: self.sent, stored: self.stored, deadline };
        coherence.cache.fill(permit.0, &variant, reply, times, lane)
    }

    /// Where the elements of MGET's reply are.
    fn elements(&self) -> SmallVec<[Range<usize>; 1]> {
        let Some((count, rest)) = resp::split_aggregate(&self.reply) else { return SmallVec::new() };
        let mut at = self.reply.len() - rest.len();
        let mut found = SmallVec::with_capacity(count);
        while let Some(len) = resp::value_len(&self.reply[at..]) {
            found.push(at..at + len);
            at += len;
        }
        found
    }
}

/// Where the bulk string stands whose bytes stand at `bytes`: its length before, the end of its line behind.
fn bulk(request: &[u8], bytes: &Range<usize>) -> Range<usize> {
    let length = request[..bytes.start].iter().rposition(|b| *b == b'$').unwrap_or(0);
    length..bytes.end + 2
}

/// When a reply that came with this PTTL ends; `None` if it must not be kept.
fn deadline(sent: Time, pttl: i64, reply: &[u8]) -> Option<Time> {
    match pttl {
        -1 => Some(Time::NEVER),
        -2 if says_missing(reply) => Some(Time::NEVER),
        1.. => Some(sent + Duration::from_millis(pttl.cast_unsigned())),
        // The key died between the read and the question, or dies this very millisecond.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_count_from_the_time_of_sending() {
        let value = b"$1\r\nx\r\n";
        assert_eq!(deadline(Time(5), 2, value), Some(Time(2_000_005)));
        assert_eq!(deadline(Time(5), -1, value), Some(Time::NEVER));
        assert_eq!(deadline(Time(5), -2, b"$-1\r\n"), Some(Time::NEVER));
        assert_eq!(deadline(Time(5), -2, value), None, "a value that died in between");
        assert_eq!(deadline(Time(5), 0, value), None);
    }

    #[test]
    fn a_key_is_asked_about_in_the_bytes_the_client_sent() {
        for key in [&b"k"[..], b"", b"a$9\r\n$1", &[b'x'; 300]] {
            let request = resp::encode(&[&b"HGET"[..], key, b"$field"]);
            let start = b"*3\r\n$4\r\nHGET\r\n".len();
            let of_key = resp::encode(&[key])[b"*1\r\n".len()..].to_vec();
            let end = start + of_key.len() - 2;
            assert_eq!(&request[bulk(&request, &(end - key.len()..end))], of_key);
        }
    }
}
