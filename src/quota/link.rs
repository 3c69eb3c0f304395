//! Owns the line to the store that instances share: what is leased from it, what is said to it, and what holds while
//! it is out of reach. Does not decide by itself (`levels`) and never logs: changes are handed to the upkeep's caller.
//! Invariants: what is said about one tenant is said by one call at a time; sums are stated as absolute values, so a
//! lost answer is mended by the next statement; a request waits for the store at most once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Mutex as Turn, Notify, watch};

use super::account::{About, Account, NoRun, RUN_WAIT, Shared, slots};
use super::budget::{Reach, Spent};
use super::clock::{Clock, monotonic_ns, wall_secs};
use super::levels::Levels;
use super::limit::Scope;
use super::money::Amount;
use super::plans::{CompiledPlan, Limits};
use super::rates::{Buckets, Want};
use super::settings::WhenLost;
use crate::store::{ANSWER_TIMEOUT, Cells, Held, Part, Share, Store, StoreError};

/// Locks that keep statements about one tenant in order.
pub(super) const STRIPES: usize = 64;
/// Beats in a row that have to miss an instance before it counts as gone: after a pause of all of them, the first to
/// beat again sees itself alone, and would lease what belongs to the others.
const BEATS_TO_BELIEVE: u64 = 5;
/// Accounts that one statement is about.
const BATCH: usize = 256;

/// The line to a store.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) store: Arc<dyn Store>,
    /// Names this instance, until it ends.
    pub(super) instance: String,
    /// Whether limits are held against the store, or only usage is kept there.
    shares: bool,
    up: AtomicBool,
    losses: AtomicU64,
    instances: AtomicU64,
    /// Beats in a row that saw fewer instances.
    fewer: AtomicU64,
    /// The store's wall clock less ours, in seconds.
    skew: AtomicI64,
    stripes: Box<[Turn<()>]>,
    todo: Mutex<Todo>,
    pub(super) wake: Notify,
    rounds: Rounds,
    /// Why the store was lost, for whoever tells of it.
    why: Mutex<Option<StoreError>>,
}

/// Rounds of the upkeep, which whoever wants something to be kept waits for.
#[derive(Debug)]
struct Rounds {
    begun: AtomicU64,
    ended: watch::Sender<u64>,
    /// Somebody waits for the next one.
    wanted: AtomicBool,
}

/// Accounts that the upkeep has to look at.
#[derive(Debug, Default)]
struct Todo {
    dirty: Vec<Arc<Account>>,
    low: Vec<Arc<Account>>,
    stocked: Vec<Arc<Account>>,
    active: Vec<Arc<Account>>,
}

/// How limits are held at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// In this process.
    Own { buckets: Buckets, reach: Reach },
    /// With the store.
    Shared { instances: u64 },
    /// Nothing is granted.
    Closed,
}

// === impl Mode ===

impl Mode {
    pub(super) fn buckets(self) -> Buckets {
        match self {
            Self::Own { buckets, .. } => buckets,
            Self::Shared { instances } => Buckets::Leased { instances },
            Self::Closed => Buckets::Leased { instances: 1 },
        }
    }

    pub(super) fn reach(self) -> Reach {
        match self {
            Self::Own { reach, .. } => reach,
            Self::Shared { .. } | Self::Closed => Reach::Among,
        }
    }
}

// === impl Link ===

impl Link {
    pub(super) fn new(store: Arc<dyn Store>, shares: bool) -> Self {
        Self {
            store,
            instance: uuid::Uuid::new_v4().simple().to_string(),
            shares,
            up: AtomicBool::new(true),
            losses: AtomicU64::new(0),
            instances: AtomicU64::new(1),
            fewer: AtomicU64::new(0),
            skew: AtomicI64::new(0),
            stripes: (0..STRIPES).map(|_| Turn::new(())).collect(),
            todo: Mutex::default(),
            wake: Notify::new(),
            rounds: Rounds { begun: AtomicU64::new(0), ended: watch::Sender::new(0), wanted: AtomicBool::new(false) },
            why: Mutex::default(),
        }
    }

