//! Owns the counters of one account: request rates, runs in flight and the ledger.
//! Does not know which plan applies (`plans`): every call brings the limits that it is held against,
//! so counters outlive a reload that changes them.
//! Lock order: accounts in the order of their scopes; `rates` and `runs` are never held together.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use super::budget::{Ledger, Reach, Spent, Stated};
use super::limit::{LimitState, Scope};
use super::money::Amount;
use super::plans::Limits;
use super::rates::Rates;
use super::settings::{Period, Unit};
use crate::store::{Part, Share};

/// How long a caller is told to wait for a run slot: one can be free at any moment.
pub(super) const RUN_WAIT: Duration = Duration::from_secs(1);
/// How long a slot counts whose instance says nothing more.
pub(super) const SLOT_SECS: u64 = 20;
/// Runs that may wait for a slot of one account.
const WAITING_MAX: u32 = 1_000;

/// The counters of one account.
#[derive(Debug, Default)]
pub(super) struct Account {
    rates: Mutex<Rates>,
    runs: Mutex<Runs>,
    /// Absent where nothing is shared.
    pub(super) shared: Option<Box<Shared>>,
}

/// What a shared account is called, and what the upkeep knows about it.
#[derive(Debug)]
pub(super) struct Shared {
    /// Begins every key of the account; the tenant stands in braces.
    pub(super) prefix: Box<str>,
    /// Which of the locks guards what is said to the store about this tenant.
    pub(super) stripe: usize,
    /// Something is to be said to the store.
    pub(super) dirty: AtomicBool,
    /// Leased cells run low.
    pub(super) low: AtomicBool,
    /// Leased cells are looked at now and then.
    pub(super) stocked: AtomicBool,
    /// Slots are said again now and then.
    pub(super) active: AtomicBool,
}

#[derive(Debug, Default)]
pub(super) struct Runs {
    in_flight: u32,
    waiting: u32,
    ledger: Ledger,
}

/// Why a run may not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRun {
    /// All slots are taken.
    Slots(LimitState, Duration),
    /// A budget has nothing left.
    Budget(Spent),
}

/// What a part of the store's is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    Slots,
    Budget(Period, Unit),
}

// === impl Shared ===

impl Shared {
    pub(super) fn new(prefix: String, stripe: usize) -> Self {
        let flag = || AtomicBool::new(false);
        let prefix = prefix.into_boxed_str();
        Self { prefix, stripe, dirty: flag(), low: flag(), stocked: flag(), active: flag() }
    }

    /// Sets a mark; `true` when it was not set before.
    pub(super) fn mark(flag: &AtomicBool) -> bool {
        !flag.swap(true, Ordering::AcqRel)
    }

    /// The key of a bucket.
    pub(super) fn bucket(&self, window: u64) -> String {
        format!("{}r:{window}", self.prefix)
    }

    /// The key of a sum.
    pub(super) fn sum(&self, about: About) -> String {
        let name = match about {
            About::Slots => "runs",
            About::Budget(Period::Day, Unit::Tokens) => "td",
            About::Budget(Period::Month, Unit::Tokens) => "tm",
            About::Budget(Period::Last24Hours, Unit::Tokens) => "th",
            About::Budget(Period::Last30Days, Unit::Tokens) => "tr",
            About::Budget(Period::Day, Unit::Money) => "md",
            About::Budget(Period::Month, Unit::Money) => "mm",
            About::Budget(Period::Last24Hours, Unit::Money) => "mh",
            About::Budget(Period::Last30Days, Unit::Money) => "mr",
        };
        format!("{}{name}", self.prefix)
    }
}

// === impl Account ===

impl Account {
    /// An account that is counted in a store too.
    pub(super) fn shared(shared: Shared) -> Self {
        Self { shared: Some(Box::new(shared)), ..Self::default() }
    }

    pub(super) fn rates(&self) -> MutexGuard<'_, Rates> {
        self.rates.lock()
    }

    pub(super) fn runs(&self) -> MutexGuard<'_, Runs> {
        self.runs.lock()
    }

    /// Reserves more for a run in flight.
    pub(super) fn grow_run(&self, more: Amount) {
        self.runs.lock().ledger.reserve(more);
    }

    /// Replaces a run's reservation by what it used.
    pub(super) fn settle_run(&self, reserved: Amount, used: Amount, now: u64) {
        self.runs.lock().ledger.settle(reserved, used, now);
    }

    /// Frees a run slot; says whether somebody waits for one.
    pub(super) fn end_run(&self) -> bool {
        let mut runs = self.runs.lock();
        debug_assert!(runs.in_flight > 0, "every slot is freed once");
        runs.in_flight = runs.in_flight.saturating_sub(1);
        runs.waiting > 0
    }

    /// Runs in flight.
    pub(super) fn runs_in_flight(&self) -> u32 {
        self.runs.lock().in_flight
    }

    /// Joins those who wait for a slot; `false` when there are too many. They must leave again.
    pub(super) fn begin_waiting(&self) -> bool {
        let mut runs = self.runs.lock();
        let room = runs.waiting < WAITING_MAX;
        runs.waiting += u32::from(room);
        room
    }

    pub(super) fn end_waiting(&self) {
        let mut runs = self.runs.lock();
        runs.waiting = runs.waiting.saturating_sub(1);
    }

    /// Says whether forgetting this account would change no decision.
    pub(super) fn is_idle(&self, now: u64, wall_secs: u64) -> bool {
        let rested = self.rates.lock().is_idle(now);
        let runs = self.runs.lock();
        rested && runs.in_flight == 0 && runs.waiting == 0 && runs.ledger.is_idle(wall_secs)
    }
}

