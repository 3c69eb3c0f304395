//! Proves that whatever admission refuses can be explained: the stage, the file and line of the policies that decided,
//! and what helps. The dry run says what the server says: each case is served as well.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tollbridge::gateway::{Explanation, Said};

use crate::fake::{Event, FakeAgentOs, Line, Reply};
use crate::stack::{Ask, Settings, Stack, Who, assert_every_code};

/// Codes that are not admission's, each with the reason.
const NOT_ADMISSION: [(&str, &str); 11] = [
    ("bad_head", "a door's: there is no call yet"),
    ("head_too_large", "a door's: there is no call yet"),
    ("request_timeout", "a door's: a dry run has its body"),
    ("field_too_late", "about how a body arrives: a dry run has it at once"),
    ("cancel_unconfirmed", "an answer of AgentOS"),
    ("internal", "stands for a fault of ours"),
    ("upstream_unreachable", "AgentOS does not answer: unknown to a dry run, which says so"),
    ("upstream_reset", "AgentOS does not answer: unknown to a dry run, which says so"),
    ("upstream_invalid", "AgentOS does not answer as it should, while it is asked"),
    ("upstream_timeout", "AgentOS does not answer: unknown to a dry run, which says so"),
    ("draining", "only sent while more runs are detached than the process takes"),
];

/// What was explained so far.
#[derive(Default)]
struct Explained(BTreeSet<&'static str>);

impl Explained {
    /// Explains a call before it is served, and checks that both end alike and that the explanation is whole.
    async fn check(&mut self, stack: &Stack, stage: &str, code: &str, ask: Ask) -> Explanation {
        let explanation = explain(stack, ask.clone()).await;
        let refusal = explanation.refused.as_ref().unwrap_or_else(|| panic!("{code}: allowed: {explanation:?}"));
        let row = refusal.code.row();
        assert_eq!((refusal.stage.as_str(), row.code), (stage, code), "{explanation:?}");
        let step = explanation.steps.last().unwrap();
        assert_eq!((step.stage, step.said, &step.facts["code"]), (stage, Said::Refused, &json!(code)));
        let help = explanation.help.as_deref().unwrap_or_default();
        assert!(help.len() > 10 && !help.ends_with('.'), "{code}: no help: {explanation:?}");
        if stage == "policy" {
            decided(&explanation);
        }
        let got = stack.send(ask).await;
        assert_eq!((got.status, got.code().as_str()), (row.status, code), "served: {got:?}");
        self.0.insert(row.code);
        explanation
    }
}

async fn explain(stack: &Stack, ask: Ask) -> Explanation {
    stack.running.gateway.explain(ask.call()).await
}

/// Checks that the policies that decided stand where the explanation says, and that it says what would allow the call.
fn decided(explanation: &Explanation) -> Vec<String> {
    let policies = explanation.steps.last().unwrap().facts["policies"].as_array().unwrap().clone();
    let named: Vec<String> = policies.iter().map(|policy| policy["policy"].as_str().unwrap().to_owned()).collect();
    for (policy, name) in policies.iter().zip(&named) {
        let (file, line) = policy["at"].as_str().unwrap().rsplit_once(':').unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        let stands = text.lines().nth(line.parse::<usize>().unwrap() - 1).unwrap();
        assert_eq!(stands, format!("@id(\"{name}\")"), "{file}:{line}");
    }
    let help = explanation.help.as_deref().unwrap_or_default();
    let names_all = !named.is_empty() && named.iter().all(|name| help.contains(&format!("`{name}` (")));
    assert!(!explanation.remedies.is_empty() || names_all, "nothing would allow it: {explanation:?}");
    named
}

#[tokio::test]
async fn every_refusal_of_admission_is_explained() {
    let mut explained = Explained::default();
    of_the_request(&mut explained).await;
    of_the_body(&mut explained).await;
    of_limits(&mut explained).await;
    of_rows(&mut explained).await;
    of_approvals(&mut explained).await;
    of_keys(&mut explained).await;
    of_endpoints(&mut explained).await;

    assert_every_code(&explained.0, &NOT_ADMISSION);
}

async fn of_the_request(explained: &mut Explained) {
    let stack = Stack::before(vec![FakeAgentOs::start_as(Line::V2).await], Settings::new()).await;
    let alice = Who::alice();
    let expired = alice.token_at(SystemTime::now() - Duration::from_secs(7200));
    let resume = Ask::post("/agents/assistant/runs/r/resume").field("session_id", "s");
    for (stage, code, ask) in [
        ("request", "path_not_canonical", Ask::get("/agents/a%2Fb").by(&alice)),
        ("identity", "credential_ambiguous", Ask::get("/agents").by(&alice).by(&alice)),
        ("identity", "unauthenticated", Ask::get("/agents")),
        ("identity", "unauthenticated", Ask::get("/agents").bearer("tb_unknown")),
        ("identity", "token_expired", Ask::get("/agents").bearer(&expired)),
        ("catalogue", "operation_unknown", Ask::get("/nowhere").by(&alice)),
        ("catalogue", "method_not_allowed", Ask::new("PUT", "/agents").by(&alice)),
        ("cluster", "operation_unsupported", resume.by(&alice)),
        ("cluster", "cluster_unknown", Ask::get("/agents").header("tollbridge-cluster", "other").by(&alice)),
    ] {
        explained.check(&stack, stage, code, ask).await;
    }
}

async fn of_the_body(explained: &mut Explained) {
    let stack = Stack::with(Settings::new().set("[server.limits]", "json_body_bytes", "\"1KiB\"")).await;
    let search = Ask::post("/knowledge/search");
    for (code, ask) in [
        ("field_not_allowed", Ask::plain_run().field("temperature", "2")),
        ("field_duplicated", Ask::plain_run().field("message", "again")),
        ("form_malformed", search.clone().body("application/json", "{")),
        ("body_too_large", search.clone().json(&json!({ "query": "x".repeat(2 << 10) }))),
        ("media_type_unsupported", search.body("text/plain", "{}")),
    ] {
        explained.check(&stack, "request", code, ask.by(&Who::alice())).await;
    }
}

async fn of_limits(explained: &mut Explained) {
    let get = || Ask::get("/agents").by(&Who::alice());
    let stack = Stack::with(Settings::new().set("[quota]", "flood", "{ per_minute = 1, burst = 1 }")).await;
    stack.send(get()).await;
    explained.check(&stack, "quota", "flood", get()).await;

    let plan = |plan: &'static str, key: &'static str, value: &'static str| {
        let rest = ["requests", "concurrent_runs", "tokens"].into_iter().filter(move |other| *other != key);
        let settings = Settings::new().set("[quota]", "default_plan", &format!("{plan:?}"));
        let section = format!("[plans.{plan}]");
        let settings = rest.fold(settings, |settings, other| settings.set(&section, other, "\"unlimited\""));
        settings.set(&section, key, value)
    };
    let stack = Stack::with(plan("rate", "requests", "{ per_minute = 1, burst = 1 }")).await;
    stack.send(get()).await;
    explained.check(&stack, "quota", "rate_limited", get()).await;

    let stack = Stack::with(plan("runs", "concurrent_runs", "1")).await;
    let (reply, gate) = Reply::paced_sse(&[Event::new("RunStarted", json!({})), Event::new("RunCompleted", json!({}))]);
    stack.os().script(reply);
    let mut first = stack.open(Ask::run("assistant").field("message", "hi").by(&Who::alice())).await;
    gate.open_once();
    first.until("RunStarted").await;
    explained.check(&stack, "quota", "too_many_runs", Ask::plain_run().by(&Who::alice())).await;

    let stack = Stack::with(plan("budget", "tokens", "{ per_day = 5 }")).await;
    assert_eq!(stack.send(Ask::plain_run().by(&Who::alice())).await.status, 200);
    explained.check(&stack, "quota", "budget_exhausted", Ask::plain_run().by(&Who::alice())).await;
}

