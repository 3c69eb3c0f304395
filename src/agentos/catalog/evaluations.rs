//! Owns the rows of evaluation runs.

use super::row::{delete, get, patch, post};
use crate::agentos::operation::{Operation, Reply, Resource, Triggers};

/// Where evaluation runs are kept.
const STORE: &[&str] = &["db_id", "table"];

// OS-wide, not owned: 2.5.6 records no owner, and a row holds what an agent said to whoever asked.
#[rustfmt::skip]
pub(super) static ROWS: &[Operation] = &[
    get("get_eval_runs", "/eval-runs")
        .on(Resource::Evaluation).scopes(&["evals:read"])
        .query(&["agent_id", "team_id", "workflow_id", "model_id", "type", "limit", "page", "sort_by", "sort_order",
                 "db_id", "table", "eval_types"]),
    post("run_eval", "/eval-runs")
        .on(Resource::Evaluation).model().scopes(&["evals:write"]).query(STORE)
        .json(&["agent_id", "team_id", "model_id", "model_provider", "eval_type", "input", "additional_guidelines",
                "additional_context", "num_iterations", "name", "expected_output", "criteria", "scoring_strategy",
                "threshold", "warmup_runs", "expected_tool_calls", "allow_additional_tool_calls",
                "expected_tool_call_arguments"])
        .triggers(Triggers::Components),
    delete("delete_eval_runs", "/eval-runs")
        .on(Resource::Evaluation).scopes(&["evals:delete"]).query(STORE).json(&["eval_run_ids"])
        .reply(Reply::Empty),
    get("get_eval_run", "/eval-runs/{eval_run_id}")
        .on(Resource::Evaluation).scopes(&["evals:read"]).query(STORE),
    patch("update_eval_run", "/eval-runs/{eval_run_id}")
        .on(Resource::Evaluation).scopes(&["evals:write"]).query(STORE).json(&["name"]),
];
