//! Owns the words of AgentOS runs: event names of agents, teams and workflows, and run states.
//! Does not read event payloads (`usage`).

use std::fmt;

use serde_json::Value;

use super::operation::Kind;

/// How a run stopped, for now or for good, as its last event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    /// It finished.
    Completed,
    /// It waits for a confirmation, an input or an approval.
    Paused,
    /// It was cancelled. 3.x sends a completion after it.
    Cancelled,
    /// It failed.
    Error,
}

/// The state of a run as AgentOS stores and reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunStatus {
    /// Accepted in the background, not started.
    Pending,
    /// In progress.
    Running,
    /// Waits for a confirmation, an input or an approval.
    Paused,
    /// Finished.
    Completed,
    /// Cancelled.
    Cancelled,
    /// Failed; the reply is a 200 all the same.
    Error,
    /// Finished, then replaced by a regenerated run (3.x).
    Regenerated,
}

/// Names of events that end a stream, with the level of the run that they end.
///
/// The last three are the last events of a paused workflow in 2.x; 3.x sends `WorkflowPaused` after them.
const ENDINGS: &[(&str, Kind, Ending)] = &[
    ("RunCompleted", Kind::Agent, Ending::Completed),
    ("RunPaused", Kind::Agent, Ending::Paused),
    ("RunCancelled", Kind::Agent, Ending::Cancelled),
    ("RunError", Kind::Agent, Ending::Error),
    ("TeamRunCompleted", Kind::Team, Ending::Completed),
    ("TeamRunPaused", Kind::Team, Ending::Paused),
    ("TeamRunCancelled", Kind::Team, Ending::Cancelled),
    ("TeamRunError", Kind::Team, Ending::Error),
    ("WorkflowCompleted", Kind::Workflow, Ending::Completed),
    ("WorkflowPaused", Kind::Workflow, Ending::Paused),
    ("WorkflowCancelled", Kind::Workflow, Ending::Cancelled),
    ("WorkflowError", Kind::Workflow, Ending::Error),
    ("StepPaused", Kind::Workflow, Ending::Paused),
    ("RouterPaused", Kind::Workflow, Ending::Paused),
    ("ConditionPaused", Kind::Workflow, Ending::Paused),
];

/// How the run stopped, if the event says that it did, and what kind of run it was.
///
/// Inside a team or a workflow the runs of members end too: an ending counts for a stream only when its kind is
/// the kind of the run that was started.
pub fn ending(event: &str) -> Option<(Kind, Ending)> {
    ENDINGS.iter().find(|(name, ..)| *name == event).map(|(_, kind, ending)| (*kind, *ending))
}

/// Whether the event ends a run of some kind, for now or for good.
pub fn is_terminal(event: &str) -> bool {
    ending(event).is_some()
}

/// Whether the event says that a run waits for somebody.
pub fn is_paused(event: &str) -> bool {
    matches!(ending(event), Some((_, Ending::Paused)))
}

/// Whether the event says that a run failed. `error` is what AgentOS sends when it could not even start one.
pub fn is_error(event: &str) -> bool {
    event == "error" || matches!(ending(event), Some((_, Ending::Error)))
}

/// Whether the event says that a run was cancelled.
pub fn is_cancelled(event: &str) -> bool {
    matches!(ending(event), Some((_, Ending::Cancelled)))
}

/// Whether the event closes one model call: the only one that carries tokens once per call, at every level.
pub fn is_model_completed(event: &str) -> bool {
    matches!(event, "ModelRequestCompleted" | "TeamModelRequestCompleted")
}

/// Whether the event opens a run or continues one: the first to carry the run's id and its session's.
pub fn is_started(event: &str) -> bool {
    matches!(event, "RunStarted" | "TeamRunStarted" | "WorkflowStarted")
        || matches!(event, "RunContinued" | "TeamRunContinued" | "StepContinued")
}

// === impl RunStatus ===

impl RunStatus {
    /// Every state.
    pub const ALL: &'static [Self] =
        &[Self::Pending, Self::Running, Self::Paused, Self::Completed, Self::Cancelled, Self::Error, Self::Regenerated];

    /// The word of AgentOS.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Paused => "PAUSED",
            Self::Completed => "COMPLETED",
            Self::Cancelled => "CANCELLED",
            Self::Error => "ERROR",
            Self::Regenerated => "REGENERATED",
        }
    }

    /// The state of a word, in either case.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|status| status.as_str().eq_ignore_ascii_case(word))
    }

    /// The state of a stored run.
    pub fn of(row: &Value) -> Option<Self> {
        row.get("status").and_then(Value::as_str).and_then(Self::parse)
    }

    /// Whether no model works for the run any more. A paused run is idle, not over: it may be continued.
    pub const fn is_idle(self) -> bool {
        match self {
            Self::Pending | Self::Running => false,
            Self::Paused | Self::Completed | Self::Cancelled | Self::Error | Self::Regenerated => true,
        }
    }
}

impl fmt::Display for RunStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nested_ending_names_its_own_kind() {
        assert_eq!(ending("RunCompleted"), Some((Kind::Agent, Ending::Completed)));
        assert_eq!(ending("TeamRunPaused"), Some((Kind::Team, Ending::Paused)));
        assert_eq!(ending("WorkflowCancelled"), Some((Kind::Workflow, Ending::Cancelled)));
        assert_eq!(ending("RunContentCompleted"), None);
        assert_eq!(ending("StepCompleted"), None);
    }

    #[test]
    fn event_words_answer_one_question_each() {
        assert!(is_terminal("RunError") && is_error("RunError") && is_error("error"));
        assert!(!is_terminal("error"), "the run may have ended long before, or never begun");
        assert!(is_paused("StepPaused") && is_paused("RunPaused") && !is_paused("RunCompleted"));
        assert!(is_cancelled("TeamRunCancelled") && !is_cancelled("RunError"));
        assert!(is_model_completed("TeamModelRequestCompleted") && !is_model_completed("ModelRequestStarted"));
        assert!(is_started("WorkflowStarted") && is_started("RunContinued") && !is_started("StepStarted"));
    }

    #[test]
    fn every_run_status_reads_back() {
        for status in RunStatus::ALL {
            assert_eq!(RunStatus::parse(status.as_str()), Some(*status));
        }
        assert_eq!(RunStatus::parse("completed"), Some(RunStatus::Completed));
        assert_eq!(RunStatus::parse("DONE"), None);
        assert!(RunStatus::Paused.is_idle() && !RunStatus::Pending.is_idle());
    }
}
