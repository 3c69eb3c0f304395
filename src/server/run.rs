//! Owns the life of the process: start, serve, drain.
//! Does not parse arguments (`cli`).
//! Invariant: when `serve` returns, every listener is closed and every task has ended or was cut at the deadline.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::accept::accept;
use super::compose::{ComposeError, compose};
use super::reload::Reload;
use super::tasks::Tasks;
use crate::admin::{self, AdminState, Readiness};
use crate::config::Config;
use crate::gateway::{Gateway, LocalService, Snapshot, Spawn};
use crate::mcp::{self, McpService};
use crate::outbound::{self, Client};
use crate::policy::LoadErrors;
use crate::proxy::{HttpDoor, TlsAcceptor};
use crate::quota::Change;
use crate::store::{self, Store};
use crate::telemetry::{OpenError, Telemetry};

/// Most connections of the admin listener.
const ADMIN_CONNECTIONS_MAX: usize = 64;

/// How long before the end of the drain streams are told to end.
const STREAMS_END_BEFORE: Duration = Duration::from_secs(1);

/// How often the revocation list is looked at.
const REVOKED_INTERVAL: Duration = Duration::from_secs(5);

/// Why the process could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Modules refused their settings.
    #[error("the configuration cannot be served")]
    Compose(Vec<ComposeError>),
    /// A log cannot be opened.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// An address cannot be bound.
    #[error("cannot listen on `{address}`")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] store::OpenError),
    /// Signals cannot be received.
    #[error("cannot receive signals")]
    Signals(#[source] io::Error),
}

/// A gateway that serves.
pub struct Running {
    /// Where the AgentOS API and `/mcp` are.
    pub address: SocketAddr,
    /// Where health, readiness and metrics are.
    pub admin_address: SocketAddr,
    /// The path, for tests that look inside.
    pub gateway: Arc<Gateway>,
    tasks: Tasks,
    reload: Arc<Reload>,
    drain_timeout: Duration,
}

// === impl Running ===

impl Running {
    /// Does what SIGHUP does: opens the logs anew, reads the revocation list and the policies again.
    ///
    /// # Errors
    /// What is wrong with the policies; the old ones stay in force.
    pub async fn reload(&self) -> Result<(), LoadErrors> {
        self.reload.hang_up().await
    }

    /// Stops accepting, lets exchanges end, cuts them at the deadline. Says how many were cut.
    pub async fn drain(self) -> usize {
        let early = self.drain_timeout - (self.drain_timeout / 4).min(STREAMS_END_BEFORE);
        let mut drained = std::pin::pin!(self.tasks.drain(self.drain_timeout));
        tokio::select! {
            left = &mut drained => return left,
            // What still streams is told, rather than cut.
            () = tokio::time::sleep(early) => self.gateway.end_streams(),
        }
        drained.await
    }
}

/// Serves until SIGTERM or SIGINT, then drains. SIGHUP opens the logs anew and reads policies and revocations again.
///
/// # Errors
/// [`StartError`] when the process could not start.
pub async fn serve(config: Config) -> Result<(), StartError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(StartError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::Signals)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(StartError::Signals)?;
    let running = start(config).await?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            // What came of it is logged and counted.
            _ = hang_up.recv() => drop(running.reload().await),
        }
    }
    tracing::info!(timeout_ms = running.drain_timeout.as_millis(), "draining");
    let cut = running.drain().await;
    tracing::info!(cut, "stopped");
    Ok(())
}

/// Binds, starts every task, and returns at once.
///
/// # Errors
/// [`StartError`] when the settings are refused or an address is taken.
pub async fn start(config: Config) -> Result<Running, StartError> {
    let client = Client::new(outbound::Settings::default());
    let (snapshot, tls) = compose(&config, &client).map_err(StartError::Compose)?;
    let store = store::open(&config.store)?;
    let snapshot = counting(snapshot, &config.store, Arc::clone(&store));
    let telemetry = Telemetry::new(config.telemetry.clone(), config.tenants.keys().cloned())?;
    let tasks = Tasks::new();
    let detached = tasks.clone();
    let spawn: Spawn = Arc::new(move |name, work| detached.spawn_detached(name, work));
    let seal = snapshot.clusters.seal().clone();
    let (said, started) = (Arc::clone(&telemetry), Arc::clone(&spawn));
    let gateway = match config.store {
        store::Settings::Memory => Gateway::new(snapshot, client.clone(), said, seal, started),
        store::Settings::File(_) | store::Settings::Redis(_) => {
            Gateway::over(snapshot, client.clone(), said, seal, started, store)
        }
    };
    let (listener, address) = bind(config.server.listen)?;
    let (admin_listener, admin_address) = bind(config.admin.listen)?;

    let mut services: Vec<Arc<dyn LocalService>> = Vec::new();
    if config.mcp.enabled {
        services.push(mcp(&tasks, &gateway, &telemetry, spawn, &config.mcp));
    }
    let door = HttpDoor::new(Arc::clone(&gateway), Arc::clone(&telemetry), services, config.proxy.h2c);
    background(&tasks, &gateway, &client, &telemetry);
    keep_quotas(&tasks, &gateway, &telemetry, config.store.kind());
    let revoked = config.identity.revoked.clone();
    let reload = Arc::new(Reload::new(Arc::clone(&gateway), Arc::clone(&telemetry), config.policy.clone(), revoked));
    let watched = Arc::clone(&reload);
    tasks.spawn(
        "revocations",
        every(REVOKED_INTERVAL, tasks.clone(), move || {
            let reload = Arc::clone(&watched);
            async move { reload.revoked().await }
        }),
    );
    listen(&tasks, listener, config.server.connections_max, door, tls);
    let state = Arc::new(AdminState {
        settings: config.admin.clone(),
        telemetry,
        readiness: Arc::new(Ready(Arc::clone(&gateway), tasks.clone())),
        steering: Arc::clone(&gateway) as _,
    });
    tasks.spawn(
        "admin",
        accept("admin", admin_listener, ADMIN_CONNECTIONS_MAX, tasks.clone(), move |stream, _| {
            let state = Arc::clone(&state);
            async move { admin::serve_connection(stream, state).await }
        }),
    );
    tracing::info!(%address, %admin_address, version = env!("CARGO_PKG_VERSION"), "started");
    Ok(Running { address, admin_address, gateway, tasks, reload, drain_timeout: config.server.drain_timeout })
}

