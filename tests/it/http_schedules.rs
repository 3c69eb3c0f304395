//! Proves that what makes AgentOS start runs by itself is authorized as those runs: schedules, when they are written,
//! changed, enabled and triggered, and evaluations.

use serde_json::{Value, json};

use crate::agno::{AgentOs, Agno, Setup};
use crate::fake::Reply;
use crate::stack::{AGENTOS_KEY, Ask, Got, Settings, Stack, Who, within};

/// One tenant has the cluster for itself.
fn exclusive() -> Settings {
    let mint = r#"{ mint = { algorithm = "HS256", key = { env = "AGENTOS_JWT_KEY" }, audience = "my-os" } }"#;
    let elsewhere = [
        ("name", "\"elsewhere\""),
        ("endpoints", "[\"http://127.0.0.1:9\"]"),
        ("credential", mint),
        ("knowledge", "\"exclusive\""),
    ];
    Settings::new()
        .set("[[clusters]]", "knowledge", "\"exclusive\"")
        .add("[[clusters]]", &elsewhere)
        .set("[tenants.acme]", "clusters", "[\"main\"]")
        .set("[tenants.globex]", "clusters", "[\"elsewhere\"]")
}

/// May write schedules and run one agent.
fn planner() -> Who {
    Who::new("planner").scope("schedules:write").scope("evals:write").scope("agents:assistant:run")
}

fn admin() -> Who {
    Who::new("ada").role("admin")
}

fn schedule(endpoint: &str, payload: &Value) -> Value {
    json!({ "name": "nightly", "cron_expr": "0 3 * * *", "endpoint": endpoint, "method": "post", "payload": payload })
}

fn create(body: &Value) -> Ask {
    Ask::post("/schedules").json(body)
}

/// What of a request reached AgentOS beside look-ups.
fn changes(stack: &Stack) -> Vec<String> {
    let sent = stack.os().requests().into_iter().filter(|request| request.method != "GET");
    sent.map(|request| format!("{} {}", request.method, request.target)).collect()
}

