//! Owns the count of tool calls that are under way, per principal.
//! Does not queue: one too many is refused at once, and told so.
//! Invariant: every call that was counted is counted off when it ends, however it ends.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::principal::{Principal, TenantId};

type Key = (TenantId, Arc<str>);

/// The calls under way. Only principals that have some are in the table.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<Key, usize>>);

/// One call; counted off on drop.
pub(super) struct Flight {
    flights: Arc<Flights>,
    key: Key,
}

// === impl Flights ===

impl Flights {
    /// Counts a call; `None` when the principal has as many as it may have.
    pub(super) fn board(self: &Arc<Self>, principal: &Principal, max: usize) -> Option<Flight> {
        let key = (principal.tenant.clone(), Arc::clone(&principal.subject));
        let mut counts = self.0.lock();
        let count = counts.get(&key).copied().unwrap_or(0);
        if count >= max {
            return None;
        }
        counts.insert(key.clone(), count + 1);
        drop(counts);
        Some(Flight { flights: Arc::clone(self), key })
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut counts = self.flights.0.lock();
        match counts.get_mut(&self.key) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => drop(counts.remove(&self.key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::principal::PrincipalKind;

    #[test]
    fn a_principal_has_a_bounded_number_of_calls() {
        let principal = |subject: &str| {
            let tenant = TenantId::new("acme").unwrap();
            Principal::new(PrincipalKind::User, subject, tenant, vec![], vec![], None, None)
        };
        let flights = Arc::new(Flights::default());
        let (alice, bob) = (principal("alice"), principal("bob"));
        let held = [flights.board(&alice, 2), flights.board(&alice, 2)];
        assert!(held.iter().all(Option::is_some));
        assert!(flights.board(&alice, 2).is_none());
        assert!(flights.board(&bob, 2).is_some(), "somebody else's calls do not count");
        drop(held);
        assert!(flights.board(&alice, 1).is_some());
        assert!(flights.0.lock().is_empty(), "nobody stays in the table");
    }
}
