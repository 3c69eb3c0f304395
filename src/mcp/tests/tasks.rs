//! Tests of tasks: who gets one, how it is followed, answered and cancelled, and whose it is.

use serde_json::{Value, json};

use super::double::{Feed, Script, answer, refusal};
use super::pauses::{CONTINUE, decisions, pausing};
use super::runs::{CANCEL, READ, START, run_web};
use super::{Client, Fixture, Messages, principal, texts};

const TASKS: &str = "io.modelcontextprotocol/tasks";

fn able(fixture: &Fixture) -> Client<'_> {
    let mut client = fixture.modern("alice");
    client.able = json!({"extensions": {TASKS: {}}, "elicitation": {}});
    client
}

async fn task(client: &Client<'_>) -> String {
    let made = client.ask("tools/call", run_web(json!({"wait_s": 0}))).await["result"].clone();
    assert_eq!((&made["resultType"], &made["status"]), (&json!("task"), &json!("working")), "{made}");
    assert_eq!((&made["ttlMs"], &made["pollIntervalMs"]), (&Value::Null, &json!(2000)));
    made["taskId"].as_str().unwrap().to_owned()
}

async fn get(client: &Client<'_>, id: &str) -> Value {
    client.ask("tasks/get", json!({"taskId": id})).await
}

fn stored(word: &str, more: Value) -> Value {
    let mut run = json!({"run_id": "r1", "session_id": "s1", "status": word});
    run.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    run
}

#[tokio::test]
async fn a_run_that_goes_on_is_a_task_until_it_ends() {
    let feed = Feed::new();
    let fixture = Fixture::new(Script::new().stream(START, feed.clone()));
    feed.started();
    let client = able(&fixture);
    let id = task(&client).await;
    assert_eq!(get(&client, &id).await["result"]["status"], "working", "not stored yet");
    fixture.script.replace_json(READ, stored("RUNNING", json!({})));
    assert_eq!(get(&client, &id).await["result"]["status"], "working");
    for (word, content, is_error) in [("COMPLETED", "done", false), ("ERROR", "boom", true)] {
        fixture.script.replace_json(READ, stored(word, json!({"content": content})));
        let ended = get(&client, &id).await["result"].clone();
        assert_eq!((&ended["resultType"], &ended["status"]), (&json!("complete"), &json!("completed")), "{ended}");
        assert_eq!(ended["result"]["isError"], is_error);
        assert!(texts(&ended["result"])[0].contains(content));
    }
    fixture.script.replace_json(READ, stored("CANCELLED", json!({})));
    assert_eq!(get(&client, &id).await["result"]["status"], "cancelled");
    fixture.script.replace(READ, |_| refusal(429, "rate_limited", "too many requests", Some(9)));
    let busy = get(&client, &id).await["result"].clone();
    assert_eq!((&busy["status"], &busy["pollIntervalMs"]), (&json!("working"), &json!(9000)));
    fixture.script.replace(READ, |_| refusal(403, "forbidden", "no", None));
    assert_eq!(get(&client, &id).await["error"]["data"]["code"], "forbidden");
}

#[tokio::test]
async fn a_task_is_cancelled_and_is_its_callers_own() {
    let feed = Feed::new();
    let script = Script::new().stream(START, feed.clone()).with(CANCEL, |_| answer(200, "application/json", "{}"));
    let fixture = Fixture::new(script);
    feed.started();
    let client = able(&fixture);
    let id = task(&client).await;
    let before = fixture.script.lines().len();
    for who in [principal("acme", "mallory"), principal("globex", "alice")] {
        let mut thief = able(&fixture);
        thief.principal = who;
        for (method, more) in
            [("tasks/get", json!({})), ("tasks/cancel", json!({})), ("tasks/update", json!({"inputResponses": {}}))]
        {
            let mut params = json!({"taskId": id});
            params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let answer = thief.ask(method, params).await;
            assert_eq!(
                (&answer["error"]["code"], &answer["error"]["message"]),
                (&json!(-32602), &json!("unknown task"))
            );
        }
    }
    assert_eq!(get(&client, "made up").await["error"]["message"], "unknown task");
    assert_eq!(fixture.script.lines().len(), before, "nothing reached the gateway");
    let ended = client.ask("tasks/cancel", json!({"taskId": id})).await;
    assert_eq!(ended["error"], Value::Null, "{ended}");
    fixture.script.asked(CANCEL).await;
}

