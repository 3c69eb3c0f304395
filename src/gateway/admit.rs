//! Owns admission: the one straight function from a call to the right to go upstream, or to a refusal.
//! Does not send anything upstream but look-ups of facts (`facts`).
//! Invariant: an `Admitted` is made here and nowhere else, after every stage has agreed.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use uuid::Uuid;

use super::approvals::{self, Continuing};
use super::arrival;
use super::body::{self, Payload};
use super::call::{Answer, Call};
use super::exchange::Exchange;
use super::explain;
use super::facts::{self, Facts};
use super::filter;
use super::knowledge;
use super::live::Going;
use super::orphans;
use super::path::Gateway;
use super::refusal::{Code, Refusal, Stage};
use super::runs::Held;
use super::sessions;
use super::shape;
use super::snapshot::Snapshot;
use super::triggers;
use super::turns::Turn;
use super::view::View;
use crate::agentos::{
    Action, Affinity, Caching, CanonicalPath, Cost, Exposure, Matched, Method, Operation, Own, Query, Reply,
};
use crate::cache::{self, FillGuard, Key, Lookup, Partition};
use crate::cluster::{Cluster, OnDisconnect, Picked, Place, UpstreamUser, Use, Want};
use crate::policy::{Ask, Context, Decision, ResourceFacts};
use crate::principal::Principal;
use crate::quota::Pass;
use crate::telemetry::{CacheResult, ShadowDecision};

/// Longest wait for another caller who is fetching the same answer.
const FLIGHT_WAIT: Duration = Duration::from_secs(10);
/// Whose name an owner has when any owner of the tenant is asked about: no subject can be spelled so.
const ANYONE: &str = "\u{1}anyone";

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
    /// Held until the exchange ends.
    pub(super) new_session: Option<sessions::Held>,
    pub(super) fill: Option<FillGuard>,
    pub(super) tenant_wide: bool,
    pub(super) answer_headers: HeaderMap,
    pub(super) view: View,
    _ticket: (),
}

/// What a run holds beside its lease, until its exchange ends, or the run where that goes on.
pub(super) struct Hold {
    /// Whether the endpoint holds the run that the call follows.
    pub(super) holder: Holder,
    /// The run's turn in its session.
    pub(super) turn: Option<Turn>,
    /// Tells whoever cancels the run that it goes on here.
    pub(super) going: Option<Going>,
    /// The run's place at busy endpoints.
    pub(super) place: Option<Place>,
}

/// What is known of the endpoint that holds the run of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// The call follows no run, or goes to the endpoint that holds it.
    Known,
    /// Nobody knows which one it is.
    Unknown,
    /// It is down or gone.
    Lost,
}

/// A lease of a run that AgentOS has not heard of: given back, it costs nothing.
struct Unsent(Option<Held>);

impl Drop for Unsent {
    fn drop(&mut self) {
        if let Some(held) = &mut self.0 {
            held.waive();
        }
    }
}

/// A call whose operation, caller and cluster are known, and whose rate is spent.
struct Arrived {
    path: CanonicalPath,
    matched: Matched,
    principal: Arc<Principal>,
    cluster: Arc<Cluster>,
    user: UpstreamUser,
    caller_token: Option<String>,
    pass: Pass,
}

impl Admitted {
    /// The operation that was admitted.
    pub(super) fn operation(&self) -> &'static Operation {
        self.matched.operation
    }

    /// What the call does at its endpoint.
    pub(super) fn uses(&self) -> Use {
        uses(self.operation())
    }

    /// The session whose endpoint the call goes to.
    pub(super) fn follows_session(&self) -> Option<&str> {
        self.session.as_deref().filter(|_| follows_session(self.operation(), &self.cluster))
    }

    /// What becomes of its run when the caller goes away.
    pub(super) fn on_disconnect(&self) -> OnDisconnect {
        self.cluster.settings.streams.on_disconnect(self.operation().id)
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
    call: Call,
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
    let pass = arrival::spend(gateway, snapshot, &principal, operation, &work, exchange).await?;
    if operation.exposure.is_local() {
        return arrival::local(operation, snapshot, &principal, &pass).await.map(Verdict::Answered);
    }
    let user = arrival::upstream_user(&cluster, &principal)?;
    let caller_token = arrival::token(&cluster, &call.headers)?;
    let arrived = Arrived { path, matched, principal, cluster, user, caller_token, pass };
    decide(gateway, snapshot, call, arrived, exchange).await
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
    mut call: Call,
    arrived: Arrived,
    exchange: &mut Exchange,
) -> Result<Verdict, Refusal> {
    let Arrived { mut path, matched, principal, cluster, user, caller_token, pass } = arrived;
    let mut query = shape::query(call.query.as_deref(), matched.operation)?;
    let mut payload = body::read(call.body.take(), matched.operation, &call.headers, &snapshot.limits).await?;
    let view = View { door: call.door.as_str(), peer: call.peer, human: call.human, tool: call.tool };
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
    let answer_headers = arrival::limits_told(snapshot, &pass);
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
        headers: call.headers,
        caller_token,
        background: payload.is_background(),
        payload,
        picked,
        run_id,
        session: facts.session,
        lease: lease.0.take(),
        hold,
        continuing,
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
        approvals::rehearse(ground, facts, payload, exchange).await?;
        return Ok(None);
    }
    let continuing = approvals::guard(ground, facts, payload).await?;
    exchange.approvals = continuing.iter().flat_map(|c| c.approvals.iter().cloned()).collect();
    Ok(continuing)
}

