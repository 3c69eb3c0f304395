//! Owns `[[operation]]`: catalogue rows that operators add for newer AgentOS versions.
//! Does not judge rows: the catalogue does, here its findings get their places.
//! Invariant: what a file can make this process keep for ever is bounded by what it says: strings
//! are interned, so reading the same row again costs nothing.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use crate::agentos::{
    Action, Affinity, Body, Caching, Catalog, Cost, Method, Operation, Place, Reach, Reply, Resource, Version, Versions,
};

use super::reader::{At, Table, Value};

/// Every string of an operator's row; leaked once each.
static STRINGS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
/// Every list of an operator's row; leaked once each.
static LISTS: Mutex<BTreeSet<&'static [&'static str]>> = Mutex::new(BTreeSet::new());
/// Every list of places of an operator's row; leaked once each.
static PLACES: Mutex<Vec<&'static [Place]>> = Mutex::new(Vec::new());

/// The operator's rows and the catalogue that they make with the shipped ones. Without a catalogue a
/// problem has been reported.
pub(super) fn read(root: &Table<'_>) -> (Vec<Operation>, Option<Catalog>) {
    let sections = root.sections("operation");
    let written = sections.len();
    let place = |section: Table<'_>| {
        let at = section.at;
        operation(section).map(|value| At { value, at })
    };
    let rows: Vec<At<Operation>> = sections.into_iter().filter_map(place).collect();
    let operations: Vec<Operation> = rows.iter().map(|row| row.value).collect();
    if rows.len() < written {
        return (operations, None);
    }
    match Catalog::with_rows(operations.clone()) {
        Ok(catalog) => (operations, Some(catalog)),
        Err(error) => {
            for problem in error.problems {
                let at =
                    rows.iter().rev().find(|row| row.value.id == problem.row).or(rows.first()).map_or(0, |row| row.at);
                root.source.problem(at, format!("the operation `{}`: {}", problem.row, problem.text), None);
            }
            (operations, None)
        }
    }
}

fn operation(table: Table<'_>) -> Option<Operation> {
    let id = table.require("id", "\"verb_noun\"").and_then(|v| id(&v));
    let method = table.require("method", "\"GET\"").and_then(|v| v.word(&words(Method::ALL, Method::as_str)));
    let path = table.require("path", "\"/agents/{agent_id}\"").and_then(|v| template(&v));
    let resource = table.require("resource", "\"Agent\"").and_then(|v| v.word(&words(Resource::ALL, Resource::as_str)));
    let action = table.require("action", "\"read\"").and_then(|v| v.word(&words(Action::ALL, Action::as_str)));
    let scopes = table.require("scope", "\"agents:read\"").and_then(|v| scopes(&v));
    let columns = columns(&table, action);
    table.close();
    Some(Operation {
        id: intern(id?),
        method: method?,
        path: intern(path?),
        resource: resource?,
        action: action?,
        scopes: scopes?,
        ..columns
    })
}

/// The columns that have safe defaults; the others are placeholders.
fn columns(table: &Table<'_>, action: Option<Action>) -> Operation {
    let word = |key| table.get(key);
    let list = |key, each: &str| {
        let written = word(key).and_then(|v| v.strings(each));
        written.map(|list| interned(list.iter().map(|item| item.value))).unwrap_or_default()
    };
    let places = |key| word(key).and_then(|v| places(&v)).unwrap_or_default();
    Operation {
        versions: word("versions").and_then(|v| v.word(&VERSIONS)).unwrap_or(Versions::Both),
        action: action.unwrap_or(Action::Read),
        reach: word("reach").and_then(|v| v.word(&words(Reach::ALL, Reach::as_str))).unwrap_or(Reach::OsWide),
        cost: word("cost").and_then(|v| v.word(&words(Cost::ALL, Cost::as_str))).unwrap_or(Cost::Light),
        body: word("body").and_then(|v| body(&v)).unwrap_or(Body::None),
        reply: word("reply").and_then(|v| v.word(&REPLIES)).unwrap_or(Reply::Json),
        query: list("query", "the name of a query parameter"),
        user_id: places("user_id"),
        session_id: places("session_id"),
        run_id: places("run_id"),
        cache: word("cache").and_then(|v| v.word(&CACHING)).unwrap_or(Caching::Never),
        purges: list("purges", "the id of an operation"),
        affinity: word("affinity").and_then(|v| v.word(&affinities())).unwrap_or(Affinity::Any),
        destructive: word("destructive").and_then(|v| v.boolean()).unwrap_or(action == Some(Action::Delete)),
        ..Operation::new("", Method::Get, "")
    }
}

const REPLIES: [(&str, Reply); 5] = [
    ("json", Reply::Json),
    ("sse", Reply::Sse),
    ("sse_if_stream", Reply::SseIfStream),
    ("empty", Reply::Empty),
    ("opaque", Reply::Opaque),
];

