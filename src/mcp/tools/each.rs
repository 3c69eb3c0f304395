//! Owns the tools that stand for one agent, team or workflow each: `ask_<slug>`, with what AgentOS says of it.
//! Does not run anything: a call of one is a call of `run_agent` with the component filled in.
//! Invariants: a caller has one for each component that it may run, and for nothing else; the list is what discovery
//! knows and asks nobody; texts of AgentOS stand between quotes, in titles and descriptions only.

use rmcp::model::Tool as McpTool;
use serde_json::{Map, Value, json};

use super::{Hint, TOOLS, Tool, schema};
use crate::mcp::ask::Failure;
use crate::mcp::narrowing::Toolset;
use crate::mcp::routes::Deed;
use crate::mcp::text;
use crate::mcp::viewer::{Shown, Viewer};
use crate::mcp::visit::Visit;

/// Most of these tools in one list: together with what clients get unasked they stay below the hundred that some clients
/// take. `run_agent` reaches the rest.
const ASKED_MAX: usize = 80;
const PREFIX: &str = "ask_";
const ADDRESS_CHARS_MAX: usize = 120;

/// These tools of the caller, as clients see them.
pub(super) fn described(viewer: &Viewer) -> Vec<McpTool> {
    shown(viewer).iter().map(describe).collect()
}

/// What a call of such a tool is: `run_agent` and its arguments, or why these cannot be used; `None` for a name that is
/// none of the caller's tools.
///
/// # Cancel safety
/// Safe.
pub(super) async fn as_run(
    visit: &Visit,
    name: &str,
    arguments: Value,
) -> Option<(&'static Tool, Result<Value, Failure>)> {
    let slug = name.strip_prefix(PREFIX).filter(|_| visit.narrowing.has(Toolset::Ask))?;
    visit.inner.discovery.settled(&visit.clusters).await;
    let component = shown(&visit.viewer()).into_iter().find(|shown| shown.slug == slug)?;
    let run_agent = TOOLS.iter().find(|tool| tool.name == "run_agent")?;
    Some((run_agent, filled(&component, arguments)))
}

fn filled(component: &Shown, arguments: Value) -> Result<Value, Failure> {
    let mut filled = match arguments {
        Value::Object(given) => given,
        _ => Map::new(),
    };
    for (field, value) in [("agent", component.name.as_str()), ("kind", component.found.kind.as_str())] {
        if filled.insert(field.to_owned(), json!(value)).is_some() {
            return Err(Failure::Argument(format!("the arguments do not fit: unknown field `{field}`")));
        }
    }
    Ok(Value::Object(filled))
}

/// The components that the caller has a tool for, in the order of cluster, kind and id.
fn shown(viewer: &Viewer) -> Vec<Shown> {
    if !viewer.narrowing.has(Toolset::Ask) || viewer.narrowing.is_read_only() {
        return Vec::new();
    }
    let mut all = viewer.components_now(Deed::Start);
    all.truncate(ASKED_MAX);
    all
}

fn describe(shown: &Shown) -> McpTool {
    let found = &shown.found;
    let address = text::head(&text::line(&shown.name), ADDRESS_CHARS_MAX);
    let title = if found.name.is_empty() { &address } else { &found.name };
    let mut description = format!("Run the {} \"{}\"", found.kind, quotable(title));
    if *title != address {
        description.push_str(&format!(" (\"{}\")", quotable(&address)));
    }
    description.push_str(" with a message and give its answer.");
    if !found.description.is_empty() {
        description.push_str(&format!(" AgentOS describes it as: \"{}\"", quotable(&found.description)));
    }
    super::described_as(
        format!("{PREFIX}{}", shown.slug),
        title.clone(),
        description,
        schema::ask(found.kind),
        Hint::Runs,
    )
}

/// Text that cannot end the quotes around it.
fn quotable(text: &str) -> String {
    text.replace('"', "'")
}
