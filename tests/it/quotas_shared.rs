//! Proves quotas end to end: gateways over one Redis, a file across restarts, what answers say, what operators steer.

use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fake::{Event, Gate, Reply};
use crate::mcp_client::{Era, McpClient};
use crate::redis_server::RedisServer;
use crate::stack::{Ask, Flow, Settings, Stack, Who, send_to};

pub(crate) fn plan(keys: &[(&str, &str)]) -> Settings {
    keys.iter().fold(Settings::new(), |settings, (key, value)| settings.set("[plans.open]", key, value))
}

/// The same settings over a Redis, whose URL stands in a file.
fn over(server: &RedisServer, folder: &TempDir, settings: Settings) -> Settings {
    let url = folder.path().join("redis.url");
    std::fs::write(&url, server.url().expose()).unwrap();
    settings.set("[quota]", "store", "\"redis\"").set("[store]", "redis", &format!("{{ file = {url:?} }}"))
}

pub(crate) fn run() -> Ask {
    Ask::run("assistant").field("message", "hi").by(&Who::alice())
}

pub(crate) async fn quota(stack: &Stack, tenant: &str) -> Value {
    serde_json::from_str(&stack.admin(&format!("/quota/{tenant}")).await).unwrap()
}

pub(crate) fn used(quota: &Value, name: &str) -> u64 {
    let limits = quota["limits"].as_array().unwrap();
    limits.iter().find(|limit| limit["name"] == name).unwrap()["used"].as_u64().unwrap()
}

/// Waits until a tenant has used this much of a limit, by what one gateway says.
async fn wait_until_used(stack: &Stack, name: &str, amount: u64) {
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        let shown = quota(stack, "acme").await;
        if used(&shown, name) == amount {
            return;
        }
        assert!(Instant::now() < patience, "waited for {name} = {amount}: {shown}");
    }
}

#[tokio::test]
async fn three_gateways_over_one_redis_hold_one_tenant_to_its_limit() {
    let (server, folder) = (RedisServer::start(), TempDir::new().unwrap());
    const BURST: u64 = 600;
    const INSTANCES: u64 = 3;
    let settings = plan(&[("requests", &format!("{{ per_day = {BURST} }}")), ("concurrent_runs", "4")]);
    let mut stacks = Vec::new();
    for _ in 0..3 {
        stacks.push(Stack::with(over(&server, &folder, settings.clone())).await);
    }
    // The bound is stated for instances that know of each other.
    for stack in &stacks {
        let patience = Instant::now() + Duration::from_secs(60);
        while quota(stack, "acme").await["instances"] != 3 {
            assert!(Instant::now() < patience, "{}", quota(stack, "acme").await);
        }
    }
    let who = Who::alice();
    let (began, mut admitted) = (Instant::now(), 0);
    for _wave in 0..6 {
        let asks = (0..150).map(|n| stacks[n % 3].send(Ask::get("/sessions").by(&who)));
        admitted += join_all(asks).await.iter().filter(|got| got.status == 200).count() as u64;
    }
    // docs/quotas.md: at most burst + rate * window + instances * batch; as many may be missing meanwhile.
    let batch = (BURST / (20 * INSTANCES)).max(1);
    let came_back = BURST * (began.elapsed().as_secs() + 1) / 86_400;
    let bounds = BURST - INSTANCES * batch..=BURST + came_back + INSTANCES * batch;
    assert!(bounds.contains(&admitted), "{admitted}, promised {bounds:?}");
    let refused = stacks[1].send(Ask::get("/sessions").by(&who)).await;
    assert_eq!((refused.status, refused.code()), (429, "rate_limited".to_owned()));
    assert_eq!(stacks[2].send(Ask::get("/sessions").by(&Who::alice().of("globex"))).await.status, 200);

    // Runs are exact. `globex` still has requests.
    let events = ["RunStarted", "RunCompleted"].map(|name| Event::new(name, json!({"run_id": "r", "session_id": "s"})));
    let mut open = Vec::new();
    for n in 0..6 {
        let (reply, gate) = Reply::paced_sse(&events);
        stacks[n % 3].os().script(reply);
        gate.open_once();
        let ask = Ask::run("assistant").field("message", "hi").by(&Who::alice().of("globex"));
        let mut flow = stacks[n % 3].open(ask).await;
        if flow.status() == 200 {
            flow.until("RunStarted").await;
            open.push((flow, gate));
        } else {
            assert_eq!((flow.status(), open.len()), (429, 4));
        }
    }
    assert_eq!(open.len(), 4);
}

