//! Owns the way upstream and back: an admitted call is sent, its reply narrowed, metered, kept, handed on.
//! Both doors drive it. Does not decide: an `Admitted` is the ticket.
//! Invariant: upstream sees the path that was authorized, our own credential, and allow-listed headers only.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use super::admit::{Acting, Admitted, is_idempotent};
use super::arrival;
use super::body::Payload;
use super::call::{Answer, AnswerBody};
use super::exchange::Exchange;
use super::filter::{self, Eye, Rule};
use super::form::{Form, FormStream, Outgoing};
use super::path::Gateway;
use super::refusal::{Code, Refusal, Stage};
use super::runs;
use super::stream::{self, Settlement};
use crate::agentos::{Affinity, Cost, Operation, Query, Resource};
use crate::cache::{self, Stored};
use crate::cluster::{Cluster, EndpointTag, Outcome, Picked, Want};
use crate::outbound::{self, BodyError, Freshness, RequestBody, ResponseBody, Retry, SendError, SendOptions};
use crate::telemetry::ModelTokens;

/// Most attempts for one call, the first included.
const ATTEMPTS_MAX: u32 = 3;
/// Largest reply that is read whole, for filtering, metering or keeping.
const REPLY_BYTES_MAX: usize = 32 << 20;
/// A reply of at most this many bytes is read whole anyway: one write instead of several.
const SMALL_REPLY_BYTES: u64 = 64 << 10;
/// Deadline of a look-up of facts.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(5);
/// Rows per page, and pages, that a tenant-wide list may cost upstream.
const PAGE_ROWS: usize = 500;
const PAGES_MAX: usize = 20;

/// Request headers of the caller that AgentOS may see. Identity never travels in headers.
const PASSED_UP: [HeaderName; 4] = [
    header::ACCEPT,
    header::ACCEPT_LANGUAGE,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];
/// Response headers of AgentOS that the caller may see.
const PASSED_DOWN: [HeaderName; 3] = [header::CONTENT_TYPE, header::CONTENT_DISPOSITION, header::CONTENT_LANGUAGE];

/// Sends an admitted call upstream and answers with what comes back.
///
/// # Cancel safety
/// Dropping the future or the answer's body closes the upstream connection and settles the exchange.
pub(super) async fn forward(gateway: &Arc<Gateway>, mut admitted: Admitted, mut exchange: Exchange) -> Answer {
    let rule = filter::rule(admitted.operation(), &admitted.cluster, admitted.tenant_wide);
    let replied = match rule {
        Rule::TenantRows | Rule::MarkedRows => Box::pin(rows(gateway, &admitted, rule)).await.map(Replied::Whole),
        Rule::Pass | Rule::PerItem | Rule::Within | Rule::Emptied(_) => {
            reply(gateway, &mut admitted, &mut exchange).await
        }
    };
    match replied {
        Ok(Replied::Whole(answer)) => {
            exchange.served(answer.status.as_u16());
            whole(answer, exchange)
        }
        Ok(Replied::Stream { status, headers, body }) => {
            exchange.served(status.as_u16());
            let is_events =
                headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
            admitted.shed();
            let settlement = Settlement::new(Arc::clone(gateway), admitted, exchange);
            let body = if is_events { stream::events(body, settlement) } else { stream::opaque(body, settlement) };
            Answer { status, headers, body, refused: None }
        }
        Err(refusal) => arrival::answer_refused(&admitted.snapshot, &mut exchange, &refusal),
    }
}

/// Ends an exchange whose body is whole.
pub(super) fn whole(answer: Answer, mut exchange: Exchange) -> Answer {
    let length = http_body::Body::size_hint(&answer.body).exact().unwrap_or(0);
    exchange.sent(usize::try_from(length).unwrap_or(usize::MAX));
    answer
}

enum Replied {
    Whole(Answer),
    Stream { status: StatusCode, headers: HeaderMap, body: ResponseBody },
}

