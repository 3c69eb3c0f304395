//! Owns keeping the knowledge of tenants apart where they share a cluster: AgentOS gives it no owner.
//! Does not index or search. `knowledge = { metadata = "…" }` marks uploads and filters searches by that key.
//! Invariant: on a shared cluster no search leaves without the tenant's filter, no upload without its mark.

use serde_json::{Map, Value, json};

use super::admit::Ground;
use super::body::Payload;
use super::facts::{self, not_found};
use super::refusal::{Code, Refusal, Stage};
use crate::agentos::Resource;
use crate::cluster::Knowledge;

/// Checks that a content row belongs to the caller's tenant.
///
/// # Errors
/// `not_found` when it does not, or does not exist.
pub(super) async fn check(ground: &Ground<'_>, content_id: &str) -> Result<(), Refusal> {
    let Some(key) = key(ground) else { return Ok(()) };
    if content_id.is_empty() || !ground.operation().path.contains("{content_id}") {
        return Ok(());
    }
    let path = format!("/knowledge/content/{}", facts::encode(content_id));
    let Some(row) = facts::look_up(ground, &path).await? else { return Err(not_found()) };
    if belongs(&row, key, ground.principal.tenant.as_str()) { Ok(()) } else { Err(not_found()) }
}

/// Says whether a content row carries the tenant's mark.
pub(super) fn belongs(row: &Value, key: &str, tenant: &str) -> bool {
    row.get("metadata").and_then(|m| m.get(key)).and_then(Value::as_str) == Some(tenant)
}

/// The metadata key that keeps tenants apart, if the cluster works so.
pub(super) fn key<'a>(ground: &'a Ground<'_>) -> Option<&'a str> {
    match &ground.cluster.settings.knowledge {
        Knowledge::Metadata(key) => Some(key),
        Knowledge::Exclusive | Knowledge::Unset => None,
    }
}

/// Adds the tenant's filter to searches and its mark to uploads.
///
/// # Errors
/// `field_not_allowed` when the caller's own filter or metadata has a shape that the tenant's cannot join.
pub(super) fn pin(ground: &Ground<'_>, payload: &mut Payload) -> Result<(), Refusal> {
    if ground.operation().resource != Resource::Knowledge {
        return Ok(());
    }
    let Some(key) = key(ground) else { return Ok(()) };
    let tenant = ground.principal.tenant.as_str();
    match (ground.operation().id, payload) {
        ("search_knowledge", Payload::Json(search)) => {
            let filters = joined(search.get("filters"), key, tenant, "filters")?;
            search.set("filters", &Value::Object(filters));
        }
        ("upload_content" | "upload_remote_content" | "update_content", Payload::Form(form)) => {
            let given = match form.text("metadata").filter(|text| !text.trim().is_empty()) {
                None => None,
                Some(text) => Some(serde_json::from_str(text).map_err(|_| {
                    Refusal::new(Code::FormMalformed, Stage::Request).saying("field `metadata` is not valid JSON")
                })?),
            };
            // An update that leaves the metadata alone keeps the mark that is there.
            if given.is_none() && ground.operation().id == "update_content" {
                return Ok(());
            }
            let metadata = joined(given, key, tenant, "metadata")?;
            form.set("metadata", &json!(metadata).to_string());
        }
        (_, _) => {}
    }
    Ok(())
}

fn joined(given: Option<Value>, key: &str, tenant: &str, field: &str) -> Result<Map<String, Value>, Refusal> {
    let mut map = match given {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(map)) => map,
        Some(Value::Array(_) | Value::String(_) | Value::Number(_) | Value::Bool(_)) => {
            return Err(Refusal::new(Code::FieldNotAllowed, Stage::Request).saying(format!("field `{field}` must be an object here")));
        }
    };
    map.insert(key.to_owned(), tenant.into());
    Ok(map)
}
