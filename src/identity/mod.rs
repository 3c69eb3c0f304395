//! Owns WHO calls: one credential of a call becomes a verified [`Principal`].
//! Does not decide what the caller may do (`policy`), does not open connections (keys come through [`KeyFetch`]),
//! never logs and never counts.
//! Invariants: a token is verified only with the keys of the issuer that it names, and only with an algorithm that
//! this issuer and this key allow; nothing in a token chooses a key source.

mod api_key;
mod cache;
mod certificate;
mod claims;
mod credential;
mod issuer;
mod json;
mod jwks;
mod jws;
mod key;
mod mint;
mod revoked;
mod settings;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use sha2::{Digest as _, Sha256};

use crate::principal::{ClientCertificate, CredentialId, Principal};

pub use api_key::{NewKey, NoRandomness};
pub use credential::{Ambiguous, Credential, TOKEN_BYTES_MAX};
pub use jwks::{JWKS_BYTES_MAX, KeyChange};
pub use mint::{Mint, MintError, mint};
pub use revoked::{BadList, Revocations, RevokedList};
pub use settings::{
    Algorithm, ApiKey, CertificateHolder, Claims, Issuer, KeySource, LEEWAY_MAX, Problem, Settings, SettingsError,
    UnknownTenant,
};

/// How often [`Identity::refresh`] should run: a key that its issuer withdrew is refused at the latest after this.
const REFRESH_INTERVAL: Duration = Duration::from_secs(300);

/// Where key sets come from: `outbound` in the gateway, a script in tests.
///
/// An implementation follows no redirect, ends within a deadline of seconds, and reads at most [`JWKS_BYTES_MAX`].
pub trait KeyFetch: Send + Sync {
    /// Gets the document at `url`. The error is a sentence for the operator.
    fn fetch(&self, url: &str) -> BoxFuture<'_, Result<Bytes, String>>;
}

/// Why a credential was not accepted. The text is for the log: callers learn only that they are not authenticated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The call carries no credential.
    #[error("no credential")]
    Missing,
    /// The credential was good once.
    #[error("credential expired")]
    Expired,
    /// The credential is malformed, forged, or not meant for this gateway.
    #[error("credential refused: {0}")]
    Invalid(&'static str),
    /// The credential is good, its tenant is not served here.
    #[error("tenant of the credential is not in the configuration")]
    UnknownTenant,
    /// The credential is good and on the revocation list.
    #[error("credential revoked")]
    Revoked,
    /// The issuer's keys could not be had; the credential may be good.
    #[error("keys of the issuer are not available")]
    KeysUnavailable,
}

/// What one round of [`Identity::refresh`] did for one issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refreshed {
    /// The issuer.
    pub issuer: Arc<str>,
    /// Whether its keys changed, or why they could not be fetched (the keys in use stay).
    pub outcome: Result<KeyChange, String>,
}

/// Verifies credentials. One per configuration snapshot; shared by reference.
pub struct Identity {
    issuers: HashMap<Arc<str>, issuer::IssuerKeys>,
    api_keys: api_key::ApiKeys,
    certificates: certificate::Certificates,
    rules: claims::Rules,
    verified: cache::Verified,
    fetch: Arc<dyn KeyFetch>,
    stream_grace: Duration,
    revocations: Arc<Revocations>,
}

// === impl Identity ===

