//! Owns the token ledger of one account: what was used today and this month, and what is reserved.
//! Does not estimate runs (`estimate`) and reads no clock: callers pass wall-clock seconds.
//! Invariant: a reservation is never larger than what is left when it is made.

use std::time::Duration;

use super::calendar::{DAY_SECS, Day, Month};
use super::limit::LimitState;

/// The budgets of a plan; `None` means unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Budgets {
    pub(super) per_day: Option<u64>,
    pub(super) per_month: Option<u64>,
}

/// Tokens used and reserved by the runs of one account.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Ledger {
    latest: u64,
    day: Day,
    month: Month,
    used_in_day: u64,
    used_in_month: u64,
    reserved: u64,
}

/// A budget has nothing left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spent {
    pub(super) limit: LimitState,
    /// Until the period ends, or until a run in flight may give back its reservation.
    pub(super) wait: Duration,
}

/// When a budget is only reserved, not used up: a run in flight may end at any moment.
const RESERVED_WAIT: Duration = Duration::from_secs(5);

impl Ledger {
    /// Reserves `estimate` tokens, or all that is left when that is less.
    ///
    /// Departure: a run is let in when anything is left, so that the tail of a budget is usable and
    /// a budget below the estimate is not a refusal for ever. What the run uses beyond its
    /// reservation is overspent, as for every run.
    pub(super) fn reserve(&mut self, budgets: Budgets, estimate: u64, now: u64) -> Result<u64, Spent> {
        self.turn(now);
        let spent = self.limits(budgets, now).filter(|limit| limit.remaining == 0).max_by_key(|limit| limit.reset);
        if let Some(limit) = spent {
            let used = if limit.name == PER_DAY { self.used_in_day } else { self.used_in_month };
            let wait = if used < limit.limit { RESERVED_WAIT } else { limit.reset };
            return Err(Spent { limit, wait });
        }
        let left = self.limits(budgets, now).map(|limit| limit.remaining).min().unwrap_or(u64::MAX);
        let reserved = estimate.min(left);
        self.reserved = self.reserved.saturating_add(reserved);
        Ok(reserved)
    }

    /// Reserves more for a run in flight, which is known to have used it.
    pub(super) fn grow(&mut self, more: u64) {
        self.reserved = self.reserved.saturating_add(more);
    }

    /// Gives a reservation back and charges what the run used to the current day and month.
    pub(super) fn settle(&mut self, reserved: u64, used: u64, now: u64) {
        self.turn(now);
        self.reserved = self.reserved.saturating_sub(reserved);
        self.used_in_day = self.used_in_day.saturating_add(used);
        self.used_in_month = self.used_in_month.saturating_add(used);
    }

    /// The states of the budgets that the plan has, days first.
    pub(super) fn states(&mut self, budgets: Budgets, now: u64) -> impl Iterator<Item = LimitState> {
        self.turn(now);
        self.limits(budgets, now)
    }

    /// Says whether forgetting this ledger would change no decision.
    pub(super) fn is_idle(&self, now: u64) -> bool {
        self.reserved == 0 && (self.used_in_month == 0 || Month::of(now) > self.month)
    }

    /// Begins a new day or month when the wall clock reached one.
    ///
    /// A clock that is set back does not begin a period a second time: up to one day back, time
    /// stands still; further back (the clock was wrong before) the earlier period is taken over
    /// with its counters.
    fn turn(&mut self, now: u64) {
        if now >= self.latest {
            if Day::of(now) > self.day {
                self.used_in_day = 0;
            }
            if Month::of(now) > self.month {
                self.used_in_month = 0;
            }
        } else if self.latest - now <= DAY_SECS {
            return;
        }
        self.latest = now;
        self.day = Day::of(now);
        self.month = Month::of(now);
    }

    fn limits(&self, budgets: Budgets, now: u64) -> impl Iterator<Item = LimitState> + use<> {
        let state = |name, limit: u64, used: u64, start: u64, end: u64| LimitState {
            name,
            limit,
            remaining: limit.saturating_sub(used.saturating_add(self.reserved)),
            window: Duration::from_secs(end.saturating_sub(start)),
            reset: Duration::from_secs(end.saturating_sub(now)),
        };
        let (day_end, month) = (self.day.end(), self.month);
        let per_day = budgets
            .per_day
            .map(|limit| state(PER_DAY, limit, self.used_in_day, day_end.saturating_sub(DAY_SECS), day_end));
        let per_month =
            budgets.per_month.map(|limit| state(PER_MONTH, limit, self.used_in_month, month.start(), month.end()));
        per_day.into_iter().chain(per_month)
    }
}

