//! Owns what an operator states about quotas, and checks it: plans, who is on which, prices, the flood guard.
//! Does not parse TOML (`config`) and counts nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::principal::TenantId;

use super::money::Price;

/// Most rates that one plan may combine.
pub const RATES_MAX: usize = 4;
/// Longest window of a rate.
pub const WINDOW_MAX: Duration = Duration::from_secs(31 * 86_400);

/// Plans, the tenants that are on them, and the flood guard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Every plan by its name.
    pub plans: BTreeMap<String, Plan>,
    /// Tenants whose plan is fixed here; it wins over the plan that a credential names.
    pub tenants: BTreeMap<TenantId, TenantQuota>,
    /// The plan of everybody else; without one they are refused.
    pub default_plan: Option<String>,
    /// Requests per client address before authentication; `None` turns the guard off.
    pub flood: Option<Rate>,
    /// What models cost.
    pub prices: BTreeMap<String, Price>,
    /// Says the limits in `X-RateLimit-*` too, for clients that know no other.
    pub legacy_headers: bool,
}

/// What a tenant on the plan may use, and what happens at the limits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// What the tenant may use as a whole.
    pub limits: Limits,
    /// What each user may use of it.
    pub user: Limits,
    /// What runs of each agent, team or workflow may use of it.
    pub component: Limits,
    /// The same for single ones, by kind and id: `agents/web-agent`.
    pub components: BTreeMap<String, Limits>,
    /// What calls of single MCP tools may use of it.
    pub tools: BTreeMap<String, Limits>,
    /// How long a run may wait for a slot; `None` refuses at once.
    pub queue: Option<Duration>,
    /// How often its turn comes at busy endpoints, against other tenants; 0 counts as 1.
    pub weight: u32,
    /// What becomes of a run whose budget runs out under it.
    pub exhausted: Exhausted,
    /// What holds while the store that instances share is out of reach.
    pub lost: WhenLost,
}

/// Limits of one holder. What is absent is unlimited.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// Request rates, all of which must have room; windows differ.
    pub requests: Vec<Rate>,
    /// Runs in flight.
    pub concurrent_runs: Option<u32>,
    /// Tokens and money, all of which must have room; unit and period differ.
    pub budgets: Vec<Budget>,
}

/// A request rate: in any window of length w at most `burst + floor(limit * w / window)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Requests per window, sustained.
    pub limit: u64,
    /// The window that `limit` is stated for.
    pub window: Duration,
    /// Requests that may come at once after a pause.
    pub burst: u64,
}

/// How much of something may be used in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// What is counted.
    pub unit: Unit,
    /// For how long.
    pub period: Period,
    /// Tokens, or millionths of the currency.
    pub limit: u64,
}

/// What a budget counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Model tokens, input and output.
    Tokens,
    /// The price of model tokens.
    Money,
}

/// For how long a budget lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Period {
    /// A UTC day.
    Day,
    /// A UTC month.
    Month,
    /// Any 24 hours, to the hour.
    Last24Hours,
    /// Any 30 days, to the day.
    Last30Days,
}

/// What becomes of a run whose budget runs out under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Exhausted {
    /// It finishes; what it uses beyond the budget is overspent.
    #[default]
    Finish,
    /// Its stream is cut with an error event.
    Cut,
}

/// What holds while the store that instances share is out of reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenLost {
    /// Each instance grants its share: the limit divided by the instances seen last.
    #[default]
    Share,
    /// Each instance grants the whole limit.
    Open,
    /// Nothing is granted.
    Closed,
}

/// The quota part of one tenant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TenantQuota {
    /// Name of its plan.
    pub plan: String,
    /// What it has instead of the plan's.
    pub instead: Instead,
}

/// Limits of one tenant that replace those of its plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Instead {
    /// Request rates.
    pub requests: Option<Vec<Rate>>,
    /// Runs in flight; `Some(None)` is unlimited.
    pub concurrent_runs: Option<Option<u32>>,
    /// Budgets of tokens.
    pub tokens: Option<Vec<Budget>>,
    /// Budgets of money.
    pub money: Option<Vec<Budget>>,
}

