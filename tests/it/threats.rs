//! Proves that `docs/threat-model.md` is whole and true: no line is missing, and every test that it names exists.
//! Also holds the tests of lines that have no better home.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::json;

use crate::fake::Reply;
use crate::stack::{AGENTOS_KEY, Ask, CALLER_KEY, Stack, Who};

/// Lines that there are.
const LINES: usize = 109;
/// Lines that a test must prove.
const PROVEN_MIN: usize = 107;

/// A line of the document: its number and what stands under `proof`.
fn lines() -> BTreeMap<usize, String> {
    let text = std::fs::read_to_string(root().join("docs/threat-model.md")).unwrap();
    let cells = text.lines().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    let rows = cells.filter_map(|cells| Some((cells.get(1)?.parse().ok()?, (*cells.get(4)?).to_owned())));
    let rows: Vec<(usize, String)> = rows.collect();
    let count = rows.len();
    let rows: BTreeMap<usize, String> = rows.into_iter().collect();
    assert_eq!(rows.len(), count, "a number stands twice");
    rows
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Names of all test functions.
fn tests() -> BTreeSet<String> {
    fn walk(folder: &Path, found: &mut BTreeSet<String>) {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match path.extension().and_then(|extension| extension.to_str()) {
                _ if path.is_dir() => walk(&path, found),
                Some("rs") => collect(&path, found),
                Some(_) | None => {}
            }
        }
    }
    fn collect(path: &Path, found: &mut BTreeSet<String>) {
        let text = std::fs::read_to_string(path).unwrap();
        let mut marked = false;
        for line in text.lines().map(str::trim) {
            marked |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            if let Some(name) = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")
                && std::mem::take(&mut marked)
            {
                found.extend(name.split('(').next().map(str::to_owned));
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(&root().join("src"), &mut found);
    walk(&root().join("tests"), &mut found);
    found
}

#[test]
fn every_threat_has_a_test_that_exists_or_a_reason() {
    let (lines, tests) = (lines(), tests());
    assert_eq!(lines.keys().copied().collect::<Vec<_>>(), (1..=LINES).collect::<Vec<_>>());
    let (mut proven, mut wrong) = (0, Vec::new());
    for (number, proof) in &lines {
        match proof.strip_prefix("open: ") {
            Some(reason) if reason.len() > 20 => {}
            Some(_) => wrong.push(format!("{number}: open without a reason")),
            None => {
                let names: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
                let absent = names.iter().find(|name| !tests.contains(**name));
                match absent {
                    _ if names.is_empty() => wrong.push(format!("{number}: no test in `{proof}`")),
                    Some(name) => wrong.push(format!("{number}: there is no test `{name}`")),
                    None => proven += 1,
                }
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(proven >= PROVEN_MIN, "{proven} lines are proven");
}

#[tokio::test]
async fn no_magic_header_authenticates() {
    let stack = Stack::start().await;
    let token = Who::alice().token();
    let (bearer, cookie) = (format!("Bearer {token}"), format!("access_token={token}"));
    for (name, value) in [
        ("x-user-id", "acme~alice"),
        ("x-forwarded-user", "alice"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-authenticated-userid", "alice"),
        ("x-internal-token", AGENTOS_KEY),
        ("x-api-key", token.as_str()),
        ("proxy-authorization", bearer.as_str()),
        ("cookie", cookie.as_str()),
        ("mcp-init-host", "localhost"),
        ("router-key", CALLER_KEY),
        ("tollbridge-cluster", "main"),
        ("authorization", "Basic YWxpY2U6"),
        ("authorization", token.as_str()),
    ] {
        for path in ["/agents", "/mcp"] {
            let got = stack.send(Ask::get(path).header(name, value)).await;
            assert_eq!((got.status, got.code().as_str()), (401, "unauthenticated"), "{path} {name}: {got:?}");
        }
    }
    let got = stack.send(Ask::get(&format!("/agents?access_token={token}&token={token}"))).await;
    assert_eq!(got.status, 401, "{got:?}");
    assert_eq!(stack.os().requests(), []);
}

#[tokio::test]
async fn no_canary_shows_in_logs_errors_or_metrics() {
    let stack = Stack::start().await;
    let token = Who::alice().token();
    let run = || Ask::run("assistant").field("stream", "false");
    let asks = [
        Ask::get("/agents?access_token=canary-query").bearer(&token).header("x-request-id", "c-1"),
        Ask::get("/agents").bearer("canary-token").header("x-request-id", "c-2"),
        Ask::get("/agents").bearer("tb_canary-key").header("x-request-id", "c-3"),
        run().field("message", "canary-message").bearer(&token).header("x-request-id", "c-4"),
        run().field("message", "hi").field("debug", "canary-field").bearer(&token).header("x-request-id", "c-5"),
        Ask::post("/knowledge/search")
            .body("application/json", "{\"query\": canary-json")
            .bearer(&token)
            .header("x-request-id", "c-6"),
        Ask::get("/agents").bearer(&token).header("cookie", "canary-cookie").header("x-request-id", "c-7"),
    ];
    let mut said = String::new();
    for (at, ask) in asks.into_iter().enumerate() {
        let got = stack.send(ask).await;
        // The answer of a run may repeat its message; nothing else may.
        if got.status >= 400 {
            said.push_str(&format!("{got:?}\n"));
        }
        said.push_str(&stack.access_line(&format!("c-{}", at + 1)).await.to_string());
    }
    for file in ["access.jsonl", "audit.jsonl"] {
        said.push_str(&std::fs::read_to_string(stack.folder().join(file)).unwrap_or_default());
    }
    said.push_str(&stack.admin("/metrics").await);
    said.push_str(&stack.admin("/readyz").await);
    for secret in ["canary", token.as_str(), AGENTOS_KEY, CALLER_KEY, "secret-secret"] {
        assert!(!said.contains(secret), "`{secret}` shows in\n{said}");
    }
}

#[tokio::test]
async fn a_foreign_session_and_an_absent_one_look_alike() {
    let stack = Stack::start().await;
    stack.os().pin(
        "GET",
        "/sessions/theirs",
        Reply::json(200, &json!({ "session_id": "theirs", "user_id": "globex~gina" })),
    );
    stack.os().pin("GET", "/sessions/nobodys", Reply::json(404, &json!({ "detail": "Session not found" })));
    for (method, path) in [("GET", ""), ("DELETE", ""), ("GET", "/runs"), ("POST", "/rename")] {
        let mut answers = Vec::new();
        for id in ["theirs", "nobodys"] {
            let ask =
                Ask::new(method, &format!("/sessions/{id}{path}")).by(&Who::alice()).header("x-request-id", "same");
            let ask = if method == "POST" { ask.json(&json!({ "session_name": "mine" })) } else { ask };
            let mut got = stack.send(ask).await;
            got.headers.remove("date");
            answers.push(format!("{got:?}"));
        }
        assert!(answers[0].contains("not_found"), "{method} {path}: {answers:?}");
        assert_eq!(answers[0], answers[1], "{method} {path}");
    }
}

#[tokio::test]
async fn a_cached_row_is_chosen_by_its_operation_alone() {
    let stack = Stack::start().await;
    // Deception: what looks like a file is an unknown route, or an id of a row that is never kept.
    for path in ["/sessions/mine/x.css", "/agents/assistant/runs.js", "/agents/assistant/x.css"] {
        let got = stack.send(Ask::get(path).by(&Who::alice())).await;
        assert_eq!(got.code(), "operation_unknown", "{path}: {got:?}");
    }
    for path in ["/agents/assistant%2Fx.js", "/agents//x.css"] {
        let got = stack.send(Ask::get(path).by(&Who::alice())).await;
        assert_eq!(got.code(), "path_not_canonical", "{path}: {got:?}");
    }
    assert_eq!(stack.os().requests(), []);
    for _ in 0..2 {
        let got = stack.send(Ask::get("/memories?x=.css").by(&Who::alice())).await;
        assert_eq!(got.header("age"), None, "{got:?}");
    }
    assert_eq!(stack.os().requests_to("/memories").len(), 2);
}

#[tokio::test]
async fn the_bridge_offers_no_sampling_and_no_elicitation() {
    let stack = Stack::start().await;
    let client = json!({ "name": "t", "version": "1" });
    let abilities = json!({ "sampling": {}, "elicitation": {}, "roots": {} });
    let params = json!({ "protocolVersion": "2025-06-18", "capabilities": abilities, "clientInfo": client });
    let ask = |method: &str, params: &serde_json::Value| {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        Ask::post("/mcp").header("accept", "application/json, text/event-stream").json(&body).by(&Who::alice())
    };
    let opened = stack.send(ask("initialize", &params)).await;
    let session = opened.header("mcp-session-id").unwrap().to_owned();
    assert!(!opened.text().contains("sampling") && !opened.text().contains("elicitation"), "{opened:?}");
    for method in ["sampling/createMessage", "elicitation/create", "roots/list"] {
        let got = stack.send(ask(method, &json!({})).header("mcp-session-id", &session)).await;
        assert!(got.text().contains("\"error\""), "{method}: {got:?}");
    }
    assert_eq!(stack.os().requests(), []);
}
