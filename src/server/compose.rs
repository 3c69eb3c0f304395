//! Owns building every stage from the configuration: the one place where modules meet.
//! Does not bind or connect.
//! Invariant: what `check` accepts, `run` can start.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::HeaderMap;

use crate::agentos::{Catalog, CatalogError};
use crate::cache::Cache;
use crate::cluster::{Clusters, SettingsErrors};
use crate::config::Config;
use crate::gateway::Snapshot;
use crate::identity::{self, Identity, JWKS_BYTES_MAX, KeyFetch};
use crate::outbound::{Client, FetchOptions};
use crate::policy::{LoadErrors, Policies};
use crate::proxy::{TlsAcceptor, TlsError};
use crate::quota::{self, Quota};
use crate::telemetry::{OpenError, Telemetry};

use super::revoked::{RevokedError, read_list};

/// Deadline of one fetch of keys.
const KEYS_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// What the modules themselves found wrong with their settings.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// Rows of `[[operation]]`.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Policies.
    #[error(transparent)]
    Policies(#[from] LoadErrors),
    /// Issuers and API keys.
    #[error(transparent)]
    Identity(#[from] identity::SettingsError),
    /// Plans.
    #[error(transparent)]
    Quota(#[from] quota::SettingsError),
    /// Clusters and upstream credentials.
    #[error(transparent)]
    Clusters(#[from] SettingsErrors),
    /// The revocation list.
    #[error(transparent)]
    Revoked(#[from] RevokedError),
    /// TLS of the main listener.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A log file.
    #[error(transparent)]
    Log(#[from] OpenError),
}

/// The stages, and the acceptor where TLS is configured.
pub type Composed = (Snapshot, Option<TlsAcceptor>);

/// What ran before a reload.
#[derive(Clone, Copy)]
pub(super) struct Former<'a> {
    pub(super) config: &'a Config,
    pub(super) snapshot: &'a Snapshot,
}

/// Builds what serves, and makes sure that the logs can be opened. Creates nothing.
///
/// # Errors
/// Every module that refuses its settings, not only the first.
pub fn compose(config: &Config, client: &Client) -> Result<Composed, Vec<ComposeError>> {
    let logs: Vec<ComposeError> = Telemetry::check(&config.telemetry).into_iter().map(ComposeError::Log).collect();
    match stages(config, client) {
        Ok(composed) if logs.is_empty() => Ok(composed),
        Ok(_) => Err(logs),
        Err(errors) => Err(errors.into_iter().chain(logs).collect()),
    }
}

/// Builds the stages and the TLS acceptor.
///
/// # Errors
/// Every module that refuses its settings, not only the first.
pub fn stages(config: &Config, client: &Client) -> Result<Composed, Vec<ComposeError>> {
    stages_after(config, client, None)
}

/// The same, and takes over what outlives a reload: counters of quotas, endpoints' state, keys of issuers, the
/// revocation list, and kept answers where they still hold.
///
/// # Errors
/// As [`stages`].
pub(super) fn stages_after(
    config: &Config,
    client: &Client,
    former: Option<Former<'_>>,
) -> Result<Composed, Vec<ComposeError>> {
    let mut errors: Vec<ComposeError> = Vec::new();
    let catalog = noted(&mut errors, Catalog::with_rows(config.operations.clone()));
    let policies = catalog.as_ref().and_then(|catalog| {
        let rows: Vec<_> = catalog.rows().iter().collect();
        noted(&mut errors, Policies::load(&config.policy, &rows))
    });
    let identity = identity(config, client, former, &mut errors);
    let quota = match former {
        Some(former) => former.snapshot.quota.reloaded(config.quota.clone()),
        None => Quota::new(config.quota.clone()),
    };
    let quota = noted(&mut errors, quota);
    let (settings, tenants, secrets) = (config.clusters.clone(), &config.tenants, &config.secrets);
    let clusters = match former {
        Some(former) => former.snapshot.clusters.reload(settings, tenants, secrets),
        None => Clusters::new(settings, tenants, secrets),
    };
    let clusters = noted(&mut errors, clusters);
    let tls = match &config.proxy.tls {
        None => None,
        Some(tls) => noted(&mut errors, TlsAcceptor::new(tls)),
    };
    match (catalog, policies, identity, quota, clusters) {
        (Some(catalog), Some(policies), Some(identity), Some(quota), Some(clusters)) if errors.is_empty() => {
            let snapshot = Snapshot {
                catalog: Arc::new(catalog),
                identity: Arc::new(identity),
                policies: Arc::new(policies),
                quota: Arc::new(quota),
                cache: cache(config, former),
                clusters: Arc::new(clusters),
                limits: config.limits.clone(),
                approvals: config.approvals,
            };
            Ok((snapshot, tls))
        }
        (_, _, _, _, _) => Err(errors),
    }
}

/// Who calls. A revocation list that can no longer be read does not stop a reload: the old one stays.
fn identity(
    config: &Config,
    client: &Client,
    former: Option<Former<'_>>,
    errors: &mut Vec<ComposeError>,
) -> Option<Identity> {
    let keys = Arc::new(Keys(client.clone()));
    let identity = noted(errors, Identity::new(config.identity.clone(), keys))?;
    let list = config
        .identity
        .revoked
        .as_ref()
        .filter(|path| former.is_none_or(|former| former.config.identity.revoked.as_ref() != Some(*path)));
    let list = match list {
        Some(path) => Some(noted(errors, read_list(path))?),
        None => None,
    };
    let Some(former) = former else {
        list.map(|list| identity.revoke(list));
        return Some(identity);
    };
    identity.adopt_keys(&former.snapshot.identity);
    Some(identity.sharing_revocations(&former.snapshot.identity))
}

/// Kept answers stay where nothing that they depend on has changed.
fn cache(config: &Config, former: Option<Former<'_>>) -> Arc<Cache> {
    let same = |former: &Former<'_>| {
        let asked = |config: &Config| {
            let of = |c: &crate::cluster::Settings| {
                (
                    c.name.clone(),
                    c.endpoints.clone(),
                    c.dns.clone(),
                    c.user_id.clone(),
                    c.knowledge.clone(),
                    c.tenants.clone(),
                )
            };
            config.clusters.iter().map(of).collect::<Vec<_>>()
        };
        let rows = |config: &Config| format!("{:?}", config.operations);
        let (old, new) = (former.config, config);
        old.cache == new.cache && asked(old) == asked(new) && rows(old) == rows(new)
    };
    match former.filter(same) {
        Some(former) => Arc::clone(&former.snapshot.cache),
        None => Arc::new(Cache::new(&config.cache)),
    }
}

fn noted<T, E: Into<ComposeError>>(errors: &mut Vec<ComposeError>, built: Result<T, E>) -> Option<T> {
    built.map_err(|error| errors.push(error.into())).ok()
}

/// Key sets come through the gateway's own client.
struct Keys(Client);

impl KeyFetch for Keys {
    fn fetch(&self, url: &str) -> BoxFuture<'_, Result<Bytes, String>> {
        let url = url.to_owned();
        Box::pin(async move {
            let options = FetchOptions { deadline: KEYS_TIMEOUT, bytes_max: JWKS_BYTES_MAX, headers: HeaderMap::new() };
            let fetched = self.0.fetch(&url, &options).await.map_err(|error| error.to_string())?;
            if fetched.status == 200 { Ok(fetched.body) } else { Err(format!("answered {}", fetched.status)) }
        })
    }
}
