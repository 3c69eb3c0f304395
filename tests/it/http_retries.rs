//! Proves what is sent again and what never is.

use std::net::IpAddr;
use std::sync::Arc;

use tollbridge::gateway::{Call, Caller, Gateway, Inbound, Snapshot};
use tollbridge::outbound::{self, Client};
use tollbridge::telemetry::{self, AuditFailure, Door, LogTarget, Telemetry};

use crate::fake::{FakeAgentOs, Reply};
use crate::stack::{Ask, Settings, Stack, Who};

const RUNS: &str = "/agents/assistant/runs";
const ROWS: &str = "/sessions/s-1/runs";

fn run() -> Ask {
    Ask::plain_run().by(&Who::alice())
}

fn read() -> Ask {
    Ask::get(ROWS).by(&Who::alice())
}

/// Probes only at the start: what dies later is found by requests.
fn unprobed() -> Settings {
    Settings::new().set("[clusters.health]", "interval", "\"5m\"").set("[[clusters]]", "balance", "\"round_robin\"")
}

async fn two(settings: Settings) -> Stack {
    Stack::before(vec![FakeAgentOs::start().await, FakeAgentOs::start().await], settings).await
}

/// Two endpoints, of which one is gone; gives the other.
async fn one_of_two() -> (Stack, FakeAgentOs) {
    let fakes = vec![FakeAgentOs::start().await, FakeAgentOs::start().await];
    let urls: Vec<String> = fakes.iter().map(FakeAgentOs::url).collect();
    let stack = Stack::over(&urls, unprobed()).await;
    let mut fakes = fakes.into_iter();
    drop(fakes.next());
    let live = fakes.next().unwrap();
    (stack, live)
}

#[tokio::test]
async fn a_read_survives_a_pooled_connection_that_upstream_closed() {
    let stack = Stack::with(unprobed()).await;
    let rows = Reply::json(200, &serde_json::json!([]));
    stack.os().pin("GET", ROWS, rows.clone().and_close());
    for _ in 0..5 {
        assert_eq!(stack.send(read()).await.status, 200);
    }
    // Closed only when the next request is on its way: uvicorn's keep-alive timeout, met exactly.
    stack.os().pin("GET", ROWS, rows);
    assert_eq!(stack.send(read()).await.status, 200);
    stack.os().unpin("GET", ROWS);
    for dying in [Reply::closed_at_once(), Reply::reset_at_once()] {
        stack.os().script(dying);
        stack.os().script(Reply::json(200, &serde_json::json!([])));
        let got = stack.send(read()).await;
        assert_eq!(got.status, 200, "{got:?}");
    }
}

#[tokio::test]
async fn a_look_up_survives_a_pooled_connection_that_upstream_closed() {
    let stack = Stack::with(unprobed()).await;
    assert_eq!(stack.send(Ask::get("/agents/assistant").by(&Who::alice())).await.status, 200);
    stack.os().script(Reply::closed_at_once());
    let got = stack.send(Ask::get("/sessions/s-1").by(&Who::alice())).await;
    assert_eq!(got.status, 200, "{got:?}");
}

#[tokio::test]
async fn a_read_moves_to_the_other_endpoint() {
    let stack = two(unprobed()).await;
    for fake in stack.fakes() {
        fake.pin("GET", ROWS, Reply::json(200, &serde_json::json!([])));
    }
    stack.fakes()[0].pin("GET", ROWS, Reply::reset_at_once());
    for _ in 0..4 {
        assert_eq!(stack.send(read()).await.status, 200);
    }
    assert!(!stack.fakes()[0].requests_to(ROWS).is_empty());
}

#[tokio::test]
async fn a_run_is_never_sent_twice() {
    let stack = two(unprobed()).await;
    for (count, reply) in [Reply::reset_at_once(), Reply::closed_at_once(), Reply::reset_after_head(), Reply::crash()]
        .into_iter()
        .enumerate()
    {
        let status = if count == 3 { 500 } else { 502 };
        for fake in stack.fakes() {
            fake.pin("POST", RUNS, reply.clone());
        }
        let got = stack.send(run()).await;
        assert_eq!(got.status, status, "{got:?}");
        if status == 502 {
            assert_eq!(got.code(), "upstream_reset", "{got:?}");
        }
        let sent: usize = stack.fakes().iter().map(|fake| fake.requests_to(RUNS).len()).sum();
        assert_eq!(sent, count + 1);
    }
}

#[tokio::test]
async fn a_run_takes_a_connection_of_its_own() {
    let stack = Stack::with(unprobed()).await;
    for _ in 0..2 {
        assert_eq!(stack.send(read()).await.status, 404);
        assert_eq!(stack.send(run()).await.status, 200);
    }
    let seen = stack.os().requests();
    let runs: Vec<usize> = seen.iter().filter(|r| r.path() == RUNS).map(|r| r.connection).collect();
    let before = |at: usize| {
        seen.iter().take_while(|r| r.connection != runs[at] || r.path() != RUNS).any(|r| r.connection == runs[at])
    };
    assert!(!before(0) && !before(1), "{seen:?}");
}

#[tokio::test]
async fn a_run_that_cannot_connect_moves_and_is_named_after_its_new_endpoint() {
    let (stack, live) = one_of_two().await;
    for _ in 0..2 {
        let got = stack.send(run()).await;
        assert_eq!(got.status, 200, "{got:?}");
        let run = got.json()["run_id"].as_str().unwrap().to_owned();
        // What follows the run finds it by its id.
        let cancel = format!("{RUNS}/{run}/cancel");
        let got = stack.send(Ask::post(&cancel).by(&Who::alice())).await;
        assert_eq!(got.status, 200, "{got:?}");
        assert_eq!(live.requests_to(&cancel).len(), 1);
    }
    assert_eq!(live.requests_to(RUNS).len(), 2);
    assert!(stack.metric_sum("tollbridge_upstream_errors_total", &["kind=\"connect\""]).await >= 1.0);
}

