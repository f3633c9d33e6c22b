//! The questions about fields with a time to live of their own. Such a field ends unreported, so a reply is kept only if no
//! field that it depends on has one.
//!
//! A reply of named fields (HGET) is asked about together with the read. For a reply of a whole hash (HGETALL) the server is
//! asked whether it has any such field anywhere; if so, about the fields of this very hash, whose names are known only by then:
//! the read's own, or (HLEN, HVALS) those of an HKEYS. No change slips in between: the fill's token was taken before the read,
//! whatever sets or ends a time to live by a command is reported and revokes it, and a field that ends by itself is missing from
//! the answers.

use std::ops::Range;

use crate::resp::{self, is_nil};

/// Fields of one hash that are asked about. Replies of larger hashes are passed on and not kept, if the server has a mortal
/// field anywhere: the question would be as large as the hash.
pub const MAX_FIELDS: usize = 256;

/// The next question about a reply of a whole hash.
#[derive(Debug, PartialEq, Eq)]
pub enum NextQuestion {
    /// There is no field to ask about.
    Nothing,
    /// When these fields end, so many.
    Ends(Vec<u8>, usize),
    /// Which fields there are; this many, if the reply is still true.
    Names(Vec<u8>, usize),
    /// Nothing, since there are too many.
    TooMany,
    /// Nothing, since the reply makes no sense.
    Unclear,
}

/// The question about the `reply` to `request`, which reads all of the hash at `key`.
pub fn next(request: &[u8], key: &[u8], reply: &[u8]) -> NextQuestion {
    let name = resp::split_aggregate(request).and_then(|(_, rest)| resp::split_bulk(rest)).map_or(&b""[..], |(n, _)| n);
    let each = if name.eq_ignore_ascii_case(b"HGETALL") { 2 } else { 1 };
    let Some(count) = count(reply).map(|n| n / each) else { return NextQuestion::Unclear };
    if count == 0 {
        return NextQuestion::Nothing;
    }
    if count > MAX_FIELDS {
        return NextQuestion::TooMany;
    }
    if each == 1 && !name.eq_ignore_ascii_case(b"HKEYS") {
        return NextQuestion::Names(resp::encode(&[&b"HKEYS"[..], key]), count);
    }
    ends(key, reply, count, each).map_or(NextQuestion::Unclear, |question| NextQuestion::Ends(question, count))
}

/// The question when the fields named by `reply` end, each `each`th of its strings and `count` in all. `None`: they are others.
pub fn ends(key: &[u8], reply: &[u8], count: usize, each: usize) -> Option<Vec<u8>> {
    let (strings, mut rest) = resp::split_aggregate(reply)?;
    let number = count.to_string();
    let mut args = vec![b"HPEXPIRETIME".as_slice(), key, b"FIELDS", number.as_bytes()];
    for i in 0..strings {
        let (string, next) = resp::split_bulk(rest)?;
        if i % each == 0 {
            args.push(string);
        }
        rest = next;
    }
    (args.len() == 4 + count).then(|| resp::encode(&args))
}

/// The question when the fields end that the request itself names.
pub fn named(request: &[u8], key: &Range<usize>, fields: &[Range<usize>]) -> Vec<u8> {
    let count = fields.len().to_string();
    let mut args = vec![b"HPEXPIRETIME".as_slice(), &request[key.clone()], b"FIELDS", count.as_bytes()];
    args.extend(fields.iter().map(|r| &request[r.clone()]));
    resp::encode(&args)
}

fn count(reply: &[u8]) -> Option<usize> {
    match reply {
        [b':', number @ .., b'\r', b'\n'] => usize::try_from(resp::parse_i64(number)?).ok(),
        _ => resp::split_aggregate(reply).map(|(n, _)| n),
    }
}

/// Whether `count` fields were asked about, and none of them ends.
pub fn none_ends(answer: &[u8], count: usize) -> bool {
    let Some((n, mut rest)) = resp::split_aggregate(answer) else { return false };
    (0..n).all(|_| rest.strip_prefix(b":-1\r\n").map(|next| rest = next).is_some()) && n == count && rest.is_empty()
}

/// Whether none of the fields that the request names has a time to live, by the `answer` to [`named`]. A field that is not
/// there, and that the reply has, ended between the two.
pub fn named_live_on(answer: &[u8], reply: &[u8]) -> bool {
    let Some((_, mut rest)) = resp::split_aggregate(answer) else { return false };
    // HMGET says something of each field, the others of one.
    let mut told = resp::split_aggregate(reply).map_or(reply, |(_, elements)| elements);
    while let Some(len) = resp::value_len(rest).filter(|n| *n > 0) {
        let Some(of_field) = resp::value_len(told).filter(|n| *n > 0) else { return false };
        match &rest[..len] {
            b":-1\r\n" => {}
            b":-2\r\n" if says_missing(&told[..of_field]) => {}
            _ => return false,
        }
        (rest, told) = (&rest[len..], &told[of_field..]);
    }
    told.is_empty()
}

/// Whether the server, by its INFO keyspace, has no field with a time to live at all.
pub fn none_anywhere(answer: &[u8]) -> bool {
    let Some((text, _)) = resp::split_bulk(answer) else { return false };
    String::from_utf8_lossy(text).lines().filter(|l| l.starts_with("db")).all(no_volatile_fields)
}

/// `db0:keys=1,expires=0,avg_ttl=0,subexpiry=0` (Redis), `…,keys_with_volatile_items=0` (Valkey).
fn no_volatile_fields(line: &str) -> bool {
    let counts = line.split([':', ',']).filter_map(|f| f.split_once('='));
    counts.into_iter().any(|(name, n)| matches!(name, "subexpiry" | "keys_with_volatile_items") && n.trim() == "0")
}

