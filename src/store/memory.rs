//! Owns the store within a process, and the rules that every store follows, in plain code.
//! Does not persist (`file` writes down what changes here).
//! Invariant: what has expired neither counts nor stays for ever.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::ready;
use parking_lot::Mutex;

use super::usage::summed;
use super::{Beat, Cells, Correction, DAYS_KEPT, Held, Outcome, Part, Share, Store, Taken, UsageRow};

/// The part of a sum that people correct.
pub(super) const BY_HAND: &str = "by-hand";
/// Calls between two searches for what has expired.
const SWEEP_EVERY: u32 = 4_096;

/// The clocks of a store.
pub trait Time: Send + Sync + fmt::Debug {
    /// Microseconds since the Unix epoch that never go back while the process lives.
    fn steady_us(&self) -> u64;
    /// Seconds since the Unix epoch.
    fn wall_secs(&self) -> u64;
}

/// The clocks of the machine.
#[derive(Debug)]
pub struct SystemTime {
    origin: Instant,
    origin_us: u64,
}

/// State in this process. Clones share it.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    time: Arc<dyn Time>,
    tables: Arc<Mutex<Tables>>,
}

/// What a part is and until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) value: i64,
    pub(super) expires: u64,
}

/// A row that changed, for whoever writes it down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// When a bucket is full again; 0 when it is and need not be remembered.
    Cell(String, u64),
    /// A part of a sum, or that it is gone.
    Part(String, String, Option<Field>),
    /// What an instance counted; nothing when it is too old to be kept.
    Usage(String, UsageRow),
    /// A claim: owner and end, or that it is gone.
    Claim(String, Option<(String, u64)>),
}

/// Counts by agent, model and instance.
type Counted = HashMap<(String, String, String), [u64; 4]>;

#[derive(Debug, Default)]
pub(super) struct Tables {
    cells: HashMap<String, u64>,
    sums: HashMap<String, HashMap<String, Field>>,
    /// By day and tenant.
    usage: BTreeMap<(u32, String), Counted>,
    claims: HashMap<String, (String, u64)>,
    instances: HashMap<String, u64>,
    epoch: String,
    calls: u32,
}

// === impl SystemTime ===

impl SystemTime {
    /// Begins now.
    pub fn new() -> Self {
        Self { origin: Instant::now(), origin_us: u64::try_from(since_epoch().as_micros()).unwrap_or(u64::MAX) }
    }
}

impl Default for SystemTime {
    fn default() -> Self {
        Self::new()
    }
}

impl Time for SystemTime {
    fn steady_us(&self) -> u64 {
        self.origin_us.saturating_add(u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn wall_secs(&self) -> u64 {
        since_epoch().as_secs()
    }
}

fn since_epoch() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

// === impl MemoryStore ===

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::with_time(Arc::new(SystemTime::new()))
    }

    /// An empty store that reads these clocks.
    pub fn with_time(time: Arc<dyn Time>) -> Self {
        let tables = Tables { epoch: uuid::Uuid::new_v4().to_string(), ..Tables::default() };
        Self { time, tables: Arc::new(Mutex::new(tables)) }
    }

    /// Changes the tables; returns what changed besides the answer.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Tables, &dyn Time, &mut Vec<Change>) -> T) -> (T, Vec<Change>) {
        let mut changes = Vec::new();
        let mut tables = self.tables.lock();
        tables.sweep(&*self.time, &mut changes);
        let answer = work(&mut tables, &*self.time, &mut changes);
        (answer, changes)
    }

    /// Puts a row back that was written down.
    pub(super) fn restore(&self, change: Change) {
        let mut tables = self.tables.lock();
        match change {
            Change::Cell(key, full_at) => drop(tables.cells.insert(key, full_at)),
            Change::Part(key, part, Some(field)) => drop(tables.sums.entry(key).or_default().insert(part, field)),
            Change::Usage(instance, row) => tables.put_usage(&instance, &row),
            Change::Claim(name, Some(claim)) => drop(tables.claims.insert(name, claim)),
            Change::Part(_, _, None) | Change::Claim(_, None) => {}
        }
    }

    pub(super) fn set_epoch(&self, epoch: String) {
        self.tables.lock().epoch = epoch;
    }
}

// === impl Tables ===

