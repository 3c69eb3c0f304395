//! Owns a Redis of a test's own: on a socket in a temporary folder, so that no two tests share a port or a key.
//! Does not persist: a server that is killed has lost everything.
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tollbridge::secret::Secret;

/// A server that ends with the value.
pub(crate) struct RedisServer {
    folder: TempDir,
    options: Vec<String>,
    child: Option<Child>,
}

impl RedisServer {
    /// Starts a server and waits until it answers.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// Starts a server with further options.
    pub(crate) fn with(options: &[&str]) -> Self {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut server = Self { folder: TempDir::new().unwrap(), options, child: None };
        server.revive();
        server
    }

    /// What a configuration names.
    pub(crate) fn url(&self) -> Secret {
        Secret::new(format!("unix://{}", self.socket().display()))
    }

    /// Ends the server as a power cut would.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Sends it a signal by name: one that is stopped is connected to and says nothing.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Starts it again, empty.
    pub(crate) fn revive(&mut self) {
        let mut child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(self.socket())
            .args(&self.options)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`redis-server` is needed for the tests: run `make deps`, or install Redis or Valkey");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("eady to accept connections")));
        assert!(ready.is_some(), "redis-server ended at its start");
        // Its further lines are few; the pipe holds them.
        std::mem::forget(lines);
        self.child = Some(child);
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}