/// Everything that is wrong with [`Settings`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsError {
    /// All problems, in the order of the settings.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong with [`Settings`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The default plan is not one of the plans.
    #[error("default plan `{plan}` does not exist{help}")]
    DefaultPlanUnknown {
        /// The name that is used.
        plan: String,
        /// A near name, on its own line, or nothing.
        help: Help,
    },
    /// A tenant's plan is not one of the plans.
    #[error("plan `{plan}` of tenant {tenant:?} does not exist{help}")]
    TenantPlanUnknown {
        /// The tenant.
        tenant: TenantId,
        /// The name that is used.
        plan: String,
        /// A near name, on its own line, or nothing.
        help: Help,
    },
    /// A rate cannot be kept.
    #[error("{place}: {reason}")]
    RateUnusable {
        /// "plan `free`" or "flood guard".
        place: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// "did you mean" for a name that does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Help(pub Option<String>);

// === impl Settings ===

impl Settings {
    /// Checks that every plan that is used exists and that every rate can be kept.
    ///
    /// # Errors
    /// [`SettingsError`] with all problems at once.
    pub fn check(&self) -> Result<(), SettingsError> {
        let mut problems = Vec::new();
        for (name, plan) in &self.plans {
            let reasons = plan.all_limits().flat_map(|limits| limits.reasons());
            problems.extend(reasons.map(|reason| Problem::RateUnusable { place: format!("plan `{name}`"), reason }));
        }
        for (tenant, quota) in &self.tenants {
            let own = quota.instead.over(&Limits::default()).reasons();
            let place = || format!("tenant {tenant:?}");
            problems.extend(own.into_iter().map(|reason| Problem::RateUnusable { place: place(), reason }));
            if !self.plans.contains_key(&quota.plan) {
                let (plan, help) = (quota.plan.clone(), self.near(&quota.plan));
                problems.push(Problem::TenantPlanUnknown { tenant: tenant.clone(), plan, help });
            }
        }
        if let Some(plan) = self.default_plan.as_ref().filter(|plan| !self.plans.contains_key(*plan)) {
            problems.push(Problem::DefaultPlanUnknown { plan: plan.clone(), help: self.near(plan) });
        }
        if let Some(reason) = self.flood.as_ref().and_then(rate_reason) {
            problems.push(Problem::RateUnusable { place: "flood guard".to_owned(), reason });
        }
        if problems.is_empty() { Ok(()) } else { Err(SettingsError { problems }) }
    }

    fn near(&self, wrong: &str) -> Help {
        let scored = self.plans.keys().map(|name| (strsim::osa_distance(name, wrong), name));
        let best = scored.filter(|(distance, _)| *distance <= 2).min();
        Help(best.map(|(_, name)| name.clone()))
    }
}

// === impl Plan, Limits, Instead ===

impl Plan {
    fn all_limits(&self) -> impl Iterator<Item = &Limits> {
        let shares = self.components.values().chain(self.tools.values());
        [&self.limits, &self.user, &self.component].into_iter().chain(shares)
    }
}

impl Limits {
    /// Says whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.concurrent_runs.is_none() && self.budgets.is_empty()
    }

    fn reasons(&self) -> Vec<&'static str> {
        let too_many = (self.requests.len() > RATES_MAX).then_some("more than four request rates");
        let mut windows: Vec<Duration> = self.requests.iter().map(|rate| rate.window).collect();
        windows.sort();
        let twice = windows.windows(2).any(|pair| pair.first() == pair.last());
        let twice = twice.then_some("two request rates for the same window");
        let same = |one: &Budget, other: &Budget| one.unit == other.unit && one.period == other.period;
        let again = |(i, budget): (usize, &Budget)| self.budgets.iter().skip(i + 1).any(|other| same(budget, other));
        let again = self.budgets.iter().enumerate().any(again).then_some("two budgets for the same period");
        let rates = self.requests.iter().filter_map(rate_reason);
        too_many.into_iter().chain(twice).chain(again).chain(rates).collect()
    }
}