#[tokio::test]
async fn killing_redis_and_bringing_it_back_loses_no_recorded_usage() {
    let (mut server, folder) = (RedisServer::start(), TempDir::new().unwrap());
    let settings = over(&server, &folder, plan(&[("tokens", "{ per_month = 1_000_000 }")]));
    let (first, second) = (Stack::with(settings.clone()).await, Stack::with(settings).await);
    // Five tokens each.
    for stack in [&first, &second, &first] {
        assert_eq!(stack.send(run()).await.status, 200);
    }
    wait_until_used(&second, "tokens_per_month", 15).await;

    server.kill();
    first.wait_for_metric("tollbridge_store_up", &["store=\"redis\""], 0.0).await;
    assert_eq!(first.send(run()).await.status, 200, "the share of what is left is granted");
    server.revive();
    for stack in [&first, &second] {
        stack.wait_for_metric("tollbridge_store_up", &[], 1.0).await;
    }
    wait_until_used(&second, "tokens_per_month", 20).await;
    wait_until_used(&first, "tokens_per_month", 20).await;
    for stack in [&first, &second] {
        // Each writes what it counted; the sum is read by either.
        stack.admin("/usage").await;
    }
    let usage: Value = serde_json::from_str(&second.admin("/usage?tenant=acme").await).unwrap();
    let lines = usage["usage"].as_array().unwrap();
    let sum = |name: &str| lines.iter().map(|line| line[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("runs"), sum("input_tokens") + sum("output_tokens")), (4, 20), "{usage}");
}

#[tokio::test]
async fn a_closed_plan_grants_nothing_while_redis_is_lost() {
    let (mut server, folder) = (RedisServer::start(), TempDir::new().unwrap());
    let settings = plan(&[("requests", "{ per_day = 60 }"), ("on_store_lost", "\"closed\"")]);
    let stack = Stack::with(over(&server, &folder, settings)).await;
    assert_eq!(stack.send(Ask::get("/agents").by(&Who::alice())).await.status, 200);
    server.kill();
    stack.wait_for_metric("tollbridge_store_up", &[], 0.0).await;
    let got = stack.send(Ask::get("/agents").by(&Who::alice())).await;
    assert_eq!((got.status, got.code()), (503, "overloaded".to_owned()));
    assert_eq!(got.json()["detail"], "the limits of your tenant cannot be checked now");
    assert!(got.header("retry-after").is_some());
}

#[tokio::test]
async fn a_file_remembers_usage_and_buckets_across_a_restart() {
    let folder = TempDir::new().unwrap();
    let file = format!("{:?}", folder.path().join("store.redb"));
    let settings = plan(&[("requests", "{ per_day = 4 }"), ("tokens", "{ per_day = 1_000 }")])
        .set("[quota]", "store", "\"file\"")
        .set("[store]", "file", &file);
    let stack = Stack::with(settings.clone()).await;
    assert_eq!(stack.send(run()).await.status, 200);
    assert_eq!(stack.send(run()).await.status, 200);
    wait_until_used(&stack, "tokens_per_day", 10).await;
    assert_eq!(stack.running.drain().await, 0);

    let stack = Stack::with(settings).await;
    assert_eq!(used(&quota(&stack, "acme").await, "tokens_per_day"), 10);
    assert!(stack.admin("/usage?format=csv").await.contains("\"acme\",\"main/agents/assistant\""));
    let mut admitted = 0;
    for _ in 0..6 {
        admitted += u32::from(stack.send(Ask::get("/agents").by(&Who::alice())).await.status == 200);
    }
    assert!((1..=2).contains(&admitted), "four in all: {admitted}");
}

