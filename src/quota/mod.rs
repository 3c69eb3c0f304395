//! Owns HOW MUCH: request rates, runs in flight and budgets of every tenant and its parts.
//! Does not say who calls (`identity`) or whether they may (`policy`). A full bucket refuses at once, with the time to
//! come back; a run waits for a slot only where its plan says so. With a shared store a request asks it when its
//! leased cells are used up, and a run asks it once.
//! Invariants: a window of length w admits at most `burst + floor(rate * w)`, and with a shared store at most one
//! batch per instance more; every slot that is taken is freed; a reload changes limits, never counters.

mod account;
mod book;
mod budget;
mod calendar;
mod clock;
mod estimate;
mod flood;
mod gcra;
mod lease;
mod levels;
mod limit;
mod link;
mod money;
mod plans;
mod rates;
mod settings;
mod steer;
mod table;
#[cfg(test)]
mod tests;
mod upkeep;

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::principal::{Principal, TenantId};
use crate::store::{MemoryStore, Store};

use account::{Account, NoRun, Shared};
use book::Book;
pub use calendar::{day_of, day_text};
pub use clock::{Clock, SystemClock};
use clock::{monotonic_ns, wall_secs};
use estimate::Estimates;
pub use estimate::{AGENTS_MAX, RESERVATION_FLOOR_TOKENS};
use flood::Flood;
pub use lease::{Growth, Lease};
use levels::{Level, Levels, Spent};
pub use limit::{Exceeded, ExceededKind, LimitState, NoPlan, Pass, Refused, Scope};
use link::{Link, Mode, STRIPES};
use money::Prices;
pub use money::{Amount, ModelSpent, Price};
use plans::{Chosen, CompiledPlan, NamedRate, Plans};
pub use settings::{
    Budget, Exhausted, Help, Instead, Limits, Period, Plan, Problem, RATES_MAX, Rate, Settings, SettingsError,
    TenantQuota, Unit, WINDOW_MAX, WhenLost,
};
pub use steer::{Correct, TenantUsage};
use table::Table;
pub use upkeep::{Change, Upkeep};

/// Most accounts of tenants outside the tenant table, and of users, components and tools; further ones share one.
const ACCOUNTS_MAX: usize = 1 << 20;
/// How often a run that waits for a slot asks again when nobody in this process has freed one.
const SLOT_POLL: Duration = Duration::from_millis(200);

/// The quotas of one gateway.
#[derive(Debug)]
pub struct Quota {
    plans: Plans,
    flood: Option<NamedRate>,
    prices: Arc<Prices>,
    legacy_headers: bool,
    /// Accounts of the tenant table, found without touching a shared lock.
    known: HashMap<TenantId, Arc<Account>>,
    state: Arc<State>,
    link: Arc<Link>,
    clock: Arc<dyn Clock>,
}

/// Everything that is counted. Shared by the quotas before and after a reload.
#[derive(Debug)]
struct State {
    accounts: Table<Holder, Arc<Account>>,
    /// One per level of a call, which locks the accounts of its levels together.
    overflow: [Arc<Account>; 4],
    flood: Flood,
    estimates: Estimates,
    book: Book,
    /// A run ended that somebody may have waited for.
    ended: Notify,
    hasher: RandomState,
}

/// What a call works on, as far as limits of parts of a tenant care.
#[derive(Debug, Clone, Copy, Default)]
pub struct Work<'a> {
    /// The cluster.
    pub cluster: &'a str,
    /// Kind and id of the agent, team or workflow: `("agents", "web-agent")`.
    pub component: Option<(&'a str, &'a str)>,
    /// The MCP tool that made the call.
    pub tool: Option<&'static str>,
}

/// Whose counters: a tenant or a part of it, and the plan where its credentials choose among plans.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Holder {
    tenant: TenantId,
    plan: Option<Arc<str>>,
    part: TenantPart,
}

