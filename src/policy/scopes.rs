//! Owns the meaning of AgentOS scope strings: which of them grant a call.
//! Does not compare them with what a caller holds; a policy does (`containsAny`).
//! Invariant: a scope for one component never grants another one.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::agentos::{ListScope, Operation, Resource};

use super::ask::ResourceFacts;

/// The scope that grants everything inside one tenant.
pub const ADMIN_SCOPE: &str = "agent_os:admin";

/// Families whose scopes may name one component; elsewhere AgentOS ignores the id.
const PER_ID: [&str; 3] = ["agents", "teams", "workflows"];

/// Returns every scope string that grants the call: `agents:run`, `agents:*:run`, `agents:web-agent:run` and
/// `agent_os:admin`. Empty for rows without scopes.
///
/// Listing components is granted by a scope for any one of them, as in AgentOS: such a list is filtered item by
/// item afterwards, so the caller's own `agents:<id>:read` strings count for it. The same holds for a row that
/// the gateway answers itself, such as the workflow socket, whose messages are decided one by one.
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
        } else if resource.id.is_empty() && is_decided_again(operation) {
            accepted.extend(held.iter().filter(|s| names_one(s, family, action)).map(|s| s.to_string()));
        }
    }
    if !accepted.is_empty() {
        accepted.insert(ADMIN_SCOPE.to_owned());
    }
    accepted
}

/// Says whether [`accepted`] holds a scope, without writing the set out.
pub(super) fn accepts(operation: &Operation, resource: &ResourceFacts<'_>, held: &[Arc<str>], scope: &str) -> bool {
    if scope == ADMIN_SCOPE {
        return !operation.scopes.is_empty();
    }
    operation.scopes.iter().any(|&granting| {
        let Some((family, action)) = two_parts(granting) else { return scope == granting };
        match scope_id(scope, family, action) {
            None => scope == granting,
            Some("*") => true,
            Some(_) if !PER_ID.contains(&family) => false,
            Some(id) => match component(resource) {
                Some(component) => id == component,
                None => {
                    resource.id.is_empty()
                        && is_decided_again(operation)
                        && names_one(scope, family, action)
                        && held.iter().any(|held| **held == *scope)
                }
            },
        }
    })
}

/// Says whether each part of what the row answers is decided on its own.
fn is_decided_again(operation: &Operation) -> bool {
    operation.exposure.is_local() || operation.list.is_some_and(|list| list.scope == ListScope::PerItem)
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
    scope_id(scope, family, action).is_some_and(|id| !id.is_empty() && !id.contains(':'))
}

/// What stands between family and action: `web` in `agents:web:run`.
fn scope_id<'a>(scope: &'a str, family: &str, action: &str) -> Option<&'a str> {
    let id = scope.strip_prefix(family).and_then(|s| s.strip_prefix(':'));
    id.and_then(|s| s.strip_suffix(action)).and_then(|s| s.strip_suffix(':'))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{operation, resource};
    use super::*;

    fn joined(id: &str, facts: ResourceFacts<'_>, held: &[&str]) -> String {
        let held: Vec<Arc<str>> = held.iter().map(|&scope| scope.into()).collect();
        accepted(operation(id), &facts, &held).into_iter().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_scope_grants_all_any_or_this_component() {
        let agent = |id| resource(Resource::Agent, id);
        let run = |component| ResourceFacts { component, ..resource(Resource::Run, "r1") };
        for (id, facts, expected) in [
            ("create_agent_run", agent("web"), "agent_os:admin agents:*:run agents:run agents:web:run"),
            ("create_agent_run", agent("a:b"), "agent_os:admin agents:*:run agents:run"),
            ("cancel_agent_run", run(Some("web")), "agent_os:admin agents:*:run agents:run agents:web:run"),
            ("cancel_agent_run", run(None), "agent_os:admin agents:*:run agents:run"),
            ("get_session_by_id", resource(Resource::Session, "s1"), "agent_os:admin sessions:*:read sessions:read"),
            ("get_quota", resource(Resource::Os, ""), ""),
        ] {
            assert_eq!(joined(id, facts, &["agents:other:run", "agents::run"]), expected, "{id}");
        }
    }

    #[test]
    fn a_scope_for_one_component_lists_components() {
        let held = ["agents:web:read", "agents:web:run", "agents:a:b:read", "agents::read", "teams:web:read"];
        let listed = joined("get_agents", resource(Resource::Agent, ""), &held);
        assert_eq!(listed, "agent_os:admin agents:*:read agents:read agents:web:read");
        let other = joined("get_agent", resource(Resource::Agent, "other"), &held);
        assert_eq!(other, "agent_os:admin agents:*:read agents:other:read agents:read");
    }
}
