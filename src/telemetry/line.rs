//! Owns the shape of log lines: one JSON object each, OpenTelemetry names where they exist.
//! Does not write them to anything (`writer`).
//! Invariants: a line holds no line break and no control character; every text has a length limit.
//!
//! Written by hand: a line is made for every exchange, and a general serializer looks at every byte of the names too.

use std::io::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::event::{AuditEvent, ExchangeFinished, ShadowDecision};
use super::timestamp::Timestamp;

/// Longest text in a line, in bytes; more is cut off.
const TEXT_BYTES_MAX: usize = 1024;
/// Most texts in a list.
const TEXTS_MAX: usize = 32;
/// Usual size of a line.
const LINE_BYTES: usize = 768;

/// A name as it stands in a line, ready to be copied.
macro_rules! name {
    ($name:literal) => {
        concat!(",\"", $name, "\":").as_bytes()
    };
}

/// One line under way. Names, and the words of `word`, are ours: nothing in them needs an escape.
struct Line(Vec<u8>);

/// The access-log line of an exchange, line break included.
pub(super) fn access(event: &ExchangeFinished, now: SystemTime) -> Vec<u8> {
    let mut line = Line::begin("access", now);
    line.text(name!("request_id"), Some(&event.request_id));
    line.word(name!("door"), Some(event.door.as_str()));
    line.word(name!("http.request.method"), Some(event.method));
    line.word(name!("operation"), event.operation);
    line.word(name!("code"), Some(event.code));
    line.number(name!("http.response.status_code"), event.status.into());
    line.address(name!("client.address"), event.peer);
    line.text(name!("tenant"), event.tenant.as_ref().map(|t| t.as_str()));
    line.text(name!("subject"), event.subject.as_deref());
    line.text(name!("cluster"), event.cluster.as_deref());
    line.text(name!("endpoint"), event.endpoint.as_deref());
    line.word(name!("stage"), event.stage);
    line.text(name!("reason"), event.reason.as_deref());
    if !event.policies.is_empty() {
        line.policies(&event.policies);
    }
    line.shadow(event.shadow.as_deref());
    line.word(name!("cache"), Some(event.cache.as_str()));
    line.text(name!("run_id"), event.run_id.as_deref());
    line.number(name!("attempts"), event.attempts.into());
    line.millis(name!("duration_ms"), Some(event.duration));
    line.millis(name!("ttfb_ms"), event.time_to_first_byte);
    line.number(name!("bytes_sent"), event.bytes_sent);
    // Only where one model did all the work.
    if let [only] = event.tokens.as_slice() {
        line.text(name!("gen_ai.response.model"), Some(&only.model));
    }
    if !event.tokens.is_empty() {
        let sum =
            |of: fn(&crate::telemetry::ModelTokens) -> u64| event.tokens.iter().map(of).fold(0, u64::saturating_add);
        line.number(name!("gen_ai.usage.input_tokens"), sum(|t| t.input));
        line.number(name!("gen_ai.usage.output_tokens"), sum(|t| t.output));
    }
    line.end()
}

/// The audit-log line of a decision, line break included.
pub(super) fn audit(event: &AuditEvent, now: SystemTime) -> Vec<u8> {
    let mut line = Line::begin("audit", now);
    line.text(name!("request_id"), Some(&event.request_id));
    line.word(name!("door"), Some(event.door.as_str()));
    line.text(name!("tenant"), event.tenant.as_ref().map(|t| t.as_str()));
    line.text(name!("subject"), event.subject.as_deref());
    line.word(name!("operation"), event.operation);
    line.text(name!("resource"), event.resource.as_deref());
    if !event.approvals.is_empty() {
        line.texts(name!("approvals"), event.approvals.iter().map(String::as_str));
    }
    line.policies(&event.policies);
    line.shadow(event.shadow.as_deref());
    line.word(name!("stage"), event.stage);
    line.address(name!("client.address"), event.peer);
    line.word(name!("outcome"), Some(event.outcome));
    line.end()
}

// === impl Line ===

