//! Owns `search_knowledge` and `list_knowledge`.
//! Does not add tenant filters: the gateway does.
//! Invariant: hits are cut to snippets, best first.

use std::sync::Arc;

use rmcp::model::CallToolResult;
use serde_json::{Map, Value, json};

use super::arguments::{Nothing, SearchKnowledge, limit, said};
use super::gather::gather;
use super::structured;
use crate::mcp::ask::{Ask, AskBody, Failure};
use crate::mcp::routes;
use crate::mcp::text;
use crate::mcp::visit::Visit;

const SNIPPET_CHARS_MAX: usize = 500;
const LIMIT: usize = 10;
/// Keys of a hit's metadata that say how AgentOS cut the text, not where it is from.
const CHUNKING: [&str; 3] = ["chunk", "chunk_size", "linked_to"];

pub(super) async fn search_knowledge(visit: &Visit, arguments: SearchKnowledge) -> Result<CallToolResult, Failure> {
    let query = said("query", &arguments.query)?;
    let limit = limit(arguments.limit, LIMIT)?;
    let place = arguments.knowledge.map(|knowledge| visit.place("knowledge", &knowledge)).transpose()?;
    let (cluster, knowledge) = place.map_or((None, None), |(cluster, id)| (cluster, Some(id)));
    let mut body = json!({"query": query, "max_results": limit, "meta": {"limit": limit, "page": 1}});
    if let (Value::Object(map), Some(knowledge)) = (&mut body, knowledge) {
        map.insert("knowledge_id".to_owned(), Value::String(knowledge));
    }
    let questions = visit.clusters_or(cluster)?.into_iter().map(|cluster| {
        let ask = Ask { body: AskBody::Json(body.clone()), ..Ask::plain(routes::SEARCH, &cluster, &[]) };
        (cluster, ask)
    });
    let gathered = gather(&visit.asker, questions.collect()).await.or_failure()?;
    let results = interleave(gathered.answers.iter().map(|(cluster, answer)| hits(visit, cluster, answer)).collect());
    let mut result = json!({"results": results.into_iter().take(limit).collect::<Vec<_>>()});
    gathered.mention_failures(&mut result, std::iter::empty());
    Ok(structured(result, "results"))
}

pub(super) async fn list_knowledge(visit: &Visit, _: Nothing) -> Result<CallToolResult, Failure> {
    let questions = visit.clusters_or(None)?.into_iter().map(|cluster| {
        let ask = Ask::plain(routes::CONFIG, &cluster, &[]);
        (cluster, ask)
    });
    let gathered = gather(&visit.asker, questions.collect()).await.or_failure()?;
    let bases: Vec<Value> =
        gathered.answers.iter().flat_map(|(cluster, config)| bases(visit, cluster, config)).collect();
    let mut result = json!({"knowledge": bases});
    gathered.mention_failures(&mut result, std::iter::empty());
    Ok(structured(result, "knowledge"))
}

fn hits(visit: &Visit, cluster: &Arc<str>, answer: &Value) -> Vec<Value> {
    let hits = answer.get("data").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    hits.iter().map(|hit| describe_hit(visit, cluster, hit)).collect()
}

fn describe_hit(visit: &Visit, cluster: &Arc<str>, hit: &Value) -> Value {
    let string = |name: &str| hit.get(name).and_then(Value::as_str);
    let mut out = Map::new();
    out.insert("text".to_owned(), json!(text::head(string("content").unwrap_or_default(), SNIPPET_CHARS_MAX)));
    for (field, value) in [("name", string("name")), ("content_id", string("content_id"))] {
        if let Some(value) = value {
            out.insert(field.to_owned(), json!(value));
        }
    }
    if let Some(score) = hit.get("reranking_score").filter(|score| !score.is_null()) {
        out.insert("score".to_owned(), score.clone());
    }
    if let Some(Value::Object(meta)) = hit.get("meta_data") {
        let kept = meta.iter().filter(|(key, _)| !CHUNKING.contains(&key.as_str()));
        let kept: Map<String, Value> = kept.map(|(key, value)| (key.clone(), value.clone())).collect();
        if !kept.is_empty() {
            out.insert("metadata".to_owned(), Value::Object(kept));
        }
    }
    if visit.clusters.len() > 1 {
        out.insert("cluster".to_owned(), json!(**cluster));
    }
    Value::Object(out)
}

/// The names of the knowledge bases that the caller may search.
///
/// # Errors
/// When no cluster answers.
pub(in crate::mcp) async fn names(visit: &Visit) -> Result<Vec<String>, Failure> {
    let questions = visit.clusters_or(None)?.into_iter().map(|cluster| {
        let ask = Ask::plain(routes::CONFIG, &cluster, &[]);
        (cluster, ask)
    });
    let gathered = gather(&visit.asker, questions.collect()).await.or_failure()?;
    let bases = gathered.answers.iter().flat_map(|(cluster, config)| bases(visit, cluster, config));
    Ok(bases.filter_map(|base| base.get("knowledge")?.as_str().map(str::to_owned)).collect())
}

/// Takes turns: scores of different clusters do not compare.
fn interleave(lists: Vec<Vec<Value>>) -> Vec<Value> {
    let mut lists: Vec<_> = lists.into_iter().map(Vec::into_iter).collect();
    let mut merged = Vec::new();
    loop {
        let before = merged.len();
        merged.extend(lists.iter_mut().filter_map(Iterator::next));
        if merged.len() == before {
            return merged;
        }
    }
}

fn bases(visit: &Visit, cluster: &Arc<str>, config: &Value) -> Vec<Value> {
    let list = config.get("knowledge").and_then(|k| k.get("knowledge_instances")).and_then(Value::as_array);
    let describe = |base: &Value| {
        let field = |name: &str| base.get(name).and_then(Value::as_str).map(|v| text::head(&text::line(v), 300));
        let mut out = json!({"knowledge": visit.name(cluster, base.get("id")?.as_str()?)});
        if let Value::Object(map) = &mut out {
            for (name, value) in [("name", field("name")), ("description", field("description"))] {
                map.extend(value.map(|value| (name.to_owned(), Value::String(value))));
            }
        }
        Some(out)
    };
    list.map(Vec::as_slice).unwrap_or_default().iter().filter_map(describe).collect()
}
