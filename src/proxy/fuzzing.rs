//! Owns what must hold for any head, for the fuzz targets, and an echo on the WebSocket's codec, for the conformance
//! suite. Compiled with the feature `fuzzing` only.
//! Does not generate inputs. Invariant: a broken promise is a panic.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::{SinkExt as _, StreamExt as _};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use tokio::io::DuplexStream;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::connection::{Connection, Transport};
use super::head::{self, HeadLimits};
use super::websocket;

/// Checks a head; what passes is counted again by other means.
///
/// # Panics
/// When an accepted head can be read two ways.
pub fn head(data: &[u8]) {
    // As it is read from a socket: up to the first blank line.
    let Some(end) = memchr::memmem::find(data, b"\r\n\r\n") else { return };
    let data = data.get(..end + 4).unwrap_or_default();
    if head::check(data, 100).is_err() {
        return;
    }
    let text = String::from_utf8_lossy(data);
    let lines: Vec<&str> = text.split("\r\n").collect();
    assert!(lines.iter().all(|line| !line.contains(['\r', '\n', '\0'])), "{text:?}");
    let count = |name: &str| {
        let names = lines.iter().skip(1).filter_map(|line| line.split_once(':'));
        names.filter(|(given, _)| given.eq_ignore_ascii_case(name)).count()
    };
    let (lengths, encodings) = (count("content-length"), count("transfer-encoding"));
    assert!(lengths + encodings <= 1, "two framings: {text:?}");
    assert!(count("host") <= 1, "two hosts: {text:?}");
    let target = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or("/");
    assert!(target.starts_with('/') && !target.contains('#'), "{text:?}");
}

/// Serves one connection as the door serves a WebSocket, and echoes every message: what `/workflows/ws` is made of,
/// without AgentOS's words.
pub async fn echo(stream: TcpStream, peer: SocketAddr) {
    let _ = stream.set_nodelay(true);
    let mut stream: Stream = Box::new(Connection::new(Transport::Plain(stream), peer));
    let mut ahead = BytesMut::new();
    let limits = HeadLimits { bytes_max: 32 << 10, fields_max: 100, timeout: Duration::from_secs(10) };
    if !matches!(head::read(stream.as_mut(), &mut ahead, limits).await, Ok(head::Head::Http1)) {
        return;
    }
    let mut session = ServerSession::new_http1(stream);
    session.set_pipelining_enabled(true);
    session.set_pipelined_prefix(ahead);
    if !matches!(session.read_request().await, Ok(true)) {
        return;
    }
    if let Ok(accept) = websocket::accept_key(&session.req_header().headers) {
        let _ = websocket::converse(&mut session, &accept, repeat).await;
    }
}

async fn repeat(mut socket: WebSocketStream<DuplexStream>) {
    loop {
        let sent = match socket.next().await {
            Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => socket.send(message).await,
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_))) => Ok(()),
            Some(Err(error)) => match websocket::ending(&error) {
                Some((code, reason)) => {
                    let _ = socket.close(Some(CloseFrame { code, reason: reason.into() })).await;
                    return;
                }
                None => return,
            },
            None => return,
        };
        if sent.is_err() {
            return;
        }
    }
}
