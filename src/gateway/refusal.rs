//! Owns the one table of refusals: every way the gateway says no, for both doors.
//! Does not decide when to refuse (the stages) and never shows a caller the operator's reason.
//! Invariant: a code's status, text and log level stand in one row.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::call::{Answer, AnswerBody};
use crate::quota::LimitState;

/// How loud the access log is about a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loudness {
    /// The caller's mistake.
    Info,
    /// Degraded, recovers alone.
    Warn,
    /// A person must act.
    Error,
}

/// One row of the refusal table.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The code in problem bodies, logs and metrics.
    pub code: &'static str,
    /// HTTP status.
    pub status: u16,
    /// Short title of the problem type.
    pub title: &'static str,
    /// Safe sentence for the caller.
    pub detail: &'static str,
    /// What the caller can do next.
    pub help: Option<&'static str>,
    /// Log level.
    pub loudness: Loudness,
}

macro_rules! table {
    ($($variant:ident $code:literal $status:literal $loudness:ident $title:literal $detail:literal $help:expr;)+) => {
        /// Why a call was refused. One variant per row of the table.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $(#[doc = $detail] $variant),+ }

        impl Code {
            /// Every code, in table order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The row of the code.
            pub const fn row(self) -> Row {
                match self {
                    $(Self::$variant => Row {
                        code: $code, status: $status, title: $title, detail: $detail, help: $help,
                        loudness: Loudness::$loudness,
                    }),+
                }
            }
        }
    };
}

table! {
    BadHead "bad_head" 400 Info "Bad request head" "the request head is malformed" None;
    PathNotCanonical "path_not_canonical" 400 Info "Path not canonical" "the path has encoded separators, dot segments, control characters or empty segments" Some("send the plain path of the operation; percent-encode only what an id needs");
    FieldNotAllowed "field_not_allowed" 400 Info "Field not allowed" "the request has a field that this operation does not accept" Some("`tollbridge operations` lists the fields of each operation");
    FieldDuplicated "field_duplicated" 400 Info "Field duplicated" "the request has the same field twice" Some("send each field once");
    FieldTooLate "field_too_late" 400 Info "Field too late" "a deciding field came after the first 48 KiB of the body" Some("send fields before files");
    FormMalformed "form_malformed" 400 Info "Body malformed" "the request body could not be parsed" None;
    CredentialAmbiguous "credential_ambiguous" 400 Info "Ambiguous credential" "the request carries more than one credential" Some("send exactly one `Authorization` header");
    Unauthenticated "unauthenticated" 401 Info "Not authenticated" "a valid credential is required" Some("send `Authorization: Bearer <token>`");
    TokenExpired "token_expired" 401 Info "Token expired" "the token has expired" Some("get a new token and repeat the request");
    Forbidden "forbidden" 403 Info "Forbidden" "you may not do this" Some("ask your administrator for a role or scope that allows this operation");
    KnowledgeShared "knowledge_shared" 403 Info "Knowledge shared" "this component reads knowledge that the agent service cannot keep apart per tenant" Some("ask your administrator for a cluster of your own, or run a component without knowledge");
    OperationUnknown "operation_unknown" 404 Info "Unknown operation" "this path is no operation that the gateway serves" Some("`tollbridge operations` lists what is served");
    OperationUnsupported "operation_unsupported" 404 Info "Unsupported operation" "the AgentOS behind this cluster does not have this operation" None;
    ClusterUnknown "cluster_unknown" 404 Info "Unknown cluster" "there is no such cluster for you" None;
    NotFound "not_found" 404 Info "Not found" "there is no such resource for you" None;
    MethodNotAllowed "method_not_allowed" 405 Info "Method not allowed" "this path does not accept this method" Some("see the `Allow` header");
    RequestTimeout "request_timeout" 408 Info "Request timeout" "the request did not arrive in time" None;
    ApprovalPending "approval_pending" 409 Info "Approval pending" "a required approval has not been given yet" Some("resolve the approval first");
    ApprovalRejected "approval_rejected" 409 Info "Approval rejected" "a required approval was rejected" None;
    AlreadyContinued "already_continued" 409 Info "Already continued" "this run was continued before" None;
    BodyTooLarge "body_too_large" 413 Info "Body too large" "the request body is larger than the limit" None;
    MediaTypeUnsupported "media_type_unsupported" 415 Info "Unsupported media type" "this operation does not accept this content type or encoding" None;
    HeadTooLarge "head_too_large" 431 Info "Head too large" "the request head is larger than the limit" None;
    Flood "flood" 429 Info "Too many requests" "too many requests from this address" Some("slow down");
    RateLimited "rate_limited" 429 Info "Rate limited" "the request rate of your tenant is used up" Some("wait as long as `Retry-After` says");
    TooManyRuns "too_many_runs" 429 Info "Too many runs" "your tenant has as many runs as its plan allows at once" Some("wait until a run has ended");
    BudgetExhausted "budget_exhausted" 429 Info "Budget exhausted" "the token budget of your tenant is used up" Some("wait until the budget resets or ask for a larger plan");
    CancelUnconfirmed "cancel_unconfirmed" 202 Warn "Cancel unconfirmed" "the cancel was sent, but the run was not seen to end" Some("poll the run");
    Internal "internal" 500 Error "Internal error" "the gateway failed" None;
    UpstreamUnreachable "upstream_unreachable" 502 Warn "Upstream unreachable" "the agent service did not answer" None;
    UpstreamReset "upstream_reset" 502 Warn "Upstream reset" "the agent service broke off" None;
    UpstreamInvalid "upstream_invalid" 502 Error "Upstream invalid" "the agent service answered in a way that cannot be used" None;
    NoEndpoint "no_endpoint" 503 Error "No endpoint" "no replica of the agent service is available" None;
    Overloaded "overloaded" 503 Warn "Overloaded" "the agent service is at its limit" None;
    Draining "draining" 503 Warn "Draining" "the gateway is shutting down" None;
    UpstreamTimeout "upstream_timeout" 504 Warn "Upstream timeout" "the agent service did not answer in time" None;
}

