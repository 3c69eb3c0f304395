//! Owns calls that make AgentOS start a run by itself: schedules, and evaluations of an agent or a team.
//! Does not decide about the schedule or evaluation (`admit` has); it asks the same questions about the run behind it.
//! Invariant: what AgentOS is told to run, now or later, is a run that the caller may start now, and runs under a name
//! that the caller may act for.
//!
//! AgentOS runs schedules as `__scheduler__`, which may run everything. What is stored between the check and the run
//! may change; every change that comes through here is checked again.

use std::sync::Arc;

use http::Method;
use serde_json::{Map, Value, json};

use super::admit::Acting;
use super::body::{self, Payload};
use super::exchange::Exchange;
use super::explain;
use super::facts::{self, Facts, not_found};
use super::form::Form;
use super::ground::Ground;
use super::knowledge;
use super::refusal::{Code, Refusal, Stage};
use super::shape;
use crate::agentos::{Affinity, Body, CanonicalPath, Exposure, Kind, Matched, Place, Query, Triggers, rows};

/// Fields of a run that are files, which no schedule can carry.
const FILES: [&str; 2] = ["files", "files_metadata"];

/// The run behind a schedule.
struct Planned {
    matched: Matched,
    path: CanonicalPath,
    /// What is sent to it.
    fields: Map<String, Value>,
    /// The caller gave the fields in this call; otherwise they are stored.
    is_new: bool,
    /// Whom the stored schedule runs for, as upstream names them.
    owner: Option<String>,
}

/// Authorizes the run that the call makes AgentOS start, and writes into the call whom it runs for.
///
/// # Errors
/// `field_not_allowed` for what is no run, the refusals of that run, those of look-ups.
///
/// # Cancel safety
/// Safe: look-ups read only.
pub(super) async fn authorize(
    ground: &Ground<'_>,
    payload: &mut Payload,
    exchange: &mut Exchange,
) -> Result<(), Refusal> {
    match ground.operation().triggers {
        None => Ok(()),
        // Boxed: few calls start runs behind their backs, and every call would carry the state of asking.
        Some(Triggers::Components) => Box::pin(components(ground, payload, exchange)).await,
        Some(Triggers::Schedule) => Box::pin(scheduled(ground, payload, exchange)).await,
    }
}

/// A schedule runs what it names, or what the stored one names.
async fn scheduled(ground: &Ground<'_>, payload: &mut Payload, exchange: &mut Exchange) -> Result<(), Refusal> {
    let stored = match stored(ground).await {
        Err(refusal) if exchange.rehearsal.is_some() && explain::is_out_of_reach(refusal.code) => {
            explain::unknown_run(refusal, exchange);
            return Ok(());
        }
        stored => stored?,
    };
    let planned = planned(ground, stored, payload)?;
    schedule(ground, planned, payload, exchange).await
}

/// An evaluation runs the components that it names.
async fn components(ground: &Ground<'_>, payload: &Payload, exchange: &mut Exchange) -> Result<(), Refusal> {
    let Payload::Json(object) = payload else { return Err(nothing_to_run()) };
    let mut named = false;
    for kind in [Kind::Agent, Kind::Team] {
        let id = object.get(&format!("{kind}_id")).map_err(|_| facts::not_an_id())?;
        let id = match id {
            None | Some(Value::Null) => continue,
            Some(Value::String(id)) if !id.is_empty() => id,
            Some(_) => return Err(facts::not_an_id()),
        };
        named = true;
        let (matched, _) = run_at(ground, "POST", &rows::runs(kind, &id))?;
        let run = Ground { matched: &matched, ..*ground };
        knowledge::searches_nothing(&run, exchange.rehearsal.is_some()).await?;
        permit(&run, &Payload::Form(empty()), None, exchange).await?;
    }
    if named { Ok(()) } else { Err(nothing_to_run()) }
}

fn nothing_to_run() -> Refusal {
    Refusal::new(Code::FormMalformed, Stage::Request).saying("name an `agent_id` or a `team_id`")
}

