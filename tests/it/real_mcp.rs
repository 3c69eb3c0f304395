//! Proves resources and prompts on real AgentOS, on both releases: every kind of resource is read once.
//! Does not test who may read what (`mcp_resources`, `real_people`).

use serde_json::{Value, json};

use crate::agno::Agno;
use crate::mcp_client::McpClient;
use crate::real_stack::Real;
use crate::stack::{Ask, Who};

#[tokio::test]
async fn agno_2_5_6_is_read_by_address() {
    resources(&Real::start(Agno::Oldest).await).await;
}

#[tokio::test]
async fn agno_3_1_10_is_read_by_address() {
    resources(&Real::start(Agno::Newest).await).await;
}

async fn read(client: &McpClient<'_>, uri: &str) -> Value {
    let answer = client.ask("resources/read", json!({"uri": uri})).await;
    let text = answer["result"]["contents"][0]["text"].as_str().unwrap_or_else(|| panic!("{uri}: {answer}"));
    serde_json::from_str(text).unwrap_or_else(|_| json!(text))
}

async fn resources(real: &Real) {
    let alice = McpClient::modern(&real.stack, &Who::alice());
    let bob = McpClient::modern(&real.stack, &Who::new("bob").role("operator"));
    let listed = alice.ask("resources/list", json!({})).await["result"]["resources"].clone();
    let uris: Vec<&str> = listed.as_array().unwrap().iter().map(|resource| resource["uri"].as_str().unwrap()).collect();
    for (id, kind) in [("assistant", "agent"), ("newsroom", "team"), ("daily-report", "workflow")] {
        let uri = format!("agno://agents/{id}");
        assert!(uris.contains(&uri.as_str()), "{uris:?}");
        let seen = read(&alice, &uri).await;
        assert_eq!((&seen["agent"], &seen["kind"]), (&json!(id), &json!(kind)), "{seen}");
        assert!(!seen.to_string().contains("instructions"), "{seen}");
        let prompt = json!({"name": id.replace('-', "_"), "arguments": {"message": "go"}});
        let got = alice.ask("prompts/get", prompt).await;
        assert!(got["result"]["messages"][0]["content"]["text"].as_str().unwrap().ends_with("go"), "{got}");

        let run = json!({"agent": id, "kind": kind, "message": "hello", "session_id": format!("res-{id}")});
        let told = alice.call("run_agent", run).await;
        assert!(!told.is_error, "{}", told.text);
        let uri = format!("agno://runs/{}", told.field("run"));
        let seen = read(&alice, &uri).await;
        assert_eq!((&seen["status"], &seen["kind"]), (&json!("completed"), &json!(kind)), "{seen}");
        let output = read(&alice, &format!("{uri}/output")).await;
        assert!(
            output.is_string() && told.text.starts_with(output.as_str().unwrap().lines().next().unwrap_or_default()),
            "{output}"
        );
        let uri = format!("agno://sessions/res-{id}?kind={kind}");
        assert_eq!(read(&alice, &uri).await["kind"], json!(kind));
        for theirs in [uri, format!("agno://runs/{}", told.field("run"))] {
            assert_eq!(
                bob.ask("resources/read", json!({"uri": theirs})).await["error"]["message"],
                "Resource not found"
            );
        }
    }
    content(real, &alice).await;
}

async fn content(real: &Real, alice: &McpClient<'_>) {
    let admin = Who::new("ada").role("admin");
    let upload = Ask::post("/knowledge/content")
        .field("name", "notes")
        .field("text_content", "MCP resources are read by address.");
    let got = real.by(&admin, upload).await;
    assert_eq!(got.status, 202, "{}", got.text());
    let content = got.json()["id"].as_str().unwrap().to_owned();
    let bases = alice.call("list_knowledge", json!({})).await;
    let base = bases.whole["structuredContent"]["knowledge"][0]["knowledge"]
        .as_str()
        .unwrap_or_else(|| panic!("{}", bases.text))
        .to_owned();
    let uri = format!("agno://knowledge/{base}/content/{content}");
    let seen = read(alice, &uri).await;
    assert_eq!((&seen["id"], &seen["name"]), (&json!(content), &json!("notes")), "{seen}");
    let stranger = McpClient::modern(&real.stack, &Who::new("gus").of("globex").role("admin"));
    assert_eq!(stranger.ask("resources/read", json!({"uri": uri})).await["error"]["message"], "Resource not found");
    let complete = json!({"ref": {"type": "ref/resource", "uri": "agno://knowledge/{knowledge}/content/{id}"},
        "argument": {"name": "id", "value": ""}, "context": {"arguments": {"knowledge": base}}});
    let values = alice.ask("completion/complete", complete).await["result"]["completion"]["values"].clone();
    assert!(values.as_array().unwrap().contains(&json!(content)), "{values}");
    let sessions = json!({"ref": {"type": "ref/resource", "uri": "agno://sessions/{id}{?kind}"},
        "argument": {"name": "id", "value": "res-"}, "context": {"arguments": {"kind": "team"}}});
    let values = alice.ask("completion/complete", sessions).await["result"]["completion"]["values"].clone();
    assert_eq!(values, json!(["res-newsroom"]));
}
