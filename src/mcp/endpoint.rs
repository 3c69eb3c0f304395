//! Owns the HTTP side of the endpoint: what a request must be before the MCP library sees it, and what its answer
//! becomes afterwards.
//! Does not authenticate and does not know tools.
//! Invariants: a session id of somebody else looks like one that does not exist; requests of the stateless revision
//! have no session, whatever their headers say.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::narrowing::Narrowing;
use super::reader::{Reader, Watched};
use super::sessions::{InUse, Opened, Use};
use super::{BODY_BYTES_MAX, Shared};
use crate::gateway::{AnswerBody, StreamBody};
use crate::principal::Principal;

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
/// The first stateless revision.
const STATELESS: &str = "2026-07-28";
/// Longest wait for a request body.
const BODY_WAIT: std::time::Duration = std::time::Duration::from_secs(30);

/// What is known of a message before the library reads it.
#[derive(Deserialize)]
struct Peek {
    method: Option<String>,
    #[serde(default)]
    params: Option<PeekParams>,
}

#[derive(Deserialize)]
struct PeekParams {
    #[serde(default, rename = "_meta")]
    meta: Option<PeekMeta>,
}

#[derive(Deserialize)]
struct PeekMeta {
    #[serde(default, rename = "io.modelcontextprotocol/protocolVersion")]
    version: Option<Value>,
}

/// Answers one request.
pub(super) async fn answer(service: &Arc<Shared>, request: Request<StreamBody>) -> Response<StreamBody> {
    let (mut parts, body) = request.into_parts();
    let Some(principal) = parts.extensions.get::<Arc<Principal>>().cloned() else {
        tracing::error!("a request reached the MCP endpoint without a principal");
        return plain(StatusCode::INTERNAL_SERVER_ERROR, "Internal error");
    };
    let base = &service.settings.path;
    let toolsets = (service.settings.toolsets.as_slice(), service.settings.optional_toolsets.as_slice());
    let Some(narrowing) = Narrowing::of(base, toolsets, parts.uri.path(), &parts.headers) else {
        return plain(StatusCode::NOT_FOUND, "Not Found: no such toolset");
    };
    parts.extensions.insert(narrowing);
    accept_anything(&parts.method, &mut parts.headers);
    let bytes = match read(&parts.method, body).await {
        Ok(bytes) => bytes,
        Err(refusal) => return *refusal,
    };
    let peek = match peek(&parts.method, &bytes) {
        Ok(peek) => peek,
        Err(refusal) => return *refusal,
    };
    count(service, &parts, peek.as_ref());
    if is_stateless(&parts.headers, peek.as_ref()) {
        parts.headers.remove(SESSION_ID);
    }
    within_session(service, &principal, parts, bytes).await
}

/// Hands the request to the library, inside the session that it names if that is the caller's.
async fn within_session(
    service: &Arc<Shared>,
    principal: &Principal,
    mut parts: Parts,
    bytes: Bytes,
) -> Response<StreamBody> {
    let id = parts.headers.get(SESSION_ID).map(|v| v.to_str().unwrap_or_default().to_owned());
    let session = id.as_deref().map(|id| service.sessions.of(id, principal));
    let in_use = match session {
        Some(None) => return plain(StatusCode::NOT_FOUND, "Not Found: Session not found"),
        Some(Some(session)) => {
            let by = if parts.method == Method::GET { Use::Stream } else { Use::Call };
            Some(InUse::mark(&session, by))
        }
        None => None,
    };
    let reader = Arc::new(Reader::default());
    parts.extensions.insert(Arc::clone(&reader));
    if let Some(in_use) = &in_use {
        parts.extensions.insert(in_use.clone());
    }
    let deleted = id.filter(|_| parts.method == Method::DELETE);
    let response = service.transport.handle(Request::from_parts(parts, Full::new(bytes))).await;
    if let Some(id) = deleted.filter(|_| response.status().is_success()) {
        service.sessions.close(&id);
        // Departure: the library says 202, which clients log as a failure.
        return plain(StatusCode::NO_CONTENT, "");
    }
    if let Err(refusal) = opened(service, principal, response.headers()).await {
        return *refusal;
    }
    response.map(|body| Watched::new(body, reader, in_use).boxed_unsync())
}

/// Binds a session that the library has just opened.
async fn opened(
    service: &Arc<Shared>,
    principal: &Principal,
    headers: &HeaderMap,
) -> Result<(), Box<Response<StreamBody>>> {
    let Some(id) = headers.get(SESSION_ID).and_then(|v| v.to_str().ok()) else { return Ok(()) };
    let id: Arc<str> = id.into();
    match service.sessions.open(Arc::clone(&id), principal) {
        Opened::Kept => Ok(()),
        Opened::Replacing(old) => {
            service.end_session(&old).await;
            Ok(())
        }
        Opened::Refused => {
            service.end_session(&id).await;
            let mut refusal = plain(StatusCode::TOO_MANY_REQUESTS, "Too many sessions with calls in flight");
            refusal.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from_static("10"));
            Err(Box::new(refusal))
        }
    }
}

