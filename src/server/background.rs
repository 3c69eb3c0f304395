//! Owns the periodic work: probes of each cluster, keys of issuers, idle connections, upkeep of quotas.
//! Does not know what a round does (the modules do).
//! Invariant: a reload starts probes of new clusters and ends those of clusters that went; every round works on the
//! configuration of its moment.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::tasks::Tasks;
use crate::cluster::Cluster;
use crate::gateway::{Gateway, Snapshot};
use crate::outbound::Client;
use crate::quota::Change;
use crate::telemetry::Telemetry;

/// How often idle connections to AgentOS are looked for.
const PRUNE_INTERVAL: Duration = Duration::from_secs(5);

/// The work that follows the configuration.
pub(super) struct Background {
    tasks: Tasks,
    gateway: Arc<Gateway>,
    client: Client,
    telemetry: Arc<Telemetry>,
    /// Clusters whose probes run.
    probed: Mutex<HashSet<Arc<str>>>,
    /// Counts reloads: whoever sleeps between rounds wakes.
    reloads: watch::Sender<u64>,
}

// === impl Background ===

impl Background {
    /// Starts it.
    pub(super) fn start(
        tasks: &Tasks,
        gateway: &Arc<Gateway>,
        client: &Client,
        telemetry: &Arc<Telemetry>,
        store: &'static str,
    ) -> Arc<Self> {
        let background = Arc::new(Self {
            tasks: tasks.clone(),
            gateway: Arc::clone(gateway),
            client: client.clone(),
            telemetry: Arc::clone(telemetry),
            probed: Mutex::default(),
            reloads: watch::Sender::new(0),
        });
        keep_quotas(tasks, gateway, telemetry, store);
        let keys = Arc::clone(&background);
        tasks.spawn("keys", async move { keys.refresh_keys().await });
        let idle = client.clone();
        tasks.spawn(
            "idle connections",
            every(PRUNE_INTERVAL, tasks.clone(), move || {
                let client = idle.clone();
                async move { client.prune() }
            }),
        );
        background.follow();
        background
    }

    /// Follows the configuration that holds now.
    pub(super) fn follow(self: &Arc<Self>) {
        self.reloads.send_modify(|count| *count += 1);
        let snapshot = self.gateway.snapshot();
        let mut probed = self.probed.lock();
        for cluster in snapshot.clusters.iter() {
            let name = Arc::clone(cluster.name());
            if probed.insert(Arc::clone(&name)) {
                let background = Arc::clone(self);
                self.tasks.spawn("probes", async move { background.probe(name).await });
            }
        }
    }

    /// Probes a cluster for as long as it is configured.
    async fn probe(&self, name: Arc<str>) {
        let mut told = BTreeSet::new();
        let mut reloads = self.reloads.subscribe();
        loop {
            let cluster = self.named(&name).or_else(|| self.over(&name));
            if let Some(cluster) = &cluster {
                tokio::select! {
                    biased;
                    () = self.tasks.stopped() => return,
                    () = refresh_endpoints(cluster) => {}
                }
            }
            let addresses = |c: &Arc<Cluster>| c.endpoints().iter().map(|e| e.address.to_string()).collect::<Vec<_>>();
            let now: BTreeSet<String> = cluster.iter().flat_map(addresses).collect();
            told.difference(&now).for_each(|endpoint: &String| self.telemetry.endpoint_gone(&name, endpoint));
            told = now;
            let Some(cluster) = cluster else { return };
            tokio::select! {
                biased;
                () = self.tasks.stopped() => return,
                () = probe(&cluster, &self.client, &self.telemetry) => {}
            }
            if !self.pause(cluster.settings.health.interval, &mut reloads).await {
                return;
            }
        }
    }

    /// Probes while the process drains: what is under way asks which endpoints answer. Does not end.
    pub(super) async fn probe_on(&self) {
        let snapshot = self.gateway.snapshot();
        let rounds = snapshot.clusters.iter().map(|cluster| async move {
            loop {
                tokio::time::sleep(cluster.settings.health.interval).await;
                probe(cluster, &self.client, &self.telemetry).await;
            }
        });
        join_all(rounds).await;
        // Without clusters there is nothing to probe, which is no end of the drain.
        std::future::pending().await
    }

