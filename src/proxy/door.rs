//! Owns the HTTP door: connections become sessions, sessions become `Call`s, answers go back.
//! Does not accept sockets (`server`) and does not decide (`gateway`).
//! Invariant: every request that a session yields is answered, or its connection is closed.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use http::{HeaderMap, HeaderName, StatusCode, header};
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp as _};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::connection::{Connection, Transport};
use super::head::{self, BadHead, Head, HeadLimits, Silence};
use super::pump::{self, Gone, Upload};
use super::sockets::Sockets;
use super::tls::TlsAcceptor;
use super::websocket;
use crate::gateway::{Answer, Call, Caller, Carrier, Code, Gateway, Inbound, LocalService, Refusal, Stage, request_id};
use crate::telemetry::{Door, Telemetry};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Silence on a kept-alive connection before it is closed.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// How long a slow reader may block one write.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the rest of a refused body is read before the connection is closed instead.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
/// Largest body of a refused request that is read to its end so that the connection can be used again.
const DRAIN_BYTES_MAX: u64 = 64 << 10;

/// The HTTP door. Shared by all connections.
pub struct HttpDoor {
    gateway: Arc<Gateway>,
    telemetry: Arc<Telemetry>,
    services: Vec<Arc<dyn LocalService>>,
    sockets: Sockets,
    h2c: bool,
}

/// One HTTP/2 connection's view of the door: pingora hands it sessions without the peer's address.
struct Streams {
    door: Arc<HttpDoor>,
    peer: IpAddr,
    options: HttpServerOptions,
}

// === impl HttpDoor ===

impl HttpDoor {
    /// A door to the gateway; `services` answer their paths in this process. `h2c` accepts HTTP/2 without TLS.
    pub fn new(
        gateway: Arc<Gateway>,
        telemetry: Arc<Telemetry>,
        services: Vec<Arc<dyn LocalService>>,
        h2c: bool,
    ) -> Arc<Self> {
        Arc::new(Self { gateway, telemetry, services, sockets: Sockets::default(), h2c })
    }

