//! Owns a connection from its first byte to the sessions on it: who is there, TLS, and whose turn the next head is.
//! Does not answer requests (`door`).
//! Invariants: nothing is read of a connection whose address holds too many; each phase before a request has a deadline;
//! room for an exchange is taken only when its head is there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use http::{HeaderMap, StatusCode};
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp as _};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::connection::{Connection, Transport};
use super::door::{DRAIN_TIMEOUT, HttpDoor, Peer};
use super::head::{self, BadHead, Head, HeadLimits, Silence};
use super::origin;
use super::pump;
use super::tls;
use crate::gateway::{Code, Refusal, Stage, request_id};
use crate::principal::ClientCertificate;

/// Silence on a kept-alive connection before it is closed.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Most that all streams of an HTTP/2 connection may send before the gateway has read it.
const CONNECTION_WINDOW_MAX: u32 = 16 << 20;
/// How long an idle connection stays open once the drain has begun: a request may be on its way.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// One HTTP/2 connection's view of the door: pingora hands it sessions without the peer.
struct Streams {
    door: Arc<HttpDoor>,
    peer: Peer,
    options: HttpServerOptions,
}

impl HttpDoor {
    /// Serves one connection until it ends. `shutdown` turning true lets the exchange in flight finish.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection and ends its exchanges.
    pub async fn serve(self: &Arc<Self>, mut stream: TcpStream, peer: SocketAddr, shutdown: &watch::Receiver<bool>) {
        // Small answers must not wait for the peer's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        // One address, however the socket writes it: addresses are compared and counted.
        let peer = canonical(peer);
        let front = self.front.load_full();
        let limits = self.gateway.limits();
        let mut caller = peer;
        if origin::is_in(&front.settings.proxy_protocol, peer.ip()) {
            match tokio::time::timeout(limits.header_timeout, origin::proxied(&mut stream)).await {
                Ok(Ok(named)) => caller = named.map_or(peer, canonical),
                Ok(Err(origin::BadHeader)) => return self.telemetry.head_refused("proxy_protocol"),
                Err(_) => return self.telemetry.head_refused("slow"),
            }
        }
        let Some(_place) = self.places.take(caller.ip(), limits.connections_per_address) else {
            return self.telemetry.head_refused("too_many_connections");
        };
        let transport = match &front.tls {
            None => Transport::Plain(stream),
            // Boxed: a handshake takes more room than the connection that it makes.
            Some(acceptor) => {
                match tokio::time::timeout(limits.header_timeout, Box::pin(acceptor.acceptor.accept(stream))).await {
                    Ok(Ok(stream)) => Transport::Tls(Box::new(stream)),
                    Ok(Err(_)) => return self.telemetry.head_refused("tls_handshake"),
                    Err(_) => return self.telemetry.head_refused("tls_slow"),
                }
            }
        };
        let authorities = front.tls.as_ref().and_then(|tls| tls.authorities);
        // A connection may live long; the settings of its beginning should not.
        drop(front);
        let certificate = transport.certificate().and_then(tls::holder).map(Arc::<ClientCertificate>::new);
        let connection = Connection::new(transport, caller);
        let peer = Peer { address: caller.ip(), certificate, authorities };
        if connection.is_http2() {
            match tokio::time::timeout(limits.header_timeout, connection.with_preface()).await {
                Ok(Some(connection)) => Box::pin(self.serve_http2(connection, peer, shutdown)).await,
                Ok(None) => self.telemetry.head_refused("unparsable"),
                Err(_) => self.telemetry.head_refused("slow"),
            }
        } else {
            self.serve_http1(connection, peer, shutdown).await;
        }
    }

    async fn serve_http2(self: &Arc<Self>, connection: Connection, peer: Peer, shutdown: &watch::Receiver<bool>) {
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(KEEP_ALIVE);
        let streams = Arc::new(Streams { door: Arc::clone(self), peer, options });
        streams.process_new(Box::new(connection), shutdown).await;
    }