/// The schedule that the path names.
async fn stored(ground: &Ground<'_>) -> Result<Option<Value>, Refusal> {
    let Some(id) = ground.matched.params.get("schedule_id") else { return Ok(None) };
    let row = facts::look_up(ground, &rows::schedule(id)).await?;
    row.map(Some).ok_or_else(not_found)
}

/// Puts together what will run: what the call says, and for the rest what is stored.
fn planned(ground: &Ground<'_>, stored: Option<Value>, payload: &Payload) -> Result<Planned, Refusal> {
    let stored = stored.unwrap_or(Value::Null);
    let given = |name: &str| match payload {
        Payload::Json(object) => object.get(name).map_err(|_| unreadable(name)),
        Payload::None | Payload::Raw(_) | Payload::Form(_) => Ok(None),
    };
    let text = |name: &str| match given(name)?.or_else(|| stored.get(name).cloned()) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Refusal::new(Code::FormMalformed, Stage::Request).saying(format!("`{name}` must be a string"))),
    };
    let endpoint = text("endpoint")?.ok_or_else(no_run)?;
    let (matched, path) = run_at(ground, text("method")?.as_deref().unwrap_or("POST"), &endpoint)?;
    let new = given("payload")?;
    // A new schedule runs what it was given, be it nothing.
    let is_new = new.is_some() || stored.is_null();
    let fields = match new.or_else(|| stored.get("payload").cloned()) {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(fields)) => fields,
        Some(_) => return Err(unreadable("payload")),
    };
    // AgentOS 3 keeps the owner beside the payload, which wins; AgentOS 2 runs for whom the payload names.
    let beside = stored.get("user_id").filter(|owner| !owner.is_null());
    let inside = fields.get("user_id").filter(|owner| !is_new && !owner.is_null());
    let owner = match beside.or(inside) {
        None => None,
        Some(Value::String(owner)) => Some(owner.clone()),
        Some(_) => return Err(not_found()),
    };
    Ok(Planned { matched, path, fields, is_new, owner })
}

/// The run that AgentOS would be asked for. Only runs are started here: the scheduler's own rights reach further.
fn run_at(ground: &Ground<'_>, method: &str, endpoint: &str) -> Result<(Matched, CanonicalPath), Refusal> {
    // A query would be AgentOS's to read, and nobody's to check.
    let path = CanonicalPath::parse(endpoint).ok().filter(|_| !endpoint.contains(['?', '#'])).ok_or_else(no_run)?;
    let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes()).map_err(|_| no_run())?;
    let matched = ground.snapshot.catalog.find(&method, &path).map_err(|_| no_run())?;
    let row = matched.operation;
    if row.affinity != Affinity::StartsRun || row.exposure != Exposure::Offered {
        return Err(no_run());
    }
    if ground.cluster.version().is_some_and(|version| !row.versions.include(version)) {
        return Err(Refusal::new(Code::OperationUnsupported, Stage::Cluster));
    }
    Ok((matched, path))
}

fn no_run() -> Refusal {
    Refusal::new(Code::FieldNotAllowed, Stage::Request).saying(
        "only a run may be started: `POST` to `/agents/{id}/runs`, `/teams/{id}/runs` or `/workflows/{id}/runs`",
    )
}

fn unreadable(name: &str) -> Refusal {
    Refusal::new(Code::FormMalformed, Stage::Request).saying(format!("`{name}` cannot be read"))
}

/// Authorizes the run of a schedule and writes the checked endpoint, method and payload into the call.
async fn schedule(
    ground: &Ground<'_>,
    planned: Planned,
    payload: &mut Payload,
    exchange: &mut Exchange,
) -> Result<(), Refusal> {
    let Planned { matched, mut path, fields, is_new, owner } = planned;
    let subject = owner.as_deref().map(|owner| subject_of(ground, owner)).transpose()?;
    let user = match &subject {
        Some(subject) => {
            let named = ground.cluster.settings.user_id.render(&ground.principal.tenant, subject);
            named.map_err(|_| not_found())?
        }
        None => ground.user.clone(),
    };
    let form = form(&matched, &fields, is_new)?;
    let mut body = Payload::Form(form);
    let run = Ground { matched: &matched, user: &user, ..*ground };
    permit(&run, &body, subject, exchange).await?;
    knowledge::reachable(&run, &body, exchange.rehearsal.is_some()).await?;
    shape::pin(&run, &Acting::User(user.clone()), false, &mut path, &mut Query::default(), &mut body)?;
    let Payload::Form(pinned) = body else { return Ok(()) };
    let checked = written(&pinned, &fields);
    if !is_new {
        unchanged(&run, &fields, &checked)?;
    }
    let Payload::Json(object) = payload else { return Ok(()) };
    // What is sent is what was checked; what the caller leaves as it is stays out.
    for (name, value) in [("endpoint", json!(path.as_str())), ("method", json!("POST"))] {
        if is_new || object.names().any(|given| given == name) {
            object.set(name, &value);
        }
    }
    if is_new {
        object.set("payload", &Value::Object(checked));
    }
    Ok(())
}

