//! What can happen next, and what it does: the protocol of `src/`, each step named after the function it stands for.

use crate::cache::{Node, Token};
use crate::rules::Rules;
use crate::world::*;

/// One step of one party.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A client sends its next command. (Below `linearizable` it is there as soon as it can be: see `settle_down`.)
    Invoke(usize),
    /// A client that knows no proxy writes, and is told.
    Outside,
    /// A session answers a read from the cache.
    Hit(usize),
    /// A session looks at the first of the two things a hit depends on, and is interrupted.
    Judge(usize),
    /// A session sends its command upstream. Of a read: having begun it.
    Send(usize),
    /// A session takes the token of a read (or, in the wrong order, asks whether the lane may fill), and is interrupted.
    Begin(usize),
    /// A session is tired of waiting for somebody else's flight.
    Past(usize),
    /// The barrier of a held reply is reached.
    Release(usize),
    /// PING, and the node's PONG on its way: the node answers at once, which proves least.
    PingLink(usize),
    /// The next event of the link arrives.
    LinkEvent(usize),
    /// `broadcast`: the node's turn ends, and what changed in it is reported.
    EndTurn(usize),
    /// The proxy does the next part of `link_lost`.
    LoseLink(usize),
    OpenLink(usize),
    /// PING and PONG. That it overtakes what else is on the lane, and arrives at once, proves least.
    PingLane(usize, usize),
    /// The next reply on the lane arrives.
    LaneReply(usize, usize),
    /// The proxy notices that the lane is gone.
    LoseLane(usize, usize),
    OpenLane(usize, usize),
    Arm(usize, usize),
    Evict(usize, Key, Variant),
    /// The node takes the next request of a lane.
    Serve(usize, usize),
    /// The link is dead at the node; the proxy does not know.
    KillLink(usize),
    /// The lane is dead at the node, and nobody is told.
    KillLane(usize, usize),
}

/// A question put to the model.
#[derive(Clone, Debug)]
pub struct Scope {
    pub level: Level,
    pub rules: Rules,
    pub programs: Vec<Program>,
    /// Writes past all proxies, in this order. When they are told makes no difference but one: at once is strictest.
    pub outside: Vec<Op>,
    pub faults: Faults,
    /// Sessions, link and lanes run on different threads: one can be interrupted where another could notice.
    pub threads: bool,
    /// A read's reply and the PTTL behind it may arrive apart.
    pub split: bool,
    /// Mode `broadcast`: every change is reported, at the end of the node's turn.
    pub broadcast: bool,
}

pub enum Found {
    Hit(Node),
    Behind,
    Miss,
}

impl Scope {
    pub fn start(&self) -> World {
        let mut w = World::new(&self.programs, self.faults, self.broadcast);
        self.settle_down(&mut w);
        w
    }

    pub fn steps(&self, w: &World, out: &mut Vec<Step>) {
        if w.broken.is_some()
            || w.sessions.iter().zip(&self.programs).all(|(s, g)| !(0..KEYS).any(|k| s.will_read(g, k)))
        {
            return;
        }
        out.extend((usize::from(w.outside) < self.outside.len()).then_some(Step::Outside));
        (0..w.sessions.len()).for_each(|s| self.session_steps(w, s, out));
        for (p, proxy) in w.proxies.iter().enumerate() {
            self.link_steps(w, p, out);
            for (l, lane) in proxy.lanes.iter().enumerate() {
                self.lane_steps(w, (p, l), lane, out);
            }
            if w.faults.evictions > 0 {
                for (key, entry) in proxy.entries.iter().enumerate().filter(|(k, _)| !self.is_locked(w, p, *k as Key)) {
                    out.extend(entry.nodes.iter().map(|(v, _)| Step::Evict(p, key as Key, *v)));
                }
            }
        }
    }

