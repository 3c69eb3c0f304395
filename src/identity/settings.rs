//! Owns what an operator says about identity, and the checks that need no key material.
//! Does not read files or TOML (`config`).

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::principal::TenantId;
use crate::secret::Secret;

/// Longest clock difference that may be tolerated.
pub const LEEWAY_MAX: Duration = Duration::from_secs(60);
/// Longest `subject_prefix`, in bytes.
const PREFIX_BYTES_MAX: usize = 64;

/// Everything that identity needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What happens to a good credential whose tenant is not in `tenants`.
    pub unknown_tenant: UnknownTenant,
    /// How long a stream may outlive its credential.
    pub stream_grace: Duration,
    /// File of revoked credentials; `server` reads it, and again when it changes.
    pub revoked: Option<PathBuf>,
    /// Clock difference to issuers, at most [`LEEWAY_MAX`].
    pub leeway: Duration,
    /// Who may vouch for users.
    pub issuers: Vec<Issuer>,
    /// Names of the claims.
    pub claims: Claims,
    /// Keys of machines.
    pub api_keys: Vec<ApiKey>,
    /// Client certificates of machines.
    pub certificates: Vec<CertificateHolder>,
    /// The tenants of the configuration.
    pub tenants: Vec<TenantId>,
}

/// What happens to callers of a tenant that the configuration does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownTenant {
    /// They are refused.
    Deny,
    /// They are served under the default plan.
    DefaultPlan,
}

/// One party that vouches for users.
#[derive(Debug, Clone)]
pub struct Issuer {
    /// The exact `iss`.
    pub issuer: String,
    /// Tenants that it may assert; `None`: any (only as the sole issuer).
    pub tenants: Option<Vec<TenantId>>,
    /// Whether its tokens may carry the role `platform_admin`, which reaches beyond a tenant; otherwise the role is
    /// left out of what they say.
    pub platform_admin: bool,
    /// Tenant of tokens that name none; `None`: such tokens are refused.
    pub tenant: Option<TenantId>,
    /// Put before every subject, so that two issuers of one tenant cannot name the same user.
    pub subject_prefix: Option<String>,
    /// A token must name one of these in `aud`.
    pub audiences: Vec<String>,
    /// Accepted signature algorithms.
    pub algorithms: Vec<Algorithm>,
    /// Where its keys come from.
    pub keys: KeySource,
}

/// Where an issuer's keys come from.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// A shared secret (HS algorithms) or a public key in PEM (the others).
    Static(Secret),
    /// A JSON Web Key Set behind a URL.
    Jwks {
        /// The URL.
        url: String,
    },
}

/// A signature algorithm (RFC 7518 §3.1, RFC 8037).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    HS256,
    /// HMAC with SHA-384.
    HS384,
    /// HMAC with SHA-512.
    HS512,
    /// RSA PKCS#1 v1.5 with SHA-256.
    RS256,
    /// RSA PKCS#1 v1.5 with SHA-384.
    RS384,
    /// RSA PKCS#1 v1.5 with SHA-512.
    RS512,
    /// RSA PSS with SHA-256.
    PS256,
    /// RSA PSS with SHA-384.
    PS384,
    /// RSA PSS with SHA-512.
    PS512,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// ECDSA on P-384 with SHA-384.
    ES384,
    /// Ed25519.
    EdDSA,
}

/// Names of the claims that carry what the gateway needs, at the top level of the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// The tenant's name.
    pub tenant: String,
    /// Role names: a list, or one space-delimited string.
    pub roles: String,
    /// Scopes beside `scope` and `scp`: a list, or one space-delimited string.
    pub scopes: String,
    /// The plan.
    pub plan: String,
}

/// The record of one machine's key; the key itself is not stored anywhere.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// Name; the subject is `key:<id>`.
    pub id: String,
    /// SHA-256 of the whole key, `tb_` included.
    pub sha256: [u8; 32],
    /// The tenant.
    pub tenant: TenantId,
    /// Roles.
    pub roles: Vec<String>,
    /// Scopes.
    pub scopes: Vec<String>,
    /// Plan, if the key names one.
    pub plan: Option<String>,
    /// End of validity in seconds since the Unix epoch.
    pub expires_at: Option<u64>,
}

