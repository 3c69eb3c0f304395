//! Owns the keys of machines: hashed records, found without telling by time how much of a guess was right.
//! Makes keys, too; it keeps none of those.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::credential::API_KEY_START;
use super::{ApiKey, Refused};
use crate::principal::{CredentialId, Principal, PrincipalKind};

/// Random bytes of a new key: as many as its hash has.
const KEY_BYTES: usize = 32;

/// A key that was just made. It exists here only: whoever drops it without showing it has lost it.
pub struct NewKey {
    key: String,
    /// SHA-256 of the whole key, as the configuration keeps it.
    pub sha256: [u8; 32],
}

/// The system gave no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random bytes")]
pub struct NoRandomness;

/// The configured keys.
pub(super) struct ApiKeys(Vec<Record>);

struct Record {
    sha256: [u8; 32],
    principal: Arc<Principal>,
}

// === impl NewKey ===

impl NewKey {
    /// Makes a key: `tb_` and 256 random bits in the URL-safe alphabet.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut bytes = [0; KEY_BYTES];
        SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
        let key = format!("{API_KEY_START}{}", URL_SAFE_NO_PAD.encode(bytes));
        let sha256 = Sha256::digest(key.as_bytes()).into();
        Ok(Self { key, sha256 })
    }

    /// The key itself, to be shown once.
    pub fn expose(&self) -> &str {
        &self.key
    }
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewKey([redacted])")
    }
}

// === impl ApiKeys ===

impl ApiKeys {
    pub(super) fn new(keys: Vec<ApiKey>) -> Self {
        Self(keys.into_iter().map(Record::new).collect())
    }

    pub(super) fn verify(&self, key: &str, now: u64) -> Result<Arc<Principal>, Refused> {
        let presented: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        // Every record is compared: the time tells how many there are, not which one came close.
        let mut found = None;
        for record in &self.0 {
            if bool::from(record.sha256.ct_eq(&presented)) {
                found = Some(&record.principal);
            }
        }
        let principal = found.ok_or(Refused::Invalid("API key unknown"))?;
        if principal.expires_at.is_some_and(|end| now >= end) {
            return Err(Refused::Expired);
        }
        Ok(Arc::clone(principal))
    }
}

// === impl Record ===

impl Record {
    fn new(key: ApiKey) -> Self {
        let shared = |names: Vec<String>| names.into_iter().map(Arc::from).collect();
        let mut principal = Principal::new(
            PrincipalKind::Service,
            format!("key:{}", key.id),
            key.tenant,
            shared(key.roles),
            shared(key.scopes),
            key.plan.map(Arc::from),
            key.expires_at,
        );
        principal.credential = Some(CredentialId { id: None, sha256: key.sha256, audiences: Vec::new() });
        Self { sha256: key.sha256, principal: Arc::new(principal) }
    }
}
