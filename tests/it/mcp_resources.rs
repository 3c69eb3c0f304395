//! Proves resources, prompts, discovery and notices end to end: both eras over HTTP, the real gateway and its policies, a
//! scripted AgentOS behind it.
//! Does not repeat what the endpoint's own tests show without a gateway.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fake::{FakeAgentOs, Reply};
use crate::mcp_client::{Era, LEGACY, McpClient, Messages};
use crate::stack::{Settings, Stack, Who, within};

const ALL: [&str; 4] =
    ["agno://agents/assistant", "agno://agents/records", "agno://agents/newsroom", "agno://agents/daily-report"];

/// A gateway that looks at the components every second.
fn quick() -> Settings {
    Settings::new().set("[mcp]", "discovery_interval", "\"1s\"")
}

async fn uris(client: &McpClient<'_>) -> Vec<String> {
    let answer = client.ask("resources/list", json!({})).await;
    let listed = answer["result"]["resources"].as_array().unwrap_or_else(|| panic!("{answer}"));
    listed.iter().map(|resource| resource["uri"].as_str().unwrap().to_owned()).collect()
}

async fn read(client: &McpClient<'_>, uri: &str) -> Value {
    client.ask("resources/read", json!({"uri": uri})).await
}

/// The first content of a resource, as JSON.
fn document(answer: &Value) -> Value {
    let text = answer["result"]["contents"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
    serde_json::from_str(text).unwrap()
}

async fn run(client: &McpClient<'_>) -> String {
    let arguments = json!({"agent": "assistant", "kind": "agent", "message": "hello", "session_id": "mine"});
    format!("agno://runs/{}", client.call("run_agent", arguments).await.field("run"))
}

#[tokio::test]
async fn lists_come_from_discovery_and_ask_nobody() {
    let stack = Stack::start().await;
    for era in Era::ALL {
        let alice = McpClient::of(&stack, era, &Who::alice()).await;
        assert_eq!(uris(&alice).await, ALL, "{era:?}");
        let prompts = alice.ask("prompts/list", json!({})).await["result"]["prompts"].as_array().unwrap().len();
        assert_eq!(prompts, 4, "{era:?}");
        let told = alice.call("list_agents", json!({})).await;
        assert_eq!(told.whole["structuredContent"]["agents"].as_array().unwrap().len(), 4, "{}", told.text);
    }
    assert!(stack.os().requests().is_empty(), "{:?}", stack.os().requests());
    let looks = stack.os().requests_and_probes();
    let looks: Vec<&str> = looks.iter().map(|request| request.path()).filter(|path| *path == "/agents").collect();
    assert_eq!(looks.len(), 1, "one look serves everybody");
}

#[tokio::test]
async fn nobody_is_asked_while_nobody_uses_the_endpoint() {
    let stack = Stack::with(quick()).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let asked = stack.os().requests_and_probes();
    assert!(!asked.iter().any(|request| request.path() == "/agents"), "{asked:?}");
}

#[tokio::test]
async fn the_list_of_agents_is_admitted_like_any_call() {
    let small = [("requests", "{ per_hour = 6, burst = 6 }"), ("concurrent_runs", "1"), ("tokens", "\"unlimited\"")];
    let settings = Settings::new().add("[plans.small]", &small).add("[tenants.initech]", &[("plan", "\"small\"")]);
    let stack = Stack::with(settings).await;
    let ian = McpClient::modern(&stack, &Who::new("ian").of("initech").role("operator"));
    let ask = ian.calling("list_agents", json!({}), None).header("x-request-id", "listed");
    ian.open(ask).await.last().await;
    let lines = stack.access_lines("listed", 3).await;
    assert!(
        lines.iter().all(|line| line["code"] == "ok" && line["door"] == "mcp" && line["tenant"] == "initech"),
        "{lines:?}"
    );
    for _ in 0..3 {
        ian.call("list_agents", json!({"kind": "agent"})).await;
    }
    let told = ian.call("list_agents", json!({"kind": "agent"})).await;
    assert!(told.is_error && told.text.starts_with("rate_limited: "), "{}", told.text);
}

#[tokio::test]
async fn a_read_is_one_admitted_call_and_policy_decides() {
    let stack = Stack::start().await;
    let alice = McpClient::modern(&stack, &Who::alice());
    let ask = alice.request("resources/read", json!({"uri": "agno://agents/assistant"}), None);
    let answer = alice.open(ask.header("x-request-id", "read")).await.last().await;
    assert_eq!(document(&answer)["description"], "The fake assistant.");
    let line = stack.access_line("read").await;
    assert_eq!((&line["operation"], &line["door"], &line["code"]), (&json!("get_agent"), &json!("mcp"), &json!("ok")));

    let one = McpClient::modern(&stack, &Who::new("sam").scope("agents:records:read"));
    assert_eq!(uris(&one).await, ["agno://agents/records"], "a scope shows one agent");
    assert_eq!(document(&read(&one, "agno://agents/records").await)["agent"], "records");
    let error = read(&one, "agno://agents/assistant").await["error"].clone();
    assert_eq!(error["data"]["code"], "forbidden", "{error}");
    let nora = McpClient::modern(&stack, &Who::new("nora"));
    assert_eq!(uris(&nora).await, Vec::<String>::new());
    assert_eq!(nora.ask("resources/templates/list", json!({})).await["result"]["resourceTemplates"], json!([]));
}

#[tokio::test]
async fn what_belongs_to_another_principal_looks_absent() {
    let stack = Stack::start().await;
    let alice = McpClient::modern(&stack, &Who::alice());
    let run = run(&alice).await;
    let row =
        json!({"session_id": "mine", "user_id": "acme~alice", "chat_history": [{"role": "user", "content": "hello"}]});
    stack.os().pin("GET", "/sessions/mine", Reply::json(200, &row));
    let content = json!({"id": "c1", "name": "faq.md", "metadata": {"tenant": "acme"}});
    stack.os().pin("GET", "/knowledge/content/c1", Reply::json(200, &content));
    let mine =
        [run.clone(), format!("{run}/output"), "agno://sessions/mine".into(), "agno://knowledge/kb/content/c1".into()];
    for era in Era::ALL {
        let client = McpClient::of(&stack, era, &Who::alice()).await;
        for uri in &mine {
            let answer = read(&client, uri).await;
            assert!(answer["result"]["contents"][0]["text"].is_string(), "{era:?} {uri}: {answer}");
        }
        let not_found = if era == Era::Modern { -32602 } else { -32002 };
        let (mallory, next_door) = (Who::new("mallory").role("operator"), Who::new("alice").of("globex").role("admin"));
        for (thief, same_tenant) in [(mallory, true), (next_door, false)] {
            let client = McpClient::of(&stack, era, &thief).await;
            for uri in &mine {
                // Knowledge is its tenant's, not its reader's.
                if same_tenant && uri.contains("knowledge") {
                    continue;
                }
                let error = read(&client, uri).await["error"].clone();
                let told = (&error["code"], &error["message"]);
                assert_eq!(told, (&json!(not_found), &json!("Resource not found")), "{era:?} {thief:?} {uri}");
            }
        }
    }
}

#[tokio::test]
async fn a_prompt_is_admitted_and_spends_the_rate() {
    let stack = Stack::start().await;
    let alice = McpClient::modern(&stack, &Who::alice());
    let prompt = json!({"name": "newsroom", "arguments": {"message": "write"}});
    let ask = alice.request("prompts/get", prompt.clone(), None).header("x-request-id", "prompt");
    let answer = alice.open(ask).await.last().await;
    let text = answer["result"]["messages"][0]["content"]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
    assert!(text.contains("agent `newsroom` and kind `team`") && text.ends_with("write"), "{text}");
    let line = stack.access_line("prompt").await;
    assert_eq!((&line["operation"], &line["code"]), (&json!("get_team"), &json!("ok")));
    assert!(stack.os().requests().is_empty(), "AgentOS is not asked for what is known");
    // Whoever may not run an agent gets no prompt for it.
    let vera = McpClient::modern(&stack, &Who::new("vera").role("viewer"));
    assert_eq!(vera.ask("prompts/list", json!({})).await["result"]["prompts"], json!([]));
    assert_eq!(vera.ask("prompts/get", prompt).await["error"]["code"], -32602);
}

#[tokio::test]
async fn completion_is_filtered_by_policy() {
    let stack = Stack::start().await;
    let complete = async |who: Who, value: &str| {
        let params = json!({"ref": {"type": "ref/resource", "uri": "agno://agents/{id}{?kind}"},
            "argument": {"name": "id", "value": value}});
        McpClient::modern(&stack, &who).ask("completion/complete", params).await["result"]["completion"].clone()
    };
    assert_eq!(
        complete(Who::alice(), "re").await,
        json!({"values": ["records", "daily-report"], "total": 2, "hasMore": false})
    );
    assert_eq!(complete(Who::new("sam").scope("agents:records:read"), "").await["values"], json!(["records"]));
    assert_eq!(complete(Who::new("nora"), "").await["values"], json!([]));
}

/// Opens a listening stream and takes its acknowledgement off.
async fn listen(client: &McpClient<'_>, notifications: Value) -> Messages {
    let ask = client.request("subscriptions/listen", json!({ "notifications": notifications }), None);
    let mut messages = client.open(ask).await;
    let first = messages.next().await.unwrap();
    assert_eq!(first["method"], "notifications/subscriptions/acknowledged", "{first}");
    messages
}

#[tokio::test]
async fn only_callers_whose_list_changed_are_told() {
    let stack = Stack::with(quick()).await;
    let alice = McpClient::modern(&stack, &Who::alice());
    let old = McpClient::legacy(&stack, &Who::alice()).await;
    let sam = McpClient::modern(&stack, &Who::new("sam").scope("agents:records:read"));
    assert_eq!((uris(&alice).await.len(), uris(&sam).await.len()), (4, 1));
    let wanted = json!({"resourcesListChanged": true});
    let (mut for_alice, mut for_sam) = (listen(&alice, wanted.clone()).await, listen(&sam, wanted).await);
    let stream = old.bare("GET").header("mcp-protocol-version", LEGACY);
    let mut for_old = old.open(stream).await;
    let records = json!({"id": "records", "name": "records", "description": "The fake records."});
    let changed = json!([{"id": "assistant"}, records, {"id": "new"}]);
    stack.os().pin("GET", "/agents", Reply::json(200, &changed));
    for messages in [&mut for_alice, &mut for_old] {
        let message = within("a change of the list", async {
            loop {
                let message = messages.next().await.unwrap();
                if message["method"] == "notifications/resources/list_changed" {
                    return message;
                }
            }
        });
        message.await;
    }
    assert!(uris(&alice).await.contains(&"agno://agents/new".to_owned()));
    let told = tokio::time::timeout(Duration::from_secs(2), for_sam.next()).await;
    assert!(told.is_err(), "sam's list is the same: {told:?}");
}

#[tokio::test]
async fn a_reload_of_policies_tells_whom_it_concerns() {
    let stack = Stack::with(quick().policy("90-later.cedar", "")).await;
    let alice = McpClient::modern(&stack, &Who::alice());
    uris(&alice).await;
    let wanted = json!({"toolsListChanged": true, "resourcesListChanged": true});
    let mut messages = listen(&alice, wanted).await;
    let no_runs = r#"@id("no-runs") forbid (principal, action in Tollbridge::Action::"run", resource);"#;
    std::fs::write(stack.folder().join("policies/90-later.cedar"), no_runs).unwrap();
    stack.running.reload().await.unwrap();
    let message = within("the news of fewer tools", messages.next()).await.unwrap();
    assert_eq!(message["method"], "notifications/tools/list_changed");
    assert!(!alice.tools().await.contains(&"run_agent".to_owned()));
}

#[tokio::test]
async fn a_token_that_ends_ends_its_streams() {
    let stack = Stack::start().await;
    let brief = Who::alice().ttl(Duration::from_secs(8));
    let client = McpClient::modern(&stack, &brief);
    let old = McpClient::legacy(&stack, &brief).await;
    let mut session = old.open(old.bare("GET").header("mcp-protocol-version", LEGACY)).await;
    let mut messages = listen(&client, json!({"toolsListChanged": true})).await;
    let last = within("the end of the stream", messages.next()).await.unwrap();
    assert_eq!(last["result"]["resultType"], "complete", "{last}");
    within("the end of the session's stream", async { while session.next().await.is_some() {} }).await;
}

#[tokio::test]
async fn a_watched_run_is_told_of_when_it_ends() {
    let stack = Stack::start().await;
    let alice = McpClient::modern(&stack, &Who::alice());
    let uri = run(&alice).await;
    let mut messages = listen(&alice, json!({"resourceSubscriptions": [uri]})).await;
    let message = within("the end of the run", messages.next()).await.unwrap();
    assert_eq!(
        (&message["method"], &message["params"]["uri"]),
        (&json!("notifications/resources/updated"), &json!(uri))
    );
    let mallory = McpClient::modern(&stack, &Who::new("mallory").role("admin"));
    let ask = mallory.request("subscriptions/listen", json!({"notifications": {"resourceSubscriptions": [uri]}}), None);
    let first = mallory.open(ask).await.next().await.unwrap();
    assert_eq!(first["params"]["notifications"], json!({}), "a foreign run is not confirmed: {first}");
}

#[tokio::test]
async fn one_list_spans_the_clusters_of_the_caller() {
    let second = FakeAgentOs::start().await;
    second.pin("GET", "/agents", Reply::json(200, &json!([{"id": "assistant"}])));
    let endpoints = format!("[\"{}\"]", second.url());
    let settings = Settings::new()
        .add(
            "[[clusters]]",
            &[
                ("name", "\"other\""),
                ("endpoints", &endpoints),
                (
                    "credential",
                    "{ mint = { algorithm = \"HS256\", key = { env = \"AGENTOS_JWT_KEY\" }, audience = \"my-os\" } }",
                ),
                ("knowledge", "{ metadata = \"tenant\" }"),
            ],
        )
        .set("[tenants.globex]", "clusters", "[\"main\"]");
    let stack = Stack::with(settings).await;
    let alice = McpClient::modern(&stack, &Who::alice());
    let seen = uris(&alice).await;
    for uri in ["agno://agents/main%2Fassistant", "agno://agents/other%2Fassistant"] {
        assert!(seen.iter().any(|seen| seen == uri), "{seen:?}");
        assert_eq!(document(&read(&alice, uri).await)["kind"], "agent");
    }
    let told = alice.call("list_agents", json!({"kind": "agent"})).await;
    let names: Vec<&Value> =
        told.whole["structuredContent"]["agents"].as_array().unwrap().iter().map(|a| &a["agent"]).collect();
    assert_eq!(names, ["main/assistant", "main/records", "other/assistant"]);
    let gus = McpClient::modern(&stack, &Who::new("gus").of("globex").role("operator"));
    assert_eq!(uris(&gus).await, ALL, "a tenant of one cluster sees plain names");
    assert_eq!(read(&gus, "agno://agents/other%2Fassistant").await["error"]["message"], "Resource not found");
}

#[tokio::test]
async fn a_cluster_that_does_not_answer_is_named_and_what_was_known_stays() {
    let stack = Stack::with(quick()).await;
    let alice = McpClient::modern(&stack, &Who::alice());
    assert_eq!(uris(&alice).await.len(), 4);
    for path in ["/agents", "/teams", "/workflows"] {
        stack.os().pin("GET", path, Reply::detail(500, "boom"));
    }
    within("the news of a failed look", async {
        loop {
            let told = alice.call("list_agents", json!({})).await;
            let told = &told.whole["structuredContent"];
            if told["unavailable"][0]["code"] == "upstream_invalid" {
                assert_eq!(told["agents"].as_array().unwrap().len(), 4);
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
}
