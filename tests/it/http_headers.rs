//! Proves which headers pass: none that carry identity go up, none of the hop or the server come down.

use std::collections::BTreeSet;

use crate::fake::Reply;
use crate::stack::{Ask, Stack, Who};

/// The only headers that upstream ever sees.
const UP: [&str; 7] =
    ["accept", "accept-language", "authorization", "content-length", "content-type", "host", "traceparent"];

#[tokio::test]
async fn no_header_of_the_caller_but_the_allowed_ones_reaches_upstream() {
    let stack = Stack::start().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let lines = [
        "X-User-Id: globex~eve",
        "X_User_Id: globex~eve",
        "x-USER-id: again",
        "X-Tenant: globex",
        "X-Tenant-Id: globex",
        "X-Agno-User: eve",
        "X-Forwarded-User: eve",
        "X-Forwarded-For: 10.0.0.1",
        "X-Forwarded-Host: evil",
        "X-Forwarded-Proto: https",
        "Forwarded: for=10.0.0.1",
        "X-Real-IP: 10.0.0.1",
        "X-Original-URL: /os/config",
        "X-Rewrite-URL: /os/config",
        "X-HTTP-Method-Override: DELETE",
        "Cookie: session=1",
        "Via: 1.1 somewhere",
        "TE: trailers",
        "Proxy-Authorization: Basic eDp5",
        "Connection: keep-alive, X-Tenant, Authorization, Host",
        "Keep-Alive: timeout=5",
        "Tollbridge-Cluster: main",
        "X-Request-Id: theirs",
        "User-Agent: test",
        "Accept: application/json",
        "Accept-Language: de",
        "Accept-Encoding: gzip, br",
    ];
    let lines = lines.join("\r\n");
    let token = Who::alice().token();
    let good = format!("Host: gateway\r\nAuthorization: Bearer {token}\r\n{lines}\r\ntraceparent: {trace}\r\n");
    let body = "message=hi&stream=false";
    let form = format!("Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n", body.len());
    let mut raw = stack.raw().await;
    raw.write(format!("GET /agents/assistant HTTP/1.1\r\n{good}\r\n")).await;
    assert_eq!(&raw.answer().await.0[9..12], "200");
    raw.write(format!("POST /agents/assistant/runs HTTP/1.1\r\n{good}{form}\r\n{body}")).await;
    assert_eq!(&raw.answer().await.0[9..12], "200");

    let seen = stack.os().requests();
    assert_eq!(seen.len(), 2);
    let allowed: BTreeSet<String> = UP.map(str::to_owned).into();
    for request in &seen {
        let names: BTreeSet<String> = request.headers.iter().map(|(name, _)| name.to_lowercase()).collect();
        assert!(names.is_subset(&allowed), "{names:?}");
        assert_eq!(request.header("host"), Some(stack.os().address().to_string().as_str()));
        assert_eq!(request.header("traceparent"), Some(trace));
        assert_eq!(request.header("accept-language"), Some("de"));
        let everything = format!("{request:?}");
        assert!(!everything.contains(&token), "the caller's token went upstream: {everything}");
        assert!(!everything.contains("eve"), "{everything}");
    }
    // A run is the caller's, and so is its token upstream.
    assert_eq!(seen[1].claims()["sub"], "acme~alice");
    assert_eq!(seen[1].claims()["aud"], "my-os");
}

#[tokio::test]
async fn no_header_of_the_server_or_the_hop_comes_down() {
    let stack = Stack::start().await;
    let wire = "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\nvary: Origin\r\n\
                access-control-allow-origin: *\r\nset-cookie: a=b\r\nx-powered-by: agno\r\nkeep-alive: timeout=5\r\n\
                connection: keep-alive, x-internal\r\nx-internal: 1\r\nx-request-id: upstream\r\nvia: 1.1 x\r\n\
                content-type: application/json\r\ncontent-disposition: inline\r\ncontent-length: 2\r\n\r\n{}";
    stack.os().pin("GET", "/sessions/s-1/runs", Reply::raw(wire));
    let got = stack.send(Ask::get("/sessions/s-1/runs").by(&Who::alice())).await;
    assert_eq!(got.status, 200, "{got:?}");
    let names: BTreeSet<&str> = got.headers.keys().map(http::HeaderName::as_str).collect();
    let allowed = BTreeSet::from([
        "content-type",
        "content-disposition",
        "content-length",
        "x-request-id",
        "date",
        "ratelimit",
        "ratelimit-policy",
        "connection",
    ]);
    assert!(names.is_subset(&allowed), "{names:?}");
    assert_ne!(got.header("x-request-id"), Some("upstream"));
}

#[tokio::test]
async fn a_request_id_is_kept_when_it_is_plain_and_minted_when_not() {
    let stack = Stack::start().await;
    let long = "x".repeat(65);
    for (given, kept) in [
        (Some("abc-DEF-123"), true),
        (Some("a b"), false),
        (Some("a\"b"), false),
        (Some(long.as_str()), false),
        (Some(""), false),
        (None, false),
    ] {
        let mut ask = Ask::get("/agents").by(&Who::alice());
        if let Some(given) = given {
            ask = ask.header("x-request-id", given);
        }
        let got = stack.send(ask).await;
        let id = got.header("x-request-id").unwrap();
        assert_eq!(Some(id) == given, kept, "{given:?} became {id}");
        assert!(kept || uuid::Uuid::parse_str(id).is_ok(), "{given:?} became {id}");
    }
    let twice =
        stack.send(Ask::get("/agents").by(&Who::alice()).header("x-request-id", "a").header("x-request-id", "b")).await;
    assert!(twice.header("x-request-id").is_some());
}

#[tokio::test]
async fn an_upstream_that_splits_its_head_is_refused() {
    let stack = Stack::start().await;
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 2\r\n\r\n{{}}", "x".repeat(200 << 10));
    for (what, wire) in [
        ("two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{} ".to_owned()),
        ("a NUL", "HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 2\r\n\r\n{}".to_owned()),
        ("no status", "HTTP/1.1 OK\r\ncontent-length: 2\r\n\r\n{}".to_owned()),
        ("a switch of protocols", "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n".to_owned()),
        ("a long head", long),
    ] {
        stack.os().pin("GET", "/sessions/s-1/runs", Reply::raw(wire).and_close());
        let got = stack.send(Ask::get("/sessions/s-1/runs").by(&Who::alice())).await;
        assert_eq!(got.status, 502, "{what}: {got:?}");
        assert!(["upstream_invalid", "upstream_reset"].contains(&got.code().as_str()), "{what}: {got:?}");
    }
}
