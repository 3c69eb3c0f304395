//! Owns the book of usage: what this instance counted per day, tenant, agent and model, until a store has it.
//! Does not price (`money`) and does not write (`upkeep`).
//! Invariants: nothing is forgotten before the store has it; what a book that was closed counted and what the next one
//! counts are parts of their own in the store; no token is lost to the bound, further names are counted under `other`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::money::{ModelSpent, Prices};
use crate::principal::TenantId;
use crate::store::UsageRow;

/// Rows after which new ones share a row per tenant, and most names of agents and models.
const ROWS_MAX: usize = 131_072;
/// Rows after which new tenants share one.
const ROWS_LIMIT: usize = ROWS_MAX + ROWS_MAX / 2;
/// Rows at which a book is closed once the store has all of it.
const ROWS_FULL: usize = ROWS_MAX / 2;
/// The name of what has no row of its own.
const OTHER: &str = "other";
/// The model of what was charged beyond what AgentOS reported.
const ESTIMATED: &str = "estimated";

/// Usage in this process.
#[derive(Debug, Default)]
pub(super) struct Book(Mutex<Pages>);

#[derive(Debug, Default)]
struct Pages {
    rows: HashMap<Key, Counts>,
    /// Keys of rows that no store has yet.
    changed: Vec<Key>,
    /// Every name of an agent or model is kept once.
    names: HashSet<Arc<str>>,
    /// How many books were closed before.
    volume: u64,
    /// Pages on their way to the store.
    writing: u32,
}

/// Rows on their way to the store.
#[derive(Debug)]
#[must_use = "the book waits to hear whether the store has them"]
pub(super) struct Page {
    /// Which book they are from: a part of its own in the store.
    pub(super) volume: u64,
    pub(super) rows: Vec<UsageRow>,
}

/// Day, tenant, agent, model. Clones share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key(u32, TenantId, Arc<str>, Arc<str>);

#[derive(Debug, Default)]
struct Counts {
    runs: u64,
    input: u64,
    output: u64,
    micros: u64,
    changed: bool,
}

// === impl Book ===

impl Book {
    /// Counts a run: what it used of each model, and tokens that were charged beyond.
    pub(super) fn run<'a>(
        &self,
        day: u64,
        tenant: &TenantId,
        agent: &str,
        models: impl Iterator<Item = ModelSpent<'a>>,
        beyond: u64,
        prices: &Prices,
    ) {
        let day = u32::try_from(day).unwrap_or(u32::MAX);
        let beyond = ModelSpent { model: ESTIMATED, input: 0, output: beyond };
        let mut pages = self.0.lock();
        for spent in models.chain((beyond.output > 0).then_some(beyond)) {
            let key = Key(day, tenant.clone(), pages.name(agent), pages.name(spent.model));
            pages.add(key, spent, prices.of(spent));
        }
    }

    /// Rows that no store has yet, at most so many; `None` when there are none. [`Book::told`] must follow.
    pub(super) fn changed(&self, most: usize) -> Option<Page> {
        let mut pages = self.0.lock();
        let Pages { rows, changed, volume, writing, .. } = &mut *pages;
        if changed.is_empty() {
            return None;
        }
        *writing += 1;
        let told = changed.split_off(changed.len().saturating_sub(most));
        let row = |key: Key| {
            let counts = rows.get_mut(&key)?;
            counts.changed = false;
            let Counts { runs, input, output, micros, .. } = *counts;
            let Key(day, tenant, agent, model) = key;
            let (tenant, agent, model) = (tenant.to_string(), agent.to_string(), model.to_string());
            Some(UsageRow { day, tenant, agent, model, runs, input, output, micros })
        };
        Some(Page { volume: *volume, rows: told.into_iter().filter_map(row).collect() })
    }

    /// The store has the rows of a page, or has not heard of `unheard`.
    pub(super) fn told(&self, unheard: &[UsageRow]) {
        let mut pages = self.0.lock();
        pages.writing = pages.writing.saturating_sub(1);
        for row in unheard {
            let Ok(tenant) = TenantId::new(&row.tenant) else { continue };
            let key = Key(row.day, tenant, pages.name(&row.agent), pages.name(&row.model));
            pages.mark(key);
        }
    }

    /// The store has lost everything.
    pub(super) fn all_again(&self) {
        let mut pages = self.0.lock();
        let keys: Vec<Key> = pages.rows.keys().cloned().collect();
        keys.into_iter().for_each(|key| pages.mark(key));
    }

    /// Closes a book that is full and told; forgets days that are over and told.
    pub(super) fn turn(&self, today: u64) {
        let yesterday = u32::try_from(today).unwrap_or(u32::MAX).saturating_sub(1);
        let mut pages = self.0.lock();
        if pages.rows.len() >= ROWS_FULL && pages.changed.is_empty() && pages.writing == 0 {
            *pages = Pages { volume: pages.volume + 1, ..Pages::default() };
        }
        if pages.writing > 0 || pages.rows.keys().all(|key| key.0 >= yesterday) {
            return;
        }
        pages.rows.retain(|key, counts| key.0 >= yesterday || counts.changed);
        // A name that only the set holds is used by no row.
        pages.names.retain(|name| Arc::strong_count(name) > 1);
    }
}

