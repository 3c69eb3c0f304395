//! Owns lines: of those who come under one key, so many have their turn at once and so many wait, in order of arrival.
//! Does not say who lines up for what (`turns`, `lookups`).
//! Invariants: a line is never longer than stated, and nobody waits for a line of another key; who goes away gives turn
//! and place back; a key that nobody has or wants takes no memory.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// The lines of one kind. Clones share them.
#[derive(Clone)]
pub(super) struct Lines<K> {
    at_once: usize,
    waiting_max: usize,
    lines: Arc<Mutex<HashMap<K, Line>>>,
}

struct Line {
    turns: Arc<Semaphore>,
    /// Those who have or want a turn.
    length: usize,
}

/// A turn, until this is dropped.
pub(super) struct Turn<K: Eq + Hash> {
    // Given back before the place: were the line gone by then, a newcomer would open another one beside it.
    _permit: OwnedSemaphorePermit,
    _place: Place<K>,
}

/// One who has or wants a turn.
struct Place<K: Eq + Hash> {
    lines: Lines<K>,
    key: K,
}

/// Why there is no turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoTurn {
    /// As many wait as may.
    Full,
    /// The wait was in vain.
    TimedOut,
}

// === impl Lines ===

impl<K: Clone + Eq + Hash> Lines<K> {
    /// Lines in which so many have their turn at once, and at most so many more wait.
    pub(super) fn new(at_once: usize, waiting_max: usize) -> Self {
        Self { at_once, waiting_max, lines: Arc::default() }
    }

    /// Waits for a turn, until the deadline at most.
    ///
    /// # Errors
    /// [`NoTurn`].
    ///
    /// # Cancel safety
    /// Safe: the place in the line is given back.
    pub(super) async fn turn(&self, key: K, deadline: Instant) -> Result<Turn<K>, NoTurn> {
        let (place, turns) = self.line_up(key)?;
        match tokio::time::timeout_at(deadline, turns.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Turn { _permit: permit, _place: place }),
            // The semaphore is never closed: this is the deadline.
            Ok(Err(_)) | Err(_) => Err(NoTurn::TimedOut),
        }
    }

    fn line_up(&self, key: K) -> Result<(Place<K>, Arc<Semaphore>), NoTurn> {
        let mut lines = self.lines.lock();
        let new = || Line { turns: Arc::new(Semaphore::new(self.at_once)), length: 0 };
        let line = lines.entry(key.clone()).or_insert_with(new);
        if line.length >= self.at_once + self.waiting_max {
            return Err(NoTurn::Full);
        }
        line.length += 1;
        let turns = Arc::clone(&line.turns);
        Ok((Place { lines: self.clone(), key }, turns))
    }

    /// How many have or want a turn, in all lines.
    #[cfg(test)]
    pub(super) fn length(&self) -> usize {
        let lines = self.lines.lock();
        debug_assert!(lines.values().all(|line| line.length > 0), "an empty line is kept");
        lines.values().map(|line| line.length).sum()
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut lines = self.lines.lines.lock();
        let Some(line) = lines.get_mut(&self.key) else { return };
        line.length = line.length.saturating_sub(1);
        if line.length == 0 {
            lines.remove(&self.key);
        }
    }
}
