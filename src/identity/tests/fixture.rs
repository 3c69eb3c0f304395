//! Owns the issuers, keys and hand-made tokens of these tests.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature as sig;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sig::KeyPair as _;

use crate::identity::*;
use crate::principal::{Principal, TenantId};
use crate::secret::Secret;

pub(super) const ISSUER: &str = "https://id.example.com";
pub(super) const AUDIENCE: &str = "tollbridge";
pub(super) const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// The time that these tests live at.
pub(super) const NOW: u64 = 1_800_000_000;

/// A key pair in the forms that settings and key sets want.
pub(super) struct Pair {
    pub(super) private: Secret,
    pub(super) public: Secret,
    /// JWK members without `kid`.
    pub(super) jwk: Value,
}

pub(super) static RSA: LazyLock<Pair> = LazyLock::new(rsa);
pub(super) static RSA_OTHER: LazyLock<Pair> = LazyLock::new(rsa);
pub(super) static P256: LazyLock<Pair> = LazyLock::new(|| ec(&sig::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"));
pub(super) static P384: LazyLock<Pair> = LazyLock::new(|| ec(&sig::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"));
pub(super) static ED25519: LazyLock<Pair> = LazyLock::new(ed25519);

fn rsa() -> Pair {
    let pair = sig::RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let parts = sig::RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
    let private: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
    Pair {
        private: pem("PRIVATE KEY", private.as_ref()),
        public: pem("PUBLIC KEY", public.as_ref()),
        jwk: json!({"kty": "RSA", "n": b64(&parts.n), "e": b64(&parts.e)}),
    }
}

fn ec(algorithm: &'static sig::EcdsaSigningAlgorithm, curve: &str) -> Pair {
    let pair = sig::EcdsaKeyPair::generate(algorithm).unwrap();
    let point = &pair.public_key().as_ref()[1..];
    let (x, y) = point.split_at(point.len() / 2);
    let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
    Pair {
        private: pem("PRIVATE KEY", pair.to_pkcs8v1().unwrap().as_ref()),
        public: pem("PUBLIC KEY", public.as_ref()),
        jwk: json!({"kty": "EC", "crv": curve, "x": b64(x), "y": b64(y)}),
    }
}

fn ed25519() -> Pair {
    let pair = sig::Ed25519KeyPair::generate().unwrap();
    let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
    Pair {
        private: pem("PRIVATE KEY", pair.to_pkcs8v1().unwrap().as_ref()),
        public: pem("PUBLIC KEY", public.as_ref()),
        jwk: json!({"kty": "OKP", "crv": "Ed25519", "x": b64(pair.public_key().as_ref())}),
    }
}

fn pem(tag: &str, der: &[u8]) -> Secret {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    Secret::new(format!("-----BEGIN {tag}-----\n{}\n-----END {tag}-----\n", lines.join("\n")))
}

pub(super) fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The JWK with a key id and more members.
pub(super) fn jwk(pair: &Pair, kid: &str, more: &Value) -> Value {
    let mut key = pair.jwk.clone();
    key["kid"] = json!(kid);
    for (name, value) in more.as_object().unwrap() {
        key[name] = value.clone();
    }
    key
}

pub(super) fn key_set(keys: &[Value]) -> Result<Bytes, String> {
    Ok(Bytes::from(json!({ "keys": keys }).to_string()))
}

// === settings ===

pub(super) fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

pub(super) fn issuer(algorithms: &[Algorithm], keys: KeySource) -> Issuer {
    Issuer {
        issuer: ISSUER.into(),
        tenants: None,
        tenant: None,
        platform_admin: true,
        subject_prefix: None,
        audiences: vec![AUDIENCE.into()],
        algorithms: algorithms.to_vec(),
        keys,
    }
}

pub(super) fn secret_issuer() -> Issuer {
    issuer(&[Algorithm::HS256], KeySource::Static(Secret::new(SECRET)))
}

pub(super) fn published(algorithms: &[Algorithm]) -> Issuer {
    issuer(algorithms, KeySource::Jwks { url: "https://id.example.com/jwks".into() })
}

pub(super) fn settings(issuers: Vec<Issuer>) -> Settings {
    Settings {
        unknown_tenant: UnknownTenant::Deny,
        stream_grace: Duration::from_secs(300),
        revoked: None,
        leeway: Duration::from_secs(30),
        issuers,
        claims: Claims::default(),
        api_keys: Vec::new(),
        certificates: Vec::new(),
        tenants: vec![tenant("acme"), tenant("globex")],
    }
}

pub(super) fn identity(issuers: Vec<Issuer>) -> Identity {
    Identity::new(settings(issuers), Script::of([])).unwrap()
}

// === tokens ===

pub(super) fn good_claims() -> Value {
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "tenant": "acme", "exp": NOW + 600, "iat": NOW})
}

/// Good claims with some replaced; `null` removes.
pub(super) fn claims_with(changes: &Value) -> Value {
    let mut claims = good_claims();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            other => claims[name] = other.clone(),
        }
    }
    claims
}

