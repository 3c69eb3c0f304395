//! Owns what a run of an agent is expected to cost: a running average of what its runs used.
//! Does not reserve anything (`budget`). Invariant: remembers at most `AGENTS_MAX` agents.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::money::Amount;

/// Least tokens that a run reserves, also before anything is known about its agent.
pub const RESERVATION_FLOOR_TOKENS: u64 = 500;
/// Most agents that are remembered; further ones reserve the floor.
pub const AGENTS_MAX: usize = 4_096;
/// How slowly the average moves: a run counts one eighth.
const WEIGHT: u64 = 8;

/// Running averages by agent.
#[derive(Debug, Default)]
pub(super) struct Estimates {
    averages: Mutex<HashMap<Arc<str>, Amount>>,
}

impl Estimates {
    /// What the next run of the agent should reserve.
    pub(super) fn of(&self, agent: &str) -> Amount {
        let known = self.averages.lock().get(agent).copied().unwrap_or_default();
        Amount { tokens: known.tokens.max(RESERVATION_FLOOR_TOKENS), ..known }
    }

    /// Learns from a run that ended. Runs without tokens (a failed model call) say nothing.
    pub(super) fn learn(&self, agent: &Arc<str>, used: Amount) {
        if used.tokens == 0 {
            return;
        }
        let mut averages = self.averages.lock();
        if let Some(average) = averages.get_mut(agent) {
            average.tokens = moved(average.tokens, used.tokens);
            average.micros = moved(average.micros, used.micros);
        } else if averages.len() < AGENTS_MAX {
            averages.insert(agent.clone(), used);
        }
    }
}

fn moved(average: u64, latest: u64) -> u64 {
    average.saturating_mul(WEIGHT - 1).saturating_add(latest) / WEIGHT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_follows_the_runs_and_keeps_its_floor() {
        let (estimates, agent) = (Estimates::default(), Arc::from("web-agent"));
        assert_eq!(estimates.of("web-agent").tokens, 500);
        for (tokens, expected) in [(8_000, 8_000), (0, 8_000), (16_000, 9_000), (12, 7_876)] {
            estimates.learn(&agent, Amount { tokens, micros: 0 });
            assert_eq!(estimates.of("web-agent").tokens, expected, "after {tokens}");
        }
        for _ in 0..100 {
            estimates.learn(&agent, Amount { tokens: 1, micros: 0 });
        }
        assert_eq!(estimates.of("web-agent").tokens, 500);
    }

    #[test]
    fn agents_beyond_the_bound_reserve_the_floor() {
        let estimates = Estimates::default();
        for n in 0..=AGENTS_MAX {
            estimates.learn(&Arc::from(format!("agent-{n}")), Amount { tokens: 9_000, micros: 0 });
        }
        assert_eq!(estimates.of("agent-0").tokens, 9_000);
        assert_eq!(estimates.of(&format!("agent-{AGENTS_MAX}")).tokens, 500);
    }
}
