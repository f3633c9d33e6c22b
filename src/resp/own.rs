//! How proxies spell the commands that they say for themselves: `pING`. To the server it is all one, but MONITOR shows
//! words as they were said, so that what is nobody's command can be left out of what a client of ours is shown.

use super::encode;

/// Encodes a request of the proxy's own. The command's name comes in capital letters.
pub fn own<A: AsRef<[u8]>>(args: &[A]) -> Vec<u8> {
    let mut request = encode(args);
    let header = args.len().to_string().len() + 3;
    let start = header + args.first().map_or(0, |name| name.as_ref().len().to_string().len() + 3);
    if let Some(letter) = request.get_mut(start) {
        letter.make_ascii_lowercase();
    }
    request
}

/// Whether this line of MONITOR is about a command that a proxy said for itself.
pub fn is_own(line: &[u8]) -> bool {
    const BEFORE: &[u8] = b"] \"";
    let Some(at) = memchr::memmem::find(line, BEFORE).filter(|_| line.starts_with(b"+")) else { return false };
    let word = line[at + BEFORE.len()..].split(|b| *b == b'"').next().unwrap_or_default();
    matches!(word, [first, rest @ ..] if first.is_ascii_lowercase() && !rest.is_empty() && rest.iter().all(u8::is_ascii_uppercase))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_for_ourselves_is_known_again() {
        assert_eq!(own(&["PING"]), b"*1\r\n$4\r\npING\r\n");
        assert_eq!(own(&["SUBSCRIBETOOMUCH", "a"]), b"*2\r\n$16\r\nsUBSCRIBETOOMUCH\r\n$1\r\na\r\n");
        let line = |said: &str| format!("+1795247173.901910 [9 [::1]:48316] {said}\r\n");
        assert!(is_own(line("\"pING\"").as_bytes()) && is_own(line("\"cLIENT\" \"CACHING\" \"YES\"").as_bytes()));
        for said in ["\"PING\"", "\"ping\"", "\"Ping\"", "\"g\"", "\"set\" \"x] \\\"pING\\\"\" \"1\""] {
            assert!(!is_own(line(said).as_bytes()), "{said}");
        }
        assert!(!is_own(b"$9\r\n] \"pING\"\"\r\n"));
    }
}
