//! Owns the metrics: their names, labels and help in one table, and the handles behind them.
//! Does not decide what is counted when (`Telemetry`'s callers do).
//! Invariants: the table is the contract that dashboards rely on; the handles of an exchange are looked up once per
//! label set, and there is a bound to those sets beyond which cluster and tenant become `other`.

use std::collections::HashSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::RwLock;
use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use super::event::{CacheResult, Door, ExchangeFinished, ModelTokens};
use super::labels::{FirstNames, Handles, OTHER};
use super::writer::Lost;
use crate::principal::TenantId;

/// Most label sets of exchanges that name cluster and tenant.
const EXCHANGE_SETS_MAX: usize = 4096;
/// Most model names.
const MODELS_MAX: usize = 64;
/// Most policy names.
const POLICIES_MAX: usize = 512;
/// Most endpoints.
const ENDPOINTS_MAX: usize = 512;
/// From a cached answer to a long run, in seconds.
const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Label value for "the exchange did not get that far".
pub(super) const NONE: &str = "none";

/// One metric as dashboards know it.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
}

const fn row(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Row {
    Row { name, labels, help }
}

const REQUESTS: Row = row(
    "tollbridge_requests_total",
    &["door", "operation", "code", "cluster", "tenant"],
    "Exchanges by how they ended: `ok` or a refusal code.",
);
const DURATION: Row = row(
    "tollbridge_request_duration_seconds",
    &["door", "operation"],
    "From the accepted head to the end of the answer.",
);
const FIRST_BYTE: Row = row(
    "tollbridge_time_to_first_byte_seconds",
    &["door", "operation"],
    "From the accepted head to the first byte of the answer.",
);
const IN_FLIGHT: Row = row("tollbridge_in_flight", &["door"], "Exchanges under way.");
const RUNS_ACTIVE: Row = row("tollbridge_runs_active", &["tenant"], "Runs that hold a concurrency slot.");
const REFUSALS: Row =
    row("tollbridge_refusals_total", &["door", "code", "tenant"], "Exchanges that Tollbridge refused.");
const POLICY_DECISIONS: Row =
    row("tollbridge_policy_decisions_total", &["policy", "decision"], "What policies decided.");
const CACHE_RESULTS: Row = row("tollbridge_cache_results_total", &["operation", "result"], "What the cache said.");
const TOKENS: Row = row("tollbridge_tokens_total", &["tenant", "model", "kind"], "Model tokens, `input` and `output`.");
const QUOTA_USED: Row = row("tollbridge_quota_used_ratio", &["tenant", "limit"], "Used part of a limit, from 0 to 1.");
const STORE_UP: Row = row(
    "tollbridge_store_up",
    &["store"],
    "1 while limits are held with their store, 0 while plans say what is granted without it.",
);
const ENDPOINT_UP: Row =
    row("tollbridge_endpoint_up", &["cluster", "endpoint"], "1 while the endpoint takes requests.");
const ENDPOINT_IN_FLIGHT: Row =
    row("tollbridge_endpoint_in_flight", &["cluster", "endpoint"], "Requests that the endpoint holds.");
const UPSTREAM_ERRORS: Row =
    row("tollbridge_upstream_errors_total", &["cluster", "endpoint", "kind"], "Failed attempts upstream.");
const HEADS_REFUSED: Row =
    row("tollbridge_heads_refused_total", &["reason"], "Request heads that never became an exchange.");
const MCP_REQUESTS: Row =
    row("tollbridge_mcp_requests_total", &["method", "version"], "MCP requests by protocol version.");
const CONFIG_RELOADS: Row =
    row("tollbridge_config_reloads_total", &["result"], "Reloads of the configuration, `ok` or `failed`.");
const BUILD_INFO: Row = row("tollbridge_build_info", &["version"], "Always 1; the label is the version.");
const LINES_DROPPED: Row =
    row("tollbridge_log_lines_dropped_total", &["log"], "Log lines lost to a slow or full target.");

const AUDIT_FAILURES: Row =
    row("tollbridge_audit_failures_total", &["reason"], "Audit lines lost: `queue` too slow, `target` not writable.");

/// Every metric.
#[cfg(test)]
pub(super) const ROWS: [&Row; 20] = [
    &REQUESTS,
    &DURATION,
    &FIRST_BYTE,
    &IN_FLIGHT,
    &RUNS_ACTIVE,
    &REFUSALS,
    &POLICY_DECISIONS,
    &CACHE_RESULTS,
    &TOKENS,
    &QUOTA_USED,
    &STORE_UP,
    &ENDPOINT_UP,
    &ENDPOINT_IN_FLIGHT,
    &UPSTREAM_ERRORS,
    &HEADS_REFUSED,
    &MCP_REQUESTS,
    &CONFIG_RELOADS,
    &BUILD_INFO,
    &LINES_DROPPED,
    &AUDIT_FAILURES,
];

/// All metrics of the process.
pub(super) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    duration: HistogramVec,
    first_byte: HistogramVec,
    in_flight: [IntGauge; 3],
    runs_active: IntGaugeVec,
    refusals: IntCounterVec,
    policy_decisions: IntCounterVec,
    cache_results: IntCounterVec,
    tokens: IntCounterVec,
    quota_used: GaugeVec,
    store_up: IntGaugeVec,
    endpoint_up: IntGaugeVec,
    endpoint_in_flight: IntGaugeVec,
    upstream_errors: IntCounterVec,
    heads_refused: IntCounterVec,
    mcp_requests: IntCounterVec,
    config_reloads: IntCounterVec,
    lines_dropped: IntCounterVec,
    audit_failures: IntCounterVec,
    tenants: ArcSwap<foldhash::HashSet<TenantId>>,
    models: FirstNames,
    policies: FirstNames,
    endpoints: FirstNames,
    decided: Handles<IntCounter>,
    used: Handles<Gauge>,
    exchanges: RwLock<foldhash::HashMap<ExchangeSet, Arc<ExchangeHandles>>>,
}

