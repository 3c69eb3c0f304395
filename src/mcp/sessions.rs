//! Owns the sessions of older clients: whose they are, when they were last used, which one has to go.
//! Does not hold the transport's own session (`rmcp`); closing it is the caller's part.
//! Invariants: a session answers only to the tenant and subject that opened it; none is reaped while a call of it is
//! in flight; the table is bounded in total and per principal.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rmcp::RoleServer;
use rmcp::service::Peer;
use tokio::sync::watch;
use tokio::time::Instant;

use super::notices::WATCHED_MAX;
use crate::principal::{Principal, TenantId};

/// A session that nobody used for this long is closed.
const IDLE: Duration = Duration::from_secs(3_600);
/// Sessions of one principal.
pub(super) const PER_PRINCIPAL_MAX: usize = 32;
/// Sessions of all principals.
const TOTAL_MAX: usize = 16_384;

/// The sessions of this process.
#[derive(Default)]
pub(super) struct Sessions {
    table: Mutex<HashMap<Arc<str>, Arc<Session>>>,
}

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    tenant: TenantId,
    subject: Arc<str>,
    calls: AtomicUsize,
    streams: AtomicUsize,
    used: Mutex<Instant>,
    /// The way to the client, once it has said that it is ready.
    peer: watch::Sender<Option<Peer<RoleServer>>>,
    /// Addresses of the resources that the client watches.
    watched: watch::Sender<Vec<String>>,
}

/// Keeps a session from being reaped. Held by the handler of a call and by the body of its response.
#[derive(Debug)]
pub(super) struct InUse {
    session: Arc<Session>,
    by: Use,
}

/// What uses a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// A request that is being answered.
    Call,
    /// A listening stream: the client is there, but may be sent away when its principal opens too many sessions.
    Stream,
}

/// What came of a new session.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// It is in the table.
    Kept,
    /// It is in the table in place of an older one, which the caller closes.
    Replacing(Arc<str>),
    /// Every session has a call in flight: the caller closes the new one.
    Refused,
}

// === impl Sessions ===

impl Sessions {
    /// Binds a session to its principal.
    pub(super) fn open(&self, id: Arc<str>, principal: &Principal) -> Opened {
        let mut table = self.table.lock();
        let session = Arc::new(Session::new(principal));
        let own = table.values().filter(|s| s.belongs_to(principal)).count();
        let full = own >= PER_PRINCIPAL_MAX || table.len() >= TOTAL_MAX;
        let outgoing = full.then(|| oldest(&table, (own >= PER_PRINCIPAL_MAX).then_some(principal)));
        let opened = match outgoing {
            None => Opened::Kept,
            Some(Some(old)) => Opened::Replacing(old),
            Some(None) => return Opened::Refused,
        };
        if let Opened::Replacing(old) = &opened {
            table.remove(old);
        }
        table.insert(id, session);
        opened
    }

    /// The session, when it is the principal's own. Foreign and unknown ids look the same.
    pub(super) fn of(&self, id: &str, principal: &Principal) -> Option<Arc<Session>> {
        self.table.lock().get(id).filter(|s| s.belongs_to(principal)).map(Arc::clone)
    }

    /// Forgets a session.
    pub(super) fn close(&self, id: &str) {
        self.table.lock().remove(id);
    }

    /// Takes out the sessions that nobody used for long.
    pub(super) fn take_idle(&self) -> Vec<Arc<str>> {
        let now = Instant::now();
        let mut table = self.table.lock();
        let idle = |s: &Session| s.is_free() && now.duration_since(*s.used.lock()) >= IDLE;
        let ids: Vec<Arc<str>> = table.iter().filter(|(_, s)| idle(s)).map(|(id, _)| Arc::clone(id)).collect();
        for id in &ids {
            table.remove(id);
        }
        ids
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.table.lock().len()
    }
}

/// The session that goes first: no call in flight, rather without a listening stream, longest unused.
fn oldest(table: &HashMap<Arc<str>, Arc<Session>>, of: Option<&Principal>) -> Option<Arc<str>> {
    table
        .iter()
        .filter(|(_, s)| of.is_none_or(|principal| s.belongs_to(principal)))
        .filter(|(_, s)| s.calls.load(Ordering::Relaxed) == 0)
        .min_by_key(|(_, s)| (s.streams.load(Ordering::Relaxed) > 0, *s.used.lock()))
        .map(|(id, _)| Arc::clone(id))
}

// === impl Session ===

impl Session {
    fn new(principal: &Principal) -> Self {
        Self {
            tenant: principal.tenant.clone(),
            subject: Arc::clone(&principal.subject),
            calls: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            used: Mutex::new(Instant::now()),
            peer: watch::Sender::new(None),
            watched: watch::Sender::default(),
        }
    }

    /// The client is ready.
    pub(super) fn ready(&self, peer: Peer<RoleServer>) {
        self.peer.send_replace(Some(peer));
    }

