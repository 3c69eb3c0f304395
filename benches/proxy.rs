//! Measures the gateway against a bare pingora proxy: requests per second, CPU per request, delay of streamed events.
//! Does not judge: it prints medians and ratios; `benches/README.md` states the budgets.
//! Every role is a process of its own; the two proxies are loaded in turns, so that drift hits both alike.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a benchmark may panic and talks"
)]
#![allow(missing_docs, reason = "a binary")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::prelude::{HttpPeer, ProxyHttp, Session};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(3);
const CONNECTIONS: usize = 32;
const STREAM_EVENTS: usize = 200;
const STREAM_PACE: Duration = Duration::from_millis(10);
const JWT_KEY: &str = "bench-bench-bench-bench-bench-bench-1";

fn main() {
    let role = std::env::args().nth(1).unwrap_or_default();
    match role.as_str() {
        "upstream" => block_on(upstream()),
        "bare" => bare(std::env::args().nth(2).unwrap().parse().unwrap()),
        _ => block_on(compare()),
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

// === the upstream: answers everything at once, streams runs at a fixed pace ===

async fn upstream() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    std::io::stdout().flush().unwrap();
    let rows: Vec<String> = (0..8)
        .map(|n| format!(r#"{{"memory_id":"m{n}","memory":"a small thing to remember","user_id":"acme~alice"}}"#))
        .collect();
    let memories =
        format!(r#"{{"data":[{}],"meta":{{"page":1,"limit":20,"total_pages":1,"total_count":8}}}}"#, rows.join(","));
    let agents: Vec<String> =
        (0..8).map(|n| format!(r#"{{"id":"agent-{n}","name":"Agent {n}","description":"one of eight"}}"#)).collect();
    let bodies = Arc::new((json(&memories), json(&format!("[{}]", agents.join(","))), json("{}")));
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                socket.set_nodelay(true).unwrap();
                tokio::task::spawn_local(serve(socket, Arc::clone(&bodies)));
            }
        })
        .await;
}

fn json(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

async fn serve(mut socket: TcpStream, bodies: Arc<(String, String, String)>) {
    let mut buffer = Vec::with_capacity(4096);
    loop {
        let Some((head, length)) = read_head(&mut socket, &mut buffer).await else { return };
        while buffer.len() < length {
            if socket.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        }
        buffer.drain(..length);
        if head.contains("/runs") {
            return stream(socket).await;
        }
        let body = if head.contains("/memories") {
            &bodies.0
        } else if head.starts_with("GET /agents ") {
            &bodies.1
        } else {
            &bodies.2
        };
        if socket.write_all(body.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Reads one head; returns it with the body length it declares.
async fn read_head(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(String, usize)> {
    loop {
        if let Some(at) = memchr::memmem::find(buffer, b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&buffer[..at]).into_owned();
            buffer.drain(..at + 4);
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
            });
            return Some((head, length.unwrap_or(0)));
        }
        if socket.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

/// Streams events that carry the time of their sending.
async fn stream(mut socket: TcpStream) {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    for n in 0..STREAM_EVENTS {
        tokio::time::sleep(STREAM_PACE).await;
        let last = n + 1 == STREAM_EVENTS;
        let name = if last { "RunCompleted" } else { "RunContent" };
        let event = format!("event: {name}\ndata: {{\"event\":\"{name}\",\"run_id\":\"r\",\"at\":{}}}\n\n", now_us());
        if socket.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await.is_err() {
            return;
        }
    }
    let _ = socket.write_all(b"0\r\n\r\n").await;
}

fn now_us() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros()
}

// === the bare proxy: pingora as it comes, one thread, no filters ===

struct Bare(SocketAddr);

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.0, false, String::new())))
    }
}

fn bare(upstream: SocketAddr) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = pingora::server::Server::new(None).unwrap();
    server.bootstrap();
    let mut service = pingora::proxy::http_proxy_service(&server.configuration, Bare(upstream));
    service.threads = Some(1);
    service.add_tcp(&format!("127.0.0.1:{port}"));
    server.add_service(service);
    println!("127.0.0.1:{port}");
    std::io::stdout().flush().unwrap();
    server.run_forever();
}

