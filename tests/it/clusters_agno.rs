//! Proves what clusters promise in front of two replicas of real agno: cancels that stop, sessions that lose nothing.
//! Owns what tests with such replicas start from.
//! Does not make replicas fail (`faults_agno`).

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::Value;

use crate::agno::{AgentOs, Agno, Setup, on_each_agno};
use crate::stack::{AGENTOS_KEY, Ask, Flow, Settings, Stack, Who, agentos_token, send_to};

/// Where slow runs start.
pub(crate) const SLOW: &str = "/agents/researcher-slow/runs";

/// A busy machine must not look like an AgentOS that is down.
pub(crate) fn patient() -> Settings {
    Settings::new().set("[clusters.health]", "timeout", "\"20s\"").set("[clusters.timeouts]", "connect", "\"10s\"")
}

/// Two replicas; their slow runs last five minutes, a chunk each half second.
pub(crate) async fn replicas(agno: Agno) -> [AgentOs; 2] {
    let setup = Setup::with_jwt(agno, AGENTOS_KEY).and("SLOW_CHUNKS", "600").and("SLOW_DELAY", "0.5");
    let first = AgentOs::start(setup).await;
    let second = first.replica().await;
    [first, second]
}

pub(crate) fn urls(replicas: &[AgentOs]) -> Vec<String> {
    replicas.iter().map(AgentOs::url).collect()
}

/// Starts a slow run that streams; gives its stream, and its run and session.
pub(crate) async fn slow_run(stack: &Stack, session: &str) -> (Flow, String) {
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

on_each_agno!(a_hundred_cancels_through_either_gateway_stop_their_runs: every_cancel_stops_its_run);

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
