//! Tests of paused runs: what a person is asked, in both eras, what each answer does, and that no answer works for
//! anybody or anything else.

use std::time::Duration;

use serde_json::{Value, json};

use super::double::{Asked, Feed, Script};
use super::runs::{READ, START, run_web};
use super::{Client, Fixture, Messages, handle, principal, texts};
use crate::mcp::{Decisions, RunSettings};

pub(super) const CONTINUE: &str = "POST main /agents/web/runs/r1/continue";
const RESOLVE: &str = "POST main /approvals/a1/resolve";
const FORMS: &str = "elicitation";

fn forms() -> Value {
    json!({FORMS: {"form": {}}})
}

fn confirmation(id: &str) -> Value {
    json!({"tool_call_id": id, "tool_name": "send", "tool_args": {"to": id}, "requires_confirmation": true,
        "confirmed": null})
}

fn approval() -> Value {
    let mut tool = confirmation("c1");
    tool["approval_type"] = json!("required");
    tool["approval_id"] = json!("a1");
    tool
}

/// A run that pauses on these tools, and completes when it is continued.
pub(super) fn pausing(tools: &Value) -> Script {
    let (feed, again) = (Feed::new(), Feed::new());
    feed.started();
    feed.event("RunPaused", json!({"run_id": "r1", "session_id": "s1", "tools": tools}));
    feed.end();
    again.event("RunContinued", json!({"run_id": "r1", "session_id": "s1"}));
    again.completed("gone on");
    Script::new()
        .stream(START, feed)
        .stream(CONTINUE, again)
        .json(READ, json!({"run_id": "r1", "session_id": "s1", "status": "PAUSED", "tools": tools}))
        .json(RESOLVE, json!({"id": "a1", "status": "done"}))
}

/// What was sent to go on: the decisions in the order of the tools.
pub(super) fn decisions(asked: &Asked) -> Vec<Value> {
    assert_eq!(asked.line, CONTINUE);
    let form: Vec<(String, String)> = url::form_urlencoded::parse(asked.body.as_bytes()).into_owned().collect();
    let tools = form.iter().find(|(name, _)| name == "tools").map_or("[]", |(_, tools)| tools);
    let tools: Vec<Value> = serde_json::from_str(tools).unwrap();
    tools.iter().map(|tool| tool["confirmed"].clone()).collect()
}

fn accepted(decision: &str) -> Value {
    json!({"action": "accept", "content": {"decision": decision}})
}

/// Runs the agent until somebody has to be asked.
async fn question(client: &Client<'_>) -> Value {
    let answer = client.ask("tools/call", run_web(json!({}))).await;
    assert_eq!(answer["result"]["resultType"], "input_required", "{answer}");
    answer["result"].clone()
}

/// The call again, with the same answer to every question.
fn reply(question: &Value, answer: &Value) -> Value {
    let keys = question["inputRequests"].as_object().unwrap().keys();
    let responses: serde_json::Map<String, Value> = keys.map(|key| (key.clone(), answer.clone())).collect();
    let mut call = run_web(json!({}));
    call["inputResponses"] = Value::Object(responses);
    call["requestState"] = question["requestState"].clone();
    call
}

fn able(fixture: &Fixture) -> Client<'_> {
    let mut client = fixture.modern("alice");
    client.able = forms();
    client
}

#[tokio::test]
async fn a_person_is_asked_by_the_stateless_client_and_the_run_goes_on() {
    for (answer, decision) in [
        (accepted("approve"), json!(true)),
        (accepted("reject"), json!(false)),
        (json!({"action": "decline"}), json!(false)),
    ] {
        let fixture = Fixture::new(pausing(&json!([confirmation("c1"), confirmation("c2")])));
        let client = able(&fixture);
        let question = question(&client).await;
        let requests = question["inputRequests"].as_object().unwrap();
        assert_eq!(requests.len(), 2);
        let first = requests.values().next().unwrap();
        assert_eq!(first["method"], "elicitation/create");
        assert_eq!(first["params"]["message"], "`web` wants to go on with send: {\"to\":\"c1\"}. Approve?");
        assert_eq!(first["params"]["mode"], "form");
        let result = client.ask("tools/call", reply(&question, &answer)).await["result"].clone();
        assert_eq!(texts(&result)[0], "gone on", "{result}");
        assert_eq!(decisions(&fixture.script.last()), [decision.clone(), decision], "{answer}");
        assert!(fixture.script.humans().contains(&CONTINUE.to_owned()), "a person said so");
    }
}

