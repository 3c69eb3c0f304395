//! Owns how a tool asks the gateway: a route and its fields become a `Call`, an `Answer` becomes JSON or a failure.
//! Does not follow event streams (`run`) and does not decide anything.
//! Invariant: every wait here has a deadline and every body a bound.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use rmcp::model::{CallToolResult, ContentBlock};
use serde_json::Value;

use super::path::Path;
use super::routes::{Route, pairs};
use super::text;
use crate::gateway::{Answer, AnswerBody, Call, Caller, Carrier, Inbound};
use crate::principal::Principal;
use crate::telemetry::Door;

/// Largest JSON answer that a tool reads.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Longest wait for an answer that is not a run; the gateway's own deadlines are shorter.
const ANSWER_WAIT: Duration = Duration::from_secs(150);
/// Longest `detail` that is shown.
const DETAIL_CHARS_MAX: usize = 2_000;

/// Asks the gateway on behalf of one MCP request.
#[derive(Clone)]
pub(super) struct Asker {
    pub(super) path: Arc<dyn Path>,
    pub(super) principal: Arc<Principal>,
    pub(super) carrier: Carrier,
    /// `traceparent` and `tracestate` of the MCP request.
    pub(super) trace: HeaderMap,
    /// The tool that asks, for its limits.
    pub(super) tool: Option<&'static str>,
}

/// What is asked.
pub(super) struct Ask<'a> {
    pub(super) route: Route,
    pub(super) cluster: Arc<str>,
    pub(super) ids: &'a [&'a str],
    pub(super) query: &'a [(&'a str, &'a str)],
    pub(super) body: AskBody,
    /// The reply, where discovery knows it.
    pub(super) known: Option<Bytes>,
    /// A person said so, the client claims.
    pub(super) human: bool,
}

/// The body of what is asked.
pub(super) enum AskBody {
    None,
    Json(Value),
    Form(String),
    Multipart { boundary: String, body: Bytes },
}

/// Why a tool has no result. Every failure reaches the model as text that it can act on.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Failure {
    /// The gateway refused.
    Refused(Refused),
    /// AgentOS answered with an error.
    Upstream { status: u16, detail: String },
    /// The answer broke off or was not what AgentOS promises.
    Broken(&'static str),
    /// The arguments cannot be used.
    Argument(String),
    /// The state of an earlier question cannot be used: an error of the protocol, not of the tool.
    State(&'static str),
}

/// A refusal of the gateway, as far as a model needs it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Refused {
    pub(super) code: String,
    pub(super) detail: String,
    pub(super) help: Option<String>,
    pub(super) request_id: Option<String>,
    /// From `Retry-After`.
    pub(super) retry_after: Option<u64>,
}

// === impl Asker ===

impl Asker {
    /// Sends what is asked through the gateway.
    ///
    /// # Cancel safety
    /// Dropping the future ends the exchange.
    pub(super) async fn serve(&self, ask: &Ask<'_>) -> Answer {
        self.begin(ask).await
    }

    /// The same as a future that owns everything.
    pub(super) fn begin(&self, ask: &Ask<'_>) -> BoxFuture<'static, Answer> {
        Arc::clone(&self.path).serve(self.call(ask))
    }

    /// Sends what is asked and reads the answer as JSON; `Null` for an empty answer.
    ///
    /// # Errors
    /// Any [`Failure`] but `Argument`.
    pub(super) async fn json(&self, ask: &Ask<'_>) -> Result<Value, Failure> {
        let read = async {
            let answer = self.serve(ask).await;
            if answer.refused.is_some() || !answer.status.is_success() {
                return Err(failure(answer).await);
            }
            body_json(answer.body).await
        };
        tokio::time::timeout(ANSWER_WAIT, read).await.unwrap_or(Err(Failure::Broken("did not answer in time")))
    }

    /// What is asked as a call.
    pub(super) fn call(&self, ask: &Ask<'_>) -> Call {
        let mut headers = self.trace.clone();
        let body = match &ask.body {
            AskBody::None => Inbound::Empty,
            AskBody::Json(value) => {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                Inbound::Full(Bytes::from(value.to_string()))
            }
            AskBody::Multipart { boundary, body } => {
                let content_type = HeaderValue::from_str(&format!("multipart/form-data; boundary={boundary}"));
                headers.extend(content_type.ok().map(|value| (header::CONTENT_TYPE, value)));
                Inbound::Full(body.clone())
            }
            AskBody::Form(form) => {
                let urlencoded = HeaderValue::from_static("application/x-www-form-urlencoded");
                headers.insert(header::CONTENT_TYPE, urlencoded);
                Inbound::Full(Bytes::from(form.clone()))
            }
        };
        Call {
            door: Door::Mcp,
            request_id: Arc::clone(&self.carrier.request_id),
            method: ask.route.method(),
            path: ask.route.path(ask.ids),
            query: (!ask.query.is_empty()).then(|| pairs(ask.query)),
            headers,
            host: self.carrier.host.clone(),
            peer: self.carrier.peer,
            caller: Caller::Verified(Arc::clone(&self.principal)),
            cluster: Some(Arc::clone(&ask.cluster)),
            human: ask.human,
            tool: self.tool,
            body,
            known: ask.known.clone(),
        }
    }
}

// === impl Ask ===

impl<'a> Ask<'a> {
    /// A question without body and query.
    pub(super) fn plain(route: Route, cluster: &Arc<str>, ids: &'a [&'a str]) -> Self {
        let cluster = Arc::clone(cluster);
        Self { route, cluster, ids, query: &[], body: AskBody::None, known: None, human: false }
    }
}