    /// Serves one connection until it ends. `shutdown` turning true lets the exchange in flight finish.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection and ends its exchanges.
    pub async fn serve(
        self: &Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        tls: Option<TlsAcceptor>,
        shutdown: &watch::Receiver<bool>,
    ) {
        // Small answers must not wait for the peer's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        let transport = match tls {
            None => Transport::Plain(stream),
            Some(acceptor) => {
                let limit = self.gateway.limits().header_timeout;
                match tokio::time::timeout(limit, acceptor.0.accept(stream)).await {
                    Ok(Ok(stream)) => Transport::Tls(Box::new(stream)),
                    Ok(Err(_)) => return self.telemetry.head_refused("tls_handshake"),
                    Err(_) => return self.telemetry.head_refused("tls_slow"),
                }
            }
        };
        let connection = Connection::new(transport, peer);
        if connection.is_http2() {
            let limit = self.gateway.limits().header_timeout;
            match tokio::time::timeout(limit, connection.with_preface()).await {
                Ok(Some(connection)) => Box::pin(self.serve_http2(connection, peer, shutdown)).await,
                Ok(None) => self.telemetry.head_refused("unparsable"),
                Err(_) => self.telemetry.head_refused("slow"),
            }
        } else {
            // One connection is large; its task should not be moved about.
            Box::pin(self.serve_http1(connection, peer, shutdown)).await;
        }
    }

    async fn serve_http2(self: &Arc<Self>, connection: Connection, peer: SocketAddr, shutdown: &watch::Receiver<bool>) {
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(KEEP_ALIVE);
        let streams = Arc::new(Streams { door: Arc::clone(self), peer: peer.ip(), options });
        streams.process_new(Box::new(connection), shutdown).await;
    }

    async fn serve_http1(self: &Arc<Self>, connection: Connection, peer: SocketAddr, shutdown: &watch::Receiver<bool>) {
        let mut stream: Stream = Box::new(connection);
        let mut ahead = BytesMut::new();
        let mut silence = Silence::new();
        // One wait for all heads: each would join and leave the list of those who wait.
        let mut stopping = shutdown.clone();
        let mut stopped = std::pin::pin!(stopping.wait_for(|stop| *stop));
        loop {
            let limits = self.head_limits();
            let read = tokio::select! {
                biased;
                read = head::read(stream.as_mut(), &mut ahead, limits, &mut silence) => read,
                // An idle connection has nothing to lose; one that has begun a head is answered first.
                _ = &mut stopped, if ahead.is_empty() => return,
            };
            match read {
                Ok(Head::Http1) => {}
                Ok(Head::Http2) if self.h2c => {
                    let connection = stream.into_any().downcast::<Connection>().ok();
                    if let Some(connection) = connection {
                        self.serve_http2(connection.into_http2(ahead), peer, shutdown).await;
                    }
                    return;
                }
                Ok(Head::Closed) => return,
                Ok(Head::Http2) => return self.refuse_head(&mut stream, BadHead::Malformed("http2_not_offered")).await,
                Err(bad) => return self.refuse_head(&mut stream, bad).await,
            }
            let mut session = ServerSession::new_http1(stream);
            session.set_pipelining_enabled(true);
            session.set_pipelined_prefix(std::mem::take(&mut ahead));
            if !matches!(session.read_request().await, Ok(true)) {
                return self.telemetry.head_refused("unparsable");
            }
            // Reading the head sets what the caller wants; a drain and the idle limit come on top of that.
            session.set_keepalive((!*shutdown.borrow()).then_some(KEEP_ALIVE.as_secs()));
            let Some(reused) = self.exchange(session, peer.ip()).await else { return };
            (stream, ahead) = reused;
        }
    }

    fn head_limits(&self) -> HeadLimits {
        let limits = self.gateway.limits();
        HeadLimits { bytes_max: limits.header_bytes, timeout: limits.header_timeout, idle: KEEP_ALIVE }
    }

    /// Answers a head that never became a request, and closes. Only a metric counts it: there is no exchange.
    async fn refuse_head(&self, stream: &mut Stream, bad: BadHead) {
        let (code, reason) = match bad {
            BadHead::Malformed(reason) => (Code::BadHead, reason),
            BadHead::TooLarge => (Code::HeadTooLarge, "too_large"),
            BadHead::Slow => (Code::RequestTimeout, "slow"),
        };
        self.telemetry.head_refused(reason);
        let id = request_id(&HeaderMap::new());
        let body = Refusal::new(code, Stage::Request).problem(&id);
        let status = StatusCode::from_u16(code.row().status).unwrap_or(StatusCode::BAD_REQUEST);
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\nX-Request-Id: {id}\r\nConnection: close\r\n\r\n",
            body.len(),
        );
        let answer = async {
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&body).await?;
            AsyncWriteExt::shutdown(stream).await
        };
        // Nobody is owed more than one attempt.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, answer).await;
    }

    /// Runs one exchange on a session whose head was read; returns the connection when it can serve another.
    async fn exchange(self: &Arc<Self>, mut session: ServerSession, peer: IpAddr) -> Option<(Stream, BytesMut)> {
        session.set_write_timeout(Some(WRITE_TIMEOUT));
        session.set_total_drain_timeout(Some(DRAIN_TIMEOUT));
        if let ServerSession::H1(session) = &mut session {
            // `reply` decides that: an interim answer and a small body left unread are no reason.
            session.set_close_on_response_before_downstream_finish(false);
        }
        match self.answer(&mut session, peer).await {
            Err(Gone) => None,
            Ok(Upgraded::Yes) => None,
            Ok(Upgraded::No) => {
                if matches!(session, ServerSession::H1(_)) {
                    // A close on unread bytes is a reset, which may overtake the answer.
                    session.finish_body().await.ok()?;
                    session.drain_request_body().await.ok()?;
                }
                let reusable = session.finish().await.ok()??;
                let (stream, ahead) = reusable.into_parts();
                Some((stream, ahead.unwrap_or_default()))
            }
        }
    }

    async fn answer(self: &Arc<Self>, session: &mut ServerSession, peer: IpAddr) -> Result<Upgraded, Gone> {
        let request = session.req_header();
        let (method, headers) = (request.method.clone(), request.headers.clone());
        let (path, query) = (request.uri.path().to_owned(), request.uri.query().map(str::to_owned));
        let host = host_of(&request.uri, &headers);
        let id = request_id(&headers);
        let Some(host) = host else {
            let answer = Refusal::new(Code::BadHead, Stage::Request).answer(&id);
            self.telemetry.head_refused("authority");
            return self.reply(session, Upload::none(), with_id(answer, &id), &method).await;
        };
        if session.is_upgrade_req() && websocket::owns(&path) {
            let carrier = Carrier { request_id: Arc::clone(&id), peer, host: Some(host) };
            let conversation = websocket::serve(&self.gateway, session, carrier, &headers, &self.sockets);
            return Box::pin(conversation).await.map(|()| Upgraded::Yes);
        }
        if headers.get(header::EXPECT).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
            session.write_continue_response().await.map_err(|_| Gone)?;
        }
        let (body, mut upload) = Upload::open(session);
        let service = self.services.iter().find(|service| service.owns(&path));
        let answer = match service {
            Some(service) => {
                let carrier = Carrier { request_id: Arc::clone(&id), peer, host: Some(host) };
                let work = self.local(Arc::clone(service), method.clone(), path, query, headers, carrier, body);
                // Boxed, as below.
                pump::while_uploading(session, &mut upload, Box::pin(work)).await?
            }
            None => {
                let call = Call {
                    door: Door::Http,
                    request_id: Arc::clone(&id),
                    method: method.clone(),
                    path,
                    query,
                    headers,
                    host: Some(host),
                    peer,
                    caller: Caller::ByHeaders,
                    cluster: None,
                    human: false,
                    tool: None,
                    known: None,
                    body,
                };
                // Boxed: what admission needed is freed before an answer streams for hours.
                pump::while_uploading(session, &mut upload, Box::pin(self.gateway.serve(call))).await?
            }
        };
        self.reply(session, upload, with_id(answer, &id), &method).await
    }

    async fn reply(
        &self,
        session: &mut ServerSession,
        mut upload: Upload,
        answer: Answer,
        method: &http::Method,
    ) -> Result<Upgraded, Gone> {
        // A body not worth reading to save the connection; or chunks, whose end another parser may see elsewhere: pingora
        // takes a size without digits for the last one. What follows is then no request.
        let chunked = session.get_header(header::TRANSFER_ENCODING).is_some();
        if chunked || (!session.is_body_done() && !is_small(session)) {
            session.set_keepalive(None);
        }
        let head_only = *method == http::Method::HEAD;
        pump::send(session, &mut upload, answer, head_only).await?;
        Ok(Upgraded::No)
    }

    /// Hands a request to a service of this process, once its caller is known.
    #[expect(clippy::too_many_arguments, reason = "the parts of one request, taken apart once")]
    async fn local(
        &self,
        service: Arc<dyn LocalService>,
        method: http::Method,
        path: String,
        query: Option<String>,
        headers: HeaderMap,
        carrier: Carrier,
        body: Inbound,
    ) -> Answer {
        if let Some(answer) = service.answer_anyone(&method, &path, query.as_deref()) {
            return self.gateway.guard(Door::Mcp, &carrier, &method).unwrap_or(answer);
        }
        let principal = match self.gateway.authenticate(Door::Mcp, &headers, &carrier, &method).await {
            Ok(principal) => principal,
            Err(mut refused) => {
                service.challenge(&mut refused, &headers);
                return refused;
            }
        };
        let target = query.map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
        let mut request = http::Request::new(body.into_stream());
        *request.method_mut() = method;
        *request.headers_mut() = headers;
        match target.parse() {
            Ok(uri) => *request.uri_mut() = uri,
            Err(_) => return Refusal::new(Code::PathNotCanonical, Stage::Request).answer(&carrier.request_id),
        }
        request.extensions_mut().insert(principal);
        request.extensions_mut().insert(carrier);
        Answer::from_response(service.call(request).await)
    }
}

