//! Owns the memory of tokens that were verified (an RS256 signature costs 22 µs, a look here 0.2).
//! Does not decide whether an entry still holds: the caller compares key generation and end.
//! Invariants: keyed by the token's SHA-256, so that a dump of this table holds no token; bounded by bytes.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::principal::Principal;

/// Most memory that verified tokens may take, estimated.
const BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Overhead of an entry beside its strings: key, pointers, cache bookkeeping.
const ENTRY_BYTES: usize = 400;
/// Entries that the table is first made for; it grows.
const ENTRIES_USUAL: usize = 1024;

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

/// Verified tokens. Those that have ended make room like any other that nobody asks for.
pub(super) struct Verified(Cache<Digest, Known, Bytes>);

#[derive(Clone)]
struct Bytes;

impl Weighter<Digest, Known> for Bytes {
    fn weight(&self, _: &Digest, known: &Known) -> u64 {
        weight(&known.principal) as u64
    }
}

// === impl Verified ===

impl Verified {
    pub(super) fn new() -> Self {
        Self(Cache::with_weighter(ENTRIES_USUAL, BYTES_MAX, Bytes))
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Known> {
        self.0.get(digest)
    }

    pub(super) fn insert(&self, digest: Digest, known: Known) {
        self.0.insert(digest, known);
    }

    pub(super) fn remove(&self, digest: &Digest) {
        self.0.remove(digest);
    }

    pub(super) fn clear(&self) {
        self.0.clear();
    }
}

fn weight(principal: &Principal) -> usize {
    let lists = principal.roles.iter().chain(&principal.scopes).map(|s| s.len() + 32).sum::<usize>();
    ENTRY_BYTES + principal.subject.len() + lists
}
