//! Owns the ledger of one account: what was used in each period, and what is reserved.
//! Does not estimate runs (`estimate`) and reads no clock: callers pass wall-clock seconds.
//! Invariant: a reservation is never larger than what is left when it is made.

mod rolling;
#[cfg(test)]
mod tests;

use std::time::Duration;

use self::rolling::{DAYS, HOUR_SECS, HOURS, Rolling};
use super::calendar::{DAY_SECS, Day, Month};
use super::limit::{LimitState, Scope};
use super::money::Amount;
use super::settings::{Budget, Period, Unit};
use crate::store::Correction;

/// When a budget is only reserved, not used up: a run in flight may end at any moment.
const RESERVED_WAIT: Duration = Duration::from_secs(5);

/// Who counts with us, and how far we may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// This process counts for itself.
    Alone,
    /// Others count too; `others` says what they have.
    Among,
    /// Others count too, but are out of sight since the loss of this number: we may have one of so many parts of
    /// what was left.
    Cut { parts: u64, loss: u64 },
}

/// What was used and reserved by the runs of one account.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Ledger {
    latest: u64,
    day: Day,
    month: Month,
    in_day: Amount,
    in_month: Amount,
    reserved: Amount,
    rolling: Option<Box<Rolling>>,
    /// What others have in each period, corrections by hand included. Absent is nothing.
    others: Option<Box<Others>>,
}

/// By period: tokens and millionths.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Others {
    known: [(i64, i64); 4],
    /// Our own amounts when the loss of this number began.
    at_loss: Option<(u64, [Amount; 4])>,
}

/// A budget has nothing left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spent {
    pub(super) limit: LimitState,
    /// Until the period ends, or until a run in flight may give back its reservation.
    pub(super) wait: Duration,
}

/// The part of a period that is stated to a store: its number there, our amount in it with what is reserved, and when
/// it no longer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stated {
    pub(super) number: u64,
    pub(super) amount: Amount,
    pub(super) expires: u64,
}

// === impl Period, Budget, Unit ===

impl Period {
    /// Every period.
    pub(super) const ALL: [Self; 4] = [Self::Day, Self::Month, Self::Last24Hours, Self::Last30Days];

    const fn index(self) -> usize {
        match self {
            Self::Day => 0,
            Self::Month => 1,
            Self::Last24Hours => 2,
            Self::Last30Days => 3,
        }
    }

    pub(super) const fn is_rolling(self) -> bool {
        matches!(self, Self::Last24Hours | Self::Last30Days)
    }
}

impl Unit {
    pub(super) fn of(self, amount: Amount) -> u64 {
        match self {
            Self::Tokens => amount.tokens,
            Self::Money => amount.micros,
        }
    }
}

impl Budget {
    /// How it is called in headers.
    pub(super) const fn name(&self) -> &'static str {
        match (self.unit, self.period) {
            (Unit::Tokens, Period::Day) => "tokens_per_day",
            (Unit::Tokens, Period::Month) => "tokens_per_month",
            (Unit::Tokens, Period::Last24Hours) => "tokens_per_24_hours",
            (Unit::Tokens, Period::Last30Days) => "tokens_per_30_days",
            (Unit::Money, Period::Day) => "money_per_day",
            (Unit::Money, Period::Month) => "money_per_month",
            (Unit::Money, Period::Last24Hours) => "money_per_24_hours",
            (Unit::Money, Period::Last30Days) => "money_per_30_days",
        }
    }
}

// === impl Ledger ===

impl Ledger {
    /// Says which budget has nothing left, the one that takes longest to come back.
    pub(super) fn spent(&mut self, budgets: &[Budget], scope: Scope, reach: Reach, now: u64) -> Option<Spent> {
        self.turn(now);
        let states = budgets.iter().map(|budget| (budget, self.state(budget, scope, reach)));
        let empty = states.filter(|(_, state)| state.remaining == 0);
        let (budget, limit) = empty.max_by_key(|(_, state)| state.reset)?;
        let in_use = limit.used.saturating_sub(budget.unit.of(self.reserved));
        let wait = if in_use < limit.limit { RESERVED_WAIT } else { limit.reset };
        Some(Spent { limit, wait })
    }

    /// What is left of all budgets together; without a budget there is no end.
    ///
    /// Departure: a run is let in when anything is left, so that the tail of a budget is usable and
    /// a budget below the estimate is not a refusal for ever. What the run uses beyond its
    /// reservation is overspent, as for every run.
    pub(super) fn left(&mut self, budgets: &[Budget], reach: Reach, now: u64) -> Amount {
        self.turn(now);
        let mut left = Amount { tokens: u64::MAX, micros: u64::MAX };
        for budget in budgets {
            let remaining = self.state(budget, Scope::Tenant, reach).remaining;
            match budget.unit {
                Unit::Tokens => left.tokens = left.tokens.min(remaining),
                Unit::Money => left.micros = left.micros.min(remaining),
            }
        }
        left
    }

