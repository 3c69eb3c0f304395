//! Proves on real AgentOS of both releases that every token is charged once: what the quota counts, what the export
//! bills and what AgentOS reports is the same sum, for agents, teams, workflows, tools, failures and callers who leave.

use serde_json::{Value, json};

use crate::agno::Agno;
use crate::real_stack::{Real, events};
use crate::stack::{Ask, Who, within};

#[tokio::test]
async fn agno_2_5_6_is_charged_what_it_reports() {
    sums(&Real::start(Agno::Oldest).await).await;
}

#[tokio::test]
async fn agno_3_1_10_is_charged_what_it_reports() {
    sums(&Real::start(Agno::Newest).await).await;
}

/// Tokens that the events or the reply of a run report: those of its model calls, or of the whole of an agent's run.
fn reported(text: &str) -> u64 {
    let sum =
        |of: &Value| ["input_tokens", "output_tokens"].iter().map(|name| of[*name].as_u64().unwrap_or(0)).sum::<u64>();
    let events = events(text);
    let calls =
        events.iter().filter(|e| e["event"].as_str().is_some_and(|name| name.ends_with("ModelRequestCompleted")));
    if events.is_empty() {
        let run: Value = serde_json::from_str(text).unwrap();
        return sum(&run["metrics"]);
    }
    calls.map(sum).sum()
}

/// What the export bills `acme` for a component, apart from estimates; and its estimates.
async fn billed(real: &Real, component: &str) -> (u64, u64) {
    let export: Value = serde_json::from_str(&real.stack.admin("/usage?tenant=acme").await).unwrap();
    let lines = export["usage"].as_array().unwrap();
    let of = |estimated: bool| {
        let fits = |line: &&Value| line["agent"] == json!(component) && (line["model"] == "estimated") == estimated;
        let tokens = |line: &Value| line["input_tokens"].as_u64().unwrap() + line["output_tokens"].as_u64().unwrap();
        lines.iter().filter(fits).map(tokens).sum()
    };
    (of(false), of(true))
}

async fn sums(real: &Real) {
    let alice = Who::alice();
    let ask = |path: &str, message: &str| Ask::post(&format!("/{path}/runs")).field("message", message);
    for path in ["agents/assistant", "agents/librarian", "teams/newsroom", "workflows/daily-report"] {
        let mut expected = 0;
        for message in ["one two three", "four five"] {
            let got = real.by(&alice, ask(path, message)).await;
            assert_eq!(got.status, 200, "{path}: {}", got.text());
            expected += reported(&got.text());
        }
        if path.starts_with("agents/") {
            let got = real.by(&alice, ask(path, "six").field("stream", "false")).await;
            expected += reported(&got.text());
        }
        assert!(expected > 0, "{path}");
        assert_eq!(billed(real, &format!("main/{path}")).await, (expected, 0), "{path}");
    }

    // A failed run answers 200 and is charged what it used: nothing here, and no estimate.
    let before = billed(real, "main/agents/assistant").await;
    for stream in ["true", "false"] {
        let got = real.by(&alice, ask("agents/assistant", "provoke-failure").field("stream", stream)).await;
        assert!(got.text().contains("provoke-failure") || got.text().contains("rror"), "{}", got.text());
    }
    assert_eq!(billed(real, "main/agents/assistant").await, before, "failures");

    // A caller who leaves pays what was reserved, since nobody reports what was used.
    let slow = ask("agents/researcher-slow", "go").by(&alice);
    let mut flow = real.stack.open(slow).await;
    flow.until("RunContent").await;
    drop(flow);
    within("the run to settle", async { while billed(real, "main/agents/researcher-slow").await.1 == 0 {} }).await;
    let (seen, estimated) = billed(real, "main/agents/researcher-slow").await;
    assert_eq!(seen + estimated, 500, "the reservation of an agent that nobody has run before");
}
