//! Proves the audit log through the whole gateway: who is written down, what never is, and what a full disk does.

use serde_json::{Value, json};

use crate::stack::{Ask, Settings, Stack, Who, within};

/// The lines of the audit log, once there are as many.
async fn lines(stack: &Stack, count: usize) -> Vec<Value> {
    let path = stack.folder().join("audit.jsonl");
    within("the audit log", async {
        loop {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            if lines.len() >= count {
                return lines;
            }
            // A round trip: the writer goes on meanwhile.
            stack.admin("/healthz").await;
        }
    })
    .await
}

fn named(mut line: Value) -> Value {
    line["timestamp"] = Value::Null;
    line
}

#[tokio::test]
async fn writes_and_refusals_are_written_down_and_plain_reads_are_not() {
    let stack = Stack::start().await;
    let victor = Who::new("victor").role("viewer");
    let read = stack.send(Ask::get("/agents").by(&victor).header("x-request-id", "a-read")).await;
    assert_eq!(read.status, 200);
    assert_eq!(read.header("tollbridge-decision"), None);
    let run = |id: &str, who: &Who| {
        Ask::run("assistant").field("message", "hi").field("stream", "false").by(who).header("x-request-id", id)
    };
    let refused = stack.send(run("a-refusal", &victor)).await;
    assert_eq!((refused.status, refused.header("tollbridge-decision")), (403, Some("a-refusal")));
    assert!(!refused.text().contains("policy"), "{}", refused.text());
    assert_eq!(stack.send(run("a-run", &Who::alice())).await.status, 200);
    let forbidden =
        stack.send(Ask::new("DELETE", "/knowledge/content").by(&Who::alice()).header("x-request-id", "a-wipe")).await;
    assert_eq!(forbidden.status, 403);
    assert_eq!(stack.send(Ask::get("/agents").header("x-request-id", "a-nobody")).await.status, 401);
    let mut lines: Vec<Value> = lines(&stack, 4).await.into_iter().map(named).collect();
    lines.sort_by_key(|line| line["request_id"].to_string());
    let line = |id: &str, outcome: &str, rest: Value| {
        let mut line = json!({
            "timestamp": null, "log": "audit", "request_id": id, "door": "http", "client.address": "127.0.0.1",
            "outcome": outcome,
        });
        line.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        line
    };
    let expected = [
        line(
            "a-nobody",
            "unauthenticated",
            json!({
                "operation": "get_agents", "resource": "Agent::", "policies": [], "stage": "identity",
            }),
        ),
        line(
            "a-refusal",
            "forbidden",
            json!({
                "tenant": "acme", "subject": "victor", "operation": "create_agent_run", "resource": "Agent::assistant",
                "policies": [], "stage": "policy",
            }),
        ),
        line(
            "a-run",
            "ok",
            json!({
                "tenant": "acme", "subject": "alice", "operation": "create_agent_run", "resource": "Agent::assistant",
                "policies": ["operator-reads-and-runs"],
            }),
        ),
        line(
            "a-wipe",
            "forbidden",
            json!({
                "tenant": "acme", "subject": "alice", "operation": "delete_all_content", "resource": "Knowledge::",
                "policies": ["os-wide"], "stage": "policy",
            }),
        ),
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn no_secret_and_no_prompt_is_written_down() {
    let stack = Stack::start().await;
    let token = Who::alice().token();
    let canary = "canary-prompt-7f3a";
    let run = || Ask::run("assistant").field("message", canary).field("stream", "false");
    assert_eq!(stack.send(run().bearer(&token)).await.status, 200);
    assert_eq!(stack.send(run().bearer("tb_canary-key-9c1d")).await.status, 401);
    assert_eq!(stack.send(run().field("evil", "canary-field-1b2c").bearer(&token)).await.status, 400);
    let target = "/sessions?limit=1&user_id=canary-query-5e6f&user_id=x";
    assert_eq!(stack.send(Ask::get(target).bearer(&token)).await.status, 400);
    lines(&stack, 4).await;
    let text = std::fs::read_to_string(stack.folder().join("audit.jsonl")).unwrap();
    let signature = token.rsplit('.').next().unwrap();
    for secret in [canary, "canary-", token.as_str(), signature, crate::stack::AGENTOS_KEY, crate::stack::CALLER_KEY] {
        assert!(!text.contains(secret), "`{secret}` is in {text}");
    }
}

fn full_disk(choice: &str) -> Settings {
    let settings = Settings::new().set("[telemetry]", "audit_log", "{ file = \"/dev/full\" }");
    settings.set("[telemetry]", "audit_failure", choice)
}

#[tokio::test]
async fn a_full_disk_goes_on_with_an_alarm_by_default() {
    let stack = Stack::with(full_disk("\"continue\"")).await;
    let run = Ask::run("assistant").field("message", "hi").field("stream", "false").by(&Who::alice());
    assert_eq!(stack.send(run).await.status, 200);
    stack.wait_for_metric("tollbridge_audit_failures_total", &["reason=\"target\""], 1.0).await;
}

#[tokio::test]
async fn a_full_disk_refuses_what_must_be_audited_before_it_happens() {
    let stack = Stack::with(full_disk("\"refuse\"")).await;
    let run = Ask::run("assistant").field("message", "hi").field("stream", "false").by(&Who::alice());
    let got = stack.send(run).await;
    assert_eq!((got.status, got.code().as_str()), (503, "overloaded"), "{got:?}");
    assert!(got.header("retry-after").is_some());
    assert_eq!(stack.os().requests_to("/agents/assistant/runs"), []);
    assert_eq!(stack.send(Ask::get("/agents").by(&Who::alice())).await.status, 200, "reads go on");
}

#[tokio::test]
async fn with_refuse_the_line_stands_before_the_call_goes_upstream() {
    let stack = Stack::with(Settings::new().set("[telemetry]", "audit_failure", "\"refuse\"")).await;
    let run = Ask::run("assistant").field("message", "hi").field("stream", "false").by(&Who::alice());
    assert_eq!(stack.send(run).await.status, 200);
    let outcomes: Vec<Value> = lines(&stack, 2).await.into_iter().map(|line| line["outcome"].clone()).collect();
    assert_eq!(outcomes, ["admitted", "ok"]);
}
