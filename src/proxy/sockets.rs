//! Owns how many WebSockets one caller may hold, and how fast messages may come on one.
//! Does not count runs or requests (`quota`): what a socket asks for is spent there.
//! Invariant: a place is given back when its socket ends, whatever ended it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::principal::{Principal, TenantId};

/// Most sockets of one caller.
const SOCKETS_MAX: usize = 64;
/// Messages that may come at once, pings and pongs among them.
const BURST: f64 = 200.0;
/// Messages that may come for long.
const PER_SECOND: f64 = 50.0;

type Caller = (TenantId, Arc<str>);

/// Sockets by caller. The table is bounded by the connections of the server.
#[derive(Clone, Default)]
pub(super) struct Sockets(Arc<Mutex<HashMap<Caller, usize>>>);

/// One socket of a caller; given back on drop.
pub(super) struct Place {
    sockets: Sockets,
    caller: Caller,
}

/// How many messages may still come on one socket.
pub(super) struct Pace {
    left: f64,
    at: Instant,
}

// === impl Sockets ===

impl Sockets {
    /// Takes a place for a caller, if there is one left.
    pub(super) fn take(&self, principal: &Principal) -> Option<Place> {
        let caller = (principal.tenant.clone(), Arc::clone(&principal.subject));
        let mut table = self.0.lock();
        let count = table.entry(caller.clone()).or_insert(0);
        if *count >= SOCKETS_MAX {
            return None;
        }
        *count += 1;
        drop(table);
        Some(Place { sockets: self.clone(), caller })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.sockets.0.lock();
        if let Some(count) = table.get_mut(&self.caller) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                table.remove(&self.caller);
            }
        }
    }
}

// === impl Pace ===

impl Pace {
    /// A socket that was just opened.
    pub(super) fn new() -> Self {
        Self { left: BURST, at: Instant::now() }
    }

    /// Counts a message; `false` when they come too fast.
    pub(super) fn keeps(&mut self) -> bool {
        let now = Instant::now();
        self.left = (self.left + now.duration_since(self.at).as_secs_f64() * PER_SECOND).min(BURST);
        self.at = now;
        self.left -= 1.0;
        self.left >= 0.0
    }
}
