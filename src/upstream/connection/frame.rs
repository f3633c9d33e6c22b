//! Questions about one frame of the server. Pure.

use std::io;

use crate::resp;

/// Bytes of an unasked error that the log and clients are shown.
const SHOWN: usize = 128;

/// The place of one frame among all that is awaited, as [`State::landing`](super::State::landing) decides: the rest of
/// the connection only acts by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Landing {
    /// MONITOR: a line about what others say, or a reply among such lines.
    Line,
    /// A push, which takes nobody's turn.
    Push,
    /// The next reply of a fill.
    Fill,
    /// The reply to a client's command.
    Reply,
    /// The refusal of a subscription, whose confirmations would be pushes.
    Confirm,
    /// The verdict on MONITOR.
    Verdict,
    /// The answer to something that the lane has asked for itself.
    Own,
    /// No place at all, for this reason: the positions are lost.
    Surplus(&'static str),
}

/// Whether a frame is a push. RESP2 has no push type: there it is what a subscriber gets while it is one.
pub(super) fn is_push(frame: &[u8], resp3: bool, subscribed: bool) -> bool {
    let by_its_word = || {
        let word = push_word(frame);
        word.ends_with(b"subscribe") || word.ends_with(b"message")
    };
    frame[0] == b'>' || frame[0] == b'*' && !resp3 && subscribed && by_its_word()
}

/// The first word of a push; nothing if it has none.
pub(super) fn push_word(frame: &[u8]) -> &[u8] {
    let elements = resp::split_aggregate(frame).filter(|(count, _)| *count > 0);
    elements.and_then(|(_, rest)| resp::split_bulk(rest)).map_or(b"", |(word, _)| word)
}

pub(super) fn is_error(frame: &[u8]) -> bool {
    matches!(frame[0], b'-' | b'!')
}

/// A command that the server does not have.
pub(super) fn is_unknown(frame: &[u8]) -> bool {
    frame.starts_with(b"-ERR unknown command")
}

/// The server's own word on what a user may not say.
pub(super) fn is_refusal(frame: &[u8]) -> bool {
    frame.starts_with(b"-NOPERM")
}

/// Whether a reply shows that the server held the connection when it was asked. An error may come from whatever stands
/// between, which says a last word and closes while the server has let the connection go already.
pub(super) fn proves_life(frame: &[u8]) -> bool {
    !is_error(frame) || is_refusal(frame)
}

/// The positions are lost, and so is the connection: what is awaited on it fails. Of the bytes only an error's text is shown:
/// anything else may be a client's value.
pub(super) fn out_of_turn(what: &str, frame: &[u8]) -> io::Error {
    let shown = if is_error(frame) { &frame[..frame.len().min(SHOWN)] } else { &frame[..1] };
    let shown = String::from_utf8_lossy(shown.trim_ascii_end());
    io::Error::new(io::ErrorKind::InvalidData, format!("{what}: {}", shown.escape_debug()))
}

/// The last value of a confirmation: how many subscriptions there are now.
pub(super) fn last_integer(frame: &[u8]) -> Option<i64> {
    let text = frame.strip_suffix(b"\r\n")?;
    let colon = memchr::memrchr(b':', text)?;
    resp::parse_i64(&text[colon + 1..])
}

/// Whether it is what MONITOR tells of others, and no reply: `+1700000000.123456 [0 …`.
pub(super) fn is_told(frame: &[u8]) -> bool {
    matches!(frame, [b'+', digit, ..] if digit.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_is_marked_or_a_subscribers() {
        let message = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n";
        assert!(is_push(message, false, true));
        assert!(!is_push(message, false, false), "the reply to LRANGE looks the same");
        assert!(!is_push(message, true, true), "RESP3 marks its pushes");
        assert!(!is_push(b"*1\r\n$4\r\nPONG\r\n", false, true) && !is_push(b"*0\r\n", false, true));
        assert!(is_push(b">2\r\n$10\r\ninvalidate\r\n_\r\n", true, false) && is_push(b">0\r\n", false, false));
        assert_eq!(
            (push_word(message), push_word(b">0\r\n"), push_word(b">1\r\n:1\r\n")),
            (&b"message"[..], &b""[..], &b""[..])
        );
    }

    #[test]
    fn only_an_error_of_the_server_itself_proves_life() {
        assert!(proves_life(b"$-1\r\n") && proves_life(b"-NOPERM x\r\n"));
        assert!(!proves_life(b"-ERR bad gateway\r\n") && !proves_life(b"!5\r\nERR x\r\n"));
    }

    #[test]
    fn no_value_of_a_client_is_shown() {
        assert_eq!(out_of_turn("stray", b"$6\r\nsecret\r\n").to_string(), "stray: $");
        assert_eq!(out_of_turn("stray", b"-ERR a\r\n").to_string(), "stray: -ERR a");
        assert!(out_of_turn("stray", &[b'-'; 500]).to_string().len() < 200);
    }

    #[test]
    fn confirmations_end_with_a_count() {
        assert_eq!(last_integer(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:2\r\n"), Some(2));
        assert_eq!(last_integer(b">1\r\n$1\r\nx\r\n"), None);
        assert!(is_told(b"+1700000000.1 [0 x] \"GET\"\r\n") && !is_told(b"+OK\r\n"));
    }
}
