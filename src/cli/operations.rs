//! Owns `tollbridge operations`: the catalogue as a table for people and as JSON for programs.
//! Does not choose rows: what the catalogue holds is printed, also what is off.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::agentos::{
    Action, Body, Caching, Catalog, Cost, Exposure, List, ListScope, Mark, Operation, Place, Reply, Version, Versions,
};

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Columns for people.
    Table,
    /// One JSON document.
    Json,
}

/// The heads of the table.
const HEADS: [&str; 10] =
    ["OPERATION", "METHOD", "PATH", "AGNO", "RESOURCE", "ACTION", "REACH", "SCOPES", "MARKS", "TOOL"];

/// The catalogue as text, with a line break at its end.
///
/// The marks of the table: `model` calls models, `shared` and `own` are cached, `destructive`, `local` is answered
/// by the gateway, `off` is refused.
pub fn render(catalog: &Catalog, format: Format) -> String {
    match format {
        Format::Table => table(catalog.rows()),
        Format::Json => {
            let rows: Vec<Value> = catalog.rows().iter().map(row_json).collect();
            format!("{:#}\n", Value::Array(rows))
        }
    }
}

fn table(rows: &[Operation]) -> String {
    let lines: Vec<[String; 10]> =
        std::iter::once(HEADS.map(str::to_owned)).chain(rows.iter().map(row_cells)).collect();
    let mut widths = [0; 10];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.len().max(*width);
        }
    }
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<String> = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    let count = |keep: fn(&Operation) -> bool| rows.iter().filter(|row| keep(row)).count();
    let off = count(|row| matches!(row.exposure, Exposure::Off(_)));
    let local = count(|row| row.exposure.is_local());
    // Writing to a string cannot fail.
    let _ = writeln!(text, "\n{} operations, {local} answered by the gateway itself, {off} off", rows.len());
    text
}

fn row_cells(row: &Operation) -> [String; 10] {
    [
        row.id.to_owned(),
        row.method.to_string(),
        row.path.to_owned(),
        versions(row.versions).join(","),
        row.resource.to_string(),
        row.action.to_string(),
        row.reach.to_string(),
        dash(row.scopes.join(",")),
        dash(marks(row).join(",")),
        dash(row.tool.unwrap_or_default().to_owned()),
    ]
}

fn marks(row: &Operation) -> Vec<&'static str> {
    let mut marks = Vec::new();
    if row.cost == Cost::Model {
        marks.push("model");
    }
    match row.cache {
        Caching::Never => {}
        Caching::Shared => marks.push("shared"),
        Caching::PerPrincipal => marks.push("own"),
    }
    if row.destructive && row.action != Action::Delete {
        marks.push("destructive");
    }
    match row.exposure {
        Exposure::Offered => {}
        Exposure::Local(_) => marks.push("local"),
        Exposure::Off(_) => marks.push("off"),
        Exposure::Facet(_) => marks.push("facet"),
    }
    marks
}

fn dash(cell: String) -> String {
    if cell.is_empty() { "-".to_owned() } else { cell }
}

fn row_json(row: &Operation) -> Value {
    let (exposure, why) = match row.exposure {
        Exposure::Offered => ("offered", None),
        Exposure::Local(_) => ("local", None),
        Exposure::Off(why) => ("off", Some(why)),
        Exposure::Facet(of) => ("facet", Some(of)),
    };
    json!({
        "id": row.id,
        "upstream_ids": row.upstream_ids(),
        "versions": versions(row.versions),
        "method": row.method.as_str(),
        "path": row.path,
        "resource": row.resource.as_str(),
        "action": row.action.as_str(),
        "scopes": row.scopes,
        "upstream_scopes": row.upstream_scopes(),
        "reach": row.reach.as_str(),
        "cost": row.cost.as_str(),
        "body": body(row.body),
        "reply": reply(row.reply),
        "query": row.query,
        "user_id": places(row.user_id),
        "session_id": places(row.session_id),
        "run_id": places(row.run_id),
        "cache": caching(row.cache),
        "purges": row.purges,
        "affinity": row.affinity.as_str(),
        "list": row.list.map(list),
        "lists_within": row.lists_within.iter().map(|(field, by)| json!({"items": field, "by": by})).collect::<Vec<_>>(),
        "mark": row.mark.map(mark),
        "tool": row.tool,
        "destructive": row.destructive,
        "exposure": exposure,
        "why": why,
    })
}

