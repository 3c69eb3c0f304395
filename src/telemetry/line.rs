//! Owns the shape of log lines: one JSON object each, OpenTelemetry names where they exist.
//! Does not write them (`writer`).
//! Invariants: a line holds no line break and no control character; every text has a length limit.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::ser::SerializeSeq as _;
use serde::{Serialize, Serializer};

use super::event::{AuditEvent, ExchangeFinished, ShadowDecision};
use super::timestamp::Timestamp;

/// Longest text in a line, in bytes; more is cut off.
const TEXT_BYTES_MAX: usize = 1024;
/// Most policies named in a line.
const POLICIES_MAX: usize = 32;
/// Usual size of a line.
const LINE_BYTES: usize = 768;

#[derive(Serialize)]
struct Access<'a> {
    timestamp: Timestamp,
    log: &'static str,
    request_id: Text<'a>,
    door: &'static str,
    #[serde(rename = "http.request.method")]
    method: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<&'static str>,
    code: &'static str,
    #[serde(rename = "http.response.status_code")]
    status: u16,
    #[serde(rename = "client.address")]
    client: std::net::IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Policies::is_empty")]
    policies: Policies<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shadow: Option<Shadow<'a>>,
    cache: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_id: Option<Text<'a>>,
    attempts: u32,
    duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttfb_ms: Option<f64>,
    bytes_sent: u64,
    /// Only where one model did all the work.
    #[serde(rename = "gen_ai.response.model", skip_serializing_if = "Option::is_none")]
    model: Option<Text<'a>>,
    #[serde(rename = "gen_ai.usage.input_tokens", skip_serializing_if = "Option::is_none")]
    input_tokens: Option<u64>,
    #[serde(rename = "gen_ai.usage.output_tokens", skip_serializing_if = "Option::is_none")]
    output_tokens: Option<u64>,
}

#[derive(Serialize)]
struct Audit<'a> {
    timestamp: Timestamp,
    log: &'static str,
    request_id: Text<'a>,
    door: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Texts::is_empty")]
    approvals: Texts<'a>,
    policies: Policies<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shadow: Option<Shadow<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<&'static str>,
    #[serde(rename = "client.address")]
    client: std::net::IpAddr,
    outcome: &'static str,
}

/// The answer of policies under trial.
#[derive(Serialize)]
struct Shadow<'a> {
    outcome: &'static str,
    policies: Policies<'a>,
}

/// Text from outside: cut to its limit, control characters replaced (JSON escapes C0 only, terminals obey C1, too).
struct Text<'a>(&'a str);

struct Policies<'a>(&'a [Arc<str>]);

struct Texts<'a>(&'a [String]);

/// The access-log line of an exchange, line break included.
pub(super) fn access(event: &ExchangeFinished, now: SystemTime) -> Vec<u8> {
    let used = (!event.tokens.is_empty()).then(|| {
        event.tokens.iter().fold((0_u64, 0_u64), |(i, o), t| (i.saturating_add(t.input), o.saturating_add(t.output)))
    });
    let model = match event.tokens.as_slice() {
        [only] => Some(Text(&only.model)),
        [] | [_, ..] => None,
    };
    finish(&Access {
        timestamp: Timestamp(now),
        log: "access",
        request_id: Text(&event.request_id),
        door: event.door.as_str(),
        method: event.method,
        operation: event.operation,
        code: event.code,
        status: event.status,
        client: event.peer,
        tenant: event.tenant.as_ref().map(|t| t.as_str()),
        subject: event.subject.as_deref().map(Text),
        cluster: event.cluster.as_deref().map(Text),
        endpoint: event.endpoint.as_deref().map(Text),
        stage: event.stage,
        reason: event.reason.as_deref().map(Text),
        policies: Policies(&event.policies),
        shadow: event.shadow.as_deref().map(shadow),
        cache: event.cache.as_str(),
        run_id: event.run_id.as_deref().map(Text),
        attempts: event.attempts,
        duration_ms: millis(event.duration),
        ttfb_ms: event.time_to_first_byte.map(millis),
        bytes_sent: event.bytes_sent,
        model,
        input_tokens: used.map(|u| u.0),
        output_tokens: used.map(|u| u.1),
    })
}

/// The audit-log line of a decision, line break included.
pub(super) fn audit(event: &AuditEvent, now: SystemTime) -> Vec<u8> {
    finish(&Audit {
        timestamp: Timestamp(now),
        log: "audit",
        request_id: Text(&event.request_id),
        door: event.door.as_str(),
        tenant: event.tenant.as_ref().map(|t| t.as_str()),
        subject: event.subject.as_deref().map(Text),
        operation: event.operation,
        resource: event.resource.as_deref().map(Text),
        approvals: Texts(&event.approvals),
        policies: Policies(&event.policies),
        shadow: event.shadow.as_deref().map(shadow),
        stage: event.stage,
        client: event.peer,
        outcome: event.outcome,
    })
}

fn shadow(decision: &ShadowDecision) -> Shadow<'_> {
    Shadow { outcome: if decision.allow { "allow" } else { "deny" }, policies: Policies(&decision.policies) }
}

fn finish(line: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LINE_BYTES);
    // Strings and numbers into memory: nothing here can fail.
    let written = serde_json::to_writer(&mut bytes, line);
    debug_assert!(written.is_ok(), "a log line must serialize");
    bytes.push(b'\n');
    bytes
}

/// Milliseconds with microseconds behind the point.
fn millis(duration: Duration) -> f64 {
    u32::try_from(duration.as_micros()).map_or_else(|_| duration.as_secs_f64() * 1000.0, |us| f64::from(us) / 1000.0)
}

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, target: S) -> Result<S::Ok, S::Error> {
        let end = self.0.floor_char_boundary(TEXT_BYTES_MAX);
        let text = self.0.get(..end).unwrap_or_default();
        if text.chars().any(is_obeyed) {
            return target.collect_str(&text.replace(is_obeyed, "\u{fffd}"));
        }
        target.serialize_str(text)
    }
}

/// Control characters and the line breaks and directions that Unicode adds to them.
fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl Policies<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Texts<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Texts<'_> {
    fn serialize<S: Serializer>(&self, target: S) -> Result<S::Ok, S::Error> {
        target.collect_seq(self.0.iter().take(POLICIES_MAX).map(|text| Text(text)))
    }
}

impl Serialize for Policies<'_> {
    fn serialize<S: Serializer>(&self, target: S) -> Result<S::Ok, S::Error> {
        let mut list = target.serialize_seq(None)?;
        for policy in self.0.iter().take(POLICIES_MAX) {
            list.serialize_element(&Text(policy))?;
        }
        list.end()
    }
}