    /// Reserves for a run.
    pub(super) fn reserve(&mut self, amount: Amount) {
        self.reserved = self.reserved.plus(amount);
    }

    /// Gives a reservation back and charges what the run used to the current periods.
    pub(super) fn settle(&mut self, reserved: Amount, used: Amount, now: u64) {
        self.turn(now);
        self.reserved = self.reserved.minus(reserved);
        self.in_day = self.in_day.plus(used);
        self.in_month = self.in_month.plus(used);
        if let Some(rolling) = &mut self.rolling {
            rolling.charge(used, now);
        }
    }

    /// Notes what all others have in a period, in one unit.
    pub(super) fn know(&mut self, period: Period, unit: Unit, others: i64) {
        if others == 0 && self.others.is_none() {
            return;
        }
        if let Some(known) = self.others.get_or_insert_default().known.get_mut(period.index()) {
            match unit {
                Unit::Tokens => known.0 = others,
                Unit::Money => known.1 = others,
            }
        }
    }

    /// Corrects what is used in all periods by hand, in this process alone.
    pub(super) fn correct(&mut self, unit: Unit, correction: Correction, now: u64) {
        self.turn(now);
        for period in Period::ALL {
            let others = self.others(period, unit);
            let mine = i64::try_from(unit.of(self.mine(period, Reach::Alone))).unwrap_or(i64::MAX);
            let others = match correction {
                Correction::By(by) => others.saturating_add(by),
                Correction::To(sum) => sum.saturating_sub(mine),
            };
            self.know(period, unit, others);
        }
    }

    /// Keeps rings from now on: a plan has a rolling budget.
    pub(super) fn roll(&mut self) {
        self.rolling.get_or_insert_default();
    }

    /// The states of the budgets, in their order.
    pub(super) fn states(&mut self, budgets: &[Budget], scope: Scope, reach: Reach, now: u64) -> Vec<LimitState> {
        self.turn(now);
        budgets.iter().map(|budget| self.state(budget, scope, reach)).collect()
    }

    /// What a store is told about a period.
    pub(super) fn stated(&mut self, period: Period, now: u64) -> Stated {
        self.turn(now);
        let now = self.latest;
        let (number, expires) = match period {
            Period::Day => (self.day.number(), self.day.end()),
            Period::Month => (self.month.number(), self.month.end()),
            Period::Last24Hours => (now / HOUR_SECS, (now / HOUR_SECS + HOURS as u64) * HOUR_SECS),
            Period::Last30Days => (now / DAY_SECS, (now / DAY_SECS + DAYS as u64) * DAY_SECS),
        };
        Stated { number, amount: self.mine(period, Reach::Among).plus(self.reserved), expires }
    }

    /// Says whether anything was ever charged in rolling periods.
    pub(super) fn rolls(&self) -> bool {
        self.rolling.is_some()
    }

    /// Says whether money is in use.
    pub(super) fn has_money(&self) -> bool {
        self.in_month.micros > 0 || self.reserved.micros > 0
    }

    /// Says whether forgetting this ledger would change no decision.
    pub(super) fn is_idle(&self, now: u64) -> bool {
        let unused = self.in_month.is_zero() && self.others.is_none();
        let rolled = self.rolling.is_none() || now > self.latest.saturating_add(DAYS as u64 * DAY_SECS);
        self.reserved.is_zero() && (unused || Month::of(now) > self.month) && rolled
    }

    /// Begins new periods when the wall clock reached them.
    ///
    /// A clock that is set back does not begin a period a second time: up to one day back, time
    /// stands still; further back (the clock was wrong before) the earlier period is taken over
    /// with its counters.
    fn turn(&mut self, now: u64) {
        let forward = now >= self.latest;
        if !forward && self.latest - now <= DAY_SECS {
            return;
        }
        if forward {
            if Day::of(now) > self.day {
                self.in_day = Amount::default();
                self.forget(Period::Day);
            }
            if Month::of(now) > self.month {
                self.in_month = Amount::default();
                self.forget(Period::Month);
            }
            self.roll_on(now);
        }
        self.latest = now;
        self.day = Day::of(now);
        self.month = Month::of(now);
    }

