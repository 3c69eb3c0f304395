//! Compares the table with the OpenAPI documents recorded from both AgentOS versions. Test code only.
//! A document that knows an operation without a row fails with the row ready to paste.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::Value;

use super::*;
use crate::agentos::operation::{Body, Method, Reply, Version, Versions};

/// Parameters and fields of AgentOS that our rows leave out on purpose, with the reason.
const LEFT_OUT: &[(&str, &str, &str)] =
    &[("get_session_media", "redirect", "answers with a signed URL that outlives the caller's rights")];

/// What the documents say about one method and path, over both versions.
#[derive(Debug, Default, PartialEq, Eq)]
struct Documented {
    upstream_id: String,
    versions: Vec<Version>,
    query: BTreeSet<String>,
    fields: BTreeSet<String>,
    body: &'static str,
    replies: BTreeSet<String>,
    /// Field names of the items of a list answer, when the document has them: by the field that holds the items.
    items: BTreeMap<String, BTreeSet<String>>,
}

type Documents = BTreeMap<(Method, String), Documented>;

fn recorded() -> Documents {
    let mut documents = Documents::new();
    for (version, name) in [(Version::V2, "openapi-2.5.6.json"), (Version::V3, "openapi-3.1.10.json")] {
        let path = format!("{}/tests/fixtures/agentos/{name}", env!("CARGO_MANIFEST_DIR"));
        read(version, &serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap(), &mut documents);
    }
    documents
}

fn read(version: Version, document: &Value, into: &mut Documents) {
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let method = Method::parse(&method.to_uppercase()).unwrap();
            let entry = into.entry((method, path.clone())).or_default();
            entry.versions.push(version);
            entry.upstream_id = operation["operationId"].as_str().unwrap().to_owned();
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let query = parameters.filter(|parameter| parameter["in"] == "query");
            entry.query.extend(query.map(|parameter| parameter["name"].as_str().unwrap().to_owned()));
            read_body(document, operation, entry);
            read_replies(document, operation, entry);
        }
    }
}

fn read_body(document: &Value, operation: &Value, entry: &mut Documented) {
    for (media_type, content) in operation["requestBody"]["content"].as_object().into_iter().flatten() {
        entry.body = if media_type == "application/json" { "json" } else { "form" };
        entry.fields.extend(fields(document, &content["schema"]));
    }
}

fn read_replies(document: &Value, operation: &Value, entry: &mut Documented) {
    for (status, reply) in operation["responses"].as_object().unwrap().iter().filter(|(s, _)| s.starts_with('2')) {
        if status == "204" {
            entry.replies.insert("empty".to_owned());
        }
        for (media_type, content) in reply["content"].as_object().into_iter().flatten() {
            entry.replies.insert(media_type.clone());
            let schema = resolve(document, &content["schema"]);
            for (holder, array) in [("", schema), ("data", resolve(document, &schema["properties"]["data"]))] {
                let names = fields(document, &array["items"]);
                if !names.is_empty() {
                    entry.items.insert(holder.to_owned(), names);
                }
            }
        }
    }
}

fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let Some(reference) = schema["$ref"].as_str() else { return schema };
    resolve(document, document.pointer(reference.trim_start_matches('#')).unwrap())
}

/// Property names of a schema and of all its alternatives.
fn fields(document: &Value, schema: &Value) -> BTreeSet<String> {
    let schema = resolve(document, schema);
    let mut names: BTreeSet<String> =
        schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
    for key in ["anyOf", "allOf", "oneOf"] {
        names.extend(schema[key].as_array().into_iter().flatten().flat_map(|inner| fields(document, inner)));
    }
    names
}

/// The row of each documented operation, by method and documented path.
fn rows() -> BTreeMap<(Method, String), &'static Operation> {
    let (_, documented) = FAMILIES.split_last().unwrap();
    let key = |row: &'static Operation| ((row.method, row.path.replace(":path}", "}")), row);
    documented.iter().flat_map(|family| family.iter()).map(key).collect()
}

fn kept(row: &Operation, names: &BTreeSet<String>) -> BTreeSet<String> {
    let left_out = |name: &str| LEFT_OUT.iter().any(|(id, out, _)| *id == row.id && *out == name);
    names.iter().filter(|name| !left_out(name)).cloned().collect()
}

