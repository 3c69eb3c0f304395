//! Owns what a cluster is made from, and the checks that need no network.
//! Does not parse TOML (`config`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;

use super::balance::Balance;
use super::budget::Retries;
use super::credential::{BadCredential, CredentialSettings};
use super::dns::Dns;
use super::ejection::Ejection;
use super::gate::Load;
use super::user_id::UserIdTemplate;
use crate::outbound::Origin;
use crate::principal::TenantId;
use crate::secret::Secret;

/// Everything about one cluster.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name, also in the `Tollbridge-Cluster` header.
    pub name: Arc<str>,
    /// Host names that lead to it.
    pub hosts: Vec<String>,
    /// Its AgentOS processes; none where they are found by name.
    pub endpoints: Vec<Origin>,
    /// How they are found by name.
    pub dns: Option<Dns>,
    /// How requests are spread.
    pub balance: Balance,
    /// How callers are named upstream.
    pub user_id: UserIdTemplate,
    /// What AgentOS is shown.
    pub credential: CredentialSettings,
    /// How knowledge is kept apart.
    pub knowledge: Knowledge,
    /// Probes.
    pub health: Health,
    /// Deadlines of calls.
    pub timeouts: Timeouts,
    /// How many runs its endpoints take.
    pub load: Load,
    /// When an endpoint that misbehaves is left alone.
    pub ejection: Ejection,
    /// How calls are sent again.
    pub retries: Retries,
    /// What streams do.
    pub streams: Streams,
    /// Tenants of the table that may use it.
    pub tenants: Vec<TenantId>,
    /// Tenants outside the table may use it too (`unknown_tenant = "default_plan"`).
    pub open: bool,
}

/// How the knowledge of tenants is kept apart; AgentOS itself knows no owner of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Knowledge {
    /// Not said: fine for one tenant only.
    Unset,
    /// One tenant uses the cluster.
    Exclusive,
    /// Uploads carry the tenant in this metadata field, searches filter by it.
    Metadata(String),
}

/// How endpoints are probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Path that answers 2xx when the process is well.
    pub path: String,
    /// Time between rounds.
    pub interval: Duration,
    /// Longest wait for one answer.
    pub timeout: Duration,
}

/// Deadlines of calls to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a new connection.
    pub connect: Duration,
    /// To the response head.
    pub response_header: Duration,
    /// Longest silence within a body.
    pub stream_idle: Duration,
    /// Longest body.
    pub stream_max: Duration,
}

/// What streams do toward the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streams {
    /// Silence after which a comment tells proxies and clients that the stream lives.
    pub keep_alive: Duration,
    /// What becomes of a run whose caller goes away.
    pub on_disconnect: OnDisconnect,
    /// The same of single operations, by id, where it differs.
    pub on_disconnect_of: BTreeMap<String, OnDisconnect>,
}

/// What becomes of a run whose caller goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDisconnect {
    /// What AgentOS does: one that streams is cancelled, any other goes on.
    AsAgentOs,
    /// It is cancelled.
    Cancel,
    /// It goes on.
    Detach,
}

/// A problem of the clusters' settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum SettingsError {
    #[error("two clusters are named `{0}`")]
    NameTwice(Arc<str>),
    #[error("host `{host}` leads to both cluster `{first}` and cluster `{second}`")]
    HostTwice { host: String, first: Arc<str>, second: Arc<str> },
    #[error("cluster `{0}` has no endpoints")]
    NoEndpoints(Arc<str>),
    #[error("cluster `{0}` has both endpoints and a name to find them by")]
    EndpointsAndDns(Arc<str>),
    #[error("cluster `{cluster}` has the endpoint `{endpoint}` twice")]
    EndpointTwice { cluster: Arc<str>, endpoint: Origin },
    #[error("health path `{path}` of cluster `{cluster}` must be a path such as `/health`")]
    HealthPath { cluster: Arc<str>, path: String },
    #[error("cluster `{cluster}`: {cause}")]
    Credential { cluster: Arc<str>, cause: BadCredential },
    #[error("several tenants may use cluster `{0}`, but its `user_id` does not name the tenant")]
    SharedNames(Arc<str>),
    #[error("several tenants may use cluster `{0}`, but its knowledge is `exclusive`")]
    SharedKnowledge(Arc<str>),
    #[error("tenant `{tenant}` names the cluster `{cluster}`, which does not exist")]
    TenantsCluster { tenant: TenantId, cluster: Arc<str> },
    #[error("the server's secret is missing: run ids cannot be signed")]
    NoSecret,
    #[error("a secret of the server has {0} bytes; 16 are the least")]
    ShortSecret(usize),
}

