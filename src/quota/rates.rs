//! Owns the buckets of one account: each full at a time of its own, or spent from cells that were leased.
//! Does not ask the store for cells (`link`) and reads no clock.
//! Invariant: leased cells are spent once; an instance never holds more of a bucket than one batch.

use std::time::Duration;

use super::limit::{LimitState, Scope};
use super::plans::NamedRate;
use super::settings::RATES_MAX;
use crate::store::Taken;

/// An instance leases at most this part of the burst that is its share.
const BATCHES_PER_BURST: u64 = 20;
/// How long a bucket that was found empty is taken for empty: others may give cells back, and operators fill it.
const BELIEVED_EMPTY_NS: u64 = 1_000_000_000;

/// How requests are held against rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Buckets {
    /// By one of so many equal parts of each bucket, in this process.
    Own { parts: u64 },
    /// By cells leased from buckets that so many instances share.
    Leased { instances: u64 },
}

/// One bucket per rate of the plan, in its order.
#[derive(Debug, Default)]
pub(super) struct Rates {
    cells: [Cell; RATES_MAX],
    leased: Option<Box<[Leased; RATES_MAX]>>,
}

/// A bucket; `window` says which rate it belongs to, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Cell {
    window: u64,
    full_at: u64,
}

/// Cells of a bucket that are ours to spend.
#[derive(Debug, Clone, Copy, Default)]
struct Leased {
    stock: u32,
    /// Admitted while the store was out of reach, and not yet taken from the bucket.
    owed: u32,
    batch: u32,
    interval_us: u64,
    depth_us: u64,
    /// The bucket has no cell before this time, if nobody gives one back.
    empty_until: u64,
    /// The bucket is not asked again before this time.
    ask_again_at: u64,
    /// Spent from since it was last looked at.
    touched: bool,
}

/// What one rate says.
#[derive(Debug, Clone, Copy)]
pub(super) enum Verdict {
    /// There is room.
    Room,
    /// There is none for this many nanoseconds.
    Full(LimitState, u64),
    /// Nothing is leased: the store must be asked.
    Unknown,
}

/// Cells that should be asked for, or given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Want {
    /// Which rate.
    pub(super) index: usize,
    /// Its window, which names the bucket.
    pub(super) window: u64,
    pub(super) interval_us: u64,
    pub(super) depth_us: u64,
    pub(super) cells: i64,
}

/// Most cells of a bucket that one of so many instances holds: overshoot of all together is at most
/// `instances * batch`.
pub(super) fn batch(burst: u64, instances: u64) -> u32 {
    let batch = burst / BATCHES_PER_BURST.saturating_mul(instances.max(1));
    u32::try_from(batch).unwrap_or(u32::MAX).clamp(1, 1 << 20)
}

// === impl Rates ===

impl Rates {
    /// Says whether every rate has room, or the one that makes the caller wait longest.
    pub(super) fn look(&mut self, rates: &[NamedRate], scope: Scope, by: Buckets, now: u64) -> Verdict {
        let mut verdict = Verdict::Room;
        for (index, rate) in rates.iter().enumerate() {
            let wait = match (by, self.bucket(index, rate)) {
                (Buckets::Own { parts }, Some((cell, _))) => rate.gcra.shared(parts).take(cell.full_at, now).err(),
                (Buckets::Leased { .. }, Some((_, Some(leased)))) if leased.stock > 0 => None,
                (Buckets::Leased { .. }, Some((_, Some(leased)))) if leased.ask_again_at > now => {
                    Some(leased.empty_until.saturating_sub(now))
                }
                (Buckets::Leased { .. }, _) => {
                    verdict = if let Verdict::Full(..) = verdict { verdict } else { Verdict::Unknown };
                    None
                }
                (Buckets::Own { .. }, None) => None,
            };
            let Some(wait) = wait else { continue };
            if !matches!(verdict, Verdict::Full(_, longest) if longest >= wait) {
                verdict = Verdict::Full(self.state(index, rate, scope, by, now), wait);
            }
        }
        verdict
    }

    /// Takes one admission from every rate, which have room. Says whether leased cells run low.
    pub(super) fn take(&mut self, rates: &[NamedRate], by: Buckets, now: u64) -> bool {
        let mut low = false;
        for (index, rate) in rates.iter().enumerate() {
            match (by, self.bucket(index, rate)) {
                (Buckets::Own { parts }, Some((cell, leased))) => {
                    cell.full_at = rate.gcra.shared(parts).take(cell.full_at, now).unwrap_or(cell.full_at);
                    if let Some(leased) = leased {
                        leased.owed = leased.owed.saturating_add(1);
                    }
                }
                (Buckets::Own { .. }, None) => {}
                (Buckets::Leased { .. }, Some((_, Some(leased)))) => {
                    leased.stock = leased.stock.saturating_sub(1);
                    leased.touched = true;
                    low |= leased.stock <= leased.batch / 2 && leased.ask_again_at <= now;
                }
                (Buckets::Leased { .. }, _) => {}
            }
        }
        low
    }

    /// The states of the rates.
    pub(super) fn states(&mut self, rates: &[NamedRate], scope: Scope, by: Buckets, now: u64) -> Vec<LimitState> {
        rates.iter().enumerate().map(|(index, rate)| self.state(index, rate, scope, by, now)).collect()
    }

    /// The cells to ask for: enough to hold one batch of every rate, and what is owed.
    pub(super) fn wants(&mut self, rates: &[NamedRate], instances: u64) -> Vec<Want> {
        let leased = self.leased.get_or_insert_default();
        for (rate, leased) in rates.iter().zip(leased.iter_mut()) {
            (leased.interval_us, leased.depth_us) = rate.gcra.in_us();
        }
        for (index, rate) in rates.iter().enumerate() {
            // Aligns the buckets to the rates, which a reload may have changed.
            let _ = self.bucket(index, rate);
        }
        self.below_batch(instances)
    }

