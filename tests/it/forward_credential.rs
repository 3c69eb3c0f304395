//! Proves `credential = "forward"`: what AgentOS is asked, it is asked with the caller's own token, and never without.

use serde_json::json;

use crate::fake::Reply;
use crate::stack::{Ask, Got, Settings, Stack, Who};

/// One tenant, `acme`, on a cluster that gets its callers' tokens.
fn settings() -> Settings {
    let spare = [("name", "\"spare\""), ("credential", "\"none\""), ("knowledge", "\"exclusive\"")];
    Settings::new()
        .set("[[clusters]]", "credential", "\"forward\"")
        .set("[[clusters]]", "user_id", "\"{subject}\"")
        .set("[[clusters]]", "knowledge", "\"exclusive\"")
        .set("[tenants.acme]", "clusters", "[\"main\"]")
        .set("[tenants.globex]", "clusters", "[\"spare\"]")
        .add("[[clusters]]", &spare)
}

fn answer(got: &Got) -> (u16, String) {
    (got.status, got.json()["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn look_ups_and_shared_lists_carry_the_callers_own_token() {
    let stack = Stack::with(settings()).await;
    stack.os().pin("GET", "/sessions/mine", Reply::json(200, &json!({"session_id": "mine", "user_id": "alice"})));
    stack.os().pin("GET", "/sessions/bobs", Reply::json(200, &json!({"session_id": "bobs", "user_id": "bob"})));
    let token = Who::alice().token();
    let ask = |target: &str| Ask::get(target).bearer(&token);
    assert_eq!(stack.send(ask("/sessions/mine")).await.status, 200);
    assert_eq!(answer(&stack.send(ask("/sessions/bobs")).await), (404, "not_found".to_owned()));
    for _ in 0..2 {
        assert_eq!(stack.send(ask("/agents")).await.status, 200);
    }
    let run = Ask::run("assistant").field("message", "hi").field("stream", "false").field("session_id", "mine");
    assert_eq!(stack.send(run.bearer(&token)).await.status, 200);
    let seen: Vec<_> = stack.os().requests().iter().map(|r| r.header("authorization").map(str::to_owned)).collect();
    assert!(seen.iter().all(|value| *value == Some(format!("Bearer {token}"))), "{seen:?}");
    // What AgentOS shows for one token is not kept for another.
    assert_eq!(stack.os().requests_to("/agents").len(), 2);
}

#[tokio::test]
async fn a_session_that_a_token_does_not_see_may_still_be_somebodys() {
    let stack = Stack::with(settings()).await;
    stack.os().pin("GET", "/sessions/s", Reply::json(404, &json!({"detail": "Session not found"})));
    let run = Ask::run("assistant").field("message", "hi").field("session_id", "s").by(&Who::alice());
    assert_eq!(answer(&stack.send(run).await), (404, "not_found".to_owned()));
    assert_eq!(stack.os().requests_to("/agents/assistant/runs"), []);
}

#[tokio::test]
async fn a_call_without_a_token_of_its_own_is_refused() {
    let key = "tb_0123456789abcdefghijklmnopqrstuv";
    let digest: String =
        <sha2::Sha256 as sha2::Digest>::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    let record = [
        ("id", "\"ci\"".to_owned()),
        ("sha256", format!("\"{digest}\"")),
        ("tenant", "\"acme\"".to_owned()),
        ("roles", "[\"operator\"]".to_owned()),
    ];
    let record: Vec<(&str, &str)> = record.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let stack = Stack::with(settings().add("[[identity.api_keys]]", &record)).await;
    let got = stack.send(Ask::get("/agents").bearer(key)).await;
    assert_eq!(answer(&got), (403, "forbidden".to_owned()), "{got:?}");
    assert!(got.json()["detail"].as_str().unwrap().contains("the caller's own token"), "{got:?}");
    assert_eq!(stack.os().requests(), []);
}
