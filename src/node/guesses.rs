//! How fast passwords can be guessed. Each login that the server is to judge takes a turn of its client's address; a right
//! password gives it back at once, a wrong one keeps it for its time. So an address has at most
//! `wrong_passwords_per_second` wrong verdicts a second, and as many more at once after a pause, whatever else it does, and
//! other addresses do not notice.
//!
//! Whoever finds no turn waits, without a lock and without a connection to the server, and looks again at times left to
//! chance, so that nobody who guesses with many connections keeps a right password out by coming first. `PATIENCE` bounds the
//! wait; then there is an error, and the server was not asked. A password that was right before ([`Logins::known`]) needs no turn.
//!
//! [`Logins::known`]: super::login::Logins::known
//!
//! Bounds: `ADDRESSES` are known at a time; those beyond share one rate. Waiting logins are no more than there are clients.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::chance;
use crate::time::Time;

/// Addresses that have guessed lately, or wait.
const ADDRESSES: usize = 4096;
/// The longest that a login waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);
/// As many turns as are due in this time can be had at once.
const SAVED: Duration = Duration::from_secs(1);

/// Where a client comes from, as far as guesses are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuessOrigin {
    /// An IPv4 address.
    Four([u8; 4]),
    /// The network of an IPv6 address, of which one client may have all addresses.
    Six([u8; 8]),
    /// A unix socket.
    Here,
    /// Too many others are known.
    Rest,
}

impl GuessOrigin {
    /// The place of a client, as [`Client::addr`](crate::clients::Client::addr) spells it.
    pub fn of(addr: &str) -> GuessOrigin {
        match addr.parse::<SocketAddr>().map(|addr| addr.ip().to_canonical()) {
            Ok(IpAddr::V4(ip)) => GuessOrigin::Four(ip.octets()),
            Ok(IpAddr::V6(ip)) => {
                let [a, b, c, d, e, f, g, h, ..] = ip.octets();
                GuessOrigin::Six([a, b, c, d, e, f, g, h])
            }
            Err(_) => GuessOrigin::Here,
        }
    }
}

/// Whether the server's reply says that a password is wrong.
pub fn is_wrong(reply: &[u8]) -> bool {
    reply.starts_with(b"-WRONGPASS") || reply.starts_with(b"-ERR invalid password")
}

#[derive(Clone, Copy, Default)]
struct Slot {
    /// Turns are spent up to this time; what lies in the past is free again.
    spent: Time,
    waiting: usize,
}

/// The guesses counted so far.
pub struct Guesses {
    /// How long a wrong password keeps its turn; zero: there is no limit.
    each: Duration,
    slots: Mutex<HashMap<GuessOrigin, Slot>>,
    /// Wrong passwords.
    pub wrong: AtomicU64,
    /// Logins that had to wait.
    pub delayed: AtomicU64,
    /// Logins that have waited in vain.
    pub refused: AtomicU64,
}

/// A login that the server may be asked about.
pub struct GuessTurn<'a> {
    guesses: &'a Guesses,
    address: GuessOrigin,
}

/// All turns of the address are taken, for so long at least.
struct Later(Duration);

impl Guesses {
    /// None so far.
    pub fn new(a_second: usize) -> Guesses {
        let a_second = u32::try_from(a_second).unwrap_or(u32::MAX);
        let each = SAVED.checked_div(a_second).unwrap_or_default();
        Guesses { each, slots: Mutex::default(), wrong: 0.into(), delayed: 0.into(), refused: 0.into() }
    }

    /// Addresses that are known.
    pub fn addresses(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<GuessOrigin, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known of the address, or of all for which there is no room.
    fn at<T>(&self, address: GuessOrigin, now: Time, change: impl FnOnce(&mut Slot) -> T) -> T {
        let mut slots = self.lock();
        if slots.len() >= ADDRESSES && !slots.contains_key(&address) {
            slots.retain(|_, slot| slot.waiting > 0 || slot.spent > now);
        }
        let full = slots.len() >= ADDRESSES && !slots.contains_key(&address);
        change(slots.entry(if full { GuessOrigin::Rest } else { address }).or_default())
    }

    /// Whether there is a turn for this address now.
    pub fn has_turn(&self, address: GuessOrigin) -> bool {
        let now = Time::now();
        let slots = self.lock();
        slots.get(&address).is_none_or(|slot| slot.spent.max(now) + self.each <= now + SAVED)
    }

    fn take(&self, address: GuessOrigin, now: Time) -> Result<(), Later> {
        self.at(address, now, |slot| {
            let spent = slot.spent.max(now) + self.each;
            let over = spent.since(now + SAVED);
            if !over.is_zero() {
                return Err(Later(over));
            }
            slot.spent = spent;
            Ok(())
        })
    }

    /// A turn for a client of this address, when there is one. `None`: not within ten seconds.
    pub async fn turn(&self, address: GuessOrigin) -> Option<GuessTurn<'_>> {
        let turn = GuessTurn { guesses: self, address };
        let began = Time::now();
        let Err(mut later) = self.take(address, began) else { return Some(turn) };
        self.delayed.fetch_add(1, Ordering::Relaxed);
        let waiter = GuessWaiter::of(self, address);
        loop {
            // The more wait, the longer: together they look about as often as there are turns.
            let others = self.each.mul_f64(chance::uniform() * waiter.others() as f64);
            tokio::time::sleep(later.0 + others.min(SAVED)).await;
            let now = Time::now();
            match self.take(address, now) {
                Ok(()) => return Some(turn),
                Err(_) if now.since(began) >= PATIENCE => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    return None;
                }
                Err(still) => later = still,
            }
        }
    }
}

