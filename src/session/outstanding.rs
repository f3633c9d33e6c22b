//! The keys of what a session has sent upstream and not told yet: a hit on one of them must wait its turn.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::time::Time;
use crate::upstream::effect::Effect;

/// The commands on their way. Bound: as many as a session may have unanswered, times the keys of a command.
#[derive(Default)]
pub(super) struct Outstanding {
    /// By place.
    keys: VecDeque<Noted>,
    /// Requests that are not small: place and bytes, by place.
    sizes: VecDeque<(u64, usize)>,
    /// Bytes of these.
    sent: usize,
}

/// The bytes of smaller requests are not counted.
const SMALL: usize = 1024;

struct Noted {
    /// In the session's order.
    place: u64,
    /// Hash of the key.
    hash: u64,
    what: What,
}

enum What {
    Write,
    Read,
    Shared(SharedRead),
}

/// A read whose reply others may share.
#[derive(Clone)]
pub(super) struct SharedRead {
    /// As it was sent.
    pub(super) request: Rc<[u8]>,
    /// The view of the session.
    pub(super) view: u32,
    /// When.
    pub(super) sent: Time,
}

impl Outstanding {
    fn note(&mut self, place: u64, hash: u64, what: What) {
        self.keys.push_back(Noted { place, hash, what });
    }

    /// The request at `place` has so many bytes.
    pub(super) fn note_size(&mut self, place: u64, bytes: usize) {
        if bytes >= SMALL {
            self.sizes.push_back((place, bytes));
            self.sent += bytes;
        }
    }

    /// Bytes of the requests that are not told, small ones left out.
    pub(super) fn sent(&self) -> usize {
        self.sent
    }

    /// The read at `place` is of these keys.
    pub(super) fn note_read(&mut self, place: u64, hashes: &[u64], read: &SharedRead) {
        hashes.iter().for_each(|hash| self.note(place, *hash, What::Shared(read.clone())));
    }

    /// Notes the keys of a command with this effect. False: it may have to do with any key.
    pub(super) fn note_all(&mut self, place: u64, effect: &Effect) -> bool {
        match effect {
            Effect::None | Effect::Pause(_) | Effect::Unpause => {}
            Effect::Write(hash) => self.note(place, *hash, What::Write),
            Effect::Read(hash) => self.note(place, *hash, What::Read),
            Effect::Keys(keys) => {
                keys.writes.iter().for_each(|hash| self.note(place, *hash, What::Write));
                keys.reads.iter().for_each(|hash| self.note(place, *hash, What::Read));
            }
            Effect::Unknown(_) | Effect::Flush | Effect::Rights(_) | Effect::Step(_) => return false,
        }
        true
    }

    /// The latest command about each of these keys, if that is one and the same read of theirs: its place.
    pub(super) fn latest(&self, hashes: &[u64], request: &[u8], view: u32) -> Option<(u64, &SharedRead)> {
        let latest = |hash: &u64| self.keys.iter().rev().find(|noted| noted.hash == *hash);
        let Noted { place, what: What::Shared(read), .. } = latest(hashes.first()?)? else { return None };
        let same = read.view == view && *read.request == *request;
        let all = || hashes[1..].iter().all(|hash| latest(hash).is_some_and(|noted| noted.place == *place));
        (same && all()).then_some((*place, read))
    }

    /// Whether a write of the key is among them.
    pub(super) fn writes(&self, hash: u64) -> bool {
        self.keys.iter().any(|noted| noted.hash == hash && matches!(noted.what, What::Write))
    }

    /// Everything before `place` has been told.
    #[inline]
    pub(super) fn told_before(&mut self, place: u64) {
        if !(self.keys.is_empty() && self.sizes.is_empty()) {
            self.forget_before(place);
        }
    }

    fn forget_before(&mut self, place: u64) {
        while self.keys.front().is_some_and(|noted| noted.place < place) {
            self.keys.pop_front();
        }
        if self.keys.is_empty() && self.keys.capacity() > 64 {
            self.keys = VecDeque::new();
        }
        while let Some((_, bytes)) = self.sizes.front().filter(|(at, _)| *at < place) {
            self.sent -= bytes;
            self.sizes.pop_front();
        }
    }

    /// Whether the key is among them.
    // By itself: most hits find nothing outstanding, and their loop needs the registers.
    #[inline(never)]
    pub(super) fn contains(&self, hash: u64) -> bool {
        self.keys.iter().any(|noted| noted.hash == hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::effect::KeySet;

    #[test]
    fn a_key_is_outstanding_until_its_command_is_told() {
        let mut outstanding = Outstanding::default();
        assert!(
            outstanding.note_all(3, &Effect::of_keys(KeySet { writes: vec![1, 2], reads: vec![3], scripted: false }))
        );
        assert!(outstanding.note_all(4, &Effect::Write(1)));
        assert!(!outstanding.note_all(5, &Effect::Flush));
        outstanding.told_before(4);
        assert_eq!([1, 2, 3].map(|hash| outstanding.contains(hash)), [true, false, false]);
        outstanding.told_before(5);
        assert!(!outstanding.contains(1));
    }

    #[test]
    fn the_bytes_of_requests_count_until_they_are_told() {
        let mut outstanding = Outstanding::default();
        for (place, bytes) in [(0, SMALL), (1, SMALL - 1), (2, 5 * SMALL)] {
            outstanding.note_size(place, bytes);
        }
        assert_eq!(outstanding.sent(), 6 * SMALL);
        outstanding.told_before(2);
        assert_eq!(outstanding.sent(), 5 * SMALL);
        outstanding.told_before(3);
        assert_eq!(outstanding.sent(), 0);
    }

    #[test]
    fn a_read_is_the_latest_of_its_keys_until_another_command_about_one_of_them() {
        let mut outstanding = Outstanding::default();
        let read = SharedRead { request: b"MGET".as_slice().into(), view: 1, sent: Time(7) };
        outstanding.note_read(3, &[1, 2], &read);
        let place = |outstanding: &Outstanding, hashes: &[u64], request: &[u8], view| {
            outstanding.latest(hashes, request, view).map(|(place, read)| (place, read.sent))
        };
        assert_eq!(place(&outstanding, &[1, 2], b"MGET", 1), Some((3, Time(7))));
        assert_eq!(place(&outstanding, &[1, 2], b"MGET", 2), None, "another user, or database");
        assert_eq!(place(&outstanding, &[1, 2], b"mget", 1), None);
        outstanding.note_read(4, &[1, 2], &read);
        assert_eq!(place(&outstanding, &[1, 2], b"MGET", 1), Some((4, Time(7))));
        assert!(outstanding.note_all(5, &Effect::Read(2)));
        assert_eq!(place(&outstanding, &[1, 2], b"MGET", 1), None, "what another read shows may be newer");
        assert!(!outstanding.writes(2) && outstanding.note_all(6, &Effect::Write(2)) && outstanding.writes(2));
    }
}
