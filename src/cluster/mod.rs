//! Owns where a call goes: clusters, their endpoints, health, balancing, run affinity, and what AgentOS is shown.
//! Does not send calls (`gateway` does, through `outbound`) and does not read configuration.
//! Invariant: a tenant never learns of a cluster that it may not use: unknown and foreign ones look the same.

mod balance;
mod budget;
mod credential;
mod dns;
mod ejection;
mod endpoint;
mod gate;
mod health;
mod jwt;
mod life;
mod run_id;
mod seal;
mod settings;
mod sticky;
#[cfg(test)]
mod tests;
mod user_id;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use foldhash::HashMap;
use http::HeaderValue;
use uuid::Uuid;

use crate::agentos::operation::{Operation, Version};
use crate::outbound::Origin;
use crate::principal::{Principal, TenantId};
use crate::secret::Secret;

pub use balance::{Balance, NoEndpoint, Use, Want};
pub use budget::Retries;
pub use credential::{BadCredential, CredentialSettings};
pub use dns::{Dns, Refreshed};
pub use ejection::Ejection;
pub use endpoint::{Endpoint, Outcome, Picked, State};
pub use gate::{Busy, Load, Place, SessionRuns};
pub use health::Probed;
pub use jwt::{BadKey, MintAlgorithm};
pub use run_id::{EndpointTag, RunIds, tag_of};
pub use seal::Seal;
pub use settings::{Health, Knowledge, OnDisconnect, Settings, SettingsError, SettingsErrors, Streams, Timeouts};
pub use user_id::{BadTemplate, ReservedName, Side, TEMPLATE_BYTES_MAX, TenantMark, UpstreamUser, UserIdTemplate};

use balance::Balancer;
use budget::Budget;
use credential::Credential;
use gate::Gate;

/// Every cluster, and who may use which.
pub struct Clusters {
    all: Vec<Arc<Cluster>>,
    by_name: HashMap<Arc<str>, Arc<Cluster>>,
    by_host: HashMap<String, Arc<Cluster>>,
    by_tenant: HashMap<TenantId, Vec<Arc<Cluster>>>,
    /// For tenants that are not in the table: the open clusters, in file order.
    for_others: Vec<Arc<Cluster>>,
    run_ids: RunIds,
    seal: Seal,
}

/// One cluster of AgentOS processes that share a database.
#[derive(Debug)]
pub struct Cluster {
    /// What it was made from.
    pub settings: Settings,
    balancer: Balancer,
    credential: Credential,
    gate: Gate,
    run_ids: RunIds,
    asking: dns::Asking,
    budget: Budget,
}

/// There is no such cluster for the tenant: unknown and foreign clusters are the same to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no such cluster for the tenant")]
pub struct ClusterUnknown;

// === impl Clusters ===

impl Clusters {
    /// Builds the clusters. `tenants` lists what each tenant may use, its default first; `secrets` are the server's,
    /// newest first.
    ///
    /// # Errors
    /// All problems of all clusters at once.
    pub fn new(
        settings: Vec<Settings>,
        tenants: &BTreeMap<TenantId, Vec<Arc<str>>>,
        secrets: &[Secret],
    ) -> Result<Self, SettingsErrors> {
        Self::build(settings, tenants, secrets, None)
    }

    /// As [`Clusters::new`], and keeps the endpoints that stay: their health, versions and exchanges in flight.
    ///
    /// # Errors
    /// All problems of all clusters at once.
    pub fn reload(
        &self,
        settings: Vec<Settings>,
        tenants: &BTreeMap<TenantId, Vec<Arc<str>>>,
        secrets: &[Secret],
    ) -> Result<Self, SettingsErrors> {
        Self::build(settings, tenants, secrets, Some(self))
    }

    /// Chooses the cluster of a call: by host, else by the `Tollbridge-Cluster` header, else the tenant's first.
    ///
    /// # Errors
    /// [`ClusterUnknown`] when none is named so, or the tenant may not use it.
    pub fn choose(
        &self,
        host: Option<&str>,
        header: Option<&str>,
        tenant: &TenantId,
    ) -> Result<&Arc<Cluster>, ClusterUnknown> {
        let usable = self.usable_by(tenant);
        let by_host =
            host.filter(|_| !self.by_host.is_empty()).and_then(|host| self.by_host.get(&settings::host(host)));
        if let Some(cluster) = by_host {
            return usable.iter().find(|c| Arc::ptr_eq(c, cluster)).ok_or(ClusterUnknown);
        }
        match header {
            Some(name) => usable.iter().find(|c| *c.settings.name == *name).ok_or(ClusterUnknown),
            None => usable.first().ok_or(ClusterUnknown),
        }
    }

    /// The cluster of a name, when the tenant may use it: for calls that carry it in a handle.
    ///
    /// # Errors
    /// [`ClusterUnknown`], as [`Clusters::choose`].
    pub fn named(&self, name: &str, tenant: &TenantId) -> Result<&Arc<Cluster>, ClusterUnknown> {
        self.choose(None, Some(name), tenant)
    }

