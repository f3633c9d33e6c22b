//! The identities that connections speak as. A [`Login`] stands for everybody whom the server itself has verified as one user: their
//! sessions share lanes and dedicated connections, whichever of the user's passwords each of them gave.
//!
//! Invariants:
//! * A session gets a user's login only by a connection on which the server has just accepted its AUTH ([`Logins::enter`]),
//!   and the proxy's own login only while the server accepts a new connection that says what the upstream's address says
//!   ([`prove`](super::handshake::prove)). Until then a session is a [stranger](Login::is_stranger), for whom no connection is ever opened.
//! * A login ends when its user is deleted ([`Logins::end`]): its sessions are closed, and whoever logs in by the same name
//!   later gets another login, so nobody rides on what a namesake may do. A login that began after the server was asked, and did
//!   not have the user, may be the namesake's: the next look decides. `test_namesakes.py`.
//!
//! Accepted window: that the ACL has changed is noticed by [`watch`](super::watch), or at once if the command comes through this
//! proxy. Until then the last proof holds, and a deleted user's sessions go on.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;

use crate::config::Upstream;
use crate::time::Time;

/// Passwords remembered of one user: those that are good at the same time while they are rotated.
const PASSWORDS: usize = 4;

/// A refusal is believed for so long: whether strangers are let in again is asked this often, if any of them asks.
const REFUSAL_HOLDS: Duration = Duration::from_millis(250);

/// Said of a connection that cannot be had because its login is refused: no client expects such an error, so sessions
/// that need the connection end instead.
pub const SHUT_OUT: &[u8] = b"-ERR nearside: the user of this connection cannot log in any more\r\n";

/// Whether the server refuses who asks, rather than the question.
pub fn is_login_refusal(reply: &[u8]) -> bool {
    reply.starts_with(b"-WRONGPASS") || reply.starts_with(b"-NOAUTH")
}

/// A verified user.
pub struct Login {
    user: Vec<u8>,
    number: u64,
    kind: LoginKind,
    /// When the server had accepted its first AUTH.
    since: Time,
    /// In the clear, for as long as the login is used; the latest that was verified comes first.
    passwords: Mutex<Vec<Vec<u8>>>,
    ended: AtomicBool,
    /// When the server last closed a connection of it, as it does when the user is deleted; 0: it has not, or for another reason.
    cut: AtomicU64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LoginKind {
    /// Nobody yet.
    Stranger,
    /// Connections begin without AUTH.
    Silent,
    /// Connections begin with AUTH.
    Named,
}

impl PartialEq for Login {
    fn eq(&self, other: &Login) -> bool {
        self.number == other.number
    }
}

impl Eq for Login {}

impl Hash for Login {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.number.hash(state);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Login {
    fn new(user: &[u8], number: u64, kind: LoginKind, password: Option<&[u8]>) -> Arc<Login> {
        let passwords = Mutex::new(password.map(<[u8]>::to_vec).into_iter().collect());
        Arc::new(Login {
            user: user.to_vec(),
            number,
            kind,
            since: Time::now(),
            passwords,
            ended: AtomicBool::new(false),
            cut: AtomicU64::new(0),
        })
    }

    /// The user's name, as the cache tells users apart.
    pub fn user(&self) -> &[u8] {
        &self.user
    }

    /// Different for each login of the process.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Nobody whom the server has accepted: no connection speaks as a stranger, and nothing is cached for one.
    pub fn is_stranger(&self) -> bool {
        self.kind == LoginKind::Stranger
    }

    /// Whether its user has been deleted.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// The server has closed a connection of it: perhaps the user is deleted, so whoever logs in from here on by this name is
    /// somebody else until the watch has looked.
    pub fn cut(&self) {
        self.cut.store(Time::now().0, Ordering::Release);
    }

    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire) != 0
    }

    /// Credentials to begin a connection with, the likeliest first: user and password, or nothing.
    pub fn attempts(&self) -> Vec<Option<(Vec<u8>, Vec<u8>)>> {
        match self.kind {
            LoginKind::Named => lock(&self.passwords).iter().map(|p| Some((self.user.clone(), p.clone()))).collect(),
            LoginKind::Silent | LoginKind::Stranger => vec![None],
        }
    }

