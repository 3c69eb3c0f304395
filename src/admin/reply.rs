//! Owns the answers of the admin listener: text, documents, problems (RFC 9457).
//! Does not decide which one (`answer`).

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::json;

use crate::gateway::REQUEST_ID;

const X_CONTENT_TYPE_OPTIONS: HeaderName = HeaderName::from_static("x-content-type-options");

/// A refusal of the admin listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: Cow<'static, str>,
    /// What the path accepts, for 405.
    allow: &'static str,
}

impl Problem {
    pub(super) const BAD_HEAD: Self = Self {
        status: StatusCode::BAD_REQUEST,
        code: "bad_head",
        title: "Bad request",
        detail: Cow::Borrowed("exactly one valid Host is needed, and a target that is a path"),
        allow: "",
    };
    pub(super) const WRONG_HOST: Self = Self {
        status: StatusCode::FORBIDDEN,
        code: "forbidden",
        title: "Forbidden",
        detail: Cow::Borrowed("the admin listener is reached by address or as localhost"),
        allow: "",
    };
    pub(super) const UNAUTHENTICATED: Self = Self {
        status: StatusCode::UNAUTHORIZED,
        code: "unauthenticated",
        title: "Not authenticated",
        detail: Cow::Borrowed("the admin token is needed as a bearer token"),
        allow: "",
    };
    pub(super) const NOT_FOUND: Self = Self {
        status: StatusCode::NOT_FOUND,
        code: "not_found",
        title: "Not found",
        detail: Cow::Borrowed(
            "the admin listener serves /metrics, /healthz, /readyz, /reload, /quota/{tenant} and /usage",
        ),
        allow: "",
    };
    pub(super) const FROM_A_PAGE: Self = Self {
        status: StatusCode::FORBIDDEN,
        code: "forbidden",
        title: "Forbidden",
        detail: Cow::Borrowed("web pages may not change anything here"),
        allow: "",
    };
    pub(super) const NOT_RELOADED: Self = Self {
        status: StatusCode::UNPROCESSABLE_ENTITY,
        code: "configuration_refused",
        title: "Configuration refused",
        detail: Cow::Borrowed("the configuration cannot be used, the old one stays"),
        allow: "",
    };
    pub(super) const STORE_LOST: Self = Self {
        status: StatusCode::SERVICE_UNAVAILABLE,
        code: "overloaded",
        title: "Store out of reach",
        detail: Cow::Borrowed("the store does not answer"),
        allow: "",
    };

    /// The path has another method.
    pub(super) const fn method_not_allowed(allow: &'static str) -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            code: "method_not_allowed",
            title: "Method not allowed",
            detail: Cow::Borrowed("this path has another method"),
            allow,
        }
    }

    /// The same, in other words.
    pub(super) fn saying(self, detail: String) -> Self {
        Self { detail: detail.into(), ..self }
    }

    /// The request makes no sense.
    pub(super) fn bad(detail: String) -> Self {
        let (status, code, title) = (StatusCode::BAD_REQUEST, "bad_request", "Bad request");
        Self { status, code, title, detail: detail.into(), allow: "" }
    }
}

/// A short answer for probes and people.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = with_type("text/plain; charset=utf-8", body.into());
    *response.status_mut() = status;
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// A whole document.
pub(super) fn document(content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    with_type(content_type, body.into())
}

/// A refusal.
pub(super) fn problem(problem: &Problem, request_id: &str) -> Response<Full<Bytes>> {
    let body = json!({
        "type": "about:blank",
        "title": problem.title,
        "status": problem.status.as_u16(),
        "detail": problem.detail,
        "code": problem.code,
        "request_id": request_id,
    });
    let mut response = with_type("application/problem+json", body.to_string().into());
    *response.status_mut() = problem.status;
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(REQUEST_ID, id);
    }
    match problem.status {
        StatusCode::UNAUTHORIZED => {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tollbridge-admin\""));
        }
        StatusCode::METHOD_NOT_ALLOWED => {
            headers.insert(ALLOW, HeaderValue::from_static(problem.allow));
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
    response
}

fn with_type(content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
