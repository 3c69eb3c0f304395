//! Owns what benchmarks stand on: roles that are processes of their own, a bare pingora proxy, a gateway with every
//! stage on, and what the kernel says of a process.
//! Does not measure and does not judge.
//! Invariant: a role is killed when its handle is dropped, however the benchmark ends.

#![allow(dead_code, reason = "each benchmark takes what it needs")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::prelude::{HttpPeer, ProxyHttp, Session};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const JWT_KEY: &str = "bench-bench-bench-bench-bench-bench-1";

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// A child process that is killed when the benchmark ends, however it ends.
pub(crate) struct Role {
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Role {
    /// Starts this benchmark's binary again; the child prints its address first.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        Self::spawn(command.args(arguments).stdout(Stdio::piped()), |line| line.parse().unwrap())
    }

    /// Starts a command whose first line says where it listens.
    pub(crate) fn spawn(command: &mut Command, address: impl FnOnce(&str) -> SocketAddr) -> Self {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { address: address(line.trim()), child }
    }

    /// User and system time so far.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        // USER_HZ is 100 on every Linux that counts.
        Duration::from_millis(ticks * 10)
    }

    /// Resident memory now, in KiB, shared pages of the binary included.
    pub(crate) fn resident_kib(&self) -> i64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
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

/// Serves as a bare proxy until killed.
pub(crate) fn bare(upstream: SocketAddr) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = pingora::server::Server::new(None).unwrap();
    server.bootstrap();
    let mut service = pingora::proxy::http_proxy_service(&server.configuration, Bare(upstream));
    service.threads = Some(1);
    service.add_tcp(&format!("127.0.0.1:{port}"));
    server.add_service(service);
    say(SocketAddr::from(([127, 0, 0, 1], port)));
    server.run_forever();
}

/// Tells the parent where this role listens.
pub(crate) fn say(address: SocketAddr) {
    println!("{address}");
    std::io::stdout().flush().unwrap();
}

/// Starts the release binary beside this benchmark with every stage on, and makes a token for it.
pub(crate) fn gateway(folder: &Path, upstream: SocketAddr) -> (Role, String) {
    let binary = std::env::var_os("TOLLBRIDGE_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_tollbridge")), PathBuf::from);
    let [port, admin] =
        [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
    let path = folder.join("config.toml");
    std::fs::write(&path, config(port, admin, upstream)).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&binary);
        command.args(arguments).arg("--config").arg(&path).env("STAND_KEY", JWT_KEY);
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

/// What the gateway is configured with.
fn config(port: u16, admin: u16, upstream: SocketAddr) -> String {
    let filled = [
        ("{PORT}", port.to_string()),
        ("{ADMIN}", admin.to_string()),
        ("{UPSTREAM}", upstream.to_string()),
        ("{POLICIES}", concat!(env!("CARGO_MANIFEST_DIR"), "/policies").to_owned()),
    ];
    filled.iter().fold(include_str!("gateway.toml").to_owned(), |text, (name, value)| text.replace(name, value))
}

/// A plain request for a path.
pub(crate) fn request(path: &str, token: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nUser-Agent: bench\r\nAuthorization: Bearer {token}\r\n\r\n"
    )
    .into_bytes()
}

pub(crate) async fn wait_until_up(address: SocketAddr, request: &[u8]) {
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

/// Sends a request and reads the answer with its declared body; gives the status.
pub(crate) async fn exchange(socket: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) -> Option<u16> {
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

/// Reads one head; returns it with the body length it declares.
pub(crate) async fn read_head(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(String, usize)> {
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

/// An answer with a JSON body.
pub(crate) fn json(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}