/// Everything of an exchange that chooses its handles.
#[derive(PartialEq, Eq, Hash)]
struct ExchangeSet {
    door: Door,
    operation: Option<&'static str>,
    code: &'static str,
    cluster: Option<Arc<str>>,
    tenant: Option<TenantId>,
    cache: CacheResult,
}

/// The handles of one label set.
struct ExchangeHandles {
    requests: IntCounter,
    duration: Histogram,
    first_byte: Histogram,
    refusals: Option<IntCounter>,
    cache: Option<IntCounter>,
}

// === impl Metrics ===

impl Metrics {
    pub(super) fn new(tenants: HashSet<TenantId>) -> Self {
        let registry = Registry::new();
        let gauge = int_gauge(&registry, &IN_FLIGHT);
        let doors = [Door::Http, Door::Mcp, Door::WebSocket];
        int_gauge(&registry, &BUILD_INFO).with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let metrics = Self {
            requests: counter(&registry, &REQUESTS),
            duration: histogram(&registry, &DURATION),
            first_byte: histogram(&registry, &FIRST_BYTE),
            in_flight: doors.map(|door| gauge.with_label_values(&[door.as_str()])),
            runs_active: int_gauge(&registry, &RUNS_ACTIVE),
            refusals: counter(&registry, &REFUSALS),
            policy_decisions: counter(&registry, &POLICY_DECISIONS),
            cache_results: counter(&registry, &CACHE_RESULTS),
            tokens: counter(&registry, &TOKENS),
            quota_used: registered(&registry, GaugeVec::new(opts(&QUOTA_USED), QUOTA_USED.labels)),
            store_up: int_gauge(&registry, &STORE_UP),
            endpoint_up: int_gauge(&registry, &ENDPOINT_UP),
            endpoint_in_flight: int_gauge(&registry, &ENDPOINT_IN_FLIGHT),
            upstream_errors: counter(&registry, &UPSTREAM_ERRORS),
            heads_refused: counter(&registry, &HEADS_REFUSED),
            mcp_requests: counter(&registry, &MCP_REQUESTS),
            config_reloads: counter(&registry, &CONFIG_RELOADS),
            lines_dropped: counter(&registry, &LINES_DROPPED),
            audit_failures: counter(&registry, &AUDIT_FAILURES),
            tenants: ArcSwap::from_pointee(tenants.into_iter().collect()),
            models: FirstNames::new(MODELS_MAX),
            policies: FirstNames::new(POLICIES_MAX),
            endpoints: FirstNames::new(ENDPOINTS_MAX),
            decided: Handles::new(),
            used: Handles::new(),
            exchanges: RwLock::default(),
            registry,
        };
        // A counter that exists from the start shows a first failure as an increase.
        for result in ["ok", "failed"] {
            metrics.config_reloads.with_label_values(&[result]);
        }
        metrics
    }

