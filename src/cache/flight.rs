//! Owns single flight: one caller fetches a missing reply, the others wait for it.
//! Does not fetch.
//! Invariant: every flight lands, also when its caller is dropped; then a waiter takes over.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Cache, Key, Stored};

/// Most replies that are being fetched at once; beyond that, calls go upstream without sharing.
const FLIGHTS_MAX: usize = 65_536;

/// What is known about a reply.
#[derive(Debug)]
pub enum Lookup {
    /// Kept, and this old.
    Fresh(Arc<Stored>, Duration),
    /// Not kept: fetch it and fill it in.
    Miss(FillGuard),
    /// Somebody else is fetching it for too long: fetch it, keep nothing.
    Bypass,
}

/// The right to fill one missing reply. Dropping it lets the next waiter try.
#[must_use = "dropping it gives the fetch up"]
pub struct FillGuard {
    cache: Arc<Cache>,
    key: Key,
    epoch: u64,
}

/// Replies that are being fetched.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<Key, watch::Sender<()>>>);

// === impl Flights ===

impl Flights {
    /// Joins the flight of a key, or starts it: then there is nothing to wait for.
    pub(super) fn join(&self, key: &Key) -> Option<watch::Receiver<()>> {
        let mut flights = self.0.lock();
        if let Some(flight) = flights.get(key) {
            return Some(flight.subscribe());
        }
        if flights.len() < FLIGHTS_MAX {
            flights.insert(key.clone(), watch::Sender::new(()));
        }
        None
    }

    fn land(&self, key: &Key) {
        self.0.lock().remove(key);
    }
}

// === impl FillGuard ===

impl FillGuard {
    pub(super) fn new(cache: Arc<Cache>, key: Key, epoch: u64) -> Self {
        Self { cache, key, epoch }
    }

    /// Keeps the reply, unless it was purged since the fetch began.
    pub fn fill(self, stored: Stored) {
        self.cache.keep(&self.key, self.epoch, stored);
    }
}

impl Drop for FillGuard {
    fn drop(&mut self) {
        self.cache.flights.land(&self.key);
    }
}

impl fmt::Debug for FillGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FillGuard({})", self.key.operation)
    }
}
