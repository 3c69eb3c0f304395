//! Owns the proof that the admin listener answers probes, guards the rest, and lets no connection linger.

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::gateway::{Correct, Unsteerable, UsageLine};
use crate::secret::Secret;
use crate::telemetry;

struct Fixed(Result<(), String>);

impl Readiness for Fixed {
    fn ready(&self) -> Result<(), String> {
        self.0.clone()
    }
}

/// A configuration that cannot be read.
struct Broken;

impl Reloading for Broken {
    fn reload(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Err("config.toml:3:1: unknown key".to_owned()) })
    }
}

/// Says back what it is asked.
struct Steered;

impl Steering for Steered {
    fn show<'a>(&'a self, tenant: &'a str, plan: Option<&'a str>) -> BoxFuture<'a, Result<Value, Unsteerable>> {
        Box::pin(async move {
            match tenant {
                "acme" => Ok(json!({"tenant": tenant, "plan": plan})),
                _ => Err(Unsteerable::NotFound(format!("no plan applies to tenant `{tenant}`"))),
            }
        })
    }

    fn correct<'a>(
        &'a self,
        tenant: &'a str,
        _: Option<&'a str>,
        correct: Correct,
    ) -> BoxFuture<'a, Result<Value, Unsteerable>> {
        Box::pin(async move { Ok(json!({"tenant": tenant, "did": format!("{correct:?}")})) })
    }

    fn usage<'a>(
        &'a self,
        tenant: Option<&'a str>,
        from: Option<&'a str>,
        _: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<UsageLine>, Unsteerable>> {
        let text = |text: Option<&str>| text.unwrap_or("all").to_owned();
        let line = UsageLine {
            day: text(from),
            tenant: text(tenant),
            agent: "main/agents/a".into(),
            model: "the \"m\"".into(),
            runs: 1,
            input_tokens: 2,
            output_tokens: 3,
            price_millionths: 4,
        };
        Box::pin(
            async move { if from == Some("later") { Err(Unsteerable::Store("lost".into())) } else { Ok(vec![line]) } },
        )
    }
}

