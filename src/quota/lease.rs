//! Owns what one run holds: a slot among the runs in flight and reserved tokens.
//! Does not watch the run (`gateway`): its owner says what was used, or drops the lease.
//! Invariant: for every `Lease` exactly one settlement happens, and its slot is freed once.

use std::sync::Arc;

use super::State;
use super::account::Account;
use super::clock::{Clock, wall_secs};

/// A run slot and reserved tokens, held until dropped.
///
/// Dropped without [`Lease::commit`] or [`Lease::waive`], the run counts as aborted and pays what
/// was seen or what was reserved, whichever is more: AgentOS reports no tokens for such runs.
#[derive(Debug)]
#[must_use = "dropping a lease ends the run and charges its reservation"]
pub struct Lease {
    account: Arc<Account>,
    state: Arc<State>,
    clock: Arc<dyn Clock>,
    agent: Arc<str>,
    reserved: u64,
    seen: u64,
    settled: bool,
}

impl Lease {
    pub(super) fn new(
        account: Arc<Account>,
        state: Arc<State>,
        clock: Arc<dyn Clock>,
        agent: &str,
        reserved: u64,
    ) -> Self {
        Self { account, state, clock, agent: agent.into(), reserved, seen: 0, settled: false }
    }

    /// Tokens reserved now.
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Notes that the run has used `tokens` in total so far; raises the reservation when that is more.
    ///
    /// Smaller totals than before change nothing, so a report may be repeated.
    pub fn grow(&mut self, tokens: u64) {
        self.seen = self.seen.max(tokens);
        if !self.settled && self.seen > self.reserved {
            self.account.grow_run(self.seen - self.reserved);
            self.reserved = self.seen;
        }
    }

    /// Charges what the run used in total, never less than what was seen, and teaches the estimate.
    ///
    /// Only the first settlement counts. The slot stays taken until the lease is dropped.
    pub fn commit(&mut self, tokens: u64) {
        let used = tokens.max(self.seen);
        if self.settle(used) {
            self.state.estimates.learn(&self.agent, used);
        }
    }

    /// Charges nothing: the run never reached a model (no endpoint, refused upstream).
    pub fn waive(&mut self) {
        self.settle(self.seen);
    }

    fn settle(&mut self, used: u64) -> bool {
        let first = !std::mem::replace(&mut self.settled, true);
        if first {
            self.account.settle_run(self.reserved, used, wall_secs(&*self.clock));
        }
        first
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.settle(self.seen.max(self.reserved));
        self.account.end_run();
    }
}
