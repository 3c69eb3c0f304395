//! Owns TOML: reads the configuration and policy test cases into the Settings of every module.
//! Does not bind, connect, or judge policies; the only module that names `toml`.
//! Invariants: all problems of a file are reported in one run, each with its place; a `Config` that
//! exists has no problem.

mod instant;
mod problem;
mod reader;
mod runtime;
mod secrets;
mod units;
mod words;

mod approvals;
mod cache;
mod cases;
mod clusters;
mod front;
mod identity;
mod limits;
mod mcp_authorization;
mod mcp_pins;
mod mcp_runs;
mod operations;
mod plans;
mod policy;
mod resilience;
mod server;
mod store;
mod telemetry;
mod tenants;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeTable;

use crate::agentos::{Catalog, Operation};
use crate::identity::UnknownTenant;
use crate::principal::TenantId;
use crate::secret::Secret;

use reader::{Source, Table};

pub use cases::policy_cases;
pub use identity::{api_key_block, is_key_id};
pub use problem::{Place, Problem, Problems};
pub use runtime::{ServerSettings, Threads};
pub use secrets::{Env, ProcessEnv};

/// Largest configuration file.
const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The Settings of every module, checked against each other.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file, and every certificate, key and secret file that it refers to.
    pub files: Vec<PathBuf>,
    /// Runtime and accept loop.
    pub server: ServerSettings,
    /// Secrets that sign run ids and handles: the first signs, all verify. Never empty.
    pub secrets: Vec<Secret>,
    /// Limits on one request.
    pub limits: crate::gateway::Limits,
    /// HTTP door.
    pub proxy: crate::proxy::Settings,
    /// MCP door.
    pub mcp: crate::mcp::Settings,
    /// Admin door.
    pub admin: crate::admin::Settings,
    /// Clusters, in file order. Never empty.
    pub clusters: Vec<crate::cluster::Settings>,
    /// For every tenant of the file the clusters it may use; the first is its default.
    pub tenants: BTreeMap<TenantId, Vec<Arc<str>>>,
    /// Who may call.
    pub identity: crate::identity::Settings,
    /// Where the policies are.
    pub policy: crate::policy::Settings,
    /// Plans and who has which.
    pub quota: crate::quota::Settings,
    /// Where shared or durable state is kept.
    pub store: crate::store::Settings,
    /// How long approvals count.
    pub approvals: crate::gateway::ApprovalSettings,
    /// Response cache.
    pub cache: crate::cache::Settings,
    /// Logs.
    pub telemetry: crate::telemetry::Settings,
    /// Catalogue rows that the operator adds.
    pub operations: Vec<Operation>,
    /// The shipped rows and the operator's.
    pub catalog: Catalog,
}

/// Reads a configuration file; returns the configuration and its warnings.
///
/// # Errors
/// [`Problems`] lists everything that is wrong with the file, in file order.
pub fn load(path: &Path, env: &dyn Env) -> Result<(Config, Vec<Problem>), Problems> {
    let text = read(path)?;
    let document = parse(path, &text)?;
    let source = Source::new(path, &text, env);
    let mut config = config(Table::root(&source, &document));
    if let Some(config) = &mut config {
        config.files = std::iter::once(path.to_owned()).chain(source.dependencies()).collect();
    }
    let (problems, warnings) = source.findings();
    match config {
        Some(config) if problems.is_empty() => Ok((config, warnings)),
        Some(_) | None => Err(Problems(problems)),
    }
}

/// Reads a duration as the configuration writes it: `30s`, `1h`.
///
/// # Errors
/// A sentence that names the units there are.
pub fn duration(text: &str) -> Result<Duration, String> {
    let millis = units::DURATION.parse(text);
    millis.map(Duration::from_millis).map_err(|bad| format!("{}\nhelp: {}", bad.what, bad.help))
}

