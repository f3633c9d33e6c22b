//! The server's entries and our rows, merged into what a request is planned by.

use std::collections::HashMap;

use super::reply::{CommandInfo, KeySpec};
use super::table::{BeginSearch, FindKeys, ROWS, Row, StaticRoute, StaticSpec, Touch};
use super::{Local, Need, Word};

/// All commands, by lower-case name.
pub(super) type Specs = HashMap<Vec<u8>, Spec, ahash::RandomState>;

/// The number of the name of what is no command, and that of GET's.
pub(super) const NO_NAME: u16 = 0;
pub(super) const GET_NAME: u16 = 1;

/// The facts about one command.
#[derive(Clone)]
pub(super) struct Spec {
    /// Its place among the names.
    pub name: u16,
    pub word: Word,
    /// The server lists it.
    listed: bool,
    pub fate: StaticRoute,
    pub touch: Touch,
    /// Cache id; 0 if it is not cacheable.
    pub id: u16,
    pub subcommands: Subcommands,
    /// Where `touch` is `Server`.
    pub keys: Vec<KeySpec>,
    /// The command may touch more keys than `keys` finds.
    pub unknown: bool,
    /// If no key is found, it may have touched any.
    pub unknown_without_keys: bool,
    /// The server says that it does not write, whatever its key specs say (PFCOUNT; modules).
    pub readonly: bool,
    /// As in [`Plan::repeatable`](super::Plan::repeatable).
    pub repeatable: bool,
    /// Ours, and the server's if it gave one.
    arity: [i64; 2],
}

/// Whether the second word is part of the name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Subcommands {
    /// The second word is an argument.
    None,
    /// The table has some of them; the others are as the container.
    Some,
    /// The server has listed them all.
    All,
    /// The table has those of Redis' core; a server that has listed none may have others.
    ByHeart,
}

impl Spec {
    /// Whether the number of arguments can be right.
    pub fn takes(&self, len: usize) -> bool {
        let len = i64::try_from(len).unwrap_or(i64::MAX);
        self.arity.iter().all(|arity| if *arity < 0 { len >= -arity } else { len == *arity })
    }

    /// The fates that [`words`](Self::words) tells, in the order to show them.
    pub const FATES: [&str; 8] = [
        "cached",
        "answered by nearside",
        "on a connection of its own",
        "on a connection of its own if it blocks",
        "on a connection of its own; waits for a barrier",
        "forwarded; the cache is flushed",
        "forwarded; waits for a barrier",
        "forwarded",
    ];

    /// Its fate in one of [`FATES`](Self::FATES).
    pub fn words(&self) -> &'static str {
        let place = match (self.fate, self.touch) {
            (StaticRoute::Read(_), _) => 0,
            // Its reply is the server's own.
            (StaticRoute::Answer(Local::Module), _) => 7,
            (StaticRoute::Answer(_), _) => 1,
            (StaticRoute::Dedicate(Need::Alone), _) => 4,
            (StaticRoute::Dedicate(_), _) => 2,
            (StaticRoute::ForwardUnlessBlock, _) => 3,
            (StaticRoute::Forward, Touch::Everything) => 5,
            (StaticRoute::Forward, Touch::Server(_)) if self.unknown => 6,
            (StaticRoute::Forward, _) => 7,
        };
        Self::FATES[place]
    }

    /// Whether the server has an entry of its own for it.
    pub fn is_listed(&self) -> bool {
        self.listed
    }

    fn new(name: &[u8], row: Option<(u16, &Row)>, entry: Option<&CommandInfo>, subcommands: Subcommands) -> Self {
        let touch = row.map_or(Touch::Server(&[]), |(_, row)| row.touch);
        let (keys, incomplete) = merged_keys(touch, entry);
        let module = entry.is_some_and(|e| e.module);
        let write = entry.is_some_and(|e| e.write);
        let readonly = entry.is_some_and(|e| e.readonly);
        Self {
            name: NO_NAME,
            word: word(name, module && readonly),
            listed: entry.is_some(),
            fate: fate(row.map(|(_, row)| row), entry),
            touch,
            id: row.map_or(0, |(id, _)| id),
            subcommands,
            keys,
            unknown: incomplete || (module && (!readonly || entry.is_some_and(|e| e.movable))),
            unknown_without_keys: write || module,
            readonly,
            repeatable: readonly && !module && !write,
            arity: [row.map_or(-1, |(_, row)| row.arity), entry.map_or(-1, |e| e.arity)],
        }
    }
}

/// Builds the table and the list of its names; without entries, of our rows alone.
pub(super) fn specs(entries: &[CommandInfo], by_heart: bool) -> (Specs, Vec<String>) {
    let mut specs: Specs = entries.iter().flat_map(of_entry).collect();
    for (id, row) in numbered_rows() {
        if !specs.contains_key(row.name.as_bytes()) && holds_unlisted(row, &specs, by_heart) {
            let name = row.name.as_bytes();
            let spec = Spec::new(name, Some((id, row)), None, has_static_subcommands(name));
            specs.insert(row.name.into(), spec);
        }
    }
    if by_heart {
        let all = specs.values_mut().filter(|spec| spec.subcommands == Subcommands::All);
        all.for_each(|spec| spec.subcommands = Subcommands::ByHeart);
    }
    let names = number_names(&mut specs);
    (specs, names)
}

