//! Which way a request goes, by its plan; and what is done once that is known.

use std::rc::Rc;

use super::input::Input;
use super::lent::Lent;
use super::{Session, Step};
use crate::bypass::Bypass;
use crate::command::{CommandTable, EffectClass, Keys, Need, Plan, Request, Route, Word};
use crate::outbox::Piece;
use crate::sabotage;
use crate::upstream::connection::Connection;
use crate::upstream::effect::change::RightsChange;
use crate::upstream::effect::{Effect, KeySet};

impl Session {
    /// Deals with the present request as far as it goes now.
    pub(super) fn dispatch(&mut self, request: &Request<'_>, table: &CommandTable, keys: &mut Keys) -> Step {
        let plan = table.plan(request, keys);
        sabotage::panic_at("session");
        self.latest.name = u32::from(plan.name);
        self.latest.repeatable = plan.repeatable;
        self.latest.word = plan.word;
        if plan.route == Route::Unlisted
            && let Some(step) = self.unlisted(request)
        {
            return step;
        }
        if let Some(reason) = self.bars_cache()
            && self.present.tries == 0
            && matches!(plan.route, Route::Cache(_))
        {
            self.cache.stats.bypasses.count(reason);
        }
        if self.lent.is_some() {
            return self.dispatch_lent(request, plan, keys);
        }
        if self.identity.key.login.is_stranger()
            && let Some(step) = self.introduce(request, plan)
        {
            return step;
        }
        if self.is_outsized(request, plan) {
            return self.outsized();
        }
        match plan.route {
            Route::Cache(_) | Route::Lane | Route::Unlisted if self.round.paused => self.alone(request, plan, keys),
            Route::Cache(read) => self.cached_read(request, plan, read),
            Route::Lane | Route::Unlisted => match self.lane_or_apart(request) {
                Ok(lane) => self.forward(lane, self.effect(request, plan, keys)),
                Err(first) => first,
            },
            Route::Dedicated(Need::Alone) => self.alone(request, plan, keys),
            Route::Dedicated(Need::Wait) => self.wait(request),
            Route::Dedicated(need) => self.dedicate(request, plan.word, need),
            Route::Local(local) => self.local(request, local),
        }
    }

    /// Why no read of the session has to do with the cache now.
    pub(super) fn bars_cache(&self) -> Option<Bypass> {
        match self.lent {
            Some(_) => Some(Bypass::OwnConnection),
            None => self.round.paused.then_some(Bypass::Paused),
        }
    }

    /// Down this lane, once there is room.
    pub(super) fn forward(&self, lane: Rc<Connection>, effect: Effect) -> Step {
        match self.wait_for_room(&lane) {
            Some(stall) => Step::Stall(stall),
            None => Step::Send(lane, effect),
        }
    }

    /// The hash of argument `i`.
    pub(super) fn hash(&self, request: &Request<'_>, i: usize) -> u64 {
        request.hash.filter(|_| i == 1).unwrap_or_else(|| self.cache.hash(request.arg(i)))
    }

    /// The command's effect on the cache, by the hashes of its keys.
    pub(super) fn effect(&self, request: &Request<'_>, plan: Plan, keys: &Keys) -> Effect {
        let hash = |positions: &[usize]| positions.iter().map(|i| self.hash(request, *i)).collect();
        let scripted = plan.route == Route::Dedicated(Need::Alone);
        let set = || KeySet { writes: hash(&keys.writes), reads: hash(&keys.reads), scripted };
        match plan.effect {
            EffectClass::None => Effect::None,
            EffectClass::Flush => Effect::Flush,
            EffectClass::Rights => Effect::Rights(Box::new(RightsChange::of(request, plan.word))),
            EffectClass::Keys => match (&keys.writes[..], &keys.reads[..]) {
                ([key], []) if !scripted => Effect::Write(self.hash(request, *key)),
                ([], [key]) if !scripted => Effect::Read(self.hash(request, *key)),
                _ => Effect::of_keys(set()),
            },
            EffectClass::Unknown => Effect::Unknown(Box::new(set())),
        }
    }

    /// Does what was decided about the present request.
    pub(super) fn carry_out(&mut self, step: Step, input: &mut Input) {
        match step {
            Step::Stall(stall) => {
                self.present.tries += 1;
                self.stall = Some(stall);
                return;
            }
            Step::Replace(request) => {
                self.present.replaced = true;
                return input.replace(&request);
            }
            Step::Close => self.ending.closing = Some("it said QUIT"),
            Step::Done => {}
            Step::Send(connection, effect) => {
                self.wrote |= self.writes(&effect);
                let known = self.outstanding.note_all(self.outbox.next(), &effect);
                self.outstanding.note_size(self.outbox.next(), input.request().buf.len());
                let place = self.outbox.reserve(!known);
                if input.request().buf.len() >= crate::buffer::LARGE {
                    connection.send(Piece::Bytes(input.take()), place, effect, self.latest.repeatable, self.fresh.now);
                    return self.next_request();
                }
                connection.send(
                    Piece::Slice(input.request().buf),
                    place,
                    effect,
                    self.latest.repeatable,
                    self.fresh.now,
                );
            }
        }
        input.consume();
        self.next_request();
    }

    /// Whether the request may write something that a later WAIT is to count. What a transaction has queued is written by EXEC.
    fn writes(&self, effect: &Effect) -> bool {
        let in_multi = self.lent.as_ref().is_some_and(Lent::in_multi);
        match effect {
            Effect::None => self.latest.word == Word::PassedOn,
            Effect::Step(step) => step.word == Word::Exec || !in_multi && step.effect.may_write(),
            effect => effect.may_write(),
        }
    }

    /// Answers with one line of the proxy's own.
    pub(super) fn say(&self, line: &str) -> Step {
        self.outbox.put(Piece::Slice(line.as_bytes()));
        self.outbox.put(Piece::Slice(b"\r\n"));
        Step::Done
    }
}
