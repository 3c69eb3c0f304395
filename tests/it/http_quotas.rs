//! Proves that limits hold under parallel callers and that what a run holds comes back.

use futures_util::future::join_all;
use serde_json::json;

use crate::fake::{Event, Reply};
use crate::stack::{Ask, Got, Settings, Stack, Who};

fn plan(key: &str, value: &str) -> Settings {
    Settings::new().set("[plans.open]", key, value)
}

fn run() -> Ask {
    Ask::run("assistant").field("message", "hi").by(&Who::alice())
}

#[tokio::test]
async fn two_hundred_callers_at_a_limit_of_ten_admit_ten() {
    let stack = Stack::with(plan("requests", "{ per_day = 10, burst = 10 }")).await;
    let callers: Vec<Who> = (0..200).map(|n| Who::new(&format!("u{n}")).role("operator")).collect();
    let answers = join_all(callers.iter().map(|who| stack.send(Ask::get("/sessions").by(who)))).await;
    let count = |status: u16| answers.iter().filter(|got| got.status == status).count();
    assert_eq!((count(200), count(429)), (10, 190));
    assert_eq!(stack.os().requests_to("/sessions").len(), 10);
    // Another tenant has its own.
    assert_eq!(stack.send(Ask::get("/sessions").by(&Who::alice().of("globex"))).await.status, 200);
    assert_eq!(stack.metric_sum("tollbridge_refusals_total", &["code=\"rate_limited\""]).await, 190.0);
}

#[tokio::test]
async fn a_run_slot_comes_back_when_its_caller_leaves() {
    let stack = Stack::with(plan("concurrent_runs", "2")).await;
    let events = ["RunStarted", "RunCompleted"].map(|name| Event::new(name, json!({"run_id": "r", "session_id": "s"})));
    let mut open = Vec::new();
    for _ in 0..2 {
        let (reply, gate) = Reply::paced_sse(&events);
        stack.os().script(reply);
        gate.open_once();
        let mut flow = stack.open(run()).await;
        flow.until("RunStarted").await;
        open.push((flow, gate));
    }
    assert_eq!(stack.metric("tollbridge_runs_active{tenant=\"acme\"}").await, 2.0);
    let got = stack.send(run()).await;
    assert_eq!((got.status, got.code()), (429, "too_many_runs".to_owned()));
    assert_eq!(got.json()["limit"]["limit"], 2);
    // Reads need no slot; another tenant has its own.
    assert_eq!(stack.send(Ask::get("/agents").by(&Who::alice())).await.status, 200);
    assert_eq!(
        stack.send(Ask::run("assistant").field("message", "hi").by(&Who::alice().of("globex"))).await.status,
        200
    );

    drop(open.pop());
    stack.wait_for_metric("tollbridge_runs_active", &["tenant=\"acme\""], 1.0).await;
    assert_eq!(stack.send(run()).await.status, 200);
    let (mut flow, gate) = open.pop().unwrap();
    gate.open();
    assert!(flow.rest().await.1);
    stack.wait_for_metric("tollbridge_runs_active", &["tenant=\"acme\""], 0.0).await;
}

#[tokio::test]
async fn a_run_slot_comes_back_after_every_failure() {
    let settings = plan("concurrent_runs", "1").set("[clusters.timeouts]", "response_header", "\"50ms\"");
    let stack = Stack::with(settings).await;
    for reply in
        [Reply::reset_at_once(), Reply::never(), Reply::garbage(), Reply::detail(500, "boom"), Reply::broken_sse(&[])]
    {
        stack.os().script(reply);
        let got = stack.open(run()).await.rest().await;
        assert!(!got.0.contains("too_many_runs"), "{got:?}");
        stack.wait_for_metric("tollbridge_runs_active", &[], 0.0).await;
    }
    assert_eq!(stack.send(run()).await.status, 200);
}

