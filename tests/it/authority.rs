//! Proves that authority ends: revoked credentials, their live streams, and policies that change under way.

use std::path::PathBuf;

use serde_json::json;
use tempfile::TempDir;

use crate::fake::{Event, Reply};
use crate::stack::{Ask, Settings, Stack, Who};

/// A revocation list that a test may change.
struct List {
    _folder: TempDir,
    path: PathBuf,
}

impl List {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("revoked.txt");
        std::fs::write(&path, "# nobody yet\n").unwrap();
        Self { _folder: folder, path }
    }

    fn settings(&self) -> Settings {
        Settings::new().set("[identity]", "revoked", &format!("{:?}", self.path))
    }

    async fn write(&self, text: &str, stack: &Stack) {
        std::fs::write(&self.path, text).unwrap();
        stack.running.reload().await.unwrap();
    }
}

#[tokio::test]
async fn a_revoked_caller_is_refused_at_once_and_only_that_one() {
    let list = List::new();
    let stack = Stack::with(list.settings()).await;
    let (alice, bob) = (Who::alice().token(), Who::new("bob").role("operator").token());
    let status = async |token: &str| stack.send(Ask::get("/agents").bearer(token)).await.status;
    assert_eq!((status(&alice).await, status(&bob).await), (200, 200));
    list.write("alice@acme\n", &stack).await;
    assert_eq!((status(&alice).await, status(&bob).await), (401, 200));
    list.write("", &stack).await;
    assert_eq!(status(&alice).await, 200);
    list.write(&aws_hash(&bob), &stack).await;
    assert_eq!((status(&alice).await, status(&bob).await), (200, 401));
    // A list that cannot be read changes nothing.
    std::fs::remove_file(&list.path).unwrap();
    stack.running.reload().await.unwrap();
    assert_eq!((status(&alice).await, status(&bob).await), (200, 401));
}

fn aws_hash(token: &str) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_live_stream_of_a_revoked_caller_ends_with_an_error_event() {
    let list = List::new();
    let stack = Stack::with(list.settings()).await;
    let events = [
        Event::new("RunStarted", json!({ "run_id": "r-1", "session_id": "s-1" })),
        Event::new("RunContent", json!({ "content": "never seen" })),
    ];
    let (reply, gate) = Reply::paced_sse(&events);
    stack.os().pin("POST", "/agents/assistant/runs", reply);
    let run = Ask::run("assistant").field("message", "hi").by(&Who::alice());
    let mut flow = stack.open(run).await;
    gate.open_once();
    flow.until("RunStarted").await;
    list.write("alice@acme\n", &stack).await;
    let (rest, clean) = flow.rest().await;
    assert!(clean && rest.contains("event: error\n") && !rest.contains("never seen"), "{rest}");
    assert!(rest.contains("\"code\":\"unauthenticated\"") && rest.contains("\"retry\":false"), "{rest}");
}

#[tokio::test]
async fn a_good_set_of_policies_is_swapped_in_and_a_bad_one_changes_nothing() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("policies.cedar");
    let permit = "@id(\"all\")\npermit (principal, action, resource);\n";
    std::fs::write(&file, permit).unwrap();
    let stack = Stack::with(Settings::new().set("[policy]", "dir", &format!("{:?}", folder.path()))).await;
    let status = async || stack.send(Ask::get("/agents").by(&Who::new("ann"))).await.status;
    assert_eq!(status().await, 200);

    std::fs::write(
        &file,
        "@id(\"all\")\npermit (principal, action == Tollbridge::Action::\"get_agentz\", resource);\n",
    )
    .unwrap();
    let errors = stack.running.reload().await.unwrap_err().to_string();
    assert!(errors.contains("policies.cedar:2:") && errors.contains("did you mean `get_agent`?"), "{errors}");
    assert_eq!(status().await, 200);

    let forbid = "@id(\"none\")\nforbid (principal, action, resource);\n";
    std::fs::write(&file, format!("{permit}{forbid}")).unwrap();
    stack.running.reload().await.unwrap();
    assert_eq!(status().await, 403);
    let counted = |result: &str| format!("tollbridge_config_reloads_total{{result=\"{result}\"}}");
    assert_eq!((stack.metric(&counted("ok")).await, stack.metric(&counted("failed")).await), (1.0, 1.0));
}

#[tokio::test]
async fn a_reload_opens_the_audit_log_anew() {
    let stack = Stack::start().await;
    let (log, rotated) = (stack.folder().join("audit.jsonl"), stack.folder().join("audit.1"));
    std::fs::rename(&log, &rotated).unwrap();
    stack.running.reload().await.unwrap();
    assert_eq!(stack.send(Ask::get("/agents").header("x-request-id", "after")).await.status, 401);
    crate::stack::within("the new audit log", async {
        while !std::fs::read_to_string(&log).unwrap_or_default().contains("\"after\"") {
            stack.admin("/healthz").await;
        }
    })
    .await;
    assert!(!std::fs::read_to_string(&rotated).unwrap().contains("\"after\""));
}
