//! Owns the table of tools: names, texts, schemas, hints, and the operations behind each.
//! Does not hold what a tool does (`agents`, `runs`, `knowledge`, `approvals`, `history`).
//! Invariants: names stay within every client's limit; schemas are self-contained; a tool is listed only when policy
//! lets the caller use something behind it.

mod agents;
mod approvals;
mod arguments;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod gather;
pub(super) mod history;
pub(super) mod knowledge;
pub(super) mod pausing;
pub(super) mod runs;
mod schema;
pub(super) mod scopes;

use rmcp::model::{CallToolResponse, CallToolResult, ContentBlock, Tool as McpTool, ToolAnnotations};
use serde_json::Value;

use super::Inner;
use super::ask::Failure;
use super::narrowing::{Narrowing, Toolset};
use super::progress::Progress;
use super::routes::{self, Deed};
use super::settings::Decisions;
use super::text::RESULT_BYTES_MAX;
use super::viewer::Viewer;
use super::visit::Visit;
use crate::agentos::operation::Kind;

/// One tool.
pub(super) struct Tool {
    /// What clients call.
    pub(super) name: &'static str,
    /// `None`: in every toolset.
    pub(super) toolset: Option<Toolset>,
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

const KINDS: &[Kind] = Kind::ALL;

/// In the order in which they are listed: by name.
static TOOLS: &[Tool] = &[
    Tool {
        name: "cancel_run",
        toolset: Some(Toolset::Agents),
        title: "Cancel a run",
        description: "Stop a run that is under way.",
        schema: schema::run_only,
        hint: Hint::Ends,
        needs: Needs::Component(Deed::Cancel),
    },
    Tool {
        name: "continue_run",
        toolset: Some(Toolset::Agents),
        title: "Continue a paused run",
        description: "Continue a paused run after the user has decided. `confirm` answers plain confirmations; \
            approvals are decided with resolve_approval first.",
        schema: schema::continue_run,
        hint: Hint::Decides,
        needs: Needs::Component(Deed::Continue),
    },
    Tool {
        name: "get_approval",
        toolset: Some(Toolset::Approvals),
        title: "Show an approval",
        description: "Show one approval: the tool, its full arguments, who asked, and the decision.",
        schema: schema::get_approval,
        hint: Hint::Reads,
        needs: Needs::Operation(&["get_approval"]),
    },
    Tool {
        name: "get_run",
        toolset: Some(Toolset::Agents),
        title: "Wait for a run",
        description: "Wait for a run that run_agent handed back unfinished, and give its answer.",
        schema: schema::get_run,
        hint: Hint::Reads,
        needs: Needs::Component(Deed::Read),
    },
    Tool {
        name: "get_session",
        toolset: Some(Toolset::Sessions),
        title: "Read a session",
        description: "Read the conversation of one session.",
        schema: schema::get_session,
        hint: Hint::Reads,
        needs: Needs::Operation(&["get_session_by_id"]),
    },
    Tool {
        name: "list_agents",
        toolset: Some(Toolset::Agents),
        title: "List agents",
        description: "List the agents, teams and workflows that can be run, with what each is for.",
        schema: schema::list_agents,
        hint: Hint::Reads,
        needs: Needs::Component(Deed::List),
    },
    Tool {
        name: "list_approvals",
        toolset: Some(Toolset::Approvals),
        title: "List approvals",
        description: "List tool calls of paused runs that wait for an approval, or were decided.",
        schema: schema::list_approvals,
        hint: Hint::Reads,
        needs: Needs::Operation(&["list_approvals"]),
    },
    Tool {
        name: "list_knowledge",
        toolset: Some(Toolset::Knowledge),
        title: "List knowledge bases",
        description: "List the knowledge bases that search_knowledge can search.",
        schema: schema::nothing,
        hint: Hint::Reads,
        needs: Needs::Operation(&["get_config"]),
    },
    Tool {
        name: "list_sessions",
        toolset: Some(Toolset::Sessions),
        title: "List sessions",
        description: "List your latest sessions with agents, teams and workflows.",
        schema: schema::list_sessions,
        hint: Hint::Reads,
        needs: Needs::Operation(&["get_sessions"]),
    },
    Tool {
        name: "resolve_approval",
        toolset: Some(Toolset::Approvals),
        title: "Resolve an approval",
        description: "Approve or reject a waiting tool call. Only on the user's explicit decision; it cannot be undone.",
        schema: schema::resolve_approval,
        hint: Hint::Decides,
        needs: Needs::Operation(&["resolve_approval"]),
    },
    Tool {
        name: "run_agent",
        toolset: Some(Toolset::Agents),
        title: "Run an agent",
        description: "Run an agent, team or workflow with a message and give its answer. Long runs come back unfinished \
            with a `run` handle for get_run.",
        schema: schema::run_agent,
        hint: Hint::Runs,
        needs: Needs::Component(Deed::Start),
    },
    Tool {
        name: "search_knowledge",
        toolset: Some(Toolset::Knowledge),
        title: "Search knowledge",
        description: "Search the knowledge bases for passages that answer a question.",
        schema: schema::search_knowledge,
        hint: Hint::Reads,
        needs: Needs::Operation(&["search_knowledge"]),
    },
    Tool {
        name: "whoami",
        toolset: None,
        title: "Who am I",
        description: "Show who you are to the gateway: tenant, roles, scopes, clusters, and what is left of your limits.",
        schema: schema::nothing,
        hint: Hint::Reads,
        needs: Needs::Nothing,
    },
];

/// The tool of a name, when it can be called here at all.
pub(super) fn find(inner: &Inner, narrowing: &Narrowing, name: &str) -> Option<&'static Tool> {
    TOOLS.iter().find(|tool| tool.name == name && tool.offered(inner, narrowing))
}

/// The tools that the caller sees.
fn listed(viewer: &Viewer) -> impl Iterator<Item = &'static Tool> {
    TOOLS.iter().filter(|tool| tool.offered(&viewer.inner, &viewer.narrowing) && tool.needs.met(viewer))
}

/// The tools that the caller sees, as clients see them.
pub(super) fn described(viewer: &Viewer) -> Vec<McpTool> {
    listed(viewer).map(Tool::describe).collect()
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
        "whoami" => history::whoami(visit, arguments::of(arguments)?).await,
        other => {
            debug_assert!(false, "tool `{other}` is listed but does nothing");
            Err(Failure::Broken("cannot do this"))
        }
    }
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
        let schema = match (self.schema)() {
            Value::Object(schema) => schema,
            other => {
                debug_assert!(false, "the schema of `{}` is no object: {other}", self.name);
                serde_json::Map::new()
            }
        };
        McpTool::new(self.name, self.description, schema)
            .with_title(self.title)
            .with_annotations(self.hint.annotations())
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
