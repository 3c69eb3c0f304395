//! Owns the one HTTP/1.1 client: names, connections, their reuse, deadlines, and requests to other servers.
//! Does not choose servers (`cluster`), does not retry, follow redirects or decompress; spawns nothing.
//! Invariant: dropping a send or a response body closes its connection at once, so that the peer sees it.

mod bell;
mod body;
mod channel;
mod connect;
mod error;
mod fetch;
mod origin;
mod resolve;
#[cfg(test)]
mod tests;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use foldhash::HashMap;
use http::{Request, Response, StatusCode, Uri, header};
use http_body::Body as _;
use hyper::body::Incoming;
use parking_lot::RwLock;
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

pub use body::{RequestBody, ResponseBody, empty, full};
pub use error::{BodyError, Retry, SendError, Sent, Unsent};
pub use fetch::{FetchError, FetchOptions, Fetched};
pub use origin::{BadOrigin, Origin};
pub use resolve::{BadServerName, ResolveError, Resolver, ServerName};

use body::Counted;
use channel::{Channel, Lane, Rejected};
use connect::Connector;

/// Most origins whose idle connections are kept.
const LANES_MAX: usize = 1024;
/// Request bodies beyond this size move the header deadline while they are being sent.
const SHORT_BODY_BYTES: u64 = 64 * 1024;

/// How the client connects and what it keeps.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Deadline for name resolution, TCP and TLS together, where a call names none.
    pub connect_timeout: Duration,
    /// How long an unused connection is kept. uvicorn closes its side after 5.0 s.
    pub idle_timeout: Duration,
    /// Most unused connections that are kept per origin.
    pub idle_max_per_origin: usize,
    /// Root certificates that are trusted beside the machine's own.
    pub extra_roots: Vec<CertificateDer<'static>>,
}

/// Whether a request may take a connection that was used before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Yes, if one is idle.
    Pooled,
    /// No: a request that must not be sent twice must not meet a peer that is just closing.
    Fresh,
}

/// Deadlines of one send.
#[derive(Debug, Clone, Copy)]
pub struct SendOptions {
    /// For a new connection.
    pub connect_timeout: Duration,
    /// From the last byte of the request to the response head.
    pub header_timeout: Duration,
    /// Whether an idle connection will do.
    pub freshness: Freshness,
}

/// The HTTP client. Clones share connections.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    settings: Settings,
    connector: Connector,
    lanes: RwLock<HashMap<Origin, Arc<Lane>>>,
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(4),
            idle_max_per_origin: 64,
            extra_roots: Vec::new(),
        }
    }
}

// === impl SendOptions ===

impl Default for SendOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            header_timeout: Duration::from_secs(120),
            freshness: Freshness::Pooled,
        }
    }
}

// === impl Client ===

impl Client {
    /// Makes a client without connections.
    pub fn new(settings: Settings) -> Self {
        let connector = Connector::new(settings.extra_roots.clone());
        Self(Arc::new(Inner { settings, connector, lanes: RwLock::default() }))
    }

    /// Sends a request and waits for the response head; the body streams afterwards.
    ///
    /// The request names a path; `Host` is added when absent. The response may come before the request body
    /// has been sent: reading the response body goes on sending it.
    ///
    /// # Errors
    /// [`SendError`]; [`SendError::retry`] says what may be tried again.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection; the peer may have acted on the request.
    pub async fn send(
        &self,
        origin: &Origin,
        request: Request<RequestBody>,
        options: &SendOptions,
    ) -> Result<Response<ResponseBody>, SendError> {
        self.send_or_return(origin, request, options).await.map_err(|unsent| unsent.error)
    }

    /// As [`Client::send`], and gives the request back when nothing of it was consumed.
    ///
    /// # Errors
    /// [`Unsent`] with the error and perhaps the request.
    pub async fn send_or_return(
        &self,
        origin: &Origin,
        mut request: Request<RequestBody>,
        options: &SendOptions,
    ) -> Result<Response<ResponseBody>, Unsent> {
        let lane = self.lane(origin);
        prepare(&lane, &mut request);
        let (mut request, taken) = count_long_body(request);
        loop {
            let mut asked_at = Instant::now();
            let channel = match self.channel(origin, &lane, options, asked_at).await {
                Ok(channel) => channel,
                Err(error) => return Err(Unsent { error, request: Some(Box::new(request)) }),
            };
            let reused = channel.reused;
            if !reused {
                asked_at = Instant::now();
            }
            match exchange(channel, request, taken.as_deref(), (asked_at, options.header_timeout), &lane).await {
                Ok(response) => return check(response).map_err(Unsent::consumed),
                Err(Stopped::HeaderTimeout) => {
                    return Err(Unsent::consumed(SendError::HeaderTimeout(options.header_timeout)));
                }
                Err(Stopped::Rejected(mut rejected)) => match rejected.take_message() {
                    // An idle connection died before it took the request. Each round uses one up, so this ends.
                    Some(untouched) if reused => request = untouched,
                    untouched => return Err(unsent(*rejected, untouched, reused)),
                },
            }
        }
    }

    /// Closes connections that were unused too long. The pool does so itself where there is traffic.
    pub fn prune(&self) {
        let lanes: Vec<_> = self.0.lanes.read().values().cloned().collect();
        let now = Instant::now();
        lanes.iter().for_each(|lane| lane.prune(now));
    }

