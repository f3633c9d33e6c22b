//! The auditor, always on: a sampled share of hits is read again upstream, behind a barrier, and compared with what was
//! told. It counts what it proves, and a stale answer is one line in the log with the key's last events.
//!
//! A reply that differs is no proof: the key may have changed since. It is a violation only if one of these is known.
//!
//! 1. *No change was reported.* After the other reply had come, link and lane answered a PING, and a lookup as of that
//!    later time would still serve what was told. By the theorem of COHERENCE.md that cannot be.
//! 2. *A write was not waited for.* A write of the key through this proxy had been settled before the hit looked in the
//!    cache, and the hit's token was given before that: rule 2 had removed it.
//! 3. *A clock was not waited for.* Right after the hit, link or lane had not reached the hit's watermark: rule 3.
//!
//! Everything else that differs is *undecided*: the key changed, or the link was lost, while the auditor looked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::cache::entry::CachedReply;
use crate::cache::{Cache, Lookup, MissingProof};
use crate::coherence::Coherence;
use crate::config::Level;
use crate::resp;
use crate::time::Time;

/// Audits on their way at once.
const AT_ONCE: u64 = 16;
/// How long the clocks may take behind the second reply.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of a key that the log shows.
const KEY_SHOWN: usize = 128;

/// Counts down to the next hit that is audited. The gaps are random and forget what came before, so a short session's
/// hits are as likely to be audited as a long one's.
#[derive(Debug)]
pub struct Sampler {
    left: u32,
}

impl Sampler {
    /// Whether the next hit is to be audited.
    pub fn due(&self) -> bool {
        self.left == 0
    }

    /// How many hits come before the next that is.
    pub fn left(&self) -> usize {
        self.left as usize
    }

    /// Counts hits that were not sampled.
    #[expect(clippy::cast_possible_truncation, reason = "never more than are left, which is a u32")]
    pub fn pass(&mut self, hits: usize) {
        self.left -= hits as u32;
    }
}

/// The state of the cache before a hit that is to be audited.
pub struct Before {
    written: Option<u32>,
    /// The time as of which the hit must be fresh. Taken before it, because the hit itself can raise it.
    watermark: Time,
}

/// The part of a hit about one key.
pub struct Told {
    cached: CachedReply,
    /// Known before anything is read again: then a reply that differs is no newer one.
    broken: Option<&'static str>,
}

/// A hit that was told.
pub struct Sample {
    /// The reply: one part, or one for each key of an MGET.
    pub told: Vec<Told>,
    /// The command's name.
    pub command: Vec<u8>,
    /// The level it was told at.
    pub level: Level,
}

/// The result of an audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditVerdict {
    /// The upstream says the same.
    Same,
    /// The server says something else.
    Stale(BrokenRule),
    /// The server says something else, but the key has changed meanwhile, as far as is known.
    Undecided,
}

/// A rule that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokenRule {
    /// In words.
    pub rule: &'static str,
    /// For which of the keys.
    pub key: usize,
}

/// Settings and counters of the process.
pub struct Audit {
    one_in: u32,
    /// Shortest time between two audits.
    gap: Duration,
    next: AtomicU64,
    running: AtomicU64,
    /// Hits whose answer was proven right or wrong.
    pub checked: AtomicU64,
    /// Checked hits that were wrong.
    pub stale: AtomicU64,
    /// Hits whose key changed meanwhile.
    pub undecided: AtomicU64,
    /// Hits that were due, and not looked at: too many at once, or the upstream gave no answer.
    pub skipped: AtomicU64,
}

impl Audit {
    /// One in `one_in` hits, if that is not more than `per_second`. Either may be 0: never.
    pub fn new(one_in: usize, per_second: usize) -> Audit {
        let counter = AtomicU64::default;
        Audit {
            one_in: if per_second == 0 { 0 } else { u32::try_from(one_in).unwrap_or(u32::MAX) },
            gap: Duration::from_secs(1) / u32::try_from(per_second.max(1)).unwrap_or(u32::MAX),
            next: counter(),
            running: counter(),
            checked: counter(),
            stale: counter(),
            undecided: counter(),
            skipped: counter(),
        }
    }

