//! Proves that a client that does not read its answers, or hardly, holds a run and memory for a bounded time only, and that
//! its connection serves on where it can.
//! Does not test slow senders (`front`).

use std::time::{Duration, Instant};

use futures_util::SinkExt as _;
use http::Request;
use serde_json::json;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;

use crate::fake::{Event, Reply};
use crate::http_two::{tls, with_tls_and};
use crate::http_two_raw::{DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, Two, block, frame};
use crate::stack::{Ask, Settings, Stack, Who, within};
use crate::websocket::known_over;

const RUNS: &str = "/agents/assistant/runs";
const WINDOW_UPDATE: u8 = 8;
const WRITE_TIMEOUT: Duration = Duration::from_millis(500);
/// What each bound is given beside the deadline: a busy machine is slow.
const SLACK: Duration = Duration::from_secs(3);
/// More than the sockets of all three sides hold.
const RUN_BYTES: usize = 2000 * EVENT_BYTES;
const EVENT_BYTES: usize = 16 << 10;

/// A gateway that does not wait long for its readers.
fn impatient(settings: Settings) -> Settings {
    settings.set("[server]", "h2c", "true").set("[server.limits]", "write_timeout", "\"500ms\"")
}

/// Its runs say far more than anybody reads here.
fn talk(stack: &Stack) {
    let event = Event::new("RunContent", json!({"run_id": "r", "content": "x".repeat(EVENT_BYTES)}));
    stack.os().pin("POST", RUNS, Reply::sse(&vec![event; RUN_BYTES / EVENT_BYTES]));
}

async fn talkative() -> Stack {
    let stack = Stack::with(impatient(Settings::new())).await;
    talk(&stack);
    stack
}

/// `SETTINGS_INITIAL_WINDOW_SIZE` (RFC 9113 §6.5.2).
fn initial_window(bytes: u32) -> Vec<u8> {
    [&4_u16.to_be_bytes()[..], &bytes.to_be_bytes()].concat()
}

async fn two(stack: &Stack, window: u32) -> Two {
    Two::over(TcpStream::connect(stack.address()).await.unwrap(), &initial_window(window)).await
}

fn grant(stream: u32, bytes: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
}

/// Asks on a stream of its own.
async fn ask(two: &mut Two, stream: u32, id: &str, ask: Ask) {
    let (parts, body) = Request::into_parts(ask.by(&Who::alice()).header("x-request-id", id).into_request());
    let path = parts.uri.to_string();
    let mut fields: Vec<(&str, &[u8])> = vec![
        (":method", parts.method.as_str().as_bytes()),
        (":scheme", b"http"),
        (":authority", b"localhost"),
        (":path", path.as_bytes()),
    ];
    fields.extend(parts.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())));
    two.send(&frame(HEADERS, END_HEADERS, stream, &block(&fields))).await;
    let body = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
    two.send(&frame(DATA, END_STREAM, stream, &body)).await;
}

fn run() -> Ask {
    Ask::run("assistant").field("message", "hi")
}

/// Reads until a stream is reset, or its answer is whole; says which, and how many bytes came.
async fn end(two: &mut Two, stream: u32) -> (bool, usize) {
    let mut bytes = 0;
    loop {
        let (kind, flags, on, payload) = two.frame().await.expect("the connection lives on");
        match (kind, on == stream) {
            (RST_STREAM, true) => return (true, bytes),
            (DATA, true) => {
                bytes += payload.len();
                if flags & END_STREAM != 0 {
                    return (false, bytes);
                }
            }
            (HEADERS, true) => assert_eq!(payload.first(), Some(&0x88), "`:status: 200`"),
            (_, _) => {}
        }
    }
}

/// The run that began then is given up in time, here and upstream; sooner or later its slot is free.
async fn given_up(stack: &Stack, began: Instant) {
    let line = stack.access_line("run").await;
    assert_eq!(line["code"], "client_closed", "{line}");
    stack.os().wait_for_abort(RUNS).await;
    assert!(began.elapsed() < WRITE_TIMEOUT + SLACK, "{:?}", began.elapsed());
    stack.wait_for_metric("tollbridge_runs_active", &[], 0.0).await;
}

