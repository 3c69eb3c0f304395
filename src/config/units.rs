//! Owns quantities written as text with a unit: durations and sizes.
//! Does not know keys, ranges or places (`reader` adds them).
//! Invariant: a bare number is never a quantity, so nobody reads seconds as milliseconds.

use std::time::Duration;

/// A family of units.
pub(super) struct Units {
    /// What the quantity is called, with an example.
    pub(super) expected: &'static str,
    /// The units with their worth in the smallest one, smallest first.
    pub(super) units: &'static [(&'static str, u64)],
    /// What people write instead.
    aliases: &'static [(&'static str, &'static str)],
    /// The unit that is suggested when none is written; sizes differ too much to guess one.
    usual: Option<&'static str>,
    /// How nothing is written.
    zero: &'static str,
}

/// Durations, in milliseconds.
pub(super) const DURATION: Units = Units {
    expected: "a duration such as `\"30s\"`",
    units: &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)],
    aliases: &[
        ("S", "s"),
        ("sec", "s"),
        ("secs", "s"),
        ("second", "s"),
        ("seconds", "s"),
        ("min", "m"),
        ("mins", "m"),
        ("minute", "m"),
        ("minutes", "m"),
        ("hour", "h"),
        ("hours", "h"),
        ("H", "h"),
        ("day", "d"),
        ("days", "d"),
    ],
    usual: Some("s"),
    zero: "0s",
};

/// Sizes, in bytes.
pub(super) const SIZE: Units = Units {
    expected: "a size such as `\"64MiB\"`",
    units: &[("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)],
    aliases: &[
        ("b", "B"),
        ("bytes", "B"),
        ("k", "KiB"),
        ("K", "KiB"),
        ("kB", "KiB"),
        ("KB", "KiB"),
        ("kb", "KiB"),
        ("kib", "KiB"),
        ("Ki", "KiB"),
        ("m", "MiB"),
        ("M", "MiB"),
        ("MB", "MiB"),
        ("mb", "MiB"),
        ("mib", "MiB"),
        ("Mi", "MiB"),
        ("G", "GiB"),
        ("GB", "GiB"),
        ("gb", "GiB"),
        ("Gi", "GiB"),
    ],
    usual: None,
    zero: "0B",
};

/// Why a text is no quantity: what is wrong with it, and what to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// Continues `` `key` in `[table]` ``.
    pub(super) what: String,
    /// What to write instead.
    pub(super) help: String,
}

// === impl Units ===

impl Units {
    /// Reads a whole number and its unit; returns it in the smallest unit.
    pub(super) fn parse(&self, text: &str) -> Result<u64, Unreadable> {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim_start();
        let Ok(count) = number.replace('_', "").parse::<u64>() else {
            let what = format!("is `{text}`, which does not begin with a whole number");
            return Err(Unreadable { what, help: self.help(None) });
        };
        if unit.starts_with(['.', ',']) {
            let what = format!("is `{text}`, but only whole numbers can be counted");
            return Err(Unreadable { what, help: self.help(None) });
        }
        if unit.is_empty() {
            let what = format!("is `{text}`, which has no unit");
            return Err(Unreadable { what, help: self.help(self.usual.map(|unit| format!("{number}{unit}"))) });
        }
        let Some((_, worth)) = self.units.iter().find(|(name, _)| *name == unit) else {
            let meant = self.aliases.iter().find(|(alias, _)| *alias == unit);
            let what = format!("is `{text}`, whose unit `{unit}` is unknown");
            return Err(Unreadable { what, help: self.help(meant.map(|(_, name)| format!("{number}{name}"))) });
        };
        count.checked_mul(*worth).ok_or_else(|| Unreadable {
            what: format!("is `{text}`, which is too large to count"),
            help: self.help(None),
        })
    }

    /// Writes a quantity with the largest unit that divides it.
    pub(super) fn show(&self, quantity: u64) -> String {
        let divides = |worth: &u64| quantity.is_multiple_of(*worth) && quantity > 0;
        let unit = self.units.iter().rev().find(|(_, worth)| divides(worth));
        match unit {
            Some((name, worth)) => format!("{}{name}", quantity / worth),
            None => self.zero.to_owned(),
        }
    }

    fn help(&self, suggestion: Option<String>) -> String {
        let names: Vec<String> = self.units.iter().map(|(name, _)| format!("`{name}`")).collect();
        let units = format!("the units are {}", names.join(", "));
        match suggestion {
            Some(suggestion) => format!("{units}: did you mean `\"{suggestion}\"`?"),
            None => units,
        }
    }
}

/// Milliseconds of a duration, for ranges.
pub(super) const fn millis(duration: Duration) -> u64 {
    // Ranges are constants of at most a few days.
    duration.as_secs() * 1_000 + duration.subsec_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_need_a_whole_number_and_a_known_unit() {
        let read = |units: &Units, text: &str| units.parse(text).map_err(|e| format!("{}; {}", e.what, e.help));
        let sizes = "the units are `B`, `KiB`, `MiB`, `GiB`";
        let times = "the units are `ms`, `s`, `m`, `h`, `d`";
        for (units, text, expected) in [
            (&DURATION, "250ms", Ok(250)),
            (&DURATION, "30s", Ok(30_000)),
            (&DURATION, "1_000 s", Ok(1_000_000)),
            (&DURATION, "1d", Ok(86_400_000)),
            (&SIZE, "64MiB", Ok(64 << 20)),
            (&DURATION, "30", Err(format!("is `30`, which has no unit; {times}: did you mean `\"30s\"`?"))),
            (
                &DURATION,
                "5min",
                Err(format!("is `5min`, whose unit `min` is unknown; {times}: did you mean `\"5m\"`?")),
            ),
            (&DURATION, "1w", Err(format!("is `1w`, whose unit `w` is unknown; {times}"))),
            (&DURATION, "fast", Err(format!("is `fast`, which does not begin with a whole number; {times}"))),
            (&DURATION, "1.5s", Err(format!("is `1.5s`, but only whole numbers can be counted; {times}"))),
            (&SIZE, "64", Err(format!("is `64`, which has no unit; {sizes}"))),
            (&SIZE, "64MB", Err(format!("is `64MB`, whose unit `MB` is unknown; {sizes}: did you mean `\"64MiB\"`?"))),
            (
                &SIZE,
                "99999999999999999GiB",
                Err(format!("is `99999999999999999GiB`, which is too large to count; {sizes}")),
            ),
        ] {
            assert_eq!(read(units, text), expected, "{text}");
        }
    }

    #[test]
    fn a_quantity_is_shown_with_its_largest_unit() {
        for (units, quantity, expected) in [
            (&DURATION, 0, "0s"),
            (&DURATION, 1_500, "1500ms"),
            (&DURATION, 90_000, "90s"),
            (&DURATION, 3_600_000, "1h"),
            (&SIZE, 0, "0B"),
            (&SIZE, 1 << 20, "1MiB"),
        ] {
            assert_eq!(units.show(quantity), expected);
        }
    }
}