fn code(got: &Got) -> (u16, String) {
    (got.status, got.json()["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_schedule_is_written_as_it_was_checked_and_runs_for_its_writer() {
    let stack = Stack::with(exclusive()).await;
    stack.os().pin("POST", "/schedules", Reply::json(201, &json!({ "id": "s-1" })));
    let payload = json!({ "message": "hi", "user_id": "acme~bob", "stream": false });
    let got = stack.send(create(&schedule("/agents/assistant/runs", &payload)).by(&planner())).await;
    assert_eq!(got.status, 201, "{got:?}");
    let sent: Value = serde_json::from_slice(&stack.os().requests_to("/schedules")[0].body).unwrap();
    let checked = json!({ "message": "hi", "user_id": "acme~planner", "stream": false });
    let mut expected = schedule("/agents/assistant/runs", &checked);
    expected["method"] = json!("POST");
    assert_eq!(sent, expected);
    // Without a payload it still runs for somebody.
    let bare = json!({ "name": "bare", "cron_expr": "", "endpoint": "/agents/assistant/runs" });
    assert_eq!(stack.send(create(&bare).by(&admin())).await.status, 201);
    let sent: Value = serde_json::from_slice(&stack.os().requests_to("/schedules")[1].body).unwrap();
    assert_eq!(sent["payload"], json!({ "user_id": "acme~ada" }));
}

#[tokio::test]
async fn a_schedule_that_is_no_run_of_the_writer_is_refused() {
    let stack = Stack::with(exclusive()).await;
    stack.os().pin("POST", "/schedules", Reply::json(201, &json!({ "id": "s-1" })));
    stack.os().pin("GET", "/sessions/foreign", Reply::json(200, &json!({ "user_id": "globex~gina" })));
    stack.os().pin("GET", "/sessions/bobs", Reply::json(200, &json!({ "user_id": "acme~bob" })));
    let run = "/agents/assistant/runs";
    let hi = json!({ "message": "hi" });
    for (endpoint, payload, expected) in [
        // Not what the scheduler may be used for, though its own rights would allow it.
        ("/config", &hi, (400, "field_not_allowed")),
        ("/schedules/s-1/trigger", &hi, (400, "field_not_allowed")),
        ("/agents/assistant/runs/r-1/cancel", &hi, (400, "field_not_allowed")),
        ("/nothing/here", &hi, (400, "field_not_allowed")),
        // Not the path that would be matched.
        ("/agents/assistant/runs?user_id=bob", &hi, (400, "field_not_allowed")),
        ("/agents/assistant/runs#x", &hi, (400, "field_not_allowed")),
        ("/agents/x/../assistant/runs", &hi, (400, "field_not_allowed")),
        ("/agents/x%2f..%2fassistant/runs", &hi, (400, "field_not_allowed")),
        ("//agents/assistant/runs", &hi, (400, "field_not_allowed")),
        ("http://elsewhere.test/agents/assistant/runs", &hi, (400, "field_not_allowed")),
        ("", &hi, (400, "field_not_allowed")),
        // Not the writer's to run.
        ("/agents/records/runs", &hi, (403, "forbidden")),
        ("/teams/newsroom/runs", &hi, (403, "forbidden")),
        // Not the writer's to say.
        (run, &json!({ "message": "hi", "session_state": {} }), (400, "field_not_allowed")),
        (run, &json!({ "message": "hi", "run_id": "r-1" }), (400, "field_not_allowed")),
        (run, &json!({ "message": "hi", "_agno_authorization": {} }), (400, "field_not_allowed")),
        (run, &json!({ "message": "hi", "files": ["a"] }), (400, "field_not_allowed")),
        (run, &json!({ "message": "hi", "session_id": ["bobs"] }), (400, "form_malformed")),
        (run, &json!("hi"), (400, "form_malformed")),
        // Not the writer's session.
        (run, &json!({ "message": "hi", "session_id": "foreign" }), (404, "not_found")),
        (run, &json!({ "message": "hi", "session_id": "bobs" }), (404, "not_found")),
    ] {
        let got = stack.send(create(&schedule(endpoint, payload)).by(&planner())).await;
        assert_eq!(code(&got), (expected.0, expected.1.to_owned()), "{endpoint} {payload}: {got:?}");
    }
    let without = json!({ "name": "nightly", "cron_expr": "0 3 * * *", "payload": hi });
    assert_eq!(code(&stack.send(create(&without).by(&planner())).await), (400, "field_not_allowed".to_owned()));
    let get = json!({ "name": "n", "cron_expr": "", "endpoint": "/agents", "method": "GET" });
    assert_eq!(code(&stack.send(create(&get).by(&planner())).await), (400, "field_not_allowed".to_owned()));
    assert_eq!(changes(&stack), Vec::<String>::new());
}

#[tokio::test]
async fn touching_a_schedule_needs_the_right_to_what_it_triggers() {
    let stack = Stack::with(exclusive()).await;
    let row = |endpoint: &str, owner: Value, payload: Value| json!({ "id": "s", "endpoint": endpoint, "method": "POST", "user_id": owner, "payload": payload });
    let run = "/agents/assistant/runs";
    for (id, stored) in [
        ("own", row(run, json!("acme~planner"), json!({ "message": "hi", "_agno_authorization": {} }))),
        ("own-v2", row(run, json!(null), json!({ "message": "hi", "user_id": "acme~planner" }))),
        ("unowned", row(run, json!(null), json!({ "message": "hi" }))),
        ("records", row("/agents/records/runs", json!("acme~planner"), json!(null))),
        ("odd", row("/config", json!("acme~planner"), json!(null))),
        ("bobs", row(run, json!("acme~bob"), json!({ "message": "hi" }))),
        ("bobs-v2", row(run, json!(null), json!({ "message": "hi", "user_id": "acme~bob" }))),
        ("ginas", row(run, json!("globex~gina"), json!({ "message": "hi" }))),
        ("session", row(run, json!("acme~planner"), json!({ "session_id": "bobs" }))),
    ] {
        stack.os().pin("GET", &format!("/schedules/{id}"), Reply::json(200, &stored));
        for (method, rest) in [("POST", "/trigger"), ("POST", "/enable"), ("PATCH", "")] {
            stack.os().pin(method, &format!("/schedules/{id}{rest}"), Reply::json(200, &json!({ "id": id })));
        }
    }
    stack.os().pin("GET", "/sessions/bobs", Reply::json(200, &json!({ "user_id": "acme~bob" })));
    let rename = json!({ "name": "other" });
    for (id, expected) in [
        ("own", [200, 200]),
        ("own-v2", [200, 200]),
        ("unowned", [200, 200]),
        ("records", [403, 200]),
        ("odd", [400, 400]),
        ("bobs", [404, 200]),
        ("bobs-v2", [404, 200]),
        ("ginas", [404, 404]),
        ("session", [404, 404]),
        ("absent", [404, 404]),
    ] {
        for (who, status) in [planner(), admin()].iter().zip(expected) {
            for ask in [
                Ask::post(&format!("/schedules/{id}/trigger")),
                Ask::post(&format!("/schedules/{id}/enable")),
                Ask::new("PATCH", &format!("/schedules/{id}")).json(&rename),
            ] {
                let got = stack.send(ask.clone().by(who)).await;
                assert_eq!(got.status, status, "{id} {ask:?} {who:?}: {got:?}");
            }
        }
    }
    let renamed = &stack.os().requests_to("/schedules/own").into_iter().find(|r| r.method == "PATCH").unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&renamed.body).unwrap(), rename);
}

