//! Owns what the admin door needs to know: its address and its token.
//! Does not check tokens (the door does).

use std::net::SocketAddr;

use crate::secret::Secret;

/// Settings of the admin listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Address of metrics, health and the admin API.
    pub listen: SocketAddr,
    /// Bearer token; `None` only on a loopback address.
    pub token: Option<Secret>,
}
