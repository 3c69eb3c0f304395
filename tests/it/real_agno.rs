//! Proves what the gateway promises about runs on real AgentOS, on both releases: ids, names, tokens, cancellation,
//! sockets, and operations that are not there.
//! Does not test who may see what (`real_people`).
//! Every test starts its replicas once and walks through several chapters: a start costs seconds.

use std::collections::BTreeSet;

use futures_util::{SinkExt as _, StreamExt as _};
use http::Request;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tollbridge::agentos::{Catalog, Exposure, Method, Version, Versions};

use crate::agno::Agno;
use crate::mcp_client::McpClient;
use crate::real_stack::{Real, events};
use crate::stack::{Ask, Who, within};

/// Components that answer at once.
const QUICK: [&str; 3] = ["/agents/assistant", "/teams/newsroom", "/workflows/daily-report"];
/// Ways to start a run.
const WAYS: [&[(&str, &str)]; 3] =
    [&[("stream", "false")], &[("stream", "true")], &[("stream", "false"), ("background", "true")]];

#[tokio::test]
async fn agno_2_5_6_runs_behind_the_gateway() {
    runs(&Real::start(Agno::Oldest).await).await;
}

#[tokio::test]
async fn agno_3_1_10_runs_behind_the_gateway() {
    runs(&Real::start(Agno::Newest).await).await;
}

#[tokio::test]
async fn agno_2_5_6_cancels_on_the_replica_that_runs() {
    cancels(&Real::start(Agno::Oldest).await).await;
}

#[tokio::test]
async fn agno_3_1_10_cancels_on_the_replica_that_runs() {
    cancels(&Real::start(Agno::Newest).await).await;
}

async fn runs(real: &Real) {
    for path in QUICK {
        for way in WAYS {
            a_run_has_our_id_and_no_foreign_name(real, path, way).await;
        }
    }
    the_log_counts_the_tokens_that_agno_reports(real).await;
    sockets_start_workflows_for_those_who_may(real).await;
    operations_of_one_release_are_refused_on_the_other(real).await;
    what_concerns_the_whole_agentos_is_not_an_operators(real).await;
}