#[tokio::test]
async fn a_schedule_cannot_be_pointed_at_what_its_changer_may_not_run() {
    let stack = Stack::with(exclusive()).await;
    let stored = json!({ "id": "own", "endpoint": "/agents/assistant/runs", "method": "POST",
                         "payload": { "message": "hi", "user_id": "acme~bob" } });
    stack.os().pin("GET", "/schedules/own", Reply::json(200, &stored));
    stack.os().pin("PATCH", "/schedules/own", Reply::json(200, &json!({ "id": "own" })));
    let change = |body: Value| Ask::new("PATCH", "/schedules/own").json(&body);
    let by = async |body: Value, who: &Who| code(&stack.send(change(body).by(who)).await);
    assert_eq!(by(json!({ "endpoint": "/agents/records/runs" }), &planner()).await.0, 404);
    let repoint = json!({ "endpoint": "/agents/records/runs", "payload": { "message": "x" } });
    assert_eq!(by(repoint, &planner()).await, (403, "forbidden".to_owned()));
    assert_eq!(by(json!({ "method": "DELETE" }), &admin()).await, (400, "field_not_allowed".to_owned()));
    assert_eq!(changes(&stack), Vec::<String>::new());
    // A new payload runs for whoever gives it, where nobody owns the schedule itself.
    let mine = json!({ "payload": { "message": "mine", "user_id": "acme~bob" } });
    assert_eq!(by(mine, &planner()).await.0, 200);
    let sent: Value = serde_json::from_slice(&stack.os().requests_to("/schedules/own").last().unwrap().body).unwrap();
    let checked = json!({ "message": "mine", "user_id": "acme~planner" });
    assert_eq!(sent, json!({ "payload": checked, "endpoint": "/agents/assistant/runs", "method": "POST" }));
}

#[tokio::test]
async fn schedules_stay_closed_where_tenants_share_a_cluster() {
    let stack = Stack::start().await;
    let body = schedule("/agents/assistant/runs", &json!({ "message": "hi" }));
    for ask in [
        create(&body),
        Ask::get("/schedules"),
        Ask::get("/schedules/s-1"),
        Ask::post("/schedules/s-1/trigger"),
        Ask::new("PATCH", "/schedules/s-1").json(&json!({ "name": "other" })),
        Ask::new("DELETE", "/schedules/s-1"),
    ] {
        let got = stack.send(ask.clone().by(&admin().scope("agent_os:admin"))).await;
        assert_eq!(code(&got), (403, "forbidden".to_owned()), "{ask:?}");
    }
    assert!(stack.os().requests().is_empty());
    // A platform administrator's run carries the tenant's filter, and one that was stored without it does not start.
    let root = Who::new("root").role("platform_admin").role("admin");
    stack.os().pin("POST", "/schedules", Reply::json(201, &json!({ "id": "s-1" })));
    stack.os().pin("GET", "/schedules/s-1", Reply::json(200, &body));
    assert_eq!(stack.send(create(&body).by(&root)).await.status, 201);
    let sent: Value = serde_json::from_slice(&stack.os().requests_to("/schedules")[0].body).unwrap();
    assert_eq!(sent["payload"]["knowledge_filters"], json!("{\"tenant\":\"acme\"}"));
    let got = stack.send(Ask::post("/schedules/s-1/trigger").by(&root)).await;
    assert_eq!(code(&got), (403, "forbidden".to_owned()), "{got:?}");
}

