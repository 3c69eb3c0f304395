//! Owns the policies that can apply to one operation, prepared at load, and their evaluation.
//! Does not cache (`memo`), does not build entities (`entities`) and does not look into policies (`sieve`).
//! Invariants: a policy that is left out of a slice could never be satisfied by that operation; what is settled without
//! Cedar is what Cedar would say; an evaluation that fails anywhere is a deny.

use std::collections::BTreeSet;
use std::sync::Arc;

use cedar_policy::{Authorizer, Effect, Entities, Policy, PolicySet, Request};

use crate::agentos::Operation;

use super::ask::{Decision, Shadow};
use super::attribute::Reads;
use super::entities::{Action, Names};
use super::lint::Reading;
use super::load::Loaded;
use super::sieve::{Known, Sieve};

/// A policy ready to be asked.
pub(super) struct Prepared {
    id: Arc<str>,
    effect: Effect,
    sieve: Sieve,
    reads: Reads,
    volatile: bool,
    /// This policy alone.
    set: PolicySet,
}

/// The policies of one operation.
pub(super) struct Slice {
    /// Its action with the groups it is in.
    pub(super) action: Action,
    /// By id.
    rules: Vec<Rule>,
    /// The shadow policies may make a difference.
    has_trial: bool,
    /// Some policy reads a fact that differs from call to call.
    pub(super) volatile: bool,
}

/// A policy in its place.
#[derive(Clone)]
pub(super) struct Rule {
    policy: Arc<Prepared>,
    enforced: bool,
    /// Part of the set that is tried: a shadow policy, or an enforced one that no shadow policy replaces.
    tried: bool,
}

/// What one policy says about a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Satisfied,
    Unsatisfied,
    Failed,
}

/// The rules that bear on a call: those it satisfies, and those that Cedar must be asked about.
pub(super) struct Glance<'a> {
    rules: Vec<(&'a Rule, Option<Outcome>)>,
    /// What the open ones read.
    pub(super) reads: Reads,
    /// None is open.
    pub(super) is_settled: bool,
}

struct Verdict {
    allow: bool,
    policies: Arc<[Arc<str>]>,
    errors: bool,
}

/// Prepares every policy once, for all slices, sorted by id.
///
/// `None` when Cedar does not take a policy again that it has just read, which it always does.
pub(super) fn rules(enforced: &[Loaded], shadow: &[Loaded]) -> Option<Vec<Rule>> {
    // A shadow policy with the id of an enforced one stands in its place, also where only one of them applies.
    let replaced: BTreeSet<&str> = shadow.iter().map(|policy| policy.id.as_str()).collect();
    let real = enforced.iter().map(|policy| (policy, true, !replaced.contains(policy.id.as_str())));
    let trial = shadow.iter().map(|policy| (policy, false, true));
    let rule = |(policy, enforced, tried): (&Loaded, _, _)| {
        Some(Rule { policy: Arc::new(Prepared::new(&policy.id, &policy.policy)?), enforced, tried })
    };
    let mut rules: Vec<Rule> = real.chain(trial).map(rule).collect::<Option<_>>()?;
    rules.sort_by(|one, other| one.policy.id.cmp(&other.policy.id));
    Some(rules)
}

// === impl Prepared ===

impl Prepared {
    fn new(id: &str, policy: &Policy) -> Option<Self> {
        let reading = Reading::of(policy);
        Some(Self {
            id: id.into(),
            effect: policy.effect(),
            sieve: Sieve::of(policy),
            reads: Reads::of(&reading),
            volatile: reading.is_volatile(),
            set: PolicySet::from_policies([policy.clone()]).ok()?,
        })
    }

    fn outcome(&self, request: &Request, entities: &Entities) -> Outcome {
        let response = Authorizer::new().is_authorized(request, &self.set, entities);
        let diagnostics = response.diagnostics();
        match (diagnostics.errors().next(), diagnostics.reason().next()) {
            (Some(_), _) => Outcome::Failed,
            (None, Some(_)) => Outcome::Satisfied,
            (None, None) => Outcome::Unsatisfied,
        }
    }
}

// === impl Slice ===

