//! Owns what the gateway must know before it decides: who owns the ids that a call names.
//! Does not decide (`policy`); an owner of another tenant is refused here, since no policy may see across.
//! Invariant: an owner that could not be learned is nobody's; errors and timeouts refuse.

use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::sync::Cache;
use serde::Deserialize;
use serde_json::Value;

use super::body::Payload;
use super::described;
use super::forward;
use super::ground::Ground;
use super::knowledge;
use super::learnings;
use super::refusal::{Code, Refusal, Stage};
use super::sessions::{Held, NotHeld};
use crate::agentos::{
    Action, Affinity, Cost, Kind, OnRun, Operation, Place, Query, Reach, Resource, encode_segment, rows,
};
use crate::cluster::{EndpointTag, UpstreamUser};
use crate::policy::ApprovalFacts;

/// Most owners kept.
const OWNERS_MAX: u64 = 100_000;
/// How long an owner is kept. Rows do not change owners, but after a delete, here or at another instance, the next
/// row of that id may be somebody else's: this bounds how long the old owner is believed.
const OWNER_TTL: Duration = Duration::from_secs(10);
/// Most ids of one kind in one call (`DELETE /sessions`).
const IDS_MAX: usize = 100;
/// How long the look-ups of one call go on before the next one is not begun.
const GATHER_MAX: Duration = Duration::from_secs(30);
/// Longest id, in bytes; AgentOS's own are UUIDs. Ids are keys of tables.
const ID_BYTES_MAX: usize = 512;

/// Own rows that callers looked up lately, by cluster, caller and where the row is (path, database, table).
pub(super) struct Owners(Cache<OwnerKey, ()>);

type OwnerKey = (Arc<str>, UpstreamUser, String);

/// Who owns a row upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owner {
    /// This upstream user.
    User(Arc<str>),
    /// The row has no user.
    Nobody,
    /// There is no such row: a new id may be created.
    Absent,
}

/// An approval row as far as policies read it.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct ApprovalRow {
    user_id: Option<String>,
    tool_name: Option<String>,
    status: Option<String>,
    #[serde(skip)]
    requested_by: Option<String>,
}

/// What is known about the ids of one call.
#[derive(Default)]
pub(super) struct Facts {
    /// The most specific id of the row's resource; empty for a collection.
    pub(super) resource_id: String,
    /// Subject of the owner, of the caller's own tenant; empty when the row has none.
    pub(super) owner: Option<String>,
    /// The owner as upstream names it, when it is not the caller.
    pub(super) acting: Option<UpstreamUser>,
    /// The approval that the call is about.
    pub(super) approval: Option<ApprovalRow>,
    /// The session that the call names.
    pub(super) session: Option<String>,
    /// The right to make it, while it is not there.
    pub(super) new_session: Option<Held>,
    /// The run that the call follows.
    pub(super) run: Option<String>,
    /// The endpoint that holds the run.
    pub(super) tag: Option<EndpointTag>,
    /// Length of the message, in bytes.
    pub(super) message_bytes: u64,
}

// === impl Owners ===

impl Owners {
    pub(super) fn new() -> Self {
        Self(Cache::builder().max_capacity(OWNERS_MAX).time_to_live(OWNER_TTL).build())
    }
}

// === impl Facts ===

impl Facts {
    /// What the call itself says, before anything was looked up.
    pub(super) fn of_call(ground: &Ground<'_>, payload: &Payload) -> Self {
        Self {
            resource_id: ground.matched.resource_id().unwrap_or("").to_owned(),
            message_bytes: message_bytes(payload),
            ..Self::default()
        }
    }

    pub(super) fn approval_facts(&self) -> Option<ApprovalFacts<'_>> {
        self.approval.as_ref().map(|row| ApprovalFacts {
            tool_name: row.tool_name.as_deref(),
            status: row.status.as_deref(),
            requested_by: row.requested_by.as_deref(),
        })
    }
}

