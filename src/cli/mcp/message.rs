//! Owns what the bridge reads of a JSON-RPC message that passes through it: kind, id, era, the fields that HTTP mirrors.
//! Does not change messages and does not judge them: what cannot be read is the server's to refuse.
//! Departure: `Mcp-Param-*` is not mirrored; it needs the schemas of tools, and Tollbridge's annotate no argument.

use std::borrow::Cow;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// Header of the protocol revision.
pub(super) const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");

/// What a message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Wants an answer with this id.
    Request(Value),
    /// Wants none.
    Notification,
    /// Answers a request of the server, or cannot be read.
    Other,
}

/// One message of the client.
#[derive(Debug, Clone)]
pub(super) struct Message {
    /// As it came.
    pub(super) text: Bytes,
    /// What it is.
    pub(super) kind: Kind,
    /// Its method; empty when it has none.
    pub(super) method: String,
    /// The stateless revision that it speaks; `None` in sessions.
    pub(super) stateless: Option<String>,
    /// The request that a cancellation names.
    pub(super) cancels: Option<Value>,
    mirrored: Option<String>,
}

#[derive(Deserialize)]
struct Peek<'a> {
    #[serde(default)]
    id: Option<Value>,
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct Params {
    #[serde(default)]
    name: Option<Value>,
    #[serde(default)]
    uri: Option<Value>,
    #[serde(default, rename = "taskId")]
    task_id: Option<Value>,
    #[serde(default, rename = "requestId")]
    request_id: Option<Value>,
    #[serde(default, rename = "_meta")]
    meta: Option<Meta>,
}

#[derive(Deserialize)]
struct Meta {
    #[serde(default, rename = "io.modelcontextprotocol/protocolVersion")]
    version: Option<Value>,
}

// === impl Message ===

impl Message {
    /// Reads a message of the client.
    pub(super) fn read(text: impl Into<Bytes>) -> Self {
        let text = text.into();
        let peek = serde_json::from_slice::<Peek<'_>>(&text).ok();
        let params: Params =
            peek.as_ref().and_then(|peek| serde_json::from_str(peek.params?.get()).ok()).unwrap_or_default();
        let method = peek.as_ref().and_then(|peek| peek.method.as_deref()).unwrap_or_default().to_owned();
        let id = peek.and_then(|peek| peek.id);
        let kind = match (id, method.is_empty()) {
            (Some(id), false) => Kind::Request(id),
            (None, false) => Kind::Notification,
            (_, true) => Kind::Other,
        };
        let version = params.meta.and_then(|meta| meta.version);
        let stateless = version.and_then(into_text).filter(|_| method != "initialize");
        let mirrored = match method.as_str() {
            "tools/call" | "prompts/get" => params.name,
            "resources/read" => params.uri,
            "tasks/get" | "tasks/update" | "tasks/cancel" => params.task_id,
            _ => None,
        };
        let cancels = params.request_id.filter(|_| method == "notifications/cancelled");
        Self { text, kind, method, stateless, cancels, mirrored: mirrored.and_then(into_text) }
    }

    /// The id to answer; `None` where no answer is wanted.
    pub(super) fn id(&self) -> Option<&Value> {
        match &self.kind {
            Kind::Request(id) => Some(id),
            Kind::Notification | Kind::Other => None,
        }
    }

    /// Says whether it opens a session.
    pub(super) fn opens_session(&self) -> bool {
        self.method == "initialize" && self.id().is_some()
    }

    /// Says whether sending it a second time changes nothing.
    pub(super) fn is_repeatable(&self) -> bool {
        matches!(
            self.method.as_str(),
            "ping" | "server/discover" | "tools/list" | "prompts/list" | "prompts/get" | "resources/list"
        )
    }

    /// Adds the headers that the stateless revision wants beside the body.
    pub(super) fn mirror(&self, headers: &mut HeaderMap) {
        let Some(version) = &self.stateless else { return };
        let fields = [
            (PROTOCOL_VERSION, Some(Cow::from(version))),
            (METHOD, Some(Cow::from(&self.method))),
            (NAME, self.mirrored.as_deref().map(encoded)),
        ];
        for (name, text) in fields {
            if let Some(value) = text.and_then(|text| HeaderValue::from_str(&text).ok()) {
                headers.insert(name, value);
            }
        }
    }
}

/// What the bridge reads of a message of the server.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The request that it answers.
    pub(super) id: Option<Value>,
    /// Whether it is an error.
    pub(super) is_error: bool,
    /// The revision that the server chose, in the answer to `initialize`.
    pub(super) version: Option<String>,
}