/// The library wants both types by name; clients that say nothing, or anything goes, take both.
fn accept_anything(method: &Method, headers: &mut HeaderMap) {
    let anything = headers.get(ACCEPT).is_none_or(|v| v.to_str().is_ok_and(|v| v.trim() == "*/*"));
    if anything {
        let both = if *method == Method::GET { "text/event-stream" } else { "application/json, text/event-stream" };
        headers.insert(ACCEPT, HeaderValue::from_static(both));
    }
}

async fn read(method: &Method, body: StreamBody) -> Result<Bytes, Box<Response<StreamBody>>> {
    if *method != Method::POST {
        return Ok(Bytes::new());
    }
    match tokio::time::timeout(BODY_WAIT, Limited::new(body, BODY_BYTES_MAX).collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Box::new(plain(StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large: at most 4 MiB")))
        }
        Ok(Err(_)) => Err(Box::new(plain(StatusCode::BAD_REQUEST, "Bad Request: the body broke off"))),
        Err(_) => Err(Box::new(plain(StatusCode::REQUEST_TIMEOUT, "Request Timeout: the body did not arrive"))),
    }
}

/// Looks at the message. The library answers malformed JSON and batches with 415; clients look for a JSON-RPC error.
fn peek(method: &Method, bytes: &Bytes) -> Result<Option<Peek>, Box<Response<StreamBody>>> {
    if *method != Method::POST {
        return Ok(None);
    }
    let first = bytes.iter().find(|b| !b.is_ascii_whitespace());
    if first == Some(&b'[') {
        return Err(Box::new(rpc_error(-32600, "batches are not supported: send one message per request")));
    }
    match serde_json::from_slice::<Peek>(bytes) {
        Ok(peek) => Ok(Some(peek)),
        Err(_) if serde_json::from_slice::<IgnoredAny>(bytes).is_ok() => Ok(None),
        Err(_) => Err(Box::new(rpc_error(-32700, "parse error: the body is not JSON"))),
    }
}

/// Says whether the request belongs to the stateless revision, where a session id means nothing.
fn is_stateless(headers: &HeaderMap, peek: Option<&Peek>) -> bool {
    let method = peek.and_then(|peek| peek.method.as_deref());
    method != Some("initialize") && version(headers, peek).is_some_and(|version| version.as_str() >= STATELESS)
}

fn version(headers: &HeaderMap, peek: Option<&Peek>) -> Option<String> {
    let named = peek.and_then(|peek| peek.params.as_ref()?.meta.as_ref()?.version.as_ref()?.as_str());
    let header = || headers.get(PROTOCOL_VERSION).and_then(|v| v.to_str().ok());
    named.or_else(header).map(str::to_owned)
}

fn count(service: &Shared, parts: &Parts, peek: Option<&Peek>) {
    const METHODS: [&str; 13] = [
        "initialize",
        "notifications/cancelled",
        "notifications/initialized",
        "ping",
        "prompts/list",
        "resources/list",
        "server/discover",
        "subscriptions/listen",
        "tasks/cancel",
        "tasks/get",
        "tasks/update",
        "tools/call",
        "tools/list",
    ];
    const VERSIONS: [&str; 4] = ["2025-03-26", "2025-06-18", "2025-11-25", STATELESS];
    let known = |set: &[&'static str], word: &str| set.iter().copied().find(|w| *w == word).unwrap_or("other");
    let method = match peek.and_then(|peek| peek.method.as_deref()) {
        Some(method) => known(&METHODS, method),
        None if parts.method == Method::GET => "stream",
        None if parts.method == Method::DELETE => "close",
        None => "other",
    };
    let version = version(&parts.headers, peek).map_or("none", |version| known(&VERSIONS, &version));
    (service.counted)(method, version);
}

fn rpc_error(code: i32, message: &str) -> Response<StreamBody> {
    let body = json!({"jsonrpc": "2.0", "id": null, "error": {"code": code, "message": message}}).to_string();
    respond(StatusCode::BAD_REQUEST, "application/json", body)
}

fn plain(status: StatusCode, text: &'static str) -> Response<StreamBody> {
    respond(status, "text/plain; charset=utf-8", text)
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<StreamBody> {
    let mut response = Response::new(AnswerBody::full(body).into_stream());
    *response.status_mut() = status;
    if status != StatusCode::NO_CONTENT {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    response
}