/// A small answer comes whole.
async fn serves_on(two: &mut Two, stream: u32) {
    ask(two, stream, "next", Ask::get("/agents")).await;
    two.send(&grant(stream, 1 << 16)).await;
    let (reset, bytes) = end(two, stream).await;
    assert!(!reset && bytes > 0, "{bytes} bytes");
}

#[tokio::test]
async fn a_stream_without_window_is_reset_in_time_and_its_connection_serves_on() {
    let stack = talkative().await;
    let mut two = two(&stack, 0).await;
    for (stream, id, what) in [(1, "list", Ask::get("/teams")), (3, "run", run())] {
        let began = Instant::now();
        ask(&mut two, stream, id, what).await;
        assert_eq!(end(&mut two, stream).await, (true, 0), "{id}");
        let took = began.elapsed();
        assert!((WRITE_TIMEOUT..WRITE_TIMEOUT + SLACK).contains(&took), "{id}: {took:?}");
        if id == "run" {
            given_up(&stack, began).await;
        }
    }
    serves_on(&mut two, 5).await;
}

#[tokio::test]
async fn a_connection_without_window_costs_its_streams_only() {
    const WINDOW: usize = 65_535;
    let stack = talkative().await;
    let mut two = two(&stack, 1 << 20).await;
    let began = Instant::now();
    ask(&mut two, 1, "run", run()).await;
    // The window of the connection is what it begins with (RFC 9113 §6.9.2), and nobody adds to it.
    assert_eq!(end(&mut two, 1).await, (true, WINDOW));
    given_up(&stack, began).await;
    two.send(&grant(0, 1 << 20)).await;
    serves_on(&mut two, 3).await;
}

#[tokio::test]
async fn a_window_that_trickles_is_no_way_to_hold_a_run() {
    let stack = talkative().await;
    let mut two = two(&stack, 0).await;
    let began = Instant::now();
    ask(&mut two, 1, "run", run()).await;
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    let mut bytes = 0;
    loop {
        // The pace of the client; each grant is answered by a byte, or by the end.
        pace.tick().await;
        two.send(&grant(1, 1)).await;
        match two.frame().await.expect("the connection lives on") {
            (RST_STREAM, _, 1, _) => break,
            (DATA, _, 1, payload) => bytes += payload.len(),
            _ => {}
        }
        assert!(began.elapsed() < WRITE_TIMEOUT + SLACK, "{bytes} bytes in {:?}", began.elapsed());
    }
    assert!(bytes > 0);
    given_up(&stack, began).await;
    serves_on(&mut two, 3).await;
}

#[tokio::test]
async fn a_client_of_http2_that_reads_nothing_costs_the_gateway_little_and_is_served_when_it_reads() {
    /// What the socket of the gateway may hold by Linux' defaults, and room for its own buffers.
    const HELD_MAX: usize = 8 << 20;
    let stack = talkative().await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let stream = within("a connection", socket.connect(stack.address())).await.unwrap();
    let mut two = Two::over(stream, &initial_window(1 << 30)).await;
    two.send(&grant(0, 1 << 30)).await;
    let began = Instant::now();
    ask(&mut two, 1, "run", run()).await;
    given_up(&stack, began).await;
    let (reset, held) = end(&mut two, 1).await;
    assert!(reset && held < HELD_MAX, "{held} of {RUN_BYTES} bytes");
    serves_on(&mut two, 3).await;
}

#[tokio::test]
async fn a_client_of_http1_that_reads_nothing_is_given_up_and_reset_in_time() {
    let stack = talkative().await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let mut socket = within("a connection", socket.connect(stack.address())).await.unwrap();
    let began = Instant::now();
    socket.write_all(&whole_run().await).await.unwrap();
    // An end behind what is not read would not be seen, and what the kernel holds would stay with it for minutes.
    within("the reset", socket.ready(Interest::ERROR)).await.unwrap();
    given_up(&stack, began).await;
}

