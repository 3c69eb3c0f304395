//! Owns an answer that streams: bytes pass as they come, are metered by reference, and settle when they end.
//! Does not buffer: what upstream sent is what is passed on, at once.
//! Invariants: a run's stream never ends cleanly before the run's own end; a break is an explicit error event; a lease
//! is not given back while the run may go on.

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
use super::cancel::Order;
use super::exchange::Exchange;
use super::forward;
use super::path::Gateway;
use super::refusal::{Code, Refusal, Stage};
use super::runs::{self, Fate, Left};
use super::strip::UserStripper;
use crate::agentos::Cost;
use crate::cluster::OnDisconnect;
use crate::outbound::ResponseBody;
use crate::quota::Growth;
use crate::usage::{Meter, RunSeen};

const KEEP_ALIVE_COMMENT: &[u8] = b": keep-alive\n\n";

/// Everything that an exchange still owes when its answer streams. Dropping it settles.
pub(super) struct Settlement {
    gateway: Arc<Gateway>,
    admitted: Box<Admitted>,
    exchange: Box<Exchange>,
    meter: Meter,
    /// When upstream had answered.
    since: Instant,
    /// Tokens that the lease was told of.
    charged: u64,
    /// A budget is used up, and the plan says to cut.
    overdrawn: bool,
    learned: bool,
    settled: bool,
    ended: bool,
    /// The caller has gone, and the run goes on to its end.
    detached: bool,
}

/// Starts an event stream.
pub(super) fn events(upstream: ResponseBody, settlement: Settlement) -> AnswerBody {
    let silence = settlement.admitted.cluster.settings.streams.keep_alive;
    let passing = Passing {
        upstream: Some(upstream.with_idle_timeout(settlement.admitted.cluster.settings.timeouts.stream_idle)),
        stripper: settlement.stripper(),
        silence,
        keep_alive: Box::pin(tokio::time::sleep(silence)),
        bounds: settlement.bounds(),
        line_open: false,
        tail: Bytes::new(),
        kept: None,
        settlement,
    };
    AnswerBody::stream(Events(Some(Box::new(passing))).boxed_unsync())
}

/// Starts a stream of anything else.
pub(super) fn opaque(upstream: ResponseBody, settlement: Settlement) -> AnswerBody {
    let idle = settlement.admitted.cluster.settings.timeouts.stream_idle;
    let (stripper, bounds) = (settlement.stripper(), settlement.bounds());
    AnswerBody::stream(
        Opaque { upstream: Some(upstream.with_idle_timeout(idle)), stripper, bounds, settlement }.boxed_unsync(),
    )
}

/// What ends a stream although upstream would go on.
struct Bounds {
    deadline: Pin<Box<Sleep>>,
    /// The deadline is the end of the caller's authority, not of AgentOS's time.
    expires: bool,
    stopped: BoxFuture<'static, Stopped>,
}

/// Why a stream ends that might go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// The caller may not see more of it.
    Revoked,
    /// The process is about to end.
    Draining,
}

impl Stopped {
    fn refusal(self) -> Refusal {
        match self {
            Self::Revoked => Refusal::new(Code::Unauthenticated, Stage::Identity).because("the credential was revoked"),
            Self::Draining => Refusal::new(Code::Draining, Stage::Forward).because("the process is about to end"),
        }
    }
}

/// The stream as the caller reads it; empty once it has ended.
struct Events(Option<Box<Passing>>);

/// A stream that passes on what upstream sends.
struct Passing {
    upstream: Option<ResponseBody>,
    stripper: UserStripper,
    silence: Duration,
    keep_alive: Pin<Box<Sleep>>,
    bounds: Bounds,
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
    bounds: Bounds,
    settlement: Settlement,
}

// === impl Settlement ===

impl Settlement {
    pub(super) fn new(gateway: Arc<Gateway>, admitted: Box<Admitted>, exchange: Box<Exchange>) -> Self {
        Self {
            meter: admitted.meter(),
            gateway,
            admitted,
            exchange,
            since: Instant::now(),
            charged: 0,
            overdrawn: false,
            learned: false,
            settled: false,
            ended: false,
            detached: false,
        }
    }

    fn stripper(&self) -> UserStripper {
        UserStripper::new(&self.admitted.cluster, &self.admitted.principal.tenant)
    }