#[tokio::test]
async fn a_question_that_is_left_leaves_the_run_paused() {
    let fixture = Fixture::new(pausing(&json!([confirmation("c1")])));
    let client = able(&fixture);
    let question = question(&client).await;
    let left = reply(&question, &json!({"action": "cancel"}));
    let result = client.ask("tools/call", left).await["result"].clone();
    assert_eq!(texts(&result)[0], "The user has left the question open: nothing was decided.");
    assert!(texts(&result).last().unwrap().contains("status: paused"));
    let again = client.ask("tools/call", reply(&question, &accepted("approve"))).await;
    assert!(again["error"]["message"].as_str().unwrap().contains("used before"), "{again}");
    assert!(!fixture.script.lines().contains(&CONTINUE.to_owned()));
}

#[tokio::test]
async fn answers_that_are_missing_or_no_answers_are_asked_for_again() {
    let fixture = Fixture::new(pausing(&json!([confirmation("c1")])));
    let client = able(&fixture);
    let mut question = question(&client).await;
    for answer in [json!(null), json!({"action": "accept"}), accepted("maybe"), json!({"action": "later"})] {
        let next = client.ask("tools/call", reply(&question, &answer)).await["result"].clone();
        assert_eq!(next["resultType"], "input_required", "{next}");
        assert_eq!(next["inputRequests"], question["inputRequests"]);
        question = next;
    }
    let mut unasked = reply(&question, &accepted("approve"));
    unasked["inputResponses"]["nobody asked"] = json!({"action": "cancel"});
    let result = client.ask("tools/call", unasked).await["result"].clone();
    assert_eq!(texts(&result)[0], "gone on");
}

#[tokio::test]
async fn a_state_counts_once_for_its_caller_its_call_and_its_time() {
    let fixture = Fixture::new(pausing(&json!([confirmation("c1")])));
    let client = able(&fixture);
    let question = question(&client).await;
    let good = reply(&question, &accepted("approve"));
    let before = fixture.script.lines().len();
    let invalid = "this requestState is not valid for this call, or too old: call the tool again without it";

    let mut mallory = able(&fixture);
    mallory.principal = principal("acme", "mallory");
    let mut globex = able(&fixture);
    globex.principal = principal("globex", "alice");
    for thief in [&mallory, &globex] {
        let stolen = thief.ask("tools/call", good.clone()).await;
        assert_eq!((&stolen["error"]["code"], &stolen["error"]["message"]), (&json!(-32602), &json!(invalid)));
    }
    let mut other_arguments = good.clone();
    other_arguments["arguments"]["message"] = json!("something else");
    let mut other_tool = good.clone();
    other_tool["name"] = json!("continue_run");
    other_tool["arguments"] = json!({"run": "any"});
    let mut forged = good.clone();
    let state = good["requestState"].as_str().unwrap();
    forged["requestState"] = json!(state.replacen('a', "b", 1).replacen("mcp question", "run", 1) + "00");
    let mut none = good.clone();
    none["requestState"] = json!("");
    for wrong in [other_arguments, other_tool, forged, none] {
        let answer = client.ask("tools/call", wrong.clone()).await;
        assert_eq!(answer["error"]["message"], invalid, "{wrong}");
    }
    assert_eq!(fixture.script.lines().len(), before, "nothing reached the gateway");

    let first = client.ask("tools/call", good.clone()).await;
    assert_eq!(texts(&first["result"])[0], "gone on");
    let replayed = client.ask("tools/call", good).await;
    assert!(replayed["error"]["message"].as_str().unwrap().contains("used before"), "{replayed}");
    let continued = fixture.script.lines().into_iter().filter(|line| line == CONTINUE).count();
    assert_eq!(continued, 1);

    let short = RunSettings { decision_timeout: Duration::ZERO, ..RunSettings::default() };
    let fixture = Fixture::with(pausing(&json!([confirmation("c1")])), short);
    let client = able(&fixture);
    let late = super::pauses::question(&client).await;
    let answer = client.ask("tools/call", reply(&late, &accepted("approve"))).await;
    assert_eq!(answer["error"]["message"], invalid);
}

