//! Owns what AgentOS says about a component: where it keeps its sessions, and what of its knowledge no filter reaches.
//! Does not judge it (`knowledge`) and does not list components (`filter`).
//! Invariant: what AgentOS does not describe counts as absent, never as harmless.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use serde_json::Value;

use super::facts::look_up;
use super::ground::Ground;
use super::refusal::Refusal;
use crate::agentos::Kind;
use crate::agentos::encode_segment;

/// Most descriptions kept.
const DESCRIBED_MAX: u64 = 10_000;
/// How long one is believed: components change when AgentOS is deployed or somebody edits a stored one.
const DESCRIBED_TTL: Duration = Duration::from_secs(30);
/// Deepest nesting of teams and steps that is followed; what is deeper counts as having knowledge.
const DEPTH_MAX: usize = 32;
/// The tool by which an agent without a content database searches.
const SEARCH_TOOL: &str = "search_knowledge_base";

/// Descriptions that were read lately, by cluster and path.
pub(super) struct Descriptions(Cache<(Arc<str>, String), Arc<Described>>);

/// What matters of a component's description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Described {
    /// The database of its sessions.
    pub(super) db_id: Option<String>,
    /// The table of its sessions.
    pub(super) table: Option<String>,
    /// It, a member or a step has knowledge.
    pub(super) has_knowledge: bool,
    /// Of a team: a member has filters of its own, so that the team passes it no others; or its own filters are a list,
    /// which it cannot join with ours.
    pub(super) drops_filters: bool,
}

// === impl Descriptions ===

impl Descriptions {
    /// Forgets everything: somebody changed a component.
    pub(super) fn forget(&self) {
        self.0.invalidate_all();
    }

    pub(super) fn new() -> Self {
        Self(Cache::builder().max_capacity(DESCRIBED_MAX).time_to_live(DESCRIBED_TTL).build())
    }
}

// === impl Described ===

impl Described {
    fn read(row: &Value) -> Self {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let members = row.get("members");
        let own = row.get("knowledge").and_then(|knowledge| knowledge.get("knowledge_filters"));
        let listed = matches!(own, Some(Value::Array(list)) if !list.is_empty());
        // What a factory makes is known when it is made.
        let unknown = row.get("is_factory").is_some_and(|is| *is != Value::Bool(false));
        let filtered = || members.is_some_and(|members| anywhere(members, &filters, 0));
        Self {
            db_id: text(row.get("db_id")),
            table: text(row.get("sessions").and_then(|sessions| sessions.get("session_table"))),
            has_knowledge: unknown || anywhere(row, &knows, 0),
            drops_filters: unknown || listed || filtered(),
        }
    }
}

/// Reads how AgentOS describes the component that the path names; `None` when the path names none or it is not there.
///
/// # Errors
/// Upstream refusals.
///
/// # Cancel safety
/// Safe: look-ups read only.
pub(super) async fn component(ground: &Ground<'_>, version: Option<&str>) -> Result<Option<Arc<Described>>, Refusal> {
    let Some((kind, id)) = ground.matched.component() else { return Ok(None) };
    let mut path = format!("/{}/{}", kind.plural(), encode_segment(id));
    // Of stored components, workflows alone can be asked for another version than the current one.
    if let (Kind::Workflow, Some(version)) = (kind, version) {
        path.push_str(&format!("?version={}", encode_segment(version)));
    }
    let kept = &ground.gateway.descriptions.0;
    let key = (Arc::clone(ground.cluster.name()), path);
    if let Some(described) = kept.get(&key) {
        return Ok(Some(described));
    }
    let Some(row) = look_up(ground, &key.1).await? else { return Ok(None) };
    let described = Arc::new(Described::read(&row));
    // What one caller's own token shows is not for others.
    if !ground.cluster.forwards_tokens() {
        kept.insert(key, Arc::clone(&described));
    }
    Ok(Some(described))
}

/// Says whether an object anywhere inside fulfils the condition.
fn anywhere(value: &Value, condition: &dyn Fn(&serde_json::Map<String, Value>) -> bool, depth: usize) -> bool {
    if depth > DEPTH_MAX {
        return true;
    }
    match value {
        Value::Object(object) => condition(object) || object.values().any(|v| anywhere(v, condition, depth + 1)),
        Value::Array(items) => items.iter().any(|item| anywhere(item, condition, depth + 1)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn knows(object: &serde_json::Map<String, Value>) -> bool {
    let given = object.get("knowledge").is_some_and(|knowledge| !matches!(knowledge, Value::Null | Value::Bool(false)));
    given || object.get("name").and_then(Value::as_str) == Some(SEARCH_TOOL)
}

fn filters(object: &serde_json::Map<String, Value>) -> bool {
    object.get("knowledge_filters").is_some_and(|filters| match filters {
        Value::Null => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn knowledge_is_found_wherever_it_stands() {
        let plain = json!({"id": "a", "db_id": "main", "sessions": {"session_table": "s"}, "tools": {"tools": [
            {"name": "send_mail", "parameters": {"type": "object"}}]}});
        let read = Described::read(&plain);
        let expected = Described {
            db_id: Some("main".into()),
            table: Some("s".into()),
            has_knowledge: false,
            drops_filters: false,
        };
        assert_eq!(read, expected);
        let agent = json!({"id": "a", "knowledge": {"knowledge_table": "k"}});
        let unnamed = json!({"id": "a", "tools": {"tools": [{"name": "search_knowledge_base"}]}});
        for inner in [&agent, &unnamed] {
            for row in [
                inner.clone(),
                json!({"members": [plain, {"members": [inner]}]}),
                json!({"steps": [{"type": "Parallel", "steps": [{"team": {"members": [inner]}}]}]}),
            ] {
                assert!(Described::read(&row).has_knowledge, "{row}");
            }
        }
    }

    #[test]
    fn teams_drop_filters_for_some_members_and_lists() {
        let drops = |row: Value| Described::read(&row).drops_filters;
        let agent = json!({"id": "a", "knowledge": {"knowledge_filters": {"kind": "faq"}}});
        assert!(!drops(agent.clone()));
        assert!(drops(json!({"members": [{"members": [agent]}]})));
        assert!(drops(json!({"members": [{"knowledge": {"knowledge_filters": [{"op": "EQ"}]}}]})));
        assert!(!drops(json!({"members": [{"knowledge": {"knowledge_filters": null}}]})));
        assert!(drops(json!({"knowledge": {"knowledge_filters": [{"op": "EQ"}]}})));
    }

    #[test]
    fn what_is_nested_too_deep_counts_as_knowledge() {
        let mut row = json!({"id": "deepest"});
        for _ in 0..=DEPTH_MAX {
            row = json!({ "steps": [row] });
        }
        assert!(Described::read(&row).has_knowledge);
    }
}
