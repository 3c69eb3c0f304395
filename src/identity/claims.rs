//! Owns what claims mean: times, audience, subject, tenant, roles, scopes, plan.
//! Does not verify signatures (`issuer`): nothing here is believed before that.
//! Invariant: a claim of an unexpected type grants nothing; where it is required, the token is refused.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::{Claims, Issuer, Refused, UnknownTenant, json};
use crate::principal::{PLATFORM_ADMIN, Principal, PrincipalKind, SUBJECT_BYTES_MAX, TenantId};

/// Longest role, scope or plan name, in bytes; longer ones grant nothing.
const NAME_BYTES_MAX: usize = 256;

/// The claims of a token.
pub(super) struct ClaimSet(Map<String, Value>);

/// How claims become a principal.
pub(super) struct Rules {
    names: Claims,
    leeway_seconds: u64,
    unknown_tenant: UnknownTenant,
    tenants: HashSet<TenantId>,
}

// === impl ClaimSet ===

impl ClaimSet {
    pub(super) fn parse(payload: &[u8]) -> Result<Self, Refused> {
        json::object(payload).map(Self).map_err(|json::Malformed| Refused::Invalid("claims are not strict JSON"))
    }

    /// The issuer that the token claims to be from.
    pub(super) fn issuer(&self) -> Result<&str, Refused> {
        self.text("iss").ok_or(Refused::Invalid("claim `iss` missing or not a string"))
    }

    /// Sets what the claims leave out.
    pub(super) fn fill(&mut self, name: &str, value: impl FnOnce() -> Value) {
        self.0.entry(name).or_insert_with(value);
    }

    /// The token's own id, where it can be one.
    pub(super) fn token_id(&self) -> Option<Arc<str>> {
        self.text("jti").filter(|id| (1..=NAME_BYTES_MAX).contains(&id.len())).map(Arc::from)
    }

    /// The accepted audiences that the token names.
    pub(super) fn audiences(&self, accepted: &[String]) -> Vec<Arc<str>> {
        let named = |audience: &&String| match self.0.get("aud") {
            Some(Value::String(one)) => one == *audience,
            Some(Value::Array(list)) => list.iter().any(|one| one.as_str() == Some(audience)),
            None | Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => false,
        };
        accepted.iter().filter(named).map(|audience| audience.as_str().into()).collect()
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str)
    }

    /// Whole seconds only: RFC 7519 §2 allows fractions, no issuer needs them.
    fn seconds(&self, name: &str) -> Result<Option<u64>, Refused> {
        match self.0.get(name) {
            None => Ok(None),
            Some(value) => {
                value.as_u64().map(Some).ok_or(Refused::Invalid("a time claim is not a whole number of seconds"))
            }
        }
    }

    /// Names in a list, or in one space-delimited string; any other shape holds none.
    fn names(&self, name: &str) -> Vec<Arc<str>> {
        let fits = |s: &&str| (1..=NAME_BYTES_MAX).contains(&s.len()) && !s.chars().any(char::is_control);
        match self.0.get(name) {
            Some(Value::String(text)) => text.split(' ').filter(fits).map(Arc::from).collect(),
            Some(Value::Array(list)) => {
                let texts: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
                texts.unwrap_or_default().into_iter().filter(fits).map(Arc::from).collect()
            }
            None | Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => Vec::new(),
        }
    }
}

// === impl Rules ===

impl Rules {
    pub(super) fn new(names: Claims, leeway: Duration, unknown_tenant: UnknownTenant, tenants: Vec<TenantId>) -> Self {
        Self { names, leeway_seconds: leeway.as_secs(), unknown_tenant, tenants: tenants.into_iter().collect() }
    }

    pub(super) fn leeway_seconds(&self) -> u64 {
        self.leeway_seconds
    }

    pub(super) fn check_tenant(&self, tenant: &TenantId) -> Result<(), Refused> {
        match self.unknown_tenant {
            UnknownTenant::Deny if !self.tenants.contains(tenant) => Err(Refused::UnknownTenant),
            UnknownTenant::Deny | UnknownTenant::DefaultPlan => Ok(()),
        }
    }

