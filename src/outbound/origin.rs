//! Owns the address of an HTTP server: scheme, host and port, without path or credentials.
//! Does not resolve names (`connect`).
//! Invariant: two spellings of one origin compare equal: hosts are lower case, ports explicit.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use http::HeaderValue;

/// Longest host name, in bytes (RFC 1035 §2.3.4).
const HOST_BYTES_MAX: usize = 253;

/// Where connections go: `http://host:port` or `https://host:port`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Host name or address in lower case; an IPv6 address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// Why a text is no origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no origin such as `http://127.0.0.1:7777`: {reason}")]
pub struct BadOrigin {
    /// The text, shortened and without credentials.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

// === impl Origin ===

impl Origin {
    /// The value of the `Host` header (RFC 9110 §7.2): the port is left out when it is the scheme's own.
    pub fn host_header(&self) -> Option<HeaderValue> {
        let own = if self.tls { 443 } else { 80 };
        let host = self.bracketed();
        let text = if self.port == own { host } else { format!("{host}:{}", self.port) };
        HeaderValue::try_from(text).ok()
    }

    /// The origin of a parsed URL; path and query are ignored.
    ///
    /// # Errors
    /// What the URL must not be or lacks.
    pub fn of_url(url: &url::Url) -> Result<Self, &'static str> {
        let tls = match url.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err("the scheme must be http or https"),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("credentials are not allowed in it");
        }
        let host = match url.host() {
            Some(url::Host::Domain(name)) if name.len() > HOST_BYTES_MAX => return Err("the host name is too long"),
            Some(url::Host::Domain(name)) => name.to_ascii_lowercase(),
            Some(url::Host::Ipv4(address)) => address.to_string(),
            Some(url::Host::Ipv6(address)) => address.to_string(),
            None => return Err("the host is missing"),
        };
        let port = url.port_or_known_default().ok_or("the port is missing")?;
        if port == 0 { Err("port 0 cannot be connected to") } else { Ok(Self { tls, host, port }) }
    }

    fn bracketed(&self) -> String {
        if self.host.parse::<Ipv6Addr>().is_ok() { format!("[{}]", self.host) } else { self.host.clone() }
    }
}

impl FromStr for Origin {
    type Err = BadOrigin;

    fn from_str(text: &str) -> Result<Self, BadOrigin> {
        let bad = |reason| {
            let shown = if text.contains('@') { "…" } else { text };
            BadOrigin { text: shown.chars().take(120).collect(), reason }
        };
        if !text.starts_with("http://") && !text.starts_with("https://") {
            return Err(bad("it must begin with http:// or https://"));
        }
        let url = url::Url::parse(text).map_err(|_| bad("it cannot be parsed"))?;
        let origin = Self::of_url(&url).map_err(bad)?;
        let bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
        if bare { Ok(origin) } else { Err(bad("a path, query or fragment is not allowed in it")) }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.bracketed(), self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_normalised() {
        for (text, shown, host_header) in [
            ("http://127.0.0.1:7777", "http://127.0.0.1:7777", "127.0.0.1:7777"),
            ("http://Agents.Internal/", "http://agents.internal:80", "agents.internal"),
            ("https://a.example", "https://a.example:443", "a.example"),
            ("https://a.example:8443", "https://a.example:8443", "a.example:8443"),
            ("http://[::1]:7777", "http://[::1]:7777", "[::1]:7777"),
        ] {
            let origin: Origin = text.parse().unwrap();
            assert_eq!(origin.to_string(), shown);
            assert_eq!(origin.host_header().unwrap(), host_header);
            assert_eq!(shown.parse::<Origin>().unwrap(), origin);
        }
    }

    #[test]
    fn anything_beyond_an_origin_is_refused() {
        for (text, reason) in [
            ("127.0.0.1:7777", "it must begin with http:// or https://"),
            ("ftp://a", "it must begin with http:// or https://"),
            ("http://", "it cannot be parsed"),
            ("http://a:99999", "it cannot be parsed"),
            ("http://a:0", "port 0 cannot be connected to"),
            ("http://user:pass@a", "credentials are not allowed in it"),
            ("http://a/path", "a path, query or fragment is not allowed in it"),
            ("http://a?q=1", "a path, query or fragment is not allowed in it"),
        ] {
            let refused = text.parse::<Origin>().unwrap_err();
            assert_eq!(refused.reason, reason, "{text}");
            assert!(!refused.to_string().contains("pass"), "{refused}");
        }
    }
}
