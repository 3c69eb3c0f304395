//! Owns the operators' listener: metrics, liveness, readiness, reloads, quotas.
//! Does not bind or accept (`server`) and serves nothing to callers of AgentOS.
//! Invariants: with a token set, nothing but liveness and readiness is told without it; a name that a stranger's DNS
//! could point here is refused as `Host`; no connection outlives its deadline.

pub mod settings;

mod guard;
mod reply;
mod steering;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::gateway::request_id;
use crate::secret::Secret;
use crate::telemetry::{METRICS_CONTENT_TYPE, Telemetry};

pub use settings::Settings;
pub use steering::Steering;
use steering::Wish;

/// How long a connection may take.
const TIMEOUTS: Timeouts = Timeouts { head: Duration::from_secs(5), connection: Duration::from_secs(30) };
/// Most bytes of a request head.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most fields of a request head.
const HEAD_FIELDS_MAX: usize = 64;

/// Says whether this instance should be sent requests.
pub trait Readiness: Send + Sync {
    /// `Err` holds the reason for the operator: draining, no endpoint, keys missing.
    fn ready(&self) -> Result<(), String>;
}

/// Reads the configuration again.
pub trait Reloading: Send + Sync {
    /// `Err` says, for the operator, why nothing changed.
    fn reload(&self) -> BoxFuture<'_, Result<(), String>>;
}

/// What the admin listener serves from.
pub struct AdminState {
    /// Bearer token; `None` only on a loopback address. A reload may replace it.
    pub token: Arc<ArcSwapOption<Secret>>,
    /// The metrics.
    pub telemetry: Arc<Telemetry>,
    /// Asked by `/readyz`.
    pub readiness: Arc<dyn Readiness>,
    /// Asked by `/quota` and `/usage`.
    pub steering: Arc<dyn Steering>,
    /// Asked by `/reload`.
    pub reloading: Arc<dyn Reloading>,
}

/// Serves one accepted connection until it closes, errs, or meets its deadline.
///
/// # Cancel safety
/// Dropping the future closes the connection.
pub async fn serve_connection<S>(stream: S, state: Arc<AdminState>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    serve_within(stream, state, TIMEOUTS).await;
}

struct Timeouts {
    /// Longest wait for a request head, also on an idle connection.
    head: Duration,
    /// Longest life of a connection.
    connection: Duration,
}

async fn serve_within<S>(stream: S, state: Arc<AdminState>, timeouts: Timeouts)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(move |request: Request<Incoming>| {
        // The body is never read: hyper drains a short one and closes after a long one.
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(state.answer(&request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(timeouts.head)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEAD_FIELDS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    // How an admin connection ends is nobody's concern: late, broken or closed are all just over.
    let _ = tokio::time::timeout(timeouts.connection, connection).await;
}

// === impl AdminState ===

impl AdminState {
    /// Answers one request by its head.
    ///
    /// # Cancel safety
    /// A correction that was begun may have happened.
    async fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let id = request_id(request.headers());
        let problem = |p: reply::Problem| reply::problem(&p, &id);
        if let Err(refused) = guard::check_host(request) {
            return problem(refused);
        }
        let trusted = guard::has_token(request.headers(), self.token.load().as_deref());
        if let Some(wish) = Wish::of(request.uri().path()) {
            return self.steer(&wish, request, trusted).await.unwrap_or_else(problem);
        }
        if request.uri().path() == "/reload" {
            return self.reload(request, trusted).await.unwrap_or_else(problem);
        }
        let Some(route) = Route::of(request.uri().path()) else {
            return problem(reply::Problem::NOT_FOUND);
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return problem(reply::Problem::method_not_allowed("GET, HEAD"));
        }
        match route {
            Route::Live => reply::text(StatusCode::OK, "alive\n"),
            Route::Ready => self.ready(trusted),
            Route::Metrics if trusted => reply::document(METRICS_CONTENT_TYPE, self.telemetry.render()),
            Route::Metrics => problem(reply::Problem::UNAUTHENTICATED),
        }
    }

    async fn steer<B>(
        &self,
        wish: &Wish,
        request: &Request<B>,
        trusted: bool,
    ) -> Result<Response<Full<Bytes>>, reply::Problem> {
        if !trusted {
            return Err(reply::Problem::UNAUTHENTICATED);
        }
        if request.method().as_str() != wish.method() {
            return Err(reply::Problem::method_not_allowed(wish.method()));
        }
        if *request.method() == Method::POST {
            guard::check_no_browser(request.headers())?;
        }
        wish.fulfil(&*self.steering, request).await
    }

    async fn reload<B>(&self, request: &Request<B>, trusted: bool) -> Result<Response<Full<Bytes>>, reply::Problem> {
        if !trusted {
            return Err(reply::Problem::UNAUTHENTICATED);
        }
        if *request.method() != Method::POST {
            return Err(reply::Problem::method_not_allowed("POST"));
        }
        guard::check_no_browser(request.headers())?;
        self.reloading.reload().await.map_err(|why| reply::Problem::NOT_RELOADED.saying(why))?;
        Ok(reply::document("application/json", "{\"result\":\"reloaded\"}".to_owned()))
    }

    /// Probes carry no token; they learn the verdict, not the reason.
    fn ready(&self, trusted: bool) -> Response<Full<Bytes>> {
        match self.readiness.ready() {
            Ok(()) => reply::text(StatusCode::OK, "ready\n"),
            Err(reason) if trusted => reply::text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
            Err(_) => reply::text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        }
    }
}

#[derive(Clone, Copy)]
enum Route {
    Metrics,
    Live,
    Ready,
}

impl Route {
    fn of(path: &str) -> Option<Self> {
        match path {
            "/metrics" => Some(Self::Metrics),
            "/healthz" => Some(Self::Live),
            "/readyz" => Some(Self::Ready),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
