//! Proves the MCP door end to end: raw JSON-RPC over HTTP in both eras, the real gateway, a scripted AgentOS behind it.
//! Does not repeat what the endpoint's own tests show without a gateway.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fake::{Event, FakeAgentOs, Gate, Reply};
use crate::mcp_client::{Era, LEGACY, MODERN, McpClient, Messages, Told, error_of, initialize};
use crate::stack::{Ask, Settings, Stack, Who, within};

const RUNS: &str = "/agents/assistant/runs";

fn vera() -> Who {
    Who::new("vera").role("viewer")
}

/// A run whose events wait for the test.
fn paced(run: &str, session: &str) -> (Reply, Gate) {
    let of = |name: &str, mut data: Value| {
        data["run_id"] = json!(run);
        data["session_id"] = json!(session);
        Event::new(name, data)
    };
    let events = [
        of("RunStarted", json!({})),
        of("RunContent", json!({"content": "half "})),
        of("RunContent", json!({"content": "done"})),
        of("RunCompleted", json!({"content": "half done"})),
    ];
    Reply::paced_sse(&events)
}

fn run_assistant(more: &[(&str, Value)]) -> Value {
    let mut arguments = json!({"agent": "assistant", "kind": "agent", "message": "hello"});
    for (name, value) in more {
        arguments[*name] = value.clone();
    }
    arguments
}

/// A run that AgentOS has started and half said: the head of an answer goes out with the first progress.
async fn started(client: &McpClient<'_>, gate: &Gate, more: &[(&str, Value)]) -> Messages {
    gate.open_once();
    gate.open_once();
    client.open(client.calling("run_agent", run_assistant(more), Some("p"))).await
}

#[tokio::test]
async fn progress_arrives_before_the_run_ends() {
    let stack = Stack::start().await;
    for era in Era::ALL {
        let (reply, gate) = paced("r-1", "s-1");
        stack.os().pin("POST", RUNS, reply);
        let client = McpClient::of(&stack, era, &Who::alice()).await;
        let mut messages = started(&client, &gate, &[]).await;
        let first = messages.next().await.unwrap();
        assert_eq!(first["method"], "notifications/progress", "{era:?}: {first}");
        let said = (&first["params"]["progressToken"], &first["params"]["message"]);
        assert_eq!(said, (&json!("p"), &json!("half")), "{era:?}");
        // AgentOS has not said more than half of it: the gate is closed.
        gate.open();
        let told = Told::of(&messages.last().await);
        assert_eq!((told.is_error, told.text.lines().next()), (false, Some("half done")), "{era:?}");
    }
}

#[tokio::test]
async fn the_list_of_tools_depends_on_the_caller() {
    let stack = Stack::start().await;
    let all = [
        "cancel_run",
        "continue_run",
        "get_approval",
        "get_run",
        "get_session",
        "list_agents",
        "list_approvals",
        "list_knowledge",
        "list_sessions",
        "resolve_approval",
        "run_agent",
        "search_knowledge",
        "whoami",
    ];
    let without = |hidden: &[&str]| all.into_iter().filter(|name| !hidden.contains(name)).collect::<Vec<_>>();
    let runs = ["cancel_run", "continue_run", "resolve_approval", "run_agent"];
    for (who, names) in [
        (Who::alice(), without(&["resolve_approval"])),
        (vera(), without(&runs)),
        (Who::new("pat").role("approver"), vec!["get_approval", "list_approvals", "resolve_approval", "whoami"]),
        (Who::new("ada").role("admin"), all.to_vec()),
        (Who::new("root").role("platform_admin"), vec!["whoami"]),
        (Who::new("nora"), vec!["whoami"]),
    ] {
        for era in Era::ALL {
            assert_eq!(McpClient::of(&stack, era, &who).await.tools().await, names, "{era:?} {who:?}");
        }
    }
    assert!(stack.os().requests().is_empty(), "a list never asks AgentOS");
}

#[tokio::test]
async fn the_list_of_tools_depends_on_the_callers_address() {
    let near = r#"@id("near") forbid (principal, action in Tollbridge::Action::"run", resource)
        unless { context.source_ip.isLoopback() };"#;
    let stack = Stack::with(Settings::new().policy("90-near.cedar", near)).await;
    let tools = McpClient::of(&stack, Era::Modern, &Who::alice()).await.tools().await;
    assert!(tools.iter().any(|name| name == "run_agent"), "{tools:?}");
    let far = near.replace("unless", "when");
    let stack = Stack::with(Settings::new().policy("90-far.cedar", &far)).await;
    let tools = McpClient::of(&stack, Era::Modern, &Who::alice()).await.tools().await;
    assert!(!tools.iter().any(|name| name == "run_agent"), "{tools:?}");
}

