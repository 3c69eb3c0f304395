//! Owns the configuration of one exchange as one immutable value: every stage, pinned together.
//! Does not build stages (`server` does) and does not hold what outlives a reload (`Gateway` does).
//! Invariant: an exchange that began under a snapshot ends under it.

use std::sync::Arc;

use super::approvals::ApprovalSettings;
use super::limits::Limits;
use crate::agentos::Catalog;
use crate::cache::Cache;
use crate::cluster::Clusters;
use crate::identity::Identity;
use crate::policy::Policies;
use crate::quota::Quota;

/// Every stage of the path, as configured. Cloning shares the stages.
#[derive(Clone)]
pub struct Snapshot {
    /// What is served.
    pub catalog: Arc<Catalog>,
    /// Who calls.
    pub identity: Arc<Identity>,
    /// May they.
    pub policies: Arc<Policies>,
    /// How much.
    pub quota: Arc<Quota>,
    /// Do we know the answer.
    pub cache: Arc<Cache>,
    /// Where to.
    pub clusters: Arc<Clusters>,
    /// Sizes and times of requests.
    pub limits: Limits,
    /// How long approvals count.
    pub approvals: ApprovalSettings,
}
