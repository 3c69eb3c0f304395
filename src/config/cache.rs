//! Owns `[cache]`: how large the response cache is and how long answers live in it.
//! Does not decide what may be kept at all (the catalogue does).

use std::time::Duration;

use crate::agentos::{Caching, Catalog};
use crate::cache::{Rule, Settings};

use super::reader::{At, Table, Value};
use super::words::nearest;

/// Longest life of a kept answer.
const TTL_MAX: Duration = Duration::from_hours(24);

pub(super) fn read(root: &Table<'_>, catalog: Option<&Catalog>) -> Settings {
    let default = Settings { max_bytes: 64 << 20, rules: Vec::new() };
    let Some(table) = root.section("cache") else { return default };
    let max_bytes = table.get("max_bytes").and_then(|v| v.size(0..=64 << 30)).unwrap_or(default.max_bytes);
    let mut rules: Vec<At<Rule>> = Vec::new();
    for section in table.sections("rules") {
        let at = section.at;
        let Some(rule) = rule(section, catalog) else { continue };
        if let Some(earlier) = rules.iter().find(|earlier| earlier.value.operation == rule.operation) {
            let line = root.source.line(earlier.at);
            root.source.problem(
                at,
                format!("the operation `{}` already has a rule in line {line}", rule.operation),
                None,
            );
        }
        rules.push(At { value: rule, at });
    }
    table.close();
    Settings { max_bytes, rules: rules.into_iter().map(|rule| rule.value).collect() }
}

fn rule(table: Table<'_>, catalog: Option<&Catalog>) -> Option<Rule> {
    let operation = table.require("operation", "\"search_knowledge\"").and_then(|v| operation(&v, catalog));
    let life = |value: Option<Value<'_>>| value.and_then(|v| v.duration(Duration::ZERO..=TTL_MAX));
    let ttl = life(table.require("ttl", "\"30s\""));
    let stale_while_revalidate = life(table.get("stale_while_revalidate")).unwrap_or_default();
    let stale_if_error = life(table.get("stale_if_error")).unwrap_or_default();
    table.close();
    Some(Rule { operation: operation?, ttl: ttl?, stale_while_revalidate, stale_if_error })
}

/// The id of an operation whose answers may be kept. Without a catalogue nothing can be said.
fn operation(value: &Value<'_>, catalog: Option<&Catalog>) -> Option<String> {
    let id = value.string("the id of an operation")?;
    let Some(catalog) = catalog else { return Some(id.to_owned()) };
    let Some(row) = catalog.get(id) else {
        let help = nearest(id, catalog.rows().iter().map(|row| row.id));
        let help = help.unwrap_or_else(|| "list the operations with `tollbridge operations`".to_owned());
        return value.problem(format!("is `{id}`, which is no operation"), Some(help));
    };
    match row.cache {
        Caching::Shared | Caching::PerPrincipal => Some(id.to_owned()),
        Caching::Never => value.problem(format!("is `{id}`, whose answers are never kept"), None),
    }
}
