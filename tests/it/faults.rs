//! Proves what a caller gets when AgentOS fails, how long that takes, and that the gateway recovers.
//! Real processes fail in `faults_agno.rs`; here a fake lies as no process does.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fake::{Event, FakeAgentOs, Reply};
use crate::redis_server::RedisServer;
use crate::stack::{Ask, Got, Settings, Stack, Who, within};

const RUNS: &str = "/agents/assistant/runs";
const ROWS: &str = "/sessions/s-1/runs";
/// Every fault is answered within this, beside its own deadline: a busy machine is slow.
const SLACK: Duration = Duration::from_secs(3);

/// Short deadlines; probes only at the start, so that requests find the faults.
fn settings() -> Settings {
    Settings::new()
        .set("[clusters.health]", "interval", "\"5m\"")
        .set("[[clusters]]", "balance", "\"round_robin\"")
        .set("[clusters.timeouts]", "response_header", "\"500ms\"")
        .set("[clusters.timeouts]", "stream_idle", "\"500ms\"")
}

fn run() -> Ask {
    Ask::plain_run().by(&Who::alice())
}

fn read() -> Ask {
    Ask::get(ROWS).by(&Who::alice())
}

fn event(name: &str) -> Event {
    Event::new(name, json!({"run_id": "r-1", "session_id": "s-1"}))
}

/// Sends a request; the answer must come within the limit and some slack.
async fn timed(stack: &Stack, ask: Ask, limit: Duration) -> Got {
    let began = Instant::now();
    let got = stack.send(ask).await;
    assert!(began.elapsed() < limit + SLACK, "{:?}: {got:?}", began.elapsed());
    got
}

/// The next run and the next read succeed.
async fn recovered(stack: &Stack) {
    stack.fakes().iter().for_each(|fake| {
        fake.unpin("POST", RUNS);
        fake.pin("GET", ROWS, Reply::json(200, &json!([])));
    });
    for ask in [run(), read()] {
        let got = stack.send(ask).await;
        assert_eq!(got.status, 200, "{got:?}");
    }
}

#[tokio::test]
async fn a_whole_answer_that_breaks_or_lies_is_no_answer() {
    let stack = Stack::with(settings()).await;
    for (fault, reply, code) in [
        ("hung", Reply::never(), "upstream_timeout"),
        ("reset", Reply::reset_at_once(), "upstream_reset"),
        ("closed", Reply::closed_at_once(), "upstream_reset"),
        ("reset after the head", Reply::reset_after_head(), "upstream_reset"),
        ("a body shorter than its length", Reply::short_body(500, "{\"run_id\":"), "upstream_reset"),
        ("no HTTP", Reply::garbage(), "upstream_invalid"),
    ] {
        stack.os().pin("POST", RUNS, reply);
        let got = timed(&stack, run(), Duration::from_millis(500)).await;
        assert!(matches!(got.status, 502 | 504) && got.code() == code, "{fault}: {got:?}");
        recovered(&stack).await;
    }
}

#[tokio::test]
async fn what_exceeds_a_length_is_never_taken_for_the_next_answer() {
    let stack = Stack::with(settings()).await;
    recovered(&stack).await;
    stack.os().pin("GET", ROWS, Reply::long_body(2, "[]HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n\"evil\""));
    for _ in 0..3 {
        let got = timed(&stack, read(), Duration::ZERO).await;
        assert!(!got.text().contains("evil"), "{got:?}");
    }
    recovered(&stack).await;
}

#[tokio::test]
async fn a_stream_that_breaks_ends_with_an_event_that_names_its_run() {
    let stack = Stack::with(settings()).await;
    let begun = [event("RunStarted"), event("RunContent")];
    let (silent, gate) = Reply::paced_sse(&[event("RunStarted"), event("RunContent"), event("RunCompleted")]);
    // The first event of the silent one; then nothing.
    gate.open_once();
    let clean = Reply::sse(&begun);
    for (fault, reply, code, limit) in [
        ("reset", Reply::broken_sse(&begun), "upstream_reset", Duration::ZERO),
        ("truncated chunk", Reply::truncated_sse(&begun), "upstream_reset", Duration::ZERO),
        ("a clean end before the run's", clean, "upstream_reset", Duration::ZERO),
        ("hung", silent, "upstream_timeout", Duration::from_millis(500)),
    ] {
        stack.os().pin("POST", RUNS, reply);
        let began = Instant::now();
        let (text, ended) =
            stack.open(Ask::run("assistant").field("message", "hi").by(&Who::alice())).await.rest().await;
        assert!(began.elapsed() < limit + SLACK, "{fault}: {:?}", began.elapsed());
        let last = text.trim_end().rsplit("\n\n").next().unwrap();
        let data = last.strip_prefix("event: error\ndata: ").unwrap_or_else(|| panic!("{fault}: {text}"));
        let data: Value = serde_json::from_str(data).unwrap();
        let expected = json!({"event": "error", "code": code, "run_id": "r-1", "retry": false});
        assert!(ended && data == expected, "{fault}: {data}");
        recovered(&stack).await;
    }
}

