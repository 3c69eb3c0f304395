//! Owns what the fake answers when a test scripts nothing: a small AgentOS with two agents, a team and a workflow.
//! Does not stream slowly and never fails; a test that needs that scripts a reply.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::reply::{Event, Reply};
use super::{Line, Recorded};

/// What the fake remembers between requests.
#[derive(Debug, Default)]
pub(super) struct World {
    runs: BTreeMap<String, Value>,
    approvals: BTreeMap<String, Value>,
}

/// The reply of a healthy AgentOS.
pub(super) fn answer(world: &mut World, line: Line, request: &Recorded) -> Reply {
    let segments: Vec<&str> = request.path().trim_matches('/').split('/').collect();
    match (request.method.as_str(), segments.as_slice()) {
        ("GET", ["health"]) => ok(json!({"status": "ok", "instantiated_at": "2026-01-01T00:00:00Z"})),
        ("GET", ["info"]) if line == Line::V3 => ok(json!({"os_id": "my-os", "agno_version": "3.1.10"})),
        ("GET", ["info"]) => Reply::detail(404, "Not Found"),
        ("GET", ["openapi.json"]) => ok(openapi(line)),
        ("GET", ["config"]) => ok(json!({"os_id": "my-os", "agents": components("agents")})),
        ("GET", [kind @ ("agents" | "teams" | "workflows")]) => ok(components(kind)),
        ("GET", [kind @ ("agents" | "teams" | "workflows"), id]) => component(kind, id),
        ("POST", [kind @ ("agents" | "teams" | "workflows"), id, "runs"]) => start_run(world, line, kind, id, request),
        ("GET", ["agents" | "teams" | "workflows", _, "runs", run]) => found(world.runs.get(*run), "Run not found"),
        ("POST", ["agents" | "teams" | "workflows", _, "runs", _, "cancel"]) => ok(json!({})),
        ("POST", [_, _, "runs", run, "continue"]) => continue_run(world, run),
        ("GET", ["sessions"]) => ok(page(vec![json!({"session_id": "s-1", "session_name": "First"})])),
        ("GET", ["sessions", id]) => ok(json!({"session_id": id, "user_id": "acme~alice"})),
        ("DELETE", ["sessions", _]) => Reply::empty(204),
        ("GET", ["approvals"]) => ok(page(world.approvals.values().cloned().collect())),
        ("GET", ["approvals", id]) => found(world.approvals.get(*id), "Approval not found"),
        ("POST", ["approvals", id, "resolve"]) => resolve(world, id, request),
        ("POST", ["knowledge", "search"]) => ok(page(vec![json!({"id": "doc-1", "content": "What the fake knows."})])),
        _ => Reply::detail(404, "Not Found"),
    }
}

fn ok(body: Value) -> Reply {
    Reply::json(200, &body)
}

fn found(row: Option<&Value>, otherwise: &str) -> Reply {
    row.map_or_else(|| Reply::detail(404, otherwise), |row| Reply::json(200, row))
}

fn page(data: Vec<Value>) -> Value {
    let count = data.len();
    json!({"data": data, "meta": {"page": 1, "limit": 20, "total_pages": 1, "total_count": count, "search_time_ms": 0.5}})
}

fn openapi(line: Line) -> Value {
    let paths = match line {
        Line::V2 => json!({"/models": {}, "/agents": {}}),
        Line::V3 => json!({"/info": {}, "/agents": {}}),
    };
    json!({"openapi": "3.1.0", "info": {"title": "Fake AgentOS", "version": "1.0.0"}, "paths": paths})
}

fn components(kind: &str) -> Value {
    let ids: &[&str] = match kind {
        "agents" => &["assistant", "records"],
        "teams" => &["newsroom"],
        _ => &["daily-report"],
    };
    ids.iter().map(|id| json!({"id": id, "name": id, "description": format!("The fake {id}.")})).collect()
}

fn component(kind: &str, id: &str) -> Reply {
    let listed = components(kind);
    let one = listed.as_array().unwrap().iter().find(|one| one["id"] == id);
    // Every kind runs `records`, which pauses.
    let unlisted = json!({"id": "records"});
    found(one.or((id == "records").then_some(&unlisted)), "Not Found")
}