/// Learns who owns what the call names.
///
/// # Errors
/// `not_found` for what belongs to another tenant or to nobody; upstream errors when a look-up fails.
///
/// # Cancel safety
/// Safe: look-ups read only.
pub(super) async fn gather(ground: &Ground<'_>, query: &Query, payload: &Payload) -> Result<Facts, Refusal> {
    let operation = ground.operation();
    let facts = Facts::of_call(ground, payload);
    if facts.resource_id.len() > ID_BYTES_MAX {
        return Err(not_found());
    }
    let sessions =
        if narrows_own_list(operation) { Vec::new() } else { ids_at(ground, operation.session_id, query, payload)? };
    if sessions.is_empty() && names_nothing(operation, &facts) {
        return Ok(facts);
    }
    // Boxed: most calls name nothing that has an owner, and each would carry the state of several look-ups.
    Box::pin(look_into(ground, query, payload, facts, sessions)).await
}

/// Says whether a call without a session names nothing whose owner would have to be known.
fn names_nothing(operation: &Operation, facts: &Facts) -> bool {
    let checks_its_payload = matches!(operation.resource, Resource::Knowledge | Resource::Learning);
    facts.resource_id.is_empty() && operation.run_id.is_empty() && !checks_its_payload
}

async fn look_into(
    ground: &Ground<'_>,
    query: &Query,
    payload: &Payload,
    mut facts: Facts,
    sessions: Vec<String>,
) -> Result<Facts, Refusal> {
    let operation = ground.operation();
    (facts.run, facts.tag) = holder(ground, query, payload).await?;
    // The id of the run says whose it is. Who cancels must not wait for a database: a run is stopped because all is slow.
    let proven = facts.tag.is_some() && operation.does(OnRun::Cancel) && operation.resource == Resource::Run;
    let mut session_is_mine = false;
    let enough = (sessions.len() > 1).then(|| Instant::now() + GATHER_MAX);
    for session in sessions.iter().filter(|_| !proven) {
        if enough.is_some_and(|enough| Instant::now() > enough) {
            return Err(
                Refusal::new(Code::UpstreamTimeout, Stage::Facts).because("looking up the sessions took too long")
            );
        }
        // Held before it is looked up: of two who find nothing, one would write into the session of the other.
        let held = makes_session(operation).then(|| hold(ground, session));
        let owner = session_owner(ground, session, query).await?;
        // Whoever owns a session needs no hold: naming it must not keep its owner out.
        if owner == Owner::Absent {
            facts.new_session = held.transpose()?;
        }
        // What a caller's own token does not see may be somebody else's.
        let absent = owner == Owner::Absent && !ground.cluster.forwards_tokens();
        if owner == Owner::Absent && !(absent && may_name_new_session(operation)) {
            return Err(not_found());
        }
        session_is_mine |= owner == Owner::User(Arc::from(ground.user.as_str()));
        claim(ground, &mut facts, owner, operation.resource == Resource::Session)?;
    }
    facts.session = sessions.into_iter().next();
    follow_run(ground, &mut facts, session_is_mine).await?;
    match operation.resource {
        Resource::Approval if !facts.resource_id.is_empty() => approval(ground, &mut facts).await?,
        Resource::Knowledge => knowledge::check(ground, query, payload).await?,
        Resource::Learning => {
            learnings::check(ground, payload)?;
            own_row(ground, &mut facts, query).await?;
        }
        Resource::Agent
        | Resource::Team
        | Resource::Workflow
        | Resource::Session
        | Resource::Run
        | Resource::Memory
        | Resource::Approval
        | Resource::Trace
        | Resource::Schedule
        | Resource::Component
        | Resource::Evaluation
        | Resource::Os => own_row(ground, &mut facts, query).await?,
    }
    Ok(facts)
}

/// Learns who owns the one row that the call names, where rows of its kind have owners.
async fn own_row(ground: &Ground<'_>, facts: &mut Facts, query: &Query) -> Result<(), Refusal> {
    let operation = ground.operation();
    let Some(path) = rows::owned(operation.resource, &facts.resource_id) else { return Ok(()) };
    if operation.reach != Reach::Owned || facts.resource_id.is_empty() {
        return Ok(());
    }
    let owner = row_owner(ground, &[located(path, query)]).await;
    match owner.map_err(|refusal| which_database(ground, query, refusal))? {
        Owner::Absent => Err(not_found()),
        owner => claim(ground, facts, owner, true),
    }
}

