//! The parts of nearside that its tests, benches and examples reach into; the program itself uses none of this. Everything that
//! is neither here nor public at the crate's root is private, so that the compiler finds code that nothing uses.

/// See `src/buffer.rs`.
pub mod buffer {
    pub use crate::buffer::OutBuf;
}

/// See `src/cache.rs`.
pub mod cache {
    pub use crate::cache::{Begin, Cache, FillTimes, FillToken, FlushCause, Lookup};

    /// See `src/cache/entry.rs`.
    pub mod entry {
        pub use crate::cache::entry::{CachedReply, Variant};
    }
}

/// See `src/clock.rs`.
pub mod clock {
    pub use crate::clock::LaneStamp;
}

/// See `src/coherence.rs`.
pub mod coherence {
    /// See `src/coherence/standing.rs`.
    pub mod standing {
        pub use crate::coherence::standing::Mode;
    }
}

/// See `src/command.rs`.
pub mod command {
    pub use crate::command::{CacheRead, Effect, FieldTtl, GET_ID, Keys, Plan, Request, Route, Table};
}

/// See `src/resp.rs`.
pub mod resp {
    pub use crate::resp::{Cutter, Scan, Scanner, encode, inline_args, split_aggregate, split_bulk, value_len};
}

/// See `src/sabotage.rs`.
pub mod sabotage {
    pub use crate::sabotage::{Rule, in_this_thread};
}

/// See `src/session.rs`.
pub mod session {
    pub use crate::session::run;
}

/// See `src/shared.rs`.
pub mod shared {
    pub use crate::shared::{Presence, Shared};
}

/// See `src/time.rs`.
pub mod time {
    pub use crate::time::Time;
    pub use crate::time::begin_simulation;
}

/// See `src/transport.rs`.
pub mod transport {
    pub use crate::transport::{Endpoint, Stream};
}

/// See `src/upstream.rs`.
pub mod upstream {
    pub use crate::upstream::Pool;

    /// See `src/upstream/event.rs`.
    pub mod event {
        pub use crate::upstream::event::Event;
    }

    /// See `src/upstream/link.rs`.
    pub mod link {
        pub use crate::upstream::link::run;
    }

    /// See `src/upstream/watch.rs`.
    pub mod watch {
        pub use crate::upstream::watch::run;
    }
}

/// See `src/verify.rs`.
pub mod verify {
    /// See `src/verify/drive.rs`.
    pub mod drive {
        pub use crate::verify::drive::{Client, Mix, Site, Way};
    }

    /// See `src/verify/history.rs`.
    pub mod history {
        pub use crate::verify::history::{History, Route, Span};
    }

    /// See `src/verify/judge.rs`.
    pub mod judge {
        pub use crate::verify::judge::{Findings, PROMISES, Rules, Violation, judge, name};
    }

    /// See `src/verify/wire.rs`.
    pub mod wire {
        pub use crate::verify::wire::Target;
    }

    /// See `src/verify/work.rs`.
    pub mod work {
        pub use crate::verify::work::{FieldTtls, KINDS, Kind};
    }
}
