//! Owns WHAT Tollbridge says about its work: access log, audit log and metrics.
//! Does not decide anything; the only module that names `prometheus`.
//! Invariants: one `ExchangeFinished` yields one access-log line and one count; a slow disk or pipe never makes a
//! request wait (its lines are dropped and counted); label values come from closed or bounded sets.

pub mod event;
mod labels;
mod line;
mod metrics;
mod queue;
mod timestamp;
mod tracing_setup;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use crate::principal::TenantId;

pub use event::*;
pub use timestamp::Timestamp;
pub use tracing_setup::{TracingError, init_tracing};
pub use writer::OpenError;

/// Content type of [`Telemetry::render`].
pub const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Where log lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

/// What an operator says about telemetry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// One line per exchange.
    pub access_log: LogTarget,
    /// One line per decision that refuses or writes.
    pub audit_log: LogTarget,
    /// What happens to calls that cannot be audited.
    pub audit_failure: AuditFailure,
}

/// What happens to a call that changes something while the audit log cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AuditFailure {
    /// It goes on; the lost line is counted, which alarms.
    #[default]
    Continue,
    /// It is refused: its line is written first, and only then does it go upstream.
    Refuse,
}

/// Counts and writes what happens. One per process, shared by `Arc`; it outlives configuration reloads.
pub struct Telemetry {
    metrics: metrics::Metrics,
    access: Option<writer::LogWriter>,
    audit: Option<writer::LogWriter>,
    audit_failure: AuditFailure,
}

/// One exchange in flight; dropping it ends the count.
#[must_use = "the exchange counts as over when this is dropped"]
pub struct InFlight {
    telemetry: Arc<Telemetry>,
    door: Door,
}

// === impl Telemetry ===

impl Telemetry {
    /// Opens the logs and registers every metric; `tenants` are the names that may become a label.
    ///
    /// # Errors
    /// [`OpenError`] when a log file cannot be opened.
    pub fn new(settings: Settings, tenants: impl IntoIterator<Item = TenantId>) -> Result<Arc<Self>, OpenError> {
        let metrics = metrics::Metrics::new(tenants.into_iter().collect());
        let access = writer::LogWriter::open("access", &settings.access_log, metrics.access_lost())?;
        let audit = writer::LogWriter::open("audit", &settings.audit_log, metrics.audit_lost())?;
        Ok(Arc::new(Self { metrics, access, audit, audit_failure: settings.audit_failure }))
    }

    /// What [`Telemetry::new`] would refuse, found without creating a file.
    pub fn check(settings: &Settings) -> Vec<OpenError> {
        [&settings.access_log, &settings.audit_log].into_iter().filter_map(|log| writer::check(log).err()).collect()
    }

    /// Writes the access-log line of an exchange and counts it.
    pub fn exchange_finished(&self, event: &ExchangeFinished) {
        self.metrics.exchange_finished(event);
        if let Some(access) = &self.access {
            access.write(&line::access(event, SystemTime::now()));
        }
    }

    /// Writes a line of the audit log.
    pub fn audit(&self, event: &AuditEvent) {
        if let Some(audit) = &self.audit {
            audit.write(&line::audit(event, SystemTime::now()));
        }
    }

    /// Says whether a call that changes something must be audited before it goes upstream.
    pub fn audits_first(&self) -> bool {
        self.audit.is_some() && self.audit_failure == AuditFailure::Refuse
    }

    /// Writes a line of the audit log and waits until it is written (handed to the system, not synced to the disk);
    /// `false` when it could not be, within two seconds.
    ///
    /// # Cancel safety
    /// Dropping the future does not take the line back.
    pub async fn audit_surely(&self, event: &AuditEvent) -> bool {
        match &self.audit {
            Some(audit) => audit.write_surely(&line::audit(event, SystemTime::now())).await,
            None => true,
        }
    }

    /// Counts an exchange as in flight until the guard is dropped.
    pub fn in_flight(self: &Arc<Self>, door: Door) -> InFlight {
        self.metrics.in_flight(door).inc();
        InFlight { telemetry: Arc::clone(self), door }
    }

