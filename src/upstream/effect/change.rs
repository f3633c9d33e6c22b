//! The effect here of a change of users, rights or passwords that is said through this proxy, before it is acknowledged: no hit is
//! served afterwards by the rights of before, no verdict on a login is believed any more, and the sessions of a deleted
//! user end. A change said elsewhere is noticed by [`watch`](crate::node::watch), with a lag.
//!
//! The server's reply is the verdict, as for every effect: whoever may not say the command costs others nothing by saying it.
//! A read that the server executed before the change may be answered after it, as any read that overlaps it; nothing of it is
//! kept, since its fill token is void.

use super::Wait;
use crate::command::{Request, Word};
use crate::node::Node;
use crate::node::login::End;
use crate::time::Time;
use crate::upstream::refusal;

/// A change of rights on its way.
#[derive(Debug, Default)]
pub struct RightsChange {
    /// The users that it deletes, if it deletes any.
    deleted: Vec<Vec<u8>>,
    /// Which users it concerns its words do not say.
    any: bool,
    /// When it was said: a login that began later may be of the next user of that name.
    said: Time,
}

impl RightsChange {
    /// The change that a request says.
    pub fn of(request: &Request<'_>, word: Word) -> RightsChange {
        let deletes = word == Word::DelUser;
        let deleted = (2..request.len()).filter(|_| deletes).map(|i| request.arg(i).to_vec()).collect();
        // ACL LOAD; every other change names its user, or is about the default one.
        RightsChange { deleted, any: request.len() == 2, said: Time::now() }
    }

    /// Settles it by the reply; `None`: the outcome is not known.
    pub fn settle(self, reply: Option<&[u8]>, node: &Node) -> Wait {
        if reply.is_some_and(|reply| refusal::of_rights(reply) || reply == b":0\r\n") {
            return Wait::No;
        }
        node.rights_changed();
        let told = reply.is_some_and(|reply| !reply.starts_with(b"-"));
        let mut decided = told;
        if told {
            for user in &self.deleted {
                decided &= node.end_logins(user, End::Deleted { asked: self.said });
            }
        }
        // The server is asked which users have gone if words and times do not tell.
        if self.any || !decided { Wait::Look } else { Wait::No }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::{self, Scan, Scanner};

    fn change(words: &[&str], word: Word) -> (usize, bool) {
        let buf = resp::encode(words);
        let mut scanner = Scanner::default();
        assert!(matches!(scanner.scan(&buf, usize::MAX), Ok(Scan::Request(_))));
        let change = RightsChange::of(&Request { buf: &buf, args: scanner.args(), hash: None }, word);
        (change.deleted.len(), change.any)
    }

    #[test]
    fn the_words_tell_who_is_deleted() {
        assert_eq!(change(&["ACL", "DELUSER", "bob", "eve"], Word::DelUser), (2, false));
        assert_eq!(change(&["ACL", "SETUSER", "bob", "off"], Word::Other), (0, false));
        assert_eq!(change(&["ACL", "LOAD"], Word::Other), (0, true));
    }
}
