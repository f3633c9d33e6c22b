//! Reads that the cache can answer.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use smallvec::{SmallVec, smallvec};

use super::flow::OUTPUT_SOFT;
use super::input::Input;
use super::outstanding::SharedRead;
use super::state::LikeGet;
use super::{After, Session, Stall, Step};
use crate::bypass::{Bypass, MGET_MAX};
use crate::cache::entry::{CachedReply, Variant};
use crate::cache::{InFlight, Lookup, MissingProof};
use crate::command::{self, CacheRead, FieldTtl, GET_ID, Plan, Request};
use crate::config::Level;
use crate::outbox::{Piece, Place};
use crate::sabotage::{self, Rule};
use crate::time::Time;
use crate::upstream::connection::Connection;
use crate::upstream::effect::{Effect, KeySet};
use crate::upstream::fill::{FillKey, FillPermit, FillRead};
use crate::upstream::permit::{self, Permission, ReadToKeep};

/// How often one read waits (for a flight, for a clock) before it simply goes upstream.
const MAX_TRIES: u32 = 3;
/// How long one wait for a clock may take.
const PATIENCE: Duration = Duration::from_millis(500);
/// Replies at least this large are not copied.
const BY_REFERENCE: usize = crate::buffer::LARGE;

/// The reply, by reference where that is cheaper than a copy.
fn reply_of(cached: &CachedReply) -> Piece<'_> {
    let reply = cached.reply();
    if reply.len() < BY_REFERENCE { Piece::Slice(reply) } else { Piece::Bytes(cached.reply_bytes()) }
}

impl Session {
    pub(super) fn cached_read(&mut self, request: &Request<'_>, plan: Plan, read: CacheRead) -> Step {
        match read {
            CacheRead::One(field_ttl) => self.read_one(request, plan.id, field_ttl),
            CacheRead::Mget => self.read_many(request),
        }
    }

    /// Whether a hit on this key may be found before what is outstanding is answered. At `bounded` it must not overtake
    /// a write of the same key, nor show an older state than an outstanding read of it, nor pass what may have to do
    /// with any key; it may pass commands about other keys, as if other clients had sent them. (A client library that
    /// sends many requests over one connection nearly always has a write outstanding.) Above `bounded`, it passes nothing.
    fn may_overtake(&self, hash: u64) -> bool {
        self.outbox.waiting() == 0 || self.may_overtake_others() && !self.outstanding.contains(hash)
    }

    fn may_overtake_others(&self) -> bool {
        self.level == Level::Bounded && self.outbox.followed() == 0
    }

    /// Why a read of these keys must not be looked up now.
    fn bars_lookup(&self, hashes: &[u64]) -> Option<Bypass> {
        if !self.shared.node().coherence.keeps(self.level) {
            Some(Bypass::Level)
        } else if self.present.bypass {
            Some(Bypass::Unproven)
        } else if !hashes.iter().all(|hash| self.may_overtake(*hash)) {
            Some(Bypass::Order)
        } else {
            None
        }
    }

    /// The time as of which a hit must be fresh, unless a test breaks that rule.
    fn watermark(&self) -> Time {
        if sabotage::on(Rule::Barrier) { Time::ZERO } else { self.true_watermark() }
    }

    /// The time as of which a hit must be fresh.
    pub(super) fn true_watermark(&self) -> Time {
        let coherence = &self.shared.node().coherence;
        let answered = self.outbox.seen();
        let now = if self.level == Level::Linearizable { self.fresh.arrived } else { self.fresh.now };
        coherence.watermark(self.level, now, self.fresh.arrived.max(answered), self.fresh.shown.max(answered))
    }