impl Pages {
    fn add(&mut self, mut key: Key, spent: ModelSpent<'_>, micros: u64) {
        if self.rows.len() >= ROWS_MAX && !self.rows.contains_key(&key) {
            let other = self.name(OTHER);
            key = Key(key.0, key.1, other.clone(), other);
        }
        if self.rows.len() >= ROWS_LIMIT
            && !self.rows.contains_key(&key)
            && let Ok(tenant) = TenantId::new(OTHER)
        {
            key.1 = tenant;
        }
        let counts = self.rows.entry(key.clone()).or_default();
        counts.runs = counts.runs.saturating_add(1);
        counts.input = counts.input.saturating_add(spent.input);
        counts.output = counts.output.saturating_add(spent.output);
        counts.micros = counts.micros.saturating_add(micros);
        self.mark(key);
    }

    fn mark(&mut self, key: Key) {
        if let Some(counts) = self.rows.get_mut(&key)
            && !std::mem::replace(&mut counts.changed, true)
        {
            self.changed.push(key);
        }
    }

    fn name(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return Arc::clone(known);
        }
        let name = if self.names.len() < ROWS_MAX { name } else { OTHER };
        let name: Arc<str> = self.names.get(name).cloned().unwrap_or_else(|| name.into());
        self.names.insert(Arc::clone(&name));
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(tenants: usize) -> Book {
        let (book, prices) = (Book::default(), Prices::default());
        for n in 0..tenants {
            let tenant = TenantId::new(&format!("tenant-{n}")).expect("plain");
            let models = [ModelSpent { model: "m", input: 2, output: 1 }];
            book.run(20_000, &tenant, "main/agents/a", models.into_iter(), 4, &prices);
        }
        book
    }

    fn tokens(rows: &[UsageRow]) -> u64 {
        rows.iter().map(|row| row.input + row.output).sum()
    }

    /// Rows that the store then has.
    fn heard(book: &Book, most: usize) -> Vec<UsageRow> {
        let Some(page) = book.changed(most) else { return Vec::new() };
        book.told(&[]);
        page.rows
    }

    #[test]
    fn every_row_is_told_once_and_again_when_it_was_not_heard() {
        let book = book(3);
        let mut first = book.changed(4).expect("six rows").rows;
        assert_eq!((first.len(), heard(&book, 100).len(), heard(&book, 100).len()), (4, 2, 0));
        book.told(&first);
        let mut again = heard(&book, 100);
        again.sort();
        first.sort();
        assert_eq!(again, first);
        book.all_again();
        assert_eq!(tokens(&heard(&book, 100)), 21);
        book.turn(20_002);
        book.all_again();
        assert!(book.changed(100).is_none(), "days that are over are forgotten");
    }

    #[test]
    fn a_spray_of_tenants_is_bounded_and_loses_no_token() {
        let book = book(400_000);
        assert!(book.0.lock().rows.len() <= ROWS_LIMIT + 1);
        let page = book.changed(usize::MAX).expect("rows");
        assert_eq!((page.volume, tokens(&page.rows)), (0, 400_000 * 7));
        book.turn(20_000);
        assert!(!book.0.lock().rows.is_empty(), "not before the store has them");
        book.told(&[]);
        book.turn(20_000);
        assert!(book.0.lock().rows.is_empty());
        let tenant = TenantId::new("a").expect("plain");
        book.run(20_000, &tenant, "x", std::iter::empty(), 5, &Prices::default());
        assert_eq!(book.changed(9).expect("a row").volume, 1);
    }
}
