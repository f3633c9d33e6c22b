//! CLIENT: what a client asks about its own connection is about the one it has, which is with us.

use std::sync::Arc;

use super::local::ask;
use super::{After, Session, Stall, Step};
use crate::clients::Client;
use crate::command::Request;
use crate::outbox::Piece;
use crate::resp;
use crate::upstream::effect::Effect;

impl Session {
    pub(super) fn client_command(&mut self, request: &Request<'_>) -> Step {
        let word = request.arg(1).to_ascii_uppercase();
        let args: Vec<&[u8]> = (2..request.len()).map(|i| request.arg(i)).collect();
        match (&word[..], &args[..]) {
            (b"ID", []) => self.say(&format!(":{}", self.client.id)),
            (b"GETNAME", []) => {
                let name = self.client.words().name.clone();
                if name.is_empty() { self.nil() } else { self.bulk(&name) }
            }
            (b"SETNAME", [name]) => self.set_name(name),
            (b"SETINFO", [field, value]) => self.set_info(field, value),
            (b"INFO", []) => self.text(&(self.client.line(self.now) + "\n")),
            (b"LIST", args) => self.list(args),
            (b"KILL", args) if !args.is_empty() => self.kill(args),
            (b"GETREDIR", []) => self.say(":-1"),
            (b"TRACKINGINFO", []) => self.tracking_info(),
            (b"UNBLOCK", [id, how @ ..]) if how.len() < 2 => self.unblock(id, how),
            // PAUSE, UNPAUSE and HELP are the server's business, and so is the text of every error.
            _ => self.forward(self.lane.clone(), Effect::None),
        }
    }

    fn nil(&self) -> Step {
        self.say(if self.key.resp3 { "_" } else { "$-1" })
    }

    fn bulk(&self, text: &str) -> Step {
        let mut out = Vec::new();
        resp::encode_bulk(&mut out, text.as_bytes());
        self.outbox.put(Piece::Slice(&out));
        Step::Done
    }

    /// A verbatim string in RESP3, as CLIENT INFO and LIST are.
    fn text(&self, text: &str) -> Step {
        if !self.key.resp3 {
            return self.bulk(text);
        }
        self.say(&format!("={}\r\ntxt:{text}", text.len() + 4))
    }

    fn set_name(&self, name: &[u8]) -> Step {
        if !name.iter().all(|b| (b'!'..=b'~').contains(b)) {
            return self.say("-ERR Client names cannot contain spaces, newlines or special characters.");
        }
        self.client.words().name = String::from_utf8_lossy(name).into_owned();
        self.say("+OK")
    }

    fn set_info(&self, field: &[u8], value: &[u8]) -> Step {
        let (field, text) = (field.to_ascii_lowercase(), String::from_utf8_lossy(value).into_owned());
        if !value.iter().all(|b| (b'!'..=b'~').contains(b)) {
            let field = String::from_utf8_lossy(&field);
            return self.say(&format!("-ERR {field} cannot contain spaces, newlines or special characters."));
        }
        match &field[..] {
            b"lib-name" => self.client.words().lib_name = text,
            b"lib-ver" => self.client.words().lib_ver = text,
            other => return self.say(&format!("-ERR Unrecognized option '{}'", String::from_utf8_lossy(other))),
        }
        self.say("+OK")
    }

    fn list(&self, args: &[&[u8]]) -> Step {
        let wanted = match args {
            [] => None,
            [word, _] if word.eq_ignore_ascii_case(b"TYPE") => None,
            [word, ids @ ..] if word.eq_ignore_ascii_case(b"ID") && !ids.is_empty() => Some(ids),
            _ => return self.say("-ERR syntax error"),
        };
        let listed = |c: &Arc<Client>| wanted.is_none_or(|ids| ids.contains(&c.id.to_string().as_bytes()));
        let clients = self.shared.clients.all();
        let lines: String = clients.iter().filter(|c| listed(c)).map(|c| c.line(self.now) + "\n").collect();
        self.text(&lines)
    }

