//! Tests of the tools that clients get only when they ask for their toolset, and of files that are given to runs.

use serde_json::{Value, json};

use super::double::{Feed, Script, refusal};
use super::runs::{START, run_web};
use super::{Fixture, Toolset, texts};
use crate::agentos::{Catalog, Reach};
use crate::mcp::tools;

fn page(row: Value) -> Value {
    json!({"data": [row], "meta": {"page": 1}})
}

#[tokio::test]
async fn optional_toolsets_are_listed_only_when_asked_for() {
    let fixture = Fixture::new(Script::new().deny(&["get_metrics"]));
    let mut client = fixture.modern("alice");
    assert!(!client.tools().await.iter().any(|name| name.contains("memor")));
    for (path, tools) in [
        ("/mcp/x/memory", &["add_memory", "list_memories", "whoami"][..]),
        ("/mcp/x/traces", &["get_trace", "list_traces", "whoami"]),
        ("/mcp/x/metrics", &["whoami"]),
        ("/mcp/x/schedules", &["create_schedule", "list_agents", "list_schedules", "set_schedule", "whoami"]),
        ("/mcp/x/knowledge-write", &["add_knowledge", "knowledge_status", "list_knowledge", "whoami"]),
        ("/mcp/x/admin", &["list_components", "list_registry", "whoami"]),
    ] {
        client.path = path;
        assert_eq!(client.tools().await, tools, "{path}");
    }
    client.path = "/mcp";
    let unasked = client.ask("tools/call", json!({"name": "list_memories", "arguments": {}})).await;
    assert_eq!(unasked["error"]["message"], "Unknown tool: list_memories");
    assert_eq!(fixture.script.lines(), Vec::<String>::new());
}

/// What concerns a whole AgentOS is never among what clients get unasked.
#[test]
fn os_wide_rows_are_tools_of_optional_toolsets_only() {
    let catalog = Catalog::shipped();
    let os_wide = catalog.rows().iter().filter(|row| row.reach == Reach::OsWide);
    let mut count = 0;
    for name in os_wide.filter_map(|row| row.tool) {
        let toolsets = tools::toolsets(name).unwrap_or_else(|| panic!("`{name}` is no tool"));
        assert!(!toolsets.is_empty(), "`{name}` is in every toolset");
        let default: Vec<&Toolset> = toolsets.iter().filter(|set| Toolset::DEFAULT.contains(set)).collect();
        assert_eq!(default, Vec::<&Toolset>::new(), "{name}");
        count += 1;
    }
    assert_eq!(count, 7);
}

/// Its toolset alone opens nothing: policy does, for the list and once more for the call.
#[tokio::test]
async fn an_os_wide_tool_is_listed_and_served_by_leave_of_policy_only() {
    const OS_WIDE: [(&str, &str, &str); 3] = [
        ("/mcp/x/metrics", "get_metrics", "GET main /metrics"),
        ("/mcp/x/admin", "list_registry", "GET main /registry?limit=50"),
        ("/mcp/x/schedules", "list_schedules", "GET main /schedules?limit=20"),
    ];
    let denied = ["get_metrics", "list_registry", "list_schedules"];
    let script = OS_WIDE.iter().fold(Script::new().deny(&denied), |script, (_, _, line)| {
        script.with(line, |_| refusal(403, "forbidden", "policy does not allow it", None))
    });
    let fixture = Fixture::new(script);
    let mut client = fixture.modern("alice");
    for (path, tool, line) in OS_WIDE {
        client.path = path;
        assert!(!client.tools().await.contains(&tool.to_owned()), "{tool}");
        let result = client.call(tool, json!({})).await;
        assert_eq!(texts(&result), ["forbidden: policy does not allow it\nrequest_id: req-1"]);
        assert_eq!(fixture.script.last().line, line, "the gateway has decided");
    }
}

