//! Owns finding the servers behind a name: A and AAAA records of a host, or the SRV records of a service.
//! Does not remember answers (whoever asks keeps the last good one) and does not connect (`connect`).
//! Invariant: every look-up has a deadline, and what it finds is bounded and in one order.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;

use super::Origin;

/// Most servers behind one name.
const SERVERS_MAX: usize = 256;
/// Most targets of a service whose addresses are looked up.
const TARGETS_MAX: usize = 64;
/// Longest name, in bytes (RFC 1035 §2.3.4).
const NAME_BYTES_MAX: usize = 253;

/// A name behind which servers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerName {
    /// Every address of a host, at this port.
    Host(String, u16),
    /// Every target of a service, at the port that each record names: `_agentos._tcp.internal`.
    Service(String),
}

/// Why a text names no servers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadServerName(pub &'static str);

/// Asks name servers.
pub struct Resolver {
    inner: TokioResolver,
    timeout: Duration,
}

/// Why nothing was found.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The resolver cannot be set up.
    #[error("the resolver cannot be set up: {0}")]
    Setup(String),
    /// No answer came in time.
    #[error("no name server answered within {}ms", .0.as_millis())]
    Timeout(Duration),
    /// Name servers failed, or know no such name.
    #[error("look-up of `{name}` failed: {cause}")]
    Failed {
        /// What was asked for.
        name: String,
        /// What came of it.
        cause: String,
    },
    /// There is such a name, but no server.
    #[error("`{0}` names no server")]
    Empty(String),
}

// === impl ServerName ===

impl FromStr for ServerName {
    type Err = BadServerName;

    fn from_str(text: &str) -> Result<Self, BadServerName> {
        let plain = |name: &str| {
            let label = |label: &str| {
                let byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
                !label.is_empty() && label.len() <= 63 && label.bytes().all(byte)
            };
            name.len() <= NAME_BYTES_MAX && name.strip_suffix('.').unwrap_or(name).split('.').all(label)
        };
        let lower = text.to_ascii_lowercase();
        if lower.starts_with('_') {
            return match lower.contains(':') {
                true => Err(BadServerName("SRV records name the ports: leave the port out")),
                false if plain(&lower) => Ok(Self::Service(lower)),
                false => Err(BadServerName("it must be a service such as `_agentos._tcp.internal`")),
            };
        }
        let Some((host, port)) = lower.rsplit_once(':') else {
            return Err(BadServerName("the port is missing"));
        };
        let port = port.parse().ok().filter(|port| *port != 0);
        let port = port.ok_or(BadServerName("the port must be a number from 1 to 65535"))?;
        if plain(host) { Ok(Self::Host(host.to_owned(), port)) } else { Err(BadServerName("it is no host name")) }
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host, port) => write!(f, "{host}:{port}"),
            Self::Service(name) => f.write_str(name),
        }
    }
}

// === impl Resolver ===

impl Resolver {
    /// A resolver that asks this name server, or those that the machine is configured with.
    ///
    /// # Errors
    /// [`ResolveError::Setup`] when the machine's configuration cannot be read.
    pub fn new(server: Option<SocketAddr>, timeout: Duration) -> Result<Self, ResolveError> {
        let setup = |cause: &dyn fmt::Display| ResolveError::Setup(cause.to_string());
        let mut builder = match server {
            None => TokioResolver::builder_tokio().map_err(|cause| setup(&cause))?,
            Some(address) => {
                let at = |mut connection: ConnectionConfig| {
                    connection.port = address.port();
                    connection
                };
                let connections = vec![at(ConnectionConfig::udp()), at(ConnectionConfig::tcp())];
                let server = NameServerConfig::new(address.ip(), true, connections);
                let config = ResolverConfig::from_name_servers(vec![server]);
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            }
        };
        tune(builder.options_mut(), timeout);
        let inner = builder.build().map_err(|cause| setup(&cause))?;
        Ok(Self { inner, timeout })
    }

