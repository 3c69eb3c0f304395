//! Proves that what follows a run of real agno reaches the replica that holds it from any gateway: from another one than
//! the one that started it, and after that one was started anew. The gateways share nothing but their secret.
//! Does not test stores that gateways share (`cancels`, `quotas_shared`).

use std::collections::BTreeSet;

use futures_util::SinkExt as _;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::Message;
use tollbridge::cluster::tag_of;

use crate::agno::{AgentOs, Agno, Setup, on_each_agno};
use crate::clusters_agno::{patient, urls};
use crate::real_stack::events;
use crate::stack::{AGENTOS_KEY, Ask, Got, Settings, Stack, Who, within};
use crate::websocket::{Socket, known, next};

/// Two gateways in front of the same replicas.
struct Gateways {
    replicas: [AgentOs; 2],
    /// Where the tools of the replicas write what they do.
    ledger: TempDir,
    first: Stack,
    second: Stack,
    /// Counts requests: each has an id of its own.
    asked: usize,
}

/// A run that was started through the first gateway.
struct Started {
    /// Its component, as in `/agents/assistant`.
    path: &'static str,
    session: String,
    run: String,
    /// The replica that holds it.
    endpoint: String,
    /// The answer.
    body: Value,
    events: Vec<Value>,
}

fn settings() -> Settings {
    patient().set("[server]", "drain_timeout", "\"1s\"").set("[[clusters]]", "balance", "\"round_robin\"")
}

/// How a run is begun.
#[derive(Debug, Clone, Copy)]
enum Begin<'a> {
    /// With these fields; its answer is read to the end.
    AndRead(&'a [(&'a str, &'a str)]),
    /// As a stream that is left once it says something.
    AndLeave,
    /// By a socket that is left once it says something.
    BySocket,
}

/// The request that starts a run.
fn starting(path: &str, session: &str, fields: &[(&str, &str)]) -> Ask {
    let ask = Ask::post(&format!("{path}/runs")).field("message", "delete it").field("session_id", session);
    fields.iter().fold(ask, |ask, (name, value)| ask.field(name, value))
}

// === impl Gateways ===

impl Gateways {
    /// Slow runs say so many chunks, one each half second.
    async fn start(agno: Agno, slow_chunks: u32) -> Self {
        let ledger = TempDir::new().unwrap();
        let setup = Setup::with_jwt(agno, AGENTOS_KEY).and("SLOW_DELAY", "0.5");
        let setup = setup.and("SLOW_CHUNKS", &slow_chunks.to_string());
        let first = AgentOs::start(setup.and("LEDGER", ledger.path().join("ledger").to_str().unwrap())).await;
        let replicas = [first.replica().await, first];
        let (first, second) =
            (Stack::over(&urls(&replicas), settings()).await, Stack::over(&urls(&replicas), settings()).await);
        Self { replicas, ledger, first, second, asked: 0 }
    }

    /// The first gateway ends, and another one begins in its place: nothing is left of what it knew.
    async fn restart_first(&mut self) {
        let anew = Stack::over(&urls(&self.replicas), settings()).await;
        std::mem::replace(&mut self.first, anew).running.drain().await;
    }

    /// How much the tools have done.
    fn deeds(&self) -> usize {
        std::fs::read_to_string(self.ledger.path().join("ledger")).unwrap_or_default().lines().count()
    }

    /// Sends a request as Alice; gives the replica that answered, too.
    async fn ask(&mut self, through: Through, ask: Ask) -> (Got, String) {
        self.ask_as(through, Who::alice(), ask).await
    }

    async fn ask_as(&mut self, through: Through, who: Who, ask: Ask) -> (Got, String) {
        self.asked += 1;
        let id = format!("ask-{}", self.asked);
        let stack = self.stack(through);
        let got = stack.send(ask.by(&who).header("x-request-id", &id)).await;
        let endpoint = stack.access_line(&id).await["endpoint"].as_str().unwrap_or_default().to_owned();
        (got, endpoint)
    }

    fn stack(&self, through: Through) -> &Stack {
        match through {
            Through::First => &self.first,
            Through::Second => &self.second,
        }
    }

    /// Starts a run through the first gateway and reads its answer to the end.
    async fn run(&mut self, path: &'static str, session: &str, fields: &[(&str, &str)]) -> Started {
        let (got, endpoint) = self.ask(Through::First, starting(path, session, fields)).await;
        assert!(matches!(got.status, 200 | 202), "{path}: {got:?}");
        let events = events(&got.text());
        let body = events.first().cloned().unwrap_or_else(|| got.json());
        let run = body["run_id"].as_str().unwrap_or_else(|| panic!("{path}: {got:?}")).to_owned();
        Started { path, session: session.to_owned(), run, endpoint, body, events }
    }

