//! Owns the published keys of one issuer: reading a key set strictly, keeping it fresh, surviving outages.
//! Does not open connections (`KeyFetch`) and has no clock of its own: callers say what time it is.
//! Invariants: at most one fetch per issuer at a time, and callers start at most one per `FETCH_INTERVAL`; a failed
//! fetch never removes keys, keys that could not be confirmed for `STALE_MAX` are no longer used.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

use super::jws::{Jws, KID_BYTES_MAX};
use super::key::{Shape, VerifyingKey};
use super::{Algorithm, KeyFetch, Refused, json};

/// Largest key set that is read, in bytes.
pub const JWKS_BYTES_MAX: usize = 256 * 1024;
/// Most keys in one set.
const KEYS_MAX: usize = 64;
/// Callers cause at most one fetch in this time.
const FETCH_INTERVAL: Duration = Duration::from_secs(10);
/// The same, after a fetch whose caller went away: short enough not to delay a rotation, long enough not to be a lever.
const ABANDONED_INTERVAL: Duration = Duration::from_secs(1);
/// Longest time that callers wait for a fetch.
const FETCH_DEADLINE: Duration = Duration::from_secs(5);
/// How long keys are used that their source no longer confirms.
const STALE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What a fetch brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyChange {
    /// The same keys as before.
    Same,
    /// Other keys: tokens are verified afresh.
    Changed,
}

/// The key set behind one URL.
pub(super) struct Jwks {
    url: String,
    current: ArcSwapOption<KeySet>,
    /// Grows with every change of keys.
    generation: AtomicU64,
    /// Grows with every completed fetch, good or bad.
    rounds: AtomicU64,
    /// Held during a fetch, so that concurrent callers share it; holds when callers may start the next one.
    gate: Mutex<Option<Instant>>,
}

/// A key set as fetched.
#[derive(Clone)]
struct KeySet {
    keys: Arc<[VerifyingKey]>,
    digest: [u8; 32],
    confirmed_at: Instant,
}

// === impl Jwks ===

impl Jwks {
    pub(super) fn new(url: String) -> Self {
        Self {
            url,
            current: ArcSwapOption::empty(),
            generation: AtomicU64::new(0),
            rounds: AtomicU64::new(0),
            gate: Mutex::new(None),
        }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.current.load().is_some()
    }

    /// Takes over the keys of the same URL.
    pub(super) fn adopt(&self, other: &Self) {
        if self.url == other.url && !self.is_loaded() {
            self.current.store(other.current.load_full());
        }
    }

    /// Verifies with the key that the token names; an unknown key asks the source once.
    ///
    /// # Cancel safety
    /// Dropping the future may abandon the fetch; keys in use stay.
    pub(super) async fn verify(&self, jws: &Jws<'_>, fetch: &dyn KeyFetch, now: Instant) -> Result<(), Refused> {
        let round = self.rounds.load(Ordering::Acquire);
        if let Some(verdict) = self.usable(now).and_then(|set| set.verify(jws)) {
            return verdict;
        }
        self.refetch(round, fetch, now).await;
        let set = self.usable(now).ok_or(Refused::KeysUnavailable)?;
        set.verify(jws).unwrap_or(Err(Refused::Invalid("issuer has no key of this id and algorithm")))
    }

    /// Fetches now; the error is a sentence for the operator.
    pub(super) async fn refresh(&self, fetch: &dyn KeyFetch, now: Instant) -> Result<KeyChange, String> {
        // An async mutex, held across the fetch on purpose: whoever needs the same keys waits here, FETCH_DEADLINE
        // at most, and the table itself is never locked.
        let mut gate = self.gate.lock().await;
        self.fetch(&mut gate, fetch, now).await
    }

    async fn refetch(&self, round_seen: u64, fetch: &dyn KeyFetch, now: Instant) {
        let mut gate = self.gate.lock().await;
        let fetched_meanwhile = self.rounds.load(Ordering::Acquire) != round_seen;
        if fetched_meanwhile || gate.is_some_and(|next| now < next) {
            return;
        }
        // A failure shows as keys that are still missing; the periodic refresh reports it.
        let _ = self.fetch(&mut gate, fetch, now).await;
    }

    async fn fetch(&self, gate: &mut Option<Instant>, fetch: &dyn KeyFetch, now: Instant) -> Result<KeyChange, String> {
        *gate = now.checked_add(ABANDONED_INTERVAL);
        let fetched = tokio::time::timeout(FETCH_DEADLINE, fetch.fetch(&self.url)).await;
        *gate = now.checked_add(FETCH_INTERVAL);
        let outcome = match fetched {
            Ok(Ok(body)) => KeySet::read(&body, now).map(|set| self.replace(set)),
            Ok(Err(reason)) => Err(reason),
            Err(_elapsed) => Err(format!("no answer within {}s", FETCH_DEADLINE.as_secs())),
        };
        self.rounds.fetch_add(1, Ordering::AcqRel);
        outcome
    }

