//! Owns the credential that an AgentOS gets to see: minted per user and scopes, fixed, none, or the caller's.
//! Does not decide whether a caller may call: by then policy has allowed it.
//! Invariant: a caller's token leaves only under `Forward`; a minted token names one user and one row's scopes.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use quick_cache::sync::Cache;
use serde::Serialize;

use super::jwt::{BadKey, MintAlgorithm, Signer};
use super::user_id::UpstreamUser;
use crate::agentos::operation::Operation;
use crate::secret::Secret;

/// How long a minted token lives.
const LIFETIME: Duration = Duration::from_secs(300);
/// A cached token with less time left is replaced.
const REFRESH_BEFORE: Duration = Duration::from_secs(60);
/// How far `iat` is put back: AgentOS refuses tokens from its future, and clocks differ.
const BACKDATE: Duration = Duration::from_secs(30);
/// Most minted tokens that are kept per cluster.
const MINTED_MAX: usize = 10_000;
/// The scope that sees every owner's rows.
const ADMIN: &str = "agent_os:admin";

/// What a cluster shows to its AgentOS.
#[derive(Debug, Clone)]
pub enum CredentialSettings {
    /// A JWT of ours per upstream user and scopes.
    Mint {
        /// Signature algorithm: the one that the AgentOS is set to.
        algorithm: MintAlgorithm,
        /// HMAC secret, or private key as PEM.
        key: Secret,
        /// The `aud` claim: the AgentOS id.
        audience: String,
    },
    /// One fixed token (`OS_SECURITY_KEY`).
    Bearer(Secret),
    /// Nothing: the AgentOS has no authentication.
    None,
    /// The caller's own token, for HTTP calls only.
    Forward,
}

/// Makes `Authorization` values.
pub(super) enum Credential {
    Mint(Box<Minter>),
    Bearer(HeaderValue),
    None,
    Forward,
}

pub(super) struct Minter {
    signer: Signer,
    audience: String,
    minted: Cache<Grant, Minted>,
}

/// What a minted token says; equal grants share a token.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Grant {
    /// `None` is the lookup identity.
    user: Option<UpstreamUser>,
    scopes: &'static [&'static str],
    extra: &'static [&'static str],
}

#[derive(Clone)]
struct Minted {
    value: HeaderValue,
    expires_at: u64,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<&'a str>,
    aud: &'a str,
    iat: u64,
    exp: u64,
    scopes: Vec<&'static str>,
}

/// Why a credential cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCredential {
    /// The signing key does not fit.
    #[error(transparent)]
    Key(#[from] BadKey),
    /// The fixed token holds bytes that no header may carry.
    #[error("the bearer token is empty or holds characters that a header cannot carry")]
    Bearer,
}

// === impl Credential ===

impl Credential {
    pub(super) fn new(settings: &CredentialSettings) -> Result<Self, BadCredential> {
        match settings {
            CredentialSettings::Mint { algorithm, key, audience } => {
                let signer = Signer::new(*algorithm, key)?;
                let minted = Cache::new(MINTED_MAX);
                Ok(Self::Mint(Box::new(Minter { signer, audience: audience.clone(), minted })))
            }
            CredentialSettings::Bearer(secret) => {
                let token = secret.expose_str().filter(|token| !token.is_empty());
                token.and_then(bearer).map(Self::Bearer).ok_or(BadCredential::Bearer)
            }
            CredentialSettings::None => Ok(Self::None),
            CredentialSettings::Forward => Ok(Self::Forward),
        }
    }

    /// The value for a call of a user.
    pub(super) fn for_user(
        &self,
        user: &UpstreamUser,
        operation: &Operation,
        caller_token: Option<&str>,
        now: SystemTime,
    ) -> Option<HeaderValue> {
        match self {
            Self::Mint(minter) => minter.value(grant(user, operation), now),
            Self::Bearer(value) => Some(value.clone()),
            Self::None => None,
            Self::Forward => caller_token.and_then(bearer),
        }
    }

    /// The value of the lookup identity, which sees every owner's rows; under `Forward` the caller looks for itself.
    pub(super) fn for_lookup(&self, caller_token: Option<&str>, now: SystemTime) -> Option<HeaderValue> {
        match self {
            Self::Mint(minter) => minter.value(Grant { user: None, scopes: &[ADMIN], extra: &[] }, now),
            Self::Bearer(value) => Some(value.clone()),
            Self::None => None,
            Self::Forward => caller_token.and_then(bearer),
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mint(_) => "Mint([redacted])",
            Self::Bearer(_) => "Bearer([redacted])",
            Self::None => "None",
            Self::Forward => "Forward",
        })
    }
}

// === impl Minter ===

impl Minter {
    fn value(&self, grant: Grant, now: SystemTime) -> Option<HeaderValue> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if let Some(minted) = self.minted.get(&grant)
            && minted.expires_at > now + REFRESH_BEFORE.as_secs()
            // A clock that was set back must not stretch a token's life.
            && minted.expires_at <= now + LIFETIME.as_secs()
        {
            return Some(minted.value);
        }
        let expires_at = now + LIFETIME.as_secs();
        let value = self.mint(&grant, now, expires_at)?;
        self.minted.insert(grant, Minted { value: value.clone(), expires_at });
        Some(value)
    }

    fn mint(&self, grant: &Grant, now: u64, exp: u64) -> Option<HeaderValue> {
        let more = grant.extra.iter().filter(|scope| !grant.scopes.contains(scope));
        let scopes = grant.scopes.iter().chain(more);
        let claims = Claims {
            iss: "tollbridge",
            sub: grant.user.as_ref().map(UpstreamUser::as_str),
            aud: &self.audience,
            iat: now.saturating_sub(BACKDATE.as_secs()),
            exp,
            scopes: scopes.copied().collect(),
        };
        let claims = serde_json::to_vec(&claims).ok()?;
        bearer(&self.signer.token(&claims).ok()?)
    }
}

/// The smallest grant with which AgentOS serves the row.
fn grant(user: &UpstreamUser, operation: &Operation) -> Grant {
    let extra = operation.upstream_scopes();
    Grant { user: Some(user.clone()), scopes: operation.scopes, extra }
}

fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}
