//! Owns the tools about approvals.
//! Does not resume a run: resolving only writes the row, `continue_run` goes on.
//! Invariant: who resolved is set by the gateway, never by arguments.

use std::sync::Arc;

use rmcp::model::{CallToolResult, ContentBlock};
use serde_json::{Map, Value, json};

use super::arguments::{Decision, GetApproval, ListApprovals, ResolveApproval, StatusWord};
use super::gather::gather;
use super::structured;
use crate::agentos::operation::Kind;
use crate::mcp::ask::{Ask, AskBody, Failure};
use crate::mcp::routes;
use crate::mcp::text;
use crate::mcp::visit::Visit;

const ARGUMENTS_CHARS_MAX: usize = 1_000;
const NOTE_CHARS_MAX: usize = 2_000;

pub(super) async fn list_approvals(visit: &Visit, arguments: ListApprovals) -> Result<CallToolResult, Failure> {
    let place = arguments.agent.map(|agent| visit.place("agent", &agent)).transpose()?;
    let (cluster, agent) = place.map_or((None, None), |(cluster, id)| (cluster, Some(id)));
    let status = match arguments.status.unwrap_or(StatusWord::Pending) {
        StatusWord::Pending => Some("pending"),
        StatusWord::Approved => Some("approved"),
        StatusWord::Rejected => Some("rejected"),
        StatusWord::All => None,
    };
    let mut query = vec![("limit", "100")];
    query.extend(status.map(|status| ("status", status)));
    let questions = visit.clusters_or(cluster)?.into_iter().map(|cluster| {
        let ask = Ask { query: &query, ..Ask::plain(routes::APPROVALS, &cluster, &[]) };
        (cluster, ask)
    });
    let gathered = gather(&visit.asker, questions.collect()).await.or_failure()?;
    let rows = gathered.answers.iter().flat_map(|(cluster, page)| {
        let rows = page.get("data").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        rows.iter().map(move |row| (cluster, row))
    });
    let of_agent = |row: &Value| agent.as_ref().is_none_or(|agent| component(row).is_some_and(|(_, id)| id == agent));
    let rows: Vec<Value> =
        rows.filter(|(_, row)| of_agent(row)).map(|(c, row)| describe(visit, c, row, ARGUMENTS_CHARS_MAX)).collect();
    let mut result = json!({"approvals": rows});
    gathered.mention_failures(&mut result, std::iter::empty());
    Ok(structured(result, "approvals"))
}

pub(super) async fn get_approval(visit: &Visit, arguments: GetApproval) -> Result<CallToolResult, Failure> {
    let (cluster, id) = visit.place_or_default("approval_id", &arguments.approval_id)?;
    let ids = [id.as_str()];
    let row = visit.asker.json(&Ask::plain(routes::APPROVAL, &cluster, &ids)).await?;
    // Whoever decides must see the whole call.
    Ok(structured(describe(visit, &cluster, &row, text::RESULT_BYTES_MAX / 4), ""))
}

pub(super) async fn resolve_approval(visit: &Visit, arguments: ResolveApproval) -> Result<CallToolResult, Failure> {
    let (cluster, id) = visit.place_or_default("approval_id", &arguments.approval_id)?;
    let (status, did) = match arguments.decision {
        Decision::Approve => ("approved", "approved"),
        Decision::Reject => ("rejected", "rejected"),
    };
    let mut body = json!({"status": status});
    if let (Value::Object(map), Some(note)) = (&mut body, arguments.note.filter(|note| !note.trim().is_empty())) {
        map.insert("resolution_data".to_owned(), json!({"note": text::head(&note, NOTE_CHARS_MAX)}));
    }
    let ids = [id.as_str()];
    let ask = Ask { body: AskBody::Json(body), ..Ask::plain(routes::RESOLVE, &cluster, &ids) };
    let row = visit.asker.json(&ask).await?;
    let tool = row.get("tool_name").and_then(Value::as_str).map(text::line).unwrap_or_default();
    let name = visit.name(&cluster, &id);
    let text = format!(
        "Approval `{name}` of {tool} is {did}. The run stays paused until whoever started it calls continue_run."
    );
    Ok(CallToolResult::success(vec![ContentBlock::text(text)]))
}

fn describe(visit: &Visit, cluster: &Arc<str>, row: &Value, arguments_chars: usize) -> Value {
    let string = |name: &str| row.get(name).and_then(Value::as_str);
    let mut out = Map::new();
    out.insert("approval_id".to_owned(), json!(visit.name(cluster, string("id").unwrap_or_default())));
    for (field, value) in [("status", string("status")), ("tool", string("tool_name"))] {
        out.extend(value.map(|value| (field.to_owned(), json!(value))));
    }
    if let Some(arguments) = row.get("tool_args").filter(|arguments| !arguments.is_null()) {
        let whole = arguments.to_string();
        let fits = whole.chars().nth(arguments_chars).is_none();
        let shown = if fits { arguments.clone() } else { Value::String(text::head(&whole, arguments_chars)) };
        out.insert("arguments".to_owned(), shown);
    }
    if let Some((kind, id)) = component(row) {
        out.insert("agent".to_owned(), json!(visit.name(cluster, id)));
        out.insert("kind".to_owned(), json!(kind.as_str()));
    }
    let rest = [("requested_by", "user_id"), ("resolved_by", "resolved_by"), ("session_id", "session_id")];
    for (field, name) in rest {
        out.extend(string(name).map(|value| (field.to_owned(), json!(value))));
    }
    for (field, name) in [("created_at", "created_at"), ("resolved_at", "resolved_at"), ("note", "resolution_data")] {
        out.extend(row.get(name).filter(|v| !v.is_null()).map(|value| (field.to_owned(), value.clone())));
    }
    Value::Object(out)
}

/// The component whose run asked.
fn component(row: &Value) -> Option<(Kind, &str)> {
    let of = |kind: Kind, field: &str| Some((kind, row.get(field)?.as_str().filter(|id| !id.is_empty())?));
    of(Kind::Workflow, "workflow_id").or_else(|| of(Kind::Team, "team_id")).or_else(|| of(Kind::Agent, "agent_id"))
}
