//! Owns active probes: one round asks every endpoint of a cluster whether it is well, since when, and which AgentOS it is.
//! Does not loop (the server does) and does not log: it reports what it found.

use std::time::SystemTime;

use futures_util::future::join_all;
use http::{HeaderMap, Uri, header};
use serde::Deserialize;
use tokio::time::Instant;

use super::endpoint::{Endpoint, State};
use super::{Cluster, Health};
use crate::agentos::operation::Version;
use crate::outbound::{Client, FetchOptions, Fetched};

/// Most bytes that are read of an answer to a probe.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// The version of an endpoint that stays up is asked for again after so many probes: upgrades may be quick.
const VERSION_EVERY: u32 = 30;

/// What one probe found.
#[derive(Debug)]
pub struct Probed<'a> {
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// Whether it gets traffic now.
    pub up: bool,
    /// Whether that is news.
    pub changed: bool,
    /// Why the probe failed, for the log.
    pub failure: Option<String>,
}

/// The part of `GET /info` that we read; AgentOS 3 answers it without a token.
#[derive(Deserialize)]
struct Info {
    agno_version: String,
}

/// The part of `GET /health` that we read (AgentOS 2.5.6 and 3.1.10).
#[derive(Deserialize, Default)]
struct Well {
    #[serde(default)]
    instantiated_at: String,
}

impl Cluster {
    /// Probes every endpoint at once and reports each; takes as long as the slowest, at most twice the timeout. Those
    /// that left the cluster and still hold runs are probed, and not reported: who follows such a run asks for them.
    /// Also closes connections of the client that were unused too long, where no traffic does it.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the states of endpoints that had not answered as they were.
    pub async fn probe_round(&self, client: &Client, report: &(dyn Fn(&Probed<'_>) + Send + Sync)) {
        client.prune();
        let endpoints = self.endpoints();
        let probes = endpoints.iter().map(|endpoint| async move {
            report(&self.probe(client, endpoint).await);
        });
        let leaving = self.balancer.leaving();
        let others = leaving.iter().map(|endpoint| async { drop(self.probe(client, endpoint).await) });
        futures_util::join!(join_all(probes), join_all(others));
    }

    async fn probe<'a>(&self, client: &Client, endpoint: &'a Endpoint) -> Probed<'a> {
        let sent = Instant::now();
        let answer = ask_health(client, endpoint, &self.settings.health).await;
        let before = match &answer {
            Err(_) => endpoint.probe_failed(),
            Ok(well) => {
                endpoint.answered_by(sent, &well.instantiated_at);
                let (before, passed) = endpoint.probe_passed();
                // One that comes back may come back as another version.
                if before != State::Up || endpoint.version().is_none() || passed % VERSION_EVERY == 0 {
                    self.detect_version(client, endpoint).await;
                }
                before
            }
        };
        let up = endpoint.is_up();
        Probed {
            endpoint,
            up,
            changed: (before != State::Down) != up || before == State::Unknown,
            failure: answer.err(),
        }
    }

    async fn detect_version(&self, client: &Client, endpoint: &Endpoint) {
        let mut headers = HeaderMap::new();
        // AgentOS 2 asks for a token before it says that it has no such route.
        if let Some(value) = self.lookup_authorization(None, SystemTime::now()) {
            headers.insert(header::AUTHORIZATION, value);
        }
        let options = FetchOptions { headers, ..options(&self.settings.health) };
        if let Ok(answer) = client.get(&endpoint.origin, Uri::from_static("/info"), &options).await
            && let Some(version) = version_of(&answer)
        {
            endpoint.set_version(version);
        }
    }
}

async fn ask_health(client: &Client, endpoint: &Endpoint, health: &Health) -> Result<Well, String> {
    let path = Uri::try_from(health.path.as_str()).map_err(|cause| cause.to_string())?;
    match client.get(&endpoint.origin, path, &options(health)).await {
        // Whoever answers under another path need not say since when.
        Ok(Fetched { status: 200..=299, body }) => Ok(serde_json::from_slice(&body).unwrap_or_default()),
        Ok(Fetched { status, .. }) => Err(format!("`{}` answered {status}", health.path)),
        Err(error) => Err(error.to_string()),
    }
}

fn options(health: &Health) -> FetchOptions {
    FetchOptions { deadline: health.timeout, bytes_max: ANSWER_BYTES_MAX, headers: HeaderMap::new() }
}

/// 3.x answers 200 and names itself; 2.x has no such route, and asks for a token first where it uses tokens.
fn version_of(answer: &Fetched) -> Option<Version> {
    match answer.status {
        200 => {
            let info: Info = serde_json::from_slice(&answer.body).ok()?;
            let major: u32 = info.agno_version.split('.').next()?.parse().ok()?;
            Some(if major >= 3 { Version::V3 } else { Version::V2 })
        }
        401 | 403 | 404 | 405 => Some(Version::V2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn version_is_read_from_the_answer() {
        for (status, body, version) in [
            (200, r#"{"os_id":"x","agno_version":"3.1.10","agent_count":3}"#, Some(Version::V3)),
            (200, r#"{"agno_version":"10.0"}"#, Some(Version::V3)),
            (200, r#"{"agno_version":"2.9.0"}"#, Some(Version::V2)),
            (200, "<html>", None),
            (200, "{}", None),
            (404, r#"{"detail":"Not Found"}"#, Some(Version::V2)),
            (401, "", Some(Version::V2)),
            (500, "", None),
            (503, "", None),
        ] {
            let answer = Fetched { status, body: Bytes::from_static(body.as_bytes()) };
            assert_eq!(version_of(&answer), version, "{status} {body}");
        }
    }
}
