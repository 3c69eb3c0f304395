//! Owns how limits are told: the state of one limit, a pass, a refusal, and their header fields.
//! Does not decide and does not choose status codes (`gateway` maps kinds to codes).

use std::sync::Arc;
use std::time::Duration;

use crate::principal::TenantId;

/// Usual size of one item of a header field.
const ITEM_BYTES: usize = 64;

/// The state of one limit at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitState {
    /// `requests`, `requests_per_second` … (several rates), `concurrent_runs`, `tokens_per_day`,
    /// `tokens_per_month`, `flood`.
    pub name: &'static str,
    /// The promised amount per window.
    pub limit: u64,
    /// What could be used right now.
    pub remaining: u64,
    /// The window of `limit`; zero for `concurrent_runs`.
    pub window: Duration,
    /// Time until everything is available again if nothing more is used; zero for `concurrent_runs`.
    pub reset: Duration,
}

/// A request's rate was spent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a pass carries the header fields of the answer"]
pub struct Pass {
    /// The request rates of the plan after this request, in the order of the plan.
    pub limits: Vec<LimitState>,
}

/// Why a quota refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A limit is used up.
    #[error(transparent)]
    Exceeded(Exceeded),
    /// No plan applies: the credential names one that does not exist, or there is no default.
    #[error(transparent)]
    NoPlan(NoPlan),
}

/// No plan applies to a caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no plan applies to tenant {tenant:?}: {}", self.reason())]
pub struct NoPlan {
    /// The caller's tenant.
    pub tenant: TenantId,
    /// The plan that the credential names and that does not exist.
    pub claimed: Option<Arc<str>>,
}

/// Which kind of limit is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExceededKind {
    /// Requests of one client address.
    Flood,
    /// Requests of the tenant.
    Rate,
    /// Runs in flight.
    Runs,
    /// Model tokens.
    Budget,
}

/// A limit is used up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("limit `{}` of {} is used up, next in {}s", limit.name, limit.limit, retry_after.as_secs())]
pub struct Exceeded {
    /// Which kind.
    pub kind: ExceededKind,
    /// The tightest limit that refused.
    pub limit: LimitState,
    /// When to come back: whole seconds, rounded up, at least one (RFC 9110 §10.2.3).
    pub retry_after: Duration,
    /// The caller's plan; empty for the flood guard.
    pub plan: Arc<str>,
}

// === impl LimitState ===

impl LimitState {
    /// One item of `RateLimit-Policy`, such as `"requests";q=60;w=60`.
    ///
    /// draft-ietf-httpapi-ratelimit-headers-11 §3: `q` is the quota, `w` its window in seconds,
    /// `qu` the unit where it is not requests.
    pub fn policy_header(&self) -> String {
        let mut text = String::with_capacity(ITEM_BYTES);
        self.write_policy(&mut text);
        text
    }

    fn write_policy(&self, text: &mut String) {
        self.write_item(text, ";q=", self.limit, ";w=", self.window);
        match self.name {
            "concurrent_runs" => text.push_str(";qu=\"concurrent-requests\""),
            name if name.starts_with("tokens") => text.push_str(";qu=\"tokens\""),
            _ => {}
        }
    }

    /// The name, a count, and seconds where the limit has a window.
    fn write_item(&self, text: &mut String, count_key: &str, count: u64, time_key: &str, time: Duration) {
        let mut digits = itoa::Buffer::new();
        for part in ["\"", self.name, "\"", count_key, digits.format(count)] {
            text.push_str(part);
        }
        if !self.window.is_zero() {
            text.push_str(time_key);
            text.push_str(digits.format(seconds_up(time)));
        }
    }

    /// One item of `RateLimit`, such as `"requests";r=37;t=12`.
    ///
    /// draft-ietf-httpapi-ratelimit-headers-11 §4: `r` is what is left, `t` the seconds until it is
    /// whole again.
    pub fn state_header(&self) -> String {
        let mut text = String::with_capacity(ITEM_BYTES);
        self.write_state(&mut text);
        text
    }

    fn write_state(&self, text: &mut String) {
        self.write_item(text, ";r=", self.remaining, ";t=", self.reset);
    }