    /// Finds the servers behind a name, sorted. Answers are not kept: each call asks.
    ///
    /// # Errors
    /// [`ResolveError`]; a name without servers is one too.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn resolve(&self, name: &ServerName) -> Result<Vec<Origin>, ResolveError> {
        let asked = tokio::time::timeout(self.timeout, self.ask(name)).await;
        let found = asked.map_err(|_| ResolveError::Timeout(self.timeout))??;
        if found.is_empty() { Err(ResolveError::Empty(name.to_string())) } else { Ok(found.into_iter().collect()) }
    }

    async fn ask(&self, name: &ServerName) -> Result<BTreeSet<Origin>, ResolveError> {
        match name {
            ServerName::Host(host, port) => self.addresses(host, *port).await,
            ServerName::Service(service) => self.service(service).await,
        }
    }

    async fn addresses(&self, host: &str, port: u16) -> Result<BTreeSet<Origin>, ResolveError> {
        let found = self.inner.lookup_ip(host).await.map_err(|cause| failed(host, &cause))?;
        let origin = |address: std::net::IpAddr| Origin { tls: false, host: address.to_string(), port };
        Ok(found.iter().take(SERVERS_MAX).map(origin).collect())
    }

    /// The targets of the lowest priority that there is: others are for when those are gone from the records.
    async fn service(&self, service: &str) -> Result<BTreeSet<Origin>, ResolveError> {
        let found = self.inner.srv_lookup(service).await.map_err(|cause| failed(service, &cause))?;
        let mut targets: Vec<(u16, String, u16)> = Vec::new();
        for record in found.answers() {
            // A single `.` says that the service is decidedly not available (RFC 2782).
            if let RData::SRV(srv) = &record.data
                && !srv.target.is_root()
            {
                targets.push((srv.priority, srv.target.to_utf8(), srv.port));
            }
        }
        let first = targets.iter().map(|(priority, ..)| *priority).min();
        targets.retain(|(priority, ..)| Some(*priority) == first);
        targets.truncate(TARGETS_MAX);
        let looked = targets.iter().map(|(_, target, port)| self.addresses(target, *port));
        let (mut origins, mut failure) = (BTreeSet::new(), None);
        for found in futures_util::future::join_all(looked).await {
            match found {
                Ok(found) => origins.extend(found),
                // One target without an address does not hide the others.
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) if origins.is_empty() => Err(error),
            Some(_) | None => Ok(origins.into_iter().take(SERVERS_MAX).collect()),
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

fn tune(options: &mut ResolverOpts, timeout: Duration) {
    // Asked on an interval: what is kept between would only be older than that.
    options.cache_size = 0;
    options.attempts = 1;
    options.timeout = timeout / 2;
    options.try_tcp_on_error = true;
    options.ip_strategy = hickory_resolver::config::LookupIpStrategy::Ipv4AndIpv6;
}

fn failed(name: &str, cause: &hickory_resolver::net::NetError) -> ResolveError {
    ResolveError::Failed { name: name.to_owned(), cause: cause.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_servers_are_hosts_with_ports_or_services() {
        for (text, expected) in [
            ("AgentOS.internal:7777", Ok(ServerName::Host("agentos.internal".into(), 7777))),
            ("agentos.internal.:7777", Ok(ServerName::Host("agentos.internal.".into(), 7777))),
            ("_agentos._tcp.internal", Ok(ServerName::Service("_agentos._tcp.internal".into()))),
            ("agentos.internal", Err("the port is missing")),
            ("agentos.internal:0", Err("the port must be a number from 1 to 65535")),
            ("agentos.internal:70000", Err("the port must be a number from 1 to 65535")),
            ("http://agentos.internal:7777", Err("it is no host name")),
            ("a..b:1", Err("it is no host name")),
            (":1", Err("it is no host name")),
            ("[::1]:80", Err("it is no host name")),
            ("_agentos._tcp.internal:7777", Err("SRV records name the ports: leave the port out")),
            ("_agentos._tcp.in ternal", Err("it must be a service such as `_agentos._tcp.internal`")),
        ] {
            assert_eq!(text.parse::<ServerName>().map_err(|bad| bad.0), expected, "{text}");
        }
    }
}
