//! Owns what can be read off a policy without running it: which facts of the context it reads, and words it
//! compares them with that can never occur. Does not type-check; Cedar's validator does (`load`).
//! Invariant: when in doubt a policy counts as reading more, so nothing is cached that should not be.

use std::collections::BTreeSet;

use cedar_policy::{Policy, PrincipalConstraint, ResourceConstraint};
use serde_json::Value;

/// Facts that differ from call to call: decisions that read one are not kept.
const VOLATILE: [&str; 3] = ["now", "source_ip", "message_bytes"];

/// Values of `context.door`.
pub(super) const DOORS: [&str; 3] = ["http", "mcp", "websocket"];
/// Values of `context.reach`.
const REACHES: [&str; 3] = ["owned", "component", "os_wide"];
/// Values of `context.scopes_mode`.
const MODES: [&str; 2] = ["add", "ceiling"];

/// A comparison that can never hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DeadWord {
    /// The attribute of the context.
    pub(super) attribute: &'static str,
    /// The word it is compared with.
    pub(super) word: String,
    /// The nearest word that can occur, if one is near.
    pub(super) nearest: Option<String>,
}

/// What a policy reads and compares.
#[derive(Debug, Default)]
pub(super) struct Reading {
    attributes: BTreeSet<String>,
    /// Of anything, not only of the context.
    names: BTreeSet<String>,
    whole_context: bool,
    /// Attributes or parents of an entity.
    entities: bool,
    words: BTreeSet<(String, String)>,
}

impl Reading {
    /// Reads a policy; one that cannot be read counts as reading everything.
    pub(super) fn of(policy: &Policy) -> Self {
        let by_parents =
            matches!(policy.principal_constraint(), PrincipalConstraint::In(_) | PrincipalConstraint::IsIn(..))
                || matches!(policy.resource_constraint(), ResourceConstraint::In(_) | ResourceConstraint::IsIn(..));
        let mut reading = Self { entities: by_parents, ..Self::default() };
        match policy.to_json() {
            Ok(json) => reading.visit(json.get("conditions").unwrap_or(&Value::Null)),
            Err(_) => reading.whole_context = true,
        }
        reading
    }

    /// Says whether the policy may answer differently for the same caller, operation and resource.
    pub(super) fn is_volatile(&self) -> bool {
        self.whole_context || VOLATILE.iter().any(|&name| self.attributes.contains(name))
    }

    /// Says whether it may read an attribute of that name, of whatever has one.
    pub(super) fn reads(&self, attribute: &str) -> bool {
        self.names.contains(attribute)
    }

    /// Says whether it may look at caller or resource beyond their names.
    pub(super) fn reads_entities(&self) -> bool {
        self.whole_context || self.entities
    }

    /// Says whether what it reads is not known by name.
    pub(super) fn reads_everything(&self) -> bool {
        self.whole_context
    }

    /// Comparisons with words that can never occur.
    pub(super) fn dead_words(&self, operations: &[&str]) -> Vec<DeadWord> {
        let closed: [(&'static str, &[&str]); 4] =
            [("door", &DOORS), ("operation", operations), ("reach", &REACHES), ("scopes_mode", &MODES)];
        let mut dead = Vec::new();
        for (attribute, known) in closed {
            let used = self.words.iter().filter(|(name, word)| name == attribute && !known.contains(&word.as_str()));
            dead.extend(used.map(|(_, word)| DeadWord {
                attribute,
                word: word.clone(),
                nearest: nearest(word, known.iter().copied()),
            }));
        }
        dead
    }

    fn visit(&mut self, node: &Value) {
        match node {
            Value::Array(items) => items.iter().for_each(|item| self.visit(item)),
            Value::Object(fields) => {
                if node == &context() {
                    self.whole_context = true;
                    return;
                }
                let tags = ["in", "getTag", "hasTag"].iter().any(|operator| fields.contains_key(*operator));
                let access = fields.contains_key(".") || fields.contains_key("has");
                self.entities |= tags || (access && context_attribute(node).is_none());
                for access in [node.get("."), node.get("has")].into_iter().flatten() {
                    match access.get("attr").map(|attr| attr.as_str()) {
                        Some(Some(name)) => _ = self.names.insert(name.to_owned()),
                        // `has a.b`: a path, or something newer than this code.
                        Some(None) | None => self.whole_context = true,
                    }
                }
                if let Some(name) = context_attribute(node) {
                    self.attributes.insert(name.to_owned());
                    return;
                }
                for operator in ["==", "!=", "contains"] {
                    if let Some(sides) = fields.get(operator) {
                        self.compare(sides);
                    }
                }
                fields.values().for_each(|value| self.visit(value));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn compare(&mut self, sides: &Value) {
        let (Some(left), Some(right)) = (sides.get("left"), sides.get("right")) else { return };
        for (one, other) in [(left, right), (right, left)] {
            let Some(name) = context_attribute(one) else { continue };
            let words = literals(other).into_iter().map(|word| (name.to_owned(), word.to_owned()));
            self.words.extend(words);
        }
    }
}

fn context() -> Value {
    serde_json::json!({ "Var": "context" })
}

/// The attribute of `context.name` and of `context has name`.
fn context_attribute(node: &Value) -> Option<&str> {
    let access = node.get(".").or_else(|| node.get("has"))?;
    if access.get("left")? == &context() { access.get("attr")?.as_str() } else { None }
}

/// The strings of a literal: `"mcp"` or `["http", "mcp"]`.
fn literals(node: &Value) -> Vec<&str> {
    let value = node.get("Value").or_else(|| node.get("Set")).unwrap_or(node);
    match value {
        Value::String(word) => vec![word],
        Value::Array(items) => items.iter().flat_map(literals).collect(),
        Value::Object(_) | Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    }
}

/// The candidate that a typo most likely meant.
pub(super) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    let scored = candidates.map(|c| (strsim::damerau_levenshtein(word, c), c));
    let (distance, best) = scored.min()?;
    (distance <= 1 + word.len() / 4).then(|| best.to_owned())
}
