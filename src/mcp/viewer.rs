//! Owns what one caller may see: components, as far as policy shows them, with names that are unambiguous for the caller.
//! Does not ask AgentOS and keeps nothing: every view is decided afresh.
//! Invariant: what a caller may not use is in none of its views, also when others see it.

use std::net::IpAddr;
use std::sync::Arc;

use super::Inner;
use super::discovery::Found;
use super::narrowing::Narrowing;
use super::routes::{self, Deed};
use super::slug;
use crate::agentos::operation::Kind;
use crate::principal::Principal;

/// Components that the scopes of a caller may name.
const SCOPED_MAX: usize = 64;

/// One caller, as lists see it.
#[derive(Clone)]
pub(super) struct Viewer {
    pub(super) inner: Arc<Inner>,
    pub(super) principal: Arc<Principal>,
    /// Address of the caller, which policies may read.
    pub(super) peer: IpAddr,
    pub(super) narrowing: Narrowing,
    /// The caller's clusters, its default first.
    pub(super) clusters: Vec<Arc<str>>,
}

/// A component that a caller may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) found: Arc<Found>,
    /// What the caller names it by: its id, or `cluster/id` where the caller may use several clusters.
    pub(super) name: String,
    /// The same in letters that names of tools and prompts may have, unique within the view.
    pub(super) slug: String,
}

impl Viewer {
    /// A caller with the clusters that it may use now.
    pub(super) fn new(inner: &Arc<Inner>, principal: Arc<Principal>, peer: IpAddr, narrowing: Narrowing) -> Self {
        let clusters = inner.path.clusters_for(&principal);
        inner.discovery.want();
        Self { inner: Arc::clone(inner), principal, peer, narrowing, clusters }
    }

    /// Says whether policy allows the operation somewhere; `id` is empty for collections.
    pub(super) fn may(&self, operation: &str, id: &str) -> bool {
        self.clusters.iter().any(|cluster| self.may_on(cluster, operation, id))
    }

    /// Says whether policy allows the operation on a cluster.
    pub(super) fn may_on(&self, cluster: &str, operation: &str, id: &str) -> bool {
        self.inner.path.may(self.peer, &self.principal, cluster, operation, id)
    }

    /// Says whether policy allows the deed on some component that is known by name.
    pub(super) fn may_some(&self, kind: Kind, deed: Deed) -> bool {
        let operation = decided_by(kind, deed);
        let seen = self.inner.discovery.seen();
        let mut known = seen.on(&self.clusters).filter(|found| found.kind == kind);
        self.scoped(kind).any(|id| self.may(operation, id))
            || known.any(|found| self.may_on(&found.cluster, operation, &found.id))
    }

    /// The components on which policy allows the deed, by cluster, kind and id. Waits for the first look at the
    /// caller's clusters only.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn components(&self, deed: Deed) -> Vec<Shown> {
        self.inner.discovery.settled(&self.clusters).await;
        self.components_now(deed)
    }

    /// The same as they are known now.
    pub(super) fn components_now(&self, deed: Deed) -> Vec<Shown> {
        let seen = self.inner.discovery.seen();
        let may = |found: &&Arc<Found>| self.may_on(&found.cluster, decided_by(found.kind, deed), &found.id);
        let found: Vec<&Arc<Found>> = seen.on(&self.clusters).filter(may).collect();
        let names: Vec<String> = found.iter().map(|found| self.name(&found.cluster, &found.id)).collect();
        let keys = found.iter().map(|found| format!("{}/{}/{}", found.cluster, found.kind, found.id));
        let slugs = slug::slugs(names.iter().map(String::as_str).zip(keys));
        let shown = found.into_iter().zip(names).zip(slugs);
        shown.map(|((found, name), slug)| Shown { found: Arc::clone(found), name, slug }).collect()
    }

    /// How an id is written for this caller: `cluster/id` where it may use several clusters.
    pub(super) fn name(&self, cluster: &str, id: &str) -> String {
        if self.clusters.len() > 1 { format!("{cluster}/{id}") } else { id.to_owned() }
    }

    /// Ids of a kind that the caller's scopes name.
    fn scoped(&self, kind: Kind) -> impl Iterator<Item = &str> {
        let named = self.principal.scopes.iter().filter_map(move |scope| {
            let (family, rest) = scope.split_once(':')?;
            let (id, _) = rest.rsplit_once(':')?;
            (family == kind.plural() && id != "*").then_some(id)
        });
        named.take(SCOPED_MAX)
    }
}

/// The operation by which policy decides about a deed on one component.
fn decided_by(kind: Kind, deed: Deed) -> &'static str {
    match deed {
        // A list shows what may be read one by one.
        Deed::List => routes::of(kind, Deed::List).operation,
        // Runs have no policy of their own per component: who may start one may follow it.
        Deed::Start | Deed::Read | Deed::Cancel | Deed::Continue => routes::of(kind, Deed::Start).operation,
    }
}
