//! Owns an answer that streams: bytes pass as they come, are metered by reference, and settle when they end.
//! Does not buffer: what upstream sent is what is passed on, at once.
//! Invariant: a run's stream never ends cleanly before the run's own end; a break is an explicit error event.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use tokio::time::{Instant, Sleep};

use super::admit::Admitted;
use super::call::{AnswerBody, BodyBroken};
use super::exchange::Exchange;
use super::forward;
use super::path::Gateway;
use super::refusal::{Code, Refusal, Stage};
use super::runs;
use super::strip::UserStripper;
use crate::agentos::Cost;
use crate::outbound::{BodyError, ResponseBody};
use crate::quota::Growth;
use crate::usage::{Meter, RunSeen};

/// Silence after which a comment tells proxies and clients that the stream lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const KEEP_ALIVE_COMMENT: &[u8] = b": keep-alive\n\n";

/// Everything that an exchange still owes when its answer streams. Dropping it settles.
pub(super) struct Settlement {
    gateway: Arc<Gateway>,
    admitted: Admitted,
    exchange: Exchange,
    meter: Meter,
    /// Tokens that the lease was told of.
    charged: u64,
    /// A budget is used up, and the plan says to cut.
    overdrawn: bool,
    learned: bool,
    settled: bool,
    ended: bool,
}

/// Starts an event stream.
pub(super) fn events(upstream: ResponseBody, settlement: Settlement) -> AnswerBody {
    let timeouts = &settlement.admitted.cluster.settings.timeouts;
    let now = Instant::now();
    let longest = now + timeouts.stream_max;
    let (deadline, expires) = match settlement.authority_ends(now) {
        Some(ends) if ends < longest => (ends, true),
        Some(_) | None => (longest, false),
    };
    let stream = Events {
        upstream: Some(upstream.with_idle_timeout(timeouts.stream_idle)),
        stripper: settlement.stripper(),
        keep_alive: Box::pin(tokio::time::sleep(KEEP_ALIVE)),
        deadline: Box::pin(tokio::time::sleep_until(deadline)),
        revoked: settlement.revoked(),
        expires,
        line_open: false,
        tail: Bytes::new(),
        kept: None,
        settlement,
    };
    AnswerBody::stream(stream.boxed_unsync())
}

/// Starts a stream of anything else.
pub(super) fn opaque(upstream: ResponseBody, settlement: Settlement) -> AnswerBody {
    let idle = settlement.admitted.cluster.settings.timeouts.stream_idle;
    let (stripper, revoked) = (settlement.stripper(), settlement.revoked());
    AnswerBody::stream(
        Opaque { upstream: Some(upstream.with_idle_timeout(idle)), stripper, revoked, settlement }.boxed_unsync(),
    )
}

/// How a stream ends whose caller may not see more of it.
fn revoked() -> Refusal {
    Refusal::new(Code::Unauthenticated, Stage::Identity).because("the credential was revoked")
}

struct Events {
    upstream: Option<ResponseBody>,
    stripper: UserStripper,
    keep_alive: Pin<Box<Sleep>>,
    deadline: Pin<Box<Sleep>>,
    /// Ready once the caller's credential is revoked.
    revoked: BoxFuture<'static, ()>,
    /// The deadline is the end of the caller's authority, not of AgentOS's time.
    expires: bool,
    /// The last byte passed on was not the end of an event.
    line_open: bool,
    /// What is still to be passed on once upstream has ended.
    tail: Bytes,
    /// Ready once the store has what the run used.
    kept: Option<BoxFuture<'static, ()>>,
    settlement: Settlement,
}

struct Opaque {
    upstream: Option<ResponseBody>,
    stripper: UserStripper,
    revoked: BoxFuture<'static, ()>,
    settlement: Settlement,
}

// === impl Settlement ===

impl Settlement {
    pub(super) fn new(gateway: Arc<Gateway>, admitted: Admitted, exchange: Exchange) -> Self {
        Self {
            meter: admitted.meter(),
            gateway,
            admitted,
            exchange,
            charged: 0,
            overdrawn: false,
            learned: false,
            settled: false,
            ended: false,
        }
    }

    fn stripper(&self) -> UserStripper {
        UserStripper::new(&self.admitted.cluster, &self.admitted.principal.tenant)
    }

