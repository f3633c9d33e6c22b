//! CLIENT: what a client asks about its own connection is about the one it has, which is with us.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::local::{ask, ask_again, verbatim};
use super::{After, Session, Stall, Step};
use crate::clients::listing::{ClientLine, Filters, Listing};
use crate::clients::{Client, Words};
use crate::command::{Request, Word};
use crate::node::identity::Role;
use crate::node::wire::MARK;
use crate::resp;
use crate::shared::Shared;
use crate::time::Time;
use crate::upstream::connection::Connection;
use crate::upstream::effect::Effect;

/// How long CLIENT KILL waits until the connections are closed.
const CLOSED_WITHIN: Duration = Duration::from_secs(1);
/// No connection of the server has this number.
const NOBODY: &[u8] = b"9223372036854775807";

impl Session {
    pub(super) fn client_command(&mut self, request: &Request<'_>) -> Step {
        let word = request.arg(1).to_ascii_uppercase();
        let args: Vec<&[u8]> = (2..request.len()).map(|i| request.arg(i)).collect();
        self.client.command.store(self.latest.name, Ordering::Relaxed);
        match (&word[..], &args[..]) {
            (b"ID", []) => {
                let id = format!(":{}\r\n", self.client.id);
                self.put_to_server(request.buf, |_| id.into())
            }
            (b"GETNAME", []) => {
                let name = self.name();
                self.put_to_server(request.buf, |_| name.into())
            }
            (b"SETNAME", [name]) => {
                self.describe_itself(request, name, &["SETNAME", Role::Lane.name()], |words| &mut words.name)
            }
            (b"SETINFO", [field, word]) if field.eq_ignore_ascii_case(b"lib-name") => {
                self.describe_itself(request, word, &["SETINFO", "LIB-NAME", MARK], |words| &mut words.lib_name)
            }
            (b"SETINFO", [field, word]) if field.eq_ignore_ascii_case(b"lib-ver") => {
                self.describe_itself(request, word, &["SETINFO", "LIB-VER", MARK], |words| &mut words.lib_ver)
            }
            (b"INFO", []) => self.describe(request),
            (b"LIST", filters) => self.list(request, filters),
            (b"KILL", args) if !args.is_empty() => self.kill(request, args),
            (b"GETREDIR" | b"TRACKINGINFO", []) if self.lent.is_some() => self.own_tracking(request),
            // On a lane only the proxy uses CLIENT TRACKING; for its clients tracking is off.
            (b"GETREDIR", []) => self.put_to_server(request.buf, |_| Bytes::from_static(b":-1\r\n")),
            (b"TRACKINGINFO", []) => {
                let none = no_tracking(self.identity.key.resp3);
                self.put_to_server(request.buf, |_| none.into())
            }
            (b"UNBLOCK", [id, how @ ..]) if how.len() < 2 => self.unblock(request, id, how),
            // Commands behind them in the pipeline go another way.
            (b"PAUSE" | b"UNPAUSE", _) => {
                let word = if word == b"PAUSE" { Word::Pause } else { Word::Unpause };
                let (node, effect) = (self.shared.node().clone(), pausing(request, word));
                self.put_to_server(request.buf, move |reply| {
                    effect.settle(Some(&reply), &node, Time::now());
                    reply.into()
                })
            }
            // HELP is the server's business, and so is the text of every error.
            _ => self.forward(self.lanes.any.clone(), Effect::None),
        }
    }

    /// Asks the server what the client asks us. What it refuses is refused; else `answer` makes ours of its reply.
    fn put_to_server(&self, question: &[u8], answer: impl FnOnce(Vec<u8>) -> Bytes + 'static) -> Step {
        answered(ask(&self.lanes.any, question), answer)
    }

    /// The name as Redis gives it.
    fn name(&self) -> Vec<u8> {
        let name = self.client.words().name.clone();
        match (name.is_empty(), self.identity.key.resp3) {
            (true, true) => b"_\r\n".to_vec(),
            (true, false) => b"$-1\r\n".to_vec(),
            (false, _) => {
                let mut bulk = Vec::new();
                resp::encode_bulk(&mut bulk, name.as_bytes());
                bulk
            }
        }
    }

