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

use super::ask::Asker;
use super::narrowing::Narrowing;
use super::notices::{Listening, Lists, Stream, WATCHED_MAX, Wanted};
use super::reader::{Reader, Watched};
use super::resources;
use super::sessions::{InUse, Opened, Session, Use};
use super::viewer::Viewer;
use super::{BODY_BYTES_MAX, Front, Shared, step_up};
use crate::gateway::{Answer, AnswerBody, BodyBroken, Carrier, StreamBody};
use crate::principal::Principal;

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
/// Opens a listening stream of the stateless revision.
const LISTEN: &str = "subscriptions/listen";
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
    let front = service.front.load_full();
    if !front.resource.is_for(&principal) {
        return from_answer(front.resource.refuse_foreign());
    }
    let settings = &front.settings;
    let toolsets = (settings.toolsets.as_slice(), settings.optional_toolsets.as_slice());
    let Some(narrowing) = Narrowing::of(&settings.path, toolsets, parts.uri.path(), &parts.headers) else {
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
    if let Some(refusal) = step_up::refusal(service, &front.resource, &principal, &parts, &bytes) {
        return refusal;
    }
    let mut bytes = bytes;
    let mut place = None;
    let stateless = is_stateless(&parts.headers, peek.as_ref());
    if stateless {
        parts.headers.remove(SESSION_ID);
    }
    let listens = stateless && peek.as_ref().is_some_and(|peek| peek.method.as_deref() == Some(LISTEN));
    if listens || parts.method == Method::GET {
        place = service.listeners.enter(&principal);
        if place.is_none() {
            return busy("Too many listening streams");
        }
    }
    if listens {
        bytes = watchable(service, &principal, &parts, &bytes).await.unwrap_or(bytes);
    }
    within_session(service, &front, &principal, parts, bytes, place).await
}

/// A `subscriptions/listen` without the resources that the caller cannot watch: the library confirms what it is given.
async fn watchable(service: &Arc<Shared>, principal: &Arc<Principal>, parts: &Parts, bytes: &Bytes) -> Option<Bytes> {
    let viewer = viewer(service, principal, parts)?;
    let mut message: Value = serde_json::from_slice(bytes).ok()?;
    let uris = message.pointer_mut("/params/notifications/resourceSubscriptions")?.as_array_mut()?;
    service.inner.discovery.settled(&viewer.clusters).await;
    uris.truncate(WATCHED_MAX);
    uris.retain(|uri| uri.as_str().is_some_and(|uri| resources::can_be_watched(&viewer, uri)));
    Some(Bytes::from(message.to_string()))
}

/// The caller as lists see it.
fn viewer(service: &Arc<Shared>, principal: &Arc<Principal>, parts: &Parts) -> Option<Viewer> {
    let carrier = parts.extensions.get::<Carrier>()?;
    let narrowing = parts.extensions.get::<Narrowing>()?.clone();
    Some(Viewer::new(&service.inner, Arc::clone(principal), carrier.peer, narrowing))
}

/// What tells the client of a session about changes, as long as it listens.
fn stream(
    service: &Arc<Shared>,
    principal: &Arc<Principal>,
    parts: &Parts,
    session: &Arc<Session>,
    reader: &Arc<Reader>,
) -> Option<Stream> {
    let viewer = viewer(service, principal, parts)?;
    let asker = Asker {
        path: Arc::clone(&service.inner.path),
        principal: Arc::clone(principal),
        carrier: parts.extensions.get::<Carrier>()?.clone(),
        trace: HeaderMap::new(),
        tool: None,
    };
    let told = Lists::of(&viewer, Wanted::ALL);
    Some(Stream { told, viewer, asker, session: Arc::clone(session), reader: Arc::clone(reader) })
}

/// Hands the request to the library, inside the session that it names if that is the caller's.
async fn within_session(
    service: &Arc<Shared>,
    front: &Front,
    principal: &Arc<Principal>,
    mut parts: Parts,
    bytes: Bytes,
    place: Option<Listening>,
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
    let listens = in_use.as_ref().filter(|_| parts.method == Method::GET);
    let listens = listens.and_then(|used| stream(service, principal, &parts, used.session(), &reader));
    let deleted = id.filter(|_| parts.method == Method::DELETE);
    let response = front.transport.handle(Request::from_parts(parts, Full::new(bytes))).await;
    if let Some(id) = deleted.filter(|_| response.status().is_success()) {
        service.sessions.close(&id);
        // Departure: the library says 202, which clients log as a failure.
        return plain(StatusCode::NO_CONTENT, "");
    }
    if let Err(refusal) = opened(service, principal, response.headers()).await {
        return *refusal;
    }
    let listens = listens.filter(|_| response.status().is_success());
    response.map(|body| {
        let body = Watched::new(body, reader, in_use).listening(place, &service.stop);
        match listens {
            Some(stream) => body.beside(Box::pin(stream.tell())).boxed_unsync(),
            None => body.boxed_unsync(),
        }
    })
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
            Err(Box::new(busy("Too many sessions with calls in flight")))
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
        Ok(Err(error)) if error.downcast_ref::<BodyBroken>() != Some(&BodyBroken::TooSlow) => {
            Err(Box::new(plain(StatusCode::BAD_REQUEST, "Bad Request: the body broke off")))
        }
        Ok(Err(_)) | Err(_) => {
            Err(Box::new(plain(StatusCode::REQUEST_TIMEOUT, "Request Timeout: the body did not arrive")))
        }
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
    const METHODS: [&str; 19] = [
        "completion/complete",
        "initialize",
        "notifications/cancelled",
        "notifications/initialized",
        "ping",
        "prompts/get",
        "prompts/list",
        "resources/list",
        "resources/read",
        "resources/subscribe",
        "resources/templates/list",
        "resources/unsubscribe",
        "server/discover",
        LISTEN,
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

fn from_answer(answer: Answer) -> Response<StreamBody> {
    let mut response = Response::new(answer.body.into_stream());
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
}

fn rpc_error(code: i32, message: &str) -> Response<StreamBody> {
    let body = json!({"jsonrpc": "2.0", "id": null, "error": {"code": code, "message": message}}).to_string();
    respond(StatusCode::BAD_REQUEST, "application/json", body)
}

fn busy(text: &'static str) -> Response<StreamBody> {
    let mut refusal = plain(StatusCode::TOO_MANY_REQUESTS, text);
    refusal.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from_static("10"));
    refusal
}

fn plain(status: StatusCode, text: &'static str) -> Response<StreamBody> {
    respond(status, "text/plain; charset=utf-8", text)
}

pub(super) fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<StreamBody> {
    let mut response = Response::new(AnswerBody::full(body).into_stream());
    *response.status_mut() = status;
    if status != StatusCode::NO_CONTENT {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    response
}
