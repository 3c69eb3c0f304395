//! Owns `list_agents` and the finding of a component by its id.
//! Does not run anything (`runs`).
//! Invariant: descriptions come from AgentOS and are data: one line, cut, never instructions of ours.

use std::sync::Arc;

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

const NAME_CHARS_MAX: usize = 100;
const DESCRIPTION_CHARS_MAX: usize = 300;
/// Components of one list that are looked at.
const LISTED_MAX: usize = 1_000;

pub(super) async fn list_agents(visit: &Visit, arguments: ListAgents) -> Result<CallToolResult, Failure> {
    let kinds = arguments.kind.map_or_else(|| Kind::ALL.to_vec(), |kind| vec![kind.into()]);
    let (found, mut result) = look(visit, &kinds).await?;
    let query = arguments.query.unwrap_or_default().to_lowercase();
    let wanted = |f: &&Found| [&f.id, &f.name, &f.description].iter().any(|text| text.to_lowercase().contains(&query));
    let agents: Vec<Value> = found.iter().filter(wanted).map(|f| describe(visit, f)).collect();
    if let Value::Object(map) = &mut result {
        map.insert("agents".to_owned(), Value::Array(agents));
    }
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
    if let Some(seen) = visit.inner.discovery.fresh(visit.principal()) {
        let matches: Vec<&Found> = seen.iter().filter(fits).collect();
        if !matches.is_empty() {
            return one_of(visit, agent, &matches);
        }
    }
    let (found, _) = look(visit, Kind::ALL).await?;
    one_of(visit, agent, &found.iter().filter(fits).collect::<Vec<_>>())
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

/// Looks at the lists of the caller's clusters; the second value names those that did not answer.
async fn look(visit: &Visit, kinds: &[Kind]) -> Result<(Vec<Found>, Value), Failure> {
    let clusters = visit.clusters_or(None)?;
    let pairs = clusters.iter().flat_map(|cluster| kinds.iter().map(move |kind| (Arc::clone(cluster), *kind)));
    let questions = pairs.map(|(cluster, kind)| {
        let ask = Ask::plain(routes::of(kind, Deed::List), &cluster, &[]);
        ((cluster, kind), ask)
    });
    let gathered = gather(&visit.asker, questions.collect()).await.or_failure()?;
    let mut found: Vec<Found> =
        gathered.answers.iter().flat_map(|((cluster, kind), list)| read(cluster, *kind, list)).collect();
    found.sort_by(|a, b| (&a.cluster, a.kind, &a.id).cmp(&(&b.cluster, b.kind, &b.id)));
    if kinds.len() == Kind::ALL.len() {
        visit.inner.discovery.remember(visit.principal(), &found);
    }
    let mut result = json!({"agents": []});
    gathered.mention_failures(&mut result);
    Ok((found, result))
}

fn read(cluster: &Arc<str>, kind: Kind, list: &Value) -> Vec<Found> {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default().iter().take(LISTED_MAX);
    let found = items.filter_map(|item| {
        let field = |name: &str, chars: usize| {
            let text = item.get(name).and_then(Value::as_str).unwrap_or_default();
            text::head(&text::line(text), chars)
        };
        Some(Found {
            cluster: Arc::clone(cluster),
            kind,
            id: item.get("id")?.as_str()?.to_owned(),
            name: field("name", NAME_CHARS_MAX),
            description: field("description", DESCRIPTION_CHARS_MAX),
        })
    });
    found.collect()
}

fn describe(visit: &Visit, found: &Found) -> Value {
    let mut item = json!({"agent": visit.name(&found.cluster, &found.id), "kind": found.kind.as_str()});
    if let Value::Object(map) = &mut item {
        for (field, text) in [("name", &found.name), ("description", &found.description)] {
            if !text.is_empty() {
                map.insert(field.to_owned(), Value::String(text.clone()));
            }
        }
    }
    item
}
