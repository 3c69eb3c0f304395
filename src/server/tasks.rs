//! Owns every task of the process: each has a name, sees the drain signal, and is waited for at the end.
//! Does not know what they do.
//! Invariants: a panic ends one task and is logged; what is spawned while the process drains is waited for like the rest.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// Most detached runs at once: each holds a lease or an answer somebody may still read.
const DETACHED_MAX: usize = 100_000;

/// The tasks of the process. Clones share them.
#[derive(Clone)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: Arc<watch::Sender<bool>>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// No tasks yet. Must be used inside a tokio runtime.
    pub fn new() -> Self {
        Self { tracker: TaskTracker::new(), stop: Arc::new(watch::Sender::new(false)) }
    }

    /// Starts a task. Its panic is logged under its name and ends nothing else.
    pub fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let guarded = std::panic::AssertUnwindSafe(work).catch_unwind();
        self.tracker.spawn(async move {
            if let Err(panic) = guarded.await {
                let message = panic
                    .downcast_ref::<&str>()
                    .map(|text| (*text).to_owned())
                    .or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_default();
                tracing::error!(task = name, message, "task panicked");
            }
        });
    }

    /// Starts work that outlives its exchange; `false` when there is too much of it, or the runtime is gone: exchanges
    /// end in destructors, too.
    pub fn spawn_detached(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) -> bool {
        if self.tracker.len() >= DETACHED_MAX || tokio::runtime::Handle::try_current().is_err() {
            return false;
        }
        self.spawn(name, work);
        true
    }

    /// Turns true when the drain begins.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Waits until the drain begins.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn stopped(&self) {
        // The sender lives in `self`: the wait can only end with `true`.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }

    /// Begins the drain and waits for the tasks; says how many were left at the deadline.
    pub async fn drain(&self, deadline: Duration) -> usize {
        self.stop.send_replace(true);
        self.tracker.close();
        let _ = tokio::time::timeout(deadline, self.tracker.wait()).await;
        self.tracker.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_one_task_only() {
        let tasks = Tasks::new();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        tasks.spawn("bad", async { panic!("on purpose") });
        tasks.spawn("good", async move {
            let _ = sender.send(7);
        });
        assert_eq!(receiver.await, Ok(7));
        assert_eq!(tasks.drain(Duration::from_secs(5)).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_drain_has_a_deadline() {
        let tasks = Tasks::new();
        tasks.spawn("stuck", std::future::pending());
        assert_eq!(tasks.drain(Duration::from_secs(1)).await, 1);
    }
}
