//! CLIENT LIST, INFO and KILL: what is said of a client, and which clients are meant.
//!
//! The server says how a line looks and what it knows of its own connections; over the line of the connection that a
//! client has of its own, or shares, is laid what only the proxy knows. So every version's fields are there.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use super::Client;
use crate::time::Time;

/// The form of a line if the server does not say.
const TEMPLATE: &str = "id=0 addr= laddr= fd=-1 name= age=0 idle=0 flags=N db=0 sub=0 psub=0 ssub=0 multi=-1 qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=0 tot-mem=0 events=r cmd=NULL user= redir=-1 resp=2";
/// Prefix of the names of the proxy's own connections, while its session has not said another name to the server itself.
const OWN_NAMES: &str = "nearside-";

/// One line of CLIENT LIST: names and values, in the server's order.
#[derive(Clone)]
pub struct ClientLine(Vec<(String, String)>);

impl ClientLine {
    fn parse(text: &str) -> ClientLine {
        let field = |f: &str| f.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        ClientLine(text.trim_end().split(' ').filter_map(field).collect())
    }

    /// The value of one field, if this server's lines have it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.get(name)?.parse().ok()
    }

    fn set(&mut self, name: &str, value: impl ToString) {
        if let Some((_, old)) = self.0.iter_mut().find(|(n, _)| n == name) {
            *old = value.to_string();
        }
    }

    /// Gives the client that it redirects to the number we know it by.
    pub fn redirect(&mut self, ours: impl FnOnce(i64) -> Option<u64>) {
        if let Some(id) = self.number("redir").filter(|id| *id > 0).and_then(ours) {
            self.set("redir", id);
        }
    }

    /// The class that TYPE asks for.
    fn class(&self) -> &'static str {
        let has = |flag| self.get("flags").unwrap_or_default().contains(flag);
        match () {
            () if has('M') => "master",
            () if has('S') => "replica",
            () if has('P') => "pubsub",
            () => "normal",
        }
    }
}

