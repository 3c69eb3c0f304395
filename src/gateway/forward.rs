//! Owns the way back from upstream: an admitted call is sent, its reply narrowed, metered, kept, handed on.
//! Both doors drive it. Does not decide (an `Admitted` is the ticket); what is sent again is up to `send`.
//! Invariant: a caller sees allow-listed headers of AgentOS only.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use super::admit::Admitted;
use super::arrival;
use super::call::{Answer, AnswerBody};
use super::cancel;
use super::exchange::Exchange;
use super::filter::{self, Eye, Rule};
use super::ground::Holder;
use super::orphans;
use super::path::Gateway;
use super::refusal::{Code, Refusal, Stage};
use super::runs::{self, Fate, Left, Telling};
use super::send::{self, target};
use super::stream::{self, Settlement};
use crate::agentos::{OnRun, Operation, Resource};
use crate::cache::{self, Stored};
use crate::cluster::{Cluster, EndpointTag, Outcome, Want};
use crate::outbound::{self, BodyError, Freshness, ResponseBody, Retry, SendError, SendOptions};
use crate::telemetry::ModelTokens;

/// Largest reply that is read whole, for filtering, metering or keeping.
const REPLY_BYTES_MAX: usize = 32 << 20;
/// A reply of at most this many bytes is read whole anyway: one write instead of several.
const SMALL_REPLY_BYTES: u64 = 64 << 10;
/// Deadline of a look-up of facts.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(5);
/// Rows per page, and pages, that a tenant-wide list may cost upstream.
const PAGE_ROWS: usize = 500;
const PAGES_MAX: usize = 20;

/// Response headers of AgentOS that the caller may see.
const PASSED_DOWN: [HeaderName; 3] = [header::CONTENT_TYPE, header::CONTENT_DISPOSITION, header::CONTENT_LANGUAGE];

