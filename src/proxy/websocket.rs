//! Owns `/workflows/ws`: the handshake, the frames, and AgentOS's message protocol on top.
//! Does not decide: every message becomes a `Call` of its REST twin and is admitted afresh, so a role or token that
//! ends takes effect on the next message. Departure: nothing is dialled upstream; AgentOS 2.5.6 authenticates no one
//! on that socket, and the twin is metered, leased and routed like any other run.
//! Invariant: no message but `authenticate` and `ping` is looked at before the caller is known.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::{Buf as _, Bytes};
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, header};
use http_body_util::BodyExt as _;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::pump::{self, Gone, Upload};
use super::sockets::{Pace, Place, Sockets};
use crate::agentos::{Kind, rows};
use crate::gateway::{Call, Caller, Carrier, Code, Gateway, Inbound, Refusal, Stage};
use crate::telemetry::Door;

/// The one WebSocket route of AgentOS.
const PATH: &str = "/workflows/ws";
/// Largest message of a caller, in bytes.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// How long a caller may stay unknown.
const AUTHENTICATE_TIMEOUT: Duration = Duration::from_secs(10);
/// While the process ends, how often a conversation looks whether its runs have ended.
const DRAIN_POLL: Duration = Duration::from_millis(500);
/// Silence after which the caller is pinged, and twice after which it is gone.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long the other side may take to close after us.
const FAREWELL_TIMEOUT: Duration = Duration::from_millis(500);
/// Events between a run and the socket.
const EVENTS_IN_FLIGHT: usize = 16;
/// Largest event of a run; a run whose event is larger is given up.
const EVENT_BYTES_MAX: usize = 8 << 20;
/// Runs under way on one socket.
const RUNS_MAX: usize = 16;
/// Said to a caller who holds as many sockets as one may.
const TOO_MANY: &str = "too many sockets of one caller";
/// RFC 6455 §1.3.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A message of a caller, as AgentOS clients send it. Fields that the gateway sets itself are read and dropped.
#[derive(Deserialize)]
struct Incoming {
    action: Option<String>,
    token: Option<String>,
    workflow_id: Option<String>,
    message: Option<String>,
    session_id: Option<String>,
    run_id: Option<String>,
    last_event_index: Option<i64>,
}

/// Says whether the WebSocket route has this path.
pub(super) fn owns(path: &str) -> bool {
    path.trim_end_matches('/') == PATH
}

/// Serves one WebSocket until either side closes it.
///
/// # Errors
/// [`Gone`] when the caller went away during the handshake.
pub(super) async fn serve(
    gateway: &Arc<Gateway>,
    session: &mut ServerSession,
    carrier: Carrier,
    headers: &HeaderMap,
    sockets: &Sockets,
) -> Result<(), Gone> {
    let accept = match accept_key(headers) {
        Ok(accept) => accept,
        Err(reason) => {
            return refuse(session, &carrier, Refusal::new(Code::BadHead, Stage::Request).saying(reason)).await;
        }
    };
    let (mut identity, mut place) = (HeaderMap::new(), None);
    if headers.contains_key(header::AUTHORIZATION) || carrier.certificate.is_some() {
        for value in headers.get_all(header::AUTHORIZATION) {
            identity.append(header::AUTHORIZATION, value.clone());
        }
        let known = gateway.authenticate(Door::WebSocket, &identity, &carrier, &http::Method::GET).await;
        place = match known.map(|principal| sockets.take(&principal)) {
            Ok(Some(place)) => Some(place),
            Ok(None) => {
                let refusal = Refusal::new(Code::Overloaded, Stage::Request).saying(TOO_MANY);
                return refuse(session, &carrier, refusal).await;
            }
            Err(answer) => return pump::send(session, &mut Upload::none(), answer, false).await,
        };
    }
    let (gateway, sockets) = (Arc::clone(gateway), sockets.clone());
    converse(session, &accept, |socket| Conversation::new(gateway, carrier, identity, place, sockets).hold(socket))
        .await
}

