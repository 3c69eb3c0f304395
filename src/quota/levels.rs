//! Owns what one call is held against: the tenant, and where the plan says so the user, the component and the tool.
//! Does not choose plans (`plans`) and does no IO.
//! Invariant: a call spends from every level or from none. Locks are taken in the order of the levels.

use std::sync::Arc;
use std::time::Duration;

use super::account::{Account, NoRun};
use super::budget::Reach;
use super::limit::{LimitState, Scope};
use super::money::Amount;
use super::plans::Limits;
use super::rates::{Buckets, Verdict};

/// Most levels of a call.
const LEVELS: usize = 4;

/// One holder of limits.
#[derive(Debug)]
pub(super) struct Level<'p> {
    pub(super) scope: Scope,
    pub(super) limits: &'p Limits,
    pub(super) account: Arc<Account>,
}

/// The holders of one call, the tenant first.
#[derive(Debug)]
pub(super) struct Levels<'p>([Option<Level<'p>>; LEVELS]);

/// What rates say about a request.
#[derive(Debug)]
pub(super) enum Spent {
    /// It may pass; the states after it.
    Passed(Vec<LimitState>),
    /// A rate is used up.
    Full(LimitState, Duration),
    /// The store must be asked for cells.
    Unknown,
}

// === impl Level ===

impl Level<'_> {
    /// How the level's rates are held: what no store knows is counted here, as one of the instances' shares.
    pub(super) fn buckets(&self, by: Buckets) -> Buckets {
        match by {
            Buckets::Leased { instances } if self.account.shared.is_none() => Buckets::Own { parts: instances },
            Buckets::Leased { .. } | Buckets::Own { .. } => by,
        }
    }
}

// === impl Levels ===

impl<'p> Levels<'p> {
    pub(super) fn new(levels: [Option<Level<'p>>; LEVELS]) -> Self {
        Self(levels)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Level<'p>> {
        self.0.iter().flatten()
    }

    /// Spends one request; `low` hears of accounts whose leased cells run low.
    pub(super) fn spend(&self, by: Buckets, now: u64, low: impl Fn(&Arc<Account>)) -> Spent {
        let mut locked = self.0.each_ref().map(|level| level.as_ref().map(|level| (level, level.account.rates())));
        let mut longest: Option<(LimitState, u64)> = None;
        let mut unknown = false;
        for (level, rates) in locked.iter_mut().flatten() {
            match rates.look(&level.limits.rates, level.scope, level.buckets(by), now) {
                Verdict::Room => {}
                Verdict::Full(state, wait) if longest.is_none_or(|(_, longest)| wait > longest) => {
                    longest = Some((state, wait));
                }
                Verdict::Full(..) => {}
                Verdict::Unknown => unknown = true,
            }
        }
        match longest {
            Some((state, wait)) => return Spent::Full(state, Duration::from_nanos(wait)),
            None if unknown => return Spent::Unknown,
            None => {}
        }
        let mut states = Vec::new();
        for (level, rates) in locked.iter_mut().flatten() {
            if rates.take(&level.limits.rates, level.buckets(by), now) {
                low(&level.account);
            }
            states.append(&mut rates.states(&level.limits.rates, level.scope, level.buckets(by), now));
        }
        Spent::Passed(states)
    }

    /// Takes a run slot of every level and reserves, or neither. Returns what is reserved.
    pub(super) fn start(&self, estimate: Amount, reach: Reach, now: u64) -> Result<Amount, NoRun> {
        self.start_of(estimate, reach, now, |_| true)
    }

    /// The same at the levels that no store knows.
    pub(super) fn start_unshared(&self, estimate: Amount, now: u64) -> Result<Amount, NoRun> {
        self.start_of(estimate, Reach::Alone, now, |account| account.shared.is_none())
    }

    fn start_of(
        &self,
        estimate: Amount,
        reach: Reach,
        now: u64,
        which: impl Fn(&Account) -> bool,
    ) -> Result<Amount, NoRun> {
        let levels = self.0.each_ref().map(|level| level.as_ref().filter(|level| which(&level.account)));
        let mut locked = levels.map(|level| level.map(|level| (level, level.account.runs())));
        for (level, runs) in locked.iter_mut().flatten() {
            if let Some(no_run) = runs.look(level.limits, level.scope, reach, now) {
                return Err(no_run);
            }
        }
        let mut reserved = estimate;
        for (level, runs) in locked.iter_mut().flatten() {
            let left = runs.left(level.limits, reach, now);
            reserved = Amount { tokens: reserved.tokens.min(left.tokens), micros: reserved.micros.min(left.micros) };
        }
        locked.iter_mut().flatten().for_each(|(_, runs)| runs.begin(reserved));
        Ok(reserved)
    }

    /// The states of everything that is limited.
    pub(super) fn states(&self, by: Buckets, reach: Reach, now: u64, wall_secs: u64) -> Vec<LimitState> {
        let mut states = Vec::new();
        for level in self.iter() {
            states.extend(level.account.rates().states(&level.limits.rates, level.scope, level.buckets(by), now));
            states.extend(level.account.runs().states(level.limits, level.scope, reach, wall_secs));
        }
        states
    }

    /// The accounts, for whoever settles later.
    pub(super) fn accounts(&self) -> Box<[Arc<Account>]> {
        self.iter().map(|level| Arc::clone(&level.account)).collect()
    }
}
