//! Owns DO WE KNOW the answer: what is kept, for how long, and that one caller fetches for all.
//! Does not authorize (`policy` decides before every lookup) and never fetches: the caller does, and
//! brings the answer to its guard.
//! Invariants: a purge takes effect at once, also on fetches under way; memory is bounded by
//! `max_bytes`; answers of one partition never reach another.

mod flight;
mod key;
mod marks;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::Expiry;
use tokio::sync::OwnedSemaphorePermit;

use crate::agentos::{Caching, Operation};
use crate::principal::TenantId;

use flight::{Flights, Ticket};
pub use key::{KEY_BYTES_MAX, Key, Partition};
use marks::{Marks, Stamp};
use stored::Entry;
pub use stored::{BODY_BYTES_MAX, CacheStatus, Stored, storable};

/// How long answers that all callers share are fresh when no rule says otherwise.
pub const SHARED_TTL: Duration = Duration::from_secs(10);
/// What an entry costs beside its bytes.
const ENTRY_OVERHEAD_BYTES: usize = 512;

/// What an operator states about caching.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Most memory; 0 turns the cache off.
    pub max_bytes: u64,
    /// Rules by operation; the last one for an operation holds.
    pub rules: Vec<Rule>,
}

/// How one operation is cached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Id of the operation.
    pub operation: String,
    /// How long its answers are fresh; zero turns caching off.
    pub ttl: Duration,
    /// Accepted, not used yet.
    pub stale_while_revalidate: Duration,
    /// Accepted, not used yet.
    pub stale_if_error: Duration,
}

/// The answers of one gateway.
#[derive(Debug)]
pub struct Cache {
    answers: moka::sync::Cache<Arc<Key>, Entry>,
    ttls: HashMap<String, Duration>,
    enabled: bool,
    marks: Marks,
    flights: Arc<Flights>,
}

/// What the cache knows.
#[derive(Debug)]
#[must_use = "a dropped miss hands the fetch to another caller"]
pub enum Lookup {
    /// A fresh answer and its age.
    Fresh(Arc<Stored>, Duration),
    /// The caller fetches for everybody who asks the same.
    Miss(FillGuard),
    /// The caller fetches for itself: waiting took too long, or the answer may not be shared.
    Bypass,
}

/// The duty to fetch an answer for everybody who asks the same.
///
/// Dropped without [`FillGuard::fill`] or [`FillGuard::decline`] (fetch failed, caller left), the
/// duty passes to the caller who has waited longest.
#[derive(Debug)]
pub struct FillGuard {
    cache: Arc<Cache>,
    ticket: Ticket,
    stamp: Stamp,
    _permit: OwnedSemaphorePermit,
}

impl Cache {
    /// An empty cache.
    pub fn new(settings: &Settings) -> Self {
        let answers = moka::sync::Cache::builder()
            .max_capacity(settings.max_bytes)
            .weigher(|key: &Arc<Key>, entry: &Entry| weight(key, entry))
            .expire_after(Lifetime)
            .build();
        Self {
            answers,
            ttls: settings.rules.iter().map(|rule| (rule.operation.clone(), rule.ttl)).collect(),
            enabled: settings.max_bytes > 0,
            marks: Marks::new(),
            flights: Arc::default(),
        }
    }

    /// How long answers of an operation are fresh; `None` when it is not cached.
    ///
    /// Shared operations are cached unless a rule says zero, those of one caller only by a rule, and
    /// others never.
    pub fn ttl(&self, operation: &Operation) -> Option<Duration> {
        let rule = self.ttls.get(operation.id).copied();
        let ttl = match operation.cache {
            Caching::Never => None,
            Caching::Shared => Some(rule.unwrap_or(SHARED_TTL)),
            Caching::PerPrincipal => rule,
        };
        ttl.filter(|ttl| self.enabled && !ttl.is_zero())
    }

