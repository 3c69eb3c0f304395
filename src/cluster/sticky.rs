//! Owns where sessions are right now: while one has an exchange in flight, its others go to the same endpoint.
//! Does not choose an endpoint for a session that has none (`balance`).
//! Invariant: an entry lives exactly as long as one of its exchanges, so the table is as bounded as they are.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::endpoint::Endpoint;
use super::run_id::EndpointTag;

/// Sessions with exchanges in flight. Clones share the table, also across reloads.
#[derive(Clone, Default)]
pub(super) struct Sticky(Arc<Mutex<HashMap<u64, Staying>>>);

struct Staying {
    tag: EndpointTag,
    exchanges: usize,
}

/// Keeps a session at an endpoint until this is dropped.
pub(super) struct Stay {
    sessions: Sticky,
    key: u64,
    tag: EndpointTag,
}

// === impl Sticky ===

impl Sticky {
    /// Holds a session at the endpoint that `choose` names, which is told where the session is now. One that had to
    /// move (its endpoint is down) stays at the new one. Under the lock: two that begin at once go to one endpoint.
    pub(super) fn settle<'a>(
        &self,
        key: u64,
        choose: impl FnOnce(Option<EndpointTag>) -> Option<&'a Arc<Endpoint>>,
    ) -> Option<(&'a Arc<Endpoint>, Stay)> {
        let mut table = self.0.lock();
        let endpoint = choose(table.get(&key).map(|staying| staying.tag))?;
        let tag = endpoint.tag;
        let staying = table.entry(key).or_insert(Staying { tag, exchanges: 0 });
        if staying.tag != tag {
            *staying = Staying { tag, exchanges: 0 };
        }
        staying.exchanges += 1;
        Some((endpoint, Stay { sessions: self.clone(), key, tag }))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

// === impl Stay ===

impl Drop for Stay {
    fn drop(&mut self) {
        let mut table = self.sessions.0.lock();
        // After a move the entry counts those at the new endpoint only.
        let Some(staying) = table.get_mut(&self.key).filter(|staying| staying.tag == self.tag) else { return };
        staying.exchanges = staying.exchanges.saturating_sub(1);
        if staying.exchanges == 0 {
            table.remove(&self.key);
        }
    }
}
