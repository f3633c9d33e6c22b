//! The connected clients: the register behind `maxclients` and CLIENT LIST, INFO, KILL.

pub mod listing;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::sync::Semaphore;

use crate::time::Time;

/// One client connection, as others may see it.
pub struct Client {
    /// Unique for the life of the process.
    pub id: u64,
    /// Its own end.
    pub addr: String,
    /// Our end.
    pub laddr: String,
    /// When it came.
    pub since: Time,
    /// When it last sent something ([`Time`]'s nanoseconds).
    pub active: AtomicU64,
    /// Database.
    pub db: AtomicU32,
    /// Protocol.
    pub resp: AtomicU32,
    /// The number of the login that it has.
    pub login: AtomicU64,
    /// The name of its last command, as the server's table numbers it; or [`RAW`].
    pub command: AtomicU32,
    /// Bytes that are held for it, as its session has last said.
    held: AtomicUsize,
    /// The client is being closed because of that: its memory is on its way back.
    evicted: AtomicBool,
    words: Mutex<Words>,
    killed: AtomicBool,
    /// Nothing that it has not been told yet is told any more.
    silenced: AtomicBool,
    draining: AtomicBool,
    /// Somebody wants to redirect to it what the server reports of keys.
    own_wanted: AtomicBool,
    /// The server's number for the connection it has of its own, if it has one.
    lent: Mutex<Option<Arc<AtomicI64>>>,
    /// Wakes the session's task when another asks something of it.
    waker: Mutex<Option<Waker>>,
    /// Never has a permit; closed when the connection is.
    gone: Semaphore,
}

/// The words that a client has said about itself.
#[derive(Default, Clone)]
pub struct Words {
    /// CLIENT SETNAME.
    pub name: String,
    /// ACL user.
    pub user: String,
    /// CLIENT SETINFO LIB-NAME.
    pub lib_name: String,
    /// CLIENT SETINFO LIB-VER.
    pub lib_ver: String,
}

/// [`Client::command`] of a client whose bytes pass unlooked at.
pub const RAW: u32 = u32::MAX;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// Its name, user and library.
    pub fn words(&self) -> MutexGuard<'_, Words> {
        lock(&self.words)
    }

    /// Ends it: at once, or after the present reply if it kills itself.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.wake();
    }

    /// Ends it for another's CLIENT KILL: what it has not been told by now it is not told any more, as with Redis. (The server
    /// ends the client's own connection as well; that this is lost would be told.)
    pub fn kill_in_silence(&self) {
        self.silenced.store(true, Ordering::Release);
        self.kill();
    }

    /// Whether it ends without a further word.
    pub fn silenced(&self) -> bool {
        self.silenced.load(Ordering::Acquire)
    }

    /// Waits until its connection is closed.
    pub async fn gone(&self) {
        // that there will never be a permit is what is waited for
        let _ = self.gone.acquire().await;
    }

    /// Notes that the client got a connection of its own, or gave it back.
    pub fn uses_connection(&self, client_id: Option<Arc<AtomicI64>>) {
        *lock(&self.lent) = client_id;
    }

    /// The server's number for the connection it has of its own.
    pub fn upstream_id(&self) -> Option<i64> {
        let id = lock(&self.lent).as_ref()?.load(Ordering::Acquire);
        (id > 0).then_some(id)
    }

    /// Whether only the server knows what it says.
    pub fn is_raw(&self) -> bool {
        self.command.load(Ordering::Relaxed) == RAW
    }

    /// Asks it to get a connection of its own and to keep it.
    pub fn want_own(&self) {
        self.own_wanted.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether [`Client::want_own`] was called.
    pub fn own_wanted(&self) -> bool {
        self.own_wanted.load(Ordering::Acquire)
    }

    /// Asks it to finish what it has begun and go.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether [`Client::drain`] was called.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Whether somebody has killed it.
    pub fn killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }

    /// Sets the task to wake when the client is killed or asked for something. A request made before must be looked for.
    pub fn wakes(&self, waker: &Waker) {
        *lock(&self.waker) = Some(waker.clone());
    }

    fn wake(&self) {
        if let Some(waker) = &*lock(&self.waker) {
            waker.wake_by_ref();
        }
    }
}

/// All of them.
#[derive(Default)]
pub struct Clients {
    next: AtomicU64,
    all: Mutex<BTreeMap<u64, Arc<Client>>>,
    /// Connections refused at `maxclients`.
    pub refused: AtomicU64,
    /// Connections whose TLS handshake came to nothing.
    pub handshakes_failed: AtomicU64,
    /// Connections closed because all clients together held too much.
    pub evicted: AtomicU64,
    held: AtomicUsize,
}

