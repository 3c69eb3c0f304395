//! Proves over MCP, in both eras and against real agno of both versions, that a paused run asks its person, goes on as
//! the person says, once, and that nobody else can say it.
//! Does not repeat what the guard of `continue` is tested for (`approvals_agno`).

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::agno::{AgentOs, Agno, Setup};
use crate::mcp_client::{Era, McpClient, Told};
use crate::stack::{AGENTOS_KEY, Settings, Stack, Who};

/// One real AgentOS behind the gateway, and the ledger of what its tools have done.
struct Scene {
    _os: AgentOs,
    stack: Stack,
    folder: TempDir,
}

// === impl Scene ===

impl Scene {
    async fn open(agno: Agno) -> Self {
        let folder = TempDir::new().unwrap();
        let ledger = folder.path().join("ledger");
        let setup = Setup::with_jwt(agno, AGENTOS_KEY).and("LEDGER", ledger.to_str().unwrap()).and("EXTRAS", "1");
        let os = AgentOs::start(setup).await;
        // A Python server on a busy machine must not count as down.
        let health = "[clusters.health]";
        let settings = Settings::new().set(health, "timeout", "\"20s\"").set(health, "interval", "\"20s\"");
        let stack = Stack::over(&[os.url()], settings).await;
        Self { _os: os, stack, folder }
    }

    fn done(&self, deed: &str) -> usize {
        let ledger = std::fs::read_to_string(self.folder.path().join("ledger")).unwrap_or_default();
        ledger.lines().filter(|line| *line == deed).count()
    }

    async fn client(&self, era: Era, who: &Who) -> McpClient<'_> {
        McpClient::able(&self.stack, era, who, json!({"elicitation": {"form": {}}})).await
    }
}

fn olga() -> Who {
    Who::new("olga").role("operator")
}

fn run(agent: &str, message: &str) -> Value {
    json!({"name": "run_agent", "arguments": {"agent": agent, "kind": "agent", "message": message}})
}

fn accepted(content: Value) -> Value {
    json!({"action": "accept", "content": content})
}

/// The call again, with one answer to every question.
fn reply(mut call: Value, question: &Value, answer: &Value) -> Value {
    let keys = question["inputRequests"].as_object().unwrap_or_else(|| panic!("no question: {question}")).keys();
    call["inputResponses"] = keys.map(|key| (key.clone(), answer.clone())).collect::<serde_json::Map<_, _>>().into();
    call["requestState"] = question["requestState"].clone();
    call
}

/// Calls, answers the one question that comes, and gives the result.
async fn asked_and_told(client: &McpClient<'_>, call: Value, answer: &Value) -> Told {
    if client.session.is_none() {
        let question = client.ask("tools/call", call.clone()).await["result"].clone();
        assert_eq!(question["resultType"], "input_required", "{question}");
        return Told::of(&client.ask("tools/call", reply(call, &question, answer)).await);
    }
    let mut messages = client.open(client.request("tools/call", call, None)).await;
    let question = messages.next().await.unwrap();
    assert_eq!(question["method"], "elicitation/create", "{question}");
    client.answer(&question["id"], answer).await;
    Told::of(&messages.last().await)
}

async fn a_person_decides(scene: &Scene, era: Era) {
    let client = scene.client(era, &Who::alice()).await;
    for (word, answer, times) in [
        ("yes", accepted(json!({"decision": "approve"})), 1),
        ("no", accepted(json!({"decision": "reject"})), 0),
        ("decline", json!({"action": "decline"}), 0),
    ] {
        let to = format!("{word}-{era:?}");
        let told = asked_and_told(&client, run("mailer", &format!("mail {to}")), &answer).await;
        assert_eq!((told.is_error, told.field("status").as_str()), (false, "completed"), "{word}: {}", told.text);
        assert_eq!(scene.done(&format!("mailed {to}")), times, "{word}: {}", told.text);
    }
    let left = asked_and_told(&client, run("mailer", "mail nobody"), &json!({"action": "cancel"})).await;
    assert_eq!(left.field("status"), "paused", "{}", left.text);
    assert_eq!(scene.done("mailed nobody"), 0);
    let told = asked_and_told(&client, run("booker", "book"), &accepted(json!({"room": "seven"}))).await;
    assert_eq!(told.field("status"), "completed", "{}", told.text);
    let chosen = json!({"Where to?": "Oslo", "Where else?": ["Rome"]});
    let told = asked_and_told(&client, run("guide", "go"), &accepted(chosen)).await;
    let selected =
        r#"[{"question": "Where to?", "selected": ["Oslo"]}, {"question": "Where else?", "selected": ["Rome"]}]"#;
    assert!(told.text.contains(selected) && told.field("status") == "completed", "{}", told.text);
}