fn start_run(world: &mut World, line: Line, kind: &str, id: &str, request: &Recorded) -> Reply {
    let form = request.form();
    let Some(message) = form.get("message") else { return Reply::detail(422, "message is missing") };
    let run = form.get("run_id").map_or_else(|| format!("run-{}", world.runs.len() + 1), str::to_owned);
    let mut row = json!({
        "run_id": run,
        format!("{}_id", kind.trim_end_matches('s')): id,
        "session_id": form.get("session_id").unwrap_or("s-1"),
        "user_id": form.get("user_id"),
        "content": format!("echo: {message}"),
        "status": if id == "records" { "PAUSED" } else { "COMPLETED" },
        "metrics": {
            "input_tokens": 3, "output_tokens": 2, "total_tokens": 5,
            "details": {"model": [{"id": "fake", "input_tokens": 3, "output_tokens": 2, "total_tokens": 5}]},
        },
    });
    if id == "records" {
        row["tools"] = json!([{
            "tool_call_id": "call-1", "tool_name": "delete_record", "tool_args": {"record_id": "42"}, "result": null,
            "requires_confirmation": true, "confirmed": null, "approval_type": "required",
            "approval_id": format!("approval-{run}"),
        }]);
        let approval = json!({
            "id": format!("approval-{run}"), "run_id": run, "session_id": row["session_id"], "agent_id": id,
            "user_id": row["user_id"], "status": "pending", "approval_type": "required", "tool_name": "delete_record",
            "tool_args": {"record_id": "42"}, "source_type": "agent",
        });
        world.approvals.insert(format!("approval-{run}"), approval);
    }
    world.runs.insert(run, row.clone());
    match (form.get("background"), form.get("stream")) {
        (Some("true"), Some("false")) => Reply::json(202, &row),
        // Only 3.x streams what it runs in the background.
        (Some("true"), _) if line == Line::V2 => Reply::json(202, &row),
        (_, Some("false")) => ok(row),
        _ => Reply::sse(&run_events(kind, &row)),
    }
}

/// The events of a short run of any kind.
pub(super) fn run_events(kind: &str, row: &Value) -> Vec<Event> {
    let names: &[&str] = match (kind, row["status"] == "PAUSED") {
        ("agents", true) => &["RunStarted", "RunPaused"],
        ("agents", false) => &[
            "RunStarted",
            "ModelRequestStarted",
            "RunContent",
            "ModelRequestCompleted",
            "RunContentCompleted",
            "RunCompleted",
        ],
        ("teams", _) => &["TeamRunStarted", "TeamRunContent", "TeamModelRequestCompleted", "TeamRunCompleted"],
        _ => &[
            "WorkflowStarted",
            "StepStarted",
            "RunContent",
            "ModelRequestCompleted",
            "StepCompleted",
            "WorkflowCompleted",
        ],
    };
    names
        .iter()
        .map(|name| {
            let mut data = json!({"run_id": row["run_id"], "session_id": row["session_id"]});
            if name.contains("Content") || name.ends_with("RunCompleted") || *name == "WorkflowCompleted" {
                data["content"] = row["content"].clone();
            }
            if *name == "RunPaused" {
                data["tools"] = row["tools"].clone();
            }
            if name.ends_with("ModelRequestCompleted") {
                data["model"] = "fake".into();
                data["input_tokens"] = 3.into();
                data["output_tokens"] = 2.into();
            }
            Event::new(name, data)
        })
        .collect()
}

fn continue_run(world: &mut World, run: &str) -> Reply {
    let Some(row) = world.runs.get_mut(run) else { return Reply::detail(404, "Run not found") };
    row["status"] = "COMPLETED".into();
    Reply::json(200, row)
}

fn resolve(world: &mut World, id: &str, request: &Recorded) -> Reply {
    let Some(row) = world.approvals.get_mut(id) else { return Reply::detail(404, "Approval not found") };
    let Ok(body) = serde_json::from_slice::<Value>(&request.body) else { return Reply::detail(422, "no JSON") };
    if row["status"] != "pending" {
        return Reply::detail(409, &format!("Approval is already '{}' and cannot be resolved", row["status"]));
    }
    row["status"] = body["status"].clone();
    row["resolved_by"] = body["resolved_by"].clone();
    Reply::json(200, row)
}
