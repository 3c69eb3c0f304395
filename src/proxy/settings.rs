//! Owns what the HTTP door needs to know: its public URL, TLS and h2c.
//! Does not load certificates (the door does, when it opens).

use std::path::PathBuf;

/// Settings of the HTTP door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What clients see; scheme, host and port only.
    pub public_url: url::Url,
    /// TLS on the main listener; `None` serves plain TCP.
    pub tls: Option<Tls>,
    /// Whether HTTP/2 without TLS is accepted on plain TCP.
    pub h2c: bool,
}

/// PEM files of a TLS listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Certificate chain, leaf first.
    pub certificate: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Authorities that client certificates must come from; `None` asks for none.
    pub client_ca: Option<PathBuf>,
}
