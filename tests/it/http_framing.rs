//! Proves that bytes which two parsers could read differently are refused, and that a connection stays in step.

use crate::stack::{Raw, Settings, Stack, Who};

/// The lines that make a request to the gateway a good one.
fn good() -> String {
    format!("Host: gateway\r\nAuthorization: Bearer {}\r\n", Who::alice().token())
}

#[tokio::test]
async fn ambiguous_heads_are_refused_and_nothing_reaches_upstream() {
    let stack = Stack::start().await;
    let good = good();
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let post = format!("POST /agents/assistant/runs HTTP/1.1\r\n{good}{form}");
    let smuggled = format!("0\r\n\r\nGET /agents HTTP/1.1\r\n{good}\r\n");
    let get = |line: &str| format!("GET /agents HTTP/1.1\r\n{good}{line}\r\n\r\n");
    let mut cases = vec![
        ("CL and TE", format!("{post}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{smuggled}")),
        ("TE and CL", format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n{smuggled}")),
        ("two lengths", format!("{post}Content-Length: 5\r\nContent-Length: 6\r\n\r\n{smuggled}")),
        ("the same length twice", format!("{post}Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello")),
        ("a list of lengths", format!("{post}Content-Length: 5, 5\r\n\r\nhello")),
        ("TE in HTTP/1.0", format!("{}Transfer-Encoding: chunked\r\n\r\n{smuggled}", post.replace("1.1", "1.0"))),
        ("two TEs", format!("{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n{smuggled}")),
        ("HTTP/0.9", "GET /agents\r\n\r\n".to_owned()),
        ("HTTP/1.2", get("").replace("HTTP/1.1", "HTTP/1.2")),
        ("HTTP/3.0", get("").replace("HTTP/1.1", "HTTP/3.0")),
        ("a leading line break", format!("\r\n{}", get("X: y"))),
        ("LF only", get("X: y").replace("\r\n", "\n")),
        ("one LF", get("X: y\nZ: w")),
        ("one CR", get("X: y\rZ: w")),
        ("a folded line", get("X: y\r\n folded")),
        ("a NUL", get("X: y\0z")),
        ("space before the colon", get("X : y")),
        ("no colon", get("X")),
        ("no name", get(": y")),
        ("two hosts", get("Host: other")),
        ("no host", get("").replace("Host: gateway\r\n", "")),
        ("absolute form", get("").replace("/agents", "http://gateway/agents")),
        ("asterisk form", get("").replace("GET /agents", "OPTIONS *")),
        ("TRACE", get("").replace("GET", "TRACE")),
        ("CONNECT", get("").replace("GET /agents", "CONNECT gateway:80")),
        ("PROPFIND", get("").replace("GET", "PROPFIND")),
        ("lower case", get("").replace("GET", "get")),
        ("a fragment", get("").replace("/agents", "/agents#x")),
        ("a space in the target", get("").replace("/agents", "/agents x")),
        ("PROXY protocol", format!("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n{}", get(""))),
    ];
    for length in ["+5", "-5", "0x5", "5 5", "", "5;", "18446744073709551621"] {
        cases.push(("an odd length", format!("{post}Content-Length: {length}\r\n\r\nhello")));
    }
    for encoding in
        ["xchunked", "chunked, identity", "identity", "gzip, chunked", "chunked;q=1", "\"chunked\"", "\x0bchunked", ""]
    {
        cases.push(("an odd encoding", format!("{post}Transfer-Encoding: {encoding}\r\n\r\n{smuggled}")));
    }
    for host in ["", "a/b", "a?b", "a b", "a,b", "u@a", "a:port", "a:99999", "[::1", "a\\b", "a#b", ":80"] {
        cases.push(("an odd host", get("").replace("Host: gateway", &format!("Host: {host}"))));
    }
    let count = cases.len();
    for (what, request) in cases {
        let answer = stack.raw_exchange(&request).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer:?}");
        assert!(answer.contains("\"code\":\"bad_head\""), "{what}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{what}: more than one answer: {answer:?}");
    }
    assert_eq!(stack.os().requests(), []);
    let refused = stack.metric_sum("tollbridge_heads_refused_total", &[]).await;
    assert_eq!(refused, f64::from(u32::try_from(count).unwrap()));
}

