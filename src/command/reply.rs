//! The server's COMMAND reply into entries. Trusted control-plane data, read once for each connection of the link.

use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::types::OwnedFrame as Frame;

use super::table::{BeginSearch, FindKeys};

/// The server's description of one command.
#[derive(Default)]
pub(super) struct CommandInfo {
    /// Lower case; a subcommand is `container|sub`.
    pub name: Vec<u8>,
    /// The name included; negative: at least so many.
    pub arity: i64,
    pub write: bool,
    pub readonly: bool,
    /// By flag (7.0) or category (6.2).
    pub blocking: bool,
    pub module: bool,
    /// The keys' places depend on the arguments.
    pub movable: bool,
    pub keys: Vec<KeySpec>,
    /// Some of its keys cannot be described.
    pub opaque: bool,
    pub subcommands: Vec<CommandInfo>,
}

/// Where some keys of a command are.
#[derive(Clone)]
pub(super) struct KeySpec {
    pub begin: BeginSearch<Vec<u8>>,
    pub find: FindKeys,
    /// Not only read.
    pub write: bool,
}

/// Parses the RESP2 reply to COMMAND.
pub(super) fn parse(reply: &[u8]) -> Result<Vec<CommandInfo>, String> {
    let (frame, _) = decode(reply).map_err(|e| format!("COMMAND: {e}"))?.ok_or("COMMAND: the reply is cut off")?;
    match frame {
        Frame::Array(list) if !list.is_empty() => list.iter().map(entry).collect(),
        Frame::Error(text) => Err(format!("COMMAND: {text}")),
        _ => Err("COMMAND: the reply is not a list of commands".into()),
    }
}

/// Parses the RESP2 reply to COMMAND INFO: of each name that was asked about the entry, or none.
pub(super) fn parse_info(reply: &[u8]) -> Result<Vec<Option<CommandInfo>>, String> {
    let (frame, _) = decode(reply).map_err(|e| format!("COMMAND INFO: {e}"))?.ok_or("COMMAND INFO: cut off")?;
    let known = |frame: &Frame| if matches!(frame, Frame::Null) { Ok(None) } else { entry(frame).map(Some) };
    match frame {
        Frame::Array(list) if !list.is_empty() => list.iter().map(known).collect(),
        Frame::Error(text) => Err(format!("COMMAND INFO: {text}")),
        _ => Err("COMMAND INFO: the reply is not a list of commands".into()),
    }
}

/// Redis 8.2's description of its commands: the server's own bytes, a line a command, a tab in the place of each end of a line.
const BY_HEART: &str = include_str!("../../tests/commands/redis-8.2.txt");

/// The entries of Redis' core.
pub(super) fn by_heart() -> Vec<CommandInfo> {
    let lines = BY_HEART.lines().filter(|line| !line.starts_with('#')).map(|line| line.replace('\t', "\r\n") + "\r\n");
    lines.filter_map(|line| entry(&decode(line.as_bytes()).ok()??.0).ok()).collect()
}

/// `name arity flags first last step [categories [tips specs subcommands]]`
fn entry(frame: &Frame) -> Result<CommandInfo, String> {
    let fields = list(frame);
    let [name, arity, flags, first, last, step, rest @ ..] = fields else {
        return Err(format!("COMMAND: an entry of {} elements", fields.len()));
    };
    let name = word(name).to_ascii_lowercase();
    let has = |flag: &str| list(flags).iter().any(|f| word(f) == flag.as_bytes());
    let in_category = |name: &str| rest.first().is_some_and(|c| list(c).iter().any(|f| word(f) == name.as_bytes()));
    let mut entry = CommandInfo {
        arity: number(arity),
        write: has("write"),
        readonly: has("readonly"),
        blocking: has("blocking") || in_category("@blocking"),
        // Before 7.0 there is no such flag, but a custom: `JSON.SET`.
        module: has("module") || name.contains(&b'.'),
        movable: has("movablekeys"),
        name,
        ..CommandInfo::default()
    };
    match rest.get(2) {
        Some(specs) => entry.add_specs(list(specs)),
        None => entry.add_range(number(first), number(last), number(step)),
    }
    if let Some(subcommands) = rest.get(3) {
        entry.subcommands = list(subcommands).iter().map(self::entry).collect::<Result<_, _>>()?;
    }
    Ok(entry)
}

impl CommandInfo {
    fn add_specs(&mut self, specs: &[Frame]) {
        for spec in specs {
            let fields = list(spec);
            let has = |flag: &str| list(field(fields, "flags")).iter().any(|f| word(f) == flag.as_bytes());
            if has("not_key") {
                continue;
            }
            self.opaque |= has("incomplete");
            match (begin(field(fields, "begin_search")), find(field(fields, "find_keys"))) {
                (Some(begin), Some(find)) => self.keys.push(KeySpec { begin, find, write: !has("RO") }),
                _ => self.opaque = true,
            }
        }
    }

    /// The range that stands for key specs before 7.0.
    fn add_range(&mut self, first: i64, last: i64, step: i64) {
        if first > 0 {
            let last = if last < 0 { last } else { last - first };
            let find = FindKeys::Range { last, step: size(step).max(1), limit: 0 };
            self.keys.push(KeySpec { begin: BeginSearch::Index(size(first)), find, write: self.write });
        }
    }
}

fn begin(search: &Frame) -> Option<BeginSearch<Vec<u8>>> {
    let spec = list(field(list(search), "spec"));
    match word(field(list(search), "type")) {
        b"index" => Some(BeginSearch::Index(size(number(field(spec, "index"))))),
        b"keyword" => {
            let word = word(field(spec, "keyword")).to_vec();
            Some(BeginSearch::Keyword { word, from: number(field(spec, "startfrom")) })
        }
        _ => None,
    }
}

fn find(search: &Frame) -> Option<FindKeys> {
    let spec = list(field(list(search), "spec"));
    let int = |name| number(field(spec, name));
    let step = size(int("keystep")).max(1);
    match word(field(list(search), "type")) {
        b"range" => Some(FindKeys::Range { last: int("lastkey"), step, limit: int("limit") }),
        b"keynum" => Some(FindKeys::KeyNum { count: size(int("keynumidx")), first: size(int("firstkey")), step }),
        _ => None,
    }
}

fn list(frame: &Frame) -> &[Frame] {
    if let Frame::Array(list) = frame { list } else { &[] }
}

fn word(frame: &Frame) -> &[u8] {
    match frame {
        Frame::SimpleString(word) | Frame::BulkString(word) => word,
        _ => b"",
    }
}

fn number(frame: &Frame) -> i64 {
    if let Frame::Integer(number) = frame { *number } else { 0 }
}

fn size(number: i64) -> usize {
    usize::try_from(number).unwrap_or(0)
}

/// The value of `name` in a map that RESP2 tells as a flat list.
fn field<'a>(map: &'a [Frame], name: &str) -> &'a Frame {
    let pairs = map.chunks_exact(2);
    pairs.into_iter().find(|pair| word(&pair[0]) == name.as_bytes()).map_or(&Frame::Null, |pair| &pair[1])
}
