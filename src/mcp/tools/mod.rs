//! Owns the table of tools: names, texts, schemas, hints, and the operations behind each.
//! Does not hold what a tool does (`agents`, `runs`, `knowledge`, …), nor the tools that are named after agents (`each`).
//! Invariants: names stay within every client's limit; schemas are self-contained; a tool is listed only when policy
//! lets the caller use something behind it.

mod admin;
mod agents;
mod approvals;
mod arguments;
mod each;
mod files;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod gather;
pub(super) mod history;
pub(super) mod knowledge;
mod memory;
mod metrics;
mod optional;
pub(super) mod pausing;
pub(super) mod runs;
mod schedules;
mod schema;
pub(super) mod scopes;
mod traces;
mod uploads;

use std::borrow::Cow;
use std::sync::Arc;

use rmcp::model::{CallToolResponse, CallToolResult, ContentBlock, Tool as McpTool, ToolAnnotations};
use serde_json::Value;

use super::Inner;
use super::ask::Failure;
use super::narrowing::{Narrowing, Toolset};
use super::progress::Progress;
use super::routes::{self, Deed};
use super::settings::Decisions;
use super::text::{self, RESULT_BYTES_MAX};
use super::viewer::Viewer;
use super::visit::Visit;
use crate::agentos::operation::Kind;

/// One tool.
pub(super) struct Tool {
    /// What clients call.
    pub(super) name: &'static str,
    /// Empty: in every toolset.
    pub(super) toolsets: &'static [Toolset],
    title: &'static str,
    description: &'static str,
    schema: fn() -> Value,
    hint: Hint,
    needs: Needs,
}

/// What a client may expect of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hint {
    /// Changes nothing.
    Reads,
    /// Starts something; agents may do anything.
    Runs,
    /// Changes something that cannot be taken back.
    Decides,
    /// Ends something; twice is like once.
    Ends,
    /// Adds something beside what is there.
    Adds,
    /// Sets something to a value; twice is like once.
    Sets,
}

/// What policy must allow for a tool to be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Nothing.
    Nothing,
    /// One of these operations.
    Operation(&'static [&'static str]),
    /// The deed on some component.
    Component(Deed),
}

/// Longest text in a row of a list.
const FIELD_CHARS_MAX: usize = 2_000;

const KINDS: &[Kind] = Kind::ALL;

/// Whoever starts runs, one way or the other, also follows and ends them.
const RUNS: &[Toolset] = &[Toolset::Agents, Toolset::Ask];