// === the comparison ===

/// A child process that is killed when the benchmark ends, however it ends.
struct Role {
    child: Child,
    address: SocketAddr,
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Role {
    fn start(arguments: &[&str]) -> Self {
        let mut child =
            Command::new(std::env::current_exe().unwrap()).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { address: line.trim().parse().unwrap(), child }
    }

    /// User and system time so far.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        // USER_HZ is 100 on every Linux that counts.
        Duration::from_millis(ticks * 10)
    }
}

async fn compare() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Role::start(&["upstream"]);
    let bare = Role::start(&["bare", &upstream.address.to_string()]);
    let (gateway, token) = gateway(folder.path(), upstream.address);
    let memories = request("/memories", &token);
    let agents = request("/agents", &token);
    for (address, request) in [(bare.address, &memories), (gateway.address, &memories), (gateway.address, &agents)] {
        wait_until_up(address, request).await;
        load(address, request, Duration::from_millis(500)).await;
    }
    let (mut bare_runs, mut proxied, mut cached) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bare_runs.push(measure(&bare, &memories).await);
        proxied.push(measure(&gateway, &memories).await);
        cached.push(measure(&gateway, &agents).await);
    }
    let [bare_median, proxied_median, cached_median] = [bare_runs, proxied, cached].map(median);
    println!("{CONNECTIONS} connections, {ROUNDS} rounds of {} s each, interleaved; medians", ROUND.as_secs());
    let line =
        |name: &str, (rate, cpu): (f64, f64)| println!("{name:<28} {rate:>9.0} requests/s  {cpu:>6.1} us CPU each");
    line("bare pingora, proxied", bare_median);
    line("tollbridge, proxied", proxied_median);
    line("tollbridge, from its cache", cached_median);
    println!(
        "throughput, proxied, against bare pingora: {:.2} (budget: at least 0.90)",
        proxied_median.0 / bare_median.0
    );
    println!(
        "CPU, cached against proxied:               {:.2} (budget: below 1.00)",
        cached_median.1 / proxied_median.1
    );
    let delays = [("direct", upstream.address), ("bare pingora", bare.address), ("tollbridge", gateway.address)];
    for (name, address) in delays {
        let mut delays = stream_delays(address, &token).await;
        delays.sort_unstable();
        let (p50, p99) = (delays[delays.len() / 2], delays[delays.len() * 99 / 100]);
        println!("event delay, {name:<14} p50 {p50:>5} us  p99 {p99:>5} us  (budget: 50,000 us)");
    }
}

/// Starts the release binary beside this benchmark with every stage on.
fn gateway(folder: &Path, upstream: SocketAddr) -> (Role, String) {
    let binary = std::env::var_os("TOLLBRIDGE_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_tollbridge")), PathBuf::from);
    let [port, admin] =
        [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
    let policies = concat!(env!("CARGO_MANIFEST_DIR"), "/policies");
    let config = format!(
        r#"
[server]
listen = "127.0.0.1:{port}"
public_url = "http://127.0.0.1:{port}"
threads = 1
secret = {{ env = "BENCH_KEY" }}
[admin]
listen = "127.0.0.1:{admin}"
[[clusters]]
name = "main"
endpoints = ["http://{upstream}"]
credential = {{ mint = {{ algorithm = "HS256", key = {{ env = "BENCH_KEY" }}, audience = "bench" }} }}
knowledge = "exclusive"
[[identity.issuers]]
issuer = "bench"
audiences = ["tollbridge"]
algorithms = ["HS256"]
key = {{ env = "BENCH_KEY" }}
[policy]
dir = "{policies}"
[plans.fast]
requests = {{ per_second = 1_000_000, burst = 1_000_000 }}
concurrent_runs = 1000
tokens = {{ per_month = 1_000_000_000 }}
[tenants.acme]
plan = "fast"
[quota]
default_plan = "fast"
flood = {{ per_second = 1_000_000, burst = 1_000_000 }}
[[cache.rules]]
operation = "get_agents"
ttl = "1h"
[telemetry]
access_log = {{ file = "access.jsonl" }}
audit_log = {{ file = "audit.jsonl" }}
"#
    );
    let path = folder.join("config.toml");
    std::fs::write(&path, config).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&binary);
        command.args(arguments).arg("--config").arg(&path).env("BENCH_KEY", JWT_KEY);
        command
    };
    let token = run(&["token", "--tenant", "acme", "--subject", "alice", "--role", "operator", "--ttl", "2h"])
        .output()
        .unwrap();
    assert!(token.status.success(), "{}", String::from_utf8_lossy(&token.stderr));
    let child = run(&["run"]).stderr(Stdio::null()).spawn().unwrap();
    let role = Role { child, address: SocketAddr::from(([127, 0, 0, 1], port)) };
    (role, String::from_utf8(token.stdout).unwrap().trim().to_owned())
}