/// Whether the session still speaks HTTP.
enum Upgraded {
    No,
    Yes,
}

#[async_trait]
impl HttpServerApp for Streams {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        _shutdown: &watch::Receiver<bool>,
    ) -> Option<ReusedHttpStream> {
        match session.read_request().await {
            Ok(true) => {}
            Ok(false) | Err(_) => {
                self.door.telemetry.head_refused("unparsable");
                return None;
            }
        }
        self.door.exchange(session, self.peer).await;
        // A stream of HTTP/2 is never used again; the connection lives on in pingora's hands.
        None
    }

    fn h2_options(&self) -> Option<H2Options> {
        let mut options = default_h2_options();
        // Heads are as large as those of HTTP/1; the library counts 32 bytes for each field on top.
        let bytes_max = self.door.gateway.limits().header_bytes;
        options.max_header_list_size(u32::try_from(bytes_max).unwrap_or(u32::MAX));
        Some(options)
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}

/// The one host of a request, without its port: `None` when absent, malformed or contradictory.
fn host_of(uri: &http::Uri, headers: &HeaderMap) -> Option<String> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let from_header = hosts.next().map(http::HeaderValue::as_bytes);
    if hosts.next().is_some() {
        return None;
    }
    let from_target = uri.authority().map(|a| a.as_str().as_bytes());
    let authority = match (from_target, from_header) {
        (Some(a), Some(b)) if !a.eq_ignore_ascii_case(b) => return None,
        (Some(a), _) | (None, Some(a)) => a,
        // HTTP/1.0 without Host: nothing to choose a cluster by.
        (None, None) => b"localhost",
    };
    if !head::is_authority(authority) {
        return None;
    }
    let text = std::str::from_utf8(authority).ok()?.to_ascii_lowercase();
    let end = if text.starts_with('[') { text.find(']').map(|at| at + 1) } else { text.find(':') };
    text.get(..end.unwrap_or(text.len())).map(str::to_owned)
}

/// Says whether the request body is declared to be so small that the rest of it is read when nobody wants it.
fn is_small(session: &ServerSession) -> bool {
    let length = session.get_header(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    length.is_some_and(|length| length <= DRAIN_BYTES_MAX)
}

fn with_id(mut answer: Answer, id: &str) -> Answer {
    if let Ok(value) = http::HeaderValue::from_str(id) {
        answer.headers.insert(REQUEST_ID, value);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_one_and_has_no_port() {
        let of = |target: &str, hosts: &[&str]| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, host.parse().unwrap());
            }
            host_of(&target.parse().unwrap(), &headers)
        };
        assert_eq!(of("/", &["Example.com:8080"]).as_deref(), Some("example.com"));
        assert_eq!(of("/", &["[::1]:80"]).as_deref(), Some("[::1]"));
        assert_eq!(of("http://a/", &["A"]).as_deref(), Some("a"));
        assert_eq!(of("http://a/", &["b"]), None);
        assert_eq!(of("/", &["a", "a"]), None);
        assert_eq!(of("/", &["a/b"]), None);
    }
}
