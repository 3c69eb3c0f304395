//! Owns what is done between calls: cells are leased ahead, sums are stated, usage is written, instances are counted.
//! Does not log: what changes is handed to the caller.
//! Invariant: what could not be said is said later.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::State;
use super::calendar::DAY_SECS;
use super::clock::{Clock, wall_secs};
use super::link::Link;
use crate::store::{StoreError, UsageRow};

/// How soon after a change it is said to the store, at most.
const TICK: Duration = Duration::from_millis(50);
/// How often this instance says that it lives; a lost store is asked as often.
const BEAT: Duration = Duration::from_secs(1);
/// How long an instance counts that says nothing more.
const BEAT_LASTS: Duration = Duration::from_secs(5);
/// How often cells that nobody spends are given back.
const GIVE_BACK: Duration = Duration::from_secs(1);
/// How often taken slots are said again.
const RENEW: Duration = Duration::from_secs(5);
/// How often usage is written.
const WRITE: Duration = Duration::from_secs(1);
/// Rows that one write holds.
const ROWS: usize = 1_024;

/// A change that operators should hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The store is out of reach, for this reason; every plan says what holds now.
    Lost {
        /// For the log.
        why: String,
        /// Instances seen last.
        instances: u64,
    },
    /// The store is back, and knows again what this instance counted.
    Found {
        /// Instances seen now.
        instances: u64,
        /// It had lost everything.
        empty: bool,
    },
}

/// The work between calls. Make one and run it.
#[derive(Debug)]
pub struct Upkeep {
    state: Arc<State>,
    link: Arc<Link>,
    clock: Arc<dyn Clock>,
    epoch: Option<String>,
    told_up: bool,
    due: Due,
}

/// When the rarer chores are due.
#[derive(Debug)]
struct Due {
    beat: Instant,
    give_back: Instant,
    renew: Instant,
    write: Instant,
}

/// Writes all usage that the store does not have.
///
/// # Errors
/// The store's; what it did not hear is written again later.
///
/// # Cancel safety
/// Safe: what was on its way counts as unheard, and saying it twice changes nothing.
pub(super) async fn write(state: &State, link: &Link) -> Result<(), StoreError> {
    while let Some(page) = state.book.changed(ROWS) {
        let part = format!("{}.{}", link.instance, page.volume);
        let mut sent = Sent { state, unheard: page.rows };
        link.store.record(&part, sent.unheard.clone()).await?;
        sent.unheard.clear();
    }
    Ok(())
}

/// Tells the book what became of a page, also when nobody waited for the answer.
struct Sent<'a> {
    state: &'a State,
    unheard: Vec<UsageRow>,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        self.state.book.told(&self.unheard);
    }
}

// === impl Upkeep ===

impl Upkeep {
    pub(super) fn new(state: Arc<State>, link: Arc<Link>, clock: Arc<dyn Clock>) -> Self {
        let now = Instant::now();
        let due = Due { beat: now, give_back: now + GIVE_BACK, renew: now + RENEW, write: now + WRITE };
        Self { state, link, clock, epoch: None, told_up: true, due }
    }

    /// Works until `stopped`, and then until everything is said or the task is cut.
    ///
    /// # Cancel safety
    /// Dropping the future loses what was not said yet.
    pub async fn run(mut self, stopped: impl Future<Output = ()>, changed: impl Fn(Change) + Send) {
        let mut stopped = std::pin::pin!(stopped);
        // At once: until its first beat an instance takes itself for the only one.
        self.round(&changed).await;
        loop {
            let over = tokio::select! {
                biased;
                () = &mut stopped => true,
                () = self.link.wake.notified() => false,
                () = tokio::time::sleep(TICK) => false,
            };
            self.round(&changed).await;
            if over {
                break;
            }
        }
        // Exchanges that are in flight may still settle.
        while self.state.runs_in_flight() > 0 {
            tokio::time::sleep(TICK).await;
            self.round(&changed).await;
        }
        self.finish().await;
    }

    /// One round of everything that is due.
    pub async fn round(&mut self, changed: &impl Fn(Change)) {
        let now = Instant::now();
        let (round, wanted) = self.link.begin_round();
        if self.link.shares() {
            self.tell_loss(changed);
            if now >= self.due.beat {
                self.due.beat = now + BEAT;
                self.beat(changed).await;
            }
            if self.link.is_up() {
                self.link.lease_ahead(&*self.clock).await;
                self.link.flush(&*self.clock).await;
            }
            if now >= self.due.give_back {
                self.due.give_back = now + GIVE_BACK;
                self.link.give_back(&*self.clock).await;
            }
            if now >= self.due.renew {
                self.due.renew = now + RENEW;
                self.link.renew();
            }
        }
        if wanted || now >= self.due.write {
            self.due.write = now + WRITE;
            self.write().await;
        }
        self.link.end_round(round);
    }

    /// From now on everything is due.
    #[cfg(test)]
    pub(super) fn all_due(&mut self) {
        let now = Instant::now();
        self.due = Due { beat: now, give_back: now, renew: now, write: now };
    }

    /// Does everything at once, due or not.
    pub async fn finish(&mut self) {
        if self.link.shares() && self.link.is_up() {
            self.link.give_back(&*self.clock).await;
            self.link.give_back(&*self.clock).await;
            self.link.flush(&*self.clock).await;
        }
        self.write().await;
        self.link.end_round(u64::MAX);
    }

    fn tell_loss(&mut self, changed: &impl Fn(Change)) {
        if self.told_up && !self.link.is_up() {
            self.told_up = false;
            changed(Change::Lost { why: self.link.why(), instances: self.link.instances() });
        }
    }

    async fn beat(&mut self, changed: &impl Fn(Change)) {
        let beat = match self.link.store.beat(&self.link.instance, BEAT_LASTS).await {
            Ok(beat) => beat,
            Err(error) => {
                self.link.lost(error);
                self.tell_loss(changed);
                return;
            }
        };
        let empty = self.epoch.as_ref().is_some_and(|epoch| *epoch != beat.epoch);
        self.epoch = Some(beat.epoch);
        let skew = i64::try_from(i128::from(beat.now) - i128::from(wall_secs(&*self.clock))).unwrap_or(0);
        if empty {
            self.state.each_account(|account| self.link.dirty(account));
            self.state.book.all_again();
        }
        self.link.seen(beat.instances);
        if !self.link.is_up() {
            // Said before anybody decides with the store again: it must know what was used meanwhile.
            self.link.found(skew);
            self.link.flush(&*self.clock).await;
        }
        self.link.found(skew);
        if !self.told_up || empty {
            self.told_up = true;
            changed(Change::Found { instances: beat.instances, empty });
        }
    }

    async fn write(&self) {
        if let Err(error) = write(&self.state, &self.link).await {
            self.link.lost(error);
        }
        self.state.book.turn(self.link.now(&*self.clock) / DAY_SECS);
    }
}
