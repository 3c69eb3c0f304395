//! Proves what a caller gets when a process of real agno dies, hangs or moves, how long that takes, and that the gateway recovers.
//! Does not cut or forge answers (`faults`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tollbridge::cluster::Endpoint;

use crate::agno::{Agno, on_each_agno};
use crate::clusters_agno::{SLOW, patient, replicas, slow_run, urls};
use crate::name_server::NameServer;
use crate::stack::{Ask, Settings, Stack, Who, open_at, within};

const SERVICE: &str = "_agentos._tcp.test";
/// What each bound is given beside the deadlines of the configuration: a busy machine is slow.
const SLACK: Duration = Duration::from_secs(3);

/// Runs take turns among the endpoints, also one that has just come back.
fn in_turns(interval: &str) -> Settings {
    patient().set("[clusters.health]", "interval", interval).set("[clusters.ejection]", "slow_start", "\"0s\"").set(
        "[[clusters]]",
        "balance",
        "\"round_robin\"",
    )
}

fn endpoints(stack: &Stack) -> Arc<[Arc<Endpoint>]> {
    stack.running.gateway.snapshot().clusters.iter().next().unwrap().endpoints()
}

/// The place of the endpoint that has a run.
fn holder(stack: &Stack) -> usize {
    endpoints(stack).iter().position(|endpoint| endpoint.runs() > 0).unwrap()
}

fn quick() -> Ask {
    Ask::plain_run().by(&Who::alice())
}

/// Runs something quick; gives the endpoint that served it.
async fn served(stack: &Stack, ask: Ask, id: &str) -> String {
    let got = stack.send(ask.header("x-request-id", id)).await;
    assert_eq!(got.status, 200, "{id}: {got:?}");
    stack.access_line(id).await["endpoint"].as_str().unwrap().to_owned()
}

/// A session whose runs go to this endpoint.
async fn session_at(stack: &Stack, endpoint: &str) -> String {
    for n in 0..50 {
        let session = format!("home-{n}");
        if served(stack, quick().field("session_id", &session), &session).await == endpoint {
            return session;
        }
    }
    panic!("no session goes to {endpoint}");
}

/// Waits for an endpoint's state, at most so long.
async fn turned(stack: &Stack, at: usize, up: bool, limit: Duration) {
    let began = Instant::now();
    let endpoint = Arc::clone(&endpoints(stack)[at]);
    within("the probes", async {
        while endpoint.is_up() != up {
            // A round trip to the admin door: the probes run meanwhile.
            stack.admin("/healthz").await;
        }
    })
    .await;
    assert!(began.elapsed() < limit + SLACK, "up: {up} after {:?}", began.elapsed());
}

/// Both endpoints get runs, and answer them.
async fn both_serve(stack: &Stack, when: &str) {
    let mut seen = BTreeSet::new();
    for n in 0..4 {
        seen.insert(served(stack, quick(), &format!("{when}-{n}")).await);
    }
    assert_eq!(seen.len(), 2, "{when}: {seen:?}");
}

/// The data of the last event of a stream.
fn last(text: &str) -> Value {
    serde_json::from_str(text.trim_end().rsplit("data: ").next().unwrap()).unwrap()
}