#[tokio::test]
async fn a_pause_that_has_changed_takes_no_answer_to_the_old_one() {
    let fixture = Fixture::new(pausing(&json!([confirmation("c1")])));
    let client = able(&fixture);
    let question = question(&client).await;
    let mut changed = confirmation("c1");
    changed["tool_args"]["to"] = json!("mallory");
    let stored = json!({"run_id": "r1", "session_id": "s1", "status": "PAUSED", "tools": [changed]});
    fixture.script.replace_json(READ, stored);
    let result = client.ask("tools/call", reply(&question, &accepted("approve"))).await["result"].clone();
    assert!(texts(&result)[0].contains("send {\"to\":\"mallory\"} (confirmation)"), "{result}");
    assert!(!fixture.script.lines().contains(&CONTINUE.to_owned()));
}

#[tokio::test]
async fn an_approval_is_asked_about_where_policy_lets_the_caller_resolve_it() {
    let fixture = Fixture::new(pausing(&json!([approval()])));
    let client = able(&fixture);
    let asked = question(&client).await;
    let answer = json!({"action": "accept", "content": {"decision": "reject", "note": "not today"}});
    let result = client.ask("tools/call", reply(&asked, &answer)).await["result"].clone();
    assert_eq!(texts(&result)[0], "gone on");
    let all = fixture.script.all();
    let [.., resolved, continued] = all.as_slice() else { panic!("{all:?}") };
    let body: Value = serde_json::from_str(&resolved.body).unwrap();
    assert_eq!(resolved.line, RESOLVE);
    assert_eq!(body, json!({"status": "rejected", "resolution_data": {"note": "not today"}}));
    assert_eq!(decisions(continued), Vec::<Value>::new(), "the gateway answers from the row");

    let fixture = Fixture::new(pausing(&json!([approval()])).deny(&["resolve_approval"]));
    let result = able(&fixture).call("run_agent", run_web(json!({}))["arguments"].clone()).await;
    assert!(texts(&result)[0].contains("(approval `a1`)"), "separation of duty: somebody else decides");
    assert!(!fixture.script.lines().contains(&RESOLVE.to_owned()));
}

#[tokio::test]
async fn clients_that_cannot_ask_get_the_pause_and_the_tools() {
    for (version, can) in
        [("2025-11-25", json!({})), ("2025-03-26", forms()), ("2025-11-25", json!({FORMS: {"url": {}}}))]
    {
        let fixture = Fixture::new(pausing(&json!([confirmation("c1")])));
        let client = fixture.able("alice", version, can).await;
        let result = client.call("run_agent", run_web(json!({}))["arguments"].clone()).await;
        assert!(texts(&result)[0].starts_with("The run is paused. It waits for:"), "{version}: {result}");
    }
}

#[tokio::test]
async fn inputs_are_asked_for_and_filled_in() {
    let tool = json!({"tool_call_id": "c1", "tool_name": "book", "tool_args": {}, "requires_user_input": true,
        "user_input_schema": [{"name": "room", "field_type": "int", "value": null}]});
    let fixture = Fixture::new(pausing(&json!([tool])));
    let client = able(&fixture);
    let asked = question(&client).await;
    let answer = json!({"action": "accept", "content": {"room": 7}});
    let result = client.ask("tools/call", reply(&asked, &answer)).await["result"].clone();
    assert_eq!(texts(&result)[0], "gone on");
    let body = fixture.script.last().body;
    let form: Vec<(String, String)> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    let sent: Value = serde_json::from_str(&form.last().unwrap().1).unwrap();
    assert_eq!(sent[0]["user_input_schema"][0]["value"], 7);
}

