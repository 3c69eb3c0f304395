//! Owns the caller as a value: who calls, for which tenant, with which roles and scopes.
//! Does not verify credentials (`identity`) and does not decide anything (`policy`).
//! Invariant: a `TenantId` never holds `~`, so `{tenant}~{subject}` splits in one way only.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Longest tenant name, in bytes.
pub const TENANT_BYTES_MAX: usize = 64;
/// Longest subject, in bytes; longer ones are refused by `identity`.
pub const SUBJECT_BYTES_MAX: usize = 256;

/// The role that reaches what concerns a whole AgentOS. Whoever may assert it is stated per issuer.
pub const PLATFORM_ADMIN: &str = "platform_admin";

/// A tenant's name: 1 to 64 characters of `[A-Za-z0-9._-]`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Arc<str>);

/// Why a tenant name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tenant name `{0}` must be 1 to 64 characters of `A-Z a-z 0-9 . _ -`")]
pub struct BadTenant(pub String);

/// Whether a person or a machine calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PrincipalKind {
    /// A person, by JWT.
    User,
    /// A machine, by API key.
    Service,
}

/// Which credential a caller presented, so far as it can be revoked, and what it was made for. Says nothing about what
/// the caller may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialId {
    /// The token's `jti`.
    pub id: Option<Arc<str>>,
    /// SHA-256 of the token or API key.
    pub sha256: [u8; 32],
    /// The accepted audiences that the token names; an API key names none.
    pub audiences: Vec<Arc<str>>,
}

/// A client certificate that was verified against the authorities of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// What it calls its holder: `subject:…` (RFC 4514), `dns:…`, `uri:…`, `email:…`.
    pub names: Vec<String>,
    /// SHA-256 of the certificate.
    pub sha256: [u8; 32],
    /// When it ends, in seconds since the Unix epoch.
    pub expires_at: u64,
}

/// A verified caller. Built by `identity` only, shared by `Arc`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Person or machine.
    pub kind: PrincipalKind,
    /// The subject as its issuer names it; `key:<id>` for API keys.
    pub subject: Arc<str>,
    /// The tenant the caller belongs to.
    pub tenant: TenantId,
    /// Role names, sorted and unique.
    pub roles: Vec<Arc<str>>,
    /// AgentOS scope strings (`agents:run`, `agents:web-agent:run`), sorted and unique.
    pub scopes: Vec<Arc<str>>,
    /// The plan that the credential names, if any; the tenant table wins over it.
    pub plan: Option<Arc<str>>,
    /// When the credential ends, in seconds since the Unix epoch; `None` for API keys without expiry.
    pub expires_at: Option<u64>,
    /// The credential; set by `identity`, never part of a decision.
    pub credential: Option<CredentialId>,
    /// Hash over everything that a decision may read: two principals with equal versions decide alike.
    pub version: u64,
}

impl Principal {
    /// Builds a principal; sorts roles and scopes and computes its version.
    pub fn new(
        kind: PrincipalKind,
        subject: impl Into<Arc<str>>,
        tenant: TenantId,
        mut roles: Vec<Arc<str>>,
        mut scopes: Vec<Arc<str>>,
        plan: Option<Arc<str>>,
        expires_at: Option<u64>,
    ) -> Self {
        roles.sort();
        roles.dedup();
        scopes.sort();
        scopes.dedup();
        let subject = subject.into();
        let mut hasher = DefaultHasher::new();
        (kind, &subject, &tenant, &roles, &scopes, &plan).hash(&mut hasher);
        Self { kind, subject, tenant, roles, scopes, plan, expires_at, credential: None, version: hasher.finish() }
    }

    /// Says whether the caller has the role.
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|r| &**r == role)
    }
}

// === impl TenantId ===

impl TenantId {
    /// Checks and wraps a tenant name.
    ///
    /// # Errors
    /// [`BadTenant`] when the name is empty, longer than 64 bytes, or holds another character.
    pub fn new(name: &str) -> Result<Self, BadTenant> {
        let fits = (1..=TENANT_BYTES_MAX).contains(&name.len());
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if fits && plain { Ok(Self(name.into())) } else { Err(BadTenant(name.chars().take(80).collect())) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenant_names_are_plain() {
        for good in ["acme", "a", "A-1_b.c", &"x".repeat(64)] {
            assert!(TenantId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a~b", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(TenantId::new(bad).is_err(), "{bad}");
        }
    }
}
