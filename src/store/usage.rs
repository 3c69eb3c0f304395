//! Owns one row of usage: what a tenant's agent used of a model on a day. Does not price it (`quota`).
//! Invariant: rows of one key add up in any order.

/// Days that usage is kept.
pub const DAYS_KEPT: u32 = 400;

/// What runs of an agent used of a model on one UTC day.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct UsageRow {
    /// Days since 1970-01-01.
    pub day: u32,
    /// The tenant.
    pub tenant: String,
    /// Cluster and component, such as `main/web-agent`.
    pub agent: String,
    /// The model as AgentOS names it.
    pub model: String,
    /// Runs that used it.
    pub runs: u64,
    /// Input tokens.
    pub input: u64,
    /// Output tokens.
    pub output: u64,
    /// Price, in millionths of the currency.
    pub micros: u64,
}

// === impl UsageRow ===

impl UsageRow {
    /// What rows must have in common to be added up.
    pub(super) fn key(&self) -> (u32, &str, &str, &str) {
        (self.day, &self.tenant, &self.agent, &self.model)
    }

    pub(super) fn counts(&self) -> [u64; 4] {
        [self.runs, self.input, self.output, self.micros]
    }

    pub(super) fn with_counts(self, [runs, input, output, micros]: [u64; 4]) -> Self {
        Self { runs, input, output, micros, ..self }
    }

    /// Adds what another row counts.
    pub fn add(&mut self, other: &Self) {
        self.runs = self.runs.saturating_add(other.runs);
        self.input = self.input.saturating_add(other.input);
        self.output = self.output.saturating_add(other.output);
        self.micros = self.micros.saturating_add(other.micros);
    }
}

/// Adds up rows of one key; the result is sorted by key.
pub(super) fn summed(mut rows: Vec<UsageRow>) -> Vec<UsageRow> {
    rows.sort();
    let mut sums: Vec<UsageRow> = Vec::new();
    for row in rows {
        match sums.last_mut().filter(|last| last.key() == row.key()) {
            Some(last) => last.add(&row),
            None => sums.push(row),
        }
    }
    sums
}