#[tokio::test]
async fn the_log_names_the_run_that_was_sent() {
    let (stack, live) = one_of_two().await;
    live.pin("POST", RUNS, Reply::detail(422, "no"));
    let ids = ["moved-1", "moved-2"];
    for id in ids {
        assert_eq!(stack.send(run().header("x-request-id", id)).await.status, 422);
    }
    for (at, id) in ids.into_iter().enumerate() {
        let sent = live.requests_to(RUNS)[at].form().get("run_id").unwrap().to_owned();
        assert_eq!(stack.access_line(id).await["run_id"], sent.as_str());
    }
}

#[tokio::test]
async fn a_run_that_nobody_can_take_over_is_logged_as_it_was_answered() {
    let stack = Stack::start().await;
    let log = stack.folder().join("full.jsonl");
    let settings = telemetry::Settings {
        access_log: LogTarget::File(log.clone()),
        audit_log: LogTarget::Off,
        audit_failure: AuditFailure::Continue,
    };
    let snapshot = Snapshot::clone(&stack.running.gateway.snapshot());
    let seal = snapshot.clusters.seal().clone();
    let telemetry = Telemetry::new(settings, []).unwrap();
    let client = Client::new(outbound::Settings::default());
    let full = Gateway::new(snapshot, client, Arc::clone(&telemetry), seal, Arc::new(|_, _| false));
    let bearer = format!("Bearer {}", Who::alice().token());
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/x-www-form-urlencoded")];
    let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    let call = Call {
        door: Door::Http,
        request_id: "full".into(),
        method: http::Method::POST,
        path: RUNS.to_owned(),
        query: None,
        headers: headers.into_iter().collect(),
        host: None,
        peer: IpAddr::from([127, 0, 0, 1]),
        caller: Caller::ByHeaders,
        cluster: None,
        human: false,
        tool: None,
        known: None,
        body: Inbound::Full("message=hi&stream=false".into()),
    };
    let answer = full.serve(call).await;
    telemetry.flush();
    let line: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(log).unwrap()).unwrap();
    assert_eq!((answer.status.as_u16(), answer.refused), (503, Some("draining")));
    assert_eq!((&line["code"], &line["http.response.status_code"]), (&"draining".into(), &503.into()), "{line}");
    assert_eq!(stack.os().requests_to(RUNS), []);
}

#[tokio::test]
async fn what_follows_a_run_never_goes_to_another_replica() {
    let fakes = vec![FakeAgentOs::start().await, FakeAgentOs::start().await];
    let urls: Vec<String> = fakes.iter().map(FakeAgentOs::url).collect();
    let stack = Stack::over(&urls, unprobed()).await;
    let got = stack.send(run()).await;
    let run = got.json()["run_id"].as_str().unwrap().to_owned();
    let (holder, other): (Vec<_>, Vec<_>) = fakes.into_iter().partition(|fake| !fake.requests_to(RUNS).is_empty());
    assert_eq!((holder.len(), other.len()), (1, 1));
    for path in ["resume", "cancel"] {
        let path = format!("{RUNS}/{run}/{path}");
        holder[0].pin("POST", &path, Reply::reset_at_once());
        let got = stack.send(Ask::post(&path).field("session_id", "").by(&Who::alice())).await;
        assert_ne!(got.status, 200, "{path}: {got:?}");
    }
    drop(holder);
    // Another replica would say 200 and do nothing.
    for path in ["resume", "cancel"] {
        let path = format!("{RUNS}/{run}/{path}");
        let got = stack.send(Ask::post(&path).by(&Who::alice())).await;
        assert!(matches!(got.status, 502 | 503), "{path}: {got:?}");
    }
    assert_eq!(other[0].requests(), []);
}

#[tokio::test]
async fn without_any_replica_the_caller_is_told_when_to_try_again() {
    let fakes = vec![FakeAgentOs::start().await, FakeAgentOs::start().await];
    let urls: Vec<String> = fakes.iter().map(FakeAgentOs::url).collect();
    let stack = Stack::over(&urls, Settings::new().set("[clusters.health]", "interval", "\"100ms\"")).await;
    drop(fakes);
    stack.wait_for_metric("tollbridge_endpoint_up", &[], 0.0).await;
    for ask in [run(), read()] {
        let got = stack.send(ask).await;
        assert_eq!((got.status, got.code()), (503, "no_endpoint".to_owned()), "{got:?}");
        assert!(got.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    }
    assert!(stack.admin("/readyz").await.contains("no endpoint"), "{}", stack.admin("/readyz").await);
}

#[tokio::test]
async fn a_connection_that_carried_a_failure_is_not_used_again() {
    let stack = Stack::with(unprobed()).await;
    // The first one looks up whose session it is.
    assert_eq!(stack.send(read()).await.status, 404);
    stack.os().script(Reply::detail(500, "boom"));
    let got = stack.send(read()).await;
    assert_eq!((got.status, got.json()), (500, serde_json::json!({"detail": "boom"})));
    assert_eq!(stack.send(read()).await.status, 404);
    let seen = &stack.os().requests_to(ROWS)[1..];
    assert_ne!(seen[0].connection, seen[1].connection);
}