#[tokio::test]
async fn questions_with_options_are_asked_where_forms_have_choices() {
    let options = json!([{"label": "Rome", "description": "the old one"}, {"label": "Oslo"}]);
    let tool = json!({"tool_call_id": "c1", "tool_name": "ask_user", "tool_args": {}, "requires_user_input": true,
        "user_feedback_schema": [{"question": "Where to?", "multi_select": false, "options": options}]});
    let fixture = Fixture::new(pausing(&json!([tool])));
    let client = able(&fixture);
    let asked = question(&client).await;
    let answer = json!({"action": "accept", "content": {"Where to?": "Oslo"}});
    let result = client.ask("tools/call", reply(&asked, &answer)).await["result"].clone();
    assert_eq!(texts(&result)[0], "gone on");
    let body = fixture.script.last().body;
    let form: Vec<(String, String)> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    let sent: Value = serde_json::from_str(&form.last().unwrap().1).unwrap();
    assert_eq!(sent[0]["user_feedback_schema"][0]["selected_options"], json!(["Oslo"]));

    let fixture = Fixture::new(pausing(&json!([tool])));
    let older = fixture.able("alice", "2025-06-18", forms()).await;
    let result = older.call("run_agent", run_web(json!({}))["arguments"].clone()).await;
    assert!(texts(&result)[0].contains("(input: Where to?)"), "its forms have no such field: {result}");
    let inputs = json!({"run": handle(&result), "inputs": {"Where to?": "Rome"}});
    assert_eq!(texts(&older.call("continue_run", inputs).await)[0], "gone on");
}

#[tokio::test]
async fn a_run_may_pause_again_and_is_asked_about_again() {
    let (first, second) = (json!([confirmation("c1")]), json!([confirmation("c2")]));
    let again = Feed::new();
    again.event("RunContinued", json!({"run_id": "r1", "session_id": "s1"}));
    again.event("RunPaused", json!({"run_id": "r1", "session_id": "s1", "tools": second}));
    again.end();
    let fixture = Fixture::new(pausing(&first).stream(CONTINUE, again));
    let client = able(&fixture);
    let one = question(&client).await;
    let stored = json!({"run_id": "r1", "session_id": "s1", "status": "PAUSED", "tools": second});
    let script = std::sync::Arc::clone(&fixture.script);
    // AgentOS stores the second pause by the time that its event arrives.
    fixture.script.after(CONTINUE, move || script.replace_json(READ, stored.clone()));
    let two = client.ask("tools/call", reply(&one, &accepted("approve"))).await["result"].clone();
    assert_eq!(two["resultType"], "input_required", "{two}");
    assert_ne!(two["inputRequests"], one["inputRequests"]);
}