/// Whether this is what a key that does not exist answers: nil, zero, nothing, or a list of these.
pub(super) fn says_missing(reply: &[u8]) -> bool {
    if matches!(reply, b":0\r\n" | b"$0\r\n\r\n" | b"+none\r\n" | b":-1\r\n" | b"#f\r\n") || is_nil(reply) {
        return true;
    }
    let Some((_, mut rest)) = resp::split_aggregate(reply) else { return false };
    while !rest.is_empty() {
        let Some(len) = resp::value_len(rest) else { return false };
        if !matches!(&rest[..len], b":0\r\n") && !is_nil(&rest[..len]) {
            return false;
        }
        rest = &rest[len..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mortal_fields_anywhere_are_seen() {
        let none = |text: &str| none_anywhere(format!("${}\r\n{text}\r\n", text.len()).as_bytes());
        assert!(none("# Keyspace\r\n"));
        assert!(none("# Keyspace\r\ndb0:keys=1,expires=0,avg_ttl=0,subexpiry=0\r\n"));
        assert!(none("# Keyspace\r\ndb0:keys=1,expires=0,avg_ttl=0,keys_with_volatile_items=0\r\n"));
        assert!(!none("# Keyspace\r\ndb0:keys=1,expires=0,avg_ttl=0,subexpiry=3\r\n"));
        assert!(!none("# Keyspace\r\ndb0:keys=1,expires=0,avg_ttl=0\r\n"), "a server that does not tell");
        assert!(!none_anywhere(b"-NOPERM\r\n"));
    }

    #[test]
    fn named_fields_that_end_are_seen() {
        let one_of_two = b"*2\r\n$1\r\na\r\n$-1\r\n";
        assert!(named_live_on(b"*2\r\n:-1\r\n:-2\r\n", one_of_two));
        assert!(!named_live_on(b"*2\r\n:-2\r\n:-1\r\n", one_of_two), "it ended in between");
        assert!(!named_live_on(b"*2\r\n:-1\r\n:1790000000000\r\n", one_of_two));
        assert!(!named_live_on(b"-NOPERM\r\n", one_of_two));
        assert!(named_live_on(b"*1\r\n:-2\r\n", b":0\r\n"));
        assert!(!named_live_on(b"*1\r\n:-2\r\n", b":1\r\n"), "HSTRLEN of a field that ended in between");
        assert!(!named_live_on(b"*1\r\n:-2\r\n", b"$1\r\na\r\n"));
    }

    #[test]
    fn a_whole_hash_is_asked_about_by_its_own_fields() {
        let asked = |command: &str, reply: &[u8]| next(&resp::encode(&[command, "h"]), b"h", reply);
        let ends_of = |fields: &[&str]| {
            let count = fields.len().to_string();
            resp::encode(&[&["HPEXPIRETIME", "h", "FIELDS", &count], fields].concat())
        };
        let two = b"*2\r\n$1\r\na\r\n$1\r\nb\r\n";
        assert_eq!(asked("HKEYS", two), NextQuestion::Ends(ends_of(&["a", "b"]), 2));
        assert_eq!(asked("hgetall", two), NextQuestion::Ends(ends_of(&["a"]), 1));
        assert_eq!(asked("HGETALL", b"%1\r\n$1\r\na\r\n$1\r\nb\r\n"), NextQuestion::Ends(ends_of(&["a"]), 1), "RESP3");
        assert_eq!(asked("HVALS", two), NextQuestion::Names(resp::encode(&["HKEYS", "h"]), 2));
        assert_eq!(asked("HLEN", b":2\r\n"), NextQuestion::Names(resp::encode(&["HKEYS", "h"]), 2));
        assert_eq!(ends(b"h", two, 2, 1), Some(ends_of(&["a", "b"])));
        assert_eq!(ends(b"h", two, 3, 1), None, "one has ended, or counted though it had");
        for empty in [("HLEN", &b":0\r\n"[..]), ("HGETALL", b"*0\r\n"), ("HGETALL", b"%0\r\n")] {
            assert_eq!(asked(empty.0, empty.1), NextQuestion::Nothing);
        }
        assert_eq!(asked("HLEN", b":256\r\n"), NextQuestion::Names(resp::encode(&["HKEYS", "h"]), MAX_FIELDS));
        assert_eq!(asked("HLEN", b":257\r\n"), NextQuestion::TooMany);
        assert_eq!(asked("HLEN", b":-5\r\n"), NextQuestion::Unclear);
        assert_eq!(asked("HKEYS", b"*1\r\n:1\r\n"), NextQuestion::Unclear);
    }

    #[test]
    fn a_hash_is_kept_if_each_of_its_fields_lives_on() {
        assert!(none_ends(b"*2\r\n:-1\r\n:-1\r\n", 2));
        for no in [&b"*2\r\n:-1\r\n:-2\r\n"[..], b"*2\r\n:-1\r\n:17\r\n", b"*1\r\n:-1\r\n", b"-ERR x\r\n", b"*-1\r\n"] {
            assert!(!none_ends(no, 2), "{no:?}");
        }
    }

    #[test]
    fn what_a_missing_key_answers() {
        for reply in [&b"$-1\r\n"[..], b"_\r\n", b"*0\r\n", b"%0\r\n", b":0\r\n", b"*2\r\n$-1\r\n:0\r\n", b"+none\r\n"]
        {
            assert!(says_missing(reply), "{reply:?}");
        }
        for reply in [&b"$1\r\nx\r\n"[..], b":1\r\n", b"*1\r\n$0\r\n\r\n", b"+string\r\n"] {
            assert!(!says_missing(reply), "{reply:?}");
        }
    }
}
