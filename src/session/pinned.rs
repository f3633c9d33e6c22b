//! Sessions whose connection is theirs until they end. Raw: their bytes pass unlooked at, so that what they ask about
//! their connection is answered by the server; hence it first gets the session's name, and counts the session's writes.
//!
//! Invariant: a connection that has got a session's name is never lent to another session.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::client::is_word;
use super::lent::{Lent, Passing, Purpose};
use super::local::{ask, ask_acting};
use super::wait;
use super::{After, Become, Input, Session, Stall, Step};
use crate::clients::Words;
use crate::command::{Local, Need, Plan, Request, Route};
use crate::node::wire;
use crate::resp;
use crate::upstream::effect::Effect;

/// Whether two prefixes of a CLIENT TRACKING, from the second on, overlap. Redis (up to 8.2 at least) answers such a
/// command with an error and OK, which only a session whose bytes pass unlooked at can be told.
pub(super) fn answers_twice(request: &Request<'_>) -> bool {
    let words = (3..request.len()).filter(|i| request.arg(*i - 1).eq_ignore_ascii_case(b"PREFIX"));
    let prefixes: Vec<&[u8]> = words.map(|i| request.arg(i)).skip(1).collect();
    let overlap = |a: &[u8], b: &[u8]| a.starts_with(b) || b.starts_with(a);
    prefixes.iter().enumerate().any(|(i, a)| prefixes[i + 1..].iter().any(|b| overlap(a, b)))
}

impl Session {
    /// Tells the server what it is to know on a connection that the session keeps from here on: the session's name, and
    /// (`mark`) that WAIT there counts what the session has written so far.
    pub(super) fn make_known(&mut self, name: bool, mark: bool) -> Step {
        let Some(lent) = &self.lent else { return Step::Stall(Stall::Drain) };
        let (connection, unmarked) = (lent.connection.clone(), lent.unmarked.clone());
        let mut said = if name { self.names() } else { Vec::new() };
        let mark = wait::mark(self.shared.node()).filter(|_| mark && self.wrote);
        said.extend(mark.map(<[u8]>::to_vec));
        let answers: Vec<_> = said.iter().map(|words| ask(&connection, words)).collect();
        Step::Stall(Stall::For(Box::pin(async move {
            let mut last = Vec::new();
            for answer in answers {
                last = answer.await;
            }
            if connection.is_over() {
                return After::Farewell(last.into(), "its connection to the upstream was lost");
            }
            unmarked.set(mark.is_some() && last.starts_with(b"-"));
            After::Again
        })))
    }

    /// The session's name and library, as commands. The name goes with HELLO, which every user may say.
    fn names(&self) -> Vec<Vec<u8>> {
        let words = self.client.words().clone();
        let (node, table) = (self.shared.node(), self.shared.node().table.load());
        let client = table.says("CLIENT");
        let library = [("LIB-NAME", &words.lib_name), ("LIB-VER", &words.lib_ver)].into_iter();
        let library = library.filter(|(_, word)| !word.is_empty());
        let mut said = if node.without_hello.load(Ordering::Relaxed) {
            vec![resp::encode(&[client, b"SETNAME", words.name.as_bytes()])]
        } else {
            vec![wire::hello(node, None, self.identity.key.resp3, &words.name, library.clone().count())]
        };
        said.extend(
            library.map(|(field, word)| resp::encode(&[client, b"SETINFO", field.as_bytes(), word.as_bytes()])),
        );
        said
    }

    /// Requests sent so far are answered first; then everything is passed on unlooked at.
    pub(super) fn go_raw(&mut self) -> Step {
        if self.outbox.waiting() > 0 {
            return Step::Stall(Stall::Drain);
        }
        let resp3 = self.identity.key.resp3;
        let Some(lent) = &mut self.lent else { return Step::Stall(Stall::Drain) };
        lent.pass_unlooked();
        // In a transaction the answers would come with EXEC's, and to a RESP2 subscriber none.
        if lent.in_multi() || (!resp3 && lent.connection.subscriptions() > 0) {
            lent.unmarked.set(self.wrote && wait::mark(self.shared.node()).is_some());
            return Step::Stall(Stall::Drain);
        }
        // A session that tracks has told its name already; HELLO would end the tracking.
        let name = !lent.is_tracking();
        self.make_known(name, true)
    }

    /// CLIENT SETNAME or SETINFO in a transaction: if EXEC comes to it, the session has that word.
    pub(super) fn note_word(&mut self, request: &Request<'_>, plan: Plan) {
        let is = |i: usize, word: &[u8]| request.arg(i).eq_ignore_ascii_case(word);
        if request.len() < 3 || plan.route != Route::Local(Local::Client) {
            return;
        }
        let field: fn(&mut Words) -> &mut String = match request.len() {
            3 if is(1, b"SETNAME") => |words| &mut words.name,
            4 if is(1, b"SETINFO") && is(2, b"LIB-NAME") => |words| &mut words.lib_name,
            4 if is(1, b"SETINFO") && is(2, b"LIB-VER") => |words| &mut words.lib_ver,
            _ => return,
        };
        let word = request.arg(request.len() - 1);
        if let Some(lent) = self.lent.as_mut().filter(|_| is_word(word)) {
            lent.named.push((field, String::from_utf8_lossy(word).into_owned()));
        }
    }