#[tokio::test]
async fn a_refused_call_reaches_nobody_and_says_why() {
    let stack = Stack::start().await;
    for era in Era::ALL {
        let told = McpClient::of(&stack, era, &vera()).await.call("run_agent", run_assistant(&[])).await;
        let (first, rest) = told.text.split_once('\n').unwrap();
        assert_eq!((told.is_error, first), (true, "forbidden: you may not do this"), "{era:?}");
        assert!(rest.contains("help: ask your administrator") && rest.contains("request_id: "), "{rest}");
    }
    assert!(stack.os().requests_to(RUNS).is_empty());
}

#[tokio::test]
async fn a_call_over_the_rate_says_when_to_come_back() {
    let small = [("requests", "{ per_minute = 2, burst = 2 }"), ("concurrent_runs", "1"), ("tokens", "\"unlimited\"")];
    let settings = Settings::new().add("[plans.small]", &small).add("[tenants.initech]", &[("plan", "\"small\"")]);
    let stack = Stack::with(settings).await;
    let client = McpClient::modern(&stack, &Who::new("ian").of("initech").role("operator"));
    let mut last = None;
    for _ in 0..5 {
        let told = client.call("search_knowledge", json!({"query": "x"})).await;
        if told.is_error {
            last = Some(told.text);
            break;
        }
    }
    let text = last.expect("the rate is used up");
    let told = "rate_limited: the request rate of your tenant is used up. Limit `requests`: 2 per 60 s, 2 used, ";
    assert!(text.starts_with(told) && text.contains(" s. Retry after "), "{text}");
}

#[tokio::test]
async fn the_handle_of_another_principal_is_useless() {
    let stack = Stack::start().await;
    let alice = McpClient::modern(&stack, &Who::alice());
    let run = alice.call("run_agent", run_assistant(&[])).await.field("run");
    let before = stack.os().requests().len();
    for thief in [Who::new("mallory").role("admin"), Who::new("alice").of("globex").role("admin")] {
        let client = McpClient::modern(&stack, &thief);
        for tool in ["get_run", "cancel_run", "continue_run"] {
            let told = client.call(tool, json!({"run": run})).await;
            let wanted = "unknown run handle: pass the `run` value that run_agent returned to you";
            assert_eq!((told.is_error, told.text.as_str()), (true, wanted), "{tool} {thief:?}");
        }
    }
    assert_eq!(stack.os().requests().len(), before, "AgentOS heard nothing of it");
    assert!(!alice.call("get_run", json!({"run": run, "wait_s": 0})).await.is_error);
}

#[tokio::test]
async fn a_session_of_another_principal_does_not_exist() {
    let stack = Stack::start().await;
    let alice = McpClient::legacy(&stack, &Who::alice()).await;
    for thief in [Who::new("mallory").role("operator"), Who::new("alice").of("globex").role("operator")] {
        let mut client = McpClient::modern(&stack, &thief);
        client.session.clone_from(&alice.session);
        for method in ["GET", "DELETE"] {
            assert_eq!(stack.send(client.bare(method)).await.status, 404, "{method}");
        }
        let call = client.calling("whoami", json!({}), None);
        assert_eq!(stack.send(call).await.status, 404);
    }
    assert!(!alice.call("whoami", json!({})).await.is_error, "the session is unharmed");
}

#[tokio::test]
async fn a_paused_run_returns_its_approvals() {
    let stack = Stack::start().await;
    let tools = json!([{"tool_call_id": "c-1", "tool_name": "delete_record", "tool_args": {"record_id": "42"},
        "requires_confirmation": true, "approval_id": "a-1"}]);
    let row = json!({"run_id": "r-1", "session_id": "s-1"});
    let mut paused = row.clone();
    paused["tools"] = tools;
    let events = [Event::new("RunStarted", row), Event::new("RunPaused", paused)];
    for era in Era::ALL {
        stack.os().pin("POST", "/agents/records/runs", Reply::sse(&events));
        let client = McpClient::of(&stack, era, &Who::alice()).await;
        let told = client.call("run_agent", json!({"agent": "records", "kind": "agent", "message": "delete"})).await;
        assert_eq!((told.is_error, told.field("status").as_str()), (false, "paused"), "{era:?}");
        let line = "- delete_record {\"record_id\":\"42\"} (approval `a-1`)";
        assert!(told.text.contains(line) && told.text.contains("resolve_approval"), "{era:?}: {}", told.text);
    }
}

