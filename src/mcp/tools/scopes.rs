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
use crate::mcp::routes::{self, Deed};
use crate::mcp::viewer::Viewer;
use crate::principal::Principal;

/// The shipped rows: tools name no others.
static CATALOG: LazyLock<Catalog> = LazyLock::new(Catalog::shipped);

/// A call before it is made.
pub(in crate::mcp) struct Intent<'a> {
    pub(in crate::mcp) inner: &'a Arc<Inner>,
    pub(in crate::mcp) principal: &'a Arc<Principal>,
    pub(in crate::mcp) peer: IpAddr,
    pub(in crate::mcp) narrowing: &'a Narrowing,
    pub(in crate::mcp) tool: &'a str,
    /// The `kind` argument.
    pub(in crate::mcp) kind: Option<&'a str>,
}

/// An operation, and the deed on components of a kind that it is for.
type Needed = (&'static str, Option<(Kind, Deed)>);

// === impl Intent ===

impl Intent<'_> {
    /// The scope to ask for; `None` when the call is allowed, or no scope would allow it.
    pub(in crate::mcp) fn lacks(&self) -> Option<&'static str> {
        let tool = find(self.inner, self.narrowing, self.tool)?;
        let viewer = Viewer::new(self.inner, Arc::clone(self.principal), self.peer, self.narrowing.clone());
        let operations = self.operations(tool);
        let allowed = |(operation, on): &Needed| {
            viewer.may(operation, "") || on.is_some_and(|(kind, deed)| viewer.may_some(kind, deed))
        };
        if operations.is_empty() || operations.iter().any(allowed) {
            return None;
        }
        operations.iter().find_map(|(operation, _)| {
            let row = CATALOG.get(operation)?;
            let richer = |scope: &&str| Viewer { principal: Arc::new(self.richer(scope)), ..viewer.clone() };
            row.scopes.iter().copied().find(|scope| richer(scope).may(operation, ""))
        })
    }

    /// The operations of which the tool needs one, with the kind of component that each is about.
    fn operations(&self, tool: &Tool) -> Vec<Needed> {
        match tool.needs {
            Needs::Nothing => Vec::new(),
            Needs::Operation(operations) => operations.iter().map(|operation| (*operation, None)).collect(),
            Needs::Component(deed) => {
                let named = KINDS.iter().find(|kind| self.kind == Some(kind.as_str()));
                let kinds = named.map_or(KINDS, std::slice::from_ref);
                kinds.iter().map(|kind| (routes::of(*kind, deed).operation, Some((*kind, deed)))).collect()
            }
        }
    }

    /// The caller with one scope more.
    fn richer(&self, scope: &str) -> Principal {
        let Principal { kind, subject, tenant, roles, scopes, plan, expires_at, .. } = Principal::clone(self.principal);
        let scopes = scopes.into_iter().chain([scope.into()]).collect();
        Principal::new(kind, subject, tenant, roles, scopes, plan, expires_at)
    }
}
