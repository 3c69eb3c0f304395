//! Proves the limits of the WebSocket: sizes, fragments, pace, number, protocol errors, strangers' pages.
//! Does not test what its messages do (`real_agno`, `real_holes`).

use futures_util::{SinkExt as _, StreamExt as _};
use http::Request;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::fake::{Event, FakeAgentOs, Line, Reply};
use crate::stack::{Settings, Stack, Who, within};

pub(crate) type Socket = WebSocketStream<TcpStream>;

async fn open(stack: &Stack, headers: &[(&'static str, &str)]) -> Result<Socket, Error> {
    open_over(TcpStream::connect(stack.address()).await.unwrap(), headers).await
}

async fn open_over(stream: TcpStream, headers: &[(&'static str, &str)]) -> Result<Socket, Error> {
    let address = stream.peer_addr().unwrap();
    let mut request: Request<()> = format!("ws://{address}/workflows/ws").into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let (socket, answer) = within("a handshake", tokio_tungstenite::client_async(request, stream)).await?;
    assert_eq!(answer.headers().get("sec-websocket-extensions"), None);
    assert_eq!(answer.headers().get("sec-websocket-protocol"), None);
    Ok(socket)
}

/// Alice's socket, greeted.
pub(crate) async fn known(stack: &Stack) -> Socket {
    known_over(TcpStream::connect(stack.address()).await.unwrap()).await
}

/// The same over a connection that the test has made.
pub(crate) async fn known_over(stream: TcpStream) -> Socket {
    let header = format!("Bearer {}", Who::alice().token());
    let mut socket = open_over(stream, &[("authorization", &header)]).await.unwrap();
    assert_eq!(next(&mut socket).await["event"], "connected");
    socket
}

/// The next message as JSON: bare, or the data of a server-sent event.
pub(crate) async fn next(socket: &mut Socket) -> Value {
    loop {
        match within("a message", socket.next()).await {
            Some(Ok(Message::Text(text))) => {
                let data = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap_or(&text);
                return serde_json::from_str(data).unwrap();
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Reads until the other side closes; gives its code. `None` when it did so without one.
async fn closed(socket: &mut Socket) -> Option<u16> {
    loop {
        match within("the close", socket.next()).await {
            Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code.into()),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return None,
        }
    }
}

fn ping() -> Message {
    Message::text(json!({"action": "ping"}).to_string())
}

#[tokio::test]
async fn messages_are_bounded_whole_and_in_fragments() {
    let stack = Stack::start().await;
    let mut socket = known(&stack).await;
    socket.send(Message::text(" ".repeat((1 << 20) + 1))).await.unwrap();
    assert_eq!(closed(&mut socket).await, Some(CloseCode::Size.into()));
    // In fragments, each of them small; the first one names no length.
    let mut socket = known(&stack).await;
    let fragment = |first: bool| {
        let data = if first { Data::Text } else { Data::Continue };
        Message::Frame(Frame::message(vec![b' '; 64 << 10], OpCode::Data(data), false))
    };
    let mut sent = 0;
    while sent < 64 && socket.send(fragment(sent == 0)).await.is_ok() {
        sent += 1;
    }
    assert!(matches!(closed(&mut socket).await, Some(1009) | None));
    assert_eq!(stack.os().requests(), []);
}

#[tokio::test]
async fn messages_keep_a_pace() {
    let stack = Stack::start().await;
    let mut socket = known(&stack).await;
    socket.send(ping()).await.unwrap();
    assert_eq!(next(&mut socket).await, json!({"event": "pong"}));
    for _ in 0..1000 {
        if socket.feed(ping()).await.is_err() {
            break;
        }
    }
    let _ = socket.flush().await;
    assert_eq!(closed(&mut socket).await, Some(CloseCode::Policy.into()));
}

#[tokio::test]
async fn what_breaks_the_protocol_closes_the_socket() {
    let stack = Stack::start().await;
    for (message, code) in [
        (Message::binary(vec![1, 2]), Some(CloseCode::Unsupported.into())),
        (Message::text("no json"), Some(CloseCode::Invalid.into())),
        (Message::text(json!({"action": "authenticate", "token": "x"}).to_string()), Some(CloseCode::Policy.into())),
        // A continuation of nothing.
        (Message::Frame(Frame::message(vec![], OpCode::Data(Data::Continue), true)), Some(CloseCode::Protocol.into())),
    ] {
        let mut socket = known(&stack).await;
        socket.send(message.clone()).await.unwrap();
        assert_eq!(closed(&mut socket).await, code, "{message:?}");
    }
    // A reserved bit, as compression would set it.
    let mut socket = known(&stack).await;
    let mut compressed = Frame::message(b"{}".to_vec(), OpCode::Data(Data::Text), true);
    compressed.header_mut().rsv1 = true;
    socket.send(Message::Frame(compressed)).await.unwrap();
    assert_eq!(closed(&mut socket).await, Some(CloseCode::Protocol.into()));
    // Frames of a client are masked (RFC 6455 §5.1).
    let mut socket = known(&stack).await;
    tokio::io::AsyncWriteExt::write_all(socket.get_mut(), b"\x81\x02{}").await.unwrap();
    assert_eq!(closed(&mut socket).await, Some(CloseCode::Protocol.into()));
    assert_eq!(stack.os().requests(), []);
}

#[tokio::test]
async fn one_caller_holds_so_many_sockets() {
    let stack = Stack::start().await;
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(known(&stack).await);
    }
    let header = format!("Bearer {}", Who::alice().token());
    let refused = open(&stack, &[("authorization", &header)]).await;
    assert!(matches!(&refused, Err(Error::Http(answer)) if answer.status() == 503), "{refused:?}");
    let mut unknown = open(&stack, &[]).await.unwrap();
    let token = json!({"action": "authenticate", "token": Who::alice().token()});
    unknown.send(Message::text(token.to_string())).await.unwrap();
    assert_eq!(next(&mut unknown).await["event"], "connected");
    assert_eq!(next(&mut unknown).await["event"], "auth_error");
    assert_eq!(closed(&mut unknown).await, Some(CloseCode::Policy.into()));
    // Others are not concerned, and a place comes back.
    let bob = format!("Bearer {}", Who::new("bob").role("operator").token());
    assert!(open(&stack, &[("authorization", &bob)]).await.is_ok());
    drop(held.pop());
    within("a place", async { while open(&stack, &[("authorization", &header)]).await.is_err() {} }).await;
}

#[tokio::test]
async fn a_page_of_a_stranger_finds_no_credential_to_use() {
    let stack = Stack::start().await;
    let cookie = format!("access_token={}; session={}", Who::alice().token(), Who::alice().token());
    let mut socket = open(
        &stack,
        &[
            ("origin", "https://evil.example"),
            ("cookie", &cookie),
            ("sec-websocket-protocol", "bearer, evil"),
            ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits"),
        ],
    )
    .await;
    // No protocol of the client's is spoken, which the client may not like.
    if let Ok(socket) = &mut socket {
        let hello = next(socket).await;
        assert_eq!((&hello["event"], &hello["requires_auth"]), (&json!("connected"), &json!(true)));
        let start = json!({"action": "start-workflow", "workflow_id": "daily-report", "message": "hi"});
        socket.send(Message::text(start.to_string())).await.unwrap();
        assert_eq!(next(socket).await["event"], "auth_required");
    }
    assert_eq!(stack.os().requests(), []);
}

#[tokio::test]
async fn both_directions_flow_when_both_are_full() {
    let stack = Stack::start().await;
    let big = "x".repeat(8 << 10);
    let mut events = vec![Event::new("WorkflowStarted", json!({"run_id": "r"}))];
    events.extend((0..64).map(|n| Event::new("StepOutput", json!({"run_id": "r", "n": n, "content": big}))));
    events.push(Event::new("WorkflowCompleted", json!({"run_id": "r"})));
    stack.os().pin("POST", "/workflows/daily-report/runs", Reply::sse(&events));
    let mut socket = known(&stack).await;
    let start = json!({"action": "start-workflow", "workflow_id": "daily-report", "message": "hi"});
    socket.send(Message::text(start.to_string())).await.unwrap();
    // Half a megabyte while nothing is read.
    let filler = Message::text(json!({"action": "ping", "message": big}).to_string());
    for _ in 0..64 {
        within("a send", socket.send(filler.clone())).await.unwrap();
    }
    let (mut pongs, mut over) = (0, false);
    while pongs < 64 || !over {
        match next(&mut socket).await["event"].as_str() {
            Some("pong") => pongs += 1,
            Some("WorkflowCompleted") => over = true,
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_conversation_ends_when_the_process_drains_and_starts_nothing_more() {
    let stack = Stack::start().await;
    let (reply, gate) = Reply::paced_sse(&[
        Event::new("WorkflowStarted", json!({"run_id": "r"})),
        Event::new("WorkflowCompleted", json!({"run_id": "r"})),
    ]);
    stack.os().pin("POST", "/workflows/daily-report/runs", reply);
    let (mut idle, mut busy) = (known(&stack).await, known(&stack).await);
    let start = json!({"action": "start-workflow", "workflow_id": "daily-report", "message": "hi"}).to_string();
    busy.send(Message::text(start.clone())).await.unwrap();
    gate.open_once();
    let started = next(&mut busy).await;
    assert_eq!(started["event"], "WorkflowStarted", "{started}");
    let mut draining = tokio::task::JoinSet::new();
    draining.spawn(stack.running.drain());
    assert_eq!(closed(&mut idle).await, Some(CloseCode::Away.into()));
    busy.send(Message::text(start)).await.unwrap();
    let refused = next(&mut busy).await;
    assert_eq!(refused["error"], "the gateway is shutting down", "{refused}");
    gate.open();
    assert_eq!(next(&mut busy).await["event"], "WorkflowCompleted");
    assert_eq!(closed(&mut busy).await, Some(CloseCode::Away.into()));
    assert_eq!(within("the drain", draining.join_next()).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn workflows_of_a_socket_run_in_the_background_where_agentos_streams_such() {
    for (line, background) in [(Line::V2, None), (Line::V3, Some("true"))] {
        let stack = Stack::before(vec![FakeAgentOs::start_as(line).await], Settings::new()).await;
        let mut socket = known(&stack).await;
        let start = json!({"action": "start-workflow", "workflow_id": "daily-report", "message": "hi"});
        socket.send(Message::text(start.to_string())).await.unwrap();
        while next(&mut socket).await["event"] != "WorkflowCompleted" {}
        let sent = stack.os().requests_to("/workflows/daily-report/runs");
        assert_eq!((sent.len(), sent[0].form().get("background")), (1, background), "{line:?}");
    }
}