/// What belongs to somebody else, and what nobody or somebody in particular forbids.
async fn of_rows(explained: &mut Explained) {
    let stack = Stack::start().await;
    for (id, owner) in [("foreign", "globex~eve"), ("bobs", "acme~bob")] {
        let row = json!({ "session_id": id, "user_id": owner });
        stack.os().pin("GET", &format!("/sessions/{id}"), Reply::json(200, &row));
    }
    let ada = Who::new("ada").role("admin");
    explained.check(&stack, "facts", "not_found", Ask::get("/sessions/foreign").by(&ada)).await;

    for (ask, who, code, policies) in [
        (Ask::plain_run(), Who::new("vic").role("viewer"), "forbidden", &[][..]),
        (Ask::plain_run(), Who::new("nobody"), "forbidden", &[]),
        (Ask::get("/sessions/bobs"), Who::alice(), "not_found", &["owner-only"]),
        (Ask::new("DELETE", "/knowledge/content"), ada, "forbidden", &["os-wide"]),
    ] {
        let explanation = explained.check(&stack, "policy", code, ask.by(&who)).await;
        assert_eq!(decided(&explanation), policies, "{who:?}");
    }
    let workflow = json!({ "id": "daily-report", "steps": [{ "agent": { "knowledge": { "db_id": "k" } } }] });
    stack.os().pin("GET", "/workflows/daily-report", Reply::json(200, &workflow));
    let report = Ask::post("/workflows/daily-report/runs").field("message", "hi").by(&Who::alice());
    explained.check(&stack, "facts", "knowledge_shared", report).await;
    // Through another door the same call has another end.
    let mut call = Ask::new("DELETE", "/sessions/mine").by(&Who::alice()).call();
    call.door = tollbridge::telemetry::Door::Mcp;
    let explanation = stack.running.gateway.explain(call).await;
    assert_eq!(decided(&explanation), ["destructive-over-mcp"]);
    // A schedule of somebody who may write it, but not run what it starts, names the run.
    let schedule = json!({ "name": "n", "cron_expr": "", "endpoint": "/agents/assistant/runs" });
    let planner = Who::new("planner").role("platform_admin");
    let ask = Ask::post("/schedules").json(&schedule).by(&planner);
    let explanation = explained.check(&stack, "policy", "forbidden", ask).await;
    assert_eq!(explanation.steps.last().unwrap().facts["operation"], json!("create_agent_run"));
}

