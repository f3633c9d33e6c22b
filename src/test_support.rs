//! The parts of nearside that its tests, benches and examples reach into; the program itself uses none of this. Everything that
//! is neither here nor public at the crate's root is private, so that the compiler finds code that nothing uses.

/// From `src/buffer.rs`.
pub mod buffer {
    pub use crate::buffer::OutBuf;
}

/// From `src/cache.rs`.
pub mod cache {
    pub use crate::cache::{Begin, Cache, FillTimes, FillToken, FlushCause, Lookup};

    /// From `src/cache/entry.rs`.
    pub mod entry {
        pub use crate::cache::entry::{CachedReply, Variant};
    }
}

/// From `src/clock.rs`.
pub mod clock {
    pub use crate::clock::LaneStamp;
}

/// From `src/coherence.rs`.
pub mod coherence {
    /// From `src/coherence/standing.rs`.
    pub mod standing {
        pub use crate::coherence::standing::Mode;
    }
}

/// From `src/command.rs`.
pub mod command {
    pub use crate::command::{CacheRead, CommandTable, EffectClass, FieldTtl, GET_ID, Keys, Plan, Request, Route};
}

/// From `src/resp.rs`.
pub mod resp {
    pub use crate::resp::{Cutter, Scan, Scanner, encode, inline_args, split_aggregate, split_bulk, value_len};
}

/// From `src/sabotage.rs`.
pub mod sabotage {
    pub use crate::sabotage::{Rule, in_this_thread};
}

/// From `src/session.rs`.
pub mod session {
    pub use crate::session::run;
}

/// From `src/shared.rs`.
pub mod shared {
    pub use crate::shared::{Presence, Shared};
}

/// From `src/time.rs`.
pub mod time {
    pub use crate::time::Time;
    pub use crate::time::begin_simulation;
}

/// From `src/transport.rs`.
pub mod transport {
    pub use crate::transport::{Endpoint, Stream};
}

/// From `src/node.rs`.
pub mod node {
    /// From `src/node/event.rs`.
    pub mod event {
        pub use crate::node::event::LinkEvent;
    }

    /// From `src/node/link.rs`.
    pub mod link {
        pub use crate::node::link::run;
    }

    /// From `src/node/watch.rs`.
    pub mod watch {
        pub use crate::node::watch::run;
    }
}

/// From `src/upstream.rs`.
pub mod upstream {
    pub use crate::upstream::Pool;
}

/// From `src/verify.rs`.
pub mod verify {
    /// From `src/verify/drive.rs`.
    pub mod drive {
        pub use crate::verify::drive::{Mix, Site, TestClient, Way};
    }

    /// From `src/verify/history.rs`.
    pub mod history {
        pub use crate::verify::history::{History, RouteUnderTest, Span};
    }

    /// From `src/verify/judge.rs`.
    pub mod judge {
        pub use crate::verify::judge::{Findings, PROMISES, Rules, Violation, judge, promise_name};
    }

    /// From `src/verify/wire.rs`.
    pub mod wire {
        pub use crate::verify::wire::Target;
    }

    /// From `src/verify/work.rs`.
    pub mod work {
        pub use crate::verify::work::{FieldTtls, KINDS, ObjectKind};
    }
}
