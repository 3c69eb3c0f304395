//! Owns admission: the one straight function from a call to the right to go upstream, or to a refusal.
//! Does not send anything upstream but look-ups of facts (`facts`).
//! Invariant: an `Admitted` is made here and nowhere else, after every stage has agreed.

use std::sync::Arc;

use http::HeaderMap;
use uuid::Uuid;

use super::approvals::{self, Continuing};
use super::arrival;
use super::body::{self, Payload};
use super::call::{Answer, Call};
use super::cancel::Order;
use super::exchange::Exchange;
use super::explain;
use super::facts::{self, Facts};
use super::filter;
use super::ground::{self, Ground, Hold};
use super::knowledge;
use super::path::Gateway;
use super::refusal::Refusal;
use super::runs::Held;
use super::sessions;
use super::shape;
use super::snapshot::Snapshot;
use super::triggers;
use super::view::View;
use crate::agentos::{Action, CanonicalPath, Cost, Exposure, Matched, Method, Operation, Own, Query, Reply};
use crate::cache::FillGuard;
use crate::cluster::{Cluster, OnDisconnect, Picked, UpstreamUser, Use};
use crate::principal::Principal;
use crate::usage::Meter;

/// What admission came to, when it did not refuse.
pub(super) enum Verdict {
    /// The answer is known without going upstream.
    Answered(Answer),
    /// May go upstream.
    Admitted(Box<Admitted>),
}

/// Whom upstream is told that it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Acting {
    /// The owner of the rows: the caller, or the one that policy lets the caller act for.
    User(UpstreamUser),
    /// The gateway itself, seeing every owner; what it reads is filtered.
    Lookup,
}

/// The ticket upstream. Its fields are read by `forward`; only this module can make one.
pub(super) struct Admitted {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) matched: Matched,
    pub(super) principal: Arc<Principal>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) user: UpstreamUser,
    pub(super) acting: Acting,
    pub(super) path: CanonicalPath,
    pub(super) query: Query,
    pub(super) headers: HeaderMap,
    pub(super) caller_token: Option<String>,
    pub(super) payload: Payload,
    pub(super) picked: Picked,
    pub(super) run_id: Option<Uuid>,
    /// The session that the call names.
    pub(super) session: Option<String>,
    /// AgentOS goes on with the run whoever listens.
    pub(super) background: bool,
    pub(super) lease: Option<Held>,
    pub(super) hold: Hold,
    pub(super) continuing: Option<Continuing>,
    /// The cancel to send when the caller of a run that is not streamed goes away, where the cluster says so.
    pub(super) order: Option<Arc<parking_lot::Mutex<Option<Order>>>>,
    /// Held until the exchange ends.
    pub(super) new_session: Option<sessions::Held>,
    pub(super) fill: Option<FillGuard>,
    pub(super) tenant_wide: bool,
    pub(super) answer_headers: HeaderMap,
    pub(super) view: View,
    _ticket: (),
}

/// A call whose operation, caller and cluster are known, and whose rate is spent.
struct Arrived {
    path: CanonicalPath,
    matched: Matched,
    principal: Arc<Principal>,
    cluster: Arc<Cluster>,
    user: UpstreamUser,
    caller_token: Option<String>,
}

impl Admitted {
    /// The operation that was admitted.
    pub(super) fn operation(&self) -> &'static Operation {
        self.matched.operation
    }

    /// A meter of the answer; what a run that goes on had used before is not counted again.
    pub(super) fn meter(&self) -> Meter {
        let stored = self.continuing.as_ref().and_then(|continuing| continuing.stored.clone());
        stored.map_or_else(Meter::new, Meter::continuing)
    }

    /// Drops what only sending needs: a stream may stay for hours, and its request's fields keep the caller's whole head.
    pub(super) fn shed(&mut self) {
        (self.headers, self.query) = (HeaderMap::new(), Query::default());
    }

    /// What the call does at its endpoint.
    pub(super) fn uses(&self) -> Use {
        ground::uses(self.operation())
    }

    /// The session whose endpoint the call goes to.
    pub(super) fn follows_session(&self) -> Option<&str> {
        self.session.as_deref().filter(|_| ground::follows_session(self.operation(), &self.cluster))
    }

    /// What becomes of its run when the caller goes away.
    pub(super) fn on_disconnect(&self) -> OnDisconnect {
        self.cluster.settings.streams.on_disconnect_of(self.operation().id)
    }

    /// From here on AgentOS may act on the call.
    pub(super) fn sending(&mut self) {
        if let Some(continuing) = &mut self.continuing {
            continuing.sending();
        }
        if let Some(session) = &mut self.new_session {
            session.sending();
        }
    }

    /// Says whether the caller asked for a stream: AgentOS streams unless the form says otherwise.
    pub(super) fn streams(&self) -> bool {
        match (self.operation().reply, &self.payload) {
            (Reply::Sse, _) => true,
            (Reply::SseIfStream, Payload::Form(form)) => form.text("stream").is_none_or(is_true),
            (Reply::SseIfStream, _) => true,
            (Reply::Json | Reply::Empty | Reply::Opaque, _) => false,
        }
    }
}

// === impl Payload ===

impl Payload {
    /// Says whether AgentOS was asked to go on with the run whoever listens.
    fn is_background(&self) -> bool {
        matches!(self, Self::Form(form) if form.text("background").is_some_and(is_true))
    }
}

/// Form booleans as pydantic reads them.
pub(super) fn is_true(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "true" | "1" | "on" | "yes" | "t" | "y")
}