    pub(super) fn shares(&self) -> bool {
        self.shares
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    pub(super) fn instances(&self) -> u64 {
        self.instances.load(Ordering::Acquire).max(1)
    }

    /// How limits of a plan are held now.
    pub(super) fn mode(&self, plan: &CompiledPlan) -> Mode {
        if !self.shares {
            return Mode::Own { buckets: Buckets::Own { parts: 1 }, reach: Reach::Alone };
        }
        let instances = self.instances();
        if self.is_up() {
            return Mode::Shared { instances };
        }
        let parts = match plan.lost {
            WhenLost::Share => instances,
            WhenLost::Open => 1,
            WhenLost::Closed => return Mode::Closed,
        };
        let reach = Reach::Cut { parts, loss: self.losses.load(Ordering::Acquire) };
        Mode::Own { buckets: Buckets::Own { parts }, reach }
    }

    /// The wall clock, as all instances see it.
    pub(super) fn now(&self, clock: &dyn Clock) -> u64 {
        wall_secs(clock).saturating_add_signed(self.skew.load(Ordering::Acquire))
    }

    /// From now on the store is out of reach.
    pub(super) fn lost(&self, why: StoreError) {
        if self.up.swap(false, Ordering::AcqRel) {
            self.losses.fetch_add(1, Ordering::AcqRel);
            *self.why.lock() = Some(why);
            self.wake.notify_one();
        }
    }

    /// Counts the instances that a beat saw: more at once, fewer when several beats agree.
    pub(super) fn seen(&self, instances: u64) {
        let fewer = if instances < self.instances() { self.fewer.fetch_add(1, Ordering::AcqRel) + 1 } else { 0 };
        if fewer == 0 || fewer >= BEATS_TO_BELIEVE {
            self.fewer.store(0, Ordering::Release);
            self.instances.store(instances.max(1), Ordering::Release);
        }
    }

    /// The store answered a beat.
    pub(super) fn found(&self, skew: i64) {
        // A second is lost in reading whole ones.
        self.skew.store(if skew.abs() <= 1 { 0 } else { skew }, Ordering::Release);
        self.up.store(true, Ordering::Release);
    }

    /// Why the store was lost last.
    pub(super) fn why(&self) -> String {
        self.why.lock().as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// Waits until the store has everything that was counted before, or is out of reach.
    ///
    /// # Cancel safety
    /// Safe: what was counted is said whether anybody waits or not.
    pub(super) async fn kept(&self) {
        if !self.shares || !self.is_up() {
            return;
        }
        let mut ended = self.rounds.ended.subscribe();
        // In this order: a round that begins between the two writes, and another one is waited for.
        self.rounds.wanted.store(true, Ordering::SeqCst);
        let next = self.rounds.begun.load(Ordering::SeqCst) + 1;
        self.wake.notify_one();
        // Whoever waits in vain is not told: what was counted stays to be said.
        let _ = tokio::time::timeout(ANSWER_TIMEOUT, ended.wait_for(|round| *round >= next)).await;
    }

    /// A round begins; says whether somebody waits for what it keeps. [`Link::end_round`] must follow.
    pub(super) fn begin_round(&self) -> (u64, bool) {
        let round = self.rounds.begun.fetch_add(1, Ordering::SeqCst) + 1;
        (round, self.rounds.wanted.swap(false, Ordering::SeqCst))
    }

    /// A round has ended, or with `u64::MAX` all of them.
    pub(super) fn end_round(&self, round: u64) {
        self.rounds.ended.send_modify(|ended| *ended = round.max(*ended));
    }

    /// Something is to be said about an account.
    pub(super) fn dirty(&self, account: &Arc<Account>) {
        if let Some(shared) = account.shared.as_ref().filter(|_| self.shares)
            && Shared::mark(&shared.dirty)
        {
            self.todo.lock().dirty.push(Arc::clone(account));
            self.wake.notify_one();
        }
    }

    /// An account's leased cells run low.
    pub(super) fn low(&self, account: &Arc<Account>) {
        if let Some(shared) = &account.shared
            && Shared::mark(&shared.low)
        {
            self.todo.lock().low.push(Arc::clone(account));
            self.wake.notify_one();
        }
    }

    /// Asks for the cells that a request needs. The caller looks again afterwards, whatever came of it.
    ///
    /// # Cancel safety
    /// Cells that were granted to a caller who went away are lost; they come back as the bucket fills.
    pub(super) async fn lease(&self, levels: &Levels<'_>, instances: u64, clock: &dyn Clock) {
        let Some(_turn) = self.turn(levels).await else { return };
        // Whoever had the turn before may have leased enough for us.
        let short = |level: &&super::levels::Level<'_>| {
            let by = level.buckets(Buckets::Leased { instances });
            let verdict = level.account.rates().look(&level.limits.rates, level.scope, by, monotonic_ns(clock));
            matches!(verdict, super::rates::Verdict::Unknown)
        };
        let accounts: Vec<_> = levels.iter().filter(short).collect();
        let wants = accounts.iter().flat_map(|level| {
            let wants = level.account.rates().wants(&level.limits.rates, instances);
            wants.into_iter().map(|want| (&level.account, want))
        });
        self.ask(wants.collect(), clock).await;
    }

    async fn ask(&self, wants: Vec<(&Arc<Account>, Want)>, clock: &dyn Clock) {
        let named = |(account, want): (&Arc<Account>, Want)| {
            let shared = account.shared.as_ref()?;
            let key = shared.bucket(want.window);
            let cells = Cells { key, interval_us: want.interval_us, depth_us: want.depth_us, want: want.cells };
            Some((Arc::clone(account), want, cells))
        };
        let asked: Vec<_> = wants.into_iter().filter_map(named).collect();
        if asked.is_empty() {
            return;
        }
        match self.store.cells(asked.iter().map(|(_, _, cells)| cells.clone()).collect()).await {
            Ok(taken) => {
                let now = monotonic_ns(clock);
                for ((account, want, _), taken) in asked.iter().zip(taken) {
                    account.rates().given(want, taken, now);
                    self.watch_stock(account);
                }
            }
            Err(error) => self.lost(error),
        }
    }

    fn watch_stock(&self, account: &Arc<Account>) {
        if let Some(shared) = &account.shared
            && account.rates().has_stock()
            && Shared::mark(&shared.stocked)
        {
            self.todo.lock().stocked.push(Arc::clone(account));
        }
    }

    /// Begins a run with the store's consent: slots and reservations of every level, or none.
    ///
    /// # Errors
    /// The limit that refuses. `Ok(None)`: the store is out of reach.
    ///
    /// # Cancel safety
    /// Safe: what the store granted to a caller who went away is taken back by the next statement.
    pub(super) async fn start(
        &self,
        levels: &Levels<'_>,
        estimate: Amount,
        clock: &dyn Clock,
    ) -> Result<Option<Amount>, NoRun> {
        if levels.iter().all(|level| level.account.shared.is_none()) {
            return levels.start_unshared(estimate, self.now(clock)).map(Some);
        }
        let Some(_turn) = self.turn(levels).await else { return Ok(None) };
        let now = self.now(clock);
        let mut asked: Vec<(&Arc<Account>, &Limits, Scope, About)> = Vec::new();
        let mut parts: Vec<Part> = Vec::new();
        for level in levels.iter() {
            let Some(shared) = &level.account.shared else { continue };
            let wants = level.account.runs().wants(shared, level.limits, estimate, &self.instance, now);
            for (about, part) in wants {
                asked.push((&level.account, level.limits, level.scope, about));
                parts.push(part);
            }
        }
        let forgotten = Forgotten { link: self, levels: Some(levels) };
        let held = match self.store.hold(vec![parts.clone()]).await {
            Ok(held) => held,
            Err(error) => {
                self.lost(error);
                return Ok(None);
            }
        };
        let held = held.into_iter().next().unwrap_or(Held { granted: false, shares: Vec::new() });
        for ((account, _, _, about), share) in asked.iter().zip(&held.shares) {
            account.runs().know(*about, *share);
        }
        if !held.granted {
            forgotten.told();
            let full = asked
                .iter()
                .zip(parts.iter().zip(&held.shares))
                .find(|(_, (part, share))| part.want > 0 && share.granted == 0);
            return match full {
                Some(((account, limits, scope, about), (_, share))) => {
                    Err(full_state(account, limits, *scope, *about, *share, now))
                }
                None => Ok(None),
            };
        }
        let mut reserved = estimate;
        for ((_, _, _, about), share) in asked.iter().zip(&held.shares) {
            match about {
                About::Budget(_, super::settings::Unit::Tokens) => reserved.tokens = reserved.tokens.min(share.granted),
                About::Budget(_, super::settings::Unit::Money) => reserved.micros = reserved.micros.min(share.granted),
                About::Slots => {}
            }
        }
        // Refused here, the store is told that nothing was taken there.
        let granted = reserved;
        let reserved = levels.start_unshared(granted, now)?;
        forgotten.told();
        let exact = |(part, share): (&Part, &Share)| part.cap.is_some() && share.granted == part.want;
        let exact = reserved == granted && parts.iter().zip(&held.shares).all(exact);
        for level in levels.iter().filter(|level| level.account.shared.is_some()) {
            level.account.runs().begin(reserved);
            self.keep_active(&level.account);
            // More was granted of one sum than of another, or a sum without a limit is not stated yet.
            if !exact || level.limits.budgets.len() < 2 {
                self.dirty(&level.account);
            }
        }
        Ok(Some(reserved))
    }

    fn keep_active(&self, account: &Arc<Account>) {
        if let Some(shared) = &account.shared
            && Shared::mark(&shared.active)
        {
            self.todo.lock().active.push(Arc::clone(account));
        }
    }

    /// The turn to speak about a tenant; `None` where nothing is shared and once the store is lost.
    async fn turn(&self, levels: &Levels<'_>) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let stripe = levels.iter().find_map(|level| level.account.shared.as_ref())?.stripe;
        let turn = self.stripes.get(stripe)?.lock().await;
        // Whoever had it before may have waited in vain: nobody does so after it.
        self.is_up().then_some(turn)
    }

    /// States sums of accounts now, and learns what others have.
    pub(super) async fn state(&self, accounts: &[Arc<Account>], clock: &dyn Clock) {
        let mut stripes: Vec<usize> = accounts.iter().filter_map(|a| Some(a.shared.as_ref()?.stripe)).collect();
        stripes.sort_unstable();
        stripes.dedup();
        // Always in the same order, so that two of us never wait for each other.
        let mut turns = Vec::with_capacity(stripes.len());
        for stripe in stripes.iter().filter_map(|stripe| self.stripes.get(*stripe)) {
            turns.push(stripe.lock().await);
        }
        let now = self.now(clock);
        let (mut groups, mut about) = (Vec::new(), Vec::new());
        for account in accounts {
            let Some(shared) = &account.shared else { continue };
            shared.dirty.store(false, Ordering::Release);
            let (abouts, parts): (Vec<About>, Vec<Part>) =
                account.runs().stated(shared, &self.instance, now).into_iter().unzip();
            groups.push(parts);
            about.push((account, abouts));
        }
        if groups.is_empty() {
            return;
        }
        match self.store.hold(groups).await {
            Ok(held) => {
                for ((account, abouts), held) in about.iter().zip(held) {
                    let mut runs = account.runs();
                    abouts.iter().zip(held.shares).for_each(|(about, share)| runs.know(*about, share));
                }
            }
            Err(error) => {
                self.lost(error);
                accounts.iter().for_each(|account| self.dirty(account));
            }
        }
    }

    /// Reads the buckets of accounts anew, spending nothing.
    pub(super) async fn read(&self, levels: &Levels<'_>, instances: u64, clock: &dyn Clock) {
        let wants = levels.iter().flat_map(|level| {
            let mut rates = level.account.rates();
            let _ = rates.wants(&level.limits.rates, instances);
            rates.none().into_iter().map(|want| (&level.account, want)).collect::<Vec<_>>()
        });
        self.ask(wants.collect(), clock).await;
    }

    /// Leases cells for accounts that run low.
    pub(super) async fn lease_ahead(&self, clock: &dyn Clock) {
        let low = std::mem::take(&mut self.todo.lock().low);
        for accounts in low.chunks(BATCH) {
            let mut wants = Vec::new();
            for account in accounts {
                if let Some(shared) = &account.shared {
                    shared.low.store(false, Ordering::Release);
                }
                wants.extend(account.rates().below_batch(self.instances()).into_iter().map(|want| (account, want)));
            }
            self.ask(wants, clock).await;
        }
    }

    /// Says everything that is to be said. Returns how much was left to say at the beginning.
    pub(super) async fn flush(&self, clock: &dyn Clock) -> usize {
        let dirty = std::mem::take(&mut self.todo.lock().dirty);
        for (said, accounts) in dirty.chunks(BATCH).enumerate() {
            if !self.is_up() {
                // What was not said stays to be said.
                self.todo.lock().dirty.extend(dirty.iter().skip(said * BATCH).cloned());
                break;
            }
            self.state(accounts, clock).await;
        }
        dirty.len()
    }

    /// Gives back cells that nobody spends.
    pub(super) async fn give_back(&self, clock: &dyn Clock) {
        let stocked = std::mem::take(&mut self.todo.lock().stocked);
        for accounts in stocked.chunks(BATCH) {
            let mut wants = Vec::new();
            for account in accounts {
                let Some(shared) = &account.shared else { continue };
                wants.extend(account.rates().idle(self.instances()).into_iter().map(|want| (account, want)));
                shared.stocked.store(false, Ordering::Release);
                self.watch_stock(account);
            }
            self.ask(wants, clock).await;
        }
    }

    /// Says again which slots are taken, before they are taken for lost.
    pub(super) fn renew(&self) {
        let active = std::mem::take(&mut self.todo.lock().active);
        for account in active {
            let Some(shared) = &account.shared else { continue };
            shared.active.store(false, Ordering::Release);
            if account.runs_in_flight() > 0 {
                self.keep_active(&account);
                self.dirty(&account);
            }
        }
    }
}

/// Marks accounts whose statement may have been heard although nobody waited for the answer.
struct Forgotten<'a, 'p> {
    link: &'a Link,
    levels: Option<&'a Levels<'p>>,
}

impl Forgotten<'_, '_> {
    fn told(mut self) {
        self.levels = None;
    }
}

impl Drop for Forgotten<'_, '_> {
    fn drop(&mut self) {
        for level in self.levels.iter().flat_map(|levels| levels.iter()) {
            self.link.dirty(&level.account);
        }
    }
}

/// Why the store refused, as this instance tells it.
fn full_state(account: &Account, limits: &Limits, scope: Scope, about: About, share: Share, now: u64) -> NoRun {
    let mut runs = account.runs();
    if let About::Budget(..) = about
        && let Some(spent) = runs.ledger().spent(&limits.budgets, scope, Reach::Among, now)
    {
        return NoRun::Budget(spent);
    }
    drop(runs);
    match about {
        About::Slots => {
            let limit = limits.concurrent_runs.unwrap_or(0);
            let others = u32::try_from(share.others).unwrap_or(0);
            let in_flight = others.saturating_add(account.runs_in_flight());
            NoRun::Slots(slots(scope, limit, in_flight, limit), RUN_WAIT)
        }
        About::Budget(period, unit) => {
            // The sum was full when it was asked; ours has shrunk since.
            let states = account.runs().ledger().states(&limits.budgets, scope, Reach::Among, now);
            let of = |budget: &&super::settings::Budget| budget.period == period && budget.unit == unit;
            let at = limits.budgets.iter().position(|budget| of(&budget)).unwrap_or(0);
            match states.get(at) {
                Some(limit) => NoRun::Budget(Spent { limit: *limit, wait: Duration::from_secs(1) }),
                None => NoRun::Slots(slots(scope, 0, 0, 0), RUN_WAIT),
            }
        }
    }
}
