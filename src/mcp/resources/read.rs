//! Owns reading one resource: which row of AgentOS it is, and what of it a client reads.
//! Does not write addresses (`address`).
//! Invariants: each read is admitted once per question; what comes back is bounded.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rmcp::model::{MetaObject, ResourceContents};
use serde_json::{Map, Value, json};

use super::address::{Address, Part};
use super::{JSON, listed, named, settle};
use crate::agentos::operation::Kind;
use crate::mcp::ask::{Ask, Asker, Failure};
use crate::mcp::handle::RunHandle;
use crate::mcp::narrowing::Toolset;
use crate::mcp::pins::Verdict;
use crate::mcp::routes::{self, Deed};
use crate::mcp::run::media;
use crate::mcp::run::view::{RunView, Status};
use crate::mcp::text::{self, RESULT_BYTES_MAX};
use crate::mcp::tools::history;
use crate::mcp::visit::{Visit, id_of};

/// Largest medium that is read, before base64.
const MEDIA_BYTES_MAX: usize = 6 * 1024 * 1024;
/// Names of tools, members or steps that are shown of a component.
const PARTS_MAX: usize = 100;

/// Why there is nothing to read.
#[derive(Debug)]
pub(crate) enum Unread {
    /// No such thing, for this caller.
    Absent,
    /// Several things, told apart by what the text says.
    Ambiguous(String),
    /// The gateway refused, or AgentOS failed.
    Failed(Failure),
}

