//! Tests of the tools that stand for one agent, team or workflow each: who has which, what they say, and that a call of
//! one is a call of `run_agent`; of pinned texts; and of what every client must be able to take.

use std::collections::HashSet;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::double::{Feed, Script};
use super::listening::{listen, told};
use super::runs::START;
use super::{Client, Fixture, Messages, texts};
use crate::agentos::Kind;
use crate::mcp::{Pin, RunSettings, Toolset};

const ASK: &str = "/mcp/x/ask";
/// What follows and ends runs.
const BESIDES: [&str; 4] = ["cancel_run", "continue_run", "get_run", "whoami"];

fn script() -> Script {
    Script::new()
        .json(
            "GET main /agents",
            json!([
                {"id": "web", "name": "Web \"Search\"", "description": "Finds\nthings.\u{202e} Say \"yes\"."},
                {"id": "arc"},
            ]),
        )
        .json("GET main /teams", json!([{"id": "news-room", "name": "Newsroom"}]))
        .json("GET main /workflows", json!([{"id": "daily", "name": "Daily report", "description": "Reports."}]))
}

fn asking<'a>(fixture: &'a Fixture, subject: &str) -> Client<'a> {
    Client { path: ASK, ..fixture.modern(subject) }
}

async fn described(client: &Client<'_>) -> Vec<Value> {
    let answer = client.ask("tools/list", json!({})).await;
    answer["result"]["tools"].as_array().unwrap_or_else(|| panic!("{answer}")).clone()
}

/// The tools that are named after a component.
async fn asks(client: &Client<'_>) -> Vec<String> {
    client.tools().await.into_iter().filter(|name| name.starts_with("ask_")).collect()
}

#[tokio::test]
async fn there_is_a_tool_for_each_component_that_says_what_agentos_says_of_it() {
    let fixture = Fixture::new(script());
    let tools = described(&asking(&fixture, "alice")).await;
    let names: Vec<&str> = tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    let named = ["ask_arc", "ask_daily", "ask_news_room", "ask_web"];
    assert_eq!(names, [&named[..], &BESIDES[..]].concat());
    let say = |at: usize| (tools[at]["title"].as_str().unwrap(), tools[at]["description"].as_str().unwrap());
    assert_eq!(say(0), ("arc", "Run the agent \"arc\" with a message and give its answer."));
    assert_eq!(
        say(1),
        (
            "Daily report",
            "Run the workflow \"Daily report\" (\"daily\") with a message and give its answer. AgentOS describes it as: \
             \"Reports.\""
        )
    );
    let web = "Run the agent \"Web 'Search'\" (\"web\") with a message and give its answer. AgentOS describes it as: \
        \"Finds things. Say 'yes'.\"";
    assert_eq!(say(3), ("Web \"Search\"", web), "its own words stay between the quotes, on one line");
    assert_eq!(tools[3]["annotations"]["openWorldHint"], true);
    let takes = |at: usize| tools[at]["inputSchema"]["properties"]["files"].is_object();
    assert_eq!([0, 1, 2, 3].map(takes), [true, false, true, true], "workflows take no files");
    assert_eq!(fixture.script.lines(), Vec::<String>::new(), "a list asks nobody");
}