    async fn serve_http1(self: &Arc<Self>, connection: Connection, peer: Peer, shutdown: &watch::Receiver<bool>) {
        let mut stream: Stream = Box::new(connection);
        let mut ahead = BytesMut::new();
        let mut silence = Silence::new();
        // Whoever connects has something to say; between requests there may be a pause.
        let mut idle = self.gateway.limits().header_timeout.min(KEEP_ALIVE);
        // One wait for all heads: each would join and leave the list of those who wait.
        let mut drained = std::pin::pin!(drained(shutdown.clone()));
        loop {
            let limits = self.head_limits();
            if ahead.is_empty() {
                let begun = tokio::select! {
                    biased;
                    begun = head::begin(stream.as_mut(), &mut ahead, idle, &mut silence) => begun,
                    () = &mut drained => false,
                };
                if !begun {
                    return;
                }
            }
            idle = KEEP_ALIVE;
            match head::read(stream.as_mut(), &mut ahead, limits).await {
                Ok(Head::Http1) => {}
                Ok(Head::Http2) if self.front.load().settings.h2c => {
                    let connection = stream.into_any().downcast::<Connection>().ok();
                    if let Some(connection) = connection {
                        Box::pin(self.serve_http2(connection.into_http2(ahead), peer, shutdown)).await;
                    }
                    return;
                }
                Ok(Head::Closed) => return,
                Ok(Head::Http2) => return self.refuse_head(&mut stream, BadHead::Malformed("http2_not_offered")).await,
                Err(bad) => return self.refuse_head(&mut stream, bad).await,
            }
            // Boxed: until its head is there, a connection holds no room for an exchange.
            let Some(reused) = Box::pin(self.next_exchange(stream, ahead, &peer, shutdown)).await else { return };
            (stream, ahead) = reused;
        }
    }

    /// Runs the exchange whose head was read; returns the connection when it can serve another.
    async fn next_exchange(
        self: &Arc<Self>,
        stream: Stream,
        ahead: BytesMut,
        peer: &Peer,
        shutdown: &watch::Receiver<bool>,
    ) -> Option<(Stream, BytesMut)> {
        let mut session = ServerSession::new_http1(stream);
        session.set_pipelining_enabled(true);
        session.set_pipelined_prefix(ahead);
        if !matches!(session.read_request().await, Ok(true)) {
            self.telemetry.head_refused("unparsable");
            return None;
        }
        // Reading the head sets what the caller wants; a drain and the idle limit come on top of that.
        session.set_keepalive((!*shutdown.borrow()).then_some(KEEP_ALIVE.as_secs()));
        if !self.exchange(&mut session, peer).await {
            return None;
        }
        let limit = session.get_write_timeout();
        let (stream, ahead) = pump::in_time(limit, session.finish()).await.ok()??.into_parts();
        Some((stream, ahead.unwrap_or_default()))
    }

    fn head_limits(&self) -> HeadLimits {
        let limits = self.gateway.limits();
        HeadLimits { bytes_max: limits.header_bytes, fields_max: limits.header_fields, timeout: limits.header_timeout }
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
}

/// An IPv4 address, also where a socket for both writes it as IPv6 (RFC 4291 §2.5.5.2).
fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// Ends when the process drains and a request that was on its way is there: an idle connection has little to lose, so it
/// is closed soon, and what begins before that is answered.
async fn drained(mut stopping: watch::Receiver<bool>) {
    // A sender that is gone drains as well.
    let _ = stopping.wait_for(|stop| *stop).await;
    tokio::time::sleep(DRAIN_GRACE).await;
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
        if self.door.exchange(&mut session, &self.peer).await {
            // What is left of the stream is closed; there is no connection to get back.
            let _ = session.finish().await;
        }
        // A stream of HTTP/2 is never used again; the connection lives on in pingora's hands.
        None
    }

    fn h2_options(&self) -> Option<H2Options> {
        let mut options = default_h2_options();
        let limits = self.door.gateway.limits();
        // Heads are as large as those of HTTP/1; the library counts 32 bytes for each field on top.
        options.max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX));
        options.max_concurrent_streams(limits.streams_per_connection);
        // Room for each stream: else one whose body waits for its turn would hold up those of all others.
        let window = u32::from(u16::MAX).saturating_mul(limits.streams_per_connection);
        options.initial_connection_window_size(window.clamp(u32::from(u16::MAX), CONNECTION_WINDOW_MAX));
        Some(options)
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_outlives_the_beginning_of_the_drain_by_a_second() {
        let (stop, stopping) = watch::channel(false);
        let mut drained = std::pin::pin!(drained(stopping));
        let wait = Duration::from_hours(1);
        assert!(tokio::time::timeout(wait, &mut drained).await.is_err());
        stop.send_replace(true);
        let began = tokio::time::Instant::now();
        drained.await;
        assert_eq!(began.elapsed(), DRAIN_GRACE);
    }
}