/// All problems of the clusters' settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsErrors(pub Vec<SettingsError>);

impl fmt::Display for SettingsErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if at == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for SettingsErrors {}

impl Default for Health {
    fn default() -> Self {
        Self { path: "/health".into(), interval: Duration::from_secs(2), timeout: Duration::from_secs(1) }
    }
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(15),
            on_disconnect: OnDisconnect::AsAgentOs,
            on_disconnect_of: BTreeMap::new(),
        }
    }
}

impl Streams {
    /// What becomes of a run of this operation whose caller goes away.
    pub fn on_disconnect_of(&self, operation: &str) -> OnDisconnect {
        self.on_disconnect_of.get(operation).copied().unwrap_or(self.on_disconnect)
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            response_header: Duration::from_secs(120),
            stream_idle: Duration::from_secs(5 * 60),
            stream_max: Duration::from_secs(60 * 60),
        }
    }
}

impl Settings {
    /// Says whether exactly one tenant may use the cluster: then everything in it is that tenant's.
    pub fn is_exclusive(&self) -> bool {
        !self.open && self.tenants.len() == 1
    }
}

/// A host as it is compared: lower case, without a final dot (RFC 4343, RFC 1034 §3.1).
pub(super) fn host(text: &str) -> String {
    text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase()
}

/// Shortest secret of the server.
const SECRET_BYTES_MIN: usize = 16;

/// Finds every problem that can be found without a network.
pub(super) fn check(
    clusters: &[Settings],
    tenants: &BTreeMap<TenantId, Vec<Arc<str>>>,
    secrets: &[Secret],
) -> Vec<SettingsError> {
    let mut problems = Vec::new();
    if secrets.is_empty() {
        problems.push(SettingsError::NoSecret);
    }
    let short = secrets.iter().map(|secret| secret.expose().len()).filter(|bytes| *bytes < SECRET_BYTES_MIN);
    problems.extend(short.map(SettingsError::ShortSecret));
    let mut names = HashSet::new();
    let mut hosts: HashMap<String, &Arc<str>> = HashMap::new();
    for cluster in clusters {
        if !names.insert(&cluster.name) {
            problems.push(SettingsError::NameTwice(Arc::clone(&cluster.name)));
        }
        for text in &cluster.hosts {
            let host = host(text);
            if let Some(first) = hosts.insert(host.clone(), &cluster.name) {
                let (first, second) = (Arc::clone(first), Arc::clone(&cluster.name));
                problems.push(SettingsError::HostTwice { host, first, second });
            }
        }
        check_one(cluster, &mut problems);
    }
    for (tenant, wanted) in tenants {
        let missing = wanted.iter().filter(|name| !names.contains(name));
        problems.extend(missing.map(|name| {
            let (tenant, cluster) = (tenant.clone(), Arc::clone(name));
            SettingsError::TenantsCluster { tenant, cluster }
        }));
    }
    problems
}

fn check_one(settings: &Settings, problems: &mut Vec<SettingsError>) {
    let name = || Arc::clone(&settings.name);
    match (settings.endpoints.is_empty(), &settings.dns) {
        (true, None) => problems.push(SettingsError::NoEndpoints(name())),
        (false, Some(_)) => problems.push(SettingsError::EndpointsAndDns(name())),
        (true, Some(_)) | (false, None) => {}
    }
    let mut seen = HashSet::new();
    let twice = settings.endpoints.iter().filter(|origin| !seen.insert(*origin));
    problems.extend(twice.map(|origin| SettingsError::EndpointTwice { cluster: name(), endpoint: origin.clone() }));
    let path = &settings.health.path;
    if !path.starts_with('/') || Uri::try_from(path.as_str()).is_err() {
        problems.push(SettingsError::HealthPath { cluster: name(), path: path.clone() });
    }
    let shared = settings.open || settings.tenants.len() > 1;
    if shared && !settings.user_id.names_tenant() {
        problems.push(SettingsError::SharedNames(name()));
    }
    if shared && settings.knowledge == Knowledge::Exclusive {
        problems.push(SettingsError::SharedKnowledge(name()));
    }
}
