//! Proves that lists, caches and look-ups show each caller its own and nothing else.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::fake::Reply;
use crate::stack::{Ask, Got, Settings, Stack, Who};

fn ids(got: &Got) -> Vec<String> {
    let ids = got.json();
    ids.as_array()
        .map_or_else(Vec::new, |items| items.iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect())
}

#[tokio::test]
async fn a_shared_list_is_fetched_once_and_shown_to_each_as_allowed() {
    let stack = Stack::start().await;
    let both = vec!["assistant".to_owned(), "records".to_owned()];
    for (who, status, shown, cache) in [
        (Who::new("viewer").role("viewer"), 200, both.clone(), "fwd=miss"),
        (Who::new("narrow").scope("agents:assistant:read"), 200, vec!["assistant".to_owned()], "hit"),
        (Who::new("nobody"), 403, vec![], ""),
        (Who::new("eve").of("globex").role("viewer"), 200, both, "hit"),
    ] {
        let got = stack.send(Ask::get("/agents").by(&who)).await;
        assert_eq!((got.status, ids(&got)), (status, shown), "{who:?}: {got:?}");
        if status == 200 {
            assert!(got.header("cache-status").unwrap().contains(cache), "{who:?}: {got:?}");
        }
        assert_eq!(got.header("age").is_some(), cache == "hit", "{who:?}: {got:?}");
    }
    let seen = stack.os().requests_to("/agents");
    assert_eq!(seen.len(), 1);
    // What is shared is nobody's: it is fetched in the gateway's own name.
    assert!(seen[0].claims()["sub"].as_str().is_none_or(|sub| !sub.contains("viewer")), "{}", seen[0].claims());
}

