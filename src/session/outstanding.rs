//! The keys of what a session has sent upstream and not told yet: a hit on one of them must wait its turn.

use std::collections::VecDeque;

use crate::upstream::effect::Effect;

/// See the module. Bound: what a session may have unanswered, times the keys of a command.
#[derive(Default)]
pub(super) struct Outstanding {
    /// (Place in the session's order, hash of the key), by place.
    keys: VecDeque<(u64, u64)>,
}

impl Outstanding {
    /// The command at `place` reads or writes the key.
    pub(super) fn note(&mut self, place: u64, hash: u64) {
        self.keys.push_back((place, hash));
    }

    /// Notes the keys of a command with this effect. False: it may have to do with any key.
    pub(super) fn note_all(&mut self, place: u64, effect: &Effect) -> bool {
        match effect {
            Effect::None => {}
            Effect::Write(hash) | Effect::Read(hash) => self.note(place, *hash),
            Effect::Keys(keys) => keys.writes.iter().chain(&keys.reads).for_each(|hash| self.note(place, *hash)),
            Effect::Unknown(_) | Effect::Flush => return false,
        }
        true
    }

    /// Everything before `place` has been told.
    pub(super) fn told_before(&mut self, place: u64) {
        while self.keys.front().is_some_and(|(at, _)| *at < place) {
            self.keys.pop_front();
        }
        if self.keys.is_empty() && self.keys.capacity() > 64 {
            self.keys = VecDeque::new();
        }
    }

    /// Whether the key is among them.
    // By itself: most hits find nothing outstanding, and their loop needs the registers.
    #[inline(never)]
    pub(super) fn contains(&self, hash: u64) -> bool {
        self.keys.iter().any(|(_, other)| *other == hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::effect::KeySet;

    #[test]
    fn a_key_is_outstanding_until_its_command_is_told() {
        let mut outstanding = Outstanding::default();
        assert!(outstanding.note_all(3, &Effect::of_keys(KeySet { writes: vec![1, 2], reads: vec![3] })));
        assert!(outstanding.note_all(4, &Effect::Write(1)));
        assert!(!outstanding.note_all(5, &Effect::Flush));
        outstanding.told_before(4);
        assert_eq!([1, 2, 3].map(|hash| outstanding.contains(hash)), [true, false, false]);
        outstanding.told_before(5);
        assert!(!outstanding.contains(1));
    }
}
