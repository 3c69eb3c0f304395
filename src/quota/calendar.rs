//! Owns UTC days and months: in which one a second lies and when it ends. No time zones, no leap
//! seconds (Unix time has none), no formatting. Pure functions over seconds since the Unix epoch.

/// Seconds of a UTC day.
pub(super) const DAY_SECS: u64 = 86_400;

/// A UTC day: days since 1970-01-01.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Day(u64);

/// A UTC month: months since January of year 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Month(u64);

impl Day {
    /// Days since 1970-01-01.
    pub(super) fn number(self) -> u64 {
        self.0
    }

    /// The day that holds a second.
    pub(super) fn of(secs: u64) -> Self {
        Self(secs / DAY_SECS)
    }

    /// The first second of the next day.
    pub(super) fn end(self) -> u64 {
        self.0.saturating_add(1).saturating_mul(DAY_SECS)
    }
}

impl Month {
    /// Months since January of year 0.
    pub(super) fn number(self) -> u64 {
        self.0
    }

    /// The month that holds a second.
    pub(super) fn of(secs: u64) -> Self {
        let (year, month) = civil(secs / DAY_SECS);
        Self(year * 12 + (month - 1))
    }

    /// The first second of the month.
    pub(super) fn start(self) -> u64 {
        days_before(self.0 / 12, self.0 % 12 + 1).saturating_mul(DAY_SECS)
    }

    /// The first second of the next month.
    pub(super) fn end(self) -> u64 {
        Self(self.0.saturating_add(1)).start()
    }
}

/// A day since 1970-01-01 as `YYYY-MM-DD`.
pub fn day_text(day: u32) -> String {
    let days = u64::from(day);
    let (year, month) = civil(days);
    let date = days.saturating_sub(days_before(year, month)) + 1;
    format!("{year:04}-{month:02}-{date:02}")
}

/// The day since 1970-01-01 that `YYYY-MM-DD` names; `None` when there is no such day.
pub fn day_of(text: &str) -> Option<u32> {
    let mut parts = text.split('-').map(|part| part.parse::<u64>().ok());
    let (year, month, date) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() || !(1970..10_000).contains(&year) || !(1..=12).contains(&month) || date == 0 {
        return None;
    }
    let day = u32::try_from(days_before(year, month) + date - 1).ok()?;
    (day_text(day) == text).then_some(day)
}

// Both directions follow Howard Hinnant's "chrono-compatible low-level date algorithms": years
// begin in March, so that the leap day is the last day of a year, and eras of 400 years repeat.
// The constant moves the epoch from 1970-01-01 to 0000-03-01.
const EPOCH_SHIFT_DAYS: u64 = 719_468;
const ERA_DAYS: u64 = 146_097;

/// Year and month (1 to 12) of a day.
fn civil(days: u64) -> (u64, u64) {
    let shifted = days.saturating_add(EPOCH_SHIFT_DAYS);
    let era = shifted / ERA_DAYS;
    let day_of_era = shifted % ERA_DAYS;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_based = (5 * day_of_year + 2) / 153;
    let month = if march_based < 10 { march_based + 3 } else { march_based - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month)
}

/// Days from 1970-01-01 to the first of a month (1 to 12).
fn days_before(year: u64, month: u64) -> u64 {
    let march_year = year - u64::from(month <= 2);
    let (era, year_of_era) = (march_year / 400, march_year % 400);
    let march_based = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * march_based + 2) / 5;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * ERA_DAYS + day_of_era).saturating_sub(EPOCH_SHIFT_DAYS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_begin_and_end_where_the_calendar_says() {
        // (a second, start of its month, end of its month), from `date -u -d … +%s`.
        for (secs, start, end) in [
            (0, 0, 2_678_400),                             // 1970-01
            (951_782_399, 949_363_200, 951_868_800),       // 2000-02-28: a leap century
            (951_782_400, 949_363_200, 951_868_800),       // 2000-02-29
            (1_709_164_800, 1_706_745_600, 1_709_251_200), // 2024-02-29
            (1_735_689_599, 1_733_011_200, 1_735_689_600), // 2024-12-31T23:59:59
            (1_735_689_600, 1_735_689_600, 1_738_368_000), // 2025-01-01
            (4_107_542_399, 4_105_123_200, 4_107_542_400), // 2100-02-28: no leap year
        ] {
            let month = Month::of(secs);
            assert_eq!((month.start(), month.end()), (start, end), "{secs}");
        }
    }

    #[test]
    fn every_day_of_two_centuries_lies_in_its_month() {
        let mut last = Month::of(0);
        for day in 0..73_000 {
            let secs = day * DAY_SECS;
            let month = Month::of(secs);
            assert!(month.start() <= secs && secs < month.end(), "day {day}");
            assert!(month == last || (last.end() == secs && month.start() == secs), "day {day}");
            last = month;
        }
    }

    #[test]
    fn days_are_read_as_they_are_written() {
        for (text, day) in [("1970-01-01", 0), ("2000-02-29", 11_016), ("2024-12-31", 20_088), ("2100-03-01", 47_541)] {
            assert_eq!((day_of(text), day_text(day).as_str()), (Some(day), text));
        }
        for bad in
            ["", "2024", "2024-13-01", "2023-02-29", "2024-1-1", "2024-12-32", "24-12-31", "2024-12-31-1", "a-b-c"]
        {
            assert_eq!(day_of(bad), None, "{bad}");
        }
        assert!((0..100_000).all(|day| day_of(&day_text(day)) == Some(day)));
    }

    #[test]
    fn a_day_ends_at_midnight() {
        assert_eq!(Day::of(86_399).end(), 86_400);
        assert_eq!(Day::of(86_400).end(), 172_800);
    }

    #[test]
    fn a_broken_clock_does_not_panic() {
        let month = Month::of(u64::MAX);
        assert!(month.start() <= month.end());
        assert_eq!(Day::of(u64::MAX).end(), u64::MAX);
    }
}
