//! Proves endpoints that are found by name: addresses and services, changes, and name servers that fail.

use std::time::Duration;

use serde_json::json;
use tollbridge::outbound::{ResolveError, Resolver};

use crate::fake::{Event, FakeAgentOs, Reply};
use crate::name_server::{Mood, NameServer, Record};
use crate::stack::{Ask, Settings, Stack, Who, within};

const SERVICE: &str = "_agentos._tcp.test";
const RUNS: &str = "/agents/assistant/runs";

/// A gateway whose endpoints are behind the service, asked for often.
async fn behind(names: &NameServer) -> Stack {
    let settings = Settings::new().set("[clusters.health]", "interval", "\"100ms\"");
    Stack::over(&[], names.settings(SERVICE, settings)).await
}

fn port(fake: &FakeAgentOs) -> u16 {
    fake.address().port()
}

fn run() -> Ask {
    Ask::plain_run().by(&Who::alice())
}

/// Sends runs until one arrives there.
async fn until_served_by(stack: &Stack, fake: &FakeAgentOs) {
    let before = fake.requests_to(RUNS).len();
    within("a run at the endpoint", async {
        while fake.requests_to(RUNS).len() == before {
            stack.send(run()).await;
        }
    })
    .await;
}

#[tokio::test]
async fn endpoints_follow_the_records_and_streams_outlive_a_change() {
    let (names, first, second) = (NameServer::start().await, FakeAgentOs::start().await, FakeAgentOs::start().await);
    names.serve(SERVICE, &[port(&first)]);
    let stack = behind(&names).await;
    until_served_by(&stack, &first).await;

    let events = ["RunStarted", "RunContent", "RunCompleted"].map(|name| Event::new(name, json!({"run_id": "r-1"})));
    let (reply, gate) = Reply::paced_sse(&events);
    first.script(reply);
    let mut flow = stack.open(Ask::run("assistant").field("message", "hi").by(&Who::alice())).await;
    gate.open_once();
    flow.until("RunStarted").await;

    // The records change under the stream: it goes on, and new runs go to the other endpoint.
    names.serve(SERVICE, &[port(&second)]);
    until_served_by(&stack, &second).await;
    let at_first = first.requests_to(RUNS).len();
    for _ in 0..4 {
        assert_eq!(stack.send(run()).await.status, 200);
    }
    assert_eq!(first.requests_to(RUNS).len(), at_first);
    // What follows the run asks whether its endpoint answers.
    let probes = first.requests_to("/health").len();
    first.wait_for_request("/health", probes + 3).await;
    gate.open();
    let (text, clean) = flow.rest().await;
    assert!(clean && text.contains("RunCompleted"), "{text}");
    // What is gone is not counted as down.
    stack.wait_for_metric("tollbridge_endpoint_up", &[&format!("endpoint=\"{}\"", first.url())], 0.0).await;
    assert!(
        !stack.admin("/metrics").await.contains(&format!("endpoint_up{{cluster=\"main\",endpoint=\"{}", first.url()))
    );
}

#[tokio::test]
async fn the_last_good_answer_stands_while_name_servers_fail() {
    let (names, fake) = (NameServer::start().await, FakeAgentOs::start().await);
    names.serve(SERVICE, &[port(&fake)]);
    let stack = behind(&names).await;
    until_served_by(&stack, &fake).await;
    for mood in [Mood::Failing, Mood::Silent] {
        names.turn(mood);
        let asked = names.asked();
        within("further questions", async {
            while names.asked() < asked + 3 {
                assert_eq!(stack.send(run()).await.status, 200, "{mood:?}");
            }
        })
        .await;
    }
    // A name that is gone is no answer either: it may be a name server that was started anew.
    names.turn(Mood::Well);
    names.set(SERVICE, Vec::new());
    let asked = names.asked();
    within("further questions", async {
        while names.asked() < asked + 3 {
            assert_eq!(stack.send(run()).await.status, 200);
        }
    })
    .await;
    let other = FakeAgentOs::start().await;
    names.serve(SERVICE, &[port(&other)]);
    until_served_by(&stack, &other).await;
}

#[tokio::test]
async fn without_any_answer_the_caller_is_told_when_to_try_again() {
    let (names, fake) = (NameServer::start().await, FakeAgentOs::start().await);
    let stack = behind(&names).await;
    let got = stack.send(run()).await;
    assert_eq!((got.status, got.code()), (503, "no_endpoint".to_owned()), "{got:?}");
    assert!(got.header("retry-after").is_some());
    names.serve(SERVICE, &[port(&fake)]);
    until_served_by(&stack, &fake).await;
}

#[tokio::test]
async fn hosts_have_all_their_addresses_and_services_their_first_targets() {
    let names = NameServer::start().await;
    names.set("a.test", vec![Record::A([10, 0, 0, 1]), Record::A([10, 0, 0, 2]), Record::Aaaa([0xfd; 16])]);
    names.set("b.test", vec![Record::A([10, 0, 0, 3])]);
    let targets = [(2, 1, "b.test"), (1, 7777, "a.test"), (1, 7778, "b.test"), (1, 1, "nowhere.test")];
    let targets = targets.map(|(priority, port, name)| Record::Srv(priority, port, name.to_owned()));
    names.set("_os._tcp.test", targets.into());
    let resolver = Resolver::new(Some(names.address()), Duration::from_secs(5)).unwrap();
    let found = async |name: &str| {
        let origins = resolver.resolve(&name.parse().unwrap()).await.unwrap();
        origins.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let six = "http://[fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd]:7777";
    assert_eq!(found("A.test:7777").await, ["http://10.0.0.1:7777", "http://10.0.0.2:7777", six]);
    let expected = ["http://10.0.0.1:7777", "http://10.0.0.2:7777", "http://10.0.0.3:7778", six];
    assert_eq!(found("_os._tcp.test").await, expected);
    assert!(matches!(resolver.resolve(&"c.test:1".parse().unwrap()).await, Err(ResolveError::Failed { .. })));
    names.turn(Mood::Silent);
    let short = Resolver::new(Some(names.address()), Duration::from_millis(100)).unwrap();
    assert!(short.resolve(&"a.test:1".parse().unwrap()).await.is_err());
}