    /// The way most requests go: GETs whose replies are there, one after another. The first of another kind is left to
    /// [`Session::dispatch`], as is a hit that is to be audited, or that may not overtake what is outstanding. True if any was served.
    // By itself: inlined, its loop has too few registers (`scripts/counts --release` tells).
    #[inline(never)]
    pub(super) fn serve_hits(&mut self, input: &mut Input) -> bool {
        if self.lent.is_some()
            || self.present.bypass
            || self.round.paused
            || !self.shared.node().coherence.keeps(self.level)
        {
            return false;
        }
        let alone = self.outbox.waiting() == 0;
        if !alone && !self.may_overtake_others() {
            return false;
        }
        let (mut watermark, mut shown, mut served) = (self.watermark(), self.fresh.shown, 0);
        let causal = self.level == Level::Causal;
        let Some(mut out) = self.outbox.direct() else { return false };
        let mut large = false;
        for (key, hash) in input.gets(self.sampler.left()) {
            if !alone && self.outstanding.contains(hash) {
                break;
            }
            let variant = Variant { view: self.identity.view, id: GET_ID, key, tail: b"" };
            let found = self.cache.lookup(hash, &variant, self.fresh.now, watermark, |cached| {
                let reply = reply_of(cached);
                large |= matches!(reply, Piece::Bytes(_));
                out.put(reply);
                cached.stored()
            });
            let Lookup::Hit(stored) = found else { break };
            shown = shown.max(stored);
            if causal {
                watermark = watermark.max(stored);
            }
            served += 1;
            // Those that are looked at at once are few, so small replies are not too much.
            if large && out.bytes() > OUTPUT_SOFT {
                break;
            }
        }
        drop(out);
        if served > 0 {
            self.fresh.shown = shown;
            self.uncounted.hits += served as u64;
            self.latest.name = u32::from(command::GET.name);
            self.sampler.pass(served);
            input.consume_many(served);
            self.requests_done(served);
        }
        served > 0
    }

