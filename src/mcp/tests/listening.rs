//! Tests of listening: who is told of which change, by which era, and until when.

use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use super::double::{Feed, Script};
use super::{Client, Fixture, Messages, handle};

const LISTEN: &str = "subscriptions/listen";

fn script() -> Script {
    Script::new()
        .json("GET main /agents", json!([{"id": "web"}]))
        .json("GET main /teams", json!([]))
        .json("GET main /workflows", json!([]))
}

fn everything() -> Value {
    json!({"toolsListChanged": true, "promptsListChanged": true, "resourcesListChanged": true})
}

/// Opens a listening stream and reads its acknowledgement.
pub(super) async fn listen(client: &Client<'_>, notifications: Value) -> (Messages, Value) {
    let mut messages = Messages::of(client.request(LISTEN, json!({ "notifications": notifications }), None).await);
    let first = messages.next().await.unwrap();
    assert_eq!(first["method"], "notifications/subscriptions/acknowledged", "{first}");
    (messages, first["params"]["notifications"].clone())
}

/// The common stream of a session.
async fn stream(client: &Client<'_>) -> Messages {
    let headers = [("mcp-protocol-version", super::LEGACY), ("accept", "text/event-stream")];
    let response = client.send("GET", &headers, "").await;
    assert_eq!(response.status(), StatusCode::OK);
    Messages::of(response)
}

/// The methods of the messages that come within a minute and a half: lists are compared once a minute at least.
pub(super) async fn told(messages: &mut Messages) -> Vec<String> {
    let mut methods = Vec::new();
    while let Ok(Some(message)) = tokio::time::timeout(Duration::from_secs(90), messages.next()).await {
        methods.push(message["method"].as_str().unwrap_or("result").to_owned());
    }
    methods
}

/// Does something while the client reads, and gets nothing.
async fn while_reading<T>(messages: &mut Messages, work: impl Future<Output = T>) -> T {
    tokio::select! {
        done = work => done,
        message = messages.next() => panic!("nothing was to be told: {message:?}"),
    }
}

