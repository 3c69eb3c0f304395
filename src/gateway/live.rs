//! Owns which runs this instance sees going on, so that whoever cancels one learns of its end at once.
//! Does not end runs.
//! Invariant: a run is listed exactly as long as something here follows it; only an end that was seen is remembered.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::sync::watch;

/// Most ends that are remembered, and how long.
const ENDED_MAX: u64 = 100_000;
const ENDED_TTL: Duration = Duration::from_secs(60 * 60);

/// Runs for which room is kept when a burst is over.
const GOING_USUAL: usize = 64;

/// Cluster and run.
type Key = (Arc<str>, String);

/// The runs that are going on here.
#[derive(Clone)]
pub(super) struct Live(Arc<Tables>);

struct Tables {
    /// How many follow the run, and what tells others when the last one is gone.
    going: Mutex<HashMap<Key, (usize, watch::Sender<()>)>>,
    ended: Cache<Key, ()>,
}

/// A run that is being followed, until this is dropped.
pub(super) struct Going {
    tables: Arc<Tables>,
    key: Key,
    ended: bool,
}

/// What this instance knows of a run.
pub(super) enum Known {
    /// It was seen to end.
    Ended,
    /// It goes on: the receiver closes when nobody here follows it any more.
    GoesOn(watch::Receiver<()>),
    /// Nothing.
    Nothing,
}

// === impl Live ===

impl Live {
    pub(super) fn new() -> Self {
        let ended = Cache::builder().max_capacity(ENDED_MAX).time_to_live(ENDED_TTL).build();
        Self(Arc::new(Tables { going: Mutex::default(), ended }))
    }

    /// Lists a run as going on.
    pub(super) fn begin(&self, cluster: &Arc<str>, run: &str) -> Going {
        let key = (Arc::clone(cluster), run.to_owned());
        // One that was continued goes on. Most were not, and forgetting what is not there takes room in the cache.
        if self.0.ended.contains_key(&key) {
            self.0.ended.invalidate(&key);
        }
        let mut going = self.0.going.lock();
        going.entry(key.clone()).or_insert_with(|| (0, watch::Sender::new(()))).0 += 1;
        Going { tables: Arc::clone(&self.0), key, ended: false }
    }

    /// What is known of a run.
    pub(super) fn known(&self, cluster: &Arc<str>, run: &str) -> Known {
        let key = (Arc::clone(cluster), run.to_owned());
        if let Some((_, sender)) = self.0.going.lock().get(&key) {
            return Known::GoesOn(sender.subscribe());
        }
        if self.0.ended.contains_key(&key) { Known::Ended } else { Known::Nothing }
    }
}

// === impl Going ===

impl Going {
    /// The run was seen to end.
    pub(super) fn ended(&mut self) {
        self.ended = true;
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        if self.ended {
            self.tables.ended.insert(self.key.clone(), ());
        }
        let mut going = self.tables.going.lock();
        if let Some((count, _)) = going.get_mut(&self.key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                going.remove(&self.key);
                // After many runs at once: what they took is given back.
                if going.len() < GOING_USUAL && going.capacity() > 16 * GOING_USUAL {
                    going.shrink_to(GOING_USUAL);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_is_told_to_who_waits_and_remembered() {
        let (live, main) = (Live::new(), Arc::from("main"));
        let (mut one, other) = (live.begin(&main, "r"), live.begin(&main, "r"));
        let Known::GoesOn(mut waits) = live.known(&main, "r") else { panic!("it goes on") };
        one.ended();
        drop(one);
        assert!(matches!(live.known(&main, "r"), Known::GoesOn(_)), "another one follows it");
        drop(other);
        assert!(waits.changed().await.is_err(), "nobody follows it");
        assert!(matches!(live.known(&main, "r"), Known::Ended));
        assert!(matches!(live.known(&Arc::from("other"), "r"), Known::Nothing));
        // What was dropped without an end is not known to have ended, and what goes on again has not.
        drop(live.begin(&main, "r"));
        assert!(matches!(live.known(&main, "r"), Known::Nothing));
        assert!(live.0.going.lock().is_empty());
    }
}