fn request(path: &str, token: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nUser-Agent: bench\r\nAuthorization: Bearer {token}\r\n\r\n").into_bytes()
}

async fn wait_until_up(address: SocketAddr, request: &[u8]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok(mut socket) = TcpStream::connect(address).await
            && exchange(&mut socket, request, &mut Vec::new()).await == Some(200)
        {
            return;
        }
        assert!(Instant::now() < deadline, "{address} did not come up");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn measure(role: &Role, request: &[u8]) -> (f64, f64) {
    let (started, cpu) = (Instant::now(), role.cpu());
    let served = load(role.address, request, ROUND).await;
    let spent = (role.cpu() - cpu).as_secs_f64() * 1e6;
    (served as f64 / started.elapsed().as_secs_f64(), spent / served as f64)
}

/// Sends as fast as answers come, on every connection, for a time. Says how many were answered.
async fn load(address: SocketAddr, request: &[u8], time: Duration) -> u64 {
    let (served, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let one = || async {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let mut buffer = Vec::with_capacity(8192);
        while !stop.load(Ordering::Relaxed) {
            assert_eq!(exchange(&mut socket, request, &mut buffer).await, Some(200));
            served.fetch_add(1, Ordering::Relaxed);
        }
    };
    let all = futures_util::future::join_all((0..CONNECTIONS).map(|_| one()));
    let timer = async {
        tokio::time::sleep(time).await;
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(all, timer);
    served.load(Ordering::Relaxed)
}

async fn exchange(socket: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) -> Option<u16> {
    socket.write_all(request).await.ok()?;
    let (head, length) = read_head(socket, buffer).await?;
    while buffer.len() < length {
        if socket.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    buffer.drain(..length);
    head.get(9..12)?.parse().ok()
}

/// Starts one streamed run and says by how much each event came later than it was sent.
async fn stream_delays(address: SocketAddr, token: &str) -> Vec<u128> {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let body = "message=hello";
    let head = format!(
        "POST /agents/a/runs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let delays = Mutex::new(Vec::new());
    let mut buffer = Vec::new();
    while delays.lock().unwrap().len() < STREAM_EVENTS && socket.read_buf(&mut buffer).await.unwrap() > 0 {
        let now = now_us();
        while let Some(at) = memchr::memmem::find(&buffer, b"\n\n") {
            let event = String::from_utf8_lossy(&buffer[..at]).into_owned();
            buffer.drain(..at + 2);
            if let Some((_, sent)) = event.rsplit_once("\"at\":") {
                let sent: u128 = sent.trim_end_matches('}').parse().unwrap();
                delays.lock().unwrap().push(now.saturating_sub(sent));
            }
        }
    }
    delays.into_inner().unwrap()
}

fn median(mut runs: Vec<(f64, f64)>) -> (f64, f64) {
    let middle = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (rates, cpus) = runs.drain(..).unzip();
    (middle(rates), middle(cpus))
}
