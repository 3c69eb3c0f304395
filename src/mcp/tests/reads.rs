//! Tests of the tools that read lists and rows, and of finding a component by its id.

use serde_json::{Value, json};

use super::double::{Script, answer, refusal};
use super::{Fixture, texts};

fn lists(script: Script, cluster: &str, agents: Value, teams: Value) -> Script {
    script
        .json(&format!("GET {cluster} /agents"), agents)
        .json(&format!("GET {cluster} /teams"), teams)
        .json(&format!("GET {cluster} /workflows"), json!([]))
}

/// The structured content, which the text must repeat.
fn structured(result: &Value) -> Value {
    assert_eq!(result["isError"], false, "{result}");
    let text: Value = serde_json::from_str(&texts(result)[0]).unwrap();
    assert_eq!(text, result["structuredContent"]);
    text
}

#[tokio::test]
async fn list_agents_shows_all_kinds_cut_and_on_one_line() {
    let agents =
        json!([{"id": "web", "name": "Web", "description": format!("Ignore\nall {}", "x".repeat(400)), "tools": {}}]);
    let fixture = Fixture::new(lists(Script::new(), "main", agents, json!([{"id": "crew", "name": "Crew"}])));
    let client = fixture.modern("alice");
    let all = structured(&client.call("list_agents", json!({})).await);
    assert_eq!(all["agents"][0]["description"].as_str().unwrap().chars().count(), 300);
    assert!(all["agents"][0]["description"].as_str().unwrap().starts_with("Ignore all xxx"));
    assert_eq!(all["agents"][1], json!({"agent": "crew", "kind": "team", "name": "Crew"}));
    let crew = structured(&client.call("list_agents", json!({"query": "CREW"})).await);
    assert_eq!(crew, json!({"agents": [{"agent": "crew", "kind": "team", "name": "Crew"}]}));
    let before = fixture.script.lines().len();
    structured(&client.call("list_agents", json!({"kind": "team"})).await);
    assert_eq!(fixture.script.lines()[before..], ["GET main /teams"]);
}

#[tokio::test]
async fn what_one_cluster_does_not_answer_is_named_and_what_policy_hides_is_not() {
    let script = lists(Script::new().clusters(&["blue", "red"]), "blue", json!([{"id": "web"}]), json!([]))
        .with("GET blue /teams", |_| refusal(403, "forbidden", "no", None))
        .with("GET red /agents", |_| refusal(503, "no_endpoint", "down", Some(2)))
        .json("GET red /teams", json!([]))
        .json("GET red /workflows", json!([]));
    let fixture = Fixture::new(script);
    let seen = structured(&fixture.modern("alice").call("list_agents", json!({})).await);
    assert_eq!(
        seen,
        json!({"agents": [{"agent": "blue/web", "kind": "agent"}],
            "unavailable": [{"cluster": "red", "code": "no_endpoint"}]})
    );

    let all_forbidden = Script::new()
        .with("GET main /agents", |_| refusal(403, "forbidden", "you may not list agents", None))
        .with("GET main /teams", |_| refusal(403, "forbidden", "no", None))
        .with("GET main /workflows", |_| refusal(403, "forbidden", "no", None));
    let fixture = Fixture::new(all_forbidden);
    let result = fixture.modern("alice").call("list_agents", json!({})).await;
    assert_eq!(texts(&result), ["forbidden: you may not list agents\nrequest_id: req-1"]);
}

#[tokio::test]
async fn an_id_finds_its_component_or_says_what_there_is() {
    let both = json!([{"id": "web"}, {"id": "x y"}]);
    let script = lists(Script::new().clusters(&["blue", "red"]), "blue", both, json!([{"id": "web"}]));
    let script = lists(script, "red", json!([{"id": "solo"}]), json!([]))
        .with("POST red /agents/solo/runs", |_| refusal(403, "forbidden", "no", None))
        .with("POST blue /agents/x%20y/runs", |_| refusal(403, "forbidden", "no", None));
    let fixture = Fixture::new(script);
    let client = fixture.modern("alice");
    let run = |agent: &'static str| json!({"agent": agent, "message": "hi"});
    let ambiguous = client.call("run_agent", run("web")).await;
    assert_eq!(
        texts(&ambiguous),
        ["the id is ambiguous: pass one of agent `blue/web` with kind `agent`, agent `blue/web` with kind `team`"]
    );
    let unknown = client.call("run_agent", run("nope")).await;
    assert_eq!(texts(&unknown), ["there is no `nope` that you may use: list_agents shows what there is"]);
    client.call("run_agent", run("solo")).await;
    assert_eq!(fixture.script.last().line, "POST red /agents/solo/runs");
    client.call("run_agent", run("blue/x y")).await;
    assert_eq!(fixture.script.last().line, "POST blue /agents/x%20y/runs");
}

#[tokio::test]
async fn search_gives_ranked_snippets() {
    let hit = json!({"id": "1", "content": "y".repeat(600), "name": "faq", "content_id": "c9", "reranking_score": 0.5,
        "meta_data": {"chunk": 1, "team": "support"}, "usage": {"total_tokens": 9}});
    let fixture = Fixture::new(Script::new().json("POST main /knowledge/search", json!({"data": [hit], "meta": {}})));
    let client = fixture.modern("alice");
    let found =
        structured(&client.call("search_knowledge", json!({"query": "why", "limit": 3.0, "knowledge": "kb"})).await);
    let text = format!("{}…", "y".repeat(499));
    assert_eq!(
        found,
        json!({"results": [{"text": text, "name": "faq", "content_id": "c9", "score": 0.5,
            "metadata": {"team": "support"}}]})
    );
    let sent: Value = serde_json::from_str(&fixture.script.last().body).unwrap();
    assert_eq!(sent, json!({"query": "why", "knowledge_id": "kb", "max_results": 3, "meta": {"limit": 3, "page": 1}}));
}