    /// Whether the server has accepted this password lately, and perhaps still does: who says it does not guess. Compared in a
    /// time that does not tell how much of it is right.
    fn knows(&self, text: &[u8]) -> bool {
        let is = |known: &Vec<u8>| {
            let differs = |i: usize, byte: u8| byte ^ known.get(i).copied().unwrap_or(!byte);
            let all = text.iter().enumerate().fold(0, |all, (i, byte)| std::hint::black_box(all | differs(i, *byte)));
            all == 0 && known.len() == text.len()
        };
        lock(&self.passwords).iter().fold(false, |found, known| is(known) | found)
    }

    /// The server has just accepted this password.
    pub fn accepted(&self, password: &[u8]) {
        let mut passwords = lock(&self.passwords);
        if passwords.first().is_none_or(|first| first != password) {
            passwords.retain(|other| other != password);
            passwords.insert(0, password.to_vec());
            passwords.truncate(PASSWORDS);
        }
    }
}

/// The server's word on new connections of the proxy's own login.
#[derive(Clone)]
pub(super) enum Proof {
    Accepted,
    /// At this time, in these words.
    Refused(Time, Bytes),
}

/// Whether the proxy's own login is accepted, as far as is known.
#[derive(Default)]
pub(super) struct Proven {
    /// The proof, and the doubts known of at the time ([`Logins::doubts`]); `None`: nothing is proven.
    pub(super) proof: Option<(u64, Proof)>,
    /// When the server could not be asked for the last time, and why.
    pub(super) failed: Option<(Time, Bytes)>,
}

/// Why logins of a user end.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// The server had no such user when it answered what it was asked at this time, so a login from before is of a deleted one.
    Deleted {
        /// When the question was sent, or the command that deletes the user.
        asked: Time,
    },
    /// Perhaps deleted and made anew: logins of which the server has closed a connection end.
    Anew,
}

/// The outcome of [`Logins::end`].
#[derive(Default)]
pub struct Ended {
    /// The logins that end.
    pub logins: Vec<Arc<Login>>,
    /// Whether others began since the server was asked: of the deleted user, or of the next of its name. The next look tells.
    pub undecided: bool,
}

/// All logins of one node.
pub struct Logins {
    /// The login in the upstream's address: of the proxy itself, and of sessions until they say AUTH.
    own: Arc<Login>,
    stranger: Arc<Login>,
    users: Mutex<HashMap<Vec<u8>, Vec<Weak<Login>>>>,
    next: AtomicU64,
    /// How often users were deleted.
    ends: AtomicU64,
    /// How often it has become doubtful whether the server still takes new connections of `own`.
    doubts: AtomicU64,
    /// AUTHs and HELLOs with a password that the server was asked about, and how many of them on a new connection.
    pub asked: AtomicU64,
    /// See `asked`.
    pub connected: AtomicU64,
    proven: Mutex<Proven>,
    /// One asks the server, the others wait for what it says.
    pub(super) proving: tokio::sync::Mutex<()>,
}

impl Logins {
    /// With the login that this upstream's address names, and no other.
    pub fn new(upstream: &Upstream) -> Logins {
        let user = upstream.username.as_deref().unwrap_or("default").as_bytes();
        let own = match &upstream.password {
            Some(password) => Login::new(user, 1, LoginKind::Named, Some(password.as_bytes())),
            None => Login::new(b"default", 1, LoginKind::Silent, None),
        };
        Logins {
            own,
            stranger: Login::new(b"default", 0, LoginKind::Stranger, None),
            users: Mutex::default(),
            next: AtomicU64::new(2),
            ends: AtomicU64::new(0),
            doubts: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            connected: AtomicU64::new(0),
            proven: Mutex::default(),
            proving: tokio::sync::Mutex::default(),
        }
    }

    /// The login of the proxy's own connections.
    pub fn own(&self) -> &Arc<Login> {
        &self.own
    }

    /// Whether the server has refused whoever does not log in, as far as is known.
    pub fn shut_out(&self) -> bool {
        matches!(lock(&self.proven).proof, Some((_, Proof::Refused(..))))
    }

    /// The login of a session that begins now: that of the upstream's address if the server is known to take it, else a stranger's.
    pub fn first(&self) -> &Arc<Login> {
        match self.proof() {
            Some(Proof::Accepted) => &self.own,
            _ => &self.stranger,
        }
    }