#[tokio::test]
async fn an_endpoint_that_breaks_again_and_again_is_left_alone_and_comes_back() {
    let fakes = vec![FakeAgentOs::start().await, FakeAgentOs::start().await];
    let settings = settings()
        .set("[clusters.ejection]", "failures", "3")
        .set("[clusters.ejection]", "time", "\"1s\"")
        .set("[clusters.ejection]", "slow_start", "\"0s\"");
    let stack = Stack::before(fakes, settings).await;
    stack.fakes()[0].pin("POST", RUNS, Reply::reset_at_once());
    let (mut broken, mut sent) = (0, 0);
    while stack.fakes()[0].requests_to(RUNS).len() < 3 {
        broken += usize::from(stack.send(run()).await.status == 502);
        sent += 1;
        assert!(sent < 20, "the broken endpoint gets no runs");
    }
    assert_eq!(broken, 3, "each run that broke was answered so, and none sent twice");
    let ejected = Instant::now();
    while ejected.elapsed() < Duration::from_millis(500) {
        assert_eq!(stack.send(run()).await.status, 200);
    }
    assert_eq!(stack.fakes()[0].requests_to(RUNS).len(), 3, "it is left alone");
    // The other one must not go the same way: somebody has to serve.
    stack.fakes()[1].pin("POST", RUNS, Reply::reset_at_once());
    for _ in 0..5 {
        assert_eq!(stack.send(run()).await.code(), "upstream_reset");
    }
    stack.fakes()[1].unpin("POST", RUNS);
    stack.fakes()[0].unpin("POST", RUNS);
    within("the endpoint's return", async {
        while stack.fakes()[0].requests_to(RUNS).len() == 3 {
            assert_eq!(stack.send(run()).await.status, 200);
        }
    })
    .await;
}

#[tokio::test]
async fn reads_move_on_and_a_storm_of_them_stays_within_the_budget() {
    let fakes = vec![FakeAgentOs::start().await, FakeAgentOs::start().await];
    let settings = settings()
        .set("[clusters.ejection]", "failures", "\"off\"")
        .set("[clusters.retries]", "reserve", "5")
        .set("[clusters.retries]", "backoff", "\"1ms\"");
    let stack = Stack::before(fakes, settings).await;
    recovered(&stack).await;
    stack.fakes().iter().for_each(|fake| fake.pin("GET", ROWS, Reply::reset_at_once()));
    let before: usize = stack.fakes().iter().map(|fake| fake.requests_to(ROWS).len()).sum();
    let answers = join_all((0..50).map(|_| stack.send(read()))).await;
    assert!(answers.iter().all(|got| got.code() == "upstream_reset"));
    let sent: usize = stack.fakes().iter().map(|fake| fake.requests_to(ROWS).len()).sum::<usize>() - before;
    // Each read once, a fifth of them and the reserve once more; pooled connections that had died beside that.
    assert!((51..=50 + 10 + 5 + 10).contains(&sent), "{sent} requests for 50 reads");
}

#[tokio::test]
async fn a_storm_of_look_ups_stays_within_the_budget_too() {
    const SESSION: &str = "/sessions/s-1";
    let fakes = vec![FakeAgentOs::start().await, FakeAgentOs::start().await];
    let settings =
        settings().set("[clusters.ejection]", "failures", "\"off\"").set("[clusters.retries]", "reserve", "5");
    let stack = Stack::before(fakes, settings).await;
    stack.fakes().iter().for_each(|fake| fake.pin("GET", SESSION, Reply::reset_at_once()));
    let answers = join_all((0..30).map(|_| stack.send(Ask::get(SESSION).by(&Who::alice())))).await;
    assert!(answers.iter().all(|got| got.code() == "upstream_unreachable"), "{answers:?}");
    let sent: usize = stack.fakes().iter().map(|fake| fake.requests_to(SESSION).len()).sum();
    // Each call looks for the session as one of three kinds. Each look-up once, a fifth of them and the reserve once
    // more; pooled connections that had died beside that.
    assert!((91..=90 + 18 + 5 + 10).contains(&sent), "{sent} requests for 90 look-ups");
}

