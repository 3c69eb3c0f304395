//! Owns purge marks: numbers that a purge raises, so that whatever was read before it is stale at
//! once, kept or still on its way. Does not hold answers (`mod`).
//! Invariant: fixed memory. Groups share a mark when their hashes meet; then a purge also reaches the
//! other group, which costs a fetch and is never wrong.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::principal::TenantId;

use super::key::{Key, Partition};

const MARKS: usize = 4_096;

/// Purge marks of all groups of answers.
#[derive(Debug)]
pub(super) struct Marks {
    hasher: RandomState,
    marks: Box<[AtomicU64]>,
}

/// The marks of a key at one moment. An answer is as old as the stamp taken before it was fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    everybody: u64,
    partition: u64,
}

/// Which answers of a cluster's operation a mark stands for.
#[derive(Hash)]
enum Group<'a> {
    Everybody,
    Shared,
    Tenant(&'a TenantId),
}

impl Marks {
    pub(super) fn new() -> Self {
        Self { hasher: RandomState::new(), marks: (0..MARKS).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The marks of a key now.
    pub(super) fn stamp(&self, key: &Key) -> Stamp {
        let group = match &key.partition {
            Partition::Shared => Group::Shared,
            Partition::Principal { tenant, .. } => Group::Tenant(tenant),
        };
        Stamp {
            everybody: self.read(&key.cluster, key.operation, &Group::Everybody),
            partition: self.read(&key.cluster, key.operation, &group),
        }
    }

    /// Makes everything stale that was stamped before, for one tenant and for what all share, or for
    /// everybody.
    pub(super) fn raise(&self, cluster: &str, operation: &str, tenant: Option<&TenantId>) {
        match tenant {
            None => self.bump(cluster, operation, &Group::Everybody),
            Some(tenant) => {
                self.bump(cluster, operation, &Group::Tenant(tenant));
                self.bump(cluster, operation, &Group::Shared);
            }
        }
    }

    // SeqCst: a lookup that starts after a purge returned, on any thread, must see it.
    fn read(&self, cluster: &str, operation: &str, group: &Group<'_>) -> u64 {
        self.mark(cluster, operation, group).map_or(0, |mark| mark.load(Ordering::SeqCst))
    }

    fn bump(&self, cluster: &str, operation: &str, group: &Group<'_>) {
        if let Some(mark) = self.mark(cluster, operation, group) {
            mark.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn mark(&self, cluster: &str, operation: &str, group: &Group<'_>) -> Option<&AtomicU64> {
        let index = self.hasher.hash_one((cluster, operation, group)) % MARKS as u64;
        // Below MARKS, so always there.
        self.marks.get(usize::try_from(index).ok()?)
    }
}