#[tokio::test]
async fn a_client_of_tls_that_reads_nothing_is_given_up_and_reset_in_time() {
    let (stack, _folder, roots) = with_tls_and(impatient).await;
    talk(&stack);
    let mut socket = tls(&stack, roots, &[b"http/1.1"]).await;
    let began = Instant::now();
    socket.write_all(&whole_run().await).await.unwrap();
    within("the reset", socket.get_ref().0.ready(Interest::ERROR)).await.unwrap();
    given_up(&stack, began).await;
}

/// A run as it goes over the wire.
async fn whole_run() -> Vec<u8> {
    let (parts, body) = Request::into_parts(run().by(&Who::alice()).header("x-request-id", "run").into_request());
    let body = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
    let mut head = format!("POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n", parts.uri, body.len());
    for (name, value) in parts.headers.iter().filter(|(name, _)| *name != http::header::CONTENT_LENGTH) {
        head += &format!("{name}: {}\r\n", value.to_str().unwrap());
    }
    [head.as_bytes(), b"\r\n", &body].concat()
}

#[tokio::test]
async fn a_websocket_that_reads_nothing_is_given_up_and_reset_in_time() {
    let stack = Stack::with(impatient(Settings::new())).await;
    let mut events = vec![Event::new("WorkflowStarted", json!({"run_id": "r"}))];
    let output = Event::new("StepOutput", json!({"run_id": "r", "content": "x".repeat(EVENT_BYTES)}));
    events.extend(vec![output; RUN_BYTES / EVENT_BYTES]);
    stack.os().pin("POST", "/workflows/daily-report/runs", Reply::sse(&events));
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let mut socket = known_over(within("a connection", socket.connect(stack.address())).await.unwrap()).await;
    let began = Instant::now();
    let start = json!({"action": "start-workflow", "workflow_id": "daily-report", "message": "hi"});
    socket.send(Message::text(start.to_string())).await.unwrap();
    // Its run goes on without it, as in AgentOS; what holds the socket does not.
    within("the reset", socket.get_ref().ready(Interest::ERROR)).await.unwrap();
    assert!(began.elapsed() < WRITE_TIMEOUT + SLACK, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_client_that_reads_no_heads_is_given_up_in_time() {
    let stack = talkative().await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let mut socket = within("a connection", socket.connect(stack.address())).await.unwrap();
    // Answers without a body, far more than sockets hold.
    let heads = "HEAD /agents HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    // While the gateway waits for its answers to be read, nothing is taken; then the connection is closed.
    while within("what the gateway takes, or the end", socket.write_all(heads.as_bytes())).await.is_ok() {}
    assert_eq!(stack.send(Ask::get("/agents").by(&Who::alice())).await.status, 200, "others are served");
}

#[tokio::test]
async fn a_connection_of_http2_has_room_for_the_bodies_of_all_its_streams() {
    const STREAMS_PER_CONNECTION: u32 = 10;
    let settings = Settings::new().set("[server]", "h2c", "true");
    let limit = STREAMS_PER_CONNECTION.to_string();
    let stack = Stack::with(settings.set("[server.limits]", "streams_per_connection", &limit)).await;
    let mut two = two(&stack, 1 << 16).await;
    let more = loop {
        let (kind, _, stream, payload) = two.frame().await.expect("the connection lives on");
        if (kind, stream) == (WINDOW_UPDATE, 0) {
            break u32::from_be_bytes(payload[..4].try_into().unwrap());
        }
    };
    // Each begins with 65,535 (RFC 9113 §6.9.2), the connection too: one that waits leaves room for the others.
    assert_eq!(more + 65_535, STREAMS_PER_CONNECTION * 65_535);
}
