//! Is there an order of all operations on one key, each at some moment between its beginning and its end, that explains
//! every answer? The exact search of Wing and Gong with Lowe's just-in-time linearization and memory.
//!
//! The search walks through time. It keeps every *configuration* that explains what has ended so far: a state of the
//! key, and which of the open operations have happened already. When an operation ends, it must have happened: each
//! configuration in which it has not is continued by open operations, in every order, until it has. No configuration
//! left: no order exists, and the operation that ended is where it shows.
//!
//! Keys are independent, so each is searched alone. Nothing is guessed: if the search grows beyond its budget, it says so.

use ahash::AHashSet;

use super::history::Span;
use super::register::{RegisterState, RegisterStep, Values};
use crate::time::Time;

/// Open operations there may be at once: bits of a configuration.
const MOST_OPEN: usize = u128::BITS as usize;

/// Something that happens in one moment of a stretch of time.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Within this. Without an end it may happen at any later time, or never.
    pub span: Span,
    /// The change.
    pub step: RegisterStep,
    /// The operation it stands for.
    pub op: Option<usize>,
}

impl Moment {
    fn is_pending(&self) -> bool {
        self.span.end == Time::NEVER
    }

    /// Pending moments with the same effect, about which nothing was answered: which of them happens makes no difference.
    fn is_like(&self, other: &Moment) -> bool {
        self.step == other.step && matches!(self.step, RegisterStep::Delete | RegisterStep::Increment(None))
    }
}

/// The result of the search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SearchVerdict {
    /// There is such an order.
    Linearizable,
    /// There is none once the moment of this index has ended; the key could have had these values then.
    Violated(usize, Vec<String>),
    /// The budget ended.
    Undecided,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Configuration {
    state: RegisterState,
    /// Open moments, by slot, that have happened.
    done: u128,
}

struct Search<'a> {
    moments: &'a [Moment],
    values: &'a mut Values,
    eroded: &'a [Span],
    /// The moment in each slot.
    open: Vec<Option<usize>>,
    configurations: AHashSet<Configuration>,
    /// Configurations that may still be looked at.
    budget: usize,
}

/// Searches in at most `budget` configurations. Within `eroded` the key may be evicted at any time.
pub fn search(moments: &[Moment], values: &mut Values, eroded: &[Span], budget: usize) -> SearchVerdict {
    let start = Configuration { state: RegisterState::default(), done: 0 };
    let configurations = AHashSet::from_iter([start]);
    let mut search = Search { moments, values, eroded, open: Vec::new(), configurations, budget };
    for (_, ends, i) in events(moments) {
        if !ends {
            if !search.begin(i) {
                return SearchVerdict::Undecided;
            }
            continue;
        }
        let before = search.configurations.clone();
        if !search.end(i) {
            return SearchVerdict::Undecided;
        }
        if search.configurations.is_empty() {
            return SearchVerdict::Violated(i, search.possible(&before));
        }
    }
    SearchVerdict::Linearizable
}

/// Beginnings and ends in the order of time; at the same instant beginnings come first, which allows more.
fn events(moments: &[Moment]) -> Vec<(Time, bool, usize)> {
    let mut events: Vec<_> = (0..moments.len()).map(|i| (moments[i].span.start, false, i)).collect();
    events.extend((0..moments.len()).filter(|i| !moments[*i].is_pending()).map(|i| (moments[i].span.end, true, i)));
    events.sort_unstable();
    events
}

impl Search<'_> {
    /// False: too many are open.
    fn begin(&mut self, i: usize) -> bool {
        let free = self.open.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            self.open.push(None);
            self.open.len() - 1
        });
        self.open[slot] = Some(i);
        if slot >= MOST_OPEN {
            return false;
        }
        if let RegisterStep::See(_) = self.moments[i].step {
            self.configurations = self.configurations.iter().map(|c| self.with_reads(*c)).collect();
        }
        true
    }

    /// Continues every configuration until moment `i` has happened in it. False: the budget is used up.
    fn end(&mut self, i: usize) -> bool {
        let Some(slot) = self.open.iter().position(|open| *open == Some(i)) else { return true };
        let bit = 1 << slot;
        let mut settled = AHashSet::with_capacity(self.configurations.len());
        let mut seen = std::mem::take(&mut self.configurations);
        let mut stack: Vec<Configuration> = seen.iter().copied().collect();
        while let Some(c) = stack.pop() {
            if c.done & bit != 0 {
                settled.insert(Configuration { done: c.done & !bit, ..c });
                continue;
            }
            if self.budget == 0 {
                return false;
            }
            self.budget -= 1;
            for next in self.continued(c) {
                if seen.insert(next) {
                    stack.push(next);
                }
            }
        }
        self.configurations = settled;
        self.open[slot] = None;
        true
    }

    /// Every configuration that is one moment further.
    fn continued(&mut self, c: Configuration) -> Vec<Configuration> {
        let mut found = Vec::new();
        for slot in 0..self.open.len() {
            let Some(i) = self.open[slot].filter(|_| c.done & (1 << slot) == 0) else { continue };
            if self.is_shadowed(c, i) {
                continue;
            }
            let moment = self.moments[i];
            let eroding = self.eroded.iter().any(|span| span.meets(moment.span));
            for state in self.values.after(c.state, moment.step, eroding).into_iter().flatten() {
                found.push(self.with_reads(Configuration { state, done: c.done | 1 << slot }));
            }
        }
        found
    }

    /// A read that fits may happen at once: it changes nothing, so no other order loses by it.
    fn with_reads(&self, c: Configuration) -> Configuration {
        let fits = |i: usize| !c.state.doubtful && self.moments[i].step == RegisterStep::See(c.state.value);
        let reads = (0..self.open.len()).filter(|slot| self.open[*slot].is_some_and(fits));
        Configuration { done: reads.fold(c.done, |done, slot| done | 1 << slot), ..c }
    }

    /// Among pending moments that are alike only the first needs to be tried.
    fn is_shadowed(&self, c: Configuration, i: usize) -> bool {
        let moment = &self.moments[i];
        let earlier = |slot: usize, j: usize| {
            let other = &self.moments[j];
            c.done & (1 << slot) == 0
                && other.is_pending()
                && other.is_like(moment)
                && (other.span.start, j) < (moment.span.start, i)
        };
        moment.is_pending() && (0..self.open.len()).any(|slot| self.open[slot].is_some_and(|j| earlier(slot, j)))
    }

    /// The values that the key could have had.
    fn possible(&self, configurations: &AHashSet<Configuration>) -> Vec<String> {
        let mut values: Vec<String> = configurations.iter().map(|c| self.values.name(c.state.value)).collect();
        values.sort();
        values.dedup();
        values
    }
}

#[cfg(test)]
mod tests;
