//! Tests of runs: progress, patience, pauses, cancellation, handles.

use std::time::Duration;

use serde_json::{Value, json};

use super::double::{Feed, Script, answer, refusal};
use super::{Fixture, Messages, handle, texts};
use crate::mcp::{Leaving, RunSettings};

pub(super) const START: &str = "POST main /agents/web/runs";
pub(super) const READ: &str = "GET main /agents/web/runs/r1?session_id=s1";
pub(super) const CANCEL: &str = "POST main /agents/web/runs/r1/cancel?session_id=s1";

pub(super) fn run_web(more: Value) -> Value {
    let mut arguments = json!({"agent": "web", "kind": "agent", "message": "hi & bye"});
    for (name, value) in more.as_object().unwrap() {
        arguments[name] = value.clone();
    }
    json!({"name": "run_agent", "arguments": arguments})
}

fn progress(message: &Value) -> (u64, &str) {
    assert_eq!(message["method"], "notifications/progress", "{message}");
    (message["params"]["progress"].as_f64().unwrap() as u64, message["params"]["message"].as_str().unwrap())
}

#[tokio::test]
async fn progress_arrives_before_the_run_ends() {
    let feed = Feed::new();
    let fixture = Fixture::new(Script::new().stream(START, feed.clone()));
    for client in [fixture.modern("alice"), fixture.legacy("alice").await] {
        let feed = Feed::new();
        fixture.script.replace_stream(START, feed.clone());
        feed.started();
        feed.event("ToolCallStarted", json!({"run_id": "r1", "tool": {"tool_name": "web_search"}}));
        let mut messages = Messages::of(client.request("tools/call", run_web(json!({})), Some("t")).await);
        assert_eq!(progress(&messages.next().await.unwrap()), (1, "tool web_search"));
        feed.event("RunContent", json!({"run_id": "r1", "content": "first\nhel"}));
        feed.event("RunContent", json!({"run_id": "r1", "content": "lo"}));
        assert_eq!(progress(&messages.next().await.unwrap()), (2, "hello"));
        feed.completed("hello world");
        let last = messages.rest().await.pop().unwrap();
        assert_eq!(last["result"]["isError"], false);
        assert_eq!(last["result"]["structuredContent"], Value::Null);
        let texts = texts(&last["result"]);
        assert_eq!(texts[0], "hello world");
        assert!(texts[1].starts_with("run: run.") && texts[1].ends_with("\nstatus: completed\nsession_id: s1"));
    }
    let asked = fixture.script.last();
    assert_eq!(asked.body, "stream=true&message=hi+%26+bye");
    assert!(asked.headers.contains(&("content-type".into(), "application/x-www-form-urlencoded".into())));
}

#[tokio::test(start_paused = true)]
async fn a_silent_run_beats_and_comes_back_when_patience_ends() {
    let feed = Feed::new();
    let fixture = Fixture::new(Script::new().stream(START, feed.clone()));
    feed.started();
    let client = fixture.modern("alice");
    let messages = Messages::of(client.request("tools/call", run_web(json!({"wait_s": 35})), Some("t")).await);
    let mut messages = messages.rest().await;
    let result = messages.pop().unwrap()["result"].clone();
    let beats: Vec<(u64, &str)> = messages.iter().map(progress).collect();
    assert_eq!(beats, [(1, "running, 9 s"), (2, "running, 19 s"), (3, "running, 29 s")]);
    let still = "The run is still running after 35 s. Call get_run with its `run` handle to wait for the answer.";
    assert_eq!(texts(&result)[0], still);
    assert!(texts(&result)[1].contains("\nstatus: running\n"));
    assert_eq!(result["isError"], false);

    assert_eq!(fixture.readers.count(), 1, "somebody reads the run on");
    feed.completed("done");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(fixture.readers.count(), 0, "to its end");
    assert_eq!(fixture.script.lines(), [START], "and it is not cancelled");
}