// === impl Failure ===

impl Failure {
    /// Says whether the thing that was asked for is absent, or hidden, which looks the same.
    pub(super) fn is_not_found(&self) -> bool {
        match self {
            Self::Refused(refused) => refused.code == "not_found",
            Self::Upstream { status, .. } => *status == 404,
            Self::Broken(_) | Self::Argument(_) | Self::State(_) => false,
        }
    }

    /// Says whether policy refused.
    pub(super) fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused(refused) if refused.code == "forbidden")
    }

    /// The code or status, for lists that are partly unavailable.
    pub(super) fn code(&self) -> String {
        match self {
            Self::Refused(refused) => refused.code.clone(),
            Self::Upstream { status, .. } => format!("upstream_{status}"),
            Self::Broken(_) => "upstream_invalid".to_owned(),
            Self::Argument(_) => "argument".to_owned(),
            Self::State(_) => "state".to_owned(),
        }
    }

    /// When the gateway says that it is worth trying again.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refused) => refused.retry_after.map(Duration::from_secs),
            Self::Upstream { .. } | Self::Broken(_) | Self::Argument(_) | Self::State(_) => None,
        }
    }

    /// What the model reads.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Refused(refused) => refused.text(),
            Self::Upstream { status, detail } if detail.is_empty() => format!("the agent service answered {status}"),
            Self::Upstream { status, detail } => format!("the agent service answered {status}: {detail}"),
            Self::Broken(what) => format!("upstream_invalid: the agent service {what}"),
            Self::Argument(what) => what.clone(),
            Self::State(what) => (*what).to_owned(),
        }
    }

    /// The tool result.
    pub(super) fn result(&self) -> CallToolResult {
        CallToolResult::error(vec![ContentBlock::text(self.text())])
    }
}

// === impl Refused ===

impl Refused {
    fn text(&self) -> String {
        let mut text = format!("{}: {}", self.code, self.detail);
        if let Some(seconds) = self.retry_after {
            text.push_str(&format!(". Retry after {seconds} s"));
        }
        if let Some(help) = &self.help {
            text.push_str(&format!("\nhelp: {help}"));
        }
        if let Some(id) = &self.request_id {
            text.push_str(&format!("\nrequest_id: {id}"));
        }
        text
    }
}

/// Reads why an answer is no success.
pub(super) async fn failure(answer: Answer) -> Failure {
    let Answer { status, headers, body, refused } = answer;
    let retry_after = headers.get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let problem = tokio::time::timeout(Duration::from_secs(10), body_json(body)).await;
    let problem = problem.ok().and_then(Result::ok).unwrap_or(Value::Null);
    let field = |name: &str| problem.get(name).and_then(Value::as_str).map(|v| text::head(v, DETAIL_CHARS_MAX));
    match refused {
        Some(code) => Failure::Refused(Refused {
            code: code.to_owned(),
            detail: match (field("detail"), problem.get("limit").and_then(limit_in_words)) {
                (Some(detail), Some(limit)) => format!("{detail}. {limit}"),
                (detail, _) => detail.unwrap_or_else(|| "refused".to_owned()),
            },
            help: field("help"),
            request_id: field("request_id"),
            retry_after,
        }),
        None => Failure::Upstream { status: status.as_u16(), detail: upstream_detail(status, &problem) },
    }
}

/// A limit as a model can act on it: how much, used how far, and when there is more.
fn limit_in_words(limit: &Value) -> Option<String> {
    let number = |name: &str| limit.get(name).and_then(Value::as_u64);
    let name = limit.get("name").and_then(Value::as_str)?.replace('_', " ");
    let window = match number("window_s") {
        Some(0) | None => " at once".to_owned(),
        Some(seconds) => format!(" per {seconds} s"),
    };
    let again = number("reset_s").filter(|_| number("window_s") != Some(0));
    let again = again.map_or_else(String::new, |seconds| format!(", all of it again in {seconds} s"));
    Some(format!("Limit `{name}`: {}{window}, {} used{again}", number("limit")?, number("used")?))
}

/// What AgentOS said, where it is meant for callers: 500 bodies hold exception texts in 2.x.
fn upstream_detail(status: StatusCode, problem: &Value) -> String {
    if status.is_server_error() {
        return String::new();
    }
    match problem.get("detail") {
        Some(Value::String(detail)) => text::head(detail, DETAIL_CHARS_MAX),
        Some(detail) => text::head(&detail.to_string(), DETAIL_CHARS_MAX),
        None => String::new(),
    }
}

/// Reads a body as JSON.
pub(super) async fn body_json(body: AnswerBody) -> Result<Value, Failure> {
    let whole = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let bytes = whole.map_err(|_| Failure::Broken("broke off, or answered with more than 8 MiB"))?.to_bytes();
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes).map_err(|_| Failure::Broken("answered with malformed JSON"))
}
