//! Owns CORS (Fetch standard §3.2): which pages of other origins may call, on every path of the listener.
//! Does not authenticate: a preflight carries no credential, and is answered before anything is asked.
//! Invariants: only exact origins of the configuration are named; credentials of a browser (cookies) are never asked
//! for: tokens travel in `Authorization`, and a client certificate is nobody's where a page of another origin asks.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::settings::Cors;
use crate::gateway::{Answer, AnswerBody, Code, Refusal, Stage};

/// Where a browser says that a page made it ask (Fetch Metadata): `none` is the person at the address bar.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// What our own clients send.
const HEADERS: &str = "accept, authorization, content-type, last-event-id, mcp-method, mcp-name, mcp-protocol-version, \
    mcp-session-id, traceparent, tracestate, tollbridge-cluster, x-mcp-readonly, x-mcp-toolsets, x-mcp-wait, \
    x-request-id";
const METHODS: &str = "GET, POST, PUT, PATCH, DELETE";
/// What pages may read beside the fields that they always may.
const EXPOSED: &str = "age, cache-status, content-disposition, mcp-session-id, ratelimit, ratelimit-policy, \
    retry-after, tollbridge-decision, www-authenticate, x-request-id";

/// Answers a preflight; `None` for every other request.
pub(super) fn preflight(cors: &Cors, method: &Method, headers: &HeaderMap, request_id: &str) -> Option<Answer> {
    let asks = *method == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let origin = headers.get(header::ORIGIN).filter(|_| asks)?;
    if !is_allowed(cors, origin) {
        let refusal = Refusal::new(Code::Forbidden, Stage::Request).saying("pages of this origin may not call");
        return Some(refusal.answer(request_id));
    }
    let mut answer = Answer {
        status: StatusCode::NO_CONTENT,
        headers: HeaderMap::with_capacity(8),
        body: AnswerBody::full(""),
        refused: None,
    };
    let allowed = cors.headers.iter().fold(HEADERS.to_owned(), |list, name| format!("{list}, {name}"));
    let told: [(HeaderName, String); 3] = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS.to_owned()),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, allowed),
        (header::ACCESS_CONTROL_MAX_AGE, cors.max_age.as_secs().to_string()),
    ];
    for (name, value) in told {
        if let Ok(value) = HeaderValue::from_str(&value) {
            answer.headers.insert(name, value);
        }
    }
    Some(answer)
}

/// The origin of the page that calls, if it may.
pub(super) fn origin(cors: &Cors, headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(header::ORIGIN).filter(|origin| is_allowed(cors, origin)).cloned()
}

/// Says whether a page of an origin that may not call has sent this. A browser shows a client certificate by itself, so
/// that such a page must not act in its name; a token it would have to know.
pub(super) fn is_foreign_page(cors: Option<&Cors>, headers: &HeaderMap) -> bool {
    let fetched = |site: &HeaderValue| site.as_bytes() != b"none";
    let by_page = headers.contains_key(header::ORIGIN) || headers.get(&SEC_FETCH_SITE).is_some_and(fetched);
    by_page && cors.is_none_or(|cors| origin(cors, headers).is_none())
}

/// Lets the page that called read the answer.
pub(super) fn reveal(origin: Option<&HeaderValue>, answer: &mut HeaderMap) {
    // Also without an origin: a cache must not give this answer to a page.
    answer.append(header::VARY, HeaderValue::from_static("origin"));
    let Some(origin) = origin else { return };
    answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
}

fn is_allowed(cors: &Cors, origin: &HeaderValue) -> bool {
    cors.origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes())
}