    /// Starts a run that streams and goes on by itself; leaves it once it says something.
    async fn leave(&mut self, path: &'static str, session: &str) -> Started {
        self.asked += 1;
        let id = format!("ask-{}", self.asked);
        let ask = starting(path, session, &[("background", "true")]).by(&Who::alice()).header("x-request-id", &id);
        let mut flow = self.first.open(ask).await;
        // Events may come in pieces: the one after it is begun when the one that is meant is whole.
        let text = flow.until("event: RunContent\n").await + &flow.until("\n\n").await;
        drop(flow);
        let events = events(&text);
        let (body, endpoint) = (events[0].clone(), self.first.access_line(&id).await["endpoint"].clone());
        let run = body["run_id"].as_str().unwrap().to_owned();
        let endpoint = endpoint.as_str().unwrap().to_owned();
        Started { path, session: session.to_owned(), run, endpoint, body, events }
    }

    /// Starts a workflow by socket and leaves once it says something.
    async fn leave_socket(&mut self, path: &'static str, session: &str) -> Started {
        let mut socket = known(&self.first).await;
        let workflow = path.strip_prefix("/workflows/").unwrap();
        let start =
            json!({"action": "start-workflow", "workflow_id": workflow, "message": "dig", "session_id": session});
        socket.send(Message::text(start.to_string())).await.unwrap();
        let mut events: Vec<Value> = Vec::new();
        while events.last().is_none_or(|event| event["event"] != "RunContent") {
            let event = next(&mut socket).await;
            assert_ne!(event["event"], "error", "{event}");
            events.push(event);
        }
        drop(socket);
        let body = events[0].clone();
        let run = body["run_id"].as_str().unwrap().to_owned();
        let endpoint = self.named_by(&run);
        Started { path, session: session.to_owned(), run, endpoint, body, events }
    }

    /// The replica that the id of a run names.
    fn named_by(&self, run: &str) -> String {
        let tag = tag_of(&run.parse().unwrap()).unwrap_or_else(|| panic!("`{run}` is none of ours"));
        let snapshot = self.first.running.gateway.snapshot();
        let endpoints = snapshot.clusters.iter().next().unwrap().endpoints();
        endpoints.iter().find(|endpoint| endpoint.tag == tag).unwrap().address.to_string()
    }

    /// A session that nobody has used.
    fn session(&mut self) -> String {
        self.asked += 1;
        format!("s-{}", self.asked)
    }

    /// Runs of one component, until each replica holds one.
    async fn on_both(&mut self, path: &'static str, begin: Begin<'_>) -> Vec<Started> {
        let (mut runs, mut endpoints) = (Vec::new(), BTreeSet::new());
        while endpoints.len() < 2 {
            assert!(runs.len() < 20, "{path}: all at {endpoints:?}");
            let session = self.session();
            let started = match begin {
                Begin::AndRead(fields) => self.run(path, &session, fields).await,
                Begin::AndLeave => self.leave(path, &session).await,
                Begin::BySocket => self.leave_socket(path, &session).await,
            };
            endpoints.insert(started.endpoint.clone());
            runs.push(started);
        }
        runs
    }

    /// Looks at a stored run.
    async fn stored(&mut self, through: Through, started: &Started) -> Value {
        let Started { path, run, session, .. } = started;
        let (got, _) = self.ask(through, Ask::get(&format!("{path}/runs/{run}?session_id={session}"))).await;
        if got.status == 200 { got.json()["status"].clone() } else { json!(got.status) }
    }
}

/// Which gateway a request goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Through {
    First,
    Second,
}

/// Every way that is not the one by which a run was started: the second gateway, and then the first one started anew.
const ELSEWHERE: [Through; 2] = [Through::Second, Through::First];

