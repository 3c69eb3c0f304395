//! Owns THE PATH: a call becomes an admitted exchange, is forwarded, and settles. Both doors drive it.
//! Names no transport: no server types and no MCP types.
//! Invariant: nothing reaches AgentOS without an `Admitted`, and only `admit` makes one.

// In reading order: what comes in and goes out, how it is said, the stages, the way upstream.
mod call;
pub mod limits;
mod refusal;

mod body;
mod form;
mod json;
mod multipart;

mod exchange;
mod snapshot;
mod steer;
mod view;

mod address;
mod admit;
mod approvals;
mod arrival;
mod described;
mod facts;
mod ground;
mod knowledge;
mod learnings;
mod lines;
mod lookups;
mod sessions;
mod shape;
mod triggers;

mod explain;
mod trail;

mod cancel;
mod filter;
mod forward;
mod live;
mod once;
mod orphans;
mod runs;
mod send;
mod stream;
mod strip;
mod turns;

mod discover;
mod path;

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;

pub use crate::quota::{Correct, Unit};
pub use approvals::ApprovalSettings;
pub use call::{
    Answer, AnswerBody, BodyBroken, Call, Caller, Carrier, Inbound, LocalService, REQUEST_ID, StreamBody, request_id,
};
pub use exchange::CLIENT_CLOSED;
pub use limits::Limits;
pub use once::Once;
pub use path::{Gateway, Spawn};
pub use refusal::{Code, Loudness, Refusal, Row, Stage};
pub use snapshot::Snapshot;
pub use steer::{Unsteerable, UsageLine};
pub use trail::{Explanation, Remedy, Said, Step};