impl Tables {
    pub(super) fn take(&mut self, take: &Cells, now: u64, changes: &mut Vec<Change>) -> Taken {
        let full_at = self.cells.get(&take.key).copied().unwrap_or(0);
        let debt = full_at.saturating_sub(now).min(take.depth_us);
        let interval = take.interval_us.max(1);
        let wanted = u64::try_from(take.want).unwrap_or(0);
        let granted = wanted.min(take.depth_us.saturating_sub(debt) / interval);
        let back = interval.saturating_mul(take.want.min(0).unsigned_abs());
        let debt = debt.saturating_add(granted.saturating_mul(interval)).saturating_sub(back);
        if take.want != 0 {
            let full_at = now.saturating_add(debt);
            self.cells.insert(take.key.clone(), full_at);
            changes.push(Change::Cell(take.key.clone(), full_at));
        }
        Taken { granted, debt_us: debt }
    }

    pub(super) fn hold(&mut self, parts: &[Part], now: u64, changes: &mut Vec<Change>) -> Held {
        let shares: Vec<Share> = parts.iter().map(|part| self.share(part, now)).collect();
        let granted = parts.iter().zip(&shares).all(|(part, share)| part.want == 0 || share.granted > 0);
        if granted {
            for (part, share) in parts.iter().zip(&shares) {
                let value = part.base.saturating_add(i64::try_from(share.granted).unwrap_or(i64::MAX));
                self.set(&part.key, &part.part, Field { value, expires: part.expires }, changes);
            }
        }
        Held { granted, shares }
    }

    fn share(&self, part: &Part, now: u64) -> Share {
        let fields = self.sums.get(&part.key).into_iter().flatten();
        let others = fields.filter(|(name, field)| **name != part.part && field.expires > now);
        let others = others.fold(0_i64, |sum, (_, field)| sum.saturating_add(field.value));
        let room = part.cap.map_or(i64::MAX, |cap| cap.saturating_sub(others).saturating_sub(part.base));
        Share { granted: part.want.min(u64::try_from(room).unwrap_or(0)), others }
    }

    fn set(&mut self, key: &str, part: &str, field: Field, changes: &mut Vec<Change>) {
        self.sums.entry(key.to_owned()).or_default().insert(part.to_owned(), field);
        changes.push(Change::Part(key.to_owned(), part.to_owned(), Some(field)));
    }

    pub(super) fn correct(
        &mut self,
        key: &str,
        correction: Correction,
        expires: u64,
        now: u64,
        changes: &mut Vec<Change>,
    ) -> i64 {
        let live = self.sums.get(key).into_iter().flatten().filter(|(_, field)| field.expires > now);
        let (mut total, mut by_hand) = (0_i64, 0_i64);
        for (part, field) in live {
            total = total.saturating_add(field.value);
            by_hand = if part == BY_HAND { field.value } else { by_hand };
        }
        let by = match correction {
            Correction::By(by) => by,
            Correction::To(sum) => sum.saturating_sub(total),
        };
        self.set(key, BY_HAND, Field { value: by_hand.saturating_add(by), expires }, changes);
        total.saturating_add(by)
    }

    pub(super) fn record(&mut self, instance: &str, rows: &[UsageRow], changes: &mut Vec<Change>) {
        for row in rows {
            self.put_usage(instance, row);
            changes.push(Change::Usage(instance.to_owned(), row.clone()));
        }
    }

    fn put_usage(&mut self, instance: &str, row: &UsageRow) {
        let day = self.usage.entry((row.day, row.tenant.clone())).or_default();
        day.insert((row.agent.clone(), row.model.clone(), instance.to_owned()), row.counts());
    }

    pub(super) fn usage(&self, tenant: Option<&str>, from: u32, to: u32) -> Vec<UsageRow> {
        let days = self.usage.range((from, String::new())..).take_while(|((day, _), _)| *day <= to);
        let days = days.filter(|((_, owner), _)| tenant.is_none_or(|tenant| tenant == owner));
        let rows = days.flat_map(|((day, tenant), rows)| {
            rows.iter().map(|((agent, model, _), counts)| {
                let (tenant, agent, model) = (tenant.clone(), agent.clone(), model.clone());
                UsageRow { day: *day, tenant, agent, model, ..UsageRow::default() }.with_counts(*counts)
            })
        });
        summed(rows.collect())
    }

    pub(super) fn claim(&mut self, name: &str, owner: &str, ends: u64, now: u64, changes: &mut Vec<Change>) -> bool {
        if self.claims.get(name).is_some_and(|(holder, ends)| holder != owner && *ends > now) {
            return false;
        }
        self.claims.insert(name.to_owned(), (owner.to_owned(), ends));
        changes.push(Change::Claim(name.to_owned(), Some((owner.to_owned(), ends))));
        true
    }

    pub(super) fn holder(&self, name: &str, now: u64) -> Option<String> {
        self.claims.get(name).filter(|(_, ends)| *ends > now).map(|(owner, _)| owner.clone())
    }

