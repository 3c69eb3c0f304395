//! Owns how many runs a cluster's endpoints take at once, and the queue of those that wait for one to end.
//! Does not choose endpoints (`balance`) and knows tenants by name and weight only.
//! Invariants: none is given while as many places are taken as there were when the last caller came, whichever settings
//! gave those; a place that is free goes to the tenant that has been served least for its weight, so that one tenant's
//! queue delays nobody else's; a full queue makes room for a tenant with a shorter line; a caller who goes away leaves no
//! place taken.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::principal::TenantId;

/// What one unit of weight is worth: large, so that weights divide it well.
const STRIDE: u64 = 1 << 20;
/// Tenants that are remembered beside those who wait, before some are forgotten.
const LINES_KEPT: usize = 64;

/// How many runs endpoints take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Runs per endpoint that is up; `None` is unlimited.
    pub runs_per_endpoint: Option<u32>,
    /// Most runs that wait.
    pub queue_max: u32,
    /// How long one waits.
    pub queue_timeout: Duration,
    /// Whether runs of one session take turns.
    pub session_runs: SessionRuns,
    /// How long a run waits for the one before it in its session.
    pub session_timeout: Duration,
}

/// Whether runs of one session take turns. AgentOS 2 reads a session when a run begins and writes all of it when the
/// run ends: of runs at the same time it keeps the last one, also within one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionRuns {
    /// Where AgentOS would lose some otherwise.
    Auto,
    /// Always.
    OneByOne,
    /// Never.
    AtOnce,
}

/// The gate of one cluster, under the settings of one snapshot.
pub(super) struct Gate {
    load: Load,
    /// Outlives a reload: runs that began before it hold their places after it.
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// As many as there were for the last one who asked. Not kept per place: endpoints come and go while it is held.
    places: u32,
    taken: u32,
    waiting: u32,
    /// The virtual time of the place that was given last.
    now: u64,
    tenants: HashMap<TenantId, Line>,
}

/// Those of one tenant who wait, and when it is its turn.
#[derive(Default)]
struct Line {
    turn: u64,
    weight: u64,
    waiting: VecDeque<oneshot::Sender<Place>>,
}

/// A place at the endpoints, free again when this is dropped.
pub struct Place(Arc<Mutex<State>>);

/// The endpoints are busy and the queue is full, or the wait was in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// Too many wait.
    #[error("the cluster is at its limit and {0} runs wait already")]
    QueueFull(u32),
    /// Nothing became free in time.
    #[error("no endpoint of the cluster became free within {}ms", .0.as_millis())]
    TimedOut(Duration),
}

// === impl Load ===

impl Default for Load {
    fn default() -> Self {
        Self {
            runs_per_endpoint: None,
            queue_max: 1_000,
            queue_timeout: Duration::from_secs(5),
            session_runs: SessionRuns::Auto,
            session_timeout: Duration::from_secs(60),
        }
    }
}

// === impl Gate ===

impl Gate {
    pub(super) fn new(load: Load) -> Self {
        Self { load, state: Arc::default() }
    }

    /// The same gate under other settings: what is taken and who waits stay.
    pub(super) fn with(&self, load: Load) -> Self {
        Self { load, state: Arc::clone(&self.state) }
    }

    /// Takes a place, or waits for one in the tenant's line. `up` is the number of endpoints that are up.
    ///
    /// # Errors
    /// [`Busy`].
    ///
    /// # Cancel safety
    /// Safe: a place that was given to a caller who went away goes to the next.
    pub(super) async fn enter(&self, tenant: &TenantId, weight: u32, up: usize) -> Result<Option<Place>, Busy> {
        let Some(each) = self.load.runs_per_endpoint else { return Ok(None) };
        // With nothing up there is no place to wait for: the choice of an endpoint says so.
        let places = each.saturating_mul(u32::try_from(up.max(1)).unwrap_or(u32::MAX));
        let given = {
            let mut state = self.state.lock();
            state.places = places;
            if state.waiting >= self.load.queue_max && state.taken < state.places {
                // Places were added: those who wait take them before anybody is refused.
                MutexGuard::unlocked(&mut state, || serve(&self.state));
            }
            if state.waiting == 0 && state.taken < state.places {
                state.taken += 1;
                return Ok(Some(Place(Arc::clone(&self.state))));
            }
            if state.waiting >= self.load.queue_max {
                state.sweep();
            }
            if state.waiting >= self.load.queue_max && !state.make_room(tenant, weight) {
                return Err(Busy::QueueFull(state.waiting));
            }
            state.wait(tenant, weight)
        };
        // Places may have become free that nobody was there to take.
        serve(&self.state);
        match tokio::time::timeout(self.load.queue_timeout, given).await {
            Ok(Ok(place)) => Ok(Some(place)),
            // Sent away for a tenant that has fewer waiting.
            Ok(Err(_)) => Err(Busy::QueueFull(self.load.queue_max)),
            Err(_) => Err(Busy::TimedOut(self.load.queue_timeout)),
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gate").field(&self.load).finish()
    }
}

// === impl State ===

impl State {
    fn wait(&mut self, tenant: &TenantId, weight: u32) -> oneshot::Receiver<Place> {
        let (sender, receiver) = oneshot::channel();
        if self.tenants.len() > LINES_KEPT + 2 * self.waiting as usize {
            self.forget();
        }
        let now = self.now;
        let line = self.tenants.entry(tenant.clone()).or_default();
        line.weight = u64::from(weight.max(1));
        if line.waiting.is_empty() {
            // Who did not wait has not saved up turns.
            line.turn = line.turn.max(now).saturating_add(STRIDE / line.weight);
        }
        line.waiting.push_back(sender);
        self.waiting += 1;
        receiver
    }

