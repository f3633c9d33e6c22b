//! One simulation: a server, a network, proxies, the clients of `nearside verify`, and the weather; all of it from one seed, in
//! one thread, in a time that passes only while nothing can be done.

use std::cell::{Cell, RefCell};
use std::fmt::{Arguments, Write as _};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nearside::config::{Address, Config, Invalidation, Level, Upstream};
use nearside::test_support::cache::FlushCause;
use nearside::test_support::coherence::standing::Mode;
use nearside::test_support::node::{link, watch};
use nearside::test_support::session;
use nearside::test_support::shared::{Presence, Shared};
use nearside::test_support::time::{self, Time};
use nearside::test_support::transport::{Endpoint, Stream};
use nearside::test_support::upstream::Pool;
use nearside::test_support::verify::drive::{Mix, Site, TestClient, Way};
use nearside::test_support::verify::history::{History, RouteUnderTest, Span};
use nearside::test_support::verify::judge::{self, Findings, Rules};
use nearside::test_support::verify::wire::Target;
use nearside::test_support::verify::work::{FieldTtls, KINDS, ObjectKind};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};

use super::network::{Arrival, Line, Network, QUIETLY};
use super::server::Server;

/// The most objects in use at a time.
const OBJECTS: usize = 6;
const CLIENTS: usize = 8;
const PROXIES: usize = 2;
/// Threads of a proxy that have lanes of their own.
const POOLS: usize = 2;
/// What verify allows itself for one key.
const BUDGET: usize = 200_000;
/// How long the clients work.
const LENGTH: Duration = Duration::from_millis(2000);
/// How slow a direction of a line is, in milliseconds.
const SLOW_LINES: &[u64] = &[0, 1, 1, 4, 20];
/// So that more is done while something else is late.
const FAST_LINES: &[u64] = &[0, 0, 1, 1, 2];

/// Where chance comes from in the tests' half of the world.
#[derive(Clone)]
pub struct Chance {
    rng: Rc<RefCell<fastrand::Rng>>,
    /// The longest pause.
    longest: Duration,
    /// How slow lines may be, in milliseconds.
    lines: &'static [u64],
    /// Of so many pieces, one is cut.
    whole: usize,
}

impl Chance {
    pub fn below(&self, n: usize) -> usize {
        self.rng.borrow_mut().usize(0..n)
    }

    pub fn one_in(&self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn share(&self) -> f64 {
        self.rng.borrow_mut().f64()
    }

    fn any<T: Copy>(&self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Long enough that clocks are missed, or not.
    pub fn pause(&self) -> Duration {
        self.longest.mul_f64(self.share())
    }

    /// How slow a direction of a line is.
    pub fn slowness(&self) -> Duration {
        Duration::from_millis(self.any(self.lines))
    }

    /// What one piece takes.
    pub fn delay(&self, slowness: Duration) -> Duration {
        if self.one_in(300) { self.pause() } else { slowness.mul_f64(self.share()) }
    }

    /// How many bytes pass at once.
    pub fn cut(&self, most: usize) -> usize {
        if self.one_in(self.whole) { 1 + self.below(self.any(&[24, 120])) } else { most }
    }
}

/// All that happened, line by line.
#[derive(Clone, Default)]
pub struct Log(Rc<RefCell<String>>);

impl Log {
    pub fn line(&self, what: Arguments<'_>) {
        let now = Time::now().0;
        writeln!(self.0.borrow_mut(), "{now} {what}").expect("a String takes everything");
    }
}

/// What came of it.
pub struct Outcome {
    pub findings: Findings,
    /// Everything that happened.
    pub log: String,
    pub hits: u64,
    pub audited: u64,
    pub audited_stale: u64,
    /// Requests that nobody answered.
    pub unanswered: u64,
    pub operations: usize,
    /// What the weather did, by kind.
    pub weather: [usize; WEATHERS],
    /// Proxies that learn of changes in another way than they should.
    pub astray: usize,
    /// How often they believed that the server's clock was set, which it never is.
    pub clocks_set: u64,
}

/// Runs it from its beginning to its judgement.
pub fn run(seed: u64) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        time::begin_simulation();
        fastrand::seed(seed);
        World::new(seed).run(seed).await
    })
}

struct World {
    chance: Chance,
    climate: Climate,
    log: Log,
    network: Rc<Network>,
    server: Rc<RefCell<Server>>,
    proxies: Vec<Proxy>,
    config: Config,
    erased: RefCell<Vec<Span>>,
    weather: Cell<[usize; WEATHERS]>,
}

struct Proxy {
    shared: Arc<Shared>,
    pools: Vec<Rc<Pool>>,
}

/// Kinds of weather.
pub const WEATHERS: usize = 12;

/// Which weather there is most.
#[derive(Clone, Copy)]
enum Climate {
    /// A little of each.
    Mixed,
    /// Reports are late, and all else flows.
    LateReports,
    /// Lanes end, and the proxies hear of it later.
    QuietDeaths,
    /// The server is busy until just before a read.
    Blinks,
}

