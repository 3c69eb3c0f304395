//! Owns points in time as the configuration writes them.
//! Does not read clocks.

/// Days since 1970-01-01 of a proleptic Gregorian date, after Howard Hinnant's `days_from_civil`.
pub(super) fn unix_seconds(written: &toml::value::Datetime) -> Option<u64> {
    let (date, time, offset) = (written.date?, written.time?, written.offset?);
    let offset_minutes = match offset {
        toml::value::Offset::Z => 0,
        toml::value::Offset::Custom { minutes } => i64::from(minutes),
    };
    let (month, day) = (i64::from(date.month), i64::from(date.day));
    let year = i64::from(date.year) - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    let second = i64::from(time.second.unwrap_or(0));
    let seconds = days * 86_400 + i64::from(time.hour) * 3_600 + i64::from(time.minute) * 60 + second;
    u64::try_from(seconds - offset_minutes * 60).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_unix_seconds() {
        for (written, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-03-01T00:00:00Z", Some(951_868_800)),
            ("2024-02-29T12:30:45Z", Some(1_709_209_845)),
            ("2024-02-29T12:30:45+02:00", Some(1_709_202_645)),
            ("2024-02-29T12:30:45", None),
            ("2024-02-29", None),
            ("1969-12-31T23:59:59Z", None),
        ] {
            assert_eq!(unix_seconds(&written.parse().unwrap()), expected, "{written}");
        }
    }
}
