//! Proves that a drain costs nothing that is in flight: streams of both protocols and calls over MCP end by themselves,
//! and what would never end is ended at once.

use std::net::SocketAddr;

use http::Version;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::fake::{Event, FakeAgentOs, Gate, Reply};
use crate::mcp_client::{Era, McpClient, Messages, Told};
use crate::stack::{Ask, Settings, Stack, Who, open_at, within};

const RUNS: &str = "/agents/assistant/runs";

/// A run whose events wait for the test.
fn paced() -> (Reply, Gate) {
    let of =
        |name: &str, content: Value| Event::new(name, json!({"run_id": "r", "session_id": "s", "content": content}));
    Reply::paced_sse(&[
        of("RunStarted", json!("")),
        of("RunContent", json!("the ")),
        of("RunContent", json!("end")),
        of("RunCompleted", json!("the end")),
    ])
}

/// The drain has begun: nobody listens any more.
async fn closed(address: SocketAddr) {
    within("the end of the listener", async { while TcpStream::connect(address).await.is_ok() {} }).await;
}

#[tokio::test]
async fn mcp_calls_end_by_themselves_when_the_process_drains() {
    for era in Era::ALL {
        let stack = Stack::start().await;
        let (reply, gate) = paced();
        stack.os().pin("POST", RUNS, reply);
        let client = McpClient::of(&stack, era, &Who::alice()).await;
        let call = |token| {
            let arguments = json!({"agent": "assistant", "kind": "agent", "message": "hi"});
            client.calling("run_agent", arguments, token)
        };
        // One that has said nothing yet, and one whose progress is under way.
        let (address, silent) = (stack.address(), call(None));
        let mut calls = JoinSet::new();
        calls.spawn(async move { Messages::of(open_at(address, silent).await).last().await });
        within("the first run", async {
            while stack.os().requests_to(RUNS).is_empty() {
                tokio::task::yield_now().await
            }
        })
        .await;
        gate.open_once();
        gate.open_once();
        let told = call(Some("p"));
        let mut speaking = Messages::of(open_at(address, told).await);
        assert_eq!(speaking.next().await.unwrap()["method"], "notifications/progress", "{era:?}");
        let mut draining = JoinSet::new();
        draining.spawn(stack.running.drain());
        closed(address).await;
        gate.open();
        for last in [speaking.last().await, calls.join_next().await.unwrap().unwrap()] {
            let told = Told::of(&last);
            assert_eq!((told.is_error, told.text.lines().next()), (false, Some("the end")), "{era:?}: {last}");
        }
        let left = within("the drain", draining.join_next()).await.unwrap().unwrap();
        assert_eq!(left, 0, "{era:?}");
    }
}

#[tokio::test]
async fn a_listening_stream_ends_when_the_process_drains() {
    let stack = Stack::start().await;
    let client = McpClient::legacy(&stack, &Who::alice()).await;
    let address = stack.address();
    let mut stream = Messages::of(open_at(address, client.bare("GET").header("accept", "text/event-stream")).await);
    let mut draining = JoinSet::new();
    draining.spawn(stack.running.drain());
    within("the end of the stream", async { while stream.next().await.is_some() {} }).await;
    assert_eq!(within("the drain", draining.join_next()).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn streams_of_both_protocols_end_by_themselves_when_the_process_drains() {
    let fake = FakeAgentOs::start().await;
    let settings = Settings::new().set("[server]", "h2c", "true").set("[clusters.health]", "interval", "\"100ms\"");
    let stack = Stack::over(&[fake.url()], settings).await;
    let (reply, gate) = paced();
    fake.pin("POST", RUNS, reply);
    let address = stack.address();
    let run = || Ask::run("assistant").field("message", "hi").by(&Who::alice());
    let mut first = open_at(address, run()).await;
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut sender, connection) = within("a handshake", http2::handshake(TokioExecutor::new(), stream)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(connection.await) });
    let request = |target: &str| {
        let request = run().into_request();
        let (mut parts, body): (_, Full<bytes::Bytes>) = request.into_parts();
        parts.uri = format!("http://localhost{target}").parse().unwrap();
        parts.version = Version::HTTP_2;
        parts.headers.remove("host");
        http::Request::from_parts(parts, body)
    };
    let second = within("a head", sender.send_request(request(RUNS))).await.unwrap();
    gate.open_once();
    first.until("RunStarted").await;
    let mut draining = JoinSet::new();
    draining.spawn(stack.running.drain());
    closed(address).await;
    // What is under way asks which endpoints answer.
    let probes = fake.requests_to("/health").len();
    fake.wait_for_request("/health", probes + 2).await;
    gate.open();
    let (rest, clean) = first.rest().await;
    assert!(clean && rest.contains("RunCompleted") && !rest.contains("event: error"), "{rest}");
    let body = within("the second stream", second.into_body().collect()).await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&body);
    assert!(text.contains("RunCompleted") && !text.contains("event: error"), "{text}");
    // The connection was told that it takes nothing new, and ends with its last stream.
    within("the end of the connection", tasks.join_next()).await.unwrap().unwrap();
    assert_eq!(within("the drain", draining.join_next()).await.unwrap().unwrap(), 0);
}
