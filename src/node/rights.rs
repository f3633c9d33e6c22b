//! The rights of a user that the proxy needs to ask in its name. A lane speaks as the user of its sessions, and a fill asks more than the
//! session did (CLIENT CACHING, PTTL); a user who may not say these is not cached for. So that the server's ACL LOG holds
//! only what clients were refused, the rights are asked beforehand, as the proxy's own user and by ACL DRYRUN, which logs
//! nothing: for each lane, and again when the server's ACL has changed.
//!
//! Accepted window: a right that was withdrawn is noticed with the ACL's change (see [`watch`](super::watch)); what a lane
//! asks until then is refused and logged.

use std::sync::atomic::Ordering;

use super::Node;
use super::identity::ConnectionKey;
use super::wire::Wire;
use crate::coherence::standing::Mode;
use crate::command::FieldTtl;
use crate::resp;

/// The rights found on one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// How often the ACL had changed when they were asked; `None`: they were not.
    pub as_of: Option<u64>,
    /// Everything that all fills want.
    pub fill: bool,
    /// The question about named fields of a hash.
    fields: bool,
    /// The question which fields a hash has.
    names: bool,
    /// The question about any fields of any hash.
    info: bool,
}

/// The key that ACL DRYRUN is asked with when only the verdict on the command counts.
const KEY: &str = "nearside";

impl Rights {
    /// The rights of a connection that is asked for no more than its session says.
    pub const NONE: Rights = Rights { as_of: None, fill: false, fields: false, names: false, info: false };

    /// Every right, found when the ACL had changed so often.
    pub fn all(as_of: u64) -> Rights {
        Rights { as_of: Some(as_of), fill: true, fields: true, names: true, info: true }
    }

    /// Whether a read whose reply depends on fields of a hash in this way can be filled.
    pub fn cover(self, field_ttl: FieldTtl) -> bool {
        self.fill
            && match field_ttl {
                FieldTtl::No => true,
                FieldTtl::Named => self.fields,
                FieldTtl::Whole => self.questions().contains(&true),
            }
    }

    /// Whether it may be asked if any hash has mortal fields, and if a certain one has.
    pub fn questions(self) -> [bool; 2] {
        [self.info, self.fields && self.names]
    }
}

/// The rights of a lane's user. All of them, if the proxy's own user cannot find out (before Redis 7.0, without +acl|dryrun, or
/// within `connect_timeout`), or is that user itself: what it lacks, the link and the watch have said. Without a link nothing
/// is filled, and nothing need be asked yet.
pub async fn of(node: &Node, key: &ConnectionKey) -> Rights {
    let as_of = node.acl_changes.load(Ordering::Acquire);
    if key.login == node.own.login {
        return Rights::all(as_of);
    }
    let Some(link) = node.coherence.link() else { return Rights::NONE };
    let asked = tokio::time::timeout(node.settings.connect_timeout, ask(node, key.user(), link.mode)).await;
    match asked.unwrap_or_else(|late| Err(late.into())) {
        Ok([fill, fields, names, info]) => Rights { as_of: Some(as_of), fill, fields, names, info },
        // Nobody knows which verdict is which: the lane asks again.
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            node.note_broken("nearside-rights", &e);
            Rights::NONE
        }
        Err(e) => {
            tracing::debug!("rights of {} not known: {e}", String::from_utf8_lossy(key.user()));
            Rights::all(as_of)
        }
    }
}

/// Whether the user may say all that every fill wants, and the three questions about hash fields.
async fn ask(node: &Node, user: &[u8], mode: Mode) -> std::io::Result<[bool; 4]> {
    let tracked: &[&[&str]] = &[&["CLIENT", "TRACKING", "ON"], &["CLIENT", "CACHING", "YES"]];
    let always: &[&[&str]] = &[&["PING"], &["PTTL", KEY]];
    let fields: &[&[&str]] = &[&["HPEXPIRETIME", KEY, "FIELDS", "1", "f"], &["HKEYS", KEY], &["INFO", "keyspace"]];
    let fill = [always, if mode == Mode::Tracked { tracked } else { &[] }].concat();
    let mut wire = Wire::connect(node).await?;
    wire.greet(node, &node.own, "nearside-rights").await?;
    let mut request = Vec::new();
    for command in fill.iter().chain(fields) {
        let dryrun = [b"ACL".as_slice(), b"DRYRUN", user].into_iter();
        request.extend(resp::encode(&dryrun.chain(command.iter().map(|arg| arg.as_bytes())).collect::<Vec<_>>()));
    }
    wire.send(&request).await?;
    let mut may = [true; 4];
    for _ in &fill {
        may[0] &= !is_refused(&wire.reply().await?);
    }
    for may in &mut may[1..] {
        *may = !is_refused(&wire.reply().await?);
    }
    wire.quiet().await?;
    Ok(may)
}

/// ACL DRYRUN's answer about a command that the user may not run. (Of a key that it may not read it says something else; and
/// what is no verdict at all is an error.)
fn is_refused(reply: &[u8]) -> bool {
    resp::split_bulk(reply).is_some_and(|(text, _)| memchr::memmem::find(text, b"to run ").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_verdict_on_the_command_counts() {
        let bulk = |text: &str| format!("${}\r\n{text}\r\n", text.len()).into_bytes();
        assert!(is_refused(&bulk("User bob has no permissions to run the 'pttl' command")));
        assert!(is_refused(&bulk("This user has no permissions to run the 'client|caching' command")));
        assert!(!is_refused(&bulk("This user has no permissions to access the 'nearside' key")));
        assert!(!is_refused(b"+OK\r\n"));
        assert!(!is_refused(b"-ERR Command 'hpexpiretime' not found\r\n"));
        assert!(
            !is_refused(b"-NOPERM This user has no permissions to run the 'acl|dryrun' command\r\n"),
            "we do not know"
        );
    }

    #[test]
    fn a_question_about_fields_wants_its_own_right() {
        let rights = Rights { as_of: Some(1), fill: true, fields: true, names: false, info: false };
        assert!(rights.cover(FieldTtl::No) && rights.cover(FieldTtl::Named));
        assert!(!rights.cover(FieldTtl::Whole));
        assert!(Rights { info: true, ..rights }.cover(FieldTtl::Whole));
        assert!(Rights { names: true, ..rights }.cover(FieldTtl::Whole));
        assert!(!Rights { fill: false, ..rights }.cover(FieldTtl::No));
    }
}
