//! Owns the life of the process: serve, and do what signals ask for, until it drains.
//! Does not build or bind (`run`).
//! Invariant: when `serve` returns, every listener is closed and every task has ended or was cut at the deadline.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::handover::{Inherited, Origin};
use super::reload::Reread;
use super::run::{Running, StartError, start_with};
use super::supervisor::{self, PidFile};
use crate::config::Config;

/// Serves until SIGTERM or SIGINT, then drains. SIGHUP reloads: see [`Running::reload`]. SIGUSR2 starts the binary
/// anew, hands it the listening sockets, and once it serves, drains for as long as `upgrade_timeout` says; a signal to
/// end before that ends the new process too.
///
/// # Errors
/// [`StartError`] when the process could not start.
pub async fn serve(config: Config, reread: Reread) -> Result<(), StartError> {
    let mut signals = Signals::new().map_err(StartError::Signals)?;
    let origin = Origin::of_this_process().map_err(StartError::Inherit)?;
    let mut inherited = Inherited::receive().map_err(StartError::Inherit)?;
    let pid_file = config.server.pid_file.clone();
    let running = start_with(config, reread, inherited.as_mut()).await?;
    let takes_over = inherited.is_some();
    if let Some(inherited) = inherited {
        running.warm_up().await;
        inherited.ready().map_err(StartError::Inherit)?;
    }
    let written = |path: PathBuf| PidFile::write(&path).map_err(|source| StartError::PidFile { path, source });
    let _pid_file = match pid_file.map(written).transpose() {
        // The old process has been told to end: nobody would serve.
        Err(error) if takes_over => {
            tracing::error!(%error, "pid file not written");
            None
        }
        written => written?,
    };
    supervisor::notify_ready();
    let timeout = loop {
        match signals.next().await {
            Signal::End => break running.drain_timeout(),
            Signal::Reload => {
                supervisor::notify("RELOADING=1");
                // What came of it is logged and counted.
                let _ = running.reload().await;
                supervisor::notify("READY=1");
            }
            // The new process may take a minute: who ends this one meanwhile ends both.
            Signal::Upgrade => match signals.unless_ended(running.hand_over(&origin)).await {
                None => break running.drain_timeout(),
                Some(Ok(())) => break running.upgrade_timeout(),
                Some(Err(error)) => tracing::error!(%error, "binary not upgraded, this process goes on serving"),
            },
        }
    };
    supervisor::notify("STOPPING=1");
    end(running, timeout, signals).await;
    Ok(())
}

/// Drains; a signal to end makes an upgrade's long drain a short one.
async fn end(running: Running, timeout: Duration, mut signals: Signals) {
    tracing::info!(timeout_ms = timeout.as_millis(), "draining");
    let short = running.drain_timeout();
    let closed = running.close();
    let hurried = async {
        while !matches!(signals.next().await, Signal::End) {}
        tracing::info!(timeout_ms = short.as_millis(), "draining in a hurry");
    };
    let cut = tokio::select! {
        cut = closed.drain(timeout) => cut,
        () = hurried, if timeout > short => closed.drain(short).await,
    };
    tracing::info!(cut, "stopped");
}

/// What signals ask for.
enum Signal {
    End,
    Reload,
    Upgrade,
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
    upgrade: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            upgrade: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::End,
            _ = self.interrupt.recv() => Signal::End,
            _ = self.hang_up.recv() => Signal::Reload,
            _ = self.upgrade.recv() => Signal::Upgrade,
        }
    }

    /// What comes of some work, or `None` when a signal to end comes first, which drops it. Other signals wait.
    async fn unless_ended<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            // Work that is done counts: a new process that serves is not told to end.
            done = work => Some(done),
            _ = self.terminate.recv() => None,
            _ = self.interrupt.recv() => None,
        }
    }
}