async fn reply(gateway: &Arc<Gateway>, admitted: &mut Admitted, exchange: &mut Exchange) -> Result<Replied, Refusal> {
    let response = send(gateway, admitted, exchange).await?;
    let (head, body) = response.into_parts();
    if head.status == StatusCode::UNAUTHORIZED {
        return Err(invalid("AgentOS refused the gateway's credential"));
    }
    if head.status.is_client_error()
        && let Some(continuing) = &mut admitted.continuing
    {
        continuing.unsent();
    }
    let mut headers = std::mem::take(&mut admitted.answer_headers);
    for name in &PASSED_DOWN {
        // Copied: a shared value would keep the connection's whole read buffer for as long as the answer streams.
        if let Some(value) = head.headers.get(name).and_then(|v| HeaderValue::from_bytes(v.as_bytes()).ok()) {
            headers.insert(name.clone(), value);
        }
    }
    if head.headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream")) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        return Ok(Replied::Stream { status: head.status, headers, body });
    }
    let length = http_body::Body::size_hint(&body).exact();
    let narrows = filter::rule(admitted.operation(), &admitted.cluster, admitted.tenant_wide) != Rule::Pass;
    let must_read =
        narrows || admitted.fill.is_some() || admitted.lease.is_some() || admitted.operation().list.is_some();
    if !must_read && length.is_none_or(|length| length > SMALL_REPLY_BYTES) {
        return Ok(Replied::Stream { status: head.status, headers, body });
    }
    let raw = collect(body, REPLY_BYTES_MAX).await?;
    let goes_on = admitted.background || head.status == StatusCode::ACCEPTED;
    if let Some(session) = admitted.new_session.as_mut().filter(|_| !goes_on) {
        session.ended();
    }
    keep(admitted, &head, &raw, &mut headers);
    if head.status.is_success() {
        purge(gateway, admitted);
    }
    if admitted.lease.is_some() {
        settle_whole(gateway, admitted, exchange, head.status, &raw);
        Box::pin(admitted.snapshot.quota.kept()).await;
    }
    // A reply that is no success is no list either.
    let body = if head.status.is_success() { Eye::of_admitted(admitted).narrow(raw)? } else { raw };
    Ok(Replied::Whole(Answer { status: head.status, headers, body: AnswerBody::full(body), refused: None }))
}

/// Fills the cache, if the call missed it and the reply may be kept.
fn keep(admitted: &mut Admitted, head: &http::response::Parts, body: &Bytes, headers: &mut HeaderMap) {
    let Some(fill) = admitted.fill.take() else { return };
    let ttl = admitted.snapshot.cache.ttl(admitted.matched.operation);
    let status = match ttl.and_then(|ttl| cache::storable(head.status.as_u16(), &head.headers, ttl)) {
        Some(ttl) => {
            let content_type = head.headers.get(header::CONTENT_TYPE).cloned();
            fill.fill(Stored::now(head.status.as_u16(), content_type, body.clone(), ttl))
        }
        None => fill.decline(),
    };
    headers.insert("cache-status", status.header());
}

/// Makes kept answers stale that this write has changed, and what was read from them.
pub(super) fn purge(gateway: &Gateway, admitted: &Admitted) {
    let purges = admitted.operation().purges;
    if purges.is_empty() {
        return;
    }
    admitted.snapshot.cache.purge(admitted.cluster.name(), purges, None);
    let described = |row: &Operation| matches!(row.resource, Resource::Agent | Resource::Team | Resource::Workflow);
    if purges.iter().any(|id| admitted.snapshot.catalog.get(id).is_some_and(described)) {
        gateway.descriptions.forget();
        gateway.has_changed();
    }
}

