use super::reply::NotResp;
use super::*;

fn scan_all(bytes: &[u8]) -> Result<Scan, ProtocolError> {
    Scanner::default().scan(bytes, 512 << 20)
}

fn error(bytes: &[u8]) -> String {
    scan_all(bytes).expect_err("an error").to_string()
}

#[test]
fn a_request_is_found_however_it_is_cut() {
    let bytes = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$12\r\nhello\r\nworld\r\n*1";
    let mut scanner = Scanner::default();
    for n in 0..bytes.len() - 2 {
        assert!(matches!(scanner.scan(&bytes[..n], 1 << 20), Ok(Scan::Incomplete(_))), "at {n}");
    }
    assert_eq!(scanner.scan(bytes, 1 << 20), Ok(Scan::Request(bytes.len() - 2)));
    let args: Vec<&[u8]> = scanner.args().iter().map(|r| &bytes[r.clone()]).collect();
    assert_eq!(args, [&b"SET"[..], b"k", b"hello\r\nworld"]);
}

#[test]
fn requests_for_nothing_are_skipped() {
    assert_eq!(scan_all(b"*0\r\n"), Ok(Scan::Nothing(4)));
    assert_eq!(scan_all(b"*-1\r\n"), Ok(Scan::Nothing(5)));
    assert_eq!(scan_all(b"\r\n"), Ok(Scan::Nothing(2)));
}

#[test]
fn errors_are_in_the_words_of_redis() {
    assert_eq!(error(b"*x\r\n"), "Protocol error: invalid multibulk length");
    assert_eq!(error(b"*01\r\n"), "Protocol error: invalid multibulk length");
    assert_eq!(error(b"*3000000000\r\n"), "Protocol error: invalid multibulk length");
    assert_eq!(error(b"*1\r\n:1\r\n"), "Protocol error: expected '$', got ':'");
    assert_eq!(error(b"*1\r\n$-1\r\n"), "Protocol error: invalid bulk length");
    assert_eq!(error(b"*1\r\n$600000000\r\n"), "Protocol error: invalid bulk length");
    assert_eq!(error(&[b'a'; 70_000]), "Protocol error: too big inline request");
    let long = [b"*".as_slice(), &[b'1'; 70_000]].concat();
    assert_eq!(error(&long), "Protocol error: too big mbulk count string");
    let long = [b"*1\r\n$".as_slice(), &[b'1'; 70_000]].concat();
    assert_eq!(error(&long), "Protocol error: too big bulk count string");
}

#[test]
fn inline_quotes_and_escapes() {
    let args = inline_args(b"SET \"a\\x41\\n\" 'it\\'s' plain\r\n").expect("balanced");
    assert_eq!(args, [b"SET".to_vec(), b"aA\n".to_vec(), b"it's".to_vec(), b"plain".to_vec()]);
    assert!(inline_args(b"SET \"a").is_err());
    assert!(inline_args(b"SET \"a\"b").is_err());
    assert!(inline_args(b"SET 'a").is_err());
}

#[test]
fn numbers_in_their_canonical_spelling_only() {
    assert_eq!(parse_i64(b"9223372036854775807"), Some(i64::MAX));
    assert_eq!(parse_i64(b"-9223372036854775808"), Some(i64::MIN));
    for bad in [&b"9223372036854775808"[..], b"", b"-", b"-0", b"+1", b"01", b"1a", b" 1"] {
        assert_eq!(parse_i64(bad), None);
    }
}

#[test]
fn replies_of_every_kind_are_cut_however_they_arrive() {
    let replies: &[&[u8]] = &[
        b"+OK\r\n",
        b"-ERR x\r\n",
        b":1\r\n",
        b"$-1\r\n",
        b"$0\r\n\r\n",
        b"$5\r\na\r\nbc\r\n",
        b"*-1\r\n",
        b"*0\r\n",
        b"*2\r\n*1\r\n:1\r\n$1\r\nx\r\n",
        b"%1\r\n+a\r\n~2\r\n:1\r\n:2\r\n",
        b"|1\r\n+ttl\r\n:3600\r\n$1\r\nx\r\n",
        b">2\r\n+a\r\n_\r\n",
        b"=8\r\ntxt:abcd\r\n",
        b"!3\r\nabc\r\n",
        b"#t\r\n",
        b",1.5\r\n",
        b"(123\r\n",
    ];
    for reply in replies {
        let mut cutter = Cutter::default();
        for n in 0..reply.len() {
            assert_eq!(cutter.cut(&reply[..n]), Ok(None), "{n} of {reply:?}");
            assert!(cutter.need() > n);
        }
        let followed = [reply, b"+next\r\n".as_slice()].concat();
        assert_eq!(cutter.cut(&followed), Ok(Some(reply.len())));
    }
    assert_eq!(Cutter::default().cut(b"hello\r\n"), Err(NotResp));
}