/// Switches protocols and lets `hold` speak through our codec until it or the caller ends.
///
/// # Errors
/// [`Gone`] when the caller went away during the handshake.
pub(super) async fn converse<W: Future<Output = ()>>(
    session: &mut ServerSession,
    accept: &str,
    hold: impl FnOnce(WebSocketStream<DuplexStream>) -> W,
) -> Result<(), Gone> {
    let mut response = ResponseHeader::build(101, Some(3)).map_err(|_| Gone)?;
    for (name, value) in [("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-accept", accept)] {
        response.insert_header(name, value).map_err(|_| Gone)?;
    }
    pump::in_time(session.get_write_timeout(), session.write_response_header(Box::new(response))).await?;

    let (near, far) = tokio::io::duplex(64 * 1024);
    let config =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
    let socket = WebSocketStream::from_raw_socket(far, Role::Server, Some(config)).await;
    let conversation = hold(socket);
    {
        let mut carried = std::pin::pin!(carry(session, near));
        let carries = tokio::select! {
            biased;
            () = conversation => true,
            () = &mut carried => false,
        };
        if carries {
            // What was said last goes out, and what still comes is read: a close on unread bytes is a reset, which may
            // overtake the close frame.
            let _ = tokio::time::timeout(FAREWELL_TIMEOUT, carried).await;
        }
    }
    // Whoever reads nothing would hold the connection without end; dropped while bytes wait for its peer, it is reset.
    let limit = session.get_write_timeout().unwrap_or(FAREWELL_TIMEOUT);
    let _ = tokio::time::timeout(limit, session.shutdown()).await;
    Ok(())
}

/// How a socket ends whose peer broke the protocol (RFC 6455 §7.4.1); `None` when there is nobody to tell.
pub(super) fn ending(error: &WsError) -> Option<(CloseCode, &'static str)> {
    match error {
        WsError::Capacity(_) => Some((CloseCode::Size, "message too large")),
        WsError::Protocol(_) => Some((CloseCode::Protocol, "protocol error")),
        WsError::Utf8(_) => Some((CloseCode::Invalid, "not UTF-8")),
        _ => None,
    }
}

async fn refuse(session: &mut ServerSession, carrier: &Carrier, refusal: Refusal) -> Result<(), Gone> {
    pump::send(session, &mut Upload::none(), refusal.answer(&carrier.request_id), false).await
}

/// Checks the handshake (RFC 6455 §4.2.1) and computes the accept value.
pub(super) fn accept_key(headers: &HeaderMap) -> Result<String, &'static str> {
    if headers.get("sec-websocket-version").is_none_or(|v| v != "13") {
        return Err("WebSocket version 13 is required");
    }
    let key = headers.get("sec-websocket-key").map(HeaderValue::as_bytes).unwrap_or_default();
    let decoded = base64::engine::general_purpose::STANDARD.decode(key);
    if headers.get_all("sec-websocket-key").iter().count() != 1 || decoded.map_or(0, |d| d.len()) != 16 {
        return Err("the WebSocket key is malformed");
    }
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &[key, ACCEPT_GUID].concat());
    Ok(base64::engine::general_purpose::STANDARD.encode(digest))
}

/// Moves raw bytes between the upgraded session and the frame codec until the caller's side ends; once the codec has
/// ended, what still comes is dropped. Neither direction waits for the other: a codec that is sending does not read.
async fn carry(session: &mut ServerSession, near: DuplexStream) {
    let (mut from_codec, mut to_codec) = tokio::io::split(near);
    let mut buffer = vec![0; 16 * 1024];
    let mut inward = Bytes::new();
    let (mut listens, mut speaks) = (true, true);
    loop {
        tokio::select! {
            read = session.read_body_or_idle(false), if inward.is_empty() => match read {
                Ok(Some(bytes)) if listens => inward = bytes,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            },
            written = to_codec.write(&inward), if !inward.is_empty() => match written {
                Ok(n) if n > 0 => inward.advance(n),
                Ok(_) | Err(_) => (listens, inward) = (false, Bytes::new()),
            },
            read = from_codec.read(&mut buffer), if speaks => match read {
                Ok(n) if n > 0 => {
                    let bytes = Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default());
                    if session.write_response_body(bytes, false).await.is_err() { return }
                }
                Ok(_) | Err(_) => (listens, speaks) = (false, false),
            },
        }
    }
}

