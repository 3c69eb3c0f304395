//! Tests the guard of `continue` against a scripted AgentOS: what is refused, and exactly what goes upstream.
//! Does not show that AgentOS has the holes (`approvals_agno`).

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::fake::{Event, Reply};
use crate::stack::{Ask, Got, Stack, Who, within};

const RUN: &str = "/agents/records/runs/r-1";
const CONTINUE: &str = "/agents/records/runs/r-1/continue";

fn guarded(id: &str) -> Value {
    json!({
        "tool_call_id": id, "tool_name": "delete_record", "tool_args": {"record_id": "42"}, "result": null,
        "requires_confirmation": true, "confirmed": null, "approval_type": "required", "approval_id": "a-1",
    })
}

fn plain(id: &str) -> Value {
    json!({
        "tool_call_id": id, "tool_name": "send_mail", "tool_args": {"to": "bob"}, "result": null,
        "requires_confirmation": true, "confirmed": null, "approval_type": null, "approval_id": null,
    })
}

fn run(status: &str, tools: &[Value]) -> Value {
    json!({"run_id": "r-1", "agent_id": "records", "session_id": "s-1", "user_id": "acme~alice", "status": status, "tools": tools})
}

fn approval(status: &str) -> Value {
    json!({"id": "a-1", "run_id": "r-1", "status": status, "approval_type": "required", "user_id": "acme~alice"})
}

fn store(stack: &Stack, run: &Value, approvals: &[Value]) {
    stack.os().pin("GET", RUN, Reply::json(200, run));
    stack.os().pin("GET", "/approvals", Reply::json(200, &json!({"data": approvals, "meta": {}})));
}

fn finished() -> Reply {
    Reply::json(200, &json!({"run_id": "r-1", "session_id": "s-1", "status": "COMPLETED", "content": "done"}))
}

/// A stack whose AgentOS holds this run and these approvals.
async fn holding(run: Value, approvals: &[Value]) -> Stack {
    let stack = Stack::start().await;
    store(&stack, &run, approvals);
    stack.os().pin("POST", CONTINUE, finished());
    stack
}

/// Alice continues her run.
fn go_on(fields: &[(&str, &str)]) -> Ask {
    let ask = Ask::post(CONTINUE).by(&Who::alice()).field("session_id", "s-1").field("stream", "false");
    fields.iter().fold(ask, |ask, (name, value)| ask.field(name, value))
}

fn said(got: &Got) -> (u16, String) {
    (got.status, got.code())
}