    fn session_steps(&self, w: &World, s: usize, out: &mut Vec<Step>) {
        let (session, program) = (&w.sessions[s], &self.programs[s]);
        let proxy = &w.proxies[program.proxy];
        if let Some(Slot { state: SlotState::Held { until, .. }, .. }) =
            session.slots.iter().find(|s| matches!(s.state, SlotState::Held { .. }))
            && (proxy.gene == 0 || proxy.clock >= *until)
        {
            out.push(Step::Release(s));
        }
        let Some(present) = session.present else {
            out.extend(may_invoke(session, program).then_some(Step::Invoke(s)));
            return;
        };
        let lane_up = proxy.lanes[program.lane].up;
        let Op::Read(key, variant) = present.op else {
            out.extend(lane_up.then_some(Step::Send(s)));
            return;
        };
        match present.at {
            At::Judged(_) => out.push(Step::Hit(s)),
            At::Began(_) | At::MayFill => out.extend(lane_up.then_some(Step::Send(s))),
            At::Start => {
                let overtake = !self.rules.overtake || self.may_overtake(session, key);
                if overtake && self.threads && self.judge_first(w, s, key, variant).is_some() {
                    out.push(Step::Judge(s));
                }
                let hit = overtake && matches!(self.judge(w, s, key, variant), Found::Hit(_));
                match (hit, lane_up, self.in_flight(w, program.proxy, key, variant)) {
                    (true, ..) => out.extend((!self.threads).then_some(Step::Hit(s))),
                    (false, false, _) => {}
                    // Or it waits until the flight has landed, and looks again: no step of its own.
                    (false, true, true) => out.push(Step::Past(s)),
                    (false, true, false) => out.push(if self.threads { Step::Begin(s) } else { Step::Send(s) }),
                }
            }
        }
    }

    fn link_steps(&self, w: &World, p: usize, out: &mut Vec<Step>) {
        let proxy = &w.proxies[p];
        if proxy.losing > 0 {
            out.push(Step::LoseLink(p));
            return;
        }
        let Some(link) = &proxy.link else {
            out.push(Step::OpenLink(p));
            return;
        };
        match link.events.front() {
            Some(Event::Changed(key)) if self.is_locked(w, p, *key) => {}
            Some(Event::Pong(_)) if link.pong => {}
            Some(_) => out.push(Step::LinkEvent(p)),
            None if !link.server => out.push(Step::LoseLink(p)),
            None => {}
        }
        if !link.server && !link.events.is_empty() {
            // What was on its way may be lost with it.
            out.push(Step::LoseLink(p));
        }
        if link.server {
            let asked = link.events.iter().any(|e| matches!(e, Event::Pong(_)));
            let second = self.broadcast && !link.up && link.answered > 0;
            if !asked && (second || link.up && proxy.clock < self.latest_wanted(w, p)) {
                out.push(Step::PingLink(p));
            }
            if link.pong || link.turn != 0 {
                out.push(Step::EndTurn(p));
            }
            if w.faults.links > 0 {
                out.push(Step::KillLink(p));
            }
        }
    }

    fn lane_steps(&self, w: &World, (p, l): (usize, usize), lane: &Lane, out: &mut Vec<Step>) {
        if !lane.up {
            out.push(Step::OpenLane(p, l));
            return;
        }
        let locked = (0..KEYS as Key).any(|key| self.is_locked(w, p, key));
        if !lane.replies.is_empty() && !locked {
            out.push(Step::LaneReply(p, l));
        }
        if lane.server.is_none() {
            out.extend((!locked).then_some(Step::LoseLane(p, l)));
            return;
        }
        if !lane.requests.is_empty() {
            out.push(Step::Serve(p, l));
        }
        if w.faults.lanes > 0 {
            out.push(Step::KillLane(p, l));
        }
        if lane.clock < self.latest_wanted(w, p) {
            out.push(Step::PingLane(p, l));
        }
        let arming = lane.awaited.iter().any(|e| matches!(e, Expect::Arm { .. }));
        let link = w.proxies[p].link.as_ref().filter(|link| link.up && w.proxies[p].losing == 0);
        if !w.broadcast && !arming && link.is_some_and(|link| link.gene != lane.armed) {
            out.push(Step::Arm(p, l));
        }
    }

    /// A session holds the lock of this key's shard.
    fn is_locked(&self, w: &World, p: usize, key: Key) -> bool {
        self.threads
            && w.sessions.iter().zip(&self.programs).any(|(session, program)| {
                let holds = |r: &Present| matches!(r.at, At::Judged(_)) && r.op.key() == Some(key);
                program.proxy == p && session.present.as_ref().is_some_and(holds)
            })
    }

    /// `Session::may_overtake`.
    fn may_overtake(&self, session: &Session, key: Key) -> bool {
        let mut waiting = session.slots.iter().filter(|s| !matches!(s.state, SlotState::Ready(_)));
        let followed = |s: &Slot| !matches!(s.state, SlotState::Waiting { follow: false });
        let of_key = |s: &Slot| s.sent && s.op.key() == Some(key);
        match self.level {
            Level::Bounded => !waiting.any(followed) && !session.slots.iter().any(of_key),
            Level::Causal | Level::Linearizable => waiting.next().is_none(),
        }
    }

