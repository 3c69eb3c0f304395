//! Proves the tools that a client gets when it asks for their toolset on real AgentOS, on both releases: each is called
//! once by somebody who may, and AgentOS does what it says.
//! Does not test who may call them (`twin`).

use serde_json::{Value, json};

use crate::agno::Agno;
use crate::mcp_client::{McpClient, Told};
use crate::real_stack::Real;
use crate::stack::{Ask, Who, within};

#[tokio::test]
async fn agno_2_5_6_has_the_tools_that_are_asked_for() {
    toolsets(&Real::with(Agno::Oldest, &[("TRACING", "1")]).await).await;
}

#[tokio::test]
async fn agno_3_1_10_has_the_tools_that_are_asked_for() {
    toolsets(&Real::with(Agno::Newest, &[("TRACING", "1")]).await).await;
}

async fn toolsets(real: &Real) {
    asked_by_name(real).await;
    files(real).await;
    memory(real).await;
    traces(real).await;
    metrics_and_admin(real).await;
    schedules(real).await;
    knowledge(real).await;
}

fn root() -> Who {
    Who::new("opal").role("platform_admin").role("operator")
}

/// A client at the address of a toolset.
fn at<'a>(real: &'a Real, path: &'static str, who: &Who) -> McpClient<'a> {
    McpClient::modern(&real.stack, who).at(path)
}

fn served(told: Told) -> Told {
    assert!(!told.is_error, "{}", told.text);
    told
}

/// The structured content, and a list of it.
fn list(told: Told, name: &str) -> Vec<Value> {
    let told = served(told);
    told.whole["structuredContent"][name].as_array().unwrap_or_else(|| panic!("{}", told.text)).clone()
}

async fn asked_by_name(real: &Real) {
    let alice = at(real, "/mcp/x/ask", &Who::alice());
    let answer = alice.ask("tools/list", json!({})).await;
    let tools = answer["result"]["tools"].as_array().unwrap_or_else(|| panic!("{answer}"));
    let assistant = tools.iter().find(|tool| tool["name"] == "ask_assistant").unwrap();
    assert_eq!(
        assistant["description"],
        "Run the agent \"Assistant\" (\"assistant\") with a message and give its answer. AgentOS describes it as: \
         \"Repeats what you say.\""
    );
    for (tool, id) in
        [("ask_assistant", "assistant"), ("ask_newsroom", "newsroom"), ("ask_daily_report", "daily-report")]
    {
        let told = served(alice.call(tool, json!({"message": "hello", "session_id": format!("ask-{id}")})).await);
        assert_eq!(told.field("status"), "completed", "{}", told.text);
        let again = served(alice.call("get_run", json!({"run": told.field("run")})).await);
        assert_eq!(again.text.lines().next(), told.text.lines().next(), "{tool}");
    }
    let paused = served(alice.call("ask_records", json!({"message": "delete record 7"})).await);
    assert_eq!(paused.field("status"), "paused", "{}", paused.text);
}

async fn files(real: &Real) {
    let alice = at(real, "/mcp", &Who::alice());
    let file = json!({"name": "note.txt", "mime_type": "text/plain", "data": "dGhlIGNvZGUgaXMgNDcxMQ=="});
    for (id, kind) in [("assistant", "agent"), ("newsroom", "team")] {
        let session = format!("files-{id}");
        let run = json!({"agent": id, "kind": kind, "message": "read it", "session_id": session, "files": [file]});
        let told = served(alice.call("run_agent", run).await);
        assert_eq!(told.field("status"), "completed", "{}", told.text);
        let path = format!("/sessions/{session}/runs?type={kind}");
        let stored = real.by(&Who::alice(), Ask::get(&path)).await;
        assert!(stored.status == 200 && stored.text().contains("note.txt"), "{kind}: {}", stored.text());
    }
    let run = json!({"agent": "assistant", "message": "read it", "files": [{"name": "a.bin", "mime_type": "application/x-nothing", "data": "aGk="}]});
    let told = alice.call("run_agent", run).await;
    assert!(told.is_error && told.text.contains("400"), "AgentOS names what it does not take: {}", told.text);
}

async fn memory(real: &Real) {
    let alice = at(real, "/mcp/x/memory", &Who::alice());
    let added = served(alice.call("add_memory", json!({"memory": "Alice likes tea.", "topics": ["drinks"]})).await);
    let id = added.whole["structuredContent"]["memory_id"].clone();
    assert!(id.is_string(), "{}", added.text);
    let found = list(alice.call("list_memories", json!({"query": "tea"})).await, "memories");
    assert_eq!((found.len(), &found[0]["memory_id"], &found[0]["topics"]), (1, &id, &json!(["drinks"])));
    let bob = at(real, "/mcp/x/memory", &Who::new("bob").role("operator"));
    assert_eq!(list(bob.call("list_memories", json!({})).await, "memories"), Vec::<Value>::new());
}