    /// Kills connections of the proxy's clients: the old form by address, the new one by filters.
    fn kill(&mut self, args: &[&[u8]]) -> Step {
        if let [addr] = args {
            let found = self.shared.clients.all().into_iter().find(|c| c.addr.as_bytes() == *addr);
            return match found {
                Some(client) => self.end_clients(&[client], "+OK\r\n".into()),
                None => self.say("-ERR No such client"),
            };
        }
        let Some(filters) = KillFilters::parse(args) else { return self.say("-ERR syntax error") };
        let victims: Vec<_> =
            self.shared.clients.all().into_iter().filter(|c| filters.matches(c, self.client.id)).collect();
        self.end_clients(&victims, format!(":{}\r\n", victims.len()))
    }

    /// A client that kills itself gets its answer first. Connections that the others have of their own are killed by the
    /// server, so that with the answer their subscriptions and locks on lists are gone too.
    fn end_clients(&mut self, victims: &[Arc<Client>], answer: String) -> Step {
        let mut deaths = Vec::new();
        for client in victims {
            if client.id == self.client.id {
                self.closing = Some("killed by itself");
                continue;
            }
            client.kill();
            if let Some(id) = client.upstream_id() {
                deaths.push(ask(&self.lane, &resp::encode(&["CLIENT", "KILL", "ID", &id.to_string()])));
            }
        }
        if deaths.is_empty() {
            self.outbox.put(Piece::Slice(answer.as_bytes()));
            return Step::Done;
        }
        Step::Stall(Stall::For(Box::pin(async move {
            for death in deaths {
                death.await;
            }
            After::Reply(answer.into())
        })))
    }

    /// The server knows the blocked client by the number of the connection it was lent.
    fn unblock(&self, id: &[u8], how: &[&[u8]]) -> Step {
        if resp::parse_i64(id).is_none() {
            return self.say("-ERR value is not an integer or out of range");
        }
        let known = self.shared.clients.find(id).and_then(|c| c.upstream_id()).unwrap_or(0).to_string();
        let args = [&[b"CLIENT".as_slice(), b"UNBLOCK", known.as_bytes()], how].concat();
        let reply = ask(&self.lane, &resp::encode(&args));
        Step::Stall(Stall::For(Box::pin(async move { After::Reply(reply.await.into()) })))
    }

    fn tracking_info(&self) -> Step {
        let (map, set) = if self.key.resp3 { ("%3", "~1") } else { ("*6", "*1") };
        self.say(&format!(
            "{map}\r\n$5\r\nflags\r\n{set}\r\n$3\r\noff\r\n$8\r\nredirect\r\n:-1\r\n$8\r\nprefixes\r\n{}",
            if self.key.resp3 { "~0" } else { "*0" }
        ))
    }
}

/// The filters of CLIENT KILL.
struct KillFilters<'a> {
    id: Option<&'a [u8]>,
    addr: Option<&'a [u8]>,
    laddr: Option<&'a [u8]>,
    user: Option<&'a [u8]>,
    skip_me: bool,
}

impl<'a> KillFilters<'a> {
    fn parse(args: &[&'a [u8]]) -> Option<KillFilters<'a>> {
        let mut filters = KillFilters { id: None, addr: None, laddr: None, user: None, skip_me: true };
        if !args.len().is_multiple_of(2) {
            return None;
        }
        for pair in args.chunks_exact(2) {
            let value = Some(pair[1]);
            match &pair[0].to_ascii_uppercase()[..] {
                b"ID" => filters.id = value,
                b"ADDR" => filters.addr = value,
                b"LADDR" => filters.laddr = value,
                b"USER" => filters.user = value,
                b"TYPE" => {}
                b"SKIPME" => filters.skip_me = pair[1].eq_ignore_ascii_case(b"yes"),
                _ => return None,
            }
        }
        Some(filters)
    }

    fn matches(&self, client: &Client, own: u64) -> bool {
        let same = |wanted: Option<&[u8]>, have: &str| wanted.is_none_or(|w| w == have.as_bytes());
        same(self.id, &client.id.to_string())
            && same(self.addr, &client.addr)
            && same(self.laddr, &client.laddr)
            && same(self.user, &client.words().user)
            && !(self.skip_me && client.id == own)
    }
}
