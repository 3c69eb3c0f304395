//! Owns the counters of one account: request rates, runs in flight and the token ledger.
//! Does not know which plan applies (`plans`): every call brings the limits that it is held against,
//! so counters outlive a reload that changes them.
//! Lock order: `rates` and `runs` are never held together.

use std::time::Duration;

use parking_lot::Mutex;

use super::budget::{Ledger, Spent};
use super::limit::LimitState;
use super::plans::{CompiledPlan, NamedRate};
use super::settings::RATES_MAX;

/// How long a caller is told to wait for a run slot: one can be free at any moment.
const RUN_WAIT: Duration = Duration::from_secs(1);

/// The counters of one account.
#[derive(Debug, Default)]
pub(super) struct Account {
    rates: Mutex<Cells>,
    runs: Mutex<Runs>,
}

/// One bucket per rate of the plan, in its order.
pub(super) type Cells = [Cell; RATES_MAX];

/// A bucket; `window` says which rate it belongs to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cell {
    window: Duration,
    full_at: u64,
}

#[derive(Debug, Default)]
struct Runs {
    in_flight: u32,
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

impl Account {
    /// Spends one request from every rate, or from none.
    ///
    /// Returns the buckets after it, or the rate that makes the caller wait longest.
    pub(super) fn spend(&self, rates: &[NamedRate], now: u64) -> Result<Cells, (LimitState, Duration)> {
        let mut cells = self.rates.lock();
        let mut next = *cells;
        let mut longest: Option<(LimitState, u64)> = None;
        for (rate, cell) in rates.iter().zip(&mut next) {
            if cell.window != rate.window {
                *cell = Cell { window: rate.window, full_at: 0 };
            }
            match rate.gcra.take(cell.full_at, now) {
                Ok(full_at) => cell.full_at = full_at,
                Err(wait) if longest.is_none_or(|(_, longest)| wait > longest) => {
                    longest = Some((rate.state(cell.full_at, now), wait));
                }
                Err(_) => {}
            }
        }
        match longest {
            Some((limit, wait)) => Err((limit, Duration::from_nanos(wait))),
            None => {
                *cells = next;
                Ok(next)
            }
        }
    }

    /// The states of the rates.
    pub(super) fn rate_states(rates: &[NamedRate], cells: &Cells, now: u64) -> Vec<LimitState> {
        let full_at = |rate: &NamedRate, cell: &Cell| if cell.window == rate.window { cell.full_at } else { 0 };
        rates.iter().zip(cells).map(|(rate, cell)| rate.state(full_at(rate, cell), now)).collect()
    }

    /// Takes a run slot and reserves tokens, or neither. Returns the tokens reserved.
    pub(super) fn start_run(&self, plan: &CompiledPlan, estimate: u64, now: u64) -> Result<u64, NoRun> {
        let mut runs = self.runs.lock();
        let slots = slots(plan, runs.in_flight).filter(|slots| slots.remaining == 0);
        if let Some(slots) = slots {
            return Err(NoRun::Slots(slots, RUN_WAIT));
        }
        let reserved = runs.ledger.reserve(plan.budgets, estimate, now).map_err(NoRun::Budget)?;
        runs.in_flight = runs.in_flight.saturating_add(1);
        Ok(reserved)
    }

    /// Reserves more tokens for a run in flight.
    pub(super) fn grow_run(&self, more: u64) {
        self.runs.lock().ledger.grow(more);
    }

    /// Replaces a run's reservation by what it used.
    pub(super) fn settle_run(&self, reserved: u64, used: u64, now: u64) {
        self.runs.lock().ledger.settle(reserved, used, now);
    }

    /// Frees a run slot.
    pub(super) fn end_run(&self) {
        let mut runs = self.runs.lock();
        debug_assert!(runs.in_flight > 0, "every slot is freed once");
        runs.in_flight = runs.in_flight.saturating_sub(1);
    }

    /// Runs in flight.
    pub(super) fn runs_in_flight(&self) -> u32 {
        self.runs.lock().in_flight
    }

    /// The states of everything that the plan limits.
    pub(super) fn states(&self, plan: &CompiledPlan, now: u64, wall_secs: u64) -> Vec<LimitState> {
        let cells = *self.rates.lock();
        let mut states = Self::rate_states(&plan.rates, &cells, now);
        let mut runs = self.runs.lock();
        states.extend(slots(plan, runs.in_flight));
        states.extend(runs.ledger.states(plan.budgets, wall_secs));
        states
    }

    /// Says whether forgetting this account would change no decision.
    pub(super) fn is_idle(&self, now: u64, wall_secs: u64) -> bool {
        let rested = self.rates.lock().iter().all(|cell| cell.full_at <= now);
        let runs = self.runs.lock();
        rested && runs.in_flight == 0 && runs.ledger.is_idle(wall_secs)
    }
}

fn slots(plan: &CompiledPlan, in_flight: u32) -> Option<LimitState> {
    let limit = plan.concurrent_runs?;
    Some(LimitState {
        name: "concurrent_runs",
        limit: u64::from(limit),
        remaining: u64::from(limit.saturating_sub(in_flight)),
        window: Duration::ZERO,
        reset: Duration::ZERO,
    })
}
