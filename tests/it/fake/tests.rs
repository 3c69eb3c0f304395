//! Owns the proof that the fake does what it says: a fixture that lies by accident hides faults.
//! Does not test the gateway.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Event, FakeAgentOs, PATIENCE, Reply};

/// Sends raw bytes and returns everything until the fake closes.
async fn ask(os: &FakeAgentOs, request: &str) -> String {
    let mut stream = TcpStream::connect(os.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(wanted) {
        let mut buffer = [0; 1024];
        let length = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert_ne!(length, 0, "the fake closed before `{wanted}`; it sent {seen:?}");
        seen.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    seen
}

#[tokio::test]
async fn fake_records_what_it_was_asked_and_keeps_the_given_run_id() {
    let os = FakeAgentOs::start().await;
    let body = "message=hi+there&stream=false&run_id=r-7";
    let answer = ask(
        &os,
        &format!(
            "POST /agents/assistant/runs?x=1 HTTP/1.1\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ),
    )
    .await;
    assert!(answer.contains(r#""content":"echo: hi there""#), "{answer}");
    assert!(answer.contains(r#""run_id":"r-7""#), "{answer}");
    let seen = os.requests_to("/agents/assistant/runs");
    assert_eq!(seen[0].query(), "x=1");
    assert_eq!(seen[0].form().get("message"), Some("hi there"));
}

#[tokio::test]
async fn fake_reads_multipart_forms_in_chunks() {
    let os = FakeAgentOs::start().await;
    let body = "--b\r\nContent-Disposition: form-data; name=\"message\"\r\n\r\nhello\r\n--b\r\n\
                Content-Disposition: form-data; name=\"stream\"\r\n\r\nfalse\r\n--b--\r\n";
    let answer = ask(
        &os,
        &format!(
            "POST /teams/newsroom/runs HTTP/1.1\r\ncontent-type: multipart/form-data; boundary=b\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        ),
    )
    .await;
    assert!(answer.contains(r#""content":"echo: hello""#), "{answer}");
    let form = os.requests()[0].form();
    assert_eq!(form.to_map(), [("message", "hello"), ("stream", "false")].into());
}

#[tokio::test]
async fn paced_events_leave_one_by_one() {
    let os = FakeAgentOs::start().await;
    let (reply, gate) = Reply::paced_sse(&[Event::new("First", json!({})), Event::new("Second", json!({}))]);
    os.script(reply);
    let mut stream = TcpStream::connect(os.address()).await.unwrap();
    stream.write_all(b"GET /x HTTP/1.1\r\n\r\n").await.unwrap();
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert!(!head.contains("First"), "{head}");
    gate.open_once();
    let first = read_until(&mut stream, "First").await;
    assert!(!first.contains("Second"), "{first}");
    gate.open();
    read_until(&mut stream, "0\r\n\r\n").await;
    os.wait_for("the answer", |seen| seen[0].answered).await;
}

#[tokio::test]
async fn a_caller_who_leaves_is_noticed_while_the_reply_waits() {
    let os = FakeAgentOs::start().await;
    os.pin("GET", "/x", Reply::never());
    let mut stream = TcpStream::connect(os.address()).await.unwrap();
    stream.write_all(b"GET /x HTTP/1.1\r\n\r\n").await.unwrap();
    os.wait_for_request("/x", 1).await;
    drop(stream);
    os.wait_for_abort("/x").await;
}

#[tokio::test]
async fn lies_go_out_as_they_stand() {
    let os = FakeAgentOs::start().await;
    let request = "GET /x HTTP/1.1\r\n\r\n";
    os.script(Reply::short_body(100, "{}"));
    assert!(ask(&os, request).await.ends_with("content-length: 100\r\n\r\n{}"));
    os.script(Reply::truncated_sse(&[Event::new("RunStarted", json!({}))]));
    assert!(ask(&os, request).await.ends_with("\"cut o"));
    os.script(Reply::closed_at_once());
    assert_eq!(ask(&os, request).await, "");
    os.script(Reply::crash());
    assert!(ask(&os, request).await.starts_with("HTTP/1.1 500 "));
}

#[tokio::test]
async fn a_reset_reaches_the_caller_as_an_error() {
    let os = FakeAgentOs::start().await;
    os.script(Reply::reset_after_head());
    let mut stream = TcpStream::connect(os.address()).await.unwrap();
    stream.write_all(b"GET /x HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let error = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn probes_never_take_a_scripted_reply() {
    let os = FakeAgentOs::start().await;
    os.script(Reply::detail(503, "scripted"));
    assert!(ask(&os, "GET /health HTTP/1.1\r\n\r\n").await.contains(r#""status":"ok""#));
    assert!(ask(&os, "GET /agents HTTP/1.1\r\n\r\n").await.contains("scripted"));
    assert!(ask(&os, "GET /agents HTTP/1.1\r\n\r\n").await.contains("assistant"));
}

#[tokio::test]
async fn a_paused_run_leaves_an_approval_that_can_be_resolved_once() {
    let os = FakeAgentOs::start().await;
    let form =
        "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 26\r\n\r\nmessage=42&run_id=r&a=0000";
    let events = ask(&os, &format!("POST /agents/records/runs HTTP/1.1\r\n{form}")).await;
    assert!(events.contains("event: RunPaused"), "{events}");
    let resolve = "POST /approvals/approval-r/resolve HTTP/1.1\r\ncontent-length: 21\r\n\r\n{\"status\":\"approved\"}";
    assert!(ask(&os, resolve).await.contains(r#""status":"approved""#));
    assert!(ask(&os, resolve).await.starts_with("HTTP/1.1 409 "));
}
