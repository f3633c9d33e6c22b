//! Which users were deleted between two looks at the ACL.

use std::collections::HashMap;

use crate::resp;

/// Users by name, of a reply to ACL LIST: the rest of each line.
pub(super) fn by_name(list: &[u8]) -> HashMap<&[u8], &[u8]> {
    let mut users = HashMap::new();
    let mut rest = resp::split_aggregate(list).map(|(_, rest)| rest);
    while let Some((line, next)) = rest.and_then(resp::split_bulk) {
        rest = Some(next);
        let Some(line) = line.strip_prefix(b"user ") else { continue };
        let end = memchr::memchr(b' ', line).unwrap_or(line.len());
        users.insert(&line[..end], &line[end..]);
    }
    users
}

/// The fate of a user between two lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Deleted.
    Gone,
    /// Perhaps deleted and made anew: users were `replaced`, and it is not as it was. (One that is as it was takes the same
    /// passwords: whoever has logged in could again.)
    Anew,
    /// The same, whatever its rights are now.
    Still,
}

/// The user's [`Fate`].
pub(super) fn fate(user: &[u8], old: &HashMap<&[u8], &[u8]>, new: &HashMap<&[u8], &[u8]>, replaced: bool) -> Fate {
    match new.get(user) {
        // The default user cannot be deleted.
        _ if user == b"default" => Fate::Still,
        None => Fate::Gone,
        Some(now) if replaced && old.get(user) != Some(now) => Fate::Anew,
        Some(_) => Fate::Still,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_that_are_gone_or_replaced() {
        let (old, new) = (
            resp::encode(&["user default on nopass", "user bob on #a +get", "user eve on #b", "user kim off"]),
            resp::encode(&["user default off", "user bob on #a +get +set", "user kim off"]),
        );
        let (old, new) = (by_name(&old), by_name(&new));
        use Fate::{Anew, Gone, Still};
        let names =
            |replaced| ["default", "bob", "eve", "kim", "new"].map(|user| fate(user.as_bytes(), &old, &new, replaced));
        assert_eq!(names(false), [Still, Still, Gone, Still, Gone]);
        assert_eq!(names(true), [Still, Anew, Gone, Still, Gone]);
        assert!(by_name(b"-NOPERM x\r\n").is_empty());
    }
}
