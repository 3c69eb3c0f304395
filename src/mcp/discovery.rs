//! Owns what is known of the components behind the gateway: what the last look at the lists showed, per caller.
//! Does not look itself (`tools::agents` does) and grants nothing: a run is admitted afresh.
//! Invariants: a caller's view is never shown to another caller; both tables are bounded.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::agentos::operation::Kind;
use crate::principal::Principal;

/// How long a look is good for finding a component by its id.
const FRESH: Duration = Duration::from_secs(60);
const CALLERS_MAX: usize = 1_024;
const KNOWN_MAX: usize = 64;

/// One agent, team or workflow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) cluster: Arc<str>,
    pub(super) kind: Kind,
    pub(super) id: String,
    pub(super) name: String,
    pub(super) description: String,
}

/// What the last looks showed.
#[derive(Default)]
pub(super) struct Discovery {
    tables: Mutex<Tables>,
}

#[derive(Default)]
struct Tables {
    /// By principal version.
    views: HashMap<u64, View>,
    /// Ids that policy is asked about when it allows no whole collection. Never shown.
    known: Vec<(Kind, String)>,
}

struct View {
    at: Instant,
    found: Arc<[Found]>,
}

impl Discovery {
    /// Remembers a whole look: all kinds on all clusters of the caller.
    pub(super) fn remember(&self, principal: &Principal, found: &[Found]) {
        let mut tables = self.tables.lock();
        if tables.views.len() >= CALLERS_MAX && !tables.views.contains_key(&principal.version) {
            let oldest = tables.views.iter().min_by_key(|(_, view)| view.at).map(|(version, _)| *version);
            oldest.and_then(|version| tables.views.remove(&version));
        }
        tables.views.insert(principal.version, View { at: Instant::now(), found: found.into() });
        for item in found {
            let known = tables.known.iter().any(|(kind, id)| *kind == item.kind && *id == item.id);
            if !known && tables.known.len() < KNOWN_MAX {
                tables.known.push((item.kind, item.id.clone()));
            }
        }
    }

    /// What the caller saw lately.
    pub(super) fn fresh(&self, principal: &Principal) -> Option<Arc<[Found]>> {
        let tables = self.tables.lock();
        let view = tables.views.get(&principal.version).filter(|view| view.at.elapsed() < FRESH)?;
        Some(Arc::clone(&view.found))
    }

    /// Ids of a kind worth asking policy about: some that anybody saw, and those that the caller's scopes name.
    pub(super) fn candidates(&self, principal: &Principal, kind: Kind) -> Vec<String> {
        let scoped = principal.scopes.iter().filter_map(|scope| {
            let (family, rest) = scope.split_once(':')?;
            let (id, _) = rest.rsplit_once(':')?;
            (family == kind.plural() && id != "*").then(|| id.to_owned())
        });
        let mut ids: Vec<String> = scoped.take(KNOWN_MAX).collect();
        let tables = self.tables.lock();
        ids.extend(tables.known.iter().filter(|(known, _)| *known == kind).map(|(_, id)| id.clone()));
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::principal::{PrincipalKind, TenantId};

    fn principal(subject: &str, scopes: &[&str]) -> Principal {
        let scopes = scopes.iter().map(|s| Arc::from(*s)).collect();
        Principal::new(PrincipalKind::User, subject, TenantId::new("acme").unwrap(), vec![], scopes, None, None)
    }

    fn found(id: &str) -> Found {
        let text = String::new;
        Found { cluster: "main".into(), kind: Kind::Agent, id: id.into(), name: text(), description: text() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_view_is_the_callers_own_and_ages() {
        let discovery = Discovery::default();
        let (alice, bob) =
            (principal("alice", &[]), principal("bob", &["agents:own:run", "agents:*:run", "agents:run"]));
        discovery.remember(&alice, &[found("web")]);
        assert_eq!(discovery.fresh(&alice).as_deref(), Some(&[found("web")][..]));
        assert_eq!(discovery.fresh(&bob), None);
        assert_eq!(discovery.candidates(&bob, Kind::Agent), ["own", "web"]);
        assert_eq!(discovery.candidates(&bob, Kind::Team), Vec::<String>::new());
        tokio::time::advance(FRESH).await;
        assert_eq!(discovery.fresh(&alice), None);
    }
}
