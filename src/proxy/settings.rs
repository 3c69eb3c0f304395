//! Owns what the HTTP door needs to know: its public URL, TLS, h2c, who stands in front of it, CORS, compression.
//! Does not load certificates (the door does, when it opens).

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

/// Settings of the HTTP door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What clients see; scheme, host and port only.
    pub public_url: url::Url,
    /// TLS on the main listener; `None` serves plain TCP.
    pub tls: Option<Tls>,
    /// Whether HTTP/2 without TLS is accepted on plain TCP.
    pub h2c: bool,
    /// Networks whose connections begin with a PROXY protocol header.
    pub proxy_protocol: Vec<IpNet>,
    /// Networks whose `X-Forwarded-For` is believed.
    pub forwarded_for: Vec<IpNet>,
    /// Pages of other origins that may call; `None`: none may.
    pub cors: Option<Cors>,
    /// Smallest JSON answer that is compressed for callers who accept gzip; `None` compresses nothing.
    pub gzip_bytes_min: Option<usize>,
}

/// PEM files of a TLS listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// For callers who name no host, or one that no certificate is for.
    pub default: KeyPair,
    /// For the hosts that they name.
    pub more: Vec<KeyPair>,
    /// Authorities that client certificates must come from; `None` asks for none.
    pub client_ca: Option<PathBuf>,
    /// Whether callers without a client certificate are let in.
    pub client_certificate: ClientCertificates,
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// Certificate chain, leaf first.
    pub certificate: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// What is asked of callers where client authorities are configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Without one there is no connection.
    Required,
    /// A certificate is checked when there is one.
    Optional,
}

/// Which pages may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// Their exact origins.
    pub origins: Vec<String>,
    /// Request header fields beside those that our own clients use, in lower case.
    pub headers: Vec<String>,
    /// How long a browser may keep the answer to a preflight.
    pub max_age: Duration,
}