/// A run that waits for an approval, with what its dry run and its continuation say.
async fn of_approvals(explained: &mut Explained) {
    let tool = json!({
        "tool_call_id": "c-1", "tool_name": "delete_record", "tool_args": { "record_id": "42" }, "result": null,
        "requires_confirmation": true, "confirmed": null, "approval_type": "required", "approval_id": "a-1",
    });
    let holding = async |status: &str, approval: &str| {
        let stack = Stack::start().await;
        let run = json!({ "run_id": "r-1", "agent_id": "records", "session_id": "s-1", "user_id": "acme~alice",
                          "status": status, "tools": [tool] });
        let row = json!({ "id": "a-1", "run_id": "r-1", "status": approval, "approval_type": "required",
                          "user_id": "acme~alice" });
        stack.os().pin("GET", "/agents/records/runs/r-1", Reply::json(200, &run));
        stack.os().pin("GET", "/approvals", Reply::json(200, &json!({ "data": [row], "meta": {} })));
        stack
    };
    let go_on = || {
        let ask = Ask::post("/agents/records/runs/r-1/continue").by(&Who::alice());
        ask.field("session_id", "s-1").field("stream", "false")
    };
    explained.check(&holding("PAUSED", "pending").await, "facts", "approval_pending", go_on()).await;
    let confirm = go_on().field("tools", r#"[{"tool_call_id":"c-1","confirmed":true}]"#);
    explained.check(&holding("PAUSED", "rejected").await, "facts", "approval_rejected", confirm).await;
    explained.check(&holding("COMPLETED", "approved").await, "facts", "already_continued", go_on()).await;

    let done = holding("COMPLETED", "approved").await;
    let explanation = explained.check(&done, "policy", "forbidden", go_on().field("fork", "true")).await;
    assert_eq!(decided(&explanation), ["approved-runs-once"]);
    assert_eq!(explanation.steps.last().unwrap().facts["operation"], json!("repeat_approved_agent_run"));

    // What may go on is not claimed by being asked about.
    let approved = holding("PAUSED", "approved").await;
    for _ in 0..2 {
        let explanation = explain(&approved, go_on()).await;
        let said: Vec<&Value> = explanation.steps.iter().filter_map(|step| step.facts.get("approvals")).collect();
        assert_eq!((explanation.refused.is_none(), said), (true, vec![&json!(["a-1"])]), "{explanation:?}");
    }
    assert_eq!(approved.os().requests_to("/agents/records/runs/r-1/continue"), []);
}

/// Keys that cannot be fetched say nothing about the token.
async fn of_keys(explained: &mut Explained) {
    let issuer = &[
        ("issuer", "\"https://other.test\""),
        ("audiences", "[\"tollbridge\"]"),
        ("algorithms", "[\"RS256\"]"),
        ("jwks_url", "\"http://127.0.0.1:1/keys\""),
        ("tenants", "[\"globex\"]"),
    ];
    let settings =
        Settings::new().set("[[identity.issuers]]", "tenants", "[\"acme\"]").add("[[identity.issuers]]", issuer);
    let stack = Stack::with(settings).await;
    let part = |json: Value| {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json.to_string())
    };
    let claims = json!({ "iss": "https://other.test", "aud": "tollbridge", "sub": "eve", "tenant": "globex",
                         "exp": 4_000_000_000_u64 });
    let token = format!("{}.{}.{}", part(json!({ "alg": "RS256", "kid": "k" })), part(claims), part(json!("sig")));
    explained.check(&stack, "identity", "overloaded", Ask::get("/agents").bearer(&token)).await;
}

/// Which endpoints are up is what a server sees: a dry run says what it sees itself, and what would follow.
async fn of_endpoints(explained: &mut Explained) {
    let os = FakeAgentOs::start().await;
    let url = os.url();
    drop(os);
    let stack = Stack::over(&[url], Settings::new()).await;
    let explanation = explain(&stack, Ask::plain_run().by(&Who::alice())).await;
    assert!(explanation.refused.is_none() && explanation.is_uncertain(), "{explanation:?}");
    let step = explanation.steps.last().unwrap();
    assert_eq!((step.stage, step.said, &step.facts["code"]), ("endpoint", Said::Unknown, &json!("no_endpoint")));
    assert!(step.facts["help"].as_str().is_some_and(|help| help.contains("endpoints")), "{step:?}");
    explained.0.insert("no_endpoint");
}