    /// `Session::owed`. At `bounded` it is long ago, unless a script was answered: the bound is longer than the scope.
    fn watermark(&self, w: &World, s: usize) -> Time {
        let session = &w.sessions[s];
        let arrived = session.present.map_or(1, |p| p.arrived);
        let settled = w.proxies[self.programs[s].proxy].settled.min(arrived.max(session.seen));
        let bound = if self.rules.settled { settled.max(1) } else { 1 };
        match self.level {
            _ if !self.rules.clock => 1,
            Level::Bounded => bound,
            Level::Causal => session.shown.max(session.seen).max(bound),
            Level::Linearizable => arrived,
        }
    }

    /// `Cache::servable`.
    pub fn judge(&self, w: &World, s: usize, key: Key, variant: Variant) -> Found {
        let proxy = &w.proxies[self.programs[s].proxy];
        let Some((node, _)) = proxy.entries[usize::from(key)].find(variant) else { return Found::Miss };
        if node.epoch != proxy.epoch {
            return Found::Miss;
        }
        self.judge_clocks(w, s, key, variant)
    }

    fn judge_clocks(&self, w: &World, s: usize, key: Key, variant: Variant) -> Found {
        let proxy = &w.proxies[self.programs[s].proxy];
        let Some((node, floor)) = proxy.entries[usize::from(key)].find(variant) else { return Found::Miss };
        let lane = &proxy.lanes[usize::from(node.lane)];
        let alive = lane.up && lane.stamp == node.stamp;
        if self.rules.lane_alive && !alive {
            return Found::Miss;
        }
        let floor = if self.rules.floor { floor } else { 0 };
        let time = self.watermark(w, s).max(floor);
        let lane_clock = if self.rules.lane_clock && alive { lane.clock } else { Time::MAX };
        if lane_clock.min(proxy.clock) < time { Found::Behind } else { Found::Hit(node) }
    }

    pub fn take(&self, w: &mut World, step: Step) {
        match step {
            Step::Invoke(s) => self.invoke(w, s),
            Step::Outside => {
                let op = self.outside[usize::from(w.outside)];
                w.outside += 1;
                write(w, op.key());
                if self.level == Level::Linearizable {
                    w.mark = w.log.len() as Pos;
                }
            }
            Step::Judge(s) => self.be_judging(w, s),
            Step::Hit(s) => self.hit(w, s),
            Step::Begin(s) => self.begin(w, s),
            Step::Send(s) => self.send(w, s),
            Step::Past(s) => self.send_plain(w, s),
            Step::Release(s) => self.release(w, s),
            Step::PingLink(p) => {
                let now = w.now();
                let link = w.proxies[p].link.as_mut().expect("a link");
                link.events.push_back(Event::Pong(now));
                link.pong = self.broadcast;
            }
            Step::EndTurn(p) => end_turn(w.proxies[p].link.as_mut().expect("a link")),
            Step::LinkEvent(p) => self.link_event(w, p),
            Step::LoseLink(p) => self.lose_link(w, p),
            Step::OpenLink(p) => open_link(w, p),
            Step::PingLane(p, l) => {
                let now = w.now();
                w.proxies[p].lanes[l].clock = now;
            }
            Step::LaneReply(p, l) => self.lane_reply(w, p, l),
            Step::LoseLane(p, l) => self.lose_lane(w, p, l),
            Step::OpenLane(p, l) => open_lane(w, p, l),
            Step::Arm(p, l) => {
                let sent = w.now();
                let gene = w.proxies[p].gene;
                enqueue(&mut w.proxies[p].lanes[l], Request::Arm(gene), Expect::Arm { gene, sent });
            }
            Step::Evict(p, key, variant) => {
                w.faults.evictions -= 1;
                let gone = w.proxies[p].entries[usize::from(key)].remove(variant);
                if gone && self.rules.eviction_revokes {
                    self.revoke(w, p, key);
                }
            }
            Step::Serve(p, l) => serve(w, p, l),
            Step::KillLink(p) => {
                w.faults.links -= 1;
                w.proxies[p].link.as_mut().expect("a link").server = false;
            }
            Step::KillLane(p, l) => {
                w.faults.lanes -= 1;
                let lane = &mut w.proxies[p].lanes[l];
                lane.server = None;
                lane.requests.clear();
            }
        }
        self.settle_down(w);
    }

