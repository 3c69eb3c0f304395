//! Owns the cache of decisions: its key, its bound and nothing else.
//! Does not know when a decision may be kept (`slice`), and is never emptied: it goes with its policies.
//! Invariant: two asks share an entry only when everything that a cacheable policy can read is equal.

use std::hash::{BuildHasher as _, Hash, Hasher, RandomState};

use super::ask::{Ask, Decision};

/// Decisions kept at most; about 300 bytes each.
const ENTRIES_MAX: u64 = 65_536;

/// A bounded cache of decisions.
pub(super) struct Memo {
    entries: moka::sync::Cache<u128, Decision>,
    keys: [RandomState; 2],
}

/// Feeds two hashers at once: 128 bits under keys drawn at load, so that no caller can aim at a collision.
struct Twin<H>(H, H);

impl Memo {
    /// An empty cache with fresh hash keys.
    pub(super) fn new() -> Self {
        Self { entries: moka::sync::Cache::new(ENTRIES_MAX), keys: [RandomState::new(), RandomState::new()] }
    }

    /// Returns the decision kept for the ask, or decides and keeps it.
    pub(super) fn get_or(&self, ask: &Ask<'_>, decide: impl FnOnce() -> Decision) -> Decision {
        let key = self.key(ask);
        if let Some(kept) = self.entries.get(&key) {
            return kept;
        }
        let decision = decide();
        self.entries.insert(key, decision.clone());
        decision
    }

    /// Hashes what a cacheable policy can read. `now`, `source_ip` and `message_bytes` are left out.
    fn key(&self, ask: &Ask<'_>) -> u128 {
        let [first, second] = &self.keys;
        let mut twin = Twin(first.build_hasher(), second.build_hasher());
        let Ask { principal, operation, resource, context } = ask;
        // The version stands for roles, scopes and plan; the name is hashed as well, so that a collision of
        // versions could at worst give callers what they themselves may do with another credential.
        (principal.version, &principal.tenant, &principal.subject, principal.kind).hash(&mut twin);
        (operation.id, resource.kind, resource.id, resource.tenants, resource.open).hash(&mut twin);
        (resource.owner, resource.tenant, resource.component, resource.approval).hash(&mut twin);
        (context.door, context.cluster, context.human).hash(&mut twin);
        u128::from(twin.0.finish()) << 64 | u128::from(twin.1.finish())
    }
}

// === impl Twin ===

impl<H: Hasher> Hasher for Twin<H> {
    fn finish(&self) -> u64 {
        self.0.finish()
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
        self.1.write(bytes);
    }
}