/// Four eyes: whoever runs is not asked about the approval, and somebody else's answer is what counts.
async fn approvals_are_somebody_elses(scene: &Scene, era: Era) {
    let pia = Who::new("pia").role("operator").role("approver");
    let client = scene.client(era, &pia).await;
    let record = format!("pia-{era:?}");
    let call = run("records", &format!("delete {record}"));
    let told = Told::of(&client.open(client.request("tools/call", call, None)).await.last().await);
    assert_eq!(told.field("status"), "paused", "{}", told.text);
    let handle = told.field("run");
    let pending = client.call("continue_run", json!({"run": handle})).await;
    assert!(pending.is_error && pending.text.starts_with("approval_pending"), "{}", pending.text);

    let pat = scene.client(era, &Who::new("pat").role("approver")).await;
    let listed = pat.call("list_approvals", json!({})).await;
    let approvals = listed.whole["structuredContent"]["approvals"].as_array().unwrap().clone();
    let one = approvals.iter().find(|row| row["requested_by"] == "pia").unwrap_or_else(|| panic!("{}", listed.text));
    let own = client.call("resolve_approval", json!({"approval_id": one["approval_id"], "decision": "approve"})).await;
    assert!(own.is_error, "{}", own.text);
    // An approval of another tenant does not exist.
    let gus = scene.client(era, &Who::new("gus").of("globex").role("approver")).await;
    let stolen = gus.call("resolve_approval", json!({"approval_id": one["approval_id"], "decision": "approve"})).await;
    assert!(stolen.is_error && !stolen.text.contains("pia"), "{}", stolen.text);
    let yes = pat.call("resolve_approval", json!({"approval_id": one["approval_id"], "decision": "approve"})).await;
    assert!(!yes.is_error, "{}", yes.text);
    let ended = client.call("continue_run", json!({"run": handle})).await;
    assert_eq!((ended.field("status").as_str(), scene.done(&format!("deleted {record}"))), ("completed", 1));
}

async fn a_stolen_or_old_answer_is_useless(scene: &Scene) {
    let client = scene.client(Era::Modern, &Who::alice()).await;
    let call = run("mailer", "mail carol");
    let question = client.ask("tools/call", call.clone()).await["result"].clone();
    let yes = accepted(json!({"decision": "approve"}));
    let answer = reply(call, &question, &yes);
    for thief in [olga(), Who::new("gus").of("globex").role("operator")] {
        let thief = scene.client(Era::Modern, &thief).await;
        let stolen = thief.ask("tools/call", answer.clone()).await;
        assert_eq!(stolen["error"]["code"], -32602, "{stolen}");
    }
    assert_eq!(scene.done("mailed carol"), 0);
    let told = Told::of(&client.ask("tools/call", answer.clone()).await);
    assert_eq!(told.field("status"), "completed", "{}", told.text);
    let replayed = client.ask("tools/call", answer).await;
    assert_ne!(replayed["error"], Value::Null, "{replayed}");
    assert_eq!(scene.done("mailed carol"), 1);

    let plain = McpClient::modern(&scene.stack, &Who::alice());
    let told = plain.call("run_agent", run("mailer", "mail dave")["arguments"].clone()).await;
    let handle = told.field("run");
    let olga = McpClient::modern(&scene.stack, &olga());
    for tool in ["continue_run", "get_run", "cancel_run"] {
        let stolen = olga.call(tool, json!({"run": handle})).await;
        assert!(stolen.is_error && stolen.text.starts_with("unknown run handle"), "{tool}: {}", stolen.text);
    }
    let told = plain.call("continue_run", json!({"run": handle, "confirm": true})).await;
    assert_eq!((told.field("status").as_str(), scene.done("mailed dave")), ("completed", 1), "{}", told.text);
}

async fn a_long_run_is_a_task(scene: &Scene) {
    let able = json!({"elicitation": {}, "extensions": {"io.modelcontextprotocol/tasks": {}}});
    let client = McpClient::able(&scene.stack, Era::Modern, &Who::alice(), able).await;
    let mut call = run("researcher-slow", "go");
    call["arguments"]["wait_s"] = json!(0);
    let made = client.ask("tools/call", call.clone()).await["result"].clone();
    assert_eq!(made["resultType"], "task", "{made}");
    let id = made["taskId"].as_str().unwrap();
    let ended = loop {
        let now = client.ask("tasks/get", json!({"taskId": id})).await["result"].clone();
        match now["status"].as_str() {
            Some("working") => tokio::time::sleep(std::time::Duration::from_millis(200)).await,
            _ => break now,
        }
    };
    assert_eq!(ended["status"], "completed", "{ended}");
    assert!(ended["result"]["content"][0]["text"].as_str().unwrap().contains("tick"), "{ended}");

    let made = client.ask("tools/call", call).await["result"].clone();
    let id = made["taskId"].as_str().unwrap();
    let olga = McpClient::able(&scene.stack, Era::Modern, &olga(), client.able.clone()).await;
    for method in ["tasks/get", "tasks/cancel"] {
        let stolen = olga.ask(method, json!({"taskId": id})).await;
        assert_eq!(stolen["error"]["message"], "unknown task", "{stolen}");
    }
    let ended = client.ask("tasks/cancel", json!({"taskId": id})).await;
    assert_eq!(ended["error"], Value::Null, "{ended}");
}

async fn pauses_are_asked_about_on(agno: Agno) {
    let scene = Scene::open(agno).await;
    for era in Era::ALL {
        a_person_decides(&scene, era).await;
        approvals_are_somebody_elses(&scene, era).await;
    }
    a_stolen_or_old_answer_is_useless(&scene).await;
    a_long_run_is_a_task(&scene).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_runs_ask_their_person_on_the_oldest_agno() {
    pauses_are_asked_about_on(Agno::Oldest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_runs_ask_their_person_on_the_newest_agno() {
    pauses_are_asked_about_on(Agno::Newest).await;
}
