//! Hits that are audited ([`crate::audit`]): the same read once more, on the session's lane.

use std::sync::Arc;

use super::Session;
use super::local::ask_again;
use crate::audit::{AuditVerdict, Before, Sample, Told, says_nothing};
use crate::cache::entry::CachedReply;
use crate::command::Request;
use crate::sabotage;
use crate::shared::Shared;

/// An MGET of more keys is not audited: the next hit is, in its place.
const MOST_KEYS: usize = 256;

impl Session {
    /// If the next hit is to be audited: what the cache looks like before it, for each of its keys.
    pub(super) fn before_hit(&self, hashes: &[u64]) -> Option<Vec<Before>> {
        let before = |hash: &u64| self.shared.audit.before(&self.cache, *hash, self.true_watermark());
        (self.sampler.due() && hashes.len() <= MOST_KEYS).then(|| hashes.iter().map(before).collect())
    }

    /// A hit was told. `shown`: what it showed, if [`Session::before_hit`] wanted to know.
    pub(super) fn after_hit(&mut self, before: Option<Vec<Before>>, shown: Vec<CachedReply>, request: &Request<'_>) {
        match before {
            Some(before) => self.audit(&before, shown, request),
            None if !self.sampler.due() => self.sampler.pass(1),
            None => {}
        }
    }

    /// The rest goes on behind the session's back.
    fn audit(&mut self, before: &[Before], shown: Vec<CachedReply>, request: &Request<'_>) {
        self.sampler = self.shared.audit.sampler();
        let told = shown.into_iter().zip(before).map(|(cached, before)| Told::new(cached, before, &self.cache));
        let sample = Sample { told: told.collect(), command: request.arg(0).to_vec(), level: self.level };
        if !self.shared.audit.may_begin(self.fresh.now) {
            return;
        }
        let again = ask_again(&self.lanes.any, request.buf);
        let mut begun = Begun { shared: self.shared.clone(), verdict: None };
        tokio::task::spawn_local(async move {
            sabotage::panic_at("audit");
            let shared = begun.shared.clone();
            let coherence = &shared.node().coherence;
            let verdict = match tokio::time::timeout(shared.config.upstream_timeout, again).await {
                Ok(again) if !says_nothing(&again) => {
                    let verdict = sample.judge(coherence, &again).await;
                    if let AuditVerdict::Stale(violation) = verdict {
                        sample.report(coherence, violation, &again);
                    }
                    Some(verdict)
                }
                _ => None,
            };
            begun.ends(verdict);
        });
    }
}

/// An audit on its way; it is counted when dropped, however it has ended.
struct Begun {
    shared: Arc<Shared>,
    verdict: Option<AuditVerdict>,
}

impl Begun {
    fn ends(&mut self, verdict: Option<AuditVerdict>) {
        self.verdict = verdict;
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.shared.audit.count(self.verdict);
    }
}