    fn replace(&self, set: KeySet) -> KeyChange {
        let same = self.current.load().as_ref().is_some_and(|old| old.digest == set.digest);
        self.current.store(Some(Arc::new(set)));
        if same {
            return KeyChange::Same;
        }
        // After the keys: an entry of the verified-token cache that bears the new number saw the new keys.
        self.generation.fetch_add(1, Ordering::AcqRel);
        KeyChange::Changed
    }

    fn usable(&self, now: Instant) -> Option<Arc<KeySet>> {
        self.current.load_full().filter(|set| now.saturating_duration_since(set.confirmed_at) < STALE_MAX)
    }
}

// === impl KeySet ===

impl KeySet {
    /// Reads a JWK Set. Keys that cannot verify tokens are skipped (RFC 7517 §5); a set without any other is refused.
    fn read(body: &[u8], now: Instant) -> Result<Self, String> {
        if body.len() > JWKS_BYTES_MAX {
            return Err(format!("key set has {} bytes, at most {JWKS_BYTES_MAX} are read", body.len()));
        }
        let document = json::object(body).map_err(|json::Malformed| "key set is not strict JSON".to_owned())?;
        let Some(Value::Array(listed)) = document.get("keys") else {
            return Err("document has no list `keys`".to_owned());
        };
        if listed.len() > KEYS_MAX {
            return Err(format!("key set has {} keys, at most {KEYS_MAX} are read", listed.len()));
        }
        let keys: Arc<[VerifyingKey]> = listed.iter().filter_map(Value::as_object).filter_map(read_key).collect();
        if keys.is_empty() {
            return Err(format!("key set has no usable signature key among {}", listed.len()));
        }
        Ok(Self { keys, digest: Sha256::digest(body).into(), confirmed_at: now })
    }

    /// `None` when the set has no key for this token.
    fn verify(&self, jws: &Jws<'_>) -> Option<Result<(), Refused>> {
        let named = |key: &&VerifyingKey| jws.kid.is_none() || key.kid.as_deref() == jws.kid.as_deref();
        let mut fitting = self.keys.iter().filter(named).filter(|key| key.fits(jws.algorithm));
        let key = fitting.next()?;
        if fitting.next().is_some() {
            return Some(Err(Refused::Invalid("more than one key of the issuer fits the token")));
        }
        Some(key.verify(jws.algorithm, jws.message.as_bytes(), jws.signature))
    }
}

/// Reads one JWK; `None` when it is not a public signature key of a supported type.
pub(super) fn read_key(jwk: &Map<String, Value>) -> Option<VerifyingKey> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    if !serves_verification(jwk) {
        return None;
    }
    let pinned = match jwk.get("alg") {
        None => None,
        Some(alg) => Some(Algorithm::parse(alg.as_str()?)?),
    };
    let kid = match jwk.get("kid") {
        None => None,
        Some(kid) => Some(kid.as_str().filter(|kid| kid.len() <= KID_BYTES_MAX)?.into()),
    };
    let has_bytes = |name: &str, n: usize| {
        text(name).and_then(|v| URL_SAFE_NO_PAD.decode(v).ok()).is_some_and(|bytes| bytes.len() == n)
    };
    let point = |n: usize| {
        let whole = has_bytes("x", n) && has_bytes("y", n);
        DecodingKey::from_ec_components(text("x")?, text("y")?).ok().filter(|_| whole)
    };
    let (shape, key) = match (text("kty")?, text("crv")) {
        ("RSA", None) => (Shape::Rsa, DecodingKey::from_rsa_components(text("n")?, text("e")?).ok()?),
        ("EC", Some("P-256")) => (Shape::P256, point(32)?),
        ("EC", Some("P-384")) => (Shape::P384, point(48)?),
        ("OKP", Some("Ed25519")) if has_bytes("x", 32) => {
            (Shape::Ed25519, DecodingKey::from_ed_components(text("x")?).ok()?)
        }
        // `oct` above all: a secret that is published is none.
        _ => return None,
    };
    let key = VerifyingKey { kid, pinned, shape, key };
    key.pinned.is_none_or(|pinned| shape.fits(pinned)).then_some(key)
}

/// RFC 7517 §4.2, §4.3. A key that shows its private part is compromised.
fn serves_verification(jwk: &Map<String, Value>) -> bool {
    let use_fits = jwk.get("use").is_none_or(|v| v == "sig");
    let operations_fit =
        jwk.get("key_ops").is_none_or(|v| v.as_array().is_some_and(|ops| ops.iter().any(|o| o == "verify")));
    use_fits && operations_fit && !jwk.contains_key("d") && !jwk.contains_key("k")
}

#[cfg(test)]
mod tests;