#[tokio::test]
async fn malformed_chunks_never_become_a_run() {
    let stack = Stack::start().await;
    let post = format!(
        "POST /agents/assistant/runs HTTP/1.1\r\n{}Content-Type: application/x-www-form-urlencoded\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
        good()
    );
    for chunks in [
        "a\r\nmessage=hiXX0\r\n\r\n",
        "zz\r\nmessage=hi\r\n0\r\n\r\n",
        "-a\r\nmessage=hi\r\n0\r\n\r\n",
        "0xa\r\nmessage=hi\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nmessage=hi\r\n0\r\n\r\n",
    ] {
        let mut raw = stack.raw().await;
        raw.write(format!("{post}{chunks}")).await;
        raw.finish().await;
        let answer = raw.rest().await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{chunks:?}: {answer:?}");
    }
    assert_eq!(stack.os().requests(), []);
}

#[tokio::test]
async fn nothing_behind_a_chunked_body_is_read_as_a_request() {
    let stack = Stack::start().await;
    let good = good();
    let post = format!(
        "POST /agents/assistant/runs HTTP/1.1\r\n{good}Content-Type: application/x-www-form-urlencoded\r\n\
         Transfer-Encoding: chunked\r\n\r\n17\r\nmessage=hi&stream=false\r\n"
    );
    let hidden = format!("GET /agents/records HTTP/1.1\r\n{good}\r\n");
    // The library reads a size without a digit as the last chunk; another parser would go on.
    for end in ["0\r\n\r\n", "\r\n\r\n", ";x\r\n\r\n", " \r\n\r\n"] {
        let mut raw = stack.raw().await;
        raw.write(format!("{post}{end}{hidden}")).await;
        let answers = raw.rest().await;
        assert!(answers.matches("HTTP/1.1 ").count() <= 1, "{end:?}: {answers}");
        assert!(answers.is_empty() || answers.to_lowercase().contains("\r\nconnection: close\r\n"), "{answers}");
    }
    assert_eq!(stack.os().requests_to("/agents/records"), []);
}

