//! Owns WHAT Tollbridge fronts: the catalogue of AgentOS operations, how a request is matched to
//! one, and AgentOS's own words. Does no IO and decides nothing about callers.
//! Invariant: every fact about an AgentOS operation stands in one row of `catalog`.

pub mod catalog;
pub mod events;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod matching;
pub mod operation;
pub mod path;
pub mod query;
pub mod rows;
pub mod sse;

pub use catalog::{Catalog, CatalogError, Problem};
pub use events::RunStatus;
pub use matching::{Matched, NotMatched, Params};
pub use operation::*;
pub use path::{BadPath, CanonicalPath, decode_segment, encode_segment};
pub use query::{Query, QueryError};
pub use sse::{Event, SseEvents};
