//! Proves that streams pass event by event, end when they should, and are accounted for once.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fake::{Event, Reply};
use crate::stack::{Ask, Settings, Stack, Who};

const RUNS: &str = "/agents/assistant/runs";

fn event(name: &str) -> Event {
    Event::new(name, json!({"run_id": "r-1", "session_id": "s-1", "content": name}))
}

fn events() -> Vec<Event> {
    ["RunStarted", "RunContent", "ToolCallStarted", "RunCompleted"].map(event).into()
}

fn stream() -> Ask {
    Ask::run("assistant").field("message", "hi").by(&Who::alice())
}

/// The data of the last event of a stream, which must be an error event.
fn error_of(text: &str) -> Value {
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    let data =
        last.strip_prefix("event: error\ndata: ").unwrap_or_else(|| panic!("no error event at the end of {text:?}"));
    serde_json::from_str(data).unwrap()
}

#[tokio::test]
async fn each_event_arrives_before_the_next_is_sent() {
    let stack = Stack::start().await;
    let (reply, gate) = Reply::paced_sse(&events());
    stack.os().script(reply);
    // The head comes before there is any event.
    let mut flow = stack.open(stream()).await;
    assert_eq!(flow.status(), 200);
    let header = |name: &str| flow.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(header("content-type").as_deref(), Some("text/event-stream; charset=utf-8"));
    assert_eq!(header("x-accel-buffering").as_deref(), Some("no"));
    assert_eq!(header("cache-control").as_deref(), Some("no-cache"));
    for event in events() {
        gate.open_once();
        assert_eq!(flow.until("\n\n").await, event.to_wire());
    }
    assert_eq!(flow.rest().await, (String::new(), true));
}

#[tokio::test]
async fn a_caller_who_leaves_a_stream_is_noticed_upstream() {
    let stack = Stack::start().await;
    let (reply, gate) = Reply::paced_sse(&events());
    stack.os().script(reply);
    let mut flow = stack.open(stream().header("x-request-id", "left")).await;
    gate.open_once();
    flow.until("RunStarted").await;
    drop(flow);
    stack.os().wait_for_abort(RUNS).await;
    let line = stack.access_line("left").await;
    assert_eq!((&line["code"], &line["run_id"]), (&json!("client_closed"), &json!("r-1")), "{line}");
}

#[tokio::test]
async fn a_caller_who_leaves_before_the_head_is_noticed_upstream() {
    let stack = Stack::start().await;
    stack.os().pin("GET", "/sessions/s-1/runs", Reply::never());
    stack.os().pin("POST", RUNS, Reply::never());
    let head = format!("Host: a\r\nAuthorization: Bearer {}\r\n", Who::alice().token());
    let form = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 10\r\n\r\nmessage=hi";
    for (path, request) in [
        ("/sessions/s-1/runs", format!("GET /sessions/s-1/runs HTTP/1.1\r\n{head}\r\n")),
        (RUNS, format!("POST {RUNS} HTTP/1.1\r\n{head}{form}")),
    ] {
        let mut raw = stack.raw().await;
        raw.write(request).await;
        stack.os().wait_for_request(path, 1).await;
        drop(raw);
        stack.os().wait_for_abort(path).await;
    }
    stack.wait_for_metric("tollbridge_in_flight", &["door=\"http\""], 0.0).await;
    assert_eq!(stack.metric_sum("tollbridge_requests_total", &["code=\"client_closed\""]).await, 2.0);
}

#[tokio::test]
async fn a_run_without_stream_outlives_its_caller() {
    let stack = Stack::start().await;
    let row = json!({"run_id": "r-1", "content": "done", "metrics": {"input_tokens": 3, "output_tokens": 2}});
    let (reply, gate) = Reply::json(200, &row).stalled();
    stack.os().pin("POST", RUNS, reply);
    let body = "message=hi&stream=false";
    let mut raw = stack.raw().await;
    raw.write(format!(
        "POST {RUNS} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nX-Request-Id: gone\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
        Who::alice().token(),
        body.len()
    ))
    .await;
    stack.os().wait_for_request(RUNS, 1).await;
    drop(raw);
    // AgentOS goes on with such a run, whoever waits: it must stay on our books until it ends.
    gate.open();
    let seen =
        stack.os().wait_for("the end of the run", |seen| seen.iter().any(|r| r.path() == RUNS && r.answered)).await;
    assert!(seen.iter().all(|request| !request.aborted));
    let line = stack.access_line("gone").await;
    assert_eq!((&line["code"], &line["run_id"]), (&json!("ok"), &json!("r-1")), "{line}");
    stack.wait_for_metric("tollbridge_runs_active", &[], 0.0).await;
}

#[tokio::test]
async fn a_broken_stream_ends_in_an_error_event() {
    let settings = Settings::new().set("[clusters.timeouts]", "stream_idle", "\"100ms\"");
    let stack = Stack::with(settings).await;
    let begun = [event("RunStarted"), event("RunContent")];
    let (silent, gate) = Reply::paced_sse(&events());
    gate.open_once();
    for (what, reply, code) in [
        ("a reset", Reply::broken_sse(&begun), "upstream_reset"),
        ("a cut inside an event", Reply::truncated_sse(&begun), "upstream_reset"),
        ("an early end", Reply::sse(&begun), "upstream_reset"),
        ("silence", silent, "upstream_timeout"),
    ] {
        stack.os().script(reply);
        let (text, _) = stack.open(stream().header("x-request-id", &what.replace(' ', "-"))).await.rest().await;
        assert!(text.starts_with(&begun[0].to_wire()), "{what}: {text}");
        assert!(!text.contains("RunCompleted"), "{what}: {text}");
        let expected = json!({"event": "error", "code": code, "run_id": "r-1", "retry": false});
        assert_eq!(error_of(&text), expected, "{what}: {text}");
        let line = stack.access_line(&what.replace(' ', "-")).await;
        assert_eq!((&line["code"], &line["stage"]), (&json!(code), &json!("forward")), "{what}: {line}");
    }
    // The silent one is left: AgentOS must not go on for nobody.
    stack.os().wait_for_abort(RUNS).await;
}