    /// When the caller's credential, and the grace after it, have run out.
    fn authority_ends(&self, now: Instant) -> Option<Instant> {
        let expires = UNIX_EPOCH + Duration::from_secs(self.admitted.principal.expires_at?);
        let left = expires.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
        now.checked_add(left + self.admitted.snapshot.identity.stream_grace())
    }

    /// Waits until the caller's credential is revoked.
    fn revoked(&self) -> BoxFuture<'static, ()> {
        let revocations = Arc::clone(self.admitted.snapshot.identity.revocations());
        Box::pin(revocations.ended(Arc::clone(&self.admitted.principal)))
    }

    /// Reads along: who runs, what was used.
    fn see(&mut self, chunk: &[u8]) {
        self.meter.sse(chunk);
        if !self.learned
            && let Some(run) = self.meter.run()
        {
            self.learned = true;
            let minted = self.admitted.run_id.map(|id| id.to_string());
            if minted.as_deref() != Some(&run.run_id) && self.admitted.operation().cost == Cost::Model {
                let cluster = &self.admitted.cluster.settings.name;
                self.gateway.runs.learn(cluster, &run.run_id, &self.admitted.user, self.admitted.picked.endpoint().tag);
            }
            self.exchange.event.run_id = Some(run.run_id.clone());
        }
        let seen = self.meter.tokens_so_far();
        if seen > self.charged
            && let Some(lease) = &mut self.admitted.lease
        {
            self.charged = seen;
            self.overdrawn |= lease.grow(self.meter.models_so_far()) == Growth::Cut;
        }
    }

    /// The stream came to its own end.
    fn complete(&mut self) {
        self.ended = true;
        forward::purge(&self.gateway, &self.admitted);
    }

    /// Charges the run, or hands its lease to whoever watches it. Only the first settlement counts.
    fn settle(&mut self) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        let terminal = self.meter.terminal().is_some();
        if let Some(session) = self.admitted.new_session.as_mut().filter(|_| terminal) {
            session.ended();
        }
        let minted = || self.admitted.run_id.map(|id| RunSeen { run_id: id.to_string(), session_id: None });
        let run = self.meter.run().cloned().or_else(minted);
        let usage = std::mem::take(&mut self.meter).finish();
        self.exchange.event.tokens = usage.models.iter().map(forward::tokens).collect();
        match (self.admitted.lease.take(), run) {
            (Some(mut lease), _) if terminal => {
                lease.commit(&usage);
            }
            // AgentOS 3 streams background runs too, and goes on when nobody listens.
            (Some(lease), Some(run)) if self.admitted.background => {
                runs::hand_over(&self.gateway, &mut self.admitted, run, lease);
            }
            // A lease that is dropped pays what was seen or reserved.
            (_, _) => {}
        }
    }

    /// The stream was cut; what the log says, and the event that the caller gets.
    fn cut(&mut self, refusal: &Refusal, line_open: bool) -> Bytes {
        self.ended = true;
        self.exchange.refused(refusal);
        let body = serde_json::json!({
            "event": "error",
            "code": refusal.code.row().code,
            "run_id": self.exchange.event.run_id,
            "retry": !matches!(refusal.code, Code::TokenExpired | Code::Unauthenticated | Code::BudgetExhausted) && self.admitted.operation().cost == Cost::Light,
        });
        let mut event = BytesMut::new();
        if line_open {
            event.put_slice(b"\n\n");
        }
        event.put_slice(format!("event: error\ndata: {body}\n\n").as_bytes());
        event.freeze()
    }
}

impl Drop for Settlement {
    fn drop(&mut self) {
        self.settle();
        if !self.ended {
            self.exchange.abandoned();
        }
    }
}

// === impl Events ===

impl Events {
    fn pass(&mut self, data: Bytes, cx: &mut Context<'_>) -> Option<Bytes> {
        self.settlement.see(&data);
        let data = self.stripper.push(data);
        if data.is_empty() {
            return None;
        }
        self.line_open = !data.ends_with(b"\n\n");
        self.settlement.exchange.sent(data.len());
        self.rest(cx);
        Some(data)
    }

    /// Starts the silence anew.
    fn rest(&mut self, cx: &mut Context<'_>) {
        self.keep_alive.as_mut().reset(Instant::now() + KEEP_ALIVE);
        let _ = self.keep_alive.as_mut().poll(cx);
    }

