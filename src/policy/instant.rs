//! Owns the spelling of instants in policies: `2026-11-02T09:00:00.000Z`, always UTC.
//! Does not read a clock.
//! Invariant: what `parse` accepts, `spell` writes back, with milliseconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY_S: u64 = 86_400;

/// Writes an instant as Cedar's `datetime()` reads it. Instants before 1970 become 1970, after 9999 the end of 9999.
pub(super) fn spell(instant: SystemTime) -> String {
    let since = instant.duration_since(UNIX_EPOCH).unwrap_or_default();
    let last = Duration::from_millis(253_402_300_799_999);
    let since = since.min(last);
    let (days, rest) = (since.as_secs() / DAY_S, since.as_secs() % DAY_S);
    let (year, month, day) = date_of(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

/// Reads `2026-11-02T09:00:00Z`, from 1970 on; milliseconds may follow the seconds.
pub(super) fn parse(text: &str) -> Option<SystemTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (time, millis) = time.split_once('.').unwrap_or((time, "000"));
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    let days = days_of(year, month, day)?;
    if hour > 23 || minute > 59 || second > 59 || millis.len() != 3 {
        return None;
    }
    let seconds = days.checked_mul(DAY_S)? + hour * 3600 + minute * 60 + second;
    UNIX_EPOCH.checked_add(Duration::from_millis(seconds.checked_mul(1000)? + number(millis)?))
}

fn numbers(text: &str, separator: char) -> Option<[u64; 3]> {
    let parts: Vec<u64> = text.split(separator).map(number).collect::<Option<_>>()?;
    parts.try_into().ok()
}

fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
}

fn month_days(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to the first of January.
fn days_before_year(year: u64) -> u64 {
    let before = |y: u64| (y - 1) * 365 + (y - 1) / 4 - (y - 1) / 100 + (y - 1) / 400;
    before(year) - before(1970)
}

fn days_of(year: u64, month: u64, day: u64) -> Option<u64> {
    let in_range = (1970..=9999).contains(&year) && (1..=12).contains(&month);
    if !in_range || !(1..=month_days(year, month)).contains(&day) {
        return None;
    }
    let months: u64 = (1..month).map(|m| month_days(year, m)).sum();
    Some(days_before_year(year) + months + day - 1)
}

fn date_of(days: u64) -> (u64, u64, u64) {
    let mut year = 1970 + days / 366;
    while days_before_year(year + 1) <= days {
        year += 1;
    }
    let mut rest = days - days_before_year(year);
    let mut month = 1;
    while rest >= month_days(year, month) {
        rest -= month_days(year, month);
        month += 1;
    }
    (year, month, rest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_written_as_they_are_read() {
        for text in [
            "1970-01-01T00:00:00.000Z",
            "2000-02-29T23:59:59.999Z",
            "2024-12-31T12:00:00.001Z",
            "2026-11-02T09:30:15.250Z",
            "2100-03-01T00:00:00.000Z",
            "9999-12-31T23:59:59.999Z",
        ] {
            assert_eq!(parse(text).map(spell).as_deref(), Some(text));
        }
        assert_eq!(parse("2026-11-02T09:00:00Z").map(spell).as_deref(), Some("2026-11-02T09:00:00.000Z"));
        assert_eq!(parse("2026-11-02T09:00:00Z"), Some(UNIX_EPOCH + Duration::from_secs(1_793_610_000)));
    }

    #[test]
    fn what_is_no_instant_is_refused() {
        for text in [
            "",
            "2026-11-02",
            "2026-11-02T09:00Z",
            "2026-11-02T09:00:00",
            "2026-13-02T09:00:00Z",
            "2026-02-29T09:00:00Z",
            "2026-11-02T24:00:00Z",
            "1969-12-31T23:59:59Z",
            "2026-11-02T09:00:00.1Z",
            "+026-11-02T09:00:00Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
