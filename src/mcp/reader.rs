//! Owns the watch on one response: how many messages the client has taken, and whether it is still there.
//! Does not send anything.
//! Invariant: a client that does not read gets no progress, so no channel of its session ever fills up. (A full
//! channel would hold up every other request of that session.)

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use tokio_util::sync::CancellationToken;

use super::notices::Listening;
use super::sessions::InUse;
use crate::gateway::BodyBroken;

/// Progress messages that may wait for the client, well under the capacity of a session's channel.
pub(super) const UNREAD_MAX: u64 = 8;

/// What is known about the reader of one response.
#[derive(Debug, Default)]
pub(super) struct Reader {
    sent: AtomicU64,
    taken: AtomicU64,
    gone: AtomicBool,
}

/// A response body that tells its [`Reader`] what was taken.
pub(super) struct Watched {
    inner: BoxBody<Bytes, Infallible>,
    reader: Arc<Reader>,
    _session: Option<InUse>,
    _listening: Option<Listening>,
    /// The drain, for a body that has no end of its own.
    drained: Option<BoxFuture<'static, ()>>,
    /// What goes on as long as the client reads; its end is the end of the body.
    work: Option<BoxFuture<'static, ()>>,
    over: bool,
}

// === impl Reader ===

impl Reader {
    /// Counts one message to be sent, unless the client is gone or has not taken the earlier ones.
    pub(super) fn reserve(&self) -> bool {
        let unread = self.sent.load(Ordering::Relaxed).saturating_sub(self.taken.load(Ordering::Relaxed));
        if unread >= UNREAD_MAX || self.gone.load(Ordering::Relaxed) {
            return false;
        }
        self.sent.fetch_add(1, Ordering::Relaxed);
        true
    }
}

// === impl Watched ===

impl Watched {
    pub(super) fn new(inner: BoxBody<Bytes, Infallible>, reader: Arc<Reader>, session: Option<InUse>) -> Self {
        Self { inner, reader, _session: session, _listening: None, drained: None, work: None, over: false }
    }

    /// A body that holds a place among the listeners, until the drain.
    pub(super) fn listening(mut self, place: Option<Listening>, stop: &CancellationToken) -> Self {
        self.drained = place.is_some().then(|| Box::pin(stop.clone().cancelled_owned()) as _);
        self._listening = place;
        self
    }

    /// A body beside which work goes on, driven by the client's reading; the body ends with it.
    pub(super) fn beside(mut self, work: BoxFuture<'static, ()>) -> Self {
        self.work = Some(work);
        self
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.reader.gone.store(true, Ordering::Relaxed);
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = BodyBroken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyBroken>>> {
        if let Some(work) = &mut self.work
            && work.as_mut().poll(cx).is_ready()
        {
            self.work = None;
            self.over = true;
        }
        if self.drained.as_mut().is_some_and(|drained| drained.as_mut().poll(cx).is_ready()) {
            self.drained = None;
            self.over = true;
        }
        if self.over {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        // Comment lines are keep-alives of the transport, not messages.
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && frame.data_ref().is_some_and(|data| !data.starts_with(b":"))
        {
            self.reader.taken.fetch_add(1, Ordering::Relaxed);
        }
        polled.map(|frame| frame.map(|frame| frame.map_err(|never| match never {})))
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