#[tokio::test]
async fn an_evaluation_is_authorized_as_the_run_of_what_it_evaluates() {
    let stack = Stack::with(exclusive()).await;
    stack.os().pin("POST", "/eval-runs", Reply::json(200, &json!({ "id": "e-1" })));
    let eval = |fields: Value| {
        let mut body = json!({ "eval_type": "accuracy", "input": "hi", "expected_output": "hi" });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        Ask::post("/eval-runs").json(&body)
    };
    for (fields, expected) in [
        (json!({ "agent_id": "records" }), (403, "forbidden")),
        (json!({ "team_id": "newsroom" }), (403, "forbidden")),
        (json!({ "agent_id": "assistant", "team_id": "newsroom" }), (403, "forbidden")),
        (json!({ "agent_id": ["assistant"] }), (400, "form_malformed")),
        (json!({ "agent_id": "a/../b" }), (400, "field_not_allowed")),
        (json!({ "agent_id": "" }), (400, "form_malformed")),
        (json!({}), (400, "form_malformed")),
    ] {
        let got = stack.send(eval(fields.clone()).by(&planner())).await;
        assert_eq!(code(&got), (expected.0, expected.1.to_owned()), "{fields}: {got:?}");
    }
    assert_eq!(changes(&stack), Vec::<String>::new());
    let got = stack.send(eval(json!({ "agent_id": "assistant", "team_id": null })).by(&planner())).await;
    assert_eq!(got.status, 200, "{got:?}");
}

/// On both releases: a schedule of one's own agent runs, one of another agent cannot be written.
#[tokio::test]
async fn a_rightful_schedule_runs_on_agno_and_another_is_refused() {
    for agno in Agno::ALL {
        let os = AgentOs::start(Setup::with_jwt(agno, AGENTOS_KEY).and("SCHEDULER", "1")).await;
        let stack = Stack::over(&[os.url()], exclusive().set("[clusters.health]", "timeout", "\"20s\"")).await;
        let body = schedule("/agents/assistant/runs", &json!({ "message": "hi", "user_id": "globex~gina" }));
        let got = stack.send(create(&body).by(&planner())).await;
        assert_eq!(got.status, 201, "{agno:?}: {got:?}");
        let id = got.json()["id"].as_str().unwrap().to_owned();

        let got = stack.send(Ask::post(&format!("/schedules/{id}/trigger")).by(&planner())).await;
        assert_eq!((got.status, got.json()["status"].as_str()), (200, Some("success")), "{agno:?}: {got:?}");
        // It ran for its writer: the session is hers to read, and nobody else's. AgentOS 2 with authorization keeps
        // it under the scheduler's own name, whatever the payload says: there it is nobody's.
        let session = got.json()["session_id"].as_str().unwrap().to_owned();
        let read = Ask::get(&format!("/sessions/{session}"));
        // While the run's last row is being written, SQLite may be busy.
        let hers = within("a session that can be read", async {
            loop {
                let got = stack.send(read.clone().by(&planner().role("viewer"))).await;
                if got.status != 502 {
                    break got;
                }
            }
        });
        let hers = hers.await;
        assert_eq!(hers.status, if agno == Agno::Oldest { 404 } else { 200 }, "{agno:?}: {hers:?}");
        assert_eq!(stack.send(read.by(&Who::new("bob").role("viewer"))).await.status, 404, "{agno:?}");

        let other = schedule("/agents/mailer/runs", &json!({ "message": "hi" }));
        let got = stack.send(create(&other).by(&planner())).await;
        assert_eq!(code(&got), (403, "forbidden".to_owned()), "{agno:?}: {got:?}");
        let repoint =
            Ask::new("PATCH", &format!("/schedules/{id}")).json(&json!({ "endpoint": "/agents/mailer/runs" }));
        assert_eq!(code(&stack.send(repoint.by(&planner())).await), (403, "forbidden".to_owned()), "{agno:?}");
        let listed = stack.send(Ask::get("/schedules").by(&admin())).await;
        assert_eq!(listed.json()["data"].as_array().map(Vec::len), Some(1), "{agno:?}: {listed:?}");
    }
}
