//! Proves what clusters promise in front of two replicas of real agno: cancels that stop, sessions that lose nothing,
//! replicas that die or hang.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::agno::{AgentOs, Agno, Setup};
use crate::stack::{AGENTOS_KEY, Ask, Flow, Settings, Stack, Who, agentos_token, send_to, within};

const SLOW: &str = "/agents/researcher-slow/runs";

/// A busy machine must not look like an AgentOS that is down.
fn patient() -> Settings {
    Settings::new().set("[clusters.health]", "timeout", "\"20s\"").set("[clusters.timeouts]", "connect", "\"10s\"")
}

/// Two replicas; their slow runs last five minutes, a chunk each half second.
async fn replicas(agno: Agno) -> [AgentOs; 2] {
    let setup = Setup::with_jwt(agno, AGENTOS_KEY).and("SLOW_CHUNKS", "600").and("SLOW_DELAY", "0.5");
    let first = AgentOs::start(setup).await;
    let second = first.replica().await;
    [first, second]
}

fn urls(replicas: &[AgentOs]) -> Vec<String> {
    replicas.iter().map(AgentOs::url).collect()
}

/// Starts a slow run that streams; gives its stream, and its run and session.
async fn slow_run(stack: &Stack, session: &str) -> (Flow, String) {
    let ask = Ask::post(SLOW).field("message", "dig").field("session_id", session).by(&Who::alice());
    let mut flow = stack.open(ask).await;
    let text = flow.until("event: RunContent\n").await;
    let started = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let run = serde_json::from_str::<Value>(started).unwrap()["run_id"].as_str().unwrap().to_owned();
    (flow, run)
}

/// Cancels through either gateway in an order that looks random: all stop.
async fn every_cancel_stops_its_run(agno: Agno) {
    const RUNS: usize = 100;
    let replicas = replicas(agno).await;
    let gateways = [Stack::over(&urls(&replicas), patient()).await, Stack::over(&urls(&replicas), patient()).await];
    let mut started = Vec::new();
    // A few at a time: on a busy machine a hundred at once wait for each other longer than anybody does.
    for some in (0..RUNS).collect::<Vec<_>>().chunks(10) {
        started.extend(join_all(some.iter().map(async |n| slow_run(&gateways[n % 2], &format!("s-{n}")).await)).await);
    }
    let began = Instant::now();
    let cancelled = started.into_iter().enumerate().map(async |(n, (mut flow, run))| {
        let ask = Ask::post(&format!("{SLOW}/{run}/cancel?session_id=s-{n}")).by(&Who::alice());
        let (got, (text, clean)) = tokio::join!(gateways[n / 3 % 2].send(ask), flow.rest());
        assert!(clean && text.contains("event: RunCancelled"), "run {n}, cancel answered {got:?}: {text}");
        got.status
    });
    let statuses = join_all(cancelled).await;
    // Minutes were left of each.
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert!(statuses.iter().all(|status| matches!(status, 200 | 202)), "{statuses:?}");
    let confirmed = statuses.iter().filter(|status| **status == 200).count();
    assert!(confirmed >= RUNS / 2, "{confirmed} of {RUNS} were confirmed");
}

#[tokio::test]
async fn a_hundred_cancels_through_either_gateway_stop_their_runs_on_the_oldest_agno() {
    every_cancel_stops_its_run(Agno::Oldest).await;
}

#[tokio::test]
async fn a_hundred_cancels_through_either_gateway_stop_their_runs_on_the_newest_agno() {
    every_cancel_stops_its_run(Agno::Newest).await;
}

/// How many runs of a session are stored.
async fn stored(stack: &Stack, session: &str) -> usize {
    let got = stack.send(Ask::get(&format!("/sessions/{session}/runs")).by(&Who::alice())).await;
    got.json().as_array().map_or(0, Vec::len)
}

