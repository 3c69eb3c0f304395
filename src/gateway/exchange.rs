//! Owns one exchange from its accepted head to its end, and says so exactly once.
//! Does not decide how it ends: whoever holds it names the outcome.
//! Invariant: dropping an `Exchange` emits exactly one `ExchangeFinished`, also on panic, disconnect and drain; a dry
//! run emits none.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use super::refusal::{Code, Refusal, Stage};
use super::trail::{Said, Trail};
use crate::agentos::{Action, Resource};
use crate::quota::LimitState;
use crate::telemetry::{AuditEvent, CacheResult, Door, ExchangeFinished, InFlight, Telemetry};

/// The code of an exchange whose caller went away before the end.
pub const CLIENT_CLOSED: &str = "client_closed";
/// The status logged for it; never sent.
const CLIENT_CLOSED_STATUS: u16 = 499;

/// One exchange under way. Fields of `event` are filled in as stages learn them.
pub(super) struct Exchange {
    /// What will be said at the end.
    pub(super) event: ExchangeFinished,
    /// Policy group of the operation, for the audit log: what refuses or writes is audited.
    pub(super) action: Option<Action>,
    /// What the call is about, for the audit log.
    pub(super) resource: Option<(Resource, String)>,
    /// Approvals that decided, for the audit log.
    pub(super) approvals: Vec<String>,
    /// The rates that this exchange spent, which every answer to it tells.
    pub(super) limits: Vec<LimitState>,
    /// Set in a dry run: what the stages say is gathered here, and nothing is logged or counted.
    pub(super) rehearsal: Option<Box<Trail>>,
    telemetry: Arc<Telemetry>,
    started: Instant,
    _in_flight: InFlight,
}

impl Exchange {
    /// Begins an exchange; it counts as in flight until it is dropped. Boxed: it goes from hand to hand until the last
    /// byte is sent, and each would copy it.
    pub(super) fn begin(
        telemetry: &Arc<Telemetry>,
        door: Door,
        request_id: Arc<str>,
        peer: IpAddr,
        method: &http::Method,
    ) -> Box<Self> {
        Box::new(Self {
            event: ExchangeFinished {
                door,
                request_id,
                peer,
                method: method_word(method),
                operation: None,
                code: CLIENT_CLOSED,
                status: CLIENT_CLOSED_STATUS,
                stage: None,
                reason: None,
                cluster: None,
                endpoint: None,
                tenant: None,
                subject: None,
                policies: Arc::default(),
                shadow: None,
                cache: CacheResult::Bypass,
                run_id: None,
                duration: std::time::Duration::ZERO,
                time_to_first_byte: None,
                bytes_sent: 0,
                attempts: 0,
                tokens: Vec::new(),
            },
            action: None,
            resource: None,
            approvals: Vec::new(),
            limits: Vec::new(),
            rehearsal: None,
            telemetry: Arc::clone(telemetry),
            started: Instant::now(),
            _in_flight: telemetry.in_flight(door),
        })
    }

    /// Names the outcome: served with this status.
    pub(super) fn served(&mut self, status: u16) {
        self.event.code = "ok";
        self.event.status = status;
        (self.event.stage, self.event.reason) = (None, None);
    }

    /// Names the outcome: refused.
    pub(super) fn refused(&mut self, refusal: &Refusal) {
        let row = refusal.code.row();
        self.event.code = row.code;
        self.event.status = row.status;
        self.event.stage = Some(refusal.stage.as_str());
        self.event.reason.clone_from(&refusal.reason);
    }

    /// Names the outcome: the caller went away.
    pub(super) fn abandoned(&mut self) {
        self.event.code = CLIENT_CLOSED;
        self.event.status = CLIENT_CLOSED_STATUS;
    }

    /// Counts body bytes on their way to the caller.
    pub(super) fn sent(&mut self, bytes: usize) {
        if bytes > 0 && self.event.time_to_first_byte.is_none() {
            self.event.time_to_first_byte = Some(self.started.elapsed());
        }
        self.event.bytes_sent += bytes as u64;
    }

    /// Notes what a stage said, in a dry run.
    pub(super) fn note(&mut self, stage: &'static str, said: Said, facts: impl FnOnce() -> Value) {
        if let Some(trail) = &mut self.rehearsal {
            trail.add(stage, said, facts());
        }
    }

    /// Writes the audit line of a call that will change something, where the operator wants it written first.
    ///
    /// # Errors
    /// `overloaded` when it could not be written: what cannot be audited is not done.
    ///
    /// # Cancel safety
    /// The line may stand although the call was given up; a second line says how it ended.
    pub(super) async fn audit_first(&self) -> Result<(), Refusal> {
        if !self.writes() || !self.telemetry.audits_first() {
            return Ok(());
        }
        // Boxed: few take this way, and every exchange would carry its state.
        if Box::pin(self.telemetry.audit_surely(&self.audit_event("admitted"))).await {
            return Ok(());
        }
        let refusal = Refusal::new(Code::Overloaded, Stage::Audit).because("the audit log cannot be written");
        Err(refusal.saying("the gateway cannot record this call now"))
    }

    fn writes(&self) -> bool {
        matches!(self.action, Some(Action::Write | Action::Delete | Action::Run))
    }

    fn audit(&self) {
        let refused = self.event.stage.is_some();
        if refused || self.writes() {
            self.telemetry.audit(&self.audit_event(self.event.code));
        }
    }

    fn audit_event(&self, outcome: &'static str) -> AuditEvent {
        AuditEvent {
            request_id: Arc::clone(&self.event.request_id),
            door: self.event.door,
            tenant: self.event.tenant.clone(),
            subject: self.event.subject.clone(),
            operation: self.event.operation,
            resource: self.resource.as_ref().map(|(kind, id)| format!("{kind}::{id}")),
            approvals: self.approvals.clone(),
            policies: Arc::clone(&self.event.policies),
            shadow: self.event.shadow.clone(),
            stage: self.event.stage,
            peer: self.event.peer,
            outcome,
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.rehearsal.is_some() {
            return;
        }
        self.event.duration = self.started.elapsed();
        self.audit();
        self.telemetry.exchange_finished(&self.event);
    }
}

/// A method as a word from a closed set: logs and metrics must not carry callers' inventions.
fn method_word(method: &http::Method) -> &'static str {
    match *method {
        http::Method::GET => "GET",
        http::Method::POST => "POST",
        http::Method::PUT => "PUT",
        http::Method::PATCH => "PATCH",
        http::Method::DELETE => "DELETE",
        http::Method::HEAD => "HEAD",
        http::Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
