//! Owns what the gateway writes into a request: user ids, run ids, the query that AgentOS will read.
//! Does not decide whose ids they are (`facts`, `policy`).
//! Invariant: every place where a user id can travel is overwritten or removed; the caller's own never passes.

use serde_json::json;
use uuid::Uuid;

use super::admit::{Acting, is_true};
use super::body::Payload;
use super::facts::not_found;
use super::form::Form;
use super::ground::Ground;
use super::knowledge;
use super::refusal::{Code, Refusal, Stage};
use crate::agentos::operation::Version;
use crate::agentos::{Affinity, CanonicalPath, Operation, Place, Query};
use crate::cluster::{OnDisconnect, Picked};
use crate::telemetry::Door;

/// Reads the query as Starlette would and keeps what the row names.
///
/// # Errors
/// `field_duplicated` for identity parameters given twice, `path_not_canonical` for a malformed query.
pub(super) fn query(raw: Option<&str>, operation: &Operation) -> Result<Query, Refusal> {
    let parsed = Query::parse(raw.unwrap_or(""))
        .map_err(|e| Refusal::new(Code::PathNotCanonical, Stage::Request).because(e.to_string()))?;
    parsed
        .for_operation(operation)
        .map_err(|e| Refusal::new(Code::FieldDuplicated, Stage::Request).saying(e.to_string()))
}

/// Writes the acting user at every place of the row, and what keeps knowledge apart.
///
/// # Errors
/// `not_found` when the path names another user than the caller.
pub(super) fn pin(
    ground: &Ground<'_>,
    acting: &Acting,
    tenant_wide: bool,
    path: &mut CanonicalPath,
    query: &mut Query,
    payload: &mut Payload,
) -> Result<(), Refusal> {
    let user = match acting {
        Acting::User(user) => Some(user.as_str()),
        Acting::Lookup => None,
    };
    for place in ground.operation().user_id {
        match (place, &mut *payload) {
            (Place::Query(name), _) => match user {
                Some(user) if !tenant_wide => query.set(name, user),
                Some(_) | None if tenant_wide => one_of_the_tenant(ground, name, query)?,
                Some(_) | None => query.remove(name),
            },
            (Place::Form(name), Payload::Form(form)) => form.set(name, user.unwrap_or("")),
            (Place::Json(name), Payload::Json(object)) => object.set(name, &json!(user)),
            (Place::Path(name), _) => *path = own_path(ground, user, name, path)?,
            (Place::Form(_) | Place::Json(_), _) => {}
        }
    }
    knowledge::pin(ground, payload)
}

/// The path with the caller's upstream name where the caller wrote its own.
fn own_path(
    ground: &Ground<'_>,
    user: Option<&str>,
    name: &str,
    path: &CanonicalPath,
) -> Result<CanonicalPath, Refusal> {
    let named = ground.matched.params.get(name);
    let user = user.filter(|_| named == Some(&*ground.principal.subject)).ok_or_else(not_found)?;
    let segment = format!("{{{name}}}");
    let at = ground.operation().path.split('/').skip(1).position(|part| part == segment).ok_or_else(not_found)?;
    path.with_segment(at, user).map_err(|_| not_found())
}

/// A tenant-wide list narrowed to one user: the caller names it as answers do, without the tenant.
fn one_of_the_tenant(ground: &Ground<'_>, name: &str, query: &mut Query) -> Result<(), Refusal> {
    let Some(subject) = query.get(name).filter(|subject| !subject.is_empty()) else {
        query.remove(name);
        return Ok(());
    };
    let user = ground.cluster.settings.user_id.render(&ground.principal.tenant, subject).map_err(|_| not_found())?;
    query.set(name, user.as_str());
    Ok(())
}

/// Gives a new run its id: it names the endpoint that holds it and proves whose it is (see `cluster::run_id`).
pub(super) fn assign_run(ground: &Ground<'_>, picked: &Picked, payload: &mut Payload) -> Option<Uuid> {
    let Payload::Form(form) = payload else { return None };
    if ground.operation().affinity != Affinity::StartsRun {
        return None;
    }
    let id = ground.cluster.mint_run_id(ground.user, picked.endpoint());
    form.set("run_id", &id.to_string());
    if outlives_its_caller(ground, form) {
        form.set("background", "true");
    }
    Some(id)
}

/// Says whether AgentOS itself should let the run go on without its caller: where it can, and still streams it. Whoever
/// comes by socket may leave and come back for what was missed, and AgentOS remembers the events of such runs only.
fn outlives_its_caller(ground: &Ground<'_>, form: &Form) -> bool {
    let operation = ground.operation();
    let detaches = ground.cluster.settings.streams.on_disconnect_of(operation.id) == OnDisconnect::Detach;
    let by_socket = ground.view.door == Door::WebSocket;
    let streams = form.text("stream").is_none_or(is_true);
    (detaches || by_socket) && streams && ground.cluster.version() == Some(Version::V3)
}