#[tokio::test]
async fn knowledge_bases_are_listed_from_the_configuration() {
    let config = json!({"os_id": "x", "knowledge": {"knowledge_instances": [
        {"id": "kb", "name": "FAQ", "description": null, "db_id": "d", "table": "t"}]}});
    let fixture = Fixture::new(Script::new().json("GET main /config", config));
    let listed = structured(&fixture.modern("alice").call("list_knowledge", json!({})).await);
    assert_eq!(listed, json!({"knowledge": [{"knowledge": "kb", "name": "FAQ"}]}));
}

#[tokio::test]
async fn approvals_are_listed_shown_and_resolved() {
    let row = json!({"id": "a1", "run_id": "r1", "session_id": "s1", "status": "pending", "tool_name": "rm",
        "tool_args": {"path": "x".repeat(2_000)}, "agent_id": "web", "user_id": "alice", "created_at": 5,
        "requirements": [], "context": {}});
    let script = Script::new()
        .json("GET main /approvals?limit=100&status=pending", json!({"data": [row], "meta": {}}))
        .json("GET main /approvals/a1", row.clone())
        .json("POST main /approvals/a1/resolve", json!({"id": "a1", "tool_name": "rm", "status": "approved"}));
    let fixture = Fixture::new(script);
    let client = fixture.modern("alice");
    let listed = structured(&client.call("list_approvals", json!({})).await);
    let shown = &listed["approvals"][0];
    assert_eq!(shown["arguments"].as_str().unwrap().chars().count(), 1_000);
    assert_eq!(
        (&shown["approval_id"], &shown["tool"], &shown["agent"], &shown["requested_by"]),
        (&json!("a1"), &json!("rm"), &json!("web"), &json!("alice"))
    );
    let other = structured(&client.call("list_approvals", json!({"agent": "other"})).await);
    assert_eq!(other, json!({"approvals": []}));
    let whole = structured(&client.call("get_approval", json!({"approval_id": "a1"})).await);
    assert_eq!(whole["arguments"], row["tool_args"], "whoever decides sees the whole call");

    let arguments = json!({"approval_id": "a1", "decision": "approve", "note": "fine"});
    let result = client.call("resolve_approval", arguments).await;
    let text = "Approval `a1` of rm is approved. The run stays paused until whoever started it calls continue_run.";
    assert_eq!(texts(&result), [text]);
    let sent: Value = serde_json::from_str(&fixture.script.last().body).unwrap();
    assert_eq!(sent, json!({"status": "approved", "resolution_data": {"note": "fine"}}));
}

#[tokio::test]
async fn a_decided_approval_cannot_be_resolved_again() {
    let detail = json!({"detail": "Approval is already 'rejected' and cannot be resolved"}).to_string();
    let line = "POST main /approvals/a1/resolve";
    let fixture = Fixture::new(Script::new().with(line, move |_| answer(409, "application/json", detail.clone())));
    let arguments = json!({"approval_id": "a1", "decision": "reject"});
    let result = fixture.modern("alice").call("resolve_approval", arguments).await;
    let text = "the agent service answered 409: Approval is already 'rejected' and cannot be resolved";
    assert_eq!((&result["isError"], texts(&result)), (&json!(true), vec![text.to_owned()]));
}

#[tokio::test]
async fn sessions_are_merged_latest_first_and_found_by_id() {
    let page = |rows: Value| json!({"data": rows, "meta": {}});
    let line = |kind: &str| format!("GET main /sessions?type={kind}&limit=2&sort_by=updated_at&sort_order=desc");
    let script = Script::new()
        .json(&line("agent"), page(json!([{"session_id": "s1", "updated_at": "2026-01-01"}, {"session_id": "s2", "updated_at": "2026-01-03"}])))
        .json(&line("team"), page(json!([{"session_id": "s3", "session_name": "T", "updated_at": "2026-01-02"}])))
        .json(&line("workflow"), page(json!([])))
        .json("GET main /sessions/s3?type=team", json!({"session_id": "s3", "chat_history": [
            {"role": "system", "content": "secret"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}));
    let fixture = Fixture::new(script);
    let client = fixture.modern("alice");
    let listed = structured(&client.call("list_sessions", json!({"limit": 2})).await);
    assert_eq!(
        listed,
        json!({"sessions": [
            {"session_id": "s2", "kind": "agent", "updated_at": "2026-01-03"},
            {"session_id": "s3", "kind": "team", "name": "T", "updated_at": "2026-01-02"}]})
    );
    let session = structured(&client.call("get_session", json!({"session_id": "s3"})).await);
    assert_eq!(
        session,
        json!({"session_id": "s3", "kind": "team",
            "messages": [{"role": "user", "text": "hi"}, {"role": "assistant", "text": "ho"}]})
    );
    let missing = client.call("get_session", json!({"session_id": "s9"})).await;
    assert_eq!(texts(&missing), ["not_found: there is no such thing\nrequest_id: req-1"]);
}

#[tokio::test]
async fn large_results_lose_items_and_stay_json() {
    let agents: Vec<Value> =
        (0..900).map(|n| json!({"id": format!("agent-{n:04}"), "description": "d".repeat(200)})).collect();
    let fixture = Fixture::new(lists(Script::new(), "main", json!(agents), json!([])));
    let result = fixture.modern("alice").call("list_agents", json!({})).await;
    let seen = structured(&result);
    assert!(texts(&result)[0].len() <= 80_000);
    assert_eq!(seen["truncated"], true);
    assert!(seen["agents"].as_array().unwrap().len() > 200);
}
