//! Owns the generic cell rate algorithm: one number per key says when its bucket is full again.
//! Does not hold keys (`account`, `table`) and reads no clock: the caller says what time it is.
//! Invariant: any window of length w admits at most `burst + floor(rate * w)`.

use std::time::Duration;

use super::settings::Rate;

/// A compiled [`Rate`]. All times are nanoseconds of one monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gcra {
    /// Time that one admission costs: the window over the limit, rounded up, so that rounding
    /// never admits more than promised.
    interval: u64,
    /// How far ahead of now a key may run: burst times interval.
    depth: u64,
}

impl Gcra {
    /// Compiles a rate that `Settings` has checked.
    pub(super) fn new(rate: &Rate) -> Self {
        let window = u64::try_from(rate.window.as_nanos()).unwrap_or(u64::MAX);
        let interval = window.div_ceil(rate.limit.max(1)).max(1);
        Self { interval, depth: interval.saturating_mul(rate.burst.max(1)) }
    }

    /// One of `parts` equal shares; no share is less than one admission.
    pub(super) fn shared(&self, parts: u64) -> Self {
        let interval = self.interval.saturating_mul(parts.max(1));
        Self { interval, depth: self.depth.max(interval) }
    }

    /// The bucket in microseconds, as stores count: the cost of one admission, rounded up, and the depth.
    pub(super) fn in_us(&self) -> (u64, u64) {
        let interval = self.interval.div_ceil(1_000);
        (interval, interval.saturating_mul(self.burst()))
    }

    /// Admissions that a full bucket holds.
    pub(super) fn burst(&self) -> u64 {
        self.depth / self.interval
    }

    /// Takes one admission from a bucket that is full again at `full_at`.
    ///
    /// Returns the new `full_at`, or the time to wait for the next admission.
    pub(super) fn take(&self, full_at: u64, now: u64) -> Result<u64, u64> {
        let next = self.debt(full_at, now).saturating_add(self.interval);
        if next > self.depth { Err(next - self.depth) } else { Ok(now.saturating_add(next)) }
    }

    /// How many admissions are left now.
    pub(super) fn remaining(&self, full_at: u64, now: u64) -> u64 {
        (self.depth - self.debt(full_at, now)) / self.interval
    }

    /// How long until the bucket is full.
    pub(super) fn reset(&self, full_at: u64, now: u64) -> Duration {
        Duration::from_nanos(self.debt(full_at, now))
    }

    /// What the key has used up, never more than the depth: after a reload with a smaller burst an
    /// old `full_at` means an empty bucket, not a longer punishment.
    fn debt(&self, full_at: u64, now: u64) -> u64 {
        full_at.saturating_sub(now).min(self.depth)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gcra(limit: u64, window: Duration, burst: u64) -> Gcra {
        Gcra::new(&Rate { limit, window, burst })
    }

    #[test]
    fn a_burst_then_one_per_interval() {
        let rate = gcra(10, Duration::from_secs(1), 3);
        let mut full_at = 0;
        for _ in 0..3 {
            full_at = rate.take(full_at, 0).expect("within the burst");
        }
        assert_eq!(rate.take(full_at, 0), Err(100_000_000));
        assert_eq!(rate.take(full_at, 99_999_999), Err(1));
        assert_eq!(rate.take(full_at, 100_000_000), Ok(400_000_000));
    }

    #[test]
    fn an_idle_bucket_holds_no_more_than_the_burst() {
        let rate = gcra(10, Duration::from_secs(1), 3);
        let full_at = rate.take(0, 0).expect("full");
        assert_eq!(rate.remaining(full_at, 0), 2);
        assert_eq!(rate.remaining(full_at, u64::MAX), 3);
        assert_eq!(rate.reset(full_at, 0), Duration::from_millis(100));
    }

    #[test]
    fn a_smaller_burst_after_a_reload_empties_the_bucket_and_no_more() {
        let rate = gcra(1, Duration::from_secs(1), 2);
        let old = 3_600_000_000_000;
        assert_eq!(rate.take(old, 0), Err(1_000_000_000));
        assert_eq!(rate.reset(old, 0), Duration::from_secs(2));
    }

    proptest! {
        #[test]
        fn no_window_admits_more_than_promised(
            limit in 1_u64..50, window_ms in 1_u64..5_000, burst in 1_u64..40,
            gaps in prop::collection::vec(0_u64..400_000_000, 1..300),
        ) {
            let rate = gcra(limit, Duration::from_millis(window_ms), burst);
            let (mut now, mut full_at, mut admitted) = (0_u64, 0_u64, Vec::new());
            for gap in gaps {
                now += gap;
                if let Ok(next) = rate.take(full_at, now) {
                    full_at = next;
                    admitted.push(now);
                }
            }
            // Every window that begins and ends with an admission; wider ones hold no more.
            for (i, start) in admitted.iter().enumerate() {
                for (n, end) in admitted.iter().skip(i).enumerate() {
                    let width = u128::from(end - start);
                    let promised = u128::from(burst) + width * u128::from(limit) / (u128::from(window_ms) * 1_000_000);
                    prop_assert!((n as u128) < promised, "{} in {width} ns, promised {promised}", n + 1);
                }
            }
        }

        #[test]
        fn a_refused_caller_that_waits_as_told_is_admitted(
            limit in 1_u64..1_000, window_ms in 1_u64..100_000, burst in 1_u64..50,
        ) {
            let rate = gcra(limit, Duration::from_millis(window_ms), burst);
            let (mut now, mut full_at) = (7, 0);
            for _ in 0..200 {
                match rate.take(full_at, now) {
                    Ok(next) => full_at = next,
                    Err(wait) => {
                        prop_assert!(rate.take(full_at, now + wait - 1).is_err());
                        now += wait;
                        full_at = rate.take(full_at, now).expect("waited");
                    }
                }
            }
        }
    }
}