    pub(super) fn release(&mut self, name: &str, owner: &str, changes: &mut Vec<Change>) {
        if self.claims.get(name).is_some_and(|(holder, _)| holder == owner) {
            self.claims.remove(name);
            changes.push(Change::Claim(name.to_owned(), None));
        }
    }

    pub(super) fn beat(&mut self, instance: &str, ends: u64, now: u64) -> Beat {
        self.instances.insert(instance.to_owned(), ends);
        self.instances.retain(|_, ends| *ends > now);
        Beat { instances: self.instances.len() as u64, epoch: self.epoch.clone(), now }
    }

    /// Forgets what has expired, now and then.
    fn sweep(&mut self, time: &dyn Time, changes: &mut Vec<Change>) {
        self.calls = self.calls.wrapping_add(1);
        if !self.calls.is_multiple_of(SWEEP_EVERY) {
            return;
        }
        let (now, steady) = (time.wall_secs(), time.steady_us());
        self.cells.retain(|key, full_at| {
            let kept = *full_at > steady;
            if !kept {
                changes.push(Change::Cell(key.clone(), 0));
            }
            kept
        });
        self.sums.retain(|key, parts| {
            parts.retain(|part, field| {
                let kept = field.expires > now;
                if !kept {
                    changes.push(Change::Part(key.clone(), part.clone(), None));
                }
                kept
            });
            !parts.is_empty()
        });
        self.claims.retain(|name, (_, ends)| {
            let kept = *ends > now;
            if !kept {
                changes.push(Change::Claim(name.clone(), None));
            }
            kept
        });
        let oldest = u32::try_from(now / 86_400).unwrap_or(u32::MAX).saturating_sub(DAYS_KEPT);
        let kept = self.usage.split_off(&(oldest, String::new()));
        for ((day, tenant), counted) in std::mem::replace(&mut self.usage, kept) {
            for (agent, model, instance) in counted.into_keys() {
                let row = UsageRow { day, tenant: tenant.clone(), agent, model, ..UsageRow::default() };
                changes.push(Change::Usage(instance, row));
            }
        }
    }
}

impl Store for MemoryStore {
    fn cells(&self, takes: Vec<Cells>) -> Outcome<'_, Vec<Taken>> {
        let (taken, _) = self.with(|tables, time, changes| {
            let now = time.steady_us();
            takes.iter().map(|take| tables.take(take, now, changes)).collect()
        });
        ready(Ok(taken)).boxed()
    }

    fn hold(&self, groups: Vec<Vec<Part>>) -> Outcome<'_, Vec<Held>> {
        let (held, _) = self.with(|tables, time, changes| {
            let now = time.wall_secs();
            groups.iter().map(|parts| tables.hold(parts, now, changes)).collect()
        });
        ready(Ok(held)).boxed()
    }

    fn correct(&self, key: String, correction: Correction, expires: u64) -> Outcome<'_, i64> {
        let (total, _) =
            self.with(|tables, time, changes| tables.correct(&key, correction, expires, time.wall_secs(), changes));
        ready(Ok(total)).boxed()
    }

    fn record<'a>(&'a self, instance: &'a str, rows: Vec<UsageRow>) -> Outcome<'a, ()> {
        self.with(|tables, _, changes| tables.record(instance, &rows, changes));
        ready(Ok(())).boxed()
    }

    fn usage<'a>(&'a self, tenant: Option<&'a str>, from: u32, to: u32) -> Outcome<'a, Vec<UsageRow>> {
        ready(Ok(self.tables.lock().usage(tenant, from, to))).boxed()
    }

    fn claim<'a>(&'a self, name: &'a str, owner: &'a str, lasts: Duration) -> Outcome<'a, bool> {
        let (claimed, _) = self.with(|tables, time, changes| {
            let now = time.wall_secs();
            tables.claim(name, owner, now.saturating_add(lasts.as_secs()), now, changes)
        });
        ready(Ok(claimed)).boxed()
    }

    fn holder<'a>(&'a self, name: &'a str) -> Outcome<'a, Option<String>> {
        let (holder, _) = self.with(|tables, time, _| tables.holder(name, time.wall_secs()));
        ready(Ok(holder)).boxed()
    }

    fn release<'a>(&'a self, name: &'a str, owner: &'a str) -> Outcome<'a, ()> {
        self.with(|tables, _, changes| tables.release(name, owner, changes));
        ready(Ok(())).boxed()
    }

    fn beat<'a>(&'a self, instance: &'a str, lasts: Duration) -> Outcome<'a, Beat> {
        let (beat, _) = self.with(|tables, time, _| {
            let now = time.wall_secs();
            tables.beat(instance, now.saturating_add(lasts.as_secs()), now)
        });
        ready(Ok(beat)).boxed()
    }
}