    /// A new countdown. Its length is geometric: each hit has the same chance, whatever came before.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what a u32 holds")]
    pub fn sampler(&self) -> Sampler {
        if self.one_in == 0 {
            return Sampler { left: u32::MAX };
        }
        let gap = crate::chance::uniform().ln() / (1.0 - 1.0 / f64::from(self.one_in)).ln();
        Sampler { left: gap.clamp(0.0, f64::from(u32::MAX)) as u32 }
    }

    /// To be asked before the cache is looked at.
    pub fn before(&self, cache: &Cache, hash: u64, watermark: Time) -> Before {
        Before { written: cache.events.written(hash), watermark }
    }

    /// Whether one more audit may begin now; if so, [`Audit::count`] is called when it ends.
    pub fn may_begin(&self, now: Time) -> bool {
        let due = self.next.load(Ordering::Relaxed);
        let begins = self.one_in > 0
            && now.0 >= due
            && self.running.load(Ordering::Relaxed) < AT_ONCE
            && self.next.compare_exchange(due, (now + self.gap).0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if begins {
            self.running.fetch_add(1, Ordering::Relaxed);
        } else if self.one_in > 0 {
            self.skipped.fetch_add(1, Ordering::Relaxed);
        }
        begins
    }

    /// An audit has ended. `None`: the upstream gave no answer.
    pub fn count(&self, verdict: Option<AuditVerdict>) {
        self.running.fetch_sub(1, Ordering::Relaxed);
        let add = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        match verdict {
            None => add(&self.skipped),
            Some(AuditVerdict::Undecided) => add(&self.undecided),
            Some(AuditVerdict::Same) => add(&self.checked),
            Some(AuditVerdict::Stale(_)) => {
                add(&self.stale);
                add(&self.checked)
            }
        };
    }

    /// The nines that the audits show: 4.00 is 99.99 %. `n` audits without a stale answer show no more than log10 *n*.
    pub fn nines(&self) -> f64 {
        let (checked, stale) = (self.checked.load(Ordering::Relaxed), self.stale.load(Ordering::Relaxed));
        if checked == 0 { 0.0 } else { (checked as f64 / stale.max(1) as f64).log10() }
    }
}

impl Told {
    /// To be called right after the hit, with what [`Audit::before`] said before it.
    pub fn new(cached: CachedReply, before: &Before, cache: &Cache) -> Told {
        let broken = broken_rule(&cached, before, cache);
        Told { cached, broken }
    }

    /// The rule that was broken, if one was; `read`: when the upstream said something else. `Err`: who knows.
    async fn broken_rule(&self, coherence: &Coherence, read: Time) -> Result<Option<&'static str>, ()> {
        if self.broken.is_some() {
            return Ok(self.broken);
        }
        if !coherence.reach(MissingProof { time: read, lane: self.cached.lane() }, PATIENCE).await {
            return Err(());
        }
        let (variant, cache) = (self.cached.variant(), &coherence.cache);
        Ok(match cache.lookup(cache.hash(variant.key), &variant, Time::now(), read, CachedReply::seq) {
            Lookup::Hit(seq) if seq == self.cached.seq() => Some("no change was reported"),
            _ => None,
        })
    }
}

/// The rule that a hit has broken, if that can be seen right after it.
fn broken_rule(cached: &CachedReply, before: &Before, cache: &Cache) -> Option<&'static str> {
    let overtaken = |begun: u32| begun.wrapping_sub(cached.seq()).cast_signed() > 0;
    if before.written.is_some_and(overtaken) {
        return Some("a write through this proxy was acknowledged before");
    }
    let (link, lane) = (cache.clocks.link(), cache.clocks.lane(cached.lane())?);
    let behind = link != Time::ZERO && link.min(lane) < before.watermark;
    // The epoch last: a clock that has begun anew comes after a flush.
    (behind && cache.epoch() == cached.epoch()).then_some("the clocks had not reached its watermark")
}