#[tokio::test]
async fn the_stored_call_goes_upstream_as_the_approval_says() {
    let mut yes = guarded("c-1");
    yes["confirmed"] = json!(true);
    let mut no = guarded("c-1");
    no["confirmed"] = json!(false);
    for (status, expected) in [("approved", yes), ("rejected", no)] {
        for given in [None, Some("[]"), Some(r#"[{"tool_call_id":"c-1","requires_confirmation":false}]"#)] {
            let stack = holding(run("PAUSED", &[guarded("c-1")]), &[approval(status)]).await;
            let fields: Vec<_> = given.map(|tools| ("tools", tools)).into_iter().collect();
            let got = stack.send(go_on(&fields)).await;
            assert_eq!(got.status, 200, "{got:?}");
            let sent = stack.os().requests_to(CONTINUE);
            assert_eq!(sent.len(), 1);
            let form = sent[0].form();
            let tools: Value = serde_json::from_str(form.get("tools").unwrap()).unwrap();
            assert_eq!(tools, json!([expected]), "{status} {given:?}");
            let mut rest = form.to_map();
            rest.remove("tools");
            let own = ("knowledge_filters", r#"{"tenant":"acme"}"#);
            let rest_expected =
                BTreeMap::from([own, ("session_id", "s-1"), ("stream", "false"), ("user_id", "acme~alice")]);
            assert_eq!(rest, rest_expected);
        }
    }
}

#[tokio::test]
async fn what_must_not_go_on_does_not_reach_agentos() {
    const YES: &str = r#"[{"tool_call_id":"c-1","confirmed":true}]"#;
    let guarded = || run("PAUSED", &[guarded("c-1")]);
    let plain = || run("PAUSED", &[plain("c-1")]);
    let other_args = r#"[{"tool_call_id":"c-1","confirmed":true,"tool_args":{"record_id":"43"}}]"#;
    type Case<'a> = (Value, &'a [Value], &'a [(&'a str, &'a str)], (u16, &'a str));
    let cases: &[Case<'_>] = &[
        (guarded(), &[approval("pending")], &[], (409, "approval_pending")),
        (guarded(), &[approval("pending")], &[("tools", YES)], (409, "approval_pending")),
        (guarded(), &[], &[("tools", YES)], (409, "approval_pending")),
        (guarded(), &[approval("rejected")], &[("tools", YES)], (409, "approval_rejected")),
        (guarded(), &[approval("approved")], &[("tools", other_args)], (400, "field_not_allowed")),
        (guarded(), &[approval("approved")], &[("tools", r#"[{"tool_call_id":"c-2"}]"#)], (400, "field_not_allowed")),
        (guarded(), &[approval("approved")], &[("tools", "{}")], (400, "form_malformed")),
        (guarded(), &[approval("approved")], &[("tools", "[")], (400, "form_malformed")),
        (guarded(), &[approval("approved")], &[("fork", "maybe")], (400, "form_malformed")),
        (guarded(), &[approval("approved")], &[("fork", "true")], (403, "forbidden")),
        (guarded(), &[approval("approved")], &[("regenerate", "1")], (403, "forbidden")),
        (guarded(), &[approval("approved")], &[("replace_original", "false")], (403, "forbidden")),
        (guarded(), &[approval("approved")], &[("continue_from", "2")], (403, "forbidden")),
        (plain(), &[], &[], (400, "form_malformed")),
        (run("COMPLETED", &[]), &[], &[], (409, "already_continued")),
        (run("RUNNING", &[]), &[], &[("tools", YES)], (409, "already_continued")),
        (run("ERROR", &[]), &[], &[], (409, "already_continued")),
    ];
    let stack = holding(run("PAUSED", &[]), &[]).await;
    for (stored, approvals, fields, (status, code)) in cases {
        store(&stack, stored, approvals);
        let got = stack.send(go_on(fields)).await;
        assert_eq!(said(&got), (*status, (*code).to_owned()), "{stored} {approvals:?} {fields:?}: {}", got.text());
        assert_eq!(stack.os().requests_to(CONTINUE), []);
    }
}

#[tokio::test]
async fn a_run_of_nobody_or_of_another_agent_is_not_found() {
    let stack = holding(run("PAUSED", &[guarded("c-1")]), &[approval("approved")]).await;
    stack.os().pin("GET", RUN, Reply::detail(404, "Run not found"));
    assert_eq!(said(&stack.send(go_on(&[])).await), (404, "not_found".into()));
    let mut other = run("PAUSED", &[guarded("c-1")]);
    other["agent_id"] = json!("mailer");
    stack.os().pin("GET", RUN, Reply::json(200, &other));
    assert_eq!(said(&stack.send(go_on(&[])).await), (404, "not_found".into()));
    // Approvals that cannot be read open nothing.
    store(&stack, &run("PAUSED", &[guarded("c-1")]), &[approval("approved")]);
    stack.os().pin("GET", "/approvals", Reply::detail(500, "broken"));
    assert_eq!(stack.send(go_on(&[])).await.status, 502);
    let without_session = Ask::post(CONTINUE).by(&Who::alice()).field("stream", "false");
    assert_ne!(stack.send(without_session).await.status, 200);
    assert_eq!(stack.os().requests_to(CONTINUE), []);
}

#[tokio::test]
async fn of_eight_callers_one_continues() {
    let stack = holding(run("PAUSED", &[guarded("c-1")]), &[approval("approved")]).await;
    let (reply, gate) = finished().stalled();
    stack.os().pin("POST", CONTINUE, reply);
    let stack = std::sync::Arc::new(stack);
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        let stack = std::sync::Arc::clone(&stack);
        callers.spawn(async move { stack.send(go_on(&[])).await });
    }
    // Seven are refused while the one is still under way.
    for _ in 0..7 {
        let got = within("a refusal", callers.join_next()).await.unwrap().unwrap();
        assert_eq!(said(&got), (409, "already_continued".into()));
    }
    gate.open();
    let got = within("the one", callers.join_next()).await.unwrap().unwrap();
    assert_eq!(got.status, 200, "{got:?}");
    // The store may still show the old pause.
    assert_eq!(said(&stack.send(go_on(&[])).await), (409, "already_continued".into()));
    assert_eq!(stack.os().requests_to(CONTINUE).len(), 1);
    // Another pause of the same run is another matter.
    store(&stack, &run("PAUSED", &[guarded("c-2")]), &[approval("approved")]);
    assert_eq!(stack.send(go_on(&[])).await.status, 200);
    assert_eq!(stack.os().requests_to(CONTINUE).len(), 2);
}

#[tokio::test]
async fn a_continuation_that_agentos_refused_may_be_tried_again() {
    let stack = holding(run("PAUSED", &[guarded("c-1")]), &[approval("approved")]).await;
    stack.os().pin("POST", CONTINUE, Reply::detail(403, "not yet"));
    assert_eq!(stack.send(go_on(&[])).await.status, 403);
    stack.os().pin("POST", CONTINUE, finished());
    assert_eq!(stack.send(go_on(&[])).await.status, 200);
}

#[tokio::test]
async fn a_caller_that_goes_away_has_continued_all_the_same() {
    let stack = holding(run("PAUSED", &[guarded("c-1")]), &[approval("approved")]).await;
    let ids = json!({"run_id": "r-1", "session_id": "s-1"});
    let (reply, gate) = Reply::paced_sse(&[Event::new("RunContinued", ids.clone()), Event::new("RunCompleted", ids)]);
    stack.os().pin("POST", CONTINUE, reply);
    let streamed = Ask::post(CONTINUE).by(&Who::alice()).field("session_id", "s-1");
    let mut flow = stack.open(streamed.clone()).await;
    gate.open_once();
    flow.until("RunContinued").await;
    drop(flow);
    stack.os().wait_for_abort(CONTINUE).await;
    // AgentOS 2.x shows the run as paused for ever, though its tool has run.
    let got = stack.send(streamed).await;
    assert_eq!(said(&got), (409, "already_continued".into()));
    assert_eq!(stack.os().requests_to(CONTINUE).len(), 1);
}

#[tokio::test]
async fn a_run_with_an_approval_is_not_run_twice() {
    let done = json!({"tool_call_id": "c-1", "tool_name": "send_mail", "tool_args": {}, "result": "mailed"});
    let approved = json!({"tool_call_id": "c-1", "tool_name": "delete_record", "tool_args": {}, "result": "deleted", "approval_type": "required"});
    for fields in [
        &[("fork", "true")][..],
        &[("regenerate", "true"), ("replace_original", "false")],
        &[("continue_from", "last_user")],
    ] {
        let stack = holding(run("COMPLETED", std::slice::from_ref(&approved)), &[]).await;
        assert_eq!(said(&stack.send(go_on(fields)).await), (403, "forbidden".into()), "{fields:?}");
        // The row is enough, also where the run has lost its marks; and so for an administrator.
        store(&stack, &run("COMPLETED", std::slice::from_ref(&done)), &[approval("approved")]);
        let admin = Ask::post(CONTINUE).by(&Who::new("alice").role("admin")).field("session_id", "s-1");
        let admin = fields.iter().fold(admin, |ask, (name, value)| ask.field(name, value));
        assert_eq!(said(&stack.send(admin).await), (403, "forbidden".into()), "{fields:?}");
        assert_eq!(stack.os().requests_to(CONTINUE), []);

        store(&stack, &run("COMPLETED", std::slice::from_ref(&done)), &[]);
        assert_eq!(stack.send(go_on(fields)).await.status, 200, "{fields:?}");
        let sent = stack.os().requests_to(CONTINUE);
        assert_eq!(sent[0].form().get("tools"), None);
        let tools = [fields, &[("tools", "[{}]")]].concat();
        assert_eq!(said(&stack.send(go_on(&tools)).await), (400, "field_not_allowed".into()));
        assert_eq!(stack.os().requests_to(CONTINUE).len(), 1);
    }
}

#[tokio::test]
async fn teams_and_workflows_are_guarded_alike() {
    let requirement = json!({"id": "q-1", "member_run_id": "m-1", "tool_execution": guarded("c-1")});
    let mut answered = requirement.clone();
    answered["confirmation"] = json!(true);
    answered["tool_execution"]["confirmed"] = json!(true);
    let step = |requirement: &Value| json!([{"step_id": "s", "executor_run_id": "m-1", "executor_requirements": [requirement]}]);
    let cases = [
        ("teams", "newsroom", "team_id", "requirements", json!([requirement]), json!([answered])),
        ("workflows", "daily-report", "workflow_id", "step_requirements", step(&requirement), step(&answered)),
    ];
    for (kind, component, id, field, stored, expected) in cases {
        let stack = Stack::start().await;
        let path = format!("/{kind}/{component}/runs/r-1");
        let run = json!({"run_id": "r-1", id: component, "session_id": "s-1", "status": "PAUSED", field: stored});
        stack.os().pin("GET", &path, Reply::json(200, &run));
        let path = format!("{path}/continue");
        stack.os().pin("POST", &path, finished());
        let ask = || Ask::post(&path).by(&Who::alice()).field("session_id", "s-1").field("stream", "false");
        for (status, code) in [("pending", "approval_pending"), ("rejected", "approval_rejected")] {
            let mut row = approval(status);
            row["run_id"] = json!("m-1");
            stack.os().pin("GET", "/approvals", Reply::json(200, &json!({"data": [row]})));
            let got = stack.send(ask().field(field, &expected.to_string())).await;
            assert_eq!(said(&got), (409, code.to_owned()), "{kind}");
        }
        let mut row = approval("approved");
        row["run_id"] = json!("m-1");
        stack.os().pin("GET", "/approvals", Reply::json(200, &json!({"data": [row]})));
        let got = stack.send(ask()).await;
        assert_eq!(got.status, 200, "{kind}: {got:?}");
        let sent = stack.os().requests_to(&path);
        let form = sent[0].form();
        let list: Value = serde_json::from_str(form.get(field).unwrap()).unwrap();
        assert_eq!(list, expected, "{kind}");
    }
}

#[tokio::test]
async fn the_audit_log_names_the_approval() {
    let stack = holding(run("PAUSED", &[guarded("c-1")]), &[approval("approved")]).await;
    let got = stack.send(go_on(&[]).header("x-request-id", "audited-1")).await;
    assert_eq!(got.status, 200);
    let line = within("the audit log", async {
        loop {
            let text = std::fs::read_to_string(stack.folder().join("audit.jsonl")).unwrap_or_default();
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            if let Some(line) = lines.into_iter().find(|line| line["request_id"] == "audited-1") {
                return line;
            }
            stack.admin("/healthz").await;
        }
    })
    .await;
    let named = ["operation", "resource", "approvals", "outcome", "subject"].map(|name| line[name].clone());
    assert_eq!(named, [json!("continue_agent_run"), json!("Run::r-1"), json!(["a-1"]), json!("ok"), json!("alice")]);
}

/// Calls an MCP tool over the stateless protocol; returns its result.
async fn tool(stack: &Stack, who: &Who, name: &str, arguments: Value) -> Value {
    const VERSION: &str = "2026-07-28";
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": VERSION, "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    });
    let params = json!({"name": name, "arguments": arguments, "_meta": meta});
    let ask = Ask::post("/mcp").by(who).header("accept", "application/json, text/event-stream");
    let ask = ask.header("mcp-protocol-version", VERSION).header("mcp-method", "tools/call").header("mcp-name", name);
    let got = stack.send(ask.json(&json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}))).await;
    let text = got.text();
    let data =
        text.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ").unwrap_or(line)).ok());
    let answer = data.into_iter().find(|message| message.get("id") == Some(&json!(1)));
    answer.unwrap_or_else(|| panic!("no answer in {text}"))["result"].clone()
}