/// Everything that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsError {
    /// The problems, in configuration order; never empty.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Configuration key, such as `identity.issuers[0].tenants`.
    pub key: String,
    /// What is wrong, and after a line break what helps.
    pub message: String,
}

/// Whom a client certificate stands for.
#[derive(Debug, Clone)]
pub struct CertificateHolder {
    /// Name; the subject is `cert:<id>`.
    pub id: String,
    /// A name that the certificate must have: `subject:…`, `dns:…`, `uri:…`, `email:…`.
    pub name: String,
    /// The tenant.
    pub tenant: TenantId,
    /// Roles.
    pub roles: Vec<String>,
    /// Scopes.
    pub scopes: Vec<String>,
    /// Plan, if one is named.
    pub plan: Option<String>,
}

// === impl Settings ===

impl Settings {
    /// Checks what can be said without looking into keys.
    pub(super) fn check(&self) -> Result<(), SettingsError> {
        let mut found = Problems::default();
        if self.leeway > LEEWAY_MAX {
            found.add("identity.leeway", format!("must be at most {}s", LEEWAY_MAX.as_secs()));
        }
        let mut names = HashSet::new();
        for (i, issuer) in self.issuers.iter().enumerate() {
            if !names.insert(&issuer.issuer) {
                found.add(format!("identity.issuers[{i}].issuer"), format!("`{}` is configured twice", issuer.issuer));
            }
            issuer.check(i, &mut found);
        }
        self.check_separation(&mut found);
        self.check_api_keys(&mut found);
        self.check_certificates(&mut found);
        if found.0.is_empty() { Ok(()) } else { Err(SettingsError { problems: found.0 }) }
    }

    /// Two issuers must never be able to name the same user.
    fn check_separation(&self, found: &mut Problems) {
        for (i, a) in self.issuers.iter().enumerate() {
            if self.issuers.len() > 1 && a.tenants.is_none() {
                found.add(
                    format!("identity.issuers[{i}].tenants"),
                    "is required when there are several issuers\nhelp: name the tenants that this issuer may assert",
                );
            }
            for b in self.issuers.iter().skip(i + 1) {
                if let Some(tenant) = a.shared_tenant(b)
                    && !a.subjects_differ_from(b)
                {
                    found.add(
                        format!("identity.issuers[{i}].subject_prefix"),
                        format!(
                            "`{}` and `{}` both speak for tenant `{tenant}` and could name the same user\n\
                             help: give each a `subject_prefix`, neither the beginning of the other",
                            a.issuer, b.issuer
                        ),
                    );
                }
            }
        }
    }

    fn check_certificates(&self, found: &mut Problems) {
        let (mut ids, mut names) = (HashSet::new(), HashSet::new());
        for (i, holder) in self.certificates.iter().enumerate() {
            if !ids.insert(&holder.id) {
                found.add(format!("identity.certificates[{i}].id"), format!("`{}` is used twice", holder.id));
            }
            if !names.insert(&holder.name) {
                found.add(format!("identity.certificates[{i}].name"), format!("`{}` is used twice", holder.name));
            }
        }
    }

    fn check_api_keys(&self, found: &mut Problems) {
        let (mut ids, mut hashes) = (HashSet::new(), HashSet::new());
        for (i, key) in self.api_keys.iter().enumerate() {
            let plain = key.id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
            if !plain || key.id.is_empty() || key.id.len() > 64 {
                found.add(
                    format!("identity.api_keys[{i}].id"),
                    format!("`{}` must be 1 to 64 characters of `A-Z a-z 0-9 . _ -`", key.id.escape_debug()),
                );
            }
            if !ids.insert(&key.id) {
                found.add(format!("identity.api_keys[{i}].id"), format!("`{}` is used twice", key.id));
            }
            if !hashes.insert(&key.sha256) {
                found.add(format!("identity.api_keys[{i}].sha256"), "is the hash of another key, too");
            }
        }
    }
}