/// A part of a tenant that has limits of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum TenantPart {
    Whole,
    User(Arc<str>),
    Component(Arc<str>),
    Tool(&'static str),
}

impl Quota {
    /// Builds quotas with empty counters, in this process.
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
        let link = Link::new(Arc::new(MemoryStore::new()), false);
        Self::build(settings, Arc::new(State::new()), Arc::new(link), clock)
    }

    /// Quotas with the same limits that are held with a store; nothing is counted yet.
    #[must_use]
    pub fn sharing(&self, store: Arc<dyn Store>) -> Self {
        self.over(store, true)
    }

    /// Quotas with the same limits, held in this process, whose usage a store keeps.
    #[must_use]
    pub fn recording(&self, store: Arc<dyn Store>) -> Self {
        self.over(store, false)
    }

    fn over(&self, store: Arc<dyn Store>, shares: bool) -> Self {
        let (link, state) = (Arc::new(Link::new(store, shares)), Arc::new(State::new()));
        let plans = self.plans.clone();
        let known = known(&plans, &state, &link, &*self.clock);
        let (prices, clock) = (self.prices.clone(), self.clock.clone());
        let (flood, legacy_headers) = (self.flood, self.legacy_headers);
        Self { plans, flood, prices, legacy_headers, known, state, link, clock }
    }

    /// Builds quotas with other limits and the same counters: a reload refills no bucket, frees no
    /// slot and forgets no token.
    ///
    /// # Errors
    /// As [`Quota::new`].
    pub fn reloaded(&self, settings: Settings) -> Result<Self, SettingsError> {
        Self::build(settings, self.state.clone(), self.link.clone(), self.clock.clone())
    }

    fn build(
        settings: Settings,
        state: Arc<State>,
        link: Arc<Link>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, SettingsError> {
        settings.check()?;
        let plans = Plans::new(&settings);
        let known = known(&plans, &state, &link, &*clock);
        let flood = settings.flood.as_ref().map(|rate| NamedRate::new("flood", rate));
        let (prices, legacy_headers) = (Arc::new(Prices::new(settings.prices)), settings.legacy_headers);
        Ok(Self { plans, flood, prices, legacy_headers, known, state, link, clock })
    }

    /// Waits until the store has what was counted before, as long as it is in reach; not longer than it may take to
    /// answer.
    pub fn kept(&self) -> impl Future<Output = ()> + Send + use<> {
        let link = Arc::clone(&self.link);
        async move { link.kept().await }
    }

    /// The work that has to be done between calls.
    pub fn upkeep(&self) -> Upkeep {
        Upkeep::new(self.state.clone(), self.link.clone(), self.clock.clone())
    }

    /// Says whether answers name limits in `X-RateLimit-*` too.
    pub fn has_legacy_headers(&self) -> bool {
        self.legacy_headers
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

    /// Spends one request of the caller's tenant and of the parts of it that are limited: from every rate, or from
    /// none. Asks a shared store only when nothing is leased from it.
    ///
    /// # Errors
    /// [`Refused::Exceeded`] of kind `Rate`, naming the rate that makes the caller wait longest, or `Unknown`;
    /// [`Refused::NoPlan`].
    ///
    /// # Cancel safety
    /// Safe: nothing is spent before the end.
    pub async fn spend(&self, principal: &Principal, work: &Work<'_>) -> Result<Pass, Refused> {
        let chosen = self.plans.choose(principal).map_err(Refused::NoPlan)?;
        let levels = self.levels(principal, chosen, work);
        let mut mode = self.link.mode(chosen.plan);
        let mut spent = self.spend_at(&levels, mode);
        if let (Spent::Unknown, Mode::Shared { instances }) = (&spent, mode) {
            // Boxed: few take this way, and every call would carry its state.
            Box::pin(self.link.lease(&levels, instances, &*self.clock)).await;
            mode = self.link.mode(chosen.plan);
            spent = self.spend_at(&levels, mode);
        }
        let exceeded =
            |kind, limit, wait| Refused::Exceeded(Exceeded::new(kind, limit, wait, chosen.plan.name.clone()));
        match spent {
            Spent::Passed(limits) => Ok(Pass { limits }),
            Spent::Full(limit, wait) => Err(exceeded(ExceededKind::Rate, limit, wait)),
            Spent::Unknown => {
                let now = monotonic_ns(&*self.clock);
                let states = levels.states(mode.buckets(), mode.reach(), now, wall_secs(&*self.clock));
                let limit = states.first().copied().unwrap_or(LimitState::nothing());
                // Others took the cells that were leased for us: they are asked for again in a moment.
                let kind = if mode == Mode::Closed { ExceededKind::Unknown } else { ExceededKind::Rate };
                Err(exceeded(kind, limit, Duration::from_secs(1)))
            }
        }
    }

    fn spend_at(&self, levels: &Levels<'_>, mode: Mode) -> Spent {
        if mode == Mode::Closed {
            return Spent::Unknown;
        }
        levels.spend(mode.buckets(), monotonic_ns(&*self.clock), |account| self.link.low(account))
    }

    /// Takes a run slot and reserves what a run of the agent usually costs, or takes neither. Waits for a slot as long
    /// as the plan says.
    ///
    /// # Errors
    /// [`Refused::Exceeded`] of kind `Runs`, `Budget` or `Unknown`; [`Refused::NoPlan`].
    ///
    /// # Cancel safety
    /// Safe: what was taken is given back.
    pub async fn lease(&self, principal: &Principal, work: &Work<'_>) -> Result<Lease, Refused> {
        let chosen = self.plans.choose(principal).map_err(Refused::NoPlan)?;
        let levels = self.levels(principal, chosen, work);
        // Agents of the same name on two clusters are two agents.
        let (kind, id) = work.component.unwrap_or(("", ""));
        let agent = format!("{}/{kind}/{id}", work.cluster);
        let mut started = self.start(&levels, chosen.plan, &agent).await;
        if let (Err(NoRun::Slots(..)), Some(patience)) = (&started, chosen.plan.queue) {
            started = Box::pin(self.wait(&levels, chosen.plan, &agent, patience)).await.unwrap_or(started);
        }
        let reserved = started.map_err(|no_run| {
            let (kind, limit, wait) = match no_run {
                NoRun::Slots(limit, wait) if limit.limit == u64::MAX => (ExceededKind::Unknown, limit, wait),
                NoRun::Slots(limit, wait) => (ExceededKind::Runs, limit, wait),
                NoRun::Budget(spent) => (ExceededKind::Budget, spent.limit, spent.wait),
            };
            Refused::Exceeded(Exceeded::new(kind, limit, wait, chosen.plan.name.clone()))
        })?;
        let ground = lease::Ground {
            accounts: levels.accounts(),
            state: self.state.clone(),
            link: self.link.clone(),
            clock: self.clock.clone(),
            plan: Arc::clone(chosen.plan),
            prices: self.prices.clone(),
            tenant: principal.tenant.clone(),
        };
        Ok(Lease::new(ground, &agent, reserved))
    }

    async fn start(&self, levels: &Levels<'_>, plan: &CompiledPlan, agent: &str) -> Result<Amount, NoRun> {
        let estimate = self.state.estimates.of(agent);
        let mut mode = self.link.mode(plan);
        if let Mode::Shared { .. } = mode {
            if let Some(reserved) = Box::pin(self.link.start(levels, estimate, &*self.clock)).await? {
                return Ok(reserved);
            }
            mode = self.link.mode(plan);
        }
        match mode {
            Mode::Own { reach, .. } => {
                let reserved = levels.start(estimate, reach, self.link.now(&*self.clock))?;
                levels.iter().for_each(|level| self.link.dirty(&level.account));
                Ok(reserved)
            }
            Mode::Shared { .. } | Mode::Closed => Err(NoRun::Slots(LimitState::nothing(), account::RUN_WAIT)),
        }
    }

    /// Waits until a run may start or the patience is at its end; `None` when too many wait.
    async fn wait(
        &self,
        levels: &Levels<'_>,
        plan: &CompiledPlan,
        agent: &str,
        patience: Duration,
    ) -> Option<Result<Amount, NoRun>> {
        let deadline = Instant::now() + patience;
        let _place = Waiting::begin(levels)?;
        loop {
            let ended = self.state.ended.notified();
            let started = self.start(levels, plan, agent).await;
            if !matches!(started, Err(NoRun::Slots(..))) || Instant::now() >= deadline {
                return Some(started);
            }
            let until = deadline.min(Instant::now() + SLOT_POLL);
            let _ = tokio::time::timeout_at(until, ended).await;
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
    pub async fn usage(&self, principal: &Principal, work: &Work<'_>) -> Result<Vec<LimitState>, NoPlan> {
        let chosen = self.plans.choose(principal)?;
        let levels = self.levels(principal, chosen, work);
        Ok(self.states(&levels, chosen.plan).await)
    }

    async fn states(&self, levels: &Levels<'_>, plan: &CompiledPlan) -> Vec<LimitState> {
        if let Mode::Shared { instances } = self.link.mode(plan) {
            self.link.read(levels, instances, &*self.clock).await;
            self.link.state(&levels.accounts(), &*self.clock).await;
        }
        let mode = self.link.mode(plan);
        levels.states(mode.buckets(), mode.reach(), monotonic_ns(&*self.clock), self.link.now(&*self.clock))
    }

    /// Runs in flight in this process that count against the caller's plan.
    ///
    /// # Errors
    /// As [`Quota::plan_of`].
    pub fn runs_in_flight(&self, principal: &Principal) -> Result<u32, NoPlan> {
        let chosen = self.plans.choose(principal)?;
        Ok(self.account_of(principal, chosen).runs_in_flight())
    }

    fn levels<'p>(&self, principal: &Principal, chosen: Chosen<'p>, work: &Work<'_>) -> Levels<'p> {
        let plan: &'p CompiledPlan = chosen.plan;
        let part = |scope, limits: Option<&'p plans::Limits>, part: &dyn Fn() -> TenantPart| {
            let limits = limits?;
            let plan = chosen.by_credential.then(|| plan.name.clone());
            let holder = Holder { tenant: principal.tenant.clone(), plan, part: part() };
            Some(Level { scope, limits, account: self.state.account(holder, &self.link, &*self.clock) })
        };
        let tenant = Level { scope: Scope::Tenant, limits: &plan.tenant, account: self.account_of(principal, chosen) };
        let user = part(Scope::User, plan.user.as_ref(), &|| TenantPart::User(Arc::clone(&principal.subject)));
        let named = work.component.filter(|_| plan.limits_components()).map(|(kind, id)| format!("{kind}/{id}"));
        let component = named.and_then(|name| {
            part(Scope::Component, plan.component(&name), &|| TenantPart::Component(name.as_str().into()))
        });
        let tool = work.tool.and_then(|name| part(Scope::Tool, plan.tool(name), &|| TenantPart::Tool(name)));
        Levels::new([Some(tenant), user, component, tool])
    }

    fn account_of(&self, principal: &Principal, chosen: Chosen<'_>) -> Arc<Account> {
        if let Some(account) = self.known.get(&principal.tenant) {
            return account.clone();
        }
        // Both clones share; nothing is allocated for an account that exists.
        let plan = chosen.by_credential.then(|| chosen.plan.name.clone());
        let holder = Holder { tenant: principal.tenant.clone(), plan, part: TenantPart::Whole };
        self.state.account(holder, &self.link, &*self.clock)
    }
}

fn known(plans: &Plans, state: &State, link: &Link, clock: &dyn Clock) -> HashMap<TenantId, Arc<Account>> {
    let account = |tenant: &TenantId| {
        let holder = Holder { tenant: tenant.clone(), plan: None, part: TenantPart::Whole };
        (tenant.clone(), state.account(holder, link, clock))
    };
    plans.tenants().map(account).collect()
}

/// A place among those who wait for a slot.
struct Waiting<'a, 'p>(&'a Levels<'p>);

impl<'a, 'p> Waiting<'a, 'p> {
    fn begin(levels: &'a Levels<'p>) -> Option<Self> {
        for (joined, level) in levels.iter().enumerate() {
            if !level.account.begin_waiting() {
                levels.iter().take(joined).for_each(|level| level.account.end_waiting());
                return None;
            }
        }
        Some(Self(levels))
    }
}

impl Drop for Waiting<'_, '_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|level| level.account.end_waiting());
    }
}