#[tokio::test]
async fn older_clients_are_told_in_their_headers_where_that_is_configured() {
    let settings = plan(&[("requests", "{ per_hour = 60, burst = 2 }")]);
    let stack = Stack::with(settings.clone().set("[quota]", "headers", "\"standard_and_x\"")).await;
    let agents = || Ask::get("/agents").by(&Who::alice());
    for (status, remaining) in [(200, "1"), (200, "0"), (429, "0")] {
        let got = stack.send(agents()).await;
        assert_eq!((got.status, got.header("x-ratelimit-remaining")), (status, Some(remaining)));
        assert_eq!(got.header("x-ratelimit-limit"), Some("60"));
        let reset: u64 = got.header("x-ratelimit-reset").unwrap().parse().unwrap();
        assert!((1..=120).contains(&reset), "{got:?}");
        assert!(got.header("ratelimit").unwrap().contains(&format!("r={remaining}")), "{got:?}");
    }
    let limit = stack.send(agents()).await.json()["limit"].clone();
    let expected = json!({"name": "requests", "limit": 60, "remaining": 0, "used": 2, "window_s": 3_600});
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&limit[name], value, "{limit}");
    }
    let plain = Stack::with(settings).await;
    assert_eq!(plain.send(agents()).await.header("x-ratelimit-limit"), None);
}