impl Line {
    fn begin(log: &'static str, now: SystemTime) -> Self {
        let mut line = Self(Vec::with_capacity(LINE_BYTES));
        line.0.extend_from_slice(b"{\"timestamp\":\"");
        line.0.extend_from_slice(&Timestamp(now).to_bytes());
        line.0.push(b'"');
        line.word(name!("log"), Some(log));
        line
    }

    /// A word from a closed set.
    fn word(&mut self, name: &'static [u8], word: Option<&'static str>) {
        let Some(word) = word else { return };
        self.0.extend_from_slice(name);
        self.0.push(b'"');
        self.0.extend_from_slice(word.as_bytes());
        self.0.push(b'"');
    }

    /// A text from outside.
    fn text(&mut self, name: &'static [u8], text: Option<&str>) {
        let Some(text) = text else { return };
        self.0.extend_from_slice(name);
        self.quoted(text);
    }

    /// What policies under trial would have said.
    fn shadow(&mut self, shadow: Option<&ShadowDecision>) {
        let Some(shadow) = shadow else { return };
        self.0.extend_from_slice(br#","shadow":{"outcome":""#);
        self.0.extend_from_slice(if shadow.allow { b"allow" } else { b"deny" });
        self.0.push(b'"');
        self.policies(&shadow.policies);
        self.0.push(b'}');
    }

    fn policies(&mut self, policies: &[Arc<str>]) {
        self.texts(name!("policies"), policies.iter().map(|policy| &**policy));
    }

    fn texts<'a>(&mut self, name: &'static [u8], texts: impl Iterator<Item = &'a str>) {
        self.0.extend_from_slice(name);
        self.0.push(b'[');
        for (at, text) in texts.take(TEXTS_MAX).enumerate() {
            if at > 0 {
                self.0.push(b',');
            }
            self.quoted(text);
        }
        self.0.push(b']');
    }

    fn number(&mut self, name: &'static [u8], number: u64) {
        self.0.extend_from_slice(name);
        self.0.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }

    fn address(&mut self, name: &'static [u8], address: IpAddr) {
        self.0.extend_from_slice(name);
        self.0.push(b'"');
        match address {
            IpAddr::V4(address) => {
                for (at, octet) in address.octets().into_iter().enumerate() {
                    if at > 0 {
                        self.0.push(b'.');
                    }
                    self.0.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
                }
            }
            // Writing to memory cannot fail.
            IpAddr::V6(address) => drop(write!(self.0, "{address}")),
        }
        self.0.push(b'"');
    }

    /// Milliseconds with microseconds behind the point.
    fn millis(&mut self, name: &'static [u8], duration: Option<Duration>) {
        let Some(duration) = duration else { return };
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.number(name, micros / 1000);
        let rest = micros % 1000;
        let digit = |of: u64| b'0' + u8::try_from(rest / of % 10).unwrap_or(0);
        self.0.extend_from_slice(&[b'.', digit(100), digit(10), digit(1)]);
    }

    /// Cut to its limit, control characters replaced: JSON escapes C0 only, terminals obey C1, too.
    fn quoted(&mut self, text: &str) {
        let text = text.get(..text.floor_char_boundary(TEXT_BYTES_MAX)).unwrap_or_default();
        // Without an early end several bytes are looked at at once.
        let is_plain = |b: u8| (b' '..=b'~').contains(&b) & (b != b'"') & (b != b'\\');
        if text.bytes().fold(true, |plain, b| plain & is_plain(b)) {
            self.0.push(b'"');
            self.0.extend_from_slice(text.as_bytes());
            self.0.push(b'"');
            return;
        }
        // A string into memory: nothing here can fail.
        let written = serde_json::to_writer(&mut self.0, &text.replace(is_obeyed, "\u{fffd}"));
        debug_assert!(written.is_ok(), "a text must serialize");
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(b"}\n");
        self.0
    }
}

/// Control characters and the line breaks and directions that Unicode adds to them (UAX #9 §2 for the directions).
fn is_obeyed(c: char) -> bool {
    let mark = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}');
    mark || c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
