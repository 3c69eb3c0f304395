//! Owns WHAT Tollbridge says about its work: access log, audit log and metrics.
//! Does not decide anything; the only module that names `prometheus`.
//! Invariant: one `ExchangeFinished` yields one access-log line and one count.

pub mod event;

pub use event::*;
