//! Owns who is making a session right now: between the look-up that finds no session and the row that AgentOS writes
//! at the end of a run, its id belongs to whoever asked first.
//! Does not look sessions up (`facts`).
//! Invariant: an id is held by one upstream user at a time; what is held is given back, and lingers, when its last
//! holder ends.
//!
//! AgentOS decides by whoever writes first: 2.5.6 loses the runs of all others, 3.1.10 stores them in the winner's
//! session, where the winner reads them. The table lives in this process. Several instances over one AgentOS need a
//! shared one behind the same question.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::cluster::UpstreamUser;

/// Most ids that are held at once.
const HELD_MAX: usize = 65_536;
/// Most ids that linger.
const LINGERING_MAX: u64 = 65_536;
/// How long an id stays its maker's after a run was seen to end: AgentOS writes the row a moment later.
const LINGER: Duration = Duration::from_secs(30);
/// How long the table remembers an id at most, whatever a cluster's `stream_max` says.
const LINGER_MAX: Duration = Duration::from_secs(24 * 3600);

/// Cluster and session.
type Key = (Arc<str>, String);

/// Sessions that are being made.
#[derive(Clone)]
pub(super) struct NewSessions(Arc<Tables>);

struct Tables {
    held: Mutex<HashMap<Key, Holders>>,
    lingering: Cache<Key, Lingering>,
}

struct Holders {
    user: UpstreamUser,
    count: usize,
    /// When the last run that one of them started has written its session, if one did.
    writes_until: Option<Instant>,
}

/// Whose an id stays, and until when.
#[derive(Clone)]
struct Lingering {
    user: UpstreamUser,
    until: Instant,
}

/// One call's part in a session id; given back on drop.
pub(super) struct Held {
    tables: Arc<Tables>,
    key: Key,
    /// The longest that a run of this cluster may go on.
    longest: Duration,
    run: Run,
}

/// What is known of the run that a call started.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Run {
    NotSent,
    /// AgentOS may go on with it whoever listens, and write when it ends.
    Sent,
    Ended,
}

/// Why an id cannot be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotHeld {
    /// Somebody else is making a session of that id.
    Taken,
    /// Too many sessions are being made.
    Full,
}

// === impl NewSessions ===

impl NewSessions {
    pub(super) fn new() -> Self {
        let lingering = Cache::builder().max_capacity(LINGERING_MAX).time_to_live(LINGER_MAX).build();
        Self(Arc::new(Tables { held: Mutex::default(), lingering }))
    }

    /// Holds an id for a user, who may hold it several times. `longest` is how long a run may go on at most.
    ///
    /// # Errors
    /// [`NotHeld`] while somebody else has it, or when the table is full.
    pub(super) fn hold(
        &self,
        cluster: &Arc<str>,
        session: &str,
        user: &UpstreamUser,
        longest: Duration,
    ) -> Result<Held, NotHeld> {
        let key = (Arc::clone(cluster), session.to_owned());
        let mut held = self.0.held.lock();
        let full = held.len() >= HELD_MAX;
        match held.get_mut(&key) {
            Some(holders) if holders.user == *user => holders.count += 1,
            Some(_) => return Err(NotHeld::Taken),
            None if self.0.lingers_for_another(&key, user) => return Err(NotHeld::Taken),
            None if full => return Err(NotHeld::Full),
            None => {
                held.insert(key.clone(), Holders { user: user.clone(), count: 1, writes_until: None });
            }
        }
        drop(held);
        Ok(Held { tables: Arc::clone(&self.0), key, longest, run: Run::NotSent })
    }
}

// === impl Tables ===

impl Tables {
    fn lingers_for_another(&self, key: &Key, user: &UpstreamUser) -> bool {
        self.lingering.get(key).is_some_and(|maker| maker.user != *user && Instant::now() < maker.until)
    }
}

// === impl Held ===

impl Held {
    /// From here on AgentOS may write the session, whatever becomes of this call.
    pub(super) fn sending(&mut self) {
        self.run = Run::Sent;
    }

    /// The run was seen to end: what AgentOS writes, it writes now.
    pub(super) fn ended(&mut self) {
        self.run = Run::Ended;
    }

    fn writes_until(&self) -> Option<Instant> {
        let linger = match self.run {
            Run::NotSent => return None,
            Run::Sent => self.longest.clamp(LINGER, LINGER_MAX),
            Run::Ended => LINGER,
        };
        Some(Instant::now() + linger)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.tables.held.lock();
        let Some(holders) = held.get_mut(&self.key) else { return };
        holders.writes_until = holders.writes_until.max(self.writes_until());
        holders.count = holders.count.saturating_sub(1);
        if holders.count > 0 {
            return;
        }
        if let Some(Holders { user, writes_until: Some(until), .. }) = held.remove(&self.key) {
            // Under the lock: whoever holds it next must see it.
            self.tables.lingering.insert(self.key.clone(), Lingering { user, until });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::UserIdTemplate;
    use crate::principal::TenantId;

    const HOUR: Duration = Duration::from_secs(3600);

    fn user(tenant: &str, subject: &str) -> UpstreamUser {
        UserIdTemplate::default().render(&TenantId::new(tenant).unwrap(), subject).unwrap()
    }

    #[test]
    fn an_id_is_held_by_one_user_at_a_time() {
        let (sessions, main) = (NewSessions::new(), Arc::from("main"));
        let (alice, gina) = (user("acme", "alice"), user("globex", "gina"));
        let first = sessions.hold(&main, "s", &alice, HOUR).unwrap();
        let second = sessions.hold(&main, "s", &alice, HOUR).unwrap();
        assert_eq!(sessions.hold(&main, "s", &gina, HOUR).err(), Some(NotHeld::Taken));
        assert!(sessions.hold(&Arc::from("other"), "s", &gina, HOUR).is_ok());
        drop(first);
        assert_eq!(sessions.hold(&main, "s", &gina, HOUR).err(), Some(NotHeld::Taken));
        drop(second);
        // Nothing was sent.
        assert!(sessions.hold(&main, "s", &gina, HOUR).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_sent_lingers_until_its_run_has_written() {
        let main = Arc::from("main");
        let (alice, gina) = (user("acme", "alice"), user("globex", "gina"));
        let taken_for = async |ends: bool| {
            let sessions = NewSessions::new();
            let mut first = sessions.hold(&main, "s", &alice, HOUR).unwrap();
            let second = sessions.hold(&main, "s", &alice, HOUR).unwrap();
            first.sending();
            if ends {
                first.ended();
            }
            drop(first);
            drop(second);
            assert!(sessions.hold(&main, "s", &alice, HOUR).is_ok());
            let began = Instant::now();
            while sessions.hold(&main, "s", &gina, HOUR).is_err() {
                tokio::time::advance(Duration::from_secs(10)).await;
            }
            began.elapsed()
        };
        assert_eq!(taken_for(true).await, LINGER);
        // Nobody knows whether it ended: AgentOS goes on with a run that nobody waits for.
        assert_eq!(taken_for(false).await, HOUR);
    }
}