/// Charges a run whose reply is whole, or hands its lease over when the run goes on.
fn settle_whole(
    gateway: &Arc<Gateway>,
    admitted: &mut Admitted,
    exchange: &mut Exchange,
    status: StatusCode,
    body: &[u8],
) {
    let Some(mut lease) = admitted.lease.take() else { return };
    let mut meter = admitted.meter();
    meter.json(body);
    let seen = meter.run().cloned();
    // A workflow of 2.x answers 200 to a run in the background, with a status that is no end.
    let goes_on =
        status == StatusCode::ACCEPTED || (admitted.background && status.is_success() && meter.terminal().is_none());
    let usage = meter.finish();
    exchange.event.tokens = usage.models.iter().map(tokens).collect();
    if let Some(seen) = &seen {
        exchange.event.run_id = Some(seen.run_id.clone());
        let minted = admitted.run_id.map(|id| id.to_string());
        if minted.as_deref() != Some(&seen.run_id) {
            gateway.runs.learn(
                &admitted.cluster.settings.name,
                &seen.run_id,
                &admitted.user,
                admitted.picked.endpoint().tag,
            );
        }
    }
    if goes_on && let Some(seen) = seen {
        return runs::hand_over(gateway, admitted, seen, lease);
    }
    if status.is_success() {
        lease.commit(&usage);
    } else if status.is_client_error() {
        lease.waive();
    }
    // Else AgentOS failed, perhaps after its models had answered: the run pays what was reserved.
}

/// One model's tokens in the words of telemetry.
pub(super) fn tokens(model: &crate::usage::ModelUsage) -> ModelTokens {
    ModelTokens { model: model.model.clone(), input: model.input, output: model.output }
}

/// Sends the call, again on another endpoint where that is safe.
async fn send(
    gateway: &Gateway,
    admitted: &mut Admitted,
    exchange: &mut Exchange,
) -> Result<Response<ResponseBody>, Refusal> {
    let mut payload = std::mem::replace(&mut admitted.payload, Payload::None);
    let mut tried = Vec::new();
    loop {
        exchange.event.attempts += 1;
        exchange.event.endpoint = Some(Arc::clone(&admitted.picked.endpoint().address));
        let (spare, outgoing) = outgoing(payload);
        let failed_form = Arc::new(parking_lot::Mutex::new(None));
        let request = request(admitted, outgoing, &failed_form)?;
        let options = options(admitted, exchange.event.attempts);
        if let Some(continuing) = &mut admitted.continuing {
            continuing.sending();
        }
        if let Some(session) = &mut admitted.new_session {
            session.sending();
        }
        let error = match gateway.client.send_or_return(&admitted.picked.endpoint().origin, request, &options).await {
            Ok(response) => {
                admitted.picked.report(Outcome::Answered);
                return Ok(response);
            }
            Err(unsent) => unsent.error,
        };
        tried.push(admitted.picked.endpoint().tag);
        if let Some(refusal) = failed_form.lock().take() {
            return Err(refusal);
        }
        let name = &admitted.cluster.settings.name;
        gateway.telemetry.upstream_error(name, &admitted.picked.endpoint().address, error.kind());
        if !error.is_stale() {
            admitted.picked.report(if error.retry() == Retry::Always {
                Outcome::ConnectFailed
            } else {
                Outcome::Broke
            });
        }
        if error.retry() == Retry::Always
            && let Some(continuing) = &mut admitted.continuing
        {
            continuing.unsent();
        }
        let next = next(admitted, &tried, &error).filter(|_| exchange.event.attempts < ATTEMPTS_MAX);
        match (spare, next) {
            (Some(spare), Some(picked)) => {
                admitted.picked = picked;
                payload = spare;
                retag(admitted, &mut payload, exchange);
            }
            (_, _) => {
                // AgentOS heard nothing of the run: it costs nothing.
                if let Some(lease) = admitted.lease.as_mut().filter(|_| error.retry() == Retry::Always) {
                    lease.waive();
                }
                return Err(failed(admitted, exchange.event.attempts, &error));
            }
        }
    }
}

/// Where a failed call may be tried again: another endpoint, or the same one when only its old connection was dead.
fn next(admitted: &Admitted, tried: &[EndpointTag], error: &SendError) -> Option<Picked> {
    let again = match error.retry() {
        Retry::Always => true,
        Retry::Idempotent => is_idempotent(admitted.operation()),
        Retry::Never => false,
    };
    if !again {
        return None;
    }
    // Only the replica that holds a run knows it: another one would answer 200 and do nothing.
    let movable = admitted.operation().affinity != Affinity::FollowsRun;
    if movable && let Ok(picked) = admitted.cluster.pick(Want::Except(tried)) {
        return Some(picked);
    }
    error.is_stale().then(|| admitted.cluster.pick(Want::Tag(admitted.picked.endpoint().tag)).ok()).flatten()
}