/// The caller, of the caller's own tenant, that an upstream name stands for.
fn subject_of(ground: &Ground<'_>, user: &str) -> Result<String, Refusal> {
    if user == ground.user.as_str() {
        return Ok(ground.principal.subject.to_string());
    }
    ground.cluster.caller_of(user, &ground.principal.tenant).ok_or_else(not_found)
}

/// The payload as the scheduler will send it. What a caller gives may hold what a run takes and nothing else; what is
/// stored may hold more, which AgentOS or its operator wrote.
fn form(matched: &Matched, fields: &Map<String, Value>, is_new: bool) -> Result<Form, Refusal> {
    let row = matched.operation;
    let Body::Form(allowed) = row.body else { return Err(no_run()) };
    let mut form = empty();
    for (name, value) in fields {
        if is_new && (!allowed.contains(&name.as_str()) || FILES.contains(&name.as_str())) {
            return Err(body::field_not_allowed(name));
        }
        let is_id = |places: &[Place]| places.contains(&Place::Form("session_id")) && name == "session_id";
        match value {
            Value::String(text) => form.set(name, text),
            // Spelled by AgentOS in a way of its own: an id must not depend on that.
            _ if is_id(row.session_id) => return Err(facts::not_an_id()),
            value => form.set(name, &value.to_string()),
        }
    }
    Ok(form)
}

/// The payload with what the gateway has set in its form.
fn written(form: &Form, fields: &Map<String, Value>) -> Map<String, Value> {
    let mut checked = fields.clone();
    for name in form.names() {
        let before = fields.get(name).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        if let Some(text) = form.text(name).filter(|text| before.as_deref() != Some(*text)) {
            checked.insert(name.to_owned(), text.into());
        }
    }
    checked
}

/// What is stored cannot be rewritten by a call that carries no payload: it must be as the gateway would have it.
/// Whom it runs for was decided on its own.
fn unchanged(run: &Ground<'_>, stored: &Map<String, Value>, checked: &Map<String, Value>) -> Result<(), Refusal> {
    let own = |name: &str| run.operation().user_id.contains(&Place::Form("user_id")) && name == "user_id";
    let differs = checked.iter().any(|(name, value)| !own(name) && stored.get(name) != Some(value));
    if differs {
        return Err(Refusal::new(Code::Forbidden, Stage::Facts)
            .saying("the schedule was not written through this gateway: write its payload anew")
            .because("the stored payload lacks what keeps tenants apart"));
    }
    Ok(())
}

/// Learns the facts of a run and asks the policies about it, for the one that it runs for.
async fn permit(
    run: &Ground<'_>,
    payload: &Payload,
    subject: Option<String>,
    exchange: &mut Exchange,
) -> Result<(), Refusal> {
    let query = Query::parse("").map_err(|_| no_run())?;
    let gathered = facts::gather(run, &query, payload).await;
    let mut facts: Facts = explain::facts(gathered, Facts::of_call(run, payload), exchange)?;
    facts.owner = subject;
    explain::policy(run, &facts, exchange);
    let before = Arc::clone(&exchange.event.policies);
    let permitted = run.permit(&facts, exchange);
    if permitted.is_ok() {
        exchange.event.policies = before.iter().chain(exchange.event.policies.iter()).cloned().collect();
    }
    permitted
}

fn empty() -> Form {
    Form::new(Vec::new(), false, None)
}