/// By name.
static TOOLS: &[Tool] = &[
    Tool {
        name: "cancel_run",
        toolsets: RUNS,
        title: "Cancel a run",
        description: "Stop a run that is under way.",
        schema: schema::run_only,
        hint: Hint::Ends,
        needs: Needs::Component(Deed::Cancel),
    },
    Tool {
        name: "continue_run",
        toolsets: RUNS,
        title: "Continue a paused run",
        description: "Continue a paused run after the user has decided. `confirm` answers plain confirmations; \
            approvals are decided with resolve_approval first.",
        schema: schema::continue_run,
        hint: Hint::Decides,
        needs: Needs::Component(Deed::Continue),
    },
    Tool {
        name: "get_approval",
        toolsets: &[Toolset::Approvals],
        title: "Show an approval",
        description: "Show one approval: the tool, its full arguments, who asked, and the decision.",
        schema: schema::get_approval,
        hint: Hint::Reads,
        needs: Needs::Operation(&["get_approval"]),
    },
    Tool {
        name: "get_run",
        toolsets: RUNS,
        title: "Wait for a run",
        description: "Wait for a run that run_agent handed back unfinished, and give its answer.",
        schema: schema::get_run,
        hint: Hint::Reads,
        needs: Needs::Component(Deed::Read),
    },
    Tool {
        name: "get_session",
        toolsets: &[Toolset::Sessions],
        title: "Read a session",
        description: "Read the conversation of one session.",
        schema: schema::get_session,
        hint: Hint::Reads,
        needs: Needs::Operation(&["get_session_by_id"]),
    },
    Tool {
        name: "list_agents",
        toolsets: &[Toolset::Agents, Toolset::Schedules],
        title: "List agents",
        description: "List the agents, teams and workflows that can be run, with what each is for.",
        schema: schema::list_agents,
        hint: Hint::Reads,
        needs: Needs::Component(Deed::List),
    },
    Tool {
        name: "list_approvals",
        toolsets: &[Toolset::Approvals],
        title: "List approvals",
        description: "List tool calls of paused runs that wait for an approval, or were decided.",
        schema: schema::list_approvals,
        hint: Hint::Reads,
        needs: Needs::Operation(&["list_approvals"]),
    },
    Tool {
        name: "list_knowledge",
        toolsets: &[Toolset::Knowledge, Toolset::KnowledgeWrite],
        title: "List knowledge bases",
        description: "List the knowledge bases that search_knowledge can search.",
        schema: schema::nothing,
        hint: Hint::Reads,
        needs: Needs::Operation(&["get_config"]),
    },
    Tool {
        name: "list_sessions",
        toolsets: &[Toolset::Sessions],
        title: "List sessions",
        description: "List your latest sessions with agents, teams and workflows.",
        schema: schema::list_sessions,
        hint: Hint::Reads,
        needs: Needs::Operation(&["get_sessions"]),
    },
    Tool {
        name: "resolve_approval",
        toolsets: &[Toolset::Approvals],
        title: "Resolve an approval",
        description: "Approve or reject a waiting tool call. Only on the user's explicit decision; it cannot be undone.",
        schema: schema::resolve_approval,
        hint: Hint::Decides,
        needs: Needs::Operation(&["resolve_approval"]),
    },
    Tool {
        name: "run_agent",
        toolsets: &[Toolset::Agents],
        title: "Run an agent",
        description: "Run an agent, team or workflow with a message and give its answer. Long runs come back unfinished \
            with a `run` handle for get_run.",
        schema: schema::run_agent,
        hint: Hint::Runs,
        needs: Needs::Component(Deed::Start),
    },
    Tool {
        name: "search_knowledge",
        toolsets: &[Toolset::Knowledge],
        title: "Search knowledge",
        description: "Search the knowledge bases for passages that answer a question.",
        schema: schema::search_knowledge,
        hint: Hint::Reads,
        needs: Needs::Operation(&["search_knowledge"]),
    },
    Tool {
        name: "whoami",
        toolsets: &[],
        title: "Who am I",
        description: "Show who you are to the gateway: tenant, roles, scopes, clusters, and what is left of your limits.",
        schema: schema::nothing,
        hint: Hint::Reads,
        needs: Needs::Nothing,
    },
];

/// All tools of ours.
fn all() -> impl Iterator<Item = &'static Tool> {
    TOOLS.iter().chain(optional::TOOLS)
}

/// The toolsets that a tool is in.
#[cfg(test)]
pub(super) fn toolsets(name: &str) -> Option<&'static [Toolset]> {
    all().find(|tool| tool.name == name).map(|tool| tool.toolsets)
}

/// The tool of a name, when it can be called here at all.
pub(super) fn find(inner: &Inner, narrowing: &Narrowing, name: &str) -> Option<&'static Tool> {
    all().find(|tool| tool.name == name && tool.offered(inner, narrowing))
}

/// The tools that the caller sees.
fn listed(viewer: &Viewer) -> impl Iterator<Item = &'static Tool> {
    all().filter(|tool| tool.offered(&viewer.inner, &viewer.narrowing) && tool.needs.met(viewer))
}

/// The tools that the caller sees, as clients see them, by name.
pub(super) fn described(viewer: &Viewer) -> Vec<McpTool> {
    let mut tools: Vec<McpTool> = listed(viewer).map(Tool::describe).chain(each::described(viewer)).collect();
    tools.sort_by(|a, b| a.name.cmp(&b.name));
    tools
}

