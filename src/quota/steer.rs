//! Owns what operators see and steer: a tenant's limits and usage, resets and grants.
//! Does not speak HTTP (`admin`).
//! Invariant: a correction changes counters, never limits, and ends with its period.

use std::sync::Arc;

use super::account::About;
use super::calendar::DAY_SECS;
use super::levels::{Level, Levels};
use super::link::Mode;
use super::plans::CompiledPlan;
use super::settings::{Period, Unit};
use super::{Holder, LimitState, NoPlan, Quota, Scope, TenantPart};
use crate::principal::{Principal, PrincipalKind, TenantId};
use crate::store::{Cells, Correction, StoreError, UsageRow};

/// What an operator corrects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Correct {
    /// Everything that is used counts as unused, and every bucket is full.
    Reset,
    /// So much more may be used in the current periods.
    Grant(Unit, u64),
}

/// A tenant's limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantUsage {
    /// The tenant.
    pub tenant: TenantId,
    /// Its plan.
    pub plan: Arc<str>,
    /// What the plan limits.
    pub limits: Vec<LimitState>,
    /// Runs in flight in this process.
    pub runs_in_flight: u32,
    /// Whether the numbers are those of all instances.
    pub shared: bool,
    /// Instances seen last, this one included.
    pub instances: u64,
}

impl Quota {
    /// Shows a tenant's limits; `plan` where its credentials choose one.
    ///
    /// # Errors
    /// [`NoPlan`].
    pub async fn tenant(&self, tenant: &TenantId, plan: Option<&str>) -> Result<TenantUsage, NoPlan> {
        let (plan, levels) = self.whole(tenant, plan)?;
        let limits = self.states(&levels, plan).await;
        let runs_in_flight = levels.iter().map(|level| level.account.runs_in_flight()).sum();
        let shared = matches!(self.link.mode(plan), Mode::Shared { .. });
        let instances = self.link.instances();
        Ok(TenantUsage { tenant: tenant.clone(), plan: plan.name.clone(), limits, runs_in_flight, shared, instances })
    }

    /// Corrects what a tenant has used as a whole.
    ///
    /// # Errors
    /// [`NoPlan`]; the store's error where limits are shared, in which case nothing or a part has changed.
    pub async fn correct(
        &self,
        tenant: &TenantId,
        plan: Option<&str>,
        correct: Correct,
    ) -> Result<Result<(), StoreError>, NoPlan> {
        let (plan, levels) = self.whole(tenant, plan)?;
        let Mode::Shared { .. } = self.link.mode(plan) else {
            self.correct_here(&levels, correct);
            return Ok(Ok(()));
        };
        let corrected = self.correct_store(&levels, correct).await;
        if corrected.is_ok() {
            self.link.state(&levels.accounts(), &*self.clock).await;
        }
        Ok(corrected)
    }

    /// Reads usage of days, of one tenant or of all.
    ///
    /// # Errors
    /// The store's.
    pub async fn export(&self, tenant: Option<&TenantId>, from: u32, to: u32) -> Result<Vec<UsageRow>, StoreError> {
        // What is not written yet is written first, so that an export is never behind what was charged here.
        super::upkeep::write(&self.state, &self.link).await?;
        self.link.store.usage(tenant.map(TenantId::as_str), from, to).await
    }

    /// Days since 1970-01-01.
    pub fn today(&self) -> u32 {
        u32::try_from(self.link.now(&*self.clock) / DAY_SECS).unwrap_or(u32::MAX)
    }

    fn whole(&self, tenant: &TenantId, plan: Option<&str>) -> Result<(&Arc<CompiledPlan>, Levels<'_>), NoPlan> {
        let stands_for = Principal::new(
            PrincipalKind::Service,
            "operator",
            tenant.clone(),
            Vec::new(),
            Vec::new(),
            plan.map(Arc::from),
            None,
        );
        let chosen = self.plans.choose(&stands_for)?;
        let plan_name = chosen.by_credential.then(|| chosen.plan.name.clone());
        let holder = Holder { tenant: tenant.clone(), plan: plan_name, part: TenantPart::Whole };
        let account = self.state.account(holder, &self.link, &*self.clock);
        let level = Level { scope: Scope::Tenant, limits: &chosen.plan.tenant, account };
        Ok((chosen.plan, Levels::new([Some(level), None, None, None])))
    }

    fn correct_here(&self, levels: &Levels<'_>, correct: Correct) {
        let now = self.link.now(&*self.clock);
        for level in levels.iter() {
            let mut runs = level.account.runs();
            for unit in [Unit::Tokens, Unit::Money] {
                match correct {
                    Correct::Reset => runs.ledger().correct(unit, Correction::To(0), now),
                    Correct::Grant(granted, amount) if granted == unit => {
                        runs.ledger().correct(unit, Correction::By(less(amount)), now);
                    }
                    Correct::Grant(..) => {}
                }
            }
            drop(runs);
            if correct == Correct::Reset {
                level.account.rates().refill();
            }
        }
    }

    async fn correct_store(&self, levels: &Levels<'_>, correct: Correct) -> Result<(), StoreError> {
        let now = self.link.now(&*self.clock);
        for level in levels.iter() {
            let Some(shared) = &level.account.shared else { continue };
            for period in Period::ALL {
                for unit in [Unit::Tokens, Unit::Money] {
                    let correction = match correct {
                        Correct::Reset => Correction::To(0),
                        Correct::Grant(granted, amount) if granted == unit => Correction::By(less(amount)),
                        Correct::Grant(..) => continue,
                    };
                    let expires = level.account.runs().ledger().stated(period, now).expires;
                    self.link.store.correct(shared.sum(About::Budget(period, unit)), correction, expires).await?;
                }
            }
            if correct == Correct::Reset {
                let fill = level.limits.rates.iter().map(|rate| {
                    let (interval_us, depth_us) = rate.gcra.in_us();
                    let window = u64::try_from(rate.window.as_nanos()).unwrap_or(u64::MAX);
                    let want = less(rate.gcra.burst());
                    Cells { key: shared.bucket(window), interval_us, depth_us, want }
                });
                self.link.store.cells(fill.collect()).await?;
                level.account.rates().refill();
            }
        }
        Ok(())
    }
}

fn less(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX).saturating_neg()
}
