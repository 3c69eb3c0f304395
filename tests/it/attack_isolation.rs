//! Proves that no call reaches rows of another user or tenant, whatever ids it names and wherever it names them.
//! Does not test refusal codes in general (`http_refusals`).
//! Invariant: what is refused here never reached AgentOS but as a look-up.

use serde_json::json;

use crate::fake::{Event, FakeAgentOs, Line, Reply};
use crate::stack::{Ask, Got, Settings, Stack, Who};

/// A session of a user of AgentOS, as `GET /sessions/{id}` shows it for every kind that is asked for.
fn session(os: &FakeAgentOs, id: &str, user: &str) {
    os.pin("GET", &format!("/sessions/{id}"), Reply::json(200, &json!({"session_id": id, "user_id": user})));
}

fn no_session(os: &FakeAgentOs, id: &str) {
    os.pin("GET", &format!("/sessions/{id}"), Reply::json(404, &json!({"detail": "Session not found"})));
}

fn assert_not_found(what: &str, got: &Got) {
    assert_eq!((got.status, got.json()["code"].as_str()), (404, Some("not_found")), "{what}: {got:?}");
}

fn bulk_delete(ids: &str) -> Ask {
    let body = format!(r#"{{"session_ids":{ids},"session_types":["agent","agent"]}}"#);
    Ask::new("DELETE", "/sessions").by(&Who::alice()).body("application/json", body)
}

#[tokio::test]
async fn a_foreign_session_does_not_hide_among_own_ones() {
    let stack = Stack::start().await;
    session(stack.os(), "mine", "acme~alice");
    session(stack.os(), "bobs", "acme~bob");
    session(stack.os(), "eves", "globex~eve");
    no_session(stack.os(), "none");
    for ids in
        [r#"["bobs","mine"]"#, r#"["mine","bobs"]"#, r#"["eves","mine"]"#, r#"["mine","eves"]"#, r#"["mine","none"]"#]
    {
        assert_not_found(ids, &stack.send(bulk_delete(ids)).await);
    }
    // Not readable here is not absent there.
    let deep = format!(r#"["bobs",{}{}]"#, "[".repeat(200), "]".repeat(200));
    for ids in [r#"["bobs","\ud800"]"#, r#"["bobs",1e999]"#, &deep] {
        let got = stack.send(bulk_delete(ids)).await;
        assert_eq!((got.status, got.json()["code"].as_str()), (400, Some("form_malformed")), "{ids}: {got:?}");
    }
    assert_eq!(stack.os().requests_to("/sessions"), []);
    stack.os().pin("DELETE", "/sessions", Reply::json(200, &json!({})));
    assert_eq!(stack.send(bulk_delete(r#"["mine"]"#)).await.status, 200);
}

#[tokio::test]
async fn a_foreign_run_is_not_reached_through_an_own_session() {
    let stack = Stack::start().await;
    session(stack.os(), "mine", "acme~alice");
    let run = "/agents/assistant/runs/9d0ae2a7-0000-4000-8000-000000000000";
    stack.os().pin("GET", run, Reply::json(404, &json!({"detail": "Run not found"})));
    let asks = [
        Ask::post(&format!("{run}/cancel?session_id=mine")),
        Ask::post(&format!("{run}/resume")).field("session_id", "mine"),
        Ask::post(&format!("{run}/continue")).field("session_id", "mine").field("tools", "[]"),
    ];
    for ask in asks {
        assert_not_found(&format!("{ask:?}"), &stack.send(ask.by(&Who::alice())).await);
    }
    let reached: Vec<_> = stack.os().requests().into_iter().filter(|request| request.method == "POST").collect();
    assert_eq!(reached, []);
}

#[tokio::test]
async fn absent_and_foreign_sessions_look_the_same() {
    let stack = Stack::start().await;
    session(stack.os(), "eves", "globex~eve");
    no_session(stack.os(), "none");
    for (method, tail) in [("GET", ""), ("GET", "/runs"), ("DELETE", ""), ("POST", "/rename"), ("PATCH", "")] {
        let ask = |id: &str| {
            let ask = Ask::new(method, &format!("/sessions/{id}{tail}")).by(&Who::alice());
            if matches!(method, "POST" | "PATCH") { ask.json(&json!({"session_name": "x"})) } else { ask }
        };
        let (absent, foreign) = (stack.send(ask("none")).await, stack.send(ask("eves")).await);
        assert_not_found(tail, &absent);
        assert_not_found(tail, &foreign);
        let text = |got: &Got| {
            let mut body = got.json();
            body.as_object_mut().unwrap().remove("request_id");
            body
        };
        assert_eq!(text(&absent), text(&foreign), "{method} {tail}");
    }
}

#[tokio::test]
async fn the_owner_is_looked_up_where_the_call_acts() {
    let stack = Stack::start().await;
    session(stack.os(), "mine", "acme~alice");
    stack.send(Ask::get("/sessions/mine?type=team&db_id=other%26x&table=t").by(&Who::alice())).await;
    let looked_up = stack.os().requests_to("/sessions/mine");
    assert_eq!(looked_up[0].query(), "type=team&db_id=other%26x&table=t");
}

#[tokio::test]
async fn a_look_up_that_agentos_will_not_answer_is_no_absence() {
    let stack = Stack::start().await;
    let which = json!({"detail": "The db_id query parameter is required when using multiple databases"});
    stack.os().pin("GET", "/sessions/s", Reply::json(400, &which));
    let run = Ask::run("assistant").field("message", "hi").field("session_id", "s").by(&Who::alice());
    assert_not_found("a run in a session that nobody could look at", &stack.send(run).await);
}

#[tokio::test]
async fn content_of_another_tenant_is_out_of_reach() {
    let stack = Stack::start().await;
    let row = |tenant: &str| Reply::json(200, &json!({"id": "c", "name": "n", "metadata": {"tenant": tenant}}));
    stack.os().pin("GET", "/knowledge/content/theirs", row("globex"));
    stack.os().pin("GET", "/knowledge/content/ours", row("acme"));
    let admin = Who::new("ada").role("admin");
    for (method, tail) in [("GET", ""), ("DELETE", ""), ("GET", "/status"), ("POST", "/refresh")] {
        let got = stack.send(Ask::new(method, &format!("/knowledge/content/theirs{tail}")).by(&admin)).await;
        assert_not_found(tail, &got);
    }
    let patch = Ask::new("PATCH", "/knowledge/content/theirs").field("name", "taken").by(&admin);
    assert_not_found("PATCH", &stack.send(patch).await);
    assert_eq!(stack.send(Ask::get("/knowledge/content/ours").by(&admin)).await.status, 200);
    let changed: Vec<_> = stack.os().requests().into_iter().filter(|request| request.method != "GET").collect();
    assert_eq!(changed, []);
}

#[tokio::test]
async fn agents_search_only_the_knowledge_of_the_callers_tenant() {
    let stack = Stack::start().await;
    let run = Ask::run("assistant").field("message", "hi").field("stream", "false").by(&Who::alice());
    assert_eq!(stack.send(run).await.status, 200);
    let form = stack.os().requests_to("/agents/assistant/runs")[0].form();
    assert_eq!(form.get("knowledge_filters"), Some(r#"{"tenant":"acme"}"#));
    // The caller's own filters never pass.
    let forged = Ask::run("assistant").field("message", "hi").field("knowledge_filters", "{}").by(&Who::alice());
    assert_eq!(stack.send(forged).await.json()["code"], "field_not_allowed");
}

#[tokio::test]
async fn agentos_is_not_sent_to_fetch_from_its_own_network() {
    let stack = Stack::start().await;
    let admin = Who::new("ada").role("admin");
    for url in ["http://127.0.0.1:7777/info", "http://169.254.169.254/", "http://0x7f.1/", "http://[::1]/"] {
        let upload = Ask::post("/knowledge/content").field("name", "n").field("url", url).by(&admin);
        let got = stack.send(upload).await;
        assert_eq!((got.status, got.json()["code"].as_str()), (403, Some("forbidden")), "{url}: {got:?}");
    }
    let upload = Ask::post("/knowledge/content").field("name", "n").field("url", "file:///etc/passwd").by(&admin);
    assert_eq!(stack.send(upload).await.status, 403);
    assert_eq!(stack.os().requests(), []);
}

#[tokio::test]
async fn who_may_not_see_an_approval_does_not_learn_that_it_exists() {
    let stack = Stack::start().await;
    let row = json!({"id": "a1", "user_id": "acme~bob", "status": "pending", "tool_name": "t"});
    stack.os().pin("GET", "/approvals/a1", Reply::json(200, &row));
    stack.os().pin("GET", "/approvals/none", Reply::json(404, &json!({"detail": "Approval not found"})));
    for id in ["a1", "none"] {
        assert_not_found(id, &stack.send(Ask::get(&format!("/approvals/{id}")).by(&Who::alice())).await);
    }
    // Who may read it is told why it may not do more.
    let delete = Ask::new("DELETE", "/approvals/a1").by(&Who::new("pat").role("approver"));
    assert_eq!(stack.send(delete).await.status, 403);
}

#[tokio::test]
async fn a_user_in_the_path_is_the_caller_by_its_own_name() {
    let stack = Stack::start().await;
    let learnings = |user: &str| Ask::new("DELETE", &format!("/learnings/users/{user}?db_id=d")).by(&Who::alice());
    stack.os().pin("DELETE", "/learnings/users/acme~alice", Reply::empty(204));
    assert_eq!(stack.send(learnings("alice")).await.status, 204);
    let seen = stack.os().requests();
    assert_eq!(seen.iter().map(|r| &*r.target).collect::<Vec<_>>(), ["/learnings/users/acme~alice?db_id=d"]);
    assert_eq!(seen[0].claims()["sub"], "acme~alice");
    // Her upstream name is none that callers use; neither may others be named, whoever asks.
    for user in ["acme~alice", "bob", "acme~bob", "globex~alice", "Alice", "*"] {
        assert_not_found(user, &stack.send(learnings(user)).await);
    }
    let admin = Ask::new("DELETE", "/learnings/users/alice").by(&Who::new("ada").role("admin"));
    assert_not_found("admin", &stack.send(admin).await);
    assert_eq!(stack.os().requests().len(), 1);
}

#[tokio::test]
async fn a_list_of_the_tenant_is_narrowed_to_the_user_whom_the_caller_names() {
    let stack = Stack::start().await;
    let approvals = |user: &str| Ask::get(&format!("/approvals?user_id={user}")).by(&Who::new("pat").role("approver"));
    let mut seen = Vec::new();
    for user in ["bob", "globex~gina", ""] {
        assert_eq!(stack.send(approvals(user)).await.status, 200);
        seen.push(stack.os().requests_to("/approvals").pop().unwrap().query().replace("%7E", "~"));
    }
    let page = "page=1&limit=500";
    assert_eq!(seen, [format!("user_id=acme~bob&{page}"), format!("user_id=acme~globex~gina&{page}"), page.to_owned()]);
}

#[tokio::test]
async fn the_buckets_of_an_agentos_are_not_a_tenants() {
    let stack = Stack::start().await;
    let files = || Ask::get("/knowledge/docs/sources/bucket/files");
    let fetch = || Ask::post("/knowledge/remote-content").field("config_id", "bucket").field("path", "/x");
    let admin = Who::new("ada").role("admin").scope("knowledge:read").scope("knowledge:write");
    for ask in [files(), fetch()] {
        assert_eq!(stack.send(ask.clone().by(&admin)).await.code(), "forbidden", "{ask:?}");
    }
    assert_eq!(stack.os().requests(), []);
    let root = Who::new("root").role("admin").role("platform_admin");
    stack.os().pin("GET", "/knowledge/docs/sources/bucket/files", Reply::json(200, &json!({"files": []})));
    assert_eq!(stack.send(files().by(&root)).await.status, 200);
}

#[tokio::test]
async fn which_of_several_databases_must_be_said_where_it_can_be() {
    let stack = Stack::start().await;
    let which = json!({"detail": "The db_id query parameter is required when using multiple databases"});
    for path in ["/sessions/s", "/memories/m"] {
        stack.os().pin("GET", path, Reply::json(400, &which));
        let got = stack.send(Ask::get(path).by(&Who::alice())).await;
        assert_eq!((got.status, got.code().as_str()), (400, "form_malformed"), "{got:?}");
        assert!(got.json()["detail"].as_str().unwrap().contains("`db_id`"), "{got:?}");
    }
}

#[tokio::test]
async fn knowledge_that_no_filter_reaches_is_not_searched_for_a_tenant() {
    let fakes = vec![FakeAgentOs::start_as(Line::V2).await, FakeAgentOs::start().await];
    let searches = json!({"id": "x", "members": [{"knowledge": {"knowledge_filters": {"kind": "faq"}}}]});
    for os in fakes {
        os.pin("GET", "/workflows/daily-report", Reply::json(200, &json!({"steps": [{"agent": {"knowledge": {}}}]})));
        os.pin("GET", "/teams/newsroom", Reply::json(200, &searches));
        let own = [("name", "\"own\""), ("credential", "\"none\""), ("knowledge", "\"exclusive\"")];
        let settings = Settings::new().add("[[clusters]]", &own).set("[tenants.globex]", "clusters", "[\"main\"]");
        let stack = Stack::before(vec![os], settings).await;
        for path in ["/workflows/daily-report/runs", "/teams/newsroom/runs"] {
            let got = stack.send(Ask::post(path).field("message", "hi").by(&Who::alice())).await;
            assert_eq!((got.status, got.code().as_str()), (403, "knowledge_shared"), "{path}: {got:?}");
            let sent: Vec<_> = stack.os().requests().into_iter().filter(|request| request.method != "GET").collect();
            assert_eq!(sent, []);
        }
        // A component that is not described is not run.
        let absent = Ask::post("/workflows/none/runs").field("message", "hi").by(&Who::alice());
        assert_not_found("an unknown workflow", &stack.send(absent).await);
        // A cluster of one tenant has nothing to keep apart.
        let run = Ask::post("/workflows/daily-report/runs").field("message", "hi").field("stream", "false");
        let got = stack.send(run.header("tollbridge-cluster", "own").by(&Who::alice())).await;
        assert_eq!(got.status, 200, "{got:?}");
    }
}

/// One tenant of two on a cluster whose knowledge is kept apart by metadata, with a plain team and workflow.
async fn plain_components() -> (Stack, Who) {
    let stack = Stack::start().await;
    stack.os().pin("GET", "/teams/newsroom", Reply::json(200, &json!({"id": "newsroom", "members": []})));
    stack.os().pin("GET", "/workflows/daily-report", Reply::json(200, &json!({"id": "daily-report", "steps": []})));
    (stack, Who::new("root").role("admin").role("platform_admin"))
}

fn assert_shared(what: &str, stack: &Stack, got: &Got) {
    assert_eq!((got.status, got.code().as_str()), (403, "knowledge_shared"), "{what}: {got:?}");
    let sent: Vec<_> = stack.os().requests().into_iter().filter(|request| request.method != "GET").collect();
    assert_eq!(sent, [], "{what}");
}

#[tokio::test]
async fn another_version_of_a_team_is_not_run_where_knowledge_is_shared() {
    let (stack, root) = plain_components().await;
    let run = Ask::post("/teams/newsroom/runs").field("message", "hi").field("version", "1");
    assert_shared("a run", &stack, &stack.send(run.by(&Who::alice())).await);
    let schedule = json!({"name": "n", "cron_expr": "0 3 * * *", "endpoint": "/teams/newsroom/runs", "method": "POST",
                          "payload": {"message": "hi", "version": 1}});
    assert_shared("a schedule", &stack, &stack.send(Ask::post("/schedules").json(&schedule).by(&root)).await);
    let plain = Ask::post("/teams/newsroom/runs").field("message", "hi").field("stream", "false");
    assert_eq!(stack.send(plain.by(&Who::alice())).await.status, 200);
}

#[tokio::test]
async fn what_a_factory_makes_is_not_run_where_knowledge_is_shared() {
    let stack = Stack::start().await;
    for path in ["/teams/newsroom", "/workflows/daily-report"] {
        stack.os().pin("GET", path, Reply::json(200, &json!({"id": "x", "is_factory": true})));
        let run = Ask::post(&format!("{path}/runs")).field("message", "hi").by(&Who::alice());
        assert_shared(path, &stack, &stack.send(run).await);
    }
}

#[tokio::test]
async fn an_evaluation_does_not_search_where_knowledge_is_shared() {
    let (stack, root) = plain_components().await;
    stack.os().pin("GET", "/agents/assistant", Reply::json(200, &json!({"id": "assistant", "knowledge": {}})));
    let eval = json!({"agent_id": "assistant", "eval_type": "accuracy", "input": "list all documents"});
    assert_shared("an evaluation", &stack, &stack.send(Ask::post("/eval-runs").json(&eval).by(&root)).await);
}

#[tokio::test]
async fn a_component_that_was_changed_is_described_anew() {
    let (stack, root) = plain_components().await;
    let run = || Ask::post("/workflows/daily-report/runs").field("message", "hi").field("stream", "false");
    assert_eq!(stack.send(run().by(&Who::alice())).await.status, 200);
    let searches = json!({"id": "daily-report", "steps": [{"agent": {"knowledge": {}}}]});
    stack.os().pin("GET", "/workflows/daily-report", Reply::json(200, &searches));
    stack.os().pin("PATCH", "/components/daily-report", Reply::json(200, &json!({"component_id": "daily-report"})));
    let change = Ask::new("PATCH", "/components/daily-report").json(&json!({"current_version": 2}));
    assert_eq!(stack.send(change.by(&root)).await.status, 200);
    let got = stack.send(run().by(&Who::alice())).await;
    assert_eq!((got.status, got.code().as_str()), (403, "knowledge_shared"), "{got:?}");
}

#[tokio::test]
async fn the_first_to_ask_for_a_new_session_makes_it() {
    let stack = Stack::start().await;
    no_session(stack.os(), "shared");
    let (reply, gate) = Reply::paced_sse(&[Event::new("RunStarted", json!({})), Event::new("RunCompleted", json!({}))]);
    stack.os().pin("POST", "/agents/assistant/runs", reply);
    let run = |who: &Who| Ask::run("assistant").field("message", "hi").field("session_id", "shared").by(who);
    let gina = Who::new("gina").of("globex").role("operator");
    let mut first = stack.open(run(&Who::alice())).await;
    gate.open_once();
    first.until("RunStarted").await;
    // AgentOS has not written the session yet: a look-up finds none.
    assert_not_found("another tenant", &stack.send(run(&gina)).await);
    assert_not_found("a colleague", &stack.send(run(&Who::new("bob").role("operator"))).await);
    let made = Ask::post("/sessions").json(&json!({"session_id": "shared"})).by(&gina);
    assert_not_found("another way to make it", &stack.send(made).await);
    gate.open();
    first.rest().await;
    assert_not_found("a moment later", &stack.send(run(&gina)).await);
    assert_eq!(stack.send(run(&Who::alice())).await.status, 200);
    // A call that sent nothing keeps no id.
    no_session(stack.os(), "free");
    let viewer = Who::new("vera").role("viewer");
    let refused = Ask::run("assistant").field("message", "hi").field("session_id", "free").by(&viewer);
    assert_eq!(stack.send(refused).await.code(), "forbidden");
    let taken = Ask::run("assistant").field("message", "hi").field("session_id", "free").by(&gina);
    assert_eq!(stack.send(taken).await.status, 200);
}

#[tokio::test]
async fn naming_a_session_does_not_keep_its_owner_out() {
    let stack = Stack::start().await;
    let row = json!({"session_id": "mine", "user_id": "acme~alice"});
    let (reply, gate) = Reply::json(200, &row).stalled();
    stack.os().pin("GET", "/sessions/mine", reply);
    let ask = |who: Who| Ask::run("assistant").field("message", "hi").field("session_id", "mine").by(&who);
    let owner = async {
        // The other one's look-up is on its way.
        stack.os().wait_for_request("/sessions/mine", 1).await;
        stack.send(ask(Who::alice())).await
    };
    let opened = async {
        stack.os().wait_for_request("/sessions/mine", 2).await;
        gate.open();
    };
    let (other, (owner, ())) = tokio::join!(stack.send(ask(Who::new("gina").of("globex").role("operator"))), async {
        tokio::join!(owner, opened)
    });
    assert_eq!(owner.status, 200, "{owner:?}");
    assert_not_found("another tenant's session", &other);
}

#[tokio::test]
async fn files_of_the_same_name_stay_two_contents() {
    for (line, description) in [(Line::V2, Some("ours [acme]")), (Line::V3, Some("ours"))] {
        let stack = Stack::before(vec![FakeAgentOs::start_as(line).await], Settings::new()).await;
        stack.os().pin("POST", "/knowledge/content", Reply::json(202, &json!({"id": "c"})));
        let admin = Who::new("ada").role("admin");
        let upload = Ask::post("/knowledge/content").field("text_content", "x").field("description", "ours");
        assert_eq!(stack.send(upload.by(&admin)).await.status, 202);
        let form = stack.os().requests_to("/knowledge/content")[0].form();
        assert_eq!((form.get("metadata"), form.get("description")), (Some(r#"{"tenant":"acme"}"#), description));
    }
}

#[tokio::test]
async fn what_the_agents_of_all_tenants_read_is_not_written_by_one() {
    let stack = Stack::start().await;
    stack.os().pin("POST", "/learnings", Reply::json(201, &json!({"learning_id": "l"})));
    let learn = |kind: &str, namespace: Option<&str>| {
        let body = json!({"learning_type": kind, "namespace": namespace, "content": {"note": "x"},
            "entity_id": "e", "entity_type": "company"});
        Ask::post("/learnings").json(&body).by(&Who::alice())
    };
    for (kind, namespace) in [
        ("entity_memory", None),
        ("entity_memory", Some("global")),
        ("learned_knowledge", None),
        ("decision_log", None),
    ] {
        let got = stack.send(learn(kind, namespace)).await;
        assert_eq!((got.status, got.code().as_str()), (403, "forbidden"), "{kind} {namespace:?}: {got:?}");
    }
    assert_eq!(stack.os().requests(), []);
    for (kind, namespace) in [("entity_memory", Some("user")), ("user_profile", None), ("user_memory", Some("global"))]
    {
        assert_eq!(stack.send(learn(kind, namespace)).await.status, 201, "{kind} {namespace:?}");
    }
}

#[tokio::test]
async fn what_is_foreign_costs_as_much_as_what_is_absent() {
    let stack = Stack::start().await;
    session(stack.os(), "eves", "globex~eve");
    no_session(stack.os(), "none");
    let asked = async |id: &str, who: Who| {
        let before = stack.os().requests().len();
        stack.send(Ask::get(&format!("/sessions/{id}")).by(&who)).await;
        stack.os().requests().len() - before
    };
    // Its owner's own look leaves nothing behind that others could notice.
    asked("eves", Who::new("eve").of("globex").role("operator")).await;
    let mut costs = Vec::new();
    for id in ["none", "eves", "none", "eves"] {
        costs.push(asked(id, Who::alice()).await);
    }
    assert_eq!(costs, [3, 3, 3, 3]);
}

#[tokio::test]
async fn ids_are_no_longer_than_an_id() {
    let stack = Stack::start().await;
    let long = "x".repeat(513);
    let run = Ask::run("assistant").field("message", "hi").field("session_id", &long).by(&Who::alice());
    assert_eq!(stack.send(run).await.code(), "form_malformed");
    for path in [format!("/sessions/{long}"), format!("/memories/{long}"), format!("/approvals/{long}")] {
        let got = stack.send(Ask::get(&path).by(&Who::alice())).await;
        assert!(matches!(got.status, 400 | 404), "{got:?}");
    }
    assert_eq!(stack.os().requests(), []);
}

#[tokio::test]
async fn a_list_that_others_have_filled_says_that_it_is_not_whole() {
    let stack = Stack::start().await;
    let rows = |count: usize| {
        let row = |n: usize| json!({"id": n, "user_id": if n == 0 { "acme~bob" } else { "globex~gina" }});
        Reply::json(200, &json!({"data": (0..count).map(row).collect::<Vec<_>>()}))
    };
    let list = Ask::get("/approvals").by(&Who::new("pat").role("approver"));
    stack.os().pin("GET", "/approvals", rows(500));
    let got = stack.send(list.clone()).await.json();
    assert_eq!(
        (&got["meta"]["truncated"], &got["meta"]["total_count"]),
        (&json!(true), &json!(20)),
        "one of each page"
    );
    stack.os().pin("GET", "/approvals", rows(499));
    let got = stack.send(list).await.json();
    assert_eq!((&got["meta"]["truncated"], &got["meta"]["total_count"]), (&json!(null), &json!(1)));
}

#[tokio::test]
async fn a_caller_who_names_many_ids_takes_turns_with_itself_and_with_nobody_else() {
    /// `AT_ONCE` of `gateway::lookups`.
    const AT_ONCE: usize = 16;
    let stack = Stack::start().await;
    let ids: Vec<String> = (0..100).map(|n| format!("s{n}")).collect();
    let row = json!({"session_id": "s0", "user_id": "acme~alice"});
    let (slow, gate) = Reply::json(200, &row).stalled();
    stack.os().pin("GET", "/sessions/s0", slow);
    for id in &ids[1..] {
        session(stack.os(), id, "acme~alice");
    }
    session(stack.os(), "bobs", "acme~bob");
    stack.os().pin("DELETE", "/sessions", Reply::json(200, &json!({})));
    let body = json!({"session_ids": ids, "session_types": vec!["agent"; ids.len()]});
    let floods = (0..40).map(|_| {
        let ask = Ask::new("DELETE", "/sessions").by(&Who::alice()).json(&body);
        let stack = &stack;
        async move { stack.send(ask).await }
    });
    let others = async {
        stack.os().wait_for_request("/sessions/s0", AT_ONCE).await;
        // Everybody else is served while the caller waits for itself.
        let got = stack.send(Ask::get("/sessions/bobs").by(&Who::new("bob").role("operator"))).await;
        assert_eq!(got.status, 200, "{got:?}");
        assert_eq!(stack.os().requests_to("/sessions/s0").len(), AT_ONCE);
        gate.open();
    };
    let (floods, ()) = tokio::join!(futures_util::future::join_all(floods), others);
    let served = floods.iter().filter(|got| got.status == 200).count();
    assert_eq!(served, floods.len(), "nobody was refused: {:?}", floods.iter().find(|got| got.status != 200));
}