impl Identity {
    /// Builds the verifier. Key sets behind a URL are fetched by the first [`refresh`](Self::refresh), or when the
    /// first token needs them.
    ///
    /// # Errors
    /// [`SettingsError`] lists every problem of the settings: a key that does not fit its algorithms, issuers that
    /// could speak for each other's users, repeated names.
    pub fn new(settings: Settings, fetch: Arc<dyn KeyFetch>) -> Result<Self, SettingsError> {
        settings.check()?;
        let mut issuers = HashMap::with_capacity(settings.issuers.len());
        let mut problems = Vec::new();
        for (position, issuer) in settings.issuers.into_iter().enumerate() {
            match issuer::IssuerKeys::new(issuer) {
                Ok(keys) => drop(issuers.insert(Arc::clone(keys.name()), keys)),
                Err(message) => {
                    problems.push(Problem { key: format!("identity.issuers[{position}].key"), message });
                }
            }
        }
        if !problems.is_empty() {
            return Err(SettingsError { problems });
        }
        Ok(Self {
            issuers,
            api_keys: api_key::ApiKeys::new(settings.api_keys),
            certificates: certificate::Certificates::new(settings.certificates),
            rules: claims::Rules::new(settings.claims, settings.leeway, settings.unknown_tenant, settings.tenants),
            verified: cache::Verified::new(),
            fetch,
            stream_grace: settings.stream_grace,
            revocations: Arc::default(),
        })
    }

    /// Returns the caller behind the credential.
    ///
    /// # Errors
    /// [`Refused`]; every variant but `KeysUnavailable` is final for this credential.
    ///
    /// # Cancel safety
    /// Dropping the future may abandon a fetch of keys; the next caller starts it again.
    pub async fn verify(&self, credential: &Credential, now: SystemTime) -> Result<Arc<Principal>, Refused> {
        let now = unix_seconds(now);
        let principal = match credential.form() {
            credential::Form::ApiKey(key) => {
                let principal = self.api_keys.verify(key, now)?;
                self.rules.check_tenant(&principal.tenant)?;
                principal
            }
            credential::Form::Token(token) => self.verify_token(token, now).await?,
            credential::Form::Malformed(reason) => return Err(Refused::Invalid(reason)),
        };
        // After the cache of verified tokens: what it remembers is refused as well.
        if self.revocations.covers(&principal) { Err(Refused::Revoked) } else { Ok(principal) }
    }

    /// Says whether the configuration knows somebody by a name of this client certificate.
    pub fn knows(&self, certificate: &ClientCertificate) -> bool {
        self.certificates.knows(certificate)
    }

    /// Returns the caller behind a client certificate that TLS has verified.
    ///
    /// # Errors
    /// [`Refused`]; `Missing` when the configuration knows nobody by its names.
    pub fn verify_certificate(
        &self,
        certificate: &ClientCertificate,
        now: SystemTime,
    ) -> Result<Arc<Principal>, Refused> {
        let principal = self.certificates.verify(certificate, unix_seconds(now))?;
        self.rules.check_tenant(&principal.tenant)?;
        if self.revocations.covers(&principal) { Err(Refused::Revoked) } else { Ok(Arc::new(principal)) }
    }

    /// What is revoked now, for those who serve a caller for longer than one look.
    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    /// Replaces the revocation list, forgets verified tokens, and tells every stream; says whether anything changed.
    pub fn revoke(&self, list: RevokedList) -> bool {
        let changed = self.revocations.replace(list);
        if changed {
            self.forget_verified();
        }
        changed
    }

    /// Shares the revocations of a previous snapshot, so that streams which began under it hear of later lists.
    #[must_use]
    pub fn sharing_revocations(mut self, previous: &Identity) -> Self {
        self.revocations = Arc::clone(&previous.revocations);
        self
    }

    /// Returns the caller that these claims would stand for. Nothing is verified: this is for telling an operator
    /// what would happen to somebody, never for serving a call. `iss`, `aud` and `exp` may be left out.
    ///
    /// # Errors
    /// [`Refused`] as for a token with these claims.
    pub fn suppose(&self, claims: &[u8], now: SystemTime) -> Result<Principal, Refused> {
        let now = unix_seconds(now);
        let mut claims = claims::ClaimSet::parse(claims)?;
        let first = self.issuers.keys().min().ok_or(Refused::Invalid("no issuer is configured"))?;
        claims.fill("iss", || (**first).into());
        let issuer = self.issuers.get(claims.issuer()?).ok_or(Refused::Invalid("issuer not configured"))?.settings();
        claims.fill("aud", || issuer.audiences.clone().into());
        claims.fill("exp", || now.saturating_add(3600).into());
        self.rules.principal(&claims, issuer, now)
    }

