//! Proves that a cancel says what became of the run, wherever it is, and what becomes of runs whose caller goes away.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::fake::{Event, FakeAgentOs, RUN, Reply};
use crate::redis_server::RedisServer;
use crate::stack::{Ask, Settings, Stack, Who, open_at, within};

const RUNS: &str = "/agents/assistant/runs";

fn unprobed() -> Settings {
    Settings::new().set("[clusters.health]", "interval", "\"5m\"").set("[[clusters]]", "balance", "\"round_robin\"")
}

fn stream() -> Ask {
    Ask::run("assistant").field("message", "hi").field("session_id", "s-1").by(&Who::alice())
}

/// The events of a run whose id the gateway gives.
fn events() -> Vec<Event> {
    let event = |name| Event::new(name, json!({"run_id": RUN, "session_id": "s-1"}));
    ["RunStarted", "RunContent", "RunCancelled"].map(event).into()
}

fn cancel(run: &str) -> Ask {
    Ask::post(&format!("{RUNS}/{run}/cancel?session_id=s-1")).by(&Who::alice())
}

/// Starts a stream that waits after its first event; gives the id of its run.
async fn started(stack: &Stack, fake: &FakeAgentOs) -> (crate::stack::Flow, crate::fake::Gate, String) {
    let (reply, gate) = Reply::paced_sse(&events());
    fake.pin("POST", RUNS, reply);
    let mut flow = stack.open(stream()).await;
    gate.open_once();
    flow.until("RunStarted").await;
    let run = fake.requests_to(RUNS).last().unwrap().form().get("run_id").unwrap().to_owned();
    (flow, gate, run)
}

#[tokio::test]
async fn a_cancel_is_confirmed_by_the_end_of_the_stream() {
    let stack = Stack::with(unprobed()).await;
    let (mut flow, gate, run) = started(&stack, stack.os()).await;
    let began = Instant::now();
    let (got, ()) = tokio::join!(stack.send(cancel(&run)), async {
        stack.os().wait_for_request(&format!("{RUNS}/{run}/cancel"), 1).await;
        gate.open();
        assert!(flow.rest().await.0.contains("RunCancelled"));
    });
    assert_eq!(got.status, 200, "{got:?}");
    assert!(began.elapsed().as_secs() < 4, "{:?}", began.elapsed());
    // Once more: it is known to have ended.
    assert_eq!(stack.send(cancel(&run)).await.status, 200);
}

#[tokio::test]
async fn a_cancel_does_not_wait_for_a_database_that_hangs() {
    let stack = Stack::with(unprobed()).await;
    let (mut flow, gate, run) = started(&stack, stack.os()).await;
    stack.os().pin("GET", "/sessions/s-1", Reply::never());
    let (got, ()) = tokio::join!(stack.send(cancel(&run)), async {
        let path = format!("{RUNS}/{run}/cancel");
        let told = stack.os().wait_for_request(&path, 1);
        tokio::time::timeout(Duration::from_secs(4), told).await.expect("AgentOS is told at once");
        gate.open();
        assert!(flow.rest().await.0.contains("RunCancelled"));
    });
    assert_eq!(got.status, 200, "{got:?}");
    // The id proves whose the run is, not the session.
    let other = Ask::post(&format!("{RUNS}/{run}/cancel")).by(&Who::new("bob").role("operator"));
    assert_eq!(stack.send(other).await.status, 404);
}

#[tokio::test]
async fn a_cancel_is_confirmed_by_a_look_at_the_stored_run_from_another_gateway() {
    let fake = FakeAgentOs::start().await;
    let urls = [fake.url()];
    let (first, second) = (Stack::over(&urls, unprobed()).await, Stack::over(&urls, unprobed()).await);
    let (_flow, _gate, run) = started(&first, &fake).await;
    let stored = format!("{RUNS}/{run}");
    let row = |status: &str| json!({"run_id": run, "agent_id": "assistant", "session_id": "s-1", "status": status});
    fake.pin("GET", &stored, Reply::json(200, &row("RUNNING")));
    let (got, ()) = tokio::join!(second.send(cancel(&run)), async {
        fake.wait_for_request(&stored, 2).await;
        fake.pin("GET", &stored, Reply::json(200, &row("CANCELLED")));
    });
    assert_eq!(got.status, 200, "{got:?}");
}

