//! Owns how an exchange with another server fails, and what may be tried again.
//! Does not retry (callers do: they know whether an operation is idempotent).

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use http::Request;

use super::RequestBody;

/// Why a body broke off.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BodyError {
    /// The peer kept silent longer than the body's idle timeout.
    #[error("no byte came for {}ms", .0.as_millis())]
    IdleTimeout(Duration),
    /// The connection ended, or broke HTTP, before the body's end.
    #[error("the connection broke off before the end of the body")]
    Broken(#[source] Arc<dyn Error + Send + Sync>),
    /// The producer of a request body gave up.
    #[error("the producer of the body gave up: {0}")]
    Producer(String),
}

/// What of a request had left when its connection died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// No byte.
    Nothing,
    /// Some or all bytes: the peer may have acted on them.
    Maybe,
}

/// Which requests may be sent again after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Every request: nothing of it was sent.
    Always,
    /// Idempotent ones: the peer may have seen it, but has not answered.
    Idempotent,
    /// None.
    Never,
}

/// Why no response came.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No connection could be made.
    #[error("connect to `{origin}` failed")]
    Connect {
        /// The origin.
        origin: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The peer did not accept a connection in time.
    #[error("connect to `{origin}` timed out after {}ms", after.as_millis())]
    ConnectTimeout {
        /// The origin.
        origin: String,
        /// The limit.
        after: Duration,
    },
    /// The connection ended before a response.
    #[error("the connection ended before a response (sent: {request_sent:?}, reused: {reused})")]
    Reset {
        /// What had left.
        request_sent: Sent,
        /// Whether an older, idle connection had been used: the usual victim of a peer's idle timeout.
        reused: bool,
        /// The cause.
        source: hyper::Error,
    },
    /// No response head came in time; counted from the last byte of the request body.
    #[error("no response head came within {}ms", .0.as_millis())]
    HeaderTimeout(Duration),
    /// The peer's answer is no HTTP/1.1, or its head is too large.
    #[error("the response is invalid: {0}")]
    InvalidResponse(String),
    /// The request body failed on our side.
    #[error("the request body failed")]
    BodyFailed(#[source] BodyError),
}

/// A failed send, with the request when nothing of it was consumed.
#[derive(Debug)]
pub struct Unsent {
    /// Why it failed.
    pub error: SendError,
    /// The request as it was, for another endpoint; `None` once its body was touched.
    pub request: Option<Box<Request<RequestBody>>>,
}

// === impl SendError ===

impl SendError {
    /// Which requests may be sent again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Connect { .. } | Self::ConnectTimeout { .. } => Retry::Always,
            Self::Reset { request_sent: Sent::Nothing, .. } => Retry::Always,
            Self::Reset { request_sent: Sent::Maybe, .. } => Retry::Idempotent,
            Self::HeaderTimeout(_) | Self::InvalidResponse(_) | Self::BodyFailed(_) => Retry::Never,
        }
    }

    /// Says whether an idle connection had died: nothing is known against the peer, a new connection may do.
    pub fn is_stale(&self) -> bool {
        matches!(self, Self::Reset { reused: true, .. })
    }

    /// The word used in the `kind` label of metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::ConnectTimeout { .. } => "connect_timeout",
            Self::Reset { .. } => "reset",
            Self::HeaderTimeout(_) => "header_timeout",
            Self::InvalidResponse(_) => "invalid",
            Self::BodyFailed(_) => "request_body",
        }
    }

    pub(super) fn of_hyper(source: hyper::Error, request_sent: Sent, reused: bool) -> Self {
        if source.is_user() {
            return Self::BodyFailed(producer_error(&source));
        }
        if source.is_parse() {
            return Self::InvalidResponse(source.to_string());
        }
        Self::Reset { request_sent, reused, source }
    }
}

// === impl BodyError ===

impl BodyError {
    pub(super) fn of_hyper(error: hyper::Error) -> Self {
        if error.is_user() { producer_error(&error) } else { Self::Broken(Arc::new(error)) }
    }
}

/// The producer's own error out of hyper's wrapping.
fn producer_error(error: &hyper::Error) -> BodyError {
    let own = error.source().and_then(|cause| cause.downcast_ref::<BodyError>());
    own.cloned().unwrap_or_else(|| BodyError::Producer(error.to_string()))
}
