//! Proves that policies under trial are reported where they differ, and never enforced.

use serde_json::{Value, json};

use crate::stack::{Ask, Settings, Stack, Who, within};

/// Forbids what operators may do, and lets viewers do what they may not.
const TRIAL: &str = r#"
@id("no-runs") forbid (principal, action in Tollbridge::Action::"run", resource)
when { principal in Tollbridge::Role::"operator" };
@id("viewers-run") permit (principal in Tollbridge::Role::"viewer", action in Tollbridge::Action::"run", resource);
"#;

async fn audit_line(stack: &Stack, id: &str) -> Value {
    let path = stack.folder().join("audit.jsonl");
    within("the audit log", async {
        loop {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            if let Some(line) = lines.find(|line| line["request_id"] == id) {
                return line;
            }
            stack.admin("/healthz").await;
        }
    })
    .await
}

#[tokio::test]
async fn a_shadow_policy_is_reported_and_never_enforced() {
    let stack = Stack::with(Settings::new().policy("shadow/trial.cedar", TRIAL)).await;
    let run = |who: &Who, id: &str| {
        Ask::run("assistant").field("message", "hi").field("stream", "false").by(who).header("x-request-id", id)
    };
    assert_eq!(stack.send(run(&Who::alice(), "t-allowed")).await.status, 200);
    assert_eq!(stack.send(run(&Who::new("vera").role("viewer"), "t-refused")).await.status, 403);
    let same = Ask::get("/agents").by(&Who::alice()).header("x-request-id", "t-same");
    assert_eq!(stack.send(same).await.status, 200);

    let deny = json!({"outcome": "deny", "policies": ["no-runs"]});
    let allow = json!({"outcome": "allow", "policies": ["viewers-run"]});
    assert_eq!(audit_line(&stack, "t-allowed").await["shadow"], deny);
    assert_eq!(audit_line(&stack, "t-refused").await["shadow"], allow);
    assert_eq!(stack.access_line("t-allowed").await["shadow"], deny);
    assert_eq!(stack.access_line("t-refused").await["shadow"], allow);
    assert_eq!(stack.access_line("t-same").await.get("shadow"), None);
    let metrics = stack.admin("/metrics").await;
    for line in [
        r#"tollbridge_policy_decisions_total{decision="shadow_deny",policy="no-runs"} 1"#,
        r#"tollbridge_policy_decisions_total{decision="shadow_allow",policy="viewers-run"} 1"#,
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn a_shadow_policy_that_leaves_nothing_to_permit_is_reported_too() {
    // It stands in the place of the policy of its id.
    let gone = r#"@id("operator-reads-and-runs") permit (principal, action in Tollbridge::Action::"run", resource)
        when { principal.subject == "nobody" };"#;
    let stack = Stack::with(Settings::new().policy("shadow/trial.cedar", gone)).await;
    let run = Ask::run("assistant").field("message", "hi").field("stream", "false").by(&Who::alice());
    assert_eq!(stack.send(run.header("x-request-id", "t-gone")).await.status, 200);
    assert_eq!(audit_line(&stack, "t-gone").await["shadow"], json!({"outcome": "deny", "policies": []}));
    let line = r#"tollbridge_policy_decisions_total{decision="shadow_deny",policy="none"} 1"#;
    let metrics = stack.admin("/metrics").await;
    assert!(metrics.lines().any(|l| l == line), "{metrics}");
}
