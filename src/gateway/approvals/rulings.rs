//! Owns what approvals say about the tools of a run: approved, rejected, or nothing yet.
//! Does not fetch rows (`approvals`) and does not act on them (`answers`).
//! Invariant: only an approved row of the run itself, about the very call that is stored, opens a tool; everything
//! else, also what cannot be read, leaves it pending.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::waiting::{items, needs_approval, string};

/// An approval row, as far as it decides.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Row {
    id: Option<String>,
    run_id: Option<String>,
    status: Option<String>,
    approval_type: Option<String>,
    expires_at: Option<Value>,
    resolved_at: Option<Value>,
    resolution_data: Option<Value>,
    requirements: Option<Value>,
}

/// The rows of a run, and the time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rows {
    rows: Vec<Row>,
    /// Seconds since 1970.
    now: u64,
    /// How long a decision counts.
    valid_for: Option<Duration>,
}

/// What a row says about one tool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Ruling<'a> {
    /// Nobody has decided, or there is no row to decide by.
    Pending,
    /// Somebody said no.
    Rejected {
        /// The row.
        id: &'a str,
    },
    /// Somebody said yes.
    Approved {
        /// The row.
        id: &'a str,
        /// What the approver filled in, by field name; `result` is the result of a tool that runs elsewhere.
        values: Option<&'a Map<String, Value>>,
    },
}

// === impl Rows ===

impl Rows {
    pub(crate) fn new(rows: Vec<Row>, now: u64, valid_for: Option<Duration>) -> Self {
        // Audit rows are notes about what happened, written after the fact.
        let rows = rows.into_iter().filter(|row| row.approval_type.as_deref() != Some("audit")).collect();
        Self { rows, now, valid_for }
    }

    /// Says whether any of these runs ever asked for an approval.
    pub(crate) fn any_of(&self, runs: &[&str]) -> bool {
        self.rows.iter().any(|row| row.is_of(runs))
    }

    /// What decides this tool call; `None` when no approval does.
    pub(crate) fn ruling(&self, tool: &Value, runs: &[&str]) -> Option<Ruling<'_>> {
        let row = self.row_of(tool, runs);
        if row.is_none() && !needs_approval(tool) {
            return None;
        }
        let Some(row) = row.filter(|row| row.covers(tool)) else { return Some(Ruling::Pending) };
        let id = row.id.as_deref().unwrap_or_default();
        Some(match row.status.as_deref() {
            Some("approved") if !row.expired(self.now, self.valid_for) => Ruling::Approved { id, values: row.values() },
            Some("rejected") => Ruling::Rejected { id },
            Some(_) | None => Ruling::Pending,
        })
    }

    /// The row that the tool names, else one that lists the call.
    fn row_of(&self, tool: &Value, runs: &[&str]) -> Option<&Row> {
        let mut of_run = self.rows.iter().filter(|row| row.is_of(runs));
        match string(tool, "approval_id") {
            Some(id) => of_run.find(|row| row.id.as_deref() == Some(id)),
            None => of_run.find(|row| row.listed(tool).is_some()),
        }
    }
}

// === impl Row ===

impl Row {
    fn is_of(&self, runs: &[&str]) -> bool {
        self.run_id.as_deref().is_some_and(|run| runs.contains(&run))
    }

    /// The call as it stood when the approval was asked for.
    fn listed(&self, tool: &Value) -> Option<&Value> {
        let id = string(tool, "tool_call_id")?;
        let listed = self.requirements.as_ref().and_then(Value::as_array)?;
        listed
            .iter()
            .filter_map(|item| item.get("tool_execution"))
            .find(|call| string(call, "tool_call_id") == Some(id))
    }

    /// Whoever approved saw these arguments.
    fn covers(&self, tool: &Value) -> bool {
        self.listed(tool).is_none_or(|call| {
            ["tool_name", "tool_args"].iter().all(|name| call.get(name).is_none_or(|seen| Some(seen) == tool.get(name)))
        })
    }

    /// AgentOS writes times as seconds since 1970. One that cannot be read has passed.
    fn expired(&self, now: u64, valid_for: Option<Duration>) -> bool {
        let now = now as f64;
        let over = match &self.expires_at {
            None | Some(Value::Null) => false,
            Some(at) => at.as_f64().is_none_or(|at| at <= now),
        };
        let stale = valid_for.is_some_and(|valid_for| {
            let decided = self.resolved_at.as_ref().and_then(Value::as_f64);
            decided.is_none_or(|at| at + valid_for.as_secs_f64() <= now)
        });
        over || stale
    }

    /// AgentOS reads `values` if it is there, else the data itself.
    fn values(&self) -> Option<&Map<String, Value>> {
        let data = self.resolution_data.as_ref()?.as_object()?;
        Some(data.get("values").and_then(Value::as_object).unwrap_or(data))
    }
}

/// The rows of a page of `GET /approvals`; `None` when it is no such page.
pub(crate) fn page(list: &Value) -> Option<Vec<Row>> {
    list.get("data")?.as_array()?;
    items(list, "data").iter().map(|row| Row::deserialize(row).ok()).collect()
}