    /// What happens at once, and the forgetting of what can make no difference any more.
    fn settle_down(&self, w: &mut World) {
        for (s, program) in self.programs.iter().enumerate() {
            if !self.arrivals_matter() && w.sessions[s].present.is_none() && may_invoke(&w.sessions[s], program) {
                self.invoke(w, s);
            }
        }
        for (p, proxy) in w.proxies.iter_mut().enumerate() {
            for key in 0..KEYS {
                let mut sessions = w.sessions.iter().zip(&self.programs).filter(|(_, g)| g.proxy == p);
                if !sessions.any(|(s, g)| s.will_read(g, key)) {
                    proxy.entries[key] = Default::default();
                    proxy.acked[key] = 0;
                    proxy.told[key] = 0;
                    w.sessions
                        .iter_mut()
                        .zip(&self.programs)
                        .filter(|(_, g)| g.proxy == p)
                        .for_each(|(s, _)| s.known[key] = 0);
                }
            }
        }
        w.proxies.iter_mut().for_each(Proxy::forget_told);
        for (session, program) in w.sessions.iter_mut().zip(&self.programs) {
            if !(0..KEYS).any(|key| session.will_read(program, key)) {
                (session.known, session.mark, session.shown, session.seen) = ([0; KEYS], 0, 0, 0);
            }
        }
        w.compress();
    }

    // --- sessions ---

    fn invoke(&self, w: &mut World, s: usize) {
        let program = &self.programs[s];
        let id = w.sessions[s].pc;
        let op = program.ops[usize::from(id)];
        let lin = self.level == Level::Linearizable;
        let arrived = if self.arrivals_matter() && matches!(op, Op::Read(..)) { w.now() } else { 0 };
        let need = match op {
            Op::Read(key, _) | Op::Past(key) if lin => w.last_write(key, w.mark),
            Op::Read(key, _) | Op::Past(key) => w.proxies[program.proxy].acked[usize::from(key)],
            _ => 0,
        };
        w.sessions[s].pc += 1;
        w.sessions[s].present = Some(Present { id, op, arrived, need, at: At::Start });
    }

    /// What of a reply `judge` looks at before it can be interrupted; `None`: it has failed already.
    fn judge_first(&self, w: &World, s: usize, key: Key, variant: Variant) -> Option<Node> {
        if self.rules.clocks_before_epoch {
            return match self.judge_clocks(w, s, key, variant) {
                Found::Hit(node) => Some(node),
                Found::Behind | Found::Miss => None,
            };
        }
        let proxy = &w.proxies[self.programs[s].proxy];
        let (node, _) = proxy.entries[usize::from(key)].find(variant)?;
        (node.epoch == proxy.epoch).then_some(node)
    }

    fn be_judging(&self, w: &mut World, s: usize) {
        let present = w.sessions[s].present.expect("a request");
        let Op::Read(key, variant) = present.op else { return };
        if let Some(node) = self.judge_first(w, s, key, variant) {
            w.sessions[s].present = Some(Present { at: At::Judged(node), ..present });
        }
    }

    fn hit(&self, w: &mut World, s: usize) {
        let present = w.sessions[s].present.expect("a request");
        let Op::Read(key, variant) = present.op else { return };
        let found = match present.at {
            At::Judged(node) => self.judge_second(w, s, node, present),
            _ => self.judge(w, s, key, variant),
        };
        let Found::Hit(node) = found else {
            // It has not passed: from the start.
            w.sessions[s].present = Some(Present { at: At::Start, ..present });
            return;
        };
        let session = &mut w.sessions[s];
        if self.level == Level::Causal {
            session.shown = session.shown.max(node.stored);
        }
        self.reserve(w, s, SlotState::Ready(Some(node.value)));
        self.pop(w, s);
    }

    /// The half of `judge` that was not looked at before the interruption.
    fn judge_second(&self, w: &World, s: usize, node: Node, present: Present) -> Found {
        let Op::Read(key, variant) = present.op else { return Found::Miss };
        if !self.rules.clocks_before_epoch {
            return self.judge_clocks(w, s, key, variant);
        }
        let proxy = &w.proxies[self.programs[s].proxy];
        if node.epoch == proxy.epoch { Found::Hit(node) } else { Found::Miss }
    }

    fn begin(&self, w: &mut World, s: usize) {
        let present = w.sessions[s].present.expect("a request");
        let Op::Read(key, variant) = present.op else { return };
        let proxy = &w.proxies[self.programs[s].proxy];
        let at = if self.rules.generation_after_epoch {
            At::Began(Token { key, variant, epoch: proxy.epoch, valid: true })
        } else if can_fill(proxy, self.programs[s].lane) {
            At::MayFill
        } else {
            return self.send_plain(w, s);
        };
        w.sessions[s].present = Some(Present { at, ..present });
    }

