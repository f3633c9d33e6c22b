//! Users' rules in the server's ACL LIST, as far as hits must know them.
//!
//! A hit obeys the rights of the very command. Replies are kept by user and command, so what a user has once been told by a
//! command about a key, it may be told by that command again. Only GET and MGET answer for each other, and only for users
//! of whom the server would say the same of both, key by key: who may say both commands, by rules that hold for all keys
//! alike. (A selector, `(~y +mget)`, gives other keys to other commands; and each MGET needs one selector that allows all of its keys.)

use bytes::Bytes;

use crate::resp;

/// The ACL as the watch saw it last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Acl {
    /// The server has none.
    Absent,
    /// The reply to ACL LIST.
    Known(Bytes),
    /// The proxy's own user may not read it, or has not yet.
    #[default]
    Hidden,
}

/// A look at it.
#[derive(Debug, Default)]
pub struct AclLook {
    /// How often it had changed, as far as was known, when the server was asked. If that is more now, this look is too old.
    pub as_of: u64,
    /// The server's list.
    pub acl: Acl,
}

/// Categories that GET and MGET are both in, on every server; in any other that has one of them the other is too.
const CATEGORIES: [&[u8]; 4] = [b"all", b"read", b"string", b"fast"];

impl Acl {
    /// By the reply to ACL LIST.
    pub fn read(reply: Bytes) -> Acl {
        match &reply[..] {
            [b'*', ..] => Acl::Known(reply),
            [b'-', rest @ ..] if rest.starts_with(b"NOPERM") => Acl::Hidden,
            // An unknown command: there is nothing that could change.
            _ => Acl::Absent,
        }
    }

    /// Whether this user's GETs and MGETs may answer for each other. Of a user who is not known: no.
    pub fn shares_get_and_mget(&self, user: &[u8]) -> bool {
        match self {
            Acl::Absent => true,
            Acl::Hidden => false,
            Acl::Known(list) => rules_of(list, user).is_some_and(allow_both_alike),
        }
    }
}

/// The text behind `user NAME` in the list.
fn rules_of<'a>(list: &'a [u8], user: &[u8]) -> Option<&'a [u8]> {
    let (_, mut rest) = resp::split_aggregate(list)?;
    while !rest.is_empty() {
        let (line, next) = resp::split_bulk(rest)?;
        let rules = line.strip_prefix(b"user ").and_then(|line| line.strip_prefix(user));
        if let Some(rules) = rules.filter(|rules| rules.first() == Some(&b' ')) {
            return Some(rules);
        }
        rest = next;
    }
    None
}

/// The rules of commands take effect one after another.
fn allow_both_alike(rules: &[u8]) -> bool {
    let (mut get, mut mget) = (false, false);
    for rule in rules.split(|byte| *byte == b' ') {
        let (allowed, name) = match rule {
            [b'(', ..] => return false,
            [b'+', name @ ..] => (true, name),
            [b'-', name @ ..] => (false, name),
            b"allcommands" => (true, &b"@all"[..]),
            b"nocommands" => (false, &b"@all"[..]),
            _ => continue,
        };
        match name.to_ascii_lowercase().as_slice() {
            b"get" => get = allowed,
            b"mget" => mget = allowed,
            [b'@', category @ ..] if CATEGORIES.contains(&category) => (get, mget) = (allowed, allowed),
            // A first argument that is allowed by itself: rights that differ by key.
            name if name.starts_with(b"get|") || name.starts_with(b"mget|") => return false,
            _ => {}
        }
    }
    get && mget
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(rules: &str) -> bool {
        let list = resp::encode(&["user default on nopass ~* &* +@all".to_owned(), format!("user bob {rules}")]);
        Acl::Known(list.into()).shares_get_and_mget(b"bob")
    }

    #[test]
    fn both_commands_and_no_selector() {
        for rules in [
            "on #abc ~* &* +@all",
            "on nopass sanitize-payload ~x:* resetchannels -@all +get +mget",
            "on ~* -@all +@read",
            "on ~* -@all +@string -append",
            "on ~* +@all -get -mget +@fast",
            "on %R~x* ~y* -@all +mget +GET",
        ] {
            assert!(shares(rules), "{rules}");
        }
        for rules in [
            "on ~* -@all +get",
            "on ~* -@all +mget",
            "on ~* +@all -mget",
            "on ~* +@all -@read",
            "on ~* +@all -@string +get",
            "on ~x:* -@all +get +mget (~y:* -@all +get +mget)",
            "on ~* -@all +get|a +mget",
            "off",
        ] {
            assert!(!shares(rules), "{rules}");
        }
    }

    #[test]
    fn a_server_without_an_acl_is_not_one_that_hides_it() {
        assert_eq!(Acl::read(Bytes::from_static(b"-ERR unknown command\r\n")), Acl::Absent);
        assert_eq!(Acl::read(Bytes::from_static(b"-NOPERM x\r\n")), Acl::Hidden);
    }

    #[test]
    fn of_whom_nothing_is_known_nothing_is_shared() {
        let list = resp::encode(&["user bobby on ~* +@all"]);
        assert!(!Acl::Known(list.into()).shares_get_and_mget(b"bob"));
        assert!(!Acl::Known(Bytes::from_static(b"-NOPERM x\r\n")).shares_get_and_mget(b"bob"));
        assert!(!Acl::Hidden.shares_get_and_mget(b"bob") && Acl::Absent.shares_get_and_mget(b"bob"));
    }
}