const CACHING: [(&str, Caching); 3] =
    [("never", Caching::Never), ("shared", Caching::Shared), ("per_principal", Caching::PerPrincipal)];

const VERSIONS: [(&str, Versions); 3] =
    [("both", Versions::Both), ("2", Versions::Only(Version::V2)), ("3", Versions::Only(Version::V3))];

/// All but those of facets, which operators cannot add.
fn affinities() -> Vec<(&'static str, Affinity)> {
    let mut all = words(Affinity::ALL, Affinity::as_str);
    all.retain(|(_, affinity)| !matches!(affinity, Affinity::FollowsRun(on_run) if on_run.is_facet()));
    all
}

fn words<T: Copy>(all: &[T], name: fn(T) -> &'static str) -> Vec<(&'static str, T)> {
    all.iter().map(|variant| (name(*variant), *variant)).collect()
}

fn id<'a>(value: &Value<'a>) -> Option<&'a str> {
    let id = value.string("an id such as `\"list_agents\"`")?;
    let plain = id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if plain && id.len() <= 64 { Some(id) } else { value.problem("must be 1 to 64 characters of `a-z 0-9 _`", None) }
}

fn template<'a>(value: &Value<'a>) -> Option<&'a str> {
    let path = value.string("a path such as `\"/agents/{agent_id}\"`")?;
    let whole = |segment: &str| match segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        Some(name) => {
            !name.is_empty()
                && name.strip_suffix(":path").unwrap_or(name).bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        }
        None => !segment.is_empty() && !segment.contains(['{', '}', '?', '#', '%']),
    };
    if path == "/" || path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(whole)) {
        return Some(path);
    }
    value.problem(format!("is `{path}`, which is no path template such as `/agents/{{agent_id}}`"), None)
}

/// One scope or a list of them.
fn scopes(value: &Value<'_>) -> Option<&'static [&'static str]> {
    if let Some(scope) = value.text() {
        return Some(interned([scope].into_iter()));
    }
    Some(interned(value.strings("a scope such as `\"agents:read\"`")?.iter().map(|scope| scope.value)))
}

/// `"none"`, `{ json = ["field"] }` or `{ form = ["field"] }`.
fn body(value: &Value<'_>) -> Option<Body> {
    if value.text().is_some() {
        return value.word(&[("none", Body::None)]);
    }
    if !value.is_table() {
        return value.wrong_type("`\"none\"`, `{ json = [\"field\"] }` or `{ form = [\"field\"] }`");
    }
    let table = value.table()?;
    let fields = |key| table.get(key).map(|v: Value<'_>| v.strings("the name of a field"));
    let (json, form) = (fields("json"), fields("form"));
    table.close();
    match (json, form) {
        (Some(fields), None) => Some(Body::Json(interned(fields?.iter().map(|field| field.value)))),
        (None, Some(fields)) => Some(Body::Form(interned(fields?.iter().map(|field| field.value)))),
        (Some(_), Some(_)) | (None, None) => value.problem("must name one of `json` and `form`", None),
    }
}

/// A list of `"path:name"`, `"query:name"`, `"form:name"`, `"json:name"`.
fn places(value: &Value<'_>) -> Option<&'static [Place]> {
    let each = "a place such as `\"query:user_id\"`";
    let mut places = Vec::new();
    for item in value.list(&format!("a list, each item {each}"))? {
        let Some(text) = item.string(each) else { continue };
        let Some((kind, name)) = text.split_once(':').filter(|(_, name)| !name.is_empty()) else {
            item.problem::<()>(format!("is `{text}`, which is not {each}"), None);
            continue;
        };
        match kind {
            "path" => places.push(Place::Path(intern(name))),
            "query" => places.push(Place::Query(intern(name))),
            "form" => places.push(Place::Form(intern(name))),
            "json" => places.push(Place::Json(intern(name))),
            _ => {
                item.problem::<()>(
                    format!("is `{text}`, but `{kind}` is not one of `path`, `query`, `form`, `json`"),
                    None,
                );
            }
        }
    }
    let mut kept = PLACES.lock();
    let found = kept.iter().find(|known| **known == places.as_slice()).copied();
    Some(found.unwrap_or_else(|| {
        let leaked: &'static [Place] = Vec::leak(places);
        kept.push(leaked);
        leaked
    }))
}

fn intern(text: &str) -> &'static str {
    let mut kept = STRINGS.lock();
    if let Some(known) = kept.get(text) {
        return known;
    }
    let leaked: &'static str = String::leak(text.to_owned());
    kept.insert(leaked);
    leaked
}

fn interned<'a>(texts: impl Iterator<Item = &'a str>) -> &'static [&'static str] {
    let list: Vec<&'static str> = texts.map(intern).collect();
    let mut kept = LISTS.lock();
    if let Some(known) = kept.get(list.as_slice()) {
        return known;
    }
    let leaked: &'static [&'static str] = Vec::leak(list);
    kept.insert(leaked);
    leaked
}