#[tokio::test]
async fn the_mcp_door_is_guarded_by_the_same_call() {
    let stack = Stack::start().await;
    let alice = Who::alice();
    let paused = tool(&stack, &alice, "run_agent", json!({"agent": "records", "message": "delete record 42"})).await;
    let text = paused["content"][1]["text"].as_str().unwrap_or_default();
    let handle =
        text.lines().find_map(|line| line.strip_prefix("run: ")).unwrap_or_else(|| panic!("no handle in {paused}"));
    let early = tool(&stack, &alice, "continue_run", json!({"run": handle, "confirm": true})).await;
    assert!(early["isError"] == json!(true) && early.to_string().contains("approval_pending"), "{early}");
    let continued = |stack: &Stack| {
        stack.os().requests().into_iter().filter(|r| r.path().ends_with("/continue")).collect::<Vec<_>>()
    };
    assert_eq!(continued(&stack), []);

    let started = stack.os().requests_to("/agents/records/runs");
    let approval = format!("approval-{}", started[0].form().get("run_id").unwrap());
    let adam = Who::new("adam").role("approver");
    let resolved =
        tool(&stack, &adam, "resolve_approval", json!({"approval_id": approval, "decision": "reject"})).await;
    assert_ne!(resolved["isError"], json!(true), "{resolved}");
    let done = tool(&stack, &alice, "continue_run", json!({"run": handle, "confirm": true})).await;
    assert_ne!(done["isError"], json!(true), "{done}");
    let sent = continued(&stack);
    assert_eq!(sent.len(), 1);
    let tools: Value = serde_json::from_str(sent[0].form().get("tools").unwrap()).unwrap();
    assert_eq!((&tools[0]["confirmed"], &tools[0]["tool_args"]), (&json!(false), &json!({"record_id": "42"})));
}
