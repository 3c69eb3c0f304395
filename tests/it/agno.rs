//! Owns the real AgentOS of the integration tests: the example application on agno from PyPI, a port chosen by the
//! system and kept across restarts, data in a temporary folder, killed on drop.
//! Does not create virtual environments: `make venvs` does.

#![allow(dead_code, reason = "a fixture offers more than each test takes")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

/// How long a replica may take to answer; a cold Python on a busy machine is slow.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// The agno releases that the tests run: the oldest and the newest supported one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Agno {
    /// 2.5.6
    Oldest,
    /// 3.1.10
    Newest,
}

/// Makes a test for each release of a function that takes one.
macro_rules! on_each_agno {
    ($($name:ident: $body:ident),+ $(,)?) => {$(
        mod $name {
            use crate::agno::Agno;

            #[tokio::test]
            async fn on_the_oldest_agno() {
                super::$body(Agno::Oldest).await;
            }

            #[tokio::test]
            async fn on_the_newest_agno() {
                super::$body(Agno::Newest).await;
            }
        }
    )+};
}
pub(crate) use on_each_agno;

/// What is common to the replicas of one AgentOS.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// The release.
    pub(crate) agno: Agno,
    /// The secret of its tokens (HS256, audience `my-os`); `None` turns authorization off.
    pub(crate) jwt_key: Option<String>,
    /// Further variables, as the example documents them.
    pub(crate) environment: Vec<(&'static str, String)>,
}

/// One running replica.
pub(crate) struct AgentOs {
    port: u16,
    /// Bound to the port and never listening: while the process is away nobody else gets it, and nobody answers there.
    reserved: Socket,
    setup: Setup,
    folder: Arc<TempDir>,
    name: &'static str,
    child: Child,
    _stdout: BufReader<ChildStdout>,
}

// === impl Agno ===

impl Agno {
    /// Both releases, for tests that run on each.
    pub(crate) const ALL: [Self; 2] = [Self::Oldest, Self::Newest];

    /// The release number.
    pub(crate) fn version(self) -> &'static str {
        match self {
            Self::Oldest => "2.5.6",
            Self::Newest => "3.1.10",
        }
    }

    /// The interpreter that has it installed.
    pub(crate) fn python(self) -> PathBuf {
        let root = std::env::var_os("AGNO_VENVS").map_or_else(|| repository().to_owned(), PathBuf::from);
        let python = root.join(format!(".venv-agno-{}/bin/python", self.version()));
        assert!(python.exists(), "no agno {} to test with: run `make venvs`", self.version());
        python
    }
}

// === impl Setup ===

impl Setup {
    /// Authorization on with this secret, scheduler and traces off, slow answers short.
    pub(crate) fn with_jwt(agno: Agno, jwt_key: &str) -> Self {
        let environment = vec![("SLOW_CHUNKS", "20".to_owned()), ("SLOW_DELAY", "0.1".to_owned())];
        Self { agno, jwt_key: Some(jwt_key.to_owned()), environment }
    }

    /// Authorization off: the bare AgentOS whose holes a test shows first.
    pub(crate) fn open(agno: Agno) -> Self {
        Self { jwt_key: None, ..Self::with_jwt(agno, "") }
    }

    /// Adds a variable.
    pub(crate) fn and(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }
}

// === impl AgentOs ===

impl AgentOs {
    /// Starts a replica with a new database and waits until it answers.
    pub(crate) async fn start(setup: Setup) -> Self {
        Self::start_in(setup, Arc::new(TempDir::new().unwrap()), "first", reserve()).await
    }

    /// Starts another replica over the same database.
    pub(crate) async fn replica(&self) -> Self {
        Self::start_in(self.setup.clone(), Arc::clone(&self.folder), "second", reserve()).await
    }

    /// Kills the process, unless it is dead already, and starts it anew where it was: what it held in memory is lost.
    pub(crate) async fn restart(self) -> Self {
        let Self { setup, folder, name, reserved, mut child, .. } = self;
        // It may have been killed before.
        let _ = child.kill().await;
        Self::start_in(setup, folder, name, reserved).await
    }

    /// Its port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its origin, as an endpoint in a configuration.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Kills it, and waits until the system has closed what it had open: until then it takes connections.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Sends it a signal by name: `STOP`, `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        let sent = std::process::Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
        assert!(sent.success());
    }

    async fn start_in(setup: Setup, folder: Arc<TempDir>, name: &'static str, reserved: Socket) -> Self {
        let port = reserved.local_addr().unwrap().as_socket().unwrap().port();
        let log = folder.path().join(format!("{name}.log"));
        let mut child = command(&setup, folder.path(), &log, port).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        let read = tokio::time::timeout(START_DEADLINE, stdout.read_line(&mut line)).await;
        let said = serde_json::from_str::<serde_json::Value>(&line).unwrap_or_default();
        if said["listening"] != port {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            panic!("agno {} did not start ({read:?}); it said:\n{said}", setup.agno.version());
        }
        Self { port, reserved, setup, folder, name, child, _stdout: stdout }
    }
}

/// A free port of 127.0.0.1, for a process that shares addresses as servers do.
fn reserve() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket
}

fn command(setup: &Setup, folder: &Path, log: &Path, port: u16) -> Command {
    let mut command = Command::new(setup.agno.python());
    command
        .arg(repository().join("examples/agentos/app.py"))
        .current_dir(folder)
        .env("PORT", port.to_string())
        .env("DB", folder.join("agentos.db"))
        .env("LANCE", folder.join("vectors"))
        .env("AUTH", if setup.jwt_key.is_some() { "1" } else { "0" })
        .env("JWT_KEY", setup.jwt_key.as_deref().unwrap_or_default())
        .envs(setup.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(log).unwrap())
        .kill_on_drop(true);
    command
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[tokio::test]
async fn both_agno_releases_start_and_answer() {
    for agno in Agno::ALL {
        let os = AgentOs::start(Setup::open(agno)).await;
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", os.port())).await.unwrap();
        let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        tokio::io::AsyncWriteExt::write_all(&mut stream, request).await.unwrap();
        let mut answer = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
}