const PER_DAY: &str = "tokens_per_day";
const PER_MONTH: &str = "tokens_per_month";

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_735_646_400; // 2024-12-31T12:00:00Z
    const MIDNIGHT: u64 = 1_735_689_600; // 2025-01-01T00:00:00Z

    fn budgets(per_day: u64, per_month: u64) -> Budgets {
        Budgets { per_day: Some(per_day), per_month: Some(per_month) }
    }

    fn used(ledger: &mut Ledger, now: u64) -> (u64, u64) {
        let states: Vec<_> = ledger.states(budgets(1_000, 1_000), now).map(|s| 1_000 - s.remaining).collect();
        match states.as_slice() {
            [day, month] => (*day, *month),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_reservation_takes_no_more_than_is_left() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.reserve(budgets(800, 10_000), 500, NOON), Ok(500));
        assert_eq!(ledger.reserve(budgets(800, 10_000), 500, NOON), Ok(300));
        let spent = ledger.reserve(budgets(800, 10_000), 500, NOON).expect_err("all is reserved");
        assert_eq!((spent.limit.name, spent.limit.remaining, spent.wait), (PER_DAY, 0, RESERVED_WAIT));
        ledger.settle(500, 20, NOON);
        assert_eq!(ledger.reserve(budgets(800, 10_000), 500, NOON), Ok(480));
    }

    #[test]
    fn a_spent_budget_names_the_period_that_ends_last() {
        let mut ledger = Ledger::default();
        ledger.settle(0, 900, NOON - 86_400);
        let spent = ledger.reserve(budgets(900, 900), 1, NOON - 86_400).expect_err("both are spent");
        assert_eq!((spent.limit.name, spent.wait), (PER_MONTH, Duration::from_secs(MIDNIGHT - NOON + 86_400)));
        let spent = ledger.reserve(budgets(900, 1_000), 1, NOON - 86_400).expect_err("the day is spent");
        assert_eq!((spent.limit.name, spent.wait), (PER_DAY, Duration::from_secs(MIDNIGHT - NOON)));
    }

    #[test]
    fn midnight_begins_a_day_and_a_month_and_keeps_reservations() {
        let mut ledger = Ledger::default();
        ledger.settle(0, 100, NOON - 86_400);
        ledger.settle(0, 10, NOON);
        assert_eq!(used(&mut ledger, NOON), (10, 110));
        assert_eq!(ledger.reserve(budgets(1_000, 1_000), 7, NOON), Ok(7));
        assert_eq!(used(&mut ledger, MIDNIGHT), (7, 7));
        ledger.settle(7, 9, MIDNIGHT);
        assert_eq!(used(&mut ledger, MIDNIGHT), (9, 9));
    }

    #[test]
    fn a_clock_that_jumps_back_gives_no_budget_back() {
        let mut ledger = Ledger::default();
        ledger.settle(0, 5, MIDNIGHT);
        for back in [MIDNIGHT - 1, MIDNIGHT - 86_400, MIDNIGHT - 90 * 86_400, 0] {
            assert_eq!(used(&mut ledger, back), (5, 5), "{back}");
        }
    }

    #[test]
    fn a_step_back_across_midnight_does_not_begin_the_day_twice() {
        let mut ledger = Ledger::default();
        ledger.settle(0, 5, MIDNIGHT + 1);
        ledger.settle(0, 6, MIDNIGHT - 2);
        assert_eq!(used(&mut ledger, MIDNIGHT), (11, 11));
    }

    #[test]
    fn a_wrong_future_clock_does_not_freeze_the_budget_once_corrected() {
        let mut ledger = Ledger::default();
        ledger.settle(0, 5, NOON + 365 * 86_400);
        ledger.settle(0, 6, NOON);
        assert_eq!(used(&mut ledger, NOON), (11, 11));
        assert_eq!(used(&mut ledger, MIDNIGHT), (0, 0));
    }

    #[test]
    fn unlimited_reserves_the_estimate_and_never_refuses() {
        let mut ledger = Ledger::default();
        ledger.settle(0, u64::MAX, NOON);
        assert_eq!(ledger.reserve(Budgets::default(), 500, NOON), Ok(500));
    }
}
