//! Proves what stands before requests: who is at the other end, pages of other origins, compression, and the limits that
//! each connection and each body meets.

use std::io::Read as _;
use std::time::Duration;

use serde_json::json;

use crate::fake::{Event, Reply};
use crate::stack::{Ask, Raw, Settings, Stack, Who, within};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A PROXY protocol header that names a source.
fn proxied(source: [u8; 4]) -> Vec<u8> {
    [SIGNATURE, &[0x21, 0x11, 0, 12], &source, &[10, 0, 0, 1, 0x12, 0x34, 0, 80]].concat()
}

fn get(path: &str, who: &Who, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n{more}\r\n", who.token())
}

async fn address_of(stack: &Stack, id: &str) -> String {
    stack.access_line(id).await["client.address"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn trusted_load_balancers_name_the_caller_by_proxy_protocol() {
    let settings = Settings::new().set("[server]", "proxy_protocol", "{ from = [\"127.0.0.0/8\"] }");
    let stack = Stack::with(settings).await;
    let mut raw = stack.raw().await;
    let request = get("/agents", &Who::alice(), "X-Request-Id: one\r\n");
    raw.write([proxied([192, 0, 2, 7]), request.clone().into_bytes()].concat()).await;
    assert!(raw.answer().await.0.starts_with("HTTP/1.1 200 "));
    // The header stands once, at the beginning of the connection.
    raw.write(get("/agents", &Who::alice(), "X-Request-Id: two\r\n")).await;
    assert!(raw.answer().await.0.starts_with("HTTP/1.1 200 "));
    assert_eq!([address_of(&stack, "one").await, address_of(&stack, "two").await], ["192.0.2.7"; 2]);
    for bad in
        [request.into_bytes(), b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 80\r\n".to_vec(), [SIGNATURE, &[0x31]].concat()]
    {
        let mut raw = stack.raw().await;
        raw.write(bad).await;
        raw.finish().await;
        assert_eq!(raw.rest().await, "");
    }
    stack.wait_for_metric("tollbridge_heads_refused_total", &["reason=\"proxy_protocol\""], 3.0).await;
}

#[tokio::test]
async fn a_load_balancer_that_says_nothing_is_closed() {
    let settings = Settings::new().set("[server]", "proxy_protocol", "{ from = [\"127.0.0.1\"] }").set(
        "[server.limits]",
        "header_timeout",
        "\"200ms\"",
    );
    let stack = Stack::with(settings).await;
    let mut raw = stack.raw().await;
    raw.write(&SIGNATURE[..5]).await;
    assert_eq!(raw.rest().await, "");
}

#[tokio::test]
async fn a_stranger_s_proxy_header_is_a_malformed_request() {
    let stack = Stack::with(Settings::new().set("[server]", "proxy_protocol", "{ from = [\"10.0.0.0/8\"] }")).await;
    let request = get("/agents", &Who::alice(), "").into_bytes();
    let answer = stack.raw_exchange([proxied([192, 0, 2, 7]), request].concat()).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn trusted_proxies_forward_addresses_and_strangers_do_not() {
    let stack = Stack::with(Settings::new().set("[server]", "forwarded_for", "{ from = [\"127.0.0.1/32\"] }")).await;
    let ask = |id: &str| {
        let ask = Ask::get("/agents").by(&Who::alice()).header("x-request-id", id);
        ask.header("x-forwarded-for", "198.51.100.1, 192.0.2.9")
    };
    assert_eq!(stack.send(ask("a")).await.status, 200);
    assert_eq!(address_of(&stack, "a").await, "192.0.2.9");
    stack.configure(&Settings::new());
    stack.running.reload().await.unwrap();
    assert_eq!(stack.send(ask("b")).await.status, 200);
    assert_eq!(address_of(&stack, "b").await, "127.0.0.1");
}

#[tokio::test]
async fn the_flood_guard_sees_forwarded_addresses() {
    let settings = Settings::new().set("[server]", "forwarded_for", "{ from = [\"127.0.0.1\"] }").set(
        "[quota]",
        "flood",
        "{ per_hour = 1, burst = 1 }",
    );
    let stack = Stack::with(settings).await;
    let status = async |from: &str| {
        stack.send(Ask::get("/agents").by(&Who::alice()).header("x-forwarded-for", from)).await.status
    };
    assert_eq!([status("192.0.2.1").await, status("192.0.2.1").await, status("192.0.2.2").await], [200, 429, 200]);
}

fn with_cors() -> Settings {
    Settings::new().add(
        "[server.cors]",
        &[("allowed_origins", "[\"https://app.example.com\"]"), ("allowed_headers", "[\"X-Trace\"]")],
    )
}

fn preflight(path: &str, origin: &str) -> Ask {
    Ask::new("OPTIONS", path).header("origin", origin).header("access-control-request-method", "POST")
}

#[tokio::test]
async fn preflights_are_answered_on_both_doors_before_anybody_is_known() {
    let stack = Stack::with(with_cors()).await;
    for path in ["/agents/assistant/runs", "/mcp", "/mcp/readonly"] {
        let got = stack.send(preflight(path, "https://app.example.com")).await;
        assert_eq!((got.status, got.body.len()), (204, 0), "{got:?}");
        assert_eq!(got.header("access-control-allow-origin"), Some("https://app.example.com"));
        assert_eq!(got.header("access-control-max-age"), Some("600"));
        assert_eq!(got.header("access-control-allow-credentials"), None);
        let headers = got.header("access-control-allow-headers").unwrap();
        assert!(headers.contains("authorization") && headers.ends_with(", x-trace"), "{headers}");
        let refused = stack.send(preflight(path, "https://evil.example")).await;
        assert_eq!((refused.status, refused.header("access-control-allow-origin")), (403, None));
    }
    assert_eq!(stack.os().requests().len(), 0);
    // Without configuration there is no CORS at all.
    stack.configure(&Settings::new());
    stack.running.reload().await.unwrap();
    let got = stack.send(preflight("/agents", "https://app.example.com")).await;
    assert_eq!((got.status, got.header("access-control-allow-origin")), (405, None));
}

#[tokio::test]
async fn answers_name_the_page_that_may_read_them_and_nobody_else() {
    let stack = Stack::with(with_cors()).await;
    let wire = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\naccess-control-allow-origin: *\r\n\
        access-control-allow-credentials: true\r\ncontent-length: 2\r\n\r\n[]";
    stack.os().pin("GET", "/teams", Reply::raw(wire));
    let ask = |path: &str, origin: &str| Ask::get(path).by(&Who::alice()).header("origin", origin);
    let got = stack.send(ask("/teams", "https://app.example.com")).await;
    assert_eq!((got.status, got.header("access-control-allow-origin")), (200, Some("https://app.example.com")));
    assert_eq!((got.header("access-control-allow-credentials"), got.header("vary")), (None, Some("origin")));
    assert!(got.header("access-control-expose-headers").unwrap().contains("mcp-session-id"));
    let other = stack.send(ask("/teams", "https://evil.example")).await;
    assert_eq!((other.status, other.header("access-control-allow-origin")), (200, None));
    // A refusal is readable too, and a run stream.
    let refused = stack.send(Ask::get("/teams").header("origin", "https://app.example.com")).await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some("https://app.example.com")));
    // The MCP endpoint, which checks origins of its own, takes the same list.
    let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
    let mcp = |origin: &str| {
        Ask::post("/mcp").json(&ping).by(&Who::alice()).header("origin", origin).header("host", "127.0.0.1")
    };
    assert_ne!(stack.send(mcp("https://app.example.com")).await.status, 403);
    assert_eq!(stack.send(mcp("https://evil.example")).await.status, 403);
}

#[tokio::test]
async fn json_is_compressed_for_those_who_ask_and_streams_never_are() {
    let stack = Stack::start().await;
    let rows: Vec<_> = (0..200).map(|n| json!({ "id": format!("team-{n}"), "name": "a team" })).collect();
    stack.os().pin("GET", "/teams", Reply::json(200, &json!(rows)));
    let plain = stack.send(Ask::get("/teams").by(&Who::alice())).await;
    assert_eq!((plain.header("content-encoding"), plain.header("vary")), (None, Some("accept-encoding")));
    let got = stack.send(Ask::get("/teams").by(&Who::alice()).header("accept-encoding", "br, gzip")).await;
    assert_eq!((got.status, got.header("content-encoding")), (200, Some("gzip")));
    assert_eq!((got.header("content-length"), got.header("vary")), (None, Some("accept-encoding")));
    let mut text = String::new();
    flate2::read::GzDecoder::new(&*got.body).read_to_string(&mut text).unwrap();
    assert!(text == plain.text() && got.body.len() * 3 < text.len(), "{} of {}", got.body.len(), text.len());
    // Small answers, and streams of events.
    let small = stack.send(Ask::get("/sessions").by(&Who::alice()).header("accept-encoding", "gzip")).await;
    assert_eq!((small.status, small.header("content-encoding"), small.header("vary")), (200, None, None));
    let run = Ask::run("assistant").field("message", &"x".repeat(5000)).by(&Who::alice());
    let stream = stack.send(run.header("accept-encoding", "gzip")).await;
    assert_eq!((stream.status, stream.header("content-encoding")), (200, None));
    // HEAD has no body, but the head that GET has.
    stack.configure(&Settings::new().set("[server]", "compression", "\"off\""));
    stack.running.reload().await.unwrap();
    let off = stack.send(Ask::get("/teams").by(&Who::alice()).header("accept-encoding", "gzip")).await;
    assert_eq!((off.header("content-encoding"), off.header("vary")), (None, None));
}

fn limited(keys: &[(&str, &str)]) -> Settings {
    keys.iter().fold(Settings::new(), |settings, (key, value)| settings.set("[server.limits]", key, value))
}

#[tokio::test]
async fn one_address_holds_so_many_connections_and_gets_them_back() {
    let stack = Stack::with(limited(&[("connections_per_address", "2")])).await;
    let mut held = [stack.raw().await, stack.raw().await];
    for raw in &mut held {
        raw.write(get("/agents", &Who::alice(), "")).await;
        assert!(raw.answer().await.0.starts_with("HTTP/1.1 200 "));
    }
    let request = get("/agents", &Who::alice(), "Connection: close\r\n");
    assert_eq!(stack.raw_exchange(&request).await, "");
    stack.wait_for_metric("tollbridge_heads_refused_total", &["reason=\"too_many_connections\""], 1.0).await;
    drop(held);
    within("a place", async { while !stack.raw_exchange(&request).await.starts_with("HTTP/1.1 200 ") {} }).await;
}

#[tokio::test]
async fn a_head_has_so_many_fields() {
    let stack = Stack::with(limited(&[("header_fields", "10")])).await;
    let fields = |count: usize| (0..count).map(|n| format!("X-F-{n}: 1\r\n")).collect::<String>();
    let status = async |count: usize| {
        let answer =
            stack.raw_exchange(get("/agents", &Who::alice(), &format!("{}Connection: close\r\n", fields(count)))).await;
        answer[9..12].to_owned()
    };
    assert_eq!([status(7).await, status(8).await], ["200", "431"]);
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let stack = Stack::with(limited(&[("header_timeout", "\"200ms\"")])).await;
    let mut raw = stack.raw().await;
    assert_eq!(raw.rest().await, "");
    // Between requests a pause is fine.
    let mut raw = stack.raw().await;
    raw.write(get("/agents", &Who::alice(), "")).await;
    raw.answer().await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    raw.write(get("/agents", &Who::alice(), "")).await;
    assert!(raw.answer().await.0.starts_with("HTTP/1.1 200 "));
}

fn upload(length: usize) -> String {
    let who = Who::alice();
    format!(
        "POST /agents/assistant/runs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {length}\r\n\r\n",
        who.token()
    )
}

#[tokio::test]
async fn a_body_that_stops_is_given_up() {
    let stack = Stack::with(limited(&[("body_timeout", "\"300ms\"")])).await;
    let mut raw = stack.raw().await;
    raw.write(upload(1000) + "message=").await;
    let answer = raw.rest().await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("request_timeout"), "{answer}");
    assert_eq!(stack.os().requests().len(), 0);
}

#[tokio::test]
async fn a_message_over_mcp_that_stops_is_given_up() {
    let stack = Stack::with(limited(&[("body_timeout", "\"300ms\"")])).await;
    let mut raw = stack.raw().await;
    let token = Who::alice().token();
    raw.write(format!(
        "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
         Content-Length: 100\r\n\r\n{{"
    ))
    .await;
    let answer = raw.rest().await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[tokio::test]
async fn a_body_that_trickles_is_given_up() {
    let stack = Stack::with(limited(&[("body_timeout", "\"500ms\""), ("body_bytes_per_second", "\"10KiB\"")])).await;
    let mut raw = stack.raw().await;
    raw.write(upload(100_000) + "message=").await;
    let trickle = async {
        loop {
            raw.write("x").await;
            if let Some(answer) = raw.try_rest().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let answer = within("the end of a trickle", trickle).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") || answer.is_empty(), "{answer}");
    assert_eq!(stack.os().requests().len(), 0);
}

#[tokio::test]
async fn operations_have_limits_of_their_own() {
    let stack =
        Stack::with(Settings::new().add("[server.limits.operations]", &[("create_agent_run", "\"1KiB\"")])).await;
    let status = async |path: &str, bytes: usize| {
        let ask = Ask::post(path).field("message", &"x".repeat(bytes)).field("stream", "false").by(&Who::alice());
        stack.send(ask).await.status
    };
    assert_eq!(status("/agents/assistant/runs", 900).await, 200);
    assert_eq!(status("/agents/assistant/runs", 1100).await, 413);
    assert_eq!(status("/teams/newsroom/runs", 1100).await, 200);
}

#[tokio::test]
async fn a_reader_who_stops_reading_is_given_up() {
    let stack = Stack::with(limited(&[("write_timeout", "\"300ms\"")])).await;
    let content = "x".repeat(16 << 10);
    let event = Event::new("RunContent", json!({ "run_id": "r-1", "content": content }));
    stack.os().pin("POST", "/agents/assistant/runs", Reply::sse(&vec![event; 2000]));
    let mut raw: Raw = stack.raw().await;
    let request = upload("message=hi".len()).replacen("Host: a", "Host: a\r\nX-Request-Id: slow", 1);
    raw.write(request + "message=hi").await;
    // Nobody reads: the buffers of both systems fill, and then the deadline runs.
    let line = stack.access_line("slow").await;
    assert_eq!(line["code"], "client_closed", "{line}");
}
