//! Owns the HTTP door: connections become sessions, sessions become `Call`s, answers go back.
//! Does not accept sockets (`server`) and does not decide (`gateway`).
//! Invariant: every request that a session yields is answered, or its connection is closed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue, header};
use pingora::prelude::fast_timeout;
use pingora::protocols::http::ServerSession;

use super::cors;
use super::gzip;
use super::head;
use super::origin;
use super::places::Places;
use super::pump::{self, Gone, Upload};
use super::settings::Settings;
use super::sockets::Sockets;
use super::tls::TlsAcceptor;
use super::websocket;
use crate::gateway::{
    Answer, Call, Caller, Carrier, Code, Gateway, Inbound, Limits, LocalService, REQUEST_ID, Refusal, Stage, request_id,
};
use crate::principal::ClientCertificate;
use crate::telemetry::{Door, Telemetry};

/// How long the rest of a refused body is read before the connection is closed instead. Below a second it would be a timer of
/// pingora's own: see [`HttpDoor::new`].
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Largest body of a refused request that is read to its end so that the connection can be used again.
const DRAIN_BYTES_MAX: u64 = 64 << 10;

/// The HTTP door. Shared by all connections.
pub struct HttpDoor {
    pub(super) gateway: Arc<Gateway>,
    pub(super) telemetry: Arc<Telemetry>,
    services: Vec<Arc<dyn LocalService>>,
    sockets: Sockets,
    pub(super) front: ArcSwap<Front>,
    pub(super) places: Places,
}

/// What a reload replaces, for connections and requests that begin afterwards.
pub(super) struct Front {
    pub(super) settings: Settings,
    pub(super) tls: Option<TlsAcceptor>,
}

/// Who is at the other end of a connection.
#[derive(Clone)]
pub(super) struct Peer {
    /// The address, by PROXY protocol where that is spoken.
    pub(super) address: IpAddr,
    /// The certificate that TLS has verified, and by which authorities.
    pub(super) certificate: Option<Arc<ClientCertificate>>,
    pub(super) authorities: Option<[u8; 32]>,
}

// === impl HttpDoor ===

impl HttpDoor {
    /// A door to the gateway; `services` answer their paths in this process.
    pub fn new(
        gateway: Arc<Gateway>,
        telemetry: Arc<Telemetry>,
        services: Vec<Arc<dyn LocalService>>,
        settings: Settings,
        tls: Option<TlsAcceptor>,
    ) -> Arc<Self> {
        // Its own timers pingora keeps until they are due, however soon a write is over: after a burst each holds a page.
        fast_timeout::set_fast_timeout_to_tokio_threshold(Some(Duration::ZERO));
        let front = ArcSwap::from_pointee(Front { settings, tls });
        Arc::new(Self { gateway, telemetry, services, sockets: Sockets::default(), front, places: Places::default() })
    }

    /// Replaces settings and certificates. Connections that are open keep theirs.
    pub fn install(&self, settings: Settings, tls: Option<TlsAcceptor>) {
        self.front.store(Arc::new(Front { settings, tls }));
    }

    /// Runs one exchange on a session whose head was read; says whether the connection may serve another. The session
    /// stays where it is: it is large.
    pub(super) async fn exchange(self: &Arc<Self>, session: &mut ServerSession, peer: &Peer) -> bool {
        let limits = self.gateway.limits();
        session.set_write_timeout(Some(limits.write_timeout));
        // Every read has a deadline of ours, which may be a later one: a body's pace, the drain's, a WebSocket's pings.
        session.set_read_timeout(None);
        session.set_total_drain_timeout(Some(DRAIN_TIMEOUT));
        if let ServerSession::H1(session) = session {
            // `reply` decides that: an interim answer and a small body left unread are no reason.
            session.set_close_on_response_before_downstream_finish(false);
        }
        if !matches!(self.answer(session, peer, &limits).await, Ok(Upgraded::No)) {
            return false;
        }
        // A close on unread bytes is a reset, which may overtake the answer.
        !matches!(session, ServerSession::H1(_))
            || (pump::in_time(Some(limits.write_timeout), session.finish_body()).await.is_ok()
                && session.drain_request_body().await.is_ok())
    }

