//! Proves `tollbridge mcp` and `tollbridge tools` on the built binary: the bridge as a process, in front of the real gateway.
//! What it does with answers of other servers is tested beside it.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::Desk;
use crate::fake::{Event, Reply};
use crate::mcp_client::{Era, MODERN, initialize};
use crate::stack::{Stack, Who, within};

const RUNS: &str = "/agents/assistant/runs";

/// A bridge that a client has started.
struct Bridge {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Lines<BufReader<ChildStdout>>,
    era: Era,
}

// === impl Bridge ===

impl Bridge {
    fn start(url: &str, token: Option<&str>, more: &[&str], era: Era) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollbridge"));
        command.args(["mcp", "--url", url]).args(more).env_clear().kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(token) = token {
            command.env("TOLLBRIDGE_TOKEN", token);
        }
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { stdin: child.stdin.take(), child, stdout, era }
    }

    /// A bridge of alice's whose client has shaken hands, if its era does.
    async fn of(stack: &Stack, era: Era) -> Self {
        let mut bridge = Self::start(&format!("{}/mcp", stack.url()), Some(&Who::alice().token()), &[], era);
        if era == Era::Legacy {
            assert!(bridge.ask(&initialize()).await["result"]["protocolVersion"].is_string());
            bridge.say(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
        }
        bridge
    }

    async fn say(&mut self, message: &Value) {
        self.stdin.as_mut().unwrap().write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    async fn hear(&mut self) -> Value {
        let line = within("a message of the bridge", self.stdout.next_line()).await.unwrap();
        serde_json::from_str(&line.expect("the bridge goes on")).unwrap()
    }

    async fn ask(&mut self, message: &Value) -> Value {
        self.say(message).await;
        self.hear().await
    }

    fn request(&self, id: u64, method: &str, mut params: Value) -> Value {
        if self.era == Era::Modern {
            params["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!(MODERN);
            params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({});
        }
        json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
    }

    /// Closes its input; gives its exit code and what it said to the user.
    async fn close(mut self) -> (i32, String) {
        self.stdin = None;
        let mut said = String::new();
        let ended = async {
            self.child.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
            self.child.wait().await.unwrap()
        };
        let status = within("the end of the bridge", ended).await;
        (status.code().unwrap(), said)
    }
}

fn run_assistant() -> Value {
    let arguments = json!({"agent": "assistant", "kind": "agent", "message": "hello"});
    json!({"name": "run_agent", "arguments": arguments, "_meta": {"progressToken": "p"}})
}

#[tokio::test]
async fn both_eras_pass_through_the_bridge() {
    let stack = Stack::start().await;
    for era in Era::ALL {
        let mut bridge = Bridge::of(&stack, era).await;
        let listed = bridge.ask(&bridge.request(1, "tools/list", json!({}))).await;
        assert!(listed["result"]["tools"].as_array().unwrap().len() > 3, "{era:?}: {listed}");
        let event = |name: &str, mut data: Value| {
            data["run_id"] = json!("r-1");
            Event::new(name, data)
        };
        let events = [
            event("RunStarted", json!({})),
            event("RunContent", json!({"content": "half "})),
            event("RunCompleted", json!({"content": "half done"})),
        ];
        let (reply, gate) = Reply::paced_sse(&events);
        stack.os().pin("POST", RUNS, reply);
        gate.open_once();
        gate.open_once();
        let progress = bridge.ask(&bridge.request(2, "tools/call", run_assistant())).await;
        assert_eq!(progress["params"]["progressToken"], "p", "{era:?}: before the end of the run: {progress}");
        gate.open();
        let mut answer = bridge.hear().await;
        while answer["method"] == "notifications/progress" {
            answer = bridge.hear().await;
        }
        let text = answer["result"]["content"][0]["text"].as_str().unwrap();
        assert!(text.starts_with("half done"), "{era:?}: {answer}");
        assert_eq!(bridge.close().await, (0, String::new()), "{era:?}");
    }
}

#[tokio::test]
async fn a_cancelled_call_reaches_agentos_through_the_bridge() {
    let stack = Stack::start().await;
    let started = Event::new("RunStarted", json!({"run_id": "r-1"}));
    let content = Event::new("RunContent", json!({"run_id": "r-1", "content": "half"}));
    let (reply, gate) = Reply::paced_sse(&[started, content.clone(), content]);
    stack.os().pin("POST", RUNS, reply);
    let mut bridge = Bridge::of(&stack, Era::Modern).await;
    gate.open_once();
    gate.open_once();
    bridge.ask(&bridge.request(1, "tools/call", run_assistant())).await;
    bridge.say(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})).await;
    stack.os().wait_for_abort(RUNS).await;
    assert_eq!(bridge.close().await.0, 0);
}

#[tokio::test]
async fn a_client_that_is_gone_leaves_no_session_behind() {
    let stack = Stack::start().await;
    let mut bridge = Bridge::of(&stack, Era::Legacy).await;
    bridge.ask(&bridge.request(1, "tools/list", json!({}))).await;
    assert_eq!(bridge.close().await, (0, String::new()));
    let closed = ["method=\"close\""];
    stack.wait_for_metric("tollbridge_mcp_requests_total", &closed, 1.0).await;
}