/// The tool that a name means to this caller, and the arguments that it gets; `None` for a name that means nothing.
///
/// # Cancel safety
/// Safe.
pub(super) async fn choose(
    visit: &Visit,
    name: &str,
    arguments: Value,
) -> Option<(&'static Tool, Result<Value, Failure>)> {
    match find(&visit.inner, &visit.narrowing, name) {
        Some(tool) => Some((tool, Ok(arguments))),
        None => each::as_run(visit, name, arguments).await,
    }
}

/// Calls a tool.
///
/// # Errors
/// A [`Failure`], which becomes a result with `isError`.
pub(super) async fn call(
    tool: &Tool,
    visit: &Visit,
    mut progress: Progress,
    arguments: Value,
) -> Result<CallToolResponse, Failure> {
    // These two follow a run and end it themselves when the client leaves.
    match tool.name {
        "run_agent" => return runs::run_agent(visit, &mut progress, arguments::of(arguments)?).await,
        "continue_run" => return runs::continue_run(visit, &mut progress, arguments::of(arguments)?).await,
        _ => {}
    }
    tokio::select! {
        result = Box::pin(answer(tool, visit, progress, arguments)) => result.map(CallToolResponse::from),
        () = visit.ct.cancelled() => Err(runs::cancelled()),
    }
}

async fn answer(tool: &Tool, visit: &Visit, progress: Progress, arguments: Value) -> Result<CallToolResult, Failure> {
    match tool.name {
        "cancel_run" => runs::cancel_run(visit, arguments::of(arguments)?).await,
        "get_run" => runs::get_run(visit, progress, arguments::of(arguments)?).await,
        "list_agents" => agents::list_agents(visit, arguments::of(arguments)?).await,
        "search_knowledge" => knowledge::search_knowledge(visit, arguments::of(arguments)?).await,
        "list_knowledge" => knowledge::list_knowledge(visit, arguments::of(arguments)?).await,
        "list_approvals" => approvals::list_approvals(visit, arguments::of(arguments)?).await,
        "get_approval" => approvals::get_approval(visit, arguments::of(arguments)?).await,
        "resolve_approval" => approvals::resolve_approval(visit, arguments::of(arguments)?).await,
        "list_sessions" => history::list_sessions(visit, arguments::of(arguments)?).await,
        "get_session" => history::get_session(visit, arguments::of(arguments)?).await,
        "list_memories" => memory::list_memories(visit, arguments::of(arguments)?).await,
        "add_memory" => memory::add_memory(visit, arguments::of(arguments)?).await,
        "list_traces" => traces::list_traces(visit, arguments::of(arguments)?).await,
        "get_trace" => traces::get_trace(visit, arguments::of(arguments)?).await,
        "get_metrics" => metrics::get_metrics(visit, arguments::of(arguments)?).await,
        "list_schedules" => schedules::list_schedules(visit, arguments::of(arguments)?).await,
        "create_schedule" => schedules::create_schedule(visit, arguments::of(arguments)?).await,
        "set_schedule" => schedules::set_schedule(visit, arguments::of(arguments)?).await,
        "add_knowledge" => uploads::add_knowledge(visit, arguments::of(arguments)?).await,
        "knowledge_status" => uploads::knowledge_status(visit, arguments::of(arguments)?).await,
        "list_components" => admin::list_components(visit, arguments::of(arguments)?).await,
        "list_registry" => admin::list_registry(visit, arguments::of(arguments)?).await,
        "whoami" => history::whoami(visit, arguments::of(arguments)?).await,
        other => {
            debug_assert!(false, "tool `{other}` is listed but does nothing");
            Err(Failure::Broken("cannot do this"))
        }
    }
}