#[derive(Deserialize)]
struct AnswerPeek<'a> {
    #[serde(default)]
    id: Option<Value>,
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Opened {
    #[serde(rename = "protocolVersion")]
    version: String,
}

// === impl Answer ===

impl Answer {
    /// Reads a message; `None` for anything that answers no request.
    pub(super) fn read(text: &[u8]) -> Option<Self> {
        let peek: AnswerPeek<'_> = serde_json::from_slice(text).ok()?;
        let answers = peek.method.is_none() && (peek.result.is_some() || peek.error.is_some());
        let version = || serde_json::from_str::<Opened>(peek.result?.get()).ok().map(|opened| opened.version);
        answers.then(|| Self { is_error: peek.error.is_some(), version: version(), id: peek.id })
    }
}

fn into_text(value: Value) -> Option<String> {
    if let Value::String(text) = value { Some(text) } else { None }
}

/// The value as a header carries it: in Base64 where it would not survive, or looks as if it were.
fn encoded(value: &str) -> Cow<'_, str> {
    let edge = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    let bytes = value.as_bytes();
    let bare = bytes.iter().all(|b| (b' '..=b'~').contains(b) || *b == b'\t');
    let marked = value.starts_with("=?base64?") && value.ends_with("?=");
    if bare && !marked && !edge(bytes.first()) && !edge(bytes.last()) {
        return Cow::from(value);
    }
    Cow::from(format!("=?base64?{}?=", BASE64_STANDARD.encode(value)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mirrored(message: &Value) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        Message::read(message.to_string()).mirror(&mut headers);
        headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
    }

    fn modern(method: &str, mut params: Value) -> Value {
        params["_meta"] = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28"});
        json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    }

    #[test]
    fn the_stateless_revision_gets_its_headers() {
        for (method, params, name) in [
            ("tools/list", json!({}), None),
            ("tools/call", json!({"name": "run_agent"}), Some("run_agent")),
            ("prompts/get", json!({"name": "é"}), Some("=?base64?w6k=?=")),
            ("prompts/get", json!({"name": " x"}), Some("=?base64?IHg=?=")),
            ("tools/call", json!({"name": "=?base64?eA==?="}), Some("=?base64?PT9iYXNlNjQ/ZUE9PT89?=")),
            ("resources/read", json!({"uri": "agno://runs/1", "name": "no"}), Some("agno://runs/1")),
            ("tasks/get", json!({"taskId": "t1"}), Some("t1")),
            ("tools/call", json!({"name": 7}), None),
        ] {
            let mut wanted = vec![("mcp-protocol-version", "2026-07-28"), ("mcp-method", method)];
            wanted.extend(name.map(|name| ("mcp-name", name)));
            let wanted: Vec<_> = wanted.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            assert_eq!(mirrored(&modern(method, params)), wanted, "{method}");
        }
    }

    #[test]
    fn sessions_get_none() {
        for message in [
            modern("initialize", json!({})),
            json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "run_agent"}}),
            json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}),
        ] {
            assert_eq!(mirrored(&message), vec![], "{message}");
        }
    }

    #[test]
    fn kinds_are_told_apart() {
        for (text, kind) in [
            (r#"{"id":1,"method":"ping"}"#, Kind::Request(json!(1))),
            (r#"{"id":"a\u0041","method":"ping"}"#, Kind::Request(json!("aA"))),
            (r#"{"method":"notifications/initialized"}"#, Kind::Notification),
            (r#"{"id":null,"method":"ping"}"#, Kind::Notification),
            (r#"{"id":1,"result":{}}"#, Kind::Other),
            (r#"[{"id":1,"method":"ping"}]"#, Kind::Other),
            ("{", Kind::Other),
        ] {
            assert_eq!(Message::read(text.to_owned()).kind, kind, "{text}");
        }
        let cancel = Message::read(r#"{"method":"notifications/cancelled","params":{"requestId":"r"}}"#.to_owned());
        assert_eq!(cancel.cancels, Some(json!("r")));
    }

    #[test]
    fn answers_are_recognised() {
        let answer = Answer::read(br#"{"jsonrpc":"2.0","id":3,"result":{"protocolVersion":"2025-06-18"}}"#).unwrap();
        assert_eq!(
            (answer.id, answer.is_error, answer.version.as_deref()),
            (Some(json!(3)), false, Some("2025-06-18"))
        );
        assert!(Answer::read(br#"{"id":null,"error":{"code":1,"message":""}}"#).unwrap().is_error);
        assert!(Answer::read(br#"{"id":1,"method":"elicitation/create","params":{}}"#).is_none());
        assert!(Answer::read(br#"{"detail":"no"}"#).is_none());
    }
}
