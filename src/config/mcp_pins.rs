//! Owns `[mcp.pins]`: which texts of agents, teams and workflows MCP clients are shown.
//! Does not compare texts (`mcp`).
//! Invariant: a pin names a cluster that there is and one component of it; anything else is a problem, since it would
//! protect nobody.

use std::sync::Arc;

use super::reader::{At, Table, Value};
use super::words::{nearest, quoted};
use crate::agentos::Kind;
use crate::mcp::Pin;

const HELP: &str = "write the output of `printf '%s\\n%s' \"$NAME\" \"$DESCRIPTION\" | sha256sum`";

pub(super) fn read(mcp: &Table<'_>) -> Vec<Pin> {
    let Some(section) = mcp.section("pins") else { return Vec::new() };
    section.entries().iter().filter_map(|(name, value)| pin(name, value)).collect()
}

fn pin(name: &At<&str>, value: &Value<'_>) -> Option<Pin> {
    let sha256 = value.sha256(HELP);
    let mut parts = name.value.splitn(3, '/');
    let (cluster, kind, id) = (parts.next(), parts.next(), parts.next());
    let named = cluster.zip(id).filter(|(cluster, id)| !cluster.is_empty() && !id.is_empty() && !id.contains('/'));
    let Some(((cluster, id), word)) = named.zip(kind) else {
        let help = "write `\"CLUSTER/KIND/ID\"`, such as `\"main/agent/web-agent\"`".to_owned();
        return value.problem("names no component", Some(help));
    };
    let words = || Kind::ALL.iter().map(|kind| kind.as_str());
    let Some(kind) = Kind::parse(word) else {
        let help = nearest(word, words()).unwrap_or_else(|| format!("the kinds are {}", quoted(words())));
        return value.problem(format!("names the kind `{word}`, which there is not"), Some(help));
    };
    Some(Pin { cluster: cluster.to_owned(), kind, id: id.to_owned(), sha256: sha256? })
}

/// Reports pins for clusters that there are not: they would protect nobody.
pub(super) fn contradict<'c>(root: &Table<'_>, pins: &[Pin], clusters: impl Iterator<Item = &'c Arc<str>> + Clone) {
    for pin in pins.iter().filter(|pin| !clusters.clone().any(|name| **name == *pin.cluster)) {
        let key = format!("{}/{}/{}", pin.cluster, pin.kind, pin.id);
        let section = root.get("mcp").and_then(|mcp| mcp.table()?.section("pins"));
        let entry = section.and_then(|pins| pins.entries().into_iter().find(|(name, _)| name.value == key));
        let names = || clusters.clone().map(|name| &**name);
        let help = nearest(&pin.cluster, names()).unwrap_or_else(|| format!("the clusters are {}", quoted(names())));
        let at = entry.map_or(0, |(name, _)| name.at);
        root.source.problem(
            at,
            format!("`{key}` in `[mcp.pins]` names an unknown cluster `{}`", pin.cluster),
            Some(help),
        );
    }
}
