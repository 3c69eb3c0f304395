//! Owns a bounded, sharded map from keys that callers choose to small counters.
//! Does not know what is counted: the caller says which values are idle and may be forgotten.
//! Invariant: holds at most `cap` keys; forgetting an idle key changes no decision.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};

use parking_lot::Mutex;

/// Not a power of two: a full table of a million keys must not just miss the size at which a shard's map doubles.
const SHARDS: usize = 24;
/// Nanoseconds between two searches for idle keys in one full shard, so that a spray of new keys
/// does not make every insert walk the shard.
const SWEEP_INTERVAL: u64 = 100_000_000;

/// A bounded map. One short lock per shard, never held across anything that waits.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    hasher: RandomState,
    shards: Box<[Mutex<Shard<K, V>>]>,
    shard_cap: usize,
}

#[derive(Debug)]
struct Shard<K, V> {
    entries: HashMap<K, V, RandomState>,
    sweep_after: u64,
}

impl<K: Hash + Eq, V> Table<K, V> {
    /// An empty table of at most `cap` keys (rounded up to a multiple of 24).
    pub(super) fn new(cap: usize) -> Self {
        let shard = || Mutex::new(Shard { entries: HashMap::default(), sweep_after: 0 });
        Self {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| shard()).collect(),
            shard_cap: cap.div_ceil(SHARDS),
        }
    }

    /// Calls `change` with the value of `key`, made by `create` when it is new.
    ///
    /// Returns `None` without calling it when the table is full of keys that are not idle.
    pub(super) fn with<R>(
        &self,
        key: K,
        now: u64,
        idle: impl Fn(&V) -> bool,
        create: impl FnOnce(&K) -> V,
        change: impl FnOnce(&mut V) -> R,
    ) -> Option<R> {
        // The remainder is below SHARDS, so a shard is always found.
        let index = usize::try_from(self.hasher.hash_one(&key) % SHARDS as u64).unwrap_or(0);
        let mut shard = self.shards.get(index)?.lock();
        let shard = &mut *shard;
        if let Some(value) = shard.entries.get_mut(&key) {
            return Some(change(value));
        }
        if shard.entries.len() >= self.shard_cap {
            if now < shard.sweep_after {
                return None;
            }
            shard.sweep_after = now.saturating_add(SWEEP_INTERVAL);
            shard.entries.retain(|_, value| !idle(value));
            if shard.entries.len() >= self.shard_cap {
                return None;
            }
        }
        Some(change(shard.entries.entry(key).or_insert_with_key(create)))
    }

    /// Shows every entry, one shard at a time.
    pub(super) fn each(&self, mut show: impl FnMut(&K, &V)) {
        for shard in &self.shards {
            shard.lock().entries.iter().for_each(|(key, value)| show(key, value));
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().entries.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spray_of_keys_stays_within_the_cap() {
        let table = Table::new(72);
        for key in 0..10_000_u32 {
            table.with(key, u64::from(key), |_| false, |_| 1, |_| ());
        }
        assert!(table.len() <= 72, "{}", table.len());
    }

    #[test]
    fn idle_keys_make_room_and_busy_ones_stay() {
        let table = Table::new(SHARDS);
        let kept = (0..1_000_u32).find(|key| table.with(*key, 0, |_| false, |_| true, |_| ()).is_none());
        let full = kept.expect("one shard of one key fills up");
        let before = table.len();
        assert_eq!(table.with(full, SWEEP_INTERVAL, |busy| *busy, |_| false, |busy| *busy), Some(false));
        assert_eq!(table.len(), before);
    }

    #[test]
    fn a_full_shard_is_searched_once_per_interval() {
        let table = Table::new(SHARDS);
        let searched = std::cell::Cell::new(0);
        for key in 0..1_000_u32 {
            let idle = |_: &()| {
                searched.set(searched.get() + 1);
                false
            };
            table.with(key, 5, idle, |_| (), |()| ());
        }
        assert_eq!(searched.get(), SHARDS);
    }
}