    pub(super) fn exchange_finished(&self, event: &ExchangeFinished) {
        let handles = self.handles(event);
        handles.requests.inc();
        handles.duration.observe(event.duration.as_secs_f64());
        if let Some(first_byte) = event.time_to_first_byte {
            handles.first_byte.observe(first_byte.as_secs_f64());
        }
        handles.refusals.iter().chain(&handles.cache).for_each(|counter| counter.inc());
        for used in &event.tokens {
            self.tokens(event.tenant.as_ref(), used);
        }
    }

    pub(super) fn in_flight(&self, door: Door) -> &IntGauge {
        let [http, mcp, websocket] = &self.in_flight;
        match door {
            Door::Http => http,
            Door::Mcp => mcp,
            Door::WebSocket => websocket,
        }
    }

    /// The counters of the access log's lost lines.
    pub(super) fn access_lost(&self) -> Lost {
        Lost { dropped: self.lines_dropped.with_label_values(&["access"]), alarms: None }
    }

    /// The counters of the audit log's lost lines, which alarm.
    pub(super) fn audit_lost(&self) -> Lost {
        let alarms = ["queue", "target"].map(|reason| self.audit_failures.with_label_values(&[reason]));
        Lost { dropped: self.lines_dropped.with_label_values(&["audit"]), alarms: Some(alarms) }
    }

    pub(super) fn head_refused(&self, reason: &'static str) {
        self.heads_refused.with_label_values(&[reason]).inc();
    }

    pub(super) fn endpoint_up(&self, cluster: &str, endpoint: &str, up: bool) {
        self.endpoint_up.with_label_values(&[cluster, self.endpoints.label(endpoint)]).set(up.into());
    }

    pub(super) fn endpoint_in_flight(&self, cluster: &str, endpoint: &str, requests: i64) {
        self.endpoint_in_flight.with_label_values(&[cluster, self.endpoints.label(endpoint)]).set(requests);
    }

    pub(super) fn endpoint_gone(&self, cluster: &str, endpoint: &str) {
        // Absent already is as good.
        let _ = self.endpoint_up.remove_label_values(&[cluster, endpoint]);
        let _ = self.endpoint_in_flight.remove_label_values(&[cluster, endpoint]);
    }

    pub(super) fn upstream_error(&self, cluster: &str, endpoint: &str, kind: &'static str) {
        self.upstream_errors.with_label_values(&[cluster, self.endpoints.label(endpoint), kind]).inc();
    }

    pub(super) fn mcp_request(&self, method: &'static str, version: &'static str) {
        self.mcp_requests.with_label_values(&[method, version]).inc();
    }

    pub(super) fn config_reload(&self, result: &'static str) {
        self.config_reloads.with_label_values(&[result]).inc();
    }

    pub(super) fn policy_decision(&self, policy: &str, decision: &'static str) {
        if self.decided.with(policy, decision, |counter| counter.inc()) {
            return;
        }
        let label = self.policies.label(policy);
        let counter = self.policy_decisions.with_label_values(&[label, decision]);
        counter.inc();
        // Names without a label of their own stay without a bound: they are looked up each time.
        if label == policy {
            self.decided.keep(policy, decision, counter);
        }
    }

    pub(super) fn runs_active(&self, tenant: &TenantId, delta: i64) {
        self.with_tenant(Some(tenant), |tenant| self.runs_active.with_label_values(&[tenant]).add(delta));
    }