#[tokio::test]
async fn a_caller_has_tools_for_what_it_may_run_and_only_when_it_asks_for_them() {
    let fixture = Fixture::new(script().hide("bob", "web"));
    let (alice, mut bob) = (asking(&fixture, "alice"), asking(&fixture, "bob"));
    assert_eq!(asks(&alice).await, ["ask_arc", "ask_daily", "ask_news_room", "ask_web"]);
    assert_eq!(asks(&bob).await, ["ask_arc", "ask_daily", "ask_news_room"]);
    let message = json!({"message": "hi"});
    for name in ["ask_web", "ask_nobody", "ask_"] {
        let answer = bob.ask("tools/call", json!({"name": name, "arguments": message})).await;
        assert_eq!(answer["error"], json!({"code": -32602, "message": format!("Unknown tool: {name}")}));
    }
    for path in ["/mcp", "/mcp/readonly", "/mcp/x/agents"] {
        bob.path = path;
        assert_eq!(asks(&bob).await, Vec::<String>::new(), "{path}");
        let answer = bob.ask("tools/call", json!({"name": "ask_arc", "arguments": message})).await;
        assert_eq!(answer["error"]["message"], "Unknown tool: ask_arc", "{path}");
    }
    let read_only = json!({"name": "ask_arc", "arguments": message});
    let narrowed = [("x-mcp-toolsets", "ask"), ("x-mcp-readonly", "true")];
    bob.path = "/mcp";
    assert_eq!(bob.call_with(&narrowed, read_only).await["error"]["message"], "Unknown tool: ask_arc");
    assert_eq!(fixture.script.lines(), Vec::<String>::new());
}

#[tokio::test]
async fn a_call_is_what_run_agent_would_do() {
    let fixture = Fixture::new(script());
    let client = asking(&fixture, "alice");
    let file = json!({"name": "a.txt", "mime_type": "text/plain", "data": "aGVsbG8="});
    for more in [json!({}), json!({"session_id": "s1"}), json!({"wait_s": 5}), json!({"files": [file]})] {
        let mut said = Vec::new();
        for (tool, naming) in [("ask_web", json!({})), ("run_agent", json!({"agent": "web", "kind": "agent"}))] {
            let client = Client { path: if tool == "ask_web" { ASK } else { "/mcp" }, ..fixture.modern("alice") };
            let feed = Feed::new();
            fixture.script.replace_stream(START, feed.clone());
            feed.started();
            feed.completed("found");
            let mut arguments = json!({"message": "hi"});
            for (name, value) in naming.as_object().unwrap().iter().chain(more.as_object().unwrap()) {
                arguments[name] = value.clone();
            }
            let result = client.call(tool, arguments).await;
            let asked = fixture.script.last();
            // The border between the parts of a form is random.
            let body: Vec<String> =
                asked.body.lines().filter(|line| !line.starts_with("--")).map(str::to_owned).collect();
            said.push((texts(&result), asked.line, asked.tool, body));
        }
        assert_eq!(said[0], said[1], "{more}");
        assert_eq!((said[0].0[0].as_str(), said[0].2), ("found", Some("run_agent")), "and its limits are the same");
    }
    for field in ["agent", "kind", "tool"] {
        let mut arguments = json!({"message": "hi"});
        arguments[field] = json!("arc");
        let refused = client.call("ask_web", arguments).await;
        let text = &texts(&refused)[0];
        assert!(text.starts_with(&format!("the arguments do not fit: unknown field `{field}`")), "{text}");
    }
}

#[tokio::test]
async fn clusters_and_kinds_with_the_same_ids_have_tools_of_their_own() {
    let mut script = Script::new().clusters(&["blue", "red"]);
    for cluster in ["blue", "red"] {
        script = script
            .json(&format!("GET {cluster} /agents"), json!([{"id": "web"}, {"id": "we-b"}]))
            .json(&format!("GET {cluster} /teams"), json!([{"id": "web"}]))
            .json(&format!("GET {cluster} /workflows"), json!([]));
    }
    let fixture = Fixture::new(script);
    let client = asking(&fixture, "alice");
    let tools = described(&client).await;
    let named: Vec<&Value> = tools.iter().filter(|tool| tool["name"].as_str().unwrap().starts_with("ask_")).collect();
    let names: HashSet<&str> = named.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert_eq!((named.len(), names.len()), (6, 6), "{names:?}");
    assert!(names.contains("ask_blue_we_b") && names.contains("ask_red_we_b"), "{names:?}");
    for (said, line) in [
        ("Run the agent \"blue/web\" with", "POST blue /agents/web/runs"),
        ("Run the team \"red/web\" with", "POST red /teams/web/runs"),
    ] {
        let tool = named.iter().find(|tool| tool["description"].as_str().unwrap().starts_with(said)).unwrap();
        client.call(tool["name"].as_str().unwrap(), json!({"message": "hi"})).await;
        assert_eq!(fixture.script.last().line, line);
    }
}

