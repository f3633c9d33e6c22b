//! One object's part of a history in the words of the search.

use ahash::{AHashMap, AHashSet};
use bytes::Bytes;

use super::facts::{TOKEN, expiry};
use super::history::{Action, Change, History, Op, Seen, Span};
use super::linearizable::Moment;
use super::register::{RegisterStep, TtlId, Values};
use crate::config::Level;
use crate::time::Time;

/// All writes, and those reads that must be linearizable: past the proxies, or promised.
pub fn of(history: &History, ops: &[usize]) -> (Vec<Moment>, Values) {
    let grows = |i: &usize| matches!(history.ops[*i].action, Action::Write(Change::Increment(_) | Change::Append(..)));
    let (moments, values) = Default::default();
    let mut object = ObjectMoments { moments, values, shown: shown(history, ops), grows: ops.iter().any(grows) };
    for i in ops.iter().copied() {
        let op = &history.ops[i];
        match &op.action {
            Action::Read(_, seen) if is_held_to_it(history, op) => object.read(i, op, seen),
            Action::Read(..) => {}
            Action::Write(change) => object.write(i, op, change),
        }
    }
    let life = life(history, ops);
    let during = |span: &&Span| life.is_some_and(|life| life.meets(**span));
    object.world(history.erased.iter().filter(during), RegisterStep::Delete);
    object.world(history.eroded.iter().filter(during), RegisterStep::Doubt);
    (object.moments, object.values)
}

fn is_held_to_it(history: &History, op: &Op) -> bool {
    matches!(history.routes[history.route(op)].level, None | Some(Level::Linearizable))
}

/// From the first to the last that was done.
fn life(history: &History, ops: &[usize]) -> Option<Span> {
    let start = ops.iter().map(|i| history.ops[*i].start).min()?;
    let end = ops.iter().map(|i| history.ops[*i].end.unwrap_or(history.ops[*i].start)).max()?;
    Some(Span { start, end })
}

/// By when each value, or token of a value, had been shown to somebody.
fn shown(history: &History, ops: &[usize]) -> AHashMap<Bytes, Time> {
    let mut shown: AHashMap<Bytes, Time> = AHashMap::new();
    let mut met: AHashSet<Bytes> = AHashSet::new();
    for op in ops.iter().map(|i| &history.ops[*i]).filter(|op| is_held_to_it(history, op)) {
        let (Action::Read(_, Seen::Value(value)), Some(end)) = (&op.action, op.end) else { continue };
        if met.insert(value.clone()) {
            shown.entry(value.clone()).or_insert(end);
            for start in (0..value.len()).step_by(TOKEN) {
                shown.entry(value.slice(start..value.len().min(start + TOKEN))).or_insert(end);
            }
        }
    }
    shown
}

struct ObjectMoments {
    moments: Vec<Moment>,
    values: Values,
    shown: AHashMap<Bytes, Time>,
    /// A value may show in what was made of it.
    grows: bool,
}

impl ObjectMoments {
    fn put(&mut self, span: Span, step: RegisterStep, op: Option<usize>) {
        self.moments.push(Moment { span, step, op });
    }

    fn read(&mut self, i: usize, op: &Op, seen: &Seen) {
        let value = match seen {
            // reported as such; no order could explain it
            Seen::Torn(_) => return,
            Seen::Absent => 0,
            Seen::Value(value) => self.values.id(value),
        };
        self.put(op.span(), RegisterStep::See(value), Some(i));
    }

    #[expect(clippy::cast_possible_truncation, reason = "a history has fewer operations")]
    fn write(&mut self, i: usize, op: &Op, change: &Change) {
        let ttl_id = i as TtlId + 1;
        let span = op.span();
        match change {
            Change::Set { value, ttl, keeps_ttl } => {
                let Some(span) = self.outcome(op, value) else {
                    // Nobody saw it, so it may as well not have happened; but if its time has ended, the key is absent.
                    if ttl.is_some() {
                        self.put(span, RegisterStep::Delete, Some(i));
                    }
                    return;
                };
                let value = self.values.id(value);
                let id = ttl.map_or(0, |_| ttl_id);
                self.put(span, RegisterStep::Set { value, ttl: id, keeps_ttl: *keeps_ttl }, Some(i));
                if let Some(ttl) = ttl {
                    self.put(expiry(op, *ttl), RegisterStep::End(ttl_id), Some(i));
                }
            }
            Change::Delete => self.put(span, RegisterStep::Delete, Some(i)),
            Change::DeleteFields => self.put(span, RegisterStep::DeleteFields, Some(i)),
            Change::Increment(sum) => self.put(span, RegisterStep::Increment(*sum), Some(i)),
            Change::Append(token, length) => {
                let span = self.outcome(op, token).unwrap_or(span);
                let token = self.values.id(token);
                self.put(span, RegisterStep::Append(token, *length), Some(i));
            }
            Change::Expire { after, fields } => {
                self.put(span, RegisterStep::Limit(ttl_id, *fields), Some(i));
                self.put(expiry(op, *after), RegisterStep::End(ttl_id), Some(i));
            }
        }
    }

    /// When a write happened: if it was not acknowledged, before it was shown; `None` if it was not, and it does not
    /// matter whether it happened.
    fn outcome(&self, op: &Op, value: &Bytes) -> Option<Span> {
        let end = op.end.or_else(|| self.shown.get(value).copied());
        let end = end.or(self.grows.then_some(Time::NEVER));
        end.map(|end| Span { start: op.start, end: end.max(op.start) })
    }

    fn world<'a>(&mut self, spans: impl Iterator<Item = &'a Span>, step: RegisterStep) {
        spans.for_each(|span| self.put(*span, step, None));
    }
}
