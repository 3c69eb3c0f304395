//! Owns the endpoints of a cluster that are found by name: asked again on an interval, changed where the answer did.
//! Does not ask name servers itself (`outbound`) and does not loop (the server does).
//! Invariants: while no answer comes, the last good one stands; an endpoint that stays keeps its state and its tag; one
//! that leaves keeps the runs that it holds.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Cluster;
use super::endpoint::{self, Endpoint};
use crate::outbound::{Origin, Resolver, ServerName};

/// How endpoints are found by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// Behind which name they are.
    pub name: ServerName,
    /// Time between questions.
    pub interval: Duration,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// The name server; the machine's own where this is `None`.
    pub server: Option<SocketAddr>,
}

/// What one question changed.
#[derive(Debug, Default)]
pub struct Refreshed {
    /// Endpoints that are new.
    pub added: Vec<Arc<str>>,
    /// Endpoints that are gone.
    pub removed: Vec<Arc<str>>,
    /// Why nothing was found, for the log; said once until it changes.
    pub failure: Option<String>,
}

/// The asking of one cluster.
#[derive(Debug, Default)]
pub(super) struct Asking {
    resolver: OnceLock<Resolver>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    asked: Option<Instant>,
    failure: Option<String>,
}

// === impl Asking ===

impl Asking {
    /// The resolver; one that could not be set up is tried anew, as the file that it reads may be mended.
    fn resolver(&self, dns: &Dns) -> Result<&Resolver, String> {
        if let Some(resolver) = self.resolver.get() {
            return Ok(resolver);
        }
        let made = Resolver::new(dns.server, dns.timeout).map_err(|error| error.to_string())?;
        Ok(self.resolver.get_or_init(|| made))
    }

    /// Says whether it is time, and that it is being done.
    fn is_due(&self, interval: Duration) -> bool {
        let mut state = self.state.lock();
        let due = state.asked.is_none_or(|asked| asked.elapsed() >= interval);
        if due {
            state.asked = Some(Instant::now());
        }
        due
    }

    /// Notes a failure; `Some` when it is news.
    fn failed(&self, failure: Option<String>) -> Option<String> {
        let mut state = self.state.lock();
        let news = failure.as_ref().filter(|now| state.failure.as_ref() != Some(now)).cloned();
        state.failure = failure;
        news
    }
}

impl Cluster {
    /// Asks for the endpoints again if it is time; `None` when it is not, or they are written in the configuration.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the endpoints as they were.
    pub async fn refresh_endpoints(&self) -> Option<Refreshed> {
        let dns = self.settings.dns.as_ref()?;
        if !self.asking.is_due(dns.interval) {
            return None;
        }
        let found = match self.asking.resolver(dns) {
            Ok(resolver) => resolver.resolve(&dns.name).await.map_err(|error| error.to_string()),
            Err(error) => Err(error),
        };
        Some(match found {
            Ok(origins) => {
                self.asking.failed(None);
                self.take_endpoints(&origins)
            }
            Err(failure) => Refreshed { failure: self.asking.failed(Some(failure)), ..Refreshed::default() },
        })
    }

    fn take_endpoints(&self, origins: &[Origin]) -> Refreshed {
        let known = self.balancer.endpoints();
        let mut refreshed = Refreshed::default();
        let (stay, leave): (Vec<_>, Vec<_>) = known.iter().cloned().partition(|e| origins.contains(&e.origin));
        refreshed.removed.extend(leave.iter().map(|endpoint| Arc::clone(&endpoint.address)));
        let new: Vec<&Origin> = origins.iter().filter(|origin| !stay.iter().any(|e| e.origin == **origin)).collect();
        if new.is_empty() && leave.is_empty() {
            return refreshed;
        }
        // A run that an endpoint still holds must not be looked for at another one of the same tag.
        let leaving = self.balancer.leaving();
        let mut taken: HashSet<_> = known.iter().chain(&leaving).map(|endpoint| endpoint.tag).collect();
        let mut endpoints = stay;
        for origin in new {
            // One that comes back while it still holds runs is the same as before.
            let back = leaving.iter().find(|endpoint| endpoint.origin == *origin).cloned();
            let endpoint = back.unwrap_or_else(|| {
                let tag = endpoint::tag_beside(&self.settings.name, origin, &mut taken);
                let first = known.is_empty();
                let made = if first { Endpoint::new } else { Endpoint::joining };
                Arc::new(made(origin.clone(), tag))
            });
            refreshed.added.push(Arc::clone(&endpoint.address));
            endpoints.push(endpoint);
        }
        endpoints.sort_by(|a, b| a.origin.cmp(&b.origin));
        self.balancer.replace(endpoints);
        refreshed
    }
}