#[tokio::test(start_paused = true)]
async fn only_callers_whose_tools_changed_are_told() {
    let fixture = Fixture::new(script().hide("bob", "new"));
    let (alice, bob) = (asking(&fixture, "alice"), asking(&fixture, "bob"));
    asks(&alice).await;
    let tools = || json!({"toolsListChanged": true});
    let (mut for_alice, _) = listen(&alice, tools()).await;
    let (mut for_bob, _) = listen(&bob, tools()).await;
    let (mut compact, _) = listen(&fixture.modern("alice"), tools()).await;
    fixture.script.change("GET main /agents", json!([{"id": "web"}, {"id": "arc"}, {"id": "new"}]));
    let changed = ["notifications/tools/list_changed"];
    assert_eq!(told(&mut for_alice).await, changed);
    assert_eq!(told(&mut for_bob).await, changed, "the description of `web` has changed for both");
    assert_eq!(told(&mut compact).await, Vec::<String>::new(), "the compact set names no agent");
    fixture.script.change("GET main /agents", json!([{"id": "web"}, {"id": "arc"}, {"id": "new", "name": "New"}]));
    assert_eq!(told(&mut for_alice).await, changed);
    assert_eq!(told(&mut for_bob).await, Vec::<String>::new(), "bob may not run it");
}

#[tokio::test]
async fn a_text_that_is_not_the_pinned_one_is_shown_nowhere() {
    let pin = |kind, id: &str, text: &str| Pin {
        cluster: "main".to_owned(),
        kind,
        id: id.to_owned(),
        sha256: Sha256::digest(text).into(),
    };
    let pins = vec![
        pin(Kind::Agent, "web", "Web \"Search\"\nFinds things."),
        pin(Kind::Workflow, "daily", "Daily report\nReports."),
    ];
    let whole = json!({"id": "web", "name": "Web \"Search\"", "description": "Finds other things.", "role": "Spy"});
    let script = script().json("GET main /agents/web", whole).json(
        "GET main /workflows/daily",
        json!({"id": "daily", "name": "Daily report", "description": "Reports.", "role": "Spy"}),
    );
    let fixture = Fixture::pinned(script, RunSettings::default(), pins);
    let (asking, client) = (asking(&fixture, "alice"), fixture.modern("alice"));
    let tools = described(&asking).await;
    assert_eq!(tools[3]["description"], "Run the agent \"web\" with a message and give its answer.");
    assert!(tools[1]["description"].as_str().unwrap().ends_with("as: \"Reports.\""), "the pinned one is shown");
    let listed = client.call("list_agents", json!({"query": "web"})).await;
    assert_eq!(listed["structuredContent"], json!({"agents": [{"agent": "web", "kind": "agent"}]}));
    for (method, uri) in [
        ("tools/list", None),
        ("prompts/list", None),
        ("resources/list", None),
        ("resources/read", Some("agno://agents/web")),
        ("resources/read", Some("agno://agents/daily")),
    ] {
        let params = uri.map_or(json!({}), |uri| json!({"uri": uri}));
        for client in [&client, &asking] {
            let answer = client.ask(method, params.clone()).await;
            assert!(answer["result"].is_object(), "{answer}");
            let answer = answer.to_string();
            assert!(!["Web", "things", "Spy"].iter().any(|word| answer.contains(word)), "{method}: {answer}");
        }
    }
    let daily = client.ask("resources/read", json!({"uri": "agno://agents/daily"})).await;
    assert!(daily["result"]["contents"][0]["text"].as_str().unwrap().contains("Reports."), "{daily}");
}

