//! Where the keys of one request are, and so what it does to the cache.

use super::build::Spec;
use super::reply::KeySpec;
use super::table::{BeginSearch, FindKeys, Shape, StaticRoute, Touch};
use super::{EffectClass, Keys, Request};
use crate::config::ScriptKeys;

/// Finds the keys of `request` and says what it does to the cache. Where a rule can only guess, it finds more keys than
/// there are, never fewer.
pub(super) fn effect(spec: &Spec, request: &Request<'_>, script_keys: ScriptKeys, keys: &mut Keys) -> EffectClass {
    if let StaticRoute::Read(shape) = spec.fate {
        let end = if matches!(shape, Shape::Mget | Shape::Single) { request.len() } else { request.len().min(2) };
        keys.reads.extend(1..end);
        return if keys.reads.is_empty() { EffectClass::None } else { EffectClass::Keys };
    }
    match spec.touch {
        Touch::Nothing => EffectClass::None,
        Touch::Everything => EffectClass::Flush,
        Touch::Rights => EffectClass::Rights,
        Touch::Settings => settings(request),
        Touch::Script { writes } => script(request, writes, script_keys, keys),
        Touch::Sort => sort(request, keys),
        Touch::GeoStore { from } => geo_store(request, from, keys),
        Touch::Migrate => migrate(request, keys),
        Touch::Server(_) => by_specs(spec, request, keys),
    }
}

/// Settings and their values take turns; a value that is taken for a setting costs one look at the rights.
fn settings(request: &Request<'_>) -> EffectClass {
    let password = (2..request.len()).any(|i| request.arg(i).eq_ignore_ascii_case(b"requirepass"));
    if password { EffectClass::Rights } else { EffectClass::None }
}

/// Whether XREAD or XREADGROUP says BLOCK among its options. The group and the consumer can have any name.
pub(super) fn says_block(request: &Request<'_>) -> bool {
    let mut i = 1;
    while i < request.len() {
        let word = request.arg(i);
        if word.eq_ignore_ascii_case(b"block") {
            return true;
        }
        if word.eq_ignore_ascii_case(b"streams") {
            return false;
        }
        i += if word.eq_ignore_ascii_case(b"group") { 3 } else { 1 };
    }
    false
}

fn by_specs(spec: &Spec, request: &Request<'_>, keys: &mut Keys) -> EffectClass {
    for one in &spec.keys {
        let to = if one.write && !spec.readonly { &mut keys.writes } else { &mut keys.reads };
        one.find_in(request, to);
    }
    let none = keys.writes.is_empty() && keys.reads.is_empty();
    match (spec.unknown, none) {
        (true, _) => EffectClass::Unknown,
        (false, true) if spec.unknown_without_keys => EffectClass::Unknown,
        (false, true) => EffectClass::None,
        (false, false) => EffectClass::Keys,
    }
}

impl KeySpec {
    /// Adds the keys' places, as the server's `getKeysUsingKeySpecs` does.
    fn find_in(&self, request: &Request<'_>, to: &mut Vec<usize>) {
        let Some(first) = self.first(request) else {
            return;
        };
        let end = request.len();
        match self.find {
            FindKeys::Range { last: 0, .. } => to.push(first),
            FindKeys::Range { last, step, limit } => {
                to.extend((first..range_end(first, last, limit, end)).step_by(step))
            }
            FindKeys::KeyNum { count, first: skip, step } => {
                let count = if first + count < end { number(request.arg(first + count)).unwrap_or(0) } else { 0 };
                let first = first + skip;
                to.extend((first..end).step_by(step).take(count));
            }
        }
    }

    fn first(&self, request: &Request<'_>) -> Option<usize> {
        let (word, from) = match &self.begin {
            BeginSearch::Index(at) => return Some(*at).filter(|at| *at < request.len()),
            BeginSearch::Keyword { word, from } => (word, *from),
        };
        // The last argument is not looked at: no key could follow.
        let last = request.len().saturating_sub(1);
        let found = |i: &usize| request.arg(*i).eq_ignore_ascii_case(word);
        let place = match usize::try_from(from) {
            Ok(from) => (from.max(1)..last).find(found),
            Err(_) => {
                let back = usize::try_from(from.unsigned_abs()).unwrap_or(usize::MAX);
                (2..=request.len().saturating_sub(back)).rev().filter(|i| *i < request.len()).find(found)
            }
        };
        place.map(|i| i + 1)
    }
}

/// The end of a range of keys, itself not a key; never beyond the request.
fn range_end(first: usize, last: i64, limit: i64, end: usize) -> usize {
    let signed = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let last = match (last >= 0, limit > 1) {
        (true, _) => signed(first).saturating_add(last),
        (false, false) => signed(end).saturating_add(last),
        (false, true) => signed(first) + signed(end.saturating_sub(first)) / limit + last,
    };
    usize::try_from(last.saturating_add(1)).unwrap_or(0).min(end)
}

fn number(text: &[u8]) -> Option<usize> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A script that only reads gets a barrier as well: what it has read must not be newer than what the cache says next.
fn script(request: &Request<'_>, writes: bool, script_keys: ScriptKeys, keys: &mut Keys) -> EffectClass {
    let count = if request.len() > 2 { number(request.arg(2)) } else { Some(0) };
    let declared = (3..request.len()).take(count.unwrap_or(0));
    if writes {
        keys.writes.extend(declared)
    } else {
        keys.reads.extend(declared)
    }
    match script_keys {
        ScriptKeys::Declared if count.is_some() => EffectClass::Keys,
        _ => EffectClass::Unknown,
    }
}

/// `SORT key [BY pattern] [GET pattern …] [STORE destination] …`: a pattern with a star reads keys that it makes of the
/// elements.
fn sort(request: &Request<'_>, keys: &mut Keys) -> EffectClass {
    if request.len() < 2 {
        return EffectClass::None;
    }
    keys.reads.push(1);
    let mut effect = EffectClass::Keys;
    for i in 2..request.len().saturating_sub(1) {
        let (word, next) = (request.arg(i), request.arg(i + 1));
        if word.eq_ignore_ascii_case(b"store") {
            keys.writes.push(i + 1);
        } else if (word.eq_ignore_ascii_case(b"by") || word.eq_ignore_ascii_case(b"get")) && next.contains(&b'*') {
            effect = EffectClass::Unknown;
        }
    }
    effect
}

/// The last STORE or STOREDIST counts; taking all of them is safe.
fn geo_store(request: &Request<'_>, from: usize, keys: &mut Keys) -> EffectClass {
    if request.len() < 2 {
        return EffectClass::None;
    }
    keys.reads.push(1);
    for i in from..request.len().saturating_sub(1) {
        let word = request.arg(i);
        if word.eq_ignore_ascii_case(b"store") || word.eq_ignore_ascii_case(b"storedist") {
            keys.writes.push(i + 1);
        }
    }
    EffectClass::Keys
}

/// `MIGRATE host port key|"" db timeout [options] [KEYS key …]`. The key named first is empty if KEYS follows.
fn migrate(request: &Request<'_>, keys: &mut Keys) -> EffectClass {
    if request.len() > 3 && !request.arg(3).is_empty() {
        keys.writes.push(3);
    }
    let word = (6..request.len()).find(|i| request.arg(*i).eq_ignore_ascii_case(b"keys"));
    keys.writes.extend(word.map_or(request.len(), |i| i + 1)..request.len());
    if keys.writes.is_empty() { EffectClass::Unknown } else { EffectClass::Keys }
}