impl Instead {
    /// The limits with these in place of the plan's.
    pub(super) fn over(&self, plan: &Limits) -> Limits {
        let of_plan = |unit| plan.budgets.iter().filter(move |budget| budget.unit == unit).copied().collect();
        let tokens: Vec<Budget> = self.tokens.clone().unwrap_or_else(|| of_plan(Unit::Tokens));
        let money: Vec<Budget> = self.money.clone().unwrap_or_else(|| of_plan(Unit::Money));
        Limits {
            requests: self.requests.clone().unwrap_or_else(|| plan.requests.clone()),
            concurrent_runs: self.concurrent_runs.unwrap_or(plan.concurrent_runs),
            budgets: tokens.into_iter().chain(money).collect(),
        }
    }
}

fn rate_reason(rate: &Rate) -> Option<&'static str> {
    if rate.limit == 0 || rate.burst == 0 {
        return Some("a rate and its burst must be at least 1");
    }
    if rate.window.is_zero() || rate.window > WINDOW_MAX {
        return Some("the window of a rate must be between 1 ns and 31 days");
    }
    if u128::from(rate.limit) > rate.window.as_nanos() {
        return Some("a rate above one request per nanosecond is no limit: leave it out");
    }
    let depth = rate.window.as_nanos().div_ceil(u128::from(rate.limit)).saturating_mul(u128::from(rate.burst));
    (depth > WINDOW_MAX.as_nanos() * 12).then_some("the burst takes longer than a year to refill")
}

// === impl SettingsError, Help ===

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            let separator = if i == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for SettingsError {}

impl fmt::Display for Help {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(name) => write!(f, "\nhelp: did you mean `{name}`?"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn per_minute(limit: u64, burst: u64) -> Rate {
        Rate { limit, window: Duration::from_secs(60), burst }
    }

    fn requests(requests: Vec<Rate>) -> Plan {
        Plan { limits: Limits { requests, ..Limits::default() }, ..Plan::default() }
    }

    #[test]
    fn all_problems_are_named_at_once() {
        let mut settings = Settings { default_plan: Some("fre".into()), ..Settings::default() };
        settings.plans.insert("free".into(), requests(vec![per_minute(60, 0)]));
        let twice = vec![per_minute(60, 60), per_minute(30, 30)];
        settings.plans.insert("pro".into(), requests(twice));
        let acme = TenantId::new("acme").expect("plain");
        settings.tenants.insert(acme, TenantQuota { plan: "platinum".into(), ..TenantQuota::default() });
        settings.flood = Some(Rate { limit: 1, window: Duration::ZERO, burst: 1 });
        assert_eq!(
            settings.check().expect_err("five problems").to_string(),
            "plan `free`: a rate and its burst must be at least 1\n\
             plan `pro`: two request rates for the same window\n\
             plan `platinum` of tenant `acme` does not exist\n\
             default plan `fre` does not exist\nhelp: did you mean `free`?\n\
             flood guard: the window of a rate must be between 1 ns and 31 days"
        );
    }

    #[test]
    fn rates_that_cannot_be_kept_are_refused() {
        let second = Duration::from_secs(1);
        for (rate, reason) in [
            (Rate { limit: 2_000_000_000, window: second, burst: 1 }, "a rate above one request per nanosecond"),
            (Rate { limit: 1, window: WINDOW_MAX, burst: 13 }, "the burst takes longer than a year to refill"),
            (Rate { limit: 1, window: WINDOW_MAX + second, burst: 1 }, "the window of a rate must be between"),
        ] {
            let settings = Settings { flood: Some(rate), ..Settings::default() };
            let text = settings.check().expect_err("unusable").to_string();
            assert!(text.starts_with(&format!("flood guard: {reason}")), "{text}");
        }
        let five = (1..=5).map(|s| Rate { limit: 1, window: second * s, burst: 1 }).collect();
        let mut settings = Settings::default();
        settings.plans.insert("p".into(), requests(five));
        assert_eq!(settings.check().expect_err("five").to_string(), "plan `p`: more than four request rates");
    }
}