impl std::fmt::Display for ClientLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, (name, value)) in self.0.iter().enumerate() {
            write!(f, "{}{name}={value}", if i == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

/// The server's lines about its connections.
pub struct Listing {
    lines: HashMap<i64, ClientLine>,
    shared: ClientLine,
}

impl Listing {
    /// From the server's lines and the number of the lane that asked for them.
    pub fn parse(text: &str, lane: i64) -> Listing {
        let lines = text.lines().map(ClientLine::parse).filter_map(|line| Some((line.number("id")?, line)));
        let lines: HashMap<i64, ClientLine> = lines.collect();
        let shared = lines.get(&lane).or_else(|| lines.values().next()).cloned();
        Listing { lines, shared: shared.unwrap_or_else(|| ClientLine::parse(TEMPLATE)) }
    }

    /// The line of a client. `command`: the name of its last one. `asked`: the length of the request that asks, if it is
    /// the client's own.
    pub fn line(&self, client: &Client, command: &str, now: Time, asked: Option<usize>) -> ClientLine {
        let own = client.upstream_id().and_then(|id| self.lines.get(&id));
        let mut line = own.cloned().unwrap_or_else(|| self.of_shared(client, asked));
        let words = client.words().clone();
        line.set("id", client.id);
        line.set("addr", &client.addr);
        line.set("laddr", &client.laddr);
        line.set("fd", -1);
        line.set("age", now.since(client.since).as_secs());
        line.set("idle", now.since(Time(client.active.load(Ordering::Relaxed))).as_secs());
        // A name that was set in bytes which pass unlooked at, only the server knows. On a connection that is just being lent the
        // server may have none yet.
        if own.is_none() || line.get("name").is_none_or(|name| name.is_empty() || name.starts_with(OWN_NAMES)) {
            line.set("name", words.name);
        }
        for (field, ours) in [("lib-name", words.lib_name), ("lib-ver", words.lib_ver)] {
            if line.get(field) == Some("") {
                line.set(field, ours);
            }
        }
        if !client.is_raw() {
            // WAIT is asked as the proxy's own user.
            line.set("user", words.user);
            line.set("db", client.db.load(Ordering::Relaxed));
            line.set("cmd", command);
        }
        let flags = line.get("flags").unwrap_or_default().replace(['U', 'N'], "");
        let unix = if client.laddr.starts_with('/') { "U" } else { "" };
        line.set("flags", if flags.is_empty() && unix.is_empty() { "N".to_owned() } else { flags + unix });
        line
    }

    /// Nothing of what a client shares with others is its own: what the proxy does not count is zero.
    fn of_shared(&self, client: &Client, asked: Option<usize>) -> ClientLine {
        let mut line = self.shared.clone();
        let buffered = line.number("qbuf").is_some_and(|n| n > 0);
        for (name, value) in &mut line.0 {
            match name.as_str() {
                "lib-name" | "lib-ver" | "name" | "capa" => value.clear(),
                "flags" => "N".clone_into(value),
                "redir" | "multi" => "-1".clone_into(value),
                "events" | "user" => {}
                _ => "0".clone_into(value),
            }
        }
        line.set("qbuf", asked.filter(|_| buffered).unwrap_or(0));
        line.set("db", client.db.load(Ordering::Relaxed));
        line.set("resp", client.resp.load(Ordering::Relaxed));
        line.set("user", &client.words().user);
        line
    }
}

/// The filters of CLIENT LIST and KILL. What is wrong with them the server says before they are looked at.
#[derive(Default)]
pub struct Filters {
    tests: Vec<(String, Vec<String>)>,
    skip_me: bool,
}

impl Filters {
    /// `skip_me`: whether the one who asks is left out if nothing else is said. `Err`: a filter that is not known here.
    pub fn parse(args: &[&[u8]], skip_me: bool) -> Result<Filters, String> {
        let mut filters = Filters { tests: Vec::new(), skip_me };
        let mut args = args.iter().map(|a| String::from_utf8_lossy(a).into_owned()).peekable();
        while let Some(name) = args.next() {
            let name = name.to_ascii_lowercase();
            let mut values: Vec<String> = args.next().into_iter().collect();
            if name == "id" || name == "not-id" {
                values.extend(std::iter::from_fn(|| args.next_if(|a| a.parse::<i64>().is_ok())));
            }
            match name.strip_prefix("not-").unwrap_or(&name) {
                "skipme" => filters.skip_me = values.iter().any(|v| v.eq_ignore_ascii_case("yes")),
                "id" | "type" | "addr" | "laddr" | "user" | "maxage" | "flags" | "name" | "idle" | "lib-name"
                | "lib-ver" | "db" | "capa" | "ip" => filters.tests.push((name, values)),
                _ => return Err(name),
            }
        }
        Ok(filters)
    }

    /// Whether they ask for what only the server knows of a client with a connection of its own.
    pub fn need_server(&self) -> bool {
        const OURS: [&str; 5] = ["id", "addr", "laddr", "user", "maxage"];
        self.tests.iter().any(|(name, _)| !OURS.contains(&name.as_str()))
    }

    /// Whether they mean the client with this line. `me`: it is the one who asks.
    pub fn mean(&self, line: &ClientLine, me: bool) -> bool {
        !(me && self.skip_me)
            && self.tests.iter().all(|(name, values)| match name.strip_prefix("not-") {
                Some(name) => !holds(line, name, values),
                None => holds(line, name, values),
            })
    }
}

fn holds(line: &ClientLine, name: &str, values: &[String]) -> bool {
    let Some(value) = values.first() else { return true };
    let at_least = |field| line.number(field) >= value.parse().ok();
    match name {
        "id" => line.get("id").is_some_and(|id| values.iter().any(|v| v == id)),
        "type" => {
            let class = value.to_ascii_lowercase();
            line.class() == class.replace("slave", "replica").replace("primary", "master")
        }
        "maxage" => at_least("age"),
        "idle" => at_least("idle"),
        "flags" => value.chars().all(|flag| line.get("flags").unwrap_or_default().contains(flag)),
        "capa" => value.chars().all(|capa| line.get("capa").unwrap_or_default().contains(capa)),
        "ip" => line.get("addr").and_then(|a| a.rsplit_once(':')).is_some_and(|(ip, _)| ip == value),
        field => line.get(field).is_some_and(|v| v == value),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;

    const LANE: &str = "id=7 addr=1.2.3.4:5 laddr=1.2.3.4:6379 fd=8 name=nearside-lane age=9 idle=0 flags=t db=2 sub=0 psub=0 multi=-1 qbuf=26 argv-mem=10 events=r cmd=client|list user=bob redir=5 resp=2 new=3";
    const SUBSCRIBER: &str = "id=8 addr=1.2.3.4:6 laddr=1.2.3.4:6379 fd=9 name=nearside-dedicated age=9 idle=0 flags=P db=0 sub=2 psub=1 multi=-1 qbuf=0 argv-mem=0 events=r cmd=subscribe user=bob redir=-1 resp=2 new=4";

    fn client() -> std::sync::Arc<Client> {
        super::super::Clients::default().enter(1, "9.9.9.9:1".into(), "9.9.9.9:2".into()).unwrap()
    }

    #[test]
    fn a_client_on_a_lane_has_nothing_of_the_lanes() {
        let listing = Listing::parse(LANE, 7);
        let line = listing.line(&client(), "get", Time::now(), None).to_string();
        assert_eq!(
            line,
            "id=1 addr=9.9.9.9:1 laddr=9.9.9.9:2 fd=-1 name= age=0 idle=0 flags=N db=0 sub=0 psub=0 multi=-1 qbuf=0 argv-mem=0 events=r cmd=get user=default redir=-1 resp=2 new=0"
        );
        let own = listing.line(&client(), "client|list", Time::now(), Some(26));
        assert_eq!(own.get("qbuf"), Some("26"));
    }

    #[test]
    fn what_the_server_knows_of_a_connection_of_its_own_is_said() {
        let client = client();
        client.uses_connection(Some(std::sync::Arc::new(8.into())));
        client.words().name = "me".into();
        let line = Listing::parse(&[LANE, SUBSCRIBER].join("\n"), 7).line(&client, "subscribe", Time::now(), None);
        let said = |field| line.get(field).unwrap();
        assert_eq!((said("flags"), said("sub"), said("psub"), said("name"), said("id")), ("P", "2", "1", "me", "1"));
    }

    #[test]
    fn filters_mean_what_the_servers_mean() {
        let line = ClientLine::parse(SUBSCRIBER);
        let mean = |filters: &[&str]| {
            let args: Vec<&[u8]> = filters.iter().map(|f| f.as_bytes()).collect();
            Filters::parse(&args, true).unwrap().mean(&line, false)
        };
        assert!(mean(&[]) && mean(&["TYPE", "pubsub"]) && mean(&["ID", "3", "8"]) && mean(&["MAXAGE", "9"]));
        assert!(!mean(&["type", "normal"]) && !mean(&["ID", "3", "9"]) && !mean(&["maxage", "10"]));
        assert!(mean(&["ip", "1.2.3.4", "NOT-ID", "7", "9", "flags", "P"]) && !mean(&["not-user", "bob"]));
        assert!(!Filters::parse(&[], true).unwrap().mean(&line, true));
        assert!(Filters::parse(&[b"SKIPME", b"no"], true).unwrap().mean(&line, true));
        assert_eq!(Filters::parse(&[b"COLOUR", b"red"], true).err().as_deref(), Some("colour"));
    }
}