// === impl Holder ===

impl Holder {
    /// Begins every key of the account in a store; the tenant stands in braces, which keep a tenant on one node.
    fn prefix(&self) -> String {
        // Neither plans nor subjects hold this separator, so no two holders share a prefix.
        const SEPARATOR: char = '\u{1f}';
        let plan = self.plan.as_deref().unwrap_or("");
        let part = match &self.part {
            TenantPart::Whole => String::new(),
            TenantPart::User(subject) => format!("u{subject}"),
            TenantPart::Component(name) => format!("c{name}"),
            TenantPart::Tool(name) => format!("t{name}"),
        };
        format!("tb:{{{}}}:{plan}{SEPARATOR}{part}{SEPARATOR}", self.tenant)
    }
}

impl State {
    fn new() -> Self {
        Self::with_room(ACCOUNTS_MAX)
    }

    /// Counters of at most so many accounts.
    fn with_room(accounts: usize) -> Self {
        Self {
            accounts: Table::new(accounts),
            overflow: Default::default(),
            flood: Flood::new(),
            estimates: Estimates::default(),
            book: Book::default(),
            ended: Notify::new(),
            hasher: RandomState::new(),
        }
    }

    /// The account of a holder. When the table is full of busy accounts, new holders share one, counted in this process
    /// alone: together they never get more here than one of them was promised.
    fn account(&self, holder: Holder, link: &Link, clock: &dyn Clock) -> Arc<Account> {
        let now = monotonic_ns(clock);
        // An account that somebody else holds (a lease, a tenant of the table) is never idle.
        let idle = |account: &Arc<Account>| Arc::strong_count(account) == 1 && account.is_idle(now, wall_secs(clock));
        let create = |holder: &Holder| {
            if !link.shares() {
                return Arc::default();
            }
            let stripe = usize::try_from(self.hasher.hash_one(&holder.tenant) % STRIPES as u64).unwrap_or(0);
            Arc::new(Account::shared(Shared::new(holder.prefix(), stripe)))
        };
        let [whole, users, components, tools] = &self.overflow;
        let overflow = match holder.part {
            TenantPart::Whole => whole,
            TenantPart::User(_) => users,
            TenantPart::Component(_) => components,
            TenantPart::Tool(_) => tools,
        };
        let found = self.accounts.with(holder, now, idle, create, |account| account.clone());
        found.unwrap_or_else(|| overflow.clone())
    }

    /// Shows every account that there is.
    fn each_account(&self, show: impl Fn(&Arc<Account>)) {
        self.accounts.each(|_, account| show(account));
        self.overflow.iter().for_each(show);
    }

    /// Runs that hold a slot in this process, of all tenants.
    fn runs_in_flight(&self) -> u64 {
        let [whole, ..] = &self.overflow;
        let mut runs = u64::from(whole.runs_in_flight());
        self.accounts.each(|holder, account| {
            runs += if holder.part == TenantPart::Whole { u64::from(account.runs_in_flight()) } else { 0 };
        });
        runs
    }
}
