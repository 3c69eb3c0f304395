//! Owns which scope a caller lacks for a tool, where one scope would do.
//! Does not decide about the call: policy is asked as it would be then, and once more for the caller with that scope.
//! Invariant: a scope is named only when policy allows the call with it.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use super::{KINDS, Needs, Tool, find};
use crate::agentos::Catalog;
use crate::agentos::operation::Kind;
use crate::mcp::Inner;
use crate::mcp::narrowing::Narrowing;
use crate::mcp::routes;
use crate::principal::Principal;

/// The shipped rows: tools name no others.
static CATALOG: LazyLock<Catalog> = LazyLock::new(Catalog::shipped);

/// A call before it is made.
pub(in crate::mcp) struct Intent<'a> {
    pub(in crate::mcp) inner: &'a Inner,
    pub(in crate::mcp) principal: &'a Principal,
    pub(in crate::mcp) peer: IpAddr,
    pub(in crate::mcp) narrowing: &'a Narrowing,
    pub(in crate::mcp) tool: &'a str,
    /// The `kind` argument.
    pub(in crate::mcp) kind: Option<&'a str>,
}

// === impl Intent ===

impl Intent<'_> {
    /// The scope to ask for; `None` when the call is allowed, or no scope would allow it.
    pub(in crate::mcp) fn lacks(&self) -> Option<&'static str> {
        let tool = find(self.tool).filter(|tool| self.narrowing.allows(tool))?;
        let clusters = self.inner.path.clusters_for(self.principal);
        let operations = self.operations(tool);
        if operations.is_empty() || operations.iter().any(|needed| self.is_allowed(needed, &clusters)) {
            return None;
        }
        operations.iter().find_map(|(operation, _)| {
            let row = CATALOG.get(operation)?;
            row.scopes.iter().copied().find(|scope| self.may(&self.richer(scope), &clusters, operation, ""))
        })
    }

    /// The operations of which the tool needs one, with the kind of component that each is about.
    fn operations(&self, tool: &Tool) -> Vec<(&'static str, Option<Kind>)> {
        match tool.needs {
            Needs::Nothing => Vec::new(),
            Needs::Operation(operations) => operations.iter().map(|operation| (*operation, None)).collect(),
            Needs::Component(deed) => {
                let named = KINDS.iter().find(|kind| self.kind == Some(kind.as_str()));
                let kinds = named.map_or(KINDS, std::slice::from_ref);
                kinds.iter().map(|kind| (routes::of(*kind, deed).operation, Some(*kind))).collect()
            }
        }
    }

    fn is_allowed(&self, (operation, kind): &(&'static str, Option<Kind>), clusters: &[Arc<str>]) -> bool {
        let known = || kind.map(|kind| self.inner.discovery.candidates(self.principal, kind)).unwrap_or_default();
        self.may(self.principal, clusters, operation, "")
            || known().iter().any(|id| self.may(self.principal, clusters, operation, id))
    }

    fn may(&self, principal: &Principal, clusters: &[Arc<str>], operation: &str, id: &str) -> bool {
        clusters.iter().any(|cluster| self.inner.path.may(self.peer, principal, cluster, operation, id))
    }

    /// The caller with one scope more.
    fn richer(&self, scope: &str) -> Principal {
        let Principal { kind, subject, tenant, roles, scopes, plan, expires_at, .. } = self.principal.clone();
        let scopes = scopes.into_iter().chain([scope.into()]).collect();
        Principal::new(kind, subject, tenant, roles, scopes, plan, expires_at)
    }
}
