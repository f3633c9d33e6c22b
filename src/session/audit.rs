//! Hits that are audited ([`crate::audit`]): the same read once more, on the session's lane.

use super::Session;
use super::local::ask;
use crate::audit::{Before, Sample, Verdict, says_nothing};
use crate::cache::entry::Node;

impl Session {
    /// Told: `node`. The rest goes on behind the session's back.
    pub(super) fn audit(&mut self, node: Node, before: Before, command: &[u8], request: &[u8]) {
        self.sampler = self.shared.audit.sampler();
        let sample = Sample { node, command: command.to_vec(), before, level: self.level };
        let broken = sample.broken_rule(&self.cache);
        if !self.shared.audit.may_begin(self.now) {
            return;
        }
        let again = ask(&self.lane, request);
        let shared = self.shared.clone();
        tokio::task::spawn_local(async move {
            let coherence = &shared.node.coherence;
            let verdict = match tokio::time::timeout(shared.config.upstream_timeout, again).await {
                Ok(again) if !says_nothing(&again) => {
                    let verdict = sample.judge(coherence, broken, &again).await;
                    if let Verdict::Stale(rule) = verdict {
                        sample.report(coherence, rule, &again);
                    }
                    Some(verdict)
                }
                _ => None,
            };
            shared.audit.count(verdict);
        });
    }
}
