//! Proves that every refusal is reached over real HTTP with its status, code and headers, and keeps the table of them
//! in a golden file. Set `UPDATE_GOLDEN=1` to write it anew.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::json;
use tollbridge::config::{Env as _, ProcessEnv};
use tollbridge::gateway::Code;

use crate::fake::{Event, FakeAgentOs, Line, Reply};
use crate::stack::{Ask, Got, Settings, Stack, Who, assert_every_code};

/// Codes that no request reaches, each with the reason.
const NOT_REACHED: [(&str, &str); 7] = [
    ("request_timeout", "sent before there is an exchange: see `http_framing`"),
    ("approval_pending", "the guard on `continue` is not built yet"),
    ("approval_rejected", "the guard on `continue` is not built yet"),
    ("already_continued", "the guard on `continue` is not built yet"),
    ("cancel_unconfirmed", "`cancels.rs` waits for it"),
    ("internal", "stands for a fault of ours"),
    ("draining", "only sent while more runs are detached than the process takes"),
];

/// What was reached so far.
#[derive(Default)]
struct Reached(BTreeSet<&'static str>);

impl Reached {
    /// Checks that an answer is this refusal, in every part of it.
    fn check(&mut self, code: &str, got: &Got) {
        let row = Code::ALL.iter().map(|code| code.row()).find(|row| row.code == code).unwrap();
        let body = got.json();
        let said = (got.status, body["code"].as_str(), body["status"].as_u64(), body["title"].as_str());
        assert_eq!(said, (row.status, Some(row.code), Some(u64::from(row.status)), Some(row.title)), "{code}: {got:?}");
        assert_eq!(got.header("content-type"), Some("application/problem+json"), "{code}");
        assert_eq!(body["type"], format!("urn:tollbridge:problem:{code}"), "{code}");
        assert!(body["detail"].is_string(), "{code}: {body}");
        assert_eq!(got.header("x-request-id"), body["request_id"].as_str(), "{code}");
        assert_eq!(body["help"].as_str(), row.help, "{code}");
        assert_eq!(got.header("www-authenticate").is_some(), row.status == 401, "{code}: {got:?}");
        assert_eq!(got.header("allow").is_some(), row.status == 405, "{code}: {got:?}");
        let waits = got.header("retry-after").map(|seconds| seconds.parse::<u64>().unwrap());
        assert_eq!(waits.is_some_and(|seconds| seconds >= 1), matches!(row.status, 429 | 503), "{code}: {got:?}");
        for name in ["ratelimit", "ratelimit-policy"] {
            assert!(row.status != 429 || got.header(name).is_some(), "{code}: {name} is missing: {got:?}");
        }
        assert_eq!(body["limit"].is_object(), row.status == 429, "{code}: {body}");
        self.0.insert(row.code);
    }
}

#[tokio::test]
async fn every_refusal_is_reached_over_http() {
    let mut reached = Reached::default();
    of_the_request(&mut reached).await;
    of_the_body(&mut reached).await;
    of_limits(&mut reached).await;
    of_upstream(&mut reached).await;

    assert_every_code(&reached.0, &NOT_REACHED);
}

async fn of_the_request(reached: &mut Reached) {
    let stack = Stack::before(vec![FakeAgentOs::start_as(Line::V2).await], Settings::new()).await;
    let alice = Who::alice();
    let expired = Who::alice().token_at(SystemTime::now() - Duration::from_secs(7200));
    stack.os().pin(
        "GET",
        "/sessions/theirs",
        Reply::json(200, &json!({"session_id": "theirs", "user_id": "globex~eve"})),
    );
    let searches = json!({"id": "daily-report", "steps": [{"agent": {"knowledge": {"db_id": "d"}}}]});
    stack.os().pin("GET", "/workflows/daily-report", Reply::json(200, &searches));
    let cases = [
        ("path_not_canonical", Ask::get("/agents/a%2Fb").by(&alice)),
        ("credential_ambiguous", Ask::get("/agents").by(&alice).by(&alice)),
        ("unauthenticated", Ask::get("/agents")),
        ("token_expired", Ask::get("/agents").bearer(&expired)),
        ("knowledge_shared", Ask::post("/workflows/daily-report/runs").field("message", "hi").by(&alice)),
        ("forbidden", Ask::plain_run().by(&Who::new("bob").role("viewer"))),
        ("operation_unknown", Ask::get("/nowhere").by(&alice)),
        ("operation_unsupported", Ask::post("/agents/assistant/runs/r/resume").field("session_id", "s").by(&alice)),
        ("cluster_unknown", Ask::get("/agents").header("tollbridge-cluster", "other").by(&alice)),
        ("not_found", Ask::get("/sessions/theirs").by(&alice)),
        ("method_not_allowed", Ask::new("PUT", "/agents").by(&alice)),
        ("bad_head", Ask::get("/agents").by(&alice).header("host", "a/b")),
        ("head_too_large", Ask::get("/agents").by(&alice).header("x-long", &"x".repeat(40 << 10))),
    ];
    for (code, ask) in cases {
        let got = stack.send(ask).await;
        reached.check(code, &got);
        let allow = got.header("allow").map(str::to_owned);
        assert_eq!(allow.as_deref(), (code == "method_not_allowed").then_some("GET"), "{code}");
    }
    assert_eq!(stack.os().requests_to("/agents"), []);
}

async fn of_the_body(reached: &mut Reached) {
    let settings = Settings::new().set("[server.limits]", "json_body_bytes", "\"1KiB\"");
    let stack = Stack::with(settings).await;
    let alice = Who::alice();
    let late = format!(
        "--b\r\nContent-Disposition: form-data; name=\"files\"; filename=\"f\"\r\n\r\n{}\r\n--b\r\n\
         Content-Disposition: form-data; name=\"message\"\r\n\r\nhi\r\n--b--\r\n",
        "x".repeat(200 << 10)
    );
    let search = Ask::post("/knowledge/search");
    let cases = [
        ("field_not_allowed", Ask::plain_run().field("temperature", "2")),
        ("field_duplicated", Ask::plain_run().field("message", "again")),
        ("field_too_late", Ask::run("assistant").body("multipart/form-data; boundary=b", late)),
        ("form_malformed", search.clone().body("application/json", "{")),
        ("body_too_large", search.clone().json(&json!({"query": "x".repeat(2 << 10)}))),
        ("media_type_unsupported", search.body("text/plain", "{}")),
    ];
    for (code, ask) in cases {
        reached.check(code, &stack.send(ask.by(&alice)).await);
    }
    let answered: Vec<_> =
        stack.os().requests().into_iter().filter(|request| !request.aborted && request.answered).collect();
    assert_eq!(answered, []);
}

async fn of_limits(reached: &mut Reached) {
    let stack = Stack::with(Settings::new().set("[quota]", "flood", "{ per_minute = 1, burst = 1 }")).await;
    stack.send(Ask::get("/agents").by(&Who::alice())).await;
    reached.check("flood", &stack.send(Ask::get("/agents").by(&Who::alice())).await);

    let plan = |plan: &'static str, key: &'static str, value: &'static str| {
        let rest = ["requests", "concurrent_runs", "tokens"].into_iter().filter(move |other| *other != key);
        let settings = Settings::new().set("[quota]", "default_plan", &format!("{plan:?}"));
        let section = format!("[plans.{plan}]");
        let settings = rest.fold(settings, |settings, other| settings.set(&section, other, "\"unlimited\""));
        settings.set(&section, key, value)
    };
    let stack = Stack::with(plan("rate", "requests", "{ per_minute = 1, burst = 1 }")).await;
    stack.send(Ask::get("/agents").by(&Who::alice())).await;
    reached.check("rate_limited", &stack.send(Ask::get("/agents").by(&Who::alice())).await);

    let stack = Stack::with(plan("runs", "concurrent_runs", "1")).await;
    let (reply, gate) = Reply::paced_sse(&[Event::new("RunStarted", json!({})), Event::new("RunCompleted", json!({}))]);
    stack.os().script(reply);
    let mut first = stack.open(Ask::run("assistant").field("message", "hi").by(&Who::alice())).await;
    gate.open_once();
    first.until("RunStarted").await;
    reached.check("too_many_runs", &stack.send(Ask::plain_run().by(&Who::alice())).await);

    let stack = Stack::with(plan("budget", "tokens", "{ per_day = 5 }")).await;
    assert_eq!(stack.send(Ask::plain_run().by(&Who::alice())).await.status, 200);
    reached.check("budget_exhausted", &stack.send(Ask::plain_run().by(&Who::alice())).await);
}