    /// No stream lives longer than the cluster says, nor than the caller may see it.
    fn bounds(&self) -> Bounds {
        let now = Instant::now();
        let longest = now + self.admitted.cluster.settings.timeouts.stream_max;
        let (deadline, expires) = match self.authority_ends(now) {
            Some(ends) if ends < longest => (ends, true),
            Some(_) | None => (longest, false),
        };
        Bounds { deadline: Box::pin(tokio::time::sleep_until(deadline)), expires, stopped: self.stopped() }
    }

    /// When the caller's credential, and the grace after it, have run out.
    fn authority_ends(&self, now: Instant) -> Option<Instant> {
        let expires = UNIX_EPOCH + Duration::from_secs(self.admitted.principal.expires_at?);
        let left = expires.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
        now.checked_add(left + self.admitted.snapshot.identity.stream_grace())
    }

    /// Waits until the caller's credential is revoked, or the process is about to end.
    fn stopped(&self) -> BoxFuture<'static, Stopped> {
        let revocations = Arc::clone(self.admitted.snapshot.identity.revocations());
        let (principal, mut ending) = (Arc::clone(&self.admitted.principal), self.gateway.ending.subscribe());
        Box::pin(async move {
            tokio::select! {
                () = revocations.ended(principal) => Stopped::Revoked,
                Ok(_) = ending.wait_for(|ending| *ending) => Stopped::Draining,
            }
        })
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
                let tag = self.admitted.picked.endpoint().tag;
                // A stream does not wait until the others know.
                drop(self.gateway.runs.learn(cluster, &run.run_id, &self.admitted.user, tag));
                self.admitted.hold.going = Some(self.gateway.runs.live.begin(cluster, &run.run_id));
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

    /// The run that it tells of, as far as is known.
    fn run_id(&self) -> Option<String> {
        let seen = self.meter.run().map(|run| run.run_id.clone());
        seen.or_else(|| self.admitted.run_id.map(|id| id.to_string()))
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
        if let Some(going) = self.admitted.hold.going.as_mut().filter(|_| terminal) {
            going.ended();
        }
        match (self.admitted.lease.take(), run) {
            (Some(mut lease), _) if terminal => {
                lease.commit(&usage);
            }
            // AgentOS 3 streams background runs too, and goes on when nobody listens; any other run ends when AgentOS
            // notices that nobody does.
            (Some(lease), Some(run)) => {
                let fate = if self.admitted.background { Fate::GoesOn } else { Fate::GivenUp };
                let left = Left { seen: run, fate, told: usage, since: self.since };
                runs::hand_over(&self.gateway, &mut self.admitted, lease, left);
            }
            // A lease that is dropped pays what was seen or reserved.
            (_, _) => {}
        }
    }

    /// Says whether the caller may send the call again: not what a model may have acted on already, unless it was told
    /// that another instance takes it, and AgentOS does not go on with it.
    fn may_retry(&self, code: Code) -> bool {
        match code {
            Code::Draining => !self.admitted.background,
            Code::TokenExpired | Code::Unauthenticated | Code::BudgetExhausted => false,
            _ => self.admitted.operation().cost == Cost::Light,
        }
    }

    /// Tells AgentOS to stop the run; nobody waits for it.
    fn cancel(&self) {
        if let Some(order) = self.run_id().and_then(|run| Order::of(&self.admitted, &run)) {
            (self.gateway.spawn)("cancel", Box::pin(order.send(Arc::clone(&self.gateway))));
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
            "retry": self.may_retry(refusal.code),
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
        if !self.ended || self.detached {
            self.exchange.abandoned();
        }
    }
}

// === impl Events ===

type Polled = Poll<Option<Result<Frame<Bytes>, BodyBroken>>>;

impl Body for Events {
    type Data = Bytes;
    type Error = BodyBroken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let Some(passing) = &mut self.0 else { return Poll::Ready(None) };
        let polled = passing.poll(cx);
        if matches!(polled, Poll::Ready(None)) {
            self.0 = None;
        }
        polled
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(passing) = self.0.take().filter(|passing| passing.upstream.is_some()) {
            passing.deserted();
        }
    }
}

// === impl Passing ===