#[tokio::test]
async fn chunk_extensions_and_trailers_do_not_pass() {
    let stack = Stack::start().await;
    let post = format!(
        "POST /agents/assistant/runs HTTP/1.1\r\n{}Content-Type: application/x-www-form-urlencoded\r\n\
         Transfer-Encoding: chunked\r\nTrailer: X-User-Id\r\n\r\n",
        good()
    );
    let mut raw = stack.raw().await;
    raw.write(format!("{post}17;ext=\"1\"\r\nmessage=hi&stream=false\r\n0\r\nX-User-Id: globex~eve\r\n\r\n")).await;
    let (head, _) = raw.answer().await;
    // Either the whole request is refused, or the trailer is dropped.
    if head.starts_with("HTTP/1.1 200 ") {
        let seen = stack.os().requests_to("/agents/assistant/runs");
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].header("x-user-id"), seen[0].form().get("user_id")), (None, Some("acme~alice")));
    } else {
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
        assert_eq!(stack.os().requests(), []);
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let stack = Stack::start().await;
    let body = "message=first&stream=false";
    let good = good();
    let requests = [
        format!("GET /agents/assistant HTTP/1.1\r\n{good}X-Request-Id: one\r\n\r\n"),
        format!(
            "POST /agents/assistant/runs HTTP/1.1\r\n{good}X-Request-Id: two\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
        format!("GET /nowhere HTTP/1.1\r\n{good}X-Request-Id: three\r\n\r\n"),
        format!("GET /health HTTP/1.1\r\n{good}X-Request-Id: four\r\n\r\n"),
    ];
    let mut raw = stack.raw().await;
    raw.write(requests.concat()).await;
    let mut seen = Vec::new();
    for _ in &requests {
        let (head, body) = raw.answer().await;
        let id = head.to_lowercase().split("x-request-id: ").nth(1).unwrap().split("\r\n").next().unwrap().to_owned();
        seen.push((id, head[9..12].to_owned(), body.contains("echo: first")));
    }
    let expected = [("one", "200", false), ("two", "200", true), ("three", "404", false), ("four", "200", false)];
    assert_eq!(seen, expected.map(|(id, status, echo)| (id.to_owned(), status.to_owned(), echo)));
}

#[tokio::test]
async fn a_slow_head_is_closed_at_its_deadline() {
    let stack = Stack::with(Settings::new().set("[server.limits]", "header_timeout", "\"200ms\"")).await;
    let answer = stack.raw_exchange("GET /agents HTTP/1.1\r\nHost: gate").await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\"code\":\"request_timeout\""), "{answer}");
    // One byte at a time does not buy more time.
    let mut raw = stack.raw().await;
    raw.write("GET /agents HTTP/1.1\r\nX: ").await;
    let answer = crate::stack::within("the deadline", async {
        loop {
            raw.write("x").await;
            if let Some(answer) = raw.try_rest().await {
                return answer;
            }
        }
    });
    let answer = answer.await;
    assert!(answer.starts_with("HTTP/1.1 408 ") || answer.is_empty(), "{answer}");
    assert_eq!(stack.metric("tollbridge_heads_refused_total{reason=\"slow\"}").await, 2.0);
    assert_eq!(stack.os().requests(), []);
}

#[tokio::test]
async fn an_oversized_head_is_refused() {
    let stack = Stack::with(Settings::new().set("[server.limits]", "header_bytes", "\"2KiB\"")).await;
    let head = |line: &str| format!("GET /agents HTTP/1.1\r\n{}{line}\r\n\r\n", good());
    let many = (0..101).map(|n| format!("X-{n}: 1")).collect::<Vec<_>>().join("\r\n");
    for (what, request) in [
        ("one long field", head(&format!("X: {}", "x".repeat(2048)))),
        ("many fields", head(&many)),
        ("a long target", head("").replace("/agents", &format!("/agents?{}", "x".repeat(2048)))),
        ("an endless field", head(&format!("X: {}", "x".repeat(64 << 10))).trim_end().to_owned()),
    ] {
        let answer = stack.raw_exchange(request).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{what}: {answer}");
        assert!(answer.contains("\"code\":\"head_too_large\""), "{what}: {answer}");
    }
    assert_eq!(stack.os().requests(), []);
}

/// Sends a request and then another one on the same connection, if that is still open.
async fn next_is_answered(raw: &mut Raw) -> String {
    raw.write(format!("GET /health HTTP/1.1\r\n{}\r\n", good())).await;
    raw.answer().await.0
}

#[tokio::test]
async fn a_connection_serves_on_after_a_refusal() {
    let stack = Stack::start().await;
    let good = good();
    let body = format!("message={}", "x".repeat(20_000));
    let form = format!("Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n", body.len());
    for (what, request, status) in [
        ("without body", format!("GET /nowhere HTTP/1.1\r\n{good}\r\n"), "404"),
        ("body unread", format!("POST /nowhere HTTP/1.1\r\n{good}{form}\r\n{body}"), "404"),
        (
            "body read",
            format!("POST /agents/assistant/runs HTTP/1.1\r\n{good}{form}\r\n{body}&evil=1")
                .replace(&format!("Content-Length: {}", body.len()), &format!("Content-Length: {}", body.len() + 7)),
            "400",
        ),
        ("wrong method", format!("DELETE /agents HTTP/1.1\r\n{good}\r\n"), "405"),
        (
            "unauthenticated, body unread",
            format!("POST /agents/assistant/runs HTTP/1.1\r\nHost: a\r\n{form}\r\n{body}"),
            "401",
        ),
    ] {
        let mut raw = stack.raw().await;
        raw.write(request).await;
        let (head, _) = raw.answer().await;
        assert_eq!(&head[9..12], status, "{what}: {head}");
        let head = next_is_answered(&mut raw).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{what}: {head}");
    }
    assert_eq!(stack.os().requests(), []);
}