    /// Fetches the keys of every issuer that publishes them, all at once. A failure keeps the keys in use.
    pub async fn refresh(&self) -> Vec<Refreshed> {
        let now = Instant::now();
        let rounds = self.issuers.values().filter_map(|issuer| {
            let jwks = issuer.published()?;
            Some(async move {
                let outcome = jwks.refresh(&*self.fetch, now).await;
                Refreshed { issuer: Arc::clone(issuer.name()), outcome }
            })
        });
        let done = join_all(rounds).await;
        if done.iter().any(|r| r.outcome == Ok(KeyChange::Changed)) {
            self.verified.clear();
        }
        done
    }

    /// How long to wait between two rounds of [`refresh`](Self::refresh).
    pub fn refresh_interval(&self) -> Duration {
        REFRESH_INTERVAL
    }

    /// How long a stream may outlive the credential that opened it.
    pub fn stream_grace(&self) -> Duration {
        self.stream_grace
    }

    /// Takes over the fetched keys of a previous snapshot, so that a reload during an outage of an issuer refuses
    /// nobody. Verified tokens are not taken over: the new rules judge them afresh.
    pub fn adopt_keys(&self, previous: &Identity) {
        for (name, issuer) in &self.issuers {
            let theirs = previous.issuers.get(name).and_then(issuer::IssuerKeys::published);
            if let (Some(ours), Some(theirs)) = (issuer.published(), theirs) {
                ours.adopt(theirs);
            }
        }
    }

    /// Names the issuers whose keys were never fetched; empty when every token can be judged.
    pub fn issuers_without_keys(&self) -> Vec<Arc<str>> {
        let without = self.issuers.values().filter(|i| i.published().is_some_and(|jwks| !jwks.is_loaded()));
        without.map(|i| Arc::clone(i.name())).collect()
    }

    /// Forgets every verified token: the next call with each is judged from the start.
    pub fn forget_verified(&self) {
        self.verified.clear();
    }

    async fn verify_token(&self, token: &str, now: u64) -> Result<Arc<Principal>, Refused> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.verified.get(&digest) {
            let current = self.issuers.get(&known.issuer).is_some_and(|i| i.generation() == known.generation);
            if current && now < known.ends_at {
                return Ok(Arc::clone(&known.principal));
            }
            self.verified.remove(&digest);
        }
        // Boxed: most calls come with a token that is known, and each would carry the state of judging one.
        Box::pin(self.judge(token, digest, now)).await
    }

    /// Judges a token from the start, and remembers it.
    async fn judge(&self, token: &str, digest: [u8; 32], now: u64) -> Result<Arc<Principal>, Refused> {
        let jws = jws::Jws::parse(token)?;
        let claims = claims::ClaimSet::parse(&jws.payload)?;
        let issuer = self.issuers.get(claims.issuer()?).ok_or(Refused::Invalid("issuer not configured"))?;
        // Read before the keys: should they rotate in between, the entry is born outdated.
        let generation = issuer.generation();
        issuer.verify_signature(&jws, &*self.fetch, Instant::now()).await?;
        let mut principal = self.rules.principal(&claims, issuer.settings(), now)?;
        let audiences = claims.audiences(&issuer.settings().audiences);
        principal.credential = Some(CredentialId { id: claims.token_id(), sha256: digest, audiences });
        let principal = Arc::new(principal);
        let ends_at = principal.expires_at.unwrap_or(0).saturating_add(self.rules.leeway_seconds());
        let known =
            cache::Known { principal: Arc::clone(&principal), issuer: Arc::clone(issuer.name()), generation, ends_at };
        self.verified.insert(digest, known);
        Ok(principal)
    }
}

/// Seconds since the Unix epoch; a clock before 1970 counts as 0, which makes tokens "not valid yet".
fn unix_seconds(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests;