#[tokio::test]
async fn a_model_reads_its_limits_in_words() {
    let settings = plan(&[("concurrent_runs", "0"), ("tokens", "{ per_day = 500 }")]);
    let stack = Stack::with(settings).await;
    let client = McpClient::of(&stack, Era::ALL[0], &Who::alice()).await;
    let me = client.call("whoami", json!({})).await;
    let told = me.text;
    assert!(told.contains(r#""name":"tokens_per_day""#) && told.contains(r#""remaining":500"#), "{told}");
    let arguments = json!({"agent": "assistant", "kind": "agent", "message": "hello"});
    let refused = client.call("run_agent", arguments).await;
    assert!(refused.is_error);
    let told = refused.text;
    assert!(told.contains("Limit `concurrent runs`: 0 at once, 0 used. Retry after 1 s"), "{told}");
}

#[tokio::test]
async fn one_tool_of_a_tenant_may_have_a_limit_of_its_own() {
    let settings = plan(&[("tools", "{ list_sessions = { requests = { per_day = 1 } } }")]);
    let stack = Stack::with(settings).await;
    let client = McpClient::of(&stack, Era::ALL[0], &Who::alice()).await;
    client.call("list_sessions", json!({"kind": "agent"})).await;
    let told = client.call("list_sessions", json!({"kind": "agent"})).await.text;
    assert!(told.contains("Limit `tool requests`: 1 per 86400 s, 1 used"), "{told}");
    assert!(!client.call("list_agents", json!({})).await.is_error);
}

/// A run that uses 700 tokens before its end.
fn of_700_tokens() -> [Event; 5] {
    let of = |name: &str, mut data: Value| {
        data["run_id"] = json!("r-1");
        data["session_id"] = json!("s-1");
        Event::new(name, data)
    };
    let call = json!({"model": "m", "input_tokens": 400, "output_tokens": 300, "total_tokens": 700});
    [
        of("RunStarted", json!({"model": "m"})),
        of("ModelRequestStarted", json!({"model": "m"})),
        of("ModelRequestCompleted", call),
        of("RunContent", json!({"content": "more"})),
        of("RunCompleted", json!({"content": "more"})),
    ]
}

#[tokio::test]
async fn a_run_whose_budget_runs_out_is_cut_where_the_plan_says_so() {
    for (on_exhausted, ends) in [("\"finish\"", "RunCompleted"), ("\"cut\"", "budget_exhausted")] {
        let settings = plan(&[("tokens", "{ per_day = 600 }"), ("on_exhausted", on_exhausted)]);
        let stack = Stack::with(settings).await;
        let (reply, gate) = Reply::paced_sse(&of_700_tokens());
        stack.os().pin("POST", "/agents/assistant/runs", reply);
        gate.open();
        let (text, clean) = stack.open(run()).await.rest().await;
        assert!(clean && text.contains(ends), "{on_exhausted}: {text}");
        assert_eq!(text.contains("RunCompleted"), ends == "RunCompleted", "{text}");
        wait_until_used(&stack, "tokens_per_day", 700).await;
        assert!(
            stack.os().requests_to("/agents/assistant/runs/r-1/cancel").is_empty(),
            "the closed connection ends it"
        );
    }
}

#[tokio::test]
async fn a_run_in_the_background_is_stopped_when_its_budget_runs_out() {
    let stack = Stack::with(plan(&[("tokens", "{ per_day = 600 }"), ("on_exhausted", "\"cut\"")])).await;
    let (reply, gate) = Reply::paced_sse(&of_700_tokens());
    stack.os().pin("POST", "/agents/assistant/runs", reply);
    gate.open();
    let ask = run().field("background", "true").field("stream", "true");
    let (text, clean) = stack.open(ask).await.rest().await;
    assert!(clean && text.contains("budget_exhausted"), "{text}");
    stack.os().wait_for_request("/agents/assistant/runs/r-1/cancel", 1).await;
}

/// A run that has begun, and what lets it end.
async fn begun(stack: &Stack) -> (Flow, Gate) {
    let events = ["RunStarted", "RunCompleted"].map(|name| Event::new(name, json!({"run_id": "r", "session_id": "s"})));
    let (reply, gate) = Reply::paced_sse(&events);
    stack.os().script(reply);
    gate.open_once();
    let mut first = stack.open(run()).await;
    first.until("RunStarted").await;
    (first, gate)
}

#[tokio::test]
async fn a_run_waits_for_a_slot_where_the_plan_says_so() {
    let stack = Stack::with(plan(&[("concurrent_runs", "1"), ("queue", "\"20s\"")])).await;
    let (mut first, gate) = begun(&stack).await;
    let (second, ()) = tokio::join!(stack.send(run()), async {
        // The second has arrived when it counts as in flight.
        stack.wait_for_metric("tollbridge_in_flight", &["door=\"http\""], 2.0).await;
        gate.open();
        first.rest().await;
    });
    assert_eq!(second.status, 200, "{second:?}");
}

#[tokio::test]
async fn a_busy_endpoint_refuses_in_time_and_charges_nothing() {
    let settings = plan(&[("tokens", "{ per_day = 10_000 }")]).set("[clusters.load]", "runs_per_endpoint", "1").set(
        "[clusters.load]",
        "queue_timeout",
        "\"50ms\"",
    );
    let stack = Stack::with(settings).await;
    let (mut first, gate) = begun(&stack).await;
    let got = stack.send(run()).await;
    assert_eq!((got.status, got.code(), got.header("retry-after")), (503, "overloaded".to_owned(), Some("1")));
    assert_eq!(used(&quota(&stack, "acme").await, "tokens_per_day"), 500, "only the first is reserved");
    // Reads need no place.
    assert_eq!(stack.send(Ask::get("/agents").by(&Who::alice())).await.status, 200);
    gate.open();
    first.rest().await;
    assert_eq!(stack.send(run()).await.status, 200);
}

#[tokio::test]
async fn a_quiet_tenant_runs_next_however_many_a_noisy_one_has_waiting() {
    let stack = Stack::with(Settings::new().set("[clusters.load]", "runs_per_endpoint", "1")).await;
    let (mut first, gate) = begun(&stack).await;
    let noisy = join_all((0..8).map(|_| stack.send(run())));
    let quiet = async {
        stack.wait_for_metric("tollbridge_in_flight", &["door=\"http\""], 9.0).await;
        stack.send(Ask::run("assistant").field("message", "hi").by(&Who::alice().of("globex"))).await
    };
    let open = async {
        stack.wait_for_metric("tollbridge_in_flight", &["door=\"http\""], 10.0).await;
        gate.open();
        first.rest().await;
    };
    let (noisy, quiet, ()) = tokio::join!(noisy, quiet, open);
    assert!(noisy.iter().chain([&quiet]).all(|got| got.status == 200));
    let users = stack.os().requests_to("/agents/assistant/runs");
    let users: Vec<String> = users.iter().map(|run| run.form().get("user_id").unwrap().to_owned()).collect();
    assert!(users[1..3].contains(&"globex~alice".to_owned()), "{users:?}");
}

#[tokio::test]
async fn a_run_that_no_endpoint_could_take_is_charged_nothing() {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let stack = Stack::over(&[endpoint], plan(&[("tokens", "{ per_day = 10_000 }")])).await;
    for _ in 0..3 {
        let got = stack.send(run().field("stream", "false")).await;
        assert!(matches!(got.status, 502 | 503), "{got:?}");
    }
    assert_eq!(used(&quota(&stack, "acme").await, "tokens_per_day"), 0);
}

#[tokio::test]
async fn operators_show_grant_reset_and_export_from_the_command_line() {
    let stack = Stack::with(plan(&[("tokens", "{ per_day = 8 }")])).await;
    for status in [200, 200, 429] {
        assert_eq!(stack.send(run()).await.status, status);
    }
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("config.toml");
    let text = format!(
        "[server]\nsecret = {{ env = \"SECRET\" }}\n[admin]\nlisten = \"{}\"\n[[clusters]]\nname = \"main\"\n\
         endpoints = [\"http://127.0.0.1:1\"]\ncredential = \"none\"\n[[identity.issuers]]\nissuer = \"i\"\n\
         tenant = \"acme\"\naudiences = [\"a\"]\nalgorithms = [\"RS256\"]\njwks_url = \"https://id.test/keys\"\n\
         [plans.open]\ntokens = \"unlimited\"\n[tenants.acme]\nplan = \"open\"\n",
        stack.running.admin_address
    );
    std::fs::write(&config, text).unwrap();
    let tollbridge = async |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollbridge"));
        command.arg("--config").arg(&config).env("SECRET", "s".repeat(32)).args(arguments);
        // The gateway answers on this thread's runtime.
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), said, String::from_utf8(output.stderr).unwrap())
    };
    let (code, said, talk) = tollbridge(&["quota", "show", "acme"]).await;
    assert_eq!(code, 0, "{talk}");
    assert!(said.starts_with("tenant acme, plan open, counted by this instance, 0 runs in flight here\n"), "{said}");
    assert!(said.contains("tokens_per_day") && said.contains("used             10"), "{said}");
    let (_, said, _) = tollbridge(&["quota", "grant", "acme", "--tokens", "100", "--format", "json"]).await;
    let shown: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(shown["limits"][0]["remaining"], 98, "{shown}");
    assert_eq!(stack.send(run()).await.status, 200);
    let (_, said, _) = tollbridge(&["quota", "reset", "acme"]).await;
    assert!(said.contains("left              8"), "{said}");
    let (_, said, _) = tollbridge(&["quota", "export"]).await;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[1].contains("\"acme\",\"main/agents/assistant\"") && lines[1].contains(",3,"), "{said}");
    let (code, _, talk) = tollbridge(&["quota", "show", "no~body"]).await;
    assert_eq!((code, talk.contains("must be 1 to 64 characters")), (1, true), "{talk}");
    assert_eq!(send_to(stack.running.admin_address, Ask::post("/usage")).await.status, 405);
}
