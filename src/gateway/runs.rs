//! Owns what is known about runs beyond their exchange: ids that AgentOS minted itself, and leases of runs that go
//! on after their answer.
//! Does not start or stop runs.
//! Invariant: a lease that is kept here is given back when its run is seen to end, or at its deadline.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;

use super::admit::Admitted;
use super::forward;
use super::path::Gateway;
use crate::agentos::{Kind, RunStatus, rows};
use crate::cluster::{Cluster, EndpointTag, Place, UpstreamUser};
use crate::principal::TenantId;
use crate::quota::{Growth, Lease, ModelSpent};
use crate::telemetry::Telemetry;
use crate::usage::{Meter, ModelUsage, RunSeen, UsageRecord};

/// Most learned run ids.
const LEARNED_MAX: u64 = 100_000;
/// How long a learned run id is kept.
const LEARNED_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// How often a background run is looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Run ids that carry no mark of ours: learned from answers.
pub(super) struct Runs(Cache<(Arc<str>, String), (UpstreamUser, EndpointTag)>);

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
    lease: Held,
    /// The endpoint is as busy with it as with any other run.
    _place: Option<Place>,
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
    pub(super) fn new() -> Self {
        Self(Cache::builder().max_capacity(LEARNED_MAX).time_to_live(LEARNED_TTL).build())
    }

    /// Remembers who started a run and where it is.
    pub(super) fn learn(&self, cluster: &Arc<str>, run: &str, user: &UpstreamUser, tag: EndpointTag) {
        self.0.insert((Arc::clone(cluster), run.to_owned()), (user.clone(), tag));
    }

    /// The endpoint that holds the run, if this user started it.
    pub(super) fn learned(&self, cluster: &Arc<str>, run: &str, user: &UpstreamUser) -> Option<EndpointTag> {
        let (owner, tag) = self.0.get(&(Arc::clone(cluster), run.to_owned()))?;
        (owner == *user).then_some(tag)
    }
}

/// Gives the lease of a run that goes on to whoever watches it; where nobody can, it ends here at the price of its
/// reservation.
pub(super) fn hand_over(gateway: &Arc<Gateway>, admitted: &mut Admitted, seen: RunSeen, lease: Held) {
    let place = admitted.place.take();
    let Some((kind, component)) = admitted.matched.component() else { return };
    let run = Background {
        cluster: Arc::clone(&admitted.cluster),
        kind,
        component: component.to_owned(),
        run_id: seen.run_id,
        session_id: seen.session_id.or_else(|| admitted.session.clone()).unwrap_or_default(),
        caller_token: admitted.caller_token.clone(),
        meter: admitted.meter(),
        lease,
        _place: place,
    };
    (gateway.spawn)("background run", Box::pin(watch(Arc::clone(gateway), run)));
}

/// Holds a background run's lease until the run is seen to end, then commits what it used.
///
/// # Cancel safety
/// Dropping the future gives the lease back at the price of its reservation.
async fn watch(gateway: Arc<Gateway>, mut run: Background) {
    let deadline = tokio::time::Instant::now() + run.cluster.settings.timeouts.stream_max;
    let path = rows::run(run.kind, &run.component, &run.run_id, &run.session_id);
    while tokio::time::Instant::now() < deadline {
        tokio::time::sleep(POLL_INTERVAL).await;
        // A failed look-up says nothing about the run; the deadline bounds the patience.
        let Ok(Some(row)) = forward::look_up(&gateway, &run.cluster, run.caller_token.as_deref(), &path).await else {
            continue;
        };
        let status = row.get("status").and_then(serde_json::Value::as_str).and_then(RunStatus::parse);
        if status.is_some_and(|status| !matches!(status, RunStatus::Pending | RunStatus::Running)) {
            run.meter.json(row.to_string().as_bytes());
            let usage = run.meter.finish();
            // The exchange that started the run has ended without them.
            usage.models.iter().for_each(|model| gateway.telemetry.tokens(&run.lease.tenant, &forward::tokens(model)));
            run.lease.commit(&usage);
            return;
        }
    }
}