#[tokio::test]
async fn the_body_of_a_refused_request_is_never_read_as_a_request() {
    let stack = Stack::start().await;
    let good = good();
    let hidden = format!("GET /agents/assistant HTTP/1.1\r\n{good}\r\n");
    let mut raw = stack.raw().await;
    raw.write(format!("POST /nowhere HTTP/1.1\r\n{good}Content-Length: {}\r\n\r\n{hidden}", hidden.len())).await;
    assert_eq!(&raw.answer().await.0[9..12], "404");
    assert!(next_is_answered(&mut raw).await.starts_with("HTTP/1.1 200 "));
    // Nor where its length is not known before its end.
    let mut raw = stack.raw().await;
    let head = format!("POST /nowhere HTTP/1.1\r\n{good}Transfer-Encoding: chunked\r\n\r\n");
    raw.write(format!("{head}{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len())).await;
    raw.finish().await;
    let answers = raw.rest().await;
    assert!(answers.starts_with("HTTP/1.1 404 "), "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{answers}");
    assert_eq!(stack.os().requests(), []);
}

#[tokio::test]
async fn methods_that_no_operation_has_are_not_passed_on() {
    let stack = Stack::start().await;
    for method in ["HEAD", "OPTIONS"] {
        for path in ["/agents", "/agents/assistant/runs", "/health"] {
            let mut raw = stack.raw().await;
            raw.write(format!("{method} {path} HTTP/1.1\r\n{}Connection: close\r\n\r\n", good())).await;
            let answer = raw.rest().await;
            assert!(answer.starts_with("HTTP/1.1 405 "), "{method} {path}: {answer}");
            assert!(answer.to_lowercase().contains("\r\nallow: "), "{method} {path}: {answer}");
            let has_body = answer.split("\r\n\r\n").nth(1).is_some_and(|body| !body.is_empty());
            assert_eq!(has_body, method != "HEAD", "{method} {path}: {answer}");
        }
    }
    assert_eq!(stack.os().requests(), []);
}

#[tokio::test]
async fn a_caller_who_expects_100_is_asked_for_the_body() {
    let stack = Stack::start().await;
    let body = "message=hi&stream=false";
    let mut raw = stack.raw().await;
    raw.write(format!(
        "POST /agents/assistant/runs HTTP/1.1\r\n{}Content-Type: application/x-www-form-urlencoded\r\n\
         Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        good(),
        body.len()
    ))
    .await;
    let interim = raw.until("\r\n\r\n").await;
    assert!(interim.starts_with("HTTP/1.1 100 "), "{interim}");
    raw.write(body).await;
    let (head, answer) = raw.answer().await;
    assert!(head.starts_with("HTTP/1.1 200 ") && answer.contains("echo: hi"), "{head}{answer}");
}

#[tokio::test]
async fn an_upgrade_outside_of_the_websocket_route_is_no_tunnel() {
    let stack = Stack::start().await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let hidden = format!("GET /agents/records HTTP/1.1\r\n{}\r\n", good());
    for upgrade in
        [upgrade, "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"]
    {
        let mut raw = stack.raw().await;
        raw.write(format!("GET /agents/assistant HTTP/1.1\r\n{}{upgrade}\r\n{hidden}", good())).await;
        let (head, _) = raw.answer().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(!head.to_lowercase().contains("upgrade"), "{head}");
    }
    for request in stack.os().requests() {
        assert_eq!((request.header("upgrade"), request.header("http2-settings")), (None, None));
    }
}