#[test]
fn a_short_reply_is_cut_as_it_is_when_it_comes_in_pieces() {
    let replies: &[&[u8]] = &[
        b"+OK\r\n",
        b":-1\r\n",
        b"+\r\n",
        b":123456\r\n",
        b":1234567\r\n",
        b"$3\r\nabc\r\n",
        b"$12\r\nabc\r\n\r\ndefgh\r\n",
        b"$0\r\n\r\n",
        b"$-1\r\n",
        b"$03\r\nabc\r\n",
        b"$99999\r\nabc\r\n",
        b"$\r\nabc\r\n",
        b"$1x\r\nabc\r\n",
        b"+a\nb\r\n",
        b"*1\r\n:1\r\n",
        b"\r\n+OK\r\n",
    ];
    for reply in replies {
        let followed = [reply, b"+next\r\n:1\r\n".as_slice()].concat();
        let mut pieces = Cutter::default();
        let slow = pieces.cut(&followed[..1]).and_then(|_| pieces.cut(&followed));
        let mut whole = Cutter::default();
        assert_eq!(whole.cut(&followed), slow, "{}", String::from_utf8_lossy(reply));
        assert!(slow.is_err() || (whole.need(), whole.pos) == (pieces.need(), pieces.pos));
    }
}

#[test]
fn a_deep_reply_costs_no_stack() {
    let mut deep = b"*1\r\n".repeat(1_000_000);
    deep.extend_from_slice(b":1\r\n");
    assert_eq!(Cutter::default().cut(&deep), Ok(Some(deep.len())));
}

#[test]
fn a_short_get_is_what_the_scanner_finds() {
    let long = "x".repeat(99);
    for (request, short) in [
        (encode(&["GET", "k"]), true),
        (encode(&["get", ""]), true),
        (encode(&["gEt", &long]), true),
        (encode(&["GET", &format!("{long}x")]), false),
        (encode(&["SET", "k"]), false),
        (encode(&["GET", "k", "l"]), false),
        (encode(&["GET"]), false),
        (b"*2\r\n$03\r\nGET\r\n$1\r\nk\r\n".to_vec(), false),
    ] {
        let followed = [&request[..], b"*1\r\n$4\r\nPING\r\n"].concat();
        let mut scanner = Scanner::default();
        let scanned = scanner.scan(&followed, 512 << 20);
        let found = short_get(&followed);
        assert_eq!(found.is_some(), short, "{}", String::from_utf8_lossy(&request));
        if let Some((args, len)) = found {
            assert_eq!((Ok(Scan::Request(len)), scanner.args()), (scanned, &args[..]));
            assert!((0..len).all(|cut| short_get(&request[..cut]).is_none()), "not whole");
        }
    }
}

#[test]
fn numbers_that_no_reply_has_are_no_resp() {
    for bytes in [&b"$9223372036854775000\r\n"[..], b"*1099511627776\r\n", b"%9223372036854775807\r\n"] {
        assert_eq!(Cutter::default().cut(bytes), Err(NotResp), "{bytes:?}");
    }
    let deep = b"*1099511627775\r\n".repeat(1 << 12);
    assert_eq!(Cutter::default().cut(&deep), Ok(None), "and nothing overflows");
}

#[test]
fn a_bulk_string_that_does_not_end_with_its_line_is_no_reply() {
    for reply in
        [&b"$2\r\nabcd"[..], b"$2\r\nab\n\r", b"=6\r\ntxt:abcd", b"*1\r\n$2\r\nabcd", b"$0\r\n..", b"$100000\r\n"]
    {
        let padded = [reply, &[b'x'; 100_010]].concat();
        assert_eq!(Cutter::default().cut(&padded), Err(NotResp), "{:?}", reply.escape_ascii());
    }
    assert_eq!(Cutter::default().cut(b"$2\r\nab\r\n"), Ok(Some(8)));
}