/// Takes an owner into the facts, or refuses what the caller's tenant must not know about.
fn claim(ground: &Ground<'_>, facts: &mut Facts, owner: Owner, is_resource: bool) -> Result<(), Refusal> {
    let subject = match owner {
        Owner::Absent => return Ok(()),
        Owner::Nobody if is_resource && ground.cluster.settings.is_exclusive() => String::new(),
        Owner::Nobody => return Err(not_found()),
        Owner::User(user) if *user == *ground.user.as_str() => ground.principal.subject.to_string(),
        Owner::User(user) => {
            let Some(subject) = ground.cluster.caller_of(&user, &ground.principal.tenant) else {
                return Err(not_found());
            };
            // A run inside somebody else's session would be stored under a wrong name, or lost.
            if !is_resource {
                return Err(not_found());
            }
            let acting = ground.cluster.settings.user_id.render(&ground.principal.tenant, &subject);
            facts.acting = Some(acting.map_err(|_| not_found())?);
            subject
        }
    };
    if is_resource {
        // One decision, one acting user: rows of several owners in one call would hide behind the last one.
        if facts.owner.as_ref().is_some_and(|before| *before != subject) {
            return Err(not_found());
        }
        facts.owner = Some(subject);
    }
    Ok(())
}

/// Says whether a session id only narrows a list that is pinned to the caller anyway: whose it is changes nothing.
fn narrows_own_list(operation: &Operation) -> bool {
    let in_query = |places: &[Place]| places.iter().any(|place| matches!(place, Place::Query(_)));
    operation.list.is_some() && in_query(operation.user_id) && in_query(operation.session_id)
}

/// Says whether a session id may be new. Elsewhere what is absent must look like what is foreign. Runs are proven
/// by their own id: AgentOS 2.x stores a session only when its first run has ended.
fn may_name_new_session(operation: &Operation) -> bool {
    makes_session(operation) || operation.resource == Resource::Run
}

/// Says whether AgentOS writes a session of this id if there is none.
fn makes_session(operation: &Operation) -> bool {
    operation.affinity == Affinity::StartsRun || operation.creates_session
}

/// Holds the id of a session that may have to be made.
fn hold(ground: &Ground<'_>, session: &str) -> Result<Held, Refusal> {
    let longest = ground.cluster.settings.timeouts.stream_max;
    ground.gateway.new_sessions.hold(ground.cluster.name(), session, ground.user, longest).map_err(|not| match not {
        NotHeld::Taken => not_found(),
        NotHeld::Full => Refusal::new(Code::Overloaded, Stage::Facts).because("too many sessions are being made"),
    })
}

/// The run that the call follows, and the endpoint that holds it if that is known; then the run is the caller's.
async fn holder(
    ground: &Ground<'_>,
    query: &Query,
    payload: &Payload,
) -> Result<(Option<String>, Option<EndpointTag>), Refusal> {
    let operation = ground.operation();
    let in_path = operation.run_id.iter().any(|place| matches!(place, Place::Path(_)));
    if !in_path {
        return Ok((None, None));
    }
    let run = ids_at(ground, operation.run_id, query, payload)?.into_iter().next();
    let Some(id) = &run else { return Ok((None, None)) };
    let (cluster, known) = (ground.cluster.name(), &ground.gateway.runs);
    // A run that was continued elsewhere keeps the id that names where it began.
    let learned = known.learned(cluster, id, ground.user);
    let tag = learned.or_else(|| ground.cluster.read_run_id(id, ground.user));
    if !operation.affinity.follows_run() || tag.is_some_and(|tag| ground.cluster.reaches(tag)) {
        return Ok((run, tag));
    }
    let recalled = known.recalled(cluster, id, ground.user).await;
    Ok((run, recalled.or(tag)))
}

/// Learns that the run is the caller's.
async fn follow_run(ground: &Ground<'_>, facts: &mut Facts, session_is_mine: bool) -> Result<(), Refusal> {
    let operation = ground.operation();
    if facts.run.is_none() || operation.resource != Resource::Run {
        return Ok(());
    }
    // AgentOS cancels and resumes any run that it holds, whatever session is named beside it.
    let mine = facts.tag.is_some()
        || (session_is_mine && (!operation.affinity.follows_run() || stored_run(ground, facts).await?.is_some()));
    if mine && !runs_another_component(ground, facts).await? {
        facts.owner = Some(ground.principal.subject.to_string());
        Ok(())
    } else {
        Err(not_found())
    }
}

