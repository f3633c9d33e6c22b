//! By which names a server takes its commands. `rename-command` changes them: COMMAND goes on listing a command under the name
//! that is not its own any more, while COMMAND INFO answers by the new name, with the entry of the old.

use super::build;
use super::reply::{self, CommandInfo};
use super::{CommandTable, GET_ID, RENAMED_GET_ID, word};

/// Commands that a session has to tell apart, by whatever name they are said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Any other.
    Other,
    /// MULTI
    Multi,
    /// EXEC
    Exec,
    /// DISCARD
    Discard,
    /// WATCH
    Watch,
    /// UNWATCH
    Unwatch,
    /// MONITOR
    Monitor,
    /// PUBLISH, SPUBLISH and FUNCTION: what the server passes on to replicas though it touches no key.
    PassedOn,
    /// SET, which with GET answers what was there.
    Set,
    /// Commands that may not be said again and may answer as much as there is: with values that they take away or replace, or a list of many things.
    Lengthy,
    /// CLIENT TRACKING
    Tracking,
    /// CLIENT PAUSE
    Pause,
    /// CLIENT UNPAUSE
    Unpause,
    /// ACL DELUSER
    DelUser,
    /// SUBSCRIBE and the other five: the first word of their confirmations.
    Subscribe(&'static str),
}

impl Word {
    /// The first words of confirmations.
    const KINDS: [&str; 6] = ["subscribe", "psubscribe", "ssubscribe", "unsubscribe", "punsubscribe", "sunsubscribe"];

    /// The commands of [`Word::Lengthy`].
    const LENGTHY: [&str; 36] = [
        "getdel",
        "getset",
        "getex",
        "lpop",
        "rpop",
        "lmpop",
        "lmove",
        "rpoplpush",
        "spop",
        "zpopmin",
        "zpopmax",
        "zmpop",
        "xreadgroup",
        "xclaim",
        "xautoclaim",
        "hgetdel",
        "hgetex",
        "sort",
        "georadius",
        "georadiusbymember",
        "echo",
        "command",
        "command|docs",
        "command|info",
        "command|list",
        "config|get",
        "acl|list",
        "acl|log",
        "slowlog|get",
        "latency|histogram",
        "memory|stats",
        "memory|malloc-stats",
        "function|list",
        "function|dump",
        "cluster|nodes",
        "cluster|shards",
    ];

    /// By the command's own name.
    pub(super) fn of(name: &[u8]) -> Word {
        let lengthy = Word::LENGTHY.into_iter().any(|other| other.as_bytes() == name);
        match name {
            _ if lengthy => Word::Lengthy,
            b"set" => Word::Set,
            b"multi" => Word::Multi,
            b"exec" => Word::Exec,
            b"discard" => Word::Discard,
            b"watch" => Word::Watch,
            b"unwatch" => Word::Unwatch,
            b"monitor" => Word::Monitor,
            b"publish" | b"spublish" => Word::PassedOn,
            function if function.starts_with(b"function") => Word::PassedOn,
            b"client|tracking" => Word::Tracking,
            b"client|pause" => Word::Pause,
            b"client|unpause" => Word::Unpause,
            b"acl|deluser" => Word::DelUser,
            other => {
                let kind = Word::KINDS.into_iter().find(|kind| kind.as_bytes() == other);
                kind.map_or(Word::Other, Word::Subscribe)
            }
        }
    }
}

/// The server's word on a name.
pub enum Meaning {
    /// The server has no such command.
    NoCommand,
    /// The command is in this table now.
    Command(Box<CommandTable>),
}

/// Names that the server takes without looking for them among its commands, or that are ours.
const OWN: [&[u8]; 3] = [b"host:", b"post", b"nearside"];

impl CommandTable {
    /// Makes the short way to the names.
    pub(super) fn index(&mut self) {
        let short = self.spoken.iter().filter_map(|(name, place)| Some((word(name)?, *place)));
        self.short = short.collect();
        self.get = self.spoken.get(&b"get"[..]).is_some_and(|place| self.places.get(&b"get"[..]) == Some(place));
        // Replies cached where GET means another command are not found by clients that say GET.
        if let Some(get) = self.places.get(&b"get"[..]).map(|place| &mut self.specs[*place]).filter(|get| get.id != 0) {
            get.id = if self.get { GET_ID } else { RENAMED_GET_ID };
        }
        self.renamed = self.learned().count();
    }

