//! Owns what is known about runs beyond their exchange: ids that AgentOS minted itself, and leases of runs that go
//! on after their answer.
//! Does not start or stop runs.
//! Invariant: a lease that is kept here is given back when its run is seen to end, its process to be gone, or at its
//! deadline; with it the run's turn in its session and its place at the endpoints.
//!
//! Learned ids are kept in this process, and where instances share a store in that too.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::admit::Admitted;
use super::forward;
use super::live::{Going, Live};
use super::path::{Gateway, Spawn};
use super::turns::Turn;
use crate::agentos::{Kind, RunStatus, encode_segment, rows};
use crate::cluster::{Cluster, EndpointTag, Picked, Place, UpstreamUser, Use, Want};
use crate::principal::TenantId;
use crate::quota::{Growth, Lease, ModelSpent};
use crate::store::Store;
use crate::telemetry::Telemetry;
use crate::usage::{Meter, ModelUsage, RunSeen, UsageRecord};

/// Most learned run ids.
const LEARNED_MAX: u64 = 100_000;
/// How long a learned run id is kept.
const LEARNED_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// Longest wait until other instances can know a learned id.
const TOLD_WITHIN: Duration = Duration::from_millis(500);
/// How often a run that goes on is looked at, at first and later.
const POLL_FIRST: Duration = Duration::from_millis(500);
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// A run that AgentOS may drop without a trace is gone when it was not there so often in a row; so is one whose replica
/// was down so often in a row.
const GONE_LOOKS: u32 = 3;

/// What is known of runs.
pub(super) struct Runs {
    /// Ids that carry no mark of ours: learned from answers.
    learned: Cache<(Arc<str>, String), (UpstreamUser, EndpointTag)>,
    /// Where other instances learn them.
    shared: Option<(Arc<dyn Store>, Spawn)>,
    /// Runs that are followed here.
    pub(super) live: Live,
}

/// That the other instances are being told of a learned id.
#[must_use = "who waits for it can say that the others know"]
pub(super) struct Telling(Option<oneshot::Receiver<()>>);

/// What becomes of a run after its exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on, and AgentOS stores it.
    GoesOn,
    /// It was given up: AgentOS stores its end, or drops it without a trace.
    GivenUp,
    /// Its answer did not come in time: AgentOS may go on with it, and may store it at its end alone, or not at all.
    Unanswered,
}

/// What an exchange knows of a run that it leaves.
pub(super) struct Left {
    pub(super) seen: RunSeen,
    pub(super) fate: Fate,
    /// What the exchange has told of it.
    pub(super) told: UsageRecord,
    /// When AgentOS had begun it.
    pub(super) since: Instant,
}

/// A run's lease, counted as active until it is dropped.
pub(super) struct Held {
    lease: Lease,
    telemetry: Arc<Telemetry>,
    tenant: TenantId,
}

/// A run that goes on after its answer.
struct Background {
    cluster: Arc<Cluster>,
    kind: Kind,
    component: String,
    run_id: String,
    session_id: String,
    /// Set where AgentOS gets callers' own tokens: once it has expired, the lease ends at its deadline.
    caller_token: Option<String>,
    /// Knows what the run had used before, if it goes on after a pause.
    meter: Meter,
    /// What telemetry was told of already.
    told: UsageRecord,
    fate: Fate,
    since: Instant,
    /// Counts at its endpoint while it goes on.
    picked: Option<Picked>,
    lease: Held,
    going: Going,
    /// The endpoint is as busy with it as with any other run.
    _place: Option<Place>,
    _turn: Option<Turn>,
}

// === impl Held ===

impl Held {
    /// Counts the run as active.
    pub(super) fn new(lease: Lease, telemetry: &Arc<Telemetry>, tenant: &TenantId) -> Self {
        telemetry.runs_active(tenant, 1);
        let held = Self { lease, telemetry: Arc::clone(telemetry), tenant: tenant.clone() };
        held.tell_budgets();
        held
    }

    fn tell_budgets(&self) {
        for budget in self.lease.budgets() {
            self.telemetry.quota_used(&self.tenant, budget.name, budget.used_ratio());
        }
    }

    /// How often the tenant's turn comes at busy endpoints.
    pub(super) fn weight(&self) -> u32 {
        self.lease.weight()
    }