/// Everything that is known once a call has a caller and a cluster: the ground that the later stages stand on.
pub(super) struct Ground<'a> {
    pub(super) gateway: &'a Gateway,
    pub(super) snapshot: &'a Arc<Snapshot>,
    pub(super) view: &'a View,
    pub(super) principal: &'a Arc<Principal>,
    pub(super) cluster: &'a Arc<Cluster>,
    pub(super) matched: &'a Matched,
    pub(super) user: &'a UpstreamUser,
    /// Set where AgentOS gets callers' own tokens.
    pub(super) caller_token: Option<&'a str>,
}

enum Looked {
    Fresh(Arc<cache::Stored>),
    Miss(FillGuard),
    Bypass,
}

// === impl Looked ===

impl Looked {
    /// Notes what the cache said: the answer it has, or what fills it.
    fn noted(self, exchange: &mut Exchange) -> Result<Arc<cache::Stored>, Option<FillGuard>> {
        let (result, known) = match self {
            Self::Fresh(stored) => (CacheResult::Hit, Ok(stored)),
            Self::Miss(fill) => (CacheResult::Miss, Err(Some(fill))),
            Self::Bypass => (CacheResult::Bypass, Err(None)),
        };
        exchange.event.cache = result;
        known
    }
}

// === impl Ground ===

