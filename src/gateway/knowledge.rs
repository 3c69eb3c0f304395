//! Owns keeping the knowledge of tenants apart where they share a cluster: AgentOS gives it no owner.
//! Does not index or search. `knowledge = { metadata = "…" }` marks uploads and filters searches by that key.
//! Invariant: on a shared cluster no search leaves without the tenant's filter, no upload without its mark.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::address;
use super::body::Payload;
use super::described::{self, Described};
use super::facts::{self, not_found};
use super::form::Form;
use super::ground::Ground;
use super::refusal::{Code, Refusal, Stage};
use crate::agentos::{Action, Cost, Kind, Mark, Query, Version, rows};
use crate::cluster::Knowledge;

/// Checks that the content row that the path names belongs to the caller's tenant, in the knowledge base that is
/// meant, and that AgentOS is not sent to fetch from its own network.
///
/// # Errors
/// `not_found` when it does not, or does not exist; those of [`address::check`].
pub(super) async fn check(ground: &Ground<'_>, query: &Query, payload: &Payload) -> Result<(), Refusal> {
    if let Payload::Form(form) = payload
        && let Some(url) = form.text("url").filter(|url| !url.is_empty())
    {
        address::check(url).await?;
    }
    let Some(key) = key(ground) else { return Ok(()) };
    let Some(content_id) = ground.matched.params.get("content_id") else { return Ok(()) };
    let path = facts::located(rows::content(content_id), query);
    let Some(row) = facts::look_up(ground, &path).await? else { return Err(not_found()) };
    if belongs(&row, key, ground.principal.tenant.as_str()) { Ok(()) } else { Err(not_found()) }
}

/// Refuses a run that would search the knowledge of every tenant: AgentOS takes no filter for the steps of a
/// workflow, for members of a team that have filters of their own, beside a team's list of filters, and, in 2.x, for a
/// run that is continued.
///
/// # Errors
/// `knowledge_shared`; `not_found` when AgentOS does not describe the component.
///
/// # Cancel safety
/// Safe: look-ups read only.
pub(super) async fn reachable(ground: &Ground<'_>, payload: &Payload, rehearsal: bool) -> Result<(), Refusal> {
    let operation = ground.operation();
    let runs = operation.action == Action::Run && operation.cost == Cost::Model;
    let (Some((kind, _)), Some(_), true) = (ground.matched.component(), key(ground), runs) else { return Ok(()) };
    let continues_v2 = operation.affinity.follows_run() && ground.cluster.version() != Some(Version::V3);
    if kind == Kind::Agent && !continues_v2 {
        return Ok(());
    }
    let version = if let Payload::Form(form) = payload { form.text("version") } else { None };
    // AgentOS describes the current version of a team and no other.
    if kind == Kind::Team && version.is_some_and(|version| !version.is_empty()) {
        return Err(shared(kind));
    }
    // Boxed: few calls get here, and every call would carry its state.
    let Some(described) = Box::pin(describe(ground, version, rehearsal)).await? else { return Ok(()) };
    let unfiltered = match kind {
        Kind::Team => described.drops_filters,
        Kind::Agent | Kind::Workflow => described.has_knowledge,
    };
    if unfiltered { Err(shared(kind)) } else { Ok(()) }
}

/// Refuses to have a component run that may search, where its run can carry no filter at all: an evaluation.
///
/// # Errors
/// As [`reachable`].
///
/// # Cancel safety
/// Safe: look-ups read only.
pub(super) async fn searches_nothing(ground: &Ground<'_>, rehearsal: bool) -> Result<(), Refusal> {
    let (Some((kind, _)), Some(_)) = (ground.matched.component(), key(ground)) else { return Ok(()) };
    let described = describe(ground, None, rehearsal).await?;
    if described.is_some_and(|described| described.has_knowledge) { Err(shared(kind)) } else { Ok(()) }
}

/// The description of the component; `None` in a dry run that has no AgentOS to ask.
async fn describe(
    ground: &Ground<'_>,
    version: Option<&str>,
    rehearsal: bool,
) -> Result<Option<Arc<Described>>, Refusal> {
    match described::component(ground, version).await {
        Err(_) if rehearsal => Ok(None),
        described => described?.map(Some).ok_or_else(not_found),
    }
}

fn shared(kind: Kind) -> Refusal {
    Refusal::new(Code::KnowledgeShared, Stage::Facts).because(format!(
        "AgentOS applies no tenant's filter to the knowledge of this {kind}: serve it from a cluster with \
         `knowledge = \"exclusive\"`"
    ))
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
    let Some(key) = key(ground) else { return Ok(()) };
    let tenant = ground.principal.tenant.as_str();
    let operation = ground.operation();
    let Some(mark) = operation.mark else {
        // Agents search by themselves. AgentOS passes this field into the run, where it wins over what the model asks.
        if let (Action::Run, Cost::Model, Payload::Form(form)) = (operation.action, operation.cost, payload) {
            form.set("knowledge_filters", &json!({ key: tenant }).to_string());
        }
        return Ok(());
    };
    match (mark, payload) {
        (Mark::Filter(field), Payload::Json(search)) => {
            let given = search.get(field).map_err(|_| unreadable(field))?;
            let filters = joined(given, key, tenant, field)?;
            search.set(field, &Value::Object(filters));
            Ok(())
        }
        (Mark::Metadata(field), Payload::Form(form)) => {
            let metadata = joined(written(form, field)?, key, tenant, field)?;
            form.set(field, &json!(metadata).to_string());
            if ground.cluster.version() != Some(Version::V3) {
                // The id of a content row in 2.x is a digest of name, description and file name, without the metadata:
                // the second tenant to upload a `report.pdf` would take over the row and the text of the first.
                let given = form.text("description").map_or_else(String::new, |text| format!("{text} "));
                form.set("description", &format!("{given}[{tenant}]"));
            }
            Ok(())
        }
        (Mark::MetadataIfGiven(field), Payload::Form(form)) => {
            let Some(given) = written(form, field)? else { return Ok(()) };
            let metadata = joined(Some(given), key, tenant, field)?;
            form.set(field, &json!(metadata).to_string());
            Ok(())
        }
        // What its reply may not say is taken out of it (`filter`).
        (Mark::Mixed(_), _) => Ok(()),
        // Nothing that could carry the mark was sent: what would reach AgentOS is not the tenant's.
        (Mark::Filter(_) | Mark::Metadata(_) | Mark::MetadataIfGiven(_), _) => {
            Err(Refusal::new(Code::FormMalformed, Stage::Request).saying("this operation needs a request body"))
        }
    }
}

/// The metadata that a form gives, if it gives any.
fn written(form: &Form, field: &str) -> Result<Option<Value>, Refusal> {
    let Some(text) = form.text(field).filter(|text| !text.trim().is_empty()) else { return Ok(None) };
    serde_json::from_str(text).map(Some).map_err(|_| unreadable(field))
}

fn unreadable(field: &str) -> Refusal {
    Refusal::new(Code::FormMalformed, Stage::Request).saying(format!("field `{field}` is not valid JSON"))
}

fn joined(given: Option<Value>, key: &str, tenant: &str, field: &str) -> Result<Map<String, Value>, Refusal> {
    let mut map = match given {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(map)) => map,
        Some(Value::Array(_) | Value::String(_) | Value::Number(_) | Value::Bool(_)) => {
            return Err(Refusal::new(Code::FieldNotAllowed, Stage::Request)
                .saying(format!("field `{field}` must be an object here")));
        }
    };
    map.insert(key.to_owned(), tenant.into());
    Ok(map)
}