impl From<Failure> for Unread {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Reads one resource.
///
/// # Errors
/// [`Unread`].
///
/// # Cancel safety
/// Dropping the future ends the exchange.
pub(crate) async fn read(visit: &Visit, uri: &str) -> Result<Vec<ResourceContents>, Unread> {
    let address = Address::parse(uri).ok_or(Unread::Absent)?;
    let toolset = match address {
        Address::Agent { .. } | Address::Run { .. } => Toolset::Agents,
        Address::Session { .. } => Toolset::Sessions,
        Address::Content { .. } => Toolset::Knowledge,
    };
    if !visit.narrowing.reads_of(toolset) {
        return Err(Unread::Absent);
    }
    match address {
        Address::Agent { agent, kind } => component(visit, uri, &agent, kind).await,
        Address::Run { run, part } => read_run(visit, uri, &run, part).await,
        Address::Session { session, kind } => {
            let (cluster, id) = visit.place_or_default("session", &session).map_err(|_| Unread::Absent)?;
            let kinds = kind.map_or_else(|| Kind::ALL.to_vec(), |kind| vec![kind]);
            let (kind, row) = history::find(visit, &cluster, &id, &kinds).await?;
            Ok(vec![document(uri, &history::conversation(visit, &cluster, kind, &row))])
        }
        Address::Content { knowledge, content } => {
            let (cluster, knowledge) = visit.place_or_default("knowledge", &knowledge).map_err(|_| Unread::Absent)?;
            let content = id_of("content", &content).map_err(|_| Unread::Absent)?;
            let (ids, query) = ([content.as_str()], [("knowledge_id", knowledge.as_str())]);
            let ask = Ask { query: &query, ..Ask::plain(routes::CONTENT, &cluster, &ids) };
            let row = visit.asker.json(&ask).await?;
            if row.to_string().len() > RESULT_BYTES_MAX {
                return Err(Failure::Broken("describes the content at too great length").into());
            }
            Ok(vec![document(uri, &row)])
        }
    }
}

async fn component(visit: &Visit, uri: &str, agent: &str, kind: Option<Kind>) -> Result<Vec<ResourceContents>, Unread> {
    let all = listed(&settle(visit).await);
    let (cluster, kind, id) = match *named(&all, agent, kind).as_slice() {
        [one] => (Arc::clone(&one.found.cluster), one.found.kind, one.found.id.clone()),
        // Perhaps it was made a moment ago: AgentOS knows.
        [] => {
            let (cluster, id) = visit.place_or_default("agent", agent).map_err(|_| Unread::Absent)?;
            (cluster, kind.unwrap_or(Kind::Agent), id)
        }
        ref several => {
            let kinds: Vec<&str> = several.iter().map(|shown| shown.found.kind.as_str()).collect();
            return Err(Unread::Ambiguous(format!(
                "the id is ambiguous: add `?kind=` with one of {}",
                kinds.join(", ")
            )));
        }
    };
    let ids = [id.as_str()];
    let row = visit.asker.json(&Ask::plain(routes::show(kind), &cluster, &ids)).await?;
    Ok(vec![document(uri, &describe(visit, &cluster, kind, &id, &row))])
}

/// What of a component is of use to somebody who is to run it. Its instructions are the operator's own.
fn describe(visit: &Visit, cluster: &Arc<str>, kind: Kind, id: &str, row: &Value) -> Value {
    let mut out = Map::new();
    out.insert("agent".to_owned(), json!(visit.name(cluster, id)));
    out.insert("kind".to_owned(), json!(kind.as_str()));
    // A pin holds name and description: of a pinned component nothing else that AgentOS says is shown.
    let shown: &[(&str, usize)] = match visit.inner.pins.load().judge(cluster, kind, id, row) {
        Verdict::Free => &[("name", 100), ("role", 300), ("description", 2_000)],
        Verdict::Pinned => &[("name", 100), ("description", 2_000)],
        Verdict::Other(_) => &[],
    };
    for &(field, chars) in shown {
        let told = row.get(field).and_then(Value::as_str).map(|told| text::head(&text::line(told), chars));
        out.extend(told.filter(|told| !told.is_empty()).map(|told| (field.to_owned(), json!(told))));
    }
    let model = row.get("model").and_then(|model| model.get("model").or_else(|| model.get("name")));
    out.extend(
        model.and_then(Value::as_str).map(|name| ("model".to_owned(), json!(text::head(&text::line(name), 100)))),
    );
    let tools = row.get("tools").map(|tools| tools.get("tools").unwrap_or(tools));
    for (field, list) in [("tools", tools), ("members", row.get("members")), ("steps", row.get("steps"))] {
        let names: Vec<String> = list
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default()
            .iter()
            .filter_map(|part| ["name", "id"].iter().find_map(|name| part.get(*name)?.as_str()))
            .map(|name| text::head(&text::line(name), 100))
            .take(PARTS_MAX)
            .collect();
        if !names.is_empty() {
            out.insert(field.to_owned(), json!(names));
        }
    }
    Value::Object(out)
}

async fn read_run(visit: &Visit, uri: &str, run: &str, part: Part) -> Result<Vec<ResourceContents>, Unread> {
    let handle = visit.run(run).map_err(|_| Unread::Absent)?;
    let row = match stored(&visit.asker, &handle).await {
        Ok(row) => Some(row),
        // AgentOS 2.x stores a run when it ends; the handle proves that there is one.
        Err(failure) if failure.is_not_found() && part == Part::Summary => None,
        Err(failure) => return Err(failure.into()),
    };
    let row = row.unwrap_or_else(|| json!({"status": "RUNNING"}));
    let view = RunView::stored(handle.kind, &row);
    let address = |part| Address::Run { run: run.to_owned(), part }.to_string();
    match part {
        Part::Summary => {
            let mut contents = vec![document(uri, &summary(visit, &handle, &row, &view, &address))];
            if !view.answer().is_empty() {
                contents.push(output(view.answer(), 0, &address)?);
            }
            Ok(contents)
        }
        Part::Output { offset } => Ok(vec![output(view.answer(), offset, &address)?]),
        Part::Media { number } => {
            let media = media::of(&row);
            let medium = media.get(number).ok_or(Unread::Absent)?;
            let bytes = medium.bytes().ok_or(Unread::Absent)?;
            if bytes.len() > MEDIA_BYTES_MAX {
                return Err(
                    Failure::Broken("made a medium of more than 6 MiB, which is too large to be read here").into()
                );
            }
            let blob = ResourceContents::blob(STANDARD.encode(bytes), uri).with_mime_type(medium.mime.as_str());
            Ok(vec![blob])
        }
    }
}

/// A run as it is stored, for the caller who holds its handle.
pub(crate) async fn stored(asker: &Asker, handle: &RunHandle) -> Result<Value, Failure> {
    let query = [("session_id", handle.session_id.as_str())];
    let ids = [handle.component.as_str(), handle.run_id.as_str()];
    let route = routes::of(handle.kind, Deed::Read);
    asker.json(&Ask { query: &query, ..Ask::plain(route, &handle.cluster, &ids) }).await
}

fn summary(visit: &Visit, handle: &RunHandle, row: &Value, view: &RunView, address: &dyn Fn(Part) -> String) -> Value {
    let mut out = json!({
        "agent": visit.name(&handle.cluster, &handle.component),
        "kind": handle.kind.as_str(),
        "session_id": visit.name(&handle.cluster, &handle.session_id),
        "status": word(&view.status),
    });
    let Value::Object(map) = &mut out else { return out };
    if let Status::Failed(why) | Status::Broken(why) = &view.status {
        map.insert("error".to_owned(), json!(text::head(&text::line(why), 2_000)));
    }
    let waits = view
        .waiting
        .iter()
        .take(20)
        .map(|waiting| json!({"tool": waiting.name, "detail": waiting.detail, "approval_id": waiting.approval_id}));
    let waits: Vec<Value> = waits.collect();
    if !waits.is_empty() {
        map.insert("waits_for".to_owned(), Value::Array(waits));
    }
    if !view.answer().is_empty() {
        let offset = Part::Output { offset: 0 };
        map.insert("output".to_owned(), json!({"uri": address(offset), "chars": view.answer().chars().count()}));
    }
    let media = media::of(row);
    let media = media.iter().enumerate().filter(|(_, medium)| medium.bytes().is_some());
    let media: Vec<Value> = media
        .map(|(number, medium)| {
            json!({"uri": address(Part::Media { number }), "name": medium.name, "mimeType": medium.mime})
        })
        .collect();
    if !media.is_empty() {
        map.insert("media".to_owned(), Value::Array(media));
    }
    out
}

/// The word for where a run stands, as results of runs say it.
pub(crate) fn word(status: &Status) -> &'static str {
    match status {
        Status::Running => "running",
        Status::Completed => "completed",
        Status::Paused => "paused",
        Status::Cancelled => "cancelled",
        Status::Failed(_) => "failed",
        Status::Broken(_) => "unknown",
    }
}