impl Passing {
    /// The caller went away before the end: the run goes on, or is told to stop.
    fn deserted(mut self: Box<Self>) {
        let Settlement { admitted, gateway, .. } = &self.settlement;
        let gateway = Arc::clone(gateway);
        let is_run = admitted.operation().cost == Cost::Model;
        match admitted.on_disconnect() {
            // One that runs in the background goes on by itself.
            OnDisconnect::Detach if is_run && !admitted.background => {
                self.settlement.detached = true;
                let work = async move { while let Some(Ok(_)) = std::future::poll_fn(|cx| self.poll(cx)).await {} };
                // Where no more work is taken it ends as without the rule.
                (gateway.spawn)("detached run", Box::pin(work));
            }
            OnDisconnect::Cancel if is_run => self.settlement.cancel(),
            // AgentOS notices that the connection has closed.
            OnDisconnect::AsAgentOs | OnDisconnect::Cancel | OnDisconnect::Detach => {}
        }
    }

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
        self.keep_alive.as_mut().reset(Instant::now() + self.silence);
        let _ = self.keep_alive.as_mut().poll(cx);
    }

    fn cut(&mut self, refusal: &Refusal) -> Polled {
        self.upstream = None;
        let admitted = &self.settlement.admitted;
        // Whose right to the run has ended, not only to the stream: in the background AgentOS would go on with it.
        let forfeits = matches!(refusal.code, Code::BudgetExhausted | Code::Unauthenticated);
        if forfeits && admitted.background && admitted.operation().cost == Cost::Model {
            self.settlement.cancel();
        }
        let event = self.settlement.cut(refusal, self.line_open);
        self.settlement.exchange.sent(event.len());
        Poll::Ready(Some(Ok(Frame::data(event))))
    }

    /// Upstream has closed: a run must have ended before. The answer ends once the store has what it used.
    fn finish(&mut self, cx: &mut Context<'_>) -> Polled {
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

    fn last(&mut self, cx: &mut Context<'_>) -> Polled {
        if let Some(kept) = &mut self.kept {
            std::task::ready!(kept.as_mut().poll(cx));
            self.kept = None;
        }
        let tail = std::mem::take(&mut self.tail);
        Poll::Ready((!tail.is_empty()).then(|| Ok(Frame::data(tail))))
    }

    /// What ends the stream although upstream would go on.
    fn overruled(&mut self, cx: &mut Context<'_>) -> Option<Refusal> {
        self.upstream.as_ref()?;
        if let Some(refusal) = self.bounds.poll(cx) {
            return Some(refusal);
        }
        // Not at the run's own end: what it used is used.
        if self.settlement.overdrawn && self.settlement.meter.terminal().is_none() {
            let refusal = Refusal::new(Code::BudgetExhausted, Stage::Quota);
            return Some(refusal.because("the budget ran out during the run"));
        }
        None
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Polled {
        // The ends of authority come first: a stream that never pauses must not outrun them.
        if let Some(refusal) = self.overruled(cx) {
            return self.cut(&refusal);
        }
        loop {
            let Some(upstream) = &mut self.upstream else { return self.last(cx) };
            match Pin::new(upstream).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    if let Some(data) = self.pass(data, cx) {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Poll::Ready(Some(Err(error))) => return self.cut(&forward::broken(&error)),
                Poll::Ready(None) => return self.finish(cx),
                Poll::Pending => break,
            }
        }
        if self.keep_alive.as_mut().poll(cx).is_ready() {
            self.rest(cx);
            if !self.line_open {
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(KEEP_ALIVE_COMMENT)))));
            }
        }
        Poll::Pending
    }
}

// === impl Bounds ===

impl Bounds {
    fn poll(&mut self, cx: &mut Context<'_>) -> Option<Refusal> {
        if let Poll::Ready(stopped) = self.stopped.as_mut().poll(cx) {
            return Some(stopped.refusal());
        }
        if self.deadline.as_mut().poll(cx).is_ready() {
            let code = if self.expires { Code::TokenExpired } else { Code::UpstreamTimeout };
            return Some(Refusal::new(code, Stage::Forward).because("the stream reached its deadline"));
        }
        None
    }
}

// === impl Opaque ===

impl Opaque {
    /// Ends without a clean end, by which the caller can tell that something is missing.
    fn cut(&mut self, refusal: Refusal) -> Polled {
        self.upstream = None;
        self.settlement.ended = true;
        self.settlement.exchange.refused(&refusal);
        Poll::Ready(Some(Err(BodyBroken::BrokeOff(refusal.reason.unwrap_or_default()))))
    }
}

impl Body for Opaque {
    type Data = Bytes;
    type Error = BodyBroken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = &mut *self;
        if this.upstream.is_some()
            && let Some(refusal) = this.bounds.poll(cx)
        {
            return this.cut(refusal);
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
                Some(Err(error)) => return this.cut(forward::broken(&error)),
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