#[tokio::test]
async fn ten_callers_at_once_cost_one_request() {
    let stack = Stack::start().await;
    let (reply, gate) = Reply::json(200, &json!([{"id": "assistant"}])).stalled();
    stack.os().pin("GET", "/agents", reply);
    let callers: Vec<Who> = (0..10).map(|n| Who::new(&format!("u{n}")).role("viewer")).collect();
    let asked = join_all(callers.iter().map(|who| stack.send(Ask::get("/agents").by(who))));
    let opened = async {
        stack.os().wait_for_request("/agents", 1).await;
        stack.wait_for_metric("tollbridge_in_flight", &["door=\"http\""], 10.0).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(asked, opened);
    for got in &answers {
        assert_eq!((got.status, ids(got)), (200, vec!["assistant".to_owned()]), "{got:?}");
    }
    assert_eq!(stack.os().requests_to("/agents").len(), 1);
}

#[tokio::test]
async fn knowledge_is_kept_per_caller_and_forgotten_after_an_upload() {
    let stack = Stack::with(
        Settings::new().add("[[cache.rules]]", &[("operation", "\"search_knowledge\""), ("ttl", "\"5m\"")]),
    )
    .await;
    let alice = Who::new("alice").role("admin");
    let search = |who: &Who| Ask::post("/knowledge/search").json(&json!({"query": "tolls"})).by(who);
    let count = || stack.os().requests_to("/knowledge/search").len();
    for (who, fetched) in [
        (&alice, 1),
        (&alice, 1),
        (&Who::new("bob").role("viewer"), 2),
        (&Who::new("alice").of("globex").role("viewer"), 3),
        (&alice, 3),
    ] {
        let got = stack.send(search(who)).await;
        assert_eq!((got.status, count()), (200, fetched), "{who:?}: {got:?}");
    }
    // Each search carries the filter of its tenant.
    let tenants: Vec<Value> = stack
        .os()
        .requests_to("/knowledge/search")
        .iter()
        .map(|seen| serde_json::from_slice::<Value>(&seen.body).unwrap()["filters"]["tenant"].clone())
        .collect();
    assert_eq!(tenants, ["acme", "acme", "globex"]);

    stack.os().pin("POST", "/knowledge/content", Reply::json(202, &json!({"id": "c-1"})));
    let upload = Ask::post("/knowledge/content").field("text_content", "new").field("name", "n").by(&alice);
    let got = stack.send(upload).await;
    assert_eq!(got.status, 202, "{got:?}");
    let form = stack.os().requests_to("/knowledge/content")[0].form();
    assert_eq!(form.get("metadata"), Some(r#"{"tenant":"acme"}"#));
    assert_eq!((stack.send(search(&alice)).await.status, count()), (200, 4));
}

#[tokio::test]
async fn a_large_configuration_is_narrowed_also_when_it_is_not_kept() {
    let narrow = Who::new("narrow").scope("config:read").scope("agents:assistant:read");
    let padding = "x".repeat(100 << 10);
    let config = json!({"os_id": padding, "agents": [{"id": "assistant"}, {"id": "records"}], "teams": [{"id": "t"}]});
    for rule in [None, Some("\"0s\"")] {
        let mut settings = Settings::new();
        if let Some(ttl) = rule {
            settings = settings.add("[[cache.rules]]", &[("operation", "\"get_config\""), ("ttl", ttl)]);
        }
        let stack = Stack::with(settings).await;
        stack.os().pin("GET", "/config", Reply::json(200, &config));
        let got = stack.send(Ask::get("/config").by(&narrow)).await;
        let shown = (got.json()["agents"].clone(), got.json()["teams"].clone());
        assert_eq!(shown, (json!([{"id": "assistant"}]), json!([])), "ttl {rule:?}");
    }
}

#[tokio::test]
async fn the_names_of_other_tenants_metadata_are_not_told() {
    let stack = Stack::start().await;
    let config = json!({"readers": {"pdf": {"id": "pdf"}}, "filters": ["project-zebra", "tenant"]});
    stack.os().pin("GET", "/knowledge/config", Reply::json(200, &config));
    let got = stack.send(Ask::get("/knowledge/config").by(&Who::new("viewer").role("viewer"))).await;
    assert_eq!(got.json(), json!({"readers": {"pdf": {"id": "pdf"}}, "filters": []}), "{got:?}");
}

#[tokio::test]
async fn rows_of_others_do_not_exist() {
    let stack = Stack::start().await;
    let session = |id: &str, user: Value| {
        stack.os().pin(
            "GET",
            &format!("/sessions/{id}"),
            Reply::json(200, &json!({"session_id": id, "user_id": user})),
        );
    };
    session("globex", json!("globex~eve"));
    session("bobs", json!("acme~bob"));
    session("nobodys", Value::Null);
    let alice = Who::alice();
    let admin = Who::new("root").role("admin");
    let cases = [
        ("another tenant's session", Ask::get("/sessions/globex"), &alice, 404),
        ("to the admin too", Ask::get("/sessions/globex"), &admin, 404),
        ("a colleague's session", Ask::get("/sessions/bobs"), &alice, 404),
        ("which the admin may see", Ask::get("/sessions/bobs"), &admin, 200),
        ("a session of nobody", Ask::get("/sessions/nobodys"), &alice, 404),
        ("deleting it", Ask::new("DELETE", "/sessions/globex"), &alice, 404),
        ("a run in it", Ask::run("assistant").field("message", "hi").field("session_id", "globex"), &alice, 404),
        (
            "a run in a colleague's",
            Ask::run("assistant").field("message", "hi").field("session_id", "bobs"),
            &admin,
            404,
        ),
        ("a run nobody started", Ask::get("/agents/assistant/runs/r-1?session_id=globex"), &alice, 404),
        ("a cancel of it", Ask::post("/agents/assistant/runs/r-1/cancel"), &alice, 404),
    ];
    for (what, ask, who, status) in cases {
        let got = stack.send(ask.by(who)).await;
        assert_eq!(got.status, status, "{what}: {got:?}");
        assert!(!got.text().contains("acme~") && !got.text().contains("globex~"), "{what}: {got:?}");
    }
    let seen = stack.os().requests();
    assert!(seen.iter().all(|request| request.method == "GET"), "{seen:?}");
}

#[tokio::test]
async fn a_run_belongs_to_who_started_it() {
    let stack = Stack::start().await;
    let got = stack.send(Ask::run("assistant").field("message", "hi").field("stream", "false").by(&Who::alice())).await;
    assert_eq!((got.status, got.json()["user_id"].as_str()), (200, Some("alice")), "{got:?}");
    let run = format!("/agents/assistant/runs/{}", got.json()["run_id"].as_str().unwrap());
    let cases = [
        (Who::alice(), 200),
        (Who::new("bob").role("operator"), 404),
        (Who::new("alice").of("globex").role("operator"), 404),
    ];
    for (who, status) in cases {
        for ask in [Ask::get(&run), Ask::post(&format!("{run}/cancel"))] {
            let got = stack.send(ask.by(&who)).await;
            assert_eq!(got.status, status, "{who:?}: {got:?}");
        }
    }
}

#[tokio::test]
async fn approvals_are_those_of_the_tenant() {
    let stack = Stack::start().await;
    let row = |id: &str, user: &str| json!({"id": id, "user_id": user, "status": "pending", "tool_name": "t"});
    let rows = [row("a-1", "acme~alice"), row("g-1", "globex~eve"), row("a-2", "acme~bob")];
    let meta = json!({"page": 1, "limit": 100, "total_pages": 1, "total_count": 3});
    stack.os().pin("GET", "/approvals", Reply::json(200, &json!({"data": rows, "meta": meta})));
    for row in &rows {
        let path = format!("/approvals/{}", row["id"].as_str().unwrap());
        stack.os().pin("GET", &path, Reply::json(200, row));
        stack.os().pin("POST", &format!("{path}/resolve"), Reply::json(200, row));
    }
    let approver = Who::new("carol").role("approver");
    let got = stack.send(Ask::get("/approvals").by(&approver)).await;
    let shown: Vec<(String, String)> = got.json()["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["id"].as_str().unwrap().to_owned(), row["user_id"].as_str().unwrap().to_owned()))
        .collect();
    let pair = |id: &str, user: &str| (id.to_owned(), user.to_owned());
    assert_eq!(shown, [pair("a-1", "alice"), pair("a-2", "bob")]);
    assert_eq!(got.json()["meta"]["total_count"], 2);

    let resolve = |id: &str| {
        Ask::post(&format!("/approvals/{id}/resolve")).json(&json!({"status": "approved", "resolved_by": "eve"}))
    };
    for (what, who, id, status) in [
        ("another tenant's", &approver, "g-1", 404),
        ("her own", &Who::new("alice").role("approver"), "a-1", 403),
        ("an operator's", &Who::new("dave").role("operator"), "a-1", 404),
        ("a colleague's", &approver, "a-1", 200),
    ] {
        let got = stack.send(resolve(id).by(who)).await;
        assert_eq!(got.status, status, "{what}: {got:?}");
    }
    let seen: Vec<_> = stack.os().requests().into_iter().filter(|request| request.method == "POST").collect();
    assert_eq!(seen.len(), 1);
    assert_eq!(serde_json::from_slice::<Value>(&seen[0].body).unwrap()["resolved_by"], "acme~carol");
}
