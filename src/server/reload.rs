//! Owns what changes while the process serves: policies and log files on SIGHUP, the revocation list when its file does.
//! Does not read the configuration again.
//! Invariant: what cannot be read changes nothing, and says why.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::gateway::Gateway;
use crate::identity::{BadList, RevokedList};
use crate::policy::{self, LoadErrors, Policies};
use crate::telemetry::Telemetry;

/// Largest revocation list.
const LIST_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The revocation list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RevokedError {
    /// The file cannot be read.
    #[error("cannot read the revocation list `{}`: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// The file is no list.
    #[error("the revocation list `{}` {bad}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        bad: BadList,
    },
}

/// Everything that can be read anew.
pub(super) struct Reload {
    gateway: Arc<Gateway>,
    telemetry: Arc<Telemetry>,
    policy: policy::Settings,
    revoked: Option<PathBuf>,
    /// When the revocation list was written and how long it is, as last read.
    seen: Mutex<Option<(SystemTime, u64)>>,
}

/// Reads a revocation list.
///
/// # Errors
/// [`RevokedError`]; a list that is not there is none that says "nobody".
pub(super) fn read_list(path: &Path) -> Result<RevokedList, RevokedError> {
    let unreadable = |cause| RevokedError::Unreadable { path: path.to_owned(), cause };
    if std::fs::metadata(path).map_err(unreadable)?.len() > LIST_BYTES_MAX {
        return Err(unreadable(std::io::Error::other("larger than 64MiB")));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    RevokedList::parse(&text).map_err(|bad| RevokedError::Bad { path: path.to_owned(), bad })
}

// === impl Reload ===

impl Reload {
    pub(super) fn new(
        gateway: Arc<Gateway>,
        telemetry: Arc<Telemetry>,
        policy: policy::Settings,
        revoked: Option<PathBuf>,
    ) -> Self {
        Self { gateway, telemetry, policy, revoked, seen: Mutex::default() }
    }

    /// What SIGHUP does: log files are opened anew, the revocation list and the policies are read again.
    ///
    /// # Errors
    /// What is wrong with the policies; the old ones stay.
    pub(super) async fn hang_up(&self) -> Result<(), LoadErrors> {
        self.telemetry.reopen();
        *self.seen.lock() = None;
        self.revoked().await;
        let loaded = self.policies().await;
        self.telemetry.config_reload(loaded.is_ok());
        match &loaded {
            Ok(()) => tracing::info!("policies reloaded"),
            Err(errors) => tracing::error!(%errors, "policies not reloaded, the old ones stay"),
        }
        loaded
    }

    async fn policies(&self) -> Result<(), LoadErrors> {
        let (settings, catalog) = (self.policy.clone(), Arc::clone(&self.gateway.snapshot().catalog));
        let work = tokio::task::spawn_blocking(move || {
            let rows: Vec<_> = catalog.rows().iter().collect();
            Policies::load(&settings, &rows)
        });
        match work.await {
            Ok(loaded) => self.gateway.install_policies(loaded?),
            // The process ends or the loader panicked, which is logged: nothing changes.
            Err(error) => tracing::error!(%error, "policies not loaded"),
        }
        Ok(())
    }

    /// Reads the revocation list when its file has changed.
    pub(super) async fn revoked(&self) {
        let Some(path) = self.revoked.clone() else { return };
        let seen = *self.seen.lock();
        let work = tokio::task::spawn_blocking(move || {
            let written = std::fs::metadata(&path).and_then(|file| Ok((file.modified()?, file.len()))).ok();
            (written, (written.is_none() || written != seen).then(|| read_list(&path)))
        });
        let Ok((written, Some(read))) = work.await else { return };
        match read {
            Ok(list) => {
                let entries = list.len();
                if self.gateway.snapshot().identity.revoke(list) {
                    tracing::info!(entries, "revocation list read");
                }
            }
            Err(error) => tracing::error!(%error, "revocation list not read, the old one stays"),
        }
        *self.seen.lock() = written;
    }
}
