//! Proves `tollbridge explain`: each stage's verdict, what would allow a refused call, the exit codes.

use serde_json::{Value, json};

use super::{Desk, Said};
use crate::fake::FakeAgentOs;

/// Nothing listens there.
const NOWHERE: &str = "http://127.0.0.1:9";

fn explain(desk: &Desk, claims: &Value, words: &[&str]) -> Said {
    std::fs::write(desk.file("claims.json"), claims.to_string()).unwrap();
    desk.run(&[&["explain"], words, &["--as", "claims.json", "--format", "json"]].concat())
}

fn stages(said: &Said) -> Vec<(String, String)> {
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let document = said.json();
    let stages = document["stages"].as_array().unwrap();
    stages.iter().map(|step| (word(&step["stage"]), word(&step["verdict"]))).collect()
}

fn facts(said: &Said, stage: &str) -> Value {
    let document = said.json();
    let found = document["stages"].as_array().unwrap().iter().find(|step| step["stage"] == stage).cloned();
    found.unwrap_or_else(|| panic!("no stage {stage}: {said:?}"))["facts"].clone()
}

#[test]
fn an_allowed_call_shows_every_stage_in_order() {
    let desk = Desk::new(NOWHERE, "");
    let claims = json!({ "sub": "alice", "tenant": "acme", "roles": ["operator"] });
    let said = explain(&desk, &claims, &["POST", "/agents/web/runs", "--form", "message=hi"]);
    assert_eq!(said.code, 0, "{said:?}");
    let names: Vec<String> = stages(&said).into_iter().map(|(stage, _)| stage).collect();
    assert_eq!(names, ["catalogue", "identity", "cluster", "quota", "facts", "policy", "cache", "endpoint"]);
    assert_eq!(facts(&said, "catalogue")["operation"], "create_agent_run");
    assert_eq!(facts(&said, "identity")["subject"], "alice");
    assert_eq!(
        (&facts(&said, "identity")["verified"], &facts(&said, "quota")["plan"]),
        (&json!(false), &json!("open"))
    );
    let policies = &facts(&said, "policy")["policies"];
    assert_eq!(policies[0]["policy"], "operator-reads-and-runs");
    assert!(policies[0]["at"].as_str().unwrap().contains("20-roles.cedar:"), "{policies}");
    assert_eq!(said.json()["would_allow"], json!([]));
}

#[test]
fn a_refused_call_names_the_stage_the_policy_and_what_would_allow_it() {
    let desk = Desk::new(NOWHERE, "");
    let viewer = json!({ "sub": "victor", "tenant": "acme", "roles": ["viewer"] });
    let run = ["POST", "/agents/web/runs", "--form", "message=hi"];
    let said = explain(&desk, &viewer, &run);
    let document = said.json();
    assert_eq!(
        (said.code, &document["stage"], &document["code"]),
        (1, &json!("policy"), &json!("forbidden")),
        "{said:?}"
    );
    let remedies = document["would_allow"].as_array().unwrap();
    for wanted in [
        json!({ "roles": ["operator"], "scopes": [] }),
        json!({ "roles": ["admin"], "scopes": [] }),
        json!({ "roles": [], "scopes": ["agents:run"] }),
    ] {
        assert!(remedies.contains(&wanted), "{wanted} is not in {remedies:?}");
    }
    assert!(!remedies.contains(&json!({ "roles": ["approver"], "scopes": [] })), "{remedies:?}");

    // A `forbid` names itself and its place; over this door no role helps.
    let admin = json!({ "sub": "ada", "tenant": "acme", "roles": ["admin"] });
    let said = explain(&desk, &admin, &["DELETE", "/sessions/s-1", "--door", "mcp"]);
    let policies = &facts(&said, "policy")["policies"];
    assert_eq!((said.code, &policies[0]["policy"]), (1, &json!("destructive-over-mcp")), "{said:?}");
    assert!(policies[0]["at"].as_str().unwrap().contains("60-destructive-over-mcp.cedar:"), "{policies}");
    let help = said.json()["help"].as_str().unwrap().to_owned();
    assert!(help.contains("`destructive-over-mcp`") && help.contains("60-destructive-over-mcp.cedar:"), "{help}");
}

