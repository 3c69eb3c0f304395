//! Owns `list_agents` and the finding of a component by its id.
//! Does not run anything (`runs`).
//! Invariant: AgentOS is not asked: what there is comes from discovery, and is admitted and narrowed per caller.

use std::sync::Arc;

use bytes::Bytes;
use rmcp::model::CallToolResult;
use serde_json::{Value, json};

use super::arguments::ListAgents;
use super::gather::gather;
use super::structured;
use crate::agentos::operation::Kind;
use crate::mcp::ask::{Ask, Failure};
use crate::mcp::discovery::Found;
use crate::mcp::routes::{self, Deed};
use crate::mcp::text;
use crate::mcp::visit::Visit;

pub(super) async fn list_agents(visit: &Visit, arguments: ListAgents) -> Result<CallToolResult, Failure> {
    let kinds = arguments.kind.map_or_else(|| Kind::ALL.to_vec(), |kind| vec![kind.into()]);
    let clusters = visit.clusters_or(None)?;
    visit.inner.discovery.settled(&clusters).await;
    let seen = visit.inner.discovery.seen();
    let pairs = clusters.iter().flat_map(|cluster| kinds.iter().map(move |kind| (Arc::clone(cluster), *kind)));
    let (mut questions, mut failed) = (Vec::new(), Vec::new());
    for (cluster, kind) in pairs {
        let list = seen.list(&cluster, kind);
        // A look that is not done yet counts as one that failed.
        let failure = list.map_or(Some("upstream_timeout"), |list| list.failure);
        failed.extend(failure.map(|code| (Arc::clone(&cluster), kind, code)));
        // What is known is admitted and narrowed as if AgentOS had just said it.
        let known = list.map_or_else(|| Bytes::from_static(b"[]"), |list| list.body.clone());
        let ask = Ask { known: Some(known), ..Ask::plain(routes::of(kind, Deed::List), &cluster, &[]) };
        questions.push(((cluster, kind), ask));
    }
    let gathered = gather(&visit.asker, questions).await.or_failure()?;
    let query = arguments.query.unwrap_or_default().to_lowercase();
    let mut agents: Vec<(Arc<str>, Kind, Value)> = Vec::new();
    for ((cluster, kind), list) in &gathered.answers {
        let rows = list.as_array().map(Vec::as_slice).unwrap_or_default();
        let wanted = rows.iter().filter(|row| matches(row, &query));
        agents
            .extend(wanted.filter_map(|row| Some((Arc::clone(cluster), *kind, describe(visit, cluster, *kind, row)?))));
    }
    agents.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    let mut result = json!({"agents": agents.into_iter().map(|(_, _, row)| row).collect::<Vec<_>>()});
    // A list that policy hides whole is not mentioned.
    failed.retain(|(cluster, kind, _)| gathered.answers.iter().any(|((c, k), _)| c == cluster && k == kind));
    gathered.mention_failures(&mut result, failed.iter().map(|(cluster, _, code)| (cluster, *code)));
    Ok(structured(result, "agents"))
}

/// Finds a component by its id, on a cluster if one is named, of a kind if one is given.
///
/// # Errors
/// A failure that says what there is instead.
pub(super) async fn resolve(
    visit: &Visit,
    agent: &str,
    kind: Option<Kind>,
) -> Result<(Arc<str>, Kind, String), Failure> {
    let (cluster, id) = visit.place("agent", agent)?;
    if let (Some(cluster), Some(kind)) = (&cluster, kind) {
        return Ok((Arc::clone(cluster), kind, id));
    }
    let fits = |f: &&Found| {
        f.id == id && kind.is_none_or(|kind| f.kind == kind) && cluster.as_ref().is_none_or(|c| *c == f.cluster)
    };
    let seen = visit.viewer().components(Deed::List).await;
    one_of(visit, agent, &seen.iter().map(|shown| &*shown.found).filter(fits).collect::<Vec<_>>())
}

fn one_of(visit: &Visit, agent: &str, matches: &[&Found]) -> Result<(Arc<str>, Kind, String), Failure> {
    match matches {
        [one] => Ok((Arc::clone(&one.cluster), one.kind, one.id.clone())),
        [] => {
            let shown = text::head(&text::line(agent), 80);
            Err(Failure::Argument(format!("there is no `{shown}` that you may use: list_agents shows what there is")))
        }
        several => {
            let names: Vec<String> = several
                .iter()
                .map(|f| format!("agent `{}` with kind `{}`", visit.name(&f.cluster, &f.id), f.kind))
                .collect();
            Err(Failure::Argument(format!("the id is ambiguous: pass one of {}", names.join(", "))))
        }
    }
}

fn matches(row: &Value, query: &str) -> bool {
    let field = |name| row.get(name).and_then(Value::as_str).unwrap_or_default();
    ["id", "name", "description"].into_iter().any(|name| field(name).to_lowercase().contains(query))
}

fn describe(visit: &Visit, cluster: &Arc<str>, kind: Kind, row: &Value) -> Option<Value> {
    let mut item = json!({"agent": visit.name(cluster, row.get("id")?.as_str()?), "kind": kind.as_str()});
    if let Value::Object(map) = &mut item {
        for field in ["name", "description"] {
            let text = row.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
            map.extend(text.map(|text| (field.to_owned(), json!(text))));
        }
    }
    Some(item)
}
