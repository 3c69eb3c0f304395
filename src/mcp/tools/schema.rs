//! Owns the input schemas of the tools, written out by hand.
//! Does not check arguments (`arguments` does, by type).
//! Invariants: no `$ref`, no nesting that clients stumble over, `additionalProperties: false` everywhere.

use serde_json::{Value, json};

use super::files::FILES_MAX;
use crate::agentos::operation::Kind;

/// Longest wait that a caller may ask for, in seconds.
pub(super) const WAIT_MAX: u64 = 600;
/// Most rows that a caller may ask for.
pub(super) const LIMIT_MAX: usize = 50;

pub(super) fn object(properties: Value, required: &[&str]) -> Value {
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

pub(super) fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

pub(super) fn kind(description: &str) -> Value {
    json!({"type": "string", "enum": ["agent", "team", "workflow"], "description": description})
}

fn run() -> Value {
    text("The `run` handle that run_agent returned.")
}

fn wait() -> Value {
    let description = "How long to wait for the end, in seconds. The default suits the client.";
    json!({"type": "integer", "minimum": 0, "maximum": WAIT_MAX, "description": description})
}

pub(super) fn limit(default: usize) -> Value {
    json!({"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": default})
}

/// Arguments that may all be left out.
pub(super) fn nothing_but(properties: Value) -> Value {
    object(properties, &[])
}

/// Files of a run.
pub(super) fn files() -> Value {
    json!({
        "type": "array",
        "maxItems": FILES_MAX,
        "description": "Files for the agent: each with `name`, `mime_type` and base64 `data`, or with the `uri` of what an \
            earlier run made (agno://runs/…/media/…). 2 MiB together.",
        "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "mime_type": {"type": "string"},
                "data": {"type": "string"},
                "uri": {"type": "string"},
            },
            "additionalProperties": false,
        },
    })
}

/// No arguments.
pub(super) fn nothing() -> Value {
    json!({"type": "object", "properties": {}, "additionalProperties": false})
}

pub(super) fn list_agents() -> Value {
    object(
        json!({"kind": kind("Only this kind."), "query": text("Only those whose id, name or description has this.")}),
        &[],
    )
}

pub(super) fn run_agent() -> Value {
    object(
        json!({
            "agent": text("Id of an agent, team or workflow, as list_agents gives it."),
            "message": text("What to do."),
            "kind": kind("Needed only when the id is ambiguous; saves a look-up."),
            "session_id": text("Continue this conversation; a new one otherwise."),
            "wait_s": wait(),
            "background": {"type": "boolean", "description": "Start the run and return its handle at once."},
            "files": files(),
        }),
        &["agent", "message"],
    )
}

/// A run of one component that the name of the tool says.
pub(super) fn ask(kind: Kind) -> Value {
    let mut properties = json!({
        "message": text("What to do."),
        "session_id": text("Continue this conversation; a new one otherwise."),
        "wait_s": wait(),
        "background": {"type": "boolean", "description": "Start the run and return its handle at once."},
    });
    if let (Value::Object(map), true) = (&mut properties, kind != Kind::Workflow) {
        map.insert("files".to_owned(), files());
    }
    object(properties, &["message"])
}

pub(super) fn get_run() -> Value {
    let offset = json!({"type": "integer", "minimum": 0, "description": "Where to go on reading a long answer."});
    object(json!({"run": run(), "wait_s": wait(), "offset": offset}), &["run"])
}

pub(super) fn run_only() -> Value {
    object(json!({"run": run()}), &["run"])
}

pub(super) fn continue_run() -> Value {
    object(
        json!({
            "run": run(),
            "confirm": {"type": "boolean", "description": "The user's answer to plain confirmations."},
            "inputs": {
                "type": "object",
                "description": "Values by field name, or results by tool call id, as the paused run asked for them.",
                "additionalProperties": true,
            },
        }),
        &["run"],
    )
}

pub(super) fn search_knowledge() -> Value {
    object(
        json!({
            "query": text("What to look for."),
            "knowledge": text("Id of one knowledge base, as list_knowledge gives it."),
            "limit": limit(10),
        }),
        &["query"],
    )
}

pub(super) fn list_approvals() -> Value {
    object(
        json!({
            "status": {"type": "string", "enum": ["pending", "approved", "rejected", "all"], "default": "pending"},
            "agent": text("Only those of this agent, team or workflow."),
        }),
        &[],
    )
}

pub(super) fn get_approval() -> Value {
    object(json!({"approval_id": text("As list_approvals or a paused run gives it.")}), &["approval_id"])
}

pub(super) fn resolve_approval() -> Value {
    object(
        json!({
            "approval_id": text("As list_approvals or a paused run gives it."),
            "decision": {"type": "string", "enum": ["approve", "reject"]},
            "note": text("Why, for the record."),
        }),
        &["approval_id", "decision"],
    )
}

pub(super) fn list_sessions() -> Value {
    object(json!({"kind": kind("Only sessions with this kind."), "limit": limit(20)}), &[])
}

pub(super) fn get_session() -> Value {
    object(json!({"session_id": text("As list_sessions gives it.")}), &["session_id"])
}