    /// SETNAME and SETINFO: a word that the client says of itself. The server's verdict is on the same command, but in the proxy's
    /// words, since the connection by which it comes is many clients'; a word that is none the server refuses.
    fn describe_itself(
        &self,
        request: &Request<'_>,
        word: &[u8],
        unchanged: &[&str],
        field: fn(&mut Words) -> &mut String,
    ) -> Step {
        let same: Vec<&[u8]> = unchanged.iter().map(|word| word.as_bytes()).collect();
        let client = request.arg(0).to_ascii_uppercase();
        let question =
            if is_word(word) { resp::encode(&[&[&client[..]], &same[..]].concat()) } else { request.buf.to_vec() };
        let (client, word) = (self.client.clone(), String::from_utf8_lossy(word).into_owned());
        // A connection that the session keeps has its name.
        let kept = self.lent.as_ref().filter(|lent| lent.is_tracking()).map(|lent| ask(&lent.connection, request.buf));
        let reply = kept.unwrap_or_else(|| ask(&self.lanes.any, &question));
        answered(reply, move |ok| {
            *field(&mut client.words()) = word;
            ok.into()
        })
    }

    /// CLIENT INFO: the server's line of the connection that answers, or of the session's own, made the client's.
    fn describe(&self, request: &Request<'_>) -> Step {
        let connection = self.lent.as_ref().map_or(&self.lanes.any, |lent| &lent.connection);
        let asker = self.asker(request, connection);
        let (reply, resp3) = (ask(connection, request.buf), self.identity.key.resp3);
        Step::Stall(Stall::For(Box::pin(async move {
            let reply = reply.await;
            let Some(text) = text_of(&reply) else { return After::Reply(reply.into()) };
            let line = asker.line(&Listing::parse(&text, asker.connection), &asker.client);
            After::Reply(verbatim(&format!("{line}\n"), resp3).into())
        })))
    }

    /// CLIENT LIST. The filters are put to the server for its verdict on them; they are about our clients.
    fn list(&self, request: &Request<'_>, filters: &[&[u8]]) -> Step {
        let verdict = (!filters.is_empty()).then(|| ask(&self.lanes.any, request.buf));
        let filters = Filters::parse(filters, false);
        let reply = ask_again(&self.lanes.any, &resp::encode(&[request.arg(0), b"LIST"]));
        let (asker, resp3) = (self.asker(request, &self.lanes.any), self.identity.key.resp3);
        Step::Stall(Stall::For(Box::pin(async move {
            if let Some(refusal) = refusal(verdict).await {
                return After::Reply(refusal);
            }
            let reply = reply.await;
            let (Some(text), Ok(filters)) = (text_of(&reply), &filters) else {
                return After::Reply(filters.map_or_else(|f| unknown_filter(&f), |_| reply.into()));
            };
            let found = asker.matching(&Listing::parse(&text, asker.connection), filters);
            let lines: String = found.iter().map(|(_, line)| format!("{line}\n")).collect();
            After::Reply(verbatim(&lines, resp3).into())
        })))
    }

    fn asker(&self, request: &Request<'_>, connection: &Connection) -> Asker {
        Asker {
            container: request.arg(0).to_vec(),
            shared: self.shared.clone(),
            client: self.client.clone(),
            connection: connection.client_id.load(Ordering::Acquire),
            asked: request.buf.len(),
        }
    }