    /// Counts a request head that never became an exchange.
    pub fn head_refused(&self, reason: &'static str) {
        self.metrics.head_refused(reason);
    }

    /// Says whether an endpoint takes requests.
    pub fn endpoint_up(&self, cluster: &str, endpoint: &str, up: bool) {
        self.metrics.endpoint_up(cluster, endpoint, up);
    }

    /// Says how many requests an endpoint holds.
    pub fn endpoint_in_flight(&self, cluster: &str, endpoint: &str, requests: i64) {
        self.metrics.endpoint_in_flight(cluster, endpoint, requests);
    }

    /// Takes the gauges of an endpoint away that is no longer configured or resolved.
    pub fn endpoint_gone(&self, cluster: &str, endpoint: &str) {
        self.metrics.endpoint_gone(cluster, endpoint);
    }

    /// Counts a failed attempt upstream.
    pub fn upstream_error(&self, cluster: &str, endpoint: &str, kind: &'static str) {
        self.metrics.upstream_error(cluster, endpoint, kind);
    }

    /// Counts an MCP request by protocol version.
    pub fn mcp_request(&self, method: &'static str, version: &'static str) {
        self.metrics.mcp_request(method, version);
    }

    /// Counts a reload of the configuration.
    pub fn config_reload(&self, ok: bool) {
        self.metrics.config_reload(if ok { "ok" } else { "failed" });
    }

    /// Counts what policies under trial would have answered; `none` when nothing would have permitted.
    pub fn shadow_decision(&self, shadow: &ShadowDecision) {
        let decision = if shadow.allow { "shadow_allow" } else { "shadow_deny" };
        if shadow.policies.is_empty() {
            self.metrics.policy_decision(metrics::NONE, decision);
        }
        shadow.policies.iter().for_each(|policy| self.metrics.policy_decision(policy, decision));
    }

    /// Counts what a policy said; `decision` is `allow` or `deny`.
    pub fn policy_decision(&self, policy: &str, decision: &'static str) {
        self.metrics.policy_decision(policy, decision);
    }

    /// Adds to the number of runs that a tenant has under way.
    pub fn runs_active(&self, tenant: &TenantId, delta: i64) {
        self.metrics.runs_active(tenant, delta);
    }

    /// Says whether limits are held with their store.
    pub fn store_up(&self, store: &'static str, up: bool) {
        self.metrics.store_up(store, up);
    }

    /// Says how much of a limit a tenant has used, from 0 to 1.
    pub fn quota_used(&self, tenant: &TenantId, limit: &'static str, ratio: f64) {
        self.metrics.quota_used(tenant, limit, ratio);
    }

    /// Counts tokens that a tenant used outside of an exchange: in a run that went on after its answer.
    pub fn tokens(&self, tenant: &TenantId, used: &ModelTokens) {
        self.metrics.tokens(Some(tenant), used);
    }

    /// Replaces the tenants that may become a label, after a reload. Series of tenants that went stay until restart.
    pub fn set_tenants(&self, tenants: impl IntoIterator<Item = TenantId>) {
        self.metrics.set_tenants(tenants.into_iter().collect());
    }

    /// Opens the log files anew, after they were renamed by rotation. A file that cannot be opened keeps the old one.
    pub fn reopen(&self) {
        self.access.iter().chain(&self.audit).for_each(writer::LogWriter::reopen);
    }

    /// Waits, two seconds at most per log, until every line so far is written.
    pub fn flush(&self) {
        self.access.iter().chain(&self.audit).for_each(writer::LogWriter::flush);
    }

    /// All metrics in the Prometheus text format.
    pub fn render(&self) -> String {
        self.metrics.render()
    }
}

// === impl InFlight ===

impl Drop for InFlight {
    fn drop(&mut self) {
        self.telemetry.metrics.in_flight(self.door).dec();
    }
}

#[cfg(test)]
mod tests;