    fn cut(&mut self, refusal: &Refusal) -> Poll<Option<Result<Frame<Bytes>, BodyBroken>>> {
        self.upstream = None;
        let event = self.settlement.cut(refusal, self.line_open);
        self.settlement.exchange.sent(event.len());
        Poll::Ready(Some(Ok(Frame::data(event))))
    }

    /// Upstream has closed: a run must have ended before. The answer ends once the store has what it used.
    fn finish(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyBroken>>> {
        let is_run = self.settlement.admitted.operation().cost == Cost::Model;
        if is_run && self.settlement.meter.terminal().is_none() {
            let refusal = Refusal::new(Code::UpstreamReset, Stage::Forward).because("the stream ended before its run");
            return self.cut(&refusal);
        }
        self.upstream = None;
        self.settlement.complete();
        self.tail = self.stripper.finish();
        if is_run {
            self.settlement.settle();
            self.kept = Some(Box::pin(self.settlement.admitted.snapshot.quota.kept()));
        }
        self.last(cx)
    }

    fn last(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyBroken>>> {
        if let Some(kept) = &mut self.kept {
            std::task::ready!(kept.as_mut().poll(cx));
            self.kept = None;
        }
        let tail = std::mem::take(&mut self.tail);
        Poll::Ready((!tail.is_empty()).then(|| Ok(Frame::data(tail))))
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = BodyBroken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyBroken>>> {
        let this = &mut *self;
        // The ends of authority come first: a stream that never pauses must not outrun them.
        if this.upstream.is_some() && this.revoked.as_mut().poll(cx).is_ready() {
            return this.cut(&revoked());
        }
        if this.upstream.is_some() && this.deadline.as_mut().poll(cx).is_ready() {
            let code = if this.expires { Code::TokenExpired } else { Code::UpstreamTimeout };
            return this.cut(&Refusal::new(code, Stage::Forward).because("the stream reached its deadline"));
        }
        // Not at the run's own end: what it used is used.
        if this.upstream.is_some() && this.settlement.overdrawn && this.settlement.meter.terminal().is_none() {
            let refusal = Refusal::new(Code::BudgetExhausted, Stage::Quota);
            return this.cut(&refusal.because("the budget ran out during the run"));
        }
        loop {
            let Some(upstream) = &mut this.upstream else { return this.last(cx) };
            match Pin::new(upstream).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    if let Some(data) = this.pass(data, cx) {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    let code = if matches!(error, BodyError::IdleTimeout(_)) {
                        Code::UpstreamTimeout
                    } else {
                        Code::UpstreamReset
                    };
                    return this.cut(&Refusal::new(code, Stage::Forward).because(error.to_string()));
                }
                Poll::Ready(None) => return this.finish(cx),
                Poll::Pending => break,
            }
        }
        if this.keep_alive.as_mut().poll(cx).is_ready() {
            this.rest(cx);
            if !this.line_open {
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(KEEP_ALIVE_COMMENT)))));
            }
        }
        Poll::Pending
    }
}

// === impl Opaque ===

impl Body for Opaque {
    type Data = Bytes;
    type Error = BodyBroken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyBroken>>> {
        let this = &mut *self;
        if this.upstream.is_some() && this.revoked.as_mut().poll(cx).is_ready() {
            this.upstream = None;
            this.settlement.ended = true;
            this.settlement.exchange.refused(&revoked());
            return Poll::Ready(Some(Err(BodyBroken("the credential was revoked".to_owned()))));
        }
        loop {
            let Some(upstream) = &mut this.upstream else { return Poll::Ready(None) };
            match std::task::ready!(Pin::new(upstream).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    let data = this.stripper.push(data);
                    if !data.is_empty() {
                        this.settlement.exchange.sent(data.len());
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Some(Err(error)) => {
                    this.upstream = None;
                    let refusal = Refusal::new(Code::UpstreamReset, Stage::Forward).because(error.to_string());
                    this.settlement.ended = true;
                    this.settlement.exchange.refused(&refusal);
                    return Poll::Ready(Some(Err(BodyBroken(error.to_string()))));
                }
                None => {
                    this.upstream = None;
                    this.settlement.complete();
                    let rest = this.stripper.finish();
                    return if rest.is_empty() { Poll::Ready(None) } else { Poll::Ready(Some(Ok(Frame::data(rest)))) };
                }
            }
        }
    }
}
