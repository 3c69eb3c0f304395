//! Owns the start: every module from the configuration, every task, every listener; and the drain.
//! Does not listen to signals (`serve`) and does not parse arguments (`cli`).
//! Invariant: nothing is bound before the configuration was composed, and no task starts before both addresses are bound.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::future::BoxFuture;
use tokio::net::TcpListener;

use super::accept::accept;
use super::background::{Background, every};
use super::compose::{ComposeError, compose};
use super::handover::{HandoverError, Inherited, Origin};
use super::reload::{Parts, Reload, ReloadError, Reread};
use super::sockets::listeners;
use super::tasks::Tasks;
use crate::admin::{self, AdminState, Readiness, Reloading};
use crate::config::Config;
use crate::gateway::{Gateway, LocalService, Snapshot, Spawn};
use crate::mcp::{self, McpService};
use crate::outbound::{self, Client};
use crate::proxy::HttpDoor;
use crate::store::{self, Store};
use crate::telemetry::{OpenError, Telemetry};

/// Most connections of the admin listener.
const ADMIN_CONNECTIONS_MAX: usize = 64;

/// How long before the end of the drain streams are told to end.
const STREAMS_END_BEFORE: Duration = Duration::from_secs(1);
/// How long a new process waits for its first probes before it says that it serves.
const WARM_UP: Duration = Duration::from_secs(5);
const WARM_UP_POLL: Duration = Duration::from_millis(10);

/// How often the revocation list is looked at.
const REVOKED_INTERVAL: Duration = Duration::from_secs(5);

/// How often a process that watches no files asks whether it should.
const UNWATCHED_INTERVAL: Duration = Duration::from_secs(5);

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
    /// The sockets of the process before this one cannot be taken over.
    #[error("cannot take over from the process that serves now")]
    Inherit(#[source] io::Error),
    /// The file with the process id cannot be written.
    #[error("cannot write the process id to `{}`", path.display())]
    PidFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
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
    /// The listening sockets once more, to hand them over: main and admin.
    sockets: [OwnedFd; 2],
}

// === impl Running ===

impl Running {
    /// Does what SIGHUP does: opens the logs anew, reads the configuration, policies, certificates and the revocation
    /// list again.
    ///
    /// # Errors
    /// Why nothing changed.
    pub async fn reload(&self) -> Result<(), ReloadError> {
        self.reload.reload().await
    }

    /// Stops accepting, lets exchanges end, cuts them at the deadline. Says how many were cut.
    pub async fn drain(self) -> usize {
        let deadline = self.drain_timeout();
        self.close().drain(deadline).await
    }

    /// Closes the listening sockets as soon as the drain begins; the rest is up to the tasks.
    pub(super) fn close(self) -> Closed {
        // Else the system would go on taking connections that nobody answers.
        drop(self.sockets);
        Closed { tasks: self.tasks, gateway: self.gateway, reload: self.reload }
    }

    /// Starts the binary anew, hands it the listening sockets, and waits until it serves.
    ///
    /// # Errors
    /// Why it does not; this process goes on.
    pub(super) async fn hand_over(&self, origin: &Origin) -> Result<(), HandoverError> {
        if matches!(self.reload.config().store, store::Settings::File(_)) {
            return Err(HandoverError::FileStore);
        }
        if matches!(self.reload.config().store, store::Settings::Memory) {
            let lost =
                "counters start anew; sessions and continues under way in this process are not known to the new one";
            tracing::warn!(lost, "binary upgraded with a store in memory");
        }
        let [main, admin] = &self.sockets;
        origin.hand_over([main.as_fd(), admin.as_fd()]).await
    }

    /// Waits until each cluster has an endpoint that may be up, for a while: then it is the endpoints' fault.
    pub(super) async fn warm_up(&self) {
        let ready = Ready(Arc::clone(&self.gateway), self.tasks.clone());
        let deadline = tokio::time::Instant::now() + WARM_UP;
        while !(self.probed() && ready.ready().is_ok()) && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(WARM_UP_POLL).await;
        }
    }

    fn probed(&self) -> bool {
        let snapshot = self.gateway.snapshot();
        // Where endpoints are found by name, none is known before the first answer.
        let probed = |c: &Arc<crate::cluster::Cluster>| {
            let endpoints = c.endpoints();
            !endpoints.is_empty() && endpoints.iter().all(|e| e.version().is_some() || !e.is_up())
        };
        snapshot.clusters.iter().all(probed)
    }

    pub(super) fn upgrade_timeout(&self) -> Duration {
        self.reload.config().server.upgrade_timeout
    }

    pub(super) fn drain_timeout(&self) -> Duration {
        self.reload.config().server.drain_timeout
    }
}

/// A process that takes no more connections.
pub(super) struct Closed {
    tasks: Tasks,
    gateway: Arc<Gateway>,
    reload: Arc<Reload>,
}

