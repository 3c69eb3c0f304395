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

use crate::cluster::UpstreamUser;

/// Most ids that are held at once.
const HELD_MAX: usize = 65_536;
/// Most ids that linger.
const LINGERING_MAX: u64 = 65_536;
/// How long an id stays its maker's after the exchange has ended: AgentOS writes the row of a run that was broken off
/// or goes on in the background a moment later.
const LINGER: Duration = Duration::from_secs(30);

/// Cluster and session.
type Key = (Arc<str>, String);

/// Sessions that are being made.
#[derive(Clone)]
pub(super) struct NewSessions(Arc<Tables>);

struct Tables {
    held: Mutex<HashMap<Key, Holders>>,
    lingering: Cache<Key, UpstreamUser>,
}

struct Holders {
    user: UpstreamUser,
    count: usize,
    /// One of them may have made AgentOS write.
    sent: bool,
}

/// One call's part in a session id; given back on drop.
pub(super) struct Held {
    tables: Arc<Tables>,
    key: Key,
    sent: bool,
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
        let lingering = Cache::builder().max_capacity(LINGERING_MAX).time_to_live(LINGER).build();
        Self(Arc::new(Tables { held: Mutex::default(), lingering }))
    }

    /// Holds an id for a user, who may hold it several times.
    ///
    /// # Errors
    /// [`NotHeld`] while somebody else has it, or when the table is full.
    pub(super) fn hold(&self, cluster: &Arc<str>, session: &str, user: &UpstreamUser) -> Result<Held, NotHeld> {
        let key = (Arc::clone(cluster), session.to_owned());
        let mut held = self.0.held.lock();
        let full = held.len() >= HELD_MAX;
        match held.get_mut(&key) {
            Some(holders) if holders.user == *user => holders.count += 1,
            Some(_) => return Err(NotHeld::Taken),
            None if self.0.lingering.get(&key).is_some_and(|maker| maker != *user) => return Err(NotHeld::Taken),
            None if full => return Err(NotHeld::Full),
            None => {
                held.insert(key.clone(), Holders { user: user.clone(), count: 1, sent: false });
            }
        }
        drop(held);
        Ok(Held { tables: Arc::clone(&self.0), key, sent: false })
    }
}

// === impl Held ===

impl Held {
    /// From here on AgentOS may write the session, whatever becomes of this call.
    pub(super) fn sending(&mut self) {
        self.sent = true;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.tables.held.lock();
        let Some(holders) = held.get_mut(&self.key) else { return };
        holders.sent |= self.sent;
        holders.count = holders.count.saturating_sub(1);
        if holders.count > 0 {
            return;
        }
        if let Some(last) = held.remove(&self.key)
            && last.sent
        {
            // Under the lock: whoever holds it next must see it.
            self.tables.lingering.insert(self.key.clone(), last.user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::UserIdTemplate;
    use crate::principal::TenantId;

    fn user(tenant: &str, subject: &str) -> UpstreamUser {
        UserIdTemplate::default().render(&TenantId::new(tenant).unwrap(), subject).unwrap()
    }

    #[test]
    fn an_id_is_held_by_one_user_at_a_time() {
        let (sessions, main) = (NewSessions::new(), Arc::from("main"));
        let (alice, gina) = (user("acme", "alice"), user("globex", "gina"));
        let first = sessions.hold(&main, "s", &alice).unwrap();
        let second = sessions.hold(&main, "s", &alice).unwrap();
        assert_eq!(sessions.hold(&main, "s", &gina).err(), Some(NotHeld::Taken));
        assert!(sessions.hold(&Arc::from("other"), "s", &gina).is_ok());
        drop(first);
        assert_eq!(sessions.hold(&main, "s", &gina).err(), Some(NotHeld::Taken));
        drop(second);
        // Nothing was sent.
        assert!(sessions.hold(&main, "s", &gina).is_ok());
    }

    #[test]
    fn what_was_sent_lingers() {
        let (sessions, main) = (NewSessions::new(), Arc::from("main"));
        let (alice, gina) = (user("acme", "alice"), user("globex", "gina"));
        let mut first = sessions.hold(&main, "s", &alice).unwrap();
        let second = sessions.hold(&main, "s", &alice).unwrap();
        first.sending();
        drop(first);
        drop(second);
        assert_eq!(sessions.hold(&main, "s", &gina).err(), Some(NotHeld::Taken));
        assert!(sessions.hold(&main, "s", &alice).is_ok());
    }
}
