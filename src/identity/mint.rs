//! Owns development tokens: what `tollbridge token` prints, made to pass this module's own rules.
//! Does not mint credentials for AgentOS (`cluster`).

use std::time::{Duration, SystemTime};

use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Map, Value, json};

use super::key::to_library;
use super::{Algorithm, Claims, unix_seconds};
use crate::principal::TenantId;
use crate::secret::Secret;

/// What a development token says.
#[derive(Debug, Clone)]
pub struct Mint<'a> {
    /// `iss`.
    pub issuer: &'a str,
    /// `aud`.
    pub audience: &'a str,
    /// `sub`.
    pub subject: &'a str,
    /// The tenant claim; `None` leaves it out.
    pub tenant: Option<&'a TenantId>,
    /// Roles.
    pub roles: &'a [String],
    /// Scopes.
    pub scopes: &'a [String],
    /// Plan.
    pub plan: Option<&'a str>,
    /// How long it is valid.
    pub ttl: Duration,
    /// Signature algorithm.
    pub algorithm: Algorithm,
    /// The shared secret, or a private key in PEM (PKCS#8).
    pub key: &'a Secret,
    /// Names of the claims.
    pub claims: &'a Claims,
}

/// The token could not be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// The key is not one for this algorithm.
    #[error(
        "the key does not fit algorithm `{0}`\nhelp: HS needs the shared secret, the others a PKCS#8 private key in PEM"
    )]
    KeyMisfit(Algorithm),
}

/// Signs a development token.
///
/// # Errors
/// [`MintError::KeyMisfit`] when the key cannot sign with the algorithm.
pub fn mint(what: &Mint<'_>, now: SystemTime) -> Result<String, MintError> {
    let misfit = MintError::KeyMisfit(what.algorithm);
    let bytes = what.key.expose();
    let key = match what.algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => EncodingKey::from_secret(bytes),
        Algorithm::RS256 | Algorithm::RS384 | Algorithm::RS512 => {
            EncodingKey::from_rsa_pem(bytes).map_err(|_| misfit)?
        }
        Algorithm::PS256 | Algorithm::PS384 | Algorithm::PS512 => {
            EncodingKey::from_rsa_pem(bytes).map_err(|_| misfit)?
        }
        Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_pem(bytes).map_err(|_| misfit)?,
        Algorithm::EdDSA => EncodingKey::from_ed_pem(bytes).map_err(|_| misfit)?,
    };
    let header = Header::new(to_library(what.algorithm));
    jsonwebtoken::encode(&header, &payload(what, unix_seconds(now)), &key).map_err(|_| misfit)
}

fn payload(what: &Mint<'_>, now: u64) -> Map<String, Value> {
    let mut claims = Map::new();
    let mut put = |name: &str, value: Value| drop(claims.insert(name.to_owned(), value));
    put(&what.claims.roles, json!(what.roles));
    put(&what.claims.scopes, json!(what.scopes));
    if let Some(tenant) = what.tenant {
        put(&what.claims.tenant, json!(tenant.as_str()));
    }
    if let Some(plan) = what.plan {
        put(&what.claims.plan, json!(plan));
    }
    // Last, so that no claim name of the configuration can replace them.
    put("iss", json!(what.issuer));
    put("aud", json!(what.audience));
    put("sub", json!(what.subject));
    put("iat", json!(now));
    put("exp", json!(now.saturating_add(what.ttl.as_secs())));
    claims
}
