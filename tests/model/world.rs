//! The state of the model: sessions, proxies, lanes, links and one node; and time, which is only an order.

use std::collections::VecDeque;

use crate::cache::{Entry, Node, Token};

/// Position in the node's history of writes. A value is the position of the write that made it; 0 was there before.
pub type Pos = u8;
/// A rank among all times in the state. 0: never; 1: long ago.
pub type Time = u8;
pub type Key = u8;
/// One of several reads of one key (HGETALL, HGET f …).
pub type Variant = u8;
pub const KEYS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// A cacheable read.
    Read(Key, Variant),
    /// A read past the cache (a command that is not cached, a transaction).
    Past(Key),
    Write(Key),
    /// Writes this key, which the proxy cannot know.
    Script(Key),
    FlushAll,
}

impl Op {
    pub fn key(self) -> Option<Key> {
        match self {
            Op::Read(key, _) | Op::Past(key) | Op::Write(key) | Op::Script(key) => Some(key),
            Op::FlushAll => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Bounded,
    Causal,
    Linearizable,
}

/// A client and what it does, in order. `window`: commands it sends without waiting for replies.
#[derive(Clone, Debug)]
pub struct Program {
    pub proxy: usize,
    pub lane: usize,
    pub window: usize,
    pub ops: Vec<Op>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Faults {
    /// Links that die.
    pub links: u8,
    /// Lanes that die alone.
    pub lanes: u8,
    /// Replies that are evicted.
    pub evictions: u8,
}

/// The request a session is dealing with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Present {
    pub id: u8,
    pub op: Op,
    pub arrived: Time,
    /// Ghost: the oldest value it may be answered with.
    pub need: Pos,
    pub at: At,
}

/// How far the present request is, where the code can be interrupted by another thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum At {
    Start,
    /// `judge` holds the entry and has looked at its epoch, or (the other order) at its clocks.
    Judged(Node),
    /// The token is taken; whether the lane may fill has not been asked.
    Began(Token),
    /// The wrong order: the lane may fill; the token has not been taken.
    MayFill,
}

/// A place in a session's outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    pub id: u8,
    pub op: Op,
    pub need: Pos,
    /// It went upstream; else it was a hit.
    pub sent: bool,
    pub state: SlotState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotState {
    Waiting {
        follow: bool,
    },
    /// The reply of a script, behind a barrier.
    Held {
        until: Time,
        value: Pos,
    },
    /// `None`: an error.
    Ready(Option<Pos>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Session {
    pub pc: u8,
    pub present: Option<Present>,
    pub slots: VecDeque<Slot>,
    pub shown: Time,
    pub seen: Time,
    /// Ghost: the newest value of each key it was told.
    pub known: [Pos; KEYS],
    /// Ghost: the latest write it has evidence of.
    pub mark: Pos,
}

/// What goes down a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    Fill(Key),
    Plain(Op),
    Arm(u8),
}

/// What comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    Value(Pos),
    /// The PTTL behind a fill's read.
    Ttl,
    Armed(bool),
}

/// What the proxy does with the next reply of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expect {
    Fill { session: u8, id: u8, token: Token, sent: Time, got: Option<(Pos, Time)> },
    Plain { session: u8, id: u8, op: Op, sent: Time },
    Arm { gene: u8, sent: Time },
}

/// The node's end of a lane.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerLane {
    /// Keys registered, a bit each.
    pub tracked: u8,
    /// The link that changes are reported to.
    pub redirect: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lane {
    pub up: bool,
    pub stamp: u8,
    pub armed: u8,
    pub clock: Time,
    pub requests: VecDeque<Request>,
    pub replies: VecDeque<Reply>,
    pub awaited: VecDeque<Expect>,
    /// `None`: the connection is dead at the node, whether or not the proxy knows.
    pub server: Option<ServerLane>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    Changed(Key),
    Everything,
    Pong(Time),
}

