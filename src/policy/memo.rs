//! Owns the cache of decisions: its key, its bound and nothing else.
//! Does not know when a decision may be kept (`slice`), and is never emptied: it goes with its policies.
//! Invariant: two asks share an entry only when everything that a cacheable policy can read is equal.

use std::hash::{BuildHasher as _, Hash as _, Hasher, RandomState};

use super::ask::{Ask, Decision};

/// Decisions kept at most; about 300 bytes each.
const ENTRIES_MAX: usize = 65_536;

/// A bounded cache of decisions.
pub(super) struct Memo {
    entries: quick_cache::sync::Cache<u128, Decision>,
    keys: [RandomState; 2],
}

/// Usual size of what is hashed for one ask.
const ASK_BYTES: usize = 320;

/// Gathers what would be hashed: two hashers read it in one go, which costs a fraction of many small writes.
struct Gathered(Vec<u8>);

impl Memo {
    /// An empty cache with fresh hash keys.
    pub(super) fn new() -> Self {
        Self { entries: quick_cache::sync::Cache::new(ENTRIES_MAX), keys: [RandomState::new(), RandomState::new()] }
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
    /// 128 bits under keys drawn at load, so that no caller can aim at a collision.
    fn key(&self, ask: &Ask<'_>) -> u128 {
        let mut gathered = Gathered(Vec::with_capacity(ASK_BYTES));
        let Ask { principal, operation, resource, context } = ask;
        // The version stands for roles, scopes and plan; the name is hashed as well, so that a collision of
        // versions could at worst give callers what they themselves may do with another credential.
        (principal.version, &principal.tenant, &principal.subject, principal.kind).hash(&mut gathered);
        (operation.id, resource.kind, resource.id, resource.tenants, resource.open).hash(&mut gathered);
        (resource.owner, resource.tenant, resource.component, resource.approval).hash(&mut gathered);
        (context.door, context.cluster, context.human).hash(&mut gathered);
        let [first, second] = self.keys.each_ref().map(|key| {
            let mut hasher = key.build_hasher();
            hasher.write(&gathered.0);
            hasher.finish()
        });
        u128::from(first) << 64 | u128::from(second)
    }
}

// === impl Gathered ===

impl Hasher for Gathered {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Asked by nobody: what is gathered is hashed by others.
    fn finish(&self) -> u64 {
        0
    }
}
