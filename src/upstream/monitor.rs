//! MONITOR: which of the server's lines are about commands that proxies, this one or another, said for themselves. A client
//! that watches through a proxy is shown the others.
//!
//! Proxies say their own commands in plain words, which any client could say. So a line is judged by its address. When
//! MONITOR has begun, CLIENT LIST is asked once, which tells the proxies' connections by their names; from there on a proxy
//! introduces each connection by a HELLO with a mark in it, which MONITOR shows too. Hidden are:
//!
//! 1. At any address, what bears a mark: that HELLO, `PING nearside…`, `INFO nearside nearside`, `SPUBLISH nearside:wait:…`.
//! 2. Behind a marked HELLO as many SELECT and CLIENT SETINFO as it announces.
//! 3. On a lane, CLIENT TRACKING and CACHING as lanes say them, `INFO keyspace keyspace`, `CLIENT SETNAME nearside-lane`, and
//!    what a fill asks behind its read ([`super::fill`]): each question once, in order, with nothing in between.
//! 4. On a connection that a proxy has for itself (the link, the watch …), what is said there. Any other command shows that
//!    the address is another client's by now.
//!
//! Invariant: in doubt a line is shown; a client that uses these marks or names for itself is taken for a proxy. What cannot be told (all unix sockets have one address; CLIENT LIST may be refused; before
//! Redis 7.0 MONITOR shows no CLIENT CACHING; a fill was on its way when MONITOR began; without tracking no fill says CLIENT
//! CACHING) shows commands of proxies, and hides none of a client.
//!
//! Accepted races: MONITOR shows no connection's end. A client that has the address of a proxy's connection that ended since,
//! and has said neither HELLO nor CLIENT SETNAME, is not shown what rules 3 and 4 hide, in exactly these words. A fill whose read
//! the server refused (`-NOPERM`, `-BUSY`) leaves its place to the lane's next command: if that is a read which fills nothing, and a
//! client's own PTTL of the same key follows at once, that PTTL is hidden.
//!
//! Bounds: `ADDRESSES` are remembered; the server's lines wait in its socket while CLIENT LIST is asked, `connect_timeout` at
//! the most.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;

use bytes::Bytes;

use crate::bypass::REQUEST_MAX;
use crate::command::{CacheRead, CommandTable, FieldTtl, Keys, Request, Route};
use crate::node::Node;
use crate::node::identity::Role;
use crate::node::probe::{CHANNEL, NOTIFICATIONS};
use crate::node::wire::{self, MARK, Wire};
use crate::resp::{self, Scan, Scanner};

/// The argument of the PING that announces a question about the fields of a hash, which is the lane's next command.
pub const QUESTION: &str = "nearside:question";
/// Connections of a proxy that carry nothing of clients.
const OWN: [&str; 6] =
    ["nearside-link", "nearside-watch", "nearside-touch", "nearside-names", "nearside-rights", "nearside-monitor"];
/// Addresses remembered. With more, any of them is forgotten: it is shown from there on.
const ADDRESSES: usize = 16 << 10;
/// Longest line of a read whose questions are looked for: the longest request that fills, each byte as MONITOR shows the worst.
const LONGEST: usize = 4 * REQUEST_MAX + 1024;

/// Any one word of a form, and any number of them at its end.
const ANY: &str = "*";
const REST: &str = "…";
/// Rule 4. (MONITOR shows no ACL, no CONFIG and no CLIENT LIST.)
const SAID_ON_OWN: &[&[&str]] = &[
    &["COMMAND"],
    &["COMMAND", "INFO", REST],
    &["INFO", "server"],
    &["INFO", "commandstats"],
    &["INFO", "replication"],
    &["INFO", "memory"],
    &["TIME"],
    &["CLIENT", "ID"],
    &["CLIENT", "TRACKING", "ON", "REDIRECT", ANY, "OPTIN"],
    &["CLIENT", "CACHING", "YES"],
    &["CLIENT", "TRACKING", "OFF"],
    &["CLIENT", "TRACKING", "ON", "REDIRECT", ANY, "BCAST", REST],
    &["CLIENT", "TRACKING", "ON", "BCAST", REST],
    &["SUBSCRIBE", CHANNEL],
    &["PSUBSCRIBE", NOTIFICATIONS],
    &["SELECT", ANY],
    &["TOUCH", REST],
];
/// Rule 3, but for what depends on the commands before.
const SAID_ON_LANES: &[&[&str]] = &[
    &["CLIENT", "TRACKING", "ON", "REDIRECT", ANY, "OPTIN"],
    &["INFO", "keyspace", "keyspace"],
    &["CLIENT", "SETINFO", "LIB-NAME", MARK],
    &["CLIENT", "SETINFO", "LIB-VER", MARK],
];
/// The section that proxies add, twice as no client says it. (Before Redis 7.0 an error: no proxy.)
const WHETHER_PROXY: &[&str] = &["INFO", MARK, MARK];
const CACHING: &[&str] = &["CLIENT", "CACHING", "YES"];
const QUESTIONS: &[&[&str]] = &[&["HKEYS", ANY], &["HPEXPIRETIME", REST]];