    /// The clusters that a tenant may use, its default first.
    pub fn usable_by(&self, tenant: &TenantId) -> &[Arc<Cluster>] {
        self.by_tenant.get(tenant).unwrap_or(&self.for_others)
    }

    /// Every cluster, as configured.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.all.iter()
    }

    /// The keys of run ids.
    pub fn run_ids(&self) -> &RunIds {
        &self.run_ids
    }

    /// Seals handles and states that leave the server.
    pub fn seal(&self) -> &Seal {
        &self.seal
    }

    fn build(
        settings: Vec<Settings>,
        tenants: &BTreeMap<TenantId, Vec<Arc<str>>>,
        secrets: &[Secret],
        previous: Option<&Self>,
    ) -> Result<Self, SettingsErrors> {
        let mut problems = settings::check(&settings, tenants, secrets);
        let run_ids = RunIds::new(secrets);
        let mut all = Vec::new();
        for settings in settings {
            let former = previous.and_then(|clusters| clusters.by_name.get(&settings.name));
            let name = Arc::clone(&settings.name);
            match Cluster::new(settings, &run_ids, former.map(|c| &**c)) {
                Ok(cluster) => all.push(Arc::new(cluster)),
                Err(cause) => problems.push(SettingsError::Credential { cluster: name, cause }),
            }
        }
        if !problems.is_empty() {
            return Err(SettingsErrors(problems));
        }
        let by_name: HashMap<_, _> = all.iter().map(|c| (Arc::clone(&c.settings.name), Arc::clone(c))).collect();
        let hosts = |c: &Arc<Cluster>| {
            let c = Arc::clone(c);
            c.settings.hosts.clone().into_iter().map(move |host| (settings::host(&host), Arc::clone(&c)))
        };
        let by_host = all.iter().flat_map(hosts).collect();
        let named = |names: &Vec<Arc<str>>| names.iter().filter_map(|name| by_name.get(name)).cloned().collect();
        let by_tenant = tenants.iter().map(|(tenant, names)| (tenant.clone(), named(names))).collect();
        let for_others = all.iter().filter(|c| c.settings.open).cloned().collect();
        let seal = Seal::new(secrets);
        Ok(Self { all, by_name, by_host, by_tenant, for_others, run_ids, seal })
    }
}

// === impl Cluster ===

impl Cluster {
    fn new(settings: Settings, run_ids: &RunIds, former: Option<&Self>) -> Result<Self, BadCredential> {
        let credential = Credential::new(&settings.credential)?;
        let known = former.map(Cluster::endpoints);
        let endpoints = match (&settings.dns, former, &known) {
            // The last good answer stands until the next one.
            (Some(dns), Some(former), Some(known))
                if former.settings.dns.as_ref().is_some_and(|d| d.name == dns.name) =>
            {
                known.to_vec()
            }
            (_, _, known) => written(&settings, known.as_deref().unwrap_or_default()),
        };
        // Instances that start together must not draw the same sequence.
        let (seed, _) = Uuid::new_v4().as_u64_pair();
        let runs_max = settings.load.runs_per_endpoint;
        let balancer = Balancer::new(settings.balance, settings.ejection, runs_max, endpoints, seed);
        let balancer = former.into_iter().fold(balancer, |balancer, former| balancer.after(&former.balancer));
        let budget = Budget::new(settings.retries);
        let gate = former.map_or_else(|| Gate::new(settings.load), |former| former.gate.with(settings.load));
        let (run_ids, asking) = (run_ids.clone(), dns::Asking::default());
        Ok(Self { settings, balancer, credential, gate, run_ids, asking, budget })
    }

    /// The cluster's name.
    pub fn name(&self) -> &Arc<str> {
        &self.settings.name
    }

    /// The endpoints, as configured or as found by name.
    pub fn endpoints(&self) -> Arc<[Arc<Endpoint>]> {
        self.balancer.endpoints()
    }

    /// Chooses a healthy endpoint and counts it as in flight until the guard is dropped.
    ///
    /// # Errors
    /// [`NoEndpoint`] says whether all are down, all were tried, or the run's own one is down or gone.
    pub fn pick(&self, want: Want<'_>) -> Result<Picked, NoEndpoint> {
        self.balancer.pick(want, Use::Other)
    }

    /// As [`Cluster::pick`], for a run: it counts against `runs_per_endpoint`.
    ///
    /// # Errors
    /// Those of [`Cluster::pick`].
    pub fn pick_for(&self, want: Want<'_>, what: Use) -> Result<Picked, NoEndpoint> {
        self.balancer.pick(want, what)
    }

    /// Says whether the endpoint with this tag is known and answers.
    pub fn reaches(&self, tag: EndpointTag) -> bool {
        self.pick(Want::Tag(tag)).is_ok()
    }

    /// Notes the first attempt of a call: it pays for a share of a retry.
    pub fn asked(&self) {
        self.budget.asked();
    }

