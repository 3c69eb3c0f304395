//! Owns the memory of tokens that were verified (an RS256 signature costs 22 µs, a look here 0.2).
//! Does not decide whether an entry still holds: the caller compares key generation and end.
//! Invariants: keyed by the token's SHA-256, so that a dump of this table holds no token; bounded by bytes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::sync::Cache;

use crate::principal::Principal;

/// Most memory that verified tokens may take, estimated.
const BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Overhead of an entry beside its strings: key, pointers, cache bookkeeping.
const ENTRY_BYTES: usize = 400;

/// SHA-256 of a token.
type Digest = [u8; 32];

/// A token that was verified.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) principal: Arc<Principal>,
    pub(super) issuer: Arc<str>,
    /// The issuer's key generation at verification.
    pub(super) generation: u64,
    /// From this second on the token is expired, leeway included.
    pub(super) ends_at: u64,
}

/// Verified tokens.
pub(super) struct Verified(Cache<Digest, (Known, Duration)>);

struct UntilEnd;

impl Expiry<Digest, (Known, Duration)> for UntilEnd {
    fn expire_after_create(&self, _: &Digest, entry: &(Known, Duration), _: Instant) -> Option<Duration> {
        Some(entry.1)
    }
}

// === impl Verified ===

impl Verified {
    pub(super) fn new() -> Self {
        let weigh =
            |_: &Digest, (known, _): &(Known, Duration)| u32::try_from(weight(&known.principal)).unwrap_or(u32::MAX);
        Self(Cache::builder().max_capacity(BYTES_MAX).weigher(weigh).expire_after(UntilEnd).build())
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Known> {
        self.0.get(digest).map(|(known, _)| known)
    }

    pub(super) fn insert(&self, digest: Digest, known: Known, now: u64) {
        let left = Duration::from_secs(known.ends_at.saturating_sub(now));
        self.0.insert(digest, (known, left));
    }

    pub(super) fn remove(&self, digest: &Digest) {
        self.0.invalidate(digest);
    }

    pub(super) fn clear(&self) {
        self.0.invalidate_all();
    }
}

fn weight(principal: &Principal) -> usize {
    let lists = principal.roles.iter().chain(&principal.scopes).map(|s| s.len() + 32).sum::<usize>();
    ENTRY_BYTES + principal.subject.len() + lists
}
