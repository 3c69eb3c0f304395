//! Owns one HTTP/1.1 connection and the idle ones of an origin.
//! Spawns nothing: whoever uses a connection polls it, so dropping the user closes the socket at once.
//! Invariant: a connection in a `Lane` has no exchange in flight and no byte unread.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderValue;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Sleep};

use super::RequestBody;
use super::bell::{Bell, muted};
use super::connect::Stream;

/// Largest response head, and the most that is read at once. A buffer grows to it while a peer sends faster than its caller
/// reads, and a second one holds what waits: both stay as long as that caller is slow.
const BUFFER_BYTES_MAX: usize = 16 * 1024;
/// Most header fields of a response.
const HEADERS_MAX: usize = 64;

/// What hyper says when it cannot send: the error and, when untouched, the request.
pub(super) type Rejected = TrySendError<http::Request<RequestBody>>;

/// A connection: the handle that sends and the state machine that moves bytes.
pub(super) struct Channel {
    sender: SendRequest<RequestBody>,
    /// `None` once it has ended.
    connection: Option<Connection<TokioIo<Stream>, RequestBody>>,
    /// Why it ended, when nobody else was told.
    failure: Option<hyper::Error>,
    bell: Bell,
    /// Whether it has carried an exchange before.
    pub(super) reused: bool,
    /// The timer of its exchanges, one after the other: moving a timer costs less than making one.
    timer: Pin<Box<Sleep>>,
}

/// The idle connections of one origin, youngest last.
pub(super) struct Lane {
    /// The value of `Host` for the origin.
    pub(super) host: Option<HeaderValue>,
    idle: Mutex<VecDeque<Idle>>,
    idle_max: usize,
    idle_timeout: Duration,
}

struct Idle {
    channel: Box<Channel>,
    since: Instant,
}

// === impl Channel ===

impl Channel {
    pub(super) async fn handshake(stream: Stream) -> Result<Self, hyper::Error> {
        let (sender, connection) = Builder::new()
            .max_buf_size(BUFFER_BYTES_MAX)
            .max_header_size(BUFFER_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .handshake(TokioIo::new(stream))
            .await?;
        let timer = Box::pin(tokio::time::sleep(Duration::ZERO));
        Ok(Self { sender, connection: Some(connection), failure: None, bell: Bell::new(), reused: false, timer })
    }

    /// Hands the request to the connection. Only driving the channel makes the future ready, so it need not wake anybody;
    /// a spent budget of the task must not hide that it is ready (`tokio::task::coop`).
    pub(super) fn begin(
        &mut self,
        request: http::Request<RequestBody>,
    ) -> impl Future<Output = Result<http::Response<Incoming>, Rejected>> + use<> {
        unconstrained(muted(|| self.sender.try_send_request(request)))
    }

    /// Moves bytes in both directions as far as they go now.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        let Some(connection) = &mut self.connection else { return };
        if let Poll::Ready(end) = Pin::new(connection).poll(&mut self.bell.listen(cx)) {
            self.failure = end.err();
            self.connection = None;
        }
    }

    /// Starts the wait for an answer anew.
    pub(super) fn expect_until(&mut self, deadline: Instant) {
        self.timer.as_mut().reset(deadline);
    }

    /// Says whether the wait is over; else the task is woken when it is.
    pub(super) fn is_overdue(&mut self, cx: &mut Context<'_>) -> bool {
        self.timer.as_mut().poll(cx).is_ready()
    }

    /// Says whether the connection lives and could take a request now.
    pub(super) fn is_free(&self) -> bool {
        self.connection.is_some() && self.sender.is_ready()
    }

    /// Takes the error that ended the connection, if there was one that no response or body carries.
    pub(super) fn take_failure(&mut self) -> Option<hyper::Error> {
        self.failure.take()
    }
}

// === impl Lane ===

impl Lane {
    pub(super) fn new(host: Option<HeaderValue>, idle_max: usize, idle_timeout: Duration) -> Self {
        Self { host, idle: Mutex::new(VecDeque::new()), idle_max, idle_timeout }
    }

    /// Takes the youngest idle connection. Its peer may have closed it meanwhile, or said what nobody asked for: whoever
    /// drives it finds out before a byte of a request is sent, as far as the runtime has heard of it. Sockets are closed
    /// outside the lock.
    pub(super) fn take(&self, now: Instant) -> Option<Box<Channel>> {
        let Idle { mut channel, since } = self.idle.lock().pop_back()?;
        if now.saturating_duration_since(since) >= self.idle_timeout {
            self.prune(now);
            return None;
        }
        channel.reused = true;
        Some(channel)
    }

    /// Keeps a free connection for later, or closes it when the lane is full.
    pub(super) fn put(&self, channel: Box<Channel>) {
        let now = Instant::now();
        self.prune(now);
        let mut idle = self.idle.lock();
        if idle.len() < self.idle_max {
            idle.push_back(Idle { channel, since: now });
        }
    }

    /// Closes connections that were idle too long.
    pub(super) fn prune(&self, now: Instant) {
        let mut idle = self.idle.lock();
        let is_old = |entry: &&Idle| now.saturating_duration_since(entry.since) >= self.idle_timeout;
        let expired = idle.iter().take_while(is_old).count();
        if expired == 0 {
            return;
        }
        let closing: Vec<Idle> = idle.drain(..expired).collect();
        drop(idle);
        drop(closing);
    }

    pub(super) fn len(&self) -> usize {
        self.idle.lock().len()
    }
}