/// A run that moves to another endpoint needs an id that names it.
fn retag(admitted: &mut Admitted, payload: &mut Payload, exchange: &mut Exchange) {
    if admitted.operation().affinity != Affinity::StartsRun {
        return;
    }
    if let Payload::Form(form) = payload {
        let id = admitted.cluster.mint_run_id(&admitted.user, admitted.picked.endpoint());
        form.set("run_id", &id.to_string());
        admitted.run_id = Some(id);
        exchange.event.run_id = Some(id.to_string());
    }
}

fn failed(admitted: &Admitted, attempt: u32, error: &SendError) -> Refusal {
    let code = match error {
        SendError::Connect { .. } | SendError::ConnectTimeout { .. } => Code::UpstreamUnreachable,
        SendError::Reset { .. } => Code::UpstreamReset,
        SendError::HeaderTimeout(_) => Code::UpstreamTimeout,
        SendError::InvalidResponse(_) => Code::UpstreamInvalid,
        SendError::BodyFailed(_) => Code::FormMalformed,
    };
    let source = std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"));
    Refusal::new(code, Stage::Forward)
        .because(format!("endpoint `{}`, attempt {attempt}: {error}{source}", admitted.picked.endpoint().address))
}

/// The body to send, and a second copy where there can be one.
fn outgoing(payload: Payload) -> (Option<Payload>, Option<(String, Outgoing)>) {
    const JSON: &str = "application/json";
    match payload {
        Payload::None => (Some(Payload::None), None),
        Payload::Raw(bytes) => (Some(Payload::Raw(bytes.clone())), Some((JSON.to_owned(), Outgoing::Whole(bytes)))),
        Payload::Json(object) => {
            let bytes = object.to_bytes();
            (Some(Payload::Json(object)), Some((JSON.to_owned(), Outgoing::Whole(bytes))))
        }
        Payload::Form(form) => (form.copy().map(Payload::Form), Some(Form::into_outgoing(form))),
    }
}

type FailedForm = Arc<parking_lot::Mutex<Option<Refusal>>>;

fn request(
    admitted: &Admitted,
    outgoing: Option<(String, Outgoing)>,
    failed: &FailedForm,
) -> Result<Request<RequestBody>, Refusal> {
    let (content_type, body) = match outgoing {
        None => (None, outbound::empty()),
        Some((content_type, Outgoing::Whole(bytes))) => (Some(content_type), outbound::full(bytes)),
        Some((content_type, Outgoing::Streamed(form))) => (Some(content_type), streamed(*form, Arc::clone(failed))),
    };
    let operation = admitted.operation();
    let target = target(admitted.path.as_str(), &admitted.query);
    let mut request = Request::builder()
        .method(operation.method.as_str())
        .uri(target)
        .body(body)
        .map_err(|e| Refusal::new(Code::Internal, Stage::Forward).because(e.to_string()))?;
    let headers = request.headers_mut();
    for name in &PASSED_UP {
        if let Some(value) = admitted.headers.get(name) {
            headers.insert(name.clone(), value.clone());
        }
    }
    if let Some(content_type) = content_type.and_then(|c| HeaderValue::from_str(&c).ok()) {
        headers.insert(header::CONTENT_TYPE, content_type);
    }
    let now = SystemTime::now();
    let credential = match &admitted.acting {
        Acting::User(user) => admitted.cluster.authorization(user, operation, admitted.caller_token.as_deref(), now),
        Acting::Lookup => admitted.cluster.lookup_authorization(admitted.caller_token.as_deref(), now),
    };
    if let Some(credential) = credential {
        headers.insert(header::AUTHORIZATION, credential);
    }
    Ok(request)
}

