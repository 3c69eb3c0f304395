//! Owns who may continue a paused run right now: one call per pause.
//! Does not read runs (`approvals`) and does not wait: a run that is being continued refuses at once.
//! Invariant: between the look at a stored run and the end of its continuation nobody else holds its claim, and a
//! pause whose continuation may have reached AgentOS is never continued again by this process.
//!
//! The table lives in this process. Several instances over one AgentOS need a shared one behind the same two
//! questions: `claim` (is anybody continuing this run?) and `Claim::take` (was this pause continued before?).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

/// Most runs that are being continued at once.
const ACTIVE_MAX: usize = 65_536;
/// Most pauses that are remembered as continued.
const CONTINUED_MAX: u64 = 100_000;
/// How long one is remembered. AgentOS 2.x forgets a continuation whose caller went away and shows the run as paused
/// for ever, though its tool has run.
const CONTINUED_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Cluster and run.
type Key = (Arc<str>, String);

/// One pause of a run: what it waits for, as a digest. A run that goes on and pauses again has another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pause([u8; 32]);

/// Runs that are being continued, and pauses that were.
#[derive(Clone)]
pub(crate) struct Continues(Arc<Tables>);

struct Tables {
    active: Mutex<HashSet<Key>>,
    continued: Cache<Key, Pause>,
}

/// The right to continue one run; given back on drop. What was sent upstream stays remembered.
pub(crate) struct Claim {
    tables: Arc<Tables>,
    key: Key,
    pause: Option<Pause>,
    sent: bool,
}

/// Why a run cannot be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotClaimed {
    /// Somebody is continuing it.
    Continuing,
    /// Too many runs are being continued.
    Full,
}

// === impl Pause ===

impl Pause {
    /// The pause that this text describes.
    pub(crate) fn of(description: &str) -> Self {
        Self(Sha256::digest(description).into())
    }
}

// === impl Continues ===

impl Continues {
    pub(crate) fn new() -> Self {
        let continued = Cache::builder().max_capacity(CONTINUED_MAX).time_to_live(CONTINUED_TTL).build();
        Self(Arc::new(Tables { active: Mutex::default(), continued }))
    }

    /// Claims a run.
    ///
    /// # Errors
    /// [`NotClaimed`] while somebody else holds it, or when the table is full.
    pub(crate) fn claim(&self, cluster: &Arc<str>, run: &str) -> Result<Claim, NotClaimed> {
        let key = (Arc::clone(cluster), run.to_owned());
        let mut active = self.0.active.lock();
        if active.len() >= ACTIVE_MAX {
            return Err(NotClaimed::Full);
        }
        if !active.insert(key.clone()) {
            return Err(NotClaimed::Continuing);
        }
        drop(active);
        Ok(Claim { tables: Arc::clone(&self.0), key, pause: None, sent: false })
    }

    /// Says whether somebody is continuing the run.
    pub(crate) fn is_claimed(&self, cluster: &Arc<str>, run: &str) -> bool {
        self.0.active.lock().contains(&(Arc::clone(cluster), run.to_owned()))
    }

    /// Says whether this pause of the run was continued before.
    pub(crate) fn was_continued(&self, cluster: &Arc<str>, run: &str, pause: Pause) -> bool {
        self.0.continued.get(&(Arc::clone(cluster), run.to_owned())) == Some(pause)
    }
}

// === impl Claim ===

impl Claim {
    /// Says whether this pause is still to be continued, and takes it if so.
    pub(crate) fn take(&mut self, pause: Pause) -> bool {
        if self.tables.continued.get(&self.key) == Some(pause) {
            return false;
        }
        self.pause = Some(pause);
        true
    }

    /// From here on AgentOS may have begun to continue the run, whatever becomes of this call.
    pub(crate) fn sending(&mut self) {
        self.sent = true;
    }

    /// AgentOS did not begin: it was not reached, or refused.
    pub(crate) fn unsent(&mut self) {
        self.sent = false;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Remembered before it is given back: who claims next must see it.
        if let (true, Some(pause)) = (self.sent, self.pause) {
            self.tables.continued.insert(self.key.clone(), pause);
        }
        self.tables.active.lock().remove(&self.key);
    }
}
