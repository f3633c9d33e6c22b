//! One key as Redis keeps it: the sequential specification that the checker of linearizability searches with.

use std::collections::HashMap;

/// A value by its number; 0 is none.
pub type ValueId = u32;
/// A time to live by the number of the operation that gave it; 0 is none.
pub type TtlId = u32;

/// The state of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RegisterState {
    /// Id of the value.
    pub value: ValueId,
    /// Id of the write that set the key's time to live.
    pub ttl: TtlId,
    /// Id of the write that set the time to live of all its fields.
    pub fields_ttl: TtlId,
    /// The key may have been evicted; the next read finds out.
    pub doubtful: bool,
    /// All its fields have expired, but the key may still be there, and with it its own time to live: nobody sees it,
    /// PEXPIRE and HSET find it. It is removed at some time.
    pub husk: bool,
}

/// A change of the key in one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterStep {
    /// Somebody sees this.
    See(ValueId),
    /// The key has this value.
    Set {
        /// The new value.
        value: ValueId,
        /// Its own time to live: of the key, or, if the key's goes on, of the fields.
        ttl: TtlId,
        /// Whether the time to live of the key goes on.
        keeps_ttl: bool,
    },
    /// The key is removed.
    Delete,
    /// Its fields are removed, and the key with them if any was there.
    DeleteFields,
    /// One is added; the sum that was answered, if anything was.
    Increment(Option<i64>),
    /// A text is added; the length that was answered, if anything was.
    Append(ValueId, Option<usize>),
    /// The value gets a time to live, of the key or of its fields.
    Limit(TtlId, bool),
    /// That time to live ends.
    End(TtlId),
    /// From here on it may have been evicted.
    Doubt,
}

/// The values that occur, each once.
pub struct Values {
    texts: Vec<Vec<u8>>,
    numbers: HashMap<Vec<u8>, ValueId>,
}

impl Default for Values {
    fn default() -> Self {
        Values { texts: vec![Vec::new()], numbers: HashMap::new() }
    }
}

impl Values {
    /// The number of this text.
    #[expect(clippy::cast_possible_truncation, reason = "memory ends before the numbers do")]
    pub fn id(&mut self, text: &[u8]) -> ValueId {
        if let Some(id) = self.numbers.get(text) {
            return *id;
        }
        let id = self.texts.len() as ValueId;
        self.texts.push(text.to_vec());
        self.numbers.insert(text.to_vec(), id);
        id
    }

    /// The text of this number, for a reader.
    pub fn name(&self, id: ValueId) -> String {
        if id == 0 { "nothing".into() } else { String::from_utf8_lossy(&self.texts[id as usize]).into_owned() }
    }

    /// The states after `step`, if it can happen in `state` at all. `eroding`: keys may be evicted while it happens.
    pub fn after(&mut self, state: RegisterState, step: RegisterStep, eroding: bool) -> [Option<RegisterState>; 2] {
        let mut states = [self.one(state, step), None];
        if state.doubtful && looks(step) {
            // whoever saw that it was still there knows
            states[0] = states[0].map(|s| RegisterState { doubtful: false, ..s });
        }
        if state.doubtful || (state.husk && finds_husks(step)) {
            states[1] = self.one(RegisterState::default(), step);
        }
        states.map(|s| s.map(|s| RegisterState { doubtful: s.value != 0 && (s.doubtful || eroding), ..s }))
    }