    fn send(&self, w: &mut World, s: usize) {
        let present = w.sessions[s].present.expect("a request");
        let Op::Read(key, variant) = present.op else { return self.send_plain(w, s) };
        let Program { proxy: p, lane: l, .. } = self.programs[s];
        let fresh = Token { key, variant, epoch: w.proxies[p].epoch, valid: true };
        let (token, may) = match present.at {
            At::Began(token) => (token, can_fill(&w.proxies[p], l)),
            At::MayFill => (fresh, true),
            _ => (fresh, can_fill(&w.proxies[p], l)),
        };
        if !may {
            return self.send_plain(w, s);
        }
        let sent = w.now();
        let expect = Expect::Fill { session: s as u8, id: present.id, token, sent, got: None };
        enqueue(&mut w.proxies[p].lanes[l], Request::Fill(key), expect);
        self.reserve(w, s, SlotState::Waiting { follow: false });
    }

    fn send_plain(&self, w: &mut World, s: usize) {
        let present = w.sessions[s].present.expect("a request");
        let op = match present.op {
            Op::Read(key, _) => Op::Past(key),
            op => op,
        };
        let Program { proxy: p, lane: l, .. } = self.programs[s];
        let sent = w.now();
        let expect = Expect::Plain { session: s as u8, id: present.id, op, sent };
        enqueue(&mut w.proxies[p].lanes[l], Request::Plain(op), expect);
        self.reserve(w, s, SlotState::Waiting { follow: matches!(op, Op::Script(_) | Op::FlushAll) });
    }

    fn reserve(&self, w: &mut World, s: usize, state: SlotState) {
        let session = &mut w.sessions[s];
        let Present { id, op, mut need, .. } = session.present.take().expect("a request");
        // It has arrived at once: what was acknowledged until now counts too.
        if let (Op::Read(key, _) | Op::Past(key), false) = (op, self.arrivals_matter()) {
            need = w.proxies[self.programs[s].proxy].acked[usize::from(key)];
        }
        let sent = !matches!(state, SlotState::Ready(_));
        session.slots.push_back(Slot { id, op, need, sent, state });
    }

    fn release(&self, w: &mut World, s: usize) {
        let p = self.programs[s].proxy;
        let slots = &w.sessions[s].slots;
        let Some((id, value, until)) = slots.iter().find_map(|slot| match slot.state {
            SlotState::Held { until, value } => Some((slot.id, value, until)),
            _ => None,
        }) else {
            return;
        };
        let proxy = &mut w.proxies[p];
        if proxy.clock >= until {
            proxy.settled = proxy.settled.max(until);
        } else if self.rules.barrier_flushes {
            proxy.epoch += 1;
        }
        let now = w.now();
        self.deliver(w, s as u8, id, Some(value), now);
    }

    /// `Outbox::deliver`.
    fn deliver(&self, w: &mut World, s: u8, id: u8, value: Option<Pos>, now: Time) {
        let s = usize::from(s);
        let session = &mut w.sessions[s];
        if self.level == Level::Causal || self.scripts_matter() {
            session.seen = session.seen.max(now);
        }
        if let Some(slot) = session.slots.iter_mut().find(|slot| slot.id == id) {
            slot.state = SlotState::Ready(value);
        }
        self.pop(w, s);
    }

    /// The client gets what is complete from the front. Here the promises are checked.
    fn pop(&self, w: &mut World, s: usize) {
        while let Some(Slot { op, need, state: SlotState::Ready(value), .. }) = w.sessions[s].slots.front().copied() {
            w.sessions[s].slots.pop_front();
            let Some(value) = value else { continue };
            if matches!(op, Op::Read(..) | Op::Past(_)) {
                self.check(w, s, op.key().expect("a key"), value, need);
            }
            self.learn(w, s, op, value);
        }
    }

    fn check(&self, w: &mut World, s: usize, key: Key, value: Pos, need: Pos) {
        let session = &w.sessions[s];
        let causal = self.level != Level::Bounded && value < w.last_write(key, session.mark);
        let broken = match self.level {
            _ if value < session.known[usize::from(key)] => "a session goes back on one key",
            Level::Linearizable if value < need => "a read is older than what somebody knew before it began",
            _ if value < need => "a read is older than a write acknowledged through its proxy",
            _ if causal => "a session goes back across keys",
            _ => return,
        };
        w.broken = Some(broken);
    }

