//! Owns cancels: where they go, and that a run was seen to stop before the caller is told so.
//! Does not decide who may cancel (`facts`, `policy`).
//! Invariants: AgentOS answers 200 to every cancel, so 200 is passed on only for a run that was seen to end; a cancel
//! that cannot be confirmed in time is 202 `cancel_unconfirmed`; where nobody knows the holder, a bounded number of
//! replicas is told.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};

use super::admit::Admitted;
use super::call::{Answer, AnswerBody};
use super::forward;
use super::ground::Holder;
use super::live::Known;
use super::path::Gateway;
use super::refusal::{Code, Refusal, Stage};
use super::send;
use crate::agentos::{OnRun, Operation, RunStatus, rows};
use crate::cluster::{Cluster, EndpointTag, Picked, UpstreamUser, Use, Want};
use crate::outbound::{self, Freshness, SendOptions};

/// How long a cancel may take to show.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);
/// Wait before the stored run is looked at; it doubles.
const LOOK_FIRST: Duration = Duration::from_millis(150);
/// Most replicas that are told of a cancel whose holder nobody knows.
const FAN_OUT_MAX: usize = 16;
/// Longest wait for one of them.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// Longest answer to a cancel.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// A run that can be cancelled without a caller: by whoever watched it.
pub(super) struct Order {
    cluster: Arc<Cluster>,
    target: String,
    tag: EndpointTag,
    user: UpstreamUser,
    row: Option<&'static Operation>,
    caller_token: Option<String>,
}

// === impl Order ===

impl Order {
    /// The cancel of the run that a call started.
    pub(super) fn of(admitted: &Admitted, run: &str) -> Option<Self> {
        let (kind, component) = admitted.matched.component()?;
        Some(Self {
            cluster: Arc::clone(&admitted.cluster),
            target: rows::cancel(kind, component, run),
            tag: admitted.picked.endpoint().tag,
            user: admitted.user.clone(),
            row: admitted.snapshot.catalog.on_run(kind, OnRun::Cancel),
            caller_token: admitted.caller_token.clone(),
        })
    }

    /// Sends it; what cannot be sent is not: the run then ends by itself.
    pub(super) async fn send(self, gateway: Arc<Gateway>) {
        let Ok(picked) = self.cluster.pick_for(Want::Tag(self.tag), Use::Other) else { return };
        let Ok(mut request) = Request::post(&self.target).body(outbound::empty()) else { return };
        let credential = self.row.and_then(|row| {
            self.cluster.authorization(&self.user, row, self.caller_token.as_deref(), SystemTime::now())
        });
        if let Some(credential) = credential {
            request.headers_mut().insert(header::AUTHORIZATION, credential);
        }
        let options = options(&self.cluster);
        let _ = gateway.client.send(&picked.endpoint().origin, request, &options).await;
    }
}

fn options(cluster: &Cluster) -> SendOptions {
    SendOptions {
        connect_timeout: cluster.settings.timeouts.connect,
        header_timeout: TOLD_WITHIN,
        freshness: Freshness::Fresh,
    }
}

/// Confirms a cancel that AgentOS has accepted.
///
/// # Errors
/// `cancel_unconfirmed` when the run was not seen to end in time.
///
/// # Cancel safety
/// Safe: AgentOS has the cancel.
pub(super) async fn confirmed(gateway: &Gateway, admitted: &Admitted, answer: Answer) -> Result<Answer, Refusal> {
    if !answer.status.is_success() {
        return Ok(answer);
    }
    let Some(run) = admitted.matched.params.get("run_id") else { return Ok(answer) };
    match tokio::time::timeout(CONFIRM_WITHIN, ends(gateway, admitted, run)).await {
        Ok(()) => Ok(answer),
        Err(_) => {
            let why = format!("the run was not seen to end within {}s", CONFIRM_WITHIN.as_secs());
            Err(Refusal::new(Code::CancelUnconfirmed, Stage::Forward).because(why))
        }
    }
}

/// Waits until the run is seen to end: by whoever follows it here, or in the database.
async fn ends(gateway: &Gateway, admitted: &Admitted, run: &str) {
    let cluster = &admitted.cluster.settings.name;
    let mut pause = LOOK_FIRST;
    loop {
        match gateway.runs.live.known(cluster, run) {
            Known::Ended => return,
            Known::GoesOn(mut followed) => {
                tokio::select! {
                    _ = followed.changed() => {}
                    () = tokio::time::sleep(pause) => {}
                }
                if matches!(gateway.runs.live.known(cluster, run), Known::Ended) {
                    return;
                }
            }
            Known::Nothing => tokio::time::sleep(pause).await,
        }
        pause *= 2;
        if has_ended(gateway, admitted, run).await {
            return;
        }
    }
}

/// Says whether the stored run has ended. A look-up that fails says nothing.
async fn has_ended(gateway: &Gateway, admitted: &Admitted, run: &str) -> bool {
    let (Some((kind, component)), Some(session)) = (admitted.matched.component(), &admitted.session) else {
        return false;
    };
    let path = rows::run(kind, component, run, session);
    let found = forward::look_up(gateway, &admitted.cluster, admitted.caller_token.as_deref(), &path).await;
    found.is_ok_and(|row| row.as_ref().and_then(RunStatus::of).is_some_and(RunStatus::is_idle))
}

/// Says whether a cancel must go to every replica: nobody knows which one holds the run.
pub(super) fn goes_to_all(admitted: &Admitted) -> bool {
    admitted.operation().does(OnRun::Cancel) && admitted.hold.holder == Holder::Unknown
}

/// Tells every replica that can be reached; answers with what one of them said.
///
/// # Errors
/// When none of them took it.
pub(super) async fn tell_all(gateway: &Gateway, admitted: &Admitted) -> Result<Answer, Refusal> {
    let endpoints = admitted.cluster.endpoints();
    let told = endpoints.iter().filter(|endpoint| endpoint.answers()).take(FAN_OUT_MAX).map(async |endpoint| {
        let picked = admitted.cluster.pick_for(Want::Tag(endpoint.tag), Use::Other).ok()?;
        tokio::time::timeout(TOLD_WITHIN, tell(gateway, admitted, &picked)).await.ok()?
    });
    let answers: Vec<(StatusCode, bytes::Bytes)> = join_all(told).await.into_iter().flatten().collect();
    let taken = answers.iter().position(|(status, _)| status.is_success()).unwrap_or(0);
    let Some((status, body)) = answers.into_iter().nth(taken) else {
        return Err(Refusal::new(Code::UpstreamUnreachable, Stage::Forward).because("no replica took the cancel"));
    };
    let mut headers: HeaderMap = admitted.answer_headers.clone();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(Answer { status, headers, body: AnswerBody::full(body), refused: None })
}

async fn tell(gateway: &Gateway, admitted: &Admitted, picked: &Picked) -> Option<(StatusCode, bytes::Bytes)> {
    let request = send::request(admitted, None, &Arc::default()).ok()?;
    let options = options(&admitted.cluster);
    let response = gateway.client.send(&picked.endpoint().origin, request, &options).await.ok()?;
    let status = response.status();
    let body = forward::collect(response.into_body(), ANSWER_BYTES_MAX).await.ok()?;
    Some((status, body))
}