async fn a_paused_run_goes_on(agno: Agno) {
    let mut gateways = Gateways::start(agno, 1).await;
    let whole = Begin::AndRead(&[("stream", "false")]);
    for through in ELSEWHERE {
        let mut paused = gateways.on_both("/agents/mailer", whole).await;
        if agno == Agno::Newest {
            // 2.x has no such routes.
            paused.extend(gateways.on_both("/teams/archive", whole).await);
            paused.extend(gateways.on_both("/workflows/clean-up", whole).await);
        }
        if through == Through::First {
            gateways.restart_first().await;
        }
        for started in paused {
            let Started { path, run, session, endpoint, body, .. } = &started;
            assert_eq!(gateways.stored(through, &started).await, "PAUSED", "{path}, {through:?}");
            let ask = Ask::post(&format!("{path}/runs/{run}/continue")).field("session_id", session);
            let ask = ask.field("stream", "false");
            let ask = if *path == "/agents/mailer" {
                let id = &body["tools"][0]["tool_call_id"];
                ask.field("tools", &json!([{"tool_call_id": id, "confirmed": true}]).to_string())
            } else {
                approve(&mut gateways, through, &started).await;
                ask
            };
            let before = gateways.deeds();
            let (got, at) = gateways.ask(through, ask.clone()).await;
            let done = (got.status, got.json()["status"].as_str().map(str::to_owned));
            assert_eq!(done, (200, Some("COMPLETED".to_owned())), "{path}, {through:?}: {got:?}");
            assert_eq!((&at, gateways.deeds()), (endpoint, before + 1), "{path}, {through:?}");
            // Whoever comes later by another way is told, and nothing is done again.
            let other = if through == Through::First { Through::Second } else { Through::First };
            let (got, _) = gateways.ask(other, ask).await;
            assert_eq!((got.status, gateways.deeds()), (409, before + 1), "{path}, {through:?}: {got:?}");
            assert_eq!(gateways.stored(other, &started).await, "COMPLETED", "{path}, {through:?}");
        }
    }
}

/// Answers the approval that a run waits for.
async fn approve(gateways: &mut Gateways, through: Through, started: &Started) {
    let body = &started.body;
    let tool = match started.path {
        "/teams/archive" => &body["requirements"][0]["tool_execution"],
        _ => &body["step_requirements"][0]["executor_requirements"][0]["tool_execution"],
    };
    let approval = tool["approval_id"].as_str().unwrap_or_else(|| panic!("no approval in {body}"));
    let ask = Ask::post(&format!("/approvals/{approval}/resolve")).json(&json!({"status": "approved"}));
    let (got, _) = gateways.ask_as(through, Who::new("adam").role("approver"), ask).await;
    assert_eq!(got.status, 200, "{got:?}");
}

on_each_agno!(a_paused_run_goes_on_through_any_gateway: a_paused_run_goes_on);

async fn a_run_in_the_background_is_cancelled(agno: Agno) {
    const SLOW: [&str; 2] = ["/agents/researcher-slow", "/workflows/slow-report"];
    let mut gateways = Gateways::start(agno, if agno == Agno::Newest { 600 } else { 24 }).await;
    for through in ELSEWHERE {
        let runs = if agno == Agno::Oldest {
            // It streams nothing in the background, and notices a cancel when the model has answered.
            let background = Begin::AndRead(&[("stream", "false"), ("background", "true")]);
            gateways.on_both(SLOW[0], background).await
        } else {
            let mut runs = gateways.on_both(SLOW[0], Begin::AndLeave).await;
            runs.extend(gateways.on_both(SLOW[1], Begin::AndLeave).await);
            runs
        };
        if through == Through::First {
            gateways.restart_first().await;
        }
        for started in &runs {
            let status = gateways.stored(through, started).await;
            assert!(status == "RUNNING" || status == "PENDING", "{}, {through:?}: {status}", started.path);
        }
        // All at once: a run may end while the cancel of another is waited for.
        let stack = gateways.stack(through);
        join_all(runs.iter().map(async |started| {
            let Started { path, run, session, endpoint, .. } = started;
            let (id, cancel) = (format!("cancel-{run}"), format!("{path}/runs/{run}/cancel?session_id={session}"));
            let got = stack.send(Ask::post(&cancel).by(&Who::alice()).header("x-request-id", &id)).await;
            assert!(matches!(got.status, 200 | 202), "{path}, {through:?}: {got:?}");
            assert_eq!(stack.access_line(&id).await["endpoint"], **endpoint, "{path}, {through:?}");
        }))
        .await;
        for started in &runs {
            within("a cancelled run", async {
                loop {
                    match gateways.stored(through, started).await {
                        status if status == "CANCELLED" => return,
                        status if status == "RUNNING" || status == "PENDING" => {}
                        status => panic!("{}, {through:?}: {status}", started.path),
                    }
                }
            })
            .await;
        }
    }
}

on_each_agno!(a_run_in_the_background_is_cancelled_through_any_gateway: a_run_in_the_background_is_cancelled);

/// The places of events in their run.
fn places(events: &[Value]) -> Vec<u64> {
    events.iter().filter_map(|event| event["event_index"].as_u64()).collect()
}

