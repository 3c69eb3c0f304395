//! Owns the holes of the other doors of AgentOS: the WebSocket, its own MCP server, the shared security key.

use futures_util::FutureExt as _;
use serde_json::json;

use super::*;

pub(super) const DOORS: &[Hole] = &[
    hole!("run a workflow by WebSocket, anonymously", OLDEST, web_socket),
    hole!("authenticate a WebSocket with anything", OLDEST, authenticate_with_anything),
    hole!("run an agent by MCP, without scopes", OLDEST, mcp),
    hole!("delete another's session by MCP", OLDEST, off OLDEST, isolated NONE, |side| delete_by_mcp(side).boxed()),
    hole!("documents for everybody", BOTH, off BOTH, isolated BOTH, |side| documents(side).boxed()),
];

const UPGRADE: [(&str, &str); 4] = [
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// A client frame (RFC 6455 §5.2) with a mask of zeros.
fn frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81];
    match u8::try_from(text.len()) {
        Ok(length) if length < 126 => frame.push(0x80 | length),
        Ok(_) | Err(_) => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(text.as_bytes());
    frame
}

async fn web_socket(side: &Side) -> Seen {
    let head: String = UPGRADE.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let mut raw = Raw::connect(side.address).await;
    raw.write(format!("GET /workflows/ws HTTP/1.1\r\nhost: localhost\r\n{head}\r\n")).await;
    let start =
        json!({ "action": "start-workflow", "workflow_id": "daily-report", "message": "hi", "user_id": "alice" });
    // AgentOS speaks first, and drops what comes with the handshake.
    let mut answer = raw.until_any(&["requires_auth", "HTTP/1.1 4"]).await;
    if answer.contains("101 Switching Protocols") {
        raw.write(frame(&start.to_string())).await;
    }
    // Either the run's events, or a refusal; the socket stays open at a bare AgentOS.
    answer = raw.until_any(&["WorkflowCompleted", "auth_required", "auth_error", "HTTP/1.1 4"]).await;
    // The rightful caller reads the workflow that the socket would run.
    let own = side.send(ROOT, Ask::get("/workflows/daily-report")).await;
    Seen {
        open: answer.contains("WorkflowCompleted"),
        owner: own.status == 200,
        said: answer.chars().take(300).collect(),
    }
}

/// AgentOS 2.x takes any token for a good one.
async fn authenticate_with_anything(side: &Side) -> Seen {
    let head: String = UPGRADE.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let enter = async |token: &str| {
        let mut raw = Raw::connect(side.address).await;
        raw.write(format!("GET /workflows/ws HTTP/1.1\r\nhost: localhost\r\n{head}\r\n")).await;
        raw.until_any(&["requires_auth"]).await;
        raw.write(frame(&json!({ "action": "authenticate", "token": token }).to_string())).await;
        raw.until_any(&["\"authenticated\"", "auth_error"]).await
    };
    let bad = enter("bad").await;
    let good = if side.gateway { enter(&side.token(ALICE, CALLER_KEY, "tollbridge")).await } else { String::new() };
    let known = |answer: &str| answer.contains("\"authenticated\"");
    Seen { open: known(&bad), owner: known(&good) || !side.gateway, said: bad.chars().take(300).collect() }
}

const MCP_TYPES: &str = "application/json, text/event-stream";

fn message(method: &str, params: &Value) -> Ask {
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
    Ask::post("/mcp").header("accept", MCP_TYPES).header("mcp-protocol-version", "2025-06-18").json(&body)
}

fn initialize() -> Ask {
    message(
        "initialize",
        &json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } }),
    )
}

/// Calls `run_agent`; gives what came back.
async fn run_by_mcp(side: &Side, who: Person) -> String {
    let (id, text) = if side.gateway { ("agent", "message") } else { ("agent_id", "message") };
    call_by_mcp(side, who, "run_agent", &json!({ id: "assistant", text: "by-mcp" })).await
}

/// Opens a session and calls a tool; gives what came back.
async fn call_by_mcp(side: &Side, who: Person, tool: &str, arguments: &Value) -> String {
    let opened = side.send(who, initialize()).await;
    let Some(session) = opened.header("mcp-session-id").map(str::to_owned) else { return said(&opened) };
    let ready = Ask::post("/mcp").header("accept", MCP_TYPES).header("mcp-session-id", &session);
    side.send(who, ready.json(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }))).await;
    let call = message("tools/call", &json!({ "name": tool, "arguments": arguments }));
    side.send(who, call.header("mcp-session-id", &session)).await.text()
}

async fn mcp(side: &Side) -> Seen {
    let nobody = run_by_mcp(side, NOBODY).await;
    let own = if side.gateway { run_by_mcp(side, ALICE).await } else { "echo: by-mcp".into() };
    let cut = |text: &str| text.chars().take(200).collect::<String>();
    let asked = format!("nobody {}; alice {}", cut(&nobody), cut(&own));
    Seen { open: nobody.contains("echo: by-mcp"), owner: own.contains("echo: by-mcp"), said: asked }
}

/// 2.x has a tool for it, and asks for no scope.
async fn delete_by_mcp(side: &Side) -> Seen {
    let session = side.own("s-by-mcp");
    side.run(ALICE, "assistant", "keep-from-mcp", &session).await;
    let arguments = json!({ "session_id": session, "db_id": "example-db" });
    let told = call_by_mcp(side, NOBODY, "delete_session", &arguments).await;
    let own = side.send(ALICE, Ask::get(&format!("/sessions/{session}?type=agent"))).await;
    let kept = shows(&own, "keep-from-mcp");
    Seen { open: !kept, owner: kept, said: told.chars().take(200).collect() }
}

pub(super) async fn anonymous_mcp(side: &Side) -> Seen {
    let got = side.bare(initialize()).await;
    let own = if side.gateway { side.send(ALICE, initialize()).await.status } else { 200 };
    Seen { open: got.status < 300, owner: own == 200, said: said(&got) }
}

async fn documents(side: &Side) -> Seen {
    let mut open = Vec::new();
    for path in ["/docs", "/redoc", "/openapi.json"] {
        let got = side.bare(Ask::get(path)).await;
        open.push((path, got.status));
    }
    let own = side.send(ALICE, Ask::get("/agents")).await;
    Seen { open: open.iter().all(|(_, status)| *status == 200), owner: own.status == 200, said: format!("{open:?}") }
}
