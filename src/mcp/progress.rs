//! Owns the progress notifications of one call: numbered, at most four a second, with a heartbeat.
//! Does not know runs (`run`): it is told what goes on.
//! Invariants: numbers only grow; a message is one line of at most 200 characters; a client that does not read gets
//! nothing, and never holds up the call.

use std::sync::Arc;
use std::time::Duration;

use rmcp::RoleServer;
use rmcp::model::{ProgressNotificationParam, ProgressToken};
use rmcp::service::Peer;
use tokio::time::Instant;

use super::reader::Reader;
use super::text;

/// Shortest time between two notifications.
const PACE: Duration = Duration::from_millis(250);
/// Longest silence.
const HEARTBEAT: Duration = Duration::from_secs(10);
const MESSAGE_CHARS_MAX: usize = 200;
/// Longest wait for the transport; its channel is never full (`reader`), so this is a backstop.
const SEND_WAIT: Duration = Duration::from_secs(2);
/// Far enough to mean never.
const NEVER: Duration = Duration::from_secs(86_400);

/// The progress of one call. Silent when the client asked for none.
pub(super) struct Progress {
    to: Option<Listener>,
    number: u64,
    started: Instant,
    last: Instant,
    waiting: Option<String>,
    doing: Option<String>,
}

struct Listener {
    peer: Peer<RoleServer>,
    token: ProgressToken,
    reader: Arc<Reader>,
}

impl Progress {
    /// Starts the clock; without a token nothing is ever sent.
    pub(super) fn new(peer: Peer<RoleServer>, token: Option<ProgressToken>, reader: Arc<Reader>) -> Self {
        let now = Instant::now();
        let to = token.map(|token| Listener { peer, token, reader });
        // The first message need not wait.
        let last = now.checked_sub(PACE).unwrap_or(now);
        Self { to, number: 0, started: now, last, waiting: None, doing: None }
    }

    /// Takes a message to be sent when the pace allows; a newer one replaces it.
    pub(super) fn say(&mut self, message: &str) {
        if self.to.is_some() {
            self.waiting = Some(message.to_owned());
        }
    }

    /// Names what heartbeats mention, such as the tool that runs.
    pub(super) fn doing(&mut self, what: Option<String>) {
        self.doing = what;
    }

    /// When [`Progress::tick`] has something to send.
    pub(super) fn due(&self) -> Instant {
        match (&self.to, &self.waiting) {
            (None, _) => Instant::now() + NEVER,
            (Some(_), Some(_)) => self.last + PACE,
            (Some(_), None) => self.last + HEARTBEAT,
        }
    }

    /// Sends what is due: the message that waits, or a heartbeat.
    ///
    /// # Cancel safety
    /// A message may be lost.
    pub(super) async fn tick(&mut self) {
        let now = Instant::now();
        if now < self.due() {
            return;
        }
        self.last = now;
        let message = self.waiting.take().unwrap_or_else(|| self.heartbeat());
        self.send(&message).await;
    }

    fn heartbeat(&self) -> String {
        let seconds = self.started.elapsed().as_secs();
        match &self.doing {
            Some(what) => format!("running, {seconds} s, {what}"),
            None => format!("running, {seconds} s"),
        }
    }

    async fn send(&mut self, message: &str) {
        let Some(to) = &self.to else { return };
        if !to.reader.reserve() {
            return;
        }
        self.number += 1;
        let message = text::head(&text::line(message), MESSAGE_CHARS_MAX);
        #[allow(clippy::cast_precision_loss, reason = "a count of notifications stays far below 2^52")]
        let param = ProgressNotificationParam::new(to.token.clone(), self.number as f64).with_message(message);
        // A client that went away shows elsewhere: by its cancellation or in its own time.
        let _ = tokio::time::timeout(SEND_WAIT, to.peer.notify_progress(param)).await;
    }
}
