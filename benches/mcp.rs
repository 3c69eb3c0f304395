//! Measures the MCP endpoint: requests per second against AgentOS's own MCP server, and what a call costs beyond its REST twin.
//! Does not judge: it prints medians and ratios; `benches/README.md` states the budgets.
//! Every role is a process of its own, loaded in turns. AgentOS's own server is the example's, in the environment that
//! `make venvs` makes; without it that comparison is left out, which is said.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a benchmark may panic and talks"
)]
#![allow(missing_docs, reason = "a binary")]

mod stand;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use stand::{Role, block_on, say};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
const CONNECTIONS: usize = 32;
/// Calls whose time is taken one by one, of each kind.
const CALLS: usize = 2_000;
const MODERN: &str = "2026-07-28";

fn main() {
    match std::env::args().nth(1).unwrap_or_default().as_str() {
        "upstream" => block_on(upstream()),
        _ => block_on(compare()),
    }
}

// === the upstream: answers everything at once ===

async fn upstream() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    say(listener.local_addr().unwrap());
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                socket.set_nodelay(true).unwrap();
                tokio::task::spawn_local(serve(socket));
            }
        })
        .await;
}

async fn serve(mut socket: TcpStream) {
    let mut buffer = Vec::with_capacity(4096);
    loop {
        let Some((head, body)) = read_message(&mut socket, &mut buffer).await else { return };
        let answer = if head.contains("/runs ") {
            run(&String::from_utf8_lossy(&body))
        } else if head.contains("/knowledge/search") {
            let hits: Vec<Value> = (0..5).map(|n| json!({"id": n, "name": "a", "content": "x".repeat(400)})).collect();
            plain("application/json", &json!({"data": hits, "meta": {"page": 1, "limit": 10}}).to_string())
        } else if head.starts_with("GET /agents ") {
            plain("application/json", r#"[{"id":"assistant","name":"Assistant"}]"#)
        } else if head.starts_with("GET /teams ") || head.starts_with("GET /workflows ") {
            plain("application/json", "[]")
        } else {
            plain("application/json", "{}")
        };
        if socket.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// A run that ends at once, as a whole or as a stream, as it was asked for.
fn run(form: &str) -> String {
    let field = |name: &str| {
        let mut fields = url::form_urlencoded::parse(form.as_bytes());
        fields.find(|(field, _)| field == name).map(|(_, value)| value.into_owned())
    };
    let run = field("run_id").unwrap_or_else(|| "r".to_owned());
    let done = json!({"event": "RunCompleted", "run_id": run, "session_id": "s", "agent_id": "assistant",
        "content": "a short answer", "status": "COMPLETED"});
    if field("stream").as_deref() == Some("false") {
        return plain("application/json", &done.to_string());
    }
    let started = json!({"event": "RunStarted", "run_id": run, "session_id": "s", "agent_id": "assistant"});
    plain("text/event-stream", &format!("event: RunStarted\ndata: {started}\n\nevent: RunCompleted\ndata: {done}\n\n"))
}

fn plain(content_type: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Reads one message with its body, whose length is declared or whose chunks have an end.
async fn read_message(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let at = read_until(socket, buffer, b"\r\n\r\n").await?;
    let head = String::from_utf8_lossy(&buffer[..at]).into_owned();
    buffer.drain(..at + 4);
    let field = |name: &str| {
        head.lines().find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let length = if field("transfer-encoding").is_some() {
        read_until(socket, buffer, b"0\r\n\r\n").await? + 5
    } else {
        field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)
    };
    while buffer.len() < length {
        if socket.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = buffer.drain(..length).collect();
    Some((head, body))
}

async fn read_until(socket: &mut TcpStream, buffer: &mut Vec<u8>, end: &[u8]) -> Option<usize> {
    loop {
        if let Some(at) = memchr::memmem::find(buffer, end) {
            return Some(at);
        }
        if socket.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

// === the roles ===

/// The example AgentOS with its own MCP server, open to everybody: it has less to do than the gateway.
fn start_agentos(folder: &Path) -> Option<Role> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join(".venv-agno-3.1.10/bin/python");
    if !python.exists() {
        return None;
    }
    let mut command = Command::new(python);
    command.arg(root.join("examples/agentos/app.py")).current_dir(folder);
    command.env("PORT", "0").env("MCP", "1").stdout(Stdio::piped()).stderr(Stdio::null());
    let port = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        SocketAddr::from(([127, 0, 0, 1], u16::try_from(line["listening"].as_u64().unwrap()).unwrap()))
    };
    Some(Role::spawn(&mut command, port))
}

// === requests ===

fn post(path: &str, headers: &str, content_type: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json, text/event-stream\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// A request of the stateless revision.
fn modern(token: &str, method: &str, name: &str, mut params: Value) -> Vec<u8> {
    params["_meta"] =
        json!({"io.modelcontextprotocol/protocolVersion": MODERN, "io.modelcontextprotocol/clientCapabilities": {}});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
    let name = if name.is_empty() { String::new() } else { format!("Mcp-Name: {name}\r\n") };
    let headers =
        format!("Authorization: Bearer {token}\r\nMCP-Protocol-Version: {MODERN}\r\nMcp-Method: {method}\r\n{name}");
    post("/mcp", &headers, "application/json", &body)
}

fn tool(token: &str, name: &str, arguments: &Value) -> Vec<u8> {
    modern(token, "tools/call", name, json!({"name": name, "arguments": arguments}))
}

/// Opens a session at AgentOS's own server and gives its `tools/list`.
async fn session_list(address: SocketAddr) -> Vec<u8> {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let open = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25",
        "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}});
    let mut buffer = Vec::new();
    socket.write_all(&post("/mcp", "", "application/json", &open.to_string())).await.unwrap();
    let (head, _) = read_message(&mut socket, &mut buffer).await.unwrap();
    let id = head
        .lines()
        .find_map(|line| line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("mcp-session-id")));
    let headers =
        format!("Mcp-Session-Id: {}\r\nMCP-Protocol-Version: 2025-11-25\r\n", id.expect("a session").1.trim());
    let ready = json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string();
    let (status, _) = exchange(&mut socket, &post("/mcp", &headers, "application/json", &ready), &mut buffer).await;
    assert_eq!(status, 202);
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).to_string();
    post("/mcp", &headers, "application/json", &list)
}

async fn exchange(socket: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) -> (u16, Vec<u8>) {
    socket.write_all(request).await.unwrap();
    let (head, body) = read_message(socket, buffer).await.expect("an answer");
    (head[9..12].parse().unwrap(), body)
}

/// Sends a request until it is answered with what is wanted.
async fn wait_until(address: SocketAddr, request: &[u8], wanted: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Ok(mut socket) = TcpStream::connect(address).await {
            let (status, body) = exchange(&mut socket, request, &mut Vec::new()).await;
            let body = String::from_utf8_lossy(&body).into_owned();
            if status == 200 && body.contains(wanted) {
                return;
            }
            assert!(Instant::now() < deadline, "{status} {body}");
        }
        assert!(Instant::now() < deadline, "{address} did not come up");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

// === the comparison ===

async fn compare() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Role::start(&["upstream"]);
    let (gateway, token) = stand::gateway(folder.path(), upstream.address);
    let agentos = start_agentos(folder.path());
    let bearer = format!("Authorization: Bearer {token}\r\n");
    let list = modern(&token, "tools/list", "", json!({}));
    let search = tool(&token, "search_knowledge", &json!({"query": "x"}));
    let run = tool(&token, "run_agent", &json!({"agent": "assistant", "kind": "agent", "message": "x"}));
    let query = json!({"query": "x", "max_results": 10, "meta": {"limit": 10, "page": 1}}).to_string();
    let rest_search = post("/knowledge/search", &bearer, "application/json", &query);
    let form = "application/x-www-form-urlencoded";
    let rest_run = post("/agents/assistant/runs", &bearer, form, "message=x&stream=true");
    wait_until(gateway.address, &list, "run_agent").await;
    wait_until(gateway.address, &search, "xxx").await;
    wait_until(gateway.address, &run, "a short answer").await;
    wait_until(gateway.address, &rest_search, "xxx").await;
    wait_until(gateway.address, &rest_run, "a short answer").await;
    let own = match &agentos {
        Some(agentos) => {
            // A session for each connection: ids of requests are told apart within one.
            let mut lists = Vec::new();
            for _ in 0..CONNECTIONS {
                lists.push(session_list(agentos.address).await);
            }
            Some((agentos.address, lists))
        }
        None => None,
    };
    let mut rates: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        for (rates, request) in rates.iter_mut().zip([&list, &search, &run]) {
            rates.push(load(gateway.address, std::slice::from_ref(request)).await);
        }
        if let Some((address, lists)) = &own {
            rates[3].push(load(*address, lists).await);
        }
    }
    println!("{CONNECTIONS} connections, {ROUNDS} rounds of {} s each, interleaved; medians", ROUND.as_secs());
    let names = ["tools/list", "tools/call search_knowledge, cached", "tools/call run_agent, fake upstream"];
    let own_rate = own.is_some().then(|| median(rates[3].clone()));
    for (name, rates) in names.iter().zip(&rates) {
        let rate = median(rates.clone());
        let ratio = own_rate.map(|own| format!("{:>7.1} times AgentOS's tools/list", rate / own)).unwrap_or_default();
        println!("{name:<38} {rate:>9.0} requests/s {ratio}");
    }
    match own_rate {
        Some(rate) => {
            println!("{:<38} {rate:>9.0} requests/s (budget: at least 20 times)", "AgentOS 3.1.10's own tools/list")
        }
        None => println!("AgentOS's own server was left out: `make venvs` makes its environment"),
    }
    for (name, call, twin) in [("search_knowledge", &search, &rest_search), ("run_agent", &run, &rest_run)] {
        let [call, twin] = times(gateway.address, [call, twin]).await;
        let over = call.as_secs_f64() * 1e6 - twin.as_secs_f64() * 1e6;
        println!(
            "{name:<17} p50 {:>6} us, REST twin {:>6} us: {over:>5.0} us more (budget: 1,000)",
            call.as_micros(),
            twin.as_micros()
        );
    }
}

/// Sends as fast as answers come, each connection its own of the requests; says how many a second were answered.
async fn load(address: SocketAddr, requests: &[Vec<u8>]) -> f64 {
    let (served, stop, started) = (AtomicU64::new(0), AtomicBool::new(false), Instant::now());
    let one = async |request: &[u8]| {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let mut buffer = Vec::with_capacity(16 * 1024);
        while !stop.load(Ordering::Relaxed) {
            assert_eq!(exchange(&mut socket, request, &mut buffer).await.0, 200);
            served.fetch_add(1, Ordering::Relaxed);
        }
    };
    let all = futures_util::future::join_all(requests.iter().cycle().take(CONNECTIONS).map(|request| one(request)));
    let timer = async {
        tokio::time::sleep(ROUND).await;
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(all, timer);
    served.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64()
}

/// The median time of each request, one after the other on one connection, in turns.
async fn times(address: SocketAddr, requests: [&Vec<u8>; 2]) -> [Duration; 2] {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let (mut buffer, mut taken) = (Vec::new(), [Vec::new(), Vec::new()]);
    for _ in 0..CALLS {
        for (taken, request) in taken.iter_mut().zip(requests) {
            let started = Instant::now();
            assert_eq!(exchange(&mut socket, request, &mut buffer).await.0, 200);
            taken.push(started.elapsed());
        }
    }
    taken.map(|mut taken| {
        taken.sort_unstable();
        taken[taken.len() / 2]
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
