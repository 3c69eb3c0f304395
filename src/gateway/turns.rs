//! Owns the turns of runs within a session, where AgentOS keeps only the last one of those at the same time.
//! Does not say where that is (`cluster`) and keeps no line itself (`lines`).
//! Invariants: of the runs of one session one has the turn, here and at every instance over a shared store; who waits
//! is served in order of arrival here, and no longer than the deadline; who goes away gives turn and place back.
//!
//! A store out of reach is no reason to stop: turns are then kept within this instance.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::lines::{self, Lines};
use super::path::Spawn;
use crate::store::Store;

/// Most runs that wait for one session.
const WAITING_MAX: usize = 100;
/// How long a turn is claimed in the store at once; renewed while it lasts, over when its instance has died.
const CLAIM_LASTS: Duration = Duration::from_secs(15);
const CLAIM_RENEWED: Duration = Duration::from_secs(5);
/// How often a turn that another instance has is asked for: first and at most.
const ASK_FIRST: Duration = Duration::from_millis(20);
const ASK_MOST: Duration = Duration::from_millis(500);

/// Cluster and session.
type Key = (Arc<str>, String);

/// The turns of this instance. Clones share them.
#[derive(Clone)]
pub(super) struct Turns(Arc<Inner>);

struct Inner {
    lines: Lines<Key>,
    shared: Option<(Arc<dyn Store>, Spawn)>,
}

/// The turn of a session, until this is dropped.
pub(super) struct Turn {
    /// Gives the claim back, by being dropped.
    _claim: Option<oneshot::Sender<()>>,
    _turn: lines::Turn<Key>,
}

/// Why there is no turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoTurn {
    #[error("{0} runs of the session wait already")]
    Full(usize),
    #[error("other runs of the session went on for {}ms", .0.as_millis())]
    TimedOut(Duration),
}

// === impl Turns ===

impl Turns {
    /// Turns of this instance, and of all that share the store.
    pub(super) fn new(shared: Option<(Arc<dyn Store>, Spawn)>) -> Self {
        Self(Arc::new(Inner { lines: Lines::new(1, WAITING_MAX), shared }))
    }

    /// Waits for the turn of a session.
    ///
    /// # Errors
    /// [`NoTurn`].
    ///
    /// # Cancel safety
    /// Safe: the place in the line is given back; a claim that was being made ends by itself.
    pub(super) async fn take(&self, cluster: &Arc<str>, session: &str, within: Duration) -> Result<Turn, NoTurn> {
        let deadline = Instant::now() + within;
        let turn = self.0.lines.turn((Arc::clone(cluster), session.to_owned()), deadline).await;
        let turn = turn.map_err(|no| match no {
            lines::NoTurn::Full => NoTurn::Full(WAITING_MAX),
            lines::NoTurn::TimedOut => NoTurn::TimedOut(within),
        })?;
        let claim = match &self.0.shared {
            None => None,
            Some((store, spawn)) => {
                let name = format!("turn:{cluster}:{session}");
                let claimed = tokio::time::timeout_at(deadline, claim(store, spawn, name)).await;
                claimed.map_err(|_| NoTurn::TimedOut(within))?
            }
        };
        Ok(Turn { _claim: claim, _turn: turn })
    }
}

/// Claims a turn among the instances, and keeps it claimed until what is returned is dropped; `None` when the store is
/// out of reach.
async fn claim(store: &Arc<dyn Store>, spawn: &Spawn, name: String) -> Option<oneshot::Sender<()>> {
    let owner = uuid::Uuid::new_v4().simple().to_string();
    let mut pause = ASK_FIRST;
    loop {
        match store.claim(&name, &owner, CLAIM_LASTS).await {
            Ok(true) => break,
            Ok(false) => tokio::time::sleep(pause).await,
            Err(_) => return None,
        }
        pause = (pause * 2).min(ASK_MOST);
    }
    let (held, mut dropped) = oneshot::channel();
    let store = Arc::clone(store);
    let keep = async move {
        loop {
            tokio::select! {
                _ = &mut dropped => break,
                () = tokio::time::sleep(CLAIM_RENEWED) => {}
            }
            // Lost for a while, it may still be there the next time.
            let _ = store.claim(&name, &owner, CLAIM_LASTS).await;
        }
        // What is not given back ends by itself.
        let _ = store.release(&name, &owner).await;
    };
    // Where the task is not taken, the claim ends by itself.
    spawn("session turn", Box::pin(keep));
    Some(held)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;

    use super::*;
    use crate::store::MemoryStore;

    const LONG: Duration = Duration::from_secs(60);

    /// Two instances over one store.
    fn instances() -> [Turns; 2] {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let tasks = spawner();
        [Turns::new(Some((Arc::clone(&store), Arc::clone(&tasks)))), Turns::new(Some((store, tasks)))]
    }

    fn spawner() -> Spawn {
        Arc::new(|_, work| {
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                runtime.block_on(work);
            });
            true
        })
    }

    #[tokio::test]
    async fn one_run_of_a_session_has_the_turn_at_all_instances() {
        let instances = instances();
        let (main, now, most) = (Arc::from("main"), AtomicUsize::new(0), AtomicUsize::new(0));
        let run = async |n: usize| {
            let turn = instances[n % 2].take(&main, "s", LONG).await.unwrap();
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            now.fetch_sub(1, Ordering::SeqCst);
            drop(turn);
        };
        join_all((0..20).map(run)).await;
        assert_eq!(most.load(Ordering::SeqCst), 1);
        assert!(instances.iter().all(|turns| turns.0.lines.length() == 0));
    }

    #[tokio::test(start_paused = true)]
    async fn waits_end_sessions_do_not_meet_and_who_goes_away_leaves_nothing() {
        let (turns, main) = (Turns::new(None), Arc::from("main"));
        let held = turns.take(&main, "s", LONG).await.unwrap();
        let other = turns.take(&main, "t", LONG).await.unwrap();
        let began = Instant::now();
        let waited = turns.take(&main, "s", Duration::from_secs(2)).await.err();
        assert_eq!((waited, began.elapsed()), (Some(NoTurn::TimedOut(Duration::from_secs(2))), Duration::from_secs(2)));
        let mut waiting: Vec<_> = (0..WAITING_MAX).map(|_| Box::pin(turns.take(&main, "s", LONG))).collect();
        for one in &mut waiting {
            assert!(futures_util::poll!(one.as_mut()).is_pending());
        }
        assert_eq!(turns.take(&main, "s", LONG).await.err(), Some(NoTurn::Full(WAITING_MAX)));
        drop((waiting, held, other));
        assert_eq!(turns.0.lines.length(), 0);
        assert!(turns.take(&main, "s", LONG).await.is_ok());
    }
}