impl Slice {
    /// Collects the rules that can apply to the row.
    pub(super) fn new(row: &'static Operation, names: &Names, rules: &[Rule]) -> Option<Self> {
        let known = Known::of_row(row);
        let rules: Vec<Rule> =
            rules.iter().filter(|rule| rule.policy.sieve.is_satisfied(known) != Some(false)).cloned().collect();
        Some(Self {
            volatile: rules.iter().any(|rule| rule.policy.volatile),
            has_trial: rules.iter().any(|rule| rule.enforced != rule.tried),
            action: names.action(row)?,
            rules,
        })
    }

    /// Looks through the rules without Cedar.
    pub(super) fn glance(&self, known: Known<'_>) -> Glance<'_> {
        let mut glance =
            Glance { rules: Vec::with_capacity(self.rules.len()), reads: Reads::default(), is_settled: true };
        for rule in &self.rules {
            match rule.policy.sieve.is_satisfied(known) {
                Some(false) => {}
                Some(true) => glance.rules.push((rule, Some(Outcome::Satisfied))),
                None => {
                    glance.reads = glance.reads.and(rule.policy.reads);
                    glance.is_settled = false;
                    glance.rules.push((rule, None));
                }
            }
        }
        glance
    }

    /// Says whether Cedar, given every fact, agrees with every rule that a glance settles.
    pub(super) fn agrees(&self, known: Known<'_>, request: &Request, entities: &Entities) -> bool {
        self.rules.iter().all(|rule| match rule.policy.sieve.is_satisfied(known) {
            None => true,
            Some(true) => rule.policy.outcome(request, entities) == Outcome::Satisfied,
            Some(false) => rule.policy.outcome(request, entities) == Outcome::Unsatisfied,
        })
    }

    /// Decides; asks Cedar about the open rules. Without a call to ask about, an open rule fails.
    pub(super) fn decide(&self, glance: &Glance<'_>, call: Option<(&Request, &Entities)>) -> Decision {
        let ask =
            |rule: &Rule| call.map_or(Outcome::Failed, |(request, entities)| rule.policy.outcome(request, entities));
        let outcomes: Vec<(&Rule, Outcome)> =
            glance.rules.iter().map(|(rule, settled)| (*rule, settled.unwrap_or_else(|| ask(rule)))).collect();
        let outcomes = || outcomes.iter().copied();
        let verdict = Verdict::of(outcomes().filter(|(rule, _)| rule.enforced));
        let trial = self.has_trial.then(|| Verdict::of(outcomes().filter(|(rule, _)| rule.tried)));
        let shadow = trial
            .filter(|trial| trial.allow != verdict.allow)
            .map(|trial| Arc::new(Shadow { allow: trial.allow, policies: trial.policies, errors: trial.errors }));
        let Verdict { allow, policies, errors } = verdict;
        if allow { Decision::Allow { policies, shadow } } else { Decision::Deny { policies, errors, shadow } }
    }
}

// === impl Verdict ===

impl Verdict {
    /// Cedar's rule, and ours: a `forbid` wins, nothing is allowed without a `permit`, and a failure denies.
    fn of<'a>(outcomes: impl Iterator<Item = (&'a Rule, Outcome)> + Clone) -> Self {
        let any = |outcome, effect: Option<Effect>| {
            outcomes.clone().any(|(rule, came)| came == outcome && effect.is_none_or(|e| rule.policy.effect == e))
        };
        let forbidden = any(Outcome::Satisfied, Some(Effect::Forbid));
        let permitted = !forbidden && any(Outcome::Satisfied, Some(Effect::Permit));
        let errors = any(Outcome::Failed, None);
        let allow = permitted && !errors;
        let decides = |rule: &Rule, outcome| match outcome {
            Outcome::Failed => true,
            Outcome::Unsatisfied => false,
            Outcome::Satisfied => match rule.policy.effect {
                Effect::Permit => allow,
                Effect::Forbid => true,
            },
        };
        let deciding = outcomes.filter(|(rule, outcome)| decides(rule, *outcome));
        Self { allow, policies: deciding.map(|(rule, _)| Arc::clone(&rule.policy.id)).collect(), errors }
    }
}