/// Sends an admitted call upstream and answers with what comes back.
///
/// # Cancel safety
/// Dropping the future or the answer's body closes the upstream connection and settles the exchange.
pub(super) async fn forward(
    gateway: &Arc<Gateway>,
    mut admitted: Box<Admitted>,
    mut exchange: Box<Exchange>,
) -> Answer {
    let rule = filter::rule(admitted.operation(), &admitted.cluster, admitted.tenant_wide);
    let replied = match rule {
        Rule::TenantRows | Rule::MarkedRows => Box::pin(rows(gateway, &admitted, rule)).await.map(Replied::Whole),
        Rule::Pass | Rule::PerItem | Rule::Within | Rule::Emptied(_) => {
            followed(gateway, &mut admitted, &mut exchange).await
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
pub(super) fn whole(answer: Answer, mut exchange: Box<Exchange>) -> Answer {
    let length = http_body::Body::size_hint(&answer.body).exact().unwrap_or(0);
    exchange.sent(usize::try_from(length).unwrap_or(usize::MAX));
    answer
}

enum Replied {
    Whole(Answer),
    Stream { status: StatusCode, headers: HeaderMap, body: ResponseBody },
}

/// Sends the call where it has to go: a cancel is confirmed, and goes to every replica where nobody knows the one; what
/// is known of a run whose replica is gone is told from the database.
async fn followed(
    gateway: &Arc<Gateway>,
    admitted: &mut Admitted,
    exchange: &mut Exchange,
) -> Result<Replied, Refusal> {
    if cancel::goes_to_all(admitted) {
        let told = Box::pin(cancel::tell_all(gateway, admitted)).await?;
        return Box::pin(cancel::confirmed(gateway, admitted, told)).await.map(Replied::Whole);
    }
    let resumes = admitted.operation().does(OnRun::Resume);
    let last = orphans::last_index(admitted).filter(|_| resumes);
    if resumes && admitted.hold.holder == Holder::Lost {
        return Box::pin(orphans::resume(gateway, admitted, last)).await.map(Replied::Whole);
    }
    match reply(gateway, admitted, exchange).await {
        Ok(Replied::Whole(answer)) if admitted.operation().does(OnRun::Cancel) => {
            Box::pin(cancel::confirmed(gateway, admitted, answer)).await.map(Replied::Whole)
        }
        Err(refusal) if resumes && admitted.session.is_some() && refusal.code == Code::UpstreamUnreachable => {
            Box::pin(orphans::resume(gateway, admitted, last)).await.map(Replied::Whole)
        }
        replied => replied,
    }
}

async fn reply(gateway: &Arc<Gateway>, admitted: &mut Admitted, exchange: &mut Exchange) -> Result<Replied, Refusal> {
    let response = send::send(gateway, admitted, exchange).await?;
    let (head, body) = response.into_parts();
    if head.status.is_client_error()
        && let Some(continuing) = &mut admitted.continuing
    {
        continuing.unsent();
    }
    if head.status == StatusCode::UNAUTHORIZED {
        if let Some(lease) = &mut admitted.lease {
            lease.waive();
        }
        return Err(invalid("AgentOS refused the gateway's credential"));
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
    let raw = read_whole(admitted, body).await?;
    let goes_on = admitted.background || head.status == StatusCode::ACCEPTED;
    if let Some(session) = admitted.new_session.as_mut().filter(|_| !goes_on) {
        session.ended();
    }
    keep(admitted, &head, &raw, &mut headers);
    if head.status.is_success() {
        purge(gateway, admitted);
    }
    if admitted.lease.is_some() {
        let telling = settle_whole(gateway, admitted, exchange, head.status, &raw);
        Box::pin(admitted.snapshot.quota.kept()).await;
        // Who is told an id of AgentOS's own may use it at another instance at once.
        if let Some(telling) = telling {
            Box::pin(telling.told()).await;
        }
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

/// Charges a run whose reply is whole, or hands its lease over when the run goes on; gives what is being told of an id
/// that AgentOS chose.
fn settle_whole(
    gateway: &Arc<Gateway>,
    admitted: &mut Admitted,
    exchange: &mut Exchange,
    status: StatusCode,
    body: &[u8],
) -> Option<Telling> {
    let mut lease = admitted.lease.take()?;
    let mut meter = admitted.meter();
    meter.json(body);
    let seen = meter.run().cloned();
    let ended = meter.terminal().is_some();
    // A workflow of 2.x answers 200 to a run in the background, with a status that is no end.
    let goes_on = status == StatusCode::ACCEPTED || (admitted.background && status.is_success() && !ended);
    let usage = meter.finish();
    exchange.event.tokens = usage.models.iter().map(tokens).collect();
    if let Some(going) = admitted.hold.going.as_mut().filter(|_| ended) {
        going.ended();
    }
    let mut telling = None;
    if let Some(seen) = &seen {
        exchange.event.run_id = Some(seen.run_id.clone());
        let minted = admitted.run_id.map(|id| id.to_string());
        if minted.as_deref() != Some(&seen.run_id) {
            let tag = admitted.picked.endpoint().tag;
            telling = Some(gateway.runs.learn(admitted.cluster.name(), &seen.run_id, &admitted.user, tag));
        }
    }
    if goes_on && let Some(seen) = seen {
        let left = Left { seen, fate: Fate::GoesOn, told: usage, since: tokio::time::Instant::now() };
        runs::hand_over(gateway, admitted, lease, left);
        return telling;
    }
    if status.is_success() {
        lease.commit(&usage);
    } else if status.is_client_error() {
        lease.waive();
    }
    // Else AgentOS failed, perhaps after its models had answered: the run pays what was reserved.
    telling
}

/// One model's tokens in the words of telemetry.
pub(super) fn tokens(model: &crate::usage::ModelUsage) -> ModelTokens {
    ModelTokens { model: model.model.clone(), input: model.input, output: model.output }
}

/// Reads a reply as a stream may last: a run's lease, turn and place wait for its end.
async fn read_whole(admitted: &Admitted, body: ResponseBody) -> Result<Bytes, Refusal> {
    let timeouts = &admitted.cluster.settings.timeouts;
    let whole = collect(body.with_idle_timeout(timeouts.stream_idle), REPLY_BYTES_MAX);
    tokio::time::timeout(timeouts.stream_max, whole).await.unwrap_or_else(|_| {
        Err(Refusal::new(Code::UpstreamTimeout, Stage::Forward).because("the reply did not end in time"))
    })
}

/// Reads a whole body.
///
/// # Errors
/// `upstream_reset` and `upstream_timeout` for one that breaks off, `upstream_invalid` for one that is too large.
pub(super) async fn collect(mut body: ResponseBody, bytes_max: usize) -> Result<Bytes, Refusal> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error))?;
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

/// The refusal of a body that broke off.
pub(super) fn broken(error: &BodyError) -> Refusal {
    let code = if matches!(error, BodyError::IdleTimeout(_)) { Code::UpstreamTimeout } else { Code::UpstreamReset };
    Refusal::new(code, Stage::Forward).because(error.to_string())
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
        let mut tried = Vec::new();
        cluster.asked();
        let response = match ask(gateway, cluster, caller_token, target, (agent, Freshness::Pooled), &mut tried).await {
            // Reading twice does no harm; a pooled connection may have been closed meanwhile, or the endpoint died.
            Err((_, Some(error))) if error.retry() != Retry::Never && send::is_granted(cluster, &error, 1) => {
                ask(gateway, cluster, caller_token, target, (agent, Freshness::Fresh), &mut tried).await
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

/// Sends one look-up; beside the refusal stands the error of the sending, if it came to that.
async fn ask(
    gateway: &Gateway,
    cluster: &Arc<Cluster>,
    caller_token: Option<&str>,
    target: &str,
    (agent, freshness): (Option<&'static str>, Freshness),
    tried: &mut Vec<EndpointTag>,
) -> Result<Response<ResponseBody>, (Refusal, Option<SendError>)> {
    let stage = |code| Refusal::new(code, Stage::Facts);
    let request = Request::get(target).body(outbound::empty());
    let mut request = request.map_err(|e| (stage(Code::Internal).because(e.to_string()), None))?;
    if let Some(credential) = cluster.lookup_authorization(caller_token, SystemTime::now()) {
        request.headers_mut().insert(header::AUTHORIZATION, credential);
    }
    if let Some(agent) = agent {
        request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static(agent));
    }
    let connect_timeout = cluster.settings.timeouts.connect;
    let options = SendOptions { connect_timeout, header_timeout: LOOK_UP_TIMEOUT, freshness };
    let picked = cluster.pick(Want::Except(tried)).or_else(|_| cluster.pick(Want::Any));
    let picked = picked.map_err(|no| (stage(Code::NoEndpoint).because(no.to_string()), None))?;
    tried.push(picked.endpoint().tag);
    gateway.client.send(&picked.endpoint().origin, request, &options).await.map_err(|e| {
        if e.retry() == Retry::Always && !e.is_stale() {
            picked.report(Outcome::ConnectFailed);
        }
        (stage(Code::UpstreamUnreachable).because(format!("look-up of `{target}`: {e}")), Some(e))
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