/// One caller's conversation.
struct Conversation {
    gateway: Arc<Gateway>,
    carrier: Carrier,
    /// The credential, sent along with every call; empty until the caller is known.
    identity: HeaderMap,
    /// Held while the caller is known.
    place: Option<Place>,
    sockets: Sockets,
    events: mpsc::Sender<Message>,
    inbox: mpsc::Receiver<Message>,
}

enum Next {
    Go,
    Close(CloseCode, &'static str),
}

/// When the caller is pinged next, and how often it was since it last said something.
struct Pings {
    silent_rounds: u8,
    next_at: Instant,
}

impl Conversation {
    fn new(
        gateway: Arc<Gateway>,
        carrier: Carrier,
        identity: HeaderMap,
        place: Option<Place>,
        sockets: Sockets,
    ) -> Self {
        let (events, inbox) = mpsc::channel(EVENTS_IN_FLIGHT);
        Self { gateway, carrier, identity, place, sockets, events, inbox }
    }

    /// Says whether a run is under way: each holds one sender beside our own.
    fn has_runs(&self) -> bool {
        self.events.strong_count() > 1
    }

    fn is_known(&self) -> bool {
        self.place.is_some()
    }

    /// Holds the conversation until it is closed.
    async fn hold(mut self, mut socket: WebSocketStream<DuplexStream>) {
        let hello = json!({
            "event": "connected",
            "message": "Connected to AgentOS.",
            "requires_auth": !self.is_known(),
        });
        if socket.send(Message::text(hello.to_string())).await.is_err() {
            return;
        }
        let known_by = Instant::now() + AUTHENTICATE_TIMEOUT;
        let (mut pings, mut pace) = (Pings::new(), Pace::new());
        let mut draining = self.gateway.draining();
        loop {
            let drains = *draining.borrow_and_update();
            if drains && !self.has_runs() && self.inbox.is_empty() {
                let away = CloseFrame { code: CloseCode::Away, reason: "the gateway ends, connect again".into() };
                let _ = socket.close(Some(away)).await;
                return;
            }
            let next = tokio::select! {
                message = socket.next() => {
                    pings.silent_rounds = 0;
                    match message {
                        Some(Ok(_)) if !pace.keeps() => Next::Close(CloseCode::Policy, "too many messages"),
                        Some(Ok(message)) => self.receive(message, &mut socket).await,
                        Some(Err(error)) => match ending(&error) {
                            Some((code, reason)) => Next::Close(code, reason),
                            None => return,
                        },
                        None => return,
                    }
                }
                Some(event) = self.inbox.recv() => {
                    if socket.send(event).await.is_err() { return }
                    Next::Go
                }
                Ok(()) = draining.changed() => Next::Go,
                // Nothing has happened: the next ping stays due when it was, or there would be none in a drain.
                () = tokio::time::sleep(DRAIN_POLL), if drains => continue,
                () = tokio::time::sleep_until(known_by), if !self.is_known() => Next::Close(CloseCode::Policy, "not authenticated in time"),
                () = pings.due() => {
                    pings.silent_rounds += 1;
                    if pings.silent_rounds > 2 || socket.send(Message::Ping(Bytes::new())).await.is_err() { return }
                    Next::Go
                }
            };
            if let Next::Close(code, reason) = next {
                let _ = socket.close(Some(CloseFrame { code, reason: reason.into() })).await;
                return;
            }
            pings.postpone();
        }
    }

