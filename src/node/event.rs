//! The messages of the link: which keys have changed, and which PING is answered.

use super::probe::CHANNEL;
use super::wire::MARK;
use crate::resp;
use crate::time::Time;

/// The link's messages.
#[derive(Debug, PartialEq, Eq)]
pub enum LinkEvent<'a> {
    /// These bulk strings name changed keys.
    Keys(&'a [u8]),
    /// This key has changed: a keyspace notification names one.
    Key(&'a [u8]),
    /// FLUSHALL and its like.
    Everything,
    /// The PING sent at this time has come back.
    Pong(Time),
    /// A PING was answered by an error.
    NoPong,
    /// Confirmations, and what others publish.
    Other,
}

impl LinkEvent<'_> {
    /// Reads one frame. `None`: that cannot be.
    pub fn parse(frame: &[u8]) -> Option<LinkEvent<'_>> {
        if matches!(frame[0], b'-' | b'!') {
            return Some(LinkEvent::NoPong);
        }
        // A subscriber of RESP2 is answered by an array as a rule; RESP3 connections and some servers answer by the text alone.
        if frame[0] == b'$' {
            let (payload, _) = resp::split_bulk(frame)?;
            return Self::pong(payload);
        }
        if let [b'+', line @ .., b'\r', b'\n'] = frame {
            return Self::pong(line);
        }
        let (_, rest) = resp::split_aggregate(frame)?;
        let (kind, rest) = resp::split_bulk(rest)?;
        match kind {
            pong if pong.eq_ignore_ascii_case(b"pong") => {
                let (payload, _) = resp::split_bulk(rest)?;
                Self::pong(payload)
            }
            b"invalidate" if frame[0] == b'>' => Some(Self::payload(rest)),
            b"pmessage" => {
                let (_, rest) = resp::split_bulk(rest)?;
                let (channel, _) = resp::split_bulk(rest)?;
                Some(LinkEvent::Key(notified(channel)?))
            }
            b"message" => {
                let (channel, payload) = resp::split_bulk(rest)?;
                (channel == CHANNEL.as_bytes()).then_some(())?;
                Some(Self::payload(payload))
            }
            _ => Some(LinkEvent::Other),
        }
    }

    fn pong(payload: &[u8]) -> Option<LinkEvent<'static>> {
        let sent = payload.strip_prefix(MARK.as_bytes())?.strip_prefix(b":")?;
        Some(LinkEvent::Pong(Time(u64::try_from(resp::parse_i64(sent)?).ok()?)))
    }

    fn payload(payload: &[u8]) -> LinkEvent<'_> {
        match payload {
            b"$-1\r\n" | b"*-1\r\n" | b"_\r\n" => LinkEvent::Everything,
            [b'*' | b'~' | b'>', ..] => {
                resp::split_aggregate(payload).map_or(LinkEvent::Other, |(_, keys)| LinkEvent::Keys(keys))
            }
            // Any client may PUBLISH here. The payload is taken for a key: a needless drop costs one miss.
            _ => LinkEvent::Keys(payload),
        }
    }
}

/// The key in `__keyspace@0__:key`.
fn notified(channel: &[u8]) -> Option<&[u8]> {
    let rest = channel.strip_prefix(b"__keyspace@")?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    rest[digits..].strip_prefix(b"__:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: &str) -> String {
        format!("*3\r\n$7\r\nmessage\r\n$20\r\n{CHANNEL}\r\n{payload}")
    }

    #[test]
    fn every_form_of_event() {
        let keys = message("*2\r\n$1\r\na\r\n$2\r\nbc\r\n");
        assert_eq!(LinkEvent::parse(keys.as_bytes()), Some(LinkEvent::Keys(b"$1\r\na\r\n$2\r\nbc\r\n")));
        for null in ["$-1\r\n", "*-1\r\n", "_\r\n"] {
            assert_eq!(LinkEvent::parse(message(null).as_bytes()), Some(LinkEvent::Everything));
        }
        assert_eq!(
            LinkEvent::parse(message("$1\r\nx\r\n").as_bytes()),
            Some(LinkEvent::Keys(b"$1\r\nx\r\n")),
            "published by anybody"
        );
        assert_eq!(LinkEvent::parse(b"*2\r\n$4\r\npong\r\n$11\r\nnearside:17\r\n"), Some(LinkEvent::Pong(Time(17))));
        assert_eq!(LinkEvent::parse(b"-BUSY Redis is busy\r\n"), Some(LinkEvent::NoPong));
        assert_eq!(LinkEvent::parse(b"+PONG\r\n"), None, "which PING this answers, nobody can tell");
    }

    #[test]
    fn a_pong_carries_what_was_sent_in_every_shape() {
        let shapes = [
            "*2\r\n$4\r\npong\r\n$11\r\nnearside:17\r\n",
            "$11\r\nnearside:17\r\n",
            "+nearside:17\r\n",
            ">2\r\n$4\r\nPONG\r\n$11\r\nnearside:17\r\n",
        ];
        for shape in shapes {
            assert_eq!(LinkEvent::parse(shape.as_bytes()), Some(LinkEvent::Pong(Time(17))), "{shape:?}");
        }
        for nothing in [
            "*2\r\n$4\r\npong\r\n$0\r\n\r\n",
            "+\r\n",
            "$-1\r\n",
            "+OK\r\n",
            ":17\r\n",
            "+17\r\n",
            "+nearside:\r\n",
            "+nearside17\r\n",
        ] {
            assert_eq!(LinkEvent::parse(nothing.as_bytes()), None, "{nothing:?}");
        }
    }

    #[test]
    fn events_of_a_resp3_link() {
        let push = |payload: &str| format!(">2\r\n$10\r\ninvalidate\r\n{payload}");
        let parse = |frame: &str| match LinkEvent::parse(frame.as_bytes()) {
            Some(LinkEvent::Keys(keys)) => String::from_utf8_lossy(keys).into_owned(),
            other => format!("{other:?}"),
        };
        assert_eq!(parse(&push("*1\r\n$1\r\na\r\n")), "$1\r\na\r\n");
        assert_eq!(parse(&push("_\r\n")), "Some(Everything)");
        assert_eq!(parse("$11\r\nnearside:17\r\n"), "Some(Pong(Time(17)))");
        assert_eq!(parse("!4\r\nBUSY\r\n"), "Some(NoPong)");
        assert_eq!(parse("+OK\r\n"), "None");
    }

    #[test]
    fn keys_of_keyspace_notifications() {
        let event = |channel: &str| {
            let parts = ["pmessage", "__keyspace@*__:*", channel, "set"];
            LinkEvent::parse(&resp::encode(&parts)).map(|e| format!("{e:?}"))
        };
        assert_eq!(event("__keyspace@0__:k"), Some(format!("{:?}", LinkEvent::Key(b"k"))));
        assert_eq!(event("__keyspace@12__:a__:b"), Some(format!("{:?}", LinkEvent::Key(b"a__:b"))));
        assert_eq!(event("__keyspace@0__:"), Some(format!("{:?}", LinkEvent::Key(b""))));
        assert_eq!(event("__keyevent@0__:set"), None);
    }
}