fn versions(versions: Versions) -> Vec<&'static str> {
    Version::ALL.iter().filter(|version| versions.include(**version)).map(|v| v.as_str()).collect()
}

fn body(body: Body) -> Value {
    match body {
        Body::None => Value::Null,
        Body::Json(fields) => json!({"json": fields}),
        Body::Form(fields) => json!({"form": fields}),
    }
}

fn places(places: &[Place]) -> Vec<Value> {
    let place = |place: &Place| match place {
        Place::Path(name) => json!({"path": name}),
        Place::Query(name) => json!({"query": name}),
        Place::Form(name) => json!({"form": name}),
        Place::Json(name) => json!({"json": name}),
    };
    places.iter().map(place).collect()
}

fn list(list: List) -> Value {
    let scope = match list.scope {
        ListScope::PerItem => "per_item",
        ListScope::Own => "own",
        ListScope::Tenant => "tenant",
        ListScope::Marked => "marked",
    };
    json!({"items": list.items, "id": list.id, "scope": scope})
}

fn mark(mark: Mark) -> Value {
    match mark {
        Mark::Filter(field) => json!({"filter": field}),
        Mark::Metadata(field) => json!({"metadata": field}),
        Mark::Mixed(field) => json!({"mixed": field}),
        Mark::MetadataIfGiven(field) => json!({"metadata_if_given": field}),
    }
}

const fn reply(reply: Reply) -> &'static str {
    match reply {
        Reply::Json => "json",
        Reply::Sse => "sse",
        Reply::SseIfStream => "sse_if_stream",
        Reply::Empty => "empty",
        Reply::Opaque => "opaque",
    }
}

const fn caching(cache: Caching) -> &'static str {
    match cache {
        Caching::Never => "never",
        Caching::Shared => "shared",
        Caching::PerPrincipal => "per_principal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_matches_its_golden_file() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden/operations.txt");
        let table = render(&Catalog::shipped(), Format::Table);
        if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
            std::fs::write(path, &table).unwrap();
        }
        let golden = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(table, golden, "run again with UPDATE_GOLDEN=1 when the change is meant");
    }

    #[test]
    fn json_holds_every_column_of_every_row() {
        let catalog = Catalog::shipped();
        let rows: Vec<Value> = serde_json::from_str(&render(&catalog, Format::Json)).unwrap();
        assert_eq!(rows.len(), catalog.rows().len());
        let row = rows.iter().find(|row| row["id"] == "resolve_approval").unwrap();
        assert_eq!(
            *row,
            json!({
                "id": "resolve_approval",
                "upstream_ids": ["resolve_approval_approvals__approval_id__resolve_post"],
                "versions": ["2", "3"],
                "method": "POST",
                "path": "/approvals/{approval_id}/resolve",
                "resource": "Approval",
                "action": "write",
                "scopes": ["approvals:write"],
                "upstream_scopes": ["agent_os:admin"],
                "reach": "owned",
                "cost": "light",
                "body": {"json": ["status", "resolved_by", "resolution_data"]},
                "reply": "json",
                "query": [],
                "user_id": [{"json": "resolved_by"}],
                "session_id": [],
                "run_id": [],
                "cache": "never",
                "purges": [],
                "affinity": "any",
                "list": null,
                "lists_within": [],
                "mark": null,
                "tool": "resolve_approval",
                "destructive": false,
                "exposure": "offered",
                "why": null,
            })
        );
    }
}
