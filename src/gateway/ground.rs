//! Owns what is known once a call has a caller and a cluster, and what the later stages ask on that ground: policies,
//! the cache, a lease, a place, an endpoint.
//! Does not order the stages (`admit`).
//! Invariant: what is reserved here is a guard; dropping it gives it back.

use std::sync::Arc;
use std::time::Duration;

use super::admit::Acting;
use super::arrival;
use super::body::Payload;
use super::exchange::Exchange;
use super::explain;
use super::facts::Facts;
use super::filter;
use super::path::Gateway;
use super::refusal::{Code, Refusal, Stage};
use super::runs::Held;
use super::snapshot::Snapshot;
use super::view::View;
use crate::agentos::{Action, Affinity, Caching, CanonicalPath, Cost, Matched, Operation, Query};
use crate::cache::{self, FillGuard, Key, Lookup, Partition};
use crate::cluster::{Cluster, Picked, Place, UpstreamUser, Want};
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

/// What the cache said.
pub(super) enum Looked {
    Fresh(Arc<cache::Stored>),
    Miss(FillGuard),
    Bypass,
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

    /// Says what is asked for, explains it in a dry run, and asks the policies.
    pub(super) fn permit_call(&self, facts: &Facts, exchange: &mut Exchange) -> Result<(), Refusal> {
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
    pub(super) async fn lease(&self) -> Result<Option<Held>, Refusal> {
        if self.operation().cost == Cost::Light {
            return Ok(None);
        }
        let work = arrival::work(self.cluster, self.matched, self.view.tool);
        // Boxed: most calls start no run, and each would carry its state.
        let lease = Box::pin(self.snapshot.quota.lease(self.principal, &work)).await.map_err(arrival::refused)?;
        Ok(Some(Held::new(lease, &self.gateway.telemetry, &self.principal.tenant)))
    }

    /// Takes the run's place at the endpoints of the cluster, in the tenant's turn where they are busy.
    pub(super) async fn place(&self, held: Option<&Held>) -> Result<Option<Place>, Refusal> {
        let Some(held) = held.filter(|_| self.cluster.limits_runs()) else { return Ok(None) };
        // Boxed: few clusters limit runs, and every exchange would carry its state.
        Box::pin(self.cluster.enter(&self.principal.tenant, held.weight())).await.map_err(|busy| {
            let refusal = Refusal::new(Code::Overloaded, Stage::Cluster).because(busy.to_string());
            Refusal { retry_after: Some(self.cluster.settings.load.queue_timeout), ..refusal }
        })
    }

    /// Chooses the endpoint: the one that holds the run or follows the session, else any.
    pub(super) fn endpoint(&self, facts: &Facts) -> Result<Picked, Refusal> {
        let want = match (self.operation().affinity, facts.tag, &facts.session) {
            (Affinity::FollowsRun, Some(tag), _) => Want::Tag(tag),
            (Affinity::Session | Affinity::StartsRun, _, Some(session)) if self.cluster.follows_sessions() => {
                Want::Session(session)
            }
            (Affinity::Any | Affinity::StartsRun | Affinity::FollowsRun | Affinity::Session, _, _) => Want::Any,
        };
        self.cluster.pick(want).map_err(|no| Refusal::new(Code::NoEndpoint, Stage::Cluster).because(no.to_string()))
    }
}