/// The command that the server describes, and its subcommands, by their own names.
pub(super) fn of_entry(entry: &CommandInfo) -> Vec<(Vec<u8>, Spec)> {
    let spec = |entry: &CommandInfo, subcommands| {
        (entry.name.clone(), Spec::new(&entry.name, row(&entry.name), Some(entry), subcommands))
    };
    let subcommands = entry.subcommands.iter().map(|sub| spec(sub, Subcommands::None));
    std::iter::once(spec(entry, subcommands_of(entry))).chain(subcommands).collect()
}

/// GET's number is the same in every table, since GET is not looked up; the others follow in their order.
fn number_names(specs: &mut Specs) -> Vec<String> {
    if let Some(get) = specs.get_mut(&b"get"[..]) {
        get.name = GET_NAME;
    }
    let mut others: Vec<_> = specs.iter_mut().filter(|(name, _)| &name[..] != b"get").collect();
    others.sort_unstable_by(|a, b| a.0.cmp(b.0));
    let mut names = vec!["NULL".to_owned(), "get".to_owned()];
    for (name, spec) in others {
        spec.name = u16::try_from(names.len()).unwrap_or(NO_NAME);
        names.push(String::from_utf8_lossy(name).into_owned());
    }
    names
}

/// How a command's name is shown: `CONFIG GET`.
pub(super) fn display(name: &[u8]) -> String {
    String::from_utf8_lossy(name).to_uppercase().replace('|', " ")
}

fn numbered_rows() -> impl Iterator<Item = (u16, &'static Row)> {
    (1..).zip(ROWS).map(|(place, row)| (if matches!(row.fate, StaticRoute::Read(_)) { place } else { 0 }, row))
}

fn row(name: &[u8]) -> Option<(u16, &'static Row)> {
    numbered_rows().find(|(_, row)| row.name.as_bytes() == name)
}

fn subcommands_of(entry: &CommandInfo) -> Subcommands {
    if entry.subcommands.is_empty() { has_static_subcommands(&entry.name) } else { Subcommands::All }
}

fn has_static_subcommands(name: &[u8]) -> Subcommands {
    let is_of = |row: &Row| row.name.split_once('|').is_some_and(|(container, _)| container.as_bytes() == name);
    if ROWS.iter().any(is_of) { Subcommands::Some } else { Subcommands::None }
}

/// Whether a row holds though the server does not list its command: our own, and what would do harm if it existed
/// after all. A subcommand also if the server lists none of its container's (6.2; DEBUG).
fn holds_unlisted(row: &Row, specs: &Specs, by_heart: bool) -> bool {
    let container = row.name.split_once('|').map(|(container, _)| container.as_bytes());
    // The server lists all subcommands that a container has (Redis 7.0 has no CLIENT SETINFO).
    if !by_heart && container.is_some_and(|c| specs.get(c).is_some_and(|s| s.subcommands == Subcommands::All)) {
        return false;
    }
    if by_heart || matches!(row.fate, StaticRoute::Answer(_)) {
        return true;
    }
    match container {
        Some(container) => specs.get(container).is_some_and(|s| s.subcommands == Subcommands::Some),
        None => matches!(row.fate, StaticRoute::Dedicate(_)) || row.touch == Touch::Everything,
    }
}

fn fate(row: Option<&Row>, entry: Option<&CommandInfo>) -> StaticRoute {
    match (row.map(|row| row.fate), entry) {
        // Someone has put another command in its place.
        (Some(StaticRoute::Read(_)), Some(entry)) if !entry.readonly || entry.module => StaticRoute::Forward,
        (Some(fate), _) if fate != StaticRoute::Forward => fate,
        (_, Some(entry)) if entry.blocking => StaticRoute::Dedicate(Need::Block),
        // Whatever it sets, it sets on the connection.
        (None, Some(entry)) if entry.name.starts_with(b"client|") => StaticRoute::Dedicate(Need::Pin),
        _ => StaticRoute::Forward,
    }
}

/// Which command it is; a module's read may answer as much as there is, and may change something after all (a cursor goes on).
fn word(name: &[u8], module_reads: bool) -> Word {
    match Word::of(name) {
        Word::Other if module_reads => Word::Lengthy,
        word => word,
    }
}

/// The key specs, and whether they miss any key.
fn merged_keys(touch: Touch, entry: Option<&CommandInfo>) -> (Vec<KeySpec>, bool) {
    let Touch::Server(fallback) = touch else {
        return (Vec::new(), false);
    };
    let own = || fallback.iter().map(StaticSpec::owned).collect();
    match entry {
        None => (own(), fallback.is_empty()),
        // 6.2 says that the keys move, but not where; what it gives besides is only a part of them.
        Some(entry) if entry.movable && !entry.has_moving_spec() && !fallback.is_empty() => (own(), false),
        Some(entry) => {
            let misses = entry.opaque || (entry.movable && !entry.has_moving_spec());
            (entry.keys.clone(), misses)
        }
    }
}

impl CommandInfo {
    /// Whether the specs say how the keys move; a fixed range does not.
    fn has_moving_spec(&self) -> bool {
        let fixed =
            |spec: &KeySpec| matches!((&spec.begin, &spec.find), (BeginSearch::Index(_), FindKeys::Range { .. }));
        !self.keys.iter().all(fixed)
    }
}

impl StaticSpec {
    fn owned(&self) -> KeySpec {
        let begin = match self.begin {
            BeginSearch::Index(at) => BeginSearch::Index(at),
            BeginSearch::Keyword { word, from } => BeginSearch::Keyword { word: word.to_vec(), from },
        };
        KeySpec { begin, find: self.find, write: self.write }
    }
}
