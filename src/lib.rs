//! nearside: a Redis-protocol caching proxy.
//!
//! Any Redis client points at it instead of at Redis. Reads that were read before are answered from the proxy's own
//! memory; everything else goes to the upstream Redis or Valkey, which tells every proxy what has changed.
//!
//! # The promise
//!
//! A read answered from the cache is as fresh as was asked for, and the proxy can prove it. Three rules carry that:
//!
//! 1. **A reply is stored only by a token that is still valid** when it arrives. An invalidation of the key, a local
//!    write or a lost link revokes it ([`cache::FillToken`]).
//! 2. **A write is acknowledged only when the cache reflects it**: its keys are dropped first; where its keys cannot be
//!    known, one barrier on the link has come back first, and hits are proven as of then ([`upstream::effect`]).
//! 3. **A hit is served only if the freshness clocks have passed the session's watermark** ([`clock`], [`coherence`]).
//!
//! | level | a hit is exact as of |
//! |---|---|
//! | `bounded` | at most `max_staleness` ago; no key ever goes back in time; writes through this proxy are seen at once |
//! | `causal` | also the latest thing this session has seen |
//! | `linearizable` | the request's arrival, as if Redis itself had answered |
//!
//! # The way of a request
//!
//! ```text
//! client ─► session ─► resp (scan) ─► command (plan) ─► cache ─► session ─► client       a hit: one task, no await
//!                                        └─► lane ─► reply ─► cache.fill(token) ─► session     a miss
//!                                        └─► lane ─► reply ─► cache.drop(keys) ─► session      a write
//! node ─► link ─► coherence ─► cache.drop(key) | cache.flush(epoch) | clock.advance(t)         an invalidation
//! ```
//!
//! # Threads
//!
//! The main thread accepts and deals connections to the workers. A worker owns its sessions, its lanes and its idle
//! dedicated connections; nothing of them is locked, and what the node says is heard between any few sessions. The link
//! has a thread of its own, so that a busy worker delays neither invalidations nor the clock. Shared by all:
//! [`shared::Shared`], which holds the cache, the clocks, the node.
//!
//! # The layers, from the top; nothing points up
//!
//! | module | the question it answers |
//! |---|---|
//! | [`verify`] | does a deployment keep the promise: `nearside verify`; of the rest it uses sockets and settings only |
//! | [`server`] | which sockets, which threads, when does it end |
//! | [`session`] | what becomes of one client's bytes, in order |
//! | [`admin`] | what can be seen from inside |
//! | [`shared`] | what do all threads share |
//! | [`upstream`] | which connection, what is sent, whose reply is this ([`upstream::connection`], [`upstream::fill`], [`upstream::effect`]) |
//! | [`topology`] | which server has what a request names |
//! | [`node`] | one server: where, as whom, what is known of it, what has changed there ([`node::link`], [`node::watch`], [`node::login`]) |
//! | [`audit`] | were the hits true |
//! | [`coherence`] | what do the link's events mean, what does a level ask of a hit |
//! | [`command`] | what does this request need, what may it change; pure |
//! | [`cache`] | what is kept, what may still be stored, what must go; no I/O, no clock reads |
//! | [`outbox`] | in which order do replies leave |
//! | [`clock`] | as of when is the cache known to be exact |
//! | [`resp`] | where do requests and replies begin and end |
//! | [`transport`], [`tls`], [`buffer`], [`time`], [`chance`], [`sync`], [`numbers`] | sockets, certificates and whom to believe, bytes on their way out, what time is it, what is left to chance, what threads share, numbers of another width |
//! | [`config`], [`embedded`], [`limits`], [`memory`], [`clients`], [`error`] | settings, the private server, open files, what the allocator keeps, who is connected, why it ends |
//! | [`logging`], [`panics`], [`bypass`] | where log lines go, what follows a panic, why the cache took no part in a read |
//!
//! # Words
//!
//! Each of them means this, everywhere in the code, its comments and the documents.
//!
//! The server and the connections to it:
//!
//! * **node**: the Redis or Valkey server behind the proxy ([`node::Node`]). The *upstream* is the node as its users see it.
//! * **session**: the task that serves one client's connection ([`session::Session`]).
//! * **stranger**: a session that has not logged in, and of which the node has not said yet whether it must.
//! * **guess**: a login with a wrong password ([`node::guesses`]).
//! * **ring**: proxies of which each is the next one's upstream; a handshake that comes back finds it.
//! * **view**: (user, database, protocol), numbered; a cached reply belongs to one.
//! * **lane**: a shared, pipelined connection to the node, for one user, protocol and database, in one thread.
//! * **dedicated connection**: a connection to the node that is lent to one session while its state needs one ([`upstream::dedicated::Loan`]).
//! * **loan**: a dedicated connection while a session has it, and what the session has said on it.
//! * **berth**: a lane's right to be open, counted over the process ([`upstream::capacity::Berths`]).
//! * **seat**: a dedicated connection's right to be open, counted likewise.
//! * **shelf**: the idle dedicated connections of one thread, as other threads see them when they need a seat.
//! * **rest**: the state of a lane that has no connection until it is needed again.
//! * **guest**: the connection on which a stranger's requests are put to the node ([`upstream::guest::Guest`]).
//! * **raw**: passed on unlooked at, in both directions ([`upstream::connection::Raw`]).
//! * **link**: the connection on which the node reports changed keys.
//! * **generation**: the number of the link's connection; each new one has another.
//! * **mode**: the way in which the node reports changes ([`coherence::standing::Mode`]).
//! * **armed**: of a lane: the node reports to the present generation of the link what is read there.
//!
//! Reads and what is kept of them:
//!
//! * **plan**: a command's route, its keys and its effect, before it is sent ([`command::Plan`]).
//! * **hit**: a read answered from the cache.
//! * **miss**: a read that the cache could have answered, and that goes upstream.
//! * **bypass**: a read in which the cache took no part, for one of the reasons of [`bypass::Bypass`].
//! * **entry**: all cached replies of one key, over commands, databases, users and protocols.
//! * **fill**: the storing of a reply to a miss; also the miss itself, from its request to that moment.
//! * **fill token**: the right to store the reply of one read ([`cache::FillToken`]).
//! * **permit**: of a fill: a fill token, and the word of the lane that the server reports changes of what it reads ([`upstream::permit`]).
//! * **in flight**: of a request: sent to the node, and not answered.
//! * **flight**: a read in flight whose reply others wait for instead of sending theirs.
//! * **revision**: how often the keys of one hash have changed; a fill of an earlier revision is not stored.
//! * **epoch**: raised by everything that empties the cache at once; what was stored in an earlier one is void.
//! * **void**: of a cached reply: never served again, though it takes memory until it is swept.
//! * **slot**: of a lane: its place among the clocks, which a [`clock::LaneStamp`] names with the incarnation of the lane.
//! * **doubt**: what the cache knows by hash of replies that it does not have: revisions and floors; of a login: that
//!   the node may judge it differently now.
//! * **sweep**: the walk over the cache that frees what is void or has expired.
//! * **share**: a part of the cache with an eviction of its own.
//! * **mortal**: of a field of a hash: with a time to live of its own.
//!
//! Freshness:
//!
//! * **level**: what a listener or a session demands of a hit ([`config::Level`]).
//! * **standing**: the levels that can be kept now, and why no stronger ones ([`coherence::standing::Standing`]).
//! * **freshness clock**: the send time of the last PING that has come back: everything acknowledged to anybody before
//!   it has been applied here.
//! * **watermark**: the time as of which a session's next hit must be fresh.
//! * **floor**: the time as of which the next reply about one key must be fresh, since somebody was told something newer than is kept.
//! * **barrier**: the wait until the freshness clock has passed the present ([`coherence::Coherence::barrier`]).
//! * **held reply**: a reply that waits for a barrier before the client is told.
//! * **effect**: what a command's reply does to the cache before the client is told ([`upstream::effect::Effect`]).
//! * **settle**: to apply an effect, as far as the server's reply says that the command was done.
//!
//! Replies:
//!
//! * **place**: the position of a reply in the order of its session ([`outbox::Place`]).
//! * **twin**: a place that gets the same reply as an earlier one.
//! * **told**: of a reply: sent to the client; of a client: having been sent it.
//! * **owed**: of a reply: not yet told, whether it has come or not.

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the documentation is for readers of the code: private items are always shown"
)]
// The code that is shipped, unlike tests, must not end a thread on purpose, and says of each number that changes its width or sign
// why nothing is lost. Exceptions carry their reason. `src/panics.rs` says what follows a panic all the same.
#![cfg_attr(
    not(test),
    warn(
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::unimplemented,
        clippy::get_unwrap,
        clippy::exit,
        clippy::mem_forget,
        clippy::cast_lossless,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss
    )
)]

mod admin;
mod audit;
mod buffer;
mod bypass;
mod cache;
mod chance;
mod clients;
mod clock;
mod coherence;
mod command;
pub mod config;
pub mod embedded;
pub mod error;
pub mod limits;
pub mod logging;
pub mod memory;
mod node;
mod numbers;
mod outbox;
pub mod panics;
mod resp;
mod sabotage;
pub mod server;
mod session;
mod shared;
mod sync;
#[cfg(not(feature = "program"))]
pub mod test_support;
mod time;
pub mod tls;
mod topology;
mod transport;
mod upstream;
pub mod verify;