/// A tool as clients see it.
fn described_as(
    name: impl Into<Cow<'static, str>>,
    title: impl Into<String>,
    description: impl Into<Cow<'static, str>>,
    schema: Value,
    hint: Hint,
) -> McpTool {
    let schema = match schema {
        Value::Object(schema) => schema,
        other => {
            debug_assert!(false, "a schema is no object: {other}");
            serde_json::Map::new()
        }
    };
    McpTool::new(name, description, schema).with_title(title).with_annotations(hint.annotations())
}

/// The rows of a page with these fields; the first is an id, written as the caller names it.
fn picked(visit: &Visit, cluster: &Arc<str>, page: &Value, fields: &[&str]) -> Vec<Value> {
    let rows = page.get("data").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    rows.iter().map(|row| one(visit, cluster, row, fields)).collect()
}

/// The same of one row.
fn one(visit: &Visit, cluster: &Arc<str>, row: &Value, fields: &[&str]) -> Value {
    let shown = |(at, field): (usize, &&str)| {
        let value = row.get(*field).filter(|value| !value.is_null())?;
        let value = match value {
            Value::String(id) if at == 0 => Value::String(visit.name(cluster, id)),
            Value::String(text) => Value::String(text::head(text, FIELD_CHARS_MAX)),
            other => other.clone(),
        };
        Some(((*field).to_owned(), value))
    };
    Value::Object(fields.iter().enumerate().filter_map(shown).collect())
}

/// A result whose text and structured content are the same JSON; `items` names the array that gives way when it is
/// too large.
fn structured(mut value: Value, items: &str) -> CallToolResult {
    let mut text = value.to_string();
    while text.len() > RESULT_BYTES_MAX {
        let Some(Value::Array(list)) = value.get_mut(items) else { break };
        if list.is_empty() {
            break;
        }
        // Proportional, so that a long list does not cost a round per item.
        let keep = (list.len() * RESULT_BYTES_MAX / text.len()).min(list.len() - 1);
        list.truncate(keep);
        if let Value::Object(map) = &mut value {
            map.insert("truncated".to_owned(), Value::Bool(true));
        }
        text = value.to_string();
    }
    let mut result = CallToolResult::success(vec![ContentBlock::text(text)]);
    result.structured_content = Some(value);
    result
}

// === impl Tool ===

impl Tool {
    /// Says whether it changes nothing.
    pub(super) fn reads(&self) -> bool {
        self.hint == Hint::Reads
    }

    /// Says whether address, headers and configuration leave it.
    fn offered(&self, inner: &Inner, narrowing: &Narrowing) -> bool {
        let decides = self.name == "resolve_approval";
        narrowing.allows(self) && !(decides && inner.runs.load().decisions == Decisions::Humans)
    }

    /// As clients see it.
    fn describe(&self) -> McpTool {
        described_as(self.name, self.title, self.description, (self.schema)(), self.hint)
    }
}

// === impl Hint ===

impl Hint {
    fn annotations(self) -> ToolAnnotations {
        let hints = ToolAnnotations::new();
        match self {
            Self::Reads => hints.read_only(true).idempotent(true).open_world(false),
            Self::Runs => hints.read_only(false).destructive(true).idempotent(false).open_world(true),
            Self::Decides => hints.read_only(false).destructive(true).idempotent(false).open_world(true),
            Self::Adds => hints.read_only(false).destructive(false).idempotent(false).open_world(false),
            Self::Sets => hints.read_only(false).destructive(false).idempotent(true).open_world(false),
            Self::Ends => hints.read_only(false).destructive(true).idempotent(true).open_world(false),
        }
    }
}

// === impl Needs ===

impl Needs {
    fn met(self, viewer: &Viewer) -> bool {
        match self {
            Self::Nothing => true,
            Self::Operation(operations) => operations.iter().any(|operation| viewer.may(operation, "")),
            Self::Component(deed) => {
                let whole = |kind: &Kind| viewer.may(routes::of(*kind, deed).operation, "");
                KINDS.iter().any(whole) || KINDS.iter().any(|kind| viewer.may_some(*kind, deed))
            }
        }
    }
}