    /// Names that are no command's own.
    pub fn renamed(&self) -> usize {
        self.renamed
    }

    /// Whether a command is known by this name.
    pub fn knows(&self, name: &[u8]) -> bool {
        self.spoken.contains_key(&name.to_ascii_lowercase())
    }

    /// The name by which the server takes a command, which is given by its own name in capital letters; that name where
    /// another is not known.
    pub fn says<'a>(&'a self, command: &'a str) -> &'a [u8] {
        if self.renamed == 0 {
            return command.as_bytes();
        }
        let own = command.to_ascii_lowercase().into_bytes();
        let place = self.places.get(&own).filter(|place| self.spoken.get(&own) != Some(place));
        let renamed = place.and_then(|place| self.spoken.iter().find(|(_, at)| *at == place));
        renamed.map_or(command.as_bytes(), |(name, _)| name)
    }

    /// Names that are no command's own.
    fn learned(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.spoken.iter().filter(|(name, place)| self.places.get(*name) != Some(place)).map(|(name, _)| name)
    }

    /// Whether all the names that were learned for this table are among these.
    pub fn has_learned_only(&self, asked: &[Vec<u8>]) -> bool {
        self.learned().all(|name| asked.contains(name))
    }

    /// The names to ask COMMAND INFO about for [`heed`](Self::heed): every name in this table, and those that were learned for the one before.
    pub fn names_to_ask(&self, before: &CommandTable) -> Vec<Vec<u8>> {
        let all = self.spoken.keys().chain(before.learned());
        let mut names: Vec<_> = all.filter(|name| !OWN.contains(&&name[..])).cloned().collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Takes the server's word, the reply to COMMAND INFO, for which of these names it knows and for which commands.
    ///
    /// # Errors
    /// Says why it cannot be taken: the names then stay as they are.
    pub fn heed(&mut self, asked: &[Vec<u8>], reply: &[u8]) -> Result<(), String> {
        let meanings = reply::parse_info(reply)?;
        if meanings.len() != asked.len() || meanings.iter().all(Option::is_none) {
            return Err("COMMAND INFO does not say which names there are".into());
        }
        for (name, entry) in asked.iter().zip(meanings) {
            match entry {
                // Redis before 7.0 takes QUIT without listing it.
                None if name == b"quit" && !self.lists_quit() => {}
                None => drop(self.spoken.remove(name)),
                Some(entry) => self.take(name, &entry),
            }
        }
        self.index();
        Ok(())
    }

    fn lists_quit(&self) -> bool {
        self.places.get(&b"quit"[..]).is_some_and(|place| self.specs[*place].is_listed())
    }

    /// This table with what the reply to COMMAND INFO says of one name.
    ///
    /// # Errors
    /// The reply says nothing.
    pub fn learn(&self, name: &[u8], reply: &[u8]) -> Result<Meaning, String> {
        let meanings = reply::parse_info(reply)?;
        let [entry] = &meanings[..] else {
            return Err("COMMAND INFO: the reply is about another number of names".into());
        };
        let Some(entry) = entry else { return Ok(Meaning::NoCommand) };
        let mut table = self.clone();
        table.take(name, entry);
        table.index();
        Ok(Meaning::Command(Box::new(table)))
    }

    /// `name` means this command, whose own name may be another.
    fn take(&mut self, name: &[u8], entry: &CommandInfo) {
        if !self.places.contains_key(&entry.name) {
            for (own, mut spec) in build::of_entry(entry) {
                spec.name = u16::try_from(self.names.len()).unwrap_or(build::NO_NAME);
                self.names.push(String::from_utf8_lossy(&own).into_owned());
                self.places.insert(own, self.specs.len());
                self.specs.push(spec);
            }
        }
        if let Some(place) = self.places.get(&entry.name) {
            self.spoken.insert(name.to_ascii_lowercase(), *place);
        }
    }
}
