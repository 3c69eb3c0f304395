//! Owns how many attempts beside the first a cluster may be burdened with: a share of what it is asked anyway.
//! Does not say what may be sent again (`outbound`, `gateway`), and does not count look-ups of the gateway itself.
//! Invariant: over any time, retries are at most the share of the requests, and the reserve that a quiet cluster has.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use uuid::Uuid;

/// What one retry costs: requests pay in percents of it.
const RETRY: i64 = 100;

/// How calls are sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retries {
    /// Most attempts for one call, the first included.
    pub attempts: u32,
    /// Retries in percent of requests.
    pub budget_percent: u8,
    /// Retries that a cluster without traffic has in reserve.
    pub reserve: u32,
    /// The longest wait before the second attempt; it doubles with each further one, and is drawn at random.
    pub backoff: Duration,
}

/// The retries that a cluster has left.
#[derive(Debug)]
pub(super) struct Budget {
    settings: Retries,
    left: AtomicI64,
}

// === impl Retries ===

impl Default for Retries {
    fn default() -> Self {
        Self { attempts: 3, budget_percent: 20, reserve: 10, backoff: Duration::from_millis(50) }
    }
}

impl Retries {
    /// How long to wait before the attempt of this number, the second being the first that waits.
    pub fn wait_before(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(2).min(10);
        let most = self.backoff.saturating_mul(1 << doublings);
        let (draw, _) = Uuid::new_v4().as_u64_pair();
        // The upper 32 bits of a UUIDv4 are random.
        most.mul_f64(f64::from(u32::try_from(draw >> 32).unwrap_or(0)) / f64::from(u32::MAX))
    }
}

// === impl Budget ===

impl Budget {
    pub(super) fn new(settings: Retries) -> Self {
        Self { settings, left: AtomicI64::new(i64::from(settings.reserve) * RETRY) }
    }

    /// Notes a first attempt.
    pub(super) fn asked(&self) {
        let full = i64::from(self.settings.reserve.max(1)) * RETRY;
        // A full budget is only read: its line stays in every core's cache.
        if self.left.load(Ordering::Relaxed) < full {
            self.left.fetch_add(i64::from(self.settings.budget_percent), Ordering::Relaxed);
        }
    }

    /// Takes one retry, if one is left.
    pub(super) fn take(&self) -> bool {
        let take = |left: i64| (left >= RETRY).then(|| left - RETRY);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_share_of_requests_beside_the_reserve() {
        let budget = Budget::new(Retries { budget_percent: 20, reserve: 10, ..Retries::default() });
        let storm = |requests: u32| {
            (0..requests)
                .filter(|_| {
                    budget.asked();
                    budget.take()
                })
                .count()
        };
        // Every request fails: the reserve is spent, then one in five is tried again.
        assert_eq!(storm(1_000), 210 - 1);
        assert!((199..=201).contains(&storm(1_000)));
        (0..1_000).for_each(|_| budget.asked());
        assert_eq!((0..100).filter(|_| budget.take()).count(), 10, "what is saved up is bounded");
    }

    #[test]
    fn waits_grow_and_differ() {
        let retries = Retries { backoff: Duration::from_millis(100), ..Retries::default() };
        for (attempt, most) in [(2, 100), (3, 200), (4, 400)] {
            let waits: Vec<Duration> = (0..200).map(|_| retries.wait_before(attempt)).collect();
            assert!(waits.iter().all(|wait| *wait <= Duration::from_millis(most)));
            assert!(waits.iter().any(|wait| *wait > Duration::from_millis(most / 2)), "attempt {attempt}");
            assert!(waits.iter().any(|wait| *wait < Duration::from_millis(most / 2)), "attempt {attempt}");
        }
        assert_eq!(Retries { backoff: Duration::ZERO, ..retries }.wait_before(3), Duration::ZERO);
    }
}
