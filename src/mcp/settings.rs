//! Owns what the MCP door needs to know: whether and where it answers, which toolsets it offers, how it treats runs.
//! Does not hold the tools (`tools`).

use std::time::Duration;

use super::narrowing::Toolset;
use super::pins::Pin;

/// [`Settings::discovery_interval`] where the configuration says nothing.
pub const DISCOVERY_INTERVAL: std::time::Duration = std::time::Duration::from_secs(30);

/// Settings of the MCP endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Whether it answers at all.
    pub enabled: bool,
    /// Its path on the main listener, without a trailing slash.
    pub path: String,
    /// Toolsets that clients get when they ask for none.
    pub toolsets: Vec<Toolset>,
    /// Toolsets that clients get only when they ask for them.
    pub optional_toolsets: Vec<Toolset>,
    /// What clients see: Host and Origin checks, resource metadata.
    pub public_url: url::Url,
    /// How runs are followed.
    pub runs: RunSettings,
    /// Where clients get tokens; `None`: they bring what they were given.
    pub authorization: Option<Authorization>,
    /// How often the components of each cluster are listed anew, while somebody uses the endpoint.
    pub discovery_interval: std::time::Duration,
    /// Exact origins of pages that may call, beside our own and those of this machine.
    pub origins: Vec<String>,
    /// Texts of components that the operator has pinned.
    pub pins: Vec<Pin>,
}

/// How runs are followed, and who decides about paused ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSettings {
    /// How long a run is followed before it is handed back as a handle.
    pub wait: Duration,
    /// The same by client: the beginning of its name in small letters, longest first.
    pub wait_by_client: Vec<(String, Duration)>,
    /// Longest wait that an argument or a header may ask for.
    pub wait_max: Duration,
    /// What a cancelled call does to its run.
    pub on_cancel: Leaving,
    /// What a disconnect of a client of the stateless revision does to the run of its call.
    pub on_disconnect: Leaving,
    /// Who may decide about a paused run.
    pub decisions: Decisions,
    /// How long a question to a person stays open.
    pub decision_timeout: Duration,
    /// Tool calls of one principal at a time.
    pub calls_in_flight: usize,
}

/// What becomes of a run whose client leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// It is cancelled.
    Cancel,
    /// It goes on.
    Keep,
}

/// Who may decide about a paused run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decisions {
    /// Whoever calls the tools: a model as well.
    Tools,
    /// A person whom the client asks.
    Humans,
}

// === impl RunSettings ===

impl Default for RunSettings {
    fn default() -> Self {
        let patient = |name: &str| (name.to_owned(), Duration::from_secs(240));
        Self {
            wait: Duration::from_secs(50),
            wait_by_client: vec![patient("claude-code"), patient("codex")],
            wait_max: Duration::from_secs(600),
            on_cancel: Leaving::Cancel,
            on_disconnect: Leaving::Cancel,
            decisions: Decisions::Tools,
            decision_timeout: Duration::from_secs(600),
            calls_in_flight: 32,
        }
    }
}

impl RunSettings {
    /// How long a run is followed for a client of this name.
    pub(super) fn wait_of(&self, client: &str) -> Duration {
        let client = client.to_ascii_lowercase();
        let known = self.wait_by_client.iter().find(|(name, _)| client.starts_with(name.as_str()));
        known.map_or(self.wait, |(_, wait)| *wait).min(self.wait_max)
    }
}

/// What clients are told about tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// Issuer identifiers of the authorization servers, as they name themselves.
    pub servers: Vec<String>,
    /// Scopes that a client asks for at first; empty: it is not told.
    pub scopes: Vec<String>,
}

// === impl Settings ===

impl Settings {
    /// The endpoint's identifier, which its tokens name as an audience (RFC 8707).
    pub fn resource(&self) -> String {
        resource(&self.public_url, &self.path)
    }
}

pub(super) fn resource(public_url: &url::Url, path: &str) -> String {
    format!("{}{path}", public_url.as_str().trim_end_matches('/'))
}
