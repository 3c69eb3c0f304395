//! Owns the table of the tools that clients get only when they ask for their toolset.
//! Does not hold what a tool does.
//! Invariants: as those of the main table; nothing here deletes.

use serde_json::{Value, json};

use super::schema::{kind, limit, nothing_but, object, text};
use super::{Hint, Needs, Tool, admin, memory, schedules, traces};
use crate::mcp::narrowing::Toolset;

/// By name.
pub(super) static TOOLS: &[Tool] = &[
    Tool {
        name: "add_knowledge",
        toolsets: &[Toolset::KnowledgeWrite],
        title: "Add knowledge",
        description: "Add a text to a knowledge base. It can be searched once knowledge_status says completed.",
        schema: add_knowledge,
        hint: Hint::Adds,
        needs: Needs::Operation(&["upload_content"]),
    },
    Tool {
        name: "add_memory",
        toolsets: &[Toolset::Memory],
        title: "Add a memory",
        description: "Remember something about the user, for all agents that look at memories.",
        schema: add_memory,
        hint: Hint::Adds,
        needs: Needs::Operation(&["create_memory"]),
    },
    Tool {
        name: "create_schedule",
        toolsets: &[Toolset::Schedules],
        title: "Plan runs",
        description: "Let an agent, team or workflow run with a message at times that a cron expression names.",
        schema: create_schedule,
        hint: Hint::Adds,
        needs: Needs::Operation(&["create_schedule"]),
    },
    Tool {
        name: "get_metrics",
        toolsets: &[Toolset::Metrics],
        title: "Show usage",
        description: "Show runs, sessions, users and tokens of the whole AgentOS by day.",
        schema: get_metrics,
        hint: Hint::Reads,
        needs: Needs::Operation(&["get_metrics"]),
    },
    Tool {
        name: "get_trace",
        toolsets: &[Toolset::Traces],
        title: "Show a trace",
        description: "Show what one run did, step by step.",
        schema: get_trace,
        hint: Hint::Reads,
        needs: Needs::Operation(&["get_trace"]),
    },
    Tool {
        name: "knowledge_status",
        toolsets: &[Toolset::KnowledgeWrite],
        title: "Ask for added knowledge",
        description: "Say whether added text can be searched yet.",
        schema: knowledge_status,
        hint: Hint::Reads,
        needs: Needs::Operation(&["get_content_status"]),
    },
    Tool {
        name: "list_components",
        toolsets: &[Toolset::Admin],
        title: "List components",
        description: "List the agents, teams and workflows that are stored in AgentOS, with their versions.",
        schema: list_components,
        hint: Hint::Reads,
        needs: Needs::Operation(&["list_components"]),
    },
    Tool {
        name: "list_memories",
        toolsets: &[Toolset::Memory],
        title: "List memories",
        description: "List what agents remember about the user.",
        schema: list_memories,
        hint: Hint::Reads,
        needs: Needs::Operation(&["get_memories"]),
    },
    Tool {
        name: "list_registry",
        toolsets: &[Toolset::Admin],
        title: "List the registry",
        description: "List the tools, models and other parts that components of this AgentOS can be made of.",
        schema: list_registry,
        hint: Hint::Reads,
        needs: Needs::Operation(&["list_registry"]),
    },
    Tool {
        name: "list_schedules",
        toolsets: &[Toolset::Schedules],
        title: "List planned runs",
        description: "List the runs that AgentOS starts by the clock.",
        schema: list_schedules,
        hint: Hint::Reads,
        needs: Needs::Operation(&["list_schedules"]),
    },
    Tool {
        name: "list_traces",
        toolsets: &[Toolset::Traces],
        title: "List traces",
        description: "List the traces of your latest runs, or of one run or session.",
        schema: list_traces,
        hint: Hint::Reads,
        needs: Needs::Operation(&["get_traces"]),
    },
    Tool {
        name: "set_schedule",
        toolsets: &[Toolset::Schedules],
        title: "Pause or resume planned runs",
        description: "Turn the runs of a schedule on or off.",
        schema: set_schedule,
        hint: Hint::Sets,
        needs: Needs::Operation(&["enable_schedule", "disable_schedule"]),
    },
];

fn add_knowledge() -> Value {
    let properties = json!({
        "name": text("What the text is called."),
        "text": text("The text itself."),
        "description": text("What it is about."),
        "knowledge": text("Id of one knowledge base, as list_knowledge gives it."),
    });
    object(properties, &["name", "text"])
}

fn add_memory() -> Value {
    let topics = json!({"type": "array", "items": {"type": "string"}, "description": "What it is about."});
    object(json!({"memory": text("What to remember, as a sentence."), "topics": topics}), &["memory"])
}

fn create_schedule() -> Value {
    let properties = json!({
        "name": text("Its name; no other schedule may have it."),
        "agent": text("Id of an agent, team or workflow, as list_agents gives it."),
        "kind": kind("Needed only when the id is ambiguous."),
        "message": text("What to do each time."),
        "cron": text("When, as five cron fields."),
        "timezone": text("Such as Europe/Rome; UTC otherwise."),
    });
    object(properties, &["name", "agent", "message", "cron"])
}

fn get_metrics() -> Value {
    nothing_but(json!({"from": text("First day, such as 2026-11-01."), "to": text("Last day.")}))
}

fn get_trace() -> Value {
    object(json!({"trace_id": text("As list_traces gives it.")}), &["trace_id"])
}

fn knowledge_status() -> Value {
    let knowledge = text("Id of the knowledge base that it was added to.");
    object(json!({"content_id": text("The id that add_knowledge gave."), "knowledge": knowledge}), &["content_id"])
}

fn list_components() -> Value {
    nothing_but(json!({"kind": kind("Only this kind."), "limit": limit(admin::LIMIT)}))
}

fn list_memories() -> Value {
    nothing_but(json!({"query": text("Only those that have this."), "limit": limit(memory::LIMIT)}))
}

fn list_registry() -> Value {
    nothing_but(json!({"limit": limit(admin::LIMIT)}))
}

fn list_schedules() -> Value {
    nothing_but(json!({"limit": limit(schedules::LIMIT)}))
}

fn list_traces() -> Value {
    let run = text("Only of this run: the `run` handle that run_agent returned.");
    nothing_but(json!({"run": run, "session_id": text("Only of this session."), "limit": limit(traces::LIMIT)}))
}

fn set_schedule() -> Value {
    let enabled = json!({"type": "boolean", "description": "Whether it starts runs."});
    object(json!({"schedule_id": text("As list_schedules gives it."), "enabled": enabled}), &["schedule_id", "enabled"])
}
