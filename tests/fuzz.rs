//! Fuzz targets of everything that reads bytes from outside. `cargo test` runs each for a bounded number of inputs;
//! `cargo bolero test <target>` runs them guided by coverage for as long as one likes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bolero::check;
use nearside::test_support::node::event::LinkEvent;
use nearside::test_support::resp::{self, Cutter, Scan, Scanner};
use redis_protocol::resp2::decode::decode as decode2;
use redis_protocol::resp2::encode::encode as encode2;
use redis_protocol::resp2::types::Resp2Frame;
use redis_protocol::resp3::decode::complete::decode as decode3;
use redis_protocol::resp3::encode::complete::encode as encode3;
use redis_protocol::resp3::types::Resp3Frame;

const MAX_BULK: usize = 1 << 20;
const ITERATIONS: usize = 20_000;

/// Turns the fuzzer's bytes into pieces that RESP is made of, so that random input is often nearly right.
fn bytes_of(script: &[u8]) -> Vec<u8> {
    const KINDS: &[u8] = b"**$$+-:_,#(%~>|=!";
    const TEXTS: [&str; 12] = [" ", "\r\n", "\n", "\"", "'", "\\x41", "GET", "OK", "a\r\nb", "message", "pong", "\0"];
    let mut out = Vec::new();
    for pair in script.chunks(2) {
        let (what, n) = (pair[0] as usize, *pair.last().unwrap());
        match what % 4 {
            0 | 1 => {
                out.extend(format!("{}{}\r\n", KINDS[(what / 4) % KINDS.len()] as char, i64::from(n % 12) - 2).bytes())
            }
            2 => out.extend([&script[..usize::from(n % 9).min(script.len())], b"\r\n"].concat()),
            _ => out.extend(TEXTS[usize::from(n) % TEXTS.len()].bytes()),
        }
    }
    out
}

/// Scanned in pieces or at once, a request is the same.
#[test]
fn requests_do_not_depend_on_how_they_are_cut() {
    check!().with_iterations(ITERATIONS).for_each(|script: &[u8]| {
        let bytes = bytes_of(script);
        let mut whole = Scanner::default();
        let expected = whole.scan(&bytes, MAX_BULK);
        let mut cut = Scanner::default();
        let mut found = None;
        for n in 0..=bytes.len() {
            match cut.scan(&bytes[..n], MAX_BULK) {
                Ok(Scan::Incomplete(_)) => {}
                other => {
                    found = Some(other);
                    break;
                }
            }
        }
        match (expected, found) {
            (Ok(Scan::Incomplete(_)), None) => {}
            (expected, Some(found)) => {
                assert_eq!(expected, found, "{:?}", String::from_utf8_lossy(&bytes));
                assert_eq!(whole.args(), cut.args());
            }
            (expected, None) => panic!("{expected:?} only at once: {:?}", String::from_utf8_lossy(&bytes)),
        }
    });
}

/// What is found lies within what was given, and goes back to the same arguments when it is encoded.
#[test]
fn requests_are_within_bounds_and_round_trip() {
    check!().with_iterations(ITERATIONS).for_each(|script: &[u8]| {
        let bytes = bytes_of(script);
        let mut scanner = Scanner::default();
        match scanner.scan(&bytes, MAX_BULK) {
            Ok(Scan::Request(len)) => {
                let args: Vec<&[u8]> = scanner.args().iter().map(|r| &bytes[r.clone()]).collect();
                assert!(len <= bytes.len() && !args.is_empty());
                let again = resp::encode(&args);
                let mut second = Scanner::default();
                assert_eq!(second.scan(&again, MAX_BULK), Ok(Scan::Request(again.len())));
                let same: Vec<&[u8]> = second.args().iter().map(|r| &again[r.clone()]).collect();
                assert_eq!(args, same);
            }
            Ok(Scan::Inline(len)) => {
                assert!(len <= bytes.len());
                if let Ok(args) = resp::inline_args(&bytes[..len]) {
                    assert!(!args.is_empty() || bytes[..len].contains(&0));
                }
            }
            Ok(Scan::Nothing(len)) => assert!(len > 0 && len <= bytes.len()),
            Ok(Scan::Incomplete(need)) => assert!(need > bytes.len()),
            Err(_) => {}
        }
    });
}

/// Replies cut in pieces or at once, and as long as the library takes them to be.
#[test]
fn replies_are_as_long_as_the_oracle_says() {
    check!().with_iterations(ITERATIONS).for_each(|script: &[u8]| {
        let bytes = bytes_of(script);
        let whole = Cutter::default().cut(&bytes);
        let mut cutter = Cutter::default();
        let mut found = Ok(None);
        for n in 1..=bytes.len() {
            found = cutter.cut(&bytes[..n]);
            if found != Ok(None) {
                break;
            }
        }
        assert_eq!(whole, found, "{:?}", String::from_utf8_lossy(&bytes));
        // Where the library finds a frame, ours is as long; it is pickier than we are about what is inside, but for the end of a
        // bulk string, which it does not look at. A frame that is refused here is none that the library itself would write.
        for (oracle, written) in [found2(&bytes), found3(&bytes)].into_iter().flatten() {
            let text = String::from_utf8_lossy(&bytes);
            match &whole {
                Err(_) => assert_ne!(written, bytes[..oracle], "{text:?}"),
                found => assert_eq!(found, &Ok(Some(oracle)), "{text:?}"),
            }
        }
    });
}

/// The length of the library's frame at the start, and the bytes that it would write for it.
fn found2(bytes: &[u8]) -> Option<(usize, Vec<u8>)> {
    let (frame, len) = decode2(bytes).ok().flatten()?;
    let mut written = vec![0; frame.encode_len(false)];
    encode2(&mut written, &frame, false).expect("room for it");
    Some((len, written))
}

fn found3(bytes: &[u8]) -> Option<(usize, Vec<u8>)> {
    // Attributes and streamed frames are read otherwise there; the server sends neither to us.
    if bytes.iter().any(|b| b"|?;.".contains(b)) {
        return None;
    }
    let (frame, len) = decode3(bytes).ok().flatten()?;
    let mut written = vec![0; frame.encode_len(false)];
    encode3(&mut written, &frame, false).expect("room for it");
    Some((len, written))
}

/// Whatever somebody publishes or a server says, the link reads it or refuses it.
#[test]
fn the_link_survives_every_frame() {
    check!().with_iterations(ITERATIONS).for_each(|script: &[u8]| {
        let bytes = bytes_of(script);
        if let Ok(Some(len)) = Cutter::default().cut(&bytes) {
            let _ = LinkEvent::parse(&bytes[..len]);
        }
    });
}
