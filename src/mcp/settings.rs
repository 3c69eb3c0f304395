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
    /// Where clients get tokens; `None`: they bring what they were given.
    pub authorization: Option<Authorization>,
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