#[tokio::test]
async fn a_run_that_was_left_is_resumed_through_any_gateway() {
    let mut gateways = Gateways::start(Agno::Newest, 600).await;
    for through in ELSEWHERE {
        let mut ended = Vec::new();
        for path in ["/agents/assistant", "/teams/newsroom", "/workflows/daily-report"] {
            ended.extend(gateways.on_both(path, Begin::AndRead(&[("background", "true")])).await);
        }
        let going = gateways.on_both("/agents/researcher-slow", Begin::AndLeave).await;
        if through == Through::First {
            gateways.restart_first().await;
        }
        let resume = |started: &Started| {
            let ask = Ask::post(&format!("{}/runs/{}/resume", started.path, started.run));
            ask.field("session_id", &started.session)
        };
        for started in &ended {
            let (got, at) = gateways.ask(through, resume(started)).await;
            let what = format!("{}, {through:?}: {}", started.path, got.text());
            // Another replica would know a part of it, or nothing.
            let all = places(&started.events);
            assert!(!all.is_empty() && places(&events(&got.text())) == all, "{what}");
            assert_eq!((got.status, &at), (200, &started.endpoint), "{what}");
        }
        for started in &going {
            let seen = *places(&started.events).last().unwrap();
            let ask = resume(started).field("last_event_index", &seen.to_string()).by(&Who::alice());
            let mut flow = gateways.stack(through).open(ask).await;
            let mut text = String::new();
            // What was missed and what comes now, without a gap.
            while places(&events(&text)).len() < 6 {
                text += &flow.until("\n\n").await;
            }
            let all = places(&events(&text));
            assert_eq!(all, (seen + 1..).take(all.len()).collect::<Vec<_>>(), "{through:?}: {text}");
            drop(flow);
            let ask =
                Ask::post(&format!("{}/runs/{}/cancel?session_id={}", started.path, started.run, started.session));
            assert_eq!(gateways.ask(through, ask).await.0.status, 200);
        }
    }
}

/// A new socket that asks for what came after an event.
async fn reconnected(stack: &Stack, started: &Started, last: u64) -> Socket {
    let mut socket = known(stack).await;
    let reconnect = json!({
        "action": "reconnect", "workflow_id": started.path.strip_prefix("/workflows/").unwrap(),
        "run_id": started.run, "session_id": started.session, "last_event_index": last,
    });
    socket.send(Message::text(reconnect.to_string())).await.unwrap();
    socket
}

#[tokio::test]
async fn a_socket_that_comes_back_finds_its_workflow_through_any_gateway() {
    let mut gateways = Gateways::start(Agno::Newest, 600).await;
    // Also the gateway that started it; at last that one, started anew.
    for (through, anew) in [(Through::First, false), (Through::Second, false), (Through::First, true)] {
        let left = gateways.on_both("/workflows/slow-report", Begin::BySocket).await;
        if anew {
            gateways.restart_first().await;
        }
        for started in left {
            let what = format!("{through:?}, anew: {anew}");
            let seen = places(&started.events).pop().unwrap_or_else(|| panic!("{what}: nobody could come back"));
            let mut socket = reconnected(gateways.stack(through), &started, seen).await;
            // What was missed and what comes now, without a gap.
            for place in seen + 1..seen + 6 {
                let mut event = next(&mut socket).await;
                while event["event_index"].is_null() {
                    assert_ne!(event["event"], "error", "{what}: {event}");
                    event = next(&mut socket).await;
                }
                assert_eq!(event["event_index"], place, "{what}: {event}");
            }
            let ask =
                Ask::post(&format!("{}/runs/{}/cancel?session_id={}", started.path, started.run, started.session));
            let (got, at) = gateways.ask(through, ask).await;
            assert_eq!((got.status, &at), (200, &started.endpoint), "{what}: {got:?}");
            while next(&mut socket).await["event"] != "WorkflowCancelled" {}
        }
    }
}

#[tokio::test]
async fn a_socket_is_told_that_the_oldest_agno_resumes_nothing() {
    let mut gateways = Gateways::start(Agno::Oldest, 4).await;
    let started = gateways.leave_socket("/workflows/slow-report", "s").await;
    for stack in [&gateways.first, &gateways.second] {
        let refused = next(&mut reconnected(stack, &started, 0).await).await;
        assert_eq!(
            (&refused["event"], &refused["code"]),
            (&json!("error"), &json!("operation_unsupported")),
            "{refused}"
        );
    }
    // The run outlives the socket, and is read as any other.
    within("the end of the workflow", async {
        while gateways.stored(Through::Second, &started).await != "COMPLETED" {}
    })
    .await;
}
