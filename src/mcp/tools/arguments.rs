//! Owns the arguments of the tools as types, and the errors that a model can mend.
//! Does not know what tools do with them.
//! Invariant: an unknown or mistyped argument is refused by name.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::schema::{LIMIT_MAX, WAIT_MAX};
use crate::agentos::operation::Kind;
use crate::mcp::ask::Failure;
use crate::mcp::text;

/// No answer is longer.
const OFFSET_MAX: f64 = 1e9;

/// Reads arguments.
///
/// # Errors
/// A [`Failure::Argument`] that names what is wrong.
pub(super) fn of<T: DeserializeOwned>(arguments: Value) -> Result<T, Failure> {
    serde_json::from_value(arguments).map_err(|error| {
        Failure::Argument(format!("the arguments do not fit: {}", text::head(&error.to_string(), 300)))
    })
}

/// No arguments.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KindWord {
    Agent,
    Team,
    Workflow,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListAgents {
    pub(super) kind: Option<KindWord>,
    pub(super) query: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RunAgent {
    pub(super) agent: String,
    pub(super) message: String,
    pub(super) kind: Option<KindWord>,
    pub(super) session_id: Option<String>,
    pub(super) wait_s: Option<f64>,
    #[serde(default)]
    pub(super) background: Option<bool>,
    #[serde(default)]
    pub(super) files: Vec<FileArgument>,
}

/// One of the files of a run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileArgument {
    pub(super) name: Option<String>,
    pub(super) mime_type: Option<String>,
    pub(super) data: Option<String>,
    pub(super) uri: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GetRun {
    pub(super) run: String,
    pub(super) wait_s: Option<f64>,
    pub(super) offset: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RunOnly {
    pub(super) run: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ContinueRun {
    pub(super) run: String,
    pub(super) confirm: Option<bool>,
    pub(super) inputs: Option<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SearchKnowledge {
    pub(super) query: String,
    pub(super) knowledge: Option<String>,
    pub(super) limit: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum StatusWord {
    Pending,
    Approved,
    Rejected,
    All,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListApprovals {
    pub(super) status: Option<StatusWord>,
    pub(super) agent: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GetApproval {
    pub(super) approval_id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Decision {
    Approve,
    Reject,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResolveApproval {
    pub(super) approval_id: String,
    pub(super) decision: Decision,
    pub(super) note: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListSessions {
    pub(super) kind: Option<KindWord>,
    pub(super) limit: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GetSession {
    pub(super) session_id: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListMemories {
    pub(super) query: Option<String>,
    pub(super) limit: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AddMemory {
    pub(super) memory: String,
    pub(super) topics: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListTraces {
    pub(super) run: Option<String>,
    pub(super) session_id: Option<String>,
    pub(super) limit: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GetTrace {
    pub(super) trace_id: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GetMetrics {
    pub(super) from: Option<String>,
    pub(super) to: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListSchedules {
    pub(super) limit: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateSchedule {
    pub(super) name: String,
    pub(super) agent: String,
    pub(super) kind: Option<KindWord>,
    pub(super) message: String,
    pub(super) cron: String,
    pub(super) timezone: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SetSchedule {
    pub(super) schedule_id: String,
    pub(super) enabled: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AddKnowledge {
    pub(super) name: String,
    pub(super) text: String,
    pub(super) description: Option<String>,
    pub(super) knowledge: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KnowledgeStatus {
    pub(super) content_id: String,
    pub(super) knowledge: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListComponents {
    pub(super) kind: Option<KindWord>,
    pub(super) limit: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListRegistry {
    pub(super) limit: Option<f64>,
}

impl From<KindWord> for Kind {
    fn from(word: KindWord) -> Self {
        match word {
            KindWord::Agent => Self::Agent,
            KindWord::Team => Self::Team,
            KindWord::Workflow => Self::Workflow,
        }
    }
}

/// The wait that was asked for, or the default. JSON has one kind of number, so `50.0` is fine.
///
/// # Errors
/// When it is out of range.
pub(super) fn wait(asked: Option<f64>, default: Duration) -> Result<Duration, Failure> {
    let Some(seconds) = asked else { return Ok(default) };
    let wait = Duration::try_from_secs_f64(seconds).ok().filter(|wait| *wait <= Duration::from_secs(WAIT_MAX));
    wait.ok_or_else(|| Failure::Argument(format!("`wait_s` must be between 0 and {WAIT_MAX}")))
}

/// The character that a part of an answer begins at.
///
/// # Errors
/// When it is out of range.
pub(super) fn offset(asked: Option<f64>) -> Result<usize, Failure> {
    let Some(asked) = asked else { return Ok(0) };
    let whole = asked.fract() == 0.0 && (0.0..=OFFSET_MAX).contains(&asked);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be whole and in range")]
    let offset = asked as usize;
    if whole {
        Ok(offset)
    } else {
        Err(Failure::Argument("`offset` must be a whole number, as a result gave it".to_owned()))
    }
}

/// The number of rows that was asked for, or the default.
///
/// # Errors
/// When it is out of range.
pub(super) fn limit(asked: Option<f64>, default: usize) -> Result<usize, Failure> {
    let Some(asked) = asked else { return Ok(default) };
    #[allow(clippy::cast_precision_loss, reason = "LIMIT_MAX is small")]
    let found = (1..=LIMIT_MAX).find(|n| *n as f64 == asked);
    found.ok_or_else(|| Failure::Argument(format!("`limit` must be a whole number from 1 to {LIMIT_MAX}")))
}

/// A text that must say something.
///
/// # Errors
/// When it is blank.
pub(super) fn said<'a>(what: &str, text: &'a str) -> Result<&'a str, Failure> {
    if text.trim().is_empty() { Err(Failure::Argument(format!("`{what}` must not be empty"))) } else { Ok(text) }
}

/// A day as AgentOS takes it.
///
/// # Errors
/// When it is none.
pub(super) fn day(what: &str, text: Option<String>) -> Result<Option<String>, Failure> {
    let plain = |text: &str| {
        text.len() == 10
            && text.bytes().enumerate().all(|(at, b)| if matches!(at, 4 | 7) { b == b'-' } else { b.is_ascii_digit() })
    };
    match text {
        Some(text) if !plain(&text) => Err(Failure::Argument(format!("`{what}` must be a day such as 2026-11-26"))),
        other => Ok(other),
    }
}