async fn traces(real: &Real) {
    let alice = at(real, "/mcp/x/traces", &Who::alice());
    let asked = json!({"session_id": "ask-assistant"});
    // AgentOS 3.1.10 takes the root span for the run; a FastAPI that traces requests of its own makes another one the root,
    // and the trace is nobody's.
    if real.agno == Agno::Newest {
        list(alice.call("list_traces", asked).await, "traces");
        let told = alice.call("get_trace", json!({"trace_id": "0".repeat(32)})).await;
        assert!(told.is_error && told.text.starts_with("not_found: "), "{}", told.text);
        return;
    }
    // AgentOS writes traces some time after their runs.
    let traces = within("the trace of a run", async {
        loop {
            let traces = list(alice.call("list_traces", asked.clone()).await, "traces");
            if !traces.is_empty() {
                return traces;
            }
        }
    });
    let trace = traces.await.remove(0);
    assert_eq!(trace["session_id"], "ask-assistant", "{trace}");
    let shown = served(alice.call("get_trace", json!({"trace_id": trace["trace_id"]})).await);
    assert_eq!(shown.whole["structuredContent"]["trace"]["trace_id"], trace["trace_id"], "{}", shown.text);
    let bob = at(real, "/mcp/x/traces", &Who::new("bob").role("operator"));
    let told = bob.call("get_trace", json!({"trace_id": trace["trace_id"]})).await;
    assert!(told.is_error && told.text.starts_with("not_found: "), "{}", told.text);
}

async fn metrics_and_admin(real: &Real) {
    let refused = at(real, "/mcp/x/metrics", &Who::alice());
    assert_eq!(refused.tools().await, ["whoami"]);
    let told = refused.call("get_metrics", json!({})).await;
    assert!(told.is_error && told.text.starts_with("forbidden: "), "{}", told.text);
    list(at(real, "/mcp/x/metrics", &root()).call("get_metrics", json!({})).await, "days");
    let admin = at(real, "/mcp/x/admin", &root());
    list(admin.call("list_components", json!({"kind": "agent"})).await, "components");
    list(admin.call("list_registry", json!({})).await, "registry");
}

async fn schedules(real: &Real) {
    let client = at(real, "/mcp/x/schedules", &root());
    let plan = json!({"name": "nightly", "agent": "assistant", "message": "report", "cron": "0 3 * * *"});
    let made = served(client.call("create_schedule", plan).await);
    let made = &made.whole["structuredContent"];
    assert_eq!((&made["endpoint"], &made["enabled"]), (&json!("/agents/assistant/runs"), &json!(true)), "{made}");
    for enabled in [false, true] {
        served(client.call("set_schedule", json!({"schedule_id": made["id"], "enabled": enabled})).await);
        let listed = list(client.call("list_schedules", json!({})).await, "schedules");
        let one: Vec<&Value> = listed.iter().filter(|row| row["id"] == made["id"]).collect();
        assert_eq!((one.len(), &one[0]["enabled"]), (1, &json!(enabled)), "{listed:?}");
    }
}

async fn knowledge(real: &Real) {
    let admin = Who::new("ada").role("admin");
    let client = at(real, "/mcp/x/knowledge-write", &admin);
    let text = json!({"name": "harbour", "text": "The harbour opens at six."});
    let added = served(client.call("add_knowledge", text).await);
    let id = added.whole["structuredContent"]["id"].clone();
    within("the text to be searchable", async {
        loop {
            let status = client.call("knowledge_status", json!({"content_id": id})).await;
            // AgentOS 2 answers before it writes the row.
            assert!(!status.is_error || status.text.starts_with("not_found: "), "{}", status.text);
            match status.whole["structuredContent"]["status"].as_str() {
                Some("completed") => return,
                Some("failed") => panic!("{}", status.text),
                _ => {}
            }
        }
    })
    .await;
    let search = at(real, "/mcp", &admin);
    let hits = list(search.call("search_knowledge", json!({"query": "harbour"})).await, "results");
    assert!(hits.iter().any(|hit| hit["text"].as_str().unwrap().contains("six")), "{hits:?}");
    let stranger = at(real, "/mcp/x/knowledge-write", &Who::new("gus").of("globex").role("admin"));
    let told = stranger.call("knowledge_status", json!({"content_id": id})).await;
    assert!(told.is_error && told.text.starts_with("not_found: "), "{}", told.text);
}