    /// The caller whose turn it is and who is still there.
    fn next(&mut self) -> Option<oneshot::Sender<Place>> {
        loop {
            let waits = self.tenants.iter().filter(|(_, line)| !line.waiting.is_empty());
            let (tenant, _) = waits.min_by(|(a, one), (b, other)| (one.turn, a).cmp(&(other.turn, b)))?;
            let tenant = tenant.clone();
            let line = self.tenants.get_mut(&tenant)?;
            let first = line.waiting.pop_front()?;
            self.waiting = self.waiting.saturating_sub(1);
            let gone = first.is_closed();
            if !gone {
                self.now = self.now.max(line.turn);
                line.turn = line.turn.saturating_add(STRIDE / line.weight.max(1));
            }
            if line.waiting.is_empty() && line.turn <= self.now {
                self.tenants.remove(&tenant);
            }
            if !gone {
                return Some(first);
            }
        }
    }

    /// Sends away the last one of the tenant with the longest line for its weight, unless the newcomer's would be as
    /// long: one tenant's queue must not keep others out of it.
    fn make_room(&mut self, tenant: &TenantId, weight: u32) -> bool {
        let own = self.tenants.get(tenant).map_or(0, |line| line.waiting.len()) as u64;
        // Fractions are compared crosswise.
        let longest = self.tenants.values_mut().max_by(|one, other| {
            let (a, b) = (one.waiting.len() as u64, other.waiting.len() as u64);
            a.saturating_mul(other.weight.max(1)).cmp(&b.saturating_mul(one.weight.max(1)))
        });
        let Some(longest) = longest else { return false };
        let theirs = (longest.waiting.len() as u64).saturating_mul(u64::from(weight.max(1)));
        if theirs <= own.saturating_add(1).saturating_mul(longest.weight.max(1)) {
            return false;
        }
        longest.waiting.pop_back();
        self.waiting = self.waiting.saturating_sub(1);
        true
    }

    /// Forgets tenants that wait for nothing and have no turn to make up for.
    fn forget(&mut self) {
        let now = self.now;
        self.tenants.retain(|_, line| !line.waiting.is_empty() || line.turn > now);
    }

    /// Forgets callers who went away, and tenants without anybody.
    fn sweep(&mut self) {
        for line in self.tenants.values_mut() {
            line.waiting.retain(|waiting| !waiting.is_closed());
        }
        self.forget();
        self.waiting =
            u32::try_from(self.tenants.values().map(|line| line.waiting.len()).sum::<usize>()).unwrap_or(u32::MAX);
    }
}

// === impl Place ===

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut state = self.0.lock();
            state.taken = state.taken.saturating_sub(1);
            if state.waiting == 0 {
                // Bounded by those who waited since the gate was last idle.
                if state.taken == 0 {
                    state.tenants.clear();
                }
                return;
            }
        }
        serve(&self.0);
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Place")
    }
}

