//! Lines in, shown or hidden.

use super::*;
use crate::config::ScriptKeys;

const LANE: &str = "127.0.0.1:1";
const OTHER: &str = "[::1]:2";
const OWN_LINK: &str = "127.0.0.1:3";
const INTRODUCTION: &str =
    r#""HELLO" "2" "AUTH" "(redacted)" "(redacted)" "SETNAME" "nearside:0123456789abcdef0123456789abcdef" "SETNAME""#;

struct Shown {
    lines: Lines,
    table: CommandTable,
}

impl Shown {
    fn new(list: &str) -> Shown {
        let mut lines = Lines::default();
        let list = format!("${}\r\n{list}\r\n", list.len());
        assert!(lines.wait() && !lines.go_on());
        lines.know(Ok(list.into()));
        assert!(!lines.wait() && lines.go_on() && !lines.go_on());
        Shown { lines, table: CommandTable::by_heart(ScriptKeys::default()) }
    }

    /// Which of these commands from one address are hidden: `+` shown, `-` hidden.
    fn of(&mut self, address: &str, said: &[&str]) -> String {
        let line = |words: &&str| format!("+1795247173.901910 [9 {address}] {words}\r\n");
        let hidden = said.iter().map(line).map(|line| self.lines.hide(line.as_bytes(), &self.table));
        hidden.map(|hidden| if hidden { '-' } else { '+' }).collect()
    }
}

fn list() -> Shown {
    Shown::new(&format!(
        "id=3 addr={LANE} laddr=127.0.0.1:6379 fd=8 name=nearside-lane age=1\n\
         id=4 addr={OWN_LINK} laddr=127.0.0.1:6379 fd=9 name=nearside-link age=1\n\
         id=5 addr={OTHER} laddr=127.0.0.1:6379 fd=9 name=web age=1\n"
    ))
}

const CACHE: &str = r#""CLIENT" "CACHING" "YES""#;

