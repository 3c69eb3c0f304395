//! Owns HOW MUCH: request rates, runs in flight and token budgets of every tenant.
//! Does not say who calls (`identity`) or whether they may (`policy`), never sleeps, and does no IO:
//! a full bucket refuses at once, with the time to come back.
//! Invariants: a window of length w admits at most `burst + floor(rate * w)`; every slot that is taken
//! is freed; a reload changes limits, never counters.

mod account;
mod budget;
mod calendar;
mod clock;
mod estimate;
mod flood;
mod gcra;
mod lease;
mod limit;
mod plans;
mod settings;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::principal::{Principal, TenantId};

use account::{Account, NoRun};
pub use clock::{Clock, SystemClock};
use clock::{monotonic_ns, wall_secs};
use estimate::Estimates;
pub use estimate::{AGENTS_MAX, RESERVATION_FLOOR_TOKENS};
use flood::Flood;
pub use lease::Lease;
pub use limit::{Exceeded, ExceededKind, LimitState, NoPlan, Pass, Refused};
use plans::{Chosen, NamedRate, Plans};
pub use settings::{Help, Plan, Problem, RATES_MAX, Rate, Settings, SettingsError, TenantQuota, WINDOW_MAX};
use table::Table;

/// Most accounts of tenants outside the tenant table; further ones share one account.
const ACCOUNTS_MAX: usize = 65_536;

/// The quotas of one gateway.
#[derive(Debug)]
pub struct Quota {
    plans: Plans,
    flood: Option<NamedRate>,
    /// Accounts of the tenant table, found without touching a shared lock.
    known: HashMap<TenantId, Arc<Account>>,
    state: Arc<State>,
    clock: Arc<dyn Clock>,
}

/// Everything that is counted. Shared by the quotas before and after a reload.
#[derive(Debug)]
struct State {
    accounts: Table<Holder, Arc<Account>>,
    overflow: Arc<Account>,
    flood: Flood,
    estimates: Estimates,
}

/// Whose counters: a tenant, and the plan where its credentials choose among plans.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Holder {
    tenant: TenantId,
    plan: Option<Arc<str>>,
}

