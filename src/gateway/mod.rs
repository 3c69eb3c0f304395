//! Owns THE PATH: a call becomes an admitted exchange, is forwarded, and settles. Both doors drive it.
//! Names no transport: no server types and no MCP types.
//! Invariant: nothing reaches AgentOS without an `Admitted`, and only `admit` makes one.

pub mod call;
pub mod limits;

pub use call::*;
pub use limits::Limits;