impl Sample {
    /// Judges the hit by what the upstream has said since.
    pub async fn judge(&self, coherence: &Coherence, again: &[u8]) -> AuditVerdict {
        let read = Time::now();
        let answers = self.answers(again);
        if answers.len() != self.told.len() {
            return AuditVerdict::Undecided;
        }
        let mut verdict = AuditVerdict::Same;
        for (key, (told, answer)) in self.told.iter().zip(answers).enumerate() {
            if same(&self.command, told.cached.reply(), answer) {
                continue;
            }
            match told.broken_rule(coherence, read).await {
                Ok(Some(rule)) => return AuditVerdict::Stale(BrokenRule { rule, key }),
                Ok(None) => verdict = AuditVerdict::Undecided,
                Err(()) => return AuditVerdict::Undecided,
            }
        }
        verdict
    }

    /// The part of a reply about each key.
    fn answers<'a>(&self, reply: &'a [u8]) -> Vec<&'a [u8]> {
        if !self.command.eq_ignore_ascii_case(b"MGET") {
            return vec![reply];
        }
        elements(reply).unwrap_or_default()
    }

    /// The line for the log.
    pub fn report(&self, coherence: &Coherence, violation: BrokenRule, again: &[u8]) {
        let BrokenRule { rule, key } = violation;
        let (cached, again) = (&self.told[key].cached, self.answers(again)[key]);
        let (now, told, cache) = (Time::now(), cached.reply(), &coherence.cache);
        let key = cached.variant().key;
        let differs = told.iter().zip(again).take_while(|(a, b)| a == b).count();
        let events: Vec<String> = describe(cache, cache.hash(key), now).collect();
        tracing::error!(
            "audit: a stale answer was told: {} {} at {}: {} bytes, the upstream says {} bytes, they differ from byte {differs} on; {rule}; the key's last events: {}",
            self.command.escape_ascii(),
            key[..key.len().min(KEY_SHOWN)].escape_ascii(),
            self.level,
            told.len(),
            again.len(),
            if events.is_empty() { "none are remembered".to_owned() } else { events.join(", ") },
        );
    }
}

/// The events remembered of a key, the newest first.
pub fn describe(cache: &Arc<Cache>, hash: u64, now: Time) -> impl Iterator<Item = String> {
    let ago = move |t: Time| now.since(t).as_micros() as f64 / 1000.0;
    cache.events.of_key(hash).into_iter().map(move |(t, event)| format!("{event} {:.1} ms ago", ago(t)))
}

/// Whether two replies to `command` say the same. The members of a set and the fields of a hash have no order: a server
/// that rehashes them tells the same in another one.
fn same(command: &[u8], told: &[u8], again: &[u8]) -> bool {
    let together = match &command.to_ascii_uppercase()[..] {
        b"SMEMBERS" | b"HKEYS" | b"HVALS" => 1,
        b"HGETALL" => 2,
        _ => return told == again,
    };
    told == again || (told.len() == again.len() && unordered(told, together) == unordered(again, together))
}

/// The elements of an aggregate; `None` if it is none.
fn elements(reply: &[u8]) -> Option<Vec<&[u8]>> {
    let (_, mut rest) = resp::split_aggregate(reply)?;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (element, next) = rest.split_at(resp::value_len(rest)?);
        found.push(element);
        rest = next;
    }
    Some(found)
}

/// The elements of an aggregate, sorted, so many at a time; `None` if it is none.
fn unordered(reply: &[u8], together: usize) -> Option<Vec<Vec<&[u8]>>> {
    let mut groups: Vec<Vec<&[u8]>> = elements(reply)?.chunks(together).map(<[_]>::to_vec).collect();
    groups.sort_unstable();
    Some(groups)
}