    /// Kills connections of the proxy's clients: the old form by address, the new one by filters. The server is asked
    /// to kill nobody in the same words, which is its verdict on them.
    fn kill(&mut self, request: &Request<'_>, args: &[&[u8]]) -> Step {
        let old_form = args.len() == 1;
        let filters = if old_form { [b"ADDR".as_slice(), args[0]].to_vec() } else { args.to_vec() };
        let question = [&[request.arg(0), b"KILL"], &killing_nobody(&filters)[..]].concat();
        let verdict = ask(&self.lanes.any, &resp::encode(&question));
        let filters = Filters::parse(&filters, !old_form);
        let needs = filters.as_ref().is_ok_and(Filters::need_server);
        let list = needs.then(|| ask_again(&self.lanes.any, &resp::encode(&[request.arg(0), b"LIST"])));
        let (asker, lane) = (self.asker(request, &self.lanes.any), self.lanes.any.clone());
        Step::Stall(Stall::For(Box::pin(async move {
            if let Some(refusal) = refusal(Some(verdict)).await {
                return After::Reply(refusal);
            }
            let filters = match filters {
                Ok(filters) => filters,
                Err(filter) => return After::Reply(unknown_filter(&filter)),
            };
            let text = match list {
                None => String::new(),
                Some(reply) => {
                    let reply = reply.await;
                    let Some(text) = text_of(&reply) else { return After::Reply(reply.into()) };
                    text
                }
            };
            let victims = asker.matching(&Listing::parse(&text, asker.connection), &filters);
            asker.kill(&lane, &victims).await;
            let answer = match (old_form, victims.len()) {
                (true, 0) => "-ERR No such client\r\n".to_owned(),
                (true, _) => "+OK\r\n".to_owned(),
                (false, n) => format!(":{n}\r\n"),
            };
            let own = victims.iter().any(|(victim, _)| victim.id == asker.client.id);
            if own { After::Farewell(answer.into(), "killed by itself") } else { After::Reply(answer.into()) }
        })))
    }

    /// The server knows the blocked client by the number of the connection it was lent.
    fn unblock(&self, request: &Request<'_>, id: &[u8], how: &[&[u8]]) -> Step {
        if resp::parse_i64(id).is_none() {
            return self.say("-ERR value is not an integer or out of range");
        }
        let known = self.shared.clients.by_id(id).and_then(|c| c.upstream_id()).unwrap_or(0).to_string();
        let args = [&[request.arg(0), b"UNBLOCK", known.as_bytes()], how].concat();
        let reply = ask(&self.lanes.any, &resp::encode(&args));
        Step::Stall(Stall::For(Box::pin(async move { After::Reply(reply.await.into()) })))
    }

    /// The server's line about the session's own connection, with our number for the client that it redirects to: the one
    /// integer in either reply.
    fn own_tracking(&self, request: &Request<'_>) -> Step {
        let Some(lent) = &self.lent else { return Step::Done };
        let (reply, redirected) = (ask(&lent.connection, request.buf), self.redirected);
        Step::Stall(Stall::For(Box::pin(async move {
            let reply = reply.await;
            let number = memchr::memmem::find(&reply, b":").map(|at| at + 1);
            let end = number.and_then(|at| Some(at + memchr::memchr(b'\r', &reply[at..])?));
            let (Some(at), Some(end)) = (number, end) else { return After::Reply(reply.into()) };
            if resp::parse_i64(&reply[at..end]) != Some(redirected.upstream_id) {
                return After::Reply(reply.into());
            }
            After::Reply([&reply[..at], redirected.id.to_string().as_bytes(), &reply[end..]].concat().into())
        })))
    }
}

/// The effect of CLIENT PAUSE and CLIENT UNPAUSE, once the server has agreed: nothing more is put on a lane until it is over.
pub(super) fn pausing(request: &Request<'_>, word: Word) -> Effect {
    match word {
        Word::Pause if request.len() > 2 => {
            let millis = resp::parse_i64(request.arg(2)).and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
            Effect::Pause(Duration::from_millis(millis))
        }
        Word::Unpause => Effect::Unpause,
        _ => Effect::None,
    }
}

/// CLIENT TRACKINGINFO of a client that does not track.
fn no_tracking(resp3: bool) -> String {
    let (map, set, none) = if resp3 { ("%3", "~1", "~0") } else { ("*6", "*1", "*0") };
    format!("{map}\r\n$5\r\nflags\r\n{set}\r\n$3\r\noff\r\n$8\r\nredirect\r\n:-1\r\n$8\r\nprefixes\r\n{none}\r\n")
}

/// The client that asks about clients.
struct Asker {
    /// CLIENT, as the server takes it.
    container: Vec<u8>,
    shared: Arc<Shared>,
    client: Arc<Client>,
    /// The server's number for the connection that asks it.
    connection: i64,
    /// Length of the request.
    asked: usize,
}

