//! Owns the tools for operators: what an AgentOS is made of.
//! Does not change anything: components are code for every tenant.
//! Invariant: every row behind these is OS-wide, as policy sees it.

use std::sync::Arc;

use rmcp::model::CallToolResult;
use serde_json::{Value, json};

use super::arguments::{ListComponents, ListRegistry, limit};
use super::gather::gather;
use super::{one, structured};
use crate::agentos::operation::Kind;
use crate::mcp::ask::{Ask, Failure};
use crate::mcp::pins::Verdict;
use crate::mcp::routes::{self, Route};
use crate::mcp::visit::Visit;

/// Rows where the caller does not say how many.
pub(super) const LIMIT: usize = 50;
const COMPONENT_FIELDS: &[&str] =
    &["component_id", "name", "component_type", "description", "current_version", "created_at", "updated_at"];
const REGISTRY_FIELDS: &[&str] = &["name", "type", "description", "id"];

pub(super) async fn list_components(visit: &Visit, arguments: ListComponents) -> Result<CallToolResult, Failure> {
    let limit = limit(arguments.limit, LIMIT)?.to_string();
    let mut query = vec![("limit", limit.as_str())];
    query.extend(arguments.kind.map(|kind| ("component_type", Kind::from(kind).as_str())));
    rows(visit, routes::COMPONENTS, &query, ("components", COMPONENT_FIELDS)).await
}

pub(super) async fn list_registry(visit: &Visit, arguments: ListRegistry) -> Result<CallToolResult, Failure> {
    let limit = limit(arguments.limit, LIMIT)?.to_string();
    let query = [("limit", limit.as_str())];
    rows(visit, routes::REGISTRY, &query, ("registry", REGISTRY_FIELDS)).await
}

async fn rows(
    visit: &Visit,
    route: Route,
    query: &[(&str, &str)],
    (name, fields): (&str, &[&str]),
) -> Result<CallToolResult, Failure> {
    let questions = visit.clusters_or(None)?.into_iter().map(|cluster| {
        let ask = Ask { query, ..Ask::plain(route, &cluster, &[]) };
        (cluster, ask)
    });
    let gathered = gather(&visit.asker, questions.collect()).await.or_failure()?;
    let listed = |page: &Value| page.get("data").and_then(Value::as_array).cloned().unwrap_or_default();
    let shown = |(cluster, page): &(Arc<str>, Value)| {
        listed(page)
            .iter()
            .map(|row| withheld(visit, cluster, row, one(visit, cluster, row, fields)))
            .collect::<Vec<_>>()
    };
    let rows: Vec<Value> = gathered.answers.iter().flat_map(shown).collect();
    let mut result = json!({});
    if let Value::Object(map) = &mut result {
        map.insert(name.to_owned(), Value::Array(rows));
    }
    gathered.mention_failures(&mut result, std::iter::empty());
    Ok(structured(result, name))
}

/// Takes out what AgentOS says of a component whose text is not the one that the operator has pinned.
fn withheld(visit: &Visit, cluster: &str, row: &Value, mut shown: Value) -> Value {
    let field = |name: &str| row.get(name).and_then(Value::as_str);
    let component = field("component_type").and_then(Kind::parse).zip(field("component_id"));
    let pins = visit.inner.pins.load();
    if let Some((kind, id)) = component
        && matches!(pins.judge(cluster, kind, id, row), Verdict::Other(_))
        && let Value::Object(shown) = &mut shown
    {
        shown.remove("name");
        shown.remove("description");
    }
    shown
}
