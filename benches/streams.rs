//! Measures what connections that do nothing cost in memory: idle event streams, against a bare pingora proxy, and
//! slow clients: in their head, in their body, in reading.
//! Does not measure speed (`benches/proxy.rs`). Budgets stand in `benches/README.md`; a missed one fails the run.
//!
//! `cargo bench --bench streams` plays all of it; `-- idle` or `-- slow` a half; `-- idle 1000` with fewer streams.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a benchmark may panic and talks"
)]
#![allow(missing_docs, reason = "a binary")]

mod stand;

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::{FutureExt as _, join_all};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use stand::{Role, bare, block_on, exchange, gateway, json, read_head, request, say, wait_until_up};

/// As in the binary: the bare proxy of the comparison uses it too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const STREAMS: usize = 5_000;
const STREAM_BUDGET_KIB: f64 = 64.0;
const SLOW_CLIENTS: usize = 2_000;
const SLOW_HEAD_BUDGET_KIB: f64 = 16.0;
const SLOW_BODY_BUDGET_KIB: f64 = 96.0;
/// How far memory may stay above what it was.
const AFTER_BUDGET: f64 = 1.10;
/// Open files of a proxy with all streams: two sockets each, and some.
const FILES: usize = 2 * STREAMS + 500;
/// Connections that are opened at once.
const OPENING: usize = 64;
/// Longer than a keep-alive comment takes (15 s), and than what is free takes to go back to the system (10 s).
const SETTLE: Duration = Duration::from_secs(17);
/// Every slow client must be gone by then: 10 s for a head, 30 s of silence, and some.
const SLOW_DEADLINE: Duration = Duration::from_secs(70);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["upstream"] => block_on(upstream()),
        ["bare", upstream] => bare(upstream.parse().unwrap()),
        _ => {
            if let Err(said) = raise_files() {
                println!("not measured: {said}");
                return ExitCode::from(2);
            }
            let count = words.iter().find_map(|word| word.parse().ok());
            let mut held = true;
            if !words.contains(&"slow") {
                held &= block_on(idle(count.unwrap_or(STREAMS)));
            }
            if !words.contains(&"idle") {
                held &= block_on(slow(count.unwrap_or(SLOW_CLIENTS)));
            }
            return if held { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    }
    ExitCode::SUCCESS
}

/// Starts this process again with enough open files, unless it has them; its children inherit them.
fn raise_files() -> Result<(), String> {
    let limits = std::fs::read_to_string("/proc/self/limits").map_err(|error| error.to_string())?;
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    let mut numbers = line.split_whitespace().skip(3).map(|word| word.parse().unwrap_or(usize::MAX));
    let (soft, hard) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if soft >= FILES {
        return Ok(());
    }
    if hard < FILES {
        return Err(format!("{FILES} open files are needed and the hard limit is {hard}: raise it with `ulimit -Hn`"));
    }
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let script = format!("ulimit -Sn {FILES} && exec \"$0\" \"$@\"");
    // Only comes back when it failed.
    let error = Command::new("sh").args(["-c", &script]).arg(this).args(std::env::args().skip(1)).exec();
    Err(format!("{FILES} open files are needed and raising the limit from {soft} failed: {error}"))
}

// === the upstream: a run says one thing and is silent, or never stops talking ===

async fn upstream() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    say(listener.local_addr().unwrap());
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async move {
            loop {
                // With all files used up the peer is refused, not this role ended.
                let Ok((socket, _)) = listener.accept().await else { continue };
                socket.set_nodelay(true).unwrap();
                tokio::task::spawn_local(serve(socket));
            }
        })
        .await;
}