impl Code {
    /// What an operator can do about a code whose row has no help for callers.
    const fn remedy(self) -> &'static str {
        match self {
            Self::BadHead => "send a head that has one meaning: one `Host`, one length, no folded lines",
            Self::FormMalformed => {
                "send the fields that `tollbridge operations` lists, each in the shape AgentOS reads"
            }
            Self::OperationUnsupported => {
                "use a cluster whose AgentOS has it: `tollbridge operations` has the versions"
            }
            Self::ClusterUnknown => "name one of the `clusters` of the caller's tenant, or add the cluster to them",
            Self::NotFound => "the id belongs to somebody else or does not exist: no role or scope shows it",
            Self::RequestTimeout => "send the request without long pauses",
            Self::ApprovalRejected => "start a new run and ask again: a rejected call is not executed",
            Self::AlreadyContinued => "look at the run: it goes on, or has ended",
            Self::BodyTooLarge => "send less, or raise the limit in `[server.limits]`",
            Self::MediaTypeUnsupported => "send what `tollbridge operations` names, without content encoding",
            Self::HeadTooLarge => "send fewer or shorter headers, or raise `header_bytes` in `[server.limits]`",
            Self::NoEndpoint => "look at the endpoints of the cluster: none is up, or none holds the run",
            Self::Overloaded => "come back later; for tokens, see whether the issuer's keys can be fetched",
            Self::Draining => "ask another instance",
            Self::UpstreamUnreachable | Self::UpstreamReset | Self::UpstreamInvalid | Self::UpstreamTimeout => {
                "look at the AgentOS of the cluster: it does not answer as it should"
            }
            Self::Internal
            | Self::PathNotCanonical
            | Self::FieldNotAllowed
            | Self::FieldDuplicated
            | Self::FieldTooLate
            | Self::CredentialAmbiguous
            | Self::Unauthenticated
            | Self::TokenExpired
            | Self::Forbidden
            | Self::KnowledgeShared
            | Self::OperationUnknown
            | Self::MethodNotAllowed
            | Self::ApprovalPending
            | Self::Flood
            | Self::RateLimited
            | Self::TooManyRuns
            | Self::BudgetExhausted
            | Self::CancelUnconfirmed => "look at the gateway's log under the request id",
        }
    }
}

