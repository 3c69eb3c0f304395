//! Owns `[policy]`: where the policies are and what scopes mean.
//! Does not read policies.

use crate::policy::{ScopesMode, Settings};

use super::reader::Table;

pub(super) fn read(root: &Table<'_>) -> Settings {
    let default = Settings { dir: root.source.path("policies"), scopes: ScopesMode::Add };
    let Some(table) = root.section("policy") else { return default };
    let dir = table.get("dir").and_then(|v| v.path()).unwrap_or(default.dir);
    let scopes =
        table.get("scopes").and_then(|v| v.word(&[("add", ScopesMode::Add), ("ceiling", ScopesMode::Ceiling)]));
    table.close();
    Settings { dir, scopes: scopes.unwrap_or(default.scopes) }
}
