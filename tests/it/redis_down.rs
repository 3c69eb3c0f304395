//! Proves what callers get while Redis is dead or hangs, how long that takes, and that all of it is as before afterwards.
//! Does not count what is used meanwhile (`quotas_shared`).

use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use crate::redis_server::RedisServer;
use crate::stack::{Ask, Got, Settings, Stack, Who};

/// Longest that one question to the store may take (`tollbridge::store`).
const ANSWER: Duration = tollbridge::store::ANSWER_TIMEOUT;
/// How often a lost store is asked whether it is back.
const BEAT: Duration = Duration::from_secs(1);
/// What each bound is given besides: a busy machine is slow.
const SLACK: Duration = Duration::from_secs(3);

/// How Redis fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Nobody listens; what it knew is lost.
    Dead,
    /// It is connected to, and says nothing.
    Hung,
}

fn settings(server: &RedisServer, folder: &TempDir) -> Settings {
    let url = folder.path().join("redis.url");
    std::fs::write(&url, server.url().expose()).unwrap();
    let closed = [
        ("requests", "{ per_day = 1_000 }"),
        ("concurrent_runs", "4"),
        ("tokens", "\"unlimited\""),
        ("on_store_lost", "\"closed\""),
    ];
    Settings::new()
        .set("[quota]", "store", "\"redis\"")
        .set("[store]", "redis", &format!("{{ file = {url:?} }}"))
        .set("[plans.open]", "requests", "{ per_day = 1_000 }")
        .set("[plans.open]", "concurrent_runs", "4")
        .add("[plans.closed]", &closed)
        .set("[tenants.globex]", "plan", "\"closed\"")
}

/// The answer, and that it came in time.
async fn timed(stack: &Stack, ask: Ask, questions: u32) -> Got {
    let began = Instant::now();
    let got = stack.send(ask).await;
    assert!(began.elapsed() < ANSWER * questions + SLACK, "{:?}: {got:?}", began.elapsed());
    got
}

fn run() -> Ask {
    Ask::plain_run().by(&Who::alice())
}

fn closed() -> Ask {
    Ask::plain_run().by(&Who::alice().of("globex"))
}

/// Starts a run that waits for an approval, and approves it; gives its path and what continues it.
async fn approved(stack: &Stack) -> (String, Ask) {
    let ask = Ask::run("records").field("message", "hi").field("session_id", "s-1").field("stream", "false");
    let row = stack.send(ask.by(&Who::alice())).await.json();
    let (run, approval) = (row["run_id"].as_str().unwrap(), row["tools"][0]["approval_id"].as_str().unwrap());
    let resolve = Ask::post(&format!("/approvals/{approval}/resolve")).json(&json!({"status": "approved"}));
    let got = stack.send(resolve.by(&Who::new("adam").role("approver"))).await;
    assert_eq!(got.status, 200, "{got:?}");
    let path = format!("/agents/records/runs/{run}/continue");
    let ask = Ask::post(&path).field("session_id", "s-1").field("stream", "false").by(&Who::alice());
    (path, ask)
}

async fn with_redis(fault: Fault) {
    let (mut server, folder) = (RedisServer::start(), TempDir::new().unwrap());
    let stack = Stack::with(settings(&server, &folder)).await;
    let (path, go_on) = approved(&stack).await;
    for ask in [run(), closed()] {
        assert_eq!(stack.send(ask).await.status, 200);
    }

    match fault {
        Fault::Dead => server.kill(),
        Fault::Hung => server.signal("STOP"),
    }
    // The first one to find out waits for the store, and is served all the same.
    assert_eq!(timed(&stack, run(), 2).await.status, 200, "{fault:?}");
    stack.wait_for_metric("tollbridge_store_up", &["store=\"redis\""], 0.0).await;
    // Later ones do not wait: six that did would take six times as long as an answer may.
    let began = Instant::now();
    for _ in 0..3 {
        assert_eq!(timed(&stack, run(), 0).await.status, 200, "{fault:?}");
        let got = timed(&stack, closed(), 0).await;
        assert_eq!((got.status, got.code()), (503, "overloaded".to_owned()), "{fault:?}: {got:?}");
        assert!(got.header("retry-after").is_some(), "{fault:?}: {got:?}");
    }
    assert!(began.elapsed() < ANSWER * 3, "{fault:?}: {:?}", began.elapsed());
    // Twice is worse than later: without the store nobody knows who else continues the run.
    let got = timed(&stack, go_on.clone(), 2).await;
    assert_eq!((got.status, got.code()), (503, "overloaded".to_owned()), "{fault:?}: {got:?}");
    assert!(got.header("retry-after").is_some(), "{fault:?}: {got:?}");
    assert_eq!(stack.os().requests_to(&path), []);

    match fault {
        Fault::Dead => server.revive(),
        Fault::Hung => server.signal("CONT"),
    }
    let began = Instant::now();
    stack.wait_for_metric("tollbridge_store_up", &["store=\"redis\""], 1.0).await;
    assert!(began.elapsed() < BEAT + ANSWER + SLACK, "{fault:?}: {:?}", began.elapsed());
    for ask in [run(), closed()] {
        assert_eq!(timed(&stack, ask, 0).await.status, 200, "{fault:?}");
    }
    assert_eq!(timed(&stack, go_on.clone(), 0).await.status, 200, "{fault:?}");
    assert_eq!(timed(&stack, go_on, 0).await.code(), "already_continued", "{fault:?}");
    assert_eq!(stack.os().requests_to(&path).len(), 1, "{fault:?}");
}

#[tokio::test]
async fn while_redis_is_dead_callers_are_told_in_time_and_all_is_well_when_it_is_back() {
    with_redis(Fault::Dead).await;
}

#[tokio::test]
async fn while_redis_hangs_callers_are_told_in_time_and_all_is_well_when_it_goes_on() {
    with_redis(Fault::Hung).await;
}