async fn a_run_has_our_id_and_no_foreign_name(real: &Real, path: &str, way: &[(&str, &str)]) {
    let what = format!("{path} {way:?}");
    let id = format!("run-{}", what.replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
    let id = &id[..id.len().min(60)];
    let session = format!("session-{id}");
    let mut ask = Ask::post(&format!("{path}/runs")).field("message", "hello").field("session_id", &session);
    for (name, value) in way {
        ask = ask.field(name, value);
    }
    let got = real.by(&Who::alice(), ask.header("x-request-id", id)).await;
    assert!(matches!(got.status, 200 | 202), "{what}: {}", got.text());
    assert!(!got.text().contains("acme~alice"), "{what}: the upstream name shows: {}", got.text());
    let line = real.stack.access_line(id).await;
    let told = if way.contains(&("stream", "true")) { events(&got.text()).remove(0) } else { got.json() };
    assert_eq!(told["run_id"], line["run_id"], "{what}");
    // Ours is a UUID of version 8, AgentOS makes version 4. It keeps its own for a workflow in the background, which the
    // gateway then learns from the answer.
    let run = told["run_id"].as_str().unwrap();
    let learned = way.contains(&("background", "true")) && path.starts_with("/workflows");
    assert_eq!(run.as_bytes()[14], if learned { b'4' } else { b'8' }, "{what}: {run}");
    let followed = Ask::post(&format!("{path}/runs/{run}/cancel?session_id={session}"));
    let followed = real.by(&Who::alice(), followed.header("x-request-id", &format!("{id}-c"))).await;
    assert_eq!(followed.status, 200, "{what}: {}", followed.text());
    let cancelled = real.stack.access_line(&format!("{id}-c")).await;
    assert_eq!(cancelled["endpoint"], line["endpoint"], "{what}");

    let kind = path.split('/').nth(1).unwrap().trim_end_matches('s');
    let stored = || async {
        loop {
            let got = real.bare("acme~alice", Ask::get(&format!("/sessions/{session}?type={kind}"))).await;
            if got.status == 200 {
                return got;
            }
        }
    };
    let stored = within("the session in the database", stored()).await;
    assert_eq!(stored.json()["user_id"], "acme~alice", "{what}: {}", stored.text());
    let shown = real.by(&Who::alice(), Ask::get(&format!("/sessions/{session}?type={kind}"))).await;
    assert_eq!((shown.status, &shown.json()["user_id"]), (200, &json!("alice")), "{what}: {}", shown.text());
}

/// Input and output tokens, as a line of the log has them.
fn tokens(line: &Value) -> [u64; 2] {
    ["input", "output"].map(|kind| line[format!("gen_ai.usage.{kind}_tokens")].as_u64().unwrap_or(0))
}

/// The same, as the run of an agent has them.
fn reported(run: &Value) -> [u64; 2] {
    ["input", "output"].map(|kind| run["metrics"][format!("{kind}_tokens")].as_u64().unwrap_or(0))
}

async fn the_log_counts_the_tokens_that_agno_reports(real: &Real) {
    let mut counted = BTreeSet::new();
    for stream in ["false", "true"] {
        let id = format!("tokens-{stream}");
        let ask = Ask::run("assistant").field("message", "one two three").field("stream", stream);
        let got = real.by(&Who::alice(), ask.header("x-request-id", &id)).await;
        let run = match stream {
            "true" => events(&got.text()).into_iter().find(|event| event["event"] == "RunCompleted").unwrap(),
            _ => got.json(),
        };
        let line = real.stack.access_line(&id).await;
        let logged = tokens(&line);
        assert_eq!(logged, reported(&run), "stream={stream}: {run}");
        assert!(logged[0] > 0 && logged[1] > 0, "{line}");
        counted.insert(logged);
    }
    assert_eq!(counted.len(), 1, "the same run costs the same either way: {counted:?}");
    for path in ["/teams/newsroom", "/workflows/daily-report"] {
        let id = format!("tokens{}", path.replace('/', "-"));
        let ask = Ask::post(&format!("{path}/runs")).field("message", "one two three");
        let got = real.by(&Who::alice(), ask.header("x-request-id", &id)).await;
        // The end of a team or workflow does not sum up what its members used: the calls of models do.
        let calls = events(&got.text());
        let calls = calls.iter().filter(|e| e["event"].as_str().is_some_and(|n| n.ends_with("ModelRequestCompleted")));
        let mut used = [0, 0];
        for call in calls {
            used[0] += call["input_tokens"].as_u64().unwrap();
            used[1] += call["output_tokens"].as_u64().unwrap();
        }
        assert_eq!(tokens(&real.stack.access_line(&id).await), used, "{path}");
        assert!(used[0] > 0 && used[1] > 0, "{path}: {used:?}");
    }
}

pub(crate) type Socket = tokio_tungstenite::WebSocketStream<TcpStream>;

pub(crate) async fn socket(real: &Real, who: Option<&Who>) -> Result<Socket, Error> {
    let mut request: Request<()> = format!("ws://{}/workflows/ws", real.stack.address()).into_client_request().unwrap();
    if let Some(who) = who {
        request.headers_mut().insert("authorization", format!("Bearer {}", who.token()).parse().unwrap());
    }
    let stream = TcpStream::connect(real.stack.address()).await.unwrap();
    Ok(tokio_tungstenite::client_async(request, stream).await?.0)
}

/// Asks for a workflow and reads until it has ended, was refused, or the socket closed.
pub(crate) async fn start_workflow(mut socket: Socket) -> Vec<String> {
    let start = json!({"action": "start-workflow", "workflow_id": "daily-report", "message": "by socket"});
    socket.send(Message::text(start.to_string())).await.unwrap();
    let mut said = Vec::new();
    while let Some(Ok(message)) = within("a message of the socket", socket.next()).await {
        let Message::Text(text) = message else { continue };
        let over = matches!(event_of(&text).as_str(), "WorkflowCompleted" | "error" | "auth_required");
        said.push(text.to_string());
        if over {
            break;
        }
    }
    said
}

/// The event of a message: bare JSON, or JSON wrapped as a server-sent event.
fn event_of(text: &str) -> String {
    let whole = serde_json::from_str(text).ok().or_else(|| events(text).into_iter().next());
    whole.and_then(|event: Value| event["event"].as_str().map(str::to_owned)).unwrap_or_default()
}

async fn sockets_start_workflows_for_those_who_may(real: &Real) {
    let said = start_workflow(socket(real, Some(&Who::alice())).await.unwrap()).await;
    let last = said.last().unwrap();
    assert!(last.contains("WorkflowCompleted") && last.contains("by socket"), "{said:?}");
    assert!(said.iter().all(|text| !text.contains("acme~alice")), "{said:?}");
    for stranger in [None, Some(Who::new("vera").role("viewer"))] {
        // Some are refused at the handshake, some when they ask.
        if let Ok(socket) = socket(real, stranger.as_ref()).await {
            let said = start_workflow(socket).await;
            assert!(said.iter().all(|text| !text.contains("Workflow")), "{stranger:?}: {said:?}");
        }
    }
}

async fn operations_of_one_release_are_refused_on_the_other(real: &Real) {
    let catalog = Catalog::shipped();
    let plain = |row: &&_| {
        let row: &tollbridge::agentos::Operation = row;
        row.method == Method::Get && row.exposure == Exposure::Offered && !row.path.contains('{')
    };
    for version in [Version::V2, Version::V3] {
        let row = catalog.rows().iter().filter(plain).find(|row| row.versions == Versions::Only(version));
        let Some(row) = row else { continue };
        let who = Who::new("root").role("admin").role("platform_admin");
        let got = real.by(&who, Ask::get(row.path)).await;
        let here = version == if real.agno == Agno::Oldest { Version::V2 } else { Version::V3 };
        if here {
            assert_ne!(got.code(), "operation_unsupported", "{}", row.id);
        } else {
            assert_eq!((got.status, got.code().as_str()), (404, "operation_unsupported"), "{}", row.id);
        }
    }
}

async fn what_concerns_the_whole_agentos_is_not_an_operators(real: &Real) {
    let body = json!({"name": "Mine", "component_type": "agent"});
    for ask in [Ask::get("/registry"), Ask::post("/components").json(&body)] {
        let got = real.by(&Who::alice(), ask.clone()).await;
        assert_eq!((got.status, got.code().as_str()), (403, "forbidden"), "{ask:?}: {}", got.text());
    }
}

/// Twenty runs on two replicas, half of them streamed: each one is stopped where it runs.
async fn cancels(real: &Real) {
    let mut endpoints = BTreeSet::new();
    for n in 0..10 {
        endpoints.insert(a_streamed_run_is_stopped(real, n).await);
    }
    let mut background = Vec::new();
    for n in 10..20 {
        let session = format!("background-{n}");
        let ask = Ask::run("researcher-slow").field("message", "go").field("stream", "false");
        let ask = ask.field("background", "true").field("session_id", &session);
        let got = real.by(&Who::alice(), ask.header("x-request-id", &format!("start-{n}"))).await;
        let run = got.json()["run_id"].as_str().unwrap().to_owned();
        cancel(real, &run, &session, n).await;
        endpoints.insert(one_endpoint(real, n).await);
        background.push((run, session));
    }
    // Without a stream AgentOS notices only after the call of the model that is under way.
    for (run, session) in &background {
        stopped(real, run, session).await;
    }
    assert_eq!(endpoints.len(), 2, "both replicas ran: {endpoints:?}");
    a_tool_cancels_too(real).await;
}

/// Gives the endpoint.
async fn a_streamed_run_is_stopped(real: &Real, n: usize) -> String {
    let session = format!("streamed-{n}");
    let ask = Ask::run("researcher-slow").field("message", "go").field("session_id", &session);
    let mut flow = real.stack.open(ask.by(&Who::alice()).header("x-request-id", &format!("start-{n}"))).await;
    let text = flow.until("RunContent").await;
    let run = events(&text)[0]["run_id"].as_str().unwrap().to_owned();
    cancel(real, &run, &session, n).await;
    let (rest, _) = flow.rest().await;
    let end = &rest[rest.len().saturating_sub(500)..];
    assert!(rest.contains("RunCancelled"), "run {n} was not stopped: {end}");
    one_endpoint(real, n).await
}

/// The endpoint that a run was started and cancelled on.
async fn one_endpoint(real: &Real, n: usize) -> String {
    let started = real.stack.access_line(&format!("start-{n}")).await;
    let stopped = real.stack.access_line(&format!("stop-{n}")).await;
    assert_eq!(started["endpoint"], stopped["endpoint"], "run {n}");
    started["endpoint"].as_str().unwrap().to_owned()
}

async fn cancel(real: &Real, run: &str, session: &str, n: usize) {
    let ask = Ask::post(&format!("/agents/researcher-slow/runs/{run}/cancel?session_id={session}"));
    let got = real.by(&Who::alice(), ask.header("x-request-id", &format!("stop-{n}"))).await;
    assert!(matches!(got.status, 200 | 202), "{}: {}", got.status, got.text());
}

/// Waits until AgentOS has stored that the run was cancelled.
async fn stopped(real: &Real, run: &str, session: &str) {
    let path = format!("/agents/researcher-slow/runs/{run}?session_id={session}");
    within("a cancelled run", async {
        loop {
            let got = real.by(&Who::alice(), Ask::get(&path)).await;
            match got.json()["status"].as_str() {
                Some("CANCELLED") => return,
                Some("COMPLETED") => panic!("run {run} went on to its end"),
                _ => {}
            }
        }
    })
    .await;
}

async fn a_tool_cancels_too(real: &Real) {
    let client = McpClient::modern(&real.stack, &Who::alice());
    let arguments = json!({"agent": "researcher-slow", "kind": "agent", "message": "go", "background": true});
    let told = client.call("run_agent", arguments).await;
    assert!(!told.is_error, "{}", told.text);
    let run = told.field("run");
    let cancelled = client.call("cancel_run", json!({"run": run})).await;
    assert!(!cancelled.is_error, "{}", cancelled.text);
    let end = client.call("get_run", json!({"run": run, "wait_s": 30})).await;
    assert_eq!(end.field("status"), "cancelled", "{}", end.text);
}