impl GuessTurn<'_> {
    /// The password was right, or nobody has said that it was wrong.
    pub fn give_back(self) {
        let each = self.guesses.each;
        self.guesses.at(self.address, Time::now(), |slot| {
            slot.spent = slot.spent - each;
        });
    }

    /// The password was wrong.
    pub fn keep(self) {
        self.guesses.wrong.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts a login that waits.
struct GuessWaiter<'a> {
    guesses: &'a Guesses,
    address: GuessOrigin,
}

impl GuessWaiter<'_> {
    fn of(guesses: &Guesses, address: GuessOrigin) -> GuessWaiter<'_> {
        guesses.at(address, Time::now(), |slot| slot.waiting += 1);
        GuessWaiter { guesses, address }
    }

    /// Those of the same address, this one included.
    fn others(&self) -> usize {
        self.guesses.at(self.address, Time::now(), |slot| slot.waiting)
    }
}

impl Drop for GuessWaiter<'_> {
    fn drop(&mut self) {
        self.guesses.at(self.address, Time::now(), |slot| slot.waiting = slot.waiting.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time(1_000_000_000_000);

    fn turns(guesses: &Guesses, address: GuessOrigin, now: Time) -> usize {
        (0..1000).take_while(|_| guesses.take(address, now).is_ok()).count()
    }

    #[test]
    fn wrong_passwords_come_at_a_bounded_rate_and_right_ones_at_any() {
        let guesses = Guesses::new(50);
        let [one, other] = [GuessOrigin::of("10.0.0.1:5"), GuessOrigin::of("10.0.0.2:5")];
        assert_eq!(turns(&guesses, one, NOW), 50);
        assert_eq!(turns(&guesses, one, NOW + Duration::from_millis(200)), 10);
        assert_eq!(turns(&guesses, other, NOW), 50, "another address");
        GuessTurn { guesses: &guesses, address: other }.give_back();
        assert_eq!(turns(&guesses, other, NOW), 1);
        assert_eq!(turns(&guesses, one, NOW + Duration::from_secs(100)), 50, "no more than that is saved up");
        assert_eq!(turns(&Guesses::new(0), one, NOW), 1000, "no limit");
    }

    #[test]
    fn addresses_are_counted_together_as_one_client_may_have_them() {
        let same = |a: &str, b: &str| GuessOrigin::of(a) == GuessOrigin::of(b);
        assert!(same("10.0.0.1:5", "10.0.0.1:6") && same("10.0.0.1:5", "[::ffff:10.0.0.1]:5"));
        assert!(same("[2001:db8::1]:5", "[2001:db8::2:3:4:5]:9") && !same("[2001:db8::1]:5", "[2001:db8:0:1::1]:5"));
        assert!(same("/run/a.sock:0", "/run/b.sock:0") && !same("/run/a.sock:0", "127.0.0.1:5"));
    }

    #[test]
    fn a_bounded_number_of_addresses_is_known_and_the_others_share_a_rate() {
        let guesses = Guesses::new(50);
        let address = |n: usize| GuessOrigin::Four((n as u32).to_be_bytes());
        for n in 0..ADDRESSES {
            assert!(guesses.take(address(n), NOW).is_ok());
        }
        assert_eq!(turns(&guesses, address(ADDRESSES), NOW), 50);
        assert_eq!(turns(&guesses, address(ADDRESSES + 1), NOW), 0);
        assert!(guesses.addresses() <= ADDRESSES + 1);
        let later = NOW + Duration::from_secs(5);
        assert_eq!(turns(&guesses, address(ADDRESSES + 2), later), 50);
        assert_eq!(guesses.addresses(), 1, "those at rest are forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_is_told_in_the_end_and_leaves_nothing_behind() {
        let guesses = Guesses::new(1);
        let address = GuessOrigin::Here;
        guesses.turn(address).await.expect("a turn").keep();
        assert!(tokio::time::timeout(Duration::from_millis(10), guesses.turn(address)).await.is_err(), "it waits");
        assert_eq!(guesses.at(address, Time::now(), |slot| slot.waiting), 0);
        assert_eq!(guesses.delayed.load(Ordering::Relaxed), 1);
    }
}
