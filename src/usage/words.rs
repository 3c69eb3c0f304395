//! Owns which of AgentOS's event names and statuses say something about usage.
//! Agents, teams and workflows use the same words behind `""`, `"Team"` and `"Workflow"`.

use super::Terminal;

/// What an event says about usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// A run began or goes on.
    Began,
    /// A run goes on after a pause.
    Continued,
    /// A model call began.
    ModelStarted,
    /// A model call ended and says what it used.
    ModelCompleted,
    /// A run ended, if it is the run in question.
    Ended(Terminal),
    /// The stream itself failed.
    Broken,
    /// A frame whose event name stands in its data.
    Unnamed,
}

impl Word {
    /// Reads an event name; `None` for the many that say nothing (content, tool calls …).
    pub(super) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "RunStarted" | "TeamRunStarted" | "WorkflowStarted" => Self::Began,
            "RunContinued" | "TeamRunContinued" | "StepContinued" => Self::Continued,
            "ModelRequestStarted" | "TeamModelRequestStarted" => Self::ModelStarted,
            "ModelRequestCompleted" | "TeamModelRequestCompleted" => Self::ModelCompleted,
            "RunCompleted" | "TeamRunCompleted" | "WorkflowCompleted" => Self::Ended(Terminal::Completed),
            "RunPaused" | "TeamRunPaused" | "WorkflowPaused" => Self::Ended(Terminal::Paused),
            // agno 2.5.6 has no WorkflowPaused: the stream ends with the pause of the step, under
            // the workflow's own run id.
            "StepPaused" | "ConditionPaused" | "RouterPaused" => Self::Ended(Terminal::Paused),
            "RunCancelled" | "TeamRunCancelled" | "WorkflowCancelled" => Self::Ended(Terminal::Cancelled),
            "RunError" | "TeamRunError" | "WorkflowError" => Self::Ended(Terminal::Error),
            "error" => Self::Broken,
            "message" => Self::Unnamed,
            _ => return None,
        })
    }
}

impl Terminal {
    /// Reads the `status` of a stored run; `None` while it has not ended (`PENDING`, `RUNNING`).
    pub(super) fn of_status(status: &str) -> Option<Self> {
        match status {
            "COMPLETED" => Some(Self::Completed),
            "PAUSED" => Some(Self::Paused),
            "CANCELLED" => Some(Self::Cancelled),
            "ERROR" => Some(Self::Error),
            _ => None,
        }
    }
}