// === impl Runs ===

impl Runs {
    pub(super) fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    /// Says why a run may not start, if so.
    pub(super) fn look(&mut self, limits: &Limits, scope: Scope, reach: Reach, now: u64) -> Option<NoRun> {
        if let Reach::Cut { loss, .. } = reach {
            self.ledger.lose(loss, now);
        }
        if limits.rolls {
            self.ledger.roll();
        }
        if let Some(slots) = self.slots(limits, scope, reach).filter(|slots| slots.remaining == 0) {
            return Some(NoRun::Slots(slots, RUN_WAIT));
        }
        self.ledger.spent(&limits.budgets, scope, reach, now).map(NoRun::Budget)
    }

    /// What is left of the budgets.
    pub(super) fn left(&mut self, limits: &Limits, reach: Reach, now: u64) -> Amount {
        self.ledger.left(&limits.budgets, reach, now)
    }

    /// Begins a run.
    pub(super) fn begin(&mut self, reserved: Amount) {
        self.in_flight = self.in_flight.saturating_add(1);
        self.ledger.reserve(reserved);
    }

    /// The states of slots and budgets.
    pub(super) fn states(&mut self, limits: &Limits, scope: Scope, reach: Reach, now: u64) -> Vec<LimitState> {
        let slots = self.slots(limits, scope, reach);
        slots.into_iter().chain(self.ledger.states(&limits.budgets, scope, reach, now)).collect()
    }

    /// The parts that a run with this estimate needs of every sum that is limited.
    pub(super) fn wants(
        &mut self,
        of: &Shared,
        limits: &Limits,
        estimate: Amount,
        instance: &str,
        now: u64,
    ) -> Vec<(About, Part)> {
        if limits.rolls {
            self.ledger.roll();
        }
        let mut parts = Vec::with_capacity(1 + limits.budgets.len());
        if let Some(cap) = limits.concurrent_runs {
            let part = Part { want: 1, cap: Some(i64::from(cap)), ..self.slot_part(of, instance, now) };
            parts.push((About::Slots, part));
        }
        for budget in &limits.budgets {
            let about = About::Budget(budget.period, budget.unit);
            let part = Part {
                // A run that is expected to cost nothing still needs something to be left.
                want: budget.unit.of(estimate).max(1),
                cap: Some(i64::try_from(budget.limit).unwrap_or(i64::MAX)),
                ..self.budget_part(of, budget.period, budget.unit, instance, now)
            };
            parts.push((about, part));
        }
        parts
    }

    /// Our parts of every sum as they are.
    pub(super) fn stated(&mut self, of: &Shared, instance: &str, now: u64) -> Vec<(About, Part)> {
        let mut parts = vec![(About::Slots, self.slot_part(of, instance, now))];
        let (rolls, money) = (self.ledger.rolls(), self.ledger.has_money());
        for period in Period::ALL {
            if matches!(period, Period::Last24Hours | Period::Last30Days) && !rolls {
                continue;
            }
            for unit in [Unit::Tokens, Unit::Money] {
                if unit == Unit::Tokens || money {
                    parts.push((About::Budget(period, unit), self.budget_part(of, period, unit, instance, now)));
                }
            }
        }
        parts
    }

    /// Notes what others have of a sum.
    pub(super) fn know(&mut self, about: About, share: Share) {
        if let About::Budget(period, unit) = about {
            self.ledger.know(period, unit, share.others);
        }
    }

    fn slot_part(&self, of: &Shared, instance: &str, now: u64) -> Part {
        let (key, part) = (of.sum(About::Slots), instance.to_owned());
        Part { key, part, base: i64::from(self.in_flight), want: 0, cap: None, expires: now.saturating_add(SLOT_SECS) }
    }

    fn budget_part(&mut self, of: &Shared, period: Period, unit: Unit, instance: &str, now: u64) -> Part {
        let Stated { number, amount, expires } = self.ledger.stated(period, now);
        let (key, part) = (of.sum(About::Budget(period, unit)), format!("{instance}:{number}"));
        let base = i64::try_from(unit.of(amount)).unwrap_or(i64::MAX);
        Part { key, part, base, want: 0, cap: None, expires }
    }

    fn slots(&self, limits: &Limits, scope: Scope, reach: Reach) -> Option<LimitState> {
        let limit = limits.concurrent_runs?;
        let parts = match reach {
            Reach::Alone | Reach::Among => 1,
            Reach::Cut { parts, .. } => u32::try_from(parts).unwrap_or(u32::MAX).max(1),
        };
        let ours = if limit == 0 { 0 } else { (limit / parts).max(1) };
        Some(slots(scope, limit, self.in_flight, ours))
    }
}

/// The state of run slots.
pub(super) fn slots(scope: Scope, limit: u32, in_flight: u32, ours: u32) -> LimitState {
    LimitState {
        scope,
        name: "concurrent_runs",
        limit: u64::from(limit),
        used: u64::from(in_flight),
        remaining: u64::from(ours.saturating_sub(in_flight)),
        window: Duration::ZERO,
        reset: Duration::ZERO,
    }
}
