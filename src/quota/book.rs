//! Owns the book of usage: what this instance counted per day, tenant, agent and model, until a store has it.
//! Does not price (`money`) and does not write (`upkeep`).
//! Invariant: nothing is taken out before the store has it; further names than fit are counted under `other`.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;

use super::money::{ModelSpent, Prices};
use crate::store::UsageRow;

/// Most rows of one instance.
const ROWS_MAX: usize = 262_144;
/// The name of what has no row of its own.
const OTHER: &str = "other";
/// The model of what was charged beyond what AgentOS reported.
const ESTIMATED: &str = "estimated";

/// Usage in this process.
#[derive(Debug, Default)]
pub(super) struct Book(Mutex<Pages>);

#[derive(Debug, Default)]
struct Pages {
    rows: HashMap<Key, UsageRow>,
    changed: HashSet<Key>,
}

type Key = (u32, String, String, String);

// === impl Book ===

impl Book {
    /// Counts a run: what it used of each model, and tokens that were charged beyond.
    pub(super) fn run<'a>(
        &self,
        day: u64,
        tenant: &str,
        agent: &str,
        models: impl Iterator<Item = ModelSpent<'a>>,
        beyond: u64,
        prices: &Prices,
    ) {
        let day = u32::try_from(day).unwrap_or(u32::MAX);
        let beyond = ModelSpent { model: ESTIMATED, input: 0, output: beyond };
        let mut pages = self.0.lock();
        for spent in models.chain((beyond.output > 0).then_some(beyond)) {
            let micros = prices.of(spent);
            pages.add(UsageRow {
                day,
                tenant: tenant.to_owned(),
                agent: agent.to_owned(),
                model: spent.model.to_owned(),
                runs: 1,
                input: spent.input,
                output: spent.output,
                micros,
            });
        }
    }

    /// Rows that no store has yet, at most so many; they count as told until [`Book::again`].
    pub(super) fn changed(&self, most: usize) -> Vec<UsageRow> {
        let mut pages = self.0.lock();
        let keys: Vec<Key> = pages.changed.iter().take(most).cloned().collect();
        for key in &keys {
            pages.changed.remove(key);
        }
        keys.iter().filter_map(|key| pages.rows.get(key).cloned()).collect()
    }

    /// The store did not hear about these.
    pub(super) fn again(&self, rows: &[UsageRow]) {
        let mut pages = self.0.lock();
        pages.changed.extend(rows.iter().map(key));
    }

    /// The store has lost everything.
    pub(super) fn all_again(&self) {
        let mut pages = self.0.lock();
        pages.changed = pages.rows.keys().cloned().collect();
    }

    /// Forgets days that are over and told.
    pub(super) fn turn(&self, today: u64) {
        let yesterday = u32::try_from(today).unwrap_or(u32::MAX).saturating_sub(1);
        let mut pages = self.0.lock();
        let Pages { rows, changed } = &mut *pages;
        rows.retain(|key, _| key.0 >= yesterday || changed.contains(key));
    }
}

impl Pages {
    fn add(&mut self, mut row: UsageRow) {
        if self.rows.len() >= ROWS_MAX && !self.rows.contains_key(&key(&row)) {
            (row.agent, row.model) = (OTHER.to_owned(), OTHER.to_owned());
        }
        let key = key(&row);
        match self.rows.get_mut(&key) {
            Some(known) => known.add(&row),
            None => drop(self.rows.insert(key.clone(), row)),
        }
        self.changed.insert(key);
    }
}

fn key(row: &UsageRow) -> Key {
    (row.day, row.tenant.clone(), row.agent.clone(), row.model.clone())
}
