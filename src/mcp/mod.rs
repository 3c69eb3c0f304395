//! Owns DOOR 2: the MCP endpoint, through which clients list, run and steer what AgentOS offers.
//! Does not authenticate (the HTTP door does, before it hands a request over) and does not decide (`gateway`); the
//! only module that names `rmcp`.
//! Invariants: a tool call becomes a `Call` and takes the same path as any other; sessions and run handles are bound
//! to their principal; `tools/list` never asks AgentOS.

mod path;
pub mod settings;

mod endpoint;
mod narrowing;
mod reader;
mod sessions;

mod bridge;
mod progress;
mod visit;

mod ask;
mod discovery;
mod handle;
mod routes;
mod text;

mod run;
mod tools;

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use tools::fuzzing;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use rmcp::transport::streamable_http_server::session::SessionManager as _;
use rmcp::transport::streamable_http_server::session::local::{LocalSessionManager, SessionConfig};
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::gateway::{LocalService, StreamBody};
pub use narrowing::Toolset;
pub use path::Path;
pub use settings::Settings;

use bridge::Bridge;
use discovery::Discovery;
use narrowing::Narrowing;
use sessions::Sessions;

/// Largest request body.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Messages that a session's channel holds; `reader` keeps it far from full.
const CHANNEL_CAPACITY: usize = 64;
/// How often idle sessions are looked for.
const REAP_EVERY: Duration = Duration::from_secs(60);
/// Comment lines on silent streams. The library's timer mixes the real clock with tokio's, which tests stop.
const KEEP_ALIVE: Option<Duration> = if cfg!(test) { None } else { Some(Duration::from_secs(15)) };

/// Takes a task over and runs it to its end; says `false`, and drops it, when there is no room.
pub type Detach = Arc<dyn Fn(BoxFuture<'static, ()>) -> bool + Send + Sync>;

/// Counts one request by method and protocol version, both from closed sets.
pub type Counted = Arc<dyn Fn(&'static str, &'static str) + Send + Sync>;

/// What the server lends to the endpoint.
#[derive(Clone)]
pub struct Hooks {
    /// Reads runs on that outlive their call.
    pub detach: Detach,
    /// Counts requests.
    pub counted: Counted,
}

/// The MCP endpoint.
pub struct McpService {
    shared: Arc<Shared>,
}

/// What all requests of the endpoint share.
struct Shared {
    front: ArcSwap<Front>,
    bridge: Bridge,
    sessions: Sessions,
    manager: Arc<LocalSessionManager>,
    counted: Counted,
    stop: CancellationToken,
}

/// What a reload replaces; sessions stay.
struct Front {
    settings: Settings,
    transport: StreamableHttpService<Bridge, LocalSessionManager>,
}

/// What all tool calls share.
struct Inner {
    path: Arc<dyn Path>,
    discovery: Discovery,
    detach: Detach,
}

// === impl McpService ===

impl McpService {
    /// Builds the endpoint.
    pub fn new(settings: Settings, path: Arc<dyn Path>, hooks: Hooks) -> Arc<Self> {
        let Hooks { detach, counted } = hooks;
        let bridge = Bridge(Arc::new(Inner { path, discovery: Discovery::default(), detach }));
        let stop = CancellationToken::new();
        let mut manager = LocalSessionManager::default();
        manager.session_config = session_config();
        let manager = Arc::new(manager);
        let front = ArcSwap::from_pointee(Front::new(settings, &bridge, &manager, &stop));
        let sessions = Sessions::default();
        let shared = Shared { front, bridge, sessions, manager, counted, stop };
        Arc::new(Self { shared: Arc::new(shared) })
    }

    /// Replaces the settings for requests that begin now. Sessions and calls in flight stay.
    pub fn install(&self, settings: Settings) {
        let Shared { front, bridge, manager, stop, .. } = &*self.shared;
        front.store(Arc::new(Front::new(settings, bridge, manager, stop)));
    }

    /// Closes idle sessions, for ever. The server runs it and drops it at drain.
    pub async fn reap_loop(self: Arc<Self>) {
        loop {
            tokio::time::sleep(REAP_EVERY).await;
            for id in self.shared.sessions.take_idle() {
                self.shared.end_session(&id).await;
            }
        }
    }

    /// Ends every session and listening stream: the server drains.
    pub fn shutdown(&self) {
        self.shared.stop.cancel();
    }
}

// === impl Front ===

impl Front {
    fn new(settings: Settings, bridge: &Bridge, manager: &Arc<LocalSessionManager>, stop: &CancellationToken) -> Self {
        let (bridge, config) = (bridge.clone(), transport_config(&settings, stop));
        let transport = StreamableHttpService::new(move || Ok(bridge.clone()), Arc::clone(manager), config);
        Self { settings, transport }
    }
}

// === impl Shared ===

impl Shared {
    async fn end_session(&self, id: &Arc<str>) {
        if let Err(error) = self.manager.close_session(id).await {
            tracing::debug!(%error, "closing a session failed");
        }
    }
}

impl LocalService for McpService {
    fn owns(&self, path: &str) -> bool {
        let front = self.shared.front.load();
        front.settings.enabled && Narrowing::owns(&front.settings.path, path)
    }

    fn call(&self, request: Request<StreamBody>) -> BoxFuture<'static, Response<StreamBody>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { endpoint::answer(&shared, request).await })
    }
}

/// Sessions end by our own reaper: the library's idle timer would end calls that are merely silent.
fn session_config() -> SessionConfig {
    let mut config = SessionConfig::default();
    config.keep_alive = None;
    config.channel_capacity = CHANNEL_CAPACITY;
    config
}

fn transport_config(settings: &Settings, stop: &CancellationToken) -> StreamableHttpServerConfig {
    StreamableHttpServerConfig::default()
        .with_json_response(true)
        .with_sse_keep_alive(KEEP_ALIVE)
        .with_max_request_body_bytes(BODY_BYTES_MAX)
        .with_cancellation_token(stop.clone())
        .with_allowed_hosts(allowed_hosts(&settings.public_url))
        .with_allowed_origins(allowed_origins(settings))
}

const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// The public host and loopback names. A name without a port stands for any port: a proxy in front may change it.
fn allowed_hosts(public_url: &Url) -> Vec<String> {
    LOOPBACK.into_iter().map(str::to_owned).chain(public_url.host_str().map(str::to_owned)).collect()
}

fn allowed_origins(settings: &Settings) -> Vec<String> {
    let public_url = &settings.public_url;
    let loopback = LOOPBACK.into_iter().flat_map(|host| [format!("http://{host}:*"), format!("https://{host}:*")]);
    let public = public_url.host_str().zip(public_url.port_or_known_default());
    let public = public.map(|(host, port)| format!("{}://{host}:{port}", public_url.scheme()));
    // Without its port, the library would take an origin for one of any port.
    let named = settings.origins.iter().filter_map(|origin| {
        let url = Url::parse(origin).ok()?;
        Some(format!("{}://{}:{}", url.scheme(), url.host_str()?, url.port_or_known_default()?))
    });
    loopback.chain(public).chain(named).collect()
}
