//! Owns the policies that can apply to one operation, prepared at load, and their evaluation.
//! Does not cache (`memo`) and does not build entities (`entities`).
//! Invariants: a policy that is left out of a slice could never be satisfied by that operation; an evaluation
//! that fails anywhere is a deny.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use cedar_policy::{
    ActionConstraint, Authorizer, Decision as CedarDecision, Entities, EntityUid, Policy, PolicySet, Request,
    ResourceConstraint,
};

use crate::agentos::Operation;

use super::ask::{Decision, Shadow};
use super::entities::{Action, Names};
use super::load::Loaded;

/// The policies of one operation.
pub(super) struct Slice {
    /// Its action with the groups it is in.
    pub(super) action: Action,
    enforced: PolicySet,
    /// Enforced and shadow policies together; `None` when no shadow policy applies.
    trial: Option<PolicySet>,
    /// Some policy reads a fact that differs from call to call.
    pub(super) volatile: bool,
}

struct Verdict {
    allow: bool,
    policies: Arc<[Arc<str>]>,
    errors: bool,
}

// === impl Slice ===

impl Slice {
    /// Collects the policies that can apply to the row.
    pub(super) fn new(row: &'static Operation, names: &Names, enforced: &[Loaded], shadow: &[Loaded]) -> Option<Self> {
        let action = names.action(row)?;
        let applies = |policy: &&Loaded| {
            acts_on(&policy.policy, &action.uid, &action.group) && fits(&policy.policy, &names.resource(row.resource))
        };
        let real: Vec<&Loaded> = enforced.iter().filter(applies).collect();
        let trial: Vec<&Loaded> = shadow.iter().filter(applies).collect();
        // A shadow policy with the id of an enforced one stands in its place, also where only one of them applies.
        let replaced: BTreeSet<&str> = shadow.iter().map(|policy| policy.id.as_str()).collect();
        let kept = real.iter().copied().filter(|policy| !replaced.contains(policy.id.as_str()));
        let differs = !trial.is_empty() || real.iter().any(|policy| replaced.contains(policy.id.as_str()));
        Some(Self {
            volatile: real.iter().chain(&trial).any(|policy| policy.reading_is_volatile),
            trial: if differs { Some(set(kept.chain(trial.iter().copied()))?) } else { None },
            enforced: set(real.iter().copied())?,
            action,
        })
    }

    /// Evaluates the slice.
    pub(super) fn decide(&self, request: &Request, entities: &Entities) -> Decision {
        let verdict = Verdict::of(&self.enforced, request, entities);
        let trial = self.trial.as_ref().map(|trial| Verdict::of(trial, request, entities));
        let shadow = trial
            .filter(|trial| trial.allow != verdict.allow)
            .map(|trial| Arc::new(Shadow { allow: trial.allow, policies: trial.policies, errors: trial.errors }));
        let Verdict { allow, policies, errors } = verdict;
        if allow { Decision::Allow { policies, shadow } } else { Decision::Deny { policies, errors, shadow } }
    }
}

/// Ids are unique when this runs, so it returns `None` never; a caller refuses the load all the same.
fn set<'a>(policies: impl Iterator<Item = &'a Loaded>) -> Option<PolicySet> {
    PolicySet::from_policies(policies.map(|policy| policy.policy.clone())).ok()
}

fn acts_on(policy: &Policy, action: &EntityUid, group: &EntityUid) -> bool {
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::In(list) => list.iter().any(|uid| uid == action || uid == group),
        ActionConstraint::Eq(uid) => uid == *action,
    }
}

fn fits(policy: &Policy, resource: &cedar_policy::EntityTypeName) -> bool {
    match policy.resource_constraint() {
        ResourceConstraint::Any | ResourceConstraint::In(_) => true,
        ResourceConstraint::Eq(uid) => uid.type_name() == resource,
        ResourceConstraint::Is(name) | ResourceConstraint::IsIn(name, _) => name == *resource,
    }
}

// === impl Verdict ===

impl Verdict {
    fn of(set: &PolicySet, request: &Request, entities: &Entities) -> Self {
        let response = Authorizer::new().is_authorized(request, set, entities);
        let diagnostics = response.diagnostics();
        let failed: HashSet<&str> = diagnostics.errors().map(failed_policy).collect();
        let allowed = response.decision() == CedarDecision::Allow;
        let deciding = diagnostics.reason().map(AsRef::as_ref).filter(|_| failed.is_empty() || !allowed);
        let names: BTreeSet<&str> = deciding.chain(failed.iter().copied()).collect();
        let policies = names.into_iter().map(Arc::from).collect();
        Self { allow: allowed && failed.is_empty(), policies, errors: !failed.is_empty() }
    }
}

fn failed_policy(error: &cedar_policy::AuthorizationError) -> &str {
    match error {
        cedar_policy::AuthorizationError::PolicyEvaluationError(error) => error.policy_id().as_ref(),
    }
}