impl Asker {
    fn line(&self, listing: &Listing, client: &Client) -> ClientLine {
        let table = self.shared.node().table.load();
        let command = u16::try_from(client.command.load(Ordering::Relaxed)).unwrap_or(0);
        let asked = (client.id == self.client.id).then_some(self.asked);
        let mut line = listing.line(client, table.name(command), Time::now(), asked);
        line.redirect(|id| self.shared.clients.of_upstream(id));
        line
    }

    fn matching(&self, listing: &Listing, filters: &Filters) -> Vec<(Arc<Client>, ClientLine)> {
        let all = self.shared.clients.all().into_iter();
        let described = all.map(|client| {
            let line = self.line(listing, &client);
            (client, line)
        });
        described.filter(|(client, line)| filters.mean(line, client.id == self.client.id)).collect()
    }

    /// Ends them all but the one who asks. Connections that they have of their own are killed by the server, so that
    /// with the answer their subscriptions and locks on lists are gone too.
    async fn kill(&self, lane: &Connection, victims: &[(Arc<Client>, ClientLine)]) {
        let mut deaths = Vec::new();
        for (client, _) in victims.iter().filter(|(client, _)| client.id != self.client.id) {
            client.kill_in_silence();
            if let Some(id) = client.upstream_id() {
                let id = id.to_string();
                let words: [&[u8]; 4] = [&self.container, b"KILL", b"ID", id.as_bytes()];
                deaths.push(ask(lane, &resp::encode(&words)));
            }
        }
        for death in deaths {
            death.await;
        }
        // As with Redis, who hears that they are killed finds their connections closed. One that is in the midst of something
        // may take longer than anybody should wait.
        let others = victims.iter().map(|(client, _)| client).filter(|client| client.id != self.client.id);
        let all_gone = async {
            for client in others {
                client.gone().await;
            }
        };
        let _ = tokio::time::timeout(CLOSED_WITHIN, all_gone).await;
    }
}

/// The answer to a command that was put to the server ([`Session::put_to_server`]).
fn answered(reply: impl Future<Output = Vec<u8>> + 'static, answer: impl FnOnce(Vec<u8>) -> Bytes + 'static) -> Step {
    Step::Stall(Stall::For(Box::pin(async move {
        let reply = reply.await;
        After::Reply(if refuses(&reply) { reply.into() } else { answer(reply) })
    })))
}

/// Whether the server takes these bytes for a name.
pub(super) fn is_word(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| (b'!'..=b'~').contains(b))
}

fn refuses(reply: &[u8]) -> bool {
    matches!(reply.first(), Some(b'-' | b'!'))
}

/// The server's error, if it has one.
pub(super) async fn refusal(verdict: Option<impl Future<Output = Vec<u8>>>) -> Option<Bytes> {
    let reply = verdict?.await;
    refuses(&reply).then(|| reply.into())
}

fn unknown_filter(name: &str) -> Bytes {
    let name: String = name.chars().filter(|c| !c.is_control()).take(128).collect();
    format!("-ERR nearside: the filter '{name}' is not known to the proxy\r\n").into()
}

/// The text of a bulk or verbatim string; `None`: an error.
fn text_of(reply: &[u8]) -> Option<String> {
    let (text, _) = resp::split_bulk(reply)?;
    let text = if reply[0] == b'=' { text.strip_prefix(b"txt:").unwrap_or(text) } else { text };
    Some(String::from_utf8_lossy(text).into_owned())
}

/// The filters of CLIENT KILL, but such that they mean no connection of the server.
fn killing_nobody<'a>(filters: &[&'a [u8]]) -> Vec<&'a [u8]> {
    let is_id = |word: &[u8]| resp::parse_i64(word).is_some_and(|id| id > 0);
    let mut ids = false;
    let mut seen = false;
    let mut question = Vec::with_capacity(filters.len() + 2);
    for (i, word) in filters.iter().enumerate() {
        let value = ids && is_id(word);
        question.push(if value { NOBODY } else { *word });
        seen |= value;
        ids = value || (i % 2 == 0 || ids) && word.eq_ignore_ascii_case(b"ID");
    }
    if !seen {
        question.extend([b"ID".as_slice(), NOBODY]);
    }
    question
}