#[tokio::test]
async fn a_cancel_reaches_the_endpoint_that_holds_the_run() {
    let fakes = vec![FakeAgentOs::start().await, FakeAgentOs::start().await];
    let stack = Stack::before(fakes, Settings::new()).await;
    let client = McpClient::modern(&stack, &Who::alice());
    let mut holders = [0, 0];
    for n in 0..8 {
        let told = client.call("run_agent", run_assistant(&[("background", json!(true))])).await;
        assert!(!told.is_error, "{}", told.text);
        let ask = client.calling("cancel_run", json!({"run": told.field("run")}), None);
        let ask = ask.header("x-request-id", &format!("cancel-{n}"));
        assert!(!Told::of(&client.open(ask).await.last().await).is_error);
        let line = stack.access_line(&format!("cancel-{n}")).await;
        let run = line["run_id"].as_str().unwrap();
        let holder = stack
            .fakes()
            .iter()
            .position(|fake| fake.requests_to(RUNS).iter().any(|request| request.form().get("run_id") == Some(run)));
        let cancelled =
            stack.fakes().iter().position(|fake| !fake.requests_to(&format!("{RUNS}/{run}/cancel")).is_empty());
        assert!(holder.is_some() && holder == cancelled, "run {run}: {holder:?} holds it, {cancelled:?} was asked");
        holders[holder.unwrap()] += 1;
    }
    assert!(holders.iter().all(|held| *held > 0), "both endpoints held runs: {holders:?}");
}

#[tokio::test]
async fn a_background_run_is_followed_by_its_handle() {
    let stack = Stack::start().await;
    for era in Era::ALL {
        let client = McpClient::of(&stack, era, &Who::alice()).await;
        let told = client.call("run_agent", run_assistant(&[("background", json!(true))])).await;
        assert!(!told.is_error, "{}", told.text);
        let told = client.call("get_run", json!({"run": told.field("run"), "wait_s": 10})).await;
        let status = told.field("status");
        assert_eq!((told.text.lines().next(), status.as_str()), (Some("echo: hello"), "completed"), "{era:?}");
    }
}

#[tokio::test]
async fn a_run_survives_the_end_of_patience() {
    let stack = Stack::start().await;
    let (reply, gate) = paced("r-1", "s-1");
    stack.os().pin("POST", RUNS, reply);
    let client = McpClient::modern(&stack, &Who::alice());
    let ask =
        client.calling("run_agent", run_assistant(&[("wait_s", json!(0))]), None).header("x-request-id", "patient");
    gate.open_once();
    let told = Told::of(&client.open(ask).await.last().await);
    assert_eq!(told.field("status"), "running", "{}", told.text);
    gate.open();
    let line = stack.access_line("patient").await;
    assert_eq!((&line["code"], &line["operation"]), (&json!("ok"), &json!("create_agent_run")));
    let seen = stack.os().requests_to(RUNS);
    assert!(seen[0].answered && !seen[0].aborted, "the run was read to its end: {seen:?}");
}

#[tokio::test]
async fn a_modern_client_that_leaves_cancels_the_run() {
    let stack = Stack::start().await;
    let (reply, gate) = paced("r-1", "s-1");
    stack.os().pin("POST", RUNS, reply);
    let client = McpClient::modern(&stack, &Who::alice());
    let mut messages = started(&client, &gate, &[]).await;
    messages.next().await.unwrap();
    drop(messages);
    stack.os().wait_for_abort(RUNS).await;
}

#[tokio::test]
async fn clients_that_accept_anything_are_served() {
    let stack = Stack::start().await;
    let client = McpClient::modern(&stack, &Who::alice());
    let token = Who::alice().token();
    for (accept, status) in [(None, 200), (Some("*/*"), 200), (Some("text/html"), 406)] {
        let ask = Ask::post("/mcp").bearer(&token).body("application/json", initialize().to_string());
        let ask = accept.map_or(ask.clone(), |accept| ask.header("accept", accept));
        assert_eq!(stack.send(ask).await.status, status, "{accept:?}");
    }
    assert!(!client.call("whoami", json!({})).await.is_error);
}