    fn variant<'a>(&self, request: &Request<'a>, id: u16) -> Variant<'a> {
        Variant { view: self.identity.view, id, key: request.arg(1), tail: &request.buf[request.args[1].end + 2..] }
    }

    fn read_one(&mut self, request: &Request<'_>, id: u16, field_ttl: FieldTtl) -> Step {
        let variant = self.variant(request, id);
        let hash = self.hash(request, 1);
        let mut bypass = self.bars_lookup(&[hash]);
        let waits = match bypass {
            None => self.present.tries < MAX_TRIES,
            Some(Bypass::Order) => self.waits_for_own(hash),
            Some(_) => false,
        };
        if bypass.is_none() {
            let outbox = &self.outbox;
            let before = self.before_hit(&[hash]);
            let found = self.cache.lookup(hash, &variant, self.fresh.now, self.watermark(), |cached| {
                outbox.put(reply_of(cached));
                (cached.stored(), before.is_some().then(|| cached.clone()))
            });
            match found {
                Lookup::Hit((stored, sampled)) => {
                    self.fresh.shown = self.fresh.shown.max(stored);
                    self.uncounted.hits += 1;
                    self.after_hit(before, sampled.into_iter().collect(), request);
                    return Step::Done;
                }
                Lookup::Behind(need) if self.worth_waiting() => return self.wait_for(need),
                Lookup::Behind(_) => bypass = Some(Bypass::Unproven),
                Lookup::Miss => {}
            }
        } else if self.share(request, &[hash]) {
            return Step::Done;
        }
        self.miss(request, &ReadToKeep { hash, variant, request: request.buf.len(), field_ttl }, waits, bypass)
    }

    /// Answers a read by the reply to the same read, which this session has sent already and which is on its way.
    ///
    /// The race: between the two somebody else, perhaps past the proxy, writes the key and is told so, or reads a newer value;
    /// the reply on its way may be older. So a read shares only the reply of one that was *sent after it had arrived*: that
    /// was executed while this one waited, which nobody can tell from this one having been executed at the same instant, at
    /// any level. And only if it keeps its place in the session: since that read the session has sent nothing about the
    /// keys (its own write, or another read, which may show a newer value), nor what may have to do with any key; above
    /// `bounded`, where the order of all keys counts, nothing at all.
    fn share(&mut self, request: &Request<'_>, hashes: &[u64]) -> bool {
        let Some((place, read)) = self.outstanding.latest(hashes, request.buf, self.identity.view) else {
            return false;
        };
        let next = self.outbox.next();
        let in_order = place + 1 == next || self.may_overtake_others();
        if self.present.bypass || read.sent < self.fresh.arrived || !in_order {
            return false;
        }
        let read = read.clone();
        if !self.outbox.reserve_twin(place) {
            return false;
        }
        self.outstanding.note_read(next, hashes, &read);
        self.cache.stats.joined.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Whether a read waits for a flight although this session has something outstanding: most likely the flight is its
    /// own, of a read that was sent before this one arrived, so that the reply cannot be shared. Once it has landed the read
    /// looks in the cache, by the rules of every hit. Not behind an own write of the key, which the flight may be older than; and
    /// not again if the last such wait brought no hit: of what cannot be kept, each read would wait for the one before it.
    fn waits_for_own(&self, hash: u64) -> bool {
        self.present.tries == 0 && !self.waited_in_vain && self.outbox.followed() == 0 && !self.outstanding.writes(hash)
    }

    /// Sends the read upstream, with the right to keep its reply if that is granted; or waits for the same read, which is on its way.
    fn miss(&mut self, request: &Request<'_>, asked: &ReadToKeep<'_>, waits: bool, bypass: Option<Bypass>) -> Step {
        let lane = match self.route() {
            Ok(lane) => lane,
            Err(first) => return first,
        };
        let permit = match FillPermit::ask(&lane, asked, self.fresh.now) {
            Permission::Granted(permit) => Ok(permit),
            Permission::InFlight(flight) if waits => return self.join(flight),
            Permission::InFlight(_) => Err(Bypass::InFlight),
            Permission::Refused(reason) => Err(reason),
        };
        self.count_miss(bypass);
        let hashes = &[asked.hash];
        match permit {
            Ok(permit) => {
                let read = FillRead {
                    view: self.identity.view,
                    id: asked.variant.id,
                    request: request.buf.into(),
                    keys: smallvec![FillKey::new(request.args[1].clone(), Some(permit))],
                    mget: false,
                    field_ttl: asked.field_ttl,
                    fields: match asked.field_ttl {
                        FieldTtl::Named => request.args[2..].to_vec(),
                        _ => Vec::new(),
                    },
                };
                self.send_fill(&lane, read, hashes)
            }
            Err(reason) => {
                self.cache.stats.bypasses.count(reason);
                self.send_read(&lane, request, Effect::Read(asked.hash), hashes)
            }
        }
    }

    /// Waits for a read of the same that is on its way, and looks again.
    fn join(&mut self, flight: Arc<InFlight>) -> Step {
        self.cache.stats.joined.fetch_add(1, Ordering::Relaxed);
        self.waited_in_vain = self.outbox.waiting() > 0;
        // Above `bounded` a hit passes nothing: not even what was sent behind the flight.
        if self.waited_in_vain && self.level != Level::Bounded {
            return Step::Stall(Stall::Drain);
        }
        let landed = async move {
            poll_fn(|cx| flight.poll_landed(cx)).await;
            After::Again
        };
        Step::Stall(Stall::For(Box::pin(landed)))
    }

    fn send_fill(&mut self, lane: &Connection, read: FillRead, hashes: &[u64]) -> Step {
        let place = self.reserve_read(read.request.clone(), hashes);
        lane.send_fill(place, read, self.fresh.now);
        Step::Done
    }

    /// Sends a read that fills nothing.
    fn send_read(&mut self, lane: &Connection, request: &Request<'_>, effect: Effect, hashes: &[u64]) -> Step {
        let place = self.reserve_read(request.buf.into(), hashes);
        lane.send(Piece::Slice(request.buf), place, effect, self.latest.repeatable, self.fresh.now);
        Step::Done
    }

    /// The place of a read that is sent now, and whose reply others of this session may share.
    fn reserve_read(&mut self, request: Rc<[u8]>, hashes: &[u64]) -> Place {
        let read = SharedRead { request, view: self.identity.view, sent: self.fresh.now };
        self.outstanding.note_read(self.outbox.next(), hashes, &read);
        self.outbox.reserve(false)
    }

    /// A read goes upstream; `bypass`: it was not answered from the cache for this reason.
    fn count_miss(&self, bypass: Option<Bypass>) {
        self.cache.stats.misses.fetch_add(1, Ordering::Relaxed);
        bypass.into_iter().for_each(|reason| self.cache.stats.bypasses.count(reason));
    }

    /// A clock that stands still is not waited for: the read goes upstream.
    fn worth_waiting(&self) -> bool {
        let coherence = &self.shared.node().coherence;
        self.present.tries < MAX_TRIES
            && coherence.clock_age(self.fresh.now).is_some_and(|age| age <= self.shared.config.max_staleness)
    }

    fn wait_for(&self, need: MissingProof) -> Step {
        let node = self.shared.node().clone();
        Step::Stall(Stall::For(Box::pin(async move {
            if node.coherence.reach(need, PATIENCE).await { After::Again } else { After::Upstream }
        })))
    }

    /// Whether MGET may be answered by what GETs were told, and GETs by what it is told (see [`crate::node::acl`]). The count is
    /// read first: what is then read is as new.
    pub(super) fn shares_get_and_mget(&mut self) -> bool {
        let node = self.shared.node();
        let as_of = node.acl_changes.load(Ordering::Acquire);
        if let Some(known) = self.identity.like_get
            && known.as_of == as_of
        {
            return known.shares;
        }
        let seen = node.acl.load();
        // After a change that no look has followed yet nobody knows.
        let shares = (seen.as_of == as_of).then(|| seen.acl.shares_get_and_mget(self.identity.key.user()));
        self.identity.like_get = shares.map(|shares| LikeGet { as_of, shares });
        shares.unwrap_or(false)
    }

    /// MGET: one snapshot, or upstream as a whole.
    fn read_many(&mut self, request: &Request<'_>) -> Step {
        let hashes: Vec<u64> = (1..request.len()).map(|i| self.hash(request, i)).collect();
        if !self.shares_get_and_mget() {
            return self.miss_many(request, &hashes, Some(Bypass::Rights));
        }
        let mut bypass = self.bars_lookup(&hashes);
        if bypass.is_none() {
            let before = self.before_hit(&hashes);
            match self.snapshot(request, &hashes, before.is_some()) {
                Lookup::Hit((reply, shown)) => {
                    self.outbox.put(Piece::Slice(&reply));
                    self.uncounted.hits += 1;
                    self.after_hit(before, shown, request);
                    return Step::Done;
                }
                Lookup::Behind(need) if self.worth_waiting() => return self.wait_for(need),
                Lookup::Behind(_) => bypass = Some(Bypass::Unproven),
                Lookup::Miss => {}
            }
        } else if self.share(request, &hashes) {
            return Step::Done;
        }
        self.miss_many(request, &hashes, bypass)
    }

    /// Sends the MGET upstream. Each element of the reply is kept for which that is permitted.
    fn miss_many(&mut self, request: &Request<'_>, hashes: &[u64], bypass: Option<Bypass>) -> Step {
        let lane = match self.route() {
            Ok(lane) => lane,
            Err(first) => return first,
        };
        self.count_miss(bypass);
        let (keys, refused) = match bypass {
            Some(Bypass::Rights) => (SmallVec::new(), None),
            _ => self.permits(&lane, request, hashes),
        };
        refused.into_iter().for_each(|reason| self.cache.stats.bypasses.count(reason));
        if !keys.iter().any(FillKey::is_permitted) {
            let effect = Effect::of_keys(KeySet { reads: hashes.to_vec(), ..KeySet::default() });
            return self.send_read(&lane, request, effect, hashes);
        }
        let (view, id) = (self.identity.view, GET_ID);
        let request = request.buf.into();
        let read = FillRead { view, id, request, keys, mget: true, field_ttl: FieldTtl::No, fields: Vec::new() };
        self.send_fill(&lane, read, hashes)
    }

    /// An MGET's keys, with the right to keep their elements where it is granted; and a reason why it was not, if it was not for any.
    fn permits(
        &self,
        lane: &Connection,
        request: &Request<'_>,
        hashes: &[u64],
    ) -> (SmallVec<[FillKey; 1]>, Option<Bypass>) {
        if hashes.len() > MGET_MAX {
            return (SmallVec::new(), Some(Bypass::TooManyKeys));
        }
        let mut refused = None;
        let mut permit = |i: usize| {
            let variant = Variant { view: self.identity.view, id: GET_ID, key: request.arg(i), tail: b"" };
            let asked =
                ReadToKeep { hash: hashes[i - 1], variant, request: request.buf.len(), field_ttl: FieldTtl::No };
            match FillPermit::ask(lane, &asked, self.fresh.now) {
                Permission::Granted(permit) => return Some(permit),
                // A key that the request names twice is in flight by its first mention.
                Permission::InFlight(_) if hashes[..i - 1].contains(&hashes[i - 1]) => {}
                Permission::InFlight(_) => refused = Some(Bypass::InFlight),
                Permission::Refused(reason) => refused = Some(reason),
            }
            None
        };
        let keys = (1..request.len()).map(|i| FillKey::new(request.args[i].clone(), permit(i))).collect();
        (keys, refused)
    }

    /// Why the reply to this read would not be kept, were it sent now: for EXPLAIN.
    pub(super) fn why_not_kept(&self, request: &Request<'_>, read: CacheRead, now: Time) -> Option<Bypass> {
        let (keys, field_ttl) = match read {
            CacheRead::One(field_ttl) => (1..2, field_ttl),
            CacheRead::Mget if request.len() - 1 > MGET_MAX => return Some(Bypass::TooManyKeys),
            CacheRead::Mget => (1..request.len(), FieldTtl::No),
        };
        keys.into_iter().find_map(|i| {
            let variant = Variant { view: self.identity.view, id: GET_ID, key: request.arg(i), tail: b"" };
            let asked = ReadToKeep { hash: self.hash(request, i), variant, request: request.buf.len(), field_ttl };
            permit::refusal(self.lanes.reads.as_ref().unwrap_or(&self.lanes.any), &asked, now)
        })
    }

    /// All of MGET's keys as of one instant: every entry was filled before the time that link and lanes prove, so all
    /// of them held then. With the reply, if it is `sampled`, what it was made of.
    fn snapshot(
        &mut self,
        request: &Request<'_>,
        hashes: &[u64],
        sampled: bool,
    ) -> Lookup<(Vec<u8>, Vec<CachedReply>)> {
        // Read first: whatever is found afterwards has survived everything acknowledged before this time.
        let mut proven = self.cache.clocks.link();
        let watermark = self.watermark();
        let mut reply = format!("*{}\r\n", hashes.len()).into_bytes();
        let mut youngest = Time::ZERO;
        let mut slowest = None;
        let mut shown = Vec::new();
        for (i, hash) in hashes.iter().enumerate() {
            let variant = Variant { view: self.identity.view, id: GET_ID, key: request.arg(i + 1), tail: b"" };
            let found = self.cache.lookup(*hash, &variant, self.fresh.now, watermark, |cached| {
                reply.extend_from_slice(cached.reply());
                shown.extend(sampled.then(|| cached.clone()));
                (cached.stored(), cached.lane())
            });
            let (stored, lane) = match found {
                Lookup::Hit(found) => found,
                Lookup::Behind(need) => return Lookup::Behind(need),
                Lookup::Miss => return Lookup::Miss,
            };
            youngest = youngest.max(stored);
            let alive = self.cache.clocks.lane(lane).unwrap_or(Time::ZERO);
            if alive < proven || slowest.is_none() {
                slowest = Some(lane);
            }
            proven = proven.min(alive);
        }
        match slowest {
            Some(lane) if youngest > proven && !sabotage::on(Rule::Snapshot) => {
                Lookup::Behind(MissingProof { time: youngest, lane })
            }
            _ => {
                self.fresh.shown = self.fresh.shown.max(youngest);
                Lookup::Hit((reply, shown))
            }
        }
    }
}
