//! Owns the meaning of AgentOS scope strings: which of them grant a call.
//! Does not compare them with what a caller holds; a policy does (`containsAny`).
//! Invariant: a scope for one component never grants another one.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::agentos::{ListScope, Operation, Resource};

use super::ask::ResourceFacts;

/// The scope that grants everything inside one tenant.
pub(super) const ADMIN_SCOPE: &str = "agent_os:admin";

/// Families whose scopes may name one component; elsewhere AgentOS ignores the id.
const PER_ID: [&str; 3] = ["agents", "teams", "workflows"];

/// Returns every scope string that grants the call: `agents:run`, `agents:*:run`, `agents:web-agent:run` and
/// `agent_os:admin`. Empty for rows without scopes.
///
/// Listing components is granted by a scope for any one of them, as in AgentOS: such a list is filtered item by
/// item afterwards, so the caller's own `agents:<id>:read` strings count for it.
pub(super) fn accepted(operation: &Operation, resource: &ResourceFacts<'_>, held: &[Arc<str>]) -> BTreeSet<String> {
    let mut accepted = BTreeSet::new();
    for &scope in operation.scopes {
        accepted.insert(scope.to_owned());
        let Some((family, action)) = two_parts(scope) else { continue };
        accepted.insert(format!("{family}:*:{action}"));
        if !PER_ID.contains(&family) {
            continue;
        }
        if let Some(id) = component(resource) {
            accepted.insert(format!("{family}:{id}:{action}"));
        } else if operation.list.is_some_and(|list| list.scope == ListScope::PerItem) {
            accepted.extend(held.iter().filter(|s| names_one(s, family, action)).map(|s| s.to_string()));
        }
    }
    if !accepted.is_empty() {
        accepted.insert(ADMIN_SCOPE.to_owned());
    }
    accepted
}

/// The component of a call. An id with a colon cannot be named by a scope: `agents:a:b:run` has four parts.
fn component<'a>(resource: &ResourceFacts<'a>) -> Option<&'a str> {
    let own = matches!(resource.kind, Resource::Agent | Resource::Team | Resource::Workflow).then_some(resource.id);
    resource.component.or(own).filter(|id| !id.is_empty() && !id.contains(':'))
}

fn two_parts(scope: &str) -> Option<(&str, &str)> {
    scope.split_once(':').filter(|(_, action)| !action.contains(':'))
}

fn names_one(scope: &str, family: &str, action: &str) -> bool {
    let id = scope.strip_prefix(family).and_then(|s| s.strip_prefix(':'));
    let id = id.and_then(|s| s.strip_suffix(action)).and_then(|s| s.strip_suffix(':'));
    id.is_some_and(|id| !id.is_empty() && !id.contains(':'))
}