#[tokio::test]
async fn a_body_over_four_mebibytes_is_refused() {
    let stack = Stack::start().await;
    let client = McpClient::modern(&stack, &Who::alice());
    let large =
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"x": "y".repeat(4 * 1024 * 1024)}});
    assert_eq!(stack.send(client.post(&large)).await.status, 413);
    assert!(!client.call("whoami", json!({})).await.is_error, "and the gateway goes on");
}

#[tokio::test]
async fn foreign_hosts_and_origins_are_refused() {
    let stack = Stack::start().await;
    let client = McpClient::modern(&stack, &Who::alice());
    for (name, value, status) in [
        ("origin", "http://127.0.0.1:6274", 200),
        ("origin", "https://evil.example", 403),
        ("origin", "null", 403),
        ("host", "localhost:1", 200),
        ("host", "evil.example", 403),
    ] {
        let got = stack.send(client.post(&initialize()).header(name, value)).await;
        assert_eq!(got.status, status, "{name}: {value}: {}", got.text());
    }
}

#[tokio::test]
async fn what_is_no_message_gets_a_json_rpc_error() {
    let stack = Stack::start().await;
    let client = McpClient::modern(&stack, &Who::alice());
    for (body, code) in [("{", -32700), ("[]", -32600)] {
        let got = stack.send(client.bare("POST").body("application/json", body)).await;
        assert_eq!((got.status, &error_of(&got)["code"]), (400, &json!(code)), "{body}");
    }
}

#[tokio::test]
async fn requests_are_counted_by_method_and_version() {
    let stack = Stack::start().await;
    let count = async |labels: &[&str]| stack.metric_sum("tollbridge_mcp_requests_total", labels).await;
    for era in Era::ALL {
        let client = McpClient::of(&stack, era, &Who::alice()).await;
        client.tools().await;
        client.call("whoami", json!({})).await;
        client.ask("made/up", json!({})).await;
    }
    for version in [MODERN, LEGACY] {
        let version = format!("version=\"{version}\"");
        for method in ["tools/list", "tools/call", "other"] {
            let method = format!("method=\"{method}\"");
            assert!((count(&[&version, &method]).await - 1.0).abs() < f64::EPSILON, "{version} {method}");
        }
    }
    assert!((count(&["method=\"initialize\""]).await - 1.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_stranger_is_asked_for_a_credential() {
    let stack = Stack::start().await;
    for (id, ask) in [("none", Ask::post("/mcp")), ("bad", Ask::post("/mcp").bearer("nonsense"))] {
        let ask = ask.header("x-request-id", id).body("application/json", initialize().to_string());
        let got = stack.send(ask).await;
        assert_eq!((got.status, got.code().as_str()), (401, "unauthenticated"), "{id}");
        assert_eq!(got.header("www-authenticate"), Some("Bearer"), "{id}");
        let line = stack.access_line(id).await;
        assert_eq!((&line["door"], &line["code"]), (&json!("mcp"), &json!("unauthenticated")));
    }
}

#[tokio::test]
async fn the_carrier_is_no_exchange_of_its_own() {
    let stack = Stack::start().await;
    let client = McpClient::modern(&stack, &Who::alice());
    let ask = client.calling("whoami", json!({}), None).header("x-request-id", "silent");
    client.open(ask).await.last().await;
    let ask = client.calling("search_knowledge", json!({"query": "x"}), None).header("x-request-id", "loud");
    client.open(ask).await.last().await;
    let lines = stack.access_lines("loud", 1).await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!((&lines[0]["operation"], &lines[0]["door"]), (&json!("search_knowledge"), &json!("mcp")));
    let log = std::fs::read_to_string(stack.folder().join("access.jsonl")).unwrap();
    assert!(!log.contains("silent"), "a call that asks nothing is no exchange: {log}");
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody() {
    let stack = Stack::start().await;
    let (reply, gate) = paced("r-1", "s-1");
    stack.os().pin("POST", RUNS, reply);
    let client = McpClient::legacy(&stack, &Who::alice()).await;
    let unread = started(&client, &gate, &[]).await;
    let other = within("another call of the session", client.call("whoami", json!({})));
    assert!(!tokio::time::timeout(Duration::from_secs(10), other).await.unwrap().is_error);
    gate.open();
    assert!(!Told::of(&unread.last().await).is_error);
}
