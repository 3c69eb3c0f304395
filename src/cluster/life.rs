//! Owns which process answers at an endpoint, as far as probes tell: a new one knows nothing of the runs of the old.
//! Does not probe (`health`) and knows no runs (`gateway` asks for theirs).
//! Invariant: where one process at a time answers, what is said to be forgotten was there while another did.
//!
//! Several processes behind one address are found out when an older one answers again; from then on nothing is judged.

use std::cmp::Ordering;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The longest start that is believed to be a time.
const STARTED_BYTES_MAX: usize = 64;

/// The processes of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Life(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// When the process was started by its own word: RFC 3339 in UTC, which sorts as text.
    started: Box<str>,
    /// When the last probe that it answered was sent.
    last: Option<Instant>,
    /// The same of the process before it.
    before: Option<Instant>,
    /// Processes were seen to take turns.
    mixed: bool,
}

impl Life {
    /// Notes that a probe which was sent then was answered by a process that says when it was started.
    pub(super) fn answered(&self, sent: Instant, started: &str) {
        if started.is_empty() || started.len() > STARTED_BYTES_MAX {
            return;
        }
        let mut seen = self.0.lock();
        match started.cmp(&seen.started) {
            Ordering::Less => {
                seen.mixed = true;
                return;
            }
            Ordering::Equal => {}
            Ordering::Greater => {
                seen.before = seen.last;
                seen.started = started.into();
            }
        }
        seen.last = Some(sent);
    }

    /// Says whether the process that answered then is gone.
    pub(super) fn has_forgotten(&self, since: Instant) -> bool {
        let seen = self.0.lock();
        !seen.mixed && seen.before.is_some_and(|before| since < before)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_new_process_has_forgotten_what_the_old_one_was_seen_with() {
        let (life, at) = (Life::default(), |seconds| Instant::now() + Duration::from_secs(seconds));
        let run = at(10);
        life.answered(at(1), "2026-11-28T02:00:00.5Z");
        assert!(!life.has_forgotten(run));
        // No time: nothing is learned.
        for started in ["", &"9".repeat(100)] {
            life.answered(at(20), started);
        }
        life.answered(at(21), "2026-11-28T03:00:00Z");
        assert!(!life.has_forgotten(run), "the old process was not seen after the run began: the new one may have it");

        life.answered(at(22), "2026-11-28T03:00:00Z");
        life.answered(at(30), "2026-11-28T04:00:00Z");
        assert!(life.has_forgotten(run));
        assert!(!life.has_forgotten(at(25)));

        life.answered(at(31), "2026-11-28T03:00:00Z");
        assert!(!life.has_forgotten(run), "the old process is there all the same");
    }
}
