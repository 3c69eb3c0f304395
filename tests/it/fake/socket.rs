//! Owns the fake's `/workflows/ws`: greets, authenticates anybody, runs a workflow of four events.
//! Does not check tokens; it records every frame for the test to judge.

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::{Recorded, Shared, routes};

/// Serves one socket until the caller closes it.
pub(super) async fn serve(mut stream: TcpStream, request: &Recorded, shared: &Shared) {
    let accept = derive_accept_key(request.header("sec-websocket-key").unwrap_or_default().as_bytes());
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: {accept}\r\n\r\n"
    );
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    let mut outgoing = vec![json!({"event": "connected", "requires_auth": true}).to_string()];
    loop {
        for frame in outgoing.drain(..) {
            if socket.send(Message::text(frame)).await.is_err() {
                return;
            }
        }
        match socket.next().await {
            Some(Ok(Message::Text(text))) => {
                shared.frames.send_modify(|frames| frames.push(text.to_string()));
                outgoing = answers(&text);
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => return,
            Some(Ok(_)) => {}
        }
    }
}

fn answers(text: &str) -> Vec<String> {
    let Ok(message) = serde_json::from_str::<Value>(text) else { return Vec::new() };
    match message["action"].as_str() {
        Some("authenticate") => vec![json!({"event": "authenticated"}).to_string()],
        Some("ping") => vec![json!({"event": "pong"}).to_string()],
        Some("start-workflow") => {
            let run = message["run_id"].as_str().unwrap_or("ws-run-1");
            let content = format!("echo: {}", message["message"].as_str().unwrap_or_default());
            let row = json!({"run_id": run, "session_id": message["session_id"], "content": content});
            routes::run_events("workflows", &row).iter().map(super::Event::to_wire).collect()
        }
        _ => vec![json!({"event": "error", "error": "unknown action"}).to_string()],
    }
}
