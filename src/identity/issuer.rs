//! Owns one configured issuer with its keys at hand.
//! Does not read claims (`claims`).
//! Invariant: a token is tried only with algorithms and keys of the issuer that it names.

use std::sync::Arc;
use std::time::Instant;

use super::jwks::Jwks;
use super::jws::Jws;
use super::key::VerifyingKey;
use super::{Issuer, KeyFetch, KeySource, Refused};

/// An issuer and its keys.
pub(super) struct IssuerKeys {
    name: Arc<str>,
    settings: Issuer,
    keys: Keys,
}

enum Keys {
    Configured(Box<VerifyingKey>),
    Published(Box<Jwks>),
}

// === impl IssuerKeys ===

impl IssuerKeys {
    /// The error is a sentence for the operator about the key.
    pub(super) fn new(settings: Issuer) -> Result<Self, String> {
        let keys = match &settings.keys {
            KeySource::Static(secret) => {
                Keys::Configured(Box::new(VerifyingKey::from_settings(secret, &settings.algorithms)?))
            }
            KeySource::Jwks { url } => {
                if let Some(shared) = settings.algorithms.iter().find(|a| a.is_symmetric()) {
                    return Err(format!(
                        "is published at a URL, where algorithm `{shared}` has no secret\nhelp: use RS, PS, ES or EdDSA"
                    ));
                }
                Keys::Published(Box::new(Jwks::new(url.clone())))
            }
        };
        Ok(Self { name: settings.issuer.as_str().into(), settings, keys })
    }

    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) fn settings(&self) -> &Issuer {
        &self.settings
    }

    /// Grows whenever the keys change; what was verified under an older number is verified again.
    pub(super) fn generation(&self) -> u64 {
        self.published().map_or(0, Jwks::generation)
    }

    pub(super) fn published(&self) -> Option<&Jwks> {
        match &self.keys {
            Keys::Configured(_) => None,
            Keys::Published(jwks) => Some(jwks),
        }
    }

    pub(super) async fn verify_signature(
        &self,
        jws: &Jws<'_>,
        fetch: &dyn KeyFetch,
        now: Instant,
    ) -> Result<(), Refused> {
        if !self.settings.algorithms.contains(&jws.algorithm) {
            return Err(Refused::Invalid("algorithm not allowed for this issuer"));
        }
        match &self.keys {
            // A configured key has no id: whatever the token says is not looked at.
            Keys::Configured(key) if key.fits(jws.algorithm) => {
                key.verify(jws.algorithm, jws.message.as_bytes(), jws.signature)
            }
            Keys::Configured(_) => Err(Refused::Invalid("algorithm does not fit the key")),
            Keys::Published(jwks) => jwks.verify(jws, fetch, now).await,
        }
    }
}