    /// How many unused connections are open to the origin.
    pub fn idle_connections(&self, origin: &Origin) -> usize {
        self.0.lanes.read().get(origin).map_or(0, |lane| lane.len())
    }

    async fn channel(
        &self,
        origin: &Origin,
        lane: &Lane,
        options: &SendOptions,
        now: Instant,
    ) -> Result<Box<Channel>, SendError> {
        if options.freshness == Freshness::Pooled
            && let Some(channel) = lane.take(now)
        {
            return Ok(channel);
        }
        let limit = options.connect_timeout;
        let failed = |source: io::Error| {
            let origin = origin.to_string();
            match source.kind() {
                io::ErrorKind::TimedOut => SendError::ConnectTimeout { origin, after: limit },
                _ => SendError::Connect { origin, source },
            }
        };
        // Boxed: most exchanges find a connection, and each would carry the state of making one.
        let stream = Box::pin(self.0.connector.connect(origin, limit)).await.map_err(failed)?;
        Channel::handshake(stream).await.map(Box::new).map_err(|cause| failed(io::Error::other(cause)))
    }

    fn lane(&self, origin: &Origin) -> Arc<Lane> {
        if let Some(lane) = self.0.lanes.read().get(origin) {
            return Arc::clone(lane);
        }
        let Settings { idle_max_per_origin, idle_timeout, .. } = self.0.settings;
        let lane = Arc::new(Lane::new(origin.host_header(), idle_max_per_origin, idle_timeout));
        let mut lanes = self.0.lanes.write();
        if lanes.len() >= LANES_MAX {
            lanes.retain(|_, lane| lane.len() > 0);
        }
        if lanes.len() >= LANES_MAX {
            // The connection then closes with the last owner of its lane.
            return lane;
        }
        Arc::clone(lanes.entry(origin.clone()).or_insert(lane))
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

// === impl Unsent ===

impl Unsent {
    fn consumed(error: SendError) -> Self {
        Self { error, request: None }
    }
}

/// Why an exchange ended without a response.
enum Stopped {
    HeaderTimeout,
    Rejected(Box<Rejected>),
}

/// Makes the target origin-form and names the host (RFC 9112 §3.2.1, RFC 9110 §7.2).
fn prepare(lane: &Lane, request: &mut Request<RequestBody>) {
    if request.uri().authority().is_some() {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    }
    if !request.headers().contains_key(header::HOST)
        && let Some(host) = &lane.host
    {
        request.headers_mut().insert(header::HOST, host.clone());
    }
}

/// Drives the connection until the response head is there; `taken` counts what it takes of a long request body.
async fn exchange(
    mut channel: Box<Channel>,
    request: Request<RequestBody>,
    taken: Option<&AtomicU64>,
    (asked_at, header_timeout): (Instant, Duration),
    lane: &Arc<Lane>,
) -> Result<Response<ResponseBody>, Stopped> {
    let mut seen = 0;
    let mut answer = pin!(channel.begin(request));
    channel.expect_until(asked_at + header_timeout);
    let answered = poll_fn(|cx| {
        channel.drive(cx);
        // Only the drive makes it ready.
        if let Poll::Ready(answered) = answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Poll::Ready(answered.map_err(|rejected| Stopped::Rejected(Box::new(rejected))));
        }
        while channel.is_overdue(cx) {
            let now = taken.map_or(0, |taken| taken.load(Ordering::Relaxed));
            if now == seen {
                return Poll::Ready(Err(Stopped::HeaderTimeout));
            }
            // The body moved since the timer was set: the peer is being fed, not silent.
            seen = now;
            channel.expect_until(Instant::now() + header_timeout);
        }
        Poll::Pending
    });
    let (parts, incoming): (_, Incoming) = answered.await?.into_parts();
    // uvicorn closes after a 500 without saying so: such a connection is not used again.
    let lane = (parts.status != StatusCode::INTERNAL_SERVER_ERROR).then(|| Arc::clone(lane));
    let mut made = Some((incoming, channel, lane));
    let body = poll_fn(|cx| match made.take() {
        Some((incoming, channel, lane)) => Poll::Ready(ResponseBody::new(incoming, channel, lane, cx)),
        None => Poll::Pending,
    });
    Ok(Response::from_parts(parts, body.await))
}

fn count_long_body(request: Request<RequestBody>) -> (Request<RequestBody>, Option<Arc<AtomicU64>>) {
    if request.body().size_hint().upper().is_some_and(|bytes| bytes <= SHORT_BODY_BYTES) {
        return (request, None);
    }
    let (parts, body) = request.into_parts();
    let (body, taken) = Counted::wrap(body);
    (Request::from_parts(parts, body), Some(taken))
}

/// Refuses what this client never asked for.
fn check(response: Response<ResponseBody>) -> Result<Response<ResponseBody>, SendError> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(SendError::InvalidResponse("101 to a request without upgrade".into()));
    }
    Ok(response)
}

fn unsent(rejected: Rejected, untouched: Option<Request<RequestBody>>, reused: bool) -> Unsent {
    let sent = if untouched.is_some() { Sent::Nothing } else { Sent::Maybe };
    Unsent { error: SendError::of_hyper(rejected.into_error(), sent, reused), request: untouched.map(Box::new) }
}