    /// Takes the proxy's own login for accepted: the benches count instructions without a server that could say so.
    #[cfg_attr(feature = "program", expect(dead_code, reason = "a bench has no server"))]
    pub fn suppose_accepted(&self) {
        lock(&self.proven).proof = Some((self.doubts.load(Ordering::Acquire), Proof::Accepted));
    }

    /// The server's word, unless it has become doubtful or is too old.
    pub(super) fn proof(&self) -> Option<Proof> {
        let proven = lock(&self.proven);
        let (as_of, proof) = proven.proof.as_ref()?;
        let fresh = match proof {
            Proof::Accepted => true,
            Proof::Refused(at, _) => Time::now().since(*at) < REFUSAL_HOLDS,
        };
        (fresh && *as_of == self.doubts.load(Ordering::Acquire)).then(|| proof.clone())
    }

    /// The server may judge new connections differently from here on. Sessions that have begun go on.
    pub fn doubt(&self) {
        self.doubts.fetch_add(1, Ordering::AcqRel);
    }

    /// How often it has become doubtful so far.
    pub(super) fn doubts(&self) -> u64 {
        self.doubts.load(Ordering::Acquire)
    }

    /// The state of the proof, to be changed by who asks the server.
    pub(super) fn proven(&self) -> MutexGuard<'_, Proven> {
        lock(&self.proven)
    }

    /// How often logins were ended: to be asked before the AUTH is sent that [`Logins::enter`] is told of.
    pub fn ends(&self) -> u64 {
        self.ends.load(Ordering::Acquire)
    }

    /// The login of a user whose password the server has accepted. `None`: a user was deleted
    /// meanwhile, perhaps this one, and the server is to be asked again.
    pub fn enter(&self, user: &[u8], password: &[u8], ends: u64) -> Option<Arc<Login>> {
        let mut users = lock(&self.users);
        // Under the lock that `end` holds as well: an end after this finds the login.
        if self.ends() != ends {
            return None;
        }
        // Users that came and went leave nothing behind.
        users.retain(|_, same| {
            same.retain(|login| login.strong_count() > 0);
            !same.is_empty()
        });
        let same = users.entry(user.to_vec()).or_default();
        if let Some(login) = same.iter().rev().filter_map(Weak::upgrade).find(|login| !login.is_cut()) {
            login.accepted(password);
            return Some(login);
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let login = Login::new(user, number, LoginKind::Named, Some(password));
        same.push(Arc::downgrade(&login));
        Some(login)
    }

    /// The login of a user who is known, by a password that was accepted before. That it still is, only the server can say.
    pub fn known(&self, user: &[u8], password: &[u8]) -> Option<Arc<Login>> {
        let users = lock(&self.users);
        let mut same = users.get(user)?.iter().rev().filter_map(Weak::upgrade);
        same.find(|login| !login.is_cut()).filter(|login| login.knows(password))
    }

    /// The users that have logins.
    pub fn users(&self) -> Vec<Vec<u8>> {
        lock(&self.users).keys().cloned().collect()
    }

    /// Logins of this user end, as `end` says: the sessions that have them are to be closed. The others may be of the next of
    /// that name: no session joins them until the watch has looked again.
    pub fn end(&self, user: &[u8], end: End) -> Ended {
        let mut users = lock(&self.users);
        self.ends.fetch_add(1, Ordering::AcqRel);
        let Some(same) = users.get_mut(user) else { return Ended::default() };
        let all = same.iter().filter_map(Weak::upgrade);
        let (logins, kept): (Vec<_>, Vec<_>) = all.partition(|login| match end {
            End::Deleted { asked } => login.since < asked,
            End::Anew => login.is_cut(),
        });
        *same = kept.iter().map(Arc::downgrade).collect();
        logins.iter().for_each(|login| login.ended.store(true, Ordering::Release));
        let undecided = matches!(end, End::Deleted { .. }) && !kept.is_empty();
        if undecided {
            kept.iter().for_each(|login| login.cut());
        }
        Ended { logins, undecided }
    }

    /// The user is what it was when the server was asked, at this time: what the server closed before, it closed for another reason.
    pub fn still(&self, user: &[u8], asked: Time) {
        for login in lock(&self.users).get(user).into_iter().flatten().filter_map(Weak::upgrade) {
            let earlier = |cut| (cut < asked.0).then_some(0);
            let _ = login.cut.fetch_update(Ordering::AcqRel, Ordering::Relaxed, earlier);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logins() -> Logins {
        Logins::new(&"redis://127.0.0.1:6379".parse().expect("an address"))
    }

    fn passwords(login: &Login) -> Vec<Vec<u8>> {
        login.attempts().into_iter().flatten().map(|(_, password)| password).collect()
    }

    /// Seen to be deleted by a question asked from here on.
    fn deleted() -> End {
        End::Deleted { asked: Time(Time::now().0 + 1) }
    }

    #[test]
    fn a_login_that_began_after_the_question_is_decided_by_the_next() {
        let logins = logins();
        let asked = Time::now();
        let bob = logins.enter(b"bob", b"pw", 0).expect("a login");
        let first = logins.end(b"bob", End::Deleted { asked });
        assert!(first.logins.is_empty() && first.undecided && bob.is_cut() && !bob.ended());
        let next = logins.end(b"bob", deleted());
        assert!(next.logins == std::slice::from_ref(&bob) && !next.undecided);
    }

    #[test]
    fn all_of_one_user_share_a_login_and_the_latest_password_comes_first() {
        let logins = logins();
        let first = logins.enter(b"bob", b"old", 0).expect("a login");
        let second = logins.enter(b"bob", b"new", 0).expect("a login");
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(passwords(&first), [b"new".to_vec(), b"old".to_vec()]);
        assert!(logins.enter(b"eve", b"new", 0).expect("a login") != first);
        for n in 0..3000 {
            logins.enter(b"bob", n.to_string().as_bytes(), 0).expect("a login");
        }
        assert_eq!(passwords(&first).len(), PASSWORDS);
    }

    #[test]
    fn a_namesake_of_a_deleted_user_has_another_login() {
        let logins = logins();
        let first = logins.enter(b"bob", b"old", logins.ends()).expect("a login");
        let before = logins.ends();
        assert!(logins.end(b"bob", deleted()).logins == std::slice::from_ref(&first) && first.ended());
        assert!(logins.enter(b"bob", b"old", before).is_none(), "the server's word is older than the end");
        let second = logins.enter(b"bob", b"new", logins.ends()).expect("a login");
        assert!(second != first && !second.ended());
    }

    #[test]
    fn whoever_logs_in_after_the_server_has_closed_connections_is_kept_apart() {
        let logins = logins();
        let enter = || logins.enter(b"bob", b"pw", logins.ends()).expect("a login");
        let first = enter();
        first.cut();
        let second = enter();
        assert!(first != second && second == enter());
        assert_eq!(passwords(&first).len(), 1);
        assert!(logins.end(b"bob", End::Anew).logins == std::slice::from_ref(&first) && !second.ended());
        second.cut();
        logins.still(b"bob", Time::ZERO);
        assert!(second.is_cut(), "asked before that");
        logins.still(b"bob", Time(Time::now().0 + 1));
        assert!(second == enter());
    }

    #[test]
    fn a_login_that_nobody_uses_is_forgotten() {
        let logins = logins();
        drop(logins.enter(b"bob", b"old", 0));
        let again = logins.enter(b"bob", b"new", 0).expect("a login");
        assert_eq!(passwords(&again), [b"new".to_vec()]);
        assert!(logins.end(b"eve", deleted()).logins.is_empty());
    }

    #[test]
    fn whoever_begins_is_a_stranger_until_the_server_has_taken_one() {
        let logins = logins();
        assert!(logins.first().is_stranger());
        lock(&logins.proven).proof = Some((0, Proof::Accepted));
        assert!(!logins.first().is_stranger());
        logins.doubt();
        assert!(logins.first().is_stranger());
    }

    #[test]
    fn a_known_password_is_known_as_a_whole() {
        let logins = logins();
        let bob = logins.enter(b"bob", b"pw", 0).expect("a login");
        let known = |password: &[u8]| logins.known(b"bob", password).is_some();
        assert!(known(b"pw") && !known(b"p") && !known(b"pwx") && !known(b"") && !known(b"qw"));
        assert!(logins.known(b"eve", b"pw").is_none());
        bob.cut();
        assert!(!known(b"pw"), "perhaps bob is somebody else now");
        drop(bob);
        assert!(!known(b"pw"), "nobody is left");
    }
}