/// The server's CLIENT LIST.
///
/// # Errors
/// The server cannot be asked, or refuses.
pub async fn list(node: &Node) -> io::Result<Bytes> {
    let work = async {
        let mut wire = Wire::connect(node).await?;
        let greeting = wire.greet(node, &node.own, "nearside-monitor").await?;
        if greeting.starts_with(b"-") {
            return Ok(greeting);
        }
        // A proxy lists its own clients, whose addresses say nothing about the server's lines; and it leaves out what it knows itself.
        if resp::split_bulk(&wire.ask(WHETHER_PROXY).await?).is_some_and(|(section, _)| !section.is_empty()) {
            return Ok(Bytes::from_static(b"$0\r\n\r\n"));
        }
        wire.ask(&[node.table.load().says("CLIENT"), b"LIST"]).await
    };
    let reply = tokio::time::timeout(node.settings.connect_timeout, work).await??;
    match resp::split_bulk(&reply) {
        Some(_) => Ok(reply),
        None => Err(io::Error::other(String::from_utf8_lossy(&reply).trim().to_owned())),
    }
}

/// The use of a proxy's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionUse {
    /// Clients' commands, and the proxy's own among them.
    Lane,
    /// The proxy's own only.
    Own,
    /// One session's.
    Lent,
}

impl ConnectionUse {
    fn of(name: &[u8]) -> ConnectionUse {
        match () {
            () if name == Role::Lane.name().as_bytes() => ConnectionUse::Lane,
            () if OWN.iter().any(|own| own.as_bytes() == name) => ConnectionUse::Own,
            () => ConnectionUse::Lent,
        }
    }
}

/// The lines expected next from an address, if it is a proxy's own.
#[derive(Debug, Default)]
enum ExpectedLines {
    #[default]
    Nothing,
    /// This number of commands of the greeting.
    Greeting(u32),
    /// The read of a fill, which is a client's.
    Read,
    /// Questions about the keys of the read.
    Keys(VecDeque<u64>),
    /// A question about the fields of a hash.
    Question,
}

#[derive(Debug)]
struct Speaker {
    kind: ConnectionUse,
    next: ExpectedLines,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// CLIENT LIST is being asked.
    #[default]
    Asked,
    /// Its answer is here, and the lines that have waited for it were not looked at yet.
    Told,
    Ready,
}

/// The facts about the connections that the server's lines come from.
#[derive(Debug, Default)]
pub struct Lines {
    stage: Stage,
    speakers: HashMap<Box<[u8]>, Speaker>,
}

impl Lines {
    /// Whether lines are to wait.
    pub fn wait(&self) -> bool {
        self.stage == Stage::Asked
    }

    /// Whether those that have waited are to be looked at now.
    pub fn go_on(&mut self) -> bool {
        let told = self.stage == Stage::Told;
        if told {
            self.stage = Stage::Ready;
        }
        told
    }

    /// Takes the answer to CLIENT LIST.
    pub fn know(&mut self, list: io::Result<Bytes>) {
        self.stage = Stage::Told;
        match &list {
            Ok(list) => {
                let text = resp::split_bulk(list).map_or(&b""[..], |(text, _)| text);
                text.split(|b| *b == b'\n').for_each(|line| self.know_one(line));
            }
            Err(why) => tracing::warn!(
                "MONITOR shows what proxies say on connections they have already: the upstream does not answer CLIENT LIST: {why}"
            ),
        }
    }

    fn know_one(&mut self, line: &[u8]) {
        let field = |name: &[u8]| line.split(|b| *b == b' ').find_map(|field| field.strip_prefix(name));
        if let (Some(address), Some(name)) = (field(b"addr="), field(b"name=")) {
            self.learn(address, ConnectionUse::of(name), 0);
        }
    }

