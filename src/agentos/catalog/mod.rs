//! Owns the catalogue: one row per AgentOS operation, operators' rows beside them, and their router.
//! Does not read configuration (`config` makes the rows of `[[operation]]`) and decides nothing about callers.
//! Invariant: a `Catalog` exists only if all of its rows passed every check of `check`.

mod agents;
mod approvals;
mod check;
mod components;
mod evaluations;
mod facets;
mod knowledge;
mod memories;
mod os;
mod row;
mod schedules;
mod sessions;
mod teams;
mod traces;
mod undocumented;
mod workflows;

#[cfg(test)]
mod drift;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{LazyLock, Mutex, PoisonError};

use super::matching::{Matched, NotMatched, Router};
use super::operation::{Exposure, Kind, OnRun, Operation};
use super::path::CanonicalPath;

/// Rows by family, in reading order. All but the last stand in an OpenAPI document of AgentOS. `facets` come after
/// them: they have no path of their own.
const FAMILIES: &[&[Operation]] = &[
    agents::ROWS,
    teams::ROWS,
    workflows::ROWS,
    sessions::ROWS,
    memories::ROWS,
    knowledge::ROWS,
    approvals::ROWS,
    traces::ROWS,
    schedules::ROWS,
    components::ROWS,
    evaluations::ROWS,
    os::ROWS,
    undocumented::ROWS,
];

/// All rows and their compiled router.
#[derive(Debug, Clone)]
pub struct Catalog {
    rows: &'static [Operation],
    router: Router,
}

/// Everything that is wrong with a set of rows, found in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogError {
    /// The problems, in the order of the rows.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong with one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Id of the row, as written.
    pub row: &'static str,
    /// What is wrong, lower case, one line.
    pub text: String,
}

// === impl Catalog ===

impl Catalog {
    /// The rows that Tollbridge ships with.
    ///
    /// # Panics
    /// When a shipped row breaks a rule of the catalogue, which a test excludes.
    pub fn shipped() -> Self {
        Self::with_rows(Vec::new()).expect("tests check the shipped rows")
    }

    /// The shipped rows and an operator's.
    ///
    /// A row with the id of a shipped row that is `Off` takes its place: so an operator turns one on. The table
    /// is kept for the life of the process, once per distinct set of rows.
    ///
    /// # Errors
    /// [`CatalogError`] lists every problem of every row.
    pub fn with_rows(rows: Vec<Operation>) -> Result<Self, CatalogError> {
        let mut problems = check::operator_rows(&rows);
        let merged = merge(rows);
        problems.extend(check::rows(&merged));
        if !problems.is_empty() {
            return Err(CatalogError { problems });
        }
        let rows = intern(merged);
        Ok(Self { rows, router: Router::new(rows) })
    }

    /// The shipped row with that id, at compile time: for code that names an operation.
    ///
    /// # Panics
    /// When there is none, which a `const` turns into an error of the compiler.
    pub const fn row(id: &str) -> &'static Operation {
        let mut at = 0;
        while let Some(row) = shipped_row(at) {
            if is_same(row.id, id) {
                return row;
            }
            at += 1;
        }
        panic!("the catalogue has no such row")
    }

    /// The shipped row behind a tool for a kind of component, at compile time.
    ///
    /// # Panics
    /// When there is none, which a `const` turns into an error of the compiler.
    pub const fn row_of_tool(tool: &str, kind: Kind) -> &'static Operation {
        let mut at = 0;
        while let Some(row) = shipped_row(at) {
            if let (Some(own), Some(under)) = (row.tool, row.kind())
                && is_same(own, tool)
                && under as usize == kind as usize
            {
                return row;
            }
            at += 1;
        }
        panic!("the catalogue has no such row")
    }

    /// Every row.
    pub fn rows(&self) -> &'static [Operation] {
        self.rows
    }

    /// The row with that id.
    pub fn get(&self, id: &str) -> Option<&'static Operation> {
        self.rows.iter().find(|row| row.id == id)
    }

    /// The row that does that to a run of such a component; an operator's only where none is shipped.
    pub fn on_run(&self, kind: Kind, on_run: OnRun) -> Option<&'static Operation> {
        self.rows.iter().find(|row| row.does(on_run) && row.kind() == Some(kind))
    }

    /// The operation that AgentOS would run for a request, by method and path.
    ///
    /// # Errors
    /// [`NotMatched::Unknown`] when no row has the path, [`NotMatched::MethodNotAllowed`] when rows have it with
    /// other methods only.
    pub fn find(&self, method: &http::Method, path: &CanonicalPath) -> Result<Matched, NotMatched> {
        self.router.find(method, path)
    }
}

// === impl CatalogError ===

impl fmt::Display for CatalogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let line_break = if index == 0 { "" } else { "\n" };
            write!(f, "{line_break}operation `{}`: {}", problem.row, problem.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for CatalogError {}

/// The shipped row at a place in reading order, facets left out.
#[expect(clippy::indexing_slicing, reason = "constants have no iterators; each index is below its length")]
const fn shipped_row(mut at: usize) -> Option<&'static Operation> {
    let mut family = 0;
    while family < FAMILIES.len() {
        let rows = FAMILIES[family];
        if at < rows.len() {
            return Some(&rows[at]);
        }
        at -= rows.len();
        family += 1;
    }
    None
}

/// Text comparison for constants, where `==` cannot be used.
#[expect(clippy::indexing_slicing, reason = "constants have no iterators; each index is below its length")]
const fn is_same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    if one.len() != other.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// Shipped rows, each replaced by the operator's row that turns it on; the operator's other rows follow.
fn merge(mut operator: Vec<Operation>) -> Vec<Operation> {
    let shipped = FAMILIES.iter().chain(std::iter::once(&facets::ROWS));
    let mut merged: Vec<Operation> = shipped.flat_map(|family| family.iter().copied()).collect();
    for row in &mut merged {
        if let Exposure::Off(_) = row.exposure
            && let Some(index) = operator.iter().position(|own| own.id == row.id)
        {
            *row = operator.remove(index);
        }
    }
    merged.extend(operator);
    merged
}

/// Keeps a table for the life of the process, so that rows are `&'static` everywhere.
///
/// Bounded by the number of distinct tables: reloading the same configuration finds the one it made before.
fn intern(rows: Vec<Operation>) -> &'static [Operation] {
    static TABLES: LazyLock<Mutex<Vec<&'static [Operation]>>> = LazyLock::new(Mutex::default);
    let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = tables.iter().find(|table| **table == rows) {
        return known;
    }
    let table: &'static [Operation] = rows.leak();
    tables.push(table);
    table
}