    /// Notes what the run has used so far, in all.
    pub(super) fn grow(&mut self, models: &[ModelUsage]) -> Growth {
        self.lease.grow(models.iter().map(spent))
    }

    /// Charges what the run has used; what was reserved where AgentOS did not report all of it.
    pub(super) fn commit(&mut self, usage: &UsageRecord) {
        let at_least = if usage.incomplete { self.lease.reserved() } else { 0 };
        self.lease.commit(usage.models.iter().map(spent), at_least);
    }

    /// Charges nothing: no model was called.
    pub(super) fn waive(&mut self) {
        self.lease.waive();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.telemetry.runs_active(&self.tenant, -1);
        self.tell_budgets();
    }
}

fn spent(model: &ModelUsage) -> ModelSpent<'_> {
    ModelSpent { model: &model.model, input: model.input, output: model.output }
}

// === impl Runs ===

impl Runs {
    pub(super) fn new(shared: Option<(Arc<dyn Store>, Spawn)>) -> Self {
        let learned = Cache::builder().max_capacity(LEARNED_MAX).time_to_live(LEARNED_TTL).build();
        Self { learned, shared, live: Live::new() }
    }

    /// Remembers who started a run and where it is, and tells the other instances.
    pub(super) fn learn(&self, cluster: &Arc<str>, run: &str, user: &UpstreamUser, tag: EndpointTag) -> Telling {
        self.learned.insert((Arc::clone(cluster), run.to_owned()), (user.clone(), tag));
        let Some((store, spawn)) = &self.shared else { return Telling(None) };
        let (store, name, tag) = (Arc::clone(store), shared_name(cluster, run, user), tag.to_string());
        let (told, telling) = oneshot::channel();
        let tell = async move {
            // Another instance that does not find it asks every replica.
            if let Ok(false) = store.claim(&name, &tag, LEARNED_TTL).await {
                // It has moved since it was told of.
                if let Ok(Some(former)) = store.holder(&name).await {
                    let _ = store.release(&name, &former).await;
                    let _ = store.claim(&name, &tag, LEARNED_TTL).await;
                }
            }
            // Nobody may wait for it.
            let _ = told.send(());
        };
        spawn("learned run", Box::pin(tell));
        Telling(Some(telling))
    }

    /// The endpoint that holds the run, if this user started it.
    pub(super) fn learned(&self, cluster: &Arc<str>, run: &str, user: &UpstreamUser) -> Option<EndpointTag> {
        let (owner, tag) = self.learned.get(&(Arc::clone(cluster), run.to_owned()))?;
        (owner == *user).then_some(tag)
    }

    /// The same, as another instance, or this one before it was started anew, has learned it. A store out of reach
    /// knows nothing.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn recalled(&self, cluster: &Arc<str>, run: &str, user: &UpstreamUser) -> Option<EndpointTag> {
        let (store, _) = self.shared.as_ref()?;
        let tag = store.holder(&shared_name(cluster, run, user)).await.ok()??;
        u16::from_str_radix(&tag, 16).ok().map(EndpointTag)
    }
}

// === impl Telling ===

impl Telling {
    /// Waits until the other instances can know, but not for a store that is slow or lost.
    ///
    /// # Cancel safety
    /// Safe: the store is told all the same.
    pub(super) async fn told(self) {
        if let Some(telling) = self.0 {
            // In vain it costs a question to every replica later.
            let _ = tokio::time::timeout(TOLD_WITHIN, telling).await;
        }
    }
}

/// The name under which instances share where a run is; the user is part of it, so that it is found for them only.
fn shared_name(cluster: &str, run: &str, user: &UpstreamUser) -> String {
    // Encoded, and the user last: no part can pass for another.
    format!("run:{cluster}:{}:{}", encode_segment(run), user.as_str())
}