    /// Takes a retry out of the cluster's budget; `false` when there is none left.
    pub fn may_retry(&self) -> bool {
        self.budget.take()
    }

    /// Says whether runs of one session take turns here.
    pub fn takes_turns(&self) -> bool {
        match self.settings.load.session_runs {
            // Before the first probe nothing is known: AgentOS 3 loses a moment, AgentOS 2 would lose runs.
            SessionRuns::Auto => self.version() != Some(Version::V3),
            SessionRuns::OneByOne => true,
            SessionRuns::AtOnce => false,
        }
    }

    /// Says whether its endpoints take a limited number of runs.
    pub fn limits_runs(&self) -> bool {
        self.settings.load.runs_per_endpoint.is_some()
    }

    /// Takes a place for a run, or waits in the tenant's line until one is free; `None` where runs are not limited.
    ///
    /// # Errors
    /// [`Busy`] when the queue is full or the wait was in vain.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn enter(&self, tenant: &TenantId, weight: u32) -> Result<Option<Place>, Busy> {
        let up = self.endpoints().iter().filter(|endpoint| endpoint.is_up()).count();
        self.gate.enter(tenant, weight, up).await
    }

    /// Says whether new runs follow their session (`session_hash`).
    pub fn follows_sessions(&self) -> bool {
        self.settings.balance == Balance::SessionHash
    }

    /// The caller's name inside this AgentOS.
    ///
    /// # Errors
    /// [`ReservedName`] when AgentOS gives the name a meaning of its own.
    pub fn upstream_user(&self, principal: &Principal) -> Result<UpstreamUser, ReservedName> {
        self.settings.user_id.render_principal(principal)
    }

    /// The subject behind an upstream user id, when it is one of the tenant's.
    pub fn caller_of(&self, upstream_user: &str, tenant: &TenantId) -> Option<String> {
        self.settings.user_id.subject_of(upstream_user, tenant).map(str::to_owned)
    }

    /// The `Authorization` value of a user's call, with the smallest scopes that the row needs.
    ///
    /// `caller_token` is passed on under `forward` only; doors other than HTTP give none.
    pub fn authorization(
        &self,
        user: &UpstreamUser,
        operation: &Operation,
        caller_token: Option<&str>,
        now: SystemTime,
    ) -> Option<HeaderValue> {
        self.credential.for_user(user, operation, caller_token, now)
    }

    /// The `Authorization` value of the lookup identity: no user, sees every owner's rows. Never for a caller's call.
    ///
    /// Under `forward` there is none: the caller's token looks, and sees what AgentOS shows to it.
    pub fn lookup_authorization(&self, caller_token: Option<&str>, now: SystemTime) -> Option<HeaderValue> {
        self.credential.for_lookup(caller_token, now)
    }

    /// Says whether AgentOS gets callers' own tokens: then nothing can be asked without one, a look-up sees what the
    /// caller sees, and no answer may be shared.
    pub fn forwards_tokens(&self) -> bool {
        matches!(self.credential, Credential::Forward)
    }

    /// The AgentOS line of the cluster: the oldest among endpoints that are up, `None` before the first probe.
    pub fn version(&self) -> Option<Version> {
        self.endpoints().iter().filter(|endpoint| endpoint.answers()).filter_map(|endpoint| endpoint.version()).min()
    }

    /// Makes the id of a new run of the user on an endpoint.
    pub fn mint_run_id(&self, user: &UpstreamUser, endpoint: &Endpoint) -> Uuid {
        self.run_ids.mint(&self.settings.name, user, endpoint.tag)
    }

    /// The tag of the endpoint that holds a run, when the id was minted here for this user.
    ///
    /// Only the text that AgentOS stores is read: lower case with hyphens.
    pub fn read_run_id(&self, run_id: &str, user: &UpstreamUser) -> Option<EndpointTag> {
        let id = Uuid::parse_str(run_id).ok().filter(|id| id.to_string() == run_id)?;
        self.run_ids.read(&id, &self.settings.name, user)
    }
}

/// The endpoints that the settings name; those that are known already stay what they are.
fn written(settings: &Settings, known: &[Arc<Endpoint>]) -> Vec<Arc<Endpoint>> {
    let kept = |origin: &Origin, tag| known.iter().find(|e| e.origin == *origin && e.tag == tag).cloned();
    let new = |origin: &Origin, tag| {
        let made = if known.is_empty() { Endpoint::new } else { Endpoint::joining };
        Arc::new(made(origin.clone(), tag))
    };
    let tagged = settings.endpoints.iter().zip(endpoint::tags(&settings.name, &settings.endpoints));
    tagged.map(|(origin, tag)| kept(origin, tag).unwrap_or_else(|| new(origin, tag))).collect()
}

impl std::fmt::Debug for Clusters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.all.iter().map(|cluster| cluster.name())).finish()
    }
}

impl std::fmt::Debug for Balancer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.endpoints().iter()).finish()
    }
}