fn target(path: &str, query: &Query) -> String {
    let mut target = String::with_capacity(path.len() + 64);
    target.push_str(path);
    if !query.is_empty() {
        // Writing to a String cannot fail.
        let _ = write!(target, "?{query}");
    }
    target
}

/// A form that streams as a request body; why it broke is left for the caller of `send`.
fn streamed(mut form: FormStream, failed: FailedForm) -> RequestBody {
    let frames = futures_util::stream::poll_fn(move |cx| {
        form.poll_next(cx).map(|next| {
            next.map(|chunk| {
                chunk.map(http_body::Frame::data).map_err(|refusal| {
                    let error = BodyError::Producer(refusal.code.row().code.to_owned());
                    *failed.lock() = Some(refusal);
                    error
                })
            })
        })
    });
    http_body_util::StreamBody::new(frames).boxed_unsync()
}

fn options(admitted: &Admitted, attempt: u32) -> SendOptions {
    let timeouts = &admitted.cluster.settings.timeouts;
    // A run must not be sent twice, so it must not meet a connection that is just being closed; nor must a second try.
    let fresh = admitted.operation().cost == Cost::Model || attempt > 1;
    SendOptions {
        connect_timeout: timeouts.connect,
        header_timeout: timeouts.response_header,
        freshness: if fresh { Freshness::Fresh } else { Freshness::Pooled },
    }
}