#[tokio::test]
async fn what_the_gateway_refuses_is_said_with_what_to_do() {
    let stack = Stack::start().await;
    let (url, token) = (stack.url(), Who::alice().token());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "stale-token-stale-token").unwrap();
    let file_argument = file.display().to_string();
    let right = format!("{url}/mcp");
    for (url, token, more, reason, help) in [
        (format!("{url}/elsewhere"), Some(&token), vec![], "not_found", "must be the MCP endpoint"),
        (
            right.clone(),
            None,
            vec![],
            "unauthenticated",
            "give a token with --token-file FILE, or in `TOLLBRIDGE_TOKEN`",
        ),
        (
            right.clone(),
            None,
            vec!["--token-file", &file_argument],
            "unauthenticated",
            "read again at the next message",
        ),
        ("http://127.0.0.1:1/mcp".to_owned(), Some(&token), vec![], "unreachable", "check that the gateway runs"),
    ] {
        let mut bridge = Bridge::start(&url, token.map(String::as_str), &more, Era::Modern);
        let answer = bridge.ask(&bridge.request(1, "server/discover", json!({}))).await;
        let error = &answer["error"];
        assert_eq!((&error["code"], &error["data"]["reason"]), (&json!(-32603), &json!(reason)), "{answer}");
        assert!(error["message"].as_str().unwrap().contains(help), "{answer}");
        if !more.is_empty() {
            std::fs::write(&file, &*Who::alice().token()).unwrap();
            let answer = bridge.ask(&bridge.request(2, "tools/list", json!({}))).await;
            assert!(answer["result"]["tools"].is_array(), "the new token is taken: {answer}");
        }
        let (code, said) = bridge.close().await;
        assert!(code == 0 && said.contains(help) && !said.contains("stale-token"), "{said}");
    }
}

#[test]
fn what_cannot_be_a_bridge_is_refused_at_once() {
    let desk = Desk::new("http://127.0.0.1:9", "");
    for (arguments, text) in [
        (&["mcp"][..], "--url <URL>"),
        (&["mcp", "--url", "gateway"], "write it like https://gateway.example.com/mcp"),
        (&["mcp", "config"], "<CLIENT>"),
    ] {
        let said = desk.run(arguments);
        assert!(said.code == 2 && said.out.is_empty() && said.err.contains(text), "{said:?}");
    }
}

#[test]
fn snippets_go_to_stdout_and_where_they_belong_to_stderr() {
    let desk = Desk::new("http://127.0.0.1:9", "[mcp]\npath = \"/tools/mcp\"\n");
    for client in ["claude-code", "claude-desktop", "vscode", "cursor", "codex", "gemini", "zed"] {
        let said = desk.run(&["mcp", "config", client]);
        assert!(said.code == 0 && said.out.contains("http://127.0.0.1/tools/mcp"), "{said:?}");
        assert!(said.err.starts_with("for ") && said.err.contains("token"), "{said:?}");
        if client != "codex" {
            said.json();
        }
    }
    let said = desk.run(&["mcp", "config", "vscode", "--stdio", "--url", "https://g.test/mcp", "--token-file", "t"]);
    let server = &said.json()["servers"]["tollbridge"];
    let file = desk.file("t").canonicalize().unwrap_or(desk.file("t")).display().to_string();
    assert_eq!(server["args"], json!(["mcp", "--url", "https://g.test/mcp", "--token-file", file]));
}

#[test]
fn the_tools_of_a_caller_are_printed() {
    let desk = Desk::new("http://127.0.0.1:9", "");
    let token = |role: &str| {
        let said = desk.run(&["token", "--tenant", "acme", "--subject", "alice", "--role", role]);
        said.out.trim_end().to_owned()
    };
    let names = |said: &super::Said| -> Vec<String> {
        said.json().as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
    };
    let operator = desk.run(&["tools", "--token", &token("operator"), "--format", "json"]);
    assert!(names(&operator).contains(&"run_agent".to_owned()), "{operator:?}");
    let viewer = desk.run(&["tools", "--token", &token("viewer"), "--format", "json"]);
    assert!(!names(&viewer).contains(&"run_agent".to_owned()), "{viewer:?}");
    let narrow = desk.run(&["tools", "--token", &token("operator"), "--below", "x/knowledge", "--format", "json"]);
    assert_eq!(names(&narrow), ["list_knowledge", "search_knowledge", "whoami"]);
    std::fs::write(desk.file("claims.json"), r#"{"sub":"vera","tenant":"acme","roles":["viewer"]}"#).unwrap();
    assert_eq!(desk.run(&["tools", "--as", "claims.json", "--format", "json"]).out, viewer.out);
    let table = desk.run(&["tools", "--token", &token("operator")]);
    let line = table.out.lines().find(|line| line.starts_with("search_knowledge")).unwrap();
    assert!(line.contains("reads") && line.contains("query knowledge? limit?"), "{line}");
    let refused = desk.run(&["tools", "--token", "x.y.z"]);
    assert!(refused.code == 1 && refused.err.contains("unauthenticated"), "{refused:?}");
}
