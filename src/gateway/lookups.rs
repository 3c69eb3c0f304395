//! Owns how many rows one caller may have looked up at a time: a call may name a hundred ids, and a caller may send a
//! hundred such calls, all before a policy is asked.
//! Does not look anything up (`facts`, `forward`) and keeps no line itself (`lines`).
//! Invariant: a caller has at most [`AT_ONCE`] look-ups under way at a cluster and at most [`WAITING`] that wait their
//! turn; callers do not wait for each other.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::lines::{Lines, Turn};
use super::refusal::{Code, Refusal, Stage};
use crate::cluster::UpstreamUser;

/// Most look-ups of one caller under way at one cluster. A caller's own calls seldom need more than one each; an
/// AgentOS process works on few requests at a time, and every other caller needs its turn there.
const AT_ONCE: usize = 16;
/// Most look-ups of one caller that wait for the ones under way.
const WAITING: usize = 256;
/// Longest wait.
const WAIT: Duration = Duration::from_secs(5);

/// Cluster and caller.
pub(super) type Key = (Arc<str>, UpstreamUser);

/// Callers whose look-ups are under way or wait.
#[derive(Clone)]
pub(super) struct LookUps(Lines<Key>);

// === impl LookUps ===

impl Default for LookUps {
    fn default() -> Self {
        Self(Lines::new(AT_ONCE, WAITING))
    }
}

impl LookUps {
    /// Waits until the caller may look a row up; the right to it is given back on drop.
    ///
    /// # Errors
    /// `overloaded` when too many of the caller's look-ups wait already, or when the wait is over.
    ///
    /// # Cancel safety
    /// Safe: the place in the queue is given back.
    pub(super) async fn turn(&self, cluster: &Arc<str>, user: &UpstreamUser) -> Result<Turn<Key>, Refusal> {
        let turn = self.0.turn((Arc::clone(cluster), user.clone()), Instant::now() + WAIT).await;
        turn.map_err(|_| too_many())
    }
}

fn too_many() -> Refusal {
    let refusal =
        Refusal::new(Code::Overloaded, Stage::Facts).because("too many look-ups of this caller are under way");
    Refusal { retry_after: Some(Duration::from_secs(1)), ..refusal }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UpstreamUser {
        let template = crate::cluster::UserIdTemplate::parse("{subject}").expect("a template");
        template.render(&crate::principal::TenantId::new("acme").expect("a tenant"), name).expect("a name")
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_waits_for_its_own_look_ups_and_for_nobody_elses() {
        let (look_ups, cluster) = (LookUps::default(), Arc::from("main"));
        let (alice, bob) = (user("alice"), user("bob"));
        let mut held = Vec::new();
        for _ in 0..AT_ONCE {
            held.push(look_ups.turn(&cluster, &alice).await.expect("a turn"));
        }
        look_ups.turn(&cluster, &bob).await.expect("bob's own line");
        look_ups.turn(&Arc::from("other"), &alice).await.expect("another cluster");
        let waits = tokio::time::Instant::now();
        let late = look_ups.turn(&cluster, &alice).await.err().expect("no turn is given back");
        assert_eq!((late.code, waits.elapsed()), (Code::Overloaded, WAIT));
        let (next, ()) = tokio::join!(look_ups.turn(&cluster, &alice), async { drop(held.pop()) });
        next.expect("a turn was given back");
    }

    #[tokio::test(start_paused = true)]
    async fn the_line_is_bounded_and_an_idle_caller_leaves_nothing() {
        let (look_ups, cluster, alice) = (LookUps::default(), Arc::from("main"), user("alice"));
        let turns = (0..AT_ONCE + WAITING + 10).map(|_| look_ups.turn(&cluster, &alice));
        let turns = futures_util::future::join_all(turns).await;
        // All began at once: ten found the line full at once, the others got a turn or waited in vain.
        assert_eq!(turns.iter().filter(|turn| turn.is_ok()).count(), AT_ONCE);
        drop(turns);
        assert_eq!(look_ups.0.length(), 0);
        look_ups.turn(&cluster, &alice).await.expect("a new line");
        assert_eq!(look_ups.0.length(), 0);
    }

    #[tokio::test]
    async fn a_caller_who_leaves_the_line_gives_the_place_back() {
        let (look_ups, cluster, alice) = (LookUps::default(), Arc::from("main"), user("alice"));
        let turns = (0..AT_ONCE).map(|_| look_ups.turn(&cluster, &alice));
        let held = futures_util::future::join_all(turns).await;
        let mut waits = Box::pin(look_ups.turn(&cluster, &alice));
        assert!(futures_util::poll!(&mut waits).is_pending());
        drop(waits);
        assert_eq!(look_ups.0.length(), AT_ONCE);
        drop(held);
        assert_eq!(look_ups.0.length(), 0);
    }
}
