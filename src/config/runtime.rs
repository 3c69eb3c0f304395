//! Owns what `server` needs to know before it starts: address, threads, drain and connection limits.
//! Stands here because `server` is above this floor and reads it back as `server::Settings`.
//! Holds no secret.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Settings of the runtime and the accept loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSettings {
    /// Address of the AgentOS API and of `/mcp`. Port 0 asks the system for a free one.
    pub listen: SocketAddr,
    /// Worker threads.
    pub threads: Threads,
    /// How long exchanges in flight may take to end after SIGTERM.
    pub drain_timeout: Duration,
    /// How long they may take after a new binary has taken over.
    pub upgrade_timeout: Duration,
    /// Where the id of the process is written.
    pub pid_file: Option<PathBuf>,
    /// How often files are looked at, to reload what changed; `None`: never.
    pub watch: Option<Duration>,
    /// Open connections; further ones wait in the listen queue.
    pub connections_max: usize,
}

/// How many worker threads run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// One per core.
    Auto,
    /// That many.
    Count(usize),
}