impl Climate {
    const ALL: [Climate; 4] = [Climate::Mixed, Climate::LateReports, Climate::QuietDeaths, Climate::Blinks];

    /// What is thrown with dice, of which half show what there is most.
    fn dice(self, chance: &Chance) -> usize {
        let dice = chance.below(200);
        match self {
            _ if dice < 100 => dice,
            Climate::Mixed => chance.below(100),
            Climate::LateReports => 79,
            Climate::QuietDeaths => 82,
            Climate::Blinks => 85,
        }
    }
}

/// The upstream's name, for those who ask; the endpoint says where it is.
fn upstream() -> Upstream {
    Upstream { address: Address::Tcp("server".into(), 0), username: None, password: None, db: 0, tls: None }
}

/// Settings that a short life can show something of.
fn config(chance: &Chance, max_staleness: Duration) -> Config {
    let ms = Duration::from_millis;
    Config {
        invalidation: chance.any(&[
            Invalidation::Auto,
            Invalidation::Auto,
            Invalidation::Auto,
            Invalidation::Broadcast,
            Invalidation::Broadcast,
        ]),
        max_staleness,
        heartbeat: ms(chance.any(&[5, 10, 20])),
        upstream_timeout: max_staleness * 3,
        connect_timeout: max_staleness * 3,
        reconnect_max: ms(40),
        // room for everything, or for a few replies
        max_memory: chance.any(&[1 << 20, 1 << 20, 40_000, 3_000]),
        audit_one_in: 8,
        audit_per_second: 1_000_000,
        ..Config::default()
    }
}

impl World {
    fn new(seed: u64) -> Rc<World> {
        let rng = Rc::new(RefCell::new(fastrand::Rng::with_seed(!seed)));
        let max_staleness = Duration::from_millis([40, 80, 160, 320][rng.borrow_mut().usize(0..4)]);
        let lines = [FAST_LINES, SLOW_LINES, SLOW_LINES][rng.borrow_mut().usize(0..3)];
        let whole = [8, 8, 2][rng.borrow_mut().usize(0..3)];
        let chance = Chance { rng, longest: max_staleness * 2, lines, whole };
        let log = Log::default();
        let config = config(&chance, max_staleness);
        let network = Network::new(chance.clone(), log.clone());
        let climate = chance.any(&Climate::ALL);
        let server = Rc::new(RefCell::new(Server::new(log.clone())));
        if !chance.one_in(3) {
            server.borrow_mut().use_threads();
        }
        let (endpoint, dialled) = network.listen("server", true);
        spawn_local(super::server::accept(server.clone(), dialled));
        spawn_local(super::server::work(server.clone(), chance.clone()));
        let proxies = (0..PROXIES).map(|_| Proxy::start(&config, &endpoint)).collect();
        let (erased, weather) = Default::default();
        Rc::new(World { chance, climate, log, network, server, proxies, config, erased, weather })
    }

    async fn run(self: Rc<World>, seed: u64) -> Outcome {
        let mix = self.mix();
        let site = Site::new(self.ways(), "k".into(), mix.kinds.len(), FieldTtls::None, mix);
        let site = Rc::new(site);
        let mut clients: Vec<TestClient> = (0..CLIENTS).map(|i| TestClient::new(&site, i, seed)).collect();
        let weather = spawn_local(self.clone().have_weather());
        let mut history = site.round(&mut clients, LENGTH).await;
        weather.abort();
        history.erased = self.erased.take();
        self.judge(&history, site.unanswered.get())
    }

    fn judge(&self, history: &History, unanswered: u64) -> Outcome {
        self.log.line(format_args!("{history:?}"));
        let rules = Rules { max_staleness: self.config.max_staleness, budget: BUDGET };
        let sum = |of: &dyn Fn(&Shared) -> u64| self.proxies.iter().map(|p| of(&p.shared)).sum();
        Outcome {
            findings: judge::judge(history, rules),
            log: self.log.0.take(),
            hits: sum(&|s| s.cache.stats.hits.load(Ordering::Relaxed)),
            audited: sum(&|s| s.audit.checked.load(Ordering::Relaxed)),
            audited_stale: sum(&|s| s.audit.stale.load(Ordering::Relaxed)),
            unanswered,
            operations: history.ops.len(),
            weather: self.weather.get(),
            clocks_set: sum(&|s| s.cache.stats.flushes[FlushCause::Clock as usize].load(Ordering::Relaxed)),
            astray: self.proxies.iter().filter(|proxy| proxy.is_astray()).count(),
        }
    }

    /// Few objects or many, much written or little, in one protocol or in both.
    fn mix(&self) -> Mix {
        let chance = &self.chance;
        let one = chance.any(&[
            ObjectKind::Pair,
            ObjectKind::Pair,
            ObjectKind::Text,
            ObjectKind::Hash,
            ObjectKind::Counter,
            ObjectKind::Queue,
        ]);
        let all: &[ObjectKind] = if chance.one_in(2) { &[one] } else { &KINDS };
        let kinds = (0..chance.any(&[1, 2, 3, OBJECTS])).map(|_| chance.any(all)).collect();
        let resp3: &[bool] = chance.any(&[&[false, true], &[false], &[true]]);
        Mix { kinds, writes: chance.any(&[0.25, 0.1, 0.04]), resp3: resp3.to_vec() }
    }