/// Reads every section before it gives up on any, so that one run finds all problems.
fn config(root: Table<'_>) -> Option<Config> {
    let server = server::read(&root);
    let plans = plans::read(&root);
    let store = store::read(&root, plans.store);
    let tenants = tenants::read(&root, &plans);
    let identity = identity::read(&root, &tenants, &plans);
    let unknown = identity.as_ref().map_or(UnknownTenant::Deny, |settings| settings.unknown_tenant);
    let (operations, catalog) = operations::read(&root);
    let clusters = clusters::read(&root, &tenants, identity.as_ref(), catalog.as_ref());
    contradict(&root, &plans, unknown);
    if let (Some(catalog), Some(server)) = (&catalog, &server) {
        hide(&root, catalog, &server.mcp.path);
        front::known_operations(&root, catalog, &server.operations);
    }
    if let (Some(server), Some(identity)) = (&server, &identity) {
        mcp_authorization::contradict(&root, &server.mcp, identity);
    }
    if let (Some(server), Some((clusters, _))) = (&server, &clusters) {
        mcp_pins::contradict(&root, &server.mcp.pins, clusters.iter().map(|cluster| &cluster.name));
    }
    let policy = policy::read(&root);
    let approvals = approvals::read(&root);
    let cache = cache::read(&root, catalog.as_ref());
    let telemetry = telemetry::read(&root);
    root.close();
    let (clusters, tenant_clusters) = clusters?;
    let server = server?;
    Some(Config {
        files: Vec::new(),
        server: server.server,
        secrets: server.secrets,
        limits: server.limits,
        proxy: server.proxy,
        mcp: server.mcp,
        admin: server.admin,
        clusters,
        tenants: tenant_clusters,
        identity: identity?,
        policy,
        store,
        quota: tenants.quota(plans),
        approvals,
        cache,
        telemetry,
        operations,
        catalog: catalog?,
    })
}

/// Reports what two sections say against each other.
fn contradict(root: &Table<'_>, plans: &plans::Read, unknown: UnknownTenant) {
    if unknown == UnknownTenant::DefaultPlan && plans.default_plan.is_none() {
        let at = root.get("identity").map_or(0, |value| value.at);
        let help = "write `default_plan` in `[quota]`, or `unknown_tenant = \"deny\"`".to_owned();
        let message = "`unknown_tenant` in `[identity]` is `default_plan`, but `[quota]` has no `default_plan`";
        root.source.problem(at, message, Some(help));
    }
}

/// Reports a path of the MCP door that takes the place of AgentOS operations.
fn hide(root: &Table<'_>, catalog: &Catalog, mcp: &str) {
    let below =
        |row: &&Operation| row.path.strip_prefix(mcp).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if let Some(row) = catalog.rows().iter().find(below) {
        let at = root.get("mcp").map_or(0, |value| value.at);
        let message = format!("`path` in `[mcp]` is `{mcp}`, which hides the operation `{}` (`{}`)", row.id, row.path);
        root.source.problem(at, message, Some("write `path = \"/mcp\"`".to_owned()));
    }
}

/// Reads a whole file, up to [`FILE_BYTES_MAX`].
fn read(path: &Path) -> Result<String, Problems> {
    let unreadable = |message: String| {
        let file = path.display().to_string();
        Problems(vec![Problem { file, place: None, message, help: None }])
    };
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(format!("cannot be read: {error}")))?;
    if text.len() > FILE_BYTES_MAX { Err(unreadable("larger than 4MiB".to_owned())) } else { Ok(text) }
}

/// Parses TOML; every syntax error is a problem.
fn parse<'t>(path: &Path, text: &'t str) -> Result<DeTable<'t>, Problems> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(document.into_inner());
    }
    let problem = |error: toml::de::Error| Problem {
        file: path.display().to_string(),
        place: error.span().map(|span| Place::of(text, span.start)),
        message: format!("not TOML: {}", one_line(error.message())),
        help: None,
    };
    Err(Problems(errors.into_iter().map(problem).collect()))
}

fn one_line(message: &str) -> String {
    message.lines().collect::<Vec<_>>().join(", ")
}
