//! Owns what was used hour by hour and day by day, for budgets of rolling periods.
//! Does not know limits (`budget`) and reads no clock.
//! Invariant: a period's slots cover no less than the period, so that it never gives back early.

use super::super::calendar::DAY_SECS;
use super::super::money::Amount;

pub(super) const HOUR_SECS: u64 = 3_600;
/// The hours that a rolling day touches, the current one included: never fewer than 24 whole ones.
pub(super) const HOURS: usize = 25;
/// The same for 30 days.
pub(super) const DAYS: usize = 31;

/// The slots of both periods.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Rolling {
    pub(super) hours: Ring<HOURS>,
    pub(super) days: Ring<DAYS>,
}

/// The latest slots, by their number since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ring<const SLOTS: usize>([Amount; SLOTS]);

// === impl Rolling ===

impl Rolling {
    /// Charges the current slots.
    pub(super) fn charge(&mut self, used: Amount, now: u64) {
        self.hours.charge(now / HOUR_SECS, used);
        self.days.charge(now / DAY_SECS, used);
    }

    /// Begins the slots from one moment to a later one; returns what the hour and the day that ended hold.
    pub(super) fn begin(&mut self, from: u64, to: u64) -> [Amount; 2] {
        let hour = self.hours.begin(from / HOUR_SECS, to / HOUR_SECS);
        [hour, self.days.begin(from / DAY_SECS, to / DAY_SECS)]
    }
}

// === impl Ring ===

impl<const SLOTS: usize> Default for Ring<SLOTS> {
    fn default() -> Self {
        Self([Amount::default(); SLOTS])
    }
}

impl<const SLOTS: usize> Ring<SLOTS> {
    /// What a slot holds.
    pub(super) fn slot(&self, number: u64) -> Amount {
        self.0.get(Self::at(number)).copied().unwrap_or_default()
    }

    /// What all slots hold.
    pub(super) fn sum(&self) -> Amount {
        self.0.iter().fold(Amount::default(), |sum, slot| sum.plus(*slot))
    }

    fn charge(&mut self, number: u64, used: Amount) {
        if let Some(slot) = self.0.get_mut(Self::at(number)) {
            *slot = slot.plus(used);
        }
    }

    fn begin(&mut self, from: u64, to: u64) -> Amount {
        let ended = if to > from { self.slot(from) } else { Amount::default() };
        for number in from + 1..=to.min(from + SLOTS as u64) {
            if let Some(slot) = self.0.get_mut(Self::at(number)) {
                *slot = Amount::default();
            }
        }
        ended
    }

    fn at(number: u64) -> usize {
        usize::try_from(number % SLOTS as u64).unwrap_or(0)
    }
}