async fn collect(mut body: ResponseBody, bytes_max: usize) -> Result<Bytes, Refusal> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| {
            let code = if matches!(e, BodyError::IdleTimeout(_)) { Code::UpstreamTimeout } else { Code::UpstreamReset };
            Refusal::new(code, Stage::Forward).because(e.to_string())
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > bytes_max {
            return Err(invalid("the reply is too large to be read whole"));
        }
        if whole.is_empty() && http_body::Body::is_end_stream(&body) {
            return Ok(data);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

fn invalid(reason: &str) -> Refusal {
    Refusal::new(Code::UpstreamInvalid, Stage::Forward).because(reason)
}

/// Reads one row with the lookup identity; `None` when AgentOS has no such row.
///
/// # Errors
/// Upstream refusals; nothing is assumed about a row that could not be read.
pub(super) async fn look_up(
    gateway: &Gateway,
    cluster: &Arc<Cluster>,
    caller_token: Option<&str>,
    target: &str,
) -> Result<Option<Value>, Refusal> {
    look_up_as(gateway, cluster, caller_token, target, None).await
}

/// The same, with a name by which AgentOS's log tells it from what callers cause.
pub(super) async fn look_up_as(
    gateway: &Gateway,
    cluster: &Arc<Cluster>,
    caller_token: Option<&str>,
    target: &str,
    agent: Option<&'static str>,
) -> Result<Option<Value>, Refusal> {
    // Boxed: few calls look anything up, and every call would carry the state of several sends.
    let work = Box::pin(async {
        let response = match ask(gateway, cluster, caller_token, target, (agent, Freshness::Pooled)).await {
            // Reading twice does no harm; a pooled connection may have been closed meanwhile.
            Err((_, Retry::Always | Retry::Idempotent)) => {
                ask(gateway, cluster, caller_token, target, (agent, Freshness::Fresh)).await
            }
            other => other,
        };
        let response = response.map_err(|(refusal, _)| refusal)?;
        match response.status() {
            StatusCode::OK => {
                let body = collect(response.into_body(), REPLY_BYTES_MAX).await?;
                let row = serde_json::from_slice(&body).map(Some);
                row.map_err(|e| Refusal::new(Code::UpstreamInvalid, Stage::Facts).because(e.to_string()))
            }
            StatusCode::NOT_FOUND => Ok(None),
            // No such id can exist, or AgentOS has several databases and wants to know which: what was not looked at
            // does not count as absent.
            other => {
                let absent = matches!(other, StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY);
                let code = if absent { Code::NotFound } else { Code::UpstreamInvalid };
                Err(Refusal::new(code, Stage::Facts).because(format!("look-up of `{target}` answered {other}")))
            }
        }
    });
    match tokio::time::timeout(LOOK_UP_TIMEOUT, work).await {
        Ok(found) => found,
        Err(_) => {
            Err(Refusal::new(Code::UpstreamTimeout, Stage::Facts)
                .because(format!("look-up of `{target}` took too long")))
        }
    }
}

/// Sends one look-up; with the refusal it says what may be tried again.
async fn ask(
    gateway: &Gateway,
    cluster: &Arc<Cluster>,
    caller_token: Option<&str>,
    target: &str,
    (agent, freshness): (Option<&'static str>, Freshness),
) -> Result<Response<ResponseBody>, (Refusal, Retry)> {
    let stage = |code| Refusal::new(code, Stage::Facts);
    let request = Request::get(target).body(outbound::empty());
    let mut request = request.map_err(|e| (stage(Code::Internal).because(e.to_string()), Retry::Never))?;
    if let Some(credential) = cluster.lookup_authorization(caller_token, SystemTime::now()) {
        request.headers_mut().insert(header::AUTHORIZATION, credential);
    }
    if let Some(agent) = agent {
        request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static(agent));
    }
    let connect_timeout = cluster.settings.timeouts.connect;
    let options = SendOptions { connect_timeout, header_timeout: LOOK_UP_TIMEOUT, freshness };
    let picked =
        cluster.pick(Want::Any).map_err(|no| (stage(Code::NoEndpoint).because(no.to_string()), Retry::Never))?;
    gateway.client.send(&picked.endpoint().origin, request, &options).await.map_err(|e| {
        let retry = e.retry();
        if retry == Retry::Always {
            picked.report(Outcome::ConnectFailed);
        }
        (stage(Code::UpstreamUnreachable).because(format!("look-up of `{target}`: {e}")), retry)
    })
}

/// Pages through a list with the lookup identity, keeps the tenant's rows, and builds the caller's page from them.
async fn rows(gateway: &Gateway, admitted: &Admitted, rule: Rule) -> Result<Answer, Refusal> {
    let eye = Eye::of_admitted(admitted);
    let (mut kept, mut whole): (Vec<Value>, bool) = (Vec::new(), false);
    for page in 1..=PAGES_MAX {
        let mut query = admitted.query.clone();
        query.set("page", &page.to_string());
        query.set("limit", &PAGE_ROWS.to_string());
        let (cluster, token) = (&admitted.cluster, admitted.caller_token.as_deref());
        let _turn = gateway.look_ups.turn(&cluster.settings.name, &admitted.user).await?;
        let list = look_up(gateway, cluster, token, &target(admitted.path.as_str(), &query)).await?;
        let Some(Value::Array(rows)) = list.and_then(|mut list| list.get_mut("data").map(Value::take)) else {
            return Err(invalid("a list has no `data`"));
        };
        whole = rows.len() < PAGE_ROWS;
        kept.extend(rows.into_iter().filter(|row| eye.shows_row(rule, row)));
        if whole {
            break;
        }
    }
    let number = |name: &str, default: usize| admitted.query.get(name).and_then(|v| v.parse().ok()).unwrap_or(default);
    let (limit, page) = (number("limit", 20).clamp(1, 1000), number("page", 1).max(1));
    let total = kept.len();
    let data: Vec<Value> = kept.into_iter().skip(limit.saturating_mul(page - 1)).take(limit).collect();
    let mut body = json!({
        "data": data,
        "meta": { "page": page, "limit": limit, "total_pages": total.div_ceil(limit), "total_count": total },
    });
    if !whole && let Some(Value::Object(meta)) = body.get_mut("meta") {
        // Rows of other tenants may have used up the pages: what is missing must not look like what is not there.
        meta.insert("truncated".into(), true.into());
    }
    let body = eye.narrow(body.to_string().into())?;
    let mut headers = admitted.answer_headers.clone();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(Answer { status: StatusCode::OK, headers, body: AnswerBody::full(body), refused: None })
}
