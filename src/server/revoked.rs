//! Owns reading the revocation list, and reading it again when its file has changed.
//! Does not say who is covered (`identity`).
//! Invariant: a list that cannot be read changes nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::gateway::Gateway;
use crate::identity::{BadList, RevokedList};

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

/// The list's file, as last seen.
pub(super) struct Watched {
    gateway: Arc<Gateway>,
    /// When the list was written and how long it is, as last read.
    seen: Mutex<Option<(SystemTime, u64)>>,
}

// === impl Watched ===

impl Watched {
    pub(super) fn new(gateway: Arc<Gateway>) -> Self {
        Self { gateway, seen: Mutex::default() }
    }

    /// The next look reads the file, changed or not.
    pub(super) fn forget(&self) {
        *self.seen.lock() = None;
    }

    /// Reads the list when its file has changed; without a file nobody is revoked.
    pub(super) async fn look(&self, path: Option<PathBuf>) {
        let identity = Arc::clone(&self.gateway.snapshot().identity);
        let Some(path) = path else {
            identity.revoke(RevokedList::default());
            return;
        };
        let seen = *self.seen.lock();
        let work = tokio::task::spawn_blocking(move || {
            let written = std::fs::metadata(&path).and_then(|file| Ok((file.modified()?, file.len()))).ok();
            (written, (written.is_none() || written != seen).then(|| read_list(&path)))
        });
        let Ok((written, Some(read))) = work.await else { return };
        match read {
            Ok(list) => {
                let entries = list.len();
                if identity.revoke(list) {
                    tracing::info!(entries, "revocation list read");
                }
            }
            Err(error) => tracing::error!(%error, "revocation list not read, the old one stays"),
        }
        *self.seen.lock() = written;
    }
}