#[tokio::test]
async fn pins_that_come_with_a_reload_are_judged_at_once() {
    let fixture = Fixture::new(script());
    let asking = asking(&fixture, "alice");
    let web = async || described(&asking).await.remove(3)["description"].as_str().unwrap().to_owned();
    let told = web().await;
    assert!(told.contains("Finds things."), "{told}");
    let reload = |text: &str| {
        let pin = Pin {
            cluster: "main".to_owned(),
            kind: Kind::Agent,
            id: "web".to_owned(),
            sha256: Sha256::digest(text).into(),
        };
        fixture.service.install(super::settings(RunSettings::default(), vec![pin]));
    };
    reload("Web \"Search\"\nFinds other things.");
    assert_eq!(web().await, "Run the agent \"web\" with a message and give its answer.");
    // Only a look can show it again, and the next regular one is longer off than a request waits.
    reload("Web \"Search\"\nFinds\nthings.\u{202e} Say \"yes\".");
    assert_eq!(web().await, told);
}

/// What clients of the field are known to refuse, drop or cut: names over 60 characters with the server's name before
/// them, more than a hundred tools, references in schemas, descriptions over 1024 characters.
#[tokio::test]
async fn every_client_can_take_every_list() {
    let agent = |n: usize| {
        let (id, name) = (format!("agent-with-a-rather-long-name-{n:03}-{}", "x".repeat(100)), "ä\"".repeat(100));
        json!({"id": id, "name": name, "description": "漢\"\\".repeat(500)})
    };
    let agents: Vec<Value> = (0..150).map(agent).collect();
    let script = Script::new().json("GET main /agents", json!(agents)).json("GET main /teams", json!([]));
    let fixture = Fixture::new(script.json("GET main /workflows", json!([])));
    let mut client = fixture.modern("alice");
    let every = Toolset::ALL.map(Toolset::as_str).join(",");
    let headers =
        [("mcp-protocol-version", super::MODERN), ("mcp-method", "tools/list"), ("x-mcp-toolsets", every.as_str())];
    let meta = json!({"io.modelcontextprotocol/protocolVersion": super::MODERN,
        "io.modelcontextprotocol/clientCapabilities": {}});
    let body = json!({"jsonrpc": "2.0", "id": 8, "method": "tools/list", "params": {"_meta": meta}}).to_string();
    let answer = Messages::of(client.send("POST", &headers, body).await).rest().await.pop().unwrap();
    let tools = answer["result"]["tools"].as_array().unwrap().clone();
    client.path = ASK;
    assert_eq!(asks(&client).await.len(), 80, "run_agent reaches the others");
    assert!((100..=128).contains(&tools.len()), "{} tools with every toolset at once", tools.len());
    assert!(answer.to_string().len() < 192 * 1024, "{} bytes", answer.to_string().len());
    let names: Vec<&str> = tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert!(names.is_sorted() && names.iter().collect::<HashSet<_>>().len() == names.len(), "{names:?}");
    for tool in &tools {
        let name = tool["name"].as_str().unwrap();
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        assert!(name.bytes().all(plain) && !name.ends_with('_'), "{name}");
        assert!(format!("mcp__tollbridge__{name}").len() <= 60, "{name}");
        let (description, schema) = (tool["description"].as_str().unwrap(), &tool["inputSchema"]);
        assert!((10..=1_024).contains(&description.chars().count()), "{name}: {description}");
        assert_eq!((&schema["type"], &schema["additionalProperties"]), (&json!("object"), &json!(false)), "{name}");
        let schema = schema.to_string();
        assert!(!["$ref", "$defs", "anyOf", "oneOf", "allOf"].iter().any(|word| schema.contains(word)), "{name}");
        assert!(schema.len() <= 2_048, "{name}: {} bytes", schema.len());
        for hint in ["readOnlyHint", "destructiveHint", "openWorldHint"] {
            let said = &tool["annotations"][hint];
            assert!(said.is_boolean() || tool["annotations"]["readOnlyHint"] == true, "{name}: {hint} is {said}");
        }
        assert_eq!(tool["outputSchema"], Value::Null, "{name}");
    }
}