#[tokio::test]
async fn a_stream_lives_no_longer_than_it_may() {
    let settings = Settings::new().set("[clusters.timeouts]", "stream_idle", "\"150ms\"").set(
        "[clusters.timeouts]",
        "stream_max",
        "\"150ms\"",
    );
    let stack = Stack::with(settings).await;
    let (reply, gate) = Reply::paced_sse(&events());
    stack.os().script(reply);
    gate.open_once();
    let (text, _) = stack.open(stream()).await.rest().await;
    assert_eq!(error_of(&text)["code"], "upstream_timeout");
    stack.os().wait_for_abort(RUNS).await;
}

#[tokio::test]
async fn a_head_that_does_not_come_is_a_timeout() {
    let stack = Stack::with(Settings::new().set("[clusters.timeouts]", "response_header", "\"50ms\"")).await;
    stack.os().pin("POST", RUNS, Reply::never());
    stack.os().pin("GET", "/sessions/s-1/runs", Reply::never());
    for ask in [stream(), stream().field("stream", "false"), Ask::get("/sessions/s-1/runs").by(&Who::alice())] {
        let got = stack.send(ask).await;
        assert_eq!((got.status, got.code()), (504, "upstream_timeout".to_owned()), "{got:?}");
    }
    assert_eq!(stack.os().requests_to(RUNS).len(), 2, "a run was sent again");
}

#[tokio::test]
async fn a_stream_ends_with_the_token_that_began_it() {
    let stack = Stack::with(Settings::new().set("[identity]", "stream_grace", "\"0s\"")).await;
    let (reply, gate) = Reply::paced_sse(&events());
    stack.os().script(reply);
    let who = Who::alice().ttl(Duration::from_secs(2));
    let mut flow = stack.open(Ask::run("assistant").field("message", "hi").by(&who)).await;
    gate.open_once();
    flow.until("RunStarted").await;
    let (text, clean) = flow.rest().await;
    assert!(clean, "{text}");
    assert_eq!(error_of(&text), json!({"event": "error", "code": "token_expired", "run_id": "r-1", "retry": false}));
    stack.os().wait_for_abort(RUNS).await;
}

#[tokio::test]
async fn a_stream_outlives_its_token_by_the_grace() {
    let stack = Stack::with(Settings::new().set("[identity]", "stream_grace", "\"1h\"")).await;
    let (reply, gate) = Reply::paced_sse(&events());
    stack.os().script(reply);
    let who = Who::alice().ttl(Duration::from_secs(1));
    let mut flow = stack.open(Ask::run("assistant").field("message", "hi").by(&who)).await;
    gate.open_once();
    flow.until("RunStarted").await;
    // The token is dead once new requests with it are refused.
    let token = who.token();
    crate::stack::within("the end of the token", async {
        while stack.send(Ask::get("/agents").bearer(&token)).await.status != 401 {}
    })
    .await;
    gate.open();
    let (text, clean) = flow.rest().await;
    assert!(clean && text.contains("RunCompleted") && !text.contains("event: error"), "{text}");
}

#[tokio::test]
async fn every_exchange_is_told_once() {
    let stack = Stack::start().await;
    let asks = [
        ("streamed", stream(), "ok"),
        ("whole", stream().field("stream", "false"), "ok"),
        ("list", Ask::get("/agents").by(&Who::alice()), "ok"),
        ("cached", Ask::get("/agents").by(&Who::alice()), "ok"),
        ("upstream-404", Ask::get("/agents/nobody").by(&Who::alice()), "ok"),
        ("refused", Ask::get("/agents"), "unauthenticated"),
        ("unknown", Ask::get("/nowhere").by(&Who::alice()), "operation_unknown"),
        ("health", Ask::get("/health"), "ok"),
    ];
    let count = asks.len();
    for (id, ask, code) in asks {
        stack.open(ask.header("x-request-id", id)).await.rest().await;
        let line = stack.access_line(id).await;
        assert_eq!(line["code"], code, "{id}: {line}");
    }
    stack.wait_for_metric("tollbridge_requests_total", &[], f64::from(u32::try_from(count).unwrap())).await;
    let text = std::fs::read_to_string(stack.folder().join("access.jsonl")).unwrap();
    assert_eq!(text.lines().count(), count, "{text}");
    assert_eq!(stack.metric_sum("tollbridge_in_flight", &[]).await, 0.0);
    for (kind, tokens) in [("kind=\"input\"", 6.0), ("kind=\"output\"", 4.0)] {
        let labels = ["tenant=\"acme\"", "model=\"fake\"", kind];
        assert_eq!(stack.metric_sum("tollbridge_tokens_total", &labels).await, tokens, "{kind}");
    }
    let line = stack.access_line("streamed").await;
    assert_eq!(line["gen_ai.usage.input_tokens"], json!(3), "{line}");
    assert!(
        line["run_id"].is_string() && line["tenant"] == "acme" && line["operation"] == "create_agent_run",
        "{line}"
    );
    assert!(!text.contains("message") && !text.contains("eyJ"), "a prompt or a token is in the log: {text}");
}