#[tokio::test]
async fn an_older_client_is_asked_in_the_stream_of_its_call() {
    for (answer, sent) in [
        (accepted("approve"), Some(true)),
        (accepted("reject"), Some(false)),
        (json!({"action": "decline"}), Some(false)),
        (json!({"action": "cancel"}), None),
    ] {
        let fixture = Fixture::new(pausing(&json!([confirmation("c1")])));
        let client = fixture.able("alice", "2025-06-18", json!({FORMS: {}})).await;
        let mut messages = Messages::of(client.request("tools/call", run_web(json!({})), None).await);
        let asked = messages.next().await.unwrap();
        assert_eq!(asked["method"], "elicitation/create", "{asked}");
        assert!(asked["params"]["message"].as_str().unwrap().contains("send: {\"to\":\"c1\"}"));

        // Whoever steals the session cannot answer in it.
        let reply = json!({"jsonrpc": "2.0", "id": asked["id"], "result": accepted("approve")}).to_string();
        let mut thief = fixture.modern("mallory");
        thief.session = client.session.clone();
        assert_eq!(thief.send("POST", &[], reply).await.status(), 404);

        let reply = json!({"jsonrpc": "2.0", "id": asked["id"], "result": answer}).to_string();
        assert_eq!(client.send("POST", &[], reply).await.status(), 202);
        let result = messages.rest().await.pop().unwrap()["result"].clone();
        match sent {
            Some(decision) => {
                assert_eq!(texts(&result)[0], "gone on", "{answer}");
                assert_eq!(decisions(&fixture.script.last()), [json!(decision)]);
            }
            None => {
                assert_eq!(texts(&result)[0], "The user has left the question open: nothing was decided.");
                assert!(!fixture.script.lines().contains(&CONTINUE.to_owned()));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_question_that_nobody_answers_has_an_end() {
    let fixture = Fixture::new(pausing(&json!([confirmation("c1")])));
    let client = fixture.able("alice", "2025-11-25", forms()).await;
    let started = tokio::time::Instant::now();
    let messages = Messages::of(client.request("tools/call", run_web(json!({})), Some("t")).await).rest().await;
    let result = messages.last().unwrap()["result"].clone();
    assert_eq!(texts(&result)[0], "Nobody answered the question in time: nothing was decided.", "{messages:?}");
    assert!(texts(&result)[1].starts_with("The run is paused."));
    assert_eq!(started.elapsed().as_secs(), 600);
    let beats = messages.iter().filter(|m| m["method"] == "notifications/progress").count();
    assert!(beats >= 8, "{beats}: the client hears that the call lives");
    assert!(!fixture.script.lines().contains(&CONTINUE.to_owned()));
}

#[tokio::test]
async fn a_call_that_is_cancelled_while_a_question_is_open_decides_nothing() {
    let fixture = Fixture::new(pausing(&json!([confirmation("c1")])));
    let client = fixture.able("alice", "2025-11-25", forms()).await;
    let mut messages = Messages::of(client.request("tools/call", run_web(json!({})), None).await);
    assert_eq!(messages.next().await.unwrap()["method"], "elicitation/create");
    let cancelled = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}});
    client.send("POST", &[], cancelled.to_string()).await;
    assert_eq!(client.tools().await.len(), 13);
    assert!(!fixture.script.lines().contains(&CONTINUE.to_owned()));
}

#[tokio::test]
async fn whoever_continues_without_a_decision_leaves_it_to_the_person() {
    let fixture = Fixture::new(pausing(&json!([confirmation("c1")])));
    let plain = fixture.modern("alice");
    let run = handle(&plain.call("run_agent", run_web(json!({}))["arguments"].clone()).await);
    let client = able(&fixture);
    let call = json!({"name": "continue_run", "arguments": {"run": run}});
    let asked = client.ask("tools/call", call.clone()).await["result"].clone();
    assert_eq!(asked["resultType"], "input_required", "{asked}");
    let mut answer = reply(&asked, &accepted("approve"));
    (answer["name"], answer["arguments"]) = (call["name"].clone(), call["arguments"].clone());
    let result = client.ask("tools/call", answer).await["result"].clone();
    assert_eq!(texts(&result)[0], "gone on");
}

#[tokio::test]
async fn where_only_humans_decide_the_tools_do_not() {
    let humans = RunSettings { decisions: Decisions::Humans, ..RunSettings::default() };
    let fixture = Fixture::with(pausing(&json!([confirmation("c1")])), humans);
    let plain = fixture.modern("alice");
    assert!(!plain.tools().await.contains(&"resolve_approval".to_owned()));
    let call = json!({"name": "resolve_approval", "arguments": {"approval_id": "a1", "decision": "approve"}});
    assert_eq!(plain.ask("tools/call", call).await["error"]["message"], "Unknown tool: resolve_approval");
    let run = handle(&plain.call("run_agent", run_web(json!({}))["arguments"].clone()).await);
    let said = plain.call("continue_run", json!({"run": run, "confirm": true})).await;
    assert!(texts(&said)[0].starts_with("only a person may decide about this run"), "{said}");
    assert!(!fixture.script.lines().contains(&CONTINUE.to_owned()));
    let client = able(&fixture);
    let call = json!({"name": "continue_run", "arguments": {"run": run}});
    let asked = client.ask("tools/call", call.clone()).await["result"].clone();
    let mut answer = reply(&asked, &accepted("approve"));
    (answer["name"], answer["arguments"]) = (call["name"].clone(), call["arguments"].clone());
    assert_eq!(texts(&client.ask("tools/call", answer).await["result"])[0], "gone on");
}
