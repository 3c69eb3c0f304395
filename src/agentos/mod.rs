//! Owns WHAT Tollbridge fronts: the catalogue of AgentOS operations, how a request is matched to
//! one, and AgentOS's own words. Does no IO and decides nothing about callers.
//! Invariant: every fact about an AgentOS operation stands in one row of `catalog`.

pub mod operation;

pub use operation::*;