async fn serve(mut socket: TcpStream) {
    let mut buffer = Vec::new();
    loop {
        let Some((head, length)) = read_head(&mut socket, &mut buffer).await else { return };
        // Uploads come in chunks; what they hold is of no interest.
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        while if chunked { !buffer.ends_with(b"\r\n0\r\n\r\n") } else { buffer.len() < length } {
            if chunked && buffer.len() > 4096 {
                buffer.drain(..buffer.len() - 16);
            }
            if socket.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let body = String::from_utf8_lossy(&buffer).into_owned();
        buffer = Vec::new();
        // Only the start of a run streams: cancels and look-ups are answered at once, as AgentOS does.
        if head.contains("/runs HTTP/") {
            return run(socket, body.contains("flood")).await;
        }
        let body = if head.contains("/memories") {
            r#"{"data":[],"meta":{"page":1,"limit":20,"total_pages":1,"total_count":0}}"#
        } else if head.starts_with("GET ") && head.contains("/runs/") {
            // Who was cancelled has ended: a run that does not end would be followed for as long as it may last.
            r#"{"run_id":"r","session_id":"s","status":"CANCELLED"}"#
        } else {
            "{}"
        };
        if socket.write_all(json(body).as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn run(mut socket: TcpStream, flood: bool) {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let first = event("RunStarted", "");
    if socket.write_all(format!("{head}{first}").as_bytes()).await.is_err() {
        return;
    }
    let more = event("RunContent", &"x".repeat(1024));
    if flood {
        while socket.write_all(more.as_bytes()).await.is_ok() {}
        return;
    }
    // Silent until the gateway goes away.
    let _ = socket.read(&mut [0]).await;
}

fn event(name: &str, content: &str) -> String {
    let text = format!("event: {name}\ndata: {{\"event\":\"{name}\",\"run_id\":\"r\",\"content\":\"{content}\"}}\n\n");
    format!("{:x}\r\n{text}\r\n", text.len())
}

// === idle streams ===

async fn idle(count: usize) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Role::start(&["upstream"]);
    println!("{count} idle event streams, resident memory of the proxy");
    let bare = Role::start(&["bare", &upstream.address.to_string()]);
    let of_bare = streams(&bare, "bare pingora", "", count).await;
    drop(bare);
    let (gateway, token) = gateway(folder.path(), upstream.address);
    let of_gateway = streams(&gateway, "tollbridge", &token, count).await;
    let below = if of_gateway < of_bare { "below" } else { "not below" };
    println!("  tollbridge against bare pingora: {:.2} ({below})", of_gateway / of_bare);
    judge("idle stream", of_gateway, STREAM_BUDGET_KIB)
}

/// Opens streams, waits, and says what each costs.
async fn streams(role: &Role, name: &str, token: &str, count: usize) -> f64 {
    let before = warm(role, token).await;
    let run = run_request("hello", token);
    let open: Vec<TcpStream> = many(count, || async {
        let mut socket = TcpStream::connect(role.address).await.unwrap();
        socket.write_all(&run).await.unwrap();
        let mut buffer = Vec::new();
        while memchr::memmem::find(&buffer, b"RunStarted").is_none() {
            let read = socket.read_buf(&mut buffer).await.unwrap();
            assert!(read > 0, "{name} closed: {}", String::from_utf8_lossy(&buffer));
        }
        socket
    })
    .await;
    let peak = role.resident_kib();
    tokio::time::sleep(SETTLE).await;
    let settled = role.resident_kib();
    drop(open);
    tokio::time::sleep(SETTLE).await;
    let after = role.resident_kib();
    let each = (settled - before) as f64 / count as f64;
    println!(
        "  {name:<14} {each:>6.1} KiB each   (MiB: idle {}, just opened {}, settled {}, closed {})",
        before >> 10,
        peak >> 10,
        settled >> 10,
        after >> 10
    );
    each
}

/// Resident memory after a few requests.
async fn warm(role: &Role, token: &str) -> i64 {
    let memories = request("/memories", token);
    wait_until_up(role.address, &memories).await;
    many(OPENING, || async {
        let mut socket = TcpStream::connect(role.address).await.unwrap();
        assert_eq!(exchange(&mut socket, &memories, &mut Vec::new()).await, Some(200));
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    role.resident_kib()
}

fn run_request(message: &str, token: &str) -> Vec<u8> {
    let body = format!("message={message}");
    format!(
        "POST /agents/a/runs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

async fn many<T, W: Future<Output = T>>(count: usize, one: impl Fn() -> W) -> Vec<T> {
    futures_util::stream::iter((0..count).map(|_| one())).buffer_unordered(OPENING).collect().await
}

fn judge(what: &str, each: f64, budget: f64) -> bool {
    let held = each <= budget;
    println!("  {what}: {each:.1} KiB (budget {budget} KiB: {})", if held { "held" } else { "MISSED" });
    held
}

// === slow clients ===

/// One way of being slow: what is sent at once, and whether a byte follows every second.
struct Slow {
    name: &'static str,
    first: Vec<u8>,
    drip: Option<u8>,
    budget_kib: f64,
}

async fn slow(count: usize) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Role::start(&["upstream"]);
    let (gateway, token) = gateway(folder.path(), upstream.address);
    println!("{count} slow clients, resident memory of the gateway");
    warm(&gateway, &token).await;
    let ways = ways(&token);
    let before = rehearse(&gateway, &ways).await;
    let mut held = true;
    for slow in &ways {
        held &= play(&gateway, slow, count, before).await;
    }
    held
}

/// Resident memory after a few of each way, that of deadlines too: code that has run stays, whoever comes after.
async fn rehearse(gateway: &Role, ways: &[Slow]) -> i64 {
    let few = ways.iter().map(|slow| async {
        let clients = many(OPENING, || connect_slowly(gateway.address, &slow.first)).await;
        join_all(clients.into_iter().map(|socket| until_closed(socket, slow.drip))).await;
    });
    join_all(few).await;
    tokio::time::sleep(SETTLE).await;
    gateway.resident_kib()
}

fn ways(token: &str) -> Vec<Slow> {
    let head = format!("GET /memories HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nX-Slow: ");
    let post = |kind: &str, length: usize, body: String| {
        let head = format!(
            "POST /agents/a/runs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        head.into_bytes()
    };
    let form = post("application/x-www-form-urlencoded", 512 << 10, format!("message={}", "x".repeat(16 << 10)));
    let file = "--b\r\nContent-Disposition: form-data; name=\"message\"\r\n\r\nread this\r\n--b\r\nContent-Disposition: form-data; name=\"files\"; filename=\"a.txt\"\r\nContent-Type: text/plain\r\n\r\n";
    let upload = post("multipart/form-data; boundary=b", 8 << 20, format!("{file}{}", "x".repeat(128 << 10)));
    let way = |name, first, drip, budget_kib| Slow { name, first, drip, budget_kib };
    vec![
        way("slow in its head", head.into_bytes(), Some(b'x'), SLOW_HEAD_BUDGET_KIB),
        way("silent in a form", form.clone(), None, SLOW_BODY_BUDGET_KIB),
        way("dripping a form", form, Some(b'x'), SLOW_BODY_BUDGET_KIB),
        way("silent in an upload", upload, None, SLOW_BODY_BUDGET_KIB),
        way("slow in reading", run_request("flood", token), None, SLOW_BODY_BUDGET_KIB),
    ]
}

/// Opens the slow connections, measures what they hold, waits until the gateway has closed them all, measures again.
async fn play(gateway: &Role, slow: &Slow, count: usize, before: i64) -> bool {
    let started = Instant::now();
    let idle = gateway.resident_kib();
    let clients: Vec<_> = many(count, || connect_slowly(gateway.address, &slow.first)).await;
    let opened = started.elapsed();
    let mut peak = gateway.resident_kib();
    let waiting = join_all(clients.into_iter().map(|socket| until_closed(socket, slow.drip)));
    let watching = async {
        loop {
            tokio::time::sleep(Duration::from_millis(250)).await;
            peak = peak.max(gateway.resident_kib());
        }
    };
    let closed: Vec<bool> = tokio::select! { closed = waiting => closed, () = watching => Vec::new() };
    let gone = started.elapsed();
    tokio::time::sleep(SETTLE).await;
    let after = gateway.resident_kib();
    let each = (peak - idle) as f64 / count as f64;
    let all = closed.iter().all(|closed| *closed);
    println!(
        "  {:<20} opened in {:.1} s, {} after {:.1} s   (MiB: idle {}, peak {}, closed {})",
        slow.name,
        opened.as_secs_f64(),
        if all { "all closed" } else { "NOT ALL CLOSED" },
        gone.as_secs_f64(),
        idle >> 10,
        peak >> 10,
        after >> 10
    );
    let kept = after as f64 / before as f64;
    let back = kept <= AFTER_BUDGET;
    println!(
        "  memory after, against idle: {kept:.2} (budget {AFTER_BUDGET:.2}: {})",
        if back { "held" } else { "MISSED" }
    );
    judge(slow.name, each, slow.budget_kib) & all & back
}

async fn connect_slowly(address: SocketAddr, first: &[u8]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    // A small window: what is not read must stay with the gateway, not with the kernel.
    socket.set_recv_buffer_size(4096).unwrap();
    let mut socket = socket.connect(address).await.unwrap();
    // A gateway that does not read on is what is measured: do not wait for it.
    let _ = tokio::time::timeout(Duration::from_millis(100), socket.write_all(first)).await;
    socket
}

/// Drips or waits, reads nothing, and says whether the gateway closed in time.
async fn until_closed(mut socket: TcpStream, drip: Option<u8>) -> bool {
    let deadline = Instant::now() + SLOW_DEADLINE;
    while Instant::now() < deadline {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if let Some(byte) = drip
            && socket.write_all(&[byte]).await.is_err()
        {
            return true;
        }
        // Looks without taking: an answer that waits to be read does not hide the close behind it.
        let state = socket.ready(tokio::io::Interest::READABLE | tokio::io::Interest::ERROR).now_or_never();
        if state.is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed() || ready.is_error())) {
            return true;
        }
    }
    false
}
