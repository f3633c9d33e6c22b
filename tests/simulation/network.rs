//! What lies between two ends: pipes that delay, cut and hold back what passes, and that break, in one direction or in both,
//! heard of by both ends, by one, or late.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use nearside::test_support::transport::Endpoint;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_local;

use super::world::{Chance, Log};

/// Bytes that an end may send before it has to wait.
const PIPE: usize = 64 * 1024;
/// Connections that nobody has taken yet.
const BACKLOG: usize = 64;

/// How one direction goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Course {
    Flows,
    /// What comes waits.
    Held,
    /// What has not arrived never will, and the far end hears that it is over.
    Over,
}

/// One direction of a line.
struct Direction {
    course: Cell<Course>,
    turned: Notify,
    /// The longest that a piece usually takes.
    slowness: Duration,
}

/// One connection. Up is from who has dialled to who was dialled.
pub struct Line {
    name: String,
    up: Direction,
    down: Direction,
}

/// All connections of a simulation.
pub struct Network {
    lines: RefCell<Vec<Rc<Line>>>,
    dialled: Cell<u64>,
    chance: Chance,
    log: Log,
}

/// The far end of a line that somebody has dialled.
pub struct Arrival {
    pub end: DuplexStream,
    pub line: Rc<Line>,
}

/// How a line breaks.
const BREAKS: usize = 5;
/// The upper end hears of it, and the lower one only later.
pub const QUIETLY: usize = 3;

impl Network {
    pub fn new(chance: Chance, log: Log) -> Rc<Network> {
        Rc::new(Network { lines: RefCell::default(), dialled: Cell::new(0), chance, log })
    }

    /// A place to dial, and the ends of those who have dialled it. `refuses`: now and then nobody is there.
    pub fn listen(self: &Rc<Self>, name: &str, refuses: bool) -> (Endpoint, mpsc::Receiver<Arrival>) {
        let (dial, mut dialled) = mpsc::channel(BACKLOG);
        let (arrive, arrived) = mpsc::channel(BACKLOG);
        let (network, place) = (self.clone(), name.to_owned());
        spawn_local(async move {
            while let Some(near) = dialled.recv().await {
                if refuses && network.chance.one_in(40) {
                    continue;
                }
                let (far, end) = tokio::io::duplex(PIPE);
                let line = network.line(&place);
                if arrive.send(Arrival { end, line: line.clone() }).await.is_err() {
                    return;
                }
                network.connect(line, near, far);
            }
        });
        (Endpoint::memory(name.to_owned(), dial), arrived)
    }

    fn line(&self, place: &str) -> Rc<Line> {
        self.dialled.set(self.dialled.get() + 1);
        let direction =
            || Direction { course: Cell::new(Course::Flows), turned: Notify::new(), slowness: self.chance.slowness() };
        Rc::new(Line { name: format!("{place}#{}", self.dialled.get()), up: direction(), down: direction() })
    }

    fn connect(self: &Rc<Self>, line: Rc<Line>, near: DuplexStream, far: DuplexStream) {
        self.lines.borrow_mut().push(line.clone());
        let ((near_read, near_write), (far_read, far_write)) = (tokio::io::split(near), tokio::io::split(far));
        let (network, upwards) = (self.clone(), line.clone());
        spawn_local(async move { network.carry(&upwards.up, near_read, far_write).await });
        let network = self.clone();
        spawn_local(async move {
            network.carry(&line.down, far_read, near_write).await;
            network.lines.borrow_mut().retain(|other| !Rc::ptr_eq(other, &line));
        });
    }