/// Signs any header and any payload text, however wrong, with the algorithm of the key.
pub(super) fn sign_raw(header: &str, payload: &str, algorithm: Algorithm, key: &Secret) -> String {
    let message = format!("{}.{}", b64(header), b64(payload));
    let key = match algorithm.as_str().get(..2).unwrap() {
        "HS" => jsonwebtoken::EncodingKey::from_secret(key.expose()),
        "RS" | "PS" => jsonwebtoken::EncodingKey::from_rsa_pem(key.expose()).unwrap(),
        "ES" => jsonwebtoken::EncodingKey::from_ec_pem(key.expose()).unwrap(),
        _ => jsonwebtoken::EncodingKey::from_ed_pem(key.expose()).unwrap(),
    };
    let algorithm: jsonwebtoken::Algorithm = algorithm.as_str().parse().unwrap();
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, algorithm).unwrap();
    format!("{message}.{signature}")
}

pub(super) fn sign(header: &Value, claims: &Value, algorithm: Algorithm, key: &Secret) -> String {
    sign_raw(&header.to_string(), &claims.to_string(), algorithm, key)
}

/// A token of the shared-secret issuer.
pub(super) fn hs256(claims: &Value) -> String {
    sign(&json!({"alg": "HS256"}), claims, Algorithm::HS256, &Secret::new(SECRET))
}

pub(super) fn at(second: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(second)
}

/// Verifies at a time. None of these futures waits for anything but the scripted key source.
pub(super) fn verify_at(identity: &Identity, token: &str, second: u64) -> Result<Arc<Principal>, Refused> {
    let credential = Credential::bearer(token).ok_or(Refused::Invalid("not a bearer token"))?;
    block_on(identity.verify(&credential, at(second)))
}

pub(super) fn verify(identity: &Identity, token: &str) -> Result<Arc<Principal>, Refused> {
    verify_at(identity, token, NOW)
}

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

// === key source ===

/// A key source that answers from a script, then fails.
pub(super) struct Script {
    answers: Mutex<VecDeque<Result<Bytes, String>>>,
    fetches: AtomicUsize,
}

impl Script {
    pub(super) fn of(answers: impl IntoIterator<Item = Result<Bytes, String>>) -> Arc<Self> {
        Arc::new(Self { answers: Mutex::new(answers.into_iter().collect()), fetches: AtomicUsize::new(0) })
    }

    pub(super) fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }

    pub(super) fn then(&self, answer: Result<Bytes, String>) {
        self.answers.lock().push_back(answer);
    }
}

impl KeyFetch for Script {
    fn fetch(&self, _url: &str) -> BoxFuture<'_, Result<Bytes, String>> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        async move {
            // Lets every concurrent caller arrive while the fetch is under way.
            tokio::task::yield_now().await;
            self.answers.lock().pop_front().unwrap_or_else(|| Err("connection refused".to_owned()))
        }
        .boxed()
    }
}
