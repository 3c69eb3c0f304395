//! Owns which plan applies to a caller: the tenant table, else the plan its credential names, else
//! the default. Does not count (`account`). Lookups do not allocate.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;

use crate::principal::{Principal, TenantId};

use super::gcra::Gcra;
use super::limit::{LimitState, NoPlan, Scope};
use super::settings::{self, Budget, Exhausted, Instead, Plan, Rate, Settings, TenantQuota, WhenLost};

/// A plan, ready to be held against counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CompiledPlan {
    pub(super) name: Arc<str>,
    pub(super) tenant: Limits,
    pub(super) user: Option<Limits>,
    component: Option<Limits>,
    components: HashMap<String, Limits>,
    tools: HashMap<String, Limits>,
    pub(super) queue: Option<Duration>,
    pub(super) weight: u32,
    pub(super) exhausted: Exhausted,
    pub(super) lost: WhenLost,
}

/// Limits of one holder, ready to be held against its account.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Limits {
    pub(super) rates: Vec<NamedRate>,
    pub(super) concurrent_runs: Option<u32>,
    pub(super) budgets: Vec<Budget>,
    /// A budget is for a rolling period.
    pub(super) rolls: bool,
}

/// A rate and how it is called in headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NamedRate {
    pub(super) name: &'static str,
    pub(super) limit: u64,
    pub(super) window: Duration,
    pub(super) gcra: Gcra,
}

/// All plans and who is on which.
#[derive(Debug, Clone)]
pub(super) struct Plans {
    by_name: HashMap<Arc<str>, Arc<CompiledPlan>>,
    by_tenant: HashMap<TenantId, Arc<CompiledPlan>>,
    default: Option<Arc<CompiledPlan>>,
}

/// The plan of a caller and who chose it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chosen<'a> {
    pub(super) plan: &'a Arc<CompiledPlan>,
    /// The credential chose: callers of one tenant may be on several plans, each with its own
    /// counters.
    pub(super) by_credential: bool,
}

impl Plans {
    /// Compiles settings that were checked.
    pub(super) fn new(settings: &Settings) -> Self {
        let none = Instead::default();
        let compiled = settings.plans.iter().map(|(name, plan)| Arc::new(CompiledPlan::new(name, plan, &none)));
        let by_name: HashMap<Arc<str>, Arc<CompiledPlan>> = compiled.map(|plan| (plan.name.clone(), plan)).collect();
        let named = |name: &str| by_name.get(name).cloned();
        let own = |quota: &TenantQuota| {
            let plan = settings.plans.get(&quota.plan)?;
            Some(Arc::new(CompiledPlan::new(&quota.plan, plan, &quota.instead)))
        };
        let of = |quota: &TenantQuota| if quota.instead == none { named(&quota.plan) } else { own(quota) };
        let by_tenant = settings.tenants.iter();
        let by_tenant = by_tenant.filter_map(|(tenant, quota)| Some((tenant.clone(), of(quota)?))).collect();
        let default = settings.default_plan.as_deref().and_then(named);
        Self { by_tenant, default, by_name }
    }

    /// Finds the plan of a caller.
    pub(super) fn choose(&self, principal: &Principal) -> Result<Chosen<'_>, NoPlan> {
        if let Some(plan) = self.by_tenant.get(&principal.tenant) {
            return Ok(Chosen { plan, by_credential: false });
        }
        let no_plan = |claimed| NoPlan { tenant: principal.tenant.clone(), claimed };
        match &principal.plan {
            Some(name) => {
                let plan = self.by_name.get(name).ok_or_else(|| no_plan(Some(name.clone())))?;
                Ok(Chosen { plan, by_credential: true })
            }
            None => {
                let plan = self.default.as_ref().ok_or_else(|| no_plan(None))?;
                Ok(Chosen { plan, by_credential: false })
            }
        }
    }

    /// The tenants of the table.
    pub(super) fn tenants(&self) -> impl Iterator<Item = &TenantId> {
        self.by_tenant.keys()
    }
}

impl CompiledPlan {
    fn new(name: &str, plan: &Plan, instead: &Instead) -> Self {
        let some = |limits: &settings::Limits| (!limits.is_empty()).then(|| Limits::new(limits));
        let all = |shares: &BTreeMap<String, settings::Limits>| {
            shares.iter().map(|(name, limits)| (name.clone(), Limits::new(limits))).collect()
        };
        Self {
            name: name.into(),
            tenant: Limits::new(&instead.over(&plan.limits)),
            user: some(&plan.user),
            component: some(&plan.component),
            components: all(&plan.components),
            tools: all(&plan.tools),
            queue: plan.queue,
            weight: plan.weight.max(1),
            exhausted: plan.exhausted,
            lost: plan.lost,
        }
    }

    /// The limits of one agent, team or workflow, by kind and id.
    pub(super) fn component(&self, name: &str) -> Option<&Limits> {
        self.components.get(name).or(self.component.as_ref())
    }

    /// The limits of one MCP tool.
    pub(super) fn tool(&self, name: &str) -> Option<&Limits> {
        self.tools.get(name)
    }

    /// Says whether single components are limited at all.
    pub(super) fn limits_components(&self) -> bool {
        self.component.is_some() || !self.components.is_empty()
    }
}

impl Limits {
    fn new(limits: &settings::Limits) -> Self {
        let alone = limits.requests.len() == 1;
        let named =
            |(i, rate): (usize, &Rate)| NamedRate::new(if alone { "requests" } else { rate_name(rate, i) }, rate);
        Self {
            rates: limits.requests.iter().enumerate().map(named).collect(),
            concurrent_runs: limits.concurrent_runs,
            budgets: limits.budgets.clone(),
            rolls: limits.budgets.iter().any(|budget| budget.period.is_rolling()),
        }
    }
}

impl NamedRate {
    pub(super) fn new(name: &'static str, rate: &Rate) -> Self {
        Self { name, limit: rate.limit, window: rate.window, gcra: Gcra::new(rate) }
    }

    /// The state of the rate for a bucket, as a whole or as one of several shares.
    pub(super) fn state(&self, gcra: Gcra, scope: Scope, full_at: u64, now: u64) -> LimitState {
        let remaining = gcra.remaining(full_at, now);
        LimitState {
            scope,
            name: self.name,
            limit: self.limit,
            used: gcra.burst().saturating_sub(remaining),
            remaining,
            window: self.window,
            reset: gcra.reset(full_at, now),
        }
    }
}

/// The name of a rate among several: by its window where that has a word, else by its place.
fn rate_name(rate: &Rate, index: usize) -> &'static str {
    match (rate.window.as_secs(), rate.window.subsec_nanos(), index) {
        (1, 0, _) => "requests_per_second",
        (60, 0, _) => "requests_per_minute",
        (3_600, 0, _) => "requests_per_hour",
        (86_400, 0, _) => "requests_per_day",
        (_, _, 0) => "requests_1",
        (_, _, 1) => "requests_2",
        (_, _, 2) => "requests_3",
        (_, _, _) => "requests_4",
    }
}
