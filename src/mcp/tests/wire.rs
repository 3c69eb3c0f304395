//! Tests of the wire: both eras, sessions, lists, and requests that are refused before a tool runs.

use http::StatusCode;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use super::double::Script;
use super::{Fixture, LEGACY, MODERN, Messages, initialize, principal};

const ALL: [&str; 13] = [
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

#[tokio::test]
async fn both_eras_list_and_call_on_one_endpoint() {
    let fixture = Fixture::new(Script::new());
    let me = json!({"clusters": ["main"], "limits": [{"name": "requests", "remaining": 7}], "kind": "user", "roles": ["operator"], "scopes": [], "subject": "alice",
        "tenant": "acme"});
    for client in [fixture.modern("alice"), fixture.legacy("alice").await] {
        assert_eq!(client.tools().await, ALL);
        let result = client.call("whoami", json!({})).await;
        assert_eq!(result["structuredContent"], me);
        assert_eq!(serde_json::from_str::<Value>(&super::texts(&result)[0]).unwrap(), me);
    }
}

#[tokio::test]
async fn older_revisions_are_negotiated_and_the_oldest_is_not_offered() {
    let fixture = Fixture::new(Script::new());
    for (asked, answered) in [
        ("2025-03-26", "2025-03-26"),
        ("2025-06-18", "2025-06-18"),
        ("2025-11-25", "2025-11-25"),
        ("2026-07-28", "2025-11-25"),
        ("2024-11-05", "2025-11-25"),
    ] {
        let client = fixture.modern("alice");
        let response = client.send("POST", &[], initialize(asked).to_string()).await;
        let messages = Messages::of(response).rest().await;
        assert_eq!(messages[0]["result"]["protocolVersion"], answered, "{asked}");
    }
    let discovered = fixture.modern("alice").ask("server/discover", json!({})).await;
    let versions = json!(["2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"]);
    assert_eq!(discovered["result"]["supportedVersions"], versions);
}

#[tokio::test]
async fn lists_are_private_and_small_and_every_client_can_read_them() {
    let fixture = Fixture::new(Script::new());
    let answer = fixture.modern("alice").ask("tools/list", json!({})).await;
    let result = &answer["result"];
    assert_eq!((&result["cacheScope"], &result["ttlMs"]), (&json!("private"), &json!(30_000)));
    assert!(result.to_string().len() < 16 * 1024, "{} bytes", result.to_string().len());
    for tool in result["tools"].as_array().unwrap() {
        let name = tool["name"].as_str().unwrap();
        assert!(name.len() <= 40 && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        let schema = &tool["inputSchema"];
        assert_eq!((&schema["type"], &schema["additionalProperties"]), (&json!("object"), &json!(false)), "{name}");
        assert!(!schema.to_string().contains("$ref"), "{name}");
        assert!(tool["description"].as_str().unwrap().len() <= 200, "{name}");
        assert!(tool["annotations"]["readOnlyHint"].is_boolean(), "{name}");
        assert_eq!(tool["outputSchema"], Value::Null, "{name}");
        for required in schema["required"].as_array().map(Vec::as_slice).unwrap_or_default() {
            assert!(schema["properties"][required.as_str().unwrap()].is_object(), "{name}: {required}");
        }
    }
}

#[tokio::test]
async fn a_list_shows_what_policy_allows() {
    let denied = ["resolve_approval", "search_knowledge", "create_agent_run", "create_team_run", "create_workflow_run"];
    let fixture = Fixture::new(Script::new().deny(&denied));
    let left: Vec<&str> =
        ALL.into_iter().filter(|n| !["resolve_approval", "search_knowledge", "run_agent"].contains(n)).collect();
    assert_eq!(fixture.modern("alice").tools().await, left);
    assert!(fixture.script.lines().is_empty(), "a list never asks AgentOS");
}

#[tokio::test]
async fn a_grant_for_one_component_lists_the_tool() {
    let denied = ["create_agent_run", "create_team_run", "create_workflow_run"];
    let script = Script::new().deny(&denied).allow_id("web").json("GET main /agents", json!([{"id": "web"}]));
    let script = script.json("GET main /teams", json!([])).json("GET main /workflows", json!([]));
    let fixture = Fixture::new(script);
    let client = fixture.modern("alice");
    assert!(!client.tools().await.contains(&"run_agent".to_owned()));
    client.call("list_agents", json!({})).await;
    assert!(client.tools().await.contains(&"run_agent".to_owned()));
}

#[tokio::test]
async fn urls_and_headers_narrow_lists_and_calls() {
    let fixture = Fixture::new(Script::new());
    let mut client = fixture.modern("alice");
    client.path = "/mcp/x/knowledge";
    assert_eq!(client.tools().await, ["list_knowledge", "search_knowledge", "whoami"]);
    client.path = "/mcp/readonly";
    let writers = ["cancel_run", "continue_run", "resolve_approval", "run_agent"];
    assert_eq!(client.tools().await, ALL.into_iter().filter(|n| !writers.contains(n)).collect::<Vec<_>>());
    let answer = client.ask("tools/call", json!({"name": "run_agent", "arguments": {}})).await;
    assert_eq!(answer["error"]["code"], -32602);
    client.path = "/mcp/x/nothing";
    assert_eq!(client.send("POST", &[], "{}").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn unknown_tools_are_protocol_errors_and_bad_arguments_are_results() {
    let fixture = Fixture::new(Script::new());
    let client = fixture.modern("alice");
    let answer = client.ask("tools/call", json!({"name": "nope", "arguments": {}})).await;
    assert_eq!(answer["error"], json!({"code": -32602, "message": "Unknown tool: nope"}));
    for (tool, arguments, text) in [
        ("whoami", json!({"x": 1}), "the arguments do not fit: unknown field `x`, there are no fields"),
        ("run_agent", json!({"agent": "a"}), "the arguments do not fit: missing field `message`"),
        ("run_agent", json!({"agent": "a", "message": " "}), "`message` must not be empty"),
        (
            "run_agent",
            json!({"agent": "..", "message": "x"}),
            "`agent` must be an id of 1 to 200 characters without slashes",
        ),
        ("run_agent", json!({"agent": "x/y", "message": "x"}), "`agent` names an unknown cluster `x`"),
        ("run_agent", json!({"agent": "a", "message": "x", "wait_s": 601}), "`wait_s` must be between 0 and 600"),
        ("search_knowledge", json!({"query": "x", "limit": 51}), "`limit` must be a whole number from 1 to 50"),
        (
            "get_run",
            json!({"run": "run.00"}),
            "unknown run handle: pass the `run` value that run_agent returned to you",
        ),
    ] {
        let result = client.call(tool, arguments).await;
        assert_eq!((&result["isError"], super::texts(&result)), (&json!(true), vec![text.to_owned()]));
    }
    assert!(fixture.script.lines().is_empty());
}

#[tokio::test]
async fn a_session_of_somebody_else_does_not_exist() {
    let fixture = Fixture::new(Script::new());
    let alice = fixture.legacy("alice").await;
    let mut thief = fixture.modern("mallory");
    thief.session = alice.session.clone();
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}).to_string();
    let version = [("mcp-protocol-version", LEGACY)];
    for stolen in [&thief, &super::Client { session: Some("unknown".to_owned()), ..fixture.modern("alice") }] {
        for method in ["POST", "GET", "DELETE"] {
            let response = stolen.send(method, &version, ping.clone()).await;
            assert_eq!(response.status(), StatusCode::NOT_FOUND, "{method}");
        }
    }
    let mut other_tenant = fixture.modern("alice");
    (other_tenant.principal, other_tenant.session) = (principal("globex", "alice"), alice.session.clone());
    assert_eq!(other_tenant.send("POST", &version, ping.clone()).await.status(), StatusCode::NOT_FOUND);

    assert_eq!(alice.tools().await.len(), ALL.len(), "the session is unharmed");
    assert_eq!(alice.send("DELETE", &version, "").await.status(), StatusCode::NO_CONTENT);
    assert_eq!(alice.send("POST", &version, ping).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(alice.send("DELETE", &version, "").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_stateless_revision_ignores_session_ids() {
    let fixture = Fixture::new(Script::new());
    let meta = json!({"io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": {}});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}}).to_string();
    let headers = [("mcp-protocol-version", MODERN), ("mcp-method", "tools/list"), ("mcp-session-id", "anything")];
    let response = fixture.modern("alice").send("POST", &headers, body).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers().get("mcp-session-id"), None);
    let headers = [("mcp-protocol-version", MODERN)];
    for method in ["GET", "DELETE"] {
        let response = fixture.modern("alice").send(method, &headers, "").await;
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
    }
}

#[tokio::test]
async fn clients_that_accept_anything_are_served() {
    let fixture = Fixture::new(Script::new());
    let client = fixture.modern("alice");
    for (headers, status) in [
        (vec![], StatusCode::OK),
        (vec![("accept", "*/*")], StatusCode::OK),
        (vec![("accept", "application/json, text/event-stream")], StatusCode::OK),
        (vec![("accept", "text/html")], StatusCode::NOT_ACCEPTABLE),
    ] {
        let response = client.send("POST", &headers, initialize(LEGACY).to_string()).await;
        assert_eq!(response.status(), status, "{headers:?}");
    }
}

#[tokio::test]
async fn what_is_no_message_gets_a_json_rpc_error() {
    let fixture = Fixture::new(Script::new());
    let client = fixture.modern("alice");
    for (body, code) in [("{", -32700), ("", -32700), (" [{}]", -32600)] {
        let response = client.send("POST", &[], body).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{body}");
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap()["error"]["code"], code, "{body}");
    }
    let large = format!("\"{}\"", "x".repeat(4 * 1024 * 1024));
    assert_eq!(client.send("POST", &[], large).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let other = client.send("PUT", &[], "").await;
    assert_eq!(other.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn foreign_hosts_and_origins_are_refused() {
    let fixture = Fixture::new(Script::new());
    let client = fixture.modern("alice");
    let body = initialize(LEGACY).to_string();
    for (origin, status) in [
        ("https://agents.example.com", StatusCode::OK),
        ("http://localhost:6274", StatusCode::OK),
        ("https://agents.example.com:8443", StatusCode::FORBIDDEN),
        ("https://evil.example", StatusCode::FORBIDDEN),
        ("null", StatusCode::FORBIDDEN),
    ] {
        let response = client.send("POST", &[("origin", origin)], body.clone()).await;
        assert_eq!(response.status(), status, "{origin}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_is_reaped_and_one_with_a_call_in_flight_is_not() {
    let feed = super::double::Feed::new();
    let fixture = Fixture::new(Script::new().stream("POST main /agents/web/runs", feed.clone()));
    let (idle, busy) = (fixture.legacy("alice").await, fixture.legacy("bob").await);
    fixture.readers.refuse(true);
    feed.started();
    let run = json!({"name": "run_agent", "arguments": {"agent": "web", "kind": "agent", "message": "x"}});
    let response = busy.request("tools/call", run, None).await;
    let reaper = fixture.service.clone().reap_loop();
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2 * 3_600), reaper).await;
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}).to_string();
    let version = [("mcp-protocol-version", LEGACY)];
    assert_eq!(idle.send("POST", &version, ping.clone()).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(busy.send("POST", &version, ping).await.status(), StatusCode::OK);
    feed.completed("done");
    let messages = Messages::of(response).rest().await;
    assert_eq!(super::texts(&messages.last().unwrap()["result"])[0], "done");
}

#[tokio::test]
async fn a_panic_ends_one_call_with_an_answer() {
    let fixture = Fixture::new(Script::new().with("GET main /config", |_| panic!("on purpose")));
    for client in [fixture.modern("alice"), fixture.legacy("alice").await] {
        let answer = client.ask("tools/call", json!({"name": "list_knowledge", "arguments": {}})).await;
        assert_eq!(answer["error"], json!({"code": -32603, "message": "internal error"}));
        assert_eq!(client.tools().await, ALL);
    }
}
