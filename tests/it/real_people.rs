//! Proves that people and tenants are kept apart on real AgentOS, on both releases. Each hole is shown open on the bare
//! AgentOS first.
//! Does not test runs as such (`real_agno`).

use serde_json::{Value, json};

use crate::agno::Agno;
use crate::real_stack::Real;
use crate::stack::{Ask, Got, Who};

/// Releases whose bare AgentOS shows a row to another user.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    OnBoth,
    OnNewest,
}

#[tokio::test]
async fn agno_2_5_6_keeps_people_apart() {
    apart(&Real::start(Agno::Oldest).await).await;
}

#[tokio::test]
async fn agno_3_1_10_keeps_people_apart() {
    apart(&Real::start(Agno::Newest).await).await;
}

async fn apart(real: &Real) {
    rows_of_others_do_not_exist(real).await;
    an_approval_takes_two(real).await;
}

fn alice() -> Who {
    Who::alice()
}

/// Everybody who must not see what is alice's: a colleague, and the tenant next door, its admin and its own alice.
fn others() -> [Who; 3] {
    [
        Who::new("bob").role("operator").scope("sessions:read").scope("memories:read"),
        Who::new("gus").of("globex").role("admin"),
        Who::new("alice").of("globex").role("operator").role("approver"),
    ]
}

async fn rows_of_others_do_not_exist(real: &Real) {
    let run = real.run(&alice(), "/agents/assistant", "secret-session", "the code is 4711").await;
    let run = run["run_id"].as_str().unwrap();
    let memory = json!({"memory": "alice likes 4711", "topics": ["codes"]});
    let memory = real.by(&alice(), Ask::post("/memories").json(&memory)).await;
    assert_eq!(memory.status, 200, "{}", memory.text());
    let memory = memory.json()["memory_id"].as_str().unwrap().to_owned();
    let rows = [
        ("/sessions/secret-session?type=agent".to_owned(), Open::OnNewest),
        ("/sessions/secret-session/runs?type=agent".to_owned(), Open::OnNewest),
        ("/agents/assistant/runs?session_id=secret-session".to_owned(), Open::OnBoth),
        (format!("/agents/assistant/runs/{run}?session_id=secret-session"), Open::OnBoth),
        (format!("/memories/{memory}"), Open::OnNewest),
    ];
    for (path, open) in &rows {
        let own = real.by(&alice(), Ask::get(path)).await;
        assert!(own.status == 200 && own.text().contains("4711"), "{path}: {}", own.text());
        if *open == Open::OnBoth || real.agno == Agno::Newest {
            let hole = real.bare("acme~bob", Ask::get(path)).await;
            assert!(hole.status == 200 && hole.text().contains("4711"), "no hole in {path}: {}", hole.text());
        }
        for other in others() {
            absent(&real.by(&other, Ask::get(path)).await, path);
        }
    }
    for list in ["/sessions?type=agent", "/memories"] {
        for other in others() {
            let got = real.by(&other, Ask::get(list)).await;
            assert!(got.status == 200 && !got.text().contains("secret"), "{list}: {}", got.text());
            assert!(!got.text().contains("4711"), "{list}: {}", got.text());
        }
    }
    rows_of_others_are_not_changed(real, &memory).await;
}

async fn rows_of_others_are_not_changed(real: &Real, memory: &str) {
    let path = format!("/memories/{memory}");
    let change = json!({"memory": "alice likes nothing", "topics": ["codes"]});
    for other in others() {
        absent(&real.by(&other, Ask::new("PATCH", &path).json(&change)).await, &path);
        absent(&real.by(&other, Ask::new("DELETE", "/sessions/secret-session?type=agent")).await, "delete");
    }
    assert!(real.by(&alice(), Ask::get(&path)).await.text().contains("4711"), "the memory is as it was");
    assert_eq!(real.by(&alice(), Ask::get("/sessions/secret-session?type=agent")).await.status, 200);
    let mut change = change;
    change["user_id"] = json!("acme~alice");
    let hole = real.bare("acme~bob", Ask::new("PATCH", &path).json(&change)).await;
    assert_eq!(hole.status, 200, "no hole: {}", hole.text());
}

fn absent(got: &Got, what: &str) {
    assert_eq!((got.status, got.code().as_str()), (404, "not_found"), "{what}: {}", got.text());
}

async fn an_approval_takes_two(real: &Real) {
    let paused = real.run(&alice(), "/agents/records", "records-session", "delete record 42").await;
    assert_eq!(paused["status"], "PAUSED", "{paused}");
    let run = paused["run_id"].as_str().unwrap();
    let pat = Who::new("pat").role("approver");
    let listed = real.by(&pat, Ask::get("/approvals?status=pending")).await.json();
    let rows = listed["data"].as_array().unwrap();
    assert_eq!(rows.len(), 1, "{listed}");
    assert_eq!((&rows[0]["run_id"], &rows[0]["tool_name"]), (&json!(run), &json!("delete_record")), "{listed}");
    let approval = format!("/approvals/{}", rows[0]["id"].as_str().unwrap());

    let hole = real.bare("acme~bob", Ask::get(&approval)).await;
    assert_eq!(hole.status, 200, "no hole: {}", hole.text());
    let [colleague, admin_next_door, approver_next_door] = others();
    let seen = real.by(&colleague, Ask::get(&approval)).await;
    assert!(matches!(seen.code().as_str(), "not_found" | "forbidden"), "{}", seen.text());
    for stranger in [admin_next_door, approver_next_door] {
        absent(&real.by(&stranger, Ask::get(&approval)).await, &approval);
        absent(&resolve(real, &stranger, &approval).await, &approval);
    }
    let early = go_on(real, run).await;
    assert!(early.status >= 400, "it went on without an approval: {}", early.text());
    let requester = alice().role("approver").role("admin");
    let own = resolve(real, &requester, &approval).await;
    assert_eq!((own.status, own.code().as_str()), (403, "forbidden"), "{}", own.text());

    let resolved = resolve(real, &pat, &approval).await;
    assert_eq!(resolved.status, 200, "{}", resolved.text());
    assert_eq!(resolved.json()["resolved_by"], "pat", "whatever the body said: {}", resolved.text());
    let done = go_on(real, run).await;
    assert!(done.status == 200 && content(&done).contains("deleted 42"), "{}", done.text());
}

async fn resolve(real: &Real, who: &Who, approval: &str) -> Got {
    let body = json!({"status": "approved", "resolved_by": "somebody"});
    real.by(who, Ask::post(&format!("{approval}/resolve")).json(&body)).await
}

async fn go_on(real: &Real, run: &str) -> Got {
    let ask = Ask::post(&format!("/agents/records/runs/{run}/continue"));
    real.by(&alice(), ask.field("session_id", "records-session").field("stream", "false")).await
}

fn content(got: &Got) -> String {
    match &got.json()["content"] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