/// The run as AgentOS keeps it in the session that the call names.
async fn stored_run(ground: &Ground<'_>, facts: &Facts) -> Result<Option<Value>, Refusal> {
    let (Some((kind, component)), Some(run), Some(session)) = (ground.matched.component(), &facts.run, &facts.session)
    else {
        return Ok(None);
    };
    look_up(ground, &rows::run(kind, component, run, session)).await
}

/// Says whether a run that goes on belongs to another component than the path names: the right to run the one would
/// run the other, since AgentOS 2.x asks the path for rights and the run for what to do.
async fn runs_another_component(ground: &Ground<'_>, facts: &Facts) -> Result<bool, Refusal> {
    let operation = ground.operation();
    let Some((kind, component)) = ground.matched.component() else { return Ok(false) };
    if !operation.affinity.follows_run() || operation.cost != Cost::Model {
        return Ok(false);
    }
    let run = stored_run(ground, facts).await?;
    let owner = run.as_ref().and_then(|run| run.get(format!("{kind}_id"))).and_then(Value::as_str);
    Ok(owner.is_some_and(|owner| owner != component))
}

async fn approval(ground: &Ground<'_>, facts: &mut Facts) -> Result<(), Refusal> {
    let Some(row) = look_up(ground, &rows::approval(&facts.resource_id)).await? else { return Err(not_found()) };
    let mut row: ApprovalRow = serde_json::from_value(row)
        .map_err(|e| Refusal::new(Code::UpstreamInvalid, Stage::Facts).because(e.to_string()))?;
    let owner = row.user_id.take().map_or(Owner::Nobody, |user| Owner::User(user.into()));
    claim(ground, facts, owner, true)?;
    row.requested_by.clone_from(&facts.owner);
    facts.approval = Some(row);
    Ok(())
}

/// AgentOS keeps three kinds of sessions under one path; the likely kind is asked first.
async fn session_owner(ground: &Ground<'_>, session: &str, query: &Query) -> Result<Owner, Refusal> {
    let hint = ground.matched.component().map(|(kind, _)| kind).or_else(|| query.get("type").and_then(Kind::parse));
    let mut kinds = Kind::ALL.to_vec();
    kinds.sort_by_key(|kind| Some(*kind) != hint);
    let paths = |query: &Query| {
        let path = |kind: &Kind| located(rows::session(session, *kind), query);
        kinds.iter().map(path).collect::<Vec<_>>()
    };
    match row_owner(ground, &paths(query)).await {
        // An AgentOS with several databases wants to know which: a component's sessions are where it says.
        Err(refusal) if refusal.code == Code::NotFound => {
            let Some(component) = described::component(ground, None).await? else {
                return Err(which_database(ground, query, refusal));
            };
            let Some(db_id) = &component.db_id else { return Err(refusal) };
            let mut query = query.clone();
            query.set("db_id", db_id);
            if let Some(table) = &component.table {
                query.set("table", table);
            }
            row_owner(ground, &paths(&query)).await
        }
        asked => asked,
    }
}

/// The refusal of a look-up that AgentOS would not answer, for a caller who could have said where to look.
fn which_database(ground: &Ground<'_>, query: &Query, refusal: Refusal) -> Refusal {
    let could_say = ground.operation().query.contains(&"db_id") && query.get("db_id").is_none();
    if refusal.code != Code::NotFound || refusal.reason.is_none() || !could_say {
        return refusal;
    }
    Refusal { code: Code::FormMalformed, ..refusal }
        .saying("this AgentOS keeps rows in several databases: say which one with `db_id`")
}

/// Adds where the call looks: an AgentOS may keep rows in several databases and tables, and what is asked about must
/// be what is acted on.
pub(super) fn located(mut path: String, query: &Query) -> String {
    for name in ["db_id", "table", "knowledge_id"] {
        if let Some(value) = query.get(name) {
            path.push(if path.contains('?') { '&' } else { '?' });
            path.push_str(&format!("{name}={}", encode_segment(value)));
        }
    }
    path
}

