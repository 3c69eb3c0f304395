//! Proves what connectors are told about tokens: metadata, challenges, audiences, tokens in URLs.
//! What the texts hold is tested beside `mcp::authorization`.

use std::time::{Duration, SystemTime};

use serde_json::json;
use tollbridge::identity::{Algorithm, Claims, Mint, mint};
use tollbridge::principal::TenantId;
use tollbridge::secret::Secret;

use crate::mcp_client::{McpClient, initialize};
use crate::stack::{Ask, CALLER_KEY, Got, ISSUER, Settings, Stack, Who};

const RESOURCE: &str = "http://127.0.0.1/mcp";
const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

/// A gateway whose tokens come from an authorization server.
async fn protected() -> Stack {
    let settings = Settings::new()
        .set("[[identity.issuers]]", "audiences", &format!("[\"tollbridge\", \"{RESOURCE}\"]"))
        .set("[mcp]", "authorization_servers", &format!("[\"{ISSUER}\"]"))
        .set("[mcp]", "scopes_supported", "[\"agents:read\"]");
    Stack::with(settings).await
}

/// A token of alice's with this audience and these scopes.
fn token(audience: &str, roles: &[&str], scopes: &[&str]) -> String {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let what = Mint {
        issuer: ISSUER,
        audience,
        subject: "alice",
        tenant: Some(&TenantId::new("acme").unwrap()),
        roles: &owned(roles),
        scopes: &owned(scopes),
        plan: None,
        ttl: Duration::from_secs(600),
        algorithm: Algorithm::HS256,
        key: &Secret::new(CALLER_KEY),
        claims: &Claims::default(),
    };
    mint(&what, SystemTime::now()).unwrap()
}

fn post(path: &str) -> Ask {
    Ask::post(path)
        .header("accept", "application/json, text/event-stream")
        .body("application/json", initialize().to_string())
}

fn challenge(got: &Got) -> &str {
    got.header("www-authenticate").unwrap_or_default()
}

#[tokio::test]
async fn connectors_find_the_authorization_server() {
    let stack = protected().await;
    let got = stack.send(post("/mcp")).await;
    let place = format!("resource_metadata=\"http://127.0.0.1{WELL_KNOWN}/mcp\"");
    let wanted = format!("Bearer {place}, scope=\"agents:read\"");
    assert_eq!((got.status, challenge(&got)), (401, wanted.as_str()));
    for path in [format!("{WELL_KNOWN}/mcp"), WELL_KNOWN.to_owned()] {
        let got = stack.send(Ask::get(&path)).await;
        assert_eq!((got.status, got.json()["resource"].as_str()), (200, Some(RESOURCE)), "{path}");
        assert_eq!(got.json()["authorization_servers"], json!([ISSUER]), "{path}");
    }
    let got = stack.send(post("/mcp").bearer("not-a-token")).await;
    let wanted = format!("Bearer error=\"invalid_token\", {place}, scope=\"agents:read\"");
    assert_eq!((got.status, challenge(&got)), (401, wanted.as_str()));
}

#[tokio::test]
async fn only_tokens_for_the_endpoint_open_it() {
    let stack = protected().await;
    let own = token(RESOURCE, &["operator"], &[]);
    assert_eq!(stack.send(post("/mcp").bearer(&own)).await.status, 200);
    let other = Who::alice().token();
    let got = stack.send(post("/mcp").bearer(&other)).await;
    assert_eq!(got.status, 401, "{}", got.text());
    assert!(challenge(&got).starts_with("Bearer error=\"invalid_token\", resource_metadata="), "{got:?}");
    assert_eq!(stack.send(Ask::get("/agents").bearer(&other)).await.status, 200, "which is good for the API");
}

#[tokio::test]
async fn without_an_authorization_server_nothing_hints_at_one() {
    let stack = Stack::start().await;
    let got = stack.send(post("/mcp")).await;
    assert_eq!((got.status, challenge(&got)), (401, "Bearer"));
    for path in [format!("{WELL_KNOWN}/mcp"), WELL_KNOWN.to_owned()] {
        assert_eq!(stack.send(Ask::get(&path)).await.status, 404, "{path}");
    }
    assert_eq!(stack.send(post("/mcp").bearer(&Who::alice().token())).await.status, 200);
}

#[tokio::test]
async fn a_token_in_the_url_is_refused_whoever_sends_it() {
    for stack in [Stack::start().await, protected().await] {
        let good = token(RESOURCE, &["operator"], &[]);
        for ask in [
            post(&format!("/mcp?access_token={good}")),
            post(&format!("/mcp?access_token={good}")).bearer(&good),
            Ask::get(&format!("/mcp?token={good}")),
        ] {
            let got = stack.send(ask).await;
            assert_eq!((got.status, challenge(&got)), (400, "Bearer error=\"invalid_request\""), "{}", got.text());
            assert!(!got.text().contains(&good));
        }
    }
}

#[tokio::test]
async fn the_token_of_a_connector_never_reaches_agentos() {
    let stack = protected().await;
    let own = token(RESOURCE, &["operator"], &[]);
    let client = McpClient::with_token(&stack, &own);
    let run = json!({"agent": "assistant", "kind": "agent", "message": "hello"});
    assert!(!client.call("run_agent", run).await.is_error);
    let seen = stack.os().requests();
    assert!(!seen.is_empty());
    for request in seen {
        assert!(!request.header("authorization").unwrap_or_default().contains(&own), "{request:?}");
    }
}

#[tokio::test]
async fn a_missing_scope_is_asked_for_before_the_call_is_made() {
    let stack = protected().await;
    let reader = McpClient::with_token(&stack, &token(RESOURCE, &[], &["agents:read"]));
    let run = json!({"agent": "assistant", "kind": "agent", "message": "hello"});
    let got = stack.send(reader.calling("run_agent", run.clone(), None)).await;
    assert_eq!(got.status, 403, "{}", got.text());
    let wanted = format!(
        "Bearer error=\"insufficient_scope\", resource_metadata=\"http://127.0.0.1{WELL_KNOWN}/mcp\", scope=\"agents:run\""
    );
    assert_eq!(challenge(&got), wanted);
    assert_eq!(got.json()["error"]["code"], -32603, "{}", got.text());
    let team = json!({"agent": "team", "kind": "team", "message": "hello"});
    let runner = McpClient::with_token(&stack, &token(RESOURCE, &[], &["agents:run"]));
    let got = stack.send(runner.calling("run_agent", team, None)).await;
    assert!(got.status == 403 && challenge(&got).contains("scope=\"teams:run\""), "{got:?}");
    assert!(stack.os().requests_to("/agents/assistant/runs").is_empty(), "AgentOS heard nothing of it");
    assert!(!runner.call("run_agent", run).await.is_error);
}

#[tokio::test]
async fn what_no_scope_would_allow_is_refused_as_ever() {
    let never = r#"@id("never") forbid (principal, action in Tollbridge::Action::"run", resource);"#;
    let settings = Settings::new()
        .set("[[identity.issuers]]", "audiences", &format!("[\"{RESOURCE}\"]"))
        .set("[mcp]", "authorization_servers", &format!("[\"{ISSUER}\"]"))
        .policy("90-never.cedar", never);
    let stack = Stack::with(settings).await;
    let client = McpClient::with_token(&stack, &token(RESOURCE, &["operator"], &[]));
    let told = client.call("run_agent", json!({"agent": "assistant", "kind": "agent", "message": "hello"})).await;
    assert!(told.is_error && told.text.starts_with("forbidden: "), "{}", told.text);
}