    async fn answer(
        self: &Arc<Self>,
        session: &mut ServerSession,
        peer: &Peer,
        limits: &Limits,
    ) -> Result<Upgraded, Gone> {
        let front = self.front.load_full();
        let request = session.req_header();
        let (method, mut headers) = (request.method.clone(), request.headers.clone());
        let (path, query) = (request.uri.path().to_owned(), request.uri.query().map(str::to_owned));
        let host = host_of(&request.uri, &headers);
        name_host(&mut headers, &request.uri);
        let id = request_id(&headers);
        let wishes = Wishes::of(&front.settings, &method, &headers);
        let refused = match &host {
            None => Some((Code::BadHead, "authority")),
            // HTTP/1 heads were counted before they were parsed.
            Some(_) if request.headers.len() > limits.header_fields => Some((Code::HeadTooLarge, "too_large")),
            Some(_) => None,
        };
        if let Some((code, reason)) = refused {
            self.telemetry.head_refused(reason);
            let answer = Refusal::new(code, Stage::Request).answer(&id);
            return self.reply(session, Upload::none(), with_id(answer, &id), &wishes).await;
        }
        if let Some(cors) = &front.settings.cors
            && let Some(answer) = cors::preflight(cors, &method, &headers, &id)
        {
            return self.reply(session, Upload::none(), with_id(answer, &id), &wishes).await;
        }
        let carrier = Carrier {
            request_id: Arc::clone(&id),
            peer: origin::caller(&front.settings.forwarded_for, peer.address, &headers),
            host,
            certificate: self.certificate(&front, peer, &headers),
        };
        if session.is_upgrade_req() && websocket::owns(&path) {
            let conversation = websocket::serve(&self.gateway, session, carrier, &headers, &self.sockets);
            return Box::pin(conversation).await.map(|()| Upgraded::Yes);
        }
        if headers.get(header::EXPECT).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
            pump::in_time(Some(limits.write_timeout), session.write_continue_response()).await?;
        }
        let (body, mut upload) = Upload::open(session, limits.body_timeout, limits.body_bytes_per_second_min);
        let service = self.services.iter().find(|service| service.owns(&path));
        let answer = match service {
            Some(service) => {
                let work = self.local(Arc::clone(service), method, path, query, headers, carrier, body);
                // Boxed, as below.
                pump::while_uploading(session, &mut upload, Box::pin(work)).await?
            }
            None => {
                let call = Call {
                    door: Door::Http,
                    request_id: Arc::clone(&id),
                    method,
                    path,
                    query,
                    headers,
                    host: carrier.host,
                    peer: carrier.peer,
                    caller: Caller::named(carrier.certificate),
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
        drop(front);
        self.reply(session, upload, with_id(answer, &id), &wishes).await
    }

    /// The certificate of the connection, where it may speak for this request.
    fn certificate(&self, front: &Front, peer: &Peer, headers: &HeaderMap) -> Option<Arc<ClientCertificate>> {
        let certificate = peer.certificate.as_ref().filter(|certificate| self.gateway.knows(certificate))?;
        // Verified when the connection began: authorities that a reload has replaced do not count any more.
        let vouched = front.tls.as_ref().is_some_and(|tls| tls.authorities == peer.authorities);
        let foreign = cors::is_foreign_page(front.settings.cors.as_ref(), headers);
        (vouched && !foreign).then(|| Arc::clone(certificate))
    }

    async fn reply(
        &self,
        session: &mut ServerSession,
        mut upload: Upload,
        answer: Answer,
        wishes: &Wishes,
    ) -> Result<Upgraded, Gone> {
        // A body not worth reading to save the connection; or chunks, whose end another parser may see elsewhere: pingora
        // takes a size without digits for the last one. What follows is then no request.
        let chunked = session.get_header(header::TRANSFER_ENCODING).is_some();
        if chunked || (!session.is_body_done() && !is_small(session)) {
            session.set_keepalive(None);
        }
        pump::send(session, &mut upload, wishes.grant(answer), wishes.head_only).await?;
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

/// What the head of a request says about the form of its answer. Small: it is kept for as long as a stream lasts.
struct Wishes {
    head_only: bool,
    gzip: Option<usize>,
    accepts_gzip: bool,
    /// The origin to name, where pages of other origins may call.
    cors: Option<Option<HeaderValue>>,
}

impl Wishes {
    fn of(settings: &Settings, method: &http::Method, headers: &HeaderMap) -> Self {
        Self {
            head_only: *method == http::Method::HEAD,
            gzip: settings.gzip_bytes_min,
            accepts_gzip: gzip::is_accepted(headers),
            cors: settings.cors.as_ref().map(|cors| cors::origin(cors, headers)),
        }
    }

    fn grant(&self, mut answer: Answer) -> Answer {
        if let Some(origin) = &self.cors {
            cors::reveal(origin.as_ref(), &mut answer.headers);
        }
        gzip::apply(answer, self.gzip, self.accepts_gzip)
    }
}

/// Whether the session still speaks HTTP.
enum Upgraded {
    No,
    Yes,
}

/// The one host of a request, without its port: `None` when absent, malformed or contradictory.
fn host_of(uri: &http::Uri, headers: &HeaderMap) -> Option<String> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let from_header = hosts.next().map(HeaderValue::as_bytes);
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
    String::from_utf8(head::host_of(authority)?.to_ascii_lowercase()).ok()
}

/// Writes the host into the fields where it stands in the target alone, as it may in HTTP/2 (RFC 9113 §8.3.1): services see
/// the fields.
fn name_host(headers: &mut HeaderMap, uri: &http::Uri) {
    if let Some(authority) = uri.authority()
        && let header::Entry::Vacant(host) = headers.entry(header::HOST)
        && let Ok(value) = HeaderValue::from_str(authority.as_str())
    {
        host.insert(value);
    }
}

/// Says whether the request body is declared to be so small that the rest of it is read when nobody wants it.
fn is_small(session: &ServerSession) -> bool {
    let length = session.get_header(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    length.is_some_and(|length| length <= DRAIN_BYTES_MAX)
}

fn with_id(mut answer: Answer, id: &str) -> Answer {
    if let Ok(value) = HeaderValue::from_str(id) {
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
