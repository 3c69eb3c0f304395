//! Owns the tools about traces: what runs did, step by step.
//! Does not search with free expressions: those see every user.
//! Invariant: traces are of the caller's own runs.

use rmcp::model::CallToolResult;
use serde_json::{Value, json};

use super::arguments::{GetTrace, ListTraces, limit};
use super::gather::gather;
use super::{picked, structured};
use crate::mcp::ask::{Ask, Failure};
use crate::mcp::routes;
use crate::mcp::text::{self, RESULT_BYTES_MAX};
use crate::mcp::visit::{Visit, id_of};

/// Rows where the caller does not say how many.
pub(super) const LIMIT: usize = 20;
const FIELDS: &[&str] = &[
    "trace_id",
    "name",
    "status",
    "duration",
    "start_time",
    "total_spans",
    "error_count",
    "input",
    "run_id",
    "session_id",
    "agent_id",
    "team_id",
    "workflow_id",
];

pub(super) async fn list_traces(visit: &Visit, arguments: ListTraces) -> Result<CallToolResult, Failure> {
    let limit = limit(arguments.limit, LIMIT)?.to_string();
    let run = arguments.run.map(|run| visit.run(&run)).transpose()?;
    let session = arguments.session_id.map(|id| id_of("session_id", &id)).transpose()?;
    let mut query = vec![("limit", limit.as_str())];
    query.extend(run.as_ref().map(|run| ("run_id", run.run_id.as_str())));
    query.extend(session.as_deref().map(|id| ("session_id", id)));
    let clusters = visit.clusters_or(run.as_ref().map(|run| run.cluster.clone()))?;
    let questions = clusters.into_iter().map(|cluster| {
        let ask = Ask { query: &query, ..Ask::plain(routes::TRACES, &cluster, &[]) };
        (cluster, ask)
    });
    let gathered = gather(&visit.asker, questions.collect()).await.or_failure()?;
    let traces: Vec<Value> =
        gathered.answers.iter().flat_map(|(cluster, page)| picked(visit, cluster, page, FIELDS)).collect();
    let mut result = json!({"traces": traces});
    gathered.mention_failures(&mut result, std::iter::empty());
    Ok(structured(result, "traces"))
}

pub(super) async fn get_trace(visit: &Visit, arguments: GetTrace) -> Result<CallToolResult, Failure> {
    let (cluster, id) = visit.place_or_default("trace_id", &arguments.trace_id)?;
    let ids = [id.as_str()];
    let trace = visit.asker.json(&Ask::plain(routes::TRACE, &cluster, &ids)).await?;
    // A tree of spans has no list that could give way: what is too long is cut as text.
    let whole = trace.to_string();
    if whole.len() > RESULT_BYTES_MAX / 2 {
        return Ok(structured(json!({"truncated": true, "trace": text::head(&whole, RESULT_BYTES_MAX / 4)}), ""));
    }
    Ok(structured(json!({"trace": trace}), ""))
}