#[tokio::test]
async fn a_cancel_that_shows_no_effect_is_answered_202_in_time() {
    let stack = Stack::with(unprobed()).await;
    let (_flow, _gate, run) = started(&stack, stack.os()).await;
    let began = Instant::now();
    let got = stack.send(cancel(&run)).await;
    assert_eq!((got.status, got.code()), (202, "cancel_unconfirmed".to_owned()), "{got:?}");
    assert!((4..8).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

/// A run that AgentOS gave an id of its own, as it does to workflows in the background.
async fn foreign(stack: &Stack, fakes: &[FakeAgentOs]) -> String {
    let row = json!({"run_id": "os-1", "workflow_id": "daily-report", "session_id": "s-1", "status": "RUNNING"});
    for fake in fakes {
        fake.pin("POST", "/workflows/daily-report/runs", Reply::json(202, &row));
        fake.pin("GET", "/workflows/daily-report/runs/os-1", Reply::json(200, &row));
    }
    let ask = Ask::post("/workflows/daily-report/runs").field("message", "hi").field("background", "true");
    let got = stack.send(ask.field("session_id", "s-1").by(&Who::alice())).await;
    assert_eq!(got.status, 202, "{got:?}");
    "/workflows/daily-report/runs/os-1".to_owned()
}

fn end_on_cancel(fakes: &[FakeAgentOs], path: &str) {
    let row = json!({"run_id": "os-1", "workflow_id": "daily-report", "session_id": "s-1", "status": "CANCELLED"});
    fakes.iter().for_each(|fake| fake.pin("GET", path, Reply::json(200, &row)));
}

#[tokio::test]
async fn a_cancel_of_a_run_that_nobody_placed_goes_to_every_replica() {
    let fakes = vec![FakeAgentOs::start().await, FakeAgentOs::start().await];
    let urls: Vec<String> = fakes.iter().map(FakeAgentOs::url).collect();
    let (first, second) = (Stack::over(&urls, unprobed()).await, Stack::over(&urls, unprobed()).await);
    let path = foreign(&first, &fakes).await;
    end_on_cancel(&fakes, &path);
    let ask = || Ask::post(&format!("{path}/cancel?session_id=s-1")).by(&Who::alice());
    let told = |fakes: &[FakeAgentOs]| {
        fakes.iter().map(|fake| fake.requests_to(&format!("{path}/cancel")).len()).sum::<usize>()
    };
    // The gateway that started it has learned where it is.
    assert_eq!(first.send(ask()).await.status, 200);
    assert_eq!(told(&fakes), 1);
    let got = second.send(ask()).await;
    assert_eq!((got.status, told(&fakes)), (200, 3), "{got:?}");
    // Somebody else's is none.
    let other = Ask::post(&format!("{path}/cancel?session_id=s-1")).by(&Who::new("bob").role("operator"));
    assert_eq!(second.send(other).await.status, 404);
    assert_eq!(told(&fakes), 3);
}

#[tokio::test]
async fn gateways_over_one_store_learn_from_each_other_where_runs_are() {
    let (server, folder) = (RedisServer::start(), TempDir::new().unwrap());
    let url = folder.path().join("redis.url");
    std::fs::write(&url, server.url().expose()).unwrap();
    let settings =
        unprobed().set("[quota]", "store", "\"redis\"").set("[store]", "redis", &format!("{{ file = {url:?} }}"));
    let fakes = vec![FakeAgentOs::start().await, FakeAgentOs::start().await];
    let urls: Vec<String> = fakes.iter().map(FakeAgentOs::url).collect();
    let first = Stack::over(&urls, settings.clone()).await;
    let path = foreign(&first, &fakes).await;
    end_on_cancel(&fakes, &path);
    // As after a restart: nothing is known here but what the store knows.
    let second = Stack::over(&urls, settings).await;
    let got = second.send(Ask::post(&format!("{path}/cancel?session_id=s-1")).by(&Who::alice())).await;
    assert_eq!(got.status, 200, "{got:?}");
    let told: Vec<usize> = fakes.iter().map(|fake| fake.requests_to(&format!("{path}/cancel")).len()).collect();
    let ran: Vec<usize> = fakes.iter().map(|fake| fake.requests_to("/workflows/daily-report/runs").len()).collect();
    assert_eq!(told, ran, "only the replica that holds the run is told");
}

/// A run that has ended, and the replica that had it before the other one.
async fn placed() -> (Stack, String, [FakeAgentOs; 2]) {
    let fakes = [FakeAgentOs::start().await, FakeAgentOs::start().await];
    let stack = Stack::over(&fakes.each_ref().map(FakeAgentOs::url), unprobed()).await;
    let got = stack.send(Ask::plain_run().by(&Who::alice())).await;
    let run = got.json()["run_id"].as_str().unwrap().to_owned();
    let [first, second] = fakes;
    let holds = !first.requests_to(RUNS).is_empty();
    (stack, run, if holds { [first, second] } else { [second, first] })
}

#[tokio::test]
async fn what_is_known_of_a_run_whose_replica_is_gone_is_told_as_incomplete() {
    let (stack, run, [holder, other]) = placed().await;
    drop(holder);
    let resume = || Ask::post(&format!("{RUNS}/{run}/resume")).field("session_id", "s-1").by(&Who::alice());
    let row = json!({
        "run_id": run, "agent_id": "assistant", "session_id": "s-1", "status": "RUNNING", "user_id": "acme~alice",
        "events": [{"event": "RunStarted", "run_id": run}],
    });
    other.pin("GET", &format!("{RUNS}/{run}"), Reply::json(200, &row));
    let got = stack.send(resume()).await;
    let text = got.text();
    assert_eq!(got.status, 200, "{text}");
    assert!(text.contains("\"incomplete\":true") && text.contains("event: RunStarted"), "{text}");
    let last: Value = serde_json::from_str(text.trim_end().rsplit("data: ").next().unwrap()).unwrap();
    assert_eq!((&last["event"], &last["run_id"], &last["retry"]), (&json!("error"), &json!(run), &json!(false)));
    assert_eq!(other.requests_to(&format!("{RUNS}/{run}/resume")), [], "another replica would say that all is well");
    // The database does not know it either: then it is gone.
    other.pin("GET", &format!("{RUNS}/{run}"), Reply::detail(404, "Run not found"));
    assert_eq!(stack.send(resume()).await.status, 404);
}

async fn leaves(rule: &str) -> (Stack, crate::fake::Gate, String) {
    let settings = Settings::new().set("[clusters.on_disconnect]", "create_agent_run", &format!("{rule:?}")).set(
        "[plans.open]",
        "concurrent_runs",
        "1",
    );
    let stack = Stack::before(vec![FakeAgentOs::start_as(crate::fake::Line::V2).await], settings).await;
    let (flow, gate, run) = started(&stack, stack.os()).await;
    drop(flow);
    (stack, gate, run)
}

#[tokio::test]
async fn a_detached_run_goes_on_without_its_caller() {
    let (stack, gate, _) = leaves("detach").await;
    // Its slot is taken while it goes on.
    let refused = stack.send(Ask::plain_run().by(&Who::alice())).await;
    assert_eq!(refused.code(), "too_many_runs", "{refused:?}");
    gate.open();
    stack.os().wait_for("the end of the run", |seen| seen.iter().any(|r| r.path() == RUNS && r.answered)).await;
    stack.wait_for_metric("tollbridge_runs_active", &[], 0.0).await;
    assert!(stack.os().requests_to(RUNS).iter().all(|request| !request.aborted));
}

#[tokio::test]
async fn a_run_that_is_cancelled_with_its_caller_is_told_so() {
    let (stack, _gate, run) = leaves("cancel").await;
    stack.os().wait_for_request(&format!("{RUNS}/{run}/cancel"), 1).await;
    stack.os().wait_for_abort(RUNS).await;
    stack.wait_for_metric("tollbridge_runs_active", &[], 0.0).await;
}

#[tokio::test]
async fn a_run_that_moved_before_its_caller_left_is_cancelled_where_it_is() {
    let (gone, there) = (FakeAgentOs::start().await, FakeAgentOs::start().await);
    let settings = unprobed().set("[clusters.on_disconnect]", "create_agent_run", "\"cancel\"");
    let stack = Stack::over(&[gone.url(), there.url()], settings).await;
    drop(gone);
    there.pin("POST", RUNS, Reply::never());
    // Of two in turn, one begins where nobody is any more.
    for n in 1..=2 {
        let ask = Ask::run("assistant").field("message", "hi").field("stream", "false").by(&Who::alice());
        let (address, mut tasks) = (stack.address(), JoinSet::new());
        tasks.spawn(async move { open_at(address, ask).await.whole().await });
        let run = there.wait_for_request(RUNS, n).await.form().get("run_id").unwrap().to_owned();
        tasks.shutdown().await;
        there.wait_for_request(&format!("{RUNS}/{run}/cancel"), 1).await;
    }
}

#[tokio::test]
async fn a_run_whose_caller_left_while_it_waited_is_not_sent_again() {
    let (gone, there) = (FakeAgentOs::start().await, FakeAgentOs::start().await);
    let settings = unprobed().set("[clusters.on_disconnect]", "create_agent_run", "\"cancel\"").set(
        "[clusters.retries]",
        "backoff",
        "\"5s\"",
    );
    let stack = Stack::over(&[gone.url(), there.url()], settings).await;
    drop(gone);
    there.pin("POST", RUNS, Reply::never());
    // Of two in turn, one begins where nobody is any more, and waits for up to five seconds.
    for _ in 0..2 {
        let cancels = || there.requests().iter().filter(|seen| seen.path().ends_with("/cancel")).count();
        let (cancelled, active) = (cancels(), stack.metric_sum("tollbridge_runs_active", &[]).await);
        let ask = Ask::run("assistant").field("message", "hi").field("stream", "false").by(&Who::alice());
        let (address, mut tasks) = (stack.address(), JoinSet::new());
        tasks.spawn(async move { open_at(address, ask).await.whole().await });
        stack.wait_for_metric("tollbridge_runs_active", &[], active + 1.0).await;
        tasks.shutdown().await;
        within("a cancel, or the end of a run that is not sent", async {
            while cancels() == cancelled && stack.metric_sum("tollbridge_runs_active", &[]).await > active {}
        })
        .await;
    }
    for sent in there.requests_to(RUNS) {
        let cancel = format!("{RUNS}/{}/cancel", sent.form().get("run_id").unwrap());
        assert_eq!(there.requests_to(&cancel).len(), 1, "a run is sent that nobody cancels");
    }
}

#[tokio::test]
async fn a_run_that_was_continued_elsewhere_is_cancelled_there() {
    let (stack, run, [holder, other]) = placed().await;
    let address = holder.address();
    drop(holder);
    let row = json!({
        "run_id": run, "agent_id": "assistant", "session_id": "s-1", "status": "PAUSED", "user_id": "acme~alice",
    });
    other.pin("GET", &format!("{RUNS}/{run}"), Reply::json(200, &row));
    let events = ["RunContinued", "RunCancelled"].map(|name| Event::new(name, json!({"run_id": run})));
    let (reply, gate) = Reply::paced_sse(&events);
    other.pin("POST", &format!("{RUNS}/{run}/continue"), reply);
    let ask = Ask::post(&format!("{RUNS}/{run}/continue")).field("session_id", "s-1").by(&Who::alice());
    let mut flow = None;
    // The first attempts find out that nobody is there.
    for _ in 0..5 {
        let mut opened = stack.open(ask.clone()).await;
        gate.open_once();
        if opened.status() == 200 {
            opened.until("RunContinued").await;
            flow = Some(opened);
            break;
        }
    }
    let mut flow = flow.expect("the run goes on elsewhere");
    // Back, with nothing in its memory.
    let back = FakeAgentOs::start_at(address).await;
    let path = format!("{RUNS}/{run}/cancel");
    let (got, ()) = tokio::join!(stack.send(cancel(&run)), async {
        other.wait_for_request(&path, 1).await;
        gate.open();
        flow.rest().await;
    });
    assert_eq!(got.status, 200, "{got:?}");
    assert_eq!(back.requests_to(&path), []);
}

#[tokio::test]
async fn a_run_keeps_its_slot_until_it_is_seen_to_end() {
    let settings = Settings::new().set("[plans.open]", "concurrent_runs", "1");
    let stack = Stack::with(settings).await;
    let (flow, _gate, run) = started(&stack, stack.os()).await;
    let stored = format!("{RUNS}/{run}");
    let row = |status: &str| json!({"run_id": run, "agent_id": "assistant", "session_id": "s-1", "status": status});
    stack.os().pin("GET", &stored, Reply::json(200, &row("RUNNING")));
    drop(flow);
    stack.os().wait_for_request(&stored, 2).await;
    assert_eq!(stack.send(stream()).await.code(), "too_many_runs");
    stack.os().pin("GET", &stored, Reply::json(200, &row("CANCELLED")));
    within("the slot", async { while stack.metric_sum("tollbridge_runs_active", &[]).await > 0.0 {} }).await;
}

#[tokio::test]
async fn streams_that_go_on_at_the_end_of_a_drain_are_told_to_try_again() {
    let stack = Stack::with(Settings::new().set("[server]", "drain_timeout", "\"1s\"")).await;
    let (mut flow, _gate, run) = started(&stack, stack.os()).await;
    let (_, (text, clean)) = tokio::join!(stack.running.drain(), flow.rest());
    assert!(clean, "{text}");
    let last: Value = serde_json::from_str(text.trim_end().rsplit("data: ").next().unwrap()).unwrap();
    assert_eq!((&last["code"], &last["retry"], &last["run_id"]), (&json!("draining"), &json!(true), &json!(run)));
}

#[tokio::test]
async fn a_run_in_the_background_is_not_to_be_sent_again_after_a_drain() {
    let stack = Stack::with(Settings::new().set("[server]", "drain_timeout", "\"1s\"")).await;
    let (reply, gate) = Reply::paced_sse(&events());
    stack.os().pin("POST", RUNS, reply);
    let mut flow = stack.open(stream().field("background", "true")).await;
    gate.open_once();
    flow.until("RunStarted").await;
    let (_, (text, _)) = tokio::join!(stack.running.drain(), flow.rest());
    let last: Value = serde_json::from_str(text.trim_end().rsplit("data: ").next().unwrap()).unwrap();
    assert_eq!((&last["code"], &last["retry"]), (&json!("draining"), &json!(false)), "AgentOS goes on with it");
}

#[tokio::test]
async fn a_run_that_outlasts_the_wait_for_its_answer_keeps_its_slot() {
    let settings = Settings::new().set("[plans.open]", "concurrent_runs", "1");
    let stack = Stack::with(settings.set("[clusters.timeouts]", "response_header", "\"2s\"")).await;
    stack.os().pin("POST", RUNS, Reply::never());
    let got = stack.send(stream().field("stream", "false")).await;
    assert_eq!((got.status, got.code()), (504, "upstream_timeout".to_owned()), "{got:?}");
    let run = stack.os().requests_to(RUNS)[0].form().get("run_id").unwrap().to_owned();
    let stored = format!("{RUNS}/{run}");
    // AgentOS 2 stores nothing before the end.
    stack.os().wait_for_request(&stored, 1).await;
    assert_eq!(stack.send(stream()).await.code(), "too_many_runs");
    let row = json!({"run_id": run, "agent_id": "assistant", "session_id": "s-1", "status": "COMPLETED"});
    stack.os().pin("GET", &stored, Reply::json(200, &row));
    stack.wait_for_metric("tollbridge_runs_active", &[], 0.0).await;
    // One that AgentOS does not store, and nobody ever sees.
    assert_eq!(stack.send(stream().field("stream", "false")).await.status, 504);
    assert_eq!(stack.metric_sum("tollbridge_runs_active", &[]).await, 1.0);
    stack.wait_for_metric("tollbridge_runs_active", &[], 0.0).await;
}

#[tokio::test]
async fn a_reply_that_does_not_end_gives_back_what_its_run_held() {
    let settings = Settings::new().set("[clusters.timeouts]", "stream_idle", "\"1s\"");
    let stack = Stack::with(settings.set("[plans.open]", "concurrent_runs", "1")).await;
    stack.os().pin("POST", RUNS, Reply::unfinished());
    let got = stack.send(stream().field("stream", "false")).await;
    assert_eq!((got.status, got.code()), (504, "upstream_timeout".to_owned()), "{got:?}");
    stack.wait_for_metric("tollbridge_runs_active", &[], 0.0).await;
}

#[tokio::test]
async fn a_run_in_the_background_is_followed_though_its_caller_left_before_the_answer() {
    let settings = Settings::new().set("[plans.open]", "concurrent_runs", "1");
    let stack = Stack::before(vec![FakeAgentOs::start_as(crate::fake::Line::V2).await], settings).await;
    let accepted = json!({"run_id": "r", "session_id": "s-1", "status": "PENDING"});
    let (reply, gate) = Reply::json(202, &accepted).stalled();
    stack.os().pin("POST", RUNS, reply);
    let row = |status: &str| Reply::json(200, &json!({"run_id": "r", "session_id": "s-1", "status": status}));
    let stored = format!("{RUNS}/r");
    stack.os().pin("GET", &stored, row("RUNNING"));
    let (address, ask, mut tasks) = (stack.address(), stream().field("background", "true"), JoinSet::new());
    tasks.spawn(async move { open_at(address, ask).await.whole().await });
    stack.os().wait_for_request(RUNS, 1).await;
    tasks.shutdown().await;
    gate.open();
    stack.os().wait_for_request(&stored, 1).await;
    assert_eq!(stack.send(Ask::plain_run().by(&Who::alice())).await.code(), "too_many_runs");
    stack.os().pin("GET", &stored, row("COMPLETED"));
    stack.wait_for_metric("tollbridge_runs_active", &[], 0.0).await;
}
