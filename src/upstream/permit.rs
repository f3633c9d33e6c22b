//! The right to keep the reply to a read: asked for once, before the read is sent, in the only order that is right.
//!
//! The order matters. `Cache::begin` notes the key's revision and the cache's epoch; only then is the lane asked whether the server
//! reports changes of what it reads *now* (`Connection::refusal`), and the mode whether it reports this key. If that changes
//! later, the epoch goes on and the permit is void. Asked the other way round, a lane could lose its tracking between the two answers, and a
//! permit of the new epoch would keep a reply of which no change is reported.

use std::sync::Arc;

use super::connection::Connection;
use super::fill::FillPermit;
use crate::bypass::{Bypass, REQUEST_MAX};
use crate::cache::entry::Variant;
use crate::cache::{Begin, InFlight};
use crate::command::FieldTtl;
use crate::time::Time;

/// The answer to a request for a permit.
pub enum Permission {
    /// The reply may be kept, and nobody else is reading the same.
    Granted(FillPermit),
    /// Another read of the same is on its way. It lands when its reply is kept, or will not be.
    InFlight(Arc<InFlight>),
    /// The reply is not kept.
    Refused(Bypass),
}

/// The read whose reply is to be kept.
pub struct ReadToKeep<'a> {
    /// Hash of the key.
    pub hash: u64,
    /// Identity under which the reply would be kept.
    pub variant: Variant<'a>,
    /// Bytes of the request.
    pub request: usize,
    /// How the reply depends on fields of a hash.
    pub field_ttl: FieldTtl,
}

/// Why the reply to this read must not be kept, if it is sent on `lane` now.
pub fn refusal(lane: &Connection, asked: &ReadToKeep<'_>, now: Time) -> Option<Bypass> {
    let node = lane.node();
    let mortal = || asked.field_ttl == FieldTtl::Whole && node.coherence.mortal.in_hash(asked.hash, now);
    if asked.request > REQUEST_MAX {
        return Some(Bypass::RequestTooLong);
    }
    lane.refusal(asked.field_ttl)
        .or_else(|| (!node.covers(asked.variant.key)).then_some(Bypass::Prefix))
        .or_else(|| mortal().then_some(Bypass::MortalFields))
}

impl FillPermit {
    /// Asks for the right to keep the reply to a read that is then sent on `lane`.
    pub fn ask(lane: &Connection, asked: &ReadToKeep<'_>, now: Time) -> Permission {
        // No token is taken for a read that cannot be kept anyway: others would wait for it.
        if asked.request > REQUEST_MAX {
            return Permission::Refused(Bypass::RequestTooLong);
        }
        let token = match lane.node().coherence.cache.begin(asked.hash, &asked.variant) {
            Begin::Lead(token) => token,
            Begin::Join(flight) => return Permission::InFlight(flight),
        };
        match refusal(lane, asked, now) {
            Some(reason) => Permission::Refused(reason),
            None => Permission::Granted(FillPermit::of(token)),
        }
    }
}
