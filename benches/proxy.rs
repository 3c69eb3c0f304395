//! Measures the gateway against a bare pingora proxy: requests per second, CPU per request, delay of streamed events.
//! Does not judge: it prints medians and ratios; `benches/README.md` states the budgets.
//! Every role is a process of its own; the two proxies are loaded in turns, so that drift hits both alike, and started anew
//! for each round: one start of a binary may be a third faster than the next.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a benchmark may panic and talks"
)]
#![allow(missing_docs, reason = "a binary")]

mod stand;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use stand::{Role, bare, block_on, exchange, gateway, json, read_head, request, say, wait_until_up};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(3);
const CONNECTIONS: usize = 32;
const STREAM_EVENTS: usize = 200;
const STREAM_PACE: Duration = Duration::from_millis(10);

fn main() {
    let role = std::env::args().nth(1).unwrap_or_default();
    match role.as_str() {
        "upstream" => block_on(upstream()),
        "bare" => bare(std::env::args().nth(2).unwrap().parse().unwrap()),
        _ => block_on(compare()),
    }
}

// === the upstream: answers everything at once, streams runs at a fixed pace ===

async fn upstream() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    say(listener.local_addr().unwrap());
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

// === the comparison ===

async fn compare() {
    let upstream = Role::start(&["upstream"]);
    let (mut bare_runs, mut proxied, mut cached) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let proxies = Proxies::start(&upstream).await;
        bare_runs.push(measure(&proxies.bare, &proxies.memories).await);
        proxied.push(measure(&proxies.gateway, &proxies.memories).await);
        cached.push(measure(&proxies.gateway, &proxies.agents).await);
    }
    let proxies = Proxies::start(&upstream).await;
    let [bare_median, proxied_median, cached_median] = [bare_runs, proxied, cached].map(median);
    println!(
        "{CONNECTIONS} connections, {ROUNDS} rounds of {} s each, each with new processes, interleaved; medians",
        ROUND.as_secs()
    );
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
    let delays =
        [("direct", upstream.address), ("bare pingora", proxies.bare.address), ("tollbridge", proxies.gateway.address)];
    for (name, address) in delays {
        let mut delays = stream_delays(address, &proxies.token).await;
        delays.sort_unstable();
        let (p50, p99) = (delays[delays.len() / 2], delays[delays.len() * 99 / 100]);
        println!("event delay, {name:<14} p50 {p50:>5} us  p99 {p99:>5} us  (budget: 50,000 us)");
    }
}

/// The two proxies, up and warm.
struct Proxies {
    bare: Role,
    gateway: Role,
    token: String,
    memories: Vec<u8>,
    agents: Vec<u8>,
    /// Holds the gateway's configuration and logs.
    _folder: tempfile::TempDir,
}

impl Proxies {
    async fn start(upstream: &Role) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bare = Role::start(&["bare", &upstream.address.to_string()]);
        let (gateway, token) = gateway(folder.path(), upstream.address);
        let (memories, agents) = (request("/memories", &token), request("/agents", &token));
        for (address, request) in [(bare.address, &memories), (gateway.address, &memories), (gateway.address, &agents)]
        {
            wait_until_up(address, request).await;
            load(address, request, Duration::from_millis(500)).await;
        }
        Self { bare, gateway, token, memories, agents, _folder: folder }
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