#[tokio::test]
async fn agentos_2_loses_runs_of_one_session_and_behind_the_gateway_it_does_not() {
    const RUNS: usize = 8;
    let first = AgentOs::start(Setup::with_jwt(Agno::Oldest, AGENTOS_KEY)).await;
    let replicas = [first.replica().await, first];
    let gateways = [Stack::over(&urls(&replicas), patient()).await, Stack::over(&urls(&replicas), patient()).await];
    let ask = |session: &str| {
        let ask = Ask::post("/agents/assistant/runs").field("message", "hi").field("stream", "false");
        ask.field("session_id", session)
    };
    // Open: also when all of them go to one process, since it reads the session at the start of each run.
    for (session, spread) in [("open-two", 2), ("open-one", 1)] {
        let token = agentos_token("acme~alice", &["agents:read", "agents:run", "sessions:read"]);
        let bare = |n: usize| {
            let form = ask(session).field("user_id", "acme~alice").bearer(&token);
            send_to(([127, 0, 0, 1], replicas[n % spread].port()).into(), form)
        };
        assert_eq!(bare(0).await.status, 200);
        let answers = join_all((0..RUNS).map(bare)).await;
        assert!(answers.iter().all(|got| got.status == 200));
        let kept = stored(&gateways[0], session).await;
        assert!(kept <= RUNS, "{session}: {kept} of {} are stored; is this hole closed?", RUNS + 1);
    }
    // Held.
    assert_eq!(gateways[0].send(ask("held").by(&Who::alice())).await.status, 200);
    let answers = join_all((0..RUNS).map(|_| gateways[0].send(ask("held").by(&Who::alice())))).await;
    assert!(answers.iter().all(|got| got.status == 200), "{answers:?}");
    assert_eq!(stored(&gateways[0], "held").await, RUNS + 1);
}

#[tokio::test]
async fn a_replica_that_is_killed_ends_its_streams_at_once_and_the_other_one_serves() {
    for agno in Agno::ALL {
        let mut replicas = Vec::from(replicas(agno).await);
        let stack = Stack::over(&urls(&replicas), patient().set("[clusters.health]", "interval", "\"500ms\"")).await;
        let (flow, run) = slow_run(&stack, "killed").await;
        let line = stack.running.gateway.snapshot();
        let cluster = line.clusters.iter().next().unwrap();
        let holder = cluster.endpoints().iter().position(|endpoint| endpoint.runs() > 0).unwrap();
        let killed = replicas.remove(holder);
        let mut flow = flow;
        killed.signal("KILL");
        let began = Instant::now();
        let (text, clean) = flow.rest().await;
        let took = began.elapsed();
        let last: Value = serde_json::from_str(text.trim_end().rsplit("data: ").next().unwrap()).unwrap();
        let expected = json!({"event": "error", "code": "upstream_reset", "run_id": run, "retry": false});
        assert!(clean && last == expected, "agno {}: {text}", agno.version());
        assert!(took < Duration::from_secs(1), "agno {}: {took:?}", agno.version());
        // At most what was in flight there is lost.
        for n in 0..6 {
            let ask = Ask::post("/agents/assistant/runs").field("message", "hi").field("stream", "false");
            let got = stack.send(ask.by(&Who::alice())).await;
            assert_eq!(got.status, 200, "agno {}, run {n}: {got:?}", agno.version());
        }
        // Nobody says that a run was cancelled which nobody can reach.
        let cancel = Ask::post(&format!("{SLOW}/{run}/cancel?session_id=killed")).by(&Who::alice());
        let got = stack.send(cancel).await;
        assert!(matches!(got.status, 502 | 503), "agno {}: {got:?}", agno.version());
    }
}

#[tokio::test]
async fn a_replica_that_hangs_is_found_by_probes_and_comes_back() {
    let replicas = replicas(Agno::Newest).await;
    let settings = patient()
        .set("[clusters.health]", "interval", "\"200ms\"")
        .set("[clusters.health]", "timeout", "\"5s\"")
        .set("[clusters.timeouts]", "stream_idle", "\"3s\"");
    let stack = Stack::over(&urls(&replicas), settings).await;
    stack.wait_for_metric("tollbridge_endpoint_up", &[], 2.0).await;
    let (mut flow, run) = slow_run(&stack, "hung").await;
    let snapshot = stack.running.gateway.snapshot();
    let cluster = snapshot.clusters.iter().next().unwrap();
    let holder = cluster.endpoints().iter().position(|endpoint| endpoint.runs() > 0).unwrap();
    replicas[holder].signal("STOP");
    let began = Instant::now();
    let (text, _) = flow.rest().await;
    let last: Value = serde_json::from_str(text.trim_end().rsplit("data: ").next().unwrap()).unwrap();
    assert_eq!((&last["code"], &last["run_id"]), (&json!("upstream_timeout"), &json!(run)), "{text}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    within("the probes", async {
        while cluster.endpoints()[holder].is_up() {
            stack.admin("/healthz").await;
        }
    })
    .await;
    for _ in 0..4 {
        let ask = Ask::post("/agents/assistant/runs").field("message", "hi").field("stream", "false");
        assert_eq!(stack.send(ask.by(&Who::alice())).await.status, 200);
    }
    replicas[holder].signal("CONT");
    within("its return", async {
        while !cluster.endpoints()[holder].is_up() {
            stack.admin("/healthz").await;
        }
    })
    .await;
}