    async fn receive(&mut self, message: Message, socket: &mut WebSocketStream<DuplexStream>) -> Next {
        let text = match message {
            Message::Text(text) => text,
            Message::Binary(_) => return Next::Close(CloseCode::Unsupported, "text messages only"),
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => return Next::Go,
        };
        let Ok(incoming) = serde_json::from_str::<Incoming>(&text) else {
            return Next::Close(CloseCode::Invalid, "not a JSON message");
        };
        let (reply, next) = self.answer(incoming).await;
        if let Some(reply) = reply
            && socket.send(Message::text(reply.to_string())).await.is_err()
        {
            return Next::Close(CloseCode::Away, "");
        }
        next
    }

    async fn answer(&mut self, incoming: Incoming) -> (Option<serde_json::Value>, Next) {
        let error = |text: &str| (Some(json!({ "event": "error", "error": text })), Next::Go);
        match incoming.action.as_deref() {
            Some("ping") => (Some(json!({ "event": "pong" })), Next::Go),
            Some("authenticate") => self.authenticate(incoming.token.as_deref()).await,
            Some(_) if !self.is_known() => {
                let text = "Authentication required. Send an authenticate action with a valid token.";
                (Some(json!({ "event": "auth_required", "error": text })), Next::Go)
            }
            Some("start-workflow") => match &incoming.workflow_id {
                None => error("workflow_id is required"),
                Some(id) => {
                    let path = rows::runs(Kind::Workflow, id);
                    let message = incoming.message.unwrap_or_default();
                    let fields = [
                        ("message", Some(message)),
                        ("session_id", incoming.session_id),
                        ("stream", Some("true".into())),
                    ];
                    self.start(path, &fields)
                }
            },
            Some("reconnect") => match (&incoming.workflow_id, &incoming.run_id) {
                (Some(workflow), Some(run)) => {
                    let path = rows::resume(Kind::Workflow, workflow, run);
                    let index = incoming.last_event_index.map(|index| index.to_string());
                    self.start(path, &[("last_event_index", index), ("session_id", incoming.session_id)])
                }
                (_, _) => error("workflow_id and run_id are required"),
            },
            Some(_) | None => error("unknown action"),
        }
    }

    /// Takes a credential in band. It can be taken once: a socket does not change hands.
    async fn authenticate(&mut self, token: Option<&str>) -> (Option<serde_json::Value>, Next) {
        if self.is_known() {
            return (None, Next::Close(CloseCode::Policy, "already authenticated"));
        }
        let value = token.and_then(|token| HeaderValue::try_from(format!("Bearer {token}")).ok());
        let Some(value) = value else {
            return (Some(json!({ "event": "auth_error", "error": "Token is required" })), Next::Go);
        };
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value)]);
        match self.gateway.authenticate(Door::WebSocket, &headers, &self.carrier, &http::Method::GET).await {
            Ok(principal) => {
                let Some(place) = self.sockets.take(&principal) else {
                    return (
                        Some(json!({ "event": "auth_error", "error": TOO_MANY })),
                        Next::Close(CloseCode::Policy, TOO_MANY),
                    );
                };
                (self.identity, self.place) = (headers, Some(place));
                let text = "Authentication successful.";
                (Some(json!({ "event": "authenticated", "message": text, "user_id": &*principal.subject })), Next::Go)
            }
            Err(_) => (
                Some(json!({ "event": "auth_error", "error": "Invalid token" })),
                Next::Close(CloseCode::Policy, "invalid token"),
            ),
        }
    }

    /// Starts a call whose events go to the socket. The run outlives the socket, as it does in AgentOS.
    fn start(&self, path: String, fields: &[(&str, Option<String>)]) -> (Option<serde_json::Value>, Next) {
        let error = |text: &str| (Some(json!({ "event": "error", "error": text })), Next::Go);
        if *self.gateway.draining().borrow() {
            return error("the gateway is shutting down");
        }
        // Each run under way holds one sender beside our own.
        if self.events.strong_count() > RUNS_MAX {
            return error("too many runs on this socket");
        }
        let given = fields.iter().filter_map(|(name, value)| value.as_ref().map(|value| (*name, value)));
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(given).finish();
        let mut headers = self.identity.clone();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        let call = Call {
            door: Door::WebSocket,
            request_id: uuid::Uuid::new_v4().to_string().into(),
            method: http::Method::POST,
            path,
            query: None,
            headers,
            host: self.carrier.host.clone(),
            peer: self.carrier.peer,
            caller: Caller::named(self.carrier.certificate.clone()),
            cluster: None,
            human: false,
            tool: None,
            known: None,
            body: Inbound::Full(body.into()),
        };
        let (gateway, events) = (Arc::clone(&self.gateway), self.events.clone());
        let work = Box::pin(async move { relay(&gateway, call, events).await });
        if self.gateway.detach("workflow socket run", work) {
            (None, Next::Go)
        } else {
            error("the gateway has too much to do, or is shutting down")
        }
    }
}

