//! Owns what changes while the process serves: the whole configuration, read again and swapped in as one value.
//! Does not say when: `serve` does on a signal, `run` for the admin door and for a file that changed.
//! Invariants: what cannot be read or served changes nothing, and says why; after a reload the process runs what the
//! file says; exchanges end under the configuration they began with.

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;

use super::background::Background;
use super::compose::{ComposeError, Composed, Former, stages_after};
use super::revoked;
use super::watch::{Look, Seen, Watched};
use crate::config::{Config, Problem, Problems};
use crate::gateway::Gateway;
use crate::mcp::McpService;
use crate::outbound::Client;
use crate::proxy::HttpDoor;
use crate::secret::Secret;
use crate::telemetry::Telemetry;

/// Reads the configuration from where it came from.
pub type Reread = Arc<dyn Fn() -> Result<(Config, Vec<Problem>), Problems> + Send + Sync>;

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file is wrong.
    #[error(transparent)]
    Config(#[from] Problems),
    /// These keys hold until the process ends.
    #[error("{} cannot change while the process runs\nhelp: restart, or put the old values back", list(.0))]
    Restart(Vec<&'static str>),
    /// Modules refused their settings.
    #[error("{}", lines(.0))]
    Compose(Vec<ComposeError>),
    /// The process ends, or the reader panicked, which is logged.
    #[error("the configuration was not read")]
    Interrupted,
}

/// What a reload replaces, and what it needs for that.
pub(super) struct Parts {
    pub(super) gateway: Arc<Gateway>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) client: Client,
    pub(super) door: Arc<HttpDoor>,
    pub(super) mcp: Arc<McpService>,
    pub(super) admin_token: Arc<ArcSwapOption<Secret>>,
    pub(super) background: Arc<Background>,
}

/// Everything that can be read anew.
pub(super) struct Reload {
    parts: Parts,
    reread: Reread,
    /// What runs.
    config: ArcSwap<Config>,
    revoked: revoked::Watched,
    seen: Mutex<Seen>,
    /// One reload at a time.
    turn: Arc<tokio::sync::Semaphore>,
}

// === impl Reload ===

impl Reload {
    pub(super) fn new(parts: Parts, config: Config, reread: Reread) -> Self {
        let seen = Seen::new(watched(&config).look());
        let revoked = revoked::Watched::new(Arc::clone(&parts.gateway));
        let config = ArcSwap::from_pointee(config);
        Self { parts, reread, config, revoked, seen: Mutex::new(seen), turn: Arc::new(tokio::sync::Semaphore::new(1)) }
    }

    /// The configuration that runs.
    pub(super) fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// Opens the log files anew, reads the configuration, the policies and the revocation list again, and swaps them in.
    ///
    /// # Errors
    /// [`ReloadError`]; what runs stays.
    ///
    /// # Cancel safety
    /// Safe: a reload that was begun is finished or changes nothing.
    pub(super) async fn reload(self: &Arc<Self>) -> Result<(), ReloadError> {
        // Never closed. The turn goes along: whoever asked may leave before the swap is over.
        let turn = Arc::clone(&self.turn).acquire_owned().await.map_err(|_| ReloadError::Interrupted)?;
        let this = Arc::clone(self);
        let swapped = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            this.swap_and_tell()
        });
        let done = swapped.await.unwrap_or(Err(ReloadError::Interrupted));
        self.look_for_revocations().await;
        done
    }

    /// Blocks.
    fn swap_and_tell(&self) -> Result<(), ReloadError> {
        self.parts.telemetry.reopen();
        let done = self.swap();
        self.parts.telemetry.config_reload(done.is_ok());
        match &done {
            Ok(()) => tracing::info!("configuration and policies reloaded"),
            Err(error) => tracing::error!(%error, "configuration and policies not reloaded, the old ones stay"),
        }
        self.revoked.forget();
        done
    }

    /// See [`Background::probe_on`].
    pub(super) async fn probe_on(&self) {
        self.parts.background.probe_on().await;
    }

    /// Reads the revocation list when its file has changed.
    pub(super) async fn look_for_revocations(&self) {
        self.revoked.look(self.config().identity.revoked.clone()).await;
    }

    /// Reloads when a file has changed since it was read last, and no longer changes.
    pub(super) async fn look_for_changes(self: &Arc<Self>) {
        let watched = watched(&self.config());
        let Ok(now) = tokio::task::spawn_blocking(move || watched.look()).await else { return };
        if self.seen.lock().is_due(now) {
            // What came of it is logged and counted.
            let _ = self.reload().await;
        }
    }

    /// Blocks.
    fn swap(&self) -> Result<(), ReloadError> {
        let running = self.config();
        // Before the files are read: a change in between is found later.
        let before = watched(&running).look();
        let read = (self.reread)();
        self.seen.lock().tried(before);
        let (config, warnings) = read?;
        warnings.iter().for_each(|warning| tracing::warn!(%warning, "configuration"));
        let fixed = fixed(&running, &config);
        if !fixed.is_empty() {
            return Err(ReloadError::Restart(fixed));
        }
        let parts = &self.parts;
        let snapshot = parts.gateway.snapshot();
        let former = Former { config: &running, snapshot: &snapshot };
        let (snapshot, tls): Composed =
            stages_after(&config, &parts.client, Some(former)).map_err(ReloadError::Compose)?;
        self.seen.lock().tried(after(&running, &config, before));
        parts.telemetry.set_tenants(config.tenants.keys().cloned());
        parts.gateway.install(snapshot);
        parts.door.install(config.proxy.clone(), tls);
        parts.mcp.install(config.mcp.clone());
        parts.admin_token.store(config.admin.token.clone().map(Arc::new));
        self.config.store(Arc::new(config));
        parts.background.follow();
        Ok(())
    }
}

fn watched(config: &Config) -> Watched {
    Watched { files: config.files.clone(), policies: config.policy.dir.clone() }
}

/// What to remember as loaded: where other files count now, they are looked at anew.
fn after(old: &Config, new: &Config, before: Look) -> Look {
    if old.files == new.files && old.policy.dir == new.policy.dir { before } else { watched(new).look() }
}

/// The keys that differ and that the process cannot change while it runs.
fn fixed(old: &Config, new: &Config) -> Vec<&'static str> {
    let differs = [
        ("`listen` in `[server]`", old.server.listen != new.server.listen),
        ("`threads` in `[server]`", old.server.threads != new.server.threads),
        ("`pid_file` in `[server]`", old.server.pid_file != new.server.pid_file),
        ("`secret` in `[server]`", old.secrets != new.secrets),
        ("`connections` in `[server.limits]`", old.server.connections_max != new.server.connections_max),
        ("`listen` in `[admin]`", old.admin.listen != new.admin.listen),
        ("`[store]`", old.store != new.store),
        ("`[telemetry]`", old.telemetry != new.telemetry),
    ];
    differs.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
}

fn list(keys: &[&str]) -> String {
    keys.join(", ")
}

/// Errors with their causes, one each line.
fn lines(errors: &[ComposeError]) -> String {
    errors.iter().map(|error| Chain(error).to_string()).collect::<Vec<_>>().join("\n")
}

/// An error with its causes.
struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
