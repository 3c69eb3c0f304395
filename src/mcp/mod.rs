//! Owns DOOR 2: the MCP endpoint, through which clients list, run and steer what AgentOS offers.
//! Does not authenticate (the HTTP door does, before it hands a request over) and does not decide (`gateway`); the
//! only module that names `rmcp`.
//! Invariants: a tool call becomes a `Call` and takes the same path as any other; sessions and run handles are bound
//! to their principal; `tools/list` never asks AgentOS.

mod path;
pub mod settings;

mod authorization;
mod endpoint;
mod narrowing;
mod reader;
mod sessions;
mod step_up;

mod bridge;
mod notices;
mod progress;
mod visit;

mod ask;
mod client;
mod discovery;
mod flights;
mod handle;
mod pages;
mod pins;
mod refused;
mod routes;
mod slug;
mod text;
mod viewer;

mod pause;
mod run;
mod tasks;
mod tools;

mod prompts;
mod resources;

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use tools::fuzzing;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use rmcp::transport::streamable_http_server::session::SessionManager as _;
use rmcp::transport::streamable_http_server::session::local::{LocalSessionManager, SessionConfig};
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::gateway::{Answer, LocalService, StreamBody};
pub use narrowing::Toolset;
pub use path::Path;
pub use pins::Pin;
pub use settings::{Authorization, Decisions, Leaving, RunSettings, Settings};

use authorization::{Challenge, Resource};
use bridge::Bridge;
use discovery::Discovery;
use flights::Flights;
use narrowing::Narrowing;
use notices::Listeners;
use pins::Pins;
use sessions::Sessions;
use tasks::Pending;

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
    listeners: Arc<Listeners>,
    manager: Arc<LocalSessionManager>,
    counted: Counted,
    /// Ends the streams that would never end by themselves.
    stop: CancellationToken,
    inner: Arc<Inner>,
}

/// What a reload replaces; sessions stay.
struct Front {
    settings: Settings,
    resource: Resource,
    transport: StreamableHttpService<Bridge, LocalSessionManager>,
}

/// What all tool calls share.
struct Inner {
    path: Arc<dyn Path>,
    discovery: Discovery,
    pins: Arc<ArcSwap<Pins>>,
    detach: Detach,
    runs: ArcSwap<RunSettings>,
    pending: Pending,
    flights: Arc<Flights>,
}

// === impl McpService ===

impl McpService {
    /// Builds the endpoint.
    pub fn new(settings: Settings, path: Arc<dyn Path>, hooks: Hooks) -> Arc<Self> {
        let Hooks { detach, counted } = hooks;
        let pins = Arc::new(ArcSwap::from_pointee(Pins::new(settings.pins.clone())));
        let discovery = Discovery::new(settings.discovery_interval, path.clusters_to_ask(), Arc::clone(&pins));
        let runs = ArcSwap::from_pointee(settings.runs.clone());
        let (pending, flights) = (Pending::default(), Arc::default());
        let inner = Arc::new(Inner { path, discovery, pins, detach, runs, pending, flights });
        let bridge = Bridge(Arc::clone(&inner));
        let stop = CancellationToken::new();
        let mut manager = LocalSessionManager::default();
        manager.session_config = session_config();
        let manager = Arc::new(manager);
        let front = ArcSwap::from_pointee(Front::new(settings, &bridge, &manager));
        let (sessions, listeners) = (Sessions::default(), Arc::default());
        let shared = Shared { front, bridge, sessions, listeners, manager, counted, stop, inner };
        Arc::new(Self { shared: Arc::new(shared) })
    }

    /// Replaces the settings for requests that begin now. Sessions and calls in flight stay.
    pub fn install(&self, settings: Settings) {
        let Shared { front, bridge, manager, inner, .. } = &*self.shared;
        inner.runs.store(Arc::new(settings.runs.clone()));
        inner.discovery.set_pins(Pins::new(settings.pins.clone()));
        inner.discovery.set_interval(settings.discovery_interval);
        front.store(Arc::new(Front::new(settings, bridge, manager)));
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

    /// Looks at the components of every cluster, for ever. The server runs it and drops it at drain.
    pub async fn discovery_loop(self: Arc<Self>) {
        let inner = &self.shared.inner;
        inner.discovery.follow(&inner.path).await;
    }

    /// Ends every listening stream: the server drains. Calls in flight end by themselves, or with the process.
    pub fn shutdown(&self) {
        self.shared.stop.cancel();
    }
}

// === impl Front ===

impl Front {
    fn new(settings: Settings, bridge: &Bridge, manager: &Arc<LocalSessionManager>) -> Self {
        let (bridge, config) = (bridge.clone(), transport_config(&settings));
        let transport = StreamableHttpService::new(move || Ok(bridge.clone()), Arc::clone(manager), config);
        let resource = Resource::new(&settings.public_url, &settings.path, settings.authorization.as_ref());
        Self { settings, resource, transport }
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
        front.settings.enabled && (Narrowing::owns(&front.settings.path, path) || front.resource.owns(path))
    }

    fn answer_anyone(&self, method: &Method, path: &str, query: Option<&str>) -> Option<Answer> {
        self.shared.front.load().resource.answer_anyone(method, path, query)
    }

    fn challenge(&self, refusal: &mut Answer, headers: &HeaderMap) {
        if refusal.status == StatusCode::UNAUTHORIZED {
            let presented = headers.contains_key(AUTHORIZATION);
            let challenge = if presented { Challenge::Invalid } else { Challenge::Missing };
            self.shared.front.load().resource.challenge(&mut refusal.headers, challenge);
        }
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

/// Without a token of ours to cancel: the library would cut calls off with it.
fn transport_config(settings: &Settings) -> StreamableHttpServerConfig {
    StreamableHttpServerConfig::default()
        .with_json_response(true)
        .with_sse_keep_alive(KEEP_ALIVE)
        .with_max_request_body_bytes(BODY_BYTES_MAX)
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