#[test]
fn behind_a_read_each_question_is_hidden_once_in_order() {
    let mut shown = list();
    let get = [CACHE, r#""GET" "k""#, r#""PTTL" "k""#, r#""PTTL" "k""#];
    assert_eq!(shown.of(LANE, &get), "-+-+");
    assert_eq!(shown.of(OTHER, &get), "++++", "a client that tracks for itself");
    assert_eq!(shown.of(LANE, &[CACHE, r#""GET" "k""#, r#""GET" "x""#, r#""PTTL" "k""#]), "-+++");
    assert_eq!(shown.of(LANE, &[CACHE, r#""GET" "k""#, r#""PTTL" "x""#, r#""PTTL" "k""#]), "-+++");
    let mget =
        [CACHE, r#""MGET" "a" "\"b\\ " "a""#, r#""PTTL" "a""#, r#""PTTL" "\"b\\ ""#, r#""PTTL" "a""#, r#""PTTL" "a""#];
    assert_eq!(shown.of(LANE, &mget), "-+---+");
    assert_eq!(shown.of(LANE, &[CACHE, r#""SET" "k" "v""#, r#""PTTL" "k""#]), "-++", "the read was refused");
    assert_eq!(shown.of(LANE, &[CACHE, r#""HGET" "k" "f""#, r#""PTTL" "k""#, r#""PTTL" "f""#]), "-+-+");
    let long = format!(r#""GET" "{}""#, "k".repeat(LONGEST));
    let question = long.replace("GET", "PTTL");
    assert_eq!(shown.of(LANE, &[CACHE, &long, &question]), "-++");
}

#[test]
fn questions_about_fields_are_announced_or_of_their_own_form() {
    let mut shown = list();
    let (keys, ends) = (r#""HKEYS" "h""#, r#""HPEXPIRETIME" "h" "FIELDS" "1" "f""#);
    let announced = r#""PING" "nearside:question""#;
    assert_eq!(shown.of(LANE, &[keys, ends, announced, keys, keys, announced, ends, ends]), "++--+--+");
    assert_eq!(shown.of(LANE, &[announced, r#""GET" "k""#, keys]), "-++");
    let info = [r#""INFO" "keyspace""#, r#""INFO" "keyspace" "keyspace""#];
    assert_eq!(shown.of(LANE, &info), "+-");
    assert_eq!(shown.of(OTHER, &info), "++");
}

#[test]
fn what_bears_a_mark_is_hidden_anywhere() {
    let mut shown = list();
    let marked =
        [r#""PING" "nearside""#, r#""PING" "nearside:17""#, r#""SPUBLISH" "nearside:wait:ab" """#, INTRODUCTION];
    let hello = format!(r#"{INTRODUCTION} "nearside-lane""#);
    for address in [LANE, OTHER, "unix:/tmp/a b", "lua"] {
        assert_eq!(shown.of(address, &marked[..3]), "---");
        assert_eq!(shown.of(address, &[&hello]), "-");
    }
    let others = [
        r#""PING""#,
        r#""PING" "x""#,
        r#""PING" "nearsidex""#,
        r#""INFO" "nearside""#,
        r#""SPUBLISH" "nearside:x" """#,
        r#""HELLO" "2" "SETNAME" "nearside:0123456789abcdef0123456789abcdef""#,
        r#""HELLO" "2" "SETNAME" "nearside:12" "SETNAME" "x""#,
        r#""MSET" "2" "SETNAME" "x" "SETNAME" "nearside:0123456789abcdef0123456789abcdef""#,
    ];
    assert_eq!(shown.of(LANE, &others), "++++++++");
    assert!(!shown.lines.hide(b"+PONG\r\n", &shown.table) && !shown.lines.hide(b"$4\r\nPING\r\n", &shown.table));
}

#[test]
fn a_greeting_announces_how_many_commands_follow() {
    let mut shown = list();
    let greeting = |name: &str, then: &str| {
        INTRODUCTION.replace("cdef\" \"SETNAME\"", &format!("cdef{then}\" \"SETNAME\" \"{name}\""))
    };
    let (select, info) = (r#""SELECT" "3""#, r#""CLIENT" "SETINFO" "LIB-NAME" "x""#);
    assert_eq!(shown.of(OTHER, &[&greeting("me", "+2"), info, info, info, select]), "---++");
    assert_eq!(shown.of(OTHER, &[&greeting("me", "+2"), r#""GET" "k""#, info]), "-++");
    assert_eq!(
        shown.of(OTHER, &[&greeting("nearside-lane", "+1"), select, CACHE, r#""GET" "k""#, r#""PTTL" "k""#]),
        "---+-"
    );
    assert_eq!(
        shown.of("unix:/s", &[&greeting("nearside-lane", "+1"), select, CACHE]),
        "-++",
        "of all its connections"
    );
    assert_eq!(shown.of(OTHER, &[&greeting("nearside-dedicated", ""), select, CACHE]), "-++");
}

#[test]
fn an_address_is_anothers_once_it_says_what_a_proxy_does_not() {
    let link = [r#""INFO" "server""#, r#""TIME""#, r#""SUBSCRIBE" "__redis__:invalidate""#];
    for other in [r#""PING""#, r#""GET" "k""#, r#""info" "server""#, r#""HELLO" "3""#, r#""CLIENT" "SETNAME" "web""#] {
        let mut shown = list();
        assert_eq!(shown.of(OWN_LINK, &[link[0], link[1], link[2], other, link[0], link[1]]), "---+++", "{other}");
    }
    for hello in [
        r#""hello" "3""#,
        r#""HELLO" "3" "SETNAME" "nearside""#,
        r#""CLIENT" "SETNAME" "web""#,
        r#""CLIENT" "SETNAME" """#,
    ] {
        let mut shown = list();
        assert_eq!(shown.of(LANE, &[CACHE, r#""GET" "k""#, hello, CACHE]), "-+++", "{hello}");
    }
    let mut shown = list();
    let refused = [r#""CLIENT" "SETNAME" "a b""#, r#""CLIENT" "SETNAME" "a\n""#, r#""CLIENT" "SETNAME" "a\x01""#];
    assert_eq!(shown.of(LANE, &refused), "+++");
    assert_eq!(shown.of(LANE, &[CACHE]), "-", "the server takes none of them for a name");
    let mut shown = list();
    assert_eq!(shown.of(LANE, &[r#""client" "setname" "nearside-lane""#, CACHE]), "--");
    assert_eq!(
        shown.of(OTHER, &[r#""CLIENT" "SETNAME" "nearside-x""#, r#""CLIENT" "SETNAME" "nearside-watch""#, link[1]]),
        "+--"
    );
}

#[test]
fn without_a_list_the_lines_tell() {
    let mut shown = Shown { lines: Lines::default(), table: CommandTable::by_heart(ScriptKeys::default()) };
    shown.lines.know(Err(io::Error::other("-NOPERM")));
    assert!(shown.lines.go_on());
    assert_eq!(shown.of(LANE, &[CACHE, &format!(r#"{INTRODUCTION} "nearside-lane""#), CACHE]), "+--");
}

#[test]
fn so_many_addresses_are_remembered() {
    let mut shown = list();
    for n in 0..2 * ADDRESSES {
        assert_eq!(shown.of(&format!("10.0.0.1:{n}"), &[&format!(r#"{INTRODUCTION} "nearside-lane""#)]), "-");
        assert!(shown.lines.speakers.len() <= ADDRESSES);
    }
    let latest = format!("10.0.0.1:{}", 2 * ADDRESSES - 1);
    assert_eq!(shown.of(&latest, &[CACHE]), "-");
}