/// Lets the background look once, as the first request of anybody does.
async fn settle(fixture: &Fixture) {
    fixture.modern("settler").ask("resources/list", json!({})).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_agent_is_told_to_those_who_asked_for_it() {
    let fixture = Fixture::new(script());
    settle(&fixture).await;
    let (modern, legacy) = (fixture.modern("alice"), fixture.legacy("alice").await);
    let (mut all, honoured) = listen(&modern, everything()).await;
    assert_eq!(honoured, everything());
    let (mut tools, _) = listen(&modern, json!({"toolsListChanged": true})).await;
    let mut session = stream(&legacy).await;
    assert_eq!(told(&mut all).await, Vec::<String>::new(), "nothing has changed");
    fixture.script.change("GET main /agents", json!([{"id": "web"}, {"id": "new"}]));
    let lists = ["notifications/prompts/list_changed", "notifications/resources/list_changed"];
    assert_eq!(told(&mut all).await, lists);
    assert_eq!(told(&mut session).await, lists);
    assert_eq!(told(&mut tools).await, Vec::<String>::new(), "the tools are the same");
}

#[tokio::test(start_paused = true)]
async fn only_callers_whose_list_changed_are_told() {
    let fixture = Fixture::new(script().hide("bob", "new"));
    settle(&fixture).await;
    let (alice, bob) = (fixture.modern("alice"), fixture.modern("bob"));
    let (mut for_alice, _) = listen(&alice, json!({"resourcesListChanged": true})).await;
    let (mut for_bob, _) = listen(&bob, json!({"resourcesListChanged": true})).await;
    fixture.script.change("GET main /agents", json!([{"id": "web"}, {"id": "new"}]));
    assert_eq!(told(&mut for_alice).await, ["notifications/resources/list_changed"]);
    assert_eq!(told(&mut for_bob).await, Vec::<String>::new(), "bob may not see the new agent");
    // A policy shows it to bob: nothing has changed for alice.
    fixture.script.unhide("bob");
    fixture.script.touch();
    assert_eq!(told(&mut for_bob).await, ["notifications/resources/list_changed"]);
    assert_eq!(told(&mut for_alice).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn messages_carry_the_subscription_they_belong_to() {
    let fixture = Fixture::new(script());
    settle(&fixture).await;
    let (mut messages, _) = listen(&fixture.modern("alice"), json!({"resourcesListChanged": true})).await;
    fixture.script.change("GET main /agents", json!([]));
    let message = messages.next().await.unwrap();
    assert_eq!(message["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], 8, "{message}");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_credential_ends_its_streams() {
    let fixture = Fixture::new(script());
    settle(&fixture).await;
    let legacy = fixture.legacy("alice").await;
    let (mut modern, _) = listen(&fixture.modern("alice"), everything()).await;
    let (mut other, _) = listen(&fixture.modern("bob"), everything()).await;
    let mut session = stream(&legacy).await;
    fixture.script.end("alice");
    assert_eq!(modern.next().await.unwrap()["result"]["resultType"], "complete", "an end, not a break");
    assert_eq!(modern.next().await, None);
    assert_eq!(session.next().await, None);
    fixture.script.change("GET main /agents", json!([]));
    assert_eq!(told(&mut other).await.len(), 2, "bob is still told");
}

#[tokio::test(start_paused = true)]
async fn a_watched_run_is_told_of_while_it_may_be_read() {
    let feed = Feed::new();
    let run = json!({"run_id": "r1", "session_id": "s1", "status": "RUNNING"});
    let line = "GET main /agents/web/runs/r1?session_id=s1";
    let fixture = Fixture::new(script().stream("POST main /agents/web/runs", feed.clone()).json(line, run.clone()));
    let (alice, bob) = (fixture.modern("alice"), fixture.modern("bob"));
    feed.started();
    let started = json!({"agent": "web", "kind": "agent", "message": "x", "wait_s": 0});
    let uri = format!("agno://runs/{}", handle(&alice.call("run_agent", started).await));

    let wanted =
        json!({"resourceSubscriptions": [uri, "agno://sessions/s1", "agno://runs/forged", "agno://agents/web"]});
    let (mut for_alice, honoured) = listen(&alice, wanted.clone()).await;
    assert_eq!(
        honoured["resourceSubscriptions"],
        json!([uri, "agno://agents/web"]),
        "what cannot be watched is left out"
    );
    let (_, honoured) = listen(&bob, wanted).await;
    assert_eq!(honoured["resourceSubscriptions"], json!(["agno://agents/web"]), "a foreign run is not confirmed");

    fixture.script.asked(line).await;
    let mut done = run.clone();
    done["status"] = json!("COMPLETED");
    fixture.script.change(line, done);
    let message = for_alice.next().await.unwrap();
    assert_eq!(
        (&message["method"], &message["params"]["uri"]),
        (&json!("notifications/resources/updated"), &json!(uri))
    );
    let asked = fixture.script.lines().len();
    assert_eq!(told(&mut for_alice).await, Vec::<String>::new());
    assert_eq!(fixture.script.lines().len(), asked, "a run that has ended is read no more");
}

#[tokio::test(start_paused = true)]
async fn sessions_subscribe_and_unsubscribe() {
    let line = "GET main /agents/web/runs/r1?session_id=s1";
    let row = |status: &str| json!({"run_id": "r1", "session_id": "s1", "status": status});
    let fixture = Fixture::new(script().json(line, row("RUNNING")));
    settle(&fixture).await;
    let sealed = json!({"cluster": "main", "kind": "agent", "component": "web", "session_id": "s1", "run_id": "r1",
        "tenant": "acme", "subject": "alice"});
    let uri =
        format!("agno://runs/{}", super::super::Path::seal(&*fixture.script, "run", sealed.to_string().as_bytes()));
    let (alice, bob) = (fixture.legacy("alice").await, fixture.legacy("bob").await);
    let (mut for_alice, mut for_bob) = (stream(&alice).await, stream(&bob).await);
    assert_eq!(bob.ask("resources/subscribe", json!({"uri": uri})).await["error"]["code"], -32002);
    for what in ["agno://sessions/s1", "agno://agents/nope", "nothing"] {
        assert_eq!(alice.ask("resources/subscribe", json!({"uri": what})).await["error"]["code"], -32002, "{what}");
    }
    for uri in [uri.as_str(), "agno://agents/web"] {
        assert_eq!(alice.ask("resources/subscribe", json!({"uri": uri})).await["result"], json!({}), "{uri}");
    }
    while_reading(&mut for_alice, fixture.script.asked(line)).await;
    fixture.script.change(line, row("PAUSED"));
    let message = for_alice.next().await.unwrap();
    assert_eq!(message["params"]["uri"], json!(uri), "{message}");
    fixture.script.change("GET main /agents", json!([{"id": "web", "name": "Renamed"}]));
    let methods = told(&mut for_alice).await;
    assert!(methods.contains(&"notifications/resources/updated".to_owned()), "{methods:?}");
    assert!(!told(&mut for_bob).await.contains(&"notifications/resources/updated".to_owned()));

    alice.ask("resources/unsubscribe", json!({"uri": uri})).await;
    fixture.script.change(line, row("COMPLETED"));
    assert_eq!(told(&mut for_alice).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_holds_up_nobody() {
    let fixture = Fixture::new(script());
    settle(&fixture).await;
    let alice = fixture.legacy("alice").await;
    let unread = stream(&alice).await;
    let (mut reads, _) = listen(&fixture.modern("alice"), json!({"resourcesListChanged": true})).await;
    for n in 0..100 {
        fixture.script.change("GET main /agents", json!([{"id": format!("a{n}")}]));
        assert_eq!(reads.next().await.unwrap()["method"], "notifications/resources/list_changed");
    }
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}).to_string();
    let answer = alice.send("POST", &[("mcp-protocol-version", super::LEGACY)], ping).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(answer.into_body().collect().await.is_ok(), "the session goes on");
    drop(unread);
}

#[tokio::test(start_paused = true)]
async fn listening_streams_of_one_principal_are_bounded() {
    let fixture = Fixture::new(script());
    settle(&fixture).await;
    let (alice, bob) = (fixture.modern("alice"), fixture.modern("bob"));
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(listen(&alice, everything()).await);
    }
    let refused = alice.request(LISTEN, json!({"notifications": {}}), None).await;
    assert_eq!(
        (refused.status(), &refused.headers()["retry-after"]),
        (StatusCode::TOO_MANY_REQUESTS, &"10".parse().unwrap())
    );
    listen(&bob, everything()).await;
    held.pop();
    listen(&alice, everything()).await;
}

#[tokio::test(start_paused = true)]
async fn a_listening_stream_ends_with_the_drain() {
    let fixture = Fixture::new(script());
    settle(&fixture).await;
    let (mut messages, _) = listen(&fixture.modern("alice"), everything()).await;
    fixture.service.shutdown();
    while messages.next().await.is_some() {}
}