#[tokio::test(start_paused = true)]
async fn the_wait_suits_the_client() {
    for (name, seconds) in [("anything", 50), ("claude-code", 240), ("codex-mcp-client", 240)] {
        let feed = Feed::new();
        let fixture = Fixture::new(Script::new().stream(START, feed.clone()));
        feed.started();
        let mut client = fixture.modern("alice");
        client.name = name;
        let answer = client.ask("tools/call", run_web(json!({}))).await;
        assert!(texts(&answer["result"])[0].contains(&format!("after {seconds} s")), "{name}: {answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_nobody_can_take_over_is_waited_for() {
    let feed = Feed::new();
    let fixture = Fixture::new(Script::new().stream(START, feed.clone()));
    fixture.readers.refuse(true);
    feed.started();
    let client = fixture.modern("alice");
    let late = async {
        tokio::time::sleep(Duration::from_secs(100)).await;
        feed.completed("late");
    };
    let (result, ()) = tokio::join!(client.call("run_agent", run_web(json!({"wait_s": 0}))["arguments"].clone()), late);
    assert_eq!(texts(&result)[0], "late");
}

#[tokio::test(start_paused = true)]
async fn get_run_waits_for_the_end_and_takes_own_handles_only() {
    let feed = Feed::new();
    let mut polls = 0;
    let script = Script::new().stream(START, feed.clone()).with(READ, move |_| {
        polls += 1;
        match polls {
            1 => refusal(404, "not_found", "there is no such run", None),
            2 => answer(200, "application/json", json!({"status": "RUNNING"}).to_string()),
            3 => refusal(429, "rate_limited", "too many requests", Some(7)),
            _ => answer(200, "application/json", json!({"status": "COMPLETED", "content": {"n": 1}}).to_string()),
        }
    });
    let fixture = Fixture::new(script);
    feed.started();
    let alice = fixture.modern("alice");
    let arguments = run_web(json!({"wait_s": 0}))["arguments"].clone();
    let run = handle(&alice.call("run_agent", arguments).await);

    let result = alice.call("get_run", json!({"run": run, "wait_s": 0})).await;
    assert!(texts(&result)[0].starts_with("AgentOS has not stored this run yet"), "{result}");
    let started = tokio::time::Instant::now();
    let result = alice.call("get_run", json!({"run": run})).await;
    assert_eq!((texts(&result)[0].as_str(), started.elapsed().as_secs()), ("{\"n\":1}", 8));

    let unknown = "unknown run handle: pass the `run` value that run_agent returned to you";
    let mut globex = fixture.modern("alice");
    globex.principal = super::principal("globex", "alice");
    let before = fixture.script.lines().len();
    for foreign in [fixture.modern("bob"), globex] {
        for tool in ["get_run", "cancel_run", "continue_run"] {
            assert_eq!(texts(&foreign.call(tool, json!({"run": run})).await), [unknown]);
        }
    }
    assert_eq!(fixture.script.lines().len(), before, "nothing reached the gateway");
}

#[tokio::test]
async fn a_background_run_gives_its_handle_at_once() {
    let accepted = json!({"run_id": "r1", "session_id": "s1", "status": "PENDING"});
    let script = Script::new().with(START, move |_| answer(202, "application/json", accepted.to_string()));
    let fixture = Fixture::new(script);
    let arguments = run_web(json!({"background": true, "session_id": "s1"}))["arguments"].clone();
    let result = fixture.modern("alice").call("run_agent", arguments).await;
    assert!(texts(&result)[1].contains("status: running"), "{result}");
    assert_eq!(fixture.script.last().body, "stream=false&background=true&session_id=s1&message=hi+%26+bye");
}

#[tokio::test]
async fn refusals_are_results_that_a_model_can_act_on() {
    let fixture =
        Fixture::new(Script::new().with(START, |_| refusal(429, "too_many_runs", "2 runs are under way", Some(5))));
    let client = fixture.modern("alice");
    let result = client.call("run_agent", run_web(json!({}))["arguments"].clone()).await;
    assert_eq!(result["isError"], true);
    assert_eq!(texts(&result), ["too_many_runs: 2 runs are under way. Retry after 5 s\nrequest_id: req-1"]);

    let detail = json!({"detail": "Agent not found"}).to_string();
    let fixture = Fixture::new(Script::new().with(START, move |_| answer(404, "application/json", detail.clone())));
    let result = fixture.modern("alice").call("run_agent", run_web(json!({}))["arguments"].clone()).await;
    assert_eq!(texts(&result), ["the agent service answered 404: Agent not found"]);

    let trace = json!({"detail": "Traceback: secret"}).to_string();
    let fixture = Fixture::new(Script::new().with(START, move |_| answer(500, "application/json", trace.clone())));
    let result = fixture.modern("alice").call("run_agent", run_web(json!({}))["arguments"].clone()).await;
    assert_eq!(texts(&result), ["the agent service answered 500"]);
}

#[tokio::test]
async fn failed_and_broken_runs_say_so() {
    let feed = Feed::new();
    let fixture = Fixture::new(Script::new().stream(START, feed.clone()));
    feed.started();
    feed.event("RunError", json!({"run_id": "r1", "content": "boom requested"}));
    feed.end();
    let client = fixture.modern("alice");
    let result = client.call("run_agent", run_web(json!({}))["arguments"].clone()).await;
    assert_eq!((&result["isError"], texts(&result)[0].as_str()), (&json!(true), "The run failed: boom requested"));

    for ending in ["", "event: error\ndata: {\"event\":\"error\",\"code\":\"upstream_reset\",\"run_id\":\"r1\"}\n\n"] {
        let feed = Feed::new();
        fixture.script.replace_stream(START, feed.clone());
        feed.started();
        feed.event("RunContent", json!({"run_id": "r1", "content": "half"}));
        feed.bytes(ending);
        feed.end();
        let result = client.call("run_agent", run_web(json!({}))["arguments"].clone()).await;
        let why = if ending.is_empty() { "the stream ended before the run did" } else { "upstream_reset" };
        let text = format!(
            "The stream of the run broke off ({why}). Call get_run to see what became of it. Its answer so far:\n\nhalf"
        );
        assert_eq!((&result["isError"], &texts(&result)[0]), (&json!(true), &text));
    }
}

#[tokio::test]
async fn a_paused_run_names_what_it_waits_for_and_continues() {
    let tools = json!([
        {"tool_call_id": "c1", "tool_name": "delete_file", "tool_args": {"path": "/x"}, "requires_confirmation": true,
            "confirmed": null, "approval_type": "required", "approval_id": "a1"},
        {"tool_call_id": "c2", "tool_name": "send", "tool_args": {}, "requires_confirmation": true, "confirmed": null},
    ]);
    let feed = Feed::new();
    let again = Feed::new();
    let script = Script::new()
        .stream(START, feed.clone())
        .stream("POST main /agents/web/runs/r1/continue", again.clone())
        .json(READ, json!({"run_id": "r1", "session_id": "s1", "status": "PAUSED", "tools": tools}));
    let fixture = Fixture::new(script);
    feed.started();
    feed.event("RunPaused", json!({"run_id": "r1", "session_id": "s1", "tools": tools}));
    feed.end();
    let client = fixture.modern("alice");
    let result = client.call("run_agent", run_web(json!({}))["arguments"].clone()).await;
    let expected = "The run is paused. It waits for:\n\
        - delete_file {\"path\":\"/x\"} (approval `a1`)\n\
        - send {} (confirmation)\n\
        Show this to the user and ask for a decision; do not decide yourself.\n\
        Approvals: somebody who may approve calls resolve_approval with the approval_id; then call continue_run.\n\
        Confirmations: call continue_run with `confirm` true or false.";
    assert_eq!((texts(&result)[0].as_str(), &result["isError"]), (expected, &json!(false)));

    let run = handle(&result);
    let unsaid = client.call("continue_run", json!({"run": run})).await;
    assert_eq!(texts(&unsaid), ["`send` waits for a confirmation: ask the user, then pass `confirm`"]);
    again.event("RunContinued", json!({"run_id": "r1", "session_id": "s1"}));
    again.completed("sent");
    let result = client.call("continue_run", json!({"run": run, "confirm": true})).await;
    assert_eq!(texts(&result)[0], "sent");
    let form = fixture.script.last().body;
    let form: Vec<(String, String)> = url::form_urlencoded::parse(form.as_bytes()).into_owned().collect();
    assert_eq!(form[..2], [("stream".into(), "true".into()), ("session_id".into(), "s1".into())]);
    let sent: Value = serde_json::from_str(&form[2].1).unwrap();
    let decided: Vec<&Value> = sent.as_array().unwrap().iter().map(|tool| &tool["confirmed"]).collect();
    assert_eq!(
        (form[2].0.as_str(), decided),
        ("tools", vec![&json!(null), &json!(true)]),
        "`confirm` does not answer for an approval: the gateway writes what its row says"
    );
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_the_run() {
    let feed = Feed::new();
    let fixture = Fixture::new(Script::new().stream(START, feed.clone()).json(CANCEL, json!({})));
    feed.started();
    feed.event("ToolCallStarted", json!({"run_id": "r1", "tool": {"tool_name": "t"}}));
    let client = fixture.modern("alice");
    let response = client.request("tools/call", run_web(json!({})), Some("t")).await;
    drop(response);
    fixture.script.asked(CANCEL).await;
    feed.dropped().await;
}

#[tokio::test]
async fn an_older_client_cancels_by_notification_and_not_by_going_away() {
    let feed = Feed::new();
    let fixture = Fixture::new(Script::new().stream(START, feed.clone()).json(CANCEL, json!({})));
    feed.started();
    feed.event("ToolCallStarted", json!({"run_id": "r1", "tool": {"tool_name": "t"}}));
    let client = fixture.legacy("alice").await;
    let mut messages = Messages::of(client.request("tools/call", run_web(json!({})), Some("t")).await);
    messages.next().await.unwrap();
    drop(messages);
    assert_eq!(client.tools().await.len(), 13, "the session goes on");
    assert_eq!(fixture.script.lines(), [START], "and so does the run");
    let cancelled = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}});
    client.send("POST", &[], cancelled.to_string()).await;
    fixture.script.asked(CANCEL).await;
    feed.dropped().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_holds_nobody_up() {
    let feed = Feed::new();
    let fixture = Fixture::new(Script::new().stream(START, feed.clone()));
    let client = fixture.legacy("alice").await;
    feed.started();
    let unread = client.request("tools/call", run_web(json!({"wait_s": 600})), Some("t")).await;
    for n in 0..400 {
        feed.event("RunContent", json!({"run_id": "r1", "content": format!("{n}\n")}));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(client.tools().await.len(), 13);
    feed.completed("done");
    let messages = Messages::of(unread).rest().await;
    assert_eq!(texts(&messages.last().unwrap()["result"])[0], "done");
    assert!(messages.len() <= 9, "{} messages were kept for it", messages.len());
}

#[tokio::test]
async fn cancel_run_says_whether_it_is_confirmed() {
    let feed = Feed::new();
    let mut first = true;
    let script = Script::new().stream(START, feed.clone()).with(CANCEL, move |_| {
        if std::mem::take(&mut first) {
            refusal(202, "cancel_unconfirmed", "not seen to end", None)
        } else {
            answer(200, "application/json", "{}")
        }
    });
    let fixture = Fixture::new(script);
    feed.started();
    let client = fixture.modern("alice");
    let run = handle(&client.call("run_agent", run_web(json!({"wait_s": 0}))["arguments"].clone()).await);
    for text in [
        "The cancellation was sent, but the run has not been seen to end. Call get_run to see.",
        "The run is cancelled.",
    ] {
        let result = client.call("cancel_run", json!({"run": run})).await;
        assert_eq!((texts(&result)[0].as_str(), &result["isError"]), (text, &json!(false)));
    }
}

#[tokio::test]
async fn teams_and_workflows_end_with_their_own_events_only() {
    for (kind, plural, started, nested, completed) in [
        ("team", "teams", "TeamRunStarted", "RunCompleted", "TeamRunCompleted"),
        ("team", "teams", "TeamRunStarted", "TeamRunCompleted", "TeamRunCompleted"),
        ("workflow", "workflows", "WorkflowStarted", "RunCompleted", "WorkflowCompleted"),
    ] {
        let feed = Feed::new();
        let fixture = Fixture::new(Script::new().stream(&format!("POST main /{plural}/x/runs"), feed.clone()));
        feed.event(started, json!({"run_id": "r1", "session_id": "s1"}));
        feed.event(nested, json!({"run_id": "r2", "session_id": "s1", "content": "a part"}));
        feed.event(completed, json!({"run_id": "r1", "session_id": "s1", "content": "the whole"}));
        feed.end();
        let arguments = json!({"agent": "x", "kind": kind, "message": "go"});
        let result = fixture.modern("alice").call("run_agent", arguments).await;
        assert_eq!(texts(&result)[0], "the whole", "{kind} {nested}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_header_says_how_long_to_wait_within_the_operators_limit() {
    for (asked, seconds) in [("7", 7), ("100000", 600)] {
        let feed = Feed::new();
        let fixture = Fixture::new(Script::new().stream(START, feed.clone()));
        feed.started();
        let client = fixture.modern("alice");
        let result = client.call_with(&[("x-mcp-wait", asked)], run_web(json!({}))).await;
        assert!(texts(&result["result"])[0].contains(&format!("after {seconds} s")), "{result}");
    }
    let fixture =
        Fixture::with(Script::new(), RunSettings { wait_max: Duration::from_secs(9), ..RunSettings::default() });
    let feed = Feed::new();
    fixture.script.replace_stream(START, feed.clone());
    feed.started();
    let result = fixture.modern("alice").call("run_agent", run_web(json!({"wait_s": 500}))["arguments"].clone()).await;
    assert!(texts(&result)[0].contains("after 9 s"), "{result}");
    let wrong = fixture.modern("alice").call_with(&[("x-mcp-wait", "soon")], run_web(json!({}))).await;
    assert_eq!(wrong["error"]["message"], "the header X-MCP-Wait must be a whole number of seconds");
}

#[tokio::test(start_paused = true)]
async fn progress_is_paced_and_short_and_only_grows() {
    let feed = Feed::new();
    let fixture = Fixture::new(Script::new().stream(START, feed.clone()));
    feed.started();
    let client = fixture.modern("alice");
    let response = client.request("tools/call", run_web(json!({})), Some("t")).await;
    let talk = async {
        for n in 0..500 {
            feed.event("RunContent", json!({"run_id": "r1", "content": format!("{n} {}\u{202e}", "x".repeat(400))}));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        feed.completed("done");
    };
    let (messages, ()) = tokio::join!(Messages::of(response).rest(), talk);
    let said: Vec<(u64, &str)> = messages.iter().take(messages.len() - 1).map(progress).collect();
    assert!((2..=21).contains(&said.len()), "{} messages in 5 s", said.len());
    assert!(said.windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert!(said.iter().all(|(_, text)| text.chars().count() <= 200 && !text.contains(['\n', '\u{202e}'])));
}

#[tokio::test(start_paused = true)]
async fn a_run_of_ten_minutes_completes_for_patient_and_impatient_clients() {
    for wait in [50, 600] {
        let feed = Feed::new();
        let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let ended = std::sync::Arc::clone(&done);
        let script = Script::new().stream(START, feed.clone()).with(READ, move |_| {
            let word = if ended.load(std::sync::atomic::Ordering::SeqCst) { "COMPLETED" } else { "RUNNING" };
            answer(200, "application/json", json!({"status": word, "content": "at last"}).to_string())
        });
        let fixture = Fixture::new(script);
        feed.started();
        let run = async {
            tokio::time::sleep(Duration::from_secs(605)).await;
            feed.completed("at last");
            done.store(true, std::sync::atomic::Ordering::SeqCst);
        };
        let client = fixture.modern("alice");
        let follow = async {
            let (mut arguments, mut tool, mut calls) =
                (run_web(json!({"wait_s": wait}))["arguments"].clone(), "run_agent", 0);
            loop {
                let at = tokio::time::Instant::now();
                let call = json!({"name": tool, "arguments": arguments});
                let mut messages = Messages::of(client.request("tools/call", call, Some("t")).await).rest().await;
                assert!(at.elapsed() <= Duration::from_secs(wait + 2), "{tool} took {:?}", at.elapsed());
                let result = messages.pop().unwrap()["result"].clone();
                calls += 1;
                // A client that takes progress as a sign of life hears something at least every 12 s.
                assert!(
                    messages.len() as u64 * 12 + 12 >= at.elapsed().as_secs(),
                    "{} in {:?}",
                    messages.len(),
                    at.elapsed()
                );
                if texts(&result).last().unwrap().contains("status: completed") {
                    return (texts(&result)[0].clone(), calls);
                }
                (tool, arguments) = ("get_run", json!({"run": handle(&result), "wait_s": wait}));
            }
        };
        let ((text, calls), ()) = tokio::join!(follow, run);
        assert_eq!((text.as_str(), calls), ("at last", if wait == 50 { 13 } else { 2 }));
    }
}

#[tokio::test]
async fn leaving_keeps_the_run_where_it_is_configured_so() {
    let keep = RunSettings { on_disconnect: Leaving::Keep, on_cancel: Leaving::Keep, ..RunSettings::default() };
    let feed = Feed::new();
    let fixture = Fixture::with(Script::new().stream(START, feed.clone()), keep);
    feed.started();
    feed.event("ToolCallStarted", json!({"run_id": "r1", "tool": {"tool_name": "t"}}));
    let modern = fixture.modern("alice");
    drop(modern.request("tools/call", run_web(json!({})), Some("t")).await);
    while fixture.readers.count() == 0 {
        tokio::task::yield_now().await;
    }
    let again = Feed::new();
    fixture.script.replace_stream(START, again.clone());
    again.started();
    again.event("ToolCallStarted", json!({"run_id": "r1", "tool": {"tool_name": "t"}}));
    let legacy = fixture.legacy("alice").await;
    let mut messages = Messages::of(legacy.request("tools/call", run_web(json!({})), Some("t")).await);
    messages.next().await.unwrap();
    let cancelled = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}});
    legacy.send("POST", &[], cancelled.to_string()).await;
    while fixture.readers.count() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.script.lines(), [START, START], "nobody cancelled");
    feed.completed("done");
    again.completed("done");
    while fixture.readers.count() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_run_that_policy_does_not_let_cancel_is_read_on() {
    let feed = Feed::new();
    let script = Script::new().stream(START, feed.clone()).with(CANCEL, |_| refusal(403, "forbidden", "no", None));
    let fixture = Fixture::new(script);
    feed.started();
    feed.event("ToolCallStarted", json!({"run_id": "r1", "tool": {"tool_name": "t"}}));
    drop(fixture.modern("alice").request("tools/call", run_web(json!({})), Some("t")).await);
    fixture.script.asked(CANCEL).await;
    while fixture.readers.count() == 0 {
        tokio::task::yield_now().await;
    }
    feed.completed("done");
}

#[tokio::test]
async fn a_long_answer_comes_in_parts() {
    let long: String = (0..40_000).map(|n| format!("{n} ")).collect();
    let feed = Feed::new();
    let stored = json!({"run_id": "r1", "session_id": "s1", "status": "COMPLETED", "content": long});
    let fixture = Fixture::new(Script::new().stream(START, feed.clone()).json(READ, stored));
    feed.started();
    feed.completed(&long);
    let client = fixture.modern("alice");
    let mut result = client.call("run_agent", run_web(json!({}))["arguments"].clone()).await;
    let (mut whole, mut parts) = (String::new(), 0);
    loop {
        let text = texts(&result)[0].clone();
        parts += 1;
        let Some((part, note)) = text.rsplit_once("\n[truncated: ") else {
            whole.push_str(&text);
            break;
        };
        whole.push_str(part);
        let next: usize = note.trim_end_matches(']').rsplit_once(' ').unwrap().1.parse().unwrap();
        assert!(note.contains("call get_run with `offset` "), "{note}");
        result = client.call("get_run", json!({"run": handle(&result), "offset": next})).await;
    }
    assert_eq!((whole == long, parts), (true, 3));
    let past = client.call("get_run", json!({"run": handle(&result), "offset": 900_000})).await;
    assert_eq!(texts(&past)[0], format!("[the answer has {} characters: there is nothing at 900000]", long.len()));
    let wrong = client.call("get_run", json!({"run": handle(&result), "offset": 1.5})).await;
    assert_eq!(texts(&wrong), ["`offset` must be a whole number, as a result gave it"]);
}

#[tokio::test]
async fn what_a_run_made_is_shown_or_linked() {
    let feed = Feed::new();
    let fixture = Fixture::new(Script::new().stream(START, feed.clone()));
    feed.started();
    let made = json!({"run_id": "r1", "session_id": "s1", "content": "see", "images": [{"content": "aGk="}],
        "files": [{"content": "aGk=", "filename": "r.pdf", "mime_type": "application/pdf"}]});
    feed.event("RunCompleted", made);
    feed.end();
    let result = fixture.modern("alice").call("run_agent", run_web(json!({}))["arguments"].clone()).await;
    let kinds: Vec<&str> = result["content"].as_array().unwrap().iter().map(|b| b["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["text", "image", "resource_link", "text"]);
    let uri = result["content"][2]["uri"].as_str().unwrap();
    let run = result["content"][3]["text"].as_str().unwrap().lines().next().unwrap().trim_start_matches("run: ");
    assert_eq!(uri, format!("agno://runs/{run}/media/1"));
}

#[tokio::test]
async fn an_answer_too_large_for_its_event_is_read_from_the_stored_run() {
    let long = "y".repeat(5 * 1024 * 1024);
    let feed = Feed::new();
    let stored = json!({"run_id": "r1", "session_id": "s1", "status": "COMPLETED", "content": long});
    let fixture = Fixture::new(Script::new().stream(START, feed.clone()).json(READ, stored));
    feed.started();
    feed.completed(&long);
    let result = fixture.modern("alice").call("run_agent", run_web(json!({}))["arguments"].clone()).await;
    assert!(
        texts(&result)[0].contains(&format!("[truncated: {} more characters", long.len() - 80_000)),
        "{}",
        texts(&result)[1]
    );
}

#[tokio::test]
async fn calls_under_way_are_bounded_per_principal() {
    let one = RunSettings { calls_in_flight: 1, ..RunSettings::default() };
    let feed = Feed::new();
    let fixture = Fixture::with(Script::new().stream(START, feed.clone()), one);
    feed.started();
    feed.event("ToolCallStarted", json!({"run_id": "r1", "tool": {"tool_name": "t"}}));
    let client = fixture.modern("alice");
    let mut messages = Messages::of(client.request("tools/call", run_web(json!({})), Some("t")).await);
    messages.next().await.unwrap();
    let refused = client.call("whoami", json!({})).await;
    assert_eq!(texts(&refused), ["too_many_calls: 1 calls of yours are under way: wait for one to end"]);
    assert_eq!(refused["isError"], true);
    assert_eq!(fixture.modern("bob").call("whoami", json!({})).await["isError"], false);
    feed.completed("done");
    messages.rest().await;
    assert_eq!(client.call("whoami", json!({})).await["isError"], false);
}
