//! Owns what one run holds: a slot among the runs in flight and what is reserved for it.
//! Does not watch the run (`gateway`): its owner says what was used, or drops the lease.
//! Invariant: for every `Lease` exactly one settlement happens, and its slot is freed once.

use std::sync::Arc;

use super::State;
use super::account::Account;
use super::calendar::DAY_SECS;
use super::clock::Clock;
use super::limit::{LimitState, Scope};
use super::link::Link;
use super::money::{Amount, ModelSpent};
use super::plans::CompiledPlan;
use super::settings::Exhausted;
use crate::principal::TenantId;

/// A run slot and reserved tokens, held until dropped.
///
/// Dropped without [`Lease::commit`] or [`Lease::waive`], the run counts as aborted and pays what
/// was seen or what was reserved, whichever is more: AgentOS reports no tokens for such runs.
#[derive(Debug)]
#[must_use = "dropping a lease ends the run and charges its reservation"]
pub struct Lease {
    /// One account per level, the tenant's first.
    accounts: Box<[Arc<Account>]>,
    state: Arc<State>,
    link: Arc<Link>,
    clock: Arc<dyn Clock>,
    plan: Arc<CompiledPlan>,
    prices: Arc<super::money::Prices>,
    tenant: TenantId,
    agent: Arc<str>,
    reserved: Amount,
    seen: Amount,
    seen_models: Vec<(Box<str>, u64, u64)>,
    settled: bool,
}

/// What a lease is made of.
pub(super) struct Ground {
    pub(super) accounts: Box<[Arc<Account>]>,
    pub(super) state: Arc<State>,
    pub(super) link: Arc<Link>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) plan: Arc<CompiledPlan>,
    pub(super) prices: Arc<super::money::Prices>,
    pub(super) tenant: TenantId,
}

/// Whether a run may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a run whose budget is used up may have to be cut"]
pub enum Growth {
    /// It may.
    GoOn,
    /// A budget is used up and the plan says to cut.
    Cut,
}

impl Lease {
    pub(super) fn new(ground: Ground, agent: &str, reserved: Amount) -> Self {
        let Ground { accounts, state, link, clock, plan, prices, tenant } = ground;
        Self {
            accounts,
            state,
            link,
            clock,
            plan,
            prices,
            tenant,
            agent: agent.into(),
            reserved,
            seen: Amount::default(),
            seen_models: Vec::new(),
            settled: false,
        }
    }

    /// How often the tenant's turn comes at busy endpoints.
    pub fn weight(&self) -> u32 {
        self.plan.weight
    }

    /// Tokens reserved now.
    pub fn reserved(&self) -> u64 {
        self.reserved.tokens
    }

    /// Notes what the run has used of each model in total so far; raises the reservation when that is more.
    ///
    /// Smaller totals than before change nothing, so a report may be repeated.
    pub fn grow<'a>(&mut self, models: impl Iterator<Item = ModelSpent<'a>>) -> Growth {
        let models: Vec<ModelSpent<'a>> = models.collect();
        let total = self.prices.sum(models.iter().copied());
        if total.tokens <= self.seen.tokens {
            return Growth::GoOn;
        }
        self.seen_models = models.iter().map(|spent| (spent.model.into(), spent.input, spent.output)).collect();
        self.seen = self.seen.max(total);
        let more = self.seen.max(self.reserved).minus(self.reserved);
        if self.settled || more.is_zero() {
            return Growth::GoOn;
        }
        self.reserved = self.reserved.plus(more);
        for account in &self.accounts {
            account.grow_run(more);
            self.link.dirty(account);
        }
        if self.plan.exhausted == Exhausted::Cut && self.overdrawn() { Growth::Cut } else { Growth::GoOn }
    }

    /// Charges what the run used of each model, never less than what was seen, and teaches the estimate.
    /// `at_least` tokens are charged where AgentOS did not report all of them.
    ///
    /// Only the first settlement counts. The slot stays taken until the lease is dropped.
    pub fn commit<'a>(&mut self, models: impl Iterator<Item = ModelSpent<'a>>, at_least: u64) {
        let models: Vec<ModelSpent<'a>> = models.collect();
        let sum = self.prices.sum(models.iter().copied());
        if sum.tokens >= self.seen.tokens {
            self.seen_models = models.iter().map(|spent| (spent.model.into(), spent.input, spent.output)).collect();
        }
        let used = sum.max(self.seen);
        // What is charged beyond the report has the price that was reserved for it, at most.
        let beyond = if at_least > used.tokens { self.reserved } else { Amount::default() };
        let used = used.max(Amount { tokens: at_least.min(beyond.tokens), micros: beyond.micros });
        if self.settle(used) {
            self.state.estimates.learn(&self.agent, used);
        }
    }

    /// Charges nothing: the run never reached a model (no endpoint, refused upstream).
    pub fn waive(&mut self) {
        self.settle(self.seen);
    }

    fn settle(&mut self, used: Amount) -> bool {
        let first = !std::mem::replace(&mut self.settled, true);
        if first {
            let now = self.link.now(&*self.clock);
            for account in &self.accounts {
                account.settle_run(self.reserved, used, now);
                self.link.dirty(account);
            }
            let seen = self.seen_models.iter();
            let models = seen.map(|(model, input, output)| ModelSpent { model, input: *input, output: *output });
            let known: u64 = self.seen_models.iter().map(|(_, input, output)| input.saturating_add(*output)).sum();
            let beyond = used.tokens.saturating_sub(known);
            let day = now / DAY_SECS;
            self.state.book.run(day, &self.tenant, &self.agent, models, beyond, &self.prices);
        }
        first
    }

    /// The states of the tenant's own budgets, as far as this instance knows them. Those of its parts are held at the
    /// start of runs only.
    pub fn budgets(&self) -> Vec<LimitState> {
        let Some(account) = self.accounts.first() else { return Vec::new() };
        let (reach, now) = (self.link.mode(&self.plan).reach(), self.link.now(&*self.clock));
        account.runs().ledger().states(&self.plan.tenant.budgets, Scope::Tenant, reach, now)
    }

    /// Says whether a budget has less than nothing left.
    fn overdrawn(&self) -> bool {
        self.budgets().iter().any(|state| state.used > state.limit)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.settle(self.seen.max(self.reserved));
        let mut waited = false;
        for account in &self.accounts {
            waited |= account.end_run();
            self.link.dirty(account);
        }
        if waited {
            self.state.ended.notify_waiters();
        }
    }
}