    pub(super) fn quota_used(&self, tenant: &TenantId, limit: &'static str, ratio: f64) {
        if self.used.with(tenant.as_str(), limit, |gauge| gauge.set(ratio)) {
            return;
        }
        let gauge = self.with_tenant(Some(tenant), |tenant| self.quota_used.with_label_values(&[tenant, limit]));
        gauge.set(ratio);
        if self.tenants.load().contains(tenant) {
            self.used.keep(tenant.as_str(), limit, gauge);
        }
    }

    pub(super) fn store_up(&self, store: &'static str, up: bool) {
        self.store_up.with_label_values(&[store]).set(up.into());
    }

    pub(super) fn set_tenants(&self, tenants: HashSet<TenantId>) {
        self.tenants.store(Arc::new(tenants.into_iter().collect()));
        // Handles were chosen under the old names.
        self.exchanges.write().clear();
        self.used.clear();
    }

    pub(super) fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    pub(super) fn tokens(&self, tenant: Option<&TenantId>, used: &ModelTokens) {
        let model = self.models.label(&used.model);
        self.with_tenant(tenant, |tenant| {
            self.tokens.with_label_values(&[tenant, model, "input"]).inc_by(used.input);
            self.tokens.with_label_values(&[tenant, model, "output"]).inc_by(used.output);
        });
    }

    fn with_tenant<T>(&self, tenant: Option<&TenantId>, f: impl FnOnce(&str) -> T) -> T {
        let known = self.tenants.load();
        f(tenant.filter(|t| known.contains(*t)).map_or(OTHER, TenantId::as_str))
    }

    fn handles(&self, event: &ExchangeFinished) -> Arc<ExchangeHandles> {
        let set = ExchangeSet {
            door: event.door,
            operation: event.operation,
            code: event.code,
            cluster: event.cluster.clone(),
            // Callers choose tenant names where any tenant is served: those share a set.
            tenant: event.tenant.clone().filter(|t| self.tenants.load().contains(t)),
            cache: event.cache,
        };
        if let Some(handles) = self.exchanges.read().get(&set) {
            return Arc::clone(handles);
        }
        let mut exchanges = self.exchanges.write();
        if exchanges.len() >= EXCHANGE_SETS_MAX && !exchanges.contains_key(&set) {
            return Arc::new(self.resolve(&set, OTHER, OTHER));
        }
        let tenant = set.tenant.clone();
        let cluster = set.cluster.clone();
        let resolve = |set: &ExchangeSet| {
            let tenant = tenant.as_ref().map_or(OTHER, TenantId::as_str);
            Arc::new(self.resolve(set, cluster.as_deref().unwrap_or(NONE), tenant))
        };
        let handles = resolve(&set);
        Arc::clone(exchanges.entry(set).or_insert(handles))
    }

    fn resolve(&self, set: &ExchangeSet, cluster: &str, tenant: &str) -> ExchangeHandles {
        let door = set.door.as_str();
        let operation = set.operation.unwrap_or(NONE);
        let refused = set.code != "ok";
        ExchangeHandles {
            requests: self.requests.with_label_values(&[door, operation, set.code, cluster, tenant]),
            duration: self.duration.with_label_values(&[door, operation]),
            first_byte: self.first_byte.with_label_values(&[door, operation]),
            refusals: refused.then(|| self.refusals.with_label_values(&[door, set.code, tenant])),
            cache: set.operation.map(|o| self.cache_results.with_label_values(&[o, set.cache.as_str()])),
        }
    }
}

fn opts(row: &Row) -> Opts {
    Opts::new(row.name, row.help)
}

fn counter(registry: &Registry, row: &Row) -> IntCounterVec {
    registered(registry, IntCounterVec::new(opts(row), row.labels))
}

fn int_gauge(registry: &Registry, row: &Row) -> IntGaugeVec {
    registered(registry, IntGaugeVec::new(opts(row), row.labels))
}

fn histogram(registry: &Registry, row: &Row) -> HistogramVec {
    let opts = HistogramOpts::new(row.name, row.help).buckets(SECONDS.to_vec());
    registered(registry, HistogramVec::new(opts, row.labels))
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("names, labels and buckets of the table are valid");
    registry.register(Box::new(collector.clone())).expect("every name of the table is used once");
    collector
}