async fn a_killed_replica(agno: Agno) {
    let mut replicas = Vec::from(replicas(agno).await);
    let stack = Stack::over(&urls(&replicas), in_turns("\"500ms\"")).await;
    let (mut flow, run) = slow_run(&stack, "killed").await;
    let holder = holder(&stack);
    let session = session_at(&stack, &replicas[holder].url()).await;
    let ask = Ask::post(SLOW).field("message", "dig").field("stream", "false").field("session_id", &session);
    let (address, ask) = (stack.address(), ask.by(&Who::alice()));
    let mut whole = JoinSet::new();
    whole.spawn(async move { open_at(address, ask).await.whole().await });
    within("a run without stream at the same replica", async {
        while endpoints(&stack)[holder].runs() < 2 {
            stack.admin("/healthz").await;
        }
    })
    .await;

    let mut killed = replicas.remove(holder);
    let began = Instant::now();
    killed.kill().await;
    let (text, clean) = flow.rest().await;
    let took = began.elapsed();
    let expected = json!({"event": "error", "code": "upstream_reset", "run_id": run, "retry": false});
    assert!(clean && last(&text) == expected, "{text}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    let got = whole.join_next().await.unwrap().unwrap();
    assert_eq!((got.status, got.code()), (502, "upstream_reset".to_owned()), "{got:?}");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    // At most what was in flight there is lost.
    for n in 0..6 {
        let got = stack.send(quick()).await;
        assert_eq!(got.status, 200, "run {n}: {got:?}");
    }
    // Nobody says that a run was cancelled which nobody can reach.
    let cancel = || Ask::post(&format!("{SLOW}/{run}/cancel?session_id=killed")).by(&Who::alice());
    let got = stack.send(cancel()).await;
    assert!(matches!(got.status, 502 | 503), "{got:?}");

    // Back on its port, with nothing in its memory.
    let _back = killed.restart().await;
    turned(&stack, holder, true, Duration::from_millis(500)).await;
    both_serve(&stack, "back").await;
    // The runs are over: their slots are free, and the new process does not pass for one that runs them.
    stack.wait_for_metric("tollbridge_runs_active", &[], 0.0).await;
    let got = stack.send(cancel()).await;
    assert_eq!((got.status, got.code()), (202, "cancel_unconfirmed".to_owned()), "{got:?}");
    let got = stack.send(Ask::get(&format!("{SLOW}/{run}?session_id=killed")).by(&Who::alice())).await;
    assert_eq!(got.status, 404, "{got:?}");
}

on_each_agno!(a_replica_that_is_killed_costs_its_runs_and_serves_when_it_is_back: a_killed_replica);

async fn a_hung_replica(agno: Agno) {
    let replicas = replicas(agno).await;
    let (interval, timeout) = (Duration::from_millis(200), Duration::from_secs(5));
    let settings = in_turns("\"200ms\"").set("[clusters.health]", "timeout", "\"5s\"").set(
        "[clusters.timeouts]",
        "stream_idle",
        "\"3s\"",
    );
    let stack = Stack::over(&urls(&replicas), settings).await;
    stack.wait_for_metric("tollbridge_endpoint_up", &[], 2.0).await;
    let (mut flow, run) = slow_run(&stack, "hung").await;
    let holder = holder(&stack);
    replicas[holder].signal("STOP");
    let began = Instant::now();
    let (text, clean) = flow.rest().await;
    let expected = json!({"event": "error", "code": "upstream_timeout", "run_id": run, "retry": false});
    assert!(clean && last(&text) == expected, "{text}");
    assert!(began.elapsed() < Duration::from_secs(3) + SLACK, "{:?}", began.elapsed());
    // The second probe in a row that is not answered takes it out.
    turned(&stack, holder, false, (interval + timeout) * 2).await;
    let other = replicas[1 - holder].url();
    for n in 0..4 {
        assert_eq!(served(&stack, quick(), &format!("meanwhile-{n}")).await, other);
    }
    replicas[holder].signal("CONT");
    turned(&stack, holder, true, interval + timeout).await;
    both_serve(&stack, "back").await;
    // Its caller was told of the end: AgentOS has noticed that nobody listens, and the slot is free.
    stack.wait_for_metric("tollbridge_runs_active", &[], 0.0).await;
}

on_each_agno!(a_replica_that_hangs_is_found_by_probes_and_comes_back: a_hung_replica);

async fn a_name_that_moves(agno: Agno) {
    let replicas = replicas(agno).await;
    let names = NameServer::start().await;
    names.serve(SERVICE, &[replicas[0].port()]);
    let stack = Stack::over(&[], names.settings(SERVICE, in_turns("\"200ms\""))).await;
    stack.wait_for_metric("tollbridge_endpoint_up", &[], 1.0).await;
    let (mut flow, run) = slow_run(&stack, "moved").await;

    names.serve(SERVICE, &[replicas[1].port()]);
    let began = Instant::now();
    let mut asked = 0;
    within("a run at the new address", async {
        while served(&stack, quick(), &format!("moving-{asked}")).await != replicas[1].url() {
            asked += 1;
        }
    })
    .await;
    assert!(began.elapsed() < SLACK, "{:?}", began.elapsed());
    for n in 0..4 {
        assert_eq!(served(&stack, quick(), &format!("moved-{n}")).await, replicas[1].url());
    }
    // The run lives on where it is, and who cancels it still reaches it.
    flow.until("event: RunContent\n").await;
    let cancel = Ask::post(&format!("{SLOW}/{run}/cancel?session_id=moved")).by(&Who::alice());
    let (got, (text, clean)) = tokio::join!(stack.send(cancel), flow.rest());
    assert_eq!(got.status, 200, "{got:?}");
    assert!(clean && text.contains("event: RunCancelled"), "{text}");
    stack.wait_for_metric("tollbridge_runs_active", &[], 0.0).await;
}

on_each_agno!(a_name_that_moves_takes_new_runs_along_and_leaves_what_runs: a_name_that_moves);
