//! Owns WHAT a run cost: reads replies as they pass and sums model tokens by model.
//! Does not charge (`quota`), does not count metrics (`telemetry`), and never delays a byte.
//! Invariants: every model call is counted once, wherever it is nested; memory per reply is bounded.

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod meter;
mod node;
mod record;
mod reply;
#[cfg(test)]
mod tests;
mod words;

pub use meter::Meter;
pub use record::{MODELS_MAX, ModelUsage, UsageRecord};

/// The run that a reply belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSeen {
    /// Its id; for a workflow the workflow's, not a step's.
    pub run_id: String,
    /// Its session, once named.
    pub session_id: Option<String>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Terminal {
    /// It finished its work.
    Completed,
    /// It waits for a person; it may be continued.
    Paused,
    /// It was cancelled.
    Cancelled,
    /// It failed; AgentOS answers 200 all the same.
    Error,
}