/// One connection of the link.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    pub gene: u8,
    pub up: bool,
    /// Alive at the node.
    pub server: bool,
    pub events: VecDeque<Event>,
    /// When the last PING had been sent whose PONG has come.
    pub answered: Time,
    /// `broadcast`: keys changed in the node's present turn, a bit each; reported when it ends.
    pub turn: u8,
    /// `broadcast`: a PONG was made in the present turn. It comes no earlier than the turn's end.
    pub pong: bool,
}

impl Link {
    pub fn new(gene: u8) -> Link {
        Link { gene, up: false, server: true, events: VecDeque::new(), answered: 0, turn: 0, pong: false }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proxy {
    pub epoch: u8,
    /// Generation of the living link as lanes see it; 0: down.
    pub gene: u8,
    pub genes: u8,
    pub clock: Time,
    /// Every hit must be proven as of this: the latest barrier.
    pub settled: Time,
    pub link: Option<Link>,
    /// Steps of `link_lost` still to do.
    pub losing: u8,
    pub entries: [Entry; KEYS],
    /// When something about the key was told last that was not stored: a fill sent before then gets it as its floor.
    pub told: [Time; KEYS],
    pub lanes: Vec<Lane>,
    /// Ghost: the newest write of each key acknowledged through this proxy.
    pub acked: [Pos; KEYS],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub time: Time,
    /// Mode `broadcast`; else `tracked`.
    pub broadcast: bool,
    /// The node's writes; `None` wrote every key.
    pub log: Vec<Option<Key>>,
    pub sessions: Vec<Session>,
    pub proxies: Vec<Proxy>,
    pub faults: Faults,
    /// Writes done past the proxies.
    pub outside: u8,
    /// Ghost: the latest write anybody has evidence of.
    pub mark: Pos,
    /// The promise that was broken.
    pub broken: Option<&'static str>,
}

impl Session {
    /// Whether it is reading this key, or is going to.
    pub fn will_read(&self, program: &Program, key: usize) -> bool {
        let reads = |op: Op| matches!(op, Op::Read(k, _) | Op::Past(k) if usize::from(k) == key);
        program.ops[usize::from(self.pc)..].iter().any(|op| reads(*op))
            || self.present.is_some_and(|p| reads(p.op))
            || self.slots.iter().any(|slot| reads(slot.op))
    }
}

impl World {
    pub fn new(programs: &[Program], faults: Faults, broadcast: bool) -> World {
        let lanes_of = |p: usize| programs.iter().filter(|g| g.proxy == p).map(|g| g.lane + 1).max().unwrap_or(1);
        let lane = Lane {
            up: true,
            stamp: 1,
            armed: 1,
            clock: 1,
            requests: VecDeque::new(),
            replies: VecDeque::new(),
            awaited: VecDeque::new(),
            server: Some(ServerLane { tracked: 0, redirect: 1 }),
        };
        let link = Link { up: true, answered: 1, ..Link::new(1) };
        let proxy = |p| Proxy {
            epoch: 1,
            gene: 1,
            genes: 1,
            clock: 1,
            settled: 0,
            link: Some(link.clone()),
            losing: 0,
            entries: Default::default(),
            told: [0; KEYS],
            lanes: vec![lane.clone(); lanes_of(p)],
            acked: [0; KEYS],
        };
        let proxies = programs.iter().map(|p| p.proxy + 1).max().unwrap_or(1);
        World {
            time: 1,
            broadcast,
            log: Vec::new(),
            sessions: vec![Session::default(); programs.len()],
            proxies: (0..proxies).map(proxy).collect(),
            faults,
            outside: 0,
            mark: 0,
            broken: None,
        }
    }

    /// A time later than every other.
    pub fn now(&mut self) -> Time {
        self.time += 1;
        self.time
    }

    /// The last write of `key` up to position `upto`.
    pub fn last_write(&self, key: Key, upto: Pos) -> Pos {
        let mut writes = self.log[..usize::from(upto)].iter();
        writes.rposition(|w| w.is_none_or(|k| k == key)).map_or(0, |i| i as Pos + 1)
    }

    pub fn value(&self, key: Key) -> Pos {
        self.last_write(key, self.log.len() as Pos)
    }

    /// The latest time that a hit in proxy `p` may have to be proven as of. `stored`: when a reply arrived may become
    /// such a time.
    pub fn latest_wanted(&self, programs: &[Program], p: usize, stored: bool) -> Time {
        let mut latest = self.proxies[p].settled;
        for (s, _) in self.sessions.iter().zip(programs).filter(|(_, program)| program.proxy == p) {
            latest = latest.max(s.shown).max(s.seen).max(s.present.map_or(0, |r| r.arrived));
            for slot in &s.slots {
                if let SlotState::Held { until, .. } = slot.state {
                    latest = latest.max(until);
                }
            }
        }
        for entry in &self.proxies[p].entries {
            let time = |n: &Node| if stored { n.floor.max(n.stored) } else { n.floor };
            latest = entry.nodes.iter().map(|(_, n)| time(n)).fold(latest.max(entry.latest), Time::max);
        }
        for expect in self.proxies[p].lanes.iter().flat_map(|l| &l.awaited) {
            if let Expect::Fill { got: Some((_, t)), .. } = expect
                && stored
            {
                latest = latest.max(*t);
            }
        }
        latest
    }

    /// Renames the times so that only their order is left: what makes the state space finite.
    pub fn compress(&mut self) {
        let mut used = [false; 256];
        self.times(&mut |t| used[usize::from(*t)] = true);
        let mut rank = [0; 256];
        let mut next = 1;
        for t in 2..256 {
            if used[t] {
                next += 1;
            }
            rank[t] = next;
        }
        rank[1] = 1;
        self.times(&mut |t| *t = rank[usize::from(*t)]);
        self.time = next;
    }

    fn times(&mut self, f: &mut impl FnMut(&mut Time)) {
        for s in &mut self.sessions {
            f(&mut s.shown);
            f(&mut s.seen);
            if let Some(p) = &mut s.present {
                f(&mut p.arrived);
                if let At::Judged(node) = &mut p.at {
                    f(&mut node.stored);
                    f(&mut node.floor);
                }
            }
            for slot in &mut s.slots {
                if let SlotState::Held { until, .. } = &mut slot.state {
                    f(until);
                }
            }
        }
        self.proxies.iter_mut().for_each(|p| p.times(f));
    }
}

impl Proxy {
    /// What was told concerns only fills that were sent before.
    pub fn forget_told(&mut self) {
        for (key, told) in self.told.iter_mut().enumerate() {
            let mut awaited = self.lanes.iter().flat_map(|l| &l.awaited);
            let concerns = |e: &Expect| matches!(e, Expect::Fill { token, sent, .. } if usize::from(token.key) == key && *sent <= *told);
            if !awaited.any(concerns) {
                *told = 0;
            }
        }
    }

    /// A reply was told that is not kept: what is kept must not be older. No token is revoked: on a hot key the next
    /// read is always on its way already, and each would revoke the one behind it.
    pub fn tell(&mut self, key: Key, t: Time) {
        let told = &mut self.told[usize::from(key)];
        *told = t.max(*told);
        self.entries[usize::from(key)].observe(t);
    }

    fn times(&mut self, f: &mut impl FnMut(&mut Time)) {
        f(&mut self.clock);
        f(&mut self.settled);
        self.told.iter_mut().for_each(&mut *f);
        if let Some(link) = &mut self.link {
            f(&mut link.answered);
            for event in &mut link.events {
                if let Event::Pong(t) = event {
                    f(t);
                }
            }
        }
        for entry in &mut self.entries {
            f(&mut entry.latest);
            for (_, node) in &mut entry.nodes {
                f(&mut node.stored);
                f(&mut node.floor);
            }
        }
        for lane in &mut self.lanes {
            f(&mut lane.clock);
            for expect in &mut lane.awaited {
                let (Expect::Fill { sent, .. } | Expect::Plain { sent, .. } | Expect::Arm { sent, .. }) = expect;
                f(sent);
                if let Expect::Fill { got: Some((_, stored)), .. } = expect {
                    f(stored);
                }
            }
        }
    }
}