    fn named(&self, name: &str) -> Option<Arc<Cluster>> {
        self.gateway.snapshot().clusters.iter().find(|cluster| **cluster.name() == *name).cloned()
    }

    /// Ends the probes of a cluster, unless it has just come back.
    fn over(&self, name: &Arc<str>) -> Option<Arc<Cluster>> {
        let mut probed = self.probed.lock();
        let back = self.named(name);
        if back.is_none() {
            probed.remove(name);
        }
        back
    }

    async fn refresh_keys(&self) {
        let mut reloads = self.reloads.subscribe();
        loop {
            let snapshot = self.gateway.snapshot();
            tokio::select! {
                biased;
                () = self.tasks.stopped() => return,
                () = refresh_keys(&snapshot) => {}
            }
            if !self.pause(snapshot.identity.refresh_interval(), &mut reloads).await {
                return;
            }
        }
    }

    /// Waits for the next round or a reload; `false` when the drain begins.
    async fn pause(&self, interval: Duration, reloads: &mut watch::Receiver<u64>) -> bool {
        tokio::select! {
            biased;
            () = self.tasks.stopped() => false,
            () = tokio::time::sleep(interval) => true,
            // The sender lives in `self`: this ends with a reload only.
            _ = reloads.changed() => true,
        }
    }
}

/// The work of quotas between calls, with a line and a metric when the store is lost or found.
fn keep_quotas(tasks: &Tasks, gateway: &Arc<Gateway>, telemetry: &Arc<Telemetry>, store: &'static str) {
    let (upkeep, stopping, telemetry) = (gateway.snapshot().quota.upkeep(), tasks.clone(), Arc::clone(telemetry));
    telemetry.store_up(store, true);
    let changed = move |change| match change {
        Change::Lost { why, instances } => {
            telemetry.store_up(store, false);
            tracing::warn!(why, instances, "store of quotas lost, plans say what is granted meanwhile");
        }
        Change::Found { instances, empty } => {
            telemetry.store_up(store, true);
            tracing::info!(instances, empty, "store of quotas found");
        }
    };
    tasks.spawn("quotas", async move { upkeep.run(stopping.stopped(), changed).await });
}

/// Looks the endpoints up by name, where they are found so.
async fn refresh_endpoints(cluster: &Cluster) {
    let Some(refreshed) = cluster.refresh_endpoints().await else { return };
    let name = cluster.name();
    if !refreshed.added.is_empty() || !refreshed.removed.is_empty() {
        let (added, removed) = (refreshed.added.join(" "), refreshed.removed.join(" "));
        tracing::info!(cluster = %name, added, removed, "endpoints changed");
    }
    if let Some(failure) = refreshed.failure {
        tracing::warn!(cluster = %name, failure, "endpoints not found by name, those that are known stay");
    }
}

async fn probe(cluster: &Cluster, client: &Client, telemetry: &Telemetry) {
    cluster
        .probe_round(client, &|probed| {
            let (name, endpoint) = (cluster.name(), &probed.endpoint.address);
            telemetry.endpoint_up(name, endpoint, probed.up);
            telemetry.endpoint_in_flight(
                name,
                endpoint,
                i64::try_from(probed.endpoint.in_flight()).unwrap_or(i64::MAX),
            );
            if probed.changed {
                let failure = probed.failure.as_deref().unwrap_or("");
                tracing::info!(cluster = %name, %endpoint, up = probed.up, failure, "endpoint changed");
            }
        })
        .await;
}

async fn refresh_keys(snapshot: &Snapshot) {
    for refreshed in snapshot.identity.refresh().await {
        if let Err(error) = refreshed.outcome {
            tracing::warn!(issuer = %refreshed.issuer, error, "keys not refreshed");
        }
    }
}

/// Runs work at once and then after each interval, until the drain begins.
pub(super) async fn every<F, W>(interval: Duration, tasks: Tasks, mut work: F)
where
    F: FnMut() -> W,
    W: Future<Output = ()>,
{
    loop {
        tokio::select! {
            biased;
            () = tasks.stopped() => return,
            () = work() => {}
        }
        tokio::select! {
            biased;
            () = tasks.stopped() => return,
            () = tokio::time::sleep(interval) => {}
        }
    }
}
