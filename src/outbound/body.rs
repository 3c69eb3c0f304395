//! Owns the bodies of an exchange: what is sent, and the response body that carries its own connection.
//! Does not buffer: at most one chunk waits in a response body.
//! Invariant: the connection returns to its lane only after a clean end; every other way out closes it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::bell::muted;
use super::channel::{Channel, Lane};
use super::error::BodyError;

/// A request body; it streams.
pub type RequestBody = UnsyncBoxBody<Bytes, BodyError>;

/// A request body without bytes.
pub fn empty() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A request body of known bytes.
pub fn full(bytes: impl Into<Bytes>) -> RequestBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A response body. Reading it moves the connection's bytes, also those of a request body still being sent.
///
/// # Cancel safety
/// Dropping it before its end closes the connection at once.
pub struct ResponseBody {
    incoming: Incoming,
    channel: Option<Box<Channel>>,
    /// Where the connection goes after a clean end; `None` retires it.
    lane: Option<Arc<Lane>>,
    idle: Option<IdleTimer>,
    ended: bool,
}

struct IdleTimer {
    limit: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

type Polled = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

// === impl ResponseBody ===

impl ResponseBody {
    pub(super) fn new(
        incoming: Incoming,
        channel: Box<Channel>,
        lane: Option<Arc<Lane>>,
        cx: &mut Context<'_>,
    ) -> Self {
        let mut body = Self { incoming, channel: Some(channel), lane, idle: None, ended: false };
        if body.incoming.is_end_stream() {
            body.release(cx);
        }
        body
    }

    /// Ends the body with [`BodyError::IdleTimeout`] when the peer is silent for `limit` while somebody waits.
    #[must_use]
    pub fn with_idle_timeout(mut self, limit: Duration) -> Self {
        self.idle = Some(IdleTimer { limit, sleep: None, armed: false });
        self
    }

    /// Asks for bytes, moves the connection once, asks again: taking the bytes that wait makes room for more. Only the
    /// drive brings any, so neither asking nor what comes has to wake anybody.
    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Polled {
        let mut ask = || muted(|| Pin::new(&mut self.incoming).poll_frame(&mut Context::from_waker(Waker::noop())));
        let mut polled = ask();
        if polled.is_pending()
            && let Some(channel) = &mut self.channel
        {
            channel.drive(cx);
            polled = ask();
        }
        polled.map(|frame| frame.map(|result| result.map_err(|error| self.explain(error))))
    }

    /// The connection's own failure, when it has one, says more than the body's.
    fn explain(&mut self, error: hyper::Error) -> BodyError {
        BodyError::of_hyper(self.channel.as_mut().and_then(|c| c.take_failure()).unwrap_or(error))
    }

    /// Gives the connection back after a clean end, if it can be used again.
    fn release(&mut self, cx: &mut Context<'_>) {
        self.ended = true;
        let (Some(mut channel), Some(lane)) = (self.channel.take(), self.lane.take()) else { return };
        if !channel.is_free() {
            channel.drive(cx);
        }
        if channel.is_free() {
            lane.put(channel);
        }
    }

    fn close(&mut self) {
        self.ended = true;
        self.channel = None;
        self.lane = None;
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let polled = this.poll_incoming(cx);
        match &polled {
            Poll::Pending => {
                let Some(limit) = this.idle.as_mut().and_then(|idle| idle.poll_expired(cx)) else {
                    return Poll::Pending;
                };
                this.close();
                return Poll::Ready(Some(Err(BodyError::IdleTimeout(limit))));
            }
            Poll::Ready(Some(Ok(_))) => {
                this.idle.iter_mut().for_each(IdleTimer::disarm);
                // Callers may stop at the declared length, without asking for the end.
                if this.incoming.is_end_stream() {
                    this.release(cx);
                }
            }
            Poll::Ready(Some(Err(_))) => this.close(),
            Poll::Ready(None) => this.release(cx),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl std::fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseBody").field("ended", &self.ended).finish_non_exhaustive()
    }
}

// === impl IdleTimer ===

impl IdleTimer {
    /// Starts counting at the first wait after a byte, so that a slow reader is no silent peer.
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Option<Duration> {
        let until = Instant::now() + self.limit;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if !self.armed {
            sleep.as_mut().reset(until);
            self.armed = true;
        }
        sleep.as_mut().poll(cx).is_ready().then_some(self.limit)
    }

    fn disarm(&mut self) {
        self.armed = false;
    }
}

/// Counts what the connection takes of a request body, so that a slow upload is no silent peer.
pub(super) struct Counted {
    body: RequestBody,
    taken: Arc<AtomicU64>,
}

impl Counted {
    pub(super) fn wrap(body: RequestBody) -> (RequestBody, Arc<AtomicU64>) {
        let taken = Arc::new(AtomicU64::new(0));
        (Self { body, taken: Arc::clone(&taken) }.boxed_unsync(), taken)
    }
}

impl Body for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_ready() {
            self.taken.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