/// Quotas that count where the configuration says.
fn counting(mut snapshot: Snapshot, settings: &store::Settings, store: Arc<dyn Store>) -> Snapshot {
    snapshot.quota = Arc::new(match settings {
        store::Settings::Memory => snapshot.quota.recording(store),
        store::Settings::File(_) | store::Settings::Redis(_) => snapshot.quota.sharing(store),
    });
    snapshot
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

/// The MCP endpoint, with its reaper and its end at drain.
fn mcp(
    tasks: &Tasks,
    gateway: &Arc<Gateway>,
    telemetry: &Arc<Telemetry>,
    spawn: Spawn,
    settings: &mcp::Settings,
) -> Arc<dyn LocalService> {
    let counter = Arc::clone(telemetry);
    let hooks = mcp::Hooks {
        detach: Arc::new(move |work| spawn("mcp run", work)),
        counted: Arc::new(move |method, version| counter.mcp_request(method, version)),
    };
    let path: Arc<dyn mcp::Path> = Arc::clone(gateway) as _;
    let service = McpService::new(settings.clone(), path, hooks);
    let (reaped, draining) = (Arc::clone(&service), tasks.clone());
    tasks.spawn("mcp sessions", async move {
        tokio::select! {
            () = draining.stopped() => reaped.shutdown(),
            () = Arc::clone(&reaped).reap_loop() => {}
        }
    });
    let (looking, draining) = (Arc::clone(&service), tasks.clone());
    tasks.spawn("mcp discovery", async move {
        tokio::select! {
            () = draining.stopped() => {}
            () = looking.discovery_loop() => {}
        }
    });
    service
}

fn listen(tasks: &Tasks, listener: TcpListener, connections_max: usize, door: Arc<HttpDoor>, tls: Option<TlsAcceptor>) {
    let stopping = tasks.stopping();
    tasks.spawn(
        "http",
        accept("http", listener, connections_max, tasks.clone(), move |stream, peer| {
            let (door, tls, stopping) = (Arc::clone(&door), tls.clone(), stopping.clone());
            async move { Box::pin(door.serve(stream, peer, tls, &stopping)).await }
        }),
    );
}

/// The periodic work: probes of each cluster, keys of issuers, idle connections.
fn background(tasks: &Tasks, gateway: &Arc<Gateway>, client: &Client, telemetry: &Arc<Telemetry>) {
    for cluster in gateway.snapshot().clusters.iter() {
        let (cluster, client, telemetry) = (Arc::clone(cluster), client.clone(), Arc::clone(telemetry));
        let interval = cluster.settings.health.interval;
        tasks.spawn(
            "probes",
            every(interval, tasks.clone(), move || {
                let (cluster, client, telemetry) = (Arc::clone(&cluster), client.clone(), Arc::clone(&telemetry));
                async move { probe(&cluster, &client, &telemetry).await }
            }),
        );
    }
    let keys = Arc::clone(gateway);
    let interval = gateway.snapshot().identity.refresh_interval();
    tasks.spawn(
        "keys",
        every(interval, tasks.clone(), move || {
            let gateway = Arc::clone(&keys);
            async move { refresh_keys(&gateway.snapshot()).await }
        }),
    );
    let idle = client.clone();
    tasks.spawn(
        "idle connections",
        every(Duration::from_secs(5), tasks.clone(), move || {
            let client = idle.clone();
            async move { client.prune() }
        }),
    );
}

async fn probe(cluster: &crate::cluster::Cluster, client: &Client, telemetry: &Telemetry) {
    if let Some(refreshed) = cluster.refresh_endpoints().await {
        let name = cluster.name();
        for endpoint in &refreshed.removed {
            telemetry.endpoint_gone(name, endpoint);
        }
        if !refreshed.added.is_empty() || !refreshed.removed.is_empty() {
            let (added, removed) = (refreshed.added.join(" "), refreshed.removed.join(" "));
            tracing::info!(cluster = %name, added, removed, "endpoints changed");
        }
        if let Some(failure) = refreshed.failure {
            tracing::warn!(cluster = %name, failure, "endpoints not found by name, those that are known stay");
        }
    }
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
async fn every<F, W>(interval: Duration, tasks: Tasks, mut work: F)
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

fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Bind { address, source };
    let socket =
        socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None).map_err(failed)?;
    socket.set_reuse_address(true).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    socket.bind(&address.into()).map_err(failed)?;
    socket.listen(1024).map_err(failed)?;
    let listener = TcpListener::from_std(socket.into()).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Ready while accepting and while each cluster has an endpoint that may be up.
struct Ready(Arc<Gateway>, Tasks);

impl Readiness for Ready {
    fn ready(&self) -> Result<(), String> {
        if *self.1.stopping().borrow() {
            return Err("draining".to_owned());
        }
        let snapshot = self.0.snapshot();
        let down = snapshot.clusters.iter().find(|cluster| !cluster.endpoints().iter().any(|e| e.is_up()));
        down.map_or(Ok(()), |cluster| Err(format!("cluster `{}` has no endpoint that is up", cluster.name())))
    }
}