// === impl CertificateHolder ===

impl CertificateHolder {
    /// How names begin.
    pub const KINDS: [&'static str; 4] = ["subject:", "dns:", "uri:", "email:"];
}

// === impl Issuer ===

impl Issuer {
    fn check(&self, i: usize, found: &mut Problems) {
        let at = |field: &str| format!("identity.issuers[{i}].{field}");
        if self.issuer.is_empty() {
            found.add(at("issuer"), "must not be empty");
        }
        if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
            found.add(at("audiences"), "must name at least one audience, and no empty one");
        }
        if self.algorithms.is_empty() {
            found.add(at("algorithms"), "must name at least one algorithm");
        }
        if let KeySource::Jwks { url } = &self.keys
            && !is_web_address(url)
        {
            found.add(at("jwks_url"), "must be an http or https URL without user name and fragment");
        }
        if let (Some(tenant), Some(tenants)) = (&self.tenant, &self.tenants)
            && !tenants.contains(tenant)
        {
            found.add(at("tenant"), format!("`{tenant}` is not among the `tenants` of this issuer"));
        }
        if let Some(prefix) = &self.subject_prefix {
            let fits = (1..=PREFIX_BYTES_MAX).contains(&prefix.len()) && !prefix.chars().any(char::is_control);
            if !fits || super::claims::is_reserved(prefix) {
                found.add(
                    at("subject_prefix"),
                    format!(
                        "must be 1 to {PREFIX_BYTES_MAX} bytes without control characters and must not begin with \
                         `key:`, `cert:`, `sa:` or `__`"
                    ),
                );
            }
        }
    }

    /// A tenant that both issuers may assert; `*` when either may assert any.
    fn shared_tenant(&self, other: &Issuer) -> Option<String> {
        match (&self.tenants, &other.tenants) {
            (Some(ours), Some(theirs)) => ours.iter().find(|t| theirs.contains(t)).map(ToString::to_string),
            (None, _) | (_, None) => Some("*".to_owned()),
        }
    }

    fn subjects_differ_from(&self, other: &Issuer) -> bool {
        match (&self.subject_prefix, &other.subject_prefix) {
            (Some(a), Some(b)) => !a.starts_with(b.as_str()) && !b.starts_with(a.as_str()),
            (None, _) | (_, None) => false,
        }
    }
}

fn is_web_address(text: &str) -> bool {
    url::Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.fragment().is_none()
    })
}

// === impl Algorithm ===

impl Algorithm {
    /// Every algorithm, in the order of their names in documentation.
    pub const ALL: [Self; 12] = [
        Self::HS256,
        Self::HS384,
        Self::HS512,
        Self::RS256,
        Self::RS384,
        Self::RS512,
        Self::PS256,
        Self::PS384,
        Self::PS512,
        Self::ES256,
        Self::ES384,
        Self::EdDSA,
    ];

    /// The algorithm of this exact name; `none` is no algorithm.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.as_str() == name)
    }

    /// The name in `alg`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HS256 => "HS256",
            Self::HS384 => "HS384",
            Self::HS512 => "HS512",
            Self::RS256 => "RS256",
            Self::RS384 => "RS384",
            Self::RS512 => "RS512",
            Self::PS256 => "PS256",
            Self::PS384 => "PS384",
            Self::PS512 => "PS512",
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::EdDSA => "EdDSA",
        }
    }

    /// Says whether signer and verifier share one secret.
    pub const fn is_symmetric(self) -> bool {
        matches!(self, Self::HS256 | Self::HS384 | Self::HS512)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Claims ===

impl Default for Claims {
    fn default() -> Self {
        Self { tenant: "tenant".into(), roles: "roles".into(), scopes: "scopes".into(), plan: "plan".into() }
    }
}

// === impl SettingsError ===

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "`{}` {}", problem.key, problem.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for SettingsError {}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem { key: key.into(), message: message.into() });
    }
}