impl Quota {
    /// Builds quotas with empty counters.
    ///
    /// # Errors
    /// [`SettingsError`] with every plan that does not exist and every rate that cannot be kept.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        Self::with_clock(settings, Arc::new(SystemClock::new()))
    }

    /// Builds quotas that read the given clock.
    ///
    /// # Errors
    /// As [`Quota::new`].
    pub fn with_clock(settings: Settings, clock: Arc<dyn Clock>) -> Result<Self, SettingsError> {
        let state = State {
            accounts: Table::new(ACCOUNTS_MAX),
            overflow: Arc::default(),
            flood: Flood::new(),
            estimates: Estimates::default(),
        };
        Self::build(settings, Arc::new(state), clock)
    }

    /// Builds quotas with other limits and the same counters: a reload refills no bucket, frees no
    /// slot and forgets no token.
    ///
    /// # Errors
    /// As [`Quota::new`].
    pub fn reloaded(&self, settings: Settings) -> Result<Self, SettingsError> {
        Self::build(settings, self.state.clone(), self.clock.clone())
    }

    fn build(settings: Settings, state: Arc<State>, clock: Arc<dyn Clock>) -> Result<Self, SettingsError> {
        settings.check()?;
        let plans = Plans::new(&settings);
        let account = |tenant: &TenantId| {
            let holder = Holder { tenant: tenant.clone(), plan: None };
            (tenant.clone(), state.account(holder, &*clock))
        };
        let known = plans.tenants().map(account).collect();
        let flood = settings.flood.as_ref().map(|rate| NamedRate::new("flood", rate));
        Ok(Self { plans, flood, known, state, clock })
    }

    /// Spends one request of a client address, before anything else is known about it.
    ///
    /// # Errors
    /// [`Exceeded`] of kind `Flood`.
    pub fn flood(&self, address: IpAddr) -> Result<(), Exceeded> {
        match &self.flood {
            Some(rate) => self.state.flood.spend(rate, address, monotonic_ns(&*self.clock)),
            None => Ok(()),
        }
    }

    /// Says what [`Quota::flood`] would, without counting a request.
    ///
    /// # Errors
    /// [`Exceeded`] of kind `Flood`.
    pub fn would_flood(&self, address: IpAddr) -> Result<(), Exceeded> {
        match &self.flood {
            Some(rate) => self.state.flood.look(rate, address, monotonic_ns(&*self.clock)),
            None => Ok(()),
        }
    }

    /// Spends one request of the caller's tenant: from every rate of its plan, or from none.
    ///
    /// # Errors
    /// [`Refused::Exceeded`] of kind `Rate`, naming the rate that makes the caller wait longest;
    /// [`Refused::NoPlan`].
    pub fn spend(&self, principal: &Principal) -> Result<Pass, Refused> {
        let (plan, account) = self.account(principal)?;
        let now = monotonic_ns(&*self.clock);
        match account.spend(&plan.rates, now) {
            Ok(cells) => Ok(Pass { limits: Account::rate_states(&plan.rates, &cells, now) }),
            Err((limit, wait)) => {
                Err(Refused::Exceeded(Exceeded::new(ExceededKind::Rate, limit, wait, plan.name.clone())))
            }
        }
    }

    /// Takes a run slot and reserves what a run of the agent usually costs, or takes neither.
    ///
    /// # Errors
    /// [`Refused::Exceeded`] of kind `Runs` or `Budget`; [`Refused::NoPlan`].
    pub fn lease(&self, principal: &Principal, agent: &str) -> Result<Lease, Refused> {
        let (plan, account) = self.account(principal)?;
        let estimate = self.state.estimates.of(agent);
        match account.start_run(plan, estimate, wall_secs(&*self.clock)) {
            Ok(reserved) => Ok(Lease::new(account, self.state.clone(), self.clock.clone(), agent, reserved)),
            Err(no_run) => {
                let (kind, limit, wait) = match no_run {
                    NoRun::Slots(limit, wait) => (ExceededKind::Runs, limit, wait),
                    NoRun::Budget(spent) => (ExceededKind::Budget, spent.limit, spent.wait),
                };
                Err(Refused::Exceeded(Exceeded::new(kind, limit, wait, plan.name.clone())))
            }
        }
    }

    /// The name of the caller's plan.
    ///
    /// # Errors
    /// [`NoPlan`] when the credential names a plan that does not exist, or nothing names one.
    pub fn plan_of(&self, principal: &Principal) -> Result<&str, NoPlan> {
        self.plans.choose(principal).map(|chosen| &*chosen.plan.name)
    }

    /// The states of everything that the caller's plan limits, without spending.
    ///
    /// # Errors
    /// As [`Quota::plan_of`].
    pub fn usage(&self, principal: &Principal) -> Result<Vec<LimitState>, NoPlan> {
        let chosen = self.plans.choose(principal)?;
        let account = self.account_of(principal, chosen);
        Ok(account.states(chosen.plan, monotonic_ns(&*self.clock), wall_secs(&*self.clock)))
    }

    /// Runs in flight that count against the caller's plan.
    ///
    /// # Errors
    /// As [`Quota::plan_of`].
    pub fn runs_in_flight(&self, principal: &Principal) -> Result<u32, NoPlan> {
        let chosen = self.plans.choose(principal)?;
        Ok(self.account_of(principal, chosen).runs_in_flight())
    }

    fn account(&self, principal: &Principal) -> Result<(&plans::CompiledPlan, Arc<Account>), Refused> {
        let chosen = self.plans.choose(principal).map_err(Refused::NoPlan)?;
        Ok((chosen.plan, self.account_of(principal, chosen)))
    }

    fn account_of(&self, principal: &Principal, chosen: Chosen<'_>) -> Arc<Account> {
        if let Some(account) = self.known.get(&principal.tenant) {
            return account.clone();
        }
        // Both clones share; nothing is allocated for an account that exists.
        let plan = chosen.by_credential.then(|| chosen.plan.name.clone());
        self.state.account(Holder { tenant: principal.tenant.clone(), plan }, &*self.clock)
    }
}

impl State {
    /// The account of a holder. When the table is full of busy accounts, new holders share one:
    /// together they never get more than one of them was promised.
    fn account(&self, holder: Holder, clock: &dyn Clock) -> Arc<Account> {
        let now = monotonic_ns(clock);
        // An account that somebody else holds (a lease, a tenant of the table) is never idle.
        let idle = |account: &Arc<Account>| Arc::strong_count(account) == 1 && account.is_idle(now, wall_secs(clock));
        let found = self.accounts.with(holder, now, idle, Arc::default, |account| account.clone());
        found.unwrap_or_else(|| self.overflow.clone())
    }
}