fn owned(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// The rows that are missing, written as Rust.
fn missing(documents: &Documents) -> String {
    let rows = rows();
    let mut text = String::new();
    for ((method, path), documented) in documents.iter().filter(|(key, _)| !rows.contains_key(key)) {
        let version = match documented.versions.as_slice() {
            [Version::V2] => ".v2()",
            [Version::V3] => ".v3()",
            _ => "",
        };
        let id = &documented.upstream_id;
        write!(text, "    {}(\"{id}\", \"{path}\"){version}", method.as_str().to_lowercase()).unwrap();
        for (column, names) in [("query", &documented.query), (documented.body, &documented.fields)] {
            if !names.is_empty() {
                write!(text, "\n        .{column}(&{:?})", names.iter().collect::<Vec<_>>()).unwrap();
            }
        }
        text.push_str(",\n");
    }
    text
}

#[test]
fn every_documented_operation_has_a_row() {
    let documents = recorded();
    assert_eq!(documents.len(), 133);
    let missing = missing(&documents);
    assert!(missing.is_empty(), "rows are missing; paste and complete them:\n{missing}");
}

#[test]
fn every_row_is_documented_for_exactly_its_versions() {
    let documents = recorded();
    for (key, row) in rows() {
        let Some(documented) = documents.get(&key) else { panic!("{}: no document has it", row.id) };
        let versions = match documented.versions.as_slice() {
            [only] => Versions::Only(*only),
            _ => Versions::Both,
        };
        assert_eq!(row.versions, versions, "{}", row.id);
        assert_eq!(row.upstream_ids(), [documented.upstream_id.as_str()], "{}", row.id);
    }
}

#[test]
fn rows_outside_the_documents_are_not_in_them() {
    let documents = recorded();
    for row in undocumented::ROWS {
        assert_eq!(documents.get(&(row.method, row.path.to_owned())), None, "{}", row.id);
    }
}

#[test]
fn query_and_body_allow_what_either_version_documents() {
    let documents = recorded();
    for (key, row) in rows() {
        let documented = &documents[&key];
        assert_eq!(owned(row.query), kept(row, &documented.query), "query of {}", row.id);
        let (kind, fields) = match row.body {
            Body::None => ("", &[] as &[&str]),
            Body::Json(fields) => ("json", fields),
            Body::Form(fields) => ("form", fields),
        };
        assert_eq!((kind, owned(fields)), (documented.body, kept(row, &documented.fields)), "body of {}", row.id);
    }
    for (id, name, _) in LEFT_OUT {
        let row = Catalog::shipped().get(id).unwrap();
        let documented = &documents[&(row.method, row.path.replace(":path}", "}"))];
        assert!(documented.query.contains(*name) || documented.fields.contains(*name), "{id} has no `{name}`");
    }
}

#[test]
fn replies_have_the_documented_shape() {
    let documents = recorded();
    for (key, row) in rows() {
        let documented = &documents[&key];
        let reply = match row.reply {
            Reply::Json => &["application/json"] as &[&str],
            Reply::Sse | Reply::SseIfStream => &["application/json", "text/event-stream"],
            Reply::Empty => &["empty"],
            Reply::Opaque => &["application/json", "application/octet-stream"],
        };
        assert_eq!(owned(reply), documented.replies, "reply of {}", row.id);
        if let Some(list) = row.list
            && !documented.items.is_empty()
        {
            let names = documented.items.get(list.items).unwrap_or_else(|| panic!("{}: no `{}`", row.id, list.items));
            assert!(names.contains(list.id), "{}: items have no `{}` but {names:?}", row.id, list.id);
        }
    }
}

#[test]
fn a_missing_row_is_printed_ready_to_paste() {
    let document = serde_json::json!({
        "paths": {"/widgets/{id}": {"post": {
            "operationId": "make_widget",
            "parameters": [{"in": "query", "name": "db_id"}, {"in": "path", "name": "id"}],
            "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Widget"}}}},
            "responses": {"201": {}},
        }}},
        "components": {"schemas": {"Widget": {"anyOf": [{"properties": {"size": {}}}, {"properties": {"name": {}}}]}}},
    });
    let mut documents = Documents::new();
    read(Version::V3, &document, &mut documents);
    assert_eq!(
        missing(&documents),
        "    post(\"make_widget\", \"/widgets/{id}\").v3()\n        .query(&[\"db_id\"])\n        \
         .json(&[\"name\", \"size\"]),\n"
    );
}
