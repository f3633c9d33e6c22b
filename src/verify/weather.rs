//! The disturbances of a deployment while it is driven: connections that are cut here, erasures and evictions by others.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::history::Span;
use super::wire::{Target, TestConnection, text};
use crate::time::Time;

/// Names of nearside's connections at the upstream, the link first: losing it is the hardest.
const NAMES: [&str; 4] = ["nearside-link", "nearside-lane", "nearside-lane", "nearside-dedicated"];
/// Milliseconds between two cuts.
const PAUSES: std::ops::Range<u64> = 50..800;

/// Kills connections of proxies at the upstream, at random times, until it is dropped; counts them.
pub async fn cut(target: Target, mut rng: fastrand::Rng, count: Rc<Cell<u64>>) {
    loop {
        tokio::time::sleep(Duration::from_millis(rng.u64(PAUSES))).await;
        // An upstream that cannot be reached just now has cut them itself.
        if let Ok(cut) = cut_once(&target, &mut rng).await {
            count.set(count.get() + cut);
        }
    }
}

async fn cut_once(target: &Target, rng: &mut fastrand::Rng) -> std::io::Result<u64> {
    let mut connection = TestConnection::open(target, false).await?;
    let list = text(&connection.call(&["CLIENT", "LIST"]).await?).unwrap_or_default();
    let name = format!(" name={} ", NAMES[rng.usize(0..NAMES.len())]);
    let mut ids: Vec<&str> = list.lines().filter(|line| line.contains(&name)).filter_map(id).collect();
    rng.shuffle(&mut ids);
    // one, or all at once
    if rng.bool() {
        ids.truncate(1);
    }
    for id in &ids {
        connection.call(&["CLIENT", "KILL", "ID", id]).await?;
    }
    Ok(ids.len() as u64)
}

fn id(line: &str) -> Option<&str> {
    line.strip_prefix("id=")?.split(' ').next()
}

/// Erasures and evictions that somebody else has made.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// Everything was erased once within each.
    pub erased: Vec<Span>,
    /// Keys may have been evicted at any time within each.
    pub evicted: Vec<Span>,
}

impl Weather {
    /// Reads the file of `--events`: a line each of `erase START END` or `evict START END`. A line that repeats a start
    /// replaces the one before it, so that an event can be announced with the end `-` and completed later.
    pub fn load(path: &Path) -> Result<Weather, String> {
        let file = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Weather::parse(&file).map_err(|line| format!("{}: `{line}` is no event", path.display()))
    }

    fn parse(file: &str) -> Result<Weather, String> {
        let mut events = Weather::default();
        for line in file.lines().filter(|line| !line.is_empty()) {
            let mistake = || line.to_owned();
            let [what, start, end] = line.split(' ').collect::<Vec<_>>()[..] else { return Err(mistake()) };
            let time = |text: &str| text.parse().map(Time).map_err(|_| mistake());
            let span = Span { start: time(start)?, end: if end == "-" { Time::NEVER } else { time(end)? } };
            let spans = match what {
                "erase" => &mut events.erased,
                "evict" => &mut events.evicted,
                _ => return Err(mistake()),
            };
            spans.retain(|other| other.start != span.start);
            spans.push(span);
        }
        Ok(events)
    }

    /// Those that were not over before `time`.
    pub fn since(&self, time: Time) -> Weather {
        let later = |spans: &[Span]| spans.iter().copied().filter(|span| span.end >= time).collect();
        Weather { erased: later(&self.erased), evicted: later(&self.evicted) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_announced_and_completed() {
        let span = |start, end| Span { start: Time(start), end };
        let events = Weather::parse("erase 10 -\nevict 5 20\nerase 10 30\nerase 40 -\n");
        let erased = vec![span(10, Time(30)), span(40, Time::NEVER)];
        let expected = Weather { erased, evicted: vec![span(5, Time(20))] };
        assert_eq!(events, Ok(expected));
        for wrong in ["erase 10", "eras 10 20", "erase ten 20", "erase 10 20 30"] {
            assert_eq!(Weather::parse(wrong), Err(wrong.into()));
        }
        let later = Weather::parse("erase 10 30\nevict 5 20\n").map(|events| events.since(Time(25)));
        assert_eq!(later, Ok(Weather { erased: vec![span(10, Time(30))], evicted: vec![] }));
    }
}
