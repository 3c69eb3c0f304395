//! Owns MAY THEY: a verified caller, a catalogue row and facts become a decision, by Cedar policies.
//! Does not verify callers (`identity`), look up facts (`gateway`), log or count.
//! Invariants: nothing is allowed that no policy permits; a `forbid` always wins; a policy that cannot be
//! evaluated denies; a set of policies is whole and valid or is not loaded at all.

mod ask;
mod attribute;
mod cases;
mod entities;
mod instant;
mod lint;
mod load;
mod memo;
mod schema;
mod scopes;
mod sieve;
mod slice;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use cedar_policy::Schema;
use foldhash::HashMap;

use crate::agentos::Operation;

pub use ask::{ApprovalFacts, Ask, Context, Decision, ResourceFacts, Shadow};
pub use cases::{Case, CaseContext, CaseFile, CasePrincipal, CaseResource, CaseResult, Expect};
pub use load::{LoadError, LoadErrors};
pub use scopes::ADMIN_SCOPE;

use attribute::Reads;
use entities::Names;
use load::{Judge, Loaded};
use memo::Memo;
use sieve::Known;
use slice::Slice;

/// Where the policies are and how scopes count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Directory of `*.cedar` files; `shadow/` inside it is evaluated but not enforced.
    pub dir: PathBuf,
    /// What AgentOS scopes of a credential do.
    pub scopes: ScopesMode,
}

/// What AgentOS scopes of a credential do. Policies read it as `context.scopes_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScopesMode {
    /// They grant, beside the roles.
    #[default]
    Add,
    /// They only narrow what the roles grant.
    Ceiling,
}

/// Where a policy stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The file.
    pub file: String,
    /// The line it starts on.
    pub line: usize,
}

/// A loaded, valid set of policies with its decision cache.
pub struct Policies {
    schema: Schema,
    names: Names,
    scopes: ScopesMode,
    slices: HashMap<&'static str, Slice>,
    rows: BTreeMap<&'static str, &'static Operation>,
    locations: BTreeMap<String, Location>,
    memo: Memo,
}

// === impl ScopesMode ===

impl ScopesMode {
    /// The word that configuration and policies use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Ceiling => "ceiling",
        }
    }
}

// === impl Policies ===

impl Policies {
    /// Reads, checks and prepares the policies of a directory for these rows.
    ///
    /// # Errors
    /// [`LoadErrors`] with every problem found: unreadable files, syntax, unknown words, missing or repeated
    /// ids, policies that can never apply, no policy at all.
    pub fn load(settings: &Settings, rows: &[&'static Operation]) -> Result<Self, LoadErrors> {
        let schema = Schema::from_str(&schema::text(rows)).map_err(|error| {
            let message = format!("the catalogue makes no valid schema: {error}");
            LoadErrors { errors: vec![LoadError::of("[[operation]]", message, None)] }
        })?;
        let (enforced, shadow) = read(&settings.dir, &Judge::new(&schema, rows.iter().map(|row| row.id).collect()))?;
        let prepared = Names::new().and_then(|names| Some((slices(rows, &names, &enforced, &shadow)?, names)));
        let (slices, names) = prepared.ok_or_else(|| {
            let message = "the policies are valid and yet cannot be prepared";
            LoadErrors { errors: vec![LoadError::of(settings.dir.display(), message, None)] }
        })?;
        Ok(Self {
            names,
            slices,
            scopes: settings.scopes,
            rows: rows.iter().map(|row| (row.id, *row)).collect(),
            locations: locations(&shadow, &enforced),
            memo: Memo::new(),
            schema,
        })
    }

    /// The `.cedarschema` text that policies for these rows are checked against.
    pub fn schema(rows: &[&'static Operation]) -> String {
        schema::text(rows)
    }

    /// Decides one call; from the cache where no applicable policy reads the clock, the address or the message.
    ///
    /// Never allows what it cannot evaluate. Filtering a list is one call per item.
    pub fn decide(&self, ask: &Ask<'_>) -> Decision {
        let Some(slice) = self.slices.get(ask.operation.id).filter(|_| ask.resource.kind == ask.operation.resource)
        else {
            return Decision::broken();
        };
        if slice.volatile {
            return self.evaluate(slice, ask, self.scopes);
        }
        self.memo.get_or(ask, || self.evaluate(slice, ask, self.scopes))
    }

    /// Where a policy stands, for `explain`; of a shadow policy when only that has the id.
    pub fn location(&self, policy: &str) -> Option<&Location> {
        self.locations.get(policy)
    }

    fn evaluate(&self, slice: &Slice, ask: &Ask<'_>, mode: ScopesMode) -> Decision {
        let known = Known::of_call(ask, mode);
        if cfg!(debug_assertions) {
            let Ok((request, entities)) = self.names.build(ask, &slice.action, mode, Reads::ALL, Some(&self.schema))
            else {
                return Decision::broken();
            };
            debug_assert!(slice.agrees(known, &request, &entities), "Cedar says otherwise about {ask:?}");
        }
        let glance = slice.glance(known);
        if glance.is_settled {
            return slice.decide(&glance, None);
        }
        match self.names.build(ask, &slice.action, mode, glance.reads, None) {
            Ok((request, entities)) => slice.decide(&glance, Some((&request, &entities))),
            Err(_) => Decision::broken(),
        }
    }
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies").field("locations", &self.locations).finish_non_exhaustive()
    }
}

/// Reads the enforced and the shadow policies, or tells everything that is wrong with them.
fn read(dir: &Path, judge: &Judge) -> Result<(Vec<Loaded>, Vec<Loaded>), LoadErrors> {
    let mut problems = Vec::new();
    let enforced = load::read(dir, judge, &mut problems);
    let shadow = load::read(&dir.join("shadow"), judge, &mut problems);
    if enforced.is_empty() && problems.is_empty() {
        problems.push(no_policy(dir));
    }
    problems.sort();
    if problems.is_empty() { Ok((enforced, shadow)) } else { Err(LoadErrors { errors: problems }) }
}

fn no_policy(dir: &Path) -> LoadError {
    let help = "without a policy every call would be refused: copy the shipped `policies/` or set `dir` in `[policy]`";
    LoadError::of(dir.display(), "no policy found in `*.cedar`", Some(help))
}

fn slices(
    rows: &[&'static Operation],
    names: &Names,
    enforced: &[Loaded],
    shadow: &[Loaded],
) -> Option<HashMap<&'static str, Slice>> {
    let rules = slice::rules(enforced, shadow)?;
    rows.iter().map(|row| Some((row.id, Slice::new(row, names, &rules)?))).collect()
}

/// Later ones win: an enforced policy is found before a shadow policy of the same id.
fn locations(shadow: &[Loaded], enforced: &[Loaded]) -> BTreeMap<String, Location> {
    let all = shadow.iter().chain(enforced);
    all.map(|policy| (policy.id.clone(), Location { file: policy.file.clone(), line: policy.line })).collect()
}

#[cfg(test)]
mod tests;
