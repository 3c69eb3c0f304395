//! Proves `unknown_tenant = "default_plan"`: tenants outside `[tenants]` are served, counted together, and never meet.
//! Does not test how the setting is read (`config`).

use serde_json::json;

use crate::fake::Reply;
use crate::stack::{Ask, Got, Settings, Stack, Who};

/// A gateway whose cluster `main` lists `acme` alone, and whose cluster `spare` lists nobody.
async fn open(settings: Settings) -> Stack {
    let key = "{ mint = { algorithm = \"HS256\", key = { env = \"AGENTOS_JWT_KEY\" }, audience = \"my-os\" } }";
    let spare = [("name", "\"spare\""), ("credential", key), ("knowledge", "{ metadata = \"tenant\" }")];
    let settings = settings
        .set("[identity]", "unknown_tenant", "\"default_plan\"")
        .set("[tenants.acme]", "clusters", "[\"main\"]")
        .set("[tenants.globex]", "clusters", "[\"spare\"]");
    Stack::with(settings.add("[[clusters]]", &spare)).await
}

fn dan() -> Who {
    Who::new("dan").of("initech").role("operator")
}

fn run(who: &Who) -> Ask {
    Ask::run("assistant").field("message", "hi").field("stream", "false").by(who)
}

fn answer(got: &Got) -> (u16, String) {
    (got.status, got.json()["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_tenant_outside_the_table_is_served_under_its_own_name() {
    let stack = open(Settings::new()).await;
    let got = stack.send(run(&dan())).await;
    assert_eq!((got.status, got.json()["content"].as_str()), (200, Some("echo: hi")), "{got:?}");
    let form = stack.os().requests_to("/agents/assistant/runs")[0].form();
    assert_eq!(
        (form.get("user_id"), form.get("knowledge_filters")),
        (Some("initech~dan"), Some(r#"{"tenant":"initech"}"#))
    );
    assert_eq!(stack.send(Ask::get("/agents").by(&dan())).await.status, 200);
    let labels = ["tenant=\"other\"", "operation=\"create_agent_run\"", "code=\"ok\""];
    stack.wait_for_metric("tollbridge_requests_total", &labels, 1.0).await;
    assert!(!stack.admin("/metrics").await.contains("initech"));
}

#[tokio::test]
async fn two_tenants_outside_the_table_do_not_meet() {
    let stack = open(Settings::new()).await;
    let session = |user: &str| Reply::json(200, &json!({"session_id": "s", "user_id": user}));
    stack.os().pin("GET", "/sessions/dans", session("initech~dan"));
    stack.os().pin("GET", "/sessions/alices", session("acme~alice"));
    let content = Reply::json(200, &json!({"id": "c", "name": "n", "metadata": {"tenant": "initech"}}));
    stack.os().pin("GET", "/knowledge/content/c", content);

    let namesake = Who::new("dan").of("hooli").role("admin");
    for path in ["/sessions/dans", "/sessions/alices", "/knowledge/content/c"] {
        let got = stack.send(Ask::get(path).by(&namesake)).await;
        assert_eq!(answer(&got), (404, "not_found".to_owned()), "{path}: {got:?}");
    }
    assert_eq!(stack.send(Ask::get("/sessions/dans").by(&dan())).await.status, 200);
    // Nor does one of the table meet them.
    let ada = Who::new("ada").role("admin");
    assert_eq!(answer(&stack.send(Ask::get("/sessions/dans").by(&ada)).await), (404, "not_found".to_owned()));
}

#[tokio::test]
async fn nobody_has_a_cluster_alone_that_strangers_may_use() {
    let stack = open(Settings::new()).await;
    let wipe = |who: &Who, cluster: &str| {
        Ask::new("DELETE", "/knowledge/content").header("tollbridge-cluster", cluster).by(who)
    };
    let (ada, stranger) = (Who::new("ada").role("admin"), Who::new("dan").of("initech").role("admin"));
    for (who, cluster) in [(&ada, "main"), (&stranger, "main"), (&stranger, "spare")] {
        let got = stack.send(wipe(who, cluster)).await;
        assert_eq!(answer(&got), (403, "forbidden".to_owned()), "{who:?} on {cluster}: {got:?}");
    }
    let everybodys = json!({"learning_type": "learned_knowledge", "content": {"title": "t"}});
    let got = stack.send(Ask::post("/learnings").json(&everybodys).by(&ada)).await;
    assert_eq!(answer(&got), (403, "forbidden".to_owned()), "{got:?}");
    // A tenant of the table still uses the clusters of its row only.
    assert_eq!(answer(&stack.send(wipe(&ada, "spare")).await), (404, "cluster_unknown".to_owned()));
    assert_eq!(stack.os().requests(), []);
}

#[tokio::test]
async fn each_tenant_outside_the_table_has_the_default_plan_for_itself() {
    let settings = Settings::new()
        .set("[plans.small]", "requests", "{ per_minute = 60, burst = 1 }")
        .set("[plans.small]", "concurrent_runs", "\"unlimited\"")
        .set("[plans.small]", "tokens", "\"unlimited\"")
        .set("[quota]", "default_plan", "\"small\"");
    let stack = open(settings).await;
    let hooli = Who::new("dan").of("hooli").role("operator");
    assert_eq!(stack.send(Ask::get("/agents").by(&dan())).await.status, 200);
    assert_eq!(answer(&stack.send(Ask::get("/agents").by(&dan())).await), (429, "rate_limited".to_owned()));
    assert_eq!(stack.send(Ask::get("/agents").by(&hooli)).await.status, 200);
}