/// Decides one call: operation, caller, cluster and rate here, what needs the request itself in `decide`.
///
/// # Errors
/// The first stage that says no.
///
/// # Cancel safety
/// Safe: what was reserved is given back by its guard.
pub(super) async fn admit(
    gateway: &Gateway,
    snapshot: &Arc<Snapshot>,
    mut call: Call,
    exchange: &mut Exchange,
) -> Result<Verdict, Refusal> {
    let (path, matched) = arrival::operation(snapshot, &call, exchange)?;
    let operation = matched.operation;
    if operation.exposure == Exposure::Local(Own::Health) {
        return Ok(Verdict::Answered(arrival::healthy()));
    }
    let principal = arrival::principal(snapshot, &call.caller, &call.headers, exchange).await?;
    let cluster = arrival::cluster(snapshot, &call, &principal, operation, exchange)?;
    let work = arrival::work(&cluster, &matched, call.tool);
    exchange.limits = arrival::spend(gateway, snapshot, &principal, operation, &work, exchange).await?.limits;
    if operation.exposure.is_local() {
        // Boxed: few calls are answered here, and every call would carry its state.
        return Box::pin(arrival::local(operation, snapshot, &principal, &exchange.limits))
            .await
            .map(Verdict::Answered);
    }
    let user = arrival::upstream_user(&cluster, &principal)?;
    let caller_token = arrival::token(&cluster, &call.headers)?;
    let arrived = Arrived { path, matched, principal, cluster, user, caller_token };
    decide(gateway, snapshot, &mut call, arrived, exchange).await
}

/// Reads the request, learns the facts, asks policy, cache and quota, and chooses an endpoint.
///
/// Longer than a screen: the order of these stages is what must be read in one piece.
///
/// # Errors
/// The first stage that says no.
///
/// # Cancel safety
/// Safe: what was reserved is given back by its guard.
async fn decide(
    gateway: &Gateway,
    snapshot: &Arc<Snapshot>,
    call: &mut Call,
    arrived: Arrived,
    exchange: &mut Exchange,
) -> Result<Verdict, Refusal> {
    let Arrived { mut path, matched, principal, cluster, user, caller_token } = arrived;
    let mut query = shape::query(call.query.as_deref(), matched.operation)?;
    let mut payload = body::read(call.body.take(), matched.operation, &call.headers, &snapshot.limits).await?;
    let view = View { door: call.door, peer: call.peer, human: call.human, tool: call.tool };
    let ground = Ground {
        gateway,
        snapshot,
        view: &view,
        principal: &principal,
        cluster: &cluster,
        matched: &matched,
        user: &user,
        caller_token: caller_token.as_deref(),
    };
    let gathered = facts::gather(&ground, &query, &payload).await;
    let facts = explain::facts(gathered, Facts::of_call(&ground, &payload), exchange)?;
    ground.permit_call(&facts, exchange)?;
    let continuing = guard(&ground, &facts, &mut payload, exchange).await?;
    let (tenant_wide, acting) = ground.acting(&facts);
    shape::pin(&ground, &acting, tenant_wide, &mut path, &mut query, &mut payload)?;

    if exchange.rehearsal.is_some() {
        explain::rest(&ground, &facts, exchange);
        return Ok(Verdict::Answered(arrival::healthy()));
    }
    let answer_headers = arrival::limits_told(snapshot, &exchange.limits);
    if let Some(known) = call.known.take() {
        return filter::known(&ground, known, answer_headers).map(Verdict::Answered);
    }
    let fill = match ground.look_up(&path, &query, &payload).await.noted(exchange) {
        Ok(stored) => return filter::cached(&ground, &stored, answer_headers).map(Verdict::Answered),
        Err(fill) => fill,
    };

    let (mut lease, mut hold) = ground.reserve(&facts).await?;
    let (picked, holder) = ground.endpoint(&facts)?;
    exchange.audit_first().await?;
    let run_id = shape::assign_run(&ground, &picked, &mut payload);
    (hold.holder, hold.going) = (holder, ground.going(run_id, &facts));
    exchange.event.run_id = run_id.map(|id| id.to_string()).or(facts.run);
    Ok(Verdict::Admitted(Box::new(Admitted {
        snapshot: Arc::clone(snapshot),
        matched,
        principal,
        cluster,
        user,
        acting,
        path,
        query,
        headers: std::mem::take(&mut call.headers),
        caller_token,
        background: payload.is_background(),
        payload,
        picked,
        run_id,
        session: facts.session,
        lease: lease.0.take(),
        hold,
        continuing,
        order: None,
        new_session: facts.new_session,
        fill,
        tenant_wide,
        answer_headers,
        view,
        _ticket: (),
    })))
}

/// Guards runs that would read the knowledge of others, calls that make AgentOS start a run, and calls that continue
/// one. A dry run claims nothing.
///
/// # Errors
/// Those of `knowledge::reachable`, `triggers::authorize` and `approvals::guard`.
///
/// # Cancel safety
/// Safe: the claim is given back on drop.
async fn guard(
    ground: &Ground<'_>,
    facts: &Facts,
    payload: &mut Payload,
    exchange: &mut Exchange,
) -> Result<Option<Continuing>, Refusal> {
    knowledge::reachable(ground, payload, exchange.rehearsal.is_some()).await?;
    triggers::authorize(ground, payload, exchange).await?;
    if exchange.rehearsal.is_some() {
        Box::pin(approvals::rehearse(ground, facts, payload, exchange)).await?;
        return Ok(None);
    }
    let continuing = approvals::guard(ground, facts, payload).await?;
    exchange.approvals = continuing.iter().flat_map(|c| c.approvals.iter().cloned()).collect();
    Ok(continuing)
}

/// Idempotent rows may be sent again after a connection died under them.
pub(super) fn is_idempotent(operation: &Operation) -> bool {
    operation.method == Method::Get || (operation.action == Action::Read && operation.cost == Cost::Light)
}
