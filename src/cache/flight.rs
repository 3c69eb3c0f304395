//! Owns single flight: of all callers that miss the same key, one fetches and the others wait for it.
//! Does not hold answers beyond the flight (`mod`) and spawns nothing.
//! Invariants: at most one ticket of a flight holds its permit; a flight stays listed exactly while
//! somebody holds a ticket of it; the lock is never held across an await.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::key::Key;
use super::marks::Stamp;
use super::stored::Stored;

/// Most keys that are fetched at a time; further ones bypass the cache.
const FLIGHTS_MAX: usize = 16_384;

/// The flights under way, by key.
#[derive(Debug, Default)]
pub(super) struct Flights {
    by_key: Mutex<HashMap<Arc<Key>, Arc<Flight>>>,
}

/// One fetch and those who wait for it.
#[derive(Debug)]
pub(super) struct Flight {
    /// One permit: who holds it fetches. Dropping it passes it to the caller who has waited longest,
    /// closing it tells everybody that the flight has landed.
    pub(super) permit: Arc<Semaphore>,
    /// Set before the permit is closed: the answer, or that it may not be shared.
    pub(super) landed: OnceLock<Option<Arc<Stored>>>,
    /// The marks when it began. Later callers join only while they hold.
    stamp: Stamp,
    /// Changed under the lock of the list only.
    tickets: AtomicUsize,
}

/// A caller's part in a flight.
#[derive(Debug)]
pub(super) struct Ticket {
    flights: Arc<Flights>,
    pub(super) key: Arc<Key>,
    pub(super) flight: Arc<Flight>,
}

impl Flights {
    /// Joins the flight of a key, or begins one where there is none or it began before a purge.
    ///
    /// Returns `None` when too many are under way.
    pub(super) fn join(self: &Arc<Self>, key: Key, stamp: Stamp) -> Option<Ticket> {
        let mut by_key = self.by_key.lock();
        let full = by_key.len() >= FLIGHTS_MAX;
        let (key, flight) = match by_key.get_key_value(&key) {
            Some((key, flight)) if flight.stamp == stamp => (key.clone(), flight.clone()),
            None if full => return None,
            Some(_) | None => {
                let (key, flight) = (Arc::new(key), Arc::new(Flight::new(stamp)));
                // Those who joined the flight before the purge keep it; it is only no longer listed.
                by_key.insert(key.clone(), flight.clone());
                (key, flight)
            }
        };
        flight.tickets.fetch_add(1, Ordering::Relaxed);
        Some(Ticket { flights: self.clone(), key, flight })
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_key.lock().len()
    }
}

impl Flight {
    fn new(stamp: Stamp) -> Self {
        Self { permit: Arc::new(Semaphore::new(1)), landed: OnceLock::new(), stamp, tickets: AtomicUsize::new(0) }
    }

    /// Ends the flight for everybody who waits.
    pub(super) fn land(&self, answer: Option<Arc<Stored>>) {
        // Only the holder of the permit lands a flight, once.
        let _ = self.landed.set(answer);
        self.permit.close();
    }
}

impl Ticket {
    /// Takes the flight off the list, so that nobody joins it any more.
    pub(super) fn unlist(&self) {
        unlist(&mut self.flights.by_key.lock(), &self.key, &self.flight);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut by_key = self.flights.by_key.lock();
        if self.flight.tickets.fetch_sub(1, Ordering::Relaxed) == 1 {
            unlist(&mut by_key, &self.key, &self.flight);
        }
    }
}

fn unlist(by_key: &mut HashMap<Arc<Key>, Arc<Flight>>, key: &Arc<Key>, flight: &Arc<Flight>) {
    if by_key.get(key).is_some_and(|listed| Arc::ptr_eq(listed, flight)) {
        by_key.remove(key);
    }
}