/// Whether a reply says nothing about the key: an error of the moment (`-LOADING`, `-BUSY`, the connection's end).
pub fn says_nothing(reply: &[u8]) -> bool {
    reply.is_empty() || (matches!(reply[0], b'-' | b'!') && !reply.starts_with(b"-WRONGTYPE"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::entry::Variant;
    use crate::cache::events::Event;
    use crate::cache::{Begin, FillTimes};
    use crate::clock::LaneStamp;
    use crate::coherence::standing::Mode;

    const GET: Variant<'static> = Variant { view: 0, id: 1, key: b"k", tail: b"" };

    struct AuditBench {
        coherence: Coherence,
        audit: Audit,
        lane: LaneStamp,
    }

    impl AuditBench {
        fn new() -> AuditBench {
            let coherence = Coherence::new(Arc::new(Cache::new(1 << 20, 1 << 10)), Duration::from_secs(1));
            let now = Time::now();
            let lane = coherence.cache.clocks.open_lane(now).expect("a lane");
            coherence.cache.clocks.advance_link(now);
            AuditBench { coherence, audit: Audit::new(1, 1_000_000), lane }
        }

        fn fill(&self, reply: &[u8]) {
            let cache = &self.coherence.cache;
            let Begin::Lead(token) = cache.begin(cache.hash(b"k"), &GET) else { panic!("nobody else reads") };
            let times = FillTimes { sent: Time::now(), stored: Time::now(), deadline: Time::NEVER };
            assert!(cache.fill(token, &GET, reply, times, self.lane));
        }

        fn told(&self, watermark: Time, meanwhile: impl FnOnce()) -> Told {
            let cache = &self.coherence.cache;
            let before = self.audit.before(cache, cache.hash(b"k"), watermark);
            let found = cache.lookup(cache.hash(b"k"), &GET, Time::now(), Time::ZERO, CachedReply::clone);
            let Lookup::Hit(cached) = found else { panic!("it is cached") };
            meanwhile();
            Told::new(cached, &before, cache)
        }

        fn hit(&self, watermark: Time) -> Sample {
            let told = vec![self.told(watermark, || {})];
            Sample { told, command: b"GET".to_vec(), level: Level::Bounded }
        }

        /// The clocks go on by themselves until the audit has ended.
        async fn judge(&self, sample: &Sample, again: &[u8]) -> AuditVerdict {
            let beat = async {
                loop {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    self.coherence.lane_answered(self.lane, Time::now());
                    self.coherence.link_pong(Time::now());
                }
            };
            tokio::select! {
                verdict = sample.judge(&self.coherence, again) => verdict,
                () = beat => unreachable!(),
            }
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_change_that_nobody_reported_is_a_violation_and_one_that_was_is_not() {
        let b = AuditBench::new();
        b.coherence.link_up(crate::coherence::LinkId { generation: 1, client_id: 1, mode: Mode::Tracked }, Time::now());
        b.fill(b"old");
        assert_eq!(b.judge(&b.hit(Time::ZERO), b"old").await, AuditVerdict::Same);
        assert!(matches!(b.judge(&b.hit(Time::ZERO), b"new").await, AuditVerdict::Stale(_)));
        let told = b.hit(Time::ZERO);
        b.coherence.key_changed(b"k", Time::now());
        assert_eq!(b.judge(&told, b"new").await, AuditVerdict::Undecided, "reported while the auditor looked");
        b.fill(b"newer");
        assert_eq!(b.judge(&told, b"new").await, AuditVerdict::Undecided, "and read again");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_lost_link_decides_nothing() {
        let b = AuditBench::new();
        b.fill(b"old");
        let told = b.hit(Time::ZERO);
        assert_eq!(told.judge(&b.coherence, b"new").await, AuditVerdict::Undecided);
    }

    #[test]
    fn rules_that_can_be_seen_to_be_broken() {
        let b = AuditBench::new();
        let broken = |watermark| b.told(watermark, || {}).broken;
        b.fill(b"old");
        assert_eq!(broken(Time::ZERO), None);
        assert!(broken(Time::NEVER).is_some(), "the clocks are behind");
        let cache = &b.coherence.cache;
        let hash = cache.hash(b"k");
        let begun = cache.begun();
        cache.events.note(hash, Time::now(), Event::Written(begun));
        assert!(broken(Time::ZERO).is_some(), "a write was settled and the reply is still there");
        let begun = cache.begun();
        cache.drop_key(hash);
        cache.events.note(hash, Time::now(), Event::Written(begun));
        b.fill(b"new");
        assert_eq!(broken(Time::ZERO), None);
        b.coherence.flush(crate::cache::FlushCause::Admin);
        b.fill(b"x");
        let told = b.told(Time::NEVER, || b.coherence.flush(crate::cache::FlushCause::Admin));
        assert_eq!(told.broken, None, "flushed meanwhile");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn each_key_of_mget_is_looked_at() {
        let b = AuditBench::new();
        b.coherence.link_up(crate::coherence::LinkId { generation: 1, client_id: 1, mode: Mode::Tracked }, Time::now());
        b.fill(b"$3\r\nold\r\n");
        let told = || vec![b.told(Time::ZERO, || {}), b.told(Time::ZERO, || {})];
        let mget = || Sample { told: told(), command: b"mget".to_vec(), level: Level::Bounded };
        let verdict = |again: &'static [u8]| async { b.judge(&mget(), again).await };
        assert_eq!(verdict(b"*2\r\n$3\r\nold\r\n$3\r\nold\r\n").await, AuditVerdict::Same);
        let stale = verdict(b"*2\r\n$3\r\nold\r\n$3\r\nnew\r\n").await;
        assert!(matches!(stale, AuditVerdict::Stale(BrokenRule { key: 1, .. })), "{stale:?}");
        assert_eq!(verdict(b"*1\r\n$3\r\nold\r\n").await, AuditVerdict::Undecided, "no reply to this MGET");
        let sample = mget();
        b.coherence.key_changed(b"k", Time::now());
        assert_eq!(b.judge(&sample, b"*2\r\n$-1\r\n$3\r\nold\r\n").await, AuditVerdict::Undecided);
    }

    #[test]
    fn order_matters_where_there_is_one() {
        let (ab, ba) = (b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", b"*2\r\n$1\r\nb\r\n$1\r\na\r\n");
        assert!(same(b"smembers", ab, ba) && !same(b"LRANGE", ab, ba) && !same(b"HGETALL", ab, ba));
        let more = b"*2\r\n$1\r\nb\r\n$1\r\nb\r\n";
        assert!(!same(b"SMEMBERS", ab, more));
        let (pairs, swapped) = (b"%2\r\n:1\r\n:2\r\n:3\r\n:4\r\n", b"%2\r\n:3\r\n:4\r\n:1\r\n:2\r\n");
        assert!(same(b"HGETALL", pairs, swapped));
    }

    #[test]
    fn the_share_is_what_was_asked_for() {
        let gaps = |one_in| {
            let audit = Audit::new(one_in, 1);
            (0..20_000).map(|_| f64::from(audit.sampler().left) + 1.0).sum::<f64>() / 20_000.0
        };
        assert!((gaps(1) - 1.0).abs() < 1e-9);
        assert!((gaps(100) - 100.0).abs() < 5.0, "{}", gaps(100));
        assert!(!Audit::new(0, 1).sampler().due() && !Audit::new(1, 0).may_begin(Time(1)), "off");
    }

    #[test]
    fn no_more_than_so_many_a_second_and_at_once() {
        let audit = Audit::new(1, 10);
        assert!(audit.may_begin(Time(1)) && !audit.may_begin(Time(2)));
        assert_eq!(audit.skipped.load(Ordering::Relaxed), 1);
        let mut now = Time(1);
        let begun = (0..100)
            .filter(|_| {
                now = now + Duration::from_millis(100);
                audit.may_begin(now)
            })
            .count();
        assert_eq!(begun as u64 + 1, AT_ONCE, "none has ended");
        audit.count(Some(AuditVerdict::Same));
        assert!(audit.may_begin(now + Duration::from_secs(1)));
    }

    #[test]
    fn nines() {
        let audit = Audit::new(1, 1);
        assert_eq!(audit.nines(), 0.0);
        audit.checked.store(10_000, Ordering::Relaxed);
        assert_eq!(audit.nines(), 4.0);
        audit.stale.store(10, Ordering::Relaxed);
        assert_eq!(audit.nines(), 3.0);
    }
}