async fn of_upstream(reached: &mut Reached) {
    let settings = || Settings::new().set("[clusters.health]", "interval", "\"5m\"");
    let stack = Stack::with(settings().set("[clusters.timeouts]", "response_header", "\"50ms\"")).await;
    for (code, reply) in [
        ("upstream_reset", Reply::reset_at_once()),
        ("upstream_invalid", Reply::garbage()),
        ("upstream_timeout", Reply::never()),
    ] {
        stack.os().script(reply);
        reached.check(code, &stack.send(Ask::plain_run().by(&Who::alice())).await);
    }

    // A replica that dies between two probes, then stays away.
    let os = FakeAgentOs::start().await;
    let stack = Stack::over(&[os.url()], settings()).await;
    drop(os);
    reached.check("upstream_unreachable", &stack.send(Ask::plain_run().by(&Who::alice())).await);

    let os = FakeAgentOs::start().await;
    let url = os.url();
    drop(os);
    let stack = Stack::over(&[url], Settings::new()).await;
    reached.check("no_endpoint", &stack.send(Ask::plain_run().by(&Who::alice())).await);

    // Keys that cannot be fetched say nothing about the token: try again later.
    let issuer = &[
        ("issuer", "\"https://other.test\""),
        ("audiences", "[\"tollbridge\"]"),
        ("algorithms", "[\"RS256\"]"),
        ("jwks_url", "\"http://127.0.0.1:1/keys\""),
        ("tenants", "[\"globex\"]"),
    ];
    let settings =
        Settings::new().set("[[identity.issuers]]", "tenants", "[\"acme\"]").add("[[identity.issuers]]", issuer);
    let stack = Stack::with(settings).await;
    let part = |json: serde_json::Value| {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json.to_string())
    };
    let claims = json!({"iss": "https://other.test", "aud": "tollbridge", "sub": "eve", "tenant": "globex", "exp": 4_000_000_000_u64});
    let token = format!("{}.{}.{}", part(json!({"alg": "RS256", "kid": "k"})), part(claims), part(json!("signature")));
    reached.check("overloaded", &stack.send(Ask::get("/agents").bearer(&token)).await);
}

#[test]
fn the_refusal_table_is_the_golden_one() {
    let mut table = String::from("# code | status | log level | title | detail | help\n");
    for row in Code::ALL.iter().map(|code| code.row()) {
        let help = row.help.unwrap_or("-");
        let loudness = format!("{:?}", row.loudness).to_lowercase();
        writeln!(table, "{} | {} | {loudness} | {} | {} | {help}", row.code, row.status, row.title, row.detail)
            .unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/refusals.txt");
    if ProcessEnv.var("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(table == golden, "the refusal table changed; run with UPDATE_GOLDEN=1 if it should:\n{table}");
}