impl Pings {
    /// Of a socket that was just opened.
    fn new() -> Self {
        Self { silent_rounds: 0, next_at: Instant::now() + PING_INTERVAL }
    }

    /// Waits until the next ping is due.
    ///
    /// # Cancel safety
    /// Safe: a wait that begins anew ends no later.
    async fn due(&self) {
        tokio::time::sleep_until(self.next_at).await;
    }

    /// Something was said, on either side: the next ping is a whole interval away.
    fn postpone(&mut self) {
        self.next_at = Instant::now() + PING_INTERVAL;
    }
}

/// Serves a call and sends each event of its answer as one message; goes on reading when nobody listens any more.
async fn relay(gateway: &Arc<Gateway>, call: Call, events: mpsc::Sender<Message>) {
    let answer = gateway.serve(call).await;
    let refused = answer.refused;
    let is_stream =
        answer.headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
    let mut body = answer.body;
    let mut pending = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        pending.extend_from_slice(&data);
        if pending.len() > EVENT_BYTES_MAX {
            let error = json!({ "event": "error", "error": "the run sent more than one message can hold" });
            let _ = events.send(Message::text(error.to_string())).await;
            return;
        }
        while is_stream && let Some(at) = memchr::memmem::find(&pending, b"\n\n") {
            let event: Vec<u8> = pending.drain(..at + 2).collect();
            // Comments keep HTTP alive; a socket has pings.
            if !event.starts_with(b":") {
                let text = String::from_utf8_lossy(&event).into_owned();
                // A closed socket does not end the run.
                let _ = events.send(Message::text(text)).await;
            }
        }
    }
    if !is_stream {
        let problem: serde_json::Value = serde_json::from_slice(&pending).unwrap_or_default();
        let detail = problem.get("detail").cloned().unwrap_or_else(|| json!("the run could not be started"));
        let _ =
            events.send(Message::text(json!({ "event": "error", "error": detail, "code": refused }).to_string())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_value_is_the_one_of_the_rfc() {
        let mut headers = HeaderMap::new();
        headers.insert("sec-websocket-version", HeaderValue::from_static("13"));
        headers.insert("sec-websocket-key", HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        assert_eq!(accept_key(&headers).as_deref(), Ok("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        headers.insert("sec-websocket-key", HeaderValue::from_static("short"));
        assert!(accept_key(&headers).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_ping_is_due_after_silence_however_often_the_wait_for_it_begins_anew() {
        let (began, mut pings) = (Instant::now(), Pings::new());
        // The turns of a drain.
        while tokio::time::timeout(DRAIN_POLL, pings.due()).await.is_err() {}
        assert_eq!(began.elapsed(), PING_INTERVAL);
        tokio::time::advance(DRAIN_POLL).await;
        pings.postpone();
        pings.due().await;
        assert_eq!(began.elapsed(), PING_INTERVAL + DRAIN_POLL + PING_INTERVAL);
    }
}