impl Ground<'_> {
    pub(super) fn operation(&self) -> &'static Operation {
        self.matched.operation
    }

    /// Asks the policies about this operation on one resource.
    pub(super) fn decide(
        &self,
        operation: &'static Operation,
        id: &str,
        facts: &Facts,
        owner: Option<&str>,
    ) -> Decision {
        let ask = self.view.ask(self.principal, self.cluster, operation, id);
        let component = self.matched.component().map(|(_, id)| id);
        self.snapshot.policies.decide(&Ask {
            resource: ResourceFacts { owner, component, approval: facts.approval_facts(), ..ask.resource },
            context: Context { message_bytes: facts.message_bytes, ..ask.context },
            ..ask
        })
    }

    /// Says what is asked for, explains it in a dry run, and asks the policies.
    fn permit_call(&self, facts: &Facts, exchange: &mut Exchange) -> Result<(), Refusal> {
        exchange.resource = Some((self.operation().resource, facts.resource_id.clone()));
        explain::policy(self, facts, exchange);
        self.permit(facts, exchange)
    }

    /// Notes the policies that decide; the refusal when they do not permit. What belongs to another looks as if it did not exist.
    pub(super) fn permit(&self, facts: &Facts, exchange: &mut Exchange) -> Result<(), Refusal> {
        let decision = self.decide(self.operation(), &facts.resource_id, facts, facts.owner.as_deref());
        if let Some(shadow) = decision.shadow() {
            let shadow = ShadowDecision { allow: shadow.allow, policies: Arc::clone(&shadow.policies) };
            self.gateway.telemetry.shadow_decision(&shadow);
            exchange.event.shadow = Some(Box::new(shadow));
        }
        match decision {
            Decision::Allow { policies, .. } => {
                policies.iter().for_each(|policy| self.gateway.telemetry.policy_decision(policy, "allow"));
                exchange.event.policies = policies;
                Ok(())
            }
            Decision::Deny { policies, errors, .. } => {
                policies.iter().for_each(|policy| self.gateway.telemetry.policy_decision(policy, "deny"));
                exchange.event.policies = Arc::clone(&policies);
                // A caller with rights on single items may list: the filter shows them those (`filter::Eye`).
                if policies.is_empty() && !errors && filter::decides_per_item(self.operation()) {
                    return Ok(());
                }
                let foreign = facts.owner.as_deref().is_some_and(|owner| owner != &*self.principal.subject);
                let code = if foreign && !self.may_see_approval(facts) { Code::NotFound } else { Code::Forbidden };
                let named: Vec<&str> = policies.iter().map(|p| &**p).collect();
                let why = match (errors, named.is_empty()) {
                    (true, _) => "a policy failed to evaluate".to_owned(),
                    (false, true) => "no policy permits".to_owned(),
                    (false, false) => format!("forbidden by {}", named.join(", ")),
                };
                Err(Refusal::new(code, Stage::Policy).because(why))
            }
        }
    }

    /// Says whether the call is about an approval that the caller may read: then the refusal need not hide it.
    fn may_see_approval(&self, facts: &Facts) -> bool {
        let read = self.snapshot.catalog.get("get_approval").filter(|_| facts.approval.is_some());
        let decide = |read| self.decide(read, &facts.resource_id, facts, facts.owner.as_deref());
        read.is_some_and(|read| matches!(decide(read), Decision::Allow { .. }))
    }

    /// Says whether a list may show the rows of everybody in the caller's tenant.
    fn is_tenant_wide(&self, facts: &Facts) -> bool {
        filter::can_be_tenant_wide(self.operation())
            && matches!(self.decide(self.operation(), "", facts, Some(ANYONE)), Decision::Allow { .. })
    }

    /// Whether a list shows the rows of the whole tenant, and whom upstream is told that it serves.
    fn acting(&self, facts: &Facts) -> (bool, Acting) {
        let operation = self.operation();
        let tenant_wide = self.is_tenant_wide(facts);
        if operation.cache == Caching::Shared || tenant_wide {
            return (tenant_wide, Acting::Lookup);
        }
        // Who resolves an approval is the caller, whoever asked for it.
        if facts.approval.is_some() && operation.action != Action::Read {
            return (false, Acting::User(self.user.clone()));
        }
        (false, Acting::User(facts.acting.clone().unwrap_or_else(|| self.user.clone())))
    }

    async fn look_up(&self, path: &CanonicalPath, query: &Query, payload: &Payload) -> Looked {
        let operation = self.operation();
        let partition = match operation.cache {
            Caching::Never => return Looked::Bypass,
            Caching::Shared if self.cluster.forwards_tokens() => return Looked::Bypass,
            Caching::Shared => Partition::Shared,
            Caching::PerPrincipal => Partition::Principal {
                tenant: self.principal.tenant.clone(),
                subject: Arc::clone(&self.principal.subject),
            },
        };
        if self.snapshot.cache.ttl(operation).is_none() {
            return Looked::Bypass;
        }
        let body = match payload {
            Payload::None => bytes::Bytes::new(),
            Payload::Json(object) => object.to_bytes(),
            Payload::Raw(_) | Payload::Form(_) => return Looked::Bypass,
        };
        let key = Key {
            cluster: Arc::clone(&self.cluster.settings.name),
            operation: operation.id,
            target: format!("{}?{query}", path.as_str()),
            body,
            partition,
        };
        match Box::pin(self.snapshot.cache.lookup(key, FLIGHT_WAIT)).await {
            Lookup::Fresh(stored, _) => Looked::Fresh(stored),
            Lookup::Miss(fill) => Looked::Miss(fill),
            Lookup::Bypass => Looked::Bypass,
        }
    }

    async fn lease(&self) -> Result<Option<Held>, Refusal> {
        if self.operation().cost == Cost::Light {
            return Ok(None);
        }
        let work = arrival::work(self.cluster, self.matched, self.view.tool);
        // Boxed: most calls start no run, and each would carry its state.
        let lease = Box::pin(self.snapshot.quota.lease(self.principal, &work)).await.map_err(arrival::refused)?;
        Ok(Some(Held::new(lease, &self.gateway.telemetry, &self.principal.tenant)))
    }

    /// Takes the run's place at the endpoints of the cluster, in the tenant's turn where they are busy.
    async fn place(&self, held: Option<&Held>) -> Result<Option<Place>, Refusal> {
        let Some(held) = held.filter(|_| self.cluster.limits_runs()) else { return Ok(None) };
        // Boxed: few clusters limit runs, and every exchange would carry its state.
        Box::pin(self.cluster.enter(&self.principal.tenant, held.weight())).await.map_err(|busy| {
            let refusal = Refusal::new(Code::Overloaded, Stage::Cluster).because(busy.to_string());
            Refusal { retry_after: Some(self.cluster.settings.load.queue_timeout), ..refusal }
        })
    }

    /// Takes what a run needs: its turn, its lease, its place.
    async fn reserve(&self, facts: &Facts) -> Result<(Unsent, Hold), Refusal> {
        let turn = self.turn(facts).await?;
        let lease = Unsent(self.lease().await?);
        let place = self.place(lease.0.as_ref()).await?;
        Ok((lease, Hold { holder: Holder::Known, turn, going: None, place }))
    }

    /// Waits for the run's turn in its session, where AgentOS would lose runs at the same time.
    async fn turn(&self, facts: &Facts) -> Result<Option<Turn>, Refusal> {
        let Some(session) = facts.session.as_deref().filter(|_| self.operation().cost == Cost::Model) else {
            return Ok(None);
        };
        if !self.cluster.takes_turns() {
            return Ok(None);
        }
        let within = self.cluster.settings.load.session_timeout;
        // Boxed: few clusters need turns, and every exchange would carry its state.
        let turn = Box::pin(self.gateway.turns.take(self.cluster.name(), session, within)).await;
        turn.map(Some).map_err(|no| {
            let refusal = Refusal::new(Code::Overloaded, Stage::Cluster).because(no.to_string());
            let refusal = refusal.saying("another run of this session goes on, and its runs take turns");
            Refusal { retry_after: Some(Duration::from_secs(1)), ..refusal }
        })
    }

    /// Lists the run as going on here.
    fn going(&self, run_id: Option<Uuid>, facts: &Facts) -> Option<Going> {
        if self.operation().cost == Cost::Light {
            return None;
        }
        let run = run_id.map(|id| id.to_string()).or_else(|| facts.run.clone())?;
        Some(self.gateway.runs.live.begin(self.cluster.name(), &run))
    }

    /// The endpoint that the call goes to, and whether it holds the run that the call follows.
    pub(super) fn endpoint(&self, facts: &Facts) -> Result<(Picked, Holder), Refusal> {
        let (operation, cluster) = (self.operation(), self.cluster);
        let what = uses(operation);
        let anywhere = || match facts.session.as_deref().filter(|_| follows_session(operation, cluster)) {
            Some(session) => cluster.pick_for(Want::Session(session), what),
            None => cluster.pick_for(Want::Any, what),
        };
        let picked = match (operation.affinity, facts.tag) {
            (Affinity::FollowsRun, Some(tag)) => match cluster.pick_for(Want::Tag(tag), what) {
                // A paused run goes on from the database, and a stored one can be told from it.
                Err(_) if operation.cost == Cost::Model => anywhere().map(|picked| (picked, Holder::Lost)),
                Err(_) if orphans::is_resume(operation) && facts.session.is_some() => {
                    anywhere().map(|picked| (picked, Holder::Lost))
                }
                picked => picked.map(|picked| (picked, Holder::Known)),
            },
            (Affinity::FollowsRun, None) => anywhere().map(|picked| (picked, Holder::Unknown)),
            (Affinity::Any | Affinity::StartsRun | Affinity::Session, _) => {
                anywhere().map(|picked| (picked, Holder::Known))
            }
        };
        picked.map_err(|no| Refusal::new(Code::NoEndpoint, Stage::Cluster).because(no.to_string()))
    }
}

/// What a call does at its endpoint.
fn uses(operation: &Operation) -> Use {
    if operation.cost == Cost::Model { Use::Run } else { Use::Other }
}

/// Says whether a call goes where its session is: writes always, since AgentOS 2 loses some that meet elsewhere.
fn follows_session(operation: &Operation, cluster: &Cluster) -> bool {
    match operation.affinity {
        Affinity::StartsRun => true,
        Affinity::FollowsRun => operation.cost == Cost::Model,
        Affinity::Session => operation.action != Action::Read || cluster.follows_sessions(),
        Affinity::Any => false,
    }
}

/// Idempotent rows may be sent again after a connection died under them.
pub(super) fn is_idempotent(operation: &Operation) -> bool {
    operation.method == Method::Get || (operation.action == Action::Read && operation.cost == Cost::Light)
}