    /// The same for rates that were asked for before.
    pub(super) fn below_batch(&mut self, instances: u64) -> Vec<Want> {
        self.size(instances);
        self.pick(|leased| i64::from(leased.batch.saturating_sub(leased.stock)) + i64::from(leased.owed))
    }

    /// Nothing but the states of the buckets.
    pub(super) fn none(&self) -> Vec<Want> {
        let mut wants = self.pick(|_| 1);
        wants.iter_mut().for_each(|want| want.cells = 0);
        wants
    }

    /// The cells that nobody has spent from since the last look, and those beyond one batch, which is less since more
    /// instances lease; taken out of our hands.
    pub(super) fn idle(&mut self, instances: u64) -> Vec<Want> {
        self.size(instances);
        let kept = |leased: &Leased| if leased.touched { leased.stock.min(leased.batch) } else { 0 };
        let wants = self.pick(|leased| i64::from(leased.stock - kept(leased)));
        for leased in self.leased.iter_mut().flat_map(|leased| leased.iter_mut()) {
            leased.stock = kept(leased);
            leased.touched = false;
        }
        wants.into_iter().map(|want| Want { cells: -want.cells, ..want }).collect()
    }

    /// What one batch is, now that so many instances lease.
    fn size(&mut self, instances: u64) {
        for leased in self.leased.iter_mut().flat_map(|leased| leased.iter_mut()) {
            leased.batch = batch(leased.depth_us / leased.interval_us.max(1), instances);
        }
    }

    /// Says whether any leased cell is left.
    pub(super) fn has_stock(&self) -> bool {
        self.leased.iter().flat_map(|leased| leased.iter()).any(|leased| leased.stock > 0)
    }

    /// Notes what a bucket gave.
    pub(super) fn given(&mut self, want: &Want, taken: Taken, now: u64) {
        let debt = taken.debt_us.saturating_mul(1_000);
        let Some(cell) = self.cells.get_mut(want.index).filter(|cell| cell.window == want.window) else { return };
        cell.full_at = now.saturating_add(debt);
        let Some(leased) = self.leased.as_mut().and_then(|leased| leased.get_mut(want.index)) else { return };
        let granted = u32::try_from(taken.granted).unwrap_or(u32::MAX);
        let settled = granted.min(leased.owed);
        leased.owed -= settled;
        leased.stock = leased.stock.saturating_add(granted - settled);
        if want.cells > 0 && granted == settled {
            let interval = leased.interval_us.saturating_mul(1_000);
            let depth = leased.depth_us.saturating_mul(1_000);
            let wait = debt.saturating_add(interval).saturating_sub(depth).max(1);
            leased.empty_until = now.saturating_add(wait);
            leased.ask_again_at = now.saturating_add(wait.min(BELIEVED_EMPTY_NS));
        } else if want.cells > 0 {
            leased.ask_again_at = 0;
        }
    }

    /// Fills every bucket.
    pub(super) fn refill(&mut self) {
        self.cells = Default::default();
        for leased in self.leased.iter_mut().flat_map(|leased| leased.iter_mut()) {
            (leased.ask_again_at, leased.owed) = (0, 0);
        }
    }

    /// Says whether forgetting the buckets would change no decision.
    pub(super) fn is_idle(&self, now: u64) -> bool {
        self.cells.iter().all(|cell| cell.full_at <= now) && !self.has_stock()
    }

    fn pick(&self, cells: impl Fn(&Leased) -> i64) -> Vec<Want> {
        let leased = self.leased.iter().flat_map(|leased| leased.iter());
        let wants = self.cells.iter().zip(leased).enumerate().map(|(index, (cell, leased))| Want {
            index,
            window: cell.window,
            interval_us: leased.interval_us,
            depth_us: leased.depth_us,
            cells: if cell.window == 0 { 0 } else { cells(leased) },
        });
        wants.filter(|want| want.cells != 0).collect()
    }

    /// The bucket of a rate. One that belonged to another rate begins anew.
    fn bucket(&mut self, index: usize, rate: &NamedRate) -> Option<(&mut Cell, Option<&mut Leased>)> {
        let cell = self.cells.get_mut(index)?;
        let mut leased = self.leased.as_mut().and_then(|leased| leased.get_mut(index));
        let window = nanos(rate.window);
        if cell.window != window {
            *cell = Cell { window, full_at: 0 };
            if let Some(leased) = &mut leased {
                (leased.stock, leased.owed, leased.ask_again_at) = (0, 0, 0);
            }
        }
        Some((cell, leased))
    }

    fn state(&self, index: usize, rate: &NamedRate, scope: Scope, by: Buckets, now: u64) -> LimitState {
        let cell = self.cells.get(index).filter(|cell| cell.window == nanos(rate.window));
        let full_at = cell.map_or(0, |cell| cell.full_at);
        match by {
            Buckets::Own { parts } => rate.state(rate.gcra.shared(parts), scope, full_at, now),
            Buckets::Leased { .. } => {
                let stock = self.leased.as_ref().and_then(|leased| leased.get(index)).map_or(0, |leased| leased.stock);
                let state = rate.state(rate.gcra, scope, full_at, now);
                let stock = u64::from(stock).min(state.used);
                LimitState { remaining: state.remaining + stock, used: state.used - stock, ..state }
            }
        }
    }
}

fn nanos(window: Duration) -> u64 {
    u64::try_from(window.as_nanos()).unwrap_or(u64::MAX)
}