impl Clients {
    /// A new one, unless there are `max` already.
    pub fn enter(&self, max: usize, addr: String, laddr: String) -> Option<Arc<Client>> {
        let mut all = lock(&self.all);
        if all.len() >= max {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let now = Time::now();
        let client = Arc::new(Client {
            id: self.next.fetch_add(1, Ordering::Relaxed) + 1,
            addr,
            laddr,
            since: now,
            active: AtomicU64::new(now.0),
            db: AtomicU32::new(0),
            resp: AtomicU32::new(2),
            login: AtomicU64::new(0),
            command: AtomicU32::new(0),
            held: AtomicUsize::new(0),
            evicted: AtomicBool::new(false),
            words: Mutex::new(Words { user: "default".into(), ..Words::default() }),
            killed: AtomicBool::new(false),
            silenced: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            own_wanted: AtomicBool::new(false),
            lent: Mutex::default(),
            waker: Mutex::default(),
            gone: Semaphore::new(0),
        });
        all.insert(client.id, client.clone());
        Some(client)
    }

    /// Notes that the client has gone and its connection is closed.
    pub fn leave(&self, client: &Client) {
        lock(&self.all).remove(&client.id);
        self.hold(client, 0);
        client.gone.close();
    }

    /// Bytes held for all of them.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Notes the bytes now held for this client.
    pub fn hold(&self, client: &Client, bytes: usize) {
        self.replace(client, bytes);
        // Whoever evicts says so first and takes what was held second: of the two, the later one finds what is left.
        if client.evicted.load(Ordering::Acquire) {
            self.replace(client, 0);
        }
    }

    fn replace(&self, client: &Client, bytes: usize) -> usize {
        let before = client.held.swap(bytes, Ordering::AcqRel);
        // Modulo 2^64: sums of differences come out right in any order.
        self.held.fetch_add(bytes.wrapping_sub(before), Ordering::Relaxed);
        before
    }

    /// Ends those for whom most is held until all together hold no more than `most`. Each of them with its bytes.
    pub fn relieve(&self, most: usize) -> Vec<(Arc<Client>, usize)> {
        let all = lock(&self.all);
        let mut ended = Vec::new();
        while self.held() > most {
            let held = |client: &&Arc<Client>| client.held.load(Ordering::Acquire);
            let Some(largest) = all.values().max_by_key(held).filter(|client| held(client) > 0) else { break };
            largest.evicted.store(true, Ordering::Release);
            let bytes = self.replace(largest, 0);
            self.evicted.fetch_add(1, Ordering::Relaxed);
            largest.kill();
            ended.push((largest.clone(), bytes));
        }
        ended
    }

    /// Those here now, by id.
    pub fn all(&self) -> Vec<Arc<Client>> {
        lock(&self.all).values().cloned().collect()
    }

    /// The one with this number, as a client spells it.
    pub fn by_id(&self, id: &[u8]) -> Option<Arc<Client>> {
        let id: u64 = std::str::from_utf8(id).ok()?.parse().ok()?;
        lock(&self.all).get(&id).cloned()
    }

    /// The number of the one whose own connection has this number at the server.
    pub fn of_upstream(&self, id: i64) -> Option<u64> {
        lock(&self.all).values().find(|client| client.upstream_id() == Some(id)).map(|client| client.id)
    }

    /// Ends all that have this login.
    pub fn kill_login(&self, number: u64) {
        // The user of a raw session is known to the server alone, which closes its connection if need be.
        let has = |client: &&Arc<Client>| client.login.load(Ordering::Acquire) == number && !client.is_raw();
        lock(&self.all).values().filter(has).for_each(|client| client.kill());
    }

    /// How many are here.
    pub fn len(&self) -> usize {
        lock(&self.all).len()
    }

    /// Whether nobody is here.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many ever came.
    pub fn total(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }
}

/// Users, databases and protocols, numbered: cached replies belong to one of each.
#[derive(Default)]
pub struct Views(Mutex<HashMap<View, u32>>);

/// User, database, RESP3.
type View = (Vec<u8>, u32, bool);

impl Views {
    /// The number of this view; the same for the life of the process.
    #[expect(clippy::cast_possible_truncation, reason = "a view has a user's name: memory ends before the numbers do")]
    pub fn view_number(&self, user: &[u8], db: u32, resp3: bool) -> u32 {
        let mut views = lock(&self.0);
        let next = views.len() as u32;
        *views.entry((user.to_vec(), db, resp3)).or_insert(next)
    }

    /// The database of the view with this number.
    pub fn database(&self, number: u32) -> Option<u32> {
        lock(&self.0).iter().find(|(_, n)| **n == number).map(|((_, db, _), _)| *db)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[test]
    fn whoever_holds_most_goes_first() {
        let clients = Clients::default();
        let [small, large, larger] = [10, 500, 700].map(|bytes| {
            let client = clients.enter(9, String::new(), String::new()).expect("room");
            clients.hold(&client, bytes);
            client
        });
        assert_eq!((clients.held(), clients.relieve(1210).len()), (1210, 0), "at the bound");
        clients.hold(&small, 20);
        let ended = clients.relieve(1210);
        assert_eq!(ended.iter().map(|(client, bytes)| (client.id, *bytes)).collect::<Vec<_>>(), [(larger.id, 700)]);
        assert!(larger.killed() && !large.killed() && !small.killed());
        // Until it is gone, what its session says is not counted.
        clients.hold(&larger, 900);
        assert_eq!(clients.held(), 520);
        clients.leave(&larger);
        clients.hold(&large, 100);
        assert_eq!((clients.held(), clients.relieve(0).len(), clients.held()), (120, 2, 0));
        assert_eq!(clients.evicted.load(Ordering::Relaxed), 3);
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_has_said_once_whom_to_wake_is_woken_each_time() {
        let client = Clients::default().enter(1, String::new(), String::new()).expect("the only client");
        client.want_own();
        let woken = Arc::new(Wakes::default());
        client.wakes(&Waker::from(woken.clone()));
        client.want_own();
        client.drain();
        client.kill();
        assert!(client.own_wanted() && client.draining() && client.killed());
        assert_eq!(woken.0.load(Ordering::Relaxed), 3);
    }
}
