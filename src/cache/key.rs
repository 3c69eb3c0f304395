//! Owns what makes two requests the same for the cache. Does not canonicalise (`gateway`): parts that
//! are compared come ready made, and whole, never as a hash that two requests could share.

use std::sync::Arc;

use bytes::Bytes;

use crate::principal::TenantId;

/// Longest query and body of a request that is cached, together.
pub const KEY_BYTES_MAX: usize = 64 * 1024;

/// A request, as the cache tells requests apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// Name of the cluster.
    pub cluster: Arc<str>,
    /// Id of the operation.
    pub operation: &'static str,
    /// The canonical path and query.
    pub target: String,
    /// The body as it is sent.
    pub body: Bytes,
    /// Whose answer it is.
    pub partition: Partition,
}

/// Whose answer is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Partition {
    /// Everybody's: fetched with the gateway's own identity, filtered per caller afterwards.
    Shared,
    /// One caller's.
    Principal {
        /// The caller's tenant.
        tenant: TenantId,
        /// The caller's subject.
        subject: Arc<str>,
    },
}

impl Key {
    /// Bytes that callers determine.
    pub(super) fn bytes(&self) -> usize {
        self.target.len() + self.body.len()
    }
}