    /// Builds the caller from claims whose signature was verified.
    pub(super) fn principal(&self, claims: &ClaimSet, issuer: &Issuer, now: u64) -> Result<Principal, Refused> {
        let expires_at = self.check_times(claims, now)?;
        check_audience(claims, &issuer.audiences)?;
        let subject = subject(claims, issuer)?;
        let tenant = self.tenant(claims, issuer)?;
        let mut roles = claims.names(&self.names.roles);
        roles.retain(|role| issuer.platform_admin || **role != *PLATFORM_ADMIN);
        let scopes =
            [self.names.scopes.as_str(), "scope", "scp"].into_iter().flat_map(|name| claims.names(name)).collect();
        let plan = claims.text(&self.names.plan).filter(|p| (1..=NAME_BYTES_MAX).contains(&p.len())).map(Arc::from);
        Ok(Principal::new(PrincipalKind::User, subject, tenant, roles, scopes, plan, Some(expires_at)))
    }

    /// RFC 7519 §4.1.4: "on or after which the JWT MUST NOT be accepted".
    fn check_times(&self, claims: &ClaimSet, now: u64) -> Result<u64, Refused> {
        let expires_at = claims.seconds("exp")?.ok_or(Refused::Invalid("claim `exp` missing"))?;
        let latest_start = now.saturating_add(self.leeway_seconds);
        if claims.seconds("nbf")?.is_some_and(|t| t > latest_start) {
            return Err(Refused::Invalid("token is not valid yet"));
        }
        if claims.seconds("iat")?.is_some_and(|t| t > latest_start) {
            return Err(Refused::Invalid("token was issued in the future"));
        }
        if now >= expires_at.saturating_add(self.leeway_seconds) {
            return Err(Refused::Expired);
        }
        Ok(expires_at)
    }

    fn tenant(&self, claims: &ClaimSet, issuer: &Issuer) -> Result<TenantId, Refused> {
        let tenant = match (claims.0.get(&self.names.tenant), &issuer.tenant) {
            (Some(Value::String(name)), _) => {
                TenantId::new(name).map_err(|_| Refused::Invalid("tenant claim is not a tenant name"))?
            }
            (None, Some(fallback)) => fallback.clone(),
            (None, None) => return Err(Refused::Invalid("tenant claim missing")),
            (Some(_), _) => return Err(Refused::Invalid("tenant claim is not a string")),
        };
        if issuer.tenants.as_ref().is_some_and(|allowed| !allowed.contains(&tenant)) {
            return Err(Refused::Invalid("issuer may not assert this tenant"));
        }
        self.check_tenant(&tenant)?;
        Ok(tenant)
    }
}

/// RFC 7519 §4.1.3, exact members only.
fn check_audience(claims: &ClaimSet, accepted: &[String]) -> Result<(), Refused> {
    let ours = |audience: &str| accepted.iter().any(|a| a == audience);
    let fits = match claims.0.get("aud") {
        Some(Value::String(one)) => ours(one),
        Some(Value::Array(list)) => {
            list.iter().all(Value::is_string) && list.iter().filter_map(Value::as_str).any(ours)
        }
        None | Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => false,
    };
    if fits { Ok(()) } else { Err(Refused::Invalid("token is not for this audience")) }
}

fn subject(claims: &ClaimSet, issuer: &Issuer) -> Result<String, Refused> {
    let sub = claims.text("sub").ok_or(Refused::Invalid("claim `sub` missing or not a string"))?;
    if sub.is_empty() || sub.chars().any(char::is_control) {
        return Err(Refused::Invalid("subject is empty or has control characters"));
    }
    // Before and after the prefix: both are names that somebody may compare with.
    let subject = format!("{}{sub}", issuer.subject_prefix.as_deref().unwrap_or_default());
    if is_reserved(sub) || is_reserved(&subject) {
        return Err(Refused::Invalid("subject is reserved"));
    }
    if subject.len() > SUBJECT_BYTES_MAX {
        return Err(Refused::Invalid("subject too long"));
    }
    Ok(subject)
}

/// Names that mean API keys and client certificates here (`key:`, `cert:`) or AgentOS's own principals (`sa:`, `__scheduler__`).
pub(super) fn is_reserved(subject: &str) -> bool {
    ["key:", "cert:", "sa:", "__"].iter().any(|start| subject.starts_with(start))
}
