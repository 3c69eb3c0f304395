//! Owns how long an endpoint that misbehaves is left alone, and how it comes back: a little at a time.
//! Does not judge connections that fail (`endpoint`: a probe brings those back) and does not choose (`balance`).
//! Invariants: never more than the configured share of endpoints is out at once for how it behaved; what is out comes
//! back by itself; each further time lasts longer.
//!
//! Only what callers cannot cause counts: AgentOS answers 500 to some of their mistakes, and 503 to what it was not
//! built with.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The smallest share of traffic, in percent, of an endpoint that has just come back.
const WARMTH_MIN: u64 = 10;
/// An endpoint that behaved for so many of its last ejections' time starts anew.
const FORGIVEN_AFTER: u32 = 4;

/// When an endpoint is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// Attempts that broke in a row; `None` never ejects.
    pub failures: Option<u32>,
    /// How long the first time lasts; it doubles with each further one.
    pub time: Duration,
    /// The longest.
    pub time_max: Duration,
    /// Most endpoints that may be out at once, in percent of the cluster, rounded down.
    pub share_max: u8,
    /// How long an endpoint that came back gets less than its share.
    pub slow_start: Duration,
}

/// How an endpoint behaved lately. Times are milliseconds since it was made; 0 is never.
#[derive(Debug)]
pub(super) struct Record {
    made: Instant,
    failures: AtomicU32,
    ejections: AtomicU32,
    out_until: AtomicU64,
    back_since: AtomicU64,
}

// === impl Ejection ===

impl Default for Ejection {
    fn default() -> Self {
        Self {
            failures: Some(5),
            time: Duration::from_secs(5),
            time_max: Duration::from_mins(5),
            share_max: 50,
            slow_start: Duration::from_secs(10),
        }
    }
}

impl Ejection {
    /// Says whether one more of `all` endpoints may be out beside those that are.
    pub(super) fn allows(&self, out: usize, all: usize) -> bool {
        (out + 1) * 100 <= all * usize::from(self.share_max)
    }

    fn lasts(&self, ejections: u32) -> Duration {
        let doubled = self.time.saturating_mul(1_u32.checked_shl(ejections.min(16)).unwrap_or(u32::MAX));
        doubled.min(self.time_max)
    }
}

// === impl Record ===

impl Record {
    pub(super) fn new() -> Self {
        Self {
            made: Instant::now(),
            failures: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            out_until: AtomicU64::new(0),
            back_since: AtomicU64::new(0),
        }
    }

    pub(super) fn is_out(&self) -> bool {
        let until = self.out_until.load(Ordering::Relaxed);
        until != 0 && self.now() < until
    }

    pub(super) fn ejections(&self) -> u32 {
        self.ejections.load(Ordering::Relaxed)
    }

    /// From now on it gets its share little by little.
    pub(super) fn begin_slowly(&self) {
        self.back_since.store(self.now(), Ordering::Relaxed);
    }

    /// The share of traffic that it gets, in percent.
    pub(super) fn warmth(&self, slow_start: Duration) -> u64 {
        let since = self.back_since.load(Ordering::Relaxed).max(self.out_until.load(Ordering::Relaxed));
        let whole = millis(slow_start);
        if since == 0 || whole == 0 {
            return 100;
        }
        let warmed = self.now().saturating_sub(since).saturating_mul(100) / whole;
        warmed.clamp(WARMTH_MIN, 100)
    }

    /// It answered.
    pub(super) fn behaved(&self, ejection: &Ejection) {
        // A healthy endpoint's line is only read.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        let ejections = self.ejections.load(Ordering::Relaxed);
        if ejections == 0 {
            return;
        }
        let good = ejection.lasts(ejections - 1).saturating_mul(FORGIVEN_AFTER);
        if self.now() >= self.out_until.load(Ordering::Relaxed).saturating_add(millis(good)) {
            self.ejections.store(0, Ordering::Relaxed);
        }
    }

    /// It broke; takes it out when that was once too often and `may` one more be out.
    pub(super) fn misbehaved(&self, ejection: &Ejection, may: impl FnOnce() -> bool) {
        let Some(most) = ejection.failures else { return };
        // Exchanges that began before it was taken out end after: they say nothing new.
        if self.is_out() {
            return;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures < most || !may() {
            return;
        }
        self.failures.store(0, Ordering::Relaxed);
        let before = self.ejections.fetch_add(1, Ordering::Relaxed);
        self.out_until.store(self.now().saturating_add(millis(ejection.lasts(before))).max(1), Ordering::Relaxed);
    }

    /// Never 0, which means never.
    fn now(&self) -> u64 {
        millis(self.made.elapsed()).saturating_add(1)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Ejection = Ejection {
        failures: Some(3),
        time: Duration::from_secs(5),
        time_max: Duration::from_secs(12),
        share_max: 50,
        slow_start: Duration::from_secs(10),
    };

    fn break_off(record: &Record, times: u32) {
        for _ in 0..times {
            record.misbehaved(&RULES, || true);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_ejection_lasts_longer_until_it_behaved_for_long() {
        let record = Record::new();
        let mut lasted = Vec::new();
        for _ in 0..3 {
            break_off(&record, 2);
            assert!(!record.is_out());
            break_off(&record, 3);
            let began = Instant::now();
            while record.is_out() {
                tokio::time::advance(Duration::from_millis(500)).await;
            }
            lasted.push(began.elapsed().as_secs());
        }
        assert_eq!(lasted, [5, 10, 12]);
        record.behaved(&RULES);
        assert_eq!(record.ejections(), 3, "one answer is no good behaviour yet");
        tokio::time::advance(RULES.time_max * FORGIVEN_AFTER).await;
        record.behaved(&RULES);
        assert_eq!(record.ejections(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_in_between_forgives_and_the_share_is_kept() {
        let record = Record::new();
        break_off(&record, 2);
        record.behaved(&RULES);
        break_off(&record, 2);
        assert!(!record.is_out());
        record.misbehaved(&RULES, || false);
        assert!(!record.is_out(), "no more may be out");
        record.misbehaved(&RULES, || true);
        assert!(record.is_out());
        let allowed = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (1, 4), (2, 4)].map(|(out, all)| RULES.allows(out, all));
        assert_eq!(allowed, [false, true, false, true, false, true, false]);
        let off = Ejection { failures: None, ..RULES };
        (0..100).for_each(|_| Record::new().misbehaved(&off, || panic!("never asked")));
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_back_warms_up() {
        let record = Record::new();
        assert_eq!(record.warmth(RULES.slow_start), 100, "at the start all are equal");
        record.begin_slowly();
        let mut warmth = Vec::new();
        for _ in 0..5 {
            warmth.push(record.warmth(RULES.slow_start));
            tokio::time::advance(Duration::from_millis(2_500)).await;
        }
        assert_eq!(warmth, [10, 25, 50, 75, 100]);
        assert_eq!(record.warmth(Duration::ZERO), 100);
    }
}