    fn learn(&self, w: &mut World, s: usize, op: Op, value: Pos) {
        let p = self.programs[s].proxy;
        let keys = match op.key() {
            Some(key) => usize::from(key)..usize::from(key) + 1,
            None => 0..KEYS,
        };
        let write = !matches!(op, Op::Read(..) | Op::Past(_));
        for key in keys {
            let known = &mut w.sessions[s].known[key];
            *known = value.max(*known);
            if write && self.level != Level::Linearizable {
                let acked = &mut w.proxies[p].acked[key];
                *acked = value.max(*acked);
            }
        }
        match self.level {
            Level::Bounded => {}
            Level::Causal => w.sessions[s].mark = value.max(w.sessions[s].mark),
            Level::Linearizable => w.mark = value.max(w.mark),
        }
    }

    // --- cache ---

    /// What raising a key's revision does to the tokens.
    fn revoke(&self, w: &mut World, p: usize, key: Key) {
        for lane in &mut w.proxies[p].lanes {
            for expect in &mut lane.awaited {
                if let Expect::Fill { token, .. } = expect
                    && token.key == key
                {
                    token.valid = false;
                }
            }
        }
        for (session, program) in w.sessions.iter_mut().zip(&self.programs) {
            if let Some(Present { at: At::Began(token), .. }) = &mut session.present
                && program.proxy == p
                && token.key == key
            {
                token.valid = false;
            }
        }
    }

    /// `Cache::drop_key`.
    fn drop_key(&self, w: &mut World, p: usize, key: Key) {
        self.revoke(w, p, key);
        w.proxies[p].entries[usize::from(key)] = Default::default();
    }

    /// `Cache::observe`.
    fn observe(&self, w: &mut World, p: usize, key: Key, t: Time) {
        self.revoke(w, p, key);
        w.proxies[p].entries[usize::from(key)].observe(t);
    }

    /// `Cache::fill`. True if it was stored.
    fn fill(
        &self,
        w: &mut World,
        (p, l): (usize, usize),
        token: Token,
        sent: Time,
        (value, stored): (Pos, Time),
    ) -> bool {
        let proxy = &mut w.proxies[p];
        if self.rules.tokens && !(token.valid && token.epoch == proxy.epoch) {
            return false;
        }
        let told = proxy.told[usize::from(token.key)];
        let floor = if told >= sent { told } else { 0 };
        let node = Node { value, lane: l as u8, stamp: proxy.lanes[l].stamp, epoch: token.epoch, stored, floor };
        proxy.entries[usize::from(token.key)].insert(token.variant, node, sent);
        true
    }

    /// Whether there is a valid token for this read, so that `begin` would join.
    fn in_flight(&self, w: &World, p: usize, key: Key, variant: Variant) -> bool {
        let proxy = &w.proxies[p];
        let same = |t: &Token| t.valid && t.key == key && t.variant == variant && t.epoch == proxy.epoch;
        let mut sent = proxy.lanes.iter().flat_map(|l| &l.awaited);
        let mut sessions = w.sessions.iter().zip(&self.programs).filter(|(_, g)| g.proxy == p);
        sent.any(|e| matches!(e, Expect::Fill { token, .. } if same(token)))
            || sessions.any(|(s, _)| matches!(s.present, Some(Present { at: At::Began(t), .. }) if same(&t)))
    }

    /// A PING later than this would show nothing new.
    fn latest_wanted(&self, w: &World, p: usize) -> Time {
        w.latest_wanted(&self.programs, p, self.stored_matters())
    }

    fn stored_matters(&self) -> bool {
        let mut ops = self.programs.iter().flat_map(|g| &g.ops);
        self.level == Level::Causal || ops.any(|op| matches!(op, Op::Read(_, 1..)))
    }

    /// In `broadcast` a lane's death takes nothing with it; a linearizable read is proven as of its own arrival.
    fn scripts_matter(&self) -> bool {
        let mut ops = self.programs.iter().flat_map(|g| &g.ops);
        self.level != Level::Linearizable && !self.broadcast && ops.any(|op| matches!(op, Op::Script(_)))
    }

    /// When a request arrives makes a difference: elsewhere it does so at once.
    fn arrivals_matter(&self) -> bool {
        self.level == Level::Linearizable || self.scripts_matter()
    }

    // --- link ---

    fn link_event(&self, w: &mut World, p: usize) {
        let proxy = &mut w.proxies[p];
        let link = proxy.link.as_mut().expect("a link");
        match link.events.pop_front().expect("an event") {
            Event::Changed(key) => self.drop_key(w, p, key),
            Event::Everything => proxy.epoch += 1,
            Event::Pong(t) => {
                let twice = self.broadcast && self.rules.two_pings;
                let proven = if twice { std::mem::replace(&mut link.answered, t) } else { t };
                if proven > 0 {
                    link.up = true;
                    proxy.clock = proxy.clock.max(proven);
                    proxy.gene = link.gene;
                    if self.broadcast {
                        // Nothing has to be said to the lanes.
                        proxy.lanes.iter_mut().for_each(|lane| lane.armed = link.gene);
                    }
                }
            }
        }
    }