impl Closed {
    /// Lets exchanges end; streams that go on are told to end shortly before the deadline, and what is left then is
    /// cut. Says how many. Until then, which after an upgrade may be an hour, revocations are heard of and endpoints are
    /// probed.
    pub(super) async fn drain(&self, deadline: Duration) -> usize {
        self.gateway.begin_drain();
        let early = deadline - (deadline / 4).min(STREAMS_END_BEFORE);
        let mut drained = std::pin::pin!(self.tasks.drain(deadline));
        tokio::select! {
            left = &mut drained => return left,
            () = self.watch_revocations() => {}
            () = self.reload.probe_on() => {}
            // What still streams is told, rather than cut.
            () = tokio::time::sleep(early) => self.gateway.end_streams(),
        }
        drained.await
    }

    async fn watch_revocations(&self) {
        loop {
            tokio::time::sleep(REVOKED_INTERVAL).await;
            self.reload.look_for_revocations().await;
        }
    }
}

/// Binds, starts every task, and returns at once. `reread` is what a reload reads.
///
/// # Errors
/// [`StartError`] when the settings are refused or an address is taken.
pub async fn start(config: Config, reread: Reread) -> Result<Running, StartError> {
    start_with(config, reread, None).await
}

pub(super) async fn start_with(
    config: Config,
    reread: Reread,
    inherited: Option<&mut Inherited>,
) -> Result<Running, StartError> {
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
    let (main, admin) = listeners(&config, inherited)?;
    let (address, admin_address) = (main.address, admin.address);
    let mcp = mcp(&tasks, &gateway, &telemetry, spawn, &config.mcp);
    let services: Vec<Arc<dyn LocalService>> = vec![Arc::clone(&mcp) as _];
    let door = HttpDoor::new(Arc::clone(&gateway), Arc::clone(&telemetry), services, config.proxy.clone(), tls);
    let background = Background::start(&tasks, &gateway, &client, &telemetry, config.store.kind());
    listen(&tasks, main.listener, config.server.connections_max, Arc::clone(&door));
    let admin_token = Arc::new(ArcSwapOption::new(config.admin.token.clone().map(Arc::new)));
    let parts = Parts {
        gateway: Arc::clone(&gateway),
        telemetry: Arc::clone(&telemetry),
        client,
        door,
        mcp,
        admin_token: Arc::clone(&admin_token),
        background,
    };
    let reload = Arc::new(Reload::new(parts, config, reread));
    watch_files(&tasks, &reload);
    let state = Arc::new(AdminState {
        token: admin_token,
        telemetry,
        readiness: Arc::new(Ready(Arc::clone(&gateway), tasks.clone())),
        steering: Arc::clone(&gateway) as _,
        reloading: Arc::new(Reloads(Arc::clone(&reload))),
    });
    tasks.spawn(
        "admin",
        accept("admin", admin.listener, ADMIN_CONNECTIONS_MAX, tasks.clone(), move |stream, _| {
            let state = Arc::clone(&state);
            async move { admin::serve_connection(stream, state).await }
        }),
    );
    tracing::info!(%address, %admin_address, version = env!("CARGO_PKG_VERSION"), "started");
    Ok(Running { address, admin_address, gateway, tasks, reload, sockets: [main.again, admin.again] })
}

/// Looks at files that may change: the revocation list always, everything else where the configuration says so.
fn watch_files(tasks: &Tasks, reload: &Arc<Reload>) {
    let revocations = Arc::clone(reload);
    tasks.spawn(
        "revocations",
        every(REVOKED_INTERVAL, tasks.clone(), move || {
            let reload = Arc::clone(&revocations);
            async move { reload.look_for_revocations().await }
        }),
    );
    let (files, stopping) = (Arc::clone(reload), tasks.clone());
    tasks.spawn("files", async move {
        loop {
            let interval = files.config().server.watch;
            tokio::select! {
                biased;
                () = stopping.stopped() => return,
                // Whether to watch may change with a reload.
                () = tokio::time::sleep(interval.unwrap_or(UNWATCHED_INTERVAL)) => {}
            }
            if interval.is_some() {
                files.look_for_changes().await;
            }
        }
    });
}

/// Quotas that count where the configuration says.
fn counting(mut snapshot: Snapshot, settings: &store::Settings, store: Arc<dyn Store>) -> Snapshot {
    snapshot.quota = Arc::new(match settings {
        store::Settings::Memory => snapshot.quota.recording(store),
        store::Settings::File(_) | store::Settings::Redis(_) => snapshot.quota.sharing(store),
    });
    snapshot
}

/// The MCP endpoint, with its reaper and its end at drain.
fn mcp(
    tasks: &Tasks,
    gateway: &Arc<Gateway>,
    telemetry: &Arc<Telemetry>,
    spawn: Spawn,
    settings: &mcp::Settings,
) -> Arc<McpService> {
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

fn listen(tasks: &Tasks, listener: TcpListener, connections_max: usize, door: Arc<HttpDoor>) {
    let stopping = tasks.stopping();
    tasks.spawn(
        "http",
        accept("http", listener, connections_max, tasks.clone(), move |stream, peer| {
            let (door, stopping) = (Arc::clone(&door), stopping.clone());
            async move { Box::pin(door.serve(stream, peer, &stopping)).await }
        }),
    );
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

/// What the admin door may ask.
struct Reloads(Arc<Reload>);

impl Reloading for Reloads {
    fn reload(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { self.0.reload().await.map_err(|error| error.to_string()) })
    }
}