#[tokio::test]
async fn a_background_run_keeps_its_slot_when_its_caller_leaves_the_stream() {
    let stack = Stack::with(plan("concurrent_runs", "1")).await;
    let events = ["RunStarted", "RunCompleted"].map(|name| Event::new(name, json!({"run_id": "r", "session_id": "s"})));
    let (reply, gate) = Reply::paced_sse(&events);
    stack.os().script(reply);
    let row = |status: &str| {
        let metrics = json!({"input_tokens": 2, "output_tokens": 3, "total_tokens": 5});
        Reply::json(200, &json!({"run_id": "r", "session_id": "s", "status": status, "metrics": metrics}))
    };
    let path = "/agents/assistant/runs/r";
    stack.os().pin("GET", path, row("RUNNING"));
    gate.open_once();
    let mut flow = stack.open(run().field("background", "true")).await;
    flow.until("RunStarted").await;
    drop(flow);
    stack.wait_for_metric("tollbridge_in_flight", &["door=\"http\""], 0.0).await;
    assert_eq!(stack.send(run()).await.code(), "too_many_runs");
    stack.os().wait_for_request(path, 1).await;
    assert_eq!(stack.metric("tollbridge_runs_active{tenant=\"acme\"}").await, 1.0);
    stack.os().pin("GET", path, row("COMPLETED"));
    stack.wait_for_metric("tollbridge_runs_active", &["tenant=\"acme\""], 0.0).await;
    assert_eq!(stack.os().requests_to(path)[0].query(), "session_id=s");
    assert_eq!(stack.metric_sum("tollbridge_tokens_total", &["tenant=\"acme\""]).await, 5.0);
}

#[tokio::test]
async fn a_run_of_a_process_that_is_gone_gives_its_slot_back() {
    let stack = Stack::with(plan("concurrent_runs", "1").set("[clusters.health]", "interval", "\"100ms\"")).await;
    let path = "/agents/assistant/runs/r";
    // What the database says of a run whose process was killed.
    stack.os().pin("GET", path, Reply::json(200, &json!({"run_id": "r", "session_id": "s", "status": "RUNNING"})));
    stack.os().script(Reply::json(202, &json!({"run_id": "r", "session_id": "s", "status": "PENDING"})));
    assert_eq!(stack.send(run().field("background", "true")).await.status, 202);
    let probes = stack.os().requests_to("/health").len();
    stack.os().wait_for_request("/health", probes + 2).await;
    stack.os().wait_for_request(path, 2).await;
    assert_eq!(stack.metric("tollbridge_runs_active{tenant=\"acme\"}").await, 1.0);
    // Back before a probe failed, but not the same.
    let well = json!({"status": "ok", "instantiated_at": "2026-01-01T00:10:00Z"});
    stack.os().pin("GET", "/health", Reply::json(200, &well));
    stack.wait_for_metric("tollbridge_runs_active", &["tenant=\"acme\""], 0.0).await;
    assert_eq!(stack.send(run()).await.status, 200);
}

#[tokio::test]
async fn a_background_run_keeps_its_place_at_a_busy_endpoint() {
    let settings = Settings::new().set("[clusters.load]", "runs_per_endpoint", "1");
    let stack = Stack::with(settings.set("[clusters.load]", "queue_timeout", "\"50ms\"")).await;
    let events = [Event::new("RunStarted", json!({"run_id": "r", "session_id": "s"}))];
    let (streamed, gate) = Reply::paced_sse(&events);
    gate.open_once();
    let row = |status: &str| Reply::json(200, &json!({"run_id": "r", "session_id": "s", "status": status}));
    let accepted = Reply::json(202, &json!({"run_id": "r", "session_id": "s", "status": "PENDING"}));
    let path = "/agents/assistant/runs/r";
    for reply in [accepted, streamed] {
        stack.os().pin("GET", path, row("RUNNING"));
        stack.os().script(reply);
        let mut flow = stack.open(run().field("background", "true")).await;
        flow.until("\"r\"").await;
        drop(flow);
        stack.wait_for_metric("tollbridge_in_flight", &["door=\"http\""], 0.0).await;
        let got = stack.send(run()).await;
        assert_eq!((got.status, got.code()), (503, "overloaded".to_owned()));
        stack.os().pin("GET", path, row("COMPLETED"));
        stack.wait_for_metric("tollbridge_runs_active", &["tenant=\"acme\""], 0.0).await;
        assert_eq!(stack.send(run()).await.status, 200);
    }
}

#[tokio::test]
async fn an_exhausted_budget_stops_runs_and_nothing_else() {
    let stack = Stack::with(plan("tokens", "{ per_day = 8 }")).await;
    // Five tokens each.
    for status in [200, 200, 429] {
        let got = stack.send(run()).await;
        assert_eq!(got.status, status, "{got:?}");
        if status == 429 {
            assert_eq!(got.code(), "budget_exhausted");
            assert_eq!((&got.json()["limit"]["limit"], &got.json()["limit"]["remaining"]), (&json!(8), &json!(0)));
        }
    }
    assert_eq!(stack.send(Ask::get("/agents").by(&Who::alice())).await.status, 200);
    assert_eq!(
        stack.send(Ask::run("assistant").field("message", "hi").by(&Who::alice().of("globex"))).await.status,
        200
    );
}

