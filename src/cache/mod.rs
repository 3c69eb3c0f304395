//! Owns DO WE KNOW the answer: kept replies by key and age, one fetch at a time per key.
//! Does not know who may see a reply (`policy`, before every look-up) and does not fetch.
//! Invariants: a reply that began before a purge is never kept after it; nothing is shared across callers unless
//! its key says so.

mod flight;
mod status;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderValue;
use moka::Expiry;
use moka::sync::Cache as Store;
use parking_lot::Mutex;

use crate::agentos::{Caching, Operation};
use crate::principal::TenantId;

pub use flight::{FillGuard, Lookup};
pub use status::{miss_status, storable};

use flight::Flights;

/// How long `Shared` rows are kept where no rule says otherwise.
const SHARED_TTL: Duration = Duration::from_secs(10);
/// Largest reply that is kept, in bytes.
pub const REPLY_BYTES_MAX: usize = 1 << 20;
/// What an entry costs beside its bytes.
const ENTRY_OVERHEAD_BYTES: usize = 256;

/// How much is kept, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Most bytes of keys and replies together.
    pub max_bytes: u64,
    /// Rules per operation.
    pub rules: Vec<Rule>,
}

/// How long the replies of one operation are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Operation id.
    pub operation: String,
    /// Freshness lifetime; zero keeps nothing.
    pub ttl: Duration,
    /// How long a stale reply may be served while it is fetched again (RFC 5861 §3).
    pub stale_while_revalidate: Duration,
    /// How long a stale reply may be served when upstream fails (RFC 5861 §4).
    pub stale_if_error: Duration,
}

/// What makes two requests the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// Cluster name.
    pub cluster: Arc<str>,
    /// Operation id.
    pub operation: &'static str,
    /// Canonical path, query and body.
    pub request: String,
    /// Who shares the reply.
    pub partition: Partition,
}

/// Who shares a reply.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Partition {
    /// Everybody on the cluster; filtered per caller afterwards.
    Shared,
    /// One caller.
    Principal {
        /// Tenant.
        tenant: TenantId,
        /// Subject.
        subject: Arc<str>,
    },
}

/// A kept reply.
#[derive(Debug, Clone)]
pub struct Stored {
    /// HTTP status.
    pub status: u16,
    /// Content type.
    pub content_type: Option<HeaderValue>,
    /// Body as upstream sent it.
    pub body: Bytes,
    stored_at: Instant,
    ttl: Duration,
}

/// Kept replies. Shared by reference; survives as long as its configuration.
pub struct Cache {
    store: Store<Key, Arc<Stored>>,
    ttls: HashMap<String, Duration>,
    /// Counts purges per cluster and operation; bounded by what the configuration names.
    epochs: Mutex<HashMap<(Arc<str>, &'static str), u64>>,
    flights: Flights,
}

struct ByTtl;

impl Expiry<Key, Arc<Stored>> for ByTtl {
    fn expire_after_create(&self, _key: &Key, stored: &Arc<Stored>, _now: Instant) -> Option<Duration> {
        Some(stored.ttl)
    }
}

// === impl Stored ===

impl Stored {
    /// A reply that arrived now.
    pub fn new(status: u16, content_type: Option<HeaderValue>, body: Bytes, ttl: Duration) -> Self {
        Self { status, content_type, body, stored_at: Instant::now(), ttl }
    }

    /// `Cache-Status` of a hit (RFC 9211): seconds of freshness left.
    pub fn hit_status(&self, age: Duration) -> String {
        format!("tollbridge; hit; ttl={}", self.ttl.saturating_sub(age).as_secs())
    }
}

// === impl Cache ===

impl Cache {
    /// An empty cache.
    pub fn new(settings: &Settings) -> Arc<Self> {
        let weigh = |key: &Key, stored: &Arc<Stored>| {
            let bytes = key.request.len() + stored.body.len() + ENTRY_OVERHEAD_BYTES;
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        let store = Store::builder().max_capacity(settings.max_bytes).weigher(weigh).expire_after(ByTtl).build();
        let ttls = settings.rules.iter().map(|rule| (rule.operation.clone(), rule.ttl)).collect();
        Arc::new(Self { store, ttls, epochs: Mutex::default(), flights: Flights::default() })
    }

    /// How long replies of the operation are kept; `None` when they are not.
    pub fn ttl(&self, operation: &Operation) -> Option<Duration> {
        let default = match operation.cache {
            Caching::Never => return None,
            Caching::Shared => Some(SHARED_TTL),
            Caching::PerPrincipal => None,
        };
        self.ttls.get(operation.id).copied().or(default).filter(|ttl| !ttl.is_zero())
    }

    /// Looks a reply up. The first to miss gets the right to fill it; others wait for that, at most `wait`.
    ///
    /// # Cancel safety
    /// Safe: a waiter that is dropped leaves nothing behind.
    pub async fn lookup(self: &Arc<Self>, key: Key, wait: Duration) -> Lookup {
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            if let Some(stored) = self.store.get(&key) {
                let age = stored.stored_at.elapsed();
                return Lookup::Fresh(stored, age);
            }
            let Some(mut landing) = self.flights.join(&key) else {
                let epoch = self.epoch(&key);
                return Lookup::Miss(FillGuard::new(Arc::clone(self), key, epoch));
            };
            // Changed or closed: either way the flight has landed, with or without a reply.
            if tokio::time::timeout_at(deadline, landing.changed()).await.is_err() {
                return Lookup::Bypass;
            }
        }
    }

    /// Forgets the replies of these operations on a cluster, also those that are being fetched right now.
    pub fn purge(&self, cluster: &Arc<str>, operations: &[&'static str]) {
        let mut epochs = self.epochs.lock();
        for operation in operations {
            *epochs.entry((Arc::clone(cluster), operation)).or_default() += 1;
        }
        drop(epochs);
        for (key, _) in &self.store {
            if key.cluster == *cluster && operations.contains(&key.operation) {
                self.store.invalidate(&*key);
            }
        }
    }

    fn epoch(&self, key: &Key) -> u64 {
        self.epochs.lock().get(&(Arc::clone(&key.cluster), key.operation)).copied().unwrap_or_default()
    }

    /// Keeps a reply unless its operation was purged since the fetch began.
    fn keep(&self, key: &Key, epoch: u64, stored: Stored) {
        let epochs = self.epochs.lock();
        let now = epochs.get(&(Arc::clone(&key.cluster), key.operation)).copied().unwrap_or_default();
        if now == epoch && stored.body.len() <= REPLY_BYTES_MAX {
            self.store.insert(key.clone(), Arc::new(stored));
        }
    }
}

#[cfg(test)]
mod tests;