/// Gives free places to those whose turn it is.
fn serve(shared: &Arc<Mutex<State>>) {
    loop {
        let next = {
            let mut state = shared.lock();
            if state.taken >= state.places {
                return;
            }
            let Some(next) = state.next() else { return };
            state.taken += 1;
            next
        };
        // Outside the lock: a place that nobody takes is dropped here, and frees itself.
        drop(next.send(Place(Arc::clone(shared))));
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures_util::future::{FutureExt as _, join_all};

    use super::*;

    fn gate(runs: u32, queue_max: u32) -> Gate {
        Gate::new(Load { runs_per_endpoint: Some(runs), queue_max, ..Load::default() })
    }

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).unwrap()
    }

    type Waiting<'a> = Pin<Box<dyn Future<Output = Result<Option<Place>, Busy>> + 'a>>;

    /// So many of a tenant that wait.
    fn queue<'a>(gate: &'a Gate, who: &'a TenantId, count: usize, up: usize) -> Vec<Waiting<'a>> {
        let mut waiting: Vec<Waiting<'a>> = (0..count).map(|_| Box::pin(gate.enter(who, 1, up)) as _).collect();
        for one in &mut waiting {
            assert!(one.as_mut().now_or_never().is_none());
        }
        waiting
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_tenant_waits_for_one_run_however_many_a_noisy_one_has_queued() {
        let gate = gate(1, 1_000);
        let mut held = gate.enter(&tenant("noisy"), 1, 1).await.unwrap();
        let (noisy, quiet) = (tenant("noisy"), tenant("quiet"));
        let waiting = queue(&gate, &noisy, 500, 1);
        let mut late = Box::pin(gate.enter(&quiet, 1, 1));
        assert!(late.as_mut().now_or_never().is_none());
        let mut before = 0;
        let mut noisy = waiting.into_iter();
        loop {
            drop(held.take());
            if let Some(place) = late.as_mut().now_or_never() {
                assert!(place.unwrap().is_some());
                break;
            }
            held = noisy.next().unwrap().now_or_never().unwrap().unwrap();
            before += 1;
        }
        assert!(before <= 1, "{before} runs of the noisy tenant came first");
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_most_in_a_full_queue_makes_room_for_others() {
        let gate = gate(1, 10);
        let (noisy, quiet) = (tenant("noisy"), tenant("quiet"));
        let mut held = gate.enter(&noisy, 1, 1).await.unwrap();
        let mut waiting = queue(&gate, &noisy, 10, 1);
        let mut late = Box::pin(gate.enter(&quiet, 1, 1));
        assert!(late.as_mut().now_or_never().is_none(), "one tenant's queue is refused to another");
        // The last one pays, and nobody gains by asking again.
        assert_eq!(waiting.pop().unwrap().await.unwrap_err(), Busy::QueueFull(10));
        assert_eq!(gate.enter(&noisy, 1, 1).await.unwrap_err(), Busy::QueueFull(10));
        drop(held.take());
        held = waiting.remove(0).await.unwrap();
        drop(held.take());
        assert!(late.as_mut().now_or_never().unwrap().unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn tenants_whose_turn_is_over_are_forgotten_under_load() {
        let gate = gate(1, 1_000);
        let mut held = gate.enter(&tenant("busy"), 1, 1).await.unwrap();
        for n in 0..2_000 {
            let who = tenant(&format!("tenant-{n}"));
            let mut waits = Box::pin(gate.enter(&who, 1, 1));
            assert!(waits.as_mut().now_or_never().is_none());
            drop(held.take());
            held = waits.await.unwrap();
        }
        let known = gate.state.lock().tenants.len();
        assert!(known < 200, "{known} tenants are remembered");
    }

    #[tokio::test(start_paused = true)]
    async fn places_are_given_by_weight() {
        let gate = gate(1, 1_000);
        let mut held = gate.enter(&tenant("x"), 1, 1).await.unwrap();
        let (heavy, light) = (tenant("heavy"), tenant("light"));
        let served = Mutex::new(Vec::new());
        let wait = |name: &'static str, tenant: TenantId, weight: u32| {
            let (gate, served) = (&gate, &served);
            async move {
                let place = gate.enter(&tenant, weight, 1).await.unwrap();
                served.lock().push(name);
                drop(place);
            }
        };
        let heavy = (0..30).map(|_| wait("heavy", heavy.clone(), 3)).collect::<Vec<_>>();
        let light = (0..30).map(|_| wait("light", light.clone(), 1)).collect::<Vec<_>>();
        let open = async { drop(held.take()) };
        tokio::join!(join_all(heavy), join_all(light), open);
        let first = served.lock()[..20].iter().filter(|name| **name == "heavy").count();
        assert!((14..=16).contains(&first), "{first} of the first 20");
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_has_a_bound_and_a_deadline_and_forgets_who_went_away() {
        let gate = gate(2, 1);
        let who = tenant("acme");
        let held = [gate.enter(&who, 1, 1).await.unwrap(), gate.enter(&who, 1, 1).await.unwrap()];
        let mut waits = Box::pin(gate.enter(&who, 1, 1));
        assert!(waits.as_mut().now_or_never().is_none());
        assert_eq!(gate.enter(&who, 1, 1).await.unwrap_err(), Busy::QueueFull(1));
        drop(waits);
        assert_eq!(gate.enter(&who, 1, 1).await.unwrap_err(), Busy::TimedOut(Duration::from_secs(5)));
        drop(held);
        for _ in 0..2 {
            assert!(gate.enter(&who, 1, 1).now_or_never().unwrap().unwrap().is_some());
        }
        assert_eq!(gate.state.lock().taken, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn ten_thousand_callers_who_come_and_go_leave_no_place_taken() {
        let gate = gate(3, 50);
        let mut held = Vec::new();
        for n in 0..10_000_u32 {
            let who = tenant(if n % 3 == 0 { "a" } else { "b" });
            let mut asks = Box::pin(gate.enter(&who, 1 + n % 2, 1));
            if let Some(Ok(place)) = asks.as_mut().now_or_never() {
                held.push(place);
            }
            if n % 2 == 0 && !held.is_empty() {
                drop(held.swap_remove(n as usize % held.len()));
            }
            assert!(held.len() <= 3);
        }
        drop(held);
        assert_eq!(gate.state.lock().taken, 0);
        assert!(gate.enter(&tenant("c"), 1, 1).now_or_never().unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reload_counts_the_places_that_runs_hold_already() {
        let before = gate(2, 10);
        let who = tenant("acme");
        let held = [before.enter(&who, 1, 1).await.unwrap(), before.enter(&who, 1, 1).await.unwrap()];
        let after = before.with(Load { runs_per_endpoint: Some(3), queue_max: 20, ..Load::default() });
        let third = after.enter(&who, 1, 1).now_or_never().unwrap().unwrap();
        let mut waits = Box::pin(after.enter(&who, 1, 1));
        assert!(waits.as_mut().now_or_never().is_none(), "a fourth run of three");
        // What began before the reload makes room for what came after it.
        drop(held);
        assert!(waits.as_mut().now_or_never().unwrap().unwrap().is_some());
        drop(third);
        assert_eq!(after.state.lock().taken, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waited_before_a_reload_is_served_by_what_it_allows() {
        let before = gate(2, 10);
        let who = tenant("acme");
        let mut held = vec![before.enter(&who, 1, 1).await.unwrap(), before.enter(&who, 1, 1).await.unwrap()];
        let mut early = Box::pin(before.enter(&who, 1, 1));
        assert!(early.as_mut().now_or_never().is_none());
        let after = before.with(Load { runs_per_endpoint: Some(1), ..Load::default() });
        let mut late = Box::pin(after.enter(&who, 1, 1));
        assert!(late.as_mut().now_or_never().is_none());
        held.truncate(1);
        assert!(early.as_mut().now_or_never().is_none(), "a second run of one");
        held.clear();
        let place = early.as_mut().now_or_never().unwrap().unwrap();
        assert!(late.as_mut().now_or_never().is_none(), "a second run of one");
        drop(place);
        assert!(late.as_mut().now_or_never().unwrap().unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn after_endpoints_died_the_queue_gets_no_more_places_than_are_left() {
        let gate = gate(1, 10);
        let who = tenant("acme");
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(gate.enter(&who, 1, 3).await.unwrap());
        }
        let mut waiting = queue(&gate, &who, 3, 1);
        held.truncate(1);
        for one in &mut waiting {
            assert!(one.as_mut().now_or_never().is_none(), "a second run at the one that is left");
        }
        held.clear();
        let place = waiting.remove(0).now_or_never().unwrap().unwrap();
        assert!(waiting[0].as_mut().now_or_never().is_none(), "a second run at the one that is left");
        drop(place);
        assert!(waiting.remove(0).now_or_never().unwrap().unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn after_endpoints_came_up_the_queue_gets_their_places_too() {
        let gate = gate(1, 10);
        let who = tenant("acme");
        let held = gate.enter(&who, 1, 1).await.unwrap();
        let mut waiting = queue(&gate, &who, 3, 1);
        let mut late = Box::pin(gate.enter(&who, 1, 2));
        assert!(late.as_mut().now_or_never().is_none(), "it was not its turn");
        let first = waiting.remove(0).now_or_never().unwrap().unwrap();
        drop(held);
        let second = waiting.remove(0).now_or_never().expect("the second endpoint is idle").unwrap();
        assert!(waiting[0].as_mut().now_or_never().is_none());
        drop((first, second));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_gets_added_places_before_anybody_is_refused() {
        let gate = gate(1, 2);
        let who = tenant("acme");
        let _held = gate.enter(&who, 1, 1).await.unwrap();
        let waiting = queue(&gate, &who, 2, 1);
        assert!(gate.enter(&who, 1, 4).now_or_never().unwrap().unwrap().is_some());
        for one in waiting {
            assert!(one.now_or_never().unwrap().unwrap().is_some());
        }
    }
}