    /// The value of `RateLimit-Policy`; `None` without limits.
    pub fn policy_headers(limits: &[Self]) -> Option<String> {
        joined(limits, Self::write_policy)
    }

    /// The value of `RateLimit`; `None` without limits.
    pub fn state_headers(limits: &[Self]) -> Option<String> {
        joined(limits, Self::write_state)
    }

    /// The used share of the limit, 0 to 1.
    pub fn used_ratio(&self) -> f64 {
        let limit = self.limit.max(1);
        limit.saturating_sub(self.remaining) as f64 / limit as f64
    }
}

// === impl Pass, Exceeded, NoPlan ===

impl Pass {
    /// The value of `RateLimit-Policy`; `None` when the plan has no rates.
    pub fn policy_header(&self) -> Option<String> {
        LimitState::policy_headers(&self.limits)
    }

    /// The value of `RateLimit`; `None` when the plan has no rates.
    pub fn state_header(&self) -> Option<String> {
        LimitState::state_headers(&self.limits)
    }
}

fn joined(limits: &[LimitState], write: fn(&LimitState, &mut String)) -> Option<String> {
    let mut text = String::with_capacity(limits.len() * ITEM_BYTES);
    for limit in limits {
        if !text.is_empty() {
            text.push_str(", ");
        }
        write(limit, &mut text);
    }
    (!text.is_empty()).then_some(text)
}

impl Exceeded {
    pub(super) fn new(kind: ExceededKind, limit: LimitState, wait: Duration, plan: Arc<str>) -> Self {
        Self { kind, limit, retry_after: Duration::from_secs(seconds_up(wait).max(1)), plan }
    }

    /// The value of `Retry-After`: whole seconds, at least 1.
    pub fn retry_after_secs(&self) -> u64 {
        self.retry_after.as_secs()
    }
}

impl NoPlan {
    fn reason(&self) -> String {
        match &self.claimed {
            Some(plan) => format!("its credential names `{plan}`, which does not exist"),
            None => "it has none and there is no default plan".to_owned(),
        }
    }
}

fn seconds_up(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(name: &'static str, limit: u64, remaining: u64, window: u64, reset_ms: u64) -> LimitState {
        let (window, reset) = (Duration::from_secs(window), Duration::from_millis(reset_ms));
        LimitState { name, limit, remaining, window, reset }
    }

    #[test]
    fn header_fields_are_structured_and_round_up() {
        let pass = Pass {
            limits: vec![
                requests("requests_per_second", 5, 4, 1, 200),
                requests("requests_per_minute", 60, 37, 60, 11_001),
            ],
        };
        assert_eq!(
            pass.policy_header().as_deref(),
            Some(r#""requests_per_second";q=5;w=1, "requests_per_minute";q=60;w=60"#)
        );
        assert_eq!(
            pass.state_header().as_deref(),
            Some(r#""requests_per_second";r=4;t=1, "requests_per_minute";r=37;t=12"#)
        );
        assert_eq!(Pass { limits: Vec::new() }.policy_header(), None);
    }

    #[test]
    fn units_other_than_requests_are_named() {
        let runs = requests("concurrent_runs", 2, 1, 0, 0);
        assert_eq!(runs.policy_header(), r#""concurrent_runs";q=2;qu="concurrent-requests""#);
        assert_eq!(runs.state_header(), r#""concurrent_runs";r=1"#);
        let tokens = requests("tokens_per_day", 50_000, 1, 86_400, 3_600_000);
        assert_eq!(tokens.policy_header(), r#""tokens_per_day";q=50000;w=86400;qu="tokens""#);
        assert_eq!(tokens.state_header(), r#""tokens_per_day";r=1;t=3600"#);
    }

    #[test]
    fn retry_after_is_never_zero() {
        let limit = requests("requests", 1, 0, 60, 0);
        for (wait_ms, secs) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2)] {
            let refusal = Exceeded::new(ExceededKind::Rate, limit, Duration::from_millis(wait_ms), "free".into());
            assert_eq!(refusal.retry_after_secs(), secs, "{wait_ms} ms");
        }
    }
}