    /// `Coherence::link_lost`: three stores, and on another thread anything between them.
    fn lose_link(&self, w: &mut World, p: usize) {
        let proxy = &mut w.proxies[p];
        if proxy.losing == 0 {
            let up = proxy.link.take().is_some_and(|link| link.up);
            if !up {
                return;
            }
            proxy.losing = 3;
        }
        loop {
            match proxy.losing {
                3 => proxy.gene = 0,
                2 => proxy.clock = 0,
                _ => proxy.epoch += 1,
            }
            proxy.losing -= 1;
            if self.threads || proxy.losing == 0 {
                return;
            }
        }
    }

    // --- lanes ---

    fn lane_reply(&self, w: &mut World, p: usize, l: usize) {
        let now = w.now();
        let lane = &mut w.proxies[p].lanes[l];
        let reply = lane.replies.pop_front().expect("a reply");
        let expect = lane.awaited.pop_front().expect("somebody awaits it");
        let (Expect::Fill { sent, .. } | Expect::Plain { sent, .. } | Expect::Arm { sent, .. }) = expect;
        lane.clock = lane.clock.max(sent);
        match (expect, reply) {
            (Expect::Fill { session, id, token, sent, got: None }, Reply::Value(value)) => {
                let got = Some((value, if self.stored_matters() { now } else { 1 }));
                lane.awaited.push_front(Expect::Fill { session, id, token, sent, got });
                if !self.rules.told_when_stored {
                    self.deliver(w, session, id, Some(value), now);
                } else if !self.split {
                    self.lane_reply(w, p, l);
                }
            }
            (Expect::Fill { session, id, token, sent, got: Some(got) }, Reply::Ttl) => {
                let stored = self.fill(w, (p, l), token, sent, got);
                if self.rules.told_when_stored {
                    if !stored {
                        w.proxies[p].tell(token.key, now);
                    }
                    self.deliver(w, session, id, Some(got.0), now);
                }
            }
            (Expect::Plain { session, id, op, .. }, Reply::Value(value)) => {
                self.settle(w, p, op, now);
                let hold = matches!(op, Op::Script(_)) && self.rules.held;
                self.answer(w, p, (session, id), (value, now), hold);
            }
            (Expect::Arm { gene, .. }, Reply::Armed(true)) => lane.armed = gene,
            (Expect::Arm { .. }, Reply::Armed(false)) => {}
            (expect, reply) => unreachable!("{reply:?} for {expect:?}"),
        }
    }

    /// `Effect::settle`.
    fn settle(&self, w: &mut World, p: usize, op: Op, now: Time) {
        match op {
            Op::Write(key) if self.rules.drop_on_ack => self.drop_key(w, p, key),
            Op::Past(key) => self.observe(w, p, key, now),
            Op::FlushAll if self.rules.drop_on_ack => w.proxies[p].epoch += 1,
            Op::Read(..) | Op::Write(_) | Op::Script(_) | Op::FlushAll => {}
        }
    }

    /// `Connection::settle`: a script's reply waits for the barrier, unless the link is down.
    fn answer(&self, w: &mut World, p: usize, (s, id): (u8, u8), (value, now): (Pos, Time), hold: bool) {
        if !hold {
            return self.deliver(w, s, id, Some(value), now);
        }
        if w.proxies[p].gene == 0 {
            if self.rules.barrier_flushes {
                w.proxies[p].epoch += 1;
            }
            return self.deliver(w, s, id, Some(value), now);
        }
        if let Some(slot) = w.sessions[usize::from(s)].slots.iter_mut().find(|slot| slot.id == id) {
            slot.state = SlotState::Held { until: now, value };
        }
    }