/// The stage of `admit` or `forward` that refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reading the request.
    Request,
    /// Finding the operation.
    Catalogue,
    /// Verifying the credential.
    Identity,
    /// Choosing cluster or endpoint.
    Cluster,
    /// Rates, runs, budgets.
    Quota,
    /// Learning who owns what.
    Facts,
    /// Asking the policies.
    Policy,
    /// Writing the audit log first.
    Audit,
    /// Talking to AgentOS.
    Forward,
}

/// A refused call: the row, and what only the operator may read.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// Which row.
    pub code: Code,
    /// Where it stopped.
    pub stage: Stage,
    /// A safe sentence that replaces the row's own.
    pub detail: Option<Cow<'static, str>>,
    /// For the log only.
    pub reason: Option<String>,
    /// `Retry-After`; rows with status 429 and 503 always send one.
    pub retry_after: Option<Duration>,
    /// The limit that was met.
    pub limit: Option<Box<LimitState>>,
    /// `Allow`, for 405.
    pub allow: Option<String>,
}

// === impl Stage ===

impl Stage {
    /// The word in logs and in `explain`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Catalogue => "catalogue",
            Self::Identity => "identity",
            Self::Cluster => "cluster",
            Self::Quota => "quota",
            Self::Facts => "facts",
            Self::Policy => "policy",
            Self::Audit => "audit",
            Self::Forward => "forward",
        }
    }
}

// === impl Refusal ===

impl Refusal {
    /// A refusal with the row's own words.
    pub fn new(code: Code, stage: Stage) -> Self {
        Self { code, stage, detail: None, reason: None, retry_after: None, limit: None, allow: None }
    }

    /// Adds what only the operator may read.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Replaces the caller's sentence. Must be safe: no secret, no foreign id, no policy text.
    #[must_use]
    pub fn saying(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// What helps, in the words of whoever runs the gateway: for `explain`, never for callers.
    pub fn help(&self) -> &'static str {
        match (self.code, self.stage) {
            (Code::Forbidden, Stage::Quota) => {
                "the credential names a plan that does not exist, or nothing names one: see `[quota] default_plan`"
            }
            (Code::Flood, _) => "slow down, or raise `flood` in `[quota]`: it counts each client address",
            (Code::Forbidden, Stage::Identity) => "AgentOS reserves this name: give the caller another subject",
            (Code::Forbidden, Stage::Facts) => "no role or scope changes this: what the call refers to must change",
            (code, _) => code.row().help.unwrap_or_else(|| code.remedy()),
        }
    }

    /// The refusal as RFC 9457 problem details; `detail` is a string, which AgentOS clients read too.
    pub fn problem(&self, request_id: &str) -> Bytes {
        let row = self.code.row();
        let mut body = serde_json::json!({
            "type": format!("urn:tollbridge:problem:{}", row.code),
            "title": row.title,
            "status": row.status,
            "detail": self.detail.as_deref().unwrap_or(row.detail),
            "code": row.code,
            "request_id": request_id,
        });
        if let Some(map) = body.as_object_mut() {
            if let Some(help) = row.help {
                map.insert("help".into(), help.into());
            }
            if let Some(limit) = &self.limit {
                map.insert("limit".into(), limit_json(limit));
            }
        }
        Bytes::from(body.to_string())
    }