    /// The connection at this address has said whose it is, and announced so many further commands.
    fn learn(&mut self, address: &[u8], kind: ConnectionUse, greeting: u32) {
        // All unix sockets have the same, and so have all scripts.
        if address.starts_with(b"unix:") || address == b"lua" {
            return;
        }
        self.speakers.remove(address);
        if kind == ConnectionUse::Lent && greeting == 0 {
            return;
        }
        if self.speakers.len() >= ADDRESSES
            && let Some(other) = self.speakers.keys().next().cloned()
        {
            self.speakers.remove(&other);
        }
        let next = if greeting == 0 { ExpectedLines::Nothing } else { ExpectedLines::Greeting(greeting) };
        self.speakers.insert(address.into(), Speaker { kind, next });
    }

    /// Whether this is a line about what a proxy said for itself. Each line is to be asked about once, in order.
    pub fn hide(&mut self, line: &[u8], table: &CommandTable) -> bool {
        let Some(line) = Line::parse(line) else { return false };
        if let Some((name, greeting)) = line.introduction() {
            self.learn(line.address, ConnectionUse::of(name), greeting);
            return true;
        }
        let marked = line.mark();
        let Some(speaker) = self.speakers.get_mut(line.address) else {
            return marked.is_some() || self.names_itself(&line, table);
        };
        if let Some(mark) = marked {
            speaker.next = if mark == QUESTION.as_bytes() { ExpectedLines::Question } else { ExpectedLines::Nothing };
            return true;
        }
        match std::mem::take(&mut speaker.next) {
            ExpectedLines::Greeting(left) if line.is_greeting(table) => {
                speaker.next = if left > 1 { ExpectedLines::Greeting(left - 1) } else { ExpectedLines::Nothing };
                return true;
            }
            ExpectedLines::Read => {
                speaker.next = ExpectedLines::Keys(line.questions(table));
                return false;
            }
            ExpectedLines::Keys(mut questions) if questions.front() == Some(&fingerprint(line.words())) => {
                questions.pop_front();
                speaker.next = ExpectedLines::Keys(questions);
                return true;
            }
            ExpectedLines::Question if QUESTIONS.iter().any(|form| line.is(form)) => return true,
            _ => {}
        }
        let (own, caching) = match speaker.kind {
            ConnectionUse::Own => (SAID_ON_OWN.iter().any(|form| line.is(form)), false),
            ConnectionUse::Lane => (SAID_ON_LANES.iter().any(|form| line.is(form)), line.is(CACHING)),
            ConnectionUse::Lent => (false, false),
        };
        if caching {
            speaker.next = ExpectedLines::Read;
        }
        if own || caching {
            return true;
        }
        let named = self.names_itself(&line, table);
        if !named
            && (line.is_hello(table) || self.speakers.get(line.address).is_some_and(|s| s.kind != ConnectionUse::Lane))
        {
            self.speakers.remove(line.address);
        }
        named
    }

    /// CLIENT SETNAME: whether a proxy's connection says its name. Another client's name ends what is known of the address.
    fn names_itself(&mut self, line: &Line<'_>, table: &CommandTable) -> bool {
        let mut words = line.words();
        let is = |word: Option<&[u8]>, wanted| word.is_some_and(|word| word.eq_ignore_ascii_case(wanted));
        if !is(words.next(), table.says("CLIENT")) || !is(words.next(), b"SETNAME") {
            return false;
        }
        let Some(name) = words.next().filter(|name| is_name(name)) else { return false };
        let kind = ConnectionUse::of(name);
        self.learn(line.address, kind, 0);
        kind != ConnectionUse::Lent || name == Role::Dedicated.name().as_bytes()
    }
}

/// Whether the server takes what MONITOR shows so for a name.
fn is_name(shown: &[u8]) -> bool {
    let mut escaped = false;
    shown.iter().all(|b| {
        let was = escaped;
        escaped = !was && *b == b'\\';
        *b != b' ' && (!was || matches!(b, b'\\' | b'"'))
    })
}

fn fingerprint<'a>(words: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut hasher = DefaultHasher::new();
    words.for_each(|word| word.hash(&mut hasher));
    hasher.finish()
}

/// One line of MONITOR: `+1795247173.901910 [9 [::1]:48316] "GET" "k"`.
struct Line<'a> {
    address: &'a [u8],
    words: &'a [u8],
}

