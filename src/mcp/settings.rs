//! Owns what the MCP door needs to know: whether and where it answers, and which toolsets it offers.
//! Does not hold the tools (`tools`).

use super::narrowing::Toolset;

/// Settings of the MCP endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Whether it answers at all.
    pub enabled: bool,
    /// Its path on the main listener, without a trailing slash.
    pub path: String,
    /// Toolsets that clients get when they ask for none.
    pub toolsets: Vec<Toolset>,
    /// What clients see: Host and Origin checks, resource metadata.
    pub public_url: url::Url,
    /// Exact origins of pages that may call, beside our own and those of this machine.
    pub origins: Vec<String>,
}