    /// The refusal as an answer, with `Retry-After`, `Allow` and `WWW-Authenticate` where they belong, and the id of
    /// the decision: the request id, under which the audit log has it. A caller may choose its request id, so the id
    /// is unique only where the gateway minted it; `explain --decision` prints every line that has it.
    pub fn answer(&self, request_id: &str) -> Answer {
        let row = self.code.row();
        let mut headers = HeaderMap::with_capacity(6);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if matches!(row.status, 429 | 503) {
            let wait = self.retry_after.unwrap_or(Duration::from_secs(1));
            headers.insert(header::RETRY_AFTER, HeaderValue::from(ceil_seconds(wait)));
        }
        if let Ok(id) = HeaderValue::from_str(request_id) {
            headers.insert("tollbridge-decision", id);
        }
        if row.status == 401 {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(allow) = self.allow.as_deref().and_then(|a| HeaderValue::from_str(a).ok()) {
            headers.insert(header::ALLOW, allow);
        }
        if let Some(limit) = self.limit.as_deref() {
            limit_headers(&mut headers, std::slice::from_ref(limit));
        }
        Answer {
            status: StatusCode::from_u16(row.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            headers,
            body: AnswerBody::full(self.problem(request_id)),
            refused: Some(row.code),
        }
    }
}

/// Writes `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11).
pub(super) fn limit_headers(headers: &mut HeaderMap, limits: &[LimitState]) {
    const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
    const STATE: HeaderName = HeaderName::from_static("ratelimit");
    for (name, value) in [(POLICY, LimitState::policy_headers(limits)), (STATE, LimitState::state_headers(limits))] {
        if let Some(Ok(value)) = value.map(HeaderValue::try_from) {
            headers.insert(name, value);
        }
    }
}

/// Writes `X-RateLimit-*` for clients that know no other: of the limit with the least left, its reset in seconds.
pub(super) fn legacy_headers(headers: &mut HeaderMap, limits: &[LimitState]) {
    let Some(tightest) = limits.iter().min_by_key(|limit| limit.remaining) else { return };
    headers.insert("x-ratelimit-limit", HeaderValue::from(tightest.limit));
    headers.insert("x-ratelimit-remaining", HeaderValue::from(tightest.remaining));
    headers.insert("x-ratelimit-reset", HeaderValue::from(ceil_seconds(tightest.reset)));
}

pub(super) fn limit_json(limit: &LimitState) -> serde_json::Value {
    serde_json::json!({
        "name": limit.full_name(),
        "limit": limit.limit,
        "remaining": limit.remaining,
        "used": limit.used,
        "window_s": limit.window.as_secs(),
        "reset_s": ceil_seconds(limit.reset),
    })
}

/// Whole seconds, rounded up, at least one: waiting exactly that long must be enough.
fn ceil_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_lower_case() {
        let mut seen = std::collections::BTreeSet::new();
        for code in Code::ALL {
            let row = code.row();
            assert!(seen.insert(row.code), "{} twice", row.code);
            assert!(row.code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", row.code);
            assert!(!row.detail.ends_with('.') && row.detail.starts_with(|c: char| c.is_lowercase()), "{}", row.code);
        }
    }

    #[test]
    fn rejections_for_load_always_say_when_to_retry() {
        for code in Code::ALL.iter().filter(|c| matches!(c.row().status, 429 | 503)) {
            let answer = Refusal::new(*code, Stage::Quota).answer("r");
            assert!(answer.headers.contains_key(header::RETRY_AFTER), "{code:?}");
        }
    }

    #[test]
    fn the_reason_stays_with_the_operator() {
        let refusal = Refusal::new(Code::Unauthenticated, Stage::Identity).because("kid `x` unknown");
        let text = String::from_utf8(refusal.problem("r-1").to_vec()).unwrap();
        assert!(!text.contains("kid"), "{text}");
        assert!(text.contains(r#""code":"unauthenticated""#) && text.contains(r#""request_id":"r-1""#), "{text}");
    }

    #[test]
    fn retry_after_rounds_up() {
        assert_eq!(ceil_seconds(Duration::ZERO), 1);
        assert_eq!(ceil_seconds(Duration::from_millis(1001)), 2);
        assert_eq!(ceil_seconds(Duration::from_secs(3)), 3);
    }
}
