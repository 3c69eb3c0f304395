//! Owns the tools about what is stored and who is asking: sessions and `whoami`.
//! Does not change anything.
//! Invariant: a conversation that is too long loses its beginning, never its end.

use std::sync::Arc;

use rmcp::model::CallToolResult;
use serde_json::{Map, Value, json};

use super::arguments::{GetSession, ListSessions, Nothing, limit};
use super::gather::gather;
use super::structured;
use crate::agentos::operation::Kind;
use crate::mcp::ask::{Ask, Failure};
use crate::mcp::routes;
use crate::mcp::text::{self, RESULT_BYTES_MAX};
use crate::mcp::visit::Visit;
use crate::principal::PrincipalKind;

const LIMIT: usize = 20;
const MESSAGE_CHARS_MAX: usize = 4_000;

pub(super) async fn list_sessions(visit: &Visit, arguments: ListSessions) -> Result<CallToolResult, Failure> {
    let limit = limit(arguments.limit, LIMIT)?;
    let limit_text = limit.to_string();
    // AgentOS 2.x lists one kind at a time.
    let kinds = arguments.kind.map_or_else(|| Kind::ALL.to_vec(), |kind| vec![kind.into()]);
    let queries: Vec<(Kind, [(&str, &str); 4])> =
        kinds.into_iter().map(|kind| (kind, latest_of(kind, &limit_text))).collect();
    let clusters = visit.clusters_or(None)?;
    let questions = clusters.iter().flat_map(|cluster| {
        queries.iter().map(move |(kind, query)| {
            let ask = Ask { query, ..Ask::plain(routes::SESSIONS, cluster, &[]) };
            ((Arc::clone(cluster), *kind), ask)
        })
    });
    let gathered = gather(&visit.asker, questions.collect()).await.or_failure()?;
    let mut rows: Vec<(String, Value)> = Vec::new();
    for ((cluster, kind), page) in &gathered.answers {
        let data = page.get("data").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        rows.extend(data.iter().filter_map(|row| describe(visit, cluster, *kind, row)));
    }
    rows.sort_by(|a, b| b.0.cmp(&a.0));
    let sessions: Vec<Value> = rows.into_iter().take(limit).map(|(_, row)| row).collect();
    let mut result = json!({"sessions": sessions});
    gathered.mention_failures(&mut result, std::iter::empty());
    Ok(structured(result, "sessions"))
}

pub(super) async fn get_session(visit: &Visit, arguments: GetSession) -> Result<CallToolResult, Failure> {
    let (cluster, id) = visit.place_or_default("session_id", &arguments.session_id)?;
    let (kind, session) = find(visit, &cluster, &id, Kind::ALL).await?;
    Ok(structured(conversation(visit, &cluster, kind, &session), "messages"))
}

/// Finds a session as one of these kinds: AgentOS keeps them apart.
///
/// # Errors
/// The failure of the first kind when it is none of them.
pub(in crate::mcp) async fn find(
    visit: &Visit,
    cluster: &Arc<str>,
    id: &str,
    kinds: &[Kind],
) -> Result<(Kind, Value), Failure> {
    let ids = [id];
    let mut missing = None;
    for kind in kinds {
        let query = [("type", kind.as_str())];
        let ask = Ask { query: &query, ..Ask::plain(routes::SESSION, cluster, &ids) };
        match visit.asker.json(&ask).await {
            Ok(session) => return Ok((*kind, session)),
            Err(failure) if failure.is_not_found() => missing = missing.or(Some(failure)),
            Err(failure) => return Err(failure),
        }
    }
    Err(missing.unwrap_or(Failure::Broken("has no such session")))
}

pub(super) async fn whoami(visit: &Visit, _: Nothing) -> Result<CallToolResult, Failure> {
    let principal = visit.principal();
    let kind = match principal.kind {
        PrincipalKind::User => "user",
        PrincipalKind::Service => "service",
    };
    let texts = |list: &[Arc<str>]| list.iter().map(|text| text.to_string()).collect::<Vec<String>>();
    let mut me = json!({
        "subject": *principal.subject,
        "kind": kind,
        "tenant": principal.tenant.as_str(),
        "roles": texts(&principal.roles),
        "scopes": texts(&principal.scopes),
        "clusters": texts(&visit.clusters),
    });
    if let Value::Object(map) = &mut me {
        map.extend(principal.plan.as_deref().map(|plan| ("plan".to_owned(), json!(plan))));
        map.extend(principal.expires_at.map(|at| ("expires_at".to_owned(), json!(at))));
    }
    let limits = Arc::clone(&visit.inner.path).limits_of(Arc::clone(&visit.asker.principal)).await;
    if let (Value::Object(map), Some(limits)) = (&mut me, limits) {
        map.insert("limits".to_owned(), limits);
    }
    Ok(structured(me, "scopes"))
}

fn latest_of(kind: Kind, limit: &str) -> [(&'static str, &str); 4] {
    [("type", kind.as_str()), ("limit", limit), ("sort_by", "updated_at"), ("sort_order", "desc")]
}

/// A row with the time that it is sorted by.
fn describe(visit: &Visit, cluster: &Arc<str>, kind: Kind, row: &Value) -> Option<(String, Value)> {
    let string = |name: &str| row.get(name).and_then(Value::as_str);
    let time = |name: &str| row.get(name).filter(|v| !v.is_null());
    let mut out = Map::new();
    out.insert("session_id".to_owned(), json!(visit.name(cluster, string("session_id")?)));
    out.insert("kind".to_owned(), json!(kind.as_str()));
    out.extend(string("session_name").map(|name| ("name".to_owned(), json!(text::head(&text::line(name), 120)))));
    let component = ["agent_id", "team_id", "workflow_id"].into_iter().find_map(string);
    out.extend(component.map(|id| ("agent".to_owned(), json!(visit.name(cluster, id)))));
    for name in ["created_at", "updated_at"] {
        out.extend(time(name).map(|at| (name.to_owned(), at.clone())));
    }
    let at = time("updated_at").or_else(|| time("created_at"));
    let at = at.map(|at| at.as_str().map_or_else(|| at.to_string(), str::to_owned));
    Some((at.unwrap_or_default(), Value::Object(out)))
}

/// What was said in a session, as much of its end as fits.
pub(in crate::mcp) fn conversation(visit: &Visit, cluster: &Arc<str>, kind: Kind, session: &Value) -> Value {
    let history = session.get("chat_history").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut messages: Vec<Value> = Vec::new();
    let mut bytes = 0;
    for message in history.iter().rev() {
        let Some(message) = message_of(message) else { continue };
        bytes += message.to_string().len() + 1;
        if bytes > RESULT_BYTES_MAX - 2_000 {
            break;
        }
        messages.push(message);
    }
    let spoken = history.iter().filter(|message| message_of(message).is_some()).count();
    let left_off = spoken - messages.len();
    messages.reverse();
    let (_, mut out) = describe(visit, cluster, kind, session).unwrap_or_default();
    if let Value::Object(map) = &mut out {
        map.insert("messages".to_owned(), Value::Array(messages));
        if left_off > 0 {
            map.insert("earlier_messages_left_off".to_owned(), json!(left_off));
        }
    }
    out
}

/// What was said, without system prompts and tool traffic.
fn message_of(message: &Value) -> Option<Value> {
    let role = message.get("role")?.as_str().filter(|role| matches!(*role, "user" | "assistant"))?;
    let content = match message.get("content")? {
        Value::Null => return None,
        Value::String(text) if text.is_empty() => return None,
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Some(json!({"role": role, "text": text::head(&content, MESSAGE_CHARS_MAX)}))
}