#[tokio::test]
async fn a_slow_endpoint_delays_its_own_runs_only() {
    let fakes = vec![FakeAgentOs::start().await, FakeAgentOs::start().await];
    let settings = settings().set("[clusters.timeouts]", "response_header", "\"30s\"");
    let stack = Stack::before(fakes, settings.set("[[clusters]]", "balance", "\"least_requests\"")).await;
    let row = json!({"run_id": "r-1", "session_id": "s-1", "content": "late", "status": "COMPLETED"});
    let (slow, gate) = Reply::json(200, &row).stalled();
    stack.fakes()[0].pin("POST", RUNS, slow);
    let waiting = async {
        let got = join_all((0..4).map(|_| stack.send(run()))).await;
        assert!(got.iter().all(|got| got.status == 200));
    };
    let others = async {
        within("runs at the other endpoint", async {
            while stack.fakes()[1].requests_to(RUNS).len() < 4 {
                // Those that meet the slow one are not waited for.
                let _ = tokio::time::timeout(Duration::from_millis(50), stack.send(run())).await;
            }
        })
        .await;
        gate.open();
    };
    tokio::join!(waiting, others);
}

#[tokio::test]
async fn with_all_replicas_down_callers_are_told_at_once_and_served_when_one_is_back() {
    let fakes = vec![FakeAgentOs::start().await, FakeAgentOs::start().await];
    let urls: Vec<String> = fakes.iter().map(FakeAgentOs::url).collect();
    let address = fakes[0].address();
    let stack = Stack::over(&urls, Settings::new().set("[clusters.health]", "interval", "\"100ms\"")).await;
    drop(fakes);
    // Before the probes notice, and after.
    for _ in 0..2 {
        for ask in [run(), read()] {
            let got = timed(&stack, ask, Duration::from_secs(1)).await;
            assert!(matches!(got.code().as_str(), "upstream_unreachable" | "no_endpoint"), "{got:?}");
        }
        stack.wait_for_metric("tollbridge_endpoint_up", &[], 0.0).await;
    }
    let got = stack.send(run()).await;
    assert!(got.status == 503 && got.header("retry-after").is_some(), "{got:?}");
    let back = FakeAgentOs::start_at(address).await;
    within("the return", async { while stack.send(run()).await.status != 200 {} }).await;
    assert!(!back.requests_to(RUNS).is_empty());
}

#[tokio::test]
async fn with_redis_down_runs_go_on_and_turns_are_kept_within_the_instance() {
    let (mut server, folder) = (RedisServer::start(), TempDir::new().unwrap());
    let url = folder.path().join("redis.url");
    std::fs::write(&url, server.url().expose()).unwrap();
    let settings = Settings::new()
        .set("[quota]", "store", "\"redis\"")
        .set("[store]", "redis", &format!("{{ file = {url:?} }}"))
        .set("[clusters.load]", "session_runs", "\"one_by_one\"");
    let stack = Stack::with(settings).await;
    let in_session = || Ask::plain_run().field("session_id", "s-1").by(&Who::alice());
    assert_eq!(stack.send(in_session()).await.status, 200);
    server.kill();
    let began = Instant::now();
    let answers = join_all((0..4).map(|_| stack.send(in_session()))).await;
    assert!(answers.iter().all(|got| got.status == 200), "{answers:?}");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    server.revive();
    assert_eq!(stack.send(in_session()).await.status, 200);
}

#[tokio::test]
async fn writes_of_one_session_meet_at_one_endpoint_and_runs_take_turns_on_agentos_2() {
    let fakes =
        vec![FakeAgentOs::start_as(crate::fake::Line::V2).await, FakeAgentOs::start_as(crate::fake::Line::V2).await];
    let settings = Settings::new().set("[clusters.load]", "session_timeout", "\"200ms\"");
    let stack = Stack::before(fakes, settings).await;
    let in_session = |session: &str| Ask::plain_run().field("session_id", session).by(&Who::alice());
    for _ in 0..6 {
        assert_eq!(stack.send(in_session("s-1")).await.status, 200);
    }
    let served: Vec<usize> = stack.fakes().iter().map(|fake| fake.requests_to(RUNS).len()).collect();
    assert!(served == [6, 0] || served == [0, 6], "{served:?}");
    // While one goes on, the next waits, and is told when its turn does not come.
    let row = json!({"run_id": "r-1", "session_id": "s-1", "content": "late", "status": "COMPLETED"});
    let (slow, gate) = Reply::json(200, &row).stalled();
    stack.fakes().iter().for_each(|fake| fake.pin("POST", RUNS, slow.clone()));
    let first = async { assert_eq!(stack.send(in_session("s-1")).await.status, 200) };
    let second = async {
        let sent = || stack.fakes().iter().map(|fake| fake.requests_to(RUNS).len()).sum::<usize>();
        within("the first run", async {
            while sent() < 7 {
                stack.admin("/healthz").await;
            }
        })
        .await;
        let got = stack.send(in_session("s-1")).await;
        assert_eq!((got.status, got.code()), (503, "overloaded".to_owned()), "{got:?}");
        assert!(got.header("retry-after").is_some());
        assert_eq!(sent(), 7, "it was not sent");
        gate.open();
        assert_eq!(stack.send(in_session("s-2")).await.status, 200, "another session does not wait");
    };
    tokio::join!(first, second);
}