#[tokio::test]
async fn older_clients_and_those_that_declare_nothing_get_no_task() {
    let feed = Feed::new();
    let fixture = Fixture::new(Script::new().stream(START, feed.clone()));
    feed.started();
    let plain = fixture.modern("alice");
    let result = plain.call("run_agent", run_web(json!({"wait_s": 0}))["arguments"].clone()).await;
    assert!(texts(&result)[0].starts_with("The run is still running"), "{result}");
    let refused = get(&plain, "any").await;
    assert_eq!(refused["error"]["code"], -32021, "{refused}");

    let again = Feed::new();
    fixture.script.replace_stream(START, again.clone());
    again.started();
    for version in ["2025-11-25", "2026-07-28"] {
        let again = Feed::new();
        fixture.script.replace_stream(START, again.clone());
        again.started();
        let legacy = fixture.able("alice", version, json!({"extensions": {TASKS: {}}})).await;
        let result = legacy.call("run_agent", run_web(json!({"wait_s": 0}))["arguments"].clone()).await;
        assert!(texts(&result)[0].starts_with("The run is still running"), "{version}: {result}");
        assert_ne!(get(&legacy, "any").await["error"], Value::Null);
    }
    let mut opening = super::initialize("2025-11-25");
    opening["params"]["capabilities"] = json!({"extensions": {TASKS: {}}});
    let response = plain.send("POST", &[], opening.to_string()).await;
    let opened = Messages::of(response).rest().await.pop().unwrap();
    assert_eq!(opened["result"]["capabilities"]["extensions"], Value::Null, "{opened}");
    let discovered = able(&fixture).ask("server/discover", json!({})).await;
    assert_eq!(discovered["result"]["capabilities"]["extensions"][TASKS], json!({}), "{discovered}");
}

#[tokio::test]
async fn a_paused_task_asks_and_goes_on_when_all_is_answered() {
    let tool = |id: &str| json!({"tool_call_id": id, "tool_name": "send", "tool_args": {}, "requires_confirmation": true, "confirmed": null});
    let tools = json!([tool("c1"), tool("c2")]);
    let feed = Feed::new();
    let fixture = Fixture::new(pausing(&tools).stream(START, feed.clone()));
    feed.started();
    let client = able(&fixture);
    let id = task(&client).await;
    let asked = get(&client, &id).await["result"].clone();
    assert_eq!(asked["status"], "input_required", "{asked}");
    let keys: Vec<String> = asked["inputRequests"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys.len(), 2);
    let update = |answers: Value| json!({"taskId": id, "inputResponses": answers});
    let yes = json!({"action": "accept", "content": {"decision": "approve"}});
    let no = json!({"action": "decline"});
    client.ask("tasks/update", update(json!({keys[0].as_str(): yes, "nobody asked": no}))).await;
    let left = get(&client, &id).await["result"]["inputRequests"].clone();
    assert_eq!(left.as_object().unwrap().keys().collect::<Vec<_>>(), [&keys[1]]);
    assert!(!fixture.script.lines().contains(&CONTINUE.to_owned()));
    let done = client.ask("tasks/update", update(json!({keys[1].as_str(): no}))).await;
    assert_eq!(done["error"], Value::Null, "{done}");
    assert_eq!(decisions(&fixture.script.last()), [json!(true), json!(false)]);
    assert_eq!(get(&client, &id).await["result"]["status"], "working", "AgentOS has not stored it yet");
}

#[tokio::test]
async fn a_client_that_cannot_ask_gets_a_paused_task_as_its_result() {
    let feed = Feed::new();
    let tool = json!({"tool_call_id": "c1", "tool_name": "send", "tool_args": {}, "requires_confirmation": true});
    let fixture = Fixture::new(pausing(&json!([tool])).stream(START, feed.clone()));
    feed.started();
    let mut client = able(&fixture);
    client.able = json!({"extensions": {TASKS: {}}});
    let id = task(&client).await;
    let ended = get(&client, &id).await["result"].clone();
    assert_eq!(ended["status"], "completed");
    assert!(texts(&ended["result"])[0].starts_with("The run is paused."), "{ended}");
}