    /// EXEC of a transaction in which the session has named itself. The connection is not lent again.
    pub(super) fn exec_named(&mut self, request: &Request<'_>, effect: Effect) -> Step {
        let Some(lent) = &mut self.lent else { return Step::Done };
        let named = lent.named.clone();
        self.wrote |= effect.may_write();
        let reply = ask_acting(&lent.connection, request.buf, effect);
        let client = self.client.clone();
        Step::Stall(Stall::For(Box::pin(async move {
            let reply = reply.await;
            if reply.starts_with(b"*") && !reply.starts_with(b"*-") {
                let mut words = client.words();
                named.into_iter().for_each(|(field, word)| *field(&mut words) = word);
            }
            After::Reply(reply.into())
        })))
    }

    /// RESET of a session to whose connection others may redirect: the connection stays, as with Redis.
    pub(super) fn reset_kept(&mut self) -> Option<Step> {
        let lent = self.lent.take_if(|lent| {
            !lent.is_raw() && !lent.is_monitoring() && (lent.is_tracking() || self.client.own_wanted())
        })?;
        let connection = lent.connection.clone();
        let mut kept = Lent::new(lent.connection, Purpose::State);
        kept.tracking = true;
        self.lent = Some(kept);
        let node = self.shared.node();
        // The HELLO proves anew that the session may be that.
        let key = node.own.clone();
        let own = node.own.login.attempts().into_iter().next().flatten();
        let reset = ask(&connection, &resp::encode(&["RESET"]));
        let hello = ask(&connection, &wire::hello(node, own.as_ref(), false, "", 0));
        Some(Step::Stall(Stall::For(Box::pin(async move {
            let (reset, hello) = (reset.await, hello.await);
            if hello.starts_with(b"-") {
                return After::Farewell(hello.into(), "the upstream refused the proxy's own user");
            }
            connection.was_reset();
            After::Become(Box::new(Become { key, name: Some(String::new()), reply: reset.into() }))
        }))))
    }

    /// Raw: everything the client sends goes through as it is, but for the number of another client and for a WAIT that
    /// would not be true.
    pub(super) fn pass_on(&mut self, input: &mut Input) {
        // When the proxy stops, what is not sent yet stays so: nobody could tell when the last reply has come.
        while input.left() > 0 && !self.client.draining() {
            if let Some(stall) = self.lent.as_ref().and_then(|lent| self.wait_for_room(&lent.connection)) {
                return self.carry_out(Step::Stall(stall), input);
            }
            match input.find_request(&self.cache, self.shared.config.proto_max_bulk_len) {
                Ok(true) => {}
                Ok(false) => return,
                // The server has the words for what is wrong.
                Err(_) => return self.pass_on_bytes(input.take_all()),
            }
            let plan = self.shared.node().table.load().plan(&input.request(), &mut self.keys);
            if plan.route == Route::Unlisted
                && let Some(step) = self.unlisted(&input.request())
            {
                return self.carry_out(step, input);
            }
            if let Some(Lent { passing: Passing::Raw(seen), .. }) = &mut self.lent {
                seen.note(plan.effect);
            }
            if let Some(turn) = self.guess(&input.request(), plan) {
                return self.carry_out(Step::Stall(turn), input);
            }
            let unmarked = self.lent.as_ref().is_some_and(|lent| lent.unmarked.get());
            if unmarked && !self.present.replaced && plan.route == Route::Dedicated(Need::Wait) {
                self.present.replaced = true;
                input.replace(&wait::refused());
                continue;
            }
            match self.redirect(&input.request(), plan.word) {
                None => self.pass_on_bytes(input.take()),
                Some(Step::Replace(request)) => {
                    self.present.replaced = true;
                    input.replace(&request);
                }
                Some(step) => return self.carry_out(step, input),
            }
        }
    }

    fn pass_on_bytes(&mut self, bytes: Bytes) {
        let Some(Lent { passing: Passing::Raw(seen), connection, .. }) = &mut self.lent else { return };
        let raw = seen.look(&bytes);
        connection.send_raw(bytes, raw);
        self.next_request();
        self.latest.name = crate::clients::RAW;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::{Scan, Scanner};

    #[test]
    fn prefixes_overlap_from_the_second_on() {
        let twice = |prefixes: &[&str]| {
            let mut words = vec!["CLIENT", "TRACKING", "on", "BCAST"];
            prefixes.iter().for_each(|prefix| words.extend(["prefix", prefix]));
            let buf = resp::encode(&words);
            let mut scanner = Scanner::default();
            assert!(matches!(scanner.scan(&buf, usize::MAX), Ok(Scan::Request(_))));
            answers_twice(&Request { buf: &buf, args: scanner.args(), hash: None })
        };
        assert!(twice(&["x", "a", "ab"]) && twice(&["x", "y", "ab", "a"]) && twice(&["x", "", "a"]));
        assert!(!twice(&["a", "ab"]) && !twice(&["x", "a", "b"]) && !twice(&[]) && !twice(&["a"]));
    }
}