#[tokio::test]
async fn quotas_are_shown_corrected_and_exported() {
    let state = state(Some("a-token-of-this-gateway"), Ok(()));
    let token = "authorization: Bearer a-token-of-this-gateway\r\n";
    let ask = async |line: &str, fields: &str| {
        let request = format!("{line} HTTP/1.1\r\nhost: 127.0.0.1:9090\r\n{fields}connection: close\r\n\r\n");
        let answer = exchange(Arc::clone(&state), request).await;
        (status(&answer).to_owned(), body(&answer).to_owned())
    };
    let said = async |line: &str| ask(line, token).await;
    assert_eq!(said("GET /quota/acme?plan=pro").await, ("200".into(), r#"{"tenant":"acme","plan":"pro"}"#.into()));
    let did = |text: &str| ("200".to_owned(), format!(r#"{{"tenant":"acme","did":"{text}"}}"#));
    assert_eq!(said("POST /quota/acme/reset").await, did("Reset"));
    assert_eq!(said("POST /quota/acme/grant?tokens=1_000").await, did("Grant(Tokens, 1000)"));
    assert_eq!(said("POST /quota/acme/grant?money_millionths=5").await, did("Grant(Money, 5)"));
    let names = "day,tenant,agent,model,runs,input_tokens,output_tokens,price_millionths\r\n";
    let csv = format!("{names}\"all\",\"acme\",\"main/agents/a\",\"the \"\"m\"\"\",1,2,3,4\r\n");
    assert_eq!(said("GET /usage?tenant=acme&format=csv").await, ("200".into(), csv));
    assert!(said("GET /usage").await.1.contains(r#""input_tokens":2"#));
    for (line, fields, code) in [
        ("GET /quota/acme", "", "401"),
        ("POST /quota/acme/reset", "", "401"),
        ("GET /quota/nobody", token, "404"),
        ("GET /quota/", token, "404"),
        ("GET /quota/acme/reset", token, "405"),
        ("POST /usage", token, "405"),
        ("POST /quota/acme/grant", token, "400"),
        ("POST /quota/acme/grant?tokens=1&money_millionths=1", token, "400"),
        ("GET /usage?format=xml", token, "400"),
        ("GET /usage?from=later", token, "503"),
    ] {
        assert_eq!(ask(line, fields).await.0, code, "{line}");
    }
    for (line, allow) in [("GET /quota/acme/reset", "POST"), ("POST /usage", "GET"), ("GET /reload", "POST")] {
        let request = format!("{line} HTTP/1.1\r\nhost: localhost\r\n{token}connection: close\r\n\r\n");
        let answer = exchange(Arc::clone(&state), request).await;
        assert!(answer.contains(&format!("allow: {allow}\r\n")), "{answer}");
    }
    let from_a_page = format!("{token}origin: https://evil.example\r\n");
    assert_eq!(ask("POST /quota/acme/reset", &from_a_page).await.0, "403");
}

fn state(token: Option<&str>, ready: Result<(), &str>) -> Arc<AdminState> {
    let off = telemetry::Settings {
        access_log: telemetry::LogTarget::Off,
        audit_log: telemetry::LogTarget::Off,
        audit_failure: telemetry::AuditFailure::Continue,
    };
    Arc::new(AdminState {
        token: Arc::new(ArcSwapOption::from_pointee(token.map(Secret::new))),
        telemetry: Telemetry::new(off, []).unwrap(),
        readiness: Arc::new(Fixed(ready.map_err(str::to_owned))),
        steering: Arc::new(Steered),
        reloading: Arc::new(Broken),
    })
}

/// Sends raw bytes on a connection of its own and returns everything that came back until it closed.
async fn exchange(state: Arc<AdminState>, request: impl Into<String>) -> String {
    let request = request.into();
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let talk = async {
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    };
    tokio::join!(serve_connection(server, state), talk).1
}

async fn get(state: &Arc<AdminState>, path: &str, fields: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1:9090\r\n{fields}connection: close\r\n\r\n");
    exchange(Arc::clone(state), request).await
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("closed")
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

#[tokio::test]
async fn probes_are_answered_without_a_token_and_without_reasons() {
    for token in [None, Some("t0ken")] {
        let ready = state(token, Ok(()));
        assert_eq!(body(&get(&ready, "/healthz", "").await), "alive\n");
        assert_eq!(body(&get(&ready, "/readyz", "").await), "ready\n");
    }
    let answer = get(&state(Some("t0ken"), Err("draining")), "/readyz", "").await;
    assert_eq!((status(&answer), body(&answer)), ("503", "not ready\n"));
    assert!(answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
    let answer = get(&state(None, Err("draining")), "/readyz", "").await;
    assert_eq!(body(&answer), "not ready: draining\n");
    let answer = get(&state(Some("t0ken"), Err("draining")), "/readyz", "authorization: Bearer t0ken\r\n").await;
    assert_eq!(body(&answer), "not ready: draining\n");
}

#[tokio::test]
async fn metrics_need_the_token_where_one_is_set() {
    let open = get(&state(None, Ok(())), "/metrics", "").await;
    assert!(open.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{open}");
    assert!(body(&open).contains("\ntollbridge_build_info{version="), "{open}");
    let guarded = state(Some("t0ken"), Ok(()));
    for good in ["authorization: Bearer t0ken\r\n", "authorization: bearer t0ken\r\n"] {
        assert_eq!(status(&get(&guarded, "/metrics", good).await), "200", "{good}");
    }
    let twice = "authorization: Bearer t0ken\r\nauthorization: Bearer t0ken\r\n";
    for bad in
        ["", "authorization: Bearer t0ke\r\n", "authorization: Basic t0ken\r\n", "authorization: t0ken\r\n", twice]
    {
        let answer = get(&guarded, "/metrics", bad).await;
        assert_eq!(status(&answer), "401", "{bad}");
        assert!(answer.contains("www-authenticate: Bearer realm=\"tollbridge-admin\"\r\n"), "{answer}");
        assert!(!answer.contains("tollbridge_"), "{answer}");
    }
    assert_eq!(status(&get(&guarded, "/metrics?token=t0ken", "").await), "401");
}

#[tokio::test]
async fn everything_else_is_a_problem() {
    let state = state(None, Ok(()));
    for path in ["/", "/metrics/", "//metrics", "/METRICS", "/agents", "/../metrics", "/%6detrics"] {
        assert_eq!(status(&get(&state, path, "").await), "404", "{path}");
    }
    let answer = get(&state, "/console", "x-request-id: r-1\r\n").await;
    let expected = json!({
        "type": "about:blank", "title": "Not found", "status": 404, "code": "not_found", "request_id": "r-1",
        "detail": "the admin listener serves /metrics, /healthz, /readyz, /reload, /quota/{tenant} and /usage",
    });
    assert_eq!(serde_json::from_str::<Value>(body(&answer)).unwrap(), expected);
    for method in ["POST", "DELETE", "OPTIONS", "TRACE", "BREW"] {
        let request = format!("{method} /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let answer = exchange(Arc::clone(&state), request).await;
        assert_eq!(status(&answer), "405", "{method}");
        assert!(answer.contains("allow: GET, HEAD\r\n"), "{answer}");
    }
    let head = "HEAD /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let answer = exchange(Arc::clone(&state), head).await;
    assert_eq!((status(&answer), body(&answer)), ("200", ""));
}

#[tokio::test]
async fn only_addresses_and_localhost_are_a_host() {
    let state = state(None, Ok(()));
    let ask = |fields: &str| {
        exchange(Arc::clone(&state), format!("GET /metrics HTTP/1.1\r\n{fields}connection: close\r\n\r\n"))
    };
    for good in ["127.0.0.1", "127.0.0.1:9090", "10.1.2.3:80", "localhost", "LOCALHOST:9090", "[::1]", "[::1]:9090"] {
        assert_eq!(status(&ask(&format!("host: {good}\r\n")).await), "200", "{good}");
    }
    let names =
        ["evil.test", "evil.test:9090", "localhost.evil.test", "127.0.0.1.evil.test", "2130706433", "0x7f.1", "127.1"];
    for name in names {
        assert_eq!(status(&ask(&format!("host: {name}\r\n")).await), "403", "{name}");
    }
    for malformed in [
        "",
        "host: localhost:\r\n",
        "host: localhost:x\r\n",
        "host: [::1\r\n",
        "host: [::1]x\r\n",
        "host: ::1\r\n",
        "host: localhost\r\nhost: localhost\r\n",
    ] {
        assert_eq!(status(&ask(malformed).await), "400", "{malformed}");
    }
    let absolute = "GET http://localhost/metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    assert_eq!(status(&exchange(Arc::clone(&state), absolute).await), "400");
}

#[tokio::test]
async fn oversized_heads_are_not_served() {
    let state = state(None, Ok(()));
    let many = (0..65).map(|n| format!("x-{n}: 1\r\n")).collect::<String>();
    for fields in [format!("x: {}\r\n", "a".repeat(17 * 1024)), many] {
        assert_eq!(status(&get(&state, "/metrics", &fields).await), "431", "{}", fields.len());
    }
}

#[tokio::test]
async fn a_body_is_not_read() {
    let request = "GET /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000000\r\n\r\nabc";
    assert_eq!(status(&exchange(state(None, Ok(())), request).await), "200");
}

#[tokio::test]
async fn a_slow_head_and_an_endless_connection_are_closed() {
    let (soon, late) = (Duration::from_millis(20), Duration::from_secs(60));
    for timeouts in [Timeouts { head: soon, connection: late }, Timeouts { head: late, connection: soon }] {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        client.write_all(b"GET /metrics HTTP/1.1\r\nhost: loc").await.unwrap();
        serve_within(server, state(None, Ok(())), timeouts).await;
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        assert!(!rest.contains("tollbridge_"), "{rest}");
    }
}
