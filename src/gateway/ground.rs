//! Owns what is known once a call has a caller and a cluster, and what the later stages ask on that ground: policies,
//! the cache, a turn, a lease, a place, an endpoint.
//! Does not order the stages (`admit`).
//! Invariant: what is reserved here is a guard; dropping it gives it back.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::admit::Acting;
use super::arrival;
use super::body::Payload;
use super::exchange::Exchange;
use super::explain;
use super::facts::Facts;
use super::filter;
use super::live::Going;
use super::path::Gateway;
use super::refusal::{Code, Refusal, Stage};
use super::runs::Held;
use super::snapshot::Snapshot;
use super::turns::Turn;
use super::view::View;
use crate::agentos::{Action, Affinity, Caching, CanonicalPath, Cost, Matched, OnRun, Operation, Query};
use crate::cache::{self, FillGuard, Key, Lookup, Partition};
use crate::cluster::{Cluster, Picked, Place, UpstreamUser, Use, Want};
use crate::policy::{Ask, Context, Decision, ResourceFacts};
use crate::principal::Principal;
use crate::telemetry::{CacheResult, ShadowDecision};

/// Longest wait for another caller who is fetching the same answer.
const FLIGHT_WAIT: Duration = Duration::from_secs(10);
/// Whose name an owner has when any owner of the tenant is asked about: no subject can be spelled so.
const ANYONE: &str = "\u{1}anyone";

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
pub(super) struct Unsent(pub(super) Option<Held>);

/// What the cache said.
pub(super) enum Looked {
    Fresh(Arc<cache::Stored>),
    Miss(FillGuard),
    Bypass,
}

// === impl Unsent ===

impl Drop for Unsent {
    fn drop(&mut self) {
        if let Some(held) = &mut self.0 {
            held.waive();
        }
    }
}

// === impl Looked ===

impl Looked {
    /// Notes what the cache said: the answer it has, or what fills it.
    pub(super) fn noted(self, exchange: &mut Exchange) -> Result<Arc<cache::Stored>, Option<FillGuard>> {
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
    /// The operation that is asked for.
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

    /// Asks the policies about an operation on what the call is about.
    pub(super) fn judge(&self, operation: &'static Operation, facts: &Facts) -> Decision {
        self.decide(operation, &facts.resource_id, facts, facts.owner.as_deref())
    }

    /// Says whether the policies permit an operation on what the call is about, where the reason is of no interest.
    pub(super) fn permits(&self, operation: &'static Operation, facts: &Facts) -> bool {
        self.judge(operation, facts).is_allow()
    }

    /// Says what is asked for, explains it in a dry run, and asks the policies.
    pub(super) fn permit_call(&self, facts: &Facts, exchange: &mut Exchange) -> Result<(), Refusal> {
        exchange.resource = Some((self.operation().resource, facts.resource_id.clone()));
        explain::policy(self, facts, exchange);
        self.permit(facts, exchange)
    }

    /// Notes the policies that decide; the refusal when they do not permit. What belongs to another looks as if it did not exist.
    pub(super) fn permit(&self, facts: &Facts, exchange: &mut Exchange) -> Result<(), Refusal> {
        let decision = self.judge(self.operation(), facts);
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
        read.is_some_and(|read| self.permits(read, facts))
    }

    /// Says whether a list may show the rows of everybody in the caller's tenant.
    fn is_tenant_wide(&self, facts: &Facts) -> bool {
        filter::can_be_tenant_wide(self.operation())
            && self.decide(self.operation(), "", facts, Some(ANYONE)).is_allow()
    }

    /// Whether a list shows the rows of the whole tenant, and whom upstream is told that it serves.
    pub(super) fn acting(&self, facts: &Facts) -> (bool, Acting) {
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

    /// Asks the cache; a call that may not be kept passes it by.
    pub(super) async fn look_up(&self, path: &CanonicalPath, query: &Query, payload: &Payload) -> Looked {
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

    /// Takes a run slot and reserves, for calls that start a run.
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
    pub(super) async fn reserve(&self, facts: &Facts) -> Result<(Unsent, Hold), Refusal> {
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
    pub(super) fn going(&self, run_id: Option<Uuid>, facts: &Facts) -> Option<Going> {
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
            (Affinity::FollowsRun(_), Some(tag)) => match cluster.pick_for(Want::Tag(tag), what) {
                // A paused run goes on from the database, and a stored one can be told from it.
                Err(_) if operation.cost == Cost::Model => anywhere().map(|picked| (picked, Holder::Lost)),
                Err(_) if operation.does(OnRun::Resume) && facts.session.is_some() => {
                    anywhere().map(|picked| (picked, Holder::Lost))
                }
                picked => picked.map(|picked| (picked, Holder::Known)),
            },
            (Affinity::FollowsRun(_), None) => anywhere().map(|picked| (picked, Holder::Unknown)),
            (Affinity::Any | Affinity::StartsRun | Affinity::Session, _) => {
                anywhere().map(|picked| (picked, Holder::Known))
            }
        };
        picked.map_err(|no| Refusal::new(Code::NoEndpoint, Stage::Cluster).because(no.to_string()))
    }
}

/// What a call does at its endpoint.
pub(super) fn uses(operation: &Operation) -> Use {
    if operation.cost == Cost::Model { Use::Run } else { Use::Other }
}

/// Says whether a call goes where its session is: writes always, since AgentOS 2 loses some that meet elsewhere.
pub(super) fn follows_session(operation: &Operation, cluster: &Cluster) -> bool {
    match operation.affinity {
        Affinity::StartsRun => true,
        Affinity::FollowsRun(_) => operation.cost == Cost::Model,
        Affinity::Session => operation.action != Action::Read || cluster.follows_sessions(),
        Affinity::Any => false,
    }
}
