//! Owns the holes of the other doors of AgentOS: the WebSocket, its own MCP server, the shared security key.

use futures_util::FutureExt as _;
use serde_json::json;

use super::*;

const BOTH: &[Agno] = &Agno::ALL;
const OLDEST: &[Agno] = &[Agno::Oldest];

const DOORS: &[Hole] = &[
    Hole { name: "run a workflow by WebSocket, anonymously", open_on: OLDEST, play: |side| web_socket(side).boxed() },
    Hole { name: "run an agent by MCP, without scopes", open_on: OLDEST, play: |side| mcp(side).boxed() },
    Hole { name: "documents for everybody", open_on: BOTH, play: |side| documents(side).boxed() },
];

#[tokio::test]
async fn agno_other_doors_are_closed() {
    for agno in Agno::ALL {
        play(agno, Setup::with_jwt(agno, AGENTOS_KEY).and("MCP", "1"), DOORS).await;
    }
}

/// With one shared key AgentOS 2.x guards its REST routes only.
#[tokio::test]
async fn agno_mcp_beside_a_security_key_is_closed() {
    const HOLE: &[Hole] =
        &[Hole { name: "MCP without a credential", open_on: OLDEST, play: |side| anonymous_mcp(side).boxed() }];
    for agno in Agno::ALL {
        play(agno, Setup::open(agno).and("MCP", "1").and("OS_SECURITY_KEY", AGENTOS_KEY), HOLE).await;
    }
}

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

/// Opens a session and calls `run_agent`; gives what came back.
async fn run_by_mcp(side: &Side, who: Person) -> String {
    let opened = side.send(who, initialize()).await;
    let Some(session) = opened.header("mcp-session-id").map(str::to_owned) else { return said(&opened) };
    let ready = Ask::post("/mcp").header("accept", MCP_TYPES).header("mcp-session-id", &session);
    side.send(who, ready.json(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }))).await;
    let (id, text) = if side.gateway { ("agent", "message") } else { ("agent_id", "message") };
    let call = message("tools/call", &json!({ "name": "run_agent", "arguments": { id: "assistant", text: "by-mcp" } }));
    side.send(who, call.header("mcp-session-id", &session)).await.text()
}

async fn mcp(side: &Side) -> Seen {
    let nobody = run_by_mcp(side, NOBODY).await;
    let own = if side.gateway { run_by_mcp(side, ALICE).await } else { "echo: by-mcp".into() };
    let cut = |text: &str| text.chars().take(200).collect::<String>();
    let asked = format!("nobody {}; alice {}", cut(&nobody), cut(&own));
    Seen { open: nobody.contains("echo: by-mcp"), owner: own.contains("echo: by-mcp"), said: asked }
}

async fn anonymous_mcp(side: &Side) -> Seen {
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