#[test]
fn every_earlier_stage_is_named_when_it_refuses() {
    let desk = Desk::new(NOWHERE, "");
    let alice = json!({ "sub": "alice", "tenant": "acme", "roles": ["operator"] });
    for (words, stage, code) in [
        (vec!["GET", "/nowhere"], "catalogue", "operation_unknown"),
        (vec!["PATCH", "/agents"], "catalogue", "method_not_allowed"),
        (vec!["GET", "/agents/%2e%2e/config"], "request", "path_not_canonical"),
        (vec!["GET", "/agents", "--cluster", "other"], "cluster", "cluster_unknown"),
        (vec!["POST", "/agents/web/runs", "--form", "evil=1"], "request", "field_not_allowed"),
    ] {
        let said = explain(&desk, &alice, &words);
        let document = said.json();
        assert_eq!(
            (said.code, &document["stage"], &document["code"]),
            (1, &json!(stage), &json!(code)),
            "{words:?} {said:?}"
        );
    }
    let said = desk.run(&["explain", "GET", "/agents", "--token", "tb_unknown", "--format", "json"]);
    assert_eq!((said.code, &said.json()["stage"]), (1, &json!("identity")), "{said:?}");
    assert!(!said.out.contains("tb_unknown"), "{said:?}");
}

#[test]
fn facts_that_cannot_be_looked_up_are_unknown_and_no_crash() {
    let desk = Desk::new(NOWHERE, "");
    let alice = json!({ "sub": "alice", "tenant": "acme", "roles": ["operator"] });
    let said = explain(&desk, &alice, &["DELETE", "/sessions/s-1"]);
    assert_eq!((said.code, &said.json()["certain"]), (0, &json!(false)), "{said:?}");
    assert!(stages(&said).contains(&("facts".to_owned(), "unknown".to_owned())), "{said:?}");
    let lines = desk.run(&["explain", "DELETE", "/sessions/s-1", "--as", "claims.json"]);
    assert!(lines.out.contains("allowed, as far as is known"), "{lines:?}");
}

#[tokio::test]
async fn a_dry_run_looks_owners_up_and_starts_nothing() {
    let os = FakeAgentOs::start().await;
    let desk = Desk::new(&os.url(), "");
    let alice = json!({ "sub": "alice", "tenant": "acme", "roles": ["operator"] });
    let (said, desk) = tokio::task::spawn_blocking(move || {
        let words = ["POST", "/agents/assistant/runs", "--form", "message=hi", "--form", "session_id=s-new"];
        (explain(&desk, &alice, &words), desk)
    })
    .await
    .unwrap();
    assert_eq!((said.code, &said.json()["certain"]), (0, &json!(true)), "{said:?}");
    assert_eq!(os.requests_to("/agents/assistant/runs"), []);
    let methods: Vec<String> = os.requests_to("/sessions/s-new").into_iter().map(|seen| seen.method).collect();
    assert!(!methods.is_empty() && methods.iter().all(|method| method == "GET"), "{methods:?}");
    assert_eq!(os.requests().len(), methods.len(), "nothing but look-ups");
    drop(desk);
}

#[test]
fn what_cannot_be_explained_ends_with_two() {
    let desk = Desk::new(NOWHERE, "");
    std::fs::write(desk.file("claims.json"), "{}").unwrap();
    for words in [
        vec!["explain", "GET", "/agents"],
        vec!["explain", "GET", "/agents", "--as", "claims.json"],
        vec!["explain", "GET", "/agents", "--as", "missing.json"],
        vec!["explain", "GET", "/agents", "--as", "claims.json", "--token", "x"],
        vec!["explain", "POST", "/agents/web/runs", "--token", "x", "--form", "message"],
        vec!["explain", "--decision", "r-1"],
    ] {
        let said = desk.run(&words);
        assert_eq!((said.code, said.out.as_str()), (2, ""), "{words:?} {said:?}");
    }
}

#[test]
fn an_earlier_decision_is_found_in_the_audit_log() {
    let desk = Desk::new(NOWHERE, "");
    let line =
        |id: &str, outcome: &str| format!("{{\"log\":\"audit\",\"request_id\":\"{id}\",\"outcome\":\"{outcome}\"}}\n");
    let log = [line("r-1", "ok"), "not json\n".to_owned(), line("r-2", "forbidden"), line("r-1", "not_found")].concat();
    std::fs::write(desk.file("audit.jsonl"), log).unwrap();
    let said = desk.run(&["explain", "--decision", "r-1"]);
    assert_eq!((said.code, said.out), (0, [line("r-1", "ok"), line("r-1", "not_found")].concat()));
    let said = desk.run(&["explain", "--decision", "r-2", "--format", "json"]);
    assert_eq!((said.code, &said.json()[0]["outcome"]), (0, &json!("forbidden")));
    let said = desk.run(&["explain", "--decision", "r-3"]);
    assert_eq!((said.code, said.out.as_str()), (1, ""));
    assert!(said.err.contains("no decision `r-3` in"), "{said:?}");
}
