//! Owns who may continue a paused run right now: one call per pause.
//! Does not read runs (`approvals`) and does not wait: a run that is being continued refuses at once.
//! Invariant: between the look at a stored run and the end of its continuation nobody else holds its claim, and a
//! pause whose continuation may have reached AgentOS is not continued again for a day.
//!
//! The table lives in this process, and where a store is configured in that too: then no instance continues what
//! another one has, also after a restart. A store out of reach refuses: twice is worse than later.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::gateway::Spawn;
use crate::store::Store;

/// Most runs that are being continued at once.
const ACTIVE_MAX: usize = 65_536;
/// Most pauses that are remembered as continued.
const CONTINUED_MAX: u64 = 100_000;
/// How long one is remembered. AgentOS 2.x forgets a continuation whose caller went away and shows the run as paused
/// for ever, though its tool has run.
const CONTINUED_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a run is claimed in the store: from the look at it until its pause is taken, which alone outlives this.
const LOOK_LASTS: Duration = Duration::from_secs(60);

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
    shared: Option<SharedClaims>,
}

/// Claims that other instances see.
struct SharedClaims {
    store: Arc<dyn Store>,
    /// Gives claims back after a call has gone.
    spawn: Spawn,
}

/// The right to continue one run; given back on drop. What was sent upstream stays remembered.
pub(crate) struct Claim {
    tables: Arc<Tables>,
    key: Key,
    /// This claim among all instances'.
    owner: String,
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
    /// Nobody can say: the store is out of reach.
    Lost,
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
    /// Claims of this process alone.
    pub(crate) fn new() -> Self {
        Self::with(None)
    }

    /// Claims that every instance over the store sees.
    pub(crate) fn shared(store: Arc<dyn Store>, spawn: Spawn) -> Self {
        Self::with(Some(SharedClaims { store, spawn }))
    }

    fn with(shared: Option<SharedClaims>) -> Self {
        let continued = Cache::builder().max_capacity(CONTINUED_MAX).time_to_live(CONTINUED_TTL).build();
        Self(Arc::new(Tables { active: Mutex::default(), continued, shared }))
    }

    /// Claims a run.
    ///
    /// # Errors
    /// [`NotClaimed`] while somebody else holds it, when the table is full, or when the store is out of reach.
    ///
    /// # Cancel safety
    /// Safe: what was claimed is given back.
    pub(crate) async fn claim(&self, cluster: &Arc<str>, run: &str) -> Result<Claim, NotClaimed> {
        let key = (Arc::clone(cluster), run.to_owned());
        {
            let mut active = self.0.active.lock();
            if active.len() >= ACTIVE_MAX {
                return Err(NotClaimed::Full);
            }
            if !active.insert(key.clone()) {
                return Err(NotClaimed::Continuing);
            }
        }
        // From here on dropping it gives it back, here and in the store.
        let owner = uuid::Uuid::new_v4().simple().to_string();
        let claim = Claim { tables: Arc::clone(&self.0), key, owner, pause: None, sent: false };
        match claim.hold(&claim.run_name(), LOOK_LASTS).await? {
            true => Ok(claim),
            false => Err(NotClaimed::Continuing),
        }
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
    ///
    /// # Errors
    /// [`NotClaimed::Lost`].
    ///
    /// # Cancel safety
    /// Safe: dropping the claim gives back what was not sent.
    pub(crate) async fn take(&mut self, pause: Pause) -> Result<bool, NotClaimed> {
        if self.tables.continued.get(&self.key) == Some(pause) {
            return Ok(false);
        }
        self.pause = Some(pause);
        let taken = self.hold(&self.pause_name(pause), CONTINUED_TTL).await?;
        if !taken {
            self.pause = None;
        }
        Ok(taken)
    }

    /// Claims a name in the store; nothing is in the way where there is none.
    async fn hold(&self, name: &str, lasts: Duration) -> Result<bool, NotClaimed> {
        match &self.tables.shared {
            None => Ok(true),
            Some(shared) => shared.store.claim(name, &self.owner, lasts).await.map_err(|_| NotClaimed::Lost),
        }
    }

    fn run_name(&self) -> String {
        format!("continue:{}/{}", self.key.0, self.key.1)
    }

    fn pause_name(&self, Pause(digest): Pause) -> String {
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("continued:{}/{}:{digest}", self.key.0, self.key.1)
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
        let Some(shared) = &self.tables.shared else { return };
        let unsent = self.pause.filter(|_| !self.sent).map(|pause| self.pause_name(pause));
        let (store, owner, run) = (Arc::clone(&shared.store), self.owner.clone(), self.run_name());
        let give_back = async move {
            // A claim that cannot be given back ends by itself.
            for name in unsent.iter().chain([&run]) {
                let _ = store.release(name, &owner).await;
            }
        };
        (shared.spawn)("claims", Box::pin(give_back));
    }
}