#[tokio::test]
async fn every_optional_tool_asks_what_it_says() {
    let memory = json!({"memory_id": "m1", "memory": "tea", "user_id": "alice", "topics": null});
    let schedule = json!({"id": "p1", "name": "nightly", "enabled": true, "secret": "x"});
    let script = Script::new()
        .json("GET main /memories?limit=20&sort_by=updated_at&sort_order=desc&search_content=tea", page(memory.clone()))
        .json("POST main /memories", memory)
        .json("GET main /traces?limit=5&session_id=s1", page(json!({"trace_id": "t1", "status": "OK"})))
        .json("GET main /traces/t1", json!({"trace_id": "t1", "tree": []}))
        .json("GET main /metrics?starting_date=2026-11-01", json!({"metrics": [{"date": "2026-11-01"}]}))
        .json("GET main /schedules?limit=20", page(schedule.clone()))
        .json("POST main /schedules", schedule.clone())
        .json("POST main /schedules/p1/enable", schedule.clone())
        .json("POST main /schedules/p1/disable", schedule)
        .json("POST main /knowledge/content", json!({"id": "c1", "status": "processing"}))
        .json("GET main /knowledge/content/c1/status", json!({"id": "c1", "status": "completed"}))
        .json("GET main /components?limit=50&component_type=agent", page(json!({"component_id": "a", "name": "A"})))
        .json("GET main /registry?limit=50", page(json!({"name": "calculator", "type": "tool"})));
    let fixture = Fixture::new(script);
    let mut client = fixture.modern("alice");
    let plan = json!({"name": "nightly", "agent": "web", "kind": "agent", "message": "go", "cron": "0 3 * * *"});
    for (path, tool, arguments, said) in [
        (
            "memory",
            "list_memories",
            json!({"query": "tea"}),
            json!({"memories": [{"memory_id": "m1", "memory": "tea"}]}),
        ),
        ("memory", "add_memory", json!({"memory": "tea"}), json!({"memory_id": "m1", "memory": "tea"})),
        (
            "traces",
            "list_traces",
            json!({"session_id": "s1", "limit": 5}),
            json!({"traces": [{"trace_id": "t1", "status": "OK"}]}),
        ),
        ("traces", "get_trace", json!({"trace_id": "t1"}), json!({"trace": {"trace_id": "t1", "tree": []}})),
        ("metrics", "get_metrics", json!({"from": "2026-11-01"}), json!({"days": [{"date": "2026-11-01"}]})),
        (
            "schedules",
            "list_schedules",
            json!({}),
            json!({"schedules": [{"id": "p1", "name": "nightly", "enabled": true}]}),
        ),
        ("schedules", "create_schedule", plan, json!({"id": "p1", "name": "nightly", "enabled": true})),
        (
            "schedules",
            "set_schedule",
            json!({"schedule_id": "p1", "enabled": true}),
            json!({"id": "p1", "name": "nightly", "enabled": true}),
        ),
        (
            "schedules",
            "set_schedule",
            json!({"schedule_id": "p1", "enabled": false}),
            json!({"id": "p1", "name": "nightly", "enabled": true}),
        ),
        (
            "knowledge-write",
            "knowledge_status",
            json!({"content_id": "c1"}),
            json!({"id": "c1", "status": "completed"}),
        ),
        (
            "admin",
            "list_components",
            json!({"kind": "agent"}),
            json!({"components": [{"component_id": "a", "name": "A"}]}),
        ),
        ("admin", "list_registry", json!({}), json!({"registry": [{"name": "calculator", "type": "tool"}]})),
    ] {
        client.path = Box::leak(format!("/mcp/x/{path}").into_boxed_str());
        let result = client.call(tool, arguments).await;
        assert_eq!(result["structuredContent"], said, "{tool}: {result}");
        assert_eq!(serde_json::from_str::<Value>(&texts(&result)[0]).unwrap(), said);
    }
    let sent = fixture.script.all().into_iter().find(|asked| asked.line == "POST main /schedules").unwrap();
    let sent: Value = serde_json::from_str(&sent.body).unwrap();
    assert_eq!(
        sent,
        json!({"name": "nightly", "cron_expr": "0 3 * * *", "endpoint": "/agents/web/runs", "method": "POST",
        "payload": {"message": "go"}})
    );
    client.path = "/mcp/x/knowledge-write";
    client.call("add_knowledge", json!({"name": "n", "text": "a & b"})).await;
    assert_eq!(fixture.script.last().body, "name=n&text_content=a+%26+b");
    client.path = "/mcp/x/metrics";
    let wrong = client.call("get_metrics", json!({"from": "yesterday"})).await;
    assert_eq!(texts(&wrong), ["`from` must be a day such as 2026-11-26"]);
}