impl<'a> Line<'a> {
    /// `None`: it is none, but the reply to something.
    fn parse(frame: &'a [u8]) -> Option<Line<'a>> {
        let text = frame.strip_prefix(b"+")?.strip_suffix(b"\r\n")?;
        let time = text.iter().take_while(|b| b.is_ascii_digit() || **b == b'.').count();
        let rest = text[time..].strip_prefix(b" [")?;
        let rest = &rest[memchr::memchr(b' ', rest)? + 1..];
        let end = memchr::memmem::find(rest, b"] \"")?;
        Some(Line { address: &rest[..end], words: &rest[end + 2..] })
    }

    /// The words as the server shows them: quotation marks, backslashes and what cannot be printed stay escaped.
    fn words(&self) -> MonitorWords<'a> {
        MonitorWords(self.words)
    }

    fn is(&self, form: &[&str]) -> bool {
        let mut words = self.words();
        for word in form {
            match (*word, words.next()) {
                (REST, _) => return true,
                (_, None) => return false,
                (wanted, Some(said)) if wanted != ANY && wanted.as_bytes() != said => return false,
                _ => {}
            }
        }
        words.next().is_none()
    }

    /// A HELLO with a proxy's mark: the name it gives the connection, and how many commands it announces.
    fn introduction(&self) -> Option<(&'a [u8], u32)> {
        let mut words = self.words().skip(1);
        words.next().filter(|protocol| matches!(*protocol, b"2" | b"3"))?;
        let mut option = words.next()?;
        if option == b"AUTH" {
            option = words.nth(2)?;
        }
        let announced = wire::announced(words.next().filter(|_| option == b"SETNAME")?)?;
        words.next().filter(|option| *option == b"SETNAME")?;
        Some((words.next()?, announced))
    }

    /// The mark of a command that bears one.
    fn mark(&self) -> Option<&'a [u8]> {
        let mut words = self.words();
        let (name, word) = (words.next()?, words.next()?);
        let mark = match name {
            b"PING" => word == MARK.as_bytes() || word.starts_with(b"nearside:"),
            b"SPUBLISH" => word.starts_with(b"nearside:wait:"),
            b"INFO" => self.is(WHETHER_PROXY),
            _ => false,
        };
        mark.then_some(word)
    }

    /// Whether it can be what a proxy says behind its HELLO.
    fn is_greeting(&self, table: &CommandTable) -> bool {
        let mut words = self.words();
        let name = words.next();
        name == Some(table.says("SELECT"))
            || name == Some(table.says("CLIENT")) && words.next().is_some_and(|word| word == b"SETINFO")
    }

    fn is_hello(&self, table: &CommandTable) -> bool {
        let hello = table.says("HELLO");
        self.words().next().is_some_and(|name| name.eq_ignore_ascii_case(hello))
    }

    /// The questions that a fill puts behind this read about its keys: see [`super::fill::Fill::write`].
    fn questions(&self, table: &CommandTable) -> VecDeque<u64> {
        if self.words.len() > LONGEST {
            return VecDeque::new();
        }
        let buf = resp::encode(&self.words().collect::<Vec<_>>());
        let mut scanner = Scanner::default();
        if !matches!(scanner.scan(&buf, usize::MAX), Ok(Scan::Request(_))) {
            return VecDeque::new();
        }
        let request = Request { buf: &buf, args: scanner.args(), hash: None };
        let about = |i: usize| fingerprint([b"PTTL", request.arg(i)].into_iter());
        match table.plan(&request, &mut Keys::default()).route {
            Route::Cache(CacheRead::Mget) => (1..request.len()).map(about).collect(),
            Route::Cache(CacheRead::One(FieldTtl::Named)) => {
                let count = (request.len() - 2).to_string();
                let named = [b"HPEXPIRETIME", request.arg(1), b"FIELDS", count.as_bytes()];
                let named = fingerprint(named.into_iter().chain((2..request.len()).map(|i| request.arg(i))));
                VecDeque::from([about(1), named])
            }
            Route::Cache(CacheRead::One(_)) => VecDeque::from([about(1)]),
            _ => VecDeque::new(),
        }
    }
}

#[derive(Clone)]
struct MonitorWords<'a>(&'a [u8]);

impl<'a> Iterator for MonitorWords<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let word = self.0.strip_prefix(b"\"")?;
        let mut end = 0;
        loop {
            end += memchr::memchr2(b'\\', b'"', word.get(end..)?)?;
            if word[end] == b'"' {
                break;
            }
            end += 2;
        }
        self.0 = word[end + 1..].strip_prefix(b" ").unwrap_or_default();
        Some(&word[..end])
    }
}

#[cfg(test)]
mod tests;