    /// Empties the slots of hours and days that begin.
    fn roll_on(&mut self, now: u64) {
        let Some(rolling) = &mut self.rolling else { return };
        let ended = rolling.begin(self.latest, now);
        // What we stated about the slot that ended stands in the store beside our next one.
        if let Some(others) = &mut self.others {
            for (known, ended) in others.known.iter_mut().skip(2).zip(ended.map(signed)) {
                *known = (known.0.saturating_add(ended.0), known.1.saturating_add(ended.1));
            }
        }
    }

    fn forget(&mut self, period: Period) {
        if let Some(others) = &mut self.others {
            if let Some(known) = others.known.get_mut(period.index()) {
                *known = (0, 0);
            }
            others.at_loss = None;
            if others.known.iter().all(|known| *known == (0, 0)) {
                self.others = None;
            }
        }
    }

    /// What this process used in a period. Among others, a rolling period is the current slot: the others' sum has
    /// the earlier ones.
    fn mine(&self, period: Period, reach: Reach) -> Amount {
        match (period, &self.rolling, reach) {
            (Period::Day, _, _) => self.in_day,
            (Period::Month, _, _) => self.in_month,
            (Period::Last24Hours, Some(rolling), Reach::Alone) => rolling.hours.sum(),
            (Period::Last30Days, Some(rolling), Reach::Alone) => rolling.days.sum(),
            (Period::Last24Hours, Some(rolling), Reach::Among | Reach::Cut { .. }) => {
                rolling.hours.slot(self.latest / HOUR_SECS)
            }
            (Period::Last30Days, Some(rolling), Reach::Among | Reach::Cut { .. }) => {
                rolling.days.slot(self.latest / DAY_SECS)
            }
            (Period::Last24Hours | Period::Last30Days, None, _) => Amount::default(),
        }
    }

    fn others(&self, period: Period, unit: Unit) -> i64 {
        let known = self.others.as_ref().and_then(|others| others.known.get(period.index()).copied());
        let (tokens, micros) = known.unwrap_or_default();
        match unit {
            Unit::Tokens => tokens,
            Unit::Money => micros,
        }
    }

    /// Remembers what we had when the store was lost.
    pub(super) fn lose(&mut self, loss: u64, now: u64) {
        self.turn(now);
        if self.others.as_ref().and_then(|others| others.at_loss).is_some_and(|(known, _)| known == loss) {
            return;
        }
        let reach = Reach::Cut { parts: 1, loss };
        let had = Period::ALL.map(|period| self.mine(period, reach).plus(self.reserved));
        self.others.get_or_insert_default().at_loss = Some((loss, had));
    }

    fn state(&self, budget: &Budget, scope: Scope, reach: Reach) -> LimitState {
        let (period, unit) = (budget.period, budget.unit);
        let mine = unit.of(self.mine(period, reach).plus(self.reserved));
        let others = self.others(period, unit);
        let used = u64::try_from(i128::from(mine).saturating_add(i128::from(others)).max(0)).unwrap_or(u64::MAX);
        let room = i128::from(budget.limit) - i128::from(mine) - i128::from(others);
        let room = match reach {
            Reach::Alone | Reach::Among => room,
            Reach::Cut { parts, loss } => {
                let at_loss =
                    self.others.as_ref().and_then(|others| others.at_loss).filter(|(known, _)| *known == loss);
                let had = at_loss.and_then(|(_, had)| had.get(period.index()).copied()).unwrap_or_default();
                let since = i128::from(mine) - i128::from(unit.of(had));
                (room + since) / i128::from(parts.max(1)) - since
            }
        };
        let (window, end) = self.window(period);
        LimitState {
            scope,
            name: budget.name(),
            limit: budget.limit,
            used,
            remaining: u64::try_from(room.max(0)).unwrap_or(u64::MAX),
            window: Duration::from_secs(window),
            reset: Duration::from_secs(end.saturating_sub(self.latest)),
        }
    }

    /// Length of a period, and when it ends; a rolling one gives back at the end of each slot.
    fn window(&self, period: Period) -> (u64, u64) {
        let now = self.latest;
        match period {
            Period::Day => (DAY_SECS, self.day.end()),
            Period::Month => (self.month.end().saturating_sub(self.month.start()), self.month.end()),
            Period::Last24Hours => (DAY_SECS, (now / HOUR_SECS + 1) * HOUR_SECS),
            Period::Last30Days => (30 * DAY_SECS, (now / DAY_SECS + 1) * DAY_SECS),
        }
    }
}

fn signed(amount: Amount) -> (i64, i64) {
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    (signed(amount.tokens), signed(amount.micros))
}