#[tokio::test]
async fn files_go_with_a_run() {
    let feed = Feed::new();
    let made = json!({"status": "COMPLETED", "files": [{"content": "aGk=", "filename": "old.pdf", "mime_type": "application/pdf"}]});
    let fixture = Fixture::new(Script::new().stream(START, feed.clone()).json(super::runs::READ, made));
    feed.started();
    feed.completed("read");
    let client = fixture.modern("alice");
    let first = client.call("run_agent", run_web(json!({}))["arguments"].clone()).await;
    let uri = format!("agno://runs/{}/media/0", super::handle(&first));
    let again = Feed::new();
    fixture.script.replace_stream(START, again.clone());
    again.started();
    again.completed("read");
    let file = json!({"name": "a.txt", "mime_type": "text/plain", "data": "aGVsbG8="});
    let arguments = run_web(json!({"files": [file, {"uri": uri}]}))["arguments"].clone();
    let result = client.call("run_agent", arguments).await;
    assert_eq!(texts(&result)[0], "read", "{result}");
    let body = fixture.script.last().body;
    let parts: Vec<&str> = body.split("\r\n").filter(|line| !line.is_empty() && !line.starts_with("--")).collect();
    assert_eq!(
        parts,
        [
            "content-disposition: form-data; name=\"stream\"",
            "true",
            "content-disposition: form-data; name=\"message\"",
            "hi & bye",
            "content-disposition: form-data; name=\"files\"; filename=\"a.txt\"",
            "content-type: text/plain",
            "hello",
            "content-disposition: form-data; name=\"files\"; filename=\"old.pdf\"",
            "content-type: application/pdf",
            "hi",
        ]
    );
    let large = "A".repeat(2_900_000);
    for (files, why) in [
        (json!([{"name": "a", "mime_type": "text/plain"}]), "each of `files` needs either `data` or `uri`"),
        (json!([{"name": "a", "mime_type": "text/plain", "data": "!"}]), "file `a`: `data` is no base64"),
        (json!([{"name": "a", "data": "aGk="}]), "file `a`: `mime_type` is missing"),
        (
            json!([{"name": "a", "mime_type": "x\r\ny", "data": "aGk="}]),
            "file `a`: `mime_type` must be a type such as text/plain",
        ),
        (
            json!([{"name": "a\"b", "mime_type": "text/plain", "data": "aGk="}]),
            "file `a\"b`: `name` must be a plain file name",
        ),
        (
            json!([{"uri": "https://example.com/x"}]),
            "file `https://example.com/x`: `uri` must be the address of what a run made, agno://runs/…/media/…",
        ),
        (
            json!([{"uri": "agno://runs/foreign/media/0"}]),
            "unknown run handle: pass the `run` value that run_agent returned to you",
        ),
        (
            json!([{"name": "a", "mime_type": "text/plain", "data": large}]),
            "the `files` are too large: at most 2 MiB together",
        ),
        (json!(vec![json!({"uri": "x"}); 9]), "at most 8 `files`"),
    ] {
        let refused = client.call("run_agent", run_web(json!({"files": files}))["arguments"].clone()).await;
        assert_eq!((&refused["isError"], texts(&refused)), (&json!(true), vec![why.to_owned()]));
    }
}