    /// `Connection::lost`: reads are sent again, writes fail.
    fn lose_lane(&self, w: &mut World, p: usize, l: usize) {
        let now = w.now();
        let lane = &mut w.proxies[p].lanes[l];
        lane.up = false;
        lane.armed = 0;
        lane.replies.clear();
        let awaited = std::mem::take(&mut lane.awaited);
        let mut failed = Vec::new();
        for expect in awaited {
            let (session, id, op) = match expect {
                Expect::Fill { session, id, token, got: None, .. } => (session, id, Op::Past(token.key)),
                // Told already, or (by the other rule) not yet.
                Expect::Fill { session, id, token, got: Some(_), .. } if self.rules.told_when_stored => {
                    (session, id, Op::Past(token.key))
                }
                Expect::Plain { session, id, op, .. } => (session, id, op),
                _ => continue,
            };
            if matches!(op, Op::Past(_)) {
                enqueue(lane, Request::Plain(op), Expect::Plain { session, id, op, sent: now });
            } else {
                failed.push((session, id, op));
            }
        }
        for (session, id, op) in failed {
            self.settle(w, p, op, now);
            self.deliver(w, session, id, None, now);
        }
    }
}

fn may_invoke(session: &Session, program: &Program) -> bool {
    usize::from(session.pc) < program.ops.len() && session.slots.len() < program.window
}

fn enqueue(lane: &mut Lane, request: Request, expect: Expect) {
    if lane.server.is_some() || !lane.up {
        lane.requests.push_back(request);
    }
    lane.awaited.push_back(expect);
}

/// `Connection::can_fill`.
fn can_fill(proxy: &Proxy, l: usize) -> bool {
    proxy.lanes[l].up && proxy.gene != 0 && proxy.gene == proxy.lanes[l].armed
}

fn open_link(w: &mut World, p: usize) {
    let now = w.now();
    let proxy = &mut w.proxies[p];
    proxy.genes += 1;
    proxy.link = Some(Link { events: [Event::Pong(now)].into(), pong: w.broadcast, ..Link::new(proxy.genes) });
}

fn open_lane(w: &mut World, p: usize, l: usize) {
    let now = w.now();
    let proxy = &mut w.proxies[p];
    let link = proxy.link.as_ref().filter(|link| link.server && proxy.gene == link.gene).map_or(0, |link| link.gene);
    let lane = &mut proxy.lanes[l];
    lane.up = true;
    lane.stamp += 1;
    lane.clock = now;
    lane.armed = link;
    lane.server = Some(ServerLane { tracked: 0, redirect: link });
}

// --- the node ---

fn serve(w: &mut World, p: usize, l: usize) {
    let lane = &mut w.proxies[p].lanes[l];
    let request = lane.requests.pop_front().expect("a request");
    let reply = match request {
        Request::Fill(key) => {
            lane.server.as_mut().expect("alive").tracked |= 1 << key;
            let value = w.value(key);
            w.proxies[p].lanes[l].replies.push_back(Reply::Value(value));
            Reply::Ttl
        }
        Request::Plain(Op::Past(key) | Op::Read(key, _)) => Reply::Value(w.value(key)),
        Request::Plain(op) => {
            write(w, op.key());
            Reply::Value(w.log.len() as Pos)
        }
        Request::Arm(gene) => {
            let known = w.proxies[p].link.as_ref().is_some_and(|link| link.server && link.gene == gene);
            if known && let Some(server) = &mut w.proxies[p].lanes[l].server {
                server.redirect = gene;
            }
            Reply::Armed(known)
        }
    };
    w.proxies[p].lanes[l].replies.push_back(reply);
}

/// A write, and the reports of it: once per registration, to the link that the lane names.
fn write(w: &mut World, key: Option<Key>) {
    w.log.push(key);
    for proxy in &mut w.proxies {
        if w.broadcast {
            match (proxy.link.as_mut().filter(|link| link.server), key) {
                (Some(link), Some(key)) => link.turn |= 1 << key,
                (Some(link), None) => link.events.push_back(Event::Everything),
                (None, _) => {}
            }
            continue;
        }
        let Some(link) = proxy.link.as_mut().filter(|link| link.server) else {
            proxy.lanes.iter_mut().filter_map(|l| l.server.as_mut()).for_each(|s| forget(s, key));
            continue;
        };
        for server in proxy.lanes.iter_mut().filter_map(|l| l.server.as_mut()) {
            let tracked = key.is_none_or(|key| server.tracked & (1 << key) != 0);
            forget(server, key);
            let event = key.map_or(Event::Everything, Event::Changed);
            if tracked && server.redirect == link.gene && link.events.back() != Some(&event) {
                link.events.push_back(event);
            }
        }
    }
}

fn end_turn(link: &mut Link) {
    let changed = (0..KEYS as Key).filter(|key| link.turn & (1 << key) != 0);
    link.events.extend(changed.map(Event::Changed));
    (link.turn, link.pong) = (0, false);
}

fn forget(server: &mut ServerLane, key: Option<Key>) {
    server.tracked &= key.map_or(0, |key| !(1 << key));
}