/// Asks upstream, path after path, who owns a row. Only the caller's own rows are kept, for the caller; for those of
/// others every path is asked as for an absent one, so that the time says nothing about them. A path that fails counts
/// only if no other one answers: AgentOS 2.x breaks over a session that it is asked for as another kind.
async fn row_owner(ground: &Ground<'_>, paths: &[String]) -> Result<Owner, Refusal> {
    let owners = &ground.gateway.owners.0;
    let deletes = ground.operation().action == Action::Delete;
    let (mut foreign, mut failed) = (None, None);
    for path in paths {
        let key = (Arc::clone(&ground.cluster.settings.name), ground.user.clone(), path.clone());
        if deletes {
            owners.invalidate(&key);
        } else if owners.contains_key(&key) {
            return Ok(Owner::User(ground.user.as_str().into()));
        }
        let row = match look_up(ground, path).await {
            Ok(Some(row)) => row,
            Ok(None) => continue,
            Err(refusal) => {
                failed = failed.or(Some(refusal));
                continue;
            }
        };
        match row.get("user_id").and_then(Value::as_str).filter(|user| !user.is_empty()) {
            Some(user) if user == ground.user.as_str() => {
                if !deletes {
                    owners.insert(key, ());
                }
                return Ok(Owner::User(user.into()));
            }
            Some(user) => foreign = foreign.or_else(|| Some(Owner::User(user.into()))),
            None => foreign = foreign.or(Some(Owner::Nobody)),
        }
    }
    match (foreign, failed) {
        (Some(owner), _) => Ok(owner),
        (None, Some(refusal)) => Err(refusal),
        (None, None) => Ok(Owner::Absent),
    }
}

/// Reads one row with the lookup identity, in the caller's turn; `None` when there is none.
pub(super) async fn look_up(ground: &Ground<'_>, path: &str) -> Result<Option<Value>, Refusal> {
    let _turn = ground.gateway.look_ups.turn(&ground.cluster.settings.name, ground.user).await?;
    forward::look_up(ground.gateway, ground.cluster, ground.caller_token, path).await
}

/// The ids that travel at these places; an array of ids counts as all of them.
fn ids_at(ground: &Ground<'_>, places: &[Place], query: &Query, payload: &Payload) -> Result<Vec<String>, Refusal> {
    let mut ids = Vec::new();
    for place in places {
        match (place, payload) {
            (Place::Path(name), _) => ids.extend(ground.matched.params.get(name).map(str::to_owned)),
            (Place::Query(name), _) => ids.extend(query.get(name).map(str::to_owned)),
            (Place::Form(name), Payload::Form(form)) => ids.extend(form.text(name).map(str::to_owned)),
            (Place::Json(name), Payload::Json(object)) => {
                ids.extend(strings(object.get(name).map_err(|_| not_an_id())?)?)
            }
            (Place::Form(_) | Place::Json(_), _) => {}
        }
    }
    ids.retain(|id| !id.is_empty());
    if ids.len() > IDS_MAX {
        return Err(Refusal::new(Code::FormMalformed, Stage::Facts).saying("the request names too many ids"));
    }
    if ids.iter().any(|id| id.len() > ID_BYTES_MAX) {
        return Err(Refusal::new(Code::FormMalformed, Stage::Facts).saying("an id is too long"));
    }
    Ok(ids)
}

pub(super) fn not_an_id() -> Refusal {
    Refusal::new(Code::FormMalformed, Stage::Facts).saying("an id must be a string")
}

fn strings(value: Option<Value>) -> Result<Vec<String>, Refusal> {
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(id)) => Ok(vec![id]),
        Some(Value::Array(ids)) => {
            ids.into_iter().map(|id| if let Value::String(id) = id { Ok(id) } else { Err(not_an_id()) }).collect()
        }
        Some(Value::Bool(_) | Value::Number(_) | Value::Object(_)) => Err(not_an_id()),
    }
}

fn message_bytes(payload: &Payload) -> u64 {
    match payload {
        Payload::Form(form) => form.text("message").map_or(0, |message| message.len() as u64),
        Payload::None | Payload::Json(_) | Payload::Raw(_) => 0,
    }
}

/// What is foreign and what is absent look the same.
pub(super) fn not_found() -> Refusal {
    Refusal::new(Code::NotFound, Stage::Facts)
}
