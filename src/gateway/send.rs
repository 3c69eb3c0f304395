//! Owns the way upstream: the request is built, sent, and sent again where that is safe.
//! Does not read replies (`forward`).
//! Invariants: upstream sees the path that was authorized, our own credential, and allow-listed headers only; what
//! AgentOS may have acted on is sent again for idempotent rows alone; retries stay within the cluster's budget.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;

use super::admit::{Acting, Admitted, is_idempotent};
use super::body::Payload;
use super::cancel::Order;
use super::exchange::Exchange;
use super::form::{Form, FormStream, Outgoing};
use super::path::Gateway;
use super::refusal::{Code, Refusal, Stage};
use super::runs;
use crate::agentos::{Affinity, Cost, Query};
use crate::cluster::{Cluster, EndpointTag, Outcome, Picked, Want};
use crate::outbound::{self, BodyError, Freshness, RequestBody, ResponseBody, Retry, SendError, SendOptions};

/// Request headers of the caller that AgentOS may see. Identity never travels in headers.
const PASSED_UP: [HeaderName; 4] = [
    header::ACCEPT,
    header::ACCEPT_LANGUAGE,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];
/// Sends the call, again on another endpoint where that is safe.
///
/// # Errors
/// What became of the last attempt.
///
/// # Cancel safety
/// Dropping the future closes the upstream connection; AgentOS may have acted on the call.
pub(super) async fn send(
    gateway: &Arc<Gateway>,
    admitted: &mut Admitted,
    exchange: &mut Exchange,
) -> Result<Response<ResponseBody>, Refusal> {
    let mut payload = std::mem::replace(&mut admitted.payload, Payload::None);
    let mut tried = Vec::new();
    admitted.cluster.asked();
    loop {
        exchange.event.attempts += 1;
        exchange.event.endpoint = Some(Arc::clone(&admitted.picked.endpoint().address));
        let (spare, outgoing) = outgoing(payload);
        let failed_form = Arc::new(parking_lot::Mutex::new(None));
        let request = request(admitted, outgoing, &failed_form)?;
        let options = options(admitted, exchange.event.attempts);
        admitted.sending();
        let error = match gateway.client.send_or_return(&admitted.picked.endpoint().origin, request, &options).await {
            Ok(response) => {
                admitted.picked.report(outcome(response.status()));
                return Ok(response);
            }
            Err(unsent) => unsent.error,
        };
        tried.push(admitted.picked.endpoint().tag);
        if let Some(refusal) = failed_form.lock().take() {
            return Err(refusal);
        }
        blame(gateway, admitted, &error);
        let mut picked = next(admitted, &tried, &error, exchange.event.attempts);
        // An old connection that had died says nothing about the endpoint: no need to go easy on it.
        if picked.is_some() && !error.is_stale() {
            let retries = &admitted.cluster.settings.retries;
            tokio::time::sleep(retries.wait_before(exchange.event.attempts + 1)).await;
        }
        // A run does not move whose caller went away meanwhile, and whose cancel is sent.
        if admitted.order.as_ref().is_some_and(|order| order.lock().is_none()) {
            picked = None;
        }
        match (spare, picked) {
            (Some(spare), Some(picked)) => {
                admitted.picked = picked;
                payload = spare;
                retag(gateway, admitted, &mut payload, exchange);
            }
            (_, _) => {
                // AgentOS heard nothing of the run: it costs nothing.
                if let Some(lease) = admitted.lease.as_mut().filter(|_| error.retry() == Retry::Always) {
                    lease.waive();
                }
                if matches!(error, SendError::HeaderTimeout(_)) {
                    runs::abandon(gateway, admitted);
                }
                return Err(failed(admitted, exchange.event.attempts, &error));
            }
        }
    }
}

/// What an answer says about the endpoint. AgentOS itself never answers so: these come from a proxy before it that
/// could not reach it.
fn outcome(status: StatusCode) -> Outcome {
    match status {
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => Outcome::Broke,
        _ => Outcome::Answered,
    }
}

/// Notes a failed attempt: at the endpoint, unless only an old connection had died, and for a continuation that AgentOS
/// has not seen.
fn blame(gateway: &Gateway, admitted: &mut Admitted, error: &SendError) {
    let endpoint = admitted.picked.endpoint();
    gateway.telemetry.upstream_error(&admitted.cluster.settings.name, &endpoint.address, error.kind());
    let unseen = error.retry() == Retry::Always;
    // How long a run that is not streamed takes is up to its caller, who could have endpoints ejected for all by it.
    let slow = matches!(error, SendError::HeaderTimeout(_)) && admitted.operation().cost == Cost::Model;
    if !error.is_stale() && !slow {
        admitted.picked.report(if unseen { Outcome::ConnectFailed } else { Outcome::Broke });
    }
    if unseen && let Some(continuing) = &mut admitted.continuing {
        continuing.unsent();
    }
}

/// Where a failed call may be tried again: another endpoint, or the same one when only its old connection was dead.
fn next(admitted: &Admitted, tried: &[EndpointTag], error: &SendError, attempts: u32) -> Option<Picked> {
    let again = match error.retry() {
        Retry::Always => true,
        Retry::Idempotent => is_idempotent(admitted.operation()),
        Retry::Never => false,
    };
    if !again || !is_granted(&admitted.cluster, error, attempts) {
        return None;
    }
    let (cluster, what) = (&admitted.cluster, admitted.uses());
    // Only the replica that holds a run knows it: another one would answer 200 and do nothing.
    if !admitted.operation().affinity.follows_run() {
        let want = match admitted.follows_session() {
            Some(session) => Want::SessionExcept(session, tried),
            None => Want::Except(tried),
        };
        if let Ok(picked) = cluster.pick_for(want, what) {
            return Some(picked);
        }
    }
    error.is_stale().then(|| cluster.pick_for(Want::Tag(admitted.picked.endpoint().tag), what).ok()).flatten()
}

/// Says whether there may be one more attempt, by their number and by the cluster's budget.
pub(super) fn is_granted(cluster: &Cluster, error: &SendError, attempts: u32) -> bool {
    // A connection that idled too long burdens nobody; the second attempt takes no such connection, so this ends.
    error.is_stale() || (attempts < cluster.settings.retries.attempts && cluster.may_retry())
}

/// A run that moves to another endpoint needs an id that names it.
fn retag(gateway: &Gateway, admitted: &mut Admitted, payload: &mut Payload, exchange: &mut Exchange) {
    if admitted.operation().affinity != Affinity::StartsRun {
        return;
    }
    if let Payload::Form(form) = payload {
        let id = admitted.cluster.mint_run_id(&admitted.user, admitted.picked.endpoint());
        form.set("run_id", &id.to_string());
        admitted.hold.going = Some(gateway.runs.live.begin(admitted.cluster.name(), &id.to_string()));
        admitted.run_id = Some(id);
        if let Some(order) = &admitted.order {
            *order.lock() = Order::of(admitted, &id.to_string());
        }
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

/// Why a form that streamed broke off.
pub(super) type FailedForm = Arc<parking_lot::Mutex<Option<Refusal>>>;

/// Builds the request of a call.
///
/// # Errors
/// `internal` for what cannot be a request.
pub(super) fn request(
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

/// The request target of a path and its query.
pub(super) fn target(path: &str, query: &Query) -> String {
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