    /// The way to the client, as soon as it is ready.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn peer(&self) -> Peer<RoleServer> {
        let mut peers = self.peer.subscribe();
        loop {
            let peer = peers.borrow_and_update().clone();
            match peer {
                Some(peer) => return peer,
                // The sender lives in `self`: this ends with a change only.
                None => drop(peers.changed().await),
            }
        }
    }

    /// Watches one more resource; `false` when there are too many.
    pub(super) fn watch(&self, uri: &str) -> bool {
        let mut fits = true;
        self.watched.send_if_modified(|watched| {
            let known = watched.iter().any(|other| other == uri);
            fits = known || watched.len() < WATCHED_MAX;
            if fits && !known {
                watched.push(uri.to_owned());
            }
            fits && !known
        });
        fits
    }

    /// Watches a resource no more.
    pub(super) fn unwatch(&self, uri: &str) {
        self.watched.send_if_modified(|watched| {
            let before = watched.len();
            watched.retain(|other| other != uri);
            watched.len() != before
        });
    }

    /// What is watched, and every change of it.
    pub(super) fn watched(&self) -> watch::Receiver<Vec<String>> {
        self.watched.subscribe()
    }

    fn belongs_to(&self, principal: &Principal) -> bool {
        self.tenant == principal.tenant && self.subject == principal.subject
    }

    fn is_free(&self) -> bool {
        self.calls.load(Ordering::Relaxed) == 0 && self.streams.load(Ordering::Relaxed) == 0
    }

    fn count(&self, by: Use) -> &AtomicUsize {
        match by {
            Use::Call => &self.calls,
            Use::Stream => &self.streams,
        }
    }
}

// === impl InUse ===

impl InUse {
    /// The session.
    pub(super) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Marks a session as in use until the value and all its clones are dropped.
    pub(super) fn mark(session: &Arc<Session>, by: Use) -> Self {
        session.count(by).fetch_add(1, Ordering::Relaxed);
        *session.used.lock() = Instant::now();
        Self { session: Arc::clone(session), by }
    }
}

impl Clone for InUse {
    fn clone(&self) -> Self {
        Self::mark(&self.session, self.by)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        *self.session.used.lock() = Instant::now();
        self.session.count(self.by).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::principal::PrincipalKind;

    fn principal(tenant: &str, subject: &str) -> Principal {
        Principal::new(PrincipalKind::User, subject, TenantId::new(tenant).unwrap(), vec![], vec![], None, None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_answers_to_its_opener_only() {
        let sessions = Sessions::default();
        let alice = principal("acme", "alice");
        assert_eq!(sessions.open("s1".into(), &alice), Opened::Kept);
        assert!(sessions.of("s1", &alice).is_some());
        for other in [principal("acme", "bob"), principal("globex", "alice")] {
            assert!(sessions.of("s1", &other).is_none());
        }
        assert!(sessions.of("s2", &alice).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn idle_sessions_are_taken_but_never_one_in_use() {
        let sessions = Sessions::default();
        let alice = principal("acme", "alice");
        sessions.open("idle".into(), &alice);
        sessions.open("busy".into(), &alice);
        let busy = InUse::mark(&sessions.of("busy", &alice).unwrap(), Use::Call);
        tokio::time::advance(IDLE).await;
        assert_eq!(sessions.take_idle(), vec![Arc::<str>::from("idle")]);
        drop(busy);
        assert!(sessions.take_idle().is_empty(), "the end of a call is a use");
        tokio::time::advance(IDLE).await;
        assert_eq!(sessions.take_idle(), vec![Arc::<str>::from("busy")]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_principal_keeps_a_bounded_number() {
        let sessions = Sessions::default();
        let (alice, bob) = (principal("acme", "alice"), principal("acme", "bob"));
        sessions.open("bob".into(), &bob);
        for n in 0..PER_PRINCIPAL_MAX {
            assert_eq!(sessions.open(format!("s{n}").into(), &alice), Opened::Kept);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let busy = InUse::mark(&sessions.of("s0", &alice).unwrap(), Use::Call);
        let listening = InUse::mark(&sessions.of("s1", &alice).unwrap(), Use::Stream);
        assert_eq!(sessions.open("new".into(), &alice), Opened::Replacing("s2".into()));
        assert!(sessions.of("bob", &bob).is_some(), "somebody else's session never goes for it");
        drop((busy, listening));
        let held: Vec<InUse> = ["s0", "s1", "new"]
            .into_iter()
            .map(String::from)
            .chain((3..PER_PRINCIPAL_MAX).map(|n| format!("s{n}")))
            .map(|id| InUse::mark(&sessions.of(&id, &alice).unwrap(), Use::Call))
            .collect();
        assert_eq!(held.len(), PER_PRINCIPAL_MAX);
        assert_eq!(sessions.open("late".into(), &alice), Opened::Refused);
        assert_eq!(sessions.len(), PER_PRINCIPAL_MAX + 1);
    }
}