    fn one(&mut self, state: RegisterState, step: RegisterStep) -> Option<RegisterState> {
        match step {
            RegisterStep::See(value) => (value == state.value).then_some(state),
            RegisterStep::Set { value, ttl, keeps_ttl: false } => {
                Some(RegisterState { value, ttl, ..RegisterState::default() })
            }
            RegisterStep::Set { value, ttl, keeps_ttl: true } => {
                Some(RegisterState { value, ttl: state.ttl, fields_ttl: ttl, ..RegisterState::default() })
            }
            // There was no field to remove, so what is left of the key stays.
            RegisterStep::DeleteFields if state.husk => Some(state),
            RegisterStep::Delete | RegisterStep::DeleteFields => Some(RegisterState::default()),
            RegisterStep::Increment(answer) => {
                let sum = self.number(state.value)?.checked_add(1)?;
                let value = self.id(sum.to_string().as_bytes());
                answer.is_none_or(|answer| answer == sum).then_some(RegisterState { value, ..state })
            }
            RegisterStep::Append(token, answer) => {
                let mut text = self.texts[state.value as usize].clone();
                text.extend_from_slice(&self.texts[token as usize]);
                if answer.is_some_and(|answer| answer != text.len()) {
                    return None;
                }
                Some(RegisterState { value: self.id(&text), ..state })
            }
            RegisterStep::Limit(_, fields) if state.value == 0 && (fields || !state.husk) => Some(state),
            RegisterStep::Limit(id, false) => Some(RegisterState { ttl: id, ..state }),
            RegisterStep::Limit(id, true) => Some(RegisterState { fields_ttl: id, ..state }),
            RegisterStep::End(id) if state.ttl == id => Some(RegisterState::default()),
            RegisterStep::End(id) if state.fields_ttl == id => {
                Some(RegisterState { ttl: state.ttl, husk: true, ..RegisterState::default() })
            }
            RegisterStep::End(_) => Some(state),
            RegisterStep::Doubt => Some(RegisterState { doubtful: state.value != 0, ..state }),
        }
    }

    fn number(&self, value: ValueId) -> Option<i64> {
        if value == 0 { Some(0) } else { std::str::from_utf8(&self.texts[value as usize]).ok()?.parse().ok() }
    }
}

/// Whether it makes a difference if there is a key without fields.
fn finds_husks(step: RegisterStep) -> bool {
    use RegisterStep::{DeleteFields, Limit, Set};
    matches!(step, Set { keeps_ttl: true, .. } | Limit(_, false) | DeleteFields)
}