/// A page of a text, and where the next one begins.
fn output(answer: &str, offset: usize, address: &dyn Fn(Part) -> String) -> Result<ResourceContents, Unread> {
    let total = answer.chars().count();
    if offset > total {
        return Err(Unread::Absent);
    }
    let start = answer.char_indices().nth(offset).map_or(answer.len(), |(at, _)| at);
    let rest = answer.get(start..).unwrap_or_default();
    let end = (0..=RESULT_BYTES_MAX.min(rest.len())).rev().find(|at| rest.is_char_boundary(*at)).unwrap_or(0);
    let page = rest.get(..end).unwrap_or_default();
    let next = offset + page.chars().count();
    let mut meta = Map::new();
    meta.insert("tollbridge/total_chars".to_owned(), json!(total));
    if next < total {
        meta.insert("tollbridge/next".to_owned(), json!(address(Part::Output { offset: next })));
    }
    Ok(ResourceContents::text(page, address(Part::Output { offset })).with_meta(MetaObject(meta)))
}

fn document(uri: &str, value: &Value) -> ResourceContents {
    ResourceContents::text(value.to_string(), uri).with_mime_type(JSON)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(answer: &str, offset: usize) -> Option<Value> {
        let address = |part| Address::Run { run: "r".into(), part }.to_string();
        output(answer, offset, &address).ok().map(|contents| serde_json::to_value(contents).unwrap())
    }

    #[test]
    fn pages_cover_a_long_text_once() {
        let answer = "ä".repeat(RESULT_BYTES_MAX);
        let first = page(&answer, 0).unwrap();
        assert_eq!(first["text"].as_str().unwrap().len(), RESULT_BYTES_MAX);
        assert_eq!(first["_meta"]["tollbridge/next"], format!("agno://runs/r/output?offset={}", RESULT_BYTES_MAX / 2));
        let second = page(&answer, RESULT_BYTES_MAX / 2).unwrap();
        assert_eq!(second["text"].as_str().unwrap().len(), RESULT_BYTES_MAX);
        assert_eq!(second["_meta"], json!({"tollbridge/total_chars": RESULT_BYTES_MAX}));
        assert_eq!(page("ab", 2).unwrap()["text"], "");
        assert_eq!(page("ab", 3), None);
    }
}