#[tokio::test]
async fn runs_that_agentos_refused_cost_nothing() {
    let stack = Stack::with(plan("tokens", "{ per_day = 8 }")).await;
    for status in [401, 403, 422] {
        for _ in 0..5 {
            stack.os().script(Reply::detail(status, "no"));
            let got = stack.send(run()).await;
            assert!(got.status >= 400 && got.code() != "budget_exhausted", "{status}: {got:?}");
        }
    }
    assert_eq!(stack.send(run()).await.status, 200);
}

#[tokio::test]
async fn a_refusal_says_what_is_left_of_the_rate_that_it_spent() {
    let stack = Stack::with(plan("requests", "{ per_hour = 60 }").set("[plans.open]", "concurrent_runs", "0")).await;
    let rate = "\"requests\";q=60;w=3600";
    let told = |got: &Got| ["ratelimit-policy", "ratelimit"].map(|name| got.header(name).unwrap_or("").to_owned());

    let got = stack.send(Ask::run("assistant").field("message", "hi").by(&Who::new("vera").role("viewer"))).await;
    let [policy, left] = told(&got);
    assert_eq!((got.status, policy.as_str()), (403, rate));
    assert!(left.starts_with("\"requests\";r=59;"), "{left}");

    let got = stack.send(run()).await;
    let [policy, left] = told(&got);
    assert_eq!((got.status, got.code()), (429, "too_many_runs".to_owned()));
    assert_eq!(policy, format!("{rate}, \"concurrent_runs\";q=0;qu=\"concurrent-requests\""));
    assert!(left.starts_with("\"requests\";r=58;") && left.ends_with("\"concurrent_runs\";r=0"), "{left}");

    stack.os().pin("GET", "/sessions", Reply::detail(401, "who are you?"));
    let got = stack.send(Ask::get("/sessions").by(&Who::alice())).await;
    let [policy, left] = told(&got);
    assert_eq!((got.status, policy.as_str()), (502, rate));
    assert!(left.starts_with("\"requests\";r=57;"), "{left}");
}

#[tokio::test]
async fn callers_see_their_own_limits_and_nobody_elses() {
    let settings = plan("requests", "{ per_hour = 60 }").set("[plans.open]", "tokens", "{ per_day = 1_000 }");
    let settings = settings.set("[plans.open]", "user", "{ requests = { per_hour = 10 } }");
    let stack = Stack::with(settings).await;
    let quota = async |who: &Who| stack.send(Ask::get("/quota").by(who)).await.json();
    let bob = Who::new("bob").role("operator");
    // Five tokens.
    assert_eq!(stack.send(run()).await.status, 200);
    assert_eq!(stack.send(Ask::get("/agents").by(&bob)).await.status, 200);
    let shown = quota(&bob).await;
    assert_eq!((&shown["tenant"], &shown["plan"]), (&json!("acme"), &json!("open")));
    let limits: Vec<(&str, u64, u64)> = shown["limits"]
        .as_array()
        .unwrap()
        .iter()
        .map(|limit| {
            let number = |name: &str| limit[name].as_u64().unwrap();
            (limit["name"].as_str().unwrap(), number("limit"), number("used"))
        })
        .collect();
    // Its own looking is one request; `bob` is not told what `alice` did as herself.
    assert_eq!(limits, [("requests", 60, 3), ("tokens_per_day", 1_000, 5), ("user_requests", 10, 2)]);
    let foreign = quota(&bob.of("globex")).await;
    assert_eq!((&foreign["tenant"], &foreign["limits"][0]["used"]), (&json!("globex"), &json!(1)));
    assert_eq!(stack.send(Ask::get("/quota")).await.status, 401);
    let ratio = stack.metric("tollbridge_quota_used_ratio{limit=\"tokens_per_day\",tenant=\"acme\"}").await;
    assert!((ratio - 0.005).abs() < 1e-9, "{ratio}");
}

#[tokio::test]
async fn every_answer_says_what_is_left() {
    let stack = Stack::with(plan("requests", "{ per_hour = 60, burst = 3 }")).await;
    let got = stack.send(Ask::get("/quota").by(&Who::alice())).await;
    assert_eq!(got.status, 200, "{got:?}");
    for remaining in [1, 0] {
        let got = stack.send(Ask::get("/agents").by(&Who::alice())).await;
        assert_eq!(got.status, 200, "{got:?}");
        assert!(got.header("ratelimit-policy").unwrap().starts_with("\"requests\";q="), "{got:?}");
        assert!(got.header("ratelimit").unwrap().contains(&format!("r={remaining}")), "{got:?}");
    }
    let got = stack.send(Ask::get("/agents").by(&Who::alice())).await;
    assert_eq!((got.status, got.code()), (429, "rate_limited".to_owned()));
    let wait: u64 = got.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{got:?}");
}
