//! Which way of learning what changes does this server do? Asked each time the link opens, on the link itself, and without
//! touching a key: what is asked for is switched on, looked at, and left on or switched off again. A server that cannot
//! answer now (`-BUSY` …) has not said that it does not: the link is opened anew.

use bytes::Bytes;

use super::Node;
use super::wire::{self, Refusal, Wire, is_passing};
use crate::coherence::standing::Mode;
use crate::config::Invalidation;
use crate::resp;

/// Where RESP2 connections hear of changed keys.
pub const CHANNEL: &str = "__redis__:invalidate";
/// The channels of changed keys where the server is configured to notify.
pub const NOTIFICATIONS: &str = "__keyspace@*__:*";
/// Without one of these in `notify-keyspace-events`, some changes are not told of; `A` stands for all of them.
const NEEDED: &str = "g$lshzxet";

/// The stream that the link listens to from here on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ears {
    /// How changes are reported.
    pub mode: Mode,
}

/// Why a mode cannot be had.
type Refused = String;
/// The inner error says why there is none; the outer one, that it cannot be asked now.
type Probed<T> = Result<Result<T, Refused>, Refusal>;

/// Takes the mode that is configured, or the first that works.
pub async fn listen(node: &Node, wire: &mut Wire, id: i64) -> Probed<Ears> {
    Ok(match node.settings.invalidation {
        Invalidation::Off => Err("invalidation = \"off\"".into()),
        Invalidation::Tracked => tracked(wire, id).await?,
        Invalidation::Broadcast => broadcast(node, wire, id).await?,
        Invalidation::Keyspace => keyspace(wire).await?,
        Invalidation::Auto => match tracked(wire, id).await? {
            Ok(ears) => Ok(ears),
            Err(why) => broadcast(node, wire, id).await?.map_err(|other| format!("{why}; {other}")),
        },
    })
}

/// Tracks for itself and looks at it; lanes will do the same.
async fn tracked(wire: &mut Wire, id: i64) -> Probed<Ears> {
    let number = id.to_string();
    // Named without the number, which is another each time: what is told once is told apart by its text.
    let steps: [(&[&str], &str); 4] = [
        (&["CLIENT", "TRACKING", "ON", "REDIRECT", &number, "OPTIN"], "CLIENT TRACKING ON REDIRECT … OPTIN"),
        (&["CLIENT", "CACHING", "YES"], "CLIENT CACHING YES"),
        (&["CLIENT", "TRACKING", "OFF"], "CLIENT TRACKING OFF"),
        (&["SUBSCRIBE", CHANNEL], "SUBSCRIBE __redis__:invalidate"),
    ];
    for (step, name) in steps {
        if let Err(why) = judge(name, &wire.ask(step).await?)? {
            return Ok(Err(format!("tracked: {why}")));
        }
    }
    Ok(Ok(Ears { mode: Mode::Tracked }))
}

/// By messages to itself, so that the server's limit for subscribers holds; else by pushes, for servers without REDIRECT.
async fn broadcast(node: &Node, wire: &mut Wire, id: i64) -> Probed<Ears> {
    let number = id.to_string();
    let command = |redirect: bool| {
        let mut words = vec!["CLIENT", "TRACKING", "ON"];
        if redirect {
            words.extend(["REDIRECT", &number]);
        }
        words.push("BCAST");
        node.settings.prefixes.iter().for_each(|p| words.extend(["PREFIX", p]));
        resp::encode(&words)
    };
    wire.send(&command(true)).await?;
    let refused = match judge("CLIENT TRACKING ON REDIRECT … BCAST", &wire.reply().await?)? {
        Ok(()) => match accepted(wire, &["SUBSCRIBE", CHANNEL]).await? {
            Ok(()) => return Ok(Ok(Ears { mode: Mode::Broadcast })),
            Err(why) => why,
        },
        Err(why) => why,
    };
    wire.send(&wire::hello(node, None, true, "nearside-link", 0)).await?;
    if judge("HELLO 3", &wire.reply().await?)?.is_ok() {
        wire.send(&command(false)).await?;
        if judge("CLIENT TRACKING ON BCAST", &wire.reply().await?)?.is_ok() {
            return Ok(Ok(Ears { mode: Mode::Broadcast }));
        }
    }
    Ok(Err(format!("broadcast: {refused}")))
}

/// The server must be told by its operator to notify: its configuration is not ours to change.
async fn keyspace(wire: &mut Wire) -> Probed<Ears> {
    let reply = wire.ask(&["CONFIG", "GET", "notify-keyspace-events"]).await?;
    if let Err(why) = judge("CONFIG GET notify-keyspace-events", &reply)? {
        return Ok(Err(format!(
            "keyspace: {why}; without it nobody knows whether the server notifies: grant +config|get"
        )));
    }
    if let Err(why) = notifies(&reply) {
        return Ok(Err(format!("keyspace: {why}")));
    }
    Ok(match accepted(wire, &["PSUBSCRIBE", NOTIFICATIONS]).await? {
        Ok(()) => Ok(Ears { mode: Mode::Keyspace }),
        Err(why) => Err(format!("keyspace: {why}")),
    })
}

/// Whether the reply to CONFIG GET says that all changes are notified of.
pub fn notifies(reply: &[u8]) -> Result<(), Refused> {
    let value = resp::split_aggregate(reply).and_then(|(_, rest)| resp::split_bulk(rest));
    let flags = value.and_then(|(_, rest)| resp::split_bulk(rest)).map(|(flags, _)| flags).unwrap_or_default();
    let has = |flag: char| flags.contains(&(flag as u8));
    if has('K') && (has('A') || NEEDED.chars().all(has)) {
        return Ok(());
    }
    Err(format!(
        "the server's notify-keyspace-events is \"{}\": its operator must say CONFIG SET notify-keyspace-events KA",
        String::from_utf8_lossy(flags)
    ))
}

async fn accepted(wire: &mut Wire, command: &[&str]) -> Probed<()> {
    let reply = wire.ask(command).await?;
    judge(&command.join(" "), &reply)
}

fn judge(command: &str, reply: &[u8]) -> Probed<()> {
    match reply {
        passing if is_passing(passing) => Err(Refusal::Server(Bytes::copy_from_slice(passing))),
        [b'-' | b'!', text @ ..] => {
            Ok(Err(format!("{command} is answered by {}", String::from_utf8_lossy(text).trim())))
        }
        _ => Ok(Ok(())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_notifications_are_enough() {
        let said = |flags: &str| {
            let flags = resp::encode(&["notify-keyspace-events", flags]);
            notifies(&flags)
        };
        assert_eq!(said("AK"), Ok(()));
        assert_eq!(said("g$lshzxetdK"), Ok(()));
        for few in ["", "A", "AE", "K$", "Kg$lshzxe"] {
            assert!(said(few).is_err_and(|why| why.contains("CONFIG SET notify-keyspace-events KA")), "{few}");
        }
        assert!(notifies(b"*0\r\n").is_err(), "a server that does not know the setting");
    }
}
