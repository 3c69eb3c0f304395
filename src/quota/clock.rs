//! Owns the two clocks that quotas read: a monotonic one for rates, the wall for calendar budgets.
//! Does not convert dates (`calendar`). Every decision takes its time from here, so tests can turn it.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

/// Where quota decisions take the time from.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Time since this clock began; never goes back.
    fn monotonic(&self) -> Duration;
    /// The time of day, which an operator or NTP may set back.
    fn wall(&self) -> SystemTime;
}

/// The clocks of the machine.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// Begins now.
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// Whole seconds of the wall clock since the Unix epoch; 0 before it.
pub(super) fn wall_secs(clock: &dyn Clock) -> u64 {
    clock.wall().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Nanoseconds of the monotonic clock; saturates after 584 years.
pub(super) fn monotonic_ns(clock: &dyn Clock) -> u64 {
    u64::try_from(clock.monotonic().as_nanos()).unwrap_or(u64::MAX)
}

/// Clocks that stand still until they are turned.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct ManualClock {
    monotonic_ns: std::sync::atomic::AtomicU64,
    wall_secs: std::sync::atomic::AtomicU64,
}

#[cfg(test)]
impl ManualClock {
    pub(crate) fn at(wall_secs: u64) -> std::sync::Arc<Self> {
        let clock = Self::default();
        clock.set_wall(wall_secs);
        std::sync::Arc::new(clock)
    }

    pub(crate) fn advance(&self, by: Duration) {
        let ns = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.monotonic_ns.fetch_add(ns, std::sync::atomic::Ordering::SeqCst);
        self.wall_secs.fetch_add(by.as_secs(), std::sync::atomic::Ordering::SeqCst);
    }

    pub(crate) fn set_wall(&self, secs: u64) {
        self.wall_secs.store(secs, std::sync::atomic::Ordering::SeqCst);
    }
}

#[cfg(test)]
impl Clock for ManualClock {
    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.monotonic_ns.load(std::sync::atomic::Ordering::SeqCst))
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.wall_secs.load(std::sync::atomic::Ordering::SeqCst))
    }
}