/// Gives the lease of a run that goes on to whoever watches it, and with it what else lasts as long as the run; where
/// nobody can, it ends here at the price of its reservation.
pub(super) fn hand_over(gateway: &Arc<Gateway>, admitted: &mut Admitted, lease: Held, left: Left) {
    let Left { seen, fate, told, since } = left;
    let Some((kind, component)) = admitted.matched.component() else { return };
    let cluster = Arc::clone(&admitted.cluster);
    let going = gateway.runs.live.begin(&cluster.settings.name, &seen.run_id);
    let run = Background {
        kind,
        component: component.to_owned(),
        run_id: seen.run_id,
        session_id: seen.session_id.or_else(|| admitted.session.clone()).unwrap_or_default(),
        caller_token: admitted.caller_token.clone(),
        meter: admitted.meter(),
        told,
        fate,
        since,
        picked: cluster.pick_for(Want::Tag(admitted.picked.endpoint().tag), Use::Run).ok(),
        lease,
        going,
        _place: admitted.hold.place.take(),
        _turn: admitted.hold.turn.take(),
        cluster,
    };
    (gateway.spawn)("background run", Box::pin(watch(Arc::clone(gateway), run)));
}

/// Hands over the lease of a run that AgentOS was told of and whose answer did not come in time. It finishes what is not
/// streamed, whoever waits; anything else ends when it has noticed that nobody does.
pub(super) fn abandon(gateway: &Arc<Gateway>, admitted: &mut Admitted) {
    // A run that was continued is left: until it ends the database says that it is paused.
    let Some(run_id) = admitted.run_id else { return };
    let Some(lease) = admitted.lease.take() else { return };
    let goes_on = !admitted.streams() && !admitted.background && admitted.session.is_some();
    let left = Left {
        seen: RunSeen { run_id: run_id.to_string(), session_id: None },
        fate: if goes_on { Fate::Unanswered } else { Fate::GivenUp },
        told: UsageRecord::default(),
        since: Instant::now(),
    };
    hand_over(gateway, admitted, lease, left);
}

/// Holds the lease of a run until the run is seen to end, then commits what it used.
///
/// # Cancel safety
/// Dropping the future gives the lease back at the price of its reservation.
async fn watch(gateway: Arc<Gateway>, mut run: Background) {
    let timeouts = &run.cluster.settings.timeouts;
    let deadline = Instant::now() + timeouts.stream_max;
    // What was not seen for as long again as its answer was waited for is not there.
    let unseen_until = Instant::now() + timeouts.response_header;
    let path = rows::run(run.kind, &run.component, &run.run_id, &run.session_id);
    let (mut pause, mut absent, mut down) = (POLL_FIRST, 0, 0);
    while Instant::now() < deadline {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL_INTERVAL);
        down = if run.is_held() { 0 } else { down + 1 };
        if down >= GONE_LOOKS || absent >= GONE_LOOKS {
            // Nobody can be asked, or nobody knows it: that is no end that was seen.
            return;
        }
        // Before it is looked at: what the database says afterwards will not change.
        let forgotten = run.is_forgotten();
        let found = forward::look_up(&gateway, &run.cluster, run.caller_token.as_deref(), &path).await;
        match found {
            Ok(Some(row)) if RunStatus::of(&row).is_some_and(RunStatus::is_idle) => {
                run.meter.json(row.to_string().as_bytes());
                let usage = run.meter.finish();
                run.lease.commit(&usage);
                // The exchange that started the run has ended without them.
                let more = usage.since(&run.told);
                more.models
                    .iter()
                    .for_each(|model| gateway.telemetry.tokens(&run.lease.tenant, &forward::tokens(model)));
                return run.going.ended();
            }
            Ok(_) if forgotten => return,
            Ok(Some(_)) if run.fate == Fate::Unanswered => run.fate = Fate::GoesOn,
            Ok(None) | Err(_) if run.fate == Fate::Unanswered && Instant::now() > unseen_until => return,
            Ok(None) if run.fate == Fate::GivenUp => absent += 1,
            // Without its session a run cannot be looked at: it is given the time that AgentOS takes to notice.
            Err(_) if run.fate == Fate::GivenUp && run.session_id.is_empty() => absent += 1,
            // A failed look-up says nothing about the run; the deadline bounds the patience.
            Ok(_) | Err(_) => {}
        }
    }
}

impl Background {
    /// Says whether the replica that holds the run answers.
    fn is_held(&self) -> bool {
        self.picked.as_ref().is_some_and(|picked| picked.endpoint().answers())
    }

    /// Says whether the process that held the run is gone.
    fn is_forgotten(&self) -> bool {
        self.picked.as_ref().is_some_and(|picked| picked.endpoint().has_forgotten(self.since))
    }
}