    /// Moves bytes until one end is done or the direction is over.
    async fn carry(&self, way: &Direction, mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>) {
        let mut buf = [0; 4096];
        loop {
            let most = self.chance.cut(buf.len());
            let read = tokio::select! {
                biased;
                () = way.is_over() => break,
                read = from.read(&mut buf[..most]) => read,
            };
            let Ok(n @ 1..) = read else {
                // That it is over comes no sooner than anything else.
                way.flows().await;
                break;
            };
            let delay = self.chance.delay(way.slowness);
            if delay.is_zero() {
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(delay).await;
            }
            if !way.flows().await {
                break;
            }
            let written = tokio::select! {
                biased;
                () = way.is_over() => break,
                written = to.write_all(&buf[..n]) => written,
            };
            if written.is_err() {
                break;
            }
        }
        // Who has gone already need not be told.
        let _ = to.shutdown().await;
    }

    /// Breaks one of the lines whose place begins so, in one of the ways there are.
    pub fn break_one(self: &Rc<Self>, place: &str) -> Option<usize> {
        self.break_it(self.any(place)?, self.chance.below(BREAKS))
    }

    /// Breaks this one in this way; false if it was over already.
    pub fn break_it(self: &Rc<Self>, line: Rc<Line>, kind: usize) -> Option<usize> {
        let rest = self.chance.pause();
        self.log.line(format_args!("{} breaks: {kind}, {rest:?}", line.name));
        match kind {
            // Both ends hear of it at once.
            0 => {}
            // The upper end hears of it; what it had said still comes down.
            1 => return line.up.turn(Course::Over).then_some(kind),
            // The lower end hears of it; what it had said still goes up.
            2 => return line.down.turn(Course::Over).then_some(kind),
            QUIETLY => {
                line.down.turn(Course::Held);
                line.up.turn(Course::Over);
            }
            // Neither hears of it before later.
            _ => {
                line.up.turn(Course::Held);
                line.down.turn(Course::Held);
            }
        }
        let rest = if kind == 0 { Duration::ZERO } else { rest };
        spawn_local(async move {
            if !rest.is_zero() {
                tokio::time::sleep(rest).await;
            }
            line.up.turn(Course::Over);
            line.down.turn(Course::Over);
        });
        Some(kind)
    }

    /// One direction of one line stands still for a while, and then goes on.
    pub fn hold_one(self: &Rc<Self>, place: &str) -> bool {
        self.any(place).is_some_and(|line| self.hold(line, self.chance.one_in(2)))
    }

    /// This direction of this line does so; false if it is over.
    pub fn hold(self: &Rc<Self>, line: Rc<Line>, up: bool) -> bool {
        let rest = self.chance.pause();
        self.log.line(format_args!("{} is held: {up}, {rest:?}", line.name));
        let way = move |line: &Rc<Line>| if up { line.up.turn(Course::Held) } else { line.down.turn(Course::Held) };
        if !way(&line) {
            return false;
        }
        spawn_local(async move {
            tokio::time::sleep(rest).await;
            let way = if up { &line.up } else { &line.down };
            way.turn(Course::Flows);
        });
        true
    }

    /// All lines whose place begins so are over at once.
    pub fn break_all(&self, place: &str) {
        for line in self.lines.borrow().iter().filter(|line| line.name.starts_with(place)) {
            line.up.turn(Course::Over);
            line.down.turn(Course::Over);
        }
    }

    fn any(&self, place: &str) -> Option<Rc<Line>> {
        let lines = self.lines.borrow();
        let there: Vec<&Rc<Line>> = lines.iter().filter(|line| line.name.starts_with(place)).collect();
        (!there.is_empty()).then(|| there[self.chance.below(there.len())].clone())
    }
}

impl Direction {
    /// False if it was over already: that is for good.
    fn turn(&self, course: Course) -> bool {
        let goes_on = self.course.get() != Course::Over;
        if goes_on {
            self.course.set(course);
            self.turned.notify_waiters();
        }
        goes_on
    }

    async fn is_over(&self) {
        while self.course.get() != Course::Over {
            self.turned.notified().await;
        }
    }

    /// Waits while it is held; false if it is over.
    async fn flows(&self) -> bool {
        while self.course.get() == Course::Held {
            self.turned.notified().await;
        }
        self.course.get() == Course::Flows
    }
}
