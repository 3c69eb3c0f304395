//! Owns the keys of machines: hashed records, found without telling by time how much of a guess was right.
//! Does not make keys (`tollbridge` prints the hash of one that the operator made).

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{ApiKey, Refused};
use crate::principal::{Principal, PrincipalKind};

/// The configured keys.
pub(super) struct ApiKeys(Vec<Record>);

struct Record {
    sha256: [u8; 32],
    principal: Arc<Principal>,
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
        let principal = Principal::new(
            PrincipalKind::Service,
            format!("key:{}", key.id),
            key.tenant,
            shared(key.roles),
            shared(key.scopes),
            key.plan.map(Arc::from),
            key.expires_at,
        );
        Self { sha256: key.sha256, principal: Arc::new(principal) }
    }
}