    /// Looks an answer up. On a miss the first caller gets the duty to fetch; others wait for it, at
    /// most `wait`.
    ///
    /// # Cancel safety
    /// Safe: a caller that leaves while waiting loses only its place.
    pub async fn lookup(self: &Arc<Self>, key: Key, wait: Duration) -> Lookup {
        if let Some(fresh) = self.fresh(&key) {
            return fresh;
        }
        let small = self.enabled && key.bytes() <= KEY_BYTES_MAX;
        let stamp = self.marks.stamp(&key);
        let Some(ticket) = small.then(|| self.flights.join(key, stamp)).flatten() else {
            return Lookup::Bypass;
        };
        let permit = ticket.flight.permit.clone().acquire_owned();
        match tokio::time::timeout(wait, permit).await {
            Ok(Ok(permit)) => self.take_over(ticket, permit),
            Ok(Err(_landed)) => match ticket.flight.landed.get() {
                Some(Some(stored)) => Lookup::Fresh(stored.clone(), stored.age()),
                Some(None) | None => Lookup::Bypass,
            },
            Err(_elapsed) => Lookup::Bypass,
        }
    }

    /// Forgets the answers of operations of a cluster: one tenant's and those that all share, or
    /// everybody's. Takes effect at once; a fetch under way answers those who already wait for it
    /// and is not kept.
    pub fn purge(&self, cluster: &str, operations: &[&str], tenant: Option<&TenantId>) {
        for operation in operations {
            self.marks.raise(cluster, operation, tenant);
        }
    }

    fn take_over(self: &Arc<Self>, ticket: Ticket, permit: OwnedSemaphorePermit) -> Lookup {
        // Another flight may have landed between the first look and this one.
        if let Some(fresh) = self.fresh(&ticket.key) {
            return fresh;
        }
        // The fetch begins now, whenever the flight began.
        let stamp = self.marks.stamp(&ticket.key);
        Lookup::Miss(FillGuard { cache: self.clone(), ticket, stamp, _permit: permit })
    }

    fn fresh(&self, key: &Key) -> Option<Lookup> {
        let entry = self.answers.get(key)?;
        let current = entry.stamp == self.marks.stamp(key);
        (current && entry.stored.is_fresh()).then(|| Lookup::Fresh(entry.stored.clone(), entry.stored.age()))
    }
}

impl FillGuard {
    /// Keeps the answer and gives it to everybody who waits. One that is too large, or
    /// older than a purge, is given to them and not kept. Says how the cache took part.
    pub fn fill(self, stored: Stored) -> CacheStatus {
        let stored = Arc::new(stored);
        let current = self.stamp == self.cache.marks.stamp(&self.ticket.key);
        let kept = current && stored.body.len() <= BODY_BYTES_MAX && stored.is_fresh();
        if kept {
            // A purge between the comparison and here is no race: the stamp is from before the fetch,
            // and every lookup compares it again.
            let entry = Entry { stored: stored.clone(), stamp: self.stamp };
            self.cache.answers.insert(self.ticket.key.clone(), entry);
        }
        // Off the list first: who comes later looks in the cache, and finds it or begins anew.
        self.ticket.unlist();
        self.ticket.flight.land(Some(stored));
        if kept { CacheStatus::Stored } else { CacheStatus::Miss }
    }

    /// Tells everybody who waits to fetch for themselves: the answer may not be shared, and taking
    /// turns would only make them slow.
    pub fn decline(self) -> CacheStatus {
        self.ticket.unlist();
        self.ticket.flight.land(None);
        CacheStatus::Miss
    }
}

/// Gives every entry its own lifetime. Freshness itself is judged at each lookup; this frees memory.
struct Lifetime;

impl Expiry<Arc<Key>, Entry> for Lifetime {
    fn expire_after_create(&self, _key: &Arc<Key>, entry: &Entry, _now: Instant) -> Option<Duration> {
        Some(entry.stored.ttl)
    }

    fn expire_after_update(
        &self,
        _key: &Arc<Key>,
        entry: &Entry,
        _now: Instant,
        _left: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.stored.ttl)
    }
}

fn weight(key: &Key, entry: &Entry) -> u32 {
    let bytes = key.bytes() + entry.stored.body.len() + ENTRY_OVERHEAD_BYTES;
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