    /// Past the proxies, and through each at one level or two.
    fn ways(self: &Rc<Self>) -> Vec<Way> {
        const LEVELS: [Level; 3] = [Level::Bounded, Level::Causal, Level::Linearizable];
        let levels: &[Level] =
            self.chance.any(&[&LEVELS, &LEVELS, &LEVELS[..1], &LEVELS[..1], &LEVELS[1..2], &LEVELS[2..]]);
        let way = |name: &str, endpoint: Endpoint, level| Way {
            target: Target::at(endpoint, upstream()),
            route: RouteUnderTest { name: name.to_owned(), level },
            ask: None,
        };
        let (past, dialled) = self.network.listen("past", false);
        spawn_local(super::server::accept(self.server.clone(), dialled));
        let mut ways = vec![way("past", past, None)];
        for number in 0..PROXIES {
            for _ in 0..=number {
                let level = self.chance.any(levels);
                let name = format!("client of {number} {level}");
                let (endpoint, dialled) = self.network.listen(&name, false);
                spawn_local(self.clone().accept(number, level, dialled));
                ways.push(way(&name, endpoint, Some(level)));
            }
        }
        ways
    }

    async fn accept(self: Rc<World>, number: usize, level: Level, mut dialled: mpsc::Receiver<Arrival>) {
        while let Some(Arrival { end, .. }) = dialled.recv().await {
            let Proxy { shared, pools } = &self.proxies[number];
            let pool = pools[self.chance.below(POOLS)].clone();
            let client = Presence::enter(shared, "client".into(), "proxy".into());
            let (shared, client) = (shared.clone(), client.expect("fewer than maxclients"));
            spawn_local(async move { session::run(&shared, &pool, Stream::Memory(end), client, level).await });
        }
    }

    // --- the weather ---

    async fn have_weather(self: Rc<World>) {
        let mean = self.chance.any(&[0.015, 0.05, 0.3]);
        loop {
            let pause = -(1.0 - self.chance.share()).ln() * mean;
            tokio::time::sleep(Duration::from_secs_f64(pause)).await;
            self.server.borrow_mut().expire(&self.chance);
            self.happen(self.climate.dice(&self.chance));
        }
    }

    fn happen(&self, dice: usize) {
        let at = Time::now();
        let erased = || self.erased.borrow_mut().push(Span { start: at, end: Time::now() });
        let kind = match dice {
            0..20 => self.network.break_one("server"),
            20..24 => self.network.break_one("client"),
            24..60 => {
                let place = self.chance.any(&["server", "server", "client", "past"]);
                self.network.hold_one(place).then_some(5)
            }
            60..66 => {
                self.server.borrow_mut().be_busy(self.chance.pause() / 4);
                Some(6)
            }
            66..76 => {
                self.server.borrow_mut().overflow(&self.chance);
                Some(7)
            }
            76..78 => {
                self.server.borrow_mut().flush();
                erased();
                Some(8)
            }
            78 => {
                self.server.borrow_mut().restart();
                self.network.break_all("server");
                self.network.break_all("past");
                erased();
                Some(8)
            }
            79..82 => self.any_of("nearside-link").filter(|line| self.network.hold(line.clone(), false)).map(|_| 9),
            82..85 => self.any_of("nearside-lane").and_then(|line| self.network.break_it(line, QUIETLY)).map(|_| 10),
            85..88 => {
                self.server.borrow_mut().blink(1 + self.chance.below(6));
                Some(11)
            }
            _ => return self.proxies.iter().for_each(|proxy| proxy.shared.cache.sweep(Time::now())),
        };
        let Some(kind) = kind else { return };
        let mut weather = self.weather.get();
        weather[kind] += 1;
        self.weather.set(weather);
    }

    /// One of the lines that proxies call so.
    fn any_of(&self, name: &str) -> Option<Rc<Line>> {
        let lines = self.server.borrow().lines(name);
        (!lines.is_empty()).then(|| lines[self.chance.below(lines.len())].clone())
    }
}

impl Proxy {
    /// The server does all there is, so nothing but what is wanted may come of it, whatever happened meanwhile.
    fn is_astray(&self) -> bool {
        let broadcast = self.shared.config.invalidation == Invalidation::Broadcast;
        let wanted = if broadcast { Mode::Broadcast } else { Mode::Tracked };
        self.shared.node().coherence.link().is_some_and(|link| link.mode != wanted)
    }

    fn start(config: &Config, server: &Endpoint) -> Proxy {
        let shared = Arc::new(Shared::at(server.clone(), config.clone(), upstream()));
        spawn_local(link::run(shared.node().clone()));
        spawn_local(watch::run(shared.node().clone()));
        let pools: Vec<_> =
            (0..POOLS).map(|_| Rc::new(Pool::new(shared.topology.clone(), shared.capacity.clone()))).collect();
        for pool in pools.clone() {
            spawn_local(async move { pool.run().await });
        }
        Proxy { shared, pools }
    }
}