/// Whether the outcome tells if the key was there.
fn looks(step: RegisterStep) -> bool {
    matches!(step, RegisterStep::See(_) | RegisterStep::Increment(Some(_)) | RegisterStep::Append(_, Some(_)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;

    fn only(states: [Option<RegisterState>; 2]) -> RegisterState {
        assert_eq!(states[1], None);
        states[0].unwrap()
    }

    #[test]
    fn a_key_is_what_redis_says_it_is() {
        let mut v = Values::default();
        let (a, b) = (v.id(b"a"), v.id(b"b"));
        let set = |value| RegisterStep::Set { value, ttl: 0, keeps_ttl: false };
        let s = only(v.after(RegisterState::default(), set(a), false));
        assert_eq!(v.after(s, RegisterStep::See(b), false), [None, None]);
        let s = only(v.after(s, RegisterStep::Append(b, Some(2)), false));
        assert_eq!(v.name(s.value), "ab");
        assert_eq!(v.after(s, RegisterStep::Append(b, Some(2)), false), [None, None]);
        assert_eq!(only(v.after(s, RegisterStep::Delete, false)), RegisterState::default());
        let s = only(v.after(RegisterState::default(), RegisterStep::Increment(Some(1)), false));
        assert_eq!(v.after(s, RegisterStep::Increment(Some(1)), false), [None, None]);
        let two = only(v.after(s, RegisterStep::Increment(None), false));
        assert_eq!(v.name(two.value), "2");
    }

    #[test]
    fn a_time_to_live_ends_with_its_value_or_goes_on() {
        let mut v = Values::default();
        let (a, b) = (v.id(b"a"), v.id(b"b"));
        let s =
            only(v.after(RegisterState::default(), RegisterStep::Set { value: a, ttl: 7, keeps_ttl: false }, false));
        assert_eq!(only(v.after(s, RegisterStep::End(8), false)), s);
        assert_eq!(only(v.after(s, RegisterStep::End(7), false)), RegisterState::default());
        let plain = only(v.after(s, RegisterStep::Set { value: b, ttl: 0, keeps_ttl: false }, false));
        assert_eq!(only(v.after(plain, RegisterStep::End(7), false)), plain);
        let hash = only(v.after(s, RegisterStep::Set { value: b, ttl: 0, keeps_ttl: true }, false));
        assert_eq!(only(v.after(hash, RegisterStep::End(7), false)), RegisterState::default());
        let fields = only(v.after(s, RegisterStep::Set { value: b, ttl: 9, keeps_ttl: true }, false));
        let written = only(v.after(fields, RegisterStep::Set { value: a, ttl: 0, keeps_ttl: true }, false));
        assert_eq!(
            only(v.after(written, RegisterStep::End(9), false)),
            written,
            "a write of the fields ends their time"
        );
        assert_eq!(only(v.after(written, RegisterStep::End(7), false)), RegisterState::default(), "but not the key's");
        assert_eq!(only(v.after(fields, RegisterStep::End(9), false)).value, 0);
        let later = only(v.after(fields, RegisterStep::Limit(10, true), false));
        assert_eq!(only(v.after(later, RegisterStep::End(9), false)), later);
        assert_eq!(only(v.after(later, RegisterStep::End(10), false)).value, 0);
        // there is nothing that could go
        assert_eq!(
            only(v.after(RegisterState::default(), RegisterStep::Limit(9, false), false)),
            RegisterState::default()
        );
    }

    /// Seen with Valkey 9: PEXPIRE of a hash whose fields have all expired counts for what HSET writes next, and HDEL between
    /// them changes nothing (`findings/hash-outlives-its-fields.sh`).
    #[test]
    fn a_key_without_fields_may_keep_its_time() {
        let mut v = Values::default();
        let a = v.id(b"a");
        let hset = |ttl| RegisterStep::Set { value: a, ttl, keeps_ttl: true };
        let s = only(v.after(RegisterState::default(), hset(7), false));
        let husk = only(v.after(s, RegisterStep::End(7), false));
        assert_eq!(only(v.after(husk, RegisterStep::See(0), false)), husk);
        let [Some(limited), Some(removed)] = v.after(husk, RegisterStep::Limit(8, false), false) else { panic!() };
        assert_eq!(removed, RegisterState::default());
        assert_eq!(v.after(limited, hset(0), false)[0].unwrap().ttl, 8);
        assert_eq!(
            v.after(limited, RegisterStep::DeleteFields, false),
            [Some(limited), Some(RegisterState::default())]
        );
        assert_eq!(only(v.after(limited, RegisterStep::Delete, false)), RegisterState::default());
        assert_eq!(only(v.after(s, RegisterStep::DeleteFields, false)), RegisterState::default());
        assert_eq!(v.after(limited, hset(0), false)[1].unwrap().ttl, 0);
        assert_eq!(only(v.after(limited, RegisterStep::End(8), false)), RegisterState::default());
        assert_eq!(only(v.after(limited, RegisterStep::Set { value: a, ttl: 0, keeps_ttl: false }, false)).ttl, 0);
    }

    #[test]
    fn what_may_be_evicted_is_doubtful_until_somebody_looks() {
        let mut v = Values::default();
        let a = v.id(b"a");
        let s = only(v.after(RegisterState::default(), RegisterStep::Set { value: a, ttl: 0, keeps_ttl: false }, true));
        assert!(s.doubtful);
        assert_eq!(v.after(s, RegisterStep::See(0), false), [None, Some(RegisterState::default())]);
        let seen = v.after(s, RegisterStep::See(a), false)[0].unwrap();
        assert!(!seen.doubtful, "it was seen after the evictions had ended");
        assert_eq!(v.after(seen, RegisterStep::See(0), false), [None, None]);
        assert!(v.after(s, RegisterStep::See(a), true)[0].unwrap().doubtful);
    }
}
