//! Owns the events of the gateway as values: what happened in one exchange, in the words of logs and metrics.
//! Does not format or count them (`log`, `metrics`).
//! Invariant: nothing here can hold a token, a prompt or an answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::principal::TenantId;

/// The door that an exchange came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Door {
    /// The AgentOS API over HTTP.
    Http,
    /// An MCP call.
    Mcp,
    /// A message of the workflow WebSocket.
    WebSocket,
}

/// What the cache said about an exchange (RFC 9211 terms).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CacheResult {
    /// Served from the cache.
    Hit,
    /// Looked up, not there, fetched.
    Miss,
    /// Not a cacheable exchange.
    Bypass,
}

/// Model tokens used by an exchange, per model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelTokens {
    /// Model id as AgentOS reports it.
    pub model: String,
    /// Input tokens.
    pub input: u64,
    /// Output tokens.
    pub output: u64,
}

/// Everything that is said about one exchange, once, when it has ended.
#[derive(Debug, Clone)]
pub struct ExchangeFinished {
    /// The door.
    pub door: Door,
    /// Request id, ours or the caller's.
    pub request_id: Arc<str>,
    /// Caller's address.
    pub peer: IpAddr,
    /// HTTP method word, from a closed set; `other` for unknown ones.
    pub method: &'static str,
    /// Operation id; `None` when no row matched.
    pub operation: Option<&'static str>,
    /// `ok`, or the refusal code.
    pub code: &'static str,
    /// HTTP status sent to the caller (also computed for MCP).
    pub status: u16,
    /// Where it stopped, for refusals: `identity`, `policy`, `quota`, …
    pub stage: Option<&'static str>,
    /// Why, for the operator; never sent to the caller.
    pub reason: Option<String>,
    /// Cluster name.
    pub cluster: Option<Arc<str>>,
    /// Endpoint address.
    pub endpoint: Option<Arc<str>>,
    /// Tenant, when known.
    pub tenant: Option<TenantId>,
    /// Subject, when known.
    pub subject: Option<Arc<str>>,
    /// Policies that decided.
    pub policies: Arc<[Arc<str>]>,
    /// What policies under trial would have answered, where that differs.
    pub shadow: Option<Box<ShadowDecision>>,
    /// Cache result.
    pub cache: CacheResult,
    /// Run id, when the exchange started or followed a run.
    pub run_id: Option<String>,
    /// From the accepted head to the end of the answer.
    pub duration: Duration,
    /// From the accepted head to the first byte of the answer's body; `None` when none was sent.
    pub time_to_first_byte: Option<Duration>,
    /// Body bytes sent to the caller.
    pub bytes_sent: u64,
    /// Attempts upstream.
    pub attempts: u32,
    /// Model tokens.
    pub tokens: Vec<ModelTokens>,
}

/// What the policies in `shadow/` would have answered together with the enforced ones. Never enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShadowDecision {
    /// Whether the call would have been permitted.
    pub allow: bool,
    /// The policies that would have decided; none when nothing would have permitted.
    pub policies: Arc<[Arc<str>]>,
}

/// One line of the audit log: a decision that refuses or writes.
#[derive(Debug, Clone)]
pub struct AuditEvent {
    /// Request id.
    pub request_id: Arc<str>,
    /// The door.
    pub door: Door,
    /// Tenant, when known.
    pub tenant: Option<TenantId>,
    /// Subject, when known.
    pub subject: Option<Arc<str>>,
    /// Operation id.
    pub operation: Option<&'static str>,
    /// Resource type and id, such as `Agent::web-agent`.
    pub resource: Option<String>,
    /// Approvals of AgentOS that decided.
    pub approvals: Vec<String>,
    /// Policies that decided.
    pub policies: Arc<[Arc<str>]>,
    /// What policies under trial would have answered, where that differs.
    pub shadow: Option<Box<ShadowDecision>>,
    /// Where it stopped, for refusals.
    pub stage: Option<&'static str>,
    /// Caller's address.
    pub peer: IpAddr,
    /// `ok`, or the refusal code; `admitted` for a line that is written before the call goes upstream.
    pub outcome: &'static str,
}

// === impl Door ===

impl Door {
    /// The word used in policies, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Mcp => "mcp",
            Self::WebSocket => "websocket",
        }
    }
}

// === impl CacheResult ===

impl CacheResult {
    /// The word used in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Bypass => "bypass",
        }
    }
}
